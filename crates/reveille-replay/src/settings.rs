//! What a replay rests on: rungs with their costs, and what is swept.

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
}

impl Default for Settings {
    /// Wake times, memory and idle vCPU of the demo's guest of 128 MiB under TCG. What runs counts with all that it was given,
    /// though after a restore it holds 88 MiB.
    fn default() -> Self {
        let rung = |rung, held_mib, wake_ms| RungCost { rung, held_mib, wake_ms };
        let budgets_min = vec![5.0, 10.0, 20.0, 60.0];
        let mut fixed_min = geometric(0.5, 1_440.0, 60);
        fixed_min.extend(&budgets_min);
        fixed_min.sort_by(f64::total_cmp);
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
            budgets_min,
            budget_reach_min: 240,
            fixed_min,
            reaches_min: vec![5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480],
            delay_prices: geometric(1e-4, 1e3, 141),
        }
    }
}

/// `count` numbers from `first` to `last`, each larger by the same factor.
fn geometric(first: f64, last: f64, count: u32) -> Vec<f64> {
    let step = |index| f64::from(index) / f64::from(count - 1);
    (0..count).map(|index| first * (last / first).powf(step(index))).collect()
}
