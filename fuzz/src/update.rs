//! Any bytes as a row of UPDATE messages, each with its length before it, from who may change everything: what is
//! made leaves a zone that a file could have given, that has its services' names untouched, and that a restart finds
//! again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use reveille_core::answer::{ServiceView, View, Zone, Zones, rdata};
use reveille_core::model::DomainName;
use reveille_dns::update::{Grant, Request, SetChange, StaticBook, UpdateMessage, lay_over};
use reveille_dns::zonefile;

use crate::zonefile::written;

/// Most messages of an input.
const MESSAGES_MAX: usize = 8;
const FILE: &str = "\
@ 300 SOA ns1 hostmaster 7 3600 600 604800 60
@ 300 NS ns1
ns1 300 A 192.0.2.1
www 300 A 192.0.2.80
www 300 TXT text
alias 300 CNAME www
*.wild 300 MX 10 www
sub 300 NS ns.sub
ns.sub 300 A 192.0.2.3
";

static APEX: LazyLock<DomainName> = LazyLock::new(|| name("vm.test"));
static KEY: LazyLock<DomainName> = LazyLock::new(|| name("key.test"));
static SERVICE: LazyLock<DomainName> = LazyLock::new(|| name("hello.vm.test"));
static START: LazyLock<Arc<Zone>> =
    LazyLock::new(|| Arc::new(zonefile::parse("f", FILE, &APEX).expect("a zone")));

fn name(text: &str) -> DomainName {
    text.parse().expect("a name")
}

/// Length, message, length, message.
pub fn run(mut data: &[u8]) {
    let service = ServiceView::asleep(SERVICE.clone(), Ipv4Addr::new(127, 64, 0, 1));
    let zones = Zones::new([Arc::clone(&START)]);
    let mut view = View::new(1, zones, [Arc::new(service)], View::default_monitors());
    let everything = Grant { key: KEY.clone(), networks: vec![], names: vec![], types: vec![] };
    let mut book = StaticBook::default();
    book.open_page(Arc::clone(&START), vec![everything], []);
    let mut rows: BTreeMap<(DomainName, u16), SetChange> = BTreeMap::new();
    for _ in 0..MESSAGES_MAX {
        let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
        let (packet, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        data = rest;
        let Some(message) = UpdateMessage::parse(packet) else { continue };
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let verdicts = book.judge(&view, [Request { message: &message, key: &KEY, client }]);
        let [answer] = &verdicts.answers[..] else { panic!("one answer to one update") };
        assert!(answer.is_ok() || verdicts.changed.is_empty(), "refused and made: {message:?}");
        book.commit(&verdicts.changed);
        for changed in verdicts.changed {
            view = view.advanced(view.generation + 1, [], [changed.edit]);
            for (key, row) in changed.rows {
                match row {
                    Some(row) => rows.insert(key, row),
                    None => rows.remove(&key),
                };
            }
        }
        holds(view.zones().with_apex(&APEX).expect("the zone"), &rows);
    }
}

fn holds(zone: &Zone, rows: &BTreeMap<(DomainName, u16), SetChange>) {
    let text = written(zone);
    let from_file = zonefile::parse("f", &text, &APEX).unwrap_or_else(|faults| panic!("{faults:?}: {text}"));
    assert_eq!(written(&from_file), text, "as a file could have given it");
    let own = zone.node(&SERVICE);
    for rtype in [rdata::A, rdata::AAAA, rdata::CNAME] {
        assert!(own.is_none_or(|node| node.set(rtype).is_none()), "the service's own: {text}");
    }
    let (again, aside) = lay_over(Arc::clone(&START), rows.values().cloned().collect(), |_| None);
    assert!(aside.is_empty(), "{aside:?}");
    let records = |zone: &Zone| {
        let mut lines: Vec<String> = written(zone).lines().map(str::to_owned).collect();
        // The serial is kept elsewhere, and the order in an RRset is nobody's.
        lines.retain(|line| !line.contains(" TYPE6 "));
        lines.sort();
        lines
    };
    assert_eq!(records(&again), records(zone), "after a restart");
}
