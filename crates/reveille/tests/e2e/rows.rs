//! A service with a disk: what it told its clients is durable is there, whatever happened in between.

use std::fs;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::small::{from_environment, send, text, until, word};
use crate::wire;
use crate::world::World;

const ROWS: &str = r#"
[[service]]
name = "rows.vm.test"
image = "rows"
ports = ["tcp/8080"]
"#;

/// Who connects adds a row, and gets the number of rows once it is on the disk.
const INIT: &str = r#"#!/.reveille/busybox sh
b=/.reveille/busybox
$b mkdir -p /data
$b mount -t ext4 /dev/vda /data
while :; do $b nc -ll -p 8080 -e /srv/row; done
"#;
const ROW: &str = r#"#!/.reveille/busybox sh
b=/.reveille/busybox
echo row | $b dd conv=fsync 2>/dev/null >>/data/rows && $b wc -l </data/rows
"#;

/// Builds the image with the command, as a user does.
fn build(world: &World) {
    build_as(world, "rows");
}

/// The same under another name: with a disk of its own, as each has another file system.
fn build_as(world: &World, name: &str) {
    let root = world.path("root");
    for (file, content) in [("sbin/init", INIT), ("srv/row", ROW)] {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let disk = world.path("data.ext4");
    fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let made = Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&disk).output().unwrap();
    assert!(made.status.success(), "{}", text(&made.stderr));
    let cache = from_environment("REVEILLE_TEST_CACHE");
    let at = |path: &Path| path.to_str().unwrap().to_owned();
    let (state, root, disk, cache) = (at(&world.path("state")), at(&root), at(&disk), at(&cache));
    let image = world.json(&[
        "image",
        "build",
        name,
        "--root",
        &root,
        "--disk",
        &disk,
        "--package-cache",
        &cache,
        "--state-dir",
        &state,
    ]);
    assert_eq!(image["disk"]["bytes"], 32 << 20, "{image}");
}

/// Adds a row; how many there are then.
fn add(world: &World) -> u64 {
    try_add(world).unwrap()
}

fn try_add(world: &World) -> io::Result<u64> {
    let mut answer = String::new();
    let mut stream = wire::connect(SocketAddr::new(world.address(1).into(), 8_080))?;
    stream.read_to_string(&mut answer)?;
    answer.trim().parse().map_err(|_| io::Error::other(format!("`{answer}` is no number of rows")))
}

/// Kills the service's machine, and waits until that was seen.
fn kill_guest(world: &World) {
    send(world.vm().pid, Signal::KILL);
    world.until_shown("rows.vm.test", "the loss to be seen", |shown| shown["phase"] != "active");
}

#[test]
fn rows_outlive_sleep_crashes_and_the_way_to_the_object_store_and_back() {
    let depot = tempfile::tempdir().unwrap();
    let mut world = World::new()
        .own_images()
        .set("depot", "url", format!("\"file://{}\"", depot.path().display()))
        .set("depot", "host", "\"here\"")
        .policy("rest", "\"remote\"")
        .policy("checkpoint_ms", 1_000)
        .service(ROWS);
    build(&world);
    world = world.start();
    let mut rows = add(&world);
    let mut more = |world: &World| {
        let now = add(world);
        assert!(now > rows, "there were {rows} rows, now there are {now}");
        rows = now;
    };
    more(&world);

    // Its guest dies: it boots from its disk.
    kill_guest(&world);
    more(&world);

    // It sleeps until nothing of it is on this host, and comes back.
    world.put_to_sleep("rows");
    world.until_shown("rows.vm.test", "rows to be remote alone", |shown| shown["rung"] == "remote");
    assert!(!world.path("state/instances/i1/state/disks").exists());
    more(&world);

    // Some checkpoints later, each with a layer of its own, its guest dies again.
    let stored = world.show("rows.vm.test")["stored"]["number"].as_u64().unwrap();
    world.until_shown("rows.vm.test", "two more checkpoints", |shown| {
        shown["stored"]["number"].as_u64().is_some_and(|number| number >= stored + 2)
    });
    more(&world);
    kill_guest(&world);
    more(&world);

    // The whole host dies.
    send(world.vm().pid, Signal::KILL);
    world.kill9();
    world.restart();
    more(&world);
}

/// A service of the API, which can be given something else to run.
fn serve(world: &World) {
    let arguments = ["service", "add", "rows.vm.test", "--image", "rows", "--port", "tcp/8080"];
    world.json(&arguments);
}

/// Adds a row to a service wherever it is.
fn add_there(world: &World) -> u64 {
    let address = word(&world.show("rows.vm.test")["address"]).parse().unwrap();
    let mut answer = String::new();
    let mut stream = wire::connect(SocketAddr::new(address, 8_080)).unwrap();
    stream.read_to_string(&mut answer).unwrap();
    answer.trim().parse().unwrap_or_else(|_| panic!("`{answer}` is no number of rows"))
}

fn asleep_in_the_store_alone(world: &World) {
    world.put_to_sleep("rows");
    world.until_shown("rows.vm.test", "rows to be remote alone", |shown| shown["rung"] == "remote");
}

/// Rows that a service has before it is given something else to run: more than a new disk has after a first client, as
/// the check whether it is ready adds one as well.
const MANY: u64 = 6;

fn add_many(world: &World) -> u64 {
    until("many rows", || Some(add_there(world)).filter(|rows| *rows > MANY))
}

fn is_new(rows: u64) -> bool {
    rows <= MANY / 2
}

#[test]
fn a_disk_outlives_other_resources_and_images_and_the_end_and_the_removal_of_its_service() {
    let depot = tempfile::tempdir().unwrap();
    let world = World::new()
        .own_images()
        .set("depot", "url", format!("\"file://{}\"", depot.path().display()))
        .policy("rest", "\"remote\"");
    build_as(&world, "rows");
    build_as(&world, "rows-2");
    let world = world.start();
    serve(&world);
    let mut rows = add_many(&world);
    let mut goes_on = |world: &World, after: &str| {
        let now = add_there(world);
        assert!(now > rows, "after {after}: there were {rows} rows, now there are {now}");
        rows = now;
    };

    // While all of it is in the store: a cold boot, from its disk.
    asleep_in_the_store_alone(&world);
    world.json(&["service", "redeploy", "rows", "--memory-mib", "144"]);
    goes_on(&world, "more memory");

    asleep_in_the_store_alone(&world);
    let first = world.show("rows.vm.test")["stored"]["number"].clone();
    world.json(&["service", "redeploy", "rows", "--image", "rows-2"]);
    assert!(is_new(add_there(&world)), "another image has a disk of its own");
    asleep_in_the_store_alone(&world);
    let back = world.json(&["service", "rollback", "rows"]);
    assert_eq!(back["restored"]["from"], first, "{back}");
    goes_on(&world, "a roll-back");
    let needed = world.refused(&["image", "remove", "rows-2", "--config", &config(&world)]);
    assert!(needed.contains("service rollback rows.vm.test"), "{needed}");

    world.json(&["terminate", "rows"]);
    goes_on(&world, "its end");
    asleep_in_the_store_alone(&world);

    let there = world.json(&["snapshot", "list", "rows"])["versions"].as_array().unwrap().len();
    let removed = world.run(&["service", "remove", "rows"]);
    assert!(text(&removed.stdout).contains("its versions stay in the object store"), "{removed:?}");
    serve(&world);
    assert_eq!(world.json(&["snapshot", "list", "rows"])["versions"].as_array().unwrap().len(), there);
    goes_on(&world, "its removal");
}

fn config(world: &World) -> String {
    world.path("reveille.toml").to_str().unwrap().to_owned()
}

#[test]
fn without_a_store_the_disk_of_an_image_is_found_again_and_a_slip_in_the_config_costs_none() {
    let world = World::new().own_images();
    build_as(&world, "rows");
    build_as(&world, "rows-2");
    let mut world = world.start();
    serve(&world);
    let rows = add_many(&world);
    world.put_to_sleep("rows");
    world.json(&["service", "redeploy", "rows", "--image", "rows-2"]);
    assert!(is_new(add_there(&world)));
    let needed = world.refused(&["image", "remove", "rows", "--config", &config(&world)]);
    assert!(needed.contains("rows.vm.test") && needed.contains("aside/1"), "{needed}");
    world.put_to_sleep("rows");
    world.json(&["service", "rollback", "rows"]);
    let back = add_there(&world);
    assert!(back > rows, "there were {rows} rows, now there are {back}");
    world.put_to_sleep("rows");
    world.json(&["terminate", "rows"]);
    let ended = add_there(&world);
    assert!(ended > back, "there were {back} rows, now there are {ended}");
    world.run(&["service", "remove", "rows"]);
    assert!(world.path("state/removed/i1/state/disks").exists());

    // Declared, then forgotten, then declared again.
    world.declare(&[ROWS]);
    world.stop();
    world.restart();
    let rows = add_many(&world);
    world.put_to_sleep("rows");
    let instance = world.show("rows.vm.test")["instance"].clone();
    world.declare(&[]);
    world.stop();
    world.restart();
    let kept = world.path(&format!("state/removed/i{instance}"));
    assert!(kept.join("state/disks").exists() && world.vms().is_empty());
    world.declare(&[ROWS]);
    world.stop();
    world.restart();
    // By hand: its new instance is given what the old one had.
    let instance = world.show("rows.vm.test")["instance"].clone();
    world.stop();
    fs::rename(kept, world.path(&format!("state/instances/i{instance}"))).unwrap();
    world.restart();
    let back = add_there(&world);
    assert!(back > rows, "there were {rows} rows, now there are {back}");
}

/// Steps at which a disk's layers are half of one state and half of the other.
const STEPS: [&str; 4] = ["vm.layer.recorded", "vm.checkpoint.stopped", "vm.fold.begun", "vm.fold.recorded"];

#[test]
fn a_kill_at_any_step_of_a_new_layer_and_of_folding_costs_no_row() {
    let depot = tempfile::tempdir().unwrap();
    let mut world = World::new()
        .own_images()
        .set("depot", "url", format!("\"file://{}\"", depot.path().display()))
        .set("depot", "host", "\"here\"")
        .policy("checkpoint_ms", 1_000)
        .service(ROWS);
    build(&world);
    world = world.start();
    let mut rows = add(&world);
    for step in STEPS {
        // The daemon alone, then its guest with it.
        for guest_too in [false, true] {
            world.kill9();
            world.end_at(step);
            // It may come to the step while it starts; otherwise while clients come and go.
            if world.try_start().is_ok() {
                until(&format!("the daemon to end at {step}"), || {
                    if let Ok(now) = try_add(&world) {
                        assert!(now > rows, "{step}: there were {rows} rows, now there are {now}");
                        rows = now;
                    }
                    (!world.is_running()).then_some(())
                });
                world.ended();
            }
            for vm in world.vms().into_iter().filter(|_| guest_too) {
                send(vm.pid, Signal::KILL);
            }
            world.end_at("");
            world.restart();
            let now = add(&world);
            assert!(now > rows, "{step}: there were {rows} rows, now there are {now}");
            rows = now;
        }
    }
}
