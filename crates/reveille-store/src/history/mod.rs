//! The history: how much was asked of whom, and when, within bounds of memory, disk and age (O3).
//!
//! # What is promised
//!
//! - **Amounts are kept as they came, at ever coarser steps.** A series is a name and a [`Kind`]. Its points are whole
//!   numbers that can be added; seconds become minutes, and minutes hours, by adding, so a sum over a range is the same
//!   at each resolution that the range is a multiple of.
//! - **Unseen is not zero.** A batch says which kinds were watched in its second, and is taken or dropped as a whole.
//!   Names without a point in a watched second had none, and cost nothing; a second that nobody watched, and time whose
//!   block is damaged, are unseen.
//! - **Late points count.** Up to [`Limits::late_s_max`] they are added to what is there, also where that was packed long
//!   ago. A clock that goes back does the same; one that goes forward leaves a gap. Nothing is let go for its age
//!   before the clock has run for an hour without a jump.
//! - **`kill -9` loses what was not handed to the kernel yet:** the batches in the queue, a second's worth where the
//!   daemon keeps up. A power cut loses up to ten seconds more. Nothing is counted twice.
//! - **Damage costs a block.** Each is checked on its own, and what is damaged is skipped and told as a [`Damage`] with file,
//!   name and time. It stays told after the files were merged. Nothing that can be in a file ends the process.
//! - **The sender never waits.** What the queue cannot take is dropped and counted.
//! - **Bounded:** [`Limits`] has the bounds of memory, disk and age. When the disk's share is used up, the oldest minutes
//!   become hours before their time, and after the last of them the oldest hours go; [`Status`] tells up to where.
//!
//! # How
//!
//! ```text
//!                    memory                          files
//! batch ─► open hour: minutes of active names ──► journal-*.log      one `write` a second
//!      └─► seconds of busy names                        │ hour over
//!                                                       ▼
//!                                        minutes1h ─► minutes1d ─► hours1d ─► hours30d
//!                                           day over      14 days     month over    400 days: gone
//! ```
//!
//! **Why files of blocks, and not a redb file.** What comes in each second is a number for each busy name. A B-tree
//! copies a page of 4 KiB for each name that changed, and a redb commit that is to survive the process costs an
//! `fdatasync`; 5,000 names would write 20 MB a second and have the disk busy whenever the state database wants it.
//! Appended, the same second takes a few kilobytes and one `write` into the page cache, which survives the process
//! (though not the host, hence a synchronisation now and then). A redb file is also damaged as a whole where a page
//! near its root is, does not get smaller when rows go, and cannot lose a day by one `unlink`. What the B-tree is
//! good at, looking up and replacing small values by name, it is used for: `names.redb` has each name's activity and
//! forecast state, neither of which is the only copy.
//!
//! **Files add up.** Several may span the same time, and a query adds what all of them have. So late points, hours that
//! had to be packed early and clocks that went back need no rewriting and no case of their own: they make another small
//! file, which the next merge takes in. A merge makes one new file, whose header names those that it replaces: renamed,
//! it counts and they do not, at whatever point a crash comes.
//!
//! **A quiet name costs no memory:** the index of a file is on the disk and looked up by computed place; a name is in
//! memory only in the hour in which it was active. Coefficients of its forecast wait in the catalogue until they are
//! asked for.
//!
//! **Removal overwrites.** A name's blocks are overwritten in place in each file, and the journals that have it replaced;
//! that it was begun is durable first, so a crash does not leave half of it.

mod block;
mod column;
mod compact;
mod frame;
mod head;
mod journal;
mod keep;
mod names;
mod offline;
mod open;
mod pack;
mod plan;
mod query;
mod seconds;
mod segment;
mod series;
mod shared;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};

pub use keep::RemoveError;
pub use names::{NameInfo, NamesError, StoredAnomaly, StoredForecast};
pub use offline::{Offline, OfflinePoint};
pub use open::OpenError;
pub use query::{ANSWER_POINTS_MAX, Answer, Bucket, LIST_MAX, Query, QueryError, RANGE_MAX_S, Reader};
pub use series::{BATCH_POINTS_MAX, Batch, Kind, KindSet, NAME_BYTES_MAX, Point, Resolution, Seen};
pub use shared::Status;
pub use writer::{Recorder, StateError};

use series::{DAY_S, HOUR_S};
use writer::Writer;

/// Batches that may wait for the writing thread: a minute's, during which the disk may stand still.
pub const QUEUE_MAX: usize = 64;
/// Longest state of a forecast, in bytes.
pub const STATE_BYTES_MAX: usize = 4_096;

/// Longest state of what watches a name for anomalies, in bytes.
pub const DETECTOR_BYTES_MAX: usize = 32 * 1_024;
/// Longest anomaly, in bytes.
pub const ANOMALY_BYTES_MAX: usize = 1_024;
/// Anomalies that are kept of a name; the oldest go first.
pub const ANOMALIES_MAX: usize = 128;

/// Bounds of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// For how long minutes are kept, in seconds. Two weeks have each weekday twice, which a weekly season needs at
    /// least, and are what anybody looks at minute by minute.
    pub minutes_kept_s: u64,
    /// For how long hours are kept, in seconds: a year and a month, so that the same month of the year before is there.
    pub hours_kept_s: u64,
    /// Bytes of all files of blocks and journals. The catalogue comes on top, with a row and a state for each name.
    pub disk_bytes_max: u64,
    /// Series whose last hour is kept second by second, at 3.6 kB (up to 255 a second) or 7.2 kB (up to 65,535).
    pub busy_series_max: usize,
    /// Different seconds of an hour in which a series is active before its seconds are kept.
    pub busy_seconds: u16,
    /// Names of all open hours together; of more, an hour is packed before its end. One takes about 250 bytes, and
    /// 1.2 kB when it is active each minute.
    pub open_names_max: usize,
    /// How old a point may be, in seconds: logs come in batches, but history is no archive to fill afterwards.
    pub late_s_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            minutes_kept_s: 14 * DAY_S,
            hours_kept_s: 400 * DAY_S,
            disk_bytes_max: 2 << 30,
            busy_series_max: 16_384,
            busy_seconds: 30,
            open_names_max: 262_144,
            late_s_max: 24 * HOUR_S,
        }
    }
}

/// Something that could not be read, and was skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Whose it was, where that is known.
    pub name: Option<Box<[u8]>>,
    /// First second of the time that is lost, since the Unix epoch.
    pub from_s: u64,
    /// First second behind it.
    pub to_s: u64,
    /// What is wrong.
    pub detail: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |at_s: u64| reveille_core::model::Timestamp::from_ms(at_s.saturating_mul(1_000)).utc();
        write!(f, "{}: ", self.file.display())?;
        match self.name.as_deref() {
            Some([]) => write!(f, "which seconds were watched")?,
            Some(name) => write!(f, "{}", name.escape_ascii())?,
            None => write!(f, "names unknown")?,
        }
        if self.to_s == u64::MAX {
            return write!(f, ": {}", self.detail);
        }
        write!(f, ", {} to {}: {}", time(self.from_s), time(self.to_s), self.detail)
    }
}

/// An open history. Dropping it writes what still waits, then closes the files.
#[derive(Debug)]
pub struct History {
    writer: Writer,
    reader: Reader,
}

impl History {
    /// Opens the history in `dir`, a directory of its own, which is made if it is not there. Tells what was damaged.
    ///
    /// Blocks: reads the journals of the open hours and the index of each file.
    ///
    /// # Errors
    /// [`OpenError`]; damage is none.
    pub fn open(dir: &Path, limits: Limits) -> Result<(Self, Vec<Damage>), OpenError> {
        let (keeper, shared, damaged, lock) = open::open(dir, limits)?;
        let writer = Writer::start(keeper, std::sync::Arc::clone(&shared.counters), lock)
            .map_err(|source| OpenError::Unusable { path: dir.to_owned(), source })?;
        Ok((Self { writer, reader: Reader { shared } }, damaged))
    }

    /// What hands points over; clones share the queue.
    pub fn recorder(&self) -> Recorder {
        self.writer.recorder.clone()
    }

    /// What reads.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }
}
