//! The benchmark's data: CSV files of a known layout, read strictly. A damaged one is named with its line.
//!
//! ```text
//! DIR/m4_hourly/Hourly-train.csv, Hourly-test.csv     a series a line: its name, then values
//! DIR/web_counts/*_per_minute.csv                     a minute a line: time, count
//! DIR/nab/data/*/*.csv, nab/labels/combined_windows.json  a point a line: timestamp, value (`nab.rs`)
//! DIR/hourly/{bike_sharing_hourly,pedestrian_melbourne_hourly,pjm_in_zone,vic_electricity}.csv
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reveille_core::forecast::volume::{Fault, POINTS_MAX, Series};

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why data could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file is not there, or not readable.
    #[error("{}: cannot be read", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is too large for what it should be.
    #[error("{}: {bytes} bytes, at most {FILE_BYTES_MAX} are read", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// As it is.
        bytes: u64,
    },
    /// A line is not as it should be.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// Which.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The values of a file are no series.
    #[error("{}: series {name}: no regular series", path.display())]
    Series {
        /// Which file.
        path: PathBuf,
        /// Which of its series.
        name: String,
        /// Why.
        source: Fault,
    },
}

/// A series of the M4 competition.
#[derive(Clone, Debug)]
pub struct Split {
    /// `H1` and so on.
    pub name: String,
    /// What models see. Its times are not known: it starts at the epoch.
    pub history: Series,
    /// What came.
    pub actual: Vec<f64>,
}

/// Series of one source.
#[derive(Clone, Debug)]
pub struct Set {
    /// Such as `nasa`.
    pub name: &'static str,
    /// Each with its name.
    pub series: Vec<(String, Series)>,
}

/// Where the columns of a set are.
struct Layout {
    name: &'static str,
    file: &'static str,
    step_s: i64,
    series: Option<&'static str>,
    time: &'static str,
    value: &'static str,
}

const LAYOUTS: [Layout; 7] = [
    Layout::of("nasa", "web_counts/nasa_1995-07_per_minute.csv", 60, None, "period", "count"),
    Layout::of("twitter", "web_counts/twitter_2021-08_d01-11_per_minute.csv", 60, None, "period", "count"),
    Layout::of("worldcup98", "web_counts/worldcup98_per_minute.csv", 60, None, "period_utc", "count"),
    Layout::of("bikes", "hourly/bike_sharing_hourly.csv", 3_600, None, "date_time", "users"),
    Layout::of(
        "pedestrians",
        "hourly/pedestrian_melbourne_hourly.csv",
        3_600,
        Some("Sensor"),
        "Date_Time",
        "Count",
    ),
    Layout::of("pjm", "hourly/pjm_in_zone.csv", 3_600, Some("unique_id"), "ds", "y"),
    Layout::of("victoria", "hourly/vic_electricity.csv", 1_800, None, "Time", "Demand"),
];

impl Layout {
    const fn of(
        name: &'static str,
        file: &'static str,
        step_s: i64,
        series: Option<&'static str>,
        time: &'static str,
        value: &'static str,
    ) -> Self {
        Self { name, file, step_s, series, time, value }
    }
}

/// The hourly series of M4 with their 48 test values.
///
/// # Errors
/// A file that is missing or too large, a value that is no number, a series that is only in one of the files.
pub fn m4_hourly(dir: &Path) -> Result<Vec<Split>, ReadError> {
    let (train, test) = (dir.join("m4_hourly/Hourly-train.csv"), dir.join("m4_hourly/Hourly-test.csv"));
    let mut actual: BTreeMap<String, Vec<f64>> =
        wide(&test)?.into_iter().map(|(_, name, values)| (name, values)).collect();
    let mut splits = Vec::new();
    for (line, name, values) in wide(&train)? {
        let wrong =
            |what: &str| ReadError::Line { path: train.clone(), line, what: format!("{name}: {what}") };
        let actual = actual.remove(&name).ok_or_else(|| wrong("has no test values"))?;
        let history = Series::new(0, 3_600, values).map_err(|source| wrong(&source.to_string()))?;
        splits.push(Split { name, history, actual });
    }
    Ok(splits)
}

/// The other seven sets.
///
/// # Errors
/// A file that is missing or too large, a column that is not there, a time or a value that is none.
pub fn sets(dir: &Path) -> Result<Vec<Set>, ReadError> {
    LAYOUTS
        .iter()
        .map(|layout| Ok(Set { name: layout.name, series: long(&dir.join(layout.file), layout)? }))
        .collect()
}

/// A file with a series a line: the line, the name, the values. Cells at the end may be empty.
fn wide(path: &Path) -> Result<Vec<(usize, String, Vec<f64>)>, ReadError> {
    let text = text(path)?;
    let mut rows = Vec::new();
    for (line, content) in lines(&text).skip(1) {
        let mut cells = content.split(',').map(unquoted);
        let name = cells.next().unwrap_or_default().to_owned();
        let mut values = Vec::new();
        for cell in cells.filter(|cell| !matches!(*cell, "" | "NA")) {
            values.push(number(cell).ok_or_else(|| wrong(path, line, format!("`{cell}` is no number")))?);
        }
        if name.is_empty() || values.is_empty() {
            return Err(wrong(path, line, "a name and values are wanted".to_owned()));
        }
        rows.push((line, name, values));
    }
    if rows.is_empty() {
        return Err(wrong(path, 2, "a series a line is wanted, and there is none".to_owned()));
    }
    Ok(rows)
}

/// A file with a value a line.
fn long(path: &Path, layout: &Layout) -> Result<Vec<(String, Series)>, ReadError> {
    let text = text(path)?;
    let mut lines = lines(&text);
    let (_, head) = lines.next().ok_or_else(|| wrong(path, 1, "a head is wanted".to_owned()))?;
    let columns: Vec<&str> = head.split(',').map(unquoted).collect();
    let column = |name: &str| {
        let at = columns.iter().position(|column| *column == name);
        at.ok_or_else(|| wrong(path, 1, format!("there is no column `{name}`")))
    };
    let (time, value) = (column(layout.time)?, column(layout.value)?);
    let series = layout.series.map(column).transpose()?;
    let mut values: BTreeMap<String, BTreeMap<i64, f64>> = BTreeMap::new();
    for (line, content) in lines {
        let cells: Vec<&str> = content.split(',').map(unquoted).collect();
        let cell = |at: usize| {
            let wanted = || wrong(path, line, format!("{} columns, not {}", columns.len(), cells.len()));
            cells.get(at).copied().ok_or_else(wanted)
        };
        let at =
            seconds(cell(time)?).ok_or_else(|| wrong(path, line, format!("`{}` is no time", cells[time])))?;
        let found = match cell(value)? {
            "" | "NA" => f64::NAN,
            cell => number(cell).ok_or_else(|| wrong(path, line, format!("`{cell}` is no number")))?,
        };
        let name = series.map(cell).transpose()?.unwrap_or(layout.name);
        values.entry(name.to_owned()).or_default().insert(at.div_euclid(layout.step_s), found);
    }
    if values.is_empty() {
        return Err(wrong(path, 2, "a value a line is wanted, and there is none".to_owned()));
    }
    values.into_iter().map(|(name, values)| regular(path, layout, name, &values)).collect()
}

/// The series of these steps, with what is not there marked as missing.
fn regular(
    path: &Path,
    layout: &Layout,
    name: String,
    found: &BTreeMap<i64, f64>,
) -> Result<(String, Series), ReadError> {
    let first = found.keys().next().copied().unwrap_or(0);
    let last = found.keys().next_back().copied().unwrap_or(0);
    let points = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
    let fault = |source| ReadError::Series { path: path.to_owned(), name: name.clone(), source };
    if points > POINTS_MAX {
        return Err(fault(Fault::TooLong { points }));
    }
    let values = (first..=last).map(|step| found.get(&step).copied().unwrap_or(f64::NAN)).collect();
    let series = Series::new(first.saturating_mul(layout.step_s), layout.step_s, values).map_err(fault)?;
    Ok((name, series))
}

// --- Cells ------------------------------------------------------------------------------------------------------------

pub(super) fn text(path: &Path) -> Result<String, ReadError> {
    let fault = |source| ReadError::File { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(fault)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(ReadError::TooLarge { path: path.to_owned(), bytes });
    }
    std::fs::read_to_string(path).map_err(fault)
}

/// Those that are not empty, counted from 1.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end())).filter(|(_, line)| !line.is_empty())
}

fn wrong(path: &Path, line: usize, what: String) -> ReadError {
    ReadError::Line { path: path.to_owned(), line, what }
}

fn unquoted(cell: &str) -> &str {
    cell.trim().trim_matches('"')
}

fn number(cell: &str) -> Option<f64> {
    cell.parse().ok().filter(|value: &f64| value.is_finite())
}

/// Unix seconds of `2011-12-31T13:00:00Z`, also with a space, without the zone, or with `+00:00`.
pub(super) fn seconds(cell: &str) -> Option<i64> {
    let cell = cell.strip_suffix('Z').or_else(|| cell.strip_suffix("+00:00")).unwrap_or(cell);
    let (date, time) = cell.split_once(['T', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let inside = (0..=9_999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    inside.then(|| days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Days since the epoch of a date of the Gregorian calendar (Hinnant, chrono-compatible low-level date algorithms).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_all_sets_are_read() {
        assert_eq!(seconds("1970-01-02 00:00:01"), Some(86_401));
        assert_eq!(seconds("2023-10-01 04:00:00+00:00"), Some(1_696_132_800));
        assert_eq!(seconds("2012-02-29T13:30:00Z"), Some(1_330_522_200));
        assert_eq!(seconds("2012-13-01 00:00:00"), None);
        assert_eq!(seconds("yesterday"), None);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("m4_hourly")).unwrap();
        std::fs::write(dir.path().join("m4_hourly/Hourly-train.csv"), "V1,V2,V3\nH1,1,2\nH2,3,four\n")
            .unwrap();
        std::fs::write(dir.path().join("m4_hourly/Hourly-test.csv"), "V1,V2\nH1,1\nH2,1\n").unwrap();
        let fault = m4_hourly(dir.path()).unwrap_err().to_string();
        assert!(fault.ends_with("m4_hourly/Hourly-train.csv:3: `four` is no number"), "{fault}");
    }

    #[test]
    fn a_step_that_is_not_there_is_missing_and_not_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.csv");
        std::fs::write(&path, "period,count\n1995-07-01 00:00:00,4\n1995-07-01 00:02:00,0\n").unwrap();
        let series = long(&path, &LAYOUTS[0]).unwrap();
        let values = series[0].1.values();
        assert!(
            values.len() == 3 && values[0] == 4.0 && values[1].is_nan() && values[2] == 0.0,
            "{values:?}"
        );
    }
}
