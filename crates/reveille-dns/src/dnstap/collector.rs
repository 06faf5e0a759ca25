//! The collector: takes dnstap of other servers in, from a unix socket and over TCP, on a thread of its own.
//!
//! ```text
//!   sender ──► connection ──► Session ──► Intake ──► counts per second and source, sketches
//!              (a task)       frames      (one lock for what was read at a time)
//! ```
//!
//! The thread has a runtime of its own, so that however much is sent here takes nothing from the tasks that answer but
//! its share of the processors, and that is bounded by `per_second_max`. A sender that is faster than that is read at
//! the same pace, and what is over is dropped and counted: it would drop by itself otherwise, unseen.
//!
//! A connection ends at the first frame that is malformed, with an error that names it; others go on. A frame that is
//! whole but holds no dnstap message is counted and passed over.

mod connection;
mod listen;

use std::hash::RandomState;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::answer::{Network, View};
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::DnstapIn;
use super::intake::Intake;
use super::seconds::SecondCount;
use super::sources::SourceStatus;
use super::thread;
use crate::bind::{BindError, open_tcp};
use crate::observe::{Hear, Observations, ServiceQueries};
use crate::places::Places;
use crate::server::Clock;
use listen::{Listeners, UnixSocket, accept};

pub use listen::UnixSocketError;

/// Most senders over the unix socket at a time.
pub const UNIX_SENDERS_MAX: usize = 64;
/// Most senders over TCP at a time, and of one host.
pub const TCP_SENDERS_MAX: (usize, usize) = (64, 32);
/// How often what is too old is forgotten.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Least time between two warnings about senders; in between only the count rises.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Why the collector cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum CollectorError {
    /// A TCP address cannot be had.
    #[error(transparent)]
    Tcp(#[from] BindError),
    /// The unix socket cannot be made.
    #[error(transparent)]
    Unix(#[from] UnixSocketError),
    /// No thread or runtime.
    #[error("cannot start the thread that takes dnstap in: {0}")]
    NoThread(#[source] io::Error),
}

/// What there is to tell of the collector.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CollectorStatus {
    /// What was counted of each sender.
    pub sources: Vec<SourceStatus>,
    /// Messages that were not looked at, or whose count nobody took in time, because there were too many.
    pub dropped: u64,
    /// Connections since the start.
    pub connections: u64,
    /// Connections that were closed at once: too many, or from a network that may not send.
    pub refused: u64,
    /// Connections that ended because of a malformed frame, or because a frame or the handshake took too long.
    pub broken: u64,
    /// Connections that are open.
    pub open: u64,
    /// The last fault of a sender, with its place in the stream.
    pub last_fault: Option<String>,
}

/// A collector that runs. Dropped, it stops, and its unix socket is removed.
#[derive(Debug)]
pub struct Collector {
    room: Arc<Room>,
    tcp: Vec<SocketAddr>,
    unix: Option<PathBuf>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What all connections share.
pub(super) struct Room {
    pub intake: Mutex<Intake>,
    pub view: Arc<ArcSwap<View>>,
    pub clock: Clock,
    pub tally: Tally,
    allow: Vec<Network>,
    unix_places: Arc<tokio::sync::Semaphore>,
    tcp_places: Arc<Places>,
    faults: Mutex<Faults>,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub connections: AtomicU64,
    pub refused: AtomicU64,
    pub broken: AtomicU64,
    pub open: AtomicU64,
}

#[derive(Debug, Default)]
struct Faults {
    last: Option<String>,
    warned: Option<Instant>,
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("tally", &self.tally).finish_non_exhaustive()
    }
}

impl Room {
    pub fn intake(&self) -> MutexGuard<'_, Intake> {
        // A panic in between may have left counts that are wrong, which is better than none.
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is wrong with what a sender sends, and says so unless that was done just now.
    pub fn note(&self, peer: &str, what: &dyn std::fmt::Display) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = format!("from {peer}: {what}");
        if faults.warned.is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            tracing::warn!(fault, "a sender of dnstap");
            faults.warned = Some(Instant::now());
        }
        faults.last = Some(fault);
    }
}

impl Collector {
    /// Begins to listen as the settings say, for names that `view` knows at any time.
    ///
    /// # Errors
    /// What cannot be listened on, with the remedy; nothing is left open.
    pub fn start(config: &DnstapIn, view: Arc<ArcSwap<View>>, clock: Clock) -> Result<Self, CollectorError> {
        Self::start_heard(config, view, clock, None)
    }

    /// The same, with somebody who hears of each question that counts.
    ///
    /// # Errors
    /// As above.
    pub fn start_heard(
        config: &DnstapIn,
        view: Arc<ArcSwap<View>>,
        clock: Clock,
        hear: Option<Hear>,
    ) -> Result<Self, CollectorError> {
        let open = |&address: &SocketAddr| -> Result<_, BindError> {
            let listener = open_tcp(address, "observe.dnstap_in.listen")?;
            let own = listener.local_addr().map_err(|source| BindError::Other { address, source })?;
            Ok((own, listener))
        };
        let opened: Result<Vec<_>, BindError> = config.listen.iter().map(open).collect();
        let (addresses, tcp): (Vec<_>, Vec<_>) = opened?.into_iter().unzip();
        let unix = match &config.unix {
            path if path.as_os_str().is_empty() => None,
            path => Some(UnixSocket::open(path, config.mode().unwrap_or(0o600))?),
        };
        let unix_path = unix.as_ref().map(|unix| unix.path().to_owned());
        let hash = RandomState::new();
        let room = Arc::new(Room {
            intake: Mutex::new(
                Intake::new(&config.count, config.per_second_max, hash, clock()).heard_by(hear),
            ),
            view,
            clock,
            tally: Tally::default(),
            allow: config.allow.clone(),
            unix_places: Arc::new(tokio::sync::Semaphore::new(UNIX_SENDERS_MAX)),
            tcp_places: Places::new(TCP_SENDERS_MAX.0, TCP_SENDERS_MAX.1),
            faults: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let serving = Arc::clone(&room);
        let thread = thread::spawn("dnstap-in", move || run(Listeners { tcp, unix }, serving, stopped))
            .map_err(CollectorError::NoThread)?;
        Ok(Self { room, tcp: addresses, unix: unix_path, stop, thread: Some(thread) })
    }

    /// Where it listens over TCP, in the order of the settings.
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// Its unix socket.
    pub fn unix_path(&self) -> Option<&std::path::Path> {
        self.unix.as_deref()
    }

    /// What was counted since the start. As all that follows, it may wait some milliseconds for what is being taken in.
    pub fn status(&self) -> CollectorStatus {
        let tally = &self.room.tally;
        let last_fault = self.room.faults.lock().unwrap_or_else(PoisonError::into_inner).last.clone();
        let intake = self.room.intake();
        CollectorStatus {
            sources: intake.sources().to_vec(),
            dropped: intake.dropped(),
            connections: tally.connections.load(Relaxed),
            refused: tally.refused.load(Relaxed),
            broken: tally.broken.load(Relaxed),
            open: tally.open.load(Relaxed),
            last_fault,
        }
    }

    /// What is known of all questions of late that senders told of.
    pub fn observations(&self) -> Observations {
        self.room.intake().observations()
    }

    /// What is known of the questions for the service with that counter.
    pub fn service(&self, counter: u32) -> ServiceQueries {
        self.room.intake().service(counter, (self.room.clock)())
    }

    /// Takes out how many questions there were in the seconds before `before_s` (since 1970), by source and counter.
    /// Senders hand over late: what comes of a second after it was taken comes the next time, to be added.
    pub fn take_seconds(&self, before_s: u32) -> Vec<SecondCount> {
        self.room.intake().take_seconds(before_s)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

async fn run(listeners: Listeners, room: Arc<Room>, stop: watch::Receiver<bool>) {
    let mut stopped = stop.clone();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut tasks = accept(listeners, &room, &stop);
    loop {
        tokio::select! {
            _ = look.tick() => {
                let now = (room.clock)();
                room.intake().look(now);
            }
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            () = crate::hold::stopped(&mut stopped) => break,
        }
    }
    // Dropped, connections end where they are, and the unix socket is removed.
    tasks.shutdown().await;
}

#[cfg(test)]
mod tests;
