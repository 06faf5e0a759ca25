//! A disk that is full when a service is to sleep, to be checkpointed or to come from the object store: what runs goes on, who
//! asks is told why, and it goes its way when there is room.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::Place;
use crate::small::{say, text, until, word};
use crate::wire;
use crate::world::{HELLO, World};

const NAME: &str = "hello.vm.test";
/// Set for what runs where it may mount a file system.
const MARK: &str = "REVEILLE_TEST_IN_NAMESPACE";
/// What is left on the disk when it is full: less than a hibernation wants, enough for a guest that goes on.
const LEFT_MIB: u64 = 10;

#[test]
fn a_full_disk_keeps_the_guest_awake_until_there_is_room() {
    in_a_mount_namespace("disk::asleep_inside_a_mount_namespace");
}

#[test]
fn a_full_disk_delays_checkpoints_and_what_is_to_be_fetched() {
    in_a_mount_namespace("disk::stored_inside_a_mount_namespace");
}

/// Runs the ignored test where it may mount a file system.
fn in_a_mount_namespace(test: &str) {
    // Namespaces of its own need no privilege where the kernel grants them to users, and nothing stays mounted.
    let user: &[&str] =
        if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(user).arg("--mount");
        command
    };
    if !unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        say("full disk: SKIPPED, this host grants no mount namespace");
        return;
    }
    let _place = Place::take();
    let mut command = unshare();
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--ignored", "--nocapture"]);
    let output = command.env(MARK, "1").output().unwrap();
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    told.lines().filter(|line| line.starts_with("    ")).for_each(|line| say(line.trim()));
}

#[test]
#[ignore = "run by the test above, in a namespace of its own"]
fn asleep_inside_a_mount_namespace() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    // Room for the guest's memory (128 MiB) and what a boot wants beside it.
    let disk_mib = 192;
    let world = World::new()
        .policy("idle_ms", 300)
        .policy("backoff_ms_max", 1_000)
        .policy("cooloff_ms", 1_000)
        .service(HELLO);
    let state = world.path("state");
    mount_for(&state, disk_mib);
    let mut world = world.start();
    // Awake as long as somebody is connected.
    let connection = wire::connect(SocketAddr::new(world.address(1).into(), 7_007)).unwrap();
    world.until_phase("hello.vm.test", "active");
    let filler = fill(&state);

    let first = world.page();
    drop(connection);
    let complaint = "MiB free and 16 MiB are needed; make room there";
    let told = until("the refusal", || {
        let why = world.why("hello");
        why.to_string().contains(complaint).then_some(why)
    });
    assert_ne!(told["phase"], "failed");
    for _ in 0..20 {
        let page = world.page();
        assert_eq!(page.nonce, first.nonce);
    }
    world.vm();
    let refused = world.refused(&["hibernate", "hello"]);
    assert!(refused.contains(complaint), "{refused}");
    assert_eq!(world.page().nonce, first.nonce);
    // A stop loses nothing either: what cannot sleep is left to the next daemon.
    let running = world.vm();
    world.stop();
    assert_eq!(world.vm(), running);
    world.restart();
    assert_eq!(world.page().nonce, first.nonce);

    fs::remove_file(&filler).unwrap();
    let shown = world.until_phase("hello.vm.test", "hibernated");
    assert_eq!(word(&shown["rung"]), "local");

    // Full again: it cannot be woken either, and is not given up for a cold boot.
    fill(&state);
    let refused = world.refused(&["wake", "hello"]);
    assert!(refused.contains("are needed; make room there"), "{refused}");
    fs::remove_file(&filler).unwrap();
    let woken = until("the end of the cool-off", || world.try_page(world.address(1)).ok());
    assert_eq!(woken.nonce, first.nonce);
    say("full disk: refused with its sentence, served on, slept when there was room, nonce unchanged");
}

#[test]
#[ignore = "run by the test above, in a namespace of its own"]
fn stored_inside_a_mount_namespace() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    let depot = tempfile::tempdir().unwrap();
    let world = World::new()
        .set("depot", "url", format!("\"file://{}\"", depot.path().display()))
        .policy("rest", "\"remote\"")
        .policy("checkpoint_ms", 1_000)
        .policy("backoff_ms_max", 1_000)
        .policy("cooloff_ms", 1_000)
        .service(HELLO);
    let state = world.path("state");
    // The guest's memory, a checkpoint's, and what is kept free beside them.
    mount_for(&state, 480);
    let world = world.start();
    let first = world.page();
    let stored = |shown: &serde_json::Value| shown["stored"]["number"].as_u64().unwrap_or(0);
    world.until_shown(NAME, "a checkpoint", |shown| stored(shown) > 0);

    let filler = fill(&state);
    let complaint = "are needed; make room there";
    until("a checkpoint that is refused", || world.log().contains(complaint).then_some(()));
    assert_eq!(world.page().nonce, first.nonce);
    let before = stored(&world.show(NAME));
    fs::remove_file(&filler).unwrap();
    world.until_shown(NAME, "the next checkpoint", |shown| stored(shown) > before);

    world.put_to_sleep("hello");
    world.until_shown(NAME, "to be in the store alone", |shown| shown["rung"] == "remote");
    fill(&state);
    let refused = world.refused(&["wake", "hello"]);
    // In the middle of the fetch, or before the guest is started: what was still being cleared away makes some room.
    assert!(refused.contains("No space left on device") || refused.contains(complaint), "{refused}");
    assert_ne!(world.show(NAME)["rung"], "cold", "nothing is given up for that");
    fs::remove_file(&filler).unwrap();
    let woken = until("the end of the cool-off", || world.try_page(world.address(1)).ok());
    assert_eq!(woken.nonce, first.nonce);
    say("full disk: checkpoints and fetches refused, served on, done when there was room, nonce unchanged");
}

/// A file system of its own over the state directory, which keeps its images.
fn mount_for(state: &Path, mib: u64) {
    let images = fs::read_link(state.join("images")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
        .arg(state)
        .status()
        .unwrap();
    assert!(mounted.success());
    std::os::unix::fs::symlink(images, state.join("images")).unwrap();
}

/// Fills the disk of `dir` but for a little; returns the file that does it.
fn fill(dir: &Path) -> PathBuf {
    let disk = rustix::fs::statvfs(dir).unwrap();
    let free = disk.f_bavail * disk.f_frsize;
    let filler = dir.join("filler");
    fs::write(&filler, vec![1; usize::try_from(free - (LEFT_MIB << 20)).unwrap()]).unwrap();
    filler
}
