//! What a fleet consists of besides its instances, what can happen to it, and what comes of that.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::instance::{Cause, Instance, InstanceId, SleepAsked, SnapshotVersion};
use super::load::{Foreseen, Load, Wanted};
use super::name::DomainName;
use super::phase::{Kind, Phase, Refusal, Rung};
use super::service::ServiceSpec;
use super::time::Timestamp;
use super::wake::Trigger;
use crate::decide::{Foresight, Outlook};
use crate::health::Judged;

/// Limits of the host that every decision keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostLimits {
    /// Most instances that boot, restore or warm up at a time.
    pub starts_max: u32,
    /// Most memory that guests have together, in MiB; 0: not limited.
    pub memory_mib_max: u64,
    /// Most virtual CPUs that run at a time; 0: not limited.
    pub cpus_max: u64,
    /// Most MiB of versions on the local disk that the object store has too; 0: not limited.
    pub cache_mib_max: u64,
    /// Whether there is an object store that versions are sent to.
    #[serde(skip)]
    pub has_depot: bool,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self { starts_max: 4, memory_mib_max: 0, cpus_max: 0, cache_mib_max: 0, has_depot: false }
    }
}

impl HostLimits {
    /// The limit on memory, if there is one.
    pub fn memory_mib(&self) -> Option<u64> {
        Some(self.memory_mib_max).filter(|most| *most > 0)
    }

    /// The limit on virtual CPUs, if there is one.
    pub fn cpus(&self) -> Option<u64> {
        Some(self.cpus_max).filter(|most| *most > 0)
    }

    /// The limit on the cache in bytes, if there is one.
    pub fn cache_bytes(&self) -> Option<u64> {
        Some(self.cache_mib_max.saturating_mul(1 << 20)).filter(|most| *most > 0)
    }
}

/// Somebody wants a service that does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// When the first one asked.
    pub since: Timestamp,
    /// What the first one was.
    pub trigger: Trigger,
    /// How many have asked since.
    pub asks: u64,
}

/// A service and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// What the user said.
    pub spec: ServiceSpec,
    /// Its stable IPv4 address.
    pub address: Ipv4Addr,
    /// When it was created.
    pub created_at: Timestamp,
    /// The instance that answers for it.
    pub primary: InstanceId,
    /// Those that answer beside it, the oldest first.
    pub replicas: Vec<InstanceId>,
    /// What it was used by of late, if it may have several instances and is awake.
    pub load: Option<Box<Load>>,
    /// Who waits for it, if it does not run.
    pub demand: Option<Demand>,
    /// The host that has taken it over; it does not run here.
    pub foreign: Option<String>,
    /// What is foreseen for it, as long as that may lead to anything.
    pub outlook: Option<Box<Outlook>>,
}

impl Service {
    /// A service that nobody has asked for yet.
    pub fn new(spec: ServiceSpec, address: Ipv4Addr, created_at: Timestamp, primary: InstanceId) -> Self {
        Self {
            spec,
            address,
            created_at,
            primary,
            replicas: Vec::new(),
            load: None,
            demand: None,
            foreign: None,
            outlook: None,
        }
    }

    /// How many instances it takes by now, 1 at least.
    pub fn wanted(&self) -> Wanted {
        self.load.as_ref().map(|load| load.wanted()).unwrap_or_default()
    }

    /// What it was used by before it slept says nothing of what comes now.
    pub(super) fn forget_load(&mut self) {
        if self.replicas.is_empty() {
            self.load = None;
        }
    }

    /// Whether it may have more than one instance.
    pub fn may_scale(&self) -> bool {
        self.spec.kind == Kind::Replicable && self.spec.policy.instances_max > 1
    }
}

/// Whose a service is, as the object store says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// This host's.
    Ours {
        /// The ownership epoch, which rises each time that a host takes the service over.
        epoch: u64,
        /// The newest version in the store that can be restored, and the epoch in which it was put.
        newest: Option<(u64, SnapshotVersion)>,
        /// The highest number of a version in the store.
        number_last: u64,
    },
    /// Another host's; the service does not run here.
    Foreign(String),
}

/// What can happen to a fleet.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A service was added; its instance is new, or as the state database had it.
    Added {
        /// The service.
        service: Box<Service>,
        /// Its primary.
        instance: Box<Instance>,
    },
    /// The user says something else about the service, under the same name.
    Respecified {
        /// The spec; what it says of addresses is not looked at.
        spec: Box<ServiceSpec>,
    },
    /// A query, a packet or an operator wants the service.
    WakeAsked {
        /// The service.
        service: DomainName,
        /// What asked.
        trigger: Trigger,
    },
    /// The service is to be woken at that time, or not at any; the guest or an operator says so.
    WakeAt {
        /// The service.
        service: DomainName,
        /// When.
        at: Option<Timestamp>,
    },
    /// A query wants a service that was on its way up as far as the query room knew. It has passed no wake budget, so
    /// it begins nothing and overtakes nobody's wish: it is one more who waits, if anybody does.
    Awaited {
        /// The service.
        service: DomainName,
    },
    /// An operator wants it asleep or ended.
    SleepAsked {
        /// The service.
        service: DomainName,
        /// How.
        how: SleepAsked,
    },
    /// An operator wants it gone.
    RemoveAsked {
        /// The service.
        service: DomainName,
    },
    /// What the relay has counted.
    Traffic {
        /// The instance behind the relay.
        instance: InstanceId,
        /// Connections open now.
        open_connections: u32,
        /// The last time a byte or datagram passed, if ever.
        last_packet: Option<Timestamp>,
    },
    /// Questions for the service were answered since it was last looked at.
    Answered {
        /// The instance.
        instance: InstanceId,
        /// Until then a resolver may hold such an answer.
        until: Timestamp,
    },
    /// The object store was asked whose the service is.
    Owned {
        /// The service.
        service: DomainName,
        /// Whose.
        ownership: Ownership,
    },
    /// An operator wants the next wake to start from an older version.
    RollBackAsked {
        /// The service.
        service: DomainName,
        /// That version.
        from: u64,
        /// The highest number that the object store knows of the service.
        highest: u64,
        /// Whether a version that only this host has may be lost.
        discard: bool,
    },
    /// Sending a version to the object store has ended. It does not belong to a start: the instance may have woken
    /// meanwhile.
    Published {
        /// The instance.
        instance: InstanceId,
        /// The version.
        number: u64,
        /// What the store has now, or why it has not.
        result: Result<SnapshotVersion, Cause>,
    },
    /// A checkpoint of the running guest has ended.
    Checkpointed {
        /// The instance.
        instance: InstanceId,
        /// Its version.
        number: u64,
        /// What the store has now, or why it has not.
        result: Result<SnapshotVersion, Cause>,
    },
    /// What is foreseen for a service, in place of what was before.
    Foreseen {
        /// The service.
        service: DomainName,
        /// The hazard of the gap that it is in.
        foresight: Foresight,
    },
    /// What clients of a replicable service use at a time.
    Used {
        /// The service.
        service: DomainName,
        /// Open connections, sessions, and clients that wait.
        in_use: u32,
    },
    /// What is foreseen to be in use of a replicable service, in place of what was before.
    Expected {
        /// The service.
        service: DomainName,
        /// In the coming steps.
        foreseen: Vec<Foreseen>,
    },
    /// There is one more instance of a replicable service; it does not run yet.
    Replicated {
        /// The service.
        service: DomainName,
        /// The new one.
        replica: InstanceId,
    },
    /// What the instance's process held of the host's memory on a rung.
    Measured {
        /// The instance.
        instance: InstanceId,
        /// The rung.
        rung: Rung,
        /// In KiB.
        held_kib: u64,
    },
    /// Probes have changed the verdict on a running instance.
    Judged {
        /// The instance.
        instance: InstanceId,
        /// The start that was probed.
        start: u64,
        /// The verdict.
        judged: Judged,
    },
    /// A client whose packet woke the service had its first byte.
    FirstAnswer {
        /// The instance.
        instance: InstanceId,
        /// Milliseconds since that packet.
        waited_ms: u64,
    },
    /// What the executor did.
    Reported {
        /// The instance.
        instance: InstanceId,
        /// The start that the report belongs to ([`Instance::start`]).
        start: u64,
        /// What happened.
        report: Report,
    },
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The vCPUs run.
    Running,
    /// The warm-up set is over, with whatever became of its steps, or there was nothing to do.
    WarmedUp {
        /// What it took, if anything was done.
        took_ms: Option<u64>,
    },
    /// The readiness check passed.
    Ready,
    /// The relay holds new clients and saw no traffic.
    GateClosed,
    /// The relay saw traffic at the last look and goes on letting clients in.
    GateBusy {
        /// Connections open now.
        open_connections: u32,
        /// The last time a byte or datagram passed.
        last_packet: Timestamp,
    },
    /// A version was published, and the process has ended.
    Captured {
        /// The version.
        version: SnapshotVersion,
    },
    /// The capture was given up for a client; the guest runs.
    CaptureAbandoned,
    /// The capture failed; the guest runs.
    CaptureFailed {
        /// Why.
        cause: Cause,
    },
    /// The process is up with the version mapped.
    Armed,
    /// It was restored, passed its readiness check and stands still; the version is as it was.
    Paused,
    /// The version was fetched from the object store.
    Fetched {
        /// The version.
        version: SnapshotVersion,
    },
    /// The version is no longer on the local disk.
    Evicted,
    /// The object store has the older version under its new number, and this host has no other one.
    RolledBack {
        /// The version.
        version: SnapshotVersion,
    },
    /// The roll-back did not come about; all is as it was.
    RollBackFailed {
        /// Why.
        cause: Cause,
    },
    /// The change of rung did not come about; the version is as it was.
    RestFailed {
        /// Why.
        cause: Cause,
    },
    /// The armed or paused process has ended; the version is as it was.
    Disarmed,
    /// The instance, or the start under way, is lost.
    Lost {
        /// Why.
        cause: Cause,
    },
    /// No process of the instance is left.
    Fenced {
        /// The version that is still intact on disk, if any.
        version: Option<SnapshotVersion>,
    },
}

/// What an event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Something changed.
    Changed,
    /// Already so.
    Unchanged,
    /// A report of an earlier start, which no longer matters.
    Stale,
}

/// Why a request or a report was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No such service.
    #[error("there is no service {0}; `reveille service list` shows what there is")]
    UnknownService(DomainName),
    /// No such instance.
    #[error("there is no instance {0}")]
    UnknownInstance(InstanceId),
    /// Its version is in use, or not on the local disk.
    #[error("the instance {0} is not at rest on the local disk")]
    NotAtRest(InstanceId),
    /// The name is taken.
    #[error("the service {0} exists already; remove it first")]
    Exists(DomainName),
    /// Clients are connected.
    #[error("{service} has {open_connections} open connections; with force they are cut")]
    Busy {
        /// The service.
        service: DomainName,
        /// How many.
        open_connections: u32,
    },
    /// It failed to start too often; it is tried again from `retry_at` on.
    #[error("{service} cannot be woken for another {wait_ms} ms: {cause}")]
    GaveUp {
        /// The service.
        service: DomainName,
        /// Why.
        cause: Cause,
        /// Time until the next try.
        wait_ms: u64,
    },
    /// Another host has taken the service over.
    #[error("{service} is served by the host {host}; it does not run here")]
    Foreign {
        /// The service.
        service: DomainName,
        /// The host.
        host: String,
    },
    /// It runs, or is about to.
    #[error("{service} is {phase}; put it to sleep first: `reveille hibernate {service}`")]
    Awake {
        /// The service.
        service: DomainName,
        /// What it does.
        phase: Phase,
    },
    /// Its last version would be lost.
    #[error(
        "version {number} of {service} is not in the object store yet and would be lost; try again in a moment, or discard it"
    )]
    Unstored {
        /// The service.
        service: DomainName,
        /// The version.
        number: u64,
    },
    /// Another roll-back is under way.
    #[error("{service} is being rolled back to version {from} already")]
    RollingBack {
        /// The service.
        service: DomainName,
        /// To which version.
        from: u64,
    },
    /// It is not one that may have several instances, or has as many as it may.
    #[error("{0} may not have one more instance")]
    NotReplicable(DomainName),
    /// The service is being removed.
    #[error("{0} is being removed")]
    Retiring(DomainName),
    /// The phase machine refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
}
