//! What a policy cost: who waited for how long, and what was held for how long.

use std::collections::BTreeMap;

use reveille_core::decide::keep::RungCost;
use reveille_core::model::Rung;
use serde::Serialize;

use crate::policy::Part;

/// The costs of one policy for one name or for all.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Account {
    /// Requests, the first of each name included.
    pub requests: u64,
    /// First requests of names: cold under any policy, and without a delay here.
    pub first: u64,
    /// What the others found: the rung that was held when they came.
    pub found: BTreeMap<Rung, u64>,
    /// Idle hours on each rung.
    pub hours: BTreeMap<Rung, f64>,
}

impl Account {
    /// Notes the first request of a name.
    pub fn begin(&mut self) {
        self.requests += 1;
        self.first += 1;
    }

    /// Notes requests that came at the same moment as another.
    pub fn along(&mut self, requests: u64) {
        self.requests += requests;
        *self.found.entry(Rung::Active).or_default() += requests;
    }

    /// Notes a gap of `gap_ms` and the arrival at its end. One at the very end of a part finds its rung.
    pub fn gap(&mut self, gap_ms: u64, parts: &[Part]) {
        let mut from_ms = 0;
        for (index, (rung, until_ms)) in parts.iter().enumerate() {
            let last = gap_ms <= *until_ms || index + 1 == parts.len();
            let end_ms = if last { gap_ms } else { *until_ms };
            *self.hours.entry(*rung).or_default() += end_ms.saturating_sub(from_ms) as f64 / 3_600_000.0;
            if last {
                self.requests += 1;
                *self.found.entry(*rung).or_default() += 1;
                return;
            }
            from_ms = end_ms;
        }
    }

    /// Adds another account to this one.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.first += other.first;
        other.found.iter().for_each(|(rung, count)| *self.found.entry(*rung).or_default() += count);
        other.hours.iter().for_each(|(rung, hours)| *self.hours.entry(*rung).or_default() += hours);
    }

    /// Requests that did not find a running instance, the first of each name included.
    pub fn cold(&self) -> u64 {
        let found = self.found.iter().filter(|(rung, _)| **rung != Rung::Active);
        self.first + found.map(|(_, count)| count).sum::<u64>()
    }

    /// Idle hours of running instances.
    pub fn warm_hours(&self) -> f64 {
        self.hours.get(&Rung::Active).copied().unwrap_or(0.0)
    }

    /// GiB-hours held on each rung.
    pub fn gib_hours(&self, costs: &[RungCost]) -> BTreeMap<Rung, f64> {
        let held = |cost: &RungCost| {
            self.hours.get(&cost.rung).map(|hours| (cost.rung, hours * cost.held_mib / 1_024.0))
        };
        costs.iter().filter_map(held).collect()
    }

    /// All that clients waited, in seconds.
    pub fn delay_s(&self, costs: &[RungCost]) -> f64 {
        let waited = |cost: &RungCost| {
            self.found.get(&cost.rung).map_or(0.0, |count| *count as f64 * cost.wake_ms / 1_000.0)
        };
        costs.iter().map(waited).sum()
    }

    /// The delay that a share of the requests did not exceed, in ms; the first of each name are left out.
    pub fn delay_ms(&self, costs: &[RungCost], share: f64) -> f64 {
        let mut delays: Vec<(f64, u64)> = costs
            .iter()
            .map(|cost| (cost.wake_ms, self.found.get(&cost.rung).copied().unwrap_or(0)))
            .collect();
        delays.sort_by(|a, b| a.0.total_cmp(&b.0));
        let wanted = share * delays.iter().map(|(_, count)| *count as f64).sum::<f64>();
        let mut total = 0.0;
        let reached = |(_, count): &&(f64, u64)| {
            total += *count as f64;
            total >= wanted && total > 0.0
        };
        delays.iter().find(reached).map_or(0.0, |(delay, _)| *delay)
    }
}
