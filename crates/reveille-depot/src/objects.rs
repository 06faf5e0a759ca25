//! The object store as the depot uses it: every request has a limit on its time and on what it brings, and an error that
//! names the object. The only place that talks to `object_store`.
//!
//! Conditional puts are what ownership and the order of writing rest on. S3, Azure and GCS have them. A directory has
//! one kind only, "not if it exists" (a hard link); for "only if it is still this" a lock file beside the objects is
//! held meanwhile, which is as good as the file system's locks between hosts are.

use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, UpdateVersion,
};

use crate::format::Fault;
use crate::names::below;

/// A request that takes longer has failed. What is transferred at once is about 1 MiB, a manifest 48 MiB.
pub const REQUEST_MS_MAX: u64 = 120_000;
/// Most objects of one listing: 1 TiB of memory in full chunks, and as many again.
pub const LISTED_MAX: usize = 1 << 21;
/// The lock file of a depot in a directory. No object is called like this.
const LOCK_FILE: &str = ".lock";

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectError {
    /// There is no such object.
    #[error("`{path}` is not in the depot")]
    Missing {
        /// Its path.
        path: String,
    },
    /// There is one already.
    #[error("`{path}` is in the depot already")]
    Exists {
        /// Its path.
        path: String,
    },
    /// It is not what it was when it was read.
    #[error("`{path}` was changed meanwhile")]
    Changed {
        /// Its path.
        path: String,
    },
    /// The store refuses or cannot be reached. The text holds no query strings, which can be credentials.
    #[error("cannot {doing} `{path}`: {why}")]
    Store {
        /// `read`, `write`, `list` or `delete`.
        doing: &'static str,
        /// The object's path.
        path: String,
        /// What the store says.
        why: String,
    },
    /// The store does not answer.
    #[error("cannot {doing} `{path}`: no answer within {after_ms} ms")]
    TimedOut {
        /// As above.
        doing: &'static str,
        /// The object's path.
        path: String,
        /// How long was waited.
        after_ms: u64,
    },
    /// More than can be right.
    #[error("`{path}` has {found} bytes, at most {max} are possible")]
    TooLarge {
        /// Its path.
        path: String,
        /// How many there are, at least.
        found: u64,
        /// How many there may be.
        max: u64,
    },
    /// More objects than one listing may have.
    #[error("below `{path}` are more than {LISTED_MAX} objects")]
    TooMany {
        /// What was listed.
        path: String,
    },
    /// Not what was written.
    #[error("`{path}` is damaged: {fault}")]
    Damaged {
        /// Its path.
        path: String,
        /// What is wrong, and where.
        fault: Fault,
    },
}

impl ObjectError {
    /// Whether there is no such object.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    pub(crate) fn damaged(path: &str) -> impl FnOnce(Fault) -> Self {
        let path = path.to_owned();
        move |fault| Self::Damaged { path, fault }
    }
}

/// How an object is put.
#[derive(Debug, Clone)]
pub(crate) enum Put {
    /// Whatever is there.
    Always,
    /// If there is none.
    Create,
    /// If it is still what was read.
    Replace(Seen),
}

/// What an object was when it was read.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    version: UpdateVersion,
    bytes: Bytes,
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the depot.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the store's clock, in ms since 1970.
    pub written_ms: u64,
}

/// The store, below the depot's prefix.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Of a depot in a directory.
    directory: Option<PathBuf>,
}

impl Objects {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: Path, directory: Option<PathBuf>) -> Self {
        Self { store, prefix, directory }
    }

    async fn within<T>(
        &self,
        doing: &'static str,
        path: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, ObjectError> {
        match tokio::time::timeout(Duration::from_millis(REQUEST_MS_MAX), request).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(translate(doing, path, &error)),
            Err(_) => Err(ObjectError::TimedOut { doing, path: path.to_owned(), after_ms: REQUEST_MS_MAX }),
        }
    }

    /// Reads an object of at most `max` bytes.
    pub(crate) async fn get(&self, path: &str, max: u64) -> Result<(Bytes, Seen), ObjectError> {
        let (bytes, meta) = self.get_options(path, max, GetOptions::default()).await?;
        let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
        Ok((bytes.clone(), Seen { version, bytes }))
    }

    /// Reads a range, or as much of it as there is.
    pub(crate) async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let max = range.end - range.start;
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        Ok(self.get_options(path, max, options).await?.0)
    }

    async fn get_options(
        &self,
        path: &str,
        max: u64,
        options: GetOptions,
    ) -> Result<(Bytes, ObjectMeta), ObjectError> {
        let too_large = |found| ObjectError::TooLarge { path: path.to_owned(), found, max };
        let place = below(&self.prefix, path);
        let request = async {
            let got = self.store.get_opts(&place, options).await?;
            let (meta, expected) = (got.meta.clone(), got.range.end - got.range.start);
            if expected > max {
                return Ok(Err(expected));
            }
            // No more is kept than was announced, whatever comes.
            let mut bytes = BytesMut::with_capacity(usize::try_from(expected).unwrap_or_default());
            let mut pieces = got.into_stream();
            while let Some(piece) = pieces.next().await {
                bytes.extend_from_slice(&piece?);
                if bytes.len() as u64 > max {
                    return Ok(Err(bytes.len() as u64));
                }
            }
            Ok(Ok((bytes.freeze(), meta)))
        };
        self.within("read", path, request).await?.map_err(too_large)
    }

    /// What a listing would say of the object.
    pub(crate) async fn head(&self, path: &str) -> Result<Listed, ObjectError> {
        let place = below(&self.prefix, path);
        let meta = self.within("read", path, self.store.head(&place)).await?;
        Ok(listed(path.to_owned(), &meta))
    }

    pub(crate) async fn put(&self, path: &str, bytes: Bytes, how: Put) -> Result<(), ObjectError> {
        let mode = match how {
            Put::Always => PutMode::Overwrite,
            Put::Create => PutMode::Create,
            Put::Replace(seen) => match &self.directory {
                Some(directory) => return self.replace_locked(directory.clone(), path, bytes, seen).await,
                None => PutMode::Update(seen.version),
            },
        };
        self.put_mode(path, bytes, mode).await
    }

    async fn put_mode(&self, path: &str, bytes: Bytes, mode: PutMode) -> Result<(), ObjectError> {
        let place = below(&self.prefix, path);
        let options = PutOptions { mode, ..PutOptions::default() };
        let request = self.store.put_opts(&place, PutPayload::from_bytes(bytes), options);
        self.within("write", path, request).await.map(|_| ())
    }

    /// In a directory: nobody who asks for the lock replaces an object meanwhile.
    async fn replace_locked(
        &self,
        directory: PathBuf,
        path: &str,
        bytes: Bytes,
        seen: Seen,
    ) -> Result<(), ObjectError> {
        let failed = |why: String| ObjectError::Store { doing: "write", path: path.to_owned(), why };
        let lock = move || -> std::io::Result<File> {
            let file =
                File::options().create(true).truncate(false).write(true).open(directory.join(LOCK_FILE))?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            Ok(file)
        };
        let locking = tokio::task::spawn_blocking(lock);
        let locked = match tokio::time::timeout(Duration::from_millis(REQUEST_MS_MAX), locking).await {
            Ok(Ok(locked)) => locked.map_err(|error| failed(format!("its lock file: {error}")))?,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => {
                let path = path.to_owned();
                return Err(ObjectError::TimedOut { doing: "write", path, after_ms: REQUEST_MS_MAX });
            }
        };
        let changed = || ObjectError::Changed { path: path.to_owned() };
        match self.get(path, seen.bytes.len() as u64).await {
            Ok((now, _)) if now == seen.bytes => {}
            Ok(_) | Err(ObjectError::Missing { .. } | ObjectError::TooLarge { .. }) => return Err(changed()),
            Err(error) => return Err(error),
        }
        let done = self.put_mode(path, bytes, PutMode::Overwrite).await;
        drop(locked);
        done
    }

    /// Deletes; nothing to delete is no error.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), ObjectError> {
        let place = below(&self.prefix, path);
        match self.within("delete", path, self.store.delete(&place)).await {
            Err(ObjectError::Missing { .. }) => Ok(()),
            done => done,
        }
    }

    /// All objects below `path`.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Listed>, ObjectError> {
        let place = below(&self.prefix, path);
        let mut stream = self.store.list(Some(&place));
        let mut all = Vec::new();
        loop {
            let next = async { stream.next().await.transpose() };
            let Some(meta) = self.within("list", path, next).await? else { return Ok(all) };
            // What others have put there is not ours.
            let Some(parts) = meta.location.prefix_match(&self.prefix) else { continue };
            let relative = parts.collect::<Path>().to_string();
            all.push(listed(relative, &meta));
            if all.len() > LISTED_MAX {
                return Err(ObjectError::TooMany { path: path.to_owned() });
            }
        }
    }

    /// The names of the directories in `path`.
    pub(crate) async fn directories(&self, path: &str) -> Result<Vec<String>, ObjectError> {
        let place = below(&self.prefix, path);
        let found = match self.within("list", path, self.store.list_with_delimiter(Some(&place))).await {
            Err(ObjectError::Missing { .. }) => return Ok(vec![]),
            found => found?,
        };
        Ok(found.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// The directory of a depot in a directory.
    pub(crate) fn directory(&self) -> Option<&std::path::Path> {
        self.directory.as_deref()
    }
}

fn listed(path: String, meta: &ObjectMeta) -> Listed {
    let written_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or_default();
    Listed { path, bytes: meta.size, written_ms }
}

fn translate(doing: &'static str, path: &str, error: &StoreError) -> ObjectError {
    let path = path.to_owned();
    if let StoreError::NotFound { .. } = error {
        return ObjectError::Missing { path };
    }
    if let StoreError::AlreadyExists { .. } = error {
        return ObjectError::Exists { path };
    }
    if let StoreError::Precondition { .. } = error {
        return ObjectError::Changed { path };
    }
    ObjectError::Store { doing, path, why: without_queries(&whole(error)) }
}

/// An error with its causes, each said once.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// URLs lose what follows their question mark: a signature of Azure's is there.
pub(crate) fn without_queries(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut in_query = false;
    for c in text.chars() {
        if in_query && (c.is_whitespace() || matches!(c, ')' | '"' | '\'' | '`' | '>')) {
            in_query = false;
        }
        if !in_query {
            clean.push(c);
        }
        if c == '?' {
            in_query = true;
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_of_urls_are_not_told() {
        let text = "error sending request for url (http://x/y?sig=SECRET&a=b): refused, why? nobody knows";
        assert_eq!(
            without_queries(text),
            "error sending request for url (http://x/y?): refused, why? nobody knows"
        );
    }

    async fn in_a_directory(temp: &tempfile::TempDir) -> Objects {
        let store = object_store::local::LocalFileSystem::new_with_prefix(temp.path()).unwrap();
        Objects::new(Arc::new(store), Path::default(), Some(temp.path().to_owned()))
    }

    #[tokio::test]
    async fn a_directory_replaces_only_what_is_still_there() {
        let temp = tempfile::tempdir().unwrap();
        let objects = in_a_directory(&temp).await;
        objects.put("a/b", Bytes::from_static(b"1"), Put::Create).await.unwrap();
        let exists = objects.put("a/b", Bytes::from_static(b"2"), Put::Create).await;
        assert!(matches!(exists, Err(ObjectError::Exists { .. })), "{exists:?}");
        let (_, seen) = objects.get("a/b", 10).await.unwrap();
        objects.put("a/b", Bytes::from_static(b"2"), Put::Replace(seen.clone())).await.unwrap();
        let late = objects.put("a/b", Bytes::from_static(b"3"), Put::Replace(seen)).await;
        assert!(matches!(late, Err(ObjectError::Changed { .. })), "{late:?}");
        assert_eq!(objects.get("a/b", 10).await.unwrap().0, "2");
        assert!(matches!(objects.get("a/b", 0).await, Err(ObjectError::TooLarge { found: 1, max: 0, .. })));
        assert_eq!(objects.list("a").await.unwrap().len(), 1);
        assert_eq!(objects.directories("").await.unwrap(), ["a"]);
        objects.delete("a/b").await.unwrap();
        objects.delete("a/b").await.unwrap();
        assert!(objects.get("a/b", 10).await.unwrap_err().is_missing());
        assert_eq!(objects.list("nothing").await.unwrap(), []);
        assert_eq!(objects.directories("nothing").await.unwrap(), Vec::<String>::new());
    }
}
