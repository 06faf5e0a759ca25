//! What can be written, and its encoded form.

use std::fmt;
use std::net::Ipv4Addr;

use reveille_core::decide::Decision;
use reveille_core::model::{DomainName, Instance, InstanceId, ServiceSpec, Timestamp, WakeRecord};
use serde::{Deserialize, Serialize};

/// One change of the state. Rows are replaced whole.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredDecision {
    /// When.
    pub at: Timestamp,
    /// What and why.
    pub decision: Decision,
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
    PutToken([u8; 32], Vec<u8>),
    DropToken([u8; 32]),
    PutSerialCeiling(String, u32),
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
        })
    }
}
