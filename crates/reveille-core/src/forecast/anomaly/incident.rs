//! One incident is reported once, however many points it has.

use serde::{Deserialize, Serialize};

/// The share of a series' length for which an incident holds back lesser surprises. A longer history has seen more, and
/// its incidents are told apart more coarsely.
const HOLD_SHARE: f64 = 0.1;
/// The least and the greatest hold, in points.
const HOLD_POINTS: (f64, f64) = (20.0, 1_000.0);

/// The last report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Incident {
    /// Its surprise.
    peak: f64,
    /// Its point; none before the first.
    point: Option<u64>,
}

impl Incident {
    /// Whether the surprise at point number `point` is to be reported: it is greater than the last that was, or that is
    /// long ago.
    pub fn is_news(&mut self, surprise: f64, point: u64) -> bool {
        let hold = (HOLD_SHARE * point as f64).clamp(HOLD_POINTS.0, HOLD_POINTS.1);
        let over = self.point.is_none_or(|last| point.saturating_sub(last) as f64 > hold);
        let news = surprise > self.peak || over;
        if news {
            *self = Self { peak: surprise, point: Some(point) };
        }
        news
    }
}
