//! A Poisson regression that learns online: weights with a Gaussian posterior, moved by an extended Kalman filter.

use super::features::{FEATURES, Features, PRIOR};
use crate::forecast::stored::{Number, Reader};

/// Variance of a weight before anything was seen.
const PRIOR_VARIANCE: f64 = 0.005;

/// Variance of the first one, the level.
const LEVEL_VARIANCE: f64 = 4.0;

/// Variance by which a weight drifts with each arrival.
const DRIFT_VARIANCE: f64 = 5e-6;

/// A weight that is less sure than by this variance drifts no further.
const DRIFT_UP_TO: f64 = 0.05;

/// The logarithm of a rate per hour is kept within this of zero: once in 18 years to 22 per second.
const LOG_RATE_MAX: f64 = 12.0;

/// One observation counts for no more than this much surprise, so that a wild one cannot throw the weights.
const SURPRISE_MAX: f64 = 8.0;

#[expect(clippy::cast_possible_truncation, reason = "an estimate needs no more digits")]
const fn rounded(expected: f64) -> f32 {
    expected as f32
}

const fn prior_variance(index: usize) -> f64 {
    if index == 0 { LEVEL_VARIANCE } else { PRIOR_VARIANCE }
}

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
            row[index] = prior_variance(index);
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

    /// Learns that within `hours` an arrival came (at their end) or did not, and returns how many were expected.
    ///
    /// Costs two passes over the covariance: about 20 µs.
    pub fn learn(&mut self, features: &Features, hours: f64, came: bool) -> f32 {
        let expected = self.rate(features) * hours;
        let surprise = (f64::from(u8::from(came)) - expected).max(-SURPRISE_MAX);
        let x: [f64; FEATURES] = features.map(f64::from);
        let mut gain = [0.0; FEATURES];
        for (gain, row) in gain.iter_mut().zip(&self.covariance) {
            *gain = row.iter().zip(&x).map(|(c, x)| c * x).sum();
        }
        let spread: f64 = gain.iter().zip(&x).map(|(g, x)| g * x).sum();
        if !(spread.is_finite() && spread >= 0.0) {
            // Rounding or a wild input has spoiled what was learned: better to begin again than to go on from there.
            *self = Self::default();
            return rounded(expected);
        }
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
        }
        if came {
            self.drift();
        }
        rounded(expected)
    }

    /// What was learned grows old: weights may have moved since, by a random walk, up to a limit.
    fn drift(&mut self) {
        for (index, row) in self.covariance.iter_mut().enumerate() {
            if row[index] < DRIFT_UP_TO {
                row[index] += DRIFT_VARIANCE;
            }
        }
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.weights.put(out);
        self.covariance.iter().for_each(|row| row.put(out));
    }

    pub(super) fn get(from: &mut Reader<'_>) -> Option<Self> {
        let weights = Number::get(from)?;
        let covariance = (0..FEATURES).map(|_| Number::get(from)).collect::<Option<_>>()?;
        Some(Self { weights, covariance })
    }

    pub(super) fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.covariance.len() * size_of::<[f64; FEATURES]>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Features with a level and one more.
    fn features(x: f32) -> Features {
        let mut features = [0.0; FEATURES];
        (features[0], features[20]) = (1.0, x);
        features
    }

    /// Arrivals of a known rate, evenly spread, as pieces of `hours`.
    fn teach(regression: &mut Regression, x: f32, per_hour: f64, hours: f64, pieces: u32) {
        let mut due = 0.5;
        for _ in 0..pieces {
            due += per_hour * hours;
            regression.learn(&features(x), hours, due >= 1.0);
            due -= due.floor();
        }
    }

    #[test]
    fn a_rate_and_what_it_depends_on_are_learned_and_followed_when_they_change() {
        let mut regression = Regression::default();
        for _ in 0..20 {
            teach(&mut regression, 1.0, 4.0, 0.2, 25);
            teach(&mut regression, -1.0, 1.0, 0.2, 25);
        }
        let rates = [1.0, -1.0].map(|x| regression.rate(&features(x)));
        assert!((2.5..5.5).contains(&rates[0]) && (0.6..1.7).contains(&rates[1]), "{rates:?}");
        teach(&mut regression, 1.0, 0.2, 1.0, 1_000);
        let changed = regression.rate(&features(1.0));
        assert!((0.1..1.0).contains(&changed), "{changed}");
    }

    #[test]
    fn nothing_that_is_told_makes_a_rate_other_than_a_number() {
        let mut regression = Regression::default();
        for x in [0.0, 1e9, -1e30, f32::MAX, f32::NAN, f32::INFINITY] {
            for hours in [0.0, 1e-9, 1e9, f64::MAX] {
                for came in [true, false] {
                    regression.learn(&features(x), hours, came);
                    let rate = regression.rate(&features(1.0));
                    assert!(rate.is_finite() && rate > 0.0, "{x} {hours} {came}: {rate}");
                }
            }
        }
    }
}
