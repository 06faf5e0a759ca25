//! `kill -9` of the daemon at any moment: QEMU outlives it, and the next daemon puts everything right.

use std::collections::BTreeMap;

use crate::chance::{Chance, count};
use crate::small::say;
use crate::world::{HELLO, READY, World};

const SERVICES: [&str; 2] = ["hello.vm.test", "ready.vm.test"];
/// Within these times, in turn, of what begins a scene the daemon is killed: all of the scene, and its beginning,
/// in which a capture and a restore are.
const KILL_MS: [u64; 2] = [300, 80];
/// One daemon in so many is killed again while it starts, within this time.
const KILL_AGAIN_EVERY: usize = 4;
const KILL_START_MS: u64 = 100;
/// The same for a cold boot: its beginning, in which the process is started, and all of it.
const KILL_BOOT_MS: [u64; 2] = [100, 3_000];

/// What is under way when the daemon is killed.
#[derive(Debug, Clone, Copy)]
enum Scene {
    /// A client comes to a service that sleeps.
    Wakes,
    /// A service is told to sleep.
    Sleeps,
    /// The same, and a client comes meanwhile.
    TurnsBack,
    /// Nothing; it is as the scene before left it.
    Rests,
}

impl Scene {
    fn drawn(chance: &Chance) -> Self {
        // Rest is the shortest story.
        match chance.below(7) {
            0 | 1 => Self::Wakes,
            2 | 3 => Self::Sleeps,
            4 | 5 => Self::TurnsBack,
            _ => Self::Rests,
        }
    }
}

#[test]
fn whenever_the_daemon_is_killed_the_next_one_has_every_guest() {
    let kills = count("REVEILLE_TEST_KILLS", 10);
    let chance = Chance::new("crash");
    let mut world = World::new().service(HELLO).service(READY).start();
    let nonces = [1, 2].map(|number| world.page_at(number).nonce);
    let mut hit = Hit::default();
    for kill in 0..kills {
        let scenes = [0, 1].map(|_| Scene::drawn(&chance));
        set(&world, scenes);
        let log_from = play(&mut world, scenes, &chance, KILL_MS[kill % 2]);
        if kill % KILL_AGAIN_EVERY == 0 {
            drop(world.spawn());
            std::thread::sleep(chance.pause(KILL_START_MS));
            world.kill9();
        }
        world.restart();
        hit.note(&world.log()[log_from..]);
        for (index, number) in [1, 2].into_iter().enumerate() {
            let page = world.page_at(number);
            assert_eq!(
                page.nonce, nonces[index],
                "kill {kill} in {scenes:?}: {} lost its guest",
                SERVICES[index]
            );
        }
        for service in SERVICES {
            world.until_phase(service, "active");
            assert_eq!(world.vms_of(service).len(), 1, "kill {kill} in {scenes:?}: {:?}", world.vms());
        }
        assert_eq!(world.vms().len(), SERVICES.len(), "kill {kill} in {scenes:?} left an orphan");
    }
    say(&format!("{kills} kills of the daemon, {hit}: every nonce unchanged, no orphan"));
}

/// Brings each service to where its scene begins.
fn set(world: &World, scenes: [Scene; 2]) {
    for (service, scene) in SERVICES.into_iter().zip(scenes) {
        match scene {
            Scene::Wakes => {
                world.put_to_sleep(service);
            }
            Scene::Sleeps | Scene::TurnsBack => {
                world.json(&["wake", service]);
            }
            Scene::Rests => {}
        }
    }
}

/// Begins the scenes and kills the daemon somewhere in them; returns the length of the log then.
fn play(world: &mut World, scenes: [Scene; 2], chance: &Chance, ms_max: u64) -> usize {
    let pauses = [0, 1].map(|_| (chance.pause(ms_max), chance.pause(ms_max)));
    std::thread::scope(|scope| {
        let seen = &*world;
        for (number, (scene, pause)) in (1..).zip(scenes.into_iter().zip(pauses)) {
            scope.spawn(move || {
                if matches!(scene, Scene::Sleeps | Scene::TurnsBack) {
                    // It may be dead before it answers.
                    let target = format!("/v1/services/{}/hibernate", SERVICES[usize::from(number) - 1]);
                    drop(seen.ask("POST", &target));
                }
                if matches!(scene, Scene::TurnsBack) {
                    std::thread::sleep(pause.0.min(pause.1));
                }
                if matches!(scene, Scene::Wakes | Scene::TurnsBack) {
                    drop(seen.try_page(seen.address(number)));
                }
            });
        }
        std::thread::sleep(pauses[0].1);
        seen.crash();
    });
    let log_from = world.log().len();
    world.ended();
    log_from
}

#[test]
fn a_daemon_that_is_killed_while_a_guest_boots_leaves_one_that_is_served() {
    let kills = count("REVEILLE_TEST_KILLS", 10).div_ceil(5);
    let chance = Chance::new("crash while booting");
    let mut world = World::new().service(HELLO).start();
    let mut hit = Hit::default();
    for kill in 0..kills {
        world.json(&["terminate", "hello"]);
        assert_eq!(world.vms(), []);
        let pause = chance.pause(KILL_BOOT_MS[kill % 2]);
        world.ask("POST", "/v1/services/hello/wake").unwrap();
        std::thread::sleep(pause);
        let log_from = world.log().len();
        world.kill9();
        world.restart();
        hit.note(&world.log()[log_from..]);
        assert_eq!(world.page().service, "hello");
        world.until_phase("hello.vm.test", "active");
        world.vm();
    }
    say(&format!("{kills} kills of the daemon after it began a boot, {hit}: all answered"));
}

/// How often each phase was hit: what the state table said, and what was found of the instance.
#[derive(Default)]
struct Hit(BTreeMap<String, usize>);

impl Hit {
    /// Counts what a daemon has logged of what it found.
    fn note(&mut self, log: &str) {
        for line in log.lines() {
            let word = |key: &str| line.split(key).nth(1)?.split([' ', '{']).find(|word| !word.is_empty());
            if let (Some(was), Some(found)) = (word(" was="), word(" found=")) {
                *self.0.entry(format!("{was}/{}", found.to_lowercase())).or_default() += 1;
            }
        }
    }
}

impl std::fmt::Display for Hit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counted: Vec<String> = self.0.iter().map(|(what, count)| format!("{what} {count}")).collect();
        f.write_str(&counted.join(", "))
    }
}
