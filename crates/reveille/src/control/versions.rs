//! Versions on their way to the object store and back.
//!
//! A host writes versions of a service, and restores them, only while it owns the service in the object store: the epoch
//! is read before the first of either, and a put is refused by the depot when another host has taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use reveille_core::model::{Cause, DomainName, Event, Fleet, SnapshotVersion, Timestamp};
use reveille_depot::catalogue::VersionEntry;
use reveille_depot::fetch::FetchOrder;
use reveille_depot::format::manifest::{Description, Needs};
use reveille_depot::names::{ServiceName, VersionId};
use reveille_depot::owner::{ClaimError, Owner};
use reveille_depot::source::{FileSource, NewPart};
use reveille_depot::{Depot, Watch};
use reveille_vm::driver::VersionFiles;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};

use super::Message;
use super::shelf::Shelf;
use crate::config;

/// The object store is told so many times that a service is served here, within the time after which another host may
/// take it over.
const RENEWALS: u32 = 4;
/// Services that are asked about at a time.
const CLAIMS_MAX: usize = 16;
/// Longest that a start waits for the object store.
const CLAIMS_MS_MAX: u64 = 15_000;

/// Without a word from its owner for this long, a service may be taken over, unless the config says otherwise.
pub const SILENT_MS_MAX: u64 = 60_000;

/// The depot as this host uses it.
pub struct Versions {
    depot: Arc<dyn Shelf>,
    /// How this host is known in the depot.
    host: String,
    /// Without a word from its owner for this long, a service may be taken over.
    silent_ms_max: u64,
    /// The epochs in which services are owned.
    epochs: Mutex<BTreeMap<DomainName, u64>>,
    /// Services that were found to be another host's.
    foreign: Mutex<BTreeSet<DomainName>>,
}

/// Whose a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// This host's.
    Ours {
        /// The newest version in the store, if any.
        newest: Option<SnapshotVersion>,
    },
    /// Another host's.
    Foreign(String),
}

impl Versions {
    /// For the host of that name.
    pub fn new(depot: Arc<dyn Shelf>, host: String) -> Self {
        Self {
            depot,
            host,
            silent_ms_max: SILENT_MS_MAX,
            epochs: Mutex::default(),
            foreign: Mutex::default(),
        }
    }

    /// The same, with another time after which a silent host loses its services.
    #[must_use]
    pub fn with_silence(self, ms_max: u64) -> Self {
        Self { silent_ms_max: ms_max, ..self }
    }

    /// Makes sure that the service is this host's: it has no owner, or its owner has been silent for too long.
    ///
    /// # Errors
    /// The store does not answer, or has something odd.
    pub async fn own(&self, service: &DomainName) -> Result<Ownership, Cause> {
        let owned = self.own_now(service).await;
        let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        match &owned {
            Ok(Ownership::Foreign(_)) => drop(foreign.insert(service.clone())),
            Ok(Ownership::Ours { .. }) => drop(foreign.remove(service)),
            Err(_) => {}
        }
        owned
    }

    async fn own_now(&self, service: &DomainName) -> Result<Ownership, Cause> {
        let name = service_name(service)?;
        let epoch = match self.depot.owner(&name).await.map_err(failed)? {
            Some(owner) if owner.host == self.host => owner.epoch,
            Some(owner) if !self.is_silent(&owner).await? => return Ok(Ownership::Foreign(owner.host)),
            taken => match self.depot.claim(&name, &self.host, taken.map(|owner| owner.epoch)).await {
                Ok(epoch) => epoch,
                Err(ClaimError::Owned { owner, .. }) if owner.host != self.host => {
                    return Ok(Ownership::Foreign(owner.host));
                }
                Err(error) => return Err(failed(error)),
            },
        };
        self.epochs().insert(service.clone(), epoch);
        let entries = self.depot.list(&name).await.map_err(failed)?;
        // What a host has written that had lost the service is older than what its successor wrote. One that cannot be
        // read may be the newest.
        let order = |entry: &VersionEntry| {
            let epoch = entry.manifest.as_ref().map_or(u64::MAX, |manifest| manifest.about.epoch);
            (epoch, entry.id.number)
        };
        let Some(entry) = entries.into_iter().max_by_key(order) else {
            return Ok(Ownership::Ours { newest: None });
        };
        let (number, manifest) = (entry.id.number, entry.manifest.map_err(failed)?);
        let newest = SnapshotVersion {
            number,
            at: Timestamp::from_ms(manifest.about.taken_at_ms),
            stored_bytes: manifest.own_bytes + manifest.shared_bytes,
            paused_us: manifest.about.paused_us,
            image: manifest.about.image,
        };
        Ok(Ownership::Ours { newest: Some(newest) })
    }

    async fn is_silent(&self, owner: &Owner) -> Result<bool, Cause> {
        let now_ms = self.depot.store_now_ms().await.map_err(failed)?;
        Ok(owner.silent_ms(now_ms) > self.silent_ms_max)
    }

    /// Says of every service that this host owns that it is still there; gives those that it owns no longer.
    pub async fn renew(&self) -> Vec<(DomainName, String)> {
        let owned: Vec<(DomainName, u64)> =
            self.epochs().iter().map(|(service, epoch)| (service.clone(), *epoch)).collect();
        let mut lost = Vec::new();
        for (service, epoch) in owned {
            let Ok(name) = service_name(&service) else { continue };
            match self.depot.renew(&name, &self.host, epoch).await {
                Ok(()) => {}
                Err(ClaimError::Owned { owner, .. }) => {
                    self.epochs().remove(&service);
                    self.foreign.lock().unwrap_or_else(PoisonError::into_inner).insert(service.clone());
                    lost.push((service, owner.host));
                }
                Err(error) => {
                    tracing::warn!(%service, %error, "the object store was not told that it is served here")
                }
            }
        }
        lost
    }

    /// Asks again about the services that are another host's; gives those that have become this one's, with the newest
    /// version of each.
    pub async fn inherit(&self) -> Vec<(DomainName, Option<SnapshotVersion>)> {
        let foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut inherited = Vec::new();
        for service in foreign {
            match self.own(&service).await {
                Ok(Ownership::Ours { newest }) => inherited.push((service, newest)),
                Ok(Ownership::Foreign(_)) => {}
                Err(cause) => tracing::debug!(%service, %cause, "it is not known whose it is"),
            }
        }
        inherited
    }

    /// Puts a version; what it has in common with the one before, or with that of `sibling`, is not stored again.
    ///
    /// # Errors
    /// Why it is not in the store.
    pub async fn publish(
        &self,
        service: &DomainName,
        files: VersionFiles,
        before: Option<u64>,
    ) -> Result<SnapshotVersion, Cause> {
        let name = service_name(service)?;
        let epoch = self.epochs().get(service).copied();
        let epoch = match epoch {
            Some(epoch) => epoch,
            None => match self.own(service).await? {
                Ownership::Ours { .. } => self.epochs().get(service).copied().unwrap_or(1),
                Ownership::Foreign(host) => {
                    return Err(Cause::StoreFailed {
                        detail: format!("{service} is served by the host {host}"),
                    });
                }
            },
        };
        let VersionFiles { version, needs, files } = files;
        let about = Description {
            id: VersionId { service: name.clone(), number: version.number },
            epoch,
            parent: before,
            image: version.image.clone(),
            taken_at_ms: version.at.as_ms(),
            paused_us: version.paused_us,
            needs: Needs {
                vmm: "qemu".to_owned(),
                vmm_version: needs.vmm,
                machine: needs.machine,
                cpu: needs.accelerator.clone(),
                // The image names its kernel.
                kernel: version.image.clone(),
                accelerator: needs.accelerator,
                cpus: needs.resources.cpus,
                memory_mib: needs.resources.memory_mib.into(),
            },
            wake_ms: BTreeMap::new(),
            notes: BTreeMap::new(),
        };
        let mut parts = Vec::with_capacity(files.len());
        for (part, file) in files {
            let source = FileSource::of(file).map_err(failed)?;
            parts.push(NewPart::new(&part, source));
        }
        let compare_with = before.map(|number| VersionId { service: name, number });
        let summary = self
            .depot
            .put_version(&about, parts, compare_with.as_ref(), &Watch::default())
            .await
            .map_err(failed)?;
        tracing::info!(
            %service,
            version = version.number,
            stored_kib = summary.own_bytes >> 10,
            shared_kib = summary.shared_bytes >> 10,
            "in the object store"
        );
        Ok(version)
    }

    /// Fetches a version to the directory `to`.
    ///
    /// # Errors
    /// Why it is not there.
    pub async fn fetch(&self, service: &DomainName, number: u64, to: &Path) -> Result<(), Cause> {
        let id = VersionId { service: service_name(service)?, number };
        let watch = Watch::default();
        let fetched = self.depot.fetch(&id, to, FetchOrder::WorkingSetFirst, &watch);
        fetched.await.map(|_| ()).map_err(failed)
    }

    fn epochs(&self) -> std::sync::MutexGuard<'_, BTreeMap<DomainName, u64>> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the object store, if one is configured, and asks it whose each service is.
///
/// # Errors
/// The URL or its credentials are no good.
pub async fn take_up(
    config: &config::Depot,
    fleet: &mut Fleet,
    now: Timestamp,
) -> anyhow::Result<Option<Arc<Versions>>> {
    let Some(settings) = config.opened() else { return Ok(None) };
    let depot = Depot::open(&settings)?;
    let host = config.host_name();
    tracing::info!(url = config.url, host, "object store");
    let versions = Versions::new(Arc::new(depot), host).with_silence(config.takeover_s * 1_000);
    claim(fleet, &versions, now).await;
    Ok(Some(Arc::new(versions)))
}

/// Asks the object store of every service whose it is, and what is there of it. A store that does not answer does not
/// keep the others from being served: what was not asked now is asked before the first version is sent.
pub async fn claim(fleet: &mut Fleet, versions: &Versions, now: Timestamp) {
    fleet.limits.has_depot = true;
    let names: Vec<DomainName> = fleet.services().map(|service| service.spec.name.clone()).collect();
    let mut owned = stream::iter(names)
        .map(|service| async move {
            let asked = timeout(Duration::from_millis(CLAIMS_MS_MAX), versions.own(&service)).await;
            let late = |_| Err(failed(format!("no answer within {} s", CLAIMS_MS_MAX / 1_000)));
            let asked = asked.unwrap_or_else(late);
            (service, asked)
        })
        .buffer_unordered(CLAIMS_MAX);
    while let Some((service, asked)) = owned.next().await {
        let (foreign, newest) = match asked {
            Ok(Ownership::Ours { newest }) => (None, newest),
            Ok(Ownership::Foreign(host)) => {
                tracing::warn!(%service, host, "is served by another host; it does not run here");
                (Some(host), None)
            }
            Err(cause) => {
                tracing::warn!(%service, %cause, "it is not known whether another host has taken it over");
                continue;
            }
        };
        let event = Event::Owned { service: service.clone(), foreign, newest };
        if let Err(error) = fleet.apply(event, now) {
            tracing::error!(%service, %error, "cannot be taken up");
        }
    }
}

/// Says again and again that the services of this host are served here, and tells the control loop of those that another
/// host has taken over, or has left.
pub async fn keep(versions: Arc<Versions>, inbox: mpsc::Sender<Message>) {
    let mut look = tokio::time::interval(Duration::from_millis(versions.silent_ms_max) / RENEWALS);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        for (service, host) in versions.renew().await {
            if inbox.send(Message::TakenOver { service, host }).await.is_err() {
                return;
            }
        }
        for (service, newest) in versions.inherit().await {
            if inbox.send(Message::Inherited { service, newest }).await.is_err() {
                return;
            }
        }
    }
}

fn service_name(service: &DomainName) -> Result<ServiceName, Cause> {
    // A wildcard's star is no letter of a path.
    service.to_string().trim_end_matches('.').replace('*', "_").parse().map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> Cause {
    Cause::StoreFailed { detail: error.to_string() }
}
