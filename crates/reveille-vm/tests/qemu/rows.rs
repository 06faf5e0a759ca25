//! Guests that write to their disks are killed at random moments of all that can happen to them.

use std::time::Duration;

use reveille_core::model::{Found, Remains, Timestamp};
use reveille_vm::driver::{Abandon, Driver, Mapping};
use reveille_vm::qemu::Qemu;
use rustix::process::Signal;

use crate::disk::{acknowledged, found, image};
use crate::world::{World, boot, capture, restore};

/// What happens to a guest in one round, at a random moment of it.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// It runs.
    Running,
    /// A checkpoint is taken.
    Checkpoint,
    /// It is put to sleep.
    Capture,
    /// It is woken, in the version's own files or beside them.
    Wake(Mapping),
    /// It is warmed, paused, and let run.
    Warm,
}

/// Kills the guest's process after `delay`, if there is one by then.
async fn strike(world: &World, delay: Duration) {
    tokio::time::sleep(delay).await;
    for pid in world.processes() {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Does what the round is about, as far as it comes.
async fn suffer(world: &World, qemu: &Qemu, blow: Blow, number: u64) {
    let launch = world.launch();
    let now = Timestamp::from_ms(1_000);
    match blow {
        Blow::Running => tokio::time::sleep(Duration::from_millis(200)).await,
        Blow::Checkpoint => {
            drop(qemu.checkpoint(&launch, number, now).await);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Blow::Capture => drop(qemu.capture(&launch, number, now, &Abandon::default()).await),
        Blow::Wake(mapping) => {
            let _ = qemu.restore(&launch, mapping, &|_| ()).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Blow::Warm => {
            let _ = qemu.warm(&launch, &|_| ()).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            if qemu.pause(launch.instance).await.is_ok() {
                let _ = qemu.restore(&launch, Mapping::Beside, &|_| ()).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// `REVEILLE_TEST_ROWS` rounds, 6 by default; drawn from `REVEILLE_TEST_SEED`.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_acknowledged_is_never_lost() {
    let rounds = std::env::var("REVEILLE_TEST_ROWS").map_or(6, |text| text.parse().unwrap());
    let seed = std::env::var("REVEILLE_TEST_SEED").map_or_else(
        |_| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
        |text| text.parse().unwrap(),
    );
    println!("REVEILLE_TEST_SEED={seed}");
    let chance = Chance::new(seed);
    let world = World::of(image());
    let mut qemu = world.open().await;
    let launch = world.launch();
    let (mut row, mut nonce) = boot(&world, &qemu).await;
    for round in 0..rounds {
        let blow = match chance.below(6) {
            0 => Blow::Running,
            1 => Blow::Checkpoint,
            2 => Blow::Capture,
            3 => Blow::Wake(Mapping::Consume),
            4 => Blow::Wake(Mapping::Beside),
            _ => Blow::Warm,
        };
        if chance.below(3) == 0 {
            // Another daemon takes the guest over.
            qemu = world.open().await;
            assert_eq!(qemu.find(&launch, false).await, Found::Running);
        }
        // Something may be being folded.
        for _ in 0..chance.below(3) {
            qemu.beat(launch.instance, 5_000).await.unwrap();
        }
        if matches!(blow, Blow::Wake(_) | Blow::Warm) {
            capture(&world, &qemu, 2 * round + 1).await;
        }
        row = row.max(acknowledged(&world));
        let delay = Duration::from_micros(chance.below(800_000));
        tokio::join!(suffer(&world, &qemu, blow, 2 * round + 2), strike(&world, delay));

        let version = qemu.kill(launch.instance, Remains::All).await.unwrap();
        let what = format!("round {round}, {blow:?}, struck after {delay:?}");
        if version.is_some() {
            // What it said meanwhile was heard by nobody.
            restore(&world, &qemu).await;
            let (later, same) = world.tick_after(row).await;
            assert_eq!(same, nonce, "{what}");
            row = later;
        } else {
            row = row.max(acknowledged(&world));
            (_, nonce) = boot(&world, &qemu).await;
            let there = found(&world).await;
            assert!(there >= row, "{what}: row {row} was durable, {there} is the last");
        }
        row = world.tick_after(row + chance.below(16)).await.0;
        println!("{what}: {row} rows");
    }
}

/// Random numbers that are the same for the same seed (SplitMix64).
struct Chance(std::sync::Mutex<u64>);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(std::sync::Mutex::new(seed))
    }

    fn below(&self, bound: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
