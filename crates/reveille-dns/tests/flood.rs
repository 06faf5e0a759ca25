//! Floods from forged addresses: what they may wake, what they may cost, and who still gets through.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use common::{NOW, WAIT_MAX, World, name, service, zone};
use reveille_core::answer::{View, Zones};
use reveille_dns::DnsConfig;
use reveille_dns::limit::{Counter, Gate, GateConfig, Source};

/// Questions of a flood, unless `REVEILLE_TEST_FLOOD` says otherwise.
const QUESTIONS: u32 = 60_000;
/// Questions from one address before another one is taken.
const QUESTIONS_PER_SOURCE: u32 = 20;
/// Services that sleep in the zone.
const SERVICES: u32 = 100_000;
/// Growth of the process over a flood that is taken for bounded, in bytes.
const GROWTH_MAX: u64 = 48 << 20;

fn questions() -> u32 {
    std::env::var("REVEILLE_TEST_FLOOD").map_or(QUESTIONS, |count| count.parse().unwrap())
}

/// Xorshift, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 32).unwrap()
    }

    /// An address of the loopback network, neither its first nor its last.
    fn source(&mut self) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x7f00_0002 + self.next() % 0x00ff_fff0)
    }
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

fn packet(qname: &str, cookie: Option<&[u8]>) -> Vec<u8> {
    let mut packet = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(cookie.is_some())];
    packet.extend(name(qname).as_wire());
    packet.extend([0, 1, 0, 1]);
    if let Some(cookie) = cookie {
        let length = u8::try_from(cookie.len()).unwrap();
        packet.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, length + 4, 0, 10, 0, length]);
        packet.extend(cookie);
    }
    packet
}

/// A zone of sleeping services, one of them a wildcard, behind a gate with small budgets.
fn world() -> (World, Arc<Gate>, GateConfig) {
    let mut config = GateConfig::default();
    config.rate.exempt.clear();
    (config.wake.client_per_min, config.wake.client_burst) = (6, 10);
    (config.wake.zone_unproven_per_min, config.wake.zone_unproven_burst) = (60, 100);
    (config.wake.zone_proven_per_min, config.wake.zone_proven_burst) = (60, 50);
    let gate = Arc::new(Gate::new(&config, [&name("vm.test")], NOW).unwrap());
    let services = (0..SERVICES).map(|n| service(&format!("s{n}.vm.test"), 1));
    let services = services.chain([service("*.wild.vm.test", 2)]).map(Arc::new);
    let view = View::new(1, Zones::new([Arc::new(zone())]), services, View::default_monitors());
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    let config_of_server =
        DnsConfig { listen, udp_threads: 1, gate: Some(Arc::clone(&gate)), ..DnsConfig::default() };
    (World::serving(view, &config_of_server), gate, config)
}

/// Sends questions from ever new addresses, a batch at a time so that the server's buffer holds them all.
fn flood(world: &World, random: &mut Random, count: u32, mut qname: impl FnMut(&mut Random) -> String) {
    let before = world.server.counts().queries;
    let mut sent = 0;
    while sent < count {
        let source = UdpSocket::bind((random.source(), 0)).unwrap();
        source.connect(world.address()).unwrap();
        for _ in 0..QUESTIONS_PER_SOURCE {
            source.send(&packet(&qname(random), None)).unwrap();
            sent += 1;
        }
        // Nobody listens for the answers; the kernel drops them, as it does for a victim.
        let due = before + u64::from(sent);
        world.until("the flood is worked off", |world| world.server.counts().queries + 400 >= due);
    }
    world.until("the flood is worked off", |world| world.server.counts().queries >= before + u64::from(sent));
}

fn wakes(world: &mut World) -> u64 {
    let mut count = 0;
    while world.wakes.try_recv().is_ok() {
        count += 1;
    }
    count
}

#[test]
fn a_flood_wakes_no_more_than_the_budgets_and_honest_clients_still_do() {
    let (mut world, gate, config) = world();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let third = questions() / 3;
    // What is made once is made before the memory is looked at.
    flood(&world, &mut random, 1_000, |random| format!("r{}.vm.test", random.next()));
    let before = resident_bytes();

    flood(&world, &mut random, third, |random| format!("r{}.vm.test", random.next()));
    assert_eq!(wakes(&mut world), 0, "names that do not exist wake nothing");

    flood(&world, &mut random, third, |random| format!("r{}.wild.vm.test", random.next()));
    flood(&world, &mut random, third, |random| format!("s{}.vm.test", random.next() % SERVICES));
    let passed = gate.counts().of(Counter::Wake(Source::Unproven));
    // The time of this server stands still, so nothing is refilled.
    assert!(passed <= u64::from(config.wake.zone_unproven_burst), "{passed} wakes passed");
    assert!(passed > 0);
    wakes(&mut world);

    let grown = resident_bytes().saturating_sub(before);
    assert!(grown <= GROWTH_MAX, "{} KiB more than before the flood", grown >> 10);

    // Whoever proves an address still wakes what sleeps: with a cookie …
    let client = UdpSocket::bind("127.7.7.7:0").unwrap();
    client.set_read_timeout(Some(WAIT_MAX)).unwrap();
    client.connect(world.address()).unwrap();
    let mut answer = [0; 512];
    client.send(&packet("ns1.vm.test", Some(b"mycookie"))).unwrap();
    let length = client.recv(&mut answer).unwrap();
    let given = answer[..length].windows(8).position(|part| part == b"mycookie").unwrap();
    let cookie = answer[given..given + 24].to_vec();
    client.send(&packet("s1.vm.test", Some(&cookie))).unwrap();
    client.recv(&mut answer).unwrap();
    world.until("a client with a cookie wakes a service", |_| {
        gate.counts().of(Counter::Wake(Source::Proven)) == 1
    });
    assert_eq!(world.wakes.blocking_recv().unwrap().service, name("s1.vm.test"));
    // … or over TCP.
    let text = world.dig(&["+tcp", "+nocookie", "+short", "s2.vm.test"]);
    assert_eq!(text.trim(), "127.64.0.1");
    assert_eq!(world.wakes.blocking_recv().unwrap().service, name("s2.vm.test"));
}

#[test]
fn one_client_wakes_no_more_than_its_budget_and_others_are_unaffected() {
    let (mut world, _gate, config) = world();
    // An answer may be truncated or, over the rate, not come at all: what counts here is what wakes.
    let ask = |world: &World, source: [u8; 4], services: std::ops::Range<u32>| {
        let before = world.server.counts().queries;
        let client = UdpSocket::bind((Ipv4Addr::from(source), 0)).unwrap();
        client.connect(world.address()).unwrap();
        for (sent, n) in (1..).zip(services) {
            client.send(&packet(&format!("s{n}.vm.test"), None)).unwrap();
            world.until("it is worked off", |world| world.server.counts().queries == before + sent);
        }
    };
    ask(&world, [127, 1, 1, 1], 0..1_000);
    assert_eq!(wakes(&mut world), u64::from(config.wake.client_burst));
    ask(&world, [127, 2, 2, 2], 2_000..2_005);
    assert_eq!(wakes(&mut world), 5);
}
