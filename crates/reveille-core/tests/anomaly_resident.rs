//! What a detector holds per name, and that a point allocates nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "counting bytes takes an allocator of one's own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use reveille_core::forecast::anomaly::{Detector, STATE_BYTES_MAX, Settings};
use reveille_core::model::Timestamp;

/// Bytes that are allocated now, and calls that allocated.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Relaxed);
        CALLS.fetch_add(1, Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_detector_stays_as_large_as_it_was_made() {
    for trailing_points in [Settings::default().trailing_points, 240] {
        let before = ALLOCATED.load(Relaxed);
        let mut detector = Detector::new(Settings { trailing_points, ..Settings::default() }).unwrap();
        let calls = CALLS.load(Relaxed);
        for minute in 0..30_000_u64 {
            // Values that fill every memory, at all hours of many weeks.
            let value = (minute.wrapping_mul(2_654_435_761) % 100_003) as f64;
            detector.observe(Timestamp::from_ms(minute * 300_000), value).unwrap();
        }
        assert_eq!(CALLS.load(Relaxed), calls, "a point allocates nothing");
        let held = ALLOCATED.load(Relaxed) - before + size_of::<Detector>();
        assert_eq!(held, detector.state_bytes());
        assert!(held <= STATE_BYTES_MAX, "{held} bytes with trailing means of {trailing_points} points");
        println!("{held} bytes with trailing means of {trailing_points} points");
    }
}
