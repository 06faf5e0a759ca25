//! Deviations as events, each with its evidence: what was observed and expected, and since when.

use serde::{Deserialize, Serialize};

use super::Settings;
use super::baseline::Usual;
use crate::model::Timestamp;

/// A score from which on the point is an alarm: its surprise reaches the threshold.
const ALARM_SCORE: f64 = 0.5;
/// The weight of the newest point in what may become the new level.
const LEVEL_WEIGHT: f64 = 0.25;

/// In which way it is out of the ordinary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Above what was expected, by the threshold or more.
    Spike,
    /// Below what was expected, by the threshold or more.
    Drop,
    /// Beyond the threshold on one side for so long that it is the new level; the baseline starts anew from there.
    LevelShift,
    /// Within the threshold, but not like anything that was seen at this time of day, or at all.
    Unusual,
}

/// Something out of the ordinary, from its first point to its last. What is kept of the observation is its point of
/// the largest deviation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// In which way.
    pub kind: Kind,
    /// Its first point.
    pub since: Timestamp,
    /// The last point of it so far.
    pub until: Timestamp,
    /// Points of it so far, those within the threshold left out.
    pub points: u32,
    /// What was observed, in the unit of the series.
    pub observed: f64,
    /// What the baseline expected there.
    pub expected: f64,
    /// The standard deviation of the baseline there.
    pub spread: f64,
    /// (Observed − expected) ÷ spread.
    pub deviation_sd: f64,
    /// The highest score of its points, in [0, 1]; from 0.5 on it is an alarm.
    pub score: f64,
}

impl Event {
    /// Whether it is surprising also beside everything that was seen before, and not only beside the baseline.
    pub fn is_alarm(&self) -> bool {
        self.score >= ALARM_SCORE
    }

    fn began(point: &Point, beyond: bool) -> Self {
        Self {
            kind: kind_of(point, beyond),
            since: point.at,
            until: point.at,
            points: 1,
            observed: point.value,
            expected: point.usual.expected,
            spread: point.usual.spread,
            deviation_sd: point.deviation_sd,
            score: point.score,
        }
    }

    fn take_in(&mut self, point: &Point, beyond: bool) {
        self.until = point.at;
        self.points = self.points.saturating_add(1);
        self.score = self.score.max(point.score);
        if point.deviation_sd.abs() > self.deviation_sd.abs() {
            self.kind = kind_of(point, beyond);
            self.observed = point.value;
            self.expected = point.usual.expected;
            self.spread = point.usual.spread;
            self.deviation_sd = point.deviation_sd;
        }
    }
}

fn kind_of(point: &Point, beyond: bool) -> Kind {
    match (beyond, point.deviation_sd > 0.0) {
        (true, true) => Kind::Spike,
        (true, false) => Kind::Drop,
        (false, _) => Kind::Unusual,
    }
}

/// A point as the tracker sees it.
pub(super) struct Point {
    pub at: Timestamp,
    pub value: f64,
    pub usual: Usual,
    pub deviation_sd: f64,
    pub score: f64,
}

/// What a point has changed.
#[derive(Default)]
pub(super) struct Step {
    /// The event that the point belongs to.
    pub event: Option<Event>,
    /// The event that is over.
    pub ended: Option<Event>,
    /// Where the level is from now on.
    pub new_level: Option<f64>,
}

/// The event under way, and what it may become.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Tracker {
    open: Option<Event>,
    /// Points within the threshold since its last.
    calm: u32,
    /// Points in a row beyond the threshold on one side.
    run: u32,
    /// On which: above.
    above: bool,
    /// About where the last of them were.
    level: f64,
}

impl Tracker {
    pub fn open(&self) -> Option<Event> {
        self.open
    }

    /// Takes a point in.
    pub fn step(&mut self, point: &Point, settings: &Settings) -> Step {
        let beyond = point.deviation_sd.abs() >= settings.threshold_sd;
        self.note_side(point, beyond);
        if !beyond && point.score < ALARM_SCORE {
            let calm = self.calm.saturating_add(1);
            self.calm = calm;
            let over = self.open.is_some() && calm >= settings.calm_points;
            return Step { ended: if over { self.open.take() } else { None }, ..Step::default() };
        }
        self.calm = 0;
        let event = match &mut self.open {
            Some(event) => {
                event.take_in(point, beyond);
                event
            }
            none => none.insert(Event::began(point, beyond)),
        };
        if self.run < settings.shift_points {
            return Step { event: Some(*event), ..Step::default() };
        }
        event.kind = Kind::LevelShift;
        let shift = *event;
        let new_level = Some(self.level);
        *self = Self::default();
        Step { event: Some(shift), ended: Some(shift), new_level }
    }

    fn note_side(&mut self, point: &Point, beyond: bool) {
        let above = point.deviation_sd > 0.0;
        if !beyond {
            self.run = 0;
        } else if self.run > 0 && self.above == above {
            self.run = self.run.saturating_add(1);
            self.level += LEVEL_WEIGHT * (point.value - self.level);
        } else {
            (self.run, self.above, self.level) = (1, above, point.value);
        }
    }
}
