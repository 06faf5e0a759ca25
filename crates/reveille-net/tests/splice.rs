//! Relayed connections: exact bytes, half-close, resets, back-pressure, and a backend that is slow to listen.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use common::{Bench, address, binding, ends_by_reset, reset, service, within};
use proptest::prelude::*;
use reveille_core::model::InstanceId;
use reveille_net::{RelayLimits, Replies};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes in which a shift or a repetition shows.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

/// A relayed connection: the client's end and the backend's.
async fn pair(bench: &Bench, listener: &TcpListener) -> (TcpStream, TcpStream) {
    bench.open();
    let client = bench.client().await;
    let (backend, _) = within(listener.accept()).await.unwrap();
    (client, backend)
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within(stream.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

/// One side sends all, then its FIN; the other answers only after it has seen that.
async fn one_after_the_other(first: &mut TcpStream, second: &mut TcpStream, sizes: (usize, usize)) {
    let (question, answer) = (pattern(sizes.0, 1), pattern(sizes.1, 2));
    let asking = async {
        first.write_all(&question).await.unwrap();
        first.shutdown().await.unwrap();
        read_all(first).await
    };
    let answering = async {
        let heard = read_all(second).await;
        second.write_all(&answer).await.unwrap();
        second.shutdown().await.unwrap();
        heard
    };
    let (got, heard) = within(async { tokio::join!(asking, answering) }).await;
    assert!(heard == question && got == answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_close_is_carried_in_both_directions() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    let (mut client, mut backend) = pair(&bench, &listener).await;
    one_after_the_other(&mut client, &mut backend, (1 << 20, 3 << 20)).await;
    let (mut client, mut backend) = pair(&bench, &listener).await;
    one_after_the_other(&mut backend, &mut client, (1 << 20, 3 << 20)).await;
    let traffic = bench.until("two orderly ends", |traffic| traffic.completed == 2).await;
    assert_eq!((traffic.bytes_in, traffic.bytes_out), (4 << 20, 4 << 20));
    assert_eq!(traffic.open_connections, 0);
}

#[tokio::test]
async fn the_time_to_an_answer_counts_from_what_the_client_said() {
    const SLOW: Duration = Duration::from_millis(30);
    let bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    let (mut client, mut backend) = pair(&bench, &listener).await;
    let mut byte = [0];
    // A greeting answers nobody.
    backend.write_all(b"2").await.unwrap();
    within(client.read_exact(&mut byte)).await.unwrap();
    assert_eq!(replies(&bench), Replies::default());
    for said in ["a", "bc"] {
        for part in said.as_bytes().chunks(1) {
            client.write_all(part).await.unwrap();
            within(backend.read_exact(&mut byte)).await.unwrap();
        }
        tokio::time::sleep(SLOW).await;
        for _ in 0..2 {
            backend.write_all(b"!").await.unwrap();
            within(client.read_exact(&mut byte)).await.unwrap();
        }
    }
    let counted = replies(&bench);
    assert_eq!(counted.count, 2, "one for each question, however many bytes either had");
    assert!(u128::from(counted.us) >= 2 * SLOW.as_micros(), "{counted:?}");
}

/// What the bench's backend, instance 0, has answered.
fn replies(bench: &Bench) -> Replies {
    bench.relay.replies(&service(), InstanceId(0))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever both sides write at the same time, in whatever pieces, arrives.
    #[test]
    fn both_streams_arrive_as_they_were_sent(
        up in prop::collection::vec(1..200_000usize, 0..8),
        down in prop::collection::vec(1..200_000usize, 0..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new(&["tcp/8080"]).await;
            let listener = bench.listen().await;
            let (mut client, mut backend) = pair(&bench, &listener).await;
            let (mut client_in, mut client_out) = client.split();
            let (mut backend_in, mut backend_out) = backend.split();
            let send_up = async {
                for &piece in &up { client_out.write_all(&pattern(piece, 3)).await.unwrap(); }
                client_out.shutdown().await.unwrap();
            };
            let send_down = async {
                for &piece in &down { backend_out.write_all(&pattern(piece, 4)).await.unwrap(); }
                backend_out.shutdown().await.unwrap();
            };
            let (mut at_backend, mut at_client) = (Vec::new(), Vec::new());
            let (_, _, heard, got) = within(async {
                tokio::join!(
                    send_up, send_down,
                    backend_in.read_to_end(&mut at_backend), client_in.read_to_end(&mut at_client),
                )
            }).await;
            heard.and(got).unwrap();
            let sent = |pieces: &[usize], seed| pieces.iter().flat_map(|piece| pattern(*piece, seed)).collect::<Vec<_>>();
            assert!(at_backend == sent(&up, 3) && at_client == sent(&down, 4));
            bench.relay.unbind(&service()).await;
        });
    }
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_backend_as_a_reset() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    let (mut client, mut backend) = pair(&bench, &listener).await;
    client.write_all(b"half a req").await.unwrap();
    assert_eq!(within(backend.read(&mut [0; 64])).await.unwrap(), 10);
    reset(client);
    assert!(ends_by_reset(&mut backend).await);
    assert_eq!(bench.until("the end", |t| t.open_connections == 0).await.client_resets, 1);

    // Also when the client had sent its FIN before, and nobody reads from it any more.
    let (mut client, mut backend) = pair(&bench, &listener).await;
    client.write_all(b"all").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut backend).await, b"all");
    reset(client);
    assert!(ends_by_reset_on_write(&mut backend).await);
}

/// Whether writing meets a reset, as reading after a FIN never does.
async fn ends_by_reset_on_write(stream: &mut TcpStream) -> bool {
    let broken = within(stream.ready(tokio::io::Interest::ERROR)).await.unwrap();
    broken.is_error()
}

#[tokio::test]
async fn a_reset_of_the_backend_reaches_the_client_as_a_reset_after_the_bytes_before_it() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    let (mut client, mut backend) = pair(&bench, &listener).await;
    backend.write_all(b"half an ans").await.unwrap();
    assert_eq!(within(client.read(&mut [0; 64])).await.unwrap(), 11);
    reset(backend);
    assert!(ends_by_reset(&mut client).await);
    assert_eq!(bench.until("the end", |t| t.open_connections == 0).await.backend_resets, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_throttles_the_writer_in_both_directions() {
    const TOTAL: usize = 96 << 20;
    let bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    for upwards in [true, false] {
        let (client, backend) = pair(&bench, &listener).await;
        let (writer, mut reader) = if upwards { (client, backend) } else { (backend, client) };
        let chunk = pattern(65_536, 5);
        let mut written = 0;
        while written < TOTAL {
            let ready = tokio::time::timeout(Duration::from_millis(300), writer.writable()).await;
            let Ok(ready) = ready else { break };
            ready.unwrap();
            let from = written % chunk.len();
            written += writer.try_write(&chunk[from..]).unwrap_or(0);
        }
        assert!(written < TOTAL, "the relay took all, so it must have kept it");
        drop(writer);
        let received = read_all(&mut reader).await;
        assert_eq!(received.len(), written);
        assert!(received.chunks(chunk.len()).all(|part| *part == chunk[..part.len()]));
    }
}

#[tokio::test]
async fn a_backend_that_is_not_there_yet_is_waited_for() {
    let bench = Bench::new(&["tcp/8080"]).await;
    bench.open();
    let mut client = bench.client().await;
    client.write_all(b"early").await.unwrap();
    client.shutdown().await.unwrap();
    bench.until("a few refused tries", |traffic| traffic.retries >= 3).await;
    let listener = bench.listen().await;
    let (mut backend, _) = within(listener.accept()).await.unwrap();
    assert_eq!(read_all(&mut backend).await, b"early");
    backend.write_all(b"late").await.unwrap();
    drop(backend);
    assert_eq!(read_all(&mut client).await, b"late");
}

#[tokio::test]
async fn what_a_backend_does_after_its_handshake_is_its_answer_and_is_not_tried_again() {
    let bench = Bench::new(&["tcp/8080"]).await;
    let listener = bench.listen().await;
    let (mut silent, backend) = pair(&bench, &listener).await;
    reset(backend);
    assert!(ends_by_reset(&mut silent).await);

    let (mut asking, mut backend) = pair(&bench, &listener).await;
    asking.write_all(b"poison").await.unwrap();
    within(backend.read_exact(&mut [0; 6])).await.unwrap();
    reset(backend);
    assert!(ends_by_reset(&mut asking).await);

    let (mut waiting, backend) = pair(&bench, &listener).await;
    drop(backend);
    assert_eq!(read_all(&mut waiting).await, b"");
    drop(waiting);
    let traffic = bench.until("three ends", |t| t.backend_resets + t.completed == 3).await;
    assert_eq!((traffic.backend_resets, traffic.opened, traffic.retries), (2, 3, 0));
}

#[tokio::test]
async fn a_guest_that_never_listens_costs_the_client_its_time_and_then_a_reset() {
    let mut short = binding(&["tcp/8080"]);
    short.held_ms_max = 200;
    let bench = Bench::with(short, RelayLimits::default()).await;
    bench.open();
    let mut client = bench.client().await;
    client.write_all(b"anybody?").await.unwrap();
    assert!(ends_by_reset(&mut client).await);
    let traffic = bench.until("the end", |traffic| traffic.open_connections == 0).await;
    assert_eq!(traffic.expired, 1);
}

#[tokio::test]
async fn a_connection_that_the_guest_has_closed_does_not_stay_open_for_a_silent_client() {
    let limits = RelayLimits { half_closed_ms_max: 100, ..RelayLimits::default() };
    let bench = Bench::with(binding(&["tcp/8080"]), limits).await;
    let listener = bench.listen().await;
    let (mut client, mut backend) = pair(&bench, &listener).await;
    backend.write_all(b"bye").await.unwrap();
    backend.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, b"bye");
    let traffic = bench.until("its end", |traffic| traffic.open_connections == 0).await;
    assert_eq!(traffic.half_closed, 1);
}

#[tokio::test]
async fn clients_reach_a_service_over_ipv6_and_ipv4() {
    let mut both = binding(&["tcp/8080"]);
    // ::1 is shared with other tests, so the port must be this one's own, and none that the kernel hands out.
    let [_, b, c, d] = address().octets();
    let port = 20_000 + (u16::from_be_bytes([b, c]) % 500) * 20 + u16::from(d) % 20;
    both.ports[0].number = port;
    both.stable.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
    let bench = Bench::with(both, RelayLimits::default()).await;
    let listener = bench.listen().await;
    bench.open();
    for stable in bench.binding.stable.clone() {
        let mut client = within(TcpStream::connect((stable, port))).await.unwrap();
        let (mut backend, _) = within(listener.accept()).await.unwrap();
        one_after_the_other(&mut client, &mut backend, (1_000, 1_000)).await;
    }
}
