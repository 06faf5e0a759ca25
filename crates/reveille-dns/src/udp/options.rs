//! Options of UDP sockets that neither std nor socket2 knows.
#![expect(unsafe_code, reason = "neither std nor socket2 sets these")]

use std::io;
use std::os::fd::AsRawFd;

use socket2::Socket;

/// Lets the kernel tell the address of this host that each datagram came to.
///
/// # Errors
/// As of setsockopt(2).
pub(crate) fn tell_addresses(socket: &Socket, is_ipv6: bool) -> io::Result<()> {
    match is_ipv6 {
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1),
        false => set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1),
    }
}

/// Answers are never cut into fragments for what an ICMP message said of the path, which anybody can forge: resolvers
/// may be made to take a forged second fragment (RFC 9715 §1, §3). They fit every path without
/// ([`UDP_PAYLOAD_MAX`](crate::wire::UDP_PAYLOAD_MAX)), and what the kernel is told of smaller ones is not believed.
///
/// # Errors
/// As of setsockopt(2); kernels before 3.15 (IPv6: 3.16) do not know it.
pub(crate) fn ignore_path_mtu(socket: &Socket, is_ipv6: bool) -> io::Result<()> {
    match is_ipv6 {
        true => set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_OMIT),
        false => set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT),
    }
}

fn set(socket: &Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "four bytes")]
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is one number of that length, which the call only reads.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::open;

    #[test]
    fn every_socket_ignores_what_is_said_of_the_path() {
        for (address, level, name, omit) in [
            ("127.0.0.1:0", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT),
            ("0.0.0.0:0", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT),
            ("[::1]:0", libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_OMIT),
        ] {
            let Ok(sockets) = open(address.parse().unwrap(), 2) else {
                assert!(address.contains("::"), "{address}");
                continue;
            };
            for socket in &sockets.udp {
                let (mut value, mut length): (libc::c_int, libc::socklen_t) = (-1, 4);
                // SAFETY: room for one number of four bytes.
                let got = unsafe {
                    let (fd, value) = (socket.as_raw_fd(), (&raw mut value).cast());
                    libc::getsockopt(fd, level, name, value, &raw mut length)
                };
                assert_eq!((got, value), (0, omit), "{address}");
            }
        }
    }
}
