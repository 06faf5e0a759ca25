//! Which models speak for a series: all candidates are back-tested, those that did well are weighted by how well, and
//! the residuals of their combination calibrate its intervals. Choosing costs some milliseconds and is done seldom;
//! forecasting with the chosen ones costs microseconds.

use std::ops::Range;
use std::sync::Arc;

use super::aggregate::Aggregated;
use super::backtest::Backtest;
use super::score::mae;
use super::{
    Arima, Autoregression, Calibration, Fault, Fitted, Forecaster, HORIZON_MAX, HoltWinters, Model,
    Quantiles, SeasonalMeans, SeasonalNaive, Seasons, Series, Theta, Transform, Window, asked_well,
    seasons_of,
};

/// Most models in one combination.
const MEMBERS_MAX: usize = 5;
/// A model's weight is its error, relative to the least one, to this power.
const WEIGHT_POWER: i32 = -5;
/// Those below this share of the best one's weight are left out.
const WEIGHT_MIN: f64 = 0.1;
/// A day of more steps than this is aggregated for the models that recur through it.
const DAY_STEPS_MAX: usize = 144;
/// Most seasons (the longest ones) of history that are used.
const SEASONS_MAX: usize = 20;
/// Most points of history of a series without seasons.
const POINTS_WITHOUT_SEASON_MAX: usize = 2_048;
/// How far a path may leave the range of its history, in parts of that range: beyond it a model has run away.
const BEYOND_RANGE_MAX: f64 = 1.0;

/// A model that was chosen.
#[derive(Clone)]
pub struct Member {
    model: Arc<dyn Model>,
    fitted: Arc<dyn Fitted>,
    weight: f64,
    error: f64,
}

impl Member {
    /// The model's name.
    #[must_use]
    pub fn name(&self) -> String {
        self.model.name()
    }

    /// Its share of the combination; all of them sum to 1.
    #[must_use]
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Its mean absolute error in the back-test.
    #[must_use]
    pub fn error(&self) -> f64 {
        self.error
    }
}

/// What forecasts one series: fitted models, weighted, and the calibration of their combination.
#[derive(Clone)]
pub struct Chosen {
    members: Vec<Member>,
    seasons: Seasons,
    calibration: Calibration,
}

/// The candidates for a series with these seasons, the plainest first.
#[must_use]
pub fn candidates(seasons: Seasons) -> Vec<Arc<dyn Model>> {
    let Seasons { short, long } = seasons;
    let mut models: Vec<Arc<dyn Model>> = vec![Arc::new(SeasonalNaive { season: short })];
    if let Some(long) = long {
        models.push(Arc::new(SeasonalNaive { season: long }));
        models.push(Arc::new(SeasonalMeans { season: long }));
    }
    models.push(Arc::new(SeasonalMeans { season: short }));
    let (by, coarse) = block_of(seasons);
    if by > 1 {
        models.push(blocks(by, SeasonalMeans { season: coarse.short }));
    }
    models.push(blocks(by, Theta { season: coarse.short }));
    for transform in [Transform::Identity, Transform::Log] {
        models.push(blocks(by, HoltWinters { seasons: Seasons { long: None, ..coarse }, transform }));
        if coarse.long.is_some() {
            models.push(blocks(by, HoltWinters { seasons: coarse, transform }));
        }
    }
    models.push(blocks(by, Arima { season: coarse.short, transform: Transform::Identity }));
    for transform in [Transform::Identity, Transform::Sqrt, Transform::Log] {
        models.push(blocks(by, Autoregression::on_lags(coarse, transform)));
        models.push(blocks(by, Autoregression::on_differences(coarse, transform)));
        models.push(blocks(by, Autoregression::harmonic(coarse, transform)));
    }
    models
}

/// How many steps make a block for models that recur through a day, and the seasons in blocks.
#[must_use]
pub fn block_of(seasons: Seasons) -> (usize, Seasons) {
    let short = seasons.short;
    let fits = |by: &usize| short.is_multiple_of(*by) && short / by <= DAY_STEPS_MAX;
    let by = if short > DAY_STEPS_MAX { (1..=short).find(fits).unwrap_or(1) } else { 1 };
    (by, seasons.coarser(by))
}

/// A model of means of blocks of `by` steps.
pub fn blocks(by: usize, model: impl Model + 'static) -> Arc<dyn Model> {
    if by > 1 { Arc::new(Aggregated { by, inner: model }) } else { Arc::new(model) }
}

/// Chooses among all own models.
///
/// # Errors
/// As [`choose_among`].
pub fn choose(history: &Series, horizon: usize) -> Result<Chosen, Fault> {
    let seasons = seasons_of(history);
    choose_among(&candidates(seasons), seasons, history, horizon)
}

/// Chooses among these models for forecasts of up to `horizon` steps. A model that cannot forecast the series, or gives
/// values that are not finite, is left out.
///
/// # Errors
/// [`Fault::TooShort`] for a history that no back-test fits into, [`Fault::NoModel`] where none is left.
pub fn choose_among(
    models: &[Arc<dyn Model>],
    seasons: Seasons,
    history: &Series,
    horizon: usize,
) -> Result<Chosen, Fault> {
    if horizon == 0 || horizon > HORIZON_MAX {
        return Err(Fault::Horizon { steps: horizon });
    }
    let history = recent(history, seasons);
    let values = history.filled(seasons);
    let window = Window { first: history.first, values: &values };
    let backtest = Backtest::plan(values.len(), seasons, horizon)?;
    let actual = backtest.actual(history.values());
    let bounds = Bounds::of(&values);
    let mut tried = Vec::new();
    for model in models {
        let paths =
            model.fit(window.prefix(backtest.training)).and_then(|fitted| backtest.paths(&*fitted, window));
        let Ok(mut paths) = paths else { continue };
        bounds.apply(&mut paths);
        tried.push(Tried { model, paths });
    }
    let combined = combine(&tried, &backtest, &actual);
    let calibration = Calibration::new(&backtest, &combined, &actual);
    let mut members = Vec::new();
    for (weight, error, tried) in weigh(&tried, &actual, 0..actual.len()) {
        let Ok(fitted) = tried.model.fit(window) else { continue };
        members.push(Member { model: Arc::clone(tried.model), fitted: fitted.into(), weight, error });
    }
    let weights: f64 = members.iter().map(|member| member.weight).sum();
    if members.is_empty() {
        return Err(Fault::NoModel);
    }
    members.iter_mut().for_each(|member| member.weight /= weights);
    Ok(Chosen { members, seasons, calibration })
}

/// A candidate and its forecasts in the back-test.
struct Tried<'m> {
    model: &'m Arc<dyn Model>,
    paths: Vec<f64>,
}

/// Those that are heard, the best first, with weight and mean absolute error, judged by the values in `judged_by` alone.
fn weigh<'t, 'm>(
    tried: &'t [Tried<'m>],
    actual: &[f64],
    judged_by: Range<usize>,
) -> Vec<(f64, f64, &'t Tried<'m>)> {
    let error = |tried: &Tried<'_>| mae(&tried.paths[judged_by.clone()], &actual[judged_by.clone()]);
    let mut errors: Vec<(f64, &Tried<'_>)> = tried.iter().map(|tried| (error(tried), tried)).collect();
    errors.sort_by(|one, other| one.0.total_cmp(&other.0));
    let least = errors.first().map_or(1.0, |best| best.0).max(f64::MIN_POSITIVE);
    errors.truncate(MEMBERS_MAX);
    let weighted = errors
        .into_iter()
        .map(|(error, tried)| ((error.max(f64::MIN_POSITIVE) / least).powi(WEIGHT_POWER), error, tried));
    weighted.filter(|(weight, ..)| *weight >= WEIGHT_MIN).collect()
}

/// The combination's forecasts in the back-test. Each half of the origins is combined as the other half says: weights
/// that have seen what they are judged by would make the intervals too narrow.
fn combine(tried: &[Tried<'_>], backtest: &Backtest, actual: &[f64]) -> Vec<f64> {
    let half = backtest.origins.len() / 2 * backtest.horizon;
    let mut combined = vec![0.0; actual.len()];
    for (part, other) in [(0..half, half..actual.len()), (half..actual.len(), 0..half)] {
        // With one origin there is no other half.
        let judged_by = if other.is_empty() { part.clone() } else { other };
        let members = weigh(tried, actual, judged_by);
        let weights: f64 = members.iter().map(|(weight, ..)| weight).sum();
        for (weight, _, member) in members {
            let pairs = combined[part.clone()].iter_mut().zip(&member.paths[part.clone()]);
            pairs.for_each(|(sum, value)| *sum += weight / weights * value);
        }
    }
    combined
}

/// As much of the history as models are fitted on.
fn recent(history: &Series, seasons: Seasons) -> Series {
    let longest = seasons.longest();
    history.last(if longest > 1 { SEASONS_MAX * longest } else { POINTS_WITHOUT_SEASON_MAX })
}

impl Chosen {
    /// The models, the heaviest first.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The seasons that they work with.
    #[must_use]
    pub fn seasons(&self) -> Seasons {
        self.seasons
    }

    /// Of the intervals, in the back-test.
    #[must_use]
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// What is held of the series, in bytes, counting what is allocated. The history is not part of it.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let member = |member: &Member| {
            size_of::<Member>()
                + size_of_val(&*member.model)
                + size_of_val(&*member.fitted)
                + member.fitted.held_bytes()
        };
        size_of::<Self>() + self.calibration.held_bytes() + self.members.iter().map(member).sum::<usize>()
    }

    /// Estimates the members' coefficients anew, on a later history of the same series. Who is a member, the weights and
    /// the calibration stay. A member that fails keeps its old coefficients.
    pub fn refit(&mut self, history: &Series) {
        let history = recent(history, self.seasons);
        let values = history.filled(self.seasons);
        let window = Window { first: history.first, values: &values };
        for member in &mut self.members {
            if let Ok(fitted) = member.model.fit(window) {
                member.fitted = fitted.into();
            }
        }
    }

    /// The weighted path, of the members that have one; where none has, that of the seasonal naive.
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        let bounds = Bounds::of(window.values);
        let mut combined = vec![0.0; horizon];
        let mut weights = 0.0;
        for member in &self.members {
            let Ok(mut path) = member.fitted.path(window, horizon) else { continue };
            if path.len() != horizon || path.iter().any(|value| !value.is_finite()) {
                continue;
            }
            bounds.apply(&mut path);
            combined.iter_mut().zip(&path).for_each(|(sum, value)| *sum += member.weight * value);
            weights += member.weight;
        }
        if weights <= 0.0 {
            let season = if window.values.len() < self.seasons.short { 1 } else { self.seasons.short };
            return SeasonalNaive { season }.path(window, horizon);
        }
        combined.iter_mut().for_each(|sum| *sum /= weights);
        Ok(combined)
    }
}

impl Forecaster for Chosen {
    fn forecast(&self, history: &Series, horizon: usize, levels: &[f64]) -> Result<Quantiles, Fault> {
        asked_well(horizon, levels)?;
        let history = recent(history, self.seasons);
        let values = history.filled(self.seasons);
        let point = self.path(Window { first: history.first, values: &values }, horizon)?;
        let not_negative = Bounds::of(&values).not_negative;
        let mut quantiles = Vec::with_capacity(levels.len() * horizon);
        for &level in levels {
            for (ahead, &value) in point.iter().enumerate() {
                let quantile = self.calibration.quantile(value, ahead, level);
                quantiles.push(if not_negative { quantile.max(0.0) } else { quantile });
            }
        }
        Quantiles::new(levels, point, quantiles)
    }
}

/// What a path of this series may be.
struct Bounds {
    least: f64,
    most: f64,
    not_negative: bool,
}

impl Bounds {
    fn of(values: &[f64]) -> Self {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let room = BEYOND_RANGE_MAX * (most - least);
        let not_negative = least >= 0.0;
        let least = if not_negative { (least - room).max(0.0) } else { least - room };
        Self { least, most: most + room, not_negative }
    }

    fn apply(&self, path: &mut [f64]) {
        path.iter_mut().for_each(|value| *value = value.max(self.least).min(self.most));
    }
}
