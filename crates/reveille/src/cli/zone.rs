//! `reveille zone keys` and `reveille zone ds`: the keys of a signed zone, read from the state directory.

use clap::{Args, Subcommand};
use reveille_core::model::DomainName;
use reveille_dns::sign::{Signing, ZoneKeyReport};

use super::output::table;
use super::{ConfigFile, Output};
use crate::clock::Clock;
use crate::config::Config;

/// Verbs of `reveille zone`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show the keys of a signed zone, and what is to be done about them
    Keys(One),
    /// Print the DS records that the parent of a signed zone should have
    Ds(One),
}

/// One zone.
#[derive(Debug, Args)]
pub struct One {
    /// The zone's name
    zone: DomainName,
    #[command(flatten)]
    file: ConfigFile,
}

impl Verb {
    /// Reads the keys and prints what was asked for.
    ///
    /// # Errors
    /// If the zone has no keys, they cannot be read, or it is too early for a DS.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Keys(one) => output.print(&one.report()?, keys),
            Self::Ds(one) => {
                let report = one.report()?;
                anyhow::ensure!(!report.ds.is_empty(), "{}", report.advice);
                output.print(&report.ds, |ds| ds.join("\n"))
            }
        }
    }
}

impl One {
    fn report(&self) -> anyhow::Result<ZoneKeyReport> {
        let config = Config::load(&self.file.config)?;
        Ok(Signing::look_up(&config.daemon.state_dir, &self.zone, &config.dnssec, Clock::wall())?)
    }
}

fn keys(report: &ZoneKeyReport) -> String {
    let rows: Vec<[String; 4]> = report
        .keys
        .iter()
        .map(|key| {
            let seen = if key.ds_seen.is_some() { "seen" } else { "" };
            [key.tag.to_string(), key.state.word().to_owned(), key.since.utc(), seen.to_owned()]
        })
        .collect();
    format!("{}\nTo do: {}", table(["KEY", "STATE", "SINCE", "DS"], &rows), report.advice)
}
