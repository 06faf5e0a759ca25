//! How long answers take at a given rate: questions leave by a schedule, whether the last one was answered or not, and
//! each answer is timed from when its question was due, so that a server that stands still is seen to.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;

use super::load::Random;
use super::serve::{question, question_for};

/// Longest wait for the last answers.
const TAIL: Duration = Duration::from_millis(200);
/// Share of the questions that may stay without an answer.
const LOST_MAX: f64 = 0.01;
/// Questions that are sent before it is looked for answers again.
const BURST_MAX: u32 = 16;
/// Addresses from which what goes on beside is sent at a time.
const SOURCES: u32 = 64;
/// Datagrams from one address before it makes way for another.
const SOURCE_DATAGRAMS: u64 = 2_000;
/// Questions a second that are timed while something goes on beside.
const TIMED_PER_S: f64 = 1_000.0;

/// What goes on beside the questions that are timed.
#[derive(Debug, Clone, Copy)]
pub enum Beside {
    /// Questions for services, from one address.
    Harmless,
    /// Questions for names that nobody has, from ever new addresses.
    Flood,
}

/// Asks for random services at that rate; the 99th percentile in microseconds.
///
/// # Errors
/// If too many questions stay without an answer.
pub fn p99_us(server: SocketAddr, services: u32, rate: f64, seconds: u64) -> anyhow::Result<f64> {
    stay_on_one_processor()?;
    let mut timed = Timed::new(server, services, rate)?;
    timed.run(seconds, |_| Ok(()))
}

/// The same for a client that asks now and then, while at that rate something goes on beside.
///
/// # Errors
/// If too many of its questions stay without an answer.
pub fn p99_us_beside(
    server: SocketAddr,
    services: u32,
    (beside, rate): (Beside, f64),
    seconds: u64,
) -> anyhow::Result<f64> {
    stay_on_one_processor()?;
    let mut timed = Timed::new(server, services, TIMED_PER_S)?;
    let mut background = Background::new(server, services, beside, rate)?;
    timed.run(seconds, |now| background.send_due(now))
}

/// A client whose questions are timed.
struct Timed {
    socket: UdpSocket,
    services: u32,
    gap: Duration,
    due_of: Vec<Option<Duration>>,
    random: Random,
    histogram: Histogram<u64>,
}

impl Timed {
    fn new(server: SocketAddr, services: u32, rate: f64) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        let gap = Duration::from_secs_f64(1.0 / rate.max(1.0));
        let (due_of, histogram) = (vec![None; 1 << 16], Histogram::new(3)?);
        Ok(Self { socket, services, gap, due_of, random: Random(7), histogram })
    }

    fn run(
        &mut self,
        seconds: u64,
        mut beside: impl FnMut(Duration) -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let (begun, length) = (Instant::now(), Duration::from_secs(seconds));
        let (mut sent, mut due) = (0u64, Duration::ZERO);
        loop {
            let now = begun.elapsed();
            if now > length + TAIL {
                break;
            }
            if now < length {
                beside(now)?;
            }
            for _ in 0..BURST_MAX {
                if due > now || due >= length {
                    break;
                }
                let id = u16::try_from(sent & 0xffff).unwrap_or(0);
                if self.socket.send(&question(id, self.random.below(self.services))).is_ok() {
                    if let Some(place) = self.due_of.get_mut(usize::from(id)) {
                        *place = Some(due);
                    }
                    sent += 1;
                }
                due += self.gap;
            }
            self.take_answers(begun)?;
        }
        let lost = 1.0 - self.histogram.len() as f64 / sent as f64;
        anyhow::ensure!(
            lost <= LOST_MAX,
            "{:.1} % of the questions at half of the saturated rate were not answered; is the host busy?",
            lost * 100.0
        );
        Ok(self.histogram.value_at_quantile(0.99) as f64 / 1e3)
    }

    fn take_answers(&mut self, begun: Instant) -> anyhow::Result<()> {
        let mut answer = [0; 1_500];
        while let Ok(length) = self.socket.recv(&mut answer) {
            let id = u16::from_be_bytes([answer[0], answer[1]]);
            if length > 12
                && let Some(due) = self.due_of.get_mut(usize::from(id)).and_then(Option::take)
            {
                let took = begun.elapsed().saturating_sub(due);
                self.histogram.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))?;
            }
        }
        Ok(())
    }
}

/// What goes on beside. Its answers are not waited for.
struct Background {
    server: SocketAddr,
    services: u32,
    beside: Beside,
    gap: Duration,
    due: Duration,
    sent: u64,
    sources: Vec<UdpSocket>,
    random: Random,
}

impl Background {
    fn new(server: SocketAddr, services: u32, beside: Beside, rate: f64) -> anyhow::Result<Self> {
        let gap = Duration::from_secs_f64(1.0 / rate.max(1.0));
        let (due, sent, random) = (Duration::ZERO, 0, Random(11));
        let mut own = Self { server, services, beside, gap, due, sent, sources: Vec::new(), random };
        for _ in 0..SOURCES {
            let source = own.source()?;
            own.sources.push(source);
        }
        Ok(own)
    }

    /// A socket from which to send: of the host's own address, or of one that was not used before.
    fn source(&mut self) -> anyhow::Result<UdpSocket> {
        let address = match self.beside {
            Beside::Harmless => Ipv4Addr::LOCALHOST,
            // Not the first and the last of the loopback network.
            Beside::Flood => Ipv4Addr::from_bits(0x7f00_0002 + self.random.below(0x00ff_fff0)),
        };
        let socket = UdpSocket::bind((address, 0)).context("no address to send from")?;
        socket.connect(self.server)?;
        Ok(socket)
    }

    fn send_due(&mut self, now: Duration) -> anyhow::Result<()> {
        for _ in 0..BURST_MAX {
            if self.due > now {
                break;
            }
            let place = usize::try_from(self.sent % u64::from(SOURCES))?;
            if self.sent.is_multiple_of(SOURCE_DATAGRAMS) {
                let source = self.source()?;
                if let Some(oldest) = self.sources.get_mut(place) {
                    *oldest = source;
                }
            }
            let packet = match self.beside {
                Beside::Harmless => question(0, self.random.below(self.services)),
                Beside::Flood => question_for(0, &format!("no{:08x}", self.random.below(u32::MAX))),
            };
            // A full buffer is as good as a lost datagram.
            let _ = self.sources.get(place).map(|source| source.send(&packet));
            self.sent += 1;
            self.due += self.gap;
        }
        Ok(())
    }
}

/// Stays on the load's processor, so as not to take that of the servers.
fn stay_on_one_processor() -> anyhow::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(1);
    rustix::thread::sched_setaffinity(None, &set).context("cannot stay on one processor")
}
