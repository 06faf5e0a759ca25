//! A disk that is full when a service is to sleep: it stays awake, says why, and sleeps when there is room.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::Place;
use crate::small::{say, text, until, word};
use crate::wire;
use crate::world::{HELLO, World};

/// The part of the test that runs where it may mount a file system.
const INSIDE: &str = "disk::inside_a_mount_namespace";
/// Set for it.
const MARK: &str = "REVEILLE_TEST_IN_NAMESPACE";
/// Room for the guest's memory (128 MiB) and what a boot wants beside it.
const DISK_MIB: u64 = 192;
/// What is left on the disk when it is full: less than a hibernation wants, enough for a guest that goes on.
const LEFT_MIB: u64 = 10;

#[test]
fn a_full_disk_keeps_the_guest_awake_until_there_is_room() {
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
    command.arg(std::env::current_exe().unwrap()).args(["--exact", INSIDE, "--ignored", "--nocapture"]);
    let output = command.env(MARK, "1").output().unwrap();
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
    told.lines().filter(|line| line.starts_with("    ")).for_each(|line| say(line.trim()));
}

#[test]
#[ignore = "run by the test above, in a namespace of its own"]
fn inside_a_mount_namespace() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    let world = World::new()
        .policy("idle_ms", 300)
        .policy("backoff_ms_max", 1_000)
        .policy("cooloff_ms", 1_000)
        .service(HELLO);
    let state = world.path("state");
    let images = fs::read_link(state.join("images")).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={DISK_MIB}m"), "tmpfs"])
        .arg(&state)
        .status()
        .unwrap();
    assert!(mounted.success());
    std::os::unix::fs::symlink(images, state.join("images")).unwrap();
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

/// Fills the disk of `dir` but for a little; returns the file that does it.
fn fill(dir: &Path) -> PathBuf {
    let disk = rustix::fs::statvfs(dir).unwrap();
    let free = disk.f_bavail * disk.f_frsize;
    let filler = dir.join("filler");
    fs::write(&filler, vec![1; usize::try_from(free - (LEFT_MIB << 20)).unwrap()]).unwrap();
    filler
}
