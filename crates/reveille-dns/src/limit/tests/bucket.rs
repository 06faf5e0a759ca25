//! Buckets under use, under a flood, and with a clock that goes wrong.

use proptest::prelude::*;

use super::super::bucket::{Bucket, BucketTable, CLOCK_SLACK_US, Key, Limit, Micros, Take};
use super::Numbers;

const SECOND_US: u64 = 1_000_000;
const DEFAULT_SETS: usize = 1 << 14;

fn limit(per_s: u32, burst: u32) -> Limit {
    Limit::new(per_s, SECOND_US, burst).unwrap()
}

fn us(us: u64) -> Micros {
    Micros::from_us(us)
}

/// Counts how many of `tries` pass at one moment.
fn passed(table: &BucketTable, key: Key, limit: &Limit, now: u64, tries: u32) -> u32 {
    (0..tries).map(|_| u32::from(table.take(key, limit, us(now)).passed())).sum()
}

/// No window of the times at which something passed holds more than the limit allows.
fn assert_within(times_us: &[u64], per_s: u32, burst: u32) {
    for (first, &from) in times_us.iter().enumerate() {
        for (more, &to) in times_us[first..].iter().enumerate() {
            let allowed = u64::from(burst) + (to - from) * u64::from(per_s) / SECOND_US;
            assert!(
                u64::try_from(more).unwrap() < allowed + 1,
                "{} passed in {} us, allowed are {allowed}",
                more + 1,
                to - from
            );
        }
    }
}

proptest! {
    #[test]
    fn no_key_ever_passes_more_than_its_burst_and_rate(
        seed: u64,
        per_s in 1u32..5_000,
        burst in 1u32..50,
        sets in 1usize..8,
        others in 0u64..40,
        pace_us in 1u64..100_000,
    ) {
        let table = BucketTable::new(sets);
        let limit = limit(per_s, burst);
        let (mut numbers, mut now, mut times) = (Numbers(seed), 0, Vec::new());
        let watched = Key::new(numbers.next(), 0);
        for _ in 0..300 {
            now += numbers.below(pace_us);
            // Between two threads the clock may look back a little.
            let seen = now.saturating_sub(numbers.below(50_000) * numbers.below(2));
            if table.take(watched, &limit, us(seen)).passed() {
                times.push(now);
            }
            for _ in 0..numbers.below(others + 1) {
                let other = numbers.below(64);
                table.take(Key::new(Numbers(other).next(), 0), &limit, us(seen));
            }
        }
        // What is seen up to 50 ms late is judged as if it had come so much earlier.
        let slack = 2 + 50_000 * u64::from(per_s) / SECOND_US;
        assert_within(&times, per_s, burst + u32::try_from(slack).unwrap());
    }

    #[test]
    fn who_stays_within_the_limit_always_passes(seed: u64, per_s in 1u32..1_000, burst in 1u32..50) {
        let table = BucketTable::new(1);
        let (limit, mut numbers) = (limit(per_s, burst), Numbers(seed));
        let interval = SECOND_US.div_ceil(per_s.into());
        let key = Key::new(numbers.next(), 0);
        let mut now = numbers.below(1 << 40);
        assert_eq!(passed(&table, key, &limit, now, burst), burst, "the burst after a rest");
        for _ in 0..100 {
            now += interval + numbers.below(10);
            assert!(table.take(key, &limit, us(now)).passed());
        }
        now += interval * u64::from(burst);
        assert_eq!(passed(&table, key, &limit, now, burst + 1), burst, "the burst is whole again");
    }
}

#[test]
fn exactly_the_burst_passes_at_once_and_then_one_for_each_interval() {
    let table = BucketTable::new(16);
    let (limit, key) = (limit(10, 5), Key::new(7, 0));
    assert_eq!(passed(&table, key, &limit, 1_000, 100), 5);
    assert_eq!(passed(&table, key, &limit, 100_999, 100), 0);
    assert_eq!(passed(&table, key, &limit, 101_000, 100), 1);
    assert_eq!(passed(&table, key, &limit, 401_000, 100), 3);
    assert_eq!(passed(&table, key, &limit, 60 * SECOND_US, 100), 5);
    assert!(Limit::new(0, SECOND_US, 5).is_none());
    // Kinds of one client are apart.
    for lane in 1..4 {
        assert_eq!(passed(&table, Key::new(7, lane), &limit, 60 * SECOND_US, 100), 5, "{lane}");
    }
}

#[test]
fn many_threads_take_no_more_than_there_is() {
    let table = BucketTable::new(1);
    let (limit, bucket, key) = (limit(1, 1_000), Bucket::default(), Key::new(9, 0));
    let sums: Vec<(u32, u32)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (0..5_000).fold((0, 0), |(own, single), _| {
                        let passed = table.take(key, &limit, us(1)).passed();
                        (own + u32::from(passed), single + u32::from(bucket.take(&limit, us(1))))
                    })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(sums.iter().map(|(own, _)| own).sum::<u32>(), 1_000);
    assert_eq!(sums.iter().map(|(_, single)| single).sum::<u32>(), 1_000);
}

#[test]
fn nobody_is_pushed_out_of_a_full_set_and_nobody_s_bucket_is_emptied() {
    let table = BucketTable::new(1);
    let limit = limit(1, 10);
    // Seven have spent everything: they are the owners.
    let owners: Vec<Key> = (0..7).map(|number| Key::new(number << 48, 0)).collect();
    for &owner in &owners {
        assert_eq!(passed(&table, owner, &limit, 1, 100), 10);
    }
    // Ten thousand more share one bucket among them.
    let mut numbers = Numbers(1);
    let mut together = 0;
    for _ in 0..10_000 {
        let take = table.take(Key::new(numbers.next() | 0x80 << 48, 0), &limit, us(1));
        assert!(take.shared());
        together += u32::from(take.passed());
    }
    assert_eq!(together, 10);
    for &owner in &owners {
        assert!(!table.take(owner, &limit, us(1)).passed(), "a flood has emptied a bucket");
    }
    // Who has rested gives the place away; what was charged to the shared bucket goes with who takes it.
    let late = Key::new(0x77 << 48, 0);
    let then = 5 * SECOND_US + 1;
    assert_eq!(passed(&table, late, &limit, then, 100), 5);
    let rested = us(10 * SECOND_US + 1);
    let take = table.take(Key::new(0x78 << 48, 0), &limit, rested);
    assert!(take.passed() && !take.shared());
}

#[test]
fn changing_over_from_the_shared_bucket_gives_nothing_away() {
    let table = BucketTable::new(1);
    let limit = limit(1, 10);
    for number in 0..7 {
        assert!(table.take(Key::new(number << 48, 0), &limit, us(1)).passed());
    }
    let crowded = Key::new(0x77 << 48, 0);
    assert_eq!(passed(&table, crowded, &limit, 1, 100), 10);
    // The seven have rested; the eighth has a bucket of its own now, but no second burst.
    let own = table.take(crowded, &limit, us(SECOND_US + 1));
    assert!(own.passed() && !own.shared());
    assert_eq!(passed(&table, crowded, &limit, SECOND_US + 1, 100), 0);
}

#[test]
fn two_million_random_keys_take_no_memory_and_leave_the_others_alone() {
    let table = BucketTable::new(DEFAULT_SETS);
    let bytes = table.bytes();
    assert_eq!(bytes, 1 << 20);
    let (limit, mut numbers) = (limit(200, 20), Numbers(2));
    let honest: Vec<Key> = (0..50).map(|_| Key::new(numbers.next(), 0)).collect();
    let (mut now, mut shared) = (0, 0u32);
    // 200,000 a second, and 50 clients that ask a hundred times a second each.
    for number in 0..2_000_000u64 {
        now += 5;
        shared += u32::from(table.take(Key::new(numbers.next(), 0), &limit, us(now)).shared());
        if number % 40 == 0 {
            let client = honest[usize::try_from(number / 40 % 50).unwrap()];
            assert!(table.take(client, &limit, us(now)).passed(), "an honest client is refused at {now}");
        }
    }
    assert_eq!(table.bytes(), bytes);
    assert_eq!(shared, 0, "a thousand busy buckets crowd no set");
}

#[test]
fn a_flood_that_fills_every_set_is_bounded_by_the_buckets_there_are() {
    let table = BucketTable::new(64);
    let (limit, mut numbers) = (limit(1, 3), Numbers(3));
    let total: u32 = (0..200_000)
        .map(|_| u32::from(table.take(Key::new(numbers.next(), 0), &limit, us(1)).passed()))
        .sum();
    // Each key comes about once: a token of each owner's bucket, and the shared bucket's burst. Keys of one tag are
    // one owner, so those that fill a set may take some more.
    assert!((64 * 7..=64 * 8 * 3).contains(&total), "{total}");
}

#[test]
fn a_clock_that_goes_back_stops_nobody_for_long() {
    let table = BucketTable::new(1);
    let (limit, day) = (limit(10, 5), 86_400 * SECOND_US);
    let bucket = Bucket::default();
    for number in 0..7 {
        assert_eq!(passed(&table, Key::new(number << 48, 0), &limit, day, 100), 5);
    }
    while bucket.take(&limit, us(day)) {}
    // A day back. The owners' own buckets are set right when they come, as if just emptied …
    let then = 1_000;
    assert!(!table.take(Key::new(0, 0), &limit, us(then)).passed());
    assert!(table.take(Key::new(0, 0), &limit, us(then + 100_000)).passed());
    assert!(bucket.would_pass(&limit, us(then)), "it is set right when it is taken from");
    assert!(!bucket.take(&limit, us(then)));
    assert!(bucket.take(&limit, us(then + 100_000)));
    // … and the others' are not in the way of who is new.
    let new = table.take(Key::new(0x70 << 48, 0), &limit, us(then));
    assert!(new.passed() && !new.shared());
}

#[test]
fn a_clock_that_is_read_a_little_late_gives_nothing_away() {
    let (table, key) = (BucketTable::new(1), Key::new(5, 0));
    let limit = limit(10, 5);
    let now = 10 * SECOND_US;
    let mut passed = 0;
    for round in 0..10_000u64 {
        let seen = if round % 2 == 0 { now } else { now - CLOCK_SLACK_US / 2 };
        passed += u32::from(table.take(key, &limit, us(seen)).passed());
    }
    assert_eq!(passed, 5);
}

#[test]
fn limits_on_the_same_buckets_do_not_take_each_other_for_faults() {
    let mut limits = [Some(limit(1, 1)), Some(limit(1, 600)), None];
    let table = BucketTable::new(1);
    Limit::on_same_buckets(&mut limits);
    let [Some(shallow), Some(deep), None] = limits else { panic!("changed: {limits:?}") };
    let key = Key::new(1, 0);
    assert_eq!(passed(&table, key, &deep, 1, 600), 600);
    for _ in 0..10 {
        assert!(!table.take(key, &shallow, us(2)).passed());
    }
    assert_eq!(passed(&table, key, &deep, 3, 10), 0, "the shallow limit has emptied the deep one");
}

#[test]
fn what_is_given_back_can_be_taken_again() {
    let (table, key, limit) = (BucketTable::new(1), Key::new(1, 0), limit(1, 2));
    let Take::Passed(place) = table.take(key, &limit, us(1)) else { panic!("nothing there") };
    assert_eq!(passed(&table, key, &limit, 1, 10), 1);
    table.give_back(place, &limit);
    assert!(table.would_pass(key, &limit, us(1)));
    assert_eq!(passed(&table, key, &limit, 1, 10), 1);
    // Somebody else's by now: nothing is given.
    let much_later = 100 * SECOND_US;
    let other = Key::new(2 << 48 | 1, 0);
    assert_eq!(passed(&table, other, &limit, much_later, 10), 2);
    table.give_back(place, &limit);
    assert_eq!(passed(&table, other, &limit, much_later, 10), 0);
}
