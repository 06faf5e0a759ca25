//! What is kept of the most frequent keys of a long stream, in a fixed number of places.
//!
//! Space-Saving (Metwally, Agrawal and El Abbadi, ICDT 2005): who is new takes the place of the one that came least often, with
//! its count as the error of his own. Whoever makes up more than one of `places` parts of the stream has a place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Values of the most frequent keys.
#[derive(Debug, Clone)]
pub(super) struct Tops<V> {
    places_max: usize,
    places: BTreeMap<Arc<str>, Place<V>>,
    /// By count: the first is the next to leave.
    by_count: BTreeSet<(u64, Arc<str>)>,
}

#[derive(Debug, Clone)]
struct Place<V> {
    count: u64,
    value: V,
}

impl<V: Default> Tops<V> {
    /// Keeps `places_max` keys, at least one.
    pub fn new(places_max: usize) -> Self {
        Self { places_max: places_max.max(1), places: BTreeMap::new(), by_count: BTreeSet::new() }
    }

    /// Counts the key so many times. Gives its value, and that of the key which had to leave for it.
    pub fn count(&mut self, key: &str, times: u64) -> (&mut V, Option<V>) {
        let (mut count, mut left) = (0, None);
        let key = if let Some((key, place)) = self.places.get_key_value(key) {
            count = place.count;
            let key = Arc::clone(key);
            self.by_count.remove(&(count, Arc::clone(&key)));
            key
        } else {
            if self.places.len() >= self.places_max
                && let Some((least, leaver)) = self.by_count.pop_first()
            {
                count = least;
                left = self.places.remove(&leaver).map(|place| place.value);
            }
            Arc::from(key)
        };
        self.by_count.insert((count + times, Arc::clone(&key)));
        let place = self.places.entry(key).or_insert_with(|| Place { count, value: V::default() });
        place.count = count + times;
        (&mut place.value, left)
    }

    /// The key's value, if it is kept.
    pub fn get(&self, key: &str) -> Option<&V> {
        self.places.get(key).map(|place| &place.value)
    }

    /// All that are kept, the most frequent first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.by_count.iter().rev().filter_map(|(_, key)| Some((&**key, self.get(key)?)))
    }

    /// Forgets the keys whose value is not to stay.
    pub fn retain(&mut self, mut stays: impl FnMut(&V) -> bool) {
        self.places.retain(|_, place| stays(&place.value));
        self.by_count.retain(|(_, key)| self.places.contains_key(key));
    }

    /// All that are kept, with their counts.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, u64, &V)> {
        self.places.iter().map(|(key, place)| (&**key, place.count, &place.value))
    }

    /// Puts a key back with the count that it had; not beyond the places that there are, nor twice.
    pub fn put_back(&mut self, key: &str, count: u64, value: V) -> bool {
        let key: Arc<str> = Arc::from(key);
        if self.places.len() >= self.places_max || self.places.contains_key(&key) {
            return false;
        }
        self.by_count.insert((count, Arc::clone(&key)));
        self.places.insert(key, Place { count, value });
        true
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.places.values_mut().map(|place| &mut place.value)
    }
}
