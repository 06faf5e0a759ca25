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
