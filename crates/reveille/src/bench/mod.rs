//! `reveille bench …`: measurements on this host, with the real parts. Figures are ratios within one run, because
//! absolute times differ from host to host.

mod clones;
mod cold;
mod delay;
mod dns;
mod figures;
mod host;
mod memory;
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
