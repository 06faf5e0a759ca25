//! The two streams of a relayed connection, joined: bytes, ends and resets pass from each to the other.
//!
//! - A FIN ends one direction only; it is passed on once all bytes before it are (half-close).
//! - An RST, or any other error, of one side ends the whole with [`Broken`], and the caller resets both. Bytes
//!   that came before it are passed on first, unless the other side does not take them.
//! - Back-pressure is the kernel's: nothing is read from one side before the other has taken what was read.
//!   Between the two lies at most one chunk per direction, and only while the other side is slow: chunks are read
//!   into a buffer of the thread, so that a quiet connection costs no memory.
//! - When both sides have sent their FIN, the guest's acknowledgement of the last bytes is waited for, so that a
//!   connection that is over has left nothing that a guest put to sleep would miss.
//! - There is no idle time-out, but for one case: the guest has sent its FIN and the client stays silent. A client
//!   that forgot its socket would keep the guest awake for ever.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::coop;
use tokio::time::Instant;

use crate::counters::ReplyCounters;
use crate::gate::ServiceGate;
use crate::upstream::{Ends, Upstream};

/// Most bytes that are read at once, and so in flight in each direction.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

thread_local! {
    static CHUNK: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK_BYTES].into_boxed_slice());
}

/// Why a splice ended before both sides had closed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client's connection is reset or lost.
    Client,
    /// The backend's is, or its last bytes were not acknowledged in time.
    Backend,
    /// The guest has closed and the client was silent for too long.
    HalfClosed,
}

/// The bytes that a connection has carried; the gate is told of them as they pass.
pub(crate) struct Carried<'a> {
    gate: &'a ServiceGate,
    replies: &'a ReplyCounters,
    began: Instant,
    up: AtomicU64,
    down: AtomicU64,
    /// When the client said what was not answered yet, in microseconds after the beginning, and one; 0: it did not.
    said_us: AtomicU64,
}

impl<'a> Carried<'a> {
    pub(crate) fn nothing_yet(gate: &'a ServiceGate, replies: &'a ReplyCounters) -> Self {
        let zero = || AtomicU64::new(0);
        Self { gate, replies, began: Instant::now(), up: zero(), down: zero(), said_us: zero() }
    }

    /// No byte was read from either side, so that another connection can take the place of this one unnoticed.
    pub(crate) fn is_nothing(&self) -> bool {
        self.up.load(Ordering::Relaxed) == 0 && self.down.load(Ordering::Relaxed) == 0
    }

    fn up(&self, bytes: u64) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
        self.gate.counters.bytes_in.add(bytes);
        self.gate.note_packet();
        // Both directions of a connection are of one task.
        if self.said_us.load(Ordering::Relaxed) == 0 {
            self.said_us.store(self.since_us() + 1, Ordering::Relaxed);
        }
    }

    fn down(&self, bytes: u64) {
        self.down.fetch_add(bytes, Ordering::Relaxed);
        self.gate.counters.bytes_out.add(bytes);
        self.gate.note_reply();
        let said_us = self.said_us.load(Ordering::Relaxed);
        if said_us != 0 {
            self.said_us.store(0, Ordering::Relaxed);
            self.replies.one((self.since_us() + 1).saturating_sub(said_us));
        }
    }

    fn since_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }
}

/// Joins the two streams until both have closed in order.
pub(crate) async fn splice(
    client: &TcpStream,
    backend: &Upstream,
    carried: &Carried<'_>,
    half_closed_max: Duration,
) -> Result<(), Broken> {
    let (seen_up, seen_down) = (|bytes| carried.up(bytes), |bytes| carried.down(bytes));
    let up = pump(client, backend, &seen_up);
    let down = pump(backend, client, &seen_down);
    let silence = async {
        loop {
            let before = carried.up.load(Ordering::Relaxed);
            tokio::time::sleep(half_closed_max).await;
            if carried.up.load(Ordering::Relaxed) == before {
                return;
            }
        }
    };
    tokio::pin!(up, down, silence);
    let (mut up_done, mut down_done) = (false, false);
    while !(up_done && down_done) {
        tokio::select! {
            ended = &mut up, if !up_done => {
                ended.map_err(|side| side.of(Broken::Client, Broken::Backend))?;
                up_done = true;
            }
            ended = &mut down, if !down_done => {
                ended.map_err(|side| side.of(Broken::Backend, Broken::Client))?;
                down_done = true;
            }
            // Nobody reads from a side that has sent its FIN, so its RST must be asked for.
            () = Ends::broken(client), if up_done => return Err(Broken::Client),
            () = backend.broken(), if down_done => return Err(Broken::Backend),
            () = &mut silence, if down_done => return Err(Broken::HalfClosed),
        }
    }
    backend.delivered().await.map_err(|_| Broken::Backend)
}

/// Which stream of a [`pump`] broke.
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

/// Passes on bytes until the end of `from`, and then the end. `seen` is told the length of each chunk before it is
/// passed on.
async fn pump(from: &impl Ends, to: &impl Ends, seen: &(dyn Fn(u64) + Sync)) -> Result<(), Side> {
    loop {
        coop::consume_budget().await;
        from.readable().await.map_err(|_| Side::From)?;
        match pass_chunk(from, to, seen)? {
            Passed::Nothing | Passed::All => {}
            Passed::Rest(rest) => drain(from, to, &rest).await?,
            Passed::End => break,
        }
    }
    to.finish().map_err(|_| Side::To)
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
fn pass_chunk(from: &impl Ends, to: &impl Ends, seen: &(dyn Fn(u64) + Sync)) -> Result<Passed, Side> {
    CHUNK.with_borrow_mut(|buffer| {
        let length = match from.try_read(buffer) {
            Ok(0) => return Ok(Passed::End),
            Ok(length) => length,
            Err(error) if is_passing(&error) => return Ok(Passed::Nothing),
            Err(_) => return Err(Side::From),
        };
        seen(length as u64);
        let chunk = &buffer[..length];
        match to.try_write(chunk) {
            Ok(written) if written == length => Ok(Passed::All),
            Ok(written) => Ok(Passed::Rest(chunk[written..].to_vec())),
            Err(error) if is_passing(&error) => Ok(Passed::Rest(chunk.to_vec())),
            Err(_) => Err(Side::To),
        }
    })
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
