//! Reading a question, strictly: what does not parse to the last byte is FORMERR, or silence where even an error
//! would be wrong to send.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reveille_core::answer::{Network, Question, QuestionName, Rcode, rdata};

use super::cookie::{Cookie, OPTION_COOKIE};

use crate::tsig::{self, Signature};

/// Length of the header (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;
/// Option code of EDNS client subnet (RFC 7871 §6).
pub(crate) const OPTION_SUBNET: u16 = 8;
/// Option code of edns-tcp-keepalive (RFC 7828 §3.1).
pub(crate) const OPTION_KEEPALIVE: u16 = 11;
/// Option code of padding (RFC 7830 §3).
pub(crate) const OPTION_PADDING: u16 = 12;
/// "No subnet, please", as some clients write it, with no address family; taken as if it were not there.
const SUBNET_OF_NO_FAMILY: [u8; 4] = [0; 4];

/// What is kept of a header for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// ID.
    pub id: u16,
    /// OPCODE.
    pub opcode: u8,
    /// RD, which an answer repeats.
    pub recursion_desired: bool,
}

/// A question as it came in.
#[derive(Debug, Clone)]
pub struct Query {
    /// Header.
    pub header: Header,
    /// The one question.
    pub question: Question,
    /// OPT, if there is one.
    pub edns: Option<Edns>,
    /// The transaction signature, not verified yet; boxed because nearly no question has one.
    pub signature: Option<Box<Signature>>,
    /// Serial of a SOA in the authority section: what whoever asks for IXFR has (RFC 1995 §3).
    pub soa_serial: Option<u32>,
}

/// What an OPT record says (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// Version; 0 is the only one there is.
    pub version: u8,
    /// Largest UDP answer that the asker takes, in bytes.
    pub payload_bytes: u16,
    /// DO, which an answer repeats (RFC 3225 §3).
    pub dnssec_ok: bool,
    /// CO: the asker takes a compact denial together with NXDOMAIN (RFC 9824 §5).
    pub compact_ok: bool,
    /// Client subnet.
    pub subnet: Option<Subnet>,
    /// Cookies of client and server, not judged yet.
    pub cookie: Option<Cookie>,
    /// The asker wants to know how long its idle connection is kept (RFC 7828).
    pub keepalive: bool,
    /// The question is padded, so the answer is to be padded too (RFC 7830 §4).
    pub padding: bool,
}

/// The network on whose behalf a resolver asks (RFC 7871 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// 1 is IPv4, 2 is IPv6.
    family: u8,
    prefix: u8,
    address: [u8; 16],
}

/// Why a packet is no question that can be answered.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "strangers' packets must not cost an allocation")]
pub enum Unreadable {
    /// Too short for a header, or itself an answer: an error to it could start a loop.
    Silence,
    /// An error to send back.
    Error(Faulty),
}

/// What could be read of a packet before its fault: the error to it repeats that. Without the OPT the asker would
/// take the server for one that knows no EDNS (RFC 6891 §6.1.1, §7).
#[derive(Debug, Clone)]
pub struct Faulty {
    /// The header.
    pub header: Header,
    /// FORMERR or NOTIMP.
    pub rcode: Rcode,
    /// The question, if there is exactly one.
    pub question: Option<Question>,
    /// The first OPT.
    pub edns: Option<Edns>,
    /// It has no question and no fault but a cookie: the asker wants the server's and nothing else (RFC 7873 §5.4).
    pub wants_cookie: bool,
}

impl Query {
    /// Reads a packet.
    ///
    /// # Errors
    /// What to send instead, if anything.
    #[allow(clippy::result_large_err, reason = "what is read is as large")]
    pub fn parse(packet: &[u8]) -> Result<Self, Unreadable> {
        let mut cursor = Cursor { packet, at: 0 };
        let (header, counts) = cursor.header().ok_or(Unreadable::Silence)?;
        if counts.is_response {
            return Err(Unreadable::Silence);
        }
        let (mut question, mut trailer) = (None, Trailer::default());
        let whole = cursor.body(&counts, &mut question, &mut trailer);
        let Trailer { edns, signature, soa_serial } = trailer;
        let is_query = header.opcode == 0;
        match (is_query, whole, question) {
            (true, Some(()), Some(question)) => Ok(Self { header, question, edns, signature, soa_serial }),
            (_, _, question) => {
                // Whatever follows the header of another operation: it has a form of its own.
                let rcode = if is_query { Rcode::FormErr } else { Rcode::NotImp };
                let has_cookie = edns.is_some_and(|edns| edns.cookie.is_some());
                let wants_cookie = is_query && whole.is_some() && has_cookie;
                Err(Unreadable::Error(Faulty { header, rcode, question, edns, wants_cookie }))
            }
        }
    }
}

/// The one question of an ordinary message, be it a query or a response, whatever comes after it.
pub(crate) fn question_of(message: &[u8]) -> Option<Question> {
    let mut cursor = Cursor { packet: message, at: 0 };
    let (header, counts) = cursor.header()?;
    if header.opcode != 0 || counts.questions != 1 {
        return None;
    }
    cursor.question()
}

impl Subnet {
    /// Reads the data of the option; `None` if it is malformed (RFC 7871 §6: FORMERR).
    fn parse(data: &[u8]) -> Option<Self> {
        let (&[high, low, prefix, scope], address) = data.split_first_chunk::<4>()?;
        let (family, bits_max) = match (high, low) {
            (0, 1) => (1, 32),
            (0, 2) => (2, 128),
            _ => return None,
        };
        if prefix > bits_max || scope != 0 || address.len() != usize::from(prefix).div_ceil(8) {
            return None;
        }
        let mut padded = [0; 16];
        padded.get_mut(..address.len())?.copy_from_slice(address);
        let bits = u128::from_be_bytes(padded);
        if bits.checked_shl(prefix.into()).unwrap_or(0) != 0 {
            return None;
        }
        Some(Self { family, prefix, address: padded })
    }

    /// Family, prefix length and the address's bits from the left.
    pub(crate) fn parts(&self) -> (u8, u8, u128) {
        (self.family, self.prefix, u128::from_be_bytes(self.address))
    }

    /// The subnet with these [`Subnet::parts`]; `None` for a family that there is not.
    pub(crate) fn from_parts(family: u8, prefix: u8, address: u128) -> Option<Self> {
        matches!(family, 1 | 2).then(|| Self { family, prefix, address: address.to_be_bytes() })
    }

    /// The network's lowest address.
    pub fn address(&self) -> IpAddr {
        let [a, b, c, d, ..] = self.address;
        if self.family == 1 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(self.address).into() }
    }

    /// Whether all of it lies in that network.
    pub fn is_inside(&self, network: &Network) -> bool {
        self.prefix >= network.prefix() && network.contains(self.address())
    }

    /// The data of the option in an answer that holds for everybody: scope 0 (RFC 7871 §7.2.1).
    pub fn answer_data(&self) -> impl Iterator<Item = u8> + '_ {
        let address = self.address.iter().copied().take(usize::from(self.prefix).div_ceil(8));
        [0, self.family, self.prefix, 0].into_iter().chain(address)
    }
}

impl fmt::Display for Subnet {
    /// `192.0.2.0/24`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.prefix)
    }
}

/// What of the header decides how to read on.
struct Counts {
    is_response: bool,
    questions: u16,
    /// Records in the answer, authority and additional sections.
    sections: [u16; 3],
}

/// What is kept of the records beside the question.
#[derive(Default)]
struct Trailer {
    edns: Option<Edns>,
    signature: Option<Box<Signature>>,
    soa_serial: Option<u32>,
}

/// A place in a packet. Every step checks the length; `None` is malformed.
struct Cursor<'p> {
    packet: &'p [u8],
    at: usize,
}

impl<'p> Cursor<'p> {
    fn take(&mut self, length: usize) -> Option<&'p [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.packet.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).and_then(|bytes| Some(u16::from_be_bytes(bytes.try_into().ok()?)))
    }

    fn header(&mut self) -> Option<(Header, Counts)> {
        if self.packet.len() < HEADER_BYTES {
            return None;
        }
        let id = self.number()?;
        let &[flags, _] = self.take(2)? else { return None };
        let questions = self.number()?;
        let sections = [self.number()?, self.number()?, self.number()?];
        let header = Header { id, opcode: flags >> 3 & 0xf, recursion_desired: flags & 1 != 0 };
        Some((header, Counts { is_response: flags & 0x80 != 0, questions, sections }))
    }

    /// Reads what follows the header, as far as it goes; `None` if it is malformed.
    fn body(
        &mut self,
        counts: &Counts,
        question: &mut Option<Question>,
        trailer: &mut Trailer,
    ) -> Option<()> {
        // Exactly one question (RFC 9619); none at all is for cookies alone (RFC 7873 §5.4).
        match counts.questions {
            0 => {}
            1 => *question = Some(self.question()?),
            _ => return None,
        }
        self.records(counts, trailer)?;
        (self.at == self.packet.len()).then_some(())
    }

    /// The first name of a message cannot be compressed: there is nothing to point to.
    fn question(&mut self) -> Option<Question> {
        let length = rdata::name_length(self.packet.get(self.at..)?)?;
        let name = QuestionName::from_wire(self.take(length)?).ok()?;
        Some(Question { name, qtype: self.number()?, qclass: self.number()? })
    }

    /// Steps over the records of all sections; keeps the OPT, of which there may be one (RFC 6891 §6.1.1), and the
    /// signature, which must be the last record of all (RFC 8945 §5.1).
    fn records(&mut self, counts: &Counts, trailer: &mut Trailer) -> Option<()> {
        for (section, &count) in counts.sections.iter().enumerate() {
            for _ in 0..count {
                if trailer.signature.is_some() {
                    return None;
                }
                let start = self.at;
                let is_root = self.skip_name()?;
                let rtype = self.number()?;
                let class = self.number()?;
                let ttl = self.take(4)?;
                let length = self.number()?;
                let data = self.take(length.into())?;
                if rtype == rdata::OPT {
                    if section != 2 || !is_root || trailer.edns.is_some() {
                        return None;
                    }
                    trailer.edns.insert(Edns::new(class, ttl)?).read_options(data)?;
                } else if rtype == tsig::TSIG {
                    let data = self.at - data.len()..self.at;
                    let read =
                        (section == 2).then(|| Signature::parse(self.packet, start, class, ttl, data))?;
                    trailer.signature = Some(Box::new(read?));
                } else if rtype == rdata::SOA && section == 1 {
                    trailer.soa_serial = self.soa_serial(data.len());
                }
            }
        }
        Some(())
    }

    /// The serial in the SOA data of that length that ends here.
    fn soa_serial(&self, length: usize) -> Option<u32> {
        let mut data = Cursor { packet: self.packet.get(..self.at)?, at: self.at.checked_sub(length)? };
        data.skip_name()?;
        data.skip_name()?;
        let numbers: &[u8; 20] = data.take(20)?.try_into().ok()?;
        let [a, b, c, d, ..] = *numbers;
        (data.at == self.at).then_some(u32::from_be_bytes([a, b, c, d]))
    }

    /// Steps over a name, which may end in a pointer to an earlier place; tells whether it is the root.
    fn skip_name(&mut self) -> Option<bool> {
        let start = self.at;
        loop {
            let label = self.at;
            let length = *self.take(1)?.first()?;
            match length {
                0 => return Some(label == start),
                1..64 => self.take(length.into())?,
                192.. => {
                    let low = *self.take(1)?.first()?;
                    let to = usize::from(length & 0x3f) << 8 | usize::from(low);
                    return (HEADER_BYTES..label).contains(&to).then_some(false);
                }
                64..192 => return None,
            };
            if self.at - start > 255 {
                return None;
            }
        }
    }
}

impl Edns {
    /// What an OPT says; `None` if it is malformed.
    pub(crate) fn parse(class: u16, ttl: &[u8], data: &[u8]) -> Option<Self> {
        let mut edns = Self::new(class, ttl)?;
        edns.read_options(data)?;
        Some(edns)
    }

    fn new(class: u16, ttl: &[u8]) -> Option<Self> {
        let &[_, version, flags, _] = ttl else { return None };
        let (dnssec_ok, compact_ok) = (flags & 0x80 != 0, flags & 0x40 != 0);
        Some(Self {
            version,
            payload_bytes: class,
            dnssec_ok,
            compact_ok,
            subnet: None,
            cookie: None,
            keepalive: false,
            padding: false,
        })
    }

    fn read_options(&mut self, data: &[u8]) -> Option<()> {
        if self.version != 0 {
            // BADVERS is all that is said to it; what its options look like is not known.
            return Some(());
        }
        let mut options = Cursor { packet: data, at: 0 };
        while options.at < data.len() {
            let code = options.number()?;
            let length = options.number()?;
            let option = options.take(length.into())?;
            match code {
                OPTION_SUBNET if option == SUBNET_OF_NO_FAMILY => {}
                OPTION_SUBNET => self.subnet = Some(Subnet::parse(option)?),
                // A question carries no time in it; one that does means the same.
                OPTION_KEEPALIVE => self.keepalive = true,
                OPTION_PADDING => self.padding = true,
                // Of several only the first counts (RFC 7873 §5.2).
                OPTION_COOKIE if self.cookie.is_none() => self.cookie = Some(Cookie::parse(option)?),
                _ => {}
            }
        }
        Some(())
    }
}
