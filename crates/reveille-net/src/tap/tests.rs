//! Frames, queues and connections without a kernel.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::flows::{Change, FLOW_MS_MAX, FLOWS_MAX, FlowKey, Flows, HALF_CLOSED_MS_MAX, Sender};
use super::frame::{ACK, Content, FIN, Packet, RST, SYN, Segment, Unreachable};
use super::held::{Held, HeldLimits, NotHeld};

/// A frame with a TCP segment from `192.0.2.2` or `2001:db8::2`.
fn tcp(v6: bool, from: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(from.to_be_bytes());
    body.extend(80u16.to_be_bytes());
    body.extend(1_000u32.to_be_bytes());
    body.extend(2_000u32.to_be_bytes());
    body.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    body.extend(payload);
    ip(v6, 6, &body)
}

fn udp(v6: bool, from: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(from.to_be_bytes());
    body.extend(53u16.to_be_bytes());
    body.extend(u16::try_from(payload.len() + 8).unwrap().to_be_bytes());
    body.extend([0, 0]);
    body.extend(payload);
    ip(v6, 17, &body)
}

fn ip(v6: bool, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let length = u16::try_from(body.len()).unwrap();
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend("2001:db8::2".parse::<std::net::Ipv6Addr>().unwrap().octets());
        frame.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
    } else {
        frame.extend([0x08, 0, 0x45, 0]);
        frame.extend((length + 20).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 2, 192, 0, 2, 7]);
    }
    frame.extend(body);
    frame
}

/// Whether the checksum of what is behind the IP header is right, counted anew.
fn sums(frame: &[u8], v6: bool) -> bool {
    let (head, pseudo): (usize, Vec<u8>) = if v6 {
        let length = u32::try_from(frame.len() - 54).unwrap();
        let mut pseudo = frame[22..54].to_vec();
        pseudo.extend(length.to_be_bytes());
        pseudo.extend([0, 0, 0, frame[20]]);
        (54, pseudo)
    } else if frame[23] == 1 {
        (34, Vec::new())
    } else {
        let length = u16::try_from(frame.len() - 34).unwrap();
        let mut pseudo = frame[26..34].to_vec();
        pseudo.extend([0, frame[23]]);
        pseudo.extend(length.to_be_bytes());
        (34, pseudo)
    };
    let mut all = pseudo;
    all.extend(&frame[head..]);
    if all.len() % 2 == 1 {
        all.push(0);
    }
    let mut sum: u32 = all.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

#[test]
fn a_reset_answers_what_it_refuses() {
    for v6 in [false, true] {
        let frame = tcp(v6, 1_234, SYN, b"");
        let packet = Packet::parse(&frame).unwrap();
        let answer = packet.reset().unwrap();
        assert!(sums(&answer, v6));
        assert_eq!((&answer[..6], &answer[6..12]), (&frame[6..12], &frame[..6]));
        let back = Packet::parse(&answer).unwrap();
        assert_eq!((back.source, back.destination), (packet.destination, packet.source));
        let Content::Tcp(reset) = back.content else { panic!("{back:?}") };
        assert_eq!((reset.from, reset.to, reset.flags), (80, 1_234, RST | ACK));
        // The SYN counts as a byte.
        assert_eq!((reset.sequence, reset.acknowledged), (0, 1_001));

        let frame = tcp(v6, 1_234, ACK, b"data");
        let answer = Packet::parse(&frame).unwrap().reset().unwrap();
        let Content::Tcp(reset) = Packet::parse(&answer).unwrap().content else { panic!() };
        assert_eq!((reset.sequence, reset.flags), (2_000, RST));
        // Two that refuse each other would never end.
        let frame = tcp(v6, 1_234, RST, b"");
        assert_eq!(Packet::parse(&frame).unwrap().reset(), None);
    }
}

#[test]
fn a_datagram_is_turned_away_with_what_it_was() {
    for v6 in [false, true] {
        let frame = udp(v6, 1_234, &[7; 1_400]);
        let packet = Packet::parse(&frame).unwrap();
        for (why, v4_code, v6_code) in [(Unreachable::Port, 3, 4), (Unreachable::Prohibited, 13, 1)] {
            let answer = packet.unreachable(why);
            assert!(sums(&answer, v6));
            let head = if v6 { 54 } else { 34 };
            let expected = if v6 { [1, v6_code] } else { [3, v4_code] };
            assert_eq!(answer[head..head + 2], expected);
            let quoted = &answer[head + 8..];
            assert_eq!(*quoted, frame[14..14 + quoted.len()]);
            // RFC 4443 §2.4 (c), RFC 1812 §4.3.2.3.
            assert!(answer.len() - 14 <= if v6 { 1_280 } else { 576 });
        }
    }
}

#[test]
fn a_ping_is_answered_with_what_it_said() {
    for v6 in [false, true] {
        let (protocol, request, reply) = if v6 { (58, 128, 129) } else { (1, 8, 0) };
        let frame = ip(v6, protocol, &[request, 0, 1, 2, 3, 4, 5, 6, b'h', b'i', b'!']);
        let answer = Packet::parse(&frame).unwrap().echo_reply().unwrap();
        assert!(sums(&answer, v6));
        let body = &answer[if v6 { 54 } else { 34 }..];
        assert_eq!((body[0], &body[4..]), (reply, &[3, 4, 5, 6, b'h', b'i', b'!'][..]));
    }
}

#[test]
fn frames_of_any_length_and_content_do_no_harm() {
    let mut frames =
        vec![tcp(false, 1, SYN, b"x"), tcp(true, 1, ACK, b"x"), udp(false, 1, b"x"), udp(true, 1, b"x")];
    frames.push(ip(true, 44, &[17, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 53, 0, 8, 0, 0]));
    for frame in frames {
        for length in 0..frame.len() {
            for at in 0..length {
                let mut bent = frame[..length].to_vec();
                bent[at] = !bent[at];
                if let Some(packet) = Packet::parse(&bent) {
                    let _ = (packet.reset(), packet.echo_reply(), packet.unreachable(Unreachable::Port));
                }
            }
        }
    }
}

#[test]
fn multicast_and_what_is_no_ip_is_no_packet() {
    let mut frame = udp(true, 1, b"x");
    frame[0] = 0x33;
    assert!(Packet::parse(&frame).is_none());
    let mut frame = udp(false, 1, b"x");
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    assert!(Packet::parse(&frame).is_none());
}

fn key(client: u16) -> FlowKey {
    FlowKey { client: SocketAddr::from(([192, 0, 2, 2], client)), port: 80 }
}

fn flags(flags: u8) -> Segment {
    Segment { from: 0, to: 0, flags, sequence: 0, acknowledged: 0, payload_bytes: 0 }
}

#[test]
fn a_connection_is_open_from_the_guests_answer_to_both_farewells() {
    let mut flows = Flows::default();
    assert_eq!(flows.note(key(1), Sender::Client, flags(SYN), 0), Change::None);
    assert_eq!(flows.open(0), 0);
    assert_eq!(flows.note(key(1), Sender::Guest, flags(SYN | ACK), 1), Change::Opened);
    // Sent again because it was thought lost.
    assert_eq!(flows.note(key(1), Sender::Guest, flags(SYN | ACK), 2), Change::None);
    assert_eq!(flows.open(2), 1);
    assert_eq!(flows.note(key(1), Sender::Client, flags(FIN | ACK), 3), Change::None);
    assert_eq!(flows.note(key(1), Sender::Client, flags(FIN | ACK), 4), Change::None);
    assert_eq!(flows.open(4), 1);
    assert_eq!(flows.note(key(1), Sender::Guest, flags(FIN | ACK), 5), Change::Closed);
    assert_eq!(flows.open(5), 0);
    // A refused one was never open.
    flows.note(key(2), Sender::Client, flags(SYN), 6);
    assert_eq!(flows.note(key(2), Sender::Guest, flags(RST | ACK), 7), Change::None);
}

#[test]
fn a_connection_whose_end_is_never_seen_does_not_count_for_ever() {
    let mut flows = Flows::default();
    for client in [1, 2] {
        flows.note(key(client), Sender::Client, flags(SYN), 0);
        flows.note(key(client), Sender::Guest, flags(SYN | ACK), 0);
    }
    flows.note(key(2), Sender::Guest, flags(FIN | ACK), 0);
    assert_eq!(flows.open(HALF_CLOSED_MS_MAX), 2);
    assert_eq!(flows.open(HALF_CLOSED_MS_MAX + 1), 1);
    assert_eq!(flows.open(FLOW_MS_MAX + 1), 0);
}

#[test]
fn a_flood_of_syns_makes_no_open_connection_forgotten() {
    let mut flows = Flows::default();
    flows.note(key(1), Sender::Client, flags(SYN), 0);
    flows.note(key(1), Sender::Guest, flags(SYN | ACK), 0);
    for client in 2..10_000 {
        flows.note(key(client), Sender::Client, flags(SYN), u64::from(client));
    }
    assert!(flows.has(&key(1)));
    assert_eq!((2..10_000).filter(|client| flows.has(&key(*client))).count(), FLOWS_MAX - 1);
}

#[test]
fn what_waits_is_bounded_and_a_repeated_request_waits_once() {
    let limits = HeldLimits { frames: 4, bytes: 1_000, client_frames: 3, opening: 2 };
    let (mut held, now) = (Held::new(limits), Instant::now());
    let mut push = |frame: Vec<u8>| held.push(&frame, &Packet::parse(&frame).unwrap(), now);
    assert_eq!(push(tcp(false, 1, SYN, b"")), Ok(()));
    assert_eq!(push(tcp(false, 1, SYN, b"")), Err(NotHeld::Again));
    assert_eq!(push(tcp(false, 2, SYN, b"")), Ok(()));
    assert_eq!(push(tcp(false, 3, SYN, b"")), Err(NotHeld::Full));
    assert_eq!(push(udp(false, 1, b"one")), Ok(()));
    // Of one client enough wait.
    assert_eq!(push(udp(false, 1, b"two")), Err(NotHeld::Full));
    assert_eq!(push(udp(true, 1, &[0; 900])), Err(NotHeld::Full));
    assert_eq!(push(udp(true, 1, b"other")), Ok(()));
    assert_eq!(push(udp(true, 1, b"too many")), Err(NotHeld::Full));
    assert_eq!((held.clients(), held.datagrams()), (2, 2));
    assert!(held.has_from("2001:db8::2".parse::<IpAddr>().unwrap()));
    let order: Vec<usize> = std::iter::from_fn(|| held.pop()).map(|frame| frame.bytes.len()).collect();
    assert_eq!(order, [54, 54, 45, 67]);
    assert_eq!((held.clients(), held.datagrams(), held.is_empty()), (0, 0, true));
}
