//! Updates as stories: what a client says, in the words of nsupdate, and what becomes of the zone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use reveille_core::answer::{Question, QuestionName, Record, ServiceView, View, Zone, Zones, rdata};
use reveille_core::model::DomainName;

use super::*;
use crate::wire::{Header, Query};
use crate::zonefile;

mod aside;
mod desk;
mod wire;

const FILE: &str = "\
@ 300 SOA ns1 hostmaster 7 3600 600 604800 60
@ 300 NS ns1
@ 300 MX 10 mail
ns1 300 A 192.0.2.1
mail 300 A 192.0.2.2
www 300 A 192.0.2.80
www 300 A 192.0.2.81
www 300 TXT \"two words\"
alias 300 CNAME www
sub 300 NS ns.sub
ns.sub 300 A 192.0.2.3
";
const KEY: &str = "key.test";

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

/// `www` and `www.vm.test.`; `@` is the apex.
fn in_zone(text: &str) -> DomainName {
    match text.strip_suffix('.') {
        Some(whole) => name(whole),
        None if text == "@" => name("vm.test"),
        None => name(&format!("{text}.vm.test")),
    }
}

fn file() -> Zone {
    zonefile::parse("vm.test.zone", FILE, &name("vm.test")).unwrap()
}

fn view_of(zone: Zone) -> View {
    let service = ServiceView::asleep(name("hello.vm.test"), Ipv4Addr::new(127, 64, 0, 1));
    View::new(1, Zones::new([Arc::new(zone)]), [Arc::new(service)], View::default_monitors())
}

fn type_number(word: &str) -> u16 {
    word.parse::<domain::base::iana::Rtype>().unwrap().to_int()
}

/// The data of a record, read by the reader of zone files.
fn data(rtype: &str, text: &str) -> Vec<u8> {
    // Refused in zone files, and of the same shape as an alias.
    let rtype = if rtype == "DNAME" { "CNAME" } else { rtype };
    let (owner, soa) = if rtype == "SOA" { ("@", "") } else { ("record", "@ 1 SOA a b 1 1 1 1 1\n") };
    let text = format!("$ORIGIN vm.test.\n{soa}@ 1 NS a\n{owner} 1 {rtype} {text}\n");
    let zone = zonefile::parse("data", &text, &name("vm.test")).unwrap();
    zone.node(&in_zone(owner)).unwrap().set(type_number(rtype)).unwrap().data[0].to_vec()
}

/// `TYPE data…`, the data optional.
fn typed(words: &str) -> (u16, Option<Vec<u8>>) {
    let (rtype, text) = words.split_once(' ').unwrap_or((words, ""));
    (type_number(rtype), (!text.is_empty()).then(|| data(rtype, text)))
}

fn edit(text: &str) -> Edit {
    let (verb, rest) = text.split_once(' ').unwrap();
    let (owner, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let owner = in_zone(owner);
    match verb {
        "add" => {
            let (ttl, rest) = rest.split_once(' ').unwrap();
            let (rtype, data) = typed(rest);
            Edit::Add(Record { owner, rtype, ttl: ttl.parse().unwrap(), data: data.unwrap() })
        }
        "delete" if rest.is_empty() => Edit::DropName(owner),
        "delete" => match typed(rest) {
            (rtype, None) => Edit::DropSet(owner, rtype),
            (rtype, Some(data)) => Edit::DropRecord { owner, rtype, data },
        },
        _ => panic!("{verb}"),
    }
}

fn prerequisite(text: &str) -> Prerequisite {
    let (verb, rest) = text.split_once(' ').unwrap();
    let (owner, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let owner = in_zone(owner);
    match verb {
        "yxdomain" => Prerequisite::NameInUse(owner),
        "nxdomain" => Prerequisite::NameNotInUse(owner),
        "nxrrset" => Prerequisite::SetAbsent(owner, type_number(rest)),
        "yxrrset" => match typed(rest) {
            (rtype, None) => Prerequisite::SetExists(owner, rtype),
            (rtype, Some(data)) => Prerequisite::Record { owner, rtype, data },
        },
        _ => panic!("{verb}"),
    }
}

fn message(prerequisites: &[&str], edits: &[&str]) -> UpdateMessage {
    let question = Question { name: QuestionName::from(&name("vm.test")), qtype: rdata::SOA, qclass: 1 };
    let header = Header { id: 1, opcode: 5, recursion_desired: false };
    UpdateMessage {
        query: Query { header, question, edns: None, soa_serial: None, signature: None },
        prerequisites: prerequisites.iter().map(|text| prerequisite(text)).collect(),
        edits: edits.iter().map(|text| edit(text)).collect(),
    }
}

fn everything() -> Grant {
    Grant { key: name(KEY), networks: Vec::new(), names: Vec::new(), types: Vec::new() }
}

fn request(message: &UpdateMessage) -> Request<'_> {
    // Leaked: a name for the length of the tests.
    let key = Box::leak(Box::new(name(KEY)));
    Request { message, key, client: IpAddr::from([127, 0, 0, 1]) }
}

/// A line for each record, without the SOA.
fn lines(zone: &Zone) -> Vec<String> {
    let mut lines = Vec::new();
    for node in zone.nodes() {
        for (rtype, set) in node.sets().filter(|(rtype, _)| *rtype != rdata::SOA) {
            for data in &set.data {
                let hex: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
                lines.push(format!("{} {} {} {hex}", node.owner(), set.ttl, rdata::type_word(rtype)));
            }
        }
    }
    lines.sort();
    lines
}

struct Bench {
    view: View,
    book: StaticBook,
    rows: BTreeMap<(DomainName, u16), SetChange>,
}

impl Bench {
    fn new() -> Self {
        Self::granting(vec![everything()])
    }

    fn granting(grants: Vec<Grant>) -> Self {
        let mut book = StaticBook::default();
        book.open_page(Arc::new(file()), grants, []);
        Self { view: view_of(file()), book, rows: BTreeMap::new() }
    }

    fn zone(&self) -> &Arc<Zone> {
        self.view.zones().with_apex(&name("vm.test")).unwrap()
    }

    /// Makes the updates as one group; the answers, `NOERROR` for those that were made.
    fn group(&mut self, messages: &[UpdateMessage]) -> Vec<String> {
        let verdicts = self.book.judge(&self.view, messages.iter().map(request));
        self.book.commit(&verdicts.changed);
        for changed in verdicts.changed {
            let serial = self.zone().serial();
            self.view = self.view.advanced(self.view.generation + 1, [], [changed.edit]);
            assert_eq!(self.zone().serial(), serial + 1, "published for nothing");
            for (key, row) in changed.rows {
                match row {
                    Some(row) => self.rows.insert(key, row),
                    None => self.rows.remove(&key),
                };
            }
        }
        // What a restart would make of the rows is what is served now.
        let (again, aside) = lay_over(Arc::new(file()), self.rows.values().cloned().collect(), |_| None);
        assert_eq!((lines(&again), aside), (lines(self.zone()), Vec::new()));
        verdicts
            .answers
            .into_iter()
            .map(|answer| answer.err().map_or("NOERROR".into(), |no| no.to_string()))
            .collect()
    }

    fn send(&mut self, prerequisites: &[&str], edits: &[&str]) -> String {
        self.group(&[message(prerequisites, edits)]).remove(0)
    }

    /// What the zone has more (`+`) and less (`-`) than its file.
    fn difference(&self) -> Vec<String> {
        let (file, now) = (lines(&file()), lines(self.zone()));
        let gone = file.iter().filter(|line| !now.contains(line)).map(|line| format!("- {line}"));
        let new = now.iter().filter(|line| !file.contains(line)).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }
}

// --- Changes (RFC 2136 §3.4.2) -----------------------------------------------------------------------------------

#[test]
fn records_are_added_and_removed_in_every_way() {
    let mut bench = Bench::new();
    for (edits, difference) in [
        (&["add new 60 A 192.0.2.9"][..], &["+ new.vm.test 60 A c0000209"][..]),
        (&["add new 60 A 192.0.2.10"], &["+ new.vm.test 60 A c0000209", "+ new.vm.test 60 A c000020a"]),
        // The whole RRset has the TTL of what was added last.
        (&["add new 90 A 192.0.2.9"], &["+ new.vm.test 90 A c0000209", "+ new.vm.test 90 A c000020a"]),
        (&["delete new A 192.0.2.9"], &["+ new.vm.test 90 A c000020a"]),
        (&["delete new A"], &[]),
        (&["delete www A 192.0.2.80"], &["- www.vm.test 300 A c0000250"]),
        (
            &["delete www"],
            &[
                "- www.vm.test 300 A c0000250",
                "- www.vm.test 300 A c0000251",
                "- www.vm.test 300 TXT 0974776f20776f726473",
            ],
        ),
        (&["add www 300 A 192.0.2.81", "add www 300 A 192.0.2.80", "add www 300 TXT \"two words\""], &[]),
        // In the order of the message.
        (
            &[
                "delete www",
                "add www 300 TXT again",
                "delete www TXT again",
                "add www 300 A 192.0.2.80",
                "add www 300 A 192.0.2.81",
                "add www 300 TXT \"two words\"",
            ],
            &[],
        ),
    ] {
        assert_eq!(bench.send(&[], edits), "NOERROR", "{edits:?}");
        assert_eq!(bench.difference(), difference, "{edits:?}");
    }
    assert!(bench.rows.is_empty(), "what is as in the file again needs no row: {:?}", bench.rows);
}

#[test]
fn what_is_so_already_changes_nothing() {
    let mut bench = Bench::new();
    let before = bench.view.generation;
    for edits in [
        &["add www 300 A 192.0.2.80"][..],
        &["delete none"],
        &["delete none A"],
        &["delete www A 192.0.2.99"],
        &["delete www A 192.0.2.80", "add www 300 A 192.0.2.80"],
        // Names in data are the same in either case.
        &["add @ 300 MX 10 MAIL.vm.test."],
        &[],
        // Ignored (RFC 2136 §3.4.2): an alias beside others, others beside an alias, the last NS, the SOA.
        &["add www 300 CNAME mail.vm.test."],
        &["add alias 300 A 192.0.2.7"],
        &["delete @ NS"],
        &["delete @ NS ns1.vm.test."],
        &["delete @ SOA"],
    ] {
        assert_eq!(bench.send(&[], edits), "NOERROR", "{edits:?}");
        assert_eq!(bench.difference(), [""; 0], "{edits:?}");
    }
    assert_eq!(bench.view.generation, before);
}

#[test]
fn the_apex_keeps_its_soa_and_a_name_server() {
    let mut bench = Bench::new();
    assert_eq!(bench.send(&[], &["delete @"]), "NOERROR");
    assert_eq!(bench.difference(), ["- vm.test 300 MX 000a046d61696c02766d047465737400"]);
    // Another one first, then the old one may go; but not both.
    let edits = ["add @ 300 NS mail.vm.test.", "delete @ NS NS1.VM.TEST.", "delete @ NS mail.vm.test."];
    assert_eq!(bench.send(&[], &edits), "NOERROR");
    let ns = bench.zone().node(&name("vm.test")).unwrap().set(rdata::NS).unwrap();
    assert_eq!(ns.data.len(), 1);
    assert_eq!(bench.zone().serial(), 9, "one serial for each update that changed something");
    assert!(bench.send(&[], &["add @ 300 SOA a b 9 1 1 1 1"]).starts_with("REFUSED"));
}

#[test]
fn an_alias_is_replaced() {
    let mut bench = Bench::new();
    assert_eq!(bench.send(&[], &["add alias 60 CNAME mail.vm.test."]), "NOERROR");
    assert_eq!(bench.zone().node(&name("alias.vm.test")).unwrap().set(rdata::CNAME).unwrap().data.len(), 1);
    assert_eq!(bench.send(&[], &["delete alias CNAME", "add alias 60 A 192.0.2.7"]), "NOERROR");
    assert_eq!(bench.difference().len(), 2);
}

#[test]
fn what_has_another_owner_is_refused_as_a_whole() {
    let mut bench = Bench::new();
    for (edit, reason) in [
        ("add hello 60 A 192.0.2.9", "is a service"),
        ("add hello 60 AAAA ::1", "is a service"),
        ("add hello 60 CNAME www.vm.test.", "is a service"),
        ("delete hello A", "is a service"),
        ("delete hello A 127.64.0.1", "is a service"),
        ("delete hello", "is a service"),
        ("add hello 60 NS www.vm.test.", "delegation"),
        ("delete hello TYPE65280", "is a service"),
        ("add _vmstate.hello 60 TXT x", "the state of the service hello.vm.test"),
        ("add www 60 DS 1 13 2 0000000000000000000000000000000000000000000000000000000000000000", "NOERROR"),
        ("add *.x 60 NS www.vm.test.", "wildcard"),
        ("add x 60 NS ns.x", "no A or AAAA"),
        ("delete ns.sub A", "no A or AAAA"),
        ("delete ns.sub", "no A or AAAA"),
        ("add x 60 SOA a b 1 1 1 1 1", "SOA"),
        ("add @ 60 DS 1 13 2 0000000000000000000000000000000000000000000000000000000000000000", "parent"),
        ("delete www RRSIG", "made by signing"),
        ("add y 60 DNAME www.vm.test.", "DNAME"),
    ] {
        let before = bench.difference();
        let answer = bench.send(&[], &["add first 60 A 192.0.2.1", edit, "delete first"]);
        if reason == "NOERROR" {
            assert_eq!(answer, "NOERROR", "{edit}");
            continue;
        }
        assert!(answer.starts_with("REFUSED") && answer.contains(reason), "{edit}: {answer}");
        assert_eq!(bench.difference(), before, "{edit}");
    }
    // Beside its addresses a service's name is like any other.
    assert_eq!(bench.send(&[], &["add hello 60 TXT note", "add below.hello 60 A 192.0.2.4"]), "NOERROR");
    // A delegation with its address, in whatever order; and away with both.
    assert_eq!(bench.send(&[], &["add x 60 NS ns.x.vm.test.", "add ns.x 60 A 192.0.2.4"]), "NOERROR");
    assert_eq!(bench.send(&[], &["delete ns.x", "delete x NS"]), "NOERROR");
}

#[test]
fn names_outside_and_zones_that_are_not_here_have_their_own_codes() {
    let mut bench = Bench::new();
    assert!(bench.send(&[], &["add www.example. 60 A 192.0.2.1"]).starts_with("NOTZONE"));
    assert!(bench.send(&["yxdomain www.example."], &[]).starts_with("NOTZONE"));
    let mut other = message(&[], &["add new 60 A 192.0.2.1"]);
    other.query.question.name = QuestionName::from(&name("other.test"));
    let mut below = other.clone();
    below.query.question.name = QuestionName::from(&name("www.vm.test"));
    let mut chaos = message(&[], &[]);
    chaos.query.question.qclass = 3;
    let mut no_soa = message(&[], &[]);
    no_soa.query.question.qtype = rdata::A;
    let answers = bench.group(&[other, below, chaos, no_soa]);
    let codes: Vec<&str> = answers.iter().map(|answer| answer.split(':').next().unwrap()).collect();
    assert_eq!(codes, ["NOTAUTH", "NOTAUTH", "NOTAUTH", "FORMERR"]);
}

// --- Prerequisites (RFC 2136 §3.2) -------------------------------------------------------------------------------

#[test]
fn nothing_is_done_unless_every_prerequisite_holds() {
    for (prerequisites, code) in [
        (&["yxdomain www"][..], "NOERROR"),
        (&["yxdomain none"], "NXDOMAIN"),
        (&["yxdomain ns.sub", "yxdomain hello"], "NOERROR"),
        (&["nxdomain none"], "NOERROR"),
        (&["nxdomain www"], "YXDOMAIN"),
        (&["nxdomain hello"], "YXDOMAIN"),
        (&["yxrrset www A"], "NOERROR"),
        (&["yxrrset www AAAA"], "NXRRSET"),
        (&["yxrrset hello A"], "NOERROR"),
        (&["yxrrset hello AAAA"], "NXRRSET"),
        (&["nxrrset www AAAA"], "NOERROR"),
        (&["nxrrset www A"], "YXRRSET"),
        (&["yxrrset www A 192.0.2.81", "yxrrset www A 192.0.2.80"], "NOERROR"),
        (&["yxrrset www A 192.0.2.80"], "NXRRSET"),
        (&["yxrrset www A 192.0.2.80", "yxrrset www A 192.0.2.81", "yxrrset www A 192.0.2.82"], "NXRRSET"),
        (&["yxrrset @ NS NS1.vm.TEST."], "NOERROR"),
        (&["yxrrset hello A 127.64.0.1"], "NOERROR"),
        (&["yxrrset hello A 127.64.0.2"], "NXRRSET"),
        (&["yxrrset www A 192.0.2.80", "nxdomain www"], "YXDOMAIN"),
    ] {
        let mut bench = Bench::new();
        let answer = bench.send(prerequisites, &["add new 60 A 192.0.2.9"]);
        assert_eq!(answer.split(':').next(), Some(code), "{prerequisites:?}: {answer}");
        assert_eq!(bench.difference().len(), usize::from(code == "NOERROR"), "{prerequisites:?}");
    }
    // A name that only has names below it is not in use.
    let mut bench = Bench::new();
    assert_eq!(bench.send(&["nxdomain x.y"], &["add z.x.y 60 A 192.0.2.9"]), "NOERROR");
    assert_eq!(bench.send(&["nxdomain x.y", "yxdomain z.x.y"], &[]), "NOERROR");
}

#[test]
fn in_a_group_each_update_sees_those_before_it() {
    let mut bench = Bench::new();
    let first = message(&["nxdomain lock"], &["add lock 60 TXT mine"]);
    let second = message(&["nxdomain lock"], &["add lock 60 TXT yours"]);
    let third = message(&["yxrrset lock TXT mine"], &["delete lock", "add done 60 A 192.0.2.1"]);
    let answers = bench.group(&[first, second, third]);
    assert_eq!(answers[0], "NOERROR");
    assert!(answers[1].starts_with("YXDOMAIN"), "{answers:?}");
    assert_eq!(answers[2], "NOERROR");
    assert_eq!(bench.difference(), ["+ done.vm.test 60 A c0000201"]);
    assert_eq!(bench.rows.len(), 1);
}

// --- Permission --------------------------------------------------------------------------------------------------

#[test]
fn only_what_is_granted_may_be_changed() {
    let grant = |names: &[&str], types: &[u16]| Grant {
        names: names.iter().map(|text| text.parse().unwrap()).collect(),
        types: types.to_vec(),
        ..everything()
    };
    let mut bench = Bench::granting(vec![
        grant(&["*.dyn.vm.test"], &[rdata::A, rdata::TXT]),
        grant(&["www.vm.test"], &[rdata::TXT]),
        Grant { networks: vec!["192.0.2.0/24".parse().unwrap()], ..everything() },
        Grant { key: name("other.test"), ..everything() },
    ]);
    for (edit, made) in [
        ("add a.dyn 60 A 192.0.2.1", true),
        ("add a.b.dyn 60 TXT x", true),
        ("add *.dyn 60 TXT x", true),
        ("add dyn 60 A 192.0.2.1", false),
        ("add a.dyn 60 AAAA ::1", false),
        ("add new 60 A 192.0.2.1", false),
        ("delete a.dyn A", true),
        ("delete a.b.dyn", true),
        ("delete none.dyn", true),
        ("delete none", false),
        ("delete www TXT", true),
        ("delete www A", false),
        // It has addresses too, which are not granted.
        ("delete www", false),
    ] {
        let answer = bench.send(&[], &[edit]);
        assert_eq!(answer == "NOERROR", made, "{edit}: {answer}");
        assert!(made || answer.starts_with("REFUSED"), "{edit}: {answer}");
    }
    // Whoever may not change the zone learns nothing of it from prerequisites.
    let mut closed = Bench::granting(Vec::new());
    assert!(closed.send(&["nxdomain www"], &[]).starts_with("REFUSED"));
}

// --- The zone file is edited -------------------------------------------------------------------------------------

#[test]
fn updates_and_an_edited_file_meet_record_by_record() {
    let mut bench = Bench::new();
    let edits = [
        "add www 300 A 192.0.2.82",
        "delete www A 192.0.2.80",
        "add new 60 A 192.0.2.9",
        "add deleg 60 NS ns.deleg.vm.test.",
        "add ns.deleg 60 A 192.0.2.4",
        "add late 60 A 192.0.2.5",
        "delete mail",
    ];
    assert_eq!(bench.send(&[], &edits), "NOERROR");
    let edited = FILE
        .replace("www 300 A 192.0.2.81\n", "www 300 A 192.0.2.83\n")
        .replace("mail 300 A 192.0.2.2\n", "mail 300 A 192.0.2.2\nmail 300 A 192.0.2.200\n")
        + "new 300 CNAME www\nns.deleg 300 CNAME www\n";
    let edited = Arc::new(zonefile::parse("edited", &edited, &name("vm.test")).unwrap());
    let rows: Vec<SetChange> = bench.rows.into_values().collect();
    let services = BTreeSet::from([name("late.vm.test"), name("www.vm.test.example")]);
    let (zone, aside) = lay_over(edited, rows, taken_by(&services));
    let of = |owner: &str| -> Vec<String> {
        lines(&zone).into_iter().filter(|line| line.starts_with(&format!("{owner}.vm.test "))).collect()
    };
    assert_eq!(of("www")[..2], ["www.vm.test 300 A c0000252", "www.vm.test 300 A c0000253"]);
    assert_eq!(of("mail"), ["mail.vm.test 300 A c00002c8"]);
    assert_eq!((of("new").len(), of("deleg").len(), of("late").len()), (1, 0, 0));
    let mut said: Vec<String> =
        aside.iter().map(|aside| format!("{}: {}", aside.change.owner, aside.why)).collect();
    said.sort();
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said[0].starts_with("deleg.vm.test: the delegation of deleg.vm.test names"), "{said:?}");
    assert_eq!(said[1], "late.vm.test: the name is a service by now");
    assert!(said[2].starts_with("new.vm.test: new.vm.test has a CNAME and other records"), "{said:?}");
    assert!(said[3].starts_with("ns.deleg.vm.test: "), "{said:?}");
}
