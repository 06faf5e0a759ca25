//! What can be written, and its encoded form.

use std::fmt;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use reveille_core::decide::Decision;
use reveille_core::health::{Health, HealthReason};
use reveille_core::model::{DomainName, Instance, InstanceId, ServiceSpec, Timestamp, WakeRecord};
use serde::{Deserialize, Serialize};

/// One change of the state. Rows are replaced whole.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The instance is as given.
    PutInstance(Box<Instance>),
    /// The instance is gone.
    DropInstance(InstanceId),
    /// The service is as given.
    PutService(Box<StoredService>),
    /// The service and its history are gone. Its instances are dropped on their own.
    DropService(DomainName),
    /// A wake began, went on or ended. It replaces the newest record of the same instance and trigger time.
    AddWake(Box<WakeRecord>),
    /// A decision was taken.
    AddDecision(Box<StoredDecision>),
    /// The verdict on an instance's health has changed.
    AddHealth(Box<StoredHealth>),
    /// The token is as given.
    PutToken(Box<StoredToken>),
    /// The token is worth nothing any more.
    DropToken(TokenHash),
    /// The zone may be published with serials up to this one, and the next start begins above it. In the order of
    /// RFC 1982 a ceiling only rises; one that does not is written all the same, for a zone that was renumbered.
    PutSerialCeiling {
        /// The zone.
        apex: DomainName,
        /// The highest serial.
        ceiling: u32,
    },
    /// Dynamic updates have made the RRset differ from the zone file as given.
    PutStaticSet(Box<StoredStaticSet>),
    /// The RRset is as in the zone file.
    DropStaticSet {
        /// The zone.
        zone: DomainName,
        /// The RRset's owner.
        owner: DomainName,
        /// Its type.
        rtype: u16,
    },
    /// What an external primary has of a name.
    PutPublished {
        /// The external primary: server and zone.
        target: String,
        /// The name.
        name: DomainName,
        /// What it has.
        row: StoredPublished,
    },
    /// An external primary has nothing of that name any more.
    DropPublished {
        /// The external primary.
        target: String,
        /// The name.
        name: DomainName,
    },
    /// The serial of an external primary's zone that was seen last.
    PutPublishedSerial {
        /// The external primary.
        target: String,
        /// The serial.
        serial: u32,
    },
}

/// A service as the database keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredService {
    /// What the user said.
    pub spec: ServiceSpec,
    /// Its stable address, kept for life.
    pub address: Ipv4Addr,
    /// When it was created.
    pub created_at: Timestamp,
    /// Who declared it.
    pub origin: Origin,
}

/// Who declared a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The config file: it goes when the file no longer has it.
    Config,
    /// The API: it stays until it is removed there.
    Api,
}

/// A decision and when it was taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredDecision {
    /// When.
    pub at: Timestamp,
    /// What and why.
    pub decision: Decision,
}

/// A verdict on an instance's health that was not so before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHealth {
    /// When.
    pub at: Timestamp,
    /// The service.
    pub service: DomainName,
    /// The instance.
    pub instance: InstanceId,
    /// The verdict.
    pub health: Health,
    /// Why, with the numbers.
    pub reason: HealthReason,
}

/// BLAKE3 hash of a token, by which it is found; the token itself is nowhere at rest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    /// The first bytes only: enough to tell two apart in a log, too few to look for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// An access token of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// What it is found by.
    pub hash: TokenHash,
    /// What its owner calls it.
    pub name: String,
    /// What it may do, as the API's word for it.
    pub scope: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is worth nothing; `None`: never.
    pub expires: Option<Timestamp>,
}

/// How an RRset differs from the zone file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredStaticSet {
    /// The zone.
    pub zone: DomainName,
    /// The RRset's owner.
    pub owner: DomainName,
    /// Its type.
    pub rtype: u16,
    /// Its TTL, in seconds.
    pub ttl: u32,
    /// Data that the file does not have, in wire format.
    pub added: Vec<Vec<u8>>,
    /// Data that only the file has, in wire format.
    pub removed: Vec<Vec<u8>>,
}

/// The value part of a static set's row; data as hexadecimal digits.
#[derive(Serialize, Deserialize)]
pub(crate) struct StaticSetRow {
    pub ttl: u32,
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// What an external primary has of a published name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPublished {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// TTL, in seconds.
    pub ttl_s: u32,
    /// Whether it has confirmed this, and nothing else was sent since.
    pub certain: bool,
}

/// The value part of a token's row.
#[derive(Serialize, Deserialize)]
pub(crate) struct TokenRow {
    pub name: String,
    pub scope: String,
    pub created_at: Timestamp,
    pub expires: Option<Timestamp>,
}

/// A change, ready to be written: encoding can fail only here, on the caller's side, before anything is queued.
pub(crate) enum Encoded {
    PutInstance(u64, Vec<u8>),
    DropInstance(u64),
    PutService(String, Vec<u8>),
    DropService(String),
    AddWake { service: String, instance: InstanceId, at: Timestamp, row: Vec<u8> },
    AddDecision(String, Vec<u8>),
    AddHealth(String, Vec<u8>),
    PutToken([u8; 32], Vec<u8>),
    DropToken([u8; 32]),
    PutSerialCeiling(String, u32),
    PutStaticSet { zone: String, owner: Vec<u8>, rtype: u16, row: Vec<u8> },
    DropStaticSet { zone: String, owner: Vec<u8>, rtype: u16 },
    PutPublished { target: String, name: String, row: Vec<u8> },
    DropPublished { target: String, name: String },
    PutPublishedSerial(String, u32),
}

impl Change {
    pub(crate) fn encode(&self) -> Result<Encoded, serde_json::Error> {
        Ok(match self {
            Self::PutInstance(instance) => Encoded::PutInstance(instance.id.0, serde_json::to_vec(instance)?),
            Self::DropInstance(id) => Encoded::DropInstance(id.0),
            Self::PutService(service) => {
                Encoded::PutService(service.spec.name.to_string(), serde_json::to_vec(service)?)
            }
            Self::DropService(name) => Encoded::DropService(name.to_string()),
            Self::AddWake(wake) => Encoded::AddWake {
                service: wake.service.to_string(),
                instance: wake.instance,
                at: wake.at,
                row: serde_json::to_vec(wake)?,
            },
            Self::AddDecision(decision) => {
                Encoded::AddDecision(decision.decision.service.to_string(), serde_json::to_vec(decision)?)
            }
            Self::AddHealth(health) => {
                Encoded::AddHealth(health.service.to_string(), serde_json::to_vec(health)?)
            }
            Self::PutToken(token) => {
                let row = TokenRow {
                    name: token.name.clone(),
                    scope: token.scope.clone(),
                    created_at: token.created_at,
                    expires: token.expires,
                };
                Encoded::PutToken(token.hash.0, serde_json::to_vec(&row)?)
            }
            Self::DropToken(hash) => Encoded::DropToken(hash.0),
            Self::PutSerialCeiling { apex, ceiling } => Encoded::PutSerialCeiling(apex.to_string(), *ceiling),
            Self::PutStaticSet(set) => {
                let hex = |all: &[Vec<u8>]| all.iter().map(|data| to_hex(data)).collect();
                let row = StaticSetRow { ttl: set.ttl, added: hex(&set.added), removed: hex(&set.removed) };
                Encoded::PutStaticSet {
                    zone: set.zone.to_string(),
                    owner: set.owner.as_wire().to_vec(),
                    rtype: set.rtype,
                    row: serde_json::to_vec(&row)?,
                }
            }
            Self::DropStaticSet { zone, owner, rtype } => Encoded::DropStaticSet {
                zone: zone.to_string(),
                owner: owner.as_wire().to_vec(),
                rtype: *rtype,
            },
            Self::PutPublished { target, name, row } => Encoded::PutPublished {
                target: target.clone(),
                name: name.to_string(),
                row: serde_json::to_vec(row)?,
            },
            Self::DropPublished { target, name } => {
                Encoded::DropPublished { target: target.clone(), name: name.to_string() }
            }
            Self::PutPublishedSerial { target, serial } => {
                Encoded::PutPublishedSerial(target.clone(), *serial)
            }
        })
    }
}

fn to_hex(data: &[u8]) -> String {
    data.iter().fold(String::with_capacity(data.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of an even number of hexadecimal digits.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
    bytes.collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty())
}
