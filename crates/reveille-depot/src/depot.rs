//! The depot itself: what all operations share.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, Semaphore};

use crate::config::{self, DepotConfig, GRACE_MS_MAX, OpenError};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::format::{Fault, Kind, record};
use crate::names::{CHARTER, CLOCK, ChunkName, Shelf, VersionId};
use crate::objects::{ObjectError, Objects, Put};
use crate::pages::PageHash;
use crate::seal::{Keyring, SALT_BYTES};

/// Largest object that says what the depot is.
const CHARTER_BYTES_MAX: u64 = 4096;
/// Largest object of a version's manifest.
pub(crate) const MANIFEST_OBJECT_BYTES_MAX: u64 = MANIFEST_BYTES_MAX + (MANIFEST_BYTES_MAX >> 8) + 4096;
/// Most page hashes of chunks that this process wrote or read, kept for the next comparison: 4 GiB of guests' memory.
const HEADS_PAGES_MAX: usize = 1 << 20;

/// Milliseconds of a clock that only goes on, also while the host is suspended.
pub type Stopwatch = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What the depot is, written once by whoever opens it first. All hosts must agree on the grace.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Charter {
    grace_ms: u64,
}

/// Versions in one object store.
pub struct Depot {
    pub(crate) objects: Objects,
    pub(crate) keys: Arc<Keyring>,
    pub(crate) parallel: usize,
    pub(crate) workers: usize,
    pub(crate) zstd_level: i32,
    /// Who hashes, compresses or checks holds one.
    pub(crate) cpu: Arc<Semaphore>,
    pub(crate) stopwatch: Stopwatch,
    grace_ms: u64,
    charter: OnceCell<Charter>,
    heads: Mutex<Heads>,
}

impl fmt::Debug for Depot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Depot").field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// Asks an operation to stop at the next object; what it has written is garbage and collected later.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody has asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it does.
    pub stage: Stage,
    /// Bytes of pages, zeros not counted, that this stage is done with.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
}

/// A step of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Pages are read and compared.
    Compare,
    /// Chunks are written to the store.
    Store,
    /// The chunks of the working set are fetched.
    WorkingSet,
    /// Chunks are fetched.
    Fetch,
    /// Chunks are checked.
    Verify,
}

/// Who watches an operation.
#[derive(Clone, Default)]
pub struct Watch {
    /// Told after each object; must not block.
    pub on_progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// Looked at before each object.
    pub cancel: Cancel,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn tell(&self, stage: Stage, done_bytes: u64, total_bytes: u64) {
        if let Some(told) = &self.on_progress {
            told(Progress { stage, done_bytes, total_bytes });
        }
    }
}

/// Hashes of the pages of chunks, the oldest forgotten first.
#[derive(Default)]
struct Heads {
    of: BTreeMap<ChunkName, Arc<[PageHash]>>,
    order: VecDeque<ChunkName>,
    pages: usize,
}

impl Heads {
    fn keep(&mut self, name: ChunkName, hashes: Arc<[PageHash]>) {
        self.pages += hashes.len();
        if let Some(old) = self.of.insert(name, hashes) {
            self.pages -= old.len();
            return;
        }
        self.order.push_back(name);
        while self.pages > HEADS_PAGES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.pages -= self.of.remove(&oldest).map_or(0, |hashes| hashes.len());
        }
    }
}

impl Depot {
    /// Prepares the depot of `config`. The store is not asked yet, so that a daemon can begin while it is away.
    ///
    /// # Errors
    /// [`OpenError`] if the configuration cannot be used.
    pub fn open(config: &DepotConfig) -> Result<Self, OpenError> {
        config::check_ranges(config)?;
        let keys = config::keyring(config)?;
        Ok(Self::over(config, config::connect(config)?, keys, boot_time()))
    }

    /// A depot in any store and with any clock: for simulations.
    pub fn with_store(
        config: &DepotConfig,
        store: Arc<dyn ObjectStore>,
        keys: Keyring,
        stopwatch: Stopwatch,
    ) -> Self {
        Self::over(config, Objects::new(store, Path::default(), None), keys, stopwatch)
    }

    fn over(config: &DepotConfig, objects: Objects, keys: Keyring, stopwatch: Stopwatch) -> Self {
        Self {
            objects,
            keys: Arc::new(keys),
            parallel: config.parallel.max(1),
            workers: config.workers.max(1),
            zstd_level: config.zstd_level,
            cpu: Arc::new(Semaphore::new(config.workers.max(1))),
            stopwatch,
            grace_ms: config.grace_ms,
            charter: OnceCell::new(),
            heads: Mutex::default(),
        }
    }

    /// For how long what nobody refers to is kept, as the depot was made, in ms.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub async fn grace_ms(&self) -> Result<u64, ObjectError> {
        Ok(self.charter.get_or_try_init(|| self.read_charter()).await?.grace_ms)
    }

    async fn read_charter(&self) -> Result<Charter, ObjectError> {
        match self.read_record(Kind::Charter, CHARTER, CHARTER_BYTES_MAX).await {
            Err(ObjectError::Missing { .. }) => {}
            read => return parse(CHARTER, &read?),
        }
        let content = json(CHARTER, &Charter { grace_ms: self.grace_ms })?;
        match self.write_record(Kind::Charter, CHARTER, &content, Put::Create).await {
            // Somebody else was first.
            Ok(()) | Err(ObjectError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        let charter: Charter =
            parse(CHARTER, &self.read_record(Kind::Charter, CHARTER, CHARTER_BYTES_MAX).await?)?;
        if charter.grace_ms > GRACE_MS_MAX {
            let why = format!("its grace is {} ms, at most {GRACE_MS_MAX} are possible", charter.grace_ms);
            return Err(ObjectError::damaged(CHARTER)(Fault::new(0, why)));
        }
        Ok(charter)
    }

    /// What time it is by the store's clock, in ms since 1970: an object is written for it and taken away again.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub async fn store_now_ms(&self) -> Result<u64, ObjectError> {
        let path = format!("{CLOCK}/{:032x}", u128::from_le_bytes(salt(CLOCK)?));
        self.objects.put(&path, Bytes::new(), Put::Always).await?;
        let now = self.objects.head(&path).await?.written_ms;
        self.objects.delete(&path).await?;
        Ok(now)
    }

    pub(crate) async fn read_record(
        &self,
        kind: Kind,
        path: &str,
        content_max: u64,
    ) -> Result<Vec<u8>, ObjectError> {
        let (bytes, _) = self.objects.get(path, record::object_bytes_max(content_max)).await?;
        record::decode(&bytes, kind, path, content_max, &self.keys).map_err(ObjectError::damaged(path))
    }

    pub(crate) async fn write_record(
        &self,
        kind: Kind,
        path: &str,
        content: &[u8],
        how: Put,
    ) -> Result<(), ObjectError> {
        let bytes = record::encode(kind, path, content, salt(path)?, self.keys.newest())
            .map_err(ObjectError::damaged(path))?;
        self.objects.put(path, Bytes::from(bytes), how).await
    }

    /// The manifest of a version, checked.
    pub(crate) async fn manifest(&self, id: &VersionId) -> Result<Manifest, ObjectError> {
        let path = Shelf::Versions.path(id);
        let (bytes, _) = self.objects.get(&path, MANIFEST_OBJECT_BYTES_MAX).await?;
        Manifest::decode(&bytes, id, &self.keys).map_err(ObjectError::damaged(&path))
    }

    pub(crate) fn keep_head(&self, name: ChunkName, hashes: Arc<[PageHash]>) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).keep(name, hashes);
    }

    pub(crate) fn kept_head(&self, name: ChunkName) -> Option<Arc<[PageHash]>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).of.get(&name).cloned()
    }

    /// Runs what takes CPU time or blocks, on one of the worker threads.
    pub(crate) async fn work<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ObjectError> {
        // The permit goes with the work: one that nobody waits for any more still counts.
        let permit = Arc::clone(&self.cpu).acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        done.await.map_err(|error| ObjectError::Store {
            doing: "work on",
            path: path.to_owned(),
            why: error.to_string(),
        })
    }
}

/// 16 random bytes. `path` is for the message, should the system have none.
pub(crate) fn salt(path: &str) -> Result<[u8; SALT_BYTES], ObjectError> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(|error| ObjectError::Store {
        doing: "write",
        path: path.to_owned(),
        why: format!("no random bytes: {error}"),
    })?;
    Ok(salt)
}

pub(crate) fn parse<T: for<'de> Deserialize<'de>>(path: &str, content: &[u8]) -> Result<T, ObjectError> {
    serde_json::from_slice(content)
        .map_err(|error| ObjectError::damaged(path)(Fault::new(error.column(), error.to_string())))
}

pub(crate) fn json<T: Serialize>(path: &str, content: &T) -> Result<Vec<u8>, ObjectError> {
    serde_json::to_vec(content).map_err(|error| ObjectError::damaged(path)(Fault::new(0, error.to_string())))
}

fn boot_time() -> Stopwatch {
    Arc::new(|| {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        seconds * 1_000 + u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000
    })
}
