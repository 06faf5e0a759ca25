//! What is seen most often in a long stream, in a fixed number of places.
//!
//! Space-Saving (Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data
//! streams", ICDT 2005): something new takes the place of what was seen least, and its count with it as the error that
//! it may have. Whatever makes up more than one of `places` parts of the stream is among what is kept.

use std::collections::{BTreeMap, BTreeSet};

/// How often each of the most frequent things was seen.
#[derive(Debug)]
pub(super) struct HeavyHitters<K> {
    places_max: usize,
    places: Vec<Place<K>>,
    by_key: BTreeMap<K, usize>,
    /// Places by count: the first is the next to be taken.
    by_count: BTreeSet<(u64, usize)>,
}

#[derive(Debug)]
struct Place<K> {
    key: K,
    count: u64,
    /// What of the count may belong to others that had the place before.
    error: u64,
}

/// One of the most frequent things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heavy<K> {
    /// What was seen.
    pub key: K,
    /// So often at least.
    pub at_least: u64,
    /// So often at most.
    pub at_most: u64,
}

impl<K: Clone + Ord> HeavyHitters<K> {
    /// Nothing was seen yet. Keeps `places_max` things, at least one.
    pub fn new(places_max: usize) -> Self {
        Self {
            places_max: places_max.max(1),
            places: Vec::new(),
            by_key: BTreeMap::new(),
            by_count: BTreeSet::new(),
        }
    }

    /// Counts one.
    pub fn add(&mut self, key: K) {
        if let Some(&index) = self.by_key.get(&key) {
            self.raise(index);
            return;
        }
        if self.places.len() < self.places_max {
            let index = self.places.len();
            self.places.push(Place { key: key.clone(), count: 1, error: 0 });
            self.by_key.insert(key, index);
            self.by_count.insert((1, index));
            return;
        }
        let Some(&(count, index)) = self.by_count.first() else { return };
        if let Some(place) = self.places.get_mut(index) {
            self.by_key.remove(&place.key);
            (place.key, place.error) = (key.clone(), count);
            self.by_key.insert(key, index);
            self.raise(index);
        }
    }

    fn raise(&mut self, index: usize) {
        if let Some(place) = self.places.get_mut(index) {
            self.by_count.remove(&(place.count, index));
            place.count += 1;
            self.by_count.insert((place.count, index));
        }
    }

    /// How often something may have been seen that has no place.
    fn unseen_max(&self) -> u64 {
        if self.places.len() < self.places_max {
            0
        } else {
            self.by_count.first().map_or(0, |&(count, _)| count)
        }
    }

    /// The bounds of what was seen in both streams, most certain first, up to `max` (Agarwal et al., "Mergeable
    /// summaries", PODS 2012). What may not have been seen more than once is left out if it may be an error.
    pub fn top_of_both(&self, other: &Self, max: usize) -> Vec<Heavy<K>> {
        let bounds = |of: &Self, key: &K| match of.by_key.get(key).and_then(|&index| of.places.get(index)) {
            Some(place) => (place.count - place.error, place.count),
            None => (0, of.unseen_max()),
        };
        let keys: BTreeSet<&K> = self.by_key.keys().chain(other.by_key.keys()).collect();
        let both = keys.into_iter().map(|key| {
            let (own, others) = (bounds(self, key), bounds(other, key));
            Heavy { key: key.clone(), at_least: own.0 + others.0, at_most: own.1 + others.1 }
        });
        let mut top: Vec<Heavy<K>> =
            both.filter(|heavy| heavy.at_least > 1 || heavy.at_least == heavy.at_most).collect();
        // Stable, so that what was seen equally often is in the order of its keys.
        top.sort_by_key(|heavy| std::cmp::Reverse((heavy.at_least, heavy.at_most)));
        top.truncate(max);
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_things_are_counted_exactly() {
        let (mut heavy, none) = (HeavyHitters::new(8), HeavyHitters::new(8));
        for key in ["a", "b", "a", "c", "a", "b"] {
            heavy.add(key);
        }
        let top = heavy.top_of_both(&none, 2);
        let exact = |key, count| Heavy { key, at_least: count, at_most: count };
        assert_eq!(top, [exact("a", 3), exact("b", 2)]);
    }

    #[test]
    fn a_flood_of_names_that_come_once_hides_nothing_that_comes_often() {
        let (mut first, mut second) = (HeavyHitters::new(64), HeavyHitters::new(64));
        let mut seen = [0u64; 4];
        for number in 0..20_000u64 {
            let half = if number < 10_000 { &mut first } else { &mut second };
            half.add(1_000 + number);
            // Once all places are taken, every 8th, 16th, 24th and 32nd is one of four that come often.
            if number % 10_000 < 500 {
                continue;
            }
            for often in 0..4u64 {
                if number % (8 * (often + 1)) == 0 {
                    half.add(often);
                    seen[usize::try_from(often).unwrap()] += 1;
                }
            }
        }
        let top = first.top_of_both(&second, 4);
        assert_eq!(top.iter().map(|heavy| heavy.key).collect::<Vec<_>>(), [0, 1, 2, 3], "{top:?}");
        for (heavy, seen) in top.iter().zip(seen) {
            assert!(heavy.at_least <= seen && seen <= heavy.at_most, "{heavy:?}, not {seen}");
        }
        assert_eq!((first.places.len(), first.by_key.len(), first.by_count.len()), (64, 64, 64));
    }
}
