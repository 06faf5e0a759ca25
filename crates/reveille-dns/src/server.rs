//! The server: its sockets, threads and tasks, from bind to shutdown.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Release};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::answer::View;
use reveille_core::model::Timestamp;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::bind::{BindError, Sockets, open, open_tcp};
use crate::connections::{self, Common, Shared, Speech};
use crate::dnstap::{DnstapOut, Emitter, EmitterStatus, EmitterWatch, TapReader, TapWriter, tap};
use crate::hold::{HELD_QUERIES_MAX, HoldRoom};
use crate::limit::Gate;
use crate::observe::{Consumer, Counters, NameCounts, ring};
use crate::respond::Transport;
use crate::tally::{Counts, Tallies};
use crate::tls::{ALPN_DOT, ALPN_H2, ALPN_HTTP1, Certificate, Handshakes};
use crate::transfer::{NotifyList, Secondaries, ZoneNotify, keep_notifying, start_notifying};
use crate::tsig::Keyring;
use crate::udp::Worker;
use crate::update::{UpdateAsk, UpdateDoor};
use crate::wake::{WakeAsk, WakeAsker};

/// Tells the time in the daemon's terms. Called for every query: it must be cheap and never wait.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Longest wait for TCP clients to take their last answers at a shutdown.
const SHUTDOWN_MS_MAX: u64 = 2_000;
/// As what the server speaks of itself.
const VERSION: &str = concat!("Reveille ", env!("CARGO_PKG_VERSION"));
/// Most threads for each address.
const UDP_THREADS_MAX: usize = 64;

/// Where and how the server listens.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Addresses, each for UDP and TCP. `0.0.0.0` is all of IPv4, `::` all of IPv6 and nothing else; port 0 takes a
    /// free one.
    pub listen: Vec<SocketAddr>,
    /// Threads, and sockets, for each address over UDP.
    pub udp_threads: usize,
    /// Who is let in and how often; none: everybody, always.
    pub gate: Option<Arc<Gate>>,
    /// Keys with which questions may be signed.
    pub keys: Keyring,
    /// Who is told of new serials.
    pub notify: Vec<ZoneNotify>,
    /// Where updates go whose signature is right; without it the server does not know updates.
    pub updates: Option<Sender<UpdateAsk>>,
    /// Where dnstap of its queries goes, if anywhere.
    pub dnstap: DnstapOut,
}

impl Default for DnsConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 5300))],
            udp_threads: cores.min(UDP_THREADS_MAX),
            gate: None,
            keys: Keyring::default(),
            notify: Vec::new(),
            updates: None,
            dnstap: DnstapOut::default(),
        }
    }
}

/// Where the server listens for DNS over TLS and over HTTPS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncryptedConfig {
    /// Addresses of DNS over TLS (RFC 7858).
    pub tls: Vec<SocketAddr>,
    /// Addresses of DNS over HTTPS (RFC 8484).
    pub https: Vec<SocketAddr>,
    /// HTTPS is spoken without TLS: a proxy on this host has it. Who asks is taken from what the proxy adds to each
    /// request, so nobody else may reach these addresses.
    pub https_plain: bool,
}

/// A running server. Dropped, it stops at once; [`DnsServer::shutdown`] lets TCP clients have their answers.
#[derive(Debug)]
pub struct DnsServer {
    addresses: Vec<SocketAddr>,
    tls_addresses: Vec<SocketAddr>,
    https_addresses: Vec<SocketAddr>,
    tallies: Tallies,
    secondaries: Secondaries,
    counts: Vec<Arc<NameCounts>>,
    rings: Vec<Consumer>,
    gate: Option<Arc<Gate>>,
    stop_threads: Arc<AtomicBool>,
    stop_tasks: watch::Sender<bool>,
    sockets: Vec<Arc<UdpSocket>>,
    threads: Vec<JoinHandle<()>>,
    listeners: JoinSet<()>,
    hold: HoldRoom,
    notify: NotifyList,
    /// Of TCP, TLS and HTTPS.
    streams: Arc<Common>,
    /// Rings for dnstap, until there is somebody to empty them.
    taps: Taps,
    /// Ends after the threads that answer, so that it has the last of their queries.
    emitter: Option<Emitter>,
}

impl DnsServer {
    /// Opens the sockets and begins to answer from the view in `shared`. Must be called inside a tokio runtime.
    ///
    /// `generation` is to change after each new view was stored in `shared`; held questions are looked at again
    /// then. `wakes` receives what the questions ask for; what it has no room for is dropped and counted.
    ///
    /// # Errors
    /// One sentence with the remedy; nothing is left open.
    pub fn bind(
        config: &DnsConfig,
        shared: Arc<ArcSwap<View>>,
        generation: watch::Receiver<u64>,
        wakes: Sender<WakeAsk>,
        clock: Clock,
    ) -> Result<Self, BindError> {
        let runtime = Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        if config.listen.is_empty() {
            return Err(BindError::NoAddress);
        }
        let threads = config.udp_threads.clamp(1, UDP_THREADS_MAX);
        let opened: Result<Vec<Sockets>, BindError> =
            config.listen.iter().map(|&address| open(address, threads)).collect();
        let (stop_tasks, stop) = watch::channel(false);
        let tallies = Tallies::default();
        let tally = tallies.begin(None);
        let places = Arc::new(Semaphore::new(HELD_QUERIES_MAX));
        let asker = WakeAsker::new(wakes.clone(), Arc::clone(&tally));
        let keys = config.keys.clone();
        let updates = config.updates.clone().map(|asks| UpdateDoor::new(asks, Arc::clone(&tally)));
        let mut taps = Taps::new(&config.dnstap);
        let tap = taps.open().map(|tap| Arc::new(Mutex::new(tap)));
        let hold = HoldRoom { runtime, shared, keys, updates, generation, stop, clock, places, tally, tap };
        let counts = Arc::new(NameCounts::default());
        counts.reserve(hold.shared.load().names().len() + 1);
        let (producer, consumer) = ring();
        let streams = Common::new(config.gate.clone(), Arc::clone(&counts), producer, asker);
        let mut server = Self {
            addresses: Vec::new(),
            tls_addresses: Vec::new(),
            https_addresses: Vec::new(),
            tallies,
            secondaries: Secondaries::default(),
            counts: vec![counts],
            rings: vec![consumer],
            gate: config.gate.clone(),
            stop_threads: Arc::new(AtomicBool::new(false)),
            stop_tasks,
            sockets: Vec::new(),
            threads: Vec::new(),
            listeners: JoinSet::new(),
            hold,
            notify: NotifyList::new(&config.notify),
            streams: Arc::new(streams),
            taps,
            emitter: None,
        };
        let connections = server.connections(Speech::Dns);
        for Sockets { address, tcp, udp } in opened? {
            server.accept(tcp, &connections)?;
            server.addresses.push(address);
            for socket in udp {
                let hold = server.hold.clone();
                server.start_worker(socket, &hold, wakes.clone()).map_err(BindError::NoThread)?;
            }
        }
        let readers = std::mem::take(&mut server.taps.readers);
        server.emitter = Emitter::start(&config.dnstap, readers, VERSION).map_err(BindError::NoThread)?;
        let notifiers = start_notifying(&config.notify, &server.addresses, &server.hold)
            .map_err(BindError::NoNotifier)?;
        let (list, own, room) = (server.notify.clone(), server.addresses.clone(), server.hold.clone());
        let secondaries = server.secondaries.clone();
        server.listeners.spawn(keep_notifying(notifiers, list, own, room, secondaries));
        Ok(server)
    }

    /// Answers over TLS and HTTPS too, with that certificate. Must be called inside the tokio runtime.
    ///
    /// # Errors
    /// One sentence with the remedy; what was opened until then stays open until the server is dropped.
    pub fn listen_encrypted(
        &mut self,
        config: &EncryptedConfig,
        certificate: Option<&Certificate>,
    ) -> Result<(), BindError> {
        let shake = |protocols: &[&[u8]]| match certificate {
            Some(certificate) => {
                Handshakes::new(certificate, protocols).map(Arc::new).map_err(BindError::NoTls)
            }
            None => Err(BindError::NoTls(rustls::Error::NoCertificatesPresented)),
        };
        if !config.tls.is_empty() {
            let connections = self.connections(Speech::DnsOverTls(shake(&[ALPN_DOT])?));
            for &address in &config.tls {
                let address = self.accept(open_tcp(address, "dns.tls.listen")?, &connections)?;
                self.tls_addresses.push(address);
            }
        }
        if !config.https.is_empty() {
            let speech = match config.https_plain {
                true => Speech::PlainHttp,
                false => Speech::Https(shake(&[ALPN_H2, ALPN_HTTP1])?),
            };
            let connections = self.connections(speech);
            for &address in &config.https {
                if config.https_plain && !address.ip().to_canonical().is_loopback() {
                    return Err(BindError::PlainOutside(address));
                }
                let address = self.accept(open_tcp(address, "dns.https.listen")?, &connections)?;
                self.https_addresses.push(address);
            }
        }
        Ok(())
    }

    /// Where it listens for DNS over TLS, in the order of the configuration.
    pub fn tls_addresses(&self) -> &[SocketAddr] {
        &self.tls_addresses
    }

    /// Where it listens for DNS over HTTPS, in the order of the configuration.
    pub fn https_addresses(&self) -> &[SocketAddr] {
        &self.https_addresses
    }

    /// Where it listens, in the order of the configuration, with the ports that were free.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What was counted since the start.
    pub fn counts(&self) -> Counts {
        self.tallies.sum()
    }

    /// The counters themselves, to be looked at at any time.
    pub fn tallies(&self) -> Tallies {
        self.tallies.clone()
    }

    /// The secondaries that are told of new serials, and where each of them stands.
    pub fn secondaries(&self) -> Secondaries {
        self.secondaries.clone()
    }

    /// How often each name was asked for. There is room for as many counters as the first view has names.
    pub fn counters(&self) -> Counters {
        Counters::of(self.counts.clone())
    }

    /// Who is told of new serials, to be changed while the server runs.
    pub fn notify_list(&self) -> NotifyList {
        self.notify.clone()
    }

    /// The keys, to be changed while the server runs.
    pub fn keys(&self) -> Keyring {
        self.hold.keys.clone()
    }

    /// What was observed, one ring a thread and one for all connections; once.
    pub fn take_rings(&mut self) -> Vec<Consumer> {
        std::mem::take(&mut self.rings)
    }

    /// What was told by dnstap since the start; `None` if nothing is.
    pub fn dnstap(&self) -> Option<EmitterStatus> {
        self.emitter.as_ref().map(Emitter::status)
    }

    /// The same, to be looked at at any time.
    pub fn watch_dnstap(&self) -> Option<EmitterWatch> {
        self.emitter.as_ref().map(Emitter::watch)
    }

    /// Stops: held questions are answered as things stand, TCP clients get a moment to take what is theirs.
    pub async fn shutdown(mut self) {
        self.stop();
        let drained = async { while self.listeners.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(Duration::from_millis(SHUTDOWN_MS_MAX), drained).await;
        // Dropping joins the threads, which have been told to stop, and ends what is left of the tasks.
    }

    /// What connections of one kind share, with counters of their own.
    fn connections(&mut self, speech: Speech) -> Arc<Shared> {
        let tally = self.tallies.begin(Some(speech.transport()));
        let hold = HoldRoom { tally, ..self.hold.clone() };
        Arc::new(Shared::new(hold, Arc::clone(&self.streams), speech))
    }

    /// Begins to take connections; gives the address at which.
    fn accept(
        &mut self,
        listener: std::net::TcpListener,
        connections: &Arc<Shared>,
    ) -> Result<SocketAddr, BindError> {
        let opened =
            listener.local_addr().and_then(|address| Ok((address, TcpListener::from_std(listener)?)));
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let (address, listener) =
            opened.map_err(|source| BindError::Other { address: unspecified, source })?;
        self.listeners.spawn(connections::serve(listener, Arc::clone(connections)));
        Ok(address)
    }

    fn start_worker(
        &mut self,
        socket: UdpSocket,
        hold: &HoldRoom,
        wakes: Sender<WakeAsk>,
    ) -> std::io::Result<()> {
        let tally = self.tallies.begin(Some(Transport::Udp));
        let bound = socket.local_addr()?;
        let socket = Arc::new(socket);
        let counts = Arc::new(NameCounts::default());
        counts.reserve(hold.shared.load().names().len() + 1);
        let (producer, consumer) = ring();
        let worker = Worker {
            socket: Arc::clone(&socket),
            bound,
            shared: Arc::clone(&hold.shared),
            clock: Arc::clone(&hold.clock),
            asker: WakeAsker::new(wakes, Arc::clone(&tally)),
            hold: HoldRoom { tally: Arc::clone(&tally), ..hold.clone() },
            tally,
            counts: Arc::clone(&counts),
            ring: producer,
            tap: self.taps.open(),
            gate: self.gate.clone(),
            stop: Arc::clone(&self.stop_threads),
        };
        let thread = worker.start(format!("dns-udp-{}", self.threads.len()))?;
        self.counts.push(counts);
        self.rings.push(consumer);
        self.sockets.push(socket);
        self.threads.push(thread);
        Ok(())
    }

    fn stop(&self) {
        self.stop_threads.store(true, Release);
        self.stop_tasks.send_replace(true);
        for socket in &self.sockets {
            // On Linux this ends a blocked receive; it then reports that the socket was not connected. Elsewhere
            // the thread looks up by itself when its receive times out.
            let _ = socket2::SockRef::from(&**socket).shutdown(std::net::Shutdown::Read);
        }
    }
}

/// The rings for dnstap, one a thread and one for all connections; none if nothing is told.
#[derive(Debug)]
struct Taps {
    bytes: usize,
    responses: bool,
    is_on: bool,
    readers: Vec<TapReader>,
}

impl Taps {
    fn new(config: &DnstapOut) -> Self {
        let bytes = usize::try_from(config.buffer_kib).unwrap_or(0) << 10;
        let is_on = config.destination().is_some();
        Self { bytes, responses: config.responses, is_on, readers: Vec::new() }
    }

    fn open(&mut self) -> Option<TapWriter> {
        self.is_on.then(|| {
            let (writer, reader) = tap(self.bytes, self.responses);
            self.readers.push(reader);
            writer
        })
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // A panic of the thread was printed when it happened.
            let _ = thread.join();
        }
    }
}
