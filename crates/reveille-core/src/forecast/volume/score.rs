//! How good a forecast was: the scores of the M4 competition (Makridakis, Spiliotis and Assimakopoulos 2020) and the
//! quantile (pinball) loss.

/// The scale of MASE and MSIS: the mean absolute error of the seasonal naive within the history. NaNs are left out.
#[must_use]
pub fn naive_scale(history: &[f64], season: usize) -> f64 {
    let steps = history.iter().skip(season).zip(history).map(|(late, early)| (late - early).abs());
    mean(steps.filter(|step| step.is_finite()))
}

/// Mean absolute error; missing actual values are left out.
#[must_use]
pub fn mae(path: &[f64], actual: &[f64]) -> f64 {
    mean(
        path.iter().zip(actual).map(|(path, actual)| (path - actual).abs()).filter(|error| error.is_finite()),
    )
}

/// Symmetric mean absolute percentage error, in percent, 0 to 200.
#[must_use]
pub fn smape(path: &[f64], actual: &[f64]) -> f64 {
    let one = |path: f64, actual: f64| {
        let size = path.abs() + actual.abs();
        if size > 0.0 { 200.0 * (path - actual).abs() / size } else { 0.0 }
    };
    mean(path.iter().zip(actual).map(|(&path, &actual)| one(path, actual)).filter(|error| error.is_finite()))
}

/// Mean interval score of a central interval of `coverage` (0.95), not scaled: its width, and for each miss the distance
/// times 2 / (1 − coverage).
#[must_use]
pub fn interval_score(low: &[f64], high: &[f64], actual: &[f64], coverage: f64) -> f64 {
    let price = 2.0 / (1.0 - coverage);
    let one = |low: f64, high: f64, actual: f64| {
        high - low + price * ((low - actual).max(0.0) + (actual - high).max(0.0))
    };
    let scores = low.iter().zip(high).zip(actual).filter(|(_, actual)| actual.is_finite());
    mean(scores.map(|((&low, &high), &actual)| one(low, high, actual)))
}

/// The share of actual values within the interval.
#[must_use]
pub fn covered(low: &[f64], high: &[f64], actual: &[f64]) -> f64 {
    let seen = low.iter().zip(high).zip(actual).filter(|(_, actual)| actual.is_finite());
    mean(seen.map(|((low, high), actual)| f64::from(u8::from(low <= actual && actual <= high))))
}

/// Mean quantile loss of one level.
#[must_use]
pub fn pinball(quantile: &[f64], actual: &[f64], level: f64) -> f64 {
    let one = |quantile: f64, actual: f64| {
        let over = actual - quantile;
        if over >= 0.0 { level * over } else { (level - 1.0) * over }
    };
    mean(quantile.iter().zip(actual).filter(|(_, actual)| actual.is_finite()).map(|(&q, &a)| one(q, a)))
}

/// 0 of nothing.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}
