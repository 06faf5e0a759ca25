//! `reveille bench …`: measurements on this host, with the real parts. Figures are ratios within one run, because
//! absolute times differ from host to host.

mod cold;
mod dns;
mod probe;
mod wake;

use clap::Subcommand;

use crate::cli::Output;

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Wakes from each rung against a cold boot of the same machine
    Wake(wake::Wake),
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
            Self::Dns(dns) => dns.run(output),
        }
    }
}
