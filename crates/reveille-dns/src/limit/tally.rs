//! Counters of the gate: one for each verdict. Each thread counts for itself; a snapshot sums them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::budget::WakeLimit;
use super::client::Source;
use super::cookie::CookieStatus;
use super::list::Action;
use super::rate::{Kind, RateVerdict};

/// What is counted. With `dry_run` a verdict is counted as if it had been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counter {
    /// Questions that a rule of the lists fitted.
    Rule(Action),
    /// Questions by what their cookies were worth.
    Cookie(CookieStatus),
    /// Answers BADCOOKIE, to ask for the cookie that comes with it.
    BadCookie,
    /// Answers truncated because a question had no cookie, so that it comes over TCP.
    CookieMissing,
    /// Answers by kind and verdict of the rate limit. Those that are not limited are not among them.
    Rate(Kind, RateVerdict),
    /// Answers that are not limited: proven sources and exempt ones.
    RateFree,
    /// Answers that were counted in a shared bucket because a set was full.
    RateShared,
    /// Wakes that passed, by source.
    Wake(Source),
    /// Wakes that passed because a rule exempts them; in no budget.
    WakeExempt,
    /// Wakes of unproven sources that a limit refused.
    WakeRefusedUnproven(WakeLimit),
    /// Wakes of proven sources that a limit refused.
    WakeRefusedProven(WakeLimit),
}

const STATUSES: [CookieStatus; 5] = [
    CookieStatus::None,
    CookieStatus::ClientOnly,
    CookieStatus::Valid,
    CookieStatus::Renew,
    CookieStatus::Bad,
];
const ACTIONS: [Action; 4] = [Action::Refuse, Action::Drop, Action::NoWake, Action::Exempt];
const VERDICTS: [RateVerdict; 3] = [RateVerdict::Pass, RateVerdict::Slip, RateVerdict::Drop];
const LIMITS: [WakeLimit; 5] =
    [WakeLimit::Rule, WakeLimit::Client, WakeLimit::Zone, WakeLimit::Host, WakeLimit::Mode];

/// Counters of a thread.
const COUNTERS: usize = 4 + 5 + 2 + 12 + 2 + 3 + 10;

impl Counter {
    /// Every counter, in the order of their indices.
    pub fn all() -> impl Iterator<Item = Self> {
        let rates = Kind::ALL.into_iter().flat_map(|kind| VERDICTS.map(|verdict| Self::Rate(kind, verdict)));
        rates
            .chain([Self::RateFree, Self::RateShared])
            .chain(STATUSES.map(Self::Cookie))
            .chain([Self::BadCookie, Self::CookieMissing])
            .chain(ACTIONS.map(Self::Rule))
            .chain([Self::Wake(Source::Unproven), Self::Wake(Source::Proven), Self::WakeExempt])
            .chain(LIMITS.map(Self::WakeRefusedUnproven))
            .chain(LIMITS.map(Self::WakeRefusedProven))
    }

    /// What it counts and which of them, for metrics: `("rate", "nxdomain_slip")`.
    pub const fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Rule(Action::Refuse) => ("rule", "refuse"),
            Self::Rule(Action::Drop) => ("rule", "drop"),
            Self::Rule(Action::NoWake) => ("rule", "no_wake"),
            Self::Rule(Action::Exempt) => ("rule", "exempt"),
            Self::Cookie(CookieStatus::None) => ("cookie", "none"),
            Self::Cookie(CookieStatus::ClientOnly) => ("cookie", "client_only"),
            Self::Cookie(CookieStatus::Valid) => ("cookie", "valid"),
            Self::Cookie(CookieStatus::Renew) => ("cookie", "renew"),
            Self::Cookie(CookieStatus::Bad) => ("cookie", "bad"),
            Self::BadCookie => ("cookie", "badcookie_sent"),
            Self::CookieMissing => ("cookie", "missing_truncated"),
            Self::Rate(Kind::Positive, RateVerdict::Pass) => ("rate", "positive_pass"),
            Self::Rate(Kind::Positive, RateVerdict::Slip) => ("rate", "positive_slip"),
            Self::Rate(Kind::Positive, RateVerdict::Drop) => ("rate", "positive_drop"),
            Self::Rate(Kind::NoData, RateVerdict::Pass) => ("rate", "nodata_pass"),
            Self::Rate(Kind::NoData, RateVerdict::Slip) => ("rate", "nodata_slip"),
            Self::Rate(Kind::NoData, RateVerdict::Drop) => ("rate", "nodata_drop"),
            Self::Rate(Kind::NxDomain, RateVerdict::Pass) => ("rate", "nxdomain_pass"),
            Self::Rate(Kind::NxDomain, RateVerdict::Slip) => ("rate", "nxdomain_slip"),
            Self::Rate(Kind::NxDomain, RateVerdict::Drop) => ("rate", "nxdomain_drop"),
            Self::Rate(Kind::Error, RateVerdict::Pass) => ("rate", "error_pass"),
            Self::Rate(Kind::Error, RateVerdict::Slip) => ("rate", "error_slip"),
            Self::Rate(Kind::Error, RateVerdict::Drop) => ("rate", "error_drop"),
            Self::RateFree => ("rate", "not_limited"),
            Self::RateShared => ("rate", "in_shared_bucket"),
            Self::Wake(Source::Unproven) => ("wake", "unproven_pass"),
            Self::Wake(Source::Proven) => ("wake", "proven_pass"),
            Self::WakeExempt => ("wake", "exempt"),
            Self::WakeRefusedUnproven(WakeLimit::Rule) => ("wake", "unproven_refused_rule"),
            Self::WakeRefusedUnproven(WakeLimit::Client) => ("wake", "unproven_refused_client"),
            Self::WakeRefusedUnproven(WakeLimit::Zone) => ("wake", "unproven_refused_zone"),
            Self::WakeRefusedUnproven(WakeLimit::Host) => ("wake", "unproven_refused_host"),
            Self::WakeRefusedUnproven(WakeLimit::Mode) => ("wake", "unproven_refused_mode"),
            Self::WakeRefusedProven(WakeLimit::Rule) => ("wake", "proven_refused_rule"),
            Self::WakeRefusedProven(WakeLimit::Client) => ("wake", "proven_refused_client"),
            Self::WakeRefusedProven(WakeLimit::Zone) => ("wake", "proven_refused_zone"),
            Self::WakeRefusedProven(WakeLimit::Host) => ("wake", "proven_refused_host"),
            Self::WakeRefusedProven(WakeLimit::Mode) => ("wake", "proven_refused_mode"),
        }
    }

    /// The most frequent ones first, so that they share cache lines.
    const fn index(self) -> usize {
        match self {
            Self::Rate(kind, verdict) => {
                let verdict = match verdict {
                    RateVerdict::Pass => 0,
                    RateVerdict::Slip => 1,
                    RateVerdict::Drop => 2,
                };
                kind.index() as usize * 3 + verdict
            }
            Self::RateFree => 12,
            Self::RateShared => 13,
            Self::Cookie(status) => match status {
                CookieStatus::None => 14,
                CookieStatus::ClientOnly => 15,
                CookieStatus::Valid => 16,
                CookieStatus::Renew => 17,
                CookieStatus::Bad => 18,
            },
            Self::BadCookie => 19,
            Self::CookieMissing => 20,
            Self::Rule(action) => match action {
                Action::Refuse => 21,
                Action::Drop => 22,
                Action::NoWake => 23,
                Action::Exempt => 24,
            },
            Self::Wake(Source::Unproven) => 25,
            Self::Wake(Source::Proven) => 26,
            Self::WakeExempt => 27,
            Self::WakeRefusedUnproven(limit) => 28 + limit_index(limit),
            Self::WakeRefusedProven(limit) => 33 + limit_index(limit),
        }
    }
}

const fn limit_index(limit: WakeLimit) -> usize {
    match limit {
        WakeLimit::Rule => 0,
        WakeLimit::Client => 1,
        WakeLimit::Zone => 2,
        WakeLimit::Host => 3,
        WakeLimit::Mode => 4,
    }
}

/// Who writes a tally.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// One thread: counting is a plain addition. If more do after all, counts get lost, and nothing else.
    One,
    /// Several, such as the tasks of TCP: counting is an atomic addition.
    Several,
}

/// Counters of one thread, on cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
pub struct GateTally {
    counts: [AtomicU64; COUNTERS],
    /// Answers that were over a limit: whose turn it is to slip.
    over: AtomicU64,
    writers: Writers,
}

impl GateTally {
    pub(crate) fn new(writers: Writers) -> Self {
        Self { counts: [const { AtomicU64::new(0) }; COUNTERS], over: AtomicU64::new(0), writers }
    }

    /// Counts one.
    #[inline]
    pub(crate) fn count(&self, counter: Counter) {
        if let Some(count) = self.counts.get(counter.index()) {
            self.add(count);
        }
    }

    /// Counts an answer that is over a limit; gives how many there have been, with it.
    pub(crate) fn count_over(&self) -> u64 {
        self.add(&self.over).wrapping_add(1)
    }

    #[inline]
    fn add(&self, count: &AtomicU64) -> u64 {
        match self.writers {
            Writers::One => {
                let before = count.load(Relaxed);
                count.store(before.wrapping_add(1), Relaxed);
                before
            }
            Writers::Several => count.fetch_add(1, Relaxed),
        }
    }

    /// Adds what was counted here.
    pub(crate) fn add_to(&self, sum: &mut GateCounts) {
        for (total, own) in sum.0.iter_mut().zip(&self.counts) {
            *total = total.wrapping_add(own.load(Relaxed));
        }
    }
}

/// What was counted since the start, over all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateCounts([u64; COUNTERS]);

impl Default for GateCounts {
    fn default() -> Self {
        Self([0; COUNTERS])
    }
}

impl GateCounts {
    /// One of them.
    pub fn of(&self, counter: Counter) -> u64 {
        self.0.get(counter.index()).copied().unwrap_or_default()
    }

    /// Wakes that any limit refused, whatever the source.
    pub fn wakes_refused(&self, limit: WakeLimit) -> u64 {
        self.of(Counter::WakeRefusedUnproven(limit)) + self.of(Counter::WakeRefusedProven(limit))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> {
        Counter::all().zip(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place_and_name() {
        let all: Vec<Counter> = Counter::all().collect();
        assert_eq!(all.len(), COUNTERS);
        for (place, counter) in all.iter().enumerate() {
            assert_eq!(counter.index(), place, "{counter:?}");
        }
        let names: std::collections::BTreeSet<_> = all.iter().map(|counter| counter.labels()).collect();
        assert_eq!(names.len(), COUNTERS);
    }

    #[test]
    fn what_many_threads_count_together_is_exact() {
        let tally = GateTally::new(Writers::Several);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| tally.count(Counter::RateFree)));
            }
        });
        let mut sum = GateCounts::default();
        tally.add_to(&mut sum);
        assert_eq!(sum.of(Counter::RateFree), 40_000);
        assert_eq!(sum.iter().map(|(_, count)| count).sum::<u64>(), 40_000);
    }
}
