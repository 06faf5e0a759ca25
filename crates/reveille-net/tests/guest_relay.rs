//! The relay in front of a guest's link.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends where something is not as it should be, and its numbers are small"
)]

mod common;
mod guest_peer;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Bench, binding, ends_by_reset, service, within};
use guest_peer::{Controls, Service, patterned, until};
use reveille_core::model::Gate;
use reveille_net::guest::{CONNECTIONS_MAX, LINGER_MAX, Link, LinkAddresses};
use reveille_net::{RelayEvent, RelayLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UdpSocket, UnixStream};

fn guest(listen: &[(u16, Service, usize)]) -> (Arc<Link>, Arc<Controls>) {
    let (ours, guests) = UnixStream::pair().unwrap();
    let controls = guest_peer::run(guests, listen);
    (Arc::new(Link::attach(ours, LinkAddresses::default())), controls)
}

#[tokio::test]
async fn a_held_client_is_served_by_the_guest_that_wakes() {
    let bench = Bench::new(&["tcp/7"]).await;
    let mut client = bench.client().await;
    client.write_all(b"hello").await.unwrap();
    bench.until("held", |traffic| traffic.held_clients == 1).await;
    let (link, controls) = guest(&[(7, Service::Echo, 1)]);
    bench.relay.set_link(&service(), Some(link));
    bench.open();
    let mut answer = [0; 5];
    within(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
    client.shutdown().await.unwrap();
    assert_eq!(within(client.read(&mut [0; 9])).await.unwrap(), 0);
    bench.until("completed", |traffic| traffic.completed == 1 && traffic.open_connections == 0).await;
    assert_eq!(controls.resets.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn much_passes_in_both_directions_at_once() {
    let bench = Bench::new(&["tcp/7"]).await;
    let (link, _) = guest(&[(7, Service::Echo, 8)]);
    bench.relay.set_link(&service(), Some(link));
    bench.open();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let (mut read, mut write) = bench.client().await.into_split();
        let sent = patterned(2 << 20);
        clients.push(tokio::spawn(async move {
            let expected = sent.clone();
            let writer = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
                write
            });
            let mut got = Vec::new();
            within(read.read_to_end(&mut got)).await.unwrap();
            writer.await.unwrap();
            assert!(got == expected);
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    bench.until("completed", |traffic| traffic.completed == 8).await;
}

#[tokio::test]
async fn resets_are_passed_on_both_ways() {
    let bench = Bench::new(&["tcp/7", "tcp/80"]).await;
    let (link, controls) = guest(&[(7, Service::Reset, 1), (80, Service::Slow, 1)]);
    bench.relay.set_link(&service(), Some(Arc::clone(&link)));
    bench.open();
    let mut client = bench.client().await;
    client.write_all(b"a request that is reset").await.unwrap();
    assert!(ends_by_reset(&mut client).await);
    assert_eq!(bench.traffic().retries, 0, "what a guest resets is not sent again");
    let other = std::net::SocketAddr::new(bench.stable().ip(), 80);
    let client = within(tokio::net::TcpStream::connect(other)).await.unwrap();
    until("accepted", || controls.open.load(Ordering::SeqCst) == 1).await;
    common::reset(client);
    until("the guest is told", || controls.resets.load(Ordering::SeqCst) == 1).await;
    until("nothing is left", || link.connections() == 0).await;
}

#[tokio::test]
async fn a_client_waits_until_the_guests_service_listens() {
    let bench = Bench::new(&["tcp/7"]).await;
    let (early, _) = guest(&[]);
    bench.relay.set_link(&service(), Some(early));
    bench.open();
    let mut client = bench.client().await;
    client.write_all(b"hello").await.unwrap();
    bench.until("refused a few times", |traffic| traffic.retries >= 3).await;
    let (late, _) = guest(&[(7, Service::Echo, 1)]);
    bench.relay.set_link(&service(), Some(late));
    let mut answer = [0; 5];
    within(client.read_exact(&mut answer)).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_is_lost_and_replaced_loses_no_quiet_client() {
    let bench = Bench::new(&["tcp/7", "udp/7"]).await;
    let (first, controls) = guest(&[(7, Service::Echo, 4)]);
    bench.relay.set_link(&service(), Some(Arc::clone(&first)));
    bench.open();
    let mut quiet = bench.client().await;
    let mut busy = bench.client().await;
    busy.write_all(b"hello").await.unwrap();
    within(busy.read_exact(&mut [0; 5])).await.unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    datagrams.connect(bench.stable()).await.unwrap();
    let mut buffer = [0; 9];
    datagrams.send(b"one").await.unwrap();
    assert_eq!(within(datagrams.recv(&mut buffer)).await.unwrap(), 3);
    bench.until("both open", |traffic| traffic.open_connections == 2).await;

    controls.hang_up();
    within(first.closed()).await;
    bench.relay.set_link(&service(), None);
    bench.relay.set_gate(&service(), Gate::Hold);
    bench.relay.cut(&service());
    assert!(ends_by_reset(&mut busy).await);
    quiet.write_all(b"hello").await.unwrap();
    datagrams.send(b"two").await.unwrap();
    bench.until("held again", |traffic| traffic.held_clients == 1 && traffic.held_datagrams == 1).await;

    let (second, _) = guest(&[(7, Service::Echo, 4)]);
    bench.relay.set_link(&service(), Some(second));
    bench.open();
    within(quiet.read_exact(&mut buffer[..5])).await.unwrap();
    assert_eq!(within(datagrams.recv(&mut buffer)).await.unwrap(), 3);
    assert_eq!(&buffer[..3], b"two");
}

#[tokio::test]
async fn a_quiet_client_of_a_lost_guest_asks_again_with_all_its_time() {
    let mut short = binding(&["tcp/7"]);
    short.held_ms_max = 30_000;
    let mut bench = Bench::with(short, RelayLimits::default()).await;
    let (first, controls) = guest(&[(7, Service::Echo, 1)]);
    bench.relay.set_link(&service(), Some(Arc::clone(&first)));
    bench.open();
    let mut client = bench.client().await;
    until("the handshake", || first.counters().frames_in > 0).await;
    // The relay's task was woken by that, and has its turn before this one has it again.
    tokio::task::yield_now().await;
    // It may wait for half a minute, and is quiet for longer than that.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(40)).await;
    tokio::time::resume();
    controls.hang_up();
    within(first.closed()).await;
    bench.relay.set_link(&service(), None);
    client.write_all(b"hello").await.unwrap();
    bench.until("tries to reach the guest", |traffic| traffic.retries >= 2).await;
    // As the control loop does: the loss first, and then what follows from it.
    bench.relay.cut(&service());
    bench.relay.set_gate(&service(), Gate::Hold);
    bench.until("held again", |traffic| traffic.held_clients == 1).await;
    assert!(matches!(bench.event().await, RelayEvent::Wanted { client: asking, .. }
        if asking == client.local_addr().unwrap()));
    let (second, _) = guest(&[(7, Service::Echo, 1)]);
    bench.relay.set_link(&service(), Some(second));
    bench.open();
    let mut answer = [0; 5];
    within(client.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
    assert_eq!(bench.traffic().expired, 0);
}

#[tokio::test]
async fn a_connection_is_open_until_the_guest_has_acknowledged_the_clients_last_bytes() {
    let bench = Bench::new(&["tcp/7"]).await;
    let (link, controls) = guest(&[(7, Service::Source(5), 1)]);
    bench.relay.set_link(&service(), Some(Arc::clone(&link)));
    bench.open();
    let mut client = bench.client().await;
    let mut greeting = Vec::new();
    within(client.read_to_end(&mut greeting)).await.unwrap();
    assert_eq!(greeting, patterned(5), "the guest has closed its side");
    // The guest does not take what comes, as when it is busy: the last bytes are still with the link.
    controls.deaf.store(true, Ordering::SeqCst);
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    until("the bytes and the end were sent", || controls.missed.load(Ordering::SeqCst) >= 2).await;
    let traffic = bench.traffic();
    assert_eq!((traffic.bytes_in, traffic.completed, traffic.open_connections), (10, 0, 1));
    assert_eq!(bench.relay.close_if_idle(&service(), 0, false).unwrap_err().open_connections, 1);
    controls.deaf.store(false, Ordering::SeqCst);
    bench.until("completed", |traffic| (traffic.completed, traffic.open_connections) == (1, 0)).await;
    bench.relay.close_if_idle(&service(), 0, false).unwrap();
    assert_eq!(controls.resets.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_guest_that_does_not_acknowledge_the_last_bytes_is_not_waited_for_for_ever() {
    let bench = Bench::new(&["tcp/7"]).await;
    let (link, controls) = guest(&[(7, Service::Source(5), 1)]);
    bench.relay.set_link(&service(), Some(Arc::clone(&link)));
    bench.open();
    let mut client = bench.client().await;
    within(client.read_to_end(&mut Vec::new())).await.unwrap();
    controls.deaf.store(true, Ordering::SeqCst);
    client.shutdown().await.unwrap();
    until("the end was sent", || controls.missed.load(Ordering::SeqCst) >= 1).await;
    assert_eq!(bench.traffic().open_connections, 1);
    tokio::time::pause();
    tokio::time::advance(LINGER_MAX).await;
    tokio::time::resume();
    bench.until("its end", |traffic| (traffic.backend_resets, traffic.open_connections) == (1, 0)).await;
}

#[tokio::test]
async fn held_datagrams_wait_for_a_guest_that_does_not_take_its_frames_yet() {
    const COUNT: u32 = 600;
    let limits = RelayLimits {
        client_datagrams_max: COUNT,
        client_datagram_bytes_max: 1 << 20,
        ..RelayLimits::default()
    };
    let bench = Bench::with(binding(&["udp/7"]), limits).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(bench.stable()).await.unwrap();
    let datagram = |n: u32| [&n.to_be_bytes()[..], &patterned(1_200)].concat();
    for n in 0..COUNT {
        socket.send(&datagram(n)).await.unwrap();
        if n % 20 == 19 {
            bench.until("held", |traffic| traffic.held_datagrams == n + 1).await;
        }
    }
    let (ours, mut guests) = UnixStream::pair().unwrap();
    let link = Arc::new(Link::attach(ours, LinkAddresses::default()));
    bench.relay.set_link(&service(), Some(Arc::clone(&link)));
    bench.open();
    until("the way is full", || link.counters().dropped.outbox_full > 0).await;
    assert!(bench.traffic().held_datagrams > 0);
    let mut frame = vec![0; 2_000];
    for n in 0..COUNT {
        let length = within(guests.read_u32()).await.unwrap() as usize;
        within(guests.read_exact(&mut frame[..length])).await.unwrap();
        // Ethernet, IP and UDP headers come first.
        assert!(frame[14 + 20 + 8..length] == datagram(n), "in order, from number {n} on");
    }
    let traffic = bench.traffic();
    assert_eq!((traffic.datagrams_in, traffic.datagrams_failed), (COUNT.into(), 0));
}

#[test]
fn a_link_carries_as_many_clients_as_a_service_may_have_and_checks_of_readiness() {
    let clients = RelayLimits::default().service_connections_max as usize;
    assert!(clients + 64 <= CONNECTIONS_MAX);
    assert_eq!(RelayLimits::within(1_024).connections_max, 512);
    assert_eq!(RelayLimits::within(u64::MAX), RelayLimits::default());
}

#[tokio::test]
async fn a_session_follows_its_service_to_the_next_guest() {
    let bench = Bench::new(&["udp/7"]).await;
    let datagrams = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    datagrams.connect(bench.stable()).await.unwrap();
    let mut buffer = vec![0; 65_536];
    for round in 0..3 {
        // Put to sleep and woken without anything lost: there was no cut.
        let (link, controls) = guest(&[]);
        bench.relay.set_link(&service(), Some(Arc::clone(&link)));
        bench.open();
        let sent = patterned(20_000 + round);
        datagrams.send(&sent).await.unwrap();
        let count = within(datagrams.recv(&mut buffer)).await.unwrap();
        assert!(buffer[..count] == sent);
        tokio::time::sleep(Duration::from_millis(2)).await;
        bench.relay.close_if_idle(&service(), 1, false).unwrap();
        controls.hang_up();
        within(link.closed()).await;
    }
    assert_eq!(bench.traffic().udp_sessions, 1);
}

#[tokio::test]
async fn after_a_forced_sleep_nothing_reaches_the_guest() {
    let bench = Bench::new(&["tcp/7"]).await;
    let (link, controls) = guest(&[(7, Service::Echo, 1)]);
    bench.relay.set_link(&service(), Some(Arc::clone(&link)));
    bench.open();
    let mut client = bench.client().await;
    client.write_all(b"hello").await.unwrap();
    within(client.read_exact(&mut [0; 5])).await.unwrap();
    assert!(bench.relay.close_if_idle(&service(), 0, false).is_err());
    bench.relay.close_if_idle(&service(), 0, true).unwrap();
    assert!(ends_by_reset(&mut client).await);
    until("the guest is told", || controls.resets.load(Ordering::SeqCst) == 1).await;
    let before = link.counters().frames_out;
    let _held = bench.client().await;
    bench.until("held", |traffic| traffic.held_clients == 1).await;
    assert_eq!(link.counters().frames_out, before);
}
