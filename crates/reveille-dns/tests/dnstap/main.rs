//! dnstap of real servers taken in, and what this server tells read by real programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod ask;
#[path = "../common/mod.rs"]
mod common;
mod programs;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ask::{ask_many, question};
use common::ports::free_address;
use common::{NOW, WAIT_MAX, World, active, service, zone};
use programs::{Capture, Collectors, Program, Sender};
use reveille_core::answer::{ServiceView, View, Zones};
use reveille_core::model::{AnswerPolicy, Timestamp};
use reveille_dns::DnsConfig;
use reveille_dns::dnstap::file::DnstapFile;
use reveille_dns::dnstap::frames::{ControlType, put_control};
use reveille_dns::dnstap::message::{Message, MessageType, SocketProtocol};
use reveille_dns::dnstap::{Addresses, Collector, CollectorStatus, DnstapIn, DnstapOut, SourceStatus};

/// `hello` has counter 1, `awake` 2, `slow` 3; `www` is an alias of `hello`.
fn view() -> View {
    let of = |counter, service| Arc::new(ServiceView { counter, ..service });
    let mut slow = service("slow.vm.test", 3);
    slow.answer = AnswerPolicy::Hold;
    slow.hold_ms_max = 60_000;
    let services =
        [of(1, active(service("hello.vm.test", 1))), of(2, active(service("awake.vm.test", 2))), of(3, slow)];
    View::new(1, Zones::new([Arc::new(zone())]), services, View::default_monitors())
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_ms(u64::try_from(now.as_millis()).unwrap())
}

/// A collector on a unix socket and over TCP, by this host's clock.
fn collector(dir: &Path) -> (Collector, Collectors) {
    let config = DnstapIn {
        unix: dir.join("in.sock"),
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        ..DnstapIn::default()
    };
    let collector =
        Collector::start(&config, Arc::new(ArcSwap::from_pointee(view())), Arc::new(now)).unwrap();
    let to = Collectors { unix: config.unix, tcp: collector.tcp_addresses()[0] };
    (collector, to)
}

fn until<T>(what: &str, of: impl Fn() -> T, condition: impl Fn(&T) -> bool) -> T
where
    T: std::fmt::Debug,
{
    let begun = Instant::now();
    loop {
        let status = of();
        if condition(&status) {
            return status;
        }
        assert!(begun.elapsed() < WAIT_MAX, "never came: {what}; {status:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn source(status: &CollectorStatus, name: &str) -> SourceStatus {
    status.sources.iter().find(|source| source.name == name).cloned().unwrap_or_default()
}

fn until_counted(collector: &Collector, program: Program, count: u64, sender: &Sender) {
    let begun = Instant::now();
    loop {
        let status = collector.status();
        let counted = source(&status, program.identity()).counted;
        if counted >= count {
            assert_eq!(counted, count, "{status:?}");
            return;
        }
        assert!(begun.elapsed() < WAIT_MAX, "{count} of {program:?}; {status:?} {}", sender.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks a server for each name so many times, no faster than its queue for frames (512, of Knot and BIND) is emptied, until
/// all of it is counted, and nothing else.
fn ask_in_peace(
    collector: &Collector,
    program: Program,
    sender: &Sender,
    (address, names): (SocketAddr, &[&str]),
    times: u16,
) {
    const AT_ONCE: u16 = 25;
    let mut count = source(&collector.status(), program.identity()).counted;
    for _ in 0..times / AT_ONCE {
        ask_many(address, names, AT_ONCE);
        count += names.len() as u64 * u64::from(AT_ONCE);
        until_counted(collector, program, count, sender);
    }
}

/// What is there of all seconds, by sender and counter.
fn taken(collector: &Collector, into: &mut BTreeMap<(String, u32), u32>) {
    let names: Vec<_> = collector.status().sources.into_iter().map(|source| source.name).collect();
    for count in collector.take_seconds(u32::MAX) {
        *into.entry((names[count.source.index()].clone(), count.counter)).or_default() += count.queries;
    }
}

#[test]
fn what_real_servers_are_asked_is_counted_by_server_name_and_second() {
    const TIMES: u16 = 50;
    let dir = tempfile::tempdir().unwrap();
    let (collector, to) = collector(dir.path());
    let mut counts = BTreeMap::new();
    let began_s = u32::try_from(now().as_ms() / 1_000).unwrap();
    let mut knot = Sender::start(Program::Knot, &to);
    let bind = Sender::start(Program::Bind, &to);
    // They lose frames as long as they have no connection.
    let open = || collector.status().open;
    until("connections", open, |open| *open == 2);
    for (program, address, sender) in
        [(Program::Knot, knot.address, &knot), (Program::Bind, bind.address, &bind)]
    {
        ask_many(address, &["www.example"], 10);
        let names = ["hello.vm.test", "www.vm.test", "awake.vm.test", "none.vm.test"];
        ask_in_peace(&collector, program, sender, (address, &names), TIMES);
        let found = source(&collector.status(), program.identity());
        assert_eq!((found.unreadable, found.clock_off), (0, 0));
        assert!(found.outside >= 10, "{found:?}");
    }
    let resolver = Program::Unbound(knot.address);
    let unbound = Sender::start(resolver, &to);
    until("a connection", open, |open| *open == 3);
    let names = ["hello.vm.test", "awake.vm.test"];
    ask_in_peace(&collector, resolver, &unbound, (unbound.address, &names), TIMES);
    taken(&collector, &mut counts);
    let of = |server: &str, counter| counts.get(&(server.to_owned(), counter)).copied().unwrap_or(0);
    let times = u32::from(TIMES);
    for server in ["knot.test", "bind.test"] {
        // What a resolver asked Knot is in there as well: a question or two for each name.
        let few = if server == "knot.test" { 20 } else { 0 };
        assert_eq!(of(server, 0), times, "{server}");
        assert!((2 * times..=2 * times + few).contains(&of(server, 1)), "{server}: {counts:?}");
        assert!((times..=times + few).contains(&of(server, 2)), "{server}: {counts:?}");
    }
    // Its own questions to Knot are not counted again.
    assert_eq!((of("unbound.test", 1), of("unbound.test", 2)), (times, times));
    assert!(source(&collector.status(), "unbound.test").other_types > 2 * u64::from(TIMES));
    assert_eq!(collector.service(2).queries, u64::from(3 * times) + u64::from(of("knot.test", 2) - times));

    // One that is killed disturbs nobody, and comes back.
    let before = source(&collector.status(), "knot.test").counted;
    knot.restart();
    ask_in_peace(&collector, Program::Bind, &bind, (bind.address, &["hello.vm.test"]), TIMES);
    until("knot", open, |open| *open == 3);
    ask_in_peace(&collector, Program::Knot, &knot, (knot.address, &["hello.vm.test"]), TIMES);
    let after = source(&collector.status(), "knot.test").counted;
    assert_eq!(after, before + u64::from(TIMES));
    let ends_s = u32::try_from(now().as_ms() / 1_000).unwrap();
    let late = collector.take_seconds(u32::MAX);
    assert!(late.iter().all(|count| (began_s..=ends_s).contains(&count.at_s)), "{late:?}");
    let status = collector.status();
    assert_eq!((status.broken, status.refused, status.dropped), (0, 0, 0), "{status:?}");
}

fn telling(to: String, addresses: Addresses, responses: bool) -> World {
    let dnstap = DnstapOut { to, addresses, responses, identity: "own.test".into(), ..DnstapOut::default() };
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    World::serving(view(), &DnsConfig { listen, udp_threads: 2, dnstap, ..DnsConfig::default() })
}

/// Asks over UDP and TCP, and has one question held; gives how many that were.
fn ask_all_ways(world: &World) -> usize {
    let connected = |world: &World| world.server.dnstap().unwrap().is_connected;
    world.until("a collector", connected);
    ask_many(world.address(), &["hello.vm.test", "none.vm.test"], 150);
    for _ in 0..5 {
        world.kdig(&["+tcp", "awake.vm.test", "A"]);
        world.kdig(&["+subnet=192.0.2.77/32", "awake.vm.test", "A"]);
    }
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    socket.send_to(&question(9, "slow.vm.test"), world.address()).unwrap();
    world.until("the question is held", |world| world.server.counts().held == 1);
    world.publish(ServiceView { counter: 3, ..active(service("slow.vm.test", 3)) });
    assert!(socket.recv(&mut [0; 512]).unwrap() > 30);
    311
}

/// The messages in a file.
fn messages(file: &Path, mut each: impl FnMut(&Message<'_>)) {
    let mut file = DnstapFile::new(std::fs::File::open(file).unwrap());
    while let Some(entry) = file.entry().unwrap() {
        let said = entry.message.unwrap();
        assert_eq!(said.identity, b"own.test");
        each(&said.message);
    }
}

#[test]
fn what_this_server_is_asked_and_answers_is_read_by_real_programs() {
    let tcp = free_address();
    for is_unix in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let unix = dir.path().join("sock");
        let (ip, port) = (tcp.ip().to_string(), tcp.port().to_string());
        let listen = if is_unix { vec!["-u", unix.to_str().unwrap()] } else { vec!["-a", &ip, "-p", &port] };
        let capture = Capture::start(dir.path(), &listen);
        let to = if is_unix { format!("unix:{}", unix.display()) } else { format!("tcp:{tcp}") };
        let world = telling(to, Addresses::Full, true);
        let asked = ask_all_ways(&world);
        world.until("all is sent", |world| world.server.dnstap().unwrap().sent == 2 * asked as u64);
        drop(world);
        let file = capture.finish();
        let dump = Command::new("fstrm_dump").arg(&file).output().unwrap();
        let frames = String::from_utf8_lossy(&dump.stderr).matches("Data frame (").count()
            + String::from_utf8_lossy(&dump.stdout).matches("Data frame (").count();
        assert_eq!(frames, 2 * asked);
        let mut seen: BTreeMap<(MessageType, bool), usize> = BTreeMap::new();
        messages(&file, |message| {
            assert!(message.query_address.unwrap().is_loopback() && message.query_port != Some(0));
            let is_udp = message.protocol == Some(SocketProtocol::Udp);
            let time = message.query_time.or(message.response_time);
            assert_eq!(time, Some(NOW));
            *seen.entry((message.kind.unwrap(), is_udp)).or_default() += 1;
        });
        let (query, response) = (MessageType::AuthQuery, MessageType::AuthResponse);
        let expected = [
            ((query, false), 5),
            ((query, true), asked - 5),
            ((response, false), 5),
            ((response, true), asked - 5),
        ];
        assert_eq!(seen, BTreeMap::from(expected));
        let kdig = Command::new("kdig").args(["-G", file.to_str().unwrap(), "+qr"]).output().unwrap();
        let text = String::from_utf8_lossy(&kdig.stdout);
        assert!(text.matches(";; hello.vm.test.").count() >= 150, "{text}");
        assert!(text.matches("status: NXDOMAIN").count() >= 150);
    }
}

#[test]
fn a_file_has_what_was_asked_and_no_more_of_clients_than_their_networks() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.fstrm");
    let world = telling(format!("file:{}", file.display()), Addresses::Network, false);
    let asked = ask_all_ways(&world);
    drop(world);
    let mut seen = 0;
    messages(&file, |message| {
        assert_eq!(message.kind, Some(MessageType::AuthQuery));
        assert_eq!((message.query_address, message.query_port), (Some([127, 0, 0, 0].into()), None));
        assert!(!message.query_message.is_empty());
        seen += 1;
    });
    assert_eq!(seen, asked);
    // The client subnet of five questions is there, without its last bits.
    let bytes = std::fs::read(&file).unwrap();
    let count = |subnet: &[u8]| bytes.windows(subnet.len()).filter(|window| *window == subnet).count();
    assert_eq!((count(&[0, 1, 32, 0, 192, 0, 2, 77]), count(&[0, 1, 32, 0, 192, 0, 2, 0])), (0, 5));
}

#[test]
fn one_server_of_this_kind_tells_another() {
    let dir = tempfile::tempdir().unwrap();
    // The server's clock stands at another time.
    let config = DnstapIn { unix: dir.path().join("in.sock"), ..DnstapIn::default() };
    let view = Arc::new(ArcSwap::from_pointee(view()));
    let collector = Collector::start(&config, view, Arc::new(|| NOW)).unwrap();
    let world = telling(format!("unix:{}", config.unix.display()), Addresses::Network, true);
    let asked = ask_all_ways(&world);
    let has_all = |status: &CollectorStatus| source(status, "own.test").counted >= asked as u64;
    let status = until("all questions", || collector.status(), has_all);
    assert_eq!(source(&status, "own.test").counted, asked as u64);
    let by_counter: BTreeMap<u32, u32> =
        collector.take_seconds(u32::MAX).iter().map(|count| (count.counter, count.queries)).collect();
    assert_eq!(by_counter, BTreeMap::from([(0, 150), (1, 150), (2, 10), (3, 1)]));
    drop(world);
    let status = until("the end", || collector.status(), |status| status.open == 0);
    assert_eq!(source(&status, "own.test").other_types, asked as u64, "the answers");
    assert_eq!((status.broken, status.last_fault), (0, None));
}

#[test]
fn answering_goes_on_while_the_collector_is_dead_or_does_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let world = telling(format!("unix:{}", path.display()), Addresses::Full, true);
    ask_many(world.address(), &["hello.vm.test"], 10_000);
    let status = world.server.dnstap().unwrap();
    assert_eq!((status.sent, status.dropped, status.is_connected), (0, 20_000, false));
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let accepted = || listener.accept().map(|(stream, _)| stream);
    let mut collector = until("the server", accepted, Result::is_ok).unwrap();
    collector.set_nonblocking(false).unwrap();
    collector.set_read_timeout(Some(WAIT_MAX)).unwrap();
    // Takes READY, and then nothing any more.
    collector.read_exact(&mut [0; 42]).unwrap();
    let mut accept = Vec::new();
    put_control(ControlType::Accept, &mut accept);
    collector.write_all(&accept).unwrap();
    world.until("a connection", |world| world.server.dnstap().unwrap().is_connected);
    let mut rounds = 0;
    while world.server.dnstap().unwrap().dropped == 20_000 {
        ask_many(world.address(), &["hello.vm.test"], 10_000);
        rounds += 1;
        assert!(rounds < 100, "{:?}", world.server.dnstap());
    }
    ask_many(world.address(), &["hello.vm.test"], 10_000);
    // The server stops in time all the same.
    let begun = Instant::now();
    drop(world);
    assert!(begun.elapsed() < WAIT_MAX);
}
