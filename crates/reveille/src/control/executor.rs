//! Carries actions out: one task for each, which reports what came of it. Nothing is decided here.
//!
//! Before a process is started, captured or ended, the row that says so is durable: the tasks wait for the
//! acknowledgement of the state database first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reveille_core::model::{
    Cause, DomainName, Fleet, InstanceId, Phase, Reconciled, Remains, Report, Rung, ServiceSpec,
    SnapshotVersion, Stage,
};
use reveille_core::mutation::is_on;
use reveille_failpoint::failpoint;
use reveille_store::Ack;
use reveille_vm::driver::{Abandon, Capture, Driver, DriverError, Launch, Mapping, VersionFiles};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};

use super::Message;
use super::cable::Cable;
use super::guest::{self, Agents};
use super::images::Images;
use super::versions::Versions;
use super::watch::{From, until_answers, watch};
use super::wiring::Wiring;
use crate::clock::{Clock, monotonic};

/// Pause between two tries to end a process that could not be ended.
const KILL_PAUSE: Duration = Duration::from_secs(1);

/// What a task is about.
#[derive(Debug, Clone)]
pub struct Order {
    /// The instance.
    pub instance: InstanceId,
    /// The start that its reports belong to.
    pub start: u64,
    /// The service.
    pub spec: Arc<ServiceSpec>,
}

/// What a new version in the object store comes after.
#[derive(Debug, Clone, Copy)]
pub struct Since {
    /// The newest one that is there, as far as is known.
    pub before: Option<u64>,
    /// The ownership epoch of the service.
    pub epoch: u64,
}

/// What tasks work with.
pub struct Tools {
    /// Runs the instances.
    pub driver: Arc<dyn Driver>,
    /// What they boot.
    pub images: Arc<dyn Images>,
    /// Where their clients wait, and how they are reached.
    pub wiring: Arc<dyn Wiring>,
    /// Where reports go.
    pub inbox: mpsc::Sender<Message>,
    /// The time.
    pub clock: Clock,
    /// Where versions go, if there is an object store.
    pub versions: Option<Arc<Versions>>,
    /// What was last known of guests' agents.
    pub agents: Agents,
    watches: Mutex<BTreeMap<InstanceId, AbortHandle>>,
}

impl Tools {
    /// Tells the control loop what came of an order.
    pub async fn report(&self, order: &Order, report: Report) {
        let Order { instance, start, .. } = *order;
        // The receiver is gone only when the daemon ends.
        let _ = self.inbox.send(Message::Reported { instance, start, report, at: monotonic() }).await;
    }

    async fn launch(&self, order: &Order) -> Result<Launch, Cause> {
        let resolved = self.images.resolve(&order.spec.image).await;
        let image = resolved.map_err(|detail| Cause::StartFailed { detail })?;
        Ok(Launch {
            instance: order.instance,
            service: order.spec.name.clone(),
            image: image.digest,
            kernel: image.kernel,
            initrd: image.initrd,
            disk: image.disk,
            resources: order.spec.resources,
            egress: order.spec.egress,
            link: self.wiring.plug_bound(&order.spec)?,
        })
    }

    /// The instance's cable. A link is attached to the relay, and made if there is none.
    async fn link(&self, order: &Order) -> Result<Arc<dyn Cable>, DriverError> {
        self.wiring.attach(order.instance, &order.spec, &*self.driver).await
    }

    fn unlink(&self, order: &Order) {
        self.wiring.detach(order.instance, &order.spec.name);
    }
}

/// Takes actions from the control loop.
pub struct Executor {
    tools: Arc<Tools>,
    captures: BTreeMap<InstanceId, Arc<Abandon>>,
    /// The task of each instance; at most one. A further order is given when it has reported, and ends what is left of
    /// it; a kill ends it at once.
    tasks: BTreeMap<InstanceId, JoinHandle<()>>,
}

impl Executor {
    /// An executor without tasks.
    pub fn new(
        driver: Arc<dyn Driver>,
        images: Arc<dyn Images>,
        wiring: Arc<dyn Wiring>,
        inbox: mpsc::Sender<Message>,
        clock: Clock,
        versions: Option<Arc<Versions>>,
    ) -> Self {
        let (watches, agents) = (Mutex::default(), Agents::default());
        let tools = Tools { driver, images, wiring, inbox, clock, versions, agents, watches };
        Self { tools: Arc::new(tools), captures: BTreeMap::new(), tasks: BTreeMap::new() }
    }

    /// What the tasks work with.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// Boots, or restores with the memory mapped like that, once `ack` says that the row is durable.
    pub fn start(&mut self, order: Order, restore: Option<Mapping>, ack: Ack) {
        self.run(order.instance, start(Arc::clone(&self.tools), order, restore, ack));
    }

    /// Brings the process up with the version mapped.
    pub fn arm(&mut self, order: Order, mapping: Mapping, ack: Ack) {
        self.run(order.instance, arm(Arc::clone(&self.tools), order, mapping, ack));
    }

    /// Restores beside the version, waits until the guest is ready, and stops the vCPUs.
    pub fn pause(&mut self, order: Order, ack: Ack) {
        self.run(order.instance, pause(Arc::clone(&self.tools), order, ack));
    }

    /// Gets version `number` from the object store.
    pub fn fetch(&mut self, order: Order, number: u64) {
        self.run(order.instance, fetch(Arc::clone(&self.tools), order, number));
    }

    /// Removes the version from the local disk.
    pub fn evict(&mut self, order: Order, ack: Ack) {
        self.run(order.instance, evict(Arc::clone(&self.tools), order, ack));
    }

    /// Has the object store make version `from` the newest one, as `number`, and drops what is here.
    pub fn roll_back(&mut self, order: Order, (from, number): (u64, u64), epoch: u64, ack: Ack) {
        self.run(order.instance, roll_back(Arc::clone(&self.tools), order, (from, number), epoch, ack));
    }

    /// Has the object store asked whose a new service is.
    pub fn ask_whose(&self, service: &DomainName) {
        if let Some(versions) = &self.tools.versions {
            versions.ask(service.clone());
        }
    }

    /// Sends the version to the object store.
    pub fn publish(&self, order: Order, number: u64, since: Since) {
        let tools = Arc::clone(&self.tools);
        tokio::spawn(async move {
            let files = tools.driver.version_files(order.instance).await.map_err(cause_of);
            failpoint!("control.publish.begin");
            let result = tools.send(&order, number, since, files).await;
            failpoint!("control.publish.told");
            let _ = tools.inbox.send(Message::Published { instance: order.instance, number, result }).await;
        });
    }

    /// Takes version `number` of the running guest and sends it to the object store.
    pub fn checkpoint(&self, order: Order, number: u64, since: Since) {
        let tools = Arc::clone(&self.tools);
        tokio::spawn(async move {
            let files = match tools.launch(&order).await {
                Ok(launch) => {
                    let taken = tools.driver.checkpoint(&launch, number, tools.clock.now()).await;
                    taken.map_err(cause_of)
                }
                Err(cause) => Err(cause),
            };
            let result = tools.send(&order, number, since, files).await;
            let _ =
                tools.inbox.send(Message::Checkpointed { instance: order.instance, number, result }).await;
        });
    }

    /// Ends the armed process.
    pub fn disarm(&mut self, order: Order) {
        let tools = Arc::clone(&self.tools);
        self.run(order.instance, async move {
            tools.unwatch(order.instance);
            tools.unlink(&order);
            let report = match tools.end_untouched(order.instance).await {
                Ok(()) => Report::Disarmed,
                Err(cause) => Report::RestFailed { cause },
            };
            tools.report(&order, report).await;
        });
    }

    /// Captures version `number`.
    pub fn capture(&mut self, order: Order, number: u64, ack: Ack) {
        let abandon = Arc::new(Abandon::default());
        self.captures.insert(order.instance, Arc::clone(&abandon));
        self.tools.unwatch(order.instance);
        self.run(order.instance, capture(Arc::clone(&self.tools), order, number, abandon, ack));
    }

    /// Asks the capture under way to be given up.
    pub fn abandon(&self, instance: InstanceId) {
        if let Some(abandon) = self.captures.get(&instance) {
            abandon.raise();
        }
    }

    /// Ends whatever process there is, again and again until it is gone.
    pub fn kill(&mut self, order: Order, remains: Remains, ack: Ack) {
        let tools = Arc::clone(&self.tools);
        tools.unwatch(order.instance);
        tools.wiring.cut(&order.spec.name);
        let overtaken = self.tasks.remove(&order.instance);
        tokio::spawn(async move {
            // So that it cannot start a process after the kill.
            overtake(overtaken).await;
            tools.unwatch(order.instance);
            // The row said so first; where it could not be written, ending the process is still right.
            let _ = ack.await;
            loop {
                match tools.driver.kill(order.instance, remains).await {
                    Ok(version) => {
                        failpoint!("control.kill.fenced");
                        tools.unlink(&order);
                        return tools.report(&order, Report::Fenced { version }).await;
                    }
                    Err(error) => {
                        tracing::error!(instance = %order.instance, %error, "cannot end the process; trying again");
                        sleep(KILL_PAUSE).await;
                    }
                }
            }
        });
    }

    /// Begins what reconciling left to do.
    pub fn take_up(&mut self, fleet: &Fleet, steps: Vec<(InstanceId, Reconciled)>) {
        for (id, step) in steps {
            let Some(instance) = fleet.instance(id) else { continue };
            let Some(service) = fleet.service(&instance.service) else { continue };
            let order = Order { instance: id, start: instance.start, spec: Arc::new(service.spec.clone()) };
            match step {
                Reconciled::Settled if instance.rung == Rung::Armed => self.adopt_armed(order),
                Reconciled::Settled => {}
                Reconciled::End => self.disarm(order),
                Reconciled::Adopt => self.adopt(order, false),
                Reconciled::Resume => self.adopt(order, true),
            }
        }
    }

    /// Takes over a process that was found, letting its guest run again if `resume`.
    pub fn adopt(&mut self, order: Order, resume: bool) {
        self.run(order.instance, adopt(Arc::clone(&self.tools), order, resume));
    }

    fn run(&mut self, instance: InstanceId, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.retain(|_, task| !task.is_finished());
        // Else it could watch, or link to, the process that the new task ends or starts.
        let overtaken = self.tasks.remove(&instance);
        let task = tokio::spawn(async move {
            overtake(overtaken).await;
            task.await;
        });
        self.tasks.insert(instance, task);
    }

    /// Watches an armed process that was found.
    pub fn adopt_armed(&self, order: Order) {
        self.tools.watch_armed(order, None);
    }
}

/// The task is over when this returns.
async fn overtake(task: Option<JoinHandle<()>>) {
    if let Some(task) = task {
        task.abort();
        let _ = task.await;
    }
}

async fn start(tools: Arc<Tools>, order: Order, restore: Option<Mapping>, ack: Ack) {
    let on_stage = {
        let (tools, order) = (Arc::clone(&tools), order.clone());
        move |stage| tools.stage(&order, stage)
    };
    tools.unwatch(order.instance);
    let durable = if is_on("start-before-row") { Ok(()) } else { saved(&order, restore, ack).await };
    let launch = match durable {
        Ok(()) => tools.launch(&order).await,
        Err(cause) => Err(cause),
    };
    let launch = match launch {
        Ok(launch) => launch,
        Err(cause) => return tools.report(&order, Report::Lost { cause }).await,
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
async fn saved(order: &Order, restore: Option<Mapping>, ack: Ack) -> Result<(), Cause> {
    let policy = &order.spec.policy;
    let limit_ms = if restore.is_some() { policy.restore_ms_max } else { policy.boot_ms_max } / 2;
    let detail = match timeout(Duration::from_millis(limit_ms), ack).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => format!("the state database: {error}"),
        Err(_) => format!("the state database did not save it for {limit_ms} ms; look at the disk"),
    };
    Err(Cause::StartFailed { detail })
}

async fn pause(tools: Arc<Tools>, order: Order, ack: Ack) {
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

async fn fetch(tools: Arc<Tools>, order: Order, number: u64) {
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

async fn roll_back(tools: Arc<Tools>, order: Order, (from, number): (u64, u64), epoch: u64, ack: Ack) {
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

async fn evict(tools: Arc<Tools>, order: Order, ack: Ack) {
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

async fn arm(tools: Arc<Tools>, order: Order, mapping: Mapping, ack: Ack) {
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

async fn capture(tools: Arc<Tools>, order: Order, number: u64, abandon: Arc<Abandon>, ack: Ack) {
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
async fn capture_ended(tools: &Arc<Tools>, order: Order, report: Report) {
    match tools.link(&order).await {
        Ok(link) => {
            tools.report(&order, report).await;
            tools.watch(order, link, From::Ready);
        }
        Err(error) => tools.report(&order, Report::Lost { cause: cause_of(error) }).await,
    }
}

async fn adopt(tools: Arc<Tools>, order: Order, resume: bool) {
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
    async fn give_up_rest(&self, order: Order, cause: Cause) {
        self.unlink(&order);
        // What it holds of the host is counted until then.
        if let Err(error) = self.end_untouched(order.instance).await {
            tracing::warn!(instance = %order.instance, %error, "its process is left");
        }
        self.report(&order, Report::RestFailed { cause }).await;
    }

    /// Ends a process that has nothing of its own which could be lost, again and again until it is gone.
    async fn end_untouched(&self, instance: InstanceId) -> Result<(), Cause> {
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

    async fn send(
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

    fn watch(self: &Arc<Self>, order: Order, cable: Arc<dyn Cable>, from: From) {
        let instance = order.instance;
        let task = tokio::spawn(watch(Arc::clone(self), order, cable, from));
        if let Some(earlier) = self.watches().insert(instance, task.abort_handle()) {
            earlier.abort();
        }
    }

    /// Reports what was reached, and watches. An armed process that dies costs its rung and nothing else.
    fn watch_armed(self: &Arc<Self>, order: Order, reached: Option<Report>) {
        let (tools, instance) = (Arc::clone(self), order.instance);
        // Whoever goes by the report finds the watch, and can end it: it must not outlive this process.
        let task = tokio::spawn(async move {
            if let Err(error) = tools.link(&order).await {
                tracing::debug!(%instance, %error, "no link to the armed process");
            }
            if let Some(reached) = reached {
                tools.report(&order, reached).await;
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

    fn unwatch(&self, instance: InstanceId) {
        if let Some(task) = self.watches().remove(&instance) {
            task.abort();
        }
    }

    fn watches(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, AbortHandle>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cause_of(error: DriverError) -> Cause {
    match error {
        DriverError::Lost(cause) | DriverError::RunsOn(cause) => cause,
        DriverError::NoProcess(_) | DriverError::Unsupported { .. } => {
            Cause::StartFailed { detail: error.to_string() }
        }
    }
}
