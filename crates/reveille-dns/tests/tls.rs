//! DNS over TLS (RFC 7858) as kdig, dig and openssl see it, and under clients that mean no good.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/encrypted.rs"]
mod encrypted;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, SystemTime};

use common::{WAIT_MAX, World, active, name, service};
use encrypted::{Encrypted, ask, connect, operators, read_framed, replace, run, self_signed};
use reveille_core::answer::ServiceView;
use reveille_core::model::AnswerPolicy;
use reveille_dns::{Certificate, CertificateSource, Refreshed};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(86_400);

fn framed(id: u16, qname: &str) -> Vec<u8> {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet[..2].copy_from_slice(&id.to_be_bytes());
    packet.extend(name(qname).as_wire());
    packet.extend([0, 1, 0, 1]);
    [&u16::try_from(packet.len()).unwrap().to_be_bytes()[..], &packet].concat()
}

fn id_of(answer: &[u8]) -> u16 {
    u16::from_be_bytes([answer[0], answer[1]])
}

#[test]
fn kdig_and_dig_are_answered_and_can_check_who_answers() {
    let mut server = Encrypted::new(World::new());
    let (tls, ca) = (server.tls(), server.ca());
    let ca = ca.to_str().unwrap();
    let pin = server.certificate.about().pin;
    let (ca_file, right_pin) = (format!("+tls-ca={ca}"), format!("+tls-pin={pin}"));
    for (program, arguments) in [
        ("kdig", vec!["+tls"]),
        ("kdig", vec![&ca_file, "+tls-hostname=ns1.vm.test"]),
        ("kdig", vec!["+tls", &right_pin]),
        ("dig", vec!["+tls"]),
        ("dig", vec!["+tls", &ca_file, "+tls-hostname=127.0.0.53"]),
    ] {
        let (text, _) = ask(program, tls, &[&arguments[..], &["+short", "hello.vm.test", "A"]].concat());
        assert_eq!(text.trim(), "127.64.0.1", "{program} {arguments:?}");
        assert_eq!(server.world.wakes.try_recv().unwrap().service, name("hello.vm.test"));
    }
    // Another key, another name.
    let wrong = format!("+tls-pin={}{}", if pin.starts_with('A') { 'B' } else { 'A' }, &pin[1..]);
    for arguments in [vec!["+tls", &wrong], vec![&ca_file, "+tls-hostname=www.vm.test"]] {
        let (text, good) = ask("kdig", tls, &[&arguments[..], &["+short", "hello.vm.test", "A"]].concat());
        assert!(!good && !text.contains("127.64.0.1"), "{arguments:?}: {text}");
    }
    // Too large for UDP, not for a stream.
    let (text, _) = ask("kdig", tls, &["+tls", "+short", "big.vm.test", "TXT"]);
    assert_eq!(text.lines().count(), 60);
}

#[test]
fn answers_are_padded_where_nobody_can_look_inside() {
    let server = Encrypted::new(World::new());
    let received = |address: SocketAddr, arguments: &[&str]| {
        let (text, _) = ask("kdig", address, &[arguments, &["hello.vm.test", "A"]].concat());
        let bytes = text.lines().find_map(|line| line.strip_prefix(";; Received ")).unwrap();
        (bytes.split_once(' ').unwrap().0.parse::<usize>().unwrap(), text)
    };
    let (bytes, text) = received(server.tls(), &["+tls", "+padding"]);
    assert_eq!(bytes, 468, "{text}");
    assert_eq!(received(server.https(), &["+https", "+padding"]).0, 468);
    let (bytes, text) = received(server.tls(), &["+tls", "+nopadding"]);
    assert!(bytes < 100 && !text.contains("PADDING"), "{text}");
    let (bytes, text) = received(server.world.address(), &["+tcp", "+padding=64"]);
    assert!(bytes < 100 && !text.contains("PADDING"), "{text}");
    // More than one block, and what is said beside the answer stays.
    let (text, _) =
        ask("kdig", server.tls(), &["+tls", "+padding", "+subnet=192.0.2.0/24", "big.vm.test", "TXT"]);
    let bytes = text.lines().find_map(|line| line.strip_prefix(";; Received ")).unwrap();
    assert_eq!(bytes.split_once(' ').unwrap().0.parse::<usize>().unwrap() % 468, 0);
    assert!(text.contains("CLIENT-SUBNET: 192.0.2.0/24/0"), "{text}");
}

#[test]
fn versions_protocols_and_tickets_are_as_openssl_wants_them() {
    let server = Encrypted::new(World::new());
    let address = server.tls().to_string();
    let openssl = |arguments: &[&str]| {
        let all = [&["s_client", "-connect", &address], arguments].concat();
        let (text, _) = run("openssl", &all);
        text
    };
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let text = openssl(&[version, "-alpn", "dot"]);
        assert!(text.contains(&format!("New, {name}")) && text.contains("ALPN protocol: dot"), "{text}");
    }
    let text = openssl(&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
    assert!(text.contains("Cipher is (NONE)"), "{text}");
    let text = openssl(&["-alpn", "h2"]);
    assert!(text.contains("no application protocol"), "{text}");
    // Nothing at all is offered: that is DNS too (RFC 7858 names no protocol).
    assert!(openssl(&[]).contains("No ALPN negotiated"));

    // A ticket of one session begins the next one, in TLS 1.2 where openssl tells when it got it.
    let ticket = server.dir.path().join("ticket");
    let ticket = ticket.to_str().unwrap();
    assert!(openssl(&["-tls1_2", "-sess_out", ticket]).contains("New, TLSv1.2"));
    assert!(openssl(&["-tls1_2", "-sess_in", ticket]).contains("Reused, TLSv1.2"));
}

#[test]
fn many_questions_in_one_connection_are_each_answered_and_a_held_one_keeps_none_back() {
    const QUESTIONS: u16 = 5_000;
    let server = Encrypted::new(World::new());
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    // Longer than any test: only the view can end it.
    slow.hold_ms_max = 3_600_000;
    server.world.publish(slow.clone());
    server.world.publish(ServiceView { counter: 7, ..active(service("awake.vm.test", 2)) });
    let mut stream = server.connect();
    stream.write_all(&framed(u16::MAX, "slow.vm.test")).unwrap();
    // Written in pieces that cut messages, and read when the next ones are on their way.
    let questions: Vec<u8> = (0..QUESTIONS).flat_map(|id| framed(id, "awake.vm.test")).collect();
    let mut missing: BTreeSet<u16> = (0..QUESTIONS).collect();
    for piece in questions.chunks(7_777) {
        stream.write_all(piece).unwrap();
        for _ in 0..piece.len() / framed(0, "awake.vm.test").len() {
            let answer = read_framed(&mut stream);
            assert!(answer.ends_with(&[127, 64, 0, 2]), "{answer:?}");
            assert!(missing.remove(&id_of(&answer)));
        }
    }
    while !missing.is_empty() {
        assert!(missing.remove(&id_of(&read_framed(&mut stream))));
    }
    server.world.publish(active(slow));
    let answer = read_framed(&mut stream);
    assert_eq!(id_of(&answer), u16::MAX);
    assert!(answer.ends_with(&[127, 64, 0, 5]));
    let counts = server.world.server.counts();
    assert_eq!((counts.held, counts.connections), (1, 1));
    assert_eq!(server.world.server.counters().sum(7), QUESTIONS.into());

    // The end is a message too: what follows it is no attacker's doing.
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_new_certificate_is_for_new_clients_and_a_bad_one_for_none() {
    let dir = TempDir::new().unwrap();
    let (certificate, key) = operators(dir.path(), "ns1.vm.test");
    let source = CertificateSource::Files { certificate: certificate.clone(), key: key.clone() };
    let server = Encrypted::with(World::new(), source, dir);
    let refresh = || server.certificate.refresh(SystemTime::now());
    let is_shown = |pin: &str| {
        let pin = format!("+tls-pin={pin}");
        ask("kdig", server.tls(), &["+tls", &pin, "+short", "awake.vm.test", "A"]).0.trim() == "127.64.0.2"
    };
    let first = server.certificate.about();
    assert!(is_shown(&first.pin));
    assert_eq!(refresh().unwrap(), Refreshed::Same);
    let mut open = connect(
        TcpStream::connect(server.tls()).unwrap(),
        CertificateDer::from_pem_file(&certificate).unwrap(),
    );

    // Only half of what is new is there yet.
    let old_key = fs::read(&key).unwrap();
    operators(server.dir.path(), "ns1.vm.test");
    let new_key = fs::read(&key).unwrap();
    replace(&key, &old_key, 0o600);
    let error = refresh().unwrap_err().to_string();
    assert!(error.contains("does not belong to the certificate in"), "{error}");
    assert!(is_shown(&first.pin));
    replace(&key, &new_key, 0o600);
    let Refreshed::Replaced(second) = refresh().unwrap() else { panic!("not taken") };
    assert_ne!(second.pin, first.pin);
    assert!(is_shown(&second.pin) && !is_shown(&first.pin));
    // Who was there before has noticed nothing.
    open.write_all(&framed(7, "awake.vm.test")).unwrap();
    assert_eq!(id_of(&read_framed(&mut open)), 7);

    for (file, content, mode, expected) in [
        (&key, &b"-----BEGIN NONSENSE-----\n"[..], 0o600, "has no private key in PEM"),
        (&key, &new_key, 0o604, "chmod o="),
        (&key, &new_key, 0o600, ""),
        (&certificate, b"", 0o644, "has no certificate in PEM"),
        (
            &certificate,
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            0o644,
            "cannot be read",
        ),
        (&certificate, &vec![b'x'; (1 << 20) + 1], 0o644, "is it the right file?"),
    ] {
        replace(file, content, mode);
        let said = refresh().map_or_else(|error| error.to_string(), |_| String::new());
        assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{expected}: {said}");
        assert!(expected.is_empty() || said.contains(file.to_str().unwrap()), "{said}");
        assert!(is_shown(&second.pin));
    }
    // From other files altogether.
    let elsewhere = TempDir::new().unwrap();
    let (certificate, key) = operators(elsewhere.path(), "ns1.vm.test");
    let source = CertificateSource::Files { certificate: certificate.clone(), key };
    let other = Certificate::open(source.clone(), SystemTime::now()).unwrap();
    let third = other.about();
    server.certificate.exchange(other);
    assert!(is_shown(&third.pin) && !is_shown(&second.pin));
    assert_eq!((server.certificate.source(), refresh().unwrap()), (source, Refreshed::Same));

    fs::remove_file(&certificate).unwrap();
    assert!(refresh().unwrap_err().to_string().starts_with("cannot read "));
    // The same fault is not told twice.
    assert_eq!(refresh().unwrap(), Refreshed::Same);
    assert!(is_shown(&third.pin));
}

#[test]
fn a_certificate_that_the_server_makes_is_kept_and_renewed_with_the_same_key() {
    use std::os::unix::fs::PermissionsExt;

    let dir = TempDir::new().unwrap();
    let place = dir.path().join("tls");
    let now = SystemTime::now();
    let open = |names: &[&str], at| Certificate::open(self_signed(&place, names), at).unwrap();
    let made = open(&["192.0.2.1", "ns1.vm.test"], now).about();
    assert!(made.from <= now && made.until >= now + DAY * 364);
    let mode = |file: &str| fs::metadata(place.join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("self-signed-key.pem"), 0o600);
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
    // What a client may pin, as openssl computes it.
    let file = place.join("self-signed-certificate.pem");
    let script = format!(
        "openssl x509 -in {} -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | openssl enc -base64",
        file.display()
    );
    assert_eq!(run("sh", &["-c", &script]).0.trim(), made.pin);
    let (text, _) =
        run("openssl", &["x509", "-in", file.to_str().unwrap(), "-noout", "-ext", "subjectAltName"]);
    assert!(text.contains("IP Address:192.0.2.1") && text.contains("DNS:ns1.vm.test"), "{text}");

    // After a restart it is the same; in time, or for other names, it is another with the same key.
    assert_eq!(open(&["ns1.vm.test"], now + DAY * 200).about(), made);
    let certificate = open(&["192.0.2.1"], now);
    assert_eq!(certificate.refresh(now + DAY * 200).unwrap(), Refreshed::Same);
    let Refreshed::Replaced(renewed) = certificate.refresh(now + DAY * 300).unwrap() else {
        panic!("not renewed")
    };
    assert_eq!(renewed.pin, made.pin);
    assert!(renewed.until > made.until);
    assert_eq!(certificate.refresh(now + DAY * 300).unwrap(), Refreshed::Same);
    let other = open(&["2001:db8::1"], now + DAY * 301).about();
    assert_eq!(other.pin, made.pin);
    assert_ne!(other, renewed);

    // A key that clients may have pinned is not thrown away because it cannot be read.
    fs::write(place.join("self-signed-key.pem"), "").unwrap();
    let error = Certificate::open(self_signed(&place, &["192.0.2.1"]), now).unwrap_err().to_string();
    assert!(error.contains("self-signed-key.pem has no private key"), "{error}");
}

#[test]
fn those_who_never_finish_their_handshake_keep_nobody_out() {
    let server = Encrypted::new(World::new());
    let mut begun: Vec<TcpStream> = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(server.tls()).unwrap();
        // A record of TLS begins like this; some do not even say so much.
        if number % 2 == 0 {
            stream.write_all(&[22, 3]).unwrap();
        }
        begun.push(stream);
    }
    server.world.until("each has a place or has been turned away", |world| {
        let counts = world.server.counts();
        counts.connections + counts.connections_refused == 300
            && counts.handshakes_refused >= 300 - 128 - counts.connections_refused
    });
    // Another address of the host is another client.
    let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    other.bind(&SocketAddr::from(([127, 0, 0, 77], 0)).into()).unwrap();
    other.connect(&server.tls().into()).unwrap();
    let own = CertificateDer::from_pem_file(server.ca()).unwrap();
    let mut stream = connect(TcpStream::from(other), own);
    stream.write_all(&framed(1, "awake.vm.test")).unwrap();
    assert_eq!(id_of(&read_framed(&mut stream)), 1);

    // They are not waited for for ever, and then there is room for others from there.
    server.world.until("they are given up", |world| world.server.counts().handshakes_failed == 128);
    let (text, _) = ask("kdig", server.tls(), &["+tls", "+short", "awake.vm.test", "A"]);
    assert_eq!(text.trim(), "127.64.0.2");
    drop(begun);
}

#[test]
fn what_is_no_tls_is_closed() {
    let server = Encrypted::new(World::new());
    let mut plain = TcpStream::connect(server.tls()).unwrap();
    plain.set_read_timeout(Some(WAIT_MAX)).unwrap();
    plain.write_all(&framed(1, "awake.vm.test")).unwrap();
    let mut said = Vec::new();
    // An alert, or nothing; no answer.
    let _ = plain.read_to_end(&mut said);
    assert!(said.len() < 10, "{said:?}");
    assert_eq!(server.world.server.counts().queries, 0);
    // A client that goes away in the middle of a question leaves nothing behind.
    let mut stream = server.connect();
    stream.write_all(&framed(1, "awake.vm.test")[..9]).unwrap();
    stream.sock.shutdown(std::net::Shutdown::Both).unwrap();
    drop(stream);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut stream = server.connect();
                stream.write_all(&framed(9, "awake.vm.test")).unwrap();
                assert_eq!(id_of(&read_framed(&mut stream)), 9);
            });
        }
    });
}

#[test]
fn a_shutdown_ends_idle_connections_and_answers_what_is_held() {
    let server = Encrypted::new(World::new());
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    slow.hold_ms_max = 3_600_000;
    server.world.publish(slow);
    let (mut idle, mut waiting) = (server.connect(), server.connect());
    idle.write_all(&framed(1, "awake.vm.test")).unwrap();
    assert_eq!(id_of(&read_framed(&mut idle)), 1);
    waiting.write_all(&framed(2, "slow.vm.test")).unwrap();
    server.world.until("it is held", |world| world.server.counts().held == 1);
    let World { runtime, server, .. } = server.world;
    runtime.block_on(server.shutdown());
    assert_eq!(id_of(&read_framed(&mut waiting)), 2);
    // Said, and not only cut.
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(waiting.read(&mut [0; 1]).unwrap(), 0);
}
