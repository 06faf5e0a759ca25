//! Random moments, reproducible by their seed, and the counts of what is repeated.

use std::sync::Mutex;
use std::time::Duration;

use crate::small::say;

/// A source of random numbers that several threads may draw from (SplitMix64).
pub struct Chance(Mutex<u64>);

impl Chance {
    /// Seeded by `REVEILLE_TEST_SEED`, or by the system; the seed is printed.
    pub fn new(what: &str) -> Self {
        let given = std::env::var("REVEILLE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let mut bytes = [0; 4];
            getrandom::fill(&mut bytes).unwrap();
            u64::from(u32::from_ne_bytes(bytes))
        });
        say(&format!("{what}: REVEILLE_TEST_SEED={seed}"));
        Self(Mutex::new(seed))
    }

    /// A number below `bound`.
    pub fn below(&self, bound: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// A time below `ms_max`: when something comes is what is varied here, not what is waited for.
    pub fn pause(&self, ms_max: u64) -> Duration {
        Duration::from_micros(self.below(ms_max * 1_000))
    }
}

/// The count in the environment variable, or the short form's.
pub fn count(variable: &str, short: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, which is no count")),
        Err(_) => short,
    }
}
