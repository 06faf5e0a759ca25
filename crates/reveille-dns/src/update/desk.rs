//! Where updates are made: one group of them at a time, from the judgement over the disk to the answer.
//!
//! ```text
//!   free ──judge──► writing ──durable──► publishing ──published──► free      answered NOERROR
//!                      └──────failed───► mending ────durable─────► free      answered SERVFAIL at once
//! ```
//!
//! Whoever owns the desk does what takes time: it writes the rows that it is given and publishes the zones. While a
//! group is under way, further updates wait in their channel; so a burst costs one write, and each group is judged
//! against what everybody can see.

use reveille_core::answer::{Rcode, View, ZoneEdit};
use reveille_core::model::DomainName;
use tokio::sync::oneshot;

use super::book::{ChangedZone, Row, StaticBook};
use super::door::{UpdateAsk, Verdict};
use super::judge::{Refusal, Request};

/// Most updates that are judged, written and published together.
pub const UPDATE_GROUP_MAX: usize = 64;

/// Rows of one zone, to be written with all others of the same call in one transaction.
pub type ZoneRows = (DomainName, Vec<Row>);

/// The static records of all zones, and the updates that are being made.
#[derive(Debug, Default)]
pub struct UpdateDesk {
    book: StaticBook,
    work: Work,
}

type Answers = Vec<(oneshot::Sender<Verdict>, Verdict)>;

#[derive(Debug, Default)]
enum Work {
    #[default]
    Free,
    Writing {
        answers: Answers,
        changed: Vec<ChangedZone>,
    },
    Publishing {
        answers: Answers,
    },
    /// Rows whose write failed may be there all the same, and are written as everybody can see the zones.
    Mending {
        changed: Vec<ChangedZone>,
    },
}

impl UpdateDesk {
    /// A desk for these zones.
    pub fn new(book: StaticBook) -> Self {
        Self { book, work: Work::Free }
    }

    /// Whether the next group may come.
    pub fn is_free(&self) -> bool {
        matches!(self.work, Work::Free)
    }

    /// Judges a group. What it gives is to be written; nothing is given if nothing changes, and then every update
    /// is answered. Only for a free desk; updates that come to another one are told to come again.
    pub fn judge(&mut self, view: &View, asks: Vec<UpdateAsk>) -> Vec<ZoneRows> {
        if !self.is_free() {
            return Vec::new();
        }
        let requests =
            asks.iter().map(|ask| Request { message: &ask.message, key: &ask.key, client: ask.client });
        let verdicts = self.book.judge(view, requests);
        asks.iter().zip(&verdicts.answers).for_each(|(ask, verdict)| log(ask, verdict));
        let answers: Answers = asks.into_iter().map(|ask| ask.verdict).zip(verdicts.answers).collect();
        if verdicts.changed.is_empty() {
            send(answers);
            return Vec::new();
        }
        let rows =
            verdicts.changed.iter().map(|zone| (zone.edit.zone.apex().clone(), zone.rows.clone())).collect();
        self.work = Work::Writing { answers, changed: verdicts.changed };
        rows
    }

    /// The rows are durable. The zones that it gives are to be published, before [`UpdateDesk::published`].
    pub fn durable(&mut self) -> Vec<ZoneEdit> {
        match std::mem::take(&mut self.work) {
            Work::Writing { answers, changed } => {
                self.book.commit(&changed);
                self.work = Work::Publishing { answers };
                let edits = changed.into_iter().map(|zone| zone.edit);
                edits.filter(|edit| !edit.names.is_empty()).collect()
            }
            other @ (Work::Free | Work::Publishing { .. }) => {
                self.work = other;
                Vec::new()
            }
            Work::Mending { .. } => Vec::new(),
        }
    }

    /// The zones are published: now the updates are answered.
    pub fn published(&mut self) {
        match std::mem::take(&mut self.work) {
            Work::Publishing { answers } => send(answers),
            other @ (Work::Free | Work::Writing { .. } | Work::Mending { .. }) => self.work = other,
        }
    }

    /// The rows may not be durable: the updates that needed them are answered SERVFAIL. What it gives is to be
    /// written in their place; until that is durable, no update is judged.
    pub fn failed(&mut self, view: &View) -> Vec<ZoneRows> {
        let changed = match std::mem::take(&mut self.work) {
            Work::Writing { answers, changed } => {
                let no = || Refusal::new(Rcode::ServFail, "the change could not be saved");
                send(
                    answers.into_iter().map(|(to, verdict)| (to, verdict.and_then(|()| Err(no())))).collect(),
                );
                changed
            }
            Work::Mending { changed } => changed,
            other @ (Work::Free | Work::Publishing { .. }) => {
                self.work = other;
                return Vec::new();
            }
        };
        let rows = self.book.rows_of(view, &changed);
        if !rows.is_empty() {
            self.work = Work::Mending { changed };
        }
        rows
    }
}

/// What is not allowed, somebody should know; a prerequisite that does not hold is an ordinary answer.
fn log(ask: &UpdateAsk, verdict: &Verdict) {
    let UpdateAsk { message, key, client, .. } = ask;
    let zone =
        DomainName::from_wire(message.query.question.name.as_wire()).unwrap_or_else(|_| DomainName::root());
    match verdict {
        Ok(()) => tracing::debug!(%zone, %key, %client, "update"),
        Err(refusal) if refusal.rcode == Rcode::Refused => {
            tracing::info!(%zone, %key, %client, %refusal, "update refused");
        }
        Err(refusal) => tracing::debug!(%zone, %key, %client, %refusal, "update not made"),
    }
}

fn send(answers: Answers) {
    for (to, verdict) in answers {
        // Who does not wait any more has been told that it is not certain.
        let _ = to.send(verdict);
    }
}
