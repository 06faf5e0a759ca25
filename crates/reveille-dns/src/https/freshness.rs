//! For how long an answer may be kept by an HTTP cache (RFC 8484 §5.1): no longer than by a resolver.

use domain::base::Message;
use domain::base::iana::{Rcode, Rtype};
use domain::rdata::Soa;
use hyper::header::HeaderValue;

/// The header `Cache-Control` of an answer.
pub(super) fn cache_control(answer: &[u8]) -> HeaderValue {
    match least_ttl_s(answer) {
        Some(seconds) => {
            let value = HeaderValue::try_from(format!("max-age={seconds}"));
            value.unwrap_or(HeaderValue::from_static("no-store"))
        }
        None => HeaderValue::from_static("no-store"),
    }
}

/// The least TTL, in seconds; `None` if the answer is an error or has no records, so that nothing says how long it
/// holds.
fn least_ttl_s(answer: &[u8]) -> Option<u32> {
    let message = Message::from_octets(answer).ok()?;
    if !matches!(message.header().rcode(), Rcode::NOERROR | Rcode::NXDOMAIN) {
        return None;
    }
    let mut least: Option<u32> = None;
    let mut see = |seconds: u32| least = Some(least.map_or(seconds, |least| least.min(seconds)));
    for record in message.answer().ok()? {
        see(record.ok()?.ttl().as_secs());
    }
    for record in message.authority().ok()? {
        let record = record.ok()?;
        see(record.ttl().as_secs());
        // That a name does not exist is kept for the lesser of both (RFC 2308 §5).
        if record.rtype() == Rtype::SOA
            && let Some(soa) = record.into_record::<Soa<_>>().ok()?
        {
            see(soa.data().minimum().as_secs());
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with these records: section (1 answer, 2 authority), type, TTL, data.
    fn message(rcode: u8, records: &[(u8, u16, u32, &[u8])]) -> Vec<u8> {
        let count =
            |section| u8::try_from(records.iter().filter(|record| record.0 == section).count()).unwrap();
        let mut bytes = vec![0, 0, 0x84, rcode, 0, 1, 0, count(1), 0, count(2), 0, 0];
        bytes.extend(b"\x02vm\x04test\x00\x00\x01\x00\x01");
        for (_, rtype, ttl, data) in records {
            bytes.extend([0xc0, 12]);
            bytes.extend(rtype.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(ttl.to_be_bytes());
            bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    fn soa(minimum: u8) -> Vec<u8> {
        [&[0, 0][..], &[0; 16], &[0, 0, 0, minimum]].concat()
    }

    #[test]
    fn the_least_ttl_of_what_was_answered() {
        let address = (1, 1, 60, &[127, 0, 0, 1][..]);
        assert_eq!(cache_control(&message(0, &[address])), "max-age=60");
        assert_eq!(cache_control(&message(0, &[address, (1, 1, 5, &[127, 0, 0, 2])])), "max-age=5");
        assert_eq!(cache_control(&message(0, &[(1, 16, 0, b"\x00")])), "max-age=0");
        assert_eq!(cache_control(&message(3, &[(2, 6, 3600, &soa(30))])), "max-age=30");
        assert_eq!(cache_control(&message(0, &[(2, 6, 7, &soa(30))])), "max-age=7");
        // An alias that leads nowhere.
        assert_eq!(cache_control(&message(3, &[(1, 5, 20, &[0]), (2, 6, 90, &soa(90))])), "max-age=20");
    }

    #[test]
    fn errors_are_not_kept() {
        assert_eq!(cache_control(&message(2, &[])), "no-store");
        assert_eq!(cache_control(&message(5, &[(1, 1, 60, &[127, 0, 0, 1])])), "no-store");
        assert_eq!(cache_control(&message(0, &[])), "no-store");
        assert_eq!(cache_control(&[0; 5]), "no-store");
    }
}
