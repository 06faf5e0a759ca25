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
//! let report = replay(&trace, &Settings::default(), |step, done, all| eprint!("\r{step} {done}/{all}"))?;
//! println!("{}", report.shown(10));
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
mod csv;
mod picture;
mod policy;
mod report;
mod settings;
mod tape;
mod trace;

pub use account::Account;
pub use bench::{BenchError, FILE_BYTES_MAX, PolicyBench, TraceBench, policies};
pub use compare::{AtBudget, Comparison, Curve, Measure, Point};
pub use csv::{Format, text_of};
pub use report::{Detail, Figures, Report, Shown};
pub use settings::{SWEEP_MAX, Settings, SettingsFault};
pub use tape::{Gap, LOOKS_MAX, Look, Tape};
pub use trace::{
    ARRIVALS_MAX, AT_MS_MAX, COUNT_MAX, NAME_BYTES_MAX, NAMES_MAX, Request, Trace, TraceBuilder, TraceError,
    client_of,
};

use std::fmt;

use compare::Members;
use reveille_core::decide::keep::CostFault;
use reveille_core::forecast::gaps;

/// Why a replay cannot begin.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ReplayError {
    /// No name was asked for twice.
    #[error("no name has two requests: there is no gap to replay")]
    NoGap,
    /// Its gaps together take more looks than memory is meant for.
    #[error(
        "the gaps are too many or too long: more than {LOOKS_MAX} looks; replay fewer names or less time"
    )]
    TooLong,
    /// Settings are out of range or do not fit each other.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Settings(Vec<SettingsFault>),
    /// Costs of rungs are wrong.
    #[error("costs: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Costs(Vec<CostFault>),
}

/// What a replay is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The forecaster sees the requests.
    Requests,
    /// Policies run over the gaps.
    Policies,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests",
            Self::Policies => "policies",
        })
    }
}

/// Replays a trace against all policies. `progress` is told what is done, and how many of how many are.
///
/// # Errors
/// If there is nothing to replay, or `settings` are wrong.
pub fn replay(
    trace: &Trace,
    settings: &Settings,
    mut progress: impl FnMut(Step, usize, usize),
) -> Result<Report, ReplayError> {
    let faults = settings.faults();
    if !faults.is_empty() {
        return Err(ReplayError::Settings(faults));
    }
    let requests = trace.requests.len();
    let tape = Tape::record(trace, |done| progress(Step::Requests, done, requests))?;
    if tape.gaps.is_empty() {
        return Err(ReplayError::NoGap);
    }
    let runs = compare::run_all(trace, &tape, settings, &mut progress).map_err(ReplayError::Costs)?;
    let mut comparisons = Vec::new();
    for measure in [Measure::ColdStarts, Measure::Delay, Measure::PricedDelay] {
        for of in [
            ("all names", Members::All),
            ("first, third, … name", Members::Half(0)),
            ("second, fourth, … name", Members::Half(1)),
        ] {
            comparisons.push(compare::compare(&runs, settings, measure, of));
        }
    }
    let details = Report::details(trace, &tape, &runs, settings);
    let judged = details.first();
    let worst =
        |measure| comparisons.iter().find(|one| one.measure == measure).and_then(|one| one.ratio_worst);
    Ok(Report {
        names: judged.map_or(0, |detail| detail.by_name.len()),
        requests: judged.map_or(0, |detail| detail.total.requests),
        settings: settings.clone(),
        bytes_per_name: size_of::<gaps::Name>(),
        bytes_shared: tape.shared_bytes,
        cold_ratio_worst: worst(Measure::ColdStarts),
        delay_ratio_worst: worst(Measure::Delay),
        priced_delay_ratio_worst: worst(Measure::PricedDelay),
        comparisons,
        details,
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
