//! Frames that wait for the unix socket, in its own format: each after its length, 4 bytes big-endian.
//!
//! One buffer for all, so that a burst leaves in one system call. Three limits keep TCP's bulk data from crowding out
//! what cannot wait: data segments stop first, datagrams next, replies last.

use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::frame::{BROADCAST, ETHERTYPE_IPV4, HEADER_BYTES, LENGTH_BYTES, write_header};
use super::{GUEST_MAC, LinkCounters, MTU};

/// TCP sends nothing new while more bytes than this wait.
pub(super) const TCP_BYTES_MAX: usize = 128 << 10;
/// A datagram that would make it more than this is dropped.
pub(super) const UDP_BYTES_MAX: usize = 256 << 10;
/// Replies (resets, ARP) are dropped beyond this.
pub(super) const REPLY_BYTES_MAX: usize = 512 << 10;
/// An empty buffer that is larger gives its memory back.
const KEPT_BYTES_MAX: usize = 4 << 10;

/// The frames that wait.
#[derive(Debug)]
pub(super) struct Outbox {
    buffer: Vec<u8>,
    sent: usize,
    /// Whom they go to.
    pub(super) guest_mac: [u8; 6],
}

impl Default for Outbox {
    fn default() -> Self {
        Self { buffer: Vec::new(), sent: 0, guest_mac: GUEST_MAC }
    }
}

impl Outbox {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.buffer.len() - self.sent
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes for the socket.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.buffer[self.sent..]
    }

    /// The first `count` bytes that waited are written.
    pub(super) fn written(&mut self, count: usize) {
        self.sent += count;
        if self.sent >= self.buffer.len() {
            self.buffer.clear();
            self.sent = 0;
        }
    }

    /// Gives back what a burst needed; for when nothing is expected to follow at once.
    pub(super) fn rest(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_BYTES_MAX {
            self.buffer = Vec::new();
        }
    }

    /// Everything that waits is for nobody any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// As [`push`](Self::push), to whoever is there: a guest whose MAC is not known yet takes no other frame.
    pub(super) fn push_to_all(
        &mut self,
        counters: &mut LinkCounters,
        ethertype: u16,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let known = std::mem::replace(&mut self.guest_mac, BROADCAST);
        self.push(counters, ethertype, length, fill);
        self.guest_mac = known;
    }

    /// Appends a frame whose payload of `length` bytes is written by `fill`.
    pub(super) fn push<R>(
        &mut self,
        counters: &mut LinkCounters,
        ethertype: u16,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        if self.sent > TCP_BYTES_MAX {
            self.buffer.drain(..self.sent);
            self.sent = 0;
        }
        let start = self.buffer.len();
        self.buffer.resize(start + LENGTH_BYTES + HEADER_BYTES + length, 0);
        let (head, payload) = self.buffer[start..].split_at_mut(LENGTH_BYTES + HEADER_BYTES);
        write_header(head, self.guest_mac, ethertype, length);
        counters.frames_out += 1;
        counters.bytes_out += (HEADER_BYTES + length) as u64;
        fill(payload)
    }

    /// Copies the payload of the frame that was appended last, if its length is `bytes_max` at most.
    pub(super) fn last_payload(&self, since: usize, bytes_max: usize) -> Option<&[u8]> {
        let frame = self.buffer.get(self.sent + since..)?;
        let payload = frame.get(LENGTH_BYTES + HEADER_BYTES..)?;
        (payload.len() <= bytes_max).then_some(payload)
    }
}

/// The outbox, and at most one packet that has arrived, as the device that the TCP stack polls.
pub(super) struct Wire<'a> {
    pub(super) packet: Option<&'a [u8]>,
    pub(super) outbox: &'a mut Outbox,
    pub(super) counters: &'a mut LinkCounters,
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Arrived<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Space<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Arrived<'_>, Space<'_>)> {
        let packet = self.packet.take()?;
        let full = self.outbox.len() >= REPLY_BYTES_MAX;
        Some((Arrived(packet), Space { outbox: self.outbox, counters: self.counters, full }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Space<'_>> {
        let room = self.outbox.len() < TCP_BYTES_MAX;
        room.then_some(Space { outbox: self.outbox, counters: self.counters, full: false })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities
    }
}

/// A packet that has arrived.
pub(super) struct Arrived<'a>(&'a [u8]);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

/// Room for one packet.
pub(super) struct Space<'a> {
    outbox: &'a mut Outbox,
    counters: &'a mut LinkCounters,
    full: bool,
}

impl TxToken for Space<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        if self.full {
            self.counters.dropped.outbox_full += 1;
            return fill(&mut vec![0; length]);
        }
        self.outbox.push(self.counters, ETHERTYPE_IPV4, length, fill)
    }
}
