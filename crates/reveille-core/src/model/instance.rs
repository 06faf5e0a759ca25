//! One virtual machine: the row of the state table (L2).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::measured::{Measured, RecentDurations};
use super::name::DomainName;
use super::phase::{Move, Outcome, Phase, Refusal, Role, Rung, VmState, transition};
use super::service::{Resources, ServiceSpec};
use super::time::Timestamp;
use crate::health::{Health, HealthReason, Judged};
use crate::warm_up::WarmUpSet;

/// Identity of an instance, never used twice on a host; shown as `i17`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.0)
    }
}

/// A complete state of an instance that can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotVersion {
    /// 1 for the first, rising by one.
    pub number: u64,
    /// When it was published.
    pub at: Timestamp,
    /// Bytes that it takes on disk.
    pub stored_bytes: u64,
    /// Microseconds that the guest stood still for the capture.
    pub paused_us: u64,
    /// Content address of the image that it came from.
    pub image: String,
}

/// A roll-back: an older version becomes the one that the next wake starts from, under a new number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollBack {
    /// The older version.
    pub from: u64,
    /// The number that its content gets, above all others.
    pub number: u64,
}

/// What an instance that is ended leaves on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remains {
    /// All that there is.
    #[default]
    All,
    /// Its disk, from which the next start boots; no version.
    Disk,
    /// Nothing in its place: its service is gone. What somebody may still want, a disk above all, is put out of the way.
    Nothing,
}

/// What an instance ran before its service was given another image or other resources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    /// The image, as the spec had it.
    pub image: String,
    /// What it was given.
    pub resources: Resources,
    /// Its last version, if the object store has it.
    pub version: Option<u64>,
}

/// Why an instance was lost or did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Cause {
    /// The monitor's process ended by itself or was killed.
    VmmDied {
        /// Exit status or signal, and the last line that it wrote, where known.
        detail: String,
    },
    /// The monitor did not answer its control socket in time.
    VmmHung {
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The readiness check of a running instance failed.
    PortDead {
        /// What the check saw.
        detail: String,
    },
    /// A step of the warm-up profile failed on which the start depends.
    WarmUpFailed {
        /// The step.
        step: String,
        /// Why.
        detail: String,
    },
    /// The start took longer than the policy allows.
    StartTimedOut {
        /// The limit that was reached.
        limit_ms: u64,
        /// The phase in which it was.
        phase: Phase,
    },
    /// The monitor could not be started.
    StartFailed {
        /// One sentence with the remedy.
        detail: String,
    },
    /// The version cannot be restored here.
    VersionUnusable {
        /// What does not fit.
        detail: String,
    },
    /// The object store does not have, or cannot give, the version.
    StoreFailed {
        /// One sentence with the remedy.
        detail: String,
    },
    /// The capture failed; the guest runs on.
    CaptureFailed {
        /// One sentence with the remedy.
        detail: String,
    },
    /// A program in the guest does not want it to sleep now.
    Vetoed {
        /// Its words.
        reason: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VmmDied { detail } => write!(f, "its QEMU process ended: {detail}"),
            Self::VmmHung { waited_ms } => write!(f, "its QEMU process did not answer for {waited_ms} ms"),
            Self::PortDead { detail } => write!(f, "the service's port was dead: {detail}"),
            Self::WarmUpFailed { step, detail } => write!(f, "its warm-up failed at `{step}`: {detail}"),
            Self::StartTimedOut { limit_ms, phase } => {
                write!(f, "it was still {phase} after {limit_ms} ms")
            }
            Self::StartFailed { detail } => write!(f, "the start failed: {detail}"),
            Self::VersionUnusable { detail } => write!(f, "its snapshot cannot be restored: {detail}"),
            Self::StoreFailed { detail } => write!(f, "the object store failed: {detail}"),
            Self::CaptureFailed { detail } => write!(f, "the hibernation failed: {detail}"),
            Self::Vetoed { reason } => write!(f, "the guest does not want to sleep now: {reason}"),
        }
    }
}

/// The last failure of an instance, until it is ready again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub cause: Cause,
    /// When.
    pub at: Timestamp,
    /// Starts that failed in a row, this one included; 0 when a running instance was lost.
    pub attempts: u32,
    /// Of these, those for which the version can have been at fault.
    #[serde(default)]
    pub version_suspected: u32,
    /// Before this time no start is tried.
    pub retry_at: Timestamp,
    /// Whether requests are refused until `retry_at` rather than held.
    pub gave_up: bool,
}

/// One virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Identity.
    pub id: InstanceId,
    /// The service that it belongs to.
    pub service: DomainName,
    /// What it is for.
    pub role: Role,
    /// What it is doing.
    pub phase: Phase,
    /// How warm it is.
    pub rung: Rung,
    /// When the phase began.
    pub phase_since: Timestamp,
    /// When the vCPUs last began to run, if they run.
    pub running_since: Option<Timestamp>,
    /// The last open connection or packet, as far as it was looked at.
    pub last_activity: Timestamp,
    /// Until then a resolver may hold an answer for it, as far as it was looked at.
    #[serde(default)]
    pub leased_until: Timestamp,
    /// The version that can be restored. `None` from the moment its vCPUs run again: the running guest writes
    /// to the version's memory file, which is then no version any more.
    pub version: Option<SnapshotVersion>,
    /// Number of the newest version ever begun, so that numbers are not used twice.
    pub version_number_last: u64,
    /// The newest version that is complete in the object store.
    #[serde(default)]
    pub stored: Option<SnapshotVersion>,
    /// Whether no vCPU has run for a client since `stored` was taken: restoring it loses nothing.
    #[serde(default)]
    pub stored_is_current: bool,
    /// The ownership epoch in which what this host has of it was made; 0: this host has never owned it.
    #[serde(default)]
    pub epoch: u64,
    /// Number and time of a version that may still be on the local disk and that another host has gone on from, or past.
    #[serde(default)]
    pub obsolete: Option<(u64, Timestamp)>,
    /// Versions up to this number are of before it was ended for good.
    #[serde(default)]
    pub discarded: u64,
    /// How often in a row the version could not be used: here, or in the object store because it is damaged or not there.
    #[serde(default)]
    pub unusable_fetches: u32,
    /// Before this time no version is sent to the object store (the last try failed).
    #[serde(default)]
    pub publish_retry_at: Option<Timestamp>,
    /// Before this time no checkpoint is tried (the last one failed).
    #[serde(default)]
    pub checkpoint_retry_at: Option<Timestamp>,
    /// The roll-back that was begun. It is durable before the object store is asked, so that it is brought to its end
    /// whatever happens meanwhile.
    #[serde(default)]
    pub rolling_back: Option<RollBack>,
    /// Why the last roll-back did not come about. Not stored: whoever asked for it is told.
    #[serde(skip)]
    pub roll_back_failure: Option<Cause>,
    /// What it ran before its spec changed, so that it can be gone back to.
    #[serde(default)]
    pub former: Option<Former>,
    /// The version that it has was taken of another image or with other resources: the next start is a cold boot, from
    /// its disk if that is of the same base. Then the version ceases to count; what the object store has stays there.
    #[serde(default)]
    pub outdated: bool,
    /// When it last hibernated.
    pub hibernated_at: Option<Timestamp>,
    /// When an operator last wanted it asleep: what was foreseen before that wakes it no more.
    #[serde(default)]
    pub put_to_sleep_at: Option<Timestamp>,
    /// When it is to be woken though nobody asks for it.
    #[serde(default)]
    pub wake_at: Option<Timestamp>,
    /// The last failure, until it is ready again.
    pub failure: Option<Failure>,
    /// Before this time no further capture is tried (the last one failed), and why.
    #[serde(default)]
    pub sleep_retry: Option<(Timestamp, Cause)>,
    /// Measured wakes by restore, trigger to ready.
    pub restores: RecentDurations,
    /// Measured wakes by cold boot, trigger to ready.
    pub boots: RecentDurations,
    /// The same by the rung that the wake began from, and what is held on each.
    #[serde(default)]
    pub measured: Measured,

    /// Counts starts and changes of rung, so that a report of an earlier one is told from a report of this one.
    pub start: u64,
    /// When the start under way, or the last one, began.
    pub start_since: Timestamp,
    /// The rung that it began from; `Cold` is a boot.
    pub start_from: Rung,
    /// Before this time it is not brought to its resting rung (the last try failed).
    #[serde(default, alias = "arm_retry_at")]
    pub rest_retry_at: Option<Timestamp>,

    /// Connections through the relay at the last look. Not stored: a restart closes them all.
    #[serde(skip)]
    pub open_connections: u32,
    /// Those were not counted since nobody new is led to it: it is a replica that drains.
    #[serde(skip)]
    pub is_uncounted: bool,
    /// The process of an earlier start may still be there and must be ended before the next one.
    #[serde(default)]
    pub unfenced: bool,
    /// A change of rung, a kill or an abandoned capture is being carried out. Not stored: nothing is in flight after
    /// a restart.
    #[serde(skip)]
    pub in_flight: bool,
    /// The start under way warms its guest up before clients are let in. Stored: a daemon that takes the guest over begins
    /// the set again.
    #[serde(default)]
    pub warming_up: bool,
    /// The last start has done so.
    #[serde(skip)]
    pub warmed_up: bool,
    /// The start under way is for nobody who asked, but for who is expected.
    #[serde(skip)]
    pub ahead: bool,
    /// Its version was fetched since somebody waits: that wake is one from the rung `remote`.
    #[serde(skip)]
    pub fetched_for_wake: bool,
    /// The number of the version that is being sent to the object store. It may go on while the instance wakes.
    #[serde(skip)]
    pub publishing: Option<u64>,
    /// The number of the checkpoint that is being taken of the running guest.
    #[serde(skip)]
    pub checkpointing: Option<u64>,
    /// An operator asked for sleep; the idle time is not waited for.
    #[serde(skip)]
    pub sleep_asked: Option<SleepAsked>,
    /// The instance is to be ended and its row dropped.
    #[serde(default)]
    pub retiring: bool,
    /// The last verdict on its health, and the start that it is of. Not stored: after a restart it is found out anew.
    #[serde(skip)]
    pub judged: Option<Box<(u64, Judged)>>,
}

/// How an operator asked for sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SleepAsked {
    /// Only if no connection is open.
    WhenIdle,
    /// Open connections are cut.
    Force,
    /// Open connections are cut and nothing is kept: the next wake is a cold boot.
    Terminate,
}

impl Instance {
    /// Whether its guest goes on from a version, is warmed up, and has not answered anybody since.
    pub fn is_restored(&self) -> bool {
        self.phase == Phase::Warming && self.start_from > Rung::Cold && !self.warming_up
    }

    /// What the start under way has to do before clients are let in.
    pub fn warm_up(&self) -> Option<WarmUpSet> {
        let set = if self.start_from > Rung::Cold { WarmUpSet::Restore } else { WarmUpSet::Boot };
        self.warming_up.then_some(set)
    }

    /// A new replica of `service` that has never run.
    pub fn replica(id: InstanceId, service: DomainName, now: Timestamp) -> Self {
        Self { role: Role::Replica, ..Self::new(id, service, now) }
    }

    /// Whether it takes clients, or would if its gate were open.
    pub fn serves(&self) -> bool {
        self.phase == Phase::Active
    }

    /// A new primary of `service` that has never run.
    pub fn new(id: InstanceId, service: DomainName, now: Timestamp) -> Self {
        Self {
            id,
            service,
            role: Role::Primary,
            phase: Phase::Off,
            rung: Rung::Cold,
            phase_since: now,
            running_since: None,
            last_activity: now,
            leased_until: Timestamp::default(),
            version: None,
            version_number_last: 0,
            stored: None,
            stored_is_current: false,
            epoch: 0,
            obsolete: None,
            discarded: 0,
            unusable_fetches: 0,
            publish_retry_at: None,
            checkpoint_retry_at: None,
            rolling_back: None,
            roll_back_failure: None,
            former: None,
            outdated: false,
            hibernated_at: None,
            failure: None,
            sleep_retry: None,
            restores: RecentDurations::default(),
            boots: RecentDurations::default(),
            measured: Measured::default(),
            fetched_for_wake: false,
            warming_up: false,
            warmed_up: false,
            ahead: false,
            put_to_sleep_at: None,
            start: 0,
            start_since: now,
            start_from: Rung::Cold,
            wake_at: None,
            rest_retry_at: None,
            open_connections: 0,
            is_uncounted: false,
            unfenced: false,
            in_flight: false,
            publishing: None,
            checkpointing: None,
            sleep_asked: None,
            retiring: false,
            judged: None,
        }
    }

    /// Whether it serves, since when that is so, and why. Who sleeps is not down.
    pub fn health(&self, spec: &ServiceSpec) -> Judged {
        let (health, reason) = match self.phase {
            Phase::Off | Phase::Hibernating | Phase::Hibernated => (Health::Unknown, HealthReason::Asleep),
            Phase::Booting | Phase::Restoring | Phase::Warming => (Health::Unknown, HealthReason::Starting),
            Phase::Failed => {
                let cause =
                    self.failure.as_ref().map_or_else(String::new, |failure| failure.cause.to_string());
                (Health::Down, HealthReason::Lost { cause })
            }
            Phase::Active | Phase::Draining if spec.probing().is_empty() => {
                (Health::Unknown, HealthReason::NotAsked)
            }
            Phase::Active | Phase::Draining => match self.judged.as_deref() {
                Some((start, judged)) if *start == self.start => return judged.clone(),
                Some(_) | None => (Health::Unknown, HealthReason::NotProbed),
            },
        };
        Judged { health, since: self.phase_since, reason }
    }

    /// Takes a step of the phase machine; returns whether the phase changed.
    ///
    /// # Errors
    /// The refusal, with nothing changed.
    pub fn step(&mut self, asked: Move, now: Timestamp) -> Result<bool, Refusal> {
        match transition(self.phase, asked) {
            Outcome::To(next) => {
                self.phase = next;
                self.phase_since = now;
                Ok(true)
            }
            Outcome::Stay => Ok(false),
            Outcome::Refused(refusal) => Err(refusal),
        }
    }

    /// Whether it was tried so often in vain to start it, or to get its version, that requests are refused now.
    pub fn is_given_up(&self, now: Timestamp) -> bool {
        matches!(self.phase, Phase::Failed | Phase::Hibernated)
            && self.failure.as_ref().is_some_and(|failure| failure.gave_up && failure.retry_at > now)
    }

    /// Durations of wakes as the next one is likely to be: from the rung that it is on, or from any version as long as
    /// there was none from there; without a version, cold boots.
    pub fn likely_wakes(&self) -> &RecentDurations {
        if self.version.is_none() && self.rung != Rung::Remote {
            return &self.boots;
        }
        self.measured
            .on(self.rung)
            .map(|measured| &measured.wakes)
            .filter(|wakes| wakes.count() > 0)
            .unwrap_or(&self.restores)
    }

    /// Whether it sleeps on the local disk and nothing is done with it.
    pub fn is_kept_here(&self) -> bool {
        self.phase == Phase::Hibernated && self.rung == Rung::Local && !self.in_flight
    }

    /// The state shown to the outside.
    pub fn state(&self) -> VmState {
        VmState::of(self.phase, self.rung)
    }
}
