//! Asking the slow loop for wakes: through a bounded channel, never waiting, and not for every packet of a flood.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use reveille_core::model::{DomainName, Timestamp};
use tokio::sync::mpsc::Sender;

use crate::respond::WakeWish;
use crate::tally::{Tally, bump};

/// Most asks that one thread sends for one service while it remembers it. What the first one sets off changes the
/// service's state; more asks only matter to the count of who waited.
const ASKS_MAX: u32 = 64;
/// Services that a thread remembers having asked for; a power of two. Two services in one slot are asked for more
/// often than they need, never less.
const SLOTS: usize = 1_024;
/// Most asks that one thread sends in a second for services that are on their way up: they begin nothing and only count
/// who waits.
const WAITING_ASKS_MAX: u32 = 128;
/// How long a thread remembers. Within it a service is charged to a wake budget once.
const MEMORY_MS: u64 = 1_000;

/// What an ask is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskKind {
    /// The service is to be woken; the gate has let it pass.
    Wake,
    /// The service is on its way up in the view: one more waits for it. No budget was asked, so this may begin nothing.
    Wait,
}

/// A question wants a service that does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WakeAsk {
    /// The service.
    pub service: DomainName,
    /// What for.
    pub kind: AskKind,
    /// Who asked: mostly a resolver.
    pub client: IpAddr,
    /// The question's type.
    pub qtype: u16,
    /// EDNS client subnet in the question, as `address/prefix`.
    pub subnet: Option<String>,
    /// When.
    pub at: Instant,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Slot {
    /// Address of the service's entry in the view: for the short time of the memory it names a service in one state,
    /// without hashing or copying its name.
    service: usize,
    since: Timestamp,
    asks: u32,
}

/// One thread's end of the channel.
pub(crate) struct WakeAsker {
    sender: Sender<WakeAsk>,
    tally: Arc<Tally>,
    slots: Box<[Slot]>,
    /// Asks for services on their way up, since then.
    waiting: (Timestamp, u32),
}

impl WakeAsker {
    pub fn new(sender: Sender<WakeAsk>, tally: Arc<Tally>) -> Self {
        Self {
            sender,
            tally,
            slots: vec![Slot::default(); SLOTS].into_boxed_slice(),
            waiting: (Timestamp::default(), 0),
        }
    }

    /// Passes the wish on unless it has been often enough. `allowed` judges it: an [`AskKind::Wait`] if the service is
    /// on its way up or was asked for just now, so that nothing is charged twice. Tells whether the service is, or will
    /// be, woken for the asker.
    pub fn ask(
        &mut self,
        wish: WakeWish<'_>,
        client: IpAddr,
        now: Timestamp,
        is_starting: bool,
        allowed: impl Fn(AskKind) -> bool,
    ) -> bool {
        let kind = if is_starting { AskKind::Wait } else { AskKind::Wake };
        // Looked at first, so that who may wake nothing uses up nothing of what is left for this second.
        if is_starting && !allowed(AskKind::Wait) {
            return true;
        }
        if is_starting && !self.may_count(now) {
            bump(&self.tally.wakes_coalesced);
            return true;
        }
        let service = std::ptr::from_ref(wish.service).addr();
        // Allocations are aligned, so the lowest bits say nothing.
        let slot = &mut self.slots[(service >> 4) % SLOTS];
        let remembered = slot.service == service && now.ms_since(slot.since) < MEMORY_MS;
        let charge = if remembered { AskKind::Wait } else { AskKind::Wake };
        if !is_starting && !allowed(charge) {
            return false;
        }
        if !remembered {
            *slot = Slot { service, since: now, asks: 0 };
        }
        if slot.asks >= ASKS_MAX {
            bump(&self.tally.wakes_coalesced);
            return true;
        }
        let ask = WakeAsk {
            service: wish.service.name.clone(),
            kind,
            client: client.to_canonical(),
            qtype: wish.qtype,
            subnet: wish.subnet.map(|subnet| subnet.to_string()),
            at: Instant::now(),
        };
        match self.sender.try_send(ask) {
            Ok(()) => {
                slot.asks += 1;
                self.tally.wakes_asked.fetch_add(1, Relaxed);
            }
            // Dropped: the address is answered all the same, and the client's first packet wakes the service.
            Err(_) => bump(&self.tally.wakes_dropped),
        }
        true
    }

    /// Whether one more ask for a service on its way up may be sent in this second.
    fn may_count(&mut self, now: Timestamp) -> bool {
        let (since, asks) = &mut self.waiting;
        if now.ms_since(*since) >= MEMORY_MS {
            (*since, *asks) = (now, 0);
        }
        *asks += 1;
        *asks <= WAITING_ASKS_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use reveille_core::answer::ServiceView;
    use reveille_core::model::Phase;
    use tokio::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::limit::{Arrival, Gate, Writers};
    use crate::respond::Transport;

    const NOW: Timestamp = Timestamp::from_ms(1_795_000_000_000);

    /// One thread's asker behind a gate with a monitor at 192.0.2.7 that wakes nothing.
    struct World {
        gate: Gate,
        asker: WakeAsker,
        asks: Receiver<WakeAsk>,
        service: ServiceView,
    }

    impl World {
        fn new(config: &str, phase: Phase) -> Self {
            let rule = "[[rule]]\naction = \"no_wake\"\nnetwork = [\"192.0.2.7/32\"]\n";
            let config = toml::from_str(&format!("{config}\n{rule}")).unwrap();
            let (sender, asks) = mpsc::channel(1_024);
            let service = ServiceView::asleep("hello.vm.test".parse().unwrap(), Ipv4Addr::new(127, 64, 0, 1));
            Self {
                gate: Gate::new(&config, [], NOW).unwrap(),
                asker: WakeAsker::new(sender, Arc::default()),
                asks,
                service: ServiceView { phase, ..service },
            }
        }

        /// Whether the service is, or will be, woken for that client, and what the slow loop hears of it.
        fn ask(&mut self, client: &str) -> (bool, Vec<AskKind>) {
            let peer = client.parse().unwrap();
            let tally = self.gate.tally(Writers::One);
            let judge = self.gate.judge(NOW, &tally);
            let transport = Transport::Udp;
            let arrival = Arrival { peer, transport, cookie: None, subnet: None, qtype: 1, zone: Some(0) };
            let client = judge.arrive(&arrival);
            let wish = WakeWish { service: &self.service, qtype: 1, subnet: None };
            let is_starting = self.service.phase.is_starting();
            let is_woken = self.asker.ask(wish, peer, NOW, is_starting, |kind| judge.lets(&client, 0, kind));
            (is_woken, std::iter::from_fn(|| self.asks.try_recv().ok()).map(|ask| ask.kind).collect())
        }
    }

    /// A service that an operator ends while it boots must not come up again by a monitor that looks at it.
    #[test]
    fn who_may_wake_nothing_asks_for_nothing_whatever_the_service_does() {
        for (config, phase) in [
            ("", Phase::Warming),
            ("wake.mode = \"off\"", Phase::Booting),
            ("wake.mode = \"dry_run\"", Phase::Restoring),
        ] {
            let mut world = World::new(config, phase);
            // It is on its way up, so there is something to wait for.
            assert_eq!(world.ask("192.0.2.7"), (true, vec![]), "{config} {phase}");
            let others = if config.is_empty() { vec![AskKind::Wait] } else { vec![] };
            assert_eq!(world.ask("192.0.2.8"), (true, others), "{config} {phase}");
            for _ in 0..=WAITING_ASKS_MAX {
                world.ask("192.0.2.7");
            }
            assert_eq!(
                world.ask("192.0.2.8").1.len(),
                usize::from(config.is_empty()),
                "{config}: nothing used up"
            );
        }
        let mut world = World::new("", Phase::Hibernated);
        assert_eq!(world.ask("192.0.2.7"), (false, vec![]));
        assert_eq!(world.ask("192.0.2.8"), (true, vec![AskKind::Wake]));
        assert_eq!(world.ask("192.0.2.7"), (false, vec![]), "not behind another's back either");
        // Where the gate is only tried out, rules forbid nothing.
        assert_eq!(
            World::new("dry_run = true", Phase::Warming).ask("192.0.2.7"),
            (true, vec![AskKind::Wait])
        );
    }

    #[test]
    fn a_service_is_charged_once_and_asked_for_as_often_as_it_counts() {
        let config = "wake.client_per_min = 60\nwake.client_burst = 1";
        let mut world = World::new(config, Phase::Hibernated);
        assert_eq!((0..1_000).map(|_| world.ask("192.0.2.8").1.len()).sum::<usize>(), ASKS_MAX as usize);
        let mut world = World::new(config, Phase::Booting);
        let mut heard = (0..1_000).flat_map(|_| world.ask("192.0.2.8").1);
        assert!(heard.all(|kind| kind == AskKind::Wait));
    }
}
