//! Ordinary queries are answered without a single allocation (Q8).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "counting allocations takes an allocator of one's own")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use common::{WAIT_MAX, World, active, name, service, zone};
use reveille_core::answer::{View, Zones};
use reveille_dns::DnsConfig;
use reveille_dns::dnstap::DnstapOut;

/// The threads whose allocations are counted.
static THREADS: [AtomicI32; 64] = [const { AtomicI32::new(0) }; 64];
/// One test at a time: the counter is there once.
static TURN: Mutex<()> = Mutex::new(());
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

impl Counting {
    fn count() {
        if THREADS[0].load(Relaxed) == 0 {
            return;
        }
        // SAFETY: a system call without arguments.
        let own = unsafe { libc::gettid() };
        if THREADS.iter().any(|thread| thread.load(Relaxed) == own) {
            ALLOCATIONS.fetch_add(1, Relaxed);
        }
    }
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        Self::count();
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Begins to count what the threads allocate whose names begin so.
fn count(threads: &str) {
    ALLOCATIONS.store(0, Relaxed);
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let named = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).unwrap().starts_with(threads);
    let ids: Vec<i32> = tasks
        .filter(named)
        .map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap())
        .collect();
    assert!((1..=THREADS.len()).contains(&ids.len()));
    THREADS.iter().zip(ids).for_each(|(thread, id)| thread.store(id, Relaxed));
}

/// How many there were; counts no longer.
fn counted() -> u64 {
    THREADS.iter().for_each(|thread| thread.store(0, Relaxed));
    ALLOCATIONS.load(Relaxed)
}

#[test]
fn an_ordinary_query_allocates_nothing() {
    ordinary_queries(DnstapOut::default());
}

#[test]
fn nor_does_it_while_dnstap_tells_of_it_and_of_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let to = format!("file:{}", dir.path().join("own.fstrm").display());
    ordinary_queries(DnstapOut { to, responses: true, ..DnstapOut::default() });
}

fn ordinary_queries(dnstap: DnstapOut) {
    const QUERIES: u16 = 5_000;
    let is_told = dnstap.is_on();
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let services = [active(service("awake.vm.test", 1)), service("asleep.vm.test", 2)].map(Arc::new);
    let zones = Zones::new([Arc::new(zone())]);
    let view = View::new(1, zones, services, View::default_monitors());
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let world = World::serving(view, &DnsConfig { listen, udp_threads: 1, dnstap, ..DnsConfig::default() });
    world.until("dnstap", |world| world.server.dnstap().is_none_or(|told| told.is_connected));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    socket.connect(world.address()).unwrap();
    let ask = |qname: &str, qtype: u8, edns: bool| {
        let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
        packet.extend(name(qname).as_wire());
        packet.extend([0, qtype, 0, 1]);
        if edns {
            // With a client subnet.
            packet.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 11, 0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2]);
        }
        let mut answer = [0; 512];
        socket.send(&packet).unwrap();
        socket.recv(&mut answer).unwrap();
        answer[3] & 0xf
    };
    let round = |n: u16| {
        for edns in [false, true] {
            assert_eq!(ask("awake.vm.test", 1, edns), 0);
            assert_eq!(ask("awake.vm.test", 28, edns), 0);
            assert_eq!(ask(&format!("no-{n}.vm.test"), 1, edns), 3);
        }
    };
    // The first ones warm up what is made once.
    round(0);
    count("dns-udp-");
    (1..=QUERIES / 6).for_each(round);
    assert_eq!(ALLOCATIONS.load(Relaxed), 0);
    // Nor does one that wakes: a short name is handed to the slow loop as it is.
    assert_eq!(ask("asleep.vm.test", 1, false), 0);
    assert_eq!(ALLOCATIONS.load(Relaxed), 0);
    // The count is not zero because nothing is counted: the state is written on the heap.
    assert_eq!(ask("_vmstate.asleep.vm.test", 16, false), 0);
    assert!(counted() > 0);
    let told = || world.server.dnstap().map_or(0, |told| told.sent);
    world.until("everything is told", |_| !is_told || told() >= 2 * u64::from(QUERIES));
}

#[test]
fn neither_does_one_over_a_connection_that_stands() {
    const AT_ONCE: usize = 100;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let services = [active(service("awake.vm.test", 1))].map(Arc::new);
    let view = View::new(1, Zones::new([Arc::new(zone())]), services, []);
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let world = World::serving(view, &DnsConfig { listen, udp_threads: 1, ..DnsConfig::default() });
    let mut stream = TcpStream::connect(world.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let qname = name("awake.vm.test");
    let question = [&[0, 31, 0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], qname.as_wire(), &[0, 1, 0, 1]];
    let questions = question.concat().repeat(AT_ONCE);
    let mut answers = vec![0; AT_ONCE * (2 + 31 + 16)];
    let mut round = |cut: usize| {
        // Some messages come in two pieces.
        let (first, second) = questions.split_at(cut);
        stream.write_all(first).unwrap();
        stream.write_all(second).unwrap();
        stream.read_exact(&mut answers).unwrap();
        assert!(answers.ends_with(&[0, 4, 127, 64, 0, 1]));
    };
    (0..10).for_each(|n| round(n * 40));
    count("tokio-");
    (0..60).for_each(|n| round(n * 50));
    assert_eq!(counted(), 0);
}
