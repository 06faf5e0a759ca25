//! Versions that people go back to, keep, check and carry elsewhere; other images and back again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::chance::{Chance, count};
use crate::small::{say, text, until};
use crate::world::{Page, World};

/// A service whose counter nobody but the test's own requests moves: it is ready when its port is.
const HELLO: &str = r#"
[[service]]
name = "hello.vm.test"
image = "demo"
ports = ["tcp/8080"]
"#;

fn world_with(depot: &Path, host: &str) -> World {
    with_depot(World::new(), depot, host)
}

fn with_depot(world: World, depot: &Path, host: &str) -> World {
    world.set("depot", "url", format!("\"file://{}\"", depot.display())).set(
        "depot",
        "host",
        format!("\"{host}\""),
    )
}

/// Puts hello to sleep; its version is in the store when this returns.
fn sleep(world: &World, number: u64) {
    world.put_to_sleep("hello");
    world.until_shown("hello.vm.test", "its version to be in the object store", |shown| {
        shown["stored"]["number"] == number && shown["stored_is_current"] == true
    });
}

/// Wakes and puts to sleep `times` times; the page of each wake.
fn days(world: &World, times: u64) -> Vec<Page> {
    (1..=times)
        .map(|number| {
            let page = world.page();
            sleep(world, number);
            page
        })
        .collect()
}

/// What `snapshot list` says, newest first.
fn list(world: &World) -> Vec<Value> {
    world.json(&["snapshot", "list", "hello"])["versions"].as_array().unwrap().clone()
}

fn numbers(world: &World) -> Vec<u64> {
    list(world).iter().map(|version| version["number"].as_u64().unwrap()).collect()
}

fn said(world: &World, arguments: &[&str]) -> String {
    let output = world.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_first_of_three_versions_is_gone_back_to_and_stays_so_after_a_kill() {
    let depot = tempfile::tempdir().unwrap();
    let mut world = world_with(depot.path(), "here").service(HELLO).start();
    let pages = days(&world, 3);
    assert_eq!(pages.iter().map(|page| page.requests).collect::<Vec<_>>(), [1, 2, 3]);
    let listed = list(&world);
    assert_eq!(numbers(&world), [3, 2, 1]);
    assert_eq!((&listed[0]["is_next"], &listed[0]["where"]), (&true.into(), &"both".into()));
    let stays = |at: usize| listed[at]["verdict"].as_str().unwrap().to_owned();
    assert_eq!([stays(0), stays(1)], ["kept: the newest", "kept: number 2 of the last"]);
    say(&said(&world, &["snapshot", "list", "hello"]));
    say(&said(&world, &["snapshot", "show", "hello", "2"]));
    let unknown = world.refused(&["snapshot", "restore", "hello", "9"]);
    assert!(unknown.contains("hello.vm.test has no version 9"), "{unknown}");

    let reply = said(&world, &["snapshot", "restore", "hello", "1"]);
    assert!(reply.contains("starts from version 1, which is version 4 now"), "{reply}");
    world.kill9();
    world.restart();
    let next = list(&world).remove(0);
    assert_eq!((&next["number"], &next["restored_from"]), (&4.into(), &1.into()), "{next}");
    assert_eq!((&next["is_next"], &next["where"]), (&true.into(), &"store".into()), "{next}");
    let page = world.page();
    assert_eq!((&page.nonce, page.requests), (&pages[0].nonce, 2), "as if the later days had not been");
    let awake = world.refused(&["snapshot", "restore", "hello", "2"]);
    assert!(awake.contains("`reveille hibernate hello.vm.test`"), "{awake}");

    // It goes on from there, and what was put behind is still there to go back to.
    sleep(&world, 5);
    world.stop();
    world.restart();
    assert_eq!(world.page().requests, 3);
    sleep(&world, 6);
    said(&world, &["snapshot", "restore", "hello", "3"]);
    assert_eq!(world.page().requests, 4);
}

#[test]
fn killed_while_it_goes_back_it_has_gone_back_or_not_and_says_which() {
    let depot = tempfile::tempdir().unwrap();
    let mut world = world_with(depot.path(), "here").service(HELLO).start();
    let nonce = days(&world, 2)[0].nonce.clone();
    let chance = Chance::new("when the daemon is killed");
    let (mut back, mut requests) = (0, 2);
    for _ in 0..count("REVEILLE_TEST_ROLL_BACKS", 5) {
        let mut asked = world.command(&["snapshot", "restore", "hello", "1"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(chance.below(80)));
        world.kill9();
        asked.wait().unwrap();
        world.restart();
        // What was begun is brought to its end.
        world.until_shown("hello.vm.test", "the roll-back to be over", |shown| {
            shown["rolling_back"].is_null()
        });
        let next = list(&world).into_iter().find(|version| version["is_next"] == true).unwrap();
        let went_back = next["restored_from"] == 1;
        let page = world.page();
        assert_eq!(page.nonce, nonce);
        let expected = if went_back { 2 } else { requests + 1 };
        assert_eq!(page.requests, expected, "{next}");
        back += u64::from(went_back);
        requests = page.requests;
        world.put_to_sleep("hello");
        world.until_shown("hello.vm.test", "it to be stored", |shown| shown["stored_is_current"] == true);
    }
    say(&format!("{back} had gone back"));
}

#[test]
fn who_takes_a_service_over_goes_on_from_what_it_was_rolled_back_to() {
    let depot = tempfile::tempdir().unwrap();
    let with_store =
        |world, host| with_depot(world, depot.path(), host).set("depot", "takeover_s", 4).service(HELLO);
    let mut first = with_store(World::new(), "first").start();
    let pages = days(&first, 2);
    said(&first, &["snapshot", "restore", "hello", "1"]);
    first.kill9();
    let second = with_store(World::beside(), "second").start();
    second.until_shown("hello.vm.test", "the second host to have it", |shown| shown["foreign"].is_null());
    let page = second.page();
    assert_eq!((&page.nonce, page.requests), (&pages[0].nonce, 2));
    // The first one has its old version on its disk still, and does not go by it.
    first.restart();
    assert_eq!(first.show("hello.vm.test")["foreign"], "second");
    let refusal = first.refused(&["snapshot", "restore", "hello", "2"]);
    assert!(refusal.contains("is served by the host second"), "{refusal}");
    let refusal = first.refused(&["snapshot", "delete", "hello", "2"]);
    assert!(refusal.contains("is served by the host second"), "{refusal}");
}

fn chunks(depot: &Path) -> Vec<PathBuf> {
    let shelves = fs::read_dir(depot.join("chunks")).unwrap().flatten();
    let chunks = shelves.flat_map(|shelf| fs::read_dir(shelf.path()).unwrap().flatten());
    let mut chunks: Vec<PathBuf> = chunks.map(|chunk| chunk.path()).collect();
    chunks.sort();
    chunks
}

#[test]
fn retention_works_by_itself_and_takes_nothing_that_is_needed_and_a_flipped_bit_is_found() {
    let depot = tempfile::tempdir().unwrap();
    let world = world_with(depot.path(), "here")
        .set("depot", "keep_last", 2)
        .set("depot", "keep_for_s", 0)
        .service(HELLO)
        .start();
    for number in 1..=2 {
        world.page();
        sleep(&world, number);
    }
    said(&world, &["snapshot", "pin", "hello", "1"]);
    for number in 3..=4 {
        world.page();
        sleep(&world, number);
    }
    until("version 2 to be deleted by the daemon", || (numbers(&world) == [4, 3, 1]).then_some(()));
    let nothing = world.json(&["snapshot", "prune", "--dry-run"]);
    assert_eq!(nothing["versions"], Value::Array(Vec::new()), "{nothing}");
    let pinned = world.refused(&["snapshot", "delete", "hello", "1"]);
    assert!(pinned.contains("snapshot unpin"), "{pinned}");
    let newest = world.refused(&["snapshot", "delete", "hello", "4"]);
    assert!(newest.contains("goes on from"), "{newest}");

    said(&world, &["snapshot", "unpin", "hello", "1"]);
    let would = world.json(&["snapshot", "prune", "--dry-run"]);
    assert_eq!(would["versions"][0]["number"], 1, "{would}");
    // A guest this small shares nearly all with its next version.
    assert!(would["freed_bytes"].is_u64(), "{would}");
    assert_eq!(numbers(&world), [4, 3, 1], "a dry run deletes nothing");
    say(&said(&world, &["snapshot", "prune"]));
    assert_eq!(numbers(&world), [4, 3]);
    // What is left needs nothing of what went.
    for number in ["3", "4"] {
        let intact = said(&world, &["snapshot", "verify", "hello", number]);
        assert!(intact.contains("is intact"), "{intact}");
    }
    said(&world, &["snapshot", "restore", "hello", "3"]);
    assert_eq!(world.page().requests, 4);
    sleep(&world, 6);

    let whole = chunks(depot.path());
    let damaged = whole.iter().find_map(|chunk| {
        let good = fs::read(chunk).unwrap();
        let mut bent = good.clone();
        let middle = bent.len() / 2;
        bent[middle] ^= 1;
        fs::write(chunk, bent).unwrap();
        let output = world.run(&["snapshot", "verify", "hello", "6"]);
        if output.status.success() {
            fs::write(chunk, good).unwrap();
            return None;
        }
        Some((chunk, text(&output.stdout)))
    });
    let (chunk, told) = damaged.expect("a chunk of version 6");
    let name = chunk.file_name().unwrap().to_str().unwrap();
    assert!(told.contains(name), "{told}");
    say(&told);
    // Its length is right.
    assert!(said(&world, &["snapshot", "verify", "hello", "6", "--quick"]).contains("is intact"));
}

#[test]
fn a_version_is_carried_to_another_host_in_a_file_and_wakes_there() {
    let depots = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut first = world_with(depots[0].path(), "first").service(HELLO).start();
    let page = first.page();
    sleep(&first, 1);
    let file = depots[0].path().join("hello.tar");
    let (file_text, first_config) =
        (file.to_str().unwrap(), first.path("reveille.toml").to_str().unwrap().to_owned());
    // While the daemon runs, and by the first label.
    said(&first, &["snapshot", "export", "hello", "1", file_text, "--config", &first_config]);
    let twice = first.refused(&["snapshot", "export", "hello", "1", file_text, "--config", &first_config]);
    assert!(twice.contains("hello.tar"), "{twice}");
    let served = first.refused(&["snapshot", "import", file_text, "--config", &first_config]);
    assert!(served.contains("is served by the host first (this one)"), "{served}");
    first.stop();

    let mut second = world_with(depots[1].path(), "second").service(HELLO);
    let config = second.path("import.toml");
    fs::write(&config, format!("[depot]\nurl = \"file://{}\"\n", depots[1].path().display())).unwrap();
    let reply = said(&second, &["snapshot", "import", file_text, "--config", config.to_str().unwrap()]);
    assert!(reply.contains("hello.vm.test"), "{reply}");
    second.restart();
    let shown = second.show("hello.vm.test");
    assert_eq!((&shown["phase"], &shown["rung"]), (&"hibernated".into(), &"remote".into()), "{shown}");
    let there = second.page();
    assert_eq!((&there.nonce, there.requests), (&page.nonce, page.requests + 1), "the very guest");
    sleep(&second, 2);
}

#[test]
fn a_redeployed_service_starts_cold_and_is_rolled_back_to_the_guest_of_before() {
    let depot = tempfile::tempdir().unwrap();
    let world = world_with(depot.path(), "here").start();
    said(&world, &["service", "add", "hello.vm.test", "--image", "demo", "--port", "tcp/8080"]);
    let old = world.page();
    let awake = world.refused(&["service", "redeploy", "hello", "--memory-mib", "160"]);
    assert!(awake.contains("`reveille hibernate hello.vm.test`"), "{awake}");
    let nothing = world.refused(&["service", "rollback", "hello", "--hibernate"]);
    assert!(nothing.contains("nothing to go back to"), "{nothing}");
    let faults = world.refused(&["service", "redeploy", "hello", "--image", "missing"]);
    assert!(faults.contains("missing"), "{faults}");
    // At once after it was put to sleep: that its version reaches the store is waited for.
    let deployed = said(&world, &["service", "redeploy", "hello", "--memory-mib", "160"]);
    assert!(deployed.contains("160 MiB from its next wake on, which is a cold boot"), "{deployed}");
    let new = world.page();
    assert!(new.nonce != old.nonce && new.requests == 1, "{new:?}");
    sleep(&world, 2);
    let other = world.refused(&["snapshot", "restore", "hello", "1"]);
    assert!(other.contains("reveille service rollback hello.vm.test"), "{other}");

    let back = said(&world, &["service", "rollback", "hello"]);
    assert!(back.contains("128 MiB; the next wake of hello.vm.test starts from version 1"), "{back}");
    let page = world.page();
    assert_eq!((&page.nonce, page.requests), (&old.nonce, 2));
    // And forward again.
    said(&world, &["service", "rollback", "hello", "--hibernate"]);
    assert_eq!(world.page().nonce, new.nonce);
    assert_eq!(world.show("hello.vm.test")["resources"]["memory_mib"], 160);
}

#[test]
fn without_an_object_store_there_is_the_last_version_and_a_hint() {
    let world = World::new().service(HELLO).start();
    assert!(said(&world, &["snapshot", "list", "hello"]).contains("has no version yet"));
    world.page();
    world.put_to_sleep("hello");
    let listed = list(&world);
    assert_eq!((listed.len(), &listed[0]["where"]), (1, &"local".into()));
    for verb in [&["restore", "hello", "1"][..], &["verify", "hello", "1"], &["prune"]] {
        let refusal = world.refused(&[&["snapshot"], verb].concat());
        assert!(refusal.contains("no object store is configured"), "{refusal}");
    }
    let declared = world.refused(&["service", "redeploy", "hello", "--memory-mib", "160"]);
    assert!(declared.contains("is declared in"), "{declared}");
}
