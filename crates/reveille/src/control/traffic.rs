//! What clients do with awake services: what the relay and the query room have counted, taken in before anything is
//! decided from it.

use reveille_core::decide::sleeps_at;
use reveille_core::model::{DnsLease, DomainName, Event, Fleet, InstanceId, Phase, Report, Role, Timestamp};

use super::executor::Order;
use super::run::Control;
use crate::clock::monotonic;

impl Control {
    /// A time to look has come: asks the relay what it has counted before anything is decided from it.
    pub(super) fn look_at_traffic(&mut self) {
        let overdue = self.wakes.overdue(self.clock.now());
        self.keep_wakes(overdue);
        let awake: Vec<(InstanceId, DomainName)> = self
            .fleet
            .instances()
            .filter(|instance| instance.phase == Phase::Active && instance.role == Role::Primary)
            .map(|instance| (instance.id, instance.service.clone()))
            .collect();
        for (id, service) in awake {
            self.note_answers(id, &service);
            self.note_traffic(id, &service);
        }
    }

    /// Takes in answers that keep instances awake which would be put to sleep now. What the relay has counted needs
    /// no look here: it closes a gate only where it finds no traffic itself.
    pub(super) fn look_at_answers(&mut self, now: Timestamp) {
        for (id, service) in idle_but_for_answers(&self.fleet, now) {
            self.note_answers(id, &service);
        }
    }

    /// Whether questions were answered since the last look; when exactly is not known, so as late as can be.
    fn note_answers(&mut self, id: InstanceId, service: &DomainName) {
        let Some(policy) = self.fleet.service(service).map(|service| service.spec.policy) else { return };
        if policy.dns_lease != DnsLease::Always || !self.publisher.was_asked_for(id) {
            return;
        }
        let now = self.clock.now();
        let until = now.plus_ms(u64::from(policy.ttl_awake_s) * 1_000);
        if let Err(error) = self.fleet.apply(Event::Answered { instance: id, until }, now) {
            tracing::debug!(instance = %id, %error, "answers for an instance that is gone");
        }
    }

    pub(super) fn note_traffic(&mut self, instance: InstanceId, service: &DomainName) {
        let Some(traffic) = self.wiring.traffic(service) else { return };
        let event = Event::Traffic {
            instance,
            open_connections: traffic.open_connections,
            last_packet: traffic.last_packet,
        };
        if let Err(error) = self.fleet.apply(event, self.clock.now()) {
            tracing::debug!(%instance, %error, "traffic of an instance that is gone");
        }
    }

    /// The last look before sleep: the relay closes the gate in the same instant in which it finds no traffic.
    pub(super) fn drain(&mut self, order: &Order, idle_ms: u64, force: bool) {
        let report = match self.wiring.close_if_idle(&order.spec.name, idle_ms, force) {
            Ok(()) => {
                self.publisher.gate_closed(order.instance);
                Report::GateClosed
            }
            Err(busy) => {
                Report::GateBusy { open_connections: busy.open_connections, last_packet: busy.last_packet }
            }
        };
        self.reported(order.instance, order.start, report, monotonic());
    }
}

/// Awake instances whose time to sleep has come, as far as is known, and which answers of DNS would keep awake.
fn idle_but_for_answers(fleet: &Fleet, now: Timestamp) -> Vec<(InstanceId, DomainName)> {
    let awake = fleet.instances().filter(|instance| instance.phase == Phase::Active);
    let due = awake.filter(|instance| {
        let service = fleet.service(&instance.service);
        let leased = service.filter(|service| service.spec.policy.dns_lease == DnsLease::Always);
        leased.is_some_and(|service| sleeps_at(instance, service, now) <= now)
    });
    due.map(|instance| (instance.id, instance.service.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use reveille_core::model::{HostLimits, Instance, Policy, Service, ServiceSpec};

    use super::*;

    /// A message of somebody else comes when `a` is due, before the timer does.
    #[test]
    fn who_is_due_is_asked_for_answers_before_it_sleeps_and_nobody_else_is() {
        let (start, mut fleet) = (Timestamp::from_ms(1_000_000), Fleet::new(HostLimits::default()));
        for (number, name, dns_lease, last_activity) in [
            (1, "a.vm.test", DnsLease::Always, start),
            (2, "busy.vm.test", DnsLease::Always, start.plus_ms(50_000)),
            (3, "relayed.vm.test", DnsLease::Uncovered, start),
        ] {
            let text = format!(r#"{{"name":"{name}","image":"demo","ports":["tcp/80"]}}"#);
            let mut spec: ServiceSpec = serde_json::from_str(&text).unwrap();
            spec.policy = Policy { dns_lease, idle_ms: 10_000, min_on_ms: 0, grace_ms: 0, ..spec.policy };
            let id = InstanceId(number);
            let mut row = Instance::new(id, spec.name.clone(), start);
            (row.phase, row.last_activity) = (Phase::Active, last_activity);
            let address = Ipv4Addr::new(127, 64, 0, u8::try_from(number).unwrap());
            let service = Service::new(spec, address, start, id);
            let event = Event::Added { service: Box::new(service), instance: Box::new(row) };
            fleet.apply(event, start).unwrap();
        }
        let due = |fleet: &Fleet, after_ms: u64| -> Vec<String> {
            let due = idle_but_for_answers(fleet, start.plus_ms(after_ms));
            due.into_iter().map(|(_, name)| name.to_string()).collect()
        };
        assert!(due(&fleet, 9_999).is_empty());
        assert_eq!(due(&fleet, 10_000), ["a.vm.test"]);
        let answered = Event::Answered { instance: InstanceId(1), until: start.plus_ms(40_000) };
        fleet.apply(answered, start.plus_ms(10_000)).unwrap();
        assert!(due(&fleet, 39_999).is_empty());
        assert_eq!(due(&fleet, 60_000), ["a.vm.test", "busy.vm.test"]);
    }
}
