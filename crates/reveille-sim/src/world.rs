//! The simulated world: hosts with their disks, processes and state databases, one object store, and what is true of
//! every service whatever the daemons believe.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reveille_core::model::{
    DomainName, HostLimits, Instance, InstanceId, Resources, ServiceSpec, SnapshotVersion, Timestamp,
};
use reveille_depot::format::manifest::Description;
use reveille_store::{Change, StoredService};
use reveille_vm::driver::Mapping;
use tokio::sync::{Notify, watch};
use tokio::time::{Duration, Instant, sleep};

use crate::dice::Dice;
use crate::ports::Port;
use crate::truth::Truths;

/// The wall time at which the world begins.
pub const BEGINNING_MS: u64 = 1_700_000_000_000;

/// Identity of a captured state of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContentId(pub usize);

/// Identity of one life of a guest: from its first instruction after a boot or restore to the end of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId(pub usize);

/// How often things go wrong, in per mille of the steps at which they can.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// A verb of the driver fails.
    pub driver: u64,
    /// A request to the object store fails, with or without effect.
    pub store: u64,
    /// A write of the state database fails, with or without effect.
    pub database: u64,
    /// A step takes a hundred times as long.
    pub slow: u64,
}

/// A version on a local disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub version: SnapshotVersion,
    pub content: ContentId,
    /// It can be told that the files are damaged.
    pub corrupt: bool,
}

/// The directory of one instance.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// The version, as everybody sees it.
    pub manifest: Option<Manifest>,
    /// As it is after a loss of power.
    pub durable: Option<Manifest>,
    /// Fetched from the store and not installed yet.
    pub fetched: Option<Manifest>,
}

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Waits for a version to be loaded, or boots.
    Waits,
    /// A version is loaded; the vCPUs have not run.
    Loaded,
    /// The vCPUs run, for no client, beside the version.
    Warms,
    /// It was warmed, and stands still.
    Paused,
    /// The guest runs.
    Runs,
    /// The guest has run, and stands still.
    Stopped,
}

/// A virtual machine monitor.
#[derive(Debug)]
pub struct Process {
    pub service: DomainName,
    pub resources: Resources,
    pub doing: Doing,
    pub mapping: Mapping,
    pub run: Option<RunId>,
    /// Whether the guest was booted, not restored.
    pub booted: bool,
    pub ready_at: Instant,
    pub hung: bool,
    /// What its readiness check says meanwhile is no.
    pub port_dead: bool,
    /// It stands still because it is captured.
    pub capturing: bool,
    /// The number of looks at its CPU time.
    pub looks: u64,
    pub ended: watch::Sender<Option<String>>,
}

/// The state database of one host.
#[derive(Debug, Default)]
pub struct Database {
    pub services: BTreeMap<DomainName, StoredService>,
    pub instances: BTreeMap<InstanceId, Instance>,
    pub next_instance: u64,
}

impl Database {
    pub fn apply(&mut self, change: &Change) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "history and zones decide nothing here")]
        match change {
            Change::PutInstance(row) => {
                self.next_instance = self.next_instance.max(row.id.0 + 1);
                self.instances.insert(row.id, (**row).clone());
            }
            Change::DropInstance(id) => {
                self.instances.remove(id);
            }
            Change::PutService(row) => {
                self.services.insert(row.spec.name.clone(), (**row).clone());
            }
            Change::DropService(name) => {
                self.services.remove(name);
            }
            _ => {}
        }
    }
}

/// One host.
pub struct HostState {
    pub name: String,
    pub limits: HostLimits,
    pub specs: Vec<ServiceSpec>,
    /// The life of the daemon that runs, if one does.
    pub life: Option<u64>,
    pub lives: u64,
    /// So many steps on, the daemon is killed.
    pub kill_in: Option<u64>,
    /// Told when the daemon was killed.
    pub killed: Arc<Notify>,
    pub database: Database,
    pub disks: BTreeMap<InstanceId, Disk>,
    pub processes: BTreeMap<InstanceId, Process>,
    /// When a process of a service last ended.
    pub ended_at: BTreeMap<DomainName, Instant>,
    pub ports: BTreeMap<DomainName, Port>,
    /// Cut off from the object store.
    pub partitioned: bool,
    /// From when on it has been able to reach the object store, with a daemon.
    pub connected_since: Instant,
}

impl HostState {
    pub fn process_of(&self, service: &DomainName) -> Option<&Process> {
        self.processes.values().find(|process| process.service == *service)
    }
}

/// A version in the object store.
#[derive(Debug, Clone)]
pub struct StoredVersion {
    pub about: Description,
    pub content: ContentId,
    pub corrupt: bool,
    pub published_ms: u64,
}

/// Who owns a service.
#[derive(Debug, Clone)]
pub struct StoredOwner {
    pub host: String,
    pub epoch: u64,
    pub heard_ms: u64,
    /// When the epoch began.
    pub since: Instant,
    /// Changes with every write.
    pub tag: u64,
}

/// One service in the object store.
#[derive(Debug, Default)]
pub struct Kept {
    pub owner: Option<StoredOwner>,
    /// The last epoch in which each host owned it.
    pub owned: BTreeMap<String, u64>,
    /// Another host has put a version between the owner's epoch of before and that of now.
    pub overtaken: bool,
    pub versions: BTreeMap<u64, StoredVersion>,
}

/// Everything.
pub struct Inside {
    pub dice: Dice,
    pub rates: Rates,
    pub hosts: Vec<HostState>,
    pub store: BTreeMap<DomainName, Kept>,
    pub truths: Truths,
    pub tags: u64,
    pub violation: Option<String>,
    pub trace: Option<Vec<String>>,
    pub start: Instant,
}

impl Inside {
    /// By the store's clock, and by all others.
    pub fn now_ms(&self) -> u64 {
        self.ms_at(Instant::now())
    }

    pub fn ms_at(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.start).as_millis();
        BEGINNING_MS + u64::try_from(since).unwrap_or(u64::MAX)
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.now_ms())
    }

    pub fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.trace.is_some() {
            let line = format!("{:>9} {}", self.now_ms() - BEGINNING_MS, line());
            if let Some(trace) = &mut self.trace {
                trace.push(line);
            }
        }
    }

    /// Something happened that must not.
    pub fn violate(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.tell(|| format!("VIOLATION: {what}"));
        self.violation.get_or_insert(what);
    }
}

/// The world, shared by all that live in it.
pub struct World {
    inside: Mutex<Inside>,
    /// Told when something happened that must not.
    pub violated: Notify,
}

impl World {
    pub fn new(inside: Inside) -> Arc<Self> {
        Arc::new(Self { inside: Mutex::new(inside), violated: Notify::new() })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one life of a daemon has of the world. Once it was killed, nothing that it does has an effect.
#[derive(Clone)]
pub struct Life {
    pub world: Arc<World>,
    pub host: usize,
    pub life: u64,
}

impl Life {
    /// Whether the daemon lives.
    pub fn lives(&self, inside: &Inside) -> bool {
        inside.hosts.get(self.host).is_some_and(|host| host.life == Some(self.life))
    }

    /// Does something at once, if the daemon lives.
    pub fn at_once<T>(&self, act: impl FnOnce(&mut Inside, usize) -> T) -> Option<T> {
        let mut inside = self.world.lock();
        self.lives(&inside).then(|| act(&mut inside, self.host))
    }

    /// Does something at once; of a daemon that was killed, this is where it ended.
    pub async fn now<T>(&self, act: impl FnOnce(&mut Inside, usize) -> T) -> T {
        match self.at_once(act) {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    /// A step on the way: takes some time, and may be the one at which the daemon is killed.
    pub async fn step(&self, what: &str, least_ms: u64, most_ms: u64) {
        let ms = self
            .now(|inside, host| {
                let dies = inside.hosts.get_mut(host).is_some_and(|host| {
                    host.kill_in = host.kill_in.map(|left| left.saturating_sub(1));
                    host.kill_in == Some(0)
                });
                if dies {
                    inside.kill_daemon(host, &format!("at {what}"));
                }
                let slow = if inside.dice.chance(inside.rates.slow) { 100 } else { 1 };
                slow * inside.dice.between(least_ms, most_ms)
            })
            .await;
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
        self.now(|_, _| ()).await;
    }
}
