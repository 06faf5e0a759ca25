//! Arrivals on their way to whoever forecasts, and what is foreseen on its way back. The loop computes no forecast and
//! waits for none.

use std::collections::BTreeMap;
use std::sync::mpsc::SyncSender;

use reveille_core::decide::{Foresight, QUIET_MS};
use reveille_core::model::{DomainName, Event, ForecastMode, Service, Timestamp, Trigger};

use super::run::Control;

/// Arrivals that may wait for the thread that learns from them; of more the newest are dropped, and counted.
pub const TOLD_MAX: usize = 4_096;

/// How often it is looked what awake services have had of traffic. Gaps are as exact as that.
const SENSE_MS: u64 = 1_000;

/// What the loop tells of.
#[derive(Debug)]
pub enum Told {
    /// Somebody wanted the service after it had been quiet.
    Arrived {
        /// The service.
        service: DomainName,
        /// When.
        at: Timestamp,
    },
    /// It was still in use.
    Busy {
        /// The service.
        service: DomainName,
        /// When.
        at: Timestamp,
    },
    /// A replicable service is in use.
    Used {
        /// The service.
        service: DomainName,
        /// Connections, sessions, and clients that wait.
        in_use: u32,
        /// When.
        at: Timestamp,
    },
    /// The service is gone, and what is known of it is not kept.
    Gone {
        /// The service.
        service: DomainName,
    },
}

/// The loop's end.
#[derive(Debug)]
pub struct Forecasts {
    told: SyncSender<Told>,
    /// Services in use.
    used: BTreeMap<DomainName, Use>,
    sensed: Option<Timestamp>,
    next_sense: Option<Timestamp>,
    dropped: u64,
}

/// An arrival, and what followed it without a pause.
#[derive(Debug)]
struct Use {
    /// When it was last seen in use.
    last: Timestamp,
    /// The last time that was told.
    told: Timestamp,
    /// After so long without use it is quiet, and the next use is an arrival.
    quiet_ms: u64,
}

impl Forecasts {
    /// Tells `told` of arrivals.
    pub fn new(told: SyncSender<Told>) -> Self {
        Self { told, used: BTreeMap::new(), sensed: None, next_sense: None, dropped: 0 }
    }

    /// Somebody wanted `service`, or used it.
    fn used(&mut self, service: &DomainName, at: Timestamp, quiet_ms: u64) {
        let told = match self.used.get_mut(service) {
            Some(known) if at <= known.last => None,
            Some(known) if at < known.last.plus_ms(quiet_ms) => {
                known.last = at;
                (at >= known.told.plus_ms(SENSE_MS)).then(|| {
                    known.told = at;
                    Told::Busy { service: service.clone(), at }
                })
            }
            Some(_) | None => {
                self.used.insert(service.clone(), Use { last: at, told: at, quiet_ms });
                Some(Told::Arrived { service: service.clone(), at })
            }
        };
        if let Some(told) = told {
            self.tell(told);
        }
    }

    pub(super) fn tell(&mut self, told: Told) {
        if self.told.try_send(told).is_err() {
            if self.dropped == 0 {
                tracing::warn!("arrivals come faster than they are learned from; forecasts lack some");
            }
            self.dropped += 1;
        }
    }
}

/// For how long a service is not used when it counts as quiet: never put to sleep sooner for a forecast.
fn quiet_ms(service: &Service) -> Option<u64> {
    let policy = &service.spec.policy;
    (policy.forecast != ForecastMode::Off).then(|| policy.idle_ms.min(QUIET_MS))
}

impl Control {
    /// When it is to be looked next what awake services have had of traffic.
    pub(super) fn next_sense(&self) -> Option<Timestamp> {
        self.forecasts.as_ref()?.next_sense
    }

    /// Somebody wants the service.
    pub(super) fn note_arrival(&mut self, name: &DomainName, trigger: &Trigger, at: Timestamp) {
        if !matches!(trigger, Trigger::Query { .. } | Trigger::Packet { .. }) {
            return;
        }
        let quiet_ms = self.fleet.service(name).and_then(quiet_ms);
        if let (Some(forecasts), Some(quiet_ms)) = (&mut self.forecasts, quiet_ms) {
            forecasts.used(name, at, quiet_ms);
        }
    }

    /// The service is gone.
    pub(super) fn note_gone(&mut self, service: &DomainName) {
        if let Some(forecasts) = &mut self.forecasts {
            forecasts.used.remove(service);
            forecasts.tell(Told::Gone { service: service.clone() });
        }
    }

    /// Looks at the traffic of awake services if it is time, and notes when it will be next.
    pub(super) fn sense_arrivals(&mut self, now: Timestamp) {
        let Some(forecasts) = &mut self.forecasts else { return };
        if forecasts.next_sense.is_some_and(|next| now < next) {
            return;
        }
        // What passed before was looked at then.
        let since = forecasts
            .sensed
            .max(Some(Timestamp::from_ms(now.as_ms().saturating_sub(2 * SENSE_MS))))
            .unwrap_or_default();
        let mut awake = false;
        for (instance, service) in self.fleet.awake() {
            let Some(quiet_ms) = quiet_ms(service) else { continue };
            awake = true;
            let Some(traffic) = self.wiring.traffic(&instance.service) else { continue };
            // An open connection is use, also while nothing passes.
            let last = if traffic.open_connections > 0 { Some(now) } else { traffic.last_packet };
            if let Some(at) = last.filter(|at| *at > since) {
                forecasts.used(&instance.service, at, quiet_ms);
            }
        }
        forecasts.sensed = Some(now);
        forecasts.next_sense = awake.then(|| now.plus_ms(SENSE_MS));
        forecasts.used.retain(|_, known| now < known.last.plus_ms(known.quiet_ms));
    }

    /// Takes in what is foreseen.
    pub(super) fn foreseen(&mut self, service: DomainName, foresight: Foresight) {
        if self.stopping {
            return;
        }
        let id = self.fleet.primary(&service).map(|instance| instance.id);
        match self.fleet.apply(Event::Foreseen { service, foresight }, self.clock.now()) {
            // What is answered for an awake service depends on when it will sleep.
            Ok(_) => self.foreseen.extend(id),
            Err(refusal) => tracing::debug!(%refusal, "a forecast of a service that is gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn what_follows_without_a_pause_is_the_same_arrival() {
        let (told, heard) = sync_channel(TOLD_MAX);
        let (mut forecasts, name) = (Forecasts::new(told), "a.vm.test".parse::<DomainName>().unwrap());
        for ms in [0, 5, 900, 1_100, 1_050, 9_000, 18_999, 40_000] {
            forecasts.used(&name, Timestamp::from_ms(ms), 10_000);
        }
        drop(forecasts);
        let heard: Vec<(char, u64)> = heard
            .iter()
            .map(|told| match told {
                Told::Arrived { at, .. } => ('a', at.as_ms()),
                Told::Busy { at, .. } => ('b', at.as_ms()),
                Told::Used { at, .. } => ('u', at.as_ms()),
                Told::Gone { .. } => ('g', 0),
            })
            .collect();
        assert_eq!(heard, [('a', 0), ('b', 1_100), ('b', 9_000), ('b', 18_999), ('a', 40_000)]);
    }
}
