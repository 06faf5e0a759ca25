//! The last hour of busy series, second by second, in memory only.
//!
//! A series has one place for each of the last 3,600 seconds, as wide as its largest amount needs: 3.6 kB up to 255 a
//! second, 7.2 kB up to 65,535, and so on. It gets one when it was active in [`super::Limits::busy_seconds`]
//! different seconds of an hour, and loses it after a quarter of an hour without a point. Minutes and hours never
//! rest on these: what a full house turns away costs resolution and no amount.

use std::collections::HashMap;

use super::series::HOUR_S;

/// Seconds that are kept.
pub(super) const KEPT: usize = 3_600;
/// Seconds without a point after which a series is not busy any more.
const IDLE_S: u64 = 900;

/// All rings, by name and kind.
#[derive(Debug, Default)]
pub(super) struct Seconds {
    rings: HashMap<Box<[u8]>, Vec<(u8, Ring)>>,
    count: usize,
    /// Series that were busy and found no place.
    pub refused: u64,
}

impl Seconds {
    /// Adds to the ring of a series, if it has one, and tells whether it has.
    pub fn add(&mut self, name: &[u8], kind: u8, at_s: u64, amount: u64) -> bool {
        let ring =
            self.rings.get_mut(name).and_then(|rings| rings.iter_mut().find(|(code, _)| *code == kind));
        ring.map(|(_, ring)| ring.add(at_s, amount)).is_some()
    }

    /// Gives a series a ring that begins with a point.
    pub fn admit(&mut self, name: &[u8], kind: u8, at_s: u64, amount: u64, series_max: usize) {
        if self.count >= series_max {
            self.refused += 1;
            return;
        }
        let mut ring = Ring { since_s: at_s, newest_s: at_s, lane: Lane::One(vec![0; KEPT].into()) };
        ring.add(at_s, amount);
        self.rings.entry(name.into()).or_default().push((kind, ring));
        self.count += 1;
    }

    /// The amounts of `count` seconds from `from_s` on, or `None` where not all of them are known.
    pub fn range(&self, name: &[u8], kind: u8, from_s: u64, count: usize) -> Option<Vec<u64>> {
        let (_, ring) = self.rings.get(name)?.iter().find(|(code, _)| *code == kind)?;
        (0..count as u64).map(|offset| ring.get(from_s + offset)).collect()
    }

    /// Drops the rings of series that are not busy any more.
    pub fn sweep(&mut self, now_s: u64) {
        self.rings.retain(|_, rings| {
            rings.retain(|(_, ring)| ring.newest_s + IDLE_S >= now_s);
            !rings.is_empty()
        });
        self.count = self.rings.values().map(Vec::len).sum();
    }

    /// Forgets a name.
    pub fn remove(&mut self, name: &[u8]) {
        self.count -= self.rings.remove(name).map_or(0, |rings| rings.len());
    }

    /// Forgets everything: after the clock went back, what is here lies in the future.
    pub fn clear(&mut self) {
        self.rings.clear();
        self.count = 0;
    }

    /// Series that have a ring.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Bytes of all rings.
    pub fn bytes(&self) -> usize {
        self.rings.values().flatten().map(|(_, ring)| ring.lane.bytes()).sum()
    }
}

#[derive(Debug)]
struct Ring {
    /// First second that is known.
    since_s: u64,
    /// Second of the last point.
    newest_s: u64,
    lane: Lane,
}

impl Ring {
    fn add(&mut self, at_s: u64, amount: u64) {
        if at_s > self.newest_s {
            let steps = (at_s - self.newest_s).min(HOUR_S);
            for step in 0..steps {
                self.lane.set(place(at_s - step), 0);
            }
            self.newest_s = at_s;
        } else if at_s < self.oldest_s() {
            return;
        }
        let sum = self.lane.get(place(at_s)).saturating_add(amount);
        self.lane.set(place(at_s), sum);
    }

    fn get(&self, at_s: u64) -> Option<u64> {
        if at_s > self.newest_s {
            return Some(0);
        }
        (at_s >= self.oldest_s()).then(|| self.lane.get(place(at_s)))
    }

    fn oldest_s(&self) -> u64 {
        self.since_s.max((self.newest_s + 1).saturating_sub(KEPT as u64))
    }
}

fn place(at_s: u64) -> usize {
    usize::try_from(at_s % KEPT as u64).unwrap_or(0)
}

/// Amounts in as many bytes as the largest of them needs.
#[derive(Debug)]
enum Lane {
    One(Box<[u8]>),
    Two(Box<[u16]>),
    Four(Box<[u32]>),
    Eight(Box<[u64]>),
}

impl Lane {
    fn get(&self, at: usize) -> u64 {
        match self {
            Self::One(lane) => lane[at].into(),
            Self::Two(lane) => lane[at].into(),
            Self::Four(lane) => lane[at].into(),
            Self::Eight(lane) => lane[at],
        }
    }

    fn set(&mut self, at: usize, amount: u64) {
        let fits = match self {
            Self::One(lane) => u8::try_from(amount).map(|amount| lane[at] = amount).is_ok(),
            Self::Two(lane) => u16::try_from(amount).map(|amount| lane[at] = amount).is_ok(),
            Self::Four(lane) => u32::try_from(amount).map(|amount| lane[at] = amount).is_ok(),
            Self::Eight(lane) => {
                lane[at] = amount;
                true
            }
        };
        if !fits {
            *self = match self {
                Self::One(lane) => Self::Two(lane.iter().map(|amount| (*amount).into()).collect()),
                Self::Two(lane) => Self::Four(lane.iter().map(|amount| (*amount).into()).collect()),
                Self::Four(lane) => Self::Eight(lane.iter().map(|amount| (*amount).into()).collect()),
                Self::Eight(_) => return,
            };
            self.set(at, amount);
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::One(lane) => size_of_val(&lane[..]),
            Self::Two(lane) => size_of_val(&lane[..]),
            Self::Four(lane) => size_of_val(&lane[..]),
            Self::Eight(lane) => size_of_val(&lane[..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_ring_has_the_last_hour_whatever_the_order(
            points in prop::collection::vec((0u64..9_000, prop_oneof![0u64..9, 0u64..70_000, 0u64..1 << 40]), 1..200)
        ) {
            let mut seconds = Seconds::default();
            let first = 100_000;
            seconds.admit(b"a", 1, first, 0, 1);
            let mut newest = first;
            let mut model: HashMap<u64, u64> = HashMap::new();
            for (offset, amount) in points {
                let at = first + offset;
                // A point that was behind the last hour when it came is not taken.
                if at + HOUR_S > newest {
                    *model.entry(at).or_default() += amount;
                }
                newest = newest.max(at);
                prop_assert!(seconds.add(b"a", 1, at, amount));
            }
            let oldest = first.max(newest + 1 - HOUR_S);
            let count = usize::try_from(newest + 1 - oldest).unwrap();
            let expected: Vec<u64> = (oldest..=newest).map(|at| model.get(&at).copied().unwrap_or(0)).collect();
            prop_assert_eq!(seconds.range(b"a", 1, oldest, count), Some(expected));
            prop_assert_eq!(seconds.range(b"a", 1, oldest - 1, 2), None);
        }
    }

    #[test]
    fn a_full_house_refuses_until_somebody_has_gone_quiet() {
        let mut seconds = Seconds::default();
        seconds.admit(b"a", 1, 1_000, 1, 1);
        seconds.admit(b"b", 1, 1_001, 1, 1);
        assert_eq!((seconds.len(), seconds.refused, seconds.bytes()), (1, 1, KEPT));
        seconds.sweep(1_000 + IDLE_S + 1);
        seconds.admit(b"b", 1, 2_000, 1, 1);
        assert_eq!(
            (seconds.range(b"a", 1, 1_000, 1), seconds.range(b"b", 1, 2_000, 2)),
            (None, Some(vec![1, 0]))
        );
    }
}
