//! Why something is done: values first, sentences from them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::keep::KeepReason;
use crate::model::load::Wanted;
use crate::model::{Cause, DomainName, Rung, Trigger};

/// Why an action was chosen, with the numbers that it was chosen by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
pub enum Reason {
    /// Somebody wants the service, which sleeps.
    Asked {
        /// The first who asked.
        trigger: Trigger,
        /// How many have asked by now.
        asks: u64,
    },
    /// Somebody wants it while it goes to sleep.
    Wanted {
        /// Who.
        trigger: Trigger,
    },
    /// Somebody wants it, and the pause after a failure is over.
    Retry {
        /// Who.
        trigger: Trigger,
        /// Starts that failed in a row.
        attempts: u32,
        /// Why the last one failed, or the running instance was lost.
        cause: Cause,
    },
    /// The pause after a failed start is not over.
    BackingOff {
        /// Starts that failed in a row.
        attempts: u32,
        /// Why the last one failed.
        cause: Cause,
    },
    /// The host starts as many instances as it may.
    Queued {
        /// Starts that go first.
        ahead: usize,
        /// Starts under way.
        running: usize,
        /// The limit.
        limit: usize,
    },
    /// The host has no room for it yet.
    NoRoom {
        /// Memory that it needs, in MiB.
        needed_mib: u64,
        /// Memory that is held, in MiB.
        held_mib: u64,
        /// The host's limit, if it has one.
        limit_mib: Option<u64>,
        /// Instances that go to sleep to make room.
        making_room: usize,
    },
    /// It will never fit: it needs more than the host may give.
    TooLarge {
        /// Memory that it needs, in MiB.
        needed_mib: u64,
        /// The host's limit, if it has one.
        limit_mib: Option<u64>,
    },
    /// Another service that is asked for needs the room.
    MakesRoom {
        /// The service that waits.
        waiting: DomainName,
        /// Its priority.
        waiting_priority: u8,
        /// Its own.
        priority: u8,
        /// Time without traffic.
        idle_ms: u64,
    },
    /// Another host has taken the service over.
    Foreign {
        /// The host.
        host: String,
    },
    /// The object store has not said yet whether another host has it.
    OwnerUnknown,
    /// The object store does not have its version yet.
    NotStored,
    /// The cache is over its limit, and this version is needed last.
    CacheFull {
        /// Bytes in the cache.
        cached_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The last version of the running guest is older than the policy allows.
    VersionTooOld {
        /// Its age.
        age_ms: u64,
        /// The policy's limit.
        limit_ms: u64,
    },
    /// No open connection and no packet for long enough.
    Idle {
        /// Time without traffic.
        idle_ms: u64,
        /// The policy's limit.
        limit_ms: u64,
        /// Time since the vCPUs began to run.
        awake_ms: u64,
    },
    /// The last hibernation failed, and the pause after it is not over.
    CannotSleep {
        /// Why it failed.
        cause: Cause,
    },
    /// The last look found no traffic.
    Drained,
    /// An operator asked for sleep.
    SleepAsked,
    /// An operator ended it.
    Terminated,
    /// An operator removed the service.
    Removed,
    /// What it has was taken of another image or with other resources than the service has now.
    OtherSpec,
    /// An operator wants an older version back.
    RollBackAsked {
        /// That version.
        from: u64,
    },
    /// The start took too long.
    TooSlow {
        /// The policy's limit.
        limit_ms: u64,
    },
    /// The policy keeps it on this rung while it sleeps.
    RestRung {
        /// The rung.
        rest: Rung,
    },
    /// By what is foreseen it is best kept on that rung.
    Foreseen {
        /// Time without traffic.
        idle_ms: u64,
        /// The rung.
        rung: Rung,
        /// The numbers.
        because: KeepReason,
        /// Whether they rest on its group alone: it has had no gap of its own.
        #[serde(default)]
        of_group: bool,
    },
    /// By what is foreseen it would be kept on that rung, if decisions went by forecasts.
    WouldKeep {
        /// The rung.
        rung: Rung,
        /// The numbers.
        because: KeepReason,
        /// Whether they rest on its group alone: it has had no gap of its own.
        #[serde(default)]
        of_group: bool,
    },
    /// It takes so many instances to carry what its clients use.
    Load {
        /// Instances that are wanted.
        wanted: u32,
        /// Mean of what was in use over the stable window.
        stable: f64,
        /// The same over the panic window.
        panic: f64,
        /// What one instance is to be used by.
        target: f64,
        /// Whether the panic window decides.
        panics: bool,
        /// Instances that are wanted by forecast alone.
        foreseen: u32,
        /// How much of that forecast is what its group does, in per cent.
        #[serde(default)]
        of_group_percent: u8,
    },
    /// By what is foreseen there would be so many instances, if decisions went by forecasts.
    WouldReplicate {
        /// Instances that are wanted by forecast alone.
        foreseen: u32,
        /// How much of that forecast is what its group does, in per cent.
        #[serde(default)]
        of_group_percent: u8,
        /// Mean of what is in use.
        stable: f64,
        /// What one instance is to be used by.
        target: f64,
    },
    /// A process of a failed start may be left.
    Leftover,
}

impl From<Wanted> for Reason {
    fn from(wanted: Wanted) -> Self {
        let Wanted { instances, stable, panic, target, panics, foreseen, of_group_percent } = wanted;
        Self::Load { wanted: instances, stable, panic, target, panics, foreseen, of_group_percent }
    }
}

impl fmt::Display for Reason {
    #[expect(clippy::too_many_lines, reason = "one sentence for each reason")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked { trigger, asks: 1 } => write!(f, "{trigger} asked for it"),
            Self::Asked { trigger, asks } => write!(f, "{trigger} asked for it, the first of {asks}"),
            Self::Wanted { trigger } => write!(f, "{trigger} asked for it while it went to sleep"),
            Self::Retry { trigger, attempts: 0, cause } => {
                write!(f, "{trigger} asked for it after it was lost: {cause}")
            }
            Self::Retry { trigger, attempts, cause } => {
                write!(f, "{trigger} asked for it; {attempts} starts failed before, the last because {cause}")
            }
            Self::BackingOff { attempts, cause } => {
                write!(f, "{attempts} starts failed in a row, the last because {cause}")
            }
            Self::Queued { ahead, running, limit } => {
                write!(f, "{running} of {limit} starts are under way and {ahead} others go first")
            }
            Self::NoRoom { needed_mib, held_mib, limit_mib, making_room } => {
                let limit = limit_mib.map_or_else(
                    || " MiB are held; the host has no processor left".to_owned(),
                    |limit| format!(" of {limit} MiB are held"),
                );
                write!(
                    f,
                    "it needs {needed_mib} MiB and {held_mib}{limit}; {making_room} go to sleep to make room"
                )
            }
            Self::TooLarge { needed_mib, limit_mib } => match limit_mib {
                Some(limit) => write!(f, "it needs {needed_mib} MiB, the host may give {limit} in all"),
                None => f.write_str("it needs more processors than the host may give in all"),
            },
            Self::MakesRoom { waiting, waiting_priority, priority, idle_ms } => write!(
                f,
                "{waiting} (priority {waiting_priority}) needs the room; no packet for {} s, priority {priority}",
                seconds(*idle_ms)
            ),
            Self::Foreign { host } => write!(f, "the host {host} has taken the service over"),
            Self::OwnerUnknown => {
                f.write_str("the object store has not said yet whether another host has it")
            }
            Self::NotStored => f.write_str("the object store does not have its version yet"),
            Self::CacheFull { cached_bytes, limit_bytes } => write!(
                f,
                "{} MiB of {} are cached, and this version is needed last",
                cached_bytes >> 20,
                limit_bytes >> 20
            ),
            Self::VersionTooOld { age_ms, limit_ms } => {
                write!(f, "its last version is {} s old (limit {} s)", seconds(*age_ms), seconds(*limit_ms))
            }
            Self::Idle { idle_ms, limit_ms, awake_ms } => write!(
                f,
                "no connection and no packet for {} s (limit {} s), awake for {} s",
                seconds(*idle_ms),
                seconds(*limit_ms),
                seconds(*awake_ms)
            ),
            Self::CannotSleep { cause } => write!(f, "it runs on: {cause}"),
            Self::Drained => f.write_str("the last look found no traffic"),
            Self::SleepAsked => f.write_str("an operator asked for it"),
            Self::Terminated => f.write_str("an operator ended it"),
            Self::Removed => f.write_str("the service was removed"),
            Self::OtherSpec => {
                f.write_str("the service has another image or other resources than its version here")
            }
            Self::RollBackAsked { from } => write!(f, "an operator wants version {from} back"),
            Self::TooSlow { limit_ms } => write!(f, "it was not ready after {} s", seconds(*limit_ms)),
            Self::RestRung { rest } => write!(f, "its policy is to sleep on the rung {rest}"),
            Self::Foreseen { idle_ms, rung, because, of_group } => {
                let idle_s = seconds(*idle_ms);
                let whose = no_gap_yet(*of_group);
                write!(f, "after {idle_s} s without traffic it is best kept {rung}: {because}{whose}")
            }
            Self::WouldKeep { rung, because, of_group } => {
                let whose = no_gap_yet(*of_group);
                write!(f, "with forecast = \"on\" it would be kept {rung}: {because}{whose}")
            }
            Self::WouldReplicate { foreseen, of_group_percent, stable, target } => write!(
                f,
                "with forecast = \"on\" there would be {foreseen} instances{}, each to carry {target:.0}; {stable:.1} are in use now",
                of_group(*of_group_percent)
            ),
            Self::Load { wanted, stable, panic, target, panics, foreseen, of_group_percent } => {
                write!(f, "{wanted} instances carry what its clients use: ")?;
                match (*panics, foreseen) {
                    (true, _) => write!(f, "{panic:.1} at a time of late, a crowd")?,
                    (false, most) if most >= wanted => {
                        let of_group = of_group(*of_group_percent);
                        write!(f, "a forecast says {most}{of_group}, with {stable:.1} in use now")?
                    }
                    (false, _) => write!(f, "{stable:.1} at a time")?,
                }
                write!(f, "; one is to carry {target:.0}")
            }
            Self::Leftover => f.write_str("a process of the failed start may be left"),
        }
    }
}

/// Whose gaps are spoken of.
fn no_gap_yet(of_group: bool) -> &'static str {
    if of_group { " (as services of its group do, it was asked for once)" } else { "" }
}

/// How much of a forecast is not the service's own.
fn of_group(percent: u8) -> String {
    match percent {
        0 => String::new(),
        100 => " (as services of its group do, its own history is too short)".to_owned(),
        percent => format!(" ({percent} % of it as services of its group do)"),
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{}", ms / 1_000, ms % 1_000 / 100)
}
