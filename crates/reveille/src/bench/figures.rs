//! Distributions of what was measured.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// A distribution, in milliseconds and as ratios to a cold boot's median.
#[derive(Debug, Serialize)]
pub struct Spread {
    /// Median.
    pub ms_p50: f64,
    /// 99th percentile.
    pub ms_p99: f64,
    /// Median as a ratio.
    pub ratio_p50: f64,
    /// 99th percentile as a ratio.
    pub ratio_p99: f64,
}

/// The value that `percent` % of `values_ms` do not exceed.
///
/// # Errors
/// Without any value.
pub fn percentile(values_ms: &[f64], percent: f64) -> anyhow::Result<f64> {
    let mut histogram: Histogram<u64> = Histogram::new(3)?;
    for ms in values_ms {
        let us = Duration::try_from_secs_f64(ms / 1e3)?.as_micros();
        histogram.record(u64::try_from(us)?)?;
    }
    anyhow::ensure!(!histogram.is_empty(), "nothing was measured");
    Ok(histogram.value_at_percentile(percent) as f64 / 1e3)
}

/// How `values_ms` are spread, against a cold boot of `cold_ms`.
///
/// # Errors
/// Without any value.
pub fn spread(values_ms: &[f64], cold_ms: f64) -> anyhow::Result<Spread> {
    let (ms_p50, ms_p99) = (percentile(values_ms, 50.0)?, percentile(values_ms, 99.0)?);
    Ok(Spread { ms_p50, ms_p99, ratio_p50: ms_p50 / cold_ms, ratio_p99: ms_p99 / cold_ms })
}

/// The middle one of `values`; `None` without any.
pub fn median(values: &[u64]) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}
