//! The task that keeps one external primary in step: carries the plan's steps out, and logs what changes.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reveille_core::model::{DomainName, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::ask::Peer;
use super::plan::{Note, Outcome, Publication, Row, Step};
use super::{Addresses, PublishConfig, PublishStatus, wire};
use crate::server::Clock;
use crate::tsig::{Key, Keyring};

/// What becomes of notes: one sentence if they are not durable.
pub type LedgerWrite = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Where the notes of one external primary are kept.
pub trait Ledger: Send + Sync + 'static {
    /// Makes all of them durable, or none.
    fn write(&self, notes: Vec<Note>) -> LedgerWrite;
}

/// The way of changes to the task: the newest word on each name, so it is bounded by their number and its sender
/// never waits.
#[derive(Debug, Clone, Default)]
pub struct Feed(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    changes: Mutex<BTreeMap<DomainName, Option<Addresses>>>,
    news: Notify,
}

impl Feed {
    /// The name is to have these addresses from now on, or none.
    pub fn set(&self, name: DomainName, addresses: Option<Addresses>) {
        self.0.changes.lock().unwrap_or_else(PoisonError::into_inner).insert(name, addresses);
        self.0.news.notify_one();
    }

    fn take(&self) -> BTreeMap<DomainName, Option<Addresses>> {
        std::mem::take(&mut *self.0.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A running task. Dropped, it ends at once, which loses nothing: the next start goes on from the notes.
#[derive(Debug)]
pub struct PublishTask {
    config: Arc<PublishConfig>,
    feed: Feed,
    status: watch::Receiver<PublishStatus>,
    task: JoinHandle<()>,
}

impl Drop for PublishTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl PublishTask {
    /// Begins. `wanted` is everything that should be there, `rows` and `serial` what was noted last time. Must be
    /// called inside a tokio runtime.
    pub fn start(
        config: PublishConfig,
        (keyring, key): (Keyring, Key),
        wanted: BTreeMap<DomainName, Addresses>,
        (rows, serial): (BTreeMap<DomainName, Row>, Option<u32>),
        ledger: Arc<dyn Ledger>,
        clock: Clock,
    ) -> Self {
        let config = Arc::new(config);
        let resend_ms = u64::try_from(config.resend.as_millis()).unwrap_or(u64::MAX);
        let plan = Publication::new(wanted, rows, serial, resend_ms, clock(), jitter_permille());
        let (seen, status) = watch::channel(plan.status());
        let feed = Feed::default();
        let peer = Peer { server: config.server, keyring, key };
        let worker =
            Worker { config: Arc::clone(&config), peer, plan, feed: feed.clone(), ledger, clock, seen };
        Self { config, feed, status, task: tokio::spawn(worker.run()) }
    }

    /// Where it publishes.
    pub fn config(&self) -> &PublishConfig {
        &self.config
    }

    /// Where it hears of changes.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// How far it is.
    pub fn status(&self) -> PublishStatus {
        self.status.borrow().clone()
    }

    /// Each change of how far it is.
    pub fn watch(&self) -> watch::Receiver<PublishStatus> {
        self.status.clone()
    }
}

struct Worker {
    config: Arc<PublishConfig>,
    peer: Peer,
    plan: Publication,
    feed: Feed,
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    seen: watch::Sender<PublishStatus>,
}

impl Worker {
    async fn run(mut self) {
        loop {
            for (name, addresses) in self.feed.take() {
                self.plan.set(name, addresses);
            }
            let step = self.plan.next(self.now());
            self.show();
            match step {
                Step::Note(notes) => {
                    let written = self.ledger.write(notes).await;
                    self.plan.noted(written, self.now(), jitter_permille());
                }
                Step::Send(batch) => {
                    let zone = &self.config.zone;
                    let asked = self.peer.ask(|id| wire::update(id, zone, &batch)).await;
                    let outcome = match asked.answer {
                        Ok((rcode, _)) => wire::outcome(rcode, zone),
                        Err(text) => Outcome::Failed(text),
                    };
                    self.plan.sent(outcome, asked.lingers, self.now(), jitter_permille());
                }
                Step::Check => self.check().await,
                Step::Wait(until) => self.wait(until).await,
            }
        }
    }

    async fn check(&mut self) {
        let zone = &self.config.zone;
        let asked = self.peer.ask(|id| wire::soa_question(id, zone)).await;
        let answer = asked.answer.map(|(_, answer)| wire::serial(&answer, zone));
        if self.plan.checked(answer, self.now(), jitter_permille()) {
            let PublishConfig { server, zone, .. } = &*self.config;
            tracing::warn!(%server, %zone, "the external primary went back to an older serial; publishing everything again");
        }
    }

    async fn wait(&self, until: Timestamp) {
        let pause = Duration::from_millis(until.as_ms().saturating_sub(self.now().as_ms()));
        // Without trouble a change ends the wait; with trouble the plan says anew how long it lasts.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.feed.0.news.notified() => {}
        }
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Publishes the status, and logs when a trouble comes, changes or goes.
    fn show(&self) {
        let status = self.plan.status();
        if *self.seen.borrow() == status {
            return;
        }
        let before = self.seen.send_replace(status.clone());
        let said = |status: &PublishStatus| status.trouble.as_ref().map(|trouble| trouble.text.clone());
        let PublishConfig { server, zone, .. } = &*self.config;
        match (said(&before), said(&status)) {
            (was, Some(trouble)) if was.as_ref() != Some(&trouble) => {
                let pending = status.pending;
                tracing::warn!(%server, %zone, pending, %trouble, "the external primary is not in step");
            }
            (Some(_), None) => tracing::info!(%server, %zone, "the external primary takes updates again"),
            (Some(_) | None, Some(_)) | (None, None) => {}
        }
    }
}

/// From 0 to 1000, so that many daemons do not retry in step.
fn jitter_permille() -> u64 {
    let mut bytes = [0; 2];
    // Without random numbers the pauses are the shortest ones.
    let _ = SystemRandom::new().fill(&mut bytes);
    u64::from(u16::from_be_bytes(bytes)) * 1_000 / u64::from(u16::MAX)
}
