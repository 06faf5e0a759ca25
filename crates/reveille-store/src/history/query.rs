//! Ranges of a series: what is in memory and in every file, added up, in buckets as long as were asked for.

use std::sync::{Arc, PoisonError};

use super::Damage;
use super::block::Block;
use super::names::{NameInfo, NamesError, StateOf, StoredAnomaly};
use super::series::{DAY_S, HOUR_S, Kind, Level, NAME_BYTES_MAX, Resolution, WATCHED};
use super::shared::{Shared, State, Status};

/// Most buckets of one answer: a fortnight of minutes and a day, or four years of hours.
pub const ANSWER_POINTS_MAX: u64 = 35_040;
/// Longer ranges are answered from hours, even where minutes are kept.
const MINUTES_RANGE_MAX_S: u64 = 64 * DAY_S;
/// Longest range of a query: a century.
pub const RANGE_MAX_S: u64 = 36_525 * DAY_S;
/// Most names of one listing.
pub const LIST_MAX: usize = 10_000;

/// What is asked of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'n> {
    /// Whose.
    pub name: &'n [u8],
    /// What is counted.
    pub kind: Kind,
    /// First second, rounded down to a multiple of the step.
    pub from_s: u64,
    /// First second behind the range, rounded up.
    pub to_s: u64,
    /// Length of a bucket in seconds; rounded up to what is kept of that time.
    pub step_s: u64,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Start of the first bucket, in seconds since the Unix epoch.
    pub from_s: u64,
    /// Length of each bucket: what was asked for, or longer where only coarser data are kept.
    pub step_s: u64,
    /// The resolution that the buckets were made from, which is what [`Bucket::max`] is the largest point of.
    pub resolution: Resolution,
    /// One after another, without gaps.
    pub buckets: Vec<Bucket>,
    /// What could not be read. The time that it spans is unseen.
    pub damaged: Vec<Damage>,
}

/// A step of an [`Answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// Everything that was counted.
    pub sum: u64,
    /// The largest point.
    pub max: u64,
    /// Seconds that were watched: less than the bucket's length where the daemon did not run, more where the clock went
    /// back and the same seconds came twice.
    pub seen_s: u64,
}

impl Bucket {
    /// Whether nothing is known of it, which is not the same as zero.
    pub fn is_unseen(&self) -> bool {
        self.seen_s == 0 && self.sum == 0
    }

    /// Amount per watched second; `None` where none was.
    pub fn mean_per_s(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a mean is read to a few digits")]
        (self.seen_s > 0).then(|| self.sum as f64 / self.seen_s as f64)
    }
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The range is empty or longer than [`RANGE_MAX_S`], or the step is zero or longer than that.
    #[error("the range from {from_s} to {to_s} in steps of {step_s} s is empty, or longer than a century")]
    Range {
        /// As asked.
        from_s: u64,
        /// As asked.
        to_s: u64,
        /// As asked.
        step_s: u64,
    },
    /// The answer would be too long.
    #[error("{points} buckets are more than {ANSWER_POINTS_MAX}; ask for steps of {step_s} s or more")]
    TooManyPoints {
        /// How many it would have.
        points: u64,
        /// The shortest step with which it is not too long.
        step_s: u64,
    },
    /// The name is empty or too long.
    #[error("a name has 1 to {NAME_BYTES_MAX} bytes, not {0}")]
    Name(usize),
    /// The catalogue cannot be read.
    #[error(transparent)]
    Names(#[from] NamesError),
}

/// Reads the history. It sees what was taken in, also what is not packed yet, and shares a lock with the writing thread
/// for the time of a look; where that matters, a thread that may block does it.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
}

impl Reader {
    /// A range of a series. A name that has no history was asked for by nobody: zero where the kind was watched.
    ///
    /// # Errors
    /// [`QueryError`]; not for what is damaged, which [`Answer::damaged`] tells.
    pub fn query(&self, query: &Query<'_>) -> Result<Answer, QueryError> {
        check_name(query.name)?;
        let Query { from_s, to_s, step_s, .. } = *query;
        if step_s == 0
            || from_s >= to_s
            || to_s - from_s > RANGE_MAX_S
            || step_s > RANGE_MAX_S
            || to_s > u64::MAX / 2
        {
            return Err(QueryError::Range { from_s, to_s, step_s });
        }
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let frame = Frame::choose(&state, query);
        let points = (frame.to_s - frame.from_s) / frame.step_s;
        if points > ANSWER_POINTS_MAX {
            let step_s = (to_s - from_s).div_ceil(ANSWER_POINTS_MAX - 1);
            let unit = if to_s - from_s > MINUTES_RANGE_MAX_S { HOUR_S } else { 60 };
            return Err(QueryError::TooManyPoints { points, step_s: step_s.next_multiple_of(unit) });
        }
        let mut damaged = Vec::new();
        let amounts = frame.read(&state, query.name, query.kind, &mut damaged);
        let mut seen = frame.read(&state, WATCHED, query.kind, &mut damaged);
        drop(state);
        for damage in &damaged {
            // What was counted there is not known, so it does not count as watched.
            frame.clear(&mut seen, damage.from_s, damage.to_s);
        }
        self.shared.counters.damaged.add(damaged.len() as u64);
        let width = usize::try_from(frame.step_s / frame.base_s()).unwrap_or(usize::MAX);
        let bucket = |(amounts, seen): (&[u64], &[u64])| Bucket {
            sum: amounts.iter().fold(0, |sum, more| sum.saturating_add(*more)),
            max: amounts.iter().copied().max().unwrap_or(0),
            seen_s: seen.iter().fold(0, |sum, more| sum.saturating_add(*more)),
        };
        let buckets = amounts.chunks(width).zip(seen.chunks(width)).map(bucket).collect();
        Ok(Answer {
            from_s: frame.from_s,
            step_s: frame.step_s,
            resolution: frame.resolution,
            buckets,
            damaged,
        })
    }

    /// At most `limit` names (and [`LIST_MAX`]) behind `after`, in the order of their bytes; give the last one as
    /// `after` to read on, and an empty one to begin.
    ///
    /// # Errors
    /// If the catalogue cannot be read.
    pub fn names(&self, after: &[u8], limit: usize) -> Result<Vec<NameInfo>, QueryError> {
        let limit = limit.min(LIST_MAX);
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut names = self.shared.names.list(after, limit)?;
        // Behind the last of a full page are names that the next page has.
        let end = names.last().filter(|_| names.len() == limit).map(|last| last.name.clone());
        let within = |name: &[u8]| name > after && end.as_deref().is_none_or(|end| name <= end);
        let mut open: Vec<NameInfo> = Vec::new();
        for (start, hour) in &state.head.hours {
            open.extend(hour.activity().filter(|(name, ..)| within(name)).map(|(name, first, last)| {
                NameInfo {
                    name: name.into(),
                    first_s: start + u64::from(first),
                    last_s: start + u64::from(last),
                }
            }));
        }
        names.append(&mut open);
        names.sort_by(|one, two| one.name.cmp(&two.name));
        names.dedup_by(|later, kept| {
            let same = later.name == kept.name;
            if same {
                kept.first_s = kept.first_s.min(later.first_s);
                kept.last_s = kept.last_s.max(later.last_s);
            }
            same
        });
        names.truncate(limit);
        Ok(names)
    }

    /// First and last activity of a name, `None` if it has none.
    ///
    /// # Errors
    /// If the name is none, or the catalogue cannot be read.
    pub fn name(&self, name: &[u8]) -> Result<Option<NameInfo>, QueryError> {
        check_name(name)?;
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let open = state.head.hours.iter().filter_map(|(start, hour)| {
            let (first, last) = hour.activity_of(name)?;
            Some((start + u64::from(first), start + u64::from(last)))
        });
        let all = self.shared.names.info(name)?.into_iter().chain(open);
        let all = all.reduce(|one, two| (one.0.min(two.0), one.1.max(two.1)));
        Ok(all.map(|(first_s, last_s)| NameInfo { name: name.into(), first_s, last_s }))
    }

    /// The state of a name's forecast: the version of its format, and the state. What was recorded last may not be
    /// there yet.
    ///
    /// # Errors
    /// If the name is none, or the catalogue cannot be read.
    pub fn forecast_state(&self, name: &[u8]) -> Result<Option<(u32, Vec<u8>)>, QueryError> {
        check_name(name)?;
        Ok(self.shared.names.state(StateOf::Forecast, name)?)
    }

    /// What [`Recorder::put_detector_states`](super::Recorder::put_detector_states) last gave for this name.
    ///
    /// # Errors
    /// If the name is none, or the catalogue cannot be read.
    pub fn detector_state(&self, name: &[u8]) -> Result<Option<(u32, Vec<u8>)>, QueryError> {
        check_name(name)?;
        Ok(self.shared.names.state(StateOf::Detector, name)?)
    }

    /// The newest anomalies of a name, newest first: at most `limit`, and [`ANOMALIES_MAX`](super::ANOMALIES_MAX).
    ///
    /// # Errors
    /// If the name is none, or the catalogue cannot be read.
    pub fn anomalies(&self, name: &[u8], limit: usize) -> Result<Vec<StoredAnomaly>, QueryError> {
        check_name(name)?;
        Ok(self.shared.names.anomalies(name, limit)?)
    }

    /// What is kept, and what was lost.
    pub fn status(&self) -> Status {
        self.shared.status()
    }
}

pub(super) fn check_name(name: &[u8]) -> Result<(), QueryError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX { Err(QueryError::Name(name.len())) } else { Ok(()) }
}

/// Which buckets are filled from which points.
struct Frame {
    from_s: u64,
    to_s: u64,
    step_s: u64,
    resolution: Resolution,
}

impl Frame {
    /// The finest resolution that the step is a multiple of and that is kept of the whole range.
    fn choose(state: &State, query: &Query<'_>) -> Self {
        let Query { from_s, to_s, step_s, .. } = *query;
        let at = |step_s: u64, resolution| {
            let to_s = to_s.next_multiple_of(step_s);
            Self { from_s: from_s - from_s % step_s, to_s, step_s, resolution }
        };
        let seconds = at(step_s, Resolution::Second);
        if step_s % 60 != 0 && to_s - from_s <= HOUR_S && seconds.has_seconds(state, query) {
            return seconds;
        }
        let minutes = at(step_s.next_multiple_of(60), Resolution::Minute);
        let gone = |level: Level| level.resolution() == Resolution::Hour;
        let hours_only = minutes.to_s - minutes.from_s > MINUTES_RANGE_MAX_S
            || state.overlapping(minutes.from_s, minutes.to_s).any(|segment| gone(segment.level));
        if !hours_only && minutes.step_s % HOUR_S != 0 {
            return minutes;
        }
        at(step_s.next_multiple_of(HOUR_S), Resolution::Hour)
    }

    fn has_seconds(&self, state: &State, query: &Query<'_>) -> bool {
        let count = self.count();
        let has = |name| state.head.seconds.range(name, query.kind.code(), self.from_s, count).is_some();
        count <= super::seconds::KEPT * 2 && has(query.name) && has(WATCHED)
    }

    fn base_s(&self) -> u64 {
        self.resolution.seconds()
    }

    /// Points of the resolution.
    fn count(&self) -> usize {
        usize::try_from((self.to_s - self.from_s) / self.base_s()).unwrap_or(usize::MAX)
    }

    fn read(&self, state: &State, name: &[u8], kind: Kind, damaged: &mut Vec<Damage>) -> Vec<u64> {
        let mut points = vec![0; self.count()];
        if self.resolution == Resolution::Second {
            let seconds = state.head.seconds.range(name, kind.code(), self.from_s, points.len());
            return seconds.unwrap_or(points);
        }
        for segment in state.overlapping(self.from_s, self.to_s) {
            let slots = match segment.find(name) {
                Ok(None) => continue,
                Ok(Some(body)) => {
                    Block::of(&body).and_then(|block| block.points(kind.code(), segment.level.slots()))
                }
                Err(damage) => {
                    damaged.push(damage);
                    continue;
                }
            };
            let Some(slots) = slots else {
                damaged.push(segment.damage(Some(name), "its block holds something else than points"));
                continue;
            };
            let unit = segment.level.resolution().seconds();
            for (slot, amount) in slots {
                self.add(&mut points, segment.start_s + u64::from(slot) * unit, amount);
            }
        }
        for (start, hour) in &state.head.hours {
            for (minute, amount) in hour.minutes(name, kind.code()) {
                self.add(&mut points, start + u64::from(*minute) * 60, *amount);
            }
        }
        points
    }

    fn add(&self, points: &mut [u64], at_s: u64, amount: u64) {
        if at_s < self.from_s {
            return;
        }
        let place = usize::try_from((at_s - self.from_s) / self.base_s()).unwrap_or(usize::MAX);
        if let Some(point) = points.get_mut(place) {
            *point = point.saturating_add(amount);
        }
    }

    fn clear(&self, points: &mut [u64], from_s: u64, to_s: u64) {
        let place = |at_s: u64| {
            let steps = at_s.saturating_sub(self.from_s) / self.base_s();
            usize::try_from(steps).unwrap_or(usize::MAX).min(points.len())
        };
        let (from, to) = (place(from_s), place(to_s));
        points[from..to].fill(0);
    }
}
