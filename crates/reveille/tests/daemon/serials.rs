//! The daemon as a primary: killed again and again, it never gives one serial to two contents, and a real secondary
//! follows it. No virtual machine is started; the services have no image.

use std::collections::BTreeMap;

use crate::place::{KEY, Place, Running, SECRET};

/// Lives of the daemon.
const LIVES: u32 = 5;
const SERVICES: u32 = 8;

/// A primary of `vm.test` that tells its secondary, and has the key in a file as BIND writes it.
fn place_of_a_primary() -> Place {
    let place = Place::new();
    let mut config = format!(
        "[[key]]\nname = \"{KEY}\"\nfile = \"own.key\"\n\
         [[zone]]\nname = \"vm.test\"\ntransfer = [{{ key = \"{KEY}\" }}]\n\
         notify = [{{ address = \"{}\", key = \"{KEY}\" }}]\n",
        place.secondary
    );
    for number in 0..SERVICES {
        config +=
            &format!("[[service]]\nname = \"s{number}.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n");
    }
    place.config(&config);
    place.write_secret("own.key", &format!("key {KEY} {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};"));
    place
}

#[test]
fn no_serial_stands_for_two_contents_however_often_the_daemon_is_killed() {
    let place = place_of_a_primary();
    let secondary = place.knot();
    let mut seen: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for life in 0..LIVES {
        let daemon = place.daemon();
        let (first, content) = place.transfer(place.dns).unwrap();
        let last = seen.keys().next_back().copied().unwrap_or(0);
        assert!(first > last, "{first} after {last}");
        seen.insert(first, content);
        // The secondary follows each life, which knows nothing of the one before.
        place.found("the secondary at the new serial", || {
            place.transfer(place.secondary).filter(|(serial, _)| *serial >= first)
        });
        let removals: Vec<Running> = (0..SERVICES)
            .filter(|n| n % 2 == life % 2)
            .map(|n| place.remove(&format!("s{n}.vm.test")))
            .collect();
        // Killed while it publishes: at another time in each life.
        for _ in 0..life * 4 {
            let Some((serial, content)) = place.transfer(place.dns) else { continue };
            let known = seen.entry(serial).or_insert_with(|| content.clone());
            assert_eq!(*known, content, "serial {serial}");
        }
        daemon.kill();
        drop(removals);
    }
    let daemon = place.daemon();
    place.until("a service gone", || place.remove("s0.vm.test").succeeds());
    let own = place.transfer(place.dns).unwrap();
    assert!(own.0 > *seen.keys().next_back().unwrap() && own.1.len() < 2 + SERVICES as usize, "{own:?}");
    let theirs = place.found("the secondary without it", || {
        place.transfer(place.secondary).filter(|(serial, _)| *serial == own.0)
    });
    assert_eq!(own, theirs);
    drop((daemon, secondary));
}
