//! The protocol scripts of `tests/dns`, over every way into the server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod parse;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::exchange::{Client, Heard, framed, read_framed};
use common::message::Message;
use common::{NOW, WAIT_MAX, World, active, name, refused, service};
use parse::{Entry, Script};
use reveille_core::answer::{Network, View, Zones};
use reveille_dns::{DnsConfig, Origin, Setting, Transport, respond, zonefile};

/// What an extended error is shown as.
const EDE: u16 = 15;

fn view(script: &Script) -> View {
    let zones = script.zones.iter().map(|(apex, text)| {
        let zone = zonefile::parse(apex, text, &name(apex));
        Arc::new(zone.unwrap_or_else(|faults| panic!("{}", faults[0])))
    });
    let services = script.services.iter().map(|(name, address, state)| {
        let mut service = service(name, 0);
        service.address = *address;
        Arc::new(match state.as_str() {
            "asleep" => service,
            "active" => active(service),
            "refused" => refused(service),
            other => panic!("a service cannot be `{other}` in a script"),
        })
    });
    let zones = Zones::new(zones);
    // One address may ask for the state of services, and it is not the one that scripts ask from.
    let monitors: Vec<Network> = vec!["192.0.2.1".parse().unwrap()];
    View::new(1, zones, services, monitors)
}

/// What is wrong with an answer; nothing if it is as the entry wants it.
fn fault(entry: &Entry, answer: Option<&[u8]>) -> Option<String> {
    let (expected, bytes) = match (&entry.reply, answer) {
        (None, None) => return None,
        (Some(_), None) => return Some("no answer".into()),
        (None, Some(_)) => return Some("an answer instead of silence".into()),
        (Some(expected), Some(bytes)) => (expected, bytes),
    };
    let mut message = match Message::parse(bytes) {
        Ok(message) => message,
        Err(why) => return Some(format!("{why}: {bytes:02x?}")),
    };
    let mut edes = Vec::new();
    if let Some(opt) = &mut message.opt {
        edes.extend(opt.options.extract_if(.., |(code, _)| *code == EDE).map(|(_, data)| data));
    }
    let as_wanted = match (&edes[..], entry.ede) {
        ([], None) => true,
        ([ede], Some(code)) => ede.len() > 2 && ede[..2] == code.to_be_bytes(),
        _ => false,
    };
    if message != *expected || !as_wanted || entry.size.is_some_and(|size| size != bytes.len()) {
        let size = bytes.len();
        return Some(format!(
            "{message:?}    {size} bytes, extended errors {edes:02x?}\n  and not {expected:?}"
        ));
    }
    None
}

fn setting(view: &View) -> Setting<'_, '_> {
    Setting { view, now: NOW, judge: None, keys: None }
}

fn in_process(view: &View, entry: &Entry, transport: Transport) -> Option<String> {
    let mut out = Vec::new();
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 4_242));
    let outcome = respond(&setting(view), &entry.packet, &Origin::new(peer, transport), &mut out);
    let wakes = outcome.wake.map(|wish| wish.service.name.to_string());
    if wakes != entry.wakes {
        return Some(format!("wakes {wakes:?} and not {:?}", entry.wakes));
    }
    fault(entry, outcome.written.is_some().then_some(&out[..]))
}

fn over_wire(entry: &Entry, heard: &Heard) -> Option<String> {
    match heard {
        Heard::Answer(bytes) => fault(entry, Some(bytes)),
        Heard::Silence => fault(entry, None),
        Heard::Closed => Some("the connection was closed".into()),
    }
}

/// Entries that are asked in one segment of one connection, or in pieces: answers are told apart by their IDs.
fn over_one_connection(address: SocketAddr, entries: &[&Entry]) -> Vec<String> {
    let mut sent = Vec::new();
    for (id, entry) in entries.iter().enumerate() {
        let mut packet = entry.packet.clone();
        packet[..2].copy_from_slice(&u16::try_from(id).unwrap().to_be_bytes());
        sent.extend(framed(&packet));
    }
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    stream.set_nodelay(true).unwrap();
    let ends = entries[0].split.iter().copied().chain([sent.len()]);
    ends.fold(0, |from, to| {
        stream.write_all(&sent[from..to]).unwrap();
        to
    });
    let mut faults = Vec::new();
    for _ in entries.iter().filter(|entry| entry.reply.is_some()) {
        let mut answer = read_framed(&mut stream).unwrap();
        let entry = entries[usize::from(u16::from_be_bytes([answer[0], answer[1]]))];
        answer[..2].copy_from_slice(&entry.packet[..2]);
        faults.extend(
            fault(entry, Some(&answer)).map(|fault| format!("{} (one connection): {fault}", entry.line)),
        );
    }
    faults
}

/// Every entry that does not hold, as `line (way): what`.
fn run(script: &Script) -> Vec<String> {
    let view = view(script);
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let world = World::serving(view.clone(), &DnsConfig { listen, udp_threads: 1, ..DnsConfig::default() });
    let mut client = Client::new(world.address(), name(&script.zones[0].0).as_wire());
    let mut faults = Vec::new();
    for entry in &script.entries {
        let mut ways = Vec::new();
        if entry.over_udp {
            ways.push(("in process, UDP", in_process(&view, entry, Transport::Udp)));
            ways.push(("UDP", over_wire(entry, &client.udp(&entry.packet))));
        }
        if entry.over_tcp {
            ways.push(("in process, TCP", in_process(&view, entry, Transport::Tcp)));
            ways.push(("TCP", over_wire(entry, &client.tcp(&entry.packet))));
        }
        let wrong = ways.into_iter().filter_map(|(way, fault)| Some((way, fault?)));
        faults.extend(wrong.map(|(way, fault)| format!("{} {} ({way}): {fault}", entry.line, entry.title)));
    }
    for entries in script.entries.chunk_by(|one, other| one.together && other.together) {
        if entries[0].together || !entries[0].split.is_empty() {
            faults.extend(over_one_connection(world.address(), &entries.iter().collect::<Vec<_>>()));
        }
    }
    faults
}

#[test]
fn every_script_holds() {
    let directory: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "tests", "dns"].iter().collect();
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rpl"));
    paths.sort();
    assert!(!paths.is_empty());
    let mut entries = 0;
    let mut faults = Vec::new();
    for path in &paths {
        let script = Script::parse(&fs::read_to_string(path).unwrap());
        entries += script.entries.len();
        let file = Path::new(path.file_name().unwrap()).display();
        faults.extend(run(&script).into_iter().map(|fault| format!("{file}:{fault}")));
    }
    println!("{entries} entries of {} scripts", paths.len());
    assert!(faults.is_empty(), "{} answers are not as they should be:\n{}", faults.len(), faults.join("\n"));
}

/// A script is worth something only if it fails when it should.
#[test]
fn a_script_that_does_not_hold_fails() {
    let zone = "ZONE rpl.test\n@ SOA ns h 1 1 1 1 1\n@ NS ns\na A 192.0.2.1\nEND\nSERVICE s.rpl.test 127.64.0.1 asleep\n";
    let good =
        "ENTRY x\nQUERY a.rpl.test. A RD\nEDNS\nREPLY NOERROR AA RD\nANSWER\na.rpl.test. 3600 A 192.0.2.1\n";
    let fails = |entry: &str| run(&Script::parse(&format!("{zone}{entry}"))).len();
    assert_eq!(fails(good), 0);
    for (from, to) in [
        ("192.0.2.1", "192.0.2.2"),
        ("3600", "60"),
        ("AA RD", "RD"),
        ("AA RD", "AA RD AD"),
        ("NOERROR", "NXDOMAIN"),
        ("EDNS\n", "EDNS\nOPT none\n"),
        ("EDNS\n", "EDNS\nOPT do\n"),
        ("EDNS\n", "EDNS\nEDE 1\n"),
        ("EDNS\n", "EDNS\nWAKES s.rpl.test\n"),
        ("EDNS\n", "EDNS\nSIZE 5\n"),
        ("EDNS\n", "EDNS\nQUESTION none\n"),
        ("REPLY NOERROR AA RD", "REPLY silence"),
        ("ANSWER", "AUTHORITY"),
        ("a.rpl.test. A", "s.rpl.test. A"),
    ] {
        assert!(good.contains(from));
        let over_udp_and_tcp = 2;
        assert!(fails(&good.replacen(from, to, 1)) >= over_udp_and_tcp, "{from} {to}");
    }
}
