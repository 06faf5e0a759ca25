//! Wakes at random moments: nothing is lost, nothing is sent twice.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reveille_core::model::Timestamp;
use reveille_net::RelayEvent;
use reveille_vm::driver::{Abandon, Capture, Driver, Mapping};

use crate::guest::{PATIENCE, PORT, V4, V6, World, run_on_host, service};
use crate::spaces::{Spaces, may_run, tcp_count};

/// How often clients come; `REVEILLE_TEST_TAP_WAKES` raises it.
const WAKES: u64 = 30;
/// Quiet time after which the guest is put to sleep: longer than it takes to answer on a busy machine.
const IDLE_MS: u64 = 300;

#[test]
fn clients_at_random_moments_are_all_served_by_their_first_packet() {
    if !may_run("wakes through taps") {
        return;
    }
    let wakes = std::env::var("REVEILLE_TEST_TAP_WAKES").map_or(WAKES, |text| text.parse().unwrap());
    let spaces = Spaces::new();
    let (ready, done, closings) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (ready, done, closings, spaces) = (&ready, &done, &closings, &spaces);
        let host = scope.spawn(move || run_on_host(spaces, sleep_and_wake(ready, done, closings)));
        scope.spawn(move || {
            let _end = End(done);
            spaces.on_client(|| come(wakes, ready, closings))
        });
        let counts = host.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        println!("{counts:?}");
        assert!(counts.wakes > 0 && counts.wakes + counts.turned_back + counts.awake >= 1, "{counts:?}");
    });
}

/// Says that it is over, also when a client fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[derive(Debug, Default)]
struct Counts {
    wakes: u64,
    armed: u64,
    turned_back: u64,
    awake: u64,
}

/// The host: sleeps whenever it may, wakes whenever it is wanted.
async fn sleep_and_wake(ready: &AtomicBool, done: &AtomicBool, closings: &AtomicU64) -> Counts {
    let mut world = World::new().await;
    let mut counts = Counts::default();
    let mut random = Random(7);
    world.boot().await;
    world.open();
    ready.store(true, Ordering::SeqCst);
    let mut number = 0;
    while !done.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        while world.events.try_recv().is_some() {}
        closings.fetch_add(1, Ordering::SeqCst);
        if world.taps.close_if_idle(&service(), IDLE_MS, false).is_err() {
            closings.fetch_sub(1, Ordering::SeqCst);
            counts.awake += 1;
            continue;
        }
        number += 1;
        let (abandon, launch) = (Abandon::default(), world.launch());
        let mut wanted = false;
        let captured = {
            let capture = world.guest.qemu.capture(&launch, number, Timestamp::from_ms(1), &abandon);
            tokio::pin!(capture);
            loop {
                tokio::select! {
                    captured = &mut capture => break captured.unwrap(),
                    event = world.events.recv() => if matches!(event, Some(RelayEvent::Wanted { .. })) {
                        wanted = true;
                        abandon.raise();
                    },
                }
            }
        };
        match captured {
            Capture::Abandoned => {
                counts.turned_back += 1;
                world.open();
                continue;
            }
            Capture::Published(_) => {}
        }
        if !wanted && random.below(2) == 0 {
            world.qemu.arm(&launch, Mapping::Consume).await.unwrap();
            counts.armed += 1;
        }
        while !wanted && !done.load(Ordering::SeqCst) {
            let event = tokio::time::timeout(Duration::from_millis(100), world.events.recv()).await;
            wanted = matches!(event, Ok(Some(RelayEvent::Wanted { .. })));
        }
        if !wanted {
            break;
        }
        world.qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap();
        world.open();
        counts.wakes += 1;
    }
    counts
}

/// The clients, one after another.
fn come(count: u64, ready: &AtomicBool, closings: &AtomicU64) {
    let began = Instant::now();
    while !ready.load(Ordering::SeqCst) {
        assert!(began.elapsed() < PATIENCE, "the guest does not boot");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut random = Random(std::process::id().into());
    let (mut slowest, mut slow) = (Duration::ZERO, 0);
    for number in 0..count {
        if random.below(3) == 0 {
            in_a_hibernation(closings, &mut random);
        } else {
            std::thread::sleep(Duration::from_millis(random.below(1_200)));
        }
        let address: IpAddr = if random.below(2) == 0 { V4.into() } else { V6.into() };
        let to = SocketAddr::new(address, PORT);
        let began = Instant::now();
        let protocol = if random.below(2) == 0 { "tcp" } else { "udp" };
        let before = tcp_count("TCPSynRetrans");
        let answer = if protocol == "tcp" { over_tcp(to, number) } else { over_udp(to, number) };
        let took = began.elapsed();
        assert_eq!(
            answer.unwrap_or_else(|error| panic!("{number}: {protocol} to {to}: {error}")),
            text(number)
        );
        slowest = slowest.max(took);
        if took < Duration::from_millis(900) {
            assert_eq!(tcp_count("TCPSynRetrans"), before, "{number}: {protocol} to {to} after {took:?}");
        } else {
            slow += 1;
        }
    }
    println!("{count} clients, the slowest waited {slowest:?}, {slow} more than 0.9 s");
}

/// Waits until the gate is being closed, and a moment more.
fn in_a_hibernation(closings: &AtomicU64, random: &mut Random) {
    let (before, began) = (closings.load(Ordering::SeqCst), Instant::now());
    while closings.load(Ordering::SeqCst) <= before && began.elapsed() < Duration::from_secs(2) {
        std::hint::spin_loop();
    }
    std::thread::sleep(Duration::from_micros(random.below(20_000)));
}

fn text(number: u64) -> String {
    format!("client {number}")
}

fn over_tcp(to: SocketAddr, number: u64) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(20))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(text(number).as_bytes())?;
    let mut answer = vec![0; text(number).len()];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8(answer).unwrap())
}

fn over_udp(to: SocketAddr, number: u64) -> std::io::Result<String> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    // Once: what is lost stays lost.
    socket.send(text(number).as_bytes())?;
    let mut answer = [0; 100];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8(answer[..length].to_vec()).unwrap())
}

/// Numbers that are random enough (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
