//! What dig and kdig see.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{NOW, World, name};
use reveille_core::answer::Rcode;

fn status(text: &str) -> &str {
    let rest = text.split("status: ").nth(1).unwrap_or_else(|| panic!("no status in {text}"));
    rest.split([',', ';']).next().unwrap()
}

/// The lines that are records, with white space made single.
fn records(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with(';'));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn a_question_for_a_sleeping_service_is_answered_and_wakes_it() {
    let mut world = World::new();
    let text = world.dig(&["hello.vm.test", "A"]);
    assert_eq!(status(&text), "NOERROR");
    assert_eq!(records(&text), ["hello.vm.test. 5 IN A 127.64.0.1"]);
    assert!(text.contains("flags: qr aa rd;"), "{text}");
    let ask = world.wakes.try_recv().unwrap();
    assert_eq!((&ask.service, ask.qtype, ask.subnet), (&name("hello.vm.test"), 1, None));
    assert!(ask.client.is_loopback());

    world.dig(&["hello.vm.test", "A", "+subnet=192.0.2.0/24"]);
    assert_eq!(world.wakes.try_recv().unwrap().subnet.as_deref(), Some("192.0.2.0/24"));
    assert_eq!(records(&world.kdig(&["+tcp", "hello.vm.test", "A"])), ["hello.vm.test. 5 IN A 127.64.0.1"]);
    assert_eq!(world.wakes.try_recv().unwrap().service, name("hello.vm.test"));
    // An alias in the zone.
    let text = world.dig(&["www.vm.test", "A"]);
    assert_eq!(
        records(&text),
        ["www.vm.test. 300 IN CNAME hello.vm.test.", "hello.vm.test. 5 IN A 127.64.0.1"]
    );
    assert_eq!(world.wakes.try_recv().unwrap().service, name("hello.vm.test"));
    assert_eq!(world.server.counts().wakes_asked, 4);
}

#[test]
fn what_is_not_there_is_said_as_it_should_and_wakes_nobody() {
    let mut world = World::new();
    let soa = "vm.test. 30 IN SOA ns1.vm.test. hostmaster.vm.test. 1 3600 600 604800 30";
    for (qname, qtype, code, expected) in [
        ("hello.vm.test", "AAAA", "NOERROR", vec![soa]),
        ("hello.vm.test", "HTTPS", "NOERROR", vec![soa]),
        ("hello.vm.test", "ANY", "NOERROR", vec!["hello.vm.test. 60 IN HINFO \"RFC8482\" \"\""]),
        ("x.hello.vm.test", "A", "NXDOMAIN", vec![soa]),
        ("none.vm.test", "A", "NXDOMAIN", vec![soa]),
        ("www.example", "A", "REFUSED", vec![]),
        (
            "vm.test",
            "NS",
            "NOERROR",
            vec!["vm.test. 3600 IN NS ns1.vm.test.", "ns1.vm.test. 3600 IN A 127.0.0.1"],
        ),
        ("awake.vm.test", "A", "NOERROR", vec!["awake.vm.test. 60 IN A 127.64.0.2"]),
    ] {
        let text = world.dig(&[qname, qtype]);
        assert_eq!(status(&text), code, "{qname} {qtype}: {text}");
        assert_eq!(records(&text), expected, "{qname} {qtype}");
    }
    assert!(world.wakes.try_recv().is_err());
    assert!(world.dig(&["vm.test", "AXFR"]).contains("Transfer failed"));
    let version = world.dig(&["version.bind", "CH", "TXT"]);
    assert_eq!(status(&version), "REFUSED");
}

#[test]
fn a_service_that_cannot_be_woken_is_a_servfail_with_the_reason() {
    let mut world = World::new();
    let text = world.dig(&["broken.vm.test", "A"]);
    assert_eq!(status(&text), "SERVFAIL");
    assert!(
        text.contains("EDE: 14 (Not Ready): (broken.vm.test cannot be woken for another 60 s)"),
        "{text}"
    );
    let text = world.dig(&["www.example", "A"]);
    assert!(text.contains("EDE: 20 (Not Authoritative)"), "{text}");
    assert!(world.wakes.try_recv().is_err());
    assert_eq!(world.server.counts().of(Rcode::ServFail), 1);
}

#[test]
fn the_state_is_told_to_this_host_only_by_default() {
    let mut world = World::new();
    let text = world.dig(&["+short", "_vmstate.hello.vm.test", "TXT"]);
    assert_eq!(
        text.trim(),
        r#""state=inactive" "phase=hibernated" "rung=local" "version=7" "hibernated-at=2027-01-15T07:43:20Z" "wake-ms-p50=186" "wake-ms-p95=240" "cpus=1" "memory-mib=128" "storage=local:i0.7""#
    );
    assert!(world.wakes.try_recv().is_err());

    let closed = World::with_monitors(vec!["192.0.2.0/24".parse().unwrap()]);
    let text = closed.dig(&["_vmstate.hello.vm.test", "TXT"]);
    assert_eq!(status(&text), "REFUSED");
    assert!(text.contains("EDE: 18 (Prohibited)"), "{text}");
}

#[test]
fn the_wire_is_kept_to() {
    let world = World::new();
    let text = world.dig(&["+edns=1", "+noednsnegotiation", "hello.vm.test", "A"]);
    assert_eq!(status(&text), "BADVERS");
    let text = world.dig(&["HeLLo.vM.TEST", "A"]);
    assert!(text.contains(";HeLLo.vM.TEST."), "{text}");
    assert_eq!(records(&text), ["HeLLo.vM.TEST. 5 IN A 127.64.0.1"]);
    let text = world.dig(&["+dnssec", "hello.vm.test", "A"]);
    assert!(text.contains("EDNS: version: 0, flags: do; udp: 1232"), "{text}");
    let text = world.dig(&["+noedns", "hello.vm.test", "A"]);
    assert!(!text.contains("EDNS"), "{text}");
    assert_eq!(status(&world.dig(&["+opcode=STATUS", "hello.vm.test"])), "NOTIMP");
    // Too large for UDP: dig is told so, and comes back over TCP.
    let text = world.dig(&["+ignore", "big.vm.test", "TXT"]);
    assert!(text.contains("flags: qr aa tc rd;") && records(&text).is_empty(), "{text}");
    let text = world.dig(&["big.vm.test", "TXT"]);
    assert_eq!(records(&text).len(), 60, "{text}");
    assert!(text.contains("(TCP)"), "{text}");
    assert_eq!(world.server.counts().truncated, 2);
}

#[test]
fn questions_in_one_connection_are_all_answered() {
    let world = World::new();
    let asked: Vec<String> = (0..50).map(|n| format!("n{n}.vm.test")).collect();
    let mut arguments = vec!["+tcp", "+keepopen"];
    for qname in &asked {
        arguments.extend([qname.as_str(), "A"]);
    }
    let text = world.kdig(&arguments);
    assert_eq!(text.matches("status: NXDOMAIN").count(), asked.len(), "{text}");
    let counts = world.server.counts();
    assert_eq!((counts.connections, counts.of(Rcode::NxDomain)), (1, 50));
}

#[test]
fn a_new_view_is_answered_from_at_once() {
    let world = World::new();
    let mut hello = common::active(common::service("hello.vm.test", 9));
    hello.hibernated_at = Some(NOW);
    world.publish(hello);
    assert_eq!(records(&world.dig(&["hello.vm.test", "A"])), ["hello.vm.test. 60 IN A 127.64.0.9"]);
    assert_eq!(world.server.counts().wakes_asked, 0);
}
