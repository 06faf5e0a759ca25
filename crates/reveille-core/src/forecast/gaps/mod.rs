//! When a sparse name is asked for next: the hazard of its idle gap.
//!
//! The arrivals of a name are taken as a point process whose intensity (its *hazard*: arrivals per hour, given that
//! none has come since the last) is log-linear in what is known at that moment: how long it has been idle, counts of
//! its arrivals that decay with half-lives of minutes to a week, its recent gaps, the histogram of its gaps so far,
//! the time of day, how busy its host is, and, if they are told, who asked last and for how long that kept it busy.
//!
//! ```text
//! arrival ─► Name (≤ 400 B)  ─┐
//!         └► Host (shared)   ─┼─► features at an idle time ─► Regression ─► hazard ─► decide::keep
//! ended gap, piece by piece ──┘                                   ▲
//!         └───────────────────── learns ──────────────────────────┘
//! ```
//!
//! One regression serves all names of a host: that is the prior that a new name inherits, and the name's own state
//! moves it away from there as the name is known better. The gaps that a name is taken to have had before its first one are
//! those of its group (services of one image), drawn to those of the host by how few of them were seen. It is learned online, by a Poisson likelihood over the pieces
//! of each gap that has ended (piecewise exponential model: Friedman, "Piecewise exponential models for survival data
//! with covariates", Ann. Stat. 10, 1982), with an extended Kalman filter's update (Fahrmeir, "Posterior mode estimation
//! by extended Kalman filtering for multivariate dynamic generalized linear models", JASA 87, 1992). What decays is an
//! exponential kernel of Hawkes (1971). Nothing of the future is used: a hazard rests on arrivals up to that moment.

mod clock;
mod features;
mod grid;
mod host;
mod name;
mod regression;
mod stored;
#[cfg(test)]
mod tests;

pub use super::stored::Damaged;
pub use features::FEATURES;
pub use grid::{PIECES, piece, piece_at};
pub use host::{CLIENTS_MAX, Host};
pub use name::Name;
pub use regression::Regression;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

/// One arrival, as far as its gap matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When it came.
    pub at: Timestamp,
    /// A hash of who asked, if that is known.
    pub client: Option<u64>,
    /// For how long it keeps the service busy, in ms, if that is told. It is used only once that time is over.
    pub busy_ms: Option<u64>,
    /// A hash of what its name has in common with others, if that is known: they are its group.
    pub group: Option<u64>,
}

/// The group of names that have this word in common, such as their image. The same on every host and after each restart.
#[must_use]
pub fn group_of(word: &str) -> u64 {
    super::stored::checksum(word.as_bytes())
}

/// One step of a hazard over idle time: constant from `from_ms` until `until_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Idle time at which it begins, in ms since the last arrival.
    pub from_ms: u64,
    /// Idle time at which it ends, in ms.
    pub until_ms: u64,
    /// Expected arrivals per hour while no arrival has come.
    pub per_hour: f64,
}

/// Arrivals that are expected between two idle times, both in ms since the last arrival. What no piece reaches has the hazard of the
/// last one.
#[must_use]
pub fn expected(pieces: &[Piece], from_ms: u64, until_ms: u64) -> f64 {
    let overlap_ms = |from: u64, until: u64| until.min(until_ms).saturating_sub(from.max(from_ms)) as f64;
    let within = pieces.iter().map(|piece| piece.per_hour * overlap_ms(piece.from_ms, piece.until_ms));
    let beyond = pieces.last().map_or(0.0, |last| last.per_hour * overlap_ms(last.until_ms, u64::MAX));
    (within.sum::<f64>() + beyond) / 3_600_000.0
}

/// The forecast of gaps of one group of names: what they share.
#[derive(Debug, Clone, Default)]
pub struct Gaps {
    host: Host,
    regression: Regression,
}

impl Gaps {
    /// Takes an arrival of `name` in: its ended gap teaches the regression, then its state and the host's move on.
    ///
    /// Arrivals come in the order of time; one that is earlier than the last counts as simultaneous with it.
    pub fn arrived(&mut self, name: &mut Name, arrival: Arrival) {
        if let Some(gap_ms) = name.idle_ms(arrival.at) {
            self.learn(name, gap_ms, true);
        }
        self.host.arrived(arrival);
        name.arrived(arrival, &mut self.host);
    }

    /// The last arrival of `name` keeps it in use until `at` at least: its gap begins then. Nothing is learned from that.
    pub fn in_use(&mut self, name: &mut Name, at: Timestamp) {
        name.in_use(at);
    }

    /// Learns of `name` that it was not asked for until `now`. It need not be called: what is left out is learned with the
    /// next arrival; but names that are silent for long teach most.
    pub fn silent(&mut self, name: &mut Name, now: Timestamp) {
        if let Some(idle_ms) = name.idle_ms(now) {
            self.learn(name, idle_ms, false);
        }
    }

    /// The hazard of `name` in the piece of idle time with this index, as far as can be said at its beginning.
    /// `None` before its first arrival and beyond the last piece.
    pub fn hazard(&self, name: &Name, index: usize) -> Option<Piece> {
        let (from_ms, until_ms) = piece(index)?;
        let features = features::at(name, &self.host, from_ms)?;
        let per_hour = clock::mixed(name, from_ms, until_ms, self.regression.rate(&features));
        Some(Piece { from_ms, until_ms, per_hour })
    }

    /// The hazard of `name` from `now` on, at most `pieces` steps. What is known of the host is as it is now.
    pub fn hazards(&self, name: &Name, now: Timestamp, pieces: usize) -> Vec<Piece> {
        let Some(idle_ms) = name.idle_ms(now) else { return Vec::new() };
        let first = piece_at(idle_ms);
        (first..first.saturating_add(pieces).min(PIECES))
            .filter_map(|index| self.hazard(name, index))
            .collect()
    }

    /// What is shared, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.host.size_bytes() + self.regression.size_bytes()
    }

    fn learn(&mut self, name: &mut Name, gap_ms: u64, over: bool) {
        for index in name.learned()..PIECES {
            let Some((from_ms, until_ms)) = piece(index) else { return };
            let ended = over && gap_ms <= until_ms;
            if !ended && gap_ms < until_ms {
                return;
            }
            let Some(features) = features::at(name, &self.host, from_ms) else { return };
            let hours = gap_ms.min(until_ms).saturating_sub(from_ms) as f64 / 3_600_000.0;
            let expected = self.regression.learn(&features, hours, ended);
            self.host.judged(name.last_ms() + gap_ms.min(until_ms), expected, ended);
            if ended {
                let probability = name.unasked() * (1.0 - (-expected).exp());
                name.odds = clock::judged(name, from_ms, until_ms, probability);
            }
            name.judged(index, from_ms as f32 / 1_000.0, expected, ended);
            if ended {
                return;
            }
        }
    }
}
