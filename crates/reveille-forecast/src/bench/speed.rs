//! How long one series takes: 1,000 hourly points of M4, on one core, in CPU time.

use reveille_core::forecast::volume::{Chosen, Forecaster, LEVELS, Series, choose};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::BenchError;
use super::read::Split;

/// Points of history.
const POINTS: usize = 1_000;
/// Steps ahead.
const HORIZON: usize = 48;
/// Most series that are timed.
const SERIES_MAX: usize = 40;

/// Means over the series; times in microseconds of CPU.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Speed {
    /// All candidates back-tested, weighted, calibrated.
    pub choose_us: f64,
    /// The chosen ones' coefficients estimated anew, then forecast.
    pub refit_us: f64,
    /// Forecast with the coefficients as they are.
    pub forecast_us: f64,
    /// What is held of one series between forecasts, in bytes: chosen models, coefficients, calibration.
    pub bytes: f64,
    /// How many series were timed.
    pub series: usize,
}

impl Speed {
    /// How often something fits into a minute.
    #[must_use]
    pub fn per_minute(&self, us: f64) -> f64 {
        if us > 0.0 { 60e6 / us } else { 0.0 }
    }
}

/// This thread's CPU time, in microseconds.
pub(super) fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// The models are chosen on all but the last 40 values: 960 of history are the competition's longest.
pub(super) fn run(splits: &[Split], step: &mut dyn FnMut(&str, usize, usize)) -> Result<Speed, BenchError> {
    let mut speed = Speed::default();
    let long: Vec<(&Split, Series)> =
        splits.iter().filter_map(|split| Some((split, thousand(split)?))).collect();
    let long = &long[..long.len().min(SERIES_MAX)];
    for (at, (split, series)) in long.iter().enumerate() {
        step("speed", at, long.len());
        let fault = |source| BenchError::Forecast { series: format!("m4_hourly {}", split.name), source };
        let began = cpu_us();
        let mut chosen: Chosen = choose(&split.history, HORIZON).map_err(fault)?;
        let choice = cpu_us();
        chosen.forecast(series, HORIZON, &LEVELS).map_err(fault)?;
        let kept = cpu_us();
        chosen.refit(series);
        chosen.forecast(series, HORIZON, &LEVELS).map_err(fault)?;
        speed.choose_us += choice - began;
        speed.forecast_us += kept - choice;
        speed.refit_us += cpu_us() - kept;
        speed.bytes += chosen.size_bytes() as f64;
        speed.series += 1;
    }
    let count = speed.series.max(1) as f64;
    let sums = [&mut speed.choose_us, &mut speed.refit_us, &mut speed.forecast_us, &mut speed.bytes];
    sums.into_iter().for_each(|sum| *sum /= count);
    Ok(speed)
}

/// History and the first test values together, where they are enough.
fn thousand(split: &Split) -> Option<Series> {
    let mut values = split.history.values().to_vec();
    values.extend(&split.actual);
    if values.len() < POINTS {
        return None;
    }
    values.truncate(POINTS);
    Series::new(0, split.history.step_s(), values).ok()
}
