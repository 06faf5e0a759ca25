//! What request logs tell of demand: what became of a log, and how users and groups behave.

use std::collections::BTreeMap;
use std::fmt;

use reveille_core::forecast::anomaly::flood::{Judgement, Nature};
use reveille_core::forecast::anomaly::{Event, Kind};
use reveille_core::forecast::profile::Behaviour;
use reveille_core::forecast::risk::{Part, Risk, What};
use reveille_core::model::DomainName;
use serde::{Deserialize, Serialize};

use super::{ArrivalsEstimate, Counts};
use crate::request_log::{Fault, Tally};
use crate::time::Time;

/// What became of the requests of a part of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TakenRequests {
    /// Requests of a service here, in the history of what it was asked for.
    pub counted: u64,
    /// Requests of something that is no service here: they are in the profiles of their users and groups alone.
    pub elsewhere: u64,
    /// Requests of services here that are too old for the history; likewise.
    pub too_old: u64,
    /// Requests of services here for which there was no room in time; likewise.
    pub dropped: u64,
}

impl TakenRequests {
    /// Adds what became of another part.
    pub fn add(&mut self, more: Self) {
        self.counted += more.counted;
        self.elsewhere += more.elsewhere;
        self.too_old += more.too_old;
        self.dropped += more.dropped;
    }
}

/// What became of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogReport {
    /// Lines: `accepted`, `refused`, `blank`.
    #[serde(flatten)]
    pub lines: Tally,
    /// What became of the accepted ones.
    #[serde(flatten)]
    pub taken: TakenRequests,
    /// What is wrong with the refused ones, in their order; the first 16,384.
    pub faults: Vec<Fault>,
    /// Refused lines that are not among these.
    pub faults_left_out: u64,
}

/// Of whom there are profiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// Of users.
    Users,
    /// Of groups of users.
    Groups,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Users => "users",
            Self::Groups => "groups",
        })
    }
}

/// What is recorded of demand, in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemandReport {
    /// Requests of logs since the start: `counted`, `elsewhere`, `too_old`, `dropped`, as of one log; and lines that were
    /// `refused`.
    pub requests: Counts,
    /// Arrivals since the start that nothing was learned from, since they came too fast. They are recorded all the same where
    /// questions are.
    pub arrivals_dropped: u64,
    /// Services that are watched for anomalies and floods now.
    #[serde(default)]
    pub services_watched: u64,
    /// Services that were asked for in a minute but not watched in it, since too many others were: all minutes since the start
    /// together.
    #[serde(default)]
    pub services_unwatched: u64,
    /// Of the history: points that were `taken`; `dropped`, `late` and `early` ones that were not; times that it met something
    /// `damaged`, and writes that `failed`.
    pub history: Counts,
    /// Bytes of the history on the disk.
    pub history_bytes: u64,
    /// Of raw records, by their kind (`query`, `request`) if it is recorded: rows that were `taken`, and of these `written`,
    /// `too_old` or `lost`; `dropped` ones that had no room; `files` that were put, puts that `failed` and are tried again,
    /// and old files that were `pruned`.
    #[serde(default)]
    pub records: BTreeMap<String, Counts>,
    /// Profiles of users and groups.
    #[serde(flatten)]
    pub profiles: ProfilesReport,
}

/// The profiles of all users and groups, in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfilesReport {
    /// Users with a profile.
    pub users: u64,
    /// Groups with a profile.
    pub groups: u64,
    /// What users do that have none, together.
    pub other_users: Behaviour,
    /// The same of groups.
    pub other_groups: Behaviour,
}

/// A user or group in a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemandProfileSummary {
    /// Who, as the logs name it.
    pub name: String,
    /// Requests that the profile rests on.
    pub requests: u64,
    /// Requests per hour, on average over hours that are over.
    pub per_hour: f64,
    /// Half of the execution times are not above, in seconds.
    pub seconds_p50: Option<f64>,
    /// 95 % of them are not above.
    pub seconds_p95: Option<f64>,
    /// 95 % of the memory peaks are not above, in bytes.
    pub memory_bytes_p95: Option<f64>,
    /// What runs most of its requests.
    pub runtime: Option<String>,
    /// How often the intervals of execution time that should hold 95 % did.
    pub coverage_95: Option<f64>,
}

impl DemandProfileSummary {
    /// In short.
    pub fn of(name: &str, behaviour: &Behaviour) -> Self {
        let Behaviour { requests, volume_per_hour, seconds, memory_bytes, runtimes, .. } = behaviour;
        Self {
            name: name.to_owned(),
            requests: *requests,
            per_hour: volume_per_hour.mean,
            seconds_p50: seconds.p50,
            seconds_p95: seconds.p95,
            memory_bytes_p95: memory_bytes.p95,
            runtime: runtimes.first().map(|share| share.runtime.clone()),
            coverage_95: seconds.intervals.last().and_then(|interval| interval.coverage),
        }
    }
}

/// How a user or group behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DemandProfile {
    /// Who, as the logs name it.
    pub name: String,
    /// Quantiles, intervals, and how often these held what came next.
    pub behaviour: Behaviour,
}

/// Which part of what is recorded of a service is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DemandRange {
    /// The last so many hours.
    pub hours: u64,
    /// In steps of so many seconds.
    pub step_s: u64,
}

/// What was asked of a service, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceDemand {
    /// The service.
    pub service: DomainName,
    /// When the first step begins.
    pub from: Time,
    /// Length of a step, in seconds: what was asked for, or longer where only that is kept.
    pub step_s: u64,
    /// One after another, without gaps.
    pub steps: Vec<DemandStep>,
    /// What a query stands for now, if it is known: of a thousand of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_thousand_queries: Option<ArrivalsEstimate>,
    /// What could not be read, as sentences; the time that it spans is not seen.
    pub damaged: Vec<String>,
}

/// A step of [`ServiceDemand`].
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct DemandStep {
    /// Questions for its name, as resolvers asked them.
    pub queries: u64,
    /// The same with those put back that resolvers answered from their caches, as far as it was known then.
    pub demand: f64,
    /// Questions that are no demand: those of floods.
    pub kept_out: u64,
    /// Clients that wanted it: first packets after a quiet time.
    pub arrivals: u64,
    /// Time for which clients used it, added up over all of them, in ms.
    pub execution_ms: u64,
    /// Requests that logs told of. Their clients may be among the arrivals too.
    #[serde(default)]
    pub requests: u64,
    /// Time that those took, added up, in ms.
    #[serde(default)]
    pub request_ms: u64,
    /// Seconds of it that were watched: without one, the others are not zero but not known.
    pub watched_s: u64,
}

/// Something out of the ordinary in how often a service was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnomalyReport {
    /// In which way: `spike`, `drop`, `level_shift`, `unusual`.
    pub kind: Kind,
    /// Its first minute.
    pub since: Time,
    /// Its last one so far.
    pub until: Time,
    /// Minutes of it, those in between that were usual left out.
    pub minutes: u32,
    /// Questions of its most extreme minute.
    pub observed: f64,
    /// What was expected of that minute.
    pub expected: f64,
    /// The robust standard deviation of what was expected.
    pub spread: f64,
    /// (Observed − expected) ÷ spread.
    pub deviation_sd: f64,
    /// Whether nothing like it was seen before, either.
    pub alarm: bool,
    /// What its most extreme minute was taken for, if it was asked who asked: `flash_crowd`, `single_source`, `spoofed` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nature: Option<Nature>,
    /// By which numbers, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nature_why: Option<String>,
    /// Questions of that minute that count as demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand: Option<u64>,
}

impl AnomalyReport {
    /// As the API tells it.
    pub fn of(event: &Event, judgement: Option<&Judgement>) -> Self {
        Self {
            kind: event.kind,
            since: Time(event.since),
            until: Time(event.until),
            minutes: event.points,
            observed: event.observed,
            expected: event.expected,
            spread: event.spread,
            deviation_sd: event.deviation_sd,
            alarm: event.is_alarm(),
            nature: judgement.map(|judged| judged.nature),
            nature_why: judgement.map(|judged| judged.reason.to_string()),
            demand: judgement.map(|judged| judged.demand),
        }
    }
}

/// How likely it is that a client of the next hour finds the service failing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RiskReport {
    /// In [0, 1]: the probability of demand times that of any of the other parts.
    pub score: f64,
    /// `demand`, `failure`, `health`, `load`.
    pub parts: Vec<RiskPart>,
}

/// A part of a risk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RiskPart {
    /// Which one.
    pub what: What,
    /// In [0, 1].
    pub probability: f64,
    /// The numbers, as a sentence.
    pub why: String,
}

impl RiskReport {
    /// As the API tells it.
    pub fn of(risk: &Risk) -> Self {
        let part = |part: &Part| RiskPart {
            what: part.what,
            probability: part.probability,
            why: part.because.to_string(),
        };
        Self { score: risk.score, parts: risk.parts.iter().map(part).collect() }
    }
}
