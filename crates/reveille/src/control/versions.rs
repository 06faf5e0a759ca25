//! Versions on their way to the object store and back.
//!
//! A host writes versions of a service, and restores them, only while it owns the service in the object store: the epoch
//! is read before the first of either, and a put is refused by the depot when another host has taken over.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use reveille_core::model::{Cause, DomainName, Event, Fleet, SnapshotVersion, Timestamp};
use reveille_depot::catalogue::VersionEntry;
use reveille_depot::collect::CollectPlan;
use reveille_depot::fetch::FetchOrder;
use reveille_depot::format::manifest::{Description, Manifest, Needs};
use reveille_depot::names::{ServiceName, VersionId};
use reveille_depot::owner::{ClaimError, Owner};
use reveille_depot::put::PutError;
use reveille_depot::retention::{Candidate, Verdict, judge};
use reveille_depot::source::{FileSource, NewPart};
use reveille_depot::{Depot, Watch};
use reveille_vm::driver::VersionFiles;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};

use super::Message;
use super::keeping::{LOOKS_MAX, Relied};
use crate::config::{self, Keeping};

/// How often the object store is told that a service is served here: several times within [`SILENT_MS_MAX`].
const RENEW_EVERY: Duration = Duration::from_secs(15);
/// Services that are asked about at a time.
const CLAIMS_MAX: usize = 16;
/// Longest that a start waits for the object store.
const CLAIMS_MS_MAX: u64 = 15_000;

/// Without a word from its owner for this long, a service may be taken over by a host that has none of it.
pub const SILENT_MS_MAX: u64 = 60_000;

/// The depot as this host uses it.
pub struct Versions {
    depot: Arc<Depot>,
    /// How this host is known in the depot.
    host: String,
    /// The epochs in which services are owned.
    epochs: Mutex<BTreeMap<DomainName, u64>>,
    /// Versions that are being fetched or gone back to, and by how many.
    held: Mutex<BTreeMap<(DomainName, u64), u32>>,
    keeping: Keeping,
    /// Told of every version that was sent.
    stored: mpsc::Sender<DomainName>,
}

/// A version of the store, and why it stays or goes.
#[derive(Debug)]
pub struct Judged {
    /// The version.
    pub entry: VersionEntry,
    /// The verdict; none on one whose manifest cannot be read.
    pub verdict: Result<Verdict, ()>,
}

/// As long as this is there, the version is not deleted by this host.
struct Hold<'a>(&'a Versions, (DomainName, u64));

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.1) {
            *count -= 1;
        }
        held.retain(|_, count| *count > 0);
    }
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
    /// For the host of that name; and who is told of every version that was sent.
    pub fn new(depot: Arc<Depot>, host: String, keeping: Keeping) -> (Self, mpsc::Receiver<DomainName>) {
        let (stored, told) = mpsc::channel(LOOKS_MAX);
        let (epochs, held) = (Mutex::default(), Mutex::default());
        (Self { depot, host, epochs, held, keeping, stored }, told)
    }

    /// The depot.
    pub fn depot(&self) -> &Depot {
        &self.depot
    }

    /// What is kept.
    pub fn keeping(&self) -> Keeping {
        self.keeping
    }

    /// The services that this host owns.
    pub fn owned(&self) -> Vec<DomainName> {
        self.epochs().keys().cloned().collect()
    }

    /// The same for one host at all times, and another one for another host.
    pub fn offset_ms(&self) -> u64 {
        let fold = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.host.bytes().fold(0xcbf2_9ce4_8422_2325, fold)
    }

    fn hold(&self, service: &DomainName, number: u64) -> Hold<'_> {
        let which = (service.clone(), number);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held.entry(which.clone()).or_default() += 1;
        drop(held);
        Hold(self, which)
    }

    /// Whether the version is being fetched or gone back to.
    pub fn is_held(&self, service: &DomainName, number: u64) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.contains_key(&(service.clone(), number))
    }

    /// The versions in the store, newest first, each with its verdict.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn judged(
        &self,
        service: &DomainName,
        relied: &Relied,
        now: Timestamp,
    ) -> Result<Vec<Judged>, Cause> {
        let entries = self.depot.list(&service_name(service)?).await.map_err(failed)?;
        let candidate = |entry: &VersionEntry| {
            let about = &entry.manifest.as_ref().ok()?.about;
            let number = entry.id.number;
            Some(Candidate {
                number,
                epoch: about.epoch,
                // What was gone back to is as old as its manifest.
                taken_at_ms: about.taken_at_ms.max(entry.published_ms),
                pinned: entry.pinned,
                held: relied.needs(number) || self.is_held(service, number),
            })
        };
        let candidates: Vec<Candidate> = entries.iter().filter_map(candidate).collect();
        let verdicts: BTreeMap<u64, Verdict> =
            judge(&candidates, self.keeping.retention, now.as_ms()).into_iter().collect();
        let mut judged: Vec<Judged> = entries
            .into_iter()
            .map(|entry| Judged { verdict: verdicts.get(&entry.id.number).copied().ok_or(()), entry })
            .collect();
        judged.sort_by_key(|one| {
            let epoch = one.entry.manifest.as_ref().map_or(0, |manifest| manifest.about.epoch);
            std::cmp::Reverse((epoch, one.entry.id.number))
        });
        Ok(judged)
    }

    /// One version in the store, if it is there.
    ///
    /// # Errors
    /// The store does not answer, or the manifest is damaged.
    pub async fn manifest(&self, service: &DomainName, number: u64) -> Result<Option<Manifest>, Cause> {
        let id = VersionId { service: service_name(service)?, number };
        match self.depot.show(&id).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Where a version is in the store.
    ///
    /// # Errors
    /// The service cannot be in it.
    pub fn id(&self, service: &DomainName, number: u64) -> Result<VersionId, Cause> {
        Ok(VersionId { service: service_name(service)?, number })
    }

    /// How much nobody needs any more, in objects and bytes.
    ///
    /// # Errors
    /// The store does not answer, or a manifest cannot be read.
    pub async fn plan_collection(&self) -> Result<(u64, u64), Cause> {
        Ok(extent(&self.depot.plan_collection().await.map_err(failed)?))
    }

    /// Deletes what nobody needs any more; gives how much that was, in objects and bytes.
    ///
    /// # Errors
    /// The store does not answer, or a manifest cannot be read.
    pub async fn collect(&self) -> Result<(u64, u64), Cause> {
        Ok(extent(&self.depot.collect(&Watch::default()).await.map_err(failed)?))
    }

    /// Makes version `from` the newest one, as `number`. Asked again it finds what it did.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn roll_back(
        &self,
        service: &DomainName,
        from: u64,
        number: u64,
    ) -> Result<SnapshotVersion, Cause> {
        let _hold = self.hold(service, from);
        let name = service_name(service)?;
        let epoch = self.epoch(service).await?;
        let old = VersionId { service: name.clone(), number: from };
        let id = VersionId { service: name, number };
        if let Err(error) = self.depot.republish(&old, number, epoch, &Watch::default()).await {
            // It may be there although the store did not say so, and then another host would go by it.
            let is_other = matches!(error, PutError::Taken { .. });
            if !is_other && let Err(left) = self.depot.take_back(&id).await {
                tracing::warn!(%service, version = number, error = %left, "a roll-back that failed may be in the object store");
            }
            return Err(failed(error));
        }
        let manifest = self.depot.show(&id).await.map_err(failed)?;
        tracing::info!(%service, version = number, from, "an older version is the newest one again");
        Ok(snapshot_of(manifest))
    }

    /// The epoch in which this host owns the service.
    async fn epoch(&self, service: &DomainName) -> Result<u64, Cause> {
        let known = self.epochs().get(service).copied();
        if let Some(epoch) = known {
            return Ok(epoch);
        }
        match self.own(service).await? {
            Ownership::Ours { .. } => Ok(self.epochs().get(service).copied().unwrap_or(1)),
            Ownership::Foreign(host) => {
                Err(Cause::StoreFailed { detail: format!("{service} is served by the host {host}") })
            }
        }
    }

    /// Makes sure that the service is this host's: it has no owner, or its owner has been silent for too long.
    ///
    /// # Errors
    /// The store does not answer, or has something odd.
    pub async fn own(&self, service: &DomainName) -> Result<Ownership, Cause> {
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
        let Some(number) = entries.iter().map(|entry| entry.id.number).max() else {
            return Ok(Ownership::Ours { newest: None });
        };
        let id = VersionId { service: name, number };
        let manifest = self.depot.show(&id).await.map_err(failed)?;
        Ok(Ownership::Ours { newest: Some(snapshot_of(manifest)) })
    }

    async fn is_silent(&self, owner: &Owner) -> Result<bool, Cause> {
        let now_ms = self.depot.store_now_ms().await.map_err(failed)?;
        Ok(owner.silent_ms(now_ms) > SILENT_MS_MAX)
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
                    lost.push((service, owner.host));
                }
                Err(error) => {
                    tracing::warn!(%service, %error, "the object store was not told that it is served here")
                }
            }
        }
        lost
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
        let epoch = self.epoch(service).await?;
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
        // Should there be no room, it is looked at with all others.
        let _ = self.stored.try_send(service.clone());
        Ok(version)
    }

    /// Fetches a version to the directory `to`.
    ///
    /// # Errors
    /// Why it is not there.
    pub async fn fetch(&self, service: &DomainName, number: u64, to: &Path) -> Result<(), Cause> {
        let _hold = self.hold(service, number);
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
) -> anyhow::Result<Option<(Arc<Versions>, mpsc::Receiver<DomainName>)>> {
    let Some(settings) = config.opened() else { return Ok(None) };
    let depot = Depot::open(&settings)?;
    let host = config.host_name();
    tracing::info!(url = config.url, host, "object store");
    let (versions, stored) = Versions::new(Arc::new(depot), host, config.keeping());
    fleet.limits.has_depot = true;
    claim(fleet, &versions, now).await;
    Ok(Some((Arc::new(versions), stored)))
}

/// Asks the object store of every service whose it is, and what is there of it. A store that does not answer does not
/// keep the others from being served: what was not asked now is asked before the first version is sent.
async fn claim(fleet: &mut Fleet, versions: &Versions, now: Timestamp) {
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
/// host has taken over.
pub async fn keep(versions: Arc<Versions>, inbox: mpsc::Sender<Message>) {
    let mut look = tokio::time::interval(RENEW_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        for (service, host) in versions.renew().await {
            if inbox.send(Message::TakenOver { service, host }).await.is_err() {
                return;
            }
        }
    }
}

fn snapshot_of(manifest: Manifest) -> SnapshotVersion {
    SnapshotVersion {
        number: manifest.about.id.number,
        at: Timestamp::from_ms(manifest.about.taken_at_ms),
        stored_bytes: manifest.own_bytes + manifest.shared_bytes,
        paused_us: manifest.about.paused_us,
        image: manifest.about.image,
    }
}

fn extent(plan: &CollectPlan) -> (u64, u64) {
    let all = || plan.chunks.iter().chain(&plan.others);
    (all().count() as u64, all().map(|object| object.bytes).sum())
}

/// How a service is called in the depot.
///
/// # Errors
/// It cannot be called so there.
pub fn service_name(service: &DomainName) -> Result<ServiceName, Cause> {
    // A wildcard's star is no letter of a path.
    service.to_string().trim_end_matches('.').replace('*', "_").parse().map_err(failed)
}

pub(super) fn failed(error: impl std::fmt::Display) -> Cause {
    Cause::StoreFailed { detail: error.to_string() }
}
