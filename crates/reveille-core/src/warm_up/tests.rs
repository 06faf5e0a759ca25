use super::*;
use crate::model::{RungMeasured, ServiceSpec};

fn spec(toml: serde_json::Value) -> Option<StepSpec> {
    Some(serde_json::from_value(toml).unwrap())
}

fn faults(steps: Vec<serde_json::Value>) -> Vec<String> {
    let mut faults = Vec::new();
    check_set("boot", 1_000, steps.into_iter().map(spec).collect(), &mut faults);
    faults.into_iter().map(|fault| fault.to_string()).collect()
}

fn service(ports: &[&str], ready: serde_json::Value) -> ServiceSpec {
    let value = serde_json::json!({"name": "a.vm.test", "image": "i", "ports": ports, "ready": ready});
    serde_json::from_value(value).unwrap()
}

#[test]
fn every_fault_is_told_with_its_key_its_value_and_what_is_allowed() {
    let told = faults(vec![
        serde_json::json!({"http": {"paths": ["index.html"], "times": 0}, "retries": 11}),
        serde_json::json!({"tcp": {"connections": 65, "send": "a", "send_hex": "0"}, "timeout_ms": 1}),
        serde_json::json!({"exec": {"path": "psql"}, "prefetch": {"files": ["/a"]}}),
        serde_json::json!({"name": "nothing"}),
        serde_json::json!({"wait_for": {"ready": true, "port": 80}}),
        serde_json::json!({"http": {}}),
        serde_json::json!({"exec": {"path": "/a"}, "wait_for": {"ready": true}}),
    ]);
    for part in [
        "boot.step[0].http.paths[0] = \"index.html\": a path such as",
        "boot.step[0].http.times = 0: 1 to 100",
        "boot.step[0].retries = 11: 0 to 10",
        "boot.step[1].tcp.connections = 65: 1 to 64",
        "boot.step[1].tcp.send_hex = 0: two hexadecimal digits",
        "boot.step[1].tcp.send_hex = beside send: one of",
        "boot.step[1].timeout_ms = 1: 10 to 600000",
        "boot.step[2].exec.path = \"psql\": a path such as",
        "boot.step[3] = 0 of them: exactly one of",
        "boot.step[4].wait_for = (as a whole): ready = true",
        "boot.step[5].http.paths = 0 paths: 1 to 256",
        "boot.step[6] = 2 of them: exactly one of",
    ] {
        assert!(told.iter().any(|fault| fault.starts_with(part)), "no `{part}` in {told:#?}");
    }
    let mut faults = Vec::new();
    check_set("restore", 99, vec![Some(StepSpec::default()); STEPS_MAX + 1], &mut faults);
    let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(told[0], "restore.total_ms_max = 99: 100 to 600000");
    assert_eq!(told[1], "restore.step = 33 steps: 0 to 32 steps");
}

#[test]
fn what_is_good_is_taken_with_its_defaults() {
    let mut faults = Vec::new();
    let steps = vec![
        spec(serde_json::json!({"wait_for": {"path": "/health", "status": 204}})),
        spec(serde_json::json!({"tcp": {"send_hex": "00 ff"}, "name": "hello", "on_failure": "retry"})),
        spec(serde_json::json!({"exec": {"path": format!("/{}", "ä".repeat(200))}})),
    ];
    let set = check_set("boot", 5_000, steps, &mut faults);
    assert_eq!(faults, []);
    let health = Condition::Http { port: None, path: "/health".into(), status: Some(204) };
    assert_eq!((&set.steps[0].work, set.steps[0].timeout_ms), (&Work::WaitFor(health), 30_000));
    let Work::Tcp(tcp) = &set.steps[1].work else { panic!("{:?}", set.steps[1]) };
    assert_eq!((tcp.sent(), tcp.connections), (vec![0, 255], 1));
    assert_eq!((set.steps[1].name.as_str(), set.steps[1].on_failure), ("hello", OnFailure::Retry));
    assert!(set.steps[2].name.len() <= NAME_BYTES_MAX);
}

#[test]
fn a_name_is_short_and_not_the_one_that_chooses() {
    assert_eq!(check_name("my-cache-2"), Ok(()));
    for odd in ["", "auto", "Cache", "../x", "a.b", &"a".repeat(64)] {
        assert!(check_name(odd).is_err(), "{odd}");
    }
    assert!(check_about(&"a".repeat(501)).is_some());
    assert!(check_about("one\u{1b}[31m").is_some() && check_about("for caches; Ångström").is_none());
}

#[test]
fn the_profile_follows_from_the_ports() {
    let http = serde_json::json!({"check": "http", "port": 9000, "path": "/"});
    let chosen = [
        (service(&["tcp/8080", "tcp/5432"], serde_json::Value::Null), "database-heavy"),
        (service(&["udp/5432", "tcp/8080"], serde_json::Value::Null), "cache-heavy"),
        (service(&["tcp/9000"], http), "cache-heavy"),
        (service(&["tcp/9000", "udp/80"], serde_json::Value::Null), "compute-heavy"),
    ];
    for (spec, profile) in chosen {
        assert_eq!(fitting(&spec).profile, profile, "{:?}", spec.ports);
    }
}

#[test]
fn both_ways_are_tried_and_then_the_one_by_which_clients_wait_less() {
    let mut of = RungMeasured::default();
    let mut taken = Vec::new();
    for start in 1..=15 {
        let (takes, _) = takes_restore_set(Some(&of), false, start);
        taken.push(takes);
        let (first, ms) = if takes { (&mut of.first_warmed, 300) } else { (&mut of.first_straight, 200) };
        first.push_ms(ms);
    }
    assert_eq!(taken[..7], [true, true, true, false, false, false, false]);
    assert!(!taken[6..].contains(&true), "{taken:?}");
    let (takes, why) = takes_restore_set(Some(&of), false, 16);
    assert!(takes && why.contains("300 ms with it and 200 ms without"), "{why}");
    assert!(takes_restore_set(Some(&of), true, 17).0, "nobody waits for it");
    // What it takes has become less.
    for _ in 0..32 {
        of.first_warmed.push_ms(100);
    }
    assert!(takes_restore_set(Some(&of), false, 17).0);
    assert!(takes_restore_set(None, false, 1).0);
}
