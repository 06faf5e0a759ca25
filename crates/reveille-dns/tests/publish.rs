//! Services published to real primaries, BIND and Knot, across their restarts and our own.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod primaries;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use primaries::{KEY, Kind, Primary, SECRET_BYTES, until};
use reveille_core::model::{DomainName, Timestamp};
use reveille_dns::publish::{
    Addresses, Ledger, LedgerWrite, Note, PublishConfig, PublishStatus, PublishTask, Row,
};
use reveille_dns::tsig::{Algorithm, Key, Keyring};
use reveille_store::{Change, Store, StoredPublished};
use tokio::runtime::Runtime;

const TARGET: &str = "the primary";
const POLICY: &str = "grant publish.key.test zonesub A AAAA;";
const HOUR: Duration = Duration::from_secs(3_600);

fn name(label: &str) -> DomainName {
    format!("{label}.vm.test").parse().unwrap()
}

/// Every third one has an IPv6 address too.
fn addresses(number: u16) -> Addresses {
    let [high, low] = number.to_be_bytes();
    let v6 = number.is_multiple_of(3).then(|| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number));
    Addresses { v4: Some(Ipv4Addr::new(127, 64, high, low)), v6, ttl_s: 30 }
}

fn lines(wanted: &BTreeMap<DomainName, Addresses>) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, Addresses { v4, v6, .. }) in wanted {
        lines.extend(v4.map(|v4| format!("{name} {v4}")));
        lines.extend(v6.map(|v6| format!("{name} {v6}")));
    }
    lines.sort();
    lines
}

/// The notes in a real state database.
struct InStore(Arc<Store>);

impl Ledger for InStore {
    fn write(&self, notes: Vec<Note>) -> LedgerWrite {
        let target = || TARGET.to_owned();
        let changes = notes.into_iter().map(|note| match note {
            Note::Put(name, Row { addresses: Addresses { v4, v6, ttl_s }, certain }) => {
                Change::PutPublished {
                    target: target(),
                    name,
                    row: StoredPublished { v4, v6, ttl_s, certain },
                }
            }
            Note::Drop(name) => Change::DropPublished { target: target(), name },
            Note::Serial(serial) => Change::PutPublishedSerial { target: target(), serial },
        });
        let ack = self.0.write(changes.collect());
        Box::pin(async move { ack.await.map_err(|error| error.to_string()) })
    }
}

/// Our side: what is wanted, and the task that publishes it.
struct Daemon {
    runtime: Runtime,
    wanted: BTreeMap<DomainName, Addresses>,
    task: PublishTask,
    store: Arc<Store>,
}

impl Daemon {
    fn start(dir: &Path, primary: &Primary, wanted: BTreeMap<DomainName, Addresses>) -> Self {
        Self::with(dir, primary, wanted, SECRET_BYTES, HOUR)
    }

    fn with(
        dir: &Path,
        primary: &Primary,
        wanted: BTreeMap<DomainName, Addresses>,
        secret: &[u8],
        resend: Duration,
    ) -> Self {
        Self::at(dir, primary.address, wanted, secret, resend)
    }

    fn at(
        dir: &Path,
        server: SocketAddr,
        wanted: BTreeMap<DomainName, Addresses>,
        secret: &[u8],
        resend: Duration,
    ) -> Self {
        let runtime = Runtime::new().unwrap();
        let (store, mut loaded) = Store::open(dir).unwrap();
        let store = Arc::new(store);
        let rows = loaded.published.remove(TARGET).unwrap_or_default().into_iter();
        let rows = rows.map(|(name, StoredPublished { v4, v6, ttl_s, certain })| {
            (name, Row { addresses: Addresses { v4, v6, ttl_s }, certain })
        });
        let known = (rows.collect(), loaded.published_serials.remove(TARGET));
        let config = PublishConfig {
            server,
            zone: "vm.test".parse().unwrap(),
            key: KEY.parse().unwrap(),
            ttl_s: Some(30),
            services: Vec::new(),
            resend,
        };
        let key = Key::new(KEY.parse().unwrap(), Algorithm::HmacSha256, secret).unwrap();
        let begun = Instant::now();
        let clock = Arc::new(move || {
            Timestamp::from_ms(1_800_000_000_000).plus_ms(u64::try_from(begun.elapsed().as_millis()).unwrap())
        });
        let task = {
            let _inside = runtime.enter();
            let ledger = Arc::new(InStore(Arc::clone(&store)));
            PublishTask::start(config, (Keyring::new([]), key), wanted.clone(), known, ledger, clock)
        };
        Self { runtime, wanted, task, store }
    }

    fn set(&mut self, name: DomainName, addresses: Option<Addresses>) {
        match addresses {
            Some(addresses) => self.wanted.insert(name.clone(), addresses),
            None => self.wanted.remove(&name),
        };
        self.task.feed().set(name, addresses);
    }

    /// Ends at once, wherever it is; what is wanted by then.
    fn kill(self) -> BTreeMap<DomainName, Addresses> {
        drop(self.task);
        self.runtime.shutdown_timeout(Duration::from_secs(10));
        drop(self.store);
        self.wanted
    }

    fn status(&self) -> PublishStatus {
        self.task.status()
    }

    /// Waits until nothing is pending, and looks at what the other server has then.
    fn in_step(&self, primary: &Primary) {
        let is_in_step = || {
            let status = self.status();
            status.names == self.wanted.len() && status.pending == 0 && status.trouble.is_none()
        };
        let start = Instant::now();
        // A change may still be on its way to the task, so what the other server has decides.
        while !(is_in_step() && primary.addresses() == lines(&self.wanted)) {
            assert!(
                start.elapsed() < primaries::WAIT_MAX,
                "{:?}\n{}\n{}",
                self.status(),
                difference(&primary.addresses(), &lines(&self.wanted)),
                primary.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn difference(is: &[String], wanted: &[String]) -> String {
    let extra = is.iter().filter(|line| !wanted.contains(line)).map(|line| format!("+ {line}\n"));
    let missing = wanted.iter().filter(|line| !is.contains(line)).map(|line| format!("- {line}\n"));
    extra.chain(missing).take(20).collect()
}

/// Numbers that look random and are the same each time.
struct Numbers(u32);

impl Numbers {
    fn below(&mut self, limit: u16) -> u16 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        u16::try_from((self.0 >> 8) % u32::from(limit)).unwrap()
    }
}

fn services(count: u16) -> BTreeMap<DomainName, Addresses> {
    (0..count).map(|number| (name(&format!("s{number}")), addresses(number))).collect()
}

/// Adds, moves and removes services.
fn change(daemon: &mut Daemon, numbers: &mut Numbers, count: usize) {
    for _ in 0..count {
        let label = name(&format!("s{}", numbers.below(400)));
        let remove = numbers.below(3) == 0;
        let moved = addresses(1_000 + numbers.below(5_000));
        daemon.set(label, (!remove).then_some(moved));
    }
}

fn is_kept_in_step(kind: Kind) {
    let state = tempfile::tempdir().unwrap();
    let mut primary = Primary::start(kind, POLICY);
    let mut numbers = Numbers(7);
    let mut daemon = Daemon::start(state.path(), &primary, services(300));
    daemon.in_step(&primary);
    change(&mut daemon, &mut numbers, 400);
    daemon.in_step(&primary);
    // What is so already is not sent, and costs the other server no serial.
    let serial = primary.serial();
    for (name, addresses) in daemon.wanted.clone() {
        daemon.set(name, Some(addresses));
    }
    change(&mut daemon, &mut numbers, 1);
    daemon.in_step(&primary);
    assert!(primary.serial() <= serial + 1);

    // It is gone for a while, in the middle of changes.
    change(&mut daemon, &mut numbers, 100);
    primary.kill();
    change(&mut daemon, &mut numbers, 100);
    until("the trouble is told", || daemon.status().trouble.is_some());
    let trouble = daemon.status().trouble.unwrap();
    assert!(trouble.text.contains("cannot be reached") || trouble.text.contains("not answer"), "{trouble:?}");
    primary.run();
    daemon.in_step(&primary);

    // It comes back without what it had been told.
    primary.lose_everything();
    change(&mut daemon, &mut numbers, 1);
    until("the trouble is told", || daemon.status().trouble.is_some());
    primary.run();
    daemon.in_step(&primary);

    // And we are gone for a while.
    let mut wanted = daemon.kill();
    wanted.remove(&name("s1"));
    wanted.insert(name("s2"), addresses(9_999));
    wanted.retain(|name, _| !name.to_string().contains('3'));
    let daemon = Daemon::start(state.path(), &primary, wanted);
    daemon.in_step(&primary);
}

#[test]
fn a_bind_is_kept_in_step() {
    is_kept_in_step(Kind::Bind);
}

#[test]
fn a_knot_is_kept_in_step() {
    is_kept_in_step(Kind::Knot);
}

/// Killed again and again while it publishes, and started with something else each time: nothing is left behind.
#[test]
fn kills_of_our_own_leave_nothing_behind() {
    let state = tempfile::tempdir().unwrap();
    let primary = Primary::start(Kind::Bind, POLICY);
    let mut numbers = Numbers(11);
    let mut wanted = services(100);
    for round in 0..25 {
        let mut daemon = Daemon::start(state.path(), &primary, wanted);
        change(&mut daemon, &mut numbers, 60);
        std::thread::sleep(Duration::from_millis(u64::from(numbers.below(60))));
        wanted = daemon.kill();
        // Services that were removed while nobody ran.
        wanted.retain(|_, _| round % 2 == 0 || numbers.below(3) > 0);
    }
    let daemon = Daemon::start(state.path(), &primary, wanted);
    daemon.in_step(&primary);
    // What others have there is left alone.
    assert_eq!(primary.dig(&["+short", "www.vm.test", "A"]).trim(), "192.0.2.80");
}

#[test]
fn a_wrong_key_is_told_clearly_and_not_tried_in_a_hurry() {
    let state = tempfile::tempdir().unwrap();
    let primary = Primary::start(Kind::Bind, POLICY);
    let daemon =
        Daemon::with(state.path(), &primary, services(200), b"not the secret of the other side", HOUR);
    until("the trouble is told", || daemon.status().trouble.is_some());
    let trouble = daemon.status().trouble.unwrap();
    assert!(trouble.text.contains("refuses the key or its signature (TSIG error 16)"), "{trouble:?}");
    assert!(trouble.text.contains(KEY), "{trouble:?}");
    let tries = || primary.log().matches("invalid signature").count() + primary.log().matches("tsig").count();
    let begun = Instant::now();
    until("it was tried again", || daemon.status().trouble.unwrap().next_try > trouble.next_try);
    let waited_s = usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!(tries() < 20 + 4 * waited_s, "{}", primary.log());
    assert_eq!(primary.addresses(), [""; 0]);
    let _ = daemon.kill();
    // With the right one everything arrives.
    let daemon = Daemon::start(state.path(), &primary, services(200));
    daemon.in_step(&primary);
}

#[test]
fn what_the_other_server_does_not_allow_keeps_back_nothing_else() {
    let state = tempfile::tempdir().unwrap();
    // `deny` of one name, and a CNAME of its own at another.
    let policy = "deny publish.key.test name s5.vm.test A; grant publish.key.test zonesub A AAAA;";
    let primary = Primary::start(Kind::Bind, policy);
    let mut wanted = services(120);
    wanted.insert(name("taken"), addresses(500));
    let mut daemon = Daemon::start(state.path(), &primary, wanted.clone());
    until("all but two arrive", || daemon.status().pending == 2 && daemon.status().refused == 2);
    let status = daemon.status();
    assert_eq!(status.refused_names, [name("s5"), name("taken")]);
    let text = status.trouble.unwrap().text;
    assert!(text.contains("update policy") || text.contains("CNAME"), "{text}");
    wanted.remove(&name("s5"));
    wanted.remove(&name("taken"));
    assert_eq!(difference(&primary.addresses(), &lines(&wanted)), "");
    // The others go on.
    daemon.set(name("s6"), Some(addresses(600)));
    wanted.insert(name("s6"), addresses(600));
    until("a change arrives", || primary.addresses() == lines(&wanted));
}

#[test]
fn a_server_that_is_not_the_primary_is_told_from_one_that_refuses() {
    let state = tempfile::tempdir().unwrap();
    let primary = Primary::start(Kind::Bind, "grant other.key.test zonesub A AAAA;");
    let daemon = Daemon::start(state.path(), &primary, services(30));
    until("the trouble is told", || daemon.status().trouble.is_some());
    let text = daemon.status().trouble.unwrap().text;
    assert!(text.contains("REFUSED") && text.contains("update policy"), "{text}");
}

#[test]
fn what_somebody_else_removed_comes_back_with_the_next_repetition() {
    let state = tempfile::tempdir().unwrap();
    let primary = Primary::start(Kind::Bind, "grant publish.key.test zonesub ANY;");
    let daemon = Daemon::with(state.path(), &primary, services(10), SECRET_BYTES, Duration::from_secs(4));
    daemon.in_step(&primary);
    let serial = primary.serial();
    let script = format!(
        "server {} {}\nzone vm.test\nupdate delete s3.vm.test\nsend\n",
        primary.address.ip(),
        primary.address.port()
    );
    nsupdate(&script);
    until("it is gone", || primary.addresses().len() == lines(&daemon.wanted).len() - 2);
    daemon.in_step(&primary);
    assert!(primary.serial() <= serial + 2, "only what was missing made a serial");
}

fn nsupdate(script: &str) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let key = format!("hmac-sha256:{KEY}:{}", primaries::SECRET);
    let mut child = Command::new("nsupdate").args(["-y", &key]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Somebody answers NOERROR to everything, without the key, over UDP and TCP.
#[test]
fn an_answer_without_proof_is_not_believed() {
    use std::io::{Read, Write};
    use std::net::{TcpListener, UdpSocket};
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).unwrap();
    let lie = |request: &[u8]| {
        // An answer without its counts and sections; the SOA question gets one too.
        let flags = request[2] | 0x80;
        [&request[..2], &[flags, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat()
    };
    std::thread::spawn(move || {
        let mut packet = [0; 65_535];
        while let Ok((length, peer)) = udp.recv_from(&mut packet) {
            let _ = udp.send_to(&lie(&packet[..length]), peer);
        }
    });
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_err() {
                continue;
            }
            let mut request = vec![0; u16::from_be_bytes(length).into()];
            let _ = stream.read_exact(&mut request);
            let answer = lie(&request);
            let framed = [&u16::try_from(answer.len()).unwrap().to_be_bytes()[..], &answer].concat();
            let _ = stream.write_all(&framed);
        }
    });
    let state = tempfile::tempdir().unwrap();
    let daemon = Daemon::at(state.path(), address, services(3), SECRET_BYTES, HOUR);
    until("the trouble is told", || daemon.status().trouble.is_some());
    let status = daemon.status();
    let text = status.trouble.unwrap().text;
    assert!(text.contains("the answer is not signed") && text.contains(KEY), "{text}");
    assert_eq!((status.pending, status.last_success), (3, None));
}
