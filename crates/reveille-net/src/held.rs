//! Datagrams that wait for the gate to open, within limits per client and per service.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tokio::time::Instant;

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldLimits {
    pub(crate) client_datagrams: u32,
    pub(crate) client_bytes: u64,
    pub(crate) service_datagrams: u32,
    pub(crate) service_bytes: u64,
}

/// What waits at all ports of one service.
#[derive(Debug)]
pub(crate) struct HeldBudget {
    limits: HeldLimits,
    datagrams: AtomicU32,
    bytes: AtomicU64,
}

impl HeldBudget {
    pub(crate) fn new(limits: HeldLimits) -> Self {
        Self { limits, datagrams: AtomicU32::new(0), bytes: AtomicU64::new(0) }
    }

    /// How many datagrams wait.
    pub(crate) fn datagrams(&self) -> u32 {
        self.datagrams.load(Ordering::SeqCst)
    }

    fn take(&self, bytes: u64) -> bool {
        let one_more = |held: u32| (held < self.limits.service_datagrams).then_some(held + 1);
        if self.datagrams.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_err() {
            return false;
        }
        let more = |held: u64| Some(held + bytes).filter(|sum| *sum <= self.limits.service_bytes);
        let fits = self.bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok();
        if !fits {
            self.datagrams.fetch_sub(1, Ordering::SeqCst);
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        self.datagrams.fetch_sub(1, Ordering::SeqCst);
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
    }
}

/// A datagram that waits.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) client: SocketAddr,
    pub(crate) payload: Box<[u8]>,
    since: Instant,
}

impl Datagram {
    fn bytes(&self) -> u64 {
        self.payload.len() as u64
    }
}

/// The datagrams that wait at one port of one address, in the order of their arrival.
#[derive(Debug)]
pub(crate) struct HeldDatagrams {
    budget: Arc<HeldBudget>,
    next: u64,
    queue: BTreeMap<u64, Datagram>,
    clients: HashMap<SocketAddr, ClientShare>,
}

/// What of the queue is one client's.
#[derive(Debug, Default)]
struct ClientShare {
    numbers: VecDeque<u64>,
    bytes: u64,
}

impl HeldDatagrams {
    pub(crate) fn new(budget: Arc<HeldBudget>) -> Self {
        Self { budget, next: 0, queue: BTreeMap::new(), clients: HashMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The oldest datagram.
    pub(crate) fn front(&self) -> Option<&Datagram> {
        self.queue.first_key_value().map(|(_, datagram)| datagram)
    }

    /// Takes out the oldest datagram.
    pub(crate) fn pop(&mut self) -> Option<Datagram> {
        let (_, datagram) = self.queue.pop_first()?;
        // What is the oldest of all is the oldest of its client.
        if let Some(share) = self.clients.get_mut(&datagram.client) {
            share.numbers.pop_front();
            share.bytes -= datagram.bytes();
            if share.numbers.is_empty() {
                self.clients.remove(&datagram.client);
            }
        }
        self.budget.give_back(datagram.bytes());
        Some(datagram)
    }

    /// Adds a datagram. Over its client's limit the client's oldest make room, over the service's limit the oldest
    /// of this port; if that is not enough it is not taken. Returns how many were dropped.
    pub(crate) fn push(&mut self, client: SocketAddr, payload: &[u8], since: Instant) -> u64 {
        let bytes = payload.len() as u64;
        let limits = self.budget.limits;
        if bytes > limits.client_bytes || limits.client_datagrams == 0 {
            return 1;
        }
        let mut dropped = 0;
        while self.clients.get(&client).is_some_and(|share| {
            share.numbers.len() >= limits.client_datagrams as usize
                || share.bytes + bytes > limits.client_bytes
        }) {
            self.drop_oldest_of(client);
            dropped += 1;
        }
        while !self.budget.take(bytes) {
            dropped += 1;
            if self.pop().is_none() {
                return dropped;
            }
        }
        let share = self.clients.entry(client).or_default();
        share.numbers.push_back(self.next);
        share.bytes += bytes;
        self.queue.insert(self.next, Datagram { client, payload: payload.into(), since });
        self.next += 1;
        dropped
    }

    /// Drops what waits since before `limit`; returns how many that were.
    pub(crate) fn expire(&mut self, limit: Instant) -> u64 {
        let mut dropped = 0;
        while self.front().is_some_and(|datagram| datagram.since < limit) {
            self.pop();
            dropped += 1;
        }
        dropped
    }

    /// Drops all; returns how many that were.
    pub(crate) fn clear(&mut self) -> u64 {
        let mut dropped = 0;
        while self.pop().is_some() {
            dropped += 1;
        }
        dropped
    }

    fn drop_oldest_of(&mut self, client: SocketAddr) {
        let Some(share) = self.clients.get_mut(&client) else { return };
        if let Some(datagram) = share.numbers.pop_front().and_then(|number| self.queue.remove(&number)) {
            share.bytes -= datagram.bytes();
            self.budget.give_back(datagram.bytes());
        }
        if share.numbers.is_empty() {
            self.clients.remove(&client);
        }
    }
}

impl Drop for HeldDatagrams {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeldLimits =
        HeldLimits { client_datagrams: 4, client_bytes: 40, service_datagrams: 10, service_bytes: 100 };

    fn client(n: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], n))
    }

    #[test]
    fn over_its_limit_a_client_loses_its_own_oldest_and_others_keep_theirs() {
        let budget = Arc::new(HeldBudget::new(LIMITS));
        let mut held = HeldDatagrams::new(Arc::clone(&budget));
        let now = Instant::now();
        assert_eq!(held.push(client(1), b"other", now), 0);
        let dropped: Vec<u64> = (0..6u8).map(|n| held.push(client(2), &[n], now)).collect();
        assert_eq!(dropped, [0, 0, 0, 0, 1, 1]);
        let left: Vec<Box<[u8]>> = std::iter::from_fn(|| held.pop()).map(|d| d.payload).collect();
        assert_eq!(
            left,
            [Box::from(*b"other"), Box::from([2]), Box::from([3]), Box::from([4]), Box::from([5])]
        );
        assert_eq!(budget.datagrams(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { port: usize, client: u16, bytes: usize },
        Pop { port: usize },
        Clear { port: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..2usize, 0..4u16, 0..50usize).prop_map(|(port, client, bytes)| Step::Push { port, client, bytes }),
            2 => (0..2usize).prop_map(|port| Step::Pop { port }),
            1 => (0..2usize).prop_map(|port| Step::Clear { port }),
        ]
    }

    proptest! {
        /// Whatever happens at two ports of a service: nothing exceeds a limit, each datagram is either dropped and
        /// counted or comes out once and in order, and in the end the budget is whole again.
        #[test]
        fn limits_hold_and_nothing_is_lost_uncounted(steps in prop::collection::vec(step(), 0..200)) {
            let budget = Arc::new(HeldBudget::new(LIMITS));
            let mut ports = [0, 1].map(|_| HeldDatagrams::new(Arc::clone(&budget)));
            let (mut pushed, mut popped, mut dropped) = (0u64, 0u64, 0u64);
            let mut number = 0u64;
            let start = Instant::now();
            let mut last = [None; 2];
            for step in steps {
                match step {
                    Step::Push { port, client: n, bytes } => {
                        number += 1;
                        let since = start + std::time::Duration::from_millis(number);
                        pushed += 1;
                        dropped += ports[port].push(client(n), &vec![0; bytes], since);
                    }
                    Step::Pop { port } => {
                        if let Some(datagram) = ports[port].pop() {
                            popped += 1;
                            prop_assert!(Some(datagram.since) > last[port]);
                            last[port] = Some(datagram.since);
                        }
                    }
                    Step::Clear { port } => dropped += ports[port].clear(),
                }
                let waiting: usize = ports.iter().map(|port| port.queue.len()).sum();
                let bytes: u64 = ports.iter().flat_map(|port| port.queue.values()).map(Datagram::bytes).sum();
                prop_assert_eq!(pushed, popped + dropped + waiting as u64);
                prop_assert_eq!((budget.datagrams() as usize, budget.bytes.load(Ordering::SeqCst)), (waiting, bytes));
                prop_assert!(waiting <= 10 && bytes <= 100);
                for share in ports.iter().flat_map(|port| port.clients.values()) {
                    prop_assert!((1..=4).contains(&share.numbers.len()) && share.bytes <= 40);
                }
            }
            drop(ports);
            prop_assert_eq!((budget.datagrams(), budget.bytes.load(Ordering::SeqCst)), (0, 0));
        }
    }
}
