//! Pages: their hashes, sets of them, and a sum over the contents of many.

use std::ops::Range;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// The same, where files are measured.
pub const PAGE: u64 = PAGE_BYTES as u64;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// BLAKE3 of a page's content, 128 bits of it: what tells whether two pages are equal.
///
/// To make two pages with the same hash takes 2⁶⁴ tries, and whoever can do so must have both in one service's guests;
/// to make one for a page of somebody else's takes 2¹²⁸.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash(pub [u8; PageHash::BYTES]);

impl PageHash {
    /// Bytes of a hash.
    pub const BYTES: usize = 16;

    /// Of a page's content.
    pub fn of(page: &[u8]) -> Self {
        let mut short = [0; Self::BYTES];
        for (to, from) in short.iter_mut().zip(blake3::hash(page).as_bytes()) {
            *to = *from;
        }
        Self(short)
    }
}

/// Whether a page holds nothing but zeros.
pub fn is_zero(page: &[u8]) -> bool {
    ZEROS.starts_with(page)
}

/// Pages that hold `bytes`, the last one perhaps in part.
pub fn pages_of(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE)
}

/// The sum over the pages of a part: which content is at which place. It does not depend on the order in which the
/// pages are added, so that many threads may do it; pages of zeros do not count.
///
/// It finds mistakes and tells two versions apart. It does not defend against who can write manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContentSum([u64; 4]);

impl ContentSum {
    /// Adds the page at `place`.
    pub fn add(&mut self, place: u64, hash: PageHash) {
        let mut input = [0; 8 + PageHash::BYTES];
        let (at, content) = input.split_at_mut(8);
        at.copy_from_slice(&place.to_le_bytes());
        content.copy_from_slice(&hash.0);
        let digest = blake3::hash(&input);
        let (words, _) = digest.as_bytes().as_chunks::<8>();
        for (sum, word) in self.0.iter_mut().zip(words) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }

    /// Of a part with these bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        let mut sum = Self::default();
        for (place, content) in (0..).zip(bytes.chunks(PAGE_BYTES)) {
            if is_zero(content) {
                continue;
            }
            let mut page = ZEROS;
            page.iter_mut().zip(content).for_each(|(to, from)| *to = *from);
            sum.add(place, PageHash::of(&page));
        }
        sum
    }

    /// Adds what another thread has summed.
    pub fn merge(&mut self, other: Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.wrapping_add(more);
        }
    }

    /// 64 hexadecimal digits.
    pub fn to_hex(self) -> String {
        self.0.iter().map(|word| format!("{word:016x}")).collect()
    }
}

/// Numbers of pages, kept as runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageSet(Vec<Range<u64>>);

impl PageSet {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its runs: ascending, apart from each other, not empty.
    pub fn runs(&self) -> &[Range<u64>] {
        &self.0
    }

    /// How many pages.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }

    /// Whether it has `page`.
    pub fn contains(&self, page: u64) -> bool {
        self.run_at_or_after(page).is_some_and(|run| run.start <= page)
    }

    /// The run that has `page`, or the first one after it.
    pub fn run_at_or_after(&self, page: u64) -> Option<Range<u64>> {
        let at = self.0.partition_point(|run| run.end <= page);
        self.0.get(at).cloned()
    }

    /// How many pages of `range` it has.
    pub fn overlap(&self, range: Range<u64>) -> u64 {
        let from = self.0.partition_point(|run| run.end <= range.start);
        let runs = self.0.iter().skip(from).take_while(|run| run.start < range.end);
        runs.map(|run| run.end.min(range.end) - run.start.max(range.start)).sum()
    }
}

impl FromIterator<Range<u64>> for PageSet {
    /// In any order; they may overlap and be empty.
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(runs: I) -> Self {
        let mut runs: Vec<_> = runs.into_iter().filter(|run| run.start < run.end).collect();
        runs.sort_unstable_by_key(|run| run.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(runs.len());
        for run in runs {
            match joined.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                Some(_) | None => joined.push(run),
            }
        }
        Self(joined)
    }
}

impl FromIterator<u64> for PageSet {
    fn from_iter<I: IntoIterator<Item = u64>>(pages: I) -> Self {
        pages.into_iter().map(|page| page..page.saturating_add(1)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_its_runs_however_it_was_said() {
        let set: PageSet = [7, 1, 2, 3, 9, 8, 2].into_iter().collect();
        assert_eq!(set.runs(), [1..4, 7..10]);
        assert_eq!(set.count(), 6);
        assert!(set.contains(3) && !set.contains(4) && set.contains(7) && !set.contains(10));
        assert_eq!(set.overlap(3..8), 2);
        assert_eq!(set.overlap(10..20), 0);
        assert_eq!(set.run_at_or_after(4), Some(7..10));
    }

    #[test]
    fn a_sum_knows_places_and_not_order() {
        let (a, b) = (PageHash::of(&[1; PAGE_BYTES]), PageHash::of(&[2; PAGE_BYTES]));
        let sum = |pages: &[(u64, PageHash)]| {
            let mut sum = ContentSum::default();
            pages.iter().for_each(|(place, hash)| sum.add(*place, *hash));
            sum
        };
        assert_eq!(sum(&[(0, a), (1, b)]), sum(&[(1, b), (0, a)]));
        assert_ne!(sum(&[(0, a), (1, b)]), sum(&[(0, b), (1, a)]));
    }
}
