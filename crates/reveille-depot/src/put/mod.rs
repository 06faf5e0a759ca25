//! Putting a version: compare, store chunks, publish the manifest.
//!
//! Nothing refers to a chunk before the manifest does, and the manifest is written when all of them are there. So a
//! version is there as a whole or not at all, and what is left of a put that did not come to its end is garbage, which
//! the collector ([`crate::collect`]) takes when it is old enough. It can know that only if a put ends in time: one
//! that takes longer than half the grace gives up, and takes back what it published too late.

mod compare;
mod pack;

use std::sync::Arc;

use bytes::Bytes;

use crate::depot::{Depot, Watch, salt};
use crate::format::Fault;
use crate::format::manifest::{Description, Manifest, PARTS_MAX, is_part_name};
use crate::names::{SERVICES, Shelf, VersionId};
use crate::objects::{ObjectError, Put};
use crate::source::NewPart;
use reveille_failpoint::failpoint;

/// What was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutSummary {
    /// Which version.
    pub id: VersionId,
    /// Whether it was there before, with the same content.
    pub was_there: bool,
    /// Pages that are not zero.
    pub pages: u64,
    /// Of these, how many were stored now; the others are shared.
    pub pages_stored: u64,
    /// Bytes written: chunks and manifest.
    pub own_bytes: u64,
    /// Bytes of chunks that were there.
    pub shared_bytes: u64,
}

/// Why a version was not put. Nothing refers to what was written of it.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The store.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A part cannot be read.
    #[error("part `{part}` cannot be read at page {page}: {source}")]
    Source {
        /// Which.
        part: String,
        /// Where.
        page: u64,
        /// Why.
        source: std::io::Error,
    },
    /// A part changed while it was read: its guest runs.
    #[error(
        "page {page} of part `{part}` changed while the version was put; a version is put of what stands still"
    )]
    SourceChanged {
        /// Which.
        part: String,
        /// Where.
        page: u64,
    },
    /// What was given cannot be a version.
    #[error("version {id} cannot be put: {why}")]
    Invalid {
        /// Which.
        id: VersionId,
        /// What is wrong.
        why: String,
    },
    /// A part says that pages are as in another version, and that is not there, or not whole.
    #[error("part `{part}` is described by what changed since {base}: {why}")]
    Base {
        /// Which.
        part: String,
        /// The version that it speaks of.
        base: VersionId,
        /// What is the matter with that.
        why: String,
    },
    /// The number is in use by another content, or by a deleted version.
    #[error("{id} cannot be put: {taken} is in the depot, and the number of a new version must be higher")]
    Taken {
        /// Which.
        id: VersionId,
        /// The highest there is.
        taken: u64,
    },
    /// Another host may run the service.
    #[error("{id} was taken in epoch {epoch}, and `{owner}` has owned the service since epoch {now}")]
    Foreign {
        /// Which.
        id: VersionId,
        /// The epoch of the version.
        epoch: u64,
        /// Who owns the service.
        owner: String,
        /// The owner's epoch.
        now: u64,
    },
    /// It took so long that the collector might count its chunks as garbage.
    #[error(
        "{id} was given up: the put took {took_ms} ms, and within half the depot's grace, {max_ms} ms, it must be done"
    )]
    TooSlow {
        /// Which.
        id: VersionId,
        /// How long it took.
        took_ms: u64,
        /// How long it may take.
        max_ms: u64,
    },
    /// Somebody asked for that.
    #[error("{0} was cancelled")]
    Cancelled(VersionId),
}

/// Which version a put is about, and until when.
pub(crate) struct Order<'a> {
    about: &'a Description,
    watch: &'a Watch,
    started_ms: u64,
    store_started_ms: u64,
    took_ms_max: u64,
}

impl Order<'_> {
    fn id(&self) -> &VersionId {
        &self.about.id
    }

    pub(crate) fn check_cancel(&self) -> Result<(), PutError> {
        if self.watch.cancel.is_cancelled() { Err(PutError::Cancelled(self.id().clone())) } else { Ok(()) }
    }

    fn invalid(&self) -> impl FnOnce(Fault) -> PutError {
        let id = self.id().clone();
        move |fault| PutError::Invalid { id, why: fault.why }
    }

    fn too_slow(&self, took_ms: u64) -> Result<(), PutError> {
        if took_ms <= self.took_ms_max {
            return Ok(());
        }
        Err(PutError::TooSlow { id: self.id().clone(), took_ms, max_ms: self.took_ms_max })
    }
}

impl Depot {
    /// Puts a version. `compare_with` is a version whose pages it probably has many of: the one that the guest was
    /// restored from, or another of the same image; if it is gone, nothing is shared. A put that is repeated after its
    /// answer was lost finds what it did.
    ///
    /// # Errors
    /// [`PutError`]; the version is not in the depot then, unless the error is that the store did not answer.
    pub async fn put_version(
        &self,
        about: &Description,
        parts: Vec<NewPart>,
        compare_with: Option<&VersionId>,
        watch: &Watch,
    ) -> Result<PutSummary, PutError> {
        let parts: Arc<[NewPart]> = parts.into();
        check_parts(about, &parts)?;
        let order = self.order(about, watch).await?;
        failpoint!("depot.put.begin");
        self.check_owner(&order).await?;
        let there = self.check_number(&order).await?;
        let parent = self.parent(&order, &parts, compare_with).await?;
        let compared = self.compare(&order, &parts, &parent).await?;
        if let Some(there) = there {
            return recognise(&order, &there, &compared);
        }
        failpoint!("depot.put.compared");
        let pages_stored = compared.fresh.len() as u64;
        let manifest = self.store(&order, &parts, &parent, compared).await?;
        failpoint!("depot.put.stored");
        let summary = self.publish(&order, manifest).await?;
        Ok(PutSummary { pages_stored, ..summary })
    }

    /// The clocks are read before anything is seen or written.
    pub(crate) async fn order<'a>(
        &self,
        about: &'a Description,
        watch: &'a Watch,
    ) -> Result<Order<'a>, ObjectError> {
        Ok(Order {
            about,
            watch,
            started_ms: (self.stopwatch)(),
            took_ms_max: self.grace_ms().await? / 2,
            store_started_ms: self.store_now_ms().await?,
        })
    }

    pub(crate) async fn check_owner(&self, order: &Order<'_>) -> Result<(), PutError> {
        match self.owner(&order.id().service).await? {
            Some(owner) if owner.epoch != order.about.epoch => Err(PutError::Foreign {
                id: order.id().clone(),
                epoch: order.about.epoch,
                owner: owner.host,
                now: owner.epoch,
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Numbers go up. The version itself, if it is there already.
    pub(crate) async fn check_number(&self, order: &Order<'_>) -> Result<Option<Manifest>, PutError> {
        let id = order.id();
        let listed = self.objects.list(&format!("{SERVICES}/{}", id.service)).await?;
        let known = listed.iter().filter_map(|object| Shelf::of_path(&object.path));
        let taken = known.filter(|(shelf, _)| *shelf != Shelf::Pinned).map(|(shelf, id)| (id.number, shelf));
        match taken.max_by_key(|(number, shelf)| (*number, *shelf == Shelf::Deleted)) {
            Some((number, Shelf::Versions)) if number == id.number => Ok(Some(self.manifest(id).await?)),
            Some((taken, _)) if taken >= id.number => Err(PutError::Taken { id: id.clone(), taken }),
            Some(_) | None => Ok(None),
        }
    }

    pub(crate) async fn publish(
        &self,
        order: &Order<'_>,
        manifest: Manifest,
    ) -> Result<PutSummary, PutError> {
        let id = order.id();
        let path = Shelf::Versions.path(id);
        let keys = Arc::clone(&self.keys);
        let salt = salt(&path)?;
        let encode = move || manifest.encode(salt, &keys).map(|bytes| (manifest, Bytes::from(bytes)));
        let (manifest, bytes) = self.work(&path, encode).await?.map_err(order.invalid())?;
        order.check_cancel()?;
        order.too_slow((self.stopwatch)().saturating_sub(order.started_ms))?;
        self.check_owner(order).await?;
        failpoint!("depot.put.manifest");
        let put = self.objects.put(&path, bytes.clone(), Put::Create).await;
        failpoint!("depot.put.published");
        if let Err(error) = put {
            // The answer may have been lost, or a try before this one had come through.
            match self.objects.get(&path, bytes.len() as u64).await {
                Ok((there, _)) if there == bytes => {}
                Ok(_) | Err(ObjectError::TooLarge { .. }) => {
                    return Err(PutError::Taken { id: id.clone(), taken: id.number });
                }
                Err(_) => return Err(error.into()),
            }
        }
        // By the store's clock, which the collector goes by: whatever happened to this host or to that clock meanwhile.
        let published_ms = self.objects.head(&path).await?.written_ms;
        if let Err(late) = order.too_slow(published_ms.saturating_sub(order.store_started_ms)) {
            self.bury(id).await?;
            return Err(late);
        }
        Ok(summary(&manifest, false, bytes.len() as u64))
    }
}

fn summary(manifest: &Manifest, was_there: bool, manifest_bytes: u64) -> PutSummary {
    PutSummary {
        id: manifest.about.id.clone(),
        was_there,
        pages: manifest.parts.iter().map(|part| part.map.count()).sum(),
        pages_stored: 0,
        own_bytes: manifest.own_bytes + manifest_bytes,
        shared_bytes: manifest.shared_bytes,
    }
}

/// What is there under this number: is it this version?
fn recognise(
    order: &Order<'_>,
    there: &Manifest,
    compared: &compare::Compared,
) -> Result<PutSummary, PutError> {
    if there.about == *order.about && there.has_content_of(&compared.contents()) {
        return Ok(summary(there, true, 0));
    }
    Err(PutError::Taken { id: order.id().clone(), taken: order.id().number })
}

fn check_parts(about: &Description, parts: &[NewPart]) -> Result<(), PutError> {
    let invalid = |why: String| Err(PutError::Invalid { id: about.id.clone(), why });
    if parts.len() > PARTS_MAX {
        return invalid(format!("it has {} parts, at most {PARTS_MAX} are possible", parts.len()));
    }
    for (index, part) in parts.iter().enumerate() {
        if !is_part_name(&part.name) || parts.iter().take(index).any(|other| other.name == part.name) {
            return invalid(format!(
                "a part cannot be called `{}`: a-z, 0-9 and `-`, no two alike",
                part.name
            ));
        }
    }
    Ok(())
}
