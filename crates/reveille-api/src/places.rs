//! Places for connections. When all are taken, the connection that has waited longest for its next request gives way to
//! a new one: whoever holds many and asks nothing keeps nobody out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A number of places.
pub struct Places {
    free: Arc<Semaphore>,
    idle: Mutex<Idle>,
    /// One more connection is idle.
    rested: Notify,
}

/// The connections without a request, in the order in which they came to be so.
#[derive(Default)]
struct Idle {
    turn: u64,
    /// What ends each.
    ends: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place; free again when dropped.
pub struct Place {
    places: Arc<Places>,
    /// Its turn in [`Idle`]; the last one while there is a request.
    turn: AtomicU64,
    end: Arc<Notify>,
    _permit: OwnedSemaphorePermit,
}

/// The connection has a request until this is dropped.
pub struct Busy(Arc<Place>);

impl Places {
    /// That many.
    pub fn new(count: usize) -> Arc<Self> {
        let free = Arc::new(Semaphore::new(count));
        Arc::new(Self { free, idle: Mutex::default(), rested: Notify::new() })
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, once there is one. Only one caller may wait for it at a time.
    pub async fn take(self: &Arc<Self>) -> Arc<Place> {
        let mut displaced = false;
        let permit = loop {
            let rested = self.rested.notified();
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                break permit;
            }
            // One is enough: it ends at once, as it has nothing to do.
            displaced = displaced || self.displace();
            tokio::select! {
                Ok(permit) = Arc::clone(&self.free).acquire_owned() => break permit,
                () = rested => {}
            }
        };
        let end = Arc::default();
        let place =
            Arc::new(Place { places: Arc::clone(self), turn: AtomicU64::new(0), end, _permit: permit });
        place.rest();
        place
    }

    /// Ends the connection that has been idle for longest; false if none is.
    fn displace(&self) -> bool {
        let longest = self.idle().ends.pop_first();
        longest.inspect(|(_, end)| end.notify_one()).is_some()
    }
}

impl Place {
    /// A request has come; `None` if the connection is about to end.
    pub fn busy(self: &Arc<Self>) -> Option<Busy> {
        self.places.idle().ends.remove(&self.turn.load(Relaxed)).map(|_| Busy(Arc::clone(self)))
    }

    /// Returns when another connection needs the place.
    pub async fn displaced(&self) {
        self.end.notified().await;
    }

    fn rest(&self) {
        let mut idle = self.places.idle();
        idle.turn += 1;
        let turn = idle.turn;
        self.turn.store(turn, Relaxed);
        idle.ends.insert(turn, Arc::clone(&self.end));
        drop(idle);
        self.places.rested.notify_waiters();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.idle().ends.remove(&self.turn.load(Relaxed));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.rest();
    }
}
