//! The daemon reads its config again under load, by signal and by API: no query is lost, every answer is of before or
//! after, a fault changes nothing, and secondaries follow. No virtual machine is started; the services have no image.

use std::sync::atomic::Ordering::{Acquire, Release};

use crate::load::{Load, Watch};
use crate::place::{KEY, Place, Running, SECRET};

/// Reloads under load.
const RELOADS: u32 = 24;

/// The config with `more` at its end. Questions wake nothing: there is nothing to wake.
fn config(place: &Place, more: &str) {
    place.config(&format!("[gate.wake]\nmode = \"off\"\n{more}"));
}

/// The config and the zone file of a round.
fn write_round(place: &Place, round: u32) {
    let www = format!("www A 192.0.2.80\nmoving A 192.0.2.{round}\nround{round} TXT \"new\"\n");
    place.zone_file("vm.test.zone", "vm.test", &www);
    // Zones come and go, so that the whole view is made anew in every other round.
    let mut more =
        "[[zone]]\nname = \"vm.test\"\nfile = \"vm.test.zone\"\n[[zone]]\nname = \"still.test\"\n".to_owned();
    if round % 2 == 1 {
        more += &format!("[[zone]]\nname = \"extra{round}.test\"\n[[zone]]\nname = \"a.sub.vm.test\"\n");
    }
    more += &format!(
        "[gate.rate]\npositive_per_s = {}\n[policy]\nttl_asleep_s = {}\n",
        300 + round,
        5 + round % 3
    );
    for number in 0..2 + round / 2 {
        more += &service(number);
    }
    config(place, &more);
}

fn service(number: u32) -> String {
    format!("[[service]]\nname = \"s{number}.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n")
}

#[test]
fn no_query_is_lost_however_often_the_config_is_read_again() {
    let place = Place::new();
    write_round(&place, 1);
    let daemon = place.daemon();
    let watch = Watch::new();
    watch.before.store(1, Release);
    watch.after.store(1, Release);
    let load = Load::start(place.dns, &watch);
    load.wait_for(200);
    for round in 2..2 + RELOADS {
        // From here on an answer may be the new one, and from where the reload is done it must be.
        watch.after.store(round, Release);
        write_round(&place, round);
        if round % 2 == 0 {
            let report = place.reload().unwrap();
            let zone = report["changes"].as_array().unwrap().iter().find(|c| c["key"] == "zone \"vm.test\"");
            assert!(zone.unwrap()["change"].as_str().unwrap().starts_with("serial "), "{report}");
            assert_eq!(place.dig(&["moving.vm.test", "A"]), [format!("192.0.2.{round}")], "at once");
        } else {
            daemon.signal("HUP");
            place.until("the record of the new file", || {
                place.dig(&["moving.vm.test", "A"]) == [format!("192.0.2.{round}")]
            });
        }
        watch.before.store(round, Release);
        assert_eq!(place.dig(&["+tcp", &format!("round{round}.vm.test"), "TXT"]), ["\"new\""]);
        assert_eq!(place.dig(&[&format!("round{}.vm.test", round - 1), "TXT"]), [""; 0]);
        let extra = place.dig(&[&format!("extra{round}.test"), "SOA"]);
        assert_eq!(extra.len(), usize::from(round % 2 == 1));
        assert_eq!(place.dig(&[&format!("s{}.vm.test", 1 + round / 2), "A"]).len(), 1, "a new service");
        load.wait_for(100);
    }
    let (asked, faults) = load.stop();
    assert!(
        faults.is_empty(),
        "{} of {asked}: {:#?}\n{}",
        faults.len(),
        &faults[..faults.len().min(10)],
        place.log()
    );
    assert!(asked > u64::from(RELOADS) * 100, "{asked}");
    assert!(watch.after.load(Acquire) > RELOADS);
}

#[test]
fn a_fault_changes_nothing_and_every_fault_is_told_with_its_place() {
    let place = Place::new();
    write_round(&place, 1);
    let daemon = place.daemon();
    let before = place.dig(&["vm.test", "SOA"]);
    place.zone_file("vm.test.zone", "vm.test", "www A 192.0.2.80\nmoving A 192.0.2.300\nother MX mail\n");
    config(
        &place,
        "[[zone]]\nname = \"vm.test\"\nfile = \"vm.test.zone\"\n[[zone]]\nname = \"new.test\"\nfile = \"none.zone\"\n",
    );
    let told = place.reload().unwrap_err();
    let check = place.run_once(&["check", "--config", &place.path("reveille.toml")]).unwrap_err();
    daemon.signal("HUP");
    place.until("the faults in the log", || place.log().contains("nothing is changed"));
    for fault in ["vm.test.zone:7: ", "vm.test.zone:8: ", "none.zone: cannot be read"] {
        for said in [&told, &place.log(), &check] {
            assert!(said.contains(fault), "{fault} is not in {said}");
        }
    }
    // Of the config itself too.
    config(
        &place,
        "[[zone]]\nname = \"vm.test\"\ntransfer = [{ key = \"no.test\" }]\n[gate]\nipv4_prefix = 99\n",
    );
    let told = place.reload().unwrap_err();
    assert!(
        told.contains("zone \"vm.test\".transfer.key") && told.contains("gate.ipv4_prefix = 99"),
        "{told}"
    );
    // A service that cannot be listened for takes everything back with it.
    let taken = place.some_pool_address();
    let listener = std::net::TcpListener::bind((taken, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    config(
        &place,
        &format!(
            "[[zone]]\nname = \"vm.test\"\n[[zone]]\nname = \"still.test\"\ndnssec = \"on\"\n{}[[service]]\nname = \"t.vm.test\"\nimage = \"none\"\nports = [\"tcp/{port}\"]\naddress = \"{taken}\"\n",
            service(7),
        ),
    );
    let told = place.reload().unwrap_err();
    assert!(told.contains("service \"t.vm.test\"") && told.contains("taken by another process"), "{told}");
    assert_eq!(place.dig(&["s7.vm.test", "A"]), [""; 0]);
    assert_eq!(place.dig(&["vm.test", "SOA"]), before);
    assert_eq!(place.dig(&["moving.vm.test", "A"]), ["192.0.2.1"]);
    let ledger = place.path("state/keys/still.test/state.toml");
    assert!(!std::path::Path::new(&ledger).exists(), "keys of a zone that was never signed");
    drop(listener);
    // And what was taken back can be had.
    place.reload().unwrap();
    assert_eq!(place.dig(&["s7.vm.test", "A"]).len(), 1);
    assert_eq!(place.dig(&["t.vm.test", "A"]), [taken.to_string()]);
    assert!(place.dig_all(&["+dnssec", "still.test", "SOA"]).contains("RRSIG"));
}

/// Settings of a zone that a secondary has and that clients update.
fn followed(place: &Place, more: &str) -> String {
    format!(
        "[[key]]\nname = \"{KEY}\"\nfile = \"own.key\"\n[[zone]]\nname = \"vm.test\"\nfile = \"vm.test.zone\"\n\
         transfer = [{{ key = \"{KEY}\" }}]\nnotify = [{{ address = \"{}\", key = \"{KEY}\" }}]\n\
         update = [{{ key = \"{KEY}\" }}]\n{more}",
        place.secondary
    )
}

#[test]
fn a_secondary_follows_by_differences_and_no_serial_comes_twice() {
    let place = Place::new();
    let base = "www A 192.0.2.80\n";
    place.zone_file("vm.test.zone", "vm.test", base);
    // Nobody may have the zone, and nobody is told, until a reload says so.
    config(&place, "[[zone]]\nname = \"vm.test\"\nfile = \"vm.test.zone\"\n");
    let mut daemon = place.daemon();
    assert!(place.transfer(place.dns).is_none());
    config(&place, &followed(&place, ""));
    place.reload().unwrap();
    let _secondary = place.knot();
    let follow = |wanted: u32| {
        place.found("the secondary at the new serial", || {
            place.transfer(place.secondary).filter(|(serial, _)| *serial == wanted)
        })
    };
    follow(place.transfer(place.dns).unwrap().0);
    assert!(place.update("update add dyn.vm.test 60 A 192.0.2.9\nupdate delete www.vm.test A 192.0.2.80"));
    let mut last = follow(place.transfer(place.dns).unwrap().0).0;
    let (mut whole, mut steps) = (place.log().matches("AXFR, incoming").count(), 0);
    for round in 0..8 {
        let text = format!("{base}www A 192.0.2.81\nr{round} TXT \"{round}\"\n");
        place.zone_file("vm.test.zone", "vm.test", &text);
        let services: String = (0..round % 3).map(service).collect();
        config(&place, &followed(&place, &services));
        if round % 2 == 0 {
            place.reload().unwrap();
        } else {
            daemon.signal("HUP");
            place.until("the new record", || !place.dig(&[&format!("r{round}.vm.test"), "TXT"]).is_empty());
        }
        // Services go when they have been ended, which takes steps of its own.
        let left = usize::try_from(round % 3).unwrap();
        let own = place.found("services that were removed to be gone", || {
            let own = place.transfer(place.dns)?;
            (own.1.iter().filter(|line| line.starts_with('s')).count() == left).then_some(own)
        });
        assert!(own.0 > last, "{} after {last}", own.0);
        assert_eq!(follow(own.0), own);
        // What updates changed is laid over each new file.
        assert_eq!(place.dig(&["dyn.vm.test", "A"]), ["192.0.2.9"]);
        assert_eq!(place.dig(&["www.vm.test", "A"]), ["192.0.2.81"]);
        (last, steps) = (own.0, steps + 1);
        if round == 5 {
            // Killed right after a reload: the next life begins above, and the secondary has it in full once.
            // A serial in the file that is newer is taken over, and must not come again for what is to come.
            let text = format!("{text}killed TXT \"x\"\n");
            place.zone_file_at(5_000_000, "vm.test.zone", "vm.test", &text);
            place.reload().unwrap();
            let own = place.transfer(place.dns).unwrap();
            assert_eq!(own.0, 5_000_000);
            daemon.kill();
            daemon = place.daemon();
            let next = place.transfer(place.dns).unwrap();
            assert!(next.0 > own.0 && next.1 == own.1, "{own:?} {next:?}");
            last = follow(next.0).0;
            whole += 1;
        }
    }
    let log = place.log();
    let (differences, all) =
        (log.matches("IXFR, incoming, remote").count(), log.matches("AXFR, incoming").count());
    assert!(differences >= steps, "{differences} of {steps}\n{log}");
    // A transfer leaves a few lines in its log; those for the start and the kill are all that there are.
    assert!(all <= whole * 4, "{all} {whole}\n{log}");
}

#[test]
fn what_can_change_changes_and_what_cannot_is_named() {
    let place = Place::new();
    place.zone_file("vm.test.zone", "vm.test", "www A 192.0.2.80\n");
    config(&place, &followed(&place, &service(1)));
    let mut daemon = place.daemon();
    assert!(place.transfer(place.dns).is_some());
    let unchanged = place.reload().unwrap();
    assert_eq!(
        (unchanged["changes"].as_array().unwrap().len(), &unchanged["needs_restart"]),
        (0, &serde_json::json!([]))
    );
    // Another secret under the same name: who has the old one is refused.
    place.write_secret("own.key", "YW5vdGhlciBzZWNyZXQgdGhhdCBpcyBsb25nIGVub3VnaA==");
    let other = service(1).replace("tcp/80", "tcp/81") + "policy = { ttl_asleep_s = 77 }\n";
    let signed = "[[zone]]\nname = \"signed.test\"\ndnssec = \"on\"\n";
    config(
        &place,
        &followed(
            &place,
            &format!(
                "{other}{signed}[dns.https]\nlisten = [\"127.0.0.1:0\"]\n[host]\nstarts_max = 2\n\
             [observe]\nanomaly_threshold_sd = 4.5\n"
            ),
        ),
    );
    let report = place.reload().unwrap();
    assert_eq!(
        report["needs_restart"],
        serde_json::json!(["dns.https.listen", "service \"s1.vm.test\".ports"])
    );
    let keys: Vec<&str> =
        report["changes"].as_array().unwrap().iter().map(|change| change["key"].as_str().unwrap()).collect();
    for key in [
        &format!("key \"{KEY}\"")[..],
        "host",
        "observe.anomaly_threshold_sd",
        "service \"s1.vm.test\"",
        "zone \"signed.test\"",
        "zone \"vm.test\"",
    ] {
        assert!(keys.contains(&key), "{key} is not in {keys:?}");
    }
    assert!(place.transfer(place.dns).is_none());
    assert!(
        place.dig_all(&["s1.vm.test", "A"]).contains("\t77\t"),
        "{}",
        place.dig_all(&["s1.vm.test", "A"])
    );
    let answer = place.dig_all(&["+dnssec", "signed.test", "SOA"]);
    assert!(answer.contains("RRSIG"), "{answer}");
    let key = place.dig(&["signed.test", "DNSKEY"]);
    // Unsigned again, and with the old secret.
    place.write_secret("own.key", SECRET);
    config(&place, &followed(&place, &format!("{other}{}", signed.replace("\"on\"", "\"off\""))));
    place.reload().unwrap();
    assert!(!place.dig_all(&["+dnssec", "signed.test", "SOA"]).contains("RRSIG") && !key.is_empty());
    assert!(place.transfer(place.dns).is_some());
    // The next start agrees.
    let was = place.transfer(place.dns).unwrap();
    daemon.kill();
    daemon = place.daemon();
    assert_eq!(place.transfer(place.dns).unwrap().1, was.1);
    let report = place.reload().unwrap();
    assert_eq!(
        (report["changes"].as_array().unwrap().len(), &report["needs_restart"]),
        (0, &serde_json::json!([]))
    );
    let _: Running = daemon;
}

#[test]
fn what_a_full_disk_refuses_is_taken_back_and_is_nobodys_later() {
    /// Less than any change of the database needs, and more than what is logged.
    const SMALL: &str = "16384";
    let place = Place::new();
    place.zone_file("vm.test.zone", "vm.test", "www A 192.0.2.80\n");
    config(&place, &followed(&place, &service(1)));
    let mut daemon = place.daemon();
    daemon.limit_files(SMALL);
    config(&place, &followed(&place, &(service(1) + &service(2))));
    let told = place.reload().unwrap_err();
    assert!(told.contains("could not be saved"), "{told}");
    assert_eq!(place.dig(&["s2.vm.test", "A"]), [""; 0]);
    // As long as it may be there all the same, nothing else is tried; to take it back may need less room.
    let told = place.reload().unwrap_err();
    assert!(told.contains("taken back from the disk") || told.contains("could not be saved"), "{told}");
    daemon.limit_files("unlimited");
    place.until("a reload", || place.reload().is_ok());
    assert_eq!(place.dig(&["s2.vm.test", "A"]).len(), 1);
    // Nor is an update that could not be saved there later.
    daemon.limit_files(SMALL);
    assert!(!place.update("update add dyn.vm.test 60 A 192.0.2.9"));
    daemon.limit_files("unlimited");
    place.until("a reload", || place.reload().is_ok());
    daemon.kill();
    daemon = place.daemon();
    assert_eq!(place.dig(&["dyn.vm.test", "A"]), [""; 0]);
    assert_eq!(place.dig(&["s2.vm.test", "A"]).len(), 1);
    let _: Running = daemon;
}
