//! What reports, and the beginning of a start, do to an instance's row.

use super::event::{Report, RequestError, Service};
use super::instance::{Cause, Failure, Former, Instance, RollBack, SnapshotVersion};
use super::phase::{Move, Phase, Rung};
use super::service::{AfterCrash, ServiceSpec};
use super::time::Timestamp;
use crate::warm_up;

/// Starts in a row from a version after which a cold boot is tried instead.
const RESTORE_ATTEMPTS_MAX: u32 = 2;

impl Instance {
    pub(super) fn note_traffic(
        &mut self,
        open_connections: u32,
        last_packet: Option<Timestamp>,
        now: Timestamp,
    ) {
        self.open_connections = open_connections;
        self.is_uncounted = false;
        let seen = if open_connections > 0 { Some(now) } else { last_packet };
        self.last_activity = self.last_activity.max(seen.unwrap_or_default());
    }

    pub(super) fn take_report(
        &mut self,
        service: &mut Service,
        report: Report,
        now: Timestamp,
    ) -> Result<(), RequestError> {
        match report {
            Report::Running => {
                self.step(Move::Running, now)?;
                self.running_since = Some(now);
                self.rung = Rung::Active;
                self.version = None;
                self.stored_is_current = false;
            }
            Report::WarmedUp { took_ms } => {
                self.warming_up = false;
                self.warmed_up = took_ms.is_some();
                took_ms.into_iter().for_each(|ms| self.measured.note_warm_up(self.start_from, ms));
            }
            Report::Ready => self.take_ready(service, now)?,
            Report::GateClosed => {
                if self.phase == Phase::Draining {
                    self.in_flight = false;
                }
            }
            Report::GateBusy { open_connections, last_packet } => {
                self.step(Move::Undrain, now)?;
                self.in_flight = false;
                self.sleep_asked = None;
                self.note_traffic(open_connections, Some(last_packet), now);
                service.demand = None;
            }
            Report::Captured { version } => self.take_captured(version, now)?,
            Report::CaptureAbandoned => {
                self.step(Move::Resumed, now)?;
                self.in_flight = false;
                self.version = None;
                self.rung = Rung::Active;
                self.last_activity = now;
                service.demand = None;
            }
            Report::CaptureFailed { cause } => {
                self.step(Move::Resumed, now)?;
                self.in_flight = false;
                self.rung = Rung::Active;
                self.sleep_asked = None;
                self.sleep_retry = Some((now.plus_ms(service.spec.policy.backoff_ms_max), cause));
                service.demand = None;
            }
            Report::Armed => self.take_rest(Rung::Armed, now)?,
            Report::Paused => self.take_rest(Rung::Paused, now)?,
            Report::Fetched { version } => self.take_fetched(service, version, now),
            Report::Evicted => {
                self.take_rest(Rung::Remote, now)?;
                self.version = None;
            }
            Report::RolledBack { version } => self.take_rolled_back(version, now),
            Report::RollBackFailed { cause } => self.end_roll_back(Some(cause)),
            Report::RestFailed { cause } => self.take_rest_failed(service, cause, now),
            Report::Disarmed => {
                self.in_flight = false;
                self.rung = self.coldest_rung(service);
            }
            Report::Lost { cause } => self.fail(service, cause, now)?,
            Report::Fenced { version } => self.take_fenced(service, version),
        }
        Ok(())
    }

    fn take_rest_failed(&mut self, service: &mut Service, cause: Cause, now: Timestamp) {
        if self.rung == Rung::Remote && matches!(cause, Cause::VersionUnusable { .. }) {
            self.take_unusable_fetch();
        }
        self.in_flight = false;
        let was = self.rung;
        self.rung = self.coldest_rung(service);
        let pause_ms = match &service.demand {
            // Nothing else can be tried for whoever waits.
            Some(_) if was == Rung::Remote && self.rung == Rung::Remote => {
                self.note_failed_try(service, cause, now)
            }
            // Whoever waits does not wait for the long pause.
            Some(_) => service.spec.policy.backoff_ms,
            None => service.spec.policy.backoff_ms_max,
        };
        self.rest_retry_at = Some(now.plus_ms(pause_ms));
    }

    fn take_ready(&mut self, service: &mut Service, now: Timestamp) -> Result<(), RequestError> {
        if !self.step(Move::Ready, now)? {
            return Ok(());
        }
        self.warming_up = false;
        let demand = service.demand.take();
        let waited_ms = now.ms_since(demand.as_ref().map_or(self.start_since, |demand| demand.since));
        if !std::mem::take(&mut self.ahead) || demand.is_some() {
            self.last_activity = self.last_activity.max(now);
        }
        let fetched = std::mem::take(&mut self.fetched_for_wake);
        if self.start_from > Rung::Cold {
            self.restores.push_ms(waited_ms);
            self.measured.note_wake(if fetched { Rung::Remote } else { self.start_from }, waited_ms);
        } else {
            self.boots.push_ms(waited_ms);
            self.measured.note_wake(Rung::Cold, waited_ms);
        }
        self.failure = None;
        self.unusable_fetches = 0;
        Ok(())
    }

    fn take_captured(&mut self, version: SnapshotVersion, now: Timestamp) -> Result<(), RequestError> {
        self.step(Move::Captured, now)?;
        self.in_flight = false;
        self.rung = Rung::Local;
        self.version_number_last = self.version_number_last.max(version.number);
        self.version = Some(version);
        self.hibernated_at = Some(now);
        self.running_since = None;
        self.sleep_asked = None;
        self.sleep_retry = None;
        self.open_connections = 0;
        self.judged = None;
        Ok(())
    }

    fn take_rest(&mut self, rung: Rung, now: Timestamp) -> Result<(), RequestError> {
        self.step(Move::Arm, now)?;
        self.in_flight = false;
        self.rung = rung;
        self.rest_retry_at = None;
        Ok(())
    }

    fn take_fetched(&mut self, service: &Service, version: SnapshotVersion, now: Timestamp) {
        self.in_flight = false;
        self.fetched_for_wake = service.demand.is_some();
        self.rung = Rung::Local;
        self.version = Some(version);
        self.rest_retry_at = None;
        let of_files = |failure: &mut Failure| {
            matches!(failure.cause, Cause::StoreFailed { .. } | Cause::VersionUnusable { .. })
        };
        // What was wrong with the files, or with getting them, is not wrong with these.
        if self.failure.take_if(of_files).is_some() && self.phase == Phase::Failed {
            self.phase = Phase::Hibernated;
            self.phase_since = now;
        }
    }

    /// What is asked for cannot be had from the object store. After a few tries in a row whoever waits is told so; gives
    /// the pause before the next one.
    fn note_failed_try(&mut self, service: &mut Service, cause: Cause, now: Timestamp) -> u64 {
        let policy = service.spec.policy;
        let attempts = self.failure.as_ref().map_or(0, |failure| failure.attempts) + 1;
        let gave_up = attempts >= policy.attempts_max;
        let pause_ms = if gave_up { policy.cooloff_ms } else { policy.backoff_ms };
        if gave_up {
            service.demand = None;
        }
        let version_suspected = self.version_suspected();
        let retry_at = now.plus_ms(pause_ms);
        self.failure = Some(Failure { cause, at: now, attempts, version_suspected, retry_at, gave_up });
        pause_ms
    }

    /// What the object store has is damaged, or not there. Reading it can have been at fault, so it is tried once more;
    /// who waits for it does not wait for ever.
    fn take_unusable_fetch(&mut self) {
        self.unusable_fetches += 1;
        if self.unusable_fetches >= RESTORE_ATTEMPTS_MAX {
            self.unusable_fetches = 0;
            self.stored = None;
            self.stored_is_current = false;
        }
    }

    fn take_fenced(&mut self, service: &Service, version: Option<SnapshotVersion>) {
        self.unfenced = false;
        self.in_flight = false;
        self.running_since = None;
        self.open_connections = 0;
        if let Some(version) = &version {
            self.version_number_last = self.version_number_last.max(version.number);
        }
        self.version = self.not_overtaken(version);
        self.stored_is_current |= self.has_stored_version();
        self.rung = self.coldest_rung(service);
        if self.phase == Phase::Off && self.rung > Rung::Cold {
            // Its start was called off before anything of the version was used up.
            self.phase = Phase::Hibernated;
        }
    }

    /// Nothing of what was before counts any more.
    pub(super) fn discard(&mut self) {
        self.failure = None;
        self.version = None;
        self.stored = None;
        self.stored_is_current = false;
        self.discarded = self.version_number_last;
        // What is on its way to the store comes too late.
        self.publishing = None;
        self.checkpointing = None;
        self.outdated = false;
        self.unfenced = true;
        self.sleep_asked = None;
    }

    /// It boots something else than what its version was taken of: that one, and what the store has of before, is not
    /// restored into it, whatever becomes of the guest.
    pub(super) fn leave_outdated(&mut self) {
        if std::mem::take(&mut self.outdated) {
            self.stored = None;
            self.discarded = self.version_number_last;
            self.failure = None;
        }
    }

    pub(super) fn begin_roll_back(&mut self, from: u64, highest: u64) {
        self.version_number_last = self.version_number_last.max(highest) + 1;
        self.rolling_back = Some(RollBack { from, number: self.version_number_last });
        self.roll_back_failure = None;
    }

    fn end_roll_back(&mut self, failure: Option<Cause>) {
        self.in_flight = false;
        self.rolling_back = None;
        self.roll_back_failure = failure;
    }

    /// The object store has something newer of another host, which is not to be put behind; or the roll-back itself, of
    /// which this host has not heard.
    fn overtake_roll_back(&mut self, newest: &SnapshotVersion) {
        if let Some(RollBack { number, .. }) = self.rolling_back.take()
            && number != newest.number
        {
            let detail = "another host has gone on with the service meanwhile".to_owned();
            self.roll_back_failure = Some(Cause::StoreFailed { detail });
        }
    }

    fn take_rolled_back(&mut self, version: SnapshotVersion, now: Timestamp) {
        self.end_roll_back(None);
        if self.phase != Phase::Hibernated {
            self.phase = Phase::Hibernated;
            self.phase_since = now;
        }
        self.rung = Rung::Remote;
        self.version_number_last = self.version_number_last.max(version.number);
        self.version = None;
        self.stored = Some(version);
        self.stored_is_current = true;
        self.outdated = false;
        self.publish_retry_at = None;
        self.rest_retry_at = None;
        self.failure = None;
    }

    /// The service is about to run something else: what there was is noted, and what was taken of it is not restored.
    pub fn note_other_spec(&mut self, was: &ServiceSpec, is: &ServiceSpec) {
        if (&was.image, was.resources) == (&is.image, is.resources) {
            return;
        }
        let ran_before = self.former.as_ref().map(|former| (&former.image, former.resources));
        if self.outdated && ran_before == Some((&is.image, is.resources)) {
            // Nothing of the other one ever ran: what is here fits again.
            self.outdated = false;
            self.former = Some(Former { image: was.image.clone(), resources: was.resources, version: None });
            return;
        }
        let stored = self.stored.as_ref().map(|version| version.number);
        let is_last = self.stored_is_current || self.has_stored_version();
        // A version that was outdated already is not one of what the service was to run meanwhile, and never did.
        let version = stored.filter(|_| is_last && !self.outdated);
        self.former = Some(Former { image: was.image.clone(), resources: was.resources, version });
        self.outdated = match self.phase {
            Phase::Off | Phase::Hibernated | Phase::Failed => self.version.is_some() || self.stored.is_some(),
            Phase::Booting
            | Phase::Restoring
            | Phase::Warming
            | Phase::Active
            | Phase::Draining
            | Phase::Hibernating => false,
        };
    }

    /// Whether the version on the local disk, of which nothing has run, is the one that the object store has.
    pub(super) fn has_stored_version(&self) -> bool {
        self.version.as_ref().zip(self.stored.as_ref()).is_some_and(|(own, stored)| is_same(own, stored))
    }

    /// The rung of an instance without a process.
    pub(crate) fn coldest_rung(&self, service: &Service) -> Rung {
        if self.version.is_some() {
            Rung::Local
        } else if self.can_fetch(service) {
            Rung::Remote
        } else {
            Rung::Cold
        }
    }

    /// Whether the version in the object store may be restored: nothing has run since, or the policy prefers it to what
    /// was lost with the guest.
    pub(crate) fn can_fetch(&self, service: &Service) -> bool {
        let preferred = service.spec.policy.after_crash == AfterCrash::LastVersion;
        self.stored.is_some() && (self.stored_is_current || preferred)
    }

    /// Whether there is a version that the object store does not have, and that is not on its way.
    pub(crate) fn wants_publishing(&self) -> bool {
        let number = |version: &SnapshotVersion| version.number;
        self.phase == Phase::Hibernated
            && self.publishing.is_none()
            && self.rolling_back.is_none()
            && self
                .version
                .as_ref()
                .map(number)
                .is_some_and(|own| self.stored.as_ref().map(number) != Some(own))
    }

    /// The service is this host's, in that epoch. What the store has of it may be newer than what is here: what was lost
    /// with a row, or what another host has made of it meanwhile.
    pub(crate) fn note_owned(
        &mut self,
        epoch: u64,
        newest: Option<(u64, SnapshotVersion)>,
        number_last: u64,
        now: Timestamp,
    ) {
        // A number that is in the store is not used again, also where the row that said so was not written.
        self.version_number_last = self.version_number_last.max(number_last);
        // What was ended for good may still be in the store.
        let newest =
            newest.filter(|(made_in, newest)| *made_in > self.epoch || newest.number > self.discarded);
        if let Some((made_in, newest)) = newest {
            if self.version.as_ref().is_some_and(|own| is_same(own, &newest)) {
                // It was sent, and the row that says so was not written.
                self.stored = Some(newest);
                // Of what is being started, or was and is not fenced yet, something may have run.
                self.stored_is_current |= !self.unfenced && self.phase != Phase::Restoring;
            } else if made_in > self.epoch {
                self.give_way(newest, now);
            } else if !self.stored_is_current
                && self.stored.as_ref().is_none_or(|stored| stored.number < newest.number)
            {
                self.stored = Some(newest);
            }
        }
        self.epoch = epoch;
    }

    /// Another host has gone on with the service, or this one knows nothing of it: that version is what there is to go
    /// on from. A process that is still here is ended, and a version that is, is no version any more.
    fn give_way(&mut self, newest: SnapshotVersion, now: Timestamp) {
        self.unfenced |= self.in_flight
            || self.rung >= Rung::Armed
            || !matches!(self.phase, Phase::Off | Phase::Hibernated | Phase::Failed);
        // What is under way reports of what is over.
        self.start += 1;
        self.in_flight = false;
        self.publishing = None;
        self.checkpointing = None;
        self.overtake_roll_back(&newest);
        // What was taken of another image is what is here.
        self.outdated = false;
        self.sleep_asked = None;
        self.failure = None;
        self.running_since = None;
        self.open_connections = 0;
        self.phase = Phase::Hibernated;
        self.phase_since = now;
        self.obsolete = self.version.take().map(|own| (own.number, own.at)).or(self.obsolete);
        self.stored = Some(newest);
        self.stored_is_current = true;
        self.rung = Rung::Remote;
    }

    /// What is intact on the disk, unless it was ended for good, or the object store has what has come of it since.
    pub(super) fn not_overtaken(&self, version: Option<SnapshotVersion>) -> Option<SnapshotVersion> {
        let counts = |own: &SnapshotVersion| {
            own.number > self.discarded && self.obsolete != Some((own.number, own.at))
        };
        version.filter(counts).filter(|own| {
            !self.stored_is_current || self.stored.as_ref().is_none_or(|stored| is_same(own, stored))
        })
    }

    pub(super) fn take_published(
        &mut self,
        service: &Service,
        number: u64,
        result: Result<SnapshotVersion, Cause>,
        now: Timestamp,
    ) {
        if self.publishing != Some(number) {
            return;
        }
        self.publishing = None;
        match result {
            Ok(version) => {
                self.publish_retry_at = None;
                // A roll-back may have put it behind meanwhile.
                if self.is_newest(&version) {
                    // A guest that is being started from it may have run by the time that anybody reads this.
                    self.stored_is_current = self.phase != Phase::Restoring
                        && self.version.as_ref().is_some_and(|own| own.number == number);
                    self.stored = Some(version);
                    if self.outdated
                        && let Some(former) = &mut self.former
                    {
                        former.version.get_or_insert(number);
                    }
                }
            }
            Err(_) => self.publish_retry_at = Some(now.plus_ms(service.spec.policy.backoff_ms_max)),
        }
    }

    fn is_newest(&self, version: &SnapshotVersion) -> bool {
        self.stored.as_ref().is_none_or(|stored| stored.number < version.number)
    }

    pub(super) fn take_checkpointed(
        &mut self,
        service: &Service,
        number: u64,
        result: Result<SnapshotVersion, Cause>,
        now: Timestamp,
    ) {
        if self.checkpointing != Some(number) {
            return;
        }
        self.checkpointing = None;
        match result {
            Ok(version) => {
                self.checkpoint_retry_at = None;
                // A sleep, or a roll-back, may have been quicker: its version is not to be forgotten for what was before.
                if self.is_newest(&version) {
                    self.stored = Some(version);
                    self.stored_is_current = false;
                }
            }
            Err(_) => self.checkpoint_retry_at = Some(now.plus_ms(service.spec.policy.backoff_ms_max)),
        }
    }

    pub(super) fn fail(
        &mut self,
        service: &mut Service,
        cause: Cause,
        now: Timestamp,
    ) -> Result<(), RequestError> {
        let policy = &service.spec.policy;
        let (was, was_starting) = (self.phase, self.phase.is_starting());
        if !self.step(Move::Fail, now)? {
            return Ok(());
        }
        let before = self.failure.as_ref().map_or(0, |failure| failure.attempts);
        // What failed for nobody is not held against who comes.
        let ahead = std::mem::take(&mut self.ahead) && service.demand.is_none();
        let attempts = if ahead {
            before
        } else if was_starting {
            before + 1
        } else {
            0
        };
        let gave_up = attempts >= policy.attempts_max;
        let pause_ms = match attempts {
            0 => 0,
            _ if ahead => 0,
            _ if gave_up => policy.cooloff_ms,
            n => policy.backoff_ms.saturating_mul(1 << (n - 1).min(20)).min(policy.backoff_ms_max),
        };
        if gave_up {
            service.demand = None;
        }
        if was == Phase::Restoring
            && matches!(cause, Cause::VersionUnusable { .. })
            && self.has_stored_version()
        {
            // Nothing has run: should the files here be damaged, those in the object store may not be.
            self.stored_is_current = true;
            self.take_unusable_fetch();
        }
        let version_suspected =
            if was_starting { self.version_suspected() + self.suspicion(&cause) } else { 0 };
        let retry_at = now.plus_ms(pause_ms);
        self.failure = Some(Failure { cause, at: now, attempts, version_suspected, retry_at, gave_up });
        self.unfenced = true;
        self.in_flight = false;
        self.fetched_for_wake = false;
        self.sleep_asked = None;
        self.open_connections = 0;
        Ok(())
    }

    fn version_suspected(&self) -> u32 {
        self.failure.as_ref().map_or(0, |failure| failure.version_suspected)
    }

    /// For how many failed starts from the version this one counts.
    fn suspicion(&self, cause: &Cause) -> u32 {
        match cause {
            _ if self.start_from == Rung::Cold => 0,
            // No room, no QEMU, no database: the host's fault, for which no guest is given up.
            Cause::StartFailed { .. } | Cause::StoreFailed { .. } => 0,
            // What an armed process could not load, a fresh one may: the fault can be the process's own.
            Cause::VersionUnusable { .. } if self.start_from < Rung::Armed => RESTORE_ATTEMPTS_MAX,
            Cause::VersionUnusable { .. }
            | Cause::VmmDied { .. }
            | Cause::VmmHung { .. }
            | Cause::PortDead { .. }
            | Cause::WarmUpFailed { .. }
            | Cause::StartTimedOut { .. }
            | Cause::CaptureFailed { .. }
            | Cause::Vetoed { .. } => 1,
        }
    }

    /// Whether the next start restores the version rather than boots the image.
    pub(crate) fn restores_next(&self) -> bool {
        let unusable = self.version_suspected() >= RESTORE_ATTEMPTS_MAX;
        self.version.is_some() && !unusable && !self.outdated
    }
}

impl Instance {
    /// Which start is begun, and whether it is ahead of demand, is known.
    pub(super) fn begin_warm_up(&mut self, spec: &ServiceSpec) {
        self.warmed_up = false;
        self.warming_up = match (spec.profile.as_deref(), self.start_from) {
            (None, _) => false,
            // It was warmed before it was stopped.
            (Some(_), Rung::Paused) => false,
            (Some(warm_up::AUTO), Rung::Remote | Rung::Local | Rung::Armed) => {
                let measured = self.measured.on(self.start_from);
                warm_up::takes_restore_set(measured, self.ahead, self.start).0
            }
            (Some(_), Rung::Cold | Rung::Remote | Rung::Local | Rung::Armed | Rung::Active) => true,
        };
    }

    pub(super) fn note_first_answer(&mut self, service: &Service, waited_ms: u64) {
        let warms = service.spec.profile.is_some();
        // Fetching takes what the object store takes.
        if warms && matches!(self.start_from, Rung::Local | Rung::Armed) && !self.fetched_for_wake {
            self.measured.note_first_answer(self.start_from, self.warmed_up, waited_ms);
        }
    }

    pub(super) fn begin_start(&mut self, from: Rung, now: Timestamp) {
        self.start += 1;
        self.start_from = from;
        self.start_since = now;
        self.in_flight = false;
        self.sleep_asked = None;
    }
}

/// Whether both are copies of the same version: a number alone is used by two hosts of which one does not know that it
/// has lost the service.
fn is_same(one: &SnapshotVersion, other: &SnapshotVersion) -> bool {
    (one.number, one.at) == (other.number, other.at)
}
