//! How many signatures are made in a second. A signature costs some 27 µs of a core, and a question for a name
//! that nobody asked for before costs one, so that whoever asks for random names could have the server do nothing
//! else. Each budget is one word (GCRA: the time at which it would be full again).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use reveille_core::model::Timestamp;

/// How much of a second's signatures may be made at once, one part in this many: a worker is not kept from other
/// questions for longer.
const BURST_PART: u64 = 10;

/// Signatures per second; 0 is none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignatureRates {
    /// For names that exist, which are as many as there are, asked for over UDP by anybody.
    pub known_per_s: u32,
    /// For names without end: those that do not exist, and those under wildcards, asked for over UDP by anybody.
    pub endless_per_s: u32,
    /// For those that have proven their address, by TCP or by a cookie.
    pub proven_per_s: u32,
}

impl Default for SignatureRates {
    /// Up to a quarter of a core by forged questions, and nearly as much by proven ones.
    fn default() -> Self {
        Self { known_per_s: 6_000, endless_per_s: 2_000, proven_per_s: 8_000 }
    }
}

#[derive(Debug)]
pub(super) struct Budgets {
    known: Budget,
    endless: Budget,
    proven: Budget,
}

impl Budgets {
    pub fn new(rates: &SignatureRates) -> Self {
        Self {
            known: Budget::new(rates.known_per_s),
            endless: Budget::new(rates.endless_per_s),
            proven: Budget::new(rates.proven_per_s),
        }
    }

    /// Takes `count` signatures, all or none.
    pub fn take(&self, count: usize, proven: bool, endless: bool, now: Timestamp) -> bool {
        let budget = match (proven, endless) {
            (true, _) => &self.proven,
            (false, true) => &self.endless,
            (false, false) => &self.known,
        };
        budget.take(u64::try_from(count).unwrap_or(u64::MAX), now)
    }
}

#[derive(Debug)]
struct Budget {
    /// From one signature to the next; 0: none at all.
    pause_ns: u64,
    burst_ns: u64,
    full_at_ns: AtomicU64,
}

impl Budget {
    fn new(per_s: u32) -> Self {
        const SECOND_NS: u64 = 1_000_000_000;
        let pause_ns = SECOND_NS.checked_div(per_s.into()).unwrap_or(0);
        // One answer takes a few at most; so many can always be made.
        let burst_ns = (SECOND_NS / BURST_PART).max(pause_ns * 4);
        Self { pause_ns, burst_ns, full_at_ns: AtomicU64::new(0) }
    }

    fn take(&self, count: u64, now: Timestamp) -> bool {
        if self.pause_ns == 0 {
            return false;
        }
        let now_ns = now.as_ms().saturating_mul(1_000_000);
        let cost_ns = self.pause_ns.saturating_mul(count);
        let taken = |full_at: u64| {
            let full_at = full_at.max(now_ns).saturating_add(cost_ns);
            (full_at - now_ns <= self.burst_ns).then_some(full_at)
        };
        self.full_at_ns.fetch_update(Relaxed, Relaxed, taken).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken_at(budget: &Budget, ms: u64) -> usize {
        (0..100_000).take_while(|_| budget.take(1, Timestamp::from_ms(ms))).count()
    }

    #[test]
    fn so_many_a_second_and_a_part_of_them_at_once() {
        let budget = Budget::new(2_000);
        assert_eq!(taken_at(&budget, 1_000), 200);
        assert_eq!(taken_at(&budget, 1_000), 0);
        assert_eq!((1_001..=2_000).map(|ms| taken_at(&budget, ms)).sum::<usize>(), 2_000);
        assert_eq!(taken_at(&budget, 100_000), 200);
        assert_eq!(taken_at(&Budget::new(0), 1_000), 0);
        assert!(Budget::new(1).take(4, Timestamp::from_ms(1_000)));
    }

    #[test]
    fn random_names_do_not_use_up_what_others_need() {
        let budgets = Budgets::new(&SignatureRates::default());
        let now = Timestamp::from_ms(1_000);
        while budgets.take(1, false, true, now) {}
        assert!(budgets.take(3, false, false, now));
        assert!(budgets.take(3, true, true, now));
    }
}
