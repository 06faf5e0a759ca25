//! From the head of a request to where its question is, or to why there is none (RFC 8484 §4.1, §4.2.1).

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use crate::base64;

/// Where questions are answered.
const PATH: &str = "/dns-query";
/// What a DNS message is called (RFC 8484 §6).
pub(super) const MEDIA_TYPE: &str = "application/dns-message";

/// Where the question is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// In the address: here it is.
    Address(Vec<u8>),
    /// In the body.
    Body,
}

/// Why a request is not answered with a DNS message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Another path.
    NotFound,
    /// Neither GET nor POST.
    Method,
    /// The body is something else.
    MediaType,
    /// GET without `dns`.
    NoParameter,
    /// More than one `dns`.
    TwoParameters,
    /// `dns` is no base64url.
    BadParameter,
    /// Too short to be a question, or an answer.
    NoQuestion,
    /// The body is longer than any message.
    TooLarge,
    /// The body took too long.
    TooSlow,
    /// The body ended early.
    CutShort,
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoParameter
            | Self::TwoParameters
            | Self::BadParameter
            | Self::NoQuestion
            | Self::CutShort => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NotFound => "DNS over HTTPS is at /dns-query\n",
            Self::Method => "use GET with ?dns= or POST (RFC 8484)\n",
            Self::MediaType => "the body must be application/dns-message\n",
            Self::NoParameter => "the parameter dns is missing: a DNS message in base64url (RFC 8484)\n",
            Self::TwoParameters => "the parameter dns is there more than once\n",
            Self::BadParameter => "the parameter dns is not base64url without padding\n",
            Self::NoQuestion => "that is no DNS query\n",
            Self::TooLarge => "a DNS message has at most 65535 bytes\n",
            Self::TooSlow => "the body took too long\n",
            Self::CutShort => "the body ended early\n",
        }
    }

    /// What is sent instead.
    pub fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from_static(self.text().as_bytes())));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self == Self::Method {
            headers.insert(ALLOW, HeaderValue::from_static("GET, POST"));
        }
        response
    }
}

/// Where the question of a request is.
pub(super) fn source(head: &Parts) -> Result<Source, Refusal> {
    if head.uri.path() != PATH {
        return Err(Refusal::NotFound);
    }
    if head.method == Method::POST {
        let media_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        // Parameters of the type say nothing for this one.
        let media_type = media_type.and_then(|text| text.split(';').next()).map(str::trim);
        let is_dns = media_type.is_some_and(|text| text.eq_ignore_ascii_case(MEDIA_TYPE));
        return if is_dns { Ok(Source::Body) } else { Err(Refusal::MediaType) };
    }
    if head.method != Method::GET {
        return Err(Refusal::Method);
    }
    let parameters = head.uri.query().unwrap_or_default().split('&');
    let mut given = parameters.filter_map(|parameter| parameter.strip_prefix("dns="));
    let dns = given.next().ok_or(Refusal::NoParameter)?;
    // Caches and proxies on the way may have meant another one.
    if given.next().is_some() {
        return Err(Refusal::TwoParameters);
    }
    base64::decode_url(dns).map(Source::Address).ok_or(Refusal::BadParameter)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn asked(method: &str, uri: &str, media_type: Option<&str>) -> Result<Source, Refusal> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(media_type) = media_type {
            request = request.header(CONTENT_TYPE, media_type);
        }
        source(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn the_example_of_the_rfc_is_understood() {
        let uri = "https://dnsserver.example.net/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB";
        let Ok(Source::Address(message)) = asked("GET", uri, None) else { panic!("not understood") };
        assert_eq!(&message[12..], b"\x03www\x07example\x03com\x00\x00\x01\x00\x01");
        assert_eq!(asked("POST", "/dns-query", Some("application/dns-message")), Ok(Source::Body));
        let spelt = Some("Application/DNS-Message ; charset=x");
        assert_eq!(asked("POST", "/dns-query?x=y", spelt), Ok(Source::Body));
        assert_eq!(asked("GET", "/dns-query?x=y&dns=AAAA", None), Ok(Source::Address(vec![0; 3])));
    }

    #[test]
    fn each_mistake_has_its_status() {
        for (method, uri, media_type, status) in [
            ("GET", "/", None, 404),
            ("GET", "/dns-query/", None, 404),
            ("PUT", "/dns-query?dns=AAAA", None, 405),
            ("HEAD", "/dns-query?dns=AAAA", None, 405),
            ("GET", "/dns-query", None, 400),
            ("GET", "/dns-query?DNS=AAAA", None, 400),
            ("GET", "/dns-query?dns=AA==", None, 400),
            ("GET", "/dns-query?dns=AAAA&dns=AAAA", None, 400),
            ("GET", "/dns-query?dns=AAAA&x=y&dns=", None, 400),
            ("GET", "/dns-query?dns=%41AAA", None, 400),
            ("POST", "/dns-query", None, 415),
            ("POST", "/dns-query?dns=AAAA", Some("application/json"), 415),
        ] {
            let refusal = asked(method, uri, media_type).unwrap_err();
            let response = refusal.response();
            assert_eq!(response.status(), status, "{method} {uri}");
            assert_eq!(response.headers().contains_key(ALLOW), status == 405);
        }
    }
}
