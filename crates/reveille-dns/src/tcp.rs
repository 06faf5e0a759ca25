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
mod tests {
    use reveille_core::answer::{Record, Zone, ZoneDefaults, Zones};
    use reveille_core::model::DomainName;
    use tokio::io::DuplexStream;
    use tokio::time::sleep;

    use super::*;
    use crate::connections::Speech;
    use crate::connections::alone::Alone;
    use crate::tally::Counts;

    /// `. NS`, which a server without zones refuses in 17 bytes.
    const QUESTION: &[u8] = &[0, 17, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    const ANSWER_BYTES: usize = 2 + 17;

    /// Serves one end of a pipe of `capacity` bytes while the client does its part with the other; gives how long
    /// the connection lasted on the paused clock, and what was counted.
    async fn served<F: Future>(
        capacity: usize,
        client: impl FnOnce(DuplexStream) -> F,
    ) -> (Duration, Counts) {
        let alone = Alone::new(Speech::Dns);
        let serve = async |ours, peer| Connection::new(ours, peer, Transport::Tcp, &alone.shared).run().await;
        alone.served(capacity, serve, client).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_client_is_closed() {
        let (lasted, counts) = served(1_024, |mut stream| async move {
            stream.write_all(QUESTION).await.unwrap();
            stream.read_exact(&mut [0; ANSWER_BYTES]).await.unwrap();
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        })
        .await;
        assert_eq!(lasted.as_millis(), QUESTION_MS_MAX.into());
        assert_eq!((counts.queries, counts.connections_timed_out), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_does_not_keep_a_connection_open() {
        let (lasted, counts) = served(1_024, |mut stream| async move {
            for byte in QUESTION {
                if stream.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(2)).await;
            }
            std::future::pending::<()>().await;
        })
        .await;
        assert_eq!(lasted.as_millis(), QUESTION_MS_MAX.into());
        assert_eq!((counts.queries, counts.connections_timed_out), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_no_answers_is_closed() {
        let (lasted, counts) = served(ANSWER_BYTES, |mut stream| async move {
            // Room for one answer; the second one is stuck.
            let _ = stream.write_all(&QUESTION.repeat(3)).await;
            std::future::pending::<()>().await;
        })
        .await;
        assert_eq!(lasted.as_millis(), WRITE_MS_MAX.into());
        assert_eq!((counts.queries, counts.connections_timed_out), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_keeps_asking_may_stay() {
        let (lasted, counts) = served(1_024, |mut stream| async move {
            for _ in 0..10 {
                stream.write_all(QUESTION).await.unwrap();
                stream.read_exact(&mut [0; ANSWER_BYTES]).await.unwrap();
                sleep(Duration::from_millis(QUESTION_MS_MAX - 1)).await;
            }
        })
        .await;
        assert!(lasted.as_millis() > u128::from(QUESTION_MS_MAX) * 9);
        assert_eq!((counts.queries, counts.connections_timed_out), (10, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_how_long_an_idle_connection_is_kept_is_told_the_truth() {
        // The question with OPT and edns-tcp-keepalive.
        let mut asked = QUESTION.to_vec();
        asked[13] = 1;
        asked.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4, 0, 11, 0, 0]);
        asked[1] = u8::try_from(asked.len() - 2).unwrap();
        let (lasted, counts) = served(1_024, |mut stream| async move {
            stream.write_all(&asked).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            // 300 times 100 ms.
            assert!(answer.windows(6).any(|option| option == [0, 11, 0, 2, 1, 44]), "{answer:?}");
        })
        .await;
        assert_eq!(lasted.as_millis(), KEEPALIVE_MS.into());
        assert_eq!((counts.queries, counts.connections_timed_out), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_asks_and_asks_without_reading_is_not_read_from() {
        const QUESTIONS: usize = 1_000_000;
        let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let sent = Arc::clone(&taken);
        let (lasted, counts) = served(65_536, |mut stream| async move {
            for _ in 0..QUESTIONS {
                if stream.write_all(QUESTION).await.is_err() {
                    break;
                }
                sent.fetch_add(QUESTION.len(), std::sync::atomic::Ordering::Relaxed);
            }
        })
        .await;
        assert_eq!((lasted.as_millis(), counts.connections_timed_out), (WRITE_MS_MAX.into(), 1));
        // What was answered fits into the pipe and the buffer, and what was taken into pipe and buffers.
        let answered = usize::try_from(counts.queries).unwrap() * ANSWER_BYTES;
        assert!(answered <= 65_536 + ANSWERS_BYTES_MAX + ANSWER_BYTES, "{answered}");
        let sent = taken.load(std::sync::atomic::Ordering::Relaxed);
        assert!(sent <= answered + UNREAD_BYTES_MAX + 65_536, "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_stops_asking_is_let_go_when_the_server_stops() {
        let alone = Alone::new(Speech::Dns);
        let (ours, theirs) = tokio::io::duplex(65_536);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let (mut reader, mut writer) = tokio::io::split(theirs);
        // There is always a next question.
        let asking = async { while writer.write_all(&QUESTION.repeat(500)).await.is_ok() {} };
        let reading = async {
            let mut answered = 0;
            while reader.read_exact(&mut [0; ANSWER_BYTES]).await.is_ok() {
                answered += 1;
                if answered == 1_000 {
                    alone.stop.send_replace(true);
                }
                assert!(answered < 100_000, "told to come back");
            }
            answered
        };
        let serving = Connection::new(ours, peer, Transport::Tcp, &alone.shared).run();
        let ((), answered, ()) = tokio::join!(asking, reading, serving);
        assert!(answered >= 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_answered_than_can_be_sent_soon() {
        const PIPE_BYTES: usize = 65_536;
        const TEXT_BYTES: usize = 2_500;
        let name = |text: &str| text.parse::<DomainName>().unwrap();
        let defaults = ZoneDefaults {
            apex: name("vm.test"),
            name_servers: vec![(name("ns1.vm.test"), vec![])],
            hostmaster: name("hostmaster.vm.test"),
            serial: 1,
            ttl: 60,
            negative_ttl: 60,
        };
        let mut records = defaults.records();
        let data = [&[250][..], &[b'x'; 250]].concat().repeat(TEXT_BYTES / 250);
        records.push(Record { owner: name("big.vm.test"), rtype: 16, ttl: 60, data });
        let zone = Zone::new(name("vm.test"), &records).unwrap();
        let view = View::new(1, Zones::new([Arc::new(zone)]), [], []);
        let alone = Alone::with(view, Speech::Dns);
        let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let qname = name("big.vm.test");
        let question =
            [&[0, 29, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], qname.as_wire(), &[0, 16, 0, 1]].concat();
        // All of them are read at once.
        theirs.write_all(&question.repeat(100)).await.unwrap();
        Connection::new(ours, peer, Transport::Tcp, &alone.shared).run().await;
        let counts = alone.counts();
        let room = PIPE_BYTES + ANSWERS_BYTES_MAX + TEXT_BYTES + 100;
        assert!((20..=room / TEXT_BYTES).contains(&usize::try_from(counts.queries).unwrap()), "{counts:?}");
        assert_eq!(counts.connections_timed_out, 1);
    }

    #[test]
    fn what_is_read_is_cut_into_messages_in_bounded_memory() {
        let mut unread = Unread::default();
        let longest = [&[255, 255][..], &[7; 65_535]].concat();
        let stream = [&longest[..], &[0, 0], &[0, 1, 9], &longest, &[0, 2, 1]].concat();
        let mut lengths = Vec::new();
        let mut at = 0;
        while at < stream.len() {
            let room = unread.room();
            let taken = (room.capacity() - room.len()).min(stream.len() - at);
            assert!(taken > 0);
            room.extend_from_slice(&stream[at..at + taken]);
            at += taken;
            assert!(unread.bytes.capacity() <= UNREAD_BYTES_MAX);
            while let Some(message) = unread.next() {
                lengths.push(message.len());
            }
        }
        assert_eq!(lengths, [65_535, 0, 1, 65_535]);
        assert!(!unread.has_message());
        assert_eq!(unread.room().as_slice(), [0, 2, 1]);
        assert!(unread.bytes.capacity() <= KEPT_BYTES_MAX);
    }

    proptest::proptest! {
        #[test]
        fn however_a_stream_is_cut_the_messages_are_the_same(
            messages in proptest::collection::vec(proptest::collection::vec(0u8.., 0..600), 0..40),
            cuts in proptest::collection::vec(1usize..5_000, 1..40),
        ) {
            let mut stream = Vec::new();
            for message in &messages {
                stream.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
                stream.extend(message);
            }
            let (mut unread, mut found, mut rest) = (Unread::default(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                let room = unread.room();
                let (piece, after) = rest.split_at((*cut).min(rest.len()).min(room.capacity() - room.len()));
                room.extend_from_slice(piece);
                rest = after;
                while let Some(message) = unread.next() {
                    found.push(message.to_vec());
                }
                if rest.is_empty() {
                    break;
                }
            }
            proptest::prop_assert_eq!(found, messages);
        }
    }
}
