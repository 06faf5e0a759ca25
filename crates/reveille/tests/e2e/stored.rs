//! Versions in an object store: they outlive the host, and leave its disk.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::small::{say, until};
use crate::world::{HELLO, World};

/// A world whose versions go to a directory that others share.
fn world_with(depot: &Path, host: &str) -> World {
    World::new()
        .set("depot", "url", format!("\"file://{}\"", depot.display()))
        .set("depot", "host", format!("\"{host}\""))
        .service(HELLO)
}

fn until_stored(world: &World, number: u64) {
    world.until_shown("hello.vm.test", "its version to be in the object store", |shown| {
        shown["stored"]["number"] == number && shown["stored_is_current"] == true
    });
}

/// Makes the owner of every service look as if it had not been heard of for two minutes.
pub fn silence(depot: &Path) {
    let owner = until("the owner's object", || {
        Some(depot.join("services/hello.vm.test/owner")).filter(|at| at.exists())
    });
    let then = SystemTime::now() - Duration::from_secs(120);
    File::options().write(true).open(owner).unwrap().set_modified(then).unwrap();
}

#[test]
fn another_host_wakes_what_the_first_one_put_to_sleep_and_the_first_does_not_run_it_again() {
    let depot = tempfile::tempdir().unwrap();
    let mut first = world_with(depot.path(), "first").start();
    let page = first.page();
    first.put_to_sleep("hello");
    until_stored(&first, 1);
    first.kill9();
    silence(depot.path());

    let second = world_with(depot.path(), "second").start();
    let shown = second.show("hello.vm.test");
    assert_eq!((&shown["phase"], &shown["rung"]), (&"hibernated".into(), &"remote".into()), "{shown}");
    assert_eq!(second.page().nonce, page.nonce, "the very guest, on another host");

    // Its version is intact on its own disk, and it knows better.
    first.restart();
    let shown = first.show("hello.vm.test");
    assert_eq!(shown["foreign"], "second", "{shown}");
    let refusal = first.refused(&["wake", "hello"]);
    assert!(refusal.contains("is served by the host second"), "{refusal}");
    let answer = first.dig(&["hello.vm.test"]);
    assert!(answer.contains("SERVFAIL"), "{answer}");
    assert!(first.vms().is_empty());

    // The second sleeps into the same history.
    second.put_to_sleep("hello");
    until_stored(&second, 2);
}

#[test]
fn a_service_that_rests_remote_leaves_the_disk_and_wakes_as_it_was() {
    let depot = tempfile::tempdir().unwrap();
    let world = world_with(depot.path(), "here").policy("rest", "\"remote\"").start();
    let page = world.page();
    for number in 1..3 {
        world.put_to_sleep("hello");
        world.until_shown("hello.vm.test", "hello to be remote alone", |shown| shown["rung"] == "remote");
        let shown = world.show("hello.vm.test");
        assert_eq!((&shown["version"], &shown["stored"]["number"]), (&().into(), &number.into()), "{shown}");
        assert!(!world.path("state/instances/i1/state/memory").exists());
        assert_eq!(world.page().nonce, page.nonce);
    }
    let wakes = world.until_wakes("hello", 3);
    assert_eq!(wakes.iter().filter(|wake| wake["from"] == "local").count(), 2, "{wakes:?}");
    for wake in wakes {
        say(&format!("from {}: {}", wake["from"], wake["stages_ms"]));
    }
}

#[test]
fn a_paused_service_answers_at_once_and_is_the_guest_that_slept() {
    let world = World::new().policy("rest", "\"paused\"").service(HELLO).start();
    let page = world.page();
    for _ in 0..2 {
        world.put_to_sleep("hello");
        world.until_shown("hello.vm.test", "hello to be paused", |shown| shown["rung"] == "paused");
        assert_eq!(world.page().nonce, page.nonce);
    }
    let wakes = world.until_wakes("hello", 3);
    assert!(wakes.iter().any(|wake| wake["from"] == "paused" && wake["outcome"] == "ready"), "{wakes:?}");
    say(&format!("paused wake: {}", wakes.last().unwrap()["stages_ms"]));
}

#[test]
fn a_running_guest_has_a_version_of_bounded_age_and_goes_on_from_it_after_a_crash() {
    let depot = tempfile::tempdir().unwrap();
    let world = world_with(depot.path(), "here")
        .policy("checkpoint_ms", 1_000)
        .policy("after_crash", "\"last_version\"")
        .start();
    let page = world.page();
    world.until_shown("hello.vm.test", "a second checkpoint", |shown| {
        shown["stored"]["number"].as_u64().is_some_and(|number| number >= 2)
    });
    assert_eq!(world.page().nonce, page.nonce);
    let vm = world.vm();
    crate::small::send(vm.pid, rustix::process::Signal::KILL);
    world.until_shown("hello.vm.test", "the loss to be seen", |shown| shown["phase"] != "active");
    assert_eq!(world.page().nonce, page.nonce, "the guest is the one of the checkpoint");
}
