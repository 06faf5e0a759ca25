//! What stands behind a service, and the relay's side of connections and flows to it.
//!
//! The relay treats a guest's [`Link`] and ordinary sockets alike: [`Ends`] is what it does with either end of a
//! connection, client or backend.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::guest::{GuestDatagrams, GuestStream, LINGER_MAX, Link};
use crate::listen;

/// Silence after which a guest is asked whether it still knows a connection.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Where a service's clients are led while its gate is open.
#[derive(Debug, Clone, Default)]
pub enum Backend {
    /// Nowhere yet: clients that are let in try again until there is something.
    #[default]
    None,
    /// The same ports of a guest.
    Guest(Arc<Link>),
    /// The same ports of an address that the host reaches by itself, for instances that are no guests.
    Address(IpAddr),
}

impl Backend {
    /// Begins to connect to a port; [`Upstream::connected`] tells the outcome.
    pub(crate) fn begin_connect(&self, port: u16) -> io::Result<Upstream> {
        match self {
            Self::None => Err(io::ErrorKind::NotConnected.into()),
            Self::Guest(link) => {
                let stream = link.begin_connect(port)?;
                stream.set_keep_alive(Some(KEEPALIVE));
                Ok(Upstream::Guest(stream))
            }
            Self::Address(address) => {
                listen::begin_connect(SocketAddr::from((*address, port))).map(Upstream::Socket)
            }
        }
    }

    /// A flow of datagrams to a port, with a source port of its own.
    pub(crate) fn datagrams(&self, port: u16) -> io::Result<UpstreamDatagrams> {
        match self {
            Self::None => Err(io::ErrorKind::NotConnected.into()),
            Self::Guest(link) => Ok(UpstreamDatagrams::Guest(link.datagrams(port)?)),
            Self::Address(address) => {
                listen::session_socket(SocketAddr::from((*address, port))).map(UpstreamDatagrams::Socket)
            }
        }
    }
}

/// What the relay does with either end of a connection.
pub(crate) trait Ends: Sync {
    /// Resolves when there are bytes, an end or an error to read.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Resolves when there is room, or an error.
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Resolves when the connection is reset or lost. Needed where nobody reads or writes.
    fn broken(&self) -> impl Future<Output = ()> + Send;
    /// As [`TcpStream::try_read`].
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// As [`TcpStream::try_write`].
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Sends our FIN.
    fn finish(&self) -> io::Result<()>;
}

impl Ends for TcpStream {
    async fn readable(&self) -> io::Result<()> {
        self.readable().await
    }

    async fn writable(&self) -> io::Result<()> {
        self.writable().await
    }

    async fn broken(&self) {
        let _ = self.ready(Interest::ERROR).await;
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.try_read(buffer)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    fn finish(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(crate) enum Upstream {
    Guest(GuestStream),
    Socket(TcpStream),
}

impl Upstream {
    /// Waits until the handshake is through. Of kind `ConnectionReset` is the error if it was, and a reset followed
    /// before anybody looked.
    pub(crate) async fn connected(&self) -> io::Result<()> {
        match self {
            Self::Guest(stream) => match stream.connected().await {
                Ok(()) => Ok(()),
                Err(_) => Err(stream.broken().await),
            },
            Self::Socket(stream) => {
                stream.writable().await?;
                stream.take_error()?.map_or(Ok(()), Err)
            }
        }
    }

    /// Whether the way to the instance is gone, so that what broke the connection was not the instance's word. Of an
    /// address that is not known.
    pub(crate) fn is_lost(&self) -> bool {
        match self {
            Self::Guest(stream) => stream.is_link_closed(),
            Self::Socket(_) => false,
        }
    }

    /// Resets the connection now, from whichever thread.
    pub(crate) fn reset(&self) {
        match self {
            Self::Guest(stream) => stream.abort(),
            Self::Socket(stream) => listen::reset(stream),
        }
    }

    /// Waits, after both sides' FINs, until the guest has acknowledged all. Between the host and an address that is
    /// left to the kernel.
    pub(crate) async fn delivered(&self) -> io::Result<()> {
        match self {
            Self::Guest(stream) => timeout(LINGER_MAX, stream.delivered()).await?,
            Self::Socket(stream) => {
                listen::close_in_order(stream);
                Ok(())
            }
        }
    }
}

impl Ends for Upstream {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Guest(stream) => {
                stream.readable().await;
                Ok(())
            }
            Self::Socket(stream) => stream.readable().await,
        }
    }

    async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Guest(stream) => {
                stream.writable().await;
                Ok(())
            }
            Self::Socket(stream) => stream.writable().await,
        }
    }

    async fn broken(&self) {
        match self {
            Self::Guest(stream) => drop(stream.broken().await),
            Self::Socket(stream) => Ends::broken(stream).await,
        }
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Guest(stream) => stream.try_read(buffer),
            Self::Socket(stream) => stream.try_read(buffer),
        }
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Guest(stream) => stream.try_write(bytes),
            Self::Socket(stream) => stream.try_write(bytes),
        }
    }

    fn finish(&self) -> io::Result<()> {
        match self {
            Self::Guest(stream) => stream.finish(),
            Self::Socket(stream) => Ends::finish(stream),
        }
    }
}

/// A flow of datagrams to a backend.
#[derive(Debug)]
pub(crate) enum UpstreamDatagrams {
    Guest(GuestDatagrams),
    Socket(UdpSocket),
}

impl UpstreamDatagrams {
    /// Sends a datagram; never waits.
    pub(crate) fn send(&self, payload: &[u8]) -> io::Result<()> {
        match self {
            Self::Guest(flow) => flow.send(payload),
            Self::Socket(socket) => SockRef::from(socket).send(payload).map(drop),
        }
    }

    /// Resolves when there is a datagram or an error.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Guest(flow) => {
                flow.readable().await;
                Ok(())
            }
            Self::Socket(socket) => socket.readable().await,
        }
    }

    /// Takes a datagram; `buffer` is long enough for any.
    pub(crate) fn try_recv<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Cow<'a, [u8]>> {
        match self {
            Self::Guest(flow) => flow.try_recv().map(Cow::Owned),
            Self::Socket(socket) => socket.try_recv(buffer).map(|length| Cow::Borrowed(&buffer[..length])),
        }
    }

    /// It leads to a guest that is gone.
    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Guest(flow) => flow.is_closed(),
            Self::Socket(_) => false,
        }
    }
}
