//! The way of an update from a packet to whoever judges it, and of the verdict back: bounded, and never waited for
//! by a thread that answers queries.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reveille_core::answer::{Rcode, Reply, rdata};
use reveille_core::model::DomainName;
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use super::judge::Refusal;
use super::message::{OPCODE_UPDATE, UPDATE_RECORDS_MAX, UpdateMessage, header_of, oversized, zone_alone};
use crate::limit::{Arrival, Client, Entry, Kind, RateVerdict};
use crate::respond::{Origin, Outcome, Setting, Transport};
use crate::tally::{Tally, bump};
use crate::tsig::{Exchange, Rejection, Signature};
use crate::wire::{Envelope, Header, Query, Written, write_error, write_reply};

/// Most updates that wait for their verdict at a time; further ones are told to come again (SERVFAIL).
pub const UPDATES_WAITING_MAX: usize = 1_024;
/// Longest wait for a verdict: shorter than clients wait before they send the same again.
const VERDICT_MS_MAX: u64 = 2_500;

/// What a judge says of an update.
pub type Verdict = Result<(), Refusal>;

/// An update whose signature is right, for [`super::StaticBook`] to judge.
#[derive(Debug)]
pub struct UpdateAsk {
    /// What it says.
    pub message: UpdateMessage,
    /// The key that signed it.
    pub key: DomainName,
    /// Where it came from.
    pub client: IpAddr,
    /// Takes the verdict, once what was changed is durable and visible. Dropped, it is SERVFAIL.
    pub verdict: oneshot::Sender<Verdict>,
}

/// Where updates come in. Cloning shares the limit.
#[derive(Clone)]
pub(crate) struct UpdateDoor {
    asks: Sender<UpdateAsk>,
    /// Not a thread's own: answers that waited are counted by whoever brings them.
    tally: Arc<Tally>,
    places: Arc<Semaphore>,
}

/// What becomes of an update at first.
pub(crate) enum Admitted {
    /// The answer is written.
    Answered(Outcome<'static>),
    /// It waits for its verdict.
    Waiting(Box<WaitingUpdate>),
}

/// An update that waits for its verdict.
pub(crate) struct WaitingUpdate {
    query: Query,
    exchange: Exchange,
    transport: Transport,
    verdict: oneshot::Receiver<Verdict>,
    until: Instant,
    tally: Arc<Tally>,
    _place: OwnedSemaphorePermit,
}

/// Whether a packet is an update.
pub(crate) fn is_update(packet: &[u8]) -> bool {
    // Not an answer, and the opcode.
    packet.len() >= 12 && packet.get(2).is_some_and(|flags| flags >> 3 == OPCODE_UPDATE)
}

impl UpdateDoor {
    pub fn new(asks: Sender<UpdateAsk>, tally: Arc<Tally>) -> Self {
        Self { asks, tally, places: Arc::new(Semaphore::new(UPDATES_WAITING_MAX)) }
    }

    /// Takes in a packet that is an update; an answer that can be given at once is written into `out`.
    ///
    /// The signature is verified before the rest is read: whoever has no key costs little, and errors to them are
    /// limited like all others. One without a signature is REFUSED (RFC 2136 §3.3, RFC 3007 §3).
    pub fn admit(&self, at: &Setting<'_, '_>, packet: &[u8], from: &Origin, out: &mut Vec<u8>) -> Admitted {
        out.clear();
        let Some(header) = header_of(packet) else { return Admitted::Answered(Outcome::default()) };
        let Origin { peer, transport, .. } = *from;
        let arrival =
            Arrival { peer: peer.ip(), transport, cookie: None, subnet: None, qtype: rdata::SOA, zone: None };
        let client = from.client.or_else(|| at.judge.map(|judge| judge.arrive(&arrival)));
        let entry = client.map_or(Entry::Enter, |client| client.entry);
        let stranger = Stranger { at, client, header };
        match entry {
            Entry::Drop => return Admitted::Answered(Outcome { client, ..Outcome::default() }),
            Entry::Refuse => return stranger.refuse(Rcode::Refused, out),
            // A signature proves more than a cookie.
            Entry::Enter | Entry::BadCookie | Entry::Truncate => {}
        }
        let Some(query) = zone_alone(packet) else { return stranger.refuse(Rcode::FormErr, out) };
        let signature = match Signature::find(packet) {
            Ok(Some(signature)) => signature,
            Ok(None) => return stranger.refuse(Rcode::Refused, out),
            Err(_) => return stranger.refuse(Rcode::FormErr, out),
        };
        let keys = at.keys.map(|keys| keys.verify(packet, &signature));
        match keys {
            Some(Ok(exchange)) => self.pass_on(packet, from, exchange, out),
            Some(Err(rejection)) => stranger.reject(&query, &signature, rejection, transport, out),
            None => stranger.refuse(Rcode::Refused, out),
        }
    }

    /// Sends an update whose signature is right to its judge.
    fn pass_on(&self, packet: &[u8], from: &Origin, exchange: Exchange, out: &mut Vec<u8>) -> Admitted {
        let Some(message) = UpdateMessage::parse(packet) else {
            return unread(packet, from, exchange, out);
        };
        let query = message.query.clone();
        let refused = |refusal: &Refusal, mut exchange: Exchange, out: &mut Vec<u8>| {
            answered(write_signed(&query, &refusal.reply(), &mut exchange, from.transport, out))
        };
        if query.edns.is_some_and(|edns| edns.version != 0) {
            let why = "only version 0 of EDNS is spoken here";
            return refused(&Refusal::new(Rcode::BadVers, why), exchange, out);
        }
        let (verdict, answer) = oneshot::channel();
        let (key, client) = (exchange.key_name().clone(), from.peer.ip().to_canonical());
        let ask = UpdateAsk { message, key, client, verdict };
        let place = Arc::clone(&self.places).try_acquire_owned();
        let (Ok(place), true) = (place, self.asks.try_send(ask).is_ok()) else {
            bump(&self.tally.updates_dropped);
            let why = "too many updates wait; try again";
            return refused(&Refusal::new(Rcode::ServFail, why), exchange, out);
        };
        bump(&self.tally.updates);
        Admitted::Waiting(Box::new(WaitingUpdate {
            query,
            exchange,
            transport: from.transport,
            verdict: answer,
            until: Instant::now() + Duration::from_millis(VERDICT_MS_MAX),
            tally: Arc::clone(&self.tally),
            _place: place,
        }))
    }
}

/// Somebody who has not proved to have a key.
struct Stranger<'s> {
    at: &'s Setting<'s, 's>,
    client: Option<Client>,
    header: Header,
}

impl Stranger<'_> {
    /// Whether an error to them is one too many.
    fn is_limited(&self) -> bool {
        let judged = self.at.judge.zip(self.client);
        judged.is_some_and(|(judge, client)| judge.rate(&client, Kind::Error) == RateVerdict::Drop)
    }

    fn refuse(&self, rcode: Rcode, out: &mut Vec<u8>) -> Admitted {
        let written = (!self.is_limited()).then(|| write_error(self.header, rcode, out));
        Admitted::Answered(Outcome { written, client: self.client, ..Outcome::default() })
    }

    fn reject(
        &self,
        query: &Query,
        signature: &Signature,
        rejection: Rejection,
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Admitted {
        let known = Outcome { signature_refused: true, client: self.client, ..Outcome::default() };
        if self.is_limited() {
            return Admitted::Answered(known);
        }
        let envelope = Envelope { signature_bytes: rejection.room(signature), ..transport.envelope() };
        let reply = Reply { rcode: rejection.rcode(), authoritative: false, ..Reply::empty() };
        let written = Some(write_reply(query, &reply, &envelope, out));
        rejection.sign(signature, out);
        Admitted::Answered(Outcome { written, ..known })
    }
}

impl WaitingUpdate {
    /// Waits for the verdict and writes the answer, signed.
    pub async fn answer(mut self) -> Vec<u8> {
        let verdict = match timeout_at(self.until, &mut self.verdict).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) => Err(Refusal::new(Rcode::ServFail, "the update could not be made")),
            Err(_) => Err(Refusal::new(
                Rcode::ServFail,
                "the update is not made yet; ask for it before you repeat it",
            )),
        };
        let reply = match &verdict {
            Ok(()) => Reply { authoritative: false, ..Reply::empty() },
            Err(refusal) => refusal.reply(),
        };
        let mut out = Vec::with_capacity(512);
        let written = write_signed(&self.query, &reply, &mut self.exchange, self.transport, &mut out);
        self.tally.query(&Outcome { written: Some(written), ..Outcome::default() });
        out
    }
}

/// Answers an update that could not be read: REFUSED if it is only too long, so that its sender divides it.
fn unread(packet: &[u8], from: &Origin, mut exchange: Exchange, out: &mut Vec<u8>) -> Admitted {
    let Some((query, records)) = oversized(packet) else {
        let written = header_of(packet).map(|header| write_error(header, Rcode::FormErr, out));
        exchange.sign(out);
        return Admitted::Answered(Outcome { written, ..Outcome::default() });
    };
    let (key, client) = (exchange.key_name(), from.peer.ip().to_canonical());
    let why = format!("{records} records are more than the {UPDATE_RECORDS_MAX} of an update; send several");
    let refusal = Refusal::new(Rcode::Refused, why);
    tracing::info!(%key, %client, %refusal, "update refused");
    answered(write_signed(&query, &refusal.reply(), &mut exchange, from.transport, out))
}

fn answered(written: Written) -> Admitted {
    Admitted::Answered(Outcome { written: Some(written), ..Outcome::default() })
}

fn write_signed(
    query: &Query,
    reply: &Reply<'_>,
    exchange: &mut Exchange,
    transport: Transport,
    out: &mut Vec<u8>,
) -> Written {
    let envelope = Envelope { signature_bytes: exchange.room(), ..transport.envelope() };
    let written = write_reply(query, reply, &envelope, out);
    exchange.sign(out);
    written
}
