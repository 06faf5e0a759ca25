//! Who is let in when the host cannot have all at once, and who makes room.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{Action, Plan, Reason, foreseen, restore, sleeps_at_pressure};
use crate::model::{Fleet, Held, Instance, InstanceId, Phase, Role, Rung, Service, Timestamp};

/// What instances want, before the limits of the host are applied.
#[derive(Default)]
pub(super) struct Wishes<'f> {
    /// To be started.
    pub starts: Vec<(&'f Instance, &'f Service, Reason)>,
    /// To be kept warmer.
    pub rests: Vec<(&'f Instance, &'f Service, Action, Reason)>,
}

/// Lets as many starts begin as the host allows: higher priority first, then who waited longest. When there is no room
/// for the first that waits, nobody behind it goes first, and others are put to sleep for it. What is to be kept warmer
/// comes last.
pub(super) fn admit(fleet: &Fleet, mut wishes: Wishes<'_>, now: Timestamp, plan: &mut Plan) {
    wishes.starts.sort_by_key(|(instance, service, _)| turn_of(instance, service));
    let limits = &fleet.limits;
    let most = limits.starts_max as usize;
    let under_way = fleet.attention().filter(|(instance, _)| instance.phase.is_starting()).count();
    // Who goes to sleep by itself in this very plan is not to be told again.
    let goes =
        |action: &Action| matches!(action, Action::Drain { .. } | Action::Disarm | Action::Kill { .. });
    let going = plan.decisions.iter().filter(|decision| goes(&decision.action));
    let going = going.map(|decision| decision.instance).collect();
    let mut room = Room { fleet, held: fleet.held(), making: 0, going, taken: Vec::new() };
    let (mut begun, mut waiting) = (0, 0);
    for (instance, service, reason) in wishes.starts {
        if room.taken.contains(&instance.id) {
            // It has just given its room to one before it.
            waiting += 1;
            continue;
        }
        let needed = Held::running(service.spec.resources);
        if !needed.fits(limits) {
            let (needed_mib, limit_mib) = (needed.memory_mib, limits.memory_mib());
            plan.push(instance, Action::Wait { until: None }, Reason::TooLarge { needed_mib, limit_mib });
            continue;
        }
        let after = room.held + needed - Held::by(instance, service.spec.resources);
        if under_way + begun >= most {
            let reason = Reason::Queued { ahead: waiting, running: under_way, limit: most };
            plan.push(instance, Action::Wait { until: None }, reason);
            waiting += 1;
        } else if waiting > 0 || !after.fits(limits) {
            room.make(instance, service, after, now, plan);
            let reason = Reason::NoRoom {
                needed_mib: needed.memory_mib,
                held_mib: fleet.held().memory_mib,
                limit_mib: limits.memory_mib(),
                making_room: room.making,
            };
            plan.push(instance, Action::Wait { until: None }, reason);
            waiting += 1;
        } else {
            begun += 1;
            room.held = after;
            let action = if instance.restores_next() { restore(instance, false) } else { Action::Boot };
            plan.push(instance, action, reason);
        }
    }
    if waiting == 0 {
        // One place is left for who comes meanwhile.
        let free = most.saturating_sub(under_way + begun).saturating_sub(usize::from(most > 1));
        warm(wishes.rests, &mut room, free, plan);
    }
    evict(fleet, now, plan);
}

/// Its place among those that wait to be started: higher priority first, then who waited longest.
fn turn_of(instance: &Instance, service: &Service) -> (Reverse<u8>, Option<Timestamp>, InstanceId) {
    let since = service.demand.as_ref().filter(|_| instance.role == Role::Primary).map(|demand| demand.since);
    // Nobody waits for one more of several; behind those who wait alike it has its turn by its age.
    let since = since.or(Some(instance.phase_since));
    (Reverse(service.spec.priority), since, instance.id)
}

/// Room that is made while a plan is made.
struct Room<'f> {
    fleet: &'f Fleet,
    /// What is held once the plan has begun.
    held: Held,
    /// Instances that go to sleep for them.
    making: usize,
    /// Those that go to sleep in this plan for other reasons.
    going: BTreeSet<InstanceId>,
    /// Which these are, and those that leave by themselves.
    taken: Vec<InstanceId>,
}

impl Room<'_> {
    /// Puts as many to sleep as are needed for one more that waits: who is only kept warm first, then the idle ones of
    /// lower or equal priority, longest idle first. Nobody with an open connection, and nobody before its minimum time.
    fn make(&mut self, waiting: &Instance, service: &Service, after: Held, now: Timestamp, plan: &mut Plan) {
        let fleet = self.fleet;
        self.held = after;
        let mut short = after.beyond(&fleet.limits);
        let mut candidates = Vec::new();
        for (instance, owner, held) in fleet.holders() {
            // A replica goes by itself when it is not needed.
            if instance.id == waiting.id
                || self.taken.contains(&instance.id)
                || instance.role == Role::Replica
            {
                continue;
            }
            let asleep = instance.phase == Phase::Hibernated;
            let leaves = self.going.contains(&instance.id)
                || matches!(instance.phase, Phase::Draining | Phase::Hibernating | Phase::Failed)
                || (instance.in_flight && asleep && instance.rung > Rung::Local);
            if leaves {
                // It gives its room back in any case.
                short -= held;
                self.taken.push(instance.id);
                self.making += 1;
                self.held -= held;
                continue;
            }
            // One that is kept warm and waits behind this one: else each would wait for the other.
            let behind = asleep && turn_of(instance, owner) > turn_of(waiting, service);
            // Awake for who may come, and for nobody else.
            let ahead = !asleep && now >= instance.last_activity.plus_ms(owner.spec.policy.idle_ms);
            let stays = instance.in_flight
                || (owner.demand.is_some() && !behind)
                // Who is only kept warm has no client to lose.
                || (!asleep && !ahead && owner.spec.priority > service.spec.priority)
                || instance.open_connections > 0;
            if !stays && (asleep || instance.phase == Phase::Active) {
                candidates.push((
                    (!asleep && !ahead, !asleep),
                    owner.spec.priority,
                    instance.last_activity,
                    instance,
                    owner,
                    held,
                ));
            }
        }
        candidates.sort_by_key(|(used, priority, last, instance, ..)| (*used, *priority, *last, instance.id));
        for ((_, awake), priority, last_activity, instance, owner, held) in candidates {
            if short.is_met() {
                break;
            }
            if held.memory_mib == 0 && held.cpus == 0 {
                continue;
            }
            let reason = Reason::MakesRoom {
                waiting: service.spec.name.clone(),
                waiting_priority: service.spec.priority,
                priority,
                idle_ms: now.ms_since(last_activity),
            };
            if awake {
                let (due, idle_ms) = sleeps_at_pressure(instance, owner);
                if now < due {
                    plan.look_at(due);
                    continue;
                }
                plan.push(instance, Action::Drain { idle_ms, force: false }, reason);
            } else {
                plan.push(instance, Action::Disarm, reason);
            }
            short -= held;
            self.held -= held;
            self.taken.push(instance.id);
            self.making += 1;
        }
    }
}

/// Brings to their resting rungs those for which there is room, higher priority first; of those that are woken ahead of
/// demand as many as may start beside the others.
fn warm(
    mut rests: Vec<(&Instance, &Service, Action, Reason)>,
    room: &mut Room<'_>,
    mut starts: usize,
    plan: &mut Plan,
) {
    rests.sort_by_key(|(_, service, ..)| Reverse(service.spec.priority));
    for (instance, service, action, reason) in rests {
        let foreseen = matches!(reason, Reason::Foreseen { .. });
        let wakes = matches!(action, Action::Restore { .. } | Action::Arm { .. } | Action::Pause) && foreseen;
        if wakes && starts == 0 {
            continue;
        }
        let before = Held::by(instance, service.spec.resources);
        let warmer = Held::running(service.spec.resources);
        let after = room.held + warmer - before;
        // Fetched for nobody yet, it has to have a place, and room for what it is fetched for.
        let bytes = instance.stored.as_ref().map_or(0, |version| version.stored_bytes);
        let cached = room.held.cached_bytes.saturating_add(bytes);
        let cacheable = room.fleet.limits.cache_bytes().is_none_or(|most| cached <= most);
        let fits = match (matches!(action, Action::Fetch), foreseen) {
            (true, false) => true,
            (true, true) => cacheable && after.fits(&room.fleet.limits),
            (false, _) => after.fits(&room.fleet.limits),
        };
        if fits {
            starts -= usize::from(wakes);
            room.held = after;
            plan.push(instance, action, reason);
        }
    }
}

/// Takes from the local disk what the object store has too, as long as the cache is over its limit: lowest priority
/// first, then what was asked for longest ago.
fn evict(fleet: &Fleet, now: Timestamp, plan: &mut Plan) {
    let Some(limit_bytes) = fleet.limits.cache_bytes() else { return };
    let mut over = fleet.held().beyond(&fleet.limits).cached_bytes;
    if over == 0 {
        return;
    }
    let cached_bytes = fleet.held().cached_bytes;
    // Nothing of what this plan begins with is taken from under it.
    let begun = plan.decisions.iter().filter(|decision| !matches!(decision.action, Action::Wait { .. }));
    let busy: BTreeSet<InstanceId> = begun.map(|decision| decision.instance).collect();
    let mut candidates: Vec<_> = fleet
        .holders()
        .filter(|(instance, service, held)| {
            held.cached_bytes > 0
                && instance.phase == Phase::Hibernated
                && !instance.in_flight
                && instance.publishing.is_none()
                && instance.stored_is_current
                && foreseen(instance, service, now).map_or(service.spec.policy.rest, |best| best.rung)
                    <= Rung::Local
                && service.demand.is_none()
                && !busy.contains(&instance.id)
        })
        .collect();
    candidates
        .sort_by_key(|(instance, service, _)| (service.spec.priority, instance.last_activity, instance.id));
    for (instance, _, held) in candidates {
        if over == 0 {
            break;
        }
        over = over.saturating_sub(held.cached_bytes);
        plan.push(instance, Action::Evict, Reason::CacheFull { cached_bytes, limit_bytes });
    }
}
