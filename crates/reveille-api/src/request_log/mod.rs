//! Request logs as they come in: one JSON object a line (NDJSON).
//!
//! ```text
//!   {"time":"2026-11-22T01:17:05.123Z","user":"ann","group":"staff","service":"hello.vm.test","runtime":"node22",
//!    "seconds":0.21,"cpu_seconds":0.05,"memory_bytes":73400320,"io_bytes":4096,"tags":["eu","batch"]}    (in one line)
//! ```
//!
//! `time`, `user`, `service` and `seconds` have to be there. Bytes go in as they arrive ([`Reader::push`]), and each line comes out at its
//! end: as a request, or as a [`Fault`] that tells its number, the place in it, what is wrong and what is expected. A faulty line
//! stops nothing. Of the body no more than one line is held, [`LINE_BYTES_MAX`] at most. A packed log is unpacked on the way
//! ([`Unpacker`]).

mod coding;
mod line;
#[cfg(test)]
mod tests;

use std::fmt;

use reveille_core::forecast::profile::Request;
use reveille_core::model::Timestamp;
use serde::{Deserialize, Serialize};

pub use coding::{CODINGS, Coding, CodingError, RATIO_FREE_BYTES, RATIO_MAX, UNPACKED_BYTES_MAX, Unpacker};
pub use line::{BYTES_MAX, NAME_BYTES_MAX, SECONDS_MAX, TAG_BYTES_MAX, TAGS_MAX};

/// The content type of a log.
pub const LOG_TYPE: &str = "application/x-ndjson";
/// Longest line, without its end, in bytes.
pub const LINE_BYTES_MAX: usize = 16 << 10;
/// How far the time of a request may lie ahead of this host's, in ms: clocks differ.
pub const AHEAD_MS_MAX: u64 = 600_000;
/// Longest description of a fault, in bytes: it quotes what was sent.
pub const FAULT_BYTES_MAX: usize = 400;
/// Longest name of a field in a fault, in bytes: who does not know the fields may write any.
pub const FIELD_BYTES_MAX: usize = 128;

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Number of the line, from 1.
    pub line: u64,
    /// Place in it where reading ended, in bytes from 1, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// The field, such as `seconds` or `tags[3]`, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, and what is expected.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(column) = self.column {
            write!(f, ", column {column}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ", `{field}`")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// How many lines were which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Requests that were taken.
    pub accepted: u64,
    /// Lines with a fault.
    pub refused: u64,
    /// Lines with nothing on them.
    pub blank: u64,
}

/// Reads a log, piece by piece.
#[derive(Debug)]
pub struct Reader {
    /// No request is later.
    latest: Timestamp,
    /// Lines that are over.
    lines: u64,
    /// What has come of the line that is not over.
    begun: Vec<u8>,
    /// The rest of this line is left out: it was too long, and this was said.
    is_skipping: bool,
    tally: Tally,
}

impl Reader {
    /// Begins to read a log that was sent at `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            latest: now.plus_ms(AHEAD_MS_MAX),
            lines: 0,
            begun: Vec::new(),
            is_skipping: false,
            tally: Tally::default(),
        }
    }

    /// Takes the next piece of the log, however it is cut, and hands over each line that ends in it.
    pub fn push(&mut self, mut piece: &[u8], take: &mut impl FnMut(Result<Request, Fault>)) {
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            let (last, rest) = piece.split_at(end);
            piece = rest.get(1..).unwrap_or_default();
            self.end(last, take);
        }
        if self.has_room(piece.len()) {
            self.begun.extend_from_slice(piece);
        } else {
            self.refuse_long(take);
        }
    }

    /// The log is over: hands over a last line without an end, and tells how many there were.
    pub fn finish(mut self, take: &mut impl FnMut(Result<Request, Fault>)) -> Tally {
        if !self.begun.is_empty() {
            self.end(&[], take);
        }
        self.tally
    }

    /// Lines so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// A line ends with this.
    fn end(&mut self, last: &[u8], take: &mut impl FnMut(Result<Request, Fault>)) {
        if !self.has_room(last.len()) {
            self.refuse_long(take);
        }
        self.lines += 1;
        if std::mem::take(&mut self.is_skipping) {
            return;
        }
        let mut begun = std::mem::take(&mut self.begun);
        if begun.is_empty() {
            self.hand_over(last, take);
        } else {
            begun.extend_from_slice(last);
            self.hand_over(&begun, take);
        }
        begun.clear();
        self.begun = begun;
    }

    /// One line, which is the last of those that were counted.
    fn hand_over(&mut self, line: &[u8], take: &mut impl FnMut(Result<Request, Fault>)) {
        // Some programs begin a file with a byte order mark.
        let line = if self.lines == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if line.trim_ascii().is_empty() {
            self.tally.blank += 1;
            return;
        }
        let read = line::read(line, self.latest).map_err(|fault| Fault { line: self.lines, ..fault });
        match &read {
            Ok(_) => self.tally.accepted += 1,
            Err(_) => self.tally.refused += 1,
        }
        take(read);
    }

    fn has_room(&self, more: usize) -> bool {
        !self.is_skipping && self.begun.len() + more <= LINE_BYTES_MAX
    }

    /// The line that has begun is too long: says so once.
    fn refuse_long(&mut self, take: &mut impl FnMut(Result<Request, Fault>)) {
        if self.is_skipping {
            return;
        }
        self.is_skipping = true;
        self.begun.clear();
        self.tally.refused += 1;
        let what = format!("the line is too long; expected at most {LINE_BYTES_MAX} bytes");
        take(Err(Fault { line: self.lines + 1, column: None, field: None, what }));
    }
}
