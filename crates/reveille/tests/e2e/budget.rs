//! More services than the host has memory for, all asked for at once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use serde_json::Value;

use crate::chance::count;
use crate::small::{LOOK, say};
use crate::world::World;

/// What each guest is given, in MiB.
const MEMORY_MIB: usize = 112;
/// Longest wait of a client in the queue, in milliseconds.
const HELD_MS_MAX: u64 = 600_000;
/// Longest time, in milliseconds, that a client's packet is taken to be on its way to the control loop, which takes in
/// one after the other.
const UNSEEN_MS_MAX: f64 = 50.0;
/// The services have as many priorities.
const PRIORITIES: usize = 4;

fn name(number: usize) -> String {
    format!("s{number}.vm.test")
}

fn priority(number: usize) -> usize {
    number % PRIORITIES
}

/// A wake's time of day, in milliseconds.
fn at_ms(wake: &Value) -> f64 {
    let at = wake["at"].as_str().unwrap();
    let (_, time) = at.trim_end_matches('Z').split_once('T').unwrap();
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap()) * 1_000.0
}

/// Every service's client comes at the same time; each has to be served. Gives the most processes that there were.
fn all_at_once(world: &World, services: usize) -> usize {
    let (over, most) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !over.load(Relaxed) {
                most.fetch_max(world.vms().len(), Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        let page = |number: usize| world.page_at(u8::try_from(number).unwrap());
        let clients: Vec<_> = (1..=services).map(|number| scope.spawn(move || page(number))).collect();
        let pages: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Relaxed);
        watcher.join().unwrap();
        for (page, number) in pages.into_iter().zip(1..) {
            assert_eq!(page.unwrap().service, format!("s{number}"));
        }
    });
    most.into_inner()
}

#[test]
fn a_storm_of_wakes_beyond_the_memory_of_the_host_is_served_in_order_of_priority() {
    let services = count("REVEILLE_TEST_STORM", 8);
    let budget = services / 2;
    let mut world = World::new()
        .set("host", "memory_mib_max", budget * MEMORY_MIB)
        .policy("idle_ms", 1_000)
        .policy("min_on_ms", 1_000)
        .policy("ttl_awake_s", 1)
        .policy("ttl_asleep_s", 1)
        .policy("held_ms_max", HELD_MS_MAX)
        .policy("boot_ms_max", HELD_MS_MAX);
    for number in 1..=services {
        world = world.service(&format!(
            "[[service]]\nname = \"{}\"\nimage = \"demo\"\nports = [\"tcp/8080\"]\npriority = {}\n\
             resources = {{ memory_mib = {MEMORY_MIB} }}\nready = {{ check = \"http\", port = 8080, path = \"/\" }}\n",
            name(number),
            priority(number)
        ));
    }
    let world = world.start();
    // At first all boot; then all that sleep are restored.
    for round in 1..=2 {
        let most = all_at_once(&world, services);
        assert!(most <= budget, "{most} processes at a time, {budget} have room");
        let mut wakes = BTreeMap::new();
        for number in 1..=services {
            let all = world.until_wakes(&name(number), round);
            assert!(all.iter().all(|wake| wake["outcome"] == "ready"), "{all:#?}");
            wakes.insert(number, all.last().unwrap().clone());
            let actions = world.actions(&name(number));
            assert!(!actions.iter().any(|action| action == "kill"), "{actions:?}");
        }
        let asked: BTreeMap<usize, f64> = wakes.iter().map(|(number, wake)| (*number, at_ms(wake))).collect();
        let begun: BTreeMap<usize, f64> = wakes
            .iter()
            .map(|(number, wake)| (*number, asked[number] + wake["stages_ms"]["decided"].as_f64().unwrap()))
            .collect();
        for (one, other) in (1..=services).flat_map(|one| (1..=services).map(move |other| (one, other))) {
            // Both waited when the first of them was begun: who has only just come may not have been seen yet.
            let both_waited = asked[&one].max(asked[&other]) + UNSEEN_MS_MAX < begun[&one].min(begun[&other]);
            let overtaken = priority(one) > priority(other) && begun[&one] > begun[&other] + 2.0;
            assert!(
                !(both_waited && overtaken),
                "{} was begun before {}: {wakes:#?}",
                name(other),
                name(one)
            );
        }
        let last = begun.values().zip(asked.values()).map(|(begun, asked)| begun - asked).fold(0.0, f64::max);
        say(&format!(
            "{services} at once, room for {budget}: at most {most} processes; the last waited {last:.0} ms"
        ));
        for number in 1..=services {
            world.until_phase(&name(number), "hibernated");
        }
    }
}
