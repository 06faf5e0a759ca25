//! How much of a replicable service will be in use: what the history of the last fortnight says of the next hour.

use std::collections::BTreeMap;

use reveille_core::forecast::volume::{Chosen, Fault, Forecaster as _, Series, choose};
use reveille_core::model::load::Foreseen;
use reveille_core::model::{DomainName, Timestamp};
use reveille_store::history::{Answer, Kind, Query, QueryError, Reader};

/// Length of a step. What happens within one is seen to by live demand.
const STEP_S: u64 = 300;
/// As far back as minutes are kept by default: each weekday twice.
const BACK_S: u64 = 14 * 86_400;
/// Steps ahead: an hour.
const STEPS: usize = 12;
/// The quantile that instances are kept for; more than that is left to live demand.
const LEVEL: f64 = 0.9;
/// So much before a step begins its instances are wanted: they boot meanwhile.
const LEAD_MS: u64 = 60_000;
/// After so long models are chosen anew; a choice costs some ten milliseconds, a forecast a hundredth of that.
const CHOSEN_FOR_S: u64 = 6 * 3_600;
/// Services whose models are kept; of more, live demand alone decides.
const SERVICES_MAX: usize = 1_024;
/// Forecasts that are made in one second, so that arrivals do not wait long.
const AT_ONCE_MAX: usize = 4;
/// A service that was not in use for so long is not forecast any more.
const FORGOTTEN_S: u64 = 3_600;

/// Services that may have several instances and were in use of late.
#[derive(Default)]
pub struct Ahead {
    services: BTreeMap<DomainName, Known>,
}

struct Known {
    /// When it was last in use, in seconds since the Unix epoch.
    used_s: u64,
    /// The step of which it was last forecast.
    step: Option<u64>,
    chosen: Option<(u64, Chosen)>,
}

impl Ahead {
    /// The service was in use.
    pub fn used(&mut self, service: &DomainName, now_s: u64) {
        if let Some(known) = self.services.get_mut(service) {
            known.used_s = now_s;
        } else if self.services.len() < SERVICES_MAX {
            self.services.insert(service.clone(), Known { used_s: now_s, step: None, chosen: None });
        }
    }

    /// The service is gone.
    pub fn forget(&mut self, service: &DomainName) {
        self.services.remove(service);
    }

    /// What is foreseen for the services whose step is over, a few at a time.
    pub fn due(&mut self, reader: &Reader, now_s: u64) -> Vec<(DomainName, Vec<Foreseen>)> {
        self.services.retain(|_, known| known.used_s.saturating_add(FORGOTTEN_S) > now_s);
        let step = now_s / STEP_S;
        let due = self.services.iter_mut().filter(|(_, known)| known.step != Some(step)).take(AT_ONCE_MAX);
        due.filter_map(|(service, known)| {
            known.step = Some(step);
            match known.forecast(reader, service, now_s) {
                Ok(foreseen) => Some((service.clone(), foreseen)),
                Err(NoForecast::Query(error)) => {
                    tracing::warn!(%service, %error, "its history cannot be read; live demand decides alone");
                    None
                }
                // It is young, or quiet.
                Err(NoForecast::Model(fault)) => {
                    tracing::debug!(%service, %fault, "no forecast of its use");
                    None
                }
            }
        })
        .collect()
    }
}

/// Why there is no forecast.
#[derive(Debug)]
enum NoForecast {
    Query(QueryError),
    Model(Fault),
}

impl Known {
    fn forecast(
        &mut self,
        reader: &Reader,
        service: &DomainName,
        now_s: u64,
    ) -> Result<Vec<Foreseen>, NoForecast> {
        let to_s = now_s - now_s % STEP_S;
        let name = service.to_string();
        let query = Query {
            name: name.as_bytes(),
            kind: Kind::ExecutionMs,
            from_s: to_s.saturating_sub(BACK_S),
            to_s,
            step_s: STEP_S,
        };
        let answer = reader.query(&query).map_err(NoForecast::Query)?;
        self.foresee(&answer, now_s).map_err(NoForecast::Model)
    }

    /// What its past, up to the step that `now_s` is in, says of the steps from there on.
    fn foresee(&mut self, past: &Answer, now_s: u64) -> Result<Vec<Foreseen>, Fault> {
        let series = series(past)?;
        if self.chosen.as_ref().is_none_or(|(at_s, _)| at_s.saturating_add(CHOSEN_FOR_S) <= now_s) {
            self.chosen = Some((now_s, choose(&series, STEPS)?));
        }
        let Some((_, chosen)) = &self.chosen else { return Ok(Vec::new()) };
        let quantiles = chosen.forecast(&series, STEPS, &[LEVEL])?;
        let first_s = now_s - now_s % STEP_S;
        let begins = (0..).map(|step: u64| first_s.saturating_add(step * STEP_S).saturating_mul(1_000));
        let spans = begins.zip(quantiles.path(0)).map(|(begin_ms, in_use)| Foreseen {
            from: Timestamp::from_ms(begin_ms.saturating_sub(LEAD_MS)),
            until: Timestamp::from_ms(begin_ms.saturating_add(STEP_S * 1_000)),
            in_use: *in_use,
        });
        Ok(spans.collect())
    }
}

/// Mean of what was in use in each step; what was not watched is missing.
fn series(answer: &Answer) -> Result<Series, Fault> {
    let values = answer.buckets.iter().map(|bucket| bucket.mean_per_s().map_or(f64::NAN, |ms| ms / 1_000.0));
    let values: Vec<f64> = values.skip_while(|value| value.is_nan()).collect();
    let skipped = answer.buckets.len() - values.len();
    let step_s = i64::try_from(answer.step_s).unwrap_or(i64::MAX);
    let first_s = i64::try_from(answer.from_s).unwrap_or(i64::MAX);
    let skipped = i64::try_from(skipped).unwrap_or(i64::MAX);
    Series::new(first_s.saturating_add(step_s.saturating_mul(skipped)), step_s, values)
}

#[cfg(test)]
mod tests {
    use reveille_store::history::{Bucket, Resolution};

    use super::*;

    const DAY_S: u64 = 86_400;
    const FIRST_S: u64 = 20_000 * DAY_S;

    fn known() -> Known {
        Known { used_s: 0, step: None, chosen: None }
    }

    /// What `in_use` says of each step since midnight, for ten days up to this second of the eleventh. Nobody watched for
    /// the first four days.
    fn past(second: u64, in_use: impl Fn(u64) -> u64) -> (Answer, u64) {
        let now_s = FIRST_S + 10 * DAY_S + second;
        let steps = (now_s - FIRST_S) / STEP_S;
        let bucket = |step: u64| {
            let seen_s = if step * STEP_S < 4 * DAY_S { 0 } else { STEP_S };
            // Give or take a tenth.
            let wobble = 90 + step * 7 % 21;
            Bucket { sum: in_use(step % (DAY_S / STEP_S)) * seen_s * 10 * wobble, max: 0, seen_s }
        };
        let buckets = (0..steps).map(bucket).collect();
        let resolution = Resolution::Minute;
        (Answer { from_s: FIRST_S, step_s: STEP_S, resolution, buckets, damaged: Vec::new() }, now_s)
    }

    /// Used by 40 from eight to nine each morning, and by 2 otherwise.
    fn morning(step: u64) -> u64 {
        if step * STEP_S / 3_600 == 8 { 40 } else { 2 }
    }

    #[test]
    fn the_crowd_of_each_morning_is_foreseen_before_it_comes_and_no_longer_than_it_stays() {
        let (past, now_s) = past(7 * 3_600 + 1_800 + 20, morning);
        let foreseen = known().foresee(&past, now_s).unwrap();
        assert_eq!(foreseen.len(), STEPS);
        let (before, crowd) = foreseen.split_at(6);
        assert!(before.iter().all(|span| span.in_use < 10.0), "{before:?}");
        assert!(crowd.iter().all(|span| (36.0..60.0).contains(&span.in_use)), "{crowd:?}");
        let eight_ms = (FIRST_S + 10 * DAY_S + 8 * 3_600) * 1_000;
        assert_eq!(crowd[0].from, Timestamp::from_ms(eight_ms - LEAD_MS), "so that they are there by then");
        assert_eq!(crowd[0].until, Timestamp::from_ms(eight_ms + STEP_S * 1_000));
    }

    #[test]
    fn who_is_young_or_unseen_has_no_forecast() {
        let (mut young, now_s) = past(0, morning);
        young.buckets.iter_mut().rev().skip(3).for_each(|bucket| *bucket = Bucket::default());
        assert!(known().foresee(&young, now_s).is_err());
        young.buckets.clear();
        assert!(known().foresee(&young, now_s).is_err());
    }

    #[test]
    fn services_are_forecast_once_a_step_a_few_at_a_time_and_forgotten_when_they_are_quiet() {
        let dir = tempfile::tempdir().unwrap();
        let (history, _) =
            reveille_store::history::History::open(dir.path(), reveille_store::history::Limits::default())
                .unwrap();
        let (mut ahead, now_s) = (Ahead::default(), FIRST_S);
        for n in 0..AT_ONCE_MAX + 1 {
            ahead.used(&format!("s{n}.vm.test").parse().unwrap(), now_s);
        }
        let open = |ahead: &Ahead| ahead.services.values().filter(|known| known.step.is_none()).count();
        // None of them has a history.
        assert!(ahead.due(&history.reader(), now_s).is_empty());
        assert_eq!(open(&ahead), 1);
        ahead.due(&history.reader(), now_s + 1);
        assert_eq!(open(&ahead), 0);
        ahead.due(&history.reader(), now_s + FORGOTTEN_S);
        assert!(ahead.services.is_empty());
    }
}
