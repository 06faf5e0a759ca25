use super::*;

const fn at(seconds: u64) -> Timestamp {
    Timestamp::from_ms(seconds * 1_000)
}

const POLICY: KeyPolicy = KeyPolicy {
    ttl_s_max: 100,
    dnskey_ttl_s: 10,
    propagation_s: 1,
    ds_ttl_s: 50,
    parent_propagation_s: 20,
    key_life_s: 0,
};

fn states(ledger: &Ledger) -> Vec<(u16, KeyState)> {
    ledger.keys().iter().map(|key| (key.tag, key.state().0)).collect()
}

#[test]
fn a_rollover_takes_its_steps_in_order_and_no_sooner_than_caches_forget() {
    use KeyState::{Active, Published, Ready, Removed, Retired};
    let mut ledger = Ledger::first(1, 300, &POLICY, at(0));
    assert_eq!((ledger.signing(), ledger.wished()), (Some(1), None));
    let too_early = RolloverError::TooEarly { tag: 1, wait_s: 301 };
    assert_eq!(ledger.ds_seen(&POLICY, at(0)), Err(too_early));
    // Unsigned answers were given with up to 300 s.
    assert_eq!(ledger.step(&POLICY, at(300)).next_look, Some(at(301)));
    assert_eq!(ledger.wished(), None);
    ledger.step(&POLICY, at(301));
    assert_eq!(ledger.wished(), Some(1));
    assert_eq!(ledger.ds_seen(&POLICY, at(400)), Ok(vec![]));
    assert_eq!(ledger.keys()[0].ds_seen, Some(at(400)));

    assert!(ledger.begin(1, at(500)).is_err());
    ledger.begin(2, at(500)).unwrap();
    assert_eq!(states(&ledger), [(1, Active), (2, Published)]);
    assert_eq!(ledger.begin(3, at(501)), Err(RolloverError::UnderWay { tag: 2, state: Published }));
    let too_early = RolloverError::TooEarly { tag: 2, wait_s: 6 };
    assert_eq!(ledger.ds_seen(&POLICY, at(505)), Err(too_early));
    assert_eq!(ledger.step(&POLICY, at(510)), Step { next_look: Some(at(511)), ..Step::default() });
    ledger.step(&POLICY, at(511));
    assert_eq!(states(&ledger), [(1, Active), (2, Ready)]);
    assert_eq!((ledger.signing(), ledger.wished()), (Some(1), Some(2)));
    // Time alone does not go on: the parent decides.
    assert_eq!(ledger.step(&POLICY, at(9_000)), Step::default());
    let changes = ledger.ds_seen(&POLICY, at(10_000)).unwrap();
    assert_eq!(
        changes.iter().map(|change| (change.tag, change.to)).collect::<Vec<_>>(),
        [(1, Retired), (2, Active)]
    );
    assert_eq!(ledger.ds_seen(&POLICY, at(10_001)), Ok(vec![]));
    assert_eq!((ledger.signing(), ledger.wished()), (Some(2), Some(2)));
    assert_eq!(ledger.published().collect::<Vec<_>>(), [1, 2]);
    assert_eq!(ledger.step(&POLICY, at(10_100)).next_look, Some(at(10_101)));
    ledger.step(&POLICY, at(10_101));
    assert_eq!(states(&ledger), [(1, Removed), (2, Active)]);
    assert_eq!(ledger.published().collect::<Vec<_>>(), [2]);
    assert!(ledger.fault().is_none() && ledger.may_begin().is_ok());
}

#[test]
fn shorter_ttls_count_from_when_the_longer_ones_are_forgotten() {
    let mut ledger = Ledger::first(1, 0, &POLICY, at(0));
    ledger.step(&POLICY, at(500));
    let short = KeyPolicy { ttl_s_max: 2, dnskey_ttl_s: 2, ..POLICY };
    ledger.step(&short, at(1_000));
    ledger.begin(2, at(1_001)).unwrap();
    assert_eq!(ledger.step(&short, at(1_010)).next_look, Some(at(1_101)));
    ledger.step(&short, at(1_101));
    assert_eq!(ledger.wished(), Some(2));
}

#[test]
fn a_key_that_is_old_enough_is_rolled_if_its_delegation_is_known() {
    let policy = KeyPolicy { key_life_s: 1_000, ..POLICY };
    let mut ledger = Ledger::first(1, 0, &policy, at(0));
    assert!(!ledger.step(&policy, at(5_000)).wants_key);
    ledger.ds_seen(&policy, at(5_000)).unwrap();
    assert!(ledger.step(&policy, at(5_001)).wants_key);
    ledger.begin(2, at(5_001)).unwrap();
    assert!(!ledger.step(&policy, at(7_000)).wants_key);
}

#[test]
fn removed_keys_are_forgotten_one_day() {
    let mut ledger = Ledger::first(0, 0, &POLICY, at(0));
    for tag in 1..100 {
        let begun = at(u64::from(tag) * 10_000);
        ledger.begin(tag, begun).unwrap();
        ledger.step(&POLICY, begun.plus_ms(1_000_000));
        ledger.ds_seen(&POLICY, begun.plus_ms(2_000_000)).unwrap();
        ledger.step(&POLICY, begun.plus_ms(3_000_000));
    }
    assert_eq!(ledger.keys().len(), KEYS_REMEMBERED_MAX);
    assert_eq!(ledger.signing(), Some(99));
}

// --- Validators that cache ---------------------------------------------------------------------------------------

struct Dice(u64);

impl Dice {
    /// A number from 0 to `max`.
    fn up_to(&mut self, max: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % (max + 1)
    }

    fn seconds(&mut self, max: u32) -> u64 {
        self.up_to(u64::from(max) * 1_000)
    }
}

/// What the zone's server answers at a moment.
#[derive(Clone)]
struct Served {
    since: Timestamp,
    /// Signs the DNSKEY set whole. Empty before the zone is signed.
    dnskey: Vec<u16>,
    data: Option<u16>,
    dnskey_ttl_s: u32,
    ttl_s_max: u32,
}

/// A validating resolver: what it has, and until when. `None` in a DS set is a proof that there is none.
#[derive(Clone, Default)]
struct Validator {
    ds: Option<(Option<u16>, Timestamp)>,
    dnskey: Option<(Vec<u16>, Timestamp)>,
    data: [Option<(Option<u16>, Timestamp)>; 3],
}

struct World {
    dice: Dice,
    /// How it really is; the ledger may be told something else.
    truth: KeyPolicy,
    now: Timestamp,
    served: Vec<Served>,
    /// For each of the parent's servers its DS sets, with the time from which on it has them.
    parent: Vec<Vec<(Timestamp, Option<u16>)>>,
    validators: Vec<Validator>,
}

impl World {
    fn new(seed: u64, truth: KeyPolicy, unsigned_ttl_s: u32) -> Self {
        let unsigned = Served {
            since: at(0),
            dnskey: Vec::new(),
            data: None,
            dnskey_ttl_s: truth.dnskey_ttl_s,
            ttl_s_max: unsigned_ttl_s,
        };
        Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            truth,
            now: at(1_000),
            served: vec![unsigned],
            parent: vec![vec![(at(0), None)]; 3],
            validators: vec![Validator::default(); 12],
        }
    }

    fn serve(&mut self, ledger: &Ledger) {
        self.served.push(Served {
            since: self.now,
            dnskey: ledger.published().collect(),
            data: ledger.signing(),
            dnskey_ttl_s: self.truth.dnskey_ttl_s,
            ttl_s_max: self.truth.ttl_s_max,
        });
    }

    /// The parent takes a DS: its first server at once, the others within the time that it takes.
    fn delegate(&mut self, tag: u16) {
        for server in 0..self.parent.len() {
            let lag = if server == 0 { 0 } else { self.dice.seconds(self.truth.parent_propagation_s) };
            self.parent[server].push((self.now.plus_ms(lag), Some(tag)));
        }
    }

    /// Lets time pass with questions now and then; a sentence if one was answered with SERVFAIL.
    fn pass(&mut self, until: Timestamp) -> Result<(), String> {
        while self.now < until {
            let pause = 1 + self.dice.up_to(1_500);
            self.now = self.now.plus_ms(pause).min(until);
            let who = usize::try_from(self.dice.up_to(11)).unwrap();
            let name = usize::try_from(self.dice.up_to(2)).unwrap();
            self.ask(who, name)?;
        }
        Ok(())
    }

    fn ask(&mut self, who: usize, name: usize) -> Result<(), String> {
        let mut validator = std::mem::take(&mut self.validators[who]);
        let now = self.now;
        if validator.ds.is_none_or(|(_, until)| until <= now) {
            let server = usize::try_from(self.dice.up_to(2)).unwrap();
            let ds = self.parent[server].iter().rev().find(|(since, _)| *since <= now).unwrap().1;
            validator.ds = Some((ds, now.plus_ms(u64::from(self.truth.ds_ttl_s) * 1_000)));
        }
        // Answers may have been under way for a while.
        let sent_ms = now.as_ms() - self.dice.seconds(self.truth.propagation_s).min(now.as_ms());
        let sent = self.served.iter().rev().find(|served| served.since.as_ms() <= sent_ms).unwrap().clone();
        if validator.dnskey.as_ref().is_none_or(|(_, until)| *until <= now) {
            let until = now.plus_ms(u64::from(sent.dnskey_ttl_s) * 1_000);
            validator.dnskey = Some((sent.dnskey.clone(), until));
        }
        if validator.data[name].is_none_or(|(_, until)| until <= now) {
            let ttl_ms = self.dice.seconds(sent.ttl_s_max);
            validator.data[name] = Some((sent.data, now.plus_ms(ttl_ms)));
        }
        let (ds, dnskey) = (validator.ds.unwrap().0, &validator.dnskey.as_ref().unwrap().0);
        let data = validator.data[name].unwrap().0;
        // Without a DS nothing is validated.
        let bogus =
            ds.is_some_and(|ds| !dnskey.contains(&ds) || data.is_none_or(|signer| !dnskey.contains(&signer)));
        let text = format!("at {now:?}: DS {ds:?}, DNSKEY {dnskey:?}, data signed by {data:?}");
        self.validators[who] = validator;
        if bogus { Err(text) } else { Ok(()) }
    }
}

/// From unsigned through some rollovers, each step as early as it is allowed. `told` makes what the ledger believes
/// of what is true.
fn live(seed: u64, told: impl Fn(&mut KeyPolicy)) -> Result<(), String> {
    let mut dice = Dice(seed | 1 << 40);
    let mut seconds = |max| 1 + u32::try_from(dice.up_to(max)).unwrap();
    let truth = KeyPolicy {
        ttl_s_max: seconds(120),
        dnskey_ttl_s: seconds(120),
        propagation_s: seconds(30),
        ds_ttl_s: seconds(120),
        parent_propagation_s: seconds(60),
        key_life_s: 0,
    };
    let unsigned_ttl_s = seconds(200);
    let mut policy = truth;
    told(&mut policy);
    let mut world = World::new(seed, truth, unsigned_ttl_s);
    world.pass(at(1_300))?;
    let mut ledger = Ledger::first(1, unsigned_ttl_s, &policy, world.now);
    world.serve(&ledger);
    for tag in 2..7 {
        while let Some(look) = ledger.step(&policy, world.now).next_look {
            world.serve(&ledger);
            world.pass(look)?;
        }
        world.serve(&ledger);
        let wished = ledger.wished().unwrap();
        let decides = world.dice.up_to(100_000);
        world.pass(world.now.plus_ms(decides))?;
        world.delegate(wished);
        ledger.ds_seen(&policy, world.now).unwrap();
        world.serve(&ledger);
        if world.dice.up_to(3) == 0 {
            // Other TTLs from now on.
            let other = [seconds(120), seconds(120)];
            [world.truth.ttl_s_max, world.truth.dnskey_ttl_s] = other;
            [policy.ttl_s_max, policy.dnskey_ttl_s] = other;
            told(&mut policy);
        }
        while let Some(look) = ledger.step(&policy, world.now).next_look {
            world.serve(&ledger);
            world.pass(look)?;
        }
        world.serve(&ledger);
        assert_eq!(ledger.fault(), None);
        if world.dice.up_to(1) == 0 {
            let rest = world.dice.up_to(100_000);
            world.pass(world.now.plus_ms(rest))?;
        }
        ledger.begin(tag, world.now).unwrap();
        world.serve(&ledger);
    }
    Ok(())
}

const LIVES: u64 = 300;

#[test]
fn no_validator_ever_finds_the_zone_bogus() {
    for seed in 0..LIVES {
        live(seed, |_| {}).unwrap_or_else(|bogus| panic!("seed {seed}: {bogus}"));
    }
}

/// Each of the times is waited for because it must be: who is told less sooner or later breaks the zone.
#[test]
fn every_wait_is_needed() {
    type Shorten = fn(&mut KeyPolicy);
    let shortened: [(&str, Shorten); 5] = [
        ("ttl_s_max", |policy| policy.ttl_s_max = 0),
        ("dnskey_ttl_s", |policy| policy.dnskey_ttl_s = 0),
        ("propagation_s", |policy| policy.propagation_s = 0),
        ("ds_ttl_s", |policy| policy.ds_ttl_s = 0),
        ("parent_propagation_s", |policy| policy.parent_propagation_s = 0),
    ];
    for (what, shorten) in shortened {
        let broken = (0..LIVES).filter(|&seed| live(seed, shorten).is_err()).count();
        assert!(broken > 0, "{what} is not needed");
    }
}
