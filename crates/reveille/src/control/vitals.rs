//! How running instances fare: what their probes found, what the host sees of them, and how many may be probed at a time.
//!
//! Watching tasks write here, the control loop reads. Who sleeps has no entry.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use reveille_api::types::{Counts, Evidence, MetricsReport, ProbeReport};
use reveille_core::health::{Finding, Health, HealthReason, Judge, Judged, Probe, Probing};
use reveille_core::model::{InstanceId, ServiceSpec, Timestamp};
use tokio::sync::Semaphore;

/// Most instances that are probed at a time. The others wait for their turn.
pub const PROBED_MAX: usize = 32;

/// How running instances fare.
pub struct Vitals {
    /// A place of those who are probed.
    pub(super) places: Semaphore,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    of: BTreeMap<InstanceId, Known>,
    /// Probes by what came of them.
    counts: BTreeMap<Probe, BTreeMap<&'static str, u64>>,
}

struct Known {
    probing: Arc<Probing>,
    judge: Judge,
    metrics: Option<MetricsReport>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self { places: Semaphore::new(PROBED_MAX), inner: Mutex::default() }
    }
}

impl Vitals {
    /// It begins to be watched.
    pub fn begin(&self, id: InstanceId, spec: &ServiceSpec, now: Timestamp) {
        let mut inner = self.lock();
        let known = inner.of.entry(id).or_insert_with(|| Known::of(spec, now));
        known.judge.begin(now);
        known.metrics = None;
    }

    /// It is probed in another way from now on. Noted also before it is watched: its order is of before.
    pub fn respecified(&self, id: InstanceId, spec: &ServiceSpec, now: Timestamp) {
        let mut inner = self.lock();
        let known = inner.of.entry(id).or_insert_with(|| Known::of(spec, now));
        known.probing = Arc::new(spec.probing());
    }

    /// How it is probed now, and in how many milliseconds; `None` if it is not. `used` is given the slow pace in
    /// milliseconds and tells whether somebody used the service since.
    pub fn next(
        &self,
        id: InstanceId,
        used: impl FnOnce(u64) -> bool,
        now: Timestamp,
    ) -> Option<(Arc<Probing>, u64)> {
        let (probing, judge) = {
            let inner = self.lock();
            let known = inner.of.get(&id)?;
            (Arc::clone(&known.probing), known.judge)
        };
        if probing.is_empty() {
            return None;
        }
        let used = used(probing.policy.quiet_ms.into());
        let next_ms = judge.next_ms(&probing, used, now);
        Some((probing, next_ms))
    }

    /// Probes begin. The verdict, if nothing certain was found for so long that it changes.
    pub fn probed(&self, id: InstanceId, now: Timestamp) -> Option<Judged> {
        self.judge(id, now, |judge, probing| {
            let reason = judge.look(probing, now);
            judge.probed(now);
            reason
        })
    }

    /// Takes in what a probe has found. The verdict, if it changes by that.
    pub fn note(&self, id: InstanceId, probe: Probe, finding: Finding, now: Timestamp) -> Option<Judged> {
        let word = match finding {
            Finding::Answered { .. } => "answered",
            Finding::Failed(_) => "failed",
            Finding::Unclear => "unclear",
        };
        *self.lock().counts.entry(probe).or_default().entry(word).or_default() += 1;
        self.judge(id, now, |judge, probing| judge.note(probe, finding, probing, now))
    }

    /// What the host saw of it.
    pub fn sampled(&self, id: InstanceId, metrics: MetricsReport) {
        if let Some(known) = self.lock().of.get_mut(&id) {
            known.metrics = Some(metrics);
        }
    }

    /// It was lost while it ran.
    pub fn lost(&self, id: InstanceId, now: Timestamp) {
        if let Some(known) = self.lock().of.get_mut(&id) {
            known.judge.lost(now);
            known.metrics = None;
        }
    }

    /// It sleeps.
    pub fn forget(&self, id: InstanceId) {
        self.lock().of.remove(&id);
    }

    /// Forgets what is of no instance any more.
    pub fn keep(&self, known: impl Fn(InstanceId) -> bool) {
        self.lock().of.retain(|id, _| known(*id));
    }

    /// What is known of it.
    pub fn evidence(&self, id: InstanceId) -> Evidence {
        let inner = self.lock();
        let Some(Known { probing, judge, metrics }) = inner.of.get(&id) else { return Evidence::default() };
        let probes = judge.seen(probing).iter().map(|seen| ProbeReport::of(seen, probing)).collect();
        Evidence {
            judged: (judge.health() != Health::Unknown).then(|| (judge.health(), judge.reason(probing))),
            flapping: judge.is_flapping(),
            probes,
            metrics: metrics.clone(),
        }
    }

    /// What the host saw of it last.
    pub fn metrics(&self, id: InstanceId) -> Option<MetricsReport> {
        self.lock().of.get(&id)?.metrics.clone()
    }

    /// Probes so far, by what is probed and what came of it.
    pub fn counts(&self) -> BTreeMap<String, Counts> {
        let words = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect()
        };
        let inner = self.lock();
        inner.counts.iter().map(|(probe, counts)| (probe.word().to_owned(), words(counts))).collect()
    }

    fn judge(
        &self,
        id: InstanceId,
        now: Timestamp,
        judge: impl FnOnce(&mut Judge, &Probing) -> Option<HealthReason>,
    ) -> Option<Judged> {
        let mut inner = self.lock();
        let known = inner.of.get_mut(&id)?;
        let reason = judge(&mut known.judge, &known.probing)?;
        Some(Judged { health: known.judge.health(), since: now, reason })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whole after each statement.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn of(spec: &ServiceSpec, now: Timestamp) -> Self {
        Self { probing: Arc::new(spec.probing()), judge: Judge::new(now), metrics: None }
    }
}
