//! CSV of arrivals and CSV of counts per minute, without quoted commas, as they are written for numbers and names.

use crate::trace::{AT_MS_MAX, COUNT_MAX, NAME_BYTES_MAX, TraceBuilder, TraceError, client_of};
use crate::whole_ms;

/// Longest time of work of one request, in seconds: a century.
const BUSY_S_MAX: f64 = 3.2e9;

/// Most of a wrong value that an error shows, in characters.
const SHOWN_MAX: usize = 80;

const TIME: &[&str] = &["time", "timestamp", "at", "gmt_create", "period", "period_utc", "minute"];
const NAME: &[&str] = &["name", "service", "checkpoint_model_version_id", "function", "app"];
const CLIENT: &[&str] = &["client", "user", "group", "groupId"];
const SECONDS: &[&str] = &["seconds", "exec_time_seconds", "duration_s"];
const COUNT: &[&str] = &["count", "value", "requests"];

/// How a CSV trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One line per arrival: columns for the time, the name, and, if there are any, the client and the seconds of work.
    Arrivals,
    /// One line per minute: a column for the minute, and one for each name, or `name` and `count`.
    MinuteCounts,
}

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

/// The bytes of a file as text.
///
/// # Errors
/// [`TraceError::NotText`] with the line that is none.
pub fn text_of(bytes: &[u8]) -> Result<&str, TraceError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        TraceError::NotText { line: 1 + before.iter().filter(|byte| **byte == b'\n').count() }
    })
}

pub fn arrivals(text: &str, into: &mut TraceBuilder) -> Result<(), TraceError> {
    let table = Table::read(text)?;
    let (time, name) = (table.need("the time", TIME)?, table.need("the name", NAME)?);
    let (client, seconds) = (table.find(CLIENT), table.find(SECONDS));
    table.each(|row| {
        let busy_ms = seconds.map_or(Ok(None), |column| row.busy_ms(column))?;
        let client = client.map(|column| client_of(row.get(column)));
        into.arrival(row.name(name)?, row.time(time)?, client, busy_ms)
    })
}

pub fn counts(text: &str, into: &mut TraceBuilder) -> Result<(), TraceError> {
    let table = Table::read(text)?;
    let time = table.need("the minute", TIME)?;
    let name = table.find(NAME);
    let counts: Vec<usize> = match table.find(COUNT) {
        Some(count) => vec![count],
        None => (0..table.header.len()).filter(|column| *column != time && Some(*column) != name).collect(),
    };
    if counts.is_empty() {
        return Err(table.no_column("the counts", COUNT));
    }
    let head = Row { line: 1, header: &table.header, values: table.header.clone() };
    table.each(|row| {
        let minute_ms = row.time(time)?;
        for column in &counts {
            let count = row.get(*column).parse::<u64>().ok().filter(|count| *count <= COUNT_MAX);
            let count =
                count.ok_or_else(|| row.bad(*column, "a number of requests up to a thousand million"))?;
            let called = name.map_or_else(|| head.name(*column), |name| row.name(name))?;
            into.minute(called, minute_ms, count)?;
        }
        Ok(())
    })
}

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
        self.find(names).ok_or_else(|| self.no_column(what, names))
    }

    fn no_column(&self, what: &'static str, names: &[&str]) -> TraceError {
        TraceError::NoColumn { what, names: names.join(", "), header: shown(&self.header.join(",")) }
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

    fn name(&self, column: usize) -> Result<&'a str, TraceError> {
        let name = self.get(column);
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
        if fits { Ok(name) } else { Err(self.bad(column, "a name of 1 to 1,024 bytes")) }
    }

    /// `None` where none is given; what was never begun has a negative time in some traces.
    fn busy_ms(&self, column: usize) -> Result<Option<u64>, TraceError> {
        let text = self.get(column);
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<f64>() {
            Ok(seconds) if (0.0..=BUSY_S_MAX).contains(&seconds) => Ok(Some(whole_ms(seconds * 1_000.0))),
            Ok(seconds) if (-BUSY_S_MAX..0.0).contains(&seconds) => Ok(None),
            Ok(_) | Err(_) => Err(self.bad(column, "a number of seconds")),
        }
    }

    fn bad(&self, column: usize, expected: &'static str) -> TraceError {
        let column_name = shown(self.header[column]);
        TraceError::BadValue {
            line: self.line,
            column: column_name,
            value: shown(self.get(column)),
            expected,
        }
    }
}

/// As much of it as an error has room for.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

fn fields(line: &str) -> Vec<&str> {
    line.trim_start_matches('\u{feff}').split(',').map(|field| field.trim().trim_matches('"')).collect()
}

/// `2024-11-15 18:36:50.5`, also with `T` and `Z`, or seconds since 1970.
fn time_ms(text: &str) -> Option<u64> {
    if let Ok(seconds) = text.parse::<f64>() {
        let ms = (seconds >= 0.0 && seconds.is_finite()).then(|| whole_ms(seconds * 1_000.0));
        return ms.filter(|ms| *ms <= AT_MS_MAX);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Trace;

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
        let none = told("when,name\n");
        assert!(
            none.starts_with("line 1: no column for the time: it has to be called one of time,"),
            "{none}"
        );
        assert_eq!(
            told("time,name\n5,a\n2024-13-01 00:00:00,a\n"),
            "line 3: time \"2024-13-01 00:00:00\" is not YYYY-MM-DD HH:MM:SS or seconds since 1970"
        );
        assert_eq!(told("time,name,seconds\n5,a\n"), "line 2 has 2 values, the header 3");
        assert!(told("time,count\n5,-1\n").starts_with("line 2: count \"-1\" is not a number of requests"));
        assert!(told("time,count\n5,1000000001\n").starts_with("line 2: count \"1000000001\" is not"));
        assert!(told("time\n5\n").starts_with("line 1: no column for the counts"));
        assert_eq!(told("time,name\n5,\n"), "line 2: name \"\" is not a name of 1 to 1,024 bytes");
        assert_eq!(told("time,,b\n5,1,1\n"), "line 1:  \"\" is not a name of 1 to 1,024 bytes");
        for odd in ["NaN", "inf", "1e300", "-inf", "x"] {
            let error = told(&format!("time,name,seconds\n5,a,{odd}\n"));
            assert_eq!(error, format!("line 2: seconds {odd:?} is not a number of seconds"));
        }
        for odd in [
            "1969-01-01 00:00:00",
            "2024-01-01 24:00:00",
            "2024-01-01",
            "-1",
            "NaN",
            "1e300",
            "1e13",
            "2024-01-01 0:0:0:0",
        ] {
            assert_eq!(time_ms(odd), None, "{odd}");
        }
        assert_eq!(text_of(b"time,name\n5,a\n6,\xff\n"), Err(TraceError::NotText { line: 3 }));
    }
}
