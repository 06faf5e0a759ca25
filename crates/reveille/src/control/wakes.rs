//! Wake records in the making: who asked, and when each stage was over (W8).

use std::collections::BTreeMap;
use std::time::Instant;

use reveille_core::model::{
    Cause, DomainName, InstanceId, Rung, Stage, Timestamp, Trigger, WakeOutcome, WakeRecord,
};

use crate::clock::monotonic;

/// A finished wake waits this long for its first byte before it is stored without one.
const FIRST_BYTE_WAIT_MS: u64 = 10_000;

/// The wakes that are not stored yet, at most one a service.
#[derive(Debug, Default)]
pub struct Wakes {
    open: BTreeMap<DomainName, OpenWake>,
}

#[derive(Debug)]
struct OpenWake {
    record: WakeRecord,
    asked: Instant,
    ready_at: Option<Timestamp>,
}

impl Wakes {
    /// Somebody asked: opens a record, or counts one more ask in the one that is open.
    pub fn asked(
        &mut self,
        service: &DomainName,
        instance: InstanceId,
        trigger: &Trigger,
        asked: Instant,
        at: Timestamp,
    ) -> Option<WakeRecord> {
        // A wake that is over but still waits for its first byte makes way for the next one.
        let stale = self.open.get(service).is_some_and(|open| open.ready_at.is_some());
        let finished = if stale { self.open.remove(service).map(|open| open.record) } else { None };
        let open = self.open.entry(service.clone()).or_insert_with(|| OpenWake {
            record: WakeRecord {
                service: service.clone(),
                instance,
                trigger: trigger.clone(),
                asks: 0,
                from: Rung::Cold,
                at,
                stages_us: Vec::with_capacity(Stage::ALL.len()),
                outcome: None,
            },
            asked,
            ready_at: None,
        });
        open.record.asks += 1;
        finished
    }

    /// The plan with the wake was applied. What is fetched first, and then restored, was woken from where it was fetched.
    pub fn decided(&mut self, service: &DomainName, from: Rung) {
        if let Some(open) = self.open.get_mut(service) {
            if open.record.stage_us(Stage::Fetched).is_none() {
                open.record.from = from;
            }
            open.reached(Stage::Decided, monotonic());
        }
    }

    /// A stage was over at `when`; returns the record if that completes it.
    pub fn reached(&mut self, service: &DomainName, stage: Stage, when: Instant) -> Option<WakeRecord> {
        let open = self.open.get_mut(service)?;
        open.reached(stage, when);
        let complete = open.ready_at.is_some() && open.record.stage_us(Stage::FirstByte).is_some();
        if complete { self.open.remove(service).map(|open| open.record) } else { None }
    }

    /// The service is ready; returns the record if its first byte came before.
    pub fn ready(&mut self, service: &DomainName, when: Instant, now: Timestamp) -> Option<WakeRecord> {
        let open = self.open.get_mut(service)?;
        open.ready_at = Some(now);
        open.record.outcome = Some(WakeOutcome::Ready);
        self.reached(service, Stage::Ready, when)
    }

    /// The start failed; returns the record.
    pub fn failed(&mut self, service: &DomainName, cause: &Cause) -> Option<WakeRecord> {
        let mut open = self.open.remove(service)?;
        // A loss after the wake was over is not the wake's.
        open.record.outcome.get_or_insert(WakeOutcome::Failed { cause: cause.clone() });
        Some(open.record)
    }

    /// The wake came to nothing because the instance was not asleep after all.
    pub fn dropped(&mut self, service: &DomainName) {
        if self.open.get(service).is_some_and(|open| open.record.stages_us.is_empty()) {
            self.open.remove(service);
        }
    }

    /// Records whose first byte is not waited for any longer.
    pub fn overdue(&mut self, now: Timestamp) -> Vec<WakeRecord> {
        let overdue =
            |open: &OpenWake| open.ready_at.is_some_and(|ready| now.ms_since(ready) >= FIRST_BYTE_WAIT_MS);
        self.open.extract_if(.., |_, open| overdue(open)).map(|(_, open)| open.record).collect()
    }

    /// When the next record will be overdue.
    pub fn next_due(&self) -> Option<Timestamp> {
        let dues = self.open.values().filter_map(|open| open.ready_at);
        dues.min().map(|ready| ready.plus_ms(FIRST_BYTE_WAIT_MS))
    }

    /// The record of `service` that is open, if any.
    pub fn open_of(&self, service: &DomainName) -> Option<&WakeRecord> {
        self.open.get(service).map(|open| &open.record)
    }
}

impl OpenWake {
    fn reached(&mut self, stage: Stage, when: Instant) {
        let us = when.saturating_duration_since(self.asked).as_micros();
        self.record.reached(stage, u64::try_from(us).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name() -> DomainName {
        "hello.vm.test".parse().unwrap()
    }

    #[test]
    fn a_wake_is_complete_with_readiness_and_the_first_byte_in_either_order() {
        for byte_first in [true, false] {
            let (mut wakes, t0) = (Wakes::default(), Instant::now());
            let at = Timestamp::from_ms(7);
            for _ in 0..3 {
                wakes.asked(&name(), InstanceId(1), &Trigger::Operator, t0, at);
            }
            wakes.decided(&name(), Rung::Local);
            let (byte, ready) = (t0 + Duration::from_millis(40), t0 + Duration::from_millis(30));
            let record = if byte_first {
                assert_eq!(wakes.reached(&name(), Stage::FirstByte, byte), None);
                wakes.ready(&name(), ready, at)
            } else {
                assert_eq!(wakes.ready(&name(), ready, at), None);
                wakes.reached(&name(), Stage::FirstByte, byte)
            };
            let record = record.unwrap();
            assert_eq!((record.asks, record.from), (3, Rung::Local));
            assert_eq!(record.stage_us(Stage::Ready), Some(30_000));
            assert_eq!(record.stage_us(Stage::FirstByte), Some(40_000));
            assert_eq!(record.outcome, Some(WakeOutcome::Ready));
            assert!(wakes.open_of(&name()).is_none());
        }
    }

    #[test]
    fn a_wake_that_nobody_used_is_kept_without_a_first_byte() {
        let (mut wakes, t0, at) = (Wakes::default(), Instant::now(), Timestamp::from_ms(7));
        wakes.asked(&name(), InstanceId(1), &Trigger::Operator, t0, at);
        wakes.ready(&name(), t0, at);
        assert!(wakes.overdue(at).is_empty());
        let due = wakes.next_due().unwrap();
        assert_eq!(wakes.overdue(due).len(), 1);
    }
}
