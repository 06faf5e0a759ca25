//! One quantity of a profile: its distribution of late, and how often its intervals held what came next.
//!
//! Each value is judged by the intervals of those before it, and counted afterwards, so that coverage is measured on values
//! that the intervals have not seen. An interval goes between two ranks (of *n* values the next one is below the *k*-th with a
//! probability of k ÷ (n + 1) if they are exchangeable: conformal prediction), and where behaviour drifts its level is moved until it
//! holds as often as it says (adaptive conformal inference; Gibbs and Candès, NeurIPS 2021). Values at the very end of an interval,
//! as many counts are, are held in part: by as much of them as the level needs (as in Czado, Gneiting and Held,
//! "Predictive model assessment for count data", Biometrics 65, 2009).

use serde::{Deserialize, Serialize};

use super::sketch::{Bin, Cut, Sketch, bin_of};

/// Nominal coverage of the intervals.
pub const LEVELS: [f64; 2] = [0.8, 0.95];
/// Values from which there are intervals: with fewer the wider one would have no end.
pub const VALUES_MIN: u64 = 40;
/// How fast a level moves when intervals are made anew: by this share, for each value that was judged since, of how much the last
/// ones missed beside what they should, and by half of it at most, since a level that goes further swings.
const ADAPTION: (f64, f64) = (0.005, 0.5);
/// An interval leaves out at least and at most so much, in terms of what it should.
const MISSED: (f64, f64) = (0.02, 3.0);
/// Intervals are made anew once a twentieth more was seen, and after so many values at least.
const RENEWED_AFTER: (u64, u64) = (20, 8);

/// The distribution of one quantity.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    pub(super) current: Sketch,
    pub(super) before: Sketch,
    pub(super) levels: [Level; LEVELS.len()],
    /// Values after which the intervals are made anew.
    pub(super) renewed_at: u64,
    pub(super) seen: u64,
}

/// One interval, and how it did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Level {
    pub nominal: f64,
    /// The share that it leaves out now.
    pub missed: f64,
    pub ends: Option<(Cut, Cut)>,
    pub held: f64,
    pub judged: u64,
    /// The same of the intervals that there are now.
    pub lately: (f64, u64),
}

/// A distribution in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Values that it rests on.
    pub values: u64,
    /// Their mean.
    pub mean: f64,
    /// Half of them are not above; `None` without values.
    pub p50: Option<f64>,
    /// 95 % of them are not above.
    pub p95: Option<f64>,
    /// 99 % of them are not above.
    pub p99: Option<f64>,
    /// Where the next one is to be expected; empty while there are too few values.
    pub intervals: Vec<Interval>,
}

/// Where the next value is to be expected.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// How often it should hold it.
    pub nominal: f64,
    /// From here.
    pub low: f64,
    /// To there.
    pub high: f64,
    /// How often intervals held the value that came next so far; `None` if none was judged.
    pub coverage: Option<f64>,
    /// Values that this was measured on.
    pub judged: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        let level = |nominal| Level {
            nominal,
            missed: 1.0 - nominal,
            ends: None,
            held: 0.0,
            judged: 0,
            lately: (0.0, 0),
        };
        Self {
            current: Sketch::default(),
            before: Sketch::default(),
            levels: LEVELS.map(level),
            renewed_at: VALUES_MIN,
            seen: 0,
        }
    }
}

impl Distribution {
    /// Judges the intervals by the value, and counts it.
    pub fn take(&mut self, value: f64) {
        let bin = bin_of(value);
        self.levels.iter_mut().for_each(|level| level.judge(bin));
        self.current.add(value, 1);
        self.seen += 1;
        if self.seen >= self.renewed_at {
            self.renew();
        }
    }

    /// Begins a new epoch: what is older than the last one is forgotten.
    pub fn turn(&mut self) {
        self.before = std::mem::take(&mut self.current);
        self.renew();
    }

    /// Counts what the other one has seen, without judging.
    pub fn merge(&mut self, other: &Self) {
        self.current.merge(&other.current);
        self.before.merge(&other.before);
        self.seen += other.current.count() + other.before.count();
        if self.seen >= self.renewed_at {
            self.renew();
        }
    }

    /// All that is remembered.
    #[must_use]
    pub fn sketch(&self) -> Sketch {
        let mut all = self.before.clone();
        all.merge(&self.current);
        all
    }

    /// In numbers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let all = self.sketch();
        Summary {
            values: all.count(),
            mean: all.mean(),
            p50: all.quantile(0.5),
            p95: all.quantile(0.95),
            p99: all.quantile(0.99),
            intervals: self.levels.iter().filter_map(Level::interval).collect(),
        }
    }

    /// Whether nothing of this epoch and the one before is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.current.count() + self.before.count() == 0
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.current.allocated_bytes() + self.before.allocated_bytes()
    }

    fn renew(&mut self) {
        let (share, least) = RENEWED_AFTER;
        self.renewed_at = self.seen + ((self.current.count() + self.before.count()) / share).max(least);
        let all = self.sketch();
        self.levels.iter_mut().for_each(|level| level.renew(&all));
    }
}

impl Level {
    fn judge(&mut self, bin: Bin) {
        let Some((low, high)) = self.ends else { return };
        let held = held(bin, low, high);
        self.judged += 1;
        self.held += held;
        self.lately = (self.lately.0 + held, self.lately.1 + 1);
    }

    fn renew(&mut self, all: &Sketch) {
        let (held, judged) = std::mem::take(&mut self.lately);
        if judged > 0 {
            let (judged, should) = (judged as f64, 1.0 - self.nominal);
            let gain = (ADAPTION.0 * judged).min(ADAPTION.1);
            let missed = self.missed + gain * (should - (1.0 - held / judged));
            self.missed = missed.clamp(MISSED.0 * should, (MISSED.1 * should).min(0.9));
        }
        let next = (all.count() + 1) as f64;
        self.ends = (all.count() >= VALUES_MIN).then(|| {
            let (low, high) = (0.5 * self.missed, 1.0 - 0.5 * self.missed);
            (all.cut(low * next), all.cut(high * next))
        });
    }

    fn interval(&self) -> Option<Interval> {
        let (low, high) = self.ends?;
        Some(Interval {
            nominal: self.nominal,
            low: low.value(),
            high: high.value(),
            coverage: (self.judged > 0).then(|| self.held / self.judged as f64),
            judged: self.judged,
        })
    }
}

/// Which part of the values in this bin lies between the two cuts.
fn held(bin: Bin, low: Cut, high: Cut) -> f64 {
    let above_low = if bin == low.bin { low.above } else { f64::from(u8::from(bin > low.bin)) };
    let above_high = if bin == high.bin { high.above } else { f64::from(u8::from(bin > high.bin)) };
    (above_low - above_high).max(0.0)
}
