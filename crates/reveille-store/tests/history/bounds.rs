//! Clocks, age and size.

use super::*;

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
fn seconds_are_kept_again_after_the_clock_was_set_back_while_nothing_ran() {
    let dir = tempfile::tempdir().unwrap();
    let busy = |history: &History, from_s: u64| {
        for second in from_s..from_s + 60 {
            record(history, batch(second, vec![point("a", second, 2)]));
        }
        ask(history, "a", from_s + 40, from_s + 50, 10)
    };
    let history = open(dir.path());
    assert_eq!(busy(&history, START + 5 * HOUR).resolution, Resolution::Second);
    drop(history);
    let history = open(dir.path());
    let again = ask(&history, "a", START + 5 * HOUR + 40, START + 5 * HOUR + 50, 10);
    assert_eq!(
        (again.resolution, sums(&again)),
        (Resolution::Second, vec![20]),
        "the journal has the seconds"
    );
    let answer = busy(&history, START);
    assert_eq!((answer.resolution, sums(&answer)), (Resolution::Second, vec![20]));
    assert_eq!(total(&history, "a", START, START + 6 * HOUR), 240);
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

#[test]
fn an_hour_that_is_packed_before_its_end_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { open_names_max: 10, ..Limits::default() };
    let mut history = open_with(dir.path(), limits.clone());
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for second in 0..120 {
        let names = (0..3).map(|index| format!("n{}", (second * 3 + index) % 20));
        let points: Vec<_> = names.map(|name| (name, second + 1)).collect();
        record(
            &history,
            batch(
                START + second,
                points.iter().map(|(name, amount)| point(name, START + second, *amount)).collect(),
            ),
        );
        for (name, amount) in points {
            *sums.entry(name).or_default() += amount;
        }
        if second % 13 == 0 {
            drop(history);
            history = open_with(dir.path(), limits.clone());
        }
        for (name, amount) in &sums {
            assert_eq!(total(&history, name, START, START + HOUR), *amount, "{name} at second {second}");
        }
        assert!(history.reader().status().open_names <= 10 + 3);
    }
    // The pieces of an hour are put together before there are many.
    assert!(files(dir.path(), "minutes1h").len() < 12, "{:?}", files(dir.path(), ""));
}
