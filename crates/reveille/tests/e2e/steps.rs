//! `kill -9` of the daemon at every named step of what it does with guests, disks and versions: whatever the step, the
//! next daemon has the guest, and has it once, and a daemon after that starts as ever.
//!
//! Steps within the object store alone are in the depot's own tests (`faults.rs`), those of disks in `rows.rs`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::small::{LOOK, say, text};
use crate::world::{HELLO, World};

/// Longest time until a daemon comes to the step at which it ends.
const STEP_MAX: Duration = Duration::from_secs(60);
const NAME: &str = "hello.vm.test";

/// What is done so that the daemon comes to the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// A guest that runs is put to sleep; its version goes to the object store.
    Sleep,
    /// A client comes to one that sleeps.
    Wake,
    /// Nothing: the guest runs, or rests as its policy says.
    Run,
    /// A guest that runs is put to sleep, and then rests on that rung.
    Rest(&'static str),
    /// One that sleeps is to go on from the version before its last.
    RollBack,
    /// One that sleeps is given more memory, or less again.
    Redeploy,
    /// One that sleeps is cloned.
    Clone,
    /// One that runs is ended.
    End,
    /// What nobody needs is collected.
    Collect,
    /// It starts.
    Start,
}

use Deed::{Clone as Copies, Collect, End, Redeploy, Rest, RollBack, Run, Sleep, Start, Wake};

/// Steps of a service that sleeps on the local disk.
const LOCAL: [(&str, Deed); 18] = [
    ("vm.capture.stopped", Sleep),
    ("vm.capture.saved", Sleep),
    ("vm.capture.sealed", Sleep),
    ("vm.capture.published", Sleep),
    ("vm.capture.ended", Sleep),
    ("control.capture.told", Sleep),
    ("control.publish.begin", Sleep),
    ("depot.put.begin", Sleep),
    ("depot.put.compared", Sleep),
    ("depot.put.chunk", Sleep),
    ("depot.put.stored", Sleep),
    ("depot.put.manifest", Sleep),
    ("depot.put.published", Sleep),
    ("control.publish.told", Sleep),
    ("vm.restore.loaded", Wake),
    ("vm.restore.consumed", Wake),
    ("vm.restore.running", Wake),
    ("control.gate.open", Wake),
];

/// Steps of one that leaves the disk.
const REMOTE: [(&str, Deed); 12] = [
    ("vm.evict.begin", Sleep),
    ("vm.evict.dropped", Sleep),
    ("vm.state.exchanged", Sleep),
    ("depot.fetch.begin", Wake),
    ("depot.fetch.chunk", Wake),
    ("depot.fetch.fetched", Wake),
    ("depot.fetch.synced", Wake),
    ("depot.fetch.done", Wake),
    ("control.fetch.fetched", Wake),
    ("vm.install.begin", Wake),
    ("control.fetch.installed", Wake),
    ("vm.state.exchanged", Wake),
];

/// Steps of one that runs with checkpoints.
const RUNNING: [(&str, Deed); 4] = [
    ("vm.checkpoint.stopped", Run),
    ("vm.checkpoint.sealed", Run),
    ("vm.checkpoint.published", Run),
    ("depot.put.manifest", Run),
];

/// Steps of keeping one warm.
const WARM: [(&str, Deed); 5] = [
    ("vm.arm.armed", Rest("armed")),
    ("vm.restore.consumed", Wake),
    ("vm.warm.running", Rest("paused")),
    ("vm.pause.stopped", Rest("paused")),
    ("vm.restore.running", Wake),
];

/// Steps of who is in charge, and of what stays in the store.
const KEPT: [(&str, Deed); 9] = [
    ("depot.claim.write", Start),
    ("depot.claim.written", Start),
    ("control.retention.delete", Sleep),
    ("depot.delete.begin", Sleep),
    ("depot.delete.moved", Sleep),
    ("depot.delete.deleted", Sleep),
    ("depot.collect.begin", Collect),
    ("depot.collect.planned", Collect),
    ("depot.collect.done", Collect),
];

/// Steps of going back, and those after which there may be another guest, as was asked for.
const OTHERS: [(&str, Deed); 10] = [
    ("depot.republish.begin", RollBack),
    ("control.roll_back.republished", RollBack),
    ("control.roll_back.dropped", RollBack),
    ("vm.clone.linked", Copies),
    ("vm.clone.published", Copies),
    ("control.exchange.written", Redeploy),
    ("vm.boot.spawned", Redeploy),
    ("vm.end.recorded", End),
    ("vm.end.consumed", End),
    ("control.kill.fenced", End),
];

fn world(depot: &Path) -> World {
    World::new().set("depot", "url", format!("\"file://{}\"", depot.display())).service(HELLO)
}

#[test]
fn a_kill_at_any_step_of_sleep_upload_and_wake_loses_nothing() {
    let depot = tempfile::tempdir().unwrap();
    walk(world(depot.path()), &LOCAL);
}

#[test]
fn a_kill_at_any_step_of_leaving_the_disk_and_coming_back_loses_nothing() {
    let depot = tempfile::tempdir().unwrap();
    walk(world(depot.path()).policy("rest", "\"remote\""), &REMOTE);
}

#[test]
fn a_kill_at_any_step_of_a_checkpoint_leaves_the_guest_running() {
    let depot = tempfile::tempdir().unwrap();
    walk(world(depot.path()).policy("checkpoint_ms", 1_000), &RUNNING);
}

#[test]
fn a_kill_at_any_step_of_keeping_a_guest_warm_loses_nothing() {
    let depot = tempfile::tempdir().unwrap();
    walk(world(depot.path()), &WARM);
}

#[test]
fn a_kill_at_any_step_of_claiming_keeping_and_collecting_loses_nothing() {
    let depot = tempfile::tempdir().unwrap();
    let world = world(depot.path()).set("depot", "keep_last", 1).set("depot", "keep_for_s", 0).start();
    // So that the next sleep has one to delete.
    world.page();
    world.put_to_sleep(NAME);
    walk_on(world, &KEPT);
}

#[test]
fn a_kill_at_any_step_of_going_back_cloning_redeploying_and_ending_leaves_a_guest_that_answers() {
    let depot = tempfile::tempdir().unwrap();
    let world = World::new().set("depot", "url", format!("\"file://{}\"", depot.path().display())).start();
    // What the config declares is not redeployed past it.
    world.json(&["service", "add", NAME, "--image", "demo", "--port", "tcp/8080"]);
    walk_on(world, &OTHERS);
}

fn walk(world: World, steps: &[(&str, Deed)]) {
    walk_on(world.start(), steps);
}

fn walk_on(mut world: World, steps: &[(&str, Deed)]) {
    let mut nonce = world.page().nonce;
    for (step, deed) in steps {
        prepare(&mut world, *deed);
        world.kill9();
        world.end_at(step);
        // It may come to the step while it starts.
        if world.try_start().is_ok() {
            come_to(&world, step, *deed);
            world.ended();
        }
        let left = world.vms().len();
        world.end_at("");
        let log_from = world.log().len();
        world.restart();
        let log = world.log()[log_from..].to_owned();
        let found = log.lines().find_map(|line| line.split_once(" was=").map(|(_, rest)| rest.to_owned()));
        let found: String = found.unwrap_or_default().chars().take_while(|letter| *letter != '{').collect();
        let there = world.page().nonce;
        match deed {
            Redeploy | End => nonce = there,
            Sleep | Wake | Run | Rest(_) | RollBack | Copies | Collect | Start => {
                assert_eq!(there, nonce, "killed at {step}, {found}: another guest");
            }
        }
        world.until_phase(NAME, "active");
        assert_eq!(world.vms().len(), 1, "killed at {step}: {:?}", world.vms());
        let instances = fs::read_dir(world.path("state/instances")).unwrap().count();
        assert_eq!(instances, 1, "killed at {step}: what belongs to no service is gone");
        say(&format!("{deed:?} killed at {step}: {left} process left, {found}"));
    }
    // A second start finds nothing to put right, and all versions are whole.
    world.stop();
    world.restart();
    let versions = world.json(&["snapshot", "list", NAME])["versions"].as_array().unwrap().clone();
    for version in versions.iter().filter(|version| version["where"] != "local") {
        let number = version["number"].to_string();
        let checked = world.run(&["snapshot", "verify", NAME, &number]);
        assert!(checked.status.success(), "{}", text(&checked.stdout));
    }
}

/// Brings the service to where the deed begins.
fn prepare(world: &mut World, deed: Deed) {
    match deed {
        Sleep | Run | End | Collect | Start => drop(world.page()),
        Rest(rest) => {
            drop(world.page());
            world.change("policy", "rest", format!("\"{rest}\""));
        }
        Wake | RollBack | Redeploy | Copies => {
            if deed == RollBack {
                world.put_to_sleep(NAME);
                drop(world.page());
            }
            world.put_to_sleep(NAME);
            let rest = world.show(NAME)["policy"]["rest"].clone();
            world.until_shown(NAME, "it to rest, and to be stored", |shown| {
                shown["stored_is_current"] == true && shown["rung"] == rest
            });
        }
    }
}

/// Does the deed until the daemon has ended itself.
fn come_to(world: &World, step: &str, deed: Deed) {
    let since = Instant::now();
    std::thread::scope(|scope| {
        if deed == Wake {
            scope.spawn(|| drop(world.try_page(world.address(1))));
        }
        while world.is_running() {
            assert!(since.elapsed() < STEP_MAX, "{deed:?} never came to {step}");
            // Again, since a client that was only just leaving keeps the guest awake.
            match deed {
                Sleep | Rest(_) => {
                    // What deletes wants a version after one that is stored.
                    let has = world.run(&["--json", "service", "show", NAME]);
                    let has: serde_json::Value = serde_json::from_slice(&has.stdout).unwrap_or_default();
                    if deed == Sleep && has["stored_is_current"] == true {
                        drop(world.try_page(world.address(1)));
                    }
                    drop(world.run(&["hibernate", NAME]));
                }
                RollBack => {
                    let listed = world.run(&["--json", "snapshot", "list", NAME]);
                    let listed: serde_json::Value =
                        serde_json::from_slice(&listed.stdout).unwrap_or_default();
                    let before = listed["versions"][1]["number"].to_string();
                    drop(world.run(&["snapshot", "restore", NAME, &before]));
                }
                Redeploy => {
                    let has = world.run(&["--json", "service", "show", NAME]);
                    let has: serde_json::Value = serde_json::from_slice(&has.stdout).unwrap_or_default();
                    let wanted = if has["resources"]["memory_mib"] == 128 { "136" } else { "128" };
                    drop(world.run(&["service", "redeploy", NAME, "--memory-mib", wanted]));
                    drop(world.try_page(world.address(1)));
                    drop(world.run(&["hibernate", NAME]));
                }
                Copies => drop(world.run(&["service", "clone", NAME, "copy.vm.test"])),
                End => drop(world.run(&["terminate", NAME])),
                Collect => drop(world.run(&["snapshot", "prune"])),
                Wake | Run | Start => {}
            }
            std::thread::sleep(LOOK);
        }
    });
}
