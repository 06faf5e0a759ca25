//! DNS on a stream (RFC 7766): pipelined questions, each connection one task; inside TLS or not.
//!
//! The stream server of the `domain` crate has the limits, but its services hand back message builders, while
//! [`respond`] writes finished bytes for all transports and may choose silence; and a held question must not
//! keep back the answers to those behind it. So the loop is our own, and small:
//!
//! ```text
//!   answer all whole messages that are there ─► write all answers at once ─► wait: more bytes, a held answer
//! ```
//!
//! While answers are written nothing is read, so a client that asks and does not read is held up by TCP itself.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reveille_core::answer::View;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};

use crate::connections::{Next, Shared};
use crate::hold::stopped;
use crate::places::Seat;
use crate::respond::{Origin, Transport};
use crate::tally::bump;
use crate::transfer::{self, MESSAGE_MS_MAX, MESSAGES_WAITING_MAX, Transfer, Way};
use crate::wire::KEEPALIVE_MS;

/// Longest wait for the next whole question; what came of it so far does not prolong it.
const QUESTION_MS_MAX: u64 = 10_000;
/// Longest wait until a client has taken the answers that are written at once.
const WRITE_MS_MAX: u64 = 5_000;
/// Longest wait for a client to take the end of a connection.
const CLOSE_MS_MAX: u64 = 1_000;
/// Most questions of one connection that are held at a time; further ones are not read meanwhile.
const HELD_PER_CONNECTION_MAX: usize = 32;
/// Bytes that are read at a time.
const READ_BYTES: usize = 4_096;
/// Most bytes that are read and not answered yet: the longest message, the beginning of the next.
pub(crate) const UNREAD_BYTES_MAX: usize = 2 + 65_535 + READ_BYTES;
/// No question is answered while this much waits to be written; the answer that crosses it is the last.
pub(crate) const ANSWERS_BYTES_MAX: usize = 16_384;
/// Largest buffer that a connection keeps while it is idle.
const KEPT_BYTES_MAX: usize = 16_384;

/// One client's stream of questions.
pub(crate) struct Connection<'s, S> {
    stream: S,
    peer: SocketAddr,
    transport: Transport,
    shared: &'s Shared,
    unread: Unread,
    /// Framed, to be written.
    answers: Vec<u8>,
    /// The answer that is being made: names in it are compressed by their distance from its start.
    message: Vec<u8>,
    /// Longest wait for the next question while nobody else needs the place.
    idle_ms_max: u64,
    /// Zones may be transferred.
    transfers: bool,
    seat: Arc<Seat>,
}

/// Why a connection ends early.
enum End {
    /// The client closed it, or it broke.
    Closed,
    /// No question came.
    Idle,
    /// No question came, and another client needed the place.
    Displaced,
    /// The client did not take its answers.
    Stuck,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

impl<'s, S: AsyncRead + AsyncWrite + Unpin> Connection<'s, S> {
    /// A connection that was just opened.
    pub fn new(stream: S, peer: SocketAddr, transport: Transport, shared: &'s Shared) -> Self {
        let (unread, answers, message) = (Unread::default(), Vec::new(), Vec::new());
        let (idle_ms_max, transfers, seat) = (QUESTION_MS_MAX, true, Arc::default());
        Self { stream, peer, transport, shared, unread, answers, message, idle_ms_max, transfers, seat }
    }

    /// On a place that it may lose while it is idle.
    pub fn on(self, seat: Arc<Seat>) -> Self {
        Self { seat, ..self }
    }

    /// Without transfers of zones.
    pub fn without_transfers(self) -> Self {
        Self { transfers: false, ..self }
    }

    /// Answers until the client is done, too slow, or the server stops.
    pub async fn run(mut self) {
        let ended = self.converse().await;
        if matches!(ended, Err(End::Idle | End::Stuck | End::Displaced)) {
            bump(&self.shared.tally.connections_timed_out);
        }
        let close_ms_max = match ended {
            Ok(()) | Err(End::Idle) => CLOSE_MS_MAX,
            // The place has another connection already: what cannot be sent at once is not.
            Err(End::Displaced) => 0,
            Err(End::Closed | End::Stuck) => return,
        };
        // Inside TLS the end is a message too, without which it could be an attacker's (RFC 7858 §3.4).
        let _ = timeout(Duration::from_millis(close_ms_max), self.stream.shutdown()).await;
    }

    /// Answers question after question. Answers to held ones follow when they are ready, in any order (RFC 7766
    /// §7).
    async fn converse(&mut self) -> Result<(), End> {
        let shared = self.shared;
        let mut stop = shared.hold.stop.clone();
        let mut stopping = pin!(stopped(&mut stop));
        let seat = Arc::clone(&self.seat);
        let mut displaced = pin!(seat.lost());
        let mut held = FuturesUnordered::new();
        let mut open = true;
        let mut question_by = self.patience();
        // Set anew only when it goes off: nearly always another question has come by then.
        let mut alarm = pin!(sleep_until(question_by));
        loop {
            if self.unread.has_message() && !seat.work() {
                return Err(End::Displaced);
            }
            while held.len() < HELD_PER_CONNECTION_MAX {
                match self.answer_unread() {
                    Next::Send => break,
                    Next::Later(waiting) => held.push(shared.hold.clone().bring(waiting)),
                    Next::Transfer(view, transfer) => self.transfer(view, *transfer).await?,
                }
            }
            if !self.answers.is_empty() {
                self.send(WRITE_MS_MAX).await?;
                question_by = self.patience();
                // A busy client, too, is told to come back.
                open = open && !shared.hold.stop.has_changed().unwrap_or(true);
                continue;
            }
            if !open && held.is_empty() {
                return Ok(());
            }
            if held.is_empty() {
                seat.rest();
            }
            let reads = open && held.len() < HELD_PER_CONNECTION_MAX;
            tokio::select! {
                biased;
                Some(answer) = held.next(), if !held.is_empty() => append(&answer, &mut self.answers),
                read = self.stream.read_buf(self.unread.room()), if reads => open = read? > 0,
                () = &mut stopping, if open => open = false,
                () = &mut displaced => return Err(End::Displaced),
                () = &mut alarm, if reads && held.is_empty() => {
                    if Instant::now() >= question_by {
                        return Err(End::Idle);
                    }
                    alarm.as_mut().reset(question_by);
                }
            }
        }
    }

    /// Until when the next question must be there.
    fn patience(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.shared.places.patience_ms(self.idle_ms_max))
    }

    /// Answers the whole messages that are there, as long as there is room for answers; stops at the first one whose
    /// answer comes later, or that asks for a transfer.
    fn answer_unread(&mut self) -> Next {
        if !self.unread.has_message() {
            return Next::Send;
        }
        let from = Origin::new(self.peer, self.transport);
        self.shared.now(|at| {
            while self.answers.len() < ANSWERS_BYTES_MAX
                && let Some(packet) = self.unread.next()
            {
                let answered = self.shared.answer(at, packet, &from, &mut self.message);
                if answered.keepalive {
                    self.idle_ms_max = KEEPALIVE_MS.into();
                }
                match answered.next {
                    Next::Send => append(&self.message, &mut self.answers),
                    next @ (Next::Later(_) | Next::Transfer(..)) => return next,
                }
            }
            Next::Send
        })
    }

    /// Sends the messages of a transfer as fast as the client takes them; or what was written instead, if too many
    /// others are under way. What else the client asked for waits behind it.
    async fn transfer(&mut self, view: Arc<View>, transfer: Transfer) -> Result<(), End> {
        // What came before it is answered before it.
        let instead = std::mem::take(&mut self.message);
        self.send(WRITE_MS_MAX).await?;
        let place = if self.transfers { self.shared.transfer_place().await } else { None };
        let Some(place) = place else {
            bump(&self.shared.tally.transfers_refused);
            append(&instead, &mut self.answers);
            return Ok(());
        };
        let (sender, mut messages) = mpsc::channel::<Vec<u8>>(MESSAGES_WAITING_MAX);
        // Walking through a zone takes longer than a task of the runtime may; and it waits for the client.
        let writing = spawn_blocking(move || {
            let _place = place;
            transfer::write(&view, transfer, |message| sender.blocking_send(message).is_ok())
        });
        let mut sent = Ok(());
        while let Some(message) = messages.recv().await {
            append(&message, &mut self.answers);
            sent = self.send(MESSAGE_MS_MAX).await;
            if sent.is_err() {
                break;
            }
        }
        drop(messages);
        let tally = &self.shared.tally;
        match (writing.await, &sent) {
            (Ok(Ok(Way::Whole)), Ok(())) => bump(&tally.transfers_whole),
            (Ok(Ok(Way::Differences)), Ok(())) => bump(&tally.transfers_of_differences),
            (Ok(_) | Err(_), Ok(()) | Err(_)) => {
                bump(&tally.transfers_broken);
                // Half a zone ends with the connection, not with an answer that looks like its end.
                return sent.and(Err(End::Closed));
            }
        }
        Ok(())
    }

    /// Writes all answers that are there.
    async fn send(&mut self, ms_max: u64) -> Result<(), End> {
        let Self { stream, answers, .. } = self;
        let write = async {
            stream.write_all(answers).await?;
            // Inside TLS, what was taken may still wait to be sent.
            stream.flush().await
        };
        match timeout(Duration::from_millis(ms_max), write).await {
            Ok(written) => written?,
            Err(_) => return Err(End::Stuck),
        }
        answers.clear();
        answers.shrink_to(KEPT_BYTES_MAX);
        self.message.shrink_to(KEPT_BYTES_MAX);
        Ok(())
    }
}

/// Appends a message with its length in front (RFC 1035 §4.2.2); nothing for an empty one, which is silence.
fn append(message: &[u8], answers: &mut Vec<u8>) {
    // `respond` writes no longer ones.
    let Ok(length) = u16::try_from(message.len()) else { return };
    if length > 0 {
        answers.extend_from_slice(&length.to_be_bytes());
        answers.extend_from_slice(message);
    }
}

/// What was read and is not answered yet.
#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    /// Where the next message begins; what is before is done.
    at: usize,
}

impl Unread {
    /// Where the next message ends, if all of it is there.
    fn end(&self) -> Option<usize> {
        let length = self.bytes.get(self.at..)?.first_chunk::<2>()?;
        let end = self.at + 2 + usize::from(u16::from_be_bytes(*length));
        (end <= self.bytes.len()).then_some(end)
    }

    fn has_message(&self) -> bool {
        self.end().is_some()
    }

    /// The next whole message.
    fn next(&mut self) -> Option<&[u8]> {
        let end = self.end()?;
        let message = self.bytes.get(self.at + 2..end);
        self.at = end;
        message
    }

    /// Where to read more to. Called when no whole message is left, so that what is kept is less than one; it
    /// never has more than [`UNREAD_BYTES_MAX`].
    fn room(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        if self.bytes.capacity() - self.bytes.len() < READ_BYTES / 2 {
            self.bytes.reserve_exact(READ_BYTES);
        }
        debug_assert!(self.bytes.capacity() <= UNREAD_BYTES_MAX.max(KEPT_BYTES_MAX), "{self:?}");
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests;
