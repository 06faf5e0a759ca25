//! The next value of a short series by ARIMA with automatic order, for the hybrid histogram's tier of names whose gaps
//! are mostly out of the histogram's range (Shahrad et al., "Serverless in the Wild", ATC'20, section 4.2).
//!
//! Differences by the KPSS test of level stationarity (Kwiatkowski et al. 1992, as `auto.arima` does), coefficients by
//! Hannan and Rissanen (1982), p ≤ 2 and q ≤ 1 by the corrected Akaike criterion.

/// So many of the last values are used.
pub const VALUES_MAX: usize = 64;

/// With fewer there is no forecast.
pub const VALUES_MIN: usize = 8;

/// KPSS: above this a series is not stationary around a level (5 %).
const KPSS_CRITICAL: f64 = 0.463;

/// The forecast of the value after `series`; `None` if it is too short or nothing could be fitted.
pub fn next(series: &[f64]) -> Option<f64> {
    let recent = &series[series.len().saturating_sub(VALUES_MAX)..];
    let last = *recent.last().filter(|_| recent.len() >= VALUES_MIN)?;
    if kpss(recent) <= KPSS_CRITICAL {
        return next_stationary(recent);
    }
    let changes: Vec<f64> = recent.windows(2).map(|pair| pair[1] - pair[0]).collect();
    next_stationary(&changes).map(|change| last + change)
}

/// The KPSS statistic with Bartlett weights.
fn kpss(series: &[f64]) -> f64 {
    let n = series.len() as f64;
    let mean = series.iter().sum::<f64>() / n;
    let off: Vec<f64> = series.iter().map(|x| x - mean).collect();
    // 4 (n/100)^¼, rounded down.
    let lags =
        (1..4).rev().find(|lags| 4.0 * (n / 100.0).powf(0.25) >= f64::from(*lags)).unwrap_or(0) as usize;
    let covariance = |lag: usize| off.iter().zip(&off[lag..]).map(|(a, b)| a * b).sum::<f64>() / n;
    let weighted = |lag: usize| 2.0 * (1.0 - lag as f64 / (lags + 1) as f64) * covariance(lag);
    let long_run = covariance(0) + (1..=lags).map(weighted).sum::<f64>();
    let mut sum = 0.0;
    let squares: f64 = off
        .iter()
        .map(|x| {
            sum += x;
            sum * sum
        })
        .sum();
    if long_run > 0.0 { squares / (n * n * long_run) } else { 0.0 }
}

fn next_stationary(series: &[f64]) -> Option<f64> {
    let mean = series.iter().sum::<f64>() / series.len() as f64;
    let series: &[f64] = &series.iter().map(|x| x - mean).collect::<Vec<_>>();
    // Shocks are taken from a longer autoregression, as long as can be fitted.
    let none = vec![0.0; series.len()];
    let long = (0..=3.min(series.len() / 4)).rev().find_map(|order| fit(series, &none, order, 0, 0))?;
    let candidates = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)];
    let fits = candidates.iter().filter_map(|(p, q)| fit(series, &long.shocks, *p, *q, 4));
    fits.min_by(|a, b| a.criterion.total_cmp(&b.criterion))
        .map(|best| mean + best.next)
        .filter(|next| next.is_finite())
}

struct Fit {
    shocks: Vec<f64>,
    criterion: f64,
    next: f64,
}

/// Least squares on `p` values and `q` shocks before, over all rows from `skip` on.
fn fit(series: &[f64], shocks: &[f64], p: usize, q: usize, skip: usize) -> Option<Fit> {
    let row = |at: usize| -> Vec<f64> {
        let values = (1..=p).map(|lag| series[at - lag]);
        let errors = (1..=q).map(|lag| shocks[at - lag]);
        std::iter::once(1.0).chain(values).chain(errors).collect()
    };
    let (first, width) = (skip.max(p).max(q), 1 + p + q);
    if series.len() < first + width + 2 {
        return None;
    }
    let mut normal = vec![vec![0.0; width + 1]; width];
    for (at, value) in series.iter().enumerate().skip(first) {
        let x = row(at);
        for (i, line) in normal.iter_mut().enumerate() {
            for (j, cell) in line.iter_mut().enumerate() {
                *cell += x[i] * x.get(j).unwrap_or(value);
            }
        }
    }
    let weights = solve(normal)?;
    let predicted = |at: usize| row(at).iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>();
    let shocks: Vec<f64> =
        (0..series.len()).map(|at| if at < first { 0.0 } else { series[at] - predicted(at) }).collect();
    let (n, k) = ((series.len() - first) as f64, (width + 1) as f64);
    let variance = shocks.iter().map(|e| e * e).sum::<f64>() / n;
    let correction = if n > k + 1.0 { 2.0 * k * (k + 1.0) / (n - k - 1.0) } else { f64::INFINITY };
    let criterion = n * variance.max(1e-9).ln() + 2.0 * k + correction;
    let values = (1..=p).map(|lag| series[series.len() - lag]);
    let errors = (1..=q).map(|lag| shocks[series.len() - lag]);
    let last: Vec<f64> = std::iter::once(1.0).chain(values).chain(errors).collect();
    let next = last.iter().zip(&weights).map(|(x, w)| x * w).sum();
    Some(Fit { shocks, criterion, next })
}

/// Gauss's elimination of a symmetric system with its right side as the last column; `None` if it is singular.
fn solve(mut system: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let width = system.len();
    let scale = (0..width).map(|i| system[i][i].abs()).fold(0.0, f64::max);
    for column in 0..width {
        let pivot =
            (column..width).max_by(|a, b| system[*a][column].abs().total_cmp(&system[*b][column].abs()))?;
        system.swap(column, pivot);
        if system[column][column].abs() <= 1e-12 * scale.max(1e-300) {
            return None;
        }
        let used = system[column].clone();
        for (index, line) in system.iter_mut().enumerate().filter(|(index, _)| *index != column) {
            debug_assert_ne!(index, column);
            let factor = line[column] / used[column];
            line.iter_mut().zip(&used).for_each(|(cell, used)| *cell -= factor * used);
        }
    }
    Some((0..width).map(|i| system[i][width] / system[i][i]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_a_trend_and_an_alternation_are_continued() {
        let noise = |i: usize| ((i * 7_919) % 13) as f64 / 13.0 - 0.5;
        let level: Vec<f64> = (0..40).map(|i| 300.0 + noise(i)).collect();
        assert!((next(&level).unwrap() - 300.0).abs() < 1.5);
        let trend: Vec<f64> = (0..40).map(|i| 10.0 * i as f64 + noise(i)).collect();
        assert!((next(&trend).unwrap() - 400.0).abs() < 8.0, "{:?}", next(&trend));
        let turns: Vec<f64> = (0..40).map(|i| if i % 2 == 0 { 100.0 } else { 500.0 } + noise(i)).collect();
        assert!((next(&turns).unwrap() - 100.0).abs() < 20.0, "{:?}", next(&turns));
    }

    #[test]
    fn what_cannot_be_fitted_has_no_forecast() {
        assert_eq!(next(&[1.0; 7]), None);
        assert!(next(&[5.0; 30]).is_none_or(|next| (next - 5.0).abs() < 1e-6));
        assert!(next(&[f64::MAX; 30]).is_none_or(f64::is_finite));
    }
}
