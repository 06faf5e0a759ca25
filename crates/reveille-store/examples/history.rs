//! Measures the history in a directory of its choice, with time that is made up and runs as fast as it can.
//!
//! `cargo run --release -p reveille-store --example history -- DIR [MINUTES [COUNTS.csv...]]`
//!
//! 5,000 busy names with a point a second for MINUTES (default 10), among 100,000 quiet names; then a fortnight of minutes
//! of 200 names, and how long one of them takes to be read. Each file with lines of `time,count`, one a minute, is
//! recorded as a name of its own, and its bytes per point are told; of a file with lines of `time,name,…` each line is an
//! arrival at that name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reveille_store::history::{
    Batch, History, Kind, KindSet, Limits, Point, Query, Reader, Seen, StoredForecast,
};

type Failed = Box<dyn std::error::Error>;

/// The start of a day, in 2024.
const START: u64 = 20_010 * 86_400;
const BUSY: u64 = 5_000;
const QUIET: u64 = 100_000;
const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;

fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("which directory?")?);
    let rest = args.next();
    if rest.as_deref() == Some("resident") {
        return quiet_memory(&dir);
    }
    let minutes: u64 = rest.map_or(Ok(10), |count| count.parse())?;
    busy_and_quiet(&dir.join("mixed"), minutes)?;
    fortnight(&dir.join("fortnight"))?;
    for (index, file) in args.enumerate() {
        let (dir, text) = (dir.join(format!("file-{index}")), std::fs::read_to_string(&file)?);
        println!("{file}:");
        let arrivals: Vec<_> = text.lines().filter_map(arrival).collect();
        if arrivals.is_empty() { of_counts(&dir, &text)? } else { of_arrivals(&dir, arrivals)? }
    }
    Ok(())
}

/// Numbers that look like chance and are the same each time (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// As many as of 8 × `mean` chances of one in eight came true: nearly Poisson.
    fn count(&mut self, mean: u64) -> u64 {
        // Each bit of three numbers together is a chance of one in eight.
        let full: u64 =
            (0..mean / 8).map(|_| u64::from((self.next() & self.next() & self.next()).count_ones())).sum();
        let left = self.next() & self.next() & self.next() & ((1 << (mean % 8 * 8)) - 1);
        full + u64::from(left.count_ones())
    }
}

fn batch(now_s: u64, points: Vec<Point>) -> Batch {
    Batch { now_s, seen: Some(Seen { at_s: now_s, kinds: KindSet::NONE.with(Kind::Queries) }), points }
}

fn point(name: &str, at_s: u64, amount: u64) -> Point {
    Point { name: name.as_bytes().into(), kind: Kind::Queries, at_s, amount }
}

fn busy_name(index: u64) -> String {
    format!("service-{index:05}.busy.example")
}

fn busy_and_quiet(dir: &Path, minutes: u64) -> Result<(), Failed> {
    let before = resident();
    let (history, _) = History::open(dir, Limits::default())?;
    let (recorder, mut chance) = (history.recorder(), Chance(1));
    let names: Vec<String> = (0..BUSY).map(busy_name).collect();
    let mut longest = Duration::ZERO;
    let mut writing = Duration::ZERO;
    let mut points = 0u64;
    for second in 0..minutes * 60 {
        let now = START + second;
        let mut batch = batch(now, Vec::with_capacity(6_000));
        batch.points.extend(
            names.iter().zip(0u64..).map(|(name, index)| point(name, now, 1 + chance.count(1 + index % 4))),
        );
        // Each quiet name once in this time.
        let share = QUIET / (minutes * 60).max(1) + 1;
        let quiet = (second * share..(second + 1) * share).filter(|index| *index < QUIET);
        batch.points.extend(quiet.map(|index| point(&format!("quiet-{index:06}.example"), now, 1)));
        points += batch.points.len() as u64;
        let (began, cpu) = (Instant::now(), cpu_of_process());
        recorder.record(batch);
        recorder.flush();
        writing += cpu_of_process().saturating_sub(cpu);
        longest = longest.max(began.elapsed());
    }
    let status = history.reader().status();
    println!("{BUSY} names a second for {minutes} min, and {QUIET} quiet ones once:");
    println!(
        "  {points} points, {:.2} µs of CPU each, longest batch {longest:.1?}; journal {:.2} B per point",
        writing.as_secs_f64() * 1e6 / points as f64,
        status.journal_bytes as f64 / points as f64
    );
    println!(
        "  memory: {} kB more than before; {} names open, {} series by the second in {} kB",
        resident().saturating_sub(before) >> 10,
        status.open_names,
        status.busy_series,
        status.busy_bytes >> 10
    );
    let began = Instant::now();
    recorder.record(batch(START + HOUR + 600, Vec::new()));
    recorder.flush();
    let status = history.reader().status();
    println!("  packing the hour: {:.1?}; {} kB of blocks", began.elapsed(), status.disk_bytes >> 10);
    save_states(&history)?;
    for step in 1..40 {
        recorder.record(batch(START + DAY + 2 * HOUR + step, Vec::new()));
        recorder.flush();
    }
    drop(history);
    let began = Instant::now();
    let (history, _) = History::open(dir, Limits::default())?;
    println!(
        "  a day later: opened again in {:.1?}; a quiet name is read in {:.0?}",
        began.elapsed(),
        time_of(&history.reader(), "quiet-077777.example", START, START + DAY)?
    );
    drop(history);
    // In a process of its own, which has no memory from before.
    let status = std::process::Command::new(std::env::current_exe()?).arg(dir).arg("resident").status()?;
    if status.success() { Ok(()) } else { Err("the other process failed".into()) }
}

fn save_states(history: &History) -> Result<(), Failed> {
    let recorder = history.recorder();
    let state = |index| StoredForecast {
        name: format!("quiet-{index:06}.example").into_bytes().into(),
        version: 1,
        state: vec![7; 1_024],
    };
    let began = Instant::now();
    for first in (0..QUIET).step_by(1_000) {
        recorder.put_forecast_states((first..first + 1_000).map(state).collect())?;
        recorder.flush();
    }
    println!(
        "  {QUIET} states of 1 kB saved in {:.1?}; catalogue {} kB",
        began.elapsed(),
        history.reader().status().names_bytes >> 10
    );
    Ok(())
}

/// What an open history of names that are all quiet takes.
fn quiet_memory(dir: &Path) -> Result<(), Failed> {
    let before = resident();
    let (history, _) = History::open(dir, Limits::default())?;
    let opened = resident().saturating_sub(before);
    time_of(&history.reader(), "quiet-077777.example", START, START + DAY)?;
    let names = BUSY + QUIET;
    println!(
        "  memory with {names} names, all quiet: {} kB, {} B per name",
        opened >> 10,
        opened as u64 / names
    );
    Ok(())
}

/// A point a minute of 200 names, with a day's shape.
fn fortnight(dir: &Path) -> Result<(), Failed> {
    let (history, _) = History::open(dir, Limits::default())?;
    let (recorder, mut chance) = (history.recorder(), Chance(2));
    let days = 14;
    for hour in 0..days * 24 {
        // An hour's points at once: what is measured is files, and each batch may end in a synchronisation.
        let mut batch = batch(START + (hour + 1) * HOUR - 60, Vec::new());
        for minute in hour * 60..(hour + 1) * 60 {
            let mean = 3 + (minute % 1_440).abs_diff(720) / 40;
            let at_s = START + minute * 60;
            batch.points.extend((0..200).map(|name| point(&busy_name(name), at_s, 1 + chance.count(mean))));
        }
        recorder.record(batch);
        recorder.flush();
    }
    let status = history.reader().status();
    println!("a fortnight of minutes of 200 names:");
    println!(
        "  {:.2} B per point; {} files",
        status.disk_bytes as f64 / (days * 1_440 * 200) as f64,
        status.files
    );
    let name = busy_name(77);
    println!("  all minutes of one: {:.0?}", time_of(&history.reader(), &name, START, START + days * DAY)?);
    println!(
        "  the last hour of it: {:.0?}",
        time_of(&history.reader(), &name, START + days * DAY - HOUR, START + days * DAY)?
    );
    Ok(())
}

/// The median time of a query for minutes.
fn time_of(reader: &Reader, name: &str, from_s: u64, to_s: u64) -> Result<Duration, Failed> {
    let mut times = Vec::new();
    for _ in 0..101 {
        let began = Instant::now();
        let query = Query { name: name.as_bytes(), kind: Kind::Queries, from_s, to_s, step_s: 60 };
        let answer = reader.query(&query)?;
        times.push(began.elapsed());
        if answer.buckets.iter().all(|bucket| bucket.sum == 0) {
            return Err("nothing was found".into());
        }
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// Time and name of an arrival; a number is no name.
fn arrival(line: &str) -> Option<(u64, &str)> {
    let mut fields = line.split(',');
    let (time, name) = (fields.next()?, fields.next()?);
    let parts: Option<Vec<u64>> = time.split(['-', ' ', ':']).map(|part| part.parse().ok()).collect();
    let [year, month, day, hour, minute, second] = parts?[..] else { return None };
    // Months of 31 days are as good as real ones here.
    let days = (year * 12 + month) * 31 + day;
    name.parse::<u64>().is_err().then_some((days * DAY + hour * HOUR + minute * 60 + second, name))
}

fn of_arrivals(dir: &Path, mut arrivals: Vec<(u64, &str)>) -> Result<(), Failed> {
    arrivals.sort_unstable();
    let limits = Limits { minutes_kept_s: 400 * DAY, ..Limits::default() };
    let (history, _) = History::open(dir, limits)?;
    let recorder = history.recorder();
    for hour in arrivals.chunk_by(|one, two| one.0 / HOUR == two.0 / HOUR) {
        let points = hour.iter().map(|(at_s, name)| point(name, *at_s, 1)).collect();
        recorder.record(Batch { now_s: hour[hour.len() - 1].0, seen: None, points });
        recorder.flush();
    }
    let last = arrivals.last().map_or(0, |last| last.0);
    for step in 0..60 {
        recorder.record(Batch { now_s: last + 2 * DAY + step, ..Batch::default() });
        recorder.flush();
    }
    let bytes = history.reader().status().disk_bytes as f64;
    let count = arrivals.len();
    let names: std::collections::BTreeSet<_> = arrivals.iter().map(|(_, name)| name).collect();
    let points: std::collections::BTreeSet<_> =
        arrivals.iter().map(|(at_s, name)| (at_s / 60, name)).collect();
    println!(
        "  {count} arrivals at {} names, {} points: {bytes} B, {:.2} B per point",
        names.len(),
        points.len(),
        bytes / points.len() as f64
    );
    Ok(())
}

fn of_counts(dir: &Path, text: &str) -> Result<(), Failed> {
    let counts: Vec<u64> =
        text.lines().skip(1).filter_map(|line| line.split(',').nth(1)?.parse().ok()).collect();
    let limits = Limits { minutes_kept_s: 400 * DAY, ..Limits::default() };
    let (history, _) = History::open(dir, limits)?;
    let recorder = history.recorder();
    let total = counts.len() as u64 * 60;
    for (hour, counts) in (0u64..).zip(counts.chunks(60)) {
        let at_s = |minute: u64| START + hour * HOUR + minute * 60;
        let points = (0u64..).zip(counts).map(|(minute, count)| point("a", at_s(minute), *count)).collect();
        recorder.record(Batch { now_s: at_s(59), seen: None, points });
        recorder.flush();
    }
    for step in 0..20 {
        recorder
            .record(Batch { now_s: START + total.next_multiple_of(DAY) + DAY + step, ..Batch::default() });
        recorder.flush();
    }
    let bytes = history.reader().status().disk_bytes;
    let points = counts.iter().filter(|count| **count > 0).count();
    let mean = counts.iter().sum::<u64>() / counts.len().max(1) as u64;
    println!(
        "  {points} points of {} minutes, mean {mean}: {:.2} B per point",
        counts.len(),
        bytes as f64 / points as f64
    );
    Ok(())
}

/// Resident bytes of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4_096
}

/// CPU time of all threads; the one that asks does nothing but wait meanwhile.
fn cpu_of_process() -> Duration {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        total += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Duration::from_nanos(total)
}
