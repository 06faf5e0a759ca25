//! One signed request and its answer: over UDP if it is small, over TCP if it is not, or if UDP brings nothing.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::wire;
use crate::tsig::{AnswerFault, Key, Keyring};

/// Largest request that goes over UDP, signature included: it passes every network unfragmented.
const UDP_BYTES_MAX: usize = 1_232;
/// Largest answer that is read from a datagram.
const ANSWER_BYTES_MAX: usize = 4_096;
/// Wait for the answer to a datagram.
const UDP_MS_MAX: u64 = 2_000;
/// Wait for a whole exchange over TCP. Other servers make an update durable before they answer.
const TCP_MS_MAX: u64 = 10_000;

/// Whom to ask, and how to prove who asks.
#[derive(Clone)]
pub(super) struct Peer {
    pub server: SocketAddr,
    pub keyring: Keyring,
    pub key: Key,
}

/// What a request brought.
pub(super) struct Asked {
    /// The response code and the whole answer, its signature verified; or one sentence why there is none.
    pub answer: Result<(u8, Vec<u8>), String>,
    /// A datagram with the request was not answered and may still arrive.
    pub lingers: bool,
}

enum Fault {
    /// Nothing came, or nothing can be sent.
    Io(io::Error),
    /// What came proves nothing, or says why it refuses.
    Unproved(AnswerFault),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Peer {
    /// Asks. `compose` makes the message for an ID; each try has its own.
    pub async fn ask(&self, compose: impl Fn(u16) -> Vec<u8>) -> Asked {
        let mut lingers = false;
        let (request, exchange) = self.sign(&compose);
        if request.len() <= UDP_BYTES_MAX {
            match self.over_udp(&request, exchange).await {
                Ok((rcode, answer)) if !wire::is_truncated(&answer) => {
                    return Asked { answer: Ok((rcode, answer)), lingers };
                }
                Ok(_) => {}
                // An error that was sent without proof may be forged, and the datagram may not have arrived yet.
                Err(fault @ Fault::Unproved(_)) => {
                    return Asked { answer: Err(self.sentence(fault)), lingers: true };
                }
                Err(Fault::Io(error)) => lingers = error.kind() == io::ErrorKind::TimedOut,
            }
        }
        let (request, exchange) = self.sign(&compose);
        let limit = Duration::from_millis(TCP_MS_MAX);
        let answer = match timeout(limit, self.over_tcp(&request, exchange)).await {
            Ok(answer) => answer.map_err(|fault| self.sentence(fault)),
            Err(_) => Err(self.sentence(Fault::Io(io::ErrorKind::TimedOut.into()))),
        };
        Asked { answer, lingers }
    }

    fn sign(&self, compose: impl Fn(u16) -> Vec<u8>) -> (Vec<u8>, crate::tsig::Exchange) {
        let mut id = [0; 2];
        // Without random numbers the signature still tells true answers from others.
        let _ = SystemRandom::new().fill(&mut id);
        let mut request = compose(u16::from_be_bytes(id));
        // The secret may have changed under the same name.
        let key = self.keyring.key(self.key.name());
        let exchange = self.keyring.sign_request(key.as_ref().unwrap_or(&self.key), &mut request);
        (request, exchange)
    }

    async fn over_udp(
        &self,
        request: &[u8],
        mut exchange: crate::tsig::Exchange,
    ) -> Result<(u8, Vec<u8>), Fault> {
        let any: SocketAddr = match self.server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.server).await?;
        socket.send(request).await?;
        let until = Instant::now() + Duration::from_millis(UDP_MS_MAX);
        let mut unproved = None;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let received = match timeout_at(until, socket.recv(&mut buffer)).await {
                Ok(received) => received?,
                // What proves nothing is not believed as long as something better may come (RFC 8945 §5.3.2); when
                // nothing does, it tells what is wrong.
                Err(_) => {
                    return Err(unproved.map_or(Fault::Io(io::ErrorKind::TimedOut.into()), Fault::Unproved));
                }
            };
            let answer = buffer.get(..received).unwrap_or_default();
            let Some(rcode) = wire::rcode(request, answer) else { continue };
            match exchange.check_answer(answer) {
                Ok(()) => return Ok((rcode, answer.to_vec())),
                Err(fault) => unproved = Some(fault),
            }
        }
    }

    async fn over_tcp(
        &self,
        request: &[u8],
        mut exchange: crate::tsig::Exchange,
    ) -> Result<(u8, Vec<u8>), Fault> {
        let mut stream = TcpStream::connect(self.server).await?;
        let length =
            u16::try_from(request.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        stream.write_all(&[&length.to_be_bytes()[..], request].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await?;
        let rcode = wire::rcode(request, &answer).ok_or(Fault::Unproved(AnswerFault::Malformed))?;
        exchange.check_answer(&answer).map_err(Fault::Unproved)?;
        Ok((rcode, answer))
    }

    /// One sentence, the same for the same fault.
    fn sentence(&self, fault: Fault) -> String {
        match fault {
            Fault::Io(error) if error.kind() == io::ErrorKind::TimedOut => "it does not answer".to_owned(),
            Fault::Io(error) => format!("it cannot be reached: {error}"),
            Fault::Unproved(fault) => format!("{fault}; check the key {} on both sides", self.key.name()),
        }
    }
}
