//! What a user of estimates would miss. How exact they are is tested by simulation, beside the benchmark.

use super::*;

const BEGIN: Timestamp = Timestamp::from_ms(1_800_000_000_000);
const TTL_MS: u32 = 10_000;

/// A hash as good as those of resolvers are.
fn hash(number: u32) -> u32 {
    let bits = (number ^ (number >> 16)).wrapping_mul(0x7feb_352d);
    let bits = (bits ^ (bits >> 15)).wrapping_mul(0x846c_a68b);
    bits ^ (bits >> 16)
}

fn at(second: u64) -> Timestamp {
    BEGIN.plus_ms(1_000 * second)
}

/// A watch over a window from `BEGIN` on, and these queries: (resolver, second).
fn watch(queries: &[(u32, u64)]) -> Watch {
    let mut watch = Watch::new(BEGIN, 0);
    for &(resolver, second) in queries {
        watch.asked(resolver, at(second), TTL_MS);
    }
    watch
}

#[test]
fn each_further_query_stands_for_what_came_while_it_was_cached() {
    // Exposed for 5 + 2 + 3 of the 40 s, and one query of another, whose 30 s of exposure tell nothing.
    let watch = watch(&[(1, 5), (2, 10), (1, 17), (1, 30)]);
    let found = watch.estimate(at(40)).unwrap();
    assert_eq!((found.window_ms, found.queries, found.resolvers), (40_000, 4, 2));
    assert_eq!(found.arrivals, (1.0 + 2.0 * 40.0 / 10.0) + 1.0);
    assert_eq!((found.per_second(), found.per_query()), (0.25, 2.5));
    assert_eq!((found.own_way, found.uncorrected), (0, 0));
    let (narrow, wide) = (found.within_80, found.within_95);
    assert!(wide.low < narrow.low && narrow.low < 10.0 && 10.0 < narrow.high && narrow.high < wide.high);
    assert!(wide.low > 1.0 && wide.high < 40.0, "{wide:?}");
}

#[test]
fn nobody_asked_is_an_answer_too() {
    let found = watch(&[]).estimate(at(3_600)).unwrap();
    assert_eq!((found.queries, found.arrivals, found.per_query()), (0, 0.0, 1.0));
    assert!(found.within_95.low == 0.0 && (1.0..4.0).contains(&found.within_95.high), "{found:?}");
}

#[test]
fn what_was_answered_before_the_watch_has_to_expire_first() {
    let mut watch = Watch::new(BEGIN, TTL_MS);
    watch.asked(1, at(4), TTL_MS);
    assert_eq!(watch.estimate(at(9)), Err(Unknown::Settling { until: at(10) }));
    watch.turn(at(9));
    // Cached for four more seconds of the window, which begins at 10; the first query is not in it.
    for second in [15, 28, 39] {
        watch.asked(1, at(second), TTL_MS);
    }
    let found = watch.estimate(at(50)).unwrap();
    assert_eq!((found.window_ms, found.queries), (40_000, 3));
    // Exposed for 1 + 3 + 1 s, and 1 s at the end.
    assert_eq!(found.arrivals, 1.0 + 2.0 * 40.0 / 6.0);
}

#[test]
fn what_is_cached_when_a_window_ends_is_known_in_the_next() {
    let mut watch = watch(&[(1, 5), (2, 20), (1, 95)]);
    watch.turn(at(100));
    // Who has nothing cached is forgotten.
    assert_eq!(watch.resolvers.iter().map(|resolver| resolver.id).collect::<Vec<_>>(), [1]);
    assert_eq!(watch.estimate(at(100)), Err(Unknown::TooShort { queries: 0, window_ms: 0, least_ms: 1 }));
    watch.asked(1, at(107), TTL_MS);
    watch.asked(1, at(118), TTL_MS);
    let unknown = watch.estimate(at(139)).unwrap_err();
    assert_eq!(unknown, Unknown::TooShort { queries: 2, window_ms: 39_000, least_ms: 40_000 });
    assert!(unknown.to_string().contains("39000 ms is too short"), "{unknown}");
    // Exposed from 105 to 107, from 117 to 118, and from 128 to 140.
    assert_eq!(watch.estimate(at(140)).unwrap().arrivals, 1.0 + 40.0 / 15.0);
    watch.turn(at(1_000));
    assert_eq!(watch.resolvers, []);
}

#[test]
fn a_window_that_nobody_ends_begins_anew() {
    let mut watch = watch(&[(1, 5)]);
    let late = BEGIN.plus_ms(WINDOW_MS_MAX);
    watch.asked(1, late, TTL_MS);
    assert_eq!(watch.estimate(late.plus_ms(50_000)).unwrap().queries, 1);
    // Neither endless TTLs nor times that go back are followed anywhere.
    watch.asked(1, BEGIN, u32::MAX);
    let found = watch.estimate(late.plus_ms(u64::from(TTL_MS_MAX) * 4)).unwrap();
    assert!(found.arrivals.is_finite() && found.queries == 2, "{found:?}");
}

#[test]
fn a_client_with_a_clock_is_no_crowd_behind_a_cache() {
    // Each minute, through a resolver that keeps to 10 s, and through one that keeps nothing for half an hour as it was told.
    for ttl_ms in [TTL_MS, 1_800_000] {
        let mut watch = Watch::new(BEGIN, 0);
        for minute in 0..240 {
            watch.asked(1, at(60 * minute), ttl_ms);
        }
        let found = watch.estimate(at(4 * 3_600)).unwrap();
        assert!((239.0..=290.0).contains(&found.arrivals), "{found:?}");
        assert_eq!(found.uncorrected, 240);
    }
}

#[test]
fn a_flood_of_resolvers_takes_no_more_memory_and_hides_no_busy_one() {
    let mut watch = Watch::new(BEGIN, 0);
    let small = watch.size_bytes();
    assert!(small < 512, "{small}");
    let mut flood = 0_u32;
    for second in 0..2_000_u64 {
        // One asks nearly as soon as it may, and 20 others once each.
        if [0, 11, 21, 34].contains(&(second % 45)) {
            watch.asked(7, at(second), TTL_MS);
        }
        for _ in 0..20 {
            flood += 1;
            watch.asked(hash(flood), at(second), TTL_MS);
        }
        assert!(watch.size_bytes() <= WATCH_BYTES_MAX, "{}", watch.size_bytes());
    }
    let found = watch.estimate(at(2_000)).unwrap();
    assert_eq!(found.queries, 40_000 + 178);
    assert!(found.resolvers > 10_000, "{found:?}");
    // The busy one is exposed for a ninth of the time; one query of each other one hides nothing.
    let busy = found.arrivals - 40_000.0;
    assert!((1_500.0..2_200.0).contains(&busy), "{found:?}");
}

#[test]
fn resolvers_beyond_the_last_place_are_corrected_in_sum() {
    // Twice as many as there are places, each of which asks every 50 s.
    let mut watch = Watch::new(BEGIN, 0);
    let count = 2 * u32::try_from(RESOLVERS_MAX).unwrap();
    for second in 0..500_u64 {
        for resolver in (0..count).filter(|resolver| u64::from(*resolver) % 50 == second % 50) {
            watch.asked(hash(resolver), at(second), TTL_MS);
        }
    }
    let found = watch.estimate(at(500)).unwrap();
    let ratio = found.per_query();
    assert!((1.1..1.4).contains(&ratio), "of 50 s 10 are cached: {ratio}");
    assert_eq!(found.uncorrected, 0);
    assert!(found.resolvers.abs_diff(u64::from(count)) < 150, "{}", found.resolvers);
}

#[test]
fn names_are_watched_while_they_are_busy_and_told_of_when_their_window_ends() {
    let mut watches = Watches::new(100_000);
    // One name each 20 s through two resolvers, one with a long TTL, one that is hardly asked for; from the start on.
    for second in (0..250_u32).step_by(20) {
        watches.asked("busy", second % 40, at(u64::from(second)), TTL_MS, TTL_MS);
        watches.asked("slow", 1, at(u64::from(second)), 40_000, 40_000);
    }
    watches.asked("rare", 1, at(1), TTL_MS, TTL_MS);
    assert_eq!(watches.look(at(109)), []);
    let found = watches.look(at(110));
    assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["busy"]);
    assert_eq!(watches.so_far(&"nobody", at(119)), None);
    // What came later than a look is in it, as are all between 10 s, when earlier answers had expired, and now.
    assert_eq!((found[0].1.window_ms, found[0].1.resolvers), (100_000, 2));
    // 160 s are four TTLs of the slow one; the rare one goes at its first look.
    let found = watches.look(at(200));
    assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["rare", "slow"]);
    assert!(!watches.by_name.contains_key("rare") && watches.by_name.contains_key("slow"));
    assert!(watches.so_far(&"busy", at(220)).is_some_and(|estimate| estimate.window_ms == 110_000));
    watches.forget(|name| *name == "busy");
    assert_eq!(watches.names().collect::<Vec<_>>(), [&"slow"]);
    assert_eq!(watches.places, watches.by_name.values().map(|watch| watch.resolvers.len()).sum::<usize>());
}

#[test]
fn what_was_lost_makes_no_window_that_is_wrong() {
    let mut watches = Watches::new(100_000);
    for second in 0..90 {
        watches.asked(1, 1, at(second), if second == 30 { 30_000 } else { TTL_MS }, TTL_MS);
    }
    watches.lost(at(90));
    assert_eq!(watches.size_bytes(), size_of::<Watch>());
    watches.asked(1, 1, at(100), TTL_MS, TTL_MS);
    assert_eq!(watches.look(at(219)), []);
    // Whoever was answered unseen may have had the longest TTL.
    let found = watches.look(at(220));
    assert_eq!((found[0].1.window_ms, found[0].1.queries), (100_000, 0));
}

#[test]
fn neither_names_nor_their_resolvers_take_more_than_their_places() {
    let mut watches = Watches::new(3_600_000);
    let names = u32::try_from(NAMES_MAX).unwrap();
    for name in 0..names + 100 {
        watches.asked(name, hash(1_000 * name), at(5), TTL_MS, TTL_MS);
        for resolver in 0..40 {
            watches.asked(name, hash(1_000 * name + resolver), at(20), TTL_MS, 0);
        }
    }
    assert_eq!((watches.by_name.len(), watches.unwatched()), (NAMES_MAX, 4_100));
    assert!(watches.places <= PLACES_MAX + NAMES_MAX, "{}", watches.places);
    assert!(watches.size_bytes() < 8 << 20, "{}", watches.size_bytes());
    // Those that came late have a place each, so that nothing is lost of what is counted.
    let found = watches.look(at(4_000));
    assert_eq!(found.len(), NAMES_MAX);
    assert!(found.iter().all(|(_, estimate)| estimate.queries == 40), "{:?}", found.last());
    assert_eq!(watches.places, 0);
}

#[test]
fn sums_alone_give_a_lower_bound() {
    // 10 resolvers with a query in 60 s each, of which 30 s are cached.
    assert_eq!(at_least(600, 10, 3_600_000, 30_000.0), 1_200.0);
    // Nothing is cached, nobody asked, and what cannot be.
    assert_eq!(at_least(600, 10, 3_600_000, 0.0), 600.0);
    assert_eq!(at_least(0, 0, 0, 30_000.0), 0.0);
    assert_eq!(at_least(600, 1, 3_600_000, 30_000.0), 600.0);
    // Unequal ones hide more: 9 queries in each minute of one, and 1 of the other.
    let (both, apart) = (
        at_least(600, 2, 3_600_000, 5_000.0),
        at_least(540, 1, 3_600_000, 5_000.0) + at_least(60, 1, 3_600_000, 5_000.0),
    );
    assert!(both < 0.6 * apart, "{both} {apart}");
}
