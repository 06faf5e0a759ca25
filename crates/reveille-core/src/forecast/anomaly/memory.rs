//! What has been seen, as sorted code books of fixed size: how far is a value from the nearest one that was?

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

/// A day of a series' clock.
pub(super) const DAY_MS: u64 = 86_400_000;
/// Parts of a day that are remembered apart.
const HOURS: usize = 24;
/// Trailing means that are told apart in one of them.
const MEANS_MAX: usize = 16;

/// Single precision is enough to remember: half the room, and what differs by less is not news.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted; too large becomes infinite")]
pub(super) fn single(value: f64) -> f32 {
    value as f32
}

/// One remembered value, and the number of the point at which something like it was seen last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Code {
    value: f32,
    seen: u32,
}

/// A set of values by at most as many codes as it was made for. When it is full, the two nearest neighbours become one,
/// never the least or the greatest; a value nearer to its neighbour than that is taken as seen already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Memory {
    /// Ascending.
    codes: Vec<Code>,
    codes_max: usize,
}

impl Memory {
    pub fn new(codes_max: usize) -> Self {
        Self { codes: Vec::with_capacity(codes_max), codes_max }
    }

    /// Distance from `value` to the nearest remembered one; zero where nothing is remembered.
    pub fn distance(&self, value: f32) -> f64 {
        self.nearest(value).unwrap_or(0.0)
    }

    fn nearest(&self, value: f32) -> Option<f64> {
        let place = self.place(value);
        let above = self.codes.get(place);
        let below = place.checked_sub(1).and_then(|below| self.codes.get(below));
        let distance = |code: &Code| (f64::from(code.value) - f64::from(value)).abs();
        above.into_iter().chain(below).map(distance).reduce(f64::min)
    }

    /// Where `value` is, or belongs.
    fn place(&self, value: f32) -> usize {
        self.codes.partition_point(|code| code.value < value)
    }

    /// Takes the value of point number `point` in, and forgets what was not seen for `forget` points.
    pub fn remember(&mut self, value: f32, point: u64, forget: u64) {
        let now = u32::try_from(point).unwrap_or(u32::MAX);
        self.codes.retain(|code| u64::from(now.saturating_sub(code.seen)) <= forget);
        let place = self.place(value);
        if let Some(code) = self.codes.get_mut(place).filter(|code| code.value == value) {
            code.seen = now;
            return;
        }
        if self.codes.len() < self.codes_max {
            self.codes.insert(place, Code { value, seen: now });
            return;
        }
        match self.narrowest() {
            Some((left, gap)) if self.distance(value) > gap => {
                let (a, b) = (self.codes[left], self.codes[left + 1]);
                let middle = single(0.5 * (f64::from(a.value) + f64::from(b.value)));
                self.codes[left] = Code { value: middle, seen: a.seen.max(b.seen) };
                self.codes.remove(left + 1);
                let place = self.place(value);
                self.codes.insert(place, Code { value, seen: now });
            }
            _ => self.refresh(place, value, now),
        }
    }

    /// The inner neighbours that are nearest to each other: the left one's index, and their distance.
    fn narrowest(&self) -> Option<(usize, f64)> {
        let inner = 1..self.codes.len().saturating_sub(2);
        let gap = |left: usize| f64::from(self.codes[left + 1].value) - f64::from(self.codes[left].value);
        inner.map(|left| (left, gap(left))).reduce(|least, next| if next.1 < least.1 { next } else { least })
    }

    /// A value that is as good as remembered was seen again; the least and the greatest are moved outwards by it.
    fn refresh(&mut self, place: usize, value: f32, now: u32) {
        let last = self.codes.len().saturating_sub(1);
        let outside = place == 0 || place > last;
        let lower_is_nearer = place > 0
            && (place > last || value - self.codes[place - 1].value < self.codes[place].value - value);
        let nearest = if lower_is_nearer { place - 1 } else { place };
        if let Some(code) = self.codes.get_mut(nearest) {
            code.seen = now;
            if outside {
                code.value = value;
            }
        }
    }

    pub fn heap_bytes(&self) -> usize {
        self.codes.capacity() * size_of::<Code>()
    }

    /// Whether it can have come from a memory of `codes_max` codes.
    pub fn is_sound(&self, codes_max: usize) -> bool {
        self.codes_max == codes_max
            && self.codes.len() <= codes_max
            && self.codes.iter().all(|code| code.value.is_finite())
            && self.codes.is_sorted_by(|a, b| a.value < b.value)
    }
}

/// One of the last points.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Recent {
    value: f32,
    /// Of it and those before it.
    mean: f32,
    /// The hour of the day that it was in.
    hour: u8,
}

/// Trailing means by hour of the day. A mean is compared with those of its hour, the one before and the one after, and
/// remembered only when its points have left the window, so that no mean is compared with itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TrailingMemory {
    hours: Vec<Memory>,
    /// A ring: the next point takes the place of the oldest.
    recent: Vec<Recent>,
    next: usize,
    sum: f64,
    points: u16,
}

impl TrailingMemory {
    pub fn new(points: u16) -> Self {
        Self {
            hours: (0..HOURS).map(|_| Memory::new(MEANS_MAX)).collect(),
            recent: Vec::with_capacity(points.into()),
            next: 0,
            sum: 0.0,
            points,
        }
    }

    /// Distance of the trailing mean that ends with this point to the nearest that was seen at this time of day.
    pub fn next(&mut self, at: Timestamp, value: f32, point: u64, forget: u64) -> f64 {
        let hour = hour_of(at);
        let oldest = self.recent.get(self.next).copied();
        self.sum += f64::from(value) - oldest.map_or(0.0, |oldest| f64::from(oldest.value));
        if self.next == 0 {
            // Rounding errors do not outlive one turn of the ring.
            self.sum = f64::from(value)
                + self.recent.iter().skip(1).map(|point| f64::from(point.value)).sum::<f64>();
        }
        let count = self.recent.len() + usize::from(oldest.is_none());
        let mean = single(self.sum / count as f64);
        let distance = self.distance(hour, mean);
        let newest = Recent { value, mean, hour: u8::try_from(hour).unwrap_or(0) };
        match oldest {
            Some(oldest) => {
                if let Some(memory) = self.hours.get_mut(usize::from(oldest.hour)) {
                    memory.remember(oldest.mean, point, forget);
                }
                self.recent[self.next] = newest;
            }
            None => self.recent.push(newest),
        }
        self.next = (self.next + 1) % usize::from(self.points);
        distance
    }

    fn distance(&self, hour: usize, mean: f32) -> f64 {
        let hours = [(hour + HOURS - 1) % HOURS, hour, (hour + 1) % HOURS];
        let nearest = hours.into_iter().filter_map(|hour| self.hours.get(hour)?.nearest(mean));
        nearest.reduce(f64::min).unwrap_or(0.0)
    }

    pub fn heap_bytes(&self) -> usize {
        self.hours.capacity() * size_of::<Memory>()
            + self.hours.iter().map(Memory::heap_bytes).sum::<usize>()
            + self.recent.capacity() * size_of::<Recent>()
    }

    /// Whether it can have come from a memory of means over `points` points.
    pub fn is_sound(&self, points: u16) -> bool {
        let (length, size) = (self.recent.len(), usize::from(points));
        self.points == points
            && (length == size && self.next < size || length < size && self.next == length)
            && self.sum.is_finite()
            && self.recent.iter().all(|point| point.value.is_finite() && point.mean.is_finite())
            && self.hours.len() == HOURS
            && self.hours.iter().all(|memory| memory.is_sound(MEANS_MAX))
    }
}

/// Which hour of the day it is, in UTC.
fn hour_of(at: Timestamp) -> usize {
    usize::try_from(at.as_ms() % DAY_MS / (DAY_MS / HOURS as u64)).unwrap_or(0)
}
