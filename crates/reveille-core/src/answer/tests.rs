//! Tables of questions and whole replies: one zone with everything that RFC 1034 §4.3.2 knows, and services in it.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZero;
use std::sync::Arc;

use super::rdata::{A, AAAA, ANY, AXFR, CNAME, DS, HINFO, IXFR, MX, NS, PTR, SOA, SRV, TXT};
use super::*;
use crate::model::{AnswerPolicy, DomainName, InstanceId, Phase, Resources, Timestamp};

const NOW: Timestamp = Timestamp::from_ms(1_000_000);
const HTTPS: u16 = 65;
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// Takes `*` anywhere, which names in a configuration may not have.
fn name(text: &str) -> DomainName {
    let mut wire: Vec<u8> = Vec::new();
    for label in text.split('.') {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(label.bytes());
    }
    wire.push(0);
    DomainName::from_wire(&wire).unwrap()
}

fn wire(text: &str) -> Vec<u8> {
    name(text).as_wire().to_vec()
}

fn record(owner: &str, rtype: u16, data: &[u8]) -> Record {
    Record { owner: name(owner), rtype, ttl: 300, data: data.to_vec() }
}

fn apex(of: &str) -> Vec<Record> {
    let soa = rdata::soa(&name("ns.elsewhere.example"), &name("hostmaster.example"), [9, 1, 1, 1, 60]);
    vec![record(of, SOA, &soa), record(of, NS, &wire("ns.elsewhere.example"))]
}

fn static_records() -> Vec<Record> {
    let mut records = apex("vm.test");
    records.extend([
        record("www.vm.test", A, &[192, 0, 2, 1]),
        record("www.vm.test", A, &[192, 0, 2, 2]),
        record("mail.vm.test", MX, &[&[0, 10][..], &wire("www.vm.test")].concat()),
        record("wake.vm.test", MX, &[&[0, 10][..], &wire("hello.vm.test")].concat()),
        record("_x._tcp.vm.test", SRV, &[&[0, 0, 0, 0, 0, 80][..], &wire("www.vm.test")].concat()),
        record("deep.empty.vm.test", TXT, b"\x01x"),
        // Aliases.
        record("alias.vm.test", CNAME, &wire("www.vm.test")),
        record("alias2.vm.test", CNAME, &wire("alias.vm.test")),
        record("nowhere.vm.test", CNAME, &wire("nothing.vm.test")),
        record("outside.vm.test", CNAME, &wire("www.example")),
        record("other.vm.test", CNAME, &wire("www.sister.test")),
        record("loop1.vm.test", CNAME, &wire("loop2.vm.test")),
        record("loop2.vm.test", CNAME, &wire("loop1.vm.test")),
        record("app.vm.test", CNAME, &wire("hello.vm.test")),
        record("gone.vm.test", CNAME, &wire("broken.vm.test")),
        record("cut.vm.test", CNAME, &wire("host.sub.vm.test")),
        // Wildcards.
        record("*.wild.vm.test", TXT, b"\x04star"),
        record("exact.wild.vm.test", A, &[192, 0, 2, 9]),
        record("*.walias.vm.test", CNAME, &wire("hello.vm.test")),
        record("below.*.went.vm.test", TXT, b"\x01x"),
        // Delegations.
        record("sub.vm.test", NS, &wire("ns.sub.vm.test")),
        record("sub.vm.test", NS, &wire("ns.elsewhere.example")),
        record("sub.vm.test", DS, &[0, 1, 13, 2, 0xab]),
        record("ns.sub.vm.test", A, &[192, 0, 2, 53]),
        record("plain.vm.test", NS, &wire("ns.elsewhere.example")),
        // Beside services.
        record("hello.vm.test", TXT, b"\x05hello"),
        record("hello.vm.test", A, &[192, 0, 2, 66]),
    ]);
    records
}

fn service(text: &str) -> ServiceView {
    ServiceView {
        hold_ms_max: 800,
        version: NonZero::new(3),
        hibernated_at: Some(Timestamp::from_ms(0)),
        wake: Some(WakeTime { ms_p50: 186, ms_p95: 240 }),
        resources: Resources { cpus: 2, memory_mib: 128, bandwidth_mbit: Some(10) },
        instance: InstanceId(17),
        ..ServiceView::asleep(name(text), Ipv4Addr::new(127, 64, 0, 1))
    }
}

fn view() -> View {
    let mut awake = service("awake.vm.test");
    awake.phase = Phase::Active;
    awake.answer = AnswerPolicy::Hold;
    let mut six = service("six.vm.test");
    six.address6 = Some(Ipv6Addr::LOCALHOST);
    let mut held = service("held.vm.test");
    held.answer = AnswerPolicy::Hold;
    let refused = |until| Some(Box::new(Refused { until: Some(until), text: "no".to_owned() }));
    let mut broken = service("broken.vm.test");
    broken.phase = Phase::Failed;
    broken.refused = refused(NOW.plus_ms(1));
    let mut healed = service("healed.vm.test");
    healed.phase = Phase::Failed;
    healed.refused = refused(NOW);
    let services = [
        service("hello.vm.test"),
        awake,
        six,
        held,
        broken,
        healed,
        service("deep.under.vm.test"),
        service("sister.test"),
        service("lost.sub.vm.test"),
    ];
    let zones = [
        Zone::new(name("vm.test"), &static_records()).unwrap(),
        Zone::new(name("sister.test"), &apex("sister.test")).unwrap(),
        Zone::new(name("child.vm.test"), &apex("child.vm.test")).unwrap(),
    ];
    View::new(1, Zones::new(zones.map(Arc::new)), services.map(Arc::new), View::default_monitors())
}

fn strings(mut data: &[u8]) -> Vec<String> {
    let mut strings = Vec::new();
    while let Some((&length, rest)) = data.split_first() {
        let (string, after) = rest.split_at(usize::from(length));
        strings.push(String::from_utf8(string.to_vec()).unwrap());
        data = after;
    }
    strings
}

/// A reply in one line: code, flags, sections, extended error, wake, hold.
fn shown(reply: &Reply<'_>) -> String {
    let mut text = reply.rcode.word().to_owned();
    if reply.authoritative {
        text += " aa";
    }
    for (sign, section) in [("", &reply.answer), ("auth ", &reply.authority), ("add ", &reply.additional)] {
        for records in section.iter() {
            let owner = match records.owner {
                Owner::Question => "@".to_owned(),
                Owner::Name(wire) => DomainName::from_wire(wire).unwrap().to_string(),
            };
            for data in records.iter() {
                let rtype = rdata::type_word(records.rtype);
                let data = match records.rtype {
                    A => Ipv4Addr::from(<[u8; 4]>::try_from(data).unwrap()).to_string(),
                    AAAA => Ipv6Addr::from(<[u8; 16]>::try_from(data).unwrap()).to_string(),
                    NS | CNAME => DomainName::from_wire(data).unwrap().to_string(),
                    SOA => String::new(),
                    TXT => strings(data).join("|"),
                    _ => "..".to_owned(),
                };
                write!(text, "; {sign}{owner} {} {rtype} {data}", records.ttl).unwrap();
            }
        }
    }
    if let Some(ede) = &reply.ede {
        write!(text, "; ede {}", ede.code).unwrap();
    }
    if let Some(service) = reply.wake {
        write!(text, "; wake {}", service.name).unwrap();
    }
    if let Some(ms) = reply.hold_ms_max {
        write!(text, "; hold {ms}").unwrap();
    }
    text
}

fn ask_from(asker: IpAddr, view: &View, qname: &str, qtype: u16) -> String {
    let question = Question { name: QuestionName::from(&name(qname)), qtype, qclass: rdata::CLASS_IN };
    shown(&answer(view, &question, Asker { address: asker, key: None }, NOW))
}

fn check(table: &[(&str, u16, &str)]) {
    let view = view();
    for &(qname, qtype, expected) in table {
        assert_eq!(ask_from(STRANGER, &view, qname, qtype), expected, "{qname} {}", rdata::type_word(qtype));
    }
}

const NODATA: &str = "NOERROR aa; auth vm.test 60 SOA ";
const NXDOMAIN: &str = "NXDOMAIN aa; auth vm.test 60 SOA ";

#[test]
fn static_names_are_answered() {
    check(&[
        ("vm.test", SOA, "NOERROR aa; @ 300 SOA "),
        ("vm.test", NS, "NOERROR aa; @ 300 NS ns.elsewhere.example"),
        ("vm.test", A, NODATA),
        ("www.vm.test", A, "NOERROR aa; @ 300 A 192.0.2.1; @ 300 A 192.0.2.2"),
        ("www.vm.test", AAAA, NODATA),
        ("www.vm.test", ANY, "NOERROR aa; @ 60 HINFO .."),
        (
            "mail.vm.test",
            MX,
            "NOERROR aa; @ 300 MX ..; add www.vm.test 300 A 192.0.2.1; add www.vm.test 300 A 192.0.2.2",
        ),
        (
            "_x._tcp.vm.test",
            SRV,
            "NOERROR aa; @ 300 SRV ..; add www.vm.test 300 A 192.0.2.1; add www.vm.test 300 A 192.0.2.2",
        ),
        ("none.vm.test", A, NXDOMAIN),
        ("none.www.vm.test", A, NXDOMAIN),
        // Empty non-terminals exist (RFC 8020), below static names and below services.
        ("empty.vm.test", TXT, NODATA),
        ("_tcp.vm.test", SRV, NODATA),
        ("under.vm.test", A, NODATA),
        ("under.vm.test", ANY, NODATA),
    ]);
}

#[test]
fn aliases_are_followed_inside_the_zone() {
    check(&[
        (
            "alias.vm.test",
            A,
            "NOERROR aa; @ 300 CNAME www.vm.test; www.vm.test 300 A 192.0.2.1; www.vm.test 300 A 192.0.2.2",
        ),
        (
            "alias2.vm.test",
            AAAA,
            "NOERROR aa; @ 300 CNAME alias.vm.test; alias.vm.test 300 CNAME www.vm.test; auth vm.test 60 SOA ",
        ),
        ("alias.vm.test", CNAME, "NOERROR aa; @ 300 CNAME www.vm.test"),
        ("alias.vm.test", ANY, "NOERROR aa; @ 300 CNAME www.vm.test"),
        ("nowhere.vm.test", A, "NXDOMAIN aa; @ 300 CNAME nothing.vm.test; auth vm.test 60 SOA "),
        ("outside.vm.test", A, "NOERROR aa; @ 300 CNAME www.example"),
        ("other.vm.test", A, "NOERROR aa; @ 300 CNAME www.sister.test"),
        // RFC 1034 §4.3.2 step 3a meets a cut: the answer so far, and where to go on.
        (
            "cut.vm.test",
            A,
            "NOERROR aa; @ 300 CNAME host.sub.vm.test; auth sub.vm.test 300 NS ns.sub.vm.test; auth sub.vm.test 300 NS ns.elsewhere.example; add ns.sub.vm.test 300 A 192.0.2.53",
        ),
    ]);
    let looped = ask_from(STRANGER, &view(), "loop1.vm.test", A);
    assert_eq!(looped, "NOERROR aa; @ 300 CNAME loop2.vm.test; loop2.vm.test 300 CNAME loop1.vm.test");
}

#[test]
fn wildcards_stand_for_what_does_not_exist() {
    check(&[
        ("a.wild.vm.test", TXT, "NOERROR aa; @ 300 TXT star"),
        ("a.b.wild.vm.test", TXT, "NOERROR aa; @ 300 TXT star"),
        ("a.wild.vm.test", A, NODATA),
        ("a.wild.vm.test", ANY, "NOERROR aa; @ 60 HINFO .."),
        ("*.wild.vm.test", TXT, "NOERROR aa; @ 300 TXT star"),
        // A name that exists, and what is below it, is not covered (RFC 4592 §2.2.1).
        ("exact.wild.vm.test", TXT, NODATA),
        ("x.exact.wild.vm.test", TXT, NXDOMAIN),
        ("wild.vm.test", TXT, NODATA),
        // A wildcard that is itself empty (RFC 4592 §2.2.2).
        ("a.went.vm.test", TXT, NODATA),
        (
            "x.walias.vm.test",
            A,
            "NOERROR aa; @ 300 CNAME hello.vm.test; hello.vm.test 5 A 127.64.0.1; wake hello.vm.test",
        ),
    ]);
}

#[test]
fn what_is_delegated_is_referred() {
    let referral = "NOERROR; auth sub.vm.test 300 NS ns.sub.vm.test; auth sub.vm.test 300 NS ns.elsewhere.example; \
                    add ns.sub.vm.test 300 A 192.0.2.53";
    check(&[
        ("sub.vm.test", A, referral),
        ("sub.vm.test", NS, referral),
        ("a.b.sub.vm.test", A, referral),
        ("ns.sub.vm.test", A, referral),
        ("x.sub.vm.test", DS, referral),
        // The parent's side answers for DS.
        ("sub.vm.test", DS, "NOERROR aa; @ 300 DS .."),
        ("plain.vm.test", DS, NODATA),
        ("vm.test", DS, NODATA),
        // Not delegated by the zone above, but served: it is not denied.
        ("child.vm.test", DS, NODATA),
        // A service below a cut is not ours to answer; `clashes` reports it.
        ("lost.sub.vm.test", A, referral),
        ("_vmstate.lost.sub.vm.test", TXT, referral),
        // The longest apex wins.
        ("child.vm.test", SOA, "NOERROR aa; @ 300 SOA "),
        ("x.child.vm.test", A, "NXDOMAIN aa; auth child.vm.test 60 SOA "),
    ]);
}

#[test]
fn services_are_answered_and_woken_by_the_questions_that_need_them() {
    check(&[
        // The static A of the same name is never answered.
        ("hello.vm.test", A, "NOERROR aa; @ 5 A 127.64.0.1; wake hello.vm.test"),
        (
            "app.vm.test",
            A,
            "NOERROR aa; @ 300 CNAME hello.vm.test; hello.vm.test 5 A 127.64.0.1; wake hello.vm.test",
        ),
        ("six.vm.test", A, "NOERROR aa; @ 5 A 127.64.0.1; wake six.vm.test"),
        ("six.vm.test", AAAA, "NOERROR aa; @ 5 AAAA ::1; wake six.vm.test"),
        ("awake.vm.test", A, "NOERROR aa; @ 5 A 127.64.0.1"),
        ("held.vm.test", A, "NOERROR aa; @ 5 A 127.64.0.1; wake held.vm.test; hold 800"),
        ("deep.under.vm.test", A, "NOERROR aa; @ 5 A 127.64.0.1; wake deep.under.vm.test"),
        // A service at the apex answers beside SOA and NS.
        ("sister.test", A, "NOERROR aa; @ 5 A 127.64.0.1; wake sister.test"),
        ("sister.test", NS, "NOERROR aa; @ 300 NS ns.elsewhere.example"),
        // None of these wakes.
        ("hello.vm.test", AAAA, NODATA),
        ("hello.vm.test", HTTPS, NODATA),
        ("held.vm.test", HTTPS, NODATA),
        ("hello.vm.test", TXT, "NOERROR aa; @ 300 TXT hello"),
        ("hello.vm.test", ANY, "NOERROR aa; @ 60 HINFO .."),
        ("hello.vm.test", CNAME, NODATA),
        ("hello.vm.test", PTR, NODATA),
        ("hello.vm.test", HINFO, NODATA),
        ("app.vm.test", AAAA, "NOERROR aa; @ 300 CNAME hello.vm.test; auth vm.test 60 SOA "),
        // The address of a service as a target is left for a question of its own.
        ("wake.vm.test", MX, "NOERROR aa; @ 300 MX .."),
        ("x.hello.vm.test", A, NXDOMAIN),
    ]);
}

#[test]
fn a_service_that_cannot_be_woken_is_never_denied() {
    check(&[
        ("broken.vm.test", A, "SERVFAIL; ede 14"),
        ("gone.vm.test", A, "SERVFAIL; ede 14"),
        // What does not depend on it is still true.
        ("broken.vm.test", AAAA, NODATA),
        ("broken.vm.test", TXT, NODATA),
        // At the moment when the refusal is over the question wakes again.
        ("healed.vm.test", A, "NOERROR aa; @ 5 A 127.64.0.1; wake healed.vm.test"),
    ]);
}

#[test]
fn the_state_is_told_to_monitors_alone_and_never_wakes() {
    let view = view();
    let state = ask_from(LOCAL, &view, "_vmstate.hello.vm.test", TXT);
    let strings = "state=inactive|phase=hibernated|rung=local|version=3|hibernated-at=1970-01-01T00:00:00Z|\
                   wake-ms-p50=186|wake-ms-p95=240|cpus=2|memory-mib=128|bandwidth-mbit=10|storage=local:i17.3";
    assert_eq!(state, format!("NOERROR aa; @ 0 TXT {strings}"));
    let at_name = answer(
        &view,
        &Question { name: QuestionName::from(&name("hello.vm.test")), qtype: rdata::VMSTATE, qclass: 1 },
        Asker { address: LOCAL, key: None },
        NOW,
    );
    let told = at_name.answer.iter().next().unwrap();
    assert_eq!((told.rtype, at_name.wake), (rdata::VMSTATE, None));
    assert!(told.iter().next().unwrap().starts_with(b"\x0estate=inactive\x10phase=hibernated"));
    let broken = ask_from(LOCAL, &view, "_vmstate.broken.vm.test", TXT);
    assert!(broken.contains("refused=no") && broken.starts_with("NOERROR aa; @ 0 TXT"), "{broken}");
    for (asker, qname, qtype, expected) in [
        (LOCAL, "_vmstate.hello.vm.test", A, NODATA),
        (LOCAL, "_vmstate.hello.vm.test", ANY, "NOERROR aa; @ 60 HINFO .."),
        (LOCAL, "x._vmstate.hello.vm.test", TXT, NXDOMAIN),
        (LOCAL, "_vmstate.www.vm.test", TXT, NXDOMAIN),
        (LOCAL, "_vmstate.under.vm.test", TXT, NXDOMAIN),
        (STRANGER, "hello.vm.test", rdata::VMSTATE, "REFUSED; ede 18"),
        (LOCAL, "www.vm.test", rdata::VMSTATE, NODATA),
        (STRANGER, "_vmstate.hello.vm.test", TXT, "REFUSED; ede 18"),
        (STRANGER, "_vmstate.hello.vm.test", A, "REFUSED; ede 18"),
        (STRANGER, "_vmstate.www.vm.test", TXT, NXDOMAIN),
        (STRANGER, "x._vmstate.hello.vm.test", TXT, NXDOMAIN),
    ] {
        assert_eq!(ask_from(asker, &view, qname, qtype), expected, "{asker} {qname} {qtype}");
    }
}

#[test]
fn what_is_not_served_is_refused() {
    check(&[
        ("www.example", A, "REFUSED; ede 20"),
        ("test", SOA, "REFUSED; ede 20"),
        ("vm.test", AXFR, "REFUSED; ede 18"),
        ("vm.test", IXFR, "REFUSED; ede 18"),
    ]);
    let view = view();
    let question = Question { name: QuestionName::from(&name("version.bind")), qtype: TXT, qclass: 3 };
    assert_eq!(shown(&answer(&view, &question, Asker { address: LOCAL, key: None }, NOW)), "REFUSED; ede 21");
}

/// RFC 8020: below a name that does not exist nothing exists; and what exists never gets NXDOMAIN for any type.
#[test]
fn no_type_contradicts_another_about_what_exists() {
    let view = view();
    let zone_names = static_records().into_iter().map(|record| record.owner);
    let names = zone_names.chain(view.services().map(|service| service.name.clone()));
    let prefixes = ["", "x.", "_vmstate.", "x._vmstate.", "*."];
    for qname in names.flat_map(|name| prefixes.map(|prefix| format!("{prefix}{name}"))) {
        for asker in [LOCAL, STRANGER] {
            let denied: Vec<bool> = [A, AAAA, TXT, MX, ANY, HTTPS]
                .map(|qtype| ask_from(asker, &view, &qname, qtype).starts_with("NXDOMAIN"))
                .to_vec();
            let alias = ask_from(asker, &view, &qname, CNAME).contains("CNAME");
            assert!(alias || denied.iter().all(|&one| one == denied[0]), "{qname} {denied:?}");
            if denied[0] && !alias {
                let below = ask_from(asker, &view, &format!("y.{qname}"), A);
                assert!(below.starts_with("NXDOMAIN"), "{qname} does not exist, but y.{qname}: {below}");
            }
        }
    }
}

#[test]
fn a_changed_view_shares_what_did_not_change() {
    let old = view();
    let mut hello = service("hello.vm.test");
    hello.phase = Phase::Active;
    let next = old.with(2, [(name("hello.vm.test"), Some(Arc::new(hello))), (name("six.vm.test"), None)]);
    assert_eq!(next.generation, 2);
    assert_eq!(ask_from(STRANGER, &next, "hello.vm.test", A), "NOERROR aa; @ 5 A 127.64.0.1");
    assert_eq!(ask_from(STRANGER, &next, "six.vm.test", A), NXDOMAIN);
    assert_eq!(ask_from(STRANGER, &old, "six.vm.test", A), "NOERROR aa; @ 5 A 127.64.0.1; wake six.vm.test");
    let held = name("held.vm.test");
    assert!(Arc::ptr_eq(old.service(&held).unwrap(), next.service(&held).unwrap()));
}

#[test]
fn a_faulty_zone_is_refused_with_every_fault() {
    let mut records = vec![
        record("vm.test", A, &[1, 2, 3]),
        record("www.example", A, &[192, 0, 2, 1]),
        record("both.vm.test", A, &[192, 0, 2, 1]),
        record("both.vm.test", CNAME, &wire("x.vm.test")),
        record("two.vm.test", CNAME, &wire("x.vm.test")),
        record("two.vm.test", CNAME, &wire("y.vm.test")),
        record("*.vm.test", NS, &wire("ns.example")),
        record("cut.vm.test", NS, &wire("ns.cut.vm.test")),
        record("d.vm.test", rdata::DNAME, &wire("ns.example")),
        record("s.vm.test", 46, &[]),
        record("low.vm.test", SOA, &apex("vm.test")[0].data),
    ];
    records.extend(
        (0..5_000u16).map(|n| record("large.vm.test", A, &[10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]])),
    );
    let faults = Zone::new(name("vm.test"), &records).unwrap_err();
    let expected = [
        (Some(0), "malformed"),
        (Some(1), "not in the zone"),
        (Some(3), "must stand alone"),
        (Some(5), "more than one CNAME"),
        (Some(6), "wildcard"),
        (Some(8), "DNAME"),
        (Some(9), "unsigned"),
        (Some(10), "not the apex"),
        (Some(11 + 3_072), "no message can carry them"),
        (None, "no SOA"),
        (None, "no NS"),
        (None, "ns.cut.vm.test"),
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:?}");
    for (fault, (record, part)) in faults.iter().zip(expected) {
        assert_eq!(fault.record, record, "{fault}");
        assert!(fault.to_string().contains(part), "{fault}");
    }
}

#[test]
fn a_wildcard_service_stands_for_every_name_that_does_not_exist() {
    let old = view();
    let wild = service("*.apps.vm.test");
    let view = old.with(2, [(wild.name.clone(), Some(Arc::new(wild)))]);
    let wakes = "NOERROR aa; @ 5 A 127.64.0.1; wake *.apps.vm.test";
    assert_eq!(ask_from(STRANGER, &view, "pr-7.apps.vm.test", A), wakes);
    assert_eq!(ask_from(STRANGER, &view, "a.b.apps.vm.test", A), wakes);
    assert!(ask_from(STRANGER, &view, "pr-7.apps.vm.test", TXT).starts_with("NOERROR aa; auth vm.test"));
    assert!(ask_from(STRANGER, &view, "apps.vm.test", A).starts_with("NOERROR aa; auth vm.test"));
    assert_eq!(ask_from(STRANGER, &old, "pr-7.apps.vm.test", A), NXDOMAIN);
}

#[test]
fn clashes_are_found() {
    let view = view();
    let mut services: Vec<DomainName> = view.services().map(|service| service.name.clone()).collect();
    services.extend([name("far.example"), name("*.vm.test"), name("_vmstate.six.vm.test")]);
    let found = clashes(view.zones(), &services);
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(found.contains(&Clash::OutsideZones(name("far.example"))));
    assert!(
        found.contains(&Clash::Delegated { service: name("lost.sub.vm.test"), cut: name("sub.vm.test") })
    );
    assert!(found.contains(&Clash::StaticRecord {
        service: name("hello.vm.test"),
        rtype: "A".to_owned(),
        zone: name("vm.test"),
    }));
    assert!(
        found.contains(&Clash::Vmstate { name: name("_vmstate.six.vm.test"), service: name("six.vm.test") })
    );
}

#[test]
fn a_zone_without_a_file_has_what_delegation_needs() {
    let defaults = ZoneDefaults {
        apex: name("vm.test"),
        name_servers: vec![
            (name("ns1.vm.test"), vec![LOCAL, Ipv6Addr::LOCALHOST.into()]),
            (name("ns.example"), vec![STRANGER]),
        ],
        hostmaster: name("hostmaster.vm.test"),
        serial: 42,
        ttl: 3_600,
        negative_ttl: 30,
    };
    let zone = defaults.zone().unwrap();
    assert_eq!((zone.serial(), zone.negative_ttl()), (42, 30));
    let view = View::new(1, Zones::new([Arc::new(zone)]), [], View::default_monitors());
    assert_eq!(
        ask_from(STRANGER, &view, "vm.test", NS),
        "NOERROR aa; @ 3600 NS ns1.vm.test; @ 3600 NS ns.example; \
         add ns1.vm.test 3600 A 127.0.0.1; add ns1.vm.test 3600 AAAA ::1"
    );
    assert_eq!(ask_from(STRANGER, &view, "x.vm.test", A), "NXDOMAIN aa; auth vm.test 30 SOA ");
}
