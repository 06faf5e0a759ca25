//! The link itself: what is attached, asked for connections, and dropped.

use std::fmt;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use tokio::net::UnixStream;

use super::connection::End;
use super::driver::{Shared, drive};
use super::stack::NotBegun;
use super::{GuestDatagrams, GuestStream, LinkAddresses, LinkCounters, SEND_BUFFER_BYTES};

/// Why a connection to the guest was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The guest answered with a reset: nobody listens on the port.
    #[error("the guest refused the connection")]
    Refused,
    /// The link is closed: the virtual machine is gone, or was let go.
    #[error("the link to the guest is closed")]
    LinkClosed,
    /// The link has [`CONNECTIONS_MAX`](super::CONNECTIONS_MAX) connections already.
    #[error("too many connections to the guest")]
    TooMany,
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::Refused => io::ErrorKind::ConnectionRefused,
            ConnectError::LinkClosed => io::ErrorKind::ConnectionAborted,
            ConnectError::TooMany => io::ErrorKind::QuotaExceeded,
        };
        Self::new(kind, error)
    }
}

/// Why a UDP flow was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DatagramsError {
    /// The link is closed.
    #[error("the link to the guest is closed")]
    LinkClosed,
    /// The link has [`FLOWS_MAX`](super::FLOWS_MAX) flows already.
    #[error("too many UDP flows to the guest")]
    TooMany,
}

impl From<DatagramsError> for io::Error {
    fn from(error: DatagramsError) -> Self {
        let kind = match error {
            DatagramsError::LinkClosed => io::ErrorKind::ConnectionAborted,
            DatagramsError::TooMany => io::ErrorKind::QuotaExceeded,
        };
        Self::new(kind, error)
    }
}

/// One guest's network cable, with us at the other end.
///
/// Dropping it resets all connections and closes the socket; QEMU then listens for the next link. Streams and flows
/// that still exist fail from then on.
pub struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// Speaks with the guest through `stream`, the accepted end of a `-netdev stream`.
    ///
    /// Spawns the link's task on the current runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn attach(stream: UnixStream, addresses: LinkAddresses) -> Self {
        let shared = Arc::new(Shared::new(stream, addresses));
        tokio::spawn(drive(Arc::clone(&shared)));
        Self { shared }
    }

    /// Opens a connection to a TCP port of the guest.
    ///
    /// Resolves when the guest has completed the handshake. There is no time limit: a SYN that the guest has not
    /// answered is sent again for as long as the future lives; see the [module](super) for how often. Dropping the
    /// future gives the attempt up.
    pub async fn connect(&self, port: u16) -> Result<GuestStream, ConnectError> {
        let stream = self.begin_connect(port)?;
        stream.connected().await?;
        Ok(stream)
    }

    /// As [`connect`](Self::connect); `first` leaves in the segment that completes the handshake, which saves a
    /// slow guest one packet. Returns how many of its bytes were taken: all, up to [`SEND_BUFFER_BYTES`]. Of an
    /// attempt that fails nothing was delivered.
    pub async fn connect_with(&self, port: u16, first: &[u8]) -> Result<(GuestStream, usize), ConnectError> {
        let first = &first[..first.len().min(SEND_BUFFER_BYTES)];
        let stream = self.begin(port, first)?;
        stream.connected().await?;
        Ok((stream, first.len()))
    }

    /// Begins to open a connection; [`GuestStream::connected`] tells the outcome.
    pub fn begin_connect(&self, port: u16) -> Result<GuestStream, ConnectError> {
        self.begin(port, &[])
    }

    fn begin(&self, port: u16, first: &[u8]) -> Result<GuestStream, ConnectError> {
        let mut stack = self.shared.stack();
        let id = stack.open(port, first.to_vec()).map_err(|error| match error {
            NotBegun::Closed => ConnectError::LinkClosed,
            NotBegun::TooMany => ConnectError::TooMany,
            NotBegun::NoSuchPort => ConnectError::Refused,
        })?;
        self.shared.pump(stack);
        Ok(GuestStream::new(Arc::clone(&self.shared), id))
    }

    /// Opens a flow of datagrams to a UDP port of the guest, with a source port of its own.
    pub fn datagrams(&self, port: u16) -> Result<GuestDatagrams, DatagramsError> {
        let local_port = self.shared.stack().open_flow(port).map_err(|error| match error {
            NotBegun::Closed => DatagramsError::LinkClosed,
            NotBegun::TooMany | NotBegun::NoSuchPort => DatagramsError::TooMany,
        })?;
        Ok(GuestDatagrams::new(Arc::clone(&self.shared), local_port))
    }

    /// Resolves when the guest's network answers, which it is asked to do until then; false if the link closed
    /// before. What is sent to a guest earlier may be lost.
    pub async fn reachable(&self) -> bool {
        let mut heard = self.shared.heard.subscribe();
        let _seeker = Seeker::new(&self.shared);
        tokio::select! {
            biased;
            () = self.closed() => false,
            told = heard.wait_for(|heard| *heard) => told.is_ok(),
        }
    }

    /// Resolves when the link is closed: the virtual machine ended, or broke the stream.
    pub async fn closed(&self) {
        // The sender lives as long as the link.
        let _ = self.shared.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        *self.shared.closed.borrow()
    }

    /// What passed and what was dropped since the link was attached.
    pub fn counters(&self) -> LinkCounters {
        self.shared.stack().counters
    }

    /// Connections that exist, those that still open or end included.
    pub fn connections(&self) -> usize {
        self.shared.stack().connections()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.hang_up();
    }
}

/// Has the guest probed while it exists.
struct Seeker<'a>(&'a Shared);

impl<'a> Seeker<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mut stack = shared.stack();
        stack.seekers += 1;
        let now = stack.now();
        stack.probe(now);
        shared.pump(stack);
        Self(shared)
    }
}

impl Drop for Seeker<'_> {
    fn drop(&mut self) {
        self.0.stack().seekers -= 1;
    }
}

impl From<End> for ConnectError {
    fn from(end: End) -> Self {
        match end {
            End::Refused | End::Reset => Self::Refused,
            End::LinkClosed | End::Aborted => Self::LinkClosed,
        }
    }
}
