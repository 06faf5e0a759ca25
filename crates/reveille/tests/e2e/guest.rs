//! What happens in the guest around sleep and wake: its clock, its random numbers, clones.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::small::{say, until};
use crate::wire;
use crate::world::{HELLO, World};

/// A line of the demo's page.
fn line(world: &World, service: u8, key: &str) -> String {
    let address = SocketAddr::new(world.address(service).into(), 8_080);
    let answer = wire::http(address, "GET", "/", None).unwrap();
    let value = answer.body.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
    value.unwrap_or_else(|| panic!("no `{key}` in {answer:?}")).to_owned()
}

fn seconds_off(world: &World, service: u8) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    line(world, service, "time-s").parse::<u64>().unwrap().abs_diff(now)
}

#[test]
fn a_woken_guest_knows_the_time_and_is_known_to_have_an_agent() {
    let world = World::new().service(HELLO).start();
    world.page();
    let shown = world.until_shown("hello.vm.test", "its agent", |shown| !shown["agent"].is_null());
    assert!(shown["agent"].as_str().unwrap().starts_with("qemu-ga 7.2"), "{shown}");
    world.put_to_sleep("hello");
    std::thread::sleep(std::time::Duration::from_secs(4));
    // The first page after the sleep.
    let off = seconds_off(&world, 1);
    assert!(off <= 2, "its clock is off by {off} s");
    let wake = world.until_wakes("hello", 2).pop().unwrap();
    let stages = &wake["stages_ms"];
    let ms = |stage: &str| stages[stage].as_f64().unwrap_or_else(|| panic!("no {stage} in {wake}"));
    assert!(ms("running") <= ms("refreshed") && ms("refreshed") <= ms("ready"), "{wake}");
    say(&format!("wake with its clock set: {stages}"));
}

#[test]
fn clones_differ_in_name_address_and_chance_and_are_themselves_from_the_first_packet_on() {
    let world = World::new().policy("rest", "\"local\"").service(HELLO).start();
    world.page();
    let early = world.refused(&["service", "clone", "hello", "one.vm.test"]);
    assert!(early.contains("put it to sleep first"), "{early}");
    world.put_to_sleep("hello");
    for name in ["one.vm.test", "two.vm.test"] {
        let cloned = world.json(&["service", "clone", "hello", name]);
        assert_eq!((&cloned["phase"], &cloned["rung"]), (&"hibernated".into(), &"local".into()), "{cloned}");
    }
    let twice = world.refused(&["service", "clone", "hello", "one.vm.test"]);
    assert!(twice.contains("exists already"), "{twice}");
    let mut seen = Vec::new();
    for service in [2, 3, 1] {
        let address = SocketAddr::new(world.address(service).into(), 8_080);
        let page = wire::http(address, "GET", "/", None).unwrap().body;
        let of = |key: &str| {
            let value = page.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
            value.unwrap_or_else(|| panic!("no `{key}` in {page}")).to_owned()
        };
        seen.push(["hostname", "mac", "getrandom", "urandom"].map(of));
    }
    let hosts: Vec<&str> = seen.iter().map(|own| own[0].as_str()).collect();
    assert_eq!(hosts, ["one", "two", "hello"]);
    for what in 0..4 {
        let different: BTreeSet<&str> = seen.iter().map(|own| own[what].as_str()).collect();
        assert_eq!(different.len(), 3, "{seen:#?}");
    }
    // They live on as any service, also over a crash of the daemon.
    world.put_to_sleep("one");
    let mut world = world;
    world.kill9();
    world.restart();
    assert_eq!(line(&world, 2, "hostname"), "one");
    assert_eq!(line(&world, 2, "mac"), seen[0][1]);
    assert_eq!(line(&world, 3, "mac"), seen[1][1], "taken over while it ran");
}

#[test]
fn a_service_is_woken_when_it_was_told_to_be() {
    let mut world = World::new().service(HELLO).start();
    world.page();
    world.put_to_sleep("hello");
    world.json(&["wake", "hello", "--at", "+6"]);
    world.kill9();
    world.restart();
    assert!(!world.show("hello.vm.test")["wake_at"].is_null(), "it is remembered");
    let wake = until("the wake", || world.wakes("hello").into_iter().nth(1));
    assert_eq!(wake["trigger"]["by"], "schedule", "{wake}");
    world.until_phase("hello.vm.test", "active");
    assert!(world.show("hello.vm.test")["wake_at"].is_null());
}
