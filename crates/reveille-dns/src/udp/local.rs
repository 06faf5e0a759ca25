//! The address of this host that a datagram came to, and that its answer must leave from.
//!
//! A socket that is bound to one address answers from there by itself. One that is bound to all of them (0.0.0.0,
//! ::) would leave the choice to the routing table, and an asker drops what comes from another address than it asked
//! (RFC 5452 §9.1). There the kernel tells the address beside each datagram and is told it beside each answer:
//! IP_PKTINFO (ip(7)) and IPV6_PKTINFO (RFC 3542 §6).

use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Length of `in_pktinfo`: number of the interface, address of this host, address in the packet.
const INFO4_BYTES: usize = size_of::<libc::in_pktinfo>();
/// Length of `in6_pktinfo`: address in the packet, number of the interface.
const INFO6_BYTES: usize = size_of::<libc::in6_pktinfo>();

/// From where the answer to a datagram leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaveFrom {
    /// The one address that the socket is bound to.
    Bound,
    /// This one.
    Address(IpAddr),
    /// None: the datagram went to many hosts (multicast, broadcast), and no sender takes an answer from one of them
    /// for the answer to that.
    Nowhere,
}

/// A control message as the kernel has it: `struct cmsghdr`, and behind it one of both kinds of information.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Control {
    length: usize,
    level: libc::c_int,
    kind: libc::c_int,
    info: [u8; INFO6_BYTES.next_multiple_of(size_of::<usize>())],
}

const INFO_AT: usize = offset_of!(Control, info);
const _: () = assert!(INFO_AT == size_of::<libc::cmsghdr>());

impl Control {
    /// The message that lets an answer leave from `address`, whichever interface leads to the asker.
    pub fn leaving_from(address: IpAddr) -> Self {
        let (level, kind, info_bytes) = match address {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO, INFO4_BYTES),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, INFO6_BYTES),
        };
        let mut control = Self { length: INFO_AT + info_bytes, level, kind, ..Self::default() };
        match address {
            IpAddr::V4(address) => control.info[4..8].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => control.info[..16].copy_from_slice(&address.octets()),
        }
        control
    }

    /// How long it is.
    pub fn length(&self) -> usize {
        self.length
    }

    /// From where a datagram that came with this message is answered.
    pub fn leave_from(&self) -> LeaveFrom {
        let info = &self.info;
        let address: IpAddr = match (self.level, self.kind) {
            // Of a broadcast, the kernel says beside its address from where it would answer that.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if info[4..8] == info[8..12] => {
                Ipv4Addr::new(info[4], info[5], info[6], info[7]).into()
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let (octets, _) = info.split_first_chunk().unwrap_or((&[0; 16], &[]));
                Ipv6Addr::from(*octets).into()
            }
            _ => return LeaveFrom::Nowhere,
        };
        let is_of_one_host = !address.is_multicast() && !address.is_unspecified();
        if is_of_one_host { LeaveFrom::Address(address) } else { LeaveFrom::Nowhere }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_to_many_hosts_is_answered_from_nowhere() {
        let received = |text: &str, in_packet: [u8; 4]| {
            let mut control = Control::leaving_from(text.parse().unwrap());
            if control.level == libc::IPPROTO_IP {
                control.info[8..12].copy_from_slice(&in_packet);
            }
            control.leave_from()
        };
        let own = |text: &str| LeaveFrom::Address(text.parse().unwrap());
        assert_eq!(received("192.0.2.1", [192, 0, 2, 1]), own("192.0.2.1"));
        assert_eq!(received("192.0.2.1", [192, 0, 2, 255]), LeaveFrom::Nowhere);
        assert_eq!(received("224.0.0.251", [224, 0, 0, 251]), LeaveFrom::Nowhere);
        assert_eq!(received("2001:db8::1", [0; 4]), own("2001:db8::1"));
        assert_eq!(received("ff02::1", [0; 4]), LeaveFrom::Nowhere);
        assert_eq!(Control::default().leave_from(), LeaveFrom::Nowhere);
    }
}
