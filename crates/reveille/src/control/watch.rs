//! Watching one running instance: until it is ready, then heartbeat by heartbeat, and beside them by probes of its health.
//!
//! Heartbeats say whether there is still something that could serve: who misses them is lost and ended. Probes say whether
//! it serves, by the user's own rules; a verdict ends nobody.

use std::sync::Arc;
use std::time::Duration;

use reveille_core::model::{Cause, DomainName, Report};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::cable::Cable;
use super::damping::{Damping, Sign, Verdict};
use super::executor::{Order, Tools};
use super::probe::{Pulse, attend};
use super::ready::{self, NotReady};
use super::warm_up;

/// The first readiness check of a start may take this long; each further one twice as long as the one before,
/// because a guest that boots loses the first packets, and one that is slow needs its time.
const FIRST_CHECK: Duration = Duration::from_millis(250);
/// The longest that one readiness check may take.
const CHECK_MAX: Duration = Duration::from_secs(4);
/// Longest time that a client of a restored guest is left alone with it.
const CLIENT_FIRST_MAX: Duration = Duration::from_millis(250);
/// Pause between two looks whether it was answered.
const CLIENT_LOOK: Duration = Duration::from_millis(10);
/// Pause between two readiness checks.
const CHECK_PAUSE: Duration = Duration::from_millis(25);

/// From what the watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// It boots, or was found running; readiness is to be reported.
    Booted,
    /// It goes on from a version; readiness is to be reported.
    Restored,
    /// It was ready before.
    Ready,
}

/// Watches until the instance is lost, which is reported. Ended from outside when it is captured or killed.
pub async fn watch(tools: Arc<Tools>, order: Order, cable: Arc<dyn Cable>, from: From) {
    let died = tools.driver.died(order.instance);
    let looking = async {
        // Adopted in the midst of it, it is begun again.
        if from != From::Ready
            && let Err(cause) = warm_up::before_clients(&tools, &order, &*cable).await
        {
            return cause;
        }
        match from {
            From::Booted => until_ready(&tools, &order, &*cable).await,
            From::Restored if client_answered(&tools, &order.spec.name).await => {
                tools.report(&order, Report::Ready).await;
            }
            From::Restored => until_ready(&tools, &order, &*cable).await,
            From::Ready => {}
        }
        let pulse = Pulse::default();
        tokio::select! {
            biased;
            cause = heartbeats(&tools, &order, &*cable, &pulse) => cause,
            never = attend(&tools, &order, &*cable, &pulse) => match never {},
        }
    };
    let cause = tokio::select! {
        // A process that has ended says more than a port that is silent.
        biased;
        detail = died => Cause::VmmDied { detail },
        cause = looking => cause,
    };
    tools.report(&order, Report::Lost { cause }).await;
}

/// Leaves a guest that was restored for clients to them for a moment: its CPU is busy with the first of them. Whether one
/// was answered meanwhile, which says that it is ready.
async fn client_answered(tools: &Tools, service: &DomainName) -> bool {
    let began = Instant::now();
    let mut answered_before = None;
    while began.elapsed() < CLIENT_FIRST_MAX {
        let Some(traffic) = tools.wiring.traffic(service) else { return false };
        let clients = traffic.open_connections + traffic.udp_sessions;
        if clients + traffic.held_clients + traffic.held_datagrams == 0 {
            return false;
        }
        let answered = traffic.bytes_out + traffic.datagrams_out;
        if *answered_before.get_or_insert(answered) < answered {
            return true;
        }
        sleep(CLIENT_LOOK).await;
    }
    false
}

async fn until_ready(tools: &Tools, order: &Order, cable: &dyn Cable) {
    until_answers(order, cable).await;
    tools.report(order, Report::Ready).await;
}

/// Waits until the readiness check of the service passes.
pub async fn until_answers(order: &Order, cable: &dyn Cable) {
    let check = order.spec.ready_check();
    let mut limit = FIRST_CHECK;
    // Without end here: how long a start may take is decided by the control loop, which ends this task.
    loop {
        match ready::check(cable, &check, limit).await {
            Ok(()) => break,
            Err(NotReady::Silent { .. }) => limit = (limit * 2).min(CHECK_MAX),
            Err(NotReady::Refused { .. } | NotReady::Unreachable { .. } | NotReady::Status { .. }) => {}
        }
        sleep(CHECK_PAUSE).await;
    }
}

async fn heartbeats(tools: &Tools, order: &Order, cable: &dyn Cable, pulse: &Pulse) -> Cause {
    let heartbeat = Duration::from_millis(order.spec.policy.heartbeat_ms);
    let mut damping = Damping::default();
    let mut next = Instant::now() + heartbeat;
    let mut looked_for_agent = false;
    loop {
        sleep_until(next).await;
        // Not while the first clients are served; and a process that does not answer is to be noticed, not asked for that.
        if !looked_for_agent {
            let look = tools.agents.look(tools.driver.as_ref(), order.instance);
            looked_for_agent = timeout(heartbeat / 2, look).await.is_ok();
        }
        next = Instant::now() + heartbeat;
        loop {
            let (sign, cause) = look(tools, order, cable, pulse, heartbeat / 2).await;
            match damping.look(sign) {
                Verdict::Up => break,
                // The second look follows at once, so that two fit into two heartbeats; but a refusal comes in
                // no time, and a service that is being restarted deserves half a heartbeat.
                Verdict::Suspect => sleep_until(next - heartbeat / 2).await,
                Verdict::Down => return cause,
            }
            if Instant::now() >= next {
                next = Instant::now() + heartbeat;
            }
        }
    }
}

/// One look: the monitor's control socket, then the service's port.
async fn look(
    tools: &Tools,
    order: &Order,
    cable: &dyn Cable,
    pulse: &Pulse,
    limit: Duration,
) -> (Sign, Cause) {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let cpu_before = tools.driver.cpu_ms(order.instance);
    let progress = || match (cpu_before, tools.driver.cpu_ms(order.instance)) {
        (Some(before), Some(after)) if after > before => Sign::Silent,
        (Some(_) | None, Some(_) | None) if tools.driver.is_held_up(order.instance) => Sign::Silent,
        (Some(_) | None, Some(_) | None) => Sign::Dead,
    };
    let began = Instant::now();
    let beat = tools.driver.beat(order.instance, limit_ms).await;
    pulse.note(beat.is_ok().then(|| began.elapsed()));
    if beat.is_err() {
        return (progress(), Cause::VmmHung { waited_ms: limit_ms });
    }
    match ready::check(cable, &order.spec.ready_check(), limit).await {
        // An error status is an answer: the port is alive.
        Ok(()) | Err(NotReady::Status { .. }) => (Sign::Fine, Cause::VmmHung { waited_ms: 0 }),
        Err(seen @ NotReady::Silent { .. }) => (progress(), Cause::PortDead { detail: seen.to_string() }),
        Err(seen @ (NotReady::Refused { .. } | NotReady::Unreachable { .. })) => {
            (Sign::Dead, Cause::PortDead { detail: seen.to_string() })
        }
    }
}
