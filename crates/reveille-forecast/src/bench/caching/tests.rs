//! What is said of a name's demand holds, for resolvers whose demand is known.

use super::*;

/// With so many windows a coverage is within 3 points of what it is by 99 %.
const WINDOWS: u32 = 1_200;

fn of(name: Name, expected_queries: f64) -> Row {
    run(Cell { name, expected_queries }, WINDOWS, 1)
}

fn honest(ttl_s: u32, resolvers: u32, shares: Shares, demand_per_ttl: f64) -> Name {
    Name::honest(1_000 * ttl_s, resolvers, shares, demand_per_ttl)
}

/// As exact as can be, and as sure as it says.
fn check(row: &Row) {
    assert!(row.bias.abs() < 0.025, "{row}");
    assert!((row.coverage_80 - 0.80).abs() <= 0.03, "{row}");
    assert!((row.coverage_95 - 0.95).abs() <= 0.03, "{row}");
}

#[test]
fn four_hundred_queries_tell_demand_as_exactly_as_can_be() {
    let cells = [
        (5, 1, Shares::Equal, 50.0),
        (300, 1, Shares::Equal, 5.0),
        (5, 10, Shares::Zipf, 0.5),
        (60, 10, Shares::Zipf, 50.0),
        (300, 100, Shares::Equal, 50.0),
        (30, 100, Shares::Zipf, 5.0),
        (5, 1_000, Shares::Equal, 50.0),
        (300, 1_000, Shares::Zipf, 5.0),
        (60, 1_000, Shares::Zipf, 50.0),
    ];
    for (ttl_s, resolvers, shares, demand_per_ttl) in cells {
        let row = of(honest(ttl_s, resolvers, shares, demand_per_ttl), 400.0);
        check(&row);
        assert!(row.error < 1.15 * row.error_least && row.error < 0.08, "{row}");
        // What is hidden is a good part of it mostly: raw counts would be far off.
        let usual = if row.error_least > 0.055 { 0.8 } else { 0.9 };
        assert!(row.within_10 > usual, "{row}");
    }
    let raw = of(honest(60, 1, Shares::Equal, 50.0), 400.0).raw;
    assert!((0.015..0.025).contains(&raw), "one in 51 is seen: {raw}");
    for shares in [Shares::Equal, Shares::Zipf] {
        let row = of(honest(60, 100, shares, 50.0), 2_000.0);
        assert!(row.within_10 > 0.99, "{row}");
    }
}

#[test]
fn intervals_hold_as_often_as_they_say_where_little_is_known() {
    check(&of(honest(60, 1, Shares::Equal, 50.0), 25.0));
    check(&of(honest(60, 10, Shares::Equal, 5.0), 25.0));
    check(&of(honest(60, 100, Shares::Equal, 5.0), 100.0));
    check(&of(honest(60, 1_000, Shares::Zipf, 5.0), 100.0));
    // Resolvers each of which sees 50 arrivals in a TTL.
    check(&of(honest(60, 10, Shares::Equal, 500.0), 100.0));
    check(&of(honest(60, 100, Shares::Zipf, 259.0), 400.0));
}

#[test]
fn a_ttl_that_changes_under_way_changes_nothing() {
    for (ttl_ms, ttl_after_ms) in [(5_000, 300_000), (300_000, 5_000)] {
        for resolvers in [1, 100] {
            let name = Name::honest(ttl_ms, resolvers, Shares::Zipf, 50.0);
            check(&of(Name { ttl_after_ms, ..name }, 400.0));
        }
    }
}

#[test]
fn resolvers_that_keep_answers_otherwise_are_found_out() {
    let habits = [
        (Habit::BeginOfSecond, 20.0),
        (Habit::EndOfSecond, 20.0),
        (Habit::Capped(30_000.0), 20.0),
        (Habit::Minimal(300_000.0), 2.0),
        (Habit::Prefetch, 10.0),
    ];
    for (habit, demand_per_ttl) in habits {
        let row = of(Name { habit, ..honest(60, 1, Shares::Equal, demand_per_ttl) }, 400.0);
        check(&row);
        let is_rounded = matches!(habit, Habit::BeginOfSecond | Habit::EndOfSecond);
        assert_eq!(row.own_way > 0.9, !is_rounded, "{row}");
        assert!(row.uncorrected < 0.1, "{row}");
    }
    // Without a cache nothing is hidden.
    let row = of(Name { habit: Habit::Capped(0.0), ..honest(60, 1, Shares::Equal, 20.0) }, 400.0);
    check(&row);
    assert!((row.raw - 1.0).abs() < 0.01 && row.own_way > 0.9, "{row}");
}

#[test]
fn what_cannot_be_told_is_known_to_be_so() {
    // Several caches behind an address: a lower bound, and it is said that it is one.
    let row = of(Name { habit: Habit::Caches(4), ..honest(60, 1, Shares::Equal, 20.0) }, 400.0);
    assert!(row.bias < -0.5 && row.own_way > 0.9 && row.uncorrected > 0.3, "{row}");
    // Clients that come five at a time are counted as one, and nothing shows it.
    let row = of(Name { habit: Habit::Bursts(5.0), ..honest(60, 10, Shares::Zipf, 20.0) }, 400.0);
    assert!((row.bias + 0.8).abs() < 0.02, "{row}");
}
