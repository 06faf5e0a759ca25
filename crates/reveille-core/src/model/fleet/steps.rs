//! The steps of a plan: what the beginning of each action does to the rows.

use super::Fleet;
use crate::decide::{Action, Decision};
use crate::model::event::{Applied, RequestError};
use crate::model::instance::Remains;
use crate::model::phase::{Move, Phase, Role, Rung};
use crate::model::time::Timestamp;

impl Fleet {
    /// Notes that the action of `decision` is now being carried out.
    ///
    /// # Errors
    /// If the instance is gone or its phase does not allow the action: the plan was made from an older view.
    pub fn begin(&mut self, decision: &Decision, now: Timestamp) -> Result<Applied, RequestError> {
        self.change(decision.instance, |instance, service| {
            match &decision.action {
                Action::Boot => {
                    instance.step(Move::Boot, now)?;
                    service.forget_load();
                    instance.begin_start(Rung::Cold, now);
                    instance.ahead = service.demand.is_none();
                    instance.begin_warm_up(&service.spec);
                    instance.leave_outdated();
                    instance.version = None;
                    instance.stored_is_current = false;
                    instance.unusable_fetches = 0;
                }
                Action::Restore { from, keep: _ } => {
                    instance.step(Move::Restore, now)?;
                    service.forget_load();
                    instance.begin_start(*from, now);
                    instance.ahead = service.demand.is_none();
                    instance.begin_warm_up(&service.spec);
                    // Durable before a vCPU runs: from then on the stored version is not what the guest last was.
                    instance.stored_is_current = false;
                }
                Action::Evict if !instance.is_kept_here() => {
                    return Err(RequestError::NotAtRest(instance.id));
                }
                Action::Arm { .. }
                | Action::Pause
                | Action::Fetch
                | Action::Evict
                | Action::RollBack { .. }
                | Action::Disarm => {
                    // What an earlier change of rung still reports is not taken for the end of this one.
                    instance.start += 1;
                    instance.in_flight = true;
                }
                Action::Publish { number } => instance.publishing = Some(*number),
                Action::Checkpoint { number } => {
                    instance.checkpointing = Some(*number);
                    instance.version_number_last = *number;
                }
                Action::Drain { .. } => {
                    instance.step(Move::Drain, now)?;
                    // Clients leave a replica in their own time.
                    instance.in_flight = instance.role == Role::Primary;
                    instance.is_uncounted = instance.role == Role::Replica;
                }
                Action::Undrain => {
                    instance.step(Move::Undrain, now)?;
                    instance.sleep_asked = None;
                    instance.last_activity = now;
                    service.demand.take_if(|_| instance.role == Role::Primary);
                }
                Action::Capture => _ = instance.step(Move::Capture, now)?,
                Action::AbandonCapture => {
                    instance.in_flight = true;
                    instance.sleep_asked = None;
                }
                Action::GiveUpStart { cause } => instance.fail(service, cause.clone(), now)?,
                Action::Kill { remains } => {
                    // With its process a replica is gone.
                    instance.retiring |= instance.role == Role::Replica;
                    if *remains != Remains::All {
                        instance.step(Move::Stop, now)?;
                        instance.discard();
                    } else if !matches!(instance.phase, Phase::Off | Phase::Hibernated | Phase::Failed) {
                        instance.step(Move::Stop, now)?;
                        instance.unfenced = true;
                    }
                    instance.in_flight = true;
                }
                Action::Replicate { .. } | Action::Wait { .. } => {}
            }
            Ok(())
        })
    }
}
