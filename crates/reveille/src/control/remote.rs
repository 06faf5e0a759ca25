//! The daemon as the API holds it: what needs the loop is asked of it, the rest is read past it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reveille_api::types::{
    AnomalyReport, DecisionReport, DemandProfile, DemandProfileSummary, DemandRange, DemandReport,
    DeployReply, DnsReport, HealthChange, HealthReport, HostSummary, ProfileReport, PruneReport, Redeploy,
    ReloadReport, RestoreReply, RiskReport, ServiceDemand, ServiceDetail, ServiceSummary, TakenRequests,
    VerbReply, VerifyReport, VersionDetail, VersionList, Wake, Whose, WhyReport, ZoneKeys, ZoneSummary,
};
use reveille_api::{
    CloneRequest, Connections, ControlError, Depth, Event as News, Pin, RolloverStep, Time, Unstored, Wait,
};
use reveille_core::forecast::profile::Request;
use reveille_core::health::HealthPolicy;
use reveille_core::model::{DomainName, Phase, Policy, ServiceSpec, SleepAsked, VmState};
use reveille_store::{Store, StoredHealth};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::commands::{Command, Counts, Shown, is_so};
use super::images::Images;
use super::stock::Stock;
use super::{Message, demand, risk};
use crate::clock::Clock;
use crate::forecasts::Recorded;
use crate::reload::Reloader;
use crate::room::QueryRoom;

/// Longest time that a request with `wait` is kept open.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(300);

/// What the API holds of the daemon.
pub struct Remote {
    /// The way to the loop.
    pub inbox: mpsc::Sender<Message>,
    /// History is read past the loop.
    pub store: Arc<Store>,
    /// The daemon's time.
    pub clock: Clock,
    /// Announces each published view.
    pub generation: watch::Receiver<u64>,
    /// What happens.
    pub news: broadcast::Sender<News>,
    /// Reads the config again.
    pub reloader: Reloader,
    /// The query room is looked at past the loop.
    pub room: Arc<QueryRoom>,
    /// So is what is recorded of demand, if it is.
    pub recorded: Option<Recorded>,
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

    /// Looks at what is recorded of demand, where waiting is allowed.
    async fn in_recorded<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Recorded) -> T + Send + 'static,
    ) -> Result<T, ControlError> {
        let recorded = self.recorded()?.clone();
        let looked = tokio::task::spawn_blocking(move || look(&recorded)).await;
        looked.map_err(|_| ControlError::Unavailable { detail: "the daemon is stopping".to_owned() })
    }

    fn recorded(&self) -> Result<&Recorded, ControlError> {
        let detail = "nothing is recorded, since the history cannot be used; the daemon's log says why";
        self.recorded.as_ref().ok_or_else(|| ControlError::Unavailable { detail: detail.to_owned() })
    }

    /// The last anomalies of a service, and its risk; nothing where nothing is recorded.
    async fn outlook_of(
        &self,
        shown: &Shown,
        limit: usize,
    ) -> Result<(Vec<AnomalyReport>, Option<RiskReport>), ControlError> {
        let Ok(threshold_sd) = self.recorded().map(|recorded| recorded.threshold.get()) else {
            return Ok((Vec::new(), None));
        };
        let name = shown.detail.summary.name.clone();
        let anomalies = self.in_recorded(move |recorded| risk::anomalies(recorded, &name, limit)).await?;
        let now = self.clock.now();
        let risk = Self::history(risk::of(&self.store, shown, (anomalies.first(), threshold_sd), now))?;
        Ok((anomalies, Some(risk)))
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
        let shown = self.show(name).await?;
        let name = shown.detail.summary.name.clone();
        let queries = self.in_room(move |room| room.queries_of(&name)).await?;
        let (anomalies, risk) = self.outlook_of(&shown, 1).await?;
        Ok(ServiceDetail { queries, last_anomaly: anomalies.into_iter().next(), risk, ..shown.detail })
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
        let shown = self.show(name).await?;
        let name = shown.detail.summary.name.clone();
        let (anomalies, risk) = self.outlook_of(&shown, limit).await?;
        let Shown { detail, wake: open, .. } = shown;
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
        let health = Self::history(self.store.health(&name, None, limit))?;
        let health_changes = health.iter().map(|stored| {
            let StoredHealth { at, service, instance, health, reason } = &stored.entry;
            HealthChange::of(*at, service, *instance, *health, reason)
        });
        let health_changes = health_changes.collect();
        Ok(WhyReport { service: detail.summary, decisions, wakes, health_changes, anomalies, risk })
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

    async fn health(&self) -> Result<HealthReport, ControlError> {
        self.ask(Command::Health).await
    }

    async fn dns(&self) -> Result<DnsReport, ControlError> {
        self.in_room(QueryRoom::report).await
    }

    async fn take_requests(
        &self,
        requests: Vec<Request>,
        refused: u64,
    ) -> Result<TakenRequests, ControlError> {
        self.recorded()?.logs.room(requests.len()).await;
        self.in_recorded(move |recorded| recorded.logs.take(&requests, refused)).await
    }

    async fn demand(&self) -> Result<DemandReport, ControlError> {
        self.in_recorded(demand::report).await
    }

    async fn service_demand(
        &self,
        name: &DomainName,
        asked: DemandRange,
    ) -> Result<ServiceDemand, ControlError> {
        let name = self.show(name).await?.detail.summary.name;
        let (now, room) = (self.clock.now(), Arc::clone(&self.room));
        let look = move |recorded: &Recorded| {
            let correction = room.correction_of(&name);
            demand::of_service(recorded, name, asked, correction, now)
        };
        let found = self.in_recorded(look).await?;
        found.map_err(|error| ControlError::Unavailable { detail: error.to_string() })
    }

    async fn demand_profiles(
        &self,
        whose: Whose,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<DemandProfileSummary>, ControlError> {
        let after = after.map(str::to_owned);
        self.in_recorded(move |recorded| recorded.logs.profiles(whose, after.as_deref(), limit)).await
    }

    async fn demand_profile(&self, whose: Whose, name: &str) -> Result<DemandProfile, ControlError> {
        let asked = name.to_owned();
        let found = self.in_recorded(move |recorded| recorded.logs.profile(whose, &asked)).await?;
        found.ok_or_else(|| ControlError::UnknownDemandProfile { whose, name: name.to_owned() })
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

    fn profiles(&self) -> Vec<ProfileReport> {
        self.reloader.announced().profiles.reports()
    }

    fn default_policy(&self) -> Policy {
        self.reloader.announced().policy
    }

    fn default_health(&self) -> HealthPolicy {
        self.reloader.announced().health.clone()
    }

    fn readiness(&self) -> Result<(), String> {
        // The API opens when everything else is there, and the loop is the first to go.
        if self.inbox.is_closed() { Err("the daemon is stopping".to_owned()) } else { Ok(()) }
    }

    fn events(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
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
