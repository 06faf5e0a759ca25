//! What the fleet's rows mean to the outside: the view that DNS answers from, and the relay's gates.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZero;
use std::sync::Arc;

use arc_swap::ArcSwap;
use reveille_core::answer::{Acl, Refused, ServiceView, View, WakeTime, Zone, ZoneEdit};
use reveille_core::decide::sleeps_at;
use reveille_core::model::{DomainName, Fleet, Gate, Instance, InstanceId, Phase, Role, Service, Timestamp};
use reveille_dns::observe::{Counters, Observer};
use reveille_dns::publish::{Feed, PublishConfig, PublishTask};
use tokio::sync::watch;

use super::at_length;
use super::serials::{PlannedSerials, Serials};
use super::wiring::Wiring;

/// Replaced views that are kept until no reader can be in them, so that none of them has to take one apart.
const RETIRED_VIEWS_MAX: usize = 8;
/// A counter whose service is gone is given to another one only after this time, when who reads it has seen its end.
const COUNTER_REST_MS: u64 = 60_000;
/// Pause before a change that waits for a serial is looked at again, in milliseconds.
const SERIAL_PAUSE_MS: u64 = 50;

/// An instance, its service, and what is to be seen of that; `None`: nothing any more.
type Look = (InstanceId, DomainName, Option<Arc<ServiceView>>);

/// Writes views and gates.
pub struct Publisher {
    view: Arc<ArcSwap<View>>,
    generation: watch::Sender<u64>,
    wiring: Arc<dyn Wiring>,
    gates: BTreeMap<InstanceId, (DomainName, Gate)>,
    /// When gates that refuse are to be looked at again.
    reopen: BTreeSet<(Timestamp, InstanceId)>,
    numbers: Numbers,
    retired: VecDeque<Arc<View>>,
    serials: Serials,
    /// Instances that wait for a serial with which their zone may be published, and when to look again.
    without_serial: BTreeMap<InstanceId, DomainName>,
    /// Zones that wait for their next serials to have other static records.
    edits: Vec<ZoneEdit>,
    /// Zones that take the place of all others with the next publication, and who may ask for `_vmstate` then.
    rezone: Option<(Vec<Zone>, Acl)>,
    look_again: Option<Timestamp>,
    /// External primaries, and where they hear of services that come, move and go.
    outbound: Vec<(PublishConfig, Feed)>,
}

/// Which counter belongs to which instance.
#[derive(Debug, Default)]
struct Numbers {
    given: BTreeMap<InstanceId, Given>,
    /// Number of the newest counter; 0 is shared by names without one.
    last: u32,
    resting: VecDeque<(Timestamp, u32)>,
    counters: Option<Counters>,
    observer: Option<Arc<Observer>>,
}

#[derive(Debug, Clone, Copy)]
struct Given {
    number: u32,
    /// Questions that it had counted when it was last looked at.
    questions: u32,
}

impl Numbers {
    fn of(&mut self, id: InstanceId, now: Timestamp) -> u32 {
        if let Some(given) = self.given.get(&id) {
            return given.number;
        }
        let rested = self.resting.pop_front_if(|(since, _)| now.ms_since(*since) >= COUNTER_REST_MS);
        let number = rested.map_or_else(
            || {
                self.last = self.last.saturating_add(1);
                self.last
            },
            |(_, number)| {
                if let Some(observer) = &self.observer {
                    observer.forget(number);
                }
                number
            },
        );
        if let Some(counters) = &self.counters {
            counters.reserve(usize::try_from(self.last).unwrap_or(usize::MAX).saturating_add(1));
        }
        let questions = self.counters.as_ref().map_or(0, |counters| counters.sum(number));
        self.given.insert(id, Given { number, questions });
        number
    }

    fn give_back(&mut self, id: InstanceId, now: Timestamp) {
        if let Some(given) = self.given.remove(&id) {
            self.resting.push_back((now, given.number));
        }
    }
}

impl Publisher {
    /// A publisher into `view`, announcing each generation.
    pub fn new(
        view: Arc<ArcSwap<View>>,
        generation: watch::Sender<u64>,
        wiring: Arc<dyn Wiring>,
        serials: Serials,
    ) -> Self {
        Self {
            view,
            generation,
            wiring,
            gates: BTreeMap::new(),
            reopen: BTreeSet::new(),
            numbers: Numbers::default(),
            retired: VecDeque::new(),
            serials,
            without_serial: BTreeMap::new(),
            edits: Vec::new(),
            rezone: None,
            look_again: None,
            outbound: Vec::new(),
        }
    }

    /// From here on these external primaries hear of services that come, move and go.
    pub fn publish_to(&mut self, primaries: &[PublishTask]) {
        self.outbound = primaries.iter().map(|task| (task.config().clone(), task.feed().clone())).collect();
    }

    /// Gives zones other static records with the next publication for which all of them have serials.
    pub fn edit_zones(&mut self, edits: Vec<ZoneEdit>) {
        self.edits.extend(edits);
    }

    /// What has to be durable for these zones to take the place of those that are served.
    pub fn plan_zones(&self, zones: Vec<Zone>) -> PlannedSerials {
        self.serials.plan(self.view.load().zones(), zones)
    }

    /// The next publication serves these zones and no others: what was planned is durable. No edits may wait.
    pub fn rezone(&mut self, planned: PlannedSerials, monitors: Acl) {
        self.rezone = Some((self.serials.take(planned), monitors));
    }

    /// Which serials may be published.
    pub fn serials(&self) -> &Serials {
        &self.serials
    }

    /// Whether zones still wait to have other static records.
    pub fn has_edits(&self) -> bool {
        !self.edits.is_empty()
    }

    /// From here on counters have their room before a view names them, and nothing is remembered of one that is given anew.
    pub fn count_with(&mut self, counters: Counters, observer: Arc<Observer>) {
        counters.reserve(usize::try_from(self.numbers.last).unwrap_or(usize::MAX).saturating_add(1));
        (self.numbers.counters, self.numbers.observer) = (Some(counters), Some(observer));
    }

    /// Whether questions for the instance's service were counted since this was last asked.
    pub fn was_asked_for(&mut self, id: InstanceId) -> bool {
        let Numbers { given, counters: Some(counters), .. } = &mut self.numbers else { return false };
        let Some(given) = given.get_mut(&id) else { return false };
        let questions = counters.sum(given.number);
        std::mem::replace(&mut given.questions, questions) != questions
    }

    /// Makes every instance visible for the first time: nobody has seen another content of the zones yet, so their
    /// serials stay.
    pub fn begin(&mut self, fleet: &Fleet, now: Timestamp) {
        let everything = fleet.instances().map(|instance| instance.id).collect();
        let services = self.look(fleet, everything, &BTreeMap::new(), now);
        let before = self.view.load();
        let next = before.generation + 1;
        let services = services.into_iter().map(|(_, name, seen)| (name, seen));
        self.view.store(Arc::new(before.with(next, services)));
        self.generation.send_replace(next);
    }

    /// Makes the `changed` instances visible: gates first, so that nobody is answered with an address whose gate
    /// does not know yet.
    pub fn publish(&mut self, fleet: &Fleet, mut changed: BTreeSet<InstanceId>, now: Timestamp) {
        while let Some((due, id)) = self.reopen.first().copied()
            && due <= now
        {
            self.reopen.remove(&(due, id));
            changed.insert(id);
        }
        let waiting = std::mem::take(&mut self.without_serial);
        changed.extend(waiting.keys());
        if changed.is_empty() && self.edits.is_empty() && self.rezone.is_none() {
            return;
        }
        let before = self.view.load_full();
        let next = before.generation + 1;
        let base = match self.rezone.take() {
            Some((zones, monitors)) => {
                Arc::new(at_length(|| before.rezoned(next, zones.into_iter().map(Arc::new), monitors)))
            }
            None => Arc::clone(&before),
        };
        let edits = self.edits_with_serials(&base);
        let mut services = self.look(fleet, changed, &waiting, now);
        services.retain(|(id, name, seen)| {
            let publishable = self.has_serial_for(&base, name, seen.as_deref());
            if !publishable {
                self.without_serial.insert(*id, name.clone());
            }
            publishable
        });
        let all = self.without_serial.is_empty() && self.edits.is_empty();
        self.look_again = (!all).then(|| now.plus_ms(SERIAL_PAUSE_MS));
        for (_, name, seen) in &services {
            self.tell_primaries(&before, name, seen.as_deref());
        }
        let services = services.into_iter().map(|(_, name, seen)| (name, seen));
        self.view.store(Arc::new(base.advanced(next, services, edits)));
        self.generation.send_replace(next);
        self.retire(before);
    }

    /// What is to be seen of the services of these instances by now. Their gates are set.
    fn look(
        &mut self,
        fleet: &Fleet,
        instances: BTreeSet<InstanceId>,
        waiting: &BTreeMap<InstanceId, DomainName>,
        now: Timestamp,
    ) -> Vec<Look> {
        let mut looks = Vec::with_capacity(instances.len());
        // A replica is seen as a part of its service.
        let shown = |id: InstanceId| match fleet.instance(id) {
            Some(row) if row.role == Role::Replica => {
                fleet.primary(&row.service).map_or(id, |primary| primary.id)
            }
            Some(_) | None => id,
        };
        let instances: BTreeSet<InstanceId> = instances.into_iter().map(shown).collect();
        for id in instances {
            let known =
                fleet.instance(id).and_then(|instance| Some((instance, fleet.service(&instance.service)?)));
            match known {
                Some((instance, service)) => {
                    self.set_gate(id, &instance.service, fleet.gate(id, now));
                    if let Some(refused_until) = refused_until(instance, now) {
                        self.reopen.insert((refused_until, id));
                    }
                    let counter = self.numbers.of(id, now);
                    let mut seen = seen(instance, service, counter, now);
                    if service.foreign.is_none() && fleet.has_serving_replica(&instance.service) {
                        seen.refused = None;
                    }
                    looks.push((id, instance.service.clone(), Some(Arc::new(seen))));
                }
                None => {
                    self.numbers.give_back(id, now);
                    let gone = self.gates.remove(&id).map(|(service, _)| service);
                    let gone = gone.or_else(|| waiting.get(&id).cloned());
                    // A new service may have the name by now.
                    let gone = gone.filter(|service| fleet.service(service).is_none());
                    looks.extend(gone.map(|service| (id, service, None)));
                }
            }
        }
        looks
    }

    /// Drops views that nobody reads any more; here, and not where the last reader happens to be.
    fn retire(&mut self, view: Arc<View>) {
        self.retired.push_back(view);
        while self.retired.len() > RETIRED_VIEWS_MAX
            || self.retired.front().is_some_and(|oldest| Arc::strong_count(oldest) == 1)
        {
            self.retired.pop_front();
        }
    }

    /// The edits, if every zone that they are for may have its next serial.
    fn edits_with_serials(&mut self, view: &View) -> Vec<ZoneEdit> {
        let may_advance = |edit: &ZoneEdit| {
            let zone = view.zones().with_apex(edit.zone.apex());
            zone.is_none_or(|zone| self.serials.may_advance(zone))
        };
        if self.edits.iter().all(may_advance) { std::mem::take(&mut self.edits) } else { Vec::new() }
    }

    /// Passes a service on to the external primaries unless it is to others as it was.
    fn tell_primaries(&self, before: &View, name: &DomainName, after: Option<&ServiceView>) {
        if is_same(before.service(name).map(|before| &**before), after) {
            return;
        }
        for (config, feed) in self.outbound.iter().filter(|(config, _)| config.covers(name)) {
            feed.set(name.clone(), after.map(|service| config.addresses(service)));
        }
    }

    /// Whether the service may become visible: without a new serial if others see no difference, or with one.
    fn has_serial_for(&self, view: &View, name: &DomainName, after: Option<&ServiceView>) -> bool {
        let same = is_same(view.service(name).map(|before| &**before), after);
        let zone = view.zones().find_of(name).and_then(|index| view.zones().at(index));
        same || zone.is_none_or(|zone| self.serials.may_advance(zone))
    }

    /// When something is to be published although nothing happened.
    pub fn next_due(&self) -> Option<Timestamp> {
        let reopen = self.reopen.first().map(|(due, _)| *due);
        [reopen, self.look_again].into_iter().flatten().min()
    }

    fn set_gate(&mut self, id: InstanceId, service: &DomainName, gate: Gate) {
        let before = self.gates.insert(id, (service.clone(), gate));
        if before.is_none_or(|(_, before)| before != gate) {
            self.wiring.set_gate(service, gate);
        }
    }

    /// The service is ready: who waits is let in before anything else is decided about it.
    pub fn open_gate(&mut self, id: InstanceId, service: &DomainName) {
        self.set_gate(id, service, Gate::Open);
    }

    /// What is answered from.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// The name servers' zones that the view answers from.
    pub fn zones(&self) -> reveille_core::answer::Zones {
        self.view.load().zones().clone()
    }

    /// The relay closed the gate by itself, in the last look before sleep.
    pub fn gate_closed(&mut self, id: InstanceId) {
        if let Some((_, gate)) = self.gates.get_mut(&id) {
            *gate = Gate::Hold;
        }
    }
}

/// Whether others see no difference.
fn is_same(before: Option<&ServiceView>, after: Option<&ServiceView>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => before.is_same_content(after),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn refused_until(instance: &Instance, now: Timestamp) -> Option<Timestamp> {
    let failure = instance.failure.as_ref()?;
    instance.is_given_up(now).then_some(failure.retry_at)
}

fn seen(instance: &Instance, service: &Service, counter: u32, now: Timestamp) -> ServiceView {
    let policy = &service.spec.policy;
    // With a connection open, sleep is at least the idle time away; without, it may be nearer.
    let sleeps_at = sleeps_at(instance, service, now);
    let holds_until =
        (instance.phase == Phase::Active && instance.open_connections == 0).then_some(sleeps_at);
    let refused = if service.foreign.is_some() {
        Some(Refused { until: None, text: "the service is served by another host".to_owned() })
    } else {
        let text = match instance.phase {
            Phase::Hibernated => {
                "the service's state cannot be had from the object store; it is tried again later"
            }
            Phase::Off
            | Phase::Booting
            | Phase::Restoring
            | Phase::Warming
            | Phase::Active
            | Phase::Draining
            | Phase::Hibernating
            | Phase::Failed => "the service failed to start and is tried again later",
        };
        refused_until(instance, now).map(|until| Refused { until: Some(until), text: text.to_owned() })
    };
    let stable = instance.phase == Phase::Active;
    let wakes = instance.likely_wakes();
    ServiceView {
        name: service.spec.name.clone(),
        address: service.address,
        address6: service.spec.address6,
        phase: instance.phase,
        rung: instance.rung,
        state: instance.state(),
        answer: policy.answer,
        hold_ms_max: u32::try_from(policy.hold_ms_max).unwrap_or(u32::MAX),
        ttl_s: if stable { policy.ttl_awake_s } else { policy.ttl_asleep_s },
        ttl_published_s: policy.ttl_asleep_s,
        holds_until,
        counter,
        refused: refused.map(Box::new),
        version: instance.version.as_ref().and_then(|version| NonZero::new(version.number)),
        hibernated_at: instance.hibernated_at,
        wake: wakes
            .percentile_ms(50)
            .zip(wakes.percentile_ms(95))
            .map(|(ms_p50, ms_p95)| WakeTime { ms_p50, ms_p95 }),
        resources: service.spec.resources,
        instance: instance.id,
    }
}
