//! From messages of other servers to sightings: which count, as what, and when. Knows no socket.
//!
//! A message counts if its type is one of those that the settings name, and its question is for a name in a zone that
//! is served here. The name leads to a service by the same code that answers ([`answer`]): through aliases, wildcards
//! and labels in front, so a question is counted here as if it had been asked here.
//!
//! **Time.** A question counts in the second in which its sender says it was asked, since senders keep frames back for
//! some seconds. A sender whose clock is off by more than [`CLOCK_OFF_MS_MAX`] is not believed: the time at which its
//! message came is taken, and the case counted.
//!
//! **Addresses.** Who asked goes into the sketches of [`Aggregate`] as part of a network and as a keyed hash. It is not
//! copied anywhere else, so it is gone with the buffer that the frame was read into.

use std::collections::BTreeSet;
use std::hash::RandomState;
use std::net::{IpAddr, Ipv6Addr};

use reveille_core::answer::{Asker, Question, Slot, View, answer, rdata};
use reveille_core::model::Timestamp;

use super::message::{Dnstap, Message, MessageType, SocketProtocol};
use super::protobuf::DecodeError;
use super::seconds::{SecondCount, SecondCounts};
use super::sources::{SourceId, SourceStatus, Sources};
use crate::observe::{Aggregate, Hear, Observations, Observed, ServiceQueries};
use crate::respond::Transport;
use crate::wire::{Query, Subnet, question_of};

/// Furthest that a sender's time may lie behind the clock here, in milliseconds. Senders hand frames over after some
/// seconds at most, and what is counted is kept for a minute.
pub const CLOCK_OFF_MS_MAX: u64 = 30_000;
/// Furthest that it may lie ahead: as clocks differ that are kept in step. It is then taken for now.
const CLOCK_AHEAD_MS_MAX: u64 = 2_000;

/// Why a message was not counted and should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error(transparent)]
    Message(#[from] DecodeError),
    #[error("the DNS message in it has no question")]
    NoQuestion,
}

/// What all senders have said so far.
pub(super) struct Intake {
    wanted: BTreeSet<MessageType>,
    per_second_max: u32,
    /// Messages that were looked at in this second.
    looked_at: (u32, u32),
    /// Messages that were not looked at because there were too many.
    over_rate: u64,
    aggregate: Aggregate,
    seconds: SecondCounts,
    sources: Sources,
    hear: Option<Hear>,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("sources", &self.sources).finish_non_exhaustive()
    }
}

impl Intake {
    /// Nothing was said yet. `hash` is a secret of this process.
    pub fn new(wanted: &[MessageType], per_second_max: u32, hash: RandomState, now: Timestamp) -> Self {
        Self {
            wanted: wanted.iter().copied().collect(),
            per_second_max,
            looked_at: (0, 0),
            over_rate: 0,
            aggregate: Aggregate::new(hash, now),
            seconds: SecondCounts::default(),
            sources: Sources::default(),
            hear: None,
        }
    }

    /// The same, with somebody who hears of each question that counts.
    pub fn heard_by(self, hear: Option<Hear>) -> Self {
        Self { hear, ..self }
    }

    /// Takes a message in. `peer` is where it came from, the sender's name if it gives none.
    ///
    /// # Errors
    /// It cannot be read; that is counted.
    pub fn take(
        &mut self,
        view: &View,
        payload: &[u8],
        peer: &str,
        now: Timestamp,
    ) -> Result<(), Unreadable> {
        let now_s = second(now);
        if self.looked_at.0 != now_s {
            self.looked_at = (now_s, 0);
        }
        if self.looked_at.1 >= self.per_second_max {
            self.over_rate += 1;
            return Ok(());
        }
        self.looked_at.1 += 1;
        let said = Dnstap::decode(payload).inspect_err(|_| {
            let source = self.sources.find(&[], peer);
            self.count(source, |of| &mut of.unreadable);
        })?;
        let source = self.sources.find(said.identity, peer);
        let message = &said.message;
        if !message.kind.is_some_and(|kind| self.wanted.contains(&kind)) {
            self.count(source, |of| &mut of.other_types);
            return Ok(());
        }
        let Some((question, subnet)) = question_in(message) else {
            self.count(source, |of| &mut of.unreadable);
            return Err(Unreadable::NoQuestion);
        };
        let is_inside = question.qclass == rdata::CLASS_IN
            && view.zones().for_question(&question.name, question.qtype).is_some();
        if !is_inside {
            self.count(source, |of| &mut of.outside);
            return Ok(());
        }
        let at = match asked_at(message, now) {
            Some(at) => at,
            None => {
                self.count(source, |of| &mut of.clock_off);
                now
            }
        };
        let client = message.query_address.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let counter = counter_of(view, &question, client, now);
        self.count(source, |of| &mut of.counted);
        self.seconds.add(second(at), source, counter);
        let name = if counter == 0 { question.name.as_wire().to_vec() } else { Vec::new() };
        let (qtype, transport) = (question.qtype, transport(message.protocol));
        // What was answered elsewhere, and for how long it is kept, is not looked at.
        let (rcode, ttl_s, proven) = (0, None, transport.proves_address());
        let seen = Observed { at, counter, name, qtype, rcode, transport, client, subnet, ttl_s, proven };
        if let Some(hear) = &mut self.hear {
            hear(&seen);
        }
        self.aggregate.take(seen);
        Ok(())
    }

    /// Forgets what is too old; to be called every now and then.
    pub fn look(&mut self, now: Timestamp) {
        self.aggregate.look(self.dropped(), now);
        self.seconds.prune(second(now));
    }

    /// What there is to tell of all senders.
    pub fn observations(&self) -> Observations {
        self.aggregate.observations()
    }

    /// What is known of the questions for the service with that counter.
    pub fn service(&self, counter: u32, now: Timestamp) -> ServiceQueries {
        self.aggregate.service(counter, now)
    }

    /// Takes out the counts of the seconds before `before_s`.
    pub fn take_seconds(&mut self, before_s: u32) -> Vec<SecondCount> {
        self.seconds.take(before_s)
    }

    /// What was counted of each sender.
    pub fn sources(&self) -> &[SourceStatus] {
        self.sources.all()
    }

    /// Messages that are in no count because there were too many.
    pub fn dropped(&self) -> u64 {
        self.over_rate + self.seconds.lost()
    }

    fn count(&mut self, source: SourceId, what: impl FnOnce(&mut SourceStatus) -> &mut u64) {
        if let Some(status) = self.sources.status(source) {
            *what(status) += 1;
        }
    }
}

/// The question that a message tells of, and on whose behalf it was asked, if that is said.
pub fn question_in(message: &Message<'_>) -> Option<(Question, Option<Subnet>)> {
    let of_response = || question_of(message.response_message).map(|question| (question, None));
    if message.query_message.is_empty() {
        return of_response();
    }
    match Query::parse(message.query_message) {
        Ok(query) => Some((query.question, query.edns.and_then(|edns| edns.subnet))),
        // What would not be answered here may have been answered there.
        Err(_) => question_of(message.query_message).map(|question| (question, None)).or_else(of_response),
    }
}

/// When the question was asked; `None` if its sender's clock cannot be believed.
fn asked_at(message: &Message<'_>, now: Timestamp) -> Option<Timestamp> {
    let Some(said) = message.query_time.or(message.response_time) else { return Some(now) };
    let (behind_ms, ahead_ms) = (now.ms_since(said), said.ms_since(now));
    (behind_ms <= CLOCK_OFF_MS_MAX && ahead_ms <= CLOCK_AHEAD_MS_MAX).then(|| said.min(now))
}

/// The number of the counter of the service that would answer, or else has the name; 0 if there is none.
fn counter_of(view: &View, question: &Question, client: IpAddr, now: Timestamp) -> u32 {
    let reply = answer(view, question, Asker { address: client, key: None }, now);
    match reply.service {
        Some(service) => service.counter,
        None => view.names().find(question.name.as_wire()).map_or(0, Slot::counter),
    }
}

fn transport(protocol: Option<SocketProtocol>) -> Transport {
    match protocol {
        None | Some(SocketProtocol::Udp | SocketProtocol::DnscryptUdp) => Transport::Udp,
        Some(SocketProtocol::Tcp | SocketProtocol::DnscryptTcp) => Transport::Tcp,
        Some(SocketProtocol::Dot | SocketProtocol::Doq) => Transport::Tls,
        Some(SocketProtocol::Doh) => Transport::Https,
    }
}

fn second(at: Timestamp) -> u32 {
    u32::try_from(at.as_ms() / 1_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
