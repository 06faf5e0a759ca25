//! The watches of many names, in a fixed number of places.

use std::collections::BTreeMap;

use super::{Estimate, TTL_MS_MAX, WINDOW_MS_MAX, WINDOW_TTLS_MIN, Watch};
use crate::model::Timestamp;

/// Most names and types that are watched at a time.
pub const NAMES_MAX: usize = 2_048;
/// Most resolvers that are followed for all of them together: some 3 MiB. Beyond, those of a name make room for each other.
pub const PLACES_MAX: usize = 65_536;
/// A name that is asked for more rarely in a window is not watched on: its gaps decide, and it may come back.
pub const QUERIES_MIN: u64 = 8;

/// Watches by name. `K` says which name and type.
#[derive(Debug, Clone)]
pub struct Watches<K> {
    window_ms: u64,
    pub(super) by_name: BTreeMap<K, Watch>,
    /// Resolvers that are followed.
    pub(super) places: usize,
    unwatched: u64,
}

impl<K: Ord + Clone> Watches<K> {
    /// Nothing is watched. A window lasts so long, or as many TTLs as it takes.
    #[must_use]
    pub fn new(window_ms: u64) -> Self {
        Self {
            window_ms: window_ms.clamp(1, WINDOW_MS_MAX - 1),
            by_name: BTreeMap::new(),
            places: 0,
            unwatched: 0,
        }
    }

    /// A resolver asked for that name and was answered with that TTL; `ttl_ms_max` is the longest that the name's answers
    /// have had of late. See [`Watch::asked`].
    pub fn asked(&mut self, name: K, resolver: u32, at: Timestamp, ttl_ms: u32, ttl_ms_max: u32) {
        if !self.by_name.contains_key(&name) && self.by_name.len() >= NAMES_MAX {
            self.unwatched += 1;
            return;
        }
        let may_grow = self.places < PLACES_MAX;
        let watch = self.by_name.entry(name).or_insert_with(|| Watch::new(at, ttl_ms_max.max(ttl_ms)));
        let before = watch.resolvers.len();
        watch.ask(resolver, at, ttl_ms, may_grow);
        self.places = self.places + watch.resolvers.len() - before;
    }

    /// Ends each window that is due at `now`, and gives its estimate.
    pub fn look(&mut self, now: Timestamp) -> Vec<(K, Estimate)> {
        let mut found = Vec::new();
        self.by_name.retain(|name, watch| {
            let least_ms = self.window_ms.max(WINDOW_TTLS_MIN * u64::from(watch.ttl_max_ms));
            if now.ms_since(watch.from) < least_ms {
                return true;
            }
            let is_busy = watch.queries >= QUERIES_MIN;
            found.extend(watch.estimate(now).ok().map(|estimate| (name.clone(), estimate)));
            watch.turn(now);
            is_busy
        });
        self.places = self.by_name.values().map(|watch| watch.resolvers.len()).sum();
        found
    }

    /// What the window of that name says that has not ended by `now`, unless too little was seen in it.
    #[must_use]
    pub fn so_far(&self, name: &K, now: Timestamp) -> Option<Estimate> {
        self.by_name.get(name)?.estimate(now).ok()
    }

    /// Stops to watch the names for which `is_gone` says so.
    pub fn forget(&mut self, is_gone: impl Fn(&K) -> bool) {
        self.by_name.retain(|name, _| !is_gone(name));
        self.places = self.by_name.values().map(|watch| watch.resolvers.len()).sum();
    }

    /// The names that are watched.
    pub fn names(&self) -> impl Iterator<Item = &K> {
        self.by_name.keys()
    }

    /// Some queries were lost before `now`, nobody knows of whom: all windows begin anew, once what these were answered has expired.
    pub fn lost(&mut self, now: Timestamp) {
        for watch in self.by_name.values_mut() {
            let ttl_ms = watch.longest_ms.min(TTL_MS_MAX);
            *watch = Watch::new(now, ttl_ms);
        }
        self.places = 0;
    }

    /// Queries for names for which there was no place.
    #[must_use]
    pub fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// What is held, in bytes, but for the map of names itself.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.by_name.values().map(Watch::size_bytes).sum()
    }
}
