//! The daemon, QEMU or the guest is lost at any step: what is found afterwards is true and nothing is lost with it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use reveille_core::model::{Cause, Found, Remains, Timestamp};
use reveille_vm::driver::{Abandon, Capture, Driver, DriverError, Mapping};
use reveille_vm::qemu::Qemu;
use rustix::process::Signal;

use crate::world::{World, boot, capture, restore};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_during_a_capture_gets_the_guest_back() {
    abandoned_captures(Mapping::Consume).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_during_a_capture_beside_a_version_gets_the_guest_back() {
    abandoned_captures(Mapping::Beside).await;
}

/// At every moment of a capture, the last one being after the version was published. `REVEILLE_TEST_ABANDONS` raises how
/// many.
async fn abandoned_captures(mapping: Mapping) {
    let captures = std::env::var("REVEILLE_TEST_ABANDONS").map_or(40, |text| text.parse().unwrap());
    let world = World::new();
    let qemu = world.open().await;
    let (mut count, nonce) = boot(&world, &qemu).await;
    let launch = world.launch();
    capture(&world, &qemu, 1).await;
    qemu.restore(&launch, mapping, &|_| ()).await.unwrap();
    let (whole, _) = timed(capture(&world, &qemu, 2)).await;
    qemu.restore(&launch, mapping, &|_| ()).await.unwrap();

    let early = Abandon::default();
    early.raise();
    let outcome = qemu.capture(&launch, 3, Timestamp::from_ms(1), &early).await.unwrap();
    assert_eq!(outcome, Capture::Abandoned);
    count = world.tick_after(count).await.0;

    let mut abandoned_when_published = 0;
    for number in 4..captures + 4 {
        let abandon = Arc::new(Abandon::default());
        let (raiser, manifest) = (Arc::clone(&abandon), world.manifest());
        let over = Arc::new(AtomicBool::new(false));
        let raise = std::thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let began = Instant::now();
                let at_publishing = number % 2 == 0;
                let moment = whole * (u32::try_from(number).unwrap() % 37) / 36;
                while !over.load(Ordering::Relaxed) {
                    if if at_publishing { manifest.exists() } else { began.elapsed() >= moment } {
                        raiser.raise();
                        return at_publishing;
                    }
                    std::hint::spin_loop();
                }
                false
            }
        });
        let outcome = qemu.capture(&launch, number, Timestamp::from_ms(1), &abandon).await.unwrap();
        over.store(true, Ordering::Relaxed);
        if outcome == Capture::Abandoned {
            assert!(!world.manifest().exists(), "no version is left of an abandoned capture");
            qemu.beat(launch.instance, 5_000).await.unwrap();
        } else {
            assert!(world.processes().is_empty());
            qemu.restore(&launch, mapping, &|_| ()).await.unwrap();
        }
        if raise.join().unwrap() && outcome == Capture::Abandoned {
            abandoned_when_published += 1;
        }
        // Nothing of the capture goes on: it would stop the guest when it is through.
        let began = Instant::now();
        loop {
            let (now, same) = world.tick_after(count).await;
            assert_eq!(same, nonce);
            count = now;
            if began.elapsed() > whole {
                break;
            }
        }
    }
    assert!(abandoned_when_published > 0, "no capture was abandoned after its version was published");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_lost_at_any_step_finds_the_truth_and_the_guest() {
    let world = World::new();
    let qemu = world.open().await;
    let launch = world.launch();
    let (mut count, nonce) = boot(&world, &qemu).await;
    drop(qemu);
    // How long each takes here, so that what is cut short is cut at every part of it on any machine.
    let qemu = world.open().await;
    assert_eq!(qemu.find(&launch, false).await, Found::Running);
    let (captures, _) = timed(capture(&world, &qemu, 1)).await;
    let (restores, _) = timed(restore(&world, &qemu)).await;
    drop(qemu);
    let mut seen = std::collections::BTreeMap::<&str, u32>::new();
    for step in 0..60_u32 {
        let qemu = world.open().await;
        let found = qemu.find(&launch, false).await;
        let times = seen.entry(kind(&found)).or_default();
        *times += 1;
        let times = *times;
        // Of every fifteen the last three are given the time to end.
        let cut = |whole: Duration| match step % 15 {
            part @ 0..12 => whole * part / 11,
            _ => Duration::from_secs(60),
        };
        match found {
            Found::Running | Found::Stopped => {
                assert!(!world.manifest().exists());
                qemu.resume(&launch).await.unwrap();
                let (now, same) = world.tick_after(count).await;
                assert_eq!(same, nonce, "step {step}");
                count = now;
                let abandon = Abandon::default();
                let version = u64::from(step) + 2;
                let captured = qemu.capture(&launch, version, Timestamp::from_ms(1), &abandon);
                let _ = tokio::time::timeout(cut(captures), captured).await;
            }
            Found::Untouched { armed, .. } => {
                assert!(world.manifest().exists());
                if armed && times % 2 == 1 {
                    let restored = qemu.restore(&launch, Mapping::Consume, &|_| ());
                    let _ = tokio::time::timeout(cut(restores), restored).await;
                } else {
                    qemu.kill(launch.instance, Remains::All).await.unwrap().unwrap();
                }
            }
            Found::Nothing { version } => {
                assert!(version.is_some(), "step {step}: the guest is lost");
                if times % 3 == 1 {
                    qemu.arm(&launch, Mapping::Consume).await.unwrap();
                } else {
                    let restored = qemu.restore(&launch, Mapping::Consume, &|_| ());
                    let _ = tokio::time::timeout(cut(restores), restored).await;
                }
            }
            Found::Hung { waited_ms } => panic!("step {step}: hung for {waited_ms} ms"),
        }
        drop(qemu);
    }
    println!("found on the way: {seen:?}; a capture took {captures:?}, a restore {restores:?}");
    assert!(["running", "nothing", "untouched"].iter().all(|kind| seen.contains_key(kind)), "{seen:?}");
}

/// How long `work` took, and what it gave.
async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    let began = Instant::now();
    let done = work.await;
    (began.elapsed(), done)
}

fn kind(found: &Found) -> &'static str {
    match found {
        Found::Nothing { .. } => "nothing",
        Found::Untouched { .. } => "untouched",
        Found::Running => "running",
        Found::Stopped => "stopped",
        Found::Hung { .. } => "hung",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_is_hung_and_can_be_ended() {
    let world = World::new();
    let qemu = world.open().await;
    boot(&world, &qemu).await;
    let launch = world.launch();
    world.signal(Signal::STOP);
    let beat = qemu.beat(launch.instance, 300).await.unwrap_err();
    assert!(matches!(beat, DriverError::Lost(Cause::VmmHung { waited_ms: 300 })), "{beat}");
    drop(qemu);

    let qemu = world.open().await;
    let found = qemu.find(&launch, false).await;
    assert!(matches!(found, Found::Hung { waited_ms } if waited_ms >= 1_000), "{found:?}");
    assert_eq!(qemu.kill(launch.instance, Remains::All).await.unwrap(), None);
    assert!(world.processes().is_empty());
    assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: None });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_is_told_with_its_reason() {
    let world = World::new();
    let qemu = Arc::new(world.open().await);
    let launch = world.launch();
    boot(&world, &qemu).await;
    let died = tokio::spawn({
        let qemu = Arc::clone(&qemu);
        let instance = launch.instance;
        async move { qemu.died(instance).await }
    });
    world.signal(Signal::KILL);
    assert_eq!(died.await.unwrap(), "killed (SIGKILL)");
    assert!(qemu.beat(launch.instance, 1_000).await.is_err());
    assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: None });

    for (host, reason) in
        [("restarts", "the guest restarted or panicked"), ("halts", "the guest shut itself down")]
    {
        qemu.boot(&world.launch_as(host), &|_| ()).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(90), qemu.died(launch.instance)).await.unwrap();
        assert!(told.starts_with(reason), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_ends_whatever_goes_on() {
    let world = World::new();
    let qemu = Arc::new(world.open().await);
    let launch = world.launch();
    for step in 0..6_u64 {
        let (began, begins) = tokio::sync::oneshot::channel();
        let booting = tokio::spawn({
            let (qemu, launch) = (Arc::clone(&qemu), launch.clone());
            async move {
                let mut boot = qemu.boot(&launch, &|_| ());
                let first = poll_fn(|context| Poll::Ready(boot.as_mut().poll(context))).await;
                began.send(()).unwrap();
                match first {
                    Poll::Ready(done) => done,
                    Poll::Pending => boot.await,
                }
            }
        });
        // A boot that begins after the kill is another one, which the kill does not concern.
        begins.await.unwrap();
        tokio::time::sleep(Duration::from_millis(step * 10)).await;
        assert_eq!(qemu.kill(launch.instance, Remains::All).await.unwrap(), None);
        assert!(world.processes().is_empty(), "step {step}");
        // It may have come up just before.
        let _ = booting.await.unwrap();
        assert_eq!(qemu.find(&launch, false).await, Found::Nothing { version: None });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_killed_after_its_version_was_consumed_is_not_restored() {
    let world = World::new();
    let qemu = world.open().await;
    let (count, _) = boot(&world, &qemu).await;
    capture(&world, &qemu, 1).await;
    restore(&world, &qemu).await;
    world.tick_after(count).await;
    world.signal(Signal::KILL);
    drop(qemu);

    let qemu: Qemu = world.open().await;
    assert_eq!(qemu.find(&world.launch(), false).await, Found::Nothing { version: None });
    let refused = qemu.restore(&world.launch(), Mapping::Consume, &|_| ()).await.unwrap_err();
    assert!(matches!(refused, DriverError::Lost(Cause::VersionUnusable { .. })), "{refused}");
    assert!(world.processes().is_empty());
}
