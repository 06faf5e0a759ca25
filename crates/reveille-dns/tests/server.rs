//! The server under many questions, held questions, slow clients, and taken addresses.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use common::{NOW, WAIT_MAX, WAKES_MAX, World, active, name, refused, service, zone};
use reveille_core::answer::{Rcode, Record, ServiceView, View, Zone, Zones, rdata};
use reveille_core::model::AnswerPolicy;
use reveille_dns::limit::{CookieStatus, Counter, Gate, GateConfig, Kind, RateVerdict};
use reveille_dns::{BindError, DnsConfig, DnsServer};
use tokio::sync::{mpsc, watch};

fn question(id: u16, qname: &str) -> Vec<u8> {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet[..2].copy_from_slice(&id.to_be_bytes());
    packet.extend(name(qname).as_wire());
    packet.extend([0, 1, 0, 1]);
    packet
}

fn id_of(answer: &[u8]) -> u16 {
    u16::from_be_bytes([answer[0], answer[1]])
}

fn rcode_of(answer: &[u8]) -> u16 {
    u16::from(answer[3] & 0xf)
}

fn udp(world: &World) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    socket.connect(world.address()).unwrap();
    socket
}

fn tcp(world: &World) -> TcpStream {
    let stream = TcpStream::connect(world.address()).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream
}

fn send_framed(stream: &mut TcpStream, packet: &[u8]) {
    let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], packet].concat()).unwrap();
}

fn read_framed(stream: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    answer
}

#[test]
fn many_clients_at_once_are_each_answered_with_their_own() {
    const CLIENTS: u16 = 16;
    const QUESTIONS: u16 = 500;
    let mut world = World::new();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let socket = udp(&world);
            scope.spawn(move || {
                let mut answer = [0; 512];
                for n in 0..QUESTIONS {
                    let id = client << 11 | n;
                    socket.send(&question(id, "hello.vm.test")).unwrap();
                    let length = socket.recv(&mut answer).unwrap();
                    assert_eq!((id_of(&answer[..length]), rcode_of(&answer[..length])), (id, 0));
                }
            });
        }
    });
    let counts = world.server.counts();
    let all = u64::from(CLIENTS * QUESTIONS);
    assert_eq!((counts.queries, counts.of(Rcode::NoError)), (all, all));
    // The slow loop is told, but a flood for one service does not fill its channel.
    assert_eq!(counts.wakes_asked + counts.wakes_coalesced + counts.wakes_dropped, all);
    assert!((1..=128).contains(&counts.wakes_asked), "{counts:?}");
    let mut received = 0;
    while let Ok(ask) = world.wakes.try_recv() {
        assert_eq!(ask.service, name("hello.vm.test"));
        received += 1;
    }
    assert_eq!(received, counts.wakes_asked);
}

/// The question with EDNS of 1,232 bytes and the client subnet 192.0.2.0/24.
fn with_subnet(mut packet: Vec<u8>) -> Vec<u8> {
    packet[11] = 1;
    packet.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 11, 0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
    packet
}

/// The answers to a question over UDP and TCP.
fn both_ways(world: &World, packet: &[u8]) -> [Vec<u8>; 2] {
    let (socket, mut stream) = (udp(world), tcp(world));
    socket.send(packet).unwrap();
    let mut answer = vec![0; 4_096];
    let length = socket.recv(&mut answer).unwrap();
    answer.truncate(length);
    send_framed(&mut stream, packet);
    [answer, read_framed(&mut stream)]
}

#[test]
fn a_service_is_asked_for_by_whatever_name_leads_to_it_and_on_whose_behalf_is_seen() {
    // `www` is an alias of `hello`.
    let hello = ServiceView { counter: 1, ..active(service("hello.vm.test", 1)) };
    let any = ServiceView { counter: 2, ..service("*.apps.vm.test", 2) };
    let services = [hello, any].map(Arc::new);
    let view = View::new(1, Zones::new([Arc::new(zone())]), services, View::default_monitors());
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let mut world = World::serving(view, &DnsConfig { listen, udp_threads: 1, ..DnsConfig::default() });
    let asked = ["hello.vm.test", "www.vm.test", "one.apps.vm.test", "none.vm.test", "big.vm.test"];
    for qname in asked {
        for answer in both_ways(&world, &with_subnet(question(7, qname))) {
            assert_eq!(rcode_of(&answer), if qname == "none.vm.test" { 3 } else { 0 }, "{qname}");
        }
    }
    let counters = world.server.counters();
    assert_eq!([0, 1, 2].map(|counter| counters.sum(counter)), [4, 4, 2]);
    let (mut seen, mut rings) = (Vec::new(), world.server.take_rings());
    rings.iter_mut().for_each(|ring| ring.drain(100, |observed| seen.push(observed)));
    let subnets = seen.iter().map(|observed| observed.subnet.map(|subnet| subnet.to_string()));
    assert_eq!(subnets.flatten().collect::<Vec<_>>(), vec!["192.0.2.0/24"; 2 * asked.len()]);
    let of = |counter| seen.iter().filter(|observed| observed.counter == counter).count();
    assert_eq!([0, 1, 2].map(of), [4, 4, 2]);
}

#[test]
fn long_names_are_denied_in_full_to_who_takes_as_much_and_charged_once() {
    let long = |label: &str| name(&format!("{}example", format!("{}.", label.repeat(60)).repeat(3)));
    let apex = name("vm.test");
    let soa = rdata::soa(&long("a"), &long("b"), [7, 3_600, 600, 604_800, 30]);
    let record = |rtype, data| Record { owner: apex.clone(), rtype, ttl: 300, data };
    let records = [record(rdata::SOA, soa), record(rdata::NS, long("a").as_wire().to_vec())];
    let zone = Zone::new(apex.clone(), &records).unwrap();
    let view = View::new(1, Zones::new([Arc::new(zone)]), [], View::default_monitors());
    let gate = Arc::new(Gate::new(&GateConfig::default(), [&apex], NOW).unwrap());
    let config = DnsConfig {
        listen: vec![SocketAddr::from(([127, 0, 0, 53], 0))],
        udp_threads: 1,
        gate: Some(Arc::clone(&gate)),
        ..DnsConfig::default()
    };
    let world = World::serving(view, &config);
    let qname = format!("{}.vm.test", ["c".repeat(60), "d".repeat(60), "e".repeat(60)].join("."));
    let [denied, _] = both_ways(&world, &with_subnet(question(7, &qname)));
    assert_eq!((rcode_of(&denied), denied[2] & 2, denied[9]), (3, 0, 1), "NXDOMAIN in full, with the SOA");
    assert!((513..=1_232).contains(&denied.len()), "{}", denied.len());
    let [truncated, _] = both_ways(&world, &question(7, &qname));
    assert_eq!((rcode_of(&truncated), truncated[2] & 2, truncated[9]), (3, 2, 0), "more than 512 bytes");
    let counts = gate.counts();
    assert_eq!(counts.of(Counter::Rate(Kind::NxDomain, RateVerdict::Pass)), 2);
    assert_eq!(counts.of(Counter::Cookie(CookieStatus::None)), 4);
    assert_eq!(world.server.counters().sum(0), 4);
}

#[test]
fn a_full_channel_of_wakes_delays_no_answer() {
    let services = (0..2_000u16).map(|n| Arc::new(service(&format!("s{n}.vm.test"), 1)));
    let zones = Zones::new([Arc::new(zone())]);
    let view = View::new(1, zones, services, View::default_monitors());
    let config = DnsConfig {
        listen: vec![SocketAddr::from(([127, 0, 0, 53], 0))],
        udp_threads: 1,
        ..DnsConfig::default()
    };
    let world = World::serving(view, &config);
    let socket = udp(&world);
    let mut answer = [0; 512];
    for n in 0..2_000u16 {
        socket.send(&question(n, &format!("s{n}.vm.test"))).unwrap();
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(id_of(&answer[..length]), n);
    }
    let counts = world.server.counts();
    let room = u64::try_from(WAKES_MAX).unwrap();
    assert_eq!((counts.wakes_asked, counts.wakes_dropped), (room, 2_000 - room));
}

#[test]
fn a_held_question_is_answered_when_the_service_is_ready() {
    let mut world = World::new();
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    // Longer than any test: only the view can end it.
    slow.hold_ms_max = 3_600_000;
    world.publish(slow.clone());
    let datagrams = udp(&world);
    let mut stream = tcp(&world);
    datagrams.send(&question(1, "slow.vm.test")).unwrap();
    send_framed(&mut stream, &question(2, "slow.vm.test"));
    world.until("both are held", |world| world.server.counts().held == 2);
    assert_eq!(world.wakes.blocking_recv().unwrap().service, name("slow.vm.test"));
    // A view in which it is not ready yet, and an answer for something else, which does not wait behind it.
    world.publish(active(service("hello.vm.test", 1)));
    send_framed(&mut stream, &question(3, "none.vm.test"));
    assert_eq!(id_of(&read_framed(&mut stream)), 3);
    datagrams.set_nonblocking(true).unwrap();
    let mut answer = [0; 512];
    assert!(datagrams.recv(&mut answer).is_err(), "answered before it was ready");
    datagrams.set_nonblocking(false).unwrap();

    let mut ready = active(slow);
    ready.ttl_s = 77;
    world.publish(ready);
    let length = datagrams.recv(&mut answer).unwrap();
    let over_udp = answer[..length].to_vec();
    let over_tcp = read_framed(&mut stream);
    for (answer, id) in [(over_udp, 1), (over_tcp, 2)] {
        assert_eq!((id_of(&answer), rcode_of(&answer), answer[7]), (id, 0, 1));
        assert!(
            answer.ends_with(&[0, 0, 0, 77, 0, 4, 127, 64, 0, 5]),
            "the answer of the new view: {answer:?}"
        );
    }
    // One ask each: looking again at new views asks for nothing.
    assert_eq!(world.server.counts().wakes_asked, 2);
}

#[test]
fn a_held_question_ends_with_its_time_or_with_a_refusal() {
    let world = World::new();
    let socket = udp(&world);
    let mut answer = [0; 512];
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    slow.hold_ms_max = 20;
    world.publish(slow.clone());
    socket.send(&question(1, "slow.vm.test")).unwrap();
    let length = socket.recv(&mut answer).unwrap();
    assert!(answer[..length].ends_with(&[127, 64, 0, 5]), "as immediate");

    slow.hold_ms_max = 3_600_000;
    world.publish(slow.clone());
    socket.send(&question(2, "slow.vm.test")).unwrap();
    world.until("it is held", |world| world.server.counts().held == 2);
    world.publish(refused(slow));
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!((id_of(&answer[..length]), rcode_of(&answer[..length])), (2, Rcode::ServFail.number()));
}

#[test]
fn held_questions_are_answered_at_a_shutdown() {
    let world = World::new();
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    slow.hold_ms_max = 3_600_000;
    world.publish(slow);
    let socket = udp(&world);
    let mut stream = tcp(&world);
    socket.send(&question(1, "slow.vm.test")).unwrap();
    send_framed(&mut stream, &question(2, "slow.vm.test"));
    world.until("both are held", |world| world.server.counts().held == 2);
    let address = world.address();
    world.runtime.block_on(world.server.shutdown());
    assert_eq!(id_of(&read_framed(&mut stream)), 2);
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!(id_of(&answer[..length]), 1);
    // Everything is closed: the address is free again, over both.
    UdpSocket::bind(address).unwrap();
    std::net::TcpListener::bind(address).unwrap();
}

#[test]
fn pieces_of_questions_are_put_together_and_junk_is_answered() {
    let world = World::new();
    let mut stream = tcp(&world);
    stream.set_nodelay(true).unwrap();
    let packet = question(1, "none.vm.test");
    let framed = [&[0, u8::try_from(packet.len()).unwrap()][..], &packet].concat();
    for piece in framed.chunks(5) {
        stream.write_all(piece).unwrap();
    }
    assert_eq!(rcode_of(&read_framed(&mut stream)), 3);
    // Several in one segment, one of them malformed, one that is met with silence.
    let mut response = packet.clone();
    response[2] |= 0x80;
    for message in [&packet[..20], &[][..], &response, &packet] {
        send_framed(&mut stream, message);
    }
    assert_eq!(rcode_of(&read_framed(&mut stream)), 1);
    assert_eq!(rcode_of(&read_framed(&mut stream)), 3);
    // A client that closes its half still gets its answers.
    send_framed(&mut stream, &packet);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rcode_of(&read_framed(&mut stream)), 3);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    let counts = world.server.counts();
    assert_eq!((counts.queries, counts.silent, counts.of(Rcode::FormErr)), (6, 2, 1));
}

#[test]
fn a_client_that_opens_too_many_connections_is_turned_away_alone() {
    let world = World::new();
    let mut streams: Vec<TcpStream> = (0..300).map(|_| tcp(&world)).collect();
    world.until("all are taken or turned away", |world| {
        let counts = world.server.counts();
        counts.connections + counts.connections_refused == 300
    });
    assert_eq!(world.server.counts().connections_refused, 300 - 256);
    // Another address of the host is another client.
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    other.bind(&SocketAddr::from(([127, 0, 0, 77], 0)).into()).unwrap();
    other.connect(&world.address().into()).unwrap();
    let mut other = TcpStream::from(other);
    send_framed(&mut other, &question(1, "none.vm.test"));
    assert_eq!(rcode_of(&read_framed(&mut other)), 3);
    // Closed connections make room.
    streams.clear();
    world.until("there is room again", |world| {
        let mut stream = tcp(world);
        send_framed(&mut stream, &question(1, "none.vm.test"));
        stream.read(&mut [0; 1]).is_ok_and(|length| length > 0)
    });
}

fn bind(listen: &[SocketAddr]) -> Result<DnsServer, BindError> {
    let (_, seen) = watch::channel(1);
    let (wakes, _) = mpsc::channel(1);
    let config = DnsConfig { listen: listen.to_vec(), udp_threads: 1, ..DnsConfig::default() };
    DnsServer::bind(&config, Arc::new(ArcSwap::from_pointee(View::default())), seen, wakes, Arc::new(|| NOW))
}

#[test]
fn an_address_that_cannot_be_had_is_explained() {
    let world = World::new();
    let _inside = world.runtime.enter();
    let own = format!("process {}", std::process::id());
    let text = |listen: &[SocketAddr]| bind(listen).unwrap_err().to_string();

    let taken = text(&[world.address()]);
    assert!(taken.contains("is taken by") && taken.contains(&own) && taken.contains("ss -lnp"), "{taken}");
    // Over UDP alone, by somebody who would share the port (SO_REUSEPORT): still taken.
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    other.set_reuse_port(true).unwrap();
    other.bind(&SocketAddr::from(([127, 0, 0, 54], 0)).into()).unwrap();
    let address = other.local_addr().unwrap().as_socket().unwrap();
    let taken = text(&[address]);
    assert!(taken.contains("(UDP) is taken by") && taken.contains(&own), "{taken}");

    assert!(text(&["192.0.2.1:5300".parse().unwrap()]).contains("does not have the address"));
    assert!(text(&[]).contains("dns.listen"));
    // What was opened before the fault is closed again.
    let free = SocketAddr::from(([127, 0, 0, 55], address.port()));
    assert!(matches!(bind(&[free, address]), Err(BindError::Taken { .. })));
    drop(bind(&[free]).unwrap());
}

#[test]
fn ipv6_is_served_where_the_host_has_it() {
    let Ok(probe) = UdpSocket::bind("[::1]:0") else { return };
    drop(probe);
    let config =
        DnsConfig { listen: vec!["[::1]:0".parse().unwrap()], udp_threads: 1, ..DnsConfig::default() };
    let zones = Zones::new([Arc::new(zone())]);
    let view = View::new(1, zones, [Arc::new(service("hello.vm.test", 1))], View::default_monitors());
    let world = World::serving(view, &config);
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    socket.connect(world.address()).unwrap();
    socket.send(&question(1, "hello.vm.test")).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    assert!(answer[..length].ends_with(&[127, 64, 0, 1]));
}

#[test]
fn a_dropped_server_leaves_nothing_behind() {
    let world = World::new();
    let address = world.address();
    drop(world);
    UdpSocket::bind(address).unwrap();
    let start = std::time::Instant::now();
    while std::net::TcpListener::bind(address).is_err() {
        assert!(start.elapsed() < WAIT_MAX, "the TCP listener is still there");
        thread::sleep(Duration::from_millis(2));
    }
}
