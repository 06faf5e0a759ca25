//! The one thread that writes, its bounded queue, and the acknowledgements.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use redb::{Database, Durability, ReadableTable, Table, WriteTransaction};
use reveille_core::model::{InstanceId, Timestamp, WakeRecord};
use tokio::sync::oneshot;

use crate::change::{Change, Encoded};
use crate::load::decode;
use crate::open::Shared;
use crate::schema::{
    DECISIONS, HEALTH, INSTANCES, META, NEXT_INSTANCE_KEY, PUBLISHED, PUBLISHED_SERIALS, SERIAL_CEILINGS,
    SERVICES, STATIC_SETS, TOKENS, WAKES,
};
use crate::{DECISIONS_MAX, GROUP_MAX, HEALTH_MAX, QUEUE_MAX, WAKES_MAX};

/// How far back [`Change::AddWake`] looks for the record that it goes on with. A service wakes one instance at a
/// time today; a handful leaves room for services with several.
const WAKE_LOOK_BACK_MAX: usize = 8;

/// Why a change is not known to be durable. It may be there all the same; write the whole row again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The disk is full, or a quota is reached.
    #[error("the state could not be saved, the disk is full: {0}; free some space")]
    NoSpace(Arc<io::Error>),
    /// Another fault of the disk or the file.
    #[error("the state could not be saved: {0}")]
    Storage(Arc<redb::Error>),
    /// The file could not be opened again after an I/O error.
    #[error("the state could not be saved, and the database could not be opened again: {0}")]
    Closed(Arc<str>),
    /// More writes wait than the queue holds: the disk does not keep up, or stands still.
    #[error("the state could not be saved: {QUEUE_MAX} writes wait for the disk already")]
    QueueFull,
    /// The value has no form in the database.
    #[error("the state could not be saved: {0}")]
    Encode(Arc<serde_json::Error>),
    /// The writer has ended.
    #[error("the state could not be saved: the database is closed")]
    Ended,
}

impl From<redb::Error> for WriteError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "redb may add errors; only the full disk is told apart"
    )]
    fn from(error: redb::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error {
            redb::Error::Io(error) if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
                Self::NoSpace(Arc::new(error))
            }
            other => Self::Storage(Arc::new(other)),
        }
    }
}

/// Resolves when the changes of one [`crate::Store::write`] are durable, or to the reason why they are not.
#[derive(Debug)]
#[must_use = "an error is only seen by whoever waits for it"]
pub struct Ack(AckState);

#[derive(Debug)]
enum AckState {
    Refused(WriteError),
    Waiting(oneshot::Receiver<Result<(), WriteError>>),
}

/// Says what became of the changes that an [`Ack`] stands for.
pub type Acknowledge = oneshot::Sender<Result<(), WriteError>>;

impl Ack {
    /// One that resolves to what is sent, and to [`WriteError::Ended`] if nothing is.
    pub fn pending() -> (Acknowledge, Self) {
        let (done, answer) = oneshot::channel();
        (done, Self(AckState::Waiting(answer)))
    }

    /// Waits on a thread that may block.
    ///
    /// # Errors
    /// The reason why the changes are not durable.
    ///
    /// # Panics
    /// In a task of the runtime, which must not block; `.await` it there.
    pub fn wait(self) -> Result<(), WriteError> {
        match self.0 {
            AckState::Refused(error) => Err(error),
            AckState::Waiting(answer) => answer.blocking_recv().unwrap_or(Err(WriteError::Ended)),
        }
    }
}

impl Future for Ack {
    type Output = Result<(), WriteError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            AckState::Refused(error) => Poll::Ready(Err(error.clone())),
            AckState::Waiting(answer) => {
                Pin::new(answer).poll(context).map(|answer| answer.unwrap_or(Err(WriteError::Ended)))
            }
        }
    }
}

/// The changes of one call, with whoever waits for them.
struct Batch {
    changes: Vec<Encoded>,
    done: Acknowledge,
}

/// The writing thread and the way to it.
pub(crate) struct Writer {
    /// `None` only while it is dropped.
    queue: Option<SyncSender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(shared: Arc<Shared>) -> io::Result<Self> {
        let (queue, batches) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("state-writer".to_owned())
            .spawn(move || write_until_closed(&shared, &batches))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    pub fn write(&self, changes: &[Change]) -> Ack {
        let encoded: Result<Vec<Encoded>, _> = changes.iter().map(Change::encode).collect();
        let changes = match encoded {
            Ok(changes) => changes,
            Err(error) => return Ack(AckState::Refused(WriteError::Encode(Arc::new(error)))),
        };
        let (done, ack) = Ack::pending();
        let refused = match self.queue.as_ref().map(|queue| queue.try_send(Batch { changes, done })) {
            Some(Ok(())) => return ack,
            Some(Err(TrySendError::Full(_))) => WriteError::QueueFull,
            Some(Err(TrySendError::Disconnected(_))) | None => WriteError::Ended,
        };
        Ack(AckState::Refused(refused))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Without a sender the thread writes what is queued and ends.
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the state ended by a panic");
        }
    }
}

fn write_until_closed(shared: &Shared, batches: &Receiver<Batch>) {
    let mut group = Vec::new();
    while let Ok(first) = batches.recv() {
        group.push(first);
        while group.len() < GROUP_MAX {
            match batches.try_recv() {
                Ok(batch) => group.push(batch),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let result = write_group(shared, &group);
        if let Err(error) = &result {
            tracing::error!(%error, writes = group.len(), "state not saved; what changes next is tried again");
        }
        for batch in group.drain(..) {
            // Whoever does not wait does not want to know.
            let _ = batch.done.send(result.clone());
        }
    }
}

/// One commit. After an error the file is opened again before the next one.
fn write_group(shared: &Shared, group: &[Batch]) -> Result<(), WriteError> {
    if group.iter().all(|batch| batch.changes.is_empty()) {
        return Ok(());
    }
    if shared.database().is_none() {
        shared.reopen().map_err(closed)?;
    }
    let slot = shared.database();
    let Some(database) = slot.as_ref() else { return Err(WriteError::Ended) };
    let outcome = catch_unwind(AssertUnwindSafe(|| commit(database, group)));
    drop(slot);
    let error = match outcome {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => WriteError::from(error),
        Err(_) => WriteError::Closed("the write ended by a panic".into()),
    };
    // redb takes nothing more after an I/O error. If opening fails too, the next write tries again.
    if let Err(again) = shared.reopen() {
        tracing::error!(error = %again, "the state database could not be opened again");
    }
    Err(error)
}

fn closed(error: crate::OpenError) -> WriteError {
    WriteError::Closed(error.to_string().into())
}

fn commit(database: &Database, group: &[Batch]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    for change in group.iter().flat_map(|batch| &batch.changes) {
        apply(&transaction, change)?;
    }
    transaction.commit()?;
    Ok(())
}

fn apply(transaction: &WriteTransaction, change: &Encoded) -> Result<(), redb::Error> {
    match change {
        Encoded::PutInstance(id, row) => {
            transaction.open_table(INSTANCES)?.insert(id, row.as_slice())?;
            let mut meta = transaction.open_table(META)?;
            let next = meta.get(NEXT_INSTANCE_KEY)?.map_or(1, |next| next.value());
            if *id >= next {
                meta.insert(NEXT_INSTANCE_KEY, id.saturating_add(1))?;
            }
        }
        Encoded::DropInstance(id) => {
            transaction.open_table(INSTANCES)?.remove(id)?;
        }
        Encoded::PutService(name, row) => {
            transaction.open_table(SERVICES)?.insert(name.as_str(), row.as_slice())?;
        }
        Encoded::DropService(name) => {
            transaction.open_table(SERVICES)?.remove(name.as_str())?;
            let history = (name.as_str(), 0)..=(name.as_str(), u64::MAX);
            transaction.open_table(WAKES)?.retain_in(history.clone(), |_, _| false)?;
            transaction.open_table(DECISIONS)?.retain_in(history.clone(), |_, _| false)?;
            transaction.open_table(HEALTH)?.retain_in(history, |_, _| false)?;
        }
        Encoded::AddWake { service, instance, at, row } => {
            let mut wakes = transaction.open_table(WAKES)?;
            match same_wake(&wakes, service, *instance, *at)? {
                Some(seq) => {
                    wakes.insert((service.as_str(), seq), row.as_slice())?;
                }
                None => append(&mut wakes, service, row, WAKES_MAX)?,
            }
        }
        Encoded::AddDecision(service, row) => {
            append(&mut transaction.open_table(DECISIONS)?, service, row, DECISIONS_MAX)?;
        }
        Encoded::AddHealth(service, row) => {
            append(&mut transaction.open_table(HEALTH)?, service, row, HEALTH_MAX)?;
        }
        Encoded::PutToken(hash, row) => {
            transaction.open_table(TOKENS)?.insert(hash, row.as_slice())?;
        }
        Encoded::DropToken(hash) => {
            transaction.open_table(TOKENS)?.remove(hash)?;
        }
        Encoded::PutSerialCeiling(apex, ceiling) => {
            transaction.open_table(SERIAL_CEILINGS)?.insert(apex.as_str(), ceiling)?;
        }
        Encoded::PutStaticSet { zone, owner, rtype, row } => {
            let key = (zone.as_str(), owner.as_slice(), *rtype);
            transaction.open_table(STATIC_SETS)?.insert(key, row.as_slice())?;
        }
        Encoded::DropStaticSet { zone, owner, rtype } => {
            transaction.open_table(STATIC_SETS)?.remove((zone.as_str(), owner.as_slice(), *rtype))?;
        }
        Encoded::PutPublished { target, name, row } => {
            transaction.open_table(PUBLISHED)?.insert((target.as_str(), name.as_str()), row.as_slice())?;
        }
        Encoded::DropPublished { target, name } => {
            transaction.open_table(PUBLISHED)?.remove((target.as_str(), name.as_str()))?;
        }
        Encoded::PutPublishedSerial(target, serial) => {
            transaction.open_table(PUBLISHED_SERIALS)?.insert(target.as_str(), serial)?;
        }
    }
    Ok(())
}

type HistoryTable<'txn> = Table<'txn, (&'static str, u64), &'static [u8]>;

/// The number of the record of the same wake, if it is among the newest.
fn same_wake(
    wakes: &HistoryTable<'_>,
    service: &str,
    instance: InstanceId,
    at: Timestamp,
) -> Result<Option<u64>, redb::Error> {
    for row in wakes.range((service, 0)..=(service, u64::MAX))?.rev().take(WAKE_LOOK_BACK_MAX) {
        let (key, value) = row?;
        let same =
            decode::<WakeRecord>(value.value()).is_ok_and(|wake| wake.instance == instance && wake.at == at);
        if same {
            return Ok(Some(key.value().1));
        }
    }
    Ok(None)
}

/// Adds an entry at the end and drops the oldest beyond `max`.
fn append(table: &mut HistoryTable<'_>, service: &str, row: &[u8], max: usize) -> Result<(), redb::Error> {
    let last = table.range((service, 0)..=(service, u64::MAX))?.next_back().transpose()?;
    let seq = last.map_or(1, |(key, _)| key.value().1.saturating_add(1));
    table.insert((service, seq), row)?;
    let keep_from = seq.saturating_add(1).saturating_sub(max as u64);
    if keep_from > 1 {
        table.retain_in((service, 0)..(service, keep_from), |_, _| false)?;
    }
    Ok(())
}
