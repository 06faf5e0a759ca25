//! A kill at each step within the object store, and what is there afterwards: whole versions, the one that was being made
//! or deleted as the table says, nothing that a collection leaves for ever; and who does it again comes to its end.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "common/world.rs"]
mod world;

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use common::{Dice, about, device, id, memory, pseudo_guest};
use futures_util::FutureExt;
use reveille_depot::config::DepotConfig;
use reveille_depot::seal::Keyring;
use reveille_depot::verify::Depth;
use reveille_depot::{Depot, Watch};
use reveille_failpoint::{Outcome, on_this_thread};
use world::World;

/// What is done when the process is killed. Before it, `a.test` has the versions 1 and 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Version 3 is put.
    Put,
    /// Version 1 is made the newest one, as version 3.
    RollBack,
    /// Version 1 is deleted.
    Delete,
    /// Version 1 was deleted long ago, and a put was killed: what nobody needs goes.
    Collect,
    /// The service gets its first owner.
    Claim,
    /// Its owner says that it is still there.
    Renew,
    /// Version 2 is written to a file.
    Export,
    /// Version 2 comes from a file, as version 1 of `b.test`.
    Import,
}

use Deed::{Claim, Collect, Delete, Export, Import, Put, Renew, RollBack};

/// The step, what is done, and then the versions of `a.test` and of `b.test`.
const STEPS: [(&str, Deed, &[u64], &[u64]); 31] = [
    ("depot.put.begin", Put, &[1, 2], &[]),
    ("depot.put.compared", Put, &[1, 2], &[]),
    ("depot.put.chunk", Put, &[1, 2], &[]),
    ("depot.put.stored", Put, &[1, 2], &[]),
    ("depot.put.manifest", Put, &[1, 2], &[]),
    ("depot.put.published", Put, &[1, 2, 3], &[]),
    ("depot.republish.begin", RollBack, &[1, 2], &[]),
    ("depot.put.manifest", RollBack, &[1, 2], &[]),
    ("depot.put.published", RollBack, &[1, 2, 3], &[]),
    ("depot.delete.begin", Delete, &[1, 2], &[]),
    ("depot.delete.moved", Delete, &[1, 2], &[]),
    ("depot.delete.deleted", Delete, &[2], &[]),
    ("depot.collect.begin", Collect, &[2], &[]),
    ("depot.collect.planned", Collect, &[2], &[]),
    ("depot.collect.delete", Collect, &[2], &[]),
    ("depot.collect.done", Collect, &[2], &[]),
    ("depot.claim.write", Claim, &[1, 2], &[]),
    ("depot.claim.written", Claim, &[1, 2], &[]),
    ("depot.claim.write", Renew, &[1, 2], &[]),
    ("depot.claim.written", Renew, &[1, 2], &[]),
    ("depot.export.chunk", Export, &[1, 2], &[]),
    ("depot.import.chunk", Import, &[1, 2], &[]),
    ("depot.put.manifest", Import, &[1, 2], &[]),
    ("depot.put.published", Import, &[1, 2], &[1]),
    // Later in the same.
    ("2*depot.put.chunk", Put, &[1, 2], &[]),
    ("2*depot.collect.delete", Collect, &[2], &[]),
    ("3*depot.collect.delete", Collect, &[2], &[]),
    ("2*depot.export.chunk", Export, &[1, 2], &[]),
    ("3*depot.export.chunk", Export, &[1, 2], &[]),
    ("2*depot.import.chunk", Import, &[1, 2], &[]),
    ("3*depot.import.chunk", Import, &[1, 2], &[]),
];

fn opened(world: &World) -> Depot {
    let config = DepotConfig { workers: 1, ..DepotConfig::at("file:///x") };
    let clock = world.clone();
    let stopwatch = Arc::new(move || clock.inside.lock().unwrap().uptime_ms);
    Depot::with_store(&config, Arc::new(world.clone()), Keyring::default(), stopwatch)
}

async fn numbers(depot: &Depot, service: &str) -> Vec<u64> {
    let mut numbers = Vec::new();
    for entry in depot.list(&service.parse().unwrap()).await.unwrap() {
        let verified = depot.verify(&entry.id, Depth::Pages, &Watch::default()).await.unwrap();
        assert_eq!(verified.faults_total, 0, "{service}: {:?}", verified.faults);
        numbers.push(entry.id.number);
    }
    numbers.sort_unstable();
    numbers
}

/// Does it; done again, it may say that it was done.
async fn done(deed: Deed, depot: &Depot, temp: &Path) -> Result<(), String> {
    let (watch, service) = (Watch::default(), "a.test".parse().unwrap());
    let text = |error: &dyn std::fmt::Display| error.to_string();
    match deed {
        Put => {
            let parts = vec![memory(&temp.join("changed")), device(b"third")];
            let put = depot.put_version(&about("a.test", 3), parts, Some(&id("a.test", 2)), &watch).await;
            put.map(drop).map_err(|error| text(&error))
        }
        RollBack => {
            let put = depot.republish(&id("a.test", 1), 3, about("a.test", 3).epoch, &watch).await;
            put.map(drop).map_err(|error| text(&error))
        }
        Delete => depot.delete(&id("a.test", 1)).await.map_err(|error| text(&error)),
        Collect => depot.collect(&watch).await.map(drop).map_err(|error| text(&error)),
        Claim => {
            let before = depot.owner(&service).await.unwrap().map(|owner| owner.epoch);
            depot.claim(&service, "host", before).await.map(drop).map_err(|error| text(&error))
        }
        Renew => depot.renew(&service, "host", 1).await.map_err(|error| text(&error)),
        Export => {
            let file = temp.join("exported.tar");
            depot.export(&id("a.test", 2), &file, &watch).await.map_err(|error| text(&error))
        }
        Import => {
            let file = temp.join("to-import.tar");
            let put = depot.import(&file, &id("b.test", 1), 1, &watch).await;
            put.map(drop).map_err(|error| text(&error))
        }
    }
}

async fn prepared(world: &World, temp: &Path) {
    let (depot, watch) = (opened(world), Watch::default());
    let guest = temp.join("guest");
    pseudo_guest(&guest, 4 << 20, 60, &mut Dice(2));
    pseudo_guest(&temp.join("changed"), 4 << 20, 60, &mut Dice(9));
    depot.put_version(&about("a.test", 1), vec![memory(&guest)], None, &watch).await.unwrap();
    let parts = vec![memory(&temp.join("guest")), device(b"second")];
    depot.put_version(&about("a.test", 2), parts, Some(&id("a.test", 1)), &watch).await.unwrap();
    depot.export(&id("a.test", 2), &temp.join("to-import.tar"), &watch).await.unwrap();
}

/// What is to be collected: a version that was deleted, and the chunks of a put that was killed.
async fn littered(world: &World, temp: &Path) {
    let depot = opened(world);
    let guard = on_this_thread(|at| if at == "depot.put.stored" { Outcome::Panic } else { Outcome::Go });
    assert!(AssertUnwindSafe(done(Put, &depot, temp)).catch_unwind().await.is_err());
    drop(guard);
    depot.delete(&id("a.test", 1)).await.unwrap();
    world.advance(3 * depot.grace_ms().await.unwrap());
}

#[tokio::test]
async fn a_kill_at_each_step_leaves_whole_versions_and_nothing_for_ever() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().cloned().unwrap_or_default();
        if !text.starts_with("failpoint") {
            quiet(info);
        }
    }));
    for (step, deed, a, b) in STEPS {
        let (world, temp) = (World::new(4), tempfile::tempdir().unwrap());
        prepared(&world, temp.path()).await;
        match deed {
            Collect => littered(&world, temp.path()).await,
            Renew => drop(opened(&world).claim(&"a.test".parse().unwrap(), "host", None).await.unwrap()),
            Put | RollBack | Delete | Claim | Export | Import => {}
        }
        let (mut left, name) = match step.split_once('*') {
            Some((times, name)) => (times.parse::<u32>().unwrap(), name),
            None => (1, step),
        };
        let guard = on_this_thread(move |at| {
            left -= u32::from(at == name && left > 0);
            if at == name && left == 0 { Outcome::Panic } else { Outcome::Go }
        });
        let killed = AssertUnwindSafe(done(deed, &opened(&world), temp.path())).catch_unwind().await;
        drop(guard);
        assert!(killed.is_err(), "{deed:?} never came to {step}");

        let depot = opened(&world);
        assert_eq!(numbers(&depot, "a.test").await, a, "{deed:?} killed at {step}");
        assert_eq!(numbers(&depot, "b.test").await, b, "{deed:?} killed at {step}");
        assert!(!temp.path().join("exported.tar").exists(), "half a file looks like a whole one");
        // Again, and after a while nothing is left of what was begun.
        if let Err(error) = done(deed, &depot, temp.path()).await {
            assert!(deed == Import && !b.is_empty(), "{deed:?} after a kill at {step}: {error}");
        }
        world.advance(3 * depot.grace_ms().await.unwrap());
        depot.collect(&Watch::default()).await.unwrap();
        world.advance(3 * depot.grace_ms().await.unwrap());
        let more = depot.plan_collection().await.unwrap();
        assert!(more.chunks.is_empty(), "{deed:?} killed at {step}: garbage is left");
        for service in ["a.test", "b.test"] {
            for number in numbers(&depot, service).await {
                depot.delete(&id(service, number)).await.unwrap();
            }
        }
        world.advance(3 * depot.grace_ms().await.unwrap());
        depot.collect(&Watch::default()).await.unwrap();
        let chunks =
            world.inside.lock().unwrap().objects.keys().filter(|path| path.contains("chunks/")).count();
        assert_eq!(chunks, 0, "{deed:?} killed at {step}: chunks of no version");
    }
}
