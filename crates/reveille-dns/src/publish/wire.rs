//! Updates and questions for the serial as messages, and what answers say.

use domain::base::name::ToName;
use domain::base::{Message, ParsedName};
use domain::rdata::Soa;
use reveille_core::answer::rdata;
use reveille_core::model::DomainName;

use super::{Addresses, Batch, Outcome};

/// OPCODE of an update, and the flags without it.
const UPDATE_FLAGS: [u8; 2] = [5 << 3, 0];
/// Where the zone's name stands: behind the header.
const ZONE_POINTER: [u8; 2] = [0xc0, 12];
/// Class NONE (RFC 2136 §1.3).
const CLASS_NONE: u16 = 254;
/// Class ANY (RFC 1035 §3.2.5).
const CLASS_ANY: u16 = 255;

/// An update that replaces the addresses of each name. It is made as a whole or not at all. Where an alias stands
/// an update of addresses would be ignored without a word (RFC 2136 §3.4.2.2), so it is made a prerequisite that
/// there is none.
pub(super) fn update(id: u16, zone: &DomainName, batch: &Batch) -> Vec<u8> {
    let (mut prerequisites, mut updates) = (Section::default(), Section::default());
    for (name, addresses) in batch {
        let owner = owner(name, zone);
        updates.push(&owner, rdata::A, CLASS_ANY, 0, &[]);
        updates.push(&owner, rdata::AAAA, CLASS_ANY, 0, &[]);
        let Some(Addresses { v4, v6, ttl_s }) = addresses else { continue };
        prerequisites.push(&owner, rdata::CNAME, CLASS_NONE, 0, &[]);
        if let Some(v4) = v4 {
            updates.push(&owner, rdata::A, rdata::CLASS_IN, *ttl_s, &v4.octets());
        }
        if let Some(v6) = v6 {
            updates.push(&owner, rdata::AAAA, rdata::CLASS_IN, *ttl_s, &v6.octets());
        }
    }
    let counts = [1, prerequisites.count, updates.count, 0].map(u16::to_be_bytes).concat();
    let zone = [zone.as_wire(), &rdata::SOA.to_be_bytes(), &rdata::CLASS_IN.to_be_bytes()].concat();
    [&id.to_be_bytes()[..], &UPDATE_FLAGS, &counts, &zone, &prerequisites.wire, &updates.wire].concat()
}

/// A question for the SOA.
pub(super) fn soa_question(id: u16, zone: &DomainName) -> Vec<u8> {
    let question = [zone.as_wire(), &rdata::SOA.to_be_bytes(), &rdata::CLASS_IN.to_be_bytes()].concat();
    [&id.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0], &question].concat()
}

#[derive(Default)]
struct Section {
    wire: Vec<u8>,
    count: u16,
}

impl Section {
    fn push(&mut self, owner: &[u8], rtype: u16, class: u16, ttl: u32, data: &[u8]) {
        self.wire.extend_from_slice(owner);
        self.wire.extend_from_slice(&rtype.to_be_bytes());
        self.wire.extend_from_slice(&class.to_be_bytes());
        self.wire.extend_from_slice(&ttl.to_be_bytes());
        // An address, or nothing.
        self.wire.extend_from_slice(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
        self.wire.extend_from_slice(data);
        self.count += 1;
    }
}

/// The name, its end replaced by a pointer to the zone's.
fn owner(name: &DomainName, zone: &DomainName) -> Vec<u8> {
    let (wire, shared) = (name.as_wire(), zone.as_wire().len());
    match wire.len().checked_sub(shared).and_then(|own| wire.get(..own)) {
        Some(own) if name.is_at_or_below(zone) => [own, &ZONE_POINTER].concat(),
        Some(_) | None => wire.to_vec(),
    }
}

/// The response code of an answer; `None` if the message is none to this request.
pub(super) fn rcode(request: &[u8], answer: &[u8]) -> Option<u8> {
    let (asked, said) = (request.first_chunk::<4>()?, answer.first_chunk::<12>()?);
    let opcode = |flags: u8| flags & 0x78;
    let fits = asked[..2] == said[..2] && said[2] & 0x80 != 0 && opcode(asked[2]) == opcode(said[2]);
    fits.then_some(said[3] & 0xf)
}

/// Whether an answer was cut short.
pub(super) fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 2 != 0)
}

/// The serial of the zone in an answer; `None` if it is not there.
pub(super) fn serial(answer: &[u8], zone: &DomainName) -> Option<u32> {
    let message = Message::from_octets(answer).ok()?;
    let records = message.answer().ok()?.limit_to::<Soa<ParsedName<&[u8]>>>();
    let mut own = records.filter_map(Result::ok).filter(|record| {
        DomainName::from_wire(record.owner().to_vec().as_slice()).is_ok_and(|owner| owner == *zone)
    });
    Some(own.next()?.data().serial().into_int())
}

/// What a verified answer to an update means.
pub(super) fn outcome(rcode: u8, zone: &DomainName) -> Outcome {
    match rcode {
        0 => Outcome::Done,
        1 => Outcome::Refused("it finds the update malformed (FORMERR)".to_owned()),
        2 => Outcome::Failed("it cannot make updates for now (SERVFAIL); its log says why".to_owned()),
        4 => Outcome::Failed("it does not know updates (NOTIMP); is it the primary?".to_owned()),
        5 => Outcome::Refused(
            "it does not allow this (REFUSED): let the key update A and AAAA of the services' names in its update \
             policy"
                .to_owned(),
        ),
        7 => Outcome::Refused(
            "it has a CNAME of its own at a service's name (YXRRSET): remove that, or leave the service out"
                .to_owned(),
        ),
        9 => Outcome::Failed(format!(
            "it is not the primary for {zone}, or not for this key (NOTAUTH): check `server` and `zone`"
        )),
        10 => Outcome::Refused(format!("it says that a name is not in {zone} (NOTZONE)")),
        other => Outcome::Refused(format!("it refuses the update with the code {other}")),
    }
}
