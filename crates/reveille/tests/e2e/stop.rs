//! Stopping the daemon: what was awake sleeps, runs on, or ends, as `daemon.on_stop` says.

use std::io::{Read, Write};
use std::net::SocketAddr;

use crate::wire;
use crate::world::{HELLO, World};

#[test]
fn a_stop_hibernates_leaves_or_ends_what_is_awake() {
    let mut world = World::new().service(HELLO).start();
    let first = world.page();
    let mut connection = wire::connect(SocketAddr::new(world.address(1).into(), 7_007)).unwrap();
    connection.write_all(b"x").unwrap();
    connection.read_exact(&mut [0]).unwrap();

    world.stop();
    assert_eq!(world.vms(), []);
    assert!(connection.read(&mut [0]).is_err(), "cut, not ended in order");
    world.change("daemon", "on_stop", "\"leave\"");
    world.restart();
    assert_eq!(world.phase("hello.vm.test"), "hibernated");
    let second = world.page();
    assert_eq!(second.nonce, first.nonce);

    let left = world.vm();
    world.stop();
    assert_eq!(world.vm(), left, "it runs on without a daemon");
    world.change("daemon", "on_stop", "\"terminate\"");
    world.restart();
    world.until_phase("hello.vm.test", "active");
    let third = world.page();
    assert_eq!((&third.nonce, world.vm()), (&first.nonce, left), "taken over, not started anew");
    assert!(third.requests > second.requests);

    world.stop();
    assert_eq!(world.vms(), []);
    world.change("daemon", "on_stop", "\"hibernate\"");
    world.restart();
    assert_eq!(world.phase("hello.vm.test"), "off");
    let fourth = world.page();
    assert_ne!(fourth.nonce, first.nonce);

    // Armed processes hold nothing and go with the daemon.
    world.put_to_sleep("hello");
    world.change("policy", "rest", "\"armed\"");
    world.stop();
    world.restart();
    world.until_shown("hello.vm.test", "hello to be armed", |shown| shown["rung"] == "armed");
    world.stop();
    assert_eq!(world.vms(), []);
    world.restart();
    assert_eq!(world.page().nonce, fourth.nonce);
}

#[test]
fn a_stop_in_the_middle_of_a_boot_leaves_nothing_behind() {
    let mut world = World::new().service(HELLO).start();
    world.json(&["wake", "--no-wait", "hello"]);
    world.until_vms(1);
    world.stop();
    assert_eq!(world.vms(), []);
    world.restart();
    assert_eq!(world.page().service, "hello");
}
