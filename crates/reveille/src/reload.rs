//! Reading the config again while the daemon runs, and the files that it names.
//!
//! ```text
//!   SIGHUP ─┐
//!   API ────┴─► read and check everything ─► control loop: what can fail ─► one new view ─► what has changed
//!                any fault: as before            any fault: as before
//! ```
//!
//! All that can be found wrong is found before anything changes, by the same reading as at a start and in
//! `reveille check`. Answering never waits: sockets stay, and who is answered from the view before is answered in
//! full from it. What a running daemon cannot change stays as it is and is named.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use reveille_api::ControlError;
use reveille_api::types::{HostSummary, ReloadReport};
use reveille_core::health::HealthPolicy;
use reveille_core::model::{DomainName, Policy};
use reveille_dns::limit::Gate;
use reveille_dns::sign::Signing;
use reveille_dns::tsig::Keyring;
use reveille_dns::{Certificate, CertificateSource, DnsServer, NotifyList};
use tokio::signal::unix::Signal;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::config::{Config, ConfigError};
use crate::control::{Command, Message};
use crate::encrypted::{self, Watched};
use crate::forecasts::Threshold;
use crate::profiles::Profiles;
use crate::zones::{Files, read_files};

/// What the parts of a running daemon share with a reload.
pub struct Live {
    /// The keys of all that sign and verify messages.
    pub keys: Keyring,
    /// Who is answered.
    pub gate: Arc<Gate>,
    /// Who is told of new serials.
    pub notify: NotifyList,
    /// The keys of signed zones.
    pub signing: Arc<Signing>,
    /// What TLS clients are shown.
    pub certificate: Option<Arc<Certificate>>,
    /// What the API tells.
    pub announced: ArcSwap<Announced>,
    /// What counts as an anomaly.
    pub threshold: Threshold,
}

impl Live {
    /// What these parts share.
    pub fn of(
        dns: &DnsServer,
        gate: Arc<Gate>,
        signing: Arc<Signing>,
        certificate: Option<&Watched>,
        announced: Announced,
        threshold: Threshold,
    ) -> Self {
        let certificate = certificate.map(|watched| Arc::clone(&watched.certificate));
        let announced = ArcSwap::from_pointee(announced);
        let (keys, notify) = (dns.keys(), dns.notify_list());
        Self { keys, gate, notify, signing, certificate, announced, threshold }
    }
}

/// What the API tells without asking the control loop.
#[derive(Debug, Clone)]
pub struct Announced {
    /// The daemon.
    pub about: HostSummary,
    /// The policy of services that do not say otherwise.
    pub policy: Policy,
    /// How those are probed.
    pub health: HealthPolicy,
    /// The warm-up profiles.
    pub profiles: Arc<Profiles>,
}

/// A config that was read, with its files, and found to be good as far as that can be told from outside.
pub struct Prepared {
    /// What is in force.
    pub before: Config,
    /// What is to be; what cannot change under way is as before.
    pub wanted: Config,
    /// The file, for the report.
    pub path: PathBuf,
    /// Its zones and keys.
    pub files: Files,
    /// The certificate, if it is another one.
    pub certificate: Option<Certificate>,
    /// Keys with values that the next start takes up.
    pub needs_restart: Vec<String>,
    /// Where it is to take effect.
    pub live: Arc<Live>,
}

impl fmt::Debug for Prepared {
    /// Without what the files say: secrets are among it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Reloads, one after another. Cloning shares it.
#[derive(Clone)]
pub struct Reloader(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// The config in force.
    running: Mutex<Config>,
    inbox: mpsc::Sender<Message>,
    live: Arc<Live>,
}

impl Reloader {
    /// Reloads the config file at `path` into the daemon that runs by `running`.
    pub fn new(path: &Path, running: Config, inbox: mpsc::Sender<Message>, live: Live) -> Self {
        let (path, running, live) = (path.to_owned(), Mutex::new(running), Arc::new(live));
        Self(Arc::new(Inner { path, running, inbox, live }))
    }

    /// Whether the service is declared in the config in force, and where that is.
    pub async fn declares(&self, service: &DomainName) -> Option<PathBuf> {
        let running = self.0.running.lock().await;
        let declared = running.service.iter().any(|spec| spec.name == *service);
        declared.then(|| self.0.path.clone())
    }

    /// What the API tells of the config in force.
    pub fn announced(&self) -> Arc<Announced> {
        self.0.live.announced.load_full()
    }

    /// Reads everything again and takes over what can be. Goes on to its end if nobody waits for it any more.
    ///
    /// # Errors
    /// Every fault; nothing has changed then. Or the daemon is stopping.
    pub async fn reload(&self) -> Result<ReloadReport, ControlError> {
        let own = self.clone();
        let reloading = tokio::spawn(async move { own.0.reload().await });
        reloading.await.unwrap_or_else(|error| Err(ControlError::Failed { detail: error.to_string() }))
    }

    /// Reloads whenever the signal comes, for as long as the daemon runs. Signals that come while one is under way
    /// are one.
    pub async fn at_each(self, mut signal: Signal) {
        while signal.recv().await.is_some() {
            match self.reload().await {
                Ok(report) => tell(&report),
                Err(ControlError::NotReloaded { reasons }) => {
                    for fault in reasons {
                        tracing::error!("not reloaded: {fault}");
                    }
                    tracing::error!("nothing is changed; mend what is said above and reload again");
                }
                Err(error) => tracing::error!(%error, "not reloaded"),
            }
        }
    }
}

fn tell(report: &ReloadReport) {
    for change in &report.changes {
        tracing::info!("reload: {} {}", change.key, change.change);
    }
    for warning in &report.warnings {
        tracing::warn!("reload: {warning}");
    }
    let next_start = report.needs_restart.join(", ");
    tracing::info!(file = report.file, changes = report.changes.len(), next_start, "reloaded");
}

impl Inner {
    async fn reload(&self) -> Result<ReloadReport, ControlError> {
        let mut running = self.running.lock().await;
        let (path, before, live) = (self.path.clone(), running.clone(), Arc::clone(&self.live));
        let prepared = tokio::task::spawn_blocking(move || prepare(path, before, live)).await;
        let prepared = prepared
            .map_err(|error| ControlError::Failed { detail: error.to_string() })?
            .map_err(|reasons| ControlError::NotReloaded { reasons })?;
        let wanted = prepared.wanted.clone();
        let gone = || ControlError::Unavailable { detail: "the daemon is stopping".to_owned() };
        let (reply, answer) = oneshot::channel();
        let command = Command::Reload(Box::new(prepared), reply);
        self.inbox.send(Message::Command(command)).await.map_err(|_| gone())?;
        let report = answer.await.map_err(|_| gone())??;
        *running = wanted;
        Ok(report)
    }
}

/// Reads the config and all that it names. Changes nothing.
fn prepare(path: PathBuf, before: Config, live: Arc<Live>) -> Result<Prepared, Vec<String>> {
    let config = Config::load(&path).map_err(|error| match error {
        ConfigError::Faults { path, faults } => {
            faults.iter().map(|fault| format!("{}: {fault}", path.display())).collect()
        }
        error @ (ConfigError::Unreadable(_) | ConfigError::Syntax { .. }) => vec![error.to_string()],
    })?;
    let (wanted, needs_restart) = config.keeping_what_stands(&before);
    let files = read_files(&wanted)?;
    let certificate = live.certificate.as_ref().and_then(|shown| other_certificate(&wanted, shown));
    let certificate = certificate.transpose().map_err(|error| vec![error])?;
    Ok(Prepared { before, wanted, path, files, certificate, needs_restart, live })
}

/// The certificate of the files, if it is not the one that is shown.
fn other_certificate(config: &Config, shown: &Certificate) -> Option<Result<Certificate, String>> {
    let source = encrypted::source(config)?;
    match source {
        CertificateSource::Files { .. } => {}
        // The server looks after its own by itself.
        CertificateSource::SelfSigned { .. } => return None,
    }
    match Certificate::open(source, SystemTime::now()) {
        Ok(other) if other.about() == shown.about() && other.source() == shown.source() => None,
        Ok(other) => Some(Ok(other)),
        Err(error) => Some(Err(error.to_string())),
    }
}
