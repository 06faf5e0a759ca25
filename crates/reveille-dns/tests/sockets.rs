//! Sockets on every address of the host, and senders to whom no answer may go.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;

use common::{WAIT_MAX, World, active, name, service};
use reveille_core::answer::{Rcode, View, Zones};
use reveille_core::model::AnswerPolicy;
use reveille_dns::{BindError, DnsConfig, DnsServer};
use socket2::{Domain, Protocol, Socket, Type};

fn question(qname: &str) -> Vec<u8> {
    let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.extend(name(qname).as_wire());
    packet.extend([0, 1, 0, 1]);
    packet
}

/// A server on these addresses, with a service that runs and one whose questions are held.
fn world(listen: &[&str]) -> World {
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    slow.hold_ms_max = 20;
    let services = [active(service("awake.vm.test", 2)), slow].map(Arc::new);
    let view = View::new(1, Zones::new([Arc::new(common::zone())]), services, View::default_monitors());
    let listen = listen.iter().map(|address| address.parse().unwrap()).collect();
    World::serving(view, &DnsConfig { listen, udp_threads: 2, ..DnsConfig::default() })
}

/// Asks from a socket that takes answers from the asked address alone.
fn ask(own: &str, server: SocketAddr, qname: &str) -> Vec<u8> {
    let socket = UdpSocket::bind((own, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    socket.send(&question(qname)).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{qname} at {server}: {error}"));
    answer[..length].to_vec()
}

#[test]
fn on_every_address_answers_leave_from_the_one_that_was_asked() {
    let world = world(&["0.0.0.0:0"]);
    let port = world.address().port();
    for address in ["127.0.0.1", "127.0.0.5", "127.7.7.7"] {
        let server = SocketAddr::new(address.parse().unwrap(), port);
        for own in ["127.0.0.1", "127.0.0.9"] {
            assert!(ask(own, server, "awake.vm.test").ends_with(&[127, 64, 0, 2]));
            // By the general way, and later.
            assert_eq!(ask(own, server, "big.vm.test")[3] & 0xf, 0);
            assert!(ask(own, server, "slow.vm.test").ends_with(&[127, 64, 0, 5]));
        }
        for transport in ["+notcp", "+tcp"] {
            let arguments = [&format!("@{address}"), "-p", &port.to_string(), "awake.vm.test", transport];
            let output = Command::new("dig").args(arguments).args(["+short", "+tries=1"]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), "127.64.0.2\n", "{arguments:?}");
        }
    }
    // One address beside it, by another server, would take some of the questions: it is refused.
    let _inside = world.runtime.enter();
    let (_, generation) = tokio::sync::watch::channel(1);
    let (wakes, _) = tokio::sync::mpsc::channel(1);
    let listen = vec![SocketAddr::from(([127, 0, 0, 5], port))];
    let config = DnsConfig { listen, ..DnsConfig::default() };
    let shared = Arc::clone(&world.shared);
    let second = DnsServer::bind(&config, shared, generation, wakes, Arc::new(|| common::NOW));
    assert!(matches!(second, Err(BindError::Taken { .. })), "{second:?}");
}

#[test]
fn all_of_ipv6_is_ipv6_alone() {
    if UdpSocket::bind("[::1]:0").is_err() {
        eprintln!("no IPv6 here");
        return;
    }
    let world = world(&["[::]:0"]);
    let port = world.address().port();
    let own = SocketAddr::new("::1".parse().unwrap(), port);
    for qname in ["awake.vm.test", "slow.vm.test"] {
        assert_eq!(ask("::1", own, qname)[7], 1, "{qname}");
    }
    // The same port is free over IPv4.
    drop(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    drop(std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
}

/// Sends a datagram from a port that is not ours to have; `None` where the host does not let us.
fn forge(from: (Ipv4Addr, u16), to: SocketAddr, message: &[u8]) -> Option<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).ok()?;
    socket.bind(&SocketAddr::from((from.0, 0)).into()).unwrap();
    let length = u16::try_from(8 + message.len()).unwrap();
    let head = [from.1, to.port(), length, 0].map(u16::to_be_bytes);
    socket.send_to(&[head.as_flattened(), message].concat(), &to.into()).unwrap();
    Some(())
}

#[test]
fn a_forged_sender_gets_no_answer_that_could_come_back() {
    for listen in ["127.0.0.53:0", "0.0.0.0:0"] {
        let world = world(&[listen]);
        let own = Ipv4Addr::new(127, 0, 0, 53);
        let server = SocketAddr::new(own.into(), world.address().port());
        let message = question("awake.vm.test");
        if forge((Ipv4Addr::LOCALHOST, 0), server, &message).is_none() {
            eprintln!("no raw sockets here");
            return;
        }
        forge((own, server.port()), server, &message).unwrap();
        // An answer from anywhere.
        let mut answer = message.clone();
        answer[2] |= 0x80;
        forge((Ipv4Addr::LOCALHOST, 53), server, &answer).unwrap();
        world.until("all three", |world| world.server.counts().queries == 3);
        let counts = world.server.counts();
        assert_eq!((counts.silent, counts.socket_errors), (3, 0), "{listen}");
        // The port alone does not make it a loop, nor a port that others would be sent to.
        forge((Ipv4Addr::new(127, 0, 0, 54), server.port()), server, &message).unwrap();
        forge((Ipv4Addr::LOCALHOST, 53), server, &message).unwrap();
        world.until("two answers", |world| world.server.counts().of(Rcode::NoError) == 2);
    }
}
