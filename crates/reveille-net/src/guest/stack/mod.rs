//! Everything of a link that its callers and its driver share, behind one mutex: connections, flows, timers, frames.
//!
//! Whoever changes a connection also sends what follows from it ([`Stack::pump`]), so that no second task stands
//! between a write and the socket. Each connection is polled by itself: after a segment for it, after a call of its
//! owner, and when its timer is due.

mod hearing;
mod input;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use tokio::net::UnixStream;

use super::connection::{Connection, End};
use super::flow::{self, Flow};
use super::outbox::{Outbox, TCP_BYTES_MAX, Wire};
use super::ports::Ports;
use super::reassembly::Reassembly;
use super::{CONNECTIONS_MAX, FLOWS_MAX, HERE_IP, LINGER_MAX, LinkAddresses, LinkCounters, PREFIX_LEN};

/// Ports that are tried when the guest still knows an old connection of each.
const STALE_PORTS_MAX: u32 = 8;
/// Largest SYN packet that is kept to be sent again.
const SYN_BYTES_MAX: usize = 128;
/// A socket that has nothing to send but wants to be polled is polled again after this.
const POLL_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// Names a connection for its owner; never used twice.
pub(super) type ConnectionId = u64;

/// See the module.
pub(super) struct Stack {
    epoch: tokio::time::Instant,
    addresses: LinkAddresses,
    interface: Interface,
    /// Answers segments that belong to no connection.
    nobody: SocketSet<'static>,
    connections: HashMap<ConnectionId, Connection>,
    by_port: HashMap<u16, ConnectionId>,
    next_id: ConnectionId,
    ports: Ports,
    flows: HashMap<u16, Flow>,
    flow_ports: Ports,
    next_ident: u16,
    reassembly: Reassembly,
    /// Connections that may have something to send, in turn.
    ready: VecDeque<ConnectionId>,
    timers: BTreeSet<(Instant, ConnectionId)>,
    /// The guest has been heard.
    pub(super) heard: bool,
    /// How many wait for that without opening a connection.
    pub(super) seekers: usize,
    probe_at: Option<Instant>,
    probed_at: Option<Instant>,
    pub(super) outbox: Outbox,
    pub(super) counters: LinkCounters,
    pub(super) closed: bool,
    /// The driver sleeps until then at most.
    pub(super) driver_until: Option<Instant>,
    /// The driver waits for the socket to become writable.
    pub(super) driver_writes: bool,
}

/// Why nothing could be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotBegun {
    Closed,
    TooMany,
    /// Port 0, on which nobody can listen.
    NoSuchPort,
}

impl Stack {
    pub(in crate::guest) fn new(addresses: LinkAddresses) -> Self {
        let random = RandomState::new();
        let mut outbox = Outbox::default();
        let mut counters = LinkCounters::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random.hash_one(0);
        let mut wire = Wire { packet: None, outbox: &mut outbox, counters: &mut counters };
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for two.
            let _ = addresses.push(IpCidr::new(HERE_IP.into(), PREFIX_LEN));
        });
        let [a, b, c, d, e, f, ..] = random.hash_one(1).to_be_bytes();
        Self {
            epoch: tokio::time::Instant::now(),
            addresses,
            interface,
            nobody: SocketSet::new(Vec::new()),
            connections: HashMap::new(),
            by_port: HashMap::new(),
            next_id: 0,
            ports: Ports::new(u16::from_be_bytes([a, b])),
            flows: HashMap::new(),
            flow_ports: Ports::new(u16::from_be_bytes([c, d])),
            next_ident: u16::from_be_bytes([e, f]),
            reassembly: Reassembly::default(),
            ready: VecDeque::new(),
            timers: BTreeSet::new(),
            heard: false,
            seekers: 0,
            probe_at: None,
            probed_at: None,
            outbox,
            counters,
            closed: false,
            driver_until: None,
            driver_writes: false,
        }
    }

    /// Time since the link was attached, plus a second: the TCP stack takes zero for "at once".
    pub(in crate::guest) fn now(&self) -> Instant {
        let micros = i64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(i64::MAX - 1_000_000);
        Instant::from_micros(micros + 1_000_000)
    }

    /// When a time of [`now`](Self::now) is.
    pub(in crate::guest) fn at(&self, time: Instant) -> tokio::time::Instant {
        let micros = u64::try_from(time.total_micros()).unwrap_or(0);
        self.epoch + std::time::Duration::from_micros(micros.saturating_sub(1_000_000))
    }

    // --- Connections -------------------------------------------------------------------------------------------

    pub(in crate::guest) fn open(
        &mut self,
        guest_port: u16,
        first: Vec<u8>,
    ) -> Result<ConnectionId, NotBegun> {
        if self.closed {
            return Err(NotBegun::Closed);
        }
        if self.connections.len() >= CONNECTIONS_MAX {
            return Err(NotBegun::TooMany);
        }
        if guest_port == 0 {
            return Err(NotBegun::NoSuchPort);
        }
        let now = self.now();
        let port = self.ports.take(now).ok_or(NotBegun::TooMany)?;
        let Some(connection) = Connection::open(self.interface.context(), port, guest_port, first) else {
            self.ports.give_back(port, now);
            return Err(NotBegun::NoSuchPort);
        };
        let id = self.next_id;
        self.next_id += 1;
        self.connections.insert(id, connection);
        self.by_port.insert(port, id);
        self.probe_soon(now);
        self.queue(id);
        Ok(id)
    }

    /// How many connections there are.
    pub(in crate::guest) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(in crate::guest) fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    /// The connection may have something to send.
    pub(in crate::guest) fn queue(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    /// The owner is gone.
    pub(in crate::guest) fn release(&mut self, id: ConnectionId) {
        let linger_until = self.now() + LINGER_MAX.into();
        let closed = self.closed;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.owned = false;
        if closed || connection.opening.is_some() || connection.settled {
            // A SYN-ACK that still comes will be answered with a reset.
            self.forget(id);
            return;
        }
        if connection.is_over() || connection.is_finished() {
            connection.linger_until = Some(linger_until);
        } else {
            connection.reset();
        }
        self.queue(id);
    }

    fn forget(&mut self, id: ConnectionId) {
        let now = self.now();
        if let Some(connection) = self.connections.remove(&id) {
            if let Some(timer) = connection.timer {
                self.timers.remove(&(timer, id));
            }
            self.by_port.remove(&connection.local_port);
            self.ports.give_back(connection.local_port, now);
        }
    }

    /// The guest took our SYN for a segment of an old connection, and that is reset now. Try another port.
    fn reopen(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let old_port = connection.local_port;
        let tried = connection.opening.as_ref().map_or(0, |opening| opening.stale_ports);
        let port = if tried < STALE_PORTS_MAX { self.ports.take(now) } else { None };
        let Some(port) = port else {
            connection.fail(End::Refused);
            return;
        };
        if connection.reopen(self.interface.context(), port) {
            self.by_port.remove(&old_port);
            self.by_port.insert(port, id);
            self.ports.give_back(old_port, now);
            self.queue(id);
        } else {
            connection.fail(End::Refused);
            self.ports.give_back(port, now);
        }
    }

    // --- Datagrams ---------------------------------------------------------------------------------------------

    pub(in crate::guest) fn open_flow(&mut self, guest_port: u16) -> Result<u16, NotBegun> {
        if self.closed {
            return Err(NotBegun::Closed);
        }
        if self.flows.len() >= FLOWS_MAX {
            return Err(NotBegun::TooMany);
        }
        let port = self.flow_ports.take(self.now()).ok_or(NotBegun::TooMany)?;
        self.flows.insert(port, Flow::new(guest_port));
        Ok(port)
    }

    pub(in crate::guest) fn flow(&mut self, port: u16) -> Option<&mut Flow> {
        self.flows.get_mut(&port)
    }

    pub(in crate::guest) fn close_flow(&mut self, port: u16) {
        if self.flows.remove(&port).is_some() {
            self.flow_ports.give_back(port, self.now());
        }
    }

    /// Queues a datagram; false if the guest does not take its frames.
    pub(in crate::guest) fn send_datagram(&mut self, port: u16, payload: &[u8]) -> bool {
        let Some(flow) = self.flows.get(&port) else { return false };
        self.next_ident = self.next_ident.wrapping_add(1);
        let ports = (port, flow.guest_port);
        flow::send(&mut self.outbox, &mut self.counters, self.next_ident, ports, payload)
    }

    // --- Frames out --------------------------------------------------------------------------------------------

    /// Sends whatever is to be sent, as far as the unix socket takes it.
    pub(in crate::guest) fn pump(&mut self, stream: &UnixStream) -> io::Result<()> {
        let now = self.now();
        loop {
            self.poll_ready(now);
            if self.outbox.is_empty() {
                return Ok(());
            }
            match stream.try_write(self.outbox.waiting()) {
                Ok(count) => self.outbox.written(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One segment of each connection in turn, while there is room.
    fn poll_ready(&mut self, now: Instant) {
        while self.outbox.len() < TCP_BYTES_MAX {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            if connection.settled {
                self.settle(id, now);
                continue;
            }
            let before = connection.state();
            let mark = self.outbox.len();
            let mut wire = Wire { packet: None, outbox: &mut self.outbox, counters: &mut self.counters };
            let (interface, sockets) = (&mut self.interface, &mut connection.sockets);
            let polled = catch_unwind(AssertUnwindSafe(|| interface.poll_egress(now, &mut wire, sockets)));
            match polled {
                Ok(PollResult::SocketStateChanged) => {
                    if let Some(opening) = &mut connection.opening
                        && let Some(syn) = self.outbox.last_payload(mark, SYN_BYTES_MAX)
                    {
                        opening.syn = syn.to_vec();
                        opening.sent_at = Some(now);
                    }
                    connection.observe(before, false);
                    self.queue(id);
                }
                Ok(PollResult::None) => self.settle(id, now),
                Err(_) => self.fault(id),
            }
        }
    }

    /// A connection has nothing more to send for now: forget it if it is over, or set its timer.
    fn settle(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.owned && connection.is_over() {
            self.forget(id);
            return;
        }
        connection.settled = connection.is_over();
        if connection.settled {
            self.set_timer(id, None);
            return;
        }
        let (interface, sockets) = (&mut self.interface, &connection.sockets);
        let polled = catch_unwind(AssertUnwindSafe(|| interface.poll_at(now, sockets)));
        let Ok(poll_at) = polled else {
            self.fault(id);
            return;
        };
        let poll_at = poll_at.map(|at| at.max(now + POLL_PAUSE.into()));
        let again_at = connection.opening.as_ref().and_then(|opening| opening.again_at);
        let at = [poll_at, again_at, connection.linger_until].into_iter().flatten().min();
        self.set_timer(id, at);
    }

    fn set_timer(&mut self, id: ConnectionId, at: Option<Instant>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.timer == at {
            return;
        }
        if let Some(old) = std::mem::replace(&mut connection.timer, at) {
            self.timers.remove(&(old, id));
        }
        if let Some(at) = at {
            self.timers.insert((at, id));
        }
    }

    // --- Time --------------------------------------------------------------------------------------------------

    /// When something is due next.
    pub(in crate::guest) fn next_due(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(at, _)| *at);
        [timer, self.probe_at].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(in crate::guest) fn tick(&mut self) {
        let now = self.now();
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.set_timer(id, None);
            self.timer_due(id, now);
        }
        if self.probe_at.is_some_and(|at| at <= now) {
            self.probe(now);
        }
    }

    fn timer_due(&mut self, id: ConnectionId, now: Instant) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.linger_until.is_some_and(|until| until <= now) {
            connection.linger_until = None;
            connection.reset();
        }
        self.send_syn_again(id, now);
        self.queue(id);
    }

    /// The TCP state machine panicked over this connection. Its state is not to be relied on any more.
    fn fault(&mut self, id: ConnectionId) {
        self.counters.dropped.stack_faults += 1;
        if let Some(connection) = self.connections.get_mut(&id) {
            // A new socket for the same ports, which is aborted at once, so that the guest gets a reset.
            connection.reopen(self.interface.context(), connection.local_port);
            connection.reset();
            connection.end = Some(End::Reset);
        }
        self.queue(id);
    }

    // --- The end -----------------------------------------------------------------------------------------------

    /// Resets all connections, as a last word to a guest that goes on.
    pub(in crate::guest) fn reset_all(&mut self) {
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for id in ids {
            if let Some(connection) = self.connections.get_mut(&id)
                && connection.opening.is_none()
                && !connection.is_over()
            {
                connection.reset();
                connection.end = Some(End::LinkClosed);
                self.queue(id);
            }
        }
    }

    /// The link is closed: everybody who waits is told.
    pub(in crate::guest) fn close(&mut self) {
        self.closed = true;
        self.connections.retain(|_, connection| connection.owned);
        for connection in self.connections.values_mut() {
            connection.timer = None;
            connection.fail(End::LinkClosed);
        }
        for flow in self.flows.values_mut() {
            flow.wake();
        }
        self.timers.clear();
        self.ready.clear();
        self.probe_at = None;
        self.outbox.clear();
    }
}
