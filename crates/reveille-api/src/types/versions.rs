//! Versions of a service: what there is of it to go back to.

use std::collections::BTreeMap;

use reveille_core::model::{DomainName, Phase};
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Where a version is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionPlace {
    /// On this host's disk alone.
    Local,
    /// In the object store alone.
    Store,
    /// In both.
    Both,
}

impl VersionPlace {
    /// The word for people and scripts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Store => "store",
            Self::Both => "both",
        }
    }
}

/// The versions of a service, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionList {
    /// The service.
    pub service: DomainName,
    /// Whether there is an object store; without one only the local version is listed.
    pub has_depot: bool,
    /// Its versions.
    pub versions: Vec<VersionSummary>,
}

/// A version in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionSummary {
    /// Its number; a service never uses one again.
    pub number: u64,
    /// Where it is.
    #[serde(rename = "where")]
    pub place: VersionPlace,
    /// Whether the next wake starts from it.
    pub is_next: bool,
    /// When the guest was stopped for it; absent if its manifest cannot be read.
    pub taken_at: Option<Time>,
    /// When it came to the object store.
    pub published_at: Option<Time>,
    /// The version that its guest was restored from.
    pub parent: Option<u64>,
    /// The older version that it repeats, after a roll-back.
    pub restored_from: Option<u64>,
    /// Digest of the image that it was taken of.
    pub image: Option<String>,
    /// Virtual CPUs of its guest.
    pub cpus: Option<u32>,
    /// Memory of its guest in MiB.
    pub memory_mib: Option<u64>,
    /// Bytes that were stored for it.
    pub own_bytes: u64,
    /// Bytes that it shares with the version before it.
    pub shared_bytes: u64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Whether the next look at the service's versions deletes it.
    pub goes: bool,
    /// Why it stays or goes, as a sentence.
    pub verdict: String,
}

/// All about a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionDetail {
    /// The service.
    pub service: DomainName,
    /// As in a list.
    #[serde(flatten)]
    pub summary: VersionSummary,
    /// The ownership epoch of the host that took it.
    pub epoch: u64,
    /// Microseconds that the guest stood still for it.
    pub paused_us: u64,
    /// What it needs to be restored, such as `vmm_version` or `machine`.
    pub needs: BTreeMap<String, String>,
    /// What it consists of.
    pub parts: Vec<VersionPart>,
    /// Objects that hold its pages.
    pub chunks: u64,
    /// Whether any of them is sealed with a key.
    pub sealed: bool,
}

/// A part of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionPart {
    /// `memory`, `device`, a disk layer.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Bytes of it that are not zero.
    pub stored_bytes: u64,
}

/// What a check of a version found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// The service.
    pub service: DomainName,
    /// The version.
    pub number: u64,
    /// Whether nothing is wrong with it.
    pub intact: bool,
    /// Objects that were looked at.
    pub chunks: u64,
    /// What is wrong, each with its place; the first hundred.
    pub faults: Vec<String>,
    /// How much is wrong.
    pub faults_total: u64,
}

/// What became of a roll-back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReply {
    /// The service.
    pub service: DomainName,
    /// The version that is gone back to.
    pub from: u64,
    /// The number that it has now, from which the next wake starts.
    pub number: u64,
    /// The service's phase now.
    pub phase: Phase,
    /// Whether it is so by now; otherwise it is under way.
    pub done: bool,
}

/// What became, or would become, of all versions that nothing keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PruneReport {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Versions that go, by service.
    pub versions: Vec<PrunedVersion>,
    /// Bytes in the object store that only these need: they go one grace later.
    pub freed_bytes: u64,
    /// Objects of earlier versions that nobody needs any more, and go now.
    pub garbage: u64,
    /// Their bytes.
    pub garbage_bytes: u64,
    /// Services that could not be looked at, with the reason.
    pub skipped: Vec<String>,
}

/// A version that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedVersion {
    /// The service.
    pub service: DomainName,
    /// The version.
    pub number: u64,
    /// Why it goes, as a sentence.
    pub verdict: String,
}

/// What a service is to run from now on; what is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redeploy {
    /// Name or content address of its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
}

/// What a service runs now, and what it starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployReply {
    /// The service.
    pub service: DomainName,
    /// Its image, as its spec has it.
    pub image: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whether the verb changed anything.
    pub changed: bool,
    /// The version that is gone back to, and its new number; absent if the next wake is a cold boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<RestoreReply>,
    /// What the service hardly means, as sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
