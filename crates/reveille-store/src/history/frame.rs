//! How anything lies in a file: `CRC-32C of the rest (4) · mark (2) · length of the body (4) · body`, little-endian.
//!
//! After damage the next frame is found by its mark and its checksum, so that a changed bit costs one frame and a
//! file that was cut short all that was cut.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crc_fast::CrcAlgorithm;

/// Bytes before the body.
pub(super) const FRAME_HEAD: usize = 10;
/// Longest body. A name has at most a few kinds of 1,440 points.
pub(super) const BODY_BYTES_MAX: usize = 4 << 20;
/// Bytes that are read ahead.
const READ_AHEAD: usize = 256 << 10;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// A name's points.
    Block,
    /// What was a name's, and was removed; its body is zeros.
    Erased,
    /// What was damaged when the file was packed; only its place in the index tells whose it was.
    Lost,
    /// A batch in a journal.
    Batch,
}

impl Mark {
    const fn bytes(self) -> [u8; 2] {
        match self {
            Self::Block => [0xb5, 0x1c],
            Self::Erased => [0xb5, 0x1d],
            Self::Lost => [0xb5, 0x1e],
            Self::Batch => [0xb5, 0x2c],
        }
    }

    fn of(bytes: [u8; 2]) -> Option<Self> {
        [Self::Block, Self::Erased, Self::Lost, Self::Batch].into_iter().find(|mark| mark.bytes() == bytes)
    }
}

/// CRC-32C.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    // The crate returns every width in 64 bits.
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) & u64::from(u32::MAX)).unwrap_or(0)
}

/// Appends a frame; `write` appends the body.
pub(super) fn put_frame(mark: Mark, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEAD]);
    write(out);
    let len = u32::try_from(out.len() - start - FRAME_HEAD).unwrap_or(u32::MAX);
    out[start + 4..start + 6].copy_from_slice(&mark.bytes());
    out[start + 6..start + FRAME_HEAD].copy_from_slice(&len.to_le_bytes());
    let sum = checksum(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&sum.to_le_bytes());
}

/// The frame at the start of `bytes`: its mark and body. `None` where there is no whole one.
pub(super) fn take_frame(bytes: &[u8]) -> Option<(Mark, &[u8])> {
    let (mark, sum, len) = head(bytes)?;
    let rest = bytes.get(4..FRAME_HEAD + len)?;
    (checksum(rest) == sum).then(|| (mark, &rest[FRAME_HEAD - 4..]))
}

fn head(bytes: &[u8]) -> Option<(Mark, u32, usize)> {
    let sum = u32::from_le_bytes(*bytes.first_chunk()?);
    let mark = Mark::of(*bytes.get(4..)?.first_chunk()?)?;
    let len = u32::from_le_bytes(*bytes.get(6..)?.first_chunk()?) as usize;
    (len <= BODY_BYTES_MAX).then_some((mark, sum, len))
}

/// What was found next in a file.
pub(super) enum Found {
    /// A whole frame.
    Frame {
        /// Where it begins.
        at: u64,
        /// What it holds.
        mark: Mark,
        /// Its body.
        body: Vec<u8>,
    },
    /// Bytes that are none, up to the next whole frame or the end.
    Damaged {
        /// Where they begin.
        from: u64,
        /// Where they end.
        to: u64,
    },
}

/// Reads the frames of a part of a file, one after another.
pub(super) struct Frames<'f> {
    file: &'f File,
    /// Where the next frame begins.
    at: u64,
    end: u64,
    /// Bytes of the file from `buffer_at` on.
    buffer: Vec<u8>,
    buffer_at: u64,
}

impl<'f> Frames<'f> {
    /// Of the bytes from `at` to `end`.
    pub fn new(file: &'f File, at: u64, end: u64) -> Self {
        Self { file, at, end, buffer: Vec::new(), buffer_at: at }
    }

    /// The next frame or damage; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Found>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let from = self.at;
        while self.at < self.end {
            if let Some((mark, body)) = self.frame_here()? {
                if self.at > from {
                    // The frame is found again by the next call.
                    return Ok(Some(Found::Damaged { from, to: self.at }));
                }
                self.at += (FRAME_HEAD + body.len()) as u64;
                return Ok(Some(Found::Frame { at: from, mark, body }));
            }
            self.at += 1;
        }
        Ok(Some(Found::Damaged { from, to: self.end }))
    }

    fn frame_here(&mut self) -> io::Result<Option<(Mark, Vec<u8>)>> {
        let Some((_, _, len)) = head(self.have(FRAME_HEAD)?) else { return Ok(None) };
        if self.at + (FRAME_HEAD + len) as u64 > self.end {
            return Ok(None);
        }
        Ok(take_frame(self.have(FRAME_HEAD + len)?).map(|(mark, body)| (mark, body.to_vec())))
    }

    /// The bytes from `at` on: at least `count`, or all that there are.
    fn have(&mut self, count: usize) -> io::Result<&[u8]> {
        let skip = |at: u64, base: u64| usize::try_from(at - base).unwrap_or(usize::MAX);
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let start = skip(self.at, self.buffer_at);
        if start >= self.buffer.len() || self.buffer.len() - start < count.min(left) {
            let want = count.max(READ_AHEAD).min(left);
            self.buffer.resize(want, 0);
            self.buffer_at = self.at;
            let mut filled = 0;
            while filled < want {
                match self.file.read_at(&mut self.buffer[filled..], self.at + filled as u64) {
                    Ok(0) => break,
                    Ok(more) => filled += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.buffer.truncate(filled);
            return Ok(&self.buffer);
        }
        Ok(&self.buffer[start..])
    }
}
