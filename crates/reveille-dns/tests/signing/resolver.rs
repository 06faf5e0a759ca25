//! A validating resolver, Unbound, in front of signed zones; and a key that is rolled under it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use reveille_core::answer::rdata::{A, AAAA, CNAME, DNSKEY, DS, MX, SOA, TXT};
use reveille_dns::sign::{KeyPolicy, KeyState, Signing, SigningLimits};

use crate::common::{WAIT_MAX, name};
use crate::signed::{Records, SignedWorld, child_records, now, parent_records};
use crate::unbound::{Client, Said, Unbound};

/// How long the child's data and the parent's, its DS sets among them, stay in caches here.
const TTL_S: u32 = 2;
const PARENT_TTL_S: u32 = 4;
/// A rollover in some seconds. Nothing is far away, but the machine may be busy.
const HASTY: KeyPolicy = KeyPolicy {
    ttl_s_max: PARENT_TTL_S,
    dnskey_ttl_s: 1,
    propagation_s: 2,
    ds_ttl_s: PARENT_TTL_S,
    parent_propagation_s: 2,
    key_life_s: 0,
};
const STUBS: [&str; 4] = ["vm.test", "app.vm.test", "plain.vm.test", "bare.vm.test"];

/// `vm.test` signed, below it `app` signed and delegated, `plain` unsigned and delegated, `bare` unsigned and served
/// without a delegation.
fn world() -> (SignedWorld, Records) {
    let mut parent = parent_records(PARENT_TTL_S, 1);
    let signed = vec![parent.zone("vm.test"), child_records("app.vm.test", TTL_S, 1).zone("app.vm.test")];
    let others = ["plain.vm.test", "bare.vm.test"].map(|apex| child_records(apex, TTL_S, 1).zone(apex));
    let world = SignedWorld::new(HASTY, &SigningLimits::default(), signed, others.into());
    world.step_until("the child's DS may be put to its parent", |world| !world.ds("app.vm.test").is_empty());
    world.delegate(&mut parent, "app.vm.test");
    world.publish(parent.zone("vm.test"));
    world.signing.ds_seen(&name("app.vm.test"), now()).unwrap();
    (world, parent)
}

#[test]
fn a_validating_resolver_finds_everything_secure_but_what_is_delegated_without_a_ds() {
    let (world, _) = world();
    let unbound = Unbound::start(&world, &STUBS, "");
    let mut client = Client::of(&unbound, WAIT_MAX);
    let signed = |answers| Said { rcode: 0, secure: true, answers };
    let plain = |answers| Said { rcode: 0, secure: false, answers };
    // With their signatures.
    for (qname, qtype, said) in [
        ("hello.vm.test", A, signed(2)),
        ("awake.vm.test", A, signed(2)),
        ("six.vm.test", AAAA, signed(2)),
        ("vm.test", SOA, signed(2)),
        ("vm.test", DNSKEY, signed(2)),
        ("app.vm.test", DNSKEY, signed(2)),
        ("app.vm.test", DS, signed(2)),
        ("mail.vm.test", MX, signed(2)),
        ("odd.vm.test", 65_281, signed(2)),
        ("hello.vm.test", 65_280, signed(2)),
        // Wildcards.
        ("a.wild.vm.test", A, signed(2)),
        ("c.b.wild.vm.test", TXT, signed(2)),
        ("*.wild.vm.test", A, signed(2)),
        ("a.wild.vm.test", AAAA, signed(0)),
        ("exact.wild.vm.test", A, signed(0)),
        ("x.exact.wild.vm.test", A, signed(0)),
        ("x.walias.vm.test", A, signed(4)),
        // Aliases.
        ("www.vm.test", A, signed(4)),
        ("chain.vm.test", A, signed(6)),
        ("chain.vm.test", AAAA, signed(4)),
        ("www.vm.test", CNAME, signed(2)),
        ("gone.vm.test", A, signed(2)),
        ("over.vm.test", A, signed(4)),
        ("top.vm.test", SOA, signed(4)),
        ("top.vm.test", DNSKEY, signed(4)),
        // What is not there: no data, nothing, nothing below something, empty non-terminals.
        ("hello.vm.test", AAAA, signed(0)),
        ("none.vm.test", A, signed(0)),
        ("x.y.none.vm.test", A, signed(0)),
        ("x.hello.vm.test", A, signed(0)),
        ("empty.vm.test", A, signed(0)),
        ("deep.empty.vm.test", TXT, signed(2)),
        ("wild.vm.test", A, signed(0)),
        // Below the signed delegation.
        ("web.app.vm.test", A, signed(2)),
        ("alias.app.vm.test", A, signed(4)),
        ("x.any.app.vm.test", A, signed(2)),
        ("none.app.vm.test", A, signed(0)),
        // Below those without a DS. Of which the first is proven not to be there.
        ("plain.vm.test", DS, signed(0)),
        ("www.plain.vm.test", A, plain(1)),
        ("none.plain.vm.test", A, Said { rcode: 3, ..plain(0) }),
        ("www.bare.vm.test", A, plain(1)),
        ("_vmstate.hello.vm.test", TXT, signed(2)),
    ] {
        assert_eq!(client.ask(qname, qtype), said, "{qname} {qtype}\n{}", unbound.log());
    }
    // Names that Unbound has seen now and denies or answers by itself (RFC 8198).
    for (qname, qtype, said) in [
        ("none.vm.test", AAAA, signed(0)),
        ("x.none.vm.test", A, signed(0)),
        ("hello.vm.test", A, signed(2)),
        ("deep.empty.vm.test", TXT, signed(2)),
        ("d.wild.vm.test", A, signed(2)),
    ] {
        assert_eq!(client.ask(qname, qtype), said, "{qname} {qtype} again\n{}", unbound.log());
    }
    // Who validates by itself behind it.
    let text = unbound.ask("big.vm.test", "TXT", &["+tcp"]);
    assert!(text.contains("status: NOERROR") && text.contains("ANSWER: 61"), "{text}");
}

#[test]
fn a_zone_with_a_key_that_its_parent_does_not_know_is_bogus() {
    let (world, _) = world();
    let unbound = Unbound::start(&world, &STUBS, "");
    let mut client = Client::of(&unbound, WAIT_MAX);
    assert!(client.ask("web.app.vm.test", A).secure);
    // What the rollover must never look like.
    let elsewhere = tempfile::TempDir::new().unwrap();
    let child = child_records("app.vm.test", TTL_S, 1).zone("app.vm.test");
    let other =
        Signing::open(elsewhere.path(), [(&child, 0)], HASTY, &SigningLimits::default(), now()).unwrap();
    world.publish_as_it_is(other.sign(child));
    let start = Instant::now();
    while client.ask("web.app.vm.test", A).rcode != 2 {
        assert!(start.elapsed() < WAIT_MAX, "{}", unbound.log());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Two rollovers, the server's signing side started anew in the middle of one, under questions without end.
#[test]
fn keys_are_rolled_without_one_servfail() {
    let (mut world, mut parent) = world();
    let unbound = Unbound::start(&world, &STUBS, "");
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let asking: Vec<_> = (0..2)
            .map(|half| {
                let (unbound, over, asked) = (&unbound, &over, &asked);
                scope.spawn(move || ask_without_end(unbound, half, over, asked))
            })
            .collect();
        // Ends the asking also if the assertions below fail.
        let _over = SetOnDrop(&over);
        for round in 0..2 {
            let before = world.states("app.vm.test");
            world.signing.begin_rollover(&name("app.vm.test"), now()).unwrap();
            let new = world.states("app.vm.test").last().unwrap().0;
            let state = |world: &SignedWorld, tag| {
                world
                    .states("app.vm.test")
                    .into_iter()
                    .find(|(other, _)| *other == tag)
                    .map(|(_, state)| state)
            };
            world.step_until("the new key is ready", |world| state(world, new) == Some(KeyState::Ready));
            if round == 0 {
                world.start_anew(HASTY);
            }
            world.delegate(&mut parent, "app.vm.test");
            world.publish(parent.zone("vm.test"));
            world.signing.ds_seen(&name("app.vm.test"), now()).unwrap();
            assert_eq!(state(&world, new), Some(KeyState::Active));
            let old = before.last().unwrap().0;
            world.step_until("the old key has left", |world| state(world, old) == Some(KeyState::Removed));
            // Until no cache has anything from before.
            let asked_before = asked.load(Relaxed);
            let rest = Instant::now() + Duration::from_secs(u64::from(PARENT_TTL_S) + 1);
            while Instant::now() < rest || asked.load(Relaxed) < asked_before + 50 {
                assert!(
                    asking.iter().all(|asking| !asking.is_finished()),
                    "somebody was answered with SERVFAIL"
                );
                thread::sleep(Duration::from_millis(20));
            }
        }
    });
    assert_eq!(world.anchors("app.vm.test").len(), 1);
    assert!(asked.load(Relaxed) > 1_000, "{asked:?}");
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn ask_without_end(unbound: &Unbound, half: u64, over: &AtomicBool, asked: &AtomicU64) {
    let mut client = Client::of(unbound, WAIT_MAX);
    let mut number = 0u64;
    while !over.load(Relaxed) {
        number += 1;
        let random = format!("r{half}-{number}.app.vm.test");
        let under_wildcard = format!("r{half}-{number}.any.app.vm.test");
        for (qname, qtype, answers) in [
            ("web.app.vm.test", A, 2),
            ("web.app.vm.test", AAAA, 0),
            ("www.app.vm.test", A, 2),
            ("alias.app.vm.test", A, 4),
            ("over.vm.test", A, 4),
            ("app.vm.test", SOA, 2),
            (&random, A, 0),
            (&under_wildcard, A, 2),
        ] {
            let said = client.ask(qname, qtype);
            let expected = Said { rcode: 0, secure: true, answers };
            assert_eq!(said, expected, "{qname} {qtype} after {asked:?} questions\n{}", unbound.log());
            asked.fetch_add(1, Relaxed);
        }
        thread::sleep(Duration::from_millis(5));
    }
}
