//! What the history keeps, adds up, lets go, tells and survives, within one process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

mod bounds;
mod damage;
mod model;
mod offline;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use reveille_store::history::{
    ANOMALIES_MAX, ANOMALY_BYTES_MAX, Answer, BATCH_POINTS_MAX, Batch, Damage, History, Kind, KindSet,
    Limits, Point, QUEUE_MAX, Query, QueryError, Resolution, STATE_BYTES_MAX, Seen, StateError,
    StoredAnomaly, StoredForecast,
};

const HOUR: u64 = 3_600;
const DAY: u64 = 86_400;
/// The start of a day and of thirty days, in 2024.
const START: u64 = 20_010 * DAY;

fn open(dir: &Path) -> History {
    open_with(dir, Limits::default())
}

fn open_with(dir: &Path, limits: Limits) -> History {
    let (history, damaged) = History::open(dir, limits).unwrap();
    assert_eq!(damaged, []);
    history
}

fn point(name: &str, at_s: u64, amount: u64) -> Point {
    Point { name: name.as_bytes().into(), kind: Kind::Queries, at_s, amount }
}

/// A batch whose second was watched.
fn batch(now_s: u64, points: Vec<Point>) -> Batch {
    let kinds = KindSet::NONE.with(Kind::Queries).with(Kind::Arrivals);
    Batch { now_s, seen: Some(Seen { at_s: now_s, kinds }), points }
}

/// Hands a batch over and waits until it is carried out.
fn record(history: &History, batch: Batch) {
    assert!(history.recorder().record(batch));
    assert!(history.recorder().flush());
}

/// Lets the clock run in steps without watching anything.
fn run(history: &History, from_s: u64, to_s: u64, step_s: u64) {
    let recorder = history.recorder();
    let mut now_s = from_s;
    while now_s <= to_s {
        assert!(recorder.record(Batch { now_s, ..Batch::default() }));
        now_s += step_s;
        if (now_s / step_s).is_multiple_of(QUEUE_MAX as u64 / 2) {
            recorder.flush();
        }
    }
    recorder.flush();
}

/// Lets what is due be done, without a step of the clock.
fn settle(history: &History, now_s: u64) {
    for _ in 0..40 {
        record(history, Batch { now_s, ..Batch::default() });
    }
}

fn ask(history: &History, name: &str, from_s: u64, to_s: u64, step_s: u64) -> Answer {
    let name = name.as_bytes();
    history.reader().query(&Query { name, kind: Kind::Queries, from_s, to_s, step_s }).unwrap()
}

fn sums(answer: &Answer) -> Vec<u64> {
    answer.buckets.iter().map(|bucket| bucket.sum).collect()
}

fn total(history: &History, name: &str, from_s: u64, to_s: u64) -> u64 {
    sums(&ask(history, name, from_s, to_s, HOUR)).iter().sum()
}

fn files(dir: &Path, part: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = all.filter(|path| path.to_str().unwrap().contains(part)).collect();
    files.sort();
    files
}

// --- Resolutions -----------------------------------------------------------------------------------------------

#[test]
fn a_busy_name_is_known_by_the_second_and_a_quiet_one_by_the_minute() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    for second in 0..300 {
        let mut points = vec![point("busy", START + second, second)];
        if second == 77 {
            points.push(point("quiet", START + second, 5));
        }
        record(&history, batch(START + second, points));
    }
    // The first half minute is what shows that it is busy.
    let answer = ask(&history, "busy", START + 100, START + 160, 10);
    assert_eq!((answer.step_s, answer.resolution), (10, Resolution::Second));
    assert_eq!(
        sums(&answer),
        (0..6).map(|ten| (0..10).map(|s| 100 + ten * 10 + s).sum()).collect::<Vec<u64>>()
    );
    assert_eq!((answer.buckets[0].max, answer.buckets[0].seen_s), (109, 10));
    assert_eq!(answer.buckets[0].mean_per_s(), Some(104.5));
    let answer = ask(&history, "quiet", START + 60, START + 120, 10);
    assert_eq!((answer.step_s, answer.resolution, sums(&answer)), (60, Resolution::Minute, vec![5]));
    let status = history.reader().status();
    assert_eq!((status.points, status.open_names), (300, 3), "a zero is no point");
    assert_eq!(
        (status.busy_series, status.busy_refused),
        (3, 0),
        "busy, and the watched seconds of two kinds"
    );
    // Two hours later, packed: only minutes, with the same sum.
    record(&history, batch(START + 2 * HOUR, vec![]));
    drop(history);
    let history = open(dir.path());
    let answer = ask(&history, "busy", START + 60, START + 180, 10);
    assert_eq!((answer.step_s, sums(&answer)), (60, vec![(60..120).sum(), (120..180).sum()]));
}

#[test]
fn unseen_is_not_zero() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    for second in (0..60).chain(120..150) {
        record(&history, batch(START + second, vec![]));
    }
    record(&history, batch(START + 3, vec![point("a", START + 2, 4)]));
    let check = |history: &History| {
        let answer = ask(history, "a", START, START + 240, 60);
        let seen: Vec<_> = answer.buckets.iter().map(|bucket| (bucket.sum, bucket.seen_s)).collect();
        assert_eq!(seen, [(4, 61), (0, 0), (0, 30), (0, 0)]);
        assert_eq!(
            answer.buckets.iter().map(|bucket| bucket.is_unseen()).collect::<Vec<_>>(),
            [false, true, false, true]
        );
        // Nobody watched that kind.
        let query = Query { name: b"a", kind: Kind::LatencyUs, from_s: START, to_s: START + 60, step_s: 60 };
        assert!(history.reader().query(&query).unwrap().buckets[0].is_unseen());
    };
    check(&history);
    settle(&history, START + 3 * DAY);
    check(&history);
}

#[test]
fn what_is_no_question_is_refused_with_what_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let ask = |name: &[u8], from_s, to_s, step_s| {
        history.reader().query(&Query { name, kind: Kind::Queries, from_s, to_s, step_s })
    };
    assert!(matches!(ask(b"a", 5, 5, 1), Err(QueryError::Range { .. })));
    assert!(matches!(ask(b"a", 5, 6, 0), Err(QueryError::Range { .. })));
    assert!(matches!(ask(b"a", 0, u64::MAX, u64::MAX), Err(QueryError::Range { .. })));
    assert!(matches!(ask(b"", 5, 6, 1), Err(QueryError::Name(0))));
    assert!(matches!(ask(&[b'a'; 256], 5, 6, 1), Err(QueryError::Name(256))));
    let Err(QueryError::TooManyPoints { step_s, .. }) = ask(b"a", START, START + 60 * DAY, 60) else {
        panic!("60 days of minutes")
    };
    assert!(ask(b"a", START, START + 60 * DAY, step_s).is_ok());
    let Err(QueryError::TooManyPoints { step_s, .. }) = ask(b"a", START - 9_000 * DAY, START, 60) else {
        panic!("25 years of hours")
    };
    assert!(ask(b"a", START - 9_000 * DAY, START, step_s).is_ok());
}

// --- Names and states ------------------------------------------------------------------------------------------

#[test]
fn anomalies_survive_a_kill_and_the_newest_of_a_name_stay() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let anomaly = |name: &str, since_ms: u64, event: &[u8]| StoredAnomaly {
        name: name.as_bytes().into(),
        since_ms,
        event: event.to_vec(),
    };
    let all: Vec<_> =
        (0..ANOMALIES_MAX as u64 + 5).map(|since_ms| anomaly("a", since_ms, b"begun")).collect();
    history.recorder().note_anomalies(all).unwrap();
    history.recorder().note_anomalies(vec![anomaly("a", 7, b"over"), anomaly("b", 1, b"begun")]).unwrap();
    let most = history.recorder().note_anomalies(vec![anomaly("a", 1, &[0; ANOMALY_BYTES_MAX + 1])]);
    assert!(matches!(most, Err(StateError::TooLong { .. })), "{most:?}");
    assert!(history.recorder().flush());
    // As they are on the disk now, whatever becomes of this process.
    let copy = tempfile::tempdir().unwrap();
    for path in files(dir.path(), "") {
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let reader = open(copy.path()).reader();
    let found = reader.anomalies(b"a", 1_000).unwrap();
    assert_eq!(found.len(), ANOMALIES_MAX);
    assert_eq!((found[0].since_ms, found.last().unwrap().since_ms), (ANOMALIES_MAX as u64 + 4, 5));
    assert!(found.contains(&anomaly("a", 7, b"over")));
    assert_eq!(reader.anomalies(b"b", 1_000).unwrap().len(), 1);
    assert_eq!(reader.anomalies(b"a", 2).unwrap().len(), 2);
}

#[test]
fn a_removed_name_is_nowhere_on_the_disk_and_others_are_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let secret = "forget-me.vm.test";
    for hour in 0..30 {
        let at = START + hour * HOUR;
        record(&history, batch(at, vec![point(secret, at, 3), point("stays", at, 4)]));
    }
    let forecast = |name: &str| StoredForecast {
        name: name.as_bytes().into(),
        version: 1,
        state: b"forget-me.vm.test?".to_vec(),
    };
    history.recorder().put_forecast_states(vec![forecast(secret)]).unwrap();
    history.recorder().put_detector_states(vec![forecast(secret)]).unwrap();
    let anomaly =
        |name: &str| StoredAnomaly { name: name.as_bytes().into(), since_ms: 7, event: b"odd".to_vec() };
    history.recorder().note_anomalies(vec![anomaly(secret), anomaly("stays")]).unwrap();
    settle(&history, START + 30 * HOUR);
    assert!(files(dir.path(), ".blocks").len() > 3 && files(dir.path(), "journal").len() == 1);
    history.recorder().remove(secret.as_bytes()).unwrap();
    let check = |history: &History| {
        assert_eq!(total(history, secret, START, START + 2 * DAY), 0);
        assert_eq!(total(history, "stays", START, START + 2 * DAY), 120);
        let names: Vec<_> =
            history.reader().names(b"", 10).unwrap().into_iter().map(|info| info.name).collect();
        assert_eq!(names, [b"stays".as_slice().into()]);
        assert_eq!(history.reader().forecast_state(secret.as_bytes()).unwrap(), None);
        assert_eq!(history.reader().detector_state(secret.as_bytes()).unwrap(), None);
        assert_eq!(history.reader().anomalies(secret.as_bytes(), 9).unwrap(), []);
        assert_eq!(history.reader().anomalies(b"stays", 9).unwrap(), [anomaly("stays")]);
        assert_eq!(history.reader().name(secret.as_bytes()).unwrap(), None);
    };
    check(&history);
    for path in files(dir.path(), "").iter().filter(|path| !path.ends_with("names.redb")) {
        let bytes = fs::read(path).unwrap();
        let there = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!there, "{} has the name", path.display());
    }
    settle(&history, START + 3 * DAY);
    drop(history);
    let history = open(dir.path());
    check(&history);
    // It may come again.
    record(&history, batch(START + 4 * DAY, vec![point(secret, START + 4 * DAY, 9)]));
    assert_eq!(total(&history, secret, START, START + 5 * DAY), 9);
}

#[test]
fn names_are_listed_page_by_page_with_their_last_activity() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let name = |index: u64| format!("n{index:03}");
    let old = (0..60).map(|index| point(&name(index), START + index, 1)).collect();
    record(&history, batch(START + 60, old));
    settle(&history, START + 2 * HOUR);
    let now = START + 2 * HOUR;
    record(&history, batch(now, (50..90).map(|index| point(&name(index), now, 1)).collect()));
    let (mut after, mut all) = (Vec::new(), Vec::new());
    loop {
        let page = history.reader().names(&after, 7).unwrap();
        let Some(last) = page.last() else { break };
        after = last.name.to_vec();
        all.extend(page);
    }
    let expected: Vec<_> =
        (0..90).map(|index| (name(index), if index < 50 { START + index } else { now })).collect();
    let listed: Vec<_> =
        all.into_iter().map(|info| (String::from_utf8(info.name.to_vec()).unwrap(), info.last_s)).collect();
    assert_eq!(listed, expected);
    assert_eq!(
        history.reader().name(b"n055").unwrap().map(|info| (info.first_s, info.last_s)),
        Some((START + 55, now))
    );
}

#[test]
fn the_state_of_a_forecast_is_kept_until_it_is_replaced_and_has_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let put = |history: &History, name: &str, version, state: &[u8]| {
        let row = StoredForecast { name: name.as_bytes().into(), version, state: state.to_vec() };
        let result = history.recorder().put_forecast_states(vec![row]);
        history.recorder().flush();
        result
    };
    put(&history, "a", 1, b"old").unwrap();
    put(&history, "a", 2, &[7; STATE_BYTES_MAX]).unwrap();
    put(&history, "b", 1, b"").unwrap();
    let refused = put(&history, "c", 1, &[0; STATE_BYTES_MAX + 1]).unwrap_err();
    assert!(matches!(&refused, StateError::TooLong { name, bytes: 4_097, .. } if name == "c"), "{refused}");
    assert_eq!(put(&history, "", 1, b""), Err(StateError::Name(0)));
    drop(history);
    let reader = open(dir.path()).reader();
    assert_eq!(reader.forecast_state(b"a").unwrap(), Some((2, vec![7; STATE_BYTES_MAX])));
    assert_eq!(reader.forecast_state(b"b").unwrap(), Some((1, vec![])));
    assert_eq!(reader.forecast_state(b"c").unwrap(), None);
}

#[test]
fn a_queue_that_is_full_drops_and_counts_and_the_sender_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let recorder = history.recorder();
    // More than the thread can take in while they are handed over.
    let many: Vec<Point> = (0..20_000).map(|index| point(&format!("n{index}"), START, 1)).collect();
    let mut copies: Vec<_> = (0..3 * QUEUE_MAX).map(|_| batch(START, many.clone())).collect();
    let began = std::time::Instant::now();
    let taken = copies.drain(..).filter(|batch| recorder.record(batch.clone())).count() as u64;
    println!("{taken} taken, {:?}", began.elapsed());
    recorder.flush();
    let status = history.reader().status();
    assert!(status.dropped_batches > 0, "the queue was never full");
    assert_eq!(status.dropped_batches, 3 * QUEUE_MAX as u64 - taken);
    assert_eq!(status.dropped_points, status.dropped_batches * 20_000);
    // What was dropped was not watched either.
    let bucket = ask(&history, "n5", START, START + 60, 60).buckets[0];
    assert_eq!((bucket.sum, bucket.seen_s), (taken, taken));
    // Too long a batch is dropped as a whole, too.
    assert!(!recorder.record(batch(START, vec![point("long", START, 1); BATCH_POINTS_MAX + 1])));
    assert!(recorder.flush());
    assert_eq!(ask(&history, "long", START, START + 60, 60).buckets[0].seen_s, taken);
    drop(history);
    assert!(!recorder.record(batch(START, vec![])) && !recorder.flush(), "a closed history takes nothing");
}

#[test]
fn a_second_one_on_the_directory_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let error = History::open(dir.path(), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("another daemon"), "{error}");
    drop(history);
    open(dir.path());
}
