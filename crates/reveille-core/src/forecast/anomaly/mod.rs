//! What is out of the ordinary in one name's regular series, one point after another, with nothing looked ahead.
//!
//! ```text
//!                 ┌─► baseline ──► expected, spread ──► deviation ──┐
//! (time, value) ──┤                                                 ├─► event (spike, drop, level shift)
//!                 └─► memories ──► novelty ──► surprise ─► incident ┴─► score in [0, 1]
//! ```
//!
//! - The *baseline* (`baseline.rs`) is what is usual now: a robust level, by hour of the day or of the week where that
//!   predicts better, and a robust standard deviation. It is the evidence: observed, expected, how many standard
//!   deviations between them, since when.
//! - The *memories* (`memory.rs`) are what has been seen: all values, and the trailing mean by hour of the day. The
//!   distance to the nearest remembered one is the *novelty*, as with nearest-neighbour detectors (Burnaev and
//!   Ishimtsev, 2016) and the left discords of a matrix profile, here on a sorted code book of fixed size.
//! - The *surprise* (`surprise.rs`) is how many standard deviations of all earlier novelty that is. Series differ in how
//!   heavy their tails are, so it is averaged over the novelty itself and its cube root, which makes skewed positive
//!   quantities nearly Gaussian (Wilson and Hilferty, 1931).
//! - An *incident* (`incident.rs`) is reported once: while one is under way only a greater surprise scores.
//!
//! One threshold, in standard deviations, serves both: an event begins where the deviation or the surprise reaches it,
//! and a score of 0.5 is a surprise of just that. What a flood is, and what a crowd, is told by `flood.rs`.
//!
//! **Cost**: [`STATE_BYTES_MAX`] per name; after [`Detector::new`] nothing is allocated.

pub mod flood;

mod baseline;
mod event;
mod incident;
mod memory;
mod settings;
mod surprise;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;
use baseline::Baseline;
use event::Tracker;
use incident::Incident;
use memory::{Memory, TrailingMemory};
use surprise::Surprise;

pub use event::{Event, Kind};
pub use settings::{Settings, SettingsFault};

/// At most this much is held per name, counting what is allocated: a test holds it true.
pub const STATE_BYTES_MAX: usize = 10 * 1024;

/// Values that are told apart at most.
const VALUES_MAX: usize = 96;
/// Until so many points were seen, nothing is novel.
const WARM_UP_POINTS: u64 = 50;
/// The share of the surprise at a trailing mean, beside that at a value.
const TRAILING_WEIGHT: f64 = 0.3;

/// Watches one series. Serialisable, so that a quiet name's detector can lie on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "State")]
pub struct Detector(State);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    settings: Settings,
    /// Points taken so far.
    points: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    values: Memory,
    value_surprise: Surprise,
    trailing: TrailingMemory,
    trailing_surprise: Surprise,
    incident: Incident,
    baseline: Baseline,
    tracker: Tracker,
}

/// What is said of one point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// In [0, 1]: 0.5 is a surprise of the threshold; 0 while an incident is under way that surprised as much.
    pub score: f64,
    /// How novel the point is, in standard deviations of earlier novelty; never negative.
    pub surprise: f64,
    /// What the baseline expected, in the unit of the series.
    pub expected: f64,
    /// The robust standard deviation around it, in the unit of the series; never below `Settings::least_spread`.
    pub spread: f64,
    /// (Observed − expected) ÷ spread; zero until the baseline is known.
    pub deviation_sd: f64,
    /// The event that this point belongs to, as far as it has come.
    pub event: Option<Event>,
    /// The event that is over since this point.
    pub ended: Option<Event>,
}

/// Why a point was not taken. The detector is as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PointError {
    /// Not a number, infinite, or too large to be kept in single precision.
    #[error("the value is not a finite number below 3e38")]
    NotFinite,
    /// Points come in the order of time.
    #[error("the point at {at_ms} ms is not later than the one before, at {last_ms} ms")]
    NotLater {
        /// When it was.
        at_ms: u64,
        /// When the last one was.
        last_ms: u64,
    },
}

/// A stored detector that cannot be one.
#[derive(Debug, thiserror::Error)]
#[error("the stored detector is damaged: {0}")]
pub struct Damaged(&'static str);

impl Detector {
    /// A detector that has seen nothing. All that it will ever hold is allocated here.
    ///
    /// # Errors
    /// Every setting that is out of its range.
    pub fn new(settings: Settings) -> Result<Self, Vec<SettingsFault>> {
        let faults = settings.faults();
        if !faults.is_empty() {
            return Err(faults);
        }
        let state = State {
            points: 0,
            first: None,
            last: None,
            values: Memory::new(VALUES_MAX),
            value_surprise: Surprise::default(),
            trailing: TrailingMemory::new(settings.trailing_points),
            trailing_surprise: Surprise::default(),
            incident: Incident::default(),
            baseline: Baseline::new(),
            tracker: Tracker::default(),
            settings,
        };
        Ok(Self(state))
    }

    /// Takes the next point in and says what is to be said of it, from what came before it alone. Missing points are
    /// left out, not filled in; what is regular is only how long a point lasts.
    ///
    /// # Errors
    /// A value that is no number, or a time that is not later than the last; nothing has changed then.
    pub fn observe(&mut self, at: Timestamp, value: f64) -> Result<Verdict, PointError> {
        self.0.observe(at, value)
    }

    /// What is usual at that time: what is expected, and the robust standard deviation around it, in the unit of the series.
    /// `None` as long as too few points were seen to know.
    pub fn usual(&self, at: Timestamp) -> Option<(f64, f64)> {
        let state = &self.0;
        (state.points >= WARM_UP_POINTS).then(|| {
            let usual = state.baseline.usual(at, state.settings.least_spread);
            (usual.expected, usual.spread)
        })
    }

    /// The settings that it was made with.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Changes the threshold, from the next point on.
    ///
    /// # Errors
    /// The setting's fault, where it is out of its range.
    pub fn set_threshold_sd(&mut self, threshold_sd: f64) -> Result<(), Vec<SettingsFault>> {
        let settings = Settings { threshold_sd, ..self.0.settings };
        let faults = settings.faults();
        if faults.is_empty() {
            self.0.settings = settings;
            Ok(())
        } else {
            Err(faults)
        }
    }

    /// The last point that was taken.
    pub fn last(&self) -> Option<Timestamp> {
        self.0.last
    }

    /// The event that is under way.
    pub fn event(&self) -> Option<Event> {
        self.0.tracker.open()
    }

    /// Bytes that this detector holds, counting what it has allocated.
    pub fn state_bytes(&self) -> usize {
        let state = &self.0;
        size_of::<Self>()
            + state.values.heap_bytes()
            + state.trailing.heap_bytes()
            + state.baseline.heap_bytes()
    }
}

impl State {
    fn observe(&mut self, at: Timestamp, value: f64) -> Result<Verdict, PointError> {
        // What cannot be remembered in single precision is not compared in double.
        let single = memory::single(value);
        if !single.is_finite() {
            return Err(PointError::NotFinite);
        }
        if let Some(last) = self.last.filter(|last| at <= *last) {
            return Err(PointError::NotLater { at_ms: at.as_ms(), last_ms: last.as_ms() });
        }
        let first = *self.first.get_or_insert(at);
        self.last = Some(at);

        let surprise = self.surprise(at, first, single);
        let mut score = 0.0;
        if self.incident.is_news(surprise, self.points) {
            score = surprise / (surprise + self.settings.threshold_sd);
        }
        let usual = self.baseline.usual(at, self.settings.least_spread);
        let deviation_sd =
            if self.points < WARM_UP_POINTS { 0.0 } else { (value - usual.expected) / usual.spread };
        let point = event::Point { at, value, usual, deviation_sd, score };
        let step = self.tracker.step(&point, &self.settings);
        match step.new_level {
            Some(level) => self.baseline.start_anew(level, usual),
            None => self.baseline.learn(at, value, self.settings.least_spread),
        }
        self.points += 1;
        let (expected, spread) = (usual.expected, usual.spread);
        Ok(Verdict { score, surprise, expected, spread, deviation_sd, event: step.event, ended: step.ended })
    }

    /// How novel the point is beside what is remembered, which it then becomes a part of.
    fn surprise(&mut self, at: Timestamp, first: Timestamp, value: f32) -> f64 {
        let warm = self.points >= WARM_UP_POINTS;
        let forget = u64::from(self.settings.memory_points);
        // What differs by no more than the series' own grain is not novel.
        let beyond_grain = |distance: f64| (distance - self.settings.least_spread).max(0.0);
        let novelty = if warm { beyond_grain(self.values.distance(value)) } else { 0.0 };
        let at_value = self.value_surprise.next(novelty, warm, forget);
        self.values.remember(value, self.points, forget);

        let day_over = at.ms_since(first) >= memory::DAY_MS;
        let novelty = beyond_grain(self.trailing.next(at, value, self.points, forget));
        let novelty = if warm && day_over { novelty } else { 0.0 };
        let at_mean = self.trailing_surprise.next(novelty, warm, forget);
        at_value + TRAILING_WEIGHT * at_mean
    }
}

impl TryFrom<State> for Detector {
    type Error = Damaged;

    fn try_from(state: State) -> Result<Self, Damaged> {
        let checks = [
            (state.settings.faults().is_empty(), "a setting is out of its range"),
            (state.values.is_sound(VALUES_MAX), "the memory of values is not sorted or too large"),
            (
                state.trailing.is_sound(state.settings.trailing_points),
                "the memory of trailing means is not of its size",
            ),
            (state.baseline.is_sound(), "the baseline is not of its size"),
            (
                state.value_surprise.is_sound() && state.trailing_surprise.is_sound(),
                "the surprise is no number",
            ),
        ];
        match checks.into_iter().find(|(sound, _)| !sound) {
            Some((_, what)) => Err(Damaged(what)),
            None => Ok(Self(state)),
        }
    }
}
