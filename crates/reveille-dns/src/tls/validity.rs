//! When an X.509 certificate is valid: the one thing of it that nobody tells the server.

use std::time::{Duration, SystemTime};

/// Tags (X.690 §8).
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;

/// First and last moment (RFC 5280 §4.1.2.5); `None` if that is no certificate.
pub fn validity(certificate: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if let Some((_, after)) = element(rest, VERSION) {
        rest = after;
    }
    let (_, rest) = element(rest, INTEGER)?;
    let (_signature, rest) = element(rest, SEQUENCE)?;
    let (_issuer, rest) = element(rest, SEQUENCE)?;
    let (validity, _) = element(rest, SEQUENCE)?;
    let (from, rest) = time(validity)?;
    let (until, _) = time(rest)?;
    Some((from, until))
}

/// The content of the first element, which has that tag, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, length], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        // So many bytes of length follow; a certificate has no use for more than three.
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            (bytes.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
        }
        0x80 | 0x84.. => return None,
    };
    rest.split_at_checked(length)
}

/// `YYMMDDHHMMSSZ` with years from 1950 on, or `YYYYMMDDHHMMSSZ`.
fn time(der: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (text, rest, year_digits) = match element(der, UTC_TIME) {
        Some((text, rest)) => (text, rest, 2),
        None => element(der, GENERALIZED_TIME).map(|(text, rest)| (text, rest, 4))?,
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, fields) = text.split_at_checked(year_digits)?;
    if fields.len() != 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut numbers = (0..5).map(|n| fields.get(2 * n..2 * n + 2)?.parse::<u64>().ok());
    let mut next = || numbers.next()?;
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let mut year: u64 = year.parse().ok()?;
    if year_digits == 2 {
        year += if year < 50 { 2_000 } else { 1_900 };
    }
    // A time before 1970 is as long past as 1970.
    let days = days_since_1970(year, month, day)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some((SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), rest))
}

/// By the civil calendar: days since March of year 0, in eras of 400 years.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    Some(days.saturating_sub(719_468))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_of_both_forms_are_read() {
        let read = |tag: u8, text: &str| {
            let der = [&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            time(&der).map(|(time, _)| time)
        };
        assert_eq!(read(UTC_TIME, "700101000000Z"), Some(at(0)));
        assert_eq!(read(UTC_TIME, "270115080000Z"), Some(at(1_800_000_000)));
        assert_eq!(read(GENERALIZED_TIME, "20270115080000Z"), Some(at(1_800_000_000)));
        assert_eq!(read(GENERALIZED_TIME, "20240229235959Z"), Some(at(1_709_251_199)));
        assert_eq!(read(UTC_TIME, "490101000000Z"), Some(at(2_493_072_000)));
        assert_eq!(read(UTC_TIME, "500101000000Z"), Some(at(0)));
        // What OpenSSL writes for "never".
        assert_eq!(read(GENERALIZED_TIME, "99991231235959Z"), Some(at(253_402_300_799)));
        for wrong in ["", "Z", "270115080000", "271315080000Z", "27011508000Z", "2701150800+0Z"] {
            assert_eq!(read(UTC_TIME, wrong), None, "{wrong}");
        }
    }

    #[test]
    fn that_of_a_certificate_is_found_and_junk_is_not_taken() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut wanted = rcgen::CertificateParams::new(vec!["ns1.vm.test".to_owned()]).unwrap();
        wanted.not_before = rcgen::date_time_ymd(2027, 1, 15);
        wanted.not_after = rcgen::date_time_ymd(2055, 1, 15);
        let certificate = wanted.self_signed(&key).unwrap();
        let expected = (at(1_799_971_200), at(2_683_584_000));
        assert_eq!(validity(certificate.der()), Some(expected));
        for length in 0..certificate.der().len() {
            // Cut short it is no certificate, and no reason to panic.
            assert_eq!(validity(&certificate.der()[..length]), None);
        }
    }
}
