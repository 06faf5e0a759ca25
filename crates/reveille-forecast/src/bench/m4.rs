//! M4 hourly as the competition scored it: 48 hours ahead of each series, errors scaled by the seasonal naive of a day.

use reveille_core::forecast::volume::score::{covered, interval_score, mae, naive_scale, smape};
use reveille_core::forecast::volume::{Chosen, Fault, Forecaster, Series, choose_among, seasons_of};
use serde::Serialize;

use super::read::Split;
use super::{BenchError, Options, speed};

/// Steps of a day, which scales the errors.
const DAY: usize = 24;
/// Of the 95 and the 80 % interval.
const LEVELS: [f64; 4] = [0.025, 0.1, 0.9, 0.975];

/// Means over the series that the model could forecast.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Its name; `combination` is what the daemon uses.
    pub model: String,
    /// Mean absolute scaled error.
    pub mase: f64,
    /// Symmetric mean absolute percentage error.
    pub smape: f64,
    /// Mean scaled interval score at 95 %.
    pub msis: f64,
    /// Share within the 80 % interval.
    pub coverage_80: f64,
    /// Share within the 95 % interval.
    pub coverage_95: f64,
    /// How many it could forecast.
    pub series: usize,
    /// CPU time for choice, calibration and forecast of one, in milliseconds; without that of models on threads of their
    /// own.
    pub ms: f64,
}

/// The combination, then each model alone in the order of the candidates.
pub(super) fn run(
    splits: &[Split],
    options: Options,
    step: &mut dyn FnMut(&str, usize, usize),
) -> Result<Vec<Row>, BenchError> {
    let mut rows: Vec<Row> = vec![Row { model: "combination".to_owned(), ..Row::default() }];
    for (at, split) in splits.iter().enumerate() {
        step("M4 hourly", at, splits.len());
        let seasons = seasons_of(&split.history);
        let models = options.candidates(seasons);
        let fault = |source| BenchError::Forecast { series: format!("m4_hourly {}", split.name), source };
        rows[0].add(split, |history, horizon| options.choose(history, horizon)).map_err(fault)?;
        for model in &models {
            let name = model.name();
            if !options.singles && !matches!(name.as_str(), "snaive-24" | "ets") {
                continue;
            }
            let at = rows.iter().position(|row| row.model == name).unwrap_or(rows.len());
            if at == rows.len() {
                rows.push(Row { model: name, ..Row::default() });
            }
            // Not every model exists for every series; the row says for how many.
            let alone = |history: &Series, horizon| {
                choose_among(std::slice::from_ref(model), seasons, history, horizon)
            };
            let _ = rows[at].add(split, alone);
        }
    }
    rows.iter_mut().for_each(Row::divide);
    Ok(rows)
}

impl Row {
    fn add(
        &mut self,
        split: &Split,
        choose: impl FnOnce(&Series, usize) -> Result<Chosen, Fault>,
    ) -> Result<(), Fault> {
        let began = speed::cpu_us();
        let horizon = split.actual.len();
        let chosen = choose(&split.history, horizon)?;
        let quantiles = chosen.forecast(&split.history, horizon, &LEVELS)?;
        self.ms += (speed::cpu_us() - began) / 1_000.0;
        let scale = naive_scale(split.history.values(), DAY).max(f64::MIN_POSITIVE);
        let [low_95, low_80, high_80, high_95] = [0, 1, 2, 3].map(|level| quantiles.path(level));
        self.mase += mae(quantiles.point(), &split.actual) / scale;
        self.smape += smape(quantiles.point(), &split.actual);
        self.msis += interval_score(low_95, high_95, &split.actual, 0.95) / scale;
        self.coverage_80 += covered(low_80, high_80, &split.actual);
        self.coverage_95 += covered(low_95, high_95, &split.actual);
        self.series += 1;
        Ok(())
    }

    fn divide(&mut self) {
        let count = self.series.max(1) as f64;
        let sums = [&mut self.mase, &mut self.smape, &mut self.msis, &mut self.ms];
        sums.into_iter().chain([&mut self.coverage_80, &mut self.coverage_95]).for_each(|sum| *sum /= count);
    }
}
