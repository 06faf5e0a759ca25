//! What a server must know of record types: their numbers, and where names stand in their data.

use crate::model::DomainName;

/// IPv4 address (RFC 1035).
pub const A: u16 = 1;
/// Name server (RFC 1035).
pub const NS: u16 = 2;
/// Alias (RFC 1035).
pub const CNAME: u16 = 5;
/// Start of authority (RFC 1035).
pub const SOA: u16 = 6;
/// Pointer (RFC 1035).
pub const PTR: u16 = 12;
/// Host information (RFC 1035); stands in for ANY (RFC 8482).
pub const HINFO: u16 = 13;
/// Mail exchange (RFC 1035).
pub const MX: u16 = 15;
/// Text (RFC 1035).
pub const TXT: u16 = 16;
/// IPv6 address (RFC 3596).
pub const AAAA: u16 = 28;
/// Service location (RFC 2782).
pub const SRV: u16 = 33;
/// Service binding (RFC 9460).
pub const SVCB: u16 = 64;
/// Service binding of web servers (RFC 9460).
pub const HTTPS: u16 = 65;
/// Alias of a subtree (RFC 6672).
pub const DNAME: u16 = 39;
/// EDNS (RFC 6891).
pub const OPT: u16 = 41;
/// Delegation signer (RFC 4034).
pub const DS: u16 = 43;
/// Signature (RFC 4034).
pub const RRSIG: u16 = 46;
/// Denial (RFC 4034).
pub const NSEC: u16 = 47;
/// Public key of a zone (RFC 4034).
pub const DNSKEY: u16 = 48;
/// Delegation signer as the child wishes it (RFC 7344).
pub const CDS: u16 = 59;
/// Public key as the child wishes it delegated (RFC 7344).
pub const CDNSKEY: u16 = 60;
/// Mark of a name that does not exist, in denials only (RFC 9824).
pub const NXNAME: u16 = 128;
/// Incremental transfer (RFC 1995).
pub const IXFR: u16 = 251;
/// Full transfer (RFC 5936).
pub const AXFR: u16 = 252;
/// Any type (RFC 8482).
pub const ANY: u16 = 255;

/// The state of a service, at its own name; a type for private use (RFC 6895 §3.1). Its data has the form of TXT.
pub const VMSTATE: u16 = 65_280;

/// Class Internet.
pub const CLASS_IN: u16 = 1;

/// Where the names stand in the data of the types whose names may be compressed (RFC 3597 §4) and of SRV:
/// how many bytes come before the first one, and how many names follow each other there.
pub const fn names_at(rtype: u16) -> Option<(usize, usize)> {
    match rtype {
        NS | CNAME | PTR | DNAME => Some((0, 1)),
        SOA => Some((0, 2)),
        MX => Some((2, 1)),
        SRV => Some((6, 1)),
        _ => None,
    }
}

/// The length of the uncompressed name at the start of `wire`; `None` if there is none.
pub fn name_length(wire: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let length = usize::from(*wire.get(at)?);
        at += 1;
        match length {
            0 => return (at <= 255).then_some(at),
            1..64 => at += length,
            _ => return None,
        }
    }
}

/// The name that a record of this type points to, uncompressed; `None` for types that point nowhere.
pub fn target(rtype: u16, data: &[u8]) -> Option<&[u8]> {
    let before = match rtype {
        SVCB | HTTPS => 2,
        _ => names_at(rtype)?.0,
    };
    let rest = data.get(before..)?;
    rest.get(..name_length(rest)?)
}

/// Whether two records of a type are the same one: names in their data are compared without case (RFC 4034 §6.2).
pub fn is_same(rtype: u16, one: &[u8], other: &[u8]) -> bool {
    let Some((before, names)) = names_at(rtype) else { return one == other };
    let names_end =
        |data: &[u8]| (0..names).try_fold(before, |end, _| Some(end + name_length(data.get(end..)?)?));
    let (Some(end), Some(other_end)) = (names_end(one), names_end(other)) else { return one == other };
    let names_of = |data| <[u8]>::get(data, before..end).unwrap_or_default();
    // Length octets are below the letters.
    end == other_end
        && names_of(one).eq_ignore_ascii_case(names_of(other))
        && one.get(..before) == other.get(..before)
        && one.get(end..) == other.get(end..)
}

/// Whether a record points to its own owner: SVCB and HTTPS in service mode with the target `.` (RFC 9460 §2.5.2).
pub fn points_to_owner(rtype: u16, data: &[u8]) -> bool {
    matches!(rtype, SVCB | HTTPS) && matches!(data, [high, low, 0, ..] if (*high, *low) != (0, 0))
}

/// Whether the data has the shape of its type, for the types that answering looks into; others pass.
pub fn is_well_formed(rtype: u16, data: &[u8]) -> bool {
    match rtype {
        A => data.len() == 4,
        AAAA => data.len() == 16,
        SOA => soa_numbers(data).is_some(),
        SVCB | HTTPS => target(rtype, data).is_some(),
        _ => match names_at(rtype) {
            None => true,
            Some((before, _)) => {
                data.get(before..).and_then(name_length).is_some_and(|length| before + length == data.len())
            }
        },
    }
}

/// Serial and MINIMUM of a SOA record (RFC 1035 §3.3.13); `None` if it is malformed.
pub fn soa_numbers(data: &[u8]) -> Option<(u32, u32)> {
    let after_first = data.get(name_length(data)?..)?;
    let numbers = after_first.get(name_length(after_first)?..)?;
    let numbers: &[u8; 20] = numbers.try_into().ok()?;
    let word =
        |at: usize| u32::from_be_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]]);
    Some((word(0), word(16)))
}

/// Puts another serial into the data of a SOA record that is well-formed.
pub fn set_soa_serial(data: &mut [u8], serial: u32) {
    // The five numbers are at the end, the serial is the first of them.
    if let Some(place) = data.len().checked_sub(20).and_then(|at| data.get_mut(at..at + 4)) {
        place.copy_from_slice(&serial.to_be_bytes());
    }
}

/// The data of a SOA record.
pub fn soa(primary: &DomainName, hostmaster: &DomainName, numbers: [u32; 5]) -> Vec<u8> {
    let mut data = [primary.as_wire(), hostmaster.as_wire()].concat();
    for number in numbers {
        data.extend_from_slice(&number.to_be_bytes());
    }
    data
}

/// The mnemonic of a type, `TYPE65280` for those without one here.
pub fn type_word(rtype: u16) -> String {
    match rtype {
        A => "A".into(),
        NS => "NS".into(),
        CNAME => "CNAME".into(),
        SOA => "SOA".into(),
        PTR => "PTR".into(),
        HINFO => "HINFO".into(),
        MX => "MX".into(),
        TXT => "TXT".into(),
        AAAA => "AAAA".into(),
        SRV => "SRV".into(),
        SVCB => "SVCB".into(),
        HTTPS => "HTTPS".into(),
        DNAME => "DNAME".into(),
        DS => "DS".into(),
        RRSIG => "RRSIG".into(),
        NSEC => "NSEC".into(),
        DNSKEY => "DNSKEY".into(),
        CDS => "CDS".into(),
        CDNSKEY => "CDNSKEY".into(),
        NXNAME => "NXNAME".into(),
        50 => "NSEC3".into(),
        51 => "NSEC3PARAM".into(),
        _ => format!("TYPE{rtype}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_the_same_whatever_the_case_of_their_names() {
        let cases: [(u16, &[u8], &[u8], bool); 9] = [
            (CNAME, b"\x01a\x00", b"\x01A\x00", true),
            (MX, b"\x00A\x01a\x00", b"\x00A\x01A\x00", true),
            (MX, b"\x00A\x01a\x00", b"\x00a\x01a\x00", false),
            (SRV, b"\x00\x00\x00\x00\x00\x01\x01a\x00", b"\x00\x00\x00\x00\x00\x01\x01A\x00", true),
            (NS, b"\x01a\x00", b"\x01b\x00", false),
            (NS, b"\x01a\x00", b"\x02aa\x00", false),
            (SOA, b"\x01a\x00\x01b\x00\x00a", b"\x01A\x00\x01B\x00\x00a", true),
            (SOA, b"\x01a\x00\x01b\x00\x00a", b"\x01a\x00\x01b\x00\x00A", false),
            (TXT, b"\x01a", b"\x01A", false),
        ];
        for (rtype, one, other, same) in cases {
            assert_eq!(is_same(rtype, one, other), same, "{one:?} {other:?}");
            assert!(is_same(rtype, one, one));
        }
    }

    #[test]
    fn service_bindings_point_to_a_name_or_to_their_owner() {
        assert_eq!(target(HTTPS, b"\x00\x01\x01a\x00\x00\x03\x00\x02\x20\xfb"), Some(&b"\x01a\x00"[..]));
        assert!(!points_to_owner(HTTPS, b"\x00\x01\x01a\x00"));
        assert!(points_to_owner(HTTPS, b"\x00\x01\x00\x00\x03\x00\x02\x20\xfb"));
        // As an alias, `.` says that there is no service (RFC 9460 §2.5.1).
        assert!(!points_to_owner(SVCB, b"\x00\x00\x00"));
        assert!(!is_well_formed(SVCB, b"\x00\x01\x01"));
    }
}
