//! Requests to a guest's port, over its cable.

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;

use super::super::cable::Cable;

/// An answer.
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Bytes of its body that were read.
    pub bytes: u64,
    /// The first of them.
    pub kept: Vec<u8>,
}

/// Asks for `path`, reads at most `bytes_max` of the body, and keeps at most `kept_max` of it. There is no time limit.
///
/// # Errors
/// One sentence.
pub async fn get(
    cable: &dyn Cable,
    port: u16,
    path: &str,
    (bytes_max, kept_max): (u64, usize),
) -> Result<Answer, String> {
    let stream = cable.connect(port).await.map_err(|error| error.to_string())?;
    let said = |error: hyper::Error| format!("GET {path} on port {port}: {error}");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(said)?;
    // Ended with this future, whenever that is.
    let _connection = Ends(tokio::spawn(connection));
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, "localhost")
        .header(hyper::header::CONNECTION, "close")
        .header(hyper::header::USER_AGENT, "reveille-warm-up")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("GET {path}: {error}"))?;
    let mut answer = sender.send_request(request).await.map_err(said)?;
    let (mut bytes, mut kept) = (0, Vec::new());
    while bytes < bytes_max {
        let Some(frame) = answer.frame().await else { break };
        if let Ok(data) = frame.map_err(said)?.into_data() {
            bytes += u64::try_from(data.len()).unwrap_or(u64::MAX);
            let room = kept_max.saturating_sub(kept.len()).min(data.len());
            kept.extend_from_slice(data.get(..room).unwrap_or_default());
        }
    }
    Ok(Answer { status: answer.status().as_u16(), bytes, kept })
}

/// Ends a task when it is dropped.
struct Ends<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Ends<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
