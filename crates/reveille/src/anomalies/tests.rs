use reveille_core::forecast::anomaly::Kind;
use reveille_store::history::{History, Limits as HistoryLimits};

use super::*;

/// 2026-11-22T00:00:00Z.
const START: u64 = 1_795_305_600_000;

struct World {
    _dir: tempfile::TempDir,
    history: History,
    anomalies: Anomalies,
    minute: u64,
    /// When it was last judged.
    flooded: BTreeSet<DomainName>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path(), HistoryLimits::default()).unwrap().0;
        Self { _dir: dir, history, anomalies: Anomalies::new(3.0), minute: 0, flooded: BTreeSet::new() }
    }

    /// A minute with these questions.
    fn minute(&mut self, counts: &[(&str, u64)]) {
        let look = |anomalies: &mut Anomalies, ms: u64, history: &History| {
            anomalies.look(Timestamp::from_ms(START + ms), &history.reader(), &history.recorder());
        };
        look(&mut self.anomalies, self.minute * MINUTE_MS + 1_000, &self.history);
        for (service, count) in counts {
            self.anomalies.asked(&service.parse().unwrap(), *count);
        }
        self.minute += 1;
        look(&mut self.anomalies, self.minute * MINUTE_MS + 1_000, &self.history);
    }

    fn noted(&self, service: &str) -> Vec<Noted> {
        assert!(self.history.recorder().flush());
        let stored = self.history.reader().anomalies(service.as_bytes(), 100).unwrap();
        stored.iter().map(|stored| noted_of(stored).unwrap()).collect()
    }

    fn events(&self, service: &str) -> Vec<Event> {
        self.noted(service).iter().map(|noted| noted.event).collect()
    }

    /// So many questions in a minute that goes on, from these, of whom so many connect; gives what is demand.
    fn burst(&mut self, queries: u64, crowd: Crowd, connected: u64) -> f64 {
        let service: DomainName = "a.vm.test".parse().unwrap();
        let at = |ms: u64| Timestamp::from_ms(START + ms);
        let (reader, recorder) = (self.history.reader(), self.history.recorder());
        self.anomalies.look(at(self.minute * MINUTE_MS + 1_000), &reader, &recorder);
        self.anomalies.asked(&service, queries);
        self.anomalies.connected(&service, connected, 0);
        assert_eq!(self.anomalies.asked_for(50).collect::<Vec<_>>(), [&service]);
        self.anomalies.judge(&BTreeMap::from([(service.clone(), crowd)]), &reader, &recorder);
        let share = self.anomalies.demand_share(&service);
        self.flooded = self.anomalies.flooded();
        self.minute += 1;
        assert!(self.anomalies.look(at(self.minute * MINUTE_MS), &reader, &recorder));
        assert!(!self.anomalies.look(at(self.minute * MINUTE_MS + 1), &reader, &recorder));
        share * queries as f64
    }
}

/// About ten in a minute.
fn usual(minute: u64) -> u64 {
    8 + minute * 7 % 5
}

#[test]
fn a_spike_is_noted_with_its_evidence_while_it_goes_on_and_when_it_is_over() {
    let mut world = World::new();
    for minute in 0..120 {
        world.minute(&[("a.vm.test", usual(minute)), ("b.vm.test", usual(minute))]);
    }
    assert_eq!(world.events("a.vm.test"), []);
    world.minute(&[("a.vm.test", 200), ("b.vm.test", 10)]);
    let [begun] = world.events("a.vm.test").try_into().unwrap();
    assert_eq!((begun.kind, begun.observed, begun.points), (Kind::Spike, 200.0, 1));
    assert_eq!(begun.since, Timestamp::from_ms(START + 120 * MINUTE_MS));
    assert!(begun.is_alarm() && begun.deviation_sd > 3.0 && (begun.expected - 10.0).abs() < 3.0, "{begun:?}");
    for minute in 0..10 {
        world.minute(&[("a.vm.test", if minute == 0 { 300 } else { usual(minute) }), ("b.vm.test", 9)]);
    }
    // The same event, with what it came to.
    let [over] = world.events("a.vm.test").try_into().unwrap();
    assert_eq!((over.since, over.observed, over.points), (begun.since, 300.0, 2));
    assert_eq!(world.events("b.vm.test"), [], "others have none");
}

#[test]
fn a_flood_is_no_demand_and_a_crowd_is_and_both_say_so_in_what_is_noted() {
    let cases = [
        // Sources that are used once, and nobody connects.
        (Crowd { queries: 1_950, clients: 1_900, top_client: 2, proven: 0 }, 0, Nature::Spoofed, 0.0..30.0),
        (
            Crowd { queries: 1_950, clients: 40, top_client: 1_800, proven: 0 },
            3,
            Nature::SingleSource,
            50.0..300.0,
        ),
        // Many who come over resolvers, and many of them connect.
        (
            Crowd { queries: 1_950, clients: 1_500, top_client: 9, proven: 0 },
            400,
            Nature::FlashCrowd,
            2_000.0..2_001.0,
        ),
    ];
    for (crowd, connected, nature, demand) in cases {
        let mut world = World::new();
        (0..120).for_each(|minute| world.minute(&[("a.vm.test", usual(minute))]));
        let found = world.burst(2_000, crowd, connected);
        assert!(demand.contains(&found), "{nature:?}: {found}");
        let [noted] = world.noted("a.vm.test").try_into().unwrap();
        assert_eq!((noted.event.kind, noted.judgement.map(|own| own.nature)), (Kind::Spike, Some(nature)));
        // The next minute is judged for itself; the event says what it was at its height.
        assert_eq!(world.anomalies.demand_share(&"a.vm.test".parse().unwrap()), 1.0);
        (0..5).for_each(|minute| world.minute(&[("a.vm.test", usual(minute))]));
        let [over] = world.noted("a.vm.test").try_into().unwrap();
        assert_eq!(over.judgement, noted.judgement);
    }
}

const FLOOD: Crowd = Crowd { queries: 1_950, clients: 40, top_client: 1_950, proven: 0 };

#[test]
fn load_is_no_flood_as_long_as_nobody_knows_what_is_usual() {
    // Somebody new: a resolver that asks for many is all there is to see.
    let mut world = World::new();
    for _ in 0..3 {
        assert_eq!(world.burst(2_000, FLOOD, 0), 2_000.0);
        assert_eq!(world.flooded, BTreeSet::new());
    }
    assert!(world.noted("a.vm.test").iter().all(|noted| noted.judgement.is_none()));
    // After a restart what was learned before is known in the first minute.
    let mut world = World::new();
    (0..120).for_each(|minute| world.minute(&[("a.vm.test", 1_900 + usual(minute))]));
    world.anomalies.save(&world.history.recorder());
    assert!(world.history.recorder().flush());
    world.anomalies = Anomalies::new(3.0);
    assert_eq!(world.burst(1_905, FLOOD, 0), 1_905.0, "as ever");
    world.anomalies = Anomalies::new(3.0);
    assert!(world.burst(20_000, FLOOD, 0) < 2_000.0);
}

#[test]
fn a_flooded_service_is_so_until_a_minute_was_over_without_a_flood() {
    let mut world = World::new();
    (0..120).for_each(|minute| world.minute(&[("a.vm.test", usual(minute)), ("b.vm.test", 9)]));
    assert_eq!(world.anomalies.flooded(), BTreeSet::new());
    world.burst(2_000, FLOOD, 0);
    let flooded = BTreeSet::from(["a.vm.test".parse::<DomainName>().unwrap()]);
    assert_eq!(
        (&world.flooded, world.anomalies.flooded()),
        (&flooded, flooded.clone()),
        "and in the next minute"
    );
    world.minute(&[("a.vm.test", 9), ("b.vm.test", 9)]);
    assert_eq!(world.anomalies.flooded(), BTreeSet::new());
}

#[test]
fn silence_of_a_busy_service_is_a_drop() {
    let mut world = World::new();
    (0..120).for_each(|minute| world.minute(&[("a.vm.test", 50 + usual(minute))]));
    (0..5).for_each(|_| world.minute(&[]));
    assert_eq!(world.events("a.vm.test")[0].kind, Kind::Drop);
}

#[test]
fn a_quiet_service_has_its_detector_on_the_disk_and_goes_on_from_there() {
    let mut world = World::new();
    (0..120).for_each(|minute| world.minute(&[("a.vm.test", usual(minute))]));
    (0..=QUIET_MINUTES).for_each(|_| world.minute(&[("b.vm.test", 1)]));
    assert_eq!(world.anomalies.watched.keys().map(ToString::to_string).collect::<Vec<_>>(), ["b.vm.test"]);
    // What it knows is not lost: a detector without memory would take whatever comes as usual.
    assert!(world.history.recorder().flush());
    world.minute(&[("a.vm.test", 5_000)]);
    let found = world.events("a.vm.test");
    assert_eq!((found[0].kind, found[0].observed), (Kind::Spike, 5_000.0), "{found:?}");
    world.anomalies.forget(&"a.vm.test".parse().unwrap());
    assert_eq!(world.anomalies.watched.len(), 1);
}

#[test]
fn another_threshold_changes_what_is_an_anomaly_from_the_next_minute_on() {
    let mut world = World::new();
    (0..120).for_each(|minute| world.minute(&[("a.vm.test", usual(minute))]));
    world.anomalies.set_threshold_sd(90.0);
    world.minute(&[("a.vm.test", 40)]);
    assert_eq!(world.events("a.vm.test"), []);
    world.anomalies.set_threshold_sd(3.0);
    world.minute(&[("a.vm.test", 40)]);
    assert_eq!(world.events("a.vm.test").len(), 1);
}

#[test]
fn detectors_have_a_number_of_places_and_a_size_on_the_disk() {
    let mut world = World::new();
    let names: Vec<String> = (0..DETECTORS_MAX + 3).map(|number| format!("s{number}.vm.test")).collect();
    let counts: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    world.minute(&counts);
    let watching = world.anomalies.watching();
    assert_eq!((watching.watched(), watching.unwatched()), (DETECTORS_MAX as u64, 3));
    // Those that were asked for the longest ago make way for who comes, and what is known of them goes to the disk.
    world.minute(&counts[1..]);
    let places = |world: &World| {
        let is_watched =
            |name: &str| world.anomalies.watched.contains_key(&name.parse::<DomainName>().unwrap());
        (is_watched("s0.vm.test"), counts[1..].iter().filter(|(name, _)| is_watched(name)).count())
    };
    assert_eq!((places(&world), watching.unwatched()), ((false, DETECTORS_MAX), 3 + 2));
    assert!(world.history.recorder().flush());
    assert!(world.history.reader().detector_state(b"s0.vm.test").unwrap().is_some());
    world.minute(&counts[..1]);
    assert_eq!((places(&world), watching.unwatched()), ((true, DETECTORS_MAX - 1), 3 + 2));
    // One with all its memories full has room on the disk.
    let mut detector = Detector::new(Settings::default()).unwrap();
    for minute in 0..30_000_u64 {
        let value = (minute.wrapping_mul(2_654_435_761) % 100_003) as f64;
        detector.observe(Timestamp::from_ms(minute * 300_000), value).unwrap();
    }
    let plain = serde_json::to_vec(&detector).unwrap();
    let packed = zstd::bulk::compress(&plain, zstd::DEFAULT_COMPRESSION_LEVEL).unwrap();
    assert!(plain.len() < PLAIN_BYTES_MAX / 4, "{}", plain.len());
    assert!(packed.len() < reveille_store::history::DETECTOR_BYTES_MAX / 2, "{}", packed.len());
}
