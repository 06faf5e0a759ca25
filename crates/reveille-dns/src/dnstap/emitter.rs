//! The emitter: this server's own queries as dnstap, to a collector or a file, on a thread of its own.
//!
//! ```text
//!   thread that answers ──► TapWriter ─ ring ─► TapReader ─► masked, encoded ──► collector, file
//! ```
//!
//! **Answering never waits for it.** A ring takes what it has room for, and the rest is dropped and counted. Without a
//! collector the rings are closed, so that a dead one costs less than one that lives.
//!
//! **Addresses.** Full ones are told only where the settings say so. Otherwise they are in the rings until the next look,
//! [`PAUSE`] later at most, or as long as a slow collector is waited for, and are masked before they are encoded. Nothing
//! of a client waits for a collector that is not there.
//!
//! A collector that does not take what it is sent within [`WRITE_MS_MAX`], or is gone, is left; after a pause, doubled
//! each time it fails again, the next connection is tried. What was being written counts as dropped.

mod link;

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::config::{Addresses, Destination, DnstapOut};
use super::frames::put_data;
use super::message::{Dnstap, Message, MessageType, SocketProtocol};
use super::tap::{TapReader, Tapped};
use super::thread;
use crate::hold::stopped;
use crate::respond::Transport;
use link::{Link, LinkError};

/// Pause after a look that found something, and after one that did not.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(50));
/// Encoded at a time, and written at once; one message more at most.
const CHUNK_BYTES: usize = 65_536;
/// Longest that a collector may take for one chunk.
pub const WRITE_MS_MAX: u64 = 5_000;
/// Pause after the first failure, doubled after each further one up to the second value. In milliseconds.
pub const BACKOFF_MS: (u64, u64) = (250, 30_000);
/// A collector that was there for so long has not failed, but ended.
const STEADY: Duration = Duration::from_secs(10);
/// Longest that the end may take: what is left is written, and the collector says that it has all of it.
const STOP_MS_MAX: u64 = 1_000;

/// What there is to tell of the emitter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EmitterStatus {
    /// A collector is there, or the file is.
    pub is_connected: bool,
    /// Messages that were handed to the kernel.
    pub sent: u64,
    /// Messages that were not, because there was no room, no collector or none that took them.
    pub dropped: u64,
    /// Of those that were sent: without the DNS message, in which an address could not be masked.
    pub withheld: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Why the last one ended, or could not be made.
    pub trouble: Option<String>,
}

/// An emitter that runs. Dropped, it writes what is left, for a second at most.
#[derive(Debug)]
pub struct Emitter {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    ended: Mutex<mpsc::Receiver<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    taps: Vec<TapReader>,
    is_connected: AtomicBool,
    sent: AtomicU64,
    /// Beside what the rings have dropped.
    lost: AtomicU64,
    withheld: AtomicU64,
    connections: AtomicU64,
    trouble: Mutex<Option<String>>,
}

/// The counters of an emitter. Cloning shares them.
#[derive(Debug, Clone)]
pub struct EmitterWatch(Arc<Shared>);

impl Shared {
    fn status(&self) -> EmitterStatus {
        let in_rings: u64 = self.taps.iter().map(TapReader::dropped).sum();
        EmitterStatus {
            is_connected: self.is_connected.load(Relaxed),
            sent: self.sent.load(Relaxed),
            dropped: in_rings + self.lost.load(Relaxed),
            withheld: self.withheld.load(Relaxed),
            connections: self.connections.load(Relaxed),
            trouble: self.trouble().clone(),
        }
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Emitter {
    /// Begins to empty these rings as the settings say; `None` if that is nowhere. `version` is what the server calls
    /// itself.
    ///
    /// # Errors
    /// If there is no thread to be had. A collector that is not there yet is none.
    pub(crate) fn start(config: &DnstapOut, taps: Vec<TapReader>, version: &str) -> io::Result<Option<Self>> {
        let Some(destination) = config.destination() else { return Ok(None) };
        let shared = Arc::new(Shared {
            taps,
            is_connected: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            withheld: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            trouble: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let writer = Writer {
            shared: Arc::clone(&shared),
            destination,
            encoder: Encoder {
                identity: config.identity.clone(),
                version: version.to_owned(),
                addresses: config.addresses,
            },
            file_bytes_max: u64::from(config.file_mib_max) << 20,
            stop: stopped,
            chunk: Vec::with_capacity(2 * CHUNK_BYTES),
            message: Vec::with_capacity(CHUNK_BYTES),
            turn: 0,
        };
        let (end, ended) = mpsc::channel();
        let thread = thread::spawn("dnstap-out", move || async move {
            writer.run().await;
            // Nobody waits any more if the disk took too long.
            let _ = end.send(());
        })?;
        Ok(Some(Self { shared, stop, ended: Mutex::new(ended), thread: Some(thread) }))
    }

    /// What was counted since the start.
    pub fn status(&self) -> EmitterStatus {
        self.shared.status()
    }

    /// The counters themselves, to be looked at at any time.
    pub fn watch(&self) -> EmitterWatch {
        EmitterWatch(Arc::clone(&self.shared))
    }
}

impl EmitterWatch {
    /// What was counted since the start.
    pub fn status(&self) -> EmitterStatus {
        self.0.status()
    }
}

impl Drop for Emitter {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // A disk that hangs is not waited for; its thread ends with the process.
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        let ended = ended.recv_timeout(Duration::from_millis(2 * STOP_MS_MAX));
        if ended.is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// The thread's own part.
struct Writer {
    shared: Arc<Shared>,
    destination: Destination,
    encoder: Encoder,
    file_bytes_max: u64,
    stop: watch::Receiver<bool>,
    chunk: Vec<u8>,
    message: Vec<u8>,
    /// The ring that the last chunk began with.
    turn: usize,
}

impl Writer {
    async fn run(mut self) {
        let (first_ms, longest_ms) = BACKOFF_MS;
        let mut backoff_ms = first_ms;
        let mut stop = self.stop.clone();
        let mut file = None;
        while !*self.stop.borrow() {
            let began = Instant::now();
            let to = self.destination.clone();
            let opening = Link::open(&to, self.file_bytes_max, file.take());
            let opened = tokio::select! {
                opened = opening => opened,
                () = stopped(&mut stop) => return,
            };
            let ended = match opened {
                Ok(mut link) => {
                    let ended = self.emit(&mut link).await;
                    // A disk that is full may have room later; what is in the file stays.
                    file = link.into_file();
                    ended
                }
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            let text = error.to_string();
            if self.shared.trouble().as_ref() != Some(&text) {
                tracing::warn!(to = ?self.destination, trouble = text, "dnstap is not taken; trying again");
            }
            *self.shared.trouble() = Some(text);
            if began.elapsed() >= STEADY {
                backoff_ms = first_ms;
            }
            tokio::select! {
                () = sleep(Duration::from_millis(backoff_ms)) => {}
                () = stopped(&mut stop) => return,
            }
            backoff_ms = (2 * backoff_ms).min(longest_ms);
        }
    }

    /// Hands over what comes, until the end or a failure.
    async fn emit(&mut self, link: &mut Link) -> Result<(), LinkError> {
        // What came in just as the rings were closed.
        self.discard();
        self.shared.taps.iter().for_each(|tap| tap.set_open(true));
        self.shared.connections.fetch_add(1, Relaxed);
        self.shared.is_connected.store(true, Relaxed);
        tracing::info!(to = ?self.destination, "dnstap is taken");
        let ended = self.hand_over(link).await;
        self.shared.taps.iter().for_each(|tap| tap.set_open(false));
        self.shared.is_connected.store(false, Relaxed);
        if ended.is_ok() {
            let limit = Duration::from_millis(STOP_MS_MAX);
            // What cannot be written any more is lost.
            let _ = timeout(limit, self.finish(link)).await;
        }
        self.discard();
        ended
    }

    /// Forgets what is in the rings.
    fn discard(&self) {
        let left: u64 = self.shared.taps.iter().map(TapReader::discard).sum();
        self.shared.lost.fetch_add(left, Relaxed);
    }

    async fn hand_over(&mut self, link: &mut Link) -> Result<(), LinkError> {
        let mut stop = self.stop.clone();
        while !*stop.borrow() {
            let written = {
                let mut writing = pin!(self.write_chunk(link));
                tokio::select! {
                    written = &mut writing => written?,
                    // Left in the middle of a frame, nothing could follow.
                    () = stopped(&mut stop) => {
                        let longest = Duration::from_millis(STOP_MS_MAX);
                        timeout(longest, writing).await.unwrap_or(Err(LinkError::Slow(longest.as_millis())))?
                    }
                }
            };
            let pause = match written {
                _ if self.chunk.len() >= CHUNK_BYTES => continue,
                0 => PAUSE.1,
                _ => PAUSE.0,
            };
            tokio::select! {
                error = link.lost() => return Err(error),
                () = sleep(pause) => {}
                () = stopped(&mut stop) => {}
            }
        }
        Ok(())
    }

    async fn finish(&mut self, link: &mut Link) -> Result<(), LinkError> {
        while self.write_chunk(link).await? > 0 {}
        link.finish().await
    }

    /// Writes what is in the rings, up to a chunk; gives how many messages that were.
    async fn write_chunk(&mut self, link: &mut Link) -> Result<u64, LinkError> {
        let Self { shared, encoder, chunk, message, turn, .. } = self;
        chunk.clear();
        let (mut count, mut withheld) = (0, 0);
        // Each chunk begins with another ring, so that a busy one does not keep the others waiting.
        *turn = (*turn + 1) % shared.taps.len().max(1);
        let (before, first) = shared.taps.split_at(*turn);
        for tap in first.iter().chain(before) {
            count += tap.drain(message, |tapped, message| {
                withheld += u64::from(!encoder.put(tapped, message, chunk));
                chunk.len() < CHUNK_BYTES
            });
            if chunk.len() >= CHUNK_BYTES {
                break;
            }
        }
        if count == 0 {
            return Ok(0);
        }
        let mut lost = Lost { shared, count };
        link.write(chunk, Duration::from_millis(WRITE_MS_MAX)).await?;
        lost.count = 0;
        shared.sent.fetch_add(count, Relaxed);
        shared.withheld.fetch_add(withheld, Relaxed);
        Ok(count)
    }
}

/// Messages that were taken out of a ring and are lost when this is dropped: writing them may fail, or be left.
struct Lost<'s> {
    shared: &'s Shared,
    count: u64,
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        self.shared.lost.fetch_add(self.count, Relaxed);
    }
}

/// From messages to frames.
struct Encoder {
    identity: String,
    version: String,
    addresses: Addresses,
}

impl Encoder {
    /// Appends a frame; false if it had to go without the DNS message.
    fn put(&self, tapped: &Tapped, message: &mut [u8], out: &mut Vec<u8>) -> bool {
        let Tapped { at, transport, client, own } = *tapped;
        let is_response = message.get(2).is_some_and(|flags| flags & 0x80 != 0);
        let is_update = message.get(2).is_some_and(|flags| flags >> 3 & 0xf == 5);
        let kind = match (is_update, is_response) {
            (false, false) => MessageType::AuthQuery,
            (false, true) => MessageType::AuthResponse,
            (true, false) => MessageType::UpdateQuery,
            (true, true) => MessageType::UpdateResponse,
        };
        let is_clean = self.addresses.mask_message(message);
        let shown: &[u8] = if is_clean { message } else { &[] };
        let (query_message, response_message) = if is_response { (&[][..], shown) } else { (shown, &[][..]) };
        let said = Dnstap {
            identity: self.identity.as_bytes(),
            version: self.version.as_bytes(),
            message: Message {
                kind: Some(kind),
                protocol: Some(protocol(transport)),
                query_address: self.addresses.of_client(client.ip()),
                response_address: own.map(|own| own.ip()),
                query_port: self.addresses.of_port(client.port()),
                response_port: own.map(|own| own.port()),
                query_time: (!is_response).then_some(at),
                query_message,
                response_time: is_response.then_some(at),
                response_message,
            },
        };
        // Never too long: one message and fields of some hundred bytes.
        put_data(out, |out| said.encode(out));
        is_clean
    }
}

fn protocol(transport: Transport) -> SocketProtocol {
    match transport {
        Transport::Udp => SocketProtocol::Udp,
        Transport::Tcp => SocketProtocol::Tcp,
        Transport::Tls => SocketProtocol::Dot,
        Transport::Https => SocketProtocol::Doh,
    }
}

#[cfg(test)]
mod tests;
