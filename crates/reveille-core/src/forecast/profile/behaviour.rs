//! What one user or group does.

use serde::{Deserialize, Serialize};

use super::Request;
use super::distribution::{Distribution, Summary};
use super::tops::Tops;

/// Runtimes of which a profile knows the share.
pub const RUNTIMES_MAX: usize = 8;
/// Hours without a request that are counted as such at a time: two weeks. A longer pause is one of these.
pub const QUIET_HOURS_MAX: u64 = 14 * 24;
const HOUR_MS: u64 = 3_600_000;

/// The behaviour of one user or group, or of all that have no profile of their own.
#[derive(Debug, Clone)]
pub struct Profile {
    pub(super) requests: u64,
    pub(super) hours: Option<Hours>,
    pub(super) late: u64,
    pub(super) volume: Distribution,
    pub(super) seconds: Distribution,
    pub(super) cpu_seconds: Distribution,
    pub(super) memory_bytes: Distribution,
    pub(super) io_bytes: Distribution,
    pub(super) runtimes: Tops<u64>,
    pub(super) with_runtime: u64,
}

/// Requests of hours that are not over, since logs of several hosts do not come in the order of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hours {
    /// The latest, since the epoch.
    pub newest: u64,
    pub count: u64,
    /// Of the one before, if there was one.
    pub before: Option<u64>,
}

/// A profile in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Behaviour {
    /// Requests that were taken in.
    pub requests: u64,
    /// Of these such that came when their hour was closed: they are in all but the volume.
    pub late: u64,
    /// Requests in an hour, of hours that are over.
    pub volume_per_hour: Summary,
    /// Execution time, in seconds.
    pub seconds: Summary,
    /// Processor time, in seconds, of requests that tell it; so with the next two.
    pub cpu_seconds: Summary,
    /// Memory, in bytes.
    pub memory_bytes: Summary,
    /// Read and written, in bytes.
    pub io_bytes: Summary,
    /// The preferred runtimes, most frequent first.
    pub runtimes: Vec<Share>,
}

/// How much a runtime is preferred.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Its name.
    pub runtime: String,
    /// The share of the requests that tell one, in [0, 1].
    pub share: f64,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            requests: 0,
            hours: None,
            late: 0,
            volume: Distribution::default(),
            seconds: Distribution::default(),
            cpu_seconds: Distribution::default(),
            memory_bytes: Distribution::default(),
            io_bytes: Distribution::default(),
            runtimes: Tops::new(RUNTIMES_MAX),
            with_runtime: 0,
        }
    }
}

impl Profile {
    /// Takes a request in.
    pub fn take(&mut self, request: &Request) {
        self.requests += 1;
        self.count(request.at.as_ms() / HOUR_MS);
        self.seconds.take(request.seconds);
        let told = [
            (&mut self.cpu_seconds, request.cpu_seconds),
            (&mut self.memory_bytes, request.memory_bytes.map(|bytes| bytes as f64)),
            (&mut self.io_bytes, request.io_bytes.map(|bytes| bytes as f64)),
        ];
        for (distribution, value) in told {
            if let Some(value) = value {
                distribution.take(value);
            }
        }
        if let Some(runtime) = &request.runtime {
            self.with_runtime += 1;
            *self.runtimes.count(runtime, 1).0 += 1;
        }
    }

    /// In numbers.
    #[must_use]
    pub fn behaviour(&self) -> Behaviour {
        let share = |(runtime, count): (&str, &u64)| Share {
            runtime: runtime.to_owned(),
            share: *count as f64 / self.with_runtime.max(1) as f64,
        };
        Behaviour {
            requests: self.requests,
            late: self.late,
            volume_per_hour: self.volume.summary(),
            seconds: self.seconds.summary(),
            cpu_seconds: self.cpu_seconds.summary(),
            memory_bytes: self.memory_bytes.summary(),
            io_bytes: self.io_bytes.summary(),
            runtimes: self.runtimes.iter().map(share).collect(),
        }
    }

    /// Begins a new epoch in all distributions.
    pub(super) fn turn(&mut self) {
        let Self { volume, seconds, cpu_seconds, memory_bytes, io_bytes, .. } = self;
        [volume, seconds, cpu_seconds, memory_bytes, io_bytes].into_iter().for_each(Distribution::turn);
    }

    /// Whether it has had no request in this epoch and the one before.
    pub(super) fn is_idle(&self) -> bool {
        self.seconds.is_empty()
    }

    /// Adds what another one did, but for its volume: that of one is no volume of many.
    pub(super) fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.late += other.late;
        self.seconds.merge(&other.seconds);
        self.cpu_seconds.merge(&other.cpu_seconds);
        self.memory_bytes.merge(&other.memory_bytes);
        self.io_bytes.merge(&other.io_bytes);
        self.with_runtime += other.with_runtime;
        for (runtime, &count) in other.runtimes.iter() {
            *self.runtimes.count(runtime, count).0 += count;
        }
    }

    /// What is held, in bytes, counting what is allocated but for the runtimes' names.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let all = [&self.volume, &self.seconds, &self.cpu_seconds, &self.memory_bytes, &self.io_bytes];
        size_of::<Self>() + all.into_iter().map(Distribution::allocated_bytes).sum::<usize>()
    }

    /// Counts a request of that hour; hours that are over go to the volume.
    fn count(&mut self, hour: u64) {
        let Some(hours) = &mut self.hours else {
            self.hours = Some(Hours { newest: hour, count: 1, before: None });
            return;
        };
        let step = match (hour.checked_sub(hours.newest), &mut hours.before) {
            (Some(0), _) => {
                hours.count += 1;
                return;
            }
            (Some(step), _) => step,
            (None, Some(before)) if hour + 1 == hours.newest => {
                *before += 1;
                return;
            }
            (None, _) => {
                self.late += 1;
                return;
            }
        };
        let closed = if step == 1 { [hours.before, None] } else { [hours.before, Some(hours.count)] };
        let before = if step == 1 { hours.count } else { 0 };
        *hours = Hours { newest: hour, count: 1, before: Some(before) };
        closed.into_iter().flatten().for_each(|count| self.volume.take(count as f64));
        (0..step.saturating_sub(2).min(QUIET_HOURS_MAX)).for_each(|_| self.volume.take(0.0));
    }
}
