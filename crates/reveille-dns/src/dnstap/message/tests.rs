use super::super::frames::{Session, Step, StreamKind};
use super::*;

/// What Unbound 1.17.1 (CLIENT_QUERY, RESOLVER_QUERY, CLIENT_RESPONSE), Knot DNS 3.2.6 (AUTH_QUERY and AUTH_RESPONSE,
/// three times) and BIND 9.18 (AUTH_QUERY over TCP) said of a few questions, as `fstrm_capture` wrote it.
const SERVERS: &[u8] = include_bytes!("../../../tests/dnstap/servers.fstrm");
/// What `kdig -E` wrote.
const KDIG: &[u8] = include_bytes!("../../../tests/dnstap/kdig.fstrm");

fn payloads(mut file: &[u8]) -> Vec<&[u8]> {
    let (mut session, mut payloads) = (Session::new(StreamKind::File), Vec::new());
    while let Some((step, length)) = session.next(file).unwrap() {
        if let Step::Payload(payload) = step {
            payloads.push(payload);
        }
        file = &file[length..];
    }
    assert!(file.is_empty() && session.may_end());
    payloads
}

fn all(file: &[u8]) -> Vec<Dnstap<'_>> {
    payloads(file).into_iter().map(|payload| Dnstap::decode(payload).unwrap()).collect()
}

#[test]
fn what_real_servers_say_is_understood() {
    use MessageType::{AuthQuery, AuthResponse, ClientQuery, ClientResponse, ResolverQuery};
    let said = all(SERVERS);
    let kinds: Vec<_> = said.iter().map(|said| said.message.kind.unwrap()).collect();
    assert_eq!(kinds[..3], [ClientQuery, ResolverQuery, ClientResponse]);
    assert_eq!(kinds[3..9], [AuthQuery, AuthResponse].repeat(3));
    assert_eq!(kinds[9..], [AuthQuery]);
    let identities: Vec<_> = said.iter().map(|said| said.identity.escape_ascii().to_string()).collect();
    assert_eq!(identities[2..4], ["unbound.test", "knot.test"]);
    assert_eq!(said[9].identity, b"bind.test");
    assert!(said.iter().all(|said| said.message.kind.unwrap().is_response()
        == (said.message.query_message.is_empty() && !said.message.response_message.is_empty())));
    let knot = &said[3].message;
    assert_eq!(said[3].version, b"Knot DNS 3.2.6");
    assert_eq!(knot.query_address, Some(IpAddr::from([127, 0, 0, 1])));
    assert_eq!((knot.query_port, knot.response_port), (Some(58_160), Some(21_053)));
    assert_eq!(knot.query_time, Some(Timestamp::from_ms(1_795_392_213_840)));
    assert!(knot.response_time.is_none() && said[4].message.response_time.is_some());
    assert_eq!(knot.query_message[12..27], *b"\x05hello\x02vm\x04test\0");
    assert_eq!(
        (knot.protocol, said[9].message.protocol),
        (Some(SocketProtocol::Udp), Some(SocketProtocol::Tcp))
    );
    let kinds: Vec<_> = all(KDIG).iter().map(|said| said.message.kind.unwrap()).collect();
    assert_eq!(kinds, [MessageType::ToolQuery, MessageType::ToolResponse]);
}

#[test]
fn what_is_written_reads_the_same() {
    // Of what others wrote, but for times finer than milliseconds, and zones.
    for said in all(SERVERS).into_iter().chain(all(KDIG)) {
        let mut out = Vec::new();
        said.encode(&mut out);
        assert_eq!(Dnstap::decode(&out), Ok(said));
    }
    let message = Message {
        kind: Some(MessageType::UpdateResponse),
        protocol: Some(SocketProtocol::Doq),
        query_address: Some("2001:db8::7".parse().unwrap()),
        response_address: Some("192.0.2.53".parse().unwrap()),
        query_port: Some(0),
        response_port: Some(65_535),
        query_time: Some(Timestamp::from_ms(1_795_000_000_001)),
        query_message: &[0; 300],
        response_time: Some(Timestamp::from_ms(0)),
        response_message: b"r",
    };
    let said = Dnstap { identity: b"i", version: b"v", message };
    let mut out = Vec::new();
    said.encode(&mut out);
    assert_eq!(Dnstap::decode(&out), Ok(said));
}

#[test]
fn a_message_that_is_cut_anywhere_is_refused_or_means_the_same() {
    for payload in payloads(SERVERS) {
        let whole = Dnstap::decode(payload).unwrap();
        for end in 0..payload.len() {
            // The type of the payload stands last.
            let error = Dnstap::decode(&payload[..end]).unwrap_err();
            assert!(error.at <= end, "{error} of {end}");
        }
        // What is not known is skipped.
        let more = [payload, b"\x1a\x03any\xa5\x06\x01\x02\x03\x04"].concat();
        assert_eq!(Dnstap::decode(&more), Ok(whole));
    }
}

#[test]
fn what_does_not_fit_the_schema_is_named_with_its_place() {
    let outer = |message: &[u8]| [&[0x78, 1, 0x72, u8::try_from(message.len()).unwrap()], message].concat();
    let cases = [
        (Vec::new(), "byte 0 of the message: it ends without a type"),
        (b"\x78\x01".to_vec(), "byte 2 of the message: it ends without a message"),
        (b"\x78\x02\x72\x00".to_vec(), "byte 0 of the message: its type is not MESSAGE"),
        (outer(b""), "byte 4 of the message: the message ends without a type"),
        (outer(b"\x0d\x01\x00\x00\x00"), "byte 4 of the message: a number is encoded as something else"),
        (outer(b"\x08\x01\x22\x03abc"), "byte 6 of the message: an address has neither 4 nor 16 bytes"),
        (outer(b"\x08\x01\x30\x80\x80\x04"), "byte 6 of the message: a port is over 65535"),
        (outer(b"\x08\x01\x50\x01"), "byte 6 of the message: bytes are encoded as something else"),
        (outer(b"\x08\x01\x40\xff\xff\xff\xff\xff\x7f"), "a time is after the year 9999"),
        (outer(b"\x08\x01\x48\x01"), "nanoseconds are encoded as something else"),
    ];
    for (payload, expected) in cases {
        let said = Dnstap::decode(&payload).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}, not {expected}");
    }
    // A type that comes with a later schema is no fault.
    assert_eq!(Dnstap::decode(&outer(b"\x08\x0f")).unwrap().message.kind, None);
    assert_eq!(Dnstap::decode(&outer(b"\x08\x01\x22\x00")).unwrap().message.query_address, None);
}
