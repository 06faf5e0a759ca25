//! Arrivals on their way to whoever forecasts, and what is foreseen on its way back. The loop computes no forecast and
//! waits for none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::decide::{Foresight, QUIET_MS};
use reveille_core::forecast::gaps::group_of;
use reveille_core::model::{DomainName, Event, ForecastMode, Service, Timestamp, Trigger};

use super::run::Control;

/// Arrivals that may wait for the thread that learns from them; of more the newest are dropped, and counted. That a service is
/// gone is told in any case.
pub const TOLD_MAX: usize = 4_096;

/// Messages of how services are used that may wait beside the arrivals, each of all services. While so many do, what is new
/// is added up for the next one.
pub const REFRESHED_MAX: usize = 4;

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
    /// How services in use were used of late.
    Refreshed(BTreeMap<DomainName, Refresh>),
    /// The service is gone, and what is known of it is not kept.
    Gone {
        /// The service.
        service: DomainName,
    },
}

/// How a service was used since that was last told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refresh {
    /// When it was last seen in use.
    pub busy: Option<Timestamp>,
    /// Clients that connected to it, and the most that were connected at a look.
    pub connected: Option<(u64, u64)>,
    /// Of a replicable service.
    pub in_use: Option<InUse>,
}

/// What a replicable service is used by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// Its image: services of one are a group.
    pub image: String,
    /// Connections, sessions, and clients that wait.
    pub clients: u32,
    /// When.
    pub at: Timestamp,
}

/// Services whose queries come from a flood, as far as is known: who learns says so, and the loop tells of none of these
/// queries.
#[derive(Debug, Clone, Default)]
pub struct Floods(Arc<ArcSwap<BTreeSet<DomainName>>>);

impl Floods {
    /// It is these from now on.
    pub fn set(&self, flooded: BTreeSet<DomainName>) {
        if **self.0.load() != flooded {
            self.0.store(Arc::new(flooded));
        }
    }

    fn has(&self, service: &DomainName) -> bool {
        self.0.load().contains(service)
    }
}

/// The way to the thread that learns, in the order in which things happened: neither end waits for the other.
#[must_use]
pub fn way() -> (Teller, Hearer) {
    let (sender, receiver) = channel();
    let teller =
        Teller { sender, waiting: Arc::default(), dropped: Arc::default(), floods: Floods::default() };
    let waiting = Arc::clone(&teller.waiting);
    (teller, Hearer { receiver, waiting })
}

/// Messages that were told and not heard yet.
#[derive(Debug, Default)]
struct Waiting {
    arrivals: AtomicUsize,
    refreshed: AtomicUsize,
}

/// The end that tells.
#[derive(Debug, Clone)]
pub struct Teller {
    sender: Sender<Told>,
    waiting: Arc<Waiting>,
    dropped: Arc<AtomicU64>,
    floods: Floods,
}

impl Teller {
    /// Tells of an arrival, unless too many wait already.
    fn arrived(&self, service: DomainName, group: u64, at: Timestamp) {
        // One may go in beyond the limit for each that tells at the same time, of whom there is one.
        if self.waiting.arrivals.load(Relaxed) >= TOLD_MAX {
            if self.dropped.fetch_add(1, Relaxed) == 0 {
                tracing::warn!("arrivals come faster than they are learned from; forecasts lack some");
            }
            return;
        }
        self.waiting.arrivals.fetch_add(1, Relaxed);
        self.tell(Told::Arrived { service, group, at });
    }

    /// Tells how services were used, unless too much of that waits already: then it stays, to be told later.
    fn refreshed(&self, refreshes: &mut BTreeMap<DomainName, Refresh>) {
        if refreshes.is_empty() || self.waiting.refreshed.load(Relaxed) >= REFRESHED_MAX {
            return;
        }
        self.waiting.refreshed.fetch_add(1, Relaxed);
        self.tell(Told::Refreshed(std::mem::take(refreshes)));
    }

    fn tell(&self, told: Told) {
        // Who learns is gone: nothing is foreseen any more.
        let _ = self.sender.send(told);
    }

    /// Where it is counted what was dropped.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// Where it is said who is flooded.
    pub fn floods(&self) -> Floods {
        self.floods.clone()
    }
}

/// The end that hears.
#[derive(Debug)]
pub struct Hearer {
    receiver: Receiver<Told>,
    waiting: Arc<Waiting>,
}

impl Hearer {
    /// What was told next, waiting for it as long as that.
    ///
    /// # Errors
    /// If nothing was told in that time, or nobody tells any more.
    pub fn next(&self, patience: Duration) -> Result<Told, RecvTimeoutError> {
        let told = self.receiver.recv_timeout(patience)?;
        match &told {
            Told::Arrived { .. } => drop(self.waiting.arrivals.fetch_sub(1, Relaxed)),
            Told::Refreshed(_) => drop(self.waiting.refreshed.fetch_sub(1, Relaxed)),
            Told::Gone { .. } => {}
        }
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
    /// How services were used, as far as it was not told yet.
    refreshes: BTreeMap<DomainName, Refresh>,
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
        let (used, accepted, refreshes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { told, used, accepted, refreshes, sensed: None, next_sense: None }
    }

    /// So many clients were accepted since the relay was bound, and so many are connected. What was before the first look is
    /// not new.
    fn connected(&mut self, service: &DomainName, accepted: u64, now: u64) {
        let before = self.accepted.insert(service.clone(), accepted).unwrap_or(accepted);
        let more = accepted.saturating_sub(before);
        if more > 0 || now > 0 {
            let connected = &mut self.refreshes.entry(service.clone()).or_default().connected;
            let (came, most) = connected.unwrap_or_default();
            *connected = Some((came + more, most.max(now)));
        }
    }

    /// So many clients use a replicable service.
    pub(super) fn in_use(&mut self, service: &DomainName, in_use: InUse) {
        self.refreshes.entry(service.clone()).or_default().in_use = Some(in_use);
    }

    /// Tells how services were used since this was last done.
    pub(super) fn refresh(&mut self) {
        self.told.refreshed(&mut self.refreshes);
    }

    /// Somebody wants `service`. Queries of a flood are nobody who does; first packets are.
    fn wanted(&mut self, service: &DomainName, trigger: &Trigger, at: Timestamp, quiet: Quiet) {
        let is_flood = matches!(trigger, Trigger::Query { .. }) && self.told.floods.has(service);
        if !is_flood {
            self.used(service, at, quiet);
        }
    }

    /// Somebody wanted `service`, or used it.
    fn used(&mut self, service: &DomainName, at: Timestamp, Quiet { quiet_ms, group }: Quiet) {
        match self.used.get_mut(service) {
            Some(known) if at <= known.last => {}
            Some(known) if at < known.last.plus_ms(quiet_ms) => {
                known.last = at;
                if at >= known.told.plus_ms(SENSE_MS) {
                    known.told = at;
                    self.refreshes.entry(service.clone()).or_default().busy = Some(at);
                }
            }
            Some(_) | None => {
                self.used.insert(service.clone(), Use { last: at, told: at, quiet_ms });
                // How it was used before goes ahead.
                let before = self.refreshes.get(service).is_some_and(|refresh| refresh.busy.is_some());
                if before {
                    self.refresh();
                }
                self.told.arrived(service.clone(), group, at);
            }
        }
    }

    /// The service is gone.
    fn gone(&mut self, service: &DomainName) {
        self.used.remove(service);
        self.accepted.remove(service);
        self.refreshes.remove(service);
        self.told.tell(Told::Gone { service: service.clone() });
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
            forecasts.wanted(name, trigger, at, quiet);
        }
    }

    /// The service is gone.
    pub(super) fn note_gone(&mut self, service: &DomainName) {
        if let Some(forecasts) = &mut self.forecasts {
            forecasts.gone(service);
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
        forecasts.refresh();
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

    const QUIET: Quiet = Quiet { quiet_ms: 10_000, group: 1 };

    /// What is there to be heard.
    fn all(heard: &Hearer) -> Vec<Told> {
        std::iter::from_fn(|| heard.next(Duration::ZERO).ok()).collect()
    }

    #[test]
    fn what_follows_without_a_pause_is_the_same_arrival() {
        let (told, heard) = way();
        let (mut forecasts, name) = (Forecasts::new(told), "a.vm.test".parse::<DomainName>().unwrap());
        for ms in [0, 5, 900, 1_100, 1_050, 9_000, 18_999, 40_000] {
            forecasts.used(&name, Timestamp::from_ms(ms), QUIET);
            if ms == 1_100 {
                forecasts.refresh();
            }
        }
        let heard: Vec<(char, u64)> = all(&heard)
            .iter()
            .map(|told| match told {
                Told::Arrived { at, .. } => ('a', at.as_ms()),
                Told::Refreshed(refreshes) => ('b', refreshes[&name].busy.unwrap().as_ms()),
                Told::Gone { .. } => ('g', 0),
            })
            .collect();
        // Of what was not told yet the last is enough, and it goes ahead of the next arrival.
        assert_eq!(heard, [('a', 0), ('b', 1_100), ('b', 18_999), ('a', 40_000)]);
    }

    #[test]
    fn arrivals_are_dropped_under_pressure_and_counted_but_not_that_a_service_is_gone() {
        let (told, heard) = way();
        let at = Timestamp::from_ms(1);
        (0..TOLD_MAX + 7).for_each(|number| told.arrived(service(number), 1, at));
        told.tell(Told::Gone { service: service(0) });
        assert_eq!(told.dropped().load(Relaxed), 7);
        let heard_of = all(&heard);
        assert_eq!(heard_of.len(), TOLD_MAX + 1);
        assert!(matches!(heard_of.last(), Some(Told::Gone { .. })), "behind all that was told before");
        // There is room again.
        told.arrived(service(1), 1, at);
        assert_eq!((all(&heard).len(), told.dropped().load(Relaxed)), (1, 7));
        drop(told);
        assert_eq!(heard.next(Duration::from_secs(60)).unwrap_err(), RecvTimeoutError::Disconnected);
    }

    #[test]
    fn however_many_services_are_busy_an_arrival_has_its_place() {
        const BUSY: usize = 5_000;
        let (told, heard) = way();
        let mut forecasts = Forecasts::new(told);
        // Nobody hears for twenty seconds.
        for second in 0..20_u64 {
            let at = Timestamp::from_ms(1_000 * second);
            for number in 0..BUSY {
                let name = service(number);
                forecasts.connected(&name, 3 * second, 2);
                forecasts.in_use(&name, InUse { image: "web".to_owned(), clients: 2, at });
                if number > 0 || second == 19 {
                    forecasts.refreshes.entry(name).or_default().busy = Some(at);
                }
            }
            forecasts.refresh();
        }
        forecasts.used(&"new.vm.test".parse().unwrap(), Timestamp::from_ms(20_000), QUIET);
        let first = all(&heard);
        assert_eq!(forecasts.told.dropped().load(Relaxed), 0);
        assert_eq!(first.len(), REFRESHED_MAX + 1);
        assert!(matches!(first.last(), Some(Told::Arrived { .. })), "{:?}", first.last());
        // What had no place was added up.
        forecasts.refresh();
        let [Told::Refreshed(rest)] = <[Told; 1]>::try_from(all(&heard)).unwrap() else { panic!() };
        let at = Timestamp::from_ms(19_000);
        let waited = 3 * (20 - REFRESHED_MAX as u64);
        let sum = Refresh {
            busy: Some(at),
            connected: Some((waited, 2)),
            in_use: Some(InUse { image: "web".to_owned(), clients: 2, at }),
        };
        assert_eq!((rest.len(), &rest[&service(0)]), (BUSY, &sum));
    }

    #[test]
    fn queries_of_a_flood_are_no_arrivals_and_first_packets_are() {
        let (told, heard) = way();
        let (floods, name) = (told.floods(), service(1));
        let mut forecasts = Forecasts::new(told);
        let query = Trigger::Query { client: [192, 0, 2, 1].into(), qtype: 1, subnet: None };
        let packet =
            Trigger::Packet { client: ([192, 0, 2, 1], 40_000).into(), port: "tcp/80".parse().unwrap() };
        floods.set(BTreeSet::from([name.clone()]));
        let at = Timestamp::from_ms;
        forecasts.wanted(&name, &query, at(1_000), QUIET);
        forecasts.wanted(&service(2), &query, at(1_000), QUIET);
        forecasts.wanted(&name, &packet, at(2_000), QUIET);
        floods.set(BTreeSet::new());
        forecasts.wanted(&name, &query, at(30_000), QUIET);
        let heard = all(&heard).into_iter().map(|told| match told {
            Told::Arrived { service, at, .. } => (service, at.as_ms()),
            Told::Refreshed(_) | Told::Gone { .. } => panic!("nothing else is told"),
        });
        let name = |number: usize| service(number);
        assert_eq!(heard.collect::<Vec<_>>(), [(name(2), 1_000), (name(1), 2_000), (name(1), 30_000)]);
    }

    fn service(number: usize) -> DomainName {
        format!("s{number}.vm.test").parse().unwrap()
    }
}
