//! Ports for servers that have to be told where to listen.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// Below those that the kernel gives away by itself, so that no client has one of them by chance.
const PORTS: std::ops::Range<u16> = 20_000..32_768;
/// Where a port is marked as given away. Nobody asks and nobody listens at this address.
const MARKS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 99);

/// A port that is free for UDP and TCP, and that no other test is given as long as this process runs. On 127.0.0.1, as
/// BIND listens on addresses that an interface has.
pub fn free_address() -> SocketAddr {
    // Processes that begin at the same time try different ones first.
    let skipped = usize::try_from(std::process::id()).unwrap() * 61 % PORTS.len();
    for port in PORTS.cycle().skip(skipped).take(PORTS.len()) {
        let Ok(mark) = TcpListener::bind((MARKS, port)) else { continue };
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            // Whoever has the port may end and begin again.
            std::mem::forget(mark);
            return address;
        }
    }
    panic!("no free port");
}
