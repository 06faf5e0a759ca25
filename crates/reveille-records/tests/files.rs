//! From rows to files in a depot: what is written when, what is lost and counted, and what goes. The files are lines of text
//! here, so that none of it rests on their form.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what failed by failing"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reveille_core::model::Timestamp;
use reveille_depot::annex::Annex;
use reveille_depot::config::DepotConfig;
use reveille_depot::objects::ObjectError;
use reveille_records::{
    Encode, EncodeError, Kind, QueryRow, Records, RequestRow, Settings, Shelf, ShelfError, Source, prune,
};

/// 2026-11-23T06:50:47Z.
const NOW: Timestamp = Timestamp::from_ms(1_795_416_647_000);
const DAY_MS: u64 = 86_400_000;

fn query(at_ms: u64, name: &str) -> QueryRow {
    let (at, name) = (Timestamp::from_ms(at_ms), name.into());
    QueryRow { at, name, qtype: "A".into(), client: None, source: Source::Own, rcode: None }
}

fn request(user: &str) -> RequestRow {
    RequestRow {
        at: NOW,
        user: user.into(),
        group: None,
        service: "hello.vm.test".into(),
        runtime: None,
        seconds: 1.0,
        cpu_seconds: None,
        memory_bytes: None,
        io_bytes: None,
        tags: [].into(),
    }
}

/// A line a row.
struct Lines;

impl Encode for Lines {
    fn queries(&self, rows: &[QueryRow]) -> Result<Vec<u8>, EncodeError> {
        Ok(rows.iter().flat_map(|row| format!("{}\n", row.name).into_bytes()).collect())
    }

    fn requests(&self, rows: &[RequestRow]) -> Result<Vec<u8>, EncodeError> {
        Ok(rows.iter().flat_map(|row| format!("{}\n", row.user).into_bytes()).collect())
    }
}

/// A store that takes nothing while it is away.
#[derive(Default)]
struct Store {
    files: Mutex<BTreeMap<String, Bytes>>,
    is_away: AtomicBool,
    tried: AtomicU64,
}

impl Store {
    /// All lines below the path, in the order of the files.
    fn lines(&self, below: &str) -> Vec<String> {
        let files = self.files.lock().unwrap();
        let some = files.iter().filter(|(path, _)| path.starts_with(below));
        some.flat_map(|(_, file)| {
            String::from_utf8_lossy(file).lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
    }

    fn count(&self) -> usize {
        self.files.lock().unwrap().len()
    }
}

#[async_trait]
impl Shelf for Store {
    async fn put(&self, path: &str, file: Bytes) -> Result<(), ShelfError> {
        self.tried.fetch_add(1, Relaxed);
        if self.is_away.load(Relaxed) {
            let why = "it is away".to_owned();
            return Err(ObjectError::Store { doing: "write", path: path.to_owned(), why }.into());
        }
        assert!(self.files.lock().unwrap().insert(path.to_owned(), file).is_none(), "{path} twice");
        Ok(())
    }

    async fn directories(&self, _: &str) -> Result<Vec<String>, ShelfError> {
        Ok(vec![])
    }

    async fn list(&self, _: &str) -> Result<Vec<String>, ShelfError> {
        Ok(vec![])
    }

    async fn delete(&self, _: &str) -> Result<(), ShelfError> {
        Ok(())
    }
}

fn settings(rows_max: usize) -> Settings {
    Settings { queries: true, requests: true, rows_max, flush: Duration::from_secs(60), keep_days: 30 }
}

fn start(settings: Settings, store: &Arc<Store>) -> Records {
    Records::start(settings, Arc::clone(store) as _, Arc::new(Lines), || NOW, 7)
}

/// Gives others a turn, as long as time stands still.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
        // Files are made on threads of their own.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn rows_are_written_by_kind_and_date_when_their_time_is_over_or_a_file_is_full() {
    let store = Arc::new(Store::default());
    let records = start(settings(4), &store);
    let (queries, requests) = (records.queries().unwrap(), records.requests().unwrap());
    settle().await;
    let ms = NOW.as_ms();
    queries.push([query(ms, "a"), query(ms - DAY_MS, "b"), query(ms, "c")]);
    requests.push([request("ann")]);
    settle().await;
    assert_eq!(store.count(), 0, "before its time");
    tokio::time::advance(Duration::from_secs(60)).await;
    settle().await;
    let today = "kind=query/date=2026-11-23/20261123T065047Z-0000000000000007-";
    assert_eq!(store.lines(today), ["a", "c"]);
    assert_eq!(store.lines("kind=query/date=2026-11-22/"), ["b"]);
    assert_eq!(store.lines("kind=request/date=2026-11-23/"), ["ann"]);

    // A full one does not wait.
    queries.push((0..5).map(|n| query(ms, &format!("n{n}"))));
    settle().await;
    assert_eq!(store.lines(today), ["a", "c", "n0", "n1", "n2", "n3"]);
    // Nothing is written of nothing; the end writes what is left.
    tokio::time::advance(Duration::from_secs(59)).await;
    settle().await;
    records.stop().await;
    assert_eq!(store.lines(today), ["a", "c", "n0", "n1", "n2", "n3", "n4"]);
    assert_eq!(store.count(), 5);
    let counted = records.counted();
    assert_eq!(
        ["taken", "written", "files", "dropped", "lost"].map(|word| counted["query"][word]),
        [8, 8, 4, 0, 0]
    );
    assert_eq!(counted["request"]["written"], 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_so_much_is_kept_and_the_rest_is_counted() {
    let store = Arc::new(Store::default());
    let records = start(Settings { requests: false, ..settings(4) }, &store);
    assert!(records.requests().is_none());
    let queries = records.queries().unwrap();
    store.is_away.store(true, Relaxed);
    for n in 0..20 {
        queries.push([query(NOW.as_ms(), &format!("n{n:02}"))]);
        settle().await;
    }
    let tried = store.tried.load(Relaxed);
    assert!(tried >= 1);
    // A file on its way, and a buffer with room for two: the youngest are lost.
    let counted = records.counted();
    assert_eq!((counted["query"]["taken"], counted["query"]["dropped"]), (12, 8));
    tokio::time::advance(Duration::from_secs(600)).await;
    settle().await;
    assert!(store.tried.load(Relaxed) > tried);
    assert_eq!(store.count(), 0);
    store.is_away.store(false, Relaxed);
    tokio::time::advance(Duration::from_secs(61)).await;
    settle().await;
    assert_eq!(store.lines(""), (0..12).map(|n| format!("n{n:02}")).collect::<Vec<_>>());
    records.stop().await;
    let counted = records.counted();
    assert_eq!((counted["query"]["written"], counted["query"]["lost"]), (12, 0));
    assert_eq!(counted["query"]["failed"] + counted["query"]["files"], store.tried.load(Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_does_not_keep_the_daemon_from_its_end() {
    let store = Arc::new(Store::default());
    let records = start(settings(4), &store);
    store.is_away.store(true, Relaxed);
    records.queries().unwrap().push((0..3).map(|n| query(NOW.as_ms(), &format!("n{n}"))));
    records.stop().await;
    assert_eq!((records.counted()["query"]["lost"], records.counted()["query"]["written"]), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn what_would_be_deleted_at_once_is_not_written() {
    let store = Arc::new(Store::default());
    let records = start(settings(100), &store);
    let ms = NOW.as_ms();
    records.queries().unwrap().push([query(ms - 30 * DAY_MS, "kept"), query(ms - 31 * DAY_MS, "old")]);
    records.stop().await;
    assert_eq!(store.lines(""), ["kept"]);
    assert_eq!(records.counted()["query"]["too_old"], 1);
}

fn touch(root: &Path, path: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "x").unwrap();
}

fn files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn retention_deletes_old_files_of_its_own_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let annex = Annex::open(&DepotConfig::at(&format!("file://{}", temp.path().display()))).unwrap();
    let own = "20261001T000000Z-0000000000000abc-000001.parquet";
    let old = [
        format!("records/kind=query/date=2026-10-01/{own}"),
        format!("records/kind=query/date=2026-10-23/{own}"),
    ];
    let kept = [
        // The last day that is kept, and another kind.
        format!("records/kind=query/date=2026-10-24/{own}"),
        format!("records/kind=request/date=2026-10-01/{own}"),
        // What somebody else has put there.
        "records/kind=query/date=2026-10-01/merged.parquet".to_owned(),
        format!("records/kind=query/date=2026-10-01/sub/{own}"),
        format!("records/kind=query/month=2026-10/{own}"),
        format!("records/kind=query/{own}"),
        format!("services/records/kind=query/date=2026-10-01/{own}"),
        format!("kind=query/date=2026-10-01/{own}"),
        "chunks/ab/abc".to_owned(),
    ];
    old.iter().chain(&kept).for_each(|path| touch(temp.path(), path));
    assert_eq!(prune(&annex, Kind::Query, 30, NOW).await.unwrap(), 2);
    let mut expected = kept.to_vec();
    expected.sort();
    assert_eq!(files(temp.path()), expected);
    assert_eq!(prune(&annex, Kind::Query, 30, NOW).await.unwrap(), 0);
    // Of a kind that was never recorded there is nothing.
    std::fs::remove_dir_all(temp.path().join("records")).unwrap();
    assert_eq!(prune(&annex, Kind::Request, 30, NOW).await.unwrap(), 0);
}

#[tokio::test]
async fn a_file_is_there_as_a_whole_and_a_second_try_is_no_fault() {
    let temp = tempfile::tempdir().unwrap();
    let annex = Annex::open(&DepotConfig::at(&format!("file://{}", temp.path().display()))).unwrap();
    let shelf: &dyn Shelf = &annex;
    shelf.put("kind=query/a", Bytes::from_static(b"whole")).await.unwrap();
    // Its answer was lost, so it is put once more; nobody else uses that name.
    shelf.put("kind=query/a", Bytes::from_static(b"whole")).await.unwrap();
    assert_eq!(files(temp.path()), ["records/kind=query/a"]);
    assert_eq!(shelf.list("kind=query").await.unwrap(), ["kind=query/a"]);
    assert_eq!(shelf.directories("").await.unwrap(), ["kind=query"]);
}
