//! What the API asks of the daemon. The binary implements it; the tests have one in memory.

use std::net::Ipv4Addr;

use async_trait::async_trait;
use reveille_core::forecast::profile::Request;
use reveille_core::health::HealthPolicy;
use reveille_core::model::{DomainName, Policy, RequestError, ServiceSpec, SpecFault};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::events::Event;
use crate::time::Time;
use crate::types::{
    DemandProfile, DemandProfileSummary, DemandRange, DemandReport, DeployReply, DnsReport, HealthReport,
    HostSummary, ProfileReport, PruneReport, Redeploy, ReloadReport, RestoreReply, ServiceDemand,
    ServiceDetail, ServiceSummary, TakenRequests, VerbReply, VerifyReport, VersionDetail, VersionList, Wake,
    Whose, WhyReport, ZoneKeys, ZoneSummary,
};

/// Whether a verb answers when it is accepted or when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// As soon as it is accepted.
    #[default]
    UntilAccepted,
    /// When what was asked for is so, or has failed.
    UntilDone,
}

/// What happens to open connections when a service is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Connections {
    /// They are kept: with any open, the verb is refused as busy.
    #[default]
    Keep,
    /// They are cut.
    Cut,
}

/// What is asked of the keys of a signed zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RolloverStep {
    /// A new key is made and published.
    #[default]
    Begin,
    /// The parent has the awaited DS and no other: the key takes over.
    DsSeen,
}

/// What a clone is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneRequest {
    /// Its name.
    pub name: DomainName,
    /// Its stable IPv4 address; default: the next one of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Whether a guest without an agent is cloned too, though nobody can tell it that it is another.
    #[serde(default)]
    pub allow_identical: bool,
}

/// How thoroughly a version is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Depth {
    /// Its manifest, and whether everything is there with its length.
    Lengths,
    /// Every page.
    #[default]
    Pages,
}

/// Whether a version is kept whatever its age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// It is.
    Set,
    /// It is not, or not any more.
    Cleared,
}

/// What becomes of a last version that the object store does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unstored {
    /// It is kept: what would lose it is refused, or waits until it is stored.
    #[default]
    Keep,
    /// It may be lost.
    Discard,
}

/// The daemon, as the API sees it.
///
/// Every `name` is a full name or a first label that only one service has; telling which is the daemon's part
/// ([`ControlError::AmbiguousName`] if it cannot). Verbs are idempotent: asked again, they say that it is so
/// already. A future may be dropped at any await (the client went away); what was begun goes on.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// At most `limit` services in the order of their names, beginning after the name `after`.
    async fn services(
        &self,
        after: Option<&DomainName>,
        limit: usize,
    ) -> Result<Vec<ServiceSummary>, ControlError>;

    /// One service.
    async fn service(&self, name: &DomainName) -> Result<ServiceDetail, ControlError>;

    /// Adds a service. The spec is checked against its own ranges before; what depends on the daemon (the
    /// image exists, the address is free, the name is in a served zone) is checked here, every fault at once.
    async fn add_service(&self, spec: ServiceSpec) -> Result<ServiceDetail, ControlError>;

    /// Makes the sleeping service's last version the first one of a new service.
    async fn clone_service(
        &self,
        name: &DomainName,
        asked: CloneRequest,
    ) -> Result<ServiceDetail, ControlError> {
        let (_, _) = (name, asked);
        Err(ControlError::Unavailable { detail: "this daemon cannot clone".to_owned() })
    }

    /// Has the service woken at a time though nobody asks for it; `None`: at no time.
    async fn wake_at(&self, name: &DomainName, at: Option<Time>) -> Result<VerbReply, ControlError> {
        let (_, _) = (name, at);
        Err(ControlError::Unavailable { detail: "this daemon cannot wake by schedule".to_owned() })
    }

    /// Ends the service's instances and forgets it.
    async fn remove_service(&self, name: &DomainName) -> Result<(), ControlError>;

    /// Wakes the service.
    async fn wake(&self, name: &DomainName, wait: Wait) -> Result<VerbReply, ControlError>;

    /// Puts the service to sleep without waiting for its idle time.
    async fn hibernate(
        &self,
        name: &DomainName,
        connections: Connections,
        wait: Wait,
    ) -> Result<VerbReply, ControlError>;

    /// Ends the service's guest and drops its memory; the next wake is a cold boot.
    async fn terminate(&self, name: &DomainName, wait: Wait) -> Result<VerbReply, ControlError>;

    /// The last `limit` decisions and wakes with their reasons, newest first.
    async fn why(&self, name: &DomainName, limit: usize) -> Result<WhyReport, ControlError>;

    /// At most `limit` wakes, newest first, with sequence numbers below `before`.
    async fn wakes(
        &self,
        name: &DomainName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Wake>, ControlError>;

    /// Reads the config file, and the files that it names, again; takes over what can change while the daemon runs.
    /// Changes nothing if anything has a fault.
    async fn reload(&self) -> Result<ReloadReport, ControlError>;

    /// The daemon and its host.
    async fn host(&self) -> Result<HostSummary, ControlError>;

    /// How the instances that run, or were lost, fare.
    async fn health(&self) -> Result<HealthReport, ControlError> {
        Ok(HealthReport::default())
    }

    /// What the query room has counted and seen.
    async fn dns(&self) -> Result<DnsReport, ControlError>;

    /// Takes in requests that a log tells of, in the log's order; `refused` lines between them were none. Waits for room, but
    /// not for long.
    async fn take_requests(
        &self,
        requests: Vec<Request>,
        refused: u64,
    ) -> Result<TakenRequests, ControlError> {
        let (_, _) = (requests, refused);
        Err(nothing_recorded())
    }

    /// What is recorded of demand, in short.
    async fn demand(&self) -> Result<DemandReport, ControlError> {
        Err(nothing_recorded())
    }

    /// What was asked of the service of late.
    async fn service_demand(
        &self,
        name: &DomainName,
        asked: DemandRange,
    ) -> Result<ServiceDemand, ControlError> {
        let (_, _) = (name, asked);
        Err(nothing_recorded())
    }

    /// At most `limit` users or groups with a profile in the order of their names, beginning after the name `after`.
    async fn demand_profiles(
        &self,
        whose: Whose,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DemandProfileSummary>, ControlError> {
        let (_, _, _) = (whose, after, limit);
        Err(nothing_recorded())
    }

    /// One user's or group's profile.
    async fn demand_profile(&self, whose: Whose, name: &str) -> Result<DemandProfile, ControlError> {
        let (_, _) = (whose, name);
        Err(nothing_recorded())
    }

    /// At most `limit` zones in the order of their names, beginning after the name `after`.
    async fn zones(&self, after: Option<&DomainName>, limit: usize)
    -> Result<Vec<ZoneSummary>, ControlError>;

    /// The keys of a signed zone.
    async fn zone_keys(&self, zone: &DomainName) -> Result<ZoneKeys, ControlError>;

    /// Begins a rollover of the zone's key, or goes on with it. What is answered is durable.
    async fn rollover(&self, zone: &DomainName, step: RolloverStep) -> Result<ZoneKeys, ControlError>;

    /// The versions of the service, newest first; without an object store the local one alone.
    async fn versions(&self, name: &DomainName) -> Result<VersionList, ControlError>;

    /// One version in the object store.
    async fn version(&self, name: &DomainName, number: u64) -> Result<VersionDetail, ControlError>;

    /// Checks a version where it lies.
    async fn verify_version(
        &self,
        name: &DomainName,
        number: u64,
        depth: Depth,
    ) -> Result<VerifyReport, ControlError>;

    /// Makes an older version the one that the next wake starts from, under a new number. Only for a service that
    /// sleeps, is off or has failed.
    async fn restore_version(
        &self,
        name: &DomainName,
        number: u64,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<RestoreReply, ControlError>;

    /// Keeps a version whatever its age, or no longer.
    async fn pin_version(&self, name: &DomainName, number: u64, pin: Pin) -> Result<(), ControlError>;

    /// Deletes a version; not the one that the service relies on.
    async fn delete_version(&self, name: &DomainName, number: u64) -> Result<(), ControlError>;

    /// Deletes the versions of this host's services that nothing keeps, and what nobody needs any more.
    async fn prune(&self, dry_run: bool) -> Result<PruneReport, ControlError>;

    /// Gives a sleeping service another image or other resources: the next wake is a cold boot, and what was taken of
    /// it before stays in the object store.
    async fn redeploy(
        &self,
        name: &DomainName,
        wanted: Redeploy,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ControlError>;

    /// Gives a sleeping service the image, the resources and the version of before its last redeploy.
    async fn rollback(
        &self,
        name: &DomainName,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ControlError>;

    /// The policy of services that do not say otherwise.
    fn default_policy(&self) -> Policy {
        Policy::default()
    }

    /// How services are probed that do not say otherwise.
    fn default_health(&self) -> HealthPolicy {
        HealthPolicy::default()
    }

    /// The warm-up profiles that services can name, in the order of their names.
    fn profiles(&self) -> Vec<ProfileReport> {
        Vec::new()
    }

    /// Whether requests are served.
    ///
    /// # Errors
    /// What is waited for, as a sentence.
    fn readiness(&self) -> Result<(), String>;

    /// A new reader of what happens from now on.
    fn events(&self) -> broadcast::Receiver<Event>;
}

fn nothing_recorded() -> ControlError {
    ControlError::Unavailable { detail: "this daemon records nothing of demand".to_owned() }
}

/// Why the daemon did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No such service. 404.
    #[error("there is no service {name}; `reveille service list` shows what there is")]
    UnknownService {
        /// What was asked for.
        name: DomainName,
    },
    /// No such zone. 404.
    #[error("{name} is no zone that is served here; `reveille zone list` shows what there is")]
    UnknownZone {
        /// What was asked for.
        name: DomainName,
    },
    /// No such version. 404.
    #[error(
        "{service} has no version {number} in the object store; `reveille snapshot list {service}` shows what there is"
    )]
    UnknownVersion {
        /// The service.
        service: DomainName,
        /// What was asked for.
        number: u64,
    },
    /// No such user or group has a profile. 404.
    #[error(
        "there is no profile of {name} among the {whose}; `reveille demand {whose}` shows those that there are, and \
         who made few requests is among all others"
    )]
    UnknownDemandProfile {
        /// Among whom it was looked for.
        whose: Whose,
        /// What was asked for.
        name: String,
    },
    /// It takes an object store, and none is configured. 409.
    #[error(
        "no object store is configured; set `url` in the section [depot] of the config file, such as \
         \"file:///var/lib/reveille-depot\", and start the daemon again"
    )]
    NoDepot,
    /// The first label of several services. 409.
    #[error("{label} is the first label of several services; write the full name of one")]
    AmbiguousName {
        /// What was asked for.
        label: DomainName,
        /// The services that it could be.
        candidates: Vec<DomainName>,
    },
    /// The name or the address is taken. 409.
    #[error("{detail}")]
    Exists {
        /// One sentence with the remedy.
        detail: String,
    },
    /// Clients are connected. 409.
    #[error("{detail}")]
    Busy {
        /// One sentence with the remedy.
        detail: String,
    },
    /// Not in the state that the service is in. 409.
    #[error("{detail}")]
    Refused {
        /// One sentence.
        detail: String,
    },
    /// What was given is wrong. 422, with every fault.
    #[error("{}", sentence_of(faults))]
    Invalid {
        /// Each with key, value and what is allowed.
        faults: Vec<SpecFault>,
    },
    /// The config file, or a file that it names, has faults. 422, with every fault.
    #[error("nothing is changed, as the config or its files have faults:\n  {}", reasons.join("\n  "))]
    NotReloaded {
        /// Each as a sentence with its place.
        reasons: Vec<String>,
    },
    /// The service failed to start too often. 503 with Retry-After.
    #[error("{detail}")]
    GaveUp {
        /// The cause, as a sentence.
        detail: String,
        /// When it is tried again, in milliseconds from now.
        retry_ms: u64,
    },
    /// A start or a hibernation that was waited for has failed. 503.
    #[error("{detail}")]
    Failed {
        /// The cause, as a sentence.
        detail: String,
    },
    /// The daemon cannot do it now. 503.
    #[error("{detail}")]
    Unavailable {
        /// One sentence with the remedy.
        detail: String,
    },
}

fn sentence_of(faults: &[SpecFault]) -> String {
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    faults.join("; ")
}

impl From<RequestError> for ControlError {
    fn from(error: RequestError) -> Self {
        let detail = error.to_string();
        match error {
            RequestError::UnknownService(name) => Self::UnknownService { name },
            RequestError::Exists(_) => Self::Exists { detail },
            // What it waits for comes by itself.
            RequestError::Busy { .. } | RequestError::Unstored { .. } => Self::Busy { detail },
            RequestError::GaveUp { wait_ms, .. } => Self::GaveUp { detail, retry_ms: wait_ms },
            RequestError::UnknownInstance(_)
            | RequestError::NotAtRest(_)
            | RequestError::NotReplicable(_)
            | RequestError::Retiring(_)
            | RequestError::Foreign { .. }
            | RequestError::Awake { .. }
            | RequestError::RollingBack { .. }
            | RequestError::Refused(_) => Self::Refused { detail },
        }
    }
}
