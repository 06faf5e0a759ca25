//! A file of blocks: the points of all names in one span of time, ordered by the hash of the name.
//!
//! `magic (8) · header · blocks · index · footer`. The header names the files that this one was made from: should a
//! crash leave them beside it, they are removed at the next start, so nothing is counted twice. The index has a fixed-size
//! entry per name, ordered by hash. Hashes are spread evenly, so the place of one is computed rather than
//! searched, and a name that nobody asks about costs no memory at all. The footer has the index's checksum; where either
//! is damaged, the blocks are read once and the index is made again in memory.

use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use siphasher::sip::SipHasher24;

use super::Damage;
use super::block::Block;
use super::frame::{FRAME_HEAD, Found, Frames, Mark, checksum, take_frame};
use super::series::Level;

/// First bytes of every file; the last one is the version of the format.
pub(super) const MAGIC: [u8; 8] = *b"rvhist\0\x01";
/// How the file names end.
pub(super) const SUFFIX: &str = ".blocks";
/// Bytes of an index entry: hash and place.
pub(super) const ENTRY: usize = 16;
/// Bytes of the footer: where the index begins, entries, checksum of the index, checksum of these three, magic.
pub(super) const FOOTER: usize = 32;
/// Files that one may be made from.
pub(super) const INPUTS_MAX: usize = 4_096;
/// Entries that are read at once.
const ENTRIES_PER_READ: u64 = 256;
/// Only the daemon's user.
pub(super) const FILE_MODE: u32 = 0o600;

/// Where names are in the order of a file.
pub(super) fn hash_of(name: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(0x7265_7665_696c_6c65, 0x6869_7374_6f72_7931);
    hasher.write(name);
    hasher.finish()
}

/// Where a block is, and how long: 40 bits and 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub at: u64,
    pub len: u32,
}

impl Place {
    pub fn packed(self) -> u64 {
        self.at | u64::from(self.len) << 40
    }

    fn of(packed: u64) -> Self {
        Self { at: packed & ((1 << 40) - 1), len: u32::try_from(packed >> 40).unwrap_or(0) }
    }
}

#[derive(Debug)]
enum Index {
    OnDisk {
        at: u64,
        entries: u64,
    },
    /// Made again; `lost`: there are blocks whose names are not known.
    Made {
        entries: Vec<(u64, u64)>,
        lost: bool,
    },
}

/// An open file of blocks.
#[derive(Debug)]
pub(super) struct Segment {
    pub path: PathBuf,
    pub level: Level,
    /// Start of the span, in seconds since the Unix epoch.
    pub start_s: u64,
    pub seq: u64,
    pub bytes: u64,
    /// Numbers of the files that this one was made from.
    pub inputs: Vec<u64>,
    file: File,
    /// Where the blocks begin and end.
    blocks: (u64, u64),
    index: Index,
    /// Damage that was met while reading is in the log.
    told: AtomicBool,
}

/// Level, start and number by the name of a file.
pub(super) fn parse_name(name: &str) -> Option<(Level, u64, u64)> {
    let mut parts = name.strip_suffix(SUFFIX)?.split('-');
    let tag = parts.next()?;
    let level = Level::ALL.into_iter().find(|level| level.tag() == tag)?;
    let (start, seq) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (parts.next().is_none() && start % level.span_s() == 0).then_some((level, start, seq))
}

pub(super) fn file_name(level: Level, start_s: u64, seq: u64) -> String {
    format!("{}-{start_s}-{seq}{SUFFIX}", level.tag())
}

/// What an entry of the index leads to.
pub(super) enum Stored {
    /// A whole block's body.
    Block(Vec<u8>),
    /// A removed one.
    Erased,
    /// Damage.
    Lost,
}

/// What keeps a file from being used.
#[derive(Debug)]
pub(super) enum Unfit {
    Io(io::Error),
    /// A newer Reveille wrote it.
    Newer(u8),
}

impl From<io::Error> for Unfit {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Segment {
    /// Opens a file and checks its header and index; what is damaged in it is told and got over.
    pub fn open(path: &Path, id: (Level, u64, u64), damaged: &mut Vec<Damage>) -> Result<Self, Unfit> {
        let file = OpenOptions::new().read(true).write(true).mode(FILE_MODE).open(path)?;
        Self::of(file, path, id, damaged)
    }

    /// The same of a file that is open, perhaps for reading alone.
    pub fn of(
        file: File,
        path: &Path,
        (level, start_s, seq): (Level, u64, u64),
        damaged: &mut Vec<Damage>,
    ) -> Result<Self, Unfit> {
        let bytes = file.metadata()?.len();
        let mut head = vec![0; usize::try_from(bytes.min((16 + INPUTS_MAX * 8) as u64)).unwrap_or(0)];
        file.read_exact_at(&mut head, 0)?;
        if let Some((magic, _)) = head.split_first_chunk::<8>()
            && magic[..7] == MAGIC[..7]
            && magic[7] > MAGIC[7]
            // A changed bit is no newer version: its checksum covers the magic.
            && read_header(&head).is_some()
        {
            return Err(Unfit::Newer(magic[7]));
        }
        let header = read_header(&head);
        let (first, inputs) = header.clone().unwrap_or_default();
        let mut segment = Self {
            path: path.to_owned(),
            level,
            start_s,
            seq,
            bytes,
            inputs,
            file,
            blocks: (first, bytes),
            index: Index::Made { entries: Vec::new(), lost: true },
            told: AtomicBool::new(false),
        };
        if header.is_none() {
            damaged.push(segment.damage(None, "its header is damaged"));
        }
        match segment.read_footer()? {
            Some((at, entries)) => {
                segment.blocks.1 = at;
                segment.index = Index::OnDisk { at, entries };
            }
            None => {
                damaged.push(segment.damage(None, "its index is damaged; it is made again from the blocks"));
                segment.make_index(damaged)?;
            }
        }
        Ok(segment)
    }

    /// Where the index is, and its entries, if it is whole.
    fn read_footer(&self) -> io::Result<Option<(u64, u64)>> {
        let Some(footer_at) = self.bytes.checked_sub(FOOTER as u64) else { return Ok(None) };
        let mut footer = [0; FOOTER];
        self.file.read_exact_at(&mut footer, footer_at)?;
        let word = |at: usize| footer[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (at, entries, sums) = (word(0), word(8), word(16));
        let whole = footer[24..] == MAGIC && sums >> 32 == u64::from(checksum(&footer[..20]));
        let fits = entries.checked_mul(ENTRY as u64).and_then(|len| at.checked_add(len)) == Some(footer_at);
        if !whole || !fits {
            return Ok(None);
        }
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let mut buffer = vec![0; 64 << 10];
        let mut from = at;
        while from < footer_at {
            let len = usize::try_from(footer_at - from).unwrap_or(usize::MAX).min(buffer.len());
            self.file.read_exact_at(&mut buffer[..len], from)?;
            digest.update(&buffer[..len]);
            from += len as u64;
        }
        Ok((digest.finalize() == sums & u64::from(u32::MAX)).then_some((at, entries)))
    }

    /// Reads every block for its name.
    fn make_index(&mut self, damaged: &mut Vec<Damage>) -> io::Result<()> {
        let (mut entries, mut lost, mut count) = (Vec::new(), None, 0);
        let mut frames = Frames::new(&self.file, self.blocks.0, self.bytes);
        while let Some(found) = frames.next()? {
            match found {
                Found::Frame { at, mark: Mark::Block, body } => {
                    count += 1;
                    let len = u32::try_from(FRAME_HEAD + body.len()).unwrap_or(u32::MAX);
                    let Some(block) = Block::of(&body) else { continue };
                    entries.push((hash_of(block.name), Place { at, len }.packed()));
                }
                Found::Frame { .. } => count += 1,
                // A damaged index with its footer, behind as many blocks as it has entries.
                Found::Damaged { from, to }
                    if lost.is_none() && to - from == (count * ENTRY + FOOTER) as u64 && to == self.bytes =>
                {
                    self.blocks.1 = from;
                }
                Found::Damaged { from, to } => lost = Some((lost.map_or(from, |(from, _)| from), to)),
            }
        }
        if let Some((from, to)) = lost {
            damaged.push(self.damage(None, &format!("no blocks can be read from byte {from} to byte {to}")));
        }
        entries.sort_unstable();
        self.index = Index::Made { entries, lost: lost.is_some() };
        Ok(())
    }

    /// First second behind the span.
    pub fn end_s(&self) -> u64 {
        self.start_s + self.level.span_s()
    }

    /// Number of entries of the index.
    pub fn entries(&self) -> u64 {
        match &self.index {
            Index::OnDisk { entries, .. } => *entries,
            Index::Made { entries, .. } => entries.len() as u64,
        }
    }

    /// Up to `count` blocks from the entry `first` on, in the order of hashes: hash and body, or why there is none.
    pub fn blocks(&self, first: u64, count: u64) -> io::Result<Vec<(u64, Stored)>> {
        let entries = match &self.index {
            Index::OnDisk { at, entries } => {
                self.read_entries(*at, first, count.min(entries.saturating_sub(first)))?
            }
            Index::Made { entries, .. } => {
                let skip = usize::try_from(first).unwrap_or(usize::MAX);
                entries
                    .iter()
                    .skip(skip)
                    .take(usize::try_from(count).unwrap_or(usize::MAX))
                    .copied()
                    .collect()
            }
        };
        let places: Vec<Place> = entries.iter().map(|entry| Place::of(entry.1)).collect();
        let from = places.iter().map(|place| place.at).min().unwrap_or(0);
        let to =
            places.iter().map(|place| place.at + u64::from(place.len)).max().unwrap_or(0).min(self.bytes);
        // Blocks lie as their entries do, so one read has them all. A made index may have gaps.
        let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, from)?;
        let stored = |place: &Place| {
            let start = usize::try_from(place.at - from).unwrap_or(usize::MAX);
            match bytes.get(start..).and_then(|rest| rest.get(..place.len as usize)).and_then(take_frame) {
                Some((Mark::Block, body)) => Stored::Block(body.to_vec()),
                Some((Mark::Erased, _)) => Stored::Erased,
                Some((Mark::Lost | Mark::Batch, _)) | None => Stored::Lost,
            }
        };
        Ok(entries.iter().zip(&places).map(|(entry, place)| (entry.0, stored(place))).collect())
    }

    /// The body of a name's block. Several, where hashes are equal, are told apart by name.
    pub fn find(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Damage> {
        self.look_up(name).inspect_err(|damage| {
            // Each answer tells it; the log needs no line for each.
            if !self.told.swap(true, Ordering::Relaxed) {
                tracing::error!(%damage, "history is damaged");
            }
        })
    }

    fn look_up(&self, name: &[u8]) -> Result<Option<Vec<u8>>, Damage> {
        let failed = |error: io::Error| self.damage(Some(name), &format!("it cannot be read: {error}"));
        for place in self.places(hash_of(name)).map_err(failed)? {
            let mut frame = vec![0; place.len as usize];
            let fits = place.at + u64::from(place.len) <= self.bytes;
            if !fits || self.file.read_exact_at(&mut frame, place.at).is_err() {
                return Err(self.damage(Some(name), "the file is too short for its block"));
            }
            match take_frame(&frame) {
                Some((Mark::Block, body)) if Block::of(body).is_some_and(|block| block.name == name) => {
                    return Ok(Some(body.to_vec()));
                }
                Some((Mark::Lost, _)) => {
                    return Err(self.damage(Some(name), "its block was damaged in an earlier file"));
                }
                Some((Mark::Block | Mark::Erased | Mark::Batch, _)) => {}
                None => return Err(self.damage(Some(name), "the checksum of its block is wrong")),
            }
        }
        match &self.index {
            Index::Made { lost: true, .. } => {
                Err(self.damage(Some(name), "its block may be among those that cannot be read"))
            }
            Index::Made { .. } | Index::OnDisk { .. } => Ok(None),
        }
    }

    /// Overwrites the block of a name; nothing is left of it but its length. True if there was one, and [`Segment::sync`]
    /// has to follow.
    pub fn erase(&self, name: &[u8]) -> io::Result<bool> {
        let mut erased = false;
        for place in self.places(hash_of(name))? {
            let mut frame = vec![0; place.len as usize];
            self.file.read_exact_at(&mut frame, place.at)?;
            let other = matches!(take_frame(&frame), Some((Mark::Block, body))
                if Block::of(body).is_some_and(|block| block.name != name));
            if other {
                continue;
            }
            let body = frame.len().saturating_sub(FRAME_HEAD);
            let mut zeros = Vec::new();
            super::frame::put_frame(Mark::Erased, &mut zeros, |out| out.resize(out.len() + body, 0));
            self.file.write_all_at(&zeros, place.at)?;
            erased = true;
        }
        Ok(erased)
    }

    /// Makes what was overwritten durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub fn damage(&self, name: Option<&[u8]>, detail: &str) -> Damage {
        Damage {
            file: self.path.clone(),
            name: name.map(Into::into),
            from_s: self.start_s,
            to_s: self.end_s(),
            detail: detail.to_owned(),
        }
    }

    fn places(&self, hash: u64) -> io::Result<Vec<Place>> {
        match &self.index {
            Index::Made { entries, .. } => {
                let from = entries.partition_point(|entry| entry.0 < hash);
                let same = entries[from..].iter().take_while(|entry| entry.0 == hash);
                Ok(same.map(|entry| Place::of(entry.1)).collect())
            }
            Index::OnDisk { at, entries } => self.places_on_disk(*at, *entries, hash),
        }
    }

    /// Looks where the hash must be if hashes are spread evenly, then halves what is left.
    fn places_on_disk(&self, at: u64, entries: u64, hash: u64) -> io::Result<Vec<Place>> {
        let (mut low, mut high) = (0, entries);
        let guess = (u128::from(hash) * u128::from(entries)) >> 64;
        let mut middle = u64::try_from(guess).unwrap_or(0);
        while high - low > ENTRIES_PER_READ {
            let first = middle.saturating_sub(ENTRIES_PER_READ / 2).clamp(low, high - ENTRIES_PER_READ);
            let read = self.read_entries(at, first, ENTRIES_PER_READ)?;
            let (Some(least), Some(most)) = (read.first(), read.last()) else { break };
            if least.0 >= hash && first > low {
                high = first + 1;
            } else if most.0 < hash {
                low = first + ENTRIES_PER_READ;
            } else {
                (low, high) = (first, high);
                break;
            }
            middle = low + (high - low) / 2;
        }
        let mut places = Vec::new();
        while low < high {
            let read = self.read_entries(at, low, ENTRIES_PER_READ.min(high - low))?;
            places.extend(read.iter().filter(|entry| entry.0 == hash).map(|entry| Place::of(entry.1)));
            if read.last().is_none_or(|last| last.0 > hash) {
                break;
            }
            low += read.len() as u64;
        }
        Ok(places)
    }

    fn read_entries(&self, at: u64, first: u64, count: u64) -> io::Result<Vec<(u64, u64)>> {
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0) * ENTRY];
        self.file.read_exact_at(&mut bytes, at + first * ENTRY as u64)?;
        let (words, _) = bytes.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        Ok(pairs
            .iter()
            .map(|[hash, place]| (u64::from_le_bytes(*hash), u64::from_le_bytes(*place)))
            .collect())
    }
}

/// The bytes before the first block: magic, number of inputs, inputs, checksum.
pub(super) fn header(inputs: &[u64]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let inputs = &inputs[..inputs.len().min(INPUTS_MAX)];
    bytes.extend_from_slice(&u32::try_from(inputs.len()).unwrap_or(0).to_le_bytes());
    bytes.extend(inputs.iter().flat_map(|input| input.to_le_bytes()));
    bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
    bytes
}

/// Where the blocks begin, and the inputs.
fn read_header(bytes: &[u8]) -> Option<(u64, Vec<u64>)> {
    let count = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?) as usize;
    let end = 12 + count.checked_mul(8)?;
    let sum = u32::from_le_bytes(*bytes.get(end..)?.first_chunk()?);
    if bytes[..7] != MAGIC[..7] || checksum(bytes.get(..end)?) != sum {
        return None;
    }
    let (inputs, _) = bytes[12..end].as_chunks::<8>();
    Some((end as u64 + 4, inputs.iter().map(|input| u64::from_le_bytes(*input)).collect()))
}
