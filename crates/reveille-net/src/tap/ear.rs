//! What of a guest's traffic is heard: its connections' first and last segments, and now and then a packet.
//!
//! Two packet sockets hang on the guest's device, beside the data path. One is given every TCP segment with SYN, FIN or
//! RST. The other is given any packet, until it was given one; then it is deaf for [`DEAF_MS`], and what passes
//! meanwhile costs the kernel one instruction. For that time the service counts as used, so the time of the last packet
//! is never told too early, and at most [`DEAF_MS`] too late.

use std::io::{self, Read};
use std::net::Ipv4Addr;

use socket2::{SockFilter, Socket};
use tokio::io::unix::AsyncFd;

use super::filter;
use super::sys::{listening_socket, readable, sending_socket};

/// How long nothing is listened to after a packet, in milliseconds.
pub(super) const DEAF_MS: u64 = 250;
/// What may wait of connections' ends: some hundred; a kernel counts a few hundred bytes each.
const ENDS_BUFFER_BYTES: usize = 512 << 10;
/// What may wait of packets, of which one would be enough.
const PACKETS_BUFFER_BYTES: usize = 32 << 10;
/// Longest part of a frame that a filter lets through.
const HEARD_BYTES_MAX: usize = 256;

/// What the second socket listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listening {
    /// Nothing.
    Deaf,
    /// Any packet.
    All,
    /// Packets to this address.
    To(Ipv4Addr),
}

impl Listening {
    fn program(self) -> Vec<SockFilter> {
        match self {
            Self::Deaf => filter::nothing(),
            Self::All => filter::packets(None),
            Self::To(address) => filter::packets(Some(address)),
        }
    }
}

/// The sockets at one guest's device, and one to send through it.
#[derive(Debug)]
pub(super) struct Ear {
    pub(super) index: u32,
    ends: AsyncFd<Socket>,
    packets: AsyncFd<Socket>,
    mouth: Socket,
}

impl Ear {
    pub(super) fn at(index: u32) -> io::Result<Self> {
        let socket = |program: &[SockFilter], buffer| {
            let socket = listening_socket(index, program)?;
            socket.set_recv_buffer_size(buffer)?;
            readable(socket)
        };
        let ends = socket(&filter::ends(), ENDS_BUFFER_BYTES)?;
        let packets = socket(&filter::nothing(), PACKETS_BUFFER_BYTES)?;
        Ok(Self { index, ends, packets, mouth: sending_socket(index)? })
    }

    pub(super) fn listen(&self, to: Listening) -> io::Result<()> {
        self.packets.get_ref().attach_filter(&to.program())
    }

    /// Gives each frame that waits to `hear`: connections' ends.
    pub(super) fn take_ends(&self, hear: impl FnMut(&[u8])) {
        take(self.ends.get_ref(), hear);
    }

    /// The same of packets.
    pub(super) fn take_packets(&self, hear: impl FnMut(&[u8])) {
        take(self.packets.get_ref(), hear);
    }

    /// Returns when something may wait at either socket. Cancel-safe.
    pub(super) async fn heard(&self) -> io::Result<()> {
        tokio::select! {
            ready = self.ends.readable() => ready?.clear_ready(),
            ready = self.packets.readable() => ready?.clear_ready(),
        }
        Ok(())
    }

    /// Sends a frame to the guest.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.mouth.send(frame).map(drop)
    }
}

fn take(mut socket: &Socket, mut hear: impl FnMut(&[u8])) {
    let mut buffer = [0; HEARD_BYTES_MAX];
    // An error is the interface's end; the socket's owner learns of it elsewhere.
    while let Ok(length) = socket.read(&mut buffer) {
        hear(buffer.get(..length).unwrap_or_default());
    }
}
