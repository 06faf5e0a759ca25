//! What the fleet's rows mean to the outside: the view that DNS answers from, and the relay's gates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use reveille_core::answer::{Refused, ServiceView, View};
use reveille_core::model::{DomainName, Fleet, Gate, Instance, InstanceId, Phase, Service, Timestamp};
use reveille_net::Relay;
use tokio::sync::watch;

/// Writes views and gates.
pub struct Publisher {
    view: Arc<ArcSwap<View>>,
    generation: watch::Sender<u64>,
    relay: Relay,
    gates: BTreeMap<InstanceId, (DomainName, Gate)>,
    /// When gates that refuse are to be looked at again.
    reopen: BTreeSet<(Timestamp, InstanceId)>,
}

impl Publisher {
    /// A publisher into `view`, announcing each generation.
    pub fn new(view: Arc<ArcSwap<View>>, generation: watch::Sender<u64>, relay: Relay) -> Self {
        Self { view, generation, relay, gates: BTreeMap::new(), reopen: BTreeSet::new() }
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
        if changed.is_empty() {
            return;
        }
        let mut services = Vec::with_capacity(changed.len());
        for id in changed {
            let known =
                fleet.instance(id).and_then(|instance| Some((instance, fleet.service(&instance.service)?)));
            match known {
                Some((instance, service)) => {
                    self.set_gate(id, &instance.service, fleet.gate(id, now));
                    if let Some(refused_until) = refused_until(instance, now) {
                        self.reopen.insert((refused_until, id));
                    }
                    services.push((instance.service.clone(), Some(Arc::new(seen(instance, service, now)))));
                }
                None => {
                    if let Some((service, _)) = self.gates.remove(&id) {
                        services.push((service, None));
                    }
                }
            }
        }
        let before = self.view.load();
        let next = before.generation + 1;
        self.view.store(Arc::new(before.with(next, services)));
        self.generation.send_replace(next);
    }

    /// When something is to be published although nothing happened.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.reopen.first().map(|(due, _)| *due)
    }

    fn set_gate(&mut self, id: InstanceId, service: &DomainName, gate: Gate) {
        let before = self.gates.insert(id, (service.clone(), gate));
        if before.is_none_or(|(_, before)| before != gate) {
            self.relay.set_gate(service, gate);
        }
    }

    /// The service is ready: who waits is let in before anything else is decided about it.
    pub fn open_gate(&mut self, id: InstanceId, service: &DomainName) {
        self.set_gate(id, service, Gate::Open);
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

fn refused_until(instance: &Instance, now: Timestamp) -> Option<Timestamp> {
    let failure = instance.failure.as_ref()?;
    (instance.phase == Phase::Failed && failure.gave_up && failure.retry_at > now).then_some(failure.retry_at)
}

fn seen(instance: &Instance, service: &Service, now: Timestamp) -> ServiceView {
    let policy = &service.spec.policy;
    let refused = refused_until(instance, now).map(|until| {
        let text = "the service failed to start and is tried again later".to_owned();
        Refused { until, text }
    });
    let stable = instance.phase == Phase::Active;
    let wakes = if instance.version.is_some() { &instance.restores } else { &instance.boots };
    ServiceView {
        name: service.spec.name.clone(),
        address: service.address,
        address6: service.spec.address6,
        phase: instance.phase,
        rung: instance.rung,
        state: instance.state(),
        answer: policy.answer,
        hold_ms_max: policy.hold_ms_max,
        ttl_s: if stable { policy.ttl_awake_s } else { policy.ttl_asleep_s },
        holds_until: None,
        counter: 0,
        refused,
        version: instance.version.as_ref().map(|version| version.number),
        hibernated_at: instance.hibernated_at,
        wake_ms_p50: wakes.percentile_ms(50),
        wake_ms_p95: wakes.percentile_ms(95),
        resources: service.spec.resources,
        storage: instance.version.as_ref().map(|version| format!("local:{}.{}", instance.id, version.number)),
    }
}
