//! One query of PostgreSQL over a connection of its own (protocol 3.0, simple query), for a database that trusts its
//! clients.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Version 3.0 of the protocol.
const PROTOCOL: u32 = 196_608;
/// Longest message that is read, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Connects as `postgres`, asks, and reads to the end of the answer. Gives the number of rows.
///
/// # Errors
/// If the connection breaks, the database refuses, or it takes longer than `limit`.
pub async fn query<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    text: &str,
    limit: Duration,
) -> io::Result<u64> {
    let asked = async {
        let mut start = PROTOCOL.to_be_bytes().to_vec();
        start.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        stream.write_all(&framed(None, &start)).await?;
        until_ready(&mut stream).await?;
        let text = [text.as_bytes(), b"\0"].concat();
        stream.write_all(&framed(Some(b'Q'), &text)).await?;
        let rows = until_ready(&mut stream).await?;
        stream.write_all(&framed(Some(b'X'), b"")).await?;
        Ok(rows)
    };
    timeout(limit, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn framed(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(body);
    message
}

/// Reads messages until the database waits for the next question.
async fn until_ready<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<u64> {
    let mut rows = 0;
    loop {
        let kind = stream.read_u8().await?;
        let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX).saturating_sub(4);
        if length > MESSAGE_BYTES_MAX {
            return Err(io::Error::other(format!("a message of {length} bytes")));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        match kind {
            b'Z' => return Ok(rows),
            b'D' => rows += 1,
            b'E' => {
                let said = String::from_utf8_lossy(&body).replace('\0', " ");
                return Err(io::Error::other(said.trim().to_owned()));
            }
            _ => {}
        }
    }
}
