//! `reveille profile …`: warm-up profiles, those that are built in and those of the config's directory. Needs no daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reveille_core::model::SpecFault;
use reveille_core::warm_up::{OnFailure, Step, StepSet, WarmUpSet, Work};
use serde::Serialize;

use super::output::{duration, table};
use super::{CONFIG_DEFAULT, Output};
use crate::config::{Config, ConfigError};
use crate::profiles::{Known, Profiles, Source};

/// Verbs of `reveille profile`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the profiles that services can name
    List(Place),
    /// Print a profile as it is written, to see what it does or to begin one of your own
    Show(Show),
    /// Read a file with a profile and report every fault
    Check(Check),
}

/// Whose profiles.
#[derive(Debug, Args)]
pub struct Place {
    /// The config file that names the directory of own profiles; without it those are known that are built in
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Options of `reveille profile show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The profile's name
    profile: String,
    #[command(flatten)]
    place: Place,
}

/// Options of `reveille profile check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The file, such as my-cache.toml
    file: PathBuf,
}

#[derive(Serialize)]
struct ProfileReport {
    name: String,
    source: Source,
    about: String,
    sets: Vec<SetReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

#[derive(Serialize)]
struct SetReport {
    set: WarmUpSet,
    total_ms_max: u64,
    steps: Vec<StepReport>,
}

#[derive(Serialize)]
struct StepReport {
    name: String,
    does: &'static str,
    timeout_ms: u64,
    retries: u32,
    on_failure: OnFailure,
}

impl ProfileReport {
    fn of(name: &str, known: &Known) -> Self {
        let sets = [WarmUpSet::Boot, WarmUpSet::Restore];
        Self {
            name: name.to_owned(),
            source: known.source,
            about: known.profile.about.clone(),
            sets: sets.map(|set| SetReport::of(set, known.profile.set(set))).into(),
            text: None,
        }
    }
}

impl SetReport {
    fn of(set: WarmUpSet, steps: &StepSet) -> Self {
        let total_ms_max = steps.total_ms_max;
        Self { set, total_ms_max, steps: steps.steps.iter().map(StepReport::of).collect() }
    }
}

impl StepReport {
    fn of(step: &Step) -> Self {
        let does = match step.work {
            Work::Exec(_) => "exec",
            Work::Http(_) => "http",
            Work::Tcp(_) => "tcp",
            Work::Prefetch(_) => "prefetch",
            Work::WaitFor(_) => "wait_for",
        };
        let Step { name, timeout_ms, retries, on_failure, .. } = step.clone();
        Self { name, does, timeout_ms, retries, on_failure }
    }
}

#[derive(Serialize)]
struct CheckReport {
    file: String,
    ok: bool,
    faults: Vec<String>,
    profile: Option<ProfileReport>,
}

impl Place {
    fn profiles(&self) -> anyhow::Result<std::sync::Arc<Profiles>> {
        match &self.config {
            Some(file) => Ok(Config::load(file)?.profiles),
            // As if it were named; that there is none is no fault.
            None => match Config::load(CONFIG_DEFAULT.as_ref()) {
                Ok(config) => Ok(config.profiles),
                Err(ConfigError::Unreadable(_)) => Ok(std::sync::Arc::default()),
                Err(error) => Err(error.into()),
            },
        }
    }
}

impl Verb {
    /// Prints what was asked for.
    ///
    /// # Errors
    /// If a config or a profile cannot be read or has faults, or there is no such profile.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List(place) => {
                let profiles = place.profiles()?;
                let all: Vec<ProfileReport> =
                    profiles.iter().map(|(name, known)| ProfileReport::of(name, known)).collect();
                output.print(&all, |all| list(all))
            }
            Self::Show(Show { profile, place }) => {
                let profiles = place.profiles()?;
                let known = profiles.get(&profile).ok_or_else(|| {
                    anyhow::anyhow!("there is no profile {profile}; `reveille profile list` shows them")
                })?;
                let text = Some(known.text.clone());
                let report = ProfileReport { text, ..ProfileReport::of(&profile, known) };
                output.print(&report, |_| known.text.clone())
            }
            Self::Check(Check { file }) => check(&file, output),
        }
    }
}

fn check(file: &std::path::Path, output: Output) -> anyhow::Result<()> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (profile, faults) = match Known::of_file(file, &name) {
        Ok(known) => (Some(ProfileReport::of(&name, &known)), Vec::new()),
        Err(faults) => (None, faults.iter().map(SpecFault::to_string).collect()),
    };
    let report = CheckReport { file: file.display().to_string(), ok: profile.is_some(), faults, profile };
    if report.ok || output.is_json() {
        output.print(&report, |report| {
            let steps = report.profile.iter().flat_map(|profile| &profile.sets).map(steps);
            format!("{} is good: {}", report.file, steps.collect::<Vec<_>>().join(", "))
        })?;
    }
    anyhow::ensure!(report.ok, "{} has faults:\n  {}", report.file, report.faults.join("\n  "));
    Ok(())
}

fn steps(set: &SetReport) -> String {
    let most = duration(set.total_ms_max);
    format!("{} steps after a {} ({most} at most)", set.steps.len(), set.set.word())
}

fn list(all: &[ProfileReport]) -> String {
    let row = |profile: &ProfileReport| {
        let [boot, restore] = [0, 1].map(|set| {
            let set = profile.sets.get(set);
            set.map(|set| format!("{} in {}", set.steps.len(), duration(set.total_ms_max)))
        });
        let source = match profile.source {
            Source::BuiltIn => "built in",
            Source::User => "own",
        };
        let [boot, restore] = [boot, restore].map(Option::unwrap_or_default);
        [profile.name.clone(), source.to_owned(), boot, restore, profile.about.clone()]
    };
    table(["NAME", "SOURCE", "BOOT", "RESTORE", "ABOUT"], &all.iter().map(row).collect::<Vec<_>>())
}
