//! Health: a guest that does not serve is down and up again by N of M, one that sleeps is not down, and probes are nobody:
//! they wake nothing and keep nothing awake.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::small::{send, until, word};
use crate::world::{HELLO, World};

/// A world whose services are probed quickly, used or not. Answers have their time: the machine may be busy.
fn probed() -> World {
    World::new()
        .set("health", "interval_ms", 100)
        .set("health", "doubt_ms", 100)
        .set("health", "quiet_ms", 60_000)
        .set("health", "timeout_ms", 2_000)
}

fn until_health(world: &World, health: &str) -> Value {
    world.until_shown("hello.vm.test", &format!("it to be {health}"), |shown| shown["health"] == health)
}

/// What was recorded of its health, oldest first.
fn recorded(world: &World) -> Vec<String> {
    let why = world.why("hello");
    let changes = why["health_changes"].as_array().unwrap().iter().rev();
    changes.map(|change| format!("{}: {}", word(&change["health"]), word(&change["why"]))).collect()
}

#[test]
fn a_guest_that_hangs_is_down_by_n_of_m_and_up_again_and_one_that_dies_at_once() {
    // The heartbeats, which would end it for good, come late.
    let world = probed().policy("heartbeat_ms", 600_000).service(HELLO).start();
    let nonce = world.page().nonce;
    let up = until_health(&world, "up");
    assert_eq!((&up["probes"][1]["probe"], &up["flapping"]), (&"tcp/8080".into(), &false.into()), "{up}");
    let vm = world.vm();
    send(vm.pid, Signal::STOP);
    let down = until_health(&world, "down");
    let why = word(&down["health_reason"]);
    let expected = "of the last 4 TCP probes failed, the last one: no answer within 2000 ms";
    assert!(why.contains(expected), "{why}");
    assert_eq!(down["phase"], "active", "a verdict ends nobody");
    send(vm.pid, Signal::CONT);
    until_health(&world, "up");
    assert_eq!((world.page().nonce, world.vm()), (nonce, vm.clone()));

    send(vm.pid, Signal::KILL);
    let lost =
        |shown: &Value| word(&shown["health_reason"]).starts_with("it was lost: its QEMU process ended");
    assert_eq!(world.until_shown("hello.vm.test", "its loss to be noticed", lost)["health"], "down");
    world.page();
    until_health(&world, "up");
    let recorded = until("four records", || Some(recorded(&world)).filter(|all| all.len() >= 4));
    let verdicts: Vec<&str> = recorded.iter().filter_map(|told| told.split(": ").next()).collect();
    assert_eq!(verdicts, ["down", "up", "down", "up"], "{recorded:#?}");
    assert!(recorded[0].contains("no answer within 2000 ms"), "{recorded:#?}");
}

#[test]
fn probes_keep_nothing_awake_and_wake_nothing_and_who_sleeps_is_not_down() {
    let world = probed().policy("idle_ms", 3_000).set("health", "http", "{ path = \"/\" }").service(HELLO);
    let world = world.start();
    let before = world.page();
    let seen = world.until_shown("hello.vm.test", "probes", |shown| {
        let findings = shown["probes"][1]["findings"].as_str().unwrap_or_default();
        findings.len() >= 8
    });
    assert_eq!(seen["probes"][1]["probe"], "GET / on tcp/8080", "{seen}");
    // By itself, though it is probed ten times a second.
    let asleep = world.until_phase("hello.vm.test", "hibernated");
    assert_eq!((&asleep["health"], &asleep["health_reason"]), (&"unknown".into(), &"it sleeps".into()));
    assert_eq!((&asleep["probes"], &asleep["metrics"]), (&Value::Array(Vec::new()), &Value::Null));
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(2) {
        assert_eq!(world.phase("hello.vm.test"), "hibernated");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((world.vms(), world.wakes("hello").len()), (Vec::new(), 1), "the first client alone woke it");
    let after = world.page();
    assert_eq!(after.nonce, before.nonce);
    assert!(after.requests >= before.requests + 8, "it was probed: {before:?}, {after:?}");
    assert_eq!(recorded(&world), [] as [String; 0], "to sleep and to wake is no news of its health");
}

#[test]
fn a_service_with_the_wrong_answer_is_down_until_its_settings_say_otherwise() {
    let wrong = "{ path = \"/\", status = [500, 599] }";
    let world = probed().set("health", "http", wrong).service(HELLO).start();
    let nonce = world.page().nonce;
    let down = until_health(&world, "down");
    assert!(word(&down["health_reason"]).contains("the last one: status 200"), "{down}");
    let file = world.path("reveille.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace(wrong, "{ path = \"/\", status = [200, 299] }")).unwrap();
    let report = world.json(&["reload"]);
    assert!(report["changes"].to_string().contains("health"), "{report}");
    until_health(&world, "up");
    // It is the same guest, which is sampled meanwhile.
    assert_eq!(world.page().nonce, nonce);
    let shown = world.until_shown("hello.vm.test", "its metrics", |shown| {
        let metrics = &shown["metrics"];
        metrics["held_kib"].is_u64()
            && metrics["cpu_permille"].is_u64()
            && metrics["replies"].as_u64() >= Some(2)
    });
    assert!(shown["metrics"]["cpu_ms"].as_u64() > Some(0), "{shown}");
    let metrics = world.ask("GET", "/metrics").unwrap().body;
    let line = |text: &str| metrics.lines().any(|line| line.starts_with(text));
    for of in ["up", "cpu_seconds_total", "memory_bytes", "replies_total", "reply_seconds_total"] {
        assert!(line(&format!("reveille_instance_{of}{{service=\"hello.vm.test\"")), "{of} in {metrics}");
    }
    assert!(line("reveille_instances_health{health=\"up\"} 1"), "{metrics}");
    assert!(line("reveille_health_probes_total{probe=\"http\",found=\"failed\"}"), "{metrics}");
}
