//! What to do next: a pure function of the fleet and the time.
//!
//! `decide` looks only at instances that are not at rest, so a host with many sleeping services costs nothing.
//! Waiting is an action too, with its reason, so that `reveille why` can tell why nothing happens.

pub mod keep;
mod outlook;
mod reason;
mod replicas;
mod room;

use serde::{Deserialize, Serialize};

use crate::model::{
    Cause, DnsLease, DomainName, Fleet, ForecastMode, Instance, InstanceId, Phase, Remains, Role, RollBack,
    Rung, Service, SleepAsked, Timestamp,
};

use crate::mutation::is_on;

pub use outlook::{Best, Foresight, OUTLOOK_PIECES_MAX, Outlook};
pub use reason::Reason;

/// Without a packet for this long an instance may be put to sleep for another one that waits.
const PRESSURE_IDLE_MS: u64 = 1_000;

/// Without a packet for this long, or for its idle time if that is shorter, a service is quiet: then it goes to sleep if
/// forecasts say so, and what comes next is another arrival.
pub const QUIET_MS: u64 = 10_000;

/// One thing to do with one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Action {
    /// Start a guest from its image.
    Boot,
    /// Restore the version.
    Restore {
        /// The rung that it is restored from.
        from: Rung,
        /// Whether the version's files stay as they are, because they are being sent to the object store. A process that
        /// is there already was started so that it can.
        keep: bool,
    },
    /// Bring the process up with the version mapped.
    Arm {
        /// Whether the version's files will have to stay as they are, because the object store does not have them yet.
        keep: bool,
    },
    /// Restore it beside the version, check readiness, and stop the vCPUs.
    Pause,
    /// End the armed or paused process.
    Disarm,
    /// Get the version from the object store to the local disk.
    Fetch,
    /// Remove the version from the local disk; the object store has it.
    Evict,
    /// Have the object store make an older version the newest one, and drop what this host has.
    RollBack {
        /// The older version.
        from: u64,
        /// Its new number.
        number: u64,
    },
    /// Send the version to the object store. The instance may wake meanwhile.
    Publish {
        /// Its number.
        number: u64,
    },
    /// Take a version of the running guest.
    Checkpoint {
        /// Its number.
        number: u64,
    },
    /// Hold new clients and look at the traffic once more.
    Drain {
        /// Without a packet for this long the instance counts as idle.
        idle_ms: u64,
        /// Whether open connections are cut.
        force: bool,
    },
    /// Let clients in again.
    Undrain,
    /// Stop the guest, publish a version, end the process.
    Capture,
    /// Give the capture up and let the guest run, if it is not too late.
    AbandonCapture,
    /// Count the start under way as failed.
    GiveUpStart {
        /// Why.
        cause: Cause,
    },
    /// End whatever process is left of the instance.
    Kill {
        /// What it leaves on this host.
        #[serde(default)]
        remains: Remains,
    },
    /// Have one more instance of a replicable service.
    Replicate {
        /// How many there are then.
        instances: u32,
    },
    /// Do nothing until then.
    Wait {
        /// When to look again; `None`: when something happens.
        until: Option<Timestamp>,
    },
}

/// An action with its reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The service.
    pub service: DomainName,
    /// The instance.
    pub instance: InstanceId,
    /// What to do.
    pub action: Action,
    /// Why, with the numbers.
    pub reason: Reason,
}

/// Everything to do now, and when to look again.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The generation of the fleet that it was made from; it is applied only if that still holds.
    pub generation: u64,
    /// In the order in which they are to begin.
    pub decisions: Vec<Decision>,
    /// When to decide again even if nothing happens.
    pub next_look: Option<Timestamp>,
}

/// The plan for `fleet` at `now`.
pub fn decide(fleet: &Fleet, now: Timestamp) -> Plan {
    let mut plan = Plan { generation: fleet.generation(), decisions: Vec::new(), next_look: None };
    let mut wishes = room::Wishes::default();
    for (instance, service) in fleet.attention() {
        if instance.role == Role::Replica {
            match replicas::choose(fleet, instance, service, now) {
                Choice::Start(reason) => wishes.starts.push((instance, service, reason)),
                choice @ (Choice::Rest(..) | Choice::Do(..) | Choice::LookAt(_) | Choice::Nothing) => {
                    plan.follow(instance, choice);
                }
            }
            continue;
        }
        if let Some((action, reason)) = replicas::grow(instance, service) {
            plan.push(instance, action, reason);
        }
        if let Some(when) = wakes_at(instance, now) {
            plan.look_at(when);
        }
        if let Some((action, reason)) = choose_beside(fleet, instance, service, now, &mut plan) {
            plan.push(instance, action, reason);
        }
        let best = service.outlook.as_ref().and_then(|outlook| outlook.best(instance, now));
        if let Some(best) = &best {
            plan.look_at(best.until);
        }
        let choice = choose(fleet, instance, service, now);
        if let Choice::LookAt(_) | Choice::Nothing = &choice
            && let Some((action, reason)) = best.and_then(|best| would_keep(instance, service, best, now))
        {
            plan.push(instance, action, reason);
        }
        match choice {
            Choice::Start(reason) => wishes.starts.push((instance, service, reason)),
            Choice::Rest(action, reason) => wishes.rests.push((instance, service, action, reason)),
            choice @ (Choice::Do(..) | Choice::LookAt(_) | Choice::Nothing) => plan.follow(instance, choice),
        }
    }
    room::admit(fleet, wishes, now, &mut plan);
    if let Some(when) = fleet.next_on_agenda() {
        plan.look_at(when);
    }
    plan
}

/// When an instance is to be woken by its schedule; one that failed too often not before its next try.
fn wakes_at(instance: &Instance, now: Timestamp) -> Option<Timestamp> {
    let retry_at =
        instance.failure.as_ref().filter(|failure| failure.gave_up).map(|failure| failure.retry_at);
    instance.wake_at.map(|at| at.max(retry_at.unwrap_or_default())).filter(|when| *when > now)
}

/// What one instance wants, before the limits of the host are applied.
enum Choice {
    /// To be started, if the host admits it.
    Start(Reason),
    /// To be brought to its resting rung, if there is room.
    Rest(Action, Reason),
    /// This, now.
    Do(Action, Reason),
    /// To be looked at again at this time.
    LookAt(Timestamp),
    /// Nothing until something happens.
    Nothing,
}

impl Plan {
    /// Takes in what an instance wants that no limit of the host is applied to.
    fn follow(&mut self, instance: &Instance, choice: Choice) {
        match choice {
            Choice::Do(action, reason) => self.push(instance, action, reason),
            Choice::LookAt(when) => self.look_at(when),
            Choice::Start(_) | Choice::Rest(..) | Choice::Nothing => {}
        }
    }

    fn push(&mut self, instance: &Instance, action: Action, reason: Reason) {
        if let Action::Wait { until: Some(until) } = &action {
            self.look_at(*until);
        }
        let (service, instance) = (instance.service.clone(), instance.id);
        self.decisions.push(Decision { service, instance, action, reason });
    }

    fn look_at(&mut self, when: Timestamp) {
        self.next_look = Some(self.next_look.map_or(when, |next| next.min(when)));
    }
}

/// What is foreseen, if decisions go by it.
fn foreseen(instance: &Instance, service: &Service, now: Timestamp) -> Option<Best> {
    let decides = service.spec.policy.forecast == ForecastMode::On;
    service.outlook.as_ref().filter(|_| decides)?.best(instance, now)
}

/// What forecasts would lead to if decisions went by them: nothing is done, only the record says so.
fn would_keep(
    instance: &Instance,
    service: &Service,
    best: Best,
    now: Timestamp,
) -> Option<(Action, Reason)> {
    let settled = matches!(instance.phase, Phase::Active | Phase::Hibernated) && !instance.in_flight;
    let policy = &service.spec.policy;
    let used = now.ms_since(instance.last_activity) < QUIET_MS.min(policy.idle_ms)
        || (instance.open_connections > 0 && !policy.sleep_with_connections)
        || service.foreign.is_some()
        || instance.retiring
        || instance.outdated;
    let says = policy.forecast == ForecastMode::Only && settled && !used && best.rung != instance.rung;
    let Best { rung, until, because, of_group } = best;
    says.then_some((Action::Wait { until: Some(until) }, Reason::WouldKeep { rung, because, of_group }))
}

/// What is done beside the life of the instance: its versions on their way to the object store.
fn choose_beside(
    fleet: &Fleet,
    instance: &Instance,
    service: &Service,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<(Action, Reason)> {
    if !fleet.limits.has_depot || instance.retiring || service.foreign.is_some() {
        return None;
    }
    if let Some(version) = &instance.version
        && instance.wants_publishing()
        // Else it is about to run, and that is not to wait for anything.
        && service.demand.is_none()
    {
        return match instance.publish_retry_at {
            Some(retry_at) if now < retry_at => {
                plan.look_at(retry_at);
                None
            }
            Some(_) | None => Some((Action::Publish { number: version.number }, Reason::NotStored)),
        };
    }
    let every_ms = service.spec.policy.checkpoint_ms;
    if instance.phase != Phase::Active || every_ms == 0 || instance.checkpointing.is_some() {
        return None;
    }
    let since = instance.stored.as_ref().map_or(Timestamp::default(), |version| version.at);
    let due = since.max(awake_since(instance)).plus_ms(every_ms);
    let due = instance.checkpoint_retry_at.map_or(due, |retry_at| due.max(retry_at));
    if now < due {
        plan.look_at(due);
        return None;
    }
    let age_ms = now.ms_since(since.max(awake_since(instance)));
    let number = instance.version_number_last + 1;
    Some((Action::Checkpoint { number }, Reason::VersionTooOld { age_ms, limit_ms: every_ms }))
}

fn choose(fleet: &Fleet, instance: &Instance, service: &Service, now: Timestamp) -> Choice {
    let busy = instance.in_flight;
    if let Some(host) = &service.foreign {
        // What runs here must not go on; what sleeps does not wake.
        let runs = !matches!(instance.phase, Phase::Off | Phase::Hibernated | Phase::Failed)
            || instance.rung >= Rung::Armed
            || instance.unfenced;
        return if runs && !busy {
            Choice::Do(Action::Kill { remains: Remains::All }, Reason::Foreign { host: host.clone() })
        } else {
            Choice::Nothing
        };
    }
    let terminated = instance.sleep_asked == Some(SleepAsked::Terminate);
    if instance.retiring && !service.replicas.is_empty() {
        // They go first, as they are nobody's without it.
        return Choice::Nothing;
    }
    if replicas::replace_primary(fleet, instance, service) && !busy {
        let retry_at = instance.failure.as_ref().map_or(Timestamp::default(), |failure| failure.retry_at);
        return if now < retry_at {
            Choice::LookAt(retry_at)
        } else {
            Choice::Start(service.wanted().into())
        };
    }
    if (instance.retiring || terminated) && !busy {
        let (remains, reason) = if instance.retiring {
            (Remains::Nothing, Reason::Removed)
        } else {
            (Remains::Disk, Reason::Terminated)
        };
        return Choice::Do(Action::Kill { remains }, reason);
    }
    match instance.phase {
        Phase::Booting | Phase::Restoring | Phase::Warming => watch_start(instance, service, now),
        Phase::Active => choose_sleep(instance, service, now),
        Phase::Draining => match &service.demand {
            Some(demand) => Choice::Do(Action::Undrain, Reason::Wanted { trigger: demand.trigger.clone() }),
            None if busy => Choice::Nothing,
            None => Choice::Do(Action::Capture, Reason::Drained),
        },
        Phase::Hibernating => match &service.demand {
            Some(demand) if !busy => {
                Choice::Do(Action::AbandonCapture, Reason::Wanted { trigger: demand.trigger.clone() })
            }
            Some(_) | None => Choice::Nothing,
        },
        Phase::Off | Phase::Hibernated | Phase::Failed if busy => Choice::Nothing,
        Phase::Off | Phase::Hibernated | Phase::Failed if instance.unfenced => {
            Choice::Do(Action::Kill { remains: Remains::All }, Reason::Leftover)
        }
        Phase::Off | Phase::Hibernated | Phase::Failed if instance.rolling_back.is_some() => {
            roll_back(fleet, instance)
        }
        Phase::Off | Phase::Hibernated => choose_asleep(fleet, instance, service, now),
        Phase::Failed => choose_retry(instance, service, now),
    }
}

fn roll_back(fleet: &Fleet, instance: &Instance) -> Choice {
    let Some(RollBack { from, number }) = instance.rolling_back else { return Choice::Nothing };
    if fleet.is_unasked(&instance.service) {
        // Another host may have gone on with it.
        return Choice::Do(Action::Wait { until: None }, Reason::OwnerUnknown);
    }
    Choice::Do(Action::RollBack { from, number }, Reason::RollBackAsked { from })
}

/// A start under way: nothing, unless it takes too long.
fn watch_start(instance: &Instance, service: &Service, now: Timestamp) -> Choice {
    let policy = &service.spec.policy;
    let limit_ms = if instance.start_from > Rung::Cold { policy.restore_ms_max } else { policy.boot_ms_max };
    let deadline = instance.start_since.plus_ms(limit_ms);
    if now < deadline {
        return Choice::LookAt(deadline);
    }
    let cause = Cause::StartTimedOut { limit_ms, phase: instance.phase };
    Choice::Do(Action::GiveUpStart { cause }, Reason::TooSlow { limit_ms })
}

/// An awake instance: asleep when idle, but not before its minimum times are over.
fn choose_sleep(instance: &Instance, service: &Service, now: Timestamp) -> Choice {
    let policy = &service.spec.policy;
    if !service.replicas.is_empty() {
        // The last to sleep: what it has is what the service goes on from.
        return Choice::Nothing;
    }
    match instance.sleep_asked {
        Some(SleepAsked::Force) => {
            return Choice::Do(Action::Drain { idle_ms: 0, force: true }, Reason::SleepAsked);
        }
        Some(SleepAsked::WhenIdle) => {
            return Choice::Do(Action::Drain { idle_ms: 0, force: false }, Reason::SleepAsked);
        }
        Some(SleepAsked::Terminate) | None => {}
    }
    let cut = policy.sleep_with_connections;
    if instance.open_connections > 0 && !cut {
        return Choice::LookAt(now.plus_ms(policy.idle_ms));
    }
    let due = sleeps_at(instance, service, now);
    if now < due {
        return Choice::LookAt(due);
    }
    if let Some((retry_at, cause)) = &instance.sleep_retry
        && now < *retry_at
    {
        let reason = Reason::CannotSleep { cause: cause.clone() };
        return Choice::Do(Action::Wait { until: Some(*retry_at) }, reason);
    }
    let idle_ms = now.ms_since(instance.last_activity);
    if let Some(Best { rung, because, of_group, .. }) = foreseen(instance, service, now) {
        // Connections are cut by the policy's time alone.
        let open = instance.open_connections > 0;
        let idle_for_ms = if open { policy.idle_ms } else { policy.idle_ms.min(QUIET_MS) };
        let reason = Reason::Foreseen { idle_ms, rung, because, of_group };
        return Choice::Do(Action::Drain { idle_ms: idle_for_ms, force: cut }, reason);
    }
    let awake_ms = now.ms_since(awake_since(instance));
    let reason = Reason::Idle { idle_ms, limit_ms: policy.idle_ms, awake_ms };
    Choice::Do(Action::Drain { idle_ms: policy.idle_ms, force: cut }, reason)
}

/// When an awake instance goes to sleep, as far as is known at `now`, if nothing more is seen of it and nobody asks for its
/// sleep.
pub fn sleeps_at(instance: &Instance, service: &Service, now: Timestamp) -> Timestamp {
    let policy = &service.spec.policy;
    let leased_until = match policy.dns_lease {
        DnsLease::Always => instance.leased_until,
        // The relay is the only activator so far, and covers every address.
        DnsLease::Uncovered => Timestamp::default(),
    };
    let idle = match foreseen(instance, service, now) {
        Some(best) if best.rung == Rung::Active => best.until,
        Some(_) => instance.last_activity.plus_ms(policy.idle_ms.min(QUIET_MS)),
        None => instance.last_activity.plus_ms(policy.idle_ms),
    };
    let due = [
        idle,
        awake_since(instance).plus_ms(policy.min_on_ms),
        service.created_at.plus_ms(policy.grace_ms),
        leased_until,
    ];
    due.into_iter().max().unwrap_or_default()
}

/// From when on an awake instance may be put to sleep for another one, and how long it must be without a packet then:
/// its minimum times hold, its idle time does not.
fn sleeps_at_pressure(instance: &Instance, service: &Service) -> (Timestamp, u64) {
    let policy = &service.spec.policy;
    let idle_ms = policy.idle_ms.min(PRESSURE_IDLE_MS);
    let leased_until = match policy.dns_lease {
        DnsLease::Always => instance.leased_until,
        DnsLease::Uncovered => Timestamp::default(),
    };
    let due = [
        instance.last_activity.plus_ms(idle_ms),
        awake_since(instance).plus_ms(policy.min_on_ms),
        leased_until,
        instance.sleep_retry.as_ref().map_or(Timestamp::default(), |(retry_at, _)| *retry_at),
    ];
    (due.into_iter().max().unwrap_or_default(), idle_ms)
}

fn awake_since(instance: &Instance) -> Timestamp {
    instance.running_since.unwrap_or(instance.phase_since)
}

/// Asleep: woken on demand, otherwise brought to its resting rung.
fn choose_asleep(fleet: &Fleet, instance: &Instance, service: &Service, now: Timestamp) -> Choice {
    if instance.outdated && instance.rung >= Rung::Armed {
        return Choice::Do(Action::Disarm, Reason::OtherSpec);
    }
    if let Some(demand) = &service.demand {
        let reason = Reason::Asked { trigger: demand.trigger.clone(), asks: demand.asks };
        return if instance.rung == Rung::Remote {
            // Also what is outdated: its disk is booted from.
            fetch(instance, reason, now)
        } else if instance.epoch == 0 && instance.version.is_none() && fleet.is_unasked(&service.spec.name) {
            // Another host may run it, or its last version may be in the store: a boot would begin it anew.
            Choice::Do(Action::Wait { until: None }, Reason::OwnerUnknown)
        } else {
            Choice::Start(reason)
        };
    }
    let idle_ms = now.ms_since(instance.last_activity);
    // Nothing is warmed for who may come before it is known whose the service is.
    let best = foreseen(instance, service, now).filter(|_| !fleet.is_unasked(&service.spec.name));
    let (rest, reason) = match best {
        Some(Best { rung, because, of_group, .. }) => {
            (rung, Reason::Foreseen { idle_ms, rung, because, of_group })
        }
        None => (service.spec.policy.rest, Reason::RestRung { rest: service.spec.policy.rest }),
    };
    if instance.rung == rest || (instance.outdated && rest > Rung::Local) {
        return Choice::Nothing;
    }
    if let Some(retry_at) = instance.rest_retry_at
        && now < retry_at
    {
        return Choice::LookAt(retry_at);
    }
    match instance.rung {
        // There is nothing to keep warm.
        Rung::Cold | Rung::Active => Choice::Nothing,
        // What was evicted comes back when it is asked for.
        Rung::Remote if rest == Rung::Local => Choice::Nothing,
        Rung::Remote => Choice::Rest(Action::Fetch, reason),
        Rung::Local => match rest {
            Rung::Armed => Choice::Rest(Action::Arm { keep: is_unstored(fleet, instance) }, reason),
            Rung::Paused => Choice::Rest(Action::Pause, reason),
            Rung::Active => Choice::Rest(restore(instance, is_unstored(fleet, instance)), reason),
            Rung::Remote if instance.stored_is_current || is_on("evict-unstored") => {
                Choice::Do(Action::Evict, reason)
            }
            Rung::Cold | Rung::Remote | Rung::Local => Choice::Nothing,
        },
        Rung::Armed | Rung::Paused if rest == Rung::Active => {
            Choice::Rest(restore(instance, is_unstored(fleet, instance)), reason)
        }
        // Whether the version is mapped beside itself or not is settled when the process starts.
        Rung::Armed | Rung::Paused => Choice::Do(Action::Disarm, reason),
    }
}

/// Whether the version's files have to stay as they are, since the object store does not have them yet.
fn is_unstored(fleet: &Fleet, instance: &Instance) -> bool {
    fleet.limits.has_depot && !instance.stored_is_current
}

/// The way up from the version that it has.
fn restore(instance: &Instance, keep: bool) -> Action {
    let keep = (keep || instance.publishing.is_some()) && !is_on("write-while-sent");
    Action::Restore { from: instance.rung, keep }
}

/// Failed: tried again when somebody wants it and the pause is over.
fn choose_retry(instance: &Instance, service: &Service, now: Timestamp) -> Choice {
    let (Some(demand), Some(failure)) = (&service.demand, &instance.failure) else { return Choice::Nothing };
    if now < failure.retry_at {
        let reason = Reason::BackingOff { attempts: failure.attempts, cause: failure.cause.clone() };
        return Choice::Do(Action::Wait { until: Some(failure.retry_at) }, reason);
    }
    let reason = Reason::Retry {
        trigger: demand.trigger.clone(),
        attempts: failure.attempts,
        cause: failure.cause.clone(),
    };
    if instance.rung == Rung::Remote { fetch(instance, reason, now) } else { Choice::Start(reason) }
}

/// Somebody waits for what only the object store has: it is fetched before anything starts.
fn fetch(instance: &Instance, reason: Reason, now: Timestamp) -> Choice {
    match instance.rest_retry_at {
        Some(retry_at) if now < retry_at => Choice::LookAt(retry_at),
        Some(_) | None => Choice::Do(Action::Fetch, reason),
    }
}

#[cfg(test)]
mod tests;
