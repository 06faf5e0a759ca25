//! The command line. Exit status 0 on success, 1 on failure, 2 on wrong use.

mod check;
mod demand;
mod dns;
mod doctor;
mod doctor_tap;
mod image;
mod output;
mod profile;
mod progress;
mod pull;
mod reload;
mod remote;
mod service;
mod snapshot;
mod vitals;
mod why;
mod zone;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::{bench, replay};

pub use output::Output;
pub use progress::Progress;

/// Where the config file is looked for unless one is named.
const CONFIG_DEFAULT: &str = "/etc/reveille/reveille.toml";

/// Asks for a name, and a virtual machine wakes.
///
/// Reveille is an authoritative DNS server that owns a fleet of virtual machines. A VM that nobody asks for is
/// hibernated; when its name is asked for, or a packet reaches its address, it is restored, and the packet waits
/// until it answers.
#[derive(Debug, Parser)]
#[command(name = "reveille", version, max_term_width = 110)]
struct Cli {
    /// Print JSON instead of text
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    Serve(ConfigFile),
    /// Read a config file and report every fault, without starting anything
    Check(ConfigFile),
    /// Have a running daemon read its config file again, and the files that it names
    ///
    /// Everything is checked first: if anything has a fault, every fault is told and the daemon runs on as before.
    /// Otherwise zones, keys, certificates, services, policies and limits are taken over without a query lost, and
    /// what has changed is printed, with the keys of what only the next start can take up, such as addresses that
    /// are listened on. `kill -HUP` does the same and logs it.
    Reload(reload::Reload),
    /// Say what works on this host, and what to do about what does not
    Doctor(doctor::Doctor),
    /// Services: what names stand for
    #[command(subcommand)]
    Service(service::Verb),
    /// Images: what virtual machines boot
    #[command(subcommand)]
    Image(image::Verb),
    /// Versions of services in the object store: list, check, go back to, keep, carry elsewhere
    #[command(subcommand)]
    Snapshot(snapshot::Verb),
    /// Warm-up profiles: what is done in a guest before its clients are let in
    #[command(subcommand)]
    Profile(profile::Verb),
    /// Zones, and the keys that sign them
    #[command(subcommand)]
    Zone(zone::Verb),
    /// Show what the DNS server has counted, and who asks for what
    Dns(dns::Dns),
    /// What is recorded of demand: of services, and by request logs of users and groups
    #[command(subcommand)]
    Demand(demand::Verb),
    /// Wake a service and wait until it answers
    Wake(service::Wake),
    /// Put a service to sleep without waiting for its idle time
    Hibernate(service::Hibernate),
    /// End a service's virtual machine and drop its memory; the next wake is a cold boot, from its disk if it has one
    Terminate(service::Terminate),
    /// Tell why a service is as it is: its last decisions, with their reasons, and its last wakes
    Why(why::Why),
    /// Replay recorded demand: what fixed keep-alive, the hybrid histogram and Reveille would have cost
    ///
    /// Cold starts, added delay and memory held on each rung, over all names and name by name, at equal budgets. To
    /// plan with: other prices, rungs and wake times, on your own demand or on what a daemon has seen.
    Replay(Box<replay::Replay>),
    /// Measure: wakes, versions and DNS on this host, forecasts and policies on a directory of data
    #[command(subcommand)]
    Bench(bench::Verb),
}

/// Which config file.
#[derive(Debug, Clone, Args)]
pub struct ConfigFile {
    /// The config file
    #[arg(long, short, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    pub config: PathBuf,
}

/// How a running daemon is reached.
#[derive(Debug, Clone, Args)]
pub struct Daemon {
    /// Address of the daemon's API
    #[arg(long, value_name = "URL", env = "REVEILLE_API", default_value = "http://127.0.0.1:8053")]
    pub api: String,
    /// File with the access token; without it the one that a daemon of the same user has left is used
    #[arg(long, value_name = "FILE", env = "REVEILLE_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// Runs the command line.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come here too, and are no errors.
            let status = if error.use_stderr() { 2 } else { 0 };
            let _ = error.print();
            return ExitCode::from(status);
        }
    };
    let output = Output::new(cli.json);
    let result = match cli.verb {
        Verb::Serve(file) => crate::serve::serve(&file.config),
        Verb::Check(file) => check::check(&file.config, output),
        Verb::Reload(reload) => reload.run(output),
        Verb::Doctor(doctor) => doctor.run(output),
        Verb::Service(verb) => verb.run(output),
        Verb::Image(verb) => verb.run(output),
        Verb::Snapshot(verb) => verb.run(output),
        Verb::Profile(verb) => verb.run(output),
        Verb::Zone(verb) => verb.run(output),
        Verb::Dns(dns) => dns.run(output),
        Verb::Demand(verb) => verb.run(output),
        Verb::Wake(wake) => wake.run(output),
        Verb::Hibernate(hibernate) => hibernate.run(output),
        Verb::Terminate(terminate) => terminate.run(output),
        Verb::Why(why) => why.run(output),
        Verb::Replay(replay) => replay.run(output),
        Verb::Bench(verb) => verb.run(output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::FAILURE
        }
    }
}
