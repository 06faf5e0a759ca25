//! Frames from the guest, led to the connection or flow that they are for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket};

use super::super::flow;
use super::super::frame::{self, ARP_BYTES, ETHERTYPE_ARP, Inbound};
use super::super::outbox::{REPLY_BYTES_MAX, Wire};
use super::super::reassembly::Fragment;
use super::Stack;

impl Stack {
    /// Takes a frame from the guest.
    pub(in crate::guest) fn input(&mut self, frame: &[u8], now: Instant) {
        self.counters.frames_in += 1;
        self.counters.bytes_in += frame.len() as u64;
        let mac = self.outbox.guest_mac;
        let dropped = &mut self.counters.dropped;
        let inbound = frame::classify(frame, self.addresses, &mut self.outbox.guest_mac, dropped);
        let moved = self.outbox.guest_mac != mac;
        if moved || (!self.heard && inbound.is_some()) {
            self.guest_is_up(moved, now);
        }
        let Some(inbound) = inbound else { return };
        match inbound {
            Inbound::IsAt => {}
            Inbound::WhoHas(ours) => {
                if self.outbox.len() < REPLY_BYTES_MAX {
                    let mac = self.outbox.guest_mac;
                    let fill = |packet: &mut [u8]| frame::write_is_at(packet, ours, mac);
                    self.outbox.push(&mut self.counters, ETHERTYPE_ARP, ARP_BYTES, fill);
                } else {
                    self.counters.dropped.outbox_full += 1;
                }
            }
            Inbound::Ipv4(packet) => self.input_ipv4(packet, now),
        }
    }

    fn input_ipv4(&mut self, bytes: &[u8], now: Instant) {
        let dropped = &mut self.counters.dropped;
        let Some(packet) = Ipv4Packet::new_checked(bytes).ok().filter(|packet| packet.version() == 4) else {
            dropped.malformed += 1;
            return;
        };
        let fragment = packet.more_frags() || packet.frag_offset() != 0;
        match packet.next_header() {
            IpProtocol::Tcp if !fragment => self.input_tcp(bytes, packet.payload(), now),
            IpProtocol::Udp if !fragment => self.input_udp(packet.payload()),
            IpProtocol::Udp => {
                let fragment = Fragment {
                    ident: packet.ident(),
                    protocol: packet.next_header().into(),
                    offset: packet.frag_offset().into(),
                    more: packet.more_frags(),
                    payload: packet.payload(),
                };
                if let Some(datagram) = self.reassembly.add(fragment, now, dropped) {
                    self.input_udp(&datagram);
                }
            }
            IpProtocol::Icmp if !fragment => {
                if let Some((port, guest_port)) = flow::parse_port_unreachable(packet.payload())
                    && let Some(flow) = self.flows.get_mut(&port).filter(|flow| flow.guest_port == guest_port)
                {
                    flow.refuse();
                } else {
                    dropped.not_for_us += 1;
                }
            }
            IpProtocol::Tcp | IpProtocol::Icmp => dropped.fragments += 1,
            IpProtocol::HopByHop
            | IpProtocol::Igmp
            | IpProtocol::Ipv6Route
            | IpProtocol::Ipv6Frag
            | IpProtocol::IpSecEsp
            | IpProtocol::IpSecAh
            | IpProtocol::Icmpv6
            | IpProtocol::Ipv6NoNxt
            | IpProtocol::Ipv6Opts
            | IpProtocol::Unknown(_) => dropped.not_for_us += 1,
        }
    }

    fn input_udp(&mut self, datagram: &[u8]) {
        let dropped = &mut self.counters.dropped;
        let Some((guest_port, port, payload)) = flow::parse(datagram, dropped) else { return };
        match self.flows.get_mut(&port).filter(|flow| flow.guest_port == guest_port) {
            Some(flow) => flow.deliver(payload, dropped),
            None => dropped.unknown_flow += 1,
        }
    }

    fn input_tcp(&mut self, packet: &[u8], segment: &[u8], now: Instant) {
        let Ok(segment) = TcpPacket::new_checked(segment) else {
            self.counters.dropped.malformed += 1;
            return;
        };
        let id = self.by_port.get(&segment.dst_port()).copied();
        let (sockets, before) = match id.and_then(|id| self.connections.get_mut(&id)) {
            Some(connection) => {
                let before = connection.state();
                (&mut connection.sockets, Some(before))
            }
            None => (&mut self.nobody, None),
        };
        let mut wire = Wire { packet: Some(packet), outbox: &mut self.outbox, counters: &mut self.counters };
        let interface = &mut self.interface;
        let polled =
            catch_unwind(AssertUnwindSafe(|| interface.poll_ingress_single(now, &mut wire, sockets)));
        let (Some(id), Some(before)) = (id, before) else { return };
        if polled.is_err() {
            self.fault(id);
            return;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.observe(before, segment.rst());
        let known_otherwise = before == State::SynSent && segment.ack() && !segment.syn() && !segment.rst();
        if known_otherwise && connection.opening.is_some() {
            self.reopen(id, now);
        } else {
            self.queue(id);
        }
    }
}
