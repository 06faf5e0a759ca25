//! Opening: what a crash left is cleared up, journals are read, and what is damaged is told.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use super::block::Block;
use super::keep::Keeper;
use super::names::Names;
use super::pack::UNFINISHED;
use super::segment::{Segment, Stored, Unfit};
use super::shared::{Counters, Shared, State};
use super::{Damage, Limits, journal, segment};

/// Names that are noted in the catalogue by one transaction.
const NAMES_PER_NOTE: u64 = 10_000;

/// Why the history could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open, or its directory cannot be used.
    #[error(transparent)]
    Directory(crate::OpenError),
    /// A file cannot be used.
    #[error("the history cannot be used: {}: {source}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A newer Reveille wrote it.
    #[error(
        "the history has a file of format {found}, {}, and this Reveille knows formats up to {known}; run the newer \
         Reveille that wrote it, or move the directory away to begin a new history", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u8,
        /// The newest format known here.
        known: u8,
    },
}

/// What opening makes: the writing thread's half, the shared half, what was damaged, and the lock.
pub(super) type Opened = (Keeper, Arc<Shared>, Vec<Damage>, File);

pub(super) fn open(dir: &Path, limits: Limits) -> Result<Opened, OpenError> {
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Unusable { path, source }
    };
    DirBuilder::new().recursive(true).mode(crate::open::DIR_MODE).create(dir).map_err(unusable(dir))?;
    let lock = crate::open::take_lock(dir).map_err(OpenError::Directory)?;
    let mut damaged = Vec::new();
    let files = Files::list(dir, &mut damaged)?;
    let next_seq = files.next_seq();
    let (segments, journals) = files.without_replaced().map_err(unusable(dir))?;

    let (names, fault) = Names::open(dir).map_err(unusable(dir))?;
    if let Some(detail) = fault {
        let detail = format!("{detail}; it was put aside, and names are read from the blocks again");
        damaged.push(Damage { file: dir.join("names.redb"), name: None, from_s: 0, to_s: u64::MAX, detail });
    }
    let mut state = State { segments, ..State::default() };
    for (start_s, seq, path) in journals {
        let head = &mut state.head;
        let replayed = journal::replay(&path, start_s, &mut damaged, |name, kind, second, amount| {
            head.replay(name, kind, start_s + u64::from(second), amount, &limits);
        });
        state.journal_bytes += replayed.map_err(unusable(&path))?;
        state.head.hours.entry(start_s).or_default().journals.push(seq);
    }
    let applied = names.applied().unwrap_or(0);
    let unnoted = state.segments.iter().filter(|segment| segment.seq > applied).cloned().collect();
    let leaving = names.leaving().unwrap_or_default();
    let counters = Arc::new(Counters::default());
    counters.damaged.add(damaged.len() as u64);
    for damage in &damaged {
        tracing::error!(%damage, "history is damaged");
    }
    let shared = Arc::new(Shared { dir: dir.to_owned(), limits, state: RwLock::new(state), names, counters });
    let mut keeper = Keeper::new(Arc::clone(&shared), next_seq, unnoted);
    keeper.sync();
    for name in leaving {
        if let Err(error) = keeper.finish_removal(&name) {
            tracing::error!(%error, name = %name.escape_ascii(), "a removed name is tried again at the next start");
        }
    }
    Ok((keeper, shared, damaged, lock))
}

/// What is in the directory.
#[derive(Default)]
struct Files {
    segments: Vec<Arc<Segment>>,
    journals: Vec<(u64, u64, PathBuf)>,
}

impl Files {
    fn list(dir: &Path, damaged: &mut Vec<Damage>) -> Result<Self, OpenError> {
        let mut files = Self::default();
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Unusable { path, source }
        };
        for entry in std::fs::read_dir(dir).map_err(unusable(dir))? {
            let path = entry.map_err(unusable(dir))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if let Some(id) = segment::parse_name(name) {
                match Segment::open(&path, id, damaged) {
                    Ok(segment) => files.segments.push(Arc::new(segment)),
                    Err(Unfit::Io(source)) => return Err(OpenError::Unusable { path, source }),
                    Err(Unfit::Newer(found)) => {
                        return Err(OpenError::Newer { path, found, known: segment::MAGIC[7] });
                    }
                }
            } else if let Some((start_s, seq)) = journal::parse_name(name) {
                files.journals.push((start_s, seq, path));
            } else if name.strip_suffix(UNFINISHED).and_then(segment::parse_name).is_some() {
                std::fs::remove_file(&path).map_err(unusable(&path))?;
            }
        }
        files.segments.sort_by_key(|segment| segment.seq);
        files.journals.sort();
        Ok(files)
    }

    /// A number that no file has, and none that another one names.
    fn next_seq(&self) -> u64 {
        let segments = self.segments.iter().flat_map(|segment| segment.inputs.iter().chain([&segment.seq]));
        let journals = self.journals.iter().map(|(_, seq, _)| seq);
        segments.chain(journals).max().map_or(1, |seq| seq.saturating_add(1))
    }

    /// Removes what was replaced by another file and was not removed before a crash.
    #[expect(clippy::type_complexity, reason = "segments, and journals as start, number and path")]
    fn without_replaced(self) -> io::Result<(Vec<Arc<Segment>>, Vec<(u64, u64, PathBuf)>)> {
        let replaced: BTreeSet<u64> =
            self.segments.iter().flat_map(|segment| segment.inputs.iter().copied()).collect();
        let (gone, segments): (Vec<_>, Vec<_>) =
            self.segments.into_iter().partition(|segment| replaced.contains(&segment.seq));
        let (stale, journals): (Vec<_>, Vec<_>) =
            self.journals.into_iter().partition(|(_, seq, _)| replaced.contains(seq));
        let paths = gone.iter().map(|segment| &segment.path).chain(stale.iter().map(|(.., path)| path));
        paths.into_iter().try_for_each(std::fs::remove_file)?;
        Ok((segments, journals))
    }
}

/// Notes the names of a file in the catalogue. False where that fails, which is told.
pub(super) fn note_segment(names: &Names, segment: &Segment) -> bool {
    let unit = segment.level.resolution().seconds();
    let mut first = 0;
    while first < segment.entries() {
        let Ok(blocks) = segment.blocks(first, NAMES_PER_NOTE) else { return false };
        first += blocks.len() as u64;
        // What cannot be read is told when it is asked for.
        let active = blocks.iter().filter_map(|(_, stored)| {
            let Stored::Block(body) = stored else { return None };
            let block = Block::of(body)?;
            let (from, to) = block.bounds(segment.level.slots())?;
            let at_s = |slot: u32| segment.start_s + u64::from(slot) * unit;
            Some((block.name, at_s(from), at_s(to)))
        });
        if let Err(error) = names.note(0, active) {
            tracing::error!(%error, "the catalogue of names could not be written");
            return false;
        }
    }
    names.note(segment.seq, std::iter::empty()).is_ok()
}
