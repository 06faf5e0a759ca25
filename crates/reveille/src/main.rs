//! `reveille`: an authoritative DNS server that owns a fleet of virtual machines.

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod clock;
mod config;
mod control;
mod encrypted;
mod keys;
mod reload;
mod room;
mod serve;
mod stopping;
mod zones;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
