//! Online signing (RFC 4034, 4035, 9824): answers of signed zones are signed when they are asked for.
//!
//! ```text
//!   answer(view, …) ─► Reply ─► Zone::signer() ─► Reply with RRSIG, NSEC, DNSKEY … ─► written
//!                                   │
//!             cache ◄─ signature ◄──┴─► budget: so many new ones a second
//!
//!   slow: Signing::step(now) ─► ledger (durable) ─► keys of the signer
//! ```
//!
//! `rollover` is the life of keys, pure; `store` and `keyfile` keep them; `signer` does the work on a reply with
//! `canonical` and `denial`; `cache`, `budget` and `room` are what signers share. Signing waits for nothing: a
//! question whose signatures are not there costs some 27 µs each, within [`SignatureRates`].
//!
//! **Invariant:** what a signer does with a key was durable before.
//! **Invariant:** a zone that was signed once is never served unsigned, or with another key, because files are missing.

mod budget;
mod cache;
mod canonical;
mod denial;
mod key;
mod keyfile;
mod leave;
mod report;
mod rollover;
mod room;
mod signer;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Acquire};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use reveille_core::answer::{Signer, Zone};
use reveille_core::model::{DomainName, Timestamp};

use signer::{Keyset, RecordData, ZoneSigner};
use store::{KeyStore, ZoneKeys};

pub use budget::SignatureRates;
pub use key::KeyFault;
pub use keyfile::KeyFileError;
pub use report::{KeyReport, ZoneKeyReport};
pub use rollover::{KeyChange, KeyPolicy, KeyState, Ledger, RolloverError, Step};
pub use room::{SignCounts, SigningLimits};
pub use store::KeyError;

/// Every signed zone: its keys, its signer.
pub struct Signing {
    store: KeyStore,
    policy: Mutex<KeyPolicy>,
    room: Arc<room::SigningRoom>,
    /// Replaced as a whole when zones come or go, by one task alone.
    zones: ArcSwap<BTreeMap<DomainName, Arc<SignedZone>>>,
}

/// One zone.
struct SignedZone {
    signer: Arc<ZoneSigner>,
    /// Only the slow loop and the command line look here.
    keys: Mutex<ZoneKeys>,
    /// It is not signed any more, whoever still holds it.
    left: AtomicBool,
}

/// What came of a look at all keys.
#[derive(Debug, Default)]
pub struct Look {
    /// What changed, by zone.
    pub changes: Vec<(DomainName, KeyChange)>,
    /// What could not be made durable; it is tried again at the next look.
    pub errors: Vec<(DomainName, KeyError)>,
    /// When to look again, at the latest.
    pub next: Option<Timestamp>,
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signing").field("zones", &self.zones.load().keys()).finish_non_exhaustive()
    }
}

impl Signing {
    /// Opens the keys of these zones below the state directory, and makes a first one for each that never had any.
    /// Beside each stands for how many seconds a cache may hold an unsigned answer that its records say nothing of, as
    /// for [`Signing::add`]. `now` is the daemon's clock.
    ///
    /// # Errors
    /// Everything that keeps a zone from being signed.
    pub fn open<'z>(
        state_dir: &Path,
        zones: impl IntoIterator<Item = (&'z Zone, u32)>,
        policy: KeyPolicy,
        limits: &SigningLimits,
        now: Timestamp,
    ) -> Result<Self, Vec<KeyError>> {
        let room = Arc::new(room::SigningRoom::new(limits));
        let (policy, store) = (Mutex::new(policy), KeyStore::new(state_dir));
        let signing = Self { store, policy, room, zones: ArcSwap::default() };
        let opened = zones.into_iter().map(|(zone, held_s)| signing.add(zone, held_s, now));
        let errors: Vec<KeyError> = opened.filter_map(Result::err).collect();
        if errors.is_empty() { Ok(signing) } else { Err(errors) }
    }

    /// The zone is served unsigned from now on; to be called before it is. Should it be signed again, its key
    /// begins anew.
    ///
    /// # Errors
    /// If its parent may have a DS for it, or its keys are lost.
    pub fn leave_unsigned(state_dir: &Path, zone: &DomainName) -> Result<(), KeyError> {
        KeyStore::new(state_dir).leave_unsigned(zone)
    }

    /// Why the zone cannot be served unsigned; changes nothing.
    ///
    /// # Errors
    /// As of [`Signing::leave_unsigned`].
    pub fn may_leave_unsigned(state_dir: &Path, zone: &DomainName) -> Result<(), KeyError> {
        KeyStore::new(state_dir).may_leave_unsigned(zone).map(|_| ())
    }

    /// Opens the keys of one more zone, or makes its first one, whose DS waits until no cache has an unsigned answer any
    /// more. `held_s`: for how many seconds a cache may hold one that is not of the zone's records, but of a service in
    /// it, or of the zone as it was served until now. Waits for the disk. One task alone may change which zones are
    /// signed.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn add(&self, zone: &Zone, held_s: u32, now: Timestamp) -> Result<(), KeyError> {
        let policy = self.policy();
        let keys = self.store.open(zone.apex(), &policy, longest_ttl_s(zone).max(held_s), now)?;
        // A ledger without an active key is refused when it is read.
        let Some(keyset) = keyset(&keys, &policy) else { return Ok(()) };
        let apex = keys.zone().clone();
        let signer = Arc::new(ZoneSigner::new(apex.clone(), keyset, Arc::clone(&self.room)));
        let (keys, left) = (Mutex::new(keys), AtomicBool::new(false));
        let mut zones = BTreeMap::clone(&self.zones.load());
        zones.insert(apex, Arc::new(SignedZone { signer, keys, left }));
        self.zones.store(Arc::new(zones));
        Ok(())
    }

    /// Whether the zone is signed.
    pub fn is_signed(&self, apex: &DomainName) -> bool {
        self.zones.load().contains_key(apex)
    }

    /// Goes by another policy from the next step on.
    pub fn set_policy(&self, policy: KeyPolicy) {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
        for zone in self.zones.load().values() {
            zone.use_keys(&zone.lock(), &policy);
        }
    }

    fn policy(&self) -> KeyPolicy {
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys of a zone as they lie below the state directory, without changing anything.
    ///
    /// # Errors
    /// If there are none, or they cannot be read.
    pub fn look_up(
        state_dir: &Path,
        zone: &DomainName,
        policy: &KeyPolicy,
        now: Timestamp,
    ) -> Result<ZoneKeyReport, KeyError> {
        let keys = KeyStore::new(state_dir).read(zone)?;
        Ok(report::of(&keys.ok_or_else(|| KeyError::Unsigned(zone.clone()))?, policy, now))
    }

    /// The zone with its signer, if it is a signed one.
    #[must_use]
    pub fn sign(&self, zone: Zone) -> Zone {
        let zones = self.zones.load();
        let signer =
            zones.get(zone.apex()).map(|signed| Signer::new(Arc::<ZoneSigner>::clone(&signed.signer)));
        zone.with_signer(signer)
    }

    /// Looks what time makes of the keys: what is due is made durable and takes effect. `now` is the daemon's clock,
    /// `wall` the host's; keys go on by whichever is behind, signatures are good by both. To be called at
    /// [`Look::next`], and now and then for the sake of the clocks. Waits for the disk.
    pub fn step(&self, now: Timestamp, wall: Timestamp) -> Look {
        self.room.compare_clocks(now, wall);
        let now = now.min(wall);
        let (mut look, policy) = (Look::default(), self.policy());
        for (zone, signed) in self.zones.load_full().iter() {
            let mut keys = signed.lock();
            if signed.left.load(Acquire) {
                continue;
            }
            let step = match keys.step(&policy, now) {
                Ok(step) => step,
                Err(error) => {
                    look.errors.push((zone.clone(), error));
                    continue;
                }
            };
            let mut changed = !step.changes.is_empty();
            look.changes.extend(step.changes.into_iter().map(|change| (zone.clone(), change)));
            if step.wants_key {
                match keys.begin_rollover(now) {
                    Ok(change) => {
                        look.changes.push((zone.clone(), change));
                        changed = true;
                    }
                    Err(error) => look.errors.push((zone.clone(), error)),
                }
            }
            look.next = match (look.next, step.next_look) {
                (Some(next), Some(other)) => Some(next.min(other)),
                (next, other) => next.or(other),
            };
            if changed {
                signed.use_keys(&keys, &policy);
            }
        }
        look
    }

    /// Begins a rollover of the zone's key. The next look is due at once.
    ///
    /// # Errors
    /// If one is under way, or the key cannot be written.
    pub fn begin_rollover(&self, zone: &DomainName, now: Timestamp) -> Result<ZoneKeyReport, KeyError> {
        self.change(zone, now, |keys| keys.begin_rollover(now).map(|_| ()))
    }

    /// The operator, or whoever has looked, says that the parent has the awaited DS and no other: the new key takes
    /// over. Saying so again changes nothing.
    ///
    /// # Errors
    /// If that DS must not be there yet.
    pub fn ds_seen(&self, zone: &DomainName, now: Timestamp) -> Result<ZoneKeyReport, KeyError> {
        let policy = self.policy();
        self.change(zone, now, |keys| keys.ds_seen(&policy, now).map(|_| ()))
    }

    /// The keys of a zone.
    ///
    /// # Errors
    /// If it is not signed.
    pub fn report(&self, zone: &DomainName, now: Timestamp) -> Result<ZoneKeyReport, KeyError> {
        self.change(zone, now, |_| Ok(()))
    }

    /// What was counted since the start.
    pub fn counts(&self) -> SignCounts {
        self.room.counts()
    }

    fn change(
        &self,
        zone: &DomainName,
        now: Timestamp,
        change: impl FnOnce(&mut ZoneKeys) -> Result<(), KeyError>,
    ) -> Result<ZoneKeyReport, KeyError> {
        let signed = self.zones.load().get(zone).cloned();
        let signed = signed.ok_or_else(|| KeyError::Unsigned(zone.clone()))?;
        let policy = self.policy();
        let mut keys = signed.lock();
        if signed.left.load(Acquire) {
            return Err(KeyError::Unsigned(zone.clone()));
        }
        change(&mut keys)?;
        signed.use_keys(&keys, &policy);
        Ok(report::of(&keys, &policy, now))
    }
}

impl SignedZone {
    fn lock(&self) -> MutexGuard<'_, ZoneKeys> {
        // Keys change only after all that can fail has been done.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_keys(&self, keys: &ZoneKeys, policy: &KeyPolicy) {
        if let Some(keyset) = keyset(keys, policy) {
            self.signer.set_keys(keyset);
        }
    }
}

/// What the ledger says is signed with now.
fn keyset(keys: &ZoneKeys, policy: &KeyPolicy) -> Option<Keyset> {
    let ledger = keys.ledger();
    let published: Vec<_> = ledger.published().filter_map(|tag| keys.key(tag).cloned()).collect();
    let active = Arc::clone(keys.key(ledger.signing()?)?);
    let wished = ledger.wished().and_then(|tag| keys.key(tag));
    let one = |data: Vec<u8>| -> RecordData { Arc::new([data.into_boxed_slice()]) };
    Some(Keyset {
        active,
        dnskey: published.iter().map(|key| key.dnskey().into()).collect(),
        cds: wished.map(|key| one(key.ds(keys.zone()))),
        cdnskey: wished.map(|key| one(key.dnskey().to_vec())),
        published,
        key_ttl_s: policy.dnskey_ttl_s,
        ttl_s_max: policy.ttl_s_max,
    })
}

/// The longest TTL of the zone's records, in seconds.
pub fn longest_ttl_s(zone: &Zone) -> u32 {
    zone.nodes().flat_map(|node| node.sets()).map(|(_, set)| set.ttl).max().unwrap_or(0)
}
