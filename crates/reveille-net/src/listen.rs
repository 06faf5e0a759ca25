//! Sockets with the options that the relay needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reveille_core::model::{PortSpec, Protocol};
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::binding::{BindError, Binding};

/// Clients that the kernel keeps for us between two accepts.
const BACKLOG: i32 = 1_024;
/// Silence after which a peer is asked whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// Questions without an answer after which the connection is broken.
const KEEPALIVE_RETRIES: u32 = 4;
/// Receive buffer of a UDP port: what a burst may fill while the task is not scheduled.
const UDP_RECEIVE_BYTES: usize = 1 << 20;

/// The sockets of a service.
pub(crate) struct Listeners {
    pub(crate) tcp: Vec<(TcpListener, PortSpec)>,
    pub(crate) udp: Vec<(UdpSocket, PortSpec)>,
}

impl Listeners {
    /// Listens on every port of every stable address, or on none.
    pub(crate) fn open(binding: &Binding) -> Result<Self, BindError> {
        let mut listeners = Self { tcp: Vec::new(), udp: Vec::new() };
        if binding.stable.is_empty() || binding.ports.is_empty() {
            return Err(BindError::Nothing(binding.service.clone()));
        }
        for &address in &binding.stable {
            if address.is_unspecified() || address.is_multicast() || address == Ipv4Addr::BROADCAST {
                return Err(BindError::BadAddress(address));
            }
            for &port in &binding.ports {
                let at = SocketAddr::new(address, port.number);
                listeners.add(at, port, binding.freebind).map_err(|source| explain(at, port, source))?;
            }
        }
        Ok(listeners)
    }

    fn add(&mut self, at: SocketAddr, port: PortSpec, freebind: bool) -> io::Result<()> {
        let kind = match port.protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
        };
        let socket = Socket::new(Domain::for_address(at), kind.nonblocking().cloexec(), None)?;
        match (at.is_ipv6(), freebind) {
            (false, true) => socket.set_freebind_v4(true)?,
            (true, freebind) => {
                socket.set_only_v6(true)?;
                if freebind {
                    socket.set_freebind_v6(true)?;
                }
            }
            (false, false) => {}
        }
        match port.protocol {
            Protocol::Tcp => {
                // Bind again although connections of before are in TIME_WAIT. On a UDP socket the same option
                // would let two processes share the port unnoticed.
                socket.set_reuse_address(true)?;
                socket.bind(&at.into())?;
                socket.listen(BACKLOG)?;
                self.tcp.push((TcpListener::from_std(socket.into())?, port));
            }
            Protocol::Udp => {
                // As much as the host's limit allows.
                socket.set_recv_buffer_size(UDP_RECEIVE_BYTES)?;
                socket.bind(&at.into())?;
                self.udp.push((UdpSocket::from_std(socket.into())?, port));
            }
        }
        Ok(())
    }
}

fn explain(at: SocketAddr, port: PortSpec, source: io::Error) -> BindError {
    use rustix::io::Errno;
    match Errno::from_io_error(&source) {
        Some(Errno::ADDRINUSE) => BindError::Taken { at, port },
        Some(Errno::ADDRNOTAVAIL) => BindError::NotConfigured { at },
        Some(Errno::ACCESS | Errno::PERM) => BindError::Forbidden { at, port },
        Some(Errno::MFILE | Errno::NFILE) => BindError::OutOfFiles { at },
        Some(_) | None => BindError::Io { at, port, source },
    }
}

/// Begins a TCP connect that does not block.
pub(crate) fn begin_connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
    let in_progress = rustix::io::Errno::INPROGRESS.raw_os_error();
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(in_progress) => {}
        Err(error) => return Err(error),
    }
    let stream = TcpStream::from_std(socket.into())?;
    prepare(&stream)?;
    Ok(stream)
}

/// A UDP socket for the session of one client, connected to the backend.
pub(crate) fn session_socket(backend: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match backend {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(backend)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// The options of both halves of a relayed connection. Closing such a stream resets it, unless
/// [`close_in_order`] is called before: whatever goes wrong, a task that ends or is dropped must not look like an
/// orderly end to either side.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Lets the kernel deliver what is still unsent after the stream is dropped.
pub(crate) fn close_in_order(stream: &TcpStream) {
    // Fails only on a socket that is no longer connected.
    let _ = SockRef::from(stream).set_linger(None);
}

/// Resets the connection now, from whichever thread: what is unsent is discarded and the peer gets an RST.
pub(crate) fn reset(stream: &TcpStream) {
    // Fails only on a socket that is no longer connected.
    let _ = rustix::net::connect_unspec(stream);
}
