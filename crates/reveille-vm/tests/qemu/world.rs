//! What the tests run in: a state directory of their own, a guest that tells its nonce and counts, and the
//! certainty that no process is left behind.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use reveille_core::model::{Egress, InstanceId, Remains, Resources, SnapshotVersion, Stage, Timestamp};
use reveille_vm::driver::{Abandon, Capture, Disk, Driver, Launch, Mapping};
use reveille_vm::image::Image;
use reveille_vm::qemu::{AccelChoice, ProbeGuest, Qemu, QemuConfig, Users};
use rustix::process::{Pid, Signal, WaitOptions};

/// Longest wait for anything that a guest does: a cold boot on a busy machine without KVM.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Cold boots in a row.
const BOOTS_MAX: u32 = 2;

/// What runs in place of the image's own init: it draws a number that is kept in memory alone, and counts. A host
/// name tells it to misbehave.
const INIT: &str = r#"#!/.reveille/busybox sh
b=/.reveille/busybox
nonce=$($b od -An -N8 -tx1 /dev/urandom | $b tr -d ' \n')
n=0
agent=
case $($b hostname) in
agent*) /usr/sbin/qemu-ga -r -t /run -p /dev/virtio-ports/org.qemu.guest_agent.0 & agent=1 ;;
esac
while :; do
    n=$((n + 1))
    echo "tick $n of $nonce"
    if [ $n = 3 ]; then
        case $($b hostname) in
        restarts) $b reboot -f ;;
        halts) $b poweroff -f ;;
        esac
    fi
    if [ "$agent" ]; then
        echo "self $($b date +%s) $($b hostname) $($b cat /sys/class/net/eth0/address)" \
            "$($b od -An -N16 -tx1 /dev/urandom | $b tr -d ' \n')"
    fi
    $b sleep 0.05
done
"#;

/// A state directory and what boots in it.
pub struct World {
    pub temp: tempfile::TempDir,
    kernel: PathBuf,
    initrd: PathBuf,
    disk: Option<Disk>,
    image: String,
}

impl World {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut initrd = fs::read(from_environment("REVEILLE_TEST_INITRD")).unwrap();
        // A later archive replaces files of an earlier one.
        initrd.resize(initrd.len().next_multiple_of(512), 0);
        initrd.extend(archive_of("sbin/init", INIT.as_bytes()));
        let path = temp.path().join("initrd");
        fs::write(&path, initrd).unwrap();
        let (kernel, image) = (from_environment("REVEILLE_TEST_KERNEL"), "0123abcd".to_owned());
        Self { kernel, initrd: path, disk: None, image, temp }
    }

    /// With the guest of another image.
    pub fn of(image: &Image) -> Self {
        Self {
            temp: tempfile::tempdir().unwrap(),
            kernel: image.kernel.clone(),
            initrd: image.initrd.clone(),
            disk: image.disk.clone(),
            image: image.digest.clone(),
        }
    }

    /// A world whose guest has this host's openssl, with the libraries that it needs.
    pub fn with_openssl() -> Self {
        let world = Self::new();
        let mut initrd = fs::read(&world.initrd).unwrap();
        for file in [
            "/usr/bin/openssl",
            "/usr/lib/x86_64-linux-gnu/libssl.so.3",
            "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        ] {
            let content =
                fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}; `make test` installs it"));
            let name = file.trim_start_matches('/').replace("usr/lib/", "lib/");
            initrd.resize(initrd.len().next_multiple_of(512), 0);
            initrd.extend(archive_of(&name, &content));
        }
        fs::write(&world.initrd, initrd).unwrap();
        world
    }

    /// A world whose guest has an agent and the disk of that image, with its drivers.
    pub fn with_disk_of(image: &Image) -> Self {
        let mut world = Self::new();
        world.disk = image.disk.clone();
        let mut initrd = fs::read(&image.initrd).unwrap();
        initrd.resize(initrd.len().next_multiple_of(512), 0);
        initrd.extend(fs::read(&world.initrd).unwrap());
        fs::write(&world.initrd, initrd).unwrap();
        world
    }

    pub fn config(&self) -> QemuConfig {
        QemuConfig {
            binary: std::env::var_os("REVEILLE_TEST_QEMU").unwrap_or("qemu-system-x86_64".into()).into(),
            data_dir: std::env::var_os("REVEILLE_TEST_QEMU_DATA").map(PathBuf::from),
            accel: AccelChoice::Tcg,
            users: Users::Own,
            state_dir: self.temp.path().join("state"),
            probe: None,
        }
    }

    pub fn probe(&self) -> ProbeGuest {
        ProbeGuest { kernel: self.kernel.clone(), initrd: self.initrd.clone() }
    }

    /// A driver as after a start of the daemon.
    pub async fn open(&self) -> Qemu {
        Qemu::open(self.config()).await.unwrap()
    }

    pub fn launch(&self) -> Launch {
        Launch {
            instance: InstanceId(17),
            service: "hello.vm.test".parse().unwrap(),
            image: self.image.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            disk: self.disk.clone(),
            resources: Resources { cpus: 1, memory_mib: 112, ..Resources::default() },
            egress: Egress::None,
            link: reveille_vm::driver::Link::Stream,
        }
    }

    pub fn launch_as(&self, host: &str) -> Launch {
        Launch { service: format!("{host}.vm.test").parse().unwrap(), ..self.launch() }
    }

    /// The instance's directory.
    pub fn dir(&self) -> PathBuf {
        self.dir_of(InstanceId(17))
    }

    pub fn dir_of(&self, instance: InstanceId) -> PathBuf {
        self.temp.path().join("state/instances").join(instance.to_string())
    }

    pub fn manifest(&self) -> PathBuf {
        self.dir().join("state/manifest.json")
    }

    /// The last count and the nonce that the guest wrote since its process was started.
    pub fn tick(&self) -> Option<(u64, String)> {
        let console = fs::read_to_string(self.dir().join("serial.log")).ok()?;
        // The last line may be half written.
        let whole = console.get(..=console.rfind('\n')?)?;
        whole.lines().rev().find_map(|line| {
            let (count, nonce) = line.trim().strip_prefix("tick ")?.split_once(" of ")?;
            Some((count.parse().ok()?, nonce.to_owned()))
        })
    }

    /// Waits until the guest has counted beyond `count`; returns where it is, and its nonce.
    pub async fn tick_after(&self, count: u64) -> (u64, String) {
        let what = format!("a count beyond {count}; the console is at {:?}", self.tick());
        until(&what, || self.tick().filter(|(now, _)| *now > count)).await
    }

    /// The processes that hold a lock below the state directory.
    pub fn processes(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if fs::read_link(entry.path().join("fd/0")).is_ok_and(|input| input.starts_with(self.temp.path()))
            {
                found.extend(Pid::from_raw(pid));
            }
        }
        found
    }

    pub fn process(&self) -> Pid {
        let all = self.processes();
        assert_eq!(all.len(), 1, "one process was expected: {all:?}");
        all[0]
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.process(), signal).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            // Ours or, if a driver has collected it, nobody's.
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

/// Boots and waits until the guest counts; returns where it is, and its nonce. A boot under emulation hangs now and then
/// (design note 0001); it is tried once more, as the daemon does, and said where it cannot be overlooked.
pub async fn boot(world: &World, qemu: &Qemu) -> (u64, String) {
    let launch = world.launch();
    for _ in 0..BOOTS_MAX {
        qemu.boot(&launch, &|_| ()).await.unwrap();
        let began = Instant::now();
        while began.elapsed() < PATIENCE / 2 {
            if let Some(counts) = world.tick().filter(|(now, _)| *now > 2) {
                return counts;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let console = fs::read_to_string(world.dir().join("serial.log")).unwrap_or_default();
        let last = console.lines().last().unwrap_or("nothing");
        let _ = writeln!(std::io::stderr(), "A COLD BOOT HUNG, the last thing on its console is: {last}");
        qemu.kill(launch.instance, Remains::All).await.unwrap();
    }
    panic!("{BOOTS_MAX} cold boots in a row hung");
}

pub async fn capture(world: &World, qemu: &Qemu, number: u64) -> SnapshotVersion {
    let captured =
        qemu.capture(&world.launch(), number, Timestamp::from_ms(1_000), &Abandon::default()).await;
    match captured.unwrap() {
        Capture::Published(version) => version,
        Capture::Abandoned => panic!("nobody abandoned it"),
    }
}

/// Restores; returns the stages that were told.
pub async fn restore(world: &World, qemu: &Qemu) -> Vec<Stage> {
    let stages = Mutex::new(Vec::new());
    qemu.restore(&world.launch(), Mapping::Consume, &|stage| stages.lock().unwrap().push(stage))
        .await
        .unwrap();
    stages.into_inner().unwrap()
}

/// Polls for something that has to happen.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes over the middle of a file.
pub fn damage(file: &Path) {
    let mut contents = fs::read(file).unwrap();
    let middle = contents.len() / 2;
    contents[middle] ^= 0xff;
    OpenOptions::new().write(true).truncate(true).open(file).unwrap().write_all(&contents).unwrap();
}

pub fn from_environment(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).unwrap_or_else(|| {
        panic!("{variable} is not set: run `make test`, which prepares a kernel and an image")
    });
    PathBuf::from(path)
}

/// A cpio archive ("new ASCII") of one executable file.
fn archive_of(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in [(name, 0o100_755, content), ("TRAILER!!!", 0, &b""[..])] {
        archive.extend(b"070701");
        let numbers = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        for number in numbers {
            archive.extend(format!("{number:08x}").as_bytes());
        }
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}
