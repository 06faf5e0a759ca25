//! The frames that wait for a guest, in the order of their arrival and within limits. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::frame::{Content, Packet};

/// How much may wait for one service.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldLimits {
    /// Frames of all clients: fewer than fit into a tap device's queue (1,000), so that they can be handed over at
    /// once.
    pub(super) frames: usize,
    /// Their bytes.
    pub(super) bytes: usize,
    /// Frames from one address.
    pub(super) client_frames: u32,
    /// Clients that wait for a connection.
    pub(super) opening: usize,
}

/// A frame that waits.
#[derive(Debug)]
pub(super) struct HeldFrame {
    pub(super) bytes: Box<[u8]>,
    pub(super) since: Instant,
    source: IpAddr,
    /// Who opens a connection with it, and at which port.
    opens: Option<(SocketAddr, u16)>,
    is_datagram: bool,
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotHeld {
    /// The same request for a connection waits already.
    Again,
    /// Too many wait.
    Full,
}

/// The frames that wait for one service.
#[derive(Debug)]
pub(super) struct Held {
    limits: HeldLimits,
    queue: VecDeque<HeldFrame>,
    bytes: usize,
    by_client: BTreeMap<IpAddr, u32>,
    opening: BTreeSet<(SocketAddr, u16)>,
    datagrams: u32,
}

impl Held {
    pub(super) fn new(limits: HeldLimits) -> Self {
        let (queue, by_client, opening) = (VecDeque::new(), BTreeMap::new(), BTreeSet::new());
        Self { limits, queue, bytes: 0, by_client, opening, datagrams: 0 }
    }

    /// Adds a frame.
    pub(super) fn push(&mut self, frame: &[u8], packet: &Packet<'_>, since: Instant) -> Result<(), NotHeld> {
        let (mut opens, mut is_datagram) = (None, false);
        match packet.content {
            Content::Tcp(segment) if segment.opens() => opens = Some((packet.client(), segment.to)),
            Content::Udp { .. } => is_datagram = true,
            Content::Tcp(_) | Content::Echo(_) | Content::Fragment | Content::Other => {}
        }
        if opens.is_some_and(|key| self.opening.contains(&key)) {
            return Err(NotHeld::Again);
        }
        let of_client = self.by_client.get(&packet.source).copied().unwrap_or_default();
        let full = self.queue.len() >= self.limits.frames
            || self.bytes + frame.len() > self.limits.bytes
            || of_client >= self.limits.client_frames
            || (opens.is_some() && self.opening.len() >= self.limits.opening);
        if full {
            return Err(NotHeld::Full);
        }
        self.by_client.insert(packet.source, of_client + 1);
        self.opening.extend(opens);
        self.datagrams += u32::from(is_datagram);
        self.bytes += frame.len();
        let source = packet.source;
        self.queue.push_back(HeldFrame { bytes: frame.into(), since, source, opens, is_datagram });
        Ok(())
    }

    /// The oldest frame.
    pub(super) fn front(&self) -> Option<&HeldFrame> {
        self.queue.front()
    }

    /// Takes out the oldest frame.
    pub(super) fn pop(&mut self) -> Option<HeldFrame> {
        let frame = self.queue.pop_front()?;
        self.bytes -= frame.bytes.len();
        if let Some(opens) = &frame.opens {
            self.opening.remove(opens);
        }
        self.datagrams -= u32::from(frame.is_datagram);
        if let Some(count) = self.by_client.get_mut(&frame.source) {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&frame.source);
            }
        }
        Some(frame)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether something from this address waits.
    pub(super) fn has_from(&self, source: IpAddr) -> bool {
        self.by_client.contains_key(&source)
    }

    /// Clients that wait for a connection.
    pub(super) fn clients(&self) -> u32 {
        u32::try_from(self.opening.len()).unwrap_or(u32::MAX)
    }

    /// Datagrams that wait.
    pub(super) fn datagrams(&self) -> u32 {
        self.datagrams
    }
}
