//! Clients of a sleeping service: held, counted, served once, refused or released.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Bench, service, within};
use reveille_net::RelayEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

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

    let backend = tokio::spawn(capitals(bench.listen().await));
    bench.open();
    for (n, mut client) in clients.into_iter().enumerate() {
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        within(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, format!("CLIENT {n}"));
    }
    bench.until("no connection", |traffic| traffic.open_connections == 0).await;
    let mut events = Vec::new();
    while let Some(event) = bench.events.try_recv() {
        events.push(event);
    }
    assert!(matches!(events[0], RelayEvent::FirstByte { .. }), "{events:?}");
    assert!(matches!(events[1..], [RelayEvent::Idle { .. }]), "{events:?}");
    assert_eq!(bench.traffic().completed, 100);
    backend.abort();
    bench.relay.unbind(&service()).await;
}
