//! One day ahead from an origin each day: models are chosen anew at each, on nothing but what came before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use reveille_core::forecast::volume::score::{covered, pinball};
use reveille_core::forecast::volume::{
    Fault, Forecaster, LEVELS, Model, Quantiles, Seasons, Series, choose_among, seasons_of,
};
use serde::Serialize;

use super::{BenchError, Options, read};

/// Origins of each series: the last days of it, at most this many, and at most half of it.
const ORIGINS_MAX: usize = 21;
/// Name of the row that is not one model.
const COMBINATION: &str = "combination";

/// Figures of one set: quantile loss over nine levels, in percent of the mean level, averaged over its series.
#[derive(Clone, Debug, Serialize)]
pub struct Set {
    /// Such as `nasa`.
    pub name: &'static str,
    /// Of what the daemon uses.
    pub combination: f64,
    /// Of the seasonal naive of a day, calibrated alike.
    pub naive: f64,
    /// Of each model alone, calibrated alike; only those that could forecast at every origin.
    pub singles: BTreeMap<String, f64>,
    /// Share of values in the combination's 80 % interval.
    pub coverage_80: f64,
    /// Share of values in its 95 % interval.
    pub coverage_95: f64,
}

impl Set {
    /// The single model with the least loss, known only afterwards.
    #[must_use]
    pub fn best(&self) -> (&str, f64) {
        let least = self.singles.iter().min_by(|one, other| one.1.total_cmp(other.1));
        least.map_or(("none", f64::NAN), |(name, loss)| (name.as_str(), *loss))
    }

    /// Whether the combination is not worse than that.
    #[must_use]
    pub fn is_best(&self) -> bool {
        self.combination <= self.best().1
    }

    /// Whether it is worse than the seasonal naive.
    #[must_use]
    pub fn is_below_naive(&self) -> bool {
        self.combination > self.naive
    }
}

pub(super) fn run(
    sets: &[read::Set],
    options: Options,
    step: &mut dyn FnMut(&str, usize, usize),
) -> Result<Vec<Set>, BenchError> {
    sets.iter().map(|set| one(set, options, step)).collect()
}

/// Sums over origins; a model that misses one is out.
#[derive(Default)]
struct Losses {
    loss: f64,
    origins: usize,
    coverage: [f64; 2],
}

fn one(
    set: &read::Set,
    options: Options,
    step: &mut dyn FnMut(&str, usize, usize),
) -> Result<Set, BenchError> {
    let mut totals: BTreeMap<String, Losses> = BTreeMap::new();
    let mut naive = String::new();
    let mut origins_of_all = 0;
    for (name, series) in &set.series {
        let seasons = seasons_of(series);
        let day = seasons.short;
        naive = format!("snaive-{day}");
        let points = series.values().len();
        let origins = (points / day / 2).min(ORIGINS_MAX);
        let level = mean_level(&series.values()[points - origins * day..]);
        for back in (1..=origins).rev() {
            step(set.name, origins - back, origins);
            let origin = points - back * day;
            let history = series.between(0, origin);
            let actual = &series.values()[origin..origin + day];
            if actual.iter().all(|value| value.is_nan()) {
                continue;
            }
            origins_of_all += 1;
            let fault = |source| BenchError::Forecast { series: format!("{} {name}", set.name), source };
            // As it would have been known then.
            let seasons = seasons_of(&history);
            let models = options.candidates(seasons);
            let all =
                options.choose(&history, day).and_then(|chosen| chosen.forecast(&history, day, &LEVELS));
            let all = all.map_err(fault)?;
            totals.entry(COMBINATION.to_owned()).or_default().add(&all, actual, level);
            for model in models.iter().filter(|model| options.singles || model.name() == naive) {
                if let Ok(alone) = forecast(std::slice::from_ref(model), seasons, &history, day) {
                    totals.entry(model.name()).or_default().add(&alone, actual, level);
                }
            }
        }
    }
    totals.retain(|_, losses| losses.origins == origins_of_all);
    let count = origins_of_all.max(1) as f64;
    let all = totals.remove(COMBINATION).unwrap_or_default();
    let singles: BTreeMap<String, f64> =
        totals.into_iter().map(|(name, losses)| (name, losses.loss / count)).collect();
    Ok(Set {
        name: set.name,
        combination: all.loss / count,
        naive: singles.get(&naive).copied().unwrap_or(f64::NAN),
        singles,
        coverage_80: all.coverage[0] / count,
        coverage_95: all.coverage[1] / count,
    })
}

fn forecast(
    models: &[Arc<dyn Model>],
    seasons: Seasons,
    history: &Series,
    day: usize,
) -> Result<Quantiles, Fault> {
    choose_among(models, seasons, history, day)?.forecast(history, day, &LEVELS)
}

impl Losses {
    fn add(&mut self, quantiles: &Quantiles, actual: &[f64], level: f64) {
        let losses = LEVELS.iter().enumerate().map(|(at, &tau)| pinball(quantiles.path(at), actual, tau));
        self.loss += 100.0 * losses.sum::<f64>() / LEVELS.len() as f64 / level;
        let last = LEVELS.len() - 1;
        self.coverage[0] += covered(quantiles.path(2), quantiles.path(last - 2), actual);
        self.coverage[1] += covered(quantiles.path(0), quantiles.path(last), actual);
        self.origins += 1;
    }
}

fn mean_level(values: &[f64]) -> f64 {
    let seen = values.iter().filter(|value| value.is_finite());
    let (sum, count) = seen.fold((0.0, 0.0), |(sum, count), value| (sum + value.abs(), count + 1.0));
    if sum > 0.0 { sum / count } else { 1.0 }
}
