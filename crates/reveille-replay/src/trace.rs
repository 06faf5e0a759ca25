//! Recorded arrivals, whatever they were read from.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::csv::{self, Format};

/// So many arrivals at most are read of a trace.
pub const ARRIVALS_MAX: usize = 5_000_000;

/// So many names.
pub const NAMES_MAX: usize = 100_000;

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 1_024;

/// Most requests of one minute.
pub const COUNT_MAX: u64 = 1_000_000_000;

/// Latest time, in ms since 1970. What is later is no time, but something else in the wrong column.
pub const AT_MS_MAX: u64 = 1_000_000_000_000_000;

/// A minute with more requests than this is replayed as so many moments, evenly spread; the others come with them.
const MOMENTS_PER_MINUTE: u64 = 12;

/// One moment at which somebody asked for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// When, in ms since 1970.
    pub at_ms: u64,
    /// Which name: an index into [`Trace::names`].
    pub name: usize,
    /// A hash of who asked, if the trace says.
    pub client: Option<u64>,
    /// For how long it was worked on, in ms, if the trace says.
    pub busy_ms: Option<u64>,
    /// How many came at this moment.
    pub requests: u64,
}

/// A recorded trace, in the order of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The names, in alphabetical order.
    pub names: Vec<String>,
    /// What they were asked for.
    pub requests: Vec<Request>,
}

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TraceError {
    /// No header line.
    #[error("the trace is empty: its first line must name the columns")]
    Empty,
    /// Bytes that are no text.
    #[error("line {line} is not UTF-8 text")]
    NotText {
        /// Its number, the header is 1.
        line: usize,
    },
    /// A column that is needed.
    #[error("line 1: no column for {what}: it has to be called one of {names}, the header has {header:?}")]
    NoColumn {
        /// What for.
        what: &'static str,
        /// How it may be called.
        names: String,
        /// The header.
        header: String,
    },
    /// A line that says nothing that can be used.
    #[error("line {line}: {column} {value:?} is not {expected}")]
    BadValue {
        /// Its number, the header is 1.
        line: usize,
        /// The column.
        column: String,
        /// What is there.
        value: String,
        /// What should be.
        expected: &'static str,
    },
    /// A line with too few values.
    #[error("line {line} has {found} values, the header {expected}")]
    TooFew {
        /// Its number.
        line: usize,
        /// How many it has.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// More than fits.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

impl Trace {
    /// Reads a CSV trace of the format that its header is of.
    ///
    /// # Errors
    /// See [`TraceError`]; the first fault is told.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut builder = TraceBuilder::default();
        builder.csv(text, Format::of(text)?)?;
        Ok(builder.finish())
    }

    /// The trace of some of its names; `keep` is asked with the place of each in alphabetical order.
    pub fn part(&self, keep: impl Fn(usize) -> bool) -> Self {
        let kept: Vec<usize> = (0..self.names.len()).filter(|name| keep(*name)).collect();
        let place = |request: &Request| {
            kept.binary_search(&request.name).ok().map(|name| Request { name, ..*request })
        };
        Self {
            names: kept.iter().map(|name| self.names[*name].clone()).collect(),
            requests: self.requests.iter().filter_map(place).collect(),
        }
    }
}

/// A trace while it is put together, in any order, from one source or several.
#[derive(Debug, Default)]
pub struct TraceBuilder {
    /// By number as they came.
    names: BTreeMap<String, usize>,
    requests: Vec<Request>,
}

impl TraceBuilder {
    /// Arrivals so far.
    pub fn arrivals(&self) -> usize {
        self.requests.len()
    }

    /// Takes one arrival: whose, when (ms since 1970, at most [`AT_MS_MAX`]), by whom, and for how long it was worked on.
    ///
    /// # Errors
    /// [`TraceError::TooMany`].
    pub fn arrival(
        &mut self,
        name: &str,
        at_ms: u64,
        client: Option<u64>,
        busy_ms: Option<u64>,
    ) -> Result<(), TraceError> {
        self.add(name, Request { at_ms, name: 0, client, busy_ms, requests: 1 })
    }

    /// Takes so many requests of one moment.
    ///
    /// # Errors
    /// [`TraceError::TooMany`].
    pub fn moment(&mut self, name: &str, at_ms: u64, requests: u64) -> Result<(), TraceError> {
        if requests == 0 {
            return Ok(());
        }
        self.add(name, Request { at_ms, name: 0, client: None, busy_ms: None, requests })
    }

    /// Takes the requests of a minute, of which only their number is known: spread over it evenly. Of more than a few,
    /// several come at one moment.
    ///
    /// # Errors
    /// [`TraceError::TooMany`].
    pub fn minute(&mut self, name: &str, minute_ms: u64, count: u64) -> Result<(), TraceError> {
        let moments = count.min(MOMENTS_PER_MINUTE);
        for moment in 0..moments {
            let requests = count / moments + u64::from(moment < count % moments);
            self.moment(name, minute_ms.saturating_add(60_000 * moment / moments), requests)?;
        }
        Ok(())
    }

    /// Takes a CSV file in.
    ///
    /// # Errors
    /// See [`TraceError`]; the first fault is told.
    pub fn csv(&mut self, text: &str, format: Format) -> Result<(), TraceError> {
        match format {
            Format::Arrivals => csv::arrivals(text, self),
            Format::MinuteCounts => csv::counts(text, self),
        }
    }

    fn add(&mut self, name: &str, mut request: Request) -> Result<(), TraceError> {
        request.requests = request.requests.min(COUNT_MAX);
        if self.requests.len() == ARRIVALS_MAX {
            return Err(TraceError::TooMany { what: "arrivals", limit: ARRIVALS_MAX });
        }
        let number = match self.names.get(name) {
            Some(number) => *number,
            None if self.names.len() == NAMES_MAX => {
                return Err(TraceError::TooMany { what: "names", limit: NAMES_MAX });
            }
            None => {
                let next = self.names.len();
                self.names.insert(name.to_owned(), next);
                next
            }
        };
        self.requests.push(Request { name: number, ..request });
        Ok(())
    }

    /// The trace, in the order of time and of names.
    pub fn finish(mut self) -> Trace {
        let mut place = vec![0; self.names.len()];
        for (sorted, number) in self.names.values().enumerate() {
            place[*number] = sorted;
        }
        self.requests.iter_mut().for_each(|request| request.name = place[request.name]);
        self.requests.sort_by_key(|request| request.at_ms);
        Trace { names: self.names.into_keys().collect(), requests: self.requests }
    }
}

/// Who asked, as a number: equal for equal ones, within one run of the program.
pub fn client_of(who: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    who.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_sources_make_one_trace_in_the_order_of_time() {
        let mut builder = TraceBuilder::default();
        builder.csv("time,name\n50,b\n", Format::Arrivals).unwrap();
        builder.minute("a", 0, 13).unwrap();
        builder.arrival("b", 7_000, Some(client_of("x")), None).unwrap();
        assert_eq!(builder.arrivals(), 14);
        let trace = builder.finish();
        assert_eq!(trace.names, ["a", "b"]);
        assert_eq!(trace.requests.iter().map(|one| one.requests).sum::<u64>(), 15);
        assert!(trace.requests.is_sorted_by_key(|one| one.at_ms));
        let of_b: Vec<_> = trace.requests.iter().filter(|one| one.name == 1).map(|one| one.at_ms).collect();
        assert_eq!(of_b, [7_000, 50_000]);
    }
}
