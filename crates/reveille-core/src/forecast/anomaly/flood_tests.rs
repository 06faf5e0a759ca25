//! Floods and crowds as they are seen at a name server.

use super::*;

/// Two thousand queries where a hundred are usual.
fn busy() -> Interval {
    Interval { queries: 2_000, expected: 100.0, spread: 20.0, clients: 400, ..Interval::default() }
}

fn judged(interval: &Interval) -> Judgement {
    judge(interval, &Limits::default())
}

#[test]
fn many_real_clients_on_one_name_are_demand() {
    let judgement =
        judged(&Interval { top_name: 1_900, top_client: 50, proven: 30, connected: 350, ..busy() });
    assert_eq!((judgement.nature, judgement.demand), (Nature::FlashCrowd, 2_000));
    assert!(!judgement.nature.is_flood());
    assert_eq!(judgement.reason.to_string(), "400 clients, 95 % of their queries for one name");
}

#[test]
fn random_subdomains_are_kept_out_and_what_else_is_asked_is_kept() {
    let flood = Interval { missing: 1_890, missing_names: 1_850, top_name: 90, proven: 400, ..busy() };
    let judgement = judged(&flood);
    assert_eq!((judgement.nature, judgement.demand), (Nature::RandomSubdomains, 110));
    // One missing name that everybody asks for is a mistake somewhere, not a flood of names.
    let judgement = judged(&Interval { missing_names: 1, ..flood });
    assert_ne!(judgement.nature, Nature::RandomSubdomains);
}

#[test]
fn one_source_is_kept_out_and_the_others_are_kept() {
    let flood = Interval { top_name: 2_000, top_client: 1_880, top_client_existing: 1_880, ..busy() };
    let judgement = judged(&Interval { connected: 10, clients: 60, ..flood });
    assert_eq!((judgement.nature, judgement.demand), (Nature::SingleSource, 120));
}

#[test]
fn a_resolver_that_asks_for_many_is_no_single_source() {
    let crowd =
        Interval { top_name: 2_000, top_client: 1_900, top_client_existing: 1_900, clients: 8, ..busy() };
    let judgement = judged(&Interval { connected: 700, ..crowd });
    assert_eq!((judgement.nature, judgement.demand), (Nature::FlashCrowd, 2_000));
    assert_eq!(judgement.reason, Reason::Crowd { clients: 700, share: 1.0 });
    assert_eq!(judged(&crowd).nature, Nature::SingleSource);
}

#[test]
fn sources_used_once_that_prove_nothing_are_made_up() {
    let flood = Interval { top_name: 2_000, top_client: 3, clients: 1_950, ..busy() };
    let judgement = judged(&flood);
    assert_eq!((judgement.nature, judgement.demand), (Nature::Spoofed, 100));
    // The same counts, but they connect: a crowd of which everybody asks once.
    let judgement = judged(&Interval { connected: 1_800, ..flood });
    assert_eq!((judgement.nature, judgement.demand), (Nature::FlashCrowd, 2_000));
}

#[test]
fn the_first_queries_for_a_quiet_name_are_demand() {
    let first = Interval { queries: 12, top_name: 12, top_client: 12, clients: 1, ..Interval::default() };
    let judgement = judged(&first);
    assert_eq!((judgement.nature, judgement.demand), (Nature::Usual, 12));
    assert_eq!(judgement.reason, Reason::Few { queries: 12 });
}

#[test]
fn within_the_threshold_nothing_is_judged() {
    let judgement = judged(&Interval { queries: 150, missing: 150, missing_names: 150, ..busy() });
    assert_eq!((judgement.nature, judgement.demand), (Nature::Usual, 0));
    let judgement = judged(&Interval { queries: 150, top_client: 150, ..busy() });
    assert_eq!((judgement.nature, judgement.demand), (Nature::Usual, 150));
}

#[test]
fn what_fits_nothing_is_demand_as_far_as_it_was_expected() {
    let few = Interval { clients: 4, top_client: 600, top_name: 1_000, proven: 2_000, ..busy() };
    let judgement = judged(&few);
    assert_eq!((judgement.nature, judgement.demand), (Nature::Unexplained, 100));
    assert_eq!(judgement.reason, Reason::NoPattern { clients: 4, share: 0.5 });
}

#[test]
fn counts_that_contradict_each_other_are_survived() {
    let nonsense = Interval { queries: 1_000, missing: 5_000, missing_names: 9_000, ..Interval::default() };
    assert_eq!(judged(&nonsense).demand, 0);
    let nonsense = Interval { expected: f64::NAN, spread: f64::NAN, ..busy() };
    assert_eq!(judged(&nonsense).nature, Nature::Usual);
}

#[test]
fn every_limit_out_of_range_is_told() {
    assert_eq!(Limits::default().faults(), []);
    let limits = Limits {
        threshold_sd: 0.0,
        flood_queries: 0,
        majority: 0.0,
        crowd_clients: 0,
        queries_per_source: 0.5,
        believed: 2.0,
    };
    let keys: Vec<&str> = limits.faults().iter().map(|fault| fault.key).collect();
    assert_eq!(
        keys,
        ["threshold_sd", "flood_queries", "majority", "crowd_clients", "queries_per_source", "believed"]
    );
}
