//! Carries actions out: one task for each, which reports what came of it. Nothing is decided here.
//!
//! Before a process is started, captured or ended, the row that says so is durable: the tasks wait for the
//! acknowledgement of the state database first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::model::{
    Cause, DomainName, Fleet, Instance, InstanceId, Reconciled, Remains, Report, Role, Rung, ServiceSpec,
};
use reveille_core::warm_up::WarmUpSet;
use reveille_failpoint::failpoint;
use reveille_store::Ack;
use reveille_vm::driver::{Abandon, Driver, DriverError, Launch, Mapping};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::sleep;

use super::Message;
use super::cable::Cable;
use super::guest::Agents;
use super::images::Images;
use super::tasks::{adopt, arm, capture, cause_of, evict, fetch, pause, roll_back, start};
use super::versions::Versions;
use super::vitals::Vitals;
use super::warm_up::WarmUps;
use super::wiring::Wiring;
use crate::clock::{Clock, monotonic};
use crate::profiles::Profiles;

/// Pause between two tries to end a process that could not be ended.
pub(super) const KILL_PAUSE: Duration = Duration::from_secs(1);

/// What a task is about.
#[derive(Debug, Clone)]
pub struct Order {
    /// The instance.
    pub instance: InstanceId,
    /// What it is for.
    pub role: Role,
    /// The start that its reports belong to.
    pub start: u64,
    /// The service.
    pub spec: Arc<ServiceSpec>,
    /// What is to be done before its clients are let in.
    pub warm_up: Option<WarmUpSet>,
}

impl Order {
    /// An order about the instance as its row is.
    pub fn of(row: &Instance, spec: &ServiceSpec) -> Self {
        let (instance, role, start, warm_up) = (row.id, row.role, row.start, row.warm_up());
        Self { instance, role, start, spec: Arc::new(spec.clone()), warm_up }
    }
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
    /// How those that run fare.
    pub vitals: Vitals,
    /// The warm-up profiles.
    pub profiles: ArcSwap<Profiles>,
    /// What was last done by them.
    pub warm_ups: WarmUps,
    pub(super) watches: Mutex<BTreeMap<InstanceId, AbortHandle>>,
}

impl Tools {
    /// Tells the control loop what came of an order.
    pub async fn report(&self, order: &Order, report: Report) {
        let Order { instance, start, .. } = *order;
        // The receiver is gone only when the daemon ends.
        let _ = self.inbox.send(Message::Reported { instance, start, report, at: monotonic() }).await;
    }

    pub(super) async fn launch(&self, order: &Order) -> Result<Launch, Cause> {
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
            link: self.wiring.plug_bound(order.instance, &order.spec)?,
        })
    }

    /// The instance's cable. A link is attached to the relay, and made if there is none.
    pub(super) async fn link(&self, order: &Order) -> Result<Arc<dyn Cable>, DriverError> {
        self.wiring.attach(order.instance, order.role, &order.spec, &*self.driver).await
    }

    pub(super) fn unlink(&self, order: &Order) {
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
        profiles: Arc<Profiles>,
    ) -> Self {
        let tools = Tools {
            driver,
            images,
            wiring,
            inbox,
            clock,
            versions,
            agents: Agents::default(),
            vitals: Vitals::default(),
            profiles: ArcSwap::new(profiles),
            warm_ups: WarmUps::default(),
            watches: Mutex::default(),
        };
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
        tools.wiring.cut(order.instance, &order.spec.name);
        let overtaken = self.tasks.remove(&order.instance);
        tokio::spawn(async move {
            // So that it cannot start a process after the kill.
            overtake(overtaken).await;
            tools.unwatch(order.instance);
            // The row said so first; where it could not be written, ending the process is still right. But what was ended
            // for good must not come back with a row of before.
            if ack.await.is_err() {
                let _ = tools.inbox.send(Message::Unsaved(vec![order.instance])).await;
            }
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
            let order = Order::of(instance, &service.spec);
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
