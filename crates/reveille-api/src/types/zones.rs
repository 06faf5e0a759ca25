//! Zones, and the keys that sign them.

use std::path::PathBuf;

use reveille_core::model::DomainName;
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// A zone in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneSummary {
    /// Its apex.
    pub name: DomainName,
    /// Its serial.
    pub serial: u32,
    /// Whether its answers are signed.
    pub signed: bool,
    /// Secondaries that are told of its new serials.
    pub secondaries: u64,
    /// Those of them that have acknowledged the newest one.
    pub secondaries_in_step: u64,
    /// What is to be done, or waited for, about its keys.
    pub next_step: Option<String>,
}

/// The keys of a signed zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneKeys {
    /// The zone.
    pub zone: DomainName,
    /// Its keys, oldest first; those that were removed long ago are forgotten.
    pub keys: Vec<KeyReport>,
    /// The DS records that the parent should have, and no others, as lines of a zone file; empty while it is too early.
    pub ds: Vec<String>,
    /// The CDS records by which the zone tells its parent so (RFC 7344).
    pub cds: Vec<String>,
    /// When time alone changes something.
    pub next_look: Option<Time>,
    /// What is to be done, or waited for; one sentence.
    pub next_step: String,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyReport {
    /// Key tag.
    pub tag: u16,
    /// `published`, `ready`, `active`, `retired` or `removed`.
    pub state: String,
    /// Since when.
    pub since: Time,
    /// When its DS was seen at the parent.
    pub ds_seen: Option<Time>,
    /// Its DNSKEY record as a line of a zone file; absent once it was removed.
    pub dnskey: Option<String>,
    /// Its DS record as a line of a zone file; absent once it was removed.
    pub ds: Option<String>,
    /// The file of its private half; only told on the host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}
