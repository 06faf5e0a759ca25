//! `reveille profile …`: warm-up profiles, those that are built in and those of the config's directory. Needs no daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use reveille_api::types::{ProfileReport, StepSetReport, WarmUpTime};
use reveille_core::model::{DomainName, ServiceSpec, SpecFault};
use serde::Serialize;

use super::output::{duration, table};
use super::service::warm_up_time;
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
    /// How long it may take for the services of the config that have it.
    services: BTreeMap<DomainName, Vec<WarmUpTime>>,
}

#[derive(Serialize)]
struct CheckReport {
    file: String,
    ok: bool,
    faults: Vec<String>,
    profile: Option<ProfileReport>,
}

impl Place {
    /// The profiles, and the services that may have them.
    fn read(&self) -> anyhow::Result<(Arc<Profiles>, Vec<ServiceSpec>)> {
        let read = |config: Config| (config.profiles, config.service);
        match &self.config {
            Some(file) => Ok(read(Config::load(file)?)),
            // As if it were named; that there is none is no fault.
            None => match Config::load(CONFIG_DEFAULT.as_ref()) {
                Ok(config) => Ok(read(config)),
                Err(ConfigError::Unreadable(_)) => Ok((Arc::default(), Vec::new())),
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
            Self::List(place) => output.print(&place.read()?.0.reports(), |all| list(all)),
            Self::Show(Show { profile, place }) => {
                let (profiles, services) = place.read()?;
                let known = profiles.get(&profile).ok_or_else(|| {
                    anyhow::anyhow!("there is no profile {profile}; `reveille profile list` shows them")
                })?;
                let has_it =
                    |spec: &&ServiceSpec| Profiles::of(spec).is_some_and(|(name, _)| name == profile);
                let services = services.iter().filter(has_it);
                let services = services.map(|spec| (spec.name.clone(), profiles.times_of(spec))).collect();
                let shown = Shown { profile: known.report(&profile), text: known.text.clone(), services };
                output.print(&shown, told)
            }
            Self::Check(Check { file }) => check(&file, output),
        }
    }
}

/// The text as it is written; what is added is a comment in it.
fn told(shown: &Shown) -> String {
    let of_service = |(name, times): (&DomainName, &Vec<WarmUpTime>)| {
        times.iter().map(|time| format!("\n# For {name}: {}.", warm_up_time(time))).collect::<String>()
    };
    shown.text.trim_end().to_owned() + &shown.services.iter().map(of_service).collect::<String>()
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

#[cfg(test)]
mod tests {
    use reveille_core::warm_up::WarmUpSet;

    use super::*;

    #[test]
    fn a_profile_is_shown_as_it_is_written_with_what_services_get_of_it_in_comments() {
        let profiles = Profiles::default();
        let known = profiles.get("cache-heavy").unwrap();
        let time =
            |effective_ms_max| WarmUpTime { set: WarmUpSet::Boot, total_ms_max: 30_000, effective_ms_max };
        let services = [("a.vm.test", 30_000), ("b.vm.test", 25_000)];
        let services = services.map(|(name, ms)| (name.parse().unwrap(), vec![time(ms)])).into();
        let shown = Shown { profile: known.report("cache-heavy"), text: known.text.clone(), services };
        let text = told(&shown);
        assert!(
            text.ends_with(
                "\n# For a.vm.test: boot, up to 30.0 s.\n# For b.vm.test: boot, up to 25.0 s of its 30.0 s: policy.boot_ms_max \
                 leaves no more."
            ),
            "{text}"
        );
        assert_eq!(crate::profiles::read(&text), crate::profiles::read(&known.text));
    }
}
