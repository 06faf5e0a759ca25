//! What delv, kdig and dig see of a signed zone.

use std::collections::BTreeSet;
use std::sync::Arc;

use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use proptest::prelude::*;
use reveille_core::answer::{Rcode, rdata};
use reveille_dns::sign::{KeyPolicy, SignCounts, SignatureRates, SigningLimits};

use reveille_dns::{Origin, Setting, Transport, respond};

use crate::common::{active, service};
use crate::signed::{SignedWorld, child_records, now, parent_records};

fn world_with(limits: &SigningLimits) -> SignedWorld {
    let signed = vec![
        parent_records(300, 30).zone("vm.test"),
        child_records("app.vm.test", 300, 30).zone("app.vm.test"),
    ];
    let others = vec![child_records("plain.vm.test", 300, 30).zone("plain.vm.test")];
    SignedWorld::new(KeyPolicy::default(), limits, signed, others)
}

fn world() -> SignedWorld {
    world_with(&SigningLimits::default())
}

/// The records of a section as dig or kdig print it, with white space made single and signatures left out.
fn section(text: &str, title: &str) -> Vec<String> {
    let lines = text.lines().skip_while(|line| !line.starts_with(&format!(";; {title} SECTION"))).skip(1);
    let records = lines.take_while(|line| !line.is_empty());
    let single = records.map(|line| line.split_whitespace().collect::<Vec<_>>());
    let shown = |words: Vec<&str>| {
        let is_signature = words.get(3) == Some(&"RRSIG");
        words[..if is_signature { 5 } else { words.len() }].join(" ")
    };
    single.map(shown).collect()
}

#[test]
fn delv_finds_every_answer_good() {
    const GOOD: &str = "; fully validated";
    const DENIED: &str = "; negative response, fully validated";
    let world = world();
    for (qname, qtype, verdict, shown) in [
        ("hello.vm.test", "A", GOOD, "127.64.0.1"),
        ("awake.vm.test", "A", GOOD, "127.64.0.2"),
        ("six.vm.test", "AAAA", GOOD, "::1"),
        ("vm.test", "DNSKEY", GOOD, "257 3 13"),
        ("vm.test", "SOA", GOOD, "3600 600 604800 30"),
        ("mail.vm.test", "MX", GOOD, "10 NS1.vm.test."),
        ("odd.vm.test", "TYPE65281", GOOD, "\\# 11"),
        ("big.vm.test", "TXT", GOOD, "RRSIG\tTXT"),
        ("hello.vm.test", "ANY", GOOD, "HINFO"),
        ("hello.vm.test", "NSEC", GOOD, "NSEC\t\\000.hello.vm.test. A TXT RRSIG NSEC TYPE65280"),
        ("none.vm.test", "NSEC", GOOD, "NSEC\t\\000.none.vm.test. RRSIG NSEC TYPE128"),
        // As if the name existed: five labels are signed.
        ("a.b.wild.vm.test", "A", GOOD, "RRSIG\tA 13 5 300"),
        ("*.wild.vm.test", "A", GOOD, "RRSIG\tA 13 3 300"),
        ("x.walias.vm.test", "A", GOOD, "127.64.0.1"),
        ("chain.vm.test", "A", GOOD, "127.64.0.1"),
        ("top.vm.test", "DNSKEY", GOOD, "257 3 13"),
        ("out.vm.test", "CNAME", GOOD, "www.elsewhere.test."),
        ("gone.vm.test", "A", GOOD, "nothing.vm.test. NSEC \\000.nothing.vm.test. RRSIG NSEC TYPE128"),
        ("far.vm.test", "DS", GOOD, "12345 13 2"),
        ("hello.vm.test", "AAAA", DENIED, "NSEC \\000.hello.vm.test. A TXT RRSIG NSEC TYPE65280"),
        ("six.vm.test", "TXT", DENIED, "NSEC \\000.six.vm.test. A AAAA RRSIG NSEC TYPE65280"),
        ("odd.vm.test", "A", DENIED, "NSEC \\000.odd.vm.test. RRSIG NSEC TYPE65281"),
        ("vm.test", "A", DENIED, "NSEC \\000.vm.test. NS SOA RRSIG NSEC DNSKEY"),
        ("none.vm.test", "A", DENIED, "NSEC \\000.none.vm.test. RRSIG NSEC TYPE128"),
        ("x.hello.vm.test", "A", DENIED, "NSEC \\000.x.hello.vm.test. RRSIG NSEC TYPE128"),
        ("empty.vm.test", "A", DENIED, "NSEC \\000.empty.vm.test. RRSIG NSEC\n"),
        ("x.wild.vm.test", "MX", DENIED, "NSEC \\000.x.wild.vm.test. A TXT RRSIG NSEC"),
        ("x.exact.wild.vm.test", "A", DENIED, "RRSIG NSEC TYPE128"),
        ("plain.vm.test", "DS", DENIED, "NSEC \\000.plain.vm.test. NS RRSIG NSEC"),
        ("_vmstate.hello.vm.test", "TXT", GOOD, "state=inactive"),
        ("hello.vm.test", "TYPE65280", GOOD, "RRSIG\tTYPE65280 13 3 0"),
        (
            "_vmstate.hello.vm.test",
            "A",
            DENIED,
            "NSEC \\000._vmstate.hello.vm.test. TXT RRSIG NSEC TYPE65280",
        ),
    ] {
        let text = world.delv(&[qname, qtype]);
        let found = text.lines().any(|line| line == verdict) && text.contains(shown);
        assert!(found, "{qname} {qtype}: {verdict} {shown}\n{text}");
        assert!(!text.contains("; unsigned"), "{qname} {qtype}: {text}");
    }
    assert!(world.delv(&["www.plain.vm.test", "A"]).contains("; unsigned answer"));
    let own = world.delv(&["+root=app.vm.test", "web.app.vm.test"]);
    assert!(!own.contains("fully validated"), "trusts a key that nobody gave it: {own}");
}

#[test]
fn a_name_that_does_not_exist_is_nxdomain_only_to_those_who_take_it_beside_a_compact_denial() {
    let world = world();
    let soa = "vm.test. 30 IN SOA ns1.vm.test. hostmaster.vm.test. 1 3600 600 604800 30";
    let text = world.dig(&["none.vm.test"]);
    assert!(text.contains("status: NXDOMAIN"), "{text}");
    assert_eq!(section(&text, "AUTHORITY"), [soa]);
    let proof = [
        soa,
        "vm.test. 30 IN RRSIG SOA",
        "none.vm.test. 30 IN NSEC \\000.none.vm.test. RRSIG NSEC TYPE128",
        "none.vm.test. 30 IN RRSIG NSEC",
    ];
    let text = world.dig(&["+dnssec", "none.vm.test"]);
    assert!(text.contains("status: NOERROR") && text.contains("flags: do; udp"), "{text}");
    assert_eq!(section(&text, "AUTHORITY"), proof);
    let text = world.dig(&["+dnssec", "+coflag", "none.vm.test"]);
    assert!(text.contains("status: NXDOMAIN") && text.contains("flags: do co; udp"), "{text}");
    assert_eq!(section(&text, "AUTHORITY"), proof);
    // CO alone asks for nothing, and an unsigned zone has nothing to be compact about.
    let text = world.dig(&["+coflag", "none.vm.test"]);
    assert!(text.contains("status: NXDOMAIN") && !text.contains(" co;"), "{text}");
    let text = world.dig(&["+dnssec", "+coflag", "none.plain.vm.test"]);
    assert!(text.contains("status: NXDOMAIN") && !text.contains(" co;") && !text.contains("NSEC"), "{text}");
    // What is there is no NXDOMAIN to anybody.
    for there in ["empty.vm.test", "hello.vm.test", "x.wild.vm.test"] {
        let text = world.dig(&["+dnssec", "+coflag", there, "MX"]);
        assert!(text.contains("status: NOERROR") && text.contains(" co;"), "{text}");
    }
    let text = world.dig(&["+dnssec", "hello.vm.test", "TYPE128"]);
    assert!(text.contains("status: FORMERR") && text.contains("EDE: 30"), "{text}");
}

#[test]
fn who_does_not_ask_for_dnssec_sees_the_zone_as_it_was() {
    let world = world();
    for (qname, qtype, answer) in [
        ("hello.vm.test", "A", "hello.vm.test. 5 IN A 127.64.0.1"),
        ("x.wild.vm.test", "A", "x.wild.vm.test. 300 IN A 192.0.2.7"),
        // These are asked for by name.
        (
            "hello.vm.test",
            "NSEC",
            "hello.vm.test. 30 IN NSEC \\000.hello.vm.test. A TXT RRSIG NSEC TYPE65280",
        ),
        ("www.vm.test", "NSEC", "www.vm.test. 30 IN NSEC \\000.www.vm.test. CNAME RRSIG NSEC"),
        ("hello.vm.test", "RRSIG", "hello.vm.test. 30 IN RRSIG NSEC"),
    ] {
        let text = world.kdig(&[qname, qtype]);
        assert_eq!(section(&text, "ANSWER"), [answer], "{qname} {qtype}: {text}");
        assert_eq!(section(&text, "AUTHORITY"), [""; 0], "{qname} {qtype}: {text}");
    }
    let text = world.kdig(&["vm.test", "DNSKEY"]);
    assert!(section(&text, "ANSWER")[0].starts_with("vm.test. 3600 IN DNSKEY 257 3 13"), "{text}");
    assert_eq!(section(&text, "ANSWER").len(), 1);
    let text = world.kdig(&["far.vm.test", "A"]);
    assert_eq!(section(&text, "AUTHORITY"), ["far.vm.test. 300 IN NS ns.elsewhere.test."]);
}

#[test]
fn a_referral_says_whether_it_leads_to_a_signed_zone() {
    let world = world();
    let text = world.kdig(&["+dnssec", "www.far.vm.test", "A"]);
    assert!(text.contains("Flags: qr rd;"), "{text}");
    let authority = section(&text, "AUTHORITY");
    assert_eq!(authority[0], "far.vm.test. 300 IN NS ns.elsewhere.test.");
    assert!(authority[1].starts_with("far.vm.test. 300 IN DS 12345 13 2 ABAB"), "{text}");
    assert_eq!(authority[2..], ["far.vm.test. 300 IN RRSIG DS"]);
    let text = world.kdig(&["+dnssec", "www.lone.vm.test", "A"]);
    assert_eq!(
        section(&text, "AUTHORITY"),
        [
            "lone.vm.test. 300 IN NS ns.lone.vm.test.",
            "lone.vm.test. 30 IN NSEC \\000.lone.vm.test. NS RRSIG NSEC",
            "lone.vm.test. 30 IN RRSIG NSEC"
        ]
    );
    assert_eq!(section(&text, "ADDITIONAL"), ["ns.lone.vm.test. 300 IN A 127.0.0.1"]);
}

#[test]
fn what_does_not_fit_with_its_signatures_is_truncated_whole() {
    let world = world();
    // Fits without signatures.
    let unsigned = world.dig(&["+bufsize=512", "+ignore", "long.vm.test", "A"]);
    assert!(!unsigned.contains(" tc "), "{unsigned}");
    let text = world.dig(&["+dnssec", "+bufsize=512", "+ignore", "long.vm.test", "A"]);
    assert!(text.contains("flags: qr aa tc rd;") && section(&text, "ANSWER").is_empty(), "{text}");
    let text = world.dig(&["+dnssec", "+bufsize=512", "long.vm.test", "A"]);
    assert!(text.contains("(TCP)") && section(&text, "ANSWER").len() == 8, "{text}");
}

#[test]
fn errors_are_not_signed_and_signatures_wake_as_answers_do() {
    let mut world = world();
    let text = world.dig(&["+dnssec", "broken.vm.test"]);
    assert!(
        text.contains("status: SERVFAIL") && text.contains("EDE: 14") && !text.contains("RRSIG"),
        "{text}"
    );
    let text = world.dig(&["+dnssec", "www.elsewhere.example"]);
    assert!(text.contains("status: REFUSED") && !text.contains("RRSIG"), "{text}");
    assert!(world.wakes.try_recv().is_err());
    world.dig(&["+dnssec", "chain.vm.test"]);
    assert_eq!(world.wakes.try_recv().unwrap().service.to_string(), "hello.vm.test");
    for qtype in ["AAAA", "ANY", "NSEC", "RRSIG", "DNSKEY"] {
        world.dig(&["+dnssec", "hello.vm.test", qtype]);
    }
    assert!(world.wakes.try_recv().is_err());
    assert!(world.dig(&["+dnssec", "slow.vm.test"]).contains("RRSIG"), "held, then signed");
}

#[test]
fn a_signature_is_made_once_also_when_the_ttl_goes_with_the_state() {
    let world = world();
    let made = |world: &SignedWorld| world.signing.counts().made;
    let first = world.dig(&["+dnssec", "hello.vm.test"]);
    let before = made(&world);
    assert!(section(&first, "ANSWER").contains(&"hello.vm.test. 5 IN A 127.64.0.1".to_owned()), "{first}");
    let awake = Arc::new(active(service("hello.vm.test", 1)));
    let old = world.shared.load_full();
    world.shared.store(Arc::new(old.with(2, [(awake.name.clone(), Some(Arc::clone(&awake)))])));
    // Also in another spelling, over TCP, through an alias.
    let text = world.dig(&["+dnssec", "+tcp", "HELLO.vm.TEST"]);
    assert!(section(&text, "ANSWER").contains(&"HELLO.vm.TEST. 60 IN A 127.64.0.1".to_owned()), "{text}");
    assert_eq!(made(&world), before);
    assert!(world.delv(&["HELLO.vm.TEST"]).contains("; fully validated"));
    // The state of a service is another the next time, and not kept.
    let before = made(&world);
    for count in 1..4 {
        world.dig(&["+dnssec", "_vmstate.hello.vm.test", "TXT"]);
        assert_eq!(made(&world), before + count);
    }
}

#[test]
fn a_flood_of_random_names_costs_few_signatures_and_nobody_else_notices() {
    let rates = SignatureRates { endless_per_s: 1, ..SignatureRates::default() };
    let world = world_with(&SigningLimits { rates, ..SigningLimits::default() });
    // So that only the denials of the names are missing.
    world.dig(&["+dnssec", "+tcp", "none.vm.test"]);
    let mut truncated = 0;
    for number in 0..40 {
        let name =
            if number % 2 == 0 { format!("r{number}.vm.test") } else { format!("r{number}.wild.vm.test") };
        let text = world.dig(&["+dnssec", "+ignore", &name]);
        let is_truncated = text.contains("flags: qr aa tc rd;");
        assert_eq!(text.contains("RRSIG"), !is_truncated, "{text}");
        truncated += u64::from(is_truncated);
    }
    assert!((20..40).contains(&truncated), "{truncated}");
    let SignCounts { truncated: counted, refused, failed, .. } = world.signing.counts();
    assert_eq!((counted, refused, failed), (truncated, 0, 0));
    // Who comes back over TCP is answered, who asks for what exists too, and who asks without DNSSEC.
    assert!(world.dig(&["+dnssec", "r40.vm.test", "+tcp"]).contains("RRSIG"));
    assert!(world.dig(&["+dnssec", "+ignore", "hello.vm.test"]).contains("RRSIG"));
    assert!(world.dig(&["+ignore", "r41.vm.test"]).contains("status: NXDOMAIN"));

    let rates = SignatureRates { proven_per_s: 0, ..rates };
    let world = world_with(&SigningLimits { rates, ..SigningLimits::default() });
    let text = world.dig(&["+dnssec", "+tcp", "r42.vm.test"]);
    assert!(text.contains("status: SERVFAIL"), "{text}");
    assert_eq!(world.server.counts().of(Rcode::ServFail), 1);
    assert_eq!(world.signing.counts().refused, 1);
}

/// RRsets by owner, type, and whether they are in the answer section.
type Sets = BTreeSet<(String, u16, bool)>;

/// Every RRset, and what the signatures beside them cover.
fn sets_and_signatures(message: &Message) -> (Sets, Sets) {
    let answers = message.answers().iter().map(|record| (record, true));
    let authority = message.name_servers().iter().map(|record| (record, false));
    let (mut sets, mut signatures) = (Sets::new(), Sets::new());
    for (record, is_answer) in answers.chain(authority) {
        let owner = record.name().to_lowercase().to_string();
        match (u16::from(record.record_type()), record.data()) {
            (rdata::RRSIG, RData::Unknown { rdata, .. }) => {
                let covered = rdata.anything().first_chunk::<2>().unwrap();
                signatures.insert((owner, u16::from_be_bytes(*covered), is_answer));
            }
            (rtype, _) => {
                sets.insert((owner, rtype, is_answer));
            }
        }
    }
    (sets, signatures)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is asked of a signed zone: the answer can be read, and with DO each set that is the zone's own has its
    /// signature, and nothing else has.
    #[test]
    fn everything_is_signed_or_nothing(
        labels in prop::collection::vec(
            prop::sample::select(vec!["hello", "www", "chain", "wild", "*", "empty", "deep", "plain", "lone", "far",
                "app", "over", "gone", "none", "_vmstate", "six", "walias", "slow", "big", "mail"]), 0..4),
        qtypes in prop::collection::vec(prop_oneof![0..70u16, prop::sample::select(vec![99, 128, 255, 257, 65_280])], 24),
        edns_flags in prop::sample::select(vec![0u8, 0x40, 0x80, 0xc0]),
        over_udp in any::<bool>(),
    ) {
        thread_local! {
            static WORLD: SignedWorld = world();
        }
        WORLD.with(|world| {
            let view = world.shared.load();
            let qname = labels.iter().map(|label| format!("{label}.")).collect::<String>() + "vm.test";
            for qtype in qtypes {
                let mut packet = vec![1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
                for label in qname.split('.') {
                    packet.push(u8::try_from(label.len()).unwrap());
                    packet.extend(label.bytes());
                }
                packet.push(0);
                packet.extend(qtype.to_be_bytes());
                packet.extend([0, 1, 0, 0, 41, 4, 208, 0, 0, edns_flags, 0, 0, 0]);
                let transport = if over_udp { Transport::Udp } else { Transport::Tcp };
                let at = Setting { view: &view, now: now(), judge: None, keys: None };
                let from = Origin::new(([127, 0, 0, 1], 9).into(), transport);
                let mut out = Vec::new();
                let written = respond(&at, &packet, &from, &mut out).written.unwrap();
                let message = Message::from_vec(&out).unwrap();
                let (mut sets, signatures) = sets_and_signatures(&message);
                let refers = !message.authoritative() && written.rcode == Rcode::NoError;
                sets.retain(|(owner, rtype, is_answer)| *is_answer || *rtype != rdata::NS || owner == "vm.test.");
                if written.truncated {
                    prop_assert!(over_udp && sets.is_empty() && signatures.is_empty());
                } else if qtype == rdata::RRSIG && !refers {
                    prop_assert!(sets.len() <= 1, "{:?}", sets);
                } else if edns_flags & 0x80 == 0 {
                    prop_assert!(signatures.is_empty(), "{qname} {qtype}");
                } else if signatures.is_empty() {
                    // An error, or a zone that is not signed.
                    let other = qname.ends_with("plain.vm.test");
                    prop_assert!(other || (sets.is_empty() && written.rcode != Rcode::NxDomain), "{qname} {qtype}");
                } else {
                    prop_assert_eq!(sets, signatures, "{} {}", qname, qtype);
                    prop_assert!(written.rcode != Rcode::NxDomain || edns_flags == 0xc0, "{qname} {qtype}");
                }
            }
            Ok(())
        })?;
    }
}
