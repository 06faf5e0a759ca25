//! `reveille bench …`: measurements on this host, with the real parts. Figures are ratios within one run, because
//! absolute times differ from host to host. Forecasts and policies are measured on data that is given, and repeat to the
//! last digit but for times.

mod clones;
mod cold;
mod delay;
mod dns;
mod figures;
mod forecast;
mod host;
mod memory;
mod policy;
mod postgresql;
mod probe;
mod store;
mod wake;
mod warm_up;

use clap::Subcommand;

use crate::cli::Output;
use crate::config::Config;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Wakes from each rung against a cold boot of the same machine
    Wake(wake::Wake),
    /// The first request after a wake against the steady state, with each built-in warm-up profile and without
    WarmUp(warm_up::WarmUp),
    /// What versions take in an object store, and clones of memory
    Store(store::Store),
    /// CPU of a DNS query, side by side with Knot DNS and a bare echo
    #[command(args_conflicts_with_subcommands = true)]
    Dns(dns::Dns),
    /// Forecasts, anomalies and the correction for caching, on a directory of public data
    Forecast(forecast::Forecast),
    /// Policies of keeping warm at equal budgets, on a directory of recorded arrivals
    Policy(policy::Policy),
}

impl Verb {
    /// Measures.
    ///
    /// # Errors
    /// If something cannot be set up, or a wake is lost.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Wake(wake) => wake.run(output),
            Self::WarmUp(warm_up) => warm_up.run(output),
            Self::Store(store) => store.run(output),
            Self::Dns(dns) => dns.run(output),
            Self::Forecast(forecast) => forecast.run(output),
            Self::Policy(policy) => policy.run(output),
        }
    }
}

/// A directory that is removed at the end, with state directories of these names in it, which have the config's images.
fn scratch_with_images(config: &Config, names: &[&str]) -> anyhow::Result<tempfile::TempDir> {
    let scratch = tempfile::Builder::new().prefix("reveille-bench").tempdir()?;
    let images = std::path::absolute(config.daemon.state_dir.join("images"))?;
    for name in names {
        std::fs::create_dir(scratch.path().join(name))?;
        std::os::unix::fs::symlink(&images, scratch.path().join(name).join("images"))?;
    }
    Ok(scratch)
}
