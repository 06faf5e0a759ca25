//! The other end of the wire, for the command line: typed calls, errors as sentences.

mod demand;
mod versions;

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use reveille_core::model::DomainName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::access::Token;
use crate::control::{CloneRequest, Connections, RolloverStep, Wait};
use crate::events::Event;
use crate::problem::{PROBLEM_JSON, Problem};
use crate::request_log::{Coding, LOG_TYPE};
use crate::routes::{LOGS_PATH, REQUEST_MS_MAX, WAIT_MS_MAX};
use crate::time::Time;
use crate::types::{
    DnsReport, HostSummary, Page, ReloadReport, ServiceDetail, ServiceSummary, VerbReply, Wake, WhyReport,
    ZoneKeys, ZoneSummary,
};

/// Largest answer that is read.
pub const RESPONSE_BYTES_MAX: usize = 16 << 20;
/// Largest event of the stream.
const EVENT_BYTES_MAX: usize = 256 << 10;
/// Longest time until the daemon takes the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// What the daemon's own limits are exceeded by before the client gives up, so that the daemon's answer wins.
const GRACE_MS: u64 = 2_000;
/// Longest silence of the event stream; the daemon sends a comment more often.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);
const PORT_DEFAULT: u16 = 80;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not a URL that this client speaks to.
    #[error("`{url}` is no address of an API; write it as http://127.0.0.1:8053")]
    BadUrl {
        /// What was given.
        url: String,
    },
    /// Nobody listens there.
    #[error("no daemon answers at {url}; start one with `reveille serve`, or name another with --api")]
    Unreachable {
        /// The API's URL.
        url: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("the daemon at {url} did not answer within {limit_ms} ms")]
    TimedOut {
        /// The API's URL.
        url: String,
        /// The limit.
        limit_ms: u64,
    },
    /// The connection broke.
    #[error("the connection to the daemon at {url} broke: {source}")]
    Broken {
        /// The API's URL.
        url: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The daemon said no.
    #[error("{}", .0.detail)]
    Problem(Box<Problem>),
    /// Something else listens there.
    #[error("what answers at {url} is no Reveille, or one of another version: {detail}")]
    NotUnderstood {
        /// The API's URL.
        url: String,
        /// What was seen.
        detail: String,
    },
}

impl ClientError {
    /// The problem, if the daemon answered with one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            Self::BadUrl { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::NotUnderstood { .. } => None,
        }
    }
}

/// A daemon to speak to. Each call has a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    /// `http://host:port`, for messages.
    url: String,
    /// `host:port`.
    authority: String,
    host: String,
    port: u16,
    token: Option<Token>,
}

impl Client {
    /// A client of the API at `url` (`http://host:port`), without a token.
    ///
    /// # Errors
    /// If `url` is no such URL. TLS is not spoken yet.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadUrl { url: url.to_owned() };
        let parsed: axum::http::Uri = url.parse().map_err(|_| bad())?;
        let authority = parsed.authority().ok_or_else(bad)?;
        let plain = parsed.scheme_str() == Some("http")
            && matches!(parsed.path(), "" | "/")
            && parsed.query().is_none()
            && !authority.as_str().contains('@');
        if !plain || authority.host().is_empty() {
            return Err(bad());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(PORT_DEFAULT);
        let authority = authority.to_string();
        Ok(Self { url: format!("http://{authority}"), authority, host, port, token: None })
    }

    /// The same client with a token.
    #[must_use]
    pub fn with_token(self, token: Option<Token>) -> Self {
        Self { token, ..self }
    }

    /// The addresses that the URL stands for; by them the token file is found.
    ///
    /// # Errors
    /// If the host name is unknown.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, ClientError> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found = found.map_err(|source| ClientError::Unreachable { url: self.url.clone(), source })?;
        Ok(found.collect())
    }
}

// --- Calls -----------------------------------------------------------------------------------------------------

impl Client {
    /// All services, page by page.
    ///
    /// # Errors
    /// As every call here: see [`ClientError`].
    pub async fn services(&self) -> Result<Vec<ServiceSummary>, ClientError> {
        self.all("/v1/services").await
    }

    /// One service.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn service(&self, name: &DomainName) -> Result<ServiceDetail, ClientError> {
        self.call(Method::GET, &path_of(name, ""), None, REQUEST_MS_MAX).await
    }

    /// Adds a service: a [`reveille_core::model::ServiceSpec`], or JSON of one that leaves out what is as usual.
    ///
    /// # Errors
    /// See [`ClientError`]; a problem lists every fault.
    pub async fn add_service(&self, spec: &impl Serialize) -> Result<ServiceDetail, ClientError> {
        let body = serde_json::to_vec(spec).map_err(|error| self.not_understood(&error))?;
        self.call(Method::POST, "/v1/services", Some(body), REQUEST_MS_MAX).await
    }

    /// Clones a sleeping service.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn clone_service(
        &self,
        name: &DomainName,
        asked: &CloneRequest,
    ) -> Result<ServiceDetail, ClientError> {
        let body = serde_json::to_vec(asked).map_err(|error| self.not_understood(&error))?;
        self.call(Method::POST, &path_of(name, "/clone"), Some(body), REQUEST_MS_MAX).await
    }

    /// Has a service woken at a time; `None`: at no time.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wake_at(&self, name: &DomainName, at: Option<Time>) -> Result<VerbReply, ClientError> {
        let at = at.map_or_else(|| "never".to_owned(), |at| escaped(&at.to_string()));
        self.call(Method::POST, &path_of(name, &format!("/wake?at={at}")), None, REQUEST_MS_MAX).await
    }

    /// Removes a service.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn remove_service(&self, name: &DomainName) -> Result<(), ClientError> {
        self.bytes(Method::DELETE, &path_of(name, ""), None, REQUEST_MS_MAX).await.map(drop)
    }

    /// Wakes a service.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wake(&self, name: &DomainName, wait: Wait) -> Result<VerbReply, ClientError> {
        self.verb(&path_of(name, "/wake"), "", wait).await
    }

    /// Puts a service to sleep.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn hibernate(
        &self,
        name: &DomainName,
        connections: Connections,
        wait: Wait,
    ) -> Result<VerbReply, ClientError> {
        let force = match connections {
            Connections::Keep => "",
            Connections::Cut => "&force=true",
        };
        self.verb(&path_of(name, "/hibernate"), force, wait).await
    }

    /// Ends a service's guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn terminate(&self, name: &DomainName, wait: Wait) -> Result<VerbReply, ClientError> {
        self.verb(&path_of(name, "/terminate"), "", wait).await
    }

    /// The last decisions and wakes with their reasons.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn why(&self, name: &DomainName, limit: usize) -> Result<WhyReport, ClientError> {
        let path = path_of(name, &format!("/why?limit={limit}"));
        self.call(Method::GET, &path, None, REQUEST_MS_MAX).await
    }

    /// Wakes, newest first, from a cursor on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wakes(
        &self,
        name: &DomainName,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<Wake>, ClientError> {
        let cursor = cursor.map(|cursor| format!("&cursor={}", escaped(cursor))).unwrap_or_default();
        let path = path_of(name, &format!("/wakes?limit={limit}{cursor}"));
        self.call(Method::GET, &path, None, REQUEST_MS_MAX).await
    }

    /// Has the daemon read its config file again.
    ///
    /// # Errors
    /// See [`ClientError`]; a problem lists every fault, and nothing has changed then.
    pub async fn reload(&self) -> Result<ReloadReport, ClientError> {
        self.call(Method::POST, "/v1/reload", None, WAIT_MS_MAX).await
    }

    /// The daemon and its host.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn host(&self) -> Result<HostSummary, ClientError> {
        self.call(Method::GET, "/v1/host", None, REQUEST_MS_MAX).await
    }

    /// What the query room has counted and seen.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn dns(&self) -> Result<DnsReport, ClientError> {
        self.call(Method::GET, "/v1/dns", None, REQUEST_MS_MAX).await
    }

    /// All zones, page by page.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn zones(&self) -> Result<Vec<ZoneSummary>, ClientError> {
        self.all("/v1/zones").await
    }

    /// The keys of a signed zone.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn zone_keys(&self, zone: &DomainName) -> Result<ZoneKeys, ClientError> {
        let path = format!("/v1/zones/{}/keys", escaped(&zone.to_string()));
        self.call(Method::GET, &path, None, REQUEST_MS_MAX).await
    }

    /// Begins a rollover of the zone's key, or goes on with it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rollover(&self, zone: &DomainName, step: RolloverStep) -> Result<ZoneKeys, ClientError> {
        let seen = step == RolloverStep::DsSeen;
        let path = format!("/v1/zones/{}/rollover?ds_seen={seen}", escaped(&zone.to_string()));
        self.call(Method::POST, &path, None, REQUEST_MS_MAX).await
    }

    /// What happens from now on, of one service or of all.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn events(&self, service: Option<&DomainName>) -> Result<EventStream, ClientError> {
        let path = service.map_or("/v1/events".to_owned(), |name| {
            format!("/v1/events?service={}", escaped(&name.to_string()))
        });
        let response = self.timed(REQUEST_MS_MAX, self.send(Method::GET, &path, None)).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let is_problem = is_problem(&response);
            let body = self.timed(REQUEST_MS_MAX, self.collect(response)).await?;
            return Err(self.refusal(status, is_problem, &body));
        }
        Ok(EventStream { client: self.clone(), body: response.into_body(), buffer: Vec::new() })
    }

    /// Every item of a list.
    async fn all<T: DeserializeOwned>(&self, list: &str) -> Result<Vec<T>, ClientError> {
        let mut all = Vec::new();
        let mut path = format!("{list}?limit=500");
        loop {
            let page: Page<T> = self.call(Method::GET, &path, None, REQUEST_MS_MAX).await?;
            all.extend(page.items);
            match page.next_cursor {
                Some(cursor) => path = format!("{list}?limit=500&cursor={}", escaped(&cursor)),
                None => return Ok(all),
            }
        }
    }

    async fn verb(&self, path: &str, more: &str, wait: Wait) -> Result<VerbReply, ClientError> {
        let (word, limit_ms) = match wait {
            Wait::UntilAccepted => ("false", REQUEST_MS_MAX),
            Wait::UntilDone => ("true", WAIT_MS_MAX),
        };
        self.call(Method::POST, &format!("{path}?wait={word}{more}"), None, limit_ms).await
    }
}

// --- The wire --------------------------------------------------------------------------------------------------

impl Client {
    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit_ms: u64,
    ) -> Result<T, ClientError> {
        let bytes = self.bytes(method, path, body, limit_ms).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.not_understood(&error))
    }

    async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit_ms: u64,
    ) -> Result<Bytes, ClientError> {
        let whole = async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let is_problem = is_problem(&response);
            let body = self.collect(response).await?;
            if status.is_success() { Ok(body) } else { Err(self.refusal(status, is_problem, &body)) }
        };
        self.timed(limit_ms, whole).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |source| ClientError::Unreachable { url: self.url.clone(), source };
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(unreachable)?,
            Err(_) => return Err(unreachable(std::io::ErrorKind::TimedOut.into())),
        };
        // Only later answers without it.
        let _ = stream.set_nodelay(true);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.authority);
        if let Some(body) = &body {
            let is_log = path == LOGS_PATH;
            let kind = if is_log { LOG_TYPE } else { "application/json" };
            request = request.header(header::CONTENT_TYPE, kind);
            let coding = if is_log { Coding::of_content(body) } else { Coding::Identity };
            if coding != Coding::Identity {
                request = request.header(header::CONTENT_ENCODING, coding.word());
            }
        }
        if let Some(token) = &self.token {
            let mut value = header::HeaderValue::try_from(format!("Bearer {}", token.secret()))
                .map_err(|error| self.not_understood(&error))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(|error| self.not_understood(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        // Ends by itself when the answer was read or is dropped.
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), RESPONSE_BYTES_MAX);
        body.collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|source| ClientError::Broken { url: self.url.clone(), source })
    }

    async fn timed<T>(
        &self,
        limit_ms: u64,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let limit_ms = limit_ms + GRACE_MS;
        match tokio::time::timeout(Duration::from_millis(limit_ms), work).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::TimedOut { url: self.url.clone(), limit_ms }),
        }
    }

    fn refusal(&self, status: StatusCode, is_problem: bool, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) if is_problem && !problem.detail.is_empty() => {
                ClientError::Problem(Box::new(problem))
            }
            Ok(_) | Err(_) => self.not_understood(&format!("HTTP status {status}")),
        }
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken { url: self.url.clone(), source: source.into() }
    }

    fn not_understood(&self, detail: &impl ToString) -> ClientError {
        ClientError::NotUnderstood { url: self.url.clone(), detail: detail.to_string() }
    }
}

fn is_problem(response: &Response<Incoming>) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON)
}

fn path_of(name: &DomainName, more: &str) -> String {
    format!("/v1/services/{}{more}", escaped(&name.to_string()))
}

/// Percent-encodes all but unreserved characters (RFC 3986 §2.3).
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

// --- Events ----------------------------------------------------------------------------------------------------

/// The events of a daemon, until it stops.
pub struct EventStream {
    client: Client,
    body: Incoming,
    buffer: Vec<u8>,
}

impl EventStream {
    /// The next event; `None` when the daemon has stopped.
    ///
    /// # Errors
    /// If the connection breaks or stays silent for too long, or what comes is no event.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                if let Some(event) = self.read(&block)? {
                    return Ok(Some(event));
                }
            }
            if self.buffer.len() > EVENT_BYTES_MAX {
                return Err(self.client.not_understood(&"an event without end"));
            }
            let Ok(frame) = tokio::time::timeout(EVENT_TIMEOUT, self.body.frame()).await else {
                let limit_ms = u64::try_from(EVENT_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
                return Err(ClientError::TimedOut { url: self.client.url.clone(), limit_ms });
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| self.client.broken(error))?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// One block of the stream; comments, and events of a newer daemon, are passed over.
    fn read(&self, block: &[u8]) -> Result<Option<Event>, ClientError> {
        let text = std::str::from_utf8(block).map_err(|error| self.client.not_understood(&error))?;
        let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).collect();
        Ok(serde_json::from_str(&data.join("\n")).ok())
    }
}
