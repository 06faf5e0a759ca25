//! A daemon of the simulated world: the production control loop and executor, put together as `reveille serve` does it,
//! over what one life of a daemon has of the world.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use reveille::clock::Clock;
use reveille::config::{Network, OnStop, Pools};
use reveille::control::executor::Executor;
use reveille::control::images::Images;
use reveille::control::versions::{self, Versions};
use reveille::control::wiring::Wiring;
use reveille::control::{Control, INBOX_MAX, Inputs, Message, Parts, Publisher, Serials, startup};
use reveille::profiles::Profiles;
use reveille_core::answer::{Acl, View, Zones};
use reveille_core::model::Timestamp;
use reveille_dns::WakeAsk;
use reveille_dns::update::{StaticBook, UpdateDesk};
use reveille_net::{Binding, relay_events};
use reveille_vm::driver::Driver;
use reveille_vm::image::Image;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant};

use crate::database::Rows;
use crate::ports::Ports;
use crate::shelf::Store;
use crate::vmm::Vmm;
use crate::world::{Inside, Life, World};

/// Addresses of services.
const POOL: &str = "127.64.0.0/24";

/// The warm-up profile of some services.
pub const PROFILE: &str = "sim";
/// What it does. Guests of the simulation have no agent, so that one step fails.
const STEPS: &str = r#"
[boot]
[[boot.step]]
wait_for = { ready = true }
[[boot.step]]
tcp = { connections = 3 }
retries = 1
on_failure = "retry"
[restore]
[[restore.step]]
exec = { path = "/etc/reveille/warm-up" }
[[restore.step]]
tcp = { connections = 2 }
"#;

fn executor(
    driver: Arc<dyn Driver>,
    wiring: &Arc<dyn Wiring>,
    inbox: &mpsc::Sender<Message>,
    clock: Clock,
    versions: Option<Arc<Versions>>,
) -> Executor {
    let (wiring, inbox) = (Arc::clone(wiring), inbox.clone());
    let profiles = Arc::new(Profiles::default().with(PROFILE, STEPS));
    Executor::new(driver, Arc::new(OneImage), wiring, inbox, clock, versions, profiles)
}

/// The one image of the world.
struct OneImage;

#[async_trait]
impl Images for OneImage {
    async fn resolve(&self, reference: &str) -> Result<Image, String> {
        Ok(Image {
            digest: reference.to_owned(),
            names: vec![reference.to_owned()],
            disk: None,
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            kernel_version: String::new(),
            init: String::new(),
            memory_mib_min: 32,
            entries: 0,
            built_at: Timestamp::default(),
            bytes: 0,
            notes: Vec::new(),
        })
    }
}

/// The way to a daemon that runs.
pub struct Daemon {
    pub asks: mpsc::Sender<WakeAsk>,
    pub inbox: mpsc::Sender<Message>,
}

impl Inside {
    /// A daemon begins to live.
    fn give_life(&mut self, host: usize) -> Option<u64> {
        let now = Instant::now();
        self.tell(|| format!("h{host}: the daemon starts"));
        let state = self.hosts.get_mut(host)?;
        state.lives += 1;
        state.life = Some(state.lives);
        state.kill_in = None;
        state.connected_since = now;
        state.life
    }

    /// The daemon is killed: nothing that it does from here on has an effect. What it has started runs on.
    pub fn kill_daemon(&mut self, host: usize, why: &str) {
        self.tell(|| format!("h{host}: the daemon is killed {why}"));
        if let Some(state) = self.hosts.get_mut(host) {
            state.life = None;
            state.kill_in = None;
            // Its sockets are closed with it.
            state.ports.clear();
            state.killed.notify_one();
        }
    }

    /// The host has no power any more.
    pub fn cut_power(&mut self, host: usize) {
        self.tell(|| format!("h{host}: the power is cut"));
        self.kill_daemon(host, "with its host");
        let Some(state) = self.hosts.get_mut(host) else { return };
        let mut undone = Vec::new();
        for (id, disk) in &mut state.disks {
            disk.fetched = None;
            // What was not synced may be there or not.
            if disk.manifest != disk.durable && self.dice.chance(500) {
                disk.manifest.clone_from(&disk.durable);
                undone.push(*id);
            }
            disk.durable.clone_from(&disk.manifest);
        }
        let processes: Vec<_> = state.processes.keys().copied().collect();
        for id in processes {
            self.end_process(host, id, "the power was cut");
        }
    }
}

/// Starts a daemon on a host. If it is killed meanwhile, nothing comes of it.
pub async fn start(world: &Arc<World>, host: usize) -> Option<Daemon> {
    let life = world.lock().give_life(host)?;
    let life = Life { world: Arc::clone(world), host, life };
    let (limits, specs, name) = life
        .now(|inside, host| {
            inside.hosts.get(host).map(|host| (host.limits, host.specs.clone(), host.name.clone()))
        })
        .await?;
    let clock = Clock::starting_at(world.lock().now());
    let (sender, relay) = relay_events();
    let wiring: Arc<dyn Wiring> = Arc::new(Ports { life: life.clone(), sender });
    let (store, loaded) = Rows::open(&life).await;
    let driver: Arc<dyn Driver> = Arc::new(Vmm::new(life.clone()));
    let pool = Pools::of(Network::parse_v4(POOL)?);
    let Ok(rows) = startup::merge(&specs, loaded, &*store, pool, clock.now()).await else {
        give_up(&life).await;
        return None;
    };
    let named: Vec<_> =
        rows.entries.iter().map(|(service, _)| (service.spec.clone(), service.address)).collect();
    let mut found =
        startup::find(rows.entries, &rows.dropped, limits, &*driver, &OneImage, &*wiring, clock.now()).await;
    let versions = if limits.has_depot {
        let versions = Arc::new(Versions::new(Arc::new(Store { life: life.clone() }), name));
        versions::claim(&mut found.fleet, &versions, clock.now()).await;
        Some(versions)
    } else {
        None
    };
    for (spec, address) in &named {
        let _ =
            wiring.bind(Binding::new(spec.name.clone(), vec![(*address).into()], spec.ports.clone())).await;
    }
    let Ok((serials, _)) = Serials::begin(Arc::clone(&store), &BTreeMap::new(), Vec::new()).await else {
        give_up(&life).await;
        return None;
    };
    let view = View::seeded(1, 0, Zones::default(), [], Acl::new([]));
    let (generation, _) = watch::channel(0);
    let mut publisher =
        Publisher::new(Arc::new(ArcSwap::from_pointee(view)), generation, Arc::clone(&wiring), serials);
    publisher.begin(&found.fleet, clock.now());
    let (asks, asks_end) = mpsc::channel(64);
    let (_, updates) = mpsc::channel(1);
    let (inbox, inbox_end) = mpsc::channel(INBOX_MAX);
    let (news, _) = broadcast::channel(8);
    if let Some(versions) = &versions {
        tokio::spawn(versions::keep(Arc::clone(versions), inbox.clone()));
    }
    let mut executor = executor(driver, &wiring, &inbox, clock, versions);
    executor.take_up(&found.fleet, found.steps);
    let control = Control::new(Parts {
        fleet: found.fleet,
        clock,
        store,
        wiring,
        executor,
        publisher,
        news,
        services: rows.services,
        zones: Vec::new(),
        updates: UpdateDesk::new(StaticBook::default()),
        on_stop: (OnStop::Hibernate, Duration::from_secs(30)),
        forecasts: None,
    });
    let inputs = Inputs { asks: asks_end, relay, updates, inbox: inbox_end };
    end_with_life(&life, tokio::spawn(control.run(inputs)));
    life.at_once(|_, _| Daemon { asks, inbox })
}

/// Ends the control loop when its daemon is killed.
fn end_with_life(life: &Life, control: JoinHandle<()>) {
    let killed = life.world.lock().hosts.get(life.host).map(|host| Arc::clone(&host.killed));
    let Some(killed) = killed else { return };
    let life = life.clone();
    tokio::spawn(async move {
        while life.at_once(|_, _| ()).is_some() {
            killed.notified().await;
        }
        control.abort();
    });
}

/// A daemon that cannot save its state at its start ends; the service manager starts it again.
async fn give_up(life: &Life) {
    life.now(|inside, host| inside.kill_daemon(host, "as it cannot save its state")).await;
}
