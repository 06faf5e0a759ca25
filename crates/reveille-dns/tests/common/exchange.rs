//! Asking a server so that silence is told without waiting for a time to pass.
//!
//! Behind each question goes a second one that any server answers; what has not come before that answer does not
//! come.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};

use super::WAIT_MAX;

/// ID of the question that goes behind; no question may have it.
pub const SENTINEL_ID: u16 = 0xffff;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Answer(Vec<u8>),
    Silence,
    /// The server ended the connection, with nothing before.
    Closed,
}

/// A client of one server, with one socket and one connection.
pub struct Client {
    address: SocketAddr,
    sentinel: Vec<u8>,
    udp: UdpSocket,
    tcp: Option<TcpStream>,
}

impl Client {
    /// `apex` is the name of a zone that the server has, in wire format.
    pub fn new(address: SocketAddr, apex: &[u8]) -> Self {
        let [high, low] = SENTINEL_ID.to_be_bytes();
        let mut sentinel = vec![high, low, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        sentinel.extend(apex);
        sentinel.extend([0, 6, 0, 1]);
        let udp = UdpSocket::bind((address.ip(), 0)).unwrap();
        udp.set_read_timeout(Some(WAIT_MAX)).unwrap();
        udp.connect(address).unwrap();
        Self { address, sentinel, udp, tcp: None }
    }

    /// Asks by a datagram.
    pub fn udp(&mut self, packet: &[u8]) -> Heard {
        self.udp.send(packet).unwrap();
        self.udp.send(&self.sentinel).unwrap();
        let mut heard = Heard::Silence;
        let mut buffer = vec![0; 65_535];
        loop {
            let length = self
                .udp
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{} after {packet:02x?}: {error}", self.address));
            let answer = &buffer[..length];
            if answer.starts_with(&self.sentinel[..2]) {
                return heard;
            }
            assert_eq!(heard, Heard::Silence, "two answers to {packet:02x?}");
            heard = Heard::Answer(answer.to_vec());
        }
    }

    /// Asks over a connection that is kept open.
    pub fn tcp(&mut self, packet: &[u8]) -> Heard {
        let mut stream = self.tcp.take().unwrap_or_else(|| self.connect());
        let both = [framed(packet), framed(&self.sentinel)].concat();
        let mut heard = Heard::Silence;
        let ended = |error: &std::io::Error| {
            matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            )
        };
        if let Err(error) = stream.write_all(&both) {
            assert!(ended(&error), "{} after {packet:02x?}: {error}", self.address);
            return Heard::Closed;
        }
        loop {
            // A server that has not turned off Nagle's algorithm sends the second answer when the first is
            // acknowledged.
            socket2::SockRef::from(&stream).set_tcp_quickack(true).unwrap();
            match read_framed(&mut stream) {
                Ok(answer) if answer.starts_with(&self.sentinel[..2]) => break,
                Ok(answer) => {
                    assert_eq!(heard, Heard::Silence, "two answers to {packet:02x?}");
                    heard = Heard::Answer(answer);
                }
                Err(error) => {
                    assert!(ended(&error), "{} after {packet:02x?}: {error}", self.address);
                    return if heard == Heard::Silence { Heard::Closed } else { heard };
                }
            }
        }
        self.tcp = Some(stream);
        heard
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

/// A message with its length before it (RFC 1035 §4.2.2).
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

pub fn read_framed(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}
