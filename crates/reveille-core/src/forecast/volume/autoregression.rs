//! Linear autoregression on seasonal lags, by ridge regression: a value from those just before it and those about a day,
//! some days and a week before. It stands in for seasonal ARIMA, without the moving-average part and its search, at a
//! thousandth of the time. With Fourier terms in place of most lags it is dynamic harmonic regression (Hyndman and
//! Athanasopoulos, Forecasting: Principles and Practice, 10.5).

use std::f64::consts::TAU;

use super::linear::Normal;
use super::{Fault, Fitted, Model, Seasons, Transform, Window, enough};

/// Penalty where there are only lags: for stability, not for selection.
const RIDGE_LAGS: f64 = 1e-5;
/// Penalty with Fourier terms: many of them, few seasons to learn them from.
const RIDGE_HARMONICS: f64 = 1e-3;
/// Most harmonics of the shorter season.
const HARMONICS_SHORT_MAX: usize = 11;
/// Harmonics of the longer season, those of the shorter left out.
const HARMONICS_LONG_MAX: usize = 39;
/// Rows that each coefficient wants at least.
const ROWS_PER_COLUMN: usize = 3;

/// What the regression is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Terms {
    /// Lags around the seasons.
    Lags,
    /// Fourier terms of the seasons, and few lags.
    Harmonics,
}

/// A model of one series' own past.
#[derive(Clone, Copy, Debug)]
pub struct Autoregression {
    seasons: Seasons,
    transform: Transform,
    terms: Terms,
    /// 0, or the season that is differenced away first.
    difference: usize,
}

impl Autoregression {
    /// On lags around the seasons.
    #[must_use]
    pub fn on_lags(seasons: Seasons, transform: Transform) -> Self {
        Self { seasons, transform, terms: Terms::Lags, difference: 0 }
    }

    /// On lags of the differences between a value and that of one short season before.
    #[must_use]
    pub fn on_differences(seasons: Seasons, transform: Transform) -> Self {
        Self { difference: seasons.short, ..Self::on_lags(seasons, transform) }
    }

    /// On Fourier terms of the seasons and the last few values (dynamic harmonic regression).
    #[must_use]
    pub fn harmonic(seasons: Seasons, transform: Transform) -> Self {
        Self { terms: Terms::Harmonics, ..Self::on_lags(seasons, transform) }
    }

    /// Ascending; as far back as `points` allow.
    fn lags(&self, points: usize) -> Vec<usize> {
        let Seasons { short, long } = self.seasons;
        let mut lags: Vec<usize> = vec![1, 2, 3];
        if short > 1 {
            lags.extend([short, short + 1]);
        }
        if self.terms == Terms::Lags {
            lags.extend([4, 5]);
            if short > 1 {
                lags.extend([short - 1, short + 2, 2 * short - 1, 2 * short, 2 * short + 1]);
            }
            if let Some(long) = long {
                lags.extend((3..long.div_ceil(short).min(7)).map(|seasons| seasons * short));
                lags.extend([long - short + 1, long - 1, long, long + 1, long + 2]);
            }
        }
        lags.sort_unstable();
        lags.dedup();
        lags.retain(|&lag| lag > 0);
        while let Some(&longest) = lags.last()
            && longest + lags.len() * ROWS_PER_COLUMN + self.seasons.short > points
        {
            lags.pop();
        }
        lags
    }

    fn waves(&self) -> Vec<Wave> {
        if self.terms == Terms::Lags || self.seasons.short < 2 {
            return Vec::new();
        }
        let short = self.seasons.short;
        let mut waves: Vec<Wave> = (1..=HARMONICS_SHORT_MAX.min((short - 1) / 2))
            .map(|times| Wave { period: short, times })
            .collect();
        if let Some(long) = self.seasons.long {
            let times =
                (1..=HARMONICS_LONG_MAX.min((long - 1) / 2)).filter(|times| times % (long / short) != 0);
            waves.extend(times.map(|times| Wave { period: long, times }));
        }
        waves
    }
}

/// A sine and a cosine of `times` cycles in `period` steps.
#[derive(Clone, Copy, Debug)]
struct Wave {
    period: usize,
    times: usize,
}

/// With its coefficients; values are standardised by `mean` and `deviation` on the transformed, differenced scale.
struct FittedAutoregression {
    model: Autoregression,
    lags: Vec<usize>,
    of_lags: Vec<f64>,
    waves: Waves,
    of_waves: Vec<f64>,
    mean: f64,
    deviation: f64,
}

impl Model for Autoregression {
    fn name(&self) -> String {
        let kind = match (self.terms, self.difference) {
            (Terms::Lags, 0) => "ar".to_owned(),
            (Terms::Lags, season) => format!("ar-d{season}"),
            (Terms::Harmonics, _) => "harmonic".to_owned(),
        };
        kind + self.transform.suffix()
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        let levels = self.transform.apply(window.values)?;
        let values = difference(&levels, self.difference);
        let lags = self.lags(values.len());
        let waves = Waves::new(self.waves());
        let reach = lags.last().copied().unwrap_or(0);
        enough(window, (waves.columns() + 8) * ROWS_PER_COLUMN + self.difference)?;
        if lags.is_empty() {
            return Err(Fault::TooShort { needed: 8 + self.difference, present: window.values.len() });
        }
        let (mean, deviation) = moments(&values);
        let values: Vec<f64> = values.iter().map(|value| (value - mean) / deviation).collect();
        let columns = lags.len() + waves.columns();
        let mut normal = Normal::new(columns);
        let mut row = vec![0.0; columns];
        for at in reach..values.len() {
            for (cell, lag) in row.iter_mut().zip(&lags) {
                *cell = values[at - lag];
            }
            waves.fill(window, at + self.difference, &mut row[lags.len()..]);
            normal.add(&row, values[at]);
        }
        let ridge = if waves.columns() == 0 { RIDGE_LAGS } else { RIDGE_HARMONICS };
        let mut of_lags = normal.solve(ridge)?;
        let of_waves = of_lags.split_off(lags.len());
        Ok(Box::new(FittedAutoregression { model: *self, lags, of_lags, waves, of_waves, mean, deviation }))
    }
}

impl Fitted for FittedAutoregression {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        let reach = self.lags.last().copied().unwrap_or(0);
        let season = self.model.difference;
        enough(window, reach + season)?;
        // Only what the recursion looks back at.
        let end = window.values.len();
        let mut levels = self.model.transform.apply(&window.values[end - reach - season..])?;
        let mut values = difference(&levels, season);
        values.iter_mut().for_each(|value| *value = (*value - self.mean) / self.deviation);
        let mut row = vec![0.0; self.of_waves.len()];
        for ahead in 0..horizon {
            let at = values.len();
            let mut value: f64 =
                self.lags.iter().zip(&self.of_lags).map(|(lag, weight)| values[at - lag] * weight).sum();
            self.waves.fill(window, end + ahead, &mut row);
            value += row.iter().zip(&self.of_waves).map(|(term, weight)| term * weight).sum::<f64>();
            values.push(value);
            let level = value * self.deviation + self.mean;
            let before = if season > 0 { levels[levels.len() - season] } else { 0.0 };
            levels.push(level + before);
        }
        let path: Vec<f64> =
            levels[reach + season..].iter().map(|&level| self.model.transform.invert(level)).collect();
        if path.iter().all(|value| value.is_finite()) { Ok(path) } else { Err(Fault::NotFinite) }
    }

    fn held_bytes(&self) -> usize {
        let of_lags = size_of_val(&*self.lags) + size_of_val(&*self.of_lags);
        of_lags + size_of_val(&*self.of_waves) + self.waves.held_bytes()
    }
}

/// Fourier terms by look-up: one table of a full circle per period. With any of them there is a constant, too.
struct Waves {
    waves: Vec<Wave>,
    /// By period: cosine and sine of each phase.
    circles: Vec<(usize, Vec<(f64, f64)>)>,
}

impl Waves {
    fn new(waves: Vec<Wave>) -> Self {
        let mut circles: Vec<(usize, Vec<(f64, f64)>)> = Vec::new();
        for wave in &waves {
            if circles.iter().all(|(period, _)| *period != wave.period) {
                let angle = |phase: usize| TAU * phase as f64 / wave.period as f64;
                let circle = (0..wave.period).map(|phase| (angle(phase).cos(), angle(phase).sin())).collect();
                circles.push((wave.period, circle));
            }
        }
        Self { waves, circles }
    }

    fn held_bytes(&self) -> usize {
        let circles = self.circles.iter().map(|(_, circle)| size_of_val(&**circle)).sum::<usize>();
        size_of_val(&*self.waves) + size_of_val(&*self.circles) + circles
    }

    fn columns(&self) -> usize {
        if self.waves.is_empty() { 0 } else { 2 * self.waves.len() + 1 }
    }

    /// The terms of the value `at` of the window.
    fn fill(&self, window: Window<'_>, at: usize, row: &mut [f64]) {
        let Some((constant, row)) = row.split_first_mut() else { return };
        *constant = 1.0;
        let mut pairs = self.waves.iter().zip(row.chunks_exact_mut(2)).peekable();
        for (period, circle) in &self.circles {
            let phase = window.phase(at, *period);
            while let Some((wave, pair)) = pairs.next_if(|(wave, _)| wave.period == *period) {
                let (cosine, sine) = circle[wave.times * phase % period];
                pair[0] = cosine;
                pair[1] = sine;
            }
        }
    }
}

/// Each value less that of one season before; all of them for a season of 0.
fn difference(values: &[f64], season: usize) -> Vec<f64> {
    if season == 0 {
        return values.to_vec();
    }
    values.iter().skip(season).zip(values).map(|(late, early)| late - early).collect()
}

/// Mean and standard deviation, the latter 1 for a constant.
fn moments(values: &[f64]) -> (f64, f64) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    let deviation = variance.sqrt();
    (mean, if deviation > 1e-12 * mean.abs().max(1e-300) { deviation } else { 1.0 })
}
