//! The state database: what must be known again after the daemon, or the host, was cut off at any instant (L2).
//!
//! # What is promised
//!
//! - **An acknowledged change is there after `kill -9` and after a power cut.** [`Store::write`] hands back an
//!   [`Ack`]; it resolves to `Ok` only after the commit that holds the change was synchronised to the disk.
//!   What is done in the world because of a change (a guest started, an address answered) waits for it.
//! - **One `write` is all or nothing.** Its changes are in one transaction, so a service and its first instance
//!   appear together or not at all.
//! - **Order is kept.** Changes become durable in the order of the calls to `write`; a later change is never
//!   there without an earlier one that was acknowledged. An empty `write` is a barrier.
//! - **One daemon.** An exclusive lock on a file of the directory is held for the life of the [`Store`]; the
//!   kernel drops it with the process, so a crash leaves nothing to clean up.
//! - **Nothing is ever deleted to get going.** A damaged database, and one that a newer Reveille wrote, are
//!   refused with a sentence and left as they are. Every page's checksum is verified at each start, not only
//!   after a crash.
//! - **A full disk costs the writes that did not fit, and no others.** Their `Ack` is an error, everything
//!   acknowledged before is kept, and the database is reopened, so that writes succeed again once there is room.
//!   After an error the change may or may not be there: the caller writes the whole row again.
//!
//! # What is not promised
//!
//! Rows are whole values, keyed by identity: a write replaces. There is no read-modify-write here, since one
//! task of the daemon owns the fleet and the database only follows it. History (wakes, decisions) is bounded
//! per service and the oldest goes first.
//!
//! # How
//!
//! redb: copy-on-write B-trees in one file, two commit slots, checksums. One thread writes. It takes everything
//! that waits in its bounded queue into one transaction (group commit), so a burst costs one synchronisation,
//! and a single change waits for nobody. A commit is one `fdatasync`: redb's single-phase commit finds a torn
//! commit by its checksums and falls back to the slot before it. Its two-phase commit with a saved allocator
//! would spare the walk over all pages at the next start, which is wanted anyway, and cost a second
//! synchronisation on the path of every wake.
//!
//! Readers take a snapshot of the last commit and never wait for the writer.

#![forbid(unsafe_code)]

mod change;
pub mod history;
mod load;
mod open;
mod read;
mod schema;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reveille_core::model::{DomainName, InstanceId};

pub use change::{
    Change, Origin, StoredDecision, StoredHealth, StoredPublished, StoredService, StoredStaticSet,
    StoredToken, TokenHash,
};
pub use load::{LoadError, Loaded};
pub use open::OpenError;
pub use read::{ReadError, Sequenced};
pub use writer::{Ack, Acknowledge, WriteError};

use open::Shared;
use writer::Writer;

/// Wakes that are kept of a service.
pub const WAKES_MAX: usize = 256;
/// Decisions that are kept of a service.
pub const DECISIONS_MAX: usize = 512;
/// Verdicts on the health of its instances that are kept of a service.
pub const HEALTH_MAX: usize = 256;
/// Calls of [`Store::write`] that may wait for the writer; more are refused with [`WriteError::QueueFull`].
pub const QUEUE_MAX: usize = 4_096;
/// Most calls of [`Store::write`] that share one commit.
pub const GROUP_MAX: usize = 256;

/// The open state database. Dropping it writes what still waits, then closes the file.
pub struct Store {
    shared: Arc<Shared>,
    writer: Writer,
    next_instance: AtomicU64,
}

impl Store {
    /// Opens the database in `dir`, creating both if they are not there, and reads all current state.
    ///
    /// Blocks; walks over the whole file to verify it.
    ///
    /// # Errors
    /// One sentence with the remedy: another daemon uses the directory, the file is damaged or was written by a
    /// newer Reveille, or the directory cannot be used. Nothing is changed or deleted then.
    pub fn open(dir: &Path) -> Result<(Self, Loaded), OpenError> {
        let shared = Arc::new(Shared::open(dir)?);
        let (loaded, next) = load::load(&shared)?;
        let writer = Writer::start(Arc::clone(&shared))
            .map_err(|source| OpenError::Unusable { path: dir.to_owned(), source })?;
        Ok((Self { shared, writer, next_instance: AtomicU64::new(next) }, loaded))
    }

    /// Queues `changes` as one transaction and returns at once.
    ///
    /// The returned [`Ack`] resolves when they are durable. It may be dropped; the changes are written anyway.
    pub fn write(&self, changes: Vec<Change>) -> Ack {
        self.writer.write(&changes)
    }

    /// An identity that no instance of this host has had before.
    ///
    /// It costs no I/O: the identity is taken for good by the first durable [`Change::PutInstance`] with it. Until
    /// that is acknowledged, nothing outside may carry it (no directory, no process), because after a crash it
    /// would be given out again.
    pub fn reserve_instance_id(&self) -> InstanceId {
        InstanceId(self.next_instance.fetch_add(1, Ordering::Relaxed))
    }

    /// The file that holds the database.
    pub fn path(&self) -> PathBuf {
        self.shared.path().to_owned()
    }
}

/// The state database as the control loop sees it: a [`Store`], or a simulated one.
pub trait StateDatabase: Send + Sync {
    /// See [`Store::write`].
    fn write(&self, changes: Vec<Change>) -> Ack;

    /// See [`Store::reserve_instance_id`].
    fn reserve_instance_id(&self) -> InstanceId;

    /// See [`Store::service`].
    ///
    /// # Errors
    /// If it cannot be read.
    fn service(&self, name: &DomainName) -> Result<Option<StoredService>, ReadError>;

    /// See [`Store::static_sets`].
    ///
    /// # Errors
    /// If they cannot be read.
    fn static_sets(&self) -> Result<Vec<StoredStaticSet>, ReadError>;
}

impl StateDatabase for Store {
    fn write(&self, changes: Vec<Change>) -> Ack {
        Self::write(self, changes)
    }

    fn reserve_instance_id(&self) -> InstanceId {
        Self::reserve_instance_id(self)
    }

    fn service(&self, name: &DomainName) -> Result<Option<StoredService>, ReadError> {
        Self::service(self, name)
    }

    fn static_sets(&self) -> Result<Vec<StoredStaticSet>, ReadError> {
        Self::static_sets(self)
    }
}
