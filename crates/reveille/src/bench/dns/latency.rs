//! How long answers take at a given rate: questions leave by a schedule, whether the last one was answered or not, and
//! each answer is timed from when its question was due, so that a server that stands still is seen to.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;

use super::load::Random;
use super::serve::question;

/// Longest wait for the last answers.
const TAIL: Duration = Duration::from_millis(200);
/// Share of the questions that may stay without an answer.
const LOST_MAX: f64 = 0.01;

/// The 99th percentile in microseconds.
///
/// # Errors
/// If too many questions stay without an answer.
pub fn p99_us(server: SocketAddr, services: u32, rate: f64, seconds: u64) -> anyhow::Result<f64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    rustix::thread::sched_setaffinity(None, &load_cpu()).context("cannot stay on one processor")?;
    let mut histogram = Histogram::<u64>::new(3)?;
    let mut due_of = vec![None; 1 << 16];
    let mut random = Random(7);
    let (begun, length) = (Instant::now(), Duration::from_secs(seconds));
    let gap = Duration::from_secs_f64(1.0 / rate.max(1.0));
    let (mut sent, mut due) = (0u64, Duration::ZERO);
    let mut answer = [0; 1_500];
    loop {
        let now = begun.elapsed();
        if now > length + TAIL {
            break;
        }
        while due <= now && due < length {
            let id = u16::try_from(sent & 0xffff).unwrap_or(0);
            if socket.send(&question(id, random.below(services))).is_ok() {
                due_of[usize::from(id)] = Some(due);
                sent += 1;
            }
            due += gap;
        }
        while let Ok(length) = socket.recv(&mut answer) {
            let id = u16::from_be_bytes([answer[0], answer[1]]);
            if length > 12
                && let Some(due) = due_of[usize::from(id)].take()
            {
                let took = begun.elapsed().saturating_sub(due);
                histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            }
        }
    }
    let lost = 1.0 - histogram.len() as f64 / sent as f64;
    anyhow::ensure!(lost <= LOST_MAX, "{:.1} % of the questions were not answered", lost * 100.0);
    Ok(histogram.value_at_quantile(0.99) as f64 / 1e3)
}

fn load_cpu() -> rustix::thread::CpuSet {
    let mut set = rustix::thread::CpuSet::new();
    set.set(1);
    set
}
