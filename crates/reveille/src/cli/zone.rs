//! `reveille zone …`: the zones of a running daemon, and the keys that sign them. With `--config` keys are read from
//! the state directory, so that they can be looked at while no daemon runs.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reveille_api::RolloverStep;
use reveille_api::types::{ZoneKeys, ZoneSummary};
use reveille_core::model::DomainName;
use reveille_dns::sign::Signing;

use super::output::table;
use super::remote::runtime;
use super::{Daemon, Output};
use crate::clock::Clock;
use crate::config::Config;
use crate::room::zone_keys;

/// Verbs of `reveille zone`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List the zones that are served
    List(Daemon),
    /// Show the keys of a signed zone, and what is to be done about them
    Keys(One),
    /// Print the DS records that the parent of a signed zone should have
    Ds(One),
    /// Begin to replace the key of a signed zone, or go on with it
    Rollover(Rollover),
}

/// One zone.
#[derive(Debug, Args)]
pub struct One {
    /// The zone's name
    zone: DomainName,
    /// Read the keys from the state directory of this config file instead of asking a daemon
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    daemon: Daemon,
}

/// Options of `reveille zone rollover`.
#[derive(Debug, Args)]
#[command(after_help = "A rollover has two steps for you:\n  \
    reveille zone rollover vm.test             makes a new key and publishes it\n  \
    reveille zone ds vm.test                   once it is time: the DS record for the parent, and no other\n  \
    reveille zone rollover vm.test --ds-seen   the parent has it: the new key takes over, the old one leaves by itself")]
pub struct Rollover {
    /// The zone's name
    zone: DomainName,
    /// All servers of the parent have the DS record of the new key, and no other
    #[arg(long)]
    ds_seen: bool,
    #[command(flatten)]
    daemon: Daemon,
}

impl Verb {
    /// Asks the daemon, or reads the keys, and prints what was asked for.
    ///
    /// # Errors
    /// If the daemon does not answer or refuses, the zone has no keys, or it is too early for a DS.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List(daemon) => {
                let zones =
                    runtime()?.block_on(async { anyhow::Ok(daemon.client().await?.zones().await?) })?;
                output.print(&zones, |zones| list(zones))
            }
            Self::Keys(one) => output.print(&one.keys()?, keys),
            Self::Ds(one) => {
                let report = one.keys()?;
                anyhow::ensure!(!report.ds.is_empty(), "{}", report.next_step);
                output.print(&report.ds, |ds| ds.join("\n"))
            }
            Self::Rollover(rollover) => output.print(&rollover.go_on()?, keys),
        }
    }
}

impl One {
    fn keys(&self) -> anyhow::Result<ZoneKeys> {
        let Some(file) = &self.config else {
            let asked = async { anyhow::Ok(self.daemon.client().await?.zone_keys(&self.zone).await?) };
            return runtime()?.block_on(asked);
        };
        let config = Config::load(file)?;
        let report = Signing::look_up(&config.daemon.state_dir, &self.zone, &config.dnssec, Clock::wall())?;
        let files: Vec<PathBuf> = report.keys.iter().map(|key| key.file.clone()).collect();
        let mut keys = zone_keys(report);
        keys.keys.iter_mut().zip(files).for_each(|(key, file)| key.file = Some(file));
        Ok(keys)
    }
}

impl Rollover {
    fn go_on(&self) -> anyhow::Result<ZoneKeys> {
        let step = if self.ds_seen { RolloverStep::DsSeen } else { RolloverStep::Begin };
        let asked = async { anyhow::Ok(self.daemon.client().await?.rollover(&self.zone, step).await?) };
        runtime()?.block_on(asked)
    }
}

fn list(zones: &[ZoneSummary]) -> String {
    if zones.is_empty() {
        return "no zone is served; write a [[zone]] into the config file".to_owned();
    }
    let row = |zone: &ZoneSummary| {
        let secondaries = match zone.secondaries {
            0 => "-".to_owned(),
            all => format!("{} of {all} in step", zone.secondaries_in_step),
        };
        let signed = if zone.signed { "yes" } else { "no" };
        let next = zone.next_step.clone().unwrap_or_else(|| "-".to_owned());
        [zone.name.to_string(), zone.serial.to_string(), signed.to_owned(), secondaries, next]
    };
    let rows: Vec<[String; 5]> = zones.iter().map(row).collect();
    table(["ZONE", "SERIAL", "SIGNED", "SECONDARIES", "KEYS: TO DO"], &rows)
}

fn keys(report: &ZoneKeys) -> String {
    let rows: Vec<[String; 4]> = report
        .keys
        .iter()
        .map(|key| {
            let seen = if key.ds_seen.is_some() { "seen" } else { "" };
            [key.tag.to_string(), key.state.clone(), key.since.to_string(), seen.to_owned()]
        })
        .collect();
    let mut text = table(["KEY", "STATE", "SINCE", "DS"], &rows);
    for (what, lines) in [("For the parent", &report.ds), ("In the zone", &report.cds)] {
        text.extend(lines.iter().map(|line| format!("{what}: {line}\n")));
    }
    text + &format!("To do: {}", report.next_step)
}
