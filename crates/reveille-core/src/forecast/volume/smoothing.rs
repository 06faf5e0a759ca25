//! Exponential smoothing: additive Holt-Winters with damped trend, one or two seasons and an autocorrelated error
//! (Taylor 2003, Short-term electricity demand forecasting using double seasonal exponential smoothing), and Theta
//! (Assimakopoulos and Nikolopoulos 2000, as simple smoothing with half the drift by Hyndman and Billah 2003).

use super::{Fault, Fitted, Model, Seasons, Transform, Window, enough};

/// Rounds of the search for parameters; its steps halve where nothing improves.
const ROUNDS_MAX: usize = 20;
/// Most seasons that initial states are the means of.
const SEASONS_FOR_START_MAX: usize = 4;

/// Additive Holt-Winters (ETS AAdA), on a transformed scale.
#[derive(Clone, Copy, Debug)]
pub struct HoltWinters {
    /// With the longer one: double seasonal, with an autoregressive error in place of the trend.
    pub seasons: Seasons,
    /// The scale it is additive on.
    pub transform: Transform,
}

/// What is estimated, each in its own range.
#[derive(Clone, Copy, Debug)]
struct Smoothing([f64; 6]);

/// Least and most of: level, trend, damping, short season, long season, error's autocorrelation.
const RANGES: [(f64, f64); 6] = [(0.001, 0.99), (0.0, 0.3), (0.8, 0.98), (0.0, 0.6), (0.0, 0.6), (0.0, 0.99)];

#[derive(Clone)]
struct State {
    level: f64,
    trend: f64,
    short: Vec<f64>,
    long: Vec<f64>,
    error: f64,
}

struct FittedHoltWinters {
    model: HoltWinters,
    smoothing: Smoothing,
}

impl HoltWinters {
    fn start(&self, window: Window<'_>, levels: &[f64]) -> State {
        let Seasons { short, long } = self.seasons;
        let span =
            (levels.len() / self.seasons.longest()).clamp(1, SEASONS_FOR_START_MAX) * self.seasons.longest();
        let span = &levels[..span.min(levels.len())];
        let mean = span.iter().sum::<f64>() / span.len().max(1) as f64;
        let by_phase = |period: usize, less: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let mut sums = vec![(0.0, 0.0); period];
            for (at, level) in span.iter().enumerate() {
                let sum = &mut sums[window.phase(at, period)];
                *sum = (sum.0 + level - mean - less(at), sum.1 + 1.0);
            }
            sums.into_iter().map(|(sum, count): (f64, f64)| sum / count.max(1.0)).collect()
        };
        let shorts = if short > 1 { by_phase(short, &|_| 0.0) } else { vec![0.0] };
        let longs =
            long.map_or_else(|| vec![0.0], |long| by_phase(long, &|at| shorts[window.phase(at, short)]));
        let head = &levels[..(2 * short).clamp(1, levels.len())];
        let level = head.iter().sum::<f64>() / head.len() as f64;
        State { level, trend: 0.0, short: shorts, long: longs, error: 0.0 }
    }

    /// Runs through the values; returns the squared error of one step ahead, without the first season.
    fn run(&self, smoothing: Smoothing, window: Window<'_>, levels: &[f64], state: &mut State) -> f64 {
        let [alpha, beta, damping, gamma, delta, rho] = smoothing.0;
        let (mut short, mut long) = (window.phase(0, state.short.len()), window.phase(0, state.long.len()));
        let warm = self.seasons.longest().min(levels.len() / 2);
        let mut squares = 0.0;
        for (at, level) in levels.iter().enumerate() {
            let expected = state.level + damping * state.trend + state.short[short] + state.long[long];
            let error = level - expected;
            if at >= warm {
                squares += (error - rho * state.error).powi(2);
            }
            state.level += damping * state.trend + alpha * error;
            state.trend = damping * state.trend + beta * alpha * error;
            state.short[short] += gamma * error;
            state.long[long] += delta * error;
            state.error = error;
            short = if short + 1 == state.short.len() { 0 } else { short + 1 };
            long = if long + 1 == state.long.len() { 0 } else { long + 1 };
        }
        squares
    }

    /// Which of the parameters this model has.
    fn has(&self) -> [bool; 6] {
        let double = self.seasons.long.is_some();
        [true, !double, !double, self.seasons.short > 1, double, double]
    }
}

impl Model for HoltWinters {
    fn name(&self) -> String {
        let kind = if self.seasons.long.is_some() { "double-ets" } else { "ets" };
        format!("{kind}{}", self.transform.suffix())
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        enough(window, (2 * self.seasons.longest()).max(8))?;
        let levels = self.transform.apply(window.values)?;
        let start = self.start(window, &levels);
        let has = self.has();
        let loss = |smoothing: Smoothing| {
            let loss = self.run(smoothing, window, &levels, &mut start.clone());
            if loss.is_finite() { loss } else { f64::INFINITY }
        };
        let mut best = (f64::INFINITY, Smoothing([0.1; 6]));
        for first in [[0.02, 0.05, 0.95, 0.1, 0.1, 0.9], [0.3, 0.01, 0.9, 0.1, 0.2, 0.3]] {
            let kept = |at: usize| if has[at] { first[at] } else { 0.0 };
            let found = search(Smoothing(std::array::from_fn(kept)), has, &loss);
            if found.0 < best.0 {
                best = found;
            }
        }
        if best.0.is_finite() {
            Ok(Box::new(FittedHoltWinters { model: *self, smoothing: best.1 }))
        } else {
            Err(Fault::NotFinite)
        }
    }
}

/// The least loss that is found by steps along one parameter at a time.
fn search(mut at: Smoothing, has: [bool; 6], loss: &dyn Fn(Smoothing) -> f64) -> (f64, Smoothing) {
    let mut best = loss(at);
    let mut step = 0.4;
    for _ in 0..ROUNDS_MAX {
        let before = best;
        for (which, &(least, most)) in RANGES.iter().enumerate().filter(|(which, _)| has[*which]) {
            for sign in [1.0, -1.0] {
                let mut tried = at;
                tried.0[which] = (at.0[which] + sign * step * (most - least)).clamp(least, most);
                let found = loss(tried);
                if found < best {
                    (best, at) = (found, tried);
                    break;
                }
            }
        }
        if before - best <= 1e-4 * before {
            step *= 0.5;
        }
        if step < 0.01 {
            break;
        }
    }
    (best, at)
}

impl Fitted for FittedHoltWinters {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        let model = self.model;
        enough(window, model.seasons.longest())?;
        let levels = model.transform.apply(window.values)?;
        let mut state = model.start(window, &levels);
        model.run(self.smoothing, window, &levels, &mut state);
        let [_, _, damping, _, _, rho] = self.smoothing.0;
        let (mut trend, mut error) = (0.0, state.error);
        let mut factor = 1.0;
        let mut path = Vec::with_capacity(horizon);
        for ahead in 0..horizon {
            factor *= damping;
            trend += factor * state.trend;
            error *= rho;
            let at = levels.len() + ahead;
            let seasons = state.short[window.phase(at, state.short.len())]
                + state.long[window.phase(at, state.long.len())];
            path.push(model.transform.invert(state.level + trend + seasons + error));
        }
        if path.iter().all(|value| value.is_finite()) { Ok(path) } else { Err(Fault::NotFinite) }
    }
}

// --- Theta ------------------------------------------------------------------------------------------------------------

/// Simple smoothing of the seasonally adjusted values, with half of their linear drift.
#[derive(Clone, Copy, Debug)]
pub struct Theta {
    /// Steps; 1 for none.
    pub season: usize,
}

struct FittedTheta {
    season: usize,
    alpha: f64,
}

/// Seasonal means about the mean, and the values without them.
fn adjusted(window: Window<'_>, season: usize) -> (Vec<f64>, Vec<f64>) {
    let values = window.values;
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let mut sums = vec![(0.0, 0.0); season];
    for (at, value) in values.iter().enumerate() {
        let sum = &mut sums[window.phase(at, season)];
        *sum = (sum.0 + value - mean, sum.1 + 1.0);
    }
    let means: Vec<f64> = sums.into_iter().map(|(sum, count): (f64, f64)| sum / count.max(1.0)).collect();
    let adjusted =
        values.iter().enumerate().map(|(at, value)| value - means[window.phase(at, season)]).collect();
    (means, adjusted)
}

/// The level after all of the values, and the squared error on the way.
fn smooth(values: &[f64], alpha: f64) -> (f64, f64) {
    let mut level = values.first().copied().unwrap_or(0.0);
    let mut squares = 0.0;
    for value in values {
        let error = value - level;
        squares += error * error;
        level += alpha * error;
    }
    (level, squares)
}

impl Model for Theta {
    fn name(&self) -> String {
        "theta".to_owned()
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        let season = self.season.max(1);
        enough(window, (2 * season).max(4))?;
        let (_, values) = adjusted(window, season);
        let tried = [0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95];
        let alpha = tried.into_iter().min_by(|a, b| smooth(&values, *a).1.total_cmp(&smooth(&values, *b).1));
        Ok(Box::new(FittedTheta { season, alpha: alpha.unwrap_or(0.2) }))
    }
}

impl Fitted for FittedTheta {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        enough(window, (2 * self.season).max(4))?;
        let (means, values) = adjusted(window, self.season);
        let count = values.len() as f64;
        let middle = (count - 1.0) / 2.0;
        let mean = values.iter().sum::<f64>() / count;
        let slope =
            values.iter().enumerate().map(|(at, value)| (at as f64 - middle) * (value - mean)).sum::<f64>()
                / (count * (count * count - 1.0) / 12.0);
        let (level, _) = smooth(&values, self.alpha);
        let correction = (1.0 - (1.0 - self.alpha).powf(count)) / self.alpha;
        let one = |ahead: usize| {
            let drift = slope / 2.0 * (ahead as f64 + correction);
            level + drift + means[window.phase(values.len() + ahead, self.season)]
        };
        Ok((0..horizon).map(one).collect())
    }
}
