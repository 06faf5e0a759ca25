//! Fetching a version into a directory: all of it, checked, durable, and only then under its name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustix::fs::{FlockOperation, flock};

use crate::depot::{Depot, Stage, Watch};
use crate::format::chunk::{CHUNK_BYTES_MAX, Decoded, decode};
use crate::format::manifest::Manifest;
use crate::format::map::{ChunkRef, Run};
use crate::names::VersionId;
use crate::objects::ObjectError;
use crate::pages::{ContentSum, PAGE, PAGE_BYTES, PageSet};
use reveille_failpoint::failpoint;

/// Which chunks are fetched first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchOrder {
    /// As they are in the manifest.
    AsStored,
    /// The ones with the most pages of the working set of the service's last wake, as it was noted in the depot.
    WorkingSetFirst,
    /// The ones with the most of these pages of the memory.
    First(PageSet),
}

/// Why a version was not fetched. Nothing is left of it but a directory `….partial`, which the next fetch takes away.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store, or what it has.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Something is there already.
    #[error("`{}` is there already", .0.display())]
    Exists(PathBuf),
    /// The same version is being fetched to the same place.
    #[error("`{}` is being fetched already", .0.display())]
    Busy(PathBuf),
    /// A file cannot be written.
    #[error("`{}` cannot be written at byte {at}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// All chunks are right, and together they are not the part.
    #[error(
        "part `{part}` of {id} is not what its manifest says: its sum is {found}, expected is {expected}"
    )]
    Sum {
        /// Which version.
        id: VersionId,
        /// Which part.
        part: String,
        /// What the pages sum up to.
        found: String,
        /// What they should.
        expected: String,
    },
    /// A chunk has not the pages that the manifest says.
    #[error("chunk `{path}` of {id} has {found} pages, its manifest says {expected}")]
    ChunkPages {
        /// Which version.
        id: VersionId,
        /// Where the chunk is.
        path: String,
        /// How many it has.
        found: usize,
        /// How many it should have.
        expected: usize,
    },
    /// Somebody asked for that.
    #[error("{0} was cancelled")]
    Cancelled(VersionId),
}

/// Where the pages of one chunk belong: the number of a part, and the run.
type Uses = Vec<(usize, Run)>;

/// The files of the parts.
type Files = Arc<[(PathBuf, File)]>;

/// A directory that is filled, and goes away if it does not become the one that was asked for.
struct Partial {
    path: PathBuf,
    /// Holds the lock on it.
    _lock: File,
    done: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // What cannot be taken away now is taken away by the next fetch.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn failed(path: &Path, at: u64) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Write { path, at, source }
}

/// What each chunk of a version is used for.
pub(crate) fn uses(manifest: &Manifest) -> Vec<Uses> {
    let mut uses: Vec<Uses> = vec![Vec::new(); manifest.chunks.len()];
    for (index, part) in manifest.parts.iter().enumerate() {
        for run in part.map.runs() {
            if let Some(uses) = usize::try_from(run.chunk).ok().and_then(|chunk| uses.get_mut(chunk)) {
                uses.push((index, *run));
            }
        }
    }
    uses
}

fn used_bytes(uses: &Uses) -> u64 {
    uses.iter().map(|(_, run)| u64::from(run.count) * PAGE).sum()
}

/// Chunks in the order in which they are fetched, and how many of them have pages of the working set.
fn ordered(manifest: &Manifest, first: &PageSet) -> (Vec<(ChunkRef, Uses)>, usize) {
    let memory = manifest.parts.iter().position(|part| part.name == "memory");
    let wanted = |uses: &Uses| -> u64 {
        let of_memory = uses.iter().filter(|(part, _)| Some(*part) == memory);
        of_memory.map(|(_, run)| first.overlap(run.page..run.end())).sum()
    };
    let mut all: Vec<(u64, (ChunkRef, Uses))> = manifest
        .chunks
        .iter()
        .zip(uses(manifest))
        .map(|(chunk, uses)| (wanted(&uses), (*chunk, uses)))
        .collect();
    all.sort_by_key(|(wanted, _)| std::cmp::Reverse(*wanted));
    let working_set = all.partition_point(|(wanted, _)| *wanted > 0);
    (all.into_iter().map(|(_, chunk)| chunk).collect(), working_set)
}

impl Depot {
    /// Fetches a version to the directory `to`, which must not be there: one sparse file for each part. It appears
    /// when all is there, checked and durable.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(
        &self,
        id: &VersionId,
        to: &Path,
        order: FetchOrder,
        watch: &Watch,
    ) -> Result<Manifest, FetchError> {
        let manifest = Arc::new(self.manifest(id).await?);
        let first = match order {
            FetchOrder::AsStored => PageSet::new(),
            FetchOrder::First(pages) => pages,
            // A hint: without it the order is another one, and nothing else is.
            FetchOrder::WorkingSetFirst => self.touched(&id.service).await.ok().flatten().unwrap_or_default(),
        };
        failpoint!("depot.fetch.begin");
        let (to, made) = (to.to_owned(), Arc::clone(&manifest));
        let target = to.clone();
        let (mut partial, files) = self.work("a directory", move || make_files(&target, &made)).await??;
        let sums = self.fetch_chunks(&manifest, &first, &files, watch).await?;
        for (part, sum) in manifest.parts.iter().zip(sums) {
            let (found, expected) = (sum.to_hex(), part.content.clone());
            if found != expected {
                return Err(FetchError::Sum { id: id.clone(), part: part.name.clone(), found, expected });
            }
        }
        failpoint!("depot.fetch.fetched");
        let fetched = Arc::clone(&manifest);
        self.work("a directory", move || finish(&mut partial, &fetched, &files, &to)).await??;
        failpoint!("depot.fetch.done");
        Ok(Arc::unwrap_or_clone(manifest))
    }

    async fn fetch_chunks(
        &self,
        manifest: &Manifest,
        first: &PageSet,
        files: &Files,
        watch: &Watch,
    ) -> Result<Vec<ContentSum>, FetchError> {
        let id = &manifest.about.id;
        let (chunks, working_set) = ordered(manifest, first);
        let bytes =
            |chunks: &[(ChunkRef, Uses)]| chunks.iter().map(|(_, uses)| used_bytes(uses)).sum::<u64>();
        let (working_bytes, total_bytes) =
            (bytes(chunks.get(..working_set).unwrap_or_default()), bytes(&chunks));
        let mut sums = vec![ContentSum::default(); manifest.parts.len()];
        let mut fetching = stream::iter(chunks)
            .map(|(chunk, uses)| self.fetch_chunk(id, chunk, uses, files, watch))
            // In order of completion would not tell when the working set is there.
            .buffered(self.parallel);
        let mut done = 0;
        while let Some((bytes, of_chunk)) = fetching.try_next().await? {
            for (part, sum) in of_chunk {
                if let Some(all) = sums.get_mut(part) {
                    all.merge(sum);
                }
            }
            done += bytes;
            if done <= working_bytes {
                watch.tell(Stage::WorkingSet, done, working_bytes);
            }
            watch.tell(Stage::Fetch, done, total_bytes);
        }
        Ok(sums)
    }

    async fn fetch_chunk(
        &self,
        id: &VersionId,
        chunk: ChunkRef,
        uses: Uses,
        files: &Files,
        watch: &Watch,
    ) -> Result<(u64, Vec<(usize, ContentSum)>), FetchError> {
        if watch.cancel.is_cancelled() {
            return Err(FetchError::Cancelled(id.clone()));
        }
        failpoint!("depot.fetch.chunk");
        let path = chunk.name.path();
        let (bytes, _) = self.objects.get(&path, CHUNK_BYTES_MAX as u64).await?;
        let (keys, files, id, at) = (Arc::clone(&self.keys), Arc::clone(files), id.clone(), path.clone());
        let write = move || {
            let decoded = decode(&bytes, chunk.name, &keys).map_err(ObjectError::damaged(&at))?;
            let (found, expected) = (decoded.hashes.len(), usize::from(chunk.pages));
            if found != expected {
                return Err(FetchError::ChunkPages { id, path: at, found, expected });
            }
            let sums = write_pages(&decoded, &uses, &files)?;
            Ok((used_bytes(&uses), sums))
        };
        self.work(&path, write).await?
    }
}

/// Writes a chunk's pages to their places; the sums of what was written, by part.
fn write_pages(
    chunk: &Decoded,
    uses: &Uses,
    files: &[(PathBuf, File)],
) -> Result<Vec<(usize, ContentSum)>, FetchError> {
    let mut sums: Vec<(usize, ContentSum)> = Vec::new();
    for (part, run) in uses {
        let (from, count) = (usize::from(run.place), usize::from(run.count));
        // A run points into its chunk: that was checked when the manifest was read, and the chunk's length just now.
        let pages = chunk.pages.get(from * PAGE_BYTES..(from + count) * PAGE_BYTES).unwrap_or_default();
        let hashes = chunk.hashes.get(from..from + count).unwrap_or_default();
        let Some((path, file)) = files.get(*part) else { continue };
        let at = run.page * PAGE;
        file.write_all_at(pages, at).map_err(failed(path, at))?;
        if sums.last().is_none_or(|(last, _)| last != part) {
            sums.push((*part, ContentSum::default()));
        }
        if let Some((_, sum)) = sums.last_mut() {
            (run.page..).zip(hashes).for_each(|(page, hash)| sum.add(page, *hash));
        }
    }
    Ok(sums)
}

/// The directory under its temporary name, and the files in it, all holes.
fn make_files(to: &Path, manifest: &Manifest) -> Result<(Partial, Files), FetchError> {
    if to.symlink_metadata().is_ok() {
        return Err(FetchError::Exists(to.to_owned()));
    }
    let mut path = to.as_os_str().to_owned();
    path.push(".partial");
    let path = PathBuf::from(path);
    let lock = locked_directory(&path)?.ok_or_else(|| FetchError::Busy(to.to_owned()))?;
    let partial = Partial { path: path.clone(), _lock: lock, done: false };
    let mut files = Vec::new();
    for part in &manifest.parts {
        let path = path.join(&part.name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(failed(&path, 0))?;
        file.set_len(part.bytes).map_err(failed(&path, part.bytes))?;
        files.push((path, file));
    }
    Ok((partial, files.into()))
}

/// An empty directory that nobody else fills; `None` if somebody does.
fn locked_directory(path: &Path) -> Result<Option<File>, FetchError> {
    for _ in 0..2 {
        match fs::DirBuilder::new().create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(path, 0)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let lock = File::open(path).map_err(failed(path, 0))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let mut entries = fs::read_dir(path).map_err(failed(path, 0))?;
        if entries.next().is_none() {
            return Ok(Some(lock));
        }
        // What a fetch that was killed has left.
        fs::remove_dir_all(path).map_err(failed(path, 0))?;
    }
    Ok(None)
}

/// Makes everything durable, then gives the directory its name.
fn finish(
    partial: &mut Partial,
    manifest: &Manifest,
    files: &[(PathBuf, File)],
    to: &Path,
) -> Result<(), FetchError> {
    for ((path, file), part) in files.iter().zip(&manifest.parts) {
        // The last page was written whole, with what is behind the part's end.
        file.set_len(part.bytes).map_err(failed(path, part.bytes))?;
        file.sync_all().map_err(failed(path, 0))?;
    }
    File::open(&partial.path).and_then(|dir| dir.sync_all()).map_err(failed(&partial.path, 0))?;
    failpoint!("depot.fetch.synced");
    if to.symlink_metadata().is_ok() {
        return Err(FetchError::Exists(to.to_owned()));
    }
    fs::rename(&partial.path, to).map_err(failed(to, 0))?;
    partial.done = true;
    if let Some(parent) = to.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed(parent, 0))?;
    }
    Ok(())
}
