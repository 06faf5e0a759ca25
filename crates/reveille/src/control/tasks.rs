//! What is done for each order, one step after another, and what is reported of it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use reveille_core::model::{Cause, InstanceId, Phase, Report, Rung, SnapshotVersion, Stage};
use reveille_core::mutation::is_on;
use reveille_failpoint::failpoint;
use reveille_store::Ack;
use reveille_vm::driver::{Abandon, Capture, DriverError, Mapping, VersionFiles};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::cable::Cable;
use super::executor::{KILL_PAUSE, Order, Since, Tools};
use super::guest;
use super::watch::{From, until_answers, watch};
use super::{Message, at_length, warm_up};
use crate::clock::monotonic;

pub(super) async fn start(tools: Arc<Tools>, order: Order, restore: Option<Mapping>, ack: Ack) {
    let on_stage = {
        let (tools, order) = (Arc::clone(&tools), order.clone());
        move |stage| tools.stage(&order, stage)
    };
    tools.unwatch(order.instance);
    let durable =
        async { if is_on("start-before-row") { Ok(()) } else { saved(&order, restore, ack).await } };
    let launch = match tokio::join!(durable, tools.launch(&order)) {
        (Ok(()), Ok(launch)) => launch,
        (Err(cause), _) | (Ok(()), Err(cause)) => {
            return tools.report(&order, Report::Lost { cause }).await;
        }
    };
    let started = match restore {
        Some(mapping) => tools.driver.restore(&launch, mapping, &on_stage).await,
        None => tools.driver.boot(&launch, &on_stage).await,
    };
    let linked = match started {
        // The gate opens when it is said to run, and not before the guest knows what it missed.
        Ok(()) if restore.is_some() => tokio::join!(tools.link(&order), guest::refresh(&tools, &order)).0,
        Ok(()) => tools.link(&order).await,
        Err(error) => Err(error),
    };
    match linked {
        Ok(link) => {
            tools.report(&order, Report::Running).await;
            tools.watch(order, link, if restore.is_some() { From::Restored } else { From::Booted });
        }
        Err(error) => tools.report(&order, Report::Lost { cause: cause_of(error) }).await,
    }
}

/// Waits for the row. A database that takes too long is told apart from a version that does: half of the time is left for
/// the start itself.
pub(super) async fn saved(order: &Order, restore: Option<Mapping>, ack: Ack) -> Result<(), Cause> {
    let policy = &order.spec.policy;
    let limit_ms = if restore.is_some() { policy.restore_ms_max } else { policy.boot_ms_max } / 2;
    let detail = match timeout(Duration::from_millis(limit_ms), ack).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => format!("the state database: {error}"),
        Err(_) => format!("the state database did not save it for {limit_ms} ms; look at the disk"),
    };
    Err(Cause::StartFailed { detail })
}

pub(super) async fn pause(tools: Arc<Tools>, order: Order, ack: Ack) {
    if let Err(error) = ack.await {
        let cause = Cause::StartFailed { detail: format!("the state database: {error}") };
        return tools.report(&order, Report::RestFailed { cause }).await;
    }
    let limit = Duration::from_millis(order.spec.policy.restore_ms_max);
    let warmed = async {
        let launch = tools.launch(&order).await?;
        tools.driver.warm(&launch, &|_| ()).await.map_err(cause_of)?;
        let cable = tools.link(&order).await.map_err(cause_of)?;
        // Again when it goes on; but what it needs for it is warm then.
        guest::refresh(&tools, &order).await;
        warm_up::before_rest(&tools, &order, &*cable).await?;
        until_answers(&order, &*cable).await;
        tools.driver.pause(order.instance).await.map_err(cause_of)
    };
    let warmed = timeout(limit, warmed).await.unwrap_or_else(|_| {
        let limit_ms = order.spec.policy.restore_ms_max;
        Err(Cause::StartTimedOut { limit_ms, phase: Phase::Hibernated })
    });
    match warmed {
        Ok(()) => {
            tools.watch_armed(order, Some(Report::Paused));
        }
        Err(cause) => {
            tracing::warn!(instance = %order.instance, %cause, "cannot be paused");
            tools.give_up_rest(order, cause).await;
        }
    }
}

pub(super) async fn fetch(tools: Arc<Tools>, order: Order, number: u64) {
    let fetched = async {
        let Some(versions) = &tools.versions else {
            return Err(Cause::StoreFailed { detail: "no object store is configured".to_owned() });
        };
        let launch = tools.launch(&order).await?;
        let dir = tools.driver.fetch_dir(order.instance).await.map_err(cause_of)?;
        versions.fetch(&order.spec.name, number, &dir).await?;
        failpoint!("control.fetch.fetched");
        tools.driver.install(&launch, number).await.map_err(cause_of)
    };
    let report = match fetched.await {
        Ok(version) => {
            failpoint!("control.fetch.installed");
            Report::Fetched { version }
        }
        Err(cause) => {
            tracing::warn!(instance = %order.instance, version = number, %cause, "cannot be fetched");
            Report::RestFailed { cause }
        }
    };
    tools.report(&order, report).await;
}

pub(super) async fn roll_back(
    tools: Arc<Tools>,
    order: Order,
    (from, number): (u64, u64),
    epoch: u64,
    ack: Ack,
) {
    let rolled_back = match (ack.await, &tools.versions) {
        (Ok(()), Some(versions)) => versions.roll_back(&order.spec.name, (from, number), epoch).await,
        (Err(error), _) => Err(Cause::StoreFailed { detail: format!("the state database: {error}") }),
        (Ok(()), None) => Err(Cause::StoreFailed { detail: "no object store is configured".to_owned() }),
    };
    let version = match rolled_back {
        Ok(version) => version,
        Err(cause) => return tools.report(&order, Report::RollBackFailed { cause }).await,
    };
    failpoint!("control.roll_back.republished");
    // From here on what is on this disk is not what the service goes on from.
    tools.unwatch(order.instance);
    loop {
        match tools.driver.evict(order.instance).await {
            Ok(()) => break,
            // A disk that a lost guest wrote to, for one: it is set aside when the version is fetched.
            Err(DriverError::RunsOn(cause)) => {
                tracing::warn!(instance = %order.instance, %cause, "what was put behind stays on the disk");
                break;
            }
            Err(error) => {
                tracing::error!(instance = %order.instance, %error, "cannot drop the version that was put behind; trying again");
                sleep(KILL_PAUSE).await;
            }
        }
    }
    failpoint!("control.roll_back.dropped");
    tools.unlink(&order);
    tools.report(&order, Report::RolledBack { version }).await;
}

pub(super) async fn evict(tools: Arc<Tools>, order: Order, ack: Ack) {
    let evicted = match ack.await {
        Ok(()) => tools.driver.evict(order.instance).await.map_err(cause_of),
        Err(error) => Err(Cause::StoreFailed { detail: format!("the state database: {error}") }),
    };
    let report = match evicted {
        Ok(()) => Report::Evicted,
        Err(cause) => Report::RestFailed { cause },
    };
    tools.report(&order, report).await;
}

pub(super) async fn arm(tools: Arc<Tools>, order: Order, mapping: Mapping, ack: Ack) {
    if let Err(error) = ack.await {
        let cause = Cause::StartFailed { detail: format!("the state database: {error}") };
        return tools.report(&order, Report::RestFailed { cause }).await;
    }
    let armed = match tools.launch(&order).await {
        Ok(launch) => tools.driver.arm(&launch, mapping).await.map_err(cause_of),
        Err(cause) => Err(cause),
    };
    match armed {
        Ok(()) => {
            tools.watch_armed(order, Some(Report::Armed));
        }
        Err(cause) => {
            tracing::warn!(instance = %order.instance, %cause, "cannot be armed");
            tools.give_up_rest(order, cause).await;
        }
    }
}

pub(super) async fn capture(tools: Arc<Tools>, order: Order, number: u64, abandon: Arc<Abandon>, ack: Ack) {
    tools.measure(order.instance, Rung::Active);
    if let Some(cause) = guest::veto(&tools, &order, &abandon).await {
        return capture_ended(&tools, order, Report::CaptureFailed { cause }).await;
    }
    let captured = match (ack.await, tools.launch(&order).await) {
        (Ok(()), Ok(launch)) => tools.driver.capture(&launch, number, tools.clock.now(), &abandon).await,
        (Err(error), _) => {
            let detail = format!("the state database: {error}");
            Err(DriverError::RunsOn(Cause::CaptureFailed { detail }))
        }
        (_, Err(cause)) => Err(DriverError::RunsOn(cause)),
    };
    let report = match captured {
        Ok(Capture::Published(version)) => {
            tools.unlink(&order);
            failpoint!("control.capture.told");
            return tools.report(&order, Report::Captured { version }).await;
        }
        Ok(Capture::Abandoned) => Report::CaptureAbandoned,
        Err(DriverError::RunsOn(cause)) => Report::CaptureFailed { cause },
        Err(error) => return tools.report(&order, Report::Lost { cause: cause_of(error) }).await,
    };
    capture_ended(&tools, order, report).await;
}

/// The guest runs on after all; unless it was lost meanwhile, which is told instead, as clients are let in again.
pub(super) async fn capture_ended(tools: &Arc<Tools>, order: Order, report: Report) {
    match tools.link(&order).await {
        Ok(link) => {
            tools.report(&order, report).await;
            tools.watch(order, link, From::Ready);
        }
        Err(error) => tools.report(&order, Report::Lost { cause: cause_of(error) }).await,
    }
}

pub(super) async fn adopt(tools: Arc<Tools>, order: Order, resume: bool) {
    let resumed = match tools.launch(&order).await {
        Ok(launch) if resume => tools.driver.resume(&launch).await,
        // An image that is gone does not hinder a guest that already runs.
        Ok(_) | Err(_) => Ok(()),
    };
    let linked = match resumed {
        Ok(()) => tools.link(&order).await,
        Err(error) => Err(error),
    };
    match linked {
        Ok(link) => tools.watch(order, link, From::Booted),
        Err(error) => tools.report(&order, Report::Lost { cause: cause_of(error) }).await,
    }
}

impl Tools {
    /// What is left of the try to keep an instance warm is ended, so that its version can be restored as always.
    pub(super) async fn give_up_rest(&self, order: Order, cause: Cause) {
        self.unlink(&order);
        // What it holds of the host is counted until then.
        if let Err(error) = self.end_untouched(order.instance).await {
            tracing::warn!(instance = %order.instance, %error, "its process is left");
        }
        self.report(&order, Report::RestFailed { cause }).await;
    }

    /// Ends a process that has nothing of its own which could be lost, again and again until it is gone.
    pub(super) async fn end_untouched(&self, instance: InstanceId) -> Result<(), Cause> {
        loop {
            match self.driver.disarm(instance).await {
                Ok(()) | Err(DriverError::NoProcess(_)) => return Ok(()),
                Err(DriverError::Lost(error) | DriverError::RunsOn(error)) => {
                    tracing::error!(%instance, %error, "cannot end the process; trying again");
                    sleep(KILL_PAUSE).await;
                }
                Err(error @ DriverError::Unsupported { .. }) => return Err(cause_of(error)),
            }
        }
    }

    pub(super) async fn send(
        &self,
        order: &Order,
        number: u64,
        since: Since,
        files: Result<VersionFiles, Cause>,
    ) -> Result<SnapshotVersion, Cause> {
        let Some(versions) = &self.versions else {
            return Err(Cause::StoreFailed { detail: "no object store is configured".to_owned() });
        };
        let files = files?;
        if files.version.number != number {
            let detail = format!("version {} is there, not {number}", files.version.number);
            return Err(Cause::StoreFailed { detail });
        }
        versions.publish(&order.spec.name, files, since.before, since.epoch).await
    }

    pub(super) fn stage(self: &Arc<Self>, order: &Order, stage: Stage) {
        let message = Message::Stage { instance: order.instance, start: order.start, stage, at: monotonic() };
        // A stage that finds the inbox full is missing in the record and nowhere else.
        let _ = self.inbox.try_send(message);
        if stage == Stage::Spawned {
            // Beside the restore, so that the link is there when the vCPUs run.
            let (tools, order) = (Arc::clone(self), order.clone());
            tokio::spawn(async move {
                if let Err(error) = tools.link(&order).await {
                    tracing::debug!(instance = %order.instance, %error, "no link yet");
                }
            });
        }
    }

    /// Tells what the instance's process holds of the host's memory. With a full inbox it is not told: the next time will do.
    fn measure(&self, instance: InstanceId, rung: Rung) {
        if let Some(held_kib) = at_length(|| self.driver.held_kib(instance)) {
            let _ = self.inbox.try_send(Message::Measured { instance, rung, held_kib });
        }
    }

    pub(super) fn watch(self: &Arc<Self>, order: Order, cable: Arc<dyn Cable>, from: From) {
        let instance = order.instance;
        let task = tokio::spawn(watch(Arc::clone(self), order, cable, from));
        if let Some(earlier) = self.watches().insert(instance, task.abort_handle()) {
            earlier.abort();
        }
    }

    /// Reports what was reached, and watches. An armed process that dies costs its rung and nothing else.
    pub(super) fn watch_armed(self: &Arc<Self>, order: Order, reached: Option<Report>) {
        let (tools, instance) = (Arc::clone(self), order.instance);
        // Whoever goes by the report finds the watch, and can end it: it must not outlive this process.
        let task = tokio::spawn(async move {
            if let Err(error) = tools.link(&order).await {
                tracing::debug!(%instance, %error, "no link to the armed process");
            }
            if let Some(reached) = reached {
                let rung = if reached == Report::Paused { Rung::Paused } else { Rung::Armed };
                tools.report(&order, reached).await;
                tools.measure(instance, rung);
            }
            let detail = tools.driver.died(instance).await;
            tracing::warn!(%instance, detail, "the armed process ended");
            tools.unlink(&order);
            if let Err(error) = tools.driver.disarm(instance).await {
                tracing::debug!(%instance, %error, "nothing to disarm");
            }
            tools.report(&order, Report::Disarmed).await;
        });
        if let Some(earlier) = self.watches().insert(instance, task.abort_handle()) {
            earlier.abort();
        }
    }

    pub(super) fn unwatch(&self, instance: InstanceId) {
        if let Some(task) = self.watches().remove(&instance) {
            task.abort();
        }
    }

    pub(super) fn watches(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, AbortHandle>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn cause_of(error: DriverError) -> Cause {
    match error {
        DriverError::Lost(cause) | DriverError::RunsOn(cause) => cause,
        DriverError::NoProcess(_) | DriverError::Unsupported { .. } => {
            Cause::StartFailed { detail: error.to_string() }
        }
    }
}
