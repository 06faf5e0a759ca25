//! Faults of the object store and of what lies in it, with the real daemon and a real guest: it runs on or sleeps on, an
//! error says what is wrong with what, and all goes on by itself when the fault has passed.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::proxy::{Proxy, Way};
use crate::servers::{self, Remote};
use crate::small::{say, until};
use crate::world::World;

const NAME: &str = "hello.vm.test";
const HELLO: &str = r#"
[[service]]
name = "hello.vm.test"
image = "demo"
ports = ["tcp/8080"]
"#;

/// How long the store is away.
fn outage() -> Duration {
    let seconds = std::env::var("REVEILLE_TEST_OUTAGE_S").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

/// A world with an S3 store behind a proxy, and quick to try again.
fn world(remote: &Remote) -> (World, Proxy) {
    let server: SocketAddr = remote.endpoint.trim_start_matches("http://").parse().unwrap();
    let proxy = Proxy::before(server);
    let world = World::new()
        .set("depot", "url", format!("\"{}\"", remote.url))
        .set("depot", "endpoint", format!("\"http://{}\"", proxy.at))
        .set("depot", "allow_http", true)
        .set("depot", "credentials_file", format!("{:?}", remote.credentials_file))
        .set("depot", "region", "\"us-east-1\"")
        .policy("backoff_ms", 200)
        .policy("backoff_ms_max", 500)
        .policy("cooloff_ms", 1_000)
        .policy("attempts_max", 2)
        .service(HELLO);
    (world, proxy)
}

fn until_stored(world: &World, number: u64) {
    world.until_shown(NAME, &format!("version {number} in the store"), |shown| {
        shown["stored"]["number"].as_u64().is_some_and(|stored| stored >= number)
            && shown["stored_is_current"] == true
    });
}

#[test]
fn a_store_that_is_away_costs_neither_a_guest_nor_a_version_and_uploads_go_on_by_themselves() {
    let temp = tempfile::tempdir().unwrap();
    let Some(remote) = servers::s3(temp.path()) else { return };
    let (world, proxy) = world(&remote);
    let mut world = world.start();
    let nonce = world.page().nonce;

    // While it is away a guest sleeps and wakes as ever.
    proxy.set(Way::Down);
    let since = Instant::now();
    let mut sleeps = 0;
    while since.elapsed() < outage() || sleeps == 0 {
        world.put_to_sleep(NAME);
        sleeps += 1;
        assert_eq!(world.page().nonce, nonce);
    }
    world.put_to_sleep(NAME);
    until("it to be said that nothing is stored", || {
        world.log().contains("not in the object store; trying again").then_some(())
    });
    assert!(world.show(NAME)["stored"].is_null());
    proxy.set(Way::Open);
    until_stored(&world, sleeps + 1);

    // Nothing of it is here, and the store is away: whoever asks is told, and later it is there.
    world.change("policy", "rest", "\"remote\"");
    world.stop();
    world.restart();
    world.until_shown(NAME, "it to be remote alone", |shown| shown["rung"] == "remote");
    proxy.set(Way::Down);
    let refused = world.refused(&["wake", NAME]);
    assert!(refused.contains("the object store failed"), "{refused}");
    say(refused.trim());
    let answer = until("an answer that says so", || {
        drop(world.try_page(world.address(1)));
        let answer = world.dig(&[NAME]);
        answer.contains("SERVFAIL").then_some(answer)
    });
    assert!(answer.contains("EDE: 14") && answer.contains("object store"), "{answer}");
    proxy.set(Way::Open);
    let page = until("the guest to be there again", || world.try_page(world.address(1)).ok());
    assert_eq!(page.nonce, nonce);

    // Whose it is cannot be asked at the start of the daemon: what runs here goes on.
    proxy.set(Way::Down);
    world.kill9();
    world.restart();
    assert_eq!(world.page().nonce, nonce);
    world.put_to_sleep(NAME);
    proxy.set(Way::Open);
    until_stored(&world, sleeps + 2);
}

#[test]
fn a_store_that_answers_nothing_or_too_slowly_is_given_up_in_time_and_asked_again() {
    let temp = tempfile::tempdir().unwrap();
    let Some(remote) = servers::s3(temp.path()) else { return };
    let (world, proxy) = world(&remote);
    let world = world.policy("rest", "\"remote\"").start();
    let nonce = world.page().nonce;
    world.put_to_sleep(NAME);
    world.until_shown(NAME, "it to be remote alone", |shown| shown["rung"] == "remote");

    // Slow, but it comes.
    proxy.set(Way::Slow { bytes: 32 << 10, pause: Duration::from_millis(2) });
    assert_eq!(world.page().nonce, nonce);
    world.put_to_sleep(NAME);
    world.until_shown(NAME, "it to be remote alone", |shown| shown["rung"] == "remote");

    // A few bytes a second would take hours. The limits are those of users, so that this takes its time.
    proxy.set(Way::Slow { bytes: 64, pause: Duration::from_millis(500) });
    let taken = proxy.taken();
    std::thread::scope(|scope| {
        scope.spawn(|| drop(world.try_page(world.address(1))));
        until("a request to be tried again", || (proxy.taken() > taken + 1).then_some(()));
        proxy.set(Way::Silent);
        until("it to be asked again", || (proxy.taken() > taken + 3).then_some(()));
        proxy.set(Way::Open);
    });
    let page = until("the guest to be there again", || world.try_page(world.address(1)).ok());
    assert_eq!(page.nonce, nonce);
}

#[test]
fn what_is_bent_on_its_way_is_not_used_and_the_guest_comes_when_it_comes_whole() {
    let temp = tempfile::tempdir().unwrap();
    let Some(remote) = servers::s3(temp.path()) else { return };
    let (world, proxy) = world(&remote);
    // A version that cannot be used twice in a row is given up for a boot; this one is read once while it is bent.
    let world = world.policy("rest", "\"remote\"").policy("attempts_max", 5).start();
    let nonce = world.page().nonce;
    world.put_to_sleep(NAME);
    world.until_shown(NAME, "it to be remote alone", |shown| shown["rung"] == "remote");
    proxy.set(Way::Bent);
    let page = std::thread::scope(|scope| {
        let asked = scope.spawn(|| world.try_page(world.address(1)));
        until("the damage to be told", || world.log().contains("is damaged").then_some(()));
        proxy.set(Way::Open);
        asked.join().unwrap()
    });
    assert_eq!(page.unwrap().nonce, nonce);
}

fn objects(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { all.extend(objects(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

/// Another bit in the middle of the file, or where it is said; what it was.
fn bend(path: &Path, at: Option<usize>) -> Vec<u8> {
    let whole = fs::read(path).unwrap();
    let mut bent = whole.clone();
    let at = at.unwrap_or(whole.len() / 2);
    bent[at] ^= 1;
    fs::write(path, bent).unwrap();
    whole
}

#[test]
fn a_flipped_bit_in_any_part_of_a_version_in_the_store_is_told_and_the_version_before_restores() {
    let depot = tempfile::tempdir().unwrap();
    let world = World::new()
        .set("depot", "url", format!("\"file://{}\"", depot.path().display()))
        .policy("rest", "\"remote\"")
        .policy("backoff_ms", 100)
        .policy("backoff_ms_max", 500)
        .policy("attempts_max", 1)
        .policy("cooloff_ms", 300)
        .service(HELLO)
        .start();
    let nonce = world.page().nonce;
    let sleep = || {
        world.put_to_sleep(NAME);
        let shown = world.until_shown(NAME, "it to be remote alone", |shown| shown["rung"] == "remote");
        shown["stored"]["number"].as_u64().unwrap()
    };
    let mut before = sleep();
    let parts = [
        ("the manifest's head", "manifest", Some(0)),
        ("the manifest", "manifest", None),
        ("a chunk's head", "chunk", Some(9)),
        ("a chunk's hashes", "chunk", Some(80)),
        ("a chunk's content", "chunk", None),
    ];
    for (part, of, at) in parts {
        let page = until("the guest to be there", || world.try_page(world.address(1)).ok());
        assert_eq!(page.nonce, nonce, "before {part}");
        let number = sleep();
        let path = match of {
            "manifest" => depot.path().join(format!("services/{NAME}/versions/{number}")),
            // What this version added is youngest.
            _ => {
                let age = |path: &PathBuf| path.metadata().unwrap().modified().unwrap();
                objects(&depot.path().join("chunks")).into_iter().max_by_key(age).unwrap()
            }
        };
        let whole = bend(&path, at);
        let refused = world.refused(&["wake", NAME]);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(refused.contains("damaged") && refused.contains(name), "{part}: {refused}");
        say(&format!("{part}: {}", refused.trim()));
        let shown = world.show(NAME);
        assert_eq!((&shown["phase"], &shown["rung"]), (&"hibernated".into(), &"remote".into()), "{part}");
        let told = world.run(&["snapshot", "verify", NAME, &number.to_string()]);
        assert!(!told.status.success(), "{part}: {told:?}");
        // The version before is whole, and so is this one when nothing is wrong with it any more.
        let other = world.run(&["snapshot", "verify", NAME, &before.to_string()]);
        assert!(other.status.success(), "{part}: {other:?}");
        fs::write(&path, whole).unwrap();
        before = number;
    }
    // What nobody repairs: the version before is gone back to.
    let page = until("the guest to be there", || world.try_page(world.address(1)).ok());
    let last = sleep();
    bend(&depot.path().join(format!("services/{NAME}/versions/{last}")), None);
    world.json(&["snapshot", "restore", NAME, &before.to_string()]);
    let back = world.page();
    assert_eq!((&back.nonce, back.requests), (&nonce, page.requests), "as it was before its last day");
}

/// Asleep, stored, and with the checksums of its large files.
fn asleep(world: &World) {
    let sums = world.path("state/instances/i1/state/sums.json");
    world.put_to_sleep(NAME);
    world.until_shown(NAME, "it to be stored", |shown| shown["stored_is_current"] == true);
    let shown = world.show(NAME);
    let numbered = format!("\"number\":{},", shown["version"]["number"]);
    until("its checksums", || {
        fs::read_to_string(&sums).is_ok_and(|text| text.contains(&numbered)).then_some(())
    });
}

#[test]
fn a_flipped_bit_in_any_file_of_a_version_on_the_disk_is_told_and_the_stored_one_restores() {
    let depot = tempfile::tempdir().unwrap();
    let mut world = World::new()
        .set("depot", "url", format!("\"file://{}\"", depot.path().display()))
        .service(HELLO)
        .start();
    let nonce = world.page().nonce;
    for file in ["manifest.json", "device", "memory"] {
        asleep(&world);
        // Under the daemon's feet, then while it is away.
        for away in [false, true] {
            if away {
                world.stop();
            }
            let instance = world.path("state/instances/i1/state").join(file);
            bend(&instance, None);
            if away {
                world.restart();
            }
            assert_eq!(world.page().nonce, nonce, "{file}, away: {away}");
            assert!(world.log().contains("damaged"), "{file}");
            asleep(&world);
        }
        drop(world.page());
    }
}

#[test]
fn a_kill_that_comes_between_the_version_and_its_guest_leaves_the_version() {
    let mut world =
        World::new().policy("restore_ms_max", 5_000).policy("backoff_ms", 100).service(HELLO).start();
    let nonce = world.page().nonce;
    world.put_to_sleep(NAME);
    world.stop();
    // A slow disk: the restore takes longer than it may just when the manifest has been taken away.
    world.wait_at("vm.restore.consumed", 12_000);
    world.restart();
    assert_eq!(world.page().nonce, nonce);
    assert!(world.log().contains("GiveUpStart"), "it came too soon");
}
