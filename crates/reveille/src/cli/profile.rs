//! `reveille profile …`: warm-up profiles, those that are built in and those of the config's directory. Needs no daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reveille_api::types::{ProfileReport, StepSetReport};
use reveille_core::model::SpecFault;
use serde::Serialize;

use super::output::{duration, table};
use super::{CONFIG_DEFAULT, Output};
use crate::config::{Config, ConfigError};
use crate::profiles::{Known, Profiles};

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
struct Shown {
    #[serde(flatten)]
    profile: ProfileReport,
    text: String,
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
            Self::List(place) => output.print(&place.profiles()?.reports(), |all| list(all)),
            Self::Show(Show { profile, place }) => {
                let profiles = place.profiles()?;
                let known = profiles.get(&profile).ok_or_else(|| {
                    anyhow::anyhow!("there is no profile {profile}; `reveille profile list` shows them")
                })?;
                let shown = Shown { profile: known.report(&profile), text: known.text.clone() };
                output.print(&shown, |shown| shown.text.clone())
            }
            Self::Check(Check { file }) => check(&file, output),
        }
    }
}

fn check(file: &std::path::Path, output: Output) -> anyhow::Result<()> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (profile, faults) = match Known::of_file(file, &name) {
        Ok(known) => (Some(known.report(&name)), Vec::new()),
        Err(faults) => (None, faults.iter().map(SpecFault::to_string).collect()),
    };
    let report = CheckReport { file: file.display().to_string(), ok: profile.is_some(), faults, profile };
    if report.ok || output.is_json() {
        output.print(&report, |report| {
            let sets = |profile: &ProfileReport| {
                format!("after a boot {}, after a restore {}", steps(&profile.boot), steps(&profile.restore))
            };
            format!("{} is good: {}", report.file, report.profile.as_ref().map(sets).unwrap_or_default())
        })?;
    }
    anyhow::ensure!(report.ok, "{} has faults:\n  {}", report.file, report.faults.join("\n  "));
    Ok(())
}

fn steps(set: &StepSetReport) -> String {
    format!("{} steps in {}", set.steps.len(), duration(set.total_ms_max))
}

fn list(all: &[ProfileReport]) -> String {
    let row = |profile: &ProfileReport| {
        let source = if profile.built_in { "built in" } else { "own" };
        let ProfileReport { name, about, boot, restore, .. } = profile;
        [name.clone(), source.to_owned(), steps(boot), steps(restore), about.clone()]
    };
    table(["NAME", "SOURCE", "BOOT", "RESTORE", "ABOUT"], &all.iter().map(row).collect::<Vec<_>>())
}
