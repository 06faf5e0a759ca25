//! Recorded arrivals: CSV of arrivals, CSV of counts per minute.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::whole_ms;

/// So many arrivals at most are read of a trace.
pub const ARRIVALS_MAX: usize = 5_000_000;

/// So many names.
pub const NAMES_MAX: usize = 100_000;

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

/// How a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One line per arrival: columns for the time, the name, and, if there are any, the client and the seconds of work.
    Arrivals,
    /// One line per minute: a column for the minute, and one for each name, or `name` and `count`.
    MinuteCounts,
}

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TraceError {
    /// No header line.
    #[error("the trace is empty: its first line must name the columns")]
    Empty,
    /// A column that is needed.
    #[error("no column for {what}: it has to be called one of {names}, the header has {header:?}")]
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

const TIME: &[&str] = &["time", "timestamp", "at", "gmt_create", "period", "period_utc", "minute"];
const NAME: &[&str] = &["name", "service", "checkpoint_model_version_id", "function", "app"];
const CLIENT: &[&str] = &["client", "user", "group", "groupId"];
const SECONDS: &[&str] = &["seconds", "exec_time_seconds", "duration_s"];
const COUNT: &[&str] = &["count", "value", "requests"];

impl Format {
    /// The format that a header is of: one with a name and without a count holds arrivals.
    ///
    /// # Errors
    /// If the text is empty.
    pub fn of(text: &str) -> Result<Self, TraceError> {
        let header: Vec<&str> = fields(text.lines().next().ok_or(TraceError::Empty)?);
        let has = |names: &[&str]| header.iter().any(|column| names.contains(column));
        Ok(if has(NAME) && !has(COUNT) { Self::Arrivals } else { Self::MinuteCounts })
    }
}

impl Trace {
    /// Reads a trace of the format that its header is of.
    ///
    /// # Errors
    /// See [`TraceError`]; the first fault is told.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        match Format::of(text)? {
            Format::Arrivals => Self::parse_arrivals(text),
            Format::MinuteCounts => Self::parse_counts(text),
        }
    }

    fn parse_arrivals(text: &str) -> Result<Self, TraceError> {
        let table = Table::read(text)?;
        let (time, name) = (table.need("the time", TIME)?, table.need("the name", NAME)?);
        let (client, seconds) = (table.find(CLIENT), table.find(SECONDS));
        let mut found = Found::default();
        table.each(|row| {
            let busy_ms = match seconds.map(|column| row.get(column)).filter(|text| !text.is_empty()) {
                Some(text) => match text.parse::<f64>() {
                    // What was never begun has a negative time in some traces.
                    Ok(seconds) if seconds >= 0.0 => Some(whole_ms(seconds * 1_000.0)),
                    Ok(_) => None,
                    Err(_) => return Err(row.bad(seconds.unwrap_or(0), "a number of seconds")),
                },
                None => None,
            };
            found.add(
                row.get(name),
                |name| Request {
                    at_ms: 0,
                    name,
                    client: client.map(|column| hash(row.get(column))),
                    busy_ms,
                    requests: 1,
                },
                row.time(time)?,
            )
        })?;
        Ok(found.finish())
    }

    fn parse_counts(text: &str) -> Result<Self, TraceError> {
        let table = Table::read(text)?;
        let time = table.need("the minute", TIME)?;
        let name = table.find(NAME);
        let counts: Vec<usize> = match table.find(COUNT) {
            Some(count) => vec![count],
            None => {
                (0..table.header.len()).filter(|column| *column != time && Some(*column) != name).collect()
            }
        };
        let mut found = Found::default();
        table.each(|row| {
            let minute_ms = row.time(time)?;
            for column in &counts {
                let text = row.get(*column);
                let Ok(count) = text.parse::<u64>() else {
                    return Err(row.bad(*column, "a number of requests"));
                };
                let called = name.map_or_else(|| table.header[*column], |name| row.get(name));
                let moments = count.min(MOMENTS_PER_MINUTE);
                for moment in 0..moments {
                    let requests = count / moments + u64::from(moment < count % moments);
                    let request = |name| Request { at_ms: 0, name, client: None, busy_ms: None, requests };
                    found.add(called, request, minute_ms.saturating_add(60_000 * moment / moments))?;
                }
            }
            Ok(())
        })?;
        Ok(found.finish())
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

/// A CSV file without quotes, as they are written for numbers and names.
struct Table<'a> {
    header: Vec<&'a str>,
    body: &'a str,
}

struct Row<'a, 'b> {
    line: usize,
    header: &'b [&'a str],
    values: Vec<&'a str>,
}

impl<'a> Table<'a> {
    fn read(text: &'a str) -> Result<Self, TraceError> {
        let (header, body) = text.split_once('\n').unwrap_or((text, ""));
        if header.trim().is_empty() {
            return Err(TraceError::Empty);
        }
        Ok(Self { header: fields(header), body })
    }

    fn find(&self, names: &[&str]) -> Option<usize> {
        self.header.iter().position(|column| names.contains(column))
    }

    fn need(&self, what: &'static str, names: &[&str]) -> Result<usize, TraceError> {
        self.find(names).ok_or_else(|| TraceError::NoColumn {
            what,
            names: names.join(", "),
            header: self.header.join(","),
        })
    }

    fn each(&self, mut take: impl FnMut(&Row<'a, '_>) -> Result<(), TraceError>) -> Result<(), TraceError> {
        for (line, text) in (2..).zip(self.body.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let values = fields(text);
            if values.len() < self.header.len() {
                return Err(TraceError::TooFew { line, found: values.len(), expected: self.header.len() });
            }
            take(&Row { line, header: &self.header, values })?;
        }
        Ok(())
    }
}

impl<'a> Row<'a, '_> {
    fn get(&self, column: usize) -> &'a str {
        self.values[column]
    }

    fn time(&self, column: usize) -> Result<u64, TraceError> {
        time_ms(self.get(column)).ok_or_else(|| self.bad(column, "YYYY-MM-DD HH:MM:SS or seconds since 1970"))
    }

    fn bad(&self, column: usize, expected: &'static str) -> TraceError {
        let column_name = self.header[column].to_owned();
        let value = self.get(column).chars().take(80).collect();
        TraceError::BadValue { line: self.line, column: column_name, value, expected }
    }
}

fn fields(line: &str) -> Vec<&str> {
    line.trim_start_matches('\u{feff}').split(',').map(|field| field.trim().trim_matches('"')).collect()
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// `2024-11-15 18:36:50.5`, also with `T` and `Z`, or seconds since 1970.
fn time_ms(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<f64>() {
        return (0.0..1e12).contains(&seconds).then_some(whole_ms(seconds * 1_000.0));
    }
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' '])?;
    let date: Vec<u64> = numbers(date, '-')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let time: Vec<u64> = numbers(time, ':')?;
    let ([year @ 1970..=9999, month @ 1..=12, day @ 1..=31], [hour @ 0..=23, minute @ 0..=59, rest @ ..]) =
        (date.as_slice(), time.as_slice())
    else {
        return None;
    };
    let second = match rest {
        [] => 0,
        [second @ 0..=60] => *second,
        [..] => return None,
    };
    let ms: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some((((days(*year, *month, *day) * 24 + hour) * 60 + minute) * 60 + second) * 1_000 + ms)
}

fn numbers(text: &str, separator: char) -> Option<Vec<u64>> {
    text.split(separator).map(|number| number.parse().ok()).collect()
}

/// Days since 1970 of a date of the civil calendar, counted in years that begin in March.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

/// What was read, names by number as they come.
#[derive(Default)]
struct Found<'a> {
    names: BTreeMap<&'a str, usize>,
    requests: Vec<Request>,
}

impl<'a> Found<'a> {
    fn add(
        &mut self,
        name: &'a str,
        request: impl Fn(usize) -> Request,
        at_ms: u64,
    ) -> Result<(), TraceError> {
        if self.requests.len() == ARRIVALS_MAX {
            return Err(TraceError::TooMany { what: "arrivals", limit: ARRIVALS_MAX });
        }
        let next = self.names.len();
        let number = *self.names.entry(name).or_insert(next);
        if self.names.len() > NAMES_MAX {
            return Err(TraceError::TooMany { what: "names", limit: NAMES_MAX });
        }
        self.requests.push(Request { at_ms, ..request(number) });
        Ok(())
    }

    fn finish(mut self) -> Trace {
        let mut place = vec![0; self.names.len()];
        for (sorted, number) in self.names.values().enumerate() {
            place[*number] = sorted;
        }
        self.requests.iter_mut().for_each(|request| request.name = place[request.name]);
        self.requests.sort_by_key(|request| request.at_ms);
        Trace { names: self.names.keys().map(|name| (*name).to_owned()).collect(), requests: self.requests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_csv_of_arrivals_is_read_in_the_order_of_time() {
        let text = "gmt_create,checkpoint_model_version_id,groupId,exec_time_seconds,predict_status\n\
                    1970-01-02 00:00:01,B,g,32.5,SUCCEED\n\
                    1970-01-01T00:00:00.250Z,A,h,,FAILED\n\
                    86402,B,g,-1,PENDING\n";
        let trace = Trace::parse(text).unwrap();
        assert_eq!(trace.names, ["A", "B"]);
        let seen: Vec<_> = trace.requests.iter().map(|one| (one.at_ms, one.name, one.busy_ms)).collect();
        assert_eq!(seen, [(250, 0, None), (86_401_000, 1, Some(32_500)), (86_402_000, 1, None)]);
        assert_eq!(trace.requests[1].client, trace.requests[2].client);
        assert_ne!(trace.requests[0].client, trace.requests[1].client);
        assert_eq!(time_ms("2024-02-29 12:00:00"), Some(1_709_208_000_000));
    }

    #[test]
    fn counts_per_minute_are_spread_over_the_minute_and_none_is_lost() {
        let trace =
            Trace::parse("period,count\n1970-01-01 00:01:00,2\n1970-01-01 00:02:00,0\n180,100\n").unwrap();
        assert_eq!(trace.names, ["count"]);
        let seen: Vec<_> = trace.requests.iter().map(|one| (one.at_ms, one.requests)).collect();
        assert_eq!(seen[..3], [(60_000, 1), (90_000, 1), (180_000, 9)]);
        assert_eq!((seen.len(), seen.iter().map(|one| one.1).sum::<u64>()), (14, 102));
        let wide = Trace::parse("minute,a,b\n60,1,0\n120,0,1\n").unwrap();
        assert_eq!(wide.names, ["a", "b"]);
        let long = Trace::parse("minute,name,count\n60,x,1\n60,y,1\n").unwrap();
        assert_eq!((long.names.len(), long.requests.len()), (2, 2));
    }

    #[test]
    fn what_cannot_be_read_is_told_by_line_column_and_value() {
        let told = |text: &str| Trace::parse(text).unwrap_err().to_string();
        assert_eq!(told(""), "the trace is empty: its first line must name the columns");
        assert!(told("when,name\n").starts_with("no column for the time: it has to be called one of time,"));
        assert_eq!(
            told("time,name\n5,a\n2024-13-01 00:00:00,a\n"),
            "line 3: time \"2024-13-01 00:00:00\" is not YYYY-MM-DD HH:MM:SS or seconds since 1970"
        );
        assert_eq!(told("time,name,seconds\n5,a\n"), "line 2 has 2 values, the header 3");
        assert_eq!(told("time,count\n5,-1\n"), "line 2: count \"-1\" is not a number of requests");
        for odd in [
            "1969-01-01 00:00:00",
            "2024-01-01 24:00:00",
            "2024-01-01",
            "-1",
            "NaN",
            "1e300",
            "2024-01-01 0:0:0:0",
        ] {
            assert_eq!(time_ms(odd), None, "{odd}");
        }
    }
}
