//! Collecting garbage: chunks that no version needs, and what else was left behind.
//!
//! There is no lock, and whoever wants may collect, at any time, also twice at once. That it never takes what somebody
//! needs rests on four things:
//!
//! 1. The name of a chunk is never used twice, so whoever relies on a chunk has written it, or has seen a manifest that
//!    names it.
//! 2. A put is over within half the grace, counted from before it saw or wrote anything, by the store's clock; one that
//!    published later takes that back.
//! 3. A manifest that is deleted is first written to `deleted/`, and stays there for a whole grace.
//! 4. The collector reads the store's clock first, then the manifests, then the deleted ones.
//!
//! Let a chunk be unneeded at the collector's time T: older than the grace, and in no manifest, deleted or not. Who
//! wrote it has finished half a grace ago at least, and whoever saw a manifest that names it did so more than a grace
//! ago, for the manifest would be seen otherwise: so they have published, and then the chunk is named, or never will.
//! From T on nobody can begin to rely on it. So it makes no difference how late it is deleted, or how often.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::depot::{Depot, Watch};
use crate::names::{CHUNKS, CLOCK, ChunkName, SERVICES, Shelf, VersionId};
use crate::objects::{Listed, ObjectError};
use reveille_failpoint::failpoint;

/// Why nothing, or not all, was collected. What was not can be collected later.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The store.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// What a version needs cannot be known, so nothing is deleted.
    #[error(
        "nothing is collected, since it cannot be known what a version needs: {0}; repair or delete that version"
    )]
    Unreadable(ObjectError),
    /// Somebody asked for that.
    #[error("the collection was cancelled")]
    Cancelled,
}

/// What is in the depot.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    /// The store's time before anything was listed, in ms since 1970.
    pub now_ms: u64,
    /// All objects below `chunks/` and `clock/`.
    pub objects: Vec<Listed>,
    /// All objects below `services/`.
    pub of_services: Vec<Listed>,
    /// Chunks that manifests name, and manifests that were deleted within the grace.
    pub needed: BTreeSet<ChunkName>,
}

/// What is to be deleted, and why the rest is not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CollectPlan {
    /// Chunks that nobody needs.
    pub chunks: Vec<Listed>,
    /// Manifests of versions that were deleted a grace ago, pins without a version, readings of the clock.
    pub others: Vec<Listed>,
    /// Chunks that stay since a version needs them.
    pub needed: u64,
    /// Chunks that stay since they are younger than the grace: a put may be about to name them.
    pub young: u64,
}

/// Decides what is garbage.
pub fn plan(holdings: &Holdings, grace_ms: u64) -> CollectPlan {
    let old = |object: &Listed| object.written_ms.saturating_add(grace_ms) < holdings.now_ms;
    let mut plan = CollectPlan::default();
    for object in &holdings.objects {
        match ChunkName::of_path(&object.path) {
            Some(name) if holdings.needed.contains(&name) => plan.needed += 1,
            Some(_) if old(object) => plan.chunks.push(object.clone()),
            Some(_) => plan.young += 1,
            None if object.path.starts_with(CLOCK) && old(object) => plan.others.push(object.clone()),
            None => {}
        }
    }
    let of_services = || holdings.of_services.iter().filter_map(|o| Some((Shelf::of_path(&o.path)?, o)));
    let versions: BTreeSet<VersionId> =
        of_services().filter(|((shelf, _), _)| *shelf == Shelf::Versions).map(|((_, id), _)| id).collect();
    for ((shelf, id), object) in of_services() {
        let garbage = match shelf {
            Shelf::Versions => false,
            Shelf::Deleted => old(object),
            Shelf::Pinned => old(object) && !versions.contains(&id),
        };
        if garbage {
            plan.others.push(object.clone());
        }
    }
    plan
}

impl Depot {
    /// Deletes what nobody needs; what it did is what it answers.
    ///
    /// # Errors
    /// [`CollectError`].
    pub async fn collect(&self, watch: &Watch) -> Result<CollectPlan, CollectError> {
        let plan = self.plan_collection().await?;
        failpoint!("depot.collect.planned");
        // Chunks first: while a deleted manifest is there, it is known whose they were.
        for objects in [&plan.chunks, &plan.others] {
            stream::iter(objects.clone())
                .map(|object: Listed| async move {
                    if watch.cancel.is_cancelled() {
                        return Err(CollectError::Cancelled);
                    }
                    failpoint!("depot.collect.delete");
                    Ok(self.objects.delete(&object.path).await?)
                })
                .buffer_unordered(self.parallel)
                .try_collect::<Vec<()>>()
                .await?;
        }
        if let Some(directory) = self.objects.directory() {
            let (directory, old) =
                (directory.to_owned(), std::time::Duration::from_millis(self.grace_ms().await?));
            // What a kill has left of a put to a directory. Nothing waits for these, so that an error is no matter.
            let _ = self.work("unfinished files", move || remove_unfinished(&directory, old)).await;
        }
        failpoint!("depot.collect.done");
        Ok(plan)
    }

    /// What a collection would do now.
    ///
    /// # Errors
    /// [`CollectError`].
    pub async fn plan_collection(&self) -> Result<CollectPlan, CollectError> {
        let grace_ms = self.grace_ms().await?;
        let now_ms = self.store_now_ms().await?;
        failpoint!("depot.collect.begin");
        let mut holdings = Holdings { now_ms, ..Holdings::default() };
        let versions = self.objects.list(SERVICES).await?;
        holdings.needed = self.needed_by(&versions, Shelf::Versions, 0).await?;
        // After the versions have been read: one that was deleted meanwhile is here.
        holdings.of_services = self.objects.list(SERVICES).await?;
        let since_ms = now_ms.saturating_sub(grace_ms);
        holdings.needed.extend(self.needed_by(&holdings.of_services, Shelf::Deleted, since_ms).await?);
        holdings.objects = self.objects.list(CHUNKS).await?;
        holdings.objects.extend(self.objects.list(CLOCK).await?);
        Ok(plan(&holdings, grace_ms))
    }

    /// Bytes of chunks that nobody would need any more if these versions were deleted; a grace later they go.
    ///
    /// # Errors
    /// [`CollectError`].
    pub async fn freed_by(&self, going: &BTreeSet<VersionId>) -> Result<u64, CollectError> {
        let listed = self.objects.list(SERVICES).await?;
        let goes = |object: &Listed| {
            Shelf::of_path(&object.path)
                .is_some_and(|(shelf, id)| shelf == Shelf::Versions && going.contains(&id))
        };
        let staying: Vec<Listed> = listed.iter().filter(|object| !goes(object)).cloned().collect();
        let needed = self.needed_by(&staying, Shelf::Versions, 0).await?;
        let ids = going.iter().map(|id| (Shelf::Versions, id.clone())).collect();
        let manifests = self.manifests(ids).await?;
        let chunks = manifests.iter().flat_map(|(_, manifest)| &manifest.chunks);
        let freed: BTreeMap<ChunkName, u32> = chunks
            .filter(|chunk| !needed.contains(&chunk.name))
            .map(|chunk| (chunk.name, chunk.stored_bytes))
            .collect();
        Ok(freed.values().map(|bytes| u64::from(*bytes)).sum())
    }

    async fn needed_by(
        &self,
        listed: &[Listed],
        shelf: Shelf,
        since_ms: u64,
    ) -> Result<BTreeSet<ChunkName>, CollectError> {
        let ids: Vec<(Shelf, VersionId)> = listed
            .iter()
            .filter(|object| object.written_ms >= since_ms)
            .filter_map(|object| Shelf::of_path(&object.path))
            .filter(|(of, _)| *of == shelf)
            .collect();
        let mut needed = BTreeSet::new();
        // One after another: what they need is kept, they are not.
        let mut reading =
            stream::iter(ids).map(|id| self.manifests(vec![id])).buffer_unordered(self.parallel);
        while let Some(read) = reading.next().await {
            let manifests = read.map_err(|error| {
                if matches!(error, ObjectError::Damaged { .. } | ObjectError::TooLarge { .. }) {
                    return CollectError::Unreadable(error);
                }
                CollectError::Object(error)
            })?;
            needed.extend(
                manifests.iter().flat_map(|(_, manifest)| manifest.chunks.iter().map(|chunk| chunk.name)),
            );
        }
        Ok(needed)
    }
}

/// Deletes files `name#1` that are older than `old`: what becomes an object by being renamed.
fn remove_unfinished(directory: &std::path::Path, old: std::time::Duration) -> std::io::Result<()> {
    let mut directories = vec![directory.join(CHUNKS), directory.join(SERVICES), directory.join(CLOCK)];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                directories.push(entry.path());
                continue;
            }
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.rsplit_once('#')).map(|(_, number)| number);
            let unfinished =
                number.is_some_and(|number| !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit()));
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            if kind.is_file() && unfinished && age > old {
                std::fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(path: String, written_ms: u64) -> Listed {
        Listed { path, bytes: 1, written_ms }
    }

    #[test]
    fn what_is_young_or_needed_stays() {
        let name = |n: u8| ChunkName([n; 32]);
        let holdings = Holdings {
            now_ms: 1_000,
            objects: vec![
                listed(name(1).path(), 0),
                listed(name(2).path(), 0),
                listed(name(3).path(), 900),
                listed("clock/ab".to_owned(), 0),
                listed("chunks/of/somebody-else".to_owned(), 0),
            ],
            of_services: vec![
                listed("services/a/versions/1".to_owned(), 0),
                listed("services/a/pinned/1".to_owned(), 0),
                listed("services/a/pinned/2".to_owned(), 0),
                listed("services/a/pinned/3".to_owned(), 950),
                listed("services/a/deleted/2".to_owned(), 500),
                listed("services/a/deleted/4".to_owned(), 950),
                listed("services/a/owner".to_owned(), 0),
            ],
            needed: [name(1)].into(),
        };
        let plan = plan(&holdings, 100);
        let paths = |objects: &[Listed]| objects.iter().map(|o| o.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&plan.chunks), [name(2).path()]);
        assert_eq!(paths(&plan.others), ["clock/ab", "services/a/pinned/2", "services/a/deleted/2"]);
        // Exactly as old as the grace: 900 + 100 is not before 1000.
        assert_eq!((plan.needed, plan.young), (1, 1));
    }
}
