//! Versions in an object store: they outlive the host, and leave its disk.

use std::path::Path;

use crate::servers::{self, Remote};
use crate::small::say;
use crate::world::{HELLO, READY, World};

/// A host that has not been heard of for so many seconds loses its services.
const TAKEOVER_S: u64 = 4;

/// A world whose versions go to a directory that others share.
fn world_with(depot: &Path, host: &str) -> World {
    with_depot(World::new(), depot, host)
}

fn with_depot(world: World, depot: &Path, host: &str) -> World {
    world
        .set("depot", "url", format!("\"file://{}\"", depot.display()))
        .set("depot", "host", format!("\"{host}\""))
        .service(HELLO)
}

fn until_stored(world: &World, name: &str, number: u64) {
    world.until_shown(name, "its version to be in the object store", |shown| {
        shown["stored"]["number"] == number && shown["stored_is_current"] == true
    });
}

/// The same in an object store over the network.
fn world_over(world: World, remote: &Remote, host: &str) -> World {
    let world = world
        .set("depot", "url", format!("\"{}\"", remote.url))
        .set("depot", "endpoint", format!("\"{}\"", remote.endpoint))
        .set("depot", "allow_http", true)
        .set("depot", "credentials_file", format!("{:?}", remote.credentials_file))
        .set("depot", "host", format!("\"{host}\""))
        .service(HELLO)
        .service(READY);
    match remote.region {
        Some(region) => world.set("depot", "region", format!("\"{region}\"")),
        None => world,
    }
}

#[test]
fn a_host_that_burned_down_is_followed_by_an_empty_one_and_does_not_run_again_what_it_lost() {
    let depot = tempfile::tempdir().unwrap();
    burned_down(|world, host| with_depot(world, depot.path(), host).service(READY));
}

#[test]
fn the_same_in_s3() {
    let temp = tempfile::tempdir().unwrap();
    let Some(server) = servers::s3(temp.path()) else { return };
    burned_down(|world, host| world_over(world, &server, host));
}

#[test]
fn the_same_in_azure() {
    let temp = tempfile::tempdir().unwrap();
    let Some(server) = servers::azure(temp.path()) else { return };
    burned_down(|world, host| world_over(world, &server, host));
}

/// Two services on two hosts that share an object store.
fn burned_down(with_store: impl Fn(World, &str) -> World) {
    let names = ["hello.vm.test", "ready.vm.test"];
    let world = |world, host| with_store(world, host).set("depot", "takeover_s", TAKEOVER_S);
    let mut first = world(World::new(), "first").start();
    let nonces = [1, 2].map(|number| first.page_at(number).nonce);
    for name in names {
        first.put_to_sleep(name);
    }
    for name in names {
        until_stored(&first, name, 1);
    }
    // While the first one is there, the second one only waits.
    let mut second = world(World::beside(), "second").start();
    for name in names {
        assert_eq!(second.show(name)["foreign"], "first");
    }
    let answer = second.dig(&[names[0]]);
    assert!(answer.contains("SERVFAIL") && answer.contains("another host"), "{answer}");
    first.kill9();
    for (name, (number, nonce)) in names.into_iter().zip((1..).zip(&nonces)) {
        second.until_shown(name, "the second host to have it", |shown| shown["foreign"].is_null());
        assert_eq!(&second.page_at(number).nonce, nonce, "the very guest, on another host");
    }
    let counted = [1, 2].map(|number| second.page_at(number).requests);

    // Its versions are intact on its own disk, and it knows better.
    first.restart();
    for name in names {
        assert_eq!(first.show(name)["foreign"], "second");
        let refusal = first.refused(&["wake", name]);
        assert!(refusal.contains("is served by the host second"), "{refusal}");
        assert!(first.dig(&[name]).contains("SERVFAIL"));
    }
    first.until_vms(0);

    // It sleeps into the same history; and when the second host falls silent, the first goes on from there.
    for name in names {
        second.put_to_sleep(name);
        until_stored(&second, name, 2);
    }
    second.kill9();
    for (name, (number, (nonce, counted))) in names.into_iter().zip((1..).zip(nonces.iter().zip(counted))) {
        first.until_shown(name, "the first host to have it back", |shown| shown["foreign"].is_null());
        let page = first.page_at(number);
        assert_eq!(&page.nonce, nonce);
        assert!(page.requests > counted, "what the other host did is in it: {page:?}, {counted} before");
    }
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
    assert_eq!(wakes.iter().filter(|wake| wake["from"] == "remote").count(), 2, "{wakes:?}");
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
