//! How the daemon itself reaches a guest: over its link, or past the gate of its tap device.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use reveille_core::model::DomainName;
use reveille_net::Activator;
use reveille_net::guest::{ConnectError, Link};
use reveille_net::tap::{GATEWAY, GATEWAY6, TapAddresses, Taps};
use reveille_vm::driver::{self, Tap, TapQueue};
use tokio::io::{AsyncRead, AsyncWrite};

use super::ready::NotReady;

/// A stream to a guest's port.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The way to one guest.
#[derive(Clone)]
pub enum Cable {
    /// Its network is a stream that the daemon has the other end of.
    Link(Arc<Link>),
    /// It is behind a tap device.
    Tap(Taps, DomainName),
}

impl Cable {
    /// Connects to a port. There is no time limit.
    ///
    /// # Errors
    /// The guest refuses, or is out of reach.
    pub async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, NotReady> {
        match self {
            Self::Link(link) => match link.connect(port).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(ConnectError::Refused) => Err(NotReady::Refused { port }),
                Err(error @ (ConnectError::LinkClosed | ConnectError::TooMany)) => {
                    Err(NotReady::Unreachable { detail: error.to_string() })
                }
            },
            Self::Tap(taps, service) => match taps.look(service, port).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    Err(NotReady::Refused { port })
                }
                Err(error) => Err(NotReady::Unreachable { detail: error.to_string() }),
            },
        }
    }
}

/// What the network card of a service's guest is plugged into.
pub fn plug(activator: &Activator, service: &DomainName, v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> driver::Link {
    match activator {
        Activator::Relay(_) => driver::Link::Stream,
        Activator::Tap(taps) => driver::Link::Tap(Tap {
            mac: TapAddresses { v4, v6 }.mac(),
            address: v4,
            gateway: GATEWAY,
            v6: v6.map(|address| (address, GATEWAY6)),
            queue: Arc::new(Queue { taps: taps.clone(), service: service.clone() }),
        }),
    }
}

/// A service's tap device, opened when a process is to have it.
struct Queue {
    taps: Taps,
    service: DomainName,
}

impl TapQueue for Queue {
    fn open(&self) -> io::Result<OwnedFd> {
        self.taps.queue(&self.service)
    }
}
