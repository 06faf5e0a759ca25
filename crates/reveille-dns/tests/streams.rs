//! The gate and the observers, over TCP, TLS and HTTPS: they see connections as they see datagrams.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/encrypted.rs"]
mod encrypted;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use common::{NOW, World, active, name, service, zone};
use encrypted::{Encrypted, ask, connect_with, read_framed};
use reveille_core::answer::{Acl, AclEntry, Network, ServiceView, View, Zones};
use reveille_core::model::AnswerPolicy;
use reveille_dns::limit::{Action, Counter, Gate, GateConfig, QueryType, Rule, Source, WakeLimit};
use reveille_dns::tsig::{Algorithm, Key, Keyring};
use reveille_dns::{DnsConfig, Transport};

/// One wake for all of this host, and no TXT.
fn strict() -> GateConfig {
    let no_txt = Rule {
        action: Action::Refuse,
        network: Vec::new(),
        subnet: Vec::new(),
        qtype: vec![QueryType(16)],
        zone: Vec::new(),
        source: None,
    };
    let mut config = GateConfig { rule: vec![no_txt], ..GateConfig::default() };
    (config.wake.client_per_min, config.wake.client_burst) = (1, 1);
    config
}

#[test]
fn connections_pass_the_gate_and_are_observed() {
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    // Longer than any test.
    slow.hold_ms_max = 3_600_000;
    let awake = ServiceView { counter: 3, ..active(service("awake.vm.test", 2)) };
    let services = [service("hello.vm.test", 1), awake, slow].map(Arc::new);
    let view = View::new(1, Zones::new([Arc::new(zone())]), services, View::default_monitors());
    let gate = Arc::new(Gate::new(&strict(), view.zones().iter().map(|zone| zone.apex()), NOW).unwrap());
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let config = DnsConfig { listen, udp_threads: 1, gate: Some(Arc::clone(&gate)), ..DnsConfig::default() };
    let mut server = Encrypted::new(World::serving(view, &config));
    let mut rings = server.world.server.take_rings();
    let tcp = server.world.address();
    let ways = [(tcp, "+tcp"), (server.tls(), "+tls"), (server.https(), "+https")];
    for (address, how) in ways {
        let (text, _) = ask("kdig", address, &[how, "big.vm.test", "TXT"]);
        assert!(text.contains("status: REFUSED"), "{how}: {text}");
        let (text, _) = ask("kdig", address, &[how, "+short", "awake.vm.test", "A"]);
        assert_eq!(text.trim(), "127.64.0.2", "{how}");
    }
    assert_eq!(gate.counts().of(Counter::Rule(Action::Refuse)), 3);

    // The budget is one wake for all ways together; over it the answer comes at once, and nothing is woken or held.
    let (text, _) = ask("kdig", server.tls(), &["+tls", "+short", "hello.vm.test", "A"]);
    assert_eq!(text.trim(), "127.64.0.1");
    assert_eq!(server.world.wakes.try_recv().unwrap().service, name("hello.vm.test"));
    for (address, how) in ways {
        let (text, _) = ask("kdig", address, &[how, "+short", "slow.vm.test", "A"]);
        assert_eq!(text.trim(), "127.64.0.5", "{how}");
    }
    assert!(server.world.wakes.try_recv().is_err());
    assert_eq!(server.world.server.counts().held, 0);
    let counts = gate.counts();
    assert_eq!(counts.of(Counter::Wake(Source::Proven)), 1);
    assert_eq!(counts.of(Counter::WakeRefusedProven(WakeLimit::Client)), 3);

    let mut seen = Vec::new();
    rings.iter_mut().for_each(|ring| ring.drain(100, |observed| seen.push(observed)));
    assert_eq!(seen.len(), 10);
    for transport in [Transport::Tcp, Transport::Tls, Transport::Https] {
        let mut of = seen.iter().filter(|observed| observed.transport == transport);
        let (refused, answered) = (of.next().unwrap(), of.next().unwrap());
        assert_eq!((refused.qtype, refused.rcode, &refused.name[..]), (16, 5, name("big.vm.test").as_wire()));
        assert_eq!((answered.qtype, answered.rcode, answered.counter), (1, 0, 3));
        assert!(answered.client.is_loopback());
    }
    assert_eq!(server.world.server.counters().sum(3), 3);
}

/// Its zone may be transferred to this host with the key.
fn with_a_key() -> Encrypted {
    let key = name("xfr.key.test");
    let may = AclEntry { networks: vec![Network::LOOPBACK4], key: Some(key.clone()) };
    let zone = zone().with_transfer(Acl::new([may]));
    let services = [Arc::new(active(service("awake.vm.test", 2)))];
    let view = View::new(1, Zones::new([Arc::new(zone)]), services, View::default_monitors());
    let keys = Keyring::new([Key::new(key, Algorithm::HmacSha256, &[7; 32]).unwrap()]);
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let config = DnsConfig { listen, udp_threads: 1, keys, ..DnsConfig::default() };
    Encrypted::new(World::serving(view, &config))
}

/// The secret of 32 sevens.
const KEY: &str = "hmac-sha256:xfr.key.test:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

#[test]
fn zones_are_transferred_over_tls_and_not_over_https() {
    let server = with_a_key();
    let (text, _) = ask("kdig", server.tls(), &["+tls", "-y", KEY, "vm.test", "AXFR"]);
    assert_eq!(text.matches(" SOA\t").count().max(text.matches("\tSOA\t").count()), 2, "{text}");
    assert!(text.contains("big.vm.test.") && text.contains("(1 messages, 66 records)"), "{text}");
    let (text, _) = ask("kdig", server.tls(), &["+tls", "vm.test", "AXFR"]);
    assert!(text.contains("REFUSED"), "{text}");
    // One HTTP exchange has one message.
    let (text, _) = ask("dig", server.https(), &["+https", "-y", KEY, "vm.test", "AXFR"]);
    assert!(!text.contains("big.vm.test."), "{text}");
    let counts = server.world.server.counts();
    assert_eq!((counts.transfers_whole, counts.transfers_refused), (1, 0));
}

#[test]
fn zones_are_not_transferred_over_an_old_version_of_tls() {
    let zone = zone().with_transfer(Acl::new([AclEntry { networks: vec![Network::LOOPBACK4], key: None }]));
    let view = View::new(1, Zones::new([Arc::new(zone)]), [], View::default_monitors());
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let server = Encrypted::new(World::serving(view, &DnsConfig { listen, ..DnsConfig::default() }));
    let apex = name("vm.test");
    let ask = [&[0, 25, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], apex.as_wire(), &[0, 252, 0, 1]].concat();
    for (version, rcode) in [(&rustls::version::TLS12, 2), (&rustls::version::TLS13, 0)] {
        let mut stream = connect_with(TcpStream::connect(server.tls()).unwrap(), server.own(), &[version]);
        stream.write_all(&ask).unwrap();
        assert_eq!(read_framed(&mut stream)[3] & 0xf, rcode, "{version:?}");
    }
}

#[test]
fn a_signed_answer_is_padded_with_its_signature() {
    let server = with_a_key();
    let (text, _) = ask("kdig", server.tls(), &["+tls", "+padding", "-y", KEY, "awake.vm.test", "A"]);
    assert!(text.contains("127.64.0.2") && text.contains(";; Received 468 B"), "{text}");
}
