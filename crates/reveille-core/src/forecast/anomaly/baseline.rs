//! What is usual now: a robust level, seasonal where that predicts better, and a robust spread around it.
//!
//! Three predictors learn side by side: an exponentially weighted mean, a mean per hour of the day, and one per hour of
//! the week. The one whose mean absolute error was least lately is believed. All learn from values clipped at
//! [`CLIP_SD`] standard deviations (Huber, 1964), so that an outlier moves them little.

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

const HOUR_MS: u64 = 3_600_000;
const HOURS_A_DAY: usize = 24;
const HOURS_A_WEEK: usize = 168;
/// A season is believed in an hour only after so many cycles of it.
const CYCLES_MIN: u8 = 2;
/// The mean of an hour is over about so many cycles.
const CYCLES_MAX: u8 = 8;
/// The level is a mean over about so many points.
const LEVEL_POINTS: f64 = 64.0;
/// An error is a mean over about so many points.
const ERROR_POINTS: f64 = 512.0;
/// A predictor is believed only after so many predictions.
const PREDICTIONS_MIN: f64 = 48.0;
/// Standard deviations at which what is learned is clipped.
const CLIP_SD: f64 = 3.0;
/// Standard deviations at which an error is clipped: not so low that a spread that has grown is never believed.
const ERROR_CLIP_SD: f64 = 8.0;
/// The standard deviation of a Gaussian by its mean absolute deviation: √(π/2).
const SD_BY_MEAN_DEVIATION: f64 = 1.253_314_137_315_500_3;

/// What is expected of a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usual {
    pub expected: f64,
    /// Robust standard deviation, never below the least.
    pub spread: f64,
    /// It is by the hour.
    pub seasonal: bool,
}

/// A predictor's mean absolute error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Error {
    mean: f64,
    count: f64,
}

impl Error {
    fn learn(&mut self, error: f64) {
        self.count = (self.count + 1.0).min(ERROR_POINTS);
        self.mean += (error - self.mean) / self.count;
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Baseline {
    level: f64,
    points: f64,
    day: Season,
    week: Season,
    /// Of the level, the day and the week.
    errors: [Error; 3],
}

impl Baseline {
    pub fn new() -> Self {
        let (day, week) = (Season::new(HOURS_A_DAY), Season::new(HOURS_A_WEEK));
        Self { level: 0.0, points: 0.0, day, week, errors: [Error::default(); 3] }
    }

    fn predictions(&self, at: Timestamp) -> [Option<f64>; 3] {
        let level = (self.points > 0.0).then_some(self.level);
        [level, self.day.expected(at), self.week.expected(at)]
    }

    /// What the best predictor expects at that time.
    pub fn usual(&self, at: Timestamp, least_spread: f64) -> Usual {
        let (mut expected, mut error, mut seasonal) = (self.level, self.errors[0].mean, false);
        for (prediction, its) in self.predictions(at).into_iter().zip(&self.errors).skip(1) {
            if let Some(prediction) = prediction.filter(|_| its.count >= PREDICTIONS_MIN)
                && its.mean < error
            {
                (expected, error, seasonal) = (prediction, its.mean, true);
            }
        }
        Usual { expected, spread: (SD_BY_MEAN_DEVIATION * error).max(least_spread), seasonal }
    }

    /// Takes in what was observed.
    pub fn learn(&mut self, at: Timestamp, value: f64, least_spread: f64) {
        let mut clipped = [value; 3];
        let predictions = self.predictions(at);
        for ((prediction, error), clipped) in predictions.into_iter().zip(&mut self.errors).zip(&mut clipped)
        {
            let Some(prediction) = prediction else { continue };
            // Each by its own error, so that one that is wrong is soon put right.
            let spread = (SD_BY_MEAN_DEVIATION * error.mean).max(least_spread);
            // Until something is known of the spread, nothing is an outlier.
            let clip = |sd: f64| if error.count < PREDICTIONS_MIN { f64::MAX } else { sd * spread };
            let (off, most) = (value - prediction, clip(CLIP_SD));
            *clipped = prediction + off.clamp(-most, most);
            error.learn(off.abs().min(clip(ERROR_CLIP_SD)));
        }
        self.points = (self.points + 1.0).min(LEVEL_POINTS);
        self.level += (clipped[0] - self.level) / self.points;
        self.day.learn(at, clipped[1]);
        self.week.learn(at, clipped[2]);
    }

    /// The level is `level` from now on. A season by which `usual` was is doubted: whether the other hours have changed
    /// as well cannot be known yet, so it has to predict better than the level again.
    pub fn start_anew(&mut self, level: f64, usual: Usual) {
        self.level = level;
        if usual.seasonal {
            self.errors[1..].fill(Error::default());
        }
    }

    pub fn heap_bytes(&self) -> usize {
        (self.day.hours.capacity() + self.week.hours.capacity()) * size_of::<Hour>()
    }

    pub fn is_sound(&self) -> bool {
        self.day.is_sound(HOURS_A_DAY)
            && self.week.is_sound(HOURS_A_WEEK)
            && [self.level, self.points].iter().all(|value| value.is_finite())
            && self.errors.iter().all(|error| error.mean.is_finite() && error.count.is_finite())
    }
}

/// The mean at one hour of a season, over the last cycles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Hour {
    mean: f32,
    /// Cycles that it was seen in, at most [`CYCLES_MAX`].
    cycles: u8,
}

/// Means by hour of a cycle. An hour's points become one value of it when the hour is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Season {
    hours: Vec<Hour>,
    /// The hour that is going on, since the epoch, and what was seen in it.
    current: u64,
    sum: f64,
    count: f64,
}

impl Season {
    fn new(hours: usize) -> Self {
        Self { hours: vec![Hour::default(); hours], current: 0, sum: 0.0, count: 0.0 }
    }

    fn index(&self, hour: u64) -> usize {
        usize::try_from(hour % (self.hours.len() as u64).max(1)).unwrap_or(0)
    }

    fn expected(&self, at: Timestamp) -> Option<f64> {
        let hour = self.hours.get(self.index(at.as_ms() / HOUR_MS))?;
        (hour.cycles >= CYCLES_MIN).then_some(f64::from(hour.mean))
    }

    fn learn(&mut self, at: Timestamp, value: f64) {
        let hour = at.as_ms() / HOUR_MS;
        if hour != self.current && self.count > 0.0 {
            let index = self.index(self.current);
            let mean = self.sum / self.count;
            if let Some(hour) = self.hours.get_mut(index) {
                hour.cycles = (hour.cycles + 1).min(CYCLES_MAX);
                let old = f64::from(hour.mean);
                hour.mean = super::memory::single(old + (mean - old) / f64::from(hour.cycles));
            }
            (self.sum, self.count) = (0.0, 0.0);
        }
        self.current = hour;
        self.sum += value;
        self.count += 1.0;
    }

    fn is_sound(&self, hours: usize) -> bool {
        self.hours.len() == hours
            && self.hours.iter().all(|hour| hour.mean.is_finite())
            && self.sum.is_finite()
            && self.count.is_finite()
    }
}
