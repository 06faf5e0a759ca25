//! UDP: datagrams wait in order while the service sleeps, and each client has its session.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{Bench, address, binding, service, within};
use reveille_core::model::{Gate, Timestamp};
use reveille_net::{Now, RelayEvent, RelayLimits};
use tokio::net::UdpSocket;

async fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket
}

async fn receive(socket: &UdpSocket) -> String {
    let mut buffer = vec![0; 65_536];
    let length = within(socket.recv(&mut buffer)).await.unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

async fn receive_from(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = within(socket.recv_from(&mut buffer)).await.unwrap();
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), from)
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_of_several_clients_wait_in_order_and_are_answered() {
    let mut bench = Bench::new(&["udp/7007"]).await;
    let mut clients = Vec::new();
    for c in 0..5 {
        let socket = client(bench.stable()).await;
        for n in 0..20 {
            socket.send(format!("{c} {n}").as_bytes()).await.unwrap();
        }
        clients.push(socket);
    }
    bench.until("the datagrams", |traffic| traffic.held_datagrams == 100).await;
    assert!(matches!(bench.events.try_recv(), Some(RelayEvent::Wanted { port, .. }) if port.number == 7007));
    assert_eq!(bench.events.try_recv(), None, "one Wanted is enough");

    let backend = UdpSocket::bind(bench.backend()).await.unwrap();
    bench.open();
    let mut seen = [(0, None); 5];
    for _ in 0..100 {
        let (text, from) = receive_from(&backend).await;
        let (c, n) = text.split_once(' ').unwrap();
        let (next, session) = &mut seen[c.parse::<usize>().unwrap()];
        assert_eq!(n.parse::<i32>().unwrap(), *next, "in order");
        *next += 1;
        assert_eq!(*session.get_or_insert(from), from, "one source per client");
        assert_eq!(from.ip(), "127.0.0.1".parse::<IpAddr>().unwrap());
        backend.send_to(format!("re {n}").as_bytes(), from).await.unwrap();
    }
    for socket in &clients {
        for n in 0..20 {
            assert_eq!(receive(socket).await, format!("re {n}"));
        }
    }
    let traffic = bench.traffic();
    assert_eq!((traffic.datagrams_in, traffic.datagrams_out, traffic.held_datagrams), (100, 100, 0));
    assert!(matches!(bench.event().await, RelayEvent::FirstByte { .. }));
}

#[tokio::test]
async fn an_empty_and_the_longest_datagram_pass_both_ways() {
    let bench = Bench::new(&["udp/7007"]).await;
    let backend = UdpSocket::bind(bench.backend()).await.unwrap();
    bench.open();
    let socket = client(bench.stable()).await;
    for text in ["", &"x".repeat(65_507)] {
        socket.send(text.as_bytes()).await.unwrap();
        let (heard, from) = receive_from(&backend).await;
        assert!(heard == text);
        backend.send_to(text.as_bytes(), from).await.unwrap();
        assert!(receive(&socket).await == text);
    }
}

#[tokio::test]
async fn replies_come_from_the_address_that_was_asked() {
    let mut two = binding(&["udp/7007"]);
    two.stable.push(IpAddr::V4(address()));
    let bench = Bench::with(two, RelayLimits::default()).await;
    let backend = UdpSocket::bind(bench.backend()).await.unwrap();
    bench.open();
    // One socket that asks both: only the source of the replies tells them apart.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for stable in bench.binding.stable.clone() {
        let stable = SocketAddr::new(stable, 7007);
        socket.send_to(stable.to_string().as_bytes(), stable).await.unwrap();
        let (text, from) = receive_from(&backend).await;
        backend.send_to(text.as_bytes(), from).await.unwrap();
        assert_eq!(receive_from(&socket).await, (stable.to_string(), stable));
    }
}

#[tokio::test]
async fn over_the_limit_the_oldest_datagrams_of_a_client_are_dropped_and_counted() {
    let limits = RelayLimits { client_datagrams_max: 4, ..RelayLimits::default() };
    let bench = Bench::with(binding(&["udp/7007"]), limits).await;
    let (greedy, modest) = (client(bench.stable()).await, client(bench.stable()).await);
    modest.send(b"modest").await.unwrap();
    for n in 0..10 {
        greedy.send(format!("{n}").as_bytes()).await.unwrap();
    }
    let wanted = "four of the greedy and one of the modest";
    bench.until(wanted, |t| (t.held_datagrams, t.datagrams_over_limit) == (5, 6)).await;
    let backend = UdpSocket::bind(bench.backend()).await.unwrap();
    bench.open();
    for text in ["modest", "6", "7", "8", "9"] {
        assert_eq!(receive(&backend).await, text);
    }
}

#[tokio::test]
async fn a_refusing_gate_drops_what_waits_and_what_comes() {
    let bench = Bench::new(&["udp/7007"]).await;
    let socket = client(bench.stable()).await;
    socket.send(b"waits").await.unwrap();
    bench.until("a held datagram", |traffic| traffic.held_datagrams == 1).await;
    bench.relay.set_gate(&service(), Gate::Refuse);
    bench.until("its end", |traffic| traffic.datagrams_refused == 1).await;
    socket.send(b"comes").await.unwrap();
    let traffic = bench.until("the other's end", |traffic| traffic.datagrams_refused == 2).await;
    assert_eq!(traffic.held_datagrams, 0);
}

#[tokio::test]
async fn datagrams_that_wait_for_too_long_are_dropped_and_counted() {
    let mut short = binding(&["udp/7007"]);
    short.held_ms_max = 100;
    let bench = Bench::with(short, RelayLimits::default()).await;
    client(bench.stable()).await.send(b"waits").await.unwrap();
    let traffic = bench.until("its end", |traffic| traffic.datagrams_expired == 1).await;
    assert_eq!(traffic.held_datagrams, 0);
}

#[tokio::test]
async fn sessions_are_limited_and_end_when_idle() {
    let mut short = binding(&["udp/7007"]);
    short.udp_idle_ms = 300;
    let limits = RelayLimits { udp_sessions_max: 2, ..RelayLimits::default() };
    let time = Arc::new(AtomicU64::new(1_000));
    let clock = Arc::clone(&time);
    let now: Now = Arc::new(move || Timestamp::from_ms(clock.load(Ordering::SeqCst)));
    let bench = Bench::at(short, limits, now).await;
    let backend = UdpSocket::bind(bench.backend()).await.unwrap();
    bench.open();
    for n in 1..=2 {
        client(bench.stable()).await.send(b"x").await.unwrap();
        receive(&backend).await;
        assert_eq!(bench.traffic().udp_sessions, n);
    }
    // No time passes on the relay's clock, so that there is no place for the third.
    let third = client(bench.stable()).await;
    third.send(b"third").await.unwrap();
    let traffic = bench.until("its refusal", |t| t.datagrams_no_session == 1).await;
    assert_eq!((traffic.datagrams_in, traffic.udp_sessions), (2, 2));
    time.fetch_add(300, Ordering::SeqCst);
    bench.until("free places", |traffic| traffic.udp_sessions == 0).await;
    third.send(b"third again").await.unwrap();
    assert_eq!(receive(&backend).await, "third again");
}

#[tokio::test]
async fn an_unreachable_backend_port_ends_no_session() {
    let bench = Bench::new(&["udp/7007"]).await;
    bench.open();
    let socket = client(bench.stable()).await;
    for _ in 0..3 {
        socket.send(b"nobody there").await.unwrap();
    }
    bench.until("port unreachable", |traffic| traffic.udp_unreachable >= 1).await;
    let backend = UdpSocket::bind(bench.backend()).await.unwrap();
    for n in 0..3 {
        socket.send(format!("{n}").as_bytes()).await.unwrap();
        let (text, from) = receive_from(&backend).await;
        assert_eq!(text, n.to_string());
        backend.send_to(b"here", from).await.unwrap();
        assert_eq!(receive(&socket).await, "here");
    }
    assert_eq!(bench.traffic().udp_sessions, 1);
}

#[tokio::test]
async fn a_lost_instance_ends_the_sessions_and_what_comes_then_waits_for_the_next() {
    let mut bench = Bench::new(&["udp/7007"]).await;
    let backend = UdpSocket::bind(bench.backend()).await.unwrap();
    bench.open();
    let socket = client(bench.stable()).await;
    socket.send(b"one").await.unwrap();
    let (_, before) = receive_from(&backend).await;
    bench.relay.set_gate(&service(), Gate::Hold);
    bench.relay.cut(&service());
    bench.until("no session", |traffic| traffic.udp_sessions == 0).await;
    socket.send(b"two").await.unwrap();
    assert!(matches!(bench.event().await, RelayEvent::Wanted { .. }));
    bench.until("a held datagram", |traffic| traffic.held_datagrams == 1).await;
    bench.open();
    let (text, after) = receive_from(&backend).await;
    assert_eq!(text, "two");
    assert_ne!(before, after);
}
