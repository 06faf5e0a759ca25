//! Scores every file of the Numenta Anomaly Benchmark as a stream, as the benchmark's scorer wants it: for each CSV file
//! below DATA (`timestamp,value`) one of the same relative name below SCORES (`timestamp,anomaly_score`).
//!
//! `cargo run --release -p reveille-core --example nab_scores -- DATA SCORES`

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use reveille_core::forecast::anomaly::{Detector, Settings};
use reveille_core::model::Timestamp;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, scores] = arguments.as_slice() else {
        return Err("usage: nab_scores DATA SCORES".into());
    };
    let count = score_below(Path::new(data), Path::new(scores))?;
    println!("{count} files scored");
    Ok(())
}

/// Scores the CSV files in `data` and in the directories below it; how many there were.
fn score_below(data: &Path, scores: &Path) -> Result<usize, Box<dyn Error>> {
    fs::create_dir_all(scores)?;
    let mut count = 0;
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let (from, to) = (entry.path(), scores.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            count += score_below(&from, &to)?;
        } else if from.extension().is_some_and(|extension| extension == "csv") {
            let lines = fs::read_to_string(&from)?;
            let scored = score(&lines).map_err(|error| format!("{}: {error}", from.display()))?;
            fs::write(&to, scored)?;
            count += 1;
        }
    }
    Ok(count)
}

/// One line with a score for each line with a value. A point whose time is not later than the one before (clocks are set
/// back in autumn) is scored as if it came a millisecond after.
fn score(lines: &str) -> Result<String, Box<dyn Error>> {
    // The series are in units of their own, from shares to bytes: no grain is known.
    let settings = Settings { least_spread: 1e-12, ..Settings::default() };
    let mut detector = Detector::new(settings).map_err(|faults| format!("{faults:?}"))?;
    let mut scored = String::from("timestamp,anomaly_score\n");
    let mut last: Option<Timestamp> = None;
    for (number, line) in lines.lines().enumerate().skip(1) {
        let place = |what: &str| format!("line {}: {what}: {line}", number + 1);
        let (time, value) = line.split_once(',').ok_or_else(|| place("not `timestamp,value`"))?;
        let at = parsed(time).ok_or_else(|| place("no time such as 2014-04-01 00:00:00"))?;
        let at = last.map_or(at, |last| at.max(last.plus_ms(1)));
        last = Some(at);
        let value: f64 = value.trim().parse().map_err(|_| place("no number"))?;
        let verdict = detector.observe(at, value).map_err(|error| place(&error.to_string()))?;
        writeln!(scored, "{time},{}", verdict.score)?;
    }
    Ok(scored)
}

/// `2014-04-01 00:00:00` as UTC, by the civil calendar (days in eras of 400 years that begin in March).
fn parsed(time: &str) -> Option<Timestamp> {
    let (date, clock) = time.trim().split_once(' ')?;
    let [year, month, day] = three(date, '-')?;
    let [hours, minutes, seconds] = three(clock.split('.').next()?, ':')?;
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5 + day.checked_sub(1)?;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(Timestamp::from_ms(1_000 * (days * 86_400 + hours * 3_600 + minutes * 60 + seconds)))
}

fn three(text: &str, separator: char) -> Option<[u64; 3]> {
    let numbers: Option<Vec<u64>> = text.split(separator).map(|part| part.parse().ok()).collect();
    numbers?.try_into().ok()
}
