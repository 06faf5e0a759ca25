//! Carries actions out: one task for each, which reports what came of it. Nothing is decided here.
//!
//! Before a process is started, captured or ended, the row that says so is durable: the tasks wait for the
//! acknowledgement of the state database first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reveille_core::model::{Cause, Egress, InstanceId, Phase, Report, ServiceSpec, SnapshotVersion, Stage};
use reveille_net::Activator;
use reveille_net::guest::{Link, LinkAddresses};
use reveille_net::tap::TapAddresses;
use reveille_store::Ack;
use reveille_vm::driver::{Abandon, Capture, Driver, DriverError, Launch, Mapping, VersionFiles};
use reveille_vm::image::ImageStore;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};

use super::Message;
use super::cable::{Cable, plug};
use super::versions::Versions;
use super::watch::{From, until_answers, watch};
use crate::clock::Clock;

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

/// What tasks work with.
pub struct Tools {
    /// Runs the instances.
    pub driver: Arc<dyn Driver>,
    /// What they boot.
    pub images: Arc<ImageStore>,
    /// Where their clients wait.
    pub activator: Activator,
    /// Where reports go.
    pub inbox: mpsc::Sender<Message>,
    /// The time.
    pub clock: Clock,
    /// Where versions go, if there is an object store.
    pub versions: Option<Arc<Versions>>,
    links: Mutex<BTreeMap<InstanceId, Arc<Link>>>,
    watches: Mutex<BTreeMap<InstanceId, AbortHandle>>,
}

impl Tools {
    /// Tells the control loop what came of an order.
    pub async fn report(&self, order: &Order, report: Report) {
        let Order { instance, start, .. } = *order;
        // The receiver is gone only when the daemon ends.
        let _ = self.inbox.send(Message::Reported { instance, start, report, at: Instant::now() }).await;
    }

    async fn launch(&self, order: &Order) -> Result<Launch, Cause> {
        let (images, name) = (Arc::clone(&self.images), order.spec.image.clone());
        let resolved = tokio::task::spawn_blocking(move || images.resolve(&name)).await;
        let image = match resolved {
            Ok(Ok(image)) => image,
            Ok(Err(error)) => return Err(Cause::StartFailed { detail: error.to_string() }),
            Err(error) => return Err(Cause::StartFailed { detail: error.to_string() }),
        };
        Ok(Launch {
            instance: order.instance,
            service: order.spec.name.clone(),
            image: image.digest,
            kernel: image.kernel,
            initrd: image.initrd,
            resources: order.spec.resources,
            egress: order.spec.egress,
            link: self.plug(order)?,
        })
    }

    /// What its network card is plugged into.
    fn plug(&self, order: &Order) -> Result<reveille_vm::driver::Link, Cause> {
        let name = &order.spec.name;
        let Activator::Tap(taps) = &self.activator else { return Ok(reveille_vm::driver::Link::Stream) };
        if order.spec.egress != Egress::None {
            let detail =
                "tap mode has no egress `nat`; set `none`, and route and filter on the host".to_owned();
            return Err(Cause::StartFailed { detail });
        }
        let addresses = taps.addresses(name);
        let TapAddresses { v4, v6 } = addresses.ok_or_else(|| Cause::StartFailed {
            detail: "its tap devices could not be made; see the log of the daemon's start".to_owned(),
        })?;
        Ok(plug(&self.activator, name, v4, v6))
    }

    /// The instance's cable. A link is attached to the relay, and made if there is none.
    async fn link(&self, order: &Order) -> Result<Cable, DriverError> {
        if let Activator::Tap(taps) = &self.activator {
            return Ok(Cable::Tap(taps.clone(), order.spec.name.clone()));
        }
        if let Some(link) = self.open_link(order.instance) {
            return Ok(Cable::Link(link));
        }
        let stream = self.driver.network(order.instance).await?;
        let link = Arc::new(Link::attach(stream, addresses(order.spec.egress)));
        let link = self.open_link(order.instance).unwrap_or_else(|| {
            self.links().insert(order.instance, Arc::clone(&link));
            link
        });
        self.activator.set_link(&order.spec.name, Some(Arc::clone(&link)));
        Ok(Cable::Link(link))
    }

    /// The link that there is, unless it is one to a process that has ended.
    fn open_link(&self, instance: InstanceId) -> Option<Arc<Link>> {
        self.links().get(&instance).filter(|link| !link.is_closed()).map(Arc::clone)
    }

    fn unlink(&self, order: &Order) {
        self.links().remove(&order.instance);
        self.activator.set_link(&order.spec.name, None);
    }

    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, Arc<Link>>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
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
        images: Arc<ImageStore>,
        activator: Activator,
        inbox: mpsc::Sender<Message>,
        clock: Clock,
        versions: Option<Arc<Versions>>,
    ) -> Self {
        let (links, watches) = (Mutex::default(), Mutex::default());
        let tools = Tools { driver, images, activator, inbox, clock, versions, links, watches };
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
    pub fn roll_back(&mut self, order: Order, from: u64, number: u64, ack: Ack) {
        self.run(order.instance, roll_back(Arc::clone(&self.tools), order, from, number, ack));
    }

    /// Sends the version to the object store; `before` is the newest one that is there.
    pub fn publish(&self, order: Order, number: u64, before: Option<u64>) {
        let tools = Arc::clone(&self.tools);
        tokio::spawn(async move {
            let files = tools.driver.version_files(order.instance).await.map_err(cause_of);
            let result = tools.send(&order, number, before, files).await;
            let _ = tools.inbox.send(Message::Published { instance: order.instance, number, result }).await;
        });
    }

    /// Takes version `number` of the running guest and sends it to the object store.
    pub fn checkpoint(&self, order: Order, number: u64, before: Option<u64>) {
        let tools = Arc::clone(&self.tools);
        tokio::spawn(async move {
            let files = match tools.launch(&order).await {
                Ok(launch) => {
                    let taken = tools.driver.checkpoint(&launch, number, tools.clock.now()).await;
                    taken.map_err(cause_of)
                }
                Err(cause) => Err(cause),
            };
            let result = tools.send(&order, number, before, files).await;
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
            let report = match tools.driver.disarm(order.instance).await {
                Ok(()) | Err(DriverError::NoProcess(_)) => Report::Disarmed,
                Err(error) => Report::Lost { cause: cause_of(error) },
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
    pub fn kill(&mut self, order: Order, discard: bool, ack: Ack) {
        let tools = Arc::clone(&self.tools);
        tools.unwatch(order.instance);
        tools.activator.cut(&order.spec.name);
        let overtaken = self.tasks.remove(&order.instance);
        tokio::spawn(async move {
            // So that it cannot start a process after the kill.
            overtake(overtaken).await;
            tools.unwatch(order.instance);
            // The row said so first; where it could not be written, ending the process is still right.
            let _ = ack.await;
            loop {
                match tools.driver.kill(order.instance, discard).await {
                    Ok(version) => {
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
    pub fn adopt_armed(&mut self, order: Order) {
        let tools = Arc::clone(&self.tools);
        self.run(order.instance, async move { tools.watch_armed(order).await });
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
    if let Err(error) = ack.await {
        let cause = Cause::StartFailed { detail: format!("the state database: {error}") };
        return tools.report(&order, Report::Lost { cause }).await;
    }
    tools.unwatch(order.instance);
    let launch = match tools.launch(&order).await {
        Ok(launch) => launch,
        Err(cause) => return tools.report(&order, Report::Lost { cause }).await,
    };
    let on_stage = {
        let (tools, order) = (Arc::clone(&tools), order.clone());
        move |stage| tools.stage(&order, stage)
    };
    let started = match restore {
        Some(mapping) => tools.driver.restore(&launch, mapping, &on_stage).await,
        None => tools.driver.boot(&launch, &on_stage).await,
    };
    let linked = match started {
        Ok(()) => tools.link(&order).await,
        Err(error) => Err(error),
    };
    match linked {
        Ok(link) => {
            tools.report(&order, Report::Running).await;
            tools.watch(order, link, From::Running);
        }
        Err(error) => tools.report(&order, Report::Lost { cause: cause_of(error) }).await,
    }
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
        until_answers(&order, &cable).await;
        tools.driver.pause(order.instance).await.map_err(cause_of)
    };
    let warmed = timeout(limit, warmed).await.unwrap_or_else(|_| {
        let limit_ms = order.spec.policy.restore_ms_max;
        Err(Cause::StartTimedOut { limit_ms, phase: Phase::Hibernated })
    });
    match warmed {
        Ok(()) => {
            tools.report(&order, Report::Paused).await;
            tools.watch_armed(order).await;
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
        tools.driver.install(&launch, number).await.map_err(cause_of)
    };
    let report = match fetched.await {
        Ok(version) => Report::Fetched { version },
        Err(cause) => {
            tracing::warn!(instance = %order.instance, version = number, %cause, "cannot be fetched");
            Report::RestFailed { cause }
        }
    };
    tools.report(&order, report).await;
}

async fn roll_back(tools: Arc<Tools>, order: Order, from: u64, number: u64, ack: Ack) {
    let rolled_back = match (ack.await, &tools.versions) {
        (Ok(()), Some(versions)) => versions.roll_back(&order.spec.name, from, number).await,
        (Err(error), _) => Err(Cause::StoreFailed { detail: format!("the state database: {error}") }),
        (Ok(()), None) => Err(Cause::StoreFailed { detail: "no object store is configured".to_owned() }),
    };
    let version = match rolled_back {
        Ok(version) => version,
        Err(cause) => return tools.report(&order, Report::RollBackFailed { cause }).await,
    };
    // From here on what is on this disk is not what the service goes on from.
    tools.unwatch(order.instance);
    while let Err(error) = tools.driver.evict(order.instance).await {
        tracing::error!(instance = %order.instance, %error, "cannot drop the version that was put behind; trying again");
        sleep(KILL_PAUSE).await;
    }
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
            tools.report(&order, Report::Armed).await;
            tools.watch_armed(order).await;
        }
        Err(cause) => {
            tracing::warn!(instance = %order.instance, %cause, "cannot be armed");
            tools.give_up_rest(order, cause).await;
        }
    }
}

async fn capture(tools: Arc<Tools>, order: Order, number: u64, abandon: Arc<Abandon>, ack: Ack) {
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
            return tools.report(&order, Report::Captured { version }).await;
        }
        Ok(Capture::Abandoned) => Report::CaptureAbandoned,
        Err(DriverError::RunsOn(cause)) => Report::CaptureFailed { cause },
        Err(error) => return tools.report(&order, Report::Lost { cause: cause_of(error) }).await,
    };
    tools.report(&order, report).await;
    match tools.link(&order).await {
        Ok(link) => tools.watch(order, link, From::Ready),
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
        Ok(link) => tools.watch(order, link, From::Running),
        Err(error) => tools.report(&order, Report::Lost { cause: cause_of(error) }).await,
    }
}

impl Tools {
    /// What is left of the try to keep an instance warm is ended, so that its version can be restored as always.
    async fn give_up_rest(&self, order: Order, cause: Cause) {
        self.unlink(&order);
        if let Err(error) = self.driver.disarm(order.instance).await {
            tracing::debug!(instance = %order.instance, %error, "nothing to disarm");
        }
        self.report(&order, Report::RestFailed { cause }).await;
    }

    async fn send(
        &self,
        order: &Order,
        number: u64,
        before: Option<u64>,
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
        versions.publish(&order.spec.name, files, before).await
    }

    fn stage(self: &Arc<Self>, order: &Order, stage: Stage) {
        let message =
            Message::Stage { instance: order.instance, start: order.start, stage, at: Instant::now() };
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

    fn watch(self: &Arc<Self>, order: Order, cable: Cable, from: From) {
        let instance = order.instance;
        let task = tokio::spawn(watch(Arc::clone(self), order, cable, from));
        if let Some(earlier) = self.watches().insert(instance, task.abort_handle()) {
            earlier.abort();
        }
    }

    /// An armed process that dies costs its rung and nothing else.
    async fn watch_armed(self: &Arc<Self>, order: Order) {
        if let Err(error) = self.link(&order).await {
            tracing::debug!(instance = %order.instance, %error, "no link to the armed process");
        }
        let (tools, instance) = (Arc::clone(self), order.instance);
        let task = tokio::spawn(async move {
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

/// With user-mode networking on the same wire the gateway is there already.
pub fn addresses(egress: Egress) -> LinkAddresses {
    LinkAddresses { gateway: egress == Egress::None }
}

fn cause_of(error: DriverError) -> Cause {
    match error {
        DriverError::Lost(cause) | DriverError::RunsOn(cause) => cause,
        DriverError::NoProcess(_) | DriverError::Unsupported { .. } => {
            Cause::StartFailed { detail: error.to_string() }
        }
    }
}
