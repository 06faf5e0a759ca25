//! DNS over HTTPS (RFC 8484): HTTP/2 and 1.1, inside TLS or from a proxy on this host.
//!
//! A connection ends when no request has come for a while, whatever else is sent on it; hyper sees to the limits
//! of heads, streams and windows.

mod forwarded;
mod freshness;
mod linger;
mod request;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};

use crate::connections::{Next, Shared};
use crate::hold::stopped;
use crate::places::Seat;
use crate::respond::{Origin, Transport};
use crate::tally::bump;
use linger::Linger;
use request::{Refusal, Source};

/// Longest time without a request under way until a connection is closed, if nobody else needs its place.
const IDLE_MS_MAX: u64 = 20_000;
/// Longest wait for a client to take what is its own at the end of a connection.
const CLOSE_MS_MAX: u64 = 2_000;
/// Longest wait for the whole body of a request.
const BODY_MS_MAX: u64 = 5_000;
/// Largest body: the longest DNS message.
const BODY_BYTES_MAX: usize = 65_535;
/// Longest body that is read to its end before it is refused, and most that is read of what else was refused.
const DISCARDED_BYTES_MAX: usize = 262_144;
/// Largest head of a request.
const HEAD_BYTES_MAX: u16 = 16_384;
/// Most headers of a request over HTTP/1.1.
const HEADERS_MAX: usize = 64;
/// Most requests of one connection at a time over HTTP/2, so also most that are held; RFC 9113 §6.5.2 advises no
/// fewer.
const STREAMS_MAX: u32 = 100;
/// Bytes of bodies that a client may send ahead: on a stream, on a connection.
const WINDOW_BYTES: (u32, u32) = (65_535, 262_144);
/// Bytes of an answer that wait for a stream's window.
const SEND_BYTES_MAX: usize = 65_536;

/// Serves a connection: HTTP/2 or 1.1, as its first bytes say. `is_proxy`: it is from a proxy on this host.
pub(crate) async fn converse<S>(
    stream: S,
    peer: SocketAddr,
    is_proxy: bool,
    shared: &Arc<Shared>,
    seat: Arc<Seat>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let visit = Visit::new(peer, is_proxy, shared, seat);
    let asked = Arc::clone(&visit);
    let service = service_fn(move |request| Arc::clone(&asked).exchange(request));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(IDLE_MS_MAX))
        .max_buf_size(HEAD_BYTES_MAX.into())
        .max_headers(HEADERS_MAX);
    let (stream_window, connection_window) = WINDOW_BYTES;
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX.into())
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_send_buf_size(SEND_BYTES_MAX);
    let stream = Linger::new(stream, DISCARDED_BYTES_MAX, Duration::from_millis(CLOSE_MS_MAX));
    visit.watch(builder.serve_connection(TokioIo::new(stream), service)).await;
}

/// One connection.
struct Visit {
    peer: SocketAddr,
    /// The peer is a proxy; who asks stands in what it adds to the head.
    is_proxy: bool,
    shared: Arc<Shared>,
    begun: Instant,
    /// Requests. The place may be lost while there are none.
    under_way: Mutex<usize>,
    seat: Arc<Seat>,
    /// When the last request ended, in milliseconds since `begun`.
    ended_ms: AtomicU64,
}

/// A request that is under way until this is dropped.
struct UnderWay(Arc<Visit>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let elapsed_ms = self.0.begun.elapsed().as_millis();
        self.0.ended_ms.store(u64::try_from(elapsed_ms).unwrap_or(u64::MAX), Relaxed);
        let mut under_way = self.0.under_way();
        *under_way -= 1;
        if *under_way == 0 {
            self.0.seat.rest();
        }
    }
}

impl Visit {
    fn new(peer: SocketAddr, is_proxy: bool, shared: &Arc<Shared>, seat: Arc<Seat>) -> Arc<Self> {
        let (shared, begun) = (Arc::clone(shared), Instant::now());
        let (under_way, ended_ms) = (Mutex::default(), AtomicU64::new(0));
        seat.rest();
        Arc::new(Self { peer, is_proxy, shared, begun, under_way, seat, ended_ms })
    }

    fn under_way(&self) -> MutexGuard<'_, usize> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a connection until its client is done or idle, or the server stops.
    async fn watch(&self, connection: impl GracefulConnection) {
        let mut stop = self.shared.hold.stop.clone();
        let mut stopping = pin!(stopped(&mut stop));
        let mut connection = pin!(connection);
        let mut displaced = pin!(self.seat.lost());
        let mut alarm = pin!(sleep_until(self.idle_until()));
        let close = Duration::from_millis(CLOSE_MS_MAX);
        let mut closing = false;
        loop {
            tokio::select! {
                // How it ended is the client's affair.
                _ = &mut connection => return,
                () = &mut stopping, if !closing => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                    alarm.as_mut().reset(Instant::now() + close);
                }
                () = &mut displaced => {
                    if !closing {
                        bump(&self.shared.tally.connections_timed_out);
                    }
                    connection.as_mut().graceful_shutdown();
                    // The place has another connection already: what cannot be sent at once is not.
                    let _ = timeout(Duration::ZERO, &mut connection).await;
                    return;
                }
                () = &mut alarm => {
                    if closing {
                        return;
                    }
                    let until = self.idle_until();
                    if Instant::now() < until {
                        alarm.as_mut().reset(until);
                        continue;
                    }
                    bump(&self.shared.tally.connections_timed_out);
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                    alarm.as_mut().reset(Instant::now() + close);
                }
            }
        }
    }

    /// When the connection is to be closed unless another request comes.
    fn idle_until(&self) -> Instant {
        let patience = Duration::from_millis(self.shared.places.patience_ms(IDLE_MS_MAX));
        if *self.under_way() > 0 {
            return Instant::now() + patience;
        }
        self.begun + Duration::from_millis(self.ended_ms.load(Relaxed)) + patience
    }

    async fn exchange(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        {
            let mut under_way = self.under_way();
            *under_way += 1;
            // Should the place be lost just now, nobody hears the answer.
            self.seat.work();
        }
        let under_way = UnderWay(self);
        let answer = under_way.0.answer(request).await;
        Ok(answer.unwrap_or_else(|refusal| {
            bump(&under_way.0.shared.tally.requests_refused);
            refusal.response()
        }))
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refusal> {
        let (head, body) = request.into_parts();
        let source = match request::source(&head) {
            Ok(source) => source,
            Err(refusal) => {
                // A body that is left unread has its stream reset over HTTP/2, which may take the answer away.
                let _ = whole(body).await;
                return Err(refusal);
            }
        };
        let message = match source {
            Source::Address(message) => message,
            Source::Body => whole(body).await?,
        };
        let asker =
            if self.is_proxy { SocketAddr::new(forwarded::client(&head.headers), 0) } else { self.peer };
        let answer = self.ask(&message, asker).await.ok_or(Refusal::NoQuestion)?;
        let mut response = Response::new(Full::new(Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(request::MEDIA_TYPE));
        headers.insert(CACHE_CONTROL, freshness::cache_control(&answer));
        *response.body_mut() = Full::new(answer.into());
        Ok(response)
    }

    /// The answer to a message, which may have to wait; `None` is silence.
    async fn ask(&self, message: &[u8], asker: SocketAddr) -> Option<Vec<u8>> {
        let mut answer = Vec::with_capacity(512);
        let from = Origin::new(asker, Transport::Https);
        let answered = self.shared.now(|at| self.shared.answer(at, message, &from, &mut answer));
        match answered.next {
            // A transfer is refused here: what was written says so.
            Next::Send | Next::Transfer(..) => {}
            Next::Later(waiting) => answer = self.shared.hold.clone().bring(waiting).await,
        }
        (!answer.is_empty()).then_some(answer)
    }
}

/// All of a body, if it is not too long and comes in time.
async fn whole(body: Incoming) -> Result<Vec<u8>, Refusal> {
    // Said in the head already: whoever waits to be told to go on (100-continue) is spared sending it.
    if body.size_hint().lower() > u64::try_from(DISCARDED_BYTES_MAX).unwrap_or(u64::MAX) {
        return Err(Refusal::TooLarge);
    }
    let read = timeout(Duration::from_millis(BODY_MS_MAX), read_to_end(body));
    read.await.unwrap_or(Err(Refusal::TooSlow))
}

/// A body that is a little too long is read to its end all the same, so that its sender takes the answer.
async fn read_to_end(mut body: Incoming) -> Result<Vec<u8>, Refusal> {
    let (mut message, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Refusal::CutShort)?.into_data() else { continue };
        length += piece.len();
        if length > DISCARDED_BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        if length <= BODY_BYTES_MAX {
            message.extend_from_slice(&piece);
        }
    }
    if length > BODY_BYTES_MAX { Err(Refusal::TooLarge) } else { Ok(message) }
}

#[cfg(test)]
mod tests;
