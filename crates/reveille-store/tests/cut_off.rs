//! The database under `kill -9` and on a full disk: this test binary runs itself again as the process that dies.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what failed by failing"
)]

mod child;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use reveille_core::model::{DomainName, Instance, InstanceId, Timestamp, Trigger, WakeRecord};
use reveille_core::model::{Rung, Stage};
use reveille_store::{Change, OpenError, Store, WriteError};

use child::{DIR, Delays, MARK, assert_survived, on_small_disk, this_test, told_until_killed};

/// A shell command by which the child gets room on its disk again.
const RELIEF: &str = "REVEILLE_TEST_STORE_RELIEF";
const KILLS: u32 = 30;
/// Instances that the child writes round and round.
const ROWS: u64 = 40;

fn row(id: u64, step: u64) -> Change {
    let service: DomainName = format!("s{id}.vm.test").parse().unwrap();
    let mut instance = Instance::new(InstanceId(id), service, Timestamp::from_ms(1));
    instance.start = step;
    Change::PutInstance(Box::new(instance))
}

fn wake(step: u64) -> Change {
    Change::AddWake(Box::new(WakeRecord {
        service: "hello.vm.test".parse().unwrap(),
        instance: InstanceId(1),
        trigger: Trigger::Operator,
        asks: 1,
        from: Rung::Local,
        at: Timestamp::from_ms(step),
        stages_us: vec![(Stage::Decided, 1)],
        outcome: None,
    }))
}

// --- kill -9 ---------------------------------------------------------------------------------------------------

/// The child: writes steps, several in flight, and says which are acknowledged, until it is killed.
#[test]
#[ignore = "is the child of the test below"]
fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (store, loaded) = Store::open(Path::new(&dir)).unwrap();
    let mut step = loaded.instances.iter().map(|row| row.start).max().unwrap_or(0);
    let (acks, waiting) = std::sync::mpsc::sync_channel(32);
    let reporter = std::thread::spawn(move || {
        let mut out = std::io::stdout().lock();
        for (step, ack) in waiting {
            let ack: reveille_store::Ack = ack;
            ack.wait().unwrap();
            writeln!(out, "{MARK}{step}").unwrap();
            out.flush().unwrap();
        }
    });
    loop {
        step += 1;
        // Two rows and a wake in one transaction: all or nothing of them may be there later.
        let changes = vec![row(step % ROWS + 1, step), row(ROWS + 1, step), wake(step)];
        if acks.send((step, store.write(changes))).is_err() {
            break;
        }
    }
    reporter.join().unwrap();
}

#[test]
fn every_acknowledged_change_survives_kill_9_at_random_moments() {
    let dir = tempfile::tempdir().unwrap();
    let mut delays = Delays::new();
    let mut acknowledged = 0;
    for round in 0..KILLS {
        let delay = delays.next(round, 14, 120_000);
        acknowledged = acknowledged.max(told_until_killed("child_writes_until_killed", dir.path(), delay));
        check(dir.path(), acknowledged, round);
    }
    assert!(acknowledged > 50, "only {acknowledged} steps in all rounds");
    println!("{acknowledged} steps acknowledged in {KILLS} rounds");
}

/// After reopening: all up to `acknowledged` is there, and the last transaction is there whole.
fn check(dir: &Path, acknowledged: u64, round: u32) {
    let opened = Instant::now();
    let (store, loaded) = Store::open(dir).unwrap_or_else(|error| panic!("round {round}: {error}"));
    println!("round {round}: {acknowledged} acknowledged, reopened in {:?}", opened.elapsed());
    let step_of =
        |id| loaded.instances.iter().find(|row| row.id == InstanceId(id)).map_or(0, |row| row.start);
    let last = step_of(ROWS + 1);
    assert!(last >= acknowledged, "round {round}: step {acknowledged} was acknowledged, {last} is there");
    for id in 1..=ROWS {
        let expected =
            (last.saturating_sub(ROWS - 1)..=last).rev().find(|step| step % ROWS + 1 == id).unwrap_or(0);
        assert_eq!(step_of(id), expected, "round {round}: row {id} of transaction {last}");
    }
    let wakes = store.wakes(&"hello.vm.test".parse().unwrap(), None, 1).unwrap();
    assert_eq!(wakes.first().map_or(0, |wake| wake.entry.at.as_ms()), last, "round {round}: the newest wake");
}

// --- Full disk -------------------------------------------------------------------------------------------------

/// The child: writes until the disk is full, makes room by the given command, and writes on.
#[test]
#[ignore = "is the child of the tests below"]
fn child_fills_its_disk() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (store, _) = Store::open(Path::new(&dir)).unwrap();
    let mut good = 0;
    let error = loop {
        match store.write(big(good + 1)).wait() {
            Ok(()) => good += 1,
            Err(error) => break error,
        }
        assert!(good < 100_000, "the disk is never full");
    };
    assert!(matches!(error, WriteError::NoSpace(_)), "{error:?}");
    // Still full: refused again, and no worse for it.
    assert!(store.write(big(good + 1)).wait().is_err(), "a full disk took a write");
    drop(store);
    let store = restart_on_full_disk(Path::new(&dir));
    store.write(big(good + 1)).wait().expect("there is room again");
    drop(store);
    let (_, loaded) = Store::open(Path::new(&dir)).unwrap();
    assert_eq!(loaded.instances.len() as u64, good + 1, "what was acknowledged before the disk was full");
    println!("{MARK}survived");
}

/// A daemon that starts on a full disk either comes up or names the disk; it never calls the file damaged.
fn restart_on_full_disk(dir: &Path) -> Store {
    let relieve = || {
        let relief = std::env::var(RELIEF).unwrap().replace("PID", &std::process::id().to_string());
        assert!(Command::new("sh").args(["-c", &relief]).status().unwrap().success());
    };
    match Store::open(dir) {
        Ok((store, _)) => {
            println!("came up on the full disk");
            relieve();
            store
        }
        Err(OpenError::Unusable { source, .. }) => {
            println!("did not come up: {source}");
            relieve();
            Store::open(dir).unwrap().0
        }
        Err(other) => panic!("{other}"),
    }
}

/// An instance whose row is about a hundred kilobytes.
fn big(id: u64) -> Vec<Change> {
    let mut instance = Instance::new(InstanceId(id), "big.vm.test".parse().unwrap(), Timestamp::from_ms(1));
    let detail = "x".repeat(100_000);
    instance.sleep_retry =
        Some((Timestamp::from_ms(1), reveille_core::model::Cause::CaptureFailed { detail }));
    vec![Change::PutInstance(Box::new(instance))]
}

#[test]
fn writes_work_again_after_the_largest_file_size_was_reached_and_raised() {
    let dir = tempfile::tempdir().unwrap();
    let child = this_test("child_fills_its_disk", dir.path());
    let mut command = Command::new("sh");
    // The signal of the limit is ignored, as a service manager does; the write then fails like on a full disk.
    command.args(["-c", "trap '' XFSZ; ulimit -S -f 4096; exec \"$@\"", "sh"]);
    command.arg(child.get_program()).args(child.get_args());
    command.env(DIR, dir.path()).env(RELIEF, "prlimit --pid PID --fsize=unlimited");
    assert_survived(command);
}

#[test]
fn writes_work_again_after_a_full_file_system_got_room() {
    let dir = tempfile::tempdir().unwrap();
    if let Some(mut command) = on_small_disk("child_fills_its_disk", dir.path(), 4) {
        command.env(RELIEF, format!("mount -o remount,size=64m {}", dir.path().display()));
        assert_survived(command);
    }
}
