//! A daemon of the benchmark's own, and services that sleep when they are told to.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use reveille_api::types::Wake as WakeReport;
use reveille_api::{Client, Connections, Wait};
use reveille_core::model::{DomainName, Phase, ReadyCheck, Rung, ServiceSpec};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::memory::process_in;
use super::probe::get;
use crate::config::{Config, Zone};

/// Longest wake before it counts as lost.
pub const WAKE_MAX: Duration = Duration::from_secs(30);
/// Longest start of the daemon, and longest time until a service sleeps again.
const SETTLE_MAX: Duration = Duration::from_secs(120);

/// A service that has run once and sleeps.
#[derive(Debug)]
pub struct Asleep {
    /// Its name.
    pub name: DomainName,
    /// Its stable address.
    pub address: Ipv4Addr,
    /// What its page said that only the same guest says again; empty if it has no such line.
    pub nonce: String,
}

/// A daemon of the benchmark's own. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// Speaks to it.
    pub client: Client,
    state_dir: PathBuf,
}

impl Daemon {
    /// Starts it; returns when it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let file = config.daemon.state_dir.join("reveille.toml");
        std::fs::write(&file, toml::to_string(config)?)?;
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
        let daemon = crate::cli::Daemon { api: format!("http://{}", config.api.listen), token_file: None };
        let client = daemon.client().await?;
        Ok(Self { child, client, state_dir: config.daemon.state_dir.clone() })
    }

    /// Waits until the service sleeps on that rung.
    ///
    /// # Errors
    /// If it does not get there.
    pub async fn asleep_on(&self, name: &DomainName, rung: Rung) -> anyhow::Result<()> {
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

    /// The wakes of a service from that rung.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn wakes(&self, name: &DomainName, rung: Rung) -> anyhow::Result<Vec<WakeReport>> {
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

    /// The process of the service's guest, if there is one.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn process(&self, name: &DomainName) -> anyhow::Result<Option<u32>> {
        let instance = self.client.service(name).await?.instance;
        Ok(process_in(&self.state_dir.join("instances").join(instance.to_string())))
    }

    /// Boots a service for the first time, asks for its nonce and puts it to sleep.
    ///
    /// # Errors
    /// If it does not come up, or does not sleep.
    pub async fn first_sleep(&self, name: &str, port: u16) -> anyhow::Result<Asleep> {
        let name: DomainName = name.parse()?;
        let address = self.client.wake(&name, Wait::UntilDone).await?.address;
        let answer = get(TcpStream::connect((address, port)).await?, "/", WAKE_MAX).await?;
        let nonce = answer.line("boot-nonce").unwrap_or_default().to_owned();
        self.client.hibernate(&name, Connections::Cut, Wait::UntilDone).await?;
        Ok(Asleep { name, address, nonce })
    }

    /// Ends it as an operator does.
    ///
    /// # Errors
    /// If it does not end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        timeout(SETTLE_MAX, self.child.wait()).await.context("the daemon did not stop")??;
        Ok(())
    }
}

/// A config for a daemon beside others of this host, with nothing in it but the zone `bench.test`. `number` tells it from
/// others of the same benchmark.
///
/// # Errors
/// If no port can be had.
pub fn config(config: &Config, state_dir: &Path, number: u8) -> anyhow::Result<Config> {
    let mut bench = Config { qemu: config.qemu.clone(), ..Config::default() };
    bench.daemon.state_dir = state_dir.to_owned();
    bench.daemon.on_stop = crate::config::OnStop::Terminate;
    (bench.dns.listen, bench.api.listen) = (vec![free_port()?], free_port()?);
    // A pool of its own, so that it runs beside another daemon of this host.
    let third = std::process::id() % 256;
    bench.relay.pool = format!("127.{}.{third}.0/24", 127 - number);
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
    Ok(bench)
}

/// A service that sleeps on the rung `rest` when it is told to, and only then.
///
/// # Errors
/// If a name is none.
pub fn service(
    label: &str,
    image: &str,
    port: u16,
    memory_mib: u32,
    rest: Rung,
) -> anyhow::Result<ServiceSpec> {
    let mut spec: ServiceSpec = serde_json::from_value(serde_json::json!({
        "name": format!("{label}.bench.test"),
        "image": image,
        "ports": [format!("tcp/{port}")],
        "resources": { "cpus": 1, "memory_mib": memory_mib },
    }))?;
    spec.ready = Some(ReadyCheck::Http { port, path: "/".to_owned() });
    spec.policy.idle_ms = 3_600_000;
    spec.policy.grace_ms = 0;
    spec.policy.min_on_ms = 0;
    spec.policy.rest = rest;
    Ok(spec)
}

fn free_port() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
