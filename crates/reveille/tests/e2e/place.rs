//! What tests that run at the same time share: processors and loopback addresses.

use std::net::{Ipv4Addr, TcpListener};
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
        while *free.get_or_insert((processors / 2).max(2)) == 0 {
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

/// 256 loopback addresses that no other world has, of this test run or another.
pub struct Addresses {
    third: [u8; 3],
    /// Held so that nobody else takes them.
    _mark: TcpListener,
}

impl Addresses {
    /// Takes them.
    pub fn take() -> Self {
        let mut second = [0; 2];
        getrandom::fill(&mut second).unwrap();
        for step in 0..16_384_u16 {
            let [high, low] = u16::from_ne_bytes(second).wrapping_add(step).to_be_bytes();
            let third = [127, 64 | (high & 63), low];
            // Not the range that examples and the demo use.
            if third[1] > 64
                && let Ok(mark) = TcpListener::bind((Ipv4Addr::new(127, third[1], low, 253), 61_001))
            {
                return Self { third, _mark: mark };
            }
        }
        panic!("no loopback addresses are left");
    }

    /// The one that ends so.
    pub fn at(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.third;
        Ipv4Addr::new(a, b, c, last)
    }
}
