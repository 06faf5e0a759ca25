//! Several instances behind one service: who is led where, and what becomes of clients when one goes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{IpAddr, SocketAddr};

use common::{Bench, address, ends_by_reset, service, within};
use reveille_core::model::InstanceId;
use reveille_net::Backend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// The bench's own backend is instance 0.
const FIRST: InstanceId = InstanceId(0);
const SECOND: InstanceId = InstanceId(2);
const THIRD: InstanceId = InstanceId(3);

/// One more instance, which takes clients, and where it listens.
async fn another(bench: &Bench) -> TcpListener {
    let ip: IpAddr = address().into();
    let listener = TcpListener::bind(SocketAddr::new(ip, bench.stable().port())).await.unwrap();
    bench.relay.set_member(&service(), SECOND, Backend::Address(ip), false);
    listener
}

async fn accepted(listener: &TcpListener) -> TcpStream {
    within(listener.accept()).await.unwrap().0
}

fn in_use(bench: &Bench) -> (u32, u32) {
    (bench.relay.in_use(&service(), FIRST), bench.relay.in_use(&service(), SECOND))
}

#[tokio::test]
async fn each_client_is_led_to_the_instance_with_the_fewest_and_to_none_that_does_not_take_any() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let first = bench.listen().await;
    let second = another(&bench).await;
    bench.open();
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push((bench.client().await, accepted(&first).await));
    }
    bench.relay.lead_to(&service(), SECOND, true);
    for _ in 0..2 {
        clients.push((bench.client().await, accepted(&second).await));
    }
    assert_eq!(in_use(&bench), (2, 2));
    // Who leaves makes place for the next.
    drop(clients.remove(0));
    bench.until("one that left", |traffic| traffic.open_connections == 3).await;
    clients.push((bench.client().await, accepted(&first).await));
    // One that is to go takes nobody new, and keeps whom it has.
    bench.relay.lead_to(&service(), SECOND, false);
    for _ in 0..3 {
        clients.push((bench.client().await, accepted(&first).await));
    }
    assert_eq!(in_use(&bench), (5, 2));
    let (client, served) = &mut clients[1];
    client.write_all(b"on").await.unwrap();
    let mut word = [0; 2];
    within(served.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"on");
}

#[tokio::test]
async fn when_one_is_lost_its_clients_are_led_to_another_unless_they_have_said_something() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let first = bench.listen().await;
    bench.open();
    let kept = (bench.client().await, accepted(&first).await);
    let second = another(&bench).await;
    bench.relay.lead_to(&service(), SECOND, true);
    let (mut talker, mut heard) = (bench.client().await, accepted(&second).await);
    talker.write_all(b"x").await.unwrap();
    within(heard.read_exact(&mut [0])).await.unwrap();
    // So that the next one goes there too.
    let more = (bench.client().await, accepted(&first).await);
    let (mut silent, _nothing) = (bench.client().await, accepted(&second).await);

    bench.relay.cut_member(&service(), SECOND);
    assert!(ends_by_reset(&mut talker).await);
    let mut again = accepted(&first).await;
    again.write_all(b"y").await.unwrap();
    let mut byte = [0];
    within(silent.read_exact(&mut byte)).await.unwrap();
    assert_eq!(byte, *b"y");
    assert_eq!(in_use(&bench), (3, 0));
    assert_eq!(bench.traffic().open_connections, 3);
    drop((kept, more));
}

#[tokio::test]
async fn clients_of_one_that_refuses_them_are_led_to_another() {
    let bench = Bench::new(&["tcp/8080"]).await;
    // Nobody listens there: its connections are refused, so that it always has the fewest.
    let ip: IpAddr = address().into();
    bench.relay.set_member(&service(), SECOND, Backend::Address(ip), false);
    bench.relay.set_member(&service(), THIRD, Backend::Address(address().into()), false);
    let first = bench.listen().await;
    bench.open();
    let kept: Vec<_> = {
        let clients = [bench.client().await, bench.client().await];
        vec![(clients, accepted(&first).await, accepted(&first).await)]
    };
    bench.relay.lead_to(&service(), SECOND, true);
    bench.relay.lead_to(&service(), THIRD, true);
    let (mut client, mut served) = (bench.client().await, accepted(&first).await);
    served.write_all(b"z").await.unwrap();
    let mut byte = [0];
    within(client.read_exact(&mut byte)).await.unwrap();
    assert_eq!((&byte, bench.traffic().retries), (b"z", 2), "each that refuses was tried once");
    assert_eq!(in_use(&bench), (3, 0));
    // With the others gone it is tried again and again, until it listens.
    bench.relay.lead_to(&service(), FIRST, false);
    bench.relay.lead_to(&service(), THIRD, false);
    let mut client = bench.client().await;
    bench.until("further tries", |traffic| traffic.retries >= 5).await;
    let second = TcpListener::bind(SocketAddr::new(ip, bench.stable().port())).await.unwrap();
    accepted(&second).await.write_all(b"a").await.unwrap();
    within(client.read_exact(&mut byte)).await.unwrap();
    assert_eq!(&byte, b"a");
    drop(kept);
}

#[tokio::test]
async fn answers_are_counted_for_the_instance_that_gave_them() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let first = bench.listen().await;
    bench.open();
    let mut pairs = vec![(bench.client().await, accepted(&first).await)];
    let second = another(&bench).await;
    bench.relay.lead_to(&service(), SECOND, true);
    pairs.push((bench.client().await, accepted(&second).await));
    let mut byte = [0];
    for (pair, questions) in pairs.iter_mut().zip([1, 3]) {
        let (client, served) = pair;
        for _ in 0..questions {
            client.write_all(b"?").await.unwrap();
            within(served.read_exact(&mut byte)).await.unwrap();
            served.write_all(b"!").await.unwrap();
            within(client.read_exact(&mut byte)).await.unwrap();
        }
    }
    let counted = |member| bench.relay.replies(&service(), member).count;
    assert_eq!((counted(FIRST), counted(SECOND), counted(THIRD)), (1, 3, 0));
    // A client that leaves takes nothing with it.
    drop(pairs);
    bench.until("nobody", |traffic| traffic.open_connections == 0).await;
    assert_eq!((counted(FIRST), counted(SECOND)), (1, 3));
}

#[tokio::test]
async fn the_loss_of_the_only_one_holds_its_clients() {
    let mut bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    bench.open();
    let (_client, _served) = (bench.client().await, accepted(&listener).await);
    bench.relay.set_gate(&service(), reveille_core::model::Gate::Hold);
    bench.relay.cut_member(&service(), FIRST);
    bench.until("a held client", |traffic| traffic.held_clients == 1).await;
    assert!(matches!(bench.event().await, reveille_net::RelayEvent::Wanted { .. }));
}

#[tokio::test]
async fn sessions_of_datagrams_are_shared_out_and_each_stays_where_it_is() {
    let bench = Bench::new(&["udp/7007"]).await;
    let first = UdpSocket::bind(bench.backend()).await.unwrap();
    let ip: IpAddr = address().into();
    let second = UdpSocket::bind(SocketAddr::new(ip, bench.stable().port())).await.unwrap();
    bench.relay.set_member(&service(), SECOND, Backend::Address(ip), false);
    bench.relay.lead_to(&service(), SECOND, true);
    bench.open();
    let (mut clients, mut buffer) = (Vec::new(), [0; 8]);
    for n in 0..4_u8 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(&[n], bench.stable()).await.unwrap();
        let socket = if n % 2 == 0 { &first } else { &second };
        within(socket.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(buffer[0], n);
        clients.push(client);
    }
    assert_eq!(in_use(&bench), (2, 2));
    for (n, client) in (10..).zip(&clients) {
        client.send_to(&[n], bench.stable()).await.unwrap();
        let socket = if n % 2 == 0 { &first } else { &second };
        within(socket.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(buffer[0], n, "the same as before");
    }
}
