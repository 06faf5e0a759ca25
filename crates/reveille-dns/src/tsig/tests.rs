use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use domain::base::message_builder::AdditionalBuilder;
use domain::base::{Message, MessageBuilder, Name, Rtype};
use domain::rdata::tsig::Time48;
use domain::tsig as other;
use reveille_core::answer::View;
use reveille_core::model::Timestamp;

use super::*;
use crate::{Origin, Outcome, Setting, Transport, respond};

const SECRET: &[u8; 32] = b"0123456789abcdef0123456789abcdef";
const NOW_S: u64 = 1_800_000_000;

fn key(name: &str, algorithm: Algorithm, secret: &[u8]) -> Key {
    Key::new(name.parse().unwrap(), algorithm, secret).unwrap()
}

fn ring() -> Keyring {
    let keys = Algorithm::ALL.map(|algorithm| key(&format!("{algorithm}.key.test"), algorithm, SECRET));
    Keyring::with_clock(keys, || NOW_S)
}

/// The same key for the other implementation.
fn their_key(algorithm: Algorithm, secret: &[u8]) -> other::Key {
    let name = format!("{algorithm}.key.test").parse().unwrap();
    other::Key::new(algorithm.word().parse().unwrap(), secret, name, None, None).unwrap()
}

/// A question for `vm.test SOA`.
fn question() -> AdditionalBuilder<Vec<u8>> {
    let mut message = MessageBuilder::new_vec().question();
    message.header_mut().set_id(0x1234);
    message.push((Name::<Vec<u8>>::from_chars("vm.test".chars()).unwrap(), Rtype::SOA)).unwrap();
    message.additional()
}

fn answer(keys: &Keyring, packet: &[u8]) -> (Option<Rcode>, Vec<u8>) {
    let (view, mut out) = (View::default(), Vec::new());
    let peer = SocketAddr::from(([127, 0, 0, 1], 4242));
    let now = Timestamp::from_ms(0);
    let at = Setting { view: &view, now, judge: None, keys: Some(keys) };
    let Outcome { written, .. } = respond(&at, packet, &Origin::new(peer, Transport::Udp), &mut out);
    (written.map(|written| written.rcode), out)
}

fn signed_by_them(
    algorithm: Algorithm,
    secret: &[u8],
    at_s: u64,
) -> (other::ClientTransaction<other::Key>, Vec<u8>) {
    let mut message = question();
    let key = their_key(algorithm, secret);
    let client = other::ClientTransaction::request(key, &mut message, Time48::from_u64(at_s)).unwrap();
    (client, message.finish())
}

fn error_of(message: &[u8]) -> (u16, Vec<u8>, Vec<u8>) {
    let signature = Signature::find(message).unwrap().unwrap();
    (signature.error(), signature.mac().to_vec(), signature.other.clone())
}

#[test]
fn another_implementation_and_ours_believe_each_other() {
    for algorithm in Algorithm::ALL {
        let (client, packet) = signed_by_them(algorithm, SECRET, NOW_S + 299);
        let (rcode, answer) = answer(&ring(), &packet);
        assert_eq!(rcode, Some(Rcode::Refused));
        let mut answer = Message::from_octets(answer).unwrap();
        client.answer(&mut answer, Time48::from_u64(NOW_S)).unwrap();

        let ours = ring();
        let key = ours.key(&format!("{algorithm}.key.test").parse().unwrap()).unwrap();
        let mut packet = question().finish();
        let mut exchange = ours.sign_request(&key, &mut packet);
        let mut request = Message::from_octets(packet).unwrap();
        let theirs = std::collections::HashMap::from([(
            (their_key(algorithm, SECRET).name().clone(), algorithm.word().parse().unwrap()),
            their_key(algorithm, SECRET),
        )]);
        let now = Time48::from_u64(NOW_S + 60);
        let server = other::ServerTransaction::request(&theirs, &mut request, now).unwrap().unwrap();
        let mut message = MessageBuilder::new_vec()
            .start_answer(&request, domain::base::iana::Rcode::NOERROR)
            .unwrap()
            .additional();
        server.answer(&mut message, now).unwrap();
        exchange.check_answer(&message.finish()).unwrap();
    }
}

#[test]
fn each_message_of_many_is_signed_in_the_light_of_the_one_before() {
    let mut message = question();
    let key = their_key(Algorithm::HmacSha256, SECRET);
    let now = Time48::from_u64(NOW_S);
    let mut theirs = other::ClientSequence::request(key, &mut message, now).unwrap();
    let packet = message.finish();
    let keys = ring();
    let signature = Signature::find(&packet).unwrap().unwrap();
    let mut ours = keys.verify(&packet, &signature).unwrap();
    let mut request = Message::from_octets(packet).unwrap();
    request.remove_last_additional();
    let next = || {
        MessageBuilder::new_vec().start_answer(&request, domain::base::iana::Rcode::NOERROR).unwrap().finish()
    };
    for _ in 0..5 {
        let mut answer = next();
        ours.sign(&mut answer);
        assert!(answer.len() <= next().len() + ours.room());
        theirs.answer(&mut Message::from_octets(answer).unwrap(), now).unwrap();
    }
    theirs.done().unwrap();
    // A message that was left out is noticed.
    let our_key = keys.key(&"hmac-sha256.key.test".parse().unwrap()).unwrap();
    let mut packet = question().finish();
    let mut exchange = keys.sign_request(&our_key, &mut packet);
    let signature = Signature::find(&packet).unwrap().unwrap();
    let mut swapped = keys.verify(&packet, &signature).unwrap();
    let answers: Vec<Vec<u8>> = std::iter::repeat_with(|| {
        let mut answer = next();
        swapped.sign(&mut answer);
        answer
    })
    .take(3)
    .collect();
    exchange.check_answer(&answers[0]).unwrap();
    assert_eq!(exchange.check_answer(&answers[2]), Err(AnswerFault::Signature));
}

#[test]
fn whoever_does_not_have_the_key_learns_only_that() {
    // An unknown key, the right name with another algorithm, a wrong secret.
    let (_, packet) = signed_by_them(Algorithm::HmacSha256, SECRET, NOW_S);
    let (rcode, message) = answer(&Keyring::with_clock([], || NOW_S), &packet);
    assert_eq!((rcode, error_of(&message)), (Some(Rcode::NotAuth), (17, vec![], vec![])));
    let renamed = Keyring::with_clock([key("hmac-sha256.key.test", Algorithm::HmacSha512, SECRET)], || NOW_S);
    let (rcode, message) = answer(&renamed, &packet);
    assert_eq!((rcode, error_of(&message)), (Some(Rcode::NotAuth), (17, vec![], vec![])));
    let (_, packet) = signed_by_them(Algorithm::HmacSha256, b"another secret, not the right one", NOW_S);
    let (rcode, message) = answer(&ring(), &packet);
    assert_eq!((rcode, error_of(&message)), (Some(Rcode::NotAuth), (16, vec![], vec![])));
    // One bit of the message changed.
    let (_, mut packet) = signed_by_them(Algorithm::HmacSha256, SECRET, NOW_S);
    packet[13] ^= 0x20;
    assert_eq!(error_of(&answer(&ring(), &packet).1).0, 16);
}

#[test]
fn clocks_that_differ_are_told_by_how_much_with_a_signature() {
    let keys = ring();
    let ahead =
        Keyring::with_clock([key("hmac-sha256.key.test", Algorithm::HmacSha256, SECRET)], || NOW_S + 301);
    let own = ahead.key(&"hmac-sha256.key.test".parse().unwrap()).unwrap();
    let mut packet = question().finish();
    let mut exchange = ahead.sign_request(&own, &mut packet);
    let (rcode, message) = answer(&keys, &packet);
    assert_eq!(rcode, Some(Rcode::NotAuth));
    let (error, mac, other) = error_of(&message);
    assert_eq!((error, mac.len(), other), (18, 32, NOW_S.to_be_bytes()[2..].to_vec()));
    assert_eq!(exchange.check_answer(&message), Err(AnswerFault::Time));
}

#[test]
fn a_shortened_mac_is_no_proof() {
    let (_, whole) = signed_by_them(Algorithm::HmacSha256, SECRET, NOW_S);
    let shortened = |bytes: u8, wrong: bool| {
        // The MAC ends six bytes before the message does; its size and the record's length are before it.
        let mac_at = whole.len() - 6 - 32;
        let mut packet = whole[..mac_at + usize::from(bytes)].to_vec();
        packet.extend_from_slice(&whole[whole.len() - 6..]);
        packet[mac_at - 1] = bytes;
        packet[mac_at - 24] -= 32 - bytes;
        packet[mac_at] ^= u8::from(wrong);
        answer(&ring(), &packet)
    };
    assert_eq!(shortened(32, false).0, Some(Rcode::Refused));
    assert_eq!(shortened(15, false).0, Some(Rcode::FormErr));
    let (rcode, message) = shortened(16, false);
    assert_eq!((rcode, error_of(&message).0, error_of(&message).1.len()), (Some(Rcode::NotAuth), 22, 32));
    assert_eq!(error_of(&shortened(16, true).1).0, 16);
}

#[test]
fn a_signature_anywhere_but_at_the_end_is_malformed() {
    let (_, packet) = signed_by_them(Algorithm::HmacSha256, SECRET, NOW_S);
    let start = Signature::find(&packet).unwrap().unwrap().start;
    let with = |sections: [u8; 3], records: &[&[u8]]| {
        let mut packet = packet[..start].to_vec();
        (packet[7], packet[9], packet[11]) = (sections[0], sections[1], sections[2]);
        for record in records {
            packet.extend_from_slice(record);
        }
        (answer(&ring(), &packet).0, Signature::find(&packet).is_ok())
    };
    let (tsig, opt): (&[u8], &[u8]) = (&packet[start..], &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    let malformed = (Some(Rcode::FormErr), false);
    assert_eq!(with([0, 0, 2], &[tsig, tsig]), malformed);
    assert_eq!(with([0, 0, 2], &[tsig, opt]), malformed);
    assert_eq!(with([0, 1, 0], &[tsig]), malformed);
    assert_eq!(with([1, 0, 1], &[tsig, opt]), malformed);
    assert_eq!(with([0, 0, 1], &[tsig, b"x"]), malformed);
    assert_eq!(with([0, 0, 1], &[&tsig[..tsig.len() - 1]]), malformed);
    assert_eq!(with([0, 0, 1], &[tsig]), (Some(Rcode::Refused), true));
    // Signed over one record less.
    assert_eq!(with([0, 0, 2], &[opt, tsig]), (Some(Rcode::NotAuth), true));
}

// --- Key files ---------------------------------------------------------------------------------------------------

fn file(dir: &tempfile::TempDir, mode: u32, text: &str) -> PathBuf {
    use std::io::Write;
    let path = dir.path().join("key");
    let _ = std::fs::remove_file(&path);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    path
}

#[test]
fn key_files_have_a_secret_or_statements_and_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let secret = domain::utils::base64::encode_string(SECRET);
    let name = "xfr.test".parse().unwrap();
    let statements = format!(
        "# made by hand\nkey other {{ secret \"AAAA\"; algorithm hmac-sha256; }};\n\
         key \"XFR.test.\" {{\n\talgorithm hmac-sha512; /* strong */\n\tsecret \"{secret}\";\n}};\n"
    );
    let same = |key: &Key| {
        key.is_mac_of(b"x", Key::new(key.name().clone(), key.algorithm(), SECRET).unwrap().mac(b"x").as_ref())
    };
    let plain = load(&name, None, &file(&dir, 0o600, &format!("{secret}\n"))).unwrap();
    assert!(same(&plain) && plain.algorithm() == Algorithm::HmacSha256);
    let stated = load(&name, None, &file(&dir, 0o400, &statements)).unwrap();
    assert!(same(&stated) && stated.algorithm() == Algorithm::HmacSha512);
    assert_eq!(format!("{stated:?}"), "Key(hmac-sha512 xfr.test)");

    let refused = |mode, text: &str, algorithm| {
        let error = load(&name, algorithm, &file(&dir, mode, text)).unwrap_err().to_string();
        assert!(!error.contains(&secret), "{error}");
        error
    };
    assert!(refused(0o640, &secret, None).contains("has mode 0640"));
    assert!(refused(0o604, &secret, None).contains("chmod 600"));
    assert!(refused(0o600, "not base64!", None).contains("neither a secret in base64"));
    assert!(refused(0o600, &format!("key xfr.test {{ secret \"{secret}\"; }};"), None).contains("neither"));
    assert!(refused(0o600, "c2hvcnQ=", None).contains("has 5 bytes"));
    let other = format!("key other.test {{ algorithm hmac-sha256; secret \"{secret}\"; }};");
    assert!(refused(0o600, &other, None).contains("has no key xfr.test; it has other.test"));
    let differs = refused(0o600, &statements, Some(Algorithm::HmacSha256));
    assert!(differs.contains("says hmac-sha512 for the key xfr.test, the configuration hmac-sha256"));
    let weak = format!("key xfr.test {{ algorithm hmac-md5; secret \"{secret}\"; }};");
    assert!(refused(0o600, &weak, None).contains("`hmac-md5` is not taken"));
}

#[test]
fn who_shares_the_keys_has_those_that_take_their_place() {
    let (keys, shared) = (ring(), ring());
    let clone = keys.clone();
    let name = "hmac-sha256.key.test".parse().unwrap();
    let old = clone.key(&name).unwrap();
    assert!(old.is_same(&shared.key(&name).unwrap()));
    keys.exchange(&Keyring::new([key("hmac-sha256.key.test", Algorithm::HmacSha256, &[7; 32])]));
    assert!(!clone.key(&name).unwrap().is_same(&old));
    assert!(clone.key(&"hmac-sha512.key.test".parse().unwrap()).is_none());
}
