//! A TCP client's way: accepted, held, connected to the backend, spliced.
//!
//! **Held.** While the gate is closed nothing is read from the client: what it sends stays in the kernel's socket
//! buffer and throttles it. A client that leaves is released: one that resets at once, and one that closes without
//! having sent anything. A client that has sent bytes and then its FIN may well wait for the answer, or have
//! delivered all that it wanted, so it is kept.
//!
//! **Connecting.** A guest's handshake is its own, and its link sees to lost SYNs. A loopback backend may accept
//! connections on somebody's behalf, with a backlog of one. A SYN that finds the backlog full is dropped in silence
//! and would be sent again after a second; so clients connect there one after another per port, and a connect that
//! is not through within [`SYN_WAIT`] is given up for a new one.
//!
//! **When nobody listens yet** the relay takes that upon itself, and tries again with back-off for as long as the
//! client may be held. A refused connect, and a reset before any byte was handed over, are tried again: the guest
//! saw nothing. All else that comes from a guest is its answer. A loopback backend that accepts on behalf of others
//! closes what it had accepted, so that with one, until its first byte:
//!
//! - After a reset with the client's bytes handed over (they are kept, up to
//!   [`REPLAY_BYTES_MAX`](crate::splice::REPLAY_BYTES_MAX)), the guest may have seen them. The next connections must
//!   therefore first stay open for [`PROBATION`] without being handed anything, and the bytes are sent again at most
//!   [`REPLAYS_MAX`] times: a request that kills the service is not repeated at it for a minute.
//! - An orderly close without a byte in either direction is what a guest's closed port looks like, too. It is tried
//!   again only within [`SETTLE`] of the gate's opening, since a service may also close at once on purpose.
//!
//! When the time is over the client is reset. When the instance is lost before anything was handed to it, the client
//! is held again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reveille_core::model::PortSpec;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::gate::{Admission, Cut, HeldSlot, Link, NotBegun, ServiceGate};
use crate::listen;
use crate::splice::{Broken, Meter, Trial, splice};
use crate::upstream::Upstream;

/// Pause before accepting again when no file descriptor is left. The clients wait in the kernel's backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time in which a connect to a loopback address is through, unless its SYN was dropped.
const SYN_WAIT: Duration = Duration::from_millis(2);
/// Longest such time, reached by doubling.
const SYN_WAIT_MAX: Duration = Duration::from_millis(20);
/// Pause after a failed try to reach the guest, doubled after each further one.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Longest such pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long a connection must stay open before bytes are handed over a second time.
const PROBATION: Duration = Duration::from_millis(100);
/// Times that a client's bytes are handed over again.
const REPLAYS_MAX: u32 = 1;
/// Time after the gate's opening in which an empty close is taken for a guest that does not listen yet.
const SETTLE: Duration = Duration::from_secs(5);

/// A TCP port of a service.
#[derive(Clone)]
pub(crate) struct TcpPort {
    pub(crate) gate: Arc<ServiceGate>,
    pub(crate) port: PortSpec,
    /// Whose turn it is to connect; shared by the listeners of the same port.
    pub(crate) turn: Arc<Semaphore>,
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
        let client =
            Client { stream, port: self.clone(), peer, deadline: Instant::now() + self.gate.limits.held_max };
        tokio::spawn(async move {
            let _place = place;
            let end = client.live(admission, signal).await;
            client.leave(end);
        });
    }
}

fn is_client_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted)
}

struct Client {
    // Before the port, so that it is closed when the port's last task is seen to be gone.
    stream: TcpStream,
    port: TcpPort,
    peer: SocketAddr,
    /// Until when it may wait for the guest.
    deadline: Instant,
}

/// How a client's time ended.
enum End {
    Completed,
    Broken(Broken),
    Cut,
    Left,
    Expired,
    Refused,
    Full,
    Ended,
}

/// How one try to serve a client through the backend ended.
enum Attempt {
    /// For good.
    Over(End),
    /// Try again, the guest was not there.
    Again,
    /// Wait at the gate again.
    Hold,
}

type Signals = tokio::sync::watch::Receiver<crate::gate::Signal>;

impl Client {
    async fn live(&self, first: Admission, mut signal: Signals) -> End {
        let mut trial = Trial::default();
        let mut progress = Progress::default();
        let mut admission = first;
        loop {
            let link = match self.wait_open(admission, &mut signal, &trial).await {
                Ok(link) => link,
                Err(end) => return end,
            };
            match self.reach(&link, &mut trial, &mut progress).await {
                Attempt::Over(end) => return end,
                Attempt::Again | Attempt::Hold => {}
            }
            drop(link);
            admission = self.port.gate.admit(None, self.peer, self.port.port);
        }
    }

    /// Waits until the gate opens.
    async fn wait_open(
        &self,
        mut admission: Admission,
        signal: &mut Signals,
        trial: &Trial,
    ) -> Result<Link, End> {
        loop {
            let slot = match admission {
                Admission::Open(link) => return Ok(link),
                Admission::Wait(slot) => slot,
                Admission::Refused => return Err(End::Refused),
                Admission::Full => return Err(End::Full),
                Admission::Ended => return Err(End::Ended),
            };
            admission = self.wait_change(slot, signal, trial).await?;
        }
    }

    async fn wait_change(
        &self,
        slot: HeldSlot,
        signal: &mut Signals,
        trial: &Trial,
    ) -> Result<Admission, End> {
        tokio::select! {
            biased;
            _ = signal.changed() => {}
            () = self.gone(trial.has_kept()) => return Err(End::Left),
            () = sleep_until(self.deadline) => return Err(End::Expired),
        }
        Ok(self.port.gate.admit(Some(slot), self.peer, self.port.port))
    }

    /// Waits until the client has left, without reading what it sent. Cancel-safe.
    async fn gone(&self, has_sent: bool) {
        if !has_sent && !matches!(self.stream.peek(&mut [0]).await, Ok(1..)) {
            return;
        }
        // From now on only a reset tells; readiness to read would be reported over and over.
        let _ = self.stream.ready(Interest::ERROR).await;
    }

    /// Tries to serve the client over `link` until that is over one way or the other.
    async fn reach(&self, link: &Link, trial: &mut Trial, progress: &mut Progress) -> Attempt {
        loop {
            trial.restart();
            trial.suspicious = !self.port.gate.leads_to_guest() && self.port.gate.opened_within(SETTLE);
            let attempt = self.attempt(link, trial, progress).await;
            if let Attempt::Over(End::Completed) = attempt {
                return attempt;
            }
            // A broken socket may be the trace of a cut.
            let attempt = link.cut_why().map_or(attempt, |why| after_cut(why, trial));
            let Attempt::Again = attempt else { return attempt };
            self.port.gate.counters.retries.one();
            tokio::select! {
                () = sleep(progress.next_pause()) => {}
                why = link.cut() => return after_cut(why, trial),
                _ = self.stream.ready(Interest::ERROR) => return Attempt::Over(End::Left),
                () = sleep_until(self.deadline) => return Attempt::Over(End::Expired),
            }
        }
    }

    async fn attempt(&self, link: &Link, trial: &Trial, progress: &mut Progress) -> Attempt {
        let backend = tokio::select! {
            connected = self.connect(link) => match connected {
                Ok(stream) => stream,
                Err(attempt) => return attempt,
            },
            why = link.cut() => return after_cut(why, trial),
            _ = self.stream.ready(Interest::ERROR) => return Attempt::Over(End::Left),
            () = sleep_until(self.deadline) => return Attempt::Over(End::Expired),
        };
        if progress.on_probation
            && let Err(attempt) = self.probation(link, &backend, trial).await
        {
            return attempt;
        }
        let half_closed_max = self.port.gate.limits.half_closed_max;
        let spliced = splice(&self.stream, &backend, trial, &*self.port.gate, half_closed_max).await;
        match spliced {
            Ok(()) => {
                backend.close_in_order();
                return Attempt::Over(End::Completed);
            }
            // The link's list still has the backend, so it must be reset by hand.
            Err(_) => backend.reset(),
        }
        match spliced {
            Err(Broken::EmptyClose) => Attempt::Again,
            // A guest's own reset of what was handed over is its answer.
            Err(Broken::Backend) if matches!(*backend, Upstream::Guest(_)) && trial.has_sent() => {
                Attempt::Over(End::Broken(Broken::Backend))
            }
            Err(Broken::Backend) if trial.undecided() && progress.may_retry(trial.has_sent()) => {
                Attempt::Again
            }
            Err(broken) => Attempt::Over(End::Broken(broken)),
            Ok(()) => Attempt::Over(End::Completed),
        }
    }

    /// Connects to the backend: to a guest at once, to a socket when it is this client's turn.
    async fn connect(&self, link: &Link) -> Result<Arc<Upstream>, Attempt> {
        let _turn = match self.port.gate.leads_to_guest() {
            true => None,
            // The semaphore is never closed.
            false => Some(self.port.turn.acquire().await.map_err(|_| Attempt::Over(End::Ended))?),
        };
        let mut wait = SYN_WAIT;
        loop {
            let stream = match link.connect(self.port.port.number) {
                Ok(stream) => stream,
                Err(NotBegun::Closed | NotBegun::Cut) => return Err(Attempt::Hold),
                Err(NotBegun::Io(error)) => {
                    tracing::debug!(port = %self.port.port, %error, "cannot connect; trying again");
                    return Err(Attempt::Again);
                }
            };
            let limit = match *stream {
                // A link sends its SYNs again by itself, and sooner than we could tell.
                Upstream::Guest(_) => Duration::MAX,
                Upstream::Socket(_) => wait,
            };
            match timeout(limit, stream.connected()).await {
                Ok(Ok(())) => return Ok(stream),
                Ok(Err(_)) => return Err(Attempt::Again),
                // Through, but on a busy host the news takes longer than the thing.
                Err(_) if stream.is_connected() => return Ok(stream),
                Err(_) => {
                    stream.reset();
                    wait = (wait * 2).min(SYN_WAIT_MAX);
                }
            }
        }
    }

    /// Sees whether the backend stays open although it is handed nothing.
    async fn probation(&self, link: &Link, backend: &Upstream, trial: &Trial) -> Result<(), Attempt> {
        tokio::select! {
            () = sleep(PROBATION) => Ok(()),
            peeked = backend.speaks() => match peeked {
                Ok(1..) => Ok(()),
                Ok(0) if !trial.suspicious => Err(Attempt::Over(End::Broken(Broken::Backend))),
                Ok(0) | Err(_) => Err(Attempt::Again),
            },
            why = link.cut() => Err(after_cut(why, trial)),
            _ = self.stream.ready(Interest::ERROR) => Err(Attempt::Over(End::Left)),
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
            End::Broken(Broken::Backend | Broken::EmptyClose) => &counters.backend_resets,
            End::Broken(Broken::HalfClosed) => &counters.half_closed,
            End::Cut | End::Ended => &counters.cut,
            End::Expired => &counters.expired,
            End::Refused => &counters.refused,
            End::Full => &counters.over_held_limit,
        };
        count.one();
        listen::reset(&self.stream);
    }
}

fn after_cut(why: Cut, trial: &Trial) -> Attempt {
    match why {
        Cut::Lost if trial.undecided() && !trial.has_kept() => Attempt::Hold,
        Cut::Lost | Cut::Forced => Attempt::Over(End::Cut),
        Cut::Ended => Attempt::Over(End::Ended),
    }
}

/// What a client's tries have come to.
#[derive(Default)]
struct Progress {
    tries: u32,
    replays: u32,
    on_probation: bool,
}

impl Progress {
    /// Whether a connection that broke may be replaced, and how carefully from now on.
    fn may_retry(&mut self, has_sent: bool) -> bool {
        if !has_sent {
            return true;
        }
        self.on_probation = true;
        self.replays += 1;
        self.replays <= REPLAYS_MAX
    }

    fn next_pause(&mut self) -> Duration {
        let pause = RETRY_PAUSE.saturating_mul(1 << self.tries.min(16)).min(RETRY_PAUSE_MAX);
        self.tries += 1;
        pause
    }
}

impl Meter for ServiceGate {
    fn up(&self, bytes: usize) {
        self.counters.bytes_in.add(bytes as u64);
        let _ = self.note_packet();
    }

    fn down(&self, bytes: usize) {
        self.counters.bytes_out.add(bytes as u64);
        let _ = self.note_reply();
    }
}
