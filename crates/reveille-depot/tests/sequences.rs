//! Random sequences of putting, deleting and collecting, side by side, with kills at any request and any failpoint,
//! failing requests, lost answers, slow puts and a store's clock that is set: no version ever lacks a chunk, what was
//! acknowledged is there, and after a collection in peace there is no garbage.
//!
//! A failing sequence says its seed; `REVEILLE_TEST_SEED` runs it alone, `REVEILLE_TEST_SEQUENCES` sets how many.
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

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use common::{Dice, about, id};
use futures_util::FutureExt;
use reveille_depot::config::DepotConfig;
use reveille_depot::names::{ChunkName, ServiceName, VersionId};
use reveille_depot::pages::{PAGE_BYTES, PageSet};
use reveille_depot::put::PutError;
use reveille_depot::seal::{Keyring, SealKey};
use reveille_depot::source::{BytesSource, ChangedSource, NewPart};
use reveille_depot::verify::Depth;
use reveille_depot::{Depot, Watch};
use reveille_failpoint::{Outcome, on_this_thread};
use world::World;

/// A put of some requests, each of which takes up to 20 s, is done in half of it.
const GRACE_MS: u64 = 1_200_000;
const STEPS: u64 = 14;
const SERVICES: [&str; 2] = ["a.test", "b.test"];

/// A page for each number; 0 is a page of zeros.
type Guest = Vec<u16>;

fn bytes_of(guest: &Guest) -> Vec<u8> {
    let page = |number: &u16| {
        let mut page = vec![0; PAGE_BYTES];
        page[..2].copy_from_slice(&number.to_le_bytes());
        page
    };
    guest.iter().flat_map(page).collect()
}

#[derive(Debug, Clone)]
struct Known {
    guest: Guest,
    /// Whether it must be there; otherwise it may.
    sure: bool,
}

struct Story {
    world: World,
    dice: Dice,
    known: BTreeMap<VersionId, Known>,
    numbers: BTreeMap<&'static str, u64>,
}

enum Act {
    Put { id: VersionId, guest: Guest, parent: Option<(VersionId, Guest)>, by_changes: bool },
    Delete(VersionId),
    Collect,
}

enum Did {
    Done,
    Refused,
    /// Failed or was killed: it may have happened.
    Unknown,
}

fn depot(world: &World, sealed: bool) -> Depot {
    let config = DepotConfig { grace_ms: GRACE_MS, parallel: 3, workers: 1, ..DepotConfig::at("file:///x") };
    let keys = if sealed { Keyring::new(vec![SealKey::new(&[5; 32])], false) } else { Keyring::default() };
    let clock = world.clone();
    let stopwatch = Arc::new(move || clock.inside.lock().unwrap().uptime_ms);
    Depot::with_store(&config, Arc::new(world.clone()), keys, stopwatch)
}

impl Story {
    fn next_guest(&mut self, parent: Option<&Guest>) -> Guest {
        let page = |dice: &mut Dice| u16::try_from(dice.below(400)).unwrap();
        match parent {
            Some(parent) => {
                let mut guest = parent.clone();
                for _ in 0..self.dice.below(12) {
                    let at = self.dice.below(guest.len() as u64);
                    guest[usize::try_from(at).unwrap()] = page(&mut self.dice);
                }
                guest
            }
            None => {
                // Few of them need more than one chunk.
                let pages = if self.dice.below(6) == 0 { 300 } else { 12 + self.dice.below(30) };
                (0..pages).map(|_| page(&mut self.dice)).collect()
            }
        }
    }

    fn next_act(&mut self) -> Act {
        let sure: Vec<VersionId> =
            self.known.iter().filter(|(_, known)| known.sure).map(|(id, _)| id.clone()).collect();
        let any = |dice: &mut Dice| sure[usize::try_from(dice.below(sure.len() as u64)).unwrap()].clone();
        match self.dice.below(10) {
            0..=4 => {
                let service = SERVICES[usize::try_from(self.dice.below(2)).unwrap()];
                let number = self.numbers.entry(service).or_default();
                *number += 1;
                let id = id(service, *number);
                let parent = (!sure.is_empty() && self.dice.below(5) > 0).then(|| any(&mut self.dice));
                let parent = parent.map(|id| (id.clone(), self.known[&id].guest.clone()));
                let guest = self.next_guest(parent.as_ref().map(|(_, guest)| guest));
                let by_changes = parent.is_some() && self.dice.below(2) == 0;
                Act::Put { id, guest, parent, by_changes }
            }
            5..=6 if !sure.is_empty() => Act::Delete(any(&mut self.dice)),
            _ => Act::Collect,
        }
    }

    fn learn(&mut self, act: &Act, did: &Did) {
        match (act, did) {
            (Act::Put { id, guest, .. }, Did::Done) => {
                self.known.insert(id.clone(), Known { guest: guest.clone(), sure: true });
            }
            (Act::Put { id, guest, .. }, Did::Unknown) => {
                self.known.insert(id.clone(), Known { guest: guest.clone(), sure: false });
            }
            (Act::Delete(id), Did::Done) => {
                self.known.remove(id);
            }
            (Act::Delete(id), Did::Unknown) => {
                if let Some(known) = self.known.get_mut(id) {
                    known.sure = false;
                }
            }
            (Act::Put { .. } | Act::Delete(_), Did::Refused) | (Act::Collect, _) => {}
        }
    }

    /// What is there is whole, and what must be there is.
    async fn check(&self, depot: &Depot, pages: bool) {
        let mut there = Vec::new();
        for service in SERVICES {
            let service: ServiceName = service.parse().unwrap();
            for entry in depot.list(&service).await.unwrap() {
                let manifest = entry.manifest.unwrap();
                let known =
                    self.known.get(&entry.id).unwrap_or_else(|| panic!("{} came from nowhere", entry.id));
                for chunk in &manifest.chunks {
                    let has = self.world.inside.lock().unwrap().objects.contains_key(&chunk.name.path());
                    assert!(has, "{} lacks chunk {}", entry.id, chunk.name);
                }
                if pages {
                    let verified = depot.verify(&entry.id, Depth::Pages, &Watch::default()).await.unwrap();
                    assert_eq!(verified.faults_total, 0, "{:?}", verified.faults);
                    let sum = reveille_depot::pages::ContentSum::of_bytes(&bytes_of(&known.guest));
                    assert_eq!(manifest.parts[0].content, sum.to_hex(), "{}", entry.id);
                }
                there.push(entry.id);
            }
        }
        for (id, _) in self.known.iter().filter(|(_, known)| known.sure) {
            assert!(there.contains(id), "{id} is lost");
        }
    }
}

async fn carry_out(depot: &Depot, act: &Act) -> Did {
    let watch = Watch::default();
    match act {
        Act::Put { id, guest, parent, by_changes } => {
            let mut about = about(&id.service.to_string(), id.number);
            about.parent = None;
            let bytes = bytes_of(guest);
            let part = match parent {
                Some((base, old)) if *by_changes => {
                    let changed: PageSet = (0u64..)
                        .zip(guest.iter().zip(old))
                        .filter(|(_, (new, old))| new != old)
                        .map(|(page, _)| page)
                        .collect();
                    let mut file = tempfile::tempfile().unwrap();
                    std::io::Write::write_all(&mut file, &bytes).unwrap();
                    let source = ChangedSource::new(base.clone(), file, bytes.len() as u64, changed);
                    NewPart::new("memory", source)
                }
                _ => NewPart::new("memory", BytesSource(bytes.into())),
            };
            let parent = parent.as_ref().map(|(id, _)| id);
            match depot.put_version(&about, vec![part], parent, &watch).await {
                Ok(_) => Did::Done,
                Err(PutError::Object(_)) => Did::Unknown,
                // Too slow, and then the store failed to take it back.
                Err(PutError::TooSlow { .. } | PutError::Base { .. }) => Did::Refused,
                // The one beside it was faster and has a higher number.
                Err(PutError::Taken { taken, .. }) if taken > id.number => Did::Refused,
                Err(error) => panic!("{error}"),
            }
        }
        Act::Delete(id) => match depot.delete(id).await {
            Ok(()) => Did::Done,
            Err(_) => Did::Unknown,
        },
        Act::Collect => {
            let _ = depot.collect(&watch).await;
            Did::Done
        }
    }
}

/// Carries out until it is done, or the process is killed at a request or a failpoint.
async fn until_killed(world: &World, depot: &Depot, act: &Act) -> Did {
    let killed = world.killed.notified();
    let doing = AssertUnwindSafe(carry_out(depot, act)).catch_unwind();
    tokio::select! {
        did = doing => match did {
            Ok(did) => did,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                if !text.starts_with("failpoint") {
                    std::panic::resume_unwind(panic);
                }
                Did::Unknown
            }
        },
        () = killed => Did::Unknown,
    }
}

async fn sequence(seed: u64) {
    let mut story = Story {
        world: World::new(seed ^ 0xabcd),
        dice: Dice(seed),
        known: BTreeMap::new(),
        numbers: BTreeMap::new(),
    };
    let sealed = story.dice.below(4) == 0;
    let world = story.world.clone();
    for _ in 0..STEPS {
        let first = story.next_act();
        // Beside it nothing, anything, or what is worst: its parent is deleted, and its chunks are looked for.
        let second = match (&first, story.dice.below(4)) {
            (_, 0) => vec![],
            (Act::Put { parent: Some((parent, _)), .. }, 1..=2) => {
                vec![Act::Delete(parent.clone()), Act::Collect]
            }
            _ => vec![story.next_act()],
        };
        let peril = story.dice.below(6);
        {
            let mut inside = world.inside.lock().unwrap();
            inside.requests_to_kill = (peril == 0).then(|| 1 + story.dice.below(25));
            inside.fail_percent = if peril == 1 { 10 } else { 0 };
            inside.jumps = peril == 2;
        }
        let mut countdown = (peril == 3).then(|| 1 + story.dice.below(12));
        let guard = on_this_thread(move |_| match &mut countdown {
            Some(0) | None => Outcome::Go,
            Some(left) => {
                *left -= 1;
                if *left == 0 { Outcome::Panic } else { Outcome::Go }
            }
        });
        let (one, other) = (depot(&world, sealed), depot(&world, sealed));
        let beside = async {
            let mut all = Vec::new();
            for act in &second {
                all.push(until_killed(&world, &other, act).await);
            }
            all
        };
        let (did, did_beside) = tokio::join!(until_killed(&world, &one, &first), beside);
        drop(guard);
        {
            let mut inside = world.inside.lock().unwrap();
            (inside.requests_to_kill, inside.fail_percent, inside.jumps) = (None, 0, false);
        }
        // A version that both acts are about is put by none of them: numbers go up.
        story.learn(&first, &did);
        for (act, did) in second.iter().zip(&did_beside) {
            story.learn(act, did);
        }
        world.advance(story.dice.below(2 * GRACE_MS));
        story.check(&depot(&world, sealed), false).await;
    }
    let last = depot(&world, sealed);
    for _ in 0..2 {
        world.advance(GRACE_MS + 60_000);
        last.collect(&Watch::default()).await.unwrap();
    }
    story.check(&last, true).await;
    no_garbage(&world, &last).await;
}

async fn no_garbage(world: &World, depot: &Depot) {
    let mut needed = Vec::new();
    for service in SERVICES {
        for entry in depot.list(&service.parse().unwrap()).await.unwrap() {
            needed.extend(entry.manifest.unwrap().chunks.iter().map(|chunk| chunk.name));
        }
    }
    for path in world.inside.lock().unwrap().objects.keys() {
        let fine = match ChunkName::of_path(path) {
            Some(name) => needed.contains(&name),
            None => path == "depot" || path.contains("/versions/"),
        };
        assert!(fine, "{path} is garbage");
    }
}

#[test]
fn no_sequence_loses_a_chunk_or_leaves_garbage() {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>().cloned().unwrap_or_default();
        if !text.starts_with("failpoint") {
            quiet(info);
        }
    }));
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seeds = match number("REVEILLE_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("REVEILLE_TEST_SEQUENCES").unwrap_or(500),
    };
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let told = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(sequence(seed))));
        if let Err(panic) = told {
            eprintln!("REVEILLE_TEST_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("{count} sequences");
}
