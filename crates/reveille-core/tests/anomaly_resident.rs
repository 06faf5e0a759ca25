//! What a detector holds per name, and that a point allocates nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "counting bytes takes an allocator of one's own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use reveille_core::forecast::anomaly::{Detector, STATE_BYTES_MAX, Settings};
use reveille_core::model::Timestamp;

thread_local! {
    /// Bytes that this thread holds, and its calls that allocated: the test's own, not those of what runs the tests.
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get().wrapping_add(layout.size()));
        CALLS.set(CALLS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        ALLOCATED.set(ALLOCATED.get().wrapping_sub(layout.size()));
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_detector_stays_as_large_as_it_was_made() {
    for trailing_points in [Settings::default().trailing_points, 240] {
        let before = ALLOCATED.get();
        let mut detector = Detector::new(Settings { trailing_points, ..Settings::default() }).unwrap();
        let calls = CALLS.get();
        for minute in 0..30_000_u64 {
            // Values that fill every memory, at all hours of many weeks.
            let value = (minute.wrapping_mul(2_654_435_761) % 100_003) as f64;
            detector.observe(Timestamp::from_ms(minute * 300_000), value).unwrap();
        }
        assert_eq!(CALLS.get(), calls, "a point allocates nothing");
        let held = ALLOCATED.get().wrapping_sub(before) + size_of::<Detector>();
        assert_eq!(held, detector.state_bytes());
        assert!(held <= STATE_BYTES_MAX, "{held} bytes with trailing means of {trailing_points} points");
        println!("{held} bytes with trailing means of {trailing_points} points");
    }
}
