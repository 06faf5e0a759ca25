//! What real clients meet at the gate: cookies, BADCOOKIE, truncated answers, and the way over TCP.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{NOW, WAIT_MAX, name, service, zone};
use proptest::prelude::*;
use reveille_core::answer::{View, Zones};
use reveille_dns::limit::{
    Action, CookieStatus, Counter, Gate, GateConfig, GateCounts, Kind, RateVerdict, Rule, Source, Writers,
};
use reveille_dns::wire::{Query, Unreadable};
use reveille_dns::{Origin, Setting, Transport, respond};

/// How often the threads of a server look whether to stop.
const LOOK: Duration = Duration::from_millis(20);

/// Answers over UDP and TCP on a free port, through a gate.
struct Server {
    address: SocketAddr,
    gate: Arc<Gate>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    fn new(config: &GateConfig) -> Self {
        let gate = Arc::new(Gate::new(config, &[name("vm.test")], NOW).unwrap());
        let services = [service("hello.vm.test", 1)].map(Arc::new);
        let view = Arc::new(View::new(1, Zones::new([Arc::new(zone())]), services, View::default_monitors()));
        let (listener, socket) = loop {
            let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 54), 0)).unwrap();
            if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()) {
                break (listener, socket);
            }
        };
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let threads = vec![
            std::thread::spawn({
                let (gate, view, stop) = (Arc::clone(&gate), Arc::clone(&view), Arc::clone(&stop));
                move || serve_udp(&socket, &gate, &view, &stop)
            }),
            std::thread::spawn({
                let (gate, stop) = (Arc::clone(&gate), Arc::clone(&stop));
                move || serve_tcp(&listener, &gate, &view, &stop)
            }),
        ];
        Self { address, gate, stop, threads }
    }

    fn counts(&self) -> GateCounts {
        self.gate.counts()
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> String {
        ask(program, self.address, arguments)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, gate: &Gate, view: &View, stop: &AtomicBool) {
    let tally = gate.tally(Writers::One);
    let (mut packet, mut out) = ([0; 4_096], Vec::new());
    while !stop.load(Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut packet) else { continue };
        let judge = gate.judge(NOW, &tally);
        let at = Setting { view, now: NOW, judge: Some(&judge), keys: None };
        let gated = respond(&at, &packet[..length], &Origin::new(peer, Transport::Udp), &mut out);
        if let (Some(client), Some(zone), Some(_)) = (gated.client, gated.zone, gated.wake) {
            judge.wake(&client, zone);
        }
        if gated.written.is_some() {
            socket.send_to(&out, peer).unwrap();
        }
    }
}

fn serve_tcp(listener: &TcpListener, gate: &Gate, view: &View, stop: &AtomicBool) {
    let tally = gate.tally(Writers::Several);
    let mut out = Vec::new();
    while !stop.load(Relaxed) {
        let Ok((mut stream, peer)) = listener.accept() else {
            std::thread::sleep(LOOK);
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
        let mut length = [0; 2];
        while stream.read_exact(&mut length).is_ok() {
            let mut packet = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut packet).unwrap();
            let judge = gate.judge(NOW, &tally);
            let at = Setting { view, now: NOW, judge: Some(&judge), keys: None };
            let gated = respond(&at, &packet, &Origin::new(peer, Transport::Tcp), &mut out);
            if let (Some(client), Some(zone), Some(_)) = (gated.client, gated.zone, gated.wake) {
                judge.wake(&client, zone);
            }
            let length = u16::try_from(out.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length[..], &out].concat()).unwrap();
        }
    }
}

fn ask(program: &str, address: SocketAddr, arguments: &[&str]) -> String {
    let limits: &[&str] =
        if program == "dig" { &["+time=5", "+tries=1"] } else { &["+timeout=5", "+retry=0"] };
    let output = Command::new(program)
        .args([&format!("@{}", address.ip()), "-p", &address.port().to_string()])
        .args(limits)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs what the tests need"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The cookie that dig shows, client's and server's.
fn cookie_in(text: &str) -> &str {
    let rest = text.split("; COOKIE: ").nth(1).unwrap_or_else(|| panic!("no cookie in {text}"));
    rest.split_whitespace().next().unwrap()
}

/// Nobody is exempt, and one answer of each kind goes through.
fn strict() -> GateConfig {
    let mut config = GateConfig::default();
    let rate = &mut config.rate;
    (rate.positive_per_s, rate.positive_burst) = (1, 1);
    (rate.nxdomain_per_s, rate.nxdomain_burst) = (1, 1);
    (rate.error_per_s, rate.error_burst) = (1, 1);
    (rate.slip, rate.exempt) = (1, Vec::new());
    config
}

#[test]
fn dig_and_kdig_are_given_cookies_and_prove_themselves_with_them() {
    let server = Server::new(&GateConfig::default());
    let text = server.ask("dig", &["hello.vm.test", "A"]);
    assert!(text.contains("(good)") && text.contains("127.64.0.1"), "{text}");
    let cookie = cookie_in(&text);
    assert_eq!(cookie.len(), 48, "{text}");
    assert!(cookie[16..].starts_with("01000000"), "{text}");
    let again = server.ask("dig", &["hello.vm.test", "A", &format!("+cookie={cookie}")]);
    assert_eq!(cookie_in(&again), cookie, "a good cookie is kept");
    assert!(!server.ask("dig", &["hello.vm.test", "A", "+nocookie"]).contains("COOKIE"));
    let text = server.ask("kdig", &["hello.vm.test", "A", &format!("+cookie={cookie}")]);
    assert!(text.contains(&cookie[16..].to_uppercase()), "{text}");
    // Without a question, a cookie alone is asked for (RFC 7873 §5.4); one that is not ours is not taken.
    let text = server.ask("dig", &["+header-only", "+nobadcookie", &format!("+cookie={cookie}")]);
    assert!(text.contains("status: NOERROR") && text.contains("QUERY: 0,"), "{text}");
    assert_eq!(cookie_in(&text), cookie);
    let text = server.ask("dig", &["+header-only", "+nobadcookie", &format!("+cookie={}", "ab".repeat(24))]);
    assert!(
        text.contains("status: BADCOOKIE") && cookie_in(&text).starts_with("abababababababab01"),
        "{text}"
    );
    assert!(server.ask("dig", &["+header-only", "+nocookie"]).contains("status: FORMERR"));
    // Two bytes are no cookie.
    let text = server.ask("dig", &["hello.vm.test", "A", "+nocookie", "+ednsopt=10:0102"]);
    assert!(text.contains("status: FORMERR"), "{text}");
    let counts = server.counts();
    let of = |status| counts.of(Counter::Cookie(status));
    assert_eq!((of(CookieStatus::ClientOnly), of(CookieStatus::Valid)), (1, 3));
    assert_eq!(counts.of(Counter::Wake(Source::Proven)), 2);
    assert_eq!(counts.of(Counter::Wake(Source::Unproven)), 2);
}

#[test]
fn where_cookies_are_required_dig_learns_one_and_others_come_over_tcp() {
    let mut config = GateConfig::default();
    config.cookies.require = true;
    let server = Server::new(&config);
    let text = server.ask("dig", &["hello.vm.test", "A", "+cookie", "+nobadcookie"]);
    assert!(text.contains("status: BADCOOKIE") && !text.contains("127.64.0.1"), "{text}");
    let text = server.ask("dig", &["hello.vm.test", "A", "+cookie"]);
    assert!(text.contains("BADCOOKIE, retrying") && text.contains("127.64.0.1"), "{text}");
    let text = server.ask("dig", &["hello.vm.test", "A", "+nocookie"]);
    assert!(text.contains("retrying in TCP mode") && text.contains("127.64.0.1"), "{text}");
    let text = server.ask("kdig", &["hello.vm.test", "A", "+cookie", "+badcookie"]);
    assert!(text.contains("127.64.0.1"), "{text}");
    let counts = server.counts();
    assert_eq!((counts.of(Counter::BadCookie), counts.of(Counter::CookieMissing)), (3, 1));
}

#[test]
fn a_client_over_its_rate_comes_over_tcp_or_with_a_cookie() {
    let server = Server::new(&strict());
    let plain = ["hello.vm.test", "A", "+nocookie", "+ignore"];
    assert!(server.ask("dig", &plain).contains("127.64.0.1"));
    let text = server.ask("dig", &plain);
    assert!(text.contains("flags: qr aa tc rd;") && text.contains("ANSWER: 0, AUTHORITY: 0"), "{text}");
    assert!(text.contains("status: NOERROR") && text.contains("udp: 1232"), "{text}");
    let text = server.ask("dig", &["hello.vm.test", "A", "+nocookie"]);
    assert!(text.contains("retrying in TCP mode") && text.contains("127.64.0.1"), "{text}");
    // The first with a cookie learns the server's even from the truncated answer; the second is not limited.
    let text = server.ask("dig", &["hello.vm.test", "A", "+cookie", "+ignore"]);
    assert!(text.contains("tc rd;") && text.contains("(good)"), "{text}");
    let proven = format!("+cookie={}", cookie_in(&text));
    for _ in 0..5 {
        assert!(server.ask("dig", &["hello.vm.test", "A", &proven]).contains("127.64.0.1"));
    }
    // A name that does not exist says so even then; an error is what it is.
    for expected in ["flags: qr aa rd;", "flags: qr aa tc rd;"] {
        let text = server.ask("dig", &["none.vm.test", "A", "+nocookie", "+ignore"]);
        assert!(text.contains("status: NXDOMAIN") && text.contains(expected), "{text}");
    }
    for _ in 0..2 {
        let text = server.ask("dig", &["www.example", "A", "+nocookie", "+ignore"]);
        assert!(text.contains("status: REFUSED") && text.contains("flags: qr rd;"), "{text}");
    }
    let counts = server.counts();
    assert_eq!(counts.of(Counter::Rate(Kind::Positive, RateVerdict::Slip)), 3);
    assert_eq!(counts.of(Counter::Rate(Kind::NxDomain, RateVerdict::Slip)), 1);
    assert_eq!(counts.of(Counter::Rate(Kind::Error, RateVerdict::Slip)), 1);
    // A truncated answer wakes nobody; what comes over TCP does.
    assert_eq!(counts.of(Counter::Wake(Source::Unproven)), 1);
    assert_eq!(counts.of(Counter::Wake(Source::Proven)), 6);
}

#[test]
fn who_is_to_be_refused_is_refused_and_who_is_to_be_dropped_hears_nothing() {
    let rule = |action, network: &str| Rule { network: vec![network.parse().unwrap()], ..Rule::all(action) };
    let config = GateConfig {
        rule: vec![rule(Action::Refuse, "127.9.1.0/24"), rule(Action::Drop, "127.9.2.0/24")],
        ..GateConfig::default()
    };
    let server = Server::new(&config);
    let text = server.ask("dig", &["-b", "127.9.1.1", "hello.vm.test", "A"]);
    assert!(text.contains("status: REFUSED") && text.contains("Prohibited"), "{text}");
    let text = server.ask("dig", &["-b", "127.9.2.1", "+time=1", "hello.vm.test", "A"]);
    assert!(text.contains("no servers could be reached"), "{text}");
    assert!(server.ask("dig", &["-b", "127.9.3.1", "hello.vm.test", "A"]).contains("127.64.0.1"));
    // What cannot be read is judged by the same rules.
    let text = server.ask("dig", &["-b", "127.9.2.1", "+time=1", "+opcode=notify", "hello.vm.test", "A"]);
    assert!(text.contains("no servers could be reached"), "{text}");
    assert_eq!(server.counts().of(Counter::Rule(Action::Drop)), 2);
}

proptest! {
    #[test]
    fn who_meets_no_rule_and_no_limit_is_answered_as_without_a_gate(
        label in "[a-z]{1,5}|hello|none|_vmstate.hello|www|big|\\*",
        qtype in prop_oneof![Just(1u16), Just(16), Just(28), Just(255), any::<u16>()],
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        subnet: bool,
        transport in prop_oneof![Just(Transport::Udp), Just(Transport::Tcp)],
    ) {
        let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(subnet)];
        for label in label.split('.').chain(["vm", "test"]) {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend(label.bytes());
        }
        packet.extend([&[0][..], &qtype.to_be_bytes(), &[0, 1]].concat());
        if subnet {
            packet.extend([0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 11, 0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
        }
        for (place, byte) in changes {
            *place.get_mut(&mut packet) = byte;
        }
        // A cookie that came about by chance is answered by the gate alone.
        prop_assume!(Query::parse(&packet).ok().and_then(|query| query.edns?.cookie).is_none());
        let gate = Gate::new(&GateConfig::default(), &[name("vm.test")], NOW).unwrap();
        let tally = gate.tally(Writers::One);
        let services = [service("hello.vm.test", 1)].map(Arc::new);
        let view = View::new(1, Zones::new([Arc::new(zone())]), services, View::default_monitors());
        let peer = SocketAddr::from(([192, 0, 2, 1], 4242));
        let (mut plain, mut gated) = (Vec::new(), Vec::new());
        let from = Origin::new(peer, transport);
        let at = Setting { view: &view, now: NOW, judge: None, keys: None };
        let expected = respond(&at, &packet, &from, &mut plain);
        let judge = gate.judge(NOW, &tally);
        let found = respond(&Setting { judge: Some(&judge), ..at }, &packet, &from, &mut gated);
        prop_assert_eq!(&plain, &gated);
        prop_assert_eq!(expected.written, found.written);
        prop_assert_eq!(expected.wake.is_some(), found.wake.is_some());
        prop_assert_eq!(expected.counter, found.counter);
        prop_assert_eq!(found.client.is_some(), !matches!(Query::parse(&packet), Err(Unreadable::Silence)));
    }
}

/// A process that does not outlive the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// BIND as a resolver that asks the server for `vm.test`; where it listens.
fn resolver(server: SocketAddr, directory: &std::path::Path) -> (Process, SocketAddr) {
    // Only what the interface has: BIND looks them up there.
    let address = Ipv4Addr::LOCALHOST;
    let port = UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap().port();
    let config = format!(
        "options {{ directory \"{0}\"; pid-file none; listen-on port {port} {{ {address}; }}; listen-on-v6 {{ none; }};
           recursion yes; dnssec-validation no; session-keyfile none; empty-zones-enable no;
           managed-keys-directory \"{0}\"; max-cache-size 16m; }};
         controls {{ }};
         zone \"vm.test\" {{ type forward; forward only; forwarders {{ {1} port {2}; }}; }};\n",
        directory.display(),
        server.ip(),
        server.port()
    );
    let path = directory.join("named.conf");
    std::fs::write(&path, config).unwrap();
    let log = std::fs::File::create(directory.join("log")).unwrap();
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "named", "-g", "-n", "1", "-c"])
        .arg(path)
        .stderr(log)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    (Process(child), SocketAddr::from((address, port)))
}

#[test]
fn a_resolver_that_speaks_cookies_is_proven_from_its_second_question_on() {
    let server = Server::new(&strict());
    let directory = tempfile::tempdir().unwrap();
    let (process, resolver) = resolver(server.address, directory.path());
    let begun = Instant::now();
    let log = || std::fs::read_to_string(directory.path().join("log")).unwrap();
    while !ask("dig", resolver, &["+time=1", "hello.vm.test", "A"]).contains("127.64.0.1") {
        assert!(begun.elapsed() < WAIT_MAX, "the resolver does not answer: {}", log());
    }
    // Names that it has not kept: more than the limit would let through.
    for number in 0..20 {
        let text = ask("dig", resolver, &[&format!("none{number}.vm.test"), "A"]);
        assert!(text.contains("status: NXDOMAIN"), "{text}\n{}", log());
    }
    let counts = server.counts();
    assert!(counts.of(Counter::Cookie(CookieStatus::Valid)) >= 20, "{counts:?}");
    assert_eq!(counts.of(Counter::Rate(Kind::NxDomain, RateVerdict::Drop)), 0);
    drop(process);
}
