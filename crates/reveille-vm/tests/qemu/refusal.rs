//! What cannot be done: one sentence with the remedy, and nothing lost.

use std::fs;
use std::path::Path;

use reveille_core::model::{Cause, Found, Remains, Resources};
use reveille_vm::driver::{Driver, DriverError, Launch, Mapping};
use reveille_vm::qemu::{OpenError, Qemu, QemuConfig};

use crate::world::{World, boot, capture, damage, restore};

fn detail(error: DriverError) -> String {
    match error {
        DriverError::Lost(Cause::VersionUnusable { detail }) => format!("version: {detail}"),
        DriverError::Lost(Cause::StartFailed { detail }) => format!("start: {detail}"),
        DriverError::Lost(_)
        | DriverError::RunsOn(_)
        | DriverError::NoProcess(_)
        | DriverError::Unsupported { .. } => panic!("{error}"),
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_version_is_refused_by_name_and_kept() {
    let world = World::new();
    let qemu = world.open().await;
    let (count, nonce) = boot(&world, &qemu).await;
    let version = capture(&world, &qemu, 1).await;
    let launch = world.launch();
    let state = world.dir().join("state");
    let before = files(&state);
    for (file, reason) in [
        ("manifest.json", "version: its manifest is damaged: "),
        ("device", "version: its device state is damaged: the checksum does not match"),
    ] {
        let path = state.join(file);
        let whole = fs::read(&path).unwrap();
        damage(&path);
        let refused = detail(qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap_err());
        assert!(refused.starts_with(reason), "{refused}");
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let refused = detail(qemu.arm(&launch, Mapping::Consume).await.unwrap_err());
        assert!(refused.starts_with("version: "), "{refused}");
        assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: None });
        assert_eq!(qemu.kill(launch.instance, Remains::All).await.unwrap(), None);
        assert_eq!(files(&state), before, "nothing is deleted");
        fs::write(&path, whole).unwrap();
    }

    let other_image = Launch { image: "another".to_owned(), ..launch.clone() };
    let refused = detail(qemu.restore(&other_image, Mapping::Consume, &|_| ()).await.unwrap_err());
    assert_eq!(refused, "version: it was taken from another image");
    assert_eq!(qemu.find(&other_image, false).await, Found::Nothing { version: None });
    qemu.arm(&launch, Mapping::Consume).await.unwrap();
    assert_eq!(
        qemu.find(&other_image, false).await,
        Found::Untouched { version: version.clone(), armed: false }
    );
    qemu.disarm(launch.instance).await.unwrap();
    let larger = Launch {
        resources: Resources { cpus: 1, memory_mib: 128, ..Resources::default() },
        ..launch.clone()
    };
    let refused = detail(qemu.restore(&larger, Mapping::Consume, &|_| ()).await.unwrap_err());
    assert!(refused.contains("112 MiB") && refused.contains("128 MiB"), "{refused}");

    assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: Some(version) });
    restore(&world, &qemu).await;
    assert_eq!(world.tick_after(count).await.1, nonce);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_state_that_qemu_cannot_read_leaves_the_version() {
    let world = World::new();
    let qemu = world.open().await;
    boot(&world, &qemu).await;
    let version = capture(&world, &qemu, 1).await;
    // Armed with a sound version; then the file is changed, with a manifest that vouches for the change.
    let device = world.dir().join("state/device");
    let sound = fs::read(&device).unwrap();
    let hollow = vec![0_u8; sound.len()];
    let manifest = fs::read_to_string(world.manifest()).unwrap();
    let body = manifest
        .lines()
        .next()
        .unwrap()
        .replace(blake3::hash(&sound).to_hex().as_str(), blake3::hash(&hollow).to_hex().as_str());
    fs::write(world.manifest(), format!("{body}\n\"blake3:{}\"\n", blake3::hash(body.as_bytes()).to_hex()))
        .unwrap();
    fs::write(&device, hollow).unwrap();
    let refused = detail(qemu.restore(&world.launch(), Mapping::Consume, &|_| ()).await.unwrap_err());
    assert!(refused.starts_with("version: "), "{refused}");
    let left = qemu.kill(world.launch().instance, Remains::All).await.unwrap().unwrap();
    assert_eq!(left, version);
    assert!(world.processes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_larger_than_the_disk_is_refused_before_it_starts() {
    let world = World::new();
    let qemu = world.open().await;
    let resources = Resources { cpus: 1, memory_mib: 1 << 20, ..Resources::default() };
    let launch = Launch { resources, ..world.launch() };
    let refused = detail(qemu.boot(&launch, &|_| ()).await.unwrap_err());
    assert!(refused.starts_with("start: the disk of `") && refused.ends_with("make room there"), "{refused}");
    assert!(world.processes().is_empty());

    boot(&world, &qemu).await;
    let version = capture(&world, &qemu, 1).await;
    qemu.boot(&launch, &|_| ()).await.unwrap_err();
    assert_eq!(
        qemu.find(&world.launch(), false).await,
        Found::Nothing { version: Some(version) },
        "it is not set aside"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_not_looked_for_is_not_trampled_on() {
    let world = World::new();
    let (count, nonce) = {
        let earlier = world.open().await;
        boot(&world, &earlier).await
    };
    let qemu = world.open().await;
    let launch = world.launch();
    let refused = detail(qemu.boot(&launch, &|_| ()).await.unwrap_err());
    assert_eq!(refused, "start: an earlier process of it is still there; end it first");
    qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap_err();
    assert_eq!(world.tick_after(count).await.1, nonce);
    assert_eq!(qemu.find(&launch, false).await, Found::Running);
    capture(&world, &qemu, 1).await;
    restore(&world, &qemu).await;
    assert_eq!(world.tick_after(count).await.1, nonce);
    drop(qemu);

    let qemu = world.open().await;
    assert_eq!(qemu.kill(launch.instance, Remains::All).await.unwrap(), None);
    assert!(world.processes().is_empty(), "a kill finds it by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_files_are_named_with_the_remedy() {
    let world = World::new();
    let qemu = world.open().await;
    let launch = Launch { kernel: "/nowhere/vmlinuz".into(), ..world.launch() };
    let refused = detail(qemu.boot(&launch, &|_| ()).await.unwrap_err());
    assert!(refused.starts_with("start: `/nowhere/vmlinuz` of its image cannot be read"), "{refused}");
    assert!(refused.ends_with("build the image again"), "{refused}");
    // A kernel that is none: QEMU's own words.
    let launch = Launch { kernel: world.temp.path().join("initrd"), ..world.launch() };
    let refused = qemu.boot(&launch, &|_| ()).await;
    if let Err(refused) = refused {
        assert!(detail(refused).starts_with("start: "));
    }

    let gone = Qemu::open(QemuConfig { binary: "no-such-qemu".into(), ..world.config() }).await.unwrap_err();
    assert!(matches!(gone, OpenError::NotFound { .. }), "{gone}");
    assert!(gone.to_string().contains("install the package"), "{gone}");
    let other = Qemu::open(QemuConfig { binary: "/bin/true".into(), ..world.config() }).await.unwrap_err();
    assert!(matches!(other, OpenError::NotWorking { .. }), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_without_a_process_say_so() {
    let world = World::new();
    let qemu = world.open().await;
    let instance = world.launch().instance;
    assert!(matches!(qemu.beat(instance, 100).await, Err(DriverError::NoProcess(_))));
    assert!(matches!(qemu.network(instance).await, Err(DriverError::NoProcess(_))));
    assert!(matches!(qemu.resume(&world.launch()).await, Err(DriverError::NoProcess(_))));
    assert!(matches!(qemu.disarm(instance).await, Err(DriverError::NoProcess(_))));
    assert_eq!(qemu.cpu_ms(instance), None);
    assert_eq!(qemu.disk_io(instance), None);
    assert_eq!(qemu.died(instance).await, "it had no process");
    boot(&world, &qemu).await;
    let refused = qemu.disarm(instance).await.unwrap_err();
    assert!(
        matches!(refused, DriverError::Unsupported { .. }),
        "a guest that has run is not disarmed: {refused}"
    );
    let twice = detail(qemu.boot(&world.launch(), &|_| ()).await.unwrap_err());
    assert_eq!(twice, "start: an earlier process of it is still there; end it first");
}
