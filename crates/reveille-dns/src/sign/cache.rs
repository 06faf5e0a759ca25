//! Signatures that were made, to be handed out again: a table of fixed size.
//!
//! A place is found by a keyed hash of everything that is signed, so nothing needs to be dropped when a record or a
//! key changes: the old signature is not found any more, and others take its place. The table is cut into sets of
//! eight places. A signature that was never asked for again goes first, so that a flood of random names, each of
//! which is asked for once, takes at most one place of a set from those that are in use.

use std::hash::Hasher;
use std::sync::{Mutex, PoisonError};

use ring::rand::{SecureRandom, SystemRandom};
use siphasher::sip128::{Hasher128, SipHasher24};

use super::canonical::{RrSet, Validity};
use super::key::SIGNATURE_BYTES;

/// Places of a set.
const WAYS: usize = 8;
/// Parts of the table, each with a lock of its own.
const SHARDS: usize = 64;

/// What a signature is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheKey(u128);

impl CacheKey {
    /// A number below `below` that is the same for the same key, and spread evenly over all.
    pub fn spread(self, below: u64) -> u64 {
        u64::try_from(self.0 >> 64).unwrap_or_default().checked_rem(below).unwrap_or(0)
    }
}

/// A signature and when it is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signed {
    pub signature: [u8; SIGNATURE_BYTES],
    pub validity: Validity,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    key: CacheKey,
    signed: Signed,
    /// It was found at least once.
    wanted: bool,
    /// Rises with each use within the set.
    used: u32,
}

/// A set: its places, of which the used ones come first, and the clock of their uses.
#[derive(Debug, Clone, Default)]
struct Set {
    places: Vec<Place>,
    clock: u32,
}

/// The table.
#[derive(Debug)]
pub(super) struct SignatureCache {
    seed: [u64; 2],
    sets_per_shard: usize,
    shards: Vec<Mutex<Vec<Set>>>,
}

impl SignatureCache {
    /// A table of at most so many bytes. It takes them as signatures come.
    pub fn new(bytes_max: usize) -> Self {
        let set_bytes = size_of::<Set>() + WAYS * size_of::<Place>();
        let sets_per_shard = (bytes_max / set_bytes / SHARDS).max(1);
        let mut seed = [0; 16];
        // Without random numbers nothing can be signed either; the table is then empty for ever.
        let _ = SystemRandom::new().fill(&mut seed);
        let (first, second) = seed.split_at(8);
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        let shards = (0..SHARDS).map(|_| Mutex::new(Vec::new())).collect();
        Self { seed: [word(first), word(second)], sets_per_shard, shards }
    }

    /// Where the signature of that RRset by that key is found.
    pub fn key(&self, set: &RrSet<'_>, signer: &[u8], tag: u16) -> CacheKey {
        let [first, second] = self.seed;
        let mut hash = SipHasher24::new_with_keys(first, second);
        hash.write(&tag.to_be_bytes());
        hash.write(&set.rtype.to_be_bytes());
        hash.write(&set.original_ttl.to_be_bytes());
        // Names end by themselves, and data tells its length.
        hash.write(signer);
        hash.write(set.owner);
        for data in set.data {
            hash.write(&data.len().to_be_bytes());
            hash.write(data);
        }
        CacheKey(hash.finish128().as_u128())
    }

    /// The signature, if it is there.
    pub fn get(&self, key: CacheKey) -> Option<Signed> {
        self.with_set(key, false, |set| {
            set.clock = set.clock.wrapping_add(1);
            let clock = set.clock;
            let place = set.places.iter_mut().find(|place| place.key == key)?;
            place.wanted = true;
            place.used = clock;
            Some(place.signed)
        })?
    }

    /// Puts a signature there, in place of an older one or of the one that is missed least.
    pub fn put(&self, key: CacheKey, signed: Signed) {
        self.with_set(key, true, |set| {
            set.clock = set.clock.wrapping_add(1);
            let clock = set.clock;
            if let Some(place) = set.places.iter_mut().find(|place| place.key == key) {
                place.signed = signed;
                place.used = clock;
                return;
            }
            let place = Place { key, signed, wanted: false, used: clock };
            if set.places.len() < WAYS {
                set.places.reserve_exact(WAYS - set.places.len());
                set.places.push(place);
                return;
            }
            let age = |place: &Place| clock.wrapping_sub(place.used);
            let least = set.places.iter_mut().max_by_key(|place| (!place.wanted, age(place)));
            if let Some(least) = least {
                *least = place;
            }
        });
    }

    fn with_set<T>(&self, key: CacheKey, make: bool, act: impl FnOnce(&mut Set) -> T) -> Option<T> {
        let [low, high] = split(key);
        let shard = self.shards.get(usize::try_from(low % SHARDS as u64).ok()?)?;
        // What a panic of another thread left is a set still.
        let mut sets = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if sets.is_empty() {
            if !make {
                return None;
            }
            sets.resize_with(self.sets_per_shard, Set::default);
        }
        let count = u64::try_from(sets.len()).ok()?;
        let index = usize::try_from(high % count).ok()?;
        sets.get_mut(index).map(act)
    }
}

fn split(key: CacheKey) -> [u64; 2] {
    let low = u64::try_from(key.0 & u128::from(u64::MAX)).unwrap_or_default();
    let high = u64::try_from(key.0 >> 64).unwrap_or_default();
    [low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(number: u8) -> Signed {
        let validity = Validity { inception: 0, expiration: u32::MAX };
        Signed { signature: [number; SIGNATURE_BYTES], validity }
    }

    fn key(cache: &SignatureCache, name: usize) -> CacheKey {
        let owner = format!("\x08{name:08}\x04test\x00");
        let set = RrSet { owner: owner.as_bytes(), rtype: 1, original_ttl: 60, data: &[&[127, 0, 0, 1]] };
        cache.key(&set, b"\x04test\x00", 7)
    }

    fn count(cache: &SignatureCache) -> usize {
        cache
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap().iter().map(|set| set.places.len()).sum::<usize>())
            .sum()
    }

    #[test]
    fn what_is_signed_decides_what_is_found() {
        let cache = SignatureCache::new(1 << 20);
        let owner = b"\x01a\x04test\x00";
        let data: &[&[u8]] = &[&[127, 0, 0, 1], &[127, 0, 0, 2]];
        let set = RrSet { owner, rtype: 1, original_ttl: 60, data };
        cache.put(cache.key(&set, b"\x04test\x00", 7), signed(1));
        assert_eq!(cache.get(cache.key(&set, b"\x04test\x00", 7)), Some(signed(1)));
        for other in [
            cache.key(&RrSet { owner: b"\x01b\x04test\x00", ..set }, b"\x04test\x00", 7),
            cache.key(&RrSet { rtype: 2, ..set }, b"\x04test\x00", 7),
            cache.key(&RrSet { original_ttl: 61, ..set }, b"\x04test\x00", 7),
            cache.key(&RrSet { data: &[&[127, 0, 0, 1, 127, 0, 0, 2]], ..set }, b"\x04test\x00", 7),
            cache.key(&RrSet { data: &[&[127, 0, 0, 1]], ..set }, b"\x04test\x00", 7),
            cache.key(&set, b"\x00", 7),
            cache.key(&set, b"\x04test\x00", 8),
            SignatureCache::new(1 << 20).key(&set, b"\x04test\x00", 7),
        ] {
            assert_eq!(cache.get(other), None);
        }
    }

    #[test]
    fn a_flood_of_names_that_are_asked_for_once_keeps_what_is_in_use_and_stays_in_its_bounds() {
        let bytes_max = 1 << 20;
        let cache = SignatureCache::new(bytes_max);
        let in_use: Vec<CacheKey> = (0..2_000).map(|name| key(&cache, name)).collect();
        for &key in &in_use {
            cache.put(key, signed(1));
            assert!(cache.get(key).is_some());
        }
        for name in 10_000..110_000 {
            cache.put(key(&cache, name), signed(2));
        }
        let kept = in_use.iter().filter(|&&key| cache.get(key).is_some()).count();
        assert!(kept > 1_800, "{kept} of {}", in_use.len());
        let places = count(&cache);
        assert!(places * size_of::<Place>() <= bytes_max && places > 5_000, "{places}");
    }
}
