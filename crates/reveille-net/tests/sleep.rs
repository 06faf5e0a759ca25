//! Going to sleep against arrivals, losing the instance, and the ends of a binding.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::{Bench, LONG, binding, ends_by_reset, service, within};
use reveille_core::model::Gate;
use reveille_net::{BindError, RelayEvent, RelayLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// Successful closes of each stress test.
const CLOSES: u32 = 2_000;
const CLIENTS: u32 = 6;

/// Small random numbers from a seed.
struct Dice(u32);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % limit
    }

    async fn think(&mut self) {
        tokio::time::sleep(Duration::from_micros(self.below(30_000).into())).await;
    }

    async fn pause(&mut self) {
        match self.below(4) {
            0 => {}
            1 => tokio::task::yield_now().await,
            _ => tokio::time::sleep(Duration::from_micros(self.below(3_000).into())).await,
        }
    }
}

/// Puts the service to sleep again and again, and wakes it when it is wanted, as the control loop does. While
/// `asleep` says so the backend must not see anything.
async fn sleep_and_wake(bench: &mut Bench, asleep: &AtomicBool, barrier: impl AsyncFn()) -> u32 {
    let (mut closes, mut refusals) = (0, 0);
    let mut dice = Dice(7);
    bench.open();
    while closes < CLOSES {
        if bench.relay.close_if_idle(&service(), 0, false).is_err() {
            refusals += 1;
            dice.pause().await;
            continue;
        }
        barrier().await;
        asleep.store(true, Ordering::SeqCst);
        closes += 1;
        // Somebody comes, and that is reported.
        while !matches!(bench.event().await, RelayEvent::Wanted { .. }) {}
        dice.pause().await;
        asleep.store(false, Ordering::SeqCst);
        bench.open();
    }
    refusals
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_connection_reaches_a_sleeping_instance_and_each_is_served() {
    let mut bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    let asleep = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    let sleeping = Arc::clone(&asleep);
    let backend = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(!sleeping.load(Ordering::SeqCst), "a connection to a sleeping instance");
            connections.spawn(async move {
                let mut text = Vec::new();
                stream.read_to_end(&mut text).await.unwrap();
                stream.write_all(&text).await.unwrap();
            });
            while let Some(ended) = connections.try_join_next() {
                ended.unwrap();
            }
        }
    });
    for seed in 1..=CLIENTS {
        let (done, served, stable) = (Arc::clone(&done), Arc::clone(&served), bench.stable());
        tasks.spawn(async move {
            let mut dice = Dice(seed);
            while !done.load(Ordering::SeqCst) {
                let mut stream = within(tokio::net::TcpStream::connect(stable)).await.unwrap();
                dice.pause().await;
                let text = vec![7; 1 + dice.below(2_000) as usize];
                stream.write_all(&text).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut echo = Vec::new();
                within(stream.read_to_end(&mut echo)).await.unwrap();
                assert!(echo == text);
                served.fetch_add(1, Ordering::SeqCst);
                dice.think().await;
            }
        });
    }
    let refusals = tokio::select! {
        refusals = sleep_and_wake(&mut bench, &asleep, async || {}) => refusals,
        Some(ended) = tasks.join_next() => panic!("a client failed: {ended:?}"),
    };
    done.store(true, Ordering::SeqCst);
    while let Some(ended) = within(tasks.join_next()).await {
        ended.unwrap();
    }
    assert!(!backend.is_finished(), "{:?}", backend.await);
    backend.abort();
    let served = served.load(Ordering::SeqCst);
    assert!(served >= CLOSES, "each wake was for somebody");
    let traffic = bench.until("all ends", |t| t.completed == u64::from(served)).await;
    assert_eq!((traffic.retries, traffic.backend_resets, traffic.cut), (0, 0, 0), "{refusals} refusals");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_datagram_reaches_a_sleeping_instance_and_each_is_answered() {
    let mut bench = Bench::new(&["udp/7007"]).await;
    let backend = Arc::new(UdpSocket::bind(bench.backend()).await.unwrap());
    let asleep = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicBool::new(false));
    let (sleeping, echoing) = (Arc::clone(&asleep), Arc::clone(&backend));
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 64];
        loop {
            let (length, from) = echoing.recv_from(&mut buffer).await.unwrap();
            assert!(!sleeping.load(Ordering::SeqCst), "a datagram to a sleeping instance");
            echoing.send_to(&buffer[..length], from).await.unwrap();
        }
    });
    let mut tasks = JoinSet::new();
    for seed in 1..=CLIENTS {
        let (done, stable) = (Arc::clone(&done), bench.stable());
        tasks.spawn(async move {
            let mut dice = Dice(seed);
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(stable).await.unwrap();
            let mut number = 0u32;
            while !done.load(Ordering::SeqCst) {
                let burst = 1 + dice.below(4);
                for n in number..number + burst {
                    socket.send(&n.to_be_bytes()).await.unwrap();
                }
                let mut echo = [0; 64];
                for n in number..number + burst {
                    let length = within(socket.recv(&mut echo)).await.unwrap();
                    assert_eq!(echo[..length], n.to_be_bytes(), "lost or out of order");
                }
                number += burst;
                dice.pause().await;
            }
        });
    }
    // What passed before the gate closed may still lie in the backend's socket: it is read in order, so when this
    // comes back all before it was read.
    let probe = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    probe.connect(bench.backend()).await.unwrap();
    let barrier = async || {
        probe.send(b"barrier").await.unwrap();
        within(probe.recv(&mut [0; 64])).await.unwrap();
    };
    tokio::select! {
        _ = sleep_and_wake(&mut bench, &asleep, barrier) => {}
        Some(ended) = tasks.join_next() => panic!("a client failed: {ended:?}"),
    }
    done.store(true, Ordering::SeqCst);
    while let Some(ended) = within(tasks.join_next()).await {
        ended.unwrap();
    }
    assert!(!echo.is_finished(), "{:?}", echo.await);
    echo.abort();
    let traffic = bench.traffic();
    assert_eq!((traffic.datagrams_in, traffic.datagrams_over_limit), (traffic.datagrams_out, 0));
}

#[tokio::test]
async fn an_open_connection_keeps_the_service_awake_and_force_resets_it() {
    let mut bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    bench.open();
    let mut client = bench.client().await;
    client.write_all(b"hello").await.unwrap();
    let (mut backend, _) = within(listener.accept()).await.unwrap();
    within(backend.read_exact(&mut [0; 5])).await.unwrap();
    let busy = bench.relay.close_if_idle(&service(), 0, false).unwrap_err();
    assert_eq!(busy.open_connections, 1);
    assert_eq!(Some(busy.last_packet), bench.traffic().last_packet);

    bench.relay.close_if_idle(&service(), 60_000, true).unwrap();
    // From here on nothing passes, whatever the relay's tasks were about to do.
    let _ = client.write_all(b"too late").await;
    assert!(ends_by_reset(&mut client).await);
    let mut rest = Vec::new();
    let broken = within(backend.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!((broken.kind(), rest.len()), (std::io::ErrorKind::ConnectionReset, 0));

    let mut next = bench.client().await;
    while !matches!(bench.event().await, RelayEvent::Wanted { .. }) {}
    bench.open();
    let (mut backend, _) = within(listener.accept()).await.unwrap();
    backend.write_all(b"hello").await.unwrap();
    within(next.read_exact(&mut [0; 5])).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_closed_within_the_idle_time_keeps_the_service_awake() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    bench.open();
    let client = bench.client().await;
    drop(within(listener.accept()).await.unwrap());
    drop(client);
    bench.until("no connection", |traffic| traffic.open_connections == 0).await;
    let busy = bench.relay.close_if_idle(&service(), 3_600_000, false).unwrap_err();
    assert_eq!(busy.open_connections, 0);
    bench.relay.close_if_idle(&service(), 0, false).unwrap();
    bench.relay.close_if_idle(&service(), 3_600_000, false).unwrap();
}

#[tokio::test]
async fn with_the_instance_lost_clients_are_reset_and_those_without_a_byte_are_held_again() {
    let mut bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    bench.open();
    let mut talking = bench.client().await;
    talking.write_all(b"hello").await.unwrap();
    let (mut backend, _) = within(listener.accept()).await.unwrap();
    within(backend.read_exact(&mut [0; 5])).await.unwrap();
    let mut quiet = bench.client().await;
    let (_quiet_backend, _) = within(listener.accept()).await.unwrap();

    bench.relay.set_gate(&service(), Gate::Hold);
    bench.relay.cut(&service());
    assert!(ends_by_reset(&mut talking).await);
    assert!(ends_by_reset(&mut backend).await);
    let traffic = bench.until("a held client", |traffic| traffic.held_clients == 1).await;
    assert_eq!((traffic.open_connections, traffic.cut), (0, 1));
    while !matches!(bench.event().await, RelayEvent::Wanted { .. }) {}

    bench.open();
    let (mut backend, _) = within(listener.accept()).await.unwrap();
    backend.write_all(b"hello").await.unwrap();
    within(quiet.read_exact(&mut [0; 5])).await.unwrap();
}

#[tokio::test]
async fn of_a_lost_instance_no_more_clients_are_held_than_may_be() {
    let mut limited = binding(&["tcp/8080"]);
    limited.held_clients_max = 2;
    let mut bench = Bench::with(limited, RelayLimits::default()).await;
    let listener = bench.listen().await;
    bench.open();
    let mut quiet = Vec::new();
    for _ in 0..3 {
        quiet.push((bench.client().await, within(listener.accept()).await.unwrap()));
    }
    bench.until("three open", |traffic| traffic.open_connections == 3).await;
    bench.relay.set_gate(&service(), Gate::Hold);
    bench.relay.cut(&service());
    let wanted = "two held and one reset";
    let traffic = bench.until(wanted, |t| (t.held_clients, t.over_held_limit) == (2, 1)).await;
    assert_eq!((traffic.open_connections, traffic.cut), (0, 0));
    assert!(matches!(bench.event().await, RelayEvent::Wanted { .. }));
    assert_eq!(bench.events.try_recv(), None, "one Wanted is enough");
}

#[tokio::test]
async fn held_clients_of_a_lost_instance_ask_again() {
    let mut bench = Bench::new(&["tcp/8080", "udp/7007"]).await;
    let _held = bench.client().await;
    assert!(matches!(bench.event().await, RelayEvent::Wanted { .. }));
    bench.relay.cut(&service());
    assert!(matches!(bench.event().await, RelayEvent::Wanted { .. }));
    assert_eq!(bench.traffic().held_clients, 1);
}

#[tokio::test]
async fn unbinding_ends_all_and_leaves_the_addresses_free() {
    let bench = Bench::new(&["tcp/8080", "udp/8080"]).await;
    let listener = bench.listen().await;
    for _ in 0..5 {
        let mut held = bench.client().await;
        held.write_all(b"x").await.unwrap();
        bench.open();
        let (mut backend, _) = within(listener.accept()).await.unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        udp.send_to(b"x", bench.stable()).await.unwrap();
        bench.until("a session", |traffic| traffic.udp_sessions == 1).await;
        bench.relay.set_gate(&service(), Gate::Hold);
        let mut waiting = bench.client().await;
        bench.until("a held client", |traffic| traffic.held_clients == 1).await;
        within(bench.relay.unbind(&service())).await;
        assert_eq!(bench.relay.traffic(&service()), None);
        // Nothing of the relay is left on the addresses.
        drop(std::net::TcpListener::bind(bench.stable()).unwrap());
        drop(std::net::UdpSocket::bind(bench.stable()).unwrap());
        for stream in [&mut held, &mut backend, &mut waiting] {
            assert!(ends_by_reset(stream).await);
        }
        bench.bind().await;
    }
    within(bench.relay.unbind(&service())).await;
    within(bench.relay.unbind(&service())).await;
}

#[tokio::test]
async fn the_last_clone_takes_its_services_with_it() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let stable = bench.stable();
    let clone = bench.relay.clone();
    drop(bench);
    assert!(std::net::TcpListener::bind(stable).is_err());
    drop(clone);
    let free = async {
        while std::net::TcpListener::bind(stable).is_err() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(LONG, free).await.unwrap();
}

#[tokio::test]
async fn all_ports_are_bound_or_none_and_the_fault_names_address_port_and_remedy() {
    let bench = Bench::new(&["tcp/8080", "udp/7007"]).await;
    let relay = &bench.relay;
    let again = relay.bind(bench.binding.clone()).await.unwrap_err();
    assert!(matches!(again, BindError::AlreadyBound(_)), "{again}");

    let mut other = binding(&["tcp/8080", "tcp/8081", "udp/7007"]);
    other.service = "other.vm.test".parse().unwrap();
    let at = |port| SocketAddr::new(other.stable[0], port);
    for taken in ["tcp/8081", "udp/7007"] {
        let port = taken.parse().unwrap();
        let number = if taken == "tcp/8081" { 8081 } else { 7007 };
        let _tcp = (taken == "tcp/8081").then(|| std::net::TcpListener::bind(at(number)).unwrap());
        let _udp = (taken == "udp/7007").then(|| std::net::UdpSocket::bind(at(number)).unwrap());
        let fault = relay.bind(other.clone()).await.unwrap_err();
        assert!(
            matches!(fault, BindError::Taken { at: a, port: p } if a == at(number) && p == port),
            "{fault}"
        );
        assert!(fault.to_string().contains(&format!("{taken} of {}", at(number))), "{fault}");
        drop(std::net::TcpListener::bind(at(8080)).expect("nothing stays bound"));
    }
    relay.bind(other.clone()).await.unwrap();

    let mut third = other.clone();
    third.service = "third.vm.test".parse().unwrap();
    let foreign: IpAddr = "192.0.2.1".parse().unwrap();
    third.stable = vec![foreign];
    let fault = relay.bind(third.clone()).await.unwrap_err();
    assert!(matches!(fault, BindError::NotConfigured { at } if at.ip() == foreign), "{fault}");
    assert!(fault.to_string().contains("ip address add 192.0.2.1/32 dev lo"), "{fault}");
    third.freebind = true;
    relay.bind(third.clone()).await.unwrap();
    relay.unbind(&third.service).await;

    third.stable = vec!["0.0.0.0".parse().unwrap()];
    assert!(matches!(relay.bind(third.clone()).await, Err(BindError::BadAddress(_))));
    third.stable = Vec::new();
    assert!(matches!(relay.bind(third).await, Err(BindError::Nothing(_))));
}

#[tokio::test]
async fn first_byte_is_reported_once_per_opening() {
    let mut bench = Bench::with(binding(&["tcp/8080"]), RelayLimits::default()).await;
    let listener: TcpListener = bench.listen().await;
    for _ in 0..3 {
        bench.open();
        for _ in 0..2 {
            let mut client = bench.client().await;
            let (mut backend, _) = within(listener.accept()).await.unwrap();
            backend.write_all(b"hello").await.unwrap();
            within(client.read_exact(&mut [0; 5])).await.unwrap();
        }
        bench.until("no connection", |traffic| traffic.open_connections == 0).await;
        bench.relay.close_if_idle(&service(), 0, false).unwrap();
        let mut first_bytes = 0;
        while let Some(event) = bench.events.try_recv() {
            first_bytes += u32::from(matches!(event, RelayEvent::FirstByte { .. }));
        }
        assert_eq!(first_bytes, 1);
    }
}
