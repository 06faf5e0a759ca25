//! The one thread that writes, and its bounded queue.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::keep::{Keeper, RemoveError};
use super::names::{StateOf, StoredAnomaly, StoredForecast};
use super::query::check_name;
use super::series::{BATCH_POINTS_MAX, Batch};
use super::shared::Counters;
use super::{ANOMALY_BYTES_MAX, QUEUE_MAX};

/// What waits for the thread.
enum Message {
    Batch(Batch),
    States(StateOf, Vec<StoredForecast>),
    Anomalies(Vec<StoredAnomaly>),
    Remove(Box<[u8]>, SyncSender<Result<(), RemoveError>>),
    Flush(SyncSender<()>),
    End,
}

/// Why a forecast's state was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is too long.
    #[error("a state of {name} has {bytes} bytes; {most} are kept at most")]
    TooLong {
        /// Whose.
        name: String,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        most: usize,
    },
    /// The name is none.
    #[error("a name has 1 to 255 bytes, not {0}")]
    Name(usize),
    /// The queue is full, or the history is closed.
    #[error("the states of forecasts were not taken: the history does not keep up, or is closed")]
    Dropped,
}

/// Hands over what is to be recorded, and never waits for the disk.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: SyncSender<Message>,
    counters: Arc<Counters>,
}

impl Recorder {
    /// Hands a batch over. Where [`QUEUE_MAX`] wait already, or it has more than [`BATCH_POINTS_MAX`] points, it is dropped
    /// and counted, and its second stays unseen; false then.
    pub fn record(&self, batch: Batch) -> bool {
        let points = batch.points.len() as u64;
        let fits = batch.points.len() <= BATCH_POINTS_MAX;
        let taken = fits && self.queue.try_send(Message::Batch(batch)).is_ok();
        if !taken {
            self.counters.dropped_batches.add(1);
            self.counters.dropped_points.add(points);
        }
        taken
    }

    /// Hands over states of forecasts. Each replaces the one before.
    ///
    /// # Errors
    /// [`StateError`]; then none of them is taken.
    pub fn put_forecast_states(&self, states: Vec<StoredForecast>) -> Result<(), StateError> {
        self.put_states(StateOf::Forecast, states)
    }

    /// The same of what watches names for anomalies.
    ///
    /// # Errors
    /// [`StateError`]; then none of them is taken.
    pub fn put_detector_states(&self, states: Vec<StoredForecast>) -> Result<(), StateError> {
        self.put_states(StateOf::Detector, states)
    }

    fn put_states(&self, of: StateOf, states: Vec<StoredForecast>) -> Result<(), StateError> {
        for row in &states {
            check_state(&row.name, row.state.len(), of.bytes_max())?;
        }
        self.queue.try_send(Message::States(of, states)).map_err(|_| StateError::Dropped)
    }

    /// Hands over anomalies, each in the place of the one that the name had with the same begin.
    ///
    /// # Errors
    /// [`StateError`]; then none of them is taken.
    pub fn note_anomalies(&self, anomalies: Vec<StoredAnomaly>) -> Result<(), StateError> {
        for row in &anomalies {
            check_state(&row.name, row.event.len(), ANOMALY_BYTES_MAX)?;
        }
        self.queue.try_send(Message::Anomalies(anomalies)).map_err(|_| StateError::Dropped)
    }

    /// Removes everything of a name: points, state, and its place in the listing. What was handed over before is
    /// removed, too. Blocks until it is durable.
    ///
    /// # Errors
    /// [`RemoveError`]; the next start goes on with it.
    pub fn remove(&self, name: &[u8]) -> Result<(), RemoveError> {
        check_name(name).map_err(|_| RemoveError::Name(name.len()))?;
        let (done, answer) = sync_channel(1);
        self.queue.send(Message::Remove(name.into(), done)).map_err(|_| RemoveError::Closed)?;
        answer.recv().unwrap_or(Err(RemoveError::Closed))
    }

    /// Blocks until everything that was handed over before is in the files, where it survives the end of the process.
    /// False where the history is closed.
    pub fn flush(&self) -> bool {
        let (done, answer) = sync_channel(1);
        self.queue.send(Message::Flush(done)).is_ok() && answer.recv().is_ok()
    }
}

fn check_state(name: &[u8], bytes: usize, most: usize) -> Result<(), StateError> {
    check_name(name).map_err(|_| StateError::Name(name.len()))?;
    if bytes > most {
        return Err(StateError::TooLong { name: name.escape_ascii().to_string(), bytes, most });
    }
    Ok(())
}

/// The thread, for as long as the history is open.
#[derive(Debug)]
pub(super) struct Writer {
    pub recorder: Recorder,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(keeper: Keeper, counters: Arc<Counters>, lock: File) -> io::Result<Self> {
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("history-writer".to_owned())
            .spawn(move || write_until_ended(lock, keeper, &messages))?;
        Ok(Self { recorder: Recorder { queue, counters }, thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Others may still hold a recorder, so the queue does not end by itself.
        let _ = self.recorder.queue.send(Message::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the history ended by a panic");
        }
    }
}

/// `_lock` is held for as long as anything is written: it comes first, so it is dropped last.
fn write_until_ended(_lock: File, mut keeper: Keeper, messages: &Receiver<Message>) {
    while let Ok(message) = messages.recv() {
        // A fault of this code must cost a batch and not the history.
        match catch_unwind(AssertUnwindSafe(|| carry_out(&mut keeper, message))) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => tracing::error!("a batch of the history ended by a panic and is lost"),
        }
    }
}

/// False where it is the end.
fn carry_out(keeper: &mut Keeper, message: Message) -> bool {
    match message {
        Message::Batch(batch) => keeper.take(batch),
        Message::States(of, states) => keeper.put_states(of, &states),
        Message::Anomalies(anomalies) => keeper.note_anomalies(&anomalies),
        Message::Remove(name, done) => {
            // Whoever does not wait does not want to know.
            let _ = done.send(keeper.remove(&name));
        }
        Message::Flush(done) => {
            let _ = done.send(());
        }
        Message::End => return false,
    }
    true
}
