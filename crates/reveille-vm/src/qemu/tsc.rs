//! How fast the host's time-stamp counter runs.
//!
//! Under TCG a guest's counter is the host's. A guest that is told its rate need not calibrate it against timers
//! that are themselves emulated, which now and then never ends.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Length of the measurement: an error of 100 ns on either side makes 10 ppm.
const MEASURE: Duration = Duration::from_millis(20);
/// Readings of clock and counter, of which the closest pair is taken.
const READINGS: usize = 16;

/// The rate in kHz, measured once per process; `None` where there is no such counter.
///
/// The first call takes 20 ms.
pub fn rate_khz() -> Option<u64> {
    static RATE: OnceLock<Option<u64>> = OnceLock::new();
    *RATE.get_or_init(measure)
}

fn measure() -> Option<u64> {
    let (began, first) = reading()?;
    std::thread::sleep(MEASURE);
    let (ended, second) = reading()?;
    let nanoseconds = ended.duration_since(began).as_nanos();
    let khz = u128::from(second.checked_sub(first)?) * 1_000_000 / nanoseconds.max(1);
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

/// A time and the counter at that time; the closest of several tries, since a thread may be put aside between
/// the two.
fn reading() -> Option<(Instant, u64)> {
    let mut best: Option<(Duration, Instant, u64)> = None;
    for _ in 0..READINGS {
        let before = Instant::now();
        let ticks = counter()?;
        let gap = before.elapsed();
        if best.is_none_or(|(least, _, _)| gap < least) {
            best = Some((gap, before + gap / 2, ticks));
        }
    }
    best.map(|(_, at, ticks)| (at, ticks))
}

#[cfg(target_arch = "x86_64")]
fn counter() -> Option<u64> {
    #[expect(
        unsafe_code,
        reason = "RDTSC touches nothing but two registers and is there on every x86-64 CPU"
    )]
    let ticks = unsafe { core::arch::x86_64::_rdtsc() };
    Some(ticks)
}

#[cfg(not(target_arch = "x86_64"))]
fn counter() -> Option<u64> {
    None
}
