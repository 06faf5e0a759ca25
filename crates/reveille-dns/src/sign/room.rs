//! What the signers of all zones share: made signatures, budgets, counters, and how wrong the daemon's clock is.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use reveille_core::model::Timestamp;

use super::budget::{Budgets, SignatureRates};
use super::cache::{CacheKey, SignatureCache, Signed};
use super::canonical::{RrSet, Validity, rrsig_head, signed_data};
use super::key::SigningKey;

/// How long a signature is good, in seconds, and up to how much longer: so they do not all expire, and are not all
/// made anew, at the same time.
const VALIDITY_S: u64 = 7 * 86_400;
const JITTER_S: u64 = 86_400;
/// It is good from so long before it was made, for validators whose clock is slow.
const SKEW_S: u64 = 3_600;
/// It is made anew when it is good for less than this, in seconds. More than any TTL, so that no cache has to cut one
/// short.
const REFRESH_S: u64 = 3 * 86_400;
/// With less than this it is not handed out any more.
const LEAST_S: u64 = 2 * 86_400 + SKEW_S;
/// If the daemon's clock and the host's differ by more, the host's alone counts: the daemon started before the host
/// knew the time.
const CLOCKS_APART_S: u64 = 86_400;

/// Limits of signing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SigningLimits {
    /// Signatures made in a second.
    pub rates: SignatureRates,
    /// Bytes for signatures that were made, some 100 for each.
    pub cache_bytes_max: usize,
}

impl Default for SigningLimits {
    fn default() -> Self {
        Self { rates: SignatureRates::default(), cache_bytes_max: 16 << 20 }
    }
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SignCounts {
    /// Signatures that were made.
    pub made: u64,
    /// Signatures that were handed out again.
    pub reused: u64,
    /// Answers that were sent truncated instead, because too many signatures were being made.
    pub truncated: u64,
    /// Answers over streams that were SERVFAIL instead.
    pub refused: u64,
    /// Answers that could not be signed: no random numbers.
    pub failed: u64,
}

#[derive(Debug)]
pub(super) struct SigningRoom {
    cache: SignatureCache,
    pub budgets: Budgets,
    pub counts: Counters,
    /// The host's clock less the daemon's, in milliseconds.
    clocks_apart_ms: AtomicI64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub made: AtomicU64,
    pub reused: AtomicU64,
    pub truncated: AtomicU64,
    pub refused: AtomicU64,
    pub failed: AtomicU64,
}

/// One signature that an answer needs.
pub(super) struct Wanted<'a> {
    pub set: RrSet<'a>,
    pub key: &'a SigningKey,
    /// Asked for once; not worth a place.
    pub fleeting: bool,
}

/// What is there for a wanted signature.
pub(super) enum Found {
    /// Good for long enough.
    Fresh(Signed),
    /// Good, but it is time for a new one.
    Old(Signed, CacheKey),
    /// None.
    Missing(Option<CacheKey>),
}

/// The two clocks, in seconds since 1970: a signature must be good by both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    earlier_s: u64,
    later_s: u64,
}

impl SigningRoom {
    pub fn new(limits: &SigningLimits) -> Self {
        Self {
            cache: SignatureCache::new(limits.cache_bytes_max),
            budgets: Budgets::new(&limits.rates),
            counts: Counters::default(),
            clocks_apart_ms: AtomicI64::new(0),
        }
    }

    /// Notes that the host's clock shows `wall` when the daemon's shows `now`. Validators go by the former.
    pub fn compare_clocks(&self, now: Timestamp, wall: Timestamp) {
        let ahead = i64::try_from(wall.ms_since(now)).unwrap_or(i64::MAX);
        let behind = i64::try_from(now.ms_since(wall)).unwrap_or(i64::MAX);
        self.clocks_apart_ms.store(ahead - behind, Relaxed);
    }

    pub fn clocks(&self, now: Timestamp) -> Clocks {
        let wall_ms = now.as_ms().saturating_add_signed(self.clocks_apart_ms.load(Relaxed));
        let (now_s, wall_s) = (now.as_ms() / 1_000, wall_ms / 1_000);
        if now_s.abs_diff(wall_s) > CLOCKS_APART_S {
            return Clocks { earlier_s: wall_s, later_s: wall_s };
        }
        Clocks { earlier_s: now_s.min(wall_s), later_s: now_s.max(wall_s) }
    }

    /// Looks for a signature that was made before.
    pub fn find(&self, wanted: &Wanted<'_>, signer: &[u8], clocks: Clocks) -> Found {
        if wanted.fleeting {
            return Found::Missing(None);
        }
        let key = self.cache.key(&wanted.set, signer, wanted.key.tag());
        match self.cache.get(key) {
            Some(signed) => match clocks.left_s(signed.validity) {
                Some(left_s) if left_s >= REFRESH_S => Found::Fresh(signed),
                Some(left_s) if left_s >= LEAST_S => Found::Old(signed, key),
                Some(_) | None => Found::Missing(Some(key)),
            },
            None => Found::Missing(Some(key)),
        }
    }

    /// Makes a signature; `None` if the system gives no random numbers.
    pub fn make(
        &self,
        wanted: &Wanted<'_>,
        signer: &[u8],
        key: Option<CacheKey>,
        clocks: Clocks,
    ) -> Option<Signed> {
        let validity = clocks.validity(key);
        let head = rrsig_head(&wanted.set, validity, wanted.key.tag(), signer);
        let signature = wanted.key.sign(&signed_data(&head, &wanted.set))?;
        let signed = Signed { signature, validity };
        if let Some(key) = key {
            self.cache.put(key, signed);
        }
        self.counts.made.fetch_add(1, Relaxed);
        Some(signed)
    }

    pub fn counts(&self) -> SignCounts {
        let Counters { made, reused, truncated, refused, failed } = &self.counts;
        SignCounts {
            made: made.load(Relaxed),
            reused: reused.load(Relaxed),
            truncated: truncated.load(Relaxed),
            refused: refused.load(Relaxed),
            failed: failed.load(Relaxed),
        }
    }
}

impl Clocks {
    /// When a signature that is made now is good. In whole hours, so that nothing is told of when it was made.
    fn validity(self, key: Option<CacheKey>) -> Validity {
        let hours = |seconds: u64| seconds / 3_600 * 3_600;
        let jitter_s = key.map_or(0, |key| key.spread(JITTER_S));
        let inception = hours(self.earlier_s.saturating_sub(SKEW_S));
        let expiration = hours(self.later_s + VALIDITY_S + jitter_s);
        Validity { inception: serial(inception), expiration: serial(expiration) }
    }

    /// For how many seconds more a signature is good; `None` if it is not.
    fn left_s(self, validity: Validity) -> Option<u64> {
        let began = serial(self.earlier_s).wrapping_sub(validity.inception);
        let left = validity.expiration.wrapping_sub(serial(self.later_s));
        // Serial arithmetic (RFC 1982): what is beyond half of the circle lies behind.
        (began < 1 << 31 && left < 1 << 31).then(|| left.into())
    }
}

/// Seconds as DNSSEC counts them, modulo 2³².
fn serial(seconds: u64) -> u32 {
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;

    fn wanted(key: &SigningKey) -> Wanted<'_> {
        let set = RrSet { owner: b"\x01a\x04test\x00", rtype: 1, original_ttl: 60, data: &[&[127, 0, 0, 1]] };
        Wanted { set, key, fleeting: false }
    }

    fn room() -> SigningRoom {
        SigningRoom::new(&SigningLimits { cache_bytes_max: 1 << 20, ..SigningLimits::default() })
    }

    #[test]
    fn a_signature_is_made_anew_long_before_it_expires() {
        let (room, key) = (room(), SigningKey::generate().unwrap().0);
        let wanted = wanted(&key);
        let find = |day: u64| room.find(&wanted, b"\x00", room.clocks(Timestamp::from_ms(day * DAY_MS)));
        let Found::Missing(Some(cache_key)) = find(20_000) else { panic!() };
        let clocks = room.clocks(Timestamp::from_ms(20_000 * DAY_MS));
        let made = room.make(&wanted, b"\x00", Some(cache_key), clocks).unwrap();
        assert_eq!(made.validity.inception, 20_000 * 86_400 - 3_600);
        assert!((20_007 * 86_400..=20_008 * 86_400).contains(&made.validity.expiration));
        assert!(matches!(find(20_000), Found::Fresh(found) if found == made));
        assert!(matches!(find(20_003), Found::Fresh(_)));
        assert!(matches!(find(20_005), Found::Old(..) | Found::Missing(_)));
        assert!(matches!(find(20_007), Found::Missing(_)));
        // The clock was set back to before it was made.
        assert!(matches!(find(19_000), Found::Missing(_)));
    }

    #[test]
    fn signatures_are_good_by_the_clock_that_validators_have() {
        let (room, key) = (room(), SigningKey::generate().unwrap().0);
        let wanted = wanted(&key);
        let now = Timestamp::from_ms(20_000 * DAY_MS);
        let make = |wall: Timestamp| {
            room.compare_clocks(now, wall);
            room.make(&wanted, b"\x00", None, room.clocks(now)).unwrap().validity
        };
        // The daemon started when the host believed to live years ago.
        let wall = now.plus_ms(1_000 * DAY_MS);
        assert_eq!(make(wall).inception, 21_000 * 86_400 - 3_600);
        // A little apart: good by both.
        let ahead = make(now.plus_ms(DAY_MS / 2));
        assert_eq!(ahead.inception, 20_000 * 86_400 - 3_600);
        assert_eq!(ahead.expiration, 20_007 * 86_400 + 43_200);
        let behind = make(Timestamp::from_ms(20_000 * DAY_MS - DAY_MS / 2));
        assert_eq!(behind.inception, 20_000 * 86_400 - 43_200 - 3_600);
        assert_eq!(behind.expiration, 20_007 * 86_400);
    }
}
