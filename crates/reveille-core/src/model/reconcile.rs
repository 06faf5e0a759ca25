//! After a restart of the daemon: what the state table says against what is found on the host.
//!
//! QEMU outlives the daemon, so the truth is on the host. Two facts decide everything:
//!
//! - **A version that is intact on disk** means that no vCPU has run since it was taken: whatever process there
//!   is has nothing of its own and may be ended.
//! - **No intact version** means that a process, if there is one, holds the only state of the guest: it is never
//!   ended here, but taken over and, if it stands still, let run again.

use super::instance::{Cause, Failure, Instance, SnapshotVersion};
use super::phase::{Phase, Rung};
use super::time::Timestamp;

/// What the driver found of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No process.
    Nothing {
        /// The version that is intact on disk, if any.
        version: Option<SnapshotVersion>,
    },
    /// A process whose vCPUs have not run since the version was taken: armed, half restored, or captured and
    /// not yet ended.
    Untouched {
        /// The version.
        version: SnapshotVersion,
        /// Whether it waits for a restore to begin and can still be used as armed.
        armed: bool,
    },
    /// A process whose vCPUs run.
    Running,
    /// A process whose vCPUs stand still in the middle of a capture.
    Stopped,
    /// A process that does not answer its control socket.
    Hung {
        /// How long it was waited for.
        waited_ms: u64,
    },
}

/// What is done about it, beside the instance's new row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconciled {
    /// Nothing: there is no process, or the armed one stays.
    Settled,
    /// End the process; it holds nothing.
    End,
    /// Take the process over and check readiness.
    Adopt,
    /// Let the vCPUs run again, then as `Adopt`.
    Resume,
}

/// The row and the step that make `row` agree with what was `found`.
pub fn reconcile(mut row: Instance, found: Found, now: Timestamp) -> (Instance, Reconciled) {
    let was = row.phase;
    row.in_flight = false;
    row.open_connections = 0;
    row.phase_since = now;
    row.start += 1;
    if was == Phase::Hibernated && row.unfenced && row.stored_is_current {
        // What is here was overtaken by another host, and its process was to be ended.
        return (row, Reconciled::Settled);
    }
    match found {
        Found::Nothing { version } => {
            let version = row.not_overtaken(version);
            row.unfenced = false;
            row.running_since = None;
            settle_without_process(&mut row, was, version, now);
            (row, Reconciled::Settled)
        }
        Found::Untouched { version, armed } => {
            row.running_since = None;
            row.unfenced = false;
            row.phase = Phase::Hibernated;
            row.version_number_last = row.version_number_last.max(version.number);
            row.version = row.not_overtaken(Some(version));
            row.stored_is_current |= row.has_stored_version();
            let armed = armed && row.version.is_some();
            row.rung = match &row.version {
                Some(_) if armed => Rung::Armed,
                Some(_) => Rung::Local,
                None if row.stored_is_current => Rung::Remote,
                // What it was of has been ended for good.
                None => {
                    row.phase = Phase::Off;
                    Rung::Cold
                }
            };
            // Nothing else is begun with it before its process has ended.
            row.in_flight = !armed;
            (row, if armed { Reconciled::Settled } else { Reconciled::End })
        }
        Found::Running | Found::Stopped => {
            let next = if matches!(found, Found::Running) { Reconciled::Adopt } else { Reconciled::Resume };
            row.phase = Phase::Warming;
            row.rung = Rung::Active;
            row.version = None;
            row.stored_is_current = false;
            row.rolling_back = None;
            row.unfenced = false;
            row.running_since = Some(row.running_since.unwrap_or(now).min(now));
            row.last_activity = now;
            // Its clients were cut with the daemon; it gets the full time of its kind of start to answer.
            row.start_since = now;
            (row, next)
        }
        Found::Hung { waited_ms } => {
            row.phase = Phase::Failed;
            row.unfenced = true;
            row.failure = Some(lost(Cause::VmmHung { waited_ms }, now));
            (row, Reconciled::Settled)
        }
    }
}

fn settle_without_process(row: &mut Instance, was: Phase, version: Option<SnapshotVersion>, now: Timestamp) {
    let had_process = match was {
        Phase::Booting | Phase::Warming | Phase::Active | Phase::Draining => true,
        // A restore or a capture that was cut short with the version intact has lost nothing.
        Phase::Restoring | Phase::Hibernating => version.is_none(),
        Phase::Off | Phase::Hibernated | Phase::Failed => false,
    };
    match version {
        Some(version) => {
            row.phase = Phase::Hibernated;
            row.rung = Rung::Local;
            row.version_number_last = row.version_number_last.max(version.number);
            row.version = Some(version);
            row.stored_is_current |= row.has_stored_version();
        }
        // What is not on this host's disk may be in the object store, and nothing has run since.
        None if row.stored_is_current => {
            row.phase = Phase::Hibernated;
            row.rung = Rung::Remote;
            row.version = None;
        }
        None => {
            row.rung = Rung::Cold;
            row.version = None;
            row.phase = if had_process || was == Phase::Failed { Phase::Failed } else { Phase::Off };
        }
    }
    if had_process {
        let detail = "it was gone when the daemon came back".to_owned();
        row.failure = Some(lost(Cause::VmmDied { detail }, now));
    }
}

/// The loss of an instance that ran: the next request may start it at once.
fn lost(cause: Cause, now: Timestamp) -> Failure {
    Failure { cause, at: now, attempts: 0, version_suspected: 0, retry_at: now, gave_up: false }
}

#[cfg(test)]
mod tests {
    use super::super::instance::InstanceId;
    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(5_000);

    fn row(phase: Phase) -> Instance {
        let mut row = Instance::new(InstanceId(1), "hello.vm.test".parse().unwrap(), Timestamp::default());
        row.phase = phase;
        row.start = 7;
        row
    }

    fn version() -> SnapshotVersion {
        SnapshotVersion { number: 3, at: NOW, stored_bytes: 1, paused_us: 1, image: "demo".into() }
    }

    #[test]
    fn no_phase_is_left_half_done_whatever_was_found() {
        let founds = [
            Found::Nothing { version: None },
            Found::Nothing { version: Some(version()) },
            Found::Untouched { version: version(), armed: true },
            Found::Untouched { version: version(), armed: false },
            Found::Running,
            Found::Stopped,
            Found::Hung { waited_ms: 1 },
        ];
        for phase in Phase::ALL {
            for found in &founds {
                let (after, _) = reconcile(row(phase), found.clone(), NOW);
                let settled = [Phase::Off, Phase::Hibernated, Phase::Failed, Phase::Warming];
                assert!(settled.contains(&after.phase), "{phase} with {found:?} became {}", after.phase);
                assert!(after.start > 7, "reports of the earlier daemon are told apart");
            }
        }
    }

    #[test]
    fn a_process_is_ended_only_beside_an_intact_version() {
        for phase in Phase::ALL {
            let (after, step) = reconcile(row(phase), Found::Running, NOW);
            assert_eq!((after.phase, step), (Phase::Warming, Reconciled::Adopt));
            let (after, step) = reconcile(row(phase), Found::Stopped, NOW);
            assert_eq!((after.phase, step), (Phase::Warming, Reconciled::Resume));
            let (after, step) =
                reconcile(row(phase), Found::Untouched { version: version(), armed: false }, NOW);
            assert_eq!((after.phase, after.rung, step), (Phase::Hibernated, Rung::Local, Reconciled::End));
            let (after, step) =
                reconcile(row(phase), Found::Untouched { version: version(), armed: true }, NOW);
            assert_eq!(
                (after.phase, after.rung, step),
                (Phase::Hibernated, Rung::Armed, Reconciled::Settled)
            );
            assert_eq!(after.version_number_last, 3);
        }
    }

    #[test]
    fn what_ran_and_is_gone_says_so_and_may_start_at_once() {
        for phase in [Phase::Booting, Phase::Warming, Phase::Active, Phase::Draining, Phase::Hibernating] {
            let (after, _) = reconcile(row(phase), Found::Nothing { version: None }, NOW);
            let failure = after.failure.unwrap();
            assert_eq!((after.phase, failure.retry_at, failure.gave_up), (Phase::Failed, NOW, false));
            assert!(matches!(failure.cause, Cause::VmmDied { .. }));
        }
        for phase in [Phase::Restoring, Phase::Hibernating, Phase::Hibernated, Phase::Failed] {
            let (after, _) = reconcile(row(phase), Found::Nothing { version: Some(version()) }, NOW);
            assert_eq!((after.phase, after.rung), (Phase::Hibernated, Rung::Local));
            assert_eq!(after.failure, None, "{phase}: nothing was lost");
        }
        let (after, _) = reconcile(row(Phase::Off), Found::Nothing { version: None }, NOW);
        assert_eq!((after.phase, after.failure), (Phase::Off, None));
    }
}
