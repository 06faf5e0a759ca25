//! Real secondaries: BIND, NSD and Knot DNS follow, by NOTIFY and IXFR with TSIG, and end up with the same zone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod programs;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use common::ports::free_address;
use common::{World, active, name, service, zone};
use programs::{ALL, KeyText, Program, Secondary, dig, said_by, zone_lines};
use reveille_core::answer::{Acl, AclEntry, Network, ServiceView, View, Zones};
use reveille_core::model::{DomainName, Phase};
use reveille_dns::tsig::{Algorithm, Key, Keyring};
use reveille_dns::{DnsConfig, NotifyTarget, ZoneNotify};

/// Services at the beginning; more than enough for differences to be the shorter way.
const SERVICES: u32 = 400;
/// Publications with changes while the secondaries follow.
const CHANGES: u32 = 1_000;

/// Name, algorithm, secret, and the same in base64.
const fn key_parts(program: Program) -> (&'static str, &'static str, &'static [u8], &'static str) {
    match program {
        Program::Bind => (
            "bind.key.test",
            "hmac-sha256",
            b"bind, 0123456789abcdef0123456789",
            "YmluZCwgMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk=",
        ),
        Program::Nsd => (
            "nsd.key.test",
            "hmac-sha512",
            b"nsd., 0123456789abcdef0123456789",
            "bnNkLiwgMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk=",
        ),
        Program::Knot => (
            "knot.key.test",
            "hmac-sha384",
            b"knot, 0123456789abcdef0123456789",
            "a25vdCwgMDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk=",
        ),
    }
}

fn key_of(program: Program) -> KeyText {
    let (name, algorithm, _, secret) = key_parts(program);
    KeyText { name, algorithm, secret }
}

fn keyring() -> Keyring {
    Keyring::new(ALL.map(key_parts).map(|(key, algorithm, secret, _)| {
        let algorithm: Algorithm = algorithm.parse().unwrap();
        Key::new(name(key), algorithm, secret).unwrap()
    }))
}

/// A primary that tells these secondaries, each of which may transfer with its own key from loopback.
fn primary(services: impl IntoIterator<Item = ServiceView>, secondaries: &[Secondary]) -> World {
    let entry =
        |program| AclEntry { networks: vec![Network::LOOPBACK4], key: Some(name(key_of(program).name)) };
    let zone = zone().with_transfer(Acl::new(ALL.map(entry)));
    let target = |secondary: &Secondary| NotifyTarget {
        address: secondary.address,
        key: Some(name(key_of(secondary.program).name)),
    };
    let targets = secondaries.iter().map(target).collect();
    let notify = vec![ZoneNotify { apex: name("vm.test"), targets }];
    let view = View::new(1, Zones::new([Arc::new(zone)]), services.into_iter().map(Arc::new), []);
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    World::serving(
        view,
        &DnsConfig { listen, udp_threads: 1, keys: keyring(), notify, ..DnsConfig::default() },
    )
}

fn serial(world: &World) -> u32 {
    let view = world.shared.load();
    view.zones().iter().next().unwrap().serial()
}

fn publish(world: &World, changes: Vec<(DomainName, Option<Arc<ServiceView>>)>) {
    let old = world.shared.load();
    let next = old.advanced(old.generation + 1, changes, []);
    let generation = next.generation;
    world.shared.store(Arc::new(next));
    world.generation.send_replace(generation);
}

fn numbered(number: u32, address: u32) -> ServiceView {
    let mut seen = service(&format!("s{number}.vm.test"), 0);
    seen.address = (0x7f40_0000 + address).into();
    seen.address6 = number.is_multiple_of(7).then(|| ((0xfd << 120) + u128::from(address)).into());
    seen
}

/// Random numbers that are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 33).unwrap() % limit
    }
}

fn axfr(world: &World, program: Program) -> Vec<String> {
    let key = key_of(program);
    let option = format!("{}:{}:{}", key.algorithm, key.name, key.secret);
    let text = dig(world.address(), &["-y", &option, "vm.test", "AXFR"]);
    assert!(text.contains("XFR size") && !text.contains("verify"), "{text}");
    zone_lines(&text)
}

fn follow(world: &World, secondaries: &[Secondary]) {
    for secondary in secondaries {
        let log = || secondary.log();
        let wanted = serial(world);
        let start = std::time::Instant::now();
        while secondary.serial() != Some(wanted) {
            let (program, at) = (secondary.program, secondary.serial());
            let counts = world.server.counts();
            assert!(
                start.elapsed() < common::WAIT_MAX,
                "{program:?} is at {at:?}, not {wanted}; {counts:?}\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let (own, theirs) = (axfr(world, secondary.program), secondary.zone());
        let missing: Vec<_> = own.iter().filter(|line| !theirs.contains(line)).collect();
        let strange: Vec<_> = theirs.iter().filter(|line| !own.contains(line)).collect();
        assert!(own == theirs, "{:?}: without {missing:#?}, but with {strange:#?}", secondary.program);
    }
}

/// Three secondaries that have the zone.
fn started() -> (World, Vec<Secondary>) {
    let mut secondaries: Vec<Secondary> = ALL.map(|program| Secondary::new(program, free_address())).into();
    let world = primary((0..SERVICES).map(|number| numbered(number, number + 1)), &secondaries);
    for secondary in &mut secondaries {
        secondary.start(world.address(), &key_of(secondary.program));
    }
    follow(&world, &secondaries);
    (world, secondaries)
}

#[test]
fn bind_nsd_and_knot_follow_a_thousand_changes_and_agree() {
    let (world, secondaries) = started();
    let mut chance = Chance(1);
    let mut changes = 0;
    while changes < CHANGES {
        let before = serial(&world);
        let number = chance.below(SERVICES + 100);
        let change = match chance.below(6) {
            0 => (numbered(number, 0).name, None),
            1 | 2 => {
                let seen = numbered(number, 1_000 + chance.below(100_000));
                (seen.name.clone(), Some(Arc::new(seen)))
            }
            _ => {
                // Woken or put to sleep: nothing that a secondary would see.
                let view = world.shared.load_full();
                let Some(seen) = view.service(&numbered(number, 0).name) else { continue };
                let asleep = ServiceView { phase: Phase::Hibernated, ttl_s: 5, ..ServiceView::clone(seen) };
                let seen = if chance.below(2) == 0 { active(asleep) } else { asleep };
                publish(&world, vec![(seen.name.clone(), Some(Arc::new(seen)))]);
                assert_eq!(serial(&world), before);
                continue;
            }
        };
        publish(&world, vec![change]);
        changes += u32::from(serial(&world) != before);
        // Slowly enough that the secondaries follow in many steps.
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(serial(&world), 1 + CHANGES);
    follow(&world, &secondaries);
    let counts = world.server.counts();
    // Each took the zone in full once, and so did this test of each, twice; all the rest went by differences.
    // One more may be asked for where an answer was too slow for a secondary.
    assert!((9..=18).contains(&counts.transfers_whole), "{counts:?}");
    assert!(counts.transfers_of_differences >= 9, "{counts:?}");
    assert!(counts.notifies_acknowledged >= 9 && counts.notifies_sent < 100, "{counts:?}");
    let broken = (counts.transfers_broken, counts.signatures_refused, counts.notifies_refused);
    assert_eq!(broken, (0, 0, 0), "{counts:?}");
}

#[test]
fn a_secondary_that_was_away_catches_up() {
    let (world, mut secondaries) = started();
    for secondary in &mut secondaries {
        secondary.stop();
    }
    let moved = |number| {
        let seen = numbered(number, 50_000 + number);
        (seen.name.clone(), Some(Arc::new(seen)))
    };
    for number in 0..20 {
        publish(&world, vec![moved(number), (numbered(number + 100, 0).name, None)]);
    }
    let sent = world.server.counts().notifies_sent;
    world.until("a NOTIFY to those who are away", |world| world.server.counts().notifies_sent > sent);
    for secondary in &mut secondaries {
        secondary.start(world.address(), &key_of(secondary.program));
    }
    follow(&world, &secondaries);
    assert!(world.server.counts().transfers_of_differences > 0, "{:?}", world.server.counts());
}

#[test]
fn dig_and_kdig_transfer_with_the_key_and_with_nothing_else() {
    let world = primary((0..SERVICES).map(|number| numbered(number, number + 1)), &[]);
    let KeyText { name, algorithm, secret } = key_of(Program::Bind);
    let key = format!("{algorithm}:{name}:{secret}");
    let whole = axfr(&world, Program::Bind);
    let by_kdig = world.kdig(&["-y", &key, "vm.test", "AXFR"]);
    assert_eq!(zone_lines(&by_kdig), whole);
    assert!(!by_kdig.contains("WARNING"), "{by_kdig}");

    let before = serial(&world);
    let (moved, gone) = (numbered(3, 70_000), numbered(5, 0).name);
    publish(&world, vec![(moved.name.clone(), Some(Arc::new(moved))), (gone, None)]);
    let ixfr = format!("ixfr={before}");
    for text in
        [world.dig(&["-y", &key, "vm.test", &ixfr]), world.kdig(&["-y", &key, "vm.test", "-t", &ixfr])]
    {
        let lines = zone_lines(&text);
        // Four SOAs, s3 twice, s5 once.
        assert_eq!(lines.len(), 7, "{text}");
        assert!(lines.contains(&"s3.vm.test. 5 in a 127.65.17.112".to_owned()), "{text}");
        assert!(lines.contains(&"s5.vm.test. 5 in a 127.64.0.6".to_owned()), "{text}");
    }

    let wrong = format!("{algorithm}:{name}:{}", secret.replace('M', "N"));
    let renamed = format!("{algorithm}:other.key.test:{secret}");
    for (arguments, said) in [
        (vec!["vm.test", "AXFR"], "Transfer failed"),
        (vec!["vm.test", &ixfr, "+tcp"], "Transfer failed"),
        (vec!["-y", &wrong, "vm.test", "AXFR"], "BADSIG"),
        (vec!["-y", &renamed, "vm.test", "AXFR"], "BADKEY"),
        (vec!["-y", &key, "s3.vm.test", "AXFR"], "Transfer failed"),
    ] {
        let text = dig(world.address(), &arguments);
        assert!(text.contains(said) && zone_lines(&text).len() < 2, "{arguments:?}: {text}");
    }
    let refused = said_by("kdig", world.address(), &["+tcp", "vm.test", "AXFR"]);
    assert!(refused.contains("REFUSED") && zone_lines(&refused).is_empty(), "{refused}");
    let counts = world.server.counts();
    assert_eq!((counts.transfers_whole, counts.transfers_of_differences), (2, 2), "{counts:?}");
    assert_eq!(counts.signatures_refused, 2);
    // A primary is not told of serials.
    let notify = world.dig(&["+opcode=NOTIFY", "vm.test", "SOA"]);
    assert!(notify.contains("status: NOTIMP"), "{notify}");
}

/// A transfer that has been asked for, and not been read.
fn begun(world: &World) -> TcpStream {
    let mut question =
        b"\x00\x07\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02vm\x04test\x00\x00\xfc\x00\x01".to_vec();
    let keys = keyring();
    keys.sign_request(&keys.key(&name("knot.key.test")).unwrap(), &mut question);
    let mut stream = TcpStream::connect(world.address()).unwrap();
    stream.set_read_timeout(Some(common::WAIT_MAX)).unwrap();
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &question].concat()).unwrap();
    stream
}

#[test]
fn a_client_that_leaves_in_the_middle_costs_nobody_else() {
    let world = primary((0..30_000).map(|number| numbered(number, number + 1)), &[]);
    // More of them than may transfer at a time; each reads the beginning and leaves.
    let leaving: Vec<TcpStream> = (0..20).map(|_| begun(&world)).collect();
    drop(leaving);
    assert_eq!(axfr(&world, Program::Bind).len(), 30_000 + 30_000_usize.div_ceil(7) + 65);
    world.until("every one is counted", |world| {
        let counts = world.server.counts();
        counts.transfers_whole + counts.transfers_broken + counts.transfers_refused >= 21
    });
}
