//! Instances come and go: nothing of them stays in the daemon. Alone in its process, so that it can count.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what the tests share is test code too")]

#[path = "qemu/world.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod world;

use reveille_core::model::Remains;
use std::fs;

use reveille_vm::driver::{Driver, Launch, Mapping};
use reveille_vm::qemu::Qemu;
use world::{World, boot, capture, restore, until};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_instance_stays() {
    let world = World::new();
    let qemu = world.open().await;
    // The first life fills caches and starts the runtime's threads.
    whole_life(&world, &qemu).await;
    // A task that was told to stop stops a moment later: what is still stopping is no measure.
    let before = until("the first life's tasks and children to end", || {
        let held = held();
        (held.tasks == 0 && held.children == 0).then_some(held)
    })
    .await;
    for _ in 0..3 {
        whole_life(&world, &qemu).await;
    }
    let _ = qemu.boot(&Launch { kernel: "/nowhere".into(), ..world.launch() }, &|_| ()).await.unwrap_err();
    qemu.kill(world.launch().instance, Remains::Nothing).await.unwrap();
    let what = format!("files, tasks and children as before: {before:?}, not {:?}", held());
    until(&what, || (held() == before).then_some(())).await;
}

async fn whole_life(world: &World, qemu: &Qemu) {
    let instance = world.launch().instance;
    let (count, _) = boot(world, qemu).await;
    let link = qemu.network(instance).await.unwrap();
    qemu.beat(instance, 10_000).await.unwrap();
    capture(world, qemu, 1).await;
    drop(link);
    qemu.arm(&world.launch(), Mapping::Consume).await.unwrap();
    qemu.disarm(instance).await.unwrap();
    restore(world, qemu).await;
    world.tick_after(count).await;
    assert_eq!(qemu.kill(instance, Remains::Nothing).await.unwrap(), None);
}

/// What an instance could leave in this process.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    open_files: usize,
    tasks: usize,
    /// Zombies included.
    children: usize,
}

fn held() -> Held {
    let me = std::process::id().to_string();
    let is_child = |entry: &fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(me.as_str()))
    };
    Held {
        open_files: fs::read_dir("/proc/self/fd").unwrap().count(),
        tasks: tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        children: fs::read_dir("/proc").unwrap().flatten().filter(is_child).count(),
    }
}
