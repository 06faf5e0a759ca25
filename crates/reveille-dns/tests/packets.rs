//! Packets of every kind, good, odd and damaged: what is answered, and that a second parser agrees.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use common::{NOW, name, refused, service, zone};
use hickory_proto::op::{Edns, Message, Query as HickoryQuery, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;
use reveille_core::answer::{Rcode, View, Zones};
use reveille_dns::wire::{Faulty, Query, UDP_PAYLOAD_MAX, Unreadable};
use reveille_dns::{Origin, Outcome, Setting, Transport, respond};

fn view() -> View {
    let services = [service("hello.vm.test", 1), refused(service("broken.vm.test", 4))];
    View::new(1, Zones::new([Arc::new(zone())]), services.map(Arc::new), View::default_monitors())
}

fn peer() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4242))
}

fn ask(view: &View, packet: &[u8], transport: Transport) -> (Option<Rcode>, Vec<u8>) {
    let mut out = Vec::new();
    let at = Setting { view, now: NOW, judge: None, keys: None };
    let Outcome { written, .. } = respond(&at, packet, &Origin::new(peer(), transport), &mut out);
    assert_eq!(written.is_none(), out.is_empty());
    (written.map(|written| written.rcode), out)
}

/// A question in wire format: ID 0x1234, RD.
fn question(qname: &str, qtype: u16, additional: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!additional.is_empty())];
    for label in qname.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.bytes());
    }
    packet.push(0);
    packet.extend(qtype.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(additional);
    packet
}

fn opt(payload_bytes: u16, version: u8, flags: u8, options: &[u8]) -> Vec<u8> {
    let [high, low] = payload_bytes.to_be_bytes();
    let length = u8::try_from(options.len()).unwrap();
    [&[0, 0, 41, high, low, 0, version, flags, 0, 0, length][..], options].concat()
}

fn option(code: u8, data: &[u8]) -> Vec<u8> {
    [&[0, code, 0, u8::try_from(data.len()).unwrap()][..], data].concat()
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table")]
fn errors_are_for_those_who_can_use_them() {
    let good = question("hello.vm.test", 1, &[]);
    let with = |at: usize, byte: u8| {
        let mut packet = good.clone();
        packet[at] = byte;
        packet
    };
    let two_opts = [opt(1232, 0, 0, &[]), opt(1232, 0, 0, &[])].concat();
    let mut twice = question("hello.vm.test", 1, &two_opts);
    twice[11] = 2;
    let mut pointed = good[..12].to_vec();
    pointed.extend([0xc0, 0x0c, 0, 1, 0, 1]);
    let table: Vec<(&str, Vec<u8>, Option<Rcode>)> = vec![
        ("a good question", good.clone(), Some(Rcode::NoError)),
        ("nothing", vec![], None),
        ("less than a header", good[..11].to_vec(), None),
        ("an answer", with(2, 0x81), None),
        ("an answer with an opcode", with(2, 0xa9), None),
        ("a header alone", good[..12].to_vec(), Some(Rcode::FormErr)),
        ("STATUS", with(2, 0x11), Some(Rcode::NotImp)),
        ("NOTIFY", with(2, 0x21), Some(Rcode::NotImp)),
        ("UPDATE", with(2, 0x29), Some(Rcode::NotImp)),
        ("no question", with(5, 0), Some(Rcode::FormErr)),
        ("two questions", with(5, 2), Some(Rcode::FormErr)),
        ("a record that is not there", with(11, 1), Some(Rcode::FormErr)),
        ("65280 records", with(8, 0xff), Some(Rcode::FormErr)),
        ("cut in the name", good[..20].to_vec(), Some(Rcode::FormErr)),
        ("cut in the class", good[..good.len() - 1].to_vec(), Some(Rcode::FormErr)),
        ("bytes behind", [&good[..], &[0]].concat(), Some(Rcode::FormErr)),
        ("a pointer to itself", pointed, Some(Rcode::FormErr)),
        ("a label of 64 bytes", with(12, 64), Some(Rcode::FormErr)),
        ("class CH", with(good.len() - 1, 3), Some(Rcode::Refused)),
        ("class ANY", with(good.len() - 1, 255), Some(Rcode::Refused)),
        ("type 0", question("hello.vm.test", 0, &[]), Some(Rcode::FormErr)),
        ("type OPT", question("hello.vm.test", 41, &[]), Some(Rcode::FormErr)),
        ("type NXNAME", question("hello.vm.test", 128, &[]), Some(Rcode::FormErr)),
        ("type TSIG", question("hello.vm.test", 250, &[]), Some(Rcode::NotImp)),
        ("type MAILA", question("hello.vm.test", 254, &[]), Some(Rcode::NotImp)),
        ("type AXFR", question("vm.test", 252, &[]), Some(Rcode::Refused)),
        ("another zone", question("www.example", 1, &[]), Some(Rcode::Refused)),
        ("EDNS", question("hello.vm.test", 1, &opt(1232, 0, 0, &[])), Some(Rcode::NoError)),
        ("EDNS 1", question("hello.vm.test", 1, &opt(1232, 1, 0, &[])), Some(Rcode::BadVers)),
        ("two OPT", twice, Some(Rcode::FormErr)),
        (
            "OPT that is not at the root",
            question("hello.vm.test", 1, &[&[1, b'x'], &opt(512, 0, 0, &[])[..]].concat()),
            Some(Rcode::FormErr),
        ),
        (
            "half an option",
            question("hello.vm.test", 1, &opt(512, 0, 0, &[0, 10, 0, 8, 1])),
            Some(Rcode::FormErr),
        ),
        (
            "an unknown option",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(200, b"x"))),
            Some(Rcode::NoError),
        ),
        (
            "a subnet",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(8, &[0, 1, 24, 0, 192, 0, 2]))),
            Some(Rcode::NoError),
        ),
        (
            "no subnet, please",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(8, &[0, 1, 0, 0]))),
            Some(Rcode::NoError),
        ),
        (
            "no subnet of no family",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(8, &[0, 0, 0, 0]))),
            Some(Rcode::NoError),
        ),
        (
            "a subnet with a bit too many",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(8, &[0, 1, 23, 0, 192, 0, 3]))),
            Some(Rcode::FormErr),
        ),
        (
            "a subnet with a byte too many",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(8, &[0, 1, 24, 0, 192, 0, 2, 0]))),
            Some(Rcode::FormErr),
        ),
        (
            "a subnet with a scope",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(8, &[0, 1, 24, 24, 192, 0, 2]))),
            Some(Rcode::FormErr),
        ),
        (
            "a subnet of no family",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(8, &[0, 9, 0, 0]))),
            Some(Rcode::FormErr),
        ),
        (
            "an IPv4 subnet of 33 bits",
            question("hello.vm.test", 1, &opt(512, 0, 0, &option(8, &[0, 1, 33, 0, 1, 2, 3, 4, 128]))),
            Some(Rcode::FormErr),
        ),
    ];
    let view = view();
    for (what, packet, expected) in table {
        let (rcode, out) = ask(&view, &packet, Transport::Udp);
        assert_eq!(rcode, expected, "{what}");
        if rcode.is_some() {
            assert_eq!(out[..2], packet[..2], "{what}: the ID");
            assert_eq!(out[2] & 0xf9, 0x80 | packet[2] & 0x79, "{what}: QR, the opcode and RD");
            Message::from_vec(&out).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

#[test]
fn an_answer_repeats_what_it_must() {
    let view = view();
    let subnet = option(8, &[0, 1, 24, 0, 192, 0, 2]);
    let packet = question("HeLLo.Vm.TEST", 1, &opt(4096, 0, 0x80, &subnet));
    let mut out = Vec::new();
    let at = Setting { view: &view, now: NOW, judge: None, keys: None };
    let outcome = respond(&at, &packet, &Origin::new(peer(), Transport::Udp), &mut out);
    let wake = outcome.wake.unwrap();
    assert_eq!(wake.subnet.unwrap().to_string(), "192.0.2.0/24");
    assert_eq!((wake.service.name.clone(), wake.qtype), (name("hello.vm.test"), 1));
    let question_end = 12 + 15 + 4;
    assert_eq!(out[12..question_end], packet[12..question_end], "the name as it was written");
    // The owner is a pointer to the question's name, so it has its case too.
    assert_eq!(out[question_end..question_end + 2], [0xc0, 0x0c]);
    let message = Message::from_vec(&out).unwrap();
    let edns = message.extensions().clone().unwrap();
    assert!(edns.flags().dnssec_ok);
    assert_eq!((edns.version(), edns.max_payload()), (0, UDP_PAYLOAD_MAX));
    assert!(out.ends_with(&subnet), "the subnet with scope 0: {out:x?}");
    // Without EDNS in the question there is none in the answer, not even for an error.
    let (rcode, out) = ask(&view, &question("broken.vm.test", 1, &[]), Transport::Udp);
    assert_eq!((rcode, &out[10..12]), (Some(Rcode::ServFail), &[0, 0][..]));
}

#[test]
fn an_answer_is_cut_to_what_both_sides_take() {
    let view = view();
    for (additional, limit) in [
        (vec![], 512),
        (opt(0, 0, 0, &[]), 512),
        (opt(800, 0, 0, &[]), 800),
        (opt(65_535, 0, 0, &[]), usize::from(UDP_PAYLOAD_MAX)),
    ] {
        let packet = question("big.vm.test", 16, &additional);
        let (_, out) = ask(&view, &packet, Transport::Udp);
        let message = Message::from_vec(&out).unwrap();
        assert!(out.len() <= limit && message.truncated(), "{limit}: {}", out.len());
        // All of an RRset or nothing: a resolver must not take a part for the whole.
        assert_eq!(message.answer_count(), 0);
        let (_, out) = ask(&view, &packet, Transport::Tcp);
        let message = Message::from_vec(&out).unwrap();
        assert_eq!((message.truncated(), message.answers().len()), (false, 60));
    }
    // The longest name and the longest text still fit with everything else.
    let long = format!("{}.example", ["x".repeat(60).as_str(); 4].join("."));
    let subnet = option(8, &[&[0, 2, 128, 0][..], &[1; 16]].concat());
    let (rcode, out) = ask(&view, &question(&long, 1, &opt(512, 0, 0, &subnet)), Transport::Udp);
    assert_eq!(rcode, Some(Rcode::Refused));
    assert!(out.len() <= 512);
}

/// What both parsers must see alike. Theirs looks into the data of records that a question has no use for, and
/// refuses some that ours steps over; of `must_read` both must make something.
fn agree(packet: &[u8], must_read: bool) {
    match Query::parse(packet) {
        Ok(ours) => {
            let theirs = match Message::from_vec(packet) {
                Ok(theirs) => theirs,
                Err(error) if must_read => panic!("{packet:x?}: {error}"),
                Err(_) => return,
            };
            assert_eq!(theirs.id(), ours.header.id);
            assert_eq!(theirs.recursion_desired(), ours.header.recursion_desired);
            let question = &theirs.queries()[0];
            let mut qname = Vec::new();
            for label in question.name().iter() {
                qname.push(u8::try_from(label.len()).unwrap());
                qname.extend(label);
            }
            qname.push(0);
            assert_eq!(qname, ours.question.name.as_wire());
            assert_eq!(u16::from(question.query_type()), ours.question.qtype);
            assert_eq!(u16::from(question.query_class()), ours.question.qclass);
            assert_eq!(theirs.extensions().is_some(), ours.edns.is_some());
            if let (Some(theirs), Some(ours)) = (theirs.extensions(), ours.edns) {
                assert_eq!(theirs.version(), ours.version);
                assert_eq!(theirs.flags().dnssec_ok, ours.dnssec_ok);
                // Theirs raises what is below 512 already.
                assert_eq!(theirs.max_payload(), ours.payload_bytes.max(512));
            }
        }
        Err(Unreadable::Silence) => assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
        Err(Unreadable::Error(Faulty { header, .. })) => {
            assert_eq!(header.id.to_be_bytes(), packet[..2]);
            assert_eq!(packet[2] & 0x80, 0);
        }
    }
}

/// What holds of every answer.
fn is_sound(view: &View, packet: &[u8]) {
    for (transport, limit) in [(Transport::Udp, usize::from(UDP_PAYLOAD_MAX)), (Transport::Tcp, 65_535)] {
        let (rcode, out) = ask(view, packet, transport);
        let Some(rcode) = rcode else { continue };
        assert!(out.len() <= limit);
        let message = Message::from_vec(&out).unwrap_or_else(|error| panic!("{packet:x?} {out:x?}: {error}"));
        assert_eq!(message.id().to_be_bytes(), packet[..2]);
        assert_eq!(u16::from(message.response_code()), rcode.number());
    }
}

fn good_packets() -> impl Strategy<Value = Vec<u8>> {
    let qname = prop_oneof![
        "(x\\.|_vmstate\\.|\\*\\.)?(hello|broken|big|www|none)\\.[vV]m\\.test",
        "[a-zA-Z0-9_*-]{1,63}(\\.[a-z]{1,10}){0,6}"
    ];
    let qtype = prop_oneof![Just(1u16), Just(28), Just(16), Just(255), any::<u16>()];
    let subnet = (0u8..=24).prop_map(|prefix| {
        let bytes = usize::from(prefix).div_ceil(8);
        option(8, &[&[0, 1, prefix, 0][..], &[0; 3][..bytes]].concat())
    });
    let options = prop_oneof![
        Just(Vec::new()),
        subnet,
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|data| option(77, &data))
    ];
    let edns = prop::option::of((
        any::<u16>(),
        prop_oneof![9 => Just(0u8), 1 => any::<u8>()],
        any::<bool>(),
        options,
    ));
    (qname, qtype, edns).prop_map(|(qname, qtype, edns)| {
        let additional = edns.map_or(Vec::new(), |(payload_bytes, version, dnssec_ok, options)| {
            opt(payload_bytes, version, u8::from(dnssec_ok) << 7, &options)
        });
        question(&qname, qtype, &additional)
    })
}

fn damaged_packets() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5);
    (good_packets(), changes, any::<prop::sample::Index>(), 0..8u8, prop::collection::vec(any::<u8>(), 0..12))
        .prop_map(|(mut packet, changes, cut, how, tail)| {
            for (at, byte) in changes {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            match how {
                0 => packet.truncate(cut.index(packet.len() + 1)),
                1 => packet.extend(tail),
                _ => {}
            }
            packet
        })
}

static VIEW: LazyLock<View> = LazyLock::new(view);

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn good_questions_are_read_as_another_parser_reads_them(packet in good_packets()) {
        prop_assert!(Query::parse(&packet).is_ok());
        agree(&packet, true);
        is_sound(&VIEW, &packet);
    }

    #[test]
    fn damaged_questions_do_no_harm(packet in damaged_packets()) {
        agree(&packet, false);
        is_sound(&VIEW, &packet);
    }

    #[test]
    fn noise_does_no_harm(packet in prop::collection::vec(any::<u8>(), 0..200)) {
        agree(&packet, false);
        is_sound(&VIEW, &packet);
    }
}

#[test]
fn what_another_implementation_asks_is_answered_as_it_understands() {
    let view = view();
    let mut message = Message::new();
    message.set_id(77).set_recursion_desired(true);
    message.add_query(HickoryQuery::query(Name::from_ascii("hello.vm.test.").unwrap(), RecordType::A));
    let mut edns = Edns::new();
    edns.set_max_payload(1232).set_dnssec_ok(true);
    message.set_edns(edns);
    let (_, out) = ask(&view, &message.to_vec().unwrap(), Transport::Udp);
    let reply = Message::from_vec(&out).unwrap();
    assert_eq!((reply.id(), reply.response_code(), reply.authoritative()), (77, ResponseCode::NoError, true));
    let record = &reply.answers()[0];
    assert_eq!(record.name().to_ascii(), "hello.vm.test.");
    assert_eq!((record.ttl(), record.data().to_string().as_str()), (5, "127.64.0.1"));
}
