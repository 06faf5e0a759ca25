//! Probes of one running instance, and what the host sees of it meanwhile.
//!
//! **Probes are nobody.** They go to the guest over its cable, past the gate: to the address that is answered in tap mode,
//! where the guest has it itself; in relay mode to the same ports of the guest's link, since the listener at the stable
//! address is this process, and takes whoever connects to it for a client. So no probe counts as demand or as use: none
//! wakes, and none keeps awake. And they are part of the watch of a running guest, which ends before the guest is put to
//! sleep.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reveille_api::Time;
use reveille_api::types::MetricsReport;
use reveille_core::health::{Fault, Finding, HttpProbe, Judged, Probe, Probing};
use reveille_core::model::{InstanceId, ReadyCheck};
use reveille_vm::driver::AgentState;
use tokio::time::{Instant, sleep, timeout};

use super::cable::Cable;
use super::executor::{Order, Tools};
use super::ready::{self, NotReady};
use super::{Message, at_length};

/// Time between two samples of what the host sees. Also the longest until it is noticed that somebody uses the service.
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Every so many samples the memory is looked at, which takes a few milliseconds; the first time with the second.
const MEMORY_EVERY: u32 = 6;
/// A new mean time to an answer counts for this part of the moving average.
const REPLY_SHIFT: u32 = 2;

/// The last heartbeat of the monitor, told by the heartbeats to the probes.
#[derive(Debug, Default)]
pub struct Pulse(AtomicU64);

/// No heartbeat yet.
const NONE: u64 = 0;
/// The last one was not answered.
const MISSED: u64 = u64::MAX;

impl Pulse {
    /// A heartbeat was answered after so long, or not.
    pub fn note(&self, answered_after: Option<Duration>) {
        let us = answered_after.map_or(MISSED, |after| u64::from(us_of(after)) + 1);
        self.0.store(us, Ordering::Relaxed);
    }

    fn last(&self) -> Option<Finding> {
        match self.0.load(Ordering::Relaxed) {
            NONE => None,
            MISSED => Some(Finding::Failed(Fault::MonitorSilent)),
            us => Some(Finding::Answered { after_us: u32::try_from(us - 1).unwrap_or(u32::MAX) }),
        }
    }
}

/// Probes and samples the instance until it is ended from outside.
pub async fn attend(tools: &Tools, order: &Order, cable: &dyn Cable, pulse: &Pulse) -> Infallible {
    let id = order.instance;
    tools.vitals.begin(id, &order.spec, tools.clock.now());
    let (mut meter, mut sample_at) = (Meter::default(), Instant::now());
    loop {
        if Instant::now() >= sample_at {
            meter.sample(tools, order);
            sample_at = Instant::now() + SAMPLE_EVERY;
        }
        let next = tools.vitals.next(id, |quiet_ms| is_used(tools, order, quiet_ms), tools.clock.now());
        match next {
            Some((probing, 0)) => round(tools, order, cable, pulse, &probing).await,
            Some((probing, ms)) => {
                // Sooner, if somebody comes who was not there before.
                let pause = Duration::from_millis(ms.min(probing.policy.interval_ms.into()));
                sleep(pause.min(sample_at - Instant::now())).await;
            }
            None => sleep(sample_at - Instant::now()).await,
        }
    }
}

/// Whether somebody uses the service, or did within so many milliseconds.
fn is_used(tools: &Tools, order: &Order, within_ms: u64) -> bool {
    let Some(traffic) = tools.wiring.traffic(&order.spec.name) else { return false };
    let now = tools.clock.now();
    traffic.open_connections > 0 || traffic.last_packet.is_some_and(|last| now.ms_since(last) < within_ms)
}

/// Every probe once, all at the same time.
async fn round(tools: &Tools, order: &Order, cable: &dyn Cable, pulse: &Pulse, probing: &Probing) {
    let id = order.instance;
    tell(tools, order, tools.vitals.probed(id, tools.clock.now())).await;
    // It is closed with the daemon.
    let Ok(_place) = tools.vitals.places.acquire().await else { return };
    let limit = Duration::from_millis(probing.policy.timeout_ms.into());
    let (beat, tcp, http) = tokio::join!(
        async { if probing.policy.heartbeat { heartbeat(tools, id, pulse, limit).await } else { None } },
        async { Some(of_tcp(tools, id, cable, probing.tcp?, limit).await) },
        async { Some(of_http(tools, id, cable, probing.http.as_ref()?, limit).await) },
    );
    let now = tools.clock.now();
    for (probe, finding) in [(Probe::Heartbeat, beat), (Probe::Tcp, tcp), (Probe::Http, http)] {
        if let Some(finding) = finding {
            tell(tools, order, tools.vitals.note(id, probe, finding, now)).await;
        }
    }
}

async fn tell(tools: &Tools, order: &Order, judged: Option<Judged>) {
    if let Some(judged) = judged {
        let Order { instance, start, .. } = *order;
        // The receiver is gone only when the daemon ends.
        let _ = tools.inbox.send(Message::Judged { instance, start, judged }).await;
    }
}

/// What the monitor said last, and where it lives, what the agent says now.
async fn heartbeat(tools: &Tools, id: InstanceId, pulse: &Pulse, limit: Duration) -> Option<Finding> {
    let monitor = pulse.last();
    if matches!(monitor, Some(Finding::Failed(_))) || !tools.agents.answered(id) {
        return monitor;
    }
    let (began, cpu) = (Instant::now(), tools.driver.cpu_ms(id));
    Some(match timeout(limit, tools.driver.agent(id)).await {
        Ok(AgentState::Answers { .. }) => Finding::Answered { after_us: us_of(began.elapsed()) },
        Ok(AgentState::None | AgentState::Silent) | Err(_) => {
            if is_starved(tools, id, cpu) {
                Finding::Unclear
            } else {
                Finding::Failed(Fault::AgentSilent)
            }
        }
    })
}

async fn of_tcp(tools: &Tools, id: InstanceId, cable: &dyn Cable, port: u16, limit: Duration) -> Finding {
    let (began, cpu) = (Instant::now(), tools.driver.cpu_ms(id));
    match ready::check(cable, &ReadyCheck::Tcp { port }, limit).await {
        Ok(()) => Finding::Answered { after_us: us_of(began.elapsed()) },
        Err(seen) => failed(tools, id, cpu, &seen),
    }
}

async fn of_http(
    tools: &Tools,
    id: InstanceId,
    cable: &dyn Cable,
    (port, asked): &(u16, HttpProbe),
    limit: Duration,
) -> Finding {
    let (began, cpu) = (Instant::now(), tools.driver.cpu_ms(id));
    let [low, high] = asked.status;
    match ready::status(cable, *port, &asked.path, limit).await {
        Ok(status) if (low..=high).contains(&status) => {
            Finding::Answered { after_us: us_of(began.elapsed()) }
        }
        Ok(status) => Finding::Failed(Fault::Status { status }),
        Err(seen) => failed(tools, id, cpu, &seen),
    }
}

fn failed(tools: &Tools, id: InstanceId, cpu_before: Option<u64>, seen: &NotReady) -> Finding {
    match seen {
        NotReady::Refused { .. } => Finding::Failed(Fault::Refused),
        NotReady::Unreachable { .. } => Finding::Failed(Fault::Unreachable),
        NotReady::Status { status, .. } => Finding::Failed(Fault::Status { status: *status }),
        NotReady::Silent { .. } if is_starved(tools, id, cpu_before) => Finding::Unclear,
        NotReady::Silent { waited_ms, .. } => {
            Finding::Failed(Fault::Silent { waited_ms: u32::try_from(*waited_ms).unwrap_or(u32::MAX) })
        }
    }
}

/// The process would have gone on and the host did not let it. One that used CPU and was silent all the same was so to its
/// clients, too.
fn is_starved(tools: &Tools, id: InstanceId, cpu_before: Option<u64>) -> bool {
    tools.driver.cpu_ms(id) == cpu_before && tools.driver.is_held_up(id)
}

fn us_of(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

// --- What the host sees ----------------------------------------------------------------------------------------

/// Samples one instance.
#[derive(Default)]
struct Meter {
    samples: u32,
    /// When the CPU time was looked at, and what it was.
    cpu: Option<(Instant, u64)>,
    held_kib: Option<u64>,
    /// Answers through the relay so far, and their time.
    replies: Option<(u64, u64)>,
    reply_us: Option<u64>,
}

impl Meter {
    fn sample(&mut self, tools: &Tools, order: &Order) {
        let (id, driver) = (order.instance, &tools.driver);
        if self.samples % MEMORY_EVERY == 1 {
            self.held_kib = at_length(|| driver.held_kib(id));
        }
        self.samples = self.samples.wrapping_add(1);
        let now = Instant::now();
        let cpu_ms = driver.cpu_ms(id);
        let cpu_permille = self.cpu.zip(cpu_ms).and_then(|((at, before), cpu_ms)| {
            let used_us = cpu_ms.saturating_sub(before).saturating_mul(1_000);
            permille(used_us, now.duration_since(at))
        });
        self.cpu = cpu_ms.map(|cpu_ms| (now, cpu_ms));
        let disk = driver.disk_io(id);
        let replies = tools.wiring.replies(id, &order.spec.name).map(|seen| (seen.count, seen.us));
        self.note_replies(replies);
        tools.vitals.sampled(
            id,
            MetricsReport {
                at: Time(tools.clock.now()),
                cpu_permille,
                cpu_ms,
                held_kib: self.held_kib,
                read_bytes: disk.map(|disk| disk.read_bytes),
                written_bytes: disk.map(|disk| disk.written_bytes),
                replies: replies.map(|(count, _)| count),
                reply_us_total: replies.map(|(_, us)| us),
                reply_us: self.reply_us,
            },
        );
    }

    /// The mean of the answers since the last sample goes into the moving average.
    fn note_replies(&mut self, now: Option<(u64, u64)>) {
        let before = std::mem::replace(&mut self.replies, now);
        let (Some((count_before, us_before)), Some((count, us))) = (before, now) else { return };
        let since = us.saturating_sub(us_before).checked_div(count.saturating_sub(count_before));
        if let Some(mean_us) = since {
            let averaged = |before: u64| before - (before >> REPLY_SHIFT) + (mean_us >> REPLY_SHIFT);
            self.reply_us = Some(self.reply_us.map_or(mean_us, averaged));
        }
    }
}

/// The part of `time` in thousandths.
fn permille(used_us: u64, time: Duration) -> Option<u32> {
    let us = u64::try_from(time.as_micros()).ok()?;
    u32::try_from(used_us.saturating_mul(1_000).checked_div(us)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_is_the_last_one() {
        let pulse = Pulse::default();
        assert_eq!(pulse.last(), None);
        pulse.note(Some(Duration::from_micros(70)));
        assert_eq!(pulse.last(), Some(Finding::Answered { after_us: 70 }));
        pulse.note(None);
        assert_eq!(pulse.last(), Some(Finding::Failed(Fault::MonitorSilent)));
    }

    #[test]
    fn the_time_to_an_answer_is_that_of_the_last_few_samples() {
        let mut meter = Meter::default();
        // What was counted before it was watched is not its own.
        meter.note_replies(Some((1_000, 9_000_000)));
        assert_eq!(meter.reply_us, None);
        meter.note_replies(Some((1_000, 9_000_000)));
        assert_eq!(meter.reply_us, None, "nobody asked");
        meter.note_replies(Some((1_010, 9_008_000)));
        assert_eq!(meter.reply_us, Some(800));
        meter.note_replies(Some((1_011, 9_009_600)));
        assert_eq!(meter.reply_us, Some(1_000), "a quarter of the way to 1,600");
        meter.note_replies(None);
        meter.note_replies(Some((1, 7)));
        assert_eq!(meter.reply_us, Some(1_000), "another process counts from nothing");
    }

    #[test]
    fn cpu_is_told_as_a_part_of_one_processor() {
        assert_eq!(permille(50_000, Duration::from_secs(5)), Some(10));
        assert_eq!(permille(10_000_000, Duration::from_secs(5)), Some(2_000));
        assert_eq!(permille(1, Duration::ZERO), None);
    }
}
