//! Requests that logs tell of, on their way to the history and to profiles of users and groups.
//!
//! ```text
//!   lines ─► request ─┬─► counts by service and second ──► (each second) history: arrivals, execution time
//!   (API)             └─► profiles of users and groups, kept on the disk
//! ```
//!
//! Counts are bounded. Whoever sends a log waits while they are full, for [`ROOM_WAIT_MAX`] at most; what has no room then is
//! dropped and counted. The thread that takes them out never waits for a log.

mod counts;
mod kept;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use reveille_api::types::{
    Counts as Counted, DemandProfile, DemandProfileSummary, ProfilesReport, TakenRequests, Whose,
};
use reveille_core::answer::View;
use reveille_core::forecast::profile::{Profile, Profiles, Request};
use reveille_core::model::DomainName;
use reveille_records::Records;

use crate::clock::Clock;
use counts::Counts;
use kept::Kept;

pub use counts::Amount;

/// Longest time that a sender waits for room.
pub const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often it looks for it.
const ROOM_LOOK_EVERY: Duration = Duration::from_millis(50);
/// What is nearly too old for the history is too old: it waits a moment before it gets there.
const LATE_MARGIN_S: u64 = 120;

/// Where logs are taken in.
#[derive(Debug)]
pub struct RequestLogs {
    view: Arc<ArcSwap<View>>,
    clock: Clock,
    /// The history takes nothing that is older, in seconds.
    late_s_max: u64,
    counts: Mutex<Counts>,
    kept: Mutex<Kept>,
    records: Option<Arc<Records>>,
    tally: Tally,
}

/// Since the start.
#[derive(Debug, Default)]
struct Tally {
    counted: AtomicU64,
    elsewhere: AtomicU64,
    too_old: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

impl RequestLogs {
    /// Opens what is kept in `dir`. Requests count for services of the view, unless they are older than `late_s_max` seconds.
    ///
    /// # Errors
    /// If the directory cannot be used.
    pub fn open(dir: &Path, view: Arc<ArcSwap<View>>, late_s_max: u64, clock: Clock) -> anyhow::Result<Self> {
        Ok(Self {
            view,
            clock,
            late_s_max: late_s_max.saturating_sub(LATE_MARGIN_S),
            counts: Mutex::default(),
            kept: Mutex::new(Kept::open(dir)?),
            records: None,
            tally: Tally::default(),
        })
    }

    /// The same, with records of each request by itself.
    pub fn recorded_by(self, records: Option<Arc<Records>>) -> Self {
        Self { records, ..self }
    }

    /// What became of raw records since the start, for each kind that is recorded.
    pub fn records_counted(&self) -> BTreeMap<String, Counted> {
        self.records.as_ref().map(|records| records.counted()).unwrap_or_default()
    }

    /// Waits until so many requests have room, but not for longer than [`ROOM_WAIT_MAX`].
    pub async fn room(&self, requests: usize) {
        let end = Instant::now() + ROOM_WAIT_MAX;
        while !lock(&self.counts).has_room(requests) && Instant::now() < end {
            tokio::time::sleep(ROOM_LOOK_EVERY).await;
        }
    }

    /// Takes requests in, and notes how many lines beside them were none. May wait for the disk.
    pub fn take(&self, requests: &[Request], refused: u64) -> TakenRequests {
        self.tally.refused.fetch_add(refused, Relaxed);
        let taken = self.count(requests);
        if !requests.is_empty() {
            lock(&self.kept).take(requests);
        }
        if let Some(buffer) = self.records.as_ref().and_then(|records| records.requests()) {
            buffer.push(requests.iter().cloned());
        }
        for (total, more) in [
            (&self.tally.counted, taken.counted),
            (&self.tally.elsewhere, taken.elsewhere),
            (&self.tally.too_old, taken.too_old),
            (&self.tally.dropped, taken.dropped),
        ] {
            total.fetch_add(more, Relaxed);
        }
        taken
    }

    fn count(&self, requests: &[Request]) -> TakenRequests {
        let view = self.view.load();
        // A log mostly is of few services.
        let mut services: BTreeMap<&str, Option<DomainName>> = BTreeMap::new();
        let now_s = self.clock.now().as_ms() / 1_000;
        let mut taken = TakenRequests::default();
        let mut counts = lock(&self.counts);
        for request in requests {
            let service = services.entry(&request.service).or_insert_with(|| {
                let name: DomainName = request.service.parse().ok()?;
                view.service(&name).map(|service| service.name.clone())
            });
            let at_s = request.at.as_ms() / 1_000;
            let outcome = match &*service {
                None => &mut taken.elsewhere,
                Some(_) if now_s.saturating_sub(at_s) > self.late_s_max => &mut taken.too_old,
                Some(service) if counts.add(service, at_s, now_s, milliseconds(request.seconds)) => {
                    &mut taken.counted
                }
                Some(_) => &mut taken.dropped,
            };
            *outcome += 1;
        }
        taken
    }

    /// Takes out the counts of services that there are, by second.
    pub fn take_seconds(&self) -> Vec<(DomainName, u64, Amount)> {
        let taken = lock(&self.counts).take();
        let view = self.view.load();
        let there = taken.into_iter().filter(|((service, _), _)| view.service(service).is_some());
        there.map(|((service, at_s), amount)| (service, at_s, amount)).collect()
    }

    /// What became of requests since the start: `counted`, `elsewhere`, `too_old`, `dropped`; `refused` lines.
    pub fn counted(&self) -> Counted {
        let Tally { counted, elsewhere, too_old, dropped, refused } = &self.tally;
        let all = [
            ("counted", counted),
            ("elsewhere", elsewhere),
            ("too_old", too_old),
            ("dropped", dropped),
            ("refused", refused),
        ];
        all.into_iter().map(|(word, count)| (word.to_owned(), count.load(Relaxed))).collect()
    }

    /// The profiles in short.
    pub fn in_short(&self) -> ProfilesReport {
        let kept = lock(&self.kept);
        let profiles = kept.profiles();
        ProfilesReport {
            users: profiles.users().count() as u64,
            groups: profiles.groups().count() as u64,
            other_users: profiles.other_users().behaviour(),
            other_groups: profiles.other_groups().behaviour(),
        }
    }

    /// At most `limit` users or groups in the order of their names, beginning after `after`.
    pub fn profiles(&self, whose: Whose, after: Option<&str>, limit: usize) -> Vec<DemandProfileSummary> {
        let kept = lock(&self.kept);
        let mut found = of(kept.profiles(), whose);
        found.retain(|(name, _)| after.is_none_or(|after| *name > after));
        found.sort_unstable_by_key(|(name, _)| *name);
        found
            .into_iter()
            .take(limit)
            .map(|(name, profile)| DemandProfileSummary::of(name, &profile.behaviour()))
            .collect()
    }

    /// One user or group, if it has a profile.
    pub fn profile(&self, whose: Whose, name: &str) -> Option<DemandProfile> {
        let kept = lock(&self.kept);
        let profile = match whose {
            Whose::Users => kept.profiles().user(name),
            Whose::Groups => kept.profiles().group(name),
        };
        profile.map(|profile| DemandProfile { name: name.to_owned(), behaviour: profile.behaviour() })
    }
}

fn of(profiles: &Profiles, whose: Whose) -> Vec<(&str, &Profile)> {
    match whose {
        Whose::Users => profiles.users().collect(),
        Whose::Groups => profiles.groups().collect(),
    }
}

fn milliseconds(seconds: f64) -> u64 {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|time| u64::try_from(time.as_millis()).ok())
        .unwrap_or_default()
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in between may have left counts that are wrong, which is better than none.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
