//! Recorded arrivals replayed against policies of keeping warm: a planning tool, and the benchmark of this project's own.
//!
//! ```text
//! trace ─► tape (the forecaster's hazards, look by look) ─┐
//!      └► gaps ───────────────────────────────────────────┴─► policies, swept ─► accounts ─► comparison ─► report
//! ```
//!
//! What is counted: a name's first request is cold under any policy; execution counts as no time; what is held after a
//! name's last request is not counted; names with one request are not judged. A change of rung takes no time and costs
//! nothing. The forecaster sees only what came before each look, in the order of time; the decision is the code that
//! the control loop uses (`reveille_core::decide::keep`).
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use reveille_replay::{Settings, Trace, replay};
//! let trace = Trace::parse(&std::fs::read_to_string("arrivals.csv")?)?;
//! let report = replay(&trace, &Settings::default(), |done, all| eprint!("\r{done}/{all}"))?;
//! println!("{report}");
//! println!("{}", serde_json::to_string(&report)?);
//! std::fs::write("curve.svg", report.svg())?;
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod account;
mod arima;
mod bench;
mod compare;
mod picture;
mod policy;
mod report;
mod settings;
mod tape;
mod trace;

pub use account::Account;
pub use bench::{BenchError, PolicyBench, TraceBench, policies};
pub use compare::{AtBudget, Comparison, Curve, Measure, Point};
pub use report::{Detail, Figures, Report};
pub use settings::Settings;
pub use tape::{Gap, Look, Tape};
pub use trace::{ARRIVALS_MAX, Format, NAMES_MAX, Request, Trace, TraceError};

use reveille_core::decide::keep::CostFault;
use reveille_core::forecast::gaps;

/// Details are shown beside a fixed keep-alive of so many minutes.
const DETAIL_MIN: f64 = 10.0;

/// Why a replay cannot begin.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ReplayError {
    /// No name was asked for twice.
    #[error("no name has two requests: there is no gap to replay")]
    NoGap,
    /// Costs of rungs are wrong.
    #[error("costs: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Costs(Vec<CostFault>),
}

/// Replays a trace against all policies. `progress` is told how many of how many steps are done.
///
/// # Errors
/// If there is nothing to replay, or the costs in `settings` are wrong.
pub fn replay(
    trace: &Trace,
    settings: &Settings,
    mut progress: impl FnMut(usize, usize),
) -> Result<Report, ReplayError> {
    let requests = trace.requests.len();
    let tape = Tape::record(trace, |done| progress(done, requests));
    if tape.gaps.is_empty() {
        return Err(ReplayError::NoGap);
    }
    let runs = compare::run_all(trace, &tape, settings, &mut progress).map_err(ReplayError::Costs)?;
    let judged: Vec<bool> = runs
        .fixed
        .first()
        .map_or_else(Vec::new, |run| run.names.iter().map(|account| account.requests > 0).collect());
    let all = runs.fixed.first().map_or(0, |run| run.names.iter().map(|account| account.requests).sum());
    let mut comparisons = Vec::new();
    for measure in [Measure::ColdStarts, Measure::Delay, Measure::PricedDelay] {
        for (of, which) in
            [("all names", None), ("first, third, … name", Some(0)), ("second, fourth, … name", Some(1))]
        {
            let mut place = 0;
            let member = judged.iter().map(|judged| {
                place += usize::from(*judged);
                *judged && which.is_none_or(|which| place % 2 != which)
            });
            let member: Vec<bool> = member.collect();
            comparisons.push(compare::compare(&runs, settings, measure, (of, &member)));
        }
    }
    let worst =
        |measure| comparisons.iter().find(|one| one.measure == measure).and_then(|one| one.ratio_worst);
    Ok(Report {
        names: judged.iter().filter(|judged| **judged).count(),
        requests: all,
        settings: settings.clone(),
        bytes_per_name: size_of::<gaps::Name>(),
        bytes_shared: tape.shared_bytes,
        cold_ratio_worst: worst(Measure::ColdStarts),
        delay_ratio_worst: worst(Measure::Delay),
        priced_delay_ratio_worst: worst(Measure::PricedDelay),
        details: Report::details(&trace.names, &runs, settings, DETAIL_MIN),
        comparisons,
    })
}

impl Report {
    /// The trade-off curves over all names as a picture, in SVG.
    pub fn svg(&self) -> String {
        let over_all: Vec<&Comparison> =
            self.comparisons.iter().filter(|one| one.of == "all names").collect();
        picture::svg(&over_all)
    }
}

/// Milliseconds without their fraction; no less than none.
#[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
pub(crate) fn whole_ms(ms: f64) -> u64 {
    ms as u64
}

#[cfg(test)]
mod tests;
