//! The simulated object store: requests that fail before or after they had their effect, a host that is cut off, and
//! the conditional puts on which ownership rests.

use std::collections::BTreeMap;
use std::path::Path;

use async_trait::async_trait;
use reveille::control::shelf::Shelf;
use reveille::control::versions::SILENT_MS_MAX;
use reveille_core::model::{DomainName, InstanceId, SnapshotVersion, Timestamp};
use reveille_depot::Watch;
use reveille_depot::catalogue::VersionEntry;
use reveille_depot::fetch::{FetchError, FetchOrder};
use reveille_depot::format::Fault;
use reveille_depot::format::manifest::{Description, Manifest};
use reveille_depot::names::{ServiceName, VersionId};
use reveille_depot::objects::ObjectError;
use reveille_depot::owner::{ClaimError, Owner};
use reveille_depot::put::{PutError, PutSummary};
use reveille_depot::source::NewPart;
use tokio::time::Instant;

use crate::vmm::VERSION_BYTES;
use crate::world::{self, ContentId, Inside, Kept, Life, StoredOwner, StoredVersion};

/// How long a request takes to fail when the host is cut off.
const CUT_OFF_MS: u64 = 2_000;

/// The object store of one life of a daemon.
pub struct Store {
    pub life: Life,
}

/// How a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    /// Before it had an effect.
    Lost,
    /// It had its effect, and the answer was lost.
    AnswerLost,
}

fn unreachable(path: &str) -> ObjectError {
    ObjectError::Store { doing: "reach", path: path.to_owned(), why: "simulated".to_owned() }
}

fn damaged(path: &str) -> ObjectError {
    ObjectError::Damaged { path: path.to_owned(), fault: Fault { at: 0, why: "simulated".to_owned() } }
}

fn domain(service: &ServiceName) -> DomainName {
    service.to_string().parse().unwrap_or_else(|_| DomainName::root())
}

impl Store {
    async fn fate(&self, what: &str) -> Fate {
        self.life.step(what, 1, 15).await;
        let (cut_off, fate) = self
            .life
            .now(|inside, host| {
                let cut_off = inside.hosts.get(host).is_some_and(|host| host.partitioned);
                let fate = if cut_off {
                    Fate::Lost
                } else if inside.dice.chance(inside.rates.store) {
                    if inside.dice.chance(500) { Fate::Lost } else { Fate::AnswerLost }
                } else {
                    Fate::Well
                };
                (cut_off, fate)
            })
            .await;
        if cut_off {
            self.life.step("waiting for the object store", CUT_OFF_MS, CUT_OFF_MS).await;
        }
        fate
    }

    async fn read<T>(
        &self,
        service: &ServiceName,
        read: impl FnOnce(&Inside, &Kept) -> T,
    ) -> Result<T, ObjectError> {
        if self.fate("reading from the object store").await != Fate::Well {
            return Err(unreachable(&service.to_string()));
        }
        let none = Kept::default();
        Ok(self.life.now(|inside, _| read(inside, inside.store.get(&domain(service)).unwrap_or(&none))).await)
    }

    /// A put: with its effect or without, and with an answer or without.
    async fn write<T>(
        &self,
        service: &ServiceName,
        write: impl FnOnce(&mut Inside, usize) -> T,
    ) -> Result<T, ObjectError> {
        let fate = self.fate("writing to the object store").await;
        if fate == Fate::Lost {
            return Err(unreachable(&service.to_string()));
        }
        let written = self.life.now(write).await;
        self.life.step("waiting for the answer of the object store", 0, 5).await;
        if fate == Fate::AnswerLost { Err(unreachable(&service.to_string())) } else { Ok(written) }
    }

    async fn read_owner(&self, service: &ServiceName) -> Result<Option<StoredOwner>, ObjectError> {
        self.read(service, |_, kept| kept.owner.clone()).await
    }

    /// Writes the owner if it is still what was read.
    async fn write_owner(
        &self,
        service: &ServiceName,
        before: Option<StoredOwner>,
        host: &str,
        epoch: u64,
    ) -> Result<(), ClaimError> {
        let name = domain(service);
        let tag = self.life.now(|inside, _| {
            inside.tags += 1;
            inside.tags
        });
        let tag = tag.await;
        let expected = before.as_ref().map(|owner| owner.epoch);
        let seen = before.as_ref().map(|owner| owner.tag);
        let written = self
            .write(service, |inside, _| {
                let heard_ms = inside.now_ms();
                let kept = inside.store.entry(name.clone()).or_default();
                if kept.owner.as_ref().map(|owner| owner.tag) != seen {
                    return false;
                }
                let since = before.as_ref().filter(|owner| owner.epoch == epoch).map(|owner| owner.since);
                let since = since.unwrap_or_else(Instant::now);
                kept.owner = Some(StoredOwner { host: host.to_owned(), epoch, heard_ms, since, tag });
                inside.owned(&name, before.as_ref(), host, epoch);
                true
            })
            .await;
        if matches!(written, Ok(true)) {
            return Ok(());
        }
        match self.read_owner(service).await? {
            Some(owner) if owner.tag == tag => Ok(()),
            Some(owner) if written.is_ok() => {
                Err(ClaimError::Owned { service: service.clone(), expected, owner: as_owner(&owner) })
            }
            Some(_) | None => Err(unreachable(&service.to_string()).into()),
        }
    }
}

fn as_owner(owner: &StoredOwner) -> Owner {
    Owner { host: owner.host.clone(), epoch: owner.epoch, heard_ms: owner.heard_ms }
}

impl Inside {
    /// A service has an owner, or the same one once more.
    fn owned(&mut self, service: &DomainName, before: Option<&StoredOwner>, host: &str, epoch: u64) {
        let kept = self.store.entry(service.clone()).or_default();
        let last = kept.owned.insert(host.to_owned(), epoch).unwrap_or(0);
        if before.is_none_or(|before| before.epoch != epoch) {
            let newest = kept.versions.values().map(|version| version.about.epoch).max();
            kept.overtaken = newest.is_some_and(|newest| newest > last);
            if !kept.overtaken {
                self.goes_on(service, host);
            }
        }
        let Some(before) = before.filter(|before| before.epoch != epoch) else { return };
        self.tell(|| format!("{service}: {host} takes over from {}, epoch {epoch}", before.host));
        let silent_ms = self.now_ms().saturating_sub(before.heard_ms);
        if before.host != host && silent_ms <= SILENT_MS_MAX {
            self.violate(format!(
                "{service}: {host} takes it over from {}, heard of {silent_ms} ms ago",
                before.host
            ));
        }
    }
}

fn manifest_of(version: &StoredVersion) -> Manifest {
    Manifest {
        about: version.about.clone(),
        own_bytes: VERSION_BYTES,
        shared_bytes: 0,
        keys: Vec::new(),
        chunks: Vec::new(),
        parts: Vec::new(),
    }
}

#[async_trait]
impl Shelf for Store {
    async fn owner(&self, service: &ServiceName) -> Result<Option<Owner>, ObjectError> {
        Ok(self.read_owner(service).await?.as_ref().map(as_owner))
    }

    async fn claim(
        &self,
        service: &ServiceName,
        host: &str,
        silent: Option<&Owner>,
    ) -> Result<u64, ClaimError> {
        let before = self.read_owner(service).await?;
        let expected = silent.map(|owner| owner.epoch);
        match (&before, silent) {
            (None, None) => {}
            (Some(owner), Some(silent))
                if owner.epoch == silent.epoch && owner.heard_ms == silent.heard_ms => {}
            (None, Some(silent)) => {
                return Err(ClaimError::Unowned { service: service.clone(), expected: silent.epoch });
            }
            (Some(owner), _) => {
                return Err(ClaimError::Owned { service: service.clone(), expected, owner: as_owner(owner) });
            }
        }
        let epoch = expected.unwrap_or(0) + 1;
        self.write_owner(service, before, host, epoch).await?;
        Ok(epoch)
    }

    async fn renew(&self, service: &ServiceName, host: &str, epoch: u64) -> Result<(), ClaimError> {
        let Some(before) = self.read_owner(service).await? else {
            return Err(ClaimError::Unowned { service: service.clone(), expected: epoch });
        };
        if before.host != host || before.epoch != epoch {
            self.life.at_once(|inside, _| inside.tell(|| format!("{host} hears that it has lost {service}")));
            let owner = as_owner(&before);
            return Err(ClaimError::Owned { service: service.clone(), expected: Some(epoch), owner });
        }
        self.write_owner(service, Some(before), host, epoch).await
    }

    async fn store_now_ms(&self) -> Result<u64, ObjectError> {
        if self.fate("asking for the store's clock").await != Fate::Well {
            return Err(unreachable("clock"));
        }
        Ok(self.life.now(|inside, _| inside.now_ms()).await)
    }

    async fn list(&self, service: &ServiceName) -> Result<Vec<VersionEntry>, ObjectError> {
        let entry = |(number, version): (&u64, &StoredVersion)| VersionEntry {
            id: VersionId { service: service.clone(), number: *number },
            published_ms: version.published_ms,
            pinned: false,
            manifest: Ok(manifest_of(version)),
        };
        self.read(service, |_, kept| kept.versions.iter().map(entry).collect()).await
    }

    async fn put_version(
        &self,
        about: &Description,
        _: Vec<NewPart>,
        _: Option<&VersionId>,
        _: &Watch,
    ) -> Result<PutSummary, PutError> {
        let (id, service) = (about.id.clone(), about.id.service.clone());
        let check_owner = async || match self.read_owner(&service).await? {
            Some(owner) if owner.epoch != about.epoch => Err(PutError::Foreign {
                id: id.clone(),
                epoch: about.epoch,
                owner: owner.host,
                now: owner.epoch,
            }),
            Some(_) | None => Ok(()),
        };
        check_owner().await?;
        let there =
            self.read(&service, |_, kept| kept.versions.last_key_value().map(|(n, v)| (*n, v.about.clone())));
        let there = there.await?;
        let summary = |was_there| PutSummary {
            id: id.clone(),
            was_there,
            pages: 1,
            pages_stored: 1,
            own_bytes: VERSION_BYTES,
            shared_bytes: 0,
        };
        match there {
            Some((number, there)) if number == id.number && there == *about => return Ok(summary(true)),
            Some((taken, _)) if taken >= id.number => return Err(PutError::Taken { id: id.clone(), taken }),
            Some(_) | None => {}
        }
        let content = ContentId(about.needs.machine.parse().unwrap_or(usize::MAX));
        // What was written to before it was compared is not noticed.
        let torn_before = self.life.now(|inside, _| inside.is_torn(content)).await;
        self.life.step("sending chunks", 5, 300).await;
        if self.fate("sending chunks").await == Fate::Lost {
            return Err(unreachable(&service.to_string()).into());
        }
        if !torn_before && self.life.now(|inside, _| inside.is_torn(content)).await {
            return Err(PutError::SourceChanged { part: "memory".to_owned(), page: 0 });
        }
        check_owner().await?;
        let put = self.write(&service, |inside, host| inside.put(host, about, content)).await;
        match put {
            Ok(true) => Ok(summary(false)),
            Ok(false) => Err(PutError::Taken { id: id.clone(), taken: id.number }),
            Err(error) => {
                let read = self
                    .read(&service, |_, kept| kept.versions.get(&id.number).map(|there| there.about.clone()));
                match read.await {
                    Ok(Some(there)) if there == *about => Ok(summary(false)),
                    Ok(Some(_)) => Err(PutError::Taken { id: id.clone(), taken: id.number }),
                    Ok(None) | Err(_) => Err(error.into()),
                }
            }
        }
    }

    async fn fetch(
        &self,
        id: &VersionId,
        to: &Path,
        _: FetchOrder,
        _: &Watch,
    ) -> Result<Manifest, FetchError> {
        let version = self.read(&id.service, |_, kept| kept.versions.get(&id.number).cloned()).await?;
        let path = id.to_string();
        let Some(version) = version else { return Err(ObjectError::Missing { path }.into()) };
        self.life.step("fetching", 5, 300).await;
        if self.fate("fetching chunks").await != Fate::Well {
            return Err(unreachable(&path).into());
        }
        if version.corrupt {
            return Err(damaged(&path).into());
        }
        let instance =
            to.iter().nth(1).and_then(|id| id.to_str()).and_then(|id| id.parse().ok()).unwrap_or_default();
        let fetched = world::Manifest {
            version: SnapshotVersion {
                number: id.number,
                at: Timestamp::from_ms(version.about.taken_at_ms),
                stored_bytes: VERSION_BYTES,
                paused_us: version.about.paused_us,
                image: version.about.image.clone(),
            },
            content: version.content,
            corrupt: false,
        };
        self.life
            .now(|inside, host| {
                inside.disk(host, InstanceId(instance)).map(|disk| disk.fetched = Some(fetched))
            })
            .await;
        Ok(manifest_of(&version))
    }

    async fn show(&self, id: &VersionId) -> Result<Manifest, ObjectError> {
        let version = self.read(&id.service, |_, kept| kept.versions.get(&id.number).cloned()).await?;
        version.as_ref().map(manifest_of).ok_or_else(|| ObjectError::Missing { path: id.to_string() })
    }

    async fn republish(
        &self,
        from: &VersionId,
        number: u64,
        epoch: u64,
        watch: &Watch,
    ) -> Result<PutSummary, PutError> {
        let id = VersionId { service: from.service.clone(), number };
        let about = self.show(from).await?.about;
        let about = Description { id, epoch, parent: Some(from.number), ..about };
        self.put_version(&about, Vec::new(), Some(from), watch).await
    }

    async fn take_back(&self, id: &VersionId) -> Result<(), ObjectError> {
        let take_back = |inside: &mut Inside, _| {
            inside.store.get_mut(&domain(&id.service)).and_then(|kept| kept.versions.remove(&id.number))
        };
        self.write(&id.service, take_back).await.map(drop)
    }
}

impl Inside {
    fn is_torn(&mut self, content: ContentId) -> bool {
        self.truths.content(content).is_some_and(|content| content.torn && !content.checkpoint)
    }

    /// A version's manifest is put, if there is none of that number.
    fn put(&mut self, host: usize, about: &Description, content: ContentId) -> bool {
        let (service, published_ms) = (domain(&about.id.service), self.now_ms());
        let torn = self.is_torn(content);
        let kept = self.store.entry(service.clone()).or_default();
        if kept.versions.contains_key(&about.id.number) {
            return false;
        }
        let version = StoredVersion { about: about.clone(), content, corrupt: false, published_ms };
        kept.versions.insert(about.id.number, version);
        let (number, epoch) = (about.id.number, about.epoch);
        self.tell(|| {
            format!("h{host} {service}: version {number} of epoch {epoch} ({}) is stored", content.0)
        });
        if torn {
            self.violate(format!("{service}: version {number} was stored while its guest wrote to it"));
        }
        true
    }

    /// Versions of all services, for whoever damages one.
    pub fn stored_versions(&self) -> BTreeMap<DomainName, Vec<u64>> {
        let numbers = |kept: &Kept| kept.versions.keys().copied().collect();
        self.store.iter().map(|(service, kept)| (service.clone(), numbers(kept))).collect()
    }
}
