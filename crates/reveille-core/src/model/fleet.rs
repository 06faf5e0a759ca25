//! The fleet: every service and instance of this host, changed only by events and by the steps of a plan.
//!
//! One task of the daemon owns a `Fleet`; nothing else writes to it. Requests come in as [`Event`]s and are
//! accepted, harmlessly repeated, or refused with a type; what the executor did comes back as [`Report`]s.

mod steps;

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Applied, Demand, Event, HostLimits, Ownership, Report, RequestError, Service};
use super::instance::{Instance, InstanceId, RollBack, SleepAsked};
use super::load::Foreseen;
use super::name::DomainName;
use super::phase::{Phase, Role, Rung};
use super::room::{Held, Ledger};
use super::service::{ForecastMode, ServiceSpec};
use super::time::Timestamp;
use super::wake::Trigger;
use crate::decide::{Foresight, Outlook};
use crate::health::Judged;
use crate::mutation::is_on;

/// All services and instances of this host at one generation.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    generation: u64,
    /// Limits of the host.
    pub limits: HostLimits,
    services: BTreeMap<DomainName, Service>,
    instances: BTreeMap<InstanceId, Instance>,
    /// Instances for which a decision may be due; all others are at rest.
    attention: BTreeSet<InstanceId>,
    /// Those at rest for which something else is foreseen, with the time from which on it is.
    agenda: BTreeSet<(Timestamp, InstanceId)>,
    /// The same by instance.
    agenda_of: BTreeMap<InstanceId, Timestamp>,
    /// Instances changed since [`Fleet::take_changed`].
    changed: BTreeSet<InstanceId>,
    ledger: Ledger,
    /// Services of which the object store has said whose they are.
    asked: BTreeSet<DomainName>,
}

// --- Reading ---------------------------------------------------------------------------------------------------

impl Fleet {
    /// An empty fleet.
    pub fn new(limits: HostLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Rises with every change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The service of that name.
    pub fn service(&self, name: &DomainName) -> Option<&Service> {
        self.services.get(name)
    }

    /// The instance of that identity.
    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.get(&id)
    }

    /// All instances, by identity.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// The primary of the service of that name.
    pub fn primary(&self, name: &DomainName) -> Option<&Instance> {
        self.instances.get(&self.services.get(name)?.primary)
    }

    /// Instances of the service that take clients.
    pub fn serving(&self, service: &Service) -> usize {
        let all = std::iter::once(&service.primary).chain(&service.replicas);
        all.filter_map(|id| self.instances.get(id)).filter(|instance| instance.serves()).count()
    }

    /// Whether others than its primary take a service's clients.
    pub fn has_serving_replica(&self, name: &DomainName) -> bool {
        self.services.get(name).is_some_and(|service| {
            service.replicas.iter().filter_map(|id| self.instances.get(id)).any(Instance::serves)
        })
    }

    /// Services whose time to be woken has come: each is to be asked for by [`Trigger::Schedule`], which ends that.
    pub fn due(&self, now: Timestamp) -> Vec<(DomainName, Timestamp)> {
        let due = |instance: &Instance| {
            let at = instance.wake_at.filter(|at| *at <= now)?;
            let waits =
                instance.failure.as_ref().is_some_and(|failure| failure.gave_up && failure.retry_at > now);
            (!waits && !instance.retiring).then(|| (instance.service.clone(), at))
        };
        self.attention().filter_map(|(instance, _)| due(instance)).collect()
    }

    /// Instances for which a decision may be due, with their services.
    pub(crate) fn attention(&self) -> impl Iterator<Item = (&Instance, &Service)> {
        self.attention.iter().filter_map(|id| {
            let instance = self.instances.get(id)?;
            Some((instance, self.services.get(&instance.service)?))
        })
    }

    /// Primaries that are awake.
    pub fn awake(&self) -> impl Iterator<Item = (&Instance, &Service)> {
        self.attention()
            .filter(|(instance, _)| instance.phase == Phase::Active && instance.role == Role::Primary)
    }

    /// Services that may have several instances and have one that is awake.
    pub fn scaled(&self) -> impl Iterator<Item = &Service> {
        let scaled = self.attention().filter(|(instance, service)| {
            instance.role == Role::Primary
                && service.may_scale()
                && (instance.serves() || !service.replicas.is_empty())
        });
        scaled.map(|(_, service)| service)
    }

    /// When the next of those that are at rest is to be looked at, by what is foreseen.
    pub(crate) fn next_on_agenda(&self) -> Option<Timestamp> {
        self.agenda.first().map(|(at, _)| *at)
    }

    /// Whether it is not known yet if another host has the service, or what the object store has of it.
    pub fn is_unasked(&self, name: &DomainName) -> bool {
        self.limits.has_depot && !self.asked.contains(name)
    }

    /// What all instances hold of the host.
    pub fn held(&self) -> Held {
        self.ledger.total()
    }

    /// Who holds anything of the host, with its service and what it holds.
    pub(crate) fn holders(&self) -> impl Iterator<Item = (&Instance, &Service, Held)> {
        self.ledger.holders().filter_map(|(id, held)| {
            let instance = self.instances.get(&id)?;
            Some((instance, self.services.get(&instance.service)?, held))
        })
    }

    /// What the activator does with clients of the instance.
    pub fn gate(&self, id: InstanceId, now: Timestamp) -> Gate {
        let Some(instance) = self.instances.get(&id) else { return Gate::Refuse };
        if self.services.get(&instance.service).is_some_and(|service| service.foreign.is_some()) {
            return Gate::Refuse;
        }
        match instance.phase {
            Phase::Active => Gate::Open,
            // Whatever has become of it: its replicas take its clients.
            _ if self.has_serving_replica(&instance.service) => Gate::Open,
            // The version was taken of a ready instance, so its ports answer as soon as the vCPUs run.
            Phase::Warming if instance.is_restored() || is_on("gate-early") => Gate::Open,
            // The last is one whose version cannot be had from the object store.
            Phase::Failed | Phase::Hibernated if instance.is_given_up(now) => Gate::Refuse,
            Phase::Off
            | Phase::Booting
            | Phase::Restoring
            | Phase::Warming
            | Phase::Draining
            | Phase::Hibernating
            | Phase::Hibernated
            | Phase::Failed => Gate::Hold,
        }
    }
}

/// What the activator does with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Passes them on.
    Open,
    /// Keeps them waiting and asks for a wake.
    Hold,
    /// Refuses them: the service cannot be woken now.
    Refuse,
}

// --- Events ----------------------------------------------------------------------------------------------------

impl Fleet {
    /// Takes in what happened.
    ///
    /// # Errors
    /// The typed reason if a request is refused or a report does not fit; nothing is changed then.
    pub fn apply(&mut self, event: Event, now: Timestamp) -> Result<Applied, RequestError> {
        match event {
            Event::Added { service, instance } => self.add(*service, *instance),
            Event::Respecified { spec } => self.respecify(*spec),
            Event::WakeAsked { service, trigger } => self.wake_asked(&service, trigger, now),
            Event::WakeAt { service, at } => {
                let id = self.known(&service)?.primary;
                self.change(id, |instance, _| {
                    instance.wake_at = at;
                    Ok(())
                })
            }
            Event::Awaited { service } => self.awaited(&service),
            Event::SleepAsked { service, how } => self.sleep_asked(&service, how, now),
            Event::RemoveAsked { service } => {
                let id = self.known(&service)?.primary;
                self.change(id, |instance, _| {
                    instance.retiring = true;
                    Ok(())
                })
            }
            Event::Traffic { instance, open_connections, last_packet } => {
                self.change(instance, |instance, _| {
                    instance.note_traffic(open_connections, last_packet, now);
                    Ok(())
                })
            }
            Event::Answered { instance, until } => self.change(instance, |instance, _| {
                instance.leased_until = instance.leased_until.max(until);
                Ok(())
            }),
            Event::Owned { service, ownership } => self.owned(service, ownership, now),
            Event::RollBackAsked { service, from, highest, discard } => {
                self.roll_back_asked(&service, from, highest, discard)
            }
            Event::Published { instance, number, result } => self.change(instance, |instance, service| {
                instance.take_published(service, number, result, now);
                Ok(())
            }),
            Event::Checkpointed { instance, number, result } => self.change(instance, |instance, service| {
                instance.take_checkpointed(service, number, result, now);
                Ok(())
            }),
            Event::Foreseen { service, foresight } => self.foreseen(&service, foresight, now),
            Event::Used { service, in_use } => self.used(&service, in_use, now),
            Event::Expected { service, foreseen } => self.expected(&service, foreseen),
            Event::Replicated { service, replica } => self.replicated(&service, replica, now),
            Event::Measured { instance, rung, held_kib } => self.change(instance, |instance, _| {
                instance.measured.note_held(rung, held_kib);
                Ok(())
            }),
            Event::Judged { instance, start, judged } => self.judged(instance, start, judged),
            Event::FirstAnswer { instance, waited_ms } => self.first_answered(instance, waited_ms),
            Event::Reported { instance, start, report } => self.reported(instance, start, report, now),
        }
    }

    /// Instances that changed, or were removed, since the last call; for the state database and the view.
    pub fn take_changed(&mut self) -> BTreeSet<InstanceId> {
        std::mem::take(&mut self.changed)
    }

    /// Has these instances written once more: the last write of their rows failed.
    pub fn mark_changed(&mut self, instances: impl IntoIterator<Item = InstanceId>) {
        self.changed.extend(instances);
    }

    /// Nothing is started from here on, and nobody is waited for: the daemon is about to end.
    pub fn start_nothing_more(&mut self) {
        self.limits.starts_max = 0;
        for service in self.services.values_mut() {
            service.demand = None;
            service.outlook = None;
        }
        let all: Vec<InstanceId> = self.instances.keys().copied().collect();
        for id in all {
            self.settle(id);
        }
    }

    fn first_answered(&mut self, id: InstanceId, waited_ms: u64) -> Result<Applied, RequestError> {
        self.change(id, |instance, service| {
            instance.note_first_answer(service, waited_ms);
            Ok(())
        })
    }

    fn known(&self, name: &DomainName) -> Result<&Service, RequestError> {
        self.services.get(name).ok_or_else(|| RequestError::UnknownService(name.clone()))
    }

    fn add(&mut self, service: Service, instance: Instance) -> Result<Applied, RequestError> {
        if self.services.contains_key(&service.spec.name) {
            return Err(RequestError::Exists(service.spec.name));
        }
        let id = instance.id;
        self.services.insert(service.spec.name.clone(), service);
        self.instances.insert(id, instance);
        self.settle(id);
        Ok(Applied::Changed)
    }

    fn respecify(&mut self, spec: ServiceSpec) -> Result<Applied, RequestError> {
        let service = self
            .services
            .get_mut(&spec.name)
            .ok_or_else(|| RequestError::UnknownService(spec.name.clone()))?;
        if service.spec == spec {
            return Ok(Applied::Unchanged);
        }
        let id = service.primary;
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.note_other_spec(&service.spec, &spec);
        }
        service.spec = spec;
        if !service.may_scale() {
            service.load = None;
        }
        // What follows from a forecast depends on prices and limits.
        let foresight = service.outlook.take().map(|outlook| outlook.foresight().clone());
        if let (Some(foresight), Some(instance)) = (foresight, self.instances.get(&id))
            && service.spec.policy.forecast != ForecastMode::Off
        {
            service.outlook = Outlook::new(foresight, service, instance).map(Box::new);
        }
        // Whether it is at rest may depend on its policy.
        self.settle(id);
        Ok(Applied::Changed)
    }

    fn wake_asked(
        &mut self,
        name: &DomainName,
        trigger: Trigger,
        now: Timestamp,
    ) -> Result<Applied, RequestError> {
        let id = self.known(name)?.primary;
        let Some(instance) = self.instances.get_mut(&id) else {
            return Err(RequestError::UnknownInstance(id));
        };
        if instance.retiring {
            return Err(RequestError::Retiring(name.clone()));
        }
        let scheduled = matches!(trigger, Trigger::Schedule { .. });
        if let Some(host) = self.services.get(name).and_then(|service| service.foreign.clone()) {
            if scheduled {
                instance.wake_at = None;
                self.settle(id);
            }
            return Err(RequestError::Foreign { service: name.clone(), host });
        }
        if scheduled {
            instance.wake_at = None;
        }
        if instance.phase == Phase::Active {
            // An operator's "sleep" that was not carried out yet is overtaken by the newer wish.
            instance.sleep_asked = None;
            if scheduled {
                self.settle(id);
            }
            return Ok(Applied::Unchanged);
        }
        if let Some(failure) = &mut instance.failure
            && failure.gave_up
        {
            if failure.retry_at > now {
                return Err(RequestError::GaveUp {
                    service: name.clone(),
                    cause: failure.cause.clone(),
                    wait_ms: failure.retry_at.ms_since(now),
                });
            }
            // The way out of Failed that needs no person: a request after the cool-off starts afresh.
            failure.gave_up = false;
            failure.attempts = 0;
        }
        if let Some(service) = self.services.get_mut(name) {
            let demand = service.demand.get_or_insert(Demand { since: now, trigger, asks: 0 });
            demand.asks += 1;
        }
        self.settle(id);
        Ok(Applied::Changed)
    }

    fn owned(
        &mut self,
        service: DomainName,
        ownership: Ownership,
        now: Timestamp,
    ) -> Result<Applied, RequestError> {
        let id = self.known(&service)?.primary;
        self.asked.insert(service);
        self.change(id, |instance, service| {
            match ownership {
                Ownership::Foreign(host) => {
                    service.foreign = Some(host);
                    service.demand = None;
                }
                Ownership::Ours { epoch, newest, number_last } => {
                    service.foreign = None;
                    instance.note_owned(epoch, newest, number_last, now);
                }
            }
            Ok(())
        })?;
        // Of the service no row tells, and the gate depends on it.
        self.settle(id);
        Ok(Applied::Changed)
    }

    fn expected(&mut self, name: &DomainName, foreseen: Vec<Foreseen>) -> Result<Applied, RequestError> {
        self.known(name)?;
        if let Some(load) = self.services.get_mut(name).and_then(|service| service.load.as_mut()) {
            load.foresee(foreseen);
        }
        // The next look at what is in use goes by it.
        Ok(Applied::Unchanged)
    }

    fn used(&mut self, name: &DomainName, in_use: u32, now: Timestamp) -> Result<Applied, RequestError> {
        let service = self.known(name)?;
        if !service.may_scale() {
            return Ok(Applied::Unchanged);
        }
        let serving = u32::try_from(self.serving(service)).unwrap_or(u32::MAX);
        let Some(service) = self.services.get_mut(name) else { return Ok(Applied::Unchanged) };
        if serving == 0 {
            return Ok(if service.load.take().is_some() { Applied::Changed } else { Applied::Unchanged });
        }
        let before = service.wanted().instances;
        let policy = service.spec.policy;
        let load = service.load.get_or_insert_default();
        load.note(in_use, serving, &policy, now);
        if load.wanted().instances == before {
            return Ok(Applied::Unchanged);
        }
        self.generation += 1;
        Ok(Applied::Changed)
    }

    fn replicated(
        &mut self,
        name: &DomainName,
        replica: InstanceId,
        now: Timestamp,
    ) -> Result<Applied, RequestError> {
        let service =
            self.services.get_mut(name).ok_or_else(|| RequestError::UnknownService(name.clone()))?;
        let places = usize::try_from(service.spec.policy.instances_max).unwrap_or(usize::MAX);
        if !service.may_scale() || service.replicas.len() + 1 >= places {
            return Err(RequestError::NotReplicable(name.clone()));
        }
        service.replicas.push(replica);
        self.instances.insert(replica, Instance::replica(replica, name.clone(), now));
        self.settle(replica);
        Ok(Applied::Changed)
    }

    fn awaited(&mut self, name: &DomainName) -> Result<Applied, RequestError> {
        let Some(service) = self.services.get_mut(name) else {
            return Err(RequestError::UnknownService(name.clone()));
        };
        let Some(demand) = &mut service.demand else { return Ok(Applied::Unchanged) };
        demand.asks += 1;
        let id = service.primary;
        self.settle(id);
        Ok(Applied::Changed)
    }

    fn sleep_asked(
        &mut self,
        name: &DomainName,
        how: SleepAsked,
        now: Timestamp,
    ) -> Result<Applied, RequestError> {
        let id = self.known(name)?.primary;
        let name = name.clone();
        self.change(id, move |instance, service| {
            if how == SleepAsked::WhenIdle && instance.open_connections > 0 {
                let open_connections = instance.open_connections;
                return Err(RequestError::Busy { service: name, open_connections });
            }
            // Who wants it asleep does not want it woken for somebody who may come.
            service.outlook = None;
            instance.put_to_sleep_at = Some(now);
            let asleep = matches!(
                instance.phase,
                Phase::Off | Phase::Hibernated | Phase::Failed | Phase::Hibernating | Phase::Draining
            );
            if how == SleepAsked::Terminate {
                service.demand = None;
                instance.rolling_back = None;
            } else if asleep {
                return Ok(());
            }
            instance.sleep_asked = Some(how);
            Ok(())
        })
    }

    /// Whether what the service runs can be exchanged now: it sleeps, and its last version is kept, unless that may be
    /// lost.
    ///
    /// # Errors
    /// Why not.
    pub fn may_exchange(&self, name: &DomainName, discard: bool) -> Result<(), RequestError> {
        let service = self.known(name)?;
        let id = service.primary;
        let instance = self.instances.get(&id).ok_or(RequestError::UnknownInstance(id))?;
        let service_name = || name.clone();
        if instance.retiring {
            return Err(RequestError::Retiring(service_name()));
        }
        if let Some(host) = service.foreign.clone() {
            return Err(RequestError::Foreign { service: service_name(), host });
        }
        if let Some(RollBack { from, .. }) = instance.rolling_back {
            return Err(RequestError::RollingBack { service: service_name(), from });
        }
        if !matches!(instance.phase, Phase::Off | Phase::Hibernated | Phase::Failed) {
            return Err(RequestError::Awake { service: service_name(), phase: instance.phase });
        }
        match &instance.version {
            Some(version) if self.limits.has_depot && !instance.has_stored_version() && !discard => {
                Err(RequestError::Unstored { service: service_name(), number: version.number })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn roll_back_asked(
        &mut self,
        name: &DomainName,
        from: u64,
        highest: u64,
        discard: bool,
    ) -> Result<Applied, RequestError> {
        let id = self.known(name)?.primary;
        let under_way = self.instances.get(&id).and_then(|instance| instance.rolling_back);
        if under_way.is_some_and(|roll_back| roll_back.from == from) {
            return Ok(Applied::Unchanged);
        }
        self.may_exchange(name, discard)?;
        self.change(id, |instance, _| {
            instance.begin_roll_back(from, highest);
            Ok(())
        })
    }

    fn foreseen(
        &mut self,
        name: &DomainName,
        foresight: Foresight,
        now: Timestamp,
    ) -> Result<Applied, RequestError> {
        let id = self.known(name)?.primary;
        let (Some(instance), Some(service)) = (self.instances.get(&id), self.services.get_mut(name)) else {
            return Err(RequestError::UnknownInstance(id));
        };
        let had = service.outlook.take().is_some();
        let overruled = instance.put_to_sleep_at.is_some_and(|at| foresight.since <= at);
        if service.spec.policy.forecast != ForecastMode::Off && !overruled {
            service.outlook = Outlook::new(foresight, service, instance).map(Box::new);
        }
        if is_spent(service, instance, now) {
            service.outlook = None;
        }
        if service.outlook.is_none() && !had {
            return Ok(Applied::Unchanged);
        }
        self.generation += 1;
        self.attend(id);
        Ok(Applied::Changed)
    }

    /// Before a plan is made: whatever is due of what is foreseen gets a decision, and forecasts that can lead to nothing any
    /// more are dropped.
    pub fn take_due(&mut self, now: Timestamp) {
        while let Some((at, id)) = self.agenda.first().copied()
            && at <= now
        {
            self.agenda.remove(&(at, id));
            self.agenda_of.remove(&id);
            self.attention.insert(id);
        }
        let spent = |id: &InstanceId| {
            let instance = self.instances.get(id)?;
            let service = self.services.get(&instance.service)?;
            is_spent(service, instance, now).then(|| (*id, instance.service.clone()))
        };
        let spent: Vec<_> = self.attention.iter().filter_map(spent).collect();
        for (id, name) in spent {
            if let Some(service) = self.services.get_mut(&name) {
                service.outlook = None;
            }
            self.generation += 1;
            self.attend(id);
        }
    }

    /// After decisions: those asleep for which nothing else is foreseen for a while are at rest until then. So many names that
    /// are foreseen cost a turn no more than few.
    pub fn rest_until_due(&mut self, now: Timestamp) {
        let quiet = |id: &InstanceId| {
            let instance = self.instances.get(id)?;
            let service = self.services.get(&instance.service)?;
            if instance.phase != Phase::Hibernated || is_wanted(instance, service, &self.limits) {
                return None;
            }
            let best = service.outlook.as_ref()?.best(instance, now)?;
            // Else it is on its way there, or has no room yet.
            let there = service.spec.policy.forecast != ForecastMode::On || best.rung == instance.rung;
            there.then_some((*id, best.until))
        };
        let quiet: Vec<_> = self.attention.iter().filter_map(quiet).collect();
        for (id, until) in quiet {
            self.attention.remove(&id);
            self.agenda.insert((until, id));
            self.agenda_of.insert(id, until);
        }
    }

    fn judged(&mut self, id: InstanceId, start: u64, judged: Judged) -> Result<Applied, RequestError> {
        let instance = self.instances.get_mut(&id).ok_or(RequestError::UnknownInstance(id))?;
        if instance.start != start {
            return Ok(Applied::Stale);
        }
        instance.judged = Some(Box::new((start, judged)));
        // Nothing that the state database or the view has.
        self.generation += 1;
        Ok(Applied::Changed)
    }

    fn reported(
        &mut self,
        id: InstanceId,
        start: u64,
        report: Report,
        now: Timestamp,
    ) -> Result<Applied, RequestError> {
        let instance = self.instances.get(&id).ok_or(RequestError::UnknownInstance(id))?;
        if instance.start != start {
            return Ok(Applied::Stale);
        }
        let gone = instance.retiring && matches!(report, Report::Fenced { .. });
        let applied = self.change(id, |instance, service| {
            if instance.role == Role::Primary {
                return instance.take_report(service, report, now);
            }
            // Who waits for the service waits for its primary.
            let demand = service.demand.clone();
            let taken = instance.take_report(service, report, now);
            service.demand = demand;
            taken
        })?;
        if gone && let Some(instance) = self.instances.remove(&id) {
            if instance.role == Role::Primary {
                self.services.remove(&instance.service);
                self.asked.remove(&instance.service);
            } else if let Some(service) = self.services.get_mut(&instance.service) {
                service.replicas.retain(|replica| *replica != id);
                // Whether clients are let in, and whether it may sleep, may have hung on that one.
                let primary = service.primary;
                self.settle(primary);
            }
            self.attention.remove(&id);
            if let Some(at) = self.agenda_of.remove(&id) {
                self.agenda.remove(&(at, id));
            }
            self.ledger.set(id, Held::default());
        }
        Ok(applied)
    }

    fn change(
        &mut self,
        id: InstanceId,
        edit: impl FnOnce(&mut Instance, &mut Service) -> Result<(), RequestError>,
    ) -> Result<Applied, RequestError> {
        let instance = self.instances.get_mut(&id).ok_or(RequestError::UnknownInstance(id))?;
        let service = self
            .services
            .get_mut(&instance.service)
            .ok_or_else(|| RequestError::UnknownService(instance.service.clone()))?;
        let mut edited = instance.clone();
        edit(&mut edited, service)?;
        if edited == *instance {
            return Ok(Applied::Unchanged);
        }
        *instance = edited;
        self.settle(id);
        Ok(Applied::Changed)
    }

    fn settle(&mut self, id: InstanceId) {
        self.generation += 1;
        self.changed.insert(id);
        self.attend(id);
    }

    /// Whether decisions about the instance may be due, and what it holds.
    fn attend(&mut self, id: InstanceId) {
        if let Some(at) = self.agenda_of.remove(&id) {
            self.agenda.remove(&(at, id));
        }
        let (mut at_rest, mut held) = (true, Held::default());
        if let Some(instance) = self.instances.get(&id)
            && let Some(service) = self.services.get(&instance.service)
        {
            at_rest = match instance.role {
                Role::Primary => is_at_rest(instance, service, &self.limits),
                // They are few, and gone when they are not needed.
                Role::Replica | Role::Shadow | Role::Pooled => false,
            };
            held = Held::by(instance, service.spec.resources);
        }
        self.ledger.set(id, held);
        if at_rest {
            self.attention.remove(&id);
        } else {
            self.attention.insert(id);
        }
    }
}

/// Whether a service sleeps on its resting rung, or on a warmer one, and its forecast leads to nothing else.
fn is_spent(service: &Service, instance: &Instance, now: Timestamp) -> bool {
    let rest = service.spec.policy.rest;
    let sleeps = matches!(instance.phase, Phase::Off | Phase::Hibernated | Phase::Failed);
    let leads_nowhere =
        |outlook: &Outlook| outlook.is_spent(rest, now) || outlook.best(instance, now).is_none();
    sleeps && service.outlook.as_deref().is_some_and(leads_nowhere)
}

/// Whether something is asked of the instance, or under way with it, whatever is foreseen.
fn is_wanted(instance: &Instance, service: &Service, limits: &HostLimits) -> bool {
    service.demand.is_some()
        || !service.replicas.is_empty()
        || (limits.has_depot && instance.wants_publishing())
        || instance.retiring
        || (instance.outdated && instance.rung >= Rung::Armed)
        || instance.rolling_back.is_some()
        || instance.unfenced
        || instance.in_flight
        || instance.sleep_asked.is_some()
        || instance.wake_at.is_some()
        || (service.foreign.is_some() && instance.rung >= Rung::Armed)
}

/// Whether nothing is to be decided for the instance until something happens to it.
fn is_at_rest(instance: &Instance, service: &Service, limits: &HostLimits) -> bool {
    !is_wanted(instance, service, limits)
        && match instance.phase {
            Phase::Off | Phase::Failed => true,
            Phase::Hibernated => {
                let rest = service.spec.policy.rest;
                service.outlook.is_none()
                    && (instance.rung == rest || (instance.rung, rest) == (Rung::Remote, Rung::Local))
            }
            Phase::Booting
            | Phase::Restoring
            | Phase::Warming
            | Phase::Active
            | Phase::Draining
            | Phase::Hibernating => false,
        }
}
