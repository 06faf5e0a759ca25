//! `reveille bench store`: what versions take in an object store, beside the first one of the same guest.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use reveille_api::{Connections, Wait};
use reveille_core::model::Rung;
use reveille_depot::Depot;
use reveille_depot::names::ServiceName;
use serde::Serialize;
use tokio::time::sleep;

use super::clones::{self, Clones};
use super::host::{self, Daemon};
use super::scratch_with_images;
use crate::cli::Output;
use crate::config::Config;

/// Longest upload of a version.
const UPLOAD_MAX: Duration = Duration::from_secs(120);
/// Time between two looks at the store.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Options of `reveille bench store`.
#[derive(Debug, Args)]
pub struct Store {
    /// The daemon's config file, for QEMU and the images
    #[arg(long, short, value_name = "FILE", default_value = "/etc/reveille/reveille.toml")]
    config: PathBuf,
    /// Image with an HTTP service
    #[arg(long, default_value = "demo")]
    image: String,
    /// The HTTP service's port
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Memory of the machine in MiB
    #[arg(long, default_value_t = 256)]
    memory_mib: u32,
    /// Versions after the first
    #[arg(long, default_value_t = 5)]
    versions: u64,
    /// Time that the guest is awake without a client between two versions, in seconds
    #[arg(long, default_value_t = 5)]
    idle_s: u64,
    /// Clones, beside as many machines that boot for themselves; 0: none
    #[arg(long, default_value_t = 10)]
    clones: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    memory_mib: u32,
    idle_s: u64,
    /// Bytes that the first version put into the store.
    first_version_bytes: u64,
    /// The second's, over the first's.
    second_version_ratio: f64,
    /// The worst of all after the first.
    worst_version_ratio: f64,
    versions: Vec<VersionReport>,
    clones: Option<Clones>,
}

#[derive(Debug, Serialize)]
struct VersionReport {
    number: u64,
    /// Bytes that it put into the store.
    own_bytes: u64,
    /// Bytes that it shares with versions before it.
    shared_bytes: u64,
    /// From the end of its capture until it was there.
    upload_ms: f64,
}

impl Store {
    /// Measures and prints.
    ///
    /// # Errors
    /// If something cannot be set up, or a version does not come to the store.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let report =
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(self.measure())?;
        output.print(&report, text)
    }

    async fn measure(&self) -> anyhow::Result<Report> {
        let config = if self.config.exists() { Config::load(&self.config)? } else { Config::default() };
        let scratch = scratch_with_images(&config, &["state", "clones"])?;
        let mut bench = host::config(&config, &scratch.path().join("state"), 3)?;
        bench.depot.url = format!("file://{}", scratch.path().join("depot").display());
        "bench".clone_into(&mut bench.depot.host);
        bench.service.push(host::service("idle", &self.image, self.port, self.memory_mib, Rung::Local)?);
        let depot = bench.depot.opened().map(|depot| Depot::open(&depot)).transpose()?;
        let depot = depot.ok_or_else(|| anyhow::anyhow!("no object store"))?;
        let daemon = Daemon::start(&bench).await?;
        let versions = self.versions_of(&daemon, &depot).await;
        daemon.stop().await?;
        let versions = versions?;
        let first = versions.first().map_or(0, |version| version.own_bytes);
        anyhow::ensure!(first > 0, "the first version took nothing");
        let clones = match self.clones {
            0 => None,
            count => {
                let state_dir = scratch.path().join("clones");
                Some(clones::measure(&config, (&self.image, self.port), count, &state_dir).await?)
            }
        };
        let ratio = |version: &VersionReport| version.own_bytes as f64 / first as f64;
        Ok(Report {
            memory_mib: self.memory_mib,
            idle_s: self.idle_s,
            first_version_bytes: first,
            second_version_ratio: versions.get(1).map_or(0.0, ratio),
            worst_version_ratio: versions.iter().skip(1).map(ratio).fold(0.0, f64::max),
            versions,
            clones,
        })
    }

    async fn versions_of(&self, daemon: &Daemon, depot: &Depot) -> anyhow::Result<Vec<VersionReport>> {
        let service: ServiceName = "idle.bench.test".parse()?;
        let name = daemon.first_sleep("idle.bench.test", self.port).await?.name;
        let mut versions = Vec::new();
        for number in 1..=self.versions.max(1) + 1 {
            if number > 1 {
                daemon.client.wake(&name, Wait::UntilDone).await?;
                sleep(Duration::from_secs(self.idle_s)).await;
                daemon.client.hibernate(&name, Connections::Cut, Wait::UntilDone).await?;
            }
            let begun = Instant::now();
            let manifest = loop {
                let listed = depot.list(&service).await?;
                if let Some(entry) = listed.into_iter().find(|entry| entry.id.number == number) {
                    break entry.manifest?;
                }
                anyhow::ensure!(begun.elapsed() < UPLOAD_MAX, "version {number} never came to the store");
                sleep(LOOK_EVERY).await;
            };
            versions.push(VersionReport {
                number,
                own_bytes: manifest.own_bytes,
                shared_bytes: manifest.shared_bytes,
                upload_ms: begun.elapsed().as_secs_f64() * 1e3,
            });
        }
        Ok(versions)
    }
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "a guest with {} MiB, idle for {} s before each sleep after the first\n\n{:>8} {:>12} {:>12} {:>12}\n",
        report.memory_mib, report.idle_s, "version", "stored", "shared", "upload"
    );
    for version in &report.versions {
        text += &format!(
            "{:8} {:>8} KiB {:>8} KiB {:>9.0} ms\n",
            version.number,
            version.own_bytes >> 10,
            version.shared_bytes >> 10,
            version.upload_ms
        );
    }
    text += &format!(
        "\nsecond version against the first: {:.2} %, the worst {:.2} %\n",
        report.second_version_ratio * 100.0,
        report.worst_version_ratio * 100.0
    );
    text += &report.clones.as_ref().map_or_else(String::new, clones::text);
    text
}
