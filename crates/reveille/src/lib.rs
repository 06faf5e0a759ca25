//! `reveille`: an authoritative DNS server that owns a fleet of virtual machines.
//!
//! The program is [`cli::run`]. It is a library for one other user: `reveille-sim`, which runs the [`control`] loop and
//! its executor over a simulated world.

#![forbid(unsafe_code)]

mod announce;
mod anomalies;
mod bench;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
mod encrypted;
mod forecasts;
mod keys;
pub mod profiles;
mod records;
mod reload;
mod replay;
mod request_logs;
mod room;
mod serve;
mod stopping;
mod zones;
