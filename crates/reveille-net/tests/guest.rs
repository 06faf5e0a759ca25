//! The link to a guest, with a second TCP/IP stack in the guest's place.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends where something is not as it should be, and its numbers are small"
)]

mod guest_peer;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_peer::{Controls, Service, kind, patterned, until, within};
use reveille_net::guest::{
    CONNECTIONS_MAX, ConnectError, DATAGRAM_BYTES_MAX, GuestStream, LINGER_MAX, Link, LinkAddresses,
    RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const MIB: usize = 1 << 20;

fn linked(listen: &[(u16, Service, usize)]) -> (Arc<Link>, Arc<Controls>) {
    let (ours, guests) = UnixStream::pair().unwrap();
    let controls = guest_peer::run(guests, listen);
    (Arc::new(Link::attach(ours, LinkAddresses::default())), controls)
}

/// Lets the link's clock pass, but not the guest's.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_request_is_answered() {
    let (link, _) = linked(&[(7, Service::Echo, 1)]);
    let mut stream = within("connect", link.connect(7)).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    within("answer", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test]
async fn first_bytes_leave_with_the_handshake() {
    let (link, _) = linked(&[(7, Service::Echo, 1)]);
    let first = patterned(SEND_BUFFER_BYTES);
    let (mut stream, taken) =
        within("connect", link.connect_with(7, &patterned(SEND_BUFFER_BYTES + 1))).await.unwrap();
    assert_eq!(taken, first.len());
    // The SYN, then data at once: no segment only to acknowledge.
    assert!(link.counters().frames_out > 40, "{:?}", link.counters());
    let mut answer = vec![0; first.len()];
    within("answer", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, first);
}

#[tokio::test]
async fn a_closed_port_refuses() {
    let (link, _) = linked(&[]);
    assert_eq!(within("refusal", link.connect(81)).await.unwrap_err(), ConnectError::Refused);
    assert_eq!(within("port 0", link.connect(0)).await.unwrap_err(), ConnectError::Refused);
    assert_eq!(link.connections(), 0);
}

#[tokio::test]
async fn our_fin_leaves_the_other_direction_open() {
    let (link, controls) = linked(&[(80, Service::Count, 1)]);
    let mut stream = within("connect", link.connect(80)).await.unwrap();
    within("all written", stream.write_all(&patterned(MIB))).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(kind(stream.write(b"more").await), ErrorKind::BrokenPipe);
    let mut answer = Vec::new();
    within("the guest's answer and FIN", stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, (MIB as u64).to_be_bytes());
    drop(stream);
    until("the connection is over on both sides", || {
        link.connections() == 0 && controls.open.load(Ordering::SeqCst) == 0
    })
    .await;
    assert_eq!(controls.resets.load(Ordering::SeqCst), 0, "closed in order, not by a reset");
}

#[tokio::test]
async fn the_guests_fin_leaves_the_other_direction_open() {
    let (link, controls) = linked(&[(80, Service::Source(MIB), 1)]);
    let mut stream = within("connect", link.connect(80)).await.unwrap();
    let mut got = Vec::new();
    within("all and the FIN", stream.read_to_end(&mut got)).await.unwrap();
    assert!(got == patterned(MIB));
    for _ in 0..16 {
        within("still writable", stream.write_all(&patterned(64 << 10))).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    drop(stream);
    until("closed in order", || link.connections() == 0 && controls.open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(controls.resets.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn both_directions_at_once() {
    let (link, _) = linked(&[(7, Service::Echo, 1)]);
    let stream = within("connect", link.connect(7)).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = patterned(4 * MIB);
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    within("the echo", read.read_to_end(&mut got)).await.unwrap();
    assert!(got == expected);
    writer.await.unwrap();
}

#[tokio::test]
async fn a_reset_by_the_guest_is_no_end_of_file() {
    let (link, _) = linked(&[(80, Service::Reset, 1)]);
    let mut stream = within("connect", link.connect(80)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let broken = within("told", stream.broken()).await;
    assert_eq!(broken.kind(), ErrorKind::ConnectionReset);
    assert_eq!(kind(stream.read(&mut [0; 9]).await), ErrorKind::ConnectionReset);
    assert_eq!(kind(stream.write(b"x").await), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_abort_and_an_early_drop_reset_the_guest() {
    let (link, controls) = linked(&[(7, Service::Echo, 4)]);
    let mut aborted = within("connect", link.connect(7)).await.unwrap();
    let dropped = within("connect", link.connect(7)).await.unwrap();
    let mut half = within("connect", link.connect(7)).await.unwrap();
    until("accepted", || controls.open.load(Ordering::SeqCst) == 3).await;
    aborted.abort();
    assert_eq!(kind(aborted.read(&mut [0; 9]).await), ErrorKind::ConnectionAborted);
    drop(dropped);
    until("two resets", || controls.resets.load(Ordering::SeqCst) == 2).await;
    // Our FIN is sent, but the guest's was not read: somebody lost interest in the answer.
    half.write_all(b"question").await.unwrap();
    half.shutdown().await.unwrap();
    drop(half);
    until("the third", || controls.resets.load(Ordering::SeqCst) >= 3).await;
    drop(aborted);
    until("nothing is left", || link.connections() == 0).await;
}

#[tokio::test]
async fn a_slow_guest_holds_its_writer_back() {
    let (link, controls) = linked(&[(80, Service::Slow, 1)]);
    let stream = within("connect", link.connect(80)).await.unwrap();
    let chunk = patterned(64 << 10);
    let mut taken = 0;
    while let Ok(writable) = tokio::time::timeout(Duration::from_millis(300), stream.writable()).await {
        let () = writable;
        taken += stream.try_write(&chunk).unwrap();
    }
    // Its window of 256 KiB and our buffer, not more.
    assert!((256 << 10..=(256 << 10) + SEND_BUFFER_BYTES).contains(&taken), "{taken}");
    controls.resume();
    within("goes on", stream.writable()).await;
    assert!(stream.try_write(&chunk).is_ok());
}

#[tokio::test]
async fn a_slow_reader_holds_the_guest_back() {
    let (link, _) = linked(&[(80, Service::Source(4 * MIB), 1)]);
    let mut stream = within("connect", link.connect(80)).await.unwrap();
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = link.counters().bytes_in;
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < RECEIVE_BUFFER_BYTES as u64 * 5 / 4, "{before} bytes came although nobody read");
    let mut got = Vec::new();
    within("all of it", stream.read_to_end(&mut got)).await.unwrap();
    assert!(got == patterned(4 * MIB));
}

#[tokio::test]
async fn what_was_received_survives_the_end_of_the_connection() {
    let (link, _) = linked(&[(80, Service::Source(40_000), 1)]);
    let mut stream = within("connect", link.connect(80)).await.unwrap();
    stream.shutdown().await.unwrap();
    until("everything came", || link.counters().bytes_in > 40_000).await;
    // Longer than the TCP stack keeps a socket in TIME-WAIT.
    pass(Duration::from_secs(11)).await;
    let mut got = Vec::new();
    within("all of it", stream.read_to_end(&mut got)).await.unwrap();
    assert!(got == patterned(40_000));
}

#[tokio::test]
async fn the_last_bytes_of_a_finished_connection_do_not_wait_for_ever() {
    let (link, controls) = linked(&[(80, Service::Slow, 1)]);
    let mut stream = within("connect", link.connect(80)).await.unwrap();
    let chunk = patterned(64 << 10);
    while stream.try_write(&chunk).is_ok() || !is_stuck(&stream).await {}
    stream.shutdown().await.unwrap();
    controls.close(80);
    assert_eq!(within("the guest's FIN", stream.read(&mut [0; 9])).await.unwrap(), 0);
    drop(stream);
    pass(LINGER_MAX - Duration::from_secs(1)).await;
    assert_eq!(link.connections(), 1, "the guest may still read");
    pass(Duration::from_secs(1)).await;
    until("given up", || link.connections() == 0).await;
    until("by a reset", || controls.resets.load(Ordering::SeqCst) == 1).await;
}

async fn is_stuck(stream: &GuestStream) -> bool {
    tokio::time::timeout(Duration::from_millis(100), stream.writable()).await.is_err()
}

#[tokio::test]
async fn a_lost_segment_is_sent_again() {
    let (link, controls) = linked(&[(7, Service::Echo, 1)]);
    let mut stream = within("connect", link.connect(7)).await.unwrap();
    controls.deaf.store(true, Ordering::SeqCst);
    stream.write_all(b"hello").await.unwrap();
    let all_seen = || controls.seen.load(Ordering::SeqCst) as u64 == link.counters().frames_out;
    until("lost", || controls.missed.load(Ordering::SeqCst) >= 1 && all_seen()).await;
    controls.deaf.store(false, Ordering::SeqCst);
    pass(Duration::from_secs(2)).await;
    let mut answer = [0; 5];
    within("answer", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test]
async fn keep_alive_finds_a_guest_that_has_forgotten() {
    let (link, controls) = linked(&[(7, Service::Echo, 1)]);
    let stream = within("connect", link.connect(7)).await.unwrap();
    stream.set_keep_alive(Some(Duration::from_secs(30)));
    until("the first one came", || controls.seen.load(Ordering::SeqCst) == 3).await;
    controls.forget();
    assert!(tokio::time::timeout(Duration::from_millis(50), stream.broken()).await.is_err());
    pass(Duration::from_secs(31)).await;
    assert_eq!(within("told", stream.broken()).await.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_connections_at_once() {
    let (link, controls) = linked(&[(7, Service::Echo, 200)]);
    let clients: Vec<_> = (0..200)
        .map(|number: usize| {
            let link = Arc::clone(&link);
            tokio::spawn(async move {
                let mut stream = link.connect(7).await.unwrap();
                let sent = vec![number as u8; 10_000 + number];
                stream.write_all(&sent).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.unwrap();
                assert!(got == sent);
            })
        })
        .collect();
    for client in clients {
        within("a client", client).await.unwrap();
    }
    until("all are over", || link.connections() == 0 && controls.open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(controls.resets.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn there_is_a_limit_and_giving_up_makes_room() {
    let (link, controls) = linked(&[]);
    controls.deaf.store(true, Ordering::SeqCst);
    let attempts: Vec<_> = (0..CONNECTIONS_MAX).map(|_| link.begin_connect(7).unwrap()).collect();
    assert_eq!(link.connect(7).await.unwrap_err(), ConnectError::TooMany);
    drop(attempts);
    assert_eq!(link.connections(), 0);
    for _ in 0..3 * CONNECTIONS_MAX {
        let _ = tokio::time::timeout(Duration::ZERO, link.connect(7)).await;
    }
    assert_eq!(link.connections(), 0);
}

#[tokio::test]
async fn a_guest_that_comes_up_late_is_found() {
    let (link, controls) = linked(&[(7, Service::Echo, 20)]);
    controls.deaf.store(true, Ordering::SeqCst);
    let streams: Vec<_> = (0..20).map(|_| link.begin_connect(7).unwrap()).collect();
    let reachable = {
        let link = Arc::clone(&link);
        tokio::spawn(async move { link.reachable().await })
    };
    // The retransmission timer backs off until it would come too late for this test.
    for seconds in [1, 2, 4, 8] {
        let missed = controls.missed.load(Ordering::SeqCst);
        pass(Duration::from_millis(seconds * 1000 + 100)).await;
        until("twenty SYNs and a probe are lost", || controls.missed.load(Ordering::SeqCst) > missed + 20)
            .await;
    }
    controls.deaf.store(false, Ordering::SeqCst);
    for stream in &streams {
        within("connected", stream.connected()).await.unwrap();
    }
    assert!(within("reachable", reachable).await.unwrap());
    // Each SYN once more, not oftener.
    let missed = controls.missed.load(Ordering::SeqCst) as u64;
    assert!(link.counters().frames_out <= missed + 20 * 2 + 2, "{:?} after {missed}", link.counters());
}

#[tokio::test]
async fn a_port_that_the_guest_still_knows_is_left_for_another() {
    let (link, controls) = linked(&[(7, Service::Echo, 1)]);
    controls.challenge.store(3, Ordering::SeqCst);
    let mut stream = link.begin_connect(7).unwrap();
    let stale = stream.local_port();
    within("connect", stream.connected()).await.unwrap();
    assert_ne!(stream.local_port(), stale);
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    within("answer", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"hello");
    until("the old connections are reset", || controls.resets.load(Ordering::SeqCst) == 3).await;
}

#[tokio::test]
async fn datagrams_of_every_size_go_and_come() {
    let (link, _) = linked(&[]);
    let flows: Vec<_> = (0..5).map(|_| link.datagrams(7).unwrap()).collect();
    for size in [0, 1, 100, 1471, 1472, 1473, 2952, 2953, 9000, 60_000, DATAGRAM_BYTES_MAX] {
        for (number, flow) in flows.iter().enumerate() {
            let mut sent = patterned(size);
            sent.iter_mut().for_each(|byte| *byte ^= number as u8);
            flow.send(&sent).unwrap();
            let got = within("the echo", flow.recv()).await.unwrap();
            assert!(got == sent, "{size} bytes in flow {number}");
        }
    }
    assert_eq!(kind(flows[0].send(&vec![0; DATAGRAM_BYTES_MAX + 1])), ErrorKind::InvalidInput);
    assert_eq!(link.counters().dropped, Default::default());
}

#[tokio::test]
async fn a_udp_port_without_a_listener_is_told_once() {
    let (link, _) = linked(&[]);
    let flow = link.datagrams(9).unwrap();
    flow.send(b"anybody?").unwrap();
    assert_eq!(kind(within("told", flow.recv()).await), ErrorKind::ConnectionRefused);
    assert_eq!(kind(flow.try_recv()), ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_flow_that_nobody_reads_is_bounded() {
    let (link, _) = linked(&[]);
    let flow = link.datagrams(7).unwrap();
    for _ in 0..200 {
        while flow.send(&[1; 8000]).is_err() {
            tokio::task::yield_now().await;
        }
    }
    until("all echoes came", || {
        let counters = link.counters();
        counters.dropped.flow_full > 0 && counters.frames_in >= 200 * 6
    })
    .await;
    let mut kept = 0;
    while flow.try_recv().is_ok() {
        kept += 1;
    }
    assert_eq!(kept, (256 << 10) / 8064);
    assert_eq!(link.counters().dropped.flow_full, 200 - kept);
}

#[tokio::test]
async fn the_end_of_the_link_wakes_everybody() {
    let (ours, guests) = UnixStream::pair().unwrap();
    let link = Arc::new(Link::attach(ours, LinkAddresses::default()));
    let controls = guest_peer::run(guests, &[(7, Service::Echo, 4), (80, Service::Slow, 1)]);
    let mut reader = within("connect", link.connect(7)).await.unwrap();
    let mut writer = within("connect", link.connect(80)).await.unwrap();
    let quiet = within("connect", link.connect(7)).await.unwrap();
    let flow = link.datagrams(7).unwrap();
    controls.deaf.store(true, Ordering::SeqCst);
    let opening = {
        let link = Arc::clone(&link);
        tokio::spawn(async move { link.connect(7).await.map(|_| ()) })
    };
    let reading = tokio::spawn(async move { reader.read(&mut [0; 9]).await });
    let writing = tokio::spawn(async move { writer.write_all(&vec![0; 4 * MIB]).await });
    let breaking = tokio::spawn(async move { quiet.broken().await.kind() });
    let receiving = tokio::spawn(async move { flow.recv().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Nobody is left at the other end.
    controls.hang_up();
    within("link", link.closed()).await;
    assert_eq!(within("connect", opening).await.unwrap(), Err(ConnectError::LinkClosed));
    assert_eq!(kind(within("read", reading).await.unwrap()), ErrorKind::ConnectionAborted);
    assert_eq!(kind(within("write", writing).await.unwrap()), ErrorKind::ConnectionAborted);
    assert_eq!(within("broken", breaking).await.unwrap(), ErrorKind::ConnectionAborted);
    assert_eq!(kind(within("receive", receiving).await.unwrap()), ErrorKind::ConnectionAborted);
    assert_eq!(link.connect(7).await.unwrap_err(), ConnectError::LinkClosed);
    assert!(link.datagrams(7).is_err());
    assert!(!link.reachable().await);
}

#[tokio::test]
async fn a_dropped_link_resets_and_closes() {
    let (ours, guests) = UnixStream::pair().unwrap();
    let link = Link::attach(ours, LinkAddresses::default());
    let controls = guest_peer::run(guests, &[(7, Service::Echo, 1)]);
    let mut stream = within("connect", link.connect(7)).await.unwrap();
    drop(link);
    until("the guest is told", || controls.resets.load(Ordering::SeqCst) == 1).await;
    until("the socket is closed while the stream still exists", || controls.hung_up()).await;
    assert_eq!(kind(stream.read(&mut [0; 9]).await), ErrorKind::ConnectionAborted);
}
