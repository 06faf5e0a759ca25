//! From a packet to an answer, without a socket.

use std::net::SocketAddr;

use reveille_core::answer::{Asker, Ede, Rcode, Reply, ServiceView, Slot, View, answer, rdata};
use reveille_core::model::Timestamp;

use crate::wire::{Query, Subnet, Unreadable, Written, write_error, write_reply};

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
    let written = write_reply(&query, &reply, transport == Transport::Udp, out);
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
