//! `reveille bench wake`: the first byte from each rung against a cold boot of the same machine.
//!
//! A daemon of its own is started with a service of one image for each rung, and a second one for the rung Remote, whose
//! uploads would disturb the others. They are woken in turn by a client's connection, and now and then the same machine
//! is booted outside Reveille, so that whatever drifts on the host drifts for all.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::ProgressBar;
use reveille_api::types::Wake as WakeReport;
use reveille_api::{Connections, Wait};
use reveille_core::model::{InstanceId, Resources, Rung, Stage};
use reveille_vm::driver::{Driver, Launch, Link};
use reveille_vm::image::{Image, ImageStore};
use reveille_vm::qemu::Qemu;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::delay::delayed;
use super::figures::{Spread, median, percentile, spread};
use super::host::{self, Asleep, Daemon, WAKE_MAX};
use super::memory::{proportional_kib, touched_kib};
use super::probe::get;
use super::{cold, scratch_with_images};
use crate::cli::Output;
use crate::config::Config;
use crate::serve::qemu_config;

/// The rungs that are measured, and in which of the two daemons.
const RUNGS: [(Rung, usize); 4] = [(Rung::Remote, 1), (Rung::Local, 0), (Rung::Armed, 0), (Rung::Paused, 0)];
/// The file that is the guest's memory.
const MEMORY_FILE: &str = "memory";

/// Options of `reveille bench wake`.
#[derive(Debug, Args)]
pub struct Wake {
    /// The daemon's config file, for QEMU and the images
    #[arg(long, short, value_name = "FILE", default_value = "/etc/reveille/reveille.toml")]
    config: PathBuf,
    /// Image with an HTTP service
    #[arg(long, default_value = "demo")]
    image: String,
    /// The HTTP service's port
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Wakes from each rung
    #[arg(long, default_value_t = 50)]
    wakes: usize,
    /// Cold boots
    #[arg(long, default_value_t = 10)]
    cold_boots: usize,
    /// Memory of the machine in MiB
    #[arg(long, default_value_t = 128)]
    memory_mib: u32,
    /// Object store for the rung remote; default: a directory that is removed afterwards
    #[arg(long, value_name = "URL", requires = "store_endpoint")]
    store: Option<String>,
    /// Where that store is, if not in its cloud; credentials come from the environment
    #[arg(long, value_name = "HOST:PORT", requires = "store")]
    store_endpoint: Option<String>,
    /// Time that is added to each request to that store, in ms
    #[arg(long, default_value_t = 20)]
    store_delay_ms: u64,
}

/// The figures. Ratios are of medians, a rung's over the cold boot's.
#[derive(Debug, Serialize)]
struct Report {
    qemu: String,
    accelerator: String,
    memory_mib: u32,
    store: String,
    /// Wakes that were measured, from all rungs.
    wakes: usize,
    /// Wakes that did not end in an answer, or whose guest was not the same.
    lost: usize,
    cold_boots: usize,
    cold_ms_p50: f64,
    remote_ratio_to_cold: f64,
    local_ratio_to_cold: f64,
    armed_ratio_to_cold: f64,
    paused_ratio_to_cold: f64,
    /// From the trigger to running vCPUs on the rung Armed.
    own_share_ms_p50: f64,
    own_share_ms_p99: f64,
    /// For how long a guest stood still to be put to sleep.
    guest_paused_ms_p50: f64,
    rungs: Vec<RungReport>,
}

#[derive(Debug, Serialize)]
struct RungReport {
    rung: Rung,
    first_byte: Spread,
    /// Memory of the host that the sleeping service held, PSS, median.
    resting_kib: u64,
    /// Memory of the guest that was touched when it had answered, median; absent where that cannot be seen.
    touched_kib: Option<u64>,
    /// Stages as multiples of the cold boot's median, from the trigger.
    stages: Vec<(&'static str, Spread)>,
}

impl Wake {
    /// Measures and prints.
    ///
    /// # Errors
    /// If something cannot be set up or a wake is lost.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let report = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(self.measure(output))?;
        output.print(&report, text)?;
        anyhow::ensure!(report.lost == 0, "{} of {} wakes were lost", report.lost, report.wakes);
        Ok(())
    }

    async fn measure(&self, output: Output) -> anyhow::Result<Report> {
        anyhow::ensure!(self.wakes > 0 && self.cold_boots > 0, "--wakes and --cold-boots must be at least 1");
        let config = if self.config.exists() { Config::load(&self.config)? } else { Config::default() };
        let scratch = scratch_with_images(&config, &["here", "stored", "cold"])?;
        let images = Arc::new(ImageStore::open(scratch.path().join("cold/images"))?);
        let image = images.resolve(&self.image)?;
        let bench = Bench::start(self, &config, (&image, &images), scratch.path()).await?;
        let steps = RUNGS.len() * self.wakes + self.cold_boots;
        let bar = output.draws_progress().then(|| ProgressBar::new(steps as u64));
        let measured = bench.rounds(self, bar.as_ref()).await;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let report = match measured {
            Ok((cold, measured)) => bench.report(self, &cold, &measured).await,
            Err(error) => Err(error),
        };
        bench.stop().await?;
        report
    }

    /// Where versions go that leave the host.
    async fn store(&self, scratch: &Path) -> anyhow::Result<crate::config::Depot> {
        let mut depot = crate::config::Depot { host: "bench".to_owned(), ..crate::config::Depot::default() };
        let (Some(url), Some(endpoint)) = (&self.store, &self.store_endpoint) else {
            depot.url = format!("file://{}", scratch.join("depot").display());
            return Ok(depot);
        };
        let server: SocketAddr =
            endpoint.to_socket_addrs()?.next().with_context(|| format!("no address of {endpoint}"))?;
        let near = delayed(server, Duration::from_millis(self.store_delay_ms)).await?;
        depot.url.clone_from(url);
        depot.endpoint = format!("http://{near}");
        depot.allow_http = true;
        Ok(depot)
    }
}

/// What was seen of one rung.
#[derive(Debug, Default)]
struct Measured {
    first_byte_ms: Vec<f64>,
    resting_kib: Vec<u64>,
    touched_kib: Vec<u64>,
    paused_ms: Vec<f64>,
    lost: usize,
}

struct Bench {
    daemons: [Daemon; 2],
    /// In the order of [`RUNGS`].
    services: Vec<Asleep>,
    qemu: Qemu,
    launch: Launch,
    port: u16,
    scratch: PathBuf,
    store: String,
}

impl Bench {
    async fn start(
        options: &Wake,
        config: &Config,
        (image, images): (&Image, &Arc<ImageStore>),
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        let store = options.store(scratch).await?;
        let mut configs = [("here", 1), ("stored", 2)]
            .map(|(name, number)| host::config(config, &scratch.join(name), number));
        for (rung, at) in RUNGS {
            if let Some(Ok(of)) = configs.get_mut(at) {
                let (image, memory_mib) = (&options.image, options.memory_mib);
                of.service.push(host::service(rung.word(), image, options.port, memory_mib, rung)?);
                if rung == Rung::Remote {
                    of.depot = store.clone();
                }
            }
        }
        let [here, stored] = configs;
        let daemons = [Daemon::start(&here?).await?, Daemon::start(&stored?).await?];
        let mut services = Vec::new();
        for (rung, at) in RUNGS {
            if let Some(daemon) = daemons.get(at) {
                services
                    .push(daemon.first_sleep(&format!("{}.bench.test", rung.word()), options.port).await?);
            }
        }
        let cold_config = Config {
            daemon: crate::config::Daemon { state_dir: scratch.join("cold"), ..config.daemon.clone() },
            ..config.clone()
        };
        let qemu = Qemu::open(qemu_config(&cold_config, images)).await?;
        let launch = Launch {
            instance: InstanceId(0),
            service: "cold.bench.test".parse()?,
            image: image.digest.clone(),
            kernel: image.kernel.clone(),
            initrd: image.initrd.clone(),
            disk: image.disk.clone(),
            resources: Resources { cpus: 1, memory_mib: options.memory_mib, ..Resources::default() },
            egress: reveille_core::model::Egress::None,
            link: Link::Stream,
        };
        let scratch = scratch.to_owned();
        Ok(Self { daemons, services, qemu, launch, port: options.port, scratch, store: store.url })
    }

    /// Wakes from all rungs in turn, with the cold boots spread over the whole run.
    async fn rounds(
        &self,
        options: &Wake,
        bar: Option<&ProgressBar>,
    ) -> anyhow::Result<(Vec<f64>, [Measured; RUNGS.len()])> {
        let (mut cold, mut measured) = (Vec::new(), RUNGS.map(|_| Measured::default()));
        let tick = || bar.inspect(|bar| bar.inc(1));
        for round in 0..options.wakes.max(options.cold_boots) {
            if round * options.cold_boots / options.wakes.max(1) >= cold.len()
                && cold.len() < options.cold_boots
            {
                let took = cold::boot(&self.qemu, &self.launch, self.port, "/", &self.scratch).await?;
                cold.push(took.as_secs_f64() * 1e3);
                tick();
            }
            if round < options.wakes {
                for (((rung, at), service), measured) in RUNGS.iter().zip(&self.services).zip(&mut measured) {
                    if let Some(daemon) = self.daemons.get(*at) {
                        self.wake(daemon, service, *rung, measured).await?;
                    }
                    tick();
                }
            }
        }
        Ok((cold, measured))
    }

    async fn wake(
        &self,
        daemon: &Daemon,
        service: &Asleep,
        rung: Rung,
        measured: &mut Measured,
    ) -> anyhow::Result<()> {
        daemon.asleep_on(&service.name, rung).await?;
        let resting = daemon.process(&service.name).await?.and_then(proportional_kib);
        measured.resting_kib.push(resting.unwrap_or(0));
        let begun = Instant::now();
        let answer = match timeout(WAKE_MAX, TcpStream::connect((service.address, self.port))).await {
            Ok(Ok(stream)) => get(stream, "/", WAKE_MAX).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        };
        match answer {
            Ok(answer) if answer.line("boot-nonce").is_none_or(|nonce| nonce == service.nonce) => {
                measured.first_byte_ms.push(answer.first_byte.duration_since(begun).as_secs_f64() * 1e3);
            }
            Ok(_) | Err(_) => measured.lost += 1,
        }
        let awake = daemon.process(&service.name).await?;
        measured.touched_kib.extend(awake.and_then(|pid| touched_kib(pid, MEMORY_FILE)));
        daemon.client.hibernate(&service.name, Connections::Cut, Wait::UntilDone).await?;
        let version = daemon.client.service(&service.name).await?.version;
        measured.paused_ms.extend(version.map(|version| version.paused_us as f64 / 1e3));
        // What it still does beside its sleep must not disturb the next one's wake.
        daemon.asleep_on(&service.name, rung).await
    }

    async fn report(
        &self,
        options: &Wake,
        cold: &[f64],
        measured: &[Measured; RUNGS.len()],
    ) -> anyhow::Result<Report> {
        let cold_ms = percentile(cold, 50.0)?;
        let (mut rungs, mut ratios, mut own_ms) = (Vec::new(), Vec::new(), Vec::new());
        for (((rung, at), service), measured) in RUNGS.iter().zip(&self.services).zip(measured) {
            let daemon = self.daemons.get(*at).context("there is no such daemon")?;
            let records = daemon.wakes(&service.name, *rung).await?;
            if *rung == Rung::Armed {
                own_ms.extend(records.iter().filter_map(|wake| wake.stages_ms.running));
            }
            let first_byte = spread(&measured.first_byte_ms, cold_ms)?;
            ratios.push(first_byte.ratio_p50);
            rungs.push(RungReport {
                rung: *rung,
                first_byte,
                resting_kib: median(&measured.resting_kib).unwrap_or(0),
                touched_kib: median(&measured.touched_kib),
                stages: stages(&records, cold_ms)?,
            });
        }
        let [remote, local, armed, paused] =
            <[f64; RUNGS.len()]>::try_from(ratios).map_err(|_| anyhow::anyhow!("a rung was not measured"))?;
        let paused_ms: Vec<f64> = measured.iter().flat_map(|measured| measured.paused_ms.clone()).collect();
        let capabilities = self.qemu.capabilities();
        let lost = measured.iter().map(|measured| measured.lost).sum();
        Ok(Report {
            qemu: capabilities.version.clone(),
            accelerator: capabilities.accelerator.clone(),
            memory_mib: options.memory_mib,
            store: self.store.split("://").next().unwrap_or_default().to_owned(),
            wakes: measured.iter().map(|measured| measured.first_byte_ms.len()).sum::<usize>() + lost,
            lost,
            cold_boots: cold.len(),
            cold_ms_p50: cold_ms,
            remote_ratio_to_cold: remote,
            local_ratio_to_cold: local,
            armed_ratio_to_cold: armed,
            paused_ratio_to_cold: paused,
            own_share_ms_p50: percentile(&own_ms, 50.0)?,
            own_share_ms_p99: percentile(&own_ms, 99.0)?,
            guest_paused_ms_p50: percentile(&paused_ms, 50.0)?,
            rungs,
        })
    }

    async fn stop(self) -> anyhow::Result<()> {
        for daemon in self.daemons {
            daemon.stop().await?;
        }
        Ok(())
    }
}

fn stages(wakes: &[WakeReport], cold_ms: f64) -> anyhow::Result<Vec<(&'static str, Spread)>> {
    let mut spreads = Vec::new();
    for stage in Stage::ALL.map(Stage::word) {
        let of = |wake: &WakeReport| {
            let reached = wake.stages_ms.reached().find(|(name, _)| *name == stage);
            reached.map(|(_, ms)| ms)
        };
        let values: Vec<f64> = wakes.iter().filter_map(of).collect();
        if !values.is_empty() {
            spreads.push((stage, spread(&values, cold_ms)?));
        }
    }
    Ok(spreads)
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "QEMU {} under {}, {} MiB; {} wakes, {} lost; {} cold boots of the same machine outside Reveille, each = 1\n\n",
        report.qemu, report.accelerator, report.memory_mib, report.wakes, report.lost, report.cold_boots
    );
    text += &format!("{:8} {:12} {:>9} {:>9} {:>11} {:>11}\n", "from", "until", "p50", "p99", "p50", "p99");
    for rung in &report.rungs {
        let client = ("client", &rung.first_byte);
        for (stage, spread) in rung.stages.iter().map(|(name, spread)| (*name, spread)).chain([client]) {
            text += &format!(
                "{:8} {:12} {:9.5} {:9.5} {:>8.1} ms {:>8.1} ms\n",
                rung.rung.word(),
                stage.replace('_', " "),
                spread.ratio_p50,
                spread.ratio_p99,
                spread.ms_p50,
                spread.ms_p99
            );
        }
    }
    text += &format!("\n{:8} {:>12} {:>22}\n", "from", "held asleep", "touched until answered");
    for rung in &report.rungs {
        let touched =
            rung.touched_kib.map_or("-".to_owned(), |kib| format!("{:.1} MiB", kib as f64 / 1024.0));
        let held = format!("{:.1} MiB", rung.resting_kib as f64 / 1024.0);
        text += &format!("{:8} {held:>12} {touched:>22}\n", rung.rung.word());
    }
    text += &format!(
        "\nfirst byte, p50 against a cold boot's: remote ({}) 1/{:.1}, local 1/{:.1}, armed 1/{:.1}, paused 1/{:.1}\n",
        report.store,
        1.0 / report.remote_ratio_to_cold,
        1.0 / report.local_ratio_to_cold,
        1.0 / report.armed_ratio_to_cold,
        1.0 / report.paused_ratio_to_cold
    );
    text += &format!(
        "own share (trigger to running vCPUs, armed): p50 {:.2} ms, p99 {:.2} ms\n",
        report.own_share_ms_p50, report.own_share_ms_p99
    );
    text += &format!("guest paused to be put to sleep: p50 {:.2} ms\n", report.guest_paused_ms_p50);
    text
}
