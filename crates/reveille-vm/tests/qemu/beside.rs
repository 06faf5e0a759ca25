//! Versions whose files stay as they are while a guest runs from them, and versions of guests that run on.

use std::fs;

use reveille_core::model::{Found, Remains, Timestamp};
use reveille_vm::driver::{Driver, Mapping};

use crate::world::{World, boot, capture, restore, until};

/// What a version consists of, as hashes.
fn version_of(world: &World) -> [blake3::Hash; 2] {
    ["memory", "device"].map(|file| blake3::hash(&fs::read(world.dir().join("state").join(file)).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_runs_beside_its_version_leaves_it_as_it_is_and_sleeps_into_a_new_one() {
    let world = World::new();
    let qemu = world.open().await;
    let (mut count, nonce) = boot(&world, &qemu).await;
    capture(&world, &qemu, 1).await;
    for number in 2..4 {
        let before = version_of(&world);
        qemu.restore(&world.launch(), Mapping::Beside, &|_| ()).await.unwrap();
        let (later, same) = world.tick_after(count).await;
        assert_eq!(same, nonce);
        assert_eq!(version_of(&world), before, "what runs writes elsewhere");
        assert!(!world.manifest().exists(), "and may not be restored from it again");

        let version = capture(&world, &qemu, number).await;
        assert_ne!(version_of(&world), before);
        assert!(world.processes().is_empty());
        assert!(!world.dir().join("next").exists());
        assert_eq!(qemu.find(&world.launch(), false).await, Found::Nothing { version: Some(version) });
        count = later;
    }
    // Such a version is one like any other.
    restore(&world, &qemu).await;
    let (later, same) = world.tick_after(count).await;
    assert_eq!(same, nonce);
    assert!(later < count + 200, "it counted from {count} to {later} while it slept");
    capture(&world, &qemu, 4).await;
    qemu.arm(&world.launch(), Mapping::Beside).await.unwrap();
    restore(&world, &qemu).await;
    assert_eq!(world.tick_after(later).await.1, nonce);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_instance_goes_on_at_once_and_costs_nothing_when_it_is_ended() {
    let world = World::new();
    let qemu = world.open().await;
    let (count, nonce) = boot(&world, &qemu).await;
    let launch = world.launch();
    assert!(qemu.pause(launch.instance).await.is_err(), "a guest that clients have seen is not paused");
    let version = capture(&world, &qemu, 1).await;
    for ended in [true, false] {
        qemu.warm(&launch, &|_| ()).await.unwrap();
        let (warm, _) = world.tick_after(count).await;
        qemu.pause(launch.instance).await.unwrap();
        assert!(world.manifest().exists());
        let still = world.tick();
        assert_eq!(
            qemu.find(&launch, false).await,
            Found::Untouched { version: version.clone(), armed: false }
        );
        assert_eq!(world.tick(), still, "it stands still");
        if ended {
            qemu.disarm(launch.instance).await.unwrap();
            assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: Some(version.clone()) });
        } else {
            let paused = world.process();
            restore(&world, &qemu).await;
            assert_eq!(world.process(), paused);
            assert!(!world.manifest().exists(), "from now on clients see it");
            assert_eq!(world.tick_after(warm).await.1, nonce);
        }
    }
}

/// A daemon is lost while it warms a guest that no client has seen: the next one has the version, as if that had not been.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_only_being_warmed_costs_no_version() {
    let world = World::new();
    let qemu = world.open().await;
    let (count, nonce) = boot(&world, &qemu).await;
    let launch = world.launch();
    let version = capture(&world, &qemu, 1).await;
    qemu.warm(&launch, &|_| ()).await.unwrap();
    world.tick_after(count).await;
    drop(qemu);
    let qemu = world.open().await;
    assert_eq!(qemu.find(&launch, true).await, Found::Untouched { version: version.clone(), armed: false });
    qemu.disarm(launch.instance).await.unwrap();
    assert_eq!(qemu.find(&launch, true).await, Found::Nothing { version: Some(version) });
    restore(&world, &qemu).await;
    assert_eq!(world.tick_after(count).await.1, nonce);
    // One that clients have seen is never taken for that, whatever its row says.
    drop(qemu);
    assert_eq!(world.open().await.find(&launch, true).await, Found::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_a_version_of_a_guest_that_runs_on() {
    let world = World::new();
    let qemu = world.open().await;
    let (_, nonce) = boot(&world, &qemu).await;
    let launch = world.launch();
    let mut taken = 0;
    // The second one begins with the pages of the first.
    for number in 1..3 {
        let checkpoint = qemu.checkpoint(&launch, number, Timestamp::from_ms(1_000)).await.unwrap();
        assert_eq!(checkpoint.version.number, number);
        assert_eq!(checkpoint.files.len(), 3);
        assert!(checkpoint.version.paused_us > 0);
        taken = world.tick().unwrap().0;
        assert_eq!(world.tick_after(taken).await.1, nonce, "it runs on");
        assert_eq!(qemu.find(&launch, false).await, Found::Running);
    }
    // The host is lost with everything but the checkpoint.
    qemu.kill(launch.instance, Remains::All).await.unwrap();
    fs::remove_dir_all(world.dir().join("state")).unwrap();
    fs::rename(world.dir().join("checkpoint"), world.dir().join("state")).unwrap();
    restore(&world, &qemu).await;
    let (later, same) = until("the guest", || world.tick()).await;
    assert_eq!(same, nonce);
    assert!(later < taken + 100, "it is as it was at {taken}, not later: {later}");
    // And it sleeps as it always did.
    capture(&world, &qemu, 3).await;
    restore(&world, &qemu).await;
    assert_eq!(world.tick_after(later).await.1, nonce);
}
