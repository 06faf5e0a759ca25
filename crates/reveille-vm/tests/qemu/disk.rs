//! Disks: what a guest was told is durable is there again, whatever became of the guest.
//!
//! The guest writes numbered rows to a file on its disk, one after another, and says that a row is written only when
//! `fsync` has returned. After a boot it says which row it found last.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use reveille_core::model::{Found, Remains, Timestamp};
use reveille_vm::driver::{Driver, Launch, Mapping, Refreshed};
use reveille_vm::image::{BUSYBOX, BuildRequest, Image, ImageStore, KernelSource, RootSource};
use reveille_vm::qemu::Qemu;
use rustix::process::Signal;

use crate::world::{World, boot, capture, from_environment, restore, until};

/// The guest's program. `tick N` is said of a row that is durable, `found N` after a boot; `lost` if the disk is not what
/// this guest has written.
const WRITES_ROWS: &str = r#"#!/.reveille/busybox sh
b=/.reveille/busybox
nonce=$($b od -An -N8 -tx1 /dev/urandom | $b tr -d ' \n')
$b mkdir -p /data
$b mount -t ext4 /dev/vda /data || echo "lost: no disk"
$b touch /data/rows
n=$($b tail -n 1 /data/rows)
n=${n:-0}
$b awk '$1 != NR { print "lost: row " NR " is " $1; exit }' /data/rows
echo "found $n of $nonce"
while :; do
    m=$((n + 1))
    if echo $m | $b dd conv=fsync 2>/dev/null >>/data/rows; then
        n=$m
        echo "tick $n of $nonce"
    else
        echo "failed $m"
    fi
    if [ $((n % 8)) = 0 ]; then
        echo 3 >/proc/sys/vm/drop_caches
        there=$($b tail -n 1 /data/rows)
        [ "$there" = $n ] || echo "lost: row $n, the last is $there"
    fi
done
"#;

/// An image whose disk has an empty file system, built once.
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let directory = from_environment("REVEILLE_TEST_STATE").join("disk-images");
        let store = ImageStore::open(directory).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        fs::create_dir_all(root.join("sbin")).unwrap();
        let init = root.join("sbin/init");
        fs::write(&init, WRITES_ROWS).unwrap();
        for path in [root.clone(), root.join("sbin"), init] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let disk = temp.path().join("disk");
        make_file_system(&disk, 64 << 20, None);
        let request = BuildRequest {
            disk: Some(disk),
            package_cache: Some(from_environment("REVEILLE_TEST_CACHE")),
            ..BuildRequest::new(RootSource::Directory(root), KernelSource::Debian)
        };
        store.build(&request, &mut |_| ()).unwrap()
    })
}

/// An image whose root, with a hook for after a wake, is on its disk.
fn on_disk(temp: &Path) -> Image {
    let root = temp.join("root");
    for directory in ["bin", "dev", "etc/reveille", "proc", "run", "sbin", "sys"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    let ticks =
        "#!/bin/sh\nn=0\nwhile :; do n=$((n + 1)); echo tick $n of root; /bin/busybox sleep 0.05; done\n";
    for (file, content) in [("sbin/init", ticks), ("etc/reveille/after-wake", "#!/bin/sh\n")] {
        fs::write(root.join(file), content).unwrap();
        fs::set_permissions(root.join(file), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let disk = temp.join("disk");
    make_file_system(&disk, 64 << 20, Some(&root));
    let request = BuildRequest {
        disk: Some(disk),
        package_cache: Some(from_environment("REVEILLE_TEST_CACHE")),
        ..BuildRequest::new(RootSource::OnDisk { device: "/dev/vda".to_owned() }, KernelSource::Debian)
    };
    ImageStore::open(temp.join("images")).unwrap().build(&request, &mut |_| ()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_root_is_on_its_disk_is_refreshed_as_any_other() {
    let temp = tempfile::tempdir().unwrap();
    let world = World::of(&on_disk(temp.path()));
    let qemu = world.open().await;
    let (count, _) = boot(&world, &qemu).await;
    capture(&world, &qemu, 1).await;
    restore(&world, &qemu).await;
    let refreshed = qemu.refresh(world.launch().instance, crate::world::PATIENCE).await;
    assert_eq!(refreshed, Refreshed::Done, "{}", console(&world));
    world.tick_after(count).await;
}

/// The same file system each time, empty or of that directory.
fn make_file_system(disk: &Path, bytes: u64, root: Option<&Path>) {
    fs::File::create(disk).unwrap().set_len(bytes).unwrap();
    let uuid = "5e0c4a0e-35a5-4b43-9a36-3c1d1b8f3f0a";
    let made = Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-F", "-U", uuid, "-E"])
        .arg(format!("hash_seed={uuid},lazy_itable_init=0,nodiscard"))
        .args(root.into_iter().flat_map(|root| [Path::new("-d"), root]))
        .arg(disk)
        .env("E2FSPROGS_FAKE_TIME", "1700000000")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// What the guest's console has.
fn console(world: &World) -> String {
    String::from_utf8_lossy(&fs::read(world.dir().join("serial.log")).unwrap_or_default()).into_owned()
}

/// The last row that the guest said is durable. It has lost none so far.
pub fn acknowledged(world: &World) -> u64 {
    let console = console(world);
    assert!(!console.contains("lost") && !console.contains("failed"), "{console}");
    world.tick().map_or(0, |(row, _)| row)
}

/// The first row that the guest wrote in this process.
async fn first_row(world: &World) -> u64 {
    let first = |console: String| {
        let whole = console.get(..=console.rfind('\n')?)?;
        whole.lines().find_map(|line| line.trim().strip_prefix("tick ")?.split(' ').next()?.parse().ok())
    };
    until("a row", || first(console(world))).await
}

/// Which row a guest that was booted found.
pub async fn found(world: &World) -> u64 {
    let seen = |console: String| {
        console
            .lines()
            .find_map(|line| Some(line.trim().strip_prefix("found ")?.split_once(' ')?.0.parse().unwrap()))
    };
    let row = until("what the guest found on its disk", || seen(console(world))).await;
    acknowledged(world);
    row
}

/// The layers that the record of the instance's disk names.
fn layers(world: &World) -> Vec<u64> {
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(world.dir().join("state/disks")).unwrap()).unwrap();
    record["layers"].as_array().unwrap().iter().map(|layer| layer.as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_survives_sleep_and_the_death_of_its_guest() {
    let world = World::of(image());
    let qemu = world.open().await;
    let launch = world.launch();
    let (mut row, nonce) = boot(&world, &qemu).await;
    assert_eq!(found(&world).await, 0);
    let version = capture(&world, &qemu, 1).await;
    row = row.max(acknowledged(&world));
    restore(&world, &qemu).await;
    let (later, same) = world.tick_after(row).await;
    assert_eq!(same, nonce, "it goes on where it was");

    // Its process dies, and with it the memory.
    world.signal(Signal::KILL);
    qemu.kill(launch.instance, Remains::All).await.unwrap();
    row = acknowledged(&world).max(later);
    assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: None });
    let (_, other) = boot(&world, &qemu).await;
    assert_ne!(other, nonce);
    let there = found(&world).await;
    assert!(there >= row, "row {row} was durable, {there} is the last");

    // Another sleep and wake, and a cold boot in spite of a version: it has the disk, too.
    capture(&world, &qemu, version.number + 1).await;
    row = acknowledged(&world);
    qemu.boot(&launch, &|_| ()).await.unwrap();
    let there = found(&world).await;
    assert!(there >= row, "row {row} was durable, {there} is the last");
    assert_eq!(layers(&world), [0, 1], "the version that was set aside keeps its disk");
    assert!(world.dir().join("aside/1/disk-0").exists());
    world.tick_after(there).await;
    // The layers that are read by others are not written to.
    let before = blake3::hash(&fs::read(world.dir().join("aside/1/disk-0")).unwrap());
    for _ in 0..5 {
        qemu.beat(launch.instance, 5_000).await.unwrap();
    }
    assert_eq!(layers(&world), [0, 1]);
    assert_eq!(blake3::hash(&fs::read(world.dir().join("aside/1/disk-0")).unwrap()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_beside_a_version_is_not_in_it() {
    let world = World::of(image());
    let qemu = world.open().await;
    let launch = world.launch();
    let (row, nonce) = boot(&world, &qemu).await;
    let version = capture(&world, &qemu, 1).await;
    let row = row.max(acknowledged(&world));
    let disk = |world: &World| blake3::hash(&fs::read(world.dir().join("state/disk-0")).unwrap());
    let before = disk(&world);

    // Warmed, paused, ended: as if it had never been.
    qemu.warm(&launch, &|_| ()).await.unwrap();
    world.tick_after(row).await;
    qemu.pause(launch.instance).await.unwrap();
    qemu.disarm(launch.instance).await.unwrap();
    assert_eq!(disk(&world), before);
    assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: Some(version) });

    // Warmed, paused, and let run for a client: it keeps what it wrote.
    qemu.warm(&launch, &|_| ()).await.unwrap();
    let (warm, _) = world.tick_after(row).await;
    qemu.pause(launch.instance).await.unwrap();
    restore(&world, &qemu).await;
    let (later, same) = world.tick_after(warm).await;
    assert_eq!((same, disk(&world)), (nonce.clone(), before));
    assert_eq!(layers(&world).len(), 2);
    capture(&world, &qemu, 2).await;
    qemu.restore(&launch, Mapping::Beside, &|_| ()).await.unwrap();
    let (later, same) = world.tick_after(later).await;
    assert_eq!(same, nonce);

    // Three layers are folded to two while it runs.
    assert_eq!(layers(&world).len(), 3);
    folded(&world, &qemu).await;
    let (later, _) = world.tick_after(later).await;
    world.signal(Signal::KILL);
    qemu.kill(launch.instance, Remains::All).await.unwrap();
    let row = acknowledged(&world).max(later);
    boot(&world, &qemu).await;
    let there = found(&world).await;
    assert!(there >= row, "row {row} was durable, {there} is the last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_has_the_disk_of_its_instant() {
    let world = World::of(image());
    let qemu = world.open().await;
    let launch = world.launch();
    let (_, nonce) = boot(&world, &qemu).await;
    let mut kept = Vec::new();
    for number in 1..4 {
        let checkpoint = qemu.checkpoint(&launch, number, Timestamp::from_ms(1_000)).await.unwrap();
        let taken = acknowledged(&world);
        assert_eq!(world.tick_after(taken).await.1, nonce, "it runs on");
        assert_eq!(qemu.find(&launch, false).await, Found::Running);
        // While the version is read its layers stay.
        qemu.beat(launch.instance, 5_000).await.unwrap();
        let dir = world.temp.path().join(format!("store-{number}"));
        fs::create_dir(&dir).unwrap();
        for (name, mut file) in checkpoint.files {
            std::io::copy(&mut file, &mut fs::File::create(dir.join(name)).unwrap()).unwrap();
        }
        kept.push((dir, taken));
        folded(&world, &qemu).await;
    }
    // The host is lost with all but what was kept; and what is kept comes back as it was at that instant.
    for (number, (dir, taken)) in (1..).zip(kept) {
        qemu.kill(launch.instance, Remains::Nothing).await.unwrap();
        let to = qemu.fetch_dir(launch.instance).await.unwrap();
        fs::rename(dir, to).unwrap();
        qemu.install(&launch, number).await.unwrap();
        restore(&world, &qemu).await;
        let row = first_row(&world).await;
        assert_eq!(world.tick().unwrap().1, nonce);
        assert!(row <= taken + 1, "{row} is later than {taken}");
        world.tick_after(row + 16).await;
        acknowledged(&world);
    }
    // Lost after that, it boots from the disk that it had.
    world.signal(Signal::KILL);
    qemu.kill(launch.instance, Remains::All).await.unwrap();
    let row = acknowledged(&world);
    boot(&world, &qemu).await;
    let there = found(&world).await;
    assert!(there >= row, "row {row} was durable, {there} is the last");
}

/// Waits until the instance's disk has two layers.
async fn folded(world: &World, qemu: &Qemu) {
    for _ in 0..500 {
        qemu.beat(world.launch().instance, 5_000).await.unwrap();
        if layers(world).len() <= 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the layers {:?} are not folded", layers(world));
}

/// Copies a version's files to where they are fetched to, as the object store would.
async fn fetch(qemu: &Qemu, launch: &Launch, files: Vec<(String, fs::File)>) {
    let to = qemu.fetch_dir(launch.instance).await.unwrap();
    fs::create_dir(&to).unwrap();
    for (name, mut file) in files {
        file.seek(SeekFrom::Start(0)).unwrap();
        std::io::copy(&mut file, &mut fs::File::create(to.join(name)).unwrap()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn going_back_to_a_version_keeps_the_disk_of_the_guest_that_was_lost() {
    let world = World::of(image());
    let qemu = world.open().await;
    let launch = world.launch();
    boot(&world, &qemu).await;
    let checkpoint = qemu.checkpoint(&launch, 1, Timestamp::from_ms(1_000)).await.unwrap();
    let row = acknowledged(&world);
    world.tick_after(row + 16).await;
    let left = layers(&world);
    qemu.kill(launch.instance, Remains::All).await.unwrap();

    fetch(&qemu, &launch, checkpoint.files).await;
    // In the store it has got another number since.
    let version = qemu.install(&launch, 3).await.unwrap();
    assert_eq!(version.number, 3);
    assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: Some(version) });
    for layer in left {
        assert!(world.dir().join(format!("aside/1/disk-{layer}")).exists());
    }
    restore(&world, &qemu).await;
    let back = first_row(&world).await;
    assert!(back < row + 16, "{back} is not what it was at {row}");
    acknowledged(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_in_the_store_alone_is_not_begun_anew() {
    let world = World::of(image());
    let qemu = world.open().await;
    let launch = world.launch();
    boot(&world, &qemu).await;
    assert!(qemu.evict(launch.instance).await.is_err(), "nobody else has what it wrote");
    boot(&world, &qemu).await;
    capture(&world, &qemu, 1).await;
    let row = acknowledged(&world);
    let files = qemu.version_files(launch.instance).await.unwrap().files;
    qemu.evict(launch.instance).await.unwrap();
    assert!(!world.dir().join("state/disk-0").exists());
    let refused = qemu.boot(&launch, &|_| ()).await.unwrap_err().to_string();
    assert!(refused.contains("its disk is in the object store alone"), "{refused}");

    // A file that names another one is not opened.
    fetch(
        &qemu,
        &launch,
        files.iter().map(|(name, file)| (name.clone(), file.try_clone().unwrap())).collect(),
    )
    .await;
    let layer = world.dir().join("fetched/disk-0");
    let mut bytes = fs::read(&layer).unwrap();
    bytes[79] |= 4;
    fs::write(&layer, bytes).unwrap();
    let refused = qemu.install(&launch, 1).await.unwrap_err().to_string();
    assert!(
        refused.contains("the layer disk-0 of its disk cannot be used: its data lies in another file"),
        "{refused}"
    );

    fetch(&qemu, &launch, files).await;
    qemu.install(&launch, 1).await.unwrap();
    restore(&world, &qemu).await;
    world.tick_after(row).await;
    acknowledged(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_base_is_another_disk_and_the_old_one_is_kept() {
    let world = World::of(image());
    let qemu = world.open().await;
    let launch = world.launch();
    let (row, _) = boot(&world, &qemu).await;
    capture(&world, &qemu, 1).await;

    // The same disk under another kernel, say: the instance goes on from what it wrote.
    let other_kernel = Launch { image: "4567cdef".to_owned(), ..launch.clone() };
    assert_eq!(qemu.find(&other_kernel, false).await, Found::Nothing { version: None });
    qemu.boot(&other_kernel, &|_| ()).await.unwrap();
    let there = found(&world).await;
    assert!(there >= row);
    world.tick_after(there).await;
    qemu.kill(launch.instance, Remains::All).await.unwrap();
    let gone_on = acknowledged(&world);

    let mut disk = launch.disk.clone().unwrap();
    disk.address = "89ab".repeat(16);
    let redeployed = Launch { image: "89abcdef".to_owned(), disk: Some(disk), ..launch.clone() };
    qemu.boot(&redeployed, &|_| ()).await.unwrap();
    assert_eq!(found(&world).await, 0);
    assert!(world.dir().join("aside/1/manifest.json").exists(), "the version of before");
    assert!(world.dir().join("aside/2/disks").exists(), "and what was written since");

    // And back: what was written last is there, whatever images came between.
    qemu.kill(launch.instance, Remains::All).await.unwrap();
    for number in 0..3 {
        let mut disk = launch.disk.clone().unwrap();
        disk.address = format!("{number}9ab").repeat(16);
        let other = Launch { image: format!("{number}9ab"), disk: Some(disk), ..launch.clone() };
        qemu.boot(&other, &|_| ()).await.unwrap();
        qemu.kill(launch.instance, Remains::All).await.unwrap();
    }
    qemu.boot(&launch, &|_| ()).await.unwrap();
    let back = found(&world).await;
    assert!(back >= gone_on, "{gone_on} was durable, {back} is there");
    world.tick_after(back).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ending_a_guest_drops_its_version_and_keeps_its_disk_and_a_removed_one_is_put_out_of_the_way() {
    let world = World::of(image());
    let qemu = world.open().await;
    let launch = world.launch();
    let (row, _) = boot(&world, &qemu).await;
    world.tick_after(row).await;
    capture(&world, &qemu, 1).await;
    let written = acknowledged(&world);

    assert_eq!(qemu.kill(launch.instance, Remains::Disk).await.unwrap(), None);
    assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: None });
    assert!(!world.dir().join("state/memory").exists());
    qemu.boot(&launch, &|_| ()).await.unwrap();
    let there = found(&world).await;
    assert!(there >= written, "{written} was durable, {there} is there");

    // Of one that runs as well.
    world.tick_after(there).await;
    qemu.kill(launch.instance, Remains::Disk).await.unwrap();
    let written = acknowledged(&world);
    qemu.boot(&launch, &|_| ()).await.unwrap();
    assert!(found(&world).await >= written);

    assert_eq!(qemu.kill(launch.instance, Remains::Nothing).await.unwrap(), None);
    assert!(qemu.inventory().await.is_empty() && !world.dir().exists());
    let removed = world.dir().parent().unwrap().with_file_name("removed");
    let kept = removed.join(world.dir().file_name().unwrap());
    assert!(kept.join("state/disks").exists(), "its disk");
    // It can be put back by hand.
    fs::rename(&kept, world.dir()).unwrap();
    qemu.boot(&launch, &|_| ()).await.unwrap();
    assert!(found(&world).await >= written);
    qemu.kill(launch.instance, Remains::All).await.unwrap();
}

/// What runs as the init of a root that is on the disk.
const ON_DISK: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /var
echo "found $($b cat /var/boots 2>/dev/null | $b wc -l) of $($b grep -c ' / ext4' /proc/mounts)"
echo boot | $b dd conv=fsync 2>/dev/null >>/var/boots
n=0
while :; do n=$((n + 1)); echo "tick $n of nonce"; $b sleep 0.05; done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_root_on_a_disk_is_gone_over_to() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    for directory in ["bin", "sbin", "dev", "proc", "sys", "run"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::write(root.join("sbin/init"), ON_DISK).unwrap();
    fs::set_permissions(root.join("sbin/init"), fs::Permissions::from_mode(0o755)).unwrap();
    let disk = temp.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let made =
        Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F", "-d"]).args([&root, &disk]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let store = ImageStore::open(temp.path().join("images")).unwrap();
    let root = RootSource::OnDisk { device: "/dev/vda".to_owned() };
    let request = BuildRequest {
        disk: Some(disk),
        package_cache: Some(from_environment("REVEILLE_TEST_CACHE")),
        ..BuildRequest::new(root, KernelSource::Debian)
    };
    let image = store.build(&request, &mut |_| ()).unwrap();
    let world = World::of(&image);
    let qemu = world.open().await;
    for boots in 0..2 {
        boot(&world, &qemu).await;
        assert_eq!(found(&world).await, boots);
        assert!(console(&world).contains(&format!("found {boots} of 1")), "{}", console(&world));
        capture(&world, &qemu, boots + 1).await;
        restore(&world, &qemu).await;
        qemu.kill(world.launch().instance, Remains::All).await.unwrap();
    }
}
