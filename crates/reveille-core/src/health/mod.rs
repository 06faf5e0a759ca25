//! Whether an instance serves: what probes find, damped into a verdict (S2). Pure: probes are made elsewhere.
//!
//! ```text
//!                 one answer                    `down` of the last `down_of` failed
//!   unknown ─────────────────────► up ──────────────────────────────────────────────► down
//!      ▲                           ▲                                                    │
//!      │ nothing certain           └────────────────────────────────────────────────────┘
//!      │ is heard for long              `up` of the last `up_of` were answered;
//!      └── up, down                     twice, then four times as many for one that flaps
//! ```
//!
//! **What counts.** Clients come to ports, so the probes of ports decide: all of them must be answered. The heartbeat tells
//! a dead service from a dead guest; it decides only where no port is probed. What nobody can judge (the host held the
//! process up, or the probe could not be made) is no finding.
//!
//! **Damping** is by N of M with two thresholds, as gdnsd's `plugins/mon.c` has it: between them nothing changes, and what
//! was found before the verdict changed counts for no other. One that falls again before it was up for [`CALM_MS`] has to
//! answer for longer before it counts as up.
//!
//! **The pace.** Probes follow each other quickly while in doubt, at the ordinary pace while somebody uses the service, and
//! slowly while nobody does. Who sleeps is not probed, and not down: that nobody judges it says so.

mod judge;
mod policy;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

pub use judge::{CALM_MS, Judge, Seen};
pub use policy::{HealthPolicy, HttpProbe, HttpSetting, Probing, TcpSetting};

#[cfg(test)]
mod tests;

/// Whether an instance serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It sleeps, was not probed yet, or cannot be judged.
    #[default]
    Unknown,
    /// It does.
    Up,
    /// It runs, or should, and does not.
    Down,
}

impl Health {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Up, Self::Down];

    /// `unknown`, `up` or `down`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Probe {
    /// The monitor, and the guest's agent where it has one.
    Heartbeat,
    /// A TCP handshake.
    Tcp,
    /// An HTTP request.
    Http,
}

impl Probe {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Heartbeat, Self::Tcp, Self::Http];

    /// `heartbeat`, `tcp` or `http`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Heartbeat => "heartbeat",
            Self::Tcp => "tcp",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heartbeat => "heartbeat",
            Self::Tcp => "TCP",
            Self::Http => "HTTP",
        })
    }
}

/// What one probe has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// An answer, after so many microseconds.
    Answered {
        /// From the beginning of the probe.
        after_us: u32,
    },
    /// None, or a wrong one.
    Failed(Fault),
    /// Nothing that could be held for or against the instance.
    Unclear,
}

/// What was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub enum Fault {
    /// The guest refused the connection.
    Refused,
    /// No answer in time.
    Silent {
        /// How long it was waited for.
        waited_ms: u32,
    },
    /// The connection broke, or could not be begun.
    Unreachable,
    /// An HTTP status outside the range.
    Status {
        /// The status.
        status: u16,
    },
    /// The monitor does not answer, or its guest stands still.
    MonitorSilent,
    /// The guest's agent answered once and does not any more.
    AgentSilent,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("the guest refused the connection"),
            Self::Silent { waited_ms } => write!(f, "no answer within {waited_ms} ms"),
            Self::Unreachable => f.write_str("the guest could not be reached"),
            Self::Status { status } => write!(f, "status {status}"),
            Self::MonitorSilent => f.write_str("its QEMU process did not answer"),
            Self::AgentSilent => f.write_str("the guest's agent did not answer"),
        }
    }
}

/// Why a verdict is what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum HealthReason {
    /// Probes were answered.
    Answers {
        /// The one that counted last.
        probe: Probe,
        /// So many
        answered: u8,
        /// of so many.
        of: u8,
    },
    /// Probes failed.
    Fails {
        /// Which.
        probe: Probe,
        /// So many
        failed: u8,
        /// of so many.
        of: u8,
        /// The last one by this.
        fault: Fault,
        /// Whether the guest gave a heartbeat meanwhile; absent if that was not looked at.
        #[serde(default)]
        guest_answers: Option<bool>,
    },
    /// Nothing certain was found for a while.
    Unheard {
        /// For so long.
        for_ms: u64,
    },
    /// It was not probed yet since it runs.
    NotProbed,
    /// Its policy says that it is not probed, or it has nothing to probe.
    NotAsked,
    /// It sleeps.
    Asleep,
    /// It is on its way up.
    Starting,
    /// It was lost.
    Lost {
        /// Why, as a sentence.
        cause: String,
    },
}

impl fmt::Display for HealthReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answers { probe, answered, of: 1 } if *answered == 1 => {
                write!(f, "the last {probe} probe was answered")
            }
            Self::Answers { probe, answered, of } => {
                write!(f, "{answered} of the last {of} {probe} probes were answered")
            }
            Self::Fails { probe, failed, of, fault, guest_answers } => {
                write!(f, "{failed} of the last {of} {probe} probes failed, the last one: {fault}")?;
                match guest_answers {
                    Some(true) => f.write_str("; the guest itself lives"),
                    Some(false) => f.write_str("; nor does the guest give a heartbeat"),
                    None => Ok(()),
                }
            }
            Self::Unheard { for_ms } => write!(f, "nothing certain was found for {for_ms} ms"),
            Self::NotProbed => f.write_str("it was not probed yet since it runs"),
            Self::NotAsked => f.write_str("it is not probed"),
            Self::Asleep => f.write_str("it sleeps"),
            Self::Starting => f.write_str("it is on its way up"),
            Self::Lost { cause } => write!(f, "it was lost: {cause}"),
        }
    }
}

/// A verdict, since when it holds, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub health: Health,
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub reason: HealthReason,
}
