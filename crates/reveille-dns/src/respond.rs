//! From a packet to an answer, without a socket.

use std::net::SocketAddr;

use reveille_core::answer::{Asker, Ede, Rcode, Reply, ServiceView, Slot, View, answer, rdata};
use reveille_core::model::Timestamp;

use crate::limit::{Arrival, Client, Entry, Judge, Kind, RateVerdict};
use crate::wire::{Query, Subnet, Unreadable, Written, write_error, write_reply, write_truncated};

/// How a packet came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Datagram: the answer is bounded, and its sender may be forged.
    Udp,
    /// Stream.
    Tcp,
}

impl Transport {
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Udp => 0,
            Self::Tcp => 1,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Self {
        if number == 0 { Self::Udp } else { Self::Tcp }
    }
}

/// A question asks for a service that does not run.
#[derive(Debug, Clone, Copy)]
pub struct WakeWish<'v> {
    /// The service.
    pub service: &'v ServiceView,
    /// The question's type.
    pub qtype: u16,
    /// EDNS client subnet in the question.
    pub subnet: Option<Subnet>,
}

/// What came of a packet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome<'v> {
    /// The answer that was written; `None` is silence.
    pub written: Option<Written>,
    /// A wake that the question asks for.
    pub wake: Option<WakeWish<'v>>,
    /// The answer should wait up to this many milliseconds for the service to be ready. What was written is the
    /// answer for now, should holding not be possible.
    pub hold_ms_max: Option<u64>,
    /// Number of the counter of the question's name; 0 if it has none of its own.
    pub counter: u32,
}

/// Answers a packet from the view, writing the answer into `out` in place of what is there.
pub fn respond<'v>(
    view: &'v View,
    packet: &[u8],
    peer: SocketAddr,
    transport: Transport,
    now: Timestamp,
    out: &mut Vec<u8>,
) -> Outcome<'v> {
    out.clear();
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Unreadable::Silence) => return Outcome::default(),
        Err(Unreadable::Error { header, rcode }) => {
            return Outcome { written: Some(write_error(header, rcode, out)), ..Outcome::default() };
        }
    };
    let asker = Asker { address: peer.ip() };
    let reply = refusal(&query).unwrap_or_else(|| answer(view, &query.question, asker, now));
    let written = write_reply(&query, &reply, None, transport == Transport::Udp, out);
    outcome(view, &query, &reply, written)
}

/// What came of a packet that passed the gate.
#[derive(Debug, Clone, Copy)]
pub struct GatedOutcome<'v> {
    /// As without a gate. A wake in it is not judged yet: where it would be a new one, ask [`Judge::wake`] before it
    /// is passed on, and neither pass it on nor hold the question if that refuses.
    pub outcome: Outcome<'v>,
    /// Who asks. None if the packet is not to be answered by anybody.
    pub client: Option<Client>,
    /// The number of the question's zone.
    pub zone: Option<u16>,
}

/// Answers a packet from the view as [`respond`] does, if and as the gate lets it.
pub fn respond_at_gate<'v>(
    judge: &Judge<'_>,
    view: &'v View,
    packet: &[u8],
    peer: SocketAddr,
    transport: Transport,
    now: Timestamp,
    out: &mut Vec<u8>,
) -> GatedOutcome<'v> {
    out.clear();
    let mut gated = GatedOutcome { outcome: Outcome::default(), client: None, zone: None };
    let unread = Arrival { peer: peer.ip(), transport, cookie: None, subnet: None, qtype: 0, zone: None };
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Unreadable::Silence) => return gated,
        Err(Unreadable::Error { header, rcode }) => {
            let client = judge.arrive(&unread);
            gated.client = Some(client);
            if client.entry != Entry::Drop && judge.rate(&client, Kind::Error) != RateVerdict::Drop {
                gated.outcome.written = Some(write_error(header, rcode, out));
            }
            return gated;
        }
    };
    let question = &query.question;
    let zone = view.zones().for_question(&question.name, question.qtype);
    gated.zone = zone.and_then(|zone| judge.zone_number(question.name.ancestor_key(zone.apex_labels())));
    let edns = query.edns.as_ref();
    let cookie = edns.and_then(|edns| edns.cookie.as_ref());
    let subnet = edns.and_then(|edns| edns.subnet.as_ref());
    let client = judge.arrive(&Arrival { cookie, subnet, qtype: question.qtype, zone: gated.zone, ..unread });
    gated.client = Some(client);
    let (reply, kind) = match client.entry {
        Entry::Drop => return gated,
        Entry::Refuse => (Reply::error(Rcode::Refused, Ede::PROHIBITED, "not for this network"), Kind::Error),
        Entry::BadCookie => {
            (Reply { rcode: Rcode::BadCookie, authoritative: false, ..Reply::empty() }, Kind::Error)
        }
        Entry::Truncate => (Reply { authoritative: false, ..Reply::empty() }, Kind::Error),
        Entry::Enter => {
            let asker = Asker { address: peer.ip() };
            let reply = refusal(&query).unwrap_or_else(|| answer(view, question, asker, now));
            let kind = Kind::of(&reply);
            (reply, kind)
        }
    };
    let verdict = judge.rate(&client, kind);
    let cookie = judge.cookie_for(&client, cookie);
    let truncated = match (client.entry, verdict) {
        (_, RateVerdict::Drop) => return gated,
        (Entry::Truncate, RateVerdict::Pass | RateVerdict::Slip) => true,
        // An error says all it can as it is.
        (_, RateVerdict::Slip) => kind != Kind::Error,
        (_, RateVerdict::Pass) => false,
    };
    gated.outcome = if truncated {
        // Whoever comes again over TCP wakes then.
        Outcome { written: Some(write_truncated(&query, &reply, cookie, out)), ..Outcome::default() }
    } else {
        let written = write_reply(&query, &reply, cookie, transport == Transport::Udp, out);
        outcome(view, &query, &reply, written)
    };
    gated
}

fn outcome<'v>(view: &View, query: &Query, reply: &Reply<'v>, written: Written) -> Outcome<'v> {
    let subnet = query.edns.and_then(|edns| edns.subnet);
    let wake = reply.wake.map(|service| WakeWish { service, qtype: query.question.qtype, subnet });
    let counter = view.names().find(query.question.name.as_wire()).map_or(0, Slot::counter);
    Outcome { written: Some(written), wake, hold_ms_max: reply.hold_ms_max, counter }
}

/// What is refused whatever the name.
fn refusal(query: &Query) -> Option<Reply<'static>> {
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return Some(Reply { rcode: Rcode::BadVers, authoritative: false, ..Reply::empty() });
    }
    let why = "this type cannot be asked for";
    match query.question.qtype {
        // Reserved, OPT, and NXNAME, which stands in denials only (RFC 9824 §3.5).
        0 | rdata::OPT | 128 => Some(Reply::error(Rcode::FormErr, Ede::INVALID_QUERY_TYPE, why)),
        rdata::IXFR | rdata::AXFR | rdata::ANY => None,
        // The other types of questions and messages (RFC 6895 §3.1): mailboxes, keys, signatures.
        129..=254 => Some(Reply::error(Rcode::NotImp, Ede::INVALID_QUERY_TYPE, why)),
        _ => None,
    }
}
