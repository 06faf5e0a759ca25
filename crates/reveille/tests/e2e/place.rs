//! What tests that run at the same time share: processors.

use std::sync::{Condvar, Mutex};

/// Daemons with guests that may run at a time; a guest under emulation keeps a processor busy.
static PLACES: Mutex<Option<usize>> = Mutex::new(None);
static PLACE_FREE: Condvar = Condvar::new();

/// The right to run a daemon with guests.
pub struct Place(());

impl Place {
    /// Waits for one.
    pub fn take() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut free = PLACES.lock().unwrap();
        while *free.get_or_insert((processors + 1).max(2)) == 0 {
            free = PLACE_FREE.wait(free).unwrap();
        }
        *free = free.map(|free| free - 1);
        Self(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut free = PLACES.lock().unwrap();
        *free = free.map(|free| free + 1);
        PLACE_FREE.notify_one();
    }
}
