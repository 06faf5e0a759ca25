//! UDP: flows between one port of ours and one of the guest's, and datagrams in and out of frames.

use std::collections::VecDeque;
use std::io;
use std::task::Waker;

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, UDP_HEADER_LEN, UdpPacket};

use super::frame::{ETHERTYPE_IPV4, HEADER_BYTES, LENGTH_BYTES};
use super::outbox::{Outbox, UDP_BYTES_MAX};
use super::{Dropped, FLOW_QUEUE_BYTES_MAX, GUEST_IP, HERE_IP, LinkCounters, MTU};

const IP_HEADER_BYTES: usize = 20;
const HOP_LIMIT: u8 = 64;
/// Bytes of datagram per fragment; the offset is counted in units of 8.
const FRAGMENT_BYTES: usize = (MTU - IP_HEADER_BYTES) & !7;
/// What a queued datagram costs beside its bytes, so that empty ones are bounded as well.
const QUEUED_COST_BYTES: usize = 64;

/// One flow as the stack sees it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) guest_port: u16,
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    /// The guest said that nobody listens.
    refused: bool,
    waker: Option<Waker>,
}

impl Flow {
    pub(super) fn new(guest_port: u16) -> Self {
        Self { guest_port, queue: VecDeque::new(), queued_bytes: 0, refused: false, waker: None }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.refused || !self.queue.is_empty()
    }

    pub(super) fn register(&mut self, waker: &Waker) {
        self.waker = Some(waker.clone());
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn receive(&mut self) -> io::Result<Vec<u8>> {
        if let Some(datagram) = self.queue.pop_front() {
            self.queued_bytes -= datagram.len() + QUEUED_COST_BYTES;
            return Ok(datagram);
        }
        if std::mem::take(&mut self.refused) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    pub(super) fn deliver(&mut self, payload: &[u8], dropped: &mut Dropped) {
        let cost = payload.len() + QUEUED_COST_BYTES;
        if self.queued_bytes + cost > FLOW_QUEUE_BYTES_MAX {
            dropped.flow_full += 1;
            return;
        }
        self.queued_bytes += cost;
        self.queue.push_back(payload.to_vec());
        self.wake();
    }

    pub(super) fn refuse(&mut self) {
        self.refused = true;
        self.wake();
    }
}

/// Reads a UDP datagram of the guest: its source and destination ports and payload.
pub(super) fn parse<'a>(datagram: &'a [u8], dropped: &mut Dropped) -> Option<(u16, u16, &'a [u8])> {
    let packet = UdpPacket::new_checked(datagram).ok();
    let sound = |packet: &UdpPacket<&[u8]>| {
        packet.verify_checksum(&IpAddress::Ipv4(GUEST_IP), &IpAddress::Ipv4(HERE_IP))
    };
    let Some(packet) = packet.filter(sound) else {
        dropped.malformed += 1;
        return None;
    };
    Some((packet.src_port(), packet.dst_port(), packet.payload()))
}

/// Reads an ICMP message of the guest; `Some` is a port of ours whose datagram found no listener, and the guest's.
pub(super) fn parse_port_unreachable(message: &[u8]) -> Option<(u16, u16)> {
    // Type 3, code 3, checksum, four unused bytes; then the head of the datagram that found nobody (RFC 792).
    let quoted = message.strip_prefix(&[3, 3])?.get(6..)?;
    let header_bytes = usize::from(quoted.first()? & 0x0f) * 4;
    let is_udp = *quoted.get(9)? == u8::from(IpProtocol::Udp);
    let ports = quoted.get(header_bytes.max(IP_HEADER_BYTES)..)?.get(..4)?;
    let ours = quoted.get(12..16)? == HERE_IP.octets() && quoted.get(16..20)? == GUEST_IP.octets();
    let (source, destination) =
        (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]));
    (is_udp && ours).then_some((source, destination))
}

/// Queues a datagram for the guest, in fragments if need be. Returns false if there was no room for it.
pub(super) fn send(
    outbox: &mut Outbox,
    counters: &mut LinkCounters,
    ident: u16,
    ports: (u16, u16),
    payload: &[u8],
) -> bool {
    let length = UDP_HEADER_LEN + payload.len();
    let frames = length.div_ceil(FRAGMENT_BYTES);
    let bytes = length + frames * (LENGTH_BYTES + HEADER_BYTES + IP_HEADER_BYTES);
    if outbox.len() + bytes > UDP_BYTES_MAX {
        counters.dropped.outbox_full += 1;
        return false;
    }
    if length <= FRAGMENT_BYTES {
        outbox.push(counters, ETHERTYPE_IPV4, IP_HEADER_BYTES + length, |packet| {
            let (header, datagram) = packet.split_at_mut(IP_HEADER_BYTES);
            write_ip(header, length, ident, 0, false);
            write_udp(datagram, ports, payload);
        });
        return true;
    }
    let mut datagram = vec![0; length];
    write_udp(&mut datagram, ports, payload);
    for (at, piece) in datagram.chunks(FRAGMENT_BYTES).enumerate() {
        outbox.push(counters, ETHERTYPE_IPV4, IP_HEADER_BYTES + piece.len(), |packet| {
            let (header, rest) = packet.split_at_mut(IP_HEADER_BYTES);
            write_ip(header, piece.len(), ident, at * FRAGMENT_BYTES, at + 1 < frames);
            rest.copy_from_slice(piece);
        });
    }
    true
}

fn write_udp(datagram: &mut [u8], (source, destination): (u16, u16), payload: &[u8]) {
    let length = u16_of(datagram.len());
    let mut packet = UdpPacket::new_unchecked(datagram);
    packet.set_src_port(source);
    packet.set_dst_port(destination);
    packet.set_len(length);
    packet.payload_mut().copy_from_slice(payload);
    packet.fill_checksum(&IpAddress::Ipv4(HERE_IP), &IpAddress::Ipv4(GUEST_IP));
}

fn write_ip(header: &mut [u8], payload_bytes: usize, ident: u16, offset: usize, more: bool) {
    let mut packet = Ipv4Packet::new_unchecked(header);
    packet.set_version(4);
    packet.set_header_len(20);
    packet.set_total_len(u16_of(IP_HEADER_BYTES + payload_bytes));
    packet.set_ident(ident);
    packet.set_more_frags(more);
    packet.set_frag_offset(u16_of(offset));
    packet.set_hop_limit(HOP_LIMIT);
    packet.set_next_header(IpProtocol::Udp);
    packet.set_src_addr(HERE_IP);
    packet.set_dst_addr(GUEST_IP);
    packet.fill_checksum();
}

/// Lengths of datagrams are below 64 KiB, see [`super::DATAGRAM_BYTES_MAX`].
fn u16_of(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}
