//! Policies swept over their one parameter, and compared at the same budget.

use reveille_core::decide::keep::{CostFault, Costs, Prices, RungCost};
use reveille_core::model::Rung;
use serde::Serialize;

use crate::account::Account;
use crate::policy::{Policy, over};
use crate::settings::Settings;
use crate::tape::Tape;
use crate::trace::Trace;
use crate::{Step, whole_ms};

/// One policy with one setting, replayed. Not kept by name: hundreds of runs of many names would fill the memory.
#[derive(Debug, Clone)]
pub struct Run {
    /// The setting, for people.
    pub setting: String,
    /// The policy.
    pub(crate) policy: Policy,
    /// The accounts of the first, third, … judged name together, and of the others.
    pub(crate) halves: [Account; 2],
}

/// Which names a comparison is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Members {
    /// All that are judged.
    All,
    /// One half of them: 0 or 1.
    Half(usize),
}

impl Run {
    pub(crate) fn total(&self, of: Members) -> Account {
        let mut sum = Account::default();
        let halves = self.halves.iter().enumerate();
        halves
            .filter(|(half, _)| of == Members::All || of == Members::Half(*half))
            .for_each(|(_, account)| sum.add(account));
        sum
    }
}

/// What policies are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Cold starts against idle hours of running instances: any rung but the running one counts as cold.
    ColdStarts,
    /// All delay in seconds against GiB-hours held on all rungs.
    Delay,
    /// The same with the idle vCPUs of running instances priced as memory.
    PricedDelay,
}

impl Measure {
    fn costs(self, settings: &Settings) -> Vec<RungCost> {
        match self {
            Self::ColdStarts | Self::Delay => settings.rungs.clone(),
            Self::PricedDelay => settings.priced_rungs(),
        }
    }
}

/// A policy at one setting, in a measure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// The setting.
    pub setting: String,
    /// Idle-warm hours or GiB-hours.
    pub held: f64,
    /// Cold starts or seconds of delay.
    pub lost: f64,
}

/// A policy at all of its settings, cheapest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// The policy.
    pub policy: &'static str,
    /// Its settings.
    pub points: Vec<Point>,
}

/// The policies at one budget, by linear interpolation between settings. `None`: the policy does not reach it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AtBudget {
    /// Idle-warm hours or GiB-hours.
    pub held: f64,
    /// What each of the others loses, in the order of the curves.
    pub others: Vec<(&'static str, Option<f64>)>,
    /// What Reveille's loses.
    pub reveille: Option<f64>,
    /// Reveille's over the best of those that count as the baseline.
    pub ratio: Option<f64>,
}

/// One measure over some names.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The measure.
    pub measure: Measure,
    /// Which names.
    pub of: &'static str,
    /// The policies at each budget.
    pub budgets: Vec<AtBudget>,
    /// The largest ratio.
    pub ratio_worst: Option<f64>,
    /// Their mean.
    pub ratio_mean: Option<f64>,
    /// Everything that was replayed.
    pub curves: Vec<Curve>,
}

/// All runs of a trace.
pub struct Runs {
    pub(crate) fixed: Vec<Run>,
    pub(crate) hybrid: Vec<Run>,
    pub(crate) hybrid_arima: Vec<Run>,
    pub(crate) ladders: Vec<Run>,
    pub(crate) keep_or_not: Vec<Run>,
    pub(crate) rungs: Vec<Run>,
    pub(crate) priced: Vec<Run>,
}

/// Replays every policy of `settings`. `progress` is told how many of how many are done.
///
/// # Errors
/// If costs are wrong.
pub fn run_all(
    trace: &Trace,
    tape: &Tape,
    settings: &Settings,
    mut progress: impl FnMut(Step, usize, usize),
) -> Result<Runs, Vec<CostFault>> {
    let ladder = |steps: &[(Rung, f64)]| {
        Policy::Ladder(steps.iter().map(|(rung, minutes)| (*rung, whole_ms(minutes * 60_000.0))).collect())
    };
    let hazard = |rungs: &[RungCost]| {
        let costs = |price: &f64| {
            let prices = Prices { gib_hour: 1.0, delay_second: *price, change: 0.0 };
            Costs::new(rungs.to_vec(), prices).map(|costs| (format!("{price:.3e}"), Policy::Hazard(costs)))
        };
        settings.delay_prices.iter().map(costs).collect::<Result<Vec<_>, _>>()
    };
    let hybrid = |arima| {
        let policy = |reach: &usize| (format!("{reach} min"), Policy::Hybrid { reach_min: *reach, arima });
        let reaches: Vec<_> = settings.reaches_min.iter().map(policy).collect();
        reaches
    };
    let minutes = |minutes: f64| format!("{minutes:.1} min");
    let fixed =
        settings.fixed_min.iter().map(|long| (minutes(*long), ladder(&[(Rung::Active, *long)]))).collect();
    let sparse: Vec<f64> = settings.fixed_min.iter().step_by(3).copied().collect();
    let priced = |rung: &Rung| settings.rungs.iter().any(|cost| cost.rung == *rung);
    let warm = [Rung::Paused, Rung::Armed].into_iter().filter(priced);
    let mut ladders = Vec::new();
    for rung in warm {
        for (index, active) in sparse.iter().enumerate() {
            for below in &sparse[index + 1..] {
                let setting = format!("active {active:.1}, {rung} {below:.1} min");
                ladders.push((setting, ladder(&[(Rung::Active, *active), (rung, *below)])));
            }
        }
    }
    let bare = |rung, held_mib, wake_ms| RungCost { rung, held_mib, wake_ms };
    let keep_or_not = hazard(&[bare(settings.rest, 0.0, 1_000.0), bare(Rung::Active, 1_024.0, 0.0)])?;
    let (plain, priced) = (hazard(&settings.rungs)?, hazard(&settings.priced_rungs())?);
    let sweeps: [Vec<(String, Policy)>; 7] =
        [fixed, hybrid(false), hybrid(true), ladders, keep_or_not, plain, priced];
    let (mut done, all) = (0, sweeps.iter().map(Vec::len).sum());
    let mut replay = |sweep: &[(String, Policy)]| -> Vec<Run> {
        sweep
            .iter()
            .map(|(setting, policy)| {
                done += 1;
                progress(Step::Policies, done, all);
                let names = accounts(trace, tape, policy, settings.rest);
                Run { setting: setting.clone(), policy: policy.clone(), halves: halves(&names) }
            })
            .collect()
    };
    let [fixed, hybrid, hybrid_arima, ladders, keep_or_not, rungs, priced] =
        sweeps.each_ref().map(|sweep| replay(sweep));
    Ok(Runs { fixed, hybrid, hybrid_arima, ladders, keep_or_not, rungs, priced })
}

/// One policy over the trace: its account for each name. A name with one request has nothing to be judged by.
pub fn accounts(trace: &Trace, tape: &Tape, policy: &Policy, rest: Rung) -> Vec<Account> {
    let mut names = vec![Account::default(); trace.names.len()];
    over(tape, policy, rest, |gap, parts| {
        let name = &mut names[gap.name];
        if name.requests == 0 {
            name.begin();
        }
        name.gap(gap.ms, parts);
    });
    for request in trace.requests.iter().filter(|request| request.requests > 1) {
        if names[request.name].requests > 0 {
            names[request.name].along(request.requests - 1);
        }
    }
    names
}

/// The judged names' accounts, every other one in each half.
fn halves(names: &[Account]) -> [Account; 2] {
    let mut halves = <[Account; 2]>::default();
    let judged = names.iter().filter(|account| account.requests > 0);
    judged.enumerate().for_each(|(place, account)| halves[place % 2].add(account));
    halves
}

/// Compares in one measure over some of the names.
pub fn compare(
    runs: &Runs,
    settings: &Settings,
    measure: Measure,
    (of, members): (&'static str, Members),
) -> Comparison {
    let total = |run: &Run| run.total(members);
    let costs = measure.costs(settings);
    let point = |run: &Run| {
        let account = total(run);
        let (held, lost) = match measure {
            Measure::ColdStarts => (account.warm_hours(), account.cold() as f64),
            Measure::Delay | Measure::PricedDelay => {
                (account.gib_hours(&costs).values().sum(), account.delay_s(&costs))
            }
        };
        Point { setting: run.setting.clone(), held, lost }
    };
    let curve = |policy, runs: &[Run]| {
        let mut points: Vec<Point> = runs.iter().map(point).collect();
        points.sort_by(|a, b| a.held.total_cmp(&b.held).then(b.lost.total_cmp(&a.lost)));
        Curve { policy, points }
    };
    let fixed = curve("fixed", &runs.fixed);
    let curves = match measure {
        Measure::ColdStarts => vec![
            fixed,
            curve("hybrid", &runs.hybrid),
            curve("hybrid+arima", &runs.hybrid_arima),
            curve("reveille", &runs.keep_or_not),
        ],
        Measure::Delay | Measure::PricedDelay => {
            let ladder = curve("fixed ladder", &runs.ladders).best();
            let own = if measure == Measure::Delay { &runs.rungs } else { &runs.priced };
            vec![fixed, ladder, curve("reveille", own)]
        }
    };
    let budgets: Vec<AtBudget> =
        held_at(runs, settings, measure, total).into_iter().map(|held| at(&curves, measure, held)).collect();
    let ratios: Vec<f64> = budgets.iter().filter_map(|budget| budget.ratio).collect();
    let all = ratios.len() == budgets.len() && !ratios.is_empty();
    let ratio_worst = all.then(|| ratios.iter().copied().fold(0.0, f64::max));
    let ratio_mean = all.then(|| ratios.iter().sum::<f64>() / ratios.len() as f64);
    Comparison { measure, of, budgets, ratio_worst, ratio_mean, curves }
}

/// What the policies that set the budgets hold.
fn held_at(runs: &Runs, settings: &Settings, measure: Measure, total: impl Fn(&Run) -> Account) -> Vec<f64> {
    let closest = |minutes: f64| settings.fixed_at(minutes).and_then(|index| runs.fixed.get(index));
    let hybrid = settings.budget_reach().and_then(|index| runs.hybrid.get(index));
    let costs = measure.costs(settings);
    let held = |run: &Run| {
        let account = total(run);
        match measure {
            Measure::ColdStarts => account.warm_hours(),
            Measure::Delay | Measure::PricedDelay => account.gib_hours(&costs).values().sum(),
        }
    };
    settings.budgets_min.iter().filter_map(|minutes| closest(*minutes)).chain(hybrid).map(held).collect()
}

/// The curves at one budget. Of the delay the baseline is fixed keep-alive, of cold starts the better of it and the
/// hybrid histograms.
fn at(curves: &[Curve], measure: Measure, held: f64) -> AtBudget {
    let (reveille, others) = match curves.split_last() {
        Some((reveille, others)) => (reveille.at(held), others),
        None => (None, curves),
    };
    let others: Vec<(&'static str, Option<f64>)> =
        others.iter().map(|curve| (curve.policy, curve.at(held))).collect();
    let counts = match measure {
        Measure::ColdStarts => others.len(),
        Measure::Delay | Measure::PricedDelay => 1,
    };
    let baseline = others.iter().take(counts).filter_map(|(_, lost)| *lost).min_by(f64::total_cmp);
    let ratio =
        reveille.zip(baseline).filter(|(_, baseline)| *baseline > 0.0).map(|(own, baseline)| own / baseline);
    AtBudget { held, others, reveille, ratio }
}

impl Curve {
    /// What is lost when so much is held, between the settings around it.
    pub fn at(&self, held: f64) -> Option<f64> {
        let above = self.points.iter().position(|point| point.held >= held)?;
        let upper = &self.points[above];
        if upper.held <= held {
            return Some(upper.lost);
        }
        let lower = self.points.get(above.checked_sub(1)?)?;
        let share = (held - lower.held) / (upper.held - lower.held);
        Some(lower.lost + share * (upper.lost - lower.lost))
    }

    /// Only the settings that no cheaper one beats.
    fn best(mut self) -> Self {
        let mut least = f64::INFINITY;
        self.points.retain(|point| {
            let better = point.lost < least;
            least = least.min(point.lost);
            better
        });
        self
    }
}
