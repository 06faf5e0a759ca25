//! The server that is measured: the query room with everything on, from a view of services that nobody starts.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use clap::Args;
use reveille_core::answer::{ServiceView, View, ZoneDefaults, Zones};
use reveille_core::model::{DomainName, Phase, Timestamp, VmState};
use reveille_dns::dnstap::DnstapOut;
use reveille_dns::limit::{Gate, GateConfig, WakeMode};
use reveille_dns::{DnsConfig, DnsServer};
use tokio::sync::{mpsc, watch};

use super::load::{Random, SERVER_CPU, Server, pinned};
use crate::clock::Clock;

/// How often the view is changed where that is asked for.
pub const CHANGE_EVERY_MS: u64 = 100;
/// Services that each change is about.
const CHANGED_SERVICES: u32 = 100;
/// Between two looks into the rings of what was observed.
const DRAIN_EVERY: Duration = Duration::from_millis(50);
/// More answers a second than one processor gives.
const ANSWERS_PER_S: u32 = 1_000_000;
/// Most observations that are taken out of a ring at a time.
const DRAINED_MAX: usize = 4_096;

/// Options of the process.
#[derive(Debug, Args)]
pub struct Serve {
    /// Services
    #[arg(long)]
    services: u32,
    /// Change the view this often, in milliseconds; 0: never
    #[arg(long)]
    change_every_ms: u64,
    /// Tell of queries and answers at this socket
    #[arg(long)]
    dnstap: Option<PathBuf>,
}

/// The process, and what it says of itself.
pub struct Own {
    /// The process.
    pub server: Server,
    /// Resident memory over the services.
    pub bytes_per_service: u64,
}

impl Serve {
    /// Serves until the process is ended; says where, and what a service takes, in its first line.
    pub fn run(self) -> anyhow::Result<()> {
        // One thread for the rest: what is measured is the thread that answers.
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let before = resident_bytes()?;
        let zone = zone()?;
        let services = (0..self.services).map(|n| Arc::new(service(n, false)));
        let view = View::new(1, Zones::new([Arc::new(zone)]), services, View::default_monitors());
        let bytes_per_service = resident_bytes()?.saturating_sub(before) / u64::from(self.services);
        let shared = Arc::new(ArcSwap::from_pointee(view));
        let (generation, generations) = watch::channel(1);
        let (wakes, mut asks) = mpsc::channel(1);
        let clock = Clock::start();
        let config = DnsConfig {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            udp_threads: 1,
            gate: Some(Arc::new(gate(clock.now())?)),
            dnstap: DnstapOut {
                to: self.dnstap.map_or(String::new(), |socket| format!("unix:{}", socket.display())),
                responses: true,
                ..DnstapOut::default()
            },
            ..DnsConfig::default()
        };
        let now = Arc::new(move || clock.now());
        let mut server = DnsServer::bind(&config, Arc::clone(&shared), generations, wakes, now)?;
        let address = server.addresses().first().copied().context("no address")?;
        println!("{address} {bytes_per_service}");
        std::io::stdout().flush()?;
        let mut rings = server.take_rings();
        let mut drain = tokio::time::interval(DRAIN_EVERY);
        let every = Duration::from_millis(self.change_every_ms.max(1));
        let mut change = tokio::time::interval(every);
        let mut random = Random(3);
        let mut round = 0u32;
        let mut retired = None;
        loop {
            tokio::select! {
                _ = drain.tick() => {
                    for ring in &mut rings {
                        ring.drain(DRAINED_MAX, |seen| drop(std::hint::black_box(seen)));
                    }
                }
                _ = change.tick(), if self.change_every_ms > 0 => {
                    round += 1;
                    let changes = (0..CHANGED_SERVICES).map(|_| {
                        let service = service(random.below(self.services), round % 2 == 1);
                        (service.name.clone(), Some(Arc::new(service)))
                    });
                    let view = shared.load_full();
                    let next = view.generation + 1;
                    shared.store(Arc::new(view.with(next, changes)));
                    generation.send_replace(next);
                    // The one before last: no reader is in it any more.
                    drop(retired.replace(view));
                }
                Some(_) = asks.recv() => {}
            }
        }
    }
}

/// Starts the process.
pub fn start(services: u32, change_every_ms: u64, dnstap: Option<&Path>) -> anyhow::Result<Own> {
    let mut command = pinned(SERVER_CPU, std::env::current_exe()?);
    command.args(["bench", "dns", "serve"]);
    if let Some(socket) = dnstap {
        command.arg("--dnstap").arg(socket);
    }
    let mut child = command
        .args(["--services", &services.to_string(), "--change-every-ms", &change_every_ms.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the server")?;
    let line = first_line(&mut child)?;
    let (address, bytes) = line.split_once(' ').context("no address from the server")?;
    let server = Server::new(address.parse()?, child);
    Ok(Own { server, bytes_per_service: bytes.parse()? })
}

/// The first line that a child prints.
pub fn first_line(child: &mut Child) -> anyhow::Result<String> {
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    anyhow::ensure!(!line.is_empty(), "a process of the benchmark ended before it served");
    Ok(line.trim().to_owned())
}

/// The address of a service.
pub fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() + n)
}

/// A question for the address of a service.
pub fn question(id: u16, n: u32) -> Vec<u8> {
    question_for(id, &format!("svc{n}"))
}

/// A question for the address of a name in the zone.
pub fn question_for(id: u16, label: &str) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut packet = vec![high, low, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet.push(u8::try_from(label.len()).unwrap_or(63));
    packet.extend(label.as_bytes());
    packet.extend(b"\x02vm\x04test\x00\x00\x01\x00\x01");
    packet
}

/// Everything that the gate does is done, and nobody reaches a limit: all clients here have one address. Wakes are
/// judged against budgets that are soon spent; those that pass are not carried out.
fn gate(now: Timestamp) -> anyhow::Result<Gate> {
    let mut config = GateConfig::default();
    config.rate.exempt.clear();
    for (per_s, burst) in [
        (&mut config.rate.positive_per_s, &mut config.rate.positive_burst),
        (&mut config.rate.nodata_per_s, &mut config.rate.nodata_burst),
        (&mut config.rate.nxdomain_per_s, &mut config.rate.nxdomain_burst),
    ] {
        (*per_s, *burst) = (ANSWERS_PER_S, ANSWERS_PER_S);
    }
    config.wake.mode = WakeMode::DryRun;
    Ok(Gate::new(&config, [&"vm.test".parse::<DomainName>()?], now)?)
}

fn zone() -> anyhow::Result<reveille_core::answer::Zone> {
    let apex: DomainName = "vm.test".parse()?;
    let defaults = ZoneDefaults {
        name_servers: vec![(apex.prepend("ns1")?, vec![Ipv4Addr::LOCALHOST.into()])],
        hostmaster: apex.prepend("hostmaster")?,
        apex,
        serial: 1,
        ttl: 30,
        negative_ttl: 30,
    };
    defaults.zone().map_err(|faults| anyhow::anyhow!("{faults:?}"))
}

/// One service in ten is awake, one in twenty on its way up, the others sleep.
fn service(n: u32, other: bool) -> ServiceView {
    let (phase, state) = match (n % 20, other) {
        (0 | 1, false) | (2 | 3, true) => (Phase::Active, VmState::Active),
        (4, _) => (Phase::Restoring, VmState::Warming),
        _ => (Phase::Hibernated, VmState::Inactive),
    };
    // Always a name: only digits are put in.
    let name = format!("svc{n}.vm.test").parse().unwrap_or_else(|_| DomainName::root());
    ServiceView { phase, state, ttl_s: 30, counter: n + 1, ..ServiceView::asleep(name, address(n)) }
}

fn resident_bytes() -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("cannot read /proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("no resident size")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}
