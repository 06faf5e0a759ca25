//! The catalogue: every name with its first and last activity, the states of its forecast and of what watches it for anomalies,
//! and the last of these, in a redb file.
//!
//! All are looked up by name and replaced in place, one name at a time, which files of blocks cannot do and a B-tree
//! does. But for anomalies none is the only copy: activity is read from the blocks again should the file be damaged, and a forecast's
//! state is computed again from the history. So commits are not synchronised one by one but for anomalies, which are rare, only now and then, which is
//! what keeps the disk to the state database.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::segment::FILE_MODE;

const FILE: &str = "names.redb";
/// Where a damaged one is put.
const FILE_DAMAGED: &str = "names.redb.damaged";
const CACHE_BYTES_MAX: usize = 8 << 20;

/// Name → first and last activity, in seconds since the Unix epoch.
const ACTIVITY: TableDefinition<'static, &[u8], (u64, u64)> = TableDefinition::new("activity");
/// Name → version of the state's format, and the state.
const STATES: TableDefinition<'static, &[u8], (u32, &[u8])> = TableDefinition::new("states");
/// The same of what watches a name for anomalies.
const DETECTORS: TableDefinition<'static, &[u8], (u32, &[u8])> = TableDefinition::new("detectors");
/// Name and begin, in ms since the Unix epoch → an anomaly.
const ANOMALIES: TableDefinition<'static, (&[u8], u64), &[u8]> = TableDefinition::new("anomalies");
/// Names whose removal has begun.
const LEAVING: TableDefinition<'static, &[u8], ()> = TableDefinition::new("leaving");
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// The highest number of a file whose names are in [`ACTIVITY`].
const APPLIED: &str = "applied";

/// Why the catalogue could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// The file is not open; the next write tries to open it again.
    #[error("the catalogue of names is closed after an error")]
    Closed,
    /// The file cannot be read or written.
    #[error("the catalogue of names cannot be used: {0}")]
    Storage(Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for NamesError {
    fn from(error: E) -> Self {
        Self::Storage(Box::new(error.into()))
    }
}

/// The state of a name's forecast, which means something only to whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredForecast {
    /// The name.
    pub name: Box<[u8]>,
    /// Version of the state's format, the writer's own.
    pub version: u32,
    /// At most [`super::STATE_BYTES_MAX`] bytes.
    pub state: Vec<u8>,
}

/// Whose state it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StateOf {
    Forecast,
    Detector,
}

impl StateOf {
    fn table(self) -> TableDefinition<'static, &'static [u8], (u32, &'static [u8])> {
        match self {
            Self::Forecast => STATES,
            Self::Detector => DETECTORS,
        }
    }

    /// Longest one, in bytes.
    pub fn bytes_max(self) -> usize {
        match self {
            Self::Forecast => super::STATE_BYTES_MAX,
            Self::Detector => super::DETECTOR_BYTES_MAX,
        }
    }
}

/// Something out of the ordinary in a name's history, which means something only to whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnomaly {
    /// The name.
    pub name: Box<[u8]>,
    /// When it began, in ms since the Unix epoch. One of the same name and begin takes the place of the one before.
    pub since_ms: u64,
    /// At most [`super::ANOMALY_BYTES_MAX`] bytes.
    pub event: Vec<u8>,
}

/// A name that has a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameInfo {
    /// The name.
    pub name: Box<[u8]>,
    /// When it was first active, in seconds since the Unix epoch.
    pub first_s: u64,
    /// When it was last active.
    pub last_s: u64,
}

#[derive(Debug)]
pub(super) struct Names {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl Names {
    /// Opens the file, or puts a damaged one aside and begins a new one; tells which, by the fault.
    pub fn open(dir: &Path) -> io::Result<(Self, Option<String>)> {
        let path = dir.join(FILE);
        let damage = match open_file(&path) {
            Ok(database) => return Ok((Self { path, database: RwLock::new(Some(database)) }, None)),
            Err(Fault::Io(error)) => return Err(error),
            Err(Fault::Damaged(detail)) => detail,
        };
        std::fs::rename(&path, dir.join(FILE_DAMAGED))?;
        match open_file(&path) {
            Ok(database) => Ok((Self { path, database: RwLock::new(Some(database)) }, Some(damage))),
            Err(Fault::Io(error)) => Err(error),
            Err(Fault::Damaged(detail)) => Err(io::Error::other(detail)),
        }
    }

    /// The highest number of a file whose names are known.
    pub fn applied(&self) -> Result<u64, NamesError> {
        self.read(|database| {
            Ok(database.begin_read()?.open_table(META)?.get(APPLIED)?.map_or(0, |row| row.value()))
        })
    }

    /// Notes the activity of names, which file `seq` has.
    pub fn note<'n>(
        &self,
        seq: u64,
        active: impl Iterator<Item = (&'n [u8], u64, u64)>,
    ) -> Result<(), NamesError> {
        self.write(Durability::None, |transaction| {
            let mut table = transaction.open_table(ACTIVITY)?;
            for (name, first, last) in active.filter(|(name, ..)| !name.is_empty()) {
                let before = table.get(name)?.map(|row| row.value());
                let (from, to) = before.unwrap_or((first, last));
                table.insert(name, (from.min(first), to.max(last)))?;
            }
            let mut meta = transaction.open_table(META)?;
            let applied = meta.get(APPLIED)?.map_or(0, |row| row.value());
            meta.insert(APPLIED, applied.max(seq))?;
            Ok(())
        })
    }

    pub fn put_states(&self, of: StateOf, states: &[StoredForecast]) -> Result<(), NamesError> {
        self.write(Durability::None, |transaction| {
            let mut table = transaction.open_table(of.table())?;
            for row in states {
                table.insert(&*row.name, (row.version, row.state.as_slice()))?;
            }
            Ok(())
        })
    }

    /// Makes durable what was written before.
    pub fn sync(&self) -> Result<(), NamesError> {
        self.write(Durability::Immediate, |_| Ok(()))
    }

    /// Notes anomalies durably: they are in no other file. Of each name the newest stay.
    pub fn note_anomalies(&self, anomalies: &[StoredAnomaly]) -> Result<(), NamesError> {
        self.write(Durability::Immediate, |transaction| {
            let mut table = transaction.open_table(ANOMALIES)?;
            for row in anomalies {
                table.insert((&*row.name, row.since_ms), row.event.as_slice())?;
                let all = (&*row.name, 0)..=(&*row.name, u64::MAX);
                let mut begins = Vec::new();
                for found in table.range(all)? {
                    begins.push(found?.0.value().1);
                }
                let over = begins.len().saturating_sub(super::ANOMALIES_MAX);
                for since_ms in begins.into_iter().take(over) {
                    table.remove((&*row.name, since_ms))?;
                }
            }
            Ok(())
        })
    }

    /// The newest anomalies of a name, newest first.
    pub fn anomalies(&self, name: &[u8], limit: usize) -> Result<Vec<StoredAnomaly>, NamesError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(ANOMALIES)?;
            let mut found = Vec::new();
            for row in table.range((name, 0)..=(name, u64::MAX))?.rev().take(limit) {
                let (key, event) = row?;
                let since_ms = key.value().1;
                found.push(StoredAnomaly { name: name.into(), since_ms, event: event.value().to_vec() });
            }
            Ok(found)
        })
    }

    pub fn state(&self, of: StateOf, name: &[u8]) -> Result<Option<(u32, Vec<u8>)>, NamesError> {
        self.read(|database| {
            let row = database.begin_read()?.open_table(of.table())?.get(name)?;
            Ok(row.map(|row| (row.value().0, row.value().1.to_vec())))
        })
    }

    pub fn info(&self, name: &[u8]) -> Result<Option<(u64, u64)>, NamesError> {
        self.read(|database| {
            Ok(database.begin_read()?.open_table(ACTIVITY)?.get(name)?.map(|row| row.value()))
        })
    }

    /// At most `limit` names behind `after`, in the order of their bytes.
    pub fn list(&self, after: &[u8], limit: usize) -> Result<Vec<NameInfo>, NamesError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(ACTIVITY)?;
            let mut names = Vec::new();
            for row in table.range(after..)? {
                let (key, value) = row?;
                if names.len() == limit {
                    break;
                }
                if key.value() > after {
                    let (first_s, last_s) = value.value();
                    names.push(NameInfo { name: key.value().into(), first_s, last_s });
                }
            }
            Ok(names)
        })
    }

    /// Notes durably that a name leaves, and forgets its activity and state.
    pub fn begin_removal(&self, name: &[u8]) -> Result<(), NamesError> {
        self.write(Durability::Immediate, |transaction| {
            transaction.open_table(LEAVING)?.insert(name, ())?;
            transaction.open_table(ACTIVITY)?.remove(name)?;
            transaction.open_table(STATES)?.remove(name)?;
            transaction.open_table(DETECTORS)?.remove(name)?;
            let mut anomalies = transaction.open_table(ANOMALIES)?;
            anomalies.retain_in((name, 0)..=(name, u64::MAX), |_, _| false)?;
            Ok(())
        })
    }

    /// Nothing of the name is left elsewhere.
    pub fn end_removal(&self, name: &[u8]) -> Result<(), NamesError> {
        self.write(Durability::Immediate, |transaction| {
            transaction.open_table(LEAVING)?.remove(name)?;
            transaction.open_table(ACTIVITY)?.remove(name)?;
            Ok(())
        })
    }

    /// Names whose removal was begun and not ended.
    pub fn leaving(&self) -> Result<Vec<Box<[u8]>>, NamesError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(LEAVING)?;
            let mut names = Vec::new();
            for row in table.iter()? {
                names.push(row?.0.value().into());
            }
            Ok(names)
        })
    }

    /// Bytes that the file takes on the disk; redb makes it longer than that.
    pub fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |about| about.blocks() * 512)
    }

    fn read<T>(&self, look: impl FnOnce(&Database) -> Result<T, NamesError>) -> Result<T, NamesError> {
        let slot = self.database.read().unwrap_or_else(PoisonError::into_inner);
        look(slot.as_ref().ok_or(NamesError::Closed)?)
    }

    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<(), NamesError>,
    ) -> Result<(), NamesError> {
        self.reopen_if_closed()?;
        let result = self.read(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability)?;
            change(&transaction)?;
            Ok(transaction.commit()?)
        });
        if result.is_err() {
            // redb takes nothing more after an I/O error.
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        result
    }

    fn reopen_if_closed(&self) -> Result<(), NamesError> {
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(open_file(&self.path).map_err(|_| NamesError::Closed)?);
        }
        Ok(())
    }
}

enum Fault {
    Io(io::Error),
    Damaged(String),
}

#[expect(clippy::wildcard_enum_match_arm, reason = "redb may add errors; whatever it cannot open is damaged")]
fn fault(error: redb::Error) -> Fault {
    match error {
        // redb reports a file that is none of its own as invalid data.
        redb::Error::Io(error)
            if error.kind() != io::ErrorKind::InvalidData && error.kind() != io::ErrorKind::UnexpectedEof =>
        {
            Fault::Io(error)
        }
        redb::Error::DatabaseAlreadyOpen => Fault::Io(io::Error::other("another process has it open")),
        other => Fault::Damaged(other.to_string()),
    }
}

/// Every page's checksum is verified, as in the state database, and every table made.
fn open_file(path: &Path) -> Result<Database, Fault> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(path)
        .map_err(Fault::Io)?;
    let open = || -> Result<Database, redb::Error> {
        let mut builder = Database::builder();
        let database =
            builder.set_cache_size(CACHE_BYTES_MAX).set_check_integrity_on_open(true).create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(ACTIVITY)?;
        transaction.open_table(STATES)?;
        transaction.open_table(DETECTORS)?;
        transaction.open_table(ANOMALIES)?;
        transaction.open_table(LEAVING)?;
        transaction.open_table(META)?;
        transaction.commit()?;
        Ok(database)
    };
    match std::panic::catch_unwind(open) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(fault(error)),
        Err(_) => Err(Fault::Damaged("its pages contradict each other".to_owned())),
    }
}
