//! A real server on a loopback port, with a daemon in memory behind it.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use reveille_api::events::Event;
use reveille_api::types::{
    Clients, Counts, DecisionReport, DemandProfile, DemandProfileSummary, DemandRange, DemandReport,
    DemandStep, DeployReply, DnsReport, HealthChange, HealthReport, HostSummary, InstanceHealth,
    MetricsReport, ObservedReport, ProfilesReport, PruneReport, Redeploy, ReloadReport, RestoreReply,
    SecondaryReport, ServiceCounts, ServiceDemand, ServiceDetail, ServiceSummary, TakenRequests, VerbReply,
    VerifyReport, VersionDetail, VersionList, VersionPlace, VersionSummary, Wake, Whose, WhyReport, ZoneKeys,
    ZoneSummary,
};
use reveille_api::{
    Access, Anonymous, Connections, Control, ControlError, Depth, Pin, RolloverStep, Scope, Time, Token,
    TokenGrant, Unstored, Wait,
};
use reveille_core::decide::{Action, Decision, Reason};
use reveille_core::forecast::profile::{Profiles, Request};
use reveille_core::health::{Health, HealthReason};
use reveille_core::model::{
    Cause, DomainName, Failure, Instance, InstanceId, Phase, RequestError, Rung, Service, ServiceSpec,
    SnapshotVersion, SpecFault, Stage, Timestamp, Trigger, WakeOutcome, WakeRecord,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{broadcast, oneshot};

/// Longest time that anything here is waited for.
pub const LIMIT: Duration = Duration::from_secs(20);

pub fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

pub fn spec(text: &str) -> ServiceSpec {
    serde_json::from_value(serde_json::json!({ "name": text, "image": "demo", "ports": ["tcp/8080"] }))
        .unwrap()
}

// --- The daemon ------------------------------------------------------------------------------------------------

/// A fleet of services without guests.
pub struct Memory {
    services: Mutex<BTreeMap<DomainName, (Service, Instance)>>,
    pub events: broadcast::Sender<Event>,
    pub ready: Mutex<Result<(), String>>,
    pub reload: Mutex<Result<ReloadReport, ControlError>>,
    pub pinned: Mutex<Vec<u64>>,
    pub has_depot: Mutex<bool>,
    /// Requests of logs, and refused lines.
    pub requests: Mutex<(Vec<Request>, u64)>,
}

impl Memory {
    pub fn new(names: &[&str]) -> Arc<Self> {
        let memory = Self {
            services: Mutex::default(),
            events: broadcast::channel(4).0,
            ready: Mutex::new(Ok(())),
            reload: Mutex::new(Ok(ReloadReport::default())),
            pinned: Mutex::default(),
            has_depot: Mutex::new(true),
            requests: Mutex::default(),
        };
        for text in names {
            memory.insert(spec(text));
        }
        Arc::new(memory)
    }

    fn insert(&self, spec: ServiceSpec) {
        let mut services = self.services.lock().unwrap();
        let id = InstanceId(services.len() as u64 + 1);
        let mut instance = Instance::new(id, spec.name.clone(), Timestamp::from_ms(1_000));
        instance.phase = Phase::Hibernated;
        instance.rung = Rung::Local;
        instance.version = Some(SnapshotVersion {
            number: 3,
            at: Timestamp::from_ms(2_000),
            stored_bytes: 4_096,
            paused_us: 2_500,
            image: "b3:aa".to_owned(),
        });
        instance.restores.push_ms(180);
        instance.measured.note_wake(Rung::Local, 180);
        instance.measured.note_held(Rung::Armed, 41 << 10);
        let address = spec.address.unwrap_or([127, 64, 0, 1].into());
        let service = Service::new(spec, address, Timestamp::from_ms(1_000), id);
        services.insert(service.spec.name.clone(), (service, instance));
    }

    /// Makes the service one that was given up.
    pub fn give_up(&self, text: &str) {
        let mut services = self.services.lock().unwrap();
        let (_, instance) = services.get_mut(&name(text)).unwrap();
        instance.phase = Phase::Failed;
        instance.failure = Some(Failure {
            cause: Cause::VmmDied { detail: "signal 9".to_owned() },
            at: Timestamp::from_ms(5_000),
            attempts: 3,
            version_suspected: 0,
            retry_at: Timestamp::from_ms(65_000),
            gave_up: true,
        });
    }

    pub fn open_connections(&self, text: &str, count: u32) {
        self.services.lock().unwrap().get_mut(&name(text)).unwrap().1.open_connections = count;
    }

    fn with<T>(
        &self,
        asked: &DomainName,
        look: impl FnOnce(&Service, &mut Instance) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let mut services = self.services.lock().unwrap();
        let label = asked.first_label();
        let matches: Vec<DomainName> = services
            .keys()
            .filter(|known| *known == asked || (asked.label_count() == 1 && known.first_label() == label))
            .cloned()
            .collect();
        match matches.as_slice() {
            [] => Err(ControlError::UnknownService { name: asked.clone() }),
            [one] => {
                let (service, instance) = services.get_mut(one).unwrap();
                look(service, instance)
            }
            _ => Err(ControlError::AmbiguousName { label: asked.clone(), candidates: matches }),
        }
    }

    fn go(&self, asked: &DomainName, phase: Phase, rung: Rung) -> Result<VerbReply, ControlError> {
        self.with(asked, |service, instance| {
            let changed = instance.phase != phase;
            (instance.phase, instance.rung) = (phase, rung);
            let _ = self.events.send(Event::Phase {
                at: Time(Timestamp::from_ms(9_000)),
                service: instance.service.clone(),
                instance: instance.id,
                phase,
                state: instance.state(),
                rung,
                cause: None,
            });
            Ok(VerbReply {
                name: instance.service.clone(),
                phase,
                state: instance.state(),
                address: service.address,
                done: true,
                changed,
                wake: None,
            })
        })
    }
}

pub fn wake_record(service: &DomainName) -> WakeRecord {
    WakeRecord {
        service: service.clone(),
        instance: InstanceId(1),
        trigger: Trigger::Query { client: [192, 0, 2, 1].into(), qtype: 1, subnet: None },
        asks: 2,
        from: Rung::Armed,
        at: Timestamp::from_ms(1_795_310_225_123),
        stages_us: vec![(Stage::Decided, 250), (Stage::Ready, 133_400)],
        outcome: Some(WakeOutcome::Ready),
    }
}

fn version_summary(version: &SnapshotVersion) -> VersionSummary {
    VersionSummary {
        number: version.number,
        place: VersionPlace::Both,
        is_next: true,
        taken_at: Some(Time(version.at)),
        published_at: Some(Time(version.at)),
        parent: version.number.checked_sub(1),
        restored_from: None,
        image: Some(version.image.clone()),
        cpus: Some(1),
        memory_mib: Some(128),
        own_bytes: version.stored_bytes,
        shared_bytes: 0,
        pinned: false,
        goes: false,
        verdict: "kept: the newest".to_owned(),
    }
}

#[async_trait]
impl Control for Memory {
    async fn services(
        &self,
        after: Option<&DomainName>,
        limit: usize,
    ) -> Result<Vec<ServiceSummary>, ControlError> {
        let services = self.services.lock().unwrap();
        let rows = services.iter().filter(|(known, _)| after.is_none_or(|after| *known > after));
        Ok(rows
            .take(limit)
            .map(|(_, (service, instance))| ServiceSummary::of(service, instance, Clients::default()))
            .collect())
    }

    async fn service(&self, asked: &DomainName) -> Result<ServiceDetail, ControlError> {
        self.with(asked, |service, instance| {
            Ok(ServiceDetail::of(service, instance, Clients { open: 0, held: 2 }))
        })
    }

    async fn add_service(&self, spec: ServiceSpec) -> Result<ServiceDetail, ControlError> {
        if spec.image == "missing" {
            let fault = SpecFault::new("image", &spec.image, "an image that was built");
            return Err(ControlError::Invalid { faults: vec![fault] });
        }
        if self.services.lock().unwrap().contains_key(&spec.name) {
            let detail = format!("the service {} exists already; remove it first", spec.name);
            return Err(ControlError::Exists { detail });
        }
        let added = spec.name.clone();
        self.insert(spec);
        self.service(&added).await
    }

    async fn remove_service(&self, asked: &DomainName) -> Result<(), ControlError> {
        let found = self.with(asked, |_, instance| Ok(instance.service.clone()))?;
        self.services.lock().unwrap().remove(&found);
        Ok(())
    }

    async fn wake(&self, asked: &DomainName, wait: Wait) -> Result<VerbReply, ControlError> {
        self.with(asked, |_, instance| match &instance.failure {
            Some(failure) if failure.gave_up => {
                Err(ControlError::GaveUp { detail: failure.cause.to_string(), retry_ms: 1_500 })
            }
            Some(_) | None => Ok(()),
        })?;
        match wait {
            Wait::UntilDone => self.go(asked, Phase::Active, Rung::Active),
            Wait::UntilAccepted => {
                let reply = self.go(asked, Phase::Restoring, Rung::Local)?;
                Ok(VerbReply { done: false, ..reply })
            }
        }
    }

    async fn hibernate(
        &self,
        asked: &DomainName,
        connections: Connections,
        _wait: Wait,
    ) -> Result<VerbReply, ControlError> {
        let open = self.with(asked, |_, instance| Ok(instance.open_connections))?;
        if open > 0 && connections == Connections::Keep {
            return Err(ControlError::Busy { detail: format!("{asked} has {open} open connections") });
        }
        self.go(asked, Phase::Hibernated, Rung::Local)
    }

    async fn terminate(&self, asked: &DomainName, _wait: Wait) -> Result<VerbReply, ControlError> {
        self.go(asked, Phase::Off, Rung::Cold)
    }

    async fn why(&self, asked: &DomainName, limit: usize) -> Result<WhyReport, ControlError> {
        self.with(asked, |service, instance| {
            let reason = Reason::Asked { trigger: Trigger::Operator, asks: 1 };
            let decision = Decision {
                service: instance.service.clone(),
                instance: instance.id,
                action: Action::Restore { from: Rung::Armed, keep: false },
                reason,
            };
            let report = DecisionReport::of(Timestamp::from_ms(1_000), &decision);
            Ok(WhyReport {
                service: ServiceSummary::of(service, instance, Clients::default()),
                decisions: vec![report; limit.min(2)],
                wakes: vec![Wake::of(7, &wake_record(&instance.service))],
                health_changes: vec![HealthChange::of(
                    Timestamp::from_ms(2_000),
                    &instance.service,
                    instance.id,
                    Health::Down,
                    &HealthReason::Unheard { for_ms: 7 },
                )],
                anomalies: Vec::new(),
                risk: None,
            })
        })
    }

    async fn wakes(
        &self,
        asked: &DomainName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Wake>, ControlError> {
        self.with(asked, |_, instance| {
            let newest = before.map_or(5, |before| before.saturating_sub(1));
            let seqs = (1..=newest).rev().take(limit);
            Ok(seqs.map(|seq| Wake::of(seq, &wake_record(&instance.service))).collect())
        })
    }

    async fn reload(&self) -> Result<ReloadReport, ControlError> {
        self.reload.lock().unwrap().clone()
    }

    async fn host(&self) -> Result<HostSummary, ControlError> {
        Ok(HostSummary {
            version: "0.1.0".to_owned(),
            started_at: Time(Timestamp::from_ms(1_000)),
            zones: vec![name("vm.test")],
            dns: vec!["127.0.0.1:5300".parse().unwrap()],
            driver: "qemu 7.2".to_owned(),
            accelerator: "tcg".to_owned(),
            services: ServiceCounts::default(),
            starts_running: 0,
            starts_max: 4,
            generation: 1,
        })
    }

    async fn health(&self) -> Result<HealthReport, ControlError> {
        let metrics = MetricsReport {
            at: Time(Timestamp::from_ms(1_000)),
            cpu_permille: Some(20),
            cpu_ms: Some(1_234),
            held_kib: Some(8),
            read_bytes: Some(4_096),
            written_bytes: None,
            replies: Some(3),
            reply_us_total: Some(750),
            reply_us: Some(250),
        };
        let services = self.services.lock().unwrap();
        let instances = services.values().map(|(_, instance)| InstanceHealth {
            service: instance.service.clone(),
            instance: instance.id,
            health: Health::Down,
            metrics: Some(metrics.clone()),
        });
        Ok(HealthReport {
            instances: instances.collect(),
            verdicts: Counts::from([("down".to_owned(), 1)]),
            probes: BTreeMap::from([("tcp".to_owned(), Counts::from([("failed".to_owned(), 3)]))]),
        })
    }

    async fn dns(&self) -> Result<DnsReport, ControlError> {
        let counts = |of: &[(&str, u64)]| -> Counts {
            of.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
        };
        let at = Time(Timestamp::from_ms(1_000));
        Ok(DnsReport {
            at,
            queries: counts(&[("udp", 12), ("tcp", 3)]),
            ways: counts(&[("fast", 10), ("general", 5)]),
            rcodes: counts(&[("NOERROR", 15)]),
            silent: 0,
            truncated: 1,
            tsig_refused: 0,
            socket_errors: 0,
            connections: BTreeMap::from([("tcp".to_owned(), counts(&[("taken", 2)]))]),
            holds: Counts::new(),
            wakes: counts(&[("asked", 4)]),
            gate: BTreeMap::from([("rate".to_owned(), counts(&[("positive_pass", 9)]))]),
            transfers: Counts::new(),
            notifies: Counts::new(),
            updates: Counts::new(),
            signing: Counts::new(),
            dnstap: BTreeMap::from([("out".to_owned(), counts(&[("dropped", 6)]))]),
            secondaries: vec![SecondaryReport {
                zone: name("vm.test"),
                address: "127.0.0.1:5301".parse().unwrap(),
                serial: Some(7),
                acknowledged: true,
                tries: 1,
            }],
            publications: Vec::new(),
            observed: ObservedReport {
                since: at,
                queries: 15,
                dropped_total: 0,
                unique_clients: 2,
                top_names: Vec::new(),
                top_networks: Vec::new(),
            },
        })
    }

    async fn zones(
        &self,
        after: Option<&DomainName>,
        limit: usize,
    ) -> Result<Vec<ZoneSummary>, ControlError> {
        let zone = |text| ZoneSummary {
            name: name(text),
            serial: 7,
            signed: true,
            secondaries: 1,
            secondaries_in_step: 1,
            next_step: None,
        };
        let zones = ["lab.test", "vm.test"].map(zone).into_iter();
        Ok(zones.filter(|zone| after.is_none_or(|after| zone.name > *after)).take(limit).collect())
    }

    async fn zone_keys(&self, zone: &DomainName) -> Result<ZoneKeys, ControlError> {
        match zone.to_string().as_str() {
            "vm.test" => Ok(ZoneKeys {
                zone: zone.clone(),
                keys: Vec::new(),
                ds: Vec::new(),
                cds: Vec::new(),
                next_look: None,
                next_step: "nothing".to_owned(),
            }),
            "lab.test" => Err(ControlError::Refused { detail: "the zone lab.test is not signed".to_owned() }),
            _ => Err(ControlError::UnknownZone { name: zone.clone() }),
        }
    }

    async fn rollover(&self, zone: &DomainName, step: RolloverStep) -> Result<ZoneKeys, ControlError> {
        let keys = self.zone_keys(zone).await?;
        let next_step = match step {
            RolloverStep::Begin => "begun",
            RolloverStep::DsSeen => "seen",
        };
        Ok(ZoneKeys { next_step: next_step.to_owned(), ..keys })
    }

    async fn take_requests(
        &self,
        requests: Vec<Request>,
        refused: u64,
    ) -> Result<TakenRequests, ControlError> {
        let services = self.services.lock().unwrap();
        let is_here = |request: &&Request| services.contains_key(&name(&request.service));
        let counted = requests.iter().filter(is_here).count() as u64;
        let elsewhere = requests.len() as u64 - counted;
        let mut taken = self.requests.lock().unwrap();
        taken.0.extend(requests);
        taken.1 += refused;
        Ok(TakenRequests { counted, elsewhere, ..TakenRequests::default() })
    }

    async fn demand(&self) -> Result<DemandReport, ControlError> {
        let taken = self.requests.lock().unwrap();
        let counted = [("counted", taken.0.len() as u64), ("refused", taken.1)];
        let profiles = Profiles::default();
        Ok(DemandReport {
            requests: counted.map(|(word, count)| (word.to_owned(), count)).into(),
            arrivals_dropped: 3,
            services_watched: 5,
            services_unwatched: 2,
            history: Counts::new(),
            history_bytes: 4_096,
            records: [("query".to_owned(), Counts::from([("dropped".to_owned(), 7)]))].into(),
            profiles: ProfilesReport {
                users: 1,
                groups: 0,
                other_users: profiles.other_users().behaviour(),
                other_groups: profiles.other_groups().behaviour(),
            },
        })
    }

    async fn service_demand(
        &self,
        asked: &DomainName,
        range: DemandRange,
    ) -> Result<ServiceDemand, ControlError> {
        self.with(asked, |_, instance| {
            Ok(ServiceDemand {
                service: instance.service.clone(),
                from: Time(Timestamp::from_ms(0)),
                step_s: range.step_s,
                steps: vec![DemandStep::default(); usize::try_from(range.hours).unwrap()],
                per_thousand_queries: None,
                damaged: Vec::new(),
            })
        })
    }

    async fn demand_profiles(
        &self,
        _whose: Whose,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DemandProfileSummary>, ControlError> {
        let behaviour = Profiles::default().other_users().behaviour();
        let names = ["ann", "bob", "cleo"].into_iter().filter(|own| after.is_none_or(|after| *own > after));
        Ok(names.take(limit).map(|own| DemandProfileSummary::of(own, &behaviour)).collect())
    }

    async fn demand_profile(&self, whose: Whose, asked: &str) -> Result<DemandProfile, ControlError> {
        let behaviour = Profiles::default().other_users().behaviour();
        match asked {
            "ann" | "a/b" => Ok(DemandProfile { name: asked.to_owned(), behaviour }),
            _ => Err(ControlError::UnknownDemandProfile { whose, name: asked.to_owned() }),
        }
    }

    async fn versions(&self, asked: &DomainName) -> Result<VersionList, ControlError> {
        self.with(asked, |_, instance| {
            let mut versions: Vec<VersionSummary> =
                instance.version.as_ref().map(version_summary).into_iter().collect();
            versions.extend([2, 1].map(|number| VersionSummary {
                number,
                place: VersionPlace::Store,
                is_next: false,
                ..version_summary(&SnapshotVersion { number, ..instance.version.clone().unwrap() })
            }));
            Ok(VersionList { service: instance.service.clone(), has_depot: true, versions })
        })
    }

    async fn version(&self, asked: &DomainName, number: u64) -> Result<VersionDetail, ControlError> {
        let VersionList { service, versions, .. } = self.versions(asked).await?;
        let summary = versions.into_iter().find(|version| version.number == number);
        let unknown = || ControlError::UnknownVersion { service: service.clone(), number };
        Ok(VersionDetail {
            summary: summary.ok_or_else(unknown)?,
            service,
            epoch: 1,
            paused_us: 2_500,
            needs: BTreeMap::from([("machine".to_owned(), "microvm".to_owned())]),
            parts: Vec::new(),
            chunks: 12,
            sealed: false,
        })
    }

    async fn verify_version(
        &self,
        asked: &DomainName,
        number: u64,
        depth: Depth,
    ) -> Result<VerifyReport, ControlError> {
        let service = self.version(asked, number).await?.service;
        let chunks = if depth == Depth::Pages { 12 } else { 0 };
        Ok(VerifyReport { service, number, intact: true, chunks, faults: Vec::new(), faults_total: 0 })
    }

    async fn restore_version(
        &self,
        asked: &DomainName,
        from: u64,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<RestoreReply, ControlError> {
        let service = self.version(asked, from).await?.service;
        let phase = self.with(asked, |_, instance| Ok(instance.phase))?;
        if phase == Phase::Active {
            return Err(RequestError::Awake { service, phase }.into());
        }
        if unstored == Unstored::Keep && from == 2 {
            return Err(RequestError::Unstored { service, number: 3 }.into());
        }
        Ok(RestoreReply { service, from, number: 4, phase, done: wait == Wait::UntilDone })
    }

    async fn pin_version(&self, asked: &DomainName, number: u64, pin: Pin) -> Result<(), ControlError> {
        self.version(asked, number).await?;
        let mut pinned = self.pinned.lock().unwrap();
        match pin {
            Pin::Set => pinned.push(number),
            Pin::Cleared => pinned.retain(|own| *own != number),
        }
        Ok(())
    }

    async fn delete_version(&self, asked: &DomainName, number: u64) -> Result<(), ControlError> {
        match self.version(asked, number).await?.summary.is_next {
            true => Err(ControlError::Refused { detail: format!("the next wake starts from {number}") }),
            false => Ok(()),
        }
    }

    async fn prune(&self, dry_run: bool) -> Result<PruneReport, ControlError> {
        match *self.has_depot.lock().unwrap() {
            true => Ok(PruneReport { dry_run, freed_bytes: 4_096, ..PruneReport::default() }),
            false => Err(ControlError::NoDepot),
        }
    }

    async fn redeploy(
        &self,
        asked: &DomainName,
        wanted: Redeploy,
        _unstored: Unstored,
        _wait: Wait,
    ) -> Result<DeployReply, ControlError> {
        self.with(asked, |service, instance| {
            let resources = service.spec.resources;
            Ok(DeployReply {
                warnings: Vec::new(),
                service: instance.service.clone(),
                image: wanted.image.clone().unwrap_or_else(|| service.spec.image.clone()),
                cpus: wanted.cpus.unwrap_or(resources.cpus),
                memory_mib: wanted.memory_mib.unwrap_or(resources.memory_mib),
                changed: wanted != Redeploy::default(),
                restored: None,
            })
        })
    }

    async fn rollback(
        &self,
        asked: &DomainName,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ControlError> {
        let reply = self.redeploy(asked, Redeploy::default(), unstored, wait).await?;
        let restored = self.restore_version(asked, 1, unstored, wait).await?;
        Ok(DeployReply { restored: Some(restored), changed: true, ..reply })
    }

    fn readiness(&self) -> Result<(), String> {
        self.ready.lock().unwrap().clone()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }
}

// --- The server ------------------------------------------------------------------------------------------------

/// A server with a token of each scope; it stops when this is dropped.
pub struct Daemon {
    pub api: SocketAddr,
    pub memory: Arc<Memory>,
    pub access: Arc<Access>,
    tokens: BTreeMap<Scope, Token>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Daemon {
    pub async fn start(names: &[&str], anonymous: Anonymous) -> Self {
        let memory = Memory::new(names);
        let access = Arc::new(Access::new(anonymous, vec!["reveille.example".to_owned()]));
        let mut tokens = BTreeMap::new();
        for scope in [Scope::Read, Scope::Operate, Scope::Admin] {
            let token = Token::generate().unwrap();
            let grant = TokenGrant { name: scope.to_string(), scope, expires: None };
            access.grant(token.hash(), grant).unwrap();
            tokens.insert(scope, token);
        }
        let listener = reveille_api::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let api = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let control: Arc<dyn Control> = Arc::clone(&memory) as Arc<dyn Control>;
        let served = tokio::spawn(reveille_api::serve(listener, control, Arc::clone(&access), async move {
            let _ = stopped.await;
        }));
        Self { api, memory, access, tokens, stop: Some(stop), served: Some(served) }
    }

    pub fn token(&self, scope: Scope) -> Token {
        self.tokens[&scope].clone()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    pub fn client(&self, scope: Scope) -> reveille_api::Client {
        reveille_api::Client::new(&self.url()).unwrap().with_token(Some(self.token(scope)))
    }

    /// Stops the server and waits until it has ended.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        let served = self.served.take().unwrap();
        tokio::time::timeout(LIMIT, served).await.expect("the server stops").unwrap();
    }

    /// Sends a request as it is written and reads the whole answer.
    pub async fn send(&self, request: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.api).await.unwrap();
        // The server may refuse a body that it has not read to its end; its answer counts.
        let _ = stream.write_all(request).await;
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("an answer");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(read.is_ok() || text.contains("\r\n\r\n"), "{read:?} {text}");
        Answer::read(&text)
    }

    /// A request with the usual headers and these.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        token: Option<Scope>,
        more: &str,
        body: &str,
    ) -> Answer {
        let host = self.api;
        let bearer = token.map(|scope| format!("Authorization: Bearer {}\r\n", self.token(scope).secret()));
        let bearer = bearer.unwrap_or_default();
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        self.send(format!("{head}{bearer}{length}{more}\r\n{body}").as_bytes()).await
    }
}

/// An answer of the server.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no status in {text:?}")),
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The type of the problem, after checking that it is one.
    pub fn problem(&self) -> String {
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        let json = self.json();
        assert_eq!(json["status"], self.status, "{self:?}");
        assert!(json["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{self:?}");
        json["type"].as_str().unwrap().to_owned()
    }
}
