//! The report of a replay: as values, and as tables for people.

use std::collections::BTreeMap;
use std::fmt;

use reveille_core::model::Rung;
use serde::Serialize;

use crate::account::Account;
use crate::compare::{Comparison, Measure, Run, Runs};
use crate::settings::Settings;

/// Everything that a replay found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Names with at least two requests; others have no gap to be judged by.
    pub names: usize,
    /// Their requests.
    pub requests: u64,
    /// What it rests on.
    pub settings: Settings,
    /// State of the forecast per name, in bytes.
    pub bytes_per_name: usize,
    /// State that all names share, in bytes.
    pub bytes_shared: usize,
    /// The largest ratio of cold starts, over all names.
    pub cold_ratio_worst: Option<f64>,
    /// The largest ratio of delays at equal memory, over all names.
    pub delay_ratio_worst: Option<f64>,
    /// The same with the idle vCPUs of running instances priced as memory.
    pub priced_delay_ratio_worst: Option<f64>,
    /// Both measures, over all names and over each half of them.
    pub comparisons: Vec<Comparison>,
    /// Policies at one budget, in detail.
    pub details: Vec<Detail>,
}

/// One policy at one setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Detail {
    /// The policy.
    pub policy: &'static str,
    /// Its setting.
    pub setting: String,
    /// Over all names.
    pub total: Figures,
    /// For each name.
    pub by_name: BTreeMap<String, Figures>,
}

/// What a policy cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Requests.
    pub requests: u64,
    /// Cold starts: requests that found no running instance, the first included.
    pub cold: u64,
    /// Added delay in ms that this percentage of the requests did not exceed: 50, 90, 95, 99. First ones left out.
    pub delay_ms: BTreeMap<u8, f64>,
    /// All added delay, in seconds, first requests left out.
    pub delay_s: f64,
    /// GiB-hours held on each rung.
    pub gib_hours: BTreeMap<Rung, f64>,
    /// Idle hours on each rung.
    pub hours: BTreeMap<Rung, f64>,
}

impl Figures {
    fn of(account: &Account, settings: &Settings) -> Self {
        let delay = |percent: u8| (percent, account.delay_ms(&settings.rungs, f64::from(percent) / 100.0));
        Self {
            requests: account.requests,
            cold: account.cold(),
            delay_ms: [50, 90, 95, 99].map(delay).into(),
            delay_s: account.delay_s(&settings.rungs),
            gib_hours: account.gib_hours(&settings.rungs),
            hours: account.hours.clone(),
        }
    }

    fn held(&self) -> f64 {
        self.gib_hours.values().sum()
    }
}

impl Report {
    /// The details: fixed keep-alive of `minutes`, the hybrid histogram, and Reveille with as many GiB-hours as the
    /// fixed one at the most.
    pub(crate) fn details(names: &[String], runs: &Runs, settings: &Settings, minutes: f64) -> Vec<Detail> {
        let detail = |policy, run: &Run| {
            let mut total = Account::default();
            run.names.iter().for_each(|name| total.add(name));
            let judged = names.iter().zip(&run.names).filter(|(_, account)| account.requests > 0);
            Detail {
                policy,
                setting: run.setting.clone(),
                total: Figures::of(&total, settings),
                by_name: judged
                    .map(|(name, account)| (name.clone(), Figures::of(account, settings)))
                    .collect(),
            }
        };
        let off = |index: &usize| (settings.fixed_min[*index] / minutes).ln().abs();
        let closest = (0..settings.fixed_min.len()).min_by(|a, b| off(a).total_cmp(&off(b)));
        let fixed = closest.and_then(|index| runs.fixed.get(index)).map(|run| detail("fixed", run));
        let reach = settings.reaches_min.iter().position(|reach| *reach == settings.budget_reach_min);
        let hybrid =
            reach.and_then(|index| runs.hybrid_arima.get(index)).map(|run| detail("hybrid+arima", run));
        let budget = fixed.as_ref().map_or(f64::INFINITY, |fixed| fixed.total.held());
        let affordable = runs.rungs.iter().map(|run| detail("reveille", run));
        let own = affordable
            .filter(|detail| detail.total.held() <= budget)
            .max_by(|a, b| a.total.held().total_cmp(&b.total.held()));
        fixed.into_iter().chain(hybrid).chain(own).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} names, {} requests", self.names, self.requests)?;
        for cost in &self.settings.rungs {
            let held = cost.held_mib;
            writeln!(f, "  {:8} {held:6.1} MiB held, wakes in {:7.1} ms", cost.rung.word(), cost.wake_ms)?;
        }
        writeln!(f, "  idle vCPUs priced as {:.1} MiB where they are priced", self.settings.idle_cpu_mib)?;
        writeln!(f, "state: {} bytes per name, {} shared", self.bytes_per_name, self.bytes_shared)?;
        for comparison in &self.comparisons {
            write!(f, "\n{comparison}")?;
        }
        writeln!(f)?;
        for detail in &self.details {
            write!(f, "{detail}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (held, lost) = match self.measure {
            Measure::ColdStarts => ("idle-warm h", "cold starts"),
            Measure::Delay => ("GiB-hours", "seconds of delay, without first requests"),
            Measure::PricedDelay => ("GiB-hours", "seconds of delay, idle vCPUs priced as memory"),
        };
        writeln!(f, "{} ({lost})", self.of)?;
        write!(f, "{held:>12}")?;
        if let Some(first) = self.budgets.first() {
            first.others.iter().try_for_each(|(policy, _)| write!(f, " {policy:>13}"))?;
        }
        writeln!(f, " {:>13} {:>7}", "reveille", "ratio")?;
        let number = |number: Option<f64>| number.map_or("-".to_owned(), |number| format!("{number:.1}"));
        for budget in &self.budgets {
            write!(f, "{:12.1}", budget.held)?;
            budget.others.iter().try_for_each(|(_, lost)| write!(f, " {:>13}", number(*lost)))?;
            let ratio = budget.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
            writeln!(f, " {:>13} {ratio:>7}", number(budget.reveille))?;
        }
        match self.ratio_worst.zip(self.ratio_mean) {
            Some((worst, mean)) => writeln!(f, "worst {worst:.3}, mean {mean:.3}"),
            None => writeln!(f, "not every budget is reached"),
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.policy, self.setting)?;
        writeln!(f, "  {:24} {}", "all", self.total)?;
        self.by_name.iter().try_for_each(|(name, figures)| writeln!(f, "  {name:24} {figures}"))
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7} requests {:6} cold, delay {:8.1} s", self.requests, self.cold, self.delay_s)?;
        let percentile = |(percent, ms): (&u8, &f64)| format!("p{percent} {ms:.0}");
        let percentiles: Vec<String> = self.delay_ms.iter().map(percentile).collect();
        write!(f, " ({} ms), GiB-h", percentiles.join(", "))?;
        let mut held = self.gib_hours.iter().filter(|(_, hours)| **hours > 0.0).peekable();
        if held.peek().is_none() {
            f.write_str(" 0")?;
        }
        held.try_for_each(|(rung, hours)| write!(f, " {rung} {hours:.2}"))
    }
}
