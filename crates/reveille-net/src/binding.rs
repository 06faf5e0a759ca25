//! What the relay is told about a service, its limits, and why it may not be able to listen.

use std::io;
use std::net::{IpAddr, SocketAddr};

use reveille_core::model::{DomainName, Policy, PortSpec};

use crate::tap::EgressPolicy;

/// Idle time after which the session of a UDP client ends; the least that RFC 4787 §4.3 (REQ-5) allows a NAT.
pub const UDP_IDLE_MS: u64 = 120_000;

/// Where a service is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The service.
    pub service: DomainName,
    /// The addresses that clients know.
    pub stable: Vec<IpAddr>,
    /// The ports.
    pub ports: Vec<PortSpec>,
    /// Most TCP clients that are held at a time, and no more than [`RelayLimits::service_connections_max`]; those
    /// above it are reset.
    pub held_clients_max: u32,
    /// Longest time, in milliseconds, that a client or a datagram waits for the guest.
    pub held_ms_max: u64,
    /// Idle time, in milliseconds, after which the session of a UDP client ends.
    pub udp_idle_ms: u64,
    /// Listen also on addresses that the host does not have (yet), as for an IPv6 prefix routed to it.
    pub freebind: bool,
    /// What the guest may reach by itself; in relay mode the driver sees to it.
    pub egress: EgressPolicy,
}

impl Binding {
    /// A binding with the limits of the default policy.
    pub fn new(service: DomainName, stable: Vec<IpAddr>, ports: Vec<PortSpec>) -> Self {
        let Policy { held_clients_max, held_ms_max, .. } = Policy::default();
        let (udp_idle_ms, egress) = (UDP_IDLE_MS, EgressPolicy::None);
        Self { service, stable, ports, held_clients_max, held_ms_max, udp_idle_ms, freebind: false, egress }
    }
}

/// Limits of the relay that do not depend on a service's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// Most TCP clients in all, held and open. Each takes a file descriptor, and one more while it is connected to a
    /// backend that is no guest.
    pub connections_max: u32,
    /// Most TCP clients of one service, held and open: no more than the link of a guest carries.
    pub service_connections_max: u32,
    /// Most UDP sessions of one service. Each takes a file descriptor if the backend is no guest.
    pub udp_sessions_max: u32,
    /// Most datagrams that are held for one client at one port.
    pub client_datagrams_max: u32,
    /// Most bytes of datagrams that are held for one client at one port.
    pub client_datagram_bytes_max: u64,
    /// Most datagrams that are held for one service.
    pub service_datagrams_max: u32,
    /// Most bytes of datagrams that are held for one service.
    pub service_datagram_bytes_max: u64,
    /// How long, in milliseconds, a connection stays open that the guest has closed on its side and on which the
    /// client is silent. Without it a client's forgotten socket would keep the guest awake for ever.
    pub half_closed_ms_max: u64,
}

impl RelayLimits {
    /// The default limits, with as many clients as leave half of the process's `open_files` to everything else.
    pub fn within(open_files: u64) -> Self {
        let limits = Self::default();
        let half = u32::try_from(open_files / 2).unwrap_or(u32::MAX);
        Self { connections_max: limits.connections_max.min(half), ..limits }
    }
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            service_connections_max: 1_024,
            udp_sessions_max: 1_024,
            client_datagrams_max: 64,
            client_datagram_bytes_max: 128 << 10,
            service_datagrams_max: 1_024,
            service_datagram_bytes_max: 1 << 20,
            half_closed_ms_max: 300_000,
        }
    }
}

/// Why a service is not listened for. Nothing of it is then.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It is bound already.
    #[error("the relay listens for {0} already; unbind it first")]
    AlreadyBound(DomainName),
    /// No address or no port was given.
    #[error("{0} has no stable address or no port to listen on")]
    Nothing(DomainName),
    /// An address that no single host can be reached at.
    #[error("{0} is no address of one host; give the service an address such as 127.64.0.1")]
    BadAddress(IpAddr),
    /// Somebody else listens there.
    #[error(
        "{port} of {at} is taken by another process (`ss -lnp 'sport = :{}'` shows which); end that process or \
         give the service another address",
        at.port()
    )]
    Taken {
        /// The address and port.
        at: SocketAddr,
        /// The port with its transport.
        port: PortSpec,
    },
    /// The host does not have the address.
    #[error(
        "{} is not an address of this host; add it (`ip address add {}/{} dev lo`) or choose one of 127.0.0.0/8",
        at.ip(), at.ip(), if at.is_ipv4() { 32 } else { 128 }
    )]
    NotConfigured {
        /// The address and port.
        at: SocketAddr,
    },
    /// The port needs a privilege.
    #[error(
        "no permission to listen on {port} of {at}; use a port from 1024 on, or grant CAP_NET_BIND_SERVICE \
         (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)"
    )]
    Forbidden {
        /// The address and port.
        at: SocketAddr,
        /// The port with its transport.
        port: PortSpec,
    },
    /// The process has too many files open.
    #[error(
        "no file descriptor is left to listen on {at}; raise the limit (`ulimit -n`, systemd: LimitNOFILE=)"
    )]
    OutOfFiles {
        /// The address and port.
        at: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {port} of {at}")]
    Io {
        /// The address and port.
        at: SocketAddr,
        /// The port with its transport.
        port: PortSpec,
        /// The cause.
        source: io::Error,
    },
}
