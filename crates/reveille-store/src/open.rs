//! Opening: the directory, the lock, the file, its checks, and opening again after an I/O error.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use redb::{Database, ReadableDatabase, TableHandle, WriteTransaction};

use crate::load::LoadError;
use crate::schema::{
    DECISIONS, HEALTH, INSTANCES, META, NEXT_INSTANCE_KEY, PUBLISHED, PUBLISHED_SERIALS, SCHEMA_KEY,
    SCHEMA_VERSION, SERIAL_CEILINGS, SERVICES, STATIC_SETS, TOKENS, WAKES,
};

/// The database's file in the state directory.
const FILE: &str = "state.redb";
/// Where a new database is made before it gets its name.
const FILE_NEW: &str = "state.redb.new";
/// The file whose lock tells that a daemon uses the directory; it holds the daemon's process number.
const LOCK: &str = "lock";
/// Memory for cached pages. The rows in use are in the daemon's own memory; this serves commits and `why`.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// Only the daemon's user: specs name addresses and images, and the token hashes are nobody's business.
const FILE_MODE: u32 = 0o600;
pub(crate) const DIR_MODE: u32 = 0o700;

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the lock.
    #[error(
        "another daemon{} uses the state directory {}; stop it, or give this one a directory of its own",
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default(), dir.display()
    )]
    InUse {
        /// The state directory.
        dir: PathBuf,
        /// The other process, if it said so.
        pid: Option<u32>,
    },
    /// A file or directory cannot be used.
    #[error("the state directory cannot be used: {}: {source}", path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file was altered or is no database.
    #[error(
        "the state database {} is damaged ({detail}); it was left as it is: put a copy of it back. Without one, it \
         can be moved away to start with an empty one, and three things are lost with it: what dynamic updates have \
         changed, so put those records into the zone files; the serials that zones were published with, so raise \
         the serial of each SOA in the zone files above what the secondaries have, or they take nothing more; and \
         which guests still run", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// A newer Reveille wrote it.
    #[error(
        "the state database {} has layout {found}, and this Reveille knows layouts up to {known}; \
         run the newer Reveille that wrote it", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u64,
        /// The newest layout known here.
        known: u64,
    },
    /// It was opened, but cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What readers and the writer share.
pub(crate) struct Shared {
    path: PathBuf,
    /// `None` while the file could not be opened again after an I/O error.
    database: RwLock<Option<Database>>,
    /// Held for the life of the process, also while the file is closed to be opened again.
    _lock: File,
}

impl Shared {
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Unusable { path, source }
        };
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(unusable(dir))?;
        let lock = take_lock(dir)?;
        let path = dir.join(FILE);
        if !path.try_exists().map_err(unusable(&path))? {
            create(dir, &path)?;
        }
        let database = open_file(&path)?;
        check_schema(&database, &path)?;
        add_tables(&database).map_err(|error| open_failed(&path, error))?;
        Ok(Self { path, database: RwLock::new(Some(database)), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database, for reading or for a commit; only [`Shared::reopen`] excludes others.
    pub fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the file and opens it again, which redb demands after an I/O error.
    pub fn reopen(&self) -> Result<(), OpenError> {
        let mut slot = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closed first: redb's own lock is on the open file.
        drop(slot.take());
        *slot = Some(open_file(&self.path)?);
        Ok(())
    }
}

pub(crate) fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    let unusable = |source| OpenError::Unusable { path: path.clone(), source };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(&path)
        .map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // The number only makes the sentence better; what cannot be read is left out.
            let read = lock.read_to_string(&mut text);
            let pid = read.ok().and_then(|_| text.trim().parse().ok());
            return Err(OpenError::InUse { dir: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(unusable(source)),
    }
    // A full disk must not keep the daemon from starting, and the number is only a courtesy.
    let _ =
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
}

/// Makes an empty database under another name and renames it, so that a crash leaves none or a whole one.
fn create(dir: &Path, path: &Path) -> Result<(), OpenError> {
    let new = dir.join(FILE_NEW);
    let unusable = |source| OpenError::Unusable { path: new.clone(), source };
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unusable(error)),
        Ok(()) | Err(_) => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&new).map_err(unusable)?;
    let database = open_file(&new)?;
    lay_out(&database).map_err(|error| open_failed(&new, error))?;
    drop(database);
    std::fs::rename(&new, path).map_err(unusable)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(unusable)?;
    // The directory may be new itself. Its parent is often nobody's to open; then the system's own write-back
    // has to do for the very first seconds of an installation.
    if let Some(Ok(parent)) = dir.parent().map(File::open) {
        parent.sync_all().map_err(unusable)?;
    }
    Ok(())
}

/// Every table, so that readers never meet a missing one.
fn lay_out(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(SCHEMA_KEY, SCHEMA_VERSION)?;
        meta.insert(NEXT_INSTANCE_KEY, 1)?;
    }
    transaction.open_table(SERVICES)?;
    transaction.open_table(INSTANCES)?;
    transaction.open_table(WAKES)?;
    transaction.open_table(DECISIONS)?;
    transaction.open_table(TOKENS)?;
    open_later_tables(&transaction)?;
    transaction.commit()?;
    Ok(())
}

/// The tables that a database of an older Reveille may not have yet.
fn add_tables(database: &Database) -> Result<(), redb::Error> {
    let there: BTreeSet<String> =
        database.begin_read()?.list_tables()?.map(|table| table.name().to_owned()).collect();
    let later = [
        STATIC_SETS.name(),
        PUBLISHED.name(),
        PUBLISHED_SERIALS.name(),
        SERIAL_CEILINGS.name(),
        HEALTH.name(),
    ];
    if later.iter().all(|table| there.contains(*table)) {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    open_later_tables(&transaction)?;
    transaction.commit()?;
    Ok(())
}

fn open_later_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(STATIC_SETS)?;
    transaction.open_table(PUBLISHED)?;
    transaction.open_table(PUBLISHED_SERIALS)?;
    transaction.open_table(SERIAL_CEILINGS)?;
    transaction.open_table(HEALTH)?;
    Ok(())
}

fn open_file(path: &Path) -> Result<Database, OpenError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES_MAX).set_check_integrity_on_open(true);
    // redb means to return an error for whatever bytes it meets; should one of its own checks panic instead,
    // the file is just as damaged.
    match catch_unwind(AssertUnwindSafe(|| builder.create(path))) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(open_failed(path, error.into())),
        Err(_) => Err(OpenError::Damaged {
            path: path.to_owned(),
            detail: "its pages contradict each other".to_owned(),
        }),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "redb may add errors; whatever it cannot open is damaged")]
fn open_failed(path: &Path, error: redb::Error) -> OpenError {
    let path = path.to_owned();
    match error {
        // redb reports a file that is none of its own as invalid data.
        redb::Error::Io(source)
            if source.kind() != io::ErrorKind::InvalidData
                && source.kind() != io::ErrorKind::UnexpectedEof =>
        {
            OpenError::Unusable { path, source }
        }
        redb::Error::DatabaseAlreadyOpen => OpenError::InUse { dir: path, pid: None },
        redb::Error::UpgradeRequired(version) => OpenError::Damaged {
            path,
            detail: format!("its file format {version} is too old for this Reveille"),
        },
        other => OpenError::Damaged { path, detail: other.to_string() },
    }
}

fn check_schema(database: &Database, path: &Path) -> Result<(), OpenError> {
    let read = || -> Result<Option<u64>, redb::Error> {
        let transaction = database.begin_read()?;
        Ok(transaction.open_table(META)?.get(SCHEMA_KEY)?.map(|version| version.value()))
    };
    match read().map_err(|error| open_failed(path, error))? {
        Some(found) if found > SCHEMA_VERSION => {
            Err(OpenError::Newer { path: path.to_owned(), found, known: SCHEMA_VERSION })
        }
        Some(_) => Ok(()),
        None => {
            Err(OpenError::Damaged { path: path.to_owned(), detail: "it has no layout version".to_owned() })
        }
    }
}
