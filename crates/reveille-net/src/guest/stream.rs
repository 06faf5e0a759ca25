//! A TCP connection to a guest, as its owner sees it.
//!
//! The calls that do not wait take `&self` and are named as those of [`tokio::net::TcpStream`], so that one task can
//! read while another writes. One task at a time may wait for each of reading, writing, delivery and breaking.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ConnectError;
use super::connection::{Connection, End, Interest};
use super::driver::Shared;
use super::stack::ConnectionId;

/// A connection to a port of the guest.
///
/// A reset by the guest is an error of kind [`ConnectionReset`](io::ErrorKind::ConnectionReset), after the bytes that
/// came before it; an end of file is always the guest's FIN. When the link closes, the kind is
/// [`ConnectionAborted`](io::ErrorKind::ConnectionAborted).
///
/// Dropping it resets the connection, unless it is finished: our FIN sent, the guest's read. The last bytes of a
/// finished connection still have [`LINGER_MAX`](super::LINGER_MAX) to reach the guest.
pub struct GuestStream {
    shared: Arc<Shared>,
    id: ConnectionId,
}

impl GuestStream {
    pub(super) fn new(shared: Arc<Shared>, id: ConnectionId) -> Self {
        Self { shared, id }
    }

    /// Resolves when the guest has completed the handshake, or has not.
    pub async fn connected(&self) -> Result<(), ConnectError> {
        poll_fn(|context| self.poll_ready(Interest::Write, context)).await;
        let end = self.shared.stack().connection(self.id).map_or(Some(End::Aborted), |one| one.end);
        end.map_or(Ok(()), |end| Err(end.into()))
    }

    /// Resolves when [`try_read`](Self::try_read) has something to tell.
    pub async fn readable(&self) {
        poll_fn(|context| self.poll_ready(Interest::Read, context)).await;
    }

    /// Resolves when [`try_write`](Self::try_write) takes a good deal, or fails.
    pub async fn writable(&self) {
        poll_fn(|context| self.poll_ready(Interest::Write, context)).await;
    }

    /// Resolves when the connection has ended otherwise than in order.
    pub async fn broken(&self) -> io::Error {
        poll_fn(|context| self.poll_ready(Interest::Broken, context)).await;
        let end = self.shared.stack().connection(self.id).and_then(|one| one.end);
        end.unwrap_or(End::Aborted).error()
    }

    /// Resolves when the guest has acknowledged all bytes and our FIN, which must have been sent by
    /// [`finish`](Self::finish). Fails if the connection has ended otherwise.
    pub async fn delivered(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_ready(Interest::Delivered, context)).await;
        let end = self.shared.stack().connection(self.id).map_or(Some(End::Aborted), |one| one.end);
        end.map_or(Ok(()), |end| Err(end.error()))
    }

    /// Whether the link is closed, so that what broke the connection was not the guest's word.
    pub fn is_link_closed(&self) -> bool {
        self.shared.stack().closed
    }

    /// Reads what has arrived; 0 is the guest's FIN. Fails with `WouldBlock` if there is nothing yet.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.change(|connection| connection.read(buffer))
    }

    /// Takes as many bytes as there is room for. Fails with `WouldBlock` if there is none.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.change(|connection| connection.write(bytes))
    }

    /// Sends our FIN after all bytes; reading goes on. Harmless when repeated.
    pub fn finish(&self) -> io::Result<()> {
        self.change(Connection::finish)
    }

    /// Resets the connection. Everybody who waits for it is told.
    pub fn abort(&self) {
        let _ = self.change(|connection| {
            if connection.end.is_none() {
                connection.reset();
            }
            Ok(())
        });
    }

    /// Asks a silent guest every `interval` whether it still knows the connection; `None`, the default, never asks.
    /// A guest that does not know it resets it; one that does not answer is not given up.
    pub fn set_keep_alive(&self, interval: Option<Duration>) {
        let _ = self.change(|connection| {
            connection.set_keep_alive(interval);
            Ok(())
        });
    }

    /// Our source port, by which the guest knows us.
    pub fn local_port(&self) -> u16 {
        self.shared.stack().connection(self.id).map_or(0, |one| one.local_port)
    }

    /// Does something with the connection and sends what follows from it.
    fn change<R>(&self, what: impl FnOnce(&mut Connection) -> io::Result<R>) -> io::Result<R> {
        let mut stack = self.shared.stack();
        let Some(connection) = stack.connection(self.id) else {
            return Err(End::Aborted.error());
        };
        let result = what(connection)?;
        stack.queue(self.id);
        self.shared.pump(stack);
        Ok(result)
    }

    fn poll_ready(&self, interest: Interest, context: &mut Context<'_>) -> Poll<()> {
        let mut stack = self.shared.stack();
        match stack.connection(self.id) {
            Some(connection) if !connection.is_ready(interest) => {
                connection.register(interest, context.waker());
                Poll::Pending
            }
            Some(_) | None => Poll::Ready(()),
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let coop = ready!(tokio::task::coop::poll_proceed(context));
        loop {
            match self.try_read(buffer.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_ready(Interest::Read, context));
                }
                Ok(count) => {
                    coop.made_progress();
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let coop = ready!(tokio::task::coop::poll_proceed(context));
        match self.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(self.poll_ready(Interest::Write, context));
                // Room was made between the two looks.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            result => {
                coop.made_progress();
                Poll::Ready(result)
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}

impl fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestStream").field("local_port", &self.local_port()).finish_non_exhaustive()
    }
}

impl Drop for GuestStream {
    fn drop(&mut self) {
        let mut stack = self.shared.stack();
        stack.release(self.id);
        self.shared.pump(stack);
    }
}
