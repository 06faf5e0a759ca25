//! What is recorded of demand, and what a reload may change of it, for those beside the thread.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};

use reveille_store::history::Reader;

use crate::anomalies::Watching;
use crate::request_logs::RequestLogs;

/// From how many standard deviations on something is an anomaly; a reload may change it.
#[derive(Debug, Clone)]
pub struct Threshold(Arc<(AtomicU64, AtomicBool)>);

impl Threshold {
    /// It is that.
    pub fn new(threshold_sd: f64) -> Self {
        Self(Arc::new((AtomicU64::new(threshold_sd.to_bits()), AtomicBool::new(false))))
    }

    /// It is that from now on.
    pub fn set(&self, threshold_sd: f64) {
        self.0.0.store(threshold_sd.to_bits(), Release);
        self.0.1.store(true, Release);
    }

    /// What it is now.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.0.load(Acquire))
    }

    /// Whether it was set since this was last asked.
    pub(super) fn was_changed(&self) -> bool {
        self.0.1.swap(false, AcqRel)
    }
}

/// What is recorded of demand, as it is looked at past the thread.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// The history.
    pub history: Reader,
    /// Requests that logs tell of.
    pub logs: Arc<RequestLogs>,
    /// What counts as an anomaly.
    pub threshold: Threshold,
    /// Arrivals that were not learned from, since they came too fast.
    arrivals_dropped: Arc<AtomicU64>,
    /// How many services are watched for anomalies.
    pub watching: Arc<Watching>,
}

impl Recorded {
    /// This, with the places where dropped arrivals and watched services are counted.
    pub fn new(
        history: Reader,
        logs: Arc<RequestLogs>,
        threshold: Threshold,
        arrivals_dropped: Arc<AtomicU64>,
        watching: Arc<Watching>,
    ) -> Self {
        Self { history, logs, threshold, arrivals_dropped, watching }
    }

    /// Arrivals since the start that were not learned from, since they came too fast.
    pub fn arrivals_dropped(&self) -> u64 {
        self.arrivals_dropped.load(Relaxed)
    }
}
