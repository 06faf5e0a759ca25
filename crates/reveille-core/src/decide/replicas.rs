//! How many instances of a replicable service there are: one more while it takes more, one less when it takes fewer.
//!
//! A replica has nothing of its own. It comes as a cold boot, takes clients beside the primary, and when it is not needed
//! any more it takes no new ones, waits until those that it has are gone, and ends. The primary is the last to sleep.

use super::{Action, Choice, Reason, watch_start};
use crate::model::load::Wanted;
use crate::model::{Fleet, ForecastMode, Instance, Phase, Remains, Role, Service, SleepAsked, Timestamp};

/// One more instance, if it takes one.
pub(super) fn grow(primary: &Instance, service: &Service) -> Option<(Action, Reason)> {
    let wanted = service.wanted();
    let instances = u32::try_from(service.replicas.len()).unwrap_or(u32::MAX).saturating_add(1);
    let policy = &service.spec.policy;
    let foreseen = wanted.foreseen.min(policy.instances_max);
    if policy.forecast == ForecastMode::Only && foreseen > instances.max(wanted.instances) && primary.serves()
    {
        let Wanted { stable, target, of_group_percent, .. } = wanted;
        let reason = Reason::WouldReplicate { foreseen, of_group_percent, stable, target };
        return Some((Action::Wait { until: None }, reason));
    }
    let grows =
        primary.serves() && is_kept(primary, service) && service.may_scale() && instances < wanted.instances;
    grows.then(|| (Action::Replicate { instances: instances + 1 }, wanted.into()))
}

/// What a replica wants.
pub(super) fn choose(fleet: &Fleet, replica: &Instance, service: &Service, now: Timestamp) -> Choice {
    let primary = fleet.instance(service.primary);
    let kept = primary.is_some_and(|primary| is_kept(primary, service));
    let place = service.replicas.iter().position(|id| *id == replica.id).unwrap_or(usize::MAX);
    let wanted = service.wanted();
    // The primary is the first.
    let needed = kept && place.saturating_add(2) <= usize::try_from(wanted.instances).unwrap_or(usize::MAX);
    let end = |reason| Choice::Do(Action::Kill { remains: Remains::Nothing }, reason);
    if replica.in_flight {
        return Choice::Nothing;
    }
    if replica.retiring {
        return end(Reason::Leftover);
    }
    if !kept && primary.is_none_or(|primary| is_cut(primary, service)) {
        return end(Reason::Removed);
    }
    match replica.phase {
        Phase::Off if needed => Choice::Start(wanted.into()),
        Phase::Booting | Phase::Restoring | Phase::Warming => watch_start(replica, service, now),
        Phase::Active if needed => Choice::Nothing,
        Phase::Active => Choice::Do(Action::Drain { idle_ms: 0, force: false }, wanted.into()),
        Phase::Draining if needed => Choice::Do(Action::Undrain, wanted.into()),
        // Somebody may have been led there between the last count and the drain.
        Phase::Draining if replica.open_connections > 0 || replica.is_uncounted => Choice::Nothing,
        Phase::Failed => {
            // Another one takes its place then.
            let until = replica.phase_since.plus_ms(service.spec.policy.cooloff_ms);
            if now < until && kept { Choice::LookAt(until) } else { end(Reason::Leftover) }
        }
        Phase::Off | Phase::Draining | Phase::Hibernating | Phase::Hibernated => end(wanted.into()),
    }
}

/// Whether the primary has to be started since its replicas serve without it.
pub(super) fn replace_primary(fleet: &Fleet, primary: &Instance, service: &Service) -> bool {
    primary.role == Role::Primary
        && matches!(primary.phase, Phase::Off | Phase::Hibernated | Phase::Failed)
        && !primary.unfenced
        && primary.rolling_back.is_none()
        && service.demand.is_none()
        && is_kept(primary, service)
        && fleet.has_serving_replica(&service.spec.name)
}

/// Whether nobody wants the service ended or asleep.
fn is_kept(primary: &Instance, service: &Service) -> bool {
    service.foreign.is_none() && !primary.retiring && primary.sleep_asked.is_none()
}

/// Whether open connections are not waited for.
fn is_cut(primary: &Instance, service: &Service) -> bool {
    service.foreign.is_some()
        || primary.retiring
        || matches!(primary.sleep_asked, Some(SleepAsked::Force | SleepAsked::Terminate))
}
