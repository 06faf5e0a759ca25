//! Reading an UPDATE message (RFC 2136 §2), strictly: what does not parse to the last byte is refused before
//! anybody looks at a zone.

use domain::base::iana::Rtype;
use domain::base::name::{ParsedName, ToName};
use domain::base::rdata::ComposeRecordData;
use domain::base::record::ParsedRecord;
use domain::dep::octseq::Parser;
use domain::rdata::AllRecordData;
use reveille_core::answer::{Question, QuestionName, Record, rdata};
use reveille_core::model::DomainName;

use crate::tsig::Signature;
use crate::wire::{Edns, Header, Query};

/// Most records in the prerequisite and update sections of one message.
pub const UPDATE_RECORDS_MAX: usize = 1_024;
/// OPCODE of an update.
pub(crate) const OPCODE_UPDATE: u8 = 5;
/// Largest TTL (RFC 2181 §8).
const TTL_S_MAX: u32 = i32::MAX.unsigned_abs();
/// Most records in the additional section: OPT, and what a client may add for itself.
const ADDITIONAL_MAX: u16 = 16;
/// Class NONE (RFC 2136 §1.3).
const CLASS_NONE: u16 = 254;
/// Class ANY (RFC 1035 §3.2.5).
const CLASS_ANY: u16 = 255;

/// What must hold for an update to be made (RFC 2136 §2.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prerequisite {
    /// The name has records.
    NameInUse(DomainName),
    /// The name has no records.
    NameNotInUse(DomainName),
    /// The RRset exists.
    SetExists(DomainName, u16),
    /// The RRset does not exist.
    SetAbsent(DomainName, u16),
    /// The record is one of its RRset, which has exactly the records that the message names.
    Record {
        /// Whose.
        owner: DomainName,
        /// Type.
        rtype: u16,
        /// Uncompressed.
        data: Vec<u8>,
    },
}

/// A change that an update asks for (RFC 2136 §2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Add the record.
    Add(Record),
    /// Remove the RRset.
    DropSet(DomainName, u16),
    /// Remove every RRset of the name.
    DropName(DomainName),
    /// Remove the record.
    DropRecord {
        /// Whose.
        owner: DomainName,
        /// Type.
        rtype: u16,
        /// Uncompressed.
        data: Vec<u8>,
    },
}

/// An update as it came in.
#[derive(Debug, Clone)]
pub struct UpdateMessage {
    /// Header, zone section (as the question) and OPT: what the answer needs.
    pub query: Query,
    /// What must hold, in the order of the message.
    pub prerequisites: Vec<Prerequisite>,
    /// What is to change, in the order of the message.
    pub edits: Vec<Edit>,
}

impl Prerequisite {
    /// The name that it speaks of.
    pub fn owner(&self) -> &DomainName {
        match self {
            Self::NameInUse(owner)
            | Self::NameNotInUse(owner)
            | Self::SetExists(owner, _)
            | Self::SetAbsent(owner, _)
            | Self::Record { owner, .. } => owner,
        }
    }
}

impl Edit {
    /// The name that it changes.
    pub fn owner(&self) -> &DomainName {
        match self {
            Self::Add(Record { owner, .. })
            | Self::DropSet(owner, _)
            | Self::DropName(owner)
            | Self::DropRecord { owner, .. } => owner,
        }
    }
}

type Message<'p> = Parser<'p, [u8]>;

impl UpdateMessage {
    /// Reads a message; its signature is for the caller to verify. `None`: it is malformed, and is answered with
    /// FORMERR, or has too many records.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let mut message = Parser::from_ref(packet);
        let header = header(&mut message)?;
        let mut count = || message.parse_u16_be().ok();
        let counts = [count()?, count()?, count()?, count()?];
        let records = usize::from(counts[1]) + usize::from(counts[2]);
        if counts[0] != 1 || records > UPDATE_RECORDS_MAX || counts[3] > ADDITIONAL_MAX {
            return None;
        }
        let question = zone_section(&mut message)?;
        let prerequisites = (0..counts[1]).map(|_| prerequisite(&mut message)).collect::<Option<Vec<_>>>()?;
        let edits = (0..counts[2]).map(|_| edit(&mut message)).collect::<Option<Vec<_>>>()?;
        let edns = additional(&mut message, counts[3])?;
        if message.remaining() != 0 {
            return None;
        }
        let signature = Signature::find(packet).ok()?.map(Box::new);
        Some(Self {
            query: Query { header, question, edns, soa_serial: None, signature },
            prerequisites,
            edits,
        })
    }
}

/// What the answer to an update with more than [`UPDATE_RECORDS_MAX`] records needs, and how many there are; `None`:
/// it has not too many, or its records do not even follow one another.
pub(super) fn oversized(packet: &[u8]) -> Option<(Query, usize)> {
    let mut message = Parser::from_ref(packet);
    let header = header(&mut message)?;
    let mut count = || message.parse_u16_be().ok();
    let counts = [count()?, count()?, count()?, count()?];
    let records = usize::from(counts[1]) + usize::from(counts[2]);
    if counts[0] != 1 || records <= UPDATE_RECORDS_MAX || counts[3] > ADDITIONAL_MAX {
        return None;
    }
    let question = zone_section(&mut message)?;
    for _ in 0..records {
        ParsedRecord::parse(&mut message).ok()?;
    }
    let edns = additional(&mut message, counts[3])?;
    let signature = Signature::find(packet).ok()?.map(Box::new);
    Some((Query { header, question, edns, soa_serial: None, signature }, records))
}

/// The header of an update.
pub(super) fn header_of(packet: &[u8]) -> Option<Header> {
    header(&mut Parser::from_ref(packet))
}

/// Header and zone section alone, which is enough for an answer to whoever has no key.
pub(super) fn zone_alone(packet: &[u8]) -> Option<Query> {
    let mut message = Parser::from_ref(packet);
    let header = header(&mut message)?;
    let zones = message.parse_u16_be().ok()?;
    message.advance(6).ok()?;
    let question = zone_section(&mut message).filter(|_| zones == 1)?;
    Some(Query { header, question, edns: None, soa_serial: None, signature: None })
}

fn header(message: &mut Message<'_>) -> Option<Header> {
    let id = message.parse_u16_be().ok()?;
    let flags = message.parse_u8().ok()?;
    message.advance(1).ok()?;
    let header = Header { id, opcode: flags >> 3 & 0xf, recursion_desired: flags & 1 != 0 };
    (flags & 0x80 == 0 && header.opcode == OPCODE_UPDATE).then_some(header)
}

fn zone_section(message: &mut Message<'_>) -> Option<Question> {
    let name = ParsedName::parse(message).ok()?;
    let name = QuestionName::from_wire(&name.to_vec().into_octets()).ok()?;
    let (qtype, qclass) = (message.parse_u16_be().ok()?, message.parse_u16_be().ok()?);
    Some(Question { name, qtype, qclass })
}

/// What one record of a message says.
struct Said<'p> {
    owner: DomainName,
    rtype: u16,
    class: u16,
    ttl: u32,
    record: ParsedRecord<'p, [u8]>,
}

impl<'p> Said<'p> {
    fn parse(message: &mut Message<'p>) -> Option<Self> {
        let record = ParsedRecord::parse(message).ok()?;
        let owner = DomainName::from_wire(&record.owner().to_vec().into_octets()).ok()?;
        let (rtype, class) = (record.rtype().to_int(), record.class().to_int());
        Some(Self { owner, rtype, class, ttl: record.ttl().as_secs(), record })
    }

    /// Whether it names something without giving data.
    fn is_bare(&self) -> bool {
        self.ttl == 0 && self.record.rdlen() == 0
    }

    /// A type that records can have.
    fn is_of_data(&self) -> bool {
        !matches!(self.rtype, 0 | rdata::OPT | 128..=255)
    }

    /// Its data, uncompressed, if that has the shape of its type.
    fn data(&self) -> Option<Vec<u8>> {
        let record = self.record.to_any_record::<AllRecordData<_, ParsedName<_>>>().ok()?;
        let mut data = Vec::with_capacity(self.record.rdlen().into());
        let Ok(()) = record.data().compose_rdata(&mut data);
        let text_is_empty = self.rtype == rdata::TXT && data.is_empty();
        (!text_is_empty && rdata::is_well_formed(self.rtype, &data)).then_some(data)
    }
}

/// RFC 2136 §2.4, and the checks of §3.2 that need no zone.
fn prerequisite(message: &mut Message<'_>) -> Option<Prerequisite> {
    let said = Said::parse(message)?;
    let of_data = said.is_of_data();
    match said.class {
        rdata::CLASS_IN if said.ttl == 0 && of_data => {
            let data = said.data()?;
            Some(Prerequisite::Record { owner: said.owner, rtype: said.rtype, data })
        }
        CLASS_ANY if said.is_bare() && said.rtype == rdata::ANY => Some(Prerequisite::NameInUse(said.owner)),
        CLASS_ANY if said.is_bare() && of_data => Some(Prerequisite::SetExists(said.owner, said.rtype)),
        CLASS_NONE if said.is_bare() && said.rtype == rdata::ANY => {
            Some(Prerequisite::NameNotInUse(said.owner))
        }
        CLASS_NONE if said.is_bare() && of_data => Some(Prerequisite::SetAbsent(said.owner, said.rtype)),
        _ => None,
    }
}

/// RFC 2136 §2.5, and the checks of §3.4.1 that need no zone.
fn edit(message: &mut Message<'_>) -> Option<Edit> {
    let said = Said::parse(message)?;
    let of_data = said.is_of_data();
    match said.class {
        rdata::CLASS_IN if of_data && said.ttl <= TTL_S_MAX => {
            let data = said.data()?;
            Some(Edit::Add(Record { owner: said.owner, rtype: said.rtype, ttl: said.ttl, data }))
        }
        CLASS_ANY if said.is_bare() && said.rtype == rdata::ANY => Some(Edit::DropName(said.owner)),
        CLASS_ANY if said.is_bare() && of_data => Some(Edit::DropSet(said.owner, said.rtype)),
        CLASS_NONE if said.ttl == 0 && of_data => {
            let data = said.data()?;
            Some(Edit::DropRecord { owner: said.owner, rtype: said.rtype, data })
        }
        _ => None,
    }
}

/// OPT, of which there may be one; what else there is says nothing here.
fn additional(message: &mut Message<'_>, count: u16) -> Option<Option<Edns>> {
    let mut edns = None;
    for _ in 0..count {
        let record = ParsedRecord::parse(&mut *message).ok()?;
        if record.rtype() == Rtype::OPT {
            if edns.is_some() || !record.owner().is_root() {
                return None;
            }
            let mut data = vec![0; record.rdlen().into()];
            let at = message.pos().checked_sub(data.len())?;
            let mut options = *message;
            options.seek(at).ok()?;
            options.parse_buf(&mut data).ok()?;
            let ttl = record.ttl().as_secs().to_be_bytes();
            edns = Some(Edns::parse(record.class().to_int(), &ttl, &data)?);
        }
    }
    Some(edns)
}

/// The data in the form in which two records are compared: names in it lower-cased (RFC 4034 §6.2).
pub(super) fn canonical(rtype: u16, data: &[u8]) -> Vec<u8> {
    use domain::base::rdata::ParseAnyRecordData;
    let mut parser = Parser::from_ref(data);
    let parsed =
        AllRecordData::<&[u8], ParsedName<&[u8]>>::parse_any_rdata(Rtype::from_int(rtype), &mut parser);
    let mut text = Vec::with_capacity(data.len());
    match parsed {
        Ok(parsed) if parser.remaining() == 0 => {
            let Ok(()) = parsed.compose_canonical_rdata(&mut text);
        }
        Ok(_) | Err(_) => text.extend_from_slice(data),
    }
    text
}
