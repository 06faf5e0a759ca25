//! What every request passes before a route sees it: host, origin, content type, token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::to_bytes;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use reveille_core::model::Timestamp;

use crate::access::{Access, Scope, Token};
use crate::problem::{PROBLEM_JSON, Problem};
use crate::request_log::LOG_TYPE;
use crate::routes::{Api, LOGS_PATH};

/// Longest text of a refused request that is taken over into its problem.
const REFUSAL_BYTES_MAX: usize = 4_096;
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Headers that tell that a proxy stands between, so that the peer's address is not the caller's.
const PROXY_HEADERS: [HeaderName; 3] =
    [header::FORWARDED, HeaderName::from_static("x-forwarded-for"), HeaderName::from_static("x-real-ip")];

/// The other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Refuses requests that a foreign web page could have made, bodies that are no JSON, and callers without right.
pub async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    match admit(&api.access, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Makes every error a problem, and every answer one that nobody stores or reinterprets.
pub async fn polish(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let is_problem = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == PROBLEM_JSON);
    if is_error && !is_problem {
        let allow = response.headers_mut().remove(header::ALLOW);
        let text = to_bytes(response.into_body(), REFUSAL_BYTES_MAX).await.unwrap_or_default();
        let detail = String::from_utf8_lossy(&text);
        response = Problem::of_status(status, &detail).into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn admit(access: &Access, request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    check_host(access, request.uri(), headers)?;
    check_origin(headers)?;
    check_content_type(request)?;
    check_token(access, request)
}

/// Against DNS rebinding: see [`Access::knows_host`].
fn check_host(access: &Access, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // A request in absolute form is for the host of its URI (RFC 9112 §3.2.2).
    let named = uri.authority().map_or(named, |authority| Some(authority.as_str()));
    let host = named.and_then(|named| named.parse::<axum::http::uri::Authority>().ok());
    match host {
        Some(host) if access.knows_host(host.host()) => Ok(()),
        Some(host) => Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "unknown-host",
            "Unknown host",
            format!("the API is not called {}; use its address, or add the name to `api.hosts`", host.host()),
        )),
        None => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "no-host",
            "No host",
            "the Host header is missing or no host",
        )),
    }
}

/// Against requests that a page of another site makes in the browser of somebody who may call the API.
fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(&header::HOST).unwrap_or_default();
    let foreign_origin = text(&header::ORIGIN).is_some_and(|origin| {
        let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(host))
    });
    let foreign_site = text(&SEC_FETCH_SITE).is_some_and(|site| !matches!(site, "same-origin" | "none"));
    if foreign_origin || foreign_site {
        let detail = "this request was made by a page of another site";
        return Err(Problem::new(StatusCode::FORBIDDEN, "cross-site", "Cross-site request", detail));
    }
    Ok(())
}

/// A form of a foreign page can post anything but JSON, of one value or of lines, without being asked first.
fn check_content_type(request: &Request) -> Result<(), Problem> {
    let expected = if path_of(request) == LOGS_PATH { LOG_TYPE } else { "application/json" };
    let headers = request.headers();
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
    let is_json = kind.is_some_and(|kind| {
        let essence = kind.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case(expected)
    });
    if (has_body || kind.is_some()) && !is_json {
        let detail = format!("a body must have the content type {expected}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", "Not JSON", detail));
    }
    Ok(())
}

fn check_token(access: &Access, request: &Request) -> Result<(), Problem> {
    let needed = needed_scope(request.method(), path_of(request));
    let Some(value) = request.headers().get(header::AUTHORIZATION) else {
        let peer = request.extensions().get::<Peer>();
        let proxied = PROXY_HEADERS.iter().any(|name| request.headers().contains_key(name));
        let has = peer.filter(|_| !proxied).and_then(|peer| access.anonymous_scope(peer.0.ip()));
        return match has {
            Some(has) if has >= needed => Ok(()),
            Some(_) | None => Err(Problem::no_token(needed, "no token was given")),
        };
    };
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") { token.trim().parse::<Token>().ok() } else { None }
    });
    match token.and_then(|token| access.scope_of(token.hash(), wall_clock())) {
        Some(has) if has >= needed => Ok(()),
        Some(has) => Err(Problem::scope_too_small(has, needed)),
        // Never treated as if none was given: a script with a stale token should learn of it.
        None => Err(Problem::no_token(needed, "the token is not valid, or not any more")),
    }
}

/// The path of the route, with its parameters' names.
fn path_of(request: &Request) -> &str {
    request.extensions().get::<MatchedPath>().map_or("", |path| path.as_str())
}

/// What a route needs. A route that is not listed needs the most.
fn needed_scope(method: &Method, path: &str) -> Scope {
    let verbs = [
        "/v1/services/{name}/wake",
        "/v1/services/{name}/hibernate",
        "/v1/services/{name}/terminate",
        "/v1/services/{name}/versions/{number}/verify",
        LOGS_PATH,
    ];
    // They tell of people.
    if path.starts_with("/v1/demand/") {
        return Scope::Operate;
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        Scope::Read
    } else if *method == Method::POST && verbs.contains(&path) {
        Scope::Operate
    } else {
        Scope::Admin
    }
}

pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
