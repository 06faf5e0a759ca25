//! What an operator sees and does of the query room: counters, who asks for what, zones, and a rollover of a key. No
//! virtual machine is started; the service has no image.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

use serde_json::Value;

use crate::place::{NEVER_GIVEN_UP, Place};

/// What a verb says when it fails, as it must.
fn refused(place: &Place, arguments: &[&str]) -> String {
    let output = place.command(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// The tag of the key that www.vm.test is signed with.
fn signed_with(place: &Place) -> String {
    let lines = place.dig(&["+dnssec", "www.vm.test", "A"]);
    let signature =
        lines.iter().find(|line| line.starts_with("A 13 3 ")).unwrap_or_else(|| panic!("{lines:?}"));
    signature.split(' ').nth(6).unwrap().to_owned()
}

/// Each key's state by its tag.
fn states(keys: &Value) -> Vec<(String, String)> {
    let keys = keys["keys"].as_array().unwrap().iter();
    keys.map(|key| (key["tag"].to_string(), key["state"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn a_key_is_rolled_over_by_command_while_the_zone_is_served() {
    let more = "[dnssec]\nttl_s_max = 1\ndnskey_ttl_s = 1\npropagation_s = 1\nds_ttl_s = 1\nparent_propagation_s = 1\n\
                [[zone]]\nname = \"vm.test\"\nfile = \"vm.zone\"\ndnssec = \"on\"\n[[zone]]\nname = \"plain.test\"\n";
    let place = Place::new();
    place.config(more);
    let zone = "$TTL 1\n@ SOA ns1 admin 1 3600 600 86400 1\n@ NS ns1\nns1 A 127.0.0.1\nwww A 192.0.2.80\n";
    place.write("vm.zone", zone);
    let _daemon = place.daemon();

    // The first key: its DS goes to the parent once no cache has unsigned answers.
    let keys = || place.json(&["zone", "keys", "vm.test"]);
    let [(old, state)] = states(&keys()).try_into().unwrap();
    assert_eq!(state, "active");
    place.until("the first DS may be put to the parent", || {
        place.command(&["zone", "ds", "vm.test"]).status.success()
    });
    assert_eq!(
        states(&place.json(&["zone", "rollover", "vm.test", "--ds-seen"])),
        [(old.clone(), "active".into())]
    );
    assert_eq!(place.json(&["zone", "keys", "vm.test"])["next_step"], "nothing; all is as it should be");
    assert_eq!((place.dig(&["vm.test", "DNSKEY"]).len(), signed_with(&place)), (1, old.clone()));

    // A new one is published, and changes nothing else yet.
    let begun = states(&place.json(&["zone", "rollover", "vm.test"]));
    let [(first, _), (new, state)] = begun.try_into().unwrap();
    assert_eq!((&first, state.as_str()), (&old, "published"));
    assert_eq!((place.dig(&["vm.test", "DNSKEY"]).len(), signed_with(&place)), (2, old.clone()));
    let refusal = refused(&place, &["zone", "rollover", "vm.test"]);
    assert!(refusal.contains(&new), "one at a time: {refusal}");

    // Its DS is offered to the parent when it is time, by CDS as well.
    let ds_of_new =
        |lines: &Value| lines[0].as_str().is_some_and(|line| line.contains(&format!(" {new} 13 2 ")));
    place.until("the new key's DS may be put to the parent", || ds_of_new(&keys()["ds"]));
    assert!(ds_of_new(&keys()["cds"]));
    assert!(place.dig(&["vm.test", "CDS"])[0].starts_with(&format!("{new} 13 2 ")));
    let text = String::from_utf8(place.command(&["zone", "keys", "vm.test"]).stdout).unwrap();
    assert!(text.contains("To do: let the parent of vm.test have the DS of key"), "{text}");
    assert_eq!(signed_with(&place), old);

    // The parent has it: the new key signs from the next answer on, and the old one leaves by itself.
    let seen = states(&place.json(&["zone", "rollover", "vm.test", "--ds-seen"]));
    assert_eq!(seen, [(old.clone(), "retired".into()), (new.clone(), "active".into())]);
    assert_eq!(signed_with(&place), new);
    place.until("the old key is gone", || place.dig(&["vm.test", "DNSKEY"]).len() == 1);
    assert_eq!(states(&keys()), [(old, "removed".into()), (new, "active".into())]);

    // The same from the files, as it can be looked at without a daemon.
    let files = place.json(&["zone", "keys", "vm.test", "--config", &place.path("reveille.toml")]);
    assert_eq!(states(&files), states(&keys()));
    assert!(files["keys"][1]["file"].as_str().unwrap().ends_with(".private"));
    assert!(keys()["keys"][1].get("file").is_none(), "files are told on the host alone");

    for verb in [&["zone", "rollover", "plain.test"][..], &["zone", "keys", "plain.test"]] {
        let refusal = refused(&place, verb);
        assert!(refusal.contains("plain.test is not signed") && refusal.contains("dnssec"), "{refusal}");
    }
    let refusal = refused(&place, &["zone", "rollover", "www.vm.test", "--ds-seen"]);
    assert!(refusal.contains("www.vm.test is no zone that is served here"), "{refusal}");
    let zones = place.json(&["zone", "list"]);
    let zones =
        zones.as_array().unwrap().iter().map(|zone| (zone["name"].as_str().unwrap(), &zone["signed"]));
    assert_eq!(
        zones.collect::<Vec<_>>(),
        [("plain.test", &Value::from(false)), ("vm.test", &Value::from(true))]
    );
}

/// A secondary that acknowledges whatever it is told.
fn secondary() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // Ends with the test's process.
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut message) {
            message[2] |= 0x80;
            let _ = socket.send_to(&message[..length], from);
        }
    });
    address
}

#[test]
fn an_operator_sees_who_asks_for_what_and_what_became_of_it() {
    let place = Place::new();
    let tls = place.tls;
    place.config(&format!(
        "[dns.tls]\nlisten = [\"{tls}\"]\n[[zone]]\nname = \"vm.test\"\nnotify = [{{ address = \"{}\" }}]\n\
         [[service]]\nname = \"hello.vm.test\"\nimage = \"none\"\nports = [\"tcp/80\"]\n{NEVER_GIVEN_UP}",
        secondary()
    ));
    let _daemon = place.daemon();
    for _ in 0..5 {
        assert_eq!(place.dig(&["hello.vm.test", "A"]).len(), 1);
    }
    place.dig(&["hello.vm.test", "AAAA"]);
    place.dig(&["+tcp", "nobody.vm.test", "A"]);
    let over_tls = Command::new("kdig")
        .args(["-b", "127.0.0.2"])
        .args([
            &format!("@{}", tls.ip()),
            "-p",
            &tls.port().to_string(),
            "+tls",
            "+short",
            "hello.vm.test",
            "A",
        ])
        .output()
        .unwrap();
    assert!(over_tls.status.success(), "{over_tls:?}");

    let report = || place.json(&["dns"]);
    place.until("all queries were taken in", || report()["observed"]["queries"] == 8);
    place
        .until("the secondary is known to be in step", || report()["secondaries"][0]["acknowledged"] == true);
    let seen = report();
    let count =
        |path: &str| seen.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {seen:#}"));
    assert_eq!(["udp", "tcp", "tls", "https"].map(|way| count(&format!("/queries/{way}"))), [6, 1, 1, 0]);
    assert_eq!(count("/ways/fast") + count("/ways/general"), 8);
    assert_eq!((count("/rcodes/NOERROR"), count("/rcodes/NXDOMAIN")), (7, 1));
    assert_eq!((count("/connections/tcp/taken"), count("/connections/tls/taken")), (1, 1));
    assert!(count("/wakes/asked") >= 1 && count("/gate/wake/unproven_pass") >= 1, "{seen:#}");
    assert!(count("/notifies/sent") >= 1 && count("/notifies/acknowledged") >= 1, "{seen:#}");
    assert_eq!(count("/observed/unique_clients"), 1);
    let top = |list: &str| seen["observed"][list][0].clone();
    assert_eq!(top("top_names"), serde_json::json!({ "name": "hello.vm.test", "at_least": 7, "at_most": 7 }));
    assert_eq!(top("top_networks")["name"], "127.0.0.0/24");

    let service = place.json(&["service", "show", "hello"]);
    let expected =
        serde_json::json!({ "last_minute": 7, "by_type": { "A": 6, "AAAA": 1 }, "complete": true });
    assert_eq!(service["queries"], expected);
    let text = String::from_utf8(place.command(&["dns"]).stdout).unwrap();
    assert!(text.contains("8 (udp 6, tcp 1, tls 1)") && text.contains("\nTOP NAMES "), "{text}");

    // What a Prometheus on this host scrapes.
    let mut stream = TcpStream::connect(place.api).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", place.api);
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    for line in ["reveille_dns_queries_total{transport=\"udp\"} 6", "reveille_services{state=\"active\"} 0"] {
        assert!(page.lines().any(|found| found == line), "{line} is not in {page}");
    }
    let names =
        page.lines().filter(|line| line.contains("hello.vm.test") && !line.starts_with("reveille_instance_"));
    assert_eq!(names.count(), 0, "no names in labels but of instances that run or were lost: {page}");
}

#[test]
fn a_config_with_warnings_is_good_all_the_same() {
    let place = Place::new();
    place.config(&format!(
        "[[zone]]\nname = \"vm.test\"\ndnssec = \"on\"\nnotify = [{{ address = \"{}\" }}]\n",
        place.secondary
    ));
    let output = place.command(&["check", "--config", &place.path("reveille.toml")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("is good: 1 zones, 0 services"), "{text}");
    assert!(text.contains("warning: ") && text.contains("zone \"vm.test\".dnssec"), "{text}");
    let report = place.json(&["check", "--config", &place.path("reveille.toml")]);
    assert_eq!((report["ok"].as_bool(), report["warnings"].as_array().map(Vec::len)), (Some(true), Some(1)));
}
