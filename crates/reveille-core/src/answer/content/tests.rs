use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super::acl::Acl;
use super::super::network::Network;
use super::super::rdata::{MX, NS, TXT};
use super::super::view::Zones;
use super::super::zone::{ZoneDefaults, is_newer_serial, serial_after};
use super::*;
use crate::model::{Phase, VmState};

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn service(text: &str, last: u8) -> ServiceView {
    ServiceView::asleep(name(text), Ipv4Addr::new(127, 64, 0, last))
}

fn record(owner: &str, rtype: u16, data: &[u8]) -> Record {
    Record { owner: name(owner), rtype, ttl: 300, data: data.to_vec() }
}

fn zone(apex: &str, more: &[Record]) -> Zone {
    let defaults = ZoneDefaults {
        apex: name(apex),
        name_servers: vec![(name(&format!("ns1.{apex}")), vec![])],
        hostmaster: name("hostmaster.test"),
        serial: 1,
        ttl: 3_600,
        negative_ttl: 30,
    };
    let records = [defaults.records(), more.to_vec()].concat();
    Zone::new(name(apex), &records).unwrap().with_transfer(vec![Network::LOOPBACK4].into())
}

fn view(zones: impl IntoIterator<Item = Zone>, services: impl IntoIterator<Item = ServiceView>) -> View {
    View::new(1, Zones::new(zones.into_iter().map(Arc::new)), services.into_iter().map(Arc::new), vec![])
}

fn at(view: &View, apex: &str) -> u16 {
    view.zones().find(&name(apex)).unwrap()
}

fn of(view: &View, apex: &str) -> Arc<Zone> {
    Arc::clone(view.zones().at(at(view, apex)).unwrap())
}

/// `owner type data` of each record, sorted, addresses as such.
fn content(view: &View, apex: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        view.content(at(view, apex)).flat_map(|set| records_of(&set)).map(|r| line(&r)).collect();
    lines.sort();
    lines
}

fn records_of(set: &Records<'_>) -> Vec<Record> {
    let Owner::Name(owner) = set.owner else { panic!("content has names") };
    let owner = DomainName::from_wire(owner).unwrap();
    let (rtype, ttl) = (set.rtype, set.ttl);
    set.iter().map(|data| Record { owner: owner.clone(), rtype, ttl, data: data.to_vec() }).collect()
}

fn line(record: &Record) -> String {
    let data = match record.rtype {
        A => Ipv4Addr::from(<[u8; 4]>::try_from(&record.data[..]).unwrap()).to_string(),
        AAAA => Ipv6Addr::from(<[u8; 16]>::try_from(&record.data[..]).unwrap()).to_string(),
        _ => String::from_utf8_lossy(&record.data).into_owned(),
    };
    format!("{} {} {} {data}", record.owner, record.ttl, record.rtype)
}

#[test]
fn content_is_what_others_may_answer_with() {
    let mut six = service("six.vm.test", 2);
    six.address6 = Some(Ipv6Addr::LOCALHOST);
    let zone_records = [
        record("hello.vm.test", TXT, b"\x01t"),
        record("hello.vm.test", A, &[192, 0, 2, 1]),
        record("_vmstate.hello.vm.test", TXT, b"\x01s"),
        record("_vmstate.vm.test", TXT, b"\x01k"),
        record("sub.vm.test", NS, name("ns.elsewhere.test").as_wire()),
        record("mail.sub.vm.test", A, &[192, 0, 2, 2]),
    ];
    let inner = zone("in.vm.test", &[]);
    let services = [
        service("hello.vm.test", 1),
        six,
        service("x.sub.vm.test", 3),
        service("a.in.vm.test", 4),
        service("*.w.vm.test", 5),
    ];
    let view = view([zone("vm.test", &zone_records), inner], services);
    let ns = String::from_utf8_lossy(name("ns1.vm.test").as_wire()).into_owned();
    let elsewhere = String::from_utf8_lossy(name("ns.elsewhere.test").as_wire()).into_owned();
    assert_eq!(
        content(&view, "vm.test"),
        [
            "*.w.vm.test 5 1 127.64.0.5".to_owned(),
            "_vmstate.vm.test 300 16 \u{1}k".to_owned(),
            "hello.vm.test 300 16 \u{1}t".to_owned(),
            "hello.vm.test 5 1 127.64.0.1".to_owned(),
            "mail.sub.vm.test 300 1 192.0.2.2".to_owned(),
            "six.vm.test 5 1 127.64.0.2".to_owned(),
            "six.vm.test 5 28 ::1".to_owned(),
            format!("sub.vm.test 300 2 {elsewhere}"),
            format!("vm.test 3600 2 {ns}"),
        ]
    );
    assert_eq!(content(&view, "in.vm.test").len(), 2);
}

#[test]
fn the_serial_rises_by_what_others_see_and_by_nothing_else() {
    let before = view([zone("vm.test", &[]), zone("other.test", &[])], [service("a.vm.test", 1)]);
    let mut awake = service("a.vm.test", 1);
    (awake.phase, awake.state, awake.ttl_s) = (Phase::Active, VmState::Active, 60);
    let next = before.advanced(2, [(awake.name.clone(), Some(Arc::new(awake)))], []);
    assert_eq!((next.generation, of(&next, "vm.test").serial()), (2, 1));
    assert!(next.zones().is_same(before.zones()), "waking changes no zone");
    // Several changes at once are one serial; a zone that has no part in it stays.
    let moved = service("a.vm.test", 9);
    let changes = [
        (moved.name.clone(), Some(Arc::new(moved))),
        (name("b.vm.test"), Some(Arc::new(service("b.vm.test", 2)))),
        (name("never.vm.test"), None),
    ];
    let next = next.advanced(3, changes, []);
    let zone = of(&next, "vm.test");
    assert_eq!((zone.serial(), of(&next, "other.test").serial()), (2, 1));
    assert_eq!(
        zone.node(zone.apex()).unwrap().set(SOA),
        Some(zone.soa()),
        "one SOA wherever it is asked for"
    );
    assert_eq!(rdata_serial(&zone), 2);
    let [difference] = zone.history().since(1).unwrap() else { panic!("one difference") };
    assert_eq!(difference.removed.iter().map(line).collect::<Vec<_>>(), ["a.vm.test 5 1 127.64.0.1"]);
    let added: Vec<String> = difference.added.iter().map(line).collect();
    assert_eq!(added, ["a.vm.test 5 1 127.64.0.9", "b.vm.test 5 1 127.64.0.2"]);
    assert_eq!((difference.from.0, difference.to.0), (1, 2));
    assert!(zone.history().since(2).is_none() && zone.history().since(7).is_none());
    // What only looks like a change is none.
    let same = next.advanced(4, [(name("b.vm.test"), Some(Arc::new(service("b.vm.test", 2))))], []);
    assert_eq!(of(&same, "vm.test").serial(), 2);
    // Nobody may transfer it: nobody needs its history.
    let closed = Zone::clone(&zone).with_transfer(Acl::default()).with_serial(7);
    let closed =
        view([closed], []).advanced(2, [(name("c.vm.test"), Some(Arc::new(service("c.vm.test", 3))))], []);
    assert_eq!(of(&closed, "vm.test").serial(), 8);
    assert!(of(&closed, "vm.test").history().since(7).is_none());
}

fn rdata_serial(zone: &Zone) -> u32 {
    super::super::rdata::soa_numbers(&zone.soa().data[0]).unwrap().0
}

#[test]
fn static_changes_take_part_and_keep_the_lineage() {
    let first = view([zone("vm.test", &[])], [service("a.sub.vm.test", 1), service("b.vm.test", 2)]);
    let first = first.advanced(2, [(name("b.vm.test"), None)], []);
    // Made from the zone file: it knows neither serial nor history. Its new delegation hides a service.
    let edited = zone(
        "vm.test",
        &[record("sub.vm.test", NS, name("ns.test").as_wire()), record("m.vm.test", MX, b"\0\x01\0")],
    );
    let names = vec![name("sub.vm.test"), name("m.vm.test")];
    let next = first.advanced(3, [], [ZoneEdit { zone: Arc::new(edited), names }]);
    let after = of(&next, "vm.test");
    assert_eq!(after.serial(), 3);
    let differences = after.history().since(1).unwrap();
    assert_eq!(differences.iter().map(|difference| difference.to.0).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(differences[1].removed.iter().map(line).collect::<Vec<_>>(), ["a.sub.vm.test 5 1 127.64.0.1"]);
    assert_eq!(differences[1].added.len(), 2);
    // And when it goes, the service is there again.
    let edit = ZoneEdit {
        zone: Arc::new(zone("vm.test", &[])),
        names: vec![name("sub.vm.test"), name("m.vm.test")],
    };
    let next = next.advanced(4, [], [edit]);
    assert_eq!(content(&next, "vm.test"), content(&first, "vm.test"));
    assert_eq!(of(&next, "vm.test").history().since(3).unwrap()[0].added.len(), 1);
}

#[test]
fn the_history_is_bounded_in_number_and_bytes() {
    let mut now = view([zone("vm.test", &[])], []);
    for round in 0..=HISTORY_DIFFERENCES_MAX as u64 {
        let last = u8::try_from(round % 250).unwrap();
        now = now.advanced(round, [(name("a.vm.test"), Some(Arc::new(service("a.vm.test", last))))], []);
    }
    let zone_now = of(&now, "vm.test");
    assert!(zone_now.history().since(1).is_none(), "the oldest went");
    assert_eq!(zone_now.history().since(2).unwrap().len(), HISTORY_DIFFERENCES_MAX);
    // A large difference pushes out all that do not fit beside it; one that is too large leaves none.
    let large = |records: usize| {
        let data = [0; 1_000];
        let many: Vec<Record> =
            (0..records).map(|n| record(&format!("n{n}.vm.test"), 65_300, &data)).collect();
        let names = many.iter().map(|record| record.owner.clone()).collect();
        ZoneEdit { zone: Arc::new(zone("vm.test", &many)), names }
    };
    let half = now.advanced(5_000, [], [large(2_000)]);
    let history = of(&half, "vm.test").history().clone();
    assert!(history.since(3).is_some() && history.bytes <= HISTORY_BYTES_MAX);
    let more = half.advanced(5_001, [], [ZoneEdit { zone: Arc::new(zone("vm.test", &[])), ..large(2_000) }]);
    assert!(of(&more, "vm.test").history().since(zone_now.serial()).is_none());
    assert_eq!(of(&more, "vm.test").history().since(zone_now.serial() + 1).unwrap().len(), 1);
    let huge = more.advanced(5_002, [], [large(4_500)]);
    assert!(of(&huge, "vm.test").history().since(of(&more, "vm.test").serial()).is_none());
    assert_eq!(of(&huge, "vm.test").history().bytes, 0);
}

#[test]
fn a_new_serial_shares_the_zone() {
    let records: Vec<Record> = (0..100).map(|n| record(&format!("n{n}.vm.test"), TXT, b"\x01x")).collect();
    let before = view([zone("vm.test", &records)], []);
    let after = before.advanced(2, [(name("a.vm.test"), Some(Arc::new(service("a.vm.test", 1))))], []);
    let place =
        |view: &View| std::ptr::from_ref(of(view, "vm.test").node(&name("n7.vm.test")).unwrap()).addr();
    assert_eq!(place(&before), place(&after));
}

#[test]
fn serials_are_on_a_circle() {
    assert_eq!((serial_after(7), serial_after(u32::MAX)), (8, 1));
    for (serial, than, newer) in [
        (2, 1, true),
        (1, 2, false),
        (1, 1, false),
        (1, u32::MAX, true),
        (u32::MAX, 1, false),
        (1 << 31, 0, false),
        (0, 1 << 31, false),
        ((1 << 31) - 1, 0, true),
    ] {
        assert_eq!(is_newer_serial(serial, than), newer, "{serial} {than}");
    }
}

/// One step of a random life.
#[derive(Debug, Clone)]
enum Step {
    Services(Vec<(u8, Option<u8>)>),
    Static(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let service = (0..12u8, proptest::option::of(0..4u8));
    prop_oneof![
        3 => proptest::collection::vec(service, 1..4).prop_map(Step::Services),
        1 => proptest::collection::vec(0..12u8, 0..6).prop_map(Step::Static),
    ]
}

/// Static records at the names of services, at their `_vmstate`, and delegations above some of them.
fn static_records(numbers: &[u8]) -> Vec<Record> {
    let at = |n: &u8| match n {
        0..3 => record(&format!("s{n}.vm.test"), TXT, b"\x01t"),
        3..6 => record(&format!("_vmstate.s{n}.vm.test"), TXT, b"\x01v"),
        6..9 => record(&format!("s{n}.vm.test"), A, &[192, 0, 2, *n]),
        _ => record(&format!("d{n}.vm.test"), NS, name("ns.test").as_wire()),
    };
    numbers.iter().map(at).collect()
}

/// What each name is, and how many names are below it.
fn kinds(view: &View) -> BTreeMap<Vec<u8>, (Kinds, u32)> {
    view.names().iter().map(|slot| (slot.name().to_vec(), (slot.kinds(), slot.below()))).collect()
}

fn made_anew(view: &View) -> View {
    View::new(view.generation, view.zones().clone(), view.services().cloned(), vec![])
}

fn service_name(n: u8) -> String {
    if n < 9 { format!("s{n}.vm.test") } else { format!("x.d{n}.vm.test") }
}

proptest! {
    #[test]
    fn whoever_applies_the_differences_has_the_content(steps in proptest::collection::vec(step(), 1..30)) {
        let mut now = view([zone("vm.test", &[])], []);
        let mut seen: Vec<(u32, Vec<String>)> = vec![(1, content(&now, "vm.test"))];
        let mut fixed: Vec<u8> = Vec::new();
        for (round, step) in steps.into_iter().enumerate() {
            let generation = round as u64 + 2;
            now = match step {
                Step::Services(changes) => {
                    let seen = |(n, address): (u8, Option<u8>)| {
                        let text = service_name(n);
                        (name(&text), address.map(|address| Arc::new(service(&text, address))))
                    };
                    now.advanced(generation, changes.into_iter().map(seen), [])
                }
                Step::Static(numbers) => {
                    let names = static_records(&fixed).into_iter().chain(static_records(&numbers));
                    let names = names.map(|record| record.owner).collect();
                    let zone = Arc::new(zone("vm.test", &static_records(&numbers)));
                    fixed = numbers;
                    now.advanced(generation, [], [ZoneEdit { zone, names }])
                }
            };
            prop_assert_eq!(kinds(&now), kinds(&made_anew(&now)));
            let serial = of(&now, "vm.test").serial();
            let (last, before) = seen.last().unwrap();
            let is = content(&now, "vm.test");
            prop_assert_eq!(serial == *last, *before == is, "a serial for a change, and for nothing else");
            if serial != *last {
                seen.push((serial, is));
            }
        }
        let last = content(&now, "vm.test");
        for (serial, mut copy) in seen.clone() {
            let zone = of(&now, "vm.test");
            for difference in zone.history().since(serial).unwrap_or_default() {
                for record in &difference.removed {
                    let place = copy.iter().position(|other| *other == line(record));
                    copy.remove(place.expect("only what is there is removed"));
                }
                copy.extend(difference.added.iter().map(line));
            }
            copy.sort();
            prop_assert_eq!(&copy, &last, "from {}", serial);
        }
        for (serial, mut copy) in seen {
            let zone = of(&now, "vm.test");
            let Some(condensed) = zone.history().condensed_since(serial) else { continue };
            for record in &condensed.removed {
                let place = copy.iter().position(|other| *other == line(record));
                copy.remove(place.expect("only what is there is removed"));
            }
            copy.extend(condensed.added.iter().map(|record| line(record)));
            copy.sort();
            prop_assert_eq!(&copy, &last, "condensed from {}", serial);
            prop_assert!(condensed.added.iter().all(|record| !condensed.removed.contains(record)));
        }
    }
}

// --- Other zones -------------------------------------------------------------------------------------------------

/// The view after a reload that brings these zones.
fn rezoned(view: &View, zones: impl IntoIterator<Item = Zone>) -> View {
    view.rezoned(view.generation + 1, zones.into_iter().map(Arc::new), vec![])
}

/// From serial, to serial, `-`what went and `+`what came.
fn last_step(view: &View, apex: &str) -> (u32, u32, Vec<String>) {
    let zone = of(view, apex);
    let last = zone.history().differences.last().unwrap();
    let removed = last.removed.iter().map(|record| format!("-{}", line(record)));
    let added = last.added.iter().map(|record| format!("+{}", line(record)));
    (last.from.0, last.to.0, removed.chain(added).collect())
}

#[test]
fn a_zone_that_comes_again_goes_on_and_what_differs_is_one_step() {
    let www = record("www.vm.test", A, &[192, 0, 2, 1]);
    let first = view([zone("vm.test", std::slice::from_ref(&www))], [service("s.vm.test", 1)]);
    let first = first.advanced(2, [(name("t.vm.test"), Some(Arc::new(service("t.vm.test", 2))))], []);
    assert_eq!(of(&first, "vm.test").serial(), 2);

    let same = rezoned(&first, [zone("vm.test", std::slice::from_ref(&www))]);
    assert_eq!(*of(&same, "vm.test"), *of(&first, "vm.test"));

    let moved = record("www.vm.test", A, &[192, 0, 2, 2]);
    let next = rezoned(&same, [zone("vm.test", &[moved, record("new.vm.test", TXT, b"\x01x")])]);
    let (from, to, step) = last_step(&next, "vm.test");
    assert_eq!((from, to, step.len()), (2, 3, 3), "{step:?}");
    assert!(
        step.iter().all(|line| line.contains("www.vm.test") || line.contains("+new.vm.test")),
        "{step:?}"
    );
    let history = of(&next, "vm.test");
    assert_eq!(
        history.history().since(1).map(<[_]>::len),
        Some(2),
        "secondaries go on from before the reload"
    );
    assert_eq!(content(&next, "vm.test").len(), 5);
    let gone = rezoned(&next, [zone("vm.test", &[])]);
    assert!(gone.names().find(name("new.vm.test").as_wire()).is_none());
    assert!(gone.service(&name("t.vm.test")).is_some());
}

#[test]
fn a_newer_serial_and_other_timers_are_news_by_themselves() {
    let first = view([zone("vm.test", &[])], []);
    let renumbered = rezoned(&first, [zone("vm.test", &[]).with_serial(2_026)]);
    assert_eq!(last_step(&renumbered, "vm.test"), (1, 2_026, vec![]));
    let older = rezoned(&renumbered, [zone("vm.test", &[]).with_serial(7)]);
    assert_eq!(of(&older, "vm.test").serial(), 2_026);
    let hostmaster = name("hostmaster.test");
    let ns = (name("ns1.vm.test"), vec![]);
    let slow = ZoneDefaults {
        apex: name("vm.test"),
        name_servers: vec![ns],
        hostmaster,
        serial: 1,
        ttl: 3_600,
        negative_ttl: 31,
    };
    let acl: Acl = vec![Network::LOOPBACK4].into();
    let slow = rezoned(&older, [slow.zone().unwrap().with_transfer(acl)]);
    assert_eq!(last_step(&slow, "vm.test"), (2_026, 2_027, vec![]));
}

proptest! {
    /// Zones beside and below come and go, with other records and delegations in the same reload.
    #[test]
    fn what_zones_that_come_and_go_leave_is_told_in_differences(
        rounds in proptest::collection::vec((proptest::collection::vec(0..12u8, 0..6), any::<[bool; 2]>()), 1..8),
    ) {
        let services = (0..12).map(|n| service(&service_name(n), n));
        let mut now = view([zone("vm.test", &[])], services);
        for (numbers, [beside, below]) in rounds {
            let mut zones = vec![zone("vm.test", &static_records(&numbers))];
            // The first of all, so that all others have another number.
            zones.extend(beside.then(|| zone("a.test", &[])));
            zones.extend(below.then(|| zone("d9.vm.test", &[])));
            let (serial, mut copy) = (of(&now, "vm.test").serial(), content(&now, "vm.test"));
            let next = rezoned(&now, zones);
            let is = content(&next, "vm.test");
            prop_assert_eq!(of(&next, "vm.test").serial() == serial, copy == is);
            if copy != is {
                let zone = of(&next, "vm.test");
                let last = zone.history().differences.last().unwrap();
                for record in &last.removed {
                    let place = copy.iter().position(|other| *other == line(record));
                    copy.remove(place.expect("only what is there is removed"));
                }
                copy.extend(last.added.iter().map(line));
                copy.sort();
                prop_assert_eq!(copy, is);
            }
            prop_assert_eq!(kinds(&next), kinds(&made_anew(&next)));
            now = next;
        }
    }
}

#[test]
fn a_zone_that_comes_below_another_takes_its_services_along() {
    let first = view([zone("vm.test", &[])], [service("s.sub.vm.test", 1), service("t.vm.test", 2)]);
    let both = rezoned(&first, [zone("vm.test", &[]), zone("sub.vm.test", &[])]);
    let (from, to, step) = last_step(&both, "vm.test");
    assert_eq!((from, to, step.len()), (1, 2, 1), "{step:?}");
    assert!(content(&both, "sub.vm.test").iter().any(|line| line.contains("s.sub.vm.test")));
    assert_eq!(of(&both, "sub.vm.test").serial(), 1);
    let back = rezoned(&both, [zone("vm.test", &[])]);
    assert_eq!(content(&back, "vm.test"), content(&first, "vm.test"));
    assert_eq!(of(&back, "vm.test").serial(), 3);
    // Without any zone the services stay, and are nobody's.
    let none = rezoned(&back, []);
    assert_eq!((none.zones().iter().count(), none.services().count()), (0, 2));
}

#[test]
fn steps_that_nobody_may_have_leave_no_gap() {
    let txt = |text: &[u8]| [record("a.vm.test", TXT, text)];
    let first = view([zone("vm.test", &[])], []);
    let second = rezoned(&first, [zone("vm.test", &txt(b"\x011"))]);
    let closed = rezoned(&second, [zone("vm.test", &txt(b"\x012")).with_transfer(Acl::default())]);
    assert_eq!(of(&closed, "vm.test").serial(), 3);
    let open = rezoned(&closed, [zone("vm.test", &txt(b"\x013"))]);
    let zone = of(&open, "vm.test");
    assert_eq!(
        (zone.serial(), zone.history().since(1), zone.history().since(3).map(<[_]>::len)),
        (4, None, Some(1))
    );
}
