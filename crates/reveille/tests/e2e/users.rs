//! As whom QEMU runs below a daemon that is root, and what it can reach.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::small::text;
use crate::world::{HELLO, READY, Vm, World};

#[test]
fn qemu_is_a_user_of_its_own_for_each_instance_and_reaches_nothing_of_others() {
    if !is_root() {
        return;
    }
    let mut world = World::new().service(HELLO).service(READY).start();
    let nonces = [1, 2].map(|number| world.page_at(number).nonce);
    let vms = world.vms();
    let [first, second] = &vms[..] else { panic!("two guests were expected: {vms:?}") };
    let ids = [first, second].map(ids_of);
    for ids in ids {
        assert!(ids.uid >= 1_900_000_000 && ids.gid == ids.uid, "{ids:?}");
    }
    assert_ne!(ids[0], ids[1]);
    is_confined(&world, ids[0], first, second);

    // The next daemon takes them over, puts them to sleep, and wakes them as the same.
    world.kill9();
    world.restart();
    world.until_phase("hello.vm.test", "active");
    assert_eq!(world.vms(), vms);
    world.put_to_sleep("hello");
    assert_eq!([1, 2].map(|number| world.page_at(number).nonce), nonces);
    let woken = world.vms_of("hello.vm.test");
    assert_eq!(ids_of(&woken[0]), ids_of_instance(&woken[0].instance));
}

#[test]
fn a_named_user_runs_all_guests_and_they_are_kept_apart() {
    if !is_root() {
        return;
    }
    let nobody = text(&Command::new("id").args(["-u", "nobody"]).output().unwrap().stdout);
    let nobody: u32 = nobody.trim().parse().unwrap();
    let world = World::new().set("qemu", "user", "\"nobody\"").service(HELLO).service(READY).start();
    let _pages = [1, 2].map(|number| world.page_at(number));
    let vms = world.vms();
    let [first, second] = [&vms[0], &vms[1]].map(ids_of);
    assert_eq!((first.uid, second.uid), (nobody, nobody));
    assert_ne!(first.gid, second.gid);
    is_confined(&world, first, &vms[0], &vms[1]);
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        let _ = writeln!(std::io::stderr(), "NOT RUN: users of QEMU's own need root");
    }
    root
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ids {
    uid: u32,
    gid: u32,
}

/// As whom a process runs; it must not have been anybody else, have no rights, and be unable to get any.
fn ids_of(vm: &Vm) -> Ids {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid)).unwrap();
    let line = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {key} in {status}")).split_whitespace().collect::<Vec<_>>()
    };
    for rights in ["CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"] {
        assert_eq!(line(rights), ["0000000000000000"], "{rights}");
    }
    assert_eq!((line("NoNewPrivs"), line("Groups")), (vec!["1"], vec![]));
    let only = |key: &str| {
        let all = line(key);
        assert!(all.iter().all(|one| *one == all[0]), "{key}: {all:?}");
        all[0].parse().unwrap()
    };
    Ids { uid: only("Uid"), gid: only("Gid") }
}

fn ids_of_instance(instance: &str) -> Ids {
    let number: u32 = instance.trim_start_matches('i').parse().unwrap();
    Ids { uid: 1_900_000_000 + number, gid: 1_900_000_000 + number }
}

/// What somebody who has become this process could do, tried from where it is.
fn is_confined(world: &World, ids: Ids, own: &Vm, other: &Vm) {
    let instances = world.path("state/instances");
    let (own, other) = (instances.join(&own.instance), instances.join(&other.instance));
    // The temporary directory of this world is root's alone; its guests are confined without that.
    for dir in [world.path(""), world.path("state"), instances.clone()] {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let can = |script: &str, path: &Path| can(ids, &own, script, path);
    assert!(can("head -c 1 \"$1\" >/dev/null", Path::new("state/memory")), "its own memory");
    assert!(can("touch \"$1\"", Path::new("run/probe")), "its own sockets' directory");
    for (script, path) in [
        ("ls \"$1\"", other.clone()),
        ("head -c 1 \"$1\"", other.join("state/memory")),
        ("head -c 1 \"$1\"", other.join("serial.log")),
        ("test -S \"$1\"", other.join("run/qmp.sock")),
        ("head -c 1 \"$1\"", world.path("state/state")),
        ("touch \"$1\"", "probe".into()),
        ("touch \"$1\"", "state/probe".into()),
        ("rm \"$1\"", "serial.log".into()),
        ("rm \"$1\"", "state/memory".into()),
        ("mv \"$1\" run/state", "state".into()),
        ("head -c 1 \"$1\"", "lock".into()),
        ("touch \"$1\"", instances.join("i99")),
        (": >>\"$1\"", "image/0".into()),
    ] {
        assert!(!can(script, &path), "`{script}` of {}", path.display());
    }
    let state = fs::metadata(world.path("state/state")).expect("where the state database is");
    assert!(state.is_file() || state.is_dir());
}

fn can(ids: Ids, from: &Path, script: &str, path: &Path) -> bool {
    let (uid, gid) = (format!("--reuid={}", ids.uid), format!("--regid={}", ids.gid));
    let mut command = Command::new("setpriv");
    command.args([
        uid.as_str(),
        gid.as_str(),
        "--clear-groups",
        "--inh-caps=-all",
        "--",
        "sh",
        "-c",
        script,
        "sh",
    ]);
    command.arg(path).current_dir(from).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().expect("setpriv is missing; `make test` installs it").success()
}
