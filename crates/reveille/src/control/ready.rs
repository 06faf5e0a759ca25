//! Readiness: the service's own port answers (W3).
//!
//! The check goes over the guest's cable, so a TCP check passes exactly when the guest has completed the
//! handshake, and an HTTP check when it has answered.

use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use reveille_core::model::ReadyCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::cable::{Cable, Stream};

/// Longest time in which a service may end a checking connection in order.
const PARTING_MAX: Duration = Duration::from_secs(1);
/// Bytes of a service's greeting that are read, and dropped, at once.
const PARTING_BYTES_MAX: usize = 1_024;

/// Why a check did not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The guest said no: nobody listens on the port.
    #[error("the guest refused a connection to port {port}")]
    Refused {
        /// The port.
        port: u16,
    },
    /// The link broke, or the guest hung up.
    #[error("the guest cannot be reached: {detail}")]
    Unreachable {
        /// What happened.
        detail: String,
    },
    /// No answer within the time of the check.
    #[error("port {port} did not answer within {waited_ms} ms")]
    Silent {
        /// The port.
        port: u16,
        /// The time of the check.
        waited_ms: u64,
    },
    /// The answer is an error of the service.
    #[error("GET {path} on port {port} was answered with status {status}")]
    Status {
        /// The port.
        port: u16,
        /// The path.
        path: String,
        /// The HTTP status.
        status: u16,
    },
}

/// Checks once, for at most `limit`.
///
/// # Errors
/// What was seen instead of an answer.
pub async fn check(cable: &dyn Cable, check: &ReadyCheck, limit: Duration) -> Result<(), NotReady> {
    let port = match check {
        ReadyCheck::Running => return Ok(()),
        ReadyCheck::Tcp { port } | ReadyCheck::Http { port, .. } => *port,
    };
    let answered = async {
        let stream = cable.connect(port).await?;
        match check {
            ReadyCheck::Running | ReadyCheck::Tcp { .. } => {
                part(stream);
                Ok(())
            }
            ReadyCheck::Http { path, .. } => match get(stream, path).await? {
                ..500 => Ok(()),
                status => Err(NotReady::Status { port, path: path.clone(), status }),
            },
        }
    };
    timeout(limit, answered).await.unwrap_or_else(|_| Err(silent(port, limit)))
}

/// The status with which a GET is answered, within `limit`.
///
/// # Errors
/// What was seen instead of an answer.
pub async fn status(cable: &dyn Cable, port: u16, path: &str, limit: Duration) -> Result<u16, NotReady> {
    let answered = async { get(cable.connect(port).await?, path).await };
    timeout(limit, answered).await.unwrap_or_else(|_| Err(silent(port, limit)))
}

fn silent(port: u16, limit: Duration) -> NotReady {
    NotReady::Silent { port, waited_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
}

/// Ends a connection over which nothing was said as a client would, by FIN: servers log a reset as an error.
pub fn part(mut stream: Box<dyn Stream>) {
    tokio::spawn(async move {
        let ended = async {
            let mut said = [0; PARTING_BYTES_MAX];
            stream.shutdown().await?;
            while stream.read(&mut said).await? > 0 {}
            std::io::Result::Ok(())
        };
        // Whatever comes of it, the connection is gone afterwards.
        let _ = timeout(PARTING_MAX, ended).await;
    });
}

async fn get(stream: Box<dyn Stream>, path: &str) -> Result<u16, NotReady> {
    let unreachable = |error: hyper::Error| NotReady::Unreachable { detail: error.to_string() };
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(unreachable)?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, "localhost")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| NotReady::Unreachable { detail: error.to_string() })?;
    let answer = sender.send_request(request).await;
    connection.abort();
    Ok(answer.map_err(unreachable)?.status().as_u16())
}
