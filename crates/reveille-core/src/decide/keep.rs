//! Which rung a quiet service is kept on, while nobody asks for it: the least of what holding it costs and what a late
//! wake would.
//!
//! At idle time *t* with hazard *h(t)* (arrivals per hour) a rung costs, per hour,
//! `held memory × price of memory + h(t) × wake time × price of delay`. Going from rung to rung is taken to be done in no
//! time: pieces of the hazard are seconds long at the least, changes a fraction of one. So each piece is decided for
//! itself, and the sequence is the optimum over the gap when changes are free: stay, go down, come up again before a
//! likely arrival. With a price on changes a piece moves only if it saves more than that by itself, which is on the
//! safe side of moving too often. The same prices for all services equalise what the last MiB is worth between them.

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

/// The numbers that a rung was chosen by, at the beginning of its stay.
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
        write!(f, "{per_hour:.2} arrivals an hour are expected: holding costs {holding:.4} an hour, ")?;
        write!(f, "late wakes {late:.4}")?;
        instead.map_or(Ok(()), |(rung, cost)| write!(f, "; {rung} would cost {cost:.4}"))
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
        let mut stays: Vec<Stay> = Vec::new();
        for piece in pieces {
            let hours = piece.until_ms.saturating_sub(piece.from_ms) as f64 / 3_600_000.0;
            let before = stays.last().map_or(held, |stay| stay.rung);
            let (rung, because) = self.cheapest(piece.per_hour, hours, before);
            match stays.last_mut() {
                Some(stay) if stay.rung == rung => stay.until_ms = piece.until_ms,
                _ => stays.push(Stay { rung, from_ms: piece.from_ms, until_ms: piece.until_ms, because }),
            }
        }
        stays
    }

    fn holding(&self, cost: &RungCost) -> f64 {
        cost.held_mib / 1_024.0 * self.prices.gib_hour
    }

    fn late(&self, cost: &RungCost, per_hour: f64) -> f64 {
        per_hour * cost.wake_ms / 1_000.0 * self.prices.delay_second
    }
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
            "0.42 arrivals an hour are expected: holding costs 0.0000 an hour, late wakes 0.0798; paused would cost 0.0816"
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
