//! One seed: a world is made, things go wrong for a while, then nothing does any more, and everything has to come to
//! its rest.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use reveille::control::{Command, Message};
use reveille_core::decide::Foresight;
use reveille_core::forecast::gaps::Piece;
use reveille_core::health::HealthPolicy;
use reveille_core::model::{
    AfterCrash, DomainName, Egress, ForecastMode, HostLimits, Kind, Policy, Resources, Rung, ServiceSpec,
    SleepAsked,
};
use reveille_core::mutation::switch_on;
use reveille_dns::{AskKind, WakeAsk};
use tokio::runtime::Builder;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Duration, Instant, sleep};

use crate::daemon::{self, Daemon, PROFILE};
use crate::dice::Dice;
use crate::ports::{PORT, Served, client};
use crate::truth::Truths;
use crate::vmm::VERSION_BYTES;
use crate::world::{Database, Doing, HostState, Inside, Rates, World};

/// When faults stop, every service answers within this time.
const ANSWERS_WITHIN: Duration = Duration::from_secs(240);
/// When nobody asks any more, everything is at rest within this time.
const RESTS_WITHIN: Duration = Duration::from_secs(240);
/// When faults stop, every host knows within this time what it owns.
const LEARNS_WITHIN: Duration = Duration::from_secs(45);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Deliberate bugs, each of which is found.
pub const MUTATIONS: [&str; 8] = [
    // A restored version stays on the disk.
    "manifest-stays",
    // The row says that a version is in the store, and the manifest was not put.
    "row-before-manifest",
    // What another host owns is restored.
    "no-epoch-check",
    // Clients are let in to a guest that is not ready.
    "gate-early",
    // What armed and paused instances hold is not counted.
    "waiting-is-free",
    // A version is removed from the disk that the store does not have.
    "evict-unstored",
    // A guest runs before the row that says so is durable.
    "start-before-row",
    // A guest writes to the files that are being sent.
    "write-while-sent",
];

/// What came of a seed.
pub struct Outcome {
    pub violation: Option<String>,
    pub trace: Vec<String>,
}

/// Runs one seed.
pub fn run(seed: u64, mutation: Option<&'static str>, traced: bool) -> Outcome {
    let Ok(runtime) = Builder::new_current_thread().enable_time().start_paused(true).build() else {
        return Outcome { violation: Some("no runtime".to_owned()), trace: Vec::new() };
    };
    switch_on(mutation);
    runtime.block_on(async {
        let world = make(seed, traced);
        let mut story = Story {
            world: Arc::clone(&world),
            daemons: Vec::new(),
            wanted: vec![false; 2],
            dice: Dice::new(seed ^ 0xfeed),
        };
        tokio::select! {
            biased;
            () = story.tell() => {}
            () = violated(&world) => {}
        }
        let mut inside = world.lock();
        let trace = inside.trace.take().unwrap_or_default();
        Outcome { violation: inside.violation.take(), trace }
    })
}

/// The seeds that fail, with what was violated: the lowest one, or all.
pub fn failures(
    seeds: Range<u64>,
    mutation: Option<&'static str>,
    threads: usize,
    all: bool,
) -> BTreeMap<u64, String> {
    let (next, lowest) = (AtomicU64::new(seeds.start), AtomicU64::new(u64::MAX));
    let failures = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || (!all && lowest.load(Ordering::Relaxed) < seed) {
                        return;
                    }
                    if let Some(violation) = run(seed, mutation, false).violation {
                        lowest.fetch_min(seed, Ordering::Relaxed);
                        failures.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, violation);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !all {
        failures.retain(|seed, _| *seed == lowest.load(Ordering::Relaxed));
    }
    failures
}

async fn violated(world: &World) {
    loop {
        sleep(Duration::from_millis(100)).await;
        if world.lock().violation.is_some() {
            return;
        }
    }
}

fn name(number: u64) -> DomainName {
    format!("s{number}.vm.test").parse().unwrap_or_else(|_| DomainName::root())
}

fn make(seed: u64, traced: bool) -> Arc<World> {
    let mut dice = Dice::new(seed);
    let has_depot = dice.chance(800);
    let hosts = if has_depot && dice.chance(400) { 2 } else { 1 };
    let services = dice.between(1, 4);
    let mut total_mib = 0;
    let mut specs = Vec::new();
    for number in 0..services {
        let spec = spec(&mut dice, number, has_depot);
        total_mib += u64::from(spec.resources.memory_mib);
        specs.push(spec);
    }
    // Enough for the largest one.
    let largest = specs.iter().map(|spec| u64::from(spec.resources.memory_mib)).max().unwrap_or(0);
    let tight = dice.chance(400);
    let limits = HostLimits {
        starts_max: u32::try_from(dice.between(1, 4)).unwrap_or(1),
        memory_mib_max: if tight { dice.between(largest, total_mib) } else { 0 },
        cpus_max: if dice.chance(200) { dice.between(1, 4) } else { 0 },
        cache_mib_max: if dice.chance(300) { dice.between(1, services) * (VERSION_BYTES >> 20) } else { 0 },
        has_depot,
    };
    let start = Instant::now();
    let host = |number: usize| HostState {
        name: format!("h{number}"),
        limits,
        specs: specs.clone(),
        life: None,
        lives: 0,
        kill_in: None,
        killed: Arc::new(Notify::new()),
        database: Database::default(),
        disks: BTreeMap::new(),
        processes: BTreeMap::new(),
        ended_at: BTreeMap::new(),
        ports: BTreeMap::new(),
        partitioned: false,
        connected_since: start,
    };
    let inside = Inside {
        rates: Rates::default(),
        hosts: (0..hosts).map(host).collect(),
        store: BTreeMap::new(),
        truths: Truths::default(),
        tags: 0,
        violation: None,
        trace: traced.then(Vec::new),
        start,
        dice,
    };
    World::new(inside)
}

fn spec(dice: &mut Dice, number: u64, has_depot: bool) -> ServiceSpec {
    let rests = [Rung::Remote, Rung::Local, Rung::Local, Rung::Armed, Rung::Paused];
    let modes = [ForecastMode::On, ForecastMode::On, ForecastMode::Only, ForecastMode::Off];
    let policy = Policy {
        idle_ms: dice.between(1_000, 8_000),
        min_on_ms: dice.between(0, 3_000),
        grace_ms: 0,
        sleep_with_connections: dice.chance(100),
        rest: dice.one(&rests).copied().unwrap_or(Rung::Local),
        forecast: dice.one(&modes).copied().unwrap_or_default(),
        change_mib_hours: 0,
        checkpoint_ms: if has_depot && dice.chance(300) { dice.between(1_000, 10_000) } else { 0 },
        after_crash: if has_depot && dice.chance(400) { AfterCrash::LastVersion } else { AfterCrash::Boot },
        boot_ms_max: 10_000,
        restore_ms_max: 3_000,
        backoff_ms_max: 5_000,
        cooloff_ms: 10_000,
        held_ms_max: 60_000,
        ..Policy::default()
    };
    ServiceSpec {
        name: name(number),
        kind: Kind::Single,
        image: "demo".to_owned(),
        resources: Resources {
            cpus: 1,
            memory_mib: u32::try_from(dice.between(1, 4) * 64).unwrap_or(64),
            bandwidth_mbit: None,
        },
        ports: vec![PORT],
        ready: None,
        profile: (number % 2 == 1).then(|| PROFILE.to_owned()),
        address: None,
        address6: None,
        priority: u8::try_from(dice.below(3)).unwrap_or(0),
        egress: Egress::None,
        egress_allow: Vec::new(),
        egress_deny: Vec::new(),
        policy,
        health: HealthPolicy::default(),
    }
}

struct Story {
    world: Arc<World>,
    daemons: Vec<Option<Daemon>>,
    /// Hosts whose service manager starts the daemon again when it has ended.
    wanted: Vec<bool>,
    dice: Dice,
}

impl Story {
    async fn tell(&mut self) {
        let hosts = self.world.lock().hosts.len();
        self.daemons.resize_with(hosts, || None);
        for host in 0..hosts {
            // The second one comes later, as a spare does.
            if host == 0 || self.dice.chance(300) {
                self.start(host).await;
            }
        }
        self.set_rates();
        let chaos_ms = if hosts > 1 { 300_000 } else { 120_000 };
        let until = Instant::now() + Duration::from_millis(chaos_ms);
        let pause_ms_max = self.dice.between(500, if hosts > 1 { 10_000 } else { 4_000 });
        while Instant::now() < until {
            sleep(Duration::from_millis(self.dice.between(1, pause_ms_max))).await;
            self.revive().await;
            self.happen().await;
        }
        self.settle().await;
    }

    fn set_rates(&mut self) {
        let rate = |dice: &mut Dice, most| if dice.chance(500) { dice.below(most) } else { 0 };
        let rates = Rates {
            driver: rate(&mut self.dice, 60),
            store: rate(&mut self.dice, 100),
            database: rate(&mut self.dice, 30),
            slow: rate(&mut self.dice, 15),
        };
        self.world.lock().rates = rates;
    }

    async fn start(&mut self, host: usize) {
        if let Some(wanted) = self.wanted.get_mut(host) {
            *wanted = true;
        }
        let daemon = daemon::start(&self.world, host);
        // One that is killed in the middle of its start never comes back from it.
        let killed = async {
            loop {
                sleep(Duration::from_millis(500)).await;
                if self.world.lock().hosts.get(host).is_some_and(|host| host.life.is_none()) {
                    return;
                }
            }
        };
        let daemon = tokio::select! {
            biased;
            daemon = daemon => daemon,
            () = killed => None,
        };
        if let Some(place) = self.daemons.get_mut(host) {
            *place = daemon;
        }
    }

    /// Daemons that were killed on their way are started again, as a service manager does.
    async fn revive(&mut self) {
        for host in 0..self.daemons.len() {
            let was_there = self.wanted.get(host).is_some_and(|wanted| *wanted);
            let lives = self.world.lock().hosts.get(host).is_some_and(|host| host.life.is_some());
            if was_there && !lives && self.dice.chance(700) {
                self.start(host).await;
            }
        }
    }

    fn any_service(&mut self) -> DomainName {
        let services = self.world.lock().hosts.first().map_or(1, |host| host.specs.len() as u64);
        name(self.dice.below(services))
    }

    fn any_host(&mut self) -> usize {
        usize::try_from(self.dice.below(self.daemons.len() as u64)).unwrap_or(0)
    }

    async fn happen(&mut self) {
        let (host, service) = (self.any_host(), self.any_service());
        match self.dice.below(108) {
            0..=39 => {
                let stay = Duration::from_millis(self.dice.between(10, 4_000));
                let patience = Duration::from_millis(self.dice.between(500, 30_000));
                tokio::spawn(client(Arc::clone(&self.world), host, service, stay, patience));
            }
            40..=49 => self.ask(host, &service).await,
            50..=55 => self.command(host, &service).await,
            56..=62 => self.hurt_a_guest(host),
            63..=74 => {
                let mut inside = self.world.lock();
                let steps = self.dice.between(1, 60);
                if let Some(host) = inside.hosts.get_mut(host) {
                    host.kill_in = Some(steps);
                }
            }
            75..=78 => self.kill(host).await,
            79..=82 => self.cut_power(host).await,
            83..=90 => self.part(host),
            91..=93 => self.damage(host, &service),
            94..=96 => self.set_rates(),
            97..=104 => self.foresee(host, service),
            _ => self.start_if_down(host).await,
        }
    }

    async fn ask(&mut self, host: usize, service: &DomainName) {
        let kind = if self.dice.chance(800) { AskKind::Wake } else { AskKind::Wait };
        let ask = WakeAsk {
            service: service.clone(),
            kind,
            client: IpAddr::from([192, 0, 2, 1]),
            qtype: 1,
            subnet: None,
            at: Instant::now().into_std(),
        };
        if let Some(Some(daemon)) = self.daemons.get(host) {
            let _ = daemon.asks.try_send(ask);
        }
    }

    async fn command(&mut self, host: usize, service: &DomainName) {
        let reply = oneshot::channel().0;
        let command = match self.dice.below(10) {
            0..=3 => Command::Sleep(service.clone(), SleepAsked::Force, reply),
            4..=6 => Command::Sleep(service.clone(), SleepAsked::WhenIdle, reply),
            7 => Command::Sleep(service.clone(), SleepAsked::Terminate, reply),
            _ => Command::Wake(service.clone(), reply),
        };
        self.world.lock().tell(|| {
            let command = format!("{command:?}");
            format!(
                "h{host} {service}: an operator asks for {}",
                command.split(", Sender").next().unwrap_or_default()
            )
        });
        let Some(Some(daemon)) = self.daemons.get(host) else { return };
        if matches!(command, Command::Sleep(_, SleepAsked::Terminate, _)) {
            self.world.lock().truths.give_up(service);
        }
        let _ = daemon.inbox.try_send(Message::Command(command));
    }

    /// Tells of a forecast, as likely wrong as right.
    fn foresee(&mut self, host: usize, service: DomainName) {
        let mut from_ms = 0;
        let mut piece = || {
            let until_ms = from_ms + self.dice.between(500, 20_000);
            let per_hour = if self.dice.chance(500) { self.dice.below(2_000) as f64 } else { 0.0 };
            Piece { from_ms: std::mem::replace(&mut from_ms, until_ms), until_ms, per_hour }
        };
        let pieces = (0..6).map(|_| piece()).collect();
        let since = self.world.lock().now();
        self.world.lock().tell(|| format!("h{host} {service}: a forecast"));
        if let Some(Some(daemon)) = self.daemons.get(host) {
            let foresight = Foresight { since, pieces, of_group: false };
            let _ = daemon.inbox.try_send(Message::Foreseen(vec![(service, foresight)]));
        }
    }

    fn hurt_a_guest(&mut self, host: usize) {
        let mut inside = self.world.lock();
        let ids: Vec<_> =
            inside.hosts.get(host).map(|host| host.processes.keys().copied().collect()).unwrap_or_default();
        let Some(id) = self.dice.one(&ids).copied() else { return };
        match self.dice.below(4) {
            0 | 1 => inside.end_process(host, id, "it crashed"),
            2 => {
                inside.tell(|| format!("h{host} {id}: hangs"));
                if let Some(process) = inside.hosts.get_mut(host).and_then(|host| host.processes.get_mut(&id))
                {
                    process.hung = true;
                }
            }
            _ => {
                inside.tell(|| format!("h{host} {id}: its port is dead"));
                if let Some(process) = inside.hosts.get_mut(host).and_then(|host| host.processes.get_mut(&id))
                {
                    process.port_dead = true;
                }
            }
        }
    }

    async fn kill(&mut self, host: usize) {
        self.world.lock().kill_daemon(host, "by somebody");
        let down_ms = if self.dice.chance(200) { 80_000 } else { 3_000 };
        self.come_back(host, down_ms).await;
    }

    async fn cut_power(&mut self, host: usize) {
        self.world.lock().cut_power(host);
        let down_ms = if self.dice.chance(300) { 90_000 } else { 5_000 };
        self.come_back(host, down_ms).await;
    }

    /// Some time later the daemon is there again; with two hosts, the other goes on meanwhile.
    async fn come_back(&mut self, host: usize, down_ms: u64) {
        let down = Duration::from_millis(self.dice.between(10, down_ms));
        if self.daemons.len() == 1 {
            sleep(down).await;
            return self.start(host).await;
        }
        // It comes back when it is started again.
        if let Some(wanted) = self.wanted.get_mut(host) {
            *wanted = false;
        }
        if self.dice.chance(500) {
            sleep(down).await;
            self.start(host).await;
        }
    }

    async fn start_if_down(&mut self, host: usize) {
        if self.world.lock().hosts.get(host).is_some_and(|host| host.life.is_none()) {
            self.start(host).await;
        }
    }

    fn part(&mut self, host: usize) {
        let mut inside = self.world.lock();
        let Some(state) = inside.hosts.get_mut(host) else { return };
        state.partitioned = !state.partitioned;
        state.connected_since = Instant::now();
        let parted = state.partitioned;
        inside.tell(|| {
            format!("h{host}: {} the object store", if parted { "cut off from" } else { "reaches" })
        });
    }

    /// A version is damaged, on a disk or in the store.
    fn damage(&mut self, host: usize, service: &DomainName) {
        let mut inside = self.world.lock();
        let content = if self.dice.chance(500) {
            let versions = inside.store.get_mut(service).map(|kept| &mut kept.versions);
            let newest = versions.and_then(|versions| versions.values_mut().next_back());
            newest.map(|version| {
                version.corrupt = true;
                version.content
            })
        } else {
            let state = inside.hosts.get_mut(host);
            let state = state.and_then(|state| {
                let id = state.database.instances.values().find(|row| row.service == *service)?.id;
                state.disks.get_mut(&id)?.manifest.as_mut()
            });
            state.map(|version| {
                version.corrupt = true;
                version.content
            })
        };
        let Some(content) = content else { return };
        inside.tell(|| format!("{service}: a copy of {} is damaged", content.0));
        if let Some(content) = inside.truths.content(content) {
            content.given_up = true;
        }
    }

    // --- In the end -----------------------------------------------------------------------------------------------

    async fn settle(&mut self) {
        {
            let mut inside = self.world.lock();
            inside.tell(|| "from here on nothing goes wrong".to_owned());
            inside.rates = Rates::default();
            for state in &mut inside.hosts {
                state.partitioned = false;
                state.kill_in = None;
                state.connected_since = Instant::now();
            }
        }
        for host in 0..self.daemons.len() {
            self.start_if_down(host).await;
        }
        // Everybody has heard whose a service is.
        sleep(LEARNS_WITHIN).await;
        let services: Vec<DomainName> = self
            .world
            .lock()
            .hosts
            .first()
            .map(|host| host.specs.iter().map(|spec| spec.name.clone()).collect())
            .unwrap_or_default();
        for service in services {
            self.answers(&service).await;
        }
        self.rests().await;
    }

    /// Somebody asks again and again, everywhere, and is answered in the end.
    async fn answers(&mut self, service: &DomainName) {
        let until = Instant::now() + ANSWERS_WITHIN;
        let mut seen = Vec::new();
        while Instant::now() < until {
            seen.clear();
            for host in 0..self.daemons.len() {
                let stay = Duration::from_millis(20);
                let served =
                    client(Arc::clone(&self.world), host, service.clone(), stay, Duration::from_secs(8))
                        .await;
                if served == Served::Yes {
                    return;
                }
                seen.push(served);
            }
            sleep(LOOK_EVERY).await;
        }
        let rows = self.rows();
        self.world.lock().violate(format!(
            "{service} does not answer although nothing goes wrong any more: {seen:?} {rows}"
        ));
    }

    fn rows(&self) -> String {
        let inside = self.world.lock();
        let rows = inside
            .hosts
            .iter()
            .flat_map(|host| host.database.instances.values().map(|row| (&host.name, row)));
        rows.map(|(host, row)| format!("\n{host} {row:?}")).collect()
    }

    async fn rests(&mut self) {
        let until = Instant::now() + RESTS_WITHIN;
        loop {
            sleep(LOOK_EVERY).await;
            let restless = self.world.lock().restless();
            let Some(restless) = restless else { return };
            if Instant::now() >= until {
                let rows = self.rows();
                return self.world.lock().violate(format!("{restless}, although nobody asks for it: {rows}"));
            }
        }
    }
}

impl Inside {
    /// What is not as its policy wants it to be while it sleeps.
    fn restless(&self) -> Option<String> {
        for (number, host) in self.hosts.iter().enumerate() {
            // What another host has taken over is of no use here, and nobody knows.
            let is_ours = |id| {
                let row: Option<&reveille_core::model::Instance> = host.database.instances.get(id);
                let owner = row.and_then(|row| self.store.get(&row.service)?.owner.as_ref());
                owner.is_none_or(|owner| owner.host == host.name)
            };
            let cached = host.disks.iter().filter(|(id, disk)| {
                disk.manifest.is_some() && !host.processes.contains_key(id) && is_ours(id)
            });
            let cached_bytes = cached.count() as u64 * VERSION_BYTES;
            let may_evict =
                host.limits.has_depot && host.specs.iter().all(|spec| spec.policy.rest <= Rung::Local);
            if may_evict && host.limits.cache_bytes().is_some_and(|most| cached_bytes > most) {
                return Some(format!("h{number} has {cached_bytes} bytes in its cache"));
            }
            for spec in &host.specs {
                let owner = self.store.get(&spec.name).and_then(|kept| kept.owner.as_ref());
                let is_ours = owner.is_none_or(|owner| owner.host == host.name);
                let doing = host.process_of(&spec.name).map(|process| process.doing);
                let fits = host.limits.memory_mib().is_none();
                let rests = match spec.policy.rest {
                    _ if !is_ours => doing.is_none(),
                    Rung::Armed if fits => doing == Some(Doing::Waits),
                    Rung::Paused if fits => doing == Some(Doing::Paused),
                    Rung::Armed | Rung::Paused => matches!(doing, None | Some(Doing::Waits | Doing::Paused)),
                    Rung::Remote if host.limits.has_depot => {
                        let row = host.database.instances.values().find(|row| row.service == spec.name);
                        let disk = row.and_then(|row| host.disks.get(&row.id));
                        doing.is_none() && disk.is_none_or(|disk| disk.manifest.is_none())
                    }
                    Rung::Remote | Rung::Local | Rung::Cold | Rung::Active => doing.is_none(),
                };
                if !rests {
                    return Some(format!("h{number} {}: {doing:?} is not {}", spec.name, spec.policy.rest));
                }
            }
        }
        None
    }
}
