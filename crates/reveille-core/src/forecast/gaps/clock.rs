//! A name that is asked for by a clock: its gaps are all nearly alike, and their own distribution says more than what
//! names have in common.
//!
//! Two explanations of a name's gaps compete: the regression of its group, and a log-logistic distribution of its own
//! centre and spread. Each ended gap moves the odds by the likelihood ratio (Jeffreys, "Theory of Probability", 1939),
//! within limits, so that a name that changes its ways is followed within a few gaps. Within a gap the odds move as well:
//! a time that is past without an arrival speaks against the clock.

use super::name::Name;

/// Log odds of the clock for a new name: one in five.
pub(super) const ODDS_AT_FIRST: f32 = -1.4;

/// Log odds are kept within this range.
const ODDS_RANGE: (f32, f32) = (-4.0, 5.0);

/// Of earlier evidence so much stays with each gap.
const KEPT: f32 = 0.9;

/// Gaps are alike if their logarithm deviates by no more than this.
const ALIKE: f32 = 0.2;

/// The least probability that the clock gives to any piece of a gap: it is not sure of itself.
const LEAST: f32 = 1e-4;

/// The regression's hazard of a piece in arrivals per hour, moved towards the clock's as far as the odds say.
pub(super) fn mixed(name: &Name, from_ms: u64, until_ms: u64, per_hour: f64) -> f64 {
    let Some(clock) = Clock::of(name) else { return per_hour };
    let (from, until) = (clock.survival(from_ms), clock.survival(until_ms));
    let prior = 1.0 / (1.0 + (-name.odds).exp());
    let weight = f64::from(prior * from / (prior * from + 1.0 - prior));
    let hours = until_ms.saturating_sub(from_ms).max(1) as f64 / 3_600_000.0;
    let own = f64::from((from / until.max(f32::MIN_POSITIVE)).ln()).clamp(0.0, SURE) / hours;
    weight * own + (1.0 - weight) * per_hour
}

/// The hazard over a piece is taken to be at most this: an arrival that is all but certain.
const SURE: f64 = 8.0;

/// Odds after a gap that ended within the piece from `from_ms` to `until_ms`, which the regression gave `probability`.
pub(super) fn judged(name: &Name, from_ms: u64, until_ms: u64, probability: f32) -> f32 {
    let Some(clock) = Clock::of(name) else { return name.odds };
    let own = (clock.survival(from_ms) - clock.survival(until_ms)).max(LEAST);
    let evidence = (own / probability.max(LEAST)).ln();
    (name.odds * KEPT + evidence).clamp(ODDS_RANGE.0, ODDS_RANGE.1)
}

/// A log-logistic distribution.
struct Clock {
    centre: f32,
    /// The inverse of its scale.
    slope: f32,
}

impl Clock {
    /// `None` before the second gap: one says nothing of how alike they are.
    fn of(name: &Name) -> Option<Self> {
        let (centre, deviation) = name.beat()?;
        if deviation > ALIKE {
            return None;
        }
        // The logistic distribution's scale is √3/π of its standard deviation.
        Some(Self { centre, slope: 1.814 / deviation })
    }

    /// The probability of a gap that is longer.
    fn survival(&self, idle_ms: u64) -> f32 {
        let log_idle = (idle_ms as f32 / 1_000.0).max(1e-3).ln();
        1.0 / (1.0 + (self.slope * (log_idle - self.centre)).exp())
    }
}
