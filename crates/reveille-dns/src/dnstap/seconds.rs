//! How many questions there were in which second, by source and name: what the history takes over.

use std::collections::BTreeMap;

use super::sources::SourceId;
use crate::observe::SECONDS_KEPT;

/// Most counts that wait to be taken: a minute of 4,000 names in every second, some 10 MiB.
pub const COUNTS_MAX: usize = 262_144;

/// Questions of one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SecondCount {
    /// The second, since 1970, in which they were asked.
    pub at_s: u32,
    /// Who says so.
    pub source: SourceId,
    /// Number of the counter of the service that they were for; 0: another name in a zone that is served.
    pub counter: u32,
    /// How many.
    pub queries: u32,
}

/// Counts that nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct SecondCounts {
    counts: BTreeMap<(u32, SourceId, u32), u32>,
    /// Questions for which there was no room, or which nobody took in time.
    lost: u64,
}

impl SecondCounts {
    pub fn add(&mut self, at_s: u32, source: SourceId, counter: u32) {
        let key = (at_s, source, counter);
        if let Some(count) = self.counts.get_mut(&key) {
            *count = count.saturating_add(1);
        } else if self.counts.len() < COUNTS_MAX {
            self.counts.insert(key, 1);
        } else {
            self.lost += 1;
        }
    }

    /// Forgets what is older than anybody asks for.
    pub fn prune(&mut self, now_s: u32) {
        while let Some(entry) = self.counts.first_entry()
            && entry.key().0.saturating_add(SECONDS_KEPT) <= now_s
        {
            self.lost += u64::from(entry.remove());
        }
    }

    /// Takes out what there is of the seconds before `before_s`, in their order. Later sightings of the same seconds
    /// come as counts of their own, to be added.
    pub fn take(&mut self, before_s: u32) -> Vec<SecondCount> {
        let later = self.counts.split_off(&(before_s, SourceId::default(), 0));
        let taken = std::mem::replace(&mut self.counts, later);
        let count = |((at_s, source, counter), queries)| SecondCount { at_s, source, counter, queries };
        taken.into_iter().map(count).collect()
    }

    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_taken_once_and_bounded_by_age_and_number() {
        let mut counts = SecondCounts::default();
        let source = SourceId::default();
        for (at_s, counter) in [(100, 1), (101, 1), (100, 2), (100, 1), (102, 1)] {
            counts.add(at_s, source, counter);
        }
        let taken: Vec<_> = counts.take(102).iter().map(|c| (c.at_s, c.counter, c.queries)).collect();
        assert_eq!(taken, [(100, 1, 2), (100, 2, 1), (101, 1, 1)]);
        assert_eq!(counts.take(102), []);
        // Late ones come again.
        counts.add(100, source, 1);
        assert_eq!(counts.take(102)[0].queries, 1);
        counts.prune(102 + SECONDS_KEPT - 1);
        assert_eq!(counts.lost(), 0);
        counts.prune(102 + SECONDS_KEPT);
        assert_eq!((counts.take(u32::MAX), counts.lost()), (vec![], 1));
        (0..=u32::try_from(COUNTS_MAX).unwrap()).for_each(|counter| counts.add(200, source, counter));
        assert_eq!((counts.take(u32::MAX).len(), counts.lost()), (COUNTS_MAX, 2));
    }
}
