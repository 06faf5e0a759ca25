//! Who asks, when a proxy on this host says so: `Forwarded` (RFC 7239) or `X-Forwarded-For`.
//!
//! What a client writes into these headers itself stands before what the proxy adds, so the last address that is
//! not this host's own counts. If the proxy writes one of the two and a client the other, they differ, and neither
//! is believed. Who is not known has the address `0.0.0.0`, which is in nobody's list: a stranger never passes for
//! this host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::FORWARDED;

const X_FORWARDED_FOR: &str = "x-forwarded-for";
/// Who is not known.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The address of the client.
pub(super) fn client(headers: &HeaderMap) -> IpAddr {
    let forwarded = last(headers, FORWARDED.as_str(), |element| {
        let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
        let (_, node) = pairs.find(|(key, _)| key.eq_ignore_ascii_case("for"))?;
        address(node.trim_matches('"'))
    });
    match (forwarded, last(headers, X_FORWARDED_FOR, address)) {
        (Some(one), None) | (None, Some(one)) => one,
        (Some(one), Some(other)) if one == other => one,
        (Some(_), Some(_)) | (None, None) => UNKNOWN,
    }
}

/// The last element of a list that is not this host; `None` without such a header. What cannot be read ends the
/// search: before it stands what a client may have written.
fn last(headers: &HeaderMap, name: &str, read: impl Fn(&str) -> Option<IpAddr>) -> Option<IpAddr> {
    let mut lines: Vec<_> = headers.get_all(name).iter().collect();
    if lines.is_empty() {
        return None;
    }
    lines.reverse();
    for line in lines {
        let Ok(line) = line.to_str() else { return Some(UNKNOWN) };
        for element in line.rsplit(',') {
            match read(element.trim()) {
                Some(address) if address.is_loopback() => {}
                Some(address) => return Some(address),
                None => return Some(UNKNOWN),
            }
        }
    }
    Some(UNKNOWN)
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(bare).or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    fn who(lines: &[(&'static str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        client(&headers).to_string()
    }

    #[test]
    fn what_the_proxy_added_last_counts() {
        let x = "x-forwarded-for";
        assert_eq!(who(&[(x, "192.0.2.1")]), "192.0.2.1");
        assert_eq!(who(&[(x, "198.51.100.7, 192.0.2.1")]), "192.0.2.1");
        assert_eq!(who(&[(x, "198.51.100.7"), (x, "2001:db8::1")]), "2001:db8::1");
        // A second proxy on this host.
        assert_eq!(who(&[(x, "192.0.2.1:4711, 127.0.0.1")]), "192.0.2.1");
        assert_eq!(who(&[(x, "::ffff:192.0.2.1")]), "192.0.2.1");
        let f = "forwarded";
        assert_eq!(who(&[(f, "for=192.0.2.43, For=\"[2001:db8:cafe::17]:4711\"")]), "2001:db8:cafe::17");
        assert_eq!(who(&[(f, "by=203.0.113.43;for=192.0.2.60;proto=http")]), "192.0.2.60");
        assert_eq!(who(&[(f, "for=192.0.2.60"), (x, "192.0.2.60")]), "192.0.2.60");
    }

    #[test]
    fn a_stranger_cannot_pass_for_this_host_or_for_another() {
        let (x, f) = ("x-forwarded-for", "forwarded");
        assert_eq!(who(&[]), "0.0.0.0");
        assert_eq!(who(&[(x, "127.0.0.1")]), "0.0.0.0");
        assert_eq!(who(&[(x, "127.0.0.1, 192.0.2.1")]), "192.0.2.1");
        assert_eq!(who(&[(x, "192.0.2.1"), (f, "for=127.0.0.1")]), "0.0.0.0");
        assert_eq!(who(&[(x, "192.0.2.1"), (f, "for=198.51.100.7")]), "0.0.0.0");
        // What cannot be read hides nobody behind what stands before it.
        assert_eq!(who(&[(x, "198.51.100.7, unknown")]), "0.0.0.0");
        assert_eq!(who(&[(f, "for=198.51.100.7, for=_hidden")]), "0.0.0.0");
        assert_eq!(who(&[(f, "for=198.51.100.7, proto=https")]), "0.0.0.0");
    }
}
