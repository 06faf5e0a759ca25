//! Seasonal ARIMA with automatic orders: one seasonal difference, autoregressive and moving-average terms at the first lags
//! and around one season. Estimated by two regressions (Hannan and Rissanen 1982): a long autoregression gives the
//! innovations, then values are regressed on earlier values and innovations; orders are those of the least BIC. No
//! likelihood is maximised, which takes some hundred times as long for about the same forecasts.

use super::linear::Normal;
use super::{Fault, Fitted, Model, Transform, Window, enough};

/// Most autoregressive and most moving-average terms at the first lags.
const ORDER_MAX: usize = 3;
/// Lags of the long autoregression at the start, beside those around the season.
const LONG_ORDER: usize = 8;
/// Most that a shock of 1 may grow to; beyond it a path runs away.
const SHOCK_MAX: f64 = 3.0;
/// Steps in which a shock must be gone, beside some seasons.
const STABLE_WITHIN: usize = 50;
/// So that the sums can be solved; it selects nothing.
const RIDGE: f64 = 1e-6;

/// ARIMA(p, 0, q)(P, 1, Q) of one season.
#[derive(Clone, Copy, Debug)]
pub struct Arima {
    /// Steps; 1 for none, where first differences are taken.
    pub season: usize,
    /// The scale it is linear on.
    pub transform: Transform,
}

/// Lags of values and of innovations, ascending.
#[derive(Clone, Debug)]
struct Orders {
    values: Vec<usize>,
    innovations: Vec<usize>,
}

struct FittedArima {
    model: Arima,
    orders: Orders,
    coefficients: Vec<f64>,
    mean: f64,
}

impl Arima {
    /// Terms at the first lags, and with `seasonal` at the season and, for their products, just after it.
    fn lags(&self, order: usize, seasonal: bool) -> Vec<usize> {
        let mut lags: Vec<usize> = (1..=order).collect();
        if seasonal && self.season > ORDER_MAX {
            lags.extend((0..=order).map(|lag| self.season + lag));
        }
        lags
    }

    /// All that are tried.
    fn orders(&self) -> Vec<Orders> {
        let seasonal: &[bool] = if self.season > ORDER_MAX { &[false, true] } else { &[false] };
        let mut all = Vec::new();
        for p in 1..=ORDER_MAX {
            for q in 0..=ORDER_MAX {
                for &of_values in seasonal {
                    for &of_innovations in seasonal {
                        let innovations = self.lags(q, of_innovations);
                        all.push(Orders { values: self.lags(p, of_values), innovations });
                    }
                }
            }
        }
        all
    }

    /// Values on the model's scale, and their seasonal differences.
    fn differences(&self, window: Window<'_>) -> Result<(Vec<f64>, Vec<f64>), Fault> {
        let levels = self.transform.apply(window.values)?;
        let differences =
            levels.iter().skip(self.season).zip(&levels).map(|(late, early)| late - early).collect();
        Ok((levels, differences))
    }
}

impl Orders {
    fn reach(&self) -> usize {
        self.values.iter().chain(&self.innovations).copied().max().unwrap_or(0)
    }

    /// The regressors of the value `at`.
    fn row<'r>(
        &'r self,
        at: usize,
        values: &'r [f64],
        innovations: &'r [f64],
    ) -> impl Iterator<Item = f64> + 'r {
        let values = self.values.iter().map(move |lag| values[at - lag]);
        values.chain(self.innovations.iter().map(move |lag| innovations[at - lag]))
    }

    fn expected(&self, coefficients: &[f64], at: usize, values: &[f64], innovations: &[f64]) -> f64 {
        self.row(at, values, innovations).zip(coefficients).map(|(cell, weight)| cell * weight).sum()
    }

    /// Coefficients by the values from `from` on.
    fn regress(&self, from: usize, values: &[f64], innovations: &[f64]) -> Result<Vec<f64>, Fault> {
        let mut normal = Normal::new(self.values.len() + self.innovations.len());
        let mut row = Vec::new();
        for at in from..values.len() {
            row.clear();
            row.extend(self.row(at, values, innovations));
            normal.add(&row, values[at]);
        }
        normal.solve(RIDGE)
    }

    /// Whether a shock dies away: the response to one stays below it, and has mostly gone after `steps`.
    fn is_stable(&self, coefficients: &[f64], steps: usize) -> bool {
        let reach = self.reach();
        let mut values = vec![0.0; reach];
        let mut innovations = vec![0.0; reach];
        values.push(1.0);
        innovations.push(1.0);
        for at in reach + 1..reach + steps {
            values.push(self.expected(coefficients, at, &values, &innovations));
            innovations.push(0.0);
        }
        let largest = |part: &[f64]| part.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        largest(&values) < SHOCK_MAX && largest(&values[values.len() - reach.min(values.len())..]) < 0.5
    }

    /// What each value had beyond what was expected; 0 before the first that can be told.
    fn innovations(&self, coefficients: &[f64], values: &[f64]) -> Vec<f64> {
        let mut innovations = vec![0.0; values.len()];
        for at in self.reach()..values.len() {
            innovations[at] = values[at] - self.expected(coefficients, at, values, &innovations);
        }
        innovations
    }
}

impl Model for Arima {
    fn name(&self) -> String {
        format!("arima{}", self.transform.suffix())
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        enough(window, 5 * self.season.max(1) + 10 * LONG_ORDER)?;
        let (_, mut values) = self.differences(window)?;
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.iter_mut().for_each(|value| *value -= mean);
        let mut long = self.lags(LONG_ORDER, false);
        if self.season > LONG_ORDER {
            long.extend([self.season, self.season + 1, 2 * self.season, 2 * self.season + 1]);
        }
        let long = Orders { values: long, innovations: Vec::new() };
        let coefficients = long.regress(long.reach(), &values, &[])?;
        let innovations = long.innovations(&coefficients, &values);
        // All orders are judged by the same values: those whose regressors are known.
        let from = long.reach() + self.season + ORDER_MAX;
        let count = (values.len() - from.min(values.len())) as f64;
        enough(window, from + self.season + 4 * LONG_ORDER)?;
        let mut best: Option<(f64, Orders, Vec<f64>)> = None;
        for orders in self.orders() {
            let Ok(coefficients) = orders.regress(from, &values, &innovations) else { continue };
            // By the innovations that these orders have themselves: they run away where the model cannot be inverted.
            let squares =
                orders.innovations(&coefficients, &values)[from..].iter().map(|one| one * one).sum::<f64>();
            let error = squares / count.max(1.0);
            if !error.is_finite() || !orders.is_stable(&coefficients, 6 * self.season + STABLE_WITHIN) {
                continue;
            }
            let bic = count * error.max(f64::MIN_POSITIVE).ln() + coefficients.len() as f64 * count.ln();
            if best.as_ref().is_none_or(|(least, ..)| bic < *least) {
                best = Some((bic, orders, coefficients));
            }
        }
        let (_, orders, coefficients) = best.ok_or(Fault::NotFinite)?;
        Ok(Box::new(FittedArima { model: *self, orders, coefficients, mean }))
    }
}

impl Fitted for FittedArima {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        let season = self.model.season;
        enough(window, season + self.orders.reach() + 1)?;
        let (mut levels, mut values) = self.model.differences(window)?;
        values.iter_mut().for_each(|value| *value -= self.mean);
        let mut innovations = self.orders.innovations(&self.coefficients, &values);
        let mut path = Vec::with_capacity(horizon);
        for _ in 0..horizon {
            let value = self.orders.expected(&self.coefficients, values.len(), &values, &innovations);
            values.push(value);
            innovations.push(0.0);
            levels.push(levels[levels.len() - season] + value + self.mean);
            path.push(self.model.transform.invert(levels[levels.len() - 1]));
        }
        if path.iter().all(|value| value.is_finite()) { Ok(path) } else { Err(Fault::NotFinite) }
    }

    fn held_bytes(&self) -> usize {
        let orders = size_of_val(&*self.orders.values) + size_of_val(&*self.orders.innovations);
        orders + size_of_val(&*self.coefficients)
    }
}
