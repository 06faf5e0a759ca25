//! The daemon and dynamic updates, in and out: killed again and again, it loses no update that was acknowledged, and
//! an external primary is in step in the end. No virtual machine is started; the services have no image.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::place::{KEY, NEVER_GIVEN_UP, Place};
use crate::primaries::{Kind, Primary};

/// Lives of the daemon.
const LIVES: u64 = 6;
/// Updates that are acknowledged in each of them, at least.
const UPDATES_A_LIFE: u64 = 12;
/// Longest wait for them.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Clients that send updates at the same time.
const CLIENTS: u32 = 3;
const SERVICES: u32 = 6;

/// A daemon's place, with the key that updates are made with and `more` in its config.
fn place_with(more: &str) -> Place {
    let place = Place::new();
    place.config(&format!("[[key]]\nname = \"{KEY}\"\nfile = \"own.key\"\n{more}"));
    place
}

fn services(count: u32) -> String {
    let one = |number| {
        format!(
            "[[service]]\nname = \"s{number}.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n{NEVER_GIVEN_UP}"
        )
    };
    (0..count).map(one).collect()
}

#[test]
fn an_update_that_was_acknowledged_survives_kill_9() {
    let zone = format!("[[zone]]\nname = \"vm.test\"\nupdate = [{{ key = \"{KEY}\" }}]\ndnssec = \"on\"\n");
    let place = place_with(&(zone + &services(1)));
    let mut acknowledged: Vec<(String, u64)> = Vec::new();
    let mut serial = 0;
    for life in 0..LIVES {
        let daemon = place.daemon();
        let now: u32 = place.dig(&["vm.test", "SOA"])[0].split(' ').nth(2).unwrap().parse().unwrap();
        assert!(now > serial, "{now} after {serial}");
        serial = now;
        let (killed, acknowledgements) = (AtomicBool::new(false), AtomicU64::new(0));
        let made: Vec<(String, u64)> = std::thread::scope(|scope| {
            let clients = (0..CLIENTS).map(|client| {
                let (place, killed, acknowledgements) = (&place, &killed, &acknowledgements);
                scope.spawn(move || {
                    let mut made = Vec::new();
                    // One name of its own that is always overwritten, and one for each update.
                    for number in life * 1_000.. {
                        let (own, each) =
                            (format!("c{client}.vm.test"), format!("n{number}.c{client}.vm.test"));
                        let change = format!(
                            "update delete {own} TXT\nupdate add {own} 60 TXT {number}\n\
                             update add {each} 60 TXT {number}"
                        );
                        if killed.load(Relaxed) || !place.update(&change) {
                            break;
                        }
                        acknowledgements.fetch_add(1, Relaxed);
                        made.push((own, number));
                        made.push((each, number));
                    }
                    made
                })
            });
            let clients: Vec<_> = clients.collect();
            // Killed in the middle of it: after some updates, and at another time behind the last one in each life.
            let began = Instant::now();
            while acknowledgements.load(Relaxed) < UPDATES_A_LIFE {
                assert!(began.elapsed() < WAIT_MAX, "no updates: {}", place.log());
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_micros(730 * life));
            drop(daemon);
            killed.store(true, Relaxed);
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        acknowledged.extend(made);
    }
    let _daemon = place.daemon();
    for (name, number) in &acknowledged {
        let found = place.dig(&[name, "TXT"]);
        let found: u64 = found.first().map_or("nothing", |text| text.trim_matches('"')).parse().unwrap();
        // Of the name that is overwritten a later one, acknowledged or not, is right too.
        assert!(
            found == *number || (name.starts_with('c') && found > *number),
            "{name}: {found}, not {number}"
        );
    }
    // What updates made is signed like everything else.
    let signed = place.dig(&["+dnssec", &acknowledged[0].0, "TXT"]);
    assert!(signed.iter().any(|line| line.starts_with("TXT 13 3 60 ")), "{signed:?}");
    // A service's name is not for updates, whoever asks.
    assert!(!place.update("update add s0.vm.test 60 A 192.0.2.1"));
    assert!(place.log().contains("update refused"), "{}", place.log());
}

#[test]
fn what_was_set_aside_does_not_undo_a_newer_update() {
    let zone = "[[zone]]\nname = \"vm.test\"\nfile = \"vm.zone\"\n";
    let place = place_with(&format!("{zone}update = [{{ key = \"{KEY}\" }}]\n{}", services(1)));
    let old = "@ 300 SOA ns1 h 7 3600 600 604800 60\n@ 300 NS ns1\nns1 300 A 192.0.2.1\n";
    place.write("vm.zone", old);
    let daemon = place.daemon();
    for name in ["p", "q", "r"] {
        assert!(
            place.update(&format!("update add {name}.vm.test 300 CNAME ns1.vm.test.")),
            "{}",
            place.log()
        );
    }
    drop(daemon);
    place.write("vm.zone", &format!("{old}p 300 A 10.0.0.1\nq 300 A 10.0.0.1\nr 300 A 10.0.0.1\n"));
    let daemon = place.daemon();
    assert!(place.log().contains("is set aside until the next start or reload"), "{}", place.log());
    assert!(place.update("update delete p.vm.test"));
    assert!(place.update("update add q.vm.test 300 AAAA 2001:db8::1"));
    // Changes nothing that anybody can see, and is durable nevertheless.
    assert!(place.update("update delete r.vm.test CNAME"));
    assert_eq!(place.dig(&["r.vm.test", "A"]), ["10.0.0.1"]);
    drop(daemon);
    place.write("vm.zone", old);
    let _daemon = place.daemon();
    let left = ["p", "q", "r"].map(|name| {
        let name = format!("{name}.vm.test");
        [place.dig(&[&name, "CNAME"]), place.dig(&[&name, "AAAA"])].concat()
    });
    assert_eq!(left, [vec![], vec!["2001:db8::1".to_owned()], vec![]]);
}

#[test]
fn an_external_primary_is_in_step_with_the_services_however_often_the_daemon_is_killed() {
    let primary = Primary::start(Kind::Bind, &format!("grant {KEY} zonesub A AAAA;"));
    let more = format!(
        "[[zone]]\nname = \"vm.test\"\n\
         [[publish]]\nserver = \"{}\"\nzone = \"vm.test\"\nkey = \"{KEY}\"\nservices = [\"*.vm.test\"]\n",
        primary.address
    );
    let place = place_with(&(more.clone() + &services(SERVICES)));
    let own = |place: &Place, count: u32| -> Vec<String> {
        let address =
            |number| Some((number, place.dig(&[&format!("s{number}.vm.test"), "A"]).first()?.clone()));
        let mut lines: Vec<String> = (0..count)
            .filter_map(address)
            .map(|(number, address)| format!("s{number}.vm.test {address}"))
            .collect();
        lines.sort();
        lines
    };
    for life in 0..LIVES {
        let daemon = place.daemon();
        std::thread::sleep(Duration::from_millis(life * 11));
        drop(daemon);
    }
    let daemon = place.daemon();
    let all = own(&place, SERVICES);
    assert_eq!(all.len(), SERVICES as usize, "{}", place.log());
    place.until("all services are there", || primary.addresses() == all);
    // One is removed while it runs, some while it does not.
    assert!(place.remove("s1.vm.test").succeeds(), "{}", place.log());
    place.until("the removed one is gone there", || primary.addresses().len() == all.len() - 1);
    drop(daemon);
    let config = fs::read_to_string(place.path("reveille.toml")).unwrap();
    let kept = config.replace(&services(SERVICES), &services(SERVICES - 2));
    place.write("reveille.toml", &kept);
    let _daemon = place.daemon();
    let left = own(&place, SERVICES);
    assert_eq!(left.len(), SERVICES as usize - 2);
    place.until("what was taken out of the config is gone there", || primary.addresses() == left);
    assert_eq!(
        primary.dig(&["+short", "www.vm.test", "A"]).trim(),
        "192.0.2.80",
        "what others have is left alone"
    );
}
