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

/// A question wants a service that does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WakeAsk {
    /// The service.
    pub service: DomainName,
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

    /// Passes the wish on unless it has been often enough; `allowed` judges it unless the service is on its way up, or
    /// was asked for just now. Tells whether the service is, or will be, woken for the asker.
    pub fn ask(
        &mut self,
        wish: WakeWish<'_>,
        client: IpAddr,
        now: Timestamp,
        is_starting: bool,
        allowed: impl FnOnce() -> bool,
    ) -> bool {
        if is_starting && !self.may_count(now) {
            bump(&self.tally.wakes_coalesced);
            return true;
        }
        let service = std::ptr::from_ref(wish.service).addr();
        // Allocations are aligned, so the lowest bits say nothing.
        let slot = &mut self.slots[(service >> 4) % SLOTS];
        let remembered = slot.service == service && now.ms_since(slot.since) < MEMORY_MS;
        if !remembered {
            if !is_starting && !allowed() {
                return false;
            }
            *slot = Slot { service, since: now, asks: 0 };
        }
        if slot.asks >= ASKS_MAX {
            bump(&self.tally.wakes_coalesced);
            return true;
        }
        let ask = WakeAsk {
            service: wish.service.name.clone(),
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
