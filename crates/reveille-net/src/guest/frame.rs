//! Ethernet and ARP by hand: there are only two stations, and both are known.

use std::net::Ipv4Addr;

use super::{Dropped, GATEWAY_IP, GUEST_IP, HERE_IP, HERE_MAC, LinkAddresses, MTU};

/// Bytes of the length before each frame.
pub(super) const LENGTH_BYTES: usize = 4;
/// Bytes of an Ethernet header: destination, source, type.
pub(super) const HEADER_BYTES: usize = 14;
/// Longest frame from the guest that is looked at; a VLAN tag or padding fits.
pub(super) const FRAME_BYTES_MAX: usize = HEADER_BYTES + MTU + 4;
/// A longer one cannot come from a network device: the stream is not what it should be, and the link is closed.
pub(super) const SKIPPED_BYTES_MAX: usize = 128 << 10;
/// Ethertype of IPv4.
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
/// Bytes of an ARP packet for IPv4 over Ethernet (RFC 826).
pub(super) const ARP_BYTES: usize = 28;

/// Whom a frame for every station goes to.
pub(super) const BROADCAST: [u8; 6] = [0xff; 6];
/// Hardware type 1 (Ethernet), protocol type IPv4, lengths 6 and 4.
const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// A frame that is for us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inbound<'a> {
    /// The guest asks for the MAC of one of our addresses.
    WhoHas(Ipv4Addr),
    /// The guest told its MAC.
    IsAt,
    /// An IPv4 packet from the guest's address to ours; lengths are not yet looked at.
    Ipv4(&'a [u8]),
}

/// Looks at a frame from the guest, counting it if it is for nobody. By ARP the guest tells its MAC: that of a clone is
/// not what QEMU was given.
pub(super) fn classify<'a>(
    frame: &'a [u8],
    addresses: LinkAddresses,
    guest_mac: &mut [u8; 6],
    dropped: &mut Dropped,
) -> Option<Inbound<'a>> {
    if frame.len() > FRAME_BYTES_MAX {
        dropped.oversized += 1;
        return None;
    }
    let Some((header, payload)) = frame.split_at_checked(HEADER_BYTES) else {
        dropped.malformed += 1;
        return None;
    };
    let source = [header[6], header[7], header[8], header[9], header[10], header[11]];
    match u16::from_be_bytes([header[12], header[13]]) {
        ETHERTYPE_ARP if header[..6] == HERE_MAC || header[..6] == BROADCAST => {
            arp(payload, source, addresses, guest_mac, dropped)
        }
        _ if source != *guest_mac => {
            dropped.spoofed += 1;
            None
        }
        ETHERTYPE_IPV4 if header[..6] == HERE_MAC => ipv4(payload, dropped),
        _ => {
            dropped.not_for_us += 1;
            None
        }
    }
}

fn ipv4<'a>(payload: &'a [u8], dropped: &mut Dropped) -> Option<Inbound<'a>> {
    let (Some(source), Some(destination)) = (address(payload, 12), address(payload, 16)) else {
        dropped.malformed += 1;
        return None;
    };
    if source != GUEST_IP {
        dropped.spoofed += 1;
        return None;
    }
    if destination != HERE_IP {
        dropped.not_for_us += 1;
        return None;
    }
    Some(Inbound::Ipv4(payload))
}

fn arp(
    payload: &[u8],
    mac: [u8; 6],
    addresses: LinkAddresses,
    guest_mac: &mut [u8; 6],
    dropped: &mut Dropped,
) -> Option<Inbound<'static>> {
    let Some(packet) = payload.get(..ARP_BYTES).filter(|packet| packet[..6] == ARP_HEAD) else {
        dropped.malformed += 1;
        return None;
    };
    let (Some(source), Some(target)) = (address(packet, 14), address(packet, 24)) else {
        dropped.malformed += 1;
        return None;
    };
    // A probe for a duplicate address (RFC 5227) has no source and is not answered either.
    // The lowest bit of the first byte is set in addresses of groups.
    if source != GUEST_IP || packet[8..14] != mac || mac[0] & 1 != 0 || mac == HERE_MAC {
        dropped.spoofed += 1;
        return None;
    }
    *guest_mac = mac;
    let ours = target == HERE_IP || (addresses.gateway && target == GATEWAY_IP);
    match u16::from_be_bytes([packet[6], packet[7]]) {
        ARP_REQUEST if ours => Some(Inbound::WhoHas(target)),
        ARP_REPLY if ours => Some(Inbound::IsAt),
        _ => {
            dropped.not_for_us += 1;
            None
        }
    }
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

/// Writes the length and the Ethernet header of a frame for the guest at `to` into `head`.
pub(super) fn write_header(head: &mut [u8], to: [u8; 6], ethertype: u16, payload_bytes: usize) {
    let length = u32::try_from(HEADER_BYTES + payload_bytes).unwrap_or(u32::MAX);
    head[..4].copy_from_slice(&length.to_be_bytes());
    head[4..10].copy_from_slice(&to);
    head[10..16].copy_from_slice(&HERE_MAC);
    head[16..18].copy_from_slice(&ethertype.to_be_bytes());
}

/// Tells the guest at `guest_mac` that `ours` is at our MAC.
pub(super) fn write_is_at(packet: &mut [u8], ours: Ipv4Addr, guest_mac: [u8; 6]) {
    write_arp(packet, ARP_REPLY, ours, guest_mac);
}

/// Asks the guest for its MAC. That is mostly known; the answer tells that the guest's network is up.
pub(super) fn write_who_has(packet: &mut [u8]) {
    write_arp(packet, ARP_REQUEST, HERE_IP, [0; 6]);
}

fn write_arp(packet: &mut [u8], operation: u16, ours: Ipv4Addr, target_mac: [u8; 6]) {
    packet[..6].copy_from_slice(&ARP_HEAD);
    packet[6..8].copy_from_slice(&operation.to_be_bytes());
    packet[8..14].copy_from_slice(&HERE_MAC);
    packet[14..18].copy_from_slice(&ours.octets());
    packet[18..24].copy_from_slice(&target_mac);
    packet[24..28].copy_from_slice(&GUEST_IP.octets());
}
