//! What a service is: image, resources, ports, and the policy by which it sleeps and wakes.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::load::WINDOW_MS_MAX;
use super::name::DomainName;
use super::phase::{Kind, Rung};
use crate::answer::Network;
use crate::health::{HealthPolicy, Probing};
use crate::warm_up;

/// Most networks in each list of a service's egress policy.
const EGRESS_NETWORKS_MAX: usize = 64;
/// Most ports that one service may declare.
pub const PORTS_MAX: usize = 64;
/// Most memory that one instance may have, in MiB.
pub const MEMORY_MIB_MAX: u32 = 1 << 20;
/// Least memory with which a Linux guest comes up, in MiB.
pub const MEMORY_MIB_MIN: u32 = 32;
/// Shortest time between two checkpoints of a running guest: each reads its whole memory.
pub const CHECKPOINT_MS_MIN: u64 = 1_000;
/// Most instances of one service.
pub const INSTANCES_MAX: u32 = 64;
/// Most virtual CPUs of one instance.
pub const CPUS_MAX: u32 = 64;

/// Transport of a declared port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Stream.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port on which the service is reached, written `tcp/8080`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSpec {
    /// Transport.
    pub protocol: Protocol,
    /// Number, never 0.
    pub number: u16,
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol.word(), self.number)
    }
}

impl FromStr for PortSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("`{text}` is no port; write tcp/N or udp/N with N from 1 to 65535");
        let (protocol, number) = text.split_once('/').ok_or_else(fault)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(fault()),
        };
        match number.parse() {
            Ok(number) if number != 0 => Ok(Self { protocol, number }),
            Ok(_) | Err(_) => Err(fault()),
        }
    }
}

impl Serialize for PortSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What one instance is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Bandwidth that it needs, in Mbit/s: told with its state, not a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth_mbit: Option<u32>,
}

/// How readiness, and later health, is told (W3: the service's own port answers).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "check", deny_unknown_fields)]
pub enum ReadyCheck {
    /// The guest completes a TCP handshake on this port.
    Tcp {
        /// A declared TCP port.
        port: u16,
    },
    /// A GET of this path on this port is answered with a status below 500.
    Http {
        /// A declared TCP port.
        port: u16,
        /// Begins with `/`.
        path: String,
    },
    /// The vCPUs run; for services that have no TCP port.
    Running,
}

/// What a DNS question for a sleeping service is answered with (Q2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum AnswerPolicy {
    /// The stable address at once; the activator covers the wake.
    #[default]
    Immediate,
    /// The answer waits until the service is ready, up to `hold_ms_max`, and is then as `immediate`.
    Hold,
}

/// Whether the TTL of the last answer keeps a service awake (Q5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum DnsLease {
    /// Only where no activator holds the first packets of who still has the answer. The relay always does.
    #[default]
    Uncovered,
    /// Always: while a resolver may hold an answer, the service does not sleep.
    Always,
}

/// What an instance starts from after its guest was lost (H5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum AfterCrash {
    /// From its image and its disk: nothing that the guest was told is durable is rolled back.
    #[default]
    Boot,
    /// From the last version in the object store, whose disk is that of the same instant.
    LastVersion,
}

/// What is done with forecasts of a service's arrivals (D3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum ForecastMode {
    /// None are made.
    Off,
    /// What they would lead to is recorded; nothing is done.
    #[default]
    Only,
    /// The rung on which the service is kept while nobody uses it follows from them.
    On,
}

/// What a guest may reach by itself (W6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Nothing.
    #[default]
    None,
    /// The outside through address translation. In relay mode this includes the host's own loopback services.
    Nat,
}

/// By which rules a service sleeps, wakes and is given up. All durations in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Sleep after this long without an open connection or a packet.
    pub idle_ms: u64,
    /// Never sleep sooner than this after the vCPUs began to run.
    pub min_on_ms: u64,
    /// Never sleep sooner than this after the service was created.
    pub grace_ms: u64,
    /// Sleep even while connections are open.
    pub sleep_with_connections: bool,
    /// The rung on which the service sleeps: `remote`, `local`, `armed` or `paused`.
    pub rest: Rung,
    /// What is done with forecasts. With `on` they decide instead of `idle_ms` when it sleeps, and on which rung from
    /// `rest` up to awake it waits for the next arrival.
    pub forecast: ForecastMode,
    /// What it is worth that one client waits one second less, in MiB of memory held for an hour.
    pub delay_mib_hours: u32,
    /// What going from one rung to another costs, in the same unit.
    pub change_mib_hours: u32,
    /// While it runs, a version no older than this is kept in the object store; 0: only those of its sleep.
    pub checkpoint_ms: u64,
    /// What it starts from after its guest was lost.
    pub after_crash: AfterCrash,
    /// What a question for the sleeping service is answered with.
    pub answer: AnswerPolicy,
    /// Longest time that a question is held under the policy `hold`.
    pub hold_ms_max: u64,
    /// Longest cold boot until the service is ready.
    pub boot_ms_max: u64,
    /// Longest restore until the service is ready.
    pub restore_ms_max: u64,
    /// Starts in a row that may fail before waiting clients are refused.
    pub attempts_max: u32,
    /// Pause after the first failed start; doubled after each further one.
    pub backoff_ms: u64,
    /// Longest pause between starts.
    pub backoff_ms_max: u64,
    /// After `attempts_max` failed starts, the next request is tried again only after this time.
    pub cooloff_ms: u64,
    /// Most clients that are held at a time while the service wakes.
    pub held_clients_max: u32,
    /// Longest time that a client is held.
    pub held_ms_max: u64,
    /// Time between two heartbeats of a running instance.
    pub heartbeat_ms: u64,
    /// TTL of answers while the service is stably awake, in seconds.
    pub ttl_awake_s: u32,
    /// TTL of answers while it sleeps or its state is about to change, in seconds.
    pub ttl_asleep_s: u32,
    /// Whether the TTL of the last answer keeps the service awake.
    pub dns_lease: DnsLease,
    /// Most instances of a replicable service that are awake at a time.
    pub instances_max: u32,
    /// Connections and sessions that one instance carries at a time.
    pub capacity: u32,
    /// How much of that is to be used, in per cent: what is left takes what comes until there is another instance.
    pub target_percent: u32,
    /// Over how long the mean of what is in use is taken that decides on the number of instances.
    pub stable_ms: u64,
    /// Over how long it is taken to see a crowd coming.
    pub panic_ms: u64,
    /// Of how many times the instances that serve this mean has to speak, in per cent, to decide alone.
    pub panic_percent: u32,
    /// Fewer instances are wanted for so long before one goes.
    pub scale_down_delay_ms: u64,
    /// How many times the instances that serve may be wanted at once, in per cent.
    pub scale_up_percent_max: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            idle_ms: 300_000,
            min_on_ms: 10_000,
            grace_ms: 60_000,
            sleep_with_connections: false,
            rest: Rung::Local,
            forecast: ForecastMode::Only,
            delay_mib_hours: 500,
            change_mib_hours: 1,
            checkpoint_ms: 0,
            after_crash: AfterCrash::Boot,
            answer: AnswerPolicy::Immediate,
            hold_ms_max: 800,
            boot_ms_max: 60_000,
            restore_ms_max: 15_000,
            attempts_max: 3,
            backoff_ms: 500,
            backoff_ms_max: 30_000,
            cooloff_ms: 60_000,
            held_clients_max: 1_024,
            held_ms_max: 60_000,
            heartbeat_ms: 1_000,
            ttl_awake_s: 60,
            ttl_asleep_s: 5,
            dns_lease: DnsLease::Uncovered,
            instances_max: 1,
            capacity: 50,
            target_percent: 70,
            stable_ms: 60_000,
            panic_ms: 6_000,
            panic_percent: 200,
            scale_down_delay_ms: 30_000,
            scale_up_percent_max: 1_000,
        }
    }
}

/// Everything that a user says about a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The name that it answers to.
    pub name: DomainName,
    /// How many instances may run at a time.
    #[serde(default)]
    pub kind: Kind,
    /// Name or content address of its image.
    pub image: String,
    /// What an instance is given.
    #[serde(default)]
    pub resources: Resources,
    /// Where it is reached.
    pub ports: Vec<PortSpec>,
    /// How readiness is told; default: a TCP handshake on the first TCP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyCheck>,
    /// Its warm-up profile by name, or `auto`; default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Stable IPv4 address; default: the next one of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Stable IPv6 address; default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// Order in the wake queue: higher first.
    #[serde(default)]
    pub priority: u8,
    /// What the guest may reach by itself.
    #[serde(default)]
    pub egress: Egress,
    /// With egress `nat` in tap mode: only these, if there are any. Other guests, the host and addresses that are local to
    /// a link, such as a cloud's metadata, are reached only by an entry for the single address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_allow: Vec<Network>,
    /// With egress `nat` in tap mode: none of these, whatever is allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_deny: Vec<Network>,
    /// By which rules it sleeps and wakes.
    #[serde(default)]
    pub policy: Policy,
    /// How it is probed while it runs, and when it counts as down.
    #[serde(default)]
    pub health: HealthPolicy,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpus: 1, memory_mib: 128, bandwidth_mbit: None }
    }
}

/// One thing that is wrong with a spec or a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{key} = {value}: {allowed}")]
pub struct SpecFault {
    /// The key, as it is written in the config file.
    pub key: String,
    /// The value that was given.
    pub value: String,
    /// What would be allowed.
    pub allowed: String,
}

impl SpecFault {
    /// A fault of `key`.
    pub fn new(key: &str, value: impl fmt::Display, allowed: impl Into<String>) -> Self {
        Self { key: key.to_owned(), value: value.to_string(), allowed: allowed.into() }
    }
}

impl Policy {
    /// Every value that is out of its range.
    pub fn faults(&self) -> Vec<SpecFault> {
        const DAY_MS: u64 = 86_400_000;
        let ranged = [
            ("idle_ms", self.idle_ms, 100, 30 * DAY_MS),
            ("min_on_ms", self.min_on_ms, 0, DAY_MS),
            ("grace_ms", self.grace_ms, 0, 30 * DAY_MS),
            ("hold_ms_max", self.hold_ms_max, 0, 4_000),
            ("boot_ms_max", self.boot_ms_max, 1_000, 3_600_000),
            ("restore_ms_max", self.restore_ms_max, 500, 3_600_000),
            ("delay_mib_hours", self.delay_mib_hours.into(), 0, 1_000_000),
            ("change_mib_hours", self.change_mib_hours.into(), 0, 1_000_000),
            ("attempts_max", self.attempts_max.into(), 1, 100),
            ("backoff_ms", self.backoff_ms, 10, 600_000),
            ("backoff_ms_max", self.backoff_ms_max, 10, 3_600_000),
            ("cooloff_ms", self.cooloff_ms, 100, DAY_MS),
            ("held_clients_max", self.held_clients_max.into(), 1, 1_024),
            ("held_ms_max", self.held_ms_max, 100, 600_000),
            ("heartbeat_ms", self.heartbeat_ms, 100, 600_000),
            ("ttl_awake_s", self.ttl_awake_s.into(), 0, 86_400),
            ("ttl_asleep_s", self.ttl_asleep_s.into(), 0, 3_600),
            ("instances_max", self.instances_max.into(), 1, INSTANCES_MAX.into()),
            ("capacity", self.capacity.into(), 1, 1_024),
            ("target_percent", self.target_percent.into(), 10, 100),
            ("stable_ms", self.stable_ms, 5_000, WINDOW_MS_MAX),
            ("panic_ms", self.panic_ms, 1_000, self.stable_ms.clamp(5_000, WINDOW_MS_MAX)),
            ("panic_percent", self.panic_percent.into(), 110, 1_000_000),
            ("scale_down_delay_ms", self.scale_down_delay_ms, 0, DAY_MS),
            ("scale_up_percent_max", self.scale_up_percent_max.into(), 110, 100_000),
        ];
        let mut faults: Vec<SpecFault> = ranged
            .into_iter()
            .filter(|(_, value, least, most)| value < least || value > most)
            .map(|(key, value, least, most)| SpecFault::new(key, value, format!("{least} to {most}")))
            .collect();
        if !matches!(self.rest, Rung::Remote | Rung::Local | Rung::Armed | Rung::Paused) {
            let allowed = "\"remote\", \"local\", \"armed\" or \"paused\"";
            faults.push(SpecFault::new("rest", self.rest, allowed));
        }
        if self.checkpoint_ms != 0 && !(CHECKPOINT_MS_MIN..=DAY_MS).contains(&self.checkpoint_ms) {
            let allowed = format!("0, or {CHECKPOINT_MS_MIN} to {DAY_MS}");
            faults.push(SpecFault::new("checkpoint_ms", self.checkpoint_ms, allowed));
        }
        faults
    }
}

impl ServiceSpec {
    /// The readiness check in force.
    pub fn ready_check(&self) -> ReadyCheck {
        self.ready.clone().unwrap_or_else(|| {
            let tcp = self.ports.iter().find(|port| port.protocol == Protocol::Tcp);
            tcp.map_or(ReadyCheck::Running, |port| ReadyCheck::Tcp { port: port.number })
        })
    }

    /// What is probed while it runs.
    pub fn probing(&self) -> Probing {
        self.health.probing(&self.ports)
    }

    /// Every fault of the spec, its policy included.
    pub fn faults(&self) -> Vec<SpecFault> {
        let in_policy = |fault: SpecFault| SpecFault { key: format!("policy.{}", fault.key), ..fault };
        let mut faults: Vec<SpecFault> = self.policy.faults().into_iter().map(in_policy).collect();
        if self.name.label_count() < 2 {
            faults.push(SpecFault::new("name", &self.name, "a name below a zone, such as hello.vm.test"));
        }
        // The first label may be `*`, which stands for every name below the rest that does not exist (RFC 4592).
        let first = usize::from(self.name.labels().next() == Some(b"*"));
        if self.name.labels().skip(first).any(|label| matches!(label.first(), Some(b'_' | b'*'))) {
            let allowed = "labels that begin with a letter or a digit; the first one may be *";
            faults.push(SpecFault::new("name", &self.name, allowed));
        }
        if self.kind == Kind::Single && self.policy.instances_max > 1 {
            let allowed = "1 with kind = \"single\", whose disk has one writer; or set kind = \"replicable\"";
            faults.push(SpecFault::new("policy.instances_max", self.policy.instances_max, allowed));
        }
        if self.image.is_empty() {
            faults.push(SpecFault::new(
                "image",
                "\"\"",
                "the name of an image; `reveille image list` shows them",
            ));
        }
        if let Some(profile) = self.profile.as_deref().filter(|profile| *profile != warm_up::AUTO)
            && let Err(allowed) = warm_up::check_name(profile)
        {
            faults.push(SpecFault::new("profile", format!("{profile:?}"), allowed));
        }
        let Resources { cpus, memory_mib, bandwidth_mbit } = self.resources;
        if cpus == 0 || cpus > CPUS_MAX {
            faults.push(SpecFault::new("resources.cpus", cpus, format!("1 to {CPUS_MAX}")));
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&memory_mib) {
            faults.push(SpecFault::new(
                "resources.memory_mib",
                memory_mib,
                format!("{MEMORY_MIB_MIN} to {MEMORY_MIB_MAX}"),
            ));
        }
        if bandwidth_mbit == Some(0) {
            faults.push(SpecFault::new("resources.bandwidth_mbit", 0, "1 or more, or leave it out"));
        }
        faults.extend(self.port_faults());
        faults.extend(self.egress_faults());
        let in_health = |fault: SpecFault| SpecFault { key: format!("health.{}", fault.key), ..fault };
        faults.extend(self.health.faults_with(&self.ports).into_iter().map(in_health));
        faults
    }

    fn egress_faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        for (key, networks) in [("egress_allow", &self.egress_allow), ("egress_deny", &self.egress_deny)] {
            let count = networks.len();
            if count > EGRESS_NETWORKS_MAX {
                let allowed = format!("up to {EGRESS_NETWORKS_MAX} networks");
                faults.push(SpecFault::new(key, format!("{count} networks"), allowed));
            }
            if count > 0 && self.egress == Egress::None {
                let allowed =
                    "nothing with egress = \"none\", with which nobody is reached; or set egress = \"nat\"";
                faults.push(SpecFault::new(key, format!("{count} networks"), allowed));
            }
        }
        faults
    }

    fn port_faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        if self.ports.is_empty() || self.ports.len() > PORTS_MAX {
            faults.push(SpecFault::new(
                "ports",
                format!("{} ports", self.ports.len()),
                format!("1 to {PORTS_MAX} ports such as \"tcp/8080\""),
            ));
        }
        let mut seen = std::collections::BTreeSet::new();
        for port in &self.ports {
            if !seen.insert(port) {
                faults.push(SpecFault::new("ports", port, "each port once"));
            }
        }
        let checked = match &self.ready {
            Some(ReadyCheck::Tcp { port }) => Some(*port),
            Some(ReadyCheck::Http { port, path }) => {
                if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
                    faults.push(SpecFault::new("ready.path", format!("{path:?}"), "a path such as /health"));
                }
                Some(*port)
            }
            Some(ReadyCheck::Running) | None => None,
        };
        if let Some(number) = checked
            && !self.ports.contains(&PortSpec { protocol: Protocol::Tcp, number })
        {
            faults.push(SpecFault::new("ready.port", number, "one of the declared TCP ports"));
        }
        faults
    }
}
