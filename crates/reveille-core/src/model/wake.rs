//! The record of a wake: who, why, and how long each stage took (W8).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::instance::{Cause, InstanceId};
use super::name::DomainName;
use super::phase::Rung;
use super::service::PortSpec;
use super::time::Timestamp;

/// What asked for a wake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Trigger {
    /// A DNS question.
    Query {
        /// Who asked: mostly a resolver.
        client: IpAddr,
        /// The question's type.
        qtype: u16,
        /// EDNS client subnet in the question, as `address/prefix`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subnet: Option<String>,
    },
    /// A connection or a datagram that reached the stable address.
    Packet {
        /// Who sent it.
        client: SocketAddr,
        /// The port that it was sent to.
        port: PortSpec,
    },
    /// A person or a script, through the API.
    Operator,
    /// The time that an operator set, or the guest asked for before it slept.
    Schedule {
        /// That time.
        due: Timestamp,
    },
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Query { client, qtype, subnet } => {
                write!(f, "a DNS query of type {qtype} from {client}")?;
                subnet.as_ref().map_or(Ok(()), |subnet| write!(f, " for {subnet}"))
            }
            Self::Packet { client, port } => write!(f, "a packet from {client} to {port}"),
            Self::Operator => f.write_str("an operator"),
            Self::Schedule { .. } => f.write_str("its schedule"),
        }
    }
}

/// The stages of a wake, in order. Each is recorded as milliseconds since the trigger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The plan with this wake was applied.
    Decided,
    /// The version has come from the object store.
    Fetched,
    /// The monitor's process answers its control socket.
    Spawned,
    /// Device state and memory are in place.
    Restored,
    /// The vCPUs run.
    Running,
    /// The guest has the right time and random bytes of its own.
    Refreshed,
    /// The warm-up set is over.
    WarmedUp,
    /// The readiness check passed.
    Ready,
    /// The first byte from the guest went to a waiting client.
    FirstByte,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 9] = [
        Self::Decided,
        Self::Fetched,
        Self::Spawned,
        Self::Restored,
        Self::Running,
        Self::Refreshed,
        Self::WarmedUp,
        Self::Ready,
        Self::FirstByte,
    ];

    /// The word for people and scripts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Decided => "decided",
            Self::Fetched => "fetched",
            Self::Spawned => "spawned",
            Self::Restored => "restored",
            Self::Running => "running",
            Self::Refreshed => "refreshed",
            Self::WarmedUp => "warmed_up",
            Self::Ready => "ready",
            Self::FirstByte => "first_byte",
        }
    }
}

/// How a wake ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum WakeOutcome {
    /// The service became ready.
    Ready,
    /// It did not.
    Failed {
        /// Why.
        cause: Cause,
    },
}

/// One wake of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeRecord {
    /// The service.
    pub service: DomainName,
    /// The instance.
    pub instance: InstanceId,
    /// What asked first.
    pub trigger: Trigger,
    /// How many asked before it was ready, the first included.
    pub asks: u64,
    /// The rung that it was woken from; `Cold` is a boot.
    pub from: Rung,
    /// When the trigger came.
    pub at: Timestamp,
    /// Microseconds from the trigger to the end of each stage that was reached.
    pub stages_us: Vec<(Stage, u64)>,
    /// How it ended; `None` while it goes on.
    pub outcome: Option<WakeOutcome>,
}

impl WakeRecord {
    /// Microseconds from the trigger to the end of `stage`, if it was reached.
    pub fn stage_us(&self, stage: Stage) -> Option<u64> {
        self.stages_us.iter().find(|(reached, _)| *reached == stage).map(|(_, us)| *us)
    }

    /// Notes that `stage` ended `us` microseconds after the trigger; only the first note of a stage counts.
    pub fn reached(&mut self, stage: Stage, us: u64) {
        if self.stage_us(stage).is_none() {
            self.stages_us.push((stage, us));
            self.stages_us.sort_unstable();
        }
    }
}
