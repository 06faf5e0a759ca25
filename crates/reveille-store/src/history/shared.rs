//! What the writing thread and readers share: the open hours, the files, and counters of what was lost.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Limits;
use super::head::Head;
use super::names::Names;
use super::segment::Segment;
use super::series::Resolution;

#[derive(Debug)]
pub(super) struct Shared {
    pub dir: PathBuf,
    pub limits: Limits,
    /// Written by one thread only, for moments; files are made and merged beside it.
    pub state: RwLock<State>,
    pub names: Names,
    /// On their own, so that a recorder that outlives the history keeps no file open.
    pub counters: Arc<Counters>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub head: Head,
    pub segments: Vec<Arc<Segment>>,
    /// Bytes of all journals.
    pub journal_bytes: u64,
}

impl State {
    /// Files whose span overlaps a range.
    pub fn overlapping(&self, from_s: u64, to_s: u64) -> impl Iterator<Item = &Arc<Segment>> {
        self.segments.iter().filter(move |segment| segment.start_s < to_s && segment.end_s() > from_s)
    }
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn raise(&self, to: u64) {
        self.0.fetch_max(to, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub points: Counter,
    pub dropped_batches: Counter,
    pub dropped_points: Counter,
    pub refused_late: Counter,
    pub refused_early: Counter,
    pub refused_names: Counter,
    pub damaged: Counter,
    pub write_faults: Counter,
    pub clock_jumps: Counter,
    pub minutes_cut_s: Counter,
    pub hours_cut_s: Counter,
}

/// What is kept, and what was lost since the history was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Points that were taken in.
    pub points: u64,
    /// Batches that were dropped, since the queue was full.
    pub dropped_batches: u64,
    /// Points in them.
    pub dropped_points: u64,
    /// Points that were older than [`Limits::late_s_max`] when they came.
    pub refused_late: u64,
    /// Points that were dated more than a minute ahead of the clock.
    pub refused_early: u64,
    /// Points whose name was empty or too long.
    pub refused_names: u64,
    /// Times that something damaged was met.
    pub damaged: u64,
    /// Writes that failed; what they held is in memory, and written again.
    pub write_faults: u64,
    /// Times that the clock jumped by more than a minute.
    pub clock_jumps: u64,
    /// Up to here minutes went before their time, since [`Limits::disk_bytes_max`] was reached; hours are kept of it.
    pub minutes_cut_until_s: Option<u64>,
    /// Up to here hours went before their time.
    pub hours_cut_until_s: Option<u64>,
    /// Bytes of the files of blocks and of journals.
    pub disk_bytes: u64,
    /// Bytes of the catalogue: names and states of forecasts.
    pub names_bytes: u64,
    /// Of them, journals of open hours.
    pub journal_bytes: u64,
    /// Files of blocks.
    pub files: usize,
    /// Names of open hours: of two hours at most times.
    pub open_names: usize,
    /// Series whose seconds are kept.
    pub busy_series: usize,
    /// Bytes of these seconds.
    pub busy_bytes: usize,
    /// Times that a busy series' seconds were not kept, since [`Limits::busy_series_max`] was reached.
    pub busy_refused: u64,
    /// Start of the oldest file of each resolution, in seconds since the Unix epoch.
    pub oldest_s: [(Resolution, Option<u64>); 2],
}

impl Shared {
    pub fn status(&self) -> Status {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let oldest = |resolution| {
            let of = state.segments.iter().filter(|segment| segment.level.resolution() == resolution);
            (resolution, of.map(|segment| segment.start_s).min())
        };
        let packed: u64 = state.segments.iter().map(|segment| segment.bytes).sum();
        let cut = |counter: &Counter| Some(counter.get()).filter(|until| *until > 0);
        let counters = &self.counters;
        Status {
            points: counters.points.get(),
            dropped_batches: counters.dropped_batches.get(),
            dropped_points: counters.dropped_points.get(),
            refused_late: counters.refused_late.get(),
            refused_early: counters.refused_early.get(),
            refused_names: counters.refused_names.get(),
            damaged: counters.damaged.get(),
            write_faults: counters.write_faults.get(),
            clock_jumps: counters.clock_jumps.get(),
            minutes_cut_until_s: cut(&counters.minutes_cut_s),
            hours_cut_until_s: cut(&counters.hours_cut_s),
            disk_bytes: packed + state.journal_bytes,
            names_bytes: self.names.bytes(),
            journal_bytes: state.journal_bytes,
            files: state.segments.len(),
            open_names: state.head.names(),
            busy_series: state.head.seconds.len(),
            busy_bytes: state.head.seconds.bytes(),
            busy_refused: state.head.seconds.refused,
            oldest_s: [oldest(Resolution::Minute), oldest(Resolution::Hour)],
        }
    }
}
