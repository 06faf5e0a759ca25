//! Several instances of a replicable service: what they are used by, and what becomes of them.

use reveille_core::decide::Action;
use reveille_core::health::Health;
use reveille_core::model::load::Foreseen;
use reveille_core::model::{DomainName, Event, ForecastMode, InstanceId, Phase, Report, Role, Timestamp};

use super::executor::Order;
use super::forecasts::InUse;
use super::run::Control;

/// How often it is looked what is in use.
const LOAD_EVERY_MS: u64 = 1_000;

impl Control {
    /// Looks what awake services that may have several instances are used by, if it is time.
    pub(super) fn sense_load(&mut self, now: Timestamp) {
        if self.next_load.is_some_and(|next| now < next) {
            return;
        }
        let scaled: Vec<(DomainName, Vec<InstanceId>)> = self
            .fleet
            .scaled()
            .map(|service| (service.spec.name.clone(), service.replicas.clone()))
            .collect();
        self.next_load = (!scaled.is_empty()).then(|| now.plus_ms(LOAD_EVERY_MS));
        for (service, replicas) in scaled {
            for replica in replicas {
                self.count_clients(replica, &service, now);
            }
            let Some(traffic) = self.wiring.traffic(&service) else { continue };
            let in_use = traffic
                .open_connections
                .saturating_add(traffic.udp_sessions)
                .saturating_add(traffic.held_clients);
            if let (Some(forecasts), Some(known)) = (&mut self.forecasts, self.fleet.service(&service))
                && known.spec.policy.forecast != ForecastMode::Off
            {
                let image = known.spec.image.clone();
                forecasts.in_use(&service, InUse { image, clients: in_use, at: now });
            }
            self.note(Event::Used { service, in_use }, now);
        }
        if let Some(forecasts) = &mut self.forecasts {
            forecasts.refresh();
        }
    }

    /// Takes in how many clients a replica has now.
    fn count_clients(&mut self, replica: InstanceId, service: &DomainName, now: Timestamp) {
        let open_connections = self.wiring.in_use(replica, service);
        self.note(Event::Traffic { instance: replica, open_connections, last_packet: None }, now);
    }

    /// Leads nobody new to a replica that is down, until it is up again. The primary takes clients all the same: there
    /// may be no other.
    pub(super) fn lead_by_health(&self, instance: InstanceId, health: Health) {
        let Some(row) = self.fleet.instance(instance) else { return };
        if row.role == Role::Replica && row.phase == Phase::Active && health != Health::Unknown {
            self.wiring.lead_to(instance, &row.service, health == Health::Up);
        }
    }

    /// Takes in what is foreseen to be in use.
    pub(super) fn expected(&mut self, service: DomainName, foreseen: Vec<Foreseen>) {
        self.note(Event::Expected { service, foreseen }, self.clock.now());
    }

    fn note(&mut self, event: Event, now: Timestamp) {
        if let Err(refusal) = self.fleet.apply(event, now) {
            tracing::debug!(%refusal, "use of an instance that is gone");
        }
    }

    /// Has one more instance of the service; the next round of decisions starts it.
    pub(super) fn replicate(&mut self, service: &DomainName, now: Timestamp) {
        let replica = self.store.reserve_instance_id();
        let event = Event::Replicated { service: service.clone(), replica };
        if let Err(refusal) = self.fleet.apply(event, now) {
            tracing::warn!(%service, %refusal, "has no further instance");
        }
    }

    /// Carries out what was decided of a replica: it boots, takes clients or none, and ends.
    pub(super) fn carry_out_of_replica(&mut self, order: Order, action: &Action) {
        let service = &order.spec.name;
        match action {
            Action::Boot => {
                let ack = self.write_now();
                self.executor.start(order, None, ack);
            }
            Action::Drain { .. } => {
                self.wiring.lead_to(order.instance, service, false);
                // From here on they only become fewer.
                self.count_clients(order.instance, service, self.clock.now());
            }
            Action::Undrain => {
                let is_down = self.health_of(order.instance).is_some_and(|own| own.health == Health::Down);
                self.wiring.lead_to(order.instance, service, !is_down);
            }
            Action::GiveUpStart { cause } => {
                tracing::warn!(%service, instance = %order.instance, %cause, "one more instance does not start");
                self.lost_health(order.instance, Phase::Warming);
            }
            Action::Kill { remains } => {
                let ack = self.write_now();
                self.executor.kill(order, *remains, ack);
            }
            // It has no version, and nothing is decided of one.
            Action::Restore { .. }
            | Action::Arm { .. }
            | Action::Pause
            | Action::Disarm
            | Action::Fetch
            | Action::Evict
            | Action::RollBack { .. }
            | Action::Publish { .. }
            | Action::Checkpoint { .. }
            | Action::Capture
            | Action::AbandonCapture
            | Action::Replicate { .. }
            | Action::Wait { .. } => {}
        }
    }

    /// What a replica's report means for clients; `was` is the phase before it.
    pub(super) fn replica_reported(
        &mut self,
        replica: InstanceId,
        service: &DomainName,
        was: Phase,
        report: &Report,
    ) {
        match report {
            Report::Ready => {
                self.wiring.lead_to(replica, service, true);
                tracing::info!(%service, instance = %replica, "one more instance takes clients");
            }
            Report::Lost { cause } => {
                tracing::warn!(%service, instance = %replica, %cause, "lost");
                self.wiring.cut(replica, service);
                self.lost_health(replica, was);
            }
            Report::Fenced { .. } => {
                tracing::info!(%service, instance = %replica, "one instance less");
                self.forget_gone();
            }
            Report::Running
            | Report::GateClosed
            | Report::GateBusy { .. }
            | Report::Captured { .. }
            | Report::CaptureAbandoned
            | Report::CaptureFailed { .. }
            | Report::Armed
            | Report::Paused
            | Report::Fetched { .. }
            | Report::Evicted
            | Report::RolledBack { .. }
            | Report::RollBackFailed { .. }
            | Report::RestFailed { .. }
            | Report::WarmedUp { .. }
            | Report::Disarmed => {}
        }
    }
}
