//! Questions that wait until their service is ready (policy `hold`).
//!
//! A held question is asked again of every new view. It is answered as soon as the answer does not want to wait
//! any more (ready, or refused, or gone), or when its time is over, with the answer of that moment.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::answer::View;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};

use crate::dnstap::{SharedTap, Tapped, with_shared};
use crate::respond::{Origin, Outcome, Setting, Transport, respond};
use crate::server::Clock;
use crate::tally::{Tally, bump};
use crate::tsig::Keyring;
use crate::udp::{LeaveFrom, send_alone};
use crate::update::{UpdateDoor, WaitingUpdate};
use crate::wire::COOKIE_BYTES;

/// Most questions that are held at a time; beyond it they are answered at once.
pub(crate) const HELD_QUERIES_MAX: usize = 4_096;

/// Where questions are held, on the tokio side. Cloning shares the limit.
#[derive(Clone)]
pub(crate) struct HoldRoom {
    pub runtime: Handle,
    pub shared: Arc<ArcSwap<View>>,
    pub keys: Keyring,
    /// Where updates go; without it they are not implemented here.
    pub updates: Option<UpdateDoor>,
    /// Changed after each new view is in place.
    pub generation: watch::Receiver<u64>,
    /// Becomes true when the server stops; held questions are answered then.
    pub stop: watch::Receiver<bool>,
    pub clock: Clock,
    pub places: Arc<Semaphore>,
    pub tally: Arc<Tally>,
    /// Where messages of connections, and answers that come later, are handed over for dnstap, if they are.
    pub tap: Option<SharedTap>,
}

impl fmt::Debug for HoldRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldRoom").field("places", &self.places.available_permits()).finish_non_exhaustive()
    }
}

/// What is answered later.
pub(crate) enum Waiting {
    /// A question, when its service is ready.
    Question(Held),
    /// An update, when it is judged and durable.
    Update(Box<WaitingUpdate>),
}

/// A question that has a place.
pub(crate) struct Held {
    packet: Vec<u8>,
    peer: SocketAddr,
    transport: Transport,
    cookie: Option<[u8; COOKIE_BYTES]>,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

impl HoldRoom {
    /// A place for a question that should wait, given what came of it so far; `None` if it should not, or all places
    /// are taken.
    pub fn take(&self, packet: &[u8], from: &Origin, outcome: &Outcome<'_>) -> Option<Held> {
        let ms_max = outcome.hold_ms_max?;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            bump(&self.tally.holds_refused);
            return None;
        };
        bump(&self.tally.held);
        let until = Instant::now() + Duration::from_millis(ms_max);
        let Origin { peer, transport, .. } = *from;
        Some(Held { packet: packet.to_vec(), peer, transport, cookie: outcome.cookie, until, _place: place })
    }

    /// Waits and gives the answer.
    pub async fn bring(self, waiting: Waiting) -> Vec<u8> {
        match waiting {
            Waiting::Question(held) => {
                let (tap, clock) = (self.tap.clone(), Arc::clone(&self.clock));
                let (client, transport) = (held.peer, held.transport);
                let answer = self.wait(held).await;
                if let Some(tap) = tap {
                    let tapped = Tapped { at: clock(), transport, client, own: None };
                    with_shared(&tap, |tap| tap.response(&tapped, &answer));
                }
                answer
            }
            Waiting::Update(update) => update.answer().await,
        }
    }

    /// Waits with the question and gives the answer.
    async fn wait(mut self, held: Held) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        loop {
            // Marked as seen before the view is read: a view that comes in between is looked at again.
            self.generation.borrow_and_update();
            let over = Instant::now() >= held.until || *self.stop.borrow();
            let wants_to_wait = {
                let view = self.shared.load();
                let now = (self.clock)();
                // It was judged when it came.
                let from = Origin { cookie: held.cookie, ..Origin::new(held.peer, held.transport) };
                let at = Setting { view: &view, now, judge: None, keys: Some(&self.keys) };
                let outcome = respond(&at, &held.packet, &from, &mut out);
                outcome.hold_ms_max.is_some()
            };
            if over || !wants_to_wait {
                return out;
            }
            tokio::select! {
                changed = self.generation.changed() => {
                    if changed.is_err() {
                        return out;
                    }
                }
                () = stopped(&mut self.stop) => {}
                () = sleep_until(held.until) => {}
            }
        }
    }

    /// Waits with what came as a datagram and sends the answer.
    pub fn answer_later(&self, waiting: Waiting, peer: SocketAddr, socket: Arc<UdpSocket>, from: LeaveFrom) {
        let room = self.clone();
        self.runtime.spawn(async move {
            let tally = Arc::clone(&room.tally);
            let out = room.bring(waiting).await;
            // A datagram goes out or is dropped at once unless the send buffer is full, and that is not waited for
            // long, so a worker does not stand.
            if send_alone(&socket, &out, peer, from).is_err() {
                bump(&tally.socket_errors);
            }
        });
    }
}

/// Returns when the server stops or is gone.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Gone without a word is stopped too.
    let _ = stop.wait_for(|&stop| stop).await;
}
