//! TLS under DNS (RFC 7858) and HTTPS (RFC 8484): handshakes within limits, with a [`Certificate`] that can be
//! replaced while connections are open.
//!
//! TLS 1.2 and 1.3 by rustls on ring. Sessions are resumed by tickets; their key changes every six hours and is
//! never stored, the one before is taken for as long again. There is no early data: it could be replayed.

mod certificate;
mod files;
mod own;
mod validity;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring::{Ticketer, default_provider};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use certificate::{About, Certificate, CertificateSource, Refreshed};
pub use files::CertificateError;

use crate::places::Places;
use crate::tally::{Tally, bump};

/// Longest handshake, from the first byte to the last.
const HANDSHAKE_MS_MAX: u64 = 5_000;
/// Most connections of one kind that are in their handshake at a time, and of one client: half of all, so that
/// half-open ones never keep out those that are through.
const HANDSHAKES_MAX: (usize, usize) = (512, 128);
/// Most bytes that wait inside the TLS layer to be encrypted or sent.
const WAITING_BYTES_MAX: usize = 32_768;
/// ALPN of DNS over TLS (RFC 7858 §7.1 in the registry of RFC 7301).
pub(crate) const ALPN_DOT: &[u8] = b"dot";
/// ALPN of HTTP/2.
pub(crate) const ALPN_H2: &[u8] = b"h2";
/// ALPN of HTTP/1.1.
pub(crate) const ALPN_HTTP1: &[u8] = b"http/1.1";

/// How connections of one kind get into TLS.
pub(crate) struct Handshakes {
    acceptor: TlsAcceptor,
    places: Arc<Places>,
}

impl Handshakes {
    /// With that certificate, offering these protocols, the best one first.
    ///
    /// # Errors
    /// If there are no random numbers for the key of the tickets.
    pub fn new(certificate: &Certificate, protocols: &[&[u8]]) -> Result<Self, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate.resolver());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        config.ticketer = Ticketer::new()?;
        let (total, per_client) = HANDSHAKES_MAX;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), places: Places::new(total, per_client) })
    }

    /// Takes a connection through the handshake; `None` if it fails, takes too long, or there are too many.
    pub async fn shake<S>(&self, stream: S, peer: SocketAddr, tally: &Tally) -> Option<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(_place) = self.places.take(peer.ip()) else {
            bump(&tally.handshakes_refused);
            return None;
        };
        let accept =
            self.acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(WAITING_BYTES_MAX)));
        let shaken = timeout(Duration::from_millis(HANDSHAKE_MS_MAX), accept).await;
        let stream = shaken.ok().and_then(Result::ok);
        if stream.is_none() {
            bump(&tally.handshakes_failed);
        }
        stream
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    use super::*;
    use crate::tally::Counts;

    #[tokio::test(start_paused = true)]
    async fn a_handshake_has_its_time_whatever_is_sent() {
        let dir = tempfile::TempDir::new().unwrap();
        let source = CertificateSource::SelfSigned { dir: dir.path().to_owned(), names: Vec::new() };
        let certificate = Certificate::open(source, SystemTime::now()).unwrap();
        let handshakes = Handshakes::new(&certificate, &[ALPN_DOT]).unwrap();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let tally = Tally::default();
        // The longest record, a byte a second.
        let trickle = [&[22, 3, 1, 0x40, 0][..], &[0; 100]].concat();
        for bytes in [&[][..], &trickle] {
            let (ours, mut theirs) = tokio::io::duplex(1_024);
            let begun = Instant::now();
            let client = async {
                for byte in bytes {
                    let _ = theirs.write_all(&[*byte]).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                shaken = handshakes.shake(ours, peer, &tally) => assert!(shaken.is_none()),
                () = client => {}
            }
            assert_eq!(begun.elapsed().as_millis(), HANDSHAKE_MS_MAX.into());
        }
        let mut counts = Counts::default();
        tally.add_to(&mut counts);
        assert_eq!((counts.handshakes_failed, counts.handshakes_refused), (2, 0));
    }
}
