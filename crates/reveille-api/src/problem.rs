//! Errors as they travel: problem details (RFC 9457) with types that scripts may rely on.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use reveille_core::model::{DomainName, SpecFault};
use serde::{Deserialize, Serialize};

use crate::access::Scope;
use crate::control::ControlError;

/// Media type of a problem (RFC 9457 §3).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind, as a URI reference that does not change, such as `/problems/unknown-service`.
    #[serde(rename = "type", default)]
    pub kind: Box<str>,
    /// The kind in words.
    #[serde(default)]
    pub title: Box<str>,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// This case, as a sentence with the remedy.
    #[serde(default)]
    pub detail: Box<str>,
    /// Every fault of what was given.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub faults: Box<[SpecFault]>,
    /// Every fault of the files that were read, as sentences with their places.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub reasons: Box<[String]>,
    /// The services that an ambiguous name could mean.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub candidates: Box<[DomainName]>,
    /// Time after which trying again makes sense, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
}

impl Problem {
    /// A problem of the kind `/problems/{kind}`.
    pub fn new(status: StatusCode, kind: &str, title: &str, detail: impl Into<Box<str>>) -> Self {
        Self {
            kind: format!("/problems/{kind}").into(),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            faults: Box::default(),
            reasons: Box::default(),
            candidates: Box::default(),
            retry_ms: None,
        }
    }

    /// The problem of a status for which there is nothing more to say.
    pub(crate) fn of_status(status: StatusCode, detail: &str) -> Self {
        let (kind, title, default) = match status {
            StatusCode::NOT_FOUND => {
                ("no-such-path", "No such path", "the API has no such path; it begins with /v1")
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                ("method-not-allowed", "Method not allowed", "the path is there, but not for this method")
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                ("too-large", "Body too large", "the body is larger than the API takes")
            }
            _ if status.is_server_error() => {
                ("internal", "Internal error", "the daemon failed; its log says why")
            }
            _ => ("bad-request", "Bad request", "the request cannot be read"),
        };
        Self::new(status, kind, title, if detail.is_empty() { default } else { detail })
    }

    pub(crate) fn invalid(faults: Vec<SpecFault>) -> Self {
        let detail = ControlError::Invalid { faults: faults.clone() }.to_string();
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self { faults: faults.into(), ..Self::new(status, "invalid", "Invalid values", detail) }
    }

    pub(crate) fn no_token(needed: Scope, what: &str) -> Self {
        let detail = format!(
            "{what}: this needs a token of scope {needed}; the command line finds one by itself when it runs as \
             the daemon's user on its host, otherwise give it with --token-file or in REVEILLE_TOKEN"
        );
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "A token is needed", detail)
    }

    pub(crate) fn scope_too_small(has: Scope, needed: Scope) -> Self {
        let detail = format!("the token's scope is {has}, and this needs {needed}");
        Self::new(StatusCode::FORBIDDEN, "scope-too-small", "The token does not allow this", detail)
    }

    pub(crate) fn timed_out(limit_ms: u64) -> Self {
        let detail = format!("the daemon did not finish within {limit_ms} ms; what was begun goes on");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timed-out", "Timed out", detail)
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        let detail = error.to_string();
        let conflict = StatusCode::CONFLICT;
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        match error {
            ControlError::UnknownService { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown-service", "Unknown service", detail)
            }
            ControlError::UnknownZone { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown-zone", "Unknown zone", detail)
            }
            ControlError::UnknownVersion { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown-version", "Unknown version", detail)
            }
            ControlError::UnknownDemandProfile { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown-demand-profile", "No such profile", detail)
            }
            ControlError::NoDepot => Self::new(conflict, "no-depot", "No object store", detail),
            ControlError::AmbiguousName { candidates, .. } => {
                let candidates = candidates.into();
                Self { candidates, ..Self::new(conflict, "ambiguous-name", "Ambiguous name", detail) }
            }
            ControlError::Exists { .. } => Self::new(conflict, "exists", "Exists already", detail),
            ControlError::Busy { .. } => Self::new(conflict, "busy", "Busy", detail),
            ControlError::Refused { .. } => Self::new(conflict, "refused", "Not in this state", detail),
            ControlError::Invalid { faults } => Self::invalid(faults),
            ControlError::NotReloaded { reasons } => {
                let status = StatusCode::UNPROCESSABLE_ENTITY;
                Self {
                    reasons: reasons.into(),
                    ..Self::new(status, "not-reloaded", "The files have faults", detail)
                }
            }
            ControlError::GaveUp { retry_ms, .. } => {
                let problem = Self::new(unavailable, "gave-up", "Cannot be woken for now", detail);
                Self { retry_ms: Some(retry_ms), ..problem }
            }
            ControlError::Failed { .. } => Self::new(unavailable, "failed", "It failed", detail),
            ControlError::Unavailable { .. } => {
                Self::new(unavailable, "unavailable", "Not available now", detail)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // A struct of strings and numbers has no way to fail; an empty body would still have the right status.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"reveille\""));
        }
        if let Some(retry_ms) = self.retry_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_ms.div_ceil(1_000)));
        }
        response
    }
}
