//! Cold boots outside Reveille: the same machine by the same command line, with nothing of the daemon around it.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use reveille_net::guest::Link;
use reveille_vm::driver::Launch;
use reveille_vm::qemu::Qemu;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::probe::get;
use crate::control::wiring::addresses;

/// Time between two requests to a guest that boots.
const PROBE_EVERY: Duration = Duration::from_millis(15);
/// Longest cold boot.
const BOOT_MAX: Duration = Duration::from_secs(120);
/// Requests to a guest that boots which may wait at a time; older ones are given up.
const PROBES_MAX: usize = 8;

/// Boots the machine of `launch` once; the time from the start of its process to the first byte of an answer.
///
/// # Errors
/// If it does not answer within two minutes.
pub async fn boot(
    qemu: &Qemu,
    launch: &Launch,
    port: u16,
    path: &str,
    scratch: &Path,
) -> anyhow::Result<Duration> {
    let dir = tempfile::tempdir_in(scratch)?;
    let argv = qemu.cold_argv(launch, dir.path())?;
    std::fs::create_dir(dir.path().join("run"))?;
    let begun = Instant::now();
    let mut child = Command::new(&argv.program)
        .args(&argv.arguments)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start QEMU")?;
    let socket = dir.path().join("run/net.sock");
    let answered = timeout(BOOT_MAX, answered(&socket, launch, port, path));
    let first_byte = tokio::select! {
        answered = answered => answered.context("a cold boot did not answer within two minutes")??,
        status = child.wait() => anyhow::bail!("QEMU ended during a cold boot: {}", status?),
    };
    child.kill().await?;
    Ok(first_byte.duration_since(begun))
}

async fn answered(socket: &Path, launch: &Launch, port: u16, path: &str) -> anyhow::Result<Instant> {
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(_) => sleep(Duration::from_millis(2)).await,
        }
    };
    let link = Arc::new(Link::attach(stream, addresses(launch.egress)));
    // Each request by itself, so that one whose first packet was lost to a guest without a network yet does not
    // hold the others up.
    let mut probes = JoinSet::new();
    let mut order = std::collections::VecDeque::new();
    loop {
        let (link, path) = (Arc::clone(&link), path.to_owned());
        let probe = probes.spawn(async move {
            let stream = link.connect(port).await.map_err(std::io::Error::other)?;
            get(stream, &path, BOOT_MAX).await
        });
        order.push_back(probe);
        if order.len() > PROBES_MAX
            && let Some(oldest) = order.pop_front()
        {
            oldest.abort();
        }
        let next = sleep(PROBE_EVERY);
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => break,
                Some(ended) = probes.join_next() => {
                    if let Ok(Ok(answer)) = ended {
                        return Ok(answer.first_byte);
                    }
                }
            }
        }
    }
}
