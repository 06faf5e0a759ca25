//! The way into a guest: a TCP/IP stack of our own at the other end of the guest's network cable.
//!
//! QEMU's `-netdev stream` passes the guest's Ethernet frames through a unix socket. A [`Link`] is attached to that
//! socket and speaks TCP and UDP with the guest's ports. So the guest's own handshake is what a connection proves
//! (W3), refusals and resets arrive as what they are, the guest's listen queue is the only one, and a guest can
//! reach nothing of the host: frames lead to this module and no further.
//!
//! ```text
//! Link::connect ──► GuestStream ─┐                        ┌─ outbox ──► unix socket ──► QEMU ──► guest
//! Link::datagrams ► GuestDatagrams ─► Stack (one mutex) ──┤                 ▲
//!                                │    interface, sockets  └─ driver task ◄──┘ frames, timers
//!                                └─ each call writes its own frames at once; the driver only finishes
//! ```
//!
//! - **Addresses are constants** ([`GUEST_IP`], [`HERE_IP`], their MACs): a guest that was restored from a snapshot
//!   still has them in its neighbour table, so that its first answer needs no ARP. Only a clone has a MAC of its own; it
//!   is learned from its ARP, with which a restored guest announces itself, and SYNs to the other one are sent again.
//! - **Nothing is lost on the way.** QEMU keeps frames in order while the vCPUs do not run, and stops reading when its
//!   queue is full; the unix socket and then the [outbox](outbox) fill, and TCP waits. A SYN sent before the guest
//!   runs is answered as soon as it does.
//! - **A guest that still boots** drops what comes before its address is configured. While a connection is being
//!   opened and the guest has never been heard, it is asked by ARP every [`PROBE_EVERY`]; when it answers, the SYNs
//!   that came too early are sent again at once.
//! - **The guest is not trusted.** Frames from other addresses than its own are dropped, every queue is bounded, and
//!   a panic inside the TCP state machine ends only the connection that it was about.
//! - **Work follows traffic.** Every connection is a socket set of its own, found by its port, so that a thousand
//!   quiet connections cost nothing when one of them speaks.

mod connection;
mod counters;
mod datagrams;
mod driver;
mod flow;
mod frame;
mod link;
mod outbox;
mod ports;
mod reassembly;
mod stack;
mod stream;

use std::net::Ipv4Addr;
use std::time::Duration;

pub use counters::{Dropped, LinkCounters};
pub use datagrams::GuestDatagrams;
pub use link::{ConnectError, DatagramsError, Link};
pub use stream::GuestStream;

/// The guest's address; its interface is configured with [`PREFIX_LEN`].
pub const GUEST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The MAC of the guest's network device, as given to QEMU.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
/// Our address: the one from which the guest sees all clients come.
pub const HERE_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// Our MAC: locally administered, the same for every link.
pub const HERE_MAC: [u8; 6] = [0x52, 0x65, 0x76, 0x65, 0x69, 0x01];
/// The address that guests have as their default gateway.
pub const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Length of the network's prefix.
pub const PREFIX_LEN: u8 = 24;
/// Largest IP packet in either direction.
pub const MTU: usize = 1500;

/// Most connections of one link, those that still end included: the relay's clients
/// ([`RelayLimits::service_connections_max`](crate::RelayLimits)) and some for checks of readiness.
pub const CONNECTIONS_MAX: usize = 1024 + 64;
/// Most UDP flows of one link.
pub const FLOWS_MAX: usize = 4096;
/// Bytes that are kept per connection until the reader takes them; the window that the guest sees.
pub const RECEIVE_BUFFER_BYTES: usize = 64 << 10;
/// Bytes that are kept per connection until the guest has acknowledged them.
pub const SEND_BUFFER_BYTES: usize = 64 << 10;
/// Largest payload of one UDP datagram over IPv4.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;
/// Bytes of datagrams that are kept per flow until they are received; those that come after are dropped.
pub const FLOW_QUEUE_BYTES_MAX: usize = 256 << 10;

/// How long a connection that both sides have closed may take to bring its last bytes to the guest.
pub const LINGER_MAX: Duration = Duration::from_secs(60);
/// Pause before the first look whether a silent guest is there at all, and before a SYN is thought too early.
pub const PROBE_AFTER: Duration = Duration::from_millis(100);
/// Pause between further ones.
pub const PROBE_EVERY: Duration = Duration::from_millis(50);
/// How long a port rests before it is used again: a Linux guest keeps TIME-WAIT for 60 s.
pub const PORT_REST: Duration = Duration::from_secs(61);

/// Which addresses a link answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkAddresses {
    /// Answer ARP for [`GATEWAY_IP`] as well. What the guest sends through it is dropped.
    pub gateway: bool,
}
