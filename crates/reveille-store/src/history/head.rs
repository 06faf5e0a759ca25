//! The open hours: minutes of the names that were active in them, in memory, with a journal each.

use std::collections::{BTreeMap, HashMap};

use super::block::Columns;
use super::column::Slot;
use super::journal::Entry;
use super::seconds::Seconds;
use super::segment::hash_of;
use super::series::{HOUR_S, Point};

/// A name that has no number in the journal that is written to.
const UNNUMBERED: u32 = u32::MAX;

/// An hour that is not packed yet.
#[derive(Debug, Default)]
pub(super) struct Hour {
    names: HashMap<Box<[u8]>, Row>,
    /// Numbers of the journals that hold it.
    pub journals: Vec<u64>,
    /// Numbers given out in the one that is written to.
    numbered: u32,
    /// Wall clock of the last point, in seconds: of too many hours the one that waits longest is packed.
    pub touched_s: u64,
}

#[derive(Debug)]
struct Row {
    number: u32,
    series: Vec<Series>,
}

#[derive(Debug)]
struct Series {
    kind: u8,
    /// Different seconds in which there was a point, in the order of time.
    active: u16,
    /// The last of them, since the hour began.
    last: u16,
    /// First of them.
    first: u16,
    /// Minute of the hour and amount.
    minutes: Vec<Slot>,
}

/// What a batch adds to the journal of one hour.
#[derive(Debug, Default)]
pub(super) struct Added {
    pub names: Vec<Box<[u8]>>,
    pub entries: Vec<Entry>,
}

impl Hour {
    /// Adds an amount without a trace in the journal, and tells in how many seconds the series was active.
    fn replay(&mut self, name: &[u8], kind: u8, second: u16, amount: u64) -> u16 {
        let row = match self.names.get_mut(name) {
            Some(row) => row,
            None => self.names.entry(name.into()).or_insert(Row { number: UNNUMBERED, series: Vec::new() }),
        };
        row.add(kind, second, amount)
    }

    /// Adds an amount, notes it for the journal, and tells in how many seconds the series was active.
    fn add(&mut self, point: &Point, kind: u8, added: &mut Added) -> u16 {
        let second = second_of(point.at_s);
        let active = self.replay(&point.name, kind, second, point.amount);
        let Some(row) = self.names.get_mut(&point.name) else { return active };
        if row.number == UNNUMBERED {
            row.number = self.numbered;
            self.numbered += 1;
            added.names.push(point.name.clone());
        }
        added.entries.push(Entry { second, kind, number: row.number, amount: point.amount });
        active
    }

    /// A new journal has no names yet.
    pub fn renumber(&mut self, journal: u64) {
        self.numbered = 0;
        self.names.values_mut().for_each(|row| row.number = UNNUMBERED);
        self.journals.push(journal);
    }

    /// The minutes of a series.
    pub fn minutes(&self, name: &[u8], kind: u8) -> &[Slot] {
        let row = self.names.get(name);
        let series = row.and_then(|row| row.series.iter().find(|series| series.kind == kind));
        series.map_or(&[], |series| &series.minutes)
    }

    /// Names in the order of a file of blocks.
    pub fn ordered(&self) -> Vec<&[u8]> {
        let mut names: Vec<(u64, &[u8])> = self.names.keys().map(|name| (hash_of(name), &**name)).collect();
        names.sort_unstable();
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// All points of a name.
    pub fn columns(&self, name: &[u8]) -> Columns {
        let series = self.names.get(name).into_iter().flat_map(|row| &row.series);
        series.map(|series| (series.kind, series.minutes.clone())).collect()
    }

    /// The names with their first and last second of activity since the hour began.
    pub fn activity(&self) -> impl Iterator<Item = (&[u8], u16, u16)> {
        self.names.iter().map(|(name, row)| (&**name, row.first(), row.last()))
    }

    /// First and last second of a name.
    pub fn activity_of(&self, name: &[u8]) -> Option<(u16, u16)> {
        self.names.get(name).map(|row| (row.first(), row.last()))
    }

    pub fn has(&self, name: &[u8]) -> bool {
        self.names.contains_key(name)
    }

    pub fn remove(&mut self, name: &[u8]) {
        self.names.remove(name);
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }
}

impl Row {
    fn first(&self) -> u16 {
        self.series.iter().map(|series| series.first).min().unwrap_or(0)
    }

    fn last(&self) -> u16 {
        self.series.iter().map(|series| series.last).max().unwrap_or(0)
    }

    fn add(&mut self, kind: u8, second: u16, amount: u64) -> u16 {
        let minute = u32::from(second / 60);
        let Some(series) = self.series.iter_mut().find(|series| series.kind == kind) else {
            let minutes = vec![(minute, amount)];
            // Most names have one kind or two, and keep them.
            self.series.reserve_exact(1);
            self.series.push(Series { kind, active: 1, last: second, first: second, minutes });
            return 1;
        };
        if second > series.last {
            series.last = second;
            series.active = series.active.saturating_add(1);
        }
        series.first = series.first.min(second);
        match series.minutes.last_mut() {
            Some((last, sum)) if *last == minute => *sum = sum.saturating_add(amount),
            Some((last, _)) if *last < minute => series.minutes.push((minute, amount)),
            _ => match series.minutes.binary_search_by_key(&minute, |slot| slot.0) {
                Ok(at) => series.minutes[at].1 = series.minutes[at].1.saturating_add(amount),
                Err(at) => series.minutes.insert(at, (minute, amount)),
            },
        }
        series.active
    }
}

fn second_of(at_s: u64) -> u16 {
    u16::try_from(at_s % HOUR_S).unwrap_or(0)
}

/// Everything that is in memory and not yet packed.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Open hours by their start, in seconds since the Unix epoch.
    pub hours: BTreeMap<u64, Hour>,
    pub seconds: Seconds,
}

impl Head {
    /// Takes a point in. The watched seconds and whoever is busy have their seconds kept, too.
    pub fn add(
        &mut self,
        point: &Point,
        kind: u8,
        now_s: u64,
        limits: &super::Limits,
        added: &mut BTreeMap<u64, Added>,
    ) {
        let start = point.at_s - point.at_s % HOUR_S;
        let hour = self.hours.entry(start).or_default();
        hour.touched_s = now_s;
        let active = hour.add(point, kind, added.entry(start).or_default());
        self.keep_second(&point.name, kind, point.at_s, point.amount, active, limits);
    }

    /// Takes in what a journal of the hour has.
    pub fn replay(&mut self, name: &[u8], kind: u8, at_s: u64, amount: u64, limits: &super::Limits) {
        let hour = self.hours.entry(at_s - at_s % HOUR_S).or_default();
        hour.touched_s = at_s;
        let active = hour.replay(name, kind, second_of(at_s), amount);
        self.keep_second(name, kind, at_s, amount, active, limits);
    }

    fn keep_second(
        &mut self,
        name: &[u8],
        kind: u8,
        at_s: u64,
        amount: u64,
        active: u16,
        limits: &super::Limits,
    ) {
        let busy = active >= limits.busy_seconds || name.is_empty();
        if !self.seconds.add(name, kind, at_s, amount) && busy {
            self.seconds.admit(name, kind, at_s, amount, limits.busy_series_max);
        }
    }

    /// Names of all open hours.
    pub fn names(&self) -> usize {
        self.hours.values().map(Hour::len).sum()
    }
}
