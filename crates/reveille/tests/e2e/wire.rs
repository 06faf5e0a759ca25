//! What clients do: HTTP, TCP and UDP echo, DNS questions. Nothing is tried twice: what is lost fails the test.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};

use crate::small::PATIENCE;

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// One request on a connection of its own.
pub fn http(at: SocketAddr, method: &str, target: &str, token: Option<&str>) -> io::Result<Answer> {
    let mut stream = connect(at)?;
    let authorization = token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: {at}\r\n{authorization}Connection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    answer_of(&text).ok_or_else(|| io::Error::other(format!("half an answer: {text:?}")))
}

/// The whole answer, or nothing.
fn answer_of(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = length.is_none_or(|length| length == body.len());
    whole.then(|| Answer { status, body: body.to_owned() })
}

/// A connection on which nobody waits for ever.
pub fn connect(at: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends `bytes`, closes its half, and must get all of them back before the other half is closed.
pub fn echo_tcp(at: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let stream = connect(at)?;
    let mut back = Vec::with_capacity(bytes.len());
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            (&stream).write_all(bytes)?;
            stream.shutdown(Shutdown::Write)
        });
        let received = (&stream).read_to_end(&mut back);
        sender.join().unwrap().and(received)
    })?;
    if back == bytes {
        return Ok(());
    }
    Err(io::Error::other(format!("{} bytes went out and {} came back", bytes.len(), back.len())))
}

/// Sends one datagram and waits for the same back.
pub fn echo_udp(socket: &UdpSocket, at: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(bytes, at)?;
    let mut buffer = [0; 2_048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    if from == at && &buffer[..length] == bytes {
        return Ok(());
    }
    Err(io::Error::other(format!("{:?} came back from {from}", &buffer[..length])))
}

/// A UDP socket on this host.
pub fn udp() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// Asks for the address of `name` once, over UDP (RFC 1035 §4.1).
pub fn resolve(server: SocketAddr, name: &str) -> io::Result<IpAddr> {
    let mut question = vec![0x4d, 0x21, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = udp();
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&question, server)?;
    let mut reply = [0; 512];
    let (length, _) = socket.recv_from(&mut reply)?;
    let reply = &reply[..length];
    let answers = u16::from_be_bytes([reply[6], reply[7]]);
    // Name (compressed), type, class, TTL, length and the four bytes of the address follow the question.
    match reply.get(question.len()..question.len() + 16) {
        Some([.., a, b, c, d]) if answers == 1 && reply[3] & 15 == 0 => {
            Ok(Ipv4Addr::new(*a, *b, *c, *d).into())
        }
        _ => Err(io::Error::other(format!("no address in {reply:?}"))),
    }
}
