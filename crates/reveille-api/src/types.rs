//! The bodies that travel. Times are RFC 3339, durations milliseconds, sizes bytes unless the name says MiB.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use reveille_core::answer::Network;
use reveille_core::decide::{Action, Decision, Reason};
use reveille_core::health::{Health, HealthPolicy};
use reveille_core::model::load::Wanted;
use reveille_core::model::{
    DomainName, Egress, Failure, Instance, InstanceId, Kind, Phase, Policy, PortSpec, ReadyCheck, Remains,
    Resources, Role, Rung, RungMeasured, Service, SnapshotVersion, Stage, Timestamp, Trigger, VmState,
    WakeOutcome, WakeRecord,
};
use serde::{Deserialize, Serialize};

use crate::time::Time;

mod demand;
mod dns;
mod health;
mod versions;
mod warm_up;
mod zones;

pub use demand::{
    AnomalyReport, DemandProfile, DemandProfileSummary, DemandRange, DemandReport, DemandStep, LogReport,
    ProfilesReport, RiskPart, RiskReport, ServiceDemand, TakenRequests, Whose,
};
pub use dns::{
    ArrivalsEstimate, Counts, DnsReport, ObservedReport, PublicationReport, QueriesReport, SecondaryReport,
    Top,
};
pub use health::{
    Evidence, HealthChange, HealthReport, INSTANCES_SHOWN_MAX, InstanceHealth, MetricsReport, ProbeReport,
};
pub use versions::{
    DeployReply, PruneReport, PrunedVersion, Redeploy, RestoreReply, VerifyReport, VersionDetail,
    VersionList, VersionPart, VersionPlace, VersionSummary,
};
pub use warm_up::{
    ProfileReport, StepReport, StepSetReport, WarmUpReport, WarmUpResult, WarmUpStepReport, WarmUpTime,
};
pub use zones::{KeyReport, ZoneKeys, ZoneSummary};

/// Items of a list that are sent when no `limit` is asked for.
pub const PAGE_ITEMS_DEFAULT: usize = 100;
/// Most items of a list that are sent at a time.
pub const PAGE_ITEMS_MAX: usize = 1_000;

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Give it as `cursor` to get what follows; absent at the end. Opaque.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// What a reload has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReloadReport {
    /// The config file.
    pub file: String,
    /// What is in force now.
    pub changes: Vec<ReloadChange>,
    /// Keys whose new values take effect at the next start.
    pub needs_restart: Vec<String>,
    /// What is in force and perhaps not as it was meant; sentences.
    pub warnings: Vec<String>,
}

/// One thing that a reload has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadChange {
    /// The key, as the config file's faults name it: `gate`, `zone "vm.test"`.
    pub key: String,
    /// What has become of it: `added`, `removed`, `changed`, `serial 8, was 7`.
    pub change: String,
}

/// A service in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Its full name.
    pub name: DomainName,
    /// What its primary is doing.
    pub phase: Phase,
    /// The phase and rung as one of three states.
    pub state: VmState,
    /// How warm its primary is.
    pub rung: Rung,
    /// What the instance described here is for.
    pub role: Role,
    /// Its stable IPv4 address.
    pub address: Ipv4Addr,
    /// Its stable IPv6 address, if it has one.
    pub address6: Option<Ipv6Addr>,
    /// Name or content address of its image.
    pub image: String,
    /// What an instance is given.
    pub resources: Resources,
    /// Where it is reached.
    pub ports: Vec<PortSpec>,
    /// How many instances may run at a time.
    pub kind: Kind,
    /// Order in the wake queue: higher first.
    pub priority: u8,
    /// Connections through the relay at the last look.
    pub open_connections: u32,
    /// Clients that are held until it is ready.
    pub held_clients: u32,
    /// The last open connection or packet, as far as it was looked at.
    pub last_activity: Time,
    /// The last failure, until it is ready again.
    pub failure: Option<FailureReport>,
    /// Whether it serves: `up`, `down` or `unknown`.
    #[serde(default)]
    pub health: Health,
    /// Why.
    #[serde(default)]
    pub health_reason: String,
}

/// All about a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// As in a list.
    #[serde(flatten)]
    pub summary: ServiceSummary,
    /// Its primary.
    pub instance: InstanceId,
    /// When the service was created.
    pub created_at: Time,
    /// When the phase began.
    pub phase_since: Time,
    /// When the vCPUs last began to run, if they run.
    pub running_since: Option<Time>,
    /// When it last hibernated.
    pub hibernated_at: Option<Time>,
    /// The version that can be restored.
    pub version: Option<VersionReport>,
    /// The newest version in the object store.
    #[serde(default)]
    pub stored: Option<VersionReport>,
    /// Nothing has run since that one was taken.
    #[serde(default)]
    pub stored_is_current: bool,
    /// When it is woken though nobody asks for it.
    #[serde(default)]
    pub wake_at: Option<Time>,
    /// The guest's agent when it was last ready: `none`, `silent`, or its version; absent when that is not known. Without
    /// one the guest cannot veto its sleep, its file systems are not frozen, and it cannot be cloned.
    #[serde(default)]
    pub agent: Option<String>,
    /// Its warm-up profile, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// How long its sets may take.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warm_up_times: Vec<WarmUpTime>,
    /// What was last done by it; absent before that, and after a restart of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<WarmUpReport>,
    /// The older version that it is being rolled back to.
    #[serde(default)]
    pub rolling_back: Option<u64>,
    /// The image that `service rollback` goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_image: Option<String>,
    /// The host that has taken the service over; it does not run here.
    #[serde(default)]
    pub foreign: Option<String>,
    /// Measured wakes from a version, trigger to ready: median.
    pub wake_ms_p50: Option<u32>,
    /// Measured wakes from a version, trigger to ready: 95th percentile.
    pub wake_ms_p95: Option<u32>,
    /// Measured cold boots, trigger to ready: median.
    pub boot_ms_p50: Option<u32>,
    /// Measured cold boots, trigger to ready: 95th percentile.
    pub boot_ms_p95: Option<u32>,
    /// What was measured on each rung, coldest first.
    #[serde(default)]
    pub rungs: Vec<RungReport>,
    /// What follows from what is foreseen, from now on; empty if nothing is, or nothing but its resting rung.
    #[serde(default)]
    pub foreseen: Vec<StayReport>,
    /// What its clients use, and how many instances that takes; absent unless it is awake and may have several.
    #[serde(default)]
    pub load: Option<LoadReport>,
    /// Instances beside the primary, the oldest first.
    #[serde(default)]
    pub replicas: Vec<ReplicaReport>,
    /// The readiness check in force.
    pub ready: ReadyCheck,
    /// What the guest may reach by itself.
    pub egress: Egress,
    /// Whom alone, if that is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_allow: Vec<Network>,
    /// Whom not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_deny: Vec<Network>,
    /// By which rules it sleeps and wakes.
    pub policy: Policy,
    /// How it is probed.
    #[serde(default)]
    pub health_policy: HealthPolicy,
    /// Since when it is as `health` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_since: Option<Time>,
    /// It fell several times of late, so that it has to answer for longer before it is up again.
    #[serde(default)]
    pub flapping: bool,
    /// What each probe has found since it runs.
    #[serde(default)]
    pub probes: Vec<ProbeReport>,
    /// What the host sees of it while it runs.
    #[serde(default)]
    pub metrics: Option<MetricsReport>,
    /// Questions for it of late; absent where nobody counts them.
    #[serde(default)]
    pub queries: Option<QueriesReport>,
    /// What was last out of the ordinary in how often it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_anomaly: Option<AnomalyReport>,
    /// How likely it is to fail its next client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<RiskReport>,
}

/// Who is there at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clients {
    /// Open connections.
    pub open: u32,
    /// Connections that wait for the service.
    pub held: u32,
}

impl ServiceSummary {
    /// What there is to say of `service` and its primary.
    pub fn of(service: &Service, instance: &Instance, clients: Clients) -> Self {
        let spec = &service.spec;
        let judged = instance.health(spec);
        Self {
            name: spec.name.clone(),
            phase: instance.phase,
            state: instance.state(),
            rung: instance.rung,
            role: instance.role,
            address: service.address,
            address6: spec.address6,
            image: spec.image.clone(),
            resources: spec.resources,
            ports: spec.ports.clone(),
            kind: spec.kind,
            priority: spec.priority,
            open_connections: clients.open,
            held_clients: clients.held,
            last_activity: Time(instance.last_activity),
            failure: instance.failure.as_ref().map(FailureReport::of),
            health: judged.health,
            health_reason: judged.reason.to_string(),
        }
    }
}

impl ServiceDetail {
    /// The same with what is known of the running instance.
    pub fn with(mut self, evidence: Evidence) -> Self {
        // What is on its way to the control loop is not told before it has come there; and who was lost is down for that.
        let probed = matches!(self.summary.phase, Phase::Active | Phase::Draining);
        let holds = |health: Health| probed && health == self.summary.health;
        if let Some((_, reason)) = evidence.judged.filter(|(health, _)| holds(*health)) {
            self.summary.health_reason = reason.to_string();
        }
        Self { flapping: evidence.flapping, probes: evidence.probes, metrics: evidence.metrics, ..self }
    }

    /// What there is to say of `service` and its primary.
    pub fn of(service: &Service, instance: &Instance, clients: Clients) -> Self {
        Self {
            summary: ServiceSummary::of(service, instance, clients),
            instance: instance.id,
            created_at: Time(service.created_at),
            phase_since: Time(instance.phase_since),
            running_since: instance.running_since.map(Time),
            hibernated_at: instance.hibernated_at.map(Time),
            version: instance.version.as_ref().map(VersionReport::of),
            stored: instance.stored.as_ref().map(VersionReport::of),
            stored_is_current: instance.stored_is_current,
            wake_at: instance.wake_at.map(Time),
            agent: None,
            rolling_back: instance.rolling_back.map(|roll_back| roll_back.from),
            profile: service.spec.profile.clone(),
            warm_up_times: Vec::new(),
            warm_up: None,
            former_image: instance.former.as_ref().map(|former| former.image.clone()),
            foreign: service.foreign.clone(),
            wake_ms_p50: instance.restores.percentile_ms(50),
            wake_ms_p95: instance.restores.percentile_ms(95),
            boot_ms_p50: instance.boots.percentile_ms(50),
            boot_ms_p95: instance.boots.percentile_ms(95),
            rungs: instance.measured.iter().map(|(rung, measured)| RungReport::of(rung, measured)).collect(),
            foreseen: StayReport::of(service),
            load: service.load.as_ref().map(|load| LoadReport::of(load.wanted())),
            replicas: Vec::new(),
            ready: service.spec.ready_check(),
            egress: service.spec.egress,
            egress_allow: service.spec.egress_allow.clone(),
            egress_deny: service.spec.egress_deny.clone(),
            policy: service.spec.policy,
            health_policy: service.spec.health.clone(),
            health_since: Some(Time(instance.health(&service.spec).since)),
            flapping: false,
            probes: Vec::new(),
            metrics: None,
            queries: None,
            last_anomaly: None,
            risk: None,
        }
    }
}

/// What clients of a replicable service use at a time: connections, sessions, and clients that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Mean over the stable window, rounded.
    pub stable: u64,
    /// Mean over the panic window, rounded.
    pub panic: u64,
    /// What one instance is to be used by, rounded.
    pub target: u64,
    /// Whether the panic window decides.
    pub panics: bool,
    /// Instances that are wanted by forecast alone.
    pub foreseen: u32,
    /// How much of that forecast is what its group does, in per cent.
    #[serde(default)]
    pub of_group_percent: u8,
    /// Instances that are wanted.
    pub wanted: u32,
}

impl LoadReport {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "neither negative nor so large"
    )]
    fn of(wanted: Wanted) -> Self {
        let Wanted { instances, stable, panic, target, panics, foreseen, of_group_percent } = wanted;
        let rounded = |value: f64| value.round().max(0.0) as u64;
        Self {
            stable: rounded(stable),
            panic: rounded(panic),
            target: rounded(target),
            panics,
            foreseen,
            of_group_percent,
            wanted: instances,
        }
    }
}

/// An instance beside the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Its identity.
    pub instance: InstanceId,
    /// What it is doing.
    pub phase: Phase,
    /// When that began.
    pub phase_since: Time,
    /// Connections and sessions that lead to it.
    pub in_use: u32,
    /// Why it failed, if it did.
    pub failure: Option<FailureReport>,
}

impl ReplicaReport {
    /// What there is to say of `replica`.
    pub fn of(replica: &Instance) -> Self {
        Self {
            instance: replica.id,
            phase: replica.phase,
            phase_since: Time(replica.phase_since),
            in_use: replica.open_connections,
            failure: replica.failure.as_ref().map(FailureReport::of),
        }
    }
}

/// What was measured of a service on one rung.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RungReport {
    /// The rung.
    pub rung: Rung,
    /// Wakes from there that are remembered, 32 at most.
    pub wakes: usize,
    /// Of these, trigger to ready: median.
    pub wake_ms_p50: Option<u32>,
    /// Trigger to ready: 95th percentile.
    pub wake_ms_p95: Option<u32>,
    /// Of these, what the warm-up set took, the boot set on `cold`: median.
    #[serde(default)]
    pub warm_up_ms_p50: Option<u32>,
    /// The same: 95th percentile.
    #[serde(default)]
    pub warm_up_ms_p95: Option<u32>,
    /// Trigger to first byte of wakes by a client's packet, with the restore set: median.
    #[serde(default)]
    pub first_warmed_ms_p50: Option<u32>,
    /// The same without it.
    #[serde(default)]
    pub first_straight_ms_p50: Option<u32>,
    /// Memory of the host that its process held there, in KiB; what it shared with others in part.
    pub held_kib: Option<u64>,
}

impl RungReport {
    fn of(rung: Rung, measured: &RungMeasured) -> Self {
        let RungMeasured { wakes, warm_ups, first_warmed, first_straight, held_kib } = measured;
        Self {
            rung,
            wakes: wakes.count(),
            wake_ms_p50: wakes.percentile_ms(50),
            wake_ms_p95: wakes.percentile_ms(95),
            warm_up_ms_p50: warm_ups.percentile_ms(50),
            warm_up_ms_p95: warm_ups.percentile_ms(95),
            first_warmed_ms_p50: first_warmed.percentile_ms(50),
            first_straight_ms_p50: first_straight.percentile_ms(50),
            held_kib: *held_kib,
        }
    }
}

/// A time on one rung, if nobody comes meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StayReport {
    /// The rung.
    pub rung: Rung,
    /// When it begins.
    pub from: Time,
    /// When it ends.
    pub until: Time,
    /// Why, with the numbers.
    pub why: String,
}

impl StayReport {
    fn of(service: &Service) -> Vec<Self> {
        let Some(outlook) = &service.outlook else { return Vec::new() };
        let at = |idle_ms| Time(outlook.foresight().since.plus_ms(idle_ms));
        let stays = outlook.stays().iter().take(STAYS_SHOWN_MAX);
        stays
            .map(|stay| Self {
                rung: stay.rung,
                from: at(stay.from_ms),
                until: at(stay.until_ms),
                why: stay.because.to_string(),
            })
            .collect()
    }
}

/// Most stays that are shown of a forecast.
const STAYS_SHOWN_MAX: usize = 16;

/// Why a service was lost or did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureReport {
    /// One sentence.
    pub cause: String,
    /// When.
    pub at: Time,
    /// Starts that failed in a row; 0 when a running instance was lost.
    pub attempts: u32,
    /// Before this time no start is tried.
    pub retry_at: Time,
    /// Whether requests are refused until then.
    pub gave_up: bool,
}

impl FailureReport {
    /// The report of `failure`.
    pub fn of(failure: &Failure) -> Self {
        Self {
            cause: failure.cause.to_string(),
            at: Time(failure.at),
            attempts: failure.attempts,
            retry_at: Time(failure.retry_at),
            gave_up: failure.gave_up,
        }
    }
}

/// A version that can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReport {
    /// 1 for the first.
    pub number: u64,
    /// When it was published.
    pub at: Time,
    /// Bytes that it takes on disk.
    pub stored_bytes: u64,
    /// Microseconds that the guest stood still for the capture.
    pub paused_us: u64,
    /// Content address of the image that it came from.
    pub image: String,
}

impl VersionReport {
    /// The report of `version`.
    pub fn of(version: &SnapshotVersion) -> Self {
        Self {
            number: version.number,
            at: Time(version.at),
            stored_bytes: version.stored_bytes,
            paused_us: version.paused_us,
            image: version.image.clone(),
        }
    }
}

/// What a verb did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerbReply {
    /// The service.
    pub name: DomainName,
    /// Its phase now.
    pub phase: Phase,
    /// Its state now.
    pub state: VmState,
    /// Its stable address.
    pub address: Ipv4Addr,
    /// Whether what was asked for is so by now; otherwise it is under way.
    pub done: bool,
    /// Whether the verb changed anything; asked again, it does not.
    pub changed: bool,
    /// The wake that was waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<Wake>,
}

/// One wake (W8).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wake {
    /// Its number in the service's history.
    pub seq: u64,
    /// The service.
    pub service: DomainName,
    /// The instance.
    pub instance: InstanceId,
    /// When the trigger came.
    pub at: Time,
    /// What asked first.
    pub trigger: Trigger,
    /// The same as words.
    pub asked_by: String,
    /// How many asked before it was ready.
    pub asks: u64,
    /// The rung that it was woken from; `cold` is a boot.
    pub from: Rung,
    /// From the trigger to the end of each stage that was reached.
    pub stages_ms: StagesMs,
    /// How it ended; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<WakeResult>,
    /// Why it failed, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// How a wake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WakeResult {
    /// The service became ready.
    Ready,
    /// It did not.
    Failed,
}

/// Milliseconds from the trigger to the end of each stage, with three decimals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
pub struct StagesMs {
    /// The plan with this wake was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<f64>,
    /// The version has come from the object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetched: Option<f64>,
    /// The monitor's process answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spawned: Option<f64>,
    /// Device state and memory are in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<f64>,
    /// The vCPUs run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<f64>,
    /// The guest has the right time and random bytes of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refreshed: Option<f64>,
    /// The warm-up set is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmed_up: Option<f64>,
    /// The readiness check passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<f64>,
    /// The first byte went to a waiting client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte: Option<f64>,
}

impl StagesMs {
    /// The stages of `record`.
    pub fn of(record: &WakeRecord) -> Self {
        // A wake is hours at most: far below 2^53 µs, so nothing is lost.
        let ms = |stage| record.stage_us(stage).map(|us| us as f64 / 1_000.0);
        Self {
            decided: ms(Stage::Decided),
            fetched: ms(Stage::Fetched),
            spawned: ms(Stage::Spawned),
            restored: ms(Stage::Restored),
            running: ms(Stage::Running),
            refreshed: ms(Stage::Refreshed),
            warmed_up: ms(Stage::WarmedUp),
            ready: ms(Stage::Ready),
            first_byte: ms(Stage::FirstByte),
        }
    }

    /// The stages that were reached, in order, with their words.
    pub fn reached(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let Self { decided, fetched, spawned, restored, running, refreshed, warmed_up, ready, first_byte } =
            *self;
        let all = [decided, fetched, spawned, restored, running, refreshed, warmed_up, ready, first_byte];
        Stage::ALL.into_iter().zip(all).filter_map(|(stage, ms)| Some((stage.word(), ms?)))
    }
}

impl Wake {
    /// The wake of `record`, which has the number `seq` in its service's history.
    pub fn of(seq: u64, record: &WakeRecord) -> Self {
        let (outcome, cause) = match &record.outcome {
            None => (None, None),
            Some(WakeOutcome::Ready) => (Some(WakeResult::Ready), None),
            Some(WakeOutcome::Failed { cause }) => (Some(WakeResult::Failed), Some(cause.to_string())),
        };
        Self {
            seq,
            service: record.service.clone(),
            instance: record.instance,
            at: Time(record.at),
            trigger: record.trigger.clone(),
            asked_by: record.trigger.to_string(),
            asks: record.asks,
            from: record.from,
            stages_ms: StagesMs::of(record),
            outcome,
            cause,
        }
    }
}

/// One decision with its reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionReport {
    /// When.
    pub at: Time,
    /// The service.
    pub service: DomainName,
    /// The instance.
    pub instance: InstanceId,
    /// What to do, as a value.
    pub action: Action,
    /// The same as words.
    pub what: String,
    /// Why, as a value with the numbers.
    pub reason: Reason,
    /// The same as words.
    pub why: String,
}

impl DecisionReport {
    /// The report of `decision`, taken at `at`.
    pub fn of(at: Timestamp, decision: &Decision) -> Self {
        Self {
            at: Time(at),
            service: decision.service.clone(),
            instance: decision.instance,
            action: decision.action.clone(),
            what: words(&decision.action),
            reason: decision.reason.clone(),
            why: decision.reason.to_string(),
        }
    }
}

fn words(action: &Action) -> String {
    match action {
        Action::Boot => "boot from the image".to_owned(),
        Action::Restore { from, keep: false } => format!("restore from the rung {from}"),
        Action::Restore { from, keep: true } => {
            format!("restore from the rung {from}, beside the version, which is being sent")
        }
        Action::Arm { .. } => "arm: start the monitor with the version mapped".to_owned(),
        Action::Pause => "pause: restore, warm up and stop the guest".to_owned(),
        Action::Fetch => "fetch the version from the object store".to_owned(),
        Action::Evict => "remove the version from this host; the object store has it".to_owned(),
        Action::RollBack { from, number } => {
            format!("have the object store make version {from} the newest one, as version {number}")
        }
        Action::Publish { number } => format!("send version {number} to the object store"),
        Action::Replicate { instances } => format!("one more instance, the {instances}. of the service"),
        Action::Checkpoint { number } => format!("take version {number} of the running guest"),
        Action::Disarm => "disarm: end the armed or paused monitor".to_owned(),
        Action::Drain { force: false, .. } => "hold new clients and look at the traffic once more".to_owned(),
        Action::Drain { force: true, .. } => "hold new clients and cut open connections".to_owned(),
        Action::Undrain => "let clients in again".to_owned(),
        Action::Capture => "hibernate: publish a version, end the monitor".to_owned(),
        Action::AbandonCapture => "give the hibernation up".to_owned(),
        Action::GiveUpStart { cause } => format!("give the start up: {cause}"),
        Action::Kill { remains: Remains::All } => "end what is left of the monitor".to_owned(),
        Action::Kill { remains: Remains::Disk } => "end the monitor and drop the version".to_owned(),
        Action::Kill { remains: Remains::Nothing } => "end the monitor and clear its files away".to_owned(),
        Action::Wait { until: None } => "wait until something happens".to_owned(),
        Action::Wait { until: Some(until) } => format!("wait until {}", Time(*until)),
    }
}

/// Why a service is as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyReport {
    /// The service, as in a list.
    #[serde(flatten)]
    pub service: ServiceSummary,
    /// The last decisions, newest first.
    pub decisions: Vec<DecisionReport>,
    /// The last wakes, newest first.
    pub wakes: Vec<Wake>,
    /// The last verdicts on its health that were not so before, newest first.
    #[serde(default)]
    pub health_changes: Vec<HealthChange>,
    /// What was out of the ordinary in how often it was asked for, newest first.
    #[serde(default)]
    pub anomalies: Vec<AnomalyReport>,
    /// How likely it is to fail its next client, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<RiskReport>,
}

/// The daemon and its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSummary {
    /// Version of Reveille.
    pub version: String,
    /// When the daemon started.
    pub started_at: Time,
    /// The zones that it serves.
    pub zones: Vec<DomainName>,
    /// Where it answers DNS.
    pub dns: Vec<SocketAddr>,
    /// What runs instances: name and version.
    pub driver: String,
    /// What executes guests, such as `kvm` or `tcg`.
    pub accelerator: String,
    /// Services by state.
    pub services: ServiceCounts,
    /// Starts under way.
    pub starts_running: u32,
    /// Most starts at a time.
    pub starts_max: u32,
    /// Rises with every change of the fleet.
    pub generation: u64,
}

/// How many services are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ServiceCounts {
    /// All.
    pub total: u64,
    /// Nothing runs.
    pub inactive: u64,
    /// On the way up, armed or paused.
    pub warming: u64,
    /// Serving.
    pub active: u64,
    /// Of all: those whose last start failed.
    pub failed: u64,
}
