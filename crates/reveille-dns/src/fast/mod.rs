//! The fast way: ordinary questions answered with one look into the name table.
//!
//! Three steps, so that a batch can do each for all of its questions: [`Head::read`] parses in place and hashes the
//! name; [`NameTable::place`] finds the page; [`answer`] looks at the slot and writes. What is not certain here is
//! left to the general way ([`crate::respond`]), whose answers these must equal; a test holds them side by side.
//!
//! [`NameTable::place`]: reveille_core::answer::NameTable::place

mod write;

#[cfg(test)]
mod tests;

use reveille_core::answer::{Kinds, Rcode, Slot, View, rdata};

use crate::limit::Kind;
use crate::wire::{COOKIE_BYTES, Edns};
use write::Writer;

/// Length of the header (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;
/// Most bytes of an answer: what any asker takes (RFC 1035 §2.3.4), so that none is ever truncated here.
const ANSWER_BYTES_MAX: usize = 512;

/// An ordinary question, read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    hash: u64,
    /// Where the question ends; its name ends four bytes before.
    end: usize,
    labels: usize,
    qtype: u16,
    edns: Option<Edns>,
}

/// What an ordinary question is to be answered with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'v> {
    /// Response code.
    pub rcode: Rcode,
    /// Kind of the answer, for the rate limit.
    pub kind: Kind,
    /// The name's slot, if it exists.
    pub slot: Option<&'v Slot>,
    /// The number of its zone.
    pub zone: u16,
    /// The question is to wake the service in the slot.
    pub wakes: bool,
    what: What<'v>,
}

#[derive(Debug, Clone, Copy)]
enum What<'v> {
    Address(&'v Slot),
    Address6(&'v Slot),
    /// The SOA of the zone.
    Denial,
}

impl Found<'_> {
    /// For how long the answer may be cached, in seconds.
    pub fn ttl_s(&self, view: &View, now_s: u32) -> Option<u32> {
        match self.what {
            What::Address(slot) | What::Address6(slot) => Some(slot.ttl_s(now_s)),
            What::Denial => view.zones().at(self.zone).map(|zone| zone.negative_ttl()),
        }
    }
}

impl Head {
    /// Reads a packet if it is an ordinary question: QUERY, one name of class IN, a type that is data, perhaps EDNS of
    /// version 0, nothing else. `None` leaves it to the general way.
    pub fn read(packet: &[u8], view: &View) -> Option<Self> {
        let header = packet.first_chunk::<HEADER_BYTES>()?;
        // QR and OPCODE zero; one question, no answer, no authority.
        if header[2] & 0xf8 != 0 || header[4..10] != [0, 1, 0, 0, 0, 0] {
            return None;
        }
        let (name_end, labels) = end_of_name(packet)?;
        let fixed = packet.get(name_end..)?.first_chunk::<4>()?;
        let qtype = u16::from_be_bytes([fixed[0], fixed[1]]);
        if fixed[2..] != rdata::CLASS_IN.to_be_bytes() || !is_ordinary(qtype) {
            return None;
        }
        let end = name_end + 4;
        let edns = match header[10..] {
            [0, 0] if packet.len() == end => None,
            [0, 1] => Some(read_opt(packet.get(end..)?)?),
            _ => return None,
        };
        let hash = view.names().hash(packet.get(HEADER_BYTES..name_end)?);
        Some(Self { hash, end, labels, qtype, edns })
    }

    /// The hash of the name, under which its place is found.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Type of the question.
    pub fn qtype(&self) -> u16 {
        self.qtype
    }

    /// What its OPT says, if it has one.
    pub fn edns(&self) -> Option<&Edns> {
        self.edns.as_ref()
    }

    /// The name in `packet`, from which this was read.
    pub fn name<'p>(&self, packet: &'p [u8]) -> &'p [u8] {
        packet.get(HEADER_BYTES..self.end - 4).unwrap_or_default()
    }
}

/// What the question in `packet` is to be answered with, given the slot of its name; `None` leaves it to the general
/// way.
pub(crate) fn look<'v>(
    view: &'v View,
    packet: &[u8],
    head: &Head,
    slot: Option<&'v Slot>,
) -> Option<Found<'v>> {
    let Some(slot) = slot else {
        let zone = encloser(view, head, packet)?.zone();
        if is_to_be_signed(view, head, zone) {
            return None;
        }
        let (rcode, kind) = (Rcode::NxDomain, Kind::NxDomain);
        return Some(Found { rcode, kind, slot: None, zone, wakes: false, what: What::Denial });
    };
    let kinds = slot.kinds();
    if !kinds.any_of(Kinds::SERVICE)
        || kinds.any_of(Kinds::BELOW_CUT)
        || is_to_be_signed(view, head, slot.zone())
    {
        return None;
    }
    let what = match head.qtype {
        rdata::A => What::Address(slot),
        rdata::AAAA if kinds.any_of(Kinds::ADDRESS6) => What::Address6(slot),
        rdata::AAAA => What::Denial,
        // What stands beside the service is in the zone.
        _ if kinds.any_of(Kinds::STATIC.with(Kinds::APEX)) => return None,
        _ => What::Denial,
    };
    let (kind, wakes) = match what {
        What::Address(_) | What::Address6(_) => (Kind::Positive, kinds.any_of(Kinds::ASLEEP)),
        What::Denial => (Kind::NoData, false),
    };
    // Refused and held questions need more than the slot.
    let plain = !wakes || !kinds.any_of(Kinds::REFUSED.with(Kinds::HELD));
    let rcode = Rcode::NoError;
    plain.then_some(Found { rcode, kind, slot: Some(slot), zone: slot.zone(), wakes, what })
}

/// Writes the answer into `out` and gives its length; `None`, where the names are so long that it is not sure to fit,
/// leaves the question to the general way. `cookie` is the
/// data of the COOKIE option.
pub(crate) fn write(
    view: &View,
    packet: &[u8],
    head: &Head,
    found: &Found<'_>,
    now_s: u32,
    cookie: Option<[u8; COOKIE_BYTES]>,
    out: &mut [u8],
) -> Option<usize> {
    let mut writer = Writer::new(out.get_mut(..ANSWER_BYTES_MAX)?, packet.get(..head.end)?)?;
    match found.what {
        What::Address(slot) => writer.address(rdata::A, slot.ttl_s(now_s), &slot.address())?,
        What::Address6(slot) => {
            // Not in the slot: this waits for memory.
            let address = slot.service()?.address6?;
            writer.address(rdata::AAAA, slot.ttl_s(now_s), &address.octets())?;
        }
        What::Denial => {
            let zone = view.zones().at(found.zone)?;
            let apex = zone.apex().as_wire();
            let soa = zone.soa().data.first()?;
            // The apex is the end of the question's name.
            let apex_at = (head.end - 4).checked_sub(apex.len())?;
            writer.soa(apex, apex_at, zone.negative_ttl(), soa)?;
        }
    }
    writer.finish(found.rcode, head.edns.as_ref(), cookie)
}

/// Writes the answer without its records and with TC, so that the asker comes again over TCP.
pub(crate) fn write_truncated(
    packet: &[u8],
    head: &Head,
    found: &Found<'_>,
    cookie: Option<[u8; COOKIE_BYTES]>,
    out: &mut [u8],
) -> Option<usize> {
    let writer = Writer::new(out, packet.get(..head.end)?)?;
    let length = writer.finish(found.rcode, head.edns.as_ref(), cookie)?;
    *out.get_mut(2)? |= 2;
    Some(length)
}

/// The closest encloser of a name that is not in the table, if nothing there can stand for the name.
fn encloser<'v>(view: &'v View, head: &Head, packet: &[u8]) -> Option<&'v Slot> {
    let names = view.names();
    let mut rest = head.name(packet);
    let mut labels = head.labels;
    let slot = loop {
        let (&length, _) = rest.split_first().filter(|(length, _)| **length != 0)?;
        rest = rest.get(1 + usize::from(length)..)?;
        labels -= 1;
        if labels <= names.depth()
            && let Some(slot) = names.find(rest)
        {
            break slot;
        }
    };
    let kinds = slot.kinds();
    // A wildcard, a referral, or the state of a service.
    if kinds.any_of(Kinds::HAS_WILDCARD.with(Kinds::BELOW_CUT).with(Kinds::SERVICE)) {
        return None;
    }
    // Between the apex and the encloser there may be a delegation; below the apex itself there is nothing between.
    let has_cuts = view.zones().at(slot.zone())?.has_cuts();
    (!has_cuts || kinds.any_of(Kinds::APEX)).then_some(slot)
}

/// Whether the asker wants signatures and the zone has them. Without DO a signed zone's ordinary answers are those of
/// an unsigned one.
fn is_to_be_signed(view: &View, head: &Head, zone: u16) -> bool {
    head.edns.is_some_and(|edns| edns.dnssec_ok)
        && view.zones().at(zone).is_some_and(|zone| zone.signer().is_some())
}

/// Types that stand in zones and mean nothing special to a server. All others are left to the general way.
fn is_ordinary(qtype: u16) -> bool {
    const SVCB: u16 = 64;
    const HTTPS: u16 = 65;
    const CAA: u16 = 257;
    matches!(
        qtype,
        rdata::A
            | rdata::AAAA
            | rdata::CNAME
            | rdata::MX
            | rdata::NS
            | rdata::PTR
            | rdata::SOA
            | rdata::SRV
            | rdata::TXT
            | SVCB
            | HTTPS
            | CAA
    )
}

/// Where the name of the question ends, its root label included, and how many labels it has.
fn end_of_name(packet: &[u8]) -> Option<(usize, usize)> {
    let (mut at, mut labels) = (HEADER_BYTES, 0);
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            return (at <= HEADER_BYTES + 255).then_some((at, labels));
        }
        if length >= 64 {
            return None;
        }
        at += length;
        labels += 1;
    }
}

/// What an OPT record of version 0 says, if `bytes` is exactly one.
fn read_opt(bytes: &[u8]) -> Option<Edns> {
    let (fixed, options) = bytes.split_first_chunk::<11>()?;
    let [0, 0, 41, class_high, class_low, ttl @ .., high, low] = fixed else { return None };
    if usize::from(u16::from_be_bytes([*high, *low])) != options.len() || ttl[1] != 0 {
        return None;
    }
    Edns::parse(u16::from_be_bytes([*class_high, *class_low]), ttl, options)
}
