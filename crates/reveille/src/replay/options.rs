//! Settings of a replay as options of the command line.

use clap::Args;
use reveille_core::decide::keep::RungCost;
use reveille_core::model::Rung;
use reveille_replay::{ReplayError, Settings};

/// Prices, rungs and budgets; what is not given is as `reveille_replay::Settings` has it.
#[derive(Debug, Args)]
pub struct Options {
    /// What a rung holds, in MiB of memory, and how long a client waits that comes while it is kept, in ms; may be
    /// repeated
    #[arg(long, value_name = "RUNG=MIB,MS", value_parser = rung_cost, help_heading = "Rungs and prices")]
    rung: Vec<RungCost>,
    /// Leave a rung out; may be repeated
    #[arg(long, value_name = "RUNG", value_parser = rung, help_heading = "Rungs and prices")]
    without: Vec<Rung>,
    /// Where an instance rests that nothing keeps warm [default: local]
    #[arg(long, value_name = "RUNG", value_parser = rung, help_heading = "Rungs and prices")]
    rest: Option<Rung>,
    /// What the vCPUs of a running but idle instance cost, as the memory that costs as much [default: 155.6]
    #[arg(long, value_name = "MIB", help_heading = "Rungs and prices")]
    idle_cpu_mib: Option<f64>,
    /// Prices of one second of a client's delay that are tried, in GiB-hours [default: 141 from 0.0001 to 1000]
    #[arg(long, value_name = "PRICE,…", value_delimiter = ',', help_heading = "Rungs and prices")]
    delay_price: Vec<f64>,
    /// Compare at what fixed keep-alives of so many minutes spend [default: 5,10,20,60]
    #[arg(long, value_name = "MIN,…", value_delimiter = ',', help_heading = "Budgets and sweeps")]
    budget: Vec<f64>,
    /// And at what a hybrid histogram of this reach spends [default: 240]
    #[arg(long, value_name = "MIN", help_heading = "Budgets and sweeps")]
    budget_reach: Option<usize>,
    /// Fixed keep-alives that are tried, in minutes [default: 64 from half a minute to a day]
    #[arg(long, value_name = "MIN,…", value_delimiter = ',', help_heading = "Budgets and sweeps")]
    keep_alive: Vec<f64>,
    /// Reaches of the hybrid histogram that are tried, in minutes [default: 13 from 5 minutes to 8 hours]
    #[arg(long, value_name = "MIN,…", value_delimiter = ',', help_heading = "Budgets and sweeps")]
    reach: Vec<usize>,
    /// Show names beside a fixed keep-alive of so many minutes [default: 10]
    #[arg(long, value_name = "MIN", help_heading = "Budgets and sweeps")]
    beside: Option<f64>,
}

impl Options {
    /// The settings, checked.
    ///
    /// # Errors
    /// Every one that is out of range.
    pub fn settings(&self) -> Result<Settings, ReplayError> {
        let mut settings = Settings::default();
        for cost in &self.rung {
            settings.rungs.retain(|known| known.rung != cost.rung);
            settings.rungs.push(*cost);
        }
        settings.rungs.retain(|cost| !self.without.contains(&cost.rung));
        settings.rungs.sort_by_key(|cost| cost.rung);
        set(&mut settings.rest, self.rest);
        set(&mut settings.idle_cpu_mib, self.idle_cpu_mib);
        set(&mut settings.budget_reach_min, self.budget_reach);
        set(&mut settings.detail_min, self.beside);
        set_all(&mut settings.delay_prices, &self.delay_price);
        set_all(&mut settings.budgets_min, &self.budget);
        set_all(&mut settings.fixed_min, &self.keep_alive);
        set_all(&mut settings.reaches_min, &self.reach);
        let settings = settings.completed();
        let faults = settings.faults();
        if faults.is_empty() { Ok(settings) } else { Err(ReplayError::Settings(faults)) }
    }
}

fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}

fn set_all<T: Clone>(setting: &mut Vec<T>, given: &[T]) {
    if !given.is_empty() {
        *setting = given.to_vec();
    }
}

fn rung(word: &str) -> Result<Rung, String> {
    const ALL: [Rung; 6] = [Rung::Cold, Rung::Remote, Rung::Local, Rung::Armed, Rung::Paused, Rung::Active];
    ALL.into_iter().find(|rung| rung.word() == word).ok_or_else(|| {
        let words: Vec<&str> = ALL.iter().map(|rung| rung.word()).collect();
        format!("one of {} is wanted", words.join(", "))
    })
}

/// `armed=41,140`.
fn rung_cost(text: &str) -> Result<RungCost, String> {
    let form = || "such as armed=41,140 is wanted: MiB held, then ms of a wake".to_owned();
    let (word, costs) = text.split_once('=').ok_or_else(form)?;
    let (held, wake) = costs.split_once(',').ok_or_else(form)?;
    let number = |text: &str| {
        let number = text.trim().parse::<f64>().ok();
        number.filter(|number| number.is_finite() && *number >= 0.0).ok_or_else(form)
    };
    Ok(RungCost { rung: rung(word)?, held_mib: number(held)?, wake_ms: number(wake)? })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn settings(arguments: &[&str]) -> Result<Settings, String> {
        let line = Line::try_parse_from([&["x"], arguments].concat()).map_err(|error| error.to_string())?;
        line.options.settings().map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_given_is_as_the_library_has_it() {
        assert_eq!(settings(&[]), Ok(Settings::default()));
        let given = settings(&[
            "--rung",
            "paused=210,35",
            "--without",
            "armed",
            "--rest",
            "cold",
            "--budget",
            "30,7.5",
            "--keep-alive",
            "60,1",
            "--budget-reach",
            "77",
            "--reach",
            "30",
        ])
        .unwrap();
        let rungs: Vec<(&str, f64)> =
            given.rungs.iter().map(|cost| (cost.rung.word(), cost.held_mib)).collect();
        assert_eq!(
            rungs,
            [("cold", 0.0), ("remote", 0.0), ("local", 0.0), ("paused", 210.0), ("active", 128.0)]
        );
        // What sets budgets and details is tried, too.
        assert_eq!((given.fixed_min, given.reaches_min), (vec![1.0, 7.5, 10.0, 30.0, 60.0], vec![30, 77]));
        assert_eq!((given.rest, given.budgets_min), (Rung::Cold, vec![30.0, 7.5]));
    }

    #[test]
    fn what_is_out_of_range_is_refused_with_its_name() {
        for (arguments, told) in [
            (["--rung", "warm=1,2"], "one of cold, remote"),
            (["--rung", "armed=1"], "such as armed=41,140"),
            (["--rung", "armed=NaN,1"], "such as armed=41,140"),
            (["--rung", "armed=1,-1"], "such as armed=41,140"),
            (["--without", "active"], "rungs is without active"),
            (["--without", "local"], "rest is local"),
            (["--budget", "0"], "budgets_min is 0"),
            (["--keep-alive", "inf"], "fixed_min is"),
            (["--reach", "999999999"], "reaches_min is"),
            (["--delay-price", "NaN"], "delay_prices is NaN"),
            (["--idle-cpu-mib", "-1"], "idle_cpu_mib is -1"),
            (["--beside", "NaN"], "detail_min is NaN"),
        ] {
            let [name, value] = arguments;
            let error = settings(&[&format!("{name}={value}")]).unwrap_err();
            assert!(error.contains(told), "{arguments:?}: {error}");
        }
    }
}
