//! Where the keys of signed zones lie, and how they survive.
//!
//! ```text
//!   <state_dir>/signed-zones                       every zone that was ever signed here, one a line
//!   <state_dir>/keys/<zone>/state.toml             the ledger: when what happened to which key
//!   <state_dir>/keys/<zone>/K<zone>.+013+<tag>.*   the keys
//! ```
//!
//! A step is durable before anybody sees it: first the files of a new key, then the ledger that names it, then the
//! list; each is there whole or not at all. A key that no ledger names was never used. No key is overwritten or
//! removed by itself.
//!
//! The list lies outside of `keys`, so that keys which are lost as a whole are missed: a zone whose parent has a DS
//! is bogus with any other key, and without one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reveille_core::model::{DomainName, Timestamp};
use serde::{Deserialize, Serialize};

use super::key::SigningKey;
use super::keyfile::{self, KeyFileError};
use super::rollover::{KeyChange, KeyPolicy, Ledger, RolloverError, Step};

/// Version of the state file.
const VERSION: u32 = 1;
/// Tries to make a key whose tag no other has.
const TAGS_TRIED_MAX: usize = 8;
/// What stands above the ledger.
const HEADING: &str = "# When what happened to the zone's keys, in milliseconds since 1970. Reveille reads this when it starts\n\
                       # and writes it at each step; do not edit it while it runs, and back it up with the keys beside it.\n";

/// Why a zone cannot be signed, or must not be served unsigned.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Its keys are gone.
    #[error(
        "the zone {zone} was signed before, but there is no {}: put the directory with its keys back. If they are \
         lost, remove the zone's DS at its parent, wait until caches have forgotten it, and then take the zone out \
         of {}; the next start makes a new key", state.display(), list.display()
    )]
    Lost {
        /// The zone.
        zone: DomainName,
        /// The missing state file.
        state: PathBuf,
        /// The list of signed zones.
        list: PathBuf,
    },
    /// Keys that nobody says the meaning of.
    #[error(
        "{} has more than one key and no state file that says which one signs; put state.toml back, or leave the \
         one key that is to sign", dir.display()
    )]
    Several {
        /// The directory.
        dir: PathBuf,
    },
    /// A state file that cannot be gone on from.
    #[error("{}: {what}; put back what was there before", path.display())]
    BadState {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A file or directory beside the keys cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key's file is not as it must be.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// The zone is to be served unsigned, but its parent may say that it is signed.
    #[error(
        "the zone {zone} has `dnssec = \"off\"`, but its parent may have a DS for it, with which nobody takes its \
         unsigned answers: remove the DS at the parent, wait until caches have forgotten it, then take the zone out \
         of {} and move {} away", list.display(), dir.display()
    )]
    Delegated {
        /// The zone.
        zone: DomainName,
        /// The directory with its keys.
        dir: PathBuf,
        /// The list of signed zones.
        list: PathBuf,
    },
    /// The rollover does not go on.
    #[error(transparent)]
    Rollover(#[from] RolloverError),
    /// The zone is not signed.
    #[error("the zone {0} is not signed; write `dnssec = \"on\"` into its [[zone]]")]
    Unsigned(DomainName),
}

/// The state directory, as far as it is about signing.
#[derive(Debug, Clone)]
pub(super) struct KeyStore {
    state_dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    version: u32,
    zone: DomainName,
    ledger: Ledger,
}

/// The keys of one zone.
#[derive(Debug)]
pub(super) struct ZoneKeys {
    zone: DomainName,
    dir: PathBuf,
    ledger: Ledger,
    /// All but those that were removed.
    keys: BTreeMap<u16, Arc<SigningKey>>,
}

impl KeyStore {
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned() }
    }

    fn zone_dir(&self, zone: &DomainName) -> PathBuf {
        self.state_dir.join("keys").join(keyfile::file_name(zone))
    }

    fn list_path(&self) -> PathBuf {
        self.state_dir.join("signed-zones")
    }

    /// The zone's keys; a first one is made if there never was any. Caches may hold unsigned answers of the zone
    /// for `unsigned_ttl_s`.
    pub fn open(
        &self,
        zone: &DomainName,
        policy: &KeyPolicy,
        unsigned_ttl_s: u32,
        now: Timestamp,
    ) -> Result<ZoneKeys, KeyError> {
        let listed = self.list()?.iter().any(|line| *line == zone.to_string());
        let keys = match self.read(zone)? {
            Some(keys) => keys,
            None if listed => {
                let state = state_path(&self.zone_dir(zone));
                return Err(KeyError::Lost { zone: zone.clone(), state, list: self.list_path() });
            }
            None => self.begin(zone, policy, unsigned_ttl_s, now)?,
        };
        if !listed {
            self.add_to_list(zone)?;
        }
        Ok(keys)
    }

    /// The zone's keys as they lie there; `None` if there is no ledger.
    pub fn read(&self, zone: &DomainName) -> Result<Option<ZoneKeys>, KeyError> {
        let dir = self.zone_dir(zone);
        let Some(ledger) = read_ledger(&dir, zone)? else { return Ok(None) };
        let mut keys = BTreeMap::new();
        for tag in ledger.published() {
            keys.insert(tag, Arc::new(keyfile::load(&dir, zone, tag)?));
        }
        Ok(Some(ZoneKeys { zone: zone.clone(), dir, ledger, keys }))
    }

    /// The zone is served unsigned from now on. A ledger that nobody outside has acted on is forgotten: should the
    /// zone be signed again, caches hold unsigned answers then, and its key begins anew.
    ///
    /// # Errors
    /// If its parent may have a DS of a key that was made here.
    pub fn leave_unsigned(&self, zone: &DomainName) -> Result<(), KeyError> {
        if !self.may_leave_unsigned(zone)? {
            return Ok(());
        }
        // In this order: what is in the list must have a ledger.
        let lines = self.list()?;
        self.write_list(lines.into_iter().filter(|line| *line != zone.to_string()).collect())?;
        let path = state_path(&self.zone_dir(zone));
        fs::remove_file(&path).map_err(|source| KeyError::Io { path, source })
    }

    /// As [`KeyStore::leave_unsigned`]: done whole, or not at all as far as the disk allows. Gives what was forgotten,
    /// for [`KeyStore::put_back`].
    pub fn forget(&self, zone: &DomainName) -> Result<Option<Ledger>, KeyError> {
        if !self.may_leave_unsigned(zone)? {
            return Ok(None);
        }
        let ledger = read_ledger(&self.zone_dir(zone), zone)?;
        let left = self.leave_unsigned(zone);
        if let (Err(_), Some(ledger)) = (&left, &ledger) {
            // The first fault is the one to tell.
            let _ = self.put_back(zone, ledger.clone());
        }
        left.map(|()| ledger)
    }

    /// The zone is signed all the same, by the ledger that was forgotten.
    pub fn put_back(&self, zone: &DomainName, ledger: Ledger) -> Result<(), KeyError> {
        let (zone, dir, keys) = (zone.clone(), self.zone_dir(zone), BTreeMap::new());
        let keys = ZoneKeys { zone, dir, ledger, keys };
        keys.write(&keys.ledger)?;
        let listed = self.list()?.iter().any(|line| *line == keys.zone.to_string());
        if listed { Ok(()) } else { self.add_to_list(&keys.zone) }
    }

    /// Whether there is a ledger to forget, if the zone may be served unsigned; as of
    /// [`KeyStore::leave_unsigned`], without changing anything.
    pub fn may_leave_unsigned(&self, zone: &DomainName) -> Result<bool, KeyError> {
        let (dir, list) = (self.zone_dir(zone), self.list_path());
        let listed = self.list()?.iter().any(|line| *line == zone.to_string());
        match read_ledger(&dir, zone)? {
            None if listed => Err(KeyError::Lost { zone: zone.clone(), state: state_path(&dir), list }),
            None => Ok(false),
            Some(ledger) if ledger.may_be_delegated() => {
                Err(KeyError::Delegated { zone: zone.clone(), dir, list })
            }
            Some(_) => Ok(true),
        }
    }

    fn begin(
        &self,
        zone: &DomainName,
        policy: &KeyPolicy,
        unsigned_ttl_s: u32,
        now: Timestamp,
    ) -> Result<ZoneKeys, KeyError> {
        let dir = self.zone_dir(zone);
        for dir in [&self.state_dir.join("keys"), &dir] {
            keyfile::make_dir(dir).map_err(|source| KeyError::Io { path: dir.clone(), source })?;
        }
        // A key without a ledger was put there for us, or is what a killed start has left. It was not used here.
        let only = keyfile::load_only(&dir, zone).map_err(|error| match error {
            Ok(error) => error.into(),
            Err(_several) => KeyError::Several { dir: dir.clone() },
        })?;
        let key = match only {
            Some(key) => key,
            None => keyfile::create(&dir, zone, now)?,
        };
        let ledger = Ledger::first(key.tag(), unsigned_ttl_s, policy, now);
        let keys = BTreeMap::from([(key.tag(), Arc::new(key))]);
        let keys = ZoneKeys { zone: zone.clone(), dir, ledger, keys };
        keys.write(&keys.ledger)?;
        Ok(keys)
    }

    fn list(&self) -> Result<Vec<String>, KeyError> {
        let path = self.list_path();
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(KeyError::Io { path, source }),
        }
    }

    fn add_to_list(&self, zone: &DomainName) -> Result<(), KeyError> {
        let mut lines = self.list()?;
        lines.push(zone.to_string());
        self.write_list(lines)
    }

    fn write_list(&self, mut lines: Vec<String>) -> Result<(), KeyError> {
        lines.sort();
        let path = self.list_path();
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        keyfile::replace(&path, text.as_bytes()).map_err(|source| KeyError::Io { path, source })
    }
}

impl ZoneKeys {
    pub fn zone(&self) -> &DomainName {
        &self.zone
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub fn key(&self, tag: u16) -> Option<&Arc<SigningKey>> {
        self.keys.get(&tag)
    }

    /// The file of a key's private half.
    pub fn private_path(&self, tag: u16) -> PathBuf {
        keyfile::private_path(&self.dir, &self.zone, tag)
    }

    /// Looks what time makes of the keys. When it returns, that is durable.
    pub fn step(&mut self, policy: &KeyPolicy, now: Timestamp) -> Result<Step, KeyError> {
        let mut next = self.ledger.clone();
        let step = next.step(policy, now);
        self.take(next)?;
        Ok(step)
    }

    /// Begins a rollover with a key made for it.
    pub fn begin_rollover(&mut self, now: Timestamp) -> Result<KeyChange, KeyError> {
        self.ledger.may_begin()?;
        let mut tries = 1;
        let (key, next, change) = loop {
            let made = keyfile::create(&self.dir, &self.zone, now).map_err(KeyError::from).and_then(|key| {
                let mut next = self.ledger.clone();
                let change = next.begin(key.tag(), now)?;
                Ok((key, next, change))
            });
            match made {
                Ok(made) => break made,
                // One of 65,536 tags is taken now and then.
                Err(error) if is_same_tag(&error) && tries < TAGS_TRIED_MAX => tries += 1,
                Err(error) => return Err(error),
            }
        };
        self.write(&next)?;
        self.keys.insert(key.tag(), Arc::new(key));
        self.ledger = next;
        Ok(change)
    }

    /// The awaited DS is at the parent.
    pub fn ds_seen(&mut self, policy: &KeyPolicy, now: Timestamp) -> Result<Vec<KeyChange>, KeyError> {
        let mut next = self.ledger.clone();
        let changes = next.ds_seen(policy, now)?;
        self.take(next)?;
        Ok(changes)
    }

    fn take(&mut self, next: Ledger) -> Result<(), KeyError> {
        if next != self.ledger {
            self.write(&next)?;
            self.ledger = next;
            let (keys, ledger) = (&mut self.keys, &self.ledger);
            keys.retain(|&tag, _| ledger.published().any(|published| published == tag));
        }
        Ok(())
    }

    fn write(&self, ledger: &Ledger) -> Result<(), KeyError> {
        let path = state_path(&self.dir);
        let state = StateFile { version: VERSION, zone: self.zone.clone(), ledger: ledger.clone() };
        let text = toml::to_string(&state)
            .map_err(|error| KeyError::BadState { path: path.clone(), what: error.to_string() })?;
        let text = format!("{HEADING}{text}");
        keyfile::replace(&path, text.as_bytes()).map_err(|source| KeyError::Io { path, source })
    }
}

fn is_same_tag(error: &KeyError) -> bool {
    match error {
        KeyError::File(KeyFileError::Io { source, .. }) => source.kind() == io::ErrorKind::AlreadyExists,
        KeyError::Rollover(RolloverError::SameTag(_)) => true,
        KeyError::File(
            KeyFileError::Unreadable(_) | KeyFileError::Open { .. } | KeyFileError::Fault { .. },
        )
        | KeyError::Rollover(RolloverError::UnderWay { .. } | RolloverError::TooEarly { .. })
        | KeyError::Lost { .. }
        | KeyError::Several { .. }
        | KeyError::BadState { .. }
        | KeyError::Io { .. }
        | KeyError::Delegated { .. }
        | KeyError::Unsigned(_) => false,
    }
}

fn state_path(dir: &Path) -> PathBuf {
    dir.join("state.toml")
}

fn read_ledger(dir: &Path, zone: &DomainName) -> Result<Option<Ledger>, KeyError> {
    let path = state_path(dir);
    let bad = |what: String| KeyError::BadState { path: path.clone(), what };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KeyError::Io { path, source }),
    };
    let state: StateFile = toml::from_str(&text).map_err(|error| bad(error.message().to_owned()))?;
    if state.version != VERSION {
        return Err(bad(format!("is of version {}, which this program does not read", state.version)));
    }
    if state.zone != *zone {
        return Err(bad(format!("is of the zone {}, not of {zone}", state.zone)));
    }
    match state.ledger.fault() {
        Some(fault) => Err(bad(fault.to_owned())),
        None => Ok(Some(state.ledger)),
    }
}
