//! The API's side of the control loop: each request is a message, answered by the loop.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reveille_api::types::{
    DecisionReport, DeployReply, DnsReport, HostSummary, PruneReport, Redeploy, ReloadReport, RestoreReply,
    ServiceCounts, ServiceDetail, ServiceSummary, VerbReply, VerifyReport, VersionDetail, VersionList, Wake,
    WhyReport, ZoneKeys, ZoneSummary,
};
use reveille_api::{
    CloneRequest, Connections, ControlError, Depth, Event as News, Pin, RolloverStep, Time, Unstored, Wait,
};
use reveille_core::answer::{Clash, clashes};
use reveille_core::model::{
    Applied, DomainName, Event, Former, Instance, InstanceId, Phase, Policy, Service, ServiceSpec,
    SleepAsked, SpecFault, Timestamp, Trigger, VmState, WakeRecord,
};
use reveille_store::{Change, Origin, Store, StoredService, WriteError};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::Message;
use super::exchange::Exchange;
use super::images::Images;
use super::keeping::Relied;
use super::reload::RELOAD_WAIT_MS_MAX;
use super::run::Control;
use super::stock::Stock;
use super::write_back::Doubtful;
use crate::clock::monotonic;
use crate::reload::{Prepared, Reloader};
use crate::room::QueryRoom;

/// Longest time that a request with `wait` is kept open.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(300);

pub(super) type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// What the API asks of the loop.
#[derive(Debug)]
pub enum Command {
    /// Services in the order of their names.
    List(Option<DomainName>, usize, Reply<Vec<ServiceSummary>>),
    /// One service.
    Show(DomainName, Reply<Shown>),
    /// Adds a service.
    Add(Box<ServiceSpec>, Reply<ServiceDetail>),
    /// Makes the version of one the first of a new one.
    Clone(DomainName, CloneRequest, Reply<ServiceDetail>),
    /// Has one woken at a time, or at none.
    WakeAt(DomainName, Option<Timestamp>, Reply<VerbReply>),
    /// Removes one.
    Remove(DomainName, Reply<DomainName>),
    /// Wakes one.
    Wake(DomainName, Reply<VerbReply>),
    /// Puts one to sleep, or ends it.
    Sleep(DomainName, SleepAsked, Reply<VerbReply>),
    /// What a service goes by.
    Relied(DomainName, Reply<(DomainName, Relied)>),
    /// Has the next wake start from an older version, above the highest number of the object store; whether what only
    /// this host has may be lost.
    RollBack(DomainName, (u64, u64), Unstored, Reply<RestoreReply>),
    /// Gives a service something else to run.
    Exchange(Box<Exchange>, Reply<DeployReply>),
    /// Counts.
    Host(oneshot::Sender<Counts>),
    /// Takes a config over that was read again.
    Reload(Box<Prepared>, Reply<ReloadReport>),
    /// Ends the loop when nothing is half done, as `daemon.on_stop` says.
    Stop(oneshot::Sender<()>),
}

/// What the loop knows of one service.
#[derive(Debug)]
pub struct Shown {
    pub(super) detail: ServiceDetail,
    /// Its wake under way.
    wake: Option<WakeRecord>,
    /// Something is being done with its process, or a process may be left that is to be ended.
    busy: bool,
    /// An operator's order to sleep stands.
    sleep_asked: bool,
    /// Why it could not sleep when it last should, until it is tried again.
    sleep_failure: Option<String>,
    /// Why the last one did not come about.
    pub(super) roll_back_failure: Option<String>,
    /// What it ran before.
    pub(super) former: Option<Former>,
}

/// What the loop knows of the host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    services: ServiceCounts,
    starts_running: u32,
    starts_max: u32,
    generation: u64,
}

// --- The loop's side ---------------------------------------------------------------------------------------------

impl Control {
    /// Answers a command. Whoever asked may have gone away; then the answer is dropped.
    pub(super) async fn command(&mut self, command: Command) {
        match command {
            Command::List(after, limit, reply) => {
                let _ = reply.send(Ok(self.list(after.as_ref(), limit)));
            }
            Command::Show(name, reply) => {
                let _ = reply.send(self.shown(&name));
            }
            Command::Add(spec, reply) => {
                let added = self.add(*spec).await;
                let _ = reply.send(added);
            }
            Command::Clone(name, asked, reply) => {
                let cloned = self.clone_service(&name, asked).await;
                let _ = reply.send(cloned);
            }
            Command::WakeAt(name, at, reply) => self.wake_at(&name, at, reply),
            Command::Remove(name, reply) => {
                let asked = self.resolve(&name).and_then(|name| {
                    let event = Event::RemoveAsked { service: name.clone() };
                    self.fleet.apply(event, self.clock.now())?;
                    Ok(name)
                });
                let _ = reply.send(asked);
            }
            Command::Wake(name, reply) => {
                let asked = self.resolve(&name).and_then(|name| {
                    let applied = self.wake(&name, Trigger::Operator, monotonic())?;
                    self.turn();
                    self.verb_reply(&name, applied, VmState::Active)
                });
                let _ = reply.send(asked);
            }
            Command::Sleep(name, how, reply) => {
                let asked = self.resolve(&name).and_then(|name| {
                    let event = Event::SleepAsked { service: name.clone(), how };
                    let applied = self.fleet.apply(event, self.clock.now())?;
                    self.turn();
                    self.verb_reply(&name, applied, VmState::Inactive)
                });
                let _ = reply.send(asked);
            }
            Command::Relied(name, reply) => {
                let found = self.find(&name);
                let _ = reply.send(found.map(|(service, row)| (service.spec.name.clone(), Relied::of(row))));
            }
            Command::RollBack(name, from, unstored, reply) => {
                let asked = self.roll_back(&name, from, unstored);
                let _ = reply.send(asked);
            }
            Command::Exchange(exchange, reply) => {
                let exchanged = self.exchange(*exchange).await;
                let _ = reply.send(exchanged);
            }
            Command::Host(reply) => {
                let _ = reply.send(self.counts());
            }
            Command::Reload(prepared, reply) => {
                let until = self.clock.now().plus_ms(RELOAD_WAIT_MS_MAX);
                self.reloading = Some(((prepared, reply), until));
            }
            // Only reached while a stop is under way already.
            Command::Stop(_) => {}
        }
    }

    fn list(&self, after: Option<&DomainName>, limit: usize) -> Vec<ServiceSummary> {
        let services = self.fleet.services();
        let services = services.filter(|service| after.is_none_or(|after| service.spec.name > *after));
        let rows = services.filter_map(|service| {
            let instance = self.fleet.instance(service.primary)?;
            Some(ServiceSummary::of(service, instance, self.held(&service.spec.name)))
        });
        rows.take(limit).collect()
    }

    fn shown(&self, name: &DomainName) -> Result<Shown, ControlError> {
        let now = self.clock.now();
        let (service, instance) = self.find(name)?;
        Ok(Shown {
            detail: ServiceDetail {
                agent: self.executor.tools().agents.told(instance.id),
                ..ServiceDetail::of(service, instance, self.held(&service.spec.name))
            },
            wake: self.wakes.open_of(&service.spec.name).cloned(),
            busy: instance.in_flight || instance.unfenced,
            sleep_asked: instance.sleep_asked.is_some(),
            sleep_failure: match &instance.sleep_retry {
                Some((retry_at, cause)) if *retry_at > now => Some(cause.to_string()),
                Some(_) | None => None,
            },
            roll_back_failure: instance.roll_back_failure.as_ref().map(ToString::to_string),
            former: instance.former.clone(),
        })
    }

    /// What is promised outlives the daemon: the answer follows the row.
    fn wake_at(&mut self, name: &DomainName, at: Option<Timestamp>, reply: Reply<VerbReply>) {
        let asked = self.resolve(name).and_then(|name| {
            let event = Event::WakeAt { service: name.clone(), at };
            let applied = self.fleet.apply(event, self.clock.now())?;
            let ack = self.write_now();
            self.turn();
            Ok((VerbReply { done: true, ..self.verb_reply(&name, applied, VmState::Active)? }, ack))
        });
        let answer = async move {
            let (asked, ack) = asked?;
            let unsaved = |error: WriteError| ControlError::Unavailable { detail: error.to_string() };
            ack.await.map(|()| asked).map_err(unsaved)
        };
        tokio::spawn(async move { reply.send(answer.await) });
    }

    fn held(&self, name: &DomainName) -> u32 {
        self.wiring.traffic(name).map_or(0, |traffic| traffic.held_clients)
    }

    pub(super) fn resolve(&self, name: &DomainName) -> Result<DomainName, ControlError> {
        if self.fleet.service(name).is_some() {
            return Ok(name.clone());
        }
        let unknown = || ControlError::UnknownService { name: name.clone() };
        if name.label_count() != 1 {
            return Err(unknown());
        }
        let candidates: Vec<DomainName> = self
            .fleet
            .services()
            .filter(|service| service.spec.name.first_label() == name.first_label())
            .map(|service| service.spec.name.clone())
            .collect();
        match candidates.as_slice() {
            [] => Err(unknown()),
            [only] => Ok(only.clone()),
            _ => Err(ControlError::AmbiguousName { label: name.clone(), candidates }),
        }
    }

    pub(super) fn find(&self, name: &DomainName) -> Result<(&Service, &Instance), ControlError> {
        let name = self.resolve(name)?;
        let unknown = || ControlError::UnknownService { name: name.clone() };
        let service = self.fleet.service(&name).ok_or_else(unknown)?;
        Ok((service, self.fleet.instance(service.primary).ok_or_else(unknown)?))
    }

    fn verb_reply(
        &self,
        name: &DomainName,
        applied: Applied,
        wanted: VmState,
    ) -> Result<VerbReply, ControlError> {
        let (service, instance) = self.find(name)?;
        Ok(VerbReply {
            name: service.spec.name.clone(),
            phase: instance.phase,
            state: instance.state(),
            address: service.address,
            done: is_so(instance.phase, instance.in_flight || instance.unfenced, wanted),
            changed: applied == Applied::Changed,
            wake: None,
        })
    }

    async fn add(&mut self, mut spec: ServiceSpec) -> Result<ServiceDetail, ControlError> {
        self.may_add_rows().map_err(|detail| ControlError::Unavailable { detail })?;
        if self.fleet.service(&spec.name).is_some() {
            let detail = format!("the service {} exists already; remove it first", spec.name);
            return Err(ControlError::Exists { detail });
        }
        let faults = self.spec_faults(&spec).await;
        if !faults.is_empty() {
            return Err(ControlError::Invalid { faults });
        }
        let taken = |error: super::startup::AddressError| ControlError::Exists { detail: error.to_string() };
        let address = self.services.give_address(&mut spec).map_err(taken)?;
        let instance = Instance::new(self.store.reserve_instance_id(), spec.name.clone(), self.clock.now());
        match self.add_at(spec, address, instance).await {
            Ok(detail) => Ok(detail),
            Err(error) => {
                self.services.take_back(address);
                Err(error)
            }
        }
    }

    pub(super) async fn add_at(
        &mut self,
        spec: ServiceSpec,
        address: std::net::Ipv4Addr,
        instance: Instance,
    ) -> Result<ServiceDetail, ControlError> {
        let now = self.clock.now();
        let binding = crate::serve::binding(&spec, address);
        let unavailable = |detail: String| ControlError::Unavailable { detail };
        self.wiring.bind(binding).await.map_err(|error| unavailable(error.to_string()))?;
        let row = StoredService { spec: spec.clone(), address, created_at: now, origin: Origin::Api };
        let rows = vec![Change::PutService(Box::new(row)), Change::PutInstance(Box::new(instance.clone()))];
        let doubtful = Doubtful::of(&rows, &[]);
        if let Err(error) = self.store.write(rows).await {
            self.write_back(doubtful);
            self.wiring.unbind(&spec.name).await;
            return Err(unavailable(error.to_string()));
        }
        let name = spec.name.clone();
        self.services.own(instance.id, name.clone(), address);
        let service =
            Service { spec, address, created_at: now, primary: instance.id, demand: None, foreign: None };
        let detail = ServiceDetail::of(&service, &instance, 0);
        self.fleet.apply(Event::Added { service: Box::new(service), instance: Box::new(instance) }, now)?;
        self.executor.ask_whose(&name);
        let _ = self.news.send(News::Added { at: Time(now), service: name });
        Ok(detail)
    }

    /// Faults that only the daemon can see.
    pub(super) async fn spec_faults(&self, spec: &ServiceSpec) -> Vec<SpecFault> {
        let mut faults = spec.faults();
        if !self.zones.iter().any(|zone| spec.name.is_at_or_below(zone)) {
            let zones: Vec<String> = self.zones.iter().map(ToString::to_string).collect();
            let allowed = format!("a name in a served zone: {}", zones.join(", "));
            faults.push(SpecFault::new("name", &spec.name, allowed));
        }
        let clashes = clashes(&self.publisher.zones(), [&spec.name]);
        let clashes = clashes.iter().filter(|clash| !matches!(clash, Clash::OutsideZones(_)));
        faults.extend(clashes.map(|clash| SpecFault::new("name", &spec.name, clash.to_string())));
        faults.extend(self.unknown_image(spec).await);
        faults
    }

    /// Faults of a spec whose name and place are not new.
    pub(super) async fn image_faults(&self, spec: &ServiceSpec) -> Vec<SpecFault> {
        let mut faults = spec.faults();
        faults.extend(self.unknown_image(spec).await);
        faults
    }

    async fn unknown_image(&self, spec: &ServiceSpec) -> Option<SpecFault> {
        let resolved = self.executor.tools().images.resolve(&spec.image).await;
        resolved.err().map(|error| SpecFault::new("image", &spec.image, error))
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts {
            starts_max: self.fleet.limits.starts_max,
            generation: self.fleet.generation(),
            ..Counts::default()
        };
        for instance in self.fleet.instances() {
            counts.services.total += 1;
            match instance.state() {
                VmState::Inactive => counts.services.inactive += 1,
                VmState::Warming => counts.services.warming += 1,
                VmState::Active => counts.services.active += 1,
            }
            counts.services.failed += u64::from(instance.phase == Phase::Failed);
            counts.starts_running += u32::from(instance.phase.is_starting());
        }
        counts
    }

    /// What the turn has removed is unbound and announced.
    pub(super) fn release_gone(&mut self) {
        let gone = self.services.release_gone(&self.fleet);
        if !gone.is_empty() {
            self.executor.tools().agents.keep(|id| self.fleet.instance(id).is_some());
        }
        for service in gone {
            let wiring = Arc::clone(&self.wiring);
            let _ = self.news.send(News::Removed { at: Time(self.clock.now()), service: service.clone() });
            tokio::spawn(async move { wiring.unbind(&service).await });
        }
    }

    /// Tells the listeners which phases the changed instances are in.
    pub(super) fn announce(&self, changed: &std::collections::BTreeSet<InstanceId>, now: Timestamp) {
        for instance in changed.iter().filter_map(|id| self.fleet.instance(*id)) {
            let _ = self.news.send(News::Phase {
                at: Time(now),
                service: instance.service.clone(),
                instance: instance.id,
                phase: instance.phase,
                state: instance.state(),
                rung: instance.rung,
                cause: instance.failure.as_ref().map(|failure| failure.cause.to_string()),
            });
        }
    }
}

/// Why a service did not go to sleep although an operator asked for it.
fn stays_awake(shown: Shown) -> ControlError {
    match shown.sleep_failure {
        Some(detail) => ControlError::Failed { detail },
        None => ControlError::Busy {
            detail: format!(
                "{} stays awake: somebody came while it went to sleep; with force connections are cut",
                shown.detail.summary.name
            ),
        },
    }
}

/// Whether a service is as wanted; `busy` with its process it does not sleep yet, unless it is being armed.
fn is_so(phase: Phase, busy: bool, wanted: VmState) -> bool {
    match wanted {
        VmState::Active => phase == Phase::Active,
        VmState::Inactive | VmState::Warming => match phase {
            Phase::Hibernated => true,
            Phase::Off | Phase::Failed => !busy,
            Phase::Booting
            | Phase::Restoring
            | Phase::Warming
            | Phase::Active
            | Phase::Draining
            | Phase::Hibernating => false,
        },
    }
}

// --- The API's side ----------------------------------------------------------------------------------------------

/// What the API holds of the daemon.
pub struct Remote {
    /// The way to the loop.
    pub inbox: mpsc::Sender<Message>,
    /// History is read past the loop.
    pub store: Arc<Store>,
    /// Announces each published view.
    pub generation: watch::Receiver<u64>,
    /// What happens.
    pub news: broadcast::Sender<News>,
    /// Reads the config again.
    pub reloader: Reloader,
    /// The query room is looked at past the loop.
    pub room: Arc<QueryRoom>,
    /// So is the object store, if there is one.
    pub stock: Option<Arc<Stock>>,
    /// What services may run.
    pub images: Arc<dyn Images>,
}

impl Remote {
    pub(super) async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, ControlError> {
        let gone = || ControlError::Unavailable { detail: "the daemon is stopping".to_owned() };
        let (reply, answer) = oneshot::channel();
        self.inbox.send(Message::Command(command(reply))).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())
    }

    pub(super) async fn show(&self, name: &DomainName) -> Result<Shown, ControlError> {
        self.ask(|reply| Command::Show(name.clone(), reply)).await?
    }

    /// Waits until the service is as wanted, or has failed since `asked`.
    async fn settled(&self, reply: VerbReply, wanted: VmState) -> Result<VerbReply, ControlError> {
        let mut generation = self.generation.clone();
        let waited = tokio::time::timeout(WAIT_MAX, async {
            loop {
                generation.mark_unchanged();
                let shown = self.show(&reply.name).await?;
                let summary = &shown.detail.summary;
                if let (Some(failure), Phase::Failed | Phase::Hibernated) = (&summary.failure, summary.phase)
                    && (failure.gave_up || (failure.attempts == 0 && summary.phase == Phase::Failed))
                    && (wanted == VmState::Active || summary.phase == Phase::Failed)
                {
                    return Err(ControlError::Failed { detail: failure.cause.clone() });
                }
                if wanted == VmState::Inactive && summary.phase == Phase::Active && !shown.sleep_asked {
                    // The order was carried out, and came to nothing.
                    return Err(stays_awake(shown));
                }
                if is_so(summary.phase, shown.busy, wanted) {
                    let (phase, state) = (summary.phase, summary.state);
                    return Ok(VerbReply { phase, state, done: true, ..reply.clone() });
                }
                if generation.changed().await.is_err() {
                    return Err(ControlError::Unavailable { detail: "the daemon is stopping".to_owned() });
                }
            }
        });
        waited.await.unwrap_or_else(|_| Ok(reply.clone()))
    }

    /// Looks at the query room where waiting is allowed.
    async fn in_room<T: Send + 'static>(
        &self,
        look: impl FnOnce(&QueryRoom) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        let room = Arc::clone(&self.room);
        let looked = tokio::task::spawn_blocking(move || look(&room)).await;
        looked.map_err(|_| ControlError::Unavailable { detail: "the daemon is stopping".to_owned() })
    }

    fn history<T>(read: Result<T, reveille_store::ReadError>) -> Result<T, ControlError> {
        read.map_err(|error| ControlError::Unavailable { detail: error.to_string() })
    }
}

#[async_trait]
impl reveille_api::Control for Remote {
    async fn services(
        &self,
        after: Option<&DomainName>,
        limit: usize,
    ) -> Result<Vec<ServiceSummary>, ControlError> {
        self.ask(|reply| Command::List(after.cloned(), limit, reply)).await?
    }

    async fn service(&self, name: &DomainName) -> Result<ServiceDetail, ControlError> {
        let detail = self.show(name).await?.detail;
        let name = detail.summary.name.clone();
        let queries = self.in_room(move |room| room.queries_of(&name)).await?;
        Ok(ServiceDetail { queries, ..detail })
    }

    async fn add_service(&self, spec: ServiceSpec) -> Result<ServiceDetail, ControlError> {
        self.ask(|reply| Command::Add(Box::new(spec), reply)).await?
    }

    async fn clone_service(
        &self,
        name: &DomainName,
        asked: CloneRequest,
    ) -> Result<ServiceDetail, ControlError> {
        self.ask(|reply| Command::Clone(name.clone(), asked, reply)).await?
    }

    async fn wake_at(&self, name: &DomainName, at: Option<Time>) -> Result<VerbReply, ControlError> {
        self.ask(|reply| Command::WakeAt(name.clone(), at.map(|at| at.0), reply)).await?
    }

    async fn remove_service(&self, name: &DomainName) -> Result<(), ControlError> {
        let name = self.ask(|reply| Command::Remove(name.clone(), reply)).await??;
        let mut generation = self.generation.clone();
        let gone = async {
            while self.show(&name).await.is_ok() {
                if generation.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(WAIT_MAX, gone).await.map_err(|_| ControlError::Unavailable {
            detail: format!("{name} is still being ended; it goes when its process has"),
        })
    }

    async fn wake(&self, name: &DomainName, wait: Wait) -> Result<VerbReply, ControlError> {
        let reply = self.ask(|reply| Command::Wake(name.clone(), reply)).await??;
        match wait {
            Wait::UntilAccepted => Ok(reply),
            Wait::UntilDone => self.settled(reply, VmState::Active).await,
        }
    }

    async fn hibernate(
        &self,
        name: &DomainName,
        connections: Connections,
        wait: Wait,
    ) -> Result<VerbReply, ControlError> {
        let how = match connections {
            Connections::Keep => SleepAsked::WhenIdle,
            Connections::Cut => SleepAsked::Force,
        };
        let reply = self.ask(|reply| Command::Sleep(name.clone(), how, reply)).await??;
        match wait {
            Wait::UntilAccepted => Ok(reply),
            Wait::UntilDone => self.settled(reply, VmState::Inactive).await,
        }
    }

    async fn terminate(&self, name: &DomainName, wait: Wait) -> Result<VerbReply, ControlError> {
        let how = SleepAsked::Terminate;
        let reply = self.ask(|reply| Command::Sleep(name.clone(), how, reply)).await??;
        match wait {
            Wait::UntilAccepted => Ok(reply),
            Wait::UntilDone => self.settled(reply, VmState::Inactive).await,
        }
    }

    async fn why(&self, name: &DomainName, limit: usize) -> Result<WhyReport, ControlError> {
        let Shown { detail, wake: open, .. } = self.show(name).await?;
        let name = detail.summary.name.clone();
        let decisions = Self::history(self.store.decisions(&name, None, limit))?;
        let decisions = decisions
            .iter()
            .map(|stored| DecisionReport::of(stored.entry.at, &stored.entry.decision))
            .collect();
        let stored = Self::history(self.store.wakes(&name, None, limit))?;
        let mut wakes: Vec<Wake> = stored.iter().map(|stored| Wake::of(stored.seq, &stored.entry)).collect();
        if let Some(open) = open {
            let seq = wakes.first().map_or(1, |wake| wake.seq + 1);
            wakes.insert(0, Wake::of(seq, &open));
        }
        Ok(WhyReport { service: detail.summary, decisions, wakes })
    }

    async fn wakes(
        &self,
        name: &DomainName,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Wake>, ControlError> {
        let Shown { detail, .. } = self.show(name).await?;
        let stored = Self::history(self.store.wakes(&detail.summary.name, before, limit))?;
        Ok(stored.iter().map(|stored| Wake::of(stored.seq, &stored.entry)).collect())
    }

    async fn reload(&self) -> Result<ReloadReport, ControlError> {
        self.reloader.reload().await
    }

    async fn host(&self) -> Result<HostSummary, ControlError> {
        let Counts { services, starts_running, starts_max, generation } = self.ask(Command::Host).await?;
        Ok(HostSummary {
            services,
            starts_running,
            starts_max,
            generation,
            ..self.reloader.announced().about.clone()
        })
    }

    async fn dns(&self) -> Result<DnsReport, ControlError> {
        self.in_room(QueryRoom::report).await
    }

    async fn zones(
        &self,
        after: Option<&DomainName>,
        limit: usize,
    ) -> Result<Vec<ZoneSummary>, ControlError> {
        let after = after.cloned();
        self.in_room(move |room| room.zones(after.as_ref(), limit)).await
    }

    async fn zone_keys(&self, zone: &DomainName) -> Result<ZoneKeys, ControlError> {
        let zone = zone.clone();
        self.in_room(move |room| room.keys(&zone)).await?
    }

    async fn rollover(&self, zone: &DomainName, step: RolloverStep) -> Result<ZoneKeys, ControlError> {
        let zone = zone.clone();
        self.in_room(move |room| room.rollover(&zone, step)).await?
    }

    async fn versions(&self, name: &DomainName) -> Result<VersionList, ControlError> {
        self.list_versions(name).await
    }

    async fn version(&self, name: &DomainName, number: u64) -> Result<VersionDetail, ControlError> {
        self.show_version(name, number).await
    }

    async fn verify_version(
        &self,
        name: &DomainName,
        number: u64,
        depth: Depth,
    ) -> Result<VerifyReport, ControlError> {
        self.verify(name, number, depth).await
    }

    async fn restore_version(
        &self,
        name: &DomainName,
        number: u64,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<RestoreReply, ControlError> {
        self.restore(name, number, unstored, wait).await
    }

    async fn pin_version(&self, name: &DomainName, number: u64, pin: Pin) -> Result<(), ControlError> {
        self.pin(name, number, pin).await
    }

    async fn delete_version(&self, name: &DomainName, number: u64) -> Result<(), ControlError> {
        self.delete(name, number).await
    }

    async fn prune(&self, dry_run: bool) -> Result<PruneReport, ControlError> {
        self.prune_all(dry_run).await
    }

    async fn redeploy(
        &self,
        name: &DomainName,
        wanted: Redeploy,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ControlError> {
        self.deploy(name, wanted, unstored, wait).await
    }

    async fn rollback(
        &self,
        name: &DomainName,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ControlError> {
        self.undeploy(name, unstored, wait).await
    }

    fn default_policy(&self) -> Policy {
        self.reloader.announced().policy
    }

    fn readiness(&self) -> Result<(), String> {
        // The API opens when everything else is there, and the loop is the first to go.
        if self.inbox.is_closed() { Err("the daemon is stopping".to_owned()) } else { Ok(()) }
    }

    fn events(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }
}
