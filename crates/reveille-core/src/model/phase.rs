//! The life of an instance: phases, rungs, and the one function that says which phase follows which.
//!
//! ```text
//!              Boot                 Running                Ready
//!      Off ───────────► Booting ───────────────┐
//!       ▲                                      ▼
//!       │ Stop                              Warming ──────► Active ◄──────────┐
//!       │                                      ▲              │ ▲             │ Resumed
//!       │      Restore              Running    │        Drain │ │ Undrain     │
//!  Hibernated ─────────► Restoring ────────────┘              ▼ │             │
//!       ▲                                                  Draining ───► Hibernating
//!       │                                                       Capture       │
//!       └─────────────────────────────────────────────────────────────────────┘
//!                                    Captured
//!  Every phase with a process: Fail ─► Failed ─► Boot or Restore (next request), Stop ─► Off
//! ```

use serde::{Deserialize, Serialize};

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No process and no snapshot version that may be restored: the next wake is a cold boot.
    Off,
    /// A virtual machine monitor starts a guest from its image.
    Booting,
    /// A version is being loaded; the vCPUs have not run since it was taken.
    Restoring,
    /// The vCPUs run; the service's own port has not answered yet.
    Warming,
    /// The service answers.
    Active,
    /// About to sleep: new clients are held while the last look at traffic is taken.
    Draining,
    /// The guest is stopped and its state is being written.
    Hibernating,
    /// A complete version exists and no vCPU runs.
    Hibernated,
    /// A start failed or the running instance was lost; the cause and the time of the next try are recorded.
    Failed,
}

impl Phase {
    /// Every phase, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::Off,
        Self::Booting,
        Self::Restoring,
        Self::Warming,
        Self::Active,
        Self::Draining,
        Self::Hibernating,
        Self::Hibernated,
        Self::Failed,
    ];

    /// The word for people and scripts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Booting => "booting",
            Self::Restoring => "restoring",
            Self::Warming => "warming",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Hibernating => "hibernating",
            Self::Hibernated => "hibernated",
            Self::Failed => "failed",
        }
    }

    /// Whether a start is under way: what the limit on concurrent wakes counts.
    pub const fn is_starting(self) -> bool {
        match self {
            Self::Booting | Self::Restoring | Self::Warming => true,
            Self::Off
            | Self::Active
            | Self::Draining
            | Self::Hibernating
            | Self::Hibernated
            | Self::Failed => false,
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// How warm an instance is kept, coldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Image only.
    Cold,
    /// A version in object storage.
    Remote,
    /// A version in the local cache.
    Local,
    /// The monitor's process is up with the version mapped; no guest memory was touched.
    Armed,
    /// Restored, vCPUs stopped.
    Paused,
    /// Running.
    Active,
}

impl Rung {
    /// The word for people and scripts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Remote => "remote",
            Self::Local => "local",
            Self::Armed => "armed",
            Self::Paused => "paused",
            Self::Active => "active",
        }
    }
}

impl std::fmt::Display for Rung {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

/// What an instance is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Answers for the service.
    Primary,
    /// Answers beside the primary of a replicable service, for as long as it takes more than one. It has no state of its
    /// own that anybody would miss.
    Replica,
    /// Stands behind a primary.
    Shadow,
    /// A warm clone that no service has claimed yet.
    Pooled,
}

/// How many instances of a service may run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One at a time; its disk has one writer.
    #[default]
    Single,
    /// Stateless, or its state is kept elsewhere: may scale out.
    Replicable,
}

/// The three states that the outside is shown beside the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Nothing runs.
    Inactive,
    /// On its way up, or kept armed or paused.
    Warming,
    /// Serves.
    Active,
}

impl VmState {
    /// The state that a phase and a rung amount to.
    pub const fn of(phase: Phase, rung: Rung) -> Self {
        match phase {
            Phase::Off | Phase::Failed => Self::Inactive,
            Phase::Hibernated => match rung {
                Rung::Armed | Rung::Paused => Self::Warming,
                Rung::Cold | Rung::Remote | Rung::Local | Rung::Active => Self::Inactive,
            },
            // A hibernation turns back at once when a client arrives, so it is shown as what it leads to.
            Phase::Hibernating => Self::Inactive,
            Phase::Booting | Phase::Restoring | Phase::Warming => Self::Warming,
            Phase::Active | Phase::Draining => Self::Active,
        }
    }

    /// The word for people and scripts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Warming => "warming",
            Self::Active => "active",
        }
    }
}

/// What can happen to a phase: begun by a plan, or reported by whoever carried it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Move {
    /// A cold boot begins.
    Boot,
    /// A restore begins.
    Restore,
    /// The vCPUs run.
    Running,
    /// The readiness check passed.
    Ready,
    /// New clients are held for the last look at traffic.
    Drain,
    /// They are let in again.
    Undrain,
    /// Capturing begins.
    Capture,
    /// A version was published and the process is gone.
    Captured,
    /// The capture was abandoned or failed, and the guest runs on.
    Resumed,
    /// The process is up with the version mapped (rung Armed).
    Arm,
    /// That process was ended; the version is as it was.
    Disarm,
    /// A start failed, or the process or its guest was lost.
    Fail,
    /// Ended on purpose, nothing kept in memory.
    Stop,
}

impl Move {
    /// Every move.
    pub const ALL: [Self; 13] = [
        Self::Boot,
        Self::Restore,
        Self::Running,
        Self::Ready,
        Self::Drain,
        Self::Undrain,
        Self::Capture,
        Self::Captured,
        Self::Resumed,
        Self::Arm,
        Self::Disarm,
        Self::Fail,
        Self::Stop,
    ];
}

/// Why a move was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instance that is {phase} cannot take the step {asked:?}")]
pub struct Refusal {
    /// The phase that the instance is in, and stays in.
    pub phase: Phase,
    /// What was asked of it.
    pub asked: Move,
}

/// What a move does to a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The next phase.
    To(Phase),
    /// Already so; a repeat does no harm.
    Stay,
    /// Not from here.
    Refused(Refusal),
}

/// The phase that follows `phase` when `asked` happens. Total: every pair is written out.
#[expect(clippy::too_many_lines, reason = "a table of 9 phases by 13 moves is read as one")]
pub const fn transition(phase: Phase, asked: Move) -> Outcome {
    use Outcome::{Stay, To};
    let refused = Outcome::Refused(Refusal { phase, asked });
    match phase {
        Phase::Off => match asked {
            Move::Boot => To(Phase::Booting),
            Move::Stop | Move::Disarm => Stay,
            Move::Restore
            | Move::Running
            | Move::Ready
            | Move::Drain
            | Move::Undrain
            | Move::Capture
            | Move::Captured
            | Move::Resumed
            | Move::Arm
            | Move::Fail => refused,
        },
        Phase::Booting => match asked {
            Move::Running => To(Phase::Warming),
            Move::Fail => To(Phase::Failed),
            Move::Stop => To(Phase::Off),
            Move::Boot => Stay,
            Move::Restore
            | Move::Ready
            | Move::Drain
            | Move::Undrain
            | Move::Capture
            | Move::Captured
            | Move::Resumed
            | Move::Arm
            | Move::Disarm => refused,
        },
        Phase::Restoring => match asked {
            Move::Running => To(Phase::Warming),
            Move::Fail => To(Phase::Failed),
            Move::Stop => To(Phase::Off),
            Move::Restore => Stay,
            Move::Boot
            | Move::Ready
            | Move::Drain
            | Move::Undrain
            | Move::Capture
            | Move::Captured
            | Move::Resumed
            | Move::Arm
            | Move::Disarm => refused,
        },
        Phase::Warming => match asked {
            Move::Ready => To(Phase::Active),
            Move::Fail => To(Phase::Failed),
            Move::Stop => To(Phase::Off),
            Move::Running => Stay,
            Move::Boot
            | Move::Restore
            | Move::Drain
            | Move::Undrain
            | Move::Capture
            | Move::Captured
            | Move::Resumed
            | Move::Arm
            | Move::Disarm => refused,
        },
        Phase::Active => match asked {
            Move::Drain => To(Phase::Draining),
            Move::Fail => To(Phase::Failed),
            Move::Stop => To(Phase::Off),
            Move::Ready | Move::Running | Move::Undrain | Move::Resumed => Stay,
            Move::Boot | Move::Restore | Move::Capture | Move::Captured | Move::Arm | Move::Disarm => refused,
        },
        Phase::Draining => match asked {
            Move::Undrain => To(Phase::Active),
            Move::Capture => To(Phase::Hibernating),
            Move::Fail => To(Phase::Failed),
            Move::Stop => To(Phase::Off),
            Move::Drain | Move::Ready => Stay,
            Move::Boot
            | Move::Restore
            | Move::Running
            | Move::Captured
            | Move::Resumed
            | Move::Arm
            | Move::Disarm => refused,
        },
        Phase::Hibernating => match asked {
            Move::Captured => To(Phase::Hibernated),
            Move::Resumed => To(Phase::Active),
            Move::Fail => To(Phase::Failed),
            Move::Stop => To(Phase::Off),
            Move::Capture => Stay,
            Move::Boot
            | Move::Restore
            | Move::Running
            | Move::Ready
            | Move::Drain
            | Move::Undrain
            | Move::Arm
            | Move::Disarm => refused,
        },
        Phase::Hibernated => match asked {
            Move::Restore => To(Phase::Restoring),
            Move::Boot => To(Phase::Booting),
            Move::Stop => To(Phase::Off),
            Move::Arm | Move::Disarm | Move::Captured => Stay,
            Move::Running
            | Move::Ready
            | Move::Drain
            | Move::Undrain
            | Move::Capture
            | Move::Resumed
            | Move::Fail => refused,
        },
        Phase::Failed => match asked {
            Move::Boot => To(Phase::Booting),
            Move::Restore => To(Phase::Restoring),
            Move::Stop => To(Phase::Off),
            Move::Fail | Move::Disarm => Stay,
            Move::Running
            | Move::Ready
            | Move::Drain
            | Move::Undrain
            | Move::Capture
            | Move::Captured
            | Move::Resumed
            | Move::Arm => refused,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_is_as_drawn() {
        use Move::*;
        use Phase::*;
        let arrows = [
            (Off, Boot, Booting),
            (Booting, Running, Warming),
            (Restoring, Running, Warming),
            (Warming, Ready, Active),
            (Active, Drain, Draining),
            (Draining, Undrain, Active),
            (Draining, Capture, Hibernating),
            (Hibernating, Captured, Hibernated),
            (Hibernating, Resumed, Active),
            (Hibernated, Restore, Restoring),
            (Hibernated, Boot, Booting),
            (Failed, Boot, Booting),
            (Failed, Restore, Restoring),
        ];
        let with_process = [Booting, Restoring, Warming, Active, Draining, Hibernating];
        for phase in Phase::ALL {
            for asked in Move::ALL {
                let drawn = arrows.iter().find(|(from, by, _)| (*from, *by) == (phase, asked));
                let expected = match (drawn, asked) {
                    (Some((_, _, to)), _) => Some(*to),
                    (None, Fail) if with_process.contains(&phase) => Some(Failed),
                    (None, Stop) if phase != Off => Some(Off),
                    (None, _) => None,
                };
                let found = match transition(phase, asked) {
                    Outcome::To(next) => Some(next),
                    Outcome::Stay | Outcome::Refused(_) => None,
                };
                assert_eq!(found, expected, "{phase} on {asked:?}");
            }
        }
    }

    #[test]
    fn a_version_is_captured_only_from_a_drained_instance() {
        for phase in Phase::ALL {
            let captures = transition(phase, Move::Capture) == Outcome::To(Phase::Hibernating);
            assert_eq!(captures, phase == Phase::Draining, "{phase}");
        }
    }
}
