//! Telling secondaries of new serials (RFC 1996).
//!
//! A secondary is told at once of the first new serial, and of later ones at most once a second: a hundred services
//! that are added one by one are a few transfers, not a hundred. Until it acknowledges it is told again, ever more
//! rarely. Only the newest serial matters; what a secondary misses it finds by its own refresh.

mod telling;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::answer::{View, Zones, rdata};
use reveille_core::model::DomainName;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::hold::{HoldRoom, stopped};
use crate::tally::{Tally, bump};
use crate::tsig::{Exchange, Keyring};
use telling::Telling;

/// Most messages that leave in one go; the next ones follow after a pause.
const BURST_MAX: usize = 64;
/// The pause.
const BURST_PAUSE_MS: u64 = 20;
/// Largest answer that is read: header, question, perhaps the SOA, a signature.
const ANSWER_BYTES_MAX: usize = 4_096;
/// Pause after an error of the socket, so that a lasting one does not spin.
const ERROR_PAUSE_MS: u64 = 50;
/// Pause before sockets that could not be had are asked for again; it doubles up to the longest one.
const RESTART_MS_MIN: u64 = 1_000;
/// The longest one.
const RESTART_MS_MAX: u64 = 60_000;
/// OPCODE NOTIFY.
const NOTIFY: u8 = 4;

/// A secondary that is told of new serials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotifyTarget {
    /// Where it listens.
    pub address: SocketAddr,
    /// Name of the key that it is told with.
    pub key: Option<DomainName>,
}

/// Who is told of a zone's new serials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneNotify {
    /// The zone.
    pub apex: DomainName,
    /// Its secondaries.
    pub targets: Vec<NotifyTarget>,
}

/// Who is told, to be changed while the server runs. Cloning shares it.
#[derive(Debug, Clone)]
pub struct NotifyList(watch::Sender<Arc<[ZoneNotify]>>);

impl NotifyList {
    pub(crate) fn new(zones: &[ZoneNotify]) -> Self {
        Self(watch::Sender::new(zones.into()))
    }

    /// From here on these are told of new serials, and nobody else. If that changes anything, all of them are told
    /// of the serials of now once more, which costs each secondary a look.
    pub fn set(&self, zones: Vec<ZoneNotify>) {
        self.0.send_if_modified(|known| {
            let differs = **known != *zones;
            if differs {
                *known = zones.into();
            }
            differs
        });
    }
}

/// Where a secondary stands with one zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondaryStatus {
    /// The zone.
    pub apex: DomainName,
    /// The secondary.
    pub address: SocketAddr,
    /// The newest serial that it is to be told of.
    pub serial: Option<u32>,
    /// It has acknowledged that serial.
    pub acknowledged: bool,
    /// Messages about that serial that were sent; 16 stands for 16 and more.
    pub tries: u32,
}

/// The secondaries that are told of new serials. Cloning shares what is known of them.
#[derive(Debug, Clone, Default)]
pub struct Secondaries(Arc<Mutex<Vec<watch::Receiver<Vec<SecondaryStatus>>>>>);

impl Secondaries {
    /// Where each stands.
    pub fn status(&self) -> Vec<SecondaryStatus> {
        self.told().iter().flat_map(|told| told.borrow().clone()).collect()
    }

    /// From now on it is these that are told.
    fn are_told_by(&self, notifiers: &[Notifier]) {
        *self.told() = notifiers.iter().map(|notifier| notifier.status.subscribe()).collect();
    }

    /// Nobody tells these for now.
    fn are_told_by_nobody(&self, zones: &[ZoneNotify], served: &Zones) {
        let status = |zone: &ZoneNotify, target: &NotifyTarget| SecondaryStatus {
            apex: zone.apex.clone(),
            address: target.address,
            serial: served.with_apex(&zone.apex).map(|zone| zone.serial()),
            acknowledged: false,
            tries: 0,
        };
        let of =
            |zone: &ZoneNotify| zone.targets.iter().map(|target| status(zone, target)).collect::<Vec<_>>();
        // What was sent last can be seen also when nobody sends any more.
        *self.told() = vec![watch::channel(zones.iter().flat_map(of).collect()).1];
    }

    fn told(&self) -> MutexGuard<'_, Vec<watch::Receiver<Vec<SecondaryStatus>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One secondary of one zone.
struct Secondary {
    apex: DomainName,
    address: SocketAddr,
    /// Name of the key that it is told with; which key that is may change.
    key: Option<DomainName>,
    telling: Telling,
    /// What the answer to the last message is checked with, if that was signed.
    exchange: Option<Exchange>,
}

/// Tells the secondaries that are reached from one address of this host.
pub(crate) struct Notifier {
    socket: UdpSocket,
    secondaries: Vec<Secondary>,
    keys: Keyring,
    shared: Arc<ArcSwap<View>>,
    generation: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
    tally: Arc<Tally>,
    started: Instant,
    /// Where each secondary stands, for whoever looks.
    status: watch::Sender<Vec<SecondaryStatus>>,
}

/// One notifier for each address from which secondaries are told: the one that we listen on, where it fits theirs,
/// since they take a NOTIFY only from the address that they know as the primary.
///
/// # Errors
/// If there is no socket to be had.
pub(crate) fn start(
    zones: &[ZoneNotify],
    listen: &[SocketAddr],
    room: &HoldRoom,
) -> io::Result<Vec<Notifier>> {
    let mut by_source: BTreeMap<IpAddr, Vec<Secondary>> = BTreeMap::new();
    for zone in zones {
        for target in &zone.targets {
            by_source.entry(source_for(target.address.ip(), listen)).or_default().push(Secondary {
                apex: zone.apex.clone(),
                address: target.address,
                key: target.key.clone(),
                telling: Telling::default(),
                exchange: None,
            });
        }
    }
    let of = |(source, secondaries)| {
        Ok(Notifier {
            socket: bind(source)?,
            secondaries,
            keys: room.keys.clone(),
            shared: Arc::clone(&room.shared),
            generation: room.generation.clone(),
            stop: room.stop.clone(),
            tally: Arc::clone(&room.tally),
            started: Instant::now(),
            status: watch::Sender::new(Vec::new()),
        })
    };
    by_source.into_iter().map(of).collect()
}

/// Runs these notifiers, and others in their place when the list changes, until the server stops.
pub(crate) async fn keep(
    notifiers: Vec<Notifier>,
    list: NotifyList,
    listen: Vec<SocketAddr>,
    room: HoldRoom,
    secondaries: Secondaries,
) {
    let (changes, mut stop) = (list.0.subscribe(), room.stop.clone());
    drop(list);
    let start = |zones: &[ZoneNotify]| start(zones, &listen, &room);
    tokio::select! {
        () = keep_by(start, notifiers, changes, &room.shared, secondaries) => {}
        () = stopped(&mut stop) => {}
    }
}

/// Runs these notifiers, and others in their place when the list changes, until nobody can change it any more. Those
/// that cannot be had are asked for again and again.
async fn keep_by(
    start: impl Fn(&[ZoneNotify]) -> io::Result<Vec<Notifier>>,
    notifiers: Vec<Notifier>,
    mut changes: watch::Receiver<Arc<[ZoneNotify]>>,
    view: &ArcSwap<View>,
    secondaries: Secondaries,
) {
    let (mut started, mut pause_ms) = (Ok(notifiers), RESTART_MS_MIN);
    loop {
        // Dropped, they end at once.
        let mut running = JoinSet::new();
        let again = match started {
            Ok(notifiers) => {
                pause_ms = RESTART_MS_MIN;
                secondaries.are_told_by(&notifiers);
                for notifier in notifiers {
                    running.spawn(notifier.run());
                }
                None
            }
            Err(error) => {
                let zones = Arc::clone(&changes.borrow());
                secondaries.are_told_by_nobody(&zones, view.load().zones());
                tracing::error!(%error, pause_ms, "secondaries are not told of new serials, and find them by their own refresh; trying again");
                let again = Instant::now() + Duration::from_millis(pause_ms);
                pause_ms = pause_ms.saturating_mul(2).min(RESTART_MS_MAX);
                Some(again)
            }
        };
        let restart = async {
            match again {
                Some(again) => sleep_until(again).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = restart => {}
        }
        running.shutdown().await;
        let zones = Arc::clone(&changes.borrow_and_update());
        started = start(&zones);
    }
}

/// The address of ours from which that one is told.
fn source_for(target: IpAddr, listen: &[SocketAddr]) -> IpAddr {
    let fits = |own: &IpAddr| own.is_ipv4() == target.is_ipv4() && own.is_loopback() == target.is_loopback();
    let any = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    listen.iter().map(SocketAddr::ip).find(fits).unwrap_or(any)
}

fn bind(source: IpAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind((source, 0))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

impl Notifier {
    /// Tells of each new serial until the server stops.
    pub async fn run(mut self) {
        let mut stop = self.stop.clone();
        let mut answer = vec![0; ANSWER_BYTES_MAX];
        let mut seen: Option<Zones> = None;
        loop {
            // Marked as seen before the view is read, so that none is missed.
            self.generation.borrow_and_update();
            self.look(&mut seen);
            let more = self.tell().await;
            self.show();
            let due = self.secondaries.iter().filter_map(|secondary| secondary.telling.due_ms()).min();
            let due = due.map(|due| self.started + Duration::from_millis(due));
            let pause = more.then(|| Instant::now() + Duration::from_millis(BURST_PAUSE_MS));
            let timer = async {
                match pause.or(due) {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.generation.changed() => if changed.is_err() { return },
                received = self.socket.recv_from(&mut answer) => match received {
                    Ok((length, from)) => self.take(answer.get(..length).unwrap_or_default(), from),
                    Err(_) => sleep(Duration::from_millis(ERROR_PAUSE_MS)).await,
                },
                () = timer => {}
                () = stopped(&mut stop) => return,
            }
        }
    }

    fn show(&self) {
        let status = self.secondaries.iter().map(|secondary| {
            let Secondary { apex, address, telling, .. } = secondary;
            let (serial, acknowledged) = (telling.serial(), telling.is_acknowledged());
            SecondaryStatus {
                apex: apex.clone(),
                address: *address,
                serial,
                acknowledged,
                tries: telling.tries(),
            }
        });
        self.status.send_replace(status.collect());
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes the serials of the view.
    fn look(&mut self, seen: &mut Option<Zones>) {
        let view = self.shared.load();
        if seen.as_ref().is_some_and(|seen| seen.is_same(view.zones())) {
            return;
        }
        let now_ms = self.now_ms();
        for secondary in &mut self.secondaries {
            let zone = view.zones().find(&secondary.apex).and_then(|index| view.zones().at(index));
            if let Some(zone) = zone {
                secondary.telling.newest(zone.serial(), now_ms);
            }
        }
        *seen = Some(view.zones().clone());
    }

    /// Tells whoever is to be told now; true if some had to be left for later.
    async fn tell(&mut self) -> bool {
        let now_ms = self.now_ms();
        let mut sent = 0;
        for secondary in &mut self.secondaries {
            if secondary.telling.due_ms().is_none_or(|due| due > now_ms) {
                continue;
            }
            if sent == BURST_MAX {
                return true;
            }
            sent += 1;
            let id = random_id();
            let view = self.shared.load_full();
            let Some(mut message) = notification(&view, &secondary.apex, id) else { continue };
            secondary.exchange = None;
            if let Some(name) = &secondary.key {
                let Some(key) = self.keys.key(name) else {
                    // On its way out of the configuration, and the secondary with it.
                    secondary.telling.refused(now_ms);
                    continue;
                };
                secondary.exchange = Some(self.keys.sign_request(&key, &mut message));
            }
            secondary.telling.sent(id, now_ms);
            match self.socket.send_to(&message, secondary.address).await {
                Ok(_) => bump(&self.tally.notifies_sent),
                // It is told again as if the message had been lost.
                Err(_) => bump(&self.tally.socket_errors),
            }
        }
        false
    }

    /// Takes in what came from `from`.
    fn take(&mut self, answer: &[u8], from: SocketAddr) {
        let Some(&[id_high, id_low, flags, code, ..]) = answer.first_chunk::<12>() else { return };
        let id = u16::from_be_bytes([id_high, id_low]);
        if flags & 0xf8 != 0x80 | NOTIFY << 3 {
            return;
        }
        let now_ms = self.now_ms();
        let asked = |secondary: &&mut Secondary| secondary.address == from && secondary.telling.awaits(id);
        let Some(secondary) = self.secondaries.iter_mut().find(asked) else { return };
        if let Some(exchange) = &mut secondary.exchange
            && exchange.check_answer(answer).is_err()
        {
            // Perhaps somebody else's; if not, it is told again.
            bump(&self.tally.notifies_refused);
            return;
        }
        if code & 0xf == 0 {
            secondary.telling.acknowledged();
            bump(&self.tally.notifies_acknowledged);
        } else {
            secondary.telling.refused(now_ms);
            bump(&self.tally.notifies_refused);
        }
    }
}

/// `apex SOA`, with the SOA of now as a hint (RFC 1996 §3.7).
fn notification(view: &View, apex: &DomainName, id: u16) -> Option<Vec<u8>> {
    let zone = view.zones().find(apex).and_then(|index| view.zones().at(index))?;
    let [high, low] = id.to_be_bytes();
    let [aa, class] = [0x04, rdata::CLASS_IN.to_be_bytes()[1]];
    let mut message = vec![high, low, NOTIFY << 3 | aa, 0, 0, 1, 0, 1, 0, 0, 0, 0];
    message.extend_from_slice(apex.as_wire());
    message.extend_from_slice(&[0, 6, 0, class]);
    let data = zone.soa().data.first()?;
    // The owner is the name of the question.
    message.extend_from_slice(&[0xc0, 12, 0, 6, 0, class]);
    message.extend_from_slice(&zone.soa().ttl.to_be_bytes());
    message.extend_from_slice(&u16::try_from(data.len()).ok()?.to_be_bytes());
    message.extend_from_slice(data);
    Some(message)
}

/// Not to be guessed, so that nobody else acknowledges.
fn random_id() -> u16 {
    let mut bytes = [0; 2];
    // Without random numbers nothing else here would work either.
    let _ = SystemRandom::new().fill(&mut bytes);
    u16::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn secondaries_that_cannot_be_told_are_shown_and_tried_again() {
        use std::cell::Cell;

        let target = |port| NotifyTarget { address: SocketAddr::from(([127, 0, 0, 1], port)), key: None };
        let of = |port| vec![ZoneNotify { apex: "vm.test".parse().unwrap(), targets: vec![target(port)] }];
        let (list, secondaries) = (NotifyList::new(&[]), Secondaries::default());
        let (changes, view) = (list.0.subscribe(), ArcSwap::from_pointee(View::default()));
        // The address of ours is away for a while.
        let (tries, is_there) = (Cell::new(0), Cell::new(false));
        let start = |_: &[ZoneNotify]| {
            tries.set(tries.get() + 1);
            let away = || io::Error::from(io::ErrorKind::AddrNotAvailable);
            if is_there.get() { Ok(Vec::new()) } else { Err(away()) }
        };
        let story = async {
            list.set(of(53));
            sleep(Duration::from_millis(1)).await;
            let status = secondaries.status();
            assert_eq!(tries.get(), 1);
            assert_eq!((status.len(), status[0].address.port()), (1, 53), "{status:?}");
            assert!(!status[0].acknowledged);
            sleep(Duration::from_millis(3 * RESTART_MS_MIN)).await;
            assert_eq!(tries.get(), 3);
            list.set(of(54));
            sleep(Duration::from_millis(1)).await;
            assert_eq!((tries.get(), secondaries.status()[0].address.port()), (4, 54));
            is_there.set(true);
            sleep(Duration::from_millis(RESTART_MS_MAX)).await;
            assert_eq!(
                (tries.get(), secondaries.status().len()),
                (5, 0),
                "told by the notifiers from here on"
            );
            sleep(Duration::from_millis(3 * RESTART_MS_MAX)).await;
            assert_eq!(tries.get(), 5);
        };
        tokio::select! {
            () = keep_by(start, Vec::new(), changes, &view, secondaries.clone()) => panic!("it ended"),
            () = story => {}
        }
    }

    #[test]
    fn a_secondary_is_told_from_the_address_that_it_knows() {
        let listen: Vec<SocketAddr> =
            ["127.0.0.53:53", "192.0.2.1:53", "[::1]:53"].map(|text| text.parse().unwrap()).to_vec();
        for (target, source) in [
            ("127.0.0.1", "127.0.0.53"),
            ("198.51.100.7", "192.0.2.1"),
            ("::1", "::1"),
            ("2001:db8::1", "::"),
        ] {
            let source: IpAddr = source.parse().unwrap();
            assert_eq!(source_for(target.parse().unwrap(), &listen), source, "{target}");
        }
        let any: IpAddr = "0.0.0.0".parse().unwrap();
        assert_eq!(source_for("198.51.100.7".parse().unwrap(), &[]), any);
    }
}
