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

use crate::wire::Edns;
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

/// What was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written<'v> {
    /// Bytes of the answer.
    pub length: usize,
    /// Its response code.
    pub rcode: Rcode,
    /// The name's slot, if it exists.
    pub slot: Option<&'v Slot>,
    /// The question is to wake the service in the slot.
    pub wakes: bool,
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

/// Answers the question in `packet` into `out`, given the slot of its name; `None` leaves it to the general way.
pub(crate) fn answer<'v>(
    view: &'v View,
    packet: &[u8],
    head: &Head,
    slot: Option<&'v Slot>,
    now_s: u32,
    out: &mut [u8],
) -> Option<Written<'v>> {
    let question = packet.get(..head.end)?;
    let mut writer = Writer::new(out.get_mut(..ANSWER_BYTES_MAX)?, question)?;
    let Some(slot) = slot else {
        let encloser = encloser(view, head, packet)?;
        deny(view, head, encloser, Rcode::NxDomain, &mut writer)?;
        let length = writer.finish(Rcode::NxDomain, head.edns.as_ref())?;
        return Some(Written { length, rcode: Rcode::NxDomain, slot: None, wakes: false });
    };
    let kinds = slot.kinds();
    if !kinds.any_of(Kinds::SERVICE) || kinds.any_of(Kinds::BELOW_CUT) {
        return None;
    }
    // Looking at the service beyond its slot costs a wait for memory: only for an IPv6 address.
    let six = head.qtype == rdata::AAAA && kinds.any_of(Kinds::ADDRESS6);
    let mut wakes = false;
    match head.qtype {
        rdata::A | rdata::AAAA if six || head.qtype == rdata::A => {
            // Refused and held questions need more than the slot.
            wakes = kinds.any_of(Kinds::ASLEEP);
            if wakes && kinds.any_of(Kinds::REFUSED.with(Kinds::HELD)) {
                return None;
            }
            let ttl_s = slot.ttl_s(now_s);
            if six {
                let address = slot.service()?.address6?;
                writer.address(rdata::AAAA, ttl_s, &address.octets())?;
            } else {
                writer.address(rdata::A, ttl_s, &slot.address())?;
            }
        }
        // What stands beside the service is in the zone.
        _ if kinds.any_of(Kinds::STATIC.with(Kinds::APEX)) && head.qtype != rdata::AAAA => return None,
        _ => deny(view, head, slot, Rcode::NoError, &mut writer)?,
    }
    let length = writer.finish(Rcode::NoError, head.edns.as_ref())?;
    Some(Written { length, rcode: Rcode::NoError, slot: Some(slot), wakes })
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

/// Writes the SOA of a negative answer for the zone of a slot.
fn deny(view: &View, head: &Head, slot: &Slot, rcode: Rcode, writer: &mut Writer<'_>) -> Option<()> {
    debug_assert!(matches!(rcode, Rcode::NoError | Rcode::NxDomain));
    let zone = view.zones().at(slot.zone())?;
    let apex = zone.apex().as_wire();
    let soa = zone.soa().data.first()?;
    // The apex is the end of the question's name.
    writer.soa(apex, (head.end - 4).checked_sub(apex.len())?, zone.negative_ttl(), soa)
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
