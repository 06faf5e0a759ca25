//! From a packet to an answer, without a socket.

use std::net::SocketAddr;
use std::sync::LazyLock;

use reveille_core::answer::{Asked, Asker, Ede, Rcode, Reply, ServiceView, Slot, View, Zone, answer, rdata};
use reveille_core::model::Timestamp;

use crate::limit::{Arrival, Client, CookieStatus, Entry, Judge, Kind, RateVerdict, Source};
use crate::transfer::{Transfer, judge as judge_transfer};
use crate::tsig::{Exchange, Keyring, Rejection, TsigError};
use crate::wire::{
    COOKIE_BYTES, Envelope, Faulty, Query, Subnet, Unreadable, Written, write_fault, write_reply,
    write_truncated,
};

/// How a packet came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Datagram: the answer is bounded, and its sender may be forged.
    Udp,
    /// Stream.
    Tcp,
    /// Stream inside TLS (RFC 7858).
    Tls,
    /// HTTP inside TLS (RFC 8484), by us or by a proxy on this host.
    Https,
}

impl Transport {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Tcp, Self::Tls, Self::Https];

    /// It as one word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
        }
    }

    /// Whether an answer is bounded in size by what datagrams carry.
    pub const fn is_datagram(self) -> bool {
        match self {
            Self::Udp => true,
            Self::Tcp | Self::Tls | Self::Https => false,
        }
    }

    /// Whether zones can be transferred: messages of any number follow a question (RFC 5936 §4.2, RFC 9103).
    pub const fn carries_transfers(self) -> bool {
        match self {
            Self::Tcp | Self::Tls => true,
            Self::Udp | Self::Https => false,
        }
    }

    /// Whether the source address is known to be the asker's: it has completed a handshake.
    pub const fn proves_address(self) -> bool {
        !self.is_datagram()
    }

    /// What goes around an answer here: padding where nobody can look inside (RFC 7830 §6), keepalive where a
    /// connection carries DNS alone (RFC 7828 §3.2.1).
    pub fn envelope(self) -> Envelope {
        let (may_pad, tells_keepalive) = match self {
            Self::Udp => (false, false),
            Self::Tcp => (false, true),
            Self::Tls => (true, true),
            Self::Https => (true, false),
        };
        Envelope { over_udp: self.is_datagram(), may_pad, tells_keepalive, ..Envelope::default() }
    }

    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Udp => 0,
            Self::Tcp => 1,
            Self::Tls => 2,
            Self::Https => 3,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Udp,
            2 => Self::Tls,
            3 => Self::Https,
            _ => Self::Tcp,
        }
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

/// What packets are answered from: one view at one time.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'v, 'g> {
    /// Every zone and service.
    pub view: &'v View,
    /// The time.
    pub now: Timestamp,
    /// Who is let in, and how often; none: everybody, always.
    pub judge: Option<&'g Judge<'g>>,
    /// Who may prove to ask; none: nobody.
    pub keys: Option<&'g Keyring>,
}

/// Where a packet came from.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// Its sender.
    pub peer: SocketAddr,
    /// How it came.
    pub transport: Transport,
    /// The gate's judgement of its arrival, if it has been asked for already.
    pub client: Option<Client>,
    /// The gate's judgement of its answer, if that has been charged already.
    pub verdict: Option<RateVerdict>,
    /// Data of the COOKIE option of the answer where no gate is asked.
    pub cookie: Option<[u8; COOKIE_BYTES]>,
}

impl Origin {
    /// A packet that is yet to be judged.
    pub const fn new(peer: SocketAddr, transport: Transport) -> Self {
        Self { peer, transport, client: None, verdict: None, cookie: None }
    }
}

/// What came of a packet.
#[derive(Debug, Clone, Default)]
pub struct Outcome<'v> {
    /// The answer that was written; `None` is silence.
    pub written: Option<Written>,
    /// A wake that the question asks for. It is not judged yet: where it would be a new one, [`Judge::wake`] decides
    /// whether it is passed on and the question held.
    pub wake: Option<WakeWish<'v>>,
    /// The answer should wait up to this many milliseconds for the service to be ready. What was written is the
    /// answer for now, should holding not be possible.
    pub hold_ms_max: Option<u64>,
    /// Number of the counter of the service that answers, or else has the question's name; 0 if there is none.
    pub counter: u32,
    /// Who asks, if there is a gate and the packet is one to be answered by anybody.
    pub client: Option<Client>,
    /// The number of the question's zone.
    pub zone: Option<u16>,
    /// The question's type; 0 if it could not be read.
    pub qtype: u16,
    /// EDNS client subnet in the question.
    pub subnet: Option<Subnet>,
    /// For how long the answer may be cached, in seconds, if it may.
    pub ttl_s: Option<u32>,
    /// Data of the COOKIE option that the answer has, or would have.
    pub cookie: Option<[u8; COOKIE_BYTES]>,
    /// The packet was signed, but not with a key that is known here, or not by its owner.
    pub signature_refused: bool,
    /// The question asks for a transfer that may begin: its messages take the place of what was written, which is to
    /// be sent should that not be possible.
    pub(crate) transfer: Option<Box<Transfer>>,
    /// The asker was told that its idle connection is kept for [`KEEPALIVE_MS`](crate::wire::KEEPALIVE_MS).
    pub keepalive: bool,
}

/// Answers a packet if and as the gate lets it, writing the answer into `out` in place of what is there. One that is
/// signed with a known key is answered signed (RFC 8945).
pub fn respond<'v>(at: &Setting<'v, '_>, packet: &[u8], from: &Origin, out: &mut Vec<u8>) -> Outcome<'v> {
    out.clear();
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Unreadable::Silence) => return Outcome::default(),
        Err(Unreadable::Error(faulty)) => return unreadable(at, &faulty, from, out),
    };
    let question = &query.question;
    let edns = query.edns.as_ref();
    let (cookie, subnet) =
        (edns.and_then(|edns| edns.cookie.as_ref()), edns.and_then(|edns| edns.subnet.as_ref()));
    let zone = at.view.zones().number_for_question(&question.name, question.qtype);
    let arrival = Arrival {
        peer: from.peer.ip(),
        transport: from.transport,
        cookie,
        subnet,
        qtype: question.qtype,
        zone,
    };
    let client = from.client.or_else(|| at.judge.map(|judge| judge.arrive(&arrival)));
    let known =
        Outcome { client, zone, qtype: question.qtype, subnet: subnet.copied(), ..Outcome::default() };
    let entry = client.map_or(Entry::Enter, |client| client.entry);
    let Considered { reply, transfer, signing } = match entry {
        Entry::Drop => return known,
        Entry::Refuse => Reply::error(Rcode::Refused, Ede::PROHIBITED, "not for this network").into(),
        Entry::BadCookie => Reply { rcode: Rcode::BadCookie, authoritative: false, ..Reply::empty() }.into(),
        Entry::Truncate => Reply { authoritative: false, ..Reply::empty() }.into(),
        Entry::Enter => consider(at, packet, &query, from),
    };
    let kind = if entry == Entry::Enter { Kind::of(&reply) } else { Kind::Error };
    let (verdict, cookie) = match at.judge.zip(client) {
        Some((judge, client)) => {
            let verdict = from.verdict.unwrap_or_else(|| judge.rate(&client, kind));
            (verdict, judge.cookie_for(&client, cookie))
        }
        None => (RateVerdict::Pass, from.cookie),
    };
    let known = Outcome { cookie, ..known };
    let truncated = match (entry, verdict) {
        (_, RateVerdict::Drop) => return known,
        (Entry::Truncate, RateVerdict::Pass | RateVerdict::Slip) => true,
        // An error says all it can as it is.
        (_, RateVerdict::Slip) => kind != Kind::Error,
        (_, RateVerdict::Pass) => false,
    };
    let signature_bytes = signing.bytes_max(&query);
    let envelope = Envelope { cookie, signature_bytes, ..from.transport.envelope() };
    let counter = match reply.service {
        Some(service) => service.counter,
        None => at.view.names().find(question.name.as_wire()).map_or(0, Slot::counter),
    };
    let reply = if truncated { reply } else { with_dnssec(reply, &query, from.transport, client, at.now) };
    if truncated || reply.truncate {
        // Whoever comes again over TCP wakes then.
        let written = Some(write_truncated(&query, &reply, &envelope, out));
        return Outcome { written, counter, signature_refused: signing.sign(&query, out), ..known };
    }
    let written = Some(write_reply(&query, &reply, &envelope, out));
    let ttl_s = ttl_s(&reply);
    let signature_refused = signing.sign(&query, out);
    let wake = reply.wake.map(|service| WakeWish { service, qtype: question.qtype, subnet: subnet.copied() });
    let keepalive = envelope.tells_keepalive && edns.is_some_and(|edns| edns.keepalive);
    let hold_ms_max = reply.hold_ms_max;
    Outcome { written, wake, hold_ms_max, counter, signature_refused, keepalive, transfer, ttl_s, ..known }
}

/// For how long a reply may be cached: until the first of its records expires; a denial as long as the SOA beside it says
/// (RFC 2308 §5).
fn ttl_s(reply: &Reply<'_>) -> Option<u32> {
    let section = if reply.answer.is_empty() { &reply.authority } else { &reply.answer };
    section.iter().map(|records| records.ttl).min().filter(|_| reply.authoritative)
}

/// What a question that is let in is answered with, and how that is signed.
struct Considered<'v> {
    reply: Reply<'v>,
    transfer: Option<Box<Transfer>>,
    signing: Signing,
}

impl<'v> From<Reply<'v>> for Considered<'v> {
    fn from(reply: Reply<'v>) -> Self {
        Self { reply, transfer: None, signing: Signing::Plain }
    }
}

fn consider<'v>(at: &Setting<'v, '_>, packet: &[u8], query: &Query, from: &Origin) -> Considered<'v> {
    static NO_KEYS: LazyLock<Keyring> = LazyLock::new(Keyring::default);
    let keys = at.keys.unwrap_or(&NO_KEYS);
    let exchange = match query.signature.as_deref().map(|signature| keys.verify(packet, signature)) {
        None => None,
        Some(Ok(exchange)) => Some(exchange),
        Some(Err(rejection)) => {
            let why = |error: TsigError| Ede { code: Ede::PROHIBITED, text: error.sentence().into() };
            let (rcode, ede) = (rejection.rcode(), rejection.error().map(why));
            let reply = Reply { rcode, authoritative: false, ede, ..Reply::empty() };
            return Considered { signing: Signing::Refusal(rejection), ..reply.into() };
        }
    };
    let asker = Asker { address: from.peer.ip(), key: exchange.as_ref().map(Exchange::key_name) };
    let (reply, mut transfer) = refusal(query)
        .map(|reply| (reply, None))
        .or_else(|| judge_transfer(at.view, query, asker, from.transport))
        .unwrap_or_else(|| (answer(at.view, &query.question, asker, at.now), None));
    if let Some(transfer) = &mut transfer {
        transfer.exchange.clone_from(&exchange);
    }
    Considered { reply, transfer, signing: exchange.map_or(Signing::Plain, Signing::With) }
}

/// How an answer is signed.
enum Signing {
    /// Not at all: the question is not either, or was not looked at.
    Plain,
    /// With the key of the question.
    With(Exchange),
    /// With the reason why the question's signature is not taken.
    Refusal(Rejection),
}

impl Signing {
    /// Bytes that it adds to the answer at most.
    fn bytes_max(&self, query: &Query) -> usize {
        match (self, &query.signature) {
            (Self::With(exchange), _) => exchange.room(),
            (Self::Refusal(rejection), Some(signature)) => rejection.room(signature),
            (Self::Plain, _) | (Self::Refusal(_), None) => 0,
        }
    }

    /// Signs the answer; tells whether the question's signature is not taken.
    fn sign(self, query: &Query, out: &mut Vec<u8>) -> bool {
        match (self, &query.signature) {
            (Self::With(mut exchange), _) => exchange.sign(out),
            (Self::Refusal(rejection), Some(signature)) => {
                rejection.sign(signature, out);
                return true;
            }
            (Self::Plain, _) | (Self::Refusal(_), None) => {}
        }
        false
    }
}

/// The reply as the zone's signer makes it, if it has one.
fn with_dnssec<'v>(
    reply: Reply<'v>,
    query: &Query,
    transport: Transport,
    client: Option<Client>,
    now: Timestamp,
) -> Reply<'v> {
    let Some(signer) = reply.zone.and_then(Zone::signer) else { return reply };
    let over_udp = transport.is_datagram();
    let asked = Asked {
        question: &query.question,
        dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
        compact_ok: query.edns.is_some_and(|edns| edns.compact_ok),
        may_truncate: over_udp,
        proven: !over_udp || client.is_some_and(|client| client.source == Source::Proven),
        now,
    };
    signer.sign(reply, &asked)
}

/// Answers a packet that cannot be read, or is no question, with an error; or with a cookie, if that is what it wants.
fn unreadable<'v>(at: &Setting<'v, '_>, faulty: &Faulty, from: &Origin, out: &mut Vec<u8>) -> Outcome<'v> {
    let Origin { peer, transport, .. } = *from;
    let cookie = faulty.edns.as_ref().filter(|_| faulty.wants_cookie).and_then(|edns| edns.cookie.as_ref());
    let arrival = Arrival { peer: peer.ip(), transport, cookie, subnet: None, qtype: 0, zone: None };
    let judged = at.judge.map(|judge| (judge, from.client.unwrap_or_else(|| judge.arrive(&arrival))));
    let client = judged.map(|(_, client)| client).or(from.client);
    let drops = judged.is_some_and(|(judge, client)| {
        client.entry == Entry::Drop || judge.rate(&client, Kind::Error) == RateVerdict::Drop
    });
    if drops {
        return Outcome { client, ..Outcome::default() };
    }
    let given = judged.filter(|_| cookie.is_some());
    let given = given.and_then(|(judge, client)| Some((judge.cookie_for(&client, cookie)?, client.cookie)));
    let rcode = match given {
        None => faulty.rcode,
        Some((_, CookieStatus::Bad)) => Rcode::BadCookie,
        Some((
            _,
            CookieStatus::None | CookieStatus::ClientOnly | CookieStatus::Valid | CookieStatus::Renew,
        )) => Rcode::NoError,
    };
    let cookie = given.map(|(cookie, _)| cookie);
    let envelope = Envelope { cookie, tells_keepalive: false, ..transport.envelope() };
    let written = Some(write_fault(faulty, rcode, &envelope, out));
    Outcome { written, client, cookie, ..Outcome::default() }
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
