//! A zone's keys as they are told to people and programs.

use std::fmt::Write;
use std::path::PathBuf;

use domain::utils::base64;
use reveille_core::model::{DomainName, Timestamp};
use serde::{Serialize, Serializer};

use super::rollover::{KeyPolicy, KeyState, RolloverError};
use super::store::ZoneKeys;

/// The keys of a zone, and what is to be done about them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ZoneKeyReport {
    /// The zone.
    pub zone: DomainName,
    /// Its keys, oldest first; those that were removed long ago are forgotten.
    pub keys: Vec<KeyReport>,
    /// The DS records that the parent should have, and no others, as lines of a zone file; empty while it is too early.
    pub ds: Vec<String>,
    /// When to look again; `None`: time alone changes nothing.
    #[serde(serialize_with = "utc_if_any")]
    pub next_look: Option<Timestamp>,
    /// What the operator should do, or wait for; one sentence.
    pub advice: String,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyReport {
    /// Key tag.
    pub tag: u16,
    /// Where it is in its life.
    pub state: KeyState,
    /// Since when.
    #[serde(serialize_with = "utc")]
    pub since: Timestamp,
    /// Its DS was seen at the parent.
    #[serde(serialize_with = "utc_if_any")]
    pub ds_seen: Option<Timestamp>,
    /// Its DNSKEY record as a line of a zone file; `None` once it was removed.
    pub dnskey: Option<String>,
    /// Its DS record as a line of a zone file; `None` once it was removed.
    pub ds: Option<String>,
    /// The file of its private half.
    pub file: PathBuf,
}

/// What is to be told of the keys at `now`.
pub(super) fn of(keys: &ZoneKeys, policy: &KeyPolicy, now: Timestamp) -> ZoneKeyReport {
    let (zone, ledger) = (keys.zone(), keys.ledger());
    let each = ledger.keys().iter().map(|times| {
        let key = keys.key(times.tag);
        let (state, since) = times.state();
        KeyReport {
            tag: times.tag,
            state,
            since,
            ds_seen: times.ds_seen,
            dnskey: key.map(|key| dnskey_text(zone, key.dnskey())),
            ds: key.map(|key| ds_text(zone, &key.ds(zone))),
            file: keys.private_path(times.tag),
        }
    });
    let wished = ledger.wished().and_then(|tag| keys.key(tag));
    ZoneKeyReport {
        zone: zone.clone(),
        keys: each.collect(),
        ds: wished.map(|key| ds_text(zone, &key.ds(zone))).into_iter().collect(),
        next_look: ledger.clone().step(policy, now).next_look,
        advice: advice(keys, policy, now),
    }
}

fn advice(keys: &ZoneKeys, policy: &KeyPolicy, now: Timestamp) -> String {
    let (zone, ledger) = (keys.zone(), keys.ledger());
    if let Err(RolloverError::TooEarly { tag, wait_s }) = ledger.clone().ds_seen(policy, now) {
        return format!(
            "wait {wait_s} s before the DS of key {tag} is put to the parent: caches may hold older answers"
        );
    }
    let newest = ledger.keys().iter().rev().find(|key| key.state().0 != KeyState::Removed);
    let Some(newest) = newest else { return "there is no key".to_owned() };
    if newest.ds_seen.is_none() {
        return format!(
            "let the parent of {zone} have the DS of key {} and no other, then say so: \
             reveille zone rollover {zone} --ds-seen",
            newest.tag
        );
    }
    match ledger.keys().iter().find(|key| key.state().0 == KeyState::Retired) {
        Some(old) => format!("nothing; key {} leaves by itself when caches have forgotten it", old.tag),
        None => "nothing; all is as it should be".to_owned(),
    }
}

/// `vm.test. IN DS 12345 13 2 ABCD…`
fn ds_text(zone: &DomainName, data: &[u8]) -> String {
    let Some((&[high, low, algorithm, digest_type], digest)) = data.split_first_chunk() else {
        return String::new();
    };
    let tag = u16::from_be_bytes([high, low]);
    let mut text = format!("{} IN DS {tag} {algorithm} {digest_type} ", dotted(zone));
    for byte in digest {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02X}");
    }
    text
}

/// `vm.test. IN DNSKEY 257 3 13 q83v…`
fn dnskey_text(zone: &DomainName, data: &[u8]) -> String {
    let Some((&[high, low, protocol, algorithm], key)) = data.split_first_chunk() else {
        return String::new();
    };
    let flags = u16::from_be_bytes([high, low]);
    format!("{} IN DNSKEY {flags} {protocol} {algorithm} {}", dotted(zone), base64::encode_string(key))
}

fn dotted(zone: &DomainName) -> String {
    let text = zone.to_string();
    if text == "." { text } else { text + "." }
}

fn utc<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.utc())
}

fn utc_if_any<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(Timestamp::utc).serialize(serializer)
}
