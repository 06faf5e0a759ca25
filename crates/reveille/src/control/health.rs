//! The control loop's side of health: verdicts are taken in, told and recorded. All that follows from them here is that a
//! replica that is down takes no new clients.

use std::collections::BTreeMap;

use reveille_api::Event as News;
use reveille_api::types::{HealthChange, HealthReport, INSTANCES_SHOWN_MAX, InstanceHealth};
use reveille_core::health::{Health, HealthReason, Judged};
use reveille_core::model::{Applied, DomainName, Event, Instance, InstanceId, Phase};
use reveille_store::{Change, StoredHealth};

use super::run::Control;

/// What was told last of instances that are not up. Of all others the last thing was good, or nothing.
pub type Ailing = BTreeMap<InstanceId, Health>;

impl Control {
    /// Takes in a verdict of the probes.
    pub(super) fn judged(&mut self, instance: InstanceId, start: u64, judged: Judged) {
        let (health, reason) = (judged.health, judged.reason.clone());
        match self.fleet.apply(Event::Judged { instance, start, judged }, self.clock.now()) {
            Ok(Applied::Changed) => {
                self.lead_by_health(instance, health);
                self.tell_health(instance, health, &reason);
            }
            Ok(Applied::Unchanged | Applied::Stale) => {}
            Err(refusal) => tracing::debug!(%instance, %refusal, "a verdict that does not fit any more"),
        }
    }

    /// The instance is lost, or could not be started: that needs no probes.
    pub(super) fn lost_health(&mut self, instance: InstanceId, was: Phase) {
        let Some(Judged { health, reason, .. }) = self.health_of(instance) else { return };
        if health == Health::Down {
            if !was.is_starting() {
                self.executor.tools().vitals.lost(instance, self.clock.now());
            }
            self.tell_health(instance, health, &reason);
        }
    }

    /// Who sleeps has no health, and costs nothing.
    pub(super) fn forget_health_of_sleeper(&self, instance: InstanceId) {
        let phase = self.fleet.instance(instance).map(|row| row.phase);
        if matches!(phase, Some(Phase::Off | Phase::Hibernated)) {
            self.executor.tools().vitals.forget(instance);
        }
    }

    /// A service is probed in another way from now on.
    pub(super) fn respecify_health(&self, service: &DomainName) {
        let Some(known) = self.fleet.service(service) else { return };
        let all = std::iter::once(&known.primary).chain(&known.replicas);
        for row in all.filter_map(|id| self.fleet.instance(*id)) {
            if !matches!(row.phase, Phase::Off | Phase::Hibernated | Phase::Failed) {
                self.executor.tools().vitals.respecified(row.id, &known.spec, self.clock.now());
            }
        }
    }

    /// How an instance fares that is there.
    pub(super) fn health_of(&self, instance: InstanceId) -> Option<Judged> {
        let row = self.fleet.instance(instance)?;
        Some(row.health(&self.fleet.service(&row.service)?.spec))
    }

    /// Tells and records a verdict that is another one than was told last.
    fn tell_health(&mut self, instance: InstanceId, health: Health, reason: &HealthReason) {
        let told = self.ailing.get(&instance).copied().unwrap_or(Health::Up);
        let Some(service) = self.fleet.instance(instance).map(|row| row.service.clone()) else { return };
        if told == health {
            return;
        }
        match health {
            Health::Up => {
                self.ailing.remove(&instance);
                tracing::info!(%service, %instance, %reason, "up");
            }
            Health::Down | Health::Unknown => {
                self.ailing.insert(instance, health);
                tracing::warn!(%service, %instance, %reason, "{health}");
            }
        }
        let at = self.clock.now();
        let change = Box::new(HealthChange::of(at, &service, instance, health, reason));
        let _ = self.news.send(News::Health { change });
        let stored = StoredHealth { at, service, instance, health, reason: reason.clone() };
        drop(self.store.write(vec![Change::AddHealth(Box::new(stored))]));
    }

    /// How the instances that run, or were lost, fare.
    pub(super) fn health_report(&self) -> HealthReport {
        let vitals = &self.executor.tools().vitals;
        let mut report = HealthReport { probes: vitals.counts(), ..HealthReport::default() };
        report.verdicts.extend(Health::ALL.map(|health| (health.word().to_owned(), 0)));
        let runs = |row: &Instance| matches!(row.phase, Phase::Active | Phase::Draining | Phase::Failed);
        for row in self.fleet.instances().filter(|row| runs(row)) {
            let Some(Judged { health, .. }) = self.health_of(row.id) else { continue };
            *report.verdicts.entry(health.word().to_owned()).or_default() += 1;
            if report.instances.len() < INSTANCES_SHOWN_MAX {
                let metrics = vitals.metrics(row.id);
                let (service, instance) = (row.service.clone(), row.id);
                report.instances.push(InstanceHealth { service, instance, health, metrics });
            }
        }
        report
    }
}
