//! What to send next: pure. Time and jitter come in, steps come out.

use std::collections::{BTreeMap, BTreeSet};

use domain::base::Serial;
use reveille_core::model::{DomainName, Timestamp};

use super::{Addresses, PublishStatus, Trouble};

/// Most names in one update.
pub const BATCH_NAMES_MAX: usize = 50;
/// Pause after the first failure, doubled after each further one.
pub const BACKOFF_MS: u64 = 1_000;
/// Longest pause after failures.
pub const BACKOFF_MS_MAX: u64 = 300_000;
/// Pause after the first refusal of a single name, doubled after each further one.
pub const REFUSED_MS: u64 = 60_000;
/// Longest pause after refusals of a single name.
pub const REFUSED_MS_MAX: u64 = 3_600_000;
/// Single names that are refused one after another before the other server is taken to refuse them all.
pub const REFUSED_IN_A_ROW_MAX: u32 = 3;
/// Refused names that the status names.
const REFUSED_NAMES_MAX: usize = 5;
/// Time between two looks at the serial.
pub const CHECK_MS: u64 = 60_000;
/// Time between the last update of several and the look at the serial that they have led to.
pub const CHECK_SOON_MS: u64 = 1_000;
/// How long a datagram that was not answered may still be on its way.
pub const LINGER_MS: u64 = 60_000;

/// What is known of a name at the other server: a durable row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// What it has, or was to have.
    pub addresses: Addresses,
    /// Whether the other server has confirmed it, and nothing was sent since.
    pub certain: bool,
}

/// Something to be made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The row is as given.
    Put(DomainName, Row),
    /// The other server has nothing of that name any more.
    Drop(DomainName),
    /// The other server's serial.
    Serial(u32),
}

/// Names whose addresses one update replaces; `None`: by nothing.
pub type Batch = Vec<(DomainName, Option<Addresses>)>;

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make this durable, then say so with [`Publication::noted`].
    Note(Vec<Note>),
    /// Send this update, then say what came of it with [`Publication::sent`].
    Send(Batch),
    /// Ask for the serial, then say what it is with [`Publication::checked`].
    Check,
    /// Nothing before that time, unless something changes.
    Wait(Timestamp),
}

/// What came of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was made.
    Done,
    /// Something in it is not to be; with fewer names it may be taken. One sentence says what.
    Refused(String),
    /// Nothing can be sent for now. One sentence says why.
    Failed(String),
}

/// What should be at an external primary, what is, and what to do about it.
#[derive(Debug)]
pub struct Publication {
    resend_ms: u64,
    wanted: BTreeMap<DomainName, Addresses>,
    rows: BTreeMap<DomainName, Row>,
    /// Names to send.
    due: BTreeSet<DomainName>,
    /// Names that are due again at that time: refused ones, and those of datagrams that may still arrive.
    later: BTreeSet<(Timestamp, DomainName)>,
    /// How often in a row each name was refused.
    refused: BTreeMap<DomainName, u32>,
    /// Names of datagrams that were not answered: until when they may arrive.
    lingering: BTreeMap<DomainName, Timestamp>,
    /// Rows (`None`: gone) and a serial that are not durable yet.
    unsaved: BTreeMap<DomainName, Option<Row>>,
    unsaved_serial: Option<u32>,
    serial: Option<u32>,
    sending: Option<Batch>,
    batch_names_max: usize,
    refused_in_a_row: u32,
    failures: u32,
    not_before: Timestamp,
    check_at: Timestamp,
    resend_at: Timestamp,
    last_success: Option<Timestamp>,
    trouble: Option<Trouble>,
}

impl Publication {
    /// What should be there (`wanted`), what is known (`rows`) and the last serial that was seen. Rows that are not
    /// certain, and those of names that are not wanted any more, are due at once; `jitter_permille`, from
    /// 0 to 1000, spreads the first full repetition.
    pub fn new(
        wanted: BTreeMap<DomainName, Addresses>,
        rows: BTreeMap<DomainName, Row>,
        serial: Option<u32>,
        resend_ms: u64,
        now: Timestamp,
        jitter_permille: u64,
    ) -> Self {
        let mut publication = Self {
            resend_ms,
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            refused: BTreeMap::new(),
            lingering: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            unsaved_serial: None,
            serial,
            sending: None,
            batch_names_max: BATCH_NAMES_MAX,
            refused_in_a_row: 0,
            failures: 0,
            not_before: now,
            check_at: now,
            resend_at: now.plus_ms(spread(resend_ms, jitter_permille)),
            last_success: None,
            trouble: None,
            wanted,
            rows,
        };
        let names: BTreeSet<DomainName> =
            publication.rows.keys().chain(publication.wanted.keys()).cloned().collect();
        for name in names {
            publication.look_at(name);
        }
        publication
    }

    /// The name is to have these addresses from now on, or none.
    pub fn set(&mut self, name: DomainName, addresses: Option<Addresses>) {
        match addresses {
            Some(addresses) => self.wanted.insert(name.clone(), addresses),
            None => self.wanted.remove(&name),
        };
        self.look_at(name);
    }

    /// What to do next. A step that was not reported yet is given again.
    pub fn next(&mut self, now: Timestamp) -> Step {
        self.ripen(now);
        if now < self.not_before {
            return Step::Wait(self.not_before);
        }
        if self.sending.is_none() && self.check_at <= now {
            return Step::Check;
        }
        if self.sending.is_none() {
            self.sending = self.begin_batch();
        }
        if !self.unsaved.is_empty() || self.unsaved_serial.is_some() {
            return Step::Note(self.notes());
        }
        if let Some(batch) = &self.sending {
            return Step::Send(batch.clone());
        }
        let later = self.later.first().map(|(at, _)| *at);
        let next = [self.check_at, self.resend_at].into_iter().chain(later).min();
        Step::Wait(next.unwrap_or(self.check_at))
    }

    /// Whether the notes became durable, or one sentence why not.
    pub fn noted(&mut self, result: Result<(), String>, now: Timestamp, jitter_permille: u64) {
        match result {
            Ok(()) => {
                self.unsaved.clear();
                self.unsaved_serial = None;
            }
            Err(text) => {
                // Nothing is sent that is not durable; it is chosen anew.
                self.sending = None;
                self.fail(text, now, jitter_permille);
            }
        }
    }

    /// What came of the update. `lingers`: a datagram with it was not answered and may still arrive.
    pub fn sent(&mut self, outcome: Outcome, lingers: bool, now: Timestamp, jitter_permille: u64) {
        let Some(batch) = self.sending.take() else { return };
        if lingers {
            for (name, _) in &batch {
                let until = now.plus_ms(LINGER_MS);
                self.lingering.insert(name.clone(), until);
                self.later.insert((until, name.clone()));
            }
        }
        match outcome {
            Outcome::Done => self.done(batch, now),
            Outcome::Failed(text) => {
                self.check_at = now;
                self.fail(text, now, jitter_permille);
            }
            Outcome::Refused(text) => self.refuse(batch, text, now, jitter_permille),
        }
    }

    /// The serial of the zone there, or why it cannot be had. `Ok(None)`: the server does not tell it. Gives whether
    /// it went backwards: the other server has lost what it had, and gets everything once more.
    pub fn checked(
        &mut self,
        answer: Result<Option<u32>, String>,
        now: Timestamp,
        jitter_permille: u64,
    ) -> bool {
        let serial = match answer {
            Ok(serial) => serial,
            Err(text) => {
                self.fail(text, now, jitter_permille);
                return false;
            }
        };
        self.check_at = now.plus_ms(CHECK_MS);
        self.last_success = Some(now);
        if self.due.is_empty() {
            // With something to send it is too early to say that all is well.
            self.recover();
        }
        let Some(serial) = serial else { return false };
        let went_back = self.serial.is_some_and(|before| Serial(serial) < Serial(before));
        if went_back {
            self.resend_all(now);
        }
        if self.serial != Some(serial) {
            self.serial = Some(serial);
            self.unsaved_serial = Some(serial);
        }
        went_back
    }

    /// How things stand.
    pub fn status(&self) -> PublishStatus {
        PublishStatus {
            names: self.wanted.len(),
            pending: self.due.len() + self.refused.len(),
            refused: self.refused.len(),
            refused_names: self.refused.keys().take(REFUSED_NAMES_MAX).cloned().collect(),
            last_success: self.last_success,
            trouble: self.trouble.clone(),
        }
    }

    // --- What is due -----------------------------------------------------------------------------------------

    /// Notes whether the name is to be sent.
    fn look_at(&mut self, name: DomainName) {
        if self.refused.contains_key(&name) {
            // Its time comes; until then nothing about it is sent.
            return;
        }
        let in_step = match (self.wanted.get(&name), self.rows.get(&name)) {
            (Some(wanted), Some(row)) => row.certain && row.addresses == *wanted,
            (None, None) => !self.lingering.contains_key(&name),
            (Some(_), None) | (None, Some(_)) => false,
        };
        if in_step {
            self.due.remove(&name);
        } else {
            self.due.insert(name);
        }
    }

    /// Makes due what its time has come for.
    fn ripen(&mut self, now: Timestamp) {
        while let Some((at, _)) = self.later.first()
            && *at <= now
            && let Some((_, name)) = self.later.pop_first()
        {
            if self.lingering.get(&name).is_some_and(|until| *until <= now) {
                self.lingering.remove(&name);
            }
            self.due.insert(name);
        }
        if self.resend_at <= now {
            self.resend_all(now);
        }
    }

    fn resend_all(&mut self, now: Timestamp) {
        self.resend_at = now.plus_ms(self.resend_ms);
        let names = self.wanted.keys().chain(self.rows.keys());
        self.due.extend(names.filter(|name| !self.refused.contains_key(*name)).cloned());
    }

    /// Takes the next names, and notes that what the other server has of them is in doubt from now on.
    fn begin_batch(&mut self) -> Option<Batch> {
        let names: Vec<DomainName> = self.due.iter().take(self.batch_names_max).cloned().collect();
        let mut batch = Batch::with_capacity(names.len());
        for name in names {
            let wanted = self.wanted.get(&name).copied();
            let known = self.rows.get(&name).copied();
            if let Some(addresses) = wanted.or(known.map(|row| row.addresses)) {
                let doubtful = Row { addresses, certain: false };
                if known.is_none_or(|row| row.certain) {
                    self.keep(&name, Some(doubtful));
                }
            }
            batch.push((name, wanted));
        }
        (!batch.is_empty()).then_some(batch)
    }

    fn keep(&mut self, name: &DomainName, row: Option<Row>) {
        match row {
            Some(row) => self.rows.insert(name.clone(), row),
            None => self.rows.remove(name),
        };
        self.unsaved.insert(name.clone(), row);
    }

    fn notes(&self) -> Vec<Note> {
        let rows = self.unsaved.iter().map(|(name, row)| match row {
            Some(row) => Note::Put(name.clone(), *row),
            None => Note::Drop(name.clone()),
        });
        rows.chain(self.unsaved_serial.map(Note::Serial)).collect()
    }

    // --- What came of it -------------------------------------------------------------------------------------

    fn done(&mut self, batch: Batch, now: Timestamp) {
        for (name, sent) in batch {
            self.refused.remove(&name);
            let row = match sent {
                // An older datagram may still undo it: it stays in doubt until that one cannot arrive any more.
                _ if self.lingering.contains_key(&name) => {
                    self.rows.get(&name).map(|row| Row { certain: false, ..*row })
                }
                Some(addresses) => Some(Row { addresses, certain: true }),
                None => None,
            };
            self.keep(&name, row);
            let waits = self.lingering.contains_key(&name) && self.wanted.get(&name).copied() == sent;
            if waits {
                self.due.remove(&name);
            } else {
                self.look_at(name);
            }
        }
        self.refused_in_a_row = 0;
        self.batch_names_max = (self.batch_names_max * 2).min(BATCH_NAMES_MAX);
        self.last_success = Some(now);
        self.recover();
        if self.due.is_empty() {
            self.check_at = self.check_at.min(now.plus_ms(CHECK_SOON_MS));
        }
    }

    /// With several names the fault is looked for one by one; a single one waits for its own time. When one after
    /// the other is refused it is not the names, and the other server is left alone for longer and longer.
    fn refuse(&mut self, batch: Batch, text: String, now: Timestamp, jitter_permille: u64) {
        let single = batch.len() == 1;
        self.batch_names_max = 1;
        if !single {
            self.note_trouble(text, now, now);
            return;
        }
        for (name, _) in batch {
            let times = self.refused.entry(name.clone()).or_insert(0);
            *times = times.saturating_add(1);
            let wait_ms = backoff(REFUSED_MS, REFUSED_MS_MAX, *times, jitter_permille);
            self.due.remove(&name);
            self.later.insert((now.plus_ms(wait_ms), name));
        }
        self.refused_in_a_row += 1;
        if self.refused_in_a_row >= REFUSED_IN_A_ROW_MAX {
            self.fail(text, now, jitter_permille);
        } else {
            self.note_trouble(text, now, now);
        }
    }

    fn fail(&mut self, text: String, now: Timestamp, jitter_permille: u64) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.plus_ms(backoff(BACKOFF_MS, BACKOFF_MS_MAX, self.failures, jitter_permille));
        self.note_trouble(text, now, self.not_before);
    }

    fn note_trouble(&mut self, text: String, now: Timestamp, next_try: Timestamp) {
        let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
        self.trouble = Some(Trouble { since, text, next_try });
    }

    /// The other server takes what it gets.
    fn recover(&mut self) {
        self.failures = 0;
        if self.refused.is_empty() {
            self.trouble = None;
        }
    }
}

/// `ms`, doubled with each further time up to `ms_max`, and from half of it to all of it by the jitter.
fn backoff(ms: u64, ms_max: u64, times: u32, jitter_permille: u64) -> u64 {
    let doubled = 1u64.checked_shl(times.saturating_sub(1)).and_then(|factor| ms.checked_mul(factor));
    spread(doubled.unwrap_or(ms_max).min(ms_max), jitter_permille)
}

/// From half of `ms` (jitter 0) to all of it (jitter 1000).
fn spread(ms: u64, jitter_permille: u64) -> u64 {
    ms / 2 + (ms / 2).saturating_mul(jitter_permille.min(1_000)) / 1_000
}
