//! How instances fare: verdicts, what probes found, and what the host sees of them.

use std::collections::BTreeMap;

use reveille_core::health::{Health, HealthReason, Probing, Seen};
use reveille_core::model::{DomainName, InstanceId, Timestamp};
use serde::{Deserialize, Serialize};

use super::Counts;
use crate::time::Time;

/// A verdict that was not so before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthChange {
    /// When.
    pub at: Time,
    /// The service.
    pub service: DomainName,
    /// The instance.
    pub instance: InstanceId,
    /// The verdict.
    pub health: Health,
    /// Why, as a value with the numbers.
    pub reason: HealthReason,
    /// The same as words.
    pub why: String,
}

impl HealthChange {
    /// The change to `health` at `at`.
    pub fn of(
        at: Timestamp,
        service: &DomainName,
        instance: InstanceId,
        health: Health,
        reason: &HealthReason,
    ) -> Self {
        let (service, why) = (service.clone(), reason.to_string());
        Self { at: Time(at), service, instance, health, reason: reason.clone(), why }
    }
}

/// What one probe has found of late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// `heartbeat`, or what is asked: `tcp/8080`, `GET /health on tcp/8080`.
    pub probe: String,
    /// The last findings, 16 at most, the oldest first: `+` answered, `-` failed.
    pub findings: String,
    /// What the last failure was, if any was since the instance runs.
    pub fault: Option<String>,
    /// Moving average of the time to an answer, in microseconds.
    pub latency_us: Option<u32>,
}

impl ProbeReport {
    /// The report of what was seen of a probe.
    pub fn of(seen: &Seen, probing: &Probing) -> Self {
        use reveille_core::health::Probe;
        let probe = match (seen.probe, probing.tcp, &probing.http) {
            (Probe::Tcp, Some(port), _) => format!("tcp/{port}"),
            (Probe::Http, _, Some((port, asked))) => format!("GET {} on tcp/{port}", asked.path),
            (probe, _, _) => probe.word().to_owned(),
        };
        Self {
            probe,
            findings: seen.findings.clone(),
            fault: seen.fault.map(|fault| fault.to_string()),
            latency_us: seen.latency_us,
        }
    }
}

/// What the host sees of a running instance, sampled every few seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsReport {
    /// When it was last sampled.
    pub at: Time,
    /// CPU time of its process between the last two samples, in thousandths of one processor.
    pub cpu_permille: Option<u32>,
    /// CPU time of its process so far, in milliseconds.
    pub cpu_ms: Option<u64>,
    /// Memory of the host that its process holds, in KiB; what it shares with others in part. Sampled less often.
    pub held_kib: Option<u64>,
    /// What its process has read from disks so far; absent where the kernel does not tell.
    pub read_bytes: Option<u64>,
    /// What it has written to disks.
    pub written_bytes: Option<u64>,
    /// Answers of this instance to TCP clients that passed the relay since the daemon reaches its process; absent in tap
    /// mode, where nobody sees them.
    pub replies: Option<u64>,
    /// From what a client said to the first byte of the answer, all of these together, in microseconds.
    pub reply_us_total: Option<u64>,
    /// Moving average of the same over the samples, in microseconds.
    pub reply_us: Option<u64>,
}

/// How one instance fares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceHealth {
    /// The service.
    pub service: DomainName,
    /// The instance.
    pub instance: InstanceId,
    /// The verdict.
    pub health: Health,
    /// What the host sees of it, once it was sampled.
    pub metrics: Option<MetricsReport>,
}

/// How the instances that run, or were lost, fare.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HealthReport {
    /// By service; [`INSTANCES_SHOWN_MAX`] at most.
    pub instances: Vec<InstanceHealth>,
    /// How many there are of each verdict, those beyond the limit included.
    pub verdicts: Counts,
    /// Probes since the daemon started, by what is probed and what came of it.
    pub probes: BTreeMap<String, Counts>,
}

/// Most instances that are told of one by one.
pub const INSTANCES_SHOWN_MAX: usize = 1_000;

/// What is known of a running instance beyond its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    /// The verdict and its reason by the findings of now.
    pub judged: Option<(Health, HealthReason)>,
    /// It fell several times of late, so that it has to answer for longer before it is up again.
    pub flapping: bool,
    /// What each probe has found.
    pub probes: Vec<ProbeReport>,
    /// What the host sees.
    pub metrics: Option<MetricsReport>,
}
