//! The API's side of the control loop: each request is a message, answered by the loop.

use std::sync::Arc;

use reveille_api::types::{
    Clients, DeployReply, HealthReport, ReloadReport, ReplicaReport, RestoreReply, ServiceCounts,
    ServiceDetail, ServiceSummary, VerbReply,
};
use reveille_api::{CloneRequest, ControlError, Event as News, Time, Unstored};
use reveille_core::answer::{Clash, clashes};
use reveille_core::forecast::gaps::expected;
use reveille_core::model::{
    Applied, DomainName, Event, Former, Instance, InstanceId, Phase, Role, Service, ServiceSpec, SleepAsked,
    SpecFault, Timestamp, Trigger, VmState, WakeRecord,
};
use reveille_store::{Change, Origin, StoredService, WriteError};
use tokio::sync::oneshot;

use super::exchange::Exchange;
use super::keeping::Relied;
use super::reload::RELOAD_WAIT_MS_MAX;
use super::run::Control;
use super::write_back::Doubtful;
use crate::clock::monotonic;
use crate::config::several_behind_a_tap;
use crate::reload::Prepared;

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
    /// How instances fare.
    Health(oneshot::Sender<HealthReport>),
    /// Takes a config over that was read again.
    Reload(Box<Prepared>, Reply<ReloadReport>),
    /// Ends the loop when nothing is half done, as `daemon.on_stop` says.
    Stop(oneshot::Sender<()>),
}

/// Arrivals are told of that are expected within so long.
const HOUR_MS: u64 = 3_600_000;

/// What the loop knows of one service.
#[derive(Debug)]
pub struct Shown {
    pub(super) detail: ServiceDetail,
    /// Arrivals that are expected within the next hour, if anything is foreseen.
    pub(super) expected: Option<f64>,
    /// Its wake under way.
    pub(super) wake: Option<WakeRecord>,
    /// Something is being done with its process, or a process may be left that is to be ended.
    pub(super) busy: bool,
    /// An operator's order to sleep stands.
    pub(super) sleep_asked: bool,
    /// Why it could not sleep when it last should, until it is tried again.
    pub(super) sleep_failure: Option<String>,
    /// Why the last one did not come about.
    pub(super) roll_back_failure: Option<String>,
    /// What it ran before.
    pub(super) former: Option<Former>,
}

/// What the loop knows of the host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub(super) services: ServiceCounts,
    pub(super) starts_running: u32,
    pub(super) starts_max: u32,
    pub(super) generation: u64,
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
            Command::Health(reply) => {
                let _ = reply.send(self.health_report());
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
            Some(ServiceSummary::of(service, instance, self.clients(service, instance)))
        });
        rows.take(limit).collect()
    }

    fn shown(&self, name: &DomainName) -> Result<Shown, ControlError> {
        let now = self.clock.now();
        let (service, instance) = self.find(name)?;
        Ok(Shown {
            detail: ServiceDetail {
                agent: self.executor.tools().agents.told(instance.id),
                replicas: service
                    .replicas
                    .iter()
                    .filter_map(|id| self.fleet.instance(*id))
                    .map(ReplicaReport::of)
                    .collect(),
                warm_up: self.executor.tools().warm_ups.told(instance.id),
                warm_up_times: self.executor.tools().profiles.load().times_of(&service.spec),
                ..ServiceDetail::of(service, instance, self.clients(service, instance))
                    .with(self.executor.tools().vitals.evidence(instance.id))
            },
            expected: service.outlook.as_ref().map(|outlook| {
                let foresight = outlook.foresight();
                let idle_ms = now.ms_since(foresight.since);
                expected(&foresight.pieces, idle_ms, idle_ms + HOUR_MS)
            }),
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

    /// Who is there now: what decisions go by is looked up only when they need it.
    fn clients(&self, service: &Service, instance: &Instance) -> Clients {
        match self.wiring.traffic(&service.spec.name) {
            Some(traffic) => Clients { open: traffic.open_connections, held: traffic.held_clients },
            None => Clients { open: instance.open_connections, held: 0 },
        }
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
        let service = Service::new(spec, address, now, instance.id);
        let warm_up_times = self.executor.tools().profiles.load().times_of(&service.spec);
        let detail =
            ServiceDetail { warm_up_times, ..ServiceDetail::of(&service, &instance, Clients::default()) };
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
        faults.extend(self.executor.tools().profiles.load().fault_of(spec));
        faults.extend(self.tap_fault(spec));
        faults.extend(self.unknown_image(spec).await);
        faults
    }

    /// Faults of a spec whose name and place are not new.
    pub(super) async fn image_faults(&self, spec: &ServiceSpec) -> Vec<SpecFault> {
        let mut faults = spec.faults();
        faults.extend(self.tap_fault(spec));
        faults.extend(self.unknown_image(spec).await);
        faults
    }

    fn tap_fault(&self, spec: &ServiceSpec) -> Option<SpecFault> {
        several_behind_a_tap("policy.instances_max", spec).filter(|_| !self.wiring.shares_out())
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
        for instance in self.fleet.instances().filter(|row| row.role == Role::Primary) {
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
            self.forget_gone();
        }
        for service in gone {
            self.note_gone(&service);
            let wiring = Arc::clone(&self.wiring);
            let _ = self.news.send(News::Removed { at: Time(self.clock.now()), service: service.clone() });
            tokio::spawn(async move { wiring.unbind(&service).await });
        }
    }

    /// Forgets what was told of instances that are gone.
    pub(super) fn forget_gone(&mut self) {
        let (tools, fleet) = (self.executor.tools(), &self.fleet);
        let is_there = |id| fleet.instance(id).is_some();
        tools.agents.keep(is_there);
        tools.vitals.keep(is_there);
        tools.warm_ups.keep(is_there);
        self.ailing.retain(|id, _| is_there(*id));
        self.waiting.retain(|id, _| is_there(*id));
    }

    /// Tells the listeners which phases the changed instances are in.
    pub(super) fn announce(&self, changed: &std::collections::BTreeSet<InstanceId>, now: Timestamp) {
        let primaries = changed.iter().filter_map(|id| self.fleet.instance(*id));
        for instance in primaries.filter(|row| row.role == Role::Primary) {
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

/// Whether a service is as wanted; `busy` with its process it does not sleep yet, unless it is being armed.
pub(super) fn is_so(phase: Phase, busy: bool, wanted: VmState) -> bool {
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
