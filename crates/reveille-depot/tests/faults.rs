//! What a depot says and keeps when its store is damaged, full, slow or away, when two hosts want a service, and when a
//! process is killed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::{Dice, about, config, device, id, memory, pseudo_guest, same_content};
use futures_util::FutureExt;
use reveille_depot::collect::CollectError;
use reveille_depot::config::{DepotConfig, OpenError};
use reveille_depot::fetch::{FetchError, FetchOrder};
use reveille_depot::owner::ClaimError;
use reveille_depot::pages::PageSet;
use reveille_depot::put::PutError;
use reveille_depot::seal::Keyring;
use reveille_depot::source::{ChangedSource, NewPart, PageSource, Span};
use reveille_depot::verify::Depth;
use reveille_depot::{Depot, Stage, Watch};
use reveille_failpoint::{Outcome, on_this_thread};
use world::World;

struct Place {
    temp: tempfile::TempDir,
    depot: Depot,
    guest: PathBuf,
}

fn key_file(directory: &Path, name: &str, byte: u8) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, format!("{byte:02x}").repeat(32)).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path
}

/// A depot in a directory with one version of one guest.
async fn place(sealed: bool) -> Place {
    let temp = tempfile::tempdir().unwrap();
    let mut config = config(&temp.path().join("depot"));
    if sealed {
        config.seal_keys = vec![key_file(temp.path(), "key", 0x5a)];
    }
    let depot = Depot::open(&config).unwrap();
    let guest = temp.path().join("guest");
    pseudo_guest(&guest, 4 << 20, 40, &mut Dice(7));
    let parts = vec![memory(&guest), device(b"registers")];
    depot.put_version(&about("a.test", 1), parts, None, &Watch::default()).await.unwrap();
    Place { temp, depot, guest }
}

fn objects(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(objects(&path)) } else { all.push(path) }
    }
    all
}

impl Place {
    async fn fetch(&self) -> Result<PathBuf, FetchError> {
        let to = self.temp.path().join("fetched");
        let _ = fs::remove_dir_all(&to);
        self.depot.fetch(&id("a.test", 1), &to, FetchOrder::WorkingSetFirst, &Watch::default()).await?;
        Ok(to)
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_found_and_named() {
    for sealed in [false, true] {
        let place = place(sealed).await;
        let mut dice = Dice(3);
        for object in objects(&place.temp.path().join("depot")) {
            let name = object.strip_prefix(place.temp.path().join("depot")).unwrap().to_owned();
            if !name.starts_with("chunks") && !name.starts_with("services") {
                continue;
            }
            let whole = fs::read(&object).unwrap();
            for round in 0..24 {
                let mut bent = whole.clone();
                // Each byte of the header and of the beginning, then anywhere.
                let length = whole.len() as u64;
                let at = usize::try_from(if round < 12 { round * 4 } else { dice.below(length) }).unwrap();
                bent[at] ^= 1 << dice.below(8);
                if round % 8 == 7 {
                    bent.truncate(at);
                }
                fs::write(&object, bent).unwrap();
                match place.fetch().await {
                    // A bit of zstd's header that means nothing.
                    Ok(to) => same_content(&to.join("memory"), &place.guest),
                    Err(error) => {
                        let text = error.to_string();
                        assert!(text.contains(name.to_str().unwrap()) && text.contains("damaged"), "{text}");
                        assert!(!place.temp.path().join("fetched").exists());
                        assert!(!place.temp.path().join("fetched.partial").exists());
                    }
                }
            }
            fs::write(&object, [whole.as_slice(), &[0; 9]].concat()).unwrap();
            place.fetch().await.unwrap_err();
            fs::write(&object, vec![0; 80 << 20]).unwrap();
            let text = place.fetch().await.unwrap_err().to_string();
            assert!(text.contains("are possible"), "{text}");
            fs::remove_file(&object).unwrap();
            let text = place.fetch().await.unwrap_err().to_string();
            assert!(text.contains("is not in the depot"), "{text}");
            fs::write(&object, &whole).unwrap();
        }
        same_content(&place.fetch().await.unwrap().join("memory"), &place.guest);
    }
}

#[tokio::test]
async fn what_is_damaged_is_stored_anew_and_never_shared() {
    let place = place(false).await;
    let chunks = objects(&place.temp.path().join("depot/chunks"));
    let mut bent = fs::read(&chunks[0]).unwrap();
    bent[45] ^= 1;
    fs::write(&chunks[0], bent).unwrap();
    let config = config(&place.temp.path().join("depot"));
    // Another process: this one still knows what it wrote.
    let depot = Depot::open(&config).unwrap();
    let verified = depot.verify(&id("a.test", 1), Depth::Lengths, &Watch::default()).await.unwrap();
    assert_eq!(verified.faults_total, 0, "its length is right");
    let verified = depot.verify(&id("a.test", 1), Depth::Pages, &Watch::default()).await.unwrap();
    assert_eq!(verified.faults_total, 1, "{:?}", verified.faults);
    let parts = vec![memory(&place.guest), device(b"registers")];
    let parent = id("a.test", 1);
    let put = depot.put_version(&about("a.test", 2), parts, Some(&parent), &Watch::default()).await.unwrap();
    assert!(put.pages_stored > 0 && put.pages_stored < put.pages, "{put:?}");
    let to = place.temp.path().join("second");
    depot.fetch(&id("a.test", 2), &to, FetchOrder::AsStored, &Watch::default()).await.unwrap();
    same_content(&to.join("memory"), &place.guest);
}

#[tokio::test]
async fn nothing_is_collected_while_a_manifest_cannot_be_read() {
    let place = place(false).await;
    let manifest = place.temp.path().join("depot/services/a.test/versions/1");
    let whole = fs::read(&manifest).unwrap();
    fs::write(&manifest, &whole[..40]).unwrap();
    let refused = place.depot.collect(&Watch::default()).await;
    assert!(matches!(&refused, Err(CollectError::Unreadable(_))), "{refused:?}");
    let listed = place.depot.list(&"a.test".parse().unwrap()).await.unwrap();
    assert!(listed.len() == 1 && listed[0].manifest.is_err(), "it is listed as damaged");
    place.depot.delete(&id("a.test", 1)).await.unwrap();
    assert!(place.depot.list(&"a.test".parse().unwrap()).await.unwrap().is_empty());
}

#[tokio::test]
async fn keys_are_rotated_and_old_chunks_are_left_behind() {
    let place = place(true).await;
    let (old, new) = (place.temp.path().join("key"), key_file(place.temp.path(), "new", 0x77));
    let config = config(&place.temp.path().join("depot"));
    let with = |keys: Vec<PathBuf>| Depot::open(&DepotConfig { seal_keys: keys, ..config.clone() }).unwrap();
    let changed = PageSet::new();
    let bytes = fs::metadata(&place.guest).unwrap().len();
    let nothing = || {
        let file = tempfile::tempfile().unwrap();
        NewPart::new("memory", ChangedSource::new(id("a.test", 1), file, bytes, changed.clone()))
    };
    let parent = id("a.test", 1);
    let both = with(vec![new.clone(), old]);
    let parts = vec![nothing()];
    both.put_version(&about("a.test", 2), parts, Some(&parent), &Watch::default()).await.unwrap();
    // What did not change was read with the old key and sealed with the new one.
    let only_new = with(vec![new]);
    let to = place.temp.path().join("second");
    only_new.fetch(&id("a.test", 2), &to, FetchOrder::AsStored, &Watch::default()).await.unwrap();
    same_content(&to.join("memory"), &place.guest);
    let text = only_new.show(&parent).await.unwrap_err().to_string();
    assert!(text.contains("not among the key files"), "{text}");
    let unsealed = Depot::open(&config).unwrap();
    assert!(unsealed.show(&id("a.test", 2)).await.is_err());
}

#[tokio::test]
async fn a_version_travels_as_a_file() {
    let place = place(true).await;
    let file = place.temp.path().join("a.version");
    place.depot.export(&id("a.test", 1), &file, &Watch::default()).await.unwrap();
    let mut config = config(&place.temp.path().join("elsewhere"));
    config.seal_keys = vec![key_file(place.temp.path(), "other", 0x11), place.temp.path().join("key")];
    let other = Depot::open(&config).unwrap();
    let (to_id, watch) = (id("b.test", 9), Watch::default());
    other.import(&file, &to_id, 4, &watch).await.unwrap();
    let to = place.temp.path().join("b");
    let manifest = other.fetch(&to_id, &to, FetchOrder::AsStored, &watch).await.unwrap();
    assert_eq!((manifest.about.epoch, &manifest.about.id), (4, &to_id));
    same_content(&to.join("memory"), &place.guest);

    let whole = fs::read(&file).unwrap();
    let mut dice = Dice(8);
    for number in 10..40 {
        let mut bent = whole.clone();
        let at = usize::try_from(dice.below(whole.len() as u64 - 2048)).unwrap();
        if number % 3 == 0 {
            bent.truncate(at)
        } else {
            bent[at] ^= 1 << dice.below(8)
        }
        fs::write(&file, bent).unwrap();
        match other.import(&file, &id("b.test", number), 4, &watch).await {
            // A bit of tar's padding or modes.
            Ok(_) => assert!(number % 3 != 0),
            Err(error) => assert!(error.to_string().contains("a.version"), "{error}"),
        }
    }
}

fn in_world(world: &World) -> Depot {
    let config = DepotConfig { workers: 1, ..DepotConfig::at("file:///x") };
    let clock = world.clone();
    let stopwatch = Arc::new(move || clock.inside.lock().unwrap().uptime_ms);
    Depot::with_store(&config, Arc::new(world.clone()), Keyring::default(), stopwatch)
}

#[tokio::test]
async fn of_two_hosts_one_gets_the_service_and_the_other_can_put_nothing() {
    let world = World::new(1);
    let depot = in_world(&world);
    let service = "a.test".parse().unwrap();
    for expected in [None, Some(1), Some(2)] {
        let tries = ["one", "two", "three"].map(|host| depot.claim(&service, host, expected));
        let done = futures_util::future::join_all(tries).await;
        assert_eq!(done.iter().filter(|claim| claim.is_ok()).count(), 1, "{done:?}");
    }
    let owner = depot.owner(&service).await.unwrap().unwrap();
    assert_eq!(owner.epoch, 3);
    world.advance(60_000);
    assert!(owner.silent_ms(depot.store_now_ms().await.unwrap()) >= 60_000);
    depot.renew(&service, &owner.host, 3).await.unwrap();
    let renewed = depot.owner(&service).await.unwrap().unwrap();
    assert!(renewed.heard_ms > owner.heard_ms);
    assert!(matches!(depot.renew(&service, &owner.host, 2).await, Err(ClaimError::Owned { .. })));
    let put = depot.put_version(&about("a.test", 1), vec![], None, &Watch::default()).await;
    assert!(matches!(put, Err(PutError::Foreign { epoch: 1, now: 3, .. })), "{put:?}");
    // A lost answer is looked up.
    world.inside.lock().unwrap().fail_percent = 30;
    let mut epoch = 3;
    for _ in 0..100 {
        if let Ok(next) = depot.claim(&service, "one", Some(epoch)).await {
            assert_eq!(next, epoch + 1);
        }
        epoch = loop {
            if let Ok(Some(owner)) = depot.owner(&service).await {
                break owner.epoch;
            }
        };
    }
}

#[tokio::test]
async fn a_full_or_failing_store_costs_the_new_version_only() {
    let world = World::new(2);
    let depot = in_world(&world);
    let temp = tempfile::tempdir().unwrap();
    let guest = temp.path().join("guest");
    pseudo_guest(&guest, 1 << 20, 50, &mut Dice(9));
    let (watch, first) = (Watch::default(), id("a.test", 1));
    depot.put_version(&about("a.test", 1), vec![memory(&guest)], None, &watch).await.unwrap();
    world.inside.lock().unwrap().full = true;
    let full = depot.put_version(&about("a.test", 2), vec![memory(&guest)], None, &watch).await;
    let text = full.unwrap_err().to_string();
    assert!(text.contains("cannot write") && text.contains("No space left"), "{text}");
    world.inside.lock().unwrap().full = false;
    depot.fetch(&first, &temp.path().join("one"), FetchOrder::AsStored, &watch).await.unwrap();
    world.inside.lock().unwrap().fail_percent = 100;
    let text = depot.show(&first).await.unwrap_err().to_string();
    assert!(text.contains("cannot read `services/a.test/versions/1`"), "{text}");
    world.inside.lock().unwrap().fail_percent = 0;
    depot.put_version(&about("a.test", 2), vec![memory(&guest)], Some(&first), &watch).await.unwrap();
}

/// Puts a second version, and does `meanwhile` just before its manifest is written.
async fn second_version(
    world: &World,
    guest: &Path,
    meanwhile: impl AsyncFnOnce(&Depot),
) -> Result<(), PutError> {
    let (depot, other) = (in_world(world), in_world(world));
    let watch = Watch::default();
    depot.put_version(&about("a.test", 1), vec![memory(guest)], None, &watch).await?;
    // Its chunks are old, and so is all that the second version shares with it.
    world.advance(3 * depot.grace_ms().await.unwrap());
    world.inside.lock().unwrap().gate = Some("versions/2".to_owned());
    let parts = vec![memory(guest), device(b"something new")];
    let (first, second) = (id("a.test", 1), about("a.test", 2));
    let beside = async {
        world.arrived.notified().await;
        meanwhile(&other).await;
        world.go_on.notify_one();
    };
    let (put, ()) = tokio::join!(depot.put_version(&second, parts, Some(&first), &watch), beside);
    put.map(|_| ())
}

#[tokio::test]
async fn a_version_outlives_its_parent_that_is_deleted_while_it_is_put() {
    let (world, temp) = (World::new(4), tempfile::tempdir().unwrap());
    let guest = temp.path().join("guest");
    pseudo_guest(&guest, 1 << 20, 60, &mut Dice(2));
    let put = second_version(&world, &guest, async |other: &Depot| {
        other.delete(&id("a.test", 1)).await.unwrap();
        let plan = other.collect(&Watch::default()).await.unwrap();
        assert!(plan.chunks.is_empty() && plan.needed > 0, "{plan:?}");
    });
    put.await.unwrap();
    let verified = in_world(&world).verify(&id("a.test", 2), Depth::Pages, &Watch::default()).await.unwrap();
    assert_eq!(verified.faults_total, 0, "{:?}", verified.faults);
}

#[tokio::test]
async fn a_version_that_was_published_too_late_is_taken_back() {
    let (world, temp) = (World::new(5), tempfile::tempdir().unwrap());
    let guest = temp.path().join("guest");
    pseudo_guest(&guest, 1 << 20, 60, &mut Dice(2));
    let put = second_version(&world, &guest, async |other: &Depot| {
        // The store's clock is set; the host's own shows nothing of it.
        let grace_ms = other.grace_ms().await.unwrap();
        world.inside.lock().unwrap().now_ms += 2 * grace_ms;
        let plan = other.collect(&Watch::default()).await.unwrap();
        assert!(!plan.chunks.is_empty(), "the new chunks count as garbage");
    });
    let put = put.await;
    assert!(matches!(put, Err(PutError::TooSlow { .. })), "{put:?}");
    let listed = in_world(&world).list(&"a.test".parse().unwrap()).await.unwrap();
    assert_eq!(listed.iter().map(|version| version.id.number).collect::<Vec<_>>(), [1]);
}

/// A source that says other things each time.
struct Restless;

impl PageSource for Restless {
    fn bytes(&self) -> u64 {
        1 << 20
    }
    fn span(&self, _page: u64) -> std::io::Result<(Span, u64)> {
        Ok((Span::Content, 256))
    }
    fn read(&self, _page: u64, into: &mut [u8]) -> std::io::Result<()> {
        getrandom::fill(into).map_err(|error| std::io::Error::other(error.to_string()))
    }
}

#[tokio::test]
async fn a_guest_that_runs_on_is_noticed() {
    let depot = in_world(&World::new(3));
    let parts = vec![NewPart::new("memory", Restless)];
    let put = depot.put_version(&about("a.test", 1), parts, None, &Watch::default()).await;
    assert!(matches!(put, Err(PutError::SourceChanged { page: 0, .. })), "{put:?}");
}

#[tokio::test]
async fn the_working_set_comes_first_and_a_cancel_leaves_nothing() {
    let place = place(false).await;
    let guest = place.temp.path().join("large");
    pseudo_guest(&guest, 32 << 20, 60, &mut Dice(5));
    let parts = vec![memory(&guest)];
    place.depot.put_version(&about("a.test", 2), parts, None, &Watch::default()).await.unwrap();
    let touched: PageSet = (4000..4100).collect();
    place.depot.note_touched(&"a.test".parse().unwrap(), &touched).await.unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (telling, to) = (Arc::clone(&told), place.temp.path().join("second"));
    let watch = Watch {
        on_progress: Some(Arc::new(move |progress| telling.lock().unwrap().push(progress))),
        ..Watch::default()
    };
    place.depot.fetch(&id("a.test", 2), &to, FetchOrder::WorkingSetFirst, &watch).await.unwrap();
    let told = std::mem::take(&mut *told.lock().unwrap());
    let complete = told.iter().find(|p| p.stage == Stage::WorkingSet && p.done_bytes == p.total_bytes);
    let all = told.iter().rfind(|p| p.stage == Stage::Fetch).unwrap();
    assert!(complete.unwrap().done_bytes * 4 < all.total_bytes && all.done_bytes == all.total_bytes);
    fs::remove_dir_all(&to).unwrap();
    watch.cancel.cancel();
    let cancelled = place.depot.fetch(&id("a.test", 2), &to, FetchOrder::AsStored, &watch).await;
    assert!(matches!(cancelled, Err(FetchError::Cancelled(_))));
    assert!(!to.exists() && !to.with_extension("partial").exists());
}

/// Kills at each place in turn, and looks what is left.
#[tokio::test]
async fn a_kill_at_each_place_of_put_delete_fetch_and_claim_leaves_whole_versions() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().cloned().unwrap_or_default();
        if !text.starts_with("failpoint") {
            quiet(info);
        }
    }));
    let places = [
        "depot.put.begin",
        "depot.put.parent",
        "depot.put.compared",
        "depot.put.chunk",
        "depot.put.stored",
        "depot.put.manifest",
        "depot.put.published",
        "depot.delete.begin",
        "depot.delete.moved",
        "depot.delete.deleted",
        "depot.fetch.begin",
        "depot.fetch.chunk",
        "depot.fetch.fetched",
        "depot.fetch.done",
        "depot.collect.begin",
        "depot.collect.planned",
        "depot.claim.write",
        "depot.claim.written",
    ];
    for name in places {
        let place = place(false).await;
        let (depot, to) = (&place.depot, place.temp.path().join("second"));
        let service = "a.test".parse().unwrap();
        let reached = std::rc::Rc::new(std::cell::Cell::new(false));
        let seen = std::rc::Rc::clone(&reached);
        let story = async {
            let parts = vec![memory(&place.guest), device(b"changed")];
            let (first, watch) = (id("a.test", 1), Watch::default());
            depot.put_version(&about("a.test", 2), parts, Some(&first), &watch).await.unwrap();
            depot.fetch(&id("a.test", 2), &to, FetchOrder::AsStored, &watch).await.unwrap();
            depot.delete(&first).await.unwrap();
            depot.collect(&watch).await.unwrap();
            depot.claim(&service, "host", None).await.unwrap();
        };
        let guard = on_this_thread(move |at| {
            seen.set(seen.get() || at == name);
            if at == name { Outcome::Panic } else { Outcome::Go }
        });
        assert!(AssertUnwindSafe(story).catch_unwind().await.is_err(), "{name}");
        drop(guard);
        assert!(reached.get(), "{name}");
        let again = Depot::open(&config(&place.temp.path().join("depot"))).unwrap();
        let mut versions = 0;
        for entry in again.list(&service).await.unwrap() {
            let verified = again.verify(&entry.id, Depth::Pages, &Watch::default()).await.unwrap();
            assert_eq!(verified.faults_total, 0, "{name}: {:?}", verified.faults);
            versions += 1;
        }
        assert!(versions >= 1, "{name}");
        if to.exists() {
            same_content(&to.join("memory"), &place.guest);
        }
        again.collect(&Watch::default()).await.unwrap();
        let epoch = again.owner(&service).await.unwrap().map(|owner| owner.epoch);
        again.claim(&service, "other", epoch).await.unwrap();
    }
}

#[test]
fn what_cannot_be_opened_says_why_and_tells_no_secret() {
    let error = |config: &DepotConfig| Depot::open(config).unwrap_err().to_string();
    assert!(error(&DepotConfig::at("ftp://x/y")).contains("scheme is unknown"));
    assert!(error(&DepotConfig::at("file://relative/x")).contains("not absolute"));
    assert!(error(&DepotConfig::at("s3://")).contains("no bucket"));
    let text = error(&DepotConfig::at("az://x/y?sig=SECRET"));
    assert!(text.contains("has a query") && !text.contains("SECRET"), "{text}");
    let range = DepotConfig { parallel: 0, ..DepotConfig::at("file:///tmp") };
    assert!(matches!(Depot::open(&range), Err(OpenError::Range { setting: "parallel", .. })));
    let temp = tempfile::tempdir().unwrap();
    let credentials = temp.path().join("credentials");
    fs::write(&credentials, "AWS_SECRET_ACCESS_KEY=SECRET\n").unwrap();
    let mut config = DepotConfig::at("s3://bucket/prefix");
    config.credentials_file = Some(credentials.clone());
    assert!(error(&config).contains("chmod 600"));
    fs::set_permissions(&credentials, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&credentials, "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=SECRET\n").unwrap();
    let depot = Depot::open(&config).unwrap();
    assert!(!format!("{depot:?} {config:?}").contains("SECRET"));
}
