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

use socket2::SockAddr;

use super::local::{Control, LeaveFrom};

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
    /// The address that each datagram came to; none where the socket is bound to one.
    controls: Box<[Control]>,
    /// For each answer that is ready: the query that it belongs to.
    ready: Vec<(usize, usize)>,
}

impl Batch {
    /// For that socket alone: whether it is bound to one address is found out now.
    pub fn new(socket: &UdpSocket) -> Self {
        let is_wildcard = socket.local_addr().is_ok_and(|bound| bound.ip().is_unspecified());
        let controls = if is_wildcard { BATCH_MAX } else { 0 };
        // SAFETY: all three are plain C structures of numbers and pointers, for which zeros are a value.
        let (peer, header, vector) = unsafe { (zeroed(), zeroed(), zeroed()) };
        Self {
            queries: vec![[0; QUERY_STRIDE]; BATCH_MAX].into(),
            answers: vec![[0; ANSWER_STRIDE]; BATCH_MAX].into(),
            peers: vec![peer; BATCH_MAX].into(),
            received: vec![header; BATCH_MAX].into(),
            sent: vec![header; BATCH_MAX].into(),
            vectors: vec![vector; BATCH_MAX].into(),
            controls: vec![Control::default(); controls].into(),
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
        for (header, control) in self.received.iter_mut().zip(self.controls.iter_mut()) {
            *control = Control::default();
            header.msg_hdr.msg_control = ptr::from_mut(control).cast();
            header.msg_hdr.msg_controllen = size_of::<Control>() as _;
        }
        let count = libc::c_uint::try_from(BATCH_MAX).unwrap_or(1);
        // SAFETY: each header points to an iovec, a buffer of the length that the iovec says, an address of the
        // length that it says and, if to any, a control message of the length that it says, all owned by `self`,
        // which is borrowed for the length of the call.
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

    /// From where it is to be answered.
    pub fn leave_from(&self, index: usize) -> LeaveFrom {
        self.controls.get(index).map_or(LeaveFrom::Bound, Control::leave_from)
    }

    /// The answer to the datagram with that index is in its place and has that length.
    pub fn answer(&mut self, index: usize, length: usize) {
        if index < BATCH_MAX && length <= ANSWER_BYTES_MAX && self.ready.len() < BATCH_MAX {
            self.ready.push((index, length));
        }
    }

    /// The answers that are ready, each with the index of its query.
    pub fn ready(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.ready
            .iter()
            .filter_map(|&(index, length)| Some((index, self.answers.get(index)?.get(..length)?)))
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
            if let Some(control) = self.controls.get_mut(index) {
                if let LeaveFrom::Address(address) = control.leave_from() {
                    *control = Control::leaving_from(address);
                }
                header.msg_hdr.msg_control = ptr::from_mut(control).cast();
                header.msg_hdr.msg_controllen = control.length() as _;
            }
        }
        let lost = self.sent.get_mut(..self.ready.len()).map_or(0, |headers| {
            send_each(headers, |rest, flags| {
                let count = libc::c_uint::try_from(rest.len()).unwrap_or(1);
                // SAFETY: as for receiving; the headers were all set above.
                let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), count, flags) };
                usize::try_from(sent).map_err(|_| io::Error::last_os_error())
            })
        });
        self.ready.clear();
        lost
    }
}

/// Sends one answer outside a batch.
///
/// # Errors
/// As of sendmsg(2).
pub(crate) fn send_alone(
    socket: &UdpSocket,
    answer: &[u8],
    peer: SocketAddr,
    from: LeaveFrom,
) -> io::Result<()> {
    let address = match from {
        LeaveFrom::Bound => return socket.send_to(answer, peer).map(drop),
        LeaveFrom::Address(address) => address,
        LeaveFrom::Nowhere => return Ok(()),
    };
    let peer = SockAddr::from(peer);
    let mut control = Control::leaving_from(address);
    let mut vector = libc::iovec { iov_base: answer.as_ptr().cast_mut().cast(), iov_len: answer.len() };
    // SAFETY: a plain C structure of numbers and pointers, for which zeros are a value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = peer.as_ptr().cast_mut().cast();
    header.msg_namelen = peer.len();
    header.msg_iov = ptr::from_mut(&mut vector);
    header.msg_iovlen = 1;
    header.msg_control = ptr::from_mut(&mut control).cast();
    header.msg_controllen = control.length() as _;
    // SAFETY: the header points to an address, a vector with the answer and a control message, of the lengths that it
    // says; all of them outlive the call, which writes to none.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends all of them by `send`, which is given what is left and flags, and tells how many it sent; gives how many were
/// lost. What cannot be sent (to where no route leads, say, or a filter forbids it) costs itself alone. When the
/// socket's buffer stays full, what is left is not waited for again.
fn send_each<T>(all: &mut [T], mut send: impl FnMut(&mut [T], libc::c_int) -> io::Result<usize>) -> usize {
    let (mut at, mut lost, mut flags) = (0, 0, 0);
    while let Some(rest) = all.get_mut(at..).filter(|rest| !rest.is_empty()) {
        match send(rest, flags) {
            Ok(sent) if sent > 0 => at += sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            failed => {
                if failed.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                    flags = libc::MSG_DONTWAIT;
                }
                at += 1;
                lost += 1;
            }
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends ten datagrams through a kernel that does with the one at each place what `fails` says, once for each
    /// entry; gives what was sent, how many were lost, and with which flags it was called.
    fn sent(fails: &[(usize, i32)]) -> (Vec<usize>, usize, Vec<libc::c_int>) {
        let mut fails: Vec<(usize, i32)> = fails.to_vec();
        let (mut sent, mut calls) = (Vec::new(), Vec::new());
        let lost = send_each(&mut (0..10).collect::<Vec<usize>>(), |rest, flags| {
            calls.push(flags);
            let before = sent.len();
            for &mut place in rest {
                let Some(at) = fails.iter().position(|fail| fail.0 == place) else {
                    sent.push(place);
                    continue;
                };
                // As sendmmsg(2): an error is told only if nothing was sent before.
                if sent.len() > before {
                    break;
                }
                return Err(io::Error::from_raw_os_error(fails.remove(at).1));
            }
            Ok(sent.len() - before)
        });
        (sent, lost, calls)
    }

    #[test]
    fn an_answer_that_cannot_be_sent_costs_itself_alone() {
        let all: Vec<usize> = (0..10).collect();
        let without =
            |gone: &[usize]| all.iter().copied().filter(|at| !gone.contains(at)).collect::<Vec<_>>();
        assert_eq!(sent(&[]), (all.clone(), 0, vec![0]));
        // Forbidden by a filter, no room in a queue, no route, a source port that nobody has.
        for error in [libc::EPERM, libc::ENOBUFS, libc::ENETUNREACH, libc::EINVAL] {
            assert_eq!(sent(&[(0, error)]), (without(&[0]), 1, vec![0; 2]), "{error}");
            assert_eq!(sent(&[(4, error), (5, error)]), (without(&[4, 5]), 2, vec![0; 4]), "{error}");
            assert_eq!(sent(&[(9, error)]), (without(&[9]), 1, vec![0; 2]), "{error}");
        }
        // A signal came: nothing is lost.
        assert_eq!(sent(&[(0, libc::EINTR), (3, libc::EINTR)]), (all.clone(), 0, vec![0; 4]));
    }

    #[test]
    fn a_full_buffer_is_waited_for_once() {
        let (out, lost, flags) = sent(&[(2, libc::EAGAIN), (3, libc::EAGAIN), (7, libc::EAGAIN)]);
        assert_eq!((out, lost), (vec![0, 1, 4, 5, 6, 8, 9], 3));
        let no_wait = libc::MSG_DONTWAIT;
        assert_eq!(flags, [0, 0, no_wait, no_wait, no_wait, no_wait]);
    }
}
