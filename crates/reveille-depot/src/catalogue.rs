//! What is in the depot: services, versions, pins; deleting; the pages that a wake needs first.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use crate::depot::{Depot, MANIFEST_OBJECT_BYTES_MAX};
use crate::format::Kind;
use crate::format::manifest::Manifest;
use crate::format::map::{TOUCHED_BYTES_MAX, decode_set, encode_set};
use crate::names::{SERVICES, ServiceName, Shelf, VersionId, touched_path};
use crate::objects::{ObjectError, Put};
use crate::pages::PageSet;
use reveille_failpoint::failpoint;

/// A version in a listing.
#[derive(Debug)]
pub struct VersionEntry {
    /// Which.
    pub id: VersionId,
    /// When it was published, by the store's clock, in ms since 1970.
    pub published_ms: u64,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Its manifest, or why that cannot be read: such a version is there and cannot be restored.
    pub manifest: Result<Manifest, ObjectError>,
}

impl Depot {
    /// The services of which something is in the depot.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub async fn services(&self) -> Result<Vec<ServiceName>, ObjectError> {
        let names = self.objects.directories(SERVICES).await?;
        let mut services: Vec<ServiceName> = names.iter().filter_map(|name| name.parse().ok()).collect();
        services.sort();
        Ok(services)
    }

    /// The versions of a service, lowest number first.
    ///
    /// # Errors
    /// If the store cannot be asked. A manifest that cannot be read is told in its entry.
    pub async fn list(&self, service: &ServiceName) -> Result<Vec<VersionEntry>, ObjectError> {
        let listed = self.objects.list(&format!("{SERVICES}/{service}")).await?;
        let mut pinned = Vec::new();
        let mut versions = Vec::new();
        for object in listed {
            match Shelf::of_path(&object.path) {
                Some((Shelf::Versions, id)) => versions.push((id, object.written_ms)),
                Some((Shelf::Pinned, id)) => pinned.push(id.number),
                Some((Shelf::Deleted, _)) | None => {}
            }
        }
        versions.sort();
        let entry = async |(id, published_ms): (VersionId, u64)| {
            let manifest = self.manifest(&id).await;
            VersionEntry { pinned: pinned.contains(&id.number), id, published_ms, manifest }
        };
        let entries: Vec<VersionEntry> =
            stream::iter(versions).map(entry).buffered(self.parallel).collect().await;
        // What was deleted since it was listed is not there.
        let gone = |entry: &VersionEntry| entry.manifest.as_ref().is_err_and(ObjectError::is_missing);
        Ok(entries.into_iter().filter(|entry| !gone(entry)).collect())
    }

    /// The highest number that a version of the service has, or a deleted one had within the grace; 0 without any.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub async fn highest(&self, service: &ServiceName) -> Result<u64, ObjectError> {
        let listed = self.objects.list(&format!("{SERVICES}/{service}")).await?;
        let known = listed.iter().filter_map(|object| Shelf::of_path(&object.path));
        let versions = known.filter(|(shelf, _)| *shelf != Shelf::Pinned);
        Ok(versions.map(|(_, id)| id.number).max().unwrap_or(0))
    }

    /// The manifest of a version.
    ///
    /// # Errors
    /// If it is not there or damaged.
    pub async fn show(&self, id: &VersionId) -> Result<Manifest, ObjectError> {
        self.manifest(id).await
    }

    /// Deletes a version. Its chunks stay until the collector has seen that nobody needs them; nothing to delete is no
    /// error. A pin goes with it.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub async fn delete(&self, id: &VersionId) -> Result<(), ObjectError> {
        self.bury(id).await?;
        self.pin(id, false).await
    }

    /// Moves a manifest to where the deleted ones are: who has read it there or here may still rely on its chunks, and
    /// the collector goes by that. It is not looked into, so that damaged ones can be deleted too.
    pub(crate) async fn bury(&self, id: &VersionId) -> Result<(), ObjectError> {
        let (from, to) = (Shelf::Versions.path(id), Shelf::Deleted.path(id));
        let (bytes, _) = match self.objects.get(&from, MANIFEST_OBJECT_BYTES_MAX).await {
            Err(ObjectError::Missing { .. }) => return Ok(()),
            // Too large to have been ours: nobody can have read chunks from it.
            Err(ObjectError::TooLarge { .. }) => (Bytes::new(), ()),
            read => read.map(|(bytes, _)| (bytes, ()))?,
        };
        failpoint!("depot.delete.begin");
        self.objects.put(&to, bytes, Put::Always).await?;
        failpoint!("depot.delete.moved");
        self.objects.delete(&from).await?;
        failpoint!("depot.delete.deleted");
        Ok(())
    }

    /// Pins a version, so that no policy deletes it, or unpins it.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub async fn pin(&self, id: &VersionId, pinned: bool) -> Result<(), ObjectError> {
        let path = Shelf::Pinned.path(id);
        if pinned {
            self.objects.put(&path, Bytes::new(), Put::Always).await
        } else {
            self.objects.delete(&path).await
        }
    }

    /// Notes which pages of the memory the last wake needed first.
    ///
    /// # Errors
    /// If the set has too many runs, or the store cannot be asked.
    pub async fn note_touched(&self, service: &ServiceName, pages: &PageSet) -> Result<(), ObjectError> {
        let path = touched_path(service);
        let content = encode_set(pages).map_err(ObjectError::damaged(&path))?;
        self.write_record(Kind::Touched, &path, &content, Put::Always).await
    }

    /// Which pages of the memory the last wake needed first, if that was noted.
    ///
    /// # Errors
    /// If the store cannot be asked, or the note is damaged.
    pub async fn touched(&self, service: &ServiceName) -> Result<Option<PageSet>, ObjectError> {
        let path = touched_path(service);
        match self.read_record(Kind::Touched, &path, TOUCHED_BYTES_MAX).await {
            Err(ObjectError::Missing { .. }) => Ok(None),
            read => decode_set(&read?).map(Some).map_err(ObjectError::damaged(&path)),
        }
    }

    /// Manifests of all versions in `ids`, and which of them cannot be read.
    pub(crate) async fn manifests(
        &self,
        ids: Vec<(Shelf, VersionId)>,
    ) -> Result<Vec<(Shelf, Manifest)>, ObjectError> {
        let read = async |(shelf, id): (Shelf, VersionId)| {
            let path = shelf.path(&id);
            match self.objects.get(&path, MANIFEST_OBJECT_BYTES_MAX).await {
                Err(ObjectError::Missing { .. }) => Ok(None),
                Err(error) => Err(error),
                Ok((bytes, _)) => Manifest::decode(&bytes, &id, &self.keys)
                    .map(|manifest| Some((shelf, manifest)))
                    .map_err(ObjectError::damaged(&path)),
            }
        };
        let read = stream::iter(ids).map(read).buffered(self.parallel).try_filter_map(async |m| Ok(m));
        read.try_collect().await
    }
}
