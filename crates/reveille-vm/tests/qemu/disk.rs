//! Disks: what a guest was told is durable is there again, whatever became of the guest.
//!
//! The guest writes numbered rows to a file on its disk, one after another, and says that a row is written only when
//! `fsync` has returned. After a boot it says which row it found last.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use reveille_core::model::{Found, Timestamp};
use reveille_vm::driver::{Abandon, Driver, Mapping};
use reveille_vm::image::{BuildRequest, Image, ImageStore, KernelSource, RootSource};
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
fn image() -> &'static Image {
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
        make_file_system(&disk, 64 << 20);
        let request = BuildRequest {
            disk: Some(disk),
            package_cache: Some(from_environment("REVEILLE_TEST_CACHE")),
            ..BuildRequest::new(RootSource::Directory(root), KernelSource::Debian)
        };
        store.build(&request, &mut |_| ()).unwrap()
    })
}

/// The same file system each time.
fn make_file_system(disk: &Path, bytes: u64) {
    fs::File::create(disk).unwrap().set_len(bytes).unwrap();
    let uuid = "5e0c4a0e-35a5-4b43-9a36-3c1d1b8f3f0a";
    let made = Command::new("/usr/sbin/mkfs.ext4")
        .args(["-q", "-F", "-U", uuid, "-E"])
        .arg(format!("hash_seed={uuid},lazy_itable_init=0,nodiscard"))
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
fn acknowledged(world: &World) -> u64 {
    let console = console(world);
    assert!(!console.contains("lost") && !console.contains("failed"), "{console}");
    world.tick().map_or(0, |(row, _)| row)
}

/// Which row a guest that was booted found.
async fn found(world: &World) -> u64 {
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
    qemu.kill(launch.instance, false).await.unwrap();
    row = acknowledged(&world).max(later);
    assert_eq!(qemu.find(&launch).await, Found::Nothing { version: None });
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
    assert_eq!(qemu.find(&launch).await, Found::Nothing { version: Some(version) });

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
    qemu.kill(launch.instance, false).await.unwrap();
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
        assert_eq!(qemu.find(&launch).await, Found::Running);
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
    for (dir, taken) in kept {
        qemu.kill(launch.instance, true).await.unwrap();
        let to = qemu.fetch_dir(launch.instance).await.unwrap();
        fs::rename(dir, to).unwrap();
        qemu.install(&launch).await.unwrap();
        restore(&world, &qemu).await;
        let (row, same) = until("the guest", || world.tick()).await;
        assert_eq!(same, nonce);
        assert!(row <= taken + 400, "{row} is later than {taken}");
        world.tick_after(row + 16).await;
        acknowledged(&world);
    }
    // Lost after that, it boots from the disk that it had.
    world.signal(Signal::KILL);
    qemu.kill(launch.instance, false).await.unwrap();
    let row = acknowledged(&world);
    boot(&world, &qemu).await;
    let there = found(&world).await;
    assert!(there >= row, "row {row} was durable, {there} is the last");
}

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
        Blow::Checkpoint => drop(qemu.checkpoint(&launch, number, now).await),
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
            assert_eq!(qemu.find(&launch).await, Found::Running);
        }
        // Something may be being folded.
        for _ in 0..chance.below(3) {
            qemu.beat(launch.instance, 5_000).await.unwrap();
        }
        if matches!(blow, Blow::Wake(_) | Blow::Warm) {
            capture(&world, &qemu, 2 * round + 1).await;
        }
        row = row.max(acknowledged(&world));
        let delay = Duration::from_micros(chance.below(400_000));
        tokio::join!(suffer(&world, &qemu, blow, 2 * round + 2), strike(&world, delay));

        let version = qemu.kill(launch.instance, false).await.unwrap();
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
