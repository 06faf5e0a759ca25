//! Seeds of the simulation: none fails, the same seed tells the same story, and deliberate bugs are found.
//!
//! `REVEILLE_TEST_SEEDS` sets how many are run.
#![allow(clippy::panic, clippy::unwrap_used, missing_docs, reason = "a test fails by panicking")]

use std::thread;

use reveille_sim::story::{self, MUTATIONS};

/// Seeds within which each deliberate bug is found; the rarest needs some hundreds.
const FOUND_WITHIN: u64 = 1_000;

/// The first seed of so many that fails, and why.
fn first_failure(seeds: u64, mutation: Option<&'static str>) -> Option<(u64, String)> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    story::failures(0..seeds, mutation, threads, false).into_iter().next()
}

#[test]
fn nothing_is_lost_nothing_runs_twice_and_nothing_stands_still() {
    let seeds = std::env::var("REVEILLE_TEST_SEEDS").ok().map_or(500, |seeds| seeds.parse().unwrap());
    if let Some((seed, violation)) = first_failure(seeds, None) {
        let trace = story::run(seed, None, true).trace;
        let tail = trace.len().saturating_sub(60);
        panic!("seed {seed}: {violation}\n…\n{}", trace[tail..].join("\n"));
    }
}

#[test]
fn a_seed_tells_the_same_story_again() {
    for seed in 0..20 {
        let (first, again) = (story::run(seed, None, true), story::run(seed, None, true));
        assert_eq!(first.trace, again.trace, "seed {seed}");
        assert!(first.trace.len() > 20, "something happens in seed {seed}");
    }
}

#[test]
fn every_deliberate_bug_is_found() {
    for mutation in MUTATIONS {
        let found = first_failure(FOUND_WITHIN, Some(mutation));
        let (seed, violation) = found.unwrap_or_else(|| panic!("{mutation} is not found"));
        println!("{mutation}: seed {seed}: {}", violation.lines().next().unwrap_or_default());
    }
}
