//! What a sleeping service takes of memory in the view: 400 bytes would be too many, 261 are known to do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "counting bytes takes an allocator of one's own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::Ipv4Addr;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use reveille_core::answer::{ServiceView, View, WakeTime, Zone, ZoneDefaults, Zones};
use reveille_core::model::{DomainName, InstanceId, Timestamp};

/// Services of the view.
const SERVICES: u32 = 100_000;

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

/// What the C library's allocator takes for a block: a word more, in steps of 16 bytes.
fn taken(layout: Layout) -> usize {
    (layout.size() + size_of::<usize>()).next_multiple_of(16).max(32)
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(taken(layout), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(taken(layout), Relaxed);
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn zone() -> Zone {
    let apex: DomainName = "vm.test".parse().unwrap();
    let defaults = ZoneDefaults {
        name_servers: vec![(apex.prepend("ns1").unwrap(), vec![Ipv4Addr::LOCALHOST.into()])],
        hostmaster: apex.prepend("hostmaster").unwrap(),
        apex,
        serial: 1,
        ttl: 30,
        negative_ttl: 30,
    };
    defaults.zone().unwrap()
}

/// A service that has hibernated, with everything that is known of such.
fn service(n: u32) -> ServiceView {
    let address = Ipv4Addr::from_bits(0x7f40_0000 + n);
    ServiceView {
        counter: n + 1,
        version: NonZero::new(7),
        hibernated_at: Some(Timestamp::from_ms(1_800_000_000_000)),
        wake: Some(WakeTime { ms_p50: 186, ms_p95: 240 }),
        instance: InstanceId(n.into()),
        ..ServiceView::asleep(format!("svc{n}.vm.test").parse().unwrap(), address)
    }
}

#[test]
fn a_sleeping_service_is_small() {
    let zones = Zones::new([Arc::new(zone())]);
    let before = ALLOCATED.load(Relaxed);
    let services = (0..SERVICES).map(|n| Arc::new(service(n)));
    let view = View::new(1, zones, services, View::default_monitors());
    let bytes = (ALLOCATED.load(Relaxed) - before) / usize::try_from(SERVICES).unwrap();
    let table = view.names().heap_bytes() / view.names().len();
    println!("{bytes} bytes a service, {table} of them in the table; {}", size_of::<ServiceView>());
    assert!(bytes <= 270, "{bytes}");
}
