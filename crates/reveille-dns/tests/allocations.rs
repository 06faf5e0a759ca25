//! Ordinary queries are answered without a single allocation (Q8).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "counting allocations takes an allocator of one's own")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use common::{WAIT_MAX, World, active, name, service, zone};
use reveille_core::answer::{View, Zones};
use reveille_dns::DnsConfig;

/// The thread whose allocations are counted.
static THREAD: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

impl Counting {
    fn count() {
        let thread = THREAD.load(Relaxed);
        // SAFETY: a system call without arguments.
        if thread != 0 && unsafe { libc::gettid() } == thread {
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

fn thread_named(wanted: &str) -> i32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let mut named = tasks.filter(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim() == wanted);
    named.next().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn an_ordinary_query_allocates_nothing() {
    const QUERIES: u16 = 5_000;
    let services = [active(service("awake.vm.test", 1)), service("asleep.vm.test", 2)].map(Arc::new);
    let view = View::new(1, Zones::new([Arc::new(zone())]), services, []);
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let world = World::serving(view, &DnsConfig { listen, udp_threads: 1, ..DnsConfig::default() });
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
    THREAD.store(thread_named("dns-udp-0"), Relaxed);
    (1..=QUERIES / 6).for_each(round);
    assert_eq!(ALLOCATIONS.load(Relaxed), 0);
    // The count is not zero because nothing is counted: a wake is handed to the slow loop on the heap.
    assert_eq!(ask("asleep.vm.test", 1, false), 0);
    assert!(ALLOCATIONS.load(Relaxed) > 0);
}
