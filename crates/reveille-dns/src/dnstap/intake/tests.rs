//! Messages in, sightings out.

use std::net::Ipv4Addr;
use std::sync::Arc;

use reveille_core::answer::{Record, ServiceView, ZoneDefaults, Zones};
use reveille_core::model::DomainName;

use super::super::file::DnstapFile;
use super::*;

/// When the servers were asked whose messages are in it.
const SERVERS: &[u8] = include_bytes!("../../../tests/dnstap/servers.fstrm");
const SERVERS_AT: Timestamp = Timestamp::from_ms(1_795_392_214_500);
const NOW: Timestamp = Timestamp::from_ms(1_795_000_060_500);
const NOW_S: u32 = 1_795_000_060;

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

/// `vm.test` with `hello` (counter 1), `*.apps` (2), and `www`, an alias of `hello`.
fn view() -> View {
    let defaults = ZoneDefaults {
        apex: name("vm.test"),
        name_servers: vec![(name("ns1.vm.test"), vec![Ipv4Addr::LOCALHOST.into()])],
        hostmaster: name("hostmaster.vm.test"),
        serial: 1,
        ttl: 3_600,
        negative_ttl: 30,
    };
    let mut records = defaults.records();
    let data = name("hello.vm.test").as_wire().to_vec();
    records.push(Record { owner: name("www.vm.test"), rtype: rdata::CNAME, ttl: 300, data });
    let zone = reveille_core::answer::Zone::new(name("vm.test"), &records).unwrap();
    let service = |text, counter| {
        Arc::new(ServiceView { counter, ..ServiceView::asleep(name(text), Ipv4Addr::new(127, 64, 0, 1)) })
    };
    let services = [service("hello.vm.test", 1), service("*.apps.vm.test", 2)];
    View::new(1, Zones::new([Arc::new(zone)]), services, [])
}

fn query(qname: &str, qtype: u8, class: u8) -> Vec<u8> {
    [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name(qname).as_wire(), &[0, qtype, 0, class]].concat()
}

fn said(kind: MessageType, message: &[u8], at: Timestamp) -> Vec<u8> {
    let mut told = Message {
        kind: Some(kind),
        query_address: Some("192.0.2.77".parse().unwrap()),
        query_time: Some(at),
        ..Message::default()
    };
    if kind.is_response() {
        told.response_message = message;
    } else {
        told.query_message = message;
    }
    let mut out = Vec::new();
    Dnstap { identity: b"edge1", version: b"", message: told }.encode(&mut out);
    out
}

fn intake(wanted: &[MessageType]) -> Intake {
    Intake::new(wanted, 1_000, RandomState::new(), NOW)
}

fn of_queries() -> Intake {
    intake(&[MessageType::AuthQuery, MessageType::ClientQuery])
}

/// Counter and amount of each count, of all seconds.
fn counts(intake: &mut Intake) -> Vec<(u32, u32, u32)> {
    intake.take_seconds(u32::MAX).iter().map(|count| (count.at_s, count.counter, count.queries)).collect()
}

#[test]
fn a_question_counts_for_the_service_that_would_answer_it_here() {
    let (view, mut intake) = (view(), of_queries());
    let asked =
        ["hello.vm.test", "HELLO.vm.test", "www.vm.test", "one.apps.vm.test", "no.vm.test", "vm.test"];
    for qname in asked {
        intake.take(&view, &said(MessageType::ClientQuery, &query(qname, 1, 1), NOW), "unix", NOW).unwrap();
    }
    for (qname, class) in [("hello.example", 1), ("hello.vm.test", 3)] {
        intake.take(&view, &said(MessageType::AuthQuery, &query(qname, 1, class), NOW), "unix", NOW).unwrap();
    }
    assert_eq!(counts(&mut intake), [(NOW_S, 0, 2), (NOW_S, 1, 3), (NOW_S, 2, 1)]);
    let source = &intake.sources()[0];
    assert_eq!((source.name.as_str(), source.counted, source.outside), ("edge1", 6, 2));
    let hello = intake.service(1, NOW);
    assert_eq!((hello.queries, hello.by_type["A"], hello.is_complete), (3, 3, true));
    let seen = intake.observations();
    assert_eq!((seen.queries, seen.unique_clients), (6, 1));
    assert_eq!(seen.top_networks[0].key, ("192.0.2.0".parse().unwrap(), 24));
    // Who asked is not remembered.
    assert!(!format!("{intake:?}").contains("192.0.2.77"));
}

#[test]
fn each_question_counts_once_whatever_its_senders_tell() {
    let view = view();
    let question = query("hello.vm.test", 1, 1);
    let mut response = question.clone();
    response[2] |= 0x80;
    let tell = |intake: &mut Intake| {
        for kind in MessageType::ALL {
            let message = if kind.is_response() { &response } else { &question };
            intake.take(&view, &said(kind, message, NOW), "unix", NOW).unwrap();
        }
    };
    let mut queries = intake(&[MessageType::ClientQuery]);
    tell(&mut queries);
    assert_eq!((counts(&mut queries), queries.sources()[0].other_types), (vec![(NOW_S, 1, 1)], 13));
    // Of senders that tell of responses alone.
    let mut responses = intake(&[MessageType::AuthResponse]);
    tell(&mut responses);
    assert_eq!((counts(&mut responses), responses.sources()[0].other_types), (vec![(NOW_S, 1, 1)], 13));
}

#[test]
fn what_real_servers_say_is_counted_by_server() {
    let (view, mut intake, mut file) = (view(), of_queries(), DnstapFile::new(SERVERS));
    while let Some(entry) = file.entry().unwrap() {
        let mut payload = Vec::new();
        entry.message.unwrap().encode(&mut payload);
        intake.take(&view, &payload, "unix", SERVERS_AT).unwrap();
    }
    let of = |name: &str| {
        let source = intake.sources().iter().find(|source| source.name == name).unwrap();
        (source.counted, source.other_types, source.unreadable + source.outside + source.clock_off)
    };
    assert_eq!(of("unbound.test"), (1, 2, 0));
    assert_eq!(of("knot.test"), (3, 3, 0));
    assert_eq!(of("bind.test"), (1, 0, 0));
    let by_type = intake.service(1, SERVERS_AT).by_type;
    assert_eq!((by_type["A"], by_type["TXT"], by_type["AAAA"]), (3, 1, 1));
}

#[test]
fn a_second_is_that_of_the_question_unless_its_sender_cannot_be_believed() {
    let (view, mut intake) = (view(), of_queries());
    let mut at = |ms: i64| {
        let time = Timestamp::from_ms(NOW.as_ms().checked_add_signed(ms).unwrap());
        let payload = said(MessageType::ClientQuery, &query("hello.vm.test", 1, 1), time);
        intake.take(&view, &payload, "unix", NOW).unwrap();
        (counts(&mut intake)[0].0, intake.sources()[0].clock_off)
    };
    assert_eq!(at(-501), (NOW_S - 1, 0));
    assert_eq!(at(-30_000), (NOW_S - 30, 0));
    assert_eq!(at(2_000), (NOW_S, 0), "nothing is counted ahead of the clock");
    assert_eq!(at(-30_001), (NOW_S, 1));
    assert_eq!(at(2_001), (NOW_S, 2));
    assert_eq!(at(-1_000_000_000_000), (NOW_S, 3));
}

#[test]
fn what_is_too_much_is_dropped_told_and_over_with_the_second() {
    let (view, mut intake) = (view(), of_queries());
    let payload = said(MessageType::ClientQuery, &query("hello.vm.test", 1, 1), NOW);
    for _ in 0..1_007 {
        intake.take(&view, &payload, "unix", NOW).unwrap();
    }
    let later = NOW.plus_ms(500);
    intake.look(later);
    assert_eq!((intake.dropped(), intake.service(1, later).is_complete), (7, false));
    intake.take(&view, &payload, "unix", later).unwrap();
    assert_eq!(counts(&mut intake), [(NOW_S, 1, 1_001)]);
}

#[test]
fn what_cannot_be_read_is_counted_and_named() {
    let (view, mut intake) = (view(), of_queries());
    let mut take = |payload: &[u8]| intake.take(&view, payload, "192.0.2.1", NOW).unwrap_err().to_string();
    assert_eq!(take(b"\x0a\x09"), "byte 0 of the message: a field is longer than what holds it");
    let kind = MessageType::AuthQuery;
    assert_eq!(take(&said(kind, b"", NOW)), "the DNS message in it has no question");
    assert_eq!(take(&said(kind, &[0; 12], NOW)), "the DNS message in it has no question");
    let mut update = query("vm.test", 6, 1);
    update[2] = 5 << 3;
    assert_eq!(take(&said(kind, &update, NOW)), "the DNS message in it has no question");
    let unreadable: Vec<_> =
        intake.sources().iter().map(|source| (source.name.as_str(), source.unreadable)).collect();
    assert_eq!(unreadable, [("192.0.2.1", 1), ("edge1", 3)]);
    // A question counts whatever comes behind it.
    let odd = [&query("hello.vm.test", 1, 1)[..], b"rest"].concat();
    intake.take(&view, &said(kind, &odd, NOW), "unix", NOW).unwrap();
    assert_eq!(counts(&mut intake), [(NOW_S, 1, 1)]);
}
