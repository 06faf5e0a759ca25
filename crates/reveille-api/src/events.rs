//! What happens in the daemon, as it happens: the event stream of `GET /v1/events` (server-sent events).

use reveille_core::model::{DomainName, InstanceId, Phase, Rung, VmState};
use serde::{Deserialize, Serialize};

use crate::time::Time;
use crate::types::{DecisionReport, HealthChange, Wake};

/// Events that the daemon should keep for slow readers: the capacity of its broadcast channel. A reader that
/// falls further behind is told how many it missed.
pub const EVENTS_KEPT_MAX: usize = 1_024;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// An instance went into a phase or onto a rung.
    Phase {
        /// When.
        at: Time,
        /// The service.
        service: DomainName,
        /// The instance.
        instance: InstanceId,
        /// The phase now.
        phase: Phase,
        /// The state now.
        state: VmState,
        /// The rung now.
        rung: Rung,
        /// Why, if it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
    /// A wake began, reached a stage or ended.
    Wake {
        /// As far as it has come.
        wake: Box<Wake>,
    },
    /// A decision was taken.
    Decision {
        /// With its reason.
        decision: Box<DecisionReport>,
    },
    /// The verdict on the health of an instance changed.
    Health {
        /// With its reason.
        change: Box<HealthChange>,
    },
    /// A service was added.
    Added {
        /// When.
        at: Time,
        /// The service.
        service: DomainName,
    },
    /// A service was removed.
    Removed {
        /// When.
        at: Time,
        /// The service.
        service: DomainName,
    },
    /// The reader was too slow and missed events; it reads on with the oldest that is kept.
    Lagged {
        /// How many were missed.
        missed: u64,
    },
}

impl Event {
    /// The word by which the stream names it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Phase { .. } => "phase",
            Self::Wake { .. } => "wake",
            Self::Decision { .. } => "decision",
            Self::Health { .. } => "health",
            Self::Added { .. } => "added",
            Self::Removed { .. } => "removed",
            Self::Lagged { .. } => "lagged",
        }
    }

    /// The service that it is about, if it is about one.
    pub const fn service(&self) -> Option<&DomainName> {
        match self {
            Self::Phase { service, .. } | Self::Added { service, .. } | Self::Removed { service, .. } => {
                Some(service)
            }
            Self::Wake { wake } => Some(&wake.service),
            Self::Decision { decision } => Some(&decision.service),
            Self::Health { change } => Some(&change.service),
            Self::Lagged { .. } => None,
        }
    }
}
