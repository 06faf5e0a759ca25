//! A stream that is closed so that its other end gets the last answer.
//!
//! Who is refused for a head that is too long has mostly sent more of it. Closing a socket with something unread
//! resets the connection, and a reset throws away what the other end has not taken yet: it would see a broken
//! connection and no status. So what still comes is read and dropped for a while, after the end is announced
//! (RFC 9112 §9.6).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Bytes that are taken at a time.
const PIECE_BYTES: usize = 4_096;

/// A stream whose shutdown ends when the other end has closed too, or when it has had its time or sent too much.
pub(super) struct Linger<S> {
    stream: S,
    bytes_left: usize,
    wait_max: Duration,
    /// There once our own side is closed.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Linger<S> {
    /// Reads at most `bytes_max` after the end, for at most `wait_max`.
    pub fn new(stream: S, bytes_max: usize, wait_max: Duration) -> Self {
        Self { stream, bytes_left: bytes_max, wait_max, until: None }
    }
}

impl<S: AsyncRead + Unpin> Linger<S> {
    /// Ready when there is nothing left to wait for.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut piece = [0; PIECE_BYTES];
        while self.bytes_left > 0 {
            let mut read = ReadBuf::new(&mut piece);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut read)) {
                Ok(()) if !read.filled().is_empty() => {
                    self.bytes_left = self.bytes_left.saturating_sub(read.filled().len());
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.until.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.until = Some(Box::pin(sleep(self.wait_max)));
        }
        if self.poll_drain(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        self.until.as_mut().map_or(Poll::Ready(()), |until| until.as_mut().poll(context)).map(Ok)
    }
}
