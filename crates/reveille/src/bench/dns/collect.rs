//! The collector of the server's dnstap: another process, so that only what it costs to tell is measured.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use reveille_dns::dnstap::{Collector, DnstapIn};

use super::load::{LOAD_CPU, Server, pinned};
use crate::clock::Clock;

/// Options of the process.
#[derive(Debug, Args)]
pub struct Collect {
    /// The socket to listen on
    unix: PathBuf,
}

impl Collect {
    /// Takes everything that is sent, for no name, until the process is ended; says where in its first line.
    pub fn run(self) -> anyhow::Result<()> {
        let clock = Clock::start();
        let config = DnstapIn { unix: self.unix, ..DnstapIn::default() };
        let _collector = Collector::start(&config, Arc::default(), Arc::new(move || clock.now()))?;
        println!("{}", config.unix.display());
        loop {
            std::thread::park();
        }
    }
}

/// Starts the process, on the processor of the load.
pub fn start(unix: &Path) -> anyhow::Result<Server> {
    let mut child = pinned(LOAD_CPU, std::env::current_exe()?)
        .args(["bench", "dns", "collect"])
        .arg(unix)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the collector")?;
    super::serve::first_line(&mut child)?;
    Ok(Server::new(([0, 0, 0, 0], 0).into(), child))
}
