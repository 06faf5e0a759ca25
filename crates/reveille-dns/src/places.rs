//! Places for connections: how many there are at a time, and how many of them one client may have.
//!
//! A client may take another place only while more are free than it has: even one that takes all it can leaves half
//! of what there was to others. When all are taken, who has none yet gets that of the connection that has been idle
//! for longest (RFC 7766 §6.2.3, RFC 9210 §4.2): many clients together cannot keep another one out by doing nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Least patience with a client while places are scarce, in milliseconds.
const PATIENCE_MS_MIN: u64 = 500;
/// Bits of an IPv6 address that name its network; whoever has one address there has all of them.
const CLIENT_PREFIX6: u32 = 64;

/// A number of places.
#[derive(Debug)]
pub(crate) struct Places {
    total: usize,
    per_client: usize,
    taken: AtomicUsize,
    register: Mutex<Register>,
    turns: Arc<AtomicU64>,
}

/// Who has the places.
#[derive(Debug, Default)]
struct Register {
    /// Only clients that have any, so never more than `total`.
    clients: BTreeMap<IpAddr, usize>,
    /// By numbers that never come again.
    seats: BTreeMap<u64, (IpAddr, Arc<Seat>)>,
    next: u64,
}

/// One place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    seat: Arc<Seat>,
}

/// Whether a connection needs its place. It does until it says otherwise.
#[derive(Debug, Default)]
pub(crate) struct Seat {
    /// [`BUSY`], [`LOST`], or since which turn it is idle; a lower one is longer ago.
    idle_since: AtomicU64,
    lost: Notify,
    turns: Arc<AtomicU64>,
}

/// A question is being answered.
const BUSY: u64 = 0;
/// Another connection has the place now.
const LOST: u64 = u64::MAX;

impl Places {
    /// `total` places, of which one client may have `per_client`.
    pub fn new(total: usize, per_client: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            per_client,
            taken: AtomicUsize::new(0),
            register: Mutex::default(),
            turns: Arc::default(),
        })
    }

    fn register(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for that client, if there is one for it, or one that can be taken from an idle connection.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let client = network(address);
        let mut register = self.register();
        let free = self.total.saturating_sub(register.seats.len());
        let has = register.clients.get(&client).copied().unwrap_or(0);
        if has >= free.min(self.per_client) && !(has == 0 && register.displace()) {
            return None;
        }
        let (number, seat) = (register.next, Arc::new(Seat::new(&self.turns)));
        register.next += 1;
        register.clients.insert(client, has + 1);
        register.seats.insert(number, (client, Arc::clone(&seat)));
        self.taken.store(register.seats.len(), Relaxed);
        Some(Place { places: Arc::clone(self), number, seat })
    }

    /// How long a client may be idle, in milliseconds: `longest` while half of the places are free, then less and
    /// less (RFC 7766 §6.2.3 leaves that to the server's load).
    pub fn patience_ms(&self, longest: u64) -> u64 {
        let free = self.total.saturating_sub(self.taken.load(Relaxed));
        let half = (self.total / 2).max(1);
        if free >= half {
            return longest;
        }
        let (free, half) = (u64::try_from(free).unwrap_or(0), u64::try_from(half).unwrap_or(1));
        (longest * free / half).max(PATIENCE_MS_MIN.min(longest))
    }
}

impl Register {
    /// Takes the place of the connection that has been idle for longest; false if all are busy. It closes on its own,
    /// without waiting for its client, and no longer counts.
    fn displace(&mut self) -> bool {
        let idle = |(number, (_, seat)): (&u64, &(IpAddr, Arc<Seat>))| Some((seat.idle_since()?, *number));
        while let Some((since, number)) = self.seats.iter().filter_map(idle).min() {
            // Unless it was asked something just now.
            if self.seats.get(&number).is_some_and(|(_, seat)| seat.lose(since)) {
                self.remove(number);
                return true;
            }
        }
        false
    }

    /// Nothing if it is gone already.
    fn remove(&mut self, number: u64) {
        let Some((client, _)) = self.seats.remove(&number) else { return };
        if let Some(has) = self.clients.get_mut(&client) {
            *has -= 1;
            if *has == 0 {
                self.clients.remove(&client);
            }
        }
    }
}

impl Place {
    pub fn seat(&self) -> Arc<Seat> {
        Arc::clone(&self.seat)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut register = self.places.register();
        register.remove(self.number);
        self.places.taken.store(register.seats.len(), Relaxed);
    }
}

impl Seat {
    fn new(turns: &Arc<AtomicU64>) -> Self {
        Self { turns: Arc::clone(turns), ..Self::default() }
    }

    /// Nothing is left to be answered: from now on the place may be lost. Who is idle already stays so since then.
    pub fn rest(&self) {
        if self.idle_since.load(Relaxed) == BUSY {
            let turn = self.turns.fetch_add(1, Relaxed) + 1;
            self.idle_since.store(turn, Relaxed);
        }
    }

    /// There is something to be answered; false if the place is lost.
    pub fn work(&self) -> bool {
        let since = self.idle_since.load(Relaxed);
        since == BUSY || since != LOST && self.exchange(since, BUSY)
    }

    /// Returns when the place is lost.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    fn idle_since(&self) -> Option<u64> {
        Some(self.idle_since.load(Relaxed)).filter(|since| ![BUSY, LOST].contains(since))
    }

    fn lose(&self, since: u64) -> bool {
        let lost = self.exchange(since, LOST);
        if lost {
            self.lost.notify_one();
        }
        lost
    }

    fn exchange(&self, was: u64, is: u64) -> bool {
        self.idle_since.compare_exchange(was, is, Relaxed, Relaxed).is_ok()
    }
}

/// What counts as one client.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let mask = u128::MAX << (Ipv6Addr::BITS - CLIENT_PREFIX6);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    /// All that a client gets.
    fn greedy(places: &Arc<Places>, address: IpAddr) -> Vec<Place> {
        std::iter::from_fn(|| places.take(address)).collect()
    }

    #[test]
    fn a_client_has_its_limit_and_the_greedy_leave_places_for_others() {
        let places = Places::new(100, 40);
        let first = greedy(&places, client(1));
        assert_eq!(first.len(), 40);
        let others: Vec<Vec<Place>> = (2..6).map(|number| greedy(&places, client(number))).collect();
        assert!(others.iter().all(|has| !has.is_empty()), "{others:?}");
        let honest = places.take(client(99));
        assert!(honest.is_some(), "still comes in");
        assert!(places.taken.load(Relaxed) <= 100);
        drop((first, others, honest));
        assert_eq!(places.taken.load(Relaxed), 0);
        assert!(places.register().clients.is_empty());
        assert_eq!(greedy(&places, client(1)).len(), 40);
    }

    #[test]
    fn the_addresses_of_one_network_are_one_client() {
        let places = Places::new(100, 2);
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
        let _held = [places.take(v6("2001:db8::1")).unwrap(), places.take(v6("2001:db8::2:1")).unwrap()];
        assert!(places.take(v6("2001:db8::3")).is_none());
        assert!(places.take(v6("2001:db8:0:1::3")).is_some());
        let _held = [places.take(client(1)).unwrap(), places.take(v6("::ffff:192.0.2.1")).unwrap()];
        assert!(places.take(client(1)).is_none());
    }

    #[test]
    fn who_has_no_place_gets_that_of_who_was_idle_longest() {
        let places = Places::new(3, 2);
        let [one, two, three] = [1, 2, 3].map(|number| places.take(client(number)).unwrap());
        assert!(places.take(client(4)).is_none(), "all are busy");
        for place in [&two, &one, &three, &two] {
            place.seat.rest();
        }
        assert!(places.take(client(1)).is_none(), "it has one");
        let four = places.take(client(4)).unwrap();
        assert!(!two.seat.work() && one.seat.work(), "the second one has rested longest");
        let five = places.take(client(5)).unwrap();
        assert!(!three.seat.work(), "the first one is busy");
        assert!(places.take(client(6)).is_none());
        // Who lost a place has none to give back.
        drop((two, three));
        assert!(places.take(client(6)).is_none());
        assert_eq!(places.taken.load(Relaxed), 3);
        drop((one, four, five));
        assert_eq!(places.taken.load(Relaxed), 0);
        assert!(places.register().clients.is_empty());
    }

    #[test]
    fn patience_shrinks_as_places_become_scarce() {
        let places = Places::new(8, 8);
        let mut held = Vec::new();
        let patience: Vec<u64> = (0..8)
            .map(|number| {
                held.extend(places.take(client(number)));
                places.patience_ms(10_000)
            })
            .collect();
        assert_eq!(patience, [10_000, 10_000, 10_000, 10_000, 7_500, 5_000, 2_500, 500]);
    }
}
