//! `reveille bench forecast`: forecasts, anomalies and the correction for caching on data that nobody here made.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use reveille_forecast::bench::{Options, Report, run};

use crate::cli::{Output, Progress};

/// Options of `reveille bench forecast`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  reveille bench forecast ../data --quick --json >forecast.json\n\n\
    DIR has the files of the sources under these names:\n  \
    m4_hourly/Hourly-train.csv, Hourly-test.csv      M4 competition\n  \
    web_counts/, hourly/                             seven sets of counts a minute, half-hour or hour; not with --m4\n  \
    nab/data/, nab/labels/combined_windows.json      Numenta Anomaly Benchmark, if it is there; not with --m4\n\n\
    Beside statsforecast (PyPI), on one core: scripts/statsforecast.sh DIR")]
pub struct Forecast {
    /// Directory of data
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Leave out what each model does alone, but for those that the aims name
    #[arg(long)]
    quick: bool,
    /// M4, speed and memory alone
    #[arg(long)]
    m4: bool,
    /// Boosted trees compete as well, as with heavy_models_cpu_percent
    #[arg(long)]
    heavy: bool,
    /// Write a score for each point of each file of the Numenta Anomaly Benchmark, for the benchmark's own scorer
    #[arg(long, value_name = "DIR", conflicts_with = "m4")]
    nab_scores: Option<PathBuf>,
}

impl Forecast {
    /// Measures and prints.
    ///
    /// # Errors
    /// Data that is missing or damaged, with file and line.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let options = Options { singles: !self.quick, others: !self.m4, heavy: self.heavy };
        let progress = Progress::new(output);
        let report = run(&self.dir, options, &mut |what, at, of| progress.at(what, at, of));
        progress.end();
        let report = report?;
        if let Some(directory) = &self.nab_scores {
            write_scores(directory, &report)?;
        }
        output.print(&report, Report::to_string)
    }
}

fn write_scores(directory: &Path, report: &Report) -> anyhow::Result<()> {
    for scored in report.nab.iter().flat_map(|nab| &nab.scored) {
        let path = directory.join(&scored.file);
        let write = || -> std::io::Result<()> {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(&path, scored.csv())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
