//! What a frame that came to the holder says, and the answers that are given in a sleeping guest's place. Pure.
//!
//! Frames are those of the host's own kernel, routed to the holder: Ethernet, whole checksums, no segmentation left to
//! do. IPv6 extension headers other than a fragment's are not looked behind: what carries them does not wake.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reveille_core::model::{PortSpec, Protocol};

/// Longest frame: Ethernet's head, the largest IP packet, and the header of a tap device with offloads.
pub(super) const FRAME_BYTES_MAX: usize = 14 + 65_535 + 12;

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV6_FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const TTL: u8 = 64;
/// Most of a packet that an ICMP error repeats: so that the error fits IPv6's least MTU (RFC 4443 §2.4).
const QUOTED_BYTES_MAX: usize = 1_280 - IPV6_BYTES - 8;
/// The same of IPv4: so that the error fits what every host takes (RFC 1812 §4.3.2.3).
const QUOTED_BYTES_MAX_V4: usize = 576 - IPV4_BYTES - 8;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// An IP packet in its frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    frame: &'a [u8],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) content: Content<'a>,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Tcp(Segment),
    Udp {
        from: u16,
        to: u16,
    },
    /// An echo request, with the ICMP message.
    Echo(&'a [u8]),
    /// A fragment that is not the first one.
    Fragment,
    Other,
}

/// A TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: u16,
    pub(super) to: u16,
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) payload_bytes: usize,
}

impl Segment {
    /// It opens a connection.
    pub(super) fn opens(&self) -> bool {
        self.flags & (SYN | ACK | RST | FIN) == SYN
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

impl<'a> Packet<'a> {
    /// The IP packet of a frame; `None` if it is none, is cut off, or is for many.
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let (head, packet) = frame.split_at_checked(ETHERNET_BYTES)?;
        if head.first()? & 1 != 0 {
            return None;
        }
        match <[u8; 2]>::try_from(head.get(12..14)?).ok()? {
            ETHERTYPE_IPV4 => Self::parse_v4(frame, packet),
            ETHERTYPE_IPV6 => Self::parse_v6(frame, packet),
            _ => None,
        }
    }

    fn parse_v4(frame: &'a [u8], packet: &'a [u8]) -> Option<Self> {
        let head_bytes = usize::from(packet.first()? & 0x0f) * 4;
        if packet.first()? >> 4 != 4 || head_bytes < IPV4_BYTES {
            return None;
        }
        let total = usize::from(word(packet, 2)?);
        // A captured frame may be cut off, its lengths are what they were.
        let body = packet.get(head_bytes..total.min(packet.len()))?;
        let address =
            |at: usize| packet.get(at..at + 4)?.try_into().ok().map(<Ipv4Addr as From<[u8; 4]>>::from);
        let fragment_offset = word(packet, 6)? & 0x1fff;
        let content = if fragment_offset == 0 {
            content(*packet.get(9)?, body, total.checked_sub(head_bytes)?)
        } else {
            Content::Fragment
        };
        Some(Self { frame, source: address(12)?.into(), destination: address(16)?.into(), content })
    }

    fn parse_v6(frame: &'a [u8], packet: &'a [u8]) -> Option<Self> {
        if packet.first()? >> 4 != 6 {
            return None;
        }
        let total = usize::from(word(packet, 4)?);
        let end = IPV6_BYTES.checked_add(total)?.min(packet.len());
        let body = packet.get(IPV6_BYTES..end)?;
        let address =
            |at: usize| packet.get(at..at + 16)?.try_into().ok().map(<Ipv6Addr as From<[u8; 16]>>::from);
        let content = match *packet.get(6)? {
            IPV6_FRAGMENT if word(body, 2)? & 0xfff8 != 0 => Content::Fragment,
            IPV6_FRAGMENT => content(*body.first()?, body.get(8..)?, total.checked_sub(8)?),
            next => content(next, body, total),
        };
        Some(Self { frame, source: address(8)?.into(), destination: address(24)?.into(), content })
    }

    /// The declared port that it is for.
    pub(super) fn port(&self) -> Option<PortSpec> {
        match self.content {
            Content::Tcp(segment) => Some(PortSpec { protocol: Protocol::Tcp, number: segment.to }),
            Content::Udp { to, .. } => Some(PortSpec { protocol: Protocol::Udp, number: to }),
            Content::Echo(_) | Content::Fragment | Content::Other => None,
        }
    }

    /// Whom it is from.
    pub(super) fn client(&self) -> SocketAddr {
        let port = match self.content {
            Content::Tcp(segment) => segment.from,
            Content::Udp { from, .. } => from,
            Content::Echo(_) | Content::Fragment | Content::Other => 0,
        };
        SocketAddr::new(self.source, port)
    }

    /// A reset, as a guest gives it that knows nothing of the connection (RFC 9293 §3.10.7.1).
    pub(super) fn reset(&self) -> Option<Vec<u8>> {
        let Content::Tcp(segment) = self.content else { return None };
        if segment.has(RST) {
            return None;
        }
        let (sequence, acknowledged, flags) = if segment.has(ACK) {
            (segment.acknowledged, 0, RST)
        } else {
            let taken = u32::try_from(segment.payload_bytes).unwrap_or_default();
            let taken =
                taken.wrapping_add(u32::from(segment.has(SYN))).wrapping_add(u32::from(segment.has(FIN)));
            (0, segment.sequence.wrapping_add(taken), RST | ACK)
        };
        let mut body = Vec::with_capacity(TCP_BYTES);
        body.extend(segment.to.to_be_bytes());
        body.extend(segment.from.to_be_bytes());
        body.extend(sequence.to_be_bytes());
        body.extend(acknowledged.to_be_bytes());
        body.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        Some(self.answer(TCP, body, 16))
    }

    /// "Destination unreachable": the port, or by administration (RFC 792, RFC 1812 §5.2.7.1, RFC 4443 §3.1).
    pub(super) fn unreachable(&self, why: Unreachable) -> Vec<u8> {
        let packet = self.frame.get(ETHERNET_BYTES..).unwrap_or_default();
        let (kind, code, protocol, quoted) = match (self.source, why) {
            (IpAddr::V4(_), Unreachable::Port) => (3, 3, ICMP, QUOTED_BYTES_MAX_V4),
            (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13, ICMP, QUOTED_BYTES_MAX_V4),
            (IpAddr::V6(_), Unreachable::Port) => (1, 4, ICMPV6, QUOTED_BYTES_MAX),
            (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1, ICMPV6, QUOTED_BYTES_MAX),
        };
        let mut body = vec![kind, code, 0, 0, 0, 0, 0, 0];
        body.extend(packet.iter().take(quoted));
        self.answer(protocol, body, 2)
    }

    /// The reply to an echo request.
    pub(super) fn echo_reply(&self) -> Option<Vec<u8>> {
        let Content::Echo(message) = self.content else { return None };
        let (kind, protocol) = if self.source.is_ipv4() { (0, ICMP) } else { (129, ICMPV6) };
        let mut body = message.to_vec();
        body.splice(..4, [kind, 0, 0, 0]);
        Some(self.answer(protocol, body, 2))
    }

    /// A frame back to the sender, with its checksum at byte `checksum_at` of `body`.
    fn answer(&self, protocol: u8, mut body: Vec<u8>, checksum_at: usize) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let mut pseudo = Sum::default();
        if protocol != ICMP {
            pseudo.address(self.source);
            pseudo.address(self.destination);
            pseudo.add(&[0, protocol]);
            pseudo.add(&length.to_be_bytes());
        }
        pseudo.add(&body);
        if let Some(place) = body.get_mut(checksum_at..checksum_at + 2) {
            place.copy_from_slice(&pseudo.finish());
        }
        let mut frame = Vec::with_capacity(ETHERNET_BYTES + IPV6_BYTES + body.len());
        frame.extend(self.frame.iter().skip(6).take(6));
        frame.extend(self.frame.iter().take(6));
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(ETHERTYPE_IPV4);
                let total = length.saturating_add(20).to_be_bytes();
                let mut head = vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, TTL, protocol, 0, 0];
                head.extend(destination.octets());
                head.extend(source.octets());
                let mut sum = Sum::default();
                sum.add(&head);
                head.splice(10..12, sum.finish());
                frame.extend(head);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend(ETHERTYPE_IPV6);
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([protocol, TTL]);
                frame.extend(destination.octets());
                frame.extend(source.octets());
            }
            // A packet has one family.
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {}
        }
        frame.extend(body);
        frame
    }
}

/// An unsolicited neighbour advertisement to all neighbours (RFC 4861 §7.2.6): `address` is at `mac`. From the address
/// itself, with the flag that what is remembered is wrong.
pub(super) fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let everybody = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type, code, checksum, the flag "override"; target; the option with its link-layer address.
    let mut body = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    body.extend(address.octets());
    body.extend([2, 1]);
    body.extend(mac);
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut sum = Sum::default();
    sum.add(&address.octets());
    sum.add(&everybody.octets());
    sum.add(&length);
    sum.add(&[0, ICMPV6]);
    sum.add(&body);
    body.splice(2..4, sum.finish());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend(ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length);
    // A hop limit of 255 says that no router has passed it on.
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(everybody.octets());
    frame.extend(body);
    frame
}

/// Why a datagram is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// Nobody is there who could be woken by it.
    Port,
    /// The service cannot be woken, or too many wait.
    Prohibited,
}

fn content(protocol: u8, body: &[u8], bytes: usize) -> Content<'_> {
    parse_content(protocol, body, bytes).unwrap_or(Content::Other)
}

/// `bytes` is the body's length on the wire.
fn parse_content(protocol: u8, body: &[u8], bytes: usize) -> Option<Content<'_>> {
    Some(match protocol {
        TCP => {
            let head_bytes = usize::from(body.get(12)? >> 4) * 4;
            Content::Tcp(Segment {
                from: word(body, 0)?,
                to: word(body, 2)?,
                flags: *body.get(13)?,
                sequence: double(body, 4)?,
                acknowledged: double(body, 8)?,
                payload_bytes: bytes.checked_sub(head_bytes.max(TCP_BYTES))?,
            })
        }
        UDP => Content::Udp { from: word(body, 0)?, to: word(body, 2)? },
        ICMP if body.first() == Some(&8) && body.len() >= 8 => Content::Echo(body),
        ICMPV6 if body.first() == Some(&128) && body.len() >= 8 => Content::Echo(body),
        _ => Content::Other,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn double(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

/// The Internet checksum (RFC 1071). All but the last part that is added have an even length.
#[derive(Debug, Default)]
struct Sum(u32);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let (pairs, rest) = bytes.as_chunks::<2>();
        for pair in pairs {
            self.one(u16::from_be_bytes(*pair));
        }
        if let [last] = rest {
            self.one(u16::from_be_bytes([*last, 0]));
        }
    }

    fn one(&mut self, word: u16) {
        self.0 += u32::from(word);
        self.0 = (self.0 & 0xffff) + (self.0 >> 16);
    }

    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.add(&address.octets()),
            IpAddr::V6(address) => self.add(&address.octets()),
        }
    }

    fn finish(self) -> [u8; 2] {
        u16::try_from(self.0).map_or([0, 0], |sum| (!sum).to_be_bytes())
    }
}
