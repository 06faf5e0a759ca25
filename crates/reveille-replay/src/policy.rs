//! Policies of keeping warm: for each gap the rungs over idle time, from what was known when it began.

use reveille_core::decide::keep::Costs;
use reveille_core::model::Rung;

use crate::arima;
use crate::tape::{Gap, Tape};
use crate::whole_ms;

/// What is done with a name that nobody asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// Down these rungs, each until an idle time in ms, then the one of rest. With one of them, `Active`, it is a fixed
    /// keep-alive.
    Ladder(Vec<(Rung, u64)>),
    /// The hybrid histogram of "Serverless in the Wild" (ATC'20): bins of a minute up to `reach_min`, 5th and 99th
    /// percentile with 10 % margin, fixed keep-alive of that reach while the histogram is not representative.
    Hybrid {
        /// The histogram's reach, in minutes.
        reach_min: usize,
        /// Whether names whose gaps are mostly longer are forecast by ARIMA, with a margin of 15 %.
        arima: bool,
    },
    /// Reveille's: rungs by hazard and expected cost.
    Hazard(Costs),
}

/// One part of a gap: a rung until an idle time in ms.
pub type Part = (Rung, u64);

/// Calls `each` with every gap of the tape and what the policy does over it, as far as the gap lasted. The last part goes
/// on to the end of the gap.
pub fn over(tape: &Tape, policy: &Policy, rest: Rung, mut each: impl FnMut(&Gap, &[Part])) {
    let mut parts: Vec<Part> = Vec::new();
    let mut names: Vec<Histogram> = Vec::new();
    for gap in &tape.gaps {
        parts.clear();
        match policy {
            Policy::Ladder(steps) => parts.extend(steps),
            Policy::Hybrid { reach_min, arima } => {
                if names.len() <= gap.name {
                    names.resize_with(gap.name + 1, || Histogram::new(*reach_min));
                }
                let name = &mut names[gap.name];
                let (prewarm_ms, keep_ms) = name.window(*arima);
                if prewarm_ms > 0 {
                    // An arrival at the very end of it finds the instance warm.
                    parts.push((rest, prewarm_ms - 1));
                }
                parts.push((Rung::Active, prewarm_ms.saturating_add(keep_ms)));
                name.ended(gap.ms, *arima);
            }
            Policy::Hazard(costs) => by_hazard(gap, costs, &mut parts),
        }
        if !matches!(policy, Policy::Hazard(_)) {
            parts.push((rest, u64::MAX));
        }
        each(gap, &parts);
    }
}

/// The same decision as the control loop's, look by look.
fn by_hazard(gap: &Gap, costs: &Costs, parts: &mut Vec<Part>) {
    let (mut held, mut until_ms) = (Rung::Active, 0);
    for look in &gap.looks {
        let hours = f64::from(look.length_ms) / 3_600_000.0;
        held = costs.cheapest(f64::from(look.per_hour), hours, held).0;
        until_ms += u64::from(look.length_ms);
        match parts.last_mut() {
            Some((rung, until)) if *rung == held => *until = until_ms,
            _ => parts.push((held, until_ms)),
        }
    }
}

/// The histogram of one name's gaps.
#[derive(Debug, Clone)]
struct Histogram {
    bins: Vec<u32>,
    inside: usize,
    gaps: usize,
    /// The last gaps in minutes, for ARIMA.
    recent: Vec<f64>,
}

/// Fewer gaps than this are not representative.
const GAPS_MIN: usize = 10;

/// A histogram is representative if its bins vary at least so much.
const VARIATION_MIN: f64 = 2.0;

impl Histogram {
    fn new(reach_min: usize) -> Self {
        Self { bins: vec![0; reach_min.max(1)], inside: 0, gaps: 0, recent: Vec::new() }
    }

    fn ended(&mut self, gap_ms: u64, arima: bool) {
        self.gaps += 1;
        if let Some(bin) = usize::try_from(gap_ms / 60_000).ok().and_then(|minute| self.bins.get_mut(minute))
        {
            *bin += 1;
            self.inside += 1;
        }
        if arima {
            self.recent.push(gap_ms as f64 / 60_000.0);
            if self.recent.len() > arima::VALUES_MAX {
                self.recent.remove(0);
            }
        }
    }

    /// When to load after an arrival, and for how long to keep from then on, in ms.
    fn window(&self, arima: bool) -> (u64, u64) {
        let reach_ms = self.bins.len() as u64 * 60_000;
        if self.gaps >= GAPS_MIN && self.inside * 2 < self.gaps && arima {
            let next_min = arima::next(&self.recent).filter(|next| *next > 0.0);
            return next_min
                .map_or((0, reach_ms), |next| (whole_ms(next * 51_000.0), whole_ms(next * 18_000.0)));
        }
        if self.gaps < GAPS_MIN || self.inside * 2 < self.gaps || self.variation() < VARIATION_MIN {
            return (0, reach_ms);
        }
        let head_ms = (self.percentile(0.05) * 54_000) as u64;
        let tail_ms = ((self.percentile(0.99) + 1) * 66_000) as u64;
        (head_ms, tail_ms - head_ms)
    }

    /// The coefficient of variation of the bins.
    fn variation(&self) -> f64 {
        let n = self.bins.len() as f64;
        let mean = self.inside as f64 / n;
        let squares: f64 = self.bins.iter().map(|bin| (f64::from(*bin) - mean).powi(2)).sum();
        (squares / n).sqrt() / mean
    }

    /// The first bin up to which this share of the gaps in range lies.
    fn percentile(&self, share: f64) -> usize {
        let wanted = share * self.inside as f64;
        let mut total = 0;
        let reached = |bin: &u32| {
            total += *bin;
            f64::from(total) >= wanted
        };
        self.bins.iter().position(reached).unwrap_or(self.bins.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Account;

    fn tape(gaps_min: &[u64]) -> Tape {
        let gap = |min: &u64| Gap { name: 0, ms: min * 60_000, looks: Vec::new() };
        Tape { gaps: gaps_min.iter().map(gap).collect(), shared_bytes: 0 }
    }

    /// Cold starts and idle-warm minutes.
    fn cost(gaps_min: &[u64], policy: &Policy) -> (u64, f64) {
        let mut account = Account::default();
        account.begin();
        over(&tape(gaps_min), policy, Rung::Local, |gap, parts| account.gap(gap.ms, parts));
        (account.cold(), (account.warm_hours() * 60.0 * 1e3).round() / 1e3)
    }

    #[test]
    fn fixed_keep_alive_pays_each_gap_up_to_its_time() {
        let fixed = Policy::Ladder(vec![(Rung::Active, 10 * 60_000)]);
        // The first is cold; 10 is not, 11 is.
        assert_eq!(cost(&[5, 10, 11, 300], &fixed), (3, 35.0));
    }

    #[test]
    fn a_hybrid_histogram_waits_for_its_head_and_keeps_to_its_tail() {
        let hybrid = Policy::Hybrid { reach_min: 240, arima: false };
        // Ten gaps are kept for the reach: it is not representative before. From then on all are in the bin of minute 30:
        // it loads after 30 × 0.9 and keeps until 31 × 1.1.
        assert_eq!(cost(&[30; 10], &hybrid), (1, 300.0));
        let mut gaps = vec![30; 10];
        gaps.push(30);
        assert_eq!(cost(&gaps, &hybrid), (1, 303.0));
        *gaps.last_mut().unwrap() = 26;
        assert_eq!(cost(&gaps, &hybrid), (2, 300.0));
        *gaps.last_mut().unwrap() = 50;
        assert_eq!(cost(&gaps, &hybrid), (2, 307.1));
    }

    #[test]
    fn gaps_out_of_the_histograms_range_are_forecast_by_arima() {
        let gaps: Vec<u64> = (0..40).map(|at| 600 + at % 3).collect();
        let (cold, warm_min) = cost(&gaps, &Policy::Hybrid { reach_min: 240, arima: true });
        let (without, warm_without) = cost(&gaps, &Policy::Hybrid { reach_min: 240, arima: false });
        assert_eq!(without, 41);
        // Only those before the tenth are late, and each of the others waits for 15 % of its gap.
        assert_eq!(cold, 11);
        assert!(warm_min < warm_without, "{warm_min} {warm_without}");
    }
}
