//! Clients of a sleeping service: held, counted, served once, refused or released.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Bench, binding, ends_by_reset, reset, service, within};
use reveille_core::model::Gate;
use reveille_net::{RelayEvent, RelayLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers each connection with what it sent, in capitals, after its FIN.
async fn capitals(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut text = Vec::new();
            stream.read_to_end(&mut text).await.unwrap();
            stream.write_all(&text.to_ascii_uppercase()).await.unwrap();
        });
    }
}

async fn answer(client: &mut TcpStream) -> String {
    let mut answer = String::new();
    within(client.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clients_are_held_and_served_after_one_wanted() {
    let mut bench = Bench::new(&["tcp/8080"]).await;
    let mut clients = Vec::new();
    for n in 0..100 {
        let mut client = bench.client().await;
        client.write_all(format!("client {n}").as_bytes()).await.unwrap();
        clients.push(client);
    }
    bench.until("100 held clients", |traffic| traffic.held_clients == 100).await;
    let event = bench.events.try_recv();
    assert!(matches!(&event, Some(RelayEvent::Wanted { port, .. }) if port.number == 8080), "{event:?}");
    assert_eq!(bench.events.try_recv(), None, "one Wanted is enough");

    let _backend = tokio::spawn(capitals(bench.listen().await));
    bench.open();
    for (n, mut client) in clients.into_iter().enumerate() {
        client.shutdown().await.unwrap();
        assert_eq!(answer(&mut client).await, format!("CLIENT {n}"));
    }
    bench.until("100 served clients", |traffic| traffic.completed == 100).await;
    let mut events = Vec::new();
    while let Some(event) = bench.events.try_recv() {
        events.push(event);
    }
    assert!(matches!(events[0], RelayEvent::FirstByte { .. }), "{events:?}");
    assert!(matches!(events[1..], [RelayEvent::Idle { .. }]), "{events:?}");
    let traffic = bench.traffic();
    assert_eq!((traffic.open_connections, traffic.held_clients), (0, 0));
}

#[tokio::test]
async fn a_new_client_raises_wanted_again_once_the_last_was_taken() {
    let mut bench = Bench::new(&["tcp/8080"]).await;
    let first = bench.client().await;
    let RelayEvent::Wanted { client, .. } = bench.event().await else { panic!() };
    assert_eq!(client, first.local_addr().unwrap());
    let second = bench.client().await;
    let RelayEvent::Wanted { client, .. } = bench.event().await else { panic!() };
    assert_eq!(client, second.local_addr().unwrap());
}

#[tokio::test]
async fn clients_over_the_limit_of_held_ones_are_reset_and_the_others_stay() {
    let mut limited = binding(&["tcp/8080"]);
    limited.held_clients_max = 3;
    let bench = Bench::with(limited, RelayLimits::default()).await;
    let mut held = Vec::new();
    for n in 1..=3 {
        let mut client = bench.client().await;
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        bench.until("held clients", |traffic| traffic.held_clients == n).await;
        held.push(client);
    }
    let mut fourth = bench.client().await;
    assert!(ends_by_reset(&mut fourth).await);
    let traffic = bench.traffic();
    assert_eq!((traffic.held_clients, traffic.over_held_limit), (3, 1));
    let _backend = tokio::spawn(capitals(bench.listen().await));
    bench.open();
    for mut client in held {
        assert_eq!(answer(&mut client).await, "X");
    }
}

#[tokio::test]
async fn a_service_has_places_for_so_many_clients_and_those_that_are_held_keep_theirs() {
    let limits = RelayLimits { service_connections_max: 3, ..RelayLimits::default() };
    let bench = Bench::with(binding(&["tcp/8080"]), limits).await;
    let listener = bench.listen().await;
    let mut clients = Vec::new();
    for n in 1..=3 {
        clients.push(bench.client().await);
        bench.until("held clients", |traffic| traffic.held_clients == n).await;
    }
    assert!(ends_by_reset(&mut bench.client().await).await);
    bench.open();
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(within(listener.accept()).await.unwrap().0);
    }
    bench.until("open connections", |traffic| traffic.open_connections == 3).await;
    assert!(ends_by_reset(&mut bench.client().await).await);
    let traffic = bench.until("two without a place", |traffic| traffic.over_service_limit == 2).await;
    assert_eq!((traffic.opened, traffic.over_held_limit), (3, 0));
    reset(clients.remove(0));
    bench.until("a free place", |traffic| traffic.open_connections == 2).await;
    clients.push(bench.client().await);
    within(listener.accept()).await.unwrap();
}

#[tokio::test]
async fn clients_over_the_limit_of_all_connections_are_reset() {
    let limits = RelayLimits { connections_max: 2, ..RelayLimits::default() };
    let bench = Bench::with(binding(&["tcp/8080"]), limits).await;
    let (first, _second) = (bench.client().await, bench.client().await);
    bench.until("two held clients", |traffic| traffic.held_clients == 2).await;
    assert!(ends_by_reset(&mut bench.client().await).await);
    assert_eq!(bench.traffic().over_connection_limit, 1);
    reset(first);
    bench.until("a free place", |traffic| traffic.held_clients == 1).await;
    let _third = bench.client().await;
    bench.until("the third client", |traffic| traffic.held_clients == 2).await;
}

#[tokio::test]
async fn a_refusing_gate_resets_held_and_new_clients() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let mut held = bench.client().await;
    held.write_all(b"hello").await.unwrap();
    bench.until("a held client", |traffic| traffic.held_clients == 1).await;
    bench.relay.set_gate(&service(), Gate::Refuse);
    assert!(ends_by_reset(&mut held).await);
    assert!(ends_by_reset(&mut bench.client().await).await);
    let traffic = bench.until("two refusals", |traffic| traffic.refused == 2).await;
    assert_eq!(traffic.held_clients, 0);
}

#[tokio::test]
async fn a_client_that_is_held_for_too_long_is_reset() {
    let mut short = binding(&["tcp/8080"]);
    short.held_ms_max = 100;
    let bench = Bench::with(short, RelayLimits::default()).await;
    assert!(ends_by_reset(&mut bench.client().await).await);
    let traffic = bench.until("its end", |traffic| traffic.held_clients == 0).await;
    assert_eq!(traffic.expired, 1);
}

#[tokio::test]
async fn clients_that_leave_are_released_and_a_finished_request_is_kept() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let silent = bench.client().await;
    let mut resetting = bench.client().await;
    resetting.write_all(b"never mind").await.unwrap();
    let mut asking = bench.client().await;
    asking.write_all(b"and you?").await.unwrap();
    asking.shutdown().await.unwrap();
    bench.until("three held clients", |traffic| traffic.held_clients == 3).await;
    drop(silent);
    bench.until("the silent one's end", |traffic| (traffic.held_clients, traffic.left) == (2, 1)).await;
    reset(resetting);
    bench.until("the resetting one's end", |traffic| (traffic.held_clients, traffic.left) == (1, 2)).await;
    let _backend = tokio::spawn(capitals(bench.listen().await));
    bench.open();
    assert_eq!(answer(&mut asking).await, "AND YOU?");
    let traffic = bench.until("the answer", |traffic| traffic.completed == 1).await;
    assert_eq!(traffic.opened, 1, "the instance sees only the client that is still there");
}

#[tokio::test]
async fn what_a_held_client_sends_stays_in_the_kernel_and_throttles_it() {
    const TOTAL: usize = 64 << 20;
    let bench = Bench::new(&["tcp/8080"]).await;
    let client = bench.client().await;
    bench.until("a held client", |traffic| traffic.held_clients == 1).await;
    let chunk = vec![7; 65_536];
    let mut written = 0;
    // Until the socket takes nothing for a while, or all, which would mean that somebody reads.
    while written < TOTAL {
        let ready = tokio::time::timeout(std::time::Duration::from_millis(300), client.writable()).await;
        let Ok(ready) = ready else { break };
        ready.unwrap();
        written += client.try_write(&chunk).unwrap_or(0);
    }
    assert!(written < TOTAL);
    let listener = bench.listen().await;
    bench.open();
    let (mut backend, _) = within(listener.accept()).await.unwrap();
    drop(client);
    let mut received = Vec::new();
    within(backend.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received.len(), written);
}
