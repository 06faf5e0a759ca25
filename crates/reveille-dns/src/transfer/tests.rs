use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

use domain::base::{Message, MessageBuilder, Name, ParsedRecord, Rtype, Serial};
use domain::rdata::tsig::Time48;
use domain::rdata::{AllRecordData, Soa};
use domain::tsig as other;
use proptest::prelude::*;
use reveille_core::answer::{
    Acl, AclEntry, Network, Rcode, Record, ServiceView, View, Zone, ZoneDefaults, Zones, rdata,
};
use reveille_core::model::{DomainName, Timestamp};

use super::{Way, write};
use crate::tsig::{Algorithm, Key, Keyring};
use crate::{Origin, Outcome, Setting, Transport, respond};

const SECRET: &[u8; 32] = b"0123456789abcdef0123456789abcdef";
const NOW_S: u64 = 1_800_000_000;

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn service(text: &str, number: u32) -> Arc<ServiceView> {
    Arc::new(ServiceView::asleep(name(text), Ipv4Addr::from_bits(0x7f40_0000 + number)))
}

/// `vm.test` with that many services `s0`, `s1` …, for 127.0.0.0/8 or whoever has the key.
fn view(services: u32) -> View {
    let defaults = ZoneDefaults {
        apex: name("vm.test"),
        name_servers: vec![(name("ns1.vm.test"), vec![Ipv4Addr::LOCALHOST.into()])],
        hostmaster: name("hostmaster.vm.test"),
        serial: 1,
        ttl: 3_600,
        negative_ttl: 30,
    };
    let mut records = defaults.records();
    let mut add = |owner: &str, rtype, data: &[u8]| {
        records.push(Record { owner: name(owner), rtype, ttl: 300, data: data.to_vec() });
    };
    add("www.vm.test", rdata::CNAME, name("s0.vm.test").as_wire());
    add("vm.test", rdata::MX, &[&[0, 10][..], name("mail.vm.test").as_wire()].concat());
    add("_sip._tcp.vm.test", rdata::SRV, &[&[0, 1, 0, 2, 0, 80][..], name("s1.vm.test").as_wire()].concat());
    let acl = Acl::new([
        AclEntry { networks: vec![Network::LOOPBACK4], key: None },
        AclEntry { networks: vec![], key: Some(name("xfr.key.test")) },
    ]);
    let zone = Zone::new(name("vm.test"), &records).unwrap().with_transfer(acl);
    let services = (0..services).map(|number| service(&format!("s{number}.vm.test"), number));
    View::new(1, Zones::new([Arc::new(zone)]), services, [])
}

fn changed(view: &View, numbers: impl IntoIterator<Item = u32>, address: u32) -> View {
    let change = |number: u32| {
        let text = format!("s{number}.vm.test");
        (name(&text), Some(service(&text, address + number)))
    };
    view.advanced(view.generation + 1, numbers.into_iter().map(change), [])
}

fn keys() -> Keyring {
    Keyring::with_clock([Key::new(name("xfr.key.test"), Algorithm::HmacSha256, SECRET).unwrap()], || NOW_S)
}

/// A question; for IXFR with the serial that the asker has.
fn question(
    apex: &str,
    qtype: Rtype,
    serial: Option<u32>,
) -> domain::base::message_builder::AdditionalBuilder<Vec<u8>> {
    let apex = Name::<Vec<u8>>::from_chars(apex.chars()).unwrap();
    let mut message = MessageBuilder::new_vec().question();
    message.header_mut().set_id(0x1234);
    message.push((&apex, qtype)).unwrap();
    let mut message = message.authority();
    if let Some(serial) = serial {
        let ttl = domain::base::Ttl::from_secs(0);
        message.push((&apex, ttl, Soa::new(&apex, &apex, Serial(serial), ttl, ttl, ttl, ttl))).unwrap();
    }
    message.additional()
}

/// Who asks, and how.
#[derive(Clone, Copy)]
struct From {
    peer: [u8; 4],
    transport: Transport,
}

const HOME: From = From { peer: [127, 0, 0, 1], transport: Transport::Tcp };
const AWAY: From = From { peer: [192, 0, 2, 1], transport: Transport::Tcp };
const UDP: From = From { peer: [127, 0, 0, 1], transport: Transport::Udp };

/// The messages of the answer, and how the zone was told if it was.
fn ask(view: &View, packet: &[u8], from: From) -> (Rcode, Option<Way>, Vec<Vec<u8>>) {
    let mut out = Vec::new();
    let peer = SocketAddr::from((from.peer, 4242));
    let now = Timestamp::from_ms(0);
    let at = Setting { view, now, judge: None, keys: Some(&keys()) };
    let Outcome { written, transfer, .. } =
        respond(&at, packet, &Origin::new(peer, from.transport), &mut out);
    let rcode = written.unwrap().rcode;
    let Some(transfer) = transfer else { return (rcode, None, vec![out]) };
    let mut messages = Vec::new();
    let way = write(view, *transfer, |message| {
        messages.push(message);
        true
    });
    (Rcode::NoError, Some(way.unwrap()), messages)
}

/// `owner TYPE data` of every record of the answer sections, in order.
fn records(messages: &[Vec<u8>]) -> Vec<String> {
    let mut lines = Vec::new();
    for message in messages {
        let message = Message::from_octets(message.as_slice()).unwrap();
        assert!(message.header().qr() && message.header().aa() && message.header().id() == 0x1234);
        let shown = |record: ParsedRecord<'_, &[u8]>| {
            let record = record.into_any_record::<AllRecordData<_, _>>().unwrap();
            let data = if let AllRecordData::Soa(soa) = record.data() {
                soa.serial().to_string()
            } else {
                record.data().to_string()
            };
            format!("{} {} {data}", record.owner(), record.rtype())
        };
        lines.extend(message.answer().unwrap().map(|record| shown(record.unwrap())));
    }
    lines
}

#[test]
fn a_small_zone_is_one_message_from_soa_to_soa() {
    let view = view(2);
    let (_, way, messages) = ask(&view, &question("vm.test", Rtype::AXFR, None).finish(), HOME);
    assert_eq!((way, messages.len()), (Some(Way::Whole), 1));
    let mut lines = records(&messages);
    assert_eq!(
        (lines.remove(0), lines.pop().unwrap()),
        ("vm.test SOA 1".to_owned(), "vm.test SOA 1".to_owned())
    );
    lines.sort();
    assert_eq!(
        lines,
        [
            "_sip._tcp.vm.test SRV 1 2 80 s1.vm.test",
            "ns1.vm.test A 127.0.0.1",
            "s0.vm.test A 127.64.0.0",
            "s1.vm.test A 127.64.0.1",
            "vm.test MX 10 mail.vm.test.",
            "vm.test NS ns1.vm.test.",
            "www.vm.test CNAME s0.vm.test.",
        ]
    );
}

#[test]
fn a_large_zone_is_many_full_messages_each_signed() {
    let view = view(20_000);
    let mut packet = question("vm.test", Rtype::AXFR, None);
    packet
        .opt(|opt| {
            opt.set_udp_payload_size(1_232);
            Ok(())
        })
        .unwrap();
    let key = other::Key::new(other::Algorithm::Sha256, SECRET, "xfr.key.test".parse().unwrap(), None, None)
        .unwrap();
    let now = Time48::from_u64(NOW_S);
    let mut client = other::ClientSequence::request(key, &mut packet, now).unwrap();
    let (_, way, messages) = ask(&view, &packet.finish(), AWAY);
    assert_eq!(way, Some(Way::Whole));
    let sizes: Vec<usize> = messages.iter().map(Vec::len).collect();
    let (last, full) = sizes.split_last().unwrap();
    assert!(full.iter().all(|&size| size > 65_000) && *last > 0, "{sizes:?}");
    // Owner as a label and a pointer: some 24 bytes each, where it would be 32.
    assert!(sizes.iter().sum::<usize>() < 20_000 * 25, "{sizes:?}");
    for message in &messages {
        let mut message = Message::from_octets(message.clone()).unwrap();
        assert!(message.opt().is_some());
        client.answer(&mut message, now).unwrap();
    }
    client.done().unwrap();
    assert_eq!(records(&messages).len(), 20_000 + 5 + 2);
    let parsed = |message: &Vec<u8>| hickory_proto::op::Message::from_vec(message).unwrap().answer_count();
    assert_eq!(messages.iter().map(|message| usize::from(parsed(message))).sum::<usize>(), 20_007);
}

#[test]
fn what_changed_since_is_told_as_one_difference() {
    let first = view(100);
    let second = changed(&first, [7, 8], 1_000);
    let third = changed(&second, [7, 200], 2_000);
    let ixfr = |view: &View, has| ask(view, &question("vm.test", Rtype::IXFR, Some(has)).finish(), HOME);
    let (_, way, messages) = ixfr(&third, 1);
    assert_eq!(way, Some(Way::Differences));
    assert_eq!(
        records(&messages),
        [
            "vm.test SOA 3",
            "vm.test SOA 1",
            "s7.vm.test A 127.64.0.7",
            "s8.vm.test A 127.64.0.8",
            "vm.test SOA 3",
            "s200.vm.test A 127.64.8.152",
            "s7.vm.test A 127.64.7.215",
            "s8.vm.test A 127.64.3.240",
            "vm.test SOA 3",
        ]
    );
    let (_, way, messages) = ixfr(&third, 2);
    assert_eq!((way, records(&messages)[1].as_str()), (Some(Way::Differences), "vm.test SOA 2"));
    // There and back again: a difference without records.
    let back = changed(&changed(&first, [7], 1_000), [7], 0);
    let (_, _, messages) = ixfr(&back, 1);
    assert_eq!(records(&messages), ["vm.test SOA 3", "vm.test SOA 1", "vm.test SOA 3", "vm.test SOA 3"]);
    // Nothing newer than what the asker has: also if that is from the future.
    for has in [3, 4, 3 + (1 << 31)] {
        let (rcode, way, messages) = ixfr(&third, has);
        assert_eq!(
            (rcode, way, records(&messages)),
            (Rcode::NoError, None, vec!["vm.test SOA 3".to_owned()]),
            "{has}"
        );
    }
    // Older than what is kept, or the whole zone is the shorter way.
    for (view, has) in [(&third, 0), (&changed(&first, 0..100, 5_000), 1)] {
        let (_, way, messages) = ixfr(view, has);
        assert_eq!(way, Some(Way::Whole));
        assert!(records(&messages).len() > 100);
    }
}

#[test]
fn only_those_who_may_have_the_zone_get_it() {
    let view = changed(&view(10), [1], 1_000);
    let plain = |apex, qtype, serial| question(apex, qtype, serial).finish();
    for (packet, from, code) in [
        (plain("vm.test", Rtype::AXFR, None), AWAY, Rcode::Refused),
        (plain("vm.test", Rtype::IXFR, Some(1)), AWAY, Rcode::Refused),
        (plain("s1.vm.test", Rtype::AXFR, None), HOME, Rcode::NotAuth),
        (plain("test", Rtype::IXFR, Some(1)), HOME, Rcode::NotAuth),
        (plain("vm.test", Rtype::IXFR, None), HOME, Rcode::FormErr),
        (plain("vm.test", Rtype::AXFR, None), UDP, Rcode::NotImp),
        (plain("vm.test", Rtype::IXFR, Some(1)), UDP, Rcode::NoError),
    ] {
        let (rcode, way, messages) = ask(&view, &packet, from);
        assert_eq!((rcode, way), (code, None));
        if code == Rcode::NoError {
            assert_eq!(records(&messages), ["vm.test SOA 2"], "over UDP the SOA alone");
        }
    }
    // A zone that nobody may have.
    let closed = Zone::clone(view.zones().at(0).unwrap()).with_transfer(Acl::default());
    let closed = View::new(1, Zones::new([Arc::new(closed)]), [], []);
    assert_eq!(ask(&closed, &plain("vm.test", Rtype::AXFR, None), HOME).0, Rcode::Refused);
}

#[test]
fn a_client_that_leaves_ends_the_writing() {
    let view = view(20_000);
    let (mut out, mut taken, keys) = (Vec::new(), 0, keys());
    let packet = question("vm.test", Rtype::AXFR, None).finish();
    let peer = SocketAddr::from((HOME.peer, 4242));
    let at = Setting { view: &view, now: Timestamp::from_ms(0), judge: None, keys: Some(&keys) };
    let outcome = respond(&at, &packet, &Origin::new(peer, Transport::Tcp), &mut out);
    let written = write(&view, *outcome.transfer.unwrap(), |_| {
        taken += 1;
        taken < 3
    });
    assert!(written.is_err() && taken == 3);
    // What was written in case that it cannot begin.
    assert_eq!(out[3] & 0xf, 2);
}

/// A question for a transfer, damaged before it is signed, after it, or not at all.
fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let damage = || prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = prop::option::weighted(0.2, any::<prop::sample::Index>());
    let qtype = prop::sample::select(vec![Rtype::AXFR, Rtype::IXFR]);
    let serial = prop::option::of(0..5u32);
    (qtype, serial, damage(), damage(), any::<bool>(), cut).prop_map(
        |(qtype, serial, before, after, signed, cut)| {
            let harm = |packet: &mut Vec<u8>, damage: &[(prop::sample::Index, u8)]| {
                for (place, byte) in damage {
                    let place = place.index(packet.len());
                    packet[place] = *byte;
                }
            };
            let mut packet = question("vm.test", qtype, serial).finish();
            harm(&mut packet, &before);
            let keys = keys();
            if signed {
                keys.sign_request(&keys.key(&name("xfr.key.test")).unwrap(), &mut packet);
            }
            harm(&mut packet, &after);
            packet.truncate(cut.map_or(packet.len(), |cut| cut.index(packet.len())));
            packet
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn damaged_questions_for_a_zone_do_no_harm(packet in any_packet(), over_tcp: bool, at_home: bool) {
        static VIEW: LazyLock<View> = LazyLock::new(|| changed(&changed(&view(40), [7, 8], 1_000), [7], 2_000));
        let peer = SocketAddr::from((if at_home { HOME.peer } else { AWAY.peer }, 4242));
        let transport = if over_tcp { Transport::Tcp } else { Transport::Udp };
        let (mut out, keys) = (Vec::new(), keys());
        let at = Setting { view: &VIEW, now: Timestamp::from_ms(0), judge: None, keys: Some(&keys) };
        let outcome = respond(&at, &packet, &Origin::new(peer, transport), &mut out);
        prop_assert_eq!(outcome.written.is_some(), !out.is_empty());
        let mut messages = vec![out];
        if let Some(transfer) = outcome.transfer {
            prop_assert!(over_tcp && (at_home || transfer.exchange.is_some()), "only to whom the zone is allowed");
            messages.clear();
            let written = write(&VIEW, *transfer, |message| {
                messages.push(message);
                true
            });
            prop_assert!(written.is_ok());
        }
        for message in messages.iter().filter(|message| !message.is_empty()) {
            prop_assert!(hickory_proto::op::Message::from_vec(message).is_ok());
        }
    }

    #[test]
    fn noise_is_no_answer_to_us(packet in any_packet()) {
        let keys = keys();
        let mut request = question("vm.test", Rtype::SOA, None).finish();
        let mut exchange = keys.sign_request(&keys.key(&name("xfr.key.test")).unwrap(), &mut request);
        prop_assert!(exchange.check_answer(&packet).is_err());
    }
}
