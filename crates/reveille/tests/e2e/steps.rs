//! `kill -9` of the daemon at every named step of sleep, upload, wake, fetch and checkpoint: whatever the step, the next
//! daemon has the guest, and has it once.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::small::{LOOK, say};
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
    /// Nothing: the guest runs.
    Run,
}

use Deed::{Run, Sleep, Wake};

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

fn walk(world: World, steps: &[(&str, Deed)]) {
    let mut world = world.start();
    let nonce = world.page().nonce;
    for (step, deed) in steps {
        match deed {
            Sleep | Run => drop(world.page()),
            Wake => {
                world.put_to_sleep(NAME);
                let rest = world.show(NAME)["policy"]["rest"].clone();
                world.until_shown(NAME, "it to rest, and to be stored", |shown| {
                    shown["stored_is_current"] == true && shown["rung"] == rest
                });
            }
        }
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
        assert_eq!(world.page().nonce, nonce, "killed at {step}, {found}: another guest");
        world.until_phase(NAME, "active");
        assert_eq!(world.vms().len(), 1, "killed at {step}: {:?}", world.vms());
        say(&format!("{deed:?} killed at {step}: {left} process left, {found}"));
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
            if deed == Sleep {
                let _ = world.run(&["hibernate", NAME]);
            }
            std::thread::sleep(LOOK);
        }
    });
}
