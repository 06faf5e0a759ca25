//! Versions on their way to the object store and back.
//!
//! A host writes versions of a service, and restores them, only while it owns the service in the object store: the epoch
//! is read before the first of either, and a put is refused by the depot when another host has taken over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use reveille_core::model::{Cause, DomainName, Event, Fleet, Ownership, SnapshotVersion, Timestamp};
use reveille_core::mutation::is_on;
use reveille_depot::fetch::{FetchError, FetchOrder};
use reveille_depot::format::manifest::{Description, Manifest, Needs};
use reveille_depot::names::{ServiceName, VersionId};
use reveille_depot::objects::ObjectError;
use reveille_depot::owner::{ClaimError, Owner};
use reveille_depot::put::PutError;
use reveille_depot::source::{FileSource, NewPart};
use reveille_depot::{Depot, Watch};
use reveille_vm::driver::VersionFiles;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, timeout};

use super::Message;
use super::keeping::LOOKS_MAX;
use super::shelf::Shelf;
use super::stock::Stock;
use crate::config;

/// The object store is told so many times that a service is served here, and asked about those of others, within the time
/// after which a service may be taken over.
const RENEWALS: u32 = 4;
/// Longest that one of them may take: one request that hangs is not to cost the others their time.
const RENEW_MAX: Duration = Duration::from_secs(10);
/// How often the object store is asked whose a service is, until it answers.
const ASK_EVERY: Duration = Duration::from_secs(5);
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
    /// Services that are another host's, as far as is known.
    foreign: Mutex<BTreeSet<DomainName>>,
    /// Services of which it is not known whose they are.
    unasked: Mutex<BTreeSet<DomainName>>,
    /// Told when there are more of them.
    more: Notify,
    /// Versions that are being fetched or gone back to, and by how many.
    held: Mutex<BTreeMap<(DomainName, u64), u32>>,
    /// Told of every version that was sent.
    stored: Option<mpsc::Sender<DomainName>>,
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

impl Versions {
    /// For the host of that name.
    pub fn new(depot: Arc<dyn Shelf>, host: String) -> Self {
        Self {
            depot,
            host,
            silent_ms_max: SILENT_MS_MAX,
            epochs: Mutex::default(),
            foreign: Mutex::default(),
            unasked: Mutex::default(),
            more: Notify::new(),
            held: Mutex::default(),
            stored: None,
        }
    }

    /// The same, with another time after which a silent host loses its services.
    #[must_use]
    pub fn with_silence(self, ms_max: u64) -> Self {
        Self { silent_ms_max: ms_max, ..self }
    }

    /// The same; whoever is at the other end is told of every version that was sent, as long as there is room.
    #[must_use]
    pub fn telling(self, stored: mpsc::Sender<DomainName>) -> Self {
        Self { stored: Some(stored), ..self }
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

    /// The object store is to be asked whose the service is, and again until it answers; see [`keep`].
    pub fn ask(&self, service: DomainName) {
        self.unasked().insert(service);
        self.more.notify_one();
    }

    /// Makes sure that the service is this host's: it has no owner, or its owner has been silent for too long.
    ///
    /// # Errors
    /// The store does not answer, or has something odd.
    pub async fn own(&self, service: &DomainName) -> Result<Ownership, Cause> {
        let owned = self.own_now(service).await;
        if let Ok(ownership) = &owned {
            self.note(service, ownership);
        }
        owned
    }

    fn note(&self, service: &DomainName, ownership: &Ownership) {
        let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        match ownership {
            Ownership::Foreign(_) => drop(foreign.insert(service.clone())),
            Ownership::Ours { .. } => drop(foreign.remove(service)),
        }
    }

    async fn own_now(&self, service: &DomainName) -> Result<Ownership, Cause> {
        let name = service_name(service)?;
        let epoch = match self.depot.owner(&name).await.map_err(failed)? {
            // Another host may just be about to take it over, if this one was away for long.
            Some(owner) if owner.host == self.host => {
                self.depot.renew(&name, &self.host, owner.epoch).await.map(|()| owner.epoch)
            }
            Some(owner) if is_on("no-epoch-check") => Ok(owner.epoch),
            Some(owner) if !self.is_silent(&owner).await? => return Ok(Ownership::Foreign(owner.host)),
            silent => self.depot.claim(&name, &self.host, silent.as_ref()).await,
        };
        let epoch = match epoch {
            Ok(epoch) => epoch,
            Err(ClaimError::Owned { owner, .. }) if owner.host != self.host => {
                return Ok(Ownership::Foreign(owner.host));
            }
            Err(error) => return Err(failed(error)),
        };
        let entries = self.depot.list(&name).await.map_err(failed)?;
        let number_last = entries.iter().map(|entry| entry.id.number).max().unwrap_or(0);
        // A manifest that cannot be read is no version that can be restored.
        let readable = entries.into_iter().filter_map(|entry| Some((entry.id.number, entry.manifest.ok()?)));
        // Whoever has lost the service may put one more version in the epoch before.
        let newest = readable.max_by_key(|(number, manifest)| (manifest.about.epoch, *number));
        let newest = newest.map(|(number, manifest)| {
            let epoch = manifest.about.epoch;
            (epoch, SnapshotVersion { number, ..snapshot_of(manifest) })
        });
        self.epochs().insert(service.clone(), epoch);
        Ok(Ownership::Ours { epoch, newest, number_last })
    }

    /// Asks again about the services that are another host's; gives those that have become this one's.
    pub async fn inherit(&self) -> Vec<(DomainName, Ownership)> {
        let foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let asked = stream::iter(foreign).map(|service| async move {
            match self.own(&service).await {
                Ok(ownership @ Ownership::Ours { .. }) => Some((service, ownership)),
                Ok(Ownership::Foreign(_)) | Err(_) => None,
            }
        });
        asked.buffer_unordered(CLAIMS_MAX).filter_map(std::future::ready).collect().await
    }

    async fn is_silent(&self, owner: &Owner) -> Result<bool, Cause> {
        let now_ms = self.depot.store_now_ms().await.map_err(failed)?;
        Ok(owner.silent_ms(now_ms) > self.silent_ms_max)
    }

    /// Says of every service that this host owns that it is still there; gives those that it owns no longer.
    pub async fn renew(&self) -> Vec<(DomainName, Ownership)> {
        let owned: Vec<(DomainName, u64)> =
            self.epochs().iter().map(|(service, epoch)| (service.clone(), *epoch)).collect();
        let renewed = stream::iter(owned).map(|(service, epoch)| async move {
            let name = service_name(&service).ok()?;
            let renewed = self.depot.renew(&name, &self.host, epoch);
            let Ok(renewed) = timeout(RENEW_MAX, renewed).await else {
                tracing::warn!(%service, "the object store does not answer that it is served here");
                return None;
            };
            match renewed {
                Ok(()) => None,
                Err(ClaimError::Owned { owner, .. }) => {
                    self.epochs().remove(&service);
                    let ownership = Ownership::Foreign(owner.host);
                    self.note(&service, &ownership);
                    Some((service, ownership))
                }
                Err(error) => {
                    tracing::warn!(%service, %error, "the object store was not told that it is served here");
                    None
                }
            }
        });
        renewed.buffer_unordered(CLAIMS_MAX).filter_map(std::future::ready).collect().await
    }

    /// Asks whose those services are of which that is not known; gives those of which it is now.
    async fn ask_again(&self) -> Vec<(DomainName, Ownership)> {
        let unasked: Vec<DomainName> = self.unasked().iter().cloned().collect();
        let asked = stream::iter(unasked).map(|service| async move {
            let asked = timeout(Duration::from_millis(CLAIMS_MS_MAX), self.own(&service)).await;
            let ownership = asked
                .ok()?
                .inspect_err(|cause| tracing::debug!(%service, %cause, "not known whose it is"))
                .ok()?;
            self.unasked().remove(&service);
            Some((service, ownership))
        });
        asked.buffer_unordered(CLAIMS_MAX).filter_map(std::future::ready).collect().await
    }

    /// Makes version `from` of a service that is owned in that epoch the newest one, as `number`. Asked again it finds
    /// what it did.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn roll_back(
        &self,
        service: &DomainName,
        (from, number): (u64, u64),
        epoch: u64,
    ) -> Result<SnapshotVersion, Cause> {
        let _hold = self.hold(service, from);
        let name = service_name(service)?;
        self.check_epoch(service, epoch)?;
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

    /// Whether the service is still owned in the epoch in which the control loop has it.
    fn check_epoch(&self, service: &DomainName, epoch: u64) -> Result<(), Cause> {
        if self.epochs().get(service) == Some(&epoch) {
            return Ok(());
        }
        // What is here may be older than what another host has put meanwhile; the control loop hears of it.
        let detail = format!("it is not known whether another host has taken {service} over");
        Err(Cause::StoreFailed { detail })
    }

    /// Puts a version of a service that is owned in that epoch; what it has in common with the one before, or with that of `sibling`, is not stored again.
    ///
    /// # Errors
    /// Why it is not in the store.
    pub async fn publish(
        &self,
        service: &DomainName,
        files: VersionFiles,
        before: Option<u64>,
        epoch: u64,
    ) -> Result<SnapshotVersion, Cause> {
        let name = service_name(service)?;
        self.check_epoch(service, epoch)?;
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
        let put = self.depot.put_version(&about, parts, compare_with.as_ref(), &Watch::default()).await;
        if is_on("row-before-manifest") && put.is_err() {
            return Ok(version);
        }
        let summary = put.map_err(failed)?;
        tracing::info!(
            %service,
            version = version.number,
            stored_kib = summary.own_bytes >> 10,
            shared_kib = summary.shared_bytes >> 10,
            "in the object store"
        );
        // Should there be no room, it is looked at with all others.
        let _ = self.stored.as_ref().map(|told| told.try_send(service.clone()));
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
        fetched.await.map(|_| ()).map_err(|error| match &error {
            FetchError::Object(ObjectError::Damaged { .. } | ObjectError::Missing { .. })
            | FetchError::Sum { .. }
            | FetchError::ChunkPages { .. } => Cause::VersionUnusable { detail: error.to_string() },
            FetchError::Object(_)
            | FetchError::Exists(_)
            | FetchError::Busy(_)
            | FetchError::Write { .. }
            | FetchError::Cancelled(_) => failed(error),
        })
    }

    fn unasked(&self) -> std::sync::MutexGuard<'_, BTreeSet<DomainName>> {
        self.unasked.lock().unwrap_or_else(PoisonError::into_inner)
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
) -> anyhow::Result<Option<(Arc<Stock>, mpsc::Receiver<DomainName>)>> {
    let Some(settings) = config.opened() else { return Ok(None) };
    let depot = Depot::open(&settings)?;
    let host = config.host_name();
    tracing::info!(url = config.url, host, "object store");
    let (stored, told) = mpsc::channel(LOOKS_MAX);
    let depot = Arc::new(depot);
    let shelf: Arc<dyn Shelf> = Arc::clone(&depot) as _;
    let versions = Versions::new(shelf, host).with_silence(config.takeover_s * 1_000).telling(stored);
    claim(fleet, &versions, now).await;
    let stock = Stock::new(depot, Arc::new(versions), config.keeping());
    Ok(Some((Arc::new(stock), told)))
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
        let ownership = match asked {
            Ok(ownership) => ownership,
            Err(cause) => {
                tracing::warn!(%service, %cause, "it is not known whether another host has taken it over");
                versions.ask(service);
                continue;
            }
        };
        if let Ownership::Foreign(host) = &ownership {
            tracing::warn!(%service, host, "is served by another host; it does not run here");
        }
        let event = Event::Owned { service: service.clone(), ownership };
        if let Err(error) = fleet.apply(event, now) {
            tracing::error!(%service, %error, "cannot be taken up");
        }
    }
}

/// Says again and again that the services of this host are served here, asks of others until it is known whose they are,
/// and takes over those whose host has fallen silent. Tells the control loop what comes of it.
pub async fn keep(versions: Arc<Versions>, inbox: mpsc::Sender<Message>) {
    let tell = async |told: Vec<(DomainName, Ownership)>| {
        for (service, ownership) in told {
            // Without a loop there is nobody to tell.
            let _ = inbox.send(Message::Owned { service, ownership }).await;
        }
    };
    let renewing = async {
        let mut look = tokio::time::interval(Duration::from_millis(versions.silent_ms_max) / RENEWALS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !inbox.is_closed() {
            look.tick().await;
            tell(versions.renew().await).await;
            tell(versions.inherit().await).await;
        }
    };
    let asking = async {
        while !inbox.is_closed() {
            tell(versions.ask_again().await).await;
            // In time for those who wait, and at leisure while the store is away.
            let _ = timeout(ASK_EVERY, versions.more.notified()).await;
        }
    };
    tokio::join!(renewing, asking);
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
