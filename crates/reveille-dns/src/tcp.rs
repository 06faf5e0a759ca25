//! TCP (RFC 7766): pipelined questions, each connection one task.
//!
//! The stream server of the `domain` crate has the limits, but its services hand back message builders, while
//! [`respond`] writes finished bytes for both transports and may choose silence; and a held question must not
//! keep back the answers to those behind it. So the loop is our own, and small.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::Guard;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use reveille_core::answer::View;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, Sender};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::hold::{HoldRoom, Waiting, stopped};
use crate::respond::{Origin, Setting, Transport, respond};
use crate::tally::{Tally, bump};
use crate::transfer::{
    self, MESSAGE_MS_MAX, MESSAGES_WAITING_MAX, TRANSFER_WAIT_MS_MAX, TRANSFERS_MAX, Transfer, Way,
};
use crate::update::{Admitted, is_update};
use crate::wake::{WakeAsk, WakeAsker};

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 1_024;
/// Most connections of one client address at a time.
const CONNECTIONS_PER_CLIENT_MAX: u32 = 256;
/// Longest wait for the next whole question; what came of it so far does not prolong it.
const QUESTION_MS_MAX: u64 = 10_000;
/// Longest wait until a client has taken an answer.
const WRITE_MS_MAX: u64 = 5_000;
/// Most questions of one connection that are held at a time; further ones are not read meanwhile.
const HELD_PER_CONNECTION_MAX: usize = 32;
/// Bytes that are read at a time.
const READ_BYTES: usize = 4_096;
/// Pause after an error of accept (such as no file descriptors left), so that a lasting one does not spin.
const ACCEPT_PAUSE_MS: u64 = 50;

/// What the connections of a server share.
pub(crate) struct Shared {
    hold: HoldRoom,
    tally: Arc<Tally>,
    /// One for all connections: they are few questions beside those over UDP.
    asker: Mutex<WakeAsker>,
    places: Arc<Semaphore>,
    clients: Clients,
    /// Places of transfers.
    transfers: Arc<Semaphore>,
}

impl Shared {
    pub fn new(hold: HoldRoom, wakes: Sender<WakeAsk>) -> Self {
        let tally = Arc::clone(&hold.tally);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let asker = Mutex::new(WakeAsker::new(wakes, Arc::clone(&tally)));
        let transfers = Arc::new(Semaphore::new(TRANSFERS_MAX));
        Self { hold, tally, asker, places, clients: Clients::default(), transfers }
    }
}

/// How many connections each client has.
#[derive(Default)]
struct Clients(Mutex<BTreeMap<IpAddr, u32>>);

/// One connection's place among those of its client; given back when dropped.
struct ClientPlace {
    shared: Arc<Shared>,
    client: IpAddr,
}

impl ClientPlace {
    fn take(shared: &Arc<Shared>, client: IpAddr) -> Option<Self> {
        let mut clients = shared.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_insert(0);
        if *count >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *count += 1;
        Some(Self { shared: Arc::clone(shared), client })
    }
}

impl Drop for ClientPlace {
    fn drop(&mut self) {
        let mut clients = self.shared.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// Takes connections until the server stops, then lets those that are open finish what they hold.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut stop = shared.hold.stop.clone();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, peer)) = accepted else {
            bump(&shared.tally.socket_errors);
            sleep(Duration::from_millis(ACCEPT_PAUSE_MS)).await;
            continue;
        };
        let place = Arc::clone(&shared.places).try_acquire_owned();
        let client = ClientPlace::take(&shared, peer.ip().to_canonical());
        let (Ok(place), Some(client)) = (place, client) else {
            bump(&shared.tally.connections_refused);
            continue;
        };
        bump(&shared.tally.connections);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let _places = (place, client);
            Connection::new(stream, peer, &shared).run().await;
        });
    }
    while connections.join_next().await.is_some() {}
}

struct Connection<'s, S> {
    stream: S,
    peer: SocketAddr,
    shared: &'s Shared,
    /// Read, but not answered yet.
    unread: Vec<u8>,
}

/// What comes of a message.
enum Next {
    /// The answer is there.
    Send,
    /// The answer waits.
    Later(Waiting),
    /// Many messages, made from this view.
    Transfer(Arc<View>, Box<Transfer>),
}

/// Why a connection ends.
enum End {
    /// The client closed it, or it broke.
    Closed,
    /// The client was too slow.
    TimedOut,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

impl<'s, S: AsyncRead + AsyncWrite + Unpin> Connection<'s, S> {
    fn new(stream: S, peer: SocketAddr, shared: &'s Shared) -> Self {
        Self { stream, peer, shared, unread: Vec::new() }
    }

    async fn run(mut self) {
        match self.converse().await {
            Ok(()) | Err(End::Closed) => {}
            Err(End::TimedOut) => bump(&self.shared.tally.connections_timed_out),
        }
    }

    /// Answers question after question. Answers to held ones follow when they are ready, in any order (RFC 7766
    /// §7).
    async fn converse(&mut self) -> Result<(), End> {
        let mut stop = self.shared.hold.stop.clone();
        let mut held = FuturesUnordered::new();
        let mut out = Vec::new();
        let mut open = true;
        let mut question_by = Instant::now() + Duration::from_millis(QUESTION_MS_MAX);
        while open || !held.is_empty() {
            while held.len() < HELD_PER_CONNECTION_MAX
                && let Some(packet) = next_message(&mut self.unread)
            {
                match self.answer(&packet, &mut out) {
                    Next::Send => self.send(&out).await?,
                    Next::Later(waiting) => held.push(self.shared.hold.clone().bring(waiting)),
                    Next::Transfer(view, transfer) => self.transfer(view, *transfer, &out).await?,
                }
                question_by = Instant::now() + Duration::from_millis(QUESTION_MS_MAX);
            }
            let reads = open && held.len() < HELD_PER_CONNECTION_MAX;
            self.unread.reserve(READ_BYTES);
            tokio::select! {
                Some(answer) = held.next() => {
                    self.send(&answer).await?;
                    question_by = Instant::now() + Duration::from_millis(QUESTION_MS_MAX);
                }
                read = self.stream.read_buf(&mut self.unread), if reads => open = read? > 0,
                () = stopped(&mut stop), if open => open = false,
                () = sleep_until(question_by), if reads && held.is_empty() => return Err(End::TimedOut),
            }
        }
        Ok(())
    }

    /// Answers a message into `out`, which stays empty for silence.
    fn answer(&mut self, packet: &[u8], out: &mut Vec<u8>) -> Next {
        let hold = &self.shared.hold;
        let view = hold.shared.load();
        let now = (hold.clock)();
        let from = Origin::new(self.peer, Transport::Tcp);
        let at = Setting { view: &view, now, judge: None, keys: Some(&hold.keys) };
        let outcome = match &hold.updates {
            Some(door) if is_update(packet) => match door.admit(&at, packet, &from, out) {
                Admitted::Answered(outcome) => outcome,
                Admitted::Waiting(update) => return Next::Later(Waiting::Update(update)),
            },
            Some(_) | None => respond(&at, packet, &from, out),
        };
        self.shared.tally.query(&outcome);
        if let Some(wish) = outcome.wake {
            let mut asker = self.shared.asker.lock().unwrap_or_else(PoisonError::into_inner);
            asker.ask(wish, self.peer.ip(), now, || true);
        }
        let held = hold.take(packet, &from, &outcome);
        match (held, outcome.transfer) {
            (Some(held), _) => Next::Later(Waiting::Question(held)),
            (None, Some(transfer)) => Next::Transfer(Guard::into_inner(view), transfer),
            (None, None) => Next::Send,
        }
    }

    /// Sends the messages of a transfer as fast as the client takes them; or `instead`, if too many others are under
    /// way. What else the client asked for waits behind it.
    async fn transfer(&mut self, view: Arc<View>, transfer: Transfer, instead: &[u8]) -> Result<(), End> {
        let tally = &self.shared.tally;
        let place = Arc::clone(&self.shared.transfers).acquire_owned();
        let Ok(Ok(place)) = timeout(Duration::from_millis(TRANSFER_WAIT_MS_MAX), place).await else {
            bump(&tally.transfers_refused);
            return self.send(instead).await;
        };
        let (sender, mut messages) = mpsc::channel(MESSAGES_WAITING_MAX);
        // Walking through a zone takes longer than a task of the runtime may; and it waits for the client.
        let writing = spawn_blocking(move || {
            let _place = place;
            transfer::write(&view, transfer, |message| sender.blocking_send(message).is_ok())
        });
        let mut sent = Ok(());
        while let Some(message) = messages.recv().await {
            sent = self.send_within(&message, MESSAGE_MS_MAX).await;
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

    async fn send(&mut self, message: &[u8]) -> Result<(), End> {
        self.send_within(message, WRITE_MS_MAX).await
    }

    async fn send_within(&mut self, message: &[u8], ms_max: u64) -> Result<(), End> {
        let Ok(length) = u16::try_from(message.len()) else { return Err(End::Closed) };
        if length == 0 {
            return Ok(());
        }
        // One write, so that length and message leave in one segment (RFC 7766 §8).
        let framed = [&length.to_be_bytes()[..], message].concat();
        match timeout(Duration::from_millis(ms_max), self.stream.write_all(&framed)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(End::TimedOut),
        }
    }
}

/// Takes the first whole message out of what was read.
fn next_message(unread: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (length, rest) = unread.split_first_chunk::<2>()?;
    let length = usize::from(u16::from_be_bytes(*length));
    let message = rest.get(..length)?.to_vec();
    unread.drain(..2 + length);
    Some(message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use reveille_core::model::Timestamp;
    use tokio::io::DuplexStream;
    use tokio::runtime::Handle;
    use tokio::sync::watch;

    use super::*;
    use crate::tally::Counts;
    use crate::tsig::Keyring;

    /// `. NS`, which a server without zones refuses in 17 bytes.
    const QUESTION: &[u8] = &[0, 17, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    const ANSWER_BYTES: usize = 2 + 17;

    struct Ends {
        shared: Shared,
        _stop: watch::Sender<bool>,
        _generation: watch::Sender<u64>,
    }

    fn ends() -> Ends {
        let (generation, seen) = watch::channel(1);
        let (stop, stopped) = watch::channel(false);
        let (wakes, _) = mpsc::channel(1);
        let hold = HoldRoom {
            runtime: Handle::current(),
            shared: Arc::new(ArcSwap::from_pointee(View::default())),
            keys: Keyring::default(),
            updates: None,
            generation: seen,
            stop: stopped,
            clock: Arc::new(|| Timestamp::from_ms(0)),
            places: Arc::new(Semaphore::new(1)),
            tally: Arc::default(),
        };
        Ends { shared: Shared::new(hold, wakes), _stop: stop, _generation: generation }
    }

    /// Serves one end of a pipe of `capacity` bytes while the client does its part with the other; gives how long
    /// the connection lasted on the paused clock, and what was counted.
    async fn served<F: Future>(
        capacity: usize,
        client: impl FnOnce(DuplexStream) -> F,
    ) -> (Duration, Counts) {
        let ends = ends();
        let (ours, theirs) = tokio::io::duplex(capacity);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let begun = Instant::now();
        let serving = async {
            Connection::new(ours, peer, &ends.shared).run().await;
            begun.elapsed()
        };
        tokio::pin!(serving);
        let lasted = tokio::select! {
            lasted = &mut serving => lasted,
            _ = client(theirs) => serving.await,
        };
        let mut counts = Counts::default();
        ends.shared.tally.add_to(&mut counts);
        (lasted, counts)
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
}
