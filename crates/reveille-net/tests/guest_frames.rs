//! What a hostile or strange guest may put on the cable.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends where something is not as it should be, and its numbers are small"
)]

mod guest_peer;

use std::time::Duration;

use guest_peer::{Service, frame, within};
use proptest::prelude::*;
use reveille_net::guest::{Dropped, GATEWAY_IP, GUEST_IP, GUEST_MAC, HERE_IP, HERE_MAC, Link, LinkAddresses};
use smoltcp::wire::{Ipv4Packet, TcpPacket};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

fn with_length(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

async fn next_frame(stream: &mut UnixStream) -> Vec<u8> {
    let length = within("a frame", stream.read_u32()).await.unwrap();
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame).await.unwrap();
    frame
}

fn who_has(target: [u8; 4], source: [u8; 4], mac: [u8; 6]) -> Vec<u8> {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1], &mac[..], &source, &[0; 6], &target].concat();
    [&[0xff; 6], &mac[..], &[8, 6], &arp].concat()
}

/// A TCP segment with right checksums. `ports`: the guest's and ours.
fn segment(ports: (u16, u16), seq: u32, ack: u32, flags: u8, window: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40 + payload.len()];
    packet[40..].copy_from_slice(payload);
    let length = packet.len() as u16;
    let mut ip = Ipv4Packet::new_unchecked(&mut packet[..20]);
    ip.set_version(4);
    ip.set_header_len(20);
    ip.set_total_len(length);
    ip.set_hop_limit(64);
    ip.set_next_header(smoltcp::wire::IpProtocol::Tcp);
    ip.set_src_addr(GUEST_IP);
    ip.set_dst_addr(HERE_IP);
    ip.fill_checksum();
    packet[20..22].copy_from_slice(&ports.0.to_be_bytes());
    packet[22..24].copy_from_slice(&ports.1.to_be_bytes());
    packet[24..28].copy_from_slice(&seq.to_be_bytes());
    packet[28..32].copy_from_slice(&ack.to_be_bytes());
    packet[32] = 5 << 4;
    packet[33] = flags;
    packet[34..36].copy_from_slice(&window.to_be_bytes());
    TcpPacket::new_unchecked(&mut packet[20..]).fill_checksum(&GUEST_IP.into(), &HERE_IP.into());
    frame(0x0800, &packet)
}

#[tokio::test]
async fn arp_is_answered_for_our_addresses_only() {
    for gateway in [false, true] {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let link = Link::attach(ours, LinkAddresses { gateway });
        let me = GUEST_IP.octets();
        let other_mac = [0x52, 0x54, 0, 9, 9, 9];
        for request in [
            who_has([10, 0, 2, 3], me, GUEST_MAC),
            who_has(GATEWAY_IP.octets(), me, GUEST_MAC),
            who_has(HERE_IP.octets(), [10, 0, 2, 77], GUEST_MAC),
            // What it says of itself and whence it comes differ.
            [&who_has(HERE_IP.octets(), me, GUEST_MAC)[..22], &other_mac, &me, &[0; 6], &HERE_IP.octets()]
                .concat(),
            who_has(me, [0; 4], GUEST_MAC),
            who_has(HERE_IP.octets(), me, GUEST_MAC),
        ] {
            guest.write_all(&with_length(&request)).await.unwrap();
        }
        let mut answers = vec![HERE_IP];
        if gateway {
            answers.insert(0, GATEWAY_IP);
        }
        for ours in answers {
            let answer = next_frame(&mut guest).await;
            let arp = [&[0, 1, 8, 0, 6, 4, 0, 2], &HERE_MAC[..], &ours.octets(), &GUEST_MAC, &me].concat();
            assert_eq!(answer, [&GUEST_MAC[..], &HERE_MAC, &[8, 6], &arp].concat());
        }
        let not_for_us = if gateway { 1 } else { 2 };
        assert_eq!(link.counters().dropped, Dropped { spoofed: 3, not_for_us, ..Dropped::default() });
    }
}

#[tokio::test]
async fn a_guest_with_a_mac_of_its_own_is_found_by_its_arp() {
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let link = Link::attach(ours, LinkAddresses::default());
    let connecting = tokio::spawn(async move {
        let _ = link.connect(8080).await;
    });
    let first = next_frame(&mut guest).await;
    assert_eq!(first[..6], GUEST_MAC);
    // It announces itself, as a restored guest does; and says so of an address of many, which nobody has.
    let own = [0x52, 0x57, 1, 2, 3, 4];
    for mac in [own, [0x53, 0x57, 1, 2, 3, 4]] {
        let mut announced = who_has(GUEST_IP.octets(), GUEST_IP.octets(), mac);
        announced[6..12].copy_from_slice(&mac);
        guest.write_all(&with_length(&announced)).await.unwrap();
    }
    let again = next_frame(&mut guest).await;
    assert_eq!((&again[..6], &again[14..]), (&own[..], &first[14..]), "the SYN follows it");
    connecting.abort();
}

#[tokio::test]
async fn the_guest_cannot_open_a_connection_to_us() {
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let _link = Link::attach(ours, LinkAddresses::default());
    guest.write_all(&with_length(&segment((4000, 22), 1000, 0, 0x02, 1000, &[]))).await.unwrap();
    let answer = next_frame(&mut guest).await;
    let tcp = TcpPacket::new_checked(&answer[34..]).unwrap();
    assert!(tcp.rst() && tcp.ack_number().0 == 1001, "{tcp}");
}

#[tokio::test]
async fn frames_with_other_sources_destinations_or_protocols_are_dropped() {
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let link = Link::attach(ours, LinkAddresses::default());
    let good = segment((4000, 22), 1000, 0, 0x02, 1000, &[]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    for bad in [
        changed(14 + 12, &[10, 0, 2, 16]),
        changed(6, &HERE_MAC),
        changed(14 + 16, &[127, 0, 0, 1]),
        changed(14 + 16, &[10, 0, 2, 255]),
        changed(0, &[0xff; 6]),
        changed(12, &[0x86, 0xdd]),
        changed(14 + 9, &[132]),
        changed(14 + 6, &[0x20]),
        good[..30].to_vec(),
        vec![],
        vec![0; 2000],
        vec![0; 100_000],
    ] {
        guest.write_all(&with_length(&bad)).await.unwrap();
    }
    guest.write_all(&with_length(&good)).await.unwrap();
    // Only the last one is answered.
    let answer = next_frame(&mut guest).await;
    assert!(TcpPacket::new_checked(&answer[34..]).unwrap().rst());
    let counters = link.counters();
    let expected =
        Dropped { spoofed: 2, not_for_us: 5, fragments: 1, malformed: 2, oversized: 2, ..Dropped::default() };
    assert_eq!((counters.frames_in, counters.frames_out, counters.dropped), (13, 1, expected));
}

#[tokio::test]
async fn a_length_that_no_device_sends_closes_the_link() {
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let link = Link::attach(ours, LinkAddresses::default());
    guest.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    within("closed", link.closed()).await;
    assert_eq!(within("end", guest.read(&mut [0; 9])).await.unwrap(), 0);
}

/// One thing that a guest does to a connection that it got a SYN for.
#[derive(Debug, Clone)]
enum Move {
    /// A segment near the right sequence numbers, or anywhere.
    Segment { seq: u32, ack: u32, flags: u8, window: u16, payload: usize },
    /// Bytes, as a frame to our MAC.
    Packet(Vec<u8>),
    /// A raw frame.
    Frame(Vec<u8>),
    /// A UDP or other fragment.
    Fragment { offset: u16, more: bool, payload: usize },
}

fn near() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0u32..4, 2 => 0u32..70_000, 1 => any::<u32>(), 2 => (0u32..4).prop_map(|n| 0u32.wrapping_sub(n))]
}

fn a_move() -> impl Strategy<Value = Move> {
    let flags = prop_oneof![3 => Just(0x10u8), 2 => Just(0x12u8), 1 => Just(0x11u8), 1 => any::<u8>()];
    let window = prop_oneof![Just(0u16), Just(1u16), any::<u16>()];
    prop_oneof![
        10 => (near(), near(), flags, window, 0usize..1460)
            .prop_map(|(seq, ack, flags, window, payload)| Move::Segment { seq, ack, flags, window, payload }),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Move::Packet),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Move::Frame),
        1 => (0u16..8192, any::<bool>(), 0usize..1460)
            .prop_map(|(offset, more, payload)| Move::Fragment { offset, more, payload }),
    ]
}

/// Plays the moves against a link with one open connection attempt; then the link must still answer.
async fn survives(moves: Vec<Move>) {
    let (ours, mut guest) = UnixStream::pair().unwrap();
    let link = Link::attach(ours, LinkAddresses::default());
    let stream = link.begin_connect(80).unwrap();
    let syn = next_frame(&mut guest).await;
    let tcp = TcpPacket::new_checked(&syn[34..]).unwrap();
    let (port, isn) = (tcp.src_port(), tcp.seq_number().0 as u32);
    let (mut read, mut write) = guest.into_split();
    // What the link sends is read all the time, until the answer to the last probe.
    let answered = tokio::spawn(async move {
        loop {
            let length = read.read_u32().await.unwrap();
            let mut frame = vec![0; length as usize];
            read.read_exact(&mut frame).await.unwrap();
            if frame[12..14] == [8, 6] && frame[21] == 2 {
                return;
            }
        }
    });
    for (number, one) in moves.into_iter().enumerate() {
        let frame = match one {
            Move::Segment { seq, ack, flags, window, payload } => {
                let (seq, ack) = (5000u32.wrapping_add(seq), isn.wrapping_add(1).wrapping_add(ack));
                segment((80, port), seq, ack, flags, window, &vec![7; payload])
            }
            Move::Packet(bytes) => frame(0x0800, &bytes),
            Move::Frame(bytes) => bytes,
            Move::Fragment { offset, more, payload } => {
                let mut one = segment((80, port), 0, 0, 0, 0, &vec![1; payload]);
                let field = offset | if more { 0x2000 } else { 0 };
                one[20..22].copy_from_slice(&field.to_be_bytes());
                one[23] = 17;
                one
            }
        };
        if write.write_all(&with_length(&frame)).await.is_err() {
            panic!("the link closed over {frame:?}");
        }
        match number % 5 {
            1 => drop(stream.try_read(&mut [0; 700])),
            2 => drop(stream.try_write(&[1; 3000])),
            4 => tokio::task::yield_now().await,
            _ => {}
        }
    }
    let _ = stream.finish();
    drop(stream);
    let probe = who_has(HERE_IP.octets(), GUEST_IP.octets(), GUEST_MAC);
    write.write_all(&with_length(&probe)).await.unwrap();
    within("the link still answers", answered).await.unwrap();
    assert_eq!(link.counters().dropped.stack_faults, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_frames_stop_the_link(moves in proptest::collection::vec(a_move(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(survives(moves));
    }
}

#[tokio::test]
async fn garbage_beside_good_connections_does_them_no_harm() {
    let (ours, guests) = UnixStream::pair().unwrap();
    let link = Link::attach(ours, LinkAddresses::default());
    let controls = guest_peer::run(guests, &[(7, Service::Echo, 2)]);
    let mut stream = within("connect", link.connect(7)).await.unwrap();
    for round in 0..200u32 {
        controls.inject(frame(0x0800, &round.to_be_bytes().repeat(round as usize % 60)));
        controls.inject(segment((7, 1), round, round, round as u8, 0, &[]));
        stream.write_all(&round.to_be_bytes()).await.unwrap();
        assert_eq!(within("echo", stream.read_u32()).await.unwrap(), round);
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(link.counters().dropped.malformed > 0);
}
