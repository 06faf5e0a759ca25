//! What the risk of a service rests on, put together: what is foreseen, what is seen of it, and its journal.

use reveille_api::types::{AnomalyReport, RiskReport};
use reveille_core::decide::{Action, Reason};
use reveille_core::forecast::risk::{Inputs, Past, risk};
use reveille_core::health::{Health, HealthReason};
use reveille_core::model::{DomainName, InstanceId, Timestamp, VmState, WakeOutcome};
use reveille_store::{ReadError, Sequenced, Store, StoredDecision, StoredHealth};

use super::commands::Shown;
use crate::anomalies::noted_of;
use crate::forecasts::Recorded;

/// Wakes, decisions and verdicts of the past that are looked at, of each.
const PAST_MAX: usize = 100;
/// An anomaly that had its last minute so long ago is over, in ms.
const UNDER_WAY_MS: u64 = 5 * 60_000;

/// The newest anomalies of a service, newest first. None if the history cannot be read: what else is known is told all the same.
pub fn anomalies(recorded: &Recorded, service: &DomainName, limit: usize) -> Vec<AnomalyReport> {
    match recorded.history.anomalies(service.to_string().as_bytes(), limit) {
        Ok(stored) => {
            let noted = stored.iter().filter_map(noted_of);
            noted.map(|noted| AnomalyReport::of(&noted.event, noted.judgement.as_ref())).collect()
        }
        Err(error) => {
            tracing::warn!(%service, %error, "its anomalies cannot be read");
            Vec::new()
        }
    }
}

/// The risk of a service at `now`, with its last anomaly and what counts as one.
///
/// # Errors
/// If the journal cannot be read.
pub fn of(
    store: &Store,
    shown: &Shown,
    (last, threshold_sd): (Option<&AnomalyReport>, f64),
    now: Timestamp,
) -> Result<RiskReport, ReadError> {
    let summary = &shown.detail.summary;
    // What was given up sleeps, and nobody probes it; its next client finds it failing all the same.
    let given_up = summary.failure.as_ref().is_some_and(|failure| failure.gave_up);
    let health = if given_up { Health::Down } else { summary.health };
    let under_way = last.filter(|anomaly| now.ms_since(anomaly.until.0) < UNDER_WAY_MS);
    let inputs = Inputs {
        arrivals: shown.expected,
        in_use: summary.open_connections > 0,
        runs: summary.state == VmState::Active,
        health,
        past: past(store, shown, now)?,
        deviation_sd: under_way.map(|anomaly| anomaly.deviation_sd),
        threshold_sd,
    };
    Ok(RiskReport::of(&risk(&inputs)))
}

/// What the journal has of wakes, losses and running time.
fn past(store: &Store, shown: &Shown, now: Timestamp) -> Result<Past, ReadError> {
    let (service, instance) = (&shown.detail.summary.name, shown.detail.instance);
    let wakes = store.wakes(service, None, PAST_MAX)?;
    let ended = wakes.iter().filter_map(|stored| stored.entry.outcome.as_ref());
    let failed = ended.clone().filter(|outcome| matches!(outcome, WakeOutcome::Failed { .. })).count();
    let decisions = store.decisions(service, None, PAST_MAX)?;
    // After a failed start there was at least one attempt; without one it was lost while it ran.
    let losses = decisions
        .iter()
        .filter(|stored| matches!(stored.entry.decision.reason, Reason::Retry { attempts: 0, .. }))
        .count();
    let verdicts = store.health(service, None, PAST_MAX)?;
    let turns = turns(instance, &decisions, &verdicts);
    let since = decisions.last().map_or(now, |oldest| oldest.entry.at);
    let now_runs = shown.detail.running_since.map(|since| since.0);
    let hours = ran_ms(&turns, since, now_runs, now) as f64 / 3_600_000.0;
    Ok(Past { wakes: ended.count() as u64, failed: failed as u64, losses: losses as u64, hours })
}

/// When the instance began to run, and when it did so no more, the oldest first.
fn turns(
    instance: InstanceId,
    decisions: &[Sequenced<StoredDecision>],
    verdicts: &[Sequenced<StoredHealth>],
) -> Vec<(Timestamp, Turn)> {
    let decided = decisions.iter().map(|stored| &stored.entry).filter_map(|stored| {
        let turn = Turn::of(&stored.decision.action).filter(|_| stored.decision.instance == instance);
        turn.map(|turn| (stored.at, turn))
    });
    let lost = verdicts
        .iter()
        .map(|stored| &stored.entry)
        .filter(|stored| stored.instance == instance && matches!(stored.reason, HealthReason::Lost { .. }));
    let mut turns: Vec<(Timestamp, Turn)> =
        decided.chain(lost.map(|stored| (stored.at, Turn::Ends))).collect();
    // What ended a run goes before what began the next one in the same millisecond.
    turns.sort_unstable();
    turns
}

/// What an action makes of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// It runs no more.
    Ends,
    /// It runs from now on.
    Runs,
}

impl Turn {
    const fn of(action: &Action) -> Option<Self> {
        match action {
            Action::Boot | Action::Restore { .. } | Action::AbandonCapture => Some(Self::Runs),
            Action::Capture | Action::GiveUpStart { .. } | Action::Kill { .. } => Some(Self::Ends),
            Action::Arm { .. }
            | Action::Pause
            | Action::Disarm
            | Action::Fetch
            | Action::Evict
            | Action::RollBack { .. }
            | Action::Publish { .. }
            | Action::Checkpoint { .. }
            | Action::Drain { .. }
            | Action::Undrain
            | Action::Replicate { .. }
            | Action::Wait { .. } => None,
        }
    }
}

/// For how many milliseconds it ran from `since` to `now`. Of a run whose end nobody noted it counts nothing, unless it is
/// the one that goes on.
fn ran_ms(
    turns: &[(Timestamp, Turn)],
    since: Timestamp,
    runs_since: Option<Timestamp>,
    now: Timestamp,
) -> u64 {
    // The first thing that is known of it may be the end of what began before.
    let began_before = matches!(turns.first(), Some((_, Turn::Ends))).then_some(since);
    let (mut ran_ms, mut began) = (0, began_before);
    for (at, turn) in turns {
        match turn {
            Turn::Runs => began = Some(*at),
            Turn::Ends => ran_ms += began.take().map_or(0, |began| at.ms_since(began)),
        }
    }
    ran_ms + runs_since.map_or(0, |began| now.ms_since(began.max(since)))
}

#[cfg(test)]
mod tests {
    use reveille_core::decide::Decision;
    use reveille_core::forecast::risk::What;
    use reveille_core::health::Judged;
    use reveille_core::model::{Cause, Instance, Phase, Remains, Rung, Service, ServiceSpec, Trigger};
    use reveille_store::Change;

    use super::*;

    const HOUR: u64 = 3_600_000;
    /// After so many hours it is now.
    const NOW: u64 = 200;

    fn hour(hours: u64) -> Timestamp {
        Timestamp::from_ms(1_795_305_600_000 + hours * HOUR)
    }

    fn spec() -> ServiceSpec {
        let value = serde_json::json!({"name": "a.vm.test", "image": "i", "ports": ["tcp/80"]});
        serde_json::from_value(value).unwrap()
    }

    /// What is shown of a service whose guest has run for an hour, with this verdict of its probes.
    fn shown(verdict: Health) -> Shown {
        let (spec, id) = (spec(), InstanceId(1));
        let service = Service::new(spec.clone(), [127, 64, 0, 1].into(), hour(0), id);
        let mut instance = Instance::new(id, spec.name, hour(0));
        (instance.phase, instance.running_since) = (Phase::Active, Some(hour(NOW - 1)));
        let judged = Judged { health: verdict, since: hour(NOW - 1), reason: HealthReason::NotProbed };
        instance.judged = Some(Box::new((instance.start, judged)));
        Shown {
            detail: reveille_api::types::ServiceDetail::of(
                &service,
                &instance,
                reveille_api::types::Clients::default(),
            ),
            expected: Some(1.0),
            wake: None,
            busy: false,
            sleep_asked: false,
            sleep_failure: None,
            roll_back_failure: None,
            former: None,
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().0;
        (dir, store)
    }

    fn part(report: &RiskReport, what: What) -> (f64, String) {
        let part = report.parts.iter().find(|part| part.what == what).unwrap();
        (part.probability, part.why.clone())
    }

    #[test]
    fn a_service_that_hangs_fails_its_next_client() {
        let (_dir, store) = store();
        let health = |verdict| {
            let report = of(&store, &shown(verdict), (None, 3.0), hour(NOW)).unwrap();
            (part(&report, What::Health), report.score)
        };
        let ((up, _), score) = health(Health::Up);
        assert!(up == 0.0 && score < 0.1, "{score}");
        let ((down, why), score) = health(Health::Down);
        assert!(down == 1.0 && score > 0.6, "{score}");
        assert_eq!(why, "it is down, or cannot be started");
        assert_eq!(health(Health::Unknown).0.0, 0.0);
    }

    #[tokio::test]
    async fn losses_are_counted_by_the_hours_that_it_ran() {
        let (_dir, store) = store();
        let (instance, other) = (InstanceId(1), InstanceId(2));
        let trigger = || Trigger::Operator;
        let asked = || Reason::Asked { trigger: trigger(), asks: 1 };
        let lost =
            || Reason::Retry { trigger: trigger(), attempts: 0, cause: Cause::VmmHung { waited_ms: 1 } };
        let restore = || Action::Restore { from: Rung::Local, keep: false };
        let decisions = [
            // What began before the journal did.
            (0, instance, Action::Publish { number: 1 }, asked()),
            (2, instance, Action::Capture, asked()),
            (10, instance, restore(), asked()),
            (11, other, Action::Kill { remains: Remains::default() }, asked()),
            (15, instance, Action::Capture, asked()),
            // It was lost at 103, and started again when somebody came.
            (100, instance, restore(), asked()),
            (199, instance, Action::Boot, lost()),
        ];
        let mut rows: Vec<Change> = decisions
            .into_iter()
            .map(|(at, instance, action, reason)| {
                let decision = Decision { service: spec().name, instance, action, reason };
                Change::AddDecision(Box::new(StoredDecision { at: hour(at), decision }))
            })
            .collect();
        rows.push(Change::AddHealth(Box::new(StoredHealth {
            at: hour(103),
            service: spec().name,
            instance,
            health: Health::Down,
            reason: HealthReason::Lost { cause: "its process ended".to_owned() },
        })));
        store.write(rows).await.unwrap();
        let report = of(&store, &shown(Health::Up), (None, 3.0), hour(NOW)).unwrap();
        let (probability, why) = part(&report, What::Failure);
        // 2 + 5 + 3 + 1, not the 200 since the oldest decision.
        assert_eq!(why, "it was lost 1 times in 11.0 h that it ran");
        assert!((probability - (1.0 - (-1.5_f64 / 12.0).exp())).abs() < 1e-9, "{probability}");
    }
}
