//! An object store in memory, with a clock of its own, that loses answers, fails, and stops answering for good: what a
//! killed process sees of it.

#![allow(dead_code, missing_docs, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::Dice;

#[derive(Debug, Clone)]
pub struct Object {
    pub bytes: Bytes,
    pub written_ms: u64,
    pub tag: u64,
}

#[derive(Debug, Default)]
pub struct Inside {
    pub objects: BTreeMap<String, Object>,
    /// The store's clock.
    pub now_ms: u64,
    /// A clock that nobody sets.
    pub uptime_ms: u64,
    pub tags: u64,
    /// Requests until the one at which the process is killed.
    pub requests_to_kill: Option<u64>,
    /// Of a hundred requests so many fail, some of them after they were carried out.
    pub fail_percent: u64,
    /// Whether the clocks may go on by a lot, and the store's clock be set, at the next chunk.
    pub jumps: bool,
    /// Every write fails as on a full disk.
    pub full: bool,
    pub requests: u64,
    /// The next request for such a path waits.
    pub gate: Option<String>,
}

#[derive(Debug, Clone)]
pub struct World {
    pub inside: Arc<Mutex<Inside>>,
    dice: Arc<Mutex<u64>>,
    /// Told when the process is killed; everybody who waits is.
    pub killed: Arc<tokio::sync::Notify>,
    /// Told when a request waits at the gate, and by the test when it may go on.
    pub arrived: Arc<tokio::sync::Notify>,
    pub go_on: Arc<tokio::sync::Notify>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let inside = Inside { now_ms: 1_800_000_000_000, ..Inside::default() };
        Self {
            inside: Arc::new(Mutex::new(inside)),
            dice: Arc::new(Mutex::new(seed)),
            killed: Arc::default(),
            arrived: Arc::default(),
            go_on: Arc::default(),
        }
    }

    pub fn roll(&self, n: u64) -> u64 {
        let mut state = self.dice.lock().unwrap();
        let mut dice = Dice(*state);
        let number = dice.below(n);
        *state = dice.0;
        number
    }

    pub fn advance(&self, ms: u64) {
        let mut inside = self.inside.lock().unwrap();
        inside.now_ms += ms;
        inside.uptime_ms += ms;
    }

    /// Before a request is carried out: time passes, others get their turn, and perhaps it is the last one.
    async fn before(&self, path: &str) -> Result<bool> {
        for _ in 0..self.roll(4) {
            tokio::task::yield_now().await;
        }
        self.advance(self.roll(20_000));
        let waits = self.inside.lock().unwrap().gate.take_if(|gate| path.contains(gate.as_str()));
        if waits.is_some() {
            self.arrived.notify_one();
            self.go_on.notified().await;
        }
        let (mut killed, mut late) = (false, false);
        {
            let mut inside = self.inside.lock().unwrap();
            inside.requests += 1;
            if inside.jumps && path.contains("chunks/") {
                drop(inside);
                match self.roll(30) {
                    0 => self.advance(2_000_000),
                    1 => self.inside.lock().unwrap().now_ms += 8_000_000,
                    _ => {}
                }
                inside = self.inside.lock().unwrap();
            }
            if let Some(left) = &mut inside.requests_to_kill {
                *left = left.saturating_sub(1);
                killed = *left == 0;
                late = inside.tags.is_multiple_of(2);
            }
        }
        if killed && !late {
            self.die().await;
        }
        let fail = self.inside.lock().unwrap().fail_percent;
        if self.roll(100) < fail {
            if self.roll(2) == 0 {
                return Err(failure("it is not there just now"));
            }
            return Ok(true);
        }
        // Killed, but the request had gone out.
        Ok(killed)
    }

    /// The answer is lost.
    async fn after(&self, lost: bool) -> Result<()> {
        if !lost {
            return Ok(());
        }
        if self.inside.lock().unwrap().requests_to_kill == Some(0) {
            self.die().await;
        }
        Err(failure("the answer was lost"))
    }

    async fn die(&self) {
        self.killed.notify_waiters();
        std::future::pending::<()>().await;
    }

    fn meta(path: &str, object: &Object) -> ObjectMeta {
        let written = i64::try_from(object.written_ms).unwrap();
        let since_epoch = std::time::UNIX_EPOCH + std::time::Duration::from_millis(written.unsigned_abs());
        ObjectMeta {
            location: Path::from(path),
            last_modified: since_epoch.into(),
            size: object.bytes.len() as u64,
            e_tag: Some(object.tag.to_string()),
            version: None,
        }
    }

    fn matching(&self, prefix: Option<&Path>) -> Vec<ObjectMeta> {
        let inside = self.inside.lock().unwrap();
        let prefix = prefix.map(|path| format!("{path}/")).unwrap_or_default();
        let objects = inside.objects.iter().filter(|(path, _)| path.starts_with(&prefix));
        objects.map(|(path, object)| Self::meta(path, object)).collect()
    }
}

fn failure(why: &'static str) -> Error {
    Error::Generic { store: "world", source: why.into() }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("world")
    }
}

#[async_trait]
impl ObjectStore for World {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let path = location.to_string();
        let lost = self.before(&path).await?;
        let put = {
            let mut inside = self.inside.lock().unwrap();
            if inside.full {
                return Err(failure("No space left on device"));
            }
            let there = inside.objects.get(&path).map(|object| object.tag.to_string());
            let refused = || std::io::Error::other("refused").into();
            match (&opts.mode, there) {
                (PutMode::Create, Some(_)) => {
                    Err(Error::AlreadyExists { path: path.clone(), source: refused() })
                }
                (PutMode::Update(seen), there) if seen.e_tag != there => {
                    Err(Error::Precondition { path: path.clone(), source: refused() })
                }
                _ => {
                    inside.tags += 1;
                    let (written_ms, tag) = (inside.now_ms, inside.tags);
                    inside.objects.insert(path, Object { bytes: payload.into(), written_ms, tag });
                    Ok(PutResult {
                        e_tag: Some(tag.to_string()),
                        version: None,
                        extensions: Default::default(),
                    })
                }
            }
        };
        self.after(lost).await?;
        put
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(failure("not used"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let path = location.to_string();
        let lost = self.before(&path).await?;
        let object = self.inside.lock().unwrap().objects.get(&path).cloned();
        self.after(lost).await?;
        let missing = || Error::NotFound { path: path.clone(), source: "missing".into() };
        let object = object.ok_or_else(missing)?;
        let all = 0..object.bytes.len() as u64;
        let range = match &options.range {
            Some(range) => range.as_range(all.end).map_err(|_| failure("range"))?,
            None => all,
        };
        let slice = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let bytes = object.bytes.slice(slice);
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed()),
            meta: Self::meta(&path, &object),
            range,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let world = self.clone();
        let delete = move |location: Result<Path>| {
            let world = world.clone();
            async move {
                let location = location?;
                let path = location.to_string();
                let lost = world.before(&path).await?;
                let gone = world.inside.lock().unwrap().objects.remove(&path);
                world.after(lost).await?;
                let missing = || Error::NotFound { path, source: "missing".into() };
                gone.ok_or_else(missing).map(|_| location)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (world, prefix) = (self.clone(), prefix.cloned());
        let listing = async move {
            let done = async {
                let lost = world.before("list").await?;
                let all = world.matching(prefix.as_ref());
                world.after(lost).await?;
                Ok(all)
            };
            let all: Vec<Result<ObjectMeta>> = match done.await {
                Ok(all) => all.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            };
            stream::iter(all)
        };
        stream::once(listing).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let lost = self.before("list").await?;
        let start = prefix.map(|path| format!("{path}/")).unwrap_or_default();
        let mut common: Vec<Path> = Vec::new();
        for meta in self.matching(prefix) {
            if let Some((directory, _)) = meta.location.as_ref()[start.len()..].split_once('/') {
                let directory = Path::from(format!("{start}{directory}"));
                if !common.contains(&directory) {
                    common.push(directory);
                }
            }
        }
        self.after(lost).await?;
        Ok(ListResult { common_prefixes: common, objects: vec![], extensions: Default::default() })
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> Result<()> {
        Err(failure("not used"))
    }
}
