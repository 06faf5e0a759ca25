//! A TCP client's way: accepted, held, connected to the backend, spliced.
//!
//! **Held.** While the gate is closed nothing is read from the client: what it sends stays in the kernel's socket
//! buffer and throttles it. A client that leaves is released: one that resets at once, and one that closes without
//! having sent anything. A client that has sent bytes and then its FIN may well wait for the answer, or have
//! delivered all that it wanted, so it is kept.
//!
//! **Connecting.** Nothing is read from the client before the guest has completed the handshake. A handshake that is
//! refused, or a backend that cannot be reached at all, is tried again with back-off for as long as the client may be
//! held: the service in the guest may not listen yet. When the time is over the client is reset.
//!
//! **Spliced.** After its handshake whatever the guest does is its answer and is carried through, a reset as a reset.
//! Only the loss of the instance is not: a client over whose connection no byte was read is then held again, for a
//! new span of time, and the others are reset.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reveille_core::model::PortSpec;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use crate::gate::{Admission, Begun, Cut, HeldSlot, NotBegun, Passage, ServiceGate, Signal};
use crate::listen;
use crate::splice::{Broken, Carried, splice};

/// Pause before accepting again when no file descriptor is left. The clients wait in the kernel's backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Pause after a failed try to reach the guest, doubled after each further one.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);

/// A TCP port of a service.
#[derive(Clone)]
pub(crate) struct TcpPort {
    pub(crate) gate: Arc<ServiceGate>,
    pub(crate) port: PortSpec,
    /// All clients of the relay.
    pub(crate) places: Arc<Semaphore>,
    /// Held by every task of the service, so that their end can be awaited.
    #[expect(dead_code, reason = "only its drop matters")]
    pub(crate) alive: mpsc::Sender<()>,
}

impl TcpPort {
    /// Accepts clients until the service is unbound.
    pub(crate) async fn accept(self, listener: TcpListener) {
        let mut signal = self.gate.watch();
        let mut paused = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = signal.wait_for(|signal| signal.ended) => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    paused = false;
                    self.take(stream, peer);
                }
                // The client was gone before it was accepted.
                Err(error) if is_client_gone(&error) => {}
                Err(error) => {
                    if !paused {
                        tracing::warn!(port = %self.port, %error, "cannot accept; clients wait in the backlog");
                        paused = true;
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr) {
        self.gate.counters.accepted.one();
        if listen::prepare(&stream).is_err() {
            // Only a connection that is reset already has no options.
            self.gate.counters.left.one();
            return;
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.gate.counters.over_connection_limit.one();
            listen::reset(&stream);
            return;
        };
        // Here and not in the task, so that a client is counted and reported in the order of its arrival.
        let signal = self.gate.watch();
        let admission = self.gate.admit(None, peer, self.port);
        let client = Client { stream, port: self.clone(), peer };
        tokio::spawn(async move {
            let _place = place;
            let end = client.live(admission, signal).await;
            client.leave(end);
        });
    }
}

fn is_client_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

struct Client {
    // Before the port, so that it is closed when the port's last task is seen to be gone.
    stream: TcpStream,
    port: TcpPort,
    peer: SocketAddr,
}

/// How a client's time ended.
enum End {
    Completed,
    Broken(Broken),
    Cut,
    Left,
    Expired,
    Refused,
    TooManyHeld,
    TooMany,
    Ended,
}

/// What becomes of a client whose connection to the backend ended or did not come about.
enum Next {
    /// Nothing more.
    Over(End),
    /// It is connected anew.
    Again,
    /// It waits at the gate again.
    Hold,
}

type Signals = tokio::sync::watch::Receiver<Signal>;

impl Client {
    async fn live(&self, first: Admission, mut signal: Signals) -> End {
        let mut wait = Wait::begin(self.port.gate.limits.held_max);
        let mut admission = first;
        loop {
            let passage = match self.wait_open(admission, &mut signal, wait.until).await {
                Ok(passage) => passage,
                Err(end) => return end,
            };
            if let Some(end) = self.pass(&passage, &mut signal, &mut wait).await {
                return end;
            }
            drop(passage);
            admission = self.port.gate.admit(None, self.peer, self.port.port);
        }
    }

    /// Waits until the gate opens.
    async fn wait_open(
        &self,
        mut admission: Admission,
        signal: &mut Signals,
        until: Instant,
    ) -> Result<Passage, End> {
        loop {
            let slot = match admission {
                Admission::Open(passage) => return Ok(passage),
                Admission::Wait(slot) => slot,
                Admission::Refused => return Err(End::Refused),
                Admission::TooManyHeld => return Err(End::TooManyHeld),
                Admission::TooMany => return Err(End::TooMany),
                Admission::Ended => return Err(End::Ended),
            };
            admission = self.wait_change(slot, signal, until).await?;
        }
    }

    async fn wait_change(
        &self,
        slot: HeldSlot,
        signal: &mut Signals,
        until: Instant,
    ) -> Result<Admission, End> {
        tokio::select! {
            biased;
            _ = signal.changed() => {}
            () = self.gone() => return Err(End::Left),
            () = sleep_until(until) => return Err(End::Expired),
        }
        Ok(self.port.gate.admit(Some(slot), self.peer, self.port.port))
    }

    /// Waits until the client has left, without reading what it sent. Cancel-safe.
    async fn gone(&self) {
        if matches!(self.stream.peek(&mut [0]).await, Ok(1..)) {
            // From now on only a reset tells; readiness to read would be reported over and over.
            let _ = self.stream.ready(Interest::ERROR).await;
        }
    }

    /// Connects the client until that is over; `None` if it is to wait at the gate again.
    async fn pass(&self, passage: &Passage, signal: &mut Signals, wait: &mut Wait) -> Option<End> {
        loop {
            let next = match self.connect(passage, wait.until).await {
                Ok(begun) => {
                    let next = self.serve(passage, &begun).await;
                    // Should it have to wait once more, its time begins now.
                    *wait = Wait::begin(self.port.gate.limits.held_max);
                    next
                }
                Err(next) => next,
            };
            match next {
                Next::Over(end) => return Some(end),
                Next::Hold => return None,
                Next::Again => self.port.gate.counters.retries.one(),
            }
            tokio::select! {
                () = sleep(wait.next_pause()) => {}
                // If the gate has closed, the next try finds out.
                _ = signal.changed() => {}
                _ = self.stream.ready(Interest::ERROR) => return Some(End::Left),
                () = sleep_until(wait.until) => return Some(End::Expired),
            }
        }
    }

    /// Has the guest complete a handshake.
    async fn connect(&self, passage: &Passage, until: Instant) -> Result<Begun, Next> {
        let again = |error: io::Error| {
            tracing::debug!(port = %self.port.port, %error, "cannot connect; trying again");
            Next::Again
        };
        let held_again = |why: Option<Cut>| why.map_or(Next::Hold, |why| after_cut(why, true));
        let begun = match passage.connect(self.port.port.number) {
            Ok(begun) => begun,
            Err(NotBegun::Closed) => return Err(held_again(passage.cut_why())),
            Err(NotBegun::Io(error)) => return Err(again(error)),
        };
        let connected = tokio::select! {
            connected = begun.upstream.connected() => connected,
            _ = self.stream.ready(Interest::ERROR) => return Err(Next::Over(End::Left)),
            () = sleep_until(until) => return Err(Next::Over(End::Expired)),
        };
        // A handshake that failed may be the trace of a cut.
        match (passage.cut_why(), connected) {
            (Some(why), _) => Err(after_cut(why, true)),
            (None, Ok(())) => Ok(begun),
            (None, Err(error)) if error.kind() == ErrorKind::ConnectionReset => {
                Err(Next::Over(End::Broken(Broken::Backend)))
            }
            (None, Err(error)) => Err(again(error)),
        }
    }

    /// Joins the client and the guest until one or both have ended.
    async fn serve(&self, passage: &Passage, begun: &Begun) -> Next {
        let (gate, backend) = (&self.port.gate, &*begun.upstream);
        let carried = Carried::nothing_yet(gate, &begun.replies);
        let Err(broken) = splice(&self.stream, backend, &carried, gate.limits.half_closed_max).await else {
            return Next::Over(End::Completed);
        };
        let lost = broken == Broken::Backend && backend.is_lost();
        // The passage has it too, so that dropping it here would not end it.
        backend.reset();
        match passage.cut_why() {
            Some(why) => after_cut(why, carried.is_nothing()),
            // The cut is still to come.
            None if lost && carried.is_nothing() => Next::Again,
            None => Next::Over(End::Broken(broken)),
        }
    }

    /// Ends the client's connection as its time with the relay ended.
    fn leave(&self, end: End) {
        let counters = &self.port.gate.counters;
        let count = match end {
            End::Completed => {
                listen::close_in_order(&self.stream);
                counters.completed.one();
                return;
            }
            End::Left => {
                counters.left.one();
                return;
            }
            End::Broken(Broken::Client) => &counters.client_resets,
            End::Broken(Broken::Backend) => &counters.backend_resets,
            End::Broken(Broken::HalfClosed) => &counters.half_closed,
            End::Cut | End::Ended => &counters.cut,
            End::Expired => &counters.expired,
            End::Refused => &counters.refused,
            End::TooManyHeld => &counters.over_held_limit,
            End::TooMany => &counters.over_service_limit,
        };
        count.one();
        listen::reset(&self.stream);
    }
}

fn after_cut(why: Cut, nothing_carried: bool) -> Next {
    match why {
        Cut::Lost if nothing_carried => Next::Hold,
        Cut::Lost | Cut::Forced => Next::Over(End::Cut),
        Cut::Ended => Next::Over(End::Ended),
    }
}

/// A client's waiting for the guest.
struct Wait {
    until: Instant,
    tries: u32,
}

impl Wait {
    fn begin(held_max: Duration) -> Self {
        Self { until: Instant::now() + held_max, tries: 0 }
    }

    fn next_pause(&mut self) -> Duration {
        let pause = RETRY_PAUSE.saturating_mul(1 << self.tries.min(16)).min(RETRY_PAUSE_MAX);
        self.tries += 1;
        pause
    }
}
