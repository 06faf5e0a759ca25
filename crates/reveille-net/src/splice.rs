//! The two streams of a relayed connection, joined: bytes, ends and resets pass from each to the other.
//!
//! - A FIN ends one direction only; it is passed on once all bytes before it are (half-close).
//! - An RST, or any other error, of one side ends the whole with [`Broken`], and the caller resets both. Bytes
//!   that came before it are passed on first, unless the other side does not take them.
//! - Back-pressure is the kernel's: nothing is read from one side before the other has taken what was read.
//!   Between the two lies at most one chunk per direction, and only while the other side is slow: chunks are read
//!   into a buffer of the thread, so that a quiet connection costs no memory.
//! - There is no idle time-out, but for one case: the guest has sent its FIN and the client stays silent. A client
//!   that forgot its socket would keep the guest awake for ever.

use std::cell::RefCell;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::coop;

use crate::upstream::{Ends, Upstream};

/// Most bytes that are read at once, and so in flight in each direction.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;
/// Most bytes of a client that are kept to be sent again, until the backend has sent something.
pub(crate) const REPLAY_BYTES_MAX: usize = 16 << 10;

thread_local! {
    static CHUNK: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK_BYTES].into_boxed_slice());
}

/// Why a splice ended before both sides had closed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client's connection is reset or lost.
    Client,
    /// The backend's is.
    Backend,
    /// The backend closed although nothing had passed in either direction, and [`Trial::suspicious`] is set.
    EmptyClose,
    /// The guest has closed and the client was silent for too long.
    HalfClosed,
}

/// What is known of a connection whose backend has not sent anything yet.
///
/// The bytes that the client has sent are kept, so that they can be sent again over another connection. This ends
/// with the first byte from the backend, or when they are more than [`REPLAY_BYTES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Trial {
    /// An orderly close without a byte is taken for a guest that does not listen yet.
    pub(crate) suspicious: bool,
    decided: AtomicBool,
    /// Bytes were handed to the present backend connection.
    sent: AtomicBool,
    kept: Mutex<Vec<u8>>,
}

impl Trial {
    /// Whether another connection can still take the place of this one unnoticed.
    pub(crate) fn undecided(&self) -> bool {
        !self.decided.load(Ordering::Relaxed)
    }

    /// Whether bytes of the client were handed to the present backend connection.
    pub(crate) fn has_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether bytes of the client were read.
    pub(crate) fn has_kept(&self) -> bool {
        !self.kept().is_empty()
    }

    /// Begins with a new backend connection.
    pub(crate) fn restart(&self) {
        self.sent.store(false, Ordering::Relaxed);
    }

    fn keep(&self, chunk: &[u8]) {
        self.sent.store(true, Ordering::Relaxed);
        if self.undecided() {
            let mut kept = self.kept();
            if kept.len() + chunk.len() <= REPLAY_BYTES_MAX {
                kept.extend_from_slice(chunk);
            } else {
                drop(kept);
                self.decide();
            }
        }
    }

    fn decide(&self) {
        if self.undecided() {
            self.decided.store(true, Ordering::Relaxed);
            *self.kept() = Vec::new();
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is told of bytes that pass.
pub(crate) trait Meter: Sync {
    /// Bytes from the client.
    fn up(&self, bytes: usize);
    /// Bytes from the backend.
    fn down(&self, bytes: usize);
}

/// Joins the two streams until both have closed in order.
pub(crate) async fn splice(
    client: &TcpStream,
    backend: &Upstream,
    trial: &Trial,
    meter: &dyn Meter,
    half_closed_max: Duration,
) -> Result<(), Broken> {
    let from_client = AtomicU64::new(0);
    let client_ended = AtomicBool::new(false);
    let up = async {
        let kept = trial.kept().clone();
        if !kept.is_empty() {
            trial.sent.store(true, Ordering::Relaxed);
            drain(client, backend, &kept).await.map_err(|side| side.of(Broken::Client, Broken::Backend))?;
        }
        drop(kept);
        let seen = |chunk: &[u8]| {
            if chunk.is_empty() {
                client_ended.store(true, Ordering::Relaxed);
                return Ok(());
            }
            trial.keep(chunk);
            from_client.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            meter.up(chunk.len());
            Ok(())
        };
        pump(client, backend, &seen, Broken::Client, Broken::Backend).await
    };
    let down = async {
        let seen = |chunk: &[u8]| {
            if !chunk.is_empty() {
                trial.decide();
                meter.down(chunk.len());
            } else if trial.suspicious
                && trial.undecided()
                && !trial.has_sent()
                && !client_ended.load(Ordering::Relaxed)
            {
                return Err(Broken::EmptyClose);
            }
            Ok(())
        };
        pump(backend, client, &seen, Broken::Backend, Broken::Client).await
    };
    let silence = async {
        loop {
            let before = from_client.load(Ordering::Relaxed);
            tokio::time::sleep(half_closed_max).await;
            if from_client.load(Ordering::Relaxed) == before {
                return;
            }
        }
    };
    tokio::pin!(up, down, silence);
    let (mut up_done, mut down_done) = (false, false);
    while !(up_done && down_done) {
        tokio::select! {
            ended = &mut up, if !up_done => { ended?; up_done = true; }
            ended = &mut down, if !down_done => { ended?; down_done = true; }
            // Nobody reads from a side that has sent its FIN, so its RST must be asked for.
            () = Ends::broken(client), if up_done => return Err(Broken::Client),
            () = backend.broken(), if down_done => return Err(Broken::Backend),
            () = &mut silence, if down_done => return Err(Broken::HalfClosed),
        }
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
enum Side {
    From,
    To,
}

impl Side {
    fn of<T>(self, from: T, to: T) -> T {
        match self {
            Self::From => from,
            Self::To => to,
        }
    }
}

/// Passes on bytes until the end of `from`, and then the end. `seen` is told of each chunk before it is passed on,
/// and of the end as an empty one.
async fn pump(
    from: &impl Ends,
    to: &impl Ends,
    seen: &(dyn Fn(&[u8]) -> Result<(), Broken> + Sync),
    from_broken: Broken,
    to_broken: Broken,
) -> Result<(), Broken> {
    let side = |side: Side| side.of(from_broken, to_broken);
    loop {
        coop::consume_budget().await;
        from.readable().await.map_err(|_| from_broken)?;
        match pass_chunk(from, to, seen).map_err(|fault| fault.unwrap_or_else(side))? {
            Passed::Nothing | Passed::All => {}
            Passed::Rest(rest) => drain(from, to, &rest).await.map_err(side)?,
            Passed::End => break,
        }
    }
    to.finish().map_err(|_| to_broken)
}

enum Passed {
    /// Nothing was there to read.
    Nothing,
    /// A chunk, wholly.
    All,
    /// A chunk, of which this is not written yet.
    Rest(Vec<u8>),
    /// The end of `from`.
    End,
}

/// Reads one chunk and writes as much of it as `to` takes at once.
fn pass_chunk(
    from: &impl Ends,
    to: &impl Ends,
    seen: &(dyn Fn(&[u8]) -> Result<(), Broken> + Sync),
) -> Result<Passed, Fault> {
    CHUNK.with_borrow_mut(|buffer| {
        let length = match from.try_read(buffer) {
            Ok(length) => length,
            Err(error) if is_passing(&error) => return Ok(Passed::Nothing),
            Err(_) => return Err(Fault::Of(Side::From)),
        };
        let chunk = &buffer[..length];
        seen(chunk).map_err(Fault::Seen)?;
        if chunk.is_empty() {
            return Ok(Passed::End);
        }
        match to.try_write(chunk) {
            Ok(written) if written == length => Ok(Passed::All),
            Ok(written) => Ok(Passed::Rest(chunk[written..].to_vec())),
            Err(error) if is_passing(&error) => Ok(Passed::Rest(chunk.to_vec())),
            Err(_) => Err(Fault::Of(Side::To)),
        }
    })
}

enum Fault {
    Of(Side),
    Seen(Broken),
}

impl Fault {
    fn unwrap_or_else(self, broken: impl FnOnce(Side) -> Broken) -> Broken {
        match self {
            Self::Of(side) => broken(side),
            Self::Seen(seen) => seen,
        }
    }
}

/// Writes all of `rest` to `to`; gives up if `to` does not take it and `from` is reset meanwhile.
async fn drain(from: &impl Ends, to: &impl Ends, mut rest: &[u8]) -> Result<(), Side> {
    while !rest.is_empty() {
        tokio::select! {
            biased;
            ready = to.writable() => ready.map_err(|_| Side::To)?,
            () = from.broken() => return Err(Side::From),
        }
        match to.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if is_passing(&error) => {}
            Err(_) => return Err(Side::To),
        }
    }
    Ok(())
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
