//! Forecasts of volume: how many arrivals each coming step brings, as quantiles.
//!
//! ```text
//! Series ─► seasons ─► models, each fitted on a prefix ─► rolling back-test ─► weights ─┐
//!   │                                                          └─► residuals ─► Calibration
//!   └───────────────► Chosen::forecast ─► paths of the chosen, weighted ─► + residuals ─► Quantiles
//! ```
//!
//! A [`Model`] gives one path; the quantiles come from how wrong it, or a combination, was in its own rolling back-test
//! ([`choose()`]). So each model is calibrated by the same rule, and one that gives nonsense loses its place by its own
//! figures. All of it works on a regular series with missing values marked.

mod aggregate;
mod arima;
mod autoregression;
mod backtest;
mod calibrate;
mod choose;
mod group;
mod linear;
mod naive;
pub mod score;
mod season;
mod smoothing;
mod transform;

#[cfg(test)]
mod tests;

pub use arima::Arima;
pub use autoregression::Autoregression;
pub use calibrate::{Calibration, Coverage};
pub use choose::{Chosen, Member, block_of, blocks, candidates, choose, choose_among};
pub use group::{Group, Joined, MEMBERS_MAX as GROUP_MEMBERS_MAX, MEMBERS_MIN as GROUP_MEMBERS_MIN};
pub use naive::{SeasonalMeans, SeasonalNaive};
pub use season::{Seasons, by_calendar, detect, seasons_of};
pub use smoothing::{HoltWinters, Theta};
pub use transform::Transform;

/// Most points of a series: a year of hours many times over, or two years of minutes.
pub const POINTS_MAX: usize = 1 << 20;
/// Most steps that are forecast at once: two weeks of minutes.
pub const HORIZON_MAX: usize = 20_160;
/// Most quantile levels of a forecast.
pub const LEVELS_MAX: usize = 99;
/// Levels that the daemon stores: the 50, 80, 90 and 95 % intervals and the median.
pub const LEVELS: [f64; 9] = [0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975];

// --- Why there is no forecast -----------------------------------------------------------------------------------------

/// Why a series was refused, or a model has no forecast.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    /// The series has no step, or one below a second.
    #[error("the step of a series must be at least 1 s, not {step_s}")]
    Step {
        /// As given, in seconds.
        step_s: i64,
    },
    /// A value that is neither finite nor marked as missing.
    #[error("value {index} of the series is {value}: finite values, or NaN for a missing one")]
    Value {
        /// Counted from 0.
        index: usize,
        /// As given.
        value: f64,
    },
    /// More points than a series may have.
    #[error("a series of {points} points, at most {POINTS_MAX} are taken")]
    TooLong {
        /// As given.
        points: usize,
    },
    /// Not enough history for this model.
    #[error("{needed} points of history are needed, there are {present}")]
    TooShort {
        /// At least.
        needed: usize,
        /// Points that are there.
        present: usize,
    },
    /// A horizon of no steps, or of too many.
    #[error("a horizon of {steps} steps: 1 to {HORIZON_MAX}")]
    Horizon {
        /// As given.
        steps: usize,
    },
    /// Levels that are not ascending, or outside of (0, 1), or too many.
    #[error("quantile levels must ascend within (0, 1), and be 1 to {LEVELS_MAX}")]
    Levels,
    /// The model does not exist for such a series, such as a logarithm of negative values.
    #[error("not for this series: {why}")]
    Unfit {
        /// In words.
        why: &'static str,
    },
    /// The model's arithmetic ended in infinities or NaN.
    #[error("the model gave a value that is not finite")]
    NotFinite,
    /// Too few names of a group whose history says something.
    #[error(
        "{members} names of the group have a history, it takes at least {} of one step",
        group::MEMBERS_MIN
    )]
    NoGroup {
        /// That have one.
        members: usize,
    },
    /// No model was left.
    #[error("no model could forecast this series")]
    NoModel,
    /// A model outside of this crate panicked, or was too late.
    #[error("the model failed: {why}")]
    Failed {
        /// In words.
        why: String,
    },
}

// --- What goes in -----------------------------------------------------------------------------------------------------

/// A regular series: a value for each step; NaN where nothing was seen (which is not the same as nothing that came).
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    first: i64,
    step_s: i64,
    values: Vec<f64>,
}

impl Series {
    /// `start_s`: Unix seconds of the first step's begin, rounded down to a multiple of the step. `step_s` in seconds.
    ///
    /// # Errors
    /// A step below 1 s, an infinite value, too many points.
    pub fn new(start_s: i64, step_s: i64, values: Vec<f64>) -> Result<Self, Fault> {
        if step_s < 1 {
            return Err(Fault::Step { step_s });
        }
        if values.len() > POINTS_MAX {
            return Err(Fault::TooLong { points: values.len() });
        }
        if let Some((index, &value)) = values.iter().enumerate().find(|(_, value)| value.is_infinite()) {
            return Err(Fault::Value { index, value });
        }
        Ok(Self { first: start_s.div_euclid(step_s), step_s, values })
    }

    /// The step, in seconds.
    #[must_use]
    pub fn step_s(&self) -> i64 {
        self.step_s
    }

    /// One value a step, oldest first; NaN is missing.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The last `points` of it.
    #[must_use]
    pub fn last(&self, points: usize) -> Self {
        let from = self.values.len().saturating_sub(points);
        self.between(from, self.values.len())
    }

    /// Its points `from..to`, within what it has.
    #[must_use]
    pub fn between(&self, from: usize, to: usize) -> Self {
        let to = to.min(self.values.len());
        let from = from.min(to);
        let skipped = i64::try_from(from).unwrap_or(i64::MAX);
        Self {
            first: self.first.saturating_add(skipped),
            step_s: self.step_s,
            values: self.values[from..to].to_vec(),
        }
    }

    /// The series without gaps: a missing value is that of one season before (the longer one first: a Monday is no
    /// Sunday), else one after, else the mean of all.
    fn filled(&self, seasons: Seasons) -> Vec<f64> {
        let mut values = self.values.clone();
        if values.iter().all(|value| !value.is_nan()) {
            return values;
        }
        let (sum, seen) = values
            .iter()
            .filter(|value| !value.is_nan())
            .fold((0.0, 0.0), |(sum, seen), value| (sum + value, seen + 1.0));
        let mean = if seen > 0.0 { sum / seen } else { 0.0 };
        for season in seasons.long.into_iter().chain([seasons.short]) {
            for at in season..values.len() {
                if values[at].is_nan() {
                    values[at] = values[at - season];
                }
            }
            for at in (0..values.len().saturating_sub(season)).rev() {
                if values[at].is_nan() {
                    values[at] = values[at + season];
                }
            }
        }
        values.iter_mut().filter(|value| value.is_nan()).for_each(|value| *value = mean);
        values
    }
}

/// What a model is fitted on and forecasts from: values without gaps, and where in time they lie.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The number of the first value's step, counted from the Unix epoch: phases of seasons rest on it.
    pub first: i64,
    /// Oldest first, all finite.
    pub values: &'a [f64],
}

impl<'a> Window<'a> {
    /// Its first `points`.
    #[must_use]
    pub fn prefix(self, points: usize) -> Window<'a> {
        Window { first: self.first, values: &self.values[..points.min(self.values.len())] }
    }

    /// Where in a season of `period` steps the value `at` lies; `at` may be beyond the end.
    #[must_use]
    pub fn phase(self, at: usize, period: usize) -> usize {
        let period = i64::try_from(period.max(1)).unwrap_or(i64::MAX);
        let start = usize::try_from(self.first.rem_euclid(period)).unwrap_or(0);
        let period = usize::try_from(period).unwrap_or(1);
        (start + at % period) % period
    }
}

// --- What comes out ---------------------------------------------------------------------------------------------------

/// Quantiles of the volume of each coming step.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantiles {
    levels: Vec<f64>,
    horizon: usize,
    values: Vec<f64>,
    point: Vec<f64>,
}

impl Quantiles {
    /// `point`: one value a step. `values`: the path of the first level, then that of the next. Where levels cross, which
    /// models do, the values of a step are put in order.
    ///
    /// # Errors
    /// Levels or a horizon out of range, a length that does not fit ([`Fault::Failed`]), values that are not finite.
    pub fn new(levels: &[f64], point: Vec<f64>, mut values: Vec<f64>) -> Result<Self, Fault> {
        let horizon = point.len();
        asked_well(horizon, levels)?;
        if values.len() != levels.len() * horizon {
            return Err(Fault::Failed {
                why: format!("{} values for {} quantiles", values.len(), levels.len() * horizon),
            });
        }
        if values.iter().chain(&point).any(|value| !value.is_finite()) {
            return Err(Fault::NotFinite);
        }
        let mut step = Vec::with_capacity(levels.len());
        for ahead in 0..horizon {
            step.clear();
            step.extend(values.iter().skip(ahead).step_by(horizon));
            if step.is_sorted() {
                continue;
            }
            step.sort_by(f64::total_cmp);
            values
                .iter_mut()
                .skip(ahead)
                .step_by(horizon)
                .zip(&step)
                .for_each(|(value, sorted)| *value = *sorted);
        }
        Ok(Self { levels: levels.to_vec(), horizon, values, point })
    }

    /// Ascending, within (0, 1).
    #[must_use]
    pub fn levels(&self) -> &[f64] {
        &self.levels
    }

    /// Steps ahead.
    #[must_use]
    pub fn horizon(&self) -> usize {
        self.horizon
    }

    /// The quantile of one level for each step ahead; empty for a level that there is not.
    #[must_use]
    pub fn path(&self, level: usize) -> &[f64] {
        self.values.chunks_exact(self.horizon.max(1)).nth(level).unwrap_or_default()
    }

    /// The combined path of the models, which is near the median.
    #[must_use]
    pub fn point(&self) -> &[f64] {
        &self.point
    }
}

/// Something that forecasts a series as quantiles: [`Chosen`], or a model of another kind.
pub trait Forecaster {
    /// Quantiles at `levels` for each of `horizon` steps after the series.
    ///
    /// # Errors
    /// Levels or a horizon out of range, too little history, no finite result.
    fn forecast(&self, history: &Series, horizon: usize, levels: &[f64]) -> Result<Quantiles, Fault>;
}

/// A way to forecast one path. It says nothing of its errors: these are measured.
pub trait Model: Send + Sync {
    /// Short and stable, for tables and reasons: `ar-log`.
    fn name(&self) -> String;

    /// Estimates the model's coefficients.
    ///
    /// # Errors
    /// [`Fault::TooShort`], [`Fault::Unfit`], or whatever else keeps it from that.
    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault>;
}

/// A model with its coefficients; holds no state of the series, so that it can go on from a later window.
pub trait Fitted: Send + Sync {
    /// The path of `horizon` steps after the window.
    ///
    /// # Errors
    /// [`Fault::TooShort`] where the window is shorter than what the model looks back.
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault>;

    /// What it holds beside itself, in bytes.
    fn held_bytes(&self) -> usize {
        0
    }
}

/// Whether a forecast of this kind can be had at all.
fn asked_well(horizon: usize, levels: &[f64]) -> Result<(), Fault> {
    if horizon == 0 || horizon > HORIZON_MAX {
        return Err(Fault::Horizon { steps: horizon });
    }
    let inside = levels.iter().all(|&level| level > 0.0 && level < 1.0);
    let ascending = levels.windows(2).all(|pair| pair[0] < pair[1]);
    if levels.is_empty() || levels.len() > LEVELS_MAX || !inside || !ascending {
        return Err(Fault::Levels);
    }
    Ok(())
}

/// Too few points for what is wanted.
fn enough(window: Window<'_>, needed: usize) -> Result<(), Fault> {
    let present = window.values.len();
    if present < needed { Err(Fault::TooShort { needed, present }) } else { Ok(()) }
}
