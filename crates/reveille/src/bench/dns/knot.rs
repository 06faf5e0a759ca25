//! Knot DNS with the same names as static records: the server to compare with.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::load::{SERVER_CPU, Server, pinned};
use super::{START_MAX, free_address, serve};

/// Where Debian puts daemons, which may not be in an ordinary user's PATH.
const PROGRAM: &str = "/usr/sbin/knotd";
/// Between two looks whether it serves.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Writes the zone file.
pub fn write_zone(scratch: &Path, services: u32) -> anyhow::Result<PathBuf> {
    let mut text =
        "$ORIGIN vm.test.\n$TTL 30\n@ SOA ns1 hostmaster 1 3600 600 86400 30\n@ NS ns1\nns1 A 127.0.0.1\n"
            .to_owned();
    for n in 0..services {
        writeln!(text, "svc{n} A {}", serve::address(n))?;
    }
    let file = scratch.join("vm.test.zone");
    std::fs::write(&file, text)?;
    Ok(file)
}

/// Starts Knot DNS with one thread for UDP; `None` where it is not installed.
///
/// # Errors
/// If it is installed and does not serve.
pub fn start(scratch: &Path, zone: &Path) -> anyhow::Result<Option<(String, Server)>> {
    let Ok(version) = Command::new(PROGRAM).arg("--version").output() else { return Ok(None) };
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let address = free_address()?;
    let (run, database) = (scratch.join("knot-run"), scratch.join("knot-database"));
    std::fs::create_dir_all(&run)?;
    std::fs::create_dir_all(&database)?;
    let config = scratch.join("knot.conf");
    std::fs::write(
        &config,
        format!(
            "server:\n    rundir: \"{}\"\n    listen: {}@{}\n    udp-workers: 1\n    tcp-workers: 1\n    \
             background-workers: 1\ndatabase:\n    storage: \"{}\"\nzone:\n  - domain: vm.test\n    file: \"{}\"\n",
            run.display(),
            address.ip(),
            address.port(),
            database.display(),
            zone.display()
        ),
    )?;
    let log = std::fs::File::create(scratch.join("knot.log"))?;
    let child = pinned(SERVER_CPU, PROGRAM)
        .arg("--config")
        .arg(&config)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start Knot DNS")?;
    let server = Server::new(address, child);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(LOOK_EVERY))?;
    socket.connect(address)?;
    let begun = Instant::now();
    let mut answer = [0; 512];
    loop {
        // Refused as long as nobody listens.
        let _ = socket.send(&serve::question(0, 0));
        match socket.recv(&mut answer) {
            Ok(length) if length > 12 && answer[3] & 0xf == 0 => return Ok(Some((version, server))),
            Ok(_) | Err(_) => {}
        }
        anyhow::ensure!(
            begun.elapsed() < START_MAX,
            "Knot DNS does not serve: {}",
            std::fs::read_to_string(scratch.join("knot.log")).unwrap_or_default()
        );
        std::thread::sleep(LOOK_EVERY);
    }
}
