//! The history under `kill -9` and on a full disk: this test binary runs itself again as the process that dies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

mod child;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use reveille_store::history::{Batch, History, Kind, KindSet, Limits, Point, Query, Seen};

use child::{DIR, Delays, MARK, assert_survived, on_small_disk, told_until_killed};

const KILLS: u32 = 30;
const NAMES: u64 = 20;
const START: u64 = 20_010 * 86_400;
/// Seconds between two batches: hours and days end often, so kills meet packing and merging.
const STEP_S: u64 = 400;

fn amount(name: u64, step: u64) -> u64 {
    1 + (name * 37 + step * 11) % 500
}

fn batch(step: u64) -> Batch {
    let now_s = START + step * STEP_S;
    let point = |name: u64| Point {
        name: format!("n{name}.vm.test").into_bytes().into(),
        kind: Kind::Queries,
        // Some come when their hour is packed already.
        at_s: if name == 3 { now_s.saturating_sub(5_000).max(START) } else { now_s },
        amount: amount(name, step),
    };
    let seen = Some(Seen { at_s: now_s, kinds: KindSet::NONE.with(Kind::Queries) });
    Batch { now_s, seen, points: (0..NAMES).map(point).collect() }
}

/// Steps of the child that are in the history, which are the first ones, each whole.
fn steps(history: &History, from: u64) -> u64 {
    let reader = history.reader();
    let ask = |name: u64| {
        let name = format!("n{name}.vm.test");
        let to_s = START + (from + 100_000) * STEP_S;
        let query = Query { name: name.as_bytes(), kind: Kind::Queries, from_s: START, to_s, step_s: 86_400 };
        let answer = reader.query(&query).unwrap();
        assert_eq!(answer.damaged, []);
        let sum: u64 = answer.buckets.iter().map(|bucket| bucket.sum).sum();
        let seen: u64 = answer.buckets.iter().map(|bucket| bucket.seen_s).sum();
        (sum, seen)
    };
    let (_, seen) = ask(0);
    for name in 0..NAMES {
        let expected: u64 = (1..=seen).map(|step| amount(name, step)).sum();
        assert_eq!(ask(name), (expected, seen), "name {name}: each batch once, and the first {seen} of them");
    }
    seen
}

/// The child: records steps, and says which are in the files, until it is killed.
#[test]
#[ignore = "is the child of the test below"]
fn child_records_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (history, damaged) = History::open(Path::new(&dir), Limits::default()).unwrap();
    // A torn last write is told, and costs what it holds.
    assert!(damaged.iter().all(|damage| damage.detail.contains("last")), "{damaged:?}");
    let mut step = steps(&history, 0);
    let recorder = history.recorder();
    let mut out = std::io::stdout().lock();
    loop {
        step += 1;
        assert!(recorder.record(batch(step)));
        recorder.flush();
        writeln!(out, "{MARK}{step}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_was_flushed_survives_kill_9_at_random_moments_and_nothing_counts_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut delays = Delays::new();
    let mut told = 0;
    for round in 0..KILLS {
        let delay = delays.next(round, 15, 400_000);
        told = told.max(told_until_killed("child_records_until_killed", dir.path(), delay));
        let (history, _) = History::open(dir.path(), Limits::default()).unwrap();
        let there = steps(&history, told);
        println!("round {round}: {told} flushed, {there} there");
        // The kill may come between the write and the line that tells of it; one batch is under way at most.
        assert!(there == told || there == told + 1, "round {round}: {told} flushed, {there} there");
        told = there;
    }
    assert!(told > 60, "only {told} steps in all rounds");
}

/// The child: records on a disk that gets full, and goes on when there is room again.
#[test]
#[ignore = "is the child of the test below"]
fn child_fills_its_disk() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (history, _) = History::open(Path::new(&dir), Limits::default()).unwrap();
    let recorder = history.recorder();
    let mut step = 0;
    let mut one = || {
        step += 1;
        let mut batch = batch(step);
        // Names that no other batch has, so that the journal grows.
        batch.points.extend((0..1_000).map(|name| Point {
            name: format!("{step}-{name}-{}", "x".repeat(200)).into_bytes().into(),
            kind: Kind::Arrivals,
            at_s: batch.now_s,
            amount: 1,
        }));
        assert!(recorder.record(batch) && recorder.flush());
        step
    };
    while history.reader().status().write_faults == 0 {
        assert!(one() < 2_000, "the disk is never full");
    }
    for _ in 0..30 {
        one();
    }
    let relief = format!("mount -o remount,size=512m {}", Path::new(&dir).display());
    assert!(Command::new("sh").args(["-c", &relief]).status().unwrap().success());
    let mut last = 0;
    for _ in 0..30 {
        last = one();
    }
    let faults = history.reader().status().write_faults;
    for _ in 0..30 {
        last = one();
    }
    assert_eq!(history.reader().status().write_faults, faults, "there is room, and writes still fail");
    assert_eq!(steps(&history, last), last);
    drop(history);
    let (history, damaged) = History::open(Path::new(&dir), Limits::default()).unwrap();
    assert_eq!(damaged, []);
    assert_eq!(steps(&history, last), last, "what came while the disk was full was in memory, and is packed");
    println!("{MARK}survived");
}

#[test]
fn nothing_is_lost_while_a_full_file_system_has_no_room() {
    let dir = tempfile::tempdir().unwrap();
    if let Some(command) = on_small_disk("child_fills_its_disk", dir.path(), 8) {
        assert_survived(command);
    }
}
