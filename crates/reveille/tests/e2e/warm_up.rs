//! Warm-up profiles: what they do is done before the first client, is in the version, and is part of the wake's time.
//!
//! The demo's page counts its requests, and nobody but the profile and the test asks for it: it is ready when its port is.

use std::fs;

use serde_json::Value;

use crate::small::{say, text, until};
use crate::world::World;

const NAME: &str = "hello.vm.test";

/// Five requests after a boot, two after a restore.
const MINE: &str = r#"
about = "Five requests after a boot, two after a restore."
[boot]
[[boot.step]]
wait_for = { ready = true }
[[boot.step]]
http = { paths = ["/"], times = 5 }
[[boot.step]]
name = "files"
prefetch = { files = ["/bin/*"], mib_max = 8 }
timeout_ms = 20000
[restore]
[[restore.step]]
http = { paths = ["/"], times = 2, parallel = 1 }
[[restore.step]]
name = "who"
exec = { path = "/bin/busybox", args = ["echo", "a guest"] }
[[restore.step]]
name = "nobody"
tcp = { port = 9 }
"#;

fn service(more: &str) -> String {
    format!(
        "[[service]]\nname = \"{NAME}\"\nimage = \"demo\"\nports = [\"tcp/8080\"]\nprofile = \"mine\"\n{more}\n"
    )
}

fn world(profile: &str, more: &str) -> World {
    let world = World::new().set("warm_up", "profiles_dir", "\"profiles\"").service(&service(more));
    fs::create_dir(world.path("profiles")).unwrap();
    fs::write(world.path("profiles/mine.toml"), profile).unwrap();
    world
}

fn ms(wake: &Value, stage: &str) -> f64 {
    wake["stages_ms"][stage].as_f64().unwrap_or_else(|| panic!("no {stage} in {wake}"))
}

fn steps(shown: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let steps = shown["warm_up"]["steps"].as_array().unwrap_or_else(|| panic!("no steps in {shown}"));
    steps.iter().map(|step| (word(&step["result"]), word(&step["detail"]))).collect()
}

#[test]
fn the_first_client_comes_after_the_profile_and_the_version_has_what_it_did() {
    let world = world(MINE, "").start();
    let first = world.page();
    assert_eq!(first.requests, 6, "the profile asked five times before the client");
    let shown = world.until_phase(NAME, "active");
    let last = &shown["warm_up"];
    assert_eq!(
        (&last["profile"], &last["set"], &last["result"]),
        (&"mine".into(), &"boot".into(), &"done".into())
    );
    assert_eq!(steps(&shown)[1].1.split(',').next(), Some("5 answers"), "{shown}");
    let read = steps(&shown)[2].1.clone();
    assert!(read.strip_suffix(" bytes").unwrap().parse::<u64>().unwrap() > 500_000, "{read}");

    world.put_to_sleep("hello");
    let second = world.page();
    assert_eq!((&second.nonce, second.requests), (&first.nonce, 9), "two more by the restore set");
    let wake = world.until_wakes("hello", 2).pop().unwrap();
    assert!(ms(&wake, "running") <= ms(&wake, "warmed_up"), "{wake}");
    assert!(ms(&wake, "warmed_up") <= ms(&wake, "first_byte"), "{wake}");
    let shown = world.until_phase(NAME, "active");
    assert_eq!(
        (&shown["warm_up"]["set"], &shown["warm_up"]["result"]),
        (&"restore".into(), &"incomplete".into())
    );
    let steps = steps(&shown);
    assert_eq!(steps[1], ("done".to_owned(), "a guest".to_owned()));
    assert_eq!(steps[2].0, "failed", "{steps:?}");
    assert!(steps[2].1.contains("refused a connection to port 9"), "{steps:?}");

    // What it takes is in what the next wake is expected to take.
    world.put_to_sleep("hello");
    let shown = world.show(NAME);
    for (rung, estimate) in [("cold", &shown["boot_ms_p50"]), ("local", &shown["wake_ms_p50"])] {
        let of = shown["rungs"].as_array().unwrap().iter().find(|of| of["rung"] == rung).unwrap();
        let (took, whole) = (of["warm_up_ms_p50"].as_u64().unwrap(), estimate.as_u64().unwrap());
        assert!(0 < took && took <= whole && of["wake_ms_p50"] == *estimate, "{of} {estimate}");
        say(&format!("{rung}: {took} ms of {whole} ms are warm-up"));
    }
    let status = world.dig(&["+short", "TXT", "_vmstate.hello.vm.test"]);
    assert!(status.contains(&format!("\"wake-ms-p50={}\"", shown["wake_ms_p50"])), "{status}");
    let told = world.run(&["service", "show", "hello"]);
    let told = text(&told.stdout);
    assert!(told.contains("mine: restore set at") && told.contains("who: done in"), "{told}");
}

#[test]
fn who_rests_paused_is_warmed_up_before_it_is_stopped() {
    let world = world(MINE, "policy = { rest = \"paused\" }").start();
    assert_eq!(world.page().requests, 6);
    world.put_to_sleep("hello");
    world.until_shown(NAME, "it to be paused", |shown| shown["rung"] == "paused");
    assert_eq!(world.show(NAME)["warm_up"]["set"], "restore");
    assert_eq!(world.page().requests, 9, "two by the restore set, and not once more when it is let run");
    let wake = world.until_wakes("hello", 2).pop().unwrap();
    assert!(wake["stages_ms"]["warmed_up"].is_null(), "{wake}");
}

#[test]
fn a_profile_that_fails_for_good_is_told_and_a_mended_one_is_taken_up_by_a_reload() {
    let bad = "[boot]\n[[boot.step]]\nname = \"table\"\nexec = { path = \"/bin/busybox\", args = [\"false\"] }\n\
               retries = 1\non_failure = \"fail\"\ntimeout_ms = 20000\n";
    let world = world(bad, "policy = { attempts_max = 1, cooloff_ms = 100 }").start();
    let told = world.refused(&["wake", "hello"]);
    assert!(told.contains("its warm-up failed at `table`: it ended with status 1"), "{told}");
    world.until_vms(0);
    let shown = world.show(NAME);
    assert_eq!(
        (&shown["warm_up"]["result"], &shown["warm_up"]["steps"][0]["tries"]),
        (&"failed".into(), &2.into())
    );

    fs::write(world.path("profiles/mine.toml"), "[boot]\n[[boot.step]]\nexec = 1\n").unwrap();
    let told = world.refused(&["reload"]);
    assert!(told.contains("mine.toml: boot.step[0].exec = 1"), "{told}");
    fs::write(world.path("profiles/mine.toml"), MINE).unwrap();
    let report = world.json(&["reload"]);
    let keys: Vec<&Value> =
        report["changes"].as_array().unwrap().iter().map(|change| &change["key"]).collect();
    assert_eq!(keys, ["warm_up"]);
    // Refused until the pause after the failed start is over.
    let page = until("a page", || world.try_page(world.address(1)).ok());
    assert_eq!(page.requests, 6);
}

#[test]
fn a_daemon_that_is_killed_in_the_midst_of_it_is_followed_by_one_that_begins_it_again() {
    let mut world = world(MINE, "");
    for (step, requests) in [("control.warm_up.step", 6), ("control.warm_up.over", 11)] {
        world.end_at(step);
        world.restart();
        let _ = world.run(&["wake", "hello", "--no-wait"]);
        world.ended();
        let guest = world.vm();
        world.end_at("");
        world.restart();
        assert_eq!(world.page().requests, requests, "{step}");
        assert_eq!(world.vm().pid, guest.pid, "{step}: the guest is the same");
        world.put_to_sleep("hello");
        let _ = world.run(&["terminate", "hello"]);
        until("nothing to be left", || world.vms().is_empty().then_some(()));
        world.stop();
    }
}

#[test]
fn profiles_are_listed_shown_and_checked_without_a_daemon() {
    let world = world(MINE, "").start();
    let file = world.path("reveille.toml");
    let list = world.json(&["profile", "list", "--config", file.to_str().unwrap()]);
    let names: Vec<&Value> = list.as_array().unwrap().iter().map(|profile| &profile["name"]).collect();
    assert_eq!(names, ["cache-heavy", "compute-heavy", "database-heavy", "mine"]);
    assert_eq!((&list[0]["built_in"], &list[3]["built_in"]), (&true.into(), &false.into()));
    let told: Value = serde_json::from_str(&world.ask("GET", "/v1/profiles").unwrap().body).unwrap();
    assert_eq!(told["items"], list, "by the API too");
    let shown = world.run(&["profile", "show", "database-heavy", "--config", file.to_str().unwrap()]);
    assert!(text(&shown.stdout).contains("pg_prewarm"));
    let bad = world.path("bad.toml");
    fs::write(&bad, "[boot]\n[[boot.step]]\nhttp = { paths = [\"x\"] }\nretries = 99\n").unwrap();
    let told = world.refused(&["profile", "check", bad.to_str().unwrap()]);
    assert!(
        told.contains("boot.step[0].http.paths[0] = \"x\"") && told.contains("retries = 99: 0 to 10"),
        "{told}"
    );
    let add = ["service", "add", "b.vm.test", "--image", "demo", "--port", "tcp/80", "--profile"];
    let told = world.refused(&[&add[..], &["none-such"]].concat());
    assert!(
        told.contains("profile = none-such: auto, cache-heavy, compute-heavy, database-heavy, mine"),
        "{told}"
    );
    let added = world.json(&[&add[..], &["auto"]].concat());
    assert_eq!(added["profile"], "auto");
}

#[test]
fn auto_tries_the_restore_set_and_going_without_it() {
    let auto = service("").replace("\"mine\"", "\"auto\"");
    let world = World::new().service(&auto).start();
    world.page();
    for _ in 0..4 {
        world.put_to_sleep("hello");
        world.page();
    }
    let wakes = world.until_wakes("hello", 5);
    let warmed: Vec<bool> = wakes.iter().map(|wake| !wake["stages_ms"]["warmed_up"].is_null()).collect();
    assert_eq!(warmed, [true, true, true, true, false], "{wakes:#?}");
    let shown = world.show(NAME);
    let why = shown["warm_up"]["why"].as_str().unwrap();
    assert_eq!((&shown["warm_up"]["profile"], why), (&"cache-heavy".into(), "tcp/8080 is a port of HTTP"));
    let local = shown["rungs"].as_array().unwrap().iter().find(|of| of["rung"] == "local").unwrap();
    assert!(local["first_warmed_ms_p50"].as_u64() > Some(0), "{local}");
    assert!(local["first_straight_ms_p50"].as_u64() > Some(0), "{local}");
}
