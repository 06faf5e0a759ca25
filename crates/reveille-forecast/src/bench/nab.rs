//! The Numenta Anomaly Benchmark: every file as a stream, with one setting for all, and the benchmark's score of the
//! standard profile.
//!
//! The score (Lavin and Ahmad, "Evaluating real-time anomaly detection algorithms", ICMLA 2015): one threshold for all
//! files, the best one. The earliest detection within a labelled window earns 2/(1 + exp(5·p)) − 1 by its position *p* in
//! [−1, 0], scaled so that the left edge is 1; a missed window costs 1; a detection outside costs 0.11 by its distance
//! behind the last window. The first 15 % of a file, at most 750 points, do not count. 0 is a detector that tells
//! nothing, 100 one that is at the left edge of each window and nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use reveille_core::forecast::anomaly::{Detector, Settings};
use reveille_core::model::Timestamp;
use serde::Serialize;

use super::read::{ReadError, lines, seconds, text};

/// What a false positive costs.
const FALSE_COST: f64 = 0.11;
/// Share and number of points at the begin of a file that do not count.
const PROBATION: (f64, usize) = (0.15, 750);

/// The score, and every point's.
#[derive(Clone, Debug, Serialize)]
pub struct Nab {
    /// 0 to 100; less for many false positives.
    pub score: f64,
    /// The threshold that it is reached with.
    pub threshold: f64,
    /// Files that were scored.
    pub files: usize,
    /// Labelled windows in them.
    pub windows: usize,
    /// Memory of one detector, in bytes.
    pub bytes_per_name: usize,
    /// Every point's score, by file.
    #[serde(skip)]
    pub scored: Vec<Scored>,
}

/// A file with a score for each of its points.
#[derive(Clone, Debug)]
pub struct Scored {
    /// Below the directory of the data.
    pub file: PathBuf,
    /// As it is in the file, and its score.
    points: Vec<(String, f64)>,
}

impl Scored {
    /// As the benchmark's own scorer reads it.
    #[must_use]
    pub fn csv(&self) -> String {
        self.points.iter().fold("timestamp,anomaly_score\n".to_owned(), |mut csv, (time, score)| {
            let _ = writeln!(csv, "{time},{score}");
            csv
        })
    }
}

/// A point that counts.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    /// The detector's.
    score: f64,
    /// What a detection here is worth.
    gain: f64,
    /// The window that it is in, over all files.
    window: Option<usize>,
}

/// Scores `nab/` in the directory of data; `None` where there is none.
///
/// # Errors
/// A file that is missing or damaged, with its line.
pub(super) fn run(dir: &Path, step: &mut dyn FnMut(&str, usize, usize)) -> Result<Option<Nab>, ReadError> {
    let labels = dir.join("nab/labels/combined_windows.json");
    if !labels.exists() {
        return Ok(None);
    }
    let wrong = |line, what: String| ReadError::Line { path: labels.clone(), line, what };
    let labelled: BTreeMap<PathBuf, Vec<(String, String)>> =
        serde_json::from_str(&text(&labels)?).map_err(|error| wrong(error.line(), error.to_string()))?;
    let (mut rows, mut scored, mut count) = (Vec::new(), Vec::new(), 0);
    for (at, (file, windows)) in labelled.iter().enumerate() {
        step("anomalies", at, labelled.len());
        if !file.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(wrong(1, format!("{} is no file below nab/data", file.display())));
        }
        let points = stream(&dir.join("nab/data").join(file))?;
        let spans = windows.iter().map(|window| {
            let missing = || wrong(1, format!("{}: no point within {window:?}", file.display()));
            span(&points, window).ok_or_else(missing)
        });
        let spans = spans.collect::<Result<Vec<_>, _>>()?;
        rows.extend(file_rows(&points, &spans, count));
        count += spans.len();
        let points = points.into_iter().map(|point| (point.text, point.score)).collect();
        scored.push(Scored { file: file.clone(), points });
    }
    let (score, threshold) = best(rows, count);
    let bytes_per_name = Detector::new(setting()).map_or(0, |detector| detector.state_bytes());
    Ok(Some(Nab { score, threshold, files: scored.len(), windows: count, bytes_per_name, scored }))
}

/// The series are in units of their own, from shares to bytes: no grain is known.
fn setting() -> Settings {
    Settings { least_spread: 1e-12, ..Settings::default() }
}

/// A point of a file.
struct Point {
    /// Its time, as it is there.
    text: String,
    /// The same, in seconds since the epoch.
    at_s: i64,
    score: f64,
}

/// The points of a file with their scores. One whose time is not later than the one before (clocks are set back in
/// autumn) is scored as if it came a millisecond after.
fn stream(path: &Path) -> Result<Vec<Point>, ReadError> {
    let wrong = |line, what: &str| ReadError::Line { path: path.to_owned(), line, what: what.to_owned() };
    let mut detector = Detector::new(setting()).map_err(|faults| wrong(1, &format!("{faults:?}")))?;
    let mut points = Vec::new();
    let mut last: Option<Timestamp> = None;
    let text = text(path)?;
    for (line, content) in lines(&text).skip(1) {
        let (time, value) =
            content.split_once(',').ok_or_else(|| wrong(line, "`timestamp,value` is wanted"))?;
        let at_s = moment(time).ok_or_else(|| wrong(line, "a time such as 2014-04-01 00:00:00 is wanted"))?;
        let at = Timestamp::from_ms(u64::try_from(at_s).unwrap_or(0).saturating_mul(1_000));
        let at = last.map_or(at, |last| at.max(last.plus_ms(1)));
        last = Some(at);
        let value = value.trim().parse().map_err(|_| wrong(line, "a number is wanted"))?;
        let verdict = detector.observe(at, value).map_err(|error| wrong(line, &error.to_string()))?;
        points.push(Point { text: time.to_owned(), at_s, score: verdict.score });
    }
    Ok(points)
}

/// Seconds since the epoch, without their fraction.
fn moment(text: &str) -> Option<i64> {
    seconds(text.split('.').next().unwrap_or(text))
}

/// First and last point of a window.
fn span(points: &[Point], (from, to): &(String, String)) -> Option<(usize, usize)> {
    let within = moment(from)?..=moment(to)?;
    let first = points.iter().position(|point| within.contains(&point.at_s))?;
    let last = points.iter().rposition(|point| within.contains(&point.at_s))?;
    Some((first, last))
}

/// What a detection is worth at each point that counts; windows are numbered from `first` on.
fn file_rows(points: &[Point], spans: &[(usize, usize)], first: usize) -> Vec<Row> {
    let mut rows: Vec<Row> =
        points.iter().map(|point| Row { score: point.score, gain: -FALSE_COST, window: None }).collect();
    for (place, (left, right)) in spans.iter().enumerate() {
        let width = (right - left + 1) as f64;
        for (at, row) in rows.iter_mut().enumerate().take(right + 1).skip(*left) {
            row.gain = worth(-((right - at + 1) as f64) / width) / worth(-1.0);
            row.window = Some(first + place);
        }
        let until = spans.get(place + 1).map_or(points.len(), |next| next.0);
        for (at, row) in rows.iter_mut().enumerate().take(until).skip(right + 1) {
            row.gain = FALSE_COST * worth((at - right) as f64 / (width - 1.0));
        }
    }
    let (share, most) = PROBATION;
    let start = (0..most).take_while(|at| ((at + 1) as f64) <= share * points.len() as f64).count();
    rows.split_off(start.min(rows.len()))
}

/// By the position relative to a window: −1 at its left edge, 0 at its right one.
fn worth(position: f64) -> f64 {
    if position > 3.0 { -1.0 } else { 2.0 / (1.0 + (5.0 * position).exp()) - 1.0 }
}

/// The best score of all thresholds, normalised, and that threshold.
fn best(mut rows: Vec<Row>, windows: usize) -> (f64, f64) {
    let live: BTreeSet<usize> = rows.iter().filter_map(|row| row.window).collect();
    let nothing = -(live.len() as f64);
    let (mut best, mut total) = ((nothing, 1.1), nothing);
    let mut earned: BTreeMap<usize, f64> = BTreeMap::new();
    rows.sort_by(|one, other| other.score.total_cmp(&one.score));
    for (at, row) in rows.iter().enumerate() {
        match row.window {
            None => total += row.gain,
            Some(window) => {
                let before = earned.entry(window).or_insert(-1.0);
                total += (row.gain - *before).max(0.0);
                *before = before.max(row.gain);
            }
        }
        let is_last = rows.get(at + 1).is_none_or(|next| next.score < row.score);
        if is_last && total > best.0 {
            best = (total, row.score);
        }
    }
    let range = windows as f64 - nothing;
    (if range > 0.0 { 100.0 * (best.0 - nothing) / range } else { 0.0 }, best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(scores: &[f64]) -> Vec<Point> {
        let point = |(at, score): (usize, &f64)| Point {
            text: String::new(),
            at_s: i64::try_from(at).unwrap(),
            score: *score,
        };
        scores.iter().enumerate().map(point).collect()
    }

    /// Of a file of 100 points with a window from 50 to 59 and these detections.
    fn score(detections: &[usize]) -> f64 {
        let mut scores = [0.0; 100];
        detections.iter().for_each(|at| scores[*at] = 1.0);
        let points = points(&scores);
        let window = ("1970-01-01 00:00:50.000000".to_owned(), "1970-01-01 00:00:59".to_owned());
        let span = span(&points, &window).unwrap();
        best(file_rows(&points, &[span], 0), 1).0
    }

    #[test]
    fn the_left_edge_of_a_window_is_a_hundred_and_nothing_told_is_nothing() {
        assert_eq!(score(&[]), 0.0);
        assert_eq!(score(&[50]), 100.0);
        // The earliest in the window counts, and what is within the first 15 % does not.
        assert_eq!(score(&[50, 55, 59, 3]), 100.0);
        let late = score(&[59]);
        assert!(50.0 < late && late < 75.0, "{late}");
    }

    #[test]
    fn false_alarms_cost_the_more_the_farther_they_are() {
        let before = score(&[50, 40]);
        assert!((before - (100.0 - 100.0 * FALSE_COST / 2.0)).abs() < 1e-9, "{before}");
        let (near, far) = (score(&[50, 60]), score(&[50, 95]));
        assert!(far < near && near < 100.0, "{near} {far}");
        assert!((far - before).abs() < 0.1, "{far}");
    }

    #[test]
    fn a_damaged_file_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(run(dir.path(), &mut |_, _, _| ()).unwrap().is_none());
        std::fs::create_dir_all(dir.path().join("nab/labels")).unwrap();
        std::fs::create_dir_all(dir.path().join("nab/data")).unwrap();
        let fault = || run(dir.path(), &mut |_, _, _| ()).unwrap_err().to_string();
        write(
            "nab/labels/combined_windows.json",
            "{\"a.csv\": [[\"2014-01-01 00:00:00\", \"2014-01-01 00:05:00\"]]}",
        );
        assert!(fault().contains("nab/data/a.csv"), "{}", fault());
        write("nab/data/a.csv", "timestamp,value\n2014-01-01 00:00:00,1\n2014-01-01 00:01:00,NaN\n");
        assert!(fault().contains("a.csv:3: the value is not a finite number"), "{}", fault());
        write("nab/data/a.csv", "timestamp,value\n2015-01-01 00:00:00,1\n");
        assert!(fault().contains("combined_windows.json:1: a.csv: no point within"), "{}", fault());
        write("nab/labels/combined_windows.json", "{\"../a.csv\": []}");
        assert!(fault().contains("../a.csv is no file below nab/data"), "{}", fault());
    }
}
