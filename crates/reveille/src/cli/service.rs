//! `reveille service …`, `wake`, `hibernate` and `terminate`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use reveille_api::types::{
    DeployReply, LoadReport, ReplicaReport, RungReport, ServiceDetail, ServiceSummary, VerbReply,
    WarmUpReport, WarmUpTime,
};
use reveille_api::{Client, CloneRequest, Connections, Time, TimeError, Unstored, Wait};
use reveille_core::model::{DomainName, PortSpec, Rung};

use super::output::{bytes, duration, table};
use super::remote::runtime;
use super::why::of_late;
use super::{Daemon, Output, vitals};

/// Verbs of `reveille service`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Add a service
    Add(Box<Add>),
    /// List all services
    List(Daemon),
    /// Show all about one service
    Show(One),
    /// Make a sleeping service's last state the first one of a new service
    Clone(CloneArgs),
    /// Give a sleeping service another image or other resources; the next wake is a cold boot
    Redeploy(Redeploy),
    /// Give a sleeping service the image, the resources and the version of before its last redeploy
    Rollback(Rollback),
    /// End a service's virtual machine and forget the service; its versions stay in the object store, its disk in
    /// `removed` of the state directory
    Remove(One),
}

/// Options of `reveille service redeploy`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  reveille service redeploy web --image web-2 --hibernate\n\n\
    What was taken of the service before stays in the object store; `reveille service rollback web` goes back to it.")]
pub struct Redeploy {
    #[command(flatten)]
    one: One,
    /// Image, by name or content address; `reveille image list` shows them
    #[arg(long, required_unless_present_any = ["cpus", "memory_mib"])]
    image: Option<String>,
    /// Virtual CPUs
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory in MiB
    #[arg(long)]
    memory_mib: Option<u32>,
    /// Put it to sleep first
    #[arg(long)]
    hibernate: bool,
    /// Go on even if the last version is on this host alone, and is lost by that
    #[arg(long)]
    discard: bool,
}

/// Options of `reveille service rollback`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  reveille service rollback web --hibernate\n\n\
    Typed again, it goes forward to what was rolled back.")]
pub struct Rollback {
    #[command(flatten)]
    one: One,
    /// Put it to sleep first
    #[arg(long)]
    hibernate: bool,
    /// Go on even if the last version is on this host alone, and is lost by that
    #[arg(long)]
    discard: bool,
}

/// One service.
#[derive(Debug, Args)]
pub struct One {
    /// Full name, or a first label that only one service has
    service: DomainName,
    #[command(flatten)]
    daemon: Daemon,
}

/// Options of `reveille service clone`.
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// The service that sleeps
    service: DomainName,
    /// Full name of the new one
    name: DomainName,
    /// Its stable IPv4 address; default: the next one of the pool
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Also if the guest has no agent, so that nobody can tell it that it is another
    #[arg(long)]
    allow_identical: bool,
    #[command(flatten)]
    daemon: Daemon,
}

/// Options of `reveille service add`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  reveille service add web.vm.test --image demo --port tcp/8080")]
pub struct Add {
    /// Full name, such as hello.vm.test
    #[arg(required_unless_present = "spec")]
    name: Option<DomainName>,
    /// Image, by name or content address; `reveille image list` shows them
    #[arg(long, required_unless_present = "spec")]
    image: Option<String>,
    /// Port on which the service is reached, such as tcp/8080; may be given several times
    #[arg(long = "port", value_name = "PORT", required_unless_present = "spec")]
    ports: Vec<PortSpec>,
    /// Virtual CPUs
    #[arg(long)]
    cpus: Option<u32>,
    /// Memory in MiB
    #[arg(long)]
    memory_mib: Option<u32>,
    /// Stable IPv4 address; default: the next one of the pool
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Stable IPv6 address
    #[arg(long)]
    address6: Option<Ipv6Addr>,
    /// Readiness is a GET of this path on the first TCP port, instead of a TCP handshake
    #[arg(long, value_name = "PATH")]
    ready_http: Option<String>,
    /// What is done before clients are let in: a warm-up profile, or auto; `reveille profile list` shows them
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Sleep after this long without an open connection or a packet
    #[arg(long, value_name = "MS")]
    idle_ms: Option<u64>,
    /// The rung on which it sleeps: local or armed
    #[arg(long, value_name = "RUNG")]
    rest: Option<String>,
    /// What a question for the sleeping service is answered with: immediate or hold
    #[arg(long, value_name = "POLICY")]
    answer: Option<String>,
    /// Order in the wake queue: higher first
    #[arg(long)]
    priority: Option<u8>,
    /// Read the whole spec as JSON from this file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "image", "ports"])]
    spec: Option<PathBuf>,
    #[command(flatten)]
    daemon: Daemon,
}

impl Verb {
    /// Carries the verb out.
    ///
    /// # Errors
    /// If the daemon does not answer or refuses.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                let spec = add.spec()?;
                let detail = runtime()?
                    .block_on(async { anyhow::Ok(add.daemon.client().await?.add_service(&spec).await?) })?;
                output.print(&detail, |detail| {
                    format!("{} has the address {}", detail.summary.name, detail.summary.address)
                })
            }
            Self::List(daemon) => {
                let services =
                    runtime()?.block_on(async { anyhow::Ok(daemon.client().await?.services().await?) })?;
                output.print(&services, |services| list(services))
            }
            Self::Show(one) => {
                let detail = runtime()?.block_on(async {
                    anyhow::Ok(one.daemon.client().await?.service(&one.service).await?)
                })?;
                output.print(&detail, show)
            }
            Self::Clone(CloneArgs { service, name, address, allow_identical, daemon }) => {
                let asked = CloneRequest { name, address, allow_identical };
                let detail = runtime()?.block_on(async {
                    anyhow::Ok(daemon.client().await?.clone_service(&service, &asked).await?)
                })?;
                output.print(&detail, |detail| {
                    format!("{} has the address {}", detail.summary.name, detail.summary.address)
                })
            }
            Self::Redeploy(redeploy) => redeploy.run(output),
            Self::Rollback(rollback) => rollback.run(output),
            Self::Remove(one) => {
                runtime()?.block_on(async {
                    anyhow::Ok(one.daemon.client().await?.remove_service(&one.service).await?)
                })?;
                let removed = serde_json::json!({ "removed": one.service });
                output.print(&removed, |_| {
                    format!(
                        "{} is gone; its versions stay in the object store, and a disk or version that this host had \
                         is in `removed` of the state directory",
                        one.service
                    )
                })
            }
        }
    }
}

impl Add {
    fn spec(&self) -> anyhow::Result<serde_json::Value> {
        if let Some(file) = &self.spec {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            return serde_json::from_str(&text).with_context(|| file.display().to_string());
        }
        let mut spec = serde_json::json!({ "name": self.name, "image": self.image, "ports": self.ports });
        let mut resources = serde_json::Map::new();
        resources.extend(self.cpus.map(|cpus| ("cpus".to_owned(), cpus.into())));
        resources.extend(self.memory_mib.map(|mib| ("memory_mib".to_owned(), mib.into())));
        spec["resources"] = resources.into();
        if let Some(path) = &self.ready_http {
            let port = self.ports.iter().find(|port| port.to_string().starts_with("tcp/"));
            let port = port.context("--ready-http needs a TCP port")?.number;
            spec["ready"] = serde_json::json!({ "check": "http", "port": port, "path": path });
        }
        for (key, value) in [
            ("address", self.address.map(|address| address.to_string().into())),
            ("address6", self.address6.map(|address| address.to_string().into())),
            ("priority", self.priority.map(serde_json::Value::from)),
            ("profile", self.profile.clone().map(serde_json::Value::from)),
        ] {
            if let Some(value) = value {
                spec[key] = value;
            }
        }
        let policy = [
            ("idle_ms", self.idle_ms.map(serde_json::Value::from)),
            ("rest", self.rest.clone().map(serde_json::Value::from)),
            ("answer", self.answer.clone().map(serde_json::Value::from)),
        ];
        let policy = policy.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        spec["policy"] = policy.collect::<serde_json::Map<_, _>>().into();
        Ok(spec)
    }
}

fn list(services: &[ServiceSummary]) -> String {
    if services.is_empty() {
        return "no services yet; `reveille service add --help` says how to add one".to_owned();
    }
    let rows: Vec<[String; 8]> = services
        .iter()
        .map(|service| {
            let ports: Vec<String> = service.ports.iter().map(ToString::to_string).collect();
            [
                service.name.to_string(),
                service.state.word().to_owned(),
                service.phase.to_string(),
                service.rung.to_string(),
                service.health.to_string(),
                service.address.to_string(),
                ports.join(","),
                service.open_connections.to_string(),
            ]
        })
        .collect();
    table(["NAME", "STATE", "PHASE", "RUNG", "HEALTH", "ADDRESS", "PORTS", "OPEN"], &rows)
}

fn wakes(p50: Option<u32>, p95: Option<u32>) -> String {
    match (p50, p95) {
        (Some(p50), Some(p95)) => {
            format!("{} (p50), {} (p95)", duration(p50.into()), duration(p95.into()))
        }
        _ => "not measured yet".to_owned(),
    }
}

/// What was measured on one rung.
fn on_rung(of: &RungReport) -> (&'static str, String) {
    let woken = (of.wakes > 0).then(|| format!("wakes in {}", wakes(of.wake_ms_p50, of.wake_ms_p95)));
    let held = of.held_kib.map(|kib| format!("holds {}", bytes(kib << 10)));
    let warmed = of.warm_up_ms_p50.map(|ms| format!("of that {} warm-up", duration(ms.into())));
    let first = [("with", of.first_warmed_ms_p50), ("without", of.first_straight_ms_p50)]
        .map(|(how, ms)| ms.map(|ms| format!("first byte in {} {how} the restore set", duration(ms.into()))));
    let warmed = warmed.into_iter().chain(first.into_iter().flatten());
    (of.rung.word(), woken.into_iter().chain(warmed).chain(held).collect::<Vec<_>>().join("; "))
}

/// How long a set may take.
pub fn warm_up_time(time: &WarmUpTime) -> String {
    let WarmUpTime { set, total_ms_max, effective_ms_max } = time;
    let cut = if effective_ms_max < total_ms_max {
        format!(" of its {}: policy.{} leaves no more", duration(*total_ms_max), set.setting())
    } else {
        String::new()
    };
    format!("{}, up to {}{cut}", set.word(), duration(*effective_ms_max))
}

/// What was last done to warm it up, step by step.
fn warm_up(last: &WarmUpReport) -> Vec<(&'static str, String)> {
    let WarmUpReport { profile, why, set, at, took_ms, runs, result, steps } = last;
    let chosen = why.as_ref().map(|why| format!(", since {why}")).unwrap_or_default();
    let again = if *runs > 1 { format!(", begun {runs} times") } else { String::new() };
    let (set, took, result) = (set.word(), duration(*took_ms), result.word());
    let mut rows =
        vec![("warm-up", format!("{profile}{chosen}: {set} set at {at}, {took}, {result}{again}"))];
    rows.extend(steps.iter().map(|step| {
        let tries = if step.tries > 1 { format!(", {} tries", step.tries) } else { String::new() };
        let (took, result) = (duration(step.took_ms), step.result.word());
        ("  step", format!("{}: {result} in {took}{tries}; {}", step.name, step.detail))
    }));
    rows
}

/// Most rungs of a forecast that are shown.
const FORESEEN_SHOWN_MAX: usize = 4;

/// How many instances there are to be, and those beside the primary.
fn instances(detail: &ServiceDetail) -> impl Iterator<Item = (&'static str, String)> {
    let load = detail.load.as_ref().map(|load| {
        let crowd = if load.panics { ", a crowd" } else { "" };
        let LoadReport { stable, panic, target, wanted, foreseen, of_group_percent, .. } = load;
        let foreseen = match (foreseen, of_group_percent) {
            (0, _) => String::new(),
            (most, 0) => format!(", {most} by forecast"),
            (most, share) => format!(", {most} by forecast ({share} % of it as its group)"),
        };
        let text = format!(
            "{stable} at a time, {panic} of late{crowd}; {wanted} instances wanted{foreseen}, each to carry {target}"
        );
        ("load", text)
    });
    let replicas = detail.replicas.iter().map(|replica| {
        let failed = replica.failure.as_ref().map_or(String::new(), |failure| format!(": {}", failure.cause));
        let ReplicaReport { instance, phase, phase_since, in_use, .. } = replica;
        ("replica", format!("{instance} {phase} since {phase_since}, {in_use} clients{failed}"))
    });
    load.into_iter().chain(replicas)
}

fn show(detail: &ServiceDetail) -> String {
    let summary = &detail.summary;
    let ports: Vec<String> = summary.ports.iter().map(ToString::to_string).collect();
    let version = detail.version.as_ref().map_or_else(
        || "none".to_owned(),
        |version| format!("{} of {}, {}", version.number, version.at, bytes(version.stored_bytes)),
    );
    let stored = match (&detail.foreign, &detail.stored) {
        (Some(host), _) => format!("served by the host {host}"),
        (None, None) => "none".to_owned(),
        (None, Some(stored)) if detail.stored_is_current => {
            format!("{}, which is the last state", stored.number)
        }
        (None, Some(stored)) => format!("{} of {}; it has run since", stored.number, stored.at),
    };
    let mut rows = vec![
        ("name", summary.name.to_string()),
        ("state", format!("{} since {}", summary.state.word(), detail.phase_since)),
        ("phase, rung", format!("{}, {}", summary.phase, summary.rung)),
        ("address", summary.address.to_string()),
        ("ports", ports.join(", ")),
        ("image", summary.image.clone()),
        ("resources", format!("{} CPU, {} MiB", summary.resources.cpus, summary.resources.memory_mib)),
        ("instance", detail.instance.to_string()),
        ("connections", format!("{} open, {} held", summary.open_connections, summary.held_clients)),
        ("last activity", summary.last_activity.to_string()),
        ("health", vitals::health(detail)),
        ("version", version),
        ("in the object store", stored),
        ("wake", wakes(detail.wake_ms_p50, detail.wake_ms_p95)),
        ("cold boot", wakes(detail.boot_ms_p50, detail.boot_ms_p95)),
    ];
    rows.extend(detail.rungs.iter().filter(|of| of.rung > Rung::Cold).map(on_rung));
    rows.extend(detail.profile.iter().map(|profile| ("profile", profile.clone())));
    rows.extend(detail.warm_up_times.iter().map(|time| ("  set", warm_up_time(time))));
    rows.extend(detail.warm_up.iter().flat_map(warm_up));
    rows.extend([(
        "sleeps after",
        format!("{} idle, on the rung {}", duration(detail.policy.idle_ms), detail.policy.rest),
    )]);
    rows.extend(detail.foreseen.iter().take(FORESEEN_SHOWN_MAX).map(|stay| {
        ("foreseen", format!("{} from {} until {}: {}", stay.rung, stay.from, stay.until, stay.why))
    }));
    rows.extend(instances(detail));
    rows.extend(vitals::rows(detail));
    if let Some(at) = &detail.wake_at {
        rows.push(("woken at", at.to_string()));
    }
    rows.push((
        "agent",
        match detail.agent.as_deref() {
            None => "not known before it has run".to_owned(),
            Some("none") => "none: no veto, no frozen file systems, no clones".to_owned(),
            Some(known) => known.to_owned(),
        },
    ));
    if let Some(from) = detail.rolling_back {
        rows.push(("rolling back", format!("to version {from}; it wakes when that is done")));
    }
    rows.extend(of_late(detail));
    if let Some(failure) = &summary.failure {
        rows.push(("failure", format!("{} at {}", failure.cause, failure.at)));
    }
    rows.iter().map(|(key, value)| format!("{key:14} {value}\n")).collect()
}

/// Options of `reveille wake`.
#[derive(Debug, Args)]
pub struct Wake {
    #[command(flatten)]
    one: One,
    /// Return as soon as the wake is accepted
    #[arg(long)]
    no_wait: bool,
    /// Not now, but then: a time such as 2030-01-31T04:00:00Z, +SECONDS from now, or never
    #[arg(long, value_name = "TIME", value_parser = WakeTime::parse)]
    at: Option<WakeTime>,
}

/// Options of `reveille hibernate`.
#[derive(Debug, Args)]
pub struct Hibernate {
    #[command(flatten)]
    one: One,
    /// Return as soon as it is accepted
    #[arg(long)]
    no_wait: bool,
    /// Cut open connections
    #[arg(long)]
    force: bool,
}

/// Options of `reveille terminate`.
#[derive(Debug, Args)]
pub struct Terminate {
    #[command(flatten)]
    one: One,
    /// Return as soon as it is accepted
    #[arg(long)]
    no_wait: bool,
}

impl One {
    /// A client; the service is put to sleep first if `hibernate` says so.
    async fn asleep(&self, hibernate: bool) -> anyhow::Result<Client> {
        let client = self.daemon.client().await?;
        if hibernate {
            client.hibernate(&self.service, Connections::Keep, Wait::UntilDone).await?;
        }
        Ok(client)
    }
}

const fn unstored(discard: bool) -> Unstored {
    if discard { Unstored::Discard } else { Unstored::Keep }
}

impl Redeploy {
    fn run(self, output: Output) -> anyhow::Result<()> {
        let Self { one, image, cpus, memory_mib, hibernate, discard } = self;
        let wanted = reveille_api::types::Redeploy { image, cpus, memory_mib };
        let reply = runtime()?.block_on(async {
            let client = one.asleep(hibernate).await?;
            anyhow::Ok(client.redeploy(&one.service, &wanted, unstored(discard), Wait::UntilDone).await?)
        })?;
        output.print(&reply, deployed)
    }
}

impl Rollback {
    fn run(self, output: Output) -> anyhow::Result<()> {
        let Self { one, hibernate, discard } = self;
        let reply = runtime()?.block_on(async {
            let client = one.asleep(hibernate).await?;
            anyhow::Ok(client.rollback(&one.service, unstored(discard), Wait::UntilDone).await?)
        })?;
        output.print(&reply, deployed)
    }
}

fn deployed(reply: &DeployReply) -> String {
    let DeployReply { service, image, cpus, memory_mib, changed, restored, warnings } = reply;
    let runs = format!("{service} runs {image} with {cpus} CPU and {memory_mib} MiB");
    let told = match (changed, restored) {
        (false, _) => format!("{runs} already"),
        (true, None) => format!("{runs} from its next wake on, which is a cold boot"),
        (true, Some(reply)) => format!("{runs}; {}", super::snapshot::restored(reply)),
    };
    warnings.iter().fold(told, |told, warning| format!("{told}\nWarning: {warning}"))
}

/// Whether a verb is waited for.
pub const fn wait(no_wait: bool) -> Wait {
    if no_wait { Wait::UntilAccepted } else { Wait::UntilDone }
}

/// When a service is to be woken by itself.
#[derive(Debug, Clone, Copy)]
struct WakeTime(Option<Time>);

impl WakeTime {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self(None));
        }
        let Some(seconds) = text.strip_prefix('+') else {
            return text.parse().map(|at| Self(Some(at))).map_err(|error: TimeError| error.to_string());
        };
        let seconds: u32 = seconds.parse().map_err(|_| "write +SECONDS".to_owned())?;
        Ok(Self(Some(Time(crate::clock::Clock::wall().plus_ms(u64::from(seconds) * 1_000)))))
    }
}

impl Wake {
    /// Wakes.
    ///
    /// # Errors
    /// If the daemon does not answer, refuses, or the start fails.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let reply = runtime()?.block_on(async {
            let client = self.one.daemon.client().await?;
            anyhow::Ok(match self.at {
                None => client.wake(&self.one.service, wait(self.no_wait)).await?,
                Some(WakeTime(at)) => client.wake_at(&self.one.service, at).await?,
            })
        })?;
        output.print(&reply, told)
    }
}

impl Hibernate {
    /// Puts to sleep.
    ///
    /// # Errors
    /// If the daemon does not answer, refuses, or the capture fails.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let connections = if self.force { Connections::Cut } else { Connections::Keep };
        let reply = runtime()?.block_on(async {
            let client = self.one.daemon.client().await?;
            anyhow::Ok(client.hibernate(&self.one.service, connections, wait(self.no_wait)).await?)
        })?;
        output.print(&reply, told)
    }
}

impl Terminate {
    /// Ends.
    ///
    /// # Errors
    /// If the daemon does not answer or refuses.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let reply = runtime()?.block_on(async {
            let client = self.one.daemon.client().await?;
            anyhow::Ok(client.terminate(&self.one.service, wait(self.no_wait)).await?)
        })?;
        output.print(&reply, told)
    }
}

fn told(reply: &VerbReply) -> String {
    let under_way = if reply.done { "" } else { ", under way" };
    format!(
        "{} is {} (phase {}){under_way}, at {}",
        reply.name,
        reply.state.word(),
        reply.phase,
        reply.address
    )
}
