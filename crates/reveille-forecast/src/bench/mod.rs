//! `reveille bench forecast DIR`: the core's models on data that nobody here made.
//!
//! The M4 competition's hourly series as the competition scored them ([`m4`]), one day ahead from many origins on seven
//! sets of web requests, pedestrians and loads ([`rolling`]), how many series a core re-forecasts in a minute
//! ([`speed`]), anomalies as a benchmark of them scores them ([`nab`]), and demand behind caches, simulated
//! ([`caching`]). Everything is seeded by the data alone, so a run can be repeated to the last digit, but for the times.

pub mod caching;
pub mod m4;
pub mod nab;
pub mod read;
pub mod rolling;
pub mod speed;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use reveille_core::forecast::caching::WATCH_BYTES_MAX;
use reveille_core::forecast::gaps;
use reveille_core::forecast::volume::{Chosen, Fault, Model, Seasons, Series, candidates, choose};
use serde::Serialize;

use crate::heavy;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The data could not be read.
    #[error(transparent)]
    Read(#[from] read::ReadError),
    /// The combination had no forecast for a series of the data.
    #[error("{series}: no forecast")]
    Forecast {
        /// Set and series.
        series: String,
        /// Why.
        source: Fault,
    },
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Each model alone, beside the combination; without, only those that the goals name.
    pub singles: bool,
    /// One day ahead on the other seven sets, anomalies, and demand behind caches.
    pub others: bool,
    /// Boosted trees among the candidates, as with a share of a processor for heavy models.
    pub heavy: bool,
}

impl Options {
    /// What the daemon would forecast with.
    fn choose(self, history: &Series, horizon: usize) -> Result<Chosen, Fault> {
        if self.heavy { heavy::choose(history, horizon) } else { choose(history, horizon) }
    }

    /// Each model that competes.
    fn candidates(self, seasons: Seasons) -> Vec<Arc<dyn Model>> {
        let mut models = candidates(seasons);
        models.extend(self.heavy.then(|| heavy::boosted(seasons)));
        models
    }
}

/// Windows that are simulated of each case of demand behind caches.
const CACHING_WINDOWS: u32 = 100;
/// Queries that are to be expected in each.
const CACHING_QUERIES: f64 = 400.0;

/// All figures.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The combination's mean absolute scaled error.
    pub m4_hourly_mase: f64,
    /// Its symmetric mean absolute percentage error.
    pub m4_hourly_smape: f64,
    /// Its mean scaled interval score at 95 %.
    pub m4_hourly_msis: f64,
    /// The share of the values within its 80 % intervals.
    pub m4_hourly_coverage_80: f64,
    /// The same of its 95 % intervals.
    pub m4_hourly_coverage_95: f64,
    /// Series of 1,000 points, models already chosen, coefficients estimated anew, 48 steps of nine quantiles.
    pub series_per_minute_per_core: f64,
    /// The same with the coefficients kept.
    pub series_per_minute_per_core_kept: f64,
    /// Sets on which the combination's quantile loss is not above that of the best single model.
    pub rolling_sets_best: usize,
    /// Sets on which it is above that of the seasonal naive.
    pub rolling_sets_below_naive: usize,
    /// Each model on M4 hourly, the combination first.
    pub m4_hourly: Vec<m4::Row>,
    /// Each of the other sets.
    pub rolling: Vec<rolling::Set>,
    /// Times of one series.
    pub speed: speed::Speed,
    /// Anomalies, if the data has any.
    pub nab: Option<nab::Nab>,
    /// Demand behind caches.
    pub caching: Option<caching::Summary>,
    /// What is held of one series of volumes between forecasts, in bytes, without its history.
    pub volume_bytes_per_name: f64,
    /// What is remembered of a name's gaps, in bytes.
    pub gap_bytes_per_name: usize,
    /// What is remembered of a name's resolvers, in bytes, at the most.
    pub caching_bytes_per_name_max: usize,
}

/// Runs all of it. `step` is told what begins: a part, a number of steps, which one.
///
/// # Errors
/// Data that is missing or damaged, with file and line; a series without any forecast.
pub fn run(
    dir: &Path,
    options: Options,
    step: &mut dyn FnMut(&str, usize, usize),
) -> Result<Report, BenchError> {
    let series = read::m4_hourly(dir)?;
    let m4_hourly = m4::run(&series, options, step)?;
    let speed = speed::run(&series, step)?;
    let (mut rolling, mut nab, mut caching) = (Vec::new(), None, None);
    if options.others {
        rolling = rolling::run(&read::sets(dir)?, options, step)?;
        nab = nab::run(dir, step)?;
        caching = Some(caching::summary(CACHING_QUERIES, CACHING_WINDOWS, step));
    }
    let all = m4_hourly.first().cloned().unwrap_or_default();
    Ok(Report {
        m4_hourly_mase: all.mase,
        m4_hourly_smape: all.smape,
        m4_hourly_msis: all.msis,
        m4_hourly_coverage_80: all.coverage_80,
        m4_hourly_coverage_95: all.coverage_95,
        series_per_minute_per_core: speed.per_minute(speed.refit_us),
        series_per_minute_per_core_kept: speed.per_minute(speed.forecast_us),
        rolling_sets_best: rolling.iter().filter(|set| set.is_best()).count(),
        rolling_sets_below_naive: rolling.iter().filter(|set| set.is_below_naive()).count(),
        m4_hourly,
        rolling,
        speed,
        nab,
        caching,
        volume_bytes_per_name: speed.bytes,
        gap_bytes_per_name: size_of::<gaps::Name>(),
        caching_bytes_per_name_max: WATCH_BYTES_MAX,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "M4 hourly, 48 h ahead                 MASE   sMAPE    MSIS  in 80 %  in 95 %  series  ms/series"
        )?;
        for row in &self.m4_hourly {
            let m4::Row { model, mase, smape, msis, coverage_80, coverage_95, series, ms } = row;
            write!(f, "  {model:<34} {mase:>6.3} {smape:>7.2} {msis:>7.2}")?;
            writeln!(f, " {:>8.1} {:>8.1} {series:>7} {ms:>10.2}", coverage_80 * 100.0, coverage_95 * 100.0)?;
        }
        if !self.rolling.is_empty() {
            writeln!(f, "\nOne day ahead, quantile loss in % of the mean level")?;
            writeln!(
                f,
                "  set                  combination  seasonal naive  best single                in 80 %  in 95 %"
            )?;
        }
        for set in &self.rolling {
            let (best, loss) = set.best();
            write!(f, "  {:<20} {:>11.3} {:>15.3}", set.name, set.combination, set.naive)?;
            write!(f, "  {:<18} {loss:>7.3}", best)?;
            writeln!(f, " {:>8.1} {:>8.1}", set.coverage_80 * 100.0, set.coverage_95 * 100.0)?;
        }
        let speed = &self.speed;
        writeln!(f, "\nOne series of 1,000 points, 48 steps ahead, µs of CPU")?;
        writeln!(
            f,
            "  choose {:.0}, estimate and forecast {:.0}, forecast {:.0}",
            speed.choose_us, speed.refit_us, speed.forecast_us
        )?;
        writeln!(
            f,
            "  {:.0} series a minute and core estimated anew, {:.0} with the coefficients kept",
            self.series_per_minute_per_core, self.series_per_minute_per_core_kept
        )?;
        if let Some(nab) = &self.nab {
            writeln!(
                f,
                "\nAnomalies: Numenta Anomaly Benchmark, standard profile, one setting for all files"
            )?;
            let nab::Nab { score, threshold, files, windows, .. } = nab;
            writeln!(f, "  {score:.1} with the threshold {threshold:.3}; {files} files, {windows} windows")?;
        }
        if let Some(caching) = &self.caching {
            writeln!(f, "\nDemand behind caches, simulated\n  {caching}")?;
        }
        writeln!(f, "\nMemory of a name, bytes")?;
        write!(f, "  its gaps {}", self.gap_bytes_per_name)?;
        write!(f, ", the forecast of its volume {:.0}", self.volume_bytes_per_name)?;
        write!(f, ", its resolvers up to {}", self.caching_bytes_per_name_max)?;
        self.nab.iter().try_for_each(|nab| write!(f, ", its anomalies {}", nab.bytes_per_name))?;
        writeln!(f)
    }
}
