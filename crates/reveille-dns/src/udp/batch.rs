//! Many datagrams with one system call: recvmmsg(2) and sendmmsg(2).
//!
//! The only unsafe code of this crate. The kernel is given pointers into buffers that the [`Batch`] owns; they are set
//! anew before each call, so that a batch may be moved between calls.
#![expect(unsafe_code, reason = "neither std nor rustix has recvmmsg and sendmmsg")]

use std::io;
use std::mem::zeroed;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

/// Datagrams of one batch at most.
pub(crate) const BATCH_MAX: usize = 64;
/// Largest datagram that is read whole; a longer one is cut and so cannot be read as a message. Questions with every
/// option have some hundred bytes; updates and transfers of more come over TCP.
pub(crate) const QUERY_BYTES_MAX: usize = 4_096;
/// Room for one answer: as much as any goes over UDP.
pub(crate) const ANSWER_BYTES_MAX: usize = crate::wire::UDP_PAYLOAD_MAX as usize;

/// Distance of two buffers: not a multiple of 4,096, or all of them would compete for the same few cache lines.
const QUERY_STRIDE: usize = QUERY_BYTES_MAX + 128;
const ANSWER_STRIDE: usize = ANSWER_BYTES_MAX.next_multiple_of(64);

/// Length of an address of the internet of either family, as the kernel counts it.
#[expect(clippy::cast_possible_truncation, reason = "28 bytes")]
const PEER_BYTES: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

/// Buffers for a batch of datagrams and for their answers.
pub(crate) struct Batch {
    queries: Box<[[u8; QUERY_STRIDE]]>,
    answers: Box<[[u8; ANSWER_STRIDE]]>,
    peers: Box<[libc::sockaddr_in6]>,
    received: Box<[libc::mmsghdr]>,
    sent: Box<[libc::mmsghdr]>,
    vectors: Box<[libc::iovec]>,
    /// For each answer that is ready: the query that it belongs to.
    ready: Vec<(usize, usize)>,
}

impl Batch {
    pub fn new() -> Self {
        // SAFETY: all three are plain C structures of numbers and pointers, for which zeros are a value.
        let (peer, header, vector) = unsafe { (zeroed(), zeroed(), zeroed()) };
        Self {
            queries: vec![[0; QUERY_STRIDE]; BATCH_MAX].into(),
            answers: vec![[0; ANSWER_STRIDE]; BATCH_MAX].into(),
            peers: vec![peer; BATCH_MAX].into(),
            received: vec![header; BATCH_MAX].into(),
            sent: vec![header; BATCH_MAX].into(),
            vectors: vec![vector; BATCH_MAX].into(),
            ready: Vec::with_capacity(BATCH_MAX),
        }
    }

    /// Waits for a datagram and takes it and those behind it; gives how many came. Answers of the last batch that were
    /// not sent are forgotten.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.ready.clear();
        let places = self.queries.iter_mut().zip(self.peers.iter_mut());
        for ((query, peer), (header, vector)) in
            places.zip(self.received.iter_mut().zip(self.vectors.iter_mut()))
        {
            *vector = libc::iovec { iov_base: query.as_mut_ptr().cast(), iov_len: QUERY_BYTES_MAX };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = ptr::from_mut(peer).cast();
            header.msg_hdr.msg_namelen = PEER_BYTES;
            header.msg_hdr.msg_flags = 0;
        }
        let count = libc::c_uint::try_from(BATCH_MAX).unwrap_or(1);
        // SAFETY: each header points to an iovec, a buffer of the length that the iovec says and an address of the
        // length that it says, all owned by `self`, which is borrowed for the length of the call.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.received.as_mut_ptr(),
                count,
                libc::MSG_WAITFORONE as _,
                ptr::null_mut(),
            )
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// The datagram with that index of the last [`Batch::receive`], with room for its answer.
    pub fn query(&mut self, index: usize) -> Option<(&[u8], &mut [u8; ANSWER_STRIDE])> {
        let length = usize::try_from(self.received.get(index)?.msg_len).ok()?;
        let query = self.queries.get(index)?.get(..length)?;
        Some((query, self.answers.get_mut(index)?))
    }

    /// The datagram with that index of the last [`Batch::receive`].
    pub fn packet(&self, index: usize) -> &[u8] {
        let length = self.received.get(index).and_then(|header| usize::try_from(header.msg_len).ok());
        let query = self.queries.get(index).zip(length);
        query.and_then(|(query, length)| query.get(..length)).unwrap_or_default()
    }

    /// Who sent it; `None` if the kernel gave no address of the internet.
    pub fn peer(&self, index: usize) -> Option<SocketAddr> {
        let peer = self.peers.get(index)?;
        match libc::c_int::from(peer.sin6_family) {
            libc::AF_INET => {
                // SAFETY: of this family, the kernel wrote a sockaddr_in, which is shorter and no stricter aligned.
                let peer = unsafe { ptr::from_ref(peer).cast::<libc::sockaddr_in>().read() };
                let address = u32::from_be(peer.sin_addr.s_addr).into();
                Some(SocketAddrV4::new(address, u16::from_be(peer.sin_port)).into())
            }
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(peer.sin6_addr.s6_addr);
                let port = u16::from_be(peer.sin6_port);
                Some(SocketAddrV6::new(address, port, peer.sin6_flowinfo, peer.sin6_scope_id).into())
            }
            _ => None,
        }
    }

    /// The answer to the datagram with that index is in its place and has that length.
    pub fn answer(&mut self, index: usize, length: usize) {
        if index < BATCH_MAX && length <= ANSWER_BYTES_MAX && self.ready.len() < BATCH_MAX {
            self.ready.push((index, length));
        }
    }

    /// Sends what is ready; gives how many answers could not be sent.
    pub fn send(&mut self, socket: &UdpSocket) -> usize {
        let places = self.sent.iter_mut().zip(self.vectors.iter_mut());
        for (&(index, length), (header, vector)) in self.ready.iter().zip(places) {
            let (Some(answer), Some(peer), Some(received)) =
                (self.answers.get_mut(index), self.peers.get_mut(index), self.received.get(index))
            else {
                return self.ready.len();
            };
            *vector = libc::iovec { iov_base: answer.as_mut_ptr().cast(), iov_len: length };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = ptr::from_mut(peer).cast();
            header.msg_hdr.msg_namelen = received.msg_hdr.msg_namelen;
        }
        let (mut at, mut failed) = (0, 0);
        while let Some(rest) = self.sent.get_mut(at..self.ready.len()).filter(|rest| !rest.is_empty()) {
            let count = libc::c_uint::try_from(rest.len()).unwrap_or(1);
            // SAFETY: as for receiving; the headers of `rest` were all set above.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => at += sent,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // The first one cannot be sent (its address is unreachable, say); the others may.
                Ok(_) | Err(_) => {
                    at += 1;
                    failed += 1;
                }
            }
        }
        self.ready.clear();
        failed
    }
}
