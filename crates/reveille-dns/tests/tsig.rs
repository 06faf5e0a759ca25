//! What dig and kdig make of signed questions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;

use common::{World, name, service, zone};
use reveille_core::answer::{Acl, AclEntry, View, Zones};
use reveille_dns::DnsConfig;
use reveille_dns::tsig::{Algorithm, Key, Keyring};

/// 32 bytes, and 64.
const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const SECRET_BYTES: &[u8] = b"0123456789abcdef0123456789abcdef";

fn keys() -> Vec<Key> {
    let key = |algorithm: Algorithm| {
        Key::new(name(&format!("{algorithm}.key.test")), algorithm, SECRET_BYTES).unwrap()
    };
    Algorithm::ALL.map(key).to_vec()
}

/// A server with these keys; whoever has the one for SHA-256 may ask for `_vmstate`, by whatever address.
fn world(keys: Keyring) -> World {
    let monitors = Acl::new([AclEntry { networks: Vec::new(), key: Some(name("hmac-sha256.key.test")) }]);
    let zones = Zones::new([Arc::new(zone())]);
    let view = View::new(1, zones, [Arc::new(service("hello.vm.test", 1))], monitors);
    let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
    World::serving(view, &DnsConfig { listen, udp_threads: 1, keys, ..DnsConfig::default() })
}

fn option(algorithm: &str, key: &str, secret: &str) -> String {
    format!("{algorithm}:{key}:{secret}")
}

#[test]
fn signed_questions_are_answered_signed_over_udp_and_tcp() {
    let world = world(Keyring::new(keys()));
    for algorithm in Algorithm::ALL {
        let key = option(algorithm.word(), &format!("{algorithm}.key.test"), SECRET);
        for transport in ["+notcp", "+tcp"] {
            for text in [
                world.dig(&["-y", &key, transport, "hello.vm.test", "A"]),
                world.kdig(&["-y", &key, transport, "hello.vm.test", "A"]),
            ] {
                assert!(text.contains("127.64.0.1") && text.contains("NOERROR"), "{algorithm}: {text}");
                // Both say so when they cannot verify the answer.
                assert!(text.contains("TSIG PSEUDOSECTION"), "{algorithm}: {text}");
                assert!(!text.contains("verify") && !text.contains("not be validated"), "{text}");
            }
        }
        // Too large for UDP: the truncated answer is signed too, and so is the whole one.
        let text = world.dig(&["-y", &key, "big.vm.test", "TXT"]);
        assert_eq!(text.matches("big.vm.test.\t\t300").count(), 60, "{text}");
        assert!(!text.contains("verify"), "{text}");
    }
    assert_eq!(world.server.counts().signatures_refused, 0);
}

#[test]
fn the_longest_question_and_the_longest_key_fit_beside_each_other() {
    let long =
        Key::new(name(&format!("{}.test", "k".repeat(57))), Algorithm::HmacSha512, SECRET_BYTES).unwrap();
    let key = option("hmac-sha512", &long.name().to_string(), SECRET);
    let world = world(Keyring::new([long]));
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}.example", "a".repeat(53));
    for options in [vec!["+bufsize=512", "+subnet=2001:db8::/128"], vec!["+noedns"]] {
        let text = world.dig(&[&["-y", &key, "+ignore"][..], &options, &[&longest, "A"]].concat());
        assert!(text.contains("status: REFUSED") && text.contains("TSIG PSEUDOSECTION"), "{text}");
        assert!(!text.contains("verify"), "{text}");
    }
}

#[test]
fn who_has_the_key_may_ask_for_the_state_from_anywhere() {
    let world = world(Keyring::new(keys()));
    let question = ["_vmstate.hello.vm.test", "TXT"];
    assert!(world.dig(&question).contains("status: REFUSED"));
    let ask = |algorithm: &str| {
        let key = option(algorithm, &format!("{algorithm}.key.test"), SECRET);
        world.dig(&[&["-y", &key][..], &question].concat())
    };
    assert!(ask("hmac-sha384").contains("status: REFUSED"));
    assert!(ask("hmac-sha256").contains("state=inactive"));
}

#[test]
fn clients_can_tell_what_was_wrong_with_their_signature() {
    let fine = world(Keyring::new(keys()));
    let name = "hmac-sha256.key.test";
    let wrong = SECRET.replace('M', "N");
    for (key, error) in [
        (option("hmac-sha256", name, &wrong), "BADSIG"),
        (option("hmac-sha512", name, SECRET), "BADKEY"),
        (option("hmac-sha256", "other.key.test", SECRET), "BADKEY"),
        (option("hmac-sha1", name, SECRET), "BADKEY"),
    ] {
        let text = fine.dig(&["-y", &key, "hello.vm.test", "A"]);
        assert!(text.contains("status: NOTAUTH") && text.contains(error), "{key}: {text}");
        assert!(!text.contains("127.64.0.1"), "{text}");
    }
    assert_eq!(fine.server.counts().signatures_refused, 4);

    let late = world(Keyring::with_clock(keys(), || 1_000_000_000));
    let key = option("hmac-sha256", name, SECRET);
    // Both verify the refusal before they believe it.
    let text = late.dig(&["-y", &key, "hello.vm.test", "A"]);
    assert!(text.contains("status: NOTAUTH") && text.contains("clocks are unsynchronized"), "{text}");
    let text = late.kdig(&["-y", &key, "hello.vm.test", "A"]);
    assert!(text.contains("status: BADTIME"), "{text}");
    assert!(!text.contains("BADSIG") && !text.contains("WARNING: TSIG"), "{text}");
}
