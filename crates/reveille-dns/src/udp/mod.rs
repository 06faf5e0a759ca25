//! UDP: dedicated threads, each with a socket of its own on the same address (SO_REUSEPORT), so that queries do
//! not wait for tokio's workers. Nothing here allocates, locks or logs for an ordinary query.
//!
//! A thread takes all datagrams that have come, up to [`BATCH_MAX`], answers them from one view and sends the answers
//! with one call. A view that was published before a query came is the one that it is answered from.

mod batch;
mod echo;
mod local;
mod options;

use std::hint::black_box;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;
use reveille_core::answer::{Kinds, Place, Slot, View};
use reveille_core::model::Timestamp;

use crate::dnstap::{TapWriter, Tapped};
use crate::fast::{self, Head};
use crate::hold::{HoldRoom, Waiting};
use crate::limit::{Arrival, Client, Entry, Gate, RateVerdict, Writers};
use crate::observe::{NameCounts, Producer, Sighting, proves};
use crate::respond::{Origin, Setting, Transport, WakeWish, respond};
use crate::server::Clock;
use crate::tally::{BatchTally, Tally, bump};
use crate::update::{Admitted, is_update};
use crate::wake::WakeAsker;
pub(crate) use batch::send_alone;
use batch::{BATCH_MAX, Batch};
pub use echo::echo;
pub(crate) use local::LeaveFrom;
pub(crate) use options::{ignore_path_mtu, tell_addresses};

/// How long a thread sleeps at most before it looks whether to stop, should the wake-up have been missed.
pub(crate) const LOOK_MS: u64 = 1_000;
/// Pause after an error of the socket, so that a lasting one does not take a whole core.
const ERROR_PAUSE_MS: u64 = 5;

/// One thread's tools.
pub(crate) struct Worker {
    pub socket: Arc<UdpSocket>,
    /// Where the socket is bound.
    pub bound: SocketAddr,
    pub shared: Arc<ArcSwap<View>>,
    pub clock: Clock,
    pub asker: WakeAsker,
    pub hold: HoldRoom,
    pub tally: Arc<Tally>,
    pub counts: Arc<NameCounts>,
    pub ring: Producer,
    /// Where messages are handed over for dnstap, if they are.
    pub tap: Option<TapWriter>,
    pub gate: Option<Arc<Gate>>,
    pub stop: Arc<AtomicBool>,
}

/// What a batch is answered from.
#[derive(Clone, Copy)]
struct Moment<'v, 'g> {
    setting: Setting<'v, 'g>,
    /// Seconds since 1970.
    now_s: u32,
}

/// What became of a question on the fast way.
enum Fast {
    /// Its answer has that length.
    Written(usize),
    /// It is not answered.
    Silence,
    /// It is left to the general way, with what the gate has judged already: the question, and the answer.
    General(Option<Client>, Option<RateVerdict>),
}

impl Worker {
    /// Starts the thread.
    pub fn start(self, name: String) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name(name).spawn(move || self.run())
    }

    fn run(mut self) {
        let mut batch = Batch::new(&self.socket);
        let mut out = Vec::with_capacity(usize::from(crate::wire::UDP_PAYLOAD_MAX));
        let gate = self.gate.take().map(|gate| {
            let tally = gate.tally(Writers::One);
            (gate, tally)
        });
        let keys = self.hold.keys.clone();
        while !self.stop.load(Acquire) {
            let got = match batch.receive(&self.socket) {
                Ok(got) => got,
                Err(error) => {
                    self.rest_after(&error);
                    continue;
                }
            };
            let mut tally = BatchTally::default();
            let now = (self.clock)();
            {
                let view = self.shared.load();
                let gate =
                    gate.as_ref().map(|(gate, tally)| gate.judge_for(view.zones().numbering(), now, tally));
                let setting = Setting { view: &view, now, judge: gate.as_ref(), keys: Some(&keys) };
                let now_s = u32::try_from(now.as_ms() / 1_000).unwrap_or(u32::MAX);
                self.answer(&mut batch, got, Moment { setting, now_s }, &mut tally, &mut out);
            }
            // Counted before it is sent: who has an answer finds it counted.
            self.tally.add(&tally);
            self.ring.flush();
            if let Some(tap) = &mut self.tap {
                hand_over(tap, &batch, got, self.bound, now);
            }
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
        at: Moment<'_, '_>,
        tally: &mut BatchTally,
        out: &mut Vec<u8>,
    ) {
        let view = at.setting.view;
        let mut heads = [None; BATCH_MAX];
        let mut places: [Option<Place<'_>>; BATCH_MAX] = [None; BATCH_MAX];
        let mut slots: [Option<&Slot>; BATCH_MAX] = [None; BATCH_MAX];
        for (index, head) in heads.iter_mut().enumerate().take(got) {
            *head = Head::read(batch.packet(index), view);
        }
        for (head, place) in heads.iter().zip(&mut places) {
            *place = head.as_ref().map(|head| view.names().place(head.hash()));
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
            if !may_be_answered(peer, batch.leave_from(index), self.bound) {
                tally.dropped();
                continue;
            }
            let fast = match head {
                Some(head) => self.answer_fast(batch, index, peer, (head, slot), at, tally),
                None => Fast::General(None, None),
            };
            let length = match fast {
                Fast::Written(length) => Some(length),
                Fast::Silence => None,
                Fast::General(client, verdict) => {
                    let from = Origin { client, verdict, ..Origin::new(peer, Transport::Udp) };
                    self.answer_generally(batch, index, &from, at, tally, out)
                }
            };
            if let Some(length) = length {
                batch.answer(index, length);
            }
        }
    }

    /// Answers an ordinary question into its place in the batch.
    fn answer_fast(
        &mut self,
        batch: &mut Batch,
        index: usize,
        peer: SocketAddr,
        (head, slot): (&Head, Option<&Slot>),
        at: Moment<'_, '_>,
        tally: &mut BatchTally,
    ) -> Fast {
        let Some((packet, out)) = batch.query(index) else { return Fast::Silence };
        let Some(found) = fast::look(at.setting.view, packet, head, slot) else {
            return Fast::General(None, None);
        };
        let edns = head.edns();
        let (subnet, cookie) =
            (edns.and_then(|edns| edns.subnet), edns.and_then(|edns| edns.cookie.as_ref()));
        let arrival = Arrival {
            peer: peer.ip(),
            transport: Transport::Udp,
            cookie,
            subnet: subnet.as_ref(),
            qtype: head.qtype(),
            zone: Some(found.zone),
        };
        let (client, verdict, cookie) = match at.setting.judge {
            None => (None, RateVerdict::Pass, None),
            Some(judge) => {
                let client = judge.arrive(&arrival);
                if client.entry != Entry::Enter {
                    return Fast::General(Some(client), None);
                }
                (Some(client), judge.rate(&client, found.kind), judge.cookie_for(&client, cookie))
            }
        };
        let length = match verdict {
            RateVerdict::Drop => None,
            RateVerdict::Slip => fast::write_truncated(packet, head, &found, cookie, out),
            RateVerdict::Pass => {
                let length = fast::write(at.setting.view, packet, head, &found, at.now_s, cookie, out);
                if length.is_none() {
                    return Fast::General(client, Some(verdict));
                }
                length
            }
        };
        let counter = found.slot.map_or(0, Slot::counter);
        self.counts.bump(counter);
        self.ring.push(&Sighting {
            at: at.setting.now,
            counter,
            name: head.name(packet),
            qtype: head.qtype(),
            rcode: found.rcode,
            transport: Transport::Udp,
            client: peer.ip(),
            subnet,
            proven: proves(Transport::Udp, client.as_ref()),
            ttl_s: if verdict == RateVerdict::Pass { found.ttl_s(at.setting.view, at.now_s) } else { None },
        });
        if verdict == RateVerdict::Drop {
            tally.dropped();
            return Fast::Silence;
        }
        tally.answered(found.rcode, verdict == RateVerdict::Slip);
        if let Some(slot) = found.slot.filter(|_| found.wakes && verdict == RateVerdict::Pass)
            && let Some(service) = slot.service()
        {
            let wish = WakeWish { service, qtype: head.qtype(), subnet };
            let is_starting = slot.kinds().any_of(Kinds::STARTING);
            self.wake(wish, peer, client.as_ref(), found.zone, is_starting, at);
        }
        length.map_or(Fast::Silence, Fast::Written)
    }

    /// Answers any packet into its place in the batch; `None` is silence, or an answer that comes later.
    fn answer_generally(
        &mut self,
        batch: &mut Batch,
        index: usize,
        from: &Origin,
        at: Moment<'_, '_>,
        tally: &mut BatchTally,
        out: &mut Vec<u8>,
    ) -> Option<usize> {
        let (packet, place) = batch.query(index)?;
        let outcome = match &self.hold.updates {
            Some(door) if is_update(packet) => match door.admit(&at.setting, packet, from, out) {
                Admitted::Answered(outcome) => outcome,
                Admitted::Waiting(update) => {
                    let socket = Arc::clone(&self.socket);
                    let leave_from = batch.leave_from(index);
                    self.hold.answer_later(Waiting::Update(update), from.peer, socket, leave_from);
                    return None;
                }
            },
            Some(_) | None => respond(&at.setting, packet, from, out),
        };
        tally.query(&outcome);
        self.counts.bump(outcome.counter);
        if let Some(sighting) = Sighting::of(packet, from, &outcome, at.setting.now) {
            self.ring.push(&sighting);
        }
        if let Some(wish) = outcome.wake {
            let is_starting = wish.service.phase.is_starting();
            let zone = outcome.zone.unwrap_or(u16::MAX);
            let wakes = self.wake(wish, from.peer, outcome.client.as_ref(), zone, is_starting, at);
            if wakes && let Some(held) = self.hold.take(packet, from, &outcome) {
                let socket = Arc::clone(&self.socket);
                let leave_from = batch.leave_from(index);
                self.hold.answer_later(Waiting::Question(held), from.peer, socket, leave_from);
                return None;
            }
        }
        outcome.written?;
        place.get_mut(..out.len())?.copy_from_slice(out);
        Some(out.len())
    }

    /// Passes a wish on if the gate lets it; tells whether the service is, or will be, woken.
    fn wake(
        &mut self,
        wish: WakeWish<'_>,
        peer: SocketAddr,
        client: Option<&Client>,
        zone: u16,
        is_starting: bool,
        at: Moment<'_, '_>,
    ) -> bool {
        let judge = at.setting.judge.zip(client);
        let allowed = |kind| judge.is_none_or(|(judge, client)| judge.lets(client, zone, kind));
        self.asker.ask(wish, peer.ip(), at.setting.now, is_starting, allowed)
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

/// Hands over a batch of messages, and the answers to them, for dnstap.
fn hand_over(tap: &mut TapWriter, batch: &Batch, got: usize, bound: SocketAddr, at: Timestamp) {
    let tapped = |index| {
        let own = match batch.leave_from(index) {
            LeaveFrom::Bound => Some(bound),
            LeaveFrom::Address(own) => Some(SocketAddr::new(own, bound.port())),
            LeaveFrom::Nowhere => None,
        };
        Some(Tapped { at, transport: Transport::Udp, client: batch.peer(index)?, own })
    };
    for index in 0..got {
        if let Some(tapped) = tapped(index) {
            tap.query(&tapped, batch.packet(index));
        }
    }
    if tap.wants_responses() {
        for (index, answer) in batch.ready() {
            if let Some(tapped) = tapped(index) {
                tap.response(&tapped, answer);
            }
        }
    }
    tap.flush();
}

/// Whether there is somebody to answer: a port that can be sent to, and not this very socket, which a forged sender
/// would make talk to itself; and an address from which the answer is known.
fn may_be_answered(peer: SocketAddr, leave_from: LeaveFrom, bound: SocketAddr) -> bool {
    let own = match leave_from {
        LeaveFrom::Bound => bound.ip(),
        LeaveFrom::Address(own) => own,
        LeaveFrom::Nowhere => return false,
    };
    peer.port() != 0 && !(peer.port() == bound.port() && peer.ip() == own)
}
