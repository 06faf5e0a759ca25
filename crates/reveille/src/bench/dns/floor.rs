//! The bare echo: what the kernel's sockets cost by themselves.

use std::net::UdpSocket;
use std::process::Stdio;

use anyhow::Context;
use clap::Args;

use super::load::{SERVER_CPU, Server, pinned};

/// Options of the process.
#[derive(Debug, Args)]
pub struct Floor {}

impl Floor {
    /// Echoes until the process is ended; says where in its first line.
    pub fn run(self) -> anyhow::Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0").context("no free port")?;
        println!("{}", socket.local_addr()?);
        reveille_dns::echo(&socket)?;
        Ok(())
    }
}

/// Starts the process.
pub fn start() -> anyhow::Result<Server> {
    let mut child = pinned(SERVER_CPU, std::env::current_exe()?)
        .args(["bench", "dns", "floor"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the echo")?;
    let address = super::serve::first_line(&mut child)?.parse().context("no address from the echo")?;
    Ok(Server::new(address, child))
}
