//! A Poisson regression that learns online: weights with a Gaussian posterior, moved by an extended Kalman filter.

use super::features::{FEATURES, Features, PRIOR};

/// Variance of a weight before anything was seen.
const PRIOR_VARIANCE: f64 = 0.05;

/// Variance of the first one, the level.
const LEVEL_VARIANCE: f64 = 4.0;

/// The logarithm of a rate per hour is kept within this of zero: once in 18 years to 22 per second.
const LOG_RATE_MAX: f64 = 12.0;

/// One observation counts for no more than this much surprise, so that a wild one cannot throw the weights.
const SURPRISE_MAX: f64 = 8.0;

/// Log-linear rates: `rate = exp(weights · features)`, per hour.
#[derive(Debug, Clone)]
pub struct Regression {
    weights: [f64; FEATURES],
    /// Posterior covariance, symmetric, by rows.
    covariance: Vec<[f64; FEATURES]>,
}

impl Default for Regression {
    fn default() -> Self {
        let mut covariance = vec![[0.0; FEATURES]; FEATURES];
        for (index, row) in covariance.iter_mut().enumerate() {
            row[index] = if index == 0 { env("LV", LEVEL_VARIANCE) } else { env("PV", PRIOR_VARIANCE) };
        }
        let mut weights = [0.0; FEATURES];
        for (index, weight) in PRIOR {
            weights[index] = weight;
        }
        Self { weights, covariance }
    }
}

impl Regression {
    /// Expected arrivals per hour.
    pub fn rate(&self, features: &Features) -> f64 {
        let log_rate: f64 = self.weights.iter().zip(features).map(|(weight, x)| weight * f64::from(*x)).sum();
        log_rate.clamp(-LOG_RATE_MAX, LOG_RATE_MAX).exp()
    }

    /// Learns that within `hours` an arrival came (at their end) or did not.
    pub fn learn(&mut self, features: &Features, hours: f64, came: bool) -> f64 {
        let expected = self.rate(features) * hours;
        let inflate = env("INFL", 0.0);
        let surprise = (f64::from(u8::from(came)) - expected).max(-SURPRISE_MAX);
        let x: [f64; FEATURES] = features.map(f64::from);
        let mut gain = [0.0; FEATURES];
        for (gain, row) in gain.iter_mut().zip(&self.covariance) {
            *gain = row.iter().zip(&x).map(|(c, x)| c * x).sum();
        }
        let spread: f64 = gain.iter().zip(&x).map(|(g, x)| g * x).sum();
        let shrink = 1.0 / (1.0 + expected * spread);
        for (weight, gain) in self.weights.iter_mut().zip(&gain) {
            *weight += gain * shrink * surprise;
        }
        if expected * spread > 1e-9 {
            let factor = expected * shrink;
            for (row, own) in self.covariance.iter_mut().zip(&gain) {
                let own = own * factor;
                row.iter_mut().zip(&gain).for_each(|(c, other)| *c -= own * other);
            }
            if came && inflate > 0.0 {
                for (i, row) in self.covariance.iter_mut().enumerate() {
                    if row[i] < env("CAP", 0.05) { row.iter_mut().for_each(|c| *c *= 1.0 + inflate); }
                }
            }
        }
        expected
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.covariance.len() * size_of::<[f64; FEATURES]>()
    }
}

#[allow(missing_docs)]
pub fn env(name: &'static str, default: f64) -> f64 {
    use std::cell::RefCell; use std::collections::BTreeMap;
    thread_local! { static C: RefCell<BTreeMap<&'static str, f64>> = const { RefCell::new(BTreeMap::new()) }; }
    C.with(|c| *c.borrow_mut().entry(name).or_insert_with(|| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)))
}
