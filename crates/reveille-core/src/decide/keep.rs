//! Which rung a quiet service is kept on, while nobody asks for it: the least of what holding it costs and what a late
//! wake would.
//!
//! At idle time *t* with hazard *h(t)* (arrivals per hour) a rung costs, per hour,
//! `held memory × price of memory + h(t) × wake time × price of delay`; going from one to another costs the price of a
//! change. The sequence of rungs over the gap (stay, go down, come up again before a likely arrival) is the one that is
//! expected to cost least until the next arrival, by backward induction over the pieces of the hazard (Bellman, "Dynamic
//! Programming", 1957): what comes later counts as far as the gap lasts so long. Changes take no time here: pieces are
//! seconds long at the least, changes a fraction of one. The same prices for all services equalise what the last MiB is
//! worth between them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::forecast::gaps::Piece;
use crate::model::Rung;

/// What one rung costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RungCost {
    /// The rung.
    pub rung: Rung,
    /// What is held while it is kept, in MiB of memory; other resources as the memory that costs as much.
    pub held_mib: f64,
    /// What a client waits that comes while it is kept, in ms.
    pub wake_ms: f64,
}

/// What things are worth. Only their proportions matter for the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Holding one GiB for one hour.
    pub gib_hour: f64,
    /// One client waiting for one second.
    pub delay_second: f64,
    /// Going from one rung to another.
    pub change: f64,
}

/// What is wrong with rungs or prices.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CostFault {
    /// Nothing to choose from.
    #[error("no rung to choose from")]
    NoRung,
    /// A rung that is there twice.
    #[error("the rung {0} is there twice")]
    Twice(Rung),
    /// A number that is negative, infinite or none.
    #[error("{key} is {value}: it must be a number of at least 0")]
    BadNumber {
        /// Which one.
        key: String,
        /// What it is.
        value: f64,
    },
}

/// Rungs to choose from and their prices, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    rungs: Vec<RungCost>,
    prices: Prices,
}

/// A part of the gap on one rung.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stay {
    /// The rung.
    pub rung: Rung,
    /// Idle time at which it begins, in ms.
    pub from_ms: u64,
    /// Idle time at which it ends, in ms.
    pub until_ms: u64,
    /// Why, by the hazard at its beginning.
    pub because: KeepReason,
}

/// The numbers that a rung was chosen by, at the beginning of its stay. As text they are in GiB of memory held all the time, with
/// prices by which one is worth 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KeepReason {
    /// The hazard: arrivals per hour.
    pub per_hour: f64,
    /// Price of holding the rung for an hour.
    pub holding: f64,
    /// Price of late wakes in an hour, expected.
    pub late: f64,
    /// The next best rung and all that it would cost in an hour.
    pub instead: Option<(Rung, f64)>,
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { per_hour, holding, late, instead } = self;
        write!(f, "{per_hour:.2} arrivals an hour are expected; held {holding:.3} GiB, late wakes ")?;
        write!(f, "as much as {late:.3}")?;
        instead.map_or(Ok(()), |(rung, cost)| write!(f, "; {rung} as much as {cost:.3}"))
    }
}

impl Costs {
    /// Checks rungs and prices.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn new(mut rungs: Vec<RungCost>, prices: Prices) -> Result<Self, Vec<CostFault>> {
        let mut faults = Vec::new();
        let mut check = |key: String, value: f64| {
            if !(value.is_finite() && value >= 0.0) {
                faults.push(CostFault::BadNumber { key, value });
            }
        };
        check("gib_hour".to_owned(), prices.gib_hour);
        check("delay_second".to_owned(), prices.delay_second);
        check("change".to_owned(), prices.change);
        for rung in &rungs {
            check(format!("held_mib of {}", rung.rung), rung.held_mib);
            check(format!("wake_ms of {}", rung.rung), rung.wake_ms);
        }
        rungs.sort_by_key(|cost| cost.rung);
        let twice = rungs.windows(2).filter(|pair| pair[0].rung == pair[1].rung);
        faults.extend(twice.map(|pair| CostFault::Twice(pair[0].rung)));
        if rungs.is_empty() {
            faults.push(CostFault::NoRung);
        }
        if faults.is_empty() { Ok(Self { rungs, prices }) } else { Err(faults) }
    }

    /// The rungs, coldest first.
    pub fn rungs(&self) -> &[RungCost] {
        &self.rungs
    }

    /// The cheapest rung for a piece of `hours` with this hazard, coming from `held`, with its reason.
    /// Of equal ones the colder, but none before the one that is held.
    pub fn cheapest(&self, per_hour: f64, hours: f64, held: Rung) -> (Rung, KeepReason) {
        let (mut best, mut best_cost) = (None, f64::INFINITY);
        let (mut second, mut second_cost) = (None, f64::INFINITY);
        for cost in &self.rungs {
            let moves = if cost.rung == held { 0.0 } else { self.prices.change / hours.max(1e-9) };
            let total = self.holding(cost) + self.late(cost, per_hour) + moves;
            if total < best_cost || (total <= best_cost && cost.rung == held) {
                (second, second_cost) = (best, best_cost);
                (best, best_cost) = (Some(cost), total);
            } else if total < second_cost {
                (second, second_cost) = (Some(cost), total);
            }
        }
        // There is at least one rung; were all costs infinite, what is held would stay.
        let Some(best) = best else {
            return (
                held,
                KeepReason { per_hour, holding: f64::INFINITY, late: f64::INFINITY, instead: None },
            );
        };
        let instead = second.map(|rung| (rung.rung, second_cost));
        let reason =
            KeepReason { per_hour, holding: self.holding(best), late: self.late(best, per_hour), instead };
        (best.rung, reason)
    }

    /// The rungs over the pieces of a gap, coming from `held`. Pieces on the same rung are one stay; where it ends, the
    /// control loop looks again. An arrival ends the schedule.
    pub fn schedule(&self, pieces: &[Piece], held: Rung) -> Vec<Stay> {
        let next = self.best_next(pieces);
        let mut stays: Vec<Stay> = Vec::new();
        let mut place = self.rungs.iter().position(|cost| cost.rung == held);
        for (piece, next) in pieces.iter().zip(&next) {
            // What is held at first may be none of the rungs: then the change costs the same to each.
            let best = place.map_or(next.anew, |place| next.from[place]);
            place = Some(best);
            match stays.last_mut() {
                Some(stay) if stay.rung == self.rungs[best].rung => stay.until_ms = piece.until_ms,
                _ => stays.push(Stay {
                    rung: self.rungs[best].rung,
                    from_ms: piece.from_ms,
                    until_ms: piece.until_ms,
                    because: self.reason(best, piece.per_hour),
                }),
            }
        }
        stays
    }

    /// For each piece the rung to be on, by the one that is held before it. From the last piece back to the first.
    fn best_next(&self, pieces: &[Piece]) -> Vec<Next> {
        // What is expected to be paid from the next piece on, by the rung that it begins on.
        let mut ahead = vec![0.0; self.rungs.len()];
        let mut found: Vec<Next> = pieces
            .iter()
            .rev()
            .map(|piece| {
                let hours = piece.until_ms.saturating_sub(piece.from_ms) as f64 / 3_600_000.0;
                let ends = -(-piece.per_hour * hours).exp_m1();
                // A piece is paid for until the arrival that ends it.
                let paid_hours = if piece.per_hour > 0.0 { ends / piece.per_hour } else { hours };
                let on: Vec<f64> = self
                    .rungs
                    .iter()
                    .zip(&ahead)
                    .map(|(cost, ahead)| {
                        paid_hours * (self.holding(cost) + self.late(cost, piece.per_hour))
                            + (1.0 - ends) * ahead
                    })
                    .collect();
                let anew = least(on.iter().copied());
                let from: Vec<usize> = (0..on.len())
                    .map(|held| {
                        // Of equal ones what is held stays.
                        let moves = on[anew] + self.prices.change < on[held];
                        if moves { anew } else { held }
                    })
                    .collect();
                ahead = (0..on.len())
                    .map(|held| on[from[held]] + if from[held] == held { 0.0 } else { self.prices.change })
                    .collect();
                Next { from, anew }
            })
            .collect();
        found.reverse();
        found
    }

    fn reason(&self, place: usize, per_hour: f64) -> KeepReason {
        let total = |cost: &RungCost| self.holding(cost) + self.late(cost, per_hour);
        let others = self.rungs.iter().enumerate().filter(|(other, _)| *other != place);
        let instead = others.map(|(_, cost)| (cost.rung, total(cost))).min_by(|a, b| a.1.total_cmp(&b.1));
        let best = &self.rungs[place];
        KeepReason { per_hour, holding: self.holding(best), late: self.late(best, per_hour), instead }
    }

    fn holding(&self, cost: &RungCost) -> f64 {
        cost.held_mib / 1_024.0 * self.prices.gib_hour
    }

    fn late(&self, cost: &RungCost, per_hour: f64) -> f64 {
        per_hour * cost.wake_ms / 1_000.0 * self.prices.delay_second
    }
}

/// The rung to be on in a piece.
struct Next {
    /// By the place of the rung that is held before it.
    from: Vec<usize>,
    /// When none of them is.
    anew: usize,
}

/// The place of the least, of equal ones the first.
fn least(costs: impl Iterator<Item = f64>) -> usize {
    costs.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rung(rung: Rung, held_mib: f64, wake_ms: f64) -> RungCost {
        RungCost { rung, held_mib, wake_ms }
    }

    fn costs(change: f64) -> Costs {
        let rungs = vec![
            rung(Rung::Active, 128.0, 0.0),
            rung(Rung::Paused, 75.0, 20.0),
            rung(Rung::Armed, 41.0, 140.0),
            rung(Rung::Local, 0.0, 190.0),
        ];
        Costs::new(rungs, Prices { gib_hour: 1.0, delay_second: 1.0, change }).unwrap()
    }

    fn pieces(hazards: &[f64]) -> Vec<Piece> {
        let piece = |(index, per_hour): (u64, &f64)| Piece {
            from_ms: index * 60_000,
            until_ms: (index + 1) * 60_000,
            per_hour: *per_hour,
        };
        (0..).zip(hazards).map(piece).collect()
    }

    fn rungs(stays: &[Stay]) -> Vec<(Rung, u64, u64)> {
        stays.iter().map(|stay| (stay.rung, stay.from_ms / 60_000, stay.until_ms / 60_000)).collect()
    }

    #[test]
    fn a_service_goes_down_as_it_grows_quiet_and_comes_up_before_a_likely_arrival() {
        // Paused instead of Active saves 53 MiB for 20 ms: worth it below 2.6 arrivals an hour. Local instead of Paused
        // saves 75 MiB for 170 ms: below 0.43. Armed saves too little memory ever to be best here.
        let stays = costs(0.0).schedule(&pieces(&[9.0, 2.6, 2.5, 0.44, 0.42, 0.1, 0.5, 3.0]), Rung::Active);
        let expected = [
            (Rung::Active, 0, 2),
            (Rung::Paused, 2, 4),
            (Rung::Local, 4, 6),
            (Rung::Paused, 6, 7),
            (Rung::Active, 7, 8),
        ];
        assert_eq!(rungs(&stays), expected);
        let KeepReason { per_hour, holding, late, instead } = stays[2].because;
        assert_eq!((per_hour, holding), (0.42, 0.0));
        assert!((late - 0.42 * 0.19).abs() < 1e-12);
        assert_eq!(instead.unwrap().0, Rung::Paused);
        assert_eq!(
            stays[2].because.to_string(),
            "0.42 arrivals an hour are expected; held 0.000 GiB, late wakes as much as 0.080; paused as much as 0.082"
        );
    }

    #[test]
    fn a_price_on_changes_keeps_a_hazard_around_a_threshold_from_moving_anything() {
        let around = pieces(&[2.6, 2.5, 2.7, 2.5, 2.7, 0.0]);
        assert!(costs(0.0).schedule(&around, Rung::Active).len() > 3);
        assert_eq!(
            rungs(&costs(0.001).schedule(&around, Rung::Active)),
            [(Rung::Active, 0, 5), (Rung::Local, 5, 6)]
        );
        // Of equal ones what is held stays.
        let same = vec![rung(Rung::Local, 1.0, 0.0), rung(Rung::Active, 1.0, 0.0)];
        let same = Costs::new(same, Prices { gib_hour: 1.0, delay_second: 1.0, change: 0.0 }).unwrap();
        assert_eq!(same.cheapest(1.0, 1.0, Rung::Active).0, Rung::Active);
        assert_eq!(same.cheapest(1.0, 1.0, Rung::Local).0, Rung::Local);
    }

    #[test]
    fn a_change_is_paid_by_all_that_follows_and_not_by_its_first_piece() {
        let ten_seconds = |index: u64, per_hour| Piece {
            from_ms: index * 10_000,
            until_ms: (index + 1) * 10_000,
            per_hour,
        };
        let quiet: Vec<Piece> = (0..360).map(|index| ten_seconds(index, 0.0)).collect();
        // An hour of Active costs 0.125, ten seconds of it 0.0003.
        let down = costs(0.01).schedule(&quiet, Rung::Active);
        assert_eq!((down.len(), down[0].rung), (1, Rung::Local));
        // Who is sure to come in a minute is not worth going down and up for.
        let sure: Vec<Piece> =
            (0..12).map(|index| ten_seconds(index, if index < 6 { 0.0 } else { 9_000.0 })).collect();
        assert_eq!(costs(0.01).schedule(&sure, Rung::Active).len(), 1);
    }

    #[test]
    fn wrong_costs_are_refused_with_all_that_is_wrong() {
        let prices = Prices { gib_hour: -1.0, delay_second: f64::NAN, change: 0.0 };
        let twice = vec![rung(Rung::Local, 0.0, 1.0), rung(Rung::Local, 0.0, f64::INFINITY)];
        let faults = Costs::new(twice, prices).unwrap_err();
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "gib_hour is -1: it must be a number of at least 0",
                "delay_second is NaN: it must be a number of at least 0",
                "wake_ms of local is inf: it must be a number of at least 0",
                "the rung local is there twice",
            ]
        );
        let prices = Prices { gib_hour: 1.0, delay_second: 1.0, change: 0.0 };
        assert_eq!(Costs::new(Vec::new(), prices), Err(vec![CostFault::NoRung]));
    }
}
