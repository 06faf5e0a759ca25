//! `[history]`: how much is kept of what was asked of whom.

use reveille_core::model::SpecFault;
use reveille_forecast::heavy::Worker;
use reveille_store::history::Limits;
use serde::{Deserialize, Serialize};

/// `[history]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    /// Most MiB on the disk.
    pub disk_mib_max: u64,
    /// For how many days each minute is kept.
    pub minutes_days: u64,
    /// For how many days each hour is kept.
    pub hours_days: u64,
    /// How much of a processor is for choosing among heavy models of volume; 0: none are fitted.
    pub heavy_models_cpu_percent: u64,
}

impl Default for History {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            disk_mib_max: limits.disk_bytes_max >> 20,
            minutes_days: limits.minutes_kept_s / DAY_S,
            hours_days: limits.hours_kept_s / DAY_S,
            heavy_models_cpu_percent: 0,
        }
    }
}

const DAY_S: u64 = 86_400;

impl History {
    /// As the history takes them.
    pub fn limits(&self) -> Limits {
        Limits {
            disk_bytes_max: self.disk_mib_max << 20,
            minutes_kept_s: self.minutes_days * DAY_S,
            hours_kept_s: self.hours_days * DAY_S,
            ..Limits::default()
        }
    }

    /// The worker for heavy models, if there is to be one.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn heavy_models<K: Send + 'static>(&self) -> std::io::Result<Option<Worker<K>>> {
        let percent = u8::try_from(self.heavy_models_cpu_percent).unwrap_or(100);
        (percent > 0).then(|| Worker::start(percent)).transpose()
    }

    /// Every value that is out of its range.
    pub fn faults(&self) -> Vec<SpecFault> {
        let ranged = [
            ("history.disk_mib_max", self.disk_mib_max, 16, 1 << 20),
            ("history.minutes_days", self.minutes_days, 1, 400),
            ("history.hours_days", self.hours_days, 1, 4_000),
            ("history.heavy_models_cpu_percent", self.heavy_models_cpu_percent, 0, 100),
        ];
        let out = ranged.into_iter().filter(|(_, value, least, most)| !(least..=most).contains(&value));
        let mut faults: Vec<SpecFault> = out
            .map(|(key, value, least, most)| SpecFault::new(key, value, format!("{least} to {most}")))
            .collect();
        if faults.is_empty() && self.hours_days < self.minutes_days {
            let allowed = format!("at least history.minutes_days, which is {}", self.minutes_days);
            faults.push(SpecFault::new("history.hours_days", self.hours_days, allowed));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_told_with_its_range() {
        assert_eq!(History::default().faults(), []);
        assert_eq!(History::default().limits(), Limits::default());
        let odd = History {
            disk_mib_max: 0,
            hours_days: 5_000,
            heavy_models_cpu_percent: 101,
            ..History::default()
        };
        let keys: Vec<String> = odd.faults().into_iter().map(|fault| fault.key).collect();
        let wanted = ["history.disk_mib_max", "history.hours_days", "history.heavy_models_cpu_percent"];
        assert_eq!(keys, wanted);
        let short = History { hours_days: 2, ..History::default() };
        assert!(short.faults()[0].allowed.contains("minutes_days, which is 14"));
    }
}
