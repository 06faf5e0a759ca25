//! A file of dnstap, read from its start to its end: what `kdig -E`, `fstrm_capture` and servers write.

use std::io::{self, Read};

use super::frames::{FrameError, FrameFault, Session, Step, StreamKind};
use super::message::Dnstap;
use super::protobuf::DecodeError;

/// Read at a time.
const READ_BYTES: usize = 65_536;

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The disk.
    #[error("frame {frame} at byte {offset}: {source}")]
    Io {
        /// The frame that was to be read.
        frame: u64,
        /// Where it begins.
        offset: u64,
        /// Why not.
        source: io::Error,
    },
    /// A frame is malformed; what follows it cannot be found.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// The message of one frame, or why it is none; the next frame can be read all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'b> {
    /// Number of the frame, from 1 on; control frames count.
    pub frame: u64,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// The message.
    pub message: Result<Dnstap<'b>, DecodeError>,
}

/// Reads a file. Memory: one frame, and what is read at a time.
#[derive(Debug)]
pub struct DnstapFile<R> {
    from: R,
    session: Session,
    unread: Vec<u8>,
    taken: usize,
}

impl<R: Read> DnstapFile<R> {
    /// From the start.
    pub const fn new(from: R) -> Self {
        Self { from, session: Session::new(StreamKind::File), unread: Vec::new(), taken: 0 }
    }

    /// The next message; `None` at the end. A file that was cut between two frames, as by a server that was killed, ends
    /// there.
    ///
    /// # Errors
    /// It cannot be read on; the place is named.
    pub fn entry(&mut self) -> Result<Option<Entry<'_>>, FileError> {
        let (frame, offset, payload) = loop {
            let (frame, offset) = (self.session.frame(), self.session.offset());
            let rest = self.unread.get(self.taken..).unwrap_or_default();
            let next = self.session.next(rest)?;
            match next.map(|(step, length)| (matches!(step, Step::Payload(_)), length)) {
                Some((is_payload, length)) => {
                    let end = self.taken + length;
                    self.taken = end;
                    if is_payload {
                        // Behind the length of the frame.
                        break (frame, offset, end - length + 4..end);
                    }
                }
                None if self.fill()? => {}
                None if self.unread.is_empty() => return Ok(None),
                None => return Err(self.session.fault(FrameFault::Cut).into()),
            }
        };
        let message = Dnstap::decode(self.unread.get(payload).unwrap_or_default());
        Ok(Some(Entry { frame, offset, message }))
    }

    /// Reads on; false at the end.
    fn fill(&mut self) -> Result<bool, FileError> {
        self.unread.drain(..self.taken);
        self.taken = 0;
        let mut limited = self.from.by_ref().take(READ_BYTES as u64);
        let read = limited.read_to_end(&mut self.unread).map_err(|source| FileError::Io {
            frame: self.session.frame(),
            offset: self.session.offset(),
            source,
        })?;
        Ok(read > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: &[u8] = include_bytes!("../../tests/dnstap/servers.fstrm");

    fn read(file: &[u8]) -> (Vec<(u64, u64, bool)>, Option<String>) {
        let (mut file, mut entries) = (DnstapFile::new(file), Vec::new());
        loop {
            match file.entry() {
                Ok(Some(entry)) => entries.push((entry.frame, entry.offset, entry.message.is_ok())),
                Ok(None) => return (entries, None),
                Err(error) => return (entries, Some(error.to_string())),
            }
        }
    }

    #[test]
    fn files_are_read_to_their_end_and_named_where_they_fail() {
        let (entries, error) = read(SERVERS);
        assert_eq!((entries.len(), error), (10, None));
        assert_eq!((entries[0], entries[1].1), ((2, 42, true), 42 + 108));
        // Larger than what is read at a time, as two streams behind each other.
        let (entries, error) = read(&SERVERS.repeat(200));
        assert_eq!((entries.len(), error), (2_000, None));
        // Killed between two frames.
        let (entries, error) = read(&SERVERS[..SERVERS.len() - 12]);
        assert_eq!((entries.len(), error), (10, None));
        let (entries, error) = read(&SERVERS[..100]);
        assert_eq!(
            (entries.len(), error.as_deref()),
            (0, Some("frame 2 at byte 42: the stream ends within it"))
        );
        // Not dnstap inside.
        let mut odd = SERVERS.to_vec();
        odd[46] = 0xff;
        let (entries, error) = read(&odd);
        assert_eq!((entries[0], entries.len(), error), ((2, 42, false), 10, None));
        assert_eq!(read(b""), (vec![], None));
        let text = read(b"no dnstap at all, but some text").1.unwrap();
        assert!(text.starts_with("frame 1 at byte 0: a data frame of 1852776548 bytes"), "{text}");
    }
}
