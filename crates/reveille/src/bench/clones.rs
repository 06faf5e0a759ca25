//! What clones of one snapshot hold of the host's memory, against as many machines that booted each for itself.

use std::path::Path;

use anyhow::Context;
use reveille_api::{CloneRequest, Connections, Wait};
use reveille_core::model::{DomainName, Rung};
use serde::Serialize;

use super::host::{self, Daemon};
use super::memory::proportional_kib;
use crate::config::Config;

/// Memory of each machine, in MiB.
const MEMORY_MIB: u32 = 128;

/// PSS, in KiB, with all of them awake.
#[derive(Debug, Serialize)]
pub struct Clones {
    /// How many there are of each.
    count: usize,
    memory_mib: u32,
    /// All that were booted, after their first answer.
    booted_kib: u64,
    /// All clones, after their first wake.
    clones_kib: u64,
    /// The clones' over the others'.
    pub ratio: f64,
}

/// Boots `count` services, lets them sleep, clones the first as often, and wakes the clones.
///
/// # Errors
/// If one does not come up.
pub async fn measure(
    config: &Config,
    (image, port): (&str, u16),
    count: usize,
    state_dir: &Path,
) -> anyhow::Result<Clones> {
    let mut bench = host::config(config, state_dir, 4)?;
    for number in 0..count {
        let service = host::service(&format!("own-{number}"), image, port, MEMORY_MIB, Rung::Local)?;
        bench.service.push(service);
    }
    let daemon = Daemon::start(&bench).await?;
    let measured = both(&daemon, count).await;
    daemon.stop().await?;
    measured
}

async fn both(daemon: &Daemon, count: usize) -> anyhow::Result<Clones> {
    let names = |kind: &str| -> anyhow::Result<Vec<DomainName>> {
        (0..count).map(|number| Ok(format!("{kind}-{number}.bench.test").parse()?)).collect()
    };
    let (own, clones) = (names("own")?, names("clone")?);
    let booted_kib = awake_kib(daemon, &own).await?;
    for name in &own {
        daemon.client.hibernate(name, Connections::Cut, Wait::UntilDone).await?;
    }
    let source = own.first().context("there is nothing to clone")?;
    for name in &clones {
        let body = CloneRequest { name: name.clone(), address: None, allow_identical: false };
        daemon.client.clone_service(source, &body).await?;
    }
    let clones_kib = awake_kib(daemon, &clones).await?;
    let ratio = clones_kib as f64 / booted_kib as f64;
    Ok(Clones { count, memory_mib: MEMORY_MIB, booted_kib, clones_kib, ratio })
}

/// What they hold together when all have been woken.
async fn awake_kib(daemon: &Daemon, names: &[DomainName]) -> anyhow::Result<u64> {
    for name in names {
        daemon.client.wake(name, Wait::UntilDone).await?;
    }
    let mut sum = 0;
    for name in names {
        let process = daemon.process(name).await?;
        sum += process.and_then(proportional_kib).with_context(|| format!("{name} has no process"))?;
    }
    Ok(sum)
}

/// For people.
pub fn text(clones: &Clones) -> String {
    format!(
        "\n{} clones of one snapshot with {} MiB: {} MiB together; booted each for itself: {} MiB; ratio {:.2}\n",
        clones.count,
        clones.memory_mib,
        clones.clones_kib >> 10,
        clones.booted_kib >> 10,
        clones.ratio
    )
}
