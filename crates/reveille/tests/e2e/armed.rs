//! The rung `armed`: a process stands by, and costs nothing but itself when it dies.

use rustix::process::Signal;
use serde_json::Value;

use crate::small::{say, send, until};
use crate::world::{HELLO, Vm, World};

#[test]
fn a_service_sleeps_armed_and_the_loss_of_the_armed_process_costs_only_the_rung() {
    let world = World::new().policy("rest", "\"armed\"").service(HELLO).start();
    let first = world.page();
    world.put_to_sleep("hello");
    armed(&world);
    let shown = world.show("hello.vm.test");
    assert_eq!((&shown["phase"], &shown["state"]), (&"hibernated".into(), &"warming".into()), "{shown}");

    assert_eq!(world.page().nonce, first.nonce);
    let wakes = world.until_wakes("hello", 2);
    let wake = wakes.last().unwrap();
    assert_eq!((&wake["from"], &wake["outcome"]), (&"armed".into(), &"ready".into()), "{wake}");
    say(&format!("armed wake: {}", wake["stages_ms"]));
    // What each rung takes and gives, as measured; an armed process holds less than the guest did when it ran.
    let shown = world.until_shown("hello.vm.test", "the rungs to be measured", |shown| {
        on(shown, "armed")["held_kib"].is_u64() && on(shown, "active")["held_kib"].is_u64()
    });
    assert_eq!(on(&shown, "armed")["wakes"], 1, "{}", shown["rungs"]);
    assert!(on(&shown, "armed")["wake_ms_p50"].is_u64() && on(&shown, "cold")["wake_ms_p50"].is_u64());
    let held = ["armed", "active"].map(|rung| on(&shown, rung)["held_kib"].as_u64().unwrap());
    assert!(held[0] < held[1] && held[0] > 1 << 10, "{}", shown["rungs"]);

    world.put_to_sleep("hello");
    let process = armed(&world);
    send(process.pid, Signal::KILL);
    let next = until("another armed process", || world.vms().into_iter().find(|vm| *vm != process));
    assert_eq!(armed(&world), next);
    let shown = world.show("hello.vm.test");
    assert_eq!((&shown["failure"], &shown["version"]["number"]), (&().into(), &2.into()), "{shown}");
    assert_eq!(world.page().nonce, first.nonce);
    assert_eq!(world.vm(), next, "woken from the armed process");
}

/// Waits until the service is armed; returns its process.
fn armed(world: &World) -> Vm {
    world.until_shown("hello.vm.test", "hello to be armed", |shown| shown["rung"] == "armed");
    world.vm()
}

/// What was measured on a rung, or nothing.
fn on(shown: &Value, rung: &str) -> Value {
    let rungs = shown["rungs"].as_array().unwrap();
    rungs.iter().find(|of| of["rung"] == rung).cloned().unwrap_or_default()
}
