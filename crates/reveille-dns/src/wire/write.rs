//! Writing an answer within a size limit.

use domain::base::iana::{Class, Opcode, OptRcode, OptionCode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError};
use domain::base::name::Name;
use domain::base::rdata::{ComposeRecordData, RecordData};
use domain::base::wire::Composer;
use domain::base::{MessageBuilder, Ttl};
use domain::dep::octseq::OctetsBuilder;
use reveille_core::answer::{Ede, Owner, Question, Rcode, Records, Reply, Section, rdata};

use super::compress::Compressor;
use super::cookie::{COOKIE_BYTES, OPTION_COOKIE};
use super::query::{Edns, Faulty, Header, OPTION_KEEPALIVE, OPTION_PADDING, OPTION_SUBNET, Query};

/// Largest UDP answer, in bytes: goes through every network unfragmented (DNS flag day 2020).
pub const UDP_PAYLOAD_MAX: u16 = 1232;
/// Largest UDP answer to an asker without EDNS, and the least that one with EDNS may name (RFC 6891 §6.2.3).
const UDP_PAYLOAD_MIN: u16 = 512;
/// Largest message over TCP.
const TCP_MESSAGE_MAX: u16 = u16::MAX;
/// Longest extra text of an extended error; with it, the longest name, a client subnet and cookies, any error still
/// fits into the smallest UDP answer.
const EDE_TEXT_BYTES_MAX: usize = 160;
/// Place of the byte with TC in a message, and its bit (RFC 1035 §4.1.1).
const FLAGS_AT: usize = 2;
const FLAG_TC: u8 = 0x02;
/// OPT without options.
const OPT_BYTES: usize = 11;
/// Where in it the flags begin: after root, type, class, the rest of the code, version.
const OPT_FLAGS_AT: usize = 7;
/// CO (RFC 9824 §5.1).
const FLAG_COMPACT_OK: u8 = 0x40;
/// Code and length of an option.
const OPTION_BYTES: usize = 4;
/// How long a connection is kept without a question if its client knows of edns-tcp-keepalive: what such an answer
/// promises.
pub const KEEPALIVE_MS: u16 = 30_000;
/// Padded answers have a multiple of this length, in bytes (RFC 8467 §4.1).
const PADDING_BLOCK_BYTES: usize = 468;
/// A compressed name that stands in the message already.
const POINTER_BYTES: usize = 2;
/// Type, class, TTL and length of a record.
const RECORD_BYTES: usize = 10;

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Response code.
    pub rcode: Rcode,
    /// TC is set.
    pub truncated: bool,
}

type Target<'o> = Compressor<'o>;

/// What goes around the answer itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Envelope {
    /// The size is bounded by what both sides take over UDP (RFC 6891 §6.2.5).
    pub over_udp: bool,
    /// Data of the COOKIE option; it goes out only to who sent an OPT.
    pub cookie: Option<[u8; COOKIE_BYTES]>,
    /// Bytes of the limit that are left for a signature.
    pub signature_bytes: usize,
    /// The answer to a padded question is padded (RFC 8467).
    pub may_pad: bool,
    /// Who asks how long an idle connection is kept is told [`KEEPALIVE_MS`] (RFC 7828).
    pub tells_keepalive: bool,
}

/// Writes the answer to a readable question into `out`, replacing what is there.
pub fn write_reply(query: &Query, reply: &Reply<'_>, envelope: &Envelope, out: &mut Vec<u8>) -> Written {
    let edns = query.edns.as_ref();
    let asked = Asked { header: query.header, question: Some(&query.question), edns };
    let limit = size_limit(edns, envelope.over_udp).saturating_sub(envelope.signature_bytes);
    let written = try_write(&asked, reply, envelope, limit, out).or_else(|_| {
        // Beside the longest name and a signature there may be no room for the extended error.
        try_write(&asked, &Reply { ede: None, ..reply.clone() }, envelope, limit, out)
    });
    written.unwrap_or_else(|_| {
        // Header, question and OPT fit always; should that be wrong, the asker is not left without an answer.
        write_error(query.header, Rcode::ServFail, out)
    })
}

/// Writes the answer without its records and with TC: the asker shall come again over TCP.
pub fn write_truncated(query: &Query, reply: &Reply<'_>, envelope: &Envelope, out: &mut Vec<u8>) -> Written {
    let bare = Reply { rcode: reply.rcode, authoritative: reply.authoritative, ..Reply::empty() };
    let written = write_reply(query, &bare, &Envelope { over_udp: true, ..*envelope }, out);
    if let Some(flags) = out.get_mut(FLAGS_AT) {
        *flags |= FLAG_TC;
    }
    Written { truncated: true, ..written }
}

/// Writes the error to a faulty packet into `out`, replacing what is there; or, with a cookie, the answer to one that
/// wants nothing else.
pub fn write_fault(faulty: &Faulty, rcode: Rcode, envelope: &Envelope, out: &mut Vec<u8>) -> Written {
    // A version of EDNS that is not spoken here comes before all else (RFC 6891 §6.1.3).
    let other_version = faulty.edns.is_some_and(|edns| edns.version != 0);
    let rcode = if other_version { Rcode::BadVers } else { rcode };
    let reply = Reply { rcode, authoritative: false, ..Reply::empty() };
    // The subnet was perhaps what is wrong with it.
    let edns = faulty.edns.map(|edns| Edns { subnet: None, ..edns });
    let asked = Asked { header: faulty.header, question: faulty.question.as_ref(), edns: edns.as_ref() };
    try_write(&asked, &reply, envelope, UDP_PAYLOAD_MIN.into(), out)
        .unwrap_or_else(|_| write_error(faulty.header, Rcode::ServFail, out))
}

/// Writes a header with an error and nothing else into `out`, replacing what is there.
pub fn write_error(header: Header, rcode: Rcode, out: &mut Vec<u8>) -> Written {
    let Header { id, opcode, recursion_desired } = header;
    let [high, low] = id.to_be_bytes();
    let flags = 0x80 | (opcode & 0xf) << 3 | u8::from(recursion_desired);
    let code = (rcode.number() & 0xf).to_be_bytes()[1];
    out.clear();
    out.extend_from_slice(&[high, low, flags, code, 0, 0, 0, 0, 0, 0, 0, 0]);
    Written { rcode, truncated: false }
}

fn size_limit(edns: Option<&Edns>, over_udp: bool) -> usize {
    let limit = if over_udp {
        edns.map_or(UDP_PAYLOAD_MIN, |edns| edns.payload_bytes.clamp(UDP_PAYLOAD_MIN, UDP_PAYLOAD_MAX))
    } else {
        TCP_MESSAGE_MAX
    };
    limit.into()
}

/// What an answer repeats.
struct Asked<'q> {
    header: Header,
    question: Option<&'q Question>,
    edns: Option<&'q Edns>,
}

fn try_write(
    asked: &Asked<'_>,
    reply: &Reply<'_>,
    envelope: &Envelope,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<Written, PushError> {
    out.clear();
    // A `Vec` takes everything, so this cannot fail.
    let mut message = MessageBuilder::from_target(Compressor::new(out)).map_err(|_| PushError::ShortBuf)?;
    let opt = asked.edns.map(|edns| Opt { edns, ede: reply.ede.as_ref(), rcode: reply.rcode, envelope });
    let opt_bytes = opt.as_ref().map_or(0, Opt::bytes_max);
    let records_limit = limit.checked_sub(opt_bytes).ok_or(PushError::ShortBuf)?;
    // What just fits exceeds a "push limit" of its own length already.
    message.set_push_limit(records_limit + 1);
    let header = message.header_mut();
    header.set_id(asked.header.id);
    header.set_qr(true);
    header.set_opcode(Opcode::from_int(asked.header.opcode));
    header.set_aa(reply.authoritative);
    header.set_rd(asked.header.recursion_desired);
    header.set_rcode(OptRcode::masked_from_int(reply.rcode.number()).rcode());

    let mut section = message.question();
    if let Some(question) = asked.question {
        let qname = name(question.name.as_wire())?;
        section.push((qname, Rtype::from_int(question.qtype), Class::from_int(question.qclass)))?;
    }
    let asked = asked.question.map_or(&[][..], |question| question.name.as_wire());
    let (mut section, mut truncated) = write_records(section.answer(), reply, asked);
    if !truncated {
        truncated = write_additional(&mut section, reply, asked, records_limit);
    }
    let message = section.as_builder_mut();
    message.header_mut().set_tc(truncated);
    message.set_push_limit(limit + 1);
    let opt_at = section.as_slice().len();
    if let Some(opt) = opt {
        opt.write(&mut section, limit)?;
        // The builder does not know the flag.
        let mut message = section.finish();
        let flags = message.as_mut().get_mut(opt_at + OPT_FLAGS_AT);
        if let Some(flags) = flags.filter(|_| reply.compact) {
            *flags |= FLAG_COMPACT_OK;
        }
    }
    Ok(Written { rcode: reply.rcode, truncated })
}

/// Answer and authority sections, whole or not at all: half an RRset is worse than none (RFC 2181 §9).
fn write_records<'o>(
    mut section: AnswerBuilder<Target<'o>>,
    reply: &Reply<'_>,
    asked: &[u8],
) -> (AdditionalBuilder<Target<'o>>, bool) {
    if each_record(&reply.answer, asked, |record| section.push(record)).is_err() {
        return (section.rewind_into().additional(), true);
    }
    let mut section = section.authority();
    if each_record(&reply.authority, asked, |record| section.push(record)).is_err() {
        return (section.answer().rewind_into().additional(), true);
    }
    (section.additional(), false)
}

/// The additional section as far as it fits; tells whether something is missing that the asker needs.
fn write_additional(
    section: &mut AdditionalBuilder<Target<'_>>,
    reply: &Reply<'_>,
    asked: &[u8],
    limit: usize,
) -> bool {
    for records in reply.additional.iter() {
        // An RRset is never cut in the middle. Only its first record has the owner; the others point to that.
        let owner = name(owner_wire(records.owner, asked)).map(|owner| section.as_target().bytes_of(owner));
        let further = records.iter().count().saturating_sub(1) * POINTER_BYTES;
        let bytes: usize = records.iter().map(|data| RECORD_BYTES + data.len()).sum();
        let fits = owner.is_ok_and(|owner| section.as_slice().len() + owner + further + bytes <= limit);
        let mut one = Section::default();
        one.push(records.clone());
        if !fits || each_record(&one, asked, |record| section.push(record)).is_err() {
            return reply.glue;
        }
    }
    false
}

type WireRecord<'a> = (&'a Name<[u8]>, Class, Ttl, WireData<'a>);

fn each_record(
    section: &Section<'_>,
    asked: &[u8],
    mut push: impl FnMut(WireRecord<'_>) -> Result<(), PushError>,
) -> Result<(), PushError> {
    for records in section.iter() {
        let owner = name(owner_wire(records.owner, asked))?;
        let Records { rtype, ttl, .. } = records;
        for data in records.iter() {
            push((owner, Class::IN, Ttl::from_secs(*ttl), WireData { rtype: *rtype, data }))?;
        }
    }
    Ok(())
}

fn owner_wire<'a>(owner: Owner<'a>, asked: &'a [u8]) -> &'a [u8] {
    match owner {
        Owner::Question => asked,
        Owner::Name(wire) => wire,
    }
}

fn name(wire: &[u8]) -> Result<&Name<[u8]>, PushError> {
    Name::from_slice(wire).map_err(|_| PushError::ShortBuf)
}

/// Record data that is in wire format already; names in it are compressed where that is allowed (RFC 3597 §4).
struct WireData<'a> {
    rtype: u16,
    data: &'a [u8],
}

impl RecordData for WireData<'_> {
    fn rtype(&self) -> Rtype {
        Rtype::from_int(self.rtype)
    }
}

/// Where names that may be compressed stand in the data of a type: bytes before them, and how many; `None` if the
/// data is to be copied as it is.
pub(super) const fn compressible(rtype: u16) -> Option<(usize, usize)> {
    match rtype {
        rdata::NS | rdata::CNAME | rdata::PTR | rdata::SOA | rdata::MX => rdata::names_at(rtype),
        _ => None,
    }
}

impl ComposeRecordData for WireData<'_> {
    fn rdlen(&self, compress: bool) -> Option<u16> {
        if compress && compressible(self.rtype).is_some() {
            return None;
        }
        u16::try_from(self.data.len()).ok()
    }

    fn compose_rdata<T: Composer + ?Sized>(&self, target: &mut T) -> Result<(), T::AppendError> {
        let Some((before, names)) = compressible(self.rtype) else { return target.append_slice(self.data) };
        let (numbers, mut rest) = self.data.split_at_checked(before).unwrap_or((self.data, &[]));
        target.append_slice(numbers)?;
        for _ in 0..names {
            let (wire, after) = rdata::name_length(rest)
                .and_then(|length| rest.split_at_checked(length))
                .unwrap_or((&[], rest));
            match Name::from_slice(wire) {
                Ok(name) => target.append_compressed_name(name)?,
                Err(_) => target.append_slice(wire)?,
            }
            rest = after;
        }
        target.append_slice(rest)
    }

    fn compose_canonical_rdata<T: Composer + ?Sized>(&self, target: &mut T) -> Result<(), T::AppendError> {
        target.append_slice(self.data)
    }
}

/// The OPT record of an answer.
struct Opt<'a> {
    edns: &'a Edns,
    ede: Option<&'a Ede<'a>>,
    rcode: Rcode,
    envelope: &'a Envelope,
}

impl Opt<'_> {
    /// Room that is kept for it: all of it but what fills up a padding.
    fn bytes_max(&self) -> usize {
        let subnet = self.edns.subnet.map_or(0, |subnet| OPTION_BYTES + subnet.answer_data().count());
        let ede = self.ede.map_or(0, |ede| OPTION_BYTES + 2 + ede_text(ede).len());
        let cookie = self.envelope.cookie.map_or(0, |cookie| OPTION_BYTES + cookie.len());
        let keepalive = if self.tells_keepalive() { OPTION_BYTES + 2 } else { 0 };
        let padding = if self.is_padded() { OPTION_BYTES } else { 0 };
        OPT_BYTES + subnet + ede + cookie + keepalive + padding
    }

    fn tells_keepalive(&self) -> bool {
        self.envelope.tells_keepalive && self.edns.keepalive
    }

    fn is_padded(&self) -> bool {
        self.envelope.may_pad && self.edns.padding
    }

    fn write(&self, section: &mut AdditionalBuilder<Target<'_>>, limit: usize) -> Result<(), PushError> {
        // With the signature, which will stand behind it.
        let signature_bytes = self.envelope.signature_bytes;
        let length = section.as_slice().len() + self.bytes_max() + signature_bytes;
        let padded = length.next_multiple_of(PADDING_BLOCK_BYTES).min(limit + signature_bytes);
        let padding = padded.saturating_sub(length);
        section.opt(|opt| {
            opt.set_udp_payload_size(UDP_PAYLOAD_MAX);
            opt.set_rcode(OptRcode::masked_from_int(self.rcode.number()));
            opt.set_version(0);
            opt.set_dnssec_ok(self.edns.dnssec_ok);
            if let Some(subnet) = &self.edns.subnet {
                let length = u16::try_from(subnet.answer_data().count()).unwrap_or(u16::MAX);
                opt.push_raw_option(OPTION_SUBNET.into(), length, |target| {
                    subnet.answer_data().try_for_each(|byte| target.append_slice(&[byte]))
                })?;
            }
            if let Some(cookie) = &self.envelope.cookie {
                let length = u16::try_from(cookie.len()).unwrap_or(u16::MAX);
                opt.push_raw_option(OPTION_COOKIE.into(), length, |target| target.append_slice(cookie))?;
            }
            if let Some(ede) = self.ede {
                let text = ede_text(ede);
                let length = u16::try_from(2 + text.len()).unwrap_or(u16::MAX);
                opt.push_raw_option(OptionCode::EXTENDED_ERROR, length, |target| {
                    target.append_slice(&ede.code.to_be_bytes())?;
                    target.append_slice(text.as_bytes())
                })?;
            }
            if self.tells_keepalive() {
                // In units of 100 ms.
                opt.push_raw_option(OPTION_KEEPALIVE.into(), 2, |target| {
                    target.append_slice(&(KEEPALIVE_MS / 100).to_be_bytes())
                })?;
            }
            if self.is_padded() {
                let length = u16::try_from(padding).unwrap_or(0);
                opt.push_raw_option(OPTION_PADDING.into(), length, |target| {
                    (0..length).try_for_each(|_| target.append_slice(&[0]))
                })?;
            }
            Ok(())
        })
    }
}

fn ede_text<'a>(ede: &'a Ede<'_>) -> &'a str {
    let text: &str = &ede.text;
    text.get(..text.floor_char_boundary(EDE_TEXT_BYTES_MAX)).unwrap_or_default()
}
