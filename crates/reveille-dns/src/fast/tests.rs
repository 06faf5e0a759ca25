//! The fast way against the general one: the same answer, or none.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::rr::Record as HickoryRecord;
use proptest::prelude::*;
use reveille_core::answer::{Record, Refused, Reply, ServiceView, SignReplies, Signer, View, Zone, Zones};
use reveille_core::model::{AnswerPolicy, DomainName, Phase, Timestamp};

use super::*;
use crate::respond::{Origin, Setting, Transport, respond};

const NOW: Timestamp = Timestamp::from_ms(1_795_000_000_500);

/// Labels of which all names are made, so that questions meet what is there, lie beside it and below it.
const LABELS: [&str; 9] =
    ["a", "b", "svc", "*", "_vmstate", "sub", "zone", "x-1", "a-rather-long-label-of-a-name"];

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn record(owner: &DomainName, rtype: u16, data: Vec<u8>) -> Record {
    Record { owner: owner.clone(), rtype, ttl: 300, data }
}

fn apex_records(apex: &DomainName, far: bool) -> Vec<Record> {
    let (primary, mailbox) = if far {
        (name("ns.far.example"), name("hostmaster.far.example"))
    } else {
        (apex.prepend("ns1").unwrap(), apex.clone())
    };
    vec![
        record(apex, rdata::SOA, rdata::soa(&primary, &mailbox, [7, 3_600, 600, 604_800, 30])),
        record(apex, rdata::NS, primary.as_wire().to_vec()),
    ]
}

/// Leaves what is asked without DO as it is, and makes all else such as the fast way would never.
#[derive(Debug)]
struct Marks;

impl SignReplies for Marks {
    fn sign<'v>(&self, reply: Reply<'v>, asked: &reveille_core::answer::Asked<'_>) -> Reply<'v> {
        if asked.dnssec_ok { Reply { rcode: Rcode::NotImp, ..Reply::empty() } } else { reply }
    }
}

fn any_name(labels: std::ops::Range<usize>) -> impl Strategy<Value = DomainName> {
    prop::collection::vec(prop::sample::select(LABELS.to_vec()), labels).prop_filter_map(
        "no name",
        |labels| {
            let text = labels.iter().map(|label| format!("{label}.")).collect::<String>() + "vm.test";
            text.parse().ok()
        },
    )
}

fn any_service() -> impl Strategy<Value = ServiceView> {
    let phase = prop::sample::select(vec![Phase::Hibernated, Phase::Active, Phase::Warming, Phase::Failed]);
    let six = prop::option::of(Just(Ipv6Addr::LOCALHOST));
    let refused = prop::option::weighted(0.2, -1_000i64..1_000);
    (any_name(1..4), phase, six, any::<bool>(), refused, 0..100u64).prop_map(
        |(name, phase, address6, hold, refused, holds_s)| ServiceView {
            address6,
            phase,
            answer: if hold { AnswerPolicy::Hold } else { AnswerPolicy::Immediate },
            hold_ms_max: 800,
            ttl_s: 60,
            ttl_published_s: 5,
            holds_until: (holds_s > 10).then(|| NOW.plus_ms(holds_s * 1_000)),
            refused: refused.map(|ms| {
                let until = NOW.plus_ms(ms.unsigned_abs() * u64::from(ms > 0));
                Box::new(Refused { until: Some(until), text: "no".to_owned() })
            }),
            ..ServiceView::asleep(name, Ipv4Addr::new(127, 64, 0, 9))
        },
    )
}

/// Zones with static names, a child zone, perhaps delegations and wildcards, perhaps signed; services between them.
fn any_view() -> impl Strategy<Value = View> {
    let texts = prop::collection::vec(any_name(1..4), 0..6);
    let cuts = prop::collection::vec(any_name(1..3), 0..2);
    let services = prop::collection::vec(any_service(), 0..6);
    let aliases = prop::collection::vec((any_name(1..3), any_name(1..3)), 0..2);
    let signed = any::<[bool; 2]>();
    (texts, cuts, services, aliases, any::<bool>(), signed).prop_filter_map(
        "no zone",
        |(texts, cuts, services, aliases, far, signed)| {
            let apex = name("vm.test");
            let mut records = apex_records(&apex, far);
            records.extend(texts.iter().map(|owner| record(owner, rdata::TXT, b"\x01t".to_vec())));
            records
                .extend(cuts.iter().map(|cut| record(cut, rdata::NS, name("ns.example").as_wire().to_vec())));
            records
                .extend(aliases.iter().map(|(owner, to)| record(owner, rdata::CNAME, to.as_wire().to_vec())));
            let services =
                services.into_iter().zip(1..).map(|(service, counter)| ServiceView { counter, ..service });
            let child = name("zone.a.vm.test");
            let zones =
                [Zone::new(apex, &records).ok()?, Zone::new(child.clone(), &apex_records(&child, far)).ok()?];
            let signer = |signed: bool| signed.then(|| Signer::new(Arc::new(Marks)));
            let zones = zones.into_iter().zip(signed).map(|(zone, signed)| zone.with_signer(signer(signed)));
            let zones = Zones::new(zones.map(Arc::new));
            Some(View::new(1, zones, services.map(Arc::new), View::default_monitors()))
        },
    )
}

#[derive(Debug, Clone)]
struct Asked {
    name: DomainName,
    qtype: u16,
    flags: [u8; 2],
    /// Payload size, DO, options.
    edns: Option<(u16, bool, Vec<u8>)>,
    upper: bool,
}

fn any_question() -> impl Strategy<Value = Asked> {
    let outside = Just(name("other.example"));
    let apex = Just(name("vm.test"));
    let qname = prop_oneof![8 => any_name(1..5), 1 => apex, 1 => outside];
    let qtype = prop_oneof![
        4 => Just(rdata::A),
        2 => Just(rdata::AAAA),
        3 => prop::sample::select(vec![0, 2, 5, 6, 12, 15, 16, 33, 41, 43, 46, 47, 48, 64, 65, 251, 252, 255, 257, 65_280]),
    ];
    let subnet = vec![0, 8, 0, 7, 0, 1, 24, 0, 192, 0, 2];
    let options = prop::sample::select(vec![
        vec![],
        subnet,
        vec![0, 12, 0, 2, 0, 0],
        vec![0, 8, 0, 1, 9],
        vec![0, 3, 0],
    ]);
    let edns = prop::option::of((any::<u16>(), any::<bool>(), options));
    let flags = prop_oneof![3 => Just([1, 0]), 1 => (0..8u8, any::<u8>()).prop_map(|(a, b)| [a, b])];
    (qname, qtype, flags, edns, any::<bool>()).prop_map(|(name, qtype, flags, edns, upper)| Asked {
        name,
        qtype,
        flags,
        edns,
        upper,
    })
}

impl Asked {
    fn packet(&self) -> Vec<u8> {
        let mut packet = vec![
            0xab,
            0xcd,
            self.flags[0],
            self.flags[1],
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            u8::from(self.edns.is_some()),
        ];
        let mut wire = self.name.as_wire().to_vec();
        if self.upper {
            wire.make_ascii_uppercase();
        }
        packet.extend(wire);
        packet.extend(self.qtype.to_be_bytes());
        packet.extend([0, 1]);
        if let Some((payload, dnssec_ok, options)) = &self.edns {
            packet.extend([0, 0, 41]);
            packet.extend(payload.to_be_bytes());
            packet.extend([
                0,
                0,
                if *dnssec_ok { 0x80 } else { 0 },
                0,
                0,
                u8::try_from(options.len()).unwrap(),
            ]);
            packet.extend(options);
        }
        packet
    }
}

/// What a message says, whatever the order of its records and the case of its names.
fn said(message: &[u8]) -> (Vec<u8>, Vec<BTreeSet<String>>, String) {
    let parsed = Message::from_vec(message).unwrap();
    let set =
        |records: &[HickoryRecord]| records.iter().map(|record| record.to_string().to_lowercase()).collect();
    let sections = vec![set(parsed.answers()), set(parsed.name_servers()), set(parsed.additionals())];
    let end = end_of_name(message).unwrap().0 + 4;
    let question = [&message[..6], &message[12..end]].concat();
    (question, sections, format!("{:?}", parsed.extensions()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_global_rejects: 100_000, ..ProptestConfig::default() })]

    #[test]
    fn both_ways_answer_alike(
        view in any_view(),
        questions in prop::collection::vec(any_question(), 64),
    ) {
        for asked in questions {
            let packet = asked.packet();
            let peer = IpAddr::from([127, 0, 0, 1]);
            let Some(head) = Head::read(&packet, &view) else { continue };
            let slot = view.names().place(head.hash()).find(head.name(&packet));
            let mut fast = [0; 600];
            let now_s = u32::try_from(NOW.as_ms() / 1_000).unwrap();
            let Some(found) = look(&view, &packet, &head, slot) else { continue };
            let cookie = asked.upper.then_some([7; COOKIE_BYTES]);
            let Some(length) = write(&view, &packet, &head, &found, now_s, cookie, &mut fast) else { continue };
            let mut general = Vec::new();
            let at = Setting { view: &view, now: NOW, judge: None, keys: None };
            let from = Origin { cookie, ..Origin::new((peer, 1).into(), Transport::Udp) };
            let outcome = respond(&at, &packet, &from, &mut general);
            prop_assert_eq!(said(&fast[..length]), said(&general), "{:?}", asked);
            prop_assert_eq!(found.rcode, outcome.written.unwrap().rcode);
            prop_assert_eq!(head.edns().and_then(|edns| edns.subnet), outcome.subnet);
            prop_assert_eq!(found.wakes, outcome.wake.is_some());
            prop_assert_eq!(Some(found.zone), outcome.zone);
            prop_assert_eq!(found.slot.map_or(0, Slot::counter), outcome.counter);
            prop_assert_eq!(outcome.hold_ms_max, None);
            prop_assert_eq!(found.ttl_s(&view, now_s), outcome.ttl_s);
        }
    }
}

/// The fast way must take what it is there for; a test that only compares would not notice if it took nothing.
#[test]
fn ordinary_questions_go_the_fast_way() {
    let apex = name("vm.test");
    let zone = Zone::new(apex.clone(), &apex_records(&apex, false)).unwrap();
    let service = |text: &str, phase| ServiceView {
        phase,
        counter: 1,
        ..ServiceView::asleep(name(text), Ipv4Addr::new(127, 64, 0, 1))
    };
    let services = [service("awake.vm.test", Phase::Active), service("asleep.vm.test", Phase::Hibernated)];
    let signed = zone.clone().with_signer(Some(Signer::new(Arc::new(Marks))));
    let services = services.map(Arc::new);
    let [view, signed] =
        [zone, signed].map(|zone| View::new(1, Zones::new([Arc::new(zone)]), services.clone(), []));
    let cases = [
        ("awake.vm.test", rdata::A, Some((Rcode::NoError, false))),
        ("asleep.vm.test", rdata::A, Some((Rcode::NoError, true))),
        ("asleep.vm.test", rdata::AAAA, Some((Rcode::NoError, false))),
        ("asleep.vm.test", 65, Some((Rcode::NoError, false))),
        ("nothing.vm.test", rdata::A, Some((Rcode::NxDomain, false))),
        ("a.b.c.d.e.f.g.vm.test", rdata::A, Some((Rcode::NxDomain, false))),
        ("vm.test", rdata::SOA, None),
        ("_vmstate.awake.vm.test", rdata::TXT, None),
        ("elsewhere.example", rdata::A, None),
        ("awake.vm.test", rdata::ANY, None),
    ];
    for (qname, qtype, expected) in cases {
        let options = vec![0, 12, 0, 1, 0];
        for (view, edns, is_taken) in [
            (&view, None, true),
            (&view, Some((1_232, true, options.clone())), true),
            (&signed, None, true),
            (&signed, Some((1_232, false, options.clone())), true),
            (&signed, Some((1_232, true, options)), false),
        ] {
            let packet = Asked { name: name(qname), qtype, flags: [1, 0], edns, upper: true }.packet();
            let head = Head::read(&packet, view);
            let found = head.and_then(|head| {
                let slot = view.names().place(head.hash()).find(head.name(&packet));
                let found = look(view, &packet, &head, slot)?;
                write(view, &packet, &head, &found, 0, None, &mut [0; 600])?;
                Some(found)
            });
            let expected = expected.filter(|_| is_taken);
            assert_eq!(found.map(|found| (found.rcode, found.wakes)), expected, "{qname} {qtype}");
        }
    }
}
