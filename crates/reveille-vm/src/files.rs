//! What large files with holes need: where their bytes are, how many they take, and whole pieces of them.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes of a block as `stat` counts them.
const BLOCK_BYTES: u64 = 512;

/// Bytes that a file takes on the disk; the rest of it are holes.
pub fn allocated_bytes(file: &Metadata) -> u64 {
    file.blocks() * BLOCK_BYTES
}

/// The next bytes at `at` or after it that are no hole; a file system that knows of none gives all that is left.
///
/// # Errors
/// The file cannot be read.
pub fn next_extent(file: &File, at: u64) -> io::Result<Option<Range<u64>>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(start..seek(file, SeekFrom::Hole(start))?))
}

/// Fills the buffer, but for what is beyond the end of the file; gives how much it filled.
///
/// # Errors
/// The file cannot be read.
pub fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
