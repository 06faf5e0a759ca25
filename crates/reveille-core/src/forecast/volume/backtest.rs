//! Rolling-origin back-test: a model is fitted once on what comes before the test span, and then forecasts from origin
//! after origin within it, always from all that was known there.

use super::{Fault, Fitted, Seasons, Window};

/// Most origins of one back-test.
const ORIGINS_MAX: usize = 16;
/// Least points that are left to fit on.
const TRAINING_MIN: usize = 6;

/// Where forecasts start, and how far they go.
#[derive(Clone, Debug)]
pub(super) struct Backtest {
    /// How many points models are fitted on.
    pub training: usize,
    /// Numbers of the first forecast values, ascending.
    pub origins: Vec<usize>,
    /// Steps ahead; at most what was asked for, less where the history is short.
    pub horizon: usize,
    /// How many horizons fit into the test span: what the residuals are worth as a sample.
    pub spans: f64,
}

impl Backtest {
    /// The test span: the longer season and a horizon, but at most two fifths of the history.
    pub(super) fn plan(points: usize, seasons: Seasons, horizon: usize) -> Result<Self, Fault> {
        let wanted =
            if seasons.longest() > 1 { seasons.longest().max(3 * seasons.short) } else { 4 * horizon };
        let span = (wanted + horizon).min(points * 2 / 5);
        if points < TRAINING_MIN + 2 || span < 2 {
            return Err(Fault::TooShort { needed: TRAINING_MIN + 2, present: points });
        }
        let horizon = horizon.min(span.div_ceil(2));
        let training = points - span;
        let room = span - horizon;
        let every = (horizon / 4).max(room / (ORIGINS_MAX - 1)).max(1);
        let origins = (0..=room / every).rev().map(|back| points - horizon - back * every).collect();
        Ok(Self { training, origins, horizon, spans: span as f64 / horizon as f64 })
    }

    /// Forecasts from all origins, one after the other.
    pub(super) fn paths(&self, fitted: &dyn Fitted, window: Window<'_>) -> Result<Vec<f64>, Fault> {
        let mut paths = Vec::with_capacity(self.origins.len() * self.horizon);
        for &origin in &self.origins {
            let path = fitted.path(window.prefix(origin), self.horizon)?;
            if path.len() != self.horizon || path.iter().any(|value| !value.is_finite()) {
                return Err(Fault::NotFinite);
            }
            paths.extend(path);
        }
        Ok(paths)
    }

    /// What came, in the same order.
    pub(super) fn actual(&self, values: &[f64]) -> Vec<f64> {
        self.origins
            .iter()
            .flat_map(|&origin| values[origin..origin + self.horizon].iter().copied())
            .collect()
    }
}
