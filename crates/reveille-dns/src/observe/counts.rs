//! How often each name was asked for.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// Counters of one chunk.
const CHUNK_COUNTERS: usize = 1 << 16;
/// Chunks at most.
const CHUNKS_MAX: usize = 1 << 8;
/// Counters at most.
pub const COUNTERS_MAX: usize = CHUNK_COUNTERS * CHUNKS_MAX;

/// Counts of one thread by number, exact modulo 2³². Read by others at any time; nothing is ever reset, a reader keeps
/// what it has seen.
#[derive(Debug)]
pub struct NameCounts {
    chunks: Box<[OnceLock<Box<[AtomicU32]>>]>,
}

impl Default for NameCounts {
    fn default() -> Self {
        Self { chunks: std::iter::repeat_with(OnceLock::new).take(CHUNKS_MAX).collect() }
    }
}

impl NameCounts {
    /// Makes room for the counters below `count`, so that counting never has to.
    pub(crate) fn reserve(&self, count: usize) {
        for chunk in self.chunks.iter().take(count.div_ceil(CHUNK_COUNTERS)) {
            chunk.get_or_init(|| std::iter::repeat_with(AtomicU32::default).take(CHUNK_COUNTERS).collect());
        }
    }

    /// Counts one query. Only one thread may do so; a counter without room is not counted.
    pub(crate) fn bump(&self, counter: u32) {
        if let Some(count) = self.count(counter) {
            // Without the bus lock of a fetch_add: nobody else writes.
            count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }

    /// Counts one query, where several threads do so at a time and none by [`NameCounts::bump`].
    pub(crate) fn bump_shared(&self, counter: u32) {
        if let Some(count) = self.count(counter) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// What was counted so far.
    pub(crate) fn get(&self, counter: u32) -> u32 {
        self.count(counter).map_or(0, |count| count.load(Relaxed))
    }

    fn count(&self, counter: u32) -> Option<&AtomicU32> {
        let counter = usize::try_from(counter).ok()?;
        self.chunks.get(counter / CHUNK_COUNTERS)?.get()?.get(counter % CHUNK_COUNTERS)
    }
}

/// The counts of all threads of a server. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Counters(Arc<[Arc<NameCounts>]>);

impl Counters {
    pub(crate) fn of(threads: Vec<Arc<NameCounts>>) -> Self {
        Self(threads.into())
    }

    /// Makes room for the counters below `count`, before a view names them.
    pub fn reserve(&self, count: usize) {
        self.0.iter().for_each(|counts| counts.reserve(count));
    }

    /// Queries counted under one number, modulo 2³².
    pub fn sum(&self, counter: u32) -> u32 {
        self.0.iter().fold(0, |sum, counts| sum.wrapping_add(counts.get(counter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_over_threads_and_chunks() {
        let all = Counters::of(vec![Arc::default(), Arc::default()]);
        all.reserve(100_001);
        let counters = [0, 1, 65_535, 65_536, 100_000];
        for (thread, counts) in all.0.iter().enumerate() {
            for &counter in &counters {
                (0..=thread).for_each(|_| counts.bump(counter));
            }
            // No room: not counted, and nothing else is.
            counts.bump(200_000);
            counts.bump(u32::MAX);
        }
        assert_eq!((0..250_000).filter(|&counter| all.sum(counter) != 0).count(), counters.len());
        assert!(counters.iter().all(|&counter| all.sum(counter) == 3));
    }
}
