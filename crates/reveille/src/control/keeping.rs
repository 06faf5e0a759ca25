//! Which versions are kept: what a service relies on stays, what its retention does not keep goes, and what nobody needs
//! any more is collected.
//!
//! A service is looked at after each of its versions that was sent, and all that this host owns together with the
//! garbage every `depot.collect_every_s`. Whatever is asked of the object store may fail or be cut short: it is
//! done the next time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use reveille_api::types::{PruneReport, PrunedVersion};
use reveille_core::model::{Cause, DomainName, Instance, SnapshotVersion, Timestamp};
use reveille_depot::names::VersionId;
use reveille_failpoint::failpoint;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Message;
use super::commands::Command;
use super::stock::{Judged, Stock};
use super::versions::{Versions, failed};
use crate::clock::Clock;

/// Services whose new version waits to be followed by a look at their older ones. One that finds no room is looked at
/// with all others.
pub const LOOKS_MAX: usize = 256;
/// The first look at everything comes at a host's own time within this, so that hosts which start together do not
/// collect together.
const FIRST_LOOK_MS_MAX: u64 = 15 * 60_000;

/// What a service goes by, and so stays whatever its age.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Relied {
    /// The version on the local disk.
    pub local: Option<SnapshotVersion>,
    /// The newest one in the object store, as far as this host knows.
    pub stored: Option<u64>,
    /// Whether the next wake starts from that.
    pub stored_is_current: bool,
    /// The one that it is being rolled back to, and the one of its former image.
    pub others: Vec<u64>,
}

impl Relied {
    /// What this instance goes by.
    pub fn of(row: &Instance) -> Self {
        let back = row.rolling_back.map(|roll_back| roll_back.from);
        let former = row.former.as_ref().and_then(|former| former.version);
        Self {
            local: row.version.clone(),
            stored: row.stored.as_ref().map(|version| version.number),
            stored_is_current: row.stored_is_current,
            others: back.into_iter().chain(former).collect(),
        }
    }

    /// Whether the service needs that version.
    pub fn needs(&self, number: u64) -> bool {
        self.stored == Some(number) || self.others.contains(&number)
    }
}

/// Asks the control loop what the service goes by; `None` when the daemon ends or the service is gone.
pub async fn relied(inbox: &mpsc::Sender<Message>, service: &DomainName) -> Option<Relied> {
    let (reply, answer) = oneshot::channel();
    inbox.send(Message::Command(Command::Relied(service.clone(), reply))).await.ok()?;
    Some(answer.await.ok()?.ok()?.1)
}

/// Begins what goes on beside the control loop for as long as the daemon runs: this host's services are kept its own,
/// and their versions looked after. Gives
/// how they are sent and fetched.
pub fn start(
    stock: Arc<Stock>,
    stored: mpsc::Receiver<DomainName>,
    inbox: &mpsc::Sender<Message>,
    clock: Clock,
) -> Arc<Versions> {
    let versions = Arc::clone(stock.versions());
    tokio::spawn(super::versions::keep(Arc::clone(&versions), inbox.clone()));
    tokio::spawn(keep(stock, stored, inbox.clone(), clock));
    versions
}

/// Looks after the versions of this host's services for as long as the daemon runs.
async fn keep(
    stock: Arc<Stock>,
    mut stored: mpsc::Receiver<DomainName>,
    inbox: mpsc::Sender<Message>,
    clock: Clock,
) {
    let every = stock.keeping().collect_every;
    let first = Duration::from_millis(stock.versions().offset_ms() % FIRST_LOOK_MS_MAX).min(every);
    let mut due = Instant::now() + first;
    loop {
        tokio::select! {
            service = stored.recv() => {
                let Some(service) = service else { return };
                let mut report = PruneReport::default();
                prune_service(&stock, &service, &inbox, clock.now(), (&mut report, Measure::No)).await;
                tell(&report);
            }
            () = sleep_until(due) => {
                match prune(&stock, &inbox, clock.now(), false).await {
                    Ok(report) => tell(&report),
                    Err(error) => tracing::warn!(%error, "garbage in the object store was not collected; it is tried again later"),
                }
                due = Instant::now() + every;
            }
        }
    }
}

fn tell(report: &PruneReport) {
    for version in &report.versions {
        tracing::info!(service = %version.service, version = version.number, verdict = version.verdict, "deleted");
    }
    for skipped in &report.skipped {
        tracing::warn!("{skipped}");
    }
    if report.garbage > 0 {
        let kib = report.garbage_bytes >> 10;
        tracing::info!(objects = report.garbage, kib, "garbage in the object store was collected");
    }
}

/// Deletes what nothing keeps of the services of this host, and collects the garbage of all; or tells what would go.
///
/// # Errors
/// The garbage cannot be told or taken away. What was deleted before stays deleted.
pub async fn prune(
    stock: &Stock,
    inbox: &mpsc::Sender<Message>,
    now: Timestamp,
    dry_run: bool,
) -> Result<PruneReport, Cause> {
    let mut report = PruneReport { dry_run, ..PruneReport::default() };
    for service in stock.versions().owned() {
        prune_service(stock, &service, inbox, now, (&mut report, Measure::Yes)).await;
    }
    let garbage = if dry_run { stock.plan_collection().await? } else { stock.collect().await? };
    (report.garbage, report.garbage_bytes) = garbage;
    Ok(report)
}

/// Whether it is told how much is freed: all manifests are read for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Yes,
    No,
}

async fn prune_service(
    stock: &Stock,
    service: &DomainName,
    inbox: &mpsc::Sender<Message>,
    now: Timestamp,
    (report, measure): (&mut PruneReport, Measure),
) {
    let Some(relied) = relied(inbox, service).await else { return };
    match delete_surplus(stock, service, &relied, now, (report, measure)).await {
        Ok(()) => {}
        Err(cause) => report.skipped.push(format!("the versions of {service} were not looked at: {cause}")),
    }
}

async fn delete_surplus(
    stock: &Stock,
    service: &DomainName,
    relied: &Relied,
    now: Timestamp,
    (report, measure): (&mut PruneReport, Measure),
) -> Result<(), Cause> {
    let judged = stock.judged(service, relied, now).await?;
    let goes = |one: &&Judged| one.verdict.as_ref().is_ok_and(|verdict| !verdict.stays());
    let surplus: Vec<&Judged> = judged.iter().filter(goes).collect();
    if surplus.is_empty() {
        return Ok(());
    }
    if measure == Measure::Yes {
        let going: BTreeSet<VersionId> = surplus.iter().map(|one| one.entry.id.clone()).collect();
        report.freed_bytes += stock.depot().freed_by(&going).await.map_err(failed)?;
    }
    for one in surplus {
        let number = one.entry.id.number;
        // What has come into use since it was judged is left.
        if !report.dry_run && !stock.versions().is_held(service, number) {
            failpoint!("control.retention.delete");
            stock.depot().delete(&one.entry.id).await.map_err(failed)?;
        }
        report.versions.push(PrunedVersion { service: service.clone(), number, verdict: one.sentence() });
    }
    Ok(())
}

impl Judged {
    /// Why it stays or goes.
    pub fn sentence(&self) -> String {
        match &self.verdict {
            Ok(verdict) => verdict.to_string(),
            Err(()) => "kept until it is deleted by hand: its manifest cannot be read".to_owned(),
        }
    }
}
