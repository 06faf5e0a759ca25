//! Reading a history that somebody else may have open, or a copy of one: nothing is locked, written or removed.
//!
//! The files of a history are only added, appended to and removed, so whoever has opened a set of them that stood in the
//! directory together has a consistent state, and keeps it while the daemon goes on. That they stood there together is
//! known by listing the directory once more after opening them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::block::Block;
use super::journal;
use super::segment::{self, Segment, Stored, Unfit};
use super::series::WATCHED;
use super::{Damage, Kind, OpenError, Resolution};

/// Times that the directory is listed again because its files have changed meanwhile. A daemon changes them a few times
/// an hour.
const LISTINGS_MAX: usize = 32;

/// Latest start of a file that is read, in seconds since the Unix epoch: far beyond every calendar.
const START_S_MAX: u64 = 1 << 40;

/// Blocks that are read at a time.
const BLOCKS_PER_READ: u64 = 1_024;

/// A point of a history that was read offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OfflinePoint<'n> {
    /// Whose.
    pub name: &'n [u8],
    /// First second, since the Unix epoch.
    pub at_s: u64,
    /// How long the time is that the amount is of.
    pub resolution: Resolution,
    /// How much; several points of the same name and time add up.
    pub amount: u64,
}

/// Files of a history, open for reading.
#[derive(Debug)]
pub struct Offline {
    segments: Vec<Segment>,
    journals: Vec<(u64, PathBuf, File)>,
    damaged: Vec<Damage>,
}

impl Offline {
    /// Whether `dir` has files of a history.
    pub fn is_history(dir: &Path) -> bool {
        list(dir).is_ok_and(|names| !names.is_empty())
    }

    /// Opens the history in `dir`, also beside a running daemon.
    ///
    /// # Errors
    /// A file cannot be read, or is of a newer Reveille.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let unusable = |source| OpenError::Unusable { path: dir.to_owned(), source };
        for _ in 0..LISTINGS_MAX {
            let names = list(dir).map_err(unusable)?;
            match Self::open_all(dir, &names) {
                Err(OpenError::Unusable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                opened if list(dir).map_err(unusable)? == names => return opened,
                Ok(_) | Err(_) => {}
            }
        }
        let source =
            io::Error::other(format!("its files changed while they were opened, {LISTINGS_MAX} times"));
        Err(unusable(source))
    }

    fn open_all(dir: &Path, names: &BTreeSet<String>) -> Result<Self, OpenError> {
        let mut opened = Self { segments: Vec::new(), journals: Vec::new(), damaged: Vec::new() };
        for name in names {
            let path = dir.join(name);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(source) => return Err(OpenError::Unusable { path, source }),
            };
            if let Some(id) = segment::parse_name(name) {
                match Segment::of(file, &path, id, &mut opened.damaged) {
                    Ok(segment) => opened.segments.push(segment),
                    Err(Unfit::Io(source)) => return Err(OpenError::Unusable { path, source }),
                    Err(Unfit::Newer(found)) => {
                        return Err(OpenError::Newer { path, found, known: segment::MAGIC[7] });
                    }
                }
            } else if let Some((start_s, _)) = journal::parse_name(name) {
                opened.journals.push((start_s, path, file));
            }
        }
        let replaced: BTreeSet<u64> =
            opened.segments.iter().flat_map(|segment| segment.inputs.iter().copied()).collect();
        opened.segments.retain(|segment| !replaced.contains(&segment.seq));
        opened.journals.retain(|(_, path, _)| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.and_then(journal::parse_name).is_some_and(|(_, seq)| !replaced.contains(&seq))
        });
        Ok(opened)
    }

    /// Calls `each` with every point of this kind, in no order, until it says false. Tells what is damaged, which is skipped.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn points(
        mut self,
        kind: Kind,
        mut each: impl FnMut(OfflinePoint<'_>) -> bool,
    ) -> Result<Vec<Damage>, OpenError> {
        let mut goes_on = true;
        let mut each = |point: OfflinePoint<'_>| {
            goes_on = goes_on && each(point);
            goes_on
        };
        for segment in &self.segments {
            let lost = points_of(segment, kind, &mut each)
                .map_err(|source| OpenError::Unusable { path: segment.path.clone(), source })?;
            self.damaged.extend(lost);
        }
        for (start_s, path, file) in &self.journals {
            journal::replay_file(file, path, *start_s, &mut self.damaged, |name, code, second, amount| {
                if code == kind.code() && name != WATCHED {
                    let at_s = start_s + u64::from(second);
                    each(OfflinePoint { name, at_s, resolution: Resolution::Second, amount });
                }
            })
            .map_err(|source| OpenError::Unusable { path: path.clone(), source })?;
        }
        Ok(self.damaged)
    }
}

/// The points of a file; what of it is lost, if anything.
fn points_of(
    segment: &Segment,
    kind: Kind,
    each: &mut impl FnMut(OfflinePoint<'_>) -> bool,
) -> io::Result<Option<Damage>> {
    let resolution = segment.level.resolution();
    let (mut first, mut lost) = (0, 0_u64);
    while first < segment.entries() {
        let blocks = segment.blocks(first, BLOCKS_PER_READ)?;
        first += BLOCKS_PER_READ;
        for (_, stored) in &blocks {
            let body = match stored {
                Stored::Block(body) => body,
                Stored::Erased => continue,
                Stored::Lost => {
                    lost += 1;
                    continue;
                }
            };
            let read = Block::of(body)
                .and_then(|block| Some((block.name, block.points(kind.code(), segment.level.slots())?)));
            let Some((name, slots)) = read else {
                lost += 1;
                continue;
            };
            for (slot, amount) in slots.into_iter().filter(|_| name != WATCHED) {
                let at_s = segment.start_s + u64::from(slot) * resolution.seconds();
                if !each(OfflinePoint { name, at_s, resolution, amount }) {
                    return Ok(None);
                }
            }
        }
    }
    Ok((lost > 0).then(|| segment.damage(None, &format!("{lost} blocks cannot be read"))))
}

/// The names of the files that make a history.
fn list(dir: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir)? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let block_file = segment::parse_name(&name).map(|(_, start_s, _)| start_s);
        let start_s = block_file.or_else(|| journal::parse_name(&name).map(|(start_s, _)| start_s));
        if start_s.is_some_and(|start_s| start_s <= START_S_MAX) {
            names.insert(name);
        }
    }
    Ok(names)
}
