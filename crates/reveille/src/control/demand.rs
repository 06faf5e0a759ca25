//! What is recorded of demand, as the API shows it.

use std::collections::BTreeSet;

use reveille_api::Time;
use reveille_api::types::{DemandRange, DemandReport, DemandStep, ServiceDemand};
use reveille_core::model::{DomainName, Timestamp};
use reveille_dns::observe::Correction;
use reveille_store::history::{Answer, Bucket, Kind, Query, QueryError};

use crate::forecasts::Recorded;
use crate::room::arrivals;

/// Everything in short.
pub fn report(recorded: &Recorded) -> DemandReport {
    let history = recorded.history.status();
    let counts = [
        ("taken", history.points),
        ("dropped", history.dropped_points),
        ("late", history.refused_late),
        ("early", history.refused_early),
        ("damaged", history.damaged),
        ("failed", history.write_faults),
    ];
    DemandReport {
        requests: recorded.logs.counted(),
        arrivals_dropped: recorded.arrivals_dropped(),
        services_watched: recorded.watching.watched(),
        services_unwatched: recorded.watching.unwatched(),
        history: counts.into_iter().map(|(word, count)| (word.to_owned(), count)).collect(),
        history_bytes: history.disk_bytes + history.names_bytes,
        records: recorded.logs.records_counted(),
        profiles: recorded.logs.in_short(),
    }
}

/// What was asked of a service, up to the end of the step in which `now` is.
///
/// # Errors
/// If the history cannot be read.
pub fn of_service(
    recorded: &Recorded,
    service: DomainName,
    asked: DemandRange,
    correction: Option<Correction>,
    now: Timestamp,
) -> Result<ServiceDemand, QueryError> {
    let (name, now_s) = (service.to_string(), now.as_ms() / 1_000);
    let look = |kind| -> Result<Answer, QueryError> {
        recorded.history.query(&Query {
            name: name.as_bytes(),
            kind,
            from_s: (now_s + 1).saturating_sub(asked.hours * 3_600),
            to_s: now_s + 1,
            step_s: asked.step_s,
        })
    };
    let (queries, clients) = (look(Kind::Queries)?, look(Kind::Arrivals)?);
    let (demand, kept_out) = (look(Kind::DemandMilli)?, look(Kind::Refused)?);
    let execution = look(Kind::ExecutionMs)?;
    let (requests, request_ms) = (look(Kind::Requests)?, look(Kind::RequestMs)?);
    let at =
        |answer: &Answer, place: usize| -> Bucket { answer.buckets.get(place).copied().unwrap_or_default() };
    let steps = (0..queries.buckets.len()).map(|place| DemandStep {
        queries: at(&queries, place).sum,
        kept_out: at(&kept_out, place).sum,
        demand: at(&demand, place).sum as f64 / 1e3,
        arrivals: at(&clients, place).sum,
        execution_ms: at(&execution, place).sum,
        requests: at(&requests, place).sum,
        request_ms: at(&request_ms, place).sum,
        watched_s: at(&queries, place).seen_s,
    });
    Ok(ServiceDemand {
        service,
        from: Time(Timestamp::from_ms(queries.from_s * 1_000)),
        step_s: queries.step_s,
        steps: steps.collect(),
        per_thousand_queries: correction.map(|known| arrivals::of(&known, (1_000, 1_000))),
        damaged: damaged([&queries, &demand, &kept_out, &clients, &execution, &requests, &request_ms]),
    })
}

/// What could not be read of any of them, each once.
fn damaged<const N: usize>(answers: [&Answer; N]) -> Vec<String> {
    let damaged: BTreeSet<String> =
        answers.into_iter().flat_map(|answer| &answer.damaged).map(ToString::to_string).collect();
    damaged.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use reveille_store::history::{Damage, Resolution};

    use super::*;

    #[test]
    fn what_could_not_be_read_of_any_kind_is_told_once() {
        let answer = |details: &[&str]| Answer {
            from_s: 0,
            step_s: 60,
            resolution: Resolution::Second,
            buckets: Vec::new(),
            damaged: details
                .iter()
                .map(|detail| Damage {
                    file: "segment".into(),
                    name: None,
                    from_s: 0,
                    to_s: 60,
                    detail: (*detail).to_owned(),
                })
                .collect(),
        };
        for place in 0..5 {
            let mut answers = [(); 5].map(|()| answer(&["everywhere"]));
            answers[place] = answer(&["everywhere", "here"]);
            assert_eq!(damaged(answers.each_ref()).len(), 2, "{place}");
        }
    }
}
