//! What the history keeps, adds up, lets go, tells and survives, within one process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use reveille_store::history::{
    Answer, Batch, Damage, History, Kind, KindSet, Limits, Point, QUEUE_MAX, Query, QueryError, Resolution,
    STATE_BYTES_MAX, Seen, StateError, StoredForecast,
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
        if now_s / step_s % (QUEUE_MAX as u64 / 2) == 0 {
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

// --- Against a naive model -------------------------------------------------------------------------------------

#[derive(Debug, Clone)]
enum Act {
    Record(Vec<(usize, bool, u64, u64)>),
    Reopen,
    Remove(usize),
}

fn acts() -> impl Strategy<Value = Vec<(u64, Act)>> {
    let late = prop_oneof![6 => 0u64..5, 3 => 0u64..900, 1 => 0u64..20 * HOUR];
    let amount = prop_oneof![1u64..5, 1u64..100_000];
    let points = prop::collection::vec((0usize..5, any::<bool>(), late, amount), 0..12);
    let act = prop_oneof![30 => points.prop_map(Act::Record), 2 => Just(Act::Reopen), 1 => (0usize..5).prop_map(Act::Remove)];
    let passed = prop_oneof![6 => 0u64..3, 4 => 1u64..90, 3 => 600u64..5_000, 1 => 20_000u64..90_000];
    prop::collection::vec((passed, act), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sum_is_that_of_a_naive_model(acts in acts(), crowded in any::<bool>()) {
        let names = ["a.vm.test", "b.vm.test", "c", "d", "e.other.test"];
        let dir = tempfile::tempdir().unwrap();
        // Crowded: hours are packed before their end again and again.
        let limits = Limits { open_names_max: if crowded { 6 } else { 1_000 }, ..Limits::default() };
        let mut history = open_with(dir.path(), limits.clone());
        let mut model: BTreeMap<(usize, bool, u64), u64> = BTreeMap::new();
        let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
        let mut now = START + 3 * DAY;
        for (passed, act) in acts {
            now += passed;
            match act {
                Act::Record(points) => {
                    let kind = |arrival: bool| if arrival { Kind::Arrivals } else { Kind::Queries };
                    let made = points.iter().map(|(name, arrival, late, amount)| Point {
                        name: names[*name].as_bytes().into(),
                        kind: kind(*arrival),
                        at_s: now - late,
                        amount: *amount,
                    });
                    record(&history, batch(now, made.collect()));
                    for (name, arrival, late, amount) in points {
                        *model.entry((name, arrival, (now - late) / 60)).or_default() += amount;
                    }
                    *seen.entry(now / 60).or_default() += 1;
                }
                Act::Reopen => {
                    drop(history);
                    history = open_with(dir.path(), limits.clone());
                }
                Act::Remove(name) => {
                    history.recorder().remove(names[name].as_bytes()).unwrap();
                    model.retain(|(of, ..), _| *of != name);
                }
            }
        }
        for when in [now, now + 2 * DAY] {
            settle(&history, when);
            for (index, name) in names.iter().enumerate() {
                for (arrival, kind) in [(false, Kind::Queries), (true, Kind::Arrivals)] {
                    for step_s in [60, 300, HOUR, DAY] {
                        let name = name.as_bytes();
                        let query = Query { name, kind, from_s: START, to_s: now + 1, step_s };
                        let answer = history.reader().query(&query).unwrap();
                        prop_assert_eq!(&answer.damaged, &[]);
                        prop_assert_eq!((answer.from_s, answer.step_s), (START, step_s));
                        for (place, bucket) in answer.buckets.iter().enumerate() {
                            let from = (START + place as u64 * step_s) / 60;
                            let minutes = from..from + step_s / 60;
                            let expected: u64 = minutes.clone().map(|minute| model.get(&(index, arrival, minute)).copied().unwrap_or(0)).sum();
                            let watched: u64 = seen.range(minutes).map(|(_, seconds)| seconds).sum();
                            prop_assert_eq!((bucket.sum, bucket.seen_s), (expected, watched), "{} at {}", names[index], from * 60);
                        }
                    }
                }
            }
        }
        let listed: Vec<_> = history.reader().names(b"", 100).unwrap().into_iter().map(|info| (info.name, info.first_s / 60, info.last_s / 60)).collect();
        let mut active: BTreeMap<Box<[u8]>, (u64, u64)> = BTreeMap::new();
        for (name, _, minute) in model.keys() {
            let about = active.entry(names[*name].as_bytes().into()).or_insert((*minute, *minute));
            *about = (about.0.min(*minute), about.1.max(*minute));
        }
        let expected: Vec<_> = active.into_iter().map(|(name, (first, last))| (name, first, last)).collect();
        prop_assert_eq!(listed, expected);
    }
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

// --- Clocks and late points --------------------------------------------------------------------------------------

#[test]
fn a_clock_that_goes_back_adds_and_one_that_goes_forward_leaves_a_gap_and_no_history_goes() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    record(&history, batch(START, vec![point("a", START, 1)]));
    // Ten years ahead for a while, with everything that time brings, but not long enough to be believed.
    let ahead = START + 3_650 * DAY;
    record(&history, batch(ahead, vec![point("a", ahead, 10)]));
    run(&history, ahead, ahead + HOUR - 120, 60);
    record(&history, batch(START + 2 * HOUR, vec![point("a", START + 2 * HOUR, 100)]));
    // An hour back: the same seconds come again.
    record(&history, batch(START + HOUR, vec![]));
    record(&history, batch(START + 5, vec![point("a", START, 1_000)]));
    let check = |history: &History| {
        let answer = ask(history, "a", START, START + 3 * HOUR, HOUR);
        let seen: Vec<_> = answer.buckets.iter().map(|bucket| (bucket.sum, bucket.seen_s)).collect();
        assert_eq!(seen, [(1_001, 2), (0, 1), (100, 1)]);
        assert_eq!(total(history, "a", ahead, ahead + HOUR), 10);
    };
    check(&history);
    assert_eq!(history.reader().status().clock_jumps, 4, "ahead, back, back, back");
    settle(&history, START + 3 * HOUR);
    drop(history);
    check(&open(dir.path()));
}

#[test]
fn what_is_too_late_or_from_the_future_is_counted_and_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    let now = START + 30 * DAY;
    let points = vec![
        point("a", now - DAY, 1),
        point("a", now - DAY - 1, 10),
        point("a", now + 60, 100),
        point("a", now + 61, 1_000),
        point("", now, 1),
        point(&"x".repeat(256), now, 1),
    ];
    record(&history, batch(now, points));
    let status = history.reader().status();
    assert_eq!(
        (status.points, status.refused_late, status.refused_early, status.refused_names),
        (2, 1, 1, 2)
    );
    assert_eq!(total(&history, "a", now - 2 * DAY, now + DAY), 101);
}

// --- Age and size ------------------------------------------------------------------------------------------------

#[test]
fn minutes_become_hours_and_hours_go_when_their_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { minutes_kept_s: 2 * DAY, hours_kept_s: 40 * DAY, ..Limits::default() };
    let history = open_with(dir.path(), limits);
    for hour in 0..24 {
        let at = START + hour * HOUR;
        record(&history, batch(at, vec![point("a", at + 7, hour), point("a", at, 1)]));
    }
    let expected: Vec<u64> = (0..24).map(|hour| hour + 1).collect();
    let day = |history: &History, step_s| ask(history, "a", START, START + DAY, step_s);
    settle(&history, START + DAY + 2 * HOUR);
    assert_eq!((files(dir.path(), "minutes1h").len(), files(dir.path(), "minutes1d").len()), (0, 1));
    assert_eq!(day(&history, 60).step_s, 60);
    assert_eq!(sums(&day(&history, HOUR)), expected);
    // A jump to the time at which minutes go is not believed at once.
    let over = START + 3 * DAY + 60;
    settle(&history, over);
    assert_eq!(day(&history, 60).step_s, 60);
    run(&history, over, over + HOUR + 600, 60);
    assert_eq!((files(dir.path(), "minutes1d").len(), files(dir.path(), "hours1d").len()), (0, 1));
    let answer = day(&history, 60);
    assert_eq!((answer.step_s, answer.resolution, sums(&answer)), (HOUR, Resolution::Hour, expected.clone()));
    assert_eq!(answer.buckets[0].seen_s, 1, "what was watched becomes hours, too");

    let over = START + 33 * DAY;
    run(&history, over, over + HOUR + 600, 60);
    assert_eq!((files(dir.path(), "hours1d").len(), files(dir.path(), "hours30d").len()), (0, 1));
    assert_eq!(sums(&day(&history, 60)), expected);
    let over = START + 70 * DAY;
    run(&history, over, over + HOUR + 600, 60);
    assert_eq!(files(dir.path(), "blocks"), [] as [PathBuf; 0]);
    assert!(day(&history, 60).buckets.iter().all(|bucket| bucket.is_unseen()));
    assert_eq!(history.reader().status().minutes_cut_until_s, None, "nothing went before its time");
}

#[test]
fn over_the_limit_the_oldest_minutes_become_hours_and_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let fill = |history: &History, days: std::ops::Range<u64>| {
        for hour in days.start * 24..days.end * 24 {
            let at = START + hour * HOUR;
            // Amounts that do not pack well.
            let points = (0..60u64).flat_map(|minute| {
                (0..40u64).map(move |name| {
                    point(
                        &format!("n{name}"),
                        at + minute * 60,
                        1 + (hour * 60 + minute + name).wrapping_mul(0x9e37_79b9_7f4a_7c15) % 100_000,
                    )
                })
            });
            record(history, batch(at + 3_599, points.collect()));
        }
        settle(history, START + days.end * DAY + 2 * HOUR);
    };
    let history = open(dir.path());
    fill(&history, 0..4);
    let whole = history.reader().status().disk_bytes;
    let sums_of = |history: &History| sums(&ask(history, "n7", START, START + 4 * DAY, HOUR));
    let before = sums_of(&history);
    drop(history);
    // Room for two days of minutes, and hours.
    let limits = Limits { disk_bytes_max: whole * 6 / 10, ..Limits::default() };
    let history = open_with(dir.path(), limits.clone());
    settle(&history, START + 4 * DAY + 2 * HOUR);
    let status = history.reader().status();
    assert!(status.disk_bytes <= limits.disk_bytes_max, "{status:?}");
    assert_eq!(
        (status.minutes_cut_until_s, status.hours_cut_until_s),
        (Some(START + 2 * DAY), None),
        "{status:?}"
    );
    assert_eq!(sums_of(&history), before, "the hours are what they were");
    assert_eq!(ask(&history, "n7", START, START + DAY, 60).step_s, HOUR);
    assert_eq!(ask(&history, "n7", START + 3 * DAY, START + 4 * DAY, 60).step_s, 60);
    drop(history);
    // Room for next to nothing: the oldest goes, and nothing else goes wrong.
    let history = open_with(dir.path(), Limits { disk_bytes_max: 1, ..Limits::default() });
    settle(&history, START + 4 * DAY + 2 * HOUR);
    let status = history.reader().status();
    assert_eq!((status.files, status.hours_cut_until_s), (0, Some(START + 4 * DAY)));
    assert!(
        ask(&history, "n7", START, START + 4 * DAY, HOUR).buckets.iter().all(|bucket| bucket.is_unseen())
    );
}

// --- Names and states ----------------------------------------------------------------------------------------------

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
    assert!(matches!(&refused, StateError::TooLong { name, bytes: 4_097 } if name == "c"), "{refused}");
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

// --- Damage --------------------------------------------------------------------------------------------------------

/// A history with every sort of file, and what each name has in each hour.
fn with_every_file(dir: &Path) -> BTreeMap<String, Vec<u64>> {
    let limits = Limits { minutes_kept_s: 2 * DAY, ..Limits::default() };
    let history = open_with(dir, limits);
    let mut sums: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for hour in 0..80 {
        // Thirty days' hours, a day's hours, a day's minutes, an hour's minutes and a journal.
        let at = hour_at(hour);
        let names = (0..12).map(|name| (format!("name-{name}.vm.test"), 1 + (hour * 31 + name * 7) % 1_000));
        let names: Vec<_> = names.collect();
        record(&history, batch(at, names.iter().map(|(name, amount)| point(name, at, *amount)).collect()));
        for (name, amount) in names {
            sums.entry(name).or_default().push(amount);
        }
        if hour == 20 || hour == 40 {
            run(&history, at + 3 * DAY, at + 3 * DAY + HOUR + 600, 60);
        }
    }
    settle(&history, hour_at(79) + 1);
    drop(history);
    for tag in ["hours30d", "hours1d", "minutes1d", "minutes1h", "journal"] {
        assert!(!files(dir, tag).is_empty(), "no {tag} in {:?}", files(dir, ""));
    }
    sums
}

fn hour_at(hour: u64) -> u64 {
    match hour {
        0..=20 => START + hour * HOUR,
        21..=40 => START + 36 * DAY + (hour - 20) * HOUR,
        _ => START + 41 * DAY + (hour - 40) * HOUR,
    }
}

/// Each hour of each name has its sum, or is unseen and told; says how many are not there.
fn told_or_right(dir: &Path, sums: &BTreeMap<String, Vec<u64>>, what: &str) -> usize {
    let (history, damaged) =
        History::open(dir, Limits::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut missing = 0;
    for (name, amounts) in sums {
        for (hour, amount) in amounts.iter().enumerate() {
            let at = hour_at(hour as u64);
            let answer = ask(&history, name, at, at + HOUR, HOUR);
            let bucket = answer.buckets[0];
            if bucket.sum == *amount && bucket.seen_s == 1 {
                continue;
            }
            missing += usize::from(bucket.sum != *amount);
            // A journal that ends early between two batches says what was before, and no less than one that was not
            // written on.
            if what.starts_with("journal cut") && bucket.is_unseen() {
                continue;
            }
            let spans = |damage: &&Damage| damage.from_s <= at && at < damage.to_s;
            let told = answer.damaged.iter().chain(&damaged).any(|damage| spans(&damage));
            assert!(
                told,
                "{what}: {name} has {bucket:?} and not {amount} at hour {hour}, and nothing says why"
            );
            assert!(bucket.sum <= *amount, "{what}: {name} has more than was counted");
        }
    }
    missing
}

#[test]
fn each_flipped_bit_and_each_cut_costs_a_block_that_is_told_and_never_more() {
    let whole = tempfile::tempdir().unwrap();
    let sums = with_every_file(whole.path());
    assert_eq!(told_or_right(whole.path(), &sums, "whole"), 0);
    // Opening is a start of its own: from here on it is the same files each time.
    let dir = tempfile::tempdir().unwrap();
    let fresh = |file: Option<&Path>, bytes: &[u8]| {
        for path in files(dir.path(), "") {
            fs::remove_file(path).unwrap();
        }
        for path in files(whole.path(), "") {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        if let Some(file) = file {
            fs::write(dir.path().join(file.file_name().unwrap()), bytes).unwrap();
        }
    };
    let mut seed = 7u64;
    for tag in ["hours30d", "hours1d", "minutes1d", "minutes1h", "journal"] {
        let path = files(whole.path(), tag).remove(0);
        let bytes = fs::read(&path).unwrap();
        // A stride that visits every sort of place; each start costs some milliseconds.
        for at in (0..bytes.len()).step_by(bytes.len() / 24 + 1) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (seed >> 61);
            fresh(Some(&path), &changed);
            let what = format!("bit of byte {at} of {} in {tag}", bytes.len());
            let missing = told_or_right(dir.path(), &sums, &what);
            // One name in one file; or all names of one batch, and what needs the names that it brought.
            let hours = if tag.starts_with("hours") || tag == "minutes1d" { 24 } else { 12 };
            assert!(missing <= hours, "{what}: {missing} hours are not there");
        }
        for length in [0, 1, 9, 30, bytes.len() / 3, bytes.len() / 2, bytes.len() - 33, bytes.len() - 1] {
            fresh(Some(&path), &bytes[..length.min(bytes.len())]);
            told_or_right(dir.path(), &sums, &format!("{tag} cut at {length} of {}", bytes.len()));
        }
    }
}

#[test]
fn damage_is_told_by_file_name_and_time_and_still_after_files_were_merged() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    for hour in 0..24 {
        let at = START + hour * HOUR;
        record(&history, batch(at, vec![point("hit.vm.test", at, 5), point("well.vm.test", at, 6)]));
    }
    settle(&history, START + DAY);
    drop(history);
    let path = files(dir.path(), &format!("minutes1h-{}-", START + 3 * HOUR)).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let name = b"hit.vm.test";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at + name.len() + 4] ^= 0x10;
    fs::write(&path, &bytes).unwrap();

    let history = open(dir.path());
    let check = |history: &History, file: &str, from_s, to_s| {
        let answer = ask(history, "hit.vm.test", START, START + DAY, HOUR);
        let [damage] = &answer.damaged[..] else { panic!("{:?}", answer.damaged) };
        assert_eq!((damage.from_s, damage.to_s), (from_s, to_s));
        let sentence = damage.to_string();
        assert!(sentence.contains("hit.vm.test") && sentence.contains(file), "{sentence}");
        assert!(answer.buckets[3].is_unseen());
        assert_eq!(ask(history, "well.vm.test", START, START + DAY, HOUR).damaged, []);
        assert_eq!(total(history, "well.vm.test", START, START + DAY), 144);
    };
    check(&history, "minutes1h", START + 3 * HOUR, START + 4 * HOUR);
    let sentence = ask(&history, "hit.vm.test", START, START + DAY, HOUR).damaged[0].to_string();
    assert!(sentence.contains("2024-10-14T03:00:00Z to 2024-10-14T04:00:00Z"), "{sentence}");
    settle(&history, START + DAY + 2 * HOUR);
    assert_eq!(files(dir.path(), "minutes1h"), [] as [PathBuf; 0]);
    check(&history, "minutes1d", START, START + DAY);
}

#[test]
fn a_damaged_catalogue_is_put_aside_and_names_are_read_from_the_blocks_again() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    record(&history, batch(START + 70, vec![point("a", START + 5, 1), point("b", START + 65, 1)]));
    settle(&history, START + 2 * HOUR);
    record(&history, batch(START + 2 * HOUR, vec![point("c", START + 2 * HOUR, 1)]));
    drop(history);
    let path = dir.path().join("names.redb");
    let mut bytes = fs::read(&path).unwrap();
    bytes.iter_mut().skip(4_096).for_each(|byte| *byte ^= 0x55);
    fs::write(&path, &bytes).unwrap();
    let (history, damaged) = History::open(dir.path(), Limits::default()).unwrap();
    assert!(damaged[0].to_string().contains("names.redb"), "{damaged:?}");
    assert_eq!(fs::read(dir.path().join("names.redb.damaged")).unwrap(), bytes, "put aside as it is");
    let names: Vec<_> =
        history.reader().names(b"", 10).unwrap().into_iter().map(|info| (info.name, info.last_s)).collect();
    let name = |name: &[u8]| Box::<[u8]>::from(name);
    assert_eq!(names, [(name(b"a"), START), (name(b"b"), START + 60), (name(b"c"), START + 2 * HOUR)]);
}

#[test]
fn a_file_of_a_newer_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let history = open(dir.path());
    record(&history, batch(START, vec![point("a", START, 1)]));
    settle(&history, START + 2 * HOUR);
    drop(history);
    let path = files(dir.path(), "minutes1h").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] = 2;
    let inputs = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    let end = 12 + inputs * 8;
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..end]) as u32;
    bytes[end..end + 4].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
    let error = History::open(dir.path(), Limits::default()).unwrap_err().to_string();
    assert!(error.contains("format 2") && error.contains("newer"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}
