//! Cookies: the test vectors of RFC 9018, ages, rotation, secret files.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use reveille_core::model::Timestamp;

use super::super::cookie::{CookieSecrets, CookieStatus, Secret, SecretError};
use crate::wire::Cookie;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn secret(hex: &str) -> Secret {
    Secret::new(bytes(hex).try_into().unwrap())
}

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_ms(seconds * 1_000)
}

/// Status of the cookie, and the option in the answer in hexadecimal.
fn answer(secrets: &CookieSecrets, hex: &str, address: IpAddr, now: Timestamp) -> (CookieStatus, String) {
    let cookie = Cookie::parse(&bytes(hex)).unwrap();
    let status = secrets.check(Some(&cookie), address, now);
    let option = secrets.answer(status, Some(&cookie), address, now).unwrap();
    (status, option.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[test]
fn vectors_of_rfc_9018() {
    let first = secret("e5e973e5a6b2a43f48e7dc849e37bfcf");
    let secrets = CookieSecrets::new(&first, at(0));
    // A.1: a client that has none learns one.
    let client = "198.51.100.100".parse().unwrap();
    let learned = "2464c4abcf10c957010000005cf79f111f8130c3eee29480";
    assert_eq!(
        answer(&secrets, "2464c4abcf10c957", client, at(0x5cf7_9f11)),
        (CookieStatus::ClientOnly, learned.into())
    );
    // A.2: the same client 40 minutes later: known, and renewed.
    let renewed = "2464c4abcf10c957010000005cf7a871d4a564a1442aca77";
    assert_eq!(answer(&secrets, learned, client, at(0x5cf7_a871)), (CookieStatus::Renew, renewed.into()));
    // A.3: a cookie with reserved bytes that are not zero is known; the new one has zeros.
    let client = "203.0.113.203".parse().unwrap();
    let odd = "fc93fc62807ddb8601abcdef5cf78f71a314227b6679ebf5";
    let renewed = "fc93fc62807ddb86010000005cf7a9acf73a7810aca2381e";
    let (status, option) = answer(&secrets, odd, client, at(0x5cf7_a9ac));
    // It is an hour and some minutes old by then: a server of RFC 9018 §4.3 does not take it any more.
    assert_eq!((status, option), (CookieStatus::Bad, renewed.into()));
    assert_eq!(answer(&secrets, odd, client, at(0x5cf7_8f71)), (CookieStatus::Valid, odd.into()));
    // A.4: IPv6, after the secret was replaced.
    let client = "2001:db8:220:1:59de:d0f4:8769:82b8".parse().unwrap();
    let old = secret("dd3bdf9344b678b185a6f5cb60fca715");
    let new = secret("445536bcd2513298075a5d379663c962");
    let cookie = "22681ab97d52c298010000005cf7c57926556bd0934c72f8";
    let secrets = CookieSecrets::new(&old, at(0)).rotated(&new, at(1));
    let now = at(0x5cf7_c609);
    assert_eq!(answer(&secrets, cookie, client, now), (CookieStatus::Valid, cookie.into()));
    let fresh = "22681ab97d52c298010000005cf7c609a6bb79d16625507a";
    assert_eq!(answer(&secrets, "22681ab97d52c298", client, now), (CookieStatus::ClientOnly, fresh.into()));
}

#[test]
fn a_cookie_is_good_for_its_client_its_address_and_an_hour() {
    let secrets = CookieSecrets::new(&Secret::random().unwrap(), at(0));
    let client: IpAddr = "192.0.2.7".parse().unwrap();
    let (status, cookie) = answer(&secrets, "0102030405060708", client, at(10_000));
    assert_eq!(status, CookieStatus::ClientOnly);
    let status =
        |hex: &str, address: &str, seconds| answer(&secrets, hex, address.parse().unwrap(), at(seconds)).0;
    for (seconds, expected) in [
        (9_699, CookieStatus::Bad),
        (9_700, CookieStatus::Valid),
        (10_000, CookieStatus::Valid),
        (11_800, CookieStatus::Valid),
        (11_801, CookieStatus::Renew),
        (13_600, CookieStatus::Renew),
        (13_601, CookieStatus::Bad),
        (10_000 + (1 << 31), CookieStatus::Bad),
    ] {
        assert_eq!(status(&cookie, "192.0.2.7", seconds), expected, "at {seconds}");
    }
    assert_eq!(status(&cookie, "::ffff:192.0.2.7", 10_000), CookieStatus::Valid);
    assert_eq!(status(&cookie, "192.0.2.8", 10_000), CookieStatus::Bad);
    // One bit anywhere: of the client's, version, reserved, time, hash.
    for at in 0..24 {
        let mut other = bytes(&cookie);
        other[at] ^= 1;
        let other: String = other.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(status(&other, "192.0.2.7", 10_000), CookieStatus::Bad, "byte {at}");
    }
    // Of another length: another server's.
    assert_eq!(status(&format!("{cookie}00"), "192.0.2.7", 10_000), CookieStatus::Bad);
    assert_eq!(secrets.check(None, client, at(1)), CookieStatus::None);
    assert_eq!(secrets.answer(CookieStatus::None, None, client, at(1)), None);
}

#[test]
fn seconds_may_begin_anew() {
    let secrets = CookieSecrets::new(&Secret::random().unwrap(), at(0));
    let client: IpAddr = "2001:db8::1".parse().unwrap();
    let end = 1 << 32;
    let (_, cookie) = answer(&secrets, "0102030405060708", client, at(end - 100));
    assert_eq!(answer(&secrets, &cookie, client, at(end + 100)).0, CookieStatus::Valid);
}

#[test]
fn a_rotation_leaves_known_what_was_given_out_before_it_and_no_more() {
    let secrets = CookieSecrets::new(&Secret::random().unwrap(), at(0));
    let client: IpAddr = "192.0.2.7".parse().unwrap();
    let (_, cookie) = answer(&secrets, "0102030405060708", client, at(1));
    let once = secrets.rotated(&Secret::random().unwrap(), at(2));
    assert_eq!(answer(&once, &cookie, client, at(3)).0, CookieStatus::Valid);
    assert_eq!(once.since(), at(2));
    assert_ne!(answer(&once, "0102030405060708", client, at(1)).1, cookie, "made with the old secret");
    let twice = once.rotated(&Secret::random().unwrap(), at(4));
    assert_eq!(answer(&twice, &cookie, client, at(5)).0, CookieStatus::Bad);
    assert!(!format!("{:?} {:?}", secrets, Secret::new([0xab; 16])).to_lowercase().contains("ab, "));
}

#[test]
fn secrets_of_an_anycast_set_come_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cookies");
    let write = |text: &str, mode| {
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let read = || CookieSecrets::from_file(&path, at(0));
    assert!(matches!(read(), Err(SecretError::Unreadable(_))));
    let (one, two) = ("e5e973e5a6b2a43f48e7dc849e37bfcf", "dd3bdf9344b678b185a6f5cb60fca715");
    let client: IpAddr = "192.0.2.7".parse().unwrap();
    write(&format!("{one}\n{two}\n"), 0o600);
    let ours = read().unwrap();
    // The neighbour is a step ahead: it makes with what is the second here.
    let theirs = CookieSecrets::new(&secret(two), at(0));
    let (_, cookie) = answer(&theirs, "0102030405060708", client, at(100));
    assert_eq!(answer(&ours, &cookie, client, at(100)).0, CookieStatus::Valid);
    let (_, cookie) = answer(&ours, "0102030405060708", client, at(100));
    assert_eq!(answer(&theirs, &cookie, client, at(100)).0, CookieStatus::Bad);

    write(one, 0o640);
    let error = read().unwrap_err().to_string();
    assert!(error.contains("chmod 600") && error.contains("640"), "{error}");
    let long = format!("{one}\n{one}\n{one}\n{one}");
    let beyond = format!("{one}é");
    for (text, at_line) in
        [("", 1), ("xyz", 1), (long.as_str(), 4), (&one[1..], 1), (beyond.as_str(), 1), ("\n", 1)]
    {
        write(text, 0o600);
        let error = read().unwrap_err();
        assert!(matches!(error, SecretError::Malformed { line, .. } if line == at_line), "{text:?}: {error}");
        assert!(!error.to_string().contains("e973"), "{error}");
    }
}
