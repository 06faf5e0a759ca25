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
    let before = held();
    for _ in 0..3 {
        whole_life(&world, &qemu).await;
    }
    let _ = qemu.boot(&Launch { kernel: "/nowhere".into(), ..world.launch() }, &|_| ()).await.unwrap_err();
    qemu.kill(world.launch().instance, Remains::Nothing).await.unwrap();
    // A task that was told to stop stops a moment later.
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

/// Open files, live tasks, and children of this process, zombies included.
fn held() -> (usize, usize, usize) {
    let me = std::process::id().to_string();
    let files = fs::read_dir("/proc/self/fd").unwrap().count();
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let is_child = |entry: &fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(me.as_str()))
    };
    let children = fs::read_dir("/proc").unwrap().flatten().filter(is_child).count();
    (files, tasks, children)
}
