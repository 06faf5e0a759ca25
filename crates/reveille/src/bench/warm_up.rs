//! `reveille bench warm-up`: the first request after a wake against the steady state, with each built-in profile and
//! without it.
//!
//! Two services of one image for each profile, one with it and one without, are woken in turn: by a cold boot, and from a
//! version. A request is timed from its connection to the end of its answer, once the daemon says that the service is
//! awake: what the wake itself took stands beside it.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::ProgressBar;
use reveille_api::{Connections, Wait};
use reveille_core::model::{DomainName, ReadyCheck, Rung};
use reveille_vm::image::ImageStore;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::figures::percentile;
use super::host::{self, Daemon, WAKE_MAX};
use super::probe::get;
use super::{postgresql, scratch_with_images};
use crate::cli::Output;
use crate::config::Config;

/// Longest cold boot: a database under emulation takes its time.
const BOOT_MS_MAX: u64 = 180_000;
/// Longest restore.
const RESTORE_MS_MAX: u64 = 30_000;
/// Pages and rows that are asked for in turn.
const ITEMS: usize = 32;
/// Requests before those that count as steady.
const UNSETTLED: usize = 20;
/// Pause between two tries of a request that is refused.
const TRY_PAUSE: Duration = Duration::from_millis(5);

/// What is measured: the profile, and what it is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Cache,
    Database,
    Compute,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Cache, Self::Database, Self::Compute];

    const fn profile(self) -> &'static str {
        match self {
            Self::Cache => "cache-heavy",
            Self::Database => "database-heavy",
            Self::Compute => "compute-heavy",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Cache => 8_080,
            Self::Database => 5_432,
            Self::Compute => 9_000,
        }
    }

    /// One request, over a connection of its own.
    async fn ask(self, address: Ipv4Addr, number: usize) -> std::io::Result<()> {
        let (stream, item) = (TcpStream::connect((address, self.port())).await?, number % ITEMS);
        let answered = match self {
            Self::Cache => get(stream, &format!("/item/{item}"), WAKE_MAX).await?.text,
            Self::Compute => get(stream, "/", WAKE_MAX).await?.text,
            Self::Database => {
                let text = format!("SELECT id, payload FROM items WHERE bucket = {}", item + 100);
                let rows = postgresql::query(stream, &text, WAKE_MAX).await?;
                return if rows > 0 { Ok(()) } else { Err(std::io::Error::other("there are no rows")) };
            }
        };
        let good = answered.starts_with("HTTP/1.1 200");
        if good { Ok(()) } else { Err(std::io::Error::other("it was not answered with status 200")) }
    }
}

/// Options of `reveille bench warm-up`.
#[derive(Debug, Args)]
pub struct WarmUp {
    /// The daemon's config file, for QEMU and the images
    #[arg(long, short, value_name = "FILE", default_value = "/etc/reveille/reveille.toml")]
    config: PathBuf,
    /// Image with a cache on port 8080 and a job that computes on port 9000
    #[arg(long, default_value = "warm-up")]
    image: String,
    /// Image with PostgreSQL; without it the database is not measured
    #[arg(long, default_value = "postgres")]
    database_image: String,
    /// Wakes of each service from a version
    #[arg(long, default_value_t = 7)]
    wakes: usize,
    /// Cold boots of each service
    #[arg(long, default_value_t = 3)]
    cold_boots: usize,
    /// Requests after each wake that tell the steady state
    #[arg(long, default_value_t = 20)]
    steady: usize,
    /// Only these profiles
    #[arg(long, value_name = "NAME")]
    profile: Vec<String>,
}

/// The figures. Ratios are of medians, the first request's over the steady state's.
#[derive(Debug, Serialize)]
struct Report {
    qemu_accelerator: String,
    /// The worst ratio with a profile.
    ratio_with_worst: f64,
    /// The least that a first request without one took more than with it.
    without_over_with_least: f64,
    /// Profiles for which there was no image.
    not_run: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    profile: &'static str,
    from: Rung,
    with: Figures,
    without: Figures,
}

#[derive(Debug, Serialize)]
struct Figures {
    wakes: usize,
    /// Until the daemon said that the service was awake, median.
    wake_ms_p50: f64,
    /// What its warm-up set took of that, median; absent without one.
    warm_up_ms_p50: Option<u32>,
    first_ms_p50: f64,
    first_ms_max: f64,
    steady_ms_p50: f64,
    ratio: f64,
}

/// What was seen of one service from one rung.
#[derive(Debug, Default)]
struct Seen {
    wake_ms: Vec<f64>,
    first_ms: Vec<f64>,
    steady_ms: Vec<f64>,
}

struct Measured {
    kind: Kind,
    name: DomainName,
    warmed: bool,
    cold: Seen,
    local: Seen,
}

impl WarmUp {
    /// Measures and prints.
    ///
    /// # Errors
    /// If something cannot be set up, or a request is not answered.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let report = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(self.measure(output))?;
        output.print(&report, text)
    }

    async fn measure(&self, output: Output) -> anyhow::Result<Report> {
        anyhow::ensure!(
            self.wakes > 0 && self.cold_boots > 0 && self.steady > 0,
            "--wakes, --cold-boots and --steady must be at least 1"
        );
        for profile in &self.profile {
            let known = Kind::ALL.iter().any(|kind| kind.profile() == profile);
            anyhow::ensure!(known, "there is no built-in profile {profile}");
        }
        let config = if self.config.exists() { Config::load(&self.config)? } else { Config::default() };
        let scratch = scratch_with_images(&config, &["here"])?;
        let images = ImageStore::open(scratch.path().join("here/images"))?;
        let wanted =
            |kind: &Kind| self.profile.is_empty() || self.profile.iter().any(|p| p == kind.profile());
        let (kinds, missing): (Vec<Kind>, Vec<Kind>) = Kind::ALL
            .into_iter()
            .filter(wanted)
            .partition(|kind| *kind != Kind::Database || images.resolve(&self.database_image).is_ok());
        let mut own = host::config(&config, &scratch.path().join("here"), 3)?;
        let mut all = Vec::new();
        for kind in kinds {
            for warmed in [true, false] {
                let label = format!("{}-{}", kind.profile(), if warmed { "with" } else { "without" });
                own.service.push(self.service(kind, warmed, &label)?);
                let name = format!("{label}.bench.test").parse()?;
                all.push(Measured { kind, name, warmed, cold: Seen::default(), local: Seen::default() });
            }
        }
        let daemon = Daemon::start(&own).await?;
        let steps = all.len() * (self.wakes + self.cold_boots);
        let bar = output.draws_progress().then(|| ProgressBar::new(u64::try_from(steps).unwrap_or(0)));
        let measured = self.rounds(&daemon, &mut all, bar.as_ref()).await;
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let report = match measured {
            Ok(()) => self.report(&daemon, &all, &missing).await,
            Err(error) => Err(error),
        };
        daemon.stop().await?;
        report
    }

    fn service(
        &self,
        kind: Kind,
        warmed: bool,
        label: &str,
    ) -> anyhow::Result<reveille_core::model::ServiceSpec> {
        let (image, memory_mib) = match kind {
            Kind::Database => (&self.database_image, 512),
            Kind::Cache | Kind::Compute => (&self.image, 256),
        };
        let mut spec = host::service(label, image, kind.port(), memory_mib, Rung::Local)?;
        spec.ready = Some(ReadyCheck::Tcp { port: kind.port() });
        spec.profile = warmed.then(|| kind.profile().to_owned());
        (spec.policy.boot_ms_max, spec.policy.restore_ms_max) = (BOOT_MS_MAX, RESTORE_MS_MAX);
        Ok(spec)
    }

    /// Each service in turn, boots spread over the whole run: whatever drifts on the host drifts for all.
    async fn rounds(
        &self,
        daemon: &Daemon,
        all: &mut [Measured],
        bar: Option<&ProgressBar>,
    ) -> anyhow::Result<()> {
        let mut number = 0;
        for round in 0..self.wakes.max(self.cold_boots) {
            for of in &mut *all {
                if round < self.cold_boots {
                    daemon.client.terminate(&of.name, Wait::UntilDone).await?;
                    self.wake(daemon, of.kind, &of.name, &mut number, &mut of.cold).await?;
                    if let Some(bar) = bar {
                        bar.inc(1);
                    }
                    daemon.client.hibernate(&of.name, Connections::Cut, Wait::UntilDone).await?;
                }
                if round < self.wakes {
                    self.wake(daemon, of.kind, &of.name, &mut number, &mut of.local).await?;
                    if let Some(bar) = bar {
                        bar.inc(1);
                    }
                    daemon.client.hibernate(&of.name, Connections::Cut, Wait::UntilDone).await?;
                }
            }
        }
        Ok(())
    }

    async fn wake(
        &self,
        daemon: &Daemon,
        kind: Kind,
        name: &DomainName,
        number: &mut usize,
        seen: &mut Seen,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let address = daemon.client.wake(name, Wait::UntilDone).await?.address;
        seen.wake_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        seen.first_ms.push(request(kind, address, number).await?);
        for _ in 0..UNSETTLED.min(self.steady) {
            request(kind, address, number).await?;
        }
        for _ in 0..self.steady {
            seen.steady_ms.push(request(kind, address, number).await?);
        }
        Ok(())
    }

    async fn report(&self, daemon: &Daemon, all: &[Measured], missing: &[Kind]) -> anyhow::Result<Report> {
        let mut rows = Vec::new();
        for pair in all.chunks(2) {
            let [with, without] = pair else { bail!("a service is missing") };
            anyhow::ensure!(with.warmed && !without.warmed, "the services are out of order");
            for from in [Rung::Cold, Rung::Local] {
                let row = Row {
                    profile: with.kind.profile(),
                    from,
                    with: figures(daemon, with, from).await?,
                    without: figures(daemon, without, from).await?,
                };
                rows.push(row);
            }
        }
        let ratio_with_worst = rows.iter().map(|row| row.with.ratio).fold(0.0, f64::max);
        let more = |row: &Row| row.without.first_ms_p50 / row.with.first_ms_p50;
        let without_over_with_least = rows.iter().map(more).fold(f64::INFINITY, f64::min);
        let qemu_accelerator = daemon.client.host().await?.accelerator;
        let not_run = missing.iter().map(|kind| kind.profile().to_owned()).collect();
        Ok(Report { qemu_accelerator, ratio_with_worst, without_over_with_least, not_run, rows })
    }
}

/// One request, again until it is answered; milliseconds to the end of its answer.
async fn request(kind: Kind, address: Ipv4Addr, number: &mut usize) -> anyhow::Result<f64> {
    let begun = Instant::now();
    *number += 1;
    loop {
        match kind.ask(address, *number).await {
            Ok(()) => return Ok(begun.elapsed().as_secs_f64() * 1e3),
            // A database that is not up yet refuses; who asks comes again.
            Err(_) if begun.elapsed() < WAKE_MAX => sleep(TRY_PAUSE).await,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("{} at {address} is not answered", kind.profile()));
            }
        }
    }
}

async fn figures(daemon: &Daemon, of: &Measured, from: Rung) -> anyhow::Result<Figures> {
    let seen = if from == Rung::Cold { &of.cold } else { &of.local };
    let rungs = daemon.client.service(&of.name).await?.rungs;
    let warm_up_ms_p50 = rungs.iter().find(|rung| rung.rung == from).and_then(|rung| rung.warm_up_ms_p50);
    let (first_ms_p50, steady_ms_p50) =
        (percentile(&seen.first_ms, 50.0)?, percentile(&seen.steady_ms, 50.0)?);
    Ok(Figures {
        wakes: seen.first_ms.len(),
        wake_ms_p50: percentile(&seen.wake_ms, 50.0)?,
        warm_up_ms_p50,
        first_ms_p50,
        first_ms_max: percentile(&seen.first_ms, 100.0)?,
        steady_ms_p50,
        ratio: first_ms_p50 / steady_ms_p50,
    })
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "QEMU under {}; the first request after a wake against the steady state (= 1), medians\n\n{:16} {:6} {:8} {:>6} {:>10} {:>10} {:>11} {:>11} {:>7}\n",
        report.qemu_accelerator,
        "profile",
        "from",
        "",
        "wakes",
        "wake ms",
        "warm-up ms",
        "first ms",
        "steady ms",
        "ratio"
    );
    for row in &report.rows {
        for (how, of) in [("with", &row.with), ("without", &row.without)] {
            let warm_up = of.warm_up_ms_p50.map_or("-".to_owned(), |ms| ms.to_string());
            text += &format!(
                "{:16} {:6} {how:8} {:>6} {:>10.0} {warm_up:>10} {:>11.2} {:>11.2} {:>7.2}\n",
                row.profile,
                row.from.word(),
                of.wakes,
                of.wake_ms_p50,
                of.first_ms_p50,
                of.steady_ms_p50,
                of.ratio
            );
        }
    }
    text += &format!(
        "\nworst ratio with a profile {:.2}; without, the first request takes at least {:.2} times as long as with\n",
        report.ratio_with_worst, report.without_over_with_least
    );
    for profile in &report.not_run {
        text += &format!("NOT RUN: {profile}; there is no such image (scripts/postgres-image.sh, as root)\n");
    }
    text
}
