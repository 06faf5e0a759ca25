//! What queries stand for: the answers that resolvers kept, put back (O4). Pure.
//!
//! ```text
//!   sighting with its TTL ─► watch of (service, type) ── window over ──► estimate ─┐
//!                                       └── so far, if no window is over yet ──────┴─► arrivals per query
//! ```
//!
//! How that is estimated is told in [`reveille_core::forecast::caching`]. A client may ask for several types before it connects: arrivals
//! of a service are those of its busiest type, and a query of any of them stands for its share of these.

use std::collections::BTreeMap;

use reveille_core::forecast::caching::{Estimate, Interval, Watches};
use reveille_core::model::Timestamp;

/// A window lasts so long, or four TTLs, in ms.
pub const WINDOW_MS: u64 = 300_000;
/// Answers that live longer are not followed: their windows would last for hours. Seconds.
pub const TTL_S_MAX: u32 = 3_600;
/// How long after its end an estimate is gone by, in ms.
pub const VALID_MS: u64 = 4 * 3_600_000;
/// Queries from which on a window says something before its end.
const SO_FAR_QUERIES_MIN: u64 = 50;
/// Types that a client asks for before it connects: A, AAAA, SRV, SVCB, HTTPS.
const TYPES: [u16; 5] = [1, 28, 33, 64, 65];

/// The service with a counter, and a type.
type Key = (u32, u16);

/// What queries for a service stand for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Correction {
    /// The end of the window that it rests on.
    pub until: Timestamp,
    /// Length of the window, in ms.
    pub window_ms: u64,
    /// Queries in it, of all types that clients ask for before they connect.
    pub queries: u64,
    /// Resolvers that asked, about.
    pub resolvers: u64,
    /// Arrivals that a query stands for.
    pub per_query: f64,
    /// It is in here in 80 % of all cases.
    pub within_80: Interval,
    /// The same with 95 %.
    pub within_95: Interval,
    /// The share of the queries behind which more may be hidden than can be told, in [0, 1].
    pub uncorrected: f64,
}

/// Everything that is watched.
#[derive(Debug)]
pub(super) struct Volume {
    watches: Watches<Key>,
    /// Estimates of the last windows that have ended, and when.
    last: BTreeMap<Key, (Timestamp, Estimate)>,
}

impl Default for Volume {
    fn default() -> Self {
        Self { watches: Watches::new(WINDOW_MS), last: BTreeMap::new() }
    }
}

impl Volume {
    /// A resolver, of which this is a keyed hash, asked for a service and was answered with that TTL.
    pub fn asked(&mut self, counter: u32, qtype: u16, resolver: u64, at: Timestamp, ttl_s: u32) {
        if TYPES.contains(&qtype) && ttl_s <= TTL_S_MAX {
            let [a, b, c, d, ..] = resolver.to_le_bytes();
            let (resolver, ttl_ms) = (u32::from_le_bytes([a, b, c, d]), ttl_s.saturating_mul(1_000));
            self.watches.asked((counter, qtype), resolver, at, ttl_ms, ttl_ms);
        }
    }

    /// Ends the windows that are due, and forgets what is too old.
    pub fn look(&mut self, now: Timestamp) {
        let ended = self.watches.look(now);
        self.last.extend(ended.into_iter().map(|(key, estimate)| (key, (now, estimate))));
        self.last.retain(|_, (until, _)| now.ms_since(*until) < VALID_MS);
    }

    /// Some queries were not seen.
    pub fn lost(&mut self, now: Timestamp) {
        self.watches.lost(now);
    }

    /// The counter is another service's from now on.
    pub fn forget(&mut self, counter: u32) {
        self.watches.forget(|(own, _)| *own == counter);
        self.last.retain(|(own, _), _| *own != counter);
    }

    /// What is known of one service at `now`.
    pub fn correction(&self, counter: u32, now: Timestamp) -> Option<Correction> {
        let known = TYPES.into_iter().filter_map(|qtype| self.estimate((counter, qtype), now));
        correction(&known.collect::<Vec<_>>())
    }

    /// What is known of all services.
    pub fn corrections(&self, now: Timestamp) -> BTreeMap<u32, Correction> {
        let mut counters: Vec<u32> =
            self.last.keys().chain(self.watches.names()).map(|(own, _)| *own).collect();
        counters.sort_unstable();
        counters.dedup();
        let known = counters.into_iter().filter_map(|own| Some((own, self.correction(own, now)?)));
        known.collect()
    }

    /// Of the last window that has ended, or else of the first one.
    fn estimate(&self, key: Key, now: Timestamp) -> Option<(Timestamp, Estimate)> {
        self.last.get(&key).copied().or_else(|| {
            let so_far = self.watches.so_far(&key, now)?;
            (so_far.queries >= SO_FAR_QUERIES_MIN).then_some((now, so_far))
        })
    }
}

/// From types to a service.
fn correction(types: &[(Timestamp, Estimate)]) -> Option<Correction> {
    let per_ms = |estimate: &Estimate| estimate.queries as f64 / estimate.window_ms.max(1) as f64;
    let queries_per_ms: f64 = types.iter().map(|(_, estimate)| per_ms(estimate)).sum();
    let (until, busiest) =
        types.iter().max_by(|(_, one), (_, other)| one.per_second().total_cmp(&other.per_second()))?;
    if queries_per_ms <= 0.0 {
        return None;
    }
    let per_query = |arrivals: f64| arrivals / busiest.window_ms.max(1) as f64 / queries_per_ms;
    let within = |Interval { low, high }| Interval { low: per_query(low), high: per_query(high) };
    let (queries, uncorrected) = types.iter().fold((0, 0), |(queries, uncorrected), (_, estimate)| {
        (queries + estimate.queries, uncorrected + estimate.uncorrected)
    });
    Some(Correction {
        until: *until,
        window_ms: busiest.window_ms,
        queries,
        resolvers: busiest.resolvers,
        per_query: per_query(busiest.arrivals),
        within_80: within(busiest.within_80),
        within_95: within(busiest.within_95),
        uncorrected: uncorrected as f64 / queries.max(1) as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u16 = 1;
    const AAAA: u16 = 28;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_ms(1_795_000_000_000 + ms)
    }

    /// Clients of 20 resolvers, one each 100 ms through the next, for so long: each asks for both types, of which the
    /// resolvers pass on what they have not cached. Gives how many came.
    fn clients(volume: &mut Volume, counter: u32, ms: u64, ttl_s: u32) -> u64 {
        let (mut cached, mut came, mut bits) = ([[0; 20]; 2], 0, 7_u64);
        let mut now = 0;
        while now < ms {
            // Exponential gaps of 100 ms on average, the same each time.
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "some seconds at most"
            )]
            let gap = (-uniform.ln() * 100.0) as u64;
            now += gap;
            came += 1;
            let resolver = usize::try_from((bits >> 7) % 20).unwrap();
            for (place, qtype) in [A, AAAA].into_iter().enumerate() {
                if now >= cached[place][resolver] {
                    cached[place][resolver] = now + u64::from(ttl_s) * 1_000;
                    volume.asked(counter, qtype, resolver as u64, at(now), ttl_s);
                }
            }
            if now.is_multiple_of(50) {
                volume.look(at(now));
            }
        }
        came
    }

    #[test]
    fn what_caches_answered_is_put_back_and_two_types_are_one_client() {
        let mut volume = Volume::default();
        let came = clients(&mut volume, 7, 2 * WINDOW_MS + 30_000, 10);
        volume.look(at(2 * WINDOW_MS + 30_000));
        let found = volume.correction(7, at(2 * WINDOW_MS + 30_000)).unwrap();
        let per_second = found.per_query * found.queries as f64 / (found.window_ms as f64 / 1e3);
        let truth = came as f64 / ((2 * WINDOW_MS + 30_000) as f64 / 1e3);
        assert!((per_second / truth - 1.0).abs() < 0.1, "{per_second}, not {truth}: {found:?}");
        // Nearly all clients of a busy resolver are hidden by the first; without the correction it would be far too few.
        assert!(found.per_query > 2.0 && found.resolvers == 20, "{found:?}");
        let seen = found.queries as f64 / (found.window_ms as f64 / 1e3);
        for interval in [found.within_80, found.within_95] {
            assert!(interval.low < found.per_query && found.per_query < interval.high, "{found:?}");
            assert!(interval.holds(truth / seen), "{truth} of {seen}: {found:?}");
        }
        assert_eq!(volume.corrections(at(2 * WINDOW_MS + 30_000)), BTreeMap::from([(7, found)]));
        assert_eq!(volume.correction(8, at(0)), None);
        // The window in which nobody asked any more says nothing, and what was before is too old to go by.
        for looked in [WINDOW_MS, VALID_MS + 1] {
            volume.look(at(2 * WINDOW_MS + 30_000 + looked));
            volume.look(at(2 * WINDOW_MS + 30_001 + 2 * looked));
        }
        assert_eq!(volume.correction(7, at(2 * WINDOW_MS + 30_001 + 2 * VALID_MS)), None);
        assert!(volume.last.is_empty() && volume.watches.names().next().is_none());
    }

    #[test]
    fn a_first_window_tells_before_its_end_and_a_service_inherits_nothing_with_its_counter() {
        let mut volume = Volume::default();
        clients(&mut volume, 7, 60_000, 2);
        assert!(volume.correction(7, at(60_000)).is_some_and(|found| found.window_ms < 60_000));
        volume.forget(7);
        assert_eq!((volume.correction(7, at(60_000)), volume.corrections(at(60_000)).len()), (None, 0));
        // What was lost is not made up for.
        clients(&mut volume, 7, 60_000, 2);
        volume.lost(at(60_000));
        assert_eq!(volume.correction(7, at(60_500)), None);
    }

    #[test]
    fn what_says_nothing_of_clients_is_not_followed() {
        let mut volume = Volume::default();
        for second in 0..1_000 {
            volume.asked(7, 16, 1, at(second * 1_000), 10);
            volume.asked(7, A, 1, at(second * 1_000), TTL_S_MAX + 1);
        }
        volume.look(at(1_000_000));
        assert_eq!(volume.watches.size_bytes(), 0);
        assert_eq!(volume.correction(7, at(1_000_000)), None);
    }
}
