//! The least that a server on these sockets can cost, to compare with.

use std::convert::Infallible;
use std::io;
use std::net::UdpSocket;

use super::batch::Batch;

/// Sends every datagram back with the header of an answer, in batches, without looking at it. Ends only on an error of
/// the socket.
///
/// # Errors
/// As of receiving from the socket.
pub fn echo(socket: &UdpSocket) -> io::Result<Infallible> {
    let mut batch = Batch::new(socket);
    loop {
        for index in 0..batch.receive(socket)? {
            let Some((query, out)) = batch.query(index) else { continue };
            let length = query.len().min(super::batch::ANSWER_BYTES_MAX);
            out[..length].copy_from_slice(&query[..length]);
            if length > 3 {
                (out[2], out[3]) = (0x84, 0);
            }
            batch.answer(index, length);
        }
        batch.send(socket);
    }
}
