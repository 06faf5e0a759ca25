//! Opening the sockets; when one cannot be had, who has it and what to do.

use std::fmt;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::udp::{LOOK_MS, ignore_path_mtu, tell_addresses};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1_024;
/// Receive buffer asked for. The kernel doubles it and charges some 800 bytes for a query, so it holds what comes in
/// 10 ms, while the thread is not scheduled, at 250,000 queries a second.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Send buffer asked for: two batches of the longest answers, some 2,300 bytes each as the kernel charges them, so that
/// one is written while the other one leaves. Doubled by the kernel too.
const SEND_BUFFER_BYTES: usize = 1 << 18;
/// Longest wait for room in the send buffer. Answers to neighbours that do not exist wait there for some seconds while
/// the kernel looks for them; those to others must not stand behind them.
const SEND_WAIT_MS: u64 = 10;
/// How often a free port is looked for when the configuration leaves it open (port 0).
const FREE_PORT_TRIES: u32 = 16;
/// Most processes that are looked at to find who holds an address.
const PROCESSES_MAX: usize = 4_096;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No address is configured.
    #[error("the DNS server has no address to listen on; set `dns.listen`, such as [\"127.0.0.1:5300\"]")]
    NoAddress,
    /// Somebody else listens there.
    #[error(
        "{address} ({transport}) is taken by {holder}; stop it or set another address under `{setting}` \
         (`ss -lnp 'sport = :{port}'` shows what listens)", port = .address.port()
    )]
    Taken {
        /// The address.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        transport: &'static str,
        /// Who, as far as this process may know.
        holder: String,
        /// The setting that names the address.
        setting: &'static str,
    },
    /// A port below 1024 without the privilege.
    #[error(
        "no permission to listen on {0}: ports below 1024 need CAP_NET_BIND_SERVICE; \
         use a higher port, start through systemd, or run `sysctl net.ipv4.ip_unprivileged_port_start={port}`",
        port = .0.port()
    )]
    NotPermitted(SocketAddr),
    /// The host does not have the address.
    #[error("this host does not have the address {0}; `ip address` shows those that it has")]
    NotHere(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// HTTP without TLS where others can reach it.
    #[error(
        "{0} is no loopback address: without TLS (`dns.https.plain`), DNS over HTTPS is for a proxy on this host \
         alone; set 127.0.0.1 or ::1 under `dns.https.listen`"
    )]
    PlainOutside(SocketAddr),
    /// TLS cannot begin.
    #[error("cannot set up TLS: {0}")]
    NoTls(#[source] rustls::Error),
    /// No thread could be started.
    #[error("cannot start a thread for DNS queries; is the limit of processes reached? ({0})")]
    NoThread(#[source] io::Error),
    /// No socket from which secondaries are told of new serials.
    #[error("cannot open a socket to tell secondaries of new serials: {0}")]
    NoNotifier(#[source] io::Error),
    /// Called outside a tokio runtime.
    #[error("the DNS server must be started inside a tokio runtime")]
    NoRuntime,
}

/// The sockets of one address.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub address: SocketAddr,
    pub tcp: TcpListener,
    pub udp: Vec<UdpSocket>,
}

/// Opens one address over TCP and, with `udp_threads` sockets, over UDP.
pub(crate) fn open(address: SocketAddr, udp_threads: usize) -> Result<Sockets, BindError> {
    let mut tries = if address.port() == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match open_both(address, udp_threads) {
            // The free port that TCP was given is taken over UDP.
            Err(BindError::Taken { .. }) if tries > 0 => {}
            opened => return opened,
        }
    }
}

fn open_both(address: SocketAddr, udp_threads: usize) -> Result<Sockets, BindError> {
    let tcp = open_tcp(address, "dns.listen")?;
    let address = tcp.local_addr().map_err(|source| BindError::Other { address, source })?;
    let open = || -> io::Result<Vec<UdpSocket>> {
        // SO_REUSEPORT would share the port with another server of the same user without a word, each getting
        // half of the queries. So the port must first be had alone.
        drop(udp_socket(address, false)?);
        (0..udp_threads.max(1)).map(|_| udp_socket(address, true)).collect()
    };
    let udp = open().map_err(|error| explain(address, "UDP", "dns.listen", error))?;
    Ok(Sockets { address, tcp, udp })
}

/// Opens one address over TCP; `setting` is what names it. Answers leave from the address that was connected to, so
/// a wildcard is as good as any.
pub(crate) fn open_tcp(address: SocketAddr, setting: &'static str) -> Result<TcpListener, BindError> {
    tcp_listener(address).map_err(|error| explain(address, "TCP", setting, error))
}

fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier run that linger in TIME_WAIT do not keep the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn udp_socket(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // `::` is not IPv4 too: whoever wants both lists both, and each client has one form of address everywhere.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(shared)?;
    // Best effort: with less, a burst loses some queries or answers, and their clients ask again.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
    // Best effort: without it, some clients of a kernel that was lied to have to ask again over TCP.
    let _ = ignore_path_mtu(&socket, address.is_ipv6());
    if address.ip().is_unspecified() {
        tell_addresses(&socket, address.is_ipv6())?;
    }
    socket.set_read_timeout(Some(Duration::from_millis(LOOK_MS)))?;
    socket.set_write_timeout(Some(Duration::from_millis(SEND_WAIT_MS)))?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn explain(
    address: SocketAddr,
    transport: &'static str,
    setting: &'static str,
    source: io::Error,
) -> BindError {
    let kind = source.kind();
    if kind == io::ErrorKind::AddrInUse {
        let holder = holder(address, transport).map_or_else(
            || "another process, perhaps a second reveille or the host's own resolver".to_owned(),
            |holder| holder.to_string(),
        );
        BindError::Taken { address, transport, holder, setting }
    } else if kind == io::ErrorKind::PermissionDenied {
        BindError::NotPermitted(address)
    } else if kind == io::ErrorKind::AddrNotAvailable {
        BindError::NotHere(address)
    } else {
        BindError::Other { address, source }
    }
}

/// A process that holds an address.
struct Holder {
    command: String,
    pid: u32,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.command, self.pid)
    }
}

/// Who holds the port on that address or on the wildcard, or, if that is the wildcard, on any address: the socket's inode from /proc/net, then the process
/// that has it open. `None` if it is another user's process or anything cannot be read.
fn holder(address: SocketAddr, transport: &str) -> Option<Holder> {
    let table = format!("/proc/net/{}{}", transport.to_lowercase(), if address.is_ipv6() { "6" } else { "" });
    let port = format!(":{:04X}", address.port());
    let link = fs::read_to_string(table).ok()?.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        let inode = fields.nth(7)?;
        let (host, _) = local.split_once(':')?;
        let everywhere = address.ip().is_unspecified() || host.bytes().all(|digit| digit == b'0');
        let here = everywhere || host.eq_ignore_ascii_case(&proc_host(address));
        (local.ends_with(&port) && here && inode != "0").then(|| format!("socket:[{inode}]"))
    })?;
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((entry.path(), pid))
    });
    processes.take(PROCESSES_MAX).find_map(|(path, pid)| {
        let mut open = fs::read_dir(path.join("fd")).ok()?;
        let holds = open.any(|fd| {
            fd.ok()
                .and_then(|fd| fs::read_link(fd.path()).ok())
                .is_some_and(|target| target.as_os_str() == link.as_str())
        });
        let command = fs::read_to_string(path.join("comm")).ok()?.trim().to_owned();
        holds.then_some(Holder { command, pid })
    })
}

/// The address as /proc/net writes it: each 32-bit word in the host's byte order.
fn proc_host(address: SocketAddr) -> String {
    let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
    match address {
        SocketAddr::V4(address) => word(address.ip().octets()),
        SocketAddr::V6(address) => {
            let octets = address.ip().octets();
            let (words, _) = octets.as_chunks::<4>();
            words.iter().map(|&bytes| word(bytes)).collect()
        }
    }
}
