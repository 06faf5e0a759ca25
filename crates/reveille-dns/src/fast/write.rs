//! Writing an answer whose size is known to be small, without the builder: the question is copied and what follows it
//! has a fixed shape.

use reveille_core::answer::{Rcode, rdata};

use super::HEADER_BYTES;
use crate::wire::{COOKIE_BYTES, Edns, OPTION_COOKIE, OPTION_SUBNET, UDP_PAYLOAD_MAX};

/// A compression pointer to the question's name (RFC 1035 §4.1.4).
const TO_QUESTION: [u8; 2] = [0xc0, 12];

/// An answer in the making. Every step is `None` when the room is used up.
pub(super) struct Writer<'o> {
    out: &'o mut [u8],
    at: usize,
    answers: u8,
    authority: u8,
}

impl<'o> Writer<'o> {
    /// Begins with the header and the question.
    pub fn new(out: &'o mut [u8], question: &[u8]) -> Option<Self> {
        out.get_mut(..question.len())?.copy_from_slice(question);
        Some(Self { out, at: question.len(), answers: 0, authority: 0 })
    }

    /// An address of the question's name.
    pub fn address(&mut self, rtype: u16, ttl_s: u32, address: &[u8]) -> Option<()> {
        self.put(&TO_QUESTION)?;
        self.fixed(rtype, ttl_s, address.len())?;
        self.put(address)?;
        self.answers += 1;
        Some(())
    }

    /// The SOA record of the zone, whose apex stands in the question's name at `apex_at`.
    pub fn soa(&mut self, apex: &[u8], apex_at: usize, ttl_s: u32, soa: &[u8]) -> Option<()> {
        let pointer = (0xc000 | u16::try_from(apex_at).ok()?).to_be_bytes();
        self.put(&pointer)?;
        let length_at = self.at + 8;
        self.fixed(rdata::SOA, ttl_s, 0)?;
        let mut rest = soa;
        for _ in 0..2 {
            let (name, after) = rest.split_at_checked(rdata::name_length(rest)?)?;
            match before_apex(name, apex) {
                Some(labels) => {
                    self.put(labels)?;
                    self.put(&pointer)?;
                }
                None => self.put(name)?,
            }
            rest = after;
        }
        self.put(rest)?;
        let length = u16::try_from(self.at - length_at - 2).ok()?;
        self.out.get_mut(length_at..length_at + 2)?.copy_from_slice(&length.to_be_bytes());
        self.authority += 1;
        Some(())
    }

    /// Writes the OPT if the question had one, and the header; gives the length.
    pub fn finish(
        mut self,
        rcode: Rcode,
        edns: Option<&Edns>,
        cookie: Option<[u8; COOKIE_BYTES]>,
    ) -> Option<usize> {
        if let Some(edns) = edns {
            self.opt(edns, cookie)?;
        }
        let header = self.out.first_chunk_mut::<HEADER_BYTES>()?;
        let recursion_desired = header[2] & 1;
        // QR and AA; what the response code has beyond four bits is zero for the codes that are written here.
        header[2] = 0x84 | recursion_desired;
        header[3] = rcode.number().to_be_bytes()[1] & 0xf;
        header[7] = self.answers;
        header[9] = self.authority;
        header[11] = u8::from(edns.is_some());
        Some(self.at)
    }

    fn opt(&mut self, edns: &Edns, cookie: Option<[u8; COOKIE_BYTES]>) -> Option<()> {
        let [high, low] = UDP_PAYLOAD_MAX.to_be_bytes();
        let dnssec_ok = if edns.dnssec_ok { 0x80 } else { 0 };
        self.put(&[0, 0, 41, high, low, 0, 0, dnssec_ok, 0, 0, 0])?;
        if edns.subnet.is_none() && cookie.is_none() {
            return Some(());
        }
        let options_at = self.at;
        if let Some(subnet) = &edns.subnet {
            self.put(&OPTION_SUBNET.to_be_bytes())?;
            self.put(&u16::try_from(subnet.answer_data().count()).ok()?.to_be_bytes())?;
            for byte in subnet.answer_data() {
                self.put(&[byte])?;
            }
        }
        if let Some(cookie) = cookie {
            self.put(&OPTION_COOKIE.to_be_bytes())?;
            self.put(&u16::try_from(cookie.len()).ok()?.to_be_bytes())?;
            self.put(&cookie)?;
        }
        let length = u16::try_from(self.at - options_at).ok()?.to_be_bytes();
        self.out.get_mut(options_at - 2..options_at)?.copy_from_slice(&length);
        Some(())
    }

    /// Type, class IN, TTL and length of a record.
    fn fixed(&mut self, rtype: u16, ttl_s: u32, length: usize) -> Option<()> {
        let mut fixed = [0; 10];
        fixed[..2].copy_from_slice(&rtype.to_be_bytes());
        fixed[2..4].copy_from_slice(&rdata::CLASS_IN.to_be_bytes());
        fixed[4..8].copy_from_slice(&ttl_s.to_be_bytes());
        fixed[8..].copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
        self.put(&fixed)
    }

    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at + bytes.len();
        self.out.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }
}

/// The labels of a name in front of the apex, if it is at or below it in the same letters.
fn before_apex<'n>(name: &'n [u8], apex: &[u8]) -> Option<&'n [u8]> {
    let length = name.len().checked_sub(apex.len())?;
    let (labels, rest) = name.split_at_checked(length)?;
    let mut at = 0;
    while at < length {
        at += 1 + usize::from(*name.get(at)?);
    }
    // Otherwise the apex's bytes begin inside a label.
    (at == length && rest == apex).then_some(labels)
}
