//! What a replay rests on: rungs with their costs, and what is swept.

use std::fmt;

use reveille_core::decide::keep::RungCost;
use reveille_core::model::Rung;
use serde::{Deserialize, Serialize};

/// See the module. Everything here is stated in the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The rungs and their costs.
    pub rungs: Vec<RungCost>,
    /// What the vCPUs of a running but idle instance cost, as the memory that costs as much, in MiB. Only the priced measure
    /// counts it.
    pub idle_cpu_mib: f64,
    /// Where an instance rests when a policy does not keep it warm.
    pub rest: Rung,
    /// Fixed keep-alive for so many minutes sets the budgets at which policies are compared.
    pub budgets_min: Vec<f64>,
    /// And so does a hybrid histogram of this reach, in minutes.
    pub budget_reach_min: usize,
    /// Fixed keep-alives that are tried, in minutes.
    pub fixed_min: Vec<f64>,
    /// Reaches of the hybrid histogram that are tried, in minutes.
    pub reaches_min: Vec<usize>,
    /// Prices of one second of a client's delay that are tried, in GiB-hours.
    pub delay_prices: Vec<f64>,
    /// Policies are shown name by name beside a fixed keep-alive of so many minutes.
    pub detail_min: f64,
}

/// Most values that are tried of one setting: fixed keep-alives are also combined in pairs.
pub const SWEEP_MAX: usize = 256;

/// Longest keep-alive, in minutes: 30 days, after which a name is not looked at any more.
const MINUTES_MAX: f64 = 43_200.0;

/// Longest reach of a histogram, in minutes: it has a bin for each, of each name.
const REACH_MIN_MAX: usize = 1_440;

/// A setting that cannot be replayed with.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingsFault {
    /// Which.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What it may be.
    pub allowed: String,
}

impl fmt::Display for SettingsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: it must be {}", self.key, self.value, self.allowed)
    }
}

/// An idle guest's share of one vCPU, as measured of the demo's guest under TCG: 1.00 s in 60 s.
const IDLE_VCPU: f64 = 0.0167;

/// One vCPU costs as much as so many GiB where both are sold by the hour (AWS Fargate, us-east-1: 0.04048 $ and 0.004445 $).
const VCPU_GIB: f64 = 9.1;

impl Settings {
    /// The rungs with the idle vCPUs of the running one priced in.
    pub fn priced_rungs(&self) -> Vec<RungCost> {
        let price = |cost: &RungCost| match cost.rung {
            Rung::Active => RungCost { held_mib: cost.held_mib + self.idle_cpu_mib, ..*cost },
            Rung::Cold | Rung::Remote | Rung::Local | Rung::Armed | Rung::Paused => *cost,
        };
        self.rungs.iter().map(price).collect()
    }

    /// Everything that is out of range, but for the costs of rungs, which are checked where they are used.
    pub fn faults(&self) -> Vec<SettingsFault> {
        let mut faults = Vec::new();
        let mut need = |good: bool, key, value: String, allowed: &str| {
            if !good {
                faults.push(SettingsFault { key, value, allowed: allowed.to_owned() });
            }
        };
        let is_priced = |rung: Rung| self.rungs.iter().any(|cost| cost.rung == rung);
        need(is_priced(self.rest), "rest", self.rest.to_string(), "one of the rungs");
        need(
            is_priced(Rung::Active),
            "rungs",
            "without active".to_owned(),
            "what a running instance costs, too",
        );
        let mib = self.idle_cpu_mib;
        need(mib.is_finite() && mib >= 0.0, "idle_cpu_mib", mib.to_string(), "a number of at least 0");
        let minutes = |value: &f64| *value > 0.0 && *value <= MINUTES_MAX;
        let whole = |value: &usize| (1..=REACH_MIN_MAX).contains(value);
        let long = "1 to 256 numbers of minutes above 0, up to 43200";
        let swept = |values: &[f64]| (1..=SWEEP_MAX).contains(&values.len()) && values.iter().all(minutes);
        need(swept(&self.budgets_min), "budgets_min", list(&self.budgets_min), long);
        need(swept(&self.fixed_min), "fixed_min", list(&self.fixed_min), long);
        let reaches = &self.reaches_min;
        let fit = (1..=SWEEP_MAX).contains(&reaches.len()) && reaches.iter().all(whole);
        need(fit, "reaches_min", list(reaches), "1 to 256 whole numbers of minutes, each 1 to 1440");
        let reach = self.budget_reach_min;
        need(whole(&reach), "budget_reach_min", reach.to_string(), "1 to 1440 minutes");
        need(
            minutes(&self.detail_min),
            "detail_min",
            self.detail_min.to_string(),
            "above 0, up to 43200 minutes",
        );
        let prices = &self.delay_prices;
        let fit = (1..=SWEEP_MAX).contains(&prices.len())
            && prices.iter().all(|price| price.is_finite() && *price >= 0.0);
        need(fit, "delay_prices", list(prices), "1 to 256 numbers of at least 0");
        faults
    }

    /// Has what sets budgets and details among what is tried, each once, the shortest first.
    #[must_use]
    pub fn completed(mut self) -> Self {
        self.fixed_min.extend(&self.budgets_min);
        self.fixed_min.push(self.detail_min);
        self.fixed_min.sort_by(f64::total_cmp);
        self.fixed_min.dedup();
        self.reaches_min.push(self.budget_reach_min);
        self.reaches_min.sort_unstable();
        self.reaches_min.dedup();
        self.delay_prices.sort_by(f64::total_cmp);
        self
    }

    /// The place of the fixed keep-alive that is closest to so many minutes.
    pub(crate) fn fixed_at(&self, minutes: f64) -> Option<usize> {
        let off = |index: &usize| (self.fixed_min[*index] / minutes).ln().abs();
        (0..self.fixed_min.len()).min_by(|a, b| off(a).total_cmp(&off(b)))
    }

    /// The place of the reach that sets a budget.
    pub(crate) fn budget_reach(&self) -> Option<usize> {
        self.reaches_min.iter().position(|reach| *reach == self.budget_reach_min)
    }
}

/// The first of some values.
fn list<T: fmt::Display>(values: &[T]) -> String {
    let mut shown: Vec<String> = values.iter().take(8).map(T::to_string).collect();
    if values.len() > shown.len() {
        shown.push(format!("… ({} of them)", values.len()));
    }
    if shown.is_empty() { "empty".to_owned() } else { shown.join(", ") }
}

impl Default for Settings {
    /// Wake times, memory and idle vCPU of the demo's guest of 128 MiB under TCG. What runs counts with all that it was given,
    /// though after a restore it holds 88 MiB.
    fn default() -> Self {
        let rung = |rung, held_mib, wake_ms| RungCost { rung, held_mib, wake_ms };
        Self {
            rungs: vec![
                rung(Rung::Cold, 0.0, 4_000.0),
                rung(Rung::Remote, 0.0, 350.0),
                rung(Rung::Local, 0.0, 190.0),
                rung(Rung::Armed, 41.0, 140.0),
                rung(Rung::Paused, 75.0, 20.0),
                rung(Rung::Active, 128.0, 0.0),
            ],
            idle_cpu_mib: IDLE_VCPU * VCPU_GIB * 1_024.0,
            rest: Rung::Local,
            budgets_min: vec![5.0, 10.0, 20.0, 60.0],
            budget_reach_min: 240,
            fixed_min: geometric(0.5, 1_440.0, 60),
            reaches_min: vec![5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480],
            delay_prices: geometric(1e-4, 1e3, 141),
            detail_min: 10.0,
        }
        .completed()
    }
}

/// `count` numbers from `first` to `last`, each larger by the same factor.
fn geometric(first: f64, last: f64, count: u32) -> Vec<f64> {
    let step = |index| f64::from(index) / f64::from(count - 1);
    (0..count).map(|index| first * (last / first).powf(step(index))).collect()
}
