//! The program in the guest: Debian's qemu-ga, asked by us, and by the driver around sleep and wake.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use reveille_core::model::{InstanceId, Remains, Resources, Timestamp};
use reveille_vm::driver::{
    Abandon, AgentState, BeforeSleep, Capture, CloneError, Driver, Launch, Mapping, Refreshed,
};
use reveille_vm::qemu::Qemu;
use reveille_vm::qemu::agent::{Agent, Exited, Freeze, Program};

use crate::world::{PATIENCE, World, capture, until};

/// What a guest with an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Own {
    time_s: u64,
    host: String,
    mac: String,
    random: String,
}

/// Everything that a guest has said of itself since its process was started.
fn said(world: &World, instance: InstanceId) -> Vec<Own> {
    let console = fs::read_to_string(world.dir_of(instance).join("serial.log")).unwrap_or_default();
    let whole = console.rfind('\n').map_or("", |end| &console[..=end]);
    let own = |line: &str| {
        let mut words = line.trim().strip_prefix("self ")?.split(' ').map(str::to_owned);
        let time_s = words.next()?.parse().ok()?;
        Some(Own { time_s, host: words.next()?, mac: words.next()?, random: words.next()? })
    };
    whole.lines().filter_map(own).collect()
}

async fn next(world: &World, instance: InstanceId) -> Own {
    let before = said(world, instance).len();
    until("the guest to say who it is", || said(world, instance).get(before + 1).cloned()).await
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn soon() -> tokio::time::Instant {
    tokio::time::Instant::now() + PATIENCE
}

/// Boots a guest with an agent, and waits for it.
async fn boot(world: &World, qemu: &Qemu) -> Launch {
    let launch = world.launch_as("agent");
    qemu.boot(&launch, &|_| ()).await.unwrap();
    world.tick_after(2).await;
    answers(qemu, &launch).await;
    launch
}

async fn answers(qemu: &Qemu, launch: &Launch) {
    let began = Instant::now();
    while !matches!(qemu.agent(launch.instance).await, AgentState::Answers { .. }) {
        assert!(began.elapsed() < PATIENCE, "no agent answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_agent_is_understood_and_met_again() {
    let world = World::new();
    let qemu = world.open().await;
    let launch = boot(&world, &qemu).await;
    drop(qemu);

    // The daemon is gone; somebody else asks.
    let mut agent = Agent::connect(&world.dir().join("run/agent.sock")).await.unwrap();
    let info = agent.info(soon()).await.unwrap();
    assert!(info.version.starts_with("7.2"), "{info:?}");
    let commands: BTreeSet<&str> = info.commands.iter().map(String::as_str).collect();
    assert!(
        commands.is_superset(&["guest-exec", "guest-set-time", "guest-fsfreeze-freeze"].into()),
        "{info:?}"
    );
    agent.ping(soon()).await.unwrap();
    assert_eq!(agent.freeze_status(soon()).await.unwrap(), Freeze::Thawed);
    assert_eq!(agent.thaw(soon()).await.unwrap(), 0);
    let interfaces = agent.interfaces(soon()).await.unwrap();
    let card = interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
    assert_eq!(card.mac.as_deref(), Some("52:54:00:12:34:56"));
    assert!(card.addresses.contains(&"10.0.2.15".to_owned()), "{card:?}");

    let shell = Program { path: "/bin/sh", arguments: &["-s", "x"], input: b"echo $1; exit 3", output: true };
    let exited = agent.run(shell, soon()).await.unwrap();
    assert_eq!((exited.code, exited.output.as_slice()), (Some(3), &b"x\n"[..]));
    let none = Program { path: "/nowhere", ..shell };
    let refused = agent.run(none, soon()).await.unwrap_err().to_string();
    assert!(refused.starts_with("the guest's agent refused `guest-exec`: "), "{refused}");
    // In the summer of 2017; the real-time clock may be missing, which is told after the clock is set.
    let set = agent.set_time(1_500_000_000_000_000_000, soon()).await;
    assert!(next(&world, launch.instance).await.time_s / 1_000 == 1_500_000, "{set:?}");
    // Half a question is left behind.
    drop(agent);
    let mut rude = std::os::unix::net::UnixStream::connect(world.dir().join("run/agent.sock")).unwrap();
    std::io::Write::write_all(&mut rude, b"{\"execute\": \"guest-info\"}\n{\"execute\": \"gue").unwrap();
    drop(rude);

    let qemu = world.open().await;
    qemu.find(&launch, false).await;
    answers(&qemu, &launch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_woken_guest_is_told_the_time_and_asked_before_it_sleeps() {
    let world = World::new();
    let qemu = world.open().await;
    let launch = boot(&world, &qemu).await;
    assert_eq!(qemu.refresh(launch.instance, PATIENCE).await, Refreshed::NoAgent, "it was not restored");
    assert_eq!(qemu.before_sleep(launch.instance, PATIENCE).await, BeforeSleep::Ready { wake_at: None });

    // Its clock is far behind, as after a long sleep.
    let qemu = in_guest(&world, qemu, &launch, "/.reveille/busybox date -s @1000000000").await;
    assert!(next(&world, launch.instance).await.time_s < 1_100_000_000);
    let mut number = 1;
    capture_of(&qemu, &launch, number).await;
    for mapping in [Mapping::Consume, Mapping::Beside] {
        qemu.restore(&launch, mapping, &|_| ()).await.unwrap();
        let began = Instant::now();
        assert_eq!(qemu.refresh(launch.instance, PATIENCE).await, Refreshed::Done);
        eprintln!("    refreshed in {:?}", began.elapsed());
        let behind_s = now_s().abs_diff(next(&world, launch.instance).await.time_s);
        assert!(behind_s < 30, "{behind_s} s");
        number += 1;
        capture_of(&qemu, &launch, number).await;
    }

    // A version of a guest whose programs speak up.
    qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap();
    let hooks = "mkdir -p /etc/reveille; cd /etc/reveille
        printf '#!/bin/sh\necho wake-at +60; [ ! -e /busy ] || { echo a backup runs; exit 1; }' >before-sleep
        printf '#!/bin/sh\necho woken >/woken; exit 7' >after-wake; chmod +x before-sleep after-wake";
    let hooks =
        hooks.replace("mkdir", "/.reveille/busybox mkdir").replace("chmod", "/.reveille/busybox chmod");
    let qemu = in_guest(&world, qemu, &launch, &hooks).await;
    let ready = BeforeSleep::Ready { wake_at: Some("+60".to_owned()) };
    assert_eq!(qemu.before_sleep(launch.instance, PATIENCE).await, ready);
    capture_of(&qemu, &launch, number + 1).await;
    qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap();
    let seven = "after-wake in the guest failed: exit status 7".to_owned();
    assert_eq!(qemu.refresh(launch.instance, PATIENCE).await, Refreshed::Missed(seven));
    let qemu =
        in_guest(&world, qemu, &launch, "read -r woken </woken && [ $woken = woken ] && : >/busy").await;
    let veto = BeforeSleep::Veto { reason: "a backup runs".to_owned() };
    assert_eq!(qemu.before_sleep(launch.instance, PATIENCE).await, veto);
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_are_told_who_they_are_and_share_their_memory() {
    let world = World::new();
    let qemu = world.open().await;
    let launch = boot(&world, &qemu).await;
    let awake = qemu.clone_version(launch.instance, InstanceId(1), &launch.service, false).await;
    assert!(matches!(awake, Err(CloneError::NoVersion)), "{awake:?}");
    let before = next(&world, launch.instance).await;
    capture_of(&qemu, &launch, 5).await;
    let memory = world.dir().join("state/memory");
    let version = blake3::hash(&fs::read(&memory).unwrap());

    let clones: Vec<Launch> = (1..=2)
        .map(|number| Launch { instance: InstanceId(number), ..world.launch_as(&format!("agent-{number}")) })
        .collect();
    let mut seen = Vec::new();
    for clone in &clones {
        let first =
            qemu.clone_version(launch.instance, clone.instance, &launch.service, false).await.unwrap();
        assert_eq!((first.number, first.image.as_str()), (1, "0123abcd"));
        let twice = qemu.clone_version(launch.instance, clone.instance, &launch.service, false).await;
        assert!(matches!(twice, Err(CloneError::InUse(_))), "{twice:?}");
        let inode = |dir: &std::path::Path| fs::metadata(dir.join("state/memory")).unwrap().ino();
        assert_eq!(inode(&world.dir_of(clone.instance)), inode(&world.dir()), "one file");
    }
    for clone in &clones {
        qemu.restore(clone, Mapping::Consume, &|_| ()).await.unwrap();
        // What it says first after it is known to run: nothing of before.
        let own = next(&world, clone.instance).await;
        assert_eq!((own.host.as_str(), own.mac.as_str()), (clone.hostname(), clone.own_mac().as_str()));
        seen.push(own);
    }
    // The source too runs beside what others share.
    qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap();
    assert_eq!(qemu.refresh(launch.instance, PATIENCE).await, Refreshed::Done);
    let source = next(&world, launch.instance).await;
    assert_eq!((source.host.as_str(), &source.mac), ("agent", &before.mac));
    seen.push(source);
    let all = |one: fn(&Own) -> &str| seen.iter().map(one).collect::<BTreeSet<&str>>().len();
    assert_eq!((all(|own| &own.random), all(|own| &own.mac), all(|own| &own.host)), (3, 3, 3), "{seen:#?}");
    assert_eq!(blake3::hash(&fs::read(&memory).unwrap()), version, "nobody writes to what is shared");

    // A clone sleeps and wakes as itself.
    let clone = &clones[0];
    capture_of(&qemu, clone, 2).await;
    qemu.restore(clone, Mapping::Consume, &|_| ()).await.unwrap();
    assert_eq!(next(&world, clone.instance).await.host, "agent-1");
    assert_eq!(blake3::hash(&fs::read(&memory).unwrap()), version);
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_without_an_agent_sleep_and_wake_as_they_did() {
    let world = World::new();
    let qemu = world.open().await;
    crate::world::boot(&world, &qemu).await;
    let launch = world.launch();
    assert_eq!(qemu.agent(launch.instance).await, AgentState::None);
    capture(&world, &qemu, 1).await;
    let clone = Launch { instance: InstanceId(1), ..world.launch_as("other") };
    let refused = qemu.clone_version(launch.instance, clone.instance, &launch.service, false).await;
    assert!(matches!(refused, Err(CloneError::NoAgent)), "{refused:?}");
    qemu.clone_version(launch.instance, clone.instance, &launch.service, true).await.unwrap();
    qemu.restore(&clone, Mapping::Consume, &|_| ()).await.unwrap();
    // What needs no agent it has nevertheless.
    assert_eq!(qemu.refresh(clone.instance, PATIENCE).await, Refreshed::Done);
    assert_eq!(qemu.before_sleep(clone.instance, PATIENCE).await, BeforeSleep::Ready { wake_at: None });
}

/// Mounts the disk; the drivers are there, and are loaded by nobody else.
const MOUNT: &str = "for m in crc16 crc32c_generic mbcache jbd2 ext4; do
    f=$(find / -xdev -name \"$m.ko*\" | head -n 1); [ -z \"$f\" ] || insmod \"$f\" 2>/dev/null; done
mkdir -p /data; mount -t ext4 /dev/vda /data || exit 9
";

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_an_agent_sleeps_with_its_file_systems_written_and_wakes_with_them_thawed() {
    let world = World::with_disk_of(crate::disk::image());
    let qemu = world.open().await;
    let launch = boot(&world, &qemu).await;
    // Nobody has asked for this to be durable: it is in the guest's memory.
    let qemu = in_guest(&world, qemu, &launch, &format!("{MOUNT}echo early >/data/early")).await;
    capture_of(&qemu, &launch, 1).await;
    qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap();
    answers(&qemu, &launch).await;
    let qemu = in_guest(&world, qemu, &launch, "timeout 20 sh -c 'echo late >/data/late' || exit 8").await;
    capture_of(&qemu, &launch, 2).await;

    // Of the version, its disk alone is left.
    qemu.kill(launch.instance, Remains::Disk).await.unwrap();
    qemu.boot(&launch, &|_| ()).await.unwrap();
    answers(&qemu, &launch).await;
    let (_qemu, seen) = runs(&world, qemu, &launch, &format!("{MOUNT}cat /data/early /data/late")).await;
    assert_eq!(String::from_utf8_lossy(&seen.output), "early\nlate\n", "{seen:?}");
}

/// Has a shell in the guest do something, while no driver is there; it must succeed.
async fn in_guest(world: &World, qemu: Qemu, launch: &Launch, script: &str) -> Qemu {
    let (qemu, exited) = runs(world, qemu, launch, script).await;
    assert_eq!(exited.code, Some(0), "{}", String::from_utf8_lossy(&exited.output));
    qemu
}

async fn runs(world: &World, qemu: Qemu, launch: &Launch, script: &str) -> (Qemu, Exited) {
    drop(qemu);
    let mut agent = Agent::connect(&world.dir_of(launch.instance).join("run/agent.sock")).await.unwrap();
    let shell = Program {
        path: "/.reveille/busybox",
        arguments: &["sh", "-s"],
        input: script.as_bytes(),
        output: true,
    };
    let exited = agent.run(shell, soon()).await.unwrap();
    drop(agent);
    let qemu = world.open().await;
    qemu.find(launch, false).await;
    answers(&qemu, launch).await;
    (qemu, exited)
}

async fn capture_of(qemu: &Qemu, launch: &Launch, number: u64) {
    let captured =
        qemu.capture(launch, number, Timestamp::from_ms(1_000), &Abandon::default()).await.unwrap();
    assert!(matches!(captured, Capture::Published(_)), "{captured:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_issued_after_the_snapshot_verifies_in_the_woken_guest() {
    let world = World::with_openssl();
    let qemu = world.open().await;
    let launch = Launch {
        resources: Resources { cpus: 1, memory_mib: 192, ..Resources::default() },
        ..world.launch_as("agent")
    };
    qemu.boot(&launch, &|_| ()).await.unwrap();
    world.tick_after(2).await;
    answers(&qemu, &launch).await;
    // As if it had slept for an hour, which no guest makes good by running until it is asked, however slow the host.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let an_hour_ago = format!("exec /.reveille/busybox date -s @{}\n", now - 3_600);
    let qemu = in_guest(&world, qemu, &launch, &an_hour_ago).await;
    capture_of(&qemu, &launch, 1).await;

    let issued = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
        ])
        .args(["-subj", "/CN=hello.vm.test", "-keyout", "/dev/null"])
        .output()
        .unwrap();
    let certificate = String::from_utf8(issued.stdout).unwrap();
    assert!(certificate.contains("BEGIN CERTIFICATE"), "{certificate}");
    let verify = format!(
        "/.reveille/busybox cat >/c.pem <<'END'\n{certificate}END\nexec /usr/bin/openssl verify -CAfile /c.pem /c.pem 2>&1\n"
    );

    qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap();
    let (qemu, before) = runs(&world, qemu, &launch, &verify).await;
    let said = String::from_utf8_lossy(&before.output);
    assert!(before.code != Some(0) && said.contains("not yet valid"), "{before:?}: {said}");
    // The one that was restored is not this driver's any more: sleep and wake once more.
    capture_of(&qemu, &launch, 2).await;
    qemu.restore(&launch, Mapping::Consume, &|_| ()).await.unwrap();
    assert_eq!(qemu.refresh(launch.instance, PATIENCE).await, Refreshed::Done);
    let (_qemu, after) = runs(&world, qemu, &launch, &verify).await;
    assert_eq!(after.code, Some(0), "{}", String::from_utf8_lossy(&after.output));
}
