//! What reports, and the beginning of a start, do to an instance's row.

use super::fleet::{Report, RequestError, Service};
use super::instance::{Cause, Failure, Instance, SnapshotVersion};
use super::phase::{Move, Phase, Rung};
use super::time::Timestamp;

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
            Report::Armed => {
                self.step(Move::Arm, now)?;
                self.in_flight = false;
                self.rung = Rung::Armed;
                self.arm_retry_at = None;
            }
            Report::ArmFailed { cause: _ } => {
                self.in_flight = false;
                self.rung = Rung::Local;
                self.arm_retry_at = Some(now.plus_ms(service.spec.policy.backoff_ms_max));
            }
            Report::Disarmed => {
                self.in_flight = false;
                self.rung = if self.version.is_some() { Rung::Local } else { Rung::Cold };
            }
            Report::Lost { cause } => self.fail(service, cause, now)?,
            Report::Fenced { version } => self.take_fenced(version),
        }
        Ok(())
    }

    fn take_ready(&mut self, service: &mut Service, now: Timestamp) -> Result<(), RequestError> {
        if !self.step(Move::Ready, now)? {
            return Ok(());
        }
        let asked = service.demand.take().map_or(self.start_since, |demand| demand.since);
        let waited_ms = now.ms_since(asked);
        if self.start_from > Rung::Cold {
            self.restores.push_ms(waited_ms);
        } else {
            self.boots.push_ms(waited_ms);
        }
        self.failure = None;
        self.last_activity = self.last_activity.max(now);
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
        Ok(())
    }

    fn take_fenced(&mut self, version: Option<SnapshotVersion>) {
        self.unfenced = false;
        self.in_flight = false;
        self.running_since = None;
        self.open_connections = 0;
        self.rung = if version.is_some() { Rung::Local } else { Rung::Cold };
        if let Some(version) = &version {
            self.version_number_last = self.version_number_last.max(version.number);
        }
        self.version = version;
    }

    pub(super) fn fail(
        &mut self,
        service: &mut Service,
        cause: Cause,
        now: Timestamp,
    ) -> Result<(), RequestError> {
        let policy = &service.spec.policy;
        let was_starting = self.phase.is_starting();
        if !self.step(Move::Fail, now)? {
            return Ok(());
        }
        let before = self.failure.as_ref().map_or(0, |failure| failure.attempts);
        let attempts = if was_starting { before + 1 } else { 0 };
        let gave_up = attempts >= policy.attempts_max;
        let pause_ms = match attempts {
            0 => 0,
            _ if gave_up => policy.cooloff_ms,
            n => policy.backoff_ms.saturating_mul(1 << (n - 1).min(20)).min(policy.backoff_ms_max),
        };
        if gave_up {
            service.demand = None;
        }
        self.failure = Some(Failure { cause, at: now, attempts, retry_at: now.plus_ms(pause_ms), gave_up });
        self.unfenced = true;
        self.in_flight = false;
        self.sleep_asked = None;
        self.open_connections = 0;
        Ok(())
    }

    /// Whether the next start restores the version rather than boots the image.
    pub(crate) fn restores_next(&self) -> bool {
        let unusable = self.failure.as_ref().is_some_and(|failure| match failure.cause {
            // No room, no QEMU: the host's fault, for which no guest is given up.
            Cause::StartFailed { .. } => false,
            // What an armed process could not load, a fresh one may: the fault can be the process's own.
            Cause::VersionUnusable { .. } if self.start_from < Rung::Armed => true,
            Cause::VersionUnusable { .. }
            | Cause::VmmDied { .. }
            | Cause::VmmHung { .. }
            | Cause::PortDead { .. }
            | Cause::StartTimedOut { .. }
            | Cause::CaptureFailed { .. } => failure.attempts >= RESTORE_ATTEMPTS_MAX,
        });
        self.version.is_some() && !unusable
    }
}

impl Instance {
    pub(super) fn begin_start(&mut self, from: Rung, now: Timestamp) {
        self.start += 1;
        self.start_from = from;
        self.start_since = now;
        self.in_flight = false;
        self.sleep_asked = None;
    }
}
