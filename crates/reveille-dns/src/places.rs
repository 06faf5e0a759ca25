//! Places for connections: how many there are at a time, and how many of them one client may have.
//!
//! A client may take another place only while more are free than it has: even one that takes all it can leaves half
//! of what there was to others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Only clients that have any, so never more than `total`.
    clients: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

impl Places {
    /// `total` places, of which one client may have `per_client`.
    pub fn new(total: usize, per_client: usize) -> Arc<Self> {
        Arc::new(Self { total, per_client, taken: AtomicUsize::new(0), clients: Mutex::default() })
    }

    /// A place for that client, if there is one for it.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let client = network(address);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.total.saturating_sub(self.taken.load(Relaxed));
        let has = clients.get(&client).copied().unwrap_or(0);
        if has >= free.min(self.per_client) {
            return None;
        }
        clients.insert(client, has + 1);
        self.taken.fetch_add(1, Relaxed);
        Some(Place { places: Arc::clone(self), client })
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

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.places.clients.lock().unwrap_or_else(PoisonError::into_inner);
        self.places.taken.fetch_sub(1, Relaxed);
        if let Some(has) = clients.get_mut(&self.client) {
            *has -= 1;
            if *has == 0 {
                clients.remove(&self.client);
            }
        }
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
        assert!(places.clients.lock().unwrap().is_empty());
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
