//! Connections: accepted up to a limit, timed, and let finish when the server stops.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use axum::routing::Router;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tower::ServiceExt;

use crate::access::Access;
use crate::control::Control;
use crate::guard::Peer;
use crate::places::{Place, Places};
use crate::routes::{Api, router};

/// Most connections, and so requests, at a time. One more takes the place of an idle one, or waits for such.
pub const CONNECTIONS_MAX: usize = 256;
/// Longest time for the head of a request, and between two requests of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Largest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Longest time that requests under way are waited for when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time that an answer may lie unread at the other end before its connection is closed, in ms.
const UNREAD_MS_MAX: u32 = 30_000;
/// Pause after an accept that failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error("the API cannot listen on {api}: another program, perhaps another Reveille, uses the port")]
    Taken {
        /// The address.
        api: SocketAddr,
    },
    /// Another reason.
    #[error("the API cannot listen on {api}: {source}")]
    Refused {
        /// The address.
        api: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on `api`.
///
/// # Errors
/// If the address is taken, not of this host, or not allowed.
pub async fn bind(api: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(api).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            BindError::Taken { api }
        } else {
            BindError::Refused { api, source }
        }
    })
}

/// Serves until `stop` resolves, then lets requests under way finish for a few seconds.
pub async fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    access: Arc<Access>,
    stop: impl Future<Output = ()> + Send,
) {
    let (stopping, is_stopping) = watch::channel(false);
    let api = Api {
        control,
        access,
        stopping: is_stopping,
        event_streams: AtomicUsize::new(0),
        logs: AtomicUsize::new(0),
    };
    let router = router(Arc::new(api));
    let places = Places::new(CONNECTIONS_MAX);
    let under_way = GracefulShutdown::new();
    let mut connections = tokio::task::JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Some((stream, peer, place)) => {
                connections.spawn(converse(stream, peer, router.clone(), under_way.watcher(), place));
            }
            None => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    // Nobody listens any more if no event stream is open.
    let _ = stopping.send(true);
    if tokio::time::timeout(STOP_TIMEOUT, under_way.shutdown()).await.is_err() {
        tracing::warn!("API requests under way were cut off");
    }
    connections.shutdown().await;
}

/// The next connection, once there is a place for it; `None` if accepting failed.
async fn accept(listener: &TcpListener, places: &Arc<Places>) -> Option<(TcpStream, SocketAddr, Arc<Place>)> {
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, places.take().await)),
        Err(error) => {
            tracing::warn!(%error, "the API cannot accept a connection");
            None
        }
    }
}

/// One connection, from its first request to its end.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    under_way: Watcher,
    place: Arc<Place>,
) {
    // Small answers must not wait for acknowledgements; without it they only come later.
    let _ = stream.set_nodelay(true);
    // Who asks and does not read would otherwise keep one of the places for good.
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNREAD_MS_MAX) {
        tracing::debug!(%error, "an API connection has no limit for unread answers");
    }
    let asked = Arc::clone(&place);
    let service = service_fn(move |request: Request<Incoming>| {
        respond(router.clone(), peer, Arc::clone(&asked), request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = under_way.watch(connection) => {
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "an API connection ended early");
            }
        }
        () = place.displaced() => tracing::debug!(%peer, "an idle API connection gave way to another"),
    }
}

async fn respond(
    router: Router,
    peer: SocketAddr,
    place: Arc<Place>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let Some(busy) = place.busy() else {
        // Nothing is done for who could not be told.
        return std::future::pending().await;
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    let response = router.oneshot(request).await?;
    tracing::debug!(%peer, %method, path, status = response.status().as_u16(), "API request");
    // Until the whole answer is on its way: it may be a stream of events.
    Ok(response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _until_dropped = &busy;
            error
        }))
    }))
}
