//! Arrivals on their way to whoever forecasts, and what is foreseen on its way back. The loop computes no forecast and
//! waits for none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use reveille_core::decide::{Foresight, QUIET_MS};
use reveille_core::forecast::gaps::group_of;
use reveille_core::model::{DomainName, Event, ForecastMode, Service, Timestamp, Trigger};

use super::run::Control;

/// What may wait for the thread that learns from it; of more the newest arrivals are dropped, and counted. That a service is
/// gone is told in any case.
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
        /// Those that it is like.
        group: u64,
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
        /// Its image: services of one are a group.
        image: String,
        /// Connections, sessions, and clients that wait.
        in_use: u32,
        /// When.
        at: Timestamp,
    },
    /// Clients connected to it.
    Connected {
        /// The service.
        service: DomainName,
        /// So many since this was last told.
        more: u64,
        /// So many are connected now.
        now: u64,
    },
    /// The service is gone, and what is known of it is not kept.
    Gone {
        /// The service.
        service: DomainName,
    },
}

impl Told {
    /// Whether it may be dropped: what is not learned costs a little of a forecast, what is not forgotten stays for good.
    fn is_lossy(&self) -> bool {
        match self {
            Self::Arrived { .. } | Self::Busy { .. } | Self::Connected { .. } | Self::Used { .. } => true,
            Self::Gone { .. } => false,
        }
    }
}

/// The way to the thread that learns, in the order in which things happened: neither end waits for the other.
#[must_use]
pub fn way() -> (Teller, Hearer) {
    let (sender, receiver) = channel();
    let teller = Teller { sender, waiting: Arc::default(), dropped: Arc::default() };
    let waiting = Arc::clone(&teller.waiting);
    (teller, Hearer { receiver, waiting })
}

/// The end that tells.
#[derive(Debug, Clone)]
pub struct Teller {
    sender: Sender<Told>,
    waiting: Arc<AtomicUsize>,
    dropped: Arc<AtomicU64>,
}

impl Teller {
    /// Tells, unless too much waits already and it may be dropped.
    fn tell(&self, told: Told) {
        // One may go in beyond the limit for each that tells at the same time, of whom there is one.
        if told.is_lossy() && self.waiting.load(Relaxed) >= TOLD_MAX {
            if self.dropped.fetch_add(1, Relaxed) == 0 {
                tracing::warn!("arrivals come faster than they are learned from; forecasts lack some");
            }
            return;
        }
        self.waiting.fetch_add(1, Relaxed);
        // Who learns is gone: nothing is foreseen any more.
        let _ = self.sender.send(told);
    }

    /// Where it is counted what was dropped.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }
}

/// The end that hears.
#[derive(Debug)]
pub struct Hearer {
    receiver: Receiver<Told>,
    waiting: Arc<AtomicUsize>,
}

impl Hearer {
    /// What was told next, waiting for it as long as that.
    ///
    /// # Errors
    /// If nothing was told in that time, or nobody tells any more.
    pub fn next(&self, patience: Duration) -> Result<Told, RecvTimeoutError> {
        let told = self.receiver.recv_timeout(patience)?;
        self.waiting.fetch_sub(1, Relaxed);
        Ok(told)
    }
}

/// The loop's end.
#[derive(Debug)]
pub struct Forecasts {
    told: Teller,
    /// Services in use.
    used: BTreeMap<DomainName, Use>,
    /// Clients that their relays had accepted, of services in use.
    accepted: BTreeMap<DomainName, u64>,
    sensed: Option<Timestamp>,
    next_sense: Option<Timestamp>,
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
    pub fn new(told: Teller) -> Self {
        let (used, accepted) = (BTreeMap::new(), BTreeMap::new());
        Self { told, used, accepted, sensed: None, next_sense: None }
    }

    /// So many clients were accepted since the relay was bound, and so many are connected. What was before the first look is
    /// not new.
    fn connected(&mut self, service: &DomainName, accepted: u64, now: u64) {
        let before = self.accepted.insert(service.clone(), accepted).unwrap_or(accepted);
        let more = accepted.saturating_sub(before);
        if more > 0 || now > 0 {
            self.told.tell(Told::Connected { service: service.clone(), more, now });
        }
    }

    /// Tells who learns.
    pub(super) fn tell(&self, told: Told) {
        self.told.tell(told);
    }

    /// Somebody wanted `service`, or used it.
    fn used(&mut self, service: &DomainName, at: Timestamp, Quiet { quiet_ms, group }: Quiet) {
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
                Some(Told::Arrived { service: service.clone(), group, at })
            }
        };
        if let Some(told) = told {
            self.told.tell(told);
        }
    }
}

/// What arrivals of a service are told by.
#[derive(Clone, Copy)]
struct Quiet {
    /// For how long it is not used when it counts as quiet: never put to sleep sooner for a forecast.
    quiet_ms: u64,
    /// Services of the same image.
    group: u64,
}

/// `None` if none are told.
fn quiet(service: &Service) -> Option<Quiet> {
    let policy = &service.spec.policy;
    let quiet_ms = policy.idle_ms.min(QUIET_MS);
    (policy.forecast != ForecastMode::Off).then(|| Quiet { quiet_ms, group: group_of(&service.spec.image) })
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
        let quiet = self.fleet.service(name).and_then(quiet);
        if let (Some(forecasts), Some(quiet)) = (&mut self.forecasts, quiet) {
            forecasts.used(name, at, quiet);
        }
    }

    /// The service is gone.
    pub(super) fn note_gone(&mut self, service: &DomainName) {
        if let Some(forecasts) = &mut self.forecasts {
            forecasts.used.remove(service);
            forecasts.told.tell(Told::Gone { service: service.clone() });
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
            let Some(quiet) = quiet(service) else { continue };
            awake = true;
            let Some(traffic) = self.wiring.traffic(&instance.service) else { continue };
            let now_connected = u64::from(traffic.open_connections) + u64::from(traffic.udp_sessions);
            forecasts.connected(&instance.service, traffic.accepted, now_connected);
            // An open connection is use, also while nothing passes.
            let last = if traffic.open_connections > 0 { Some(now) } else { traffic.last_packet };
            if let Some(at) = last.filter(|at| *at > since) {
                forecasts.used(&instance.service, at, quiet);
            }
        }
        forecasts.sensed = Some(now);
        forecasts.next_sense = awake.then(|| now.plus_ms(SENSE_MS));
        forecasts.used.retain(|_, known| now < known.last.plus_ms(known.quiet_ms));
        forecasts.accepted.retain(|service, _| forecasts.used.contains_key(service));
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
    use super::*;

    /// What is there to be heard.
    fn all(heard: &Hearer) -> Vec<Told> {
        std::iter::from_fn(|| heard.next(Duration::ZERO).ok()).collect()
    }

    #[test]
    fn what_follows_without_a_pause_is_the_same_arrival() {
        let (told, heard) = way();
        let (mut forecasts, name) = (Forecasts::new(told), "a.vm.test".parse::<DomainName>().unwrap());
        for ms in [0, 5, 900, 1_100, 1_050, 9_000, 18_999, 40_000] {
            forecasts.used(&name, Timestamp::from_ms(ms), Quiet { quiet_ms: 10_000, group: 1 });
        }
        let heard: Vec<(char, u64)> = all(&heard)
            .iter()
            .map(|told| match told {
                Told::Arrived { at, .. } => ('a', at.as_ms()),
                Told::Busy { at, .. } => ('b', at.as_ms()),
                Told::Used { at, .. } => ('u', at.as_ms()),
                Told::Connected { .. } | Told::Gone { .. } => ('g', 0),
            })
            .collect();
        assert_eq!(heard, [('a', 0), ('b', 1_100), ('b', 9_000), ('b', 18_999), ('a', 40_000)]);
    }

    #[test]
    fn arrivals_are_dropped_under_pressure_and_counted_but_not_that_a_service_is_gone() {
        let (told, heard) = way();
        let service = |number: usize| format!("s{number}.vm.test").parse::<DomainName>().unwrap();
        let at = Timestamp::from_ms(1);
        (0..TOLD_MAX + 7)
            .for_each(|number| told.tell(Told::Arrived { service: service(number), group: 1, at }));
        told.tell(Told::Gone { service: service(0) });
        assert_eq!(told.dropped().load(Relaxed), 7);
        let heard_of = all(&heard);
        assert_eq!(heard_of.len(), TOLD_MAX + 1);
        assert!(matches!(heard_of.last(), Some(Told::Gone { .. })), "behind all that was told before");
        // There is room again.
        told.tell(Told::Arrived { service: service(1), group: 1, at });
        assert_eq!((all(&heard).len(), told.dropped().load(Relaxed)), (1, 7));
        drop(told);
        assert_eq!(heard.next(Duration::from_secs(60)).unwrap_err(), RecvTimeoutError::Disconnected);
    }
}
