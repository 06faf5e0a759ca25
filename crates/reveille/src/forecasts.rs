//! What is asked of whom, recorded, and what is to be expected from it: a thread of its own beside the control loop,
//! which is told of arrivals and tells what is foreseen.
//!
//! What it knows of a name is in memory for the names that were asked for last, and in the catalogue of the history for
//! all others. What names have in common is in the file `gaps`. Both are written each minute and at the end: a kill
//! costs a minute of learning and nothing else.

mod ahead;
mod groups;
mod recorded;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use reveille_core::answer::View;
use reveille_core::decide::{Foresight, OUTLOOK_PIECES_MAX};
use reveille_core::forecast::gaps::{Arrival, Gaps, Name};
use reveille_core::model::{DomainName, Timestamp};
use reveille_dns::dnstap::Collector;
use reveille_dns::observe::{Correction, Counters, Observer};
use reveille_records::Records;
use reveille_store::history::{BATCH_POINTS_MAX, Batch, History, Kind, KindSet, Point, Seen, StoredForecast};
use tokio::sync::mpsc;

use crate::anomalies::Anomalies;
use crate::clock::Clock;
use crate::config;
use crate::control::Message;
use crate::control::forecasts::{Floods, Hearer, InUse, Refresh, Teller, Told, way};
use crate::request_logs::RequestLogs;
use crate::room::arrivals::rounded;

use ahead::Ahead;
use groups::Groups;

pub use recorded::{Recorded, Threshold};

/// Names that are known in memory; of others it is read when they are asked for. One takes about 500 bytes.
const NAMES_MAX: usize = 16_384;

/// How often what was learned is written.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// The history is told of each second, as long as it is watched.
const SECOND: Duration = Duration::from_secs(1);

/// Names that are taken up at a time after a start, so that others get a word in.
const TAKEN_UP_MAX: usize = 32;

/// How often it is told what is foreseen: the newest of each name, so that many arrivals make one message.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Questions of a minute below which nobody asks whether they are a flood.
const FLOOD_QUERIES_MIN: u64 = 100;

/// The form of the states in the catalogue.
const STATE_FORM: u32 = 1;

/// Where questions are counted.
pub struct Questions {
    /// The services and their counters.
    pub view: Arc<ArcSwap<View>>,
    /// The counters.
    pub counters: Counters,
    /// What they stand for.
    pub observer: Arc<Observer>,
    /// Where other servers' questions are counted, if they tell of them.
    pub collector: Option<Arc<Collector>>,
    /// Where they are recorded one by one, if they are.
    pub records: Option<Arc<Records>>,
}

/// The thread, and the sender's end for the control loop. Dropping it does not end the thread: the sender's end does.
pub struct Forecasting {
    /// Where arrivals are told.
    pub told: Teller,
    /// What is recorded, for those who look.
    pub recorded: Recorded,
    /// Ends after the sender is dropped, when all was written.
    pub thread: JoinHandle<()>,
}

/// Opens the history below the state directory `dir`, and begins to forecast.
///
/// # Errors
/// What cannot be used.
pub fn start(
    dir: &Path,
    settings: &config::History,
    threshold: &Threshold,
    questions: Questions,
    inbox: mpsc::Sender<Message>,
    clock: Clock,
) -> anyhow::Result<Forecasting> {
    let limits = settings.limits();
    let late_s_max = limits.late_s_max;
    let (history, damaged) = History::open(&dir.join("history"), limits)?;
    for damage in &damaged {
        tracing::warn!(%damage, "part of the history cannot be read and is skipped");
    }
    let path = dir.join("gaps");
    let gaps = match fs::read(&path).map(|bytes| Gaps::from_bytes(&bytes)) {
        Ok(Ok(gaps)) => gaps,
        Ok(Err(error)) => {
            tracing::warn!(path = %path.display(), %error, "what was learned of gaps is lost; it is learned anew");
            Gaps::default()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Gaps::default(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let logs = RequestLogs::open(&dir.join("requests"), Arc::clone(&questions.view), late_s_max, clock)?;
    let logs = logs.recorded_by(questions.records.clone());
    let (told, heard) = way();
    let logs = Arc::new(logs);
    let anomalies = Anomalies::new(threshold.get());
    let recorded = Recorded::new(
        history.reader(),
        Arc::clone(&logs),
        threshold.clone(),
        told.dropped(),
        anomalies.watching(),
    );
    let forecaster = Forecaster {
        gaps,
        path,
        names: BTreeMap::new(),
        uses: 0,
        stale: BTreeSet::new(),
        history,
        pending: BTreeMap::new(),
        in_use: BTreeMap::new(),
        ahead: Ahead::with(settings.heavy_models()?),
        groups: Groups::open(dir)?,
        questions,
        logs,
        anomalies,
        floods: told.floods(),
        threshold: threshold.clone(),
        counted: Vec::new(),
        inbox,
        clock,
    };
    let thread = std::thread::Builder::new()
        .name("forecasts".to_owned())
        .spawn(move || forecaster.run(&heard))
        .context("cannot start the thread that forecasts")?;
    Ok(Forecasting { told, recorded, thread })
}

/// What is known of a name that is in memory.
struct Known {
    name: Name,
    /// The higher, the later it was used.
    used: u64,
    /// Whether the catalogue does not have it so.
    unsaved: bool,
}

struct Forecaster {
    gaps: Gaps,
    path: PathBuf,
    names: BTreeMap<DomainName, Known>,
    uses: u64,
    /// Names of which something new is known that was not told.
    stale: BTreeSet<DomainName>,
    history: History,
    /// Arrivals of each second that were not recorded yet.
    pending: BTreeMap<(DomainName, u64), u64>,
    /// What was in use of replicable services in each second, in milliseconds, that was not recorded yet.
    in_use: BTreeMap<(DomainName, u64), u64>,
    ahead: Ahead,
    groups: Groups,
    questions: Questions,
    logs: Arc<RequestLogs>,
    anomalies: Anomalies,
    /// What the control loop is to know of them.
    floods: Floods,
    threshold: Threshold,
    /// Questions that were recorded of each counter.
    counted: Vec<u32>,
    inbox: mpsc::Sender<Message>,
    clock: Clock,
}

impl Forecaster {
    fn run(mut self, heard: &Hearer) {
        let (mut second, mut save) = (Instant::now() + SECOND, Instant::now() + SAVE_EVERY);
        let mut tell = Instant::now() + TELL_EVERY;
        self.count_from_here();
        // The names that were asked for before this start are taken up beside what comes.
        let view = self.questions.view.load_full();
        let mut before = view.services().map(|service| service.name.clone()).peekable();
        loop {
            let due = match (before.peek(), self.stale.is_empty()) {
                (Some(_), _) => Instant::now(),
                (None, true) => second,
                (None, false) => second.min(tell),
            };
            match heard.next(due.saturating_duration_since(Instant::now())) {
                Ok(Told::Arrived { service, group, at }) => self.arrived(service, group, at),
                Ok(Told::Refreshed(refreshes)) => {
                    refreshes.into_iter().for_each(|(service, refresh)| self.refreshed(&service, &refresh));
                }
                Ok(Told::Gone { service }) => self.forget(&service),
                Err(RecvTimeoutError::Timeout) => {
                    let some: Vec<DomainName> = before.by_ref().take(TAKEN_UP_MAX).collect();
                    if !self.take_up(&some) {
                        break;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let now = Instant::now();
            if now >= tell {
                tell = now + TELL_EVERY;
                if !self.tell() {
                    break;
                }
            }
            if now >= second {
                second = now + SECOND;
                self.record();
                if !self.tell_ahead() {
                    break;
                }
            }
            if now >= save {
                save = now + SAVE_EVERY;
                self.save();
            }
        }
        self.record();
        self.save();
        self.anomalies.save(&self.history.recorder());
    }

    /// Learns of an arrival.
    fn arrived(&mut self, service: DomainName, group: u64, at: Timestamp) {
        *self.pending.entry((service.clone(), at.as_ms() / 1_000)).or_default() += 1;
        self.uses += 1;
        if !self.names.contains_key(&service) {
            let name = self.stored(&service);
            self.make_room();
            self.names.insert(service.clone(), Known { name, used: 0, unsaved: true });
        }
        let Some(known) = self.names.get_mut(&service) else { return };
        (known.used, known.unsaved) = (self.uses, true);
        self.gaps.arrived(&mut known.name, Arrival { at, client: None, busy_ms: None, group: Some(group) });
        self.stale.insert(service);
    }

    /// Takes in how a service was used since that was last told.
    fn refreshed(&mut self, service: &DomainName, refresh: &Refresh) {
        if let Some(at) = refresh.busy {
            self.busy(service, at);
        }
        if let Some((more, now)) = refresh.connected {
            self.anomalies.connected(service, more, now);
        }
        if let Some(in_use) = &refresh.in_use {
            self.used(service, in_use);
        }
    }

    /// The service was still in use: its gap begins later.
    fn busy(&mut self, service: &DomainName, at: Timestamp) {
        // One whose arrival was lost is not known to be in use.
        let Some(known) = self.names.get_mut(service) else { return };
        known.unsaved = true;
        self.gaps.in_use(&mut known.name, at);
        self.stale.insert(service.clone());
    }

    /// So many clients use a replicable service: milliseconds of execution, added up, are what its history has of it.
    fn used(&mut self, service: &DomainName, in_use: &InUse) {
        let at_s = in_use.at.as_ms() / 1_000;
        self.ahead.used(service, &in_use.image, at_s);
        self.groups.used(service, &in_use.image, at_s);
        self.in_use.insert((service.clone(), at_s), u64::from(in_use.clients) * 1_000);
    }

    /// Tells what is foreseen to be in use; false if nobody listens any more.
    fn tell_ahead(&mut self) -> bool {
        let now_s = self.clock.now().as_ms() / 1_000;
        let reader = self.history.reader();
        self.groups.renew(&reader, now_s);
        let due = self.ahead.due(&reader, &self.groups, now_s);
        due.into_iter().all(|(service, foreseen)| {
            self.inbox.blocking_send(Message::Expected { service, foreseen }).is_ok()
        })
    }

    /// Tells what is foreseen of the names of which something new is known; false if nobody listens any more.
    fn tell(&mut self) -> bool {
        let stale = std::mem::take(&mut self.stale);
        let foreseen = stale.into_iter().filter_map(|service| {
            let name = &self.names.get(&service)?.name;
            let foresight = foresight(&self.gaps, name, name.last()?);
            Some((service, foresight))
        });
        let foreseen: Vec<_> = foreseen.collect();
        foreseen.is_empty() || self.inbox.blocking_send(Message::Foreseen(foreseen)).is_ok()
    }

    /// Tells what is foreseen for some names that were asked for before this start; false if nobody listens any more.
    fn take_up(&self, services: &[DomainName]) -> bool {
        let now = self.clock.now();
        let known =
            services.iter().filter(|service| !self.names.contains_key(service)).filter_map(|service| {
                let foresight = foresight(&self.gaps, &self.stored(service), now);
                (!foresight.pieces.is_empty()).then(|| (service.clone(), foresight))
            });
        let known: Vec<_> = known.collect();
        known.is_empty() || self.inbox.blocking_send(Message::Foreseen(known)).is_ok()
    }

    /// What the catalogue knows of a name.
    fn stored(&self, service: &DomainName) -> Name {
        match self.history.reader().forecast_state(service.to_string().as_bytes()) {
            Ok(Some((STATE_FORM, bytes))) => Name::from_bytes(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%service, %error, "what was known of its gaps is lost; it is learned anew");
                Name::default()
            }),
            Ok(_) => Name::default(),
            Err(error) => {
                tracing::warn!(%service, %error, "what was known of its gaps cannot be read");
                Name::default()
            }
        }
    }

    /// Has those that were used longest ago known by the catalogue alone, if there are as many as there may be.
    fn make_room(&mut self) {
        if self.names.len() < NAMES_MAX {
            return;
        }
        let mut uses: Vec<u64> = self.names.values().map(|known| known.used).collect();
        uses.sort_unstable();
        let oldest = uses.get(NAMES_MAX / 16).copied().unwrap_or_default();
        let gone: Vec<_> = self.names.extract_if(.., |_, known| known.used < oldest).collect();
        let unsaved = gone.iter().filter(|(_, known)| known.unsaved);
        let states: Vec<StoredForecast> = unsaved.map(|(name, known)| state(name, &known.name)).collect();
        self.put(states);
    }

    fn forget(&mut self, service: &DomainName) {
        self.names.remove(service);
        self.ahead.forget(service);
        self.groups.forget(service);
        self.anomalies.forget(service);
        self.pending.retain(|(name, _), _| name != service);
        self.in_use.retain(|(name, _), _| name != service);
        if let Err(error) = self.history.recorder().remove(service.to_string().as_bytes()) {
            tracing::warn!(%service, %error, "its history is not removed yet");
        }
    }

    /// Questions of before this start are in the history already, or nobody has seen them.
    fn count_from_here(&mut self) {
        drop(self.questions_since());
    }

    /// Questions for each service since the last call, with its counter.
    fn questions_since(&mut self) -> Vec<(DomainName, u32, u32)> {
        let view = self.questions.view.load();
        let mut asked = Vec::new();
        for service in view.services() {
            let Ok(place) = usize::try_from(service.counter) else { continue };
            let sum = self.questions.counters.sum(service.counter);
            if place >= self.counted.len() {
                self.counted.resize(place + 1, 0);
            }
            let before = std::mem::replace(&mut self.counted[place], sum);
            if sum != before {
                asked.push((service.name.clone(), service.counter, sum.wrapping_sub(before)));
            }
        }
        asked
    }

    /// Questions that other servers told of since the last call: whose, in which second, how many.
    fn questions_elsewhere(&self, now_s: u64) -> Vec<(DomainName, u64, u32)> {
        let Some(collector) = &self.questions.collector else { return Vec::new() };
        let counts = collector.take_seconds(u32::try_from(now_s).unwrap_or(u32::MAX));
        if counts.is_empty() {
            return Vec::new();
        }
        let view = self.questions.view.load();
        let names: BTreeMap<u32, &DomainName> =
            view.services().map(|service| (service.counter, &service.name)).collect();
        let of_services = counts.into_iter().filter_map(|count| {
            names.get(&count.counter).map(|name| ((*name).clone(), count.at_s.into(), count.queries))
        });
        of_services.collect()
    }

    /// Hands over to the history what this second has had.
    fn record(&mut self) {
        let now_s = self.clock.now().as_ms() / 1_000;
        let questions = self.questions_since();
        let corrections =
            if questions.is_empty() { BTreeMap::new() } else { self.questions.observer.corrections() };
        let elsewhere = self.questions_elsewhere(now_s);
        self.judge(&questions, &elsewhere);
        let own = questions
            .iter()
            .flat_map(|(name, counter, count)| self.points_of(name, now_s, *count, corrections.get(counter)));
        // What their servers answered is not known, and so not what they stand for.
        let others =
            elsewhere.iter().flat_map(|(name, at_s, count)| self.points_of(name, *at_s, *count, None));
        let mut points: Vec<Point> = own.chain(others).collect();
        let arrivals = std::mem::take(&mut self.pending);
        points.extend(
            arrivals.into_iter().map(|((name, at_s), count)| point(&name, Kind::Arrivals, at_s, count)),
        );
        let in_use = std::mem::take(&mut self.in_use);
        points.extend(in_use.into_iter().map(|((name, at_s), ms)| point(&name, Kind::ExecutionMs, at_s, ms)));
        points.extend(self.requests());
        self.look_for_anomalies();
        let kinds: KindSet =
            [Kind::Queries, Kind::DemandMilli, Kind::Arrivals, Kind::ExecutionMs, Kind::Refused]
                .into_iter()
                .collect();
        let mut seen = Some(Seen { at_s: now_s, kinds });
        // What does not fit is dropped and counted there.
        while seen.is_some() || !points.is_empty() {
            let rest = points.split_off(points.len().min(BATCH_POINTS_MAX));
            self.history.recorder().record(Batch { now_s, seen: seen.take(), points });
            points = rest;
        }
    }

    fn look_for_anomalies(&mut self) {
        if self.threshold.was_changed() {
            self.anomalies.set_threshold_sd(self.threshold.get());
        }
        let (reader, recorder) = (self.history.reader(), self.history.recorder());
        if self.anomalies.look(self.clock.now(), &reader, &recorder) {
            self.questions.observer.begin_minute();
        }
        self.floods.set(self.anomalies.flooded());
    }

    /// Takes in how often services were asked for in this second, and says of those that are asked for much whether that is a
    /// crowd or a flood.
    fn judge(&mut self, own: &[(DomainName, u32, u32)], elsewhere: &[(DomainName, u64, u32)]) {
        let asked = own.iter().map(|(service, _, count)| (service, *count));
        for (service, count) in asked.chain(elsewhere.iter().map(|(service, _, count)| (service, *count))) {
            self.anomalies.asked(service, count.into());
        }
        let view = self.questions.view.load();
        let busy = self.anomalies.asked_for(FLOOD_QUERIES_MIN).filter_map(|service| view.service(service));
        let counters: BTreeMap<u32, DomainName> =
            busy.map(|service| (service.counter, service.name.clone())).collect();
        if counters.is_empty() {
            return;
        }
        let crowds = self.questions.observer.crowds(counters.keys().copied()).into_iter();
        let crowds = crowds.filter_map(|(counter, crowd)| Some((counters.get(&counter)?.clone(), crowd)));
        let (reader, recorder) = (self.history.reader(), self.history.recorder());
        self.anomalies.judge(&crowds.collect(), &reader, &recorder);
    }

    /// What the history has of so many questions for a service.
    fn points_of(
        &self,
        service: &DomainName,
        at_s: u64,
        count: u32,
        correction: Option<&Correction>,
    ) -> impl Iterator<Item = Point> + use<> {
        let share = self.anomalies.demand_share(service);
        let kept_out = rounded(f64::from(count) * (1.0 - share));
        let points = [
            point(service, Kind::Queries, at_s, count.into()),
            point(service, Kind::DemandMilli, at_s, demand_milli(count, share, correction)),
            point(service, Kind::Refused, at_s, kept_out),
        ];
        points.into_iter().filter(|point| point.amount > 0)
    }

    /// Requests that logs have told of since the last call.
    fn requests(&self) -> Vec<Point> {
        let taken = self.logs.take_seconds();
        let points = taken.iter().flat_map(|(service, at_s, amount)| {
            [
                point(service, Kind::Requests, *at_s, amount.requests),
                point(service, Kind::RequestMs, *at_s, amount.execution_ms),
            ]
        });
        points.filter(|point| point.amount > 0).collect()
    }

    /// Writes what was learned since the last time.
    fn save(&mut self) {
        self.groups.save();
        let unsaved = self.names.iter_mut().filter(|(_, known)| known.unsaved);
        let states: Vec<StoredForecast> = unsaved
            .map(|(service, known)| {
                known.unsaved = false;
                state(service, &known.name)
            })
            .collect();
        if states.is_empty() {
            return;
        }
        if !self.put(states.clone()) {
            // Once more the next time.
            for row in &states {
                let name =
                    std::str::from_utf8(&row.name).ok().and_then(|name| name.parse::<DomainName>().ok());
                if let Some(known) = name.and_then(|name| self.names.get_mut(&name)) {
                    known.unsaved = true;
                }
            }
        }
        if let Err(error) = replace(&self.path, &self.gaps.to_bytes()) {
            tracing::warn!(path = %self.path.display(), %error, "what was learned of gaps is not saved");
        }
    }

    fn put(&self, states: Vec<StoredForecast>) -> bool {
        let put = self.history.recorder().put_forecast_states(states);
        if let Err(error) = &put {
            tracing::warn!(%error, "what was learned of some names is not saved");
        }
        put.is_ok()
    }
}

/// What this share of questions stands for, in thousandths of an arrival; as many as there are where that is not known.
fn demand_milli(questions: u32, share: f64, correction: Option<&Correction>) -> u64 {
    let per_query = correction.map_or(1.0, |known| known.per_query);
    rounded(1e3 * f64::from(questions) * share * per_query)
}

fn point(service: &DomainName, kind: Kind, at_s: u64, amount: u64) -> Point {
    Point { name: service.to_string().into_bytes().into(), kind, at_s, amount }
}

/// What is foreseen of a name at `now`.
fn foresight(gaps: &Gaps, name: &Name, now: Timestamp) -> Foresight {
    let since = Timestamp::from_ms(now.as_ms().saturating_sub(name.idle_ms(now).unwrap_or_default()));
    let pieces = gaps.hazards(name, now, OUTLOOK_PIECES_MAX);
    Foresight { since, pieces, of_group: name.arrivals() < 2 }
}

fn state(service: &DomainName, name: &Name) -> StoredForecast {
    StoredForecast {
        name: service.to_string().into_bytes().into(),
        version: STATE_FORM,
        state: name.to_bytes(),
    }
}

/// Puts `bytes` in the place of the file, so that it is the old one or the new one at any time.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&beside, path)
}
