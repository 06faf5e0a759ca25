//! What the risk of a service rests on, put together: what is foreseen, what is seen of it, and its journal.

use reveille_api::types::{AnomalyReport, RiskReport};
use reveille_core::decide::Reason;
use reveille_core::forecast::risk::{Health, Inputs, Past, risk};
use reveille_core::model::{DomainName, Phase, Timestamp, VmState, WakeOutcome};
use reveille_store::{ReadError, Store};

use super::commands::Shown;
use crate::anomalies::noted_of;
use crate::forecasts::Recorded;

/// Wakes and decisions of the past that are looked at.
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
    let health = match &summary.failure {
        Some(failure) if failure.gave_up || summary.phase == Phase::Failed => Health::Down,
        _ if summary.state == VmState::Warming => Health::Unknown,
        Some(_) | None => Health::Up,
    };
    let under_way = last.filter(|anomaly| now.ms_since(anomaly.until.0) < UNDER_WAY_MS);
    let inputs = Inputs {
        arrivals: shown.expected,
        in_use: summary.open_connections > 0,
        runs: summary.state == VmState::Active,
        health,
        past: past(store, &summary.name, now)?,
        deviation_sd: under_way.map(|anomaly| anomaly.deviation_sd),
        threshold_sd,
    };
    Ok(RiskReport::of(&risk(&inputs)))
}

/// What the journal has of wakes and losses.
fn past(store: &Store, service: &DomainName, now: Timestamp) -> Result<Past, ReadError> {
    let wakes = store.wakes(service, None, PAST_MAX)?;
    let ended = wakes.iter().filter_map(|stored| stored.entry.outcome.as_ref());
    let failed = ended.clone().filter(|outcome| matches!(outcome, WakeOutcome::Failed { .. })).count();
    let decisions = store.decisions(service, None, PAST_MAX)?;
    // After a failed start there was at least one attempt; without one it was lost while it ran.
    let losses = decisions
        .iter()
        .filter(|stored| matches!(stored.entry.decision.reason, Reason::Retry { attempts: 0, .. }))
        .count();
    let hours = decisions.last().map_or(0.0, |oldest| now.ms_since(oldest.entry.at) as f64 / 3_600_000.0);
    Ok(Past { wakes: ended.count() as u64, failed: failed as u64, losses: losses as u64, hours })
}
