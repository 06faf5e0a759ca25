//! What is foreseen for one service, as decisions use it: the hazard of its gap, and the rungs over the gap that follow
//! from it at its prices.
//!
//! A forecast is a value: decisions are made the same way from one that was recorded. It belongs to one gap, which began
//! with the arrival at `since`, and says nothing once another one has come.

use serde::{Deserialize, Serialize};

use super::keep::{Costs, KeepReason, Prices, RungCost, Stay};
use crate::forecast::gaps::Piece;
use crate::model::{ARMED_MIB, Instance, Phase, Policy, Resources, Rung, Service, Timestamp};

/// Most pieces of a hazard that are taken: those of more than a day.
pub const OUTLOOK_PIECES_MAX: usize = 160;

/// An instance that was active for so much longer than the forecast knows of is in another gap than it speaks of.
const SAME_GAP_MS: u64 = 5_000;

/// Wake times before anything was measured, in ms.
const UNMEASURED_MS: [(Rung, f64); 4] =
    [(Rung::Remote, 2_000.0), (Rung::Local, 250.0), (Rung::Armed, 150.0), (Rung::Paused, 20.0)];

/// The hazard of the gap that a service is in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Foresight {
    /// The last arrival: idle time counts from there.
    pub since: Timestamp,
    /// The hazard, piece by piece, in the order of idle time.
    pub pieces: Vec<Piece>,
    /// Whether it has had no gap of its own yet, so that all of that is what its group does.
    #[serde(default)]
    pub of_group: bool,
}

/// A forecast and what follows from it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlook {
    foresight: Foresight,
    stays: Vec<Stay>,
}

/// Which rung a service is best kept on now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Best {
    /// The rung.
    pub rung: Rung,
    /// Until when, if nobody comes.
    pub until: Timestamp,
    /// Why.
    pub because: KeepReason,
    /// Whether that rests on its group alone.
    pub of_group: bool,
}

impl Outlook {
    /// What follows from `foresight` for `service`, whose primary is `instance`. `None` if it says nothing, or if the
    /// service's prices cannot be reckoned with.
    pub fn new(mut foresight: Foresight, service: &Service, instance: &Instance) -> Option<Self> {
        foresight.pieces.truncate(OUTLOOK_PIECES_MAX);
        let held = if instance.phase == Phase::Hibernated { instance.rung } else { Rung::Active };
        let stays = costs(service, instance)?.schedule(&foresight.pieces, held);
        (!stays.is_empty()).then_some(Self { foresight, stays })
    }

    /// The forecast that it rests on.
    pub fn foresight(&self) -> &Foresight {
        &self.foresight
    }

    /// The rungs over the gap, in the order of idle time.
    pub fn stays(&self) -> &[Stay] {
        &self.stays
    }

    /// The best rung at `now`; `None` if the forecast does not reach so far, or the instance has been active since.
    pub fn best(&self, instance: &Instance, now: Timestamp) -> Option<Best> {
        if instance.last_activity > self.foresight.since.plus_ms(SAME_GAP_MS) {
            return None;
        }
        let idle_ms = now.ms_since(self.foresight.since);
        let stay = self.stays.iter().find(|stay| (stay.from_ms..stay.until_ms).contains(&idle_ms))?;
        let until = self.foresight.since.plus_ms(stay.until_ms);
        Some(Best { rung: stay.rung, until, because: stay.because, of_group: self.foresight.of_group })
    }

    /// Whether nothing warmer than `rest` is ahead at `now`.
    pub fn is_spent(&self, rest: Rung, now: Timestamp) -> bool {
        let idle_ms = now.ms_since(self.foresight.since);
        !self.stays.iter().any(|stay| stay.until_ms > idle_ms && stay.rung > rest)
    }
}

/// The rungs that a service may be kept on, from its resting rung up, with what was measured of them.
fn costs(service: &Service, instance: &Instance) -> Option<Costs> {
    let policy = &service.spec.policy;
    let rungs = [Rung::Remote, Rung::Local, Rung::Armed, Rung::Paused, Rung::Active];
    // Who is to sleep in the object store alone does not wait on the local disk, which costs nothing by these prices.
    let is_offered =
        |rung: &Rung| *rung >= policy.rest && (*rung, policy.rest) != (Rung::Local, Rung::Remote);
    let offered = rungs.into_iter().filter(is_offered);
    let costs = offered.map(|rung| cost(rung, service.spec.resources, instance));
    Costs::new(costs.collect(), prices(policy)).ok()
}

fn cost(rung: Rung, resources: Resources, instance: &Instance) -> RungCost {
    let measured = instance.measured.on(rung);
    let held_mib = measured.and_then(|measured| measured.held_kib).map(|kib| kib as f64 / 1_024.0);
    let unmeasured_mib = match rung {
        Rung::Cold | Rung::Remote | Rung::Local => 0,
        Rung::Armed => ARMED_MIB,
        Rung::Paused | Rung::Active => resources.memory_mib.into(),
    };
    let wake_ms = measured.and_then(|measured| measured.wakes.percentile_ms(50)).map(f64::from);
    let unmeasured_ms = UNMEASURED_MS.iter().find(|(of, _)| *of == rung).map_or(0.0, |(_, ms)| *ms);
    // Its warm-up set is part of the wake, from wherever it was seen.
    let warms = matches!(rung, Rung::Remote | Rung::Local | Rung::Armed);
    let warm_up_ms = instance.measured.restore_set_ms().filter(|_| warms).map_or(0.0, f64::from);
    let unmeasured_ms = unmeasured_ms + warm_up_ms;
    RungCost {
        rung,
        held_mib: held_mib.unwrap_or(unmeasured_mib as f64),
        wake_ms: if rung == Rung::Active { 0.0 } else { wake_ms.unwrap_or(unmeasured_ms) },
    }
}

/// Prices in GiB-hours.
fn prices(policy: &Policy) -> Prices {
    Prices {
        gib_hour: 1.0,
        delay_second: f64::from(policy.delay_mib_hours) / 1_024.0,
        change: f64::from(policy.change_mib_hours) / 1_024.0,
    }
}
