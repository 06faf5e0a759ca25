//! Our source ports: one after another, each resting after its use.
//!
//! The guest may still know a port's last connection: in TIME-WAIT, or, after a restore or a restart of the daemon,
//! as one that it takes for open. Sequential ports come back as late as possible, and a random first one keeps the
//! ports of two stacks apart. Where it happens nonetheless, the handshake notices (see
//! [`super::connection::Connection`]).

use std::collections::{HashSet, VecDeque};

use smoltcp::time::Instant;

use super::PORT_REST;

/// First source port.
const FIRST: u16 = 1024;

/// The ports of one transport.
#[derive(Debug)]
pub(super) struct Ports {
    next: u16,
    taken: HashSet<u16>,
    resting: VecDeque<(Instant, u16)>,
}

impl Ports {
    /// Begins somewhere; `random` decides where.
    pub(super) fn new(random: u16) -> Self {
        Self { next: random.max(FIRST), taken: HashSet::new(), resting: VecDeque::new() }
    }

    /// The next free port, or `None` if all are in use.
    ///
    /// If all others are resting, the one that has rested longest.
    pub(super) fn take(&mut self, now: Instant) -> Option<u16> {
        while self.resting.front().is_some_and(|(until, _)| *until <= now) {
            self.wake_oldest();
        }
        for _ in FIRST..=u16::MAX {
            let port = self.next;
            self.next = port.checked_add(1).unwrap_or(FIRST);
            if self.taken.insert(port) {
                return Some(port);
            }
        }
        let port = self.wake_oldest()?;
        self.taken.insert(port);
        Some(port)
    }

    /// The port is not used any more.
    pub(super) fn give_back(&mut self, port: u16, now: Instant) {
        self.resting.push_back((now + PORT_REST.into(), port));
    }

    fn wake_oldest(&mut self) -> Option<u16> {
        let (_, port) = self.resting.pop_front()?;
        self.taken.remove(&port);
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_rests_before_it_is_used_again() {
        let mut ports = Ports::new(u16::MAX);
        let start = Instant::from_secs(100);
        let first = ports.take(start).unwrap();
        assert_eq!((first, ports.take(start)), (u16::MAX, Some(FIRST)));
        ports.give_back(first, start);
        for _ in FIRST + 1..u16::MAX {
            assert_ne!(ports.take(start).unwrap(), first);
        }
        let rested = start + PORT_REST.into();
        assert_eq!(ports.take(rested), Some(first));
        assert_eq!(ports.take(rested), None);
    }

    #[test]
    fn when_all_rest_the_longest_rested_is_used() {
        let mut ports = Ports::new(0);
        let now = Instant::from_secs(1);
        let all: Vec<u16> = std::iter::from_fn(|| ports.take(now)).collect();
        assert_eq!(all.len(), usize::from(u16::MAX - FIRST) + 1);
        ports.give_back(all[7], now);
        ports.give_back(all[3], now);
        assert_eq!((ports.take(now), ports.take(now), ports.take(now)), (Some(all[7]), Some(all[3]), None));
    }
}
