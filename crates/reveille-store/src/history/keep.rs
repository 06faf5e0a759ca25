//! The writing thread's work: batches taken in, hours packed, files merged, what is old let go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError, RwLockWriteGuard};

use super::compact::Compaction;
use super::head::Added;
use super::journal::Journal;
use super::names::{NamesError, StateOf, StoredAnomaly, StoredForecast};
use super::pack::Pack;
use super::plan::{Step, next_step};
use super::segment::{Segment, Unfit};
use super::series::{Batch, HOUR_S, Level, NAME_BYTES_MAX, Point, WATCHED};
use super::shared::{Shared, State};

/// An hour is packed this long after its end: what comes later makes a small file of its own.
const HOUR_GRACE_S: u64 = 300;
/// Hours that are open at once; of more, the one that was not added to for longest is packed.
const HOURS_MAX: usize = 6;
/// Points may be dated this far ahead of the clock: the clocks of those who send them differ.
const EARLY_S_MAX: u64 = 60;
/// Clock steps beyond this are jumps.
const JUMP_S: u64 = 60;
/// Time that must have passed without a jump before anything is let go for its age.
const SETTLED_S: u64 = HOUR_S;
/// Time between synchronisations: what a power cut may cost.
const SYNC_S: u64 = 10;
/// Groups of states that are saved between two synchronisations: the catalogue reuses no room before one.
const STATES_PER_SYNC: u32 = 16;
/// Blocks that are merged between two batches: some 20 ms.
const BLOCKS_PER_STEP: usize = 10_000;

pub(super) struct Keeper {
    pub shared: Arc<Shared>,
    journals: BTreeMap<u64, Journal>,
    next_seq: u64,
    clock: Clock,
    merging: Option<Compaction>,
    /// Files whose names could not be noted in the catalogue yet.
    unnoted: Vec<Arc<Segment>>,
    /// Wall clock of the last synchronisation.
    synced_s: u64,
    /// When hours may be packed again after that failed.
    retry_s: u64,
    unsynced_states: u32,
}

/// What the batches say of the wall clock.
#[derive(Debug, Default)]
struct Clock {
    now_s: Option<u64>,
    /// The last second that the journals knew of: the clock may have been set back while the daemon was down.
    journals_s: u64,
    settled_s: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Passed {
    Time,
    Forward,
    Back,
}

impl Clock {
    fn step(&mut self, now_s: u64) -> Passed {
        let before = self.now_s.replace(now_s).unwrap_or(now_s.max(self.journals_s));
        if now_s.abs_diff(before) > JUMP_S {
            self.settled_s = 0;
            return if now_s > before { Passed::Forward } else { Passed::Back };
        }
        self.settled_s += now_s.saturating_sub(before);
        Passed::Time
    }
}

impl Keeper {
    pub fn new(shared: Arc<Shared>, next_seq: u64, unnoted: Vec<Arc<Segment>>) -> Self {
        let journals = BTreeMap::new();
        let state = shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let journals_s = state.head.hours.values().map(|hour| hour.touched_s).max().unwrap_or(0);
        drop(state);
        Self {
            shared,
            journals,
            next_seq,
            clock: Clock { journals_s, ..Clock::default() },
            merging: None,
            unnoted,
            synced_s: 0,
            retry_s: 0,
            unsynced_states: 0,
        }
    }

    /// Takes a batch in: memory, journal, then whatever is due.
    pub fn take(&mut self, batch: Batch) {
        let now_s = batch.now_s;
        let passed = self.clock.step(now_s);
        if passed != Passed::Time {
            self.shared.counters.clock_jumps.add(1);
            tracing::warn!(now_s, ?passed, "the clock jumped; history goes on at the new time");
        }
        if passed == Passed::Back {
            self.state().head.seconds.clear();
            self.retry_s = 0;
        }
        let points = self.accepted(batch);
        self.open_journals(&points);
        let mut added: BTreeMap<u64, Added> = BTreeMap::new();
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.write().unwrap_or_else(PoisonError::into_inner);
        for (kind, point) in &points {
            state.head.add(point, *kind, now_s, &shared.limits, &mut added);
        }
        drop(state);
        shared.counters.points.add(points.iter().filter(|(_, point)| !point.name.is_empty()).count() as u64);
        for (start, mut added) in added {
            let Some(journal) = self.journals.get_mut(&start) else { continue };
            if let Err(error) = journal.append(&added.names, &mut added.entries) {
                self.fault(&error, "the journal could not be written");
            }
        }
        self.upkeep(now_s);
    }

    /// The points that are taken, with the codes of their kinds; the others are counted.
    fn accepted(&self, batch: Batch) -> Vec<(u8, Point)> {
        let Batch { now_s, seen, points } = batch;
        let (limits, counters) = (&self.shared.limits, &self.shared.counters);
        let mut taken = Vec::with_capacity(points.len() + 2);
        let watched = seen.into_iter().flat_map(|seen| seen.kinds.iter().map(move |kind| (kind, seen.at_s)));
        let watched = watched
            .map(|(kind, at_s)| Point { name: WATCHED.into(), kind, at_s, amount: 1 })
            .collect::<Vec<_>>();
        for point in points {
            if point.name.is_empty() || point.name.len() > NAME_BYTES_MAX {
                counters.refused_names.add(1);
            } else {
                taken.push(point);
            }
        }
        taken.extend(watched);
        taken.retain(|point| {
            let late = point.at_s.saturating_add(limits.late_s_max) < now_s;
            let early = point.at_s > now_s.saturating_add(EARLY_S_MAX);
            counters.refused_late.add(u64::from(late));
            counters.refused_early.add(u64::from(early));
            !late && !early && point.amount > 0
        });
        taken.into_iter().map(|point| (point.kind.code(), point)).collect()
    }

    /// Sees that each hour that is added to has a journal.
    fn open_journals(&mut self, points: &[(u8, Point)]) {
        for (_, point) in points {
            let start = point.at_s - point.at_s % HOUR_S;
            if self.journals.contains_key(&start) {
                continue;
            }
            match Journal::create(&self.shared.dir, start, self.next_seq) {
                Ok(journal) => {
                    self.next_seq += 1;
                    self.state().head.hours.entry(start).or_default().renumber(journal.seq);
                    self.journals.insert(start, journal);
                }
                Err(error) => {
                    self.fault(&error, "a journal could not be made");
                    return;
                }
            }
        }
    }

    /// What time brings with it; each call does a bounded part of it.
    fn upkeep(&mut self, now_s: u64) {
        if let Some(start) = self.hour_to_pack(now_s)
            && now_s >= self.retry_s
        {
            let packed = self.pack(start);
            self.retry_s = if packed { 0 } else { now_s + SYNC_S };
        }
        self.merge(now_s);
        if now_s.abs_diff(self.synced_s) >= SYNC_S {
            self.synced_s = now_s;
            self.sync();
            self.state().head.seconds.sweep(now_s);
        }
        let journal_bytes = self.journals.values().map(|journal| journal.bytes).sum();
        self.state().journal_bytes = journal_bytes;
    }

    fn hour_to_pack(&self, now_s: u64) -> Option<u64> {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let hours = &state.head.hours;
        let over = hours.keys().find(|start| *start + HOUR_S + HOUR_GRACE_S <= now_s);
        let broken = || self.journals.iter().find(|(_, journal)| journal.broken).map(|(start, _)| start);
        let many = || {
            let crowd = hours.len() > HOURS_MAX || state.head.names() > self.shared.limits.open_names_max;
            let crumbled = hours.iter().find(|(_, hour)| hour.journals.len() > HOURS_MAX);
            let oldest = hours.iter().min_by_key(|(_, hour)| hour.touched_s);
            crumbled.or(oldest.filter(|_| crowd)).map(|(start, _)| start)
        };
        over.or_else(broken).or_else(many).copied()
    }

    /// Packs an open hour into a file, and removes its journals.
    fn pack(&mut self, start_s: u64) -> bool {
        let seq = self.next_seq;
        self.next_seq += 1;
        let written = self.write_hour(start_s, seq);
        let segment = match written {
            Ok(segment) => Arc::new(segment),
            Err(error) => {
                self.fault(&io_error(error), "an hour could not be packed; it stays in memory");
                return false;
            }
        };
        let mut state = self.state();
        let hour = state.head.hours.remove(&start_s).unwrap_or_default();
        state.segments.push(Arc::clone(&segment));
        drop(state);
        self.journals.remove(&start_s);
        for journal in &hour.journals {
            self.remove_file(&self.shared.dir.join(super::journal::file_name(start_s, *journal)));
        }
        self.sync_dir();
        let active = hour.activity();
        let active =
            active.map(|(name, first, last)| (name, start_s + u64::from(first), start_s + u64::from(last)));
        let noted = self.unnoted.is_empty() && self.note(seq, active);
        if !noted {
            self.unnoted.push(segment);
        }
        true
    }

    /// Readers go on meanwhile: nobody else writes, so a reading lock is enough.
    fn write_hour(&self, start_s: u64, seq: u64) -> Result<Segment, Unfit> {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(hour) = state.head.hours.get(&start_s) else {
            return Err(Unfit::Io(io::Error::other("the hour is not open")));
        };
        let mut pack = Pack::create(&self.shared.dir, (Level::MinutesOfHour, start_s, seq), &hour.journals)?;
        for name in hour.ordered() {
            if let Err(error) = pack.push(name, &hour.columns(name)) {
                pack.abandon();
                return Err(error.into());
            }
        }
        pack.finish()
    }

    /// Goes on with what is being merged, or begins what is due.
    fn merge(&mut self, now_s: u64) {
        if let Some(mut merging) = self.merging.take() {
            let mut damaged = Vec::new();
            let stepped = merging.step(BLOCKS_PER_STEP, &mut damaged);
            self.shared.counters.damaged.add(damaged.len() as u64);
            for damage in damaged {
                tracing::error!(%damage, "history is damaged");
            }
            match stepped {
                Ok(false) => self.merging = Some(merging),
                Ok(true) => self.replace(merging),
                Err(error) => {
                    merging.abandon();
                    self.fault(&error, "files of the history could not be merged");
                    self.retry_s = now_s + SYNC_S;
                }
            }
            return;
        }
        if now_s < self.retry_s {
            return;
        }
        match self.next_step(now_s) {
            Some(Step::Merge(job)) => self.begin(job),
            Some(Step::MergeEarly(job, until_s)) => {
                tracing::warn!(until_s, "the history's share of the disk is used up; minutes become hours");
                self.shared.counters.minutes_cut_s.raise(until_s);
                self.begin(job);
            }
            Some(Step::Drop(segment)) => self.drop_segments(&[segment]),
            Some(Step::DropEarly(segment, until_s)) => {
                tracing::warn!(until_s, "the history's share of the disk is used up; what is oldest goes");
                self.shared.counters.minutes_cut_s.raise(until_s);
                self.shared.counters.hours_cut_s.raise(until_s);
                self.drop_segments(&[segment]);
            }
            None => {}
        }
    }

    fn next_step(&self, now_s: u64) -> Option<Step> {
        let state = self.shared.state.read().unwrap_or_else(PoisonError::into_inner);
        let settled = self.clock.settled_s >= SETTLED_S;
        next_step(&state.segments, state.journal_bytes, now_s, settled, &self.shared.limits)
    }

    fn begin(&mut self, job: super::compact::Job) {
        let seq = self.next_seq;
        self.next_seq += 1;
        match Compaction::begin(&self.shared.dir, seq, job) {
            Ok(merging) => self.merging = Some(merging),
            Err(error) => {
                self.fault(&error, "files of the history could not be merged");
                self.retry_s = self.clock.now_s.unwrap_or(0) + SYNC_S;
            }
        }
    }

    /// The new file is there; the ones that it was made from go.
    fn replace(&mut self, merging: Compaction) {
        let inputs = merging.job.inputs.clone();
        let segment = match merging.finish() {
            Ok(segment) => Arc::new(segment),
            Err(error) => {
                self.fault(&io_error(error), "a merged file of the history could not be made");
                self.retry_s = self.clock.now_s.unwrap_or(0) + SYNC_S;
                return;
            }
        };
        let seq = segment.seq;
        self.state().segments.push(segment);
        self.drop_segments(&inputs);
        if self.unnoted.is_empty() {
            // Its names are known from the files that it was made from.
            self.note(seq, std::iter::empty());
        }
    }

    fn drop_segments(&mut self, gone: &[Arc<Segment>]) {
        let mut state = self.state();
        state.segments.retain(|segment| !gone.iter().any(|gone| Arc::ptr_eq(gone, segment)));
        drop(state);
        for segment in gone {
            self.remove_file(&segment.path);
        }
        self.sync_dir();
    }

    /// What was written so far survives a power cut.
    pub fn sync(&mut self) {
        self.unsynced_states = 0;
        let synced: io::Result<()> = self.journals.values_mut().try_for_each(Journal::sync);
        if let Err(error) = synced {
            self.fault(&error, "a journal could not be synchronised");
        }
        for segment in std::mem::take(&mut self.unnoted) {
            if !super::open::note_segment(&self.shared.names, &segment) {
                self.unnoted.push(segment);
            }
        }
        if let Err(error) = self.shared.names.sync() {
            self.fault(&error, "the catalogue of names could not be synchronised");
        }
    }

    pub fn note_anomalies(&mut self, anomalies: &[StoredAnomaly]) {
        if let Err(error) = self.shared.names.note_anomalies(anomalies) {
            self.fault(&error, "anomalies could not be saved");
        }
    }

    pub fn put_states(&mut self, of: StateOf, states: &[StoredForecast]) {
        if let Err(error) = self.shared.names.put_states(of, states) {
            self.fault(&error, "states of forecasts or of detectors could not be saved");
        }
        self.unsynced_states += 1;
        if self.unsynced_states >= STATES_PER_SYNC {
            self.sync();
        }
    }

    /// Removes everything of a name. If that fails on the way, the next start goes on with it.
    pub fn remove(&mut self, name: &[u8]) -> Result<(), RemoveError> {
        self.shared.names.begin_removal(name)?;
        self.finish_removal(name)
    }

    /// As [`Keeper::remove`], from where it is noted on.
    pub fn finish_removal(&mut self, name: &[u8]) -> Result<(), RemoveError> {
        if let Some(merging) = self.merging.take() {
            merging.abandon();
        }
        let mut hours = Vec::new();
        let mut state = self.state();
        state.head.seconds.remove(name);
        for (start, hour) in &mut state.head.hours {
            if hour.has(name) {
                hour.remove(name);
                hours.push(*start);
            }
        }
        drop(state);
        // The journals of these hours have the name, so they go.
        for start in hours {
            if !self.pack(start) {
                return Err(RemoveError::Unpacked);
            }
        }
        let failed = |segment: &Segment| {
            let file = segment.path.clone();
            move |source| RemoveError::Io { file, source }
        };
        let mut overwritten = Vec::new();
        // No look may meet half of what is overwritten.
        let state = self.state();
        for segment in &state.segments {
            if segment.erase(name).map_err(failed(segment))? {
                overwritten.push(Arc::clone(segment));
            }
        }
        drop(state);
        for segment in overwritten {
            segment.sync().map_err(failed(&segment))?;
        }
        Ok(self.shared.names.end_removal(name)?)
    }

    fn note<'n>(&self, seq: u64, active: impl Iterator<Item = (&'n [u8], u64, u64)>) -> bool {
        let noted = self.shared.names.note(seq, active);
        if let Err(error) = &noted {
            self.fault(error, "the catalogue of names could not be written");
        }
        noted.is_ok()
    }

    fn remove_file(&self, path: &std::path::Path) {
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The file that replaces it names it, so the next start removes it.
            self.fault(&error, "a file of the history that was replaced could not be removed");
        }
    }

    fn sync_dir(&self) {
        if let Err(error) = File::open(&self.shared.dir).and_then(|dir| dir.sync_all()) {
            self.fault(&error, "the history's directory could not be synchronised");
        }
    }

    fn fault(&self, error: &dyn std::error::Error, what: &str) {
        self.shared.counters.write_faults.add(1);
        tracing::error!(%error, "{what}");
    }

    fn state(&self) -> RwLockWriteGuard<'_, State> {
        self.shared.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(merging) = self.merging.take() {
            merging.abandon();
        }
        self.sync();
    }
}

fn io_error(unfit: Unfit) -> io::Error {
    match unfit {
        Unfit::Io(error) => error,
        Unfit::Newer(version) => io::Error::other(format!("it has the format {version}")),
    }
}

/// Why something is left of a name that was to be removed; the next start goes on with it, and so does another call.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// An open hour could not be packed without the name.
    #[error("the history of the name is not removed: an open hour could not be packed, the log says why")]
    Unpacked,
    /// A file could not be overwritten.
    #[error("the history of the name is not removed: {}: {source}", file.display())]
    Io {
        /// Which.
        file: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The catalogue could not be written.
    #[error("the history of the name is not removed: {0}")]
    Names(#[from] NamesError),
    /// The name is none.
    #[error("a name has 1 to 255 bytes, not {0}")]
    Name(usize),
    /// The history is closed.
    #[error("the history of the name is not removed: the history is closed")]
    Closed,
}
