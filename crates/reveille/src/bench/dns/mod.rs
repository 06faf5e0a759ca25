//! `reveille bench dns`: what a query costs, side by side with Knot DNS and with a bare echo.
//!
//! Each server is a process of its own on the first processor, the load comes from the second. The cost is the server
//! process's own user and system time over the queries that were answered, so it does not depend on what the load
//! generator takes. Servers are measured in turn, and medians are compared.

mod collect;
mod floor;
mod knot;
mod latency;
mod load;
mod serve;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;
use serde::Serialize;

use crate::cli::Output;
use latency::Beside;
use load::{Load, Protocol, Server};

/// Services of the table that shows what a larger one costs.
const MANY_SERVICES: u32 = 1_000_000;
/// Share of the saturated rate at which latency is measured.
const LATENCY_SHARE: f64 = 0.5;
/// Most that a child may take until it serves.
const START_MAX: Duration = Duration::from_secs(120);

/// Options of `reveille bench dns`.
#[derive(Debug, Args)]
pub struct Dns {
    /// Services in the zone: a tenth awake, one in twenty on its way up, the others asleep and not woken
    #[arg(long, default_value_t = 100_000)]
    services: u32,
    /// Rounds, of which medians are taken
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds that each server is measured in a round
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Leave out what takes a million services
    #[arg(long)]
    quick: bool,
    /// Have Reveille tell a collector of every query and answer by dnstap
    #[arg(long)]
    dnstap: bool,
    /// A process of this benchmark
    #[command(subcommand)]
    part: Option<Part>,
}

/// The processes that are measured.
#[derive(Debug, Subcommand)]
enum Part {
    /// Serve many services that nobody starts
    #[command(hide = true)]
    Serve(serve::Serve),
    /// Send every datagram back
    #[command(hide = true)]
    Floor(floor::Floor),
    /// Take dnstap
    #[command(hide = true)]
    Collect(collect::Collect),
}

/// The figures. Ratios are of medians of microseconds of CPU a query.
#[derive(Debug, Serialize)]
struct Report {
    services: u32,
    rounds: usize,
    /// Every query and answer was told by dnstap.
    dnstap: bool,
    us_cpu_per_query: f64,
    queries_per_second: f64,
    floor_us_cpu_per_query: f64,
    ratio_to_floor: f64,
    knot: Option<String>,
    knot_us_cpu_per_query: Option<f64>,
    ratio_to_knot: Option<f64>,
    tcp_us_cpu_per_query: f64,
    tcp_ratio_to_knot: Option<f64>,
    /// With a million services, over the figure above.
    million_ratio: Option<f64>,
    bytes_per_service: u64,
    million_bytes_per_service: Option<u64>,
    #[serde(flatten)]
    latencies: Latencies,
    lost: u64,
}

/// Latencies at half the saturated rate, 99th percentiles.
#[derive(Debug, Serialize)]
struct Latencies {
    /// Latency at half the saturated rate, with the view changed every 100 ms over without.
    rebuild_p99_ratio: f64,
    p99_us: f64,
    rebuild_p99_us: f64,
    /// Latency of one client while a flood of random names from ever new addresses goes on at half the saturated rate,
    /// over that with as many harmless questions.
    flood_p99_ratio: f64,
    harmless_p99_us: f64,
    flood_p99_us: f64,
}

impl Dns {
    /// Measures and prints.
    ///
    /// # Errors
    /// If a part cannot be started or the load generator is missing.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        match self.part {
            Some(Part::Serve(serve)) => return serve.run(),
            Some(Part::Floor(floor)) => return floor.run(),
            Some(Part::Collect(collect)) => return collect.run(),
            None => {}
        }
        anyhow::ensure!(self.rounds > 0 && self.seconds > 0, "--rounds and --seconds must be at least 1");
        anyhow::ensure!(
            (100..=MANY_SERVICES).contains(&self.services),
            "--services must be 100 to {MANY_SERVICES}"
        );
        load::check_tools()?;
        let scratch = tempfile::Builder::new().prefix("reveille-bench-dns").tempdir()?;
        let report = self.measure(scratch.path(), output)?;
        output.print(&report, text)
    }

    fn measure(&self, scratch: &Path, output: Output) -> anyhow::Result<Report> {
        let zone = knot::write_zone(scratch, self.services).context("cannot write the zone")?;
        let load = Load::write(scratch, "queries", self.services, self.seconds)?;
        let knot = knot::start(scratch, &zone)?;
        let floor = floor::start()?;
        let socket = scratch.join("dnstap.sock");
        let collector = self.dnstap.then(|| collect::start(&socket)).transpose()?;
        let tells = self.dnstap.then_some(socket.as_path());
        let own = serve::start(self.services, 0, tells)?;
        let many = if self.quick { None } else { Some(serve::start(MANY_SERVICES, 0, tells)?) };
        let many_load = Load::write(scratch, "queries-many", MANY_SERVICES, self.seconds)?;

        let steps = self.rounds * (7 + usize::from(knot.is_some()) + usize::from(many.is_some()));
        let bar = output.draws_progress().then(|| ProgressBar::new(steps as u64));
        let mut figures = Figures::default();
        for _ in 0..self.rounds {
            let measure = |place: &mut Samples, server: &Server, load: &Load, protocol| {
                let sample = load.measure(server, protocol);
                if let Some(bar) = &bar {
                    bar.inc(1);
                }
                place.0.push(sample?);
                anyhow::Ok(())
            };
            if let Some((_, knot)) = &knot {
                measure(&mut figures.knot, knot, &load, Protocol::Udp)?;
                measure(&mut figures.knot_tcp, knot, &load, Protocol::Tcp)?;
            }
            measure(&mut figures.floor, &floor, &load, Protocol::Udp)?;
            measure(&mut figures.own, &own.server, &load, Protocol::Udp)?;
            measure(&mut figures.own_tcp, &own.server, &load, Protocol::Tcp)?;
            if let Some(many) = &many {
                measure(&mut figures.many, &many.server, &many_load, Protocol::Udp)?;
            }
        }
        let million_bytes_per_service = many.as_ref().map(|many| many.bytes_per_service);
        drop(many);
        drop(floor);
        let rate = figures.own.rate() * LATENCY_SHARE;
        let latencies = self.latencies(own.server.address, rate, tells, bar.as_ref())?;
        drop(collector);
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let cost = figures.own.cost();
        let knot_cost = knot.is_some().then(|| figures.knot.cost());
        Ok(Report {
            services: self.services,
            rounds: self.rounds,
            dnstap: self.dnstap,
            us_cpu_per_query: cost,
            queries_per_second: figures.own.rate(),
            floor_us_cpu_per_query: figures.floor.cost(),
            ratio_to_floor: cost / figures.floor.cost(),
            knot: knot.as_ref().map(|(version, _)| version.clone()),
            knot_us_cpu_per_query: knot_cost,
            ratio_to_knot: knot_cost.map(|knot| cost / knot),
            tcp_us_cpu_per_query: figures.own_tcp.cost(),
            tcp_ratio_to_knot: knot.is_some().then(|| figures.own_tcp.cost() / figures.knot_tcp.cost()),
            million_ratio: (!figures.many.0.is_empty()).then(|| figures.many.cost() / cost),
            bytes_per_service: own.bytes_per_service,
            million_bytes_per_service,
            latencies,
            lost: figures.own.0.iter().chain(&figures.many.0).map(|sample| sample.lost).sum(),
        })
    }

    /// Latency at that rate: alone, while the view is changed, and beside other questions.
    fn latencies(
        &self,
        own: SocketAddr,
        rate: f64,
        tells: Option<&Path>,
        bar: Option<&ProgressBar>,
    ) -> anyhow::Result<Latencies> {
        let changed = serve::start(self.services, serve::CHANGE_EVERY_MS, tells)?;
        let (mut steady, mut rebuilt) = (Vec::new(), Vec::new());
        let (mut harmless, mut flooded) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let alone = |server| latency::p99_us(server, self.services, rate, self.seconds);
            let beside = |what| latency::p99_us_beside(own, self.services, (what, rate), self.seconds);
            harmless.push(beside(Beside::Harmless)?);
            flooded.push(beside(Beside::Flood)?);
            steady.push(alone(own)?);
            rebuilt.push(alone(changed.server.address)?);
            if let Some(bar) = bar {
                bar.inc(4);
            }
        }
        let (p99_us, rebuild_p99_us) = (median(&mut steady), median(&mut rebuilt));
        let (harmless_p99_us, flood_p99_us) = (median(&mut harmless), median(&mut flooded));
        Ok(Latencies {
            rebuild_p99_ratio: rebuild_p99_us / p99_us,
            p99_us,
            rebuild_p99_us,
            flood_p99_ratio: flood_p99_us / harmless_p99_us,
            harmless_p99_us,
            flood_p99_us,
        })
    }
}

/// One server's samples.
#[derive(Default)]
struct Samples(Vec<load::Sample>);

#[derive(Default)]
struct Figures {
    knot: Samples,
    knot_tcp: Samples,
    floor: Samples,
    own: Samples,
    own_tcp: Samples,
    many: Samples,
}

impl Samples {
    /// Microseconds of CPU a query, the median.
    fn cost(&self) -> f64 {
        median(&mut self.0.iter().map(|sample| sample.us_cpu_per_query).collect::<Vec<_>>())
    }

    /// Queries a second, the median.
    fn rate(&self) -> f64 {
        median(&mut self.0.iter().map(|sample| sample.queries_per_second).collect::<Vec<_>>())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A free port for UDP and TCP on the loopback address. Somebody may take it before it is used; then the start fails
/// and says so.
fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?)
}

fn text(report: &Report) -> String {
    let ratio = |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    let knot = report.knot.as_deref().unwrap_or("Knot DNS (not installed: apt-get install knot)");
    let mut lines = format!(
        "CPU a query over UDP, {} services, medians of {} rounds{}\n\n\
         {:34} {:>9} {:>9}\n",
        report.services,
        report.rounds,
        if report.dnstap { ", dnstap on" } else { "" },
        "server",
        "µs",
        "ratio"
    );
    let mut line = |what: &str, us: Option<f64>, of: &str, value: Option<f64>| {
        let us = us.map_or("-".to_owned(), |us| format!("{us:.2}"));
        lines += &format!("{what:34} {us:>9} {:>9} {of}\n", ratio(value));
    };
    line("Reveille", Some(report.us_cpu_per_query), "", Some(1.0));
    line(knot, report.knot_us_cpu_per_query, "Reveille over it", report.ratio_to_knot);
    line("bare echo", Some(report.floor_us_cpu_per_query), "Reveille over it", Some(report.ratio_to_floor));
    line("Reveille, a million services", None, "over the figure above", report.million_ratio);
    line("Reveille over TCP", Some(report.tcp_us_cpu_per_query), "over Knot DNS", report.tcp_ratio_to_knot);
    let latencies = &report.latencies;
    let bytes = report.million_bytes_per_service.unwrap_or(report.bytes_per_service);
    lines += &format!(
        "\nsaturated at {:.0} queries a second; {bytes} bytes resident a service; {} lost\n\
         p99 at half of that: {:.0} µs; with the view changed every {} ms: {:.0} µs, ratio {:.2}\n\
         p99 of one client beside as many harmless questions: {:.0} µs; beside a flood: {:.0} µs, ratio {:.2}\n",
        report.queries_per_second,
        report.lost,
        latencies.p99_us,
        serve::CHANGE_EVERY_MS,
        latencies.rebuild_p99_us,
        latencies.rebuild_p99_ratio,
        latencies.harmless_p99_us,
        latencies.flood_p99_us,
        latencies.flood_p99_ratio
    );
    lines
}
