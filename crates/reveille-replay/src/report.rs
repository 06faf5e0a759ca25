//! The report of a replay: as values, and as tables for people.

use std::collections::BTreeMap;
use std::fmt;

use reveille_core::model::Rung;
use serde::Serialize;

use crate::account::Account;
use crate::compare::{Comparison, Measure, Members, Run, Runs, accounts};
use crate::settings::Settings;
use crate::tape::Tape;
use crate::trace::Trace;

/// Narrowest and widest column of names in a table, in characters.
const NAME_WIDTH: (usize, usize) = (16, 48);

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
    /// The details: fixed keep-alive of so many minutes, the hybrid histogram, and Reveille with as many GiB-hours as the
    /// fixed one at the most. They are replayed once more, name by name.
    pub(crate) fn details(trace: &Trace, tape: &Tape, runs: &Runs, settings: &Settings) -> Vec<Detail> {
        let detail = |policy, run: &Run| {
            let names = accounts(trace, tape, &run.policy, settings.rest);
            let judged = trace.names.iter().zip(&names).filter(|(_, account)| account.requests > 0);
            Detail {
                policy,
                setting: run.setting.clone(),
                total: Figures::of(&run.total(Members::All), settings),
                by_name: judged
                    .map(|(name, account)| (name.clone(), Figures::of(account, settings)))
                    .collect(),
            }
        };
        let fixed = settings.fixed_at(settings.detail_min).and_then(|index| runs.fixed.get(index));
        let fixed = fixed.map(|run| detail("fixed", run));
        let hybrid = settings.budget_reach().and_then(|index| runs.hybrid_arima.get(index));
        let hybrid = hybrid.map(|run| detail("hybrid+arima", run));
        let budget = fixed.as_ref().map_or(f64::INFINITY, |fixed| fixed.total.held());
        let held = |run: &Run| -> f64 { run.total(Members::All).gib_hours(&settings.rungs).values().sum() };
        let affordable = runs.rungs.iter().map(|run| (held(run), run)).filter(|(held, _)| *held <= budget);
        let own = affordable.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, run)| detail("reveille", run));
        fixed.into_iter().chain(hybrid).chain(own).collect()
    }

    /// The report as text, with the `names` that were asked for most.
    pub const fn shown(&self, names: usize) -> Shown<'_> {
        Shown { report: self, names }
    }
}

/// A [`Report`] as text.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'r> {
    report: &'r Report,
    names: usize,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        writeln!(f, "{} names, {} requests", report.names, report.requests)?;
        for cost in &report.settings.rungs {
            let held = cost.held_mib;
            writeln!(f, "  {:8} {held:6.1} MiB held, wakes in {:7.1} ms", cost.rung.word(), cost.wake_ms)?;
        }
        let Settings { idle_cpu_mib, rest, .. } = &report.settings;
        writeln!(f, "  at rest {rest}; idle vCPUs priced as {idle_cpu_mib:.1} MiB where they are priced")?;
        writeln!(f, "state: {} bytes per name, {} shared", report.bytes_per_name, report.bytes_shared)?;
        for comparison in &report.comparisons {
            write!(f, "\n{comparison}")?;
        }
        for detail in &report.details {
            writeln!(f)?;
            detail.write(f, self.names)?;
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
            // An empty sum is a negative zero.
            write!(f, "{:12.1}", budget.held + 0.0)?;
            budget.others.iter().try_for_each(|(_, lost)| write!(f, " {:>13}", number(*lost)))?;
            let ratio = budget.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
            writeln!(f, " {:>13} {ratio:>7}", number(budget.reveille))?;
        }
        match self.ratio_worst.zip(self.ratio_mean) {
            Some((worst, mean)) => writeln!(f, "worst {worst:.3}, mean {mean:.3}"),
            None => writeln!(
                f,
                "no ratio at some budget: a policy does not reach it, or the others lose nothing there"
            ),
        }
    }
}

impl Detail {
    fn write(&self, f: &mut fmt::Formatter<'_>, names: usize) -> fmt::Result {
        let mut most: Vec<(&String, &Figures)> = self.by_name.iter().collect();
        most.sort_by_key(|(_, figures)| std::cmp::Reverse(figures.requests));
        let rows: Vec<(String, &Figures)> = std::iter::once(("all".to_owned(), &self.total))
            .chain(most.iter().take(names).map(|(name, figures)| (printable(name), *figures)))
            .collect();
        let longest = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let width = longest.clamp(NAME_WIDTH.0, NAME_WIDTH.1);
        writeln!(f, "{} ({})", self.policy, self.setting)?;
        writeln!(
            f,
            "  {:width$} {:>10} {:>10} {:>10} {:>7} {:>7} {:>7} {:>7}  GiB-hours",
            "name", "requests", "cold", "delay s", "p50 ms", "p90", "p95", "p99"
        )?;
        for (name, figures) in rows {
            write!(
                f,
                "  {name:width$} {:>10} {:>10} {:>10.1}",
                figures.requests, figures.cold, figures.delay_s
            )?;
            figures.delay_ms.values().try_for_each(|ms| write!(f, " {ms:>7.0}"))?;
            writeln!(f, "  {}", figures.by_rung())?;
        }
        let more = most.len().saturating_sub(names);
        if names > 0 && more > 0 { writeln!(f, "  … and {more} more names") } else { Ok(()) }
    }
}

impl Figures {
    /// What was held on each rung, and together.
    fn by_rung(&self) -> String {
        let held = self.gib_hours.iter().filter(|(_, hours)| **hours > 0.0);
        let parts: Vec<String> = held.map(|(rung, hours)| format!("{rung} {hours:.2}")).collect();
        if parts.is_empty() { "0".to_owned() } else { format!("{:.2}: {}", self.held(), parts.join(", ")) }
    }
}

/// A name as a terminal may show it: what is no character of its own is escaped.
fn printable(name: &str) -> String {
    name.chars().fold(String::new(), |mut shown, one| {
        if one.is_control() {
            shown.extend(one.escape_default())
        } else {
            shown.push(one)
        }
        shown
    })
}
