//! What can be set of a detector.

use serde::{Deserialize, Serialize};

/// The default serves every series; it was chosen once, on half of the files of a benchmark, not per name.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// From how many standard deviations on something is an anomaly; 0.5 to 100.
    pub threshold_sd: f64,
    /// The grain of the series, in its unit: the least standard deviation that the baseline assumes, and the least
    /// distance that is novel; 1e-12 to 1e30. 1 suits counts: a name that was never asked for has no spread at all, and
    /// its first query is no anomaly by itself.
    pub least_spread: f64,
    /// After so many points beyond the threshold on one side a spike or drop is a level shift, and the baseline starts
    /// anew there; 2 to 10,000.
    pub shift_points: u32,
    /// An event is over after so many points within the threshold; 1 to 1,000.
    pub calm_points: u32,
    /// Points of the trailing mean; 2 to 240.
    pub trailing_points: u16,
    /// What was not seen for so many points is forgotten; 100 to 10,000,000. The default is two weeks of minutes.
    pub memory_points: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            threshold_sd: 3.0,
            least_spread: 1.0,
            shift_points: 12,
            calm_points: 3,
            trailing_points: 24,
            memory_points: 20_160,
        }
    }
}

/// A setting that is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: must be {allowed}")]
pub struct SettingsFault {
    /// Which one.
    pub key: &'static str,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl Settings {
    /// Every setting that is out of its range.
    pub fn faults(&self) -> Vec<SettingsFault> {
        let checks = [
            ("threshold_sd", self.threshold_sd, (0.5..=100.0).contains(&self.threshold_sd), "0.5 to 100"),
            ("least_spread", self.least_spread, (1e-12..=1e30).contains(&self.least_spread), "1e-12 to 1e30"),
            (
                "shift_points",
                self.shift_points.into(),
                (2..=10_000).contains(&self.shift_points),
                "2 to 10000",
            ),
            ("calm_points", self.calm_points.into(), (1..=1_000).contains(&self.calm_points), "1 to 1000"),
            (
                "trailing_points",
                self.trailing_points.into(),
                (2..=240).contains(&self.trailing_points),
                "2 to 240",
            ),
            (
                "memory_points",
                self.memory_points.into(),
                (100..=10_000_000).contains(&self.memory_points),
                "100 to 10000000",
            ),
        ];
        SettingsFault::of(checks)
    }
}

impl SettingsFault {
    /// Those of (key, value, whether it is allowed, what is) that are not.
    pub(super) fn of<const N: usize>(checks: [(&'static str, f64, bool, &'static str); N]) -> Vec<Self> {
        let faults = checks.into_iter().filter(|(_, _, allowed, _)| !allowed);
        faults.map(|(key, value, _, allowed)| Self { key, value: value.to_string(), allowed }).collect()
    }
}
