//! A UDP flow to a guest, as its owner sees it.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::DATAGRAM_BYTES_MAX;
use super::driver::Shared;

/// Datagrams between a source port of its own and one port of the guest, as a connected UDP socket.
///
/// One task at a time may wait for datagrams. Dropping it ends the flow.
pub struct GuestDatagrams {
    shared: Arc<Shared>,
    local_port: u16,
}

impl GuestDatagrams {
    pub(super) fn new(shared: Arc<Shared>, local_port: u16) -> Self {
        Self { shared, local_port }
    }

    /// Sends a datagram; never waits.
    ///
    /// Fails with `WouldBlock` when the guest does not take its frames: the datagram is dropped and counted, as a
    /// network would. Fails with `InvalidInput` above [`DATAGRAM_BYTES_MAX`] and with `ConnectionAborted` when the
    /// link is closed.
    pub fn send(&self, payload: &[u8]) -> io::Result<()> {
        if payload.len() > DATAGRAM_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut stack = self.shared.stack();
        if stack.closed {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let queued = stack.send_datagram(self.local_port, payload);
        self.shared.pump(stack);
        if queued { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Waits for a datagram. Cancel-safe.
    ///
    /// Fails with `ConnectionRefused` once after the guest said that nobody listens on the port, and with
    /// `ConnectionAborted` when the link is closed and nothing is left.
    pub async fn recv(&self) -> io::Result<Vec<u8>> {
        loop {
            self.readable().await;
            match self.try_recv() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Resolves when [`try_recv`](Self::try_recv) has something to tell.
    pub async fn readable(&self) {
        poll_fn(|context| self.poll_ready(context)).await;
    }

    /// Whether the link is closed, so that nothing can be sent any more.
    pub fn is_closed(&self) -> bool {
        self.shared.stack().closed
    }

    /// Takes a datagram if there is one; `WouldBlock` if not.
    pub fn try_recv(&self) -> io::Result<Vec<u8>> {
        let mut stack = self.shared.stack();
        let closed = stack.closed;
        let aborted = || io::ErrorKind::ConnectionAborted.into();
        let result = stack.flow(self.local_port).map_or_else(|| Err(aborted()), |flow| flow.receive());
        match result {
            Err(error) if closed && error.kind() == io::ErrorKind::WouldBlock => Err(aborted()),
            result => result,
        }
    }

    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut stack = self.shared.stack();
        let closed = stack.closed;
        match stack.flow(self.local_port) {
            Some(flow) if !closed && !flow.is_ready() => {
                flow.register(context.waker());
                Poll::Pending
            }
            Some(_) | None => Poll::Ready(()),
        }
    }

    /// Our source port, by which the guest knows the flow.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }
}

impl fmt::Debug for GuestDatagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestDatagrams").field("local_port", &self.local_port).finish_non_exhaustive()
    }
}

impl Drop for GuestDatagrams {
    fn drop(&mut self) {
        self.shared.stack().close_flow(self.local_port);
    }
}
