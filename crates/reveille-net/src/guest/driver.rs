//! The task of a link: reads frames, keeps the timers, and writes what a full socket left behind.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::SockRef;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};

use super::LinkAddresses;
use super::frame::{FRAME_BYTES_MAX, LENGTH_BYTES, SKIPPED_BYTES_MAX};
use super::stack::Stack;

/// Most bytes that are read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Reads in a row before other tasks get their turn.
const READS_IN_A_ROW: usize = 16;

thread_local! {
    static CHUNK: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK_BYTES].into_boxed_slice());
}

/// Shared by a link, its driver, streams and flows.
pub(super) struct Shared {
    stack: Mutex<Stack>,
    stream: UnixStream,
    wake_driver: Notify,
    pub(super) closed: watch::Sender<bool>,
    pub(super) heard: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(stream: UnixStream, addresses: LinkAddresses) -> Self {
        Self {
            stack: Mutex::new(Stack::new(addresses)),
            stream,
            wake_driver: Notify::new(),
            closed: watch::Sender::new(false),
            heard: watch::Sender::new(false),
        }
    }

    pub(super) fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what a call of an owner made possible, and wakes the driver if it is left with something.
    pub(super) fn pump(&self, mut stack: MutexGuard<'_, Stack>) {
        if stack.closed {
            return;
        }
        let failed = stack.pump(&self.stream).is_err();
        let due = stack.next_due();
        let sooner = due.is_some_and(|due| stack.driver_until.is_none_or(|until| due < until));
        let left = !stack.outbox.is_empty() && !stack.driver_writes;
        drop(stack);
        if failed {
            self.close();
        } else if sooner || left {
            self.wake_driver.notify_one();
        }
    }

    /// Closes the link; harmless when it is closed.
    pub(super) fn close(&self) {
        self.stack().close();
        // The other side sees the end at once, also while streams of this link still exist.
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Both);
        self.closed.send_replace(true);
        self.wake_driver.notify_one();
    }

    /// Resets what is open and closes.
    pub(super) fn hang_up(&self) {
        let mut stack = self.stack();
        if !stack.closed {
            stack.reset_all();
            // As far as the socket takes it: a guest that is not told will find out when it sends something.
            let _ = stack.pump(&self.stream);
        }
        drop(stack);
        self.close();
    }
}

/// Runs until the link is closed.
pub(super) async fn drive(shared: Arc<Shared>) {
    let mut frames = Frames::default();
    while let Ok(Some(pause)) = prepare(&shared) {
        let sleep = async {
            match pause.until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            readable = shared.stream.readable() => match readable {
                Ok(()) => frames.read(&shared).await.is_err(),
                Err(_) => true,
            },
            writable = shared.stream.writable(), if pause.writes => writable.is_err(),
            () = shared.wake_driver.notified() => false,
            () = sleep => false,
        };
        if ended {
            break;
        }
    }
    shared.close();
}

struct Pause {
    until: Option<tokio::time::Instant>,
    writes: bool,
}

/// Does what is due and says what to wait for; `None` when the link is closed.
fn prepare(shared: &Shared) -> io::Result<Option<Pause>> {
    let mut stack = shared.stack();
    if stack.closed {
        return Ok(None);
    }
    stack.tick();
    stack.pump(&shared.stream)?;
    stack.outbox.rest();
    let due = stack.next_due();
    stack.driver_until = due;
    stack.driver_writes = !stack.outbox.is_empty();
    Ok(Some(Pause { until: due.map(|due| stack.at(due)), writes: stack.driver_writes }))
}

/// Finds the frames in the stream of bytes.
#[derive(Debug, Default)]
struct Frames {
    /// The begin of a frame whose rest is yet to come.
    partial: Vec<u8>,
    /// Bytes of a frame that is too long, yet to come.
    skip: usize,
}

impl Frames {
    /// Reads until there is nothing to read. An error is the end of the link.
    async fn read(&mut self, shared: &Shared) -> io::Result<()> {
        for _ in 0..READS_IN_A_ROW {
            if !self.read_chunk(shared)? {
                return Ok(());
            }
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    fn read_chunk(&mut self, shared: &Shared) -> io::Result<bool> {
        CHUNK.with_borrow_mut(|chunk| {
            let kept = self.partial.len();
            chunk[..kept].copy_from_slice(&self.partial);
            let count = match shared.stream.try_read(&mut chunk[kept..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
                Err(error) => return Err(error),
            };
            let mut stack = shared.stack();
            let was_heard = stack.heard;
            let rest = self.take(&chunk[..kept + count], &mut stack)?;
            self.partial.clear();
            self.partial.extend_from_slice(rest);
            let news = stack.heard && !was_heard;
            stack.pump(&shared.stream)?;
            drop(stack);
            if news {
                shared.heard.send_replace(true);
            }
            Ok(true)
        })
    }

    /// Hands over all whole frames; returns what is left.
    fn take<'a>(&mut self, mut bytes: &'a [u8], stack: &mut Stack) -> io::Result<&'a [u8]> {
        let now = stack.now();
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(bytes) };
            let length = u32::from_be_bytes(*length) as usize;
            if length > SKIPPED_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if length > FRAME_BYTES_MAX {
                stack.counters.frames_in += 1;
                stack.counters.dropped.oversized += 1;
                self.skip = length;
                bytes = rest;
                continue;
            }
            let Some((frame, rest)) = rest.split_at_checked(length) else { return Ok(bytes) };
            stack.input(frame, now);
            bytes = rest;
        }
    }
}
