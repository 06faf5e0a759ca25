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
//! minute and how many connect. What a flood asks is no demand ([`Anomalies::demand_share`]), and queries of it are no arrivals
//! ([`Anomalies::flooded`]). Of whom nobody knows what is usual (no detector, or too new a one) nothing is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

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
    /// Services that were flooded when the last minute was over.
    flooded_before: BTreeSet<DomainName>,
    watching: Arc<Watching>,
}

/// How many are watched, for those beside the thread.
#[derive(Debug, Default)]
pub struct Watching {
    watched: AtomicU64,
    unwatched: AtomicU64,
}

impl Watching {
    /// Services that have their detector in memory.
    pub fn watched(&self) -> u64 {
        self.watched.load(Relaxed)
    }

    /// Services that were asked for in a minute and not watched in it, since all places were taken by others of that minute:
    /// all minutes since the start together.
    pub fn unwatched(&self) -> u64 {
        self.unwatched.load(Relaxed)
    }
}

/// One of them.
#[derive(Debug)]
struct Watched {
    detector: Detector,
    /// The minute in which it was last asked for.
    asked: u64,
    unsaved: bool,
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
            flooded_before: BTreeSet::new(),
            watching: Arc::default(),
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

    /// Where it is counted how many are watched.
    pub fn watching(&self) -> Arc<Watching> {
        Arc::clone(&self.watching)
    }

    /// Says of services whether what is asked of them in this minute is a crowd or a flood, by who asks: of those of whom it is known
    /// what is usual. Questions that other servers tell of are taken to be like the own.
    pub fn judge(&mut self, crowds: &BTreeMap<DomainName, Crowd>, reader: &Reader, recorder: &Recorder) {
        let Some(minute) = self.minute else { return };
        self.take_up(crowds.keys().collect(), minute, reader, recorder);
        let limits = Limits { threshold_sd: self.settings.threshold_sd, ..Limits::default() };
        for (service, crowd) in crowds {
            let queries = self.counts.get(service).copied().unwrap_or_default();
            let (came, most) = self.connected.get(service).copied().unwrap_or_default();
            let at = Timestamp::from_ms(minute * MINUTE_MS);
            let usual = self.watched.get(service).and_then(|watched| watched.detector.usual(at));
            let Some((expected, spread)) = usual else { continue };
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
                tracing::warn!(%service, queries, expected, ?nature, %reason, "a flood: its queries are no demand, and no arrivals");
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

    /// Services whose queries come from a flood, as far as is known: those that were judged so in this minute, and in the one
    /// before, since it takes a while until a minute can be judged.
    pub fn flooded(&self) -> BTreeSet<DomainName> {
        let now = self.judged.iter().filter(|(_, judgement)| judgement.nature.is_flood());
        now.map(|(service, _)| service).chain(&self.flooded_before).cloned().collect()
    }

    /// The service is gone.
    pub fn forget(&mut self, service: &DomainName) {
        self.watched.remove(service);
        self.flooded_before.remove(service);
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
        let flooded = judged.iter().filter(|(_, judgement)| judgement.nature.is_flood());
        self.flooded_before = flooded.map(|(service, _)| service.clone()).collect();
        if current != minute + 1 {
            self.flooded_before.clear();
            return true;
        }
        self.take_up(counts.keys().collect(), minute, reader, recorder);
        let mut events = Vec::new();
        for (service, watched) in &mut self.watched {
            let count = counts.get(service).copied().unwrap_or_default();
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
        let unwatched = counts.keys().filter(|service| !self.watched.contains_key(*service)).count();
        self.watching.unwatched.fetch_add(unwatched as u64, Relaxed);
        self.watching.watched.store(self.watched.len() as u64, Relaxed);
        true
    }

    /// Saves the detectors that have changed.
    pub fn save(&mut self, recorder: &Recorder) {
        save(self.watched.iter().filter(|(_, watched)| watched.unsaved), recorder);
        self.watched.values_mut().for_each(|watched| watched.unsaved = false);
    }

    /// Gives each service that was asked for in this minute a detector, as far as there is room: those make way that were asked
    /// for the longest ago.
    fn take_up(&mut self, asked: Vec<&DomainName>, minute: u64, reader: &Reader, recorder: &Recorder) {
        let mut new = Vec::new();
        for service in asked {
            match self.watched.get_mut(service) {
                Some(watched) => watched.asked = minute,
                None => new.push(service),
            }
        }
        self.make_room(new.len(), minute, recorder);
        for service in new {
            if self.watched.len() >= DETECTORS_MAX {
                tracing::debug!(%service, "too many services to watch one more");
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
                    let watched = Watched { detector, asked: minute, unsaved: true, noted };
                    self.watched.insert(service.clone(), watched);
                }
                Err(faults) => tracing::warn!(%service, ?faults, "it is not watched for anomalies"),
            }
        }
    }

    /// Puts as many detectors aside as `new` ones lack places for, those that were asked for the longest ago first; none of this
    /// minute.
    fn make_room(&mut self, new: usize, minute: u64, recorder: &Recorder) {
        let excess = (self.watched.len() + new).saturating_sub(DETECTORS_MAX);
        if excess == 0 {
            return;
        }
        let earlier = self.watched.iter().filter(|(_, watched)| watched.asked < minute);
        let mut earlier: Vec<_> =
            earlier.map(|(service, watched)| (watched.asked, service.clone())).collect();
        earlier.sort_unstable();
        let aside: Vec<_> = earlier
            .into_iter()
            .take(excess)
            .filter_map(|(_, service)| self.watched.remove(&service).map(|watched| (service, watched)))
            .collect();
        let unsaved = aside.iter().filter(|(_, watched)| watched.unsaved);
        save(unsaved.map(|(service, watched)| (service, watched)), recorder);
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
mod tests;
