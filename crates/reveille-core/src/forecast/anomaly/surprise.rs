//! How far out a novelty is among all earlier ones.

use serde::{Deserialize, Serialize};

/// Running mean and variance (Welford, 1962) of the last points, older ones with ever less weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Moments {
    mean: f64,
    variance: f64,
}

impl Moments {
    /// Standard deviations of `value` above the mean of the `count` points before it; not below zero.
    fn above(&self, value: f64, count: f64) -> f64 {
        /// Against the rounding errors of a variance that is zero.
        const VARIANCE_LEAST: f64 = 1e-12;
        if self.variance > 0.0 {
            ((value - self.mean) / (self.variance + VARIANCE_LEAST).sqrt()).max(0.0)
        } else if value > self.mean {
            // All were equal until now: what it will be as soon as this one is counted.
            count.sqrt()
        } else {
            0.0
        }
    }

    /// Takes the value in as number `count`.
    fn learn(&mut self, value: f64, count: f64) {
        let off = value - self.mean;
        self.mean += off / count;
        self.variance += (off * (value - self.mean) - self.variance) / count;
    }
}

/// The surprise at a stream of novelties: how far out each is, as it is and by its cube root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Surprise {
    plain: Moments,
    root: Moments,
    /// Points that were counted, at most the memory.
    count: u64,
}

impl Surprise {
    /// In standard deviations, never negative; zero while it is not `warm`.
    pub fn next(&mut self, novelty: f64, warm: bool, memory: u64) -> f64 {
        let root = novelty.cbrt();
        let before = self.count as f64;
        let surprise = 0.5 * (self.plain.above(novelty, before) + self.root.above(root, before));
        self.count = (self.count + 1).min(memory);
        self.plain.learn(novelty, self.count as f64);
        self.root.learn(root, self.count as f64);
        if warm { surprise } else { 0.0 }
    }

    pub fn is_sound(&self) -> bool {
        let sound = |moments: &Moments| moments.mean.is_finite() && moments.variance.is_finite();
        sound(&self.plain) && sound(&self.root)
    }
}
