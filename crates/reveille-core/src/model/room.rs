//! What instances hold of the host, against what they may hold together.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use super::event::HostLimits;
use super::instance::{Instance, InstanceId};
use super::phase::{Phase, Rung};
use super::service::Resources;
use crate::mutation::is_on;

/// Memory of a process that waits with a version mapped, in MiB: QEMU's own, as no guest memory was touched.
pub const ARMED_MIB: u64 = 32;

/// What of the host is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Guest memory, and that of waiting processes, in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs that may run.
    pub cpus: u64,
    /// Bytes of versions that lie on the local disk and that no process uses.
    pub cached_bytes: u64,
}

impl Held {
    /// What an instance of that size holds while its guest runs.
    pub fn running(resources: Resources) -> Self {
        Self { memory_mib: resources.memory_mib.into(), cpus: resources.cpus.into(), cached_bytes: 0 }
    }

    /// What `instance` holds now, and is sure to hold once what is under way has been done.
    pub fn by(instance: &Instance, resources: Resources) -> Self {
        let running = Self::running(resources);
        match instance.phase {
            Phase::Booting
            | Phase::Restoring
            | Phase::Warming
            | Phase::Active
            | Phase::Draining
            | Phase::Hibernating => running,
            // Its process may still be there.
            Phase::Failed if instance.unfenced => running,
            Phase::Off | Phase::Hibernated | Phase::Failed => Self::at_rest(instance, running),
        }
    }

    fn at_rest(instance: &Instance, running: Self) -> Self {
        // On its way to another rung it may hold as much as on the highest.
        if instance.in_flight && instance.rung < Rung::Armed {
            return running;
        }
        if instance.rung >= Rung::Armed && is_on("waiting-is-free") {
            return Self::default();
        }
        match instance.rung {
            Rung::Paused | Rung::Active => Self { cpus: 0, ..running },
            Rung::Armed => Self { memory_mib: ARMED_MIB, ..Self::default() },
            Rung::Local => {
                let cached_bytes = instance.version.as_ref().map_or(0, |version| version.stored_bytes);
                Self { cached_bytes, ..Self::default() }
            }
            Rung::Cold | Rung::Remote => Self::default(),
        }
    }

    /// Whether as much fits within the host's limits.
    pub fn fits(self, limits: &HostLimits) -> bool {
        limits.memory_mib().is_none_or(|most| self.memory_mib <= most)
            && limits.cpus().is_none_or(|most| self.cpus <= most)
    }

    /// What is more than the limits allow.
    pub fn beyond(self, limits: &HostLimits) -> Self {
        let over = |held: u64, most: Option<u64>| most.map_or(0, |most| held.saturating_sub(most));
        Self {
            memory_mib: over(self.memory_mib, limits.memory_mib()),
            cpus: over(self.cpus, limits.cpus()),
            cached_bytes: over(self.cached_bytes, limits.cache_bytes()),
        }
    }

    /// Whether nothing of memory and CPUs is left of it.
    pub fn is_met(self) -> bool {
        self.memory_mib == 0 && self.cpus == 0
    }
}

impl Add for Held {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            cpus: self.cpus.saturating_add(other.cpus),
            cached_bytes: self.cached_bytes.saturating_add(other.cached_bytes),
        }
    }
}

impl Sub for Held {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            cpus: self.cpus.saturating_sub(other.cpus),
            cached_bytes: self.cached_bytes.saturating_sub(other.cached_bytes),
        }
    }
}

impl AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Held {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

/// What all instances hold, kept in step with each change so that nothing is summed up again.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    total: Held,
    /// Who holds anything.
    holders: BTreeMap<InstanceId, Held>,
}

impl Ledger {
    pub fn total(&self) -> Held {
        self.total
    }

    pub fn holders(&self) -> impl Iterator<Item = (InstanceId, Held)> {
        self.holders.iter().map(|(id, held)| (*id, *held))
    }

    pub fn set(&mut self, id: InstanceId, held: Held) {
        let before =
            if held == Held::default() { self.holders.remove(&id) } else { self.holders.insert(id, held) };
        self.total -= before.unwrap_or_default();
        self.total += held;
    }
}
