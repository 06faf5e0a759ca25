//! What a signature is made over: RRsets in canonical form (RFC 4034 §6), and the data of RRSIG records.

use std::borrow::Cow;

use domain::base::iana::SecurityAlgorithm;
use reveille_core::answer::rdata;

use super::key::SIGNATURE_BYTES;

/// The numbers of an RRSIG record before the signer's name.
const FIXED_BYTES: usize = 18;

/// An RRset to be signed.
#[derive(Debug, Clone, Copy)]
pub(super) struct RrSet<'a> {
    /// Its owner in wire format, lower case.
    pub owner: &'a [u8],
    /// Its type.
    pub rtype: u16,
    /// The largest TTL that it is ever answered with, in seconds.
    pub original_ttl: u32,
    /// The data of each record, in any order.
    pub data: &'a [&'a [u8]],
}

/// From when to when a signature is good, in seconds since 1970, modulo 2³² (RFC 4034 §3.1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub inception: u32,
    pub expiration: u32,
}

/// The data of an RRSIG record without the signature (RFC 4034 §3.1).
pub(super) fn rrsig_head(set: &RrSet<'_>, validity: Validity, tag: u16, signer: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(FIXED_BYTES + signer.len() + SIGNATURE_BYTES);
    head.extend(set.rtype.to_be_bytes());
    head.push(SecurityAlgorithm::ECDSAP256SHA256.to_int());
    head.push(label_count(set.owner));
    head.extend(set.original_ttl.to_be_bytes());
    head.extend(validity.expiration.to_be_bytes());
    head.extend(validity.inception.to_be_bytes());
    head.extend(tag.to_be_bytes());
    head.extend_from_slice(signer);
    head
}

/// What is signed (RFC 4034 §3.1.8.1): the head, then every record in canonical form and order.
pub(super) fn signed_data(head: &[u8], set: &RrSet<'_>) -> Vec<u8> {
    let mut records: Vec<Cow<'_, [u8]>> =
        set.data.iter().map(|data| canonical_data(set.rtype, data)).collect();
    records.sort_unstable();
    records.dedup();
    let each = set.owner.len() + 10;
    let bytes: usize = records.iter().map(|data| each + data.len()).sum();
    let mut signed = Vec::with_capacity(head.len() + bytes);
    signed.extend_from_slice(head);
    for data in records {
        signed.extend_from_slice(set.owner);
        signed.extend(set.rtype.to_be_bytes());
        signed.extend(rdata::CLASS_IN.to_be_bytes());
        signed.extend(set.original_ttl.to_be_bytes());
        // Data of more than 65,535 bytes is in no zone.
        signed.extend(u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
        signed.extend_from_slice(&data);
    }
    signed
}

/// How many labels a name has, without the root and a `*` in front: a wildcard that is asked for by its own name is
/// signed as such (RFC 4034 §3.1.3).
fn label_count(owner: &[u8]) -> u8 {
    let mut count = 0;
    let mut rest = owner;
    while let Some((&length, after)) = rest.split_first() {
        if length == 0 {
            break;
        }
        count += 1;
        rest = after.get(usize::from(length)..).unwrap_or_default();
    }
    if owner.starts_with(b"\x01*") { count - 1 } else { count }
}

/// Lower-cases the names in the data of the types that RFC 4034 §6.2 lists, as corrected by RFC 6840 §5.1. Left out
/// are NXT, SIG and A6, which nobody has used for twenty years.
fn canonical_data(rtype: u16, data: &[u8]) -> Cow<'_, [u8]> {
    let Some((before, names)) = names_at(rtype, data) else { return Cow::Borrowed(data) };
    if !data.iter().any(u8::is_ascii_uppercase) {
        return Cow::Borrowed(data);
    }
    let mut lower = data.to_vec();
    let mut at = before;
    for _ in 0..names {
        let Some(length) = data.get(at..).and_then(rdata::name_length) else { return Cow::Borrowed(data) };
        if let Some(name) = lower.get_mut(at..at + length) {
            // Length octets are below b'A'.
            name.make_ascii_lowercase();
        }
        at += length;
    }
    Cow::Owned(lower)
}

/// Where the names begin, and how many follow each other there.
fn names_at(rtype: u16, data: &[u8]) -> Option<(usize, usize)> {
    match rtype {
        // MD, MF, MB, MG, MR.
        3 | 4 | 7 | 8 | 9 => Some((0, 1)),
        // MINFO, RP.
        14 | 17 => Some((0, 2)),
        // AFSDB, RT, KX.
        18 | 21 | 36 => Some((2, 1)),
        // PX.
        26 => Some((2, 2)),
        // NAPTR: three strings come before the name.
        35 => {
            let mut at = 4;
            for _ in 0..3 {
                at += 1 + usize::from(*data.get(at)?);
            }
            Some((at, 1))
        }
        _ => rdata::names_at(rtype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_counted_without_a_leading_asterisk() {
        assert_eq!(label_count(b"\x00"), 0);
        assert_eq!(label_count(b"\x02vm\x04test\x00"), 2);
        assert_eq!(label_count(b"\x01*\x02vm\x04test\x00"), 2);
        assert_eq!(label_count(b"\x01a\x01*\x02vm\x04test\x00"), 4);
    }

    #[test]
    fn names_in_data_are_lower_cased_and_nothing_else() {
        let lower = |rtype, data: &[u8]| canonical_data(rtype, data).into_owned();
        assert_eq!(lower(rdata::MX, b"AB\x03WWW\x00"), b"AB\x03www\x00");
        assert_eq!(
            lower(rdata::SOA, b"\x01A\x00\x01B\x00AAAABBBBCCCCDDDDEEEE"),
            b"\x01a\x00\x01b\x00AAAABBBBCCCCDDDDEEEE"
        );
        assert_eq!(lower(rdata::TXT, b"\x01A"), b"\x01A");
        assert_eq!(lower(35, b"AAAA\x01U\x03SIP\x00\x03WWW\x00"), b"AAAA\x01U\x03SIP\x00\x03www\x00");
    }
}
