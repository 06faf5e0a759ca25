//! Accepting connections: within limits, whatever is spoken on them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reveille_core::answer::View;
use rustls::ProtocolVersion;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::dnstap::{Tapped, with_shared};
use crate::hold::{HoldRoom, Waiting, stopped};
use crate::https;
use crate::limit::{Gate, GateTally, Writers};
use crate::observe::{NameCounts, Producer, Sighting};
use crate::places::{Places, Seat};
use crate::respond::{Origin, Outcome, Setting, Transport, WakeWish, respond};
use crate::tally::{Tally, bump};
use crate::tcp::Connection;
use crate::tls::Handshakes;
use crate::transfer::{TRANSFER_WAIT_MS_MAX, TRANSFERS_MAX, Transfer};
use crate::update::{Admitted, is_update};
use crate::wake::WakeAsker;

/// Most connections over TCP at a time, and of one client. Each may hold [`tcp::UNREAD_BYTES_MAX`] and
/// [`tcp::ANSWERS_BYTES_MAX`] and one message, at worst.
///
/// [`tcp::UNREAD_BYTES_MAX`]: crate::tcp::UNREAD_BYTES_MAX
/// [`tcp::ANSWERS_BYTES_MAX`]: crate::tcp::ANSWERS_BYTES_MAX
const TCP_MAX: (usize, usize) = (1_024, 256);
/// Most connections over TLS at a time, and of one client. Some 40 KiB more each.
const TLS_MAX: (usize, usize) = (1_024, 256);
/// Most connections over HTTPS at a time, and of one client.
const HTTPS_MAX: (usize, usize) = (512, 128);
/// Most connections from a proxy on this host, which speaks for all its clients.
const PLAIN_MAX: (usize, usize) = (1_024, 512);
/// Pause after an error of accept (such as no file descriptors left), so that a lasting one does not spin.
const ACCEPT_PAUSE_MS: u64 = 50;

/// What is spoken on a listener.
#[derive(Clone)]
pub(crate) enum Speech {
    /// DNS (RFC 7766).
    Dns,
    /// DNS over TLS (RFC 7858).
    DnsOverTls(Arc<Handshakes>),
    /// DNS over HTTPS (RFC 8484).
    Https(Arc<Handshakes>),
    /// The same without TLS, from a proxy on this host that had it.
    PlainHttp,
}

impl Speech {
    /// How its queries come.
    pub const fn transport(&self) -> Transport {
        match self {
            Self::Dns => Transport::Tcp,
            Self::DnsOverTls(_) => Transport::Tls,
            Self::Https(_) | Self::PlainHttp => Transport::Https,
        }
    }

    fn places(&self) -> Arc<Places> {
        let (total, per_client) = match self {
            Self::Dns => TCP_MAX,
            Self::DnsOverTls(_) => TLS_MAX,
            Self::Https(_) => HTTPS_MAX,
            Self::PlainHttp => PLAIN_MAX,
        };
        Places::new(total, per_client)
    }
}

/// What the connections of all kinds share.
pub(crate) struct Common {
    gate: Option<(Arc<Gate>, Arc<GateTally>)>,
    counts: Arc<NameCounts>,
    ring: Mutex<Producer>,
    /// Questions that wake are few beside the others.
    asker: Mutex<WakeAsker>,
    /// Places of zone transfers.
    transfers: Arc<Semaphore>,
}

impl fmt::Debug for Common {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Common").finish_non_exhaustive()
    }
}

impl Common {
    /// Asks `gate`, if there is one; counts names into `counts` and hands what is observed over to `ring`.
    pub fn new(gate: Option<Arc<Gate>>, counts: Arc<NameCounts>, ring: Producer, asker: WakeAsker) -> Self {
        let gate = gate.map(|gate| {
            let tally = gate.tally(Writers::Several);
            (gate, tally)
        });
        Self {
            gate,
            counts,
            ring: Mutex::new(ring),
            asker: Mutex::new(asker),
            transfers: Arc::new(Semaphore::new(TRANSFERS_MAX)),
        }
    }
}

/// What the connections of one kind share.
pub(crate) struct Shared {
    pub hold: HoldRoom,
    pub tally: Arc<Tally>,
    pub places: Arc<Places>,
    speech: Speech,
    common: Arc<Common>,
}

/// What messages are answered from.
pub(crate) struct Moment<'v, 'g> {
    setting: Setting<'v, 'g>,
    view: &'v Arc<View>,
}

/// What came of a message.
pub(crate) struct Answered {
    /// What becomes of its answer.
    pub next: Next,
    /// The client was told that its idle connection is kept for longer.
    pub keepalive: bool,
}

/// What becomes of an answer.
pub(crate) enum Next {
    /// It is there; empty for silence.
    Send,
    /// It waits here.
    Later(Waiting),
    /// Many messages take its place, made from this view.
    Transfer(Arc<View>, Box<Transfer>),
}

impl Shared {
    /// Counts into the tally of `hold`.
    pub fn new(hold: HoldRoom, common: Arc<Common>, speech: Speech) -> Self {
        let tally = Arc::clone(&hold.tally);
        Self { hold, tally, places: speech.places(), speech, common }
    }

    /// Does something with the view of this moment.
    pub fn now<T>(&self, with: impl FnOnce(&Moment<'_, '_>) -> T) -> T {
        let view = self.hold.shared.load();
        let now = (self.hold.clock)();
        let numbering = view.zones().numbering();
        let judge = self.common.gate.as_ref().map(|(gate, tally)| gate.judge_for(numbering, now, tally));
        let setting = Setting { view: &view, now, judge: judge.as_ref(), keys: Some(&self.hold.keys) };
        with(&Moment { setting, view: &view })
    }

    /// Answers a message into `out`, in place of what is there.
    pub fn answer(&self, at: &Moment<'_, '_>, packet: &[u8], from: &Origin, out: &mut Vec<u8>) -> Answered {
        let setting = &at.setting;
        let mut outcome = match &self.hold.updates {
            Some(door) if is_update(packet) => match door.admit(setting, packet, from, out) {
                Admitted::Answered(outcome) => outcome,
                Admitted::Waiting(update) => {
                    return Answered { next: Next::Later(Waiting::Update(update)), keepalive: false };
                }
            },
            Some(_) | None => respond(setting, packet, from, out),
        };
        self.tally.query(&outcome);
        self.common.counts.bump_shared(outcome.counter);
        if let Some(sighting) = Sighting::of(packet, from, &outcome, setting.now) {
            let mut ring = self.common.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.push(&sighting);
            ring.flush();
        }
        let transfer = outcome.transfer.take();
        let wakes = outcome.wake.is_some_and(|wish| self.wake(wish, setting, from, &outcome));
        let held = if wakes { self.hold.take(packet, from, &outcome) } else { None };
        let next = match (held, transfer) {
            (Some(held), _) => Next::Later(Waiting::Question(held)),
            (None, Some(transfer)) => Next::Transfer(Arc::clone(at.view), transfer),
            (None, None) => Next::Send,
        };
        if let Some(tap) = &self.hold.tap {
            let tapped = Tapped { at: setting.now, transport: from.transport, client: from.peer, own: None };
            with_shared(tap, |tap| {
                tap.query(&tapped, packet);
                if matches!(next, Next::Send) {
                    tap.response(&tapped, out);
                }
            });
        }
        Answered { next, keepalive: outcome.keepalive }
    }

    /// A place among zone transfers; `None` if there is none for long.
    pub async fn transfer_place(&self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.common.transfers).acquire_owned();
        timeout(Duration::from_millis(TRANSFER_WAIT_MS_MAX), place).await.ok()?.ok()
    }

    /// Passes a wish on if the gate lets it; tells whether the service is, or will be, woken.
    fn wake(&self, wish: WakeWish<'_>, at: &Setting<'_, '_>, from: &Origin, outcome: &Outcome<'_>) -> bool {
        let is_starting = wish.service.phase.is_starting();
        let zone = outcome.zone.unwrap_or(u16::MAX);
        let mut asker = self.common.asker.lock().unwrap_or_else(PoisonError::into_inner);
        let judge = at.judge.zip(outcome.client.as_ref());
        let allowed = |kind| judge.is_none_or(|(judge, client)| judge.lets(client, zone, kind));
        asker.ask(wish, from.peer.ip(), at.now, is_starting, allowed)
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
        let Some(place) = shared.places.take(peer.ip()) else {
            bump(&shared.tally.connections_refused);
            continue;
        };
        bump(&shared.tally.connections);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            converse(stream, peer, &shared, place.seat()).await;
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// One connection, from accept to its end.
async fn converse(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>, seat: Arc<Seat>) {
    // Answers leave at once; what can be sent together is written together. Without it they come a little later.
    let _ = stream.set_nodelay(true);
    match &shared.speech {
        Speech::Dns => Connection::new(stream, peer, Transport::Tcp, shared).on(seat).run().await,
        Speech::DnsOverTls(handshakes) => {
            if let Some(stream) = handshakes.shake(stream, peer, &shared.tally).await {
                let version = stream.get_ref().1.protocol_version();
                let connection = Connection::new(stream, peer, Transport::Tls, shared).on(seat);
                // Zones are for TLS 1.3 only (RFC 9103 §7.1).
                match version {
                    Some(ProtocolVersion::TLSv1_3) => connection.run().await,
                    Some(_) | None => connection.without_transfers().run().await,
                }
            }
        }
        Speech::Https(handshakes) => {
            if let Some(stream) = handshakes.shake(stream, peer, &shared.tally).await {
                https::converse(stream, peer, false, shared, seat).await;
            }
        }
        Speech::PlainHttp => https::converse(stream, peer, true, shared, seat).await,
    }
}

/// Connections without a server, for tests and fuzz targets.
pub(crate) mod alone {
    use arc_swap::ArcSwap;
    use reveille_core::model::Timestamp;
    #[cfg(test)]
    use tokio::io::DuplexStream;
    use tokio::runtime::Handle;
    use tokio::sync::{mpsc, watch};
    #[cfg(test)]
    use tokio::time::Instant;

    use super::*;
    use crate::observe::ring;
    #[cfg(test)]
    use crate::tally::Counts;
    use crate::tsig::Keyring;

    /// What they share, and what must live as long.
    pub(crate) struct Alone {
        pub shared: Arc<Shared>,
        #[cfg_attr(not(test), allow(dead_code, reason = "dropped, it would stop them"))]
        pub stop: watch::Sender<bool>,
        _generation: watch::Sender<u64>,
    }

    impl Alone {
        #[cfg(test)]
        pub fn new(speech: Speech) -> Self {
            Self::with(View::default(), speech)
        }

        #[cfg(test)]
        pub fn with(view: View, speech: Speech) -> Self {
            Self::at(view, speech, Timestamp::from_ms(0))
        }

        /// Serves one end of a pipe while the client does its part with the other; gives how long that lasted, and what
        /// was counted.
        #[cfg(test)]
        pub async fn served<C: Future>(
            &self,
            capacity: usize,
            serve: impl AsyncFnOnce(DuplexStream, SocketAddr),
            client: impl FnOnce(DuplexStream) -> C,
        ) -> (Duration, Counts) {
            let (ours, theirs) = tokio::io::duplex(capacity);
            let begun = Instant::now();
            let serving = async {
                serve(ours, SocketAddr::from(([127, 0, 0, 1], 1))).await;
                begun.elapsed()
            };
            tokio::pin!(serving);
            let lasted = tokio::select! {
                lasted = &mut serving => lasted,
                _ = client(theirs) => serving.await,
            };
            (lasted, self.counts())
        }

        pub fn at(view: View, speech: Speech, now: Timestamp) -> Self {
            let (generation, seen) = watch::channel(1);
            let (stop, stopped) = watch::channel(false);
            let (wakes, _) = mpsc::channel(1);
            let hold = HoldRoom {
                runtime: Handle::current(),
                shared: Arc::new(ArcSwap::from_pointee(view)),
                keys: Keyring::default(),
                updates: None,
                generation: seen,
                stop: stopped,
                clock: Arc::new(move || now),
                places: Arc::new(Semaphore::new(1)),
                tally: Arc::default(),
                tap: None,
            };
            let asker = WakeAsker::new(wakes, Arc::default());
            let common = Common::new(None, Arc::default(), ring().0, asker);
            Self {
                shared: Arc::new(Shared::new(hold, Arc::new(common), speech)),
                stop,
                _generation: generation,
            }
        }

        #[cfg(test)]
        pub fn counts(&self) -> Counts {
            let mut counts = Counts::default();
            self.shared.tally.add_to(&mut counts);
            counts
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    use super::alone::Alone;
    use super::*;

    /// `. NS`, which a server without zones refuses in 17 bytes.
    const QUESTION: &[u8] = &[0, 17, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    const GET: &[u8] = b"GET /dns-query?dns=AAcAAAABAAAAAAAAAAACAAE HTTP/1.1\r\nhost: x\r\n\r\n";

    async fn client(number: u8, server: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 99, number], 0))).unwrap();
        socket.connect(server).await.unwrap()
    }

    /// Whether a question is answered; not if the connection was closed.
    async fn is_answered(stream: &mut TcpStream, question: &[u8]) -> bool {
        let _ = stream.write_all(question).await;
        stream.read(&mut [0; 512]).await.is_ok_and(|length| length > 0)
    }

    #[tokio::test]
    async fn clients_that_only_hold_on_to_their_places_keep_nobody_out() {
        for (speech, question) in [(Speech::Dns, QUESTION), (Speech::PlainHttp, GET)] {
            let mut alone = Alone::new(speech);
            Arc::get_mut(&mut alone.shared).unwrap().places = Places::new(3, 2);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serving = tokio::spawn(serve(listener, Arc::clone(&alone.shared)));
            let mut clients = Vec::new();
            for number in 1..=6 {
                let mut client = client(number, address).await;
                assert!(is_answered(&mut client, question).await, "client {number}");
                clients.push(client);
            }
            for (client, stays) in clients.iter_mut().zip([false, false, false, true, true, true]) {
                assert_eq!(is_answered(client, question).await, stays);
            }
            let counts = alone.counts();
            assert_eq!((counts.connections_refused, counts.connections_timed_out), (0, 3));
            drop(clients);
            alone.stop.send_replace(true);
            serving.await.unwrap();
        }
    }
}
