//! The config's services at a reload: added, changed and removed as at a start, as far as that is safe under way.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use reveille_api::types::ReloadChange;
use reveille_api::{Event as News, Time};
use reveille_core::model::{DomainName, Event, Instance, Phase, Rung, Service, ServiceSpec};
use reveille_store::{Change, Origin, StoredService};

use super::super::run::Control;
use super::change;
use crate::config::Config;

/// What is to become of the config's services.
pub struct ServicePlan {
    /// Every service that there will be.
    pub names: BTreeSet<DomainName>,
    /// What is told of it.
    pub changes: Vec<ReloadChange>,
    /// Keys whose new values the next start takes up.
    pub next_start: Vec<String>,
    /// What the operator should look at.
    pub warnings: Vec<String>,
    wanted: Vec<ServiceSpec>,
    added: Vec<(Service, Instance)>,
    changed: Vec<(ServiceSpec, StoredService)>,
    removed: Vec<DomainName>,
}

impl ServicePlan {
    /// Services whose rows change.
    pub fn changed(&self) -> Vec<DomainName> {
        self.changed.iter().map(|(spec, _)| spec.name.clone()).collect()
    }

    /// The rows that are durable before anybody sees the services.
    pub fn rows(&self) -> impl Iterator<Item = Change> {
        let added = self.added.iter().flat_map(|(service, instance)| {
            let row = StoredService {
                spec: service.spec.clone(),
                address: service.address,
                created_at: service.created_at,
                origin: Origin::Config,
            };
            [Change::PutService(Box::new(row)), Change::PutInstance(Box::new(instance.clone()))]
        });
        added.chain(self.changed.iter().map(|(_, row)| Change::PutService(Box::new(row.clone()))))
    }
}

impl Control {
    /// Compares the config's services with those that there are.
    ///
    /// # Errors
    /// Services that are on their way out under a name that is wanted again.
    pub(super) fn plan_services(&self, before: &Config, wanted: &Config) -> Result<ServicePlan, Vec<String>> {
        let names = self.fleet.services().map(|service| service.spec.name.clone()).collect();
        let mut plan = ServicePlan {
            names,
            changes: Vec::new(),
            next_start: Vec::new(),
            warnings: Vec::new(),
            wanted: Vec::new(),
            added: Vec::new(),
            changed: Vec::new(),
            removed: Vec::new(),
        };
        let mut faults = Vec::new();
        let declared: BTreeSet<&DomainName> = before.service.iter().map(|spec| &spec.name).collect();
        for spec in &wanted.service {
            let known = self.fleet.service(&spec.name);
            let known = known.and_then(|service| Some((service, self.fleet.instance(service.primary)?)));
            match known {
                None => {
                    plan.names.insert(spec.name.clone());
                    plan.wanted.push(spec.clone());
                }
                Some((_, instance)) if instance.retiring => {
                    let name = &spec.name;
                    faults.push(format!("service \"{name}\" is being removed; reload when it is gone"));
                }
                Some((service, instance)) => {
                    let exchangeable = self.fleet.may_exchange(&spec.name, false).is_ok();
                    let declared = declared.contains(&spec.name);
                    let address6 = self.services.address6(spec, service.address);
                    let spec = ServiceSpec { address6, ..spec.clone() };
                    plan.change((service, instance), &spec, declared, exchangeable);
                }
            }
        }
        let names: BTreeSet<&DomainName> = wanted.service.iter().map(|spec| &spec.name).collect();
        let gone = declared.into_iter().filter(|name| !names.contains(name));
        let is_here = |name: &&DomainName| self.fleet.primary(name).is_some_and(|row| !row.retiring);
        plan.removed = gone.filter(is_here).cloned().collect();
        for name in &plan.removed {
            plan.changes.push(change(&format!("service \"{name}\""), "removed"));
        }
        if faults.is_empty() { Ok(plan) } else { Err(faults) }
    }

    /// Gives added services their addresses, and listens there.
    ///
    /// # Errors
    /// What cannot be had; then nothing is listened on.
    pub(super) async fn bind_added(&mut self, mut plan: ServicePlan) -> Result<ServicePlan, Vec<String>> {
        let (now, mut faults) = (self.clock.now(), Vec::new());
        for mut spec in std::mem::take(&mut plan.wanted) {
            let place = format!("service \"{}\"", spec.name);
            let address = match self.services.give_address(&mut spec) {
                Ok(address) => address,
                Err(error) => {
                    faults.push(format!("{place}: {error}"));
                    continue;
                }
            };
            if let Err(error) = self.wiring.bind(crate::serve::binding(&spec, address)).await {
                self.services.take_back(address);
                faults.push(format!("{place}: {error}"));
                continue;
            }
            if let Err(error) = self.executor.tools().images.resolve(&spec.image).await {
                plan.warnings.push(format!("{place} cannot be woken: {error}"));
            }
            let instance = Instance::new(self.store.reserve_instance_id(), spec.name.clone(), now);
            let service = Service::new(spec, address, now, instance.id);
            plan.changes.push(change(&place, format!("added at {address}")));
            plan.added.push((service, instance));
        }
        if faults.is_empty() {
            return Ok(plan);
        }
        self.undo(plan).await;
        Err(faults)
    }

    /// Nothing of it becomes true.
    pub(super) async fn undo(&mut self, plan: ServicePlan) {
        for (service, _) in plan.added {
            self.wiring.unbind(&service.spec.name).await;
            self.services.take_back(service.address);
        }
    }

    /// Makes it so. The view follows with the next turn.
    pub(super) fn take_services(&mut self, plan: ServicePlan) {
        let now = self.clock.now();
        for (service, instance) in plan.added {
            let name = service.spec.name.clone();
            self.services.own(instance.id, name.clone(), service.address);
            let event = Event::Added { service: Box::new(service), instance: Box::new(instance) };
            self.applied(&name, event);
            self.executor.ask_whose(&name);
            let _ = self.news.send(News::Added { at: Time(now), service: name });
        }
        for (spec, _) in plan.changed {
            let name = spec.name.clone();
            self.applied(&name, Event::Respecified { spec: Box::new(spec) });
            self.respecify_health(&name);
        }
        for service in plan.removed {
            self.applied(&service.clone(), Event::RemoveAsked { service });
        }
    }

    fn applied(&mut self, service: &DomainName, event: Event) {
        // It was planned from this very fleet.
        if let Err(error) = self.fleet.apply(event, self.clock.now()) {
            tracing::error!(%service, %error, "a reload does not fit the service");
        }
    }
}

impl ServicePlan {
    /// `exchangeable`: what it runs can be another thing from now on, and its last version is not lost by that.
    fn change(
        &mut self,
        (service, instance): (&Service, &Instance),
        wanted: &ServiceSpec,
        declared: bool,
        exchangeable: bool,
    ) {
        let place = format!("service \"{}\"", wanted.name);
        let (spec, keys) = changed_spec((service, instance), wanted, exchangeable);
        self.next_start.extend(keys.into_iter().map(|key| format!("{place}.{key}")));
        let differs = spec != service.spec;
        if !differs && declared {
            return;
        }
        self.changes.push(change(&place, if declared { "changed" } else { "taken over from the API" }));
        let row = StoredService {
            spec: wanted.clone(),
            address: service.address,
            created_at: service.created_at,
            origin: Origin::Config,
        };
        self.changed.push((spec, row));
    }
}

/// What of a wanted spec can be taken over now, and the keys of what cannot.
fn changed_spec(
    (service, instance): (&Service, &Instance),
    wanted: &ServiceSpec,
    exchangeable: bool,
) -> (ServiceSpec, Vec<&'static str>) {
    let (mut spec, has, mut keys) = (wanted.clone(), &service.spec, Vec::new());
    macro_rules! keep {
        ($($key:literal: $($field:ident).+),+ $(,)?) => {
            $(if spec.$($field).+ != has.$($field).+ {
                keys.push($key);
                spec.$($field).+.clone_from(&has.$($field).+);
            })+
        };
    }
    // Where clients come in stands until the relay listens anew.
    keep! {
        "kind": kind,
        "ports": ports,
        "address6": address6,
        "policy.held_clients_max": policy.held_clients_max,
        "policy.held_ms_max": policy.held_ms_max,
    }
    if wanted.address.is_some_and(|asked: Ipv4Addr| asked != service.address) {
        keys.push("address");
    }
    spec.address = has.address;
    // What a process was started with holds until its version has been taken: it must not be noted as something else.
    let asleep = match instance.phase {
        Phase::Off | Phase::Failed => true,
        Phase::Hibernated => instance.rung != Rung::Armed,
        Phase::Booting
        | Phase::Restoring
        | Phase::Warming
        | Phase::Active
        | Phase::Draining
        | Phase::Hibernating => false,
    };
    if !asleep || !exchangeable || instance.in_flight || instance.unfenced {
        keep! {
            "image": image,
            "resources": resources,
            "egress": egress,
            "egress_allow": egress_allow,
            "egress_deny": egress_deny,
        }
    }
    (spec, keys)
}
