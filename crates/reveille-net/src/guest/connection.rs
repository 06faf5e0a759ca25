//! One TCP connection: its socket, and what the socket does not tell by itself.
//!
//! ```text
//!            SYN-ACK                        finish() and the guest's FIN
//! opening ───────────► open ──────────────────────────────────────────────► closed in order
//!    │ RST               │ RST        abort(), dropped early        link closed
//!    └► End::Refused     └► End::Reset       └► End::Aborted           └► End::LinkClosed
//! ```
//!
//! While opening, an answer that acknowledges something else shows that the guest still knows an old connection of
//! our port. It is reset, and the connection is opened from another port.

use std::io;
use std::mem;
use std::task::Waker;

use smoltcp::iface::{Context, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;

use super::{GUEST_IP, RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES};

/// Free bytes of the send buffer from which a waiting writer is woken, unless all is acknowledged.
const WRITABLE_BYTES_MIN: usize = SEND_BUFFER_BYTES / 4;

/// Why a connection ended otherwise than in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The guest answered the SYN with a reset.
    Refused,
    /// The guest reset the connection.
    Reset,
    /// The link is closed.
    LinkClosed,
    /// We reset it.
    Aborted,
}

impl End {
    pub(super) fn error(self) -> io::Error {
        let (kind, text) = match self {
            Self::Refused => (io::ErrorKind::ConnectionRefused, "the guest refused the connection"),
            Self::Reset => (io::ErrorKind::ConnectionReset, "the guest reset the connection"),
            Self::LinkClosed => (io::ErrorKind::ConnectionAborted, "the link to the guest closed"),
            Self::Aborted => (io::ErrorKind::ConnectionAborted, "the connection was reset on this side"),
        };
        io::Error::new(kind, text)
    }
}

/// What there is to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    /// Bytes, the guest's FIN, or an error.
    Read,
    /// Room for bytes, the end of opening, or an error.
    Write,
    /// The guest's acknowledgement of our FIN, or an error.
    Delivered,
    /// An error.
    Broken,
}

/// A SYN that was sent and is not answered.
#[derive(Debug, Default)]
pub(super) struct Opening {
    /// The IP packet, to be sent again unchanged; empty until it was sent.
    pub(super) syn: Vec<u8>,
    pub(super) sent_at: Option<Instant>,
    /// When it is sent again because it may have come too early for the guest.
    pub(super) again_at: Option<Instant>,
    /// Ports that turned out to be taken in the guest's mind.
    pub(super) stale_ports: u32,
}

/// A connection, in a socket set of its own.
pub(super) struct Connection {
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    pub(super) local_port: u16,
    pub(super) guest_port: u16,
    pub(super) opening: Option<Opening>,
    /// Bytes that leave with the last segment of the handshake.
    first: Vec<u8>,
    pub(super) end: Option<End>,
    /// Our FIN is sent, or queued behind our bytes.
    pub(super) finished: bool,
    /// The guest's FIN has arrived.
    guest_finished: bool,
    /// The reader was told of it.
    end_read: bool,
    /// A [`super::GuestStream`] exists.
    pub(super) owned: bool,
    /// It is over and has sent its last ACK. It is not polled again: at the end of TIME-WAIT the socket would throw
    /// away what the owner has not read yet.
    pub(super) settled: bool,
    /// It is in the list of those that may have something to send.
    pub(super) queued: bool,
    /// Its entry among the timers.
    pub(super) timer: Option<Instant>,
    /// When it is reset although both sides have closed.
    pub(super) linger_until: Option<Instant>,
    pub(super) keep_alive: Option<std::time::Duration>,
    read_waker: Option<Waker>,
    write_waker: Option<Waker>,
    delivered_waker: Option<Waker>,
    broken_waker: Option<Waker>,
}

impl Connection {
    /// Begins to open a connection; the SYN is sent when the socket is polled.
    pub(super) fn open(
        context: &mut Context,
        local_port: u16,
        guest_port: u16,
        first: Vec<u8>,
    ) -> Option<Self> {
        let socket = connecting(context, local_port, guest_port)?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self {
            sockets,
            handle,
            local_port,
            guest_port,
            opening: Some(Opening::default()),
            first,
            end: None,
            finished: false,
            guest_finished: false,
            end_read: false,
            owned: true,
            settled: false,
            queued: false,
            timer: None,
            linger_until: None,
            keep_alive: None,
            read_waker: None,
            write_waker: None,
            delivered_waker: None,
            broken_waker: None,
        })
    }

    /// Opens it from another port. Returns whether that was possible.
    pub(super) fn reopen(&mut self, context: &mut Context, local_port: u16) -> bool {
        let Some(socket) = connecting(context, local_port, self.guest_port) else {
            return false;
        };
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        self.handle = sockets.add(socket);
        self.sockets = sockets;
        self.local_port = local_port;
        let stale_ports = self.opening.as_ref().map_or(0, |opening| opening.stale_ports);
        self.opening = Some(Opening { stale_ports: stale_ports + 1, ..Opening::default() });
        true
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn state(&self) -> State {
        self.sockets.get::<Socket<'static>>(self.handle).state()
    }

    /// Nothing will be sent or received any more.
    pub(super) fn is_over(&self) -> bool {
        let socket = self.sockets.get::<Socket<'static>>(self.handle);
        match socket.state() {
            // The last ACK is sent; if it is lost, the guest's FIN will be answered with a reset.
            State::TimeWait => true,
            State::Closed => socket.local_endpoint().is_none(),
            State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => false,
        }
    }

    /// Both sides have closed, and the reader knows it: the owner may go without a reset.
    pub(super) fn is_finished(&self) -> bool {
        self.finished && self.end_read
    }

    /// Looks at the socket after it was polled; `before` is its state before, `reset` whether a RST arrived.
    pub(super) fn observe(&mut self, before: State, reset: bool) {
        let state = self.state();
        match state {
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait => {
                self.guest_finished = true
            }
            State::Closed
            | State::Listen
            | State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2 => {}
        }
        let closed = state == State::Closed;
        if self.opening.is_some() {
            if closed {
                self.opening = None;
                self.fail(End::Refused);
            } else if !matches!(state, State::Listen | State::SynSent | State::SynReceived) {
                self.opening = None;
                let first = mem::take(&mut self.first);
                // An empty send buffer takes all that `Link::connect_with` passes.
                let _ = self.socket().send_slice(&first);
                let keep_alive = self.keep_alive;
                self.set_keep_alive(keep_alive);
            }
        } else if closed && reset && before != State::TimeWait {
            self.fail(End::Reset);
        }
        self.wake();
    }

    /// The connection has ended thus, unless it had ended before.
    pub(super) fn fail(&mut self, end: End) {
        self.opening = None;
        self.end.get_or_insert(end);
        self.wake();
    }

    pub(super) fn reset(&mut self) {
        self.socket().abort();
        self.fail(End::Aborted);
    }

    pub(super) fn set_keep_alive(&mut self, interval: Option<std::time::Duration>) {
        self.keep_alive = interval;
        if self.opening.is_none() {
            self.socket().set_keep_alive(interval.map(Into::into));
        }
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.opening.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let end = self.end;
        match self.socket().recv_slice(buffer) {
            Ok(0) if !buffer.is_empty() => Err(end.map_or(io::ErrorKind::WouldBlock.into(), End::error)),
            Ok(count) => Ok(count),
            Err(_) if self.guest_finished => {
                self.end_read = true;
                Ok(0)
            }
            Err(_) => Err(end.unwrap_or(End::Aborted).error()),
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(end) = self.end {
            return Err(end.error());
        }
        if self.opening.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match self.socket().send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            Ok(count) => Ok(count),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Queues our FIN.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match self.end {
            Some(end) => Err(end.error()),
            None if self.opening.is_some() => Err(io::ErrorKind::NotConnected.into()),
            None => {
                self.socket().close();
                self.finished = true;
                Ok(())
            }
        }
    }

    pub(super) fn is_ready(&self, interest: Interest) -> bool {
        let socket = self.sockets.get::<Socket<'static>>(self.handle);
        let open = self.opening.is_none();
        let room = SEND_BUFFER_BYTES - socket.send_queue().min(SEND_BUFFER_BYTES);
        match interest {
            _ if self.end.is_some() => true,
            Interest::Read => open && (self.guest_finished || socket.can_recv()),
            Interest::Write => open && (self.finished || room >= WRITABLE_BYTES_MIN),
            // Whatever state had been Closed otherwise has an end.
            Interest::Delivered => {
                self.finished && matches!(socket.state(), State::FinWait2 | State::TimeWait | State::Closed)
            }
            Interest::Broken => false,
        }
    }

    /// Has the waker called when there is something; one waker per interest is kept.
    pub(super) fn register(&mut self, interest: Interest, waker: &Waker) {
        let kept = self.waker(interest);
        match kept {
            Some(kept) => kept.clone_from(waker),
            None => *kept = Some(waker.clone()),
        }
    }

    fn waker(&mut self, interest: Interest) -> &mut Option<Waker> {
        match interest {
            Interest::Read => &mut self.read_waker,
            Interest::Write => &mut self.write_waker,
            Interest::Delivered => &mut self.delivered_waker,
            Interest::Broken => &mut self.broken_waker,
        }
    }

    fn wake(&mut self) {
        for interest in [Interest::Read, Interest::Write, Interest::Delivered, Interest::Broken] {
            if self.is_ready(interest)
                && let Some(waker) = self.waker(interest).take()
            {
                waker.wake();
            }
        }
    }
}

fn connecting(context: &mut Context, local_port: u16, guest_port: u16) -> Option<Socket<'static>> {
    let receive = SocketBuffer::new(vec![0; RECEIVE_BUFFER_BYTES]);
    let send = SocketBuffer::new(vec![0; SEND_BUFFER_BYTES]);
    let mut socket = Socket::new(receive, send);
    socket.set_nagle_enabled(false);
    // What has arrived is acknowledged once per batch of frames, so nothing is won by waiting.
    socket.set_ack_delay(None);
    socket.connect(context, (GUEST_IP, guest_port), local_port).ok()?;
    Some(socket)
}
