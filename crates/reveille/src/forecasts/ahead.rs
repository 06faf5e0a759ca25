//! How much of a replicable service will be in use: what the history of the last fortnight says of the next hour, and while
//! that is short, what services of its group do.

use std::collections::BTreeMap;

use reveille_core::forecast::volume::{Chosen, Fault, Forecaster as _, Group, Quantiles, Series, choose};
use reveille_core::model::load::Foreseen;
use reveille_core::model::{DomainName, Timestamp};
use reveille_forecast::heavy::Worker;
use reveille_store::history::{Answer, Kind, Query, QueryError, Reader};

use super::groups::Groups;

/// Length of a step. What happens within one is seen to by live demand.
pub(super) const STEP_S: u64 = 300;
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
/// Points of history from which on heavy models compete: four days.
const HEAVY_POINTS_MIN: usize = 1_152;
/// A service that was not in use for so long is not forecast any more.
const FORGOTTEN_S: u64 = 3_600;

/// Services that may have several instances and were in use of late.
#[derive(Default)]
pub struct Ahead {
    services: BTreeMap<DomainName, Known>,
    heavy: Option<Worker<DomainName>>,
}

struct Known {
    image: String,
    /// When it was last in use, in seconds since the Unix epoch.
    used_s: u64,
    /// The step of which it was last forecast.
    step: Option<u64>,
    chosen: Option<Choice>,
}

/// Models that were chosen.
struct Choice {
    at_s: u64,
    chosen: Chosen,
    /// Whether heavy models had competed.
    heavy: bool,
}

impl Ahead {
    /// With this worker for heavy models.
    pub fn with(heavy: Option<Worker<DomainName>>) -> Self {
        Self { heavy, ..Self::default() }
    }

    /// The service was in use.
    pub fn used(&mut self, service: &DomainName, image: &str, now_s: u64) {
        if let Some(known) = self.services.get_mut(service) {
            known.used_s = now_s;
            if known.image != image {
                image.clone_into(&mut known.image);
            }
        } else if self.services.len() < SERVICES_MAX {
            let image = image.to_owned();
            self.services.insert(service.clone(), Known { image, used_s: now_s, step: None, chosen: None });
        }
    }

    /// The service is gone.
    pub fn forget(&mut self, service: &DomainName) {
        self.services.remove(service);
    }

    /// What is foreseen for the services whose step is over, a few at a time.
    pub fn due(&mut self, reader: &Reader, groups: &Groups, now_s: u64) -> Vec<(DomainName, Vec<Foreseen>)> {
        self.services.retain(|_, known| known.used_s.saturating_add(FORGOTTEN_S) > now_s);
        for (service, chosen) in self.heavy.iter().flat_map(Worker::take) {
            if let Some(known) = self.services.get_mut(&service) {
                known.chosen = Some(Choice { at_s: now_s, chosen, heavy: true });
            }
        }
        let step = now_s / STEP_S;
        let heavy = self.heavy.as_ref();
        let due = self.services.iter_mut().filter(|(_, known)| known.step != Some(step)).take(AT_ONCE_MAX);
        due.filter_map(|(service, known)| {
            known.step = Some(step);
            match known.forecast(reader, groups, heavy, service, now_s) {
                Ok(foreseen) => Some((service.clone(), foreseen)),
                Err(NoForecast::Query(error)) => {
                    tracing::warn!(%service, %error, "its history cannot be read; live demand decides alone");
                    None
                }
                // It is young, or quiet, and nothing is known of its group.
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
        groups: &Groups,
        heavy: Option<&Worker<DomainName>>,
        service: &DomainName,
        now_s: u64,
    ) -> Result<Vec<Foreseen>, NoForecast> {
        let past = past(reader, service, now_s).map_err(NoForecast::Query)?;
        if let (Some(heavy), Ok(past)) = (heavy, &past)
            && self.is_outdated(now_s)
            && past.values().len() >= HEAVY_POINTS_MIN
        {
            if !heavy.ask(service.clone(), past.clone(), STEPS) {
                tracing::debug!(%service, "heavy models have no turn for it; those that it has stay");
            }
            // What heavy models were chosen among before goes on until they are chosen anew.
            self.chosen.iter_mut().filter(|choice| choice.heavy).for_each(|choice| choice.at_s = now_s);
        }
        let group = groups.of(&self.image);
        past.and_then(|past| self.foresee(&past, group, now_s)).map_err(NoForecast::Model)
    }

    /// What its past, up to the step that `now_s` is in, says of the steps from there on, and its group where that is short.
    fn foresee(&mut self, past: &Series, group: Option<&Group>, now_s: u64) -> Result<Vec<Foreseen>, Fault> {
        let own = self.own(past, now_s);
        let (quantiles, of_group) = match (group, own) {
            (Some(group), own) => {
                let joined = group.join(past, STEPS, &[LEVEL], own.ok())?;
                (joined.quantiles, joined.of_group)
            }
            (None, own) => (own?, 0.0),
        };
        let first_s = now_s - now_s % STEP_S;
        let begins = (0..).map(|step: u64| first_s.saturating_add(step * STEP_S).saturating_mul(1_000));
        let spans = begins.zip(quantiles.path(0)).map(|(begin_ms, in_use)| Foreseen {
            from: Timestamp::from_ms(begin_ms.saturating_sub(LEAD_MS)),
            until: Timestamp::from_ms(begin_ms.saturating_add(STEP_S * 1_000)),
            in_use: *in_use,
            of_group_percent: percent(of_group),
        });
        Ok(spans.collect())
    }

    /// What models of its own say.
    fn own(&mut self, past: &Series, now_s: u64) -> Result<Quantiles, Fault> {
        if self.is_outdated(now_s) {
            self.chosen = Some(Choice { at_s: now_s, chosen: choose(past, STEPS)?, heavy: false });
        }
        let choice = self.chosen.as_ref().ok_or(Fault::NoModel)?;
        choice.chosen.forecast(past, STEPS, &[LEVEL])
    }

    /// Whether models are to be chosen anew.
    fn is_outdated(&self, now_s: u64) -> bool {
        self.chosen.as_ref().is_none_or(|choice| choice.at_s.saturating_add(CHOSEN_FOR_S) <= now_s)
    }
}

/// What was in use of a service in each step of the last fortnight, from the first in which it was to the one that `now_s` is
/// in.
pub(super) fn past(
    reader: &Reader,
    service: &DomainName,
    now_s: u64,
) -> Result<Result<Series, Fault>, QueryError> {
    let to_s = now_s - now_s % STEP_S;
    let name = service.to_string();
    let query = Query {
        name: name.as_bytes(),
        kind: Kind::ExecutionMs,
        from_s: to_s.saturating_sub(BACK_S),
        to_s,
        step_s: STEP_S,
    };
    Ok(series(&reader.query(&query)?))
}

/// Mean of what was in use in each step since it was in use first: until then it may not have been there. What was not watched
/// is missing.
fn series(answer: &Answer) -> Result<Series, Fault> {
    let values = answer.buckets.iter().map(|bucket| bucket.mean_per_s().map_or(f64::NAN, |ms| ms / 1_000.0));
    let values: Vec<f64> = values.skip_while(|value| value.is_nan() || *value == 0.0).collect();
    let skipped = answer.buckets.len() - values.len();
    let step_s = i64::try_from(answer.step_s).unwrap_or(i64::MAX);
    let first_s = i64::try_from(answer.from_s).unwrap_or(i64::MAX);
    let skipped = i64::try_from(skipped).unwrap_or(i64::MAX);
    Series::new(first_s.saturating_add(step_s.saturating_mul(skipped)), step_s, values)
}

/// A share in per cent; what is more than none is 1 at least.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0 to 100")]
fn percent(share: f64) -> u8 {
    (share.clamp(0.0, 1.0) * 100.0).ceil() as u8
}

#[cfg(test)]
mod tests {
    use reveille_store::history::{Bucket, Resolution};

    use super::*;

    const DAY_S: u64 = 86_400;
    const FIRST_S: u64 = 20_000 * DAY_S;

    fn known() -> Known {
        Known { image: "web".to_owned(), used_s: 0, step: None, chosen: None }
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
        let foreseen = known().foresee(&series(&past).unwrap(), None, now_s).unwrap();
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
        assert!(known().foresee(&series(&young).unwrap(), None, now_s).is_err());
        young.buckets.clear();
        assert!(known().foresee(&series(&young).unwrap(), None, now_s).is_err());
    }

    #[test]
    fn who_is_new_is_foreseen_as_its_group_is_until_its_own_history_says_more() {
        let members: Vec<Series> = [30, 40, 50]
            .map(|level| series(&past(7 * 3_600 + 1_800, |step| morning(step) * level / 40).0).unwrap())
            .to_vec();
        let group = Group::of(&members).unwrap();
        let (mut young, now_s) = past(7 * 3_600 + 1_800 + 20, |_| 0);
        young.buckets.clear();
        young.from_s = now_s - now_s % STEP_S;
        let new = known().foresee(&series(&young).unwrap(), Some(&group), now_s).unwrap();
        let (before, crowd) = new.split_at(6);
        assert!(before.iter().all(|span| span.in_use < 10.0), "{before:?}");
        assert!(crowd.iter().all(|span| (30.0..80.0).contains(&span.in_use)), "{crowd:?}");
        assert!(new.iter().all(|span| span.of_group_percent == 100));
        // Six days later it is known to be used by nobody in the morning.
        let (old, now_s) = past(7 * 3_600 + 1_800 + 20, |_| 2);
        let own = known().foresee(&series(&old).unwrap(), Some(&group), now_s).unwrap();
        assert!(own.iter().all(|span| span.of_group_percent < 30), "{own:?}");
        assert!(own[9].in_use < crowd[3].in_use / 2.0, "{own:?}");
    }

    #[test]
    fn services_are_forecast_once_a_step_a_few_at_a_time_and_forgotten_when_they_are_quiet() {
        let dir = tempfile::tempdir().unwrap();
        let (history, _) =
            reveille_store::history::History::open(dir.path(), reveille_store::history::Limits::default())
                .unwrap();
        let groups = Groups::open(dir.path()).unwrap();
        let (mut ahead, now_s) = (Ahead::default(), FIRST_S);
        for n in 0..AT_ONCE_MAX + 1 {
            ahead.used(&format!("s{n}.vm.test").parse().unwrap(), "web", now_s);
        }
        let open = |ahead: &Ahead| ahead.services.values().filter(|known| known.step.is_none()).count();
        // None of them has a history.
        assert!(ahead.due(&history.reader(), &groups, now_s).is_empty());
        assert_eq!(open(&ahead), 1);
        ahead.due(&history.reader(), &groups, now_s + 1);
        assert_eq!(open(&ahead), 0);
        ahead.due(&history.reader(), &groups, now_s + FORGOTTEN_S);
        assert!(ahead.services.is_empty());
    }
}
