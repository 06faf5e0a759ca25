//! How many requests there were in which second, by service: what the history takes over.

use std::collections::BTreeMap;

use reveille_core::model::DomainName;

/// Most counts that wait to be taken, some 120 bytes each.
pub const COUNTS_MAX: usize = 65_536;
/// Requests older than that, in seconds, are counted by the minute: the history has no seconds of them.
const SECONDS_OF_LAST: u64 = 3_600;
const MINUTE_S: u64 = 60;

/// What requests of one second, or of one minute that is long over, come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Requests.
    pub requests: u64,
    /// Their execution times, added up, in ms.
    pub execution_ms: u64,
}

/// Counts that nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct Counts {
    by_second: BTreeMap<(DomainName, u64), Amount>,
}

impl Counts {
    /// Counts a request; false if there is no room for it.
    pub fn add(&mut self, service: &DomainName, at_s: u64, now_s: u64, execution_ms: u64) -> bool {
        let is_recent = now_s.saturating_sub(at_s) <= SECONDS_OF_LAST;
        // What is ahead of this clock is counted as now: the history takes nothing of the future.
        let at_s = if is_recent { at_s.min(now_s) } else { at_s / MINUTE_S * MINUTE_S };
        let key = (service.clone(), at_s);
        if self.by_second.len() >= COUNTS_MAX && !self.by_second.contains_key(&key) {
            return false;
        }
        let amount = self.by_second.entry(key).or_default();
        amount.requests += 1;
        amount.execution_ms = amount.execution_ms.saturating_add(execution_ms);
        true
    }

    /// Whether there is room for so many more.
    pub fn has_room(&self, more: usize) -> bool {
        self.by_second.len() + more <= COUNTS_MAX
    }

    /// Takes out what there is. What comes later of the same seconds is to be added.
    pub fn take(&mut self) -> BTreeMap<(DomainName, u64), Amount> {
        std::mem::take(&mut self.by_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_taken_once_by_second_of_late_and_by_minute_before_and_are_bounded() {
        let (mut counts, name) = (Counts::default(), "a.vm.test".parse::<DomainName>().unwrap());
        let now_s = 1_000_000_000;
        for at_s in [now_s - 1, now_s, now_s - 1, now_s + 500, now_s - 7_201, now_s - 7_211] {
            assert!(counts.add(&name, at_s, now_s, 10));
        }
        let taken: Vec<_> = counts.take().into_iter().map(|((_, at_s), amount)| (at_s, amount)).collect();
        let two = Amount { requests: 2, execution_ms: 20 };
        assert_eq!(taken, [(999_992_760, two), (now_s - 1, two), (now_s, two)]);
        assert!(counts.take().is_empty());
        for n in 0..COUNTS_MAX {
            let service = format!("s{}.vm.test", n / 3_000).parse().unwrap();
            assert!(counts.add(&service, now_s - n as u64 % 3_000, now_s, 0));
        }
        assert!(!counts.add(&name, now_s, now_s, 0), "no room for another");
        assert!(counts.add(&"s0.vm.test".parse().unwrap(), now_s, now_s, 0), "but for more of the same");
        assert!(counts.has_room(0) && !counts.has_room(1));
    }
}
