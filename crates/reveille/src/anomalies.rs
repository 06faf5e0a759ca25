//! What is out of the ordinary in how often services are asked for, minute by minute.
//!
//! ```text
//!   questions of a second ─► count of the minute ─► (minute over) detector of the service ─► event ─► catalogue
//! ```
//!
//! A service that is asked for has its detector in memory, [`DETECTORS_MAX`] of them at most, some 9 kB each; one that nobody asked for in
//! [`QUIET_MINUTES`] has it in the catalogue of the history alone, and its quiet time beyond that is left out when it is asked
//! for again. An event is noted when it begins, when it turns out to be of another kind, and when it is over.
//!
//! While a service is asked for far more than usual, each second says anew whether that is a crowd or a flood, by who asks in this
//! minute and how many connect. What a flood asks is no demand ([`Anomalies::demand_share`]).

use std::collections::BTreeMap;

use reveille_core::forecast::anomaly::flood::{Interval, Judgement, Limits, Nature, judge};
use reveille_core::forecast::anomaly::{Detector, Event, Settings};
use reveille_core::model::{DomainName, Timestamp};
use reveille_dns::observe::Crowd;
use reveille_store::history::{Reader, Recorder, StoredAnomaly, StoredForecast};
use serde::{Deserialize, Serialize};

use crate::room::arrivals::rounded;

/// Services that are watched at a time; of more those that were asked for last.
pub const DETECTORS_MAX: usize = 2_048;
/// After so many minutes without a question a service is quiet.
pub const QUIET_MINUTES: u64 = 60;
/// How often detectors are saved, in minutes.
const SAVE_EVERY: u64 = 5;
/// The form of stored detectors.
const FORM: u32 = 1;
/// Most bytes of a detector before it is packed for the disk.
const PLAIN_BYTES_MAX: usize = 256 * 1_024;
const MINUTE_MS: u64 = 60_000;

/// All detectors.
#[derive(Debug)]
pub struct Anomalies {
    settings: Settings,
    watched: BTreeMap<DomainName, Watched>,
    /// The minute that goes on, since 1970; none before the first question.
    minute: Option<u64>,
    counts: BTreeMap<DomainName, u64>,
    /// Clients that connected in this minute: those that came, and the most that were connected at a time.
    connected: BTreeMap<DomainName, (u64, u64)>,
    /// What this minute is so far, of services that are asked for much.
    judged: BTreeMap<DomainName, Judgement>,
    /// Services that had no detector, since there were too many.
    unwatched: u64,
}

/// One of them.
#[derive(Debug)]
struct Watched {
    detector: Detector,
    /// The minute in which it was last asked for.
    asked: u64,
    unsaved: bool,
    /// What was expected of the last minute, and the standard deviation.
    usual: (f64, f64),
    /// The event under way as it was noted.
    noted: Option<Noted>,
}

/// An anomaly as it is kept: the event, and what it was taken for if it was judged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Noted {
    /// With its evidence.
    pub event: Event,
    /// The judgement of its minute with most questions.
    #[serde(default)]
    pub judgement: Option<Judgement>,
}

impl Anomalies {
    /// Nobody is watched yet.
    pub fn new(threshold_sd: f64) -> Self {
        let settings = Settings { threshold_sd, ..Settings::default() };
        Self {
            settings,
            watched: BTreeMap::new(),
            minute: None,
            counts: BTreeMap::new(),
            connected: BTreeMap::new(),
            judged: BTreeMap::new(),
            unwatched: 0,
        }
    }

    /// Changes from how many standard deviations on something is an anomaly, from the next minute on.
    pub fn set_threshold_sd(&mut self, threshold_sd: f64) {
        self.settings.threshold_sd = threshold_sd;
        for (service, watched) in &mut self.watched {
            if let Err(faults) = watched.detector.set_threshold_sd(threshold_sd) {
                tracing::warn!(%service, ?faults, "the threshold of anomalies is not taken over");
            }
        }
    }

    /// So many questions came for the service.
    pub fn asked(&mut self, service: &DomainName, questions: u64) {
        if let Some(count) = self.counts.get_mut(service) {
            *count += questions;
        } else {
            self.counts.insert(service.clone(), questions);
        }
    }

    /// So many more clients connected to the service, and so many are connected now.
    pub fn connected(&mut self, service: &DomainName, more: u64, now: u64) {
        let (came, most) = self.connected.entry(service.clone()).or_default();
        (*came, *most) = (*came + more, now.max(*most));
    }

    /// Services that were asked for so often in this minute.
    pub fn asked_for(&self, questions: u64) -> impl Iterator<Item = &DomainName> {
        self.counts.iter().filter(move |(_, count)| **count >= questions).map(|(service, _)| service)
    }

    /// Says of services whether what is asked of them in this minute is a crowd or a flood, by who asks. Questions that other servers
    /// tell of are taken to be like the own.
    pub fn judge(&mut self, crowds: &BTreeMap<DomainName, Crowd>) {
        let limits = Limits { threshold_sd: self.settings.threshold_sd, ..Limits::default() };
        for (service, crowd) in crowds {
            let queries = self.counts.get(service).copied().unwrap_or_default();
            let (came, most) = self.connected.get(service).copied().unwrap_or_default();
            let (expected, spread) = self.watched.get(service).map_or((0.0, 1.0), |watched| watched.usual);
            // Of some queries it is not known who asked them.
            let of_all = |part: u64| rounded(part as f64 * queries as f64 / crowd.queries.max(1) as f64);
            let interval = Interval {
                queries,
                expected,
                spread,
                top_name: queries,
                clients: crowd.clients,
                top_client: of_all(crowd.top_client),
                top_client_existing: of_all(crowd.top_client),
                proven: of_all(crowd.proven),
                connected: came.max(most),
                ..Interval::default()
            };
            let judgement = judge(&interval, &limits);
            let before = self.judged.insert(service.clone(), judgement).map(|before| before.nature);
            if before != Some(judgement.nature) && judgement.nature.is_flood() {
                let (nature, reason) = (judgement.nature, judgement.reason);
                tracing::warn!(%service, queries, expected, ?nature, %reason, "a flood; it is kept out of demand");
            }
        }
    }

    /// Which part of the questions of this minute is demand, in [0, 1].
    pub fn demand_share(&self, service: &DomainName) -> f64 {
        let (Some(judgement), Some(count)) = (self.judged.get(service), self.counts.get(service)) else {
            return 1.0;
        };
        match judgement.nature {
            Nature::Usual | Nature::FlashCrowd => 1.0,
            Nature::RandomSubdomains | Nature::SingleSource | Nature::Spoofed | Nature::Unexplained => {
                (judgement.demand as f64 / (*count).max(1) as f64).min(1.0)
            }
        }
    }

    /// The service is gone.
    pub fn forget(&mut self, service: &DomainName) {
        self.watched.remove(service);
        self.counts.remove(service);
        self.connected.remove(service);
        self.judged.remove(service);
    }

    /// Looks at the minute that is over at `now`; false if none is.
    pub fn look(&mut self, now: Timestamp, reader: &Reader, recorder: &Recorder) -> bool {
        let current = now.as_ms() / MINUTE_MS;
        let minute = *self.minute.get_or_insert(current);
        if current == minute {
            return false;
        }
        // After a jump of the clock or a standstill what was counted is of no single minute.
        let (counts, judged) = (std::mem::take(&mut self.counts), std::mem::take(&mut self.judged));
        self.connected.clear();
        self.minute = Some(current);
        if current != minute + 1 {
            return true;
        }
        self.take_up(&counts, minute, reader);
        let mut events = Vec::new();
        for (service, watched) in &mut self.watched {
            let count = counts.get(service).copied().unwrap_or_default();
            if count > 0 {
                watched.asked = minute;
            }
            let judgement = judged.get(service).copied();
            let at = Timestamp::from_ms(minute * MINUTE_MS);
            events.extend(watched.observe(service, at, count, judgement).into_iter().flatten());
        }
        if !events.is_empty()
            && let Err(error) = recorder.note_anomalies(events)
        {
            tracing::warn!(%error, "what is out of the ordinary is not noted");
        }
        let quiet: Vec<_> =
            self.watched.extract_if(.., |_, watched| watched.asked + QUIET_MINUTES <= minute).collect();
        let unsaved = quiet.iter().filter(|(_, watched)| watched.unsaved);
        save(unsaved.map(|(service, watched)| (service, watched)), recorder);
        if current.is_multiple_of(SAVE_EVERY) {
            self.save(recorder);
        }
        true
    }

    /// Saves the detectors that have changed.
    pub fn save(&mut self, recorder: &Recorder) {
        save(self.watched.iter().filter(|(_, watched)| watched.unsaved), recorder);
        self.watched.values_mut().for_each(|watched| watched.unsaved = false);
    }

    /// Gives each service that was asked for a detector, as far as there is room.
    fn take_up(&mut self, counts: &BTreeMap<DomainName, u64>, minute: u64, reader: &Reader) {
        for service in
            counts.keys().filter(|service| !self.watched.contains_key(*service)).collect::<Vec<_>>()
        {
            if self.watched.len() >= DETECTORS_MAX {
                self.unwatched += 1;
                tracing::debug!(%service, so_far = self.unwatched, "too many services to watch one more");
                continue;
            }
            let stored = stored(service, reader).filter(|detector| {
                // The clock may have gone back.
                detector.last().is_none_or(|last| last < Timestamp::from_ms(minute * MINUTE_MS))
            });
            let detector = stored.map_or_else(
                || Detector::new(self.settings),
                |mut detector| detector.set_threshold_sd(self.settings.threshold_sd).map(|()| detector),
            );
            match detector {
                Ok(detector) => {
                    let noted = detector.event().map(|event| noted_before(service, event, reader));
                    let usual = (0.0, 1.0);
                    let watched = Watched { detector, asked: minute, unsaved: true, usual, noted };
                    self.watched.insert(service.clone(), watched);
                }
                Err(faults) => tracing::warn!(%service, ?faults, "it is not watched for anomalies"),
            }
        }
    }
}

impl Watched {
    /// Takes a minute in; gives the events that there is something new to tell of: one that is over, and one under way.
    fn observe(
        &mut self,
        service: &DomainName,
        at: Timestamp,
        count: u64,
        judgement: Option<Judgement>,
    ) -> [Option<StoredAnomaly>; 2] {
        let verdict = match self.detector.observe(at, count as f64) {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::debug!(%service, %error, "a minute is not looked at");
                return [None, None];
            }
        };
        self.unsaved = true;
        self.usual = (verdict.expected, verdict.spread);
        let before = self.noted;
        // What an event was taken for at its most extreme minute is what it was.
        let noted = |event: Event| {
            let earlier = before.filter(|before| before.event.since == event.since);
            let is_new_peak = earlier.is_none_or(|before| event.observed > before.event.observed);
            let judgement = if is_new_peak { judgement } else { earlier.and_then(|before| before.judgement) };
            Noted { event, judgement }
        };
        let is_same = |event: &Noted| {
            before.is_some_and(|before| {
                (before.event.since, before.event.kind) == (event.event.since, event.event.kind)
                    && before.judgement.map(|own| own.nature) == event.judgement.map(|own| own.nature)
            })
        };
        let under_way = verdict.event.map(noted);
        let news = under_way.filter(|event| !is_same(event));
        if let Some(Noted { event, .. }) = news.filter(|news| news.event.is_alarm()) {
            tracing::info!(
                %service, kind = ?event.kind, observed = event.observed, expected = event.expected,
                deviation_sd = event.deviation_sd, "out of the ordinary"
            );
        }
        // Minutes in between that are usual leave it open.
        self.noted = under_way.or(before.filter(|_| verdict.ended.is_none()));
        [verdict.ended.map(noted), news].map(|noted| stored_anomaly(service, &noted?))
    }
}

fn stored_anomaly(service: &DomainName, noted: &Noted) -> Option<StoredAnomaly> {
    Some(StoredAnomaly {
        name: service.to_string().into_bytes().into(),
        since_ms: noted.event.since.as_ms(),
        event: serde_json::to_vec(noted).ok()?,
    })
}

fn stored(service: &DomainName, reader: &Reader) -> Option<Detector> {
    let bytes = match reader.detector_state(service.to_string().as_bytes()) {
        Ok(Some((FORM, bytes))) => bytes,
        Ok(_) => return None,
        Err(error) => {
            tracing::warn!(%service, %error, "what was usual of it cannot be read");
            return None;
        }
    };
    let plain = zstd::bulk::decompress(&bytes, PLAIN_BYTES_MAX).map_err(|error| error.to_string());
    let detector = plain.and_then(|plain| serde_json::from_slice(&plain).map_err(|error| error.to_string()));
    detector
        .inspect_err(
            |error| tracing::warn!(%service, error, "what was usual of it is lost; it is learned anew"),
        )
        .ok()
}

/// An event that is under way, with what it was taken for before its detector was put aside.
fn noted_before(service: &DomainName, event: Event, reader: &Reader) -> Noted {
    let stored = reader.anomalies(service.to_string().as_bytes(), 1).unwrap_or_default();
    let before = stored.first().and_then(noted_of).filter(|before| before.event.since == event.since);
    Noted { event, judgement: before.and_then(|before| before.judgement) }
}

fn save<'w>(watched: impl Iterator<Item = (&'w DomainName, &'w Watched)>, recorder: &Recorder) {
    let states: Vec<StoredForecast> = watched
        .filter_map(|(service, watched)| {
            let plain = serde_json::to_vec(&watched.detector).ok()?;
            let state = zstd::bulk::compress(&plain, zstd::DEFAULT_COMPRESSION_LEVEL).ok()?;
            Some(StoredForecast { name: service.to_string().into_bytes().into(), version: FORM, state })
        })
        .collect();
    if !states.is_empty()
        && let Err(error) = recorder.put_detector_states(states)
    {
        tracing::warn!(%error, "what is usual of some services is not saved");
    }
}

/// An anomaly as it was noted.
pub fn noted_of(stored: &StoredAnomaly) -> Option<Noted> {
    serde_json::from_slice(&stored.event).ok()
}

#[cfg(test)]
mod tests {
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
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let history = History::open(dir.path(), HistoryLimits::default()).unwrap().0;
            Self { _dir: dir, history, anomalies: Anomalies::new(3.0), minute: 0 }
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
            self.anomalies.judge(&BTreeMap::from([(service.clone(), crowd)]));
            let share = self.anomalies.demand_share(&service);
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
        assert!(
            begun.is_alarm() && begun.deviation_sd > 3.0 && (begun.expected - 10.0).abs() < 3.0,
            "{begun:?}"
        );
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
            (
                Crowd { queries: 1_950, clients: 1_900, top_client: 2, proven: 0 },
                0,
                Nature::Spoofed,
                0.0..30.0,
            ),
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
            assert_eq!(
                (noted.event.kind, noted.judgement.map(|own| own.nature)),
                (Kind::Spike, Some(nature))
            );
            // The next minute is judged for itself; the event says what it was at its height.
            assert_eq!(world.anomalies.demand_share(&"a.vm.test".parse().unwrap()), 1.0);
            (0..5).for_each(|minute| world.minute(&[("a.vm.test", usual(minute))]));
            let [over] = world.noted("a.vm.test").try_into().unwrap();
            assert_eq!(over.judgement, noted.judgement);
        }
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
        assert_eq!(
            world.anomalies.watched.keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["b.vm.test"]
        );
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
        assert_eq!((world.anomalies.watched.len(), world.anomalies.unwatched), (DETECTORS_MAX, 3));
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
}
