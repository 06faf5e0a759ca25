//! `bench policy DIR`: every trace of arrivals in a directory of data, replayed with the default settings.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Serialize;

use crate::{Format, ReplayError, Report, Settings, Step, Trace, TraceError, replay, text_of};

/// A larger file is no trace, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

/// What was found in a directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyBench {
    /// The largest ratio of cold starts to the better baseline, over all traces and budgets.
    pub cold_ratio_worst: Option<f64>,
    /// The largest ratio of delays to fixed keep-alive at equal memory.
    pub delay_ratio_worst: Option<f64>,
    /// The same with idle vCPUs priced as memory.
    pub priced_delay_ratio_worst: Option<f64>,
    /// Each trace, with its curves.
    pub traces: Vec<TraceBench>,
}

/// One trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TraceBench {
    /// Its file.
    pub file: PathBuf,
    /// What was found.
    pub report: Report,
}

/// Why a directory cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// It or a file in it cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A trace is damaged.
    #[error("{path}: {source}", path = path.display())]
    Trace {
        /// Which.
        path: PathBuf,
        /// Why.
        source: TraceError,
    },
    /// A trace has nothing to replay.
    #[error("{path}: {source}", path = path.display())]
    Replay {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ReplayError,
    },
    /// No trace.
    #[error("{path}: no CSV file with a column for the time and one for the name", path = .0.display())]
    Nothing(PathBuf),
}

/// Replays every CSV of arrivals in `directory` and in `directory/arrivals`. Files of other columns are left out.
///
/// # Errors
/// If there is none, or one cannot be read.
pub fn policies(
    directory: &Path,
    mut progress: impl FnMut(&Path, Step, usize, usize),
) -> Result<PolicyBench, BenchError> {
    let mut traces = Vec::new();
    let beside = directory.join("arrivals");
    let beside = beside.is_dir().then_some(beside);
    for folder in std::iter::once(directory).chain(beside.as_deref()) {
        for path in files(folder)? {
            let bytes =
                fs::read(&path).map_err(|source| BenchError::Unreadable { path: path.clone(), source })?;
            let text = text_of(&bytes).map_err(|source| BenchError::Trace { path: path.clone(), source })?;
            if Format::of(text) != Ok(Format::Arrivals) {
                continue;
            }
            let trace = match Trace::parse(text) {
                Ok(trace) => trace,
                Err(TraceError::NoColumn { .. }) => continue,
                Err(source) => return Err(BenchError::Trace { path, source }),
            };
            let told = |step, done, all| progress(&path, step, done, all);
            let report = replay(&trace, &Settings::default(), told)
                .map_err(|source| BenchError::Replay { path: path.clone(), source })?;
            traces.push(TraceBench { file: path, report });
        }
    }
    if traces.is_empty() {
        return Err(BenchError::Nothing(directory.to_owned()));
    }
    let worst = |ratio: fn(&Report) -> Option<f64>| {
        let ratios: Option<Vec<f64>> = traces.iter().map(|trace| ratio(&trace.report)).collect();
        ratios.map(|ratios| ratios.into_iter().fold(0.0, f64::max))
    };
    Ok(PolicyBench {
        cold_ratio_worst: worst(|report| report.cold_ratio_worst),
        delay_ratio_worst: worst(|report| report.delay_ratio_worst),
        priced_delay_ratio_worst: worst(|report| report.priced_delay_ratio_worst),
        traces,
    })
}

/// The CSV files of a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>, BenchError> {
    let unreadable = |source| BenchError::Unreadable { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        let about = fs::metadata(&path).map_err(unreadable)?;
        if about.is_file()
            && about.len() <= FILE_BYTES_MAX
            && path.extension().is_some_and(|end| end == "csv")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
