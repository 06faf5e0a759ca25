//! Any bytes as a question for a transfer, from who may have it: what is answered can be read, and a secondary that
//! does what it says has the zone as it is.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};

use reveille_core::answer::{Acl, AclEntry, Network, ServiceView, View, ZoneDefaults, Zones};
use reveille_core::model::DomainName;
use reveille_dns::fuzz::answers;

use crate::message::{AA, Message, Rr, TC};
use crate::world::{NOW, peer};

/// Changes that the zone has seen.
const CHANGES: u32 = 6;
const SOA: u16 = 6;
/// `vm.test`, SOA and class.
const APEX: &[u8] = b"\x02vm\x04test\x00";

/// The zone after each of its changes, the newest last.
static VIEWS: LazyLock<Vec<View>> = LazyLock::new(|| {
    let defaults = ZoneDefaults {
        apex: name("vm.test"),
        name_servers: vec![(name("ns1.vm.test"), vec![Ipv4Addr::LOCALHOST.into()])],
        hostmaster: name("hostmaster.vm.test"),
        serial: u32::MAX - 2,
        ttl: 3_600,
        negative_ttl: 30,
    };
    let acl = Acl::new([AclEntry { networks: vec![Network::LOOPBACK4], key: None }]);
    let zone = defaults.zone().expect("a zone").with_transfer(acl);
    let services = (0..40).map(|number| service(number, 0));
    let mut views = vec![View::new(1, Zones::new([Arc::new(zone)]), services, [])];
    for change in 1..=CHANGES {
        // One moves, one comes, one goes.
        let changes = [
            (name_of(change), Some(service(change, change))),
            (name_of(100 + change), Some(service(100 + change, 0))),
            (name_of(20 + change), None),
        ];
        let last = &views[views.len() - 1];
        views.push(last.advanced(last.generation + 1, changes, []));
    }
    views
});

/// The records of the zone after each change, by its serial.
static CONTENTS: LazyLock<Vec<(u32, Vec<Rr>)>> = LazyLock::new(|| {
    let mut question = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend(APEX);
    question.extend([0, 252, 0, 1]);
    let content = |view: &View| {
        let mut records = told(&answers(view, &question, peer(), NOW), &question);
        let last = records.pop().expect("the SOA");
        let serial = serial(&last);
        records.sort();
        (serial, records)
    };
    VIEWS.iter().map(content).collect()
});

fn name(text: &str) -> DomainName {
    text.parse().expect("a name")
}

fn name_of(number: u32) -> DomainName {
    name(&format!("s{number}.vm.test"))
}

fn service(number: u32, moved: u32) -> Arc<ServiceView> {
    let address = Ipv4Addr::from_bits(0x7f40_0000 + 1_000 * moved + number);
    Arc::new(ServiceView::asleep(name_of(number), address))
}

/// The packet of a question.
pub fn run(packet: &[u8]) {
    let newest = &VIEWS[VIEWS.len() - 1];
    let messages = answers(newest, packet, peer(), NOW);
    let [first, ..] = &messages[..] else { return };
    let read = Message::parse(first).unwrap_or_else(|why| panic!("{why}: {packet:02x?}"));
    if read.rcode != 0 || !read.questions.iter().any(|(_, qtype, _)| matches!(qtype, 251 | 252)) {
        assert_eq!(messages.len(), 1, "{packet:02x?}");
        return;
    }
    let records = told(&messages, packet);
    let (serial_now, content_now) = &CONTENTS[CONTENTS.len() - 1];
    let [soa, rest @ .., last] = &records[..] else {
        // Nothing newer than what the asker has.
        assert!(records.len() == 1 && serial(&records[0]) == *serial_now, "{records:?}");
        return;
    };
    assert!(serial(soa) == *serial_now && soa == last, "begins and ends with the SOA: {records:?}");
    let mut content: Vec<Rr> = match rest {
        [from, changes @ ..] if from.rtype == SOA => {
            let known = CONTENTS.iter().find(|(known, _)| *known == serial(from));
            let to = changes.iter().position(|rr| rr.rtype == SOA).expect("what was added");
            let (removed, added) = changes.split_at(to);
            let mut content = known.expect("a serial that there was").1.clone();
            for rr in removed.iter().chain([from]) {
                let at = content.iter().position(|own| own == rr).expect("only what was there is removed");
                content.remove(at);
            }
            content.extend_from_slice(added);
            content
        }
        whole => [std::slice::from_ref(soa), whole].concat(),
    };
    content.sort();
    assert_eq!(content, *content_now, "{packet:02x?}");
}

/// The records of the answer in order, from messages that are as RFC 5936 §2.2 wants them.
fn told(messages: &[Vec<u8>], packet: &[u8]) -> Vec<Rr> {
    let mut records = Vec::new();
    for (index, bytes) in messages.iter().enumerate() {
        let message = Message::in_order(bytes).unwrap_or_else(|why| panic!("{why}: {packet:02x?}"));
        assert_eq!(message.id.to_be_bytes(), packet[..2]);
        assert!(message.rcode == 0 && message.has(AA) && !message.has(TC), "{message:?}");
        assert!(message.questions.len() == 1 || index > 0, "{message:?}");
        assert!(message.authority.is_empty() && message.additional.is_empty(), "{message:?}");
        records.extend(message.answer);
    }
    records
}

fn serial(soa: &Rr) -> u32 {
    assert_eq!(soa.rtype, SOA);
    let numbers = soa.data.len() - 20;
    u32::from_be_bytes(soa.data[numbers..numbers + 4].try_into().expect("four bytes"))
}
