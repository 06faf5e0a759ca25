//! Warming a guest up by its profile: after its vCPUs run, before its clients are let in (P1).
//!
//! The steps go over the guest's cable, past the gate, and through its agent. However they end, the start goes on or has
//! failed: each step, and the whole set, has its time, and the control loop ends a start that takes too long with
//! everything that it does.

mod http;
mod steps;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reveille_api::Time;
use reveille_api::types::{WarmUpReport, WarmUpResult, WarmUpStepReport};
use reveille_core::model::{Cause, InstanceId, Report, Stage};
use reveille_core::warm_up::{OnFailure, SET_RUNS_MAX, Step, StepSet, WarmUpSet};
use reveille_failpoint::failpoint;
use reveille_vm::driver::{Driver, ExecError, GuestProgram, ProgramEnded};
use tokio::time::{Instant, sleep};

use super::cable::Cable;
use super::executor::{Order, Tools};
use crate::profiles::Profiles;

/// Pause between two tries of a step.
const TRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest detail of a step that is kept, in characters.
const DETAIL_CHARS_MAX: usize = 200;

/// What was last done by profiles, for each instance; not kept over a restart.
#[derive(Debug, Default)]
pub struct WarmUps(Mutex<BTreeMap<InstanceId, WarmUpReport>>);

impl WarmUps {
    /// What was last done.
    pub fn told(&self, instance: InstanceId) -> Option<WarmUpReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&instance).cloned()
    }

    /// Forgets what is of no instance any more.
    pub fn keep(&self, known: impl Fn(InstanceId) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|instance, _| known(*instance));
    }

    pub(super) fn note(&self, instance: InstanceId, report: WarmUpReport) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(instance, report);
    }
}

/// Does what the order says is to be done before clients are let in, and reports that it is over.
///
/// # Errors
/// The start has failed with it.
pub async fn before_clients(tools: &Arc<Tools>, order: &Order, cable: &dyn Cable) -> Result<(), Cause> {
    let Some(set) = order.warm_up else { return Ok(()) };
    let took_ms = warm_up(tools, order, cable, set).await?;
    if took_ms.is_some() {
        tools.stage(order, Stage::WarmedUp);
    }
    failpoint!("control.warm_up.over");
    tools.report(order, Report::WarmedUp { took_ms }).await;
    Ok(())
}

/// Warms a guest up that is to be stopped for somebody who may come.
///
/// # Errors
/// A step failed on which it depends.
pub async fn before_rest(tools: &Arc<Tools>, order: &Order, cable: &dyn Cable) -> Result<(), Cause> {
    warm_up(tools, order, cable, WarmUpSet::Restore).await.map(drop)
}

/// Runs a set of the service's profile; gives the milliseconds that it took, if there was anything to do.
async fn warm_up(
    tools: &Arc<Tools>,
    order: &Order,
    cable: &dyn Cable,
    set: WarmUpSet,
) -> Result<Option<u64>, Cause> {
    let service = &order.spec.name;
    let Some((name, why)) = Profiles::of(&order.spec) else { return Ok(None) };
    let profiles = tools.profiles.load_full();
    let Some(known) = profiles.get(&name) else {
        tracing::warn!(%service, profile = name, "there is no such profile any more; it is not warmed up");
        return Ok(None);
    };
    let steps = known.profile.set(set);
    if steps.steps.is_empty() {
        return Ok(None);
    }
    let (at, began) = (Time(tools.clock.now()), Instant::now());
    let deadline = began + longest(order, set, steps.total_ms_max);
    let programs = &ByDriver(&*tools.driver, order.instance);
    let ended = Run { programs, order, cable, set, deadline }.set(steps).await;
    let took_ms = ms_since(began);
    let result = ended.result();
    tracing::info!(%service, profile = name, set = set.word(), took_ms, result = result.word(), "warmed up");
    let Ended { runs, steps, failed } = ended;
    tools
        .warm_ups
        .note(order.instance, WarmUpReport { profile: name, why, set, at, took_ms, runs, result, steps });
    match failed {
        None => Ok(Some(took_ms)),
        Some((step, detail)) => Err(Cause::WarmUpFailed { step, detail }),
    }
}

/// How long a set may take: what it says, and not more than its share of the start's time.
fn longest(order: &Order, set: WarmUpSet, total_ms_max: u64) -> Duration {
    Duration::from_millis(total_ms_max.min(set.left_ms(&order.spec.policy)))
}

fn ms_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Who runs programs in a guest.
#[async_trait]
trait Programs: Send + Sync {
    async fn exec(&self, program: GuestProgram<'_>, limit: Duration) -> Result<ProgramEnded, ExecError>;
}

/// The driver, for one instance.
struct ByDriver<'a>(&'a dyn Driver, InstanceId);

#[async_trait]
impl Programs for ByDriver<'_> {
    async fn exec(&self, program: GuestProgram<'_>, limit: Duration) -> Result<ProgramEnded, ExecError> {
        self.0.exec(self.1, program, limit).await
    }
}

/// One guest that is being warmed up.
struct Run<'a> {
    programs: &'a dyn Programs,
    order: &'a Order,
    cable: &'a dyn Cable,
    set: WarmUpSet,
    deadline: Instant,
}

/// How a set ended.
struct Ended {
    runs: u32,
    steps: Vec<WarmUpStepReport>,
    /// The step with which the start has failed, and why it did.
    failed: Option<(String, String)>,
}

impl Ended {
    fn result(&self) -> WarmUpResult {
        match &self.failed {
            Some(_) => WarmUpResult::Failed,
            None if self.steps.iter().all(|step| step.result == WarmUpResult::Done) => WarmUpResult::Done,
            None => WarmUpResult::Incomplete,
        }
    }
}

impl Run<'_> {
    /// The steps of the set, again from the first one as often as they may.
    async fn set(&self, set: &StepSet) -> Ended {
        let mut runs = 0;
        loop {
            runs += 1;
            let (steps, broken) = self.once(&set.steps).await;
            match broken {
                None => return Ended { runs, steps, failed: None },
                Some((OnFailure::Retry, _)) if runs < SET_RUNS_MAX && Instant::now() < self.deadline => {
                    sleep(TRY_PAUSE).await;
                }
                Some((_, failed)) => return Ended { runs, steps, failed: Some(failed) },
            }
        }
    }

    /// The steps, up to one that does not let the others follow, with what follows instead, its name and why it failed.
    async fn once(&self, steps: &[Step]) -> (Vec<WarmUpStepReport>, Option<(OnFailure, (String, String))>) {
        let mut reports = Vec::with_capacity(steps.len());
        for step in steps {
            failpoint!("control.warm_up.step");
            let report = self.step(step).await;
            let failed = report.result != WarmUpResult::Done;
            let why = (report.name.clone(), report.detail.clone());
            reports.push(report);
            if failed && step.on_failure != OnFailure::Continue {
                return (reports, Some((step.on_failure, why)));
            }
        }
        (reports, None)
    }

    /// One step, as often as it may be tried. One for which no time is left has failed.
    async fn step(&self, step: &Step) -> WarmUpStepReport {
        let began = Instant::now();
        let (mut tries, mut ended) = (0, Err("there was no time left for it".to_owned()));
        while tries <= step.retries && Instant::now() < self.deadline {
            if tries > 0 {
                sleep(TRY_PAUSE).await;
            }
            tries += 1;
            let left = self.deadline.saturating_duration_since(Instant::now());
            ended = self.attempt(step, left.min(Duration::from_millis(step.timeout_ms))).await;
            if ended.is_ok() {
                break;
            }
        }
        let result = match &ended {
            Ok(_) => WarmUpResult::Done,
            Err(_) if tries == 0 => WarmUpResult::Skipped,
            Err(_) => WarmUpResult::Failed,
        };
        let detail = ended.unwrap_or_else(|detail| {
            tracing::debug!(service = %self.order.spec.name, step = step.name, detail, "not done");
            detail
        });
        let detail = detail.chars().filter(|character| !character.is_control()).take(DETAIL_CHARS_MAX);
        WarmUpStepReport {
            name: step.name.clone(),
            result,
            tries,
            took_ms: ms_since(began),
            detail: detail.collect(),
        }
    }
}

#[cfg(test)]
mod tests;
