//! Zone files: what is read, and what each fault says.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;

use proptest::prelude::*;
use reveille_core::answer::{Zone, rdata};
use reveille_core::model::DomainName;
use reveille_dns::zonefile::{self, ZONE_FAULTS_MAX, ZoneFileFault};

const GOOD: &str = r#"; A zone as people write them.
$ORIGIN vm.test.
$TTL 1h
@       IN SOA ns1 hostmaster (
                7       ; serial
                1h 10m 1w
                5m )    ; negative answers
        IN NS  ns1
        NS     ns.example.
ns1     300 A  192.0.2.53
        AAAA   2001:db8::53
www     IN 2m CNAME ns1
*.any   TXT    "with space" plain \"quoted\" "semi;colon"
_sip._udp SRV  0 5 5060 ns1
@       CAA    0 issue "ca.example"
@       MX     10 ns1
svc     HTTPS  1 . alpn=h2,h3
odd     TYPE65280 \# 3 abcdef
sub     NS     ns.sub
ns.sub  A      192.0.2.54
sub     DS     1 13 2 3490A6806D47F17A34C29E2CE80E8A999FFBE4BE
$ORIGIN low.vm.test.
host    A      192.0.2.55
@       TXT    "low"
"#;

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn read(text: &str) -> Result<Zone, Vec<ZoneFileFault>> {
    zonefile::parse("vm.zone", text, &name("vm.test"))
}

fn data(zone: &Zone, owner: &str, rtype: u16) -> (u32, Vec<Vec<u8>>) {
    let owner = owner.parse().unwrap_or_else(|_| panic!("{owner}"));
    let set = zone.node(&owner).and_then(|node| node.set(rtype)).unwrap_or_else(|| panic!("{owner} {rtype}"));
    (set.ttl, set.data.iter().map(|data| data.to_vec()).collect())
}

#[test]
fn a_zone_as_people_write_them_is_read() {
    let zone = read(GOOD).unwrap();
    assert_eq!((zone.serial(), zone.negative_ttl()), (7, 300));
    assert_eq!(data(&zone, "vm.test", rdata::NS).1.len(), 2);
    assert_eq!(data(&zone, "ns1.vm.test", rdata::A), (300, vec![vec![192, 0, 2, 53]]));
    // An omitted TTL is that of $TTL, not that of the record before.
    assert_eq!(data(&zone, "ns1.vm.test", rdata::AAAA).0, 3_600);
    assert_eq!(data(&zone, "www.vm.test", rdata::CNAME), (120, vec![name("ns1.vm.test").as_wire().to_vec()]));
    assert_eq!(
        data(&zone, "*.any.vm.test", rdata::TXT).1,
        [b"\x0awith space\x05plain\x08\"quoted\"\x0asemi;colon"]
    );
    assert_eq!(data(&zone, "odd.vm.test", 65_280).1, [[0xab, 0xcd, 0xef]]);
    assert_eq!(data(&zone, "svc.vm.test", 65).1, [b"\x00\x01\x00\x00\x01\x00\x06\x02h2\x02h3"]);
    assert_eq!(data(&zone, "vm.test", 257).1, [b"\x00\x05issueca.example"]);
    assert_eq!(data(&zone, "host.low.vm.test", rdata::A).1, [[192, 0, 2, 55]]);
    assert_eq!(data(&zone, "low.vm.test", rdata::TXT).1, [b"\x03low"]);
}

/// Each faulty file: what is put behind the good start, and what must be said, with the line.
#[test]
fn each_fault_is_said_with_its_line() {
    let start = "@ 60 SOA ns1 host 1 2 3 4 5\n@ NS ns1\nns1 A 192.0.2.53\n";
    type Said = (Option<usize>, &'static str);
    let table: &[(&str, &[Said])] = &[
        ("a A 1.2.3\n", &[(Some(4), "IPv4")]),
        ("a A 1.2.3.4 5\n", &[(Some(4), "")]),
        ("\n\n; x\na NOTYPE x\nb A 300.0.0.1\n", &[(Some(7), "type"), (Some(8), "IPv4")]),
        ("a.example. A 192.0.2.1\n", &[(Some(4), "a.example is not in the zone vm.test")]),
        ("a CNAME ns1\n  A 192.0.2.1\n", &[(Some(5), "must stand alone")]),
        ("a A 192.0.2.1\na CNAME ns1\n", &[(Some(5), "must stand alone")]),
        ("@ SOA ns1 host 2 2 3 4 5\n", &[(Some(4), "more than one SOA")]),
        ("$INCLUDE more.zone\n", &[(Some(4), "$INCLUDE")]),
        ("$TTL soon\n", &[(Some(4), "`soon` is no TTL")]),
        ("$NOTHING\n", &[(Some(4), "")]),
        ("a CH A 192.0.2.1\n", &[(Some(4), "class")]),
        ("a 2147483648 A 192.0.2.1\n", &[(Some(4), "larger than 2147483647")]),
        ("a TXT \"open\nb A x\n", &[(Some(4), ""), (Some(5), "IPv4")]),
        ("a TXT (\nb A 192.0.2.1\n", &[(Some(4), "")]),
        ("a LOC 52 22 23 N 4 53 32 E -2m\n", &[(Some(4), "RFC 3597")]),
        ("d DNAME example.\n", &[(Some(4), "not served")]),
        ("d DNSKEY 256 3 13 AAAA\n", &[(Some(4), "unsigned")]),
        ("sub NS ns.sub\n", &[(None, "no A or AAAA")]),
    ];
    for (text, expected) in table {
        let faults = read(&format!("{start}{text}")).unwrap_err();
        assert_eq!(faults.len(), expected.len(), "{text}: {faults:?}");
        for (fault, (line, part)) in faults.iter().zip(*expected) {
            assert_eq!(fault.line, *line, "{text}: {fault}");
            assert!(fault.what.contains(part), "{text}: {fault}");
        }
    }
}

#[test]
fn what_is_missing_is_said_once_the_rest_is_right() {
    let texts = |text| read(text).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>();
    let faults = texts("");
    assert_eq!(faults.len(), 2);
    assert!(faults[0].starts_with("vm.zone: the zone vm.test has no SOA"), "{faults:?}");
    assert!(faults[1].contains("no NS"), "{faults:?}");
    // The SOA is there, only unreadable; to say that it is missing too would mislead.
    let faults = texts("@ 60 SOA ns1 host 1 2 3 4\n@ NS ns.example.\n");
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("vm.zone:1: "), "{faults:?}");
    assert!(texts("  A 192.0.2.1\n")[0].contains("no owner"));
}

#[test]
fn faults_are_bounded_and_files_are_named() {
    let many = "a A x\n".repeat(ZONE_FAULTS_MAX * 3);
    assert_eq!(read(&many).unwrap_err().len(), ZONE_FAULTS_MAX);
    let missing = zonefile::load(std::path::Path::new("/nonexistent/vm.zone"), &name("vm.test")).unwrap_err();
    assert!(missing[0].to_string().starts_with("/nonexistent/vm.zone: cannot be read: "), "{missing:?}");

    let path = std::env::temp_dir().join(format!("reveille-zone-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().write_all(GOOD.as_bytes()).unwrap();
    let loaded = zonefile::load(&path, &name("vm.test"));
    assert_eq!(loaded.unwrap(), read(GOOD).unwrap());
    let told = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let faults = zonefile::load(&path, &name("vm.test")).unwrap_err();
        assert_eq!(faults.len(), 1, "{faults:?}");
        (faults[0].line, faults[0].what.clone())
    };
    let with_mark = told(&[b"\xef\xbb\xbf", GOOD.as_bytes()].concat());
    assert!(with_mark.0 == Some(1) && with_mark.1.contains("byte order mark"), "{with_mark:?}");
    let latin = told(&[GOOD.as_bytes(), b"; caf\xe9\n"].concat());
    assert!(latin.0 == Some(GOOD.lines().count() + 1) && latin.1.contains("UTF-8"), "{latin:?}");
    std::fs::remove_file(&path).unwrap();
    let directory = zonefile::load(&std::env::temp_dir(), &name("vm.test")).unwrap_err();
    assert!(directory[0].what.starts_with("is a directory"), "{directory:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the file: an answer, and lines that are in it.
    #[test]
    fn no_text_is_too_odd(text in "([a-z@$*().;\"\\\\ \t\n0-9#]|SOA|TXT|\\$TTL |\\$ORIGIN | A | NS | CNAME | MX |HTTPS|\\\\# ){0,60}") {
        if let Err(faults) = read(&text) {
            let lines = text.lines().count();
            prop_assert!(!faults.is_empty());
            prop_assert!(faults.iter().all(|fault| fault.line.is_none_or(|line| (1..=lines).contains(&line))));
        }
    }

    /// A good file with some bytes changed.
    #[test]
    fn no_damage_is_too_odd(changes in prop::collection::vec((0..GOOD.len(), any::<char>()), 1..6)) {
        let mut text: Vec<char> = GOOD.chars().collect();
        for (at, new) in changes {
            text[at] = new;
        }
        let _ = read(&text.into_iter().collect::<String>());
    }
}
