//! The disk of an image: checked, hashed, and stored once.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::build::{BuildError, BuildStep, OnProgress, Progress};
use super::manifest::{DiskMark, FileMark};
use super::space;
use super::store::ImageStore;
use crate::files::{allocated_bytes, read_full};
use crate::qcow2::{self, DiskFault};

/// Bytes that are read at a time; runs of zeros of this length become holes.
const BLOCK_BYTES: usize = 1 << 16;

/// Puts the disk `given` at `to`, which an image's directory has not yet. One that another image has is the same file.
pub(super) fn add(
    store: &ImageStore,
    given: &Path,
    to: &Path,
    on_progress: OnProgress<'_>,
) -> Result<DiskMark, BuildError> {
    let fault = |fault| BuildError::Disk { path: given.to_owned(), fault };
    let unreadable = |error| fault(DiskFault::Unreadable(error));
    let mut file = File::open(given).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::other("it is not a file")));
    }
    let (format, guest_bytes) = qcow2::examine(&file).map_err(fault)?;
    let mut at = Progress { step: BuildStep::Disk, entries: 0, bytes: 0, bytes_total: None };
    let mut told = |bytes| {
        at.bytes += bytes;
        on_progress(at);
    };
    let mark = read(&mut file, &mut told, |_, _| Ok(())).map_err(unreadable)?;
    // Somebody else's file could change later; one of the store does not.
    let there = store.disk(&mark.blake3).is_some_and(|there| fs::hard_link(there, to).is_ok());
    if !there {
        let failed = |source| BuildError::Write { path: to.to_owned(), source };
        space::require(to.parent().unwrap_or(to), allocated(&file).map_err(unreadable)?)?;
        let mut copy = File::create_new(to).map_err(failed)?;
        let mut file = File::open(given).map_err(unreadable)?;
        let copied = read(&mut file, &mut told, |at, block| copy.write_all_at(block, at)).map_err(failed)?;
        copy.set_len(copied.bytes).map_err(failed)?;
        copy.flush().and_then(|()| copy.sync_all()).map_err(failed)?;
        if copied != mark {
            return Err(unreadable(io::Error::other(
                "it changed while it was copied; build again when nothing uses it",
            )));
        }
        fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o444)).map_err(failed)?;
    }
    Ok(DiskMark { file: mark, format, guest_bytes })
}

/// Bytes that a file has on its disk.
fn allocated(file: &File) -> io::Result<u64> {
    Ok(allocated_bytes(&file.metadata()?))
}

/// Reads a file to its end; each block that is not all zeros is passed on with its place.
fn read(
    file: &mut File,
    told: &mut dyn FnMut(u64),
    mut on_block: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<FileMark> {
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let filled = read_full(file, &mut block)?;
        let read = block.get(..filled).unwrap_or_default();
        if read.is_empty() {
            return Ok(FileMark { blake3: hasher.finalize().to_hex().to_string(), bytes });
        }
        hasher.update(read);
        if read.iter().any(|byte| *byte != 0) {
            on_block(bytes, read)?;
        }
        bytes += read.len() as u64;
        told(read.len() as u64);
    }
}
