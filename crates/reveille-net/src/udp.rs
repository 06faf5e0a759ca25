//! A UDP port: a session per client, and datagrams that wait while the gate is closed.
//!
//! One task owns a port of one stable address: its sessions and its queue. A session is a flow of its own to the
//! backend, so that the guest can tell clients apart by their port; what comes back on it goes to the client from
//! the stable address that the client had written to.
//!
//! While the gate is closed datagrams wait in the queue, in order. When it opens they are sent a few at a time:
//! the service in the guest reads them one by one, and its kernel drops in silence what does not fit into the
//! receive buffer. What arrives meanwhile queues behind them.
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

use reveille_core::model::{Gate, InstanceId, PortSpec};
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
    sessions: Sessions,
}

/// The sessions of a port.
struct Sessions {
    gate: Arc<ServiceGate>,
    port: PortSpec,
    socket: Arc<UdpSocket>,
    by_client: HashMap<SocketAddr, Session>,
    alive: mpsc::Sender<()>,
}

struct Session {
    member: InstanceId,
    upstream: Arc<UpstreamDatagrams>,
    last: Arc<AtomicU64>,
    replies: AbortHandle,
    gate: Arc<ServiceGate>,
}

/// What became of a datagram that was to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handed {
    /// The gate is closed.
    Closed,
    /// The way to the backend is full; it was not counted as dropped.
    Full,
    /// It was sent, or dropped and counted.
    Over,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.replies.abort();
        self.gate.udp_sessions.fetch_sub(1, Ordering::SeqCst);
        self.gate.datagrams_ended(self.member);
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
        let socket = Arc::new(socket);
        let sessions = Sessions {
            gate: Arc::clone(&gate),
            port,
            socket: Arc::clone(&socket),
            by_client: HashMap::new(),
            alive,
        };
        Self { gate, port, socket, held, sessions }
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
            let sweeping = !self.held.is_empty() || !self.sessions.by_client.is_empty();
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
            self.sessions.by_client.clear();
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
        if self.held.is_empty() {
            match self.sessions.hand_over(client, payload) {
                Handed::Closed => {}
                Handed::Full => return self.gate.counters.datagrams_failed.one(),
                Handed::Over => return,
            }
        }
        match gate {
            Gate::Refuse => return self.gate.counters.datagrams_refused.one(),
            Gate::Hold => self.gate.events.wanted(client, self.port),
            Gate::Open => {}
        }
        let dropped = self.held.push(client, payload, Instant::now());
        self.gate.counters.datagrams_over_limit.add(dropped);
    }

    /// Sends the first of those that wait; one that the backend does not take now goes on waiting.
    fn release(&mut self) {
        for _ in 0..RELEASE_BATCH {
            let Some(first) = self.held.front() else { return };
            match self.sessions.hand_over(first.client, &first.payload) {
                Handed::Closed | Handed::Full => return,
                Handed::Over => drop(self.held.pop()),
            }
        }
    }

    /// Ends what is over its time.
    fn sweep(&mut self) {
        let limits = self.gate.limits;
        if let Some(limit) = Instant::now().checked_sub(limits.held_max) {
            self.gate.counters.datagrams_expired.add(self.held.expire(limit));
        }
        let now = self.gate.now_ms();
        let idle_ms = u64::try_from(limits.udp_idle.as_millis()).unwrap_or(u64::MAX);
        let in_use = |session: &Session| now.saturating_sub(session.last.load(Ordering::Relaxed)) < idle_ms;
        self.sessions.by_client.retain(|_, session| in_use(session));
    }
}

impl Sessions {
    /// Sends a client's datagram to the backend.
    fn hand_over(&mut self, client: SocketAddr, payload: &[u8]) -> Handed {
        let gate = Arc::clone(&self.gate);
        let Some(_pass) = gate.pass() else { return Handed::Closed };
        let counters = &gate.counters;
        let Some(session) = self.of(client) else {
            counters.datagrams_no_session.one();
            return Handed::Over;
        };
        session.last.store(gate.note_packet(), Ordering::Relaxed);
        let upstream = &session.upstream;
        let mut sent = upstream.send(payload);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            // This error is about an earlier datagram, and took the place of sending this one.
            counters.udp_unreachable.one();
            sent = upstream.send(payload);
        }
        match sent {
            Ok(()) => counters.datagrams_in.one(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Handed::Full,
            Err(_) => counters.datagrams_failed.one(),
        }
        Handed::Over
    }

    /// The client's session, a new one if need be; `None` if there may be no more or the backend has no way for it.
    fn of(&mut self, client: SocketAddr) -> Option<&Session> {
        if self.by_client.get(&client).is_some_and(|session| session.upstream.is_closed()) {
            self.by_client.remove(&client);
        }
        let vacant = match self.by_client.entry(client) {
            Entry::Occupied(found) => return Some(found.into_mut()),
            Entry::Vacant(vacant) => vacant,
        };
        let gate = &self.gate;
        let one_more = |open: u32| (open < gate.limits.udp_sessions_max).then_some(open + 1);
        gate.udp_sessions.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).ok()?;
        let (member, upstream) = match gate.datagrams(self.port.number) {
            Ok((member, upstream)) => (member, Arc::new(upstream)),
            Err(error) => {
                gate.udp_sessions.fetch_sub(1, Ordering::SeqCst);
                tracing::debug!(port = %self.port, %error, "no way to the backend for a UDP session");
                return None;
            }
        };
        let last = Arc::new(AtomicU64::new(0));
        let replies = Replies {
            upstream: Arc::clone(&upstream),
            socket: Arc::clone(&self.socket),
            client,
            last: Arc::clone(&last),
            gate: Arc::clone(gate),
            _alive: self.alive.clone(),
        };
        let replies = tokio::spawn(replies.relay()).abort_handle();
        Some(vacant.insert(Session { member, upstream, last, replies, gate: Arc::clone(gate) }))
    }
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
    fn pass_back(&self) -> io::Result<Option<Vec<u8>>> {
        DATAGRAM.with_borrow_mut(|buffer| {
            let datagram = match self.upstream.try_recv(buffer) {
                Ok(datagram) => datagram,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            match self.socket.try_send_to(&datagram, self.client) {
                Ok(_) => self.sent(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(datagram.into_owned()));
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
