//! The payloads of captured packets.

/// What UDP and TCP carry in a capture file (the classic format); nothing if it is none. What is not IP, UDP or TCP is
/// left out, fragments too.
pub fn payloads(file: &[u8]) -> Vec<Vec<u8>> {
    let Some((head, mut rest)) = file.split_at_checked(24) else { return Vec::new() };
    let number: fn([u8; 4]) -> u32 = match head[..4] {
        [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => u32::from_le_bytes,
        [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => u32::from_be_bytes,
        _ => return Vec::new(),
    };
    let link = number(head[20..].try_into().unwrap());
    let mut found = Vec::new();
    while let Some((record, after)) = rest.split_first_chunk::<16>()
        && let Some((frame, after)) =
            after.split_at_checked(number(record[8..12].try_into().unwrap()).try_into().unwrap())
    {
        rest = after;
        found.extend(network(link, frame).and_then(transport).map(<[u8]>::to_vec));
    }
    found
}

/// The IP packet in a frame of a link type.
fn network(link: u32, frame: &[u8]) -> Option<&[u8]> {
    match link {
        // BSD loopback, Ethernet (perhaps with a VLAN tag), raw IP, Linux "any".
        0 => frame.get(4..),
        1 if frame.get(12..14)? == [0x81, 0] => frame.get(18..),
        1 => frame.get(14..),
        12 | 14 | 101 => Some(frame),
        113 => frame.get(16..),
        _ => None,
    }
}

/// What UDP or TCP carry.
fn transport(packet: &[u8]) -> Option<&[u8]> {
    let (protocol, body) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, packet.get(usize::from(packet[0] & 0xf) * 4..)?),
        6 => (*packet.get(6)?, packet.get(40..)?),
        _ => return None,
    };
    match protocol {
        6 => body.get(usize::from(body.get(12)? >> 4) * 4..),
        17 => body.get(8..),
        _ => None,
    }
}
