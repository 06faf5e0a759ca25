//! How much passes a link per second, measured with a guest in this process. Not a test: run it by hand with
//! `cargo test --release -p reveille-net --test guest_throughput -- --ignored --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends where something is not as it should be, and its numbers are small"
)]

mod guest_peer;

use std::time::{Duration, Instant};

use guest_peer::Service;
use reveille_net::guest::{Link, LinkAddresses};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const BYTES: usize = 512 << 20;
const ROUNDS: u32 = 20_000;

fn report(what: &str, bytes: usize, time: Duration) {
    println!("{what}: {:.2} Gbit/s", bytes as f64 * 8e-9 / time.as_secs_f64());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput_and_latency() {
    let (ours, guests) = UnixStream::pair().unwrap();
    let link = Link::attach(ours, LinkAddresses::default());
    let listen = [(7, Service::Echo, 1), (80, Service::Count, 1), (81, Service::Source(BYTES), 1)];
    guest_peer::run(guests, &listen);

    let mut stream = link.connect(80).await.unwrap();
    let chunk = guest_peer::patterned(64 << 10);
    let start = Instant::now();
    for _ in 0..BYTES / chunk.len() {
        stream.write_all(&chunk).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read_u64().await.unwrap(), BYTES as u64);
    report("to the guest", BYTES, start.elapsed());

    let mut stream = link.connect(81).await.unwrap();
    let mut buffer = vec![0; 64 << 10];
    let start = Instant::now();
    let mut got = 0;
    while let count @ 1.. = stream.read(&mut buffer).await.unwrap() {
        got += count;
    }
    assert_eq!(got, BYTES);
    report("from the guest", BYTES, start.elapsed());

    let mut stream = link.connect(7).await.unwrap();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut buffer[..4]).await.unwrap();
    }
    println!("4 bytes there and back: {:.1} us", start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
    println!("{:?}", link.counters());
}
