//! The gate as a whole: verdicts, modes, exchange of the rules, counters.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use reveille_core::answer::{ZoneDefaults, Zones};
use reveille_core::model::{DomainName, Timestamp};

use super::super::*;
use crate::respond::Transport;
use crate::wire::Cookie;

const START: Timestamp = Timestamp::from_ms(1_800_000_000_000);

fn zones() -> Vec<DomainName> {
    vec!["a.test".parse().unwrap(), "b.test".parse().unwrap()]
}

fn config(text: &str) -> GateConfig {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}"))
}

/// As a reload does it.
fn exchange(gate: &Gate, config: &GateConfig, zones: &[DomainName], now: Timestamp) -> Result<(), GateError> {
    gate.take(gate.prepare(config, zones, now)?);
    Ok(())
}

/// A gate and one thread's counters.
struct World {
    gate: Gate,
    tally: Arc<GateTally>,
    now: Timestamp,
}

impl World {
    fn new(text: &str) -> Self {
        let gate = Gate::new(&config(text), &zones(), START).unwrap();
        let tally = gate.tally(Writers::One);
        Self { gate, tally, now: START }
    }

    fn exchange(&self, text: &str) {
        exchange(&self.gate, &config(text), &zones(), self.now).unwrap();
    }

    fn arrive(&self, peer: &str, cookie: Option<&Cookie>) -> Client {
        self.arrive_by(Transport::Udp, peer, 1, cookie)
    }

    fn arrive_by(&self, transport: Transport, peer: &str, qtype: u16, cookie: Option<&Cookie>) -> Client {
        let judge = self.gate.judge(self.now, &self.tally);
        let peer = peer.parse().unwrap();
        judge.arrive(&Arrival { peer, transport, cookie, subnet: None, qtype, zone: Some(0) })
    }

    /// Verdicts of so many answers to a peer at this moment: passed, slipped, dropped.
    fn rate(&self, peer: &str, kind: Kind, times: u32) -> [u32; 3] {
        let judge = self.gate.judge(self.now, &self.tally);
        let client = self.arrive(peer, None);
        let mut sums = [0; 3];
        for _ in 0..times {
            match judge.rate(&client, kind) {
                RateVerdict::Pass => sums[0] += 1,
                RateVerdict::Slip => sums[1] += 1,
                RateVerdict::Drop => sums[2] += 1,
            }
        }
        sums
    }

    fn wake(&self, client: &Client, times: u32) -> (u32, WakeVerdict) {
        let judge = self.gate.judge(self.now, &self.tally);
        let verdicts: Vec<WakeVerdict> = (0..times).map(|_| judge.wake(client, 0)).collect();
        let passed = verdicts.iter().map(|verdict| u32::from(verdict.passes())).sum();
        (passed, *verdicts.last().unwrap())
    }

    /// A valid cookie for that peer.
    fn cookie(&self, peer: &str) -> Cookie {
        let judge = self.gate.judge(self.now, &self.tally);
        let own = Cookie::parse(b"a client").unwrap();
        let client = self.arrive(peer, Some(&own));
        assert_eq!(client.cookie, CookieStatus::ClientOnly);
        Cookie::parse(&judge.cookie_for(&client, Some(&own)).unwrap()).unwrap()
    }
}

#[test]
fn a_client_over_its_limit_slips_or_is_dropped_and_others_are_not_concerned() {
    let mut world = World::new("rate.positive_per_s = 10\nrate.positive_burst = 20");
    assert_eq!(world.rate("192.0.2.1", Kind::Positive, 100), [20, 40, 40]);
    // The whole network is one client, also when IPv4 is written as IPv6; each kind by itself.
    assert_eq!(world.rate("192.0.2.200", Kind::Positive, 2), [0, 1, 1]);
    assert_eq!(world.rate("::ffff:192.0.2.3", Kind::Positive, 2), [0, 1, 1]);
    assert_eq!(world.rate("192.0.2.1", Kind::NxDomain, 10), [10, 0, 0]);
    assert_eq!(world.rate("192.0.3.1", Kind::Positive, 10), [10, 0, 0]);
    assert_eq!(world.rate("2001:db8::1", Kind::Positive, 100), [20, 40, 40]);
    assert_eq!(world.rate("2001:db8:0:ff::1", Kind::Positive, 2), [0, 1, 1]);
    assert_eq!(world.rate("2001:db8:0:100::1", Kind::Positive, 2), [2, 0, 0]);
    world.now = START.plus_ms(1_000);
    assert_eq!(world.rate("192.0.2.1", Kind::Positive, 10), [10, 0, 0]);
    let counts = world.gate.counts();
    assert_eq!(counts.of(Counter::Rate(Kind::Positive, RateVerdict::Pass)), 20 + 10 + 20 + 2 + 10);
    assert_eq!(counts.of(Counter::Rate(Kind::Positive, RateVerdict::Slip)), 40 + 1 + 1 + 40 + 1);
    assert_eq!(counts.of(Counter::Rate(Kind::NxDomain, RateVerdict::Pass)), 10);
    assert_eq!(counts.of(Counter::RateShared), 0);
}

#[test]
fn rules_go_with_the_view_whose_zones_they_number() {
    let zone = |name: &str| {
        let apex: DomainName = name.parse().unwrap();
        let defaults = ZoneDefaults {
            name_servers: vec![(apex.prepend("ns1").unwrap(), Vec::<IpAddr>::new())],
            hostmaster: apex.clone(),
            apex,
            serial: 1,
            ttl: 60,
            negative_ttl: 60,
        };
        Arc::new(defaults.zone().unwrap())
    };
    let of = |names: &[&str]| Zones::new(names.iter().map(|name| zone(name)));
    let apexes = |zones: &Zones| zones.iter().map(|zone| zone.apex().clone()).collect::<Vec<_>>();
    let (was, is, later) =
        (of(&["c.test", "a.test", "b.test"]), of(&["b.test", "c.test"]), of(&["c.test", "x.test", "b.test"]));
    let rule = config("[[rule]]\naction = \"drop\"\nzone = [\"b.test\"]");
    let gate = Gate::new(&rule, &apexes(&was), START).unwrap();
    let tally = gate.tally(Writers::One);
    let dropped = |zones: &Zones, name: &str| {
        let judge = gate.judge_for(zones.numbering(), START, &tally);
        let peer = "192.0.2.1".parse().unwrap();
        let zone = zones.find(&name.parse().unwrap());
        let arrival = Arrival { peer, transport: Transport::Udp, cookie: None, subnet: None, qtype: 1, zone };
        judge.arrive(&arrival).entry == Entry::Drop
    };
    assert!(dropped(&was, "b.test") && !dropped(&was, "c.test"));
    // A reload takes a.test away; for a moment some are still answered from the view before.
    exchange(&gate, &rule, &apexes(&is), START).unwrap();
    assert!(dropped(&was, "b.test") && !dropped(&was, "a.test") && !dropped(&was, "c.test"));
    assert!(dropped(&is, "b.test") && !dropped(&is, "c.test"));
    // Changed rules for the same zones hold at once.
    exchange(&gate, &config(""), &apexes(&is), START).unwrap();
    assert!(!dropped(&is, "b.test"));
    // By rules of which nobody knows what they mean, nobody else's questions are dropped.
    exchange(&gate, &rule, &apexes(&later), START).unwrap();
    assert!(dropped(&later, "b.test") && !dropped(&later, "x.test"));
    assert!(["a.test", "b.test", "c.test"].iter().all(|name| !dropped(&was, name)));
}

#[test]
fn slip_is_a_choice() {
    let limit = "rate.error_per_s = 1\nrate.error_burst = 1\n";
    for (slip, expected) in [(0, [1, 0, 90]), (1, [1, 90, 0]), (3, [1, 30, 60]), (10, [1, 9, 81])] {
        let world = World::new(&format!("{limit}rate.slip = {slip}"));
        assert_eq!(world.rate("192.0.2.1", Kind::Error, 91), expected, "{slip}");
    }
}

#[test]
fn who_proves_the_address_or_is_exempt_is_not_limited() {
    let limit = "rate.positive_per_s = 1\nrate.positive_burst = 1\n";
    let world = World::new(limit);
    let judge = world.gate.judge(world.now, &world.tally);
    let cookie = world.cookie("192.0.2.1");
    let proven = world.arrive("192.0.2.1", Some(&cookie));
    assert_eq!((proven.source, proven.cookie), (Source::Proven, CookieStatus::Valid));
    let over_tcp = world.arrive_by(Transport::Tcp, "192.0.2.1", 1, None);
    for client in [proven, over_tcp] {
        assert!((0..100).all(|_| judge.rate(&client, Kind::Positive) == RateVerdict::Pass));
    }
    // The same cookie from elsewhere proves nothing.
    assert_eq!(world.arrive("192.0.2.2", Some(&cookie)).source, Source::Unproven);
    assert_eq!(world.rate("127.0.0.1", Kind::Positive, 100), [100, 0, 0]);
    assert_eq!(world.rate("::ffff:127.0.0.1", Kind::Positive, 100), [100, 0, 0]);
    assert_eq!(world.rate("::1", Kind::Positive, 100), [100, 0, 0]);
    assert_eq!(World::new(&format!("{limit}rate.exempt = []")).rate("::1", Kind::Positive, 3), [1, 1, 1]);
    let rule = "[[rule]]\naction = \"exempt\"\nnetwork = [\"192.0.2.0/24\"]";
    assert_eq!(World::new(&format!("{limit}{rule}")).rate("192.0.2.9", Kind::Positive, 9), [9, 0, 0]);
    assert_eq!(World::new("rate.enabled = false").rate("192.0.2.9", Kind::Positive, 9_000), [9_000, 0, 0]);
    assert_eq!(World::new("rate.positive_per_s = 0").rate("192.0.2.9", Kind::Positive, 9_000), [9_000, 0, 0]);
}

#[test]
fn one_client_wakes_its_budget_and_another_is_unaffected() {
    let mut world = World::new("");
    let greedy = world.arrive("192.0.2.1", None);
    assert_eq!(world.wake(&greedy, 1_000), (60, WakeVerdict::Refused(WakeLimit::Client)));
    assert_eq!(world.wake(&world.arrive("198.51.100.1", None), 10), (10, WakeVerdict::Wake));
    // With a cookie the same network has another budget, which nobody else can spend.
    let cookie = world.cookie("192.0.2.1");
    assert_eq!(world.wake(&world.arrive("192.0.2.1", Some(&cookie)), 10), (10, WakeVerdict::Wake));
    world.now = START.plus_ms(60_000);
    assert_eq!(world.wake(&greedy, 1_000).0, 30);
    let counts = world.gate.counts();
    assert_eq!(counts.of(Counter::Wake(Source::Unproven)), 100);
    assert_eq!(counts.of(Counter::Wake(Source::Proven)), 10);
    assert_eq!(counts.wakes_refused(WakeLimit::Client), 940 + 970);
}

#[test]
fn modes_of_waking() {
    for (mode, expected, passed, refused) in [
        ("on", (60, WakeVerdict::Refused(WakeLimit::Client)), 60, 40),
        ("dry_run", (0, WakeVerdict::Refused(WakeLimit::Mode)), 60, 40),
        ("off", (0, WakeVerdict::Refused(WakeLimit::Mode)), 0, 0),
    ] {
        let world = World::new(&format!("wake.mode = \"{mode}\""));
        assert_eq!(world.wake(&world.arrive("192.0.2.1", None), 100), expected, "{mode}");
        let counts = world.gate.counts();
        assert_eq!(counts.of(Counter::Wake(Source::Unproven)), passed, "{mode}");
        assert_eq!(counts.wakes_refused(WakeLimit::Client), refused, "{mode}");
    }
}

#[test]
fn the_lists_decide_before_anything_else() {
    let world = World::new(
        r#"
        [[rule]]
        action = "exempt"
        network = ["192.0.2.7"]
        [[rule]]
        action = "no_wake"
        network = ["192.0.2.0/24"]
        qtype = ["A", "AAAA"]
        zone = ["a.test"]
        [[rule]]
        action = "refuse"
        network = ["192.0.2.0/24"]
        [[rule]]
        action = "drop"
        network = ["198.51.100.0/24", "2001:db8::/32"]
        source = "unproven"
        "#,
    );
    let exempt = world.arrive("192.0.2.7", None);
    assert_eq!(world.wake(&exempt, 1_000), (1_000, WakeVerdict::Wake));
    let monitor = world.arrive("192.0.2.8", None);
    assert_eq!(monitor.entry, Entry::Enter);
    assert_eq!(world.wake(&monitor, 2), (0, WakeVerdict::Refused(WakeLimit::Rule)));
    assert_eq!(world.arrive_by(Transport::Udp, "192.0.2.8", 16, None).entry, Entry::Refuse);
    assert_eq!(world.arrive("198.51.100.1", None).entry, Entry::Drop);
    assert_eq!(world.arrive("2001:db8::1", None).entry, Entry::Drop);
    assert_eq!(world.arrive_by(Transport::Tcp, "198.51.100.1", 1, None).entry, Entry::Enter);
    assert_eq!(world.arrive("203.0.113.1", None).entry, Entry::Enter);
    let counts = world.gate.counts();
    let rules = [Action::Exempt, Action::NoWake, Action::Refuse, Action::Drop];
    assert_eq!(rules.map(|action| counts.of(Counter::Rule(action))), [1, 1, 1, 2]);
    assert_eq!(counts.of(Counter::WakeExempt), 1_000);
    // Exempt wakes are in no budget.
    assert_eq!(world.wake(&world.arrive("203.0.113.1", None), 60).0, 60);
}

#[test]
fn cookies_can_be_required() {
    let world = World::new("cookies.require = true");
    let own = Cookie::parse(b"a client").unwrap();
    assert_eq!(world.arrive("192.0.2.1", None).entry, Entry::Truncate);
    assert_eq!(world.arrive("192.0.2.1", Some(&own)).entry, Entry::BadCookie);
    let cookie = world.cookie("192.0.2.1");
    assert_eq!(world.arrive("192.0.2.1", Some(&cookie)).entry, Entry::Enter);
    assert_eq!(world.arrive("192.0.2.2", Some(&cookie)).entry, Entry::BadCookie);
    assert_eq!(world.arrive_by(Transport::Tcp, "192.0.2.1", 1, None).entry, Entry::Enter);
    let counts = world.gate.counts();
    assert_eq!((counts.of(Counter::BadCookie), counts.of(Counter::CookieMissing)), (3, 1));
    // Off: neither believed nor given out.
    world.exchange("cookies.enabled = false");
    let client = world.arrive("192.0.2.1", Some(&cookie));
    assert_eq!((client.entry, client.source), (Entry::Enter, Source::Unproven));
    let judge = world.gate.judge(world.now, &world.tally);
    assert_eq!(judge.cookie_for(&client, Some(&cookie)), None);
}

#[test]
fn a_dry_run_counts_everything_and_does_nothing() {
    let text = r#"
        rate.positive_per_s = 1
        rate.positive_burst = 1
        cookies.require = true
        [[rule]]
        action = "drop"
        network = ["192.0.2.0/24"]
        [[rule]]
        action = "no_wake"
        network = ["198.51.100.0/24"]
    "#;
    let world = World::new(&format!("dry_run = true\n{text}"));
    assert_eq!(world.arrive("192.0.2.1", None).entry, Entry::Enter);
    assert_eq!(world.arrive("203.0.113.1", None).entry, Entry::Enter);
    assert_eq!(world.rate("203.0.113.1", Kind::Positive, 101), [101, 0, 0]);
    assert_eq!(world.wake(&world.arrive("203.0.113.1", None), 100), (100, WakeVerdict::Wake));
    assert_eq!(world.wake(&world.arrive("198.51.100.1", None), 5), (5, WakeVerdict::Wake));
    let counts = world.gate.counts();
    assert_eq!(counts.of(Counter::Rule(Action::Drop)), 1);
    assert_eq!(counts.of(Counter::CookieMissing), 4);
    assert_eq!(counts.of(Counter::Rate(Kind::Positive, RateVerdict::Slip)), 50);
    assert_eq!(counts.of(Counter::Rate(Kind::Positive, RateVerdict::Drop)), 50);
    assert_eq!(counts.wakes_refused(WakeLimit::Client), 40);
    assert_eq!(counts.wakes_refused(WakeLimit::Rule), 5);
    // The buckets are as they would be: in force, it goes on from here.
    world.exchange(text);
    assert_eq!(world.rate("203.0.113.1", Kind::Positive, 2), [0, 1, 1]);
    assert_eq!(world.arrive("192.0.2.1", None).entry, Entry::Drop);
}

#[test]
fn exchanged_limits_find_the_buckets_as_they_were() {
    let mut world = World::new("rate.positive_per_s = 100\nrate.positive_burst = 100");
    assert_eq!(world.rate("192.0.2.1", Kind::Positive, 200), [100, 50, 50]);
    assert_eq!(world.wake(&world.arrive("192.0.2.1", None), 100).0, 60);
    // A deeper bucket: only what is new in it passes.
    world.exchange("rate.positive_per_s = 100\nrate.positive_burst = 150");
    assert_eq!(world.rate("192.0.2.1", Kind::Positive, 200)[0], 50);
    assert_eq!(world.wake(&world.arrive("192.0.2.1", None), 100).0, 0);
    // A shallow one: the debt runs out in its time.
    world.exchange("rate.positive_per_s = 100\nrate.positive_burst = 10");
    world.now = START.plus_ms(1_390);
    assert_eq!(world.rate("192.0.2.1", Kind::Positive, 2)[0], 0);
    world.now = START.plus_ms(1_500);
    assert_eq!(world.rate("192.0.2.1", Kind::Positive, 20)[0], 10);
    // A judge that is at work goes on as it began.
    let judge = world.gate.judge(world.now, &world.tally);
    let client = world.arrive("198.51.100.1", None);
    world.exchange("rate.positive_per_s = 100\nrate.positive_burst = 1");
    let passed = (0..20).filter(|_| judge.rate(&client, Kind::Positive) == RateVerdict::Pass).count();
    assert_eq!(passed, 10);
    // What cannot be is refused as a whole.
    let faulty = config("ipv4_prefix = 4\nrate.positive_burst = 1_000_000");
    let error = exchange(&world.gate, &faulty, &zones(), world.now).unwrap_err().to_string();
    assert!(error.contains("gate.ipv4_prefix = 4 (allowed: 8 to 32)"), "{error}");
    assert_eq!(world.rate("203.0.113.1", Kind::Positive, 2)[0], 1);
}

#[test]
fn a_new_table_begins_empty() {
    let world = World::new("rate.positive_per_s = 1\nrate.positive_burst = 1");
    assert_eq!(world.rate("192.0.2.1", Kind::Positive, 9)[0], 1);
    world.exchange("rate.positive_per_s = 1\nrate.positive_burst = 1\nrate.table_kib = 64");
    assert_eq!(world.rate("192.0.2.1", Kind::Positive, 9)[0], 1);
}

#[test]
fn secrets_are_replaced_in_time_and_cookies_outlive_it() {
    let mut world = World::new("cookies.rotate_s = 3600");
    world.now = START.plus_ms(3_599_000);
    assert!(!world.gate.tend(world.now).unwrap());
    let cookie = world.cookie("192.0.2.1");
    world.now = START.plus_ms(3_600_000);
    assert!(world.gate.tend(world.now).unwrap());
    assert!(!world.gate.tend(world.now).unwrap());
    assert_eq!(world.arrive("192.0.2.1", Some(&cookie)).source, Source::Proven);
    world.exchange("");
    assert_eq!(
        world.arrive("192.0.2.1", Some(&cookie)).source,
        Source::Proven,
        "an exchange keeps the secrets"
    );
}

/// A new secret that came out of an old one just then would bring back what others know.
#[test]
fn a_rotation_does_not_undo_an_exchange_of_the_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secrets");
    std::fs::write(&path, "000102030405060708090a0b0c0d0e0f\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let world = World::new("");
    // A rotation has looked at the secrets when a reload brings those of a file.
    let seen = world.gate.secrets.load_full();
    world.exchange(&format!("cookies.secret_file = \"{}\"", path.display()));
    let cookie = world.cookie("192.0.2.1");
    assert!(!world.gate.rotate(&seen, world.now).unwrap());
    assert_eq!(world.arrive("192.0.2.1", Some(&cookie)).source, Source::Proven);
    let shared = world.gate.secrets.load_full();
    assert!(world.gate.rotate(&shared, world.now).unwrap());
}

#[test]
fn counters_outlive_their_threads() {
    let world = World::new("");
    for _ in 0..3 {
        let tally = world.gate.tally(Writers::Several);
        let judge = world.gate.judge(world.now, &tally);
        let peer = IpAddr::from([192, 0, 2, 1]);
        let arrival =
            Arrival { peer, transport: Transport::Tcp, cookie: None, subnet: None, qtype: 1, zone: None };
        let client = judge.arrive(&arrival);
        judge.rate(&client, Kind::Positive);
    }
    assert_eq!(world.gate.counts().of(Counter::RateFree), 3);
    world.gate.tally(Writers::One);
    assert_eq!(world.gate.counts().of(Counter::RateFree), 3);
    assert!(world.gate.tallies.lock().unwrap().threads.len() <= 2);
}

#[test]
fn every_setting_has_a_default_that_is_allowed_and_faults_name_their_keys() {
    assert_eq!(config(""), GateConfig::default());
    assert_eq!(GateConfig::default().faults(), []);
    let text = toml::to_string(&GateConfig::default()).unwrap();
    assert_eq!(config(&text), GateConfig::default());
    for unknown in
        ["x = 1", "rate.x = 1", "wake.x = 1", "cookies.x = 1", "[[rule]]\naction = \"drop\"\nx = 1"]
    {
        assert!(toml::from_str::<GateConfig>(unknown).is_err(), "{unknown}");
    }
    for (text, key, allowed) in [
        ("ipv4_prefix = 33", "ipv4_prefix", "8 to 32"),
        ("ipv6_prefix = 65", "ipv6_prefix", "16 to 64"),
        ("rate.slip = 1001", "rate.slip", "0 to 1000"),
        ("rate.table_kib = 63", "rate.table_kib", "64 to 262144"),
        ("rate.error_per_s = 1000001", "rate.error_per_s", "0 (no limit) to 1000000"),
        ("rate.nodata_burst = 0", "rate.nodata_burst", "1 to 1000000"),
        (
            "wake.host_burst = 36001",
            "wake.host_burst",
            "1 to 36000: what wake.host_per_min = 600 fills again within an hour",
        ),
        ("cookies.rotate_s = 3599", "cookies.rotate_s", "3600 to 3110400"),
        (
            "[[rule]]\naction = \"exempt\"\nsubnet = [\"::/0\"]",
            "rule[0].subnet",
            "`network` beside it, the resolvers that are believed: anybody can send any subnet",
        ),
    ] {
        let faults = config(text).faults();
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert_eq!((faults[0].key.as_str(), faults[0].allowed.as_str()), (key, allowed));
    }
}
