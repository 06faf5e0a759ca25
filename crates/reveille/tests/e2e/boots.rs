//! Cold boots in a row: every one comes up.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::chance::count;
use crate::small::say;
use crate::world::{HELLO, World};

#[test]
fn every_cold_boot_comes_up() {
    let wanted = count("REVEILLE_TEST_BOOTS", 3);
    let world = World::new().service(HELLO).start();
    let mut nonces = BTreeSet::new();
    let mut times = Vec::new();
    for boot in 0..wanted {
        let began = Instant::now();
        let woken = world.json(&["wake", "hello"]);
        assert_eq!(
            (&woken["phase"], &woken["done"]),
            (&"active".into(), &true.into()),
            "boot {boot}: {woken}"
        );
        times.push(began.elapsed().as_millis());
        nonces.insert(world.page().nonce);
        let ended = world.json(&["terminate", "hello"]);
        assert_eq!(ended["phase"], "off", "boot {boot}");
        assert_eq!(world.vms(), []);
    }
    let wakes = world.until_wakes("hello", wanted);
    let retried = wakes.iter().filter(|wake| wake["outcome"] != "ready").count();
    assert_eq!((nonces.len(), retried), (wanted, 0), "every guest is a new one, none needed a second try");
    times.sort_unstable();
    say(&format!(
        "{wanted} cold boots: {} ms to {} ms, median {}",
        times[0],
        times[wanted - 1],
        times[wanted / 2]
    ));
}
