//! Wake budgets: who may use up what, and who may not.

use super::super::bucket::{Limit, Micros};
use super::super::budget::{WakeBudgets, WakeLimit, WakeLimits, ZONES_MAX};
use super::super::client::Source::{self, Proven, Unproven};
use super::Numbers;

const MINUTE_US: u64 = 60_000_000;

fn limits(client: u32, unproven: u32, proven: u32, host: u32) -> WakeLimits {
    let per_min = |count| Limit::new(count, MINUTE_US, count);
    WakeLimits::new(per_min(client), per_min(unproven), per_min(proven), per_min(host))
}

fn ms(ms: u64) -> Micros {
    Micros::from_ms(ms)
}

/// How many of `tries` pass, and the limit that refused the last one.
fn spend(
    budgets: &WakeBudgets,
    limits: &WakeLimits,
    (client, source, zone): (u64, Source, u16),
    at_ms: u64,
    tries: u32,
) -> (u32, Option<WakeLimit>) {
    let mut last = None;
    let passed = (0..tries)
        .map(|_| {
            last = budgets.spend(limits, client, source, zone, ms(at_ms)).err();
            u32::from(last.is_none())
        })
        .sum();
    (passed, last)
}

#[test]
fn each_limit_refuses_by_its_name() {
    let budgets = WakeBudgets::default();
    let limits = limits(10, 15, 20, 100);
    assert_eq!(spend(&budgets, &limits, (1, Unproven, 0), 1, 20), (10, Some(WakeLimit::Client)));
    assert_eq!(spend(&budgets, &limits, (2, Unproven, 0), 1, 20), (5, Some(WakeLimit::Zone)));
    // Other zones are not concerned; the host is half spent by unproven ones then.
    assert_eq!(spend(&budgets, &limits, (2, Unproven, 1), 1, 20), (5, Some(WakeLimit::Client)));
    for client in 10..20 {
        spend(&budgets, &limits, (client, Unproven, u16::try_from(client).unwrap()), 1, 10);
    }
    assert_eq!(spend(&budgets, &limits, (30, Unproven, 30), 1, 20), (0, Some(WakeLimit::Host)));
    // A zone's number beyond the last shares with one of the others.
    let beyond = u16::try_from(ZONES_MAX).unwrap();
    assert_eq!(spend(&budgets, &limits, (31, Unproven, beyond), 1, 20), (0, Some(WakeLimit::Zone)));
}

#[test]
fn a_refusal_costs_nothing_at_the_other_limits() {
    let budgets = WakeBudgets::default();
    let tight = limits(10, 1, 1, 100);
    // The zone is spent; a client asks on and on.
    assert_eq!(spend(&budgets, &tight, (1, Unproven, 0), 1, 1_000), (1, Some(WakeLimit::Zone)));
    // Its own budget is there for another zone, and so is the host's.
    assert_eq!(
        spend(&budgets, &limits(10, 50, 50, 100), (1, Unproven, 1), 1, 100),
        (9, Some(WakeLimit::Client))
    );
    // Host spent: neither client nor zone is charged.
    let budgets = WakeBudgets::default();
    let small_host = limits(10, 20, 20, 4);
    assert_eq!(spend(&budgets, &small_host, (1, Unproven, 0), 1, 1_000), (2, Some(WakeLimit::Host)));
    let large_host = limits(10, 20, 20, 0);
    assert_eq!(spend(&budgets, &large_host, (1, Unproven, 0), 1, 1_000), (8, Some(WakeLimit::Client)));
    assert_eq!(spend(&budgets, &large_host, (2, Unproven, 0), 1, 1_000), (10, Some(WakeLimit::Client)));
    assert_eq!(spend(&budgets, &large_host, (3, Unproven, 0), 1, 1_000), (0, Some(WakeLimit::Zone)));
}

#[test]
fn a_flood_of_forged_sources_starves_nobody_who_proves_theirs() {
    let budgets = WakeBudgets::default();
    let limits = limits(30, 120, 300, 600);
    let mut numbers = Numbers(1);
    let (mut flood, mut proven, mut refused) = (0u32, 0u32, 0u32);
    let victim = numbers.next();
    // Two minutes; each millisecond 20 forged questions, some of them in the name of an honest network, and every
    // 2 s a wake of that network with a cookie. More zones than the host's budget has room for are attacked.
    for now in 0..120_000u64 {
        for number in 0..20 {
            let client = if number == 0 { victim } else { numbers.next() };
            let zone = u16::try_from(numbers.below(10)).unwrap();
            flood += u32::from(budgets.spend(&limits, client, Unproven, zone, ms(now)).is_ok());
        }
        if now % 2_000 == 0 {
            match budgets.spend(&limits, victim, Proven, 0, ms(now)) {
                Ok(()) => proven += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert_eq!((proven, refused), (60, 0));
    // Half of the host's burst, and what comes in two minutes.
    assert!(flood <= 300 + 1_200, "{flood}");
}

#[test]
fn a_zone_spent_by_unproven_sources_is_whole_for_proven_ones() {
    let budgets = WakeBudgets::default();
    let limits = limits(0, 20, 50, 0);
    assert_eq!(spend(&budgets, &limits, (1, Unproven, 7), 1, 1_000), (20, Some(WakeLimit::Zone)));
    assert_eq!(spend(&budgets, &limits, (1, Proven, 7), 1, 1_000), (50, Some(WakeLimit::Zone)));
    assert_eq!(spend(&budgets, &limits, (1, Unproven, 8), 1, 1_000), (20, Some(WakeLimit::Zone)));
}

#[test]
fn proven_sources_go_first_when_the_host_is_busy() {
    let budgets = WakeBudgets::default();
    let limits = limits(0, 0, 0, 60);
    // The flood takes half, and from then on each second's token if nobody else does.
    let (mut flood, mut proven) = (0, 0);
    for now in (0..600_000u64).step_by(10) {
        flood += spend(&budgets, &limits, (1, Unproven, 0), now, 5).0;
        if now >= 60_000 {
            proven += spend(&budgets, &limits, (2, Proven, 0), now, 1).0;
        }
    }
    // Proven ones want all there is from the first minute on: they get it, but for what the flood had before.
    assert!(proven >= 539 + 30, "{proven}");
    assert!(flood <= 30 + 60 + 1, "{flood}");
}

#[test]
fn threads_together_spend_no_more_than_there_is_and_leave_nothing_charged() {
    let budgets = WakeBudgets::default();
    let tight = limits(1_000, 1_000, 1_000, 100);
    let total: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| spend(&budgets, &tight, (1, Proven, 0), 1, 5_000).0)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(total, 100);
    // What was taken and given back in races is there again.
    let large_host = limits(1_000, 1_000, 1_000, 0);
    assert_eq!(spend(&budgets, &large_host, (1, Proven, 0), 1, 5_000).0, 900);
}

#[test]
fn random_clients_without_other_limits_are_bounded_by_memory() {
    let budgets = WakeBudgets::default();
    let limits = limits(10, 0, 0, 0);
    let mut numbers = Numbers(4);
    let passed: u32 =
        (0..500_000).map(|_| spend(&budgets, &limits, (numbers.next(), Unproven, 0), 1, 1).0).sum();
    // Seven owners in each set, and one bucket for the rest.
    assert!(passed <= 1_024 * (7 * 2 + 10), "{passed}");
}
