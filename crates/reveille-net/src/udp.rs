//! A UDP port: a session per client, and datagrams that wait while the gate is closed.
//!
//! One task owns a port of one stable address: its sessions and its queue. A session is a flow of its own to the
//! backend, so that the guest can tell clients apart by their port; what comes back on it goes to the client from the stable address that the client had written to.
//!
//! While the gate is closed datagrams wait in the queue, in order. When it opens they are sent a few at a time:
//! the backend reads them one by one, and the kernel drops in silence what does not fit into its receive buffer.
//! What arrives meanwhile queues behind them.
//!
//! "Port unreachable" from the backend ends no session: it is counted, and a datagram that met with the report
//! about an earlier one is sent again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reveille_core::model::{Gate, PortSpec};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, coop};
use tokio::time::{Instant, sleep, sleep_until};

use crate::gate::{ServiceGate, Signal};
use crate::held::HeldDatagrams;
use crate::upstream::UpstreamDatagrams;

/// Longest payload of a UDP datagram, and one byte more.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Datagrams that are received before the task looks at anything else.
const RECEIVE_BATCH: usize = 64;
/// Held datagrams that are sent at once when the gate opens.
const RELEASE_BATCH: usize = 16;
/// Pause until the next ones are.
const RELEASE_PAUSE: Duration = Duration::from_millis(1);
/// Pause after an error of the port's own socket.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);
/// Shortest and longest time between two looks for what is over its time.
const SWEEP: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));

thread_local! {
    static DATAGRAM: RefCell<Box<[u8]>> = RefCell::new(vec![0; DATAGRAM_BYTES_MAX].into_boxed_slice());
}

/// One UDP port of one stable address of a service.
pub(crate) struct UdpPort {
    gate: Arc<ServiceGate>,
    port: PortSpec,
    socket: Arc<UdpSocket>,
    held: HeldDatagrams,
    sessions: HashMap<SocketAddr, Session>,
    alive: mpsc::Sender<()>,
}

struct Session {
    upstream: Arc<UpstreamDatagrams>,
    last: Arc<AtomicU64>,
    replies: AbortHandle,
    gate: Arc<ServiceGate>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.replies.abort();
        self.gate.udp_sessions.fetch_sub(1, Ordering::SeqCst);
    }
}

impl UdpPort {
    pub(crate) fn new(
        gate: Arc<ServiceGate>,
        port: PortSpec,
        socket: UdpSocket,
        alive: mpsc::Sender<()>,
    ) -> Self {
        let held = HeldDatagrams::new(Arc::clone(&gate.held_datagrams));
        Self { gate, port, socket: Arc::new(socket), held, sessions: HashMap::new(), alive }
    }

    /// Relays until the service is unbound.
    pub(crate) async fn run(mut self) {
        let mut signal = self.gate.watch();
        let mut known = *signal.borrow_and_update();
        let limits = self.gate.limits;
        let sweep_every = (limits.udp_idle.min(limits.held_max) / 4).clamp(SWEEP.0, SWEEP.1);
        let mut release_at = Instant::now();
        let mut sweep_at = release_at;
        while !known.ended {
            let releasing = known.gate == Gate::Open && !self.held.is_empty();
            let sweeping = !self.held.is_empty() || !self.sessions.is_empty();
            coop::consume_budget().await;
            tokio::select! {
                biased;
                _ = signal.changed() => {
                    let before = known;
                    known = *signal.borrow_and_update();
                    self.turn(before, known);
                    release_at = Instant::now();
                }
                () = sleep_until(release_at), if releasing => {
                    self.release();
                    release_at = Instant::now() + RELEASE_PAUSE;
                }
                () = sleep_until(sweep_at), if sweeping => {
                    self.sweep();
                    sweep_at = Instant::now() + sweep_every;
                }
                ready = self.socket.readable() => {
                    if ready.and_then(|()| self.receive(known.gate)).is_err() {
                        self.gate.counters.datagrams_failed.one();
                        sleep(RECEIVE_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Follows a change of the gate.
    fn turn(&mut self, before: Signal, now: Signal) {
        if before.cuts != now.cuts {
            self.sessions.clear();
        }
        match now.gate {
            Gate::Open => {}
            Gate::Hold => {
                if let Some(first) = self.held.front() {
                    self.gate.events.wanted(first.client, self.port);
                }
            }
            Gate::Refuse => self.gate.counters.datagrams_refused.add(self.held.clear()),
        }
    }

    /// Receives what is there, up to a limit.
    fn receive(&mut self, gate: Gate) -> io::Result<()> {
        DATAGRAM.with_borrow_mut(|buffer| {
            for _ in 0..RECEIVE_BATCH {
                match self.socket.try_recv_from(buffer) {
                    Ok((length, client)) => self.take(client, &buffer[..length], gate),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    }

    /// Passes a datagram on, or keeps it if the gate is closed or others wait before it. `gate` is what this task
    /// last saw of the gate; a later change is still to come to [`Self::turn`], which sees to what is kept now.
    fn take(&mut self, client: SocketAddr, payload: &[u8], gate: Gate) {
        if self.held.is_empty() && self.pass_on(client, payload) {
            return;
        }
        match gate {
            Gate::Refuse => return self.gate.counters.datagrams_refused.one(),
            Gate::Hold => self.gate.events.wanted(client, self.port),
            Gate::Open => {}
        }
        let dropped = self.held.push(client, payload, Instant::now());
        self.gate.counters.datagrams_over_limit.add(dropped);
    }

    /// Sends the first of those that wait.
    fn release(&mut self) {
        for _ in 0..RELEASE_BATCH {
            // Taken out of the queue only for as long as it is looked at: it goes back if the gate has closed.
            let Some(datagram) = self.held.front() else { return };
            let (client, payload) = (datagram.client, datagram.payload.clone());
            if !self.pass_on(client, &payload) {
                return;
            }
            self.held.pop();
        }
    }

    /// Sends a datagram to the backend, or counts why that failed; `false` if the gate is closed.
    fn pass_on(&mut self, client: SocketAddr, payload: &[u8]) -> bool {
        let Some(_pass) = self.gate.pass() else { return false };
        let counters = &self.gate.counters;
        let Some(session) =
            session(&mut self.sessions, client, &self.gate, &self.socket, self.port.number, &self.alive)
        else {
            counters.datagrams_no_session.one();
            return true;
        };
        session.last.store(self.gate.note_packet(), Ordering::Relaxed);
        let upstream = &session.upstream;
        let mut sent = upstream.send(payload);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            // This error is about an earlier datagram, and took the place of sending this one.
            counters.udp_unreachable.one();
            sent = upstream.send(payload);
        }
        match sent {
            Ok(()) => counters.datagrams_in.one(),
            Err(_) => counters.datagrams_failed.one(),
        }
        true
    }

    /// Ends what is over its time.
    fn sweep(&mut self) {
        let limits = self.gate.limits;
        if let Some(limit) = Instant::now().checked_sub(limits.held_max) {
            self.gate.counters.datagrams_expired.add(self.held.expire(limit));
        }
        let now = self.gate.now_ms();
        let idle_ms = u64::try_from(limits.udp_idle.as_millis()).unwrap_or(u64::MAX);
        self.sessions.retain(|_, session| now.saturating_sub(session.last.load(Ordering::Relaxed)) < idle_ms);
    }
}

/// The client's session, a new one if need be; `None` if there may be no more or no socket is to be had.
fn session<'a>(
    sessions: &'a mut HashMap<SocketAddr, Session>,
    client: SocketAddr,
    gate: &Arc<ServiceGate>,
    socket: &Arc<UdpSocket>,
    port: u16,
    alive: &mpsc::Sender<()>,
) -> Option<&'a mut Session> {
    if sessions.get(&client).is_some_and(|session| session.upstream.is_closed()) {
        sessions.remove(&client);
    }
    let vacant = match sessions.entry(client) {
        Entry::Occupied(found) => return Some(found.into_mut()),
        Entry::Vacant(vacant) => vacant,
    };
    let one_more = |open: u32| (open < gate.limits.udp_sessions_max).then_some(open + 1);
    gate.udp_sessions.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).ok()?;
    let upstream = match gate.datagrams(port) {
        Ok(upstream) => Arc::new(upstream),
        Err(error) => {
            gate.udp_sessions.fetch_sub(1, Ordering::SeqCst);
            tracing::debug!(port, %error, "no way to the backend for a UDP session");
            return None;
        }
    };
    let last = Arc::new(AtomicU64::new(0));
    let replies = Replies {
        upstream: Arc::clone(&upstream),
        socket: Arc::clone(socket),
        client,
        last: Arc::clone(&last),
        gate: Arc::clone(gate),
        _alive: alive.clone(),
    };
    let replies = tokio::spawn(replies.relay()).abort_handle();
    Some(vacant.insert(Session { upstream, last, replies, gate: Arc::clone(gate) }))
}

/// The way back of one session.
struct Replies {
    upstream: Arc<UpstreamDatagrams>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    last: Arc<AtomicU64>,
    gate: Arc<ServiceGate>,
    // Last, so that the sockets are closed when it is dropped.
    _alive: mpsc::Sender<()>,
}

impl Replies {
    /// Relays until the task is aborted or the guest is gone.
    async fn relay(self) {
        loop {
            coop::consume_budget().await;
            let received = match self.upstream.readable().await {
                Ok(()) => self.pass_back(),
                Err(error) => Err(error),
            };
            match received {
                Ok(None) => {}
                Ok(Some(unsent)) => {
                    // The client's side is congested: wait, and let the kernel drop what comes meanwhile.
                    let sent = self.socket.send_to(&unsent, self.client).await;
                    self.sent(sent.is_ok());
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    self.gate.counters.udp_unreachable.one();
                }
                // The guest is gone; the session ends when its client sends again, or is idle.
                Err(_) if self.upstream.is_closed() => return,
                Err(_) => {
                    self.gate.counters.datagrams_failed.one();
                    sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    /// Passes one datagram back if there is one; returns it if the client's side does not take it now.
    fn pass_back(&self) -> io::Result<Option<Box<[u8]>>> {
        DATAGRAM.with_borrow_mut(|buffer| {
            let length = match self.upstream.try_recv(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            match self.socket.try_send_to(&buffer[..length], self.client) {
                Ok(_) => self.sent(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(buffer[..length].into()));
                }
                Err(_) => self.sent(false),
            }
            Ok(None)
        })
    }

    fn sent(&self, fully: bool) {
        let counters = &self.gate.counters;
        if fully {
            counters.datagrams_out.one();
            self.last.store(self.gate.note_reply(), Ordering::Relaxed);
        } else {
            counters.datagrams_failed.one();
        }
    }
}
