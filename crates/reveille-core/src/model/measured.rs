//! What was measured of one service: how long a wake takes from each rung, and what is held of the host's memory there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::phase::Rung;

/// How many durations are remembered for an estimate.
const RECENT_MAX: usize = 32;

/// What is held is noted anew when it differs by more than this part of it.
const HELD_NEWS: u64 = 32;

/// The last few durations of one kind, for estimates from what was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct RecentDurations(Vec<u32>);

impl RecentDurations {
    /// Adds a duration in milliseconds, forgetting the oldest beyond 32.
    pub fn push_ms(&mut self, ms: u64) {
        if self.0.len() >= RECENT_MAX {
            self.0.remove(0);
        }
        self.0.push(u32::try_from(ms).unwrap_or(u32::MAX));
    }

    /// The smallest remembered duration that at least `percent` % do not exceed; `None` without any.
    pub fn percentile_ms(&self, percent: usize) -> Option<u32> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent.min(100)).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied()
    }

    /// How many are remembered, 32 at most.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// What was measured on one rung.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct RungMeasured {
    /// Wakes that began there, trigger to ready.
    pub wakes: RecentDurations,
    /// Warm-up sets of starts from there: the boot set on `Cold`, the restore set on others.
    pub warm_ups: RecentDurations,
    /// Trigger to first byte of wakes by a client's packet, with the restore set.
    pub first_warmed: RecentDurations,
    /// The same without it.
    pub first_straight: RecentDurations,
    /// Memory of the host that its process held when last looked at, in KiB; what it shared with others in part.
    pub held_kib: Option<u64>,
}

/// What was measured on each rung that the service has been on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Measured(BTreeMap<Rung, RungMeasured>);

impl Measured {
    /// Notes a wake that began on `from`.
    pub fn note_wake(&mut self, from: Rung, waited_ms: u64) {
        self.0.entry(from).or_default().wakes.push_ms(waited_ms);
    }

    /// Notes a warm-up set of a start from `from`.
    pub fn note_warm_up(&mut self, from: Rung, took_ms: u64) {
        self.0.entry(from).or_default().warm_ups.push_ms(took_ms);
    }

    /// Notes when a client whose packet woke the service had its first byte.
    pub fn note_first_answer(&mut self, from: Rung, warmed: bool, waited_ms: u64) {
        let of = self.0.entry(from).or_default();
        let first = if warmed { &mut of.first_warmed } else { &mut of.first_straight };
        first.push_ms(waited_ms);
    }

    /// Notes what is held on `rung`. A small difference to what was known is no news: each is written to the disk.
    pub fn note_held(&mut self, rung: Rung, held_kib: u64) {
        let known = &mut self.0.entry(rung).or_default().held_kib;
        if known.is_none_or(|before| held_kib.abs_diff(before) > before / HELD_NEWS) {
            *known = Some(held_kib);
        }
    }

    /// What a restore set is likely to take on a rung from which none was seen: the most of the medians from others.
    pub fn restore_set_ms(&self) -> Option<u32> {
        let restored = self.0.iter().filter(|(rung, _)| **rung > Rung::Cold);
        restored.filter_map(|(_, of)| of.warm_ups.percentile_ms(50)).max()
    }

    /// What was measured on `rung`, if anything was.
    pub fn on(&self, rung: Rung) -> Option<&RungMeasured> {
        self.0.get(&rung)
    }

    /// What was measured, coldest rung first.
    pub fn iter(&self) -> impl Iterator<Item = (Rung, &RungMeasured)> {
        self.0.iter().map(|(rung, measured)| (*rung, measured))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rung_has_its_own_figures_and_they_are_as_they_were_after_a_restart() {
        let mut measured = Measured::default();
        for ms in [150, 170, 160] {
            measured.note_wake(Rung::Local, ms);
        }
        measured.note_wake(Rung::Paused, 5);
        measured.note_held(Rung::Paused, 75 << 10);
        let known = measured.clone();
        measured.note_held(Rung::Paused, 76 << 10);
        assert_eq!(measured, known);
        measured.note_held(Rung::Paused, 80 << 10);
        assert_eq!(measured.on(Rung::Paused).unwrap().held_kib, Some(80 << 10));
        let stored = serde_json::to_string(&measured).unwrap();
        let again: Measured = serde_json::from_str(&stored).unwrap();
        assert_eq!(again, measured);
        let local = again.on(Rung::Local).unwrap();
        assert_eq!(
            (local.wakes.percentile_ms(50), local.wakes.count(), local.held_kib),
            (Some(160), 3, None)
        );
        let rungs: Vec<Rung> = again.iter().map(|(rung, _)| rung).collect();
        assert_eq!(rungs, [Rung::Local, Rung::Paused]);
        assert!(again.on(Rung::Armed).is_none());
    }
}
