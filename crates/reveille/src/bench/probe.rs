//! One HTTP request, timed to its first byte.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// An answer, and when its first byte came.
#[derive(Debug)]
pub struct Answer {
    /// When the first byte came.
    pub first_byte: Instant,
    /// All of it.
    pub text: String,
}

/// Asks for `path` and reads the answer to its end.
///
/// # Errors
/// If the connection fails, is closed without an answer, or takes longer than `limit`.
pub async fn get<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    path: &str,
    limit: Duration,
) -> io::Result<Answer> {
    let asked = async {
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        let mut buffer = [0; 4_096];
        let mut first_byte = None;
        while bytes.len() < ANSWER_BYTES_MAX {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            first_byte.get_or_insert_with(Instant::now);
            bytes.extend_from_slice(&buffer[..count]);
        }
        let first_byte = first_byte.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Answer { first_byte, text: String::from_utf8_lossy(&bytes).into_owned() })
    };
    timeout(limit, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

impl Answer {
    /// The value of a line `key: value`, where the page has one.
    pub fn line(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
    }
}
