//! From buffers to files: a task for each kind that is recorded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use reveille_core::model::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::buffer::Buffer;
use crate::encode::Encode;
use crate::place::{Kind, day_of, first_kept, path};
use crate::retention::prune;
use crate::row::{QueryRow, RequestRow, Row};
use crate::shelf::Shelf;

/// Longest that the end may take until what is buffered is written, in ms.
pub const STOP_MS_MAX: u64 = 5_000;
/// Pause before a file is put once more, in ms: this first, doubled each time up to the second value.
const RETRY_MS: (u64, u64) = (1_000, 60_000);
/// How often old files are looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);

/// What is recorded, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Whether questions are.
    pub queries: bool,
    /// Whether requests of logs are.
    pub requests: bool,
    /// Most rows of a file; twice as many wait at most.
    pub rows_max: usize,
    /// Longest that a row waits before its file is written.
    pub flush: Duration,
    /// Files of rows that are older go.
    pub keep_days: u64,
}

/// The time of day.
type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Raw records on their way to the object store. To be ended by [`Records::stop`]; dropped, what is buffered is lost.
#[derive(Debug)]
pub struct Records {
    queries: Option<Lane<QueryRow>>,
    requests: Option<Lane<RequestRow>>,
    stop: watch::Sender<bool>,
}

#[derive(Debug)]
struct Lane<R> {
    buffer: Arc<Buffer<R>>,
    tally: Arc<Tally>,
    task: std::sync::Mutex<Option<JoinHandle<()>>>,
}

/// Since the start.
#[derive(Debug, Default)]
struct Tally {
    written: AtomicU64,
    too_old: AtomicU64,
    lost: AtomicU64,
    files: AtomicU64,
    failed: AtomicU64,
    pruned: AtomicU64,
}

/// What tasks share.
#[derive(Clone)]
struct Way {
    settings: Settings,
    shelf: Arc<dyn Shelf>,
    encode: Arc<dyn Encode>,
    now: Now,
    /// Tells files of this run from those of others.
    run: u64,
    stopped: watch::Receiver<bool>,
}

impl Records {
    /// Begins to write. `run` is a number that no other run has.
    pub fn start(
        settings: Settings,
        shelf: Arc<dyn Shelf>,
        encode: Arc<dyn Encode>,
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        run: u64,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let way = Way { settings, shelf, encode, now: Arc::new(now), run, stopped };
        let queries = settings.queries.then(|| Lane::start(&way));
        let requests = settings.requests.then(|| Lane::start(&way));
        Self { queries, requests, stop }
    }

    /// Where questions are handed over, if they are recorded.
    pub fn queries(&self) -> Option<&Arc<Buffer<QueryRow>>> {
        self.queries.as_ref().map(|lane| &lane.buffer)
    }

    /// Where requests are, if they are.
    pub fn requests(&self) -> Option<&Arc<Buffer<RequestRow>>> {
        self.requests.as_ref().map(|lane| &lane.buffer)
    }

    /// What became of rows since the start, for each kind that is recorded. `taken`: had room; `dropped`: had none; of
    /// those that were taken: `written`, `too_old` for the retention, `lost` since they could not be written. And `files`
    /// that were put, puts that `failed` and are tried again, and old files that were `pruned`.
    pub fn counted(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let queries = self.queries.as_ref().map(|lane| (Kind::Query, lane.counted()));
        let requests = self.requests.as_ref().map(|lane| (Kind::Request, lane.counted()));
        queries.into_iter().chain(requests).map(|(kind, counts)| (kind.word().to_owned(), counts)).collect()
    }

    /// Writes what is buffered and ends, within [`STOP_MS_MAX`]; what is not written then is lost, and told.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let both = async {
            if let Some(lane) = &self.queries {
                lane.ended().await;
            }
            if let Some(lane) = &self.requests {
                lane.ended().await;
            }
        };
        if timeout(Duration::from_millis(STOP_MS_MAX), both).await.is_err() {
            tracing::warn!("records that were buffered are lost: the object store has not taken them");
        }
    }
}

impl<R: Row> Lane<R> {
    fn start(way: &Way) -> Self {
        let (buffer, tally) = (Arc::new(Buffer::new(way.settings.rows_max)), Arc::<Tally>::default());
        let writer =
            Writer { way: way.clone(), buffer: Arc::clone(&buffer), tally: Arc::clone(&tally), files: 0 };
        let pruner = keep_pruned(way.clone(), R::KIND, Arc::clone(&tally));
        let both = async {
            tokio::select! {
                () = writer.run() => {}
                () = pruner => {}
            }
        };
        Self { buffer, tally, task: std::sync::Mutex::new(Some(tokio::spawn(both))) }
    }

    async fn ended(&self) {
        let task = self.task.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task {
            // A panic of the task was printed when it happened.
            let _ = task.await;
        }
    }

    fn counted(&self) -> BTreeMap<String, u64> {
        let ((taken, dropped), tally) = (self.buffer.counted(), &self.tally);
        let counts = [
            ("taken", taken),
            ("dropped", dropped),
            ("written", tally.written.load(Relaxed)),
            ("too_old", tally.too_old.load(Relaxed)),
            ("lost", tally.lost.load(Relaxed)),
            ("files", tally.files.load(Relaxed)),
            ("failed", tally.failed.load(Relaxed)),
            ("pruned", tally.pruned.load(Relaxed)),
        ];
        counts.into_iter().map(|(word, count)| (word.to_owned(), count)).collect()
    }
}

/// Looks for old files, now and every so often.
async fn keep_pruned(way: Way, kind: Kind, tally: Arc<Tally>) {
    loop {
        match prune(&*way.shelf, kind, way.settings.keep_days, (way.now)()).await {
            Ok(pruned) => {
                tally.pruned.fetch_add(pruned, Relaxed);
            }
            Err(error) => {
                tracing::warn!(kind = kind.word(), %error, "old records are not deleted; it is tried again in an hour");
            }
        }
        sleep(PRUNE_EVERY).await;
    }
}

struct Writer<R> {
    way: Way,
    buffer: Arc<Buffer<R>>,
    tally: Arc<Tally>,
    /// Files of this run.
    files: u64,
}

impl<R: Row> Writer<R> {
    async fn run(mut self) {
        let mut stopped = self.way.stopped.clone();
        let mut is_last = false;
        while !is_last {
            let due = Instant::now() + self.way.settings.flush;
            let is_full = tokio::select! {
                () = self.buffer.file() => true,
                () = sleep_until(due) => false,
                _ = stopped.wait_for(|stopped| *stopped) => {
                    is_last = true;
                    false
                }
            };
            loop {
                let rows = self.buffer.take();
                self.write(rows).await;
                // Of a full buffer the rest waits for its own file.
                if self.buffer.is_empty() || is_full && !self.buffer.has_file() {
                    break;
                }
            }
        }
    }

    /// Writes rows, those of a day into a file of that day.
    async fn write(&mut self, rows: Vec<R>) {
        let now = (self.way.now)();
        let first_kept = first_kept(now, self.way.settings.keep_days);
        let mut days: BTreeMap<String, Vec<R>> = BTreeMap::new();
        for row in rows {
            days.entry(day_of(row.at())).or_default().push(row);
        }
        for (day, rows) in days {
            let count = rows.len() as u64;
            if day < first_kept {
                self.tally.too_old.fetch_add(count, Relaxed);
                continue;
            }
            let encode = Arc::clone(&self.way.encode);
            let encoded = tokio::task::spawn_blocking(move || R::encode(&*encode, &rows)).await;
            let file = match encoded {
                Ok(Ok(file)) => Bytes::from(file),
                Ok(Err(error)) => {
                    tracing::error!(kind = R::KIND.word(), %error, "records are lost");
                    self.tally.lost.fetch_add(count, Relaxed);
                    continue;
                }
                Err(error) => {
                    tracing::error!(kind = R::KIND.word(), %error, "records are lost");
                    self.tally.lost.fetch_add(count, Relaxed);
                    continue;
                }
            };
            self.files += 1;
            let path = path(R::KIND, &day, now, self.way.run, self.files);
            let outcome = if self.put(&path, file).await { &self.tally.written } else { &self.tally.lost };
            outcome.fetch_add(count, Relaxed);
        }
    }

    /// Puts a file, again and again until the object store takes it; at the end of the daemon once.
    async fn put(&self, path: &str, file: Bytes) -> bool {
        let mut pause_ms = RETRY_MS.0;
        let mut stopped = self.way.stopped.clone();
        loop {
            let is_last = *stopped.borrow();
            let Err(error) = self.way.shelf.put(path, file.clone()).await else {
                self.tally.files.fetch_add(1, Relaxed);
                return true;
            };
            self.tally.failed.fetch_add(1, Relaxed);
            tracing::warn!(path, %error, "records are not taken by the object store");
            if is_last {
                return false;
            }
            tokio::select! {
                () = sleep(Duration::from_millis(pause_ms)) => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
            pause_ms = (2 * pause_ms).min(RETRY_MS.1);
        }
    }
}
