//! Questions over UDP.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use super::common::{WAIT_MAX, name};

/// A question for the address of a name.
pub fn question(id: u16, qname: &str) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    [&[high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], name(qname).as_wire(), &[0, 1, 0, 1]].concat()
}

/// The answer to a question, if there is one in that time.
pub fn asked(server: SocketAddr, qname: &str, longest: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(longest)).unwrap();
    socket.send(&question(7, qname)).ok()?;
    let mut answer = vec![0; 4_096];
    let length = socket.recv(&mut answer).ok()?;
    answer.truncate(length);
    Some(answer)
}

/// Asks for each name so many times, up to 32 at a time, until all are answered.
pub fn ask_many(server: SocketAddr, qnames: &[&str], times: u16) {
    const AT_ONCE: usize = 32;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let all: Vec<Vec<u8>> =
        qnames.iter().flat_map(|qname| (0..times).map(|id| question(id, qname))).collect();
    let mut answer = [0; 4_096];
    let mut under_way = 0;
    for question in &all {
        socket.send(question).unwrap();
        under_way += 1;
        if under_way == AT_ONCE {
            socket.recv(&mut answer).unwrap();
            under_way -= 1;
        }
    }
    for _ in 0..under_way {
        socket.recv(&mut answer).unwrap();
    }
}
