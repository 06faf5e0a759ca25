//! UDP: dedicated threads, each with a socket of its own on the same address (SO_REUSEPORT), so that queries do
//! not wait for tokio's workers. Nothing here allocates, locks or logs for an ordinary query.
//!
//! A thread takes all datagrams that have come, up to [`BATCH_MAX`], answers them from one view and sends the answers
//! with one call. A view that was published before a query came is the one that it is answered from.

mod batch;
mod echo;

use std::hint::black_box;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::answer::{Place, Slot, View};
use reveille_core::model::Timestamp;

use crate::fast::{self, Head};
use crate::hold::HoldRoom;
use crate::observe::{NameCounts, Producer, Sighting};
use crate::respond::{Transport, WakeWish, respond};
use crate::server::Clock;
use crate::tally::{BatchTally, Tally, bump};
use crate::wake::WakeAsker;
use batch::{BATCH_MAX, Batch};
pub use echo::echo;

/// How long a thread sleeps at most before it looks whether to stop, should the wake-up have been missed.
pub(crate) const LOOK_MS: u64 = 1_000;
/// Pause after an error of the socket, so that a lasting one does not take a whole core.
const ERROR_PAUSE_MS: u64 = 5;

/// One thread's tools.
pub(crate) struct Worker {
    pub socket: Arc<UdpSocket>,
    pub shared: Arc<ArcSwap<View>>,
    pub clock: Clock,
    pub asker: WakeAsker,
    pub hold: HoldRoom,
    pub tally: Arc<Tally>,
    pub counts: Arc<NameCounts>,
    pub ring: Producer,
    pub stop: Arc<AtomicBool>,
}

/// What a batch is answered from.
#[derive(Clone, Copy)]
struct Moment<'v> {
    view: &'v View,
    now: Timestamp,
    now_s: u32,
}

impl Worker {
    /// Starts the thread.
    pub fn start(self, name: String) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name(name).spawn(move || self.run())
    }

    fn run(mut self) {
        let mut batch = Batch::new();
        let mut out = Vec::with_capacity(usize::from(crate::wire::UDP_PAYLOAD_MAX));
        while !self.stop.load(Acquire) {
            let got = match batch.receive(&self.socket) {
                Ok(got) => got,
                Err(error) => {
                    self.rest_after(&error);
                    continue;
                }
            };
            let mut tally = BatchTally::default();
            {
                let view = self.shared.load();
                let now = (self.clock)();
                let now_s = u32::try_from(now.as_ms() / 1_000).unwrap_or(u32::MAX);
                self.answer(&mut batch, got, Moment { view: &view, now, now_s }, &mut tally, &mut out);
            }
            // Counted before it is sent: who has an answer finds it counted.
            self.tally.add(&tally);
            self.ring.flush();
            let failed = batch.send(&self.socket);
            if failed > 0 {
                self.tally.socket_errors.fetch_add(failed as u64, Relaxed);
            }
        }
    }

    /// Answers every datagram of a batch. Each step is done for all of them before the next one, so that the waits
    /// for memory of many names overlap.
    fn answer(
        &mut self,
        batch: &mut Batch,
        got: usize,
        at: Moment<'_>,
        tally: &mut BatchTally,
        out: &mut Vec<u8>,
    ) {
        let mut heads = [None; BATCH_MAX];
        let mut places: [Option<Place<'_>>; BATCH_MAX] = [None; BATCH_MAX];
        let mut slots: [Option<&Slot>; BATCH_MAX] = [None; BATCH_MAX];
        for (index, head) in heads.iter_mut().enumerate().take(got) {
            *head = Head::read(batch.packet(index), at.view);
        }
        for (head, place) in heads.iter().zip(&mut places) {
            *place = head.as_ref().map(|head| at.view.names().place(head.hash()));
        }
        // Loads that nothing waits for: the processor has them all under way at a time.
        black_box(places.iter().flatten().fold(0, |sum, place| sum ^ place.touch()));
        for (index, slot) in slots.iter_mut().enumerate().take(got) {
            let (Some(Some(head)), Some(Some(place))) = (heads.get(index), places.get(index)) else {
                continue;
            };
            *slot = place.find(head.name(batch.packet(index)));
        }
        black_box(slots.iter().flatten().fold(0, |sum, slot| sum ^ self.counts.get(slot.counter())));
        for (index, (head, slot)) in heads.iter().zip(slots).enumerate().take(got) {
            let Some(peer) = batch.peer(index) else { continue };
            let length = match head {
                Some(head) => self.answer_fast(batch, index, peer, (head, slot), at, tally),
                None => None,
            };
            let length = length.or_else(|| self.answer_generally(batch, index, peer, at, tally, out));
            if let Some(length) = length {
                batch.answer(index, length);
            }
        }
    }

    /// Writes the answer into its place in the batch; `None` leaves the question to the general way.
    fn answer_fast(
        &mut self,
        batch: &mut Batch,
        index: usize,
        peer: SocketAddr,
        (head, slot): (&Head, Option<&Slot>),
        at: Moment<'_>,
        tally: &mut BatchTally,
    ) -> Option<usize> {
        let (packet, out) = batch.query(index)?;
        let written = fast::answer(at.view, packet, head, slot, at.now_s, out)?;
        tally.answered(written.rcode);
        let subnet = head.edns().and_then(|edns| edns.subnet);
        let counter = written.slot.map_or(0, Slot::counter);
        self.counts.bump(counter);
        self.ring.push(&Sighting {
            at: at.now,
            counter,
            name: head.name(packet),
            qtype: head.qtype(),
            rcode: written.rcode,
            transport: Transport::Udp,
            client: peer.ip(),
            subnet,
        });
        if let Some(service) = written.slot.and_then(Slot::service).filter(|_| written.wakes) {
            let wish = WakeWish { service, qtype: head.qtype(), subnet };
            self.asker.ask(wish, at.view.generation, peer.ip());
        }
        Some(written.length)
    }

    fn answer_generally(
        &mut self,
        batch: &mut Batch,
        index: usize,
        peer: SocketAddr,
        at: Moment<'_>,
        tally: &mut BatchTally,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let (packet, place) = batch.query(index)?;
        let outcome = respond(at.view, packet, peer, Transport::Udp, at.now, out);
        tally.query(&outcome);
        self.counts.bump(outcome.counter);
        if let Some(wish) = outcome.wake {
            self.asker.ask(wish, at.view.generation, peer.ip());
        }
        if let Some(ms_max) = outcome.hold_ms_max
            && let Some(held) = self.hold.take(packet, peer, Transport::Udp, ms_max)
        {
            self.hold.answer_later(held, Arc::clone(&self.socket));
            return None;
        }
        outcome.written?;
        place.get_mut(..out.len())?.copy_from_slice(out);
        Some(out.len())
    }

    fn rest_after(&self, error: &io::Error) {
        let only_time_passed = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
        );
        if !only_time_passed {
            bump(&self.tally.socket_errors);
            thread::sleep(Duration::from_millis(ERROR_PAUSE_MS));
        }
    }
}
