//! What a user of profiles would miss.

use std::time::Duration;

use super::*;

const BEGIN: Timestamp = Timestamp::from_ms(1_800_000_000_000 / 3_600_000 * 3_600_000);
const HOUR_MS: u64 = 3_600_000;

/// Numbers that look random and are the same each time (splitmix64).
struct Dice(u64);

impl Dice {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normal with mean 0 and deviation 1, nearly: the sum of twelve.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }
}

fn request(user: &str, at: Timestamp, seconds: f64) -> Request {
    Request {
        at,
        user: user.into(),
        group: None,
        service: "hello.vm.test".into(),
        runtime: None,
        seconds,
        cpu_seconds: None,
        memory_bytes: None,
        io_bytes: None,
        tags: Box::default(),
    }
}

#[test]
fn quantiles_are_as_accurate_as_stated_and_merged_sketches_are_as_one() {
    let mut dice = Dice(1);
    // From microseconds to hours, and nothing.
    let values: Vec<f64> =
        (0..20_000).map(|at| if at % 50 == 0 { 0.0 } else { (2.0 * dice.normal()).exp() }).collect();
    let (mut one, mut even, mut odd) = (Sketch::default(), Sketch::default(), Sketch::default());
    for (at, &value) in values.iter().enumerate() {
        one.add(value, 1);
        if at % 2 == 0 { even.add(value, 1) } else { odd.add(value, 1) }
    }
    even.merge(&odd);
    let mut sorted = values.clone();
    sorted.sort_by(f64::total_cmp);
    for rank in [20_u16, 200, 600, 2_000, 10_000, 18_000, 19_800, 19_980] {
        let (share, exact) = (f64::from(rank) / 20_000.0, sorted[usize::from(rank)]);
        let found = one.quantile(share).unwrap();
        assert!((found - exact).abs() <= 1.001 * ACCURACY * exact, "{share}: {found}, not {exact}");
        assert_eq!(even.quantile(share), Some(found));
    }
    assert_eq!((even.count(), Sketch::default().quantile(0.5)), (20_000, None));
    let mean = values.iter().sum::<f64>() / 20_000.0;
    assert!((one.mean() / mean - 1.0).abs() < 1e-9);
}

#[test]
fn what_spans_too_much_loses_its_smallest_values_alone() {
    let values: Vec<f64> = (-60..=150).map(|power| 10_f64.powf(f64::from(power) / 10.0)).collect();
    for order in [values.clone(), values.iter().rev().copied().collect()] {
        let mut sketch = Sketch::default();
        order.iter().for_each(|&value| sketch.add(value, 1));
        assert!(sketch.allocated_bytes() <= BINS_MAX * 8);
        assert_eq!(sketch.count(), 211);
        for rank in [148_u8, 190, 209] {
            let (share, exact) = ((f64::from(rank) + 0.5) / 211.0, values[usize::from(rank)]);
            let found = sketch.quantile(share).unwrap();
            assert!((found / exact - 1.0).abs() < 0.03, "{share}: {found}, not {exact}");
        }
    }
    // What is no quantity is nothing, and what is more than can be told is the most that can.
    let mut odd = Sketch::default();
    [f64::NAN, -1.0, f64::NEG_INFINITY, 0.0, 1e-9].into_iter().for_each(|value| odd.add(value, 1));
    assert_eq!((odd.count(), odd.quantile(1.0)), (5, Some(0.0)));
    odd.add(f64::INFINITY, 10);
    let most = odd.quantile(0.5).unwrap();
    assert!((0.95..1.05).contains(&(most / VALUE_MAX)), "{most}");
}

/// How often the intervals that are told now hold further values.
fn held_out(distribution: &Distribution, values: &[f64]) -> Vec<f64> {
    let intervals = distribution.summary().intervals;
    let held = |interval: &Interval| {
        values.iter().filter(|value| (interval.low..=interval.high).contains(*value)).count() as f64
            / values.len() as f64
    };
    intervals.iter().map(held).collect()
}

/// What values are like, and the next one.
type Kind = (&'static str, fn(&mut Dice) -> f64);

#[test]
fn intervals_hold_as_often_as_they_say_of_values_that_they_have_not_seen() {
    let mut dice = Dice(7);
    let kinds: [Kind; 3] = [
        ("skewed", |dice| (1.5 * dice.normal()).exp()),
        ("exponential", |dice| -3.0 * (1.0 - dice.uniform()).ln()),
        ("two kinds", |dice| if dice.uniform() < 0.3 { 20.0 + dice.normal() } else { 0.1 + dice.uniform() }),
    ];
    for (kind, next) in kinds.into_iter().chain([("a long one", kinds[1].1)]) {
        let mut distribution = Distribution::default();
        // Levels do not swing, however rarely intervals are made anew.
        let before = if kind == "a long one" { 60_000 } else { 0 };
        (0..before).for_each(|_| distribution.take(next(&mut dice)));
        (0..5_000).for_each(|_| distribution.take(next(&mut dice)));
        let later: Vec<f64> = (0..5_000).map(|_| next(&mut dice)).collect();
        for (nominal, held) in LEVELS.into_iter().zip(held_out(&distribution, &later)) {
            assert!((held - nominal).abs() <= 0.03, "{kind}: {held}, not {nominal}");
        }
        for interval in distribution.summary().intervals {
            let coverage = interval.coverage.unwrap();
            assert!((coverage - interval.nominal).abs() <= 0.015, "{kind}: {interval:?}");
            assert!(interval.judged >= 4_900);
        }
    }
}

#[test]
fn coverage_is_told_as_it_is_and_follows_behaviour_that_changes() {
    let mut dice = Dice(3);
    let mut drifting = Distribution::default();
    // A hundred times slower in the course of twenty epochs: in each by three quarters of the deviation.
    for at in 0..20_000 {
        drifting.take((f64::from(at) / 20_000.0 * 4.6 + 0.3 * dice.normal()).exp());
        if at % 1_000 == 999 {
            drifting.turn();
        }
    }
    for interval in drifting.summary().intervals {
        assert!((interval.coverage.unwrap() - interval.nominal).abs() <= 0.03, "{interval:?}");
    }
    // A jump: nothing is held for a while, and it is said.
    let mut jumped = Distribution::default();
    (0..100).for_each(|_| jumped.take(1.0 + dice.uniform()));
    (0..100).for_each(|_| jumped.take(100.0 + dice.uniform()));
    let coverage = jumped.summary().intervals[0].coverage.unwrap();
    assert!(coverage < 0.75, "{coverage}");
}

#[test]
fn counts_with_ties_are_held_in_part() {
    // An interval of 80 % of two equally frequent values is both; each counts for what the level needs of it.
    let mut dice = Dice(5);
    let mut coin = Distribution::default();
    (0..4_000).for_each(|_| coin.take(if dice.uniform() < 0.5 { 1.0 } else { 2.0 }));
    for interval in coin.summary().intervals {
        assert!((interval.coverage.unwrap() - interval.nominal).abs() < 0.02, "{interval:?}");
        assert!((interval.low - 1.0).abs() < 0.04 && (interval.high - 2.0).abs() < 0.08, "{interval:?}");
    }
}

#[test]
fn there_is_no_interval_before_there_are_values_for_it() {
    let mut distribution = Distribution::default();
    (0..VALUES_MIN - 1).for_each(|_| distribution.take(1.0));
    assert_eq!(distribution.summary().intervals, []);
    distribution.take(1.0);
    let intervals = distribution.summary().intervals;
    assert_eq!(intervals.len(), 2);
    assert_eq!((intervals[0].coverage, intervals[0].judged), (None, 0));
}

#[test]
fn a_profile_tells_volume_by_the_hour_and_preferred_runtimes() {
    let mut profiles = Profiles::default();
    for hour in 0..200_u64 {
        // Ten an hour, none in each fourth one; the last of each hour comes an hour late.
        for nth in (0..10_u64).filter(|_| hour % 4 != 3) {
            let at = BEGIN.plus_ms(hour * HOUR_MS + nth * 1_000);
            let runtime = if nth % 5 == 0 { "python3.12" } else { "node22" };
            let told = Request {
                group: Some("staff".into()),
                runtime: Some(runtime.into()),
                cpu_seconds: Some(0.5),
                memory_bytes: (nth == 1).then_some(64 << 20),
                ..request("ann", at, 2.0)
            };
            profiles.take(&told);
        }
    }
    let ann = profiles.user("ann").unwrap().behaviour();
    let staff = profiles.group("staff").unwrap().behaviour();
    // The first eight of them made the profile.
    assert_eq!((ann.requests, ann.late, staff.requests), (1_500 - 8, 0, 1_500 - 8));
    assert!((ann.runtimes[0].share - 0.8).abs() < 0.01 && ann.runtimes[0].runtime == "node22", "{ann:?}");
    assert_eq!(ann.runtimes.len(), 2);
    let volume = &ann.volume_per_hour;
    // 198 hours are over, a quarter of them quiet.
    assert_eq!(volume.values, 197);
    assert!((volume.mean - 7.5).abs() < 0.1 && (volume.p50.unwrap() - 10.0).abs() < 0.3, "{volume:?}");
    assert_eq!((ann.seconds.values, ann.memory_bytes.values, ann.io_bytes.values), (1_492, 149, 0));
    assert!((ann.cpu_seconds.p95.unwrap() - 0.5).abs() < 0.02);
    assert!((ann.memory_bytes.mean - f64::from(64 << 20)).abs() < 1.0);
}

#[test]
fn volume_is_forecast_with_intervals_that_hold() {
    let (mut profile, mut dice, mut at_ms) = (Profile::default(), Dice(9), 0.0);
    let at =
        |ms: f64| BEGIN.plus_ms(u64::try_from(Duration::from_secs_f64(ms / 1_000.0).as_millis()).unwrap());
    // Some forty an hour, without a pattern, for a hundred days.
    while at_ms < 100.0 * 24.0 * 3_600_000.0 {
        at_ms -= 90_000.0 * (1.0 - dice.uniform()).ln();
        profile.take(&request("ann", at(at_ms), 1.0));
    }
    let volume = profile.behaviour().volume_per_hour;
    assert!((volume.mean - 40.0).abs() < 0.5 && volume.values > 2_390, "{volume:?}");
    for interval in volume.intervals {
        assert!((interval.coverage.unwrap() - interval.nominal).abs() <= 0.03, "{interval:?}");
        assert!(
            (25.0..36.0).contains(&interval.low) && (45.0..57.0).contains(&interval.high),
            "{interval:?}"
        );
    }
}

#[test]
fn late_requests_count_and_a_wrong_clock_makes_no_endless_quiet() {
    let mut profile = Profile::default();
    for hour in [10, 10, 11, 10, 13, 12, 11, 40_000_000] {
        profile.take(&request("ann", Timestamp::from_ms(hour * HOUR_MS), 1.0));
    }
    let behaviour = profile.behaviour();
    assert_eq!((behaviour.requests, behaviour.late), (8, 1));
    // Three of hour 10, one each of 11, 12 and 13, and two weeks of nothing.
    let volume = behaviour.volume_per_hour;
    assert_eq!(volume.values, 4 + QUIET_HOURS_MAX);
    assert!((volume.mean * volume.values as f64 - 6.0).abs() < 1e-9, "{volume:?}");
}

#[test]
fn a_flood_of_names_takes_no_more_room_and_drives_no_frequent_one_out() {
    let mut profiles = Profiles::with_places(64, 4);
    for at in 0..20_000_u64 {
        let when = BEGIN.plus_ms(at * 10_000);
        profiles.take(&request(&format!("once-{at}"), when, 1.0));
        if at % 10 == 0 {
            profiles.take(&request("often", when, 5.0));
        }
    }
    assert_eq!(profiles.users.by_name.iter().count(), 64);
    assert!(profiles.size_bytes() < 5 * PROFILE_BYTES_MAX);
    assert_eq!(profiles.users().map(|(name, _)| name).collect::<Vec<_>>(), ["often"]);
    assert_eq!(profiles.user("often").unwrap().behaviour().requests, 2_000 - 8);
    let others = profiles.other_users().behaviour();
    assert_eq!(others.requests, 20_000 + 8);
    assert!((others.volume_per_hour.p50.unwrap() - 360.0).abs() < 8.0, "{others:?}");
    assert_eq!(profiles.other_groups().behaviour().requests, 0);
}

#[test]
fn a_name_that_others_overtake_adds_what_it_did_to_them() {
    let mut profiles = Profiles::with_places(2, 1);
    let mut ask = |user: &str, times: u64| {
        for at in 0..times {
            profiles.take(&request(user, BEGIN.plus_ms(at), 3.0));
        }
    };
    ask("first", 20);
    ask("second", 40);
    ask("third", 40);
    assert!(profiles.user("first").is_none());
    assert_eq!(profiles.other_users().behaviour().requests, 12 + 3 * 8);
    let all: u64 = profiles.users().map(|(_, profile)| profile.behaviour().requests).sum();
    assert_eq!(all + 36, 100);
}

#[test]
fn behaviour_of_more_than_two_epochs_ago_is_forgotten() {
    let mut profiles = Profiles::default();
    for epoch in 0..3_u64 {
        for at in 0..100 {
            let when = BEGIN.plus_ms(epoch * EPOCH_MS + at);
            profiles.take(&request("ann", when, if epoch == 0 { 1_000.0 } else { 1.0 }));
        }
        let slowest = profiles.user("ann").unwrap().behaviour().seconds.p99.unwrap();
        assert_eq!(slowest > 900.0, epoch < 2, "{epoch}: {slowest}");
    }
}

#[test]
fn a_profile_stays_within_its_limit() {
    let (mut profile, mut dice) = (Profile::default(), Dice(2));
    for at in 0..200_000_u64 {
        let spread = dice.uniform();
        let value = 10_f64.powf(spread * 21.0 - 6.0);
        let told = Request {
            cpu_seconds: Some(value),
            memory_bytes: Some(1 << (at % 48)),
            io_bytes: Some(1 << (at % 48)),
            runtime: Some(format!("runtime-{}", at % 100).into()),
            ..request("ann", BEGIN.plus_ms(at * 600_000), value)
        };
        profile.take(&told);
        if at == 100_000 {
            profile.turn();
        }
    }
    assert!((30_000..=PROFILE_BYTES_MAX).contains(&profile.size_bytes()), "{}", profile.size_bytes());
    assert!(profile.behaviour().runtimes.len() <= RUNTIMES_MAX);
}

#[test]
fn who_has_not_come_for_two_epochs_is_forgotten() {
    let mut profiles = Profiles::with_places(8, 8);
    let come = |profiles: &mut Profiles, user: &str, week: u64| {
        let at = BEGIN.plus_ms(week * EPOCH_MS + 1);
        (0..=ADMITTED_AFTER).for_each(|_| profiles.take(&request(user, at, 1.0)));
    };
    come(&mut profiles, "ann", 0);
    for week in 0..3 {
        come(&mut profiles, "bob", week);
        assert_eq!(profiles.user("ann").is_some(), week < 2, "in week {week}");
    }
    assert!(profiles.user("bob").is_some());
    // It has a place again when it comes back, as somebody new.
    come(&mut profiles, "ann", 2);
    assert_eq!(profiles.user("ann").map(|profile| profile.behaviour().requests), Some(1));
}
