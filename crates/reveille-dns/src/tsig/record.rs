//! The TSIG record on the wire (RFC 8945 §4.2), and what of a message a MAC covers (§4.3).

use reveille_core::answer::rdata;
use reveille_core::model::DomainName;

use super::TsigError;
use super::key::Algorithm;

/// Type TSIG.
pub(crate) const TSIG: u16 = 250;
/// Class ANY, the only one of a TSIG record.
const CLASS_ANY: u16 = 255;
/// Length of a message's header.
const HEADER_BYTES: usize = 12;
/// Longest name in wire format.
const NAME_BYTES_MAX: usize = 255;
/// Most labels and pointers of a compressed name.
const NAME_STEPS_MAX: usize = 256;
/// Longest MAC of any algorithm, in bytes.
const MAC_BYTES_MAX: usize = 64;
/// Time signed, fudge, MAC size, original ID, error, other length.
const FIXED_BYTES: usize = 6 + 2 + 2 + 2 + 2 + 2;
/// Type, class, TTL and length of a record.
const RECORD_BYTES: usize = 10;

/// The message cannot be read as far as its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message or its TSIG record is malformed")]
pub struct Malformed;

/// The TSIG record of a message, read but not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Where the record begins in the message.
    pub(super) start: usize,
    key: DomainName,
    algorithm: DomainName,
    time_signed_s: u64,
    fudge_s: u16,
    mac: Vec<u8>,
    original_id: u16,
    error: u16,
    pub(super) other: Vec<u8>,
}

impl Signature {
    /// The signature of a whole message of any kind; `None` if it has none.
    ///
    /// # Errors
    /// If the message is not well-formed, or has a TSIG record that is not its last one.
    pub fn find(packet: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut at = Place { packet, at: 4 };
        at.find().ok_or(Malformed)
    }

    /// Reads the record that begins at `start` of `packet`; it has that class and TTL, and its data is at `data`.
    /// `None` if it is malformed.
    pub(crate) fn parse(
        packet: &[u8],
        start: usize,
        class: u16,
        ttl: &[u8],
        data: std::ops::Range<usize>,
    ) -> Option<Self> {
        if class != CLASS_ANY || ttl != [0; 4] {
            return None;
        }
        let key = name_at(packet, start)?;
        let data = packet.get(data)?;
        let (algorithm, rest) = data.split_at_checked(rdata::name_length(data)?)?;
        let algorithm = DomainName::from_wire(algorithm).ok()?;
        let mut rest = Place { packet: rest, at: 0 };
        let time =
            rest.take(6)?.try_into().ok().map(|[a, b, c, d, e, f]: [u8; 6]| [0, 0, a, b, c, d, e, f])?;
        let fudge_s = rest.number()?;
        let mac_bytes = rest.number()?.into();
        let mac = rest.take(mac_bytes)?;
        let (original_id, error, other_bytes) = (rest.number()?, rest.number()?, rest.number()?.into());
        let other = rest.take(other_bytes)?;
        if rest.at != rest.packet.len() || mac.len() > MAC_BYTES_MAX {
            return None;
        }
        let time_signed_s = u64::from_be_bytes(time);
        let (mac, other) = (mac.to_vec(), other.to_vec());
        Some(Self { start, key, algorithm, time_signed_s, fudge_s, mac, original_id, error, other })
    }

    /// The name of the key with which it says that it was made.
    pub fn key_name(&self) -> &DomainName {
        &self.key
    }

    /// Whether it says that it was made with that algorithm.
    pub(super) fn is_by(&self, algorithm: Algorithm) -> bool {
        self.algorithm.as_wire() == algorithm.wire()
    }

    pub(super) fn mac(&self) -> &[u8] {
        &self.mac
    }

    pub(super) fn error(&self) -> u16 {
        self.error
    }

    pub(super) fn times(&self) -> Times {
        Times { signed_s: self.time_signed_s, fudge_s: self.fudge_s }
    }

    /// What the MAC of a request covers: the message as it was before it was signed, then the variables.
    pub(super) fn signed_part(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let mut signed = Vec::with_capacity(packet.len() + 64);
        self.append_unsigned(packet, &mut signed)?;
        let variables = Variables {
            key: &self.key,
            algorithm: self.algorithm.as_wire(),
            times: self.times(),
            error: self.error,
            other: &self.other,
        };
        variables.append(&mut signed);
        Some(signed)
    }

    /// The message without the record and with its own ID (RFC 8945 §4.3.2).
    pub(super) fn append_unsigned(&self, packet: &[u8], into: &mut Vec<u8>) -> Option<()> {
        let (header, _) = packet.split_at_checked(HEADER_BYTES)?;
        let additional = u16::from_be_bytes([*header.get(10)?, *header.get(11)?]).checked_sub(1)?;
        into.extend_from_slice(&self.original_id.to_be_bytes());
        into.extend_from_slice(header.get(2..10)?);
        into.extend_from_slice(&additional.to_be_bytes());
        into.extend_from_slice(packet.get(HEADER_BYTES..self.start)?);
        Some(())
    }

    /// Length of the record of [`Signature::append_refusal`].
    pub(super) fn refusal_bytes(&self) -> usize {
        record_bytes(&self.key, self.algorithm.as_wire(), 0)
    }

    /// Adds the record of an answer that is not signed: that of the request, without a MAC, with the error.
    pub(super) fn append_refusal(&self, error: TsigError, message: &mut Vec<u8>) {
        let algorithm = self.algorithm.as_wire();
        let times = self.times();
        append(message, &self.key, algorithm, times, &[], error.number(), &[]);
    }
}

/// When a message was signed, and how far off that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// Seconds since the Unix epoch.
    pub signed_s: u64,
    /// Seconds.
    pub fudge_s: u16,
}

impl Times {
    /// In wire format: 48 bits, 16 bits.
    pub fn append(self, into: &mut Vec<u8>) {
        into.extend_from_slice(&time48(self.signed_s));
        into.extend_from_slice(&self.fudge_s.to_be_bytes());
    }
}

/// A time in six octets.
pub(super) fn time48(unix_s: u64) -> [u8; 6] {
    let [_, _, a, b, c, d, e, f] = unix_s.to_be_bytes();
    [a, b, c, d, e, f]
}

/// What a MAC covers beside the message (RFC 8945 §4.3.3).
pub(super) struct Variables<'a> {
    pub key: &'a DomainName,
    pub algorithm: &'a [u8],
    pub times: Times,
    pub error: u16,
    pub other: &'a [u8],
}

impl Variables<'_> {
    /// In the form that is signed.
    pub fn append(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self.key.as_wire());
        into.extend_from_slice(&CLASS_ANY.to_be_bytes());
        into.extend_from_slice(&[0; 4]);
        into.extend_from_slice(self.algorithm);
        self.times.append(into);
        into.extend_from_slice(&self.error.to_be_bytes());
        into.extend_from_slice(&short(self.other.len()));
        into.extend_from_slice(self.other);
    }
}

/// Adds a TSIG record to a message that had none, whose ID is its own.
pub(super) fn append(
    message: &mut Vec<u8>,
    key: &DomainName,
    algorithm: &[u8],
    times: Times,
    mac: &[u8],
    error: u16,
    other: &[u8],
) {
    let Some(&[id_high, id_low, ..]) = message.get(..HEADER_BYTES) else { return };
    message.extend_from_slice(key.as_wire());
    message.extend_from_slice(&TSIG.to_be_bytes());
    message.extend_from_slice(&CLASS_ANY.to_be_bytes());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&short(algorithm.len() + FIXED_BYTES + mac.len() + other.len()));
    message.extend_from_slice(algorithm);
    times.append(message);
    message.extend_from_slice(&short(mac.len()));
    message.extend_from_slice(mac);
    message.extend_from_slice(&[id_high, id_low]);
    message.extend_from_slice(&error.to_be_bytes());
    message.extend_from_slice(&short(other.len()));
    message.extend_from_slice(other);
    if let Some(count) = message.get_mut(10..12) {
        let additional = u16::from_be_bytes([count[0], count[1]]).saturating_add(1);
        count.copy_from_slice(&additional.to_be_bytes());
    }
}

/// Length of a TSIG record with that much MAC and other data.
pub(super) fn record_bytes(key: &DomainName, algorithm: &[u8], mac_and_other: usize) -> usize {
    key.as_wire().len() + RECORD_BYTES + algorithm.len() + FIXED_BYTES + mac_and_other
}

/// Lengths here are of names, MACs and times: they fit.
fn short(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// The name at that place, which may be compressed.
fn name_at(packet: &[u8], start: usize) -> Option<DomainName> {
    let mut wire = Vec::with_capacity(32);
    let mut at = start;
    for _ in 0..NAME_STEPS_MAX {
        let length = *packet.get(at)?;
        match length {
            0 => {
                wire.push(0);
                return DomainName::from_wire(&wire).ok();
            }
            1..64 => {
                wire.extend_from_slice(packet.get(at..=at + usize::from(length))?);
                at += 1 + usize::from(length);
            }
            192.. => {
                let to = usize::from(length & 0x3f) << 8 | usize::from(*packet.get(at + 1)?);
                // Backwards only, so that it ends.
                at = Some(to).filter(|to| (HEADER_BYTES..at).contains(to))?;
            }
            64..192 => return None,
        }
        if wire.len() >= NAME_BYTES_MAX {
            return None;
        }
    }
    None
}

/// A place in a packet; `None` of a step is malformed.
struct Place<'p> {
    packet: &'p [u8],
    at: usize,
}

impl<'p> Place<'p> {
    fn take(&mut self, length: usize) -> Option<&'p [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.packet.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).and_then(|bytes| Some(u16::from_be_bytes(bytes.try_into().ok()?)))
    }

    /// From the counts of the header on to the end of the message.
    fn find(&mut self) -> Option<Option<Signature>> {
        let questions = self.number()?;
        let records = [self.number()?, self.number()?, self.number()?];
        for _ in 0..questions {
            self.skip_name()?;
            self.take(4)?;
        }
        let total: usize = records.iter().map(|&count| usize::from(count)).sum();
        let mut found = None;
        for index in 0..total {
            let start = self.at;
            self.skip_name()?;
            let (rtype, class) = (self.number()?, self.number()?);
            let ttl = self.take(4)?;
            let length = self.number()?;
            self.take(length.into())?;
            if rtype == TSIG {
                let in_additional = index >= usize::from(records[0]) + usize::from(records[1]);
                if !in_additional || index + 1 != total {
                    return None;
                }
                let data = self.at - usize::from(length)..self.at;
                found = Some(Signature::parse(self.packet, start, class, ttl, data)?);
            }
        }
        (self.at == self.packet.len()).then_some(found)
    }

    fn skip_name(&mut self) -> Option<()> {
        loop {
            let length = *self.take(1)?.first()?;
            match length {
                0 => return Some(()),
                1..64 => self.take(length.into())?,
                192.. => return self.take(1).map(drop),
                64..192 => return None,
            };
        }
    }
}
