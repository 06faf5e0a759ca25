//! Intervals from a model's own errors: split-conformal prediction over the residuals of the rolling back-test (Vovk et
//! al. 2005; for several steps ahead, Stankevičiūtė et al. 2021), scaled by horizon.
//!
//! The residuals of one series are few for a quantile at each horizon. So each horizon has a scale (its mean absolute
//! residual, smoothed over its neighbours and shrunk to the mean of all), and the shape of the distribution is that of all
//! residuals in their scales. Where errors grow with the level, the scale does as well.

use super::backtest::Backtest;
use super::score::pinball;

/// Most groups of horizons with a scale of their own.
const GROUPS_MAX: usize = 48;
/// Neighbours to each side that a scale is smoothed over.
const SMOOTHED_OVER: usize = 2;
/// How far a scale is drawn to the mean of all.
const SHRINKAGE: f64 = 0.1;
/// Quantiles of the shape that are kept.
const SHAPE_POINTS: usize = 200;
/// How errors may grow with the level: not, as of counts (Poisson), in proportion.
const GROWTHS: [f64; 3] = [0.0, 0.5, 1.0];

/// The share of actual values that an interval held, measured on residuals that it was not made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coverage {
    /// The interval's: 0.8 or 0.95.
    pub nominal: f64,
    /// In the back-test.
    pub measured: f64,
}

/// What turns a path into quantiles.
#[derive(Clone, Debug)]
pub struct Calibration {
    growth: f64,
    /// Levels below it count as it, where errors grow with the level.
    floor: f64,
    scales: Vec<f64>,
    horizon: usize,
    /// Quantiles of the residuals in their scales, at `i / SHAPE_POINTS`.
    shape: Vec<f64>,
    coverage: Vec<Coverage>,
}

impl Calibration {
    /// What it holds beside itself, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        size_of_val(&*self.scales) + size_of_val(&*self.shape) + size_of_val(&*self.coverage)
    }

    /// `paths` and `actual`: one horizon after the other, as [`Backtest`] gives them; a missing actual value is NaN.
    pub(super) fn new(backtest: &Backtest, paths: &[f64], actual: &[f64]) -> Self {
        // What varies in few horizons varies more than it shows.
        let widening = (1.0 + 1.0 / backtest.spans.max(1.0)).sqrt();
        let horizon = backtest.horizon;
        let mut best: Option<(f64, Self)> = None;
        for growth in GROWTHS {
            let made = Self::with_growth(growth, horizon, paths, actual, widening);
            let loss = made.loss(paths, actual);
            if best.as_ref().is_none_or(|(least, _)| loss < *least) {
                best = Some((loss, made));
            }
        }
        let mut calibration =
            best.map_or_else(|| Self::with_growth(0.0, horizon, paths, actual, widening), |(_, made)| made);
        calibration.coverage = calibration.measure(paths, actual, widening);
        calibration
    }

    /// The 80 and 95 % intervals' coverage in the back-test, each half of it judged by the other half.
    #[must_use]
    pub fn coverage(&self) -> &[Coverage] {
        &self.coverage
    }

    /// The quantile at `level` of the step `ahead` (from 0) for a path's value there.
    pub(super) fn quantile(&self, value: f64, ahead: usize, level: f64) -> f64 {
        value + self.at_shape(level) * self.scale(value, ahead)
    }

    fn with_growth(growth: f64, horizon: usize, paths: &[f64], actual: &[f64], widening: f64) -> Self {
        let seen = actual.iter().filter(|value| value.is_finite());
        let (sum, count) = seen.fold((0.0, 0.0), |(sum, count), value| (sum + value.abs(), count + 1.0));
        let floor = if count > 0.0 { (0.05 * sum / count).max(1e-9) } else { 1e-9 };
        let groups = horizon.clamp(1, GROUPS_MAX);
        let mut calibration = Self {
            growth,
            floor,
            scales: vec![1.0; groups],
            horizon,
            shape: vec![0.0; 2],
            coverage: Vec::new(),
        };
        calibration.scales = smoothed(&calibration.mean_errors(paths, actual));
        let mut shape: Vec<f64> = Vec::with_capacity(actual.len());
        for (at, (path, actual)) in paths.iter().zip(actual).enumerate() {
            if actual.is_finite() {
                shape.push((actual - path) / calibration.scale(*path, at % horizon));
            }
        }
        calibration.shape = quantiles(shape, widening);
        calibration
    }

    /// Mean absolute residual of each group of horizons, in terms of the level where errors grow with it.
    fn mean_errors(&self, paths: &[f64], actual: &[f64]) -> Vec<f64> {
        let mut sums = vec![(0.0, 0.0); self.scales.len()];
        for (at, (path, actual)) in paths.iter().zip(actual).enumerate() {
            if actual.is_finite() {
                let ahead = at % self.horizon;
                let sum = &mut sums[self.group(ahead)];
                *sum = (sum.0 + (actual - path).abs() / self.grown(*path), sum.1 + 1.0);
            }
        }
        let all = sums.iter().fold((0.0, 0.0), |all, sum| (all.0 + sum.0, all.1 + sum.1));
        let mean = if all.1 > 0.0 { all.0 / all.1 } else { 0.0 };
        sums.into_iter().map(|(sum, count)| if count > 0.0 { sum / count } else { mean }).collect()
    }

    fn group(&self, ahead: usize) -> usize {
        let groups = self.scales.len();
        (ahead * groups / self.horizon.max(1)).min(groups - 1)
    }

    fn grown(&self, level: f64) -> f64 {
        if self.growth == 0.0 { 1.0 } else { level.abs().max(self.floor).powf(self.growth) }
    }

    fn scale(&self, level: f64, ahead: usize) -> f64 {
        (self.scales[self.group(ahead)] * self.grown(level)).max(f64::MIN_POSITIVE)
    }

    fn at_shape(&self, level: f64) -> f64 {
        let last = self.shape.len() - 1;
        interpolated(&self.shape, level.clamp(0.0, 1.0) * last as f64)
    }

    /// Quantile loss over a few levels on what it was made from.
    fn loss(&self, paths: &[f64], actual: &[f64]) -> f64 {
        let at = |level: f64| -> Vec<f64> {
            paths
                .iter()
                .enumerate()
                .map(|(at, path)| self.quantile(*path, at % self.horizon, level))
                .collect()
        };
        [0.025, 0.1, 0.25, 0.75, 0.9, 0.975].into_iter().map(|level| pinball(&at(level), actual, level)).sum()
    }

    fn measure(&self, paths: &[f64], actual: &[f64], widening: f64) -> Vec<Coverage> {
        let half = actual.len() / self.horizon.max(1) / 2 * self.horizon;
        if half == 0 {
            return Vec::new();
        }
        let early = Self::with_growth(self.growth, self.horizon, &paths[..half], &actual[..half], widening);
        let late = Self::with_growth(self.growth, self.horizon, &paths[half..], &actual[half..], widening);
        let inside = |by: &Self, at: usize, nominal: f64| {
            let tail = (1.0 - nominal) / 2.0;
            let quantile = |level| by.quantile(paths[at], at % self.horizon, level);
            quantile(tail) <= actual[at] && actual[at] <= quantile(1.0 - tail)
        };
        let one = |nominal: f64| {
            let seen = (0..actual.len()).filter(|&at| actual[at].is_finite());
            let held = seen
                .clone()
                .filter(|&at| inside(if at < half { &late } else { &early }, at, nominal))
                .count();
            Coverage { nominal, measured: held as f64 / seen.count().max(1) as f64 }
        };
        [0.8, 0.95].map(one).to_vec()
    }
}

/// Scales smoothed over neighbours, and shrunk.
fn smoothed(errors: &[f64]) -> Vec<f64> {
    let mean = errors.iter().sum::<f64>() / errors.len().max(1) as f64;
    let one = |at: usize| {
        let near = &errors[at.saturating_sub(SMOOTHED_OVER)..(at + SMOOTHED_OVER + 1).min(errors.len())];
        let near = near.iter().sum::<f64>() / near.len() as f64;
        (SHRINKAGE * mean + (1.0 - SHRINKAGE) * near).max(1e-12)
    };
    (0..errors.len()).map(one).collect()
}

/// The shape: half way between the quantiles as they are and those of a symmetric distribution, since the side on which
/// few horizons erred says little about the next. Widened.
fn quantiles(mut residuals: Vec<f64>, widening: f64) -> Vec<f64> {
    if residuals.is_empty() {
        return vec![0.0; 2];
    }
    let mut sizes: Vec<f64> = residuals.iter().map(|residual| residual.abs()).collect();
    residuals.sort_unstable_by(f64::total_cmp);
    sizes.sort_unstable_by(f64::total_cmp);
    let at = |sorted: &[f64], level: f64| interpolated(sorted, level * (sorted.len() - 1) as f64);
    let one = |point: usize| {
        let level = point as f64 / SHAPE_POINTS as f64;
        let size = at(&sizes, (2.0 * level - 1.0).abs());
        let symmetric = if level < 0.5 { -size } else { size };
        widening * (at(&residuals, level) + symmetric) / 2.0
    };
    (0..=SHAPE_POINTS).map(one).collect()
}

/// Between the values on either side of a place within a list.
fn interpolated(sorted: &[f64], place: f64) -> f64 {
    let last = sorted.len() - 1;
    let below = floor(place, last);
    let above = (below + 1).min(last);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

/// The whole part of a place, at most `last`.
fn floor(place: f64, last: usize) -> usize {
    #[allow(clippy::cast_possible_truncation, reason = "saturates, and is bounded at once")]
    let whole = place.max(0.0) as usize;
    whole.min(last)
}
