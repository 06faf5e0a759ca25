//! The same zones served by Reveille and by Knot DNS: the same answers to random and adversarial questions, but for
//! the differences that `docs/conformance.md` argues. NSD is asked where the two differ.
//!
//! `REVEILLE_TEST_QUESTIONS` sets how many questions are asked, `REVEILLE_TEST_SEED` which.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod kinds;
mod odd;
mod packing;
mod peers;
mod questions;
mod reply;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use common::World;
use common::exchange::{Client, Heard};
use common::message::shown;
use kinds::{KINDS, Pair, faults};
use peers::Peer;
use questions::{Asked, Source};
use reply::{Case, Reply};
use reveille_core::answer::{View, Zone, Zones};
use reveille_dns::DnsConfig;
use zones::ZoneText;

/// Questions of an ordinary test run; the long one sets the variable.
const QUESTIONS_DEFAULT: u64 = 2_000;
/// From so many questions on, a kind of difference that is not met is an excuse that nobody needs.
const QUESTIONS_FOR_ALL_KINDS: u64 = 20_000;
/// Where the kinds are argued.
const DOCUMENT: &str = include_str!("../../../../docs/conformance.md");
/// Most differences that are shown when a test fails.
const SHOWN_MAX: usize = 10;

/// How often a kind of difference was met, and whose side NSD took.
#[derive(Debug, Default)]
struct Tally {
    met: u64,
    with_ours: u64,
    with_knot: u64,
}

/// The servers, and clients of them.
struct Servers {
    zones: Vec<Zone>,
    _world: World,
    _peers: [Peer; 2],
    ours: Client,
    knot: Client,
    nsd: Client,
}

impl Servers {
    fn start(texts: &[ZoneText]) -> Self {
        let zones: Vec<Zone> = texts.iter().map(ZoneText::zone).collect();
        let (knot, nsd) = (Peer::knot(texts), Peer::nsd(texts));
        let served = Zones::new(zones.iter().cloned().map(Arc::new));
        let services = texts.iter().flat_map(ZoneText::services).map(Arc::new);
        let view = View::new(1, served, services, Vec::new());
        let config = DnsConfig {
            listen: vec![SocketAddr::from(([127, 0, 0, 53], 0))],
            udp_threads: 1,
            ..DnsConfig::default()
        };
        let world = World::serving(view, &config);
        let apex = texts[0].apex.as_wire();
        let [ours, knot_client, nsd_client] =
            [world.address(), knot.address, nsd.address].map(|address| Client::new(address, apex));
        Self { zones, _world: world, _peers: [knot, nsd], ours, knot: knot_client, nsd: nsd_client }
    }

    /// Asks Reveille and Knot; what is to be shown if they differ and no kind explains it.
    fn compare(&mut self, asked: &Asked, tallies: &mut BTreeMap<&'static str, Tally>) -> Option<String> {
        let said = heard(&mut self.ours, asked);
        let bytes = if let Heard::Answer(bytes) = &said { &bytes[..] } else { &[] };
        let ours = Reply::of(&said, &asked.packet);
        let knot = Reply::of(&heard(&mut self.knot, asked), &asked.packet);
        let mut case = Case { asked, zones: &self.zones, knot: &mut self.knot };
        let wrong = faults(&case, &ours, bytes);
        let mut pair = Pair::new(&mut case, ours.clone(), knot.clone());
        let mut met = Vec::new();
        for (name, explain) in KINDS {
            // Also where the two agree: both might be wrong.
            if explain(&mut case, &mut pair) {
                met.push(name);
            }
        }
        let nsd = Reply::of(&heard(&mut self.nsd, asked), &asked.packet);
        if wrong.is_empty() && pair.ours == pair.knot {
            for name in met.into_iter().filter(|_| ours != knot) {
                let tally = tallies.entry(name).or_default();
                tally.met += 1;
                tally.with_ours += u64::from(essence(&nsd) == essence(&ours));
                tally.with_knot += u64::from(essence(&nsd) == essence(&knot));
            }
            return None;
        }
        let Asked { over_udp, name, qtype, qclass, opcode, flags, edns, odd, packet } = asked;
        Some(format!(
            "{} type {qtype} class {qclass} opcode {opcode} flags {flags:#06x} over {}\n  {edns:?}\n  form {odd:?}, \
             explained so far {met:?}, wrong in itself {wrong:?}\n  packet {}\n  Reveille {}  Knot {}  NSD {}",
            shown(name),
            if *over_udp { "UDP" } else { "TCP" },
            packet.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
            ours.shown(),
            knot.shown(),
            nsd.shown(),
        ))
    }
}

fn heard(client: &mut Client, asked: &Asked) -> Heard {
    if asked.over_udp { client.udp(&asked.packet) } else { client.tcp(&asked.packet) }
}

/// What NSD must say to take a side: it adds name servers to answers, and has an OPT in errors or not as it happens.
fn essence(reply: &Reply) -> Option<(u16, u16, Vec<common::message::Rr>)> {
    let message = reply.message()?;
    Some((message.rcode, message.flags, message.answer.clone()))
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn compare(texts: &[ZoneText], count: u64, tallies: &mut BTreeMap<&'static str, Tally>) {
    let seed = number("REVEILLE_TEST_SEED", 1);
    let mut servers = Servers::start(texts);
    let services = texts.iter().flat_map(ZoneText::services).map(|service| service.name);
    let mut source = Source::new(seed, &servers.zones, services);
    let mut differences = Vec::new();
    let all = source.of_all_records(&servers.zones);
    let drawn = (0..count).map(|_| source.question());
    for (index, asked) in all.into_iter().chain(drawn).enumerate() {
        if let Some(difference) = servers.compare(&asked, tallies) {
            differences.push(format!("question {index} of seed {seed}: {difference}"));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {count} answers differ in ways that docs/conformance.md does not argue:\n{}",
        differences.len(),
        differences[..differences.len().min(SHOWN_MAX)].join("\n")
    );
}

#[test]
fn answers_are_those_of_knot_but_for_what_is_argued() {
    let mut tallies = BTreeMap::new();
    let count = number("REVEILLE_TEST_QUESTIONS", QUESTIONS_DEFAULT);
    compare(&zones::all(), count, &mut tallies);
    compare(&zones::root(), count / 10, &mut tallies);
    for (name, Tally { met, with_ours, with_knot }) in &tallies {
        println!("| [{name}](#{name}) | {met} | {with_ours} | {with_knot} |");
    }
    let idle =
        KINDS.iter().filter(|(name, _)| count >= QUESTIONS_FOR_ALL_KINDS && !tallies.contains_key(name));
    assert_eq!(idle.map(|(name, _)| *name).collect::<Vec<_>>(), [""; 0], "kinds that were never met");
}

#[test]
fn every_kind_of_difference_is_argued() {
    let argued: BTreeSet<&str> = DOCUMENT.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(argued, KINDS.iter().map(|(name, _)| *name).collect());
}
