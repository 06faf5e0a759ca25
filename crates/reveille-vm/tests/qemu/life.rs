//! The way through a life: boot, sleep, wake, arm, and the network link.

use std::time::Duration;

use reveille_core::model::{Egress, Found, Remains, Stage};
use reveille_vm::driver::{Driver, Launch, Mapping};
use reveille_vm::qemu::{Accel, AccelChoice, KvmVerdict, Qemu, QemuConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::world::{World, boot, capture, restore, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_woken_guest_goes_on_where_it_was() {
    let world = World::new();
    let qemu = world.open().await;
    let (count, nonce) = boot(&world, &qemu).await;
    qemu.beat(world.launch().instance, 5_000).await.unwrap();

    let first = capture(&world, &qemu, 1).await;
    assert_eq!((first.number, first.image.as_str()), (1, "0123abcd"));
    assert!(first.stored_bytes > 1 << 20, "{first:?}");
    assert!(first.paused_us > 0, "{first:?}");
    assert!(world.processes().is_empty(), "the process ends with the capture");
    assert_eq!(qemu.find(&world.launch(), false).await, Found::Nothing { version: Some(first) });

    assert_eq!(restore(&world, &qemu).await, [Stage::Spawned, Stage::Restored, Stage::Running]);
    assert!(!world.manifest().exists(), "a guest that runs has consumed its version");
    let (later, same) = world.tick_after(count).await;
    assert_eq!(same, nonce);
    assert!(later < count + 100, "it counted from {count} to {later} while it slept");
    assert_eq!(qemu.find(&world.launch(), false).await, Found::Running);

    // The second sleep writes to the very memory file that the first was woken from.
    let second = capture(&world, &qemu, 2).await;
    qemu.arm(&world.launch(), Mapping::Consume).await.unwrap();
    let armed = world.process();
    qemu.arm(&world.launch(), Mapping::Consume).await.unwrap();
    assert_eq!(world.process(), armed, "an armed process stays");
    assert!(qemu.cpu_ms(world.launch().instance).is_some());
    assert_eq!(
        qemu.find(&world.launch(), false).await,
        Found::Untouched { version: second.clone(), armed: true }
    );
    assert!(qemu.disk_io(world.launch().instance).is_some());
    qemu.disarm(world.launch().instance).await.unwrap();
    assert_eq!(qemu.find(&world.launch(), false).await, Found::Nothing { version: Some(second) });
    let memory = || blake3::hash(&std::fs::read(world.dir().join("state/memory")).unwrap());
    let before = memory();
    qemu.arm(&world.launch(), Mapping::Consume).await.unwrap();
    assert_eq!(memory(), before, "an armed process writes nothing to the guest's memory");
    let armed = world.process();
    drop(qemu);
    let qemu = world.open().await;
    let found = qemu.find(&world.launch(), false).await;
    assert!(matches!(found, Found::Untouched { armed: true, .. }), "the next daemon has it armed: {found:?}");
    assert_eq!(restore(&world, &qemu).await, [Stage::Running]);
    assert_eq!(world.process(), armed, "the armed process is the one that wakes");
    assert_eq!(world.tick_after(later).await.1, nonce);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_boot_sets_a_version_aside_and_discarding_leaves_nothing() {
    let world = World::new();
    let qemu = world.open().await;
    let (_, nonce) = boot(&world, &qemu).await;
    capture(&world, &qemu, 1).await;
    let (_, other) = boot(&world, &qemu).await;
    assert_ne!(nonce, other);
    assert!(world.dir().join("aside/1/manifest.json").exists());
    assert!(world.dir().join("aside/1/memory").exists());

    assert_eq!(qemu.inventory().await, [world.launch().instance]);
    assert_eq!(qemu.kill(world.launch().instance, Remains::Nothing).await.unwrap(), None);
    assert!(qemu.inventory().await.is_empty());
    assert!(!world.dir().exists());
    assert!(world.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_link_reaches_the_guest_again_and_again() {
    for egress in [Egress::None, Egress::Nat] {
        let world = World::new();
        let qemu = world.open().await;
        let launch = Launch { egress, ..world.launch() };
        qemu.boot(&launch, &|_| ()).await.unwrap();
        let (count, _) = world.tick_after(0).await;
        for _ in 0..2 {
            let mut link = qemu.network(launch.instance).await.unwrap();
            who_has_the_guests_address(&mut link).await;
        }
        // A question that is put before the guest was restored is answered once it is.
        capture(&world, &qemu, 1).await;
        qemu.arm(&launch, Mapping::Consume).await.unwrap();
        let mut link = qemu.network(launch.instance).await.unwrap();
        link.write_all(&arp_request()).await.unwrap();
        restore(&world, &qemu).await;
        assert_eq!(tokio::time::timeout(Duration::from_secs(60), arp_reply(&mut link)).await, Ok(()));
        world.tick_after(count).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_drivers_measure_the_same_kvm() {
    let world = World::new();
    let config = QemuConfig { accel: AccelChoice::Auto, probe: Some(world.probe()), ..world.config() };
    let first = Qemu::open(config.clone()).await.unwrap();
    assert_ne!(*first.kvm(), KvmVerdict::Unprobed);
    let works = matches!(first.kvm(), KvmVerdict::Works { .. });
    let expected = if works { Accel::Kvm } else { Accel::Tcg };
    assert_eq!(first.capabilities().accelerator, expected.word());
    // Remembered: the second is not even given a guest to try.
    let second = Qemu::open(QemuConfig { probe: None, ..config }).await.unwrap();
    assert_eq!(second.kvm(), first.kvm());
}

/// Asks by ARP until the guest answers.
async fn who_has_the_guests_address(link: &mut UnixStream) {
    for _ in 0..60 {
        link.write_all(&arp_request()).await.unwrap();
        if tokio::time::timeout(Duration::from_secs(1), arp_reply(link)).await.is_ok() {
            return;
        }
    }
    panic!("the guest does not answer on its network link");
}

fn arp_request() -> Vec<u8> {
    let mut frame = vec![0, 0, 0, 42];
    frame.extend([0xff; 6]);
    frame.extend([0x52, 0x55, 10, 0, 2, 2, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend([0x52, 0x55, 10, 0, 2, 2, 10, 0, 2, 2]);
    frame.extend([0, 0, 0, 0, 0, 0, 10, 0, 2, 15]);
    frame
}

/// Reads frames until one is the guest's answer.
async fn arp_reply(link: &mut UnixStream) {
    loop {
        let length = link.read_u32().await.unwrap();
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        link.read_exact(&mut frame).await.unwrap();
        let is_reply = frame.get(12..22) == Some(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
        if is_reply && frame.get(22..28) == Some(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_of_a_driver_that_finds_nothing() {
    let world = World::new();
    let qemu = world.open().await;
    assert_eq!(qemu.find(&world.launch(), false).await, Found::Nothing { version: None });
    assert!(qemu.inventory().await.is_empty(), "looking creates nothing");
    assert_eq!(qemu.kill(world.launch().instance, Remains::All).await.unwrap(), None);
    until("no directory", || (!world.dir().exists()).then_some(())).await;
}
