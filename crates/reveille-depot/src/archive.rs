//! A version as one file, to be carried to another depot: a tar archive of the objects as they are stored, so what is
//! sealed stays sealed. Whoever imports it needs the key, and seals with its own.
//!
//! ```text
//! version       {"service": …, "number": …}
//! manifest      the manifest
//! chunks/…      each chunk, in the order of the manifest's table
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use crate::depot::{Depot, MANIFEST_OBJECT_BYTES_MAX, Stage, Watch, salt};
use crate::format::Fault;
use crate::format::chunk::{self, CHUNK_BYTES_MAX};
use crate::format::manifest::{Description, Manifest};
use crate::names::{ChunkName, Shelf, VersionId};
use crate::objects::{ObjectError, Put};
use crate::pages::PAGE;
use crate::put::{PutError, PutSummary};
use reveille_failpoint::failpoint;

/// Largest first entry.
const VERSION_BYTES_MAX: u64 = 4096;
/// Chunks that were read from an archive and are not in the depot yet.
const READ_AHEAD: usize = 4;

/// Why a version was not exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The store, or what it has.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It cannot be put.
    #[error(transparent)]
    Put(#[from] PutError),
    /// The file cannot be read or written.
    #[error("`{}`: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no archive of a version.
    #[error("`{}` is no version that can be imported: entry {entry}: {why}", path.display())]
    Entry {
        /// Which file.
        path: PathBuf,
        /// The number of the entry, the first is 0.
        entry: usize,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// Somebody asked for that.
    #[error("{0} was cancelled")]
    Cancelled(VersionId),
}

/// An entry of an archive.
struct Entry {
    name: String,
    bytes: Bytes,
}

fn at(path: &Path) -> impl Fn(io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |source| ArchiveError::File { path: path.clone(), source }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, name, bytes)
}

impl Depot {
    /// Writes a version to the file `to`, which must not be there. Each chunk is checked on the way.
    ///
    /// # Errors
    /// [`ArchiveError`]; the file is not there then.
    pub async fn export(&self, id: &VersionId, to: &Path, watch: &Watch) -> Result<(), ArchiveError> {
        let path = Shelf::Versions.path(id);
        let (object, _) = self.objects.get(&path, MANIFEST_OBJECT_BYTES_MAX).await?;
        let manifest = Manifest::decode(&object, id, &self.keys).map_err(ObjectError::damaged(&path))?;
        let mut partial = to.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if to.symlink_metadata().is_ok() {
            return Err(at(to)(io::ErrorKind::AlreadyExists.into()));
        }
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
        let mut tar = tar::Builder::new(BufWriter::new(file.map_err(at(&partial))?));
        let version = serde_json::to_vec(id).map_err(|error| at(to)(error.into()))?;
        append(&mut tar, "version", &version).map_err(at(&partial))?;
        append(&mut tar, "manifest", &object).map_err(at(&partial))?;
        let done = match self.export_chunks(id, &manifest, tar, &partial, watch).await {
            Ok(tar) => {
                self.work("an archive", {
                    let (partial, to) = (partial.clone(), to.to_owned());
                    move || finish(tar, &partial, &to)
                })
                .await?
            }
            Err(error) => Err(error),
        };
        if done.is_err() {
            // It may be there or not; the next export overwrites it.
            let _ = fs::remove_file(&partial);
        }
        done
    }

    async fn export_chunks<W: Write + Send + 'static>(
        &self,
        id: &VersionId,
        manifest: &Manifest,
        mut tar: tar::Builder<W>,
        partial: &Path,
        watch: &Watch,
    ) -> Result<tar::Builder<W>, ArchiveError> {
        let total = manifest.chunks.iter().map(|chunk| u64::from(chunk.pages) * PAGE).sum();
        let read = async |name: ChunkName| {
            let path = name.path();
            let (bytes, _) = self.objects.get(&path, CHUNK_BYTES_MAX as u64).await?;
            let (keys, object) = (Arc::clone(&self.keys), bytes.clone());
            let checked = self.work(&path, move || chunk::decode(&object, name, &keys)).await?;
            checked.map_err(ObjectError::damaged(&path))?;
            Ok::<_, ArchiveError>((path, bytes))
        };
        let chunks: Vec<_> = manifest.chunks.iter().map(|chunk| (chunk.name, chunk.pages)).collect();
        let mut reading = stream::iter(chunks)
            .map(async |(name, pages)| read(name).await.map(|read| (read, pages)))
            .buffered(self.parallel);
        let mut done = 0;
        while let Some(((name, bytes), pages)) = reading.try_next().await? {
            if watch.cancel.is_cancelled() {
                return Err(ArchiveError::Cancelled(id.clone()));
            }
            // Not as a piece of work that waits for its turn: those of the chunks that are read ahead wait before it,
            // and nobody goes on with them meanwhile.
            let appended =
                tokio::task::spawn_blocking(move || append(&mut tar, &name, &bytes).map(|()| tar)).await;
            failpoint!("depot.export.chunk");
            tar = appended.map_err(io::Error::other).flatten().map_err(at(partial))?;
            done += u64::from(pages) * PAGE;
            watch.tell(Stage::Fetch, done, total);
        }
        Ok(tar)
    }

    /// Puts the version of an archive as `id` in `epoch`, every chunk checked and sealed anew.
    ///
    /// # Errors
    /// [`ArchiveError`]; the version is not in the depot then.
    pub async fn import(
        &self,
        from: &Path,
        id: &VersionId,
        epoch: u64,
        watch: &Watch,
    ) -> Result<PutSummary, ArchiveError> {
        let (to_here, mut entries) = mpsc::channel(READ_AHEAD);
        let path = from.to_owned();
        let reader = tokio::task::spawn_blocking(move || read_entries(&path, &to_here));
        let done = self.import_entries(from, id, epoch, watch, &mut entries).await;
        // The reader ends when nobody takes what it reads.
        drop(entries);
        let read = reader.await.map_err(|error| at(from)(io::Error::other(error)))?;
        // What the reader found explains what came too short.
        read.and(done)
    }

    async fn import_entries(
        &self,
        from: &Path,
        id: &VersionId,
        epoch: u64,
        watch: &Watch,
        entries: &mut mpsc::Receiver<Entry>,
    ) -> Result<PutSummary, ArchiveError> {
        let wrong = |entry, why: String| ArchiveError::Entry { path: from.to_owned(), entry, why };
        let mut next = async |entry: usize, expected: &str| match entries.recv().await {
            Some(found) if found.name == expected => Ok(found.bytes),
            Some(found) => Err(wrong(entry, format!("it is `{}`, expected is `{expected}`", found.name))),
            None => Err(wrong(entry, format!("the archive ends, expected is `{expected}`"))),
        };
        let version = next(0, "version").await?;
        let was: VersionId = serde_json::from_slice(&version).map_err(|error| wrong(0, error.to_string()))?;
        let object = next(1, "manifest").await?;
        let mut manifest =
            Manifest::decode(&object, &was, &self.keys).map_err(|fault| wrong(1, fault.to_string()))?;
        manifest.about = Description { id: id.clone(), epoch, parent: None, ..manifest.about };
        let about = manifest.about.clone();
        let order = self.order(&about, watch).await?;
        self.check_owner(&order).await?;
        if self.check_number(&order).await?.is_some() {
            return Err(PutError::Taken { id: id.clone(), taken: id.number }.into());
        }
        let newest = self.keys.newest().map(crate::seal::SealKey::id);
        manifest.keys = newest.into_iter().collect();
        (manifest.own_bytes, manifest.shared_bytes) = (0, 0);
        let total = manifest.chunks.iter().map(|chunk| u64::from(chunk.pages) * PAGE).sum();
        let mut done = 0;
        for (index, chunk) in manifest.chunks.iter_mut().enumerate() {
            order.check_cancel()?;
            let bytes = next(index + 2, &chunk.name.path()).await?;
            let (name, pages) = (chunk.name, usize::from(chunk.pages));
            let (keys, level, salt) = (Arc::clone(&self.keys), self.zstd_level, salt("chunks")?);
            let again = move || {
                let decoded = chunk::decode(&bytes, name, &keys)?;
                if decoded.hashes.len() != pages {
                    return Err(Fault::new(0, format!("{} pages instead of {pages}", decoded.hashes.len())));
                }
                chunk::encode(&decoded.pages, salt, keys.newest(), level)
            };
            let encoded = self.work("a chunk", again).await?;
            let encoded = encoded.map_err(|fault| wrong(index + 2, fault.to_string()))?;
            chunk.name = encoded.name;
            chunk.key = u16::from(newest.is_some());
            chunk.stored_bytes = u32::try_from(encoded.bytes.len()).unwrap_or(u32::MAX);
            manifest.own_bytes += encoded.bytes.len() as u64;
            failpoint!("depot.import.chunk");
            self.objects.put(&encoded.name.path(), encoded.bytes.into(), Put::Always).await?;
            done += pages as u64 * PAGE;
            watch.tell(Stage::Store, done, total);
        }
        Ok(self.publish(&order, manifest).await?)
    }
}

/// Which version the file holds.
///
/// # Errors
/// [`ArchiveError`] if it cannot be read or is no archive of a version.
pub fn version_of(path: &Path) -> Result<VersionId, ArchiveError> {
    let wrong = |why: String| ArchiveError::Entry { path: path.to_owned(), entry: 0, why };
    let mut archive = tar::Archive::new(File::open(path).map_err(at(path))?);
    let first = archive.entries().map_err(at(path))?.next();
    let first = first.ok_or_else(|| wrong("the archive is empty".to_owned()))?;
    let first = first.map_err(|error| wrong(error.to_string()))?;
    let name = String::from_utf8_lossy(&first.path_bytes()).into_owned();
    if name != "version" {
        return Err(wrong(format!("it is `{name}`, expected is `version`")));
    }
    let mut text = Vec::new();
    first.take(VERSION_BYTES_MAX).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))
}

fn finish<W: Write>(tar: tar::Builder<BufWriter<W>>, partial: &Path, to: &Path) -> Result<(), ArchiveError> {
    let mut writer = tar.into_inner().map_err(at(partial))?;
    writer.flush().map_err(at(partial))?;
    File::open(partial).and_then(|file| file.sync_all()).map_err(at(partial))?;
    fs::rename(partial, to).map_err(at(to))?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(at(parent))
}

/// Reads entry after entry until one is wrong or nobody takes them.
fn read_entries(path: &Path, to: &mpsc::Sender<Entry>) -> Result<(), ArchiveError> {
    let wrong = |entry, why: String| ArchiveError::Entry { path: path.to_owned(), entry, why };
    let mut archive = tar::Archive::new(File::open(path).map_err(at(path))?);
    for (number, entry) in archive.entries().map_err(at(path))?.enumerate() {
        let mut entry = entry.map_err(|error| wrong(number, error.to_string()))?;
        let limit = match number {
            0 => VERSION_BYTES_MAX,
            1 => MANIFEST_OBJECT_BYTES_MAX,
            _ => CHUNK_BYTES_MAX as u64,
        };
        if entry.size() > limit {
            return Err(wrong(
                number,
                format!("it has {} bytes, at most {limit} are possible", entry.size()),
            ));
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut bytes = Vec::new();
        entry
            .by_ref()
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| wrong(number, error.to_string()))?;
        if bytes.len() as u64 != entry.size() {
            return Err(wrong(number, format!("it ends after {} bytes of {}", bytes.len(), entry.size())));
        }
        if to.blocking_send(Entry { name, bytes: bytes.into() }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
