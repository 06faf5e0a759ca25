//! `reveille bench wake`: the first byte from each rung against a cold boot of the same machine.
//!
//! A daemon of its own is started with two services of one image, one that sleeps on the rung Local and one that
//! sleeps Armed. They are woken in turn by a client's connection, and now and then the same machine is booted
//! outside Reveille, so that whatever drifts on the host drifts for all.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use reveille_api::types::{StagesMs, Wake as WakeReport};
use reveille_api::{Client, Connections, Wait};
use reveille_core::model::{DomainName, InstanceId, Phase, ReadyCheck, Rung};
use reveille_vm::driver::{Driver, Launch};
use reveille_vm::image::{Image, ImageStore};
use reveille_vm::qemu::Qemu;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::cold;
use super::probe::get;
use crate::cli::Output;
use crate::config::{Config, Zone};
use crate::serve::qemu_config;

/// Longest wake before it counts as lost.
const WAKE_MAX: Duration = Duration::from_secs(30);
/// Longest start of the daemon, and longest time until a service sleeps again.
const SETTLE_MAX: Duration = Duration::from_secs(120);

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
}

/// The figures. Ratios are of medians, a rung's over the cold boot's.
#[derive(Debug, Serialize)]
struct Report {
    qemu: String,
    accelerator: String,
    /// Wakes that were measured, from all rungs.
    wakes: usize,
    /// Wakes that did not end in an answer, or whose guest was not the same.
    lost: usize,
    cold_boots: usize,
    cold_ms_p50: f64,
    local_ms_p50: f64,
    armed_ms_p50: f64,
    local_ratio_to_cold: f64,
    armed_ratio_to_cold: f64,
    /// Not measured before there is a rung Paused.
    paused_ratio_to_cold: Option<f64>,
    /// From the trigger to running vCPUs on the rung Armed.
    own_share_ms_p50: f64,
    own_share_ms_p99: f64,
    rungs: Vec<RungReport>,
}

#[derive(Debug, Serialize)]
struct RungReport {
    rung: Rung,
    first_byte: Spread,
    /// Stages as multiples of the cold boot's median, from the trigger.
    stages: Vec<(&'static str, Spread)>,
}

/// A distribution, in milliseconds and as ratios to the cold boot's median.
#[derive(Debug, Serialize)]
struct Spread {
    ms_p50: f64,
    ms_p99: f64,
    ratio_p50: f64,
    ratio_p99: f64,
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
        let images = Arc::new(ImageStore::open(config.daemon.state_dir.join("images"))?);
        let image = images.resolve(&self.image)?;
        let scratch = tempfile::Builder::new().prefix("reveille-bench").tempdir()?;
        std::os::unix::fs::symlink(
            std::path::absolute(config.daemon.state_dir.join("images"))?,
            scratch.path().join("images"),
        )?;
        let bench = Bench::start(self, &config, &image, scratch.path()).await?;
        let bar =
            output.draws_progress().then(|| ProgressBar::new((2 * self.wakes + self.cold_boots) as u64));
        let measured = bench.rounds(self, bar.as_ref()).await;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let (cold, local, armed) = match measured {
            Ok(measured) => measured,
            Err(error) => {
                bench.daemon.stop().await?;
                return Err(error);
            }
        };
        let report = bench.report(&cold, local, armed).await;
        bench.daemon.stop().await?;
        report
    }
}

/// First bytes from one rung.
#[derive(Debug, Default)]
struct Measured {
    first_byte_ms: Vec<f64>,
    lost: usize,
}

struct Bench {
    daemon: Daemon,
    qemu: Qemu,
    launch: Launch,
    port: u16,
    scratch: PathBuf,
}

impl Bench {
    async fn start(options: &Wake, config: &Config, image: &Image, scratch: &Path) -> anyhow::Result<Self> {
        let daemon = Daemon::start(options, config, scratch).await?;
        let images = Arc::new(ImageStore::open(scratch.join("images"))?);
        let cold_config = Config {
            daemon: crate::config::Daemon { state_dir: scratch.join("cold"), ..config.daemon.clone() },
            ..config.clone()
        };
        let qemu = Qemu::open(qemu_config(&cold_config, &images)).await?;
        let launch = Launch {
            instance: InstanceId(0),
            service: "cold.bench.test".parse()?,
            image: image.digest.clone(),
            kernel: image.kernel.clone(),
            initrd: image.initrd.clone(),
            disk: image.disk.clone(),
            resources: reveille_core::model::Resources {
                cpus: 1,
                memory_mib: options.memory_mib,
                ..reveille_core::model::Resources::default()
            },
            egress: reveille_core::model::Egress::None,
            link: reveille_vm::driver::Link::Stream,
        };
        Ok(Self { daemon, qemu, launch, port: options.port, scratch: scratch.to_owned() })
    }

    /// Wakes from both rungs in turn, with the cold boots spread over the whole run.
    async fn rounds(
        &self,
        options: &Wake,
        bar: Option<&ProgressBar>,
    ) -> anyhow::Result<(Vec<f64>, Measured, Measured)> {
        let (mut cold, mut local, mut armed) = (Vec::new(), Measured::default(), Measured::default());
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
                self.wake(&self.daemon.local, Rung::Local, &mut local).await?;
                tick();
                self.wake(&self.daemon.armed, Rung::Armed, &mut armed).await?;
                tick();
            }
        }
        Ok((cold, local, armed))
    }

    async fn wake(&self, service: &Asleep, rung: Rung, measured: &mut Measured) -> anyhow::Result<()> {
        self.daemon.asleep_on(&service.name, rung).await?;
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
        self.daemon.client.hibernate(&service.name, Connections::Cut, Wait::UntilDone).await?;
        Ok(())
    }

    async fn report(&self, cold: &[f64], local: Measured, armed: Measured) -> anyhow::Result<Report> {
        let cold_ms = percentile(cold, 50.0)?;
        let mut rungs = Vec::new();
        for (rung, service, measured) in
            [(Rung::Local, &self.daemon.local, &local), (Rung::Armed, &self.daemon.armed, &armed)]
        {
            let records = self.daemon.wakes(&service.name, rung).await?;
            rungs.push(RungReport {
                rung,
                first_byte: spread(&measured.first_byte_ms, cold_ms)?,
                stages: stages(&records, cold_ms)?,
            });
        }
        let own_share = |percent| {
            let records = self.daemon.wakes(&self.daemon.armed.name, Rung::Armed);
            async move {
                let running: Vec<f64> =
                    records.await?.iter().filter_map(|wake| wake.stages_ms.running).collect();
                percentile(&running, percent)
            }
        };
        let (local_ms, armed_ms) =
            (percentile(&local.first_byte_ms, 50.0)?, percentile(&armed.first_byte_ms, 50.0)?);
        let capabilities = self.qemu.capabilities();
        Ok(Report {
            qemu: capabilities.version.clone(),
            accelerator: capabilities.accelerator.clone(),
            wakes: local.first_byte_ms.len() + armed.first_byte_ms.len() + local.lost + armed.lost,
            lost: local.lost + armed.lost,
            cold_boots: cold.len(),
            cold_ms_p50: cold_ms,
            local_ms_p50: local_ms,
            armed_ms_p50: armed_ms,
            local_ratio_to_cold: local_ms / cold_ms,
            armed_ratio_to_cold: armed_ms / cold_ms,
            paused_ratio_to_cold: None,
            own_share_ms_p50: own_share(50.0).await?,
            own_share_ms_p99: own_share(99.0).await?,
            rungs,
        })
    }
}

// --- The daemon under measurement --------------------------------------------------------------------------------

struct Asleep {
    name: DomainName,
    address: Ipv4Addr,
    nonce: String,
}

struct Daemon {
    child: Child,
    client: Client,
    local: Asleep,
    armed: Asleep,
}

impl Daemon {
    async fn start(options: &Wake, config: &Config, scratch: &Path) -> anyhow::Result<Self> {
        let (dns, api) = (free_port()?, free_port()?);
        let file = scratch.join("reveille.toml");
        std::fs::write(&file, toml::to_string(&bench_config(options, config, scratch, dns, api)?)?)?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve".as_ref(), "--config".as_ref(), file.as_os_str()])
            .env("REVEILLE_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let out = child.stdout.take().context("the daemon has no output")?;
        let mut lines = BufReader::new(out).lines();
        let ready = timeout(SETTLE_MAX, async {
            while let Some(line) = lines.next_line().await? {
                if line.starts_with("reveille is ready") {
                    return Ok(());
                }
            }
            bail!("the daemon ended before it was ready")
        });
        ready.await.context("the daemon was not ready in time")??;
        let daemon = crate::cli::Daemon { api: format!("http://{api}"), token_file: None };
        let client = daemon.client().await?;
        let local = first_sleep(&client, "local.bench.test", options.port).await?;
        let armed = first_sleep(&client, "armed.bench.test", options.port).await?;
        Ok(Self { child, client, local, armed })
    }

    async fn asleep_on(&self, name: &DomainName, rung: Rung) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE_MAX;
        loop {
            let summary = self.client.service(name).await?.summary;
            if summary.phase == Phase::Hibernated && summary.rung == rung {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{name} is {} on the rung {} and not asleep on {rung}", summary.phase, summary.rung);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn wakes(&self, name: &DomainName, rung: Rung) -> anyhow::Result<Vec<WakeReport>> {
        let (mut all, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.client.wakes(name, cursor.as_deref(), 200).await?;
            all.extend(page.items.into_iter().filter(|wake| wake.from == rung));
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        timeout(SETTLE_MAX, self.child.wait()).await.context("the daemon did not stop")??;
        Ok(())
    }
}

/// Boots a service for the first time, asks for its nonce and puts it to sleep.
async fn first_sleep(client: &Client, name: &str, port: u16) -> anyhow::Result<Asleep> {
    let name: DomainName = name.parse()?;
    let address = client.wake(&name, Wait::UntilDone).await?.address;
    let answer = get(TcpStream::connect((address, port)).await?, "/", WAKE_MAX).await?;
    let nonce = answer.line("boot-nonce").unwrap_or_default().to_owned();
    client.hibernate(&name, Connections::Cut, Wait::UntilDone).await?;
    Ok(Asleep { name, address, nonce })
}

fn bench_config(
    options: &Wake,
    config: &Config,
    scratch: &Path,
    dns: SocketAddr,
    api: SocketAddr,
) -> anyhow::Result<Config> {
    let mut bench = Config { qemu: config.qemu.clone(), ..Config::default() };
    bench.daemon.state_dir = scratch.to_owned();
    bench.daemon.on_stop = crate::config::OnStop::Terminate;
    bench.dns.listen = vec![dns];
    bench.api.listen = api;
    // A pool of its own, so that it runs beside another daemon of this host.
    let third = std::process::id() % 256;
    bench.relay.pool = format!("127.127.{third}.0/24");
    bench.zone = vec![Zone {
        name: "bench.test".parse()?,
        file: None,
        ns: None,
        ns_address: None,
        transfer: Vec::new(),
        notify: Vec::new(),
        update: Vec::new(),
        dnssec: crate::config::Dnssec::Off,
    }];
    for (label, rest) in [("local", Rung::Local), ("armed", Rung::Armed)] {
        let spec = serde_json::json!({
            "name": format!("{label}.bench.test"),
            "image": options.image,
            "ports": [format!("tcp/{}", options.port)],
            "resources": { "cpus": 1, "memory_mib": options.memory_mib },
        });
        let mut spec: reveille_core::model::ServiceSpec = serde_json::from_value(spec)?;
        spec.ready = Some(ReadyCheck::Tcp { port: options.port });
        // Asleep when told to, and only then.
        spec.policy.idle_ms = 3_600_000;
        spec.policy.grace_ms = 0;
        spec.policy.min_on_ms = 0;
        spec.policy.rest = rest;
        bench.service.push(spec);
    }
    Ok(bench)
}

fn free_port() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

// --- Figures -----------------------------------------------------------------------------------------------------

fn percentile(values_ms: &[f64], percent: f64) -> anyhow::Result<f64> {
    let mut histogram: Histogram<u64> = Histogram::new(3)?;
    for ms in values_ms {
        let us = Duration::try_from_secs_f64(ms / 1e3)?.as_micros();
        histogram.record(u64::try_from(us)?)?;
    }
    anyhow::ensure!(!histogram.is_empty(), "nothing was measured");
    Ok(histogram.value_at_percentile(percent) as f64 / 1e3)
}

fn spread(values_ms: &[f64], cold_ms: f64) -> anyhow::Result<Spread> {
    let (ms_p50, ms_p99) = (percentile(values_ms, 50.0)?, percentile(values_ms, 99.0)?);
    Ok(Spread { ms_p50, ms_p99, ratio_p50: ms_p50 / cold_ms, ratio_p99: ms_p99 / cold_ms })
}

fn stages(wakes: &[WakeReport], cold_ms: f64) -> anyhow::Result<Vec<(&'static str, Spread)>> {
    type Pick = fn(&StagesMs) -> Option<f64>;
    let stages: [(&str, Pick); 6] = [
        ("decided", |stages| stages.decided),
        ("spawned", |stages| stages.spawned),
        ("restored", |stages| stages.restored),
        ("running", |stages| stages.running),
        ("ready", |stages| stages.ready),
        ("first byte", |stages| stages.first_byte),
    ];
    let mut spreads = Vec::new();
    for (name, stage) in stages {
        let values: Vec<f64> = wakes.iter().filter_map(|wake| stage(&wake.stages_ms)).collect();
        if !values.is_empty() {
            spreads.push((name, spread(&values, cold_ms)?));
        }
    }
    Ok(spreads)
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "QEMU {} under {}; {} wakes, {} lost; {} cold boots of the same machine outside Reveille, each = 1\n\n",
        report.qemu, report.accelerator, report.wakes, report.lost, report.cold_boots
    );
    text += &format!("{:8} {:12} {:>9} {:>9} {:>11} {:>11}\n", "from", "until", "p50", "p99", "p50", "p99");
    for rung in &report.rungs {
        let client = ("client", &rung.first_byte);
        for (stage, spread) in rung.stages.iter().map(|(name, spread)| (*name, spread)).chain([client]) {
            text += &format!(
                "{:8} {:12} {:9.5} {:9.5} {:>8.1} ms {:>8.1} ms\n",
                rung.rung.word(),
                stage,
                spread.ratio_p50,
                spread.ratio_p99,
                spread.ms_p50,
                spread.ms_p99
            );
        }
    }
    text += &format!(
        "\nfirst byte, p50 against a cold boot's: local 1/{:.1}, armed 1/{:.1}\n",
        1.0 / report.local_ratio_to_cold,
        1.0 / report.armed_ratio_to_cold
    );
    text += &format!(
        "own share (trigger to running vCPUs, armed): p50 {:.2} ms, p99 {:.2} ms\n",
        report.own_share_ms_p50, report.own_share_ms_p99
    );
    text
}
