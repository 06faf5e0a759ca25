//! How the daemon itself reaches a guest: over its link, or past the gate of its tap device.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use reveille_core::model::DomainName;
use reveille_net::guest::{ConnectError, Link};
use reveille_net::tap::Taps;
use tokio::io::{AsyncRead, AsyncWrite};

use super::ready::NotReady;

/// A stream to a guest's port.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The way to one guest.
#[async_trait]
pub trait Cable: Send + Sync {
    /// Connects to a port. There is no time limit.
    ///
    /// # Errors
    /// The guest refuses, or is out of reach.
    async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, NotReady>;
}

/// Its network is a stream that the daemon has the other end of.
pub struct LinkCable(pub Arc<Link>);

#[async_trait]
impl Cable for LinkCable {
    async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, NotReady> {
        match self.0.connect(port).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(ConnectError::Refused) => Err(NotReady::Refused { port }),
            Err(error @ (ConnectError::LinkClosed | ConnectError::TooMany)) => {
                Err(NotReady::Unreachable { detail: error.to_string() })
            }
        }
    }
}

/// It is behind a tap device.
pub struct TapCable(pub Taps, pub DomainName);

#[async_trait]
impl Cable for TapCable {
    async fn connect(&self, port: u16) -> Result<Box<dyn Stream>, NotReady> {
        match self.0.look(&self.1, port).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(NotReady::Refused { port }),
            Err(error) => Err(NotReady::Unreachable { detail: error.to_string() }),
        }
    }
}
