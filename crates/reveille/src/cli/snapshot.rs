//! `reveille snapshot …`: the versions of sleeping services in the object store.
//!
//! Most verbs are the daemon's. `export` and `import` work on the object store of a config file, so that a version can be
//! carried where no daemon runs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use reveille_api::types::{
    PruneReport, RestoreReply, VerifyReport, VersionDetail, VersionList, VersionSummary,
};
use reveille_api::{Depth, Pin, Unstored};
use reveille_core::model::DomainName;
use reveille_depot::archive;
use reveille_depot::names::{ServiceName, VersionId};
use reveille_depot::{Depot, Progress, Watch};

use super::output::{bytes, duration, table};
use super::remote::runtime;
use super::service::wait;
use super::{CONFIG_DEFAULT, Daemon, Output};
use crate::clock::Clock;
use crate::config::Config;
use crate::control::versions::service_name;

/// Verbs of `reveille snapshot`.
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  \
    reveille snapshot list web                  what there is to go back to, and why each version stays\n  \
    reveille snapshot restore web 3             the next wake starts from version 3\n  \
    reveille snapshot prune --dry-run           what would be deleted, and how much that frees\n  \
    reveille snapshot export web.vm.test 3 web-3.tar")]
pub enum Verb {
    /// List the versions of a service, with the reason why each stays or goes
    List(One),
    /// Show all about one version
    Show(Numbered),
    /// Check a version where it lies: every page of it
    Verify(Verify),
    /// Go back: make an older version the one that the next wake starts from
    Restore(Restore),
    /// Keep a version whatever its age
    Pin(Numbered),
    /// Keep a version no longer than others
    Unpin(Numbered),
    /// Delete a version
    Delete(Numbered),
    /// Delete what retention does not keep, and what nobody needs any more; the daemon does so by itself, too
    Prune(Prune),
    /// Write a version to a file, from the object store of a config file; no daemon is needed
    Export(Export),
    /// Put the version of such a file into the object store of a config file; no daemon is needed
    Import(Import),
}

/// One service.
#[derive(Debug, Args)]
pub struct One {
    /// Full name, or a first label that only one service has
    service: DomainName,
    #[command(flatten)]
    daemon: Daemon,
}

/// One version.
#[derive(Debug, Args)]
pub struct Numbered {
    /// Full name, or a first label that only one service has
    service: DomainName,
    /// The version's number
    version: u64,
    #[command(flatten)]
    daemon: Daemon,
}

/// Options of `reveille snapshot verify`.
#[derive(Debug, Args)]
#[command(after_help = "The exit status is 1 if anything is wrong with the version.")]
pub struct Verify {
    #[command(flatten)]
    one: Numbered,
    /// Look only whether everything is there with its length
    #[arg(long)]
    quick: bool,
}

/// Options of `reveille snapshot restore`.
#[derive(Debug, Args)]
#[command(
    after_help = "The service must sleep, be off or have failed. What it would have started from otherwise stays \
    in the object store under its own number.\n\nExample:\n  reveille hibernate web && reveille snapshot restore web 3"
)]
pub struct Restore {
    #[command(flatten)]
    one: Numbered,
    /// Go back even if the last version is on this host alone, and is lost by that
    #[arg(long)]
    discard: bool,
    /// Return as soon as it is accepted
    #[arg(long)]
    no_wait: bool,
}

/// Options of `reveille snapshot prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Only tell what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    daemon: Daemon,
}

/// Which object store.
#[derive(Debug, Args)]
pub struct Store {
    /// The config file whose section [depot] says where the object store is
    #[arg(long, short, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
}

/// Options of `reveille snapshot export`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  reveille snapshot export web.vm.test 3 web-3.tar --config reveille.toml\n\n\
    What is sealed stays sealed: whoever imports the file needs the key."
)]
pub struct Export {
    /// Full name, or a first label that only one service has
    service: DomainName,
    /// The version's number
    version: u64,
    /// The file, which must not be there
    file: PathBuf,
    #[command(flatten)]
    store: Store,
}

/// Options of `reveille snapshot import`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  reveille snapshot import web-3.tar --as web.lab.test --config reveille.toml\n\n\
    A host that starts afterwards, and has nothing of the service yet, wakes it from there. It needs the same image."
)]
pub struct Import {
    /// The file
    file: PathBuf,
    /// The service whose version it becomes; default: the one that it was taken of
    #[arg(long = "as", value_name = "NAME")]
    name: Option<DomainName>,
    #[command(flatten)]
    store: Store,
}

impl Verb {
    /// Carries the verb out.
    ///
    /// # Errors
    /// If the daemon or the object store does not answer or refuses, or a version is not intact.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        match self {
            Self::List(one) => {
                let asked = async { anyhow::Ok(one.daemon.client().await?.versions(&one.service).await?) };
                output.print(&runtime()?.block_on(asked)?, list)
            }
            Self::Show(one) => {
                let asked = async {
                    anyhow::Ok(one.daemon.client().await?.version(&one.service, one.version).await?)
                };
                output.print(&runtime()?.block_on(asked)?, show)
            }
            Self::Verify(verify) => verify.run(output),
            Self::Restore(restore) => restore.run(output),
            Self::Pin(one) => one.pin(Pin::Set, "is pinned", output),
            Self::Unpin(one) => one.pin(Pin::Cleared, "is not pinned", output),
            Self::Delete(one) => {
                let asked = async {
                    anyhow::Ok(one.daemon.client().await?.delete_version(&one.service, one.version).await?)
                };
                runtime()?.block_on(asked)?;
                one.print("is deleted", output)
            }
            Self::Prune(prune) => {
                let asked = async { anyhow::Ok(prune.daemon.client().await?.prune(prune.dry_run).await?) };
                output.print(&runtime()?.block_on(asked)?, pruned)
            }
            Self::Export(export) => export.run(output),
            Self::Import(import) => import.run(output),
        }
    }
}

impl Numbered {
    fn pin(&self, pin: Pin, now: &str, output: Output) -> anyhow::Result<()> {
        let asked = async {
            anyhow::Ok(self.daemon.client().await?.pin_version(&self.service, self.version, pin).await?)
        };
        runtime()?.block_on(asked)?;
        self.print(now, output)
    }

    fn print(&self, now: &str, output: Output) -> anyhow::Result<()> {
        let done = serde_json::json!({ "service": self.service, "number": self.version, "now": now });
        output.print(&done, |_| format!("version {} of {} {now}", self.version, self.service))
    }
}

impl Verify {
    fn run(self, output: Output) -> anyhow::Result<()> {
        let depth = if self.quick { Depth::Lengths } else { Depth::Pages };
        let Numbered { service, version, daemon } = &self.one;
        let asked =
            async { anyhow::Ok(daemon.client().await?.verify_version(service, *version, depth).await?) };
        let report = runtime()?.block_on(asked)?;
        output.print(&report, verified)?;
        anyhow::ensure!(report.intact, "version {version} of {service} is not intact");
        Ok(())
    }
}

impl Restore {
    fn run(self, output: Output) -> anyhow::Result<()> {
        let unstored = if self.discard { Unstored::Discard } else { Unstored::Keep };
        let Numbered { service, version, daemon } = &self.one;
        let reply = runtime()?.block_on(async {
            let client = daemon.client().await?;
            anyhow::Ok(client.restore_version(service, *version, unstored, wait(self.no_wait)).await?)
        })?;
        output.print(&reply, restored)
    }
}

// --- What is printed ---------------------------------------------------------------------------------------------

/// What a roll-back came to.
pub fn restored(reply: &RestoreReply) -> String {
    let RestoreReply { service, from, number, done, .. } = reply;
    let under_way = if *done { "" } else { "; it is under way" };
    format!("the next wake of {service} starts from version {from}, which is version {number} now{under_way}")
}

fn list(list: &VersionList) -> String {
    let mut text = if list.versions.is_empty() {
        format!("{} has no version yet; it gets one when it sleeps\n", list.service)
    } else {
        let rows: Vec<[String; 6]> = list.versions.iter().map(row).collect();
        table(["VERSION", "WHERE", "AGE", "OWN", "NOTE", "STAYS"], &rows)
    };
    if !list.has_depot {
        text +=
            "No object store is configured: older versions are not kept. Set `url` in the section [depot].\n";
    }
    text
}

fn row(version: &VersionSummary) -> [String; 6] {
    let mut notes = Vec::new();
    if version.is_next {
        notes.push("next".to_owned());
    }
    notes.extend(version.restored_from.map(|from| format!("as {from}")));
    if version.pinned {
        notes.push("pinned".to_owned());
    }
    let age = version.taken_at.map(|taken| duration(Clock::wall().ms_since(taken.0)));
    [
        version.number.to_string(),
        version.place.word().to_owned(),
        age.unwrap_or_else(|| "-".to_owned()),
        bytes(version.own_bytes),
        notes.join(", "),
        version.verdict.clone(),
    ]
}

fn show(detail: &VersionDetail) -> String {
    let summary = &detail.summary;
    let time = |at: Option<reveille_api::Time>| at.map_or("-".to_owned(), |at| at.to_string());
    let image = summary.image.as_deref().unwrap_or("-");
    let parts = detail.parts.iter();
    let parts: Vec<String> = parts
        .map(|part| format!("{} {} ({} not zero)", part.name, bytes(part.bytes), bytes(part.stored_bytes)))
        .collect();
    let needs: Vec<String> = detail.needs.iter().map(|(key, value)| format!("{key} {value}")).collect();
    let (cpus, memory_mib) = (summary.cpus.unwrap_or_default(), summary.memory_mib.unwrap_or_default());
    let sealed = if detail.sealed { ", sealed" } else { "" };
    let mut rows = vec![
        ("service", detail.service.to_string()),
        ("version", summary.number.to_string()),
        ("where", summary.place.word().to_owned()),
        (
            "taken",
            format!("{}, the guest stood still for {} ms", time(summary.taken_at), detail.paused_us / 1_000),
        ),
        ("stored", time(summary.published_at)),
        ("image", image.to_owned()),
        ("resources", format!("{cpus} CPU, {memory_mib} MiB")),
        ("needs", needs.join(", ")),
        ("parts", parts.join(", ")),
        (
            "in the store",
            format!(
                "{} of its own and {} shared, {} chunks{sealed}",
                bytes(summary.own_bytes),
                bytes(summary.shared_bytes),
                detail.chunks
            ),
        ),
        ("stays", summary.verdict.clone()),
    ];
    if let Some(from) = summary.restored_from {
        rows.push(("repeats", format!("version {from}, which was gone back to")));
    } else if let Some(parent) = summary.parent {
        rows.push(("after", format!("version {parent}")));
    }
    rows.iter().map(|(key, value)| format!("{key:14} {value}\n")).collect()
}

fn verified(report: &VerifyReport) -> String {
    let VerifyReport { service, number, intact, chunks, faults, faults_total } = report;
    if *intact {
        return format!("version {number} of {service} is intact: {chunks} chunks were looked at");
    }
    let shown = faults.len() as u64;
    let more =
        if *faults_total > shown { format!("and {} more\n", faults_total - shown) } else { String::new() };
    format!("{}\n{more}", faults.join("\n"))
}

fn pruned(report: &PruneReport) -> String {
    let rows: Vec<[String; 3]> = report
        .versions
        .iter()
        .map(|version| [version.service.to_string(), version.number.to_string(), version.verdict.clone()])
        .collect();
    let mut text = if rows.is_empty() { String::new() } else { table(["SERVICE", "VERSION", "WHY"], &rows) };
    text.extend(report.skipped.iter().map(|skipped| format!("{skipped}\n")));
    let (goes, is) = if report.dry_run { ("would go", "would be") } else { ("went", "is") };
    let count = |count: usize| if count == 1 { "1 version".to_owned() } else { format!("{count} versions") };
    text += &format!(
        "{} {goes}; {} that nobody else needs {is} freed one grace later. Garbage that {goes} now: {} in {} objects",
        count(report.versions.len()),
        bytes(report.freed_bytes),
        bytes(report.garbage_bytes),
        report.garbage
    );
    text
}

// --- Without a daemon --------------------------------------------------------------------------------------------

impl Store {
    /// The config and its object store.
    fn open(&self) -> anyhow::Result<(Config, Depot)> {
        let config = Config::load(&self.config)?;
        let settings = config.depot.opened().with_context(|| {
            format!("{} names no object store; set `url` in its section [depot]", self.config.display())
        })?;
        let depot = Depot::open(&settings)?;
        Ok((config, depot))
    }
}

/// A watch that draws a bar, where there is somebody to see it.
fn bar(output: Output, what: &'static str) -> anyhow::Result<(ProgressBar, Watch)> {
    let bar = if output.draws_progress() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}")?;
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(what);
    let drawn = bar.clone();
    let on_progress = move |progress: Progress| {
        drawn.set_length(progress.total_bytes);
        drawn.set_position(progress.done_bytes);
    };
    Ok((bar, Watch { on_progress: Some(Arc::new(on_progress)), ..Watch::default() }))
}

/// The service of that name in the depot; of a first label the only one that has it.
async fn found(depot: &Depot, name: &DomainName) -> anyhow::Result<ServiceName> {
    let wanted = service_name(name).map_err(|cause| anyhow::anyhow!("{cause}"))?;
    if name.label_count() != 1 {
        return Ok(wanted);
    }
    let beginning = format!("{wanted}.");
    let all = depot.services().await?;
    let mut fitting = all.into_iter().filter(|service| service.to_string().starts_with(&beginning));
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => {
            anyhow::bail!("{name} is the first label of several services; write the full name of one")
        }
        (None, _) => anyhow::bail!("the object store has nothing of a service {name}"),
    }
}

impl Export {
    fn run(self, output: Output) -> anyhow::Result<()> {
        let (_, depot) = self.store.open()?;
        let (bar, watch) = bar(output, "export")?;
        let id = runtime()?.block_on(async {
            let id = VersionId { service: found(&depot, &self.service).await?, number: self.version };
            depot.export(&id, &self.file, &watch).await?;
            anyhow::Ok(id)
        })?;
        bar.finish_and_clear();
        let written = self.file.metadata()?.len();
        let done = serde_json::json!({
            "service": id.service, "number": id.number, "file": self.file, "bytes": written
        });
        let text = format!("{id} is in {} ({})", self.file.display(), bytes(written));
        output.print(&done, |_| text)
    }
}

impl Import {
    fn run(self, output: Output) -> anyhow::Result<()> {
        let (config, depot) = self.store.open()?;
        let (bar, watch) = bar(output, "import")?;
        let was = archive::version_of(&self.file)?;
        let service = match &self.name {
            Some(name) => service_name(name).map_err(|cause| anyhow::anyhow!("{cause}"))?,
            None => was.service.clone(),
        };
        let id = runtime()?.block_on(async {
            let epoch = match depot.owner(&service).await? {
                None => 1,
                Some(owner) => {
                    let silent_ms = owner.silent_ms(depot.store_now_ms().await?);
                    anyhow::ensure!(
                        silent_ms > config.depot.takeover_s * 1_000,
                        "{service} is served by the host {}{}; stop that daemon and try again in a minute, or import \
                         it as another service with --as",
                        owner.host,
                        if owner.host == config.depot.host_name() { " (this one)" } else { "" }
                    );
                    owner.epoch
                }
            };
            let id = VersionId { number: depot.highest(&service).await? + 1, service };
            depot.import(&self.file, &id, epoch, &watch).await?;
            anyhow::Ok(id)
        })?;
        bar.finish_and_clear();
        let done = serde_json::json!({ "service": id.service, "number": id.number, "was": was });
        output.print(&done, |_| format!("{was} of {} is {id} now", self.file.display()))
    }
}
