//! The journal of an open hour: what has come in since it was opened, each batch a frame, each frame one `write`.
//!
//! A frame has the names that are new in this file, which get the next numbers, and then for each second and kind a
//! column of amounts by those numbers. Busy names come in the same order each second, so that their numbers are one
//! run, and an amount takes about as many bits as it has. What was written survives the process, whatever ends it;
//! it survives the host's power from the next synchronisation on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Damage;
use super::column::{self, Slot, put_varint, take, take_varint};
use super::frame::{Found, Frames, Mark, put_frame};
use super::segment::{FILE_MODE, MAGIC};
use super::series::HOUR_S;

const PREFIX: &str = "journal-";
const SUFFIX: &str = ".log";
/// Points of one frame are at most a batch's; a number of names beyond this is none that was written.
const NUMBERS_MAX: u64 = 1 << 31;

/// An amount of a name by its number in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Seconds since the hour began.
    pub second: u16,
    pub kind: u8,
    pub number: u32,
    pub amount: u64,
}

/// Start of the hour and number, by the name of a file.
pub(super) fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (start, seq) = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.split_once('-')?;
    let (start, seq) = (start.parse::<u64>().ok()?, seq.parse().ok()?);
    (start % HOUR_S == 0).then_some((start, seq))
}

pub(super) fn file_name(start_s: u64, seq: u64) -> String {
    format!("{PREFIX}{start_s}-{seq}{SUFFIX}")
}

/// A journal that is written to.
pub(super) struct Journal {
    pub seq: u64,
    pub bytes: u64,
    /// Names in it.
    pub names: u32,
    /// A write failed; nothing is added any more, and the hour is packed as soon as that works.
    pub broken: bool,
    /// Something was written since the last synchronisation.
    unsynced: bool,
    file: File,
    frame: Vec<u8>,
}

impl Journal {
    pub fn create(dir: &Path, start_s: u64, seq: u64) -> io::Result<Self> {
        let path = dir.join(file_name(start_s, seq));
        let mut file = OpenOptions::new().append(true).create_new(true).mode(FILE_MODE).open(&path)?;
        file.write_all(&MAGIC)?;
        Ok(Self {
            seq,
            bytes: MAGIC.len() as u64,
            names: 0,
            broken: false,
            unsynced: true,
            file,
            frame: Vec::new(),
        })
    }

    /// Appends one frame: names that are new in this file, and entries, which are sorted here.
    pub fn append(&mut self, new_names: &[Box<[u8]>], entries: &mut Vec<Entry>) -> io::Result<()> {
        if self.broken {
            return Ok(());
        }
        entries.sort_unstable();
        entries.dedup_by(|later, kept| {
            let same = (later.second, later.kind, later.number) == (kept.second, kept.kind, kept.number);
            if same {
                kept.amount = kept.amount.saturating_add(later.amount);
            }
            same
        });
        self.frame.clear();
        let first = self.names;
        put_frame(Mark::Batch, &mut self.frame, |out| put_batch(first, new_names, entries, out));
        if let Err(error) = self.file.write_all(&self.frame) {
            self.broken = true;
            // Half a frame is damage that the next start would tell of; what cannot be cut off is told.
            let _ = self.file.set_len(self.bytes);
            return Err(error);
        }
        self.names += u32::try_from(new_names.len()).unwrap_or(u32::MAX);
        self.bytes += self.frame.len() as u64;
        self.unsynced = true;
        Ok(())
    }

    /// Makes what was appended durable.
    pub fn sync(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unsynced) { self.file.sync_data() } else { Ok(()) }
    }
}

fn put_batch(first: u32, new_names: &[Box<[u8]>], entries: &[Entry], out: &mut Vec<u8>) {
    put_varint(first.into(), out);
    put_varint(new_names.len() as u64, out);
    for name in new_names {
        // A name's length is checked where it comes in.
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name);
    }
    let mut packed = Vec::new();
    for group in entries.chunk_by(|one, two| (one.second, one.kind) == (two.second, two.kind)) {
        let points: Vec<Slot> = group.iter().map(|entry| (entry.number, entry.amount)).collect();
        packed.clear();
        column::encode(&points, &mut packed);
        put_varint(group[0].second.into(), out);
        out.push(group[0].kind);
        put_varint(packed.len() as u64, out);
        out.extend_from_slice(&packed);
    }
}

/// Reads a journal; `each` gets name, kind, second since the hour began, and amount.
pub(super) fn replay(
    path: &Path,
    start_s: u64,
    damaged: &mut Vec<Damage>,
    each: impl FnMut(&[u8], u8, u16, u64),
) -> io::Result<u64> {
    replay_file(&File::open(path)?, path, start_s, damaged, each)
}

/// The same of a file that is open.
pub(super) fn replay_file(
    file: &File,
    path: &Path,
    start_s: u64,
    damaged: &mut Vec<Damage>,
    mut each: impl FnMut(&[u8], u8, u16, u64),
) -> io::Result<u64> {
    let bytes = file.metadata()?.len();
    let mut frames = Frames::new(file, (MAGIC.len() as u64).min(bytes), bytes);
    let mut names: Vec<Option<Box<[u8]>>> = Vec::new();
    let mut tell = |detail: String| {
        damaged.push(Damage {
            file: path.to_owned(),
            name: None,
            from_s: start_s,
            to_s: start_s + HOUR_S,
            detail,
        });
    };
    while let Some(found) = frames.next()? {
        match found {
            Found::Frame { at, mark: Mark::Batch, body } => {
                if replay_batch(&body, &mut names, &mut each).is_none() {
                    tell(format!(
                        "the batch at byte {at} holds something else than a batch, or names that were lost"
                    ));
                }
            }
            Found::Frame { at, .. } => tell(format!("at byte {at} is something else than a batch")),
            // The last write before the end may be there in part.
            Found::Damaged { from, to } if to == bytes => {
                tell(format!("its last {} bytes are no whole batch", to - from));
            }
            Found::Damaged { from, to } => {
                tell(format!("no batch can be read from byte {from} to byte {to}"))
            }
        }
    }
    Ok(bytes)
}

/// `None` where something of it could not be told; what could be was.
fn replay_batch(
    mut body: &[u8],
    names: &mut Vec<Option<Box<[u8]>>>,
    each: &mut impl FnMut(&[u8], u8, u16, u64),
) -> Option<()> {
    let first = usize::try_from(take_varint(&mut body)?).ok()?;
    let count = take_varint(&mut body)?;
    // Frames before this one may be lost, but not more names than a batch each can have brought.
    if first < names.len() || first - names.len() > super::BATCH_POINTS_MAX * 4 || count > body.len() as u64 {
        return None;
    }
    let mut lost = false;
    names.resize(first, None);
    for _ in 0..count {
        let [len] = *take(&mut body, 1)? else { return None };
        names.push(Some(take(&mut body, len.into())?.into()));
    }
    while !body.is_empty() {
        let second =
            u16::try_from(take_varint(&mut body)?).ok().filter(|second| u64::from(*second) < HOUR_S)?;
        let [kind] = *take(&mut body, 1)? else { return None };
        let len = usize::try_from(take_varint(&mut body)?).ok()?;
        for (number, amount) in column::decode(take(&mut body, len)?, NUMBERS_MAX)? {
            match names.get(number as usize) {
                Some(Some(name)) => each(name, kind, second, amount),
                Some(None) | None => lost = true,
            }
        }
    }
    (!lost).then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_batch_ends_reading_by_a_panic_or_takes_much_memory(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut names = Vec::new();
            let _ = replay_batch(&bytes, &mut names, &mut |_, _, _, _| ());
            prop_assert!(names.len() <= crate::history::BATCH_POINTS_MAX * 4 + bytes.len());
        }
    }

    #[test]
    fn amounts_of_a_second_are_added_and_names_keep_their_numbers_from_batch_to_batch() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), 7_200, 1).unwrap();
        let entry = |second, number, amount| Entry { second, kind: 1, number, amount };
        journal
            .append(
                &[b"a"[..].into(), b"b"[..].into()],
                &mut vec![entry(5, 1, 2), entry(5, 0, 1), entry(5, 1, 3)],
            )
            .unwrap();
        journal.append(&[b"c"[..].into()], &mut vec![entry(6, 2, 9), entry(4, 0, 8)]).unwrap();
        let (mut told, mut damaged) = (Vec::new(), Vec::new());
        let path = dir.path().join(file_name(7_200, 1));
        replay(&path, 7_200, &mut damaged, |name, kind, second, amount| {
            told.push((name.to_vec(), kind, second, amount))
        })
        .unwrap();
        let point = |name: &[u8], second, amount| (name.to_vec(), 1, second, amount);
        assert_eq!(told, [point(b"a", 5, 1), point(b"b", 5, 5), point(b"a", 4, 8), point(b"c", 6, 9)]);
        assert_eq!(damaged, []);
    }
}
