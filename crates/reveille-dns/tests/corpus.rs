//! Corpora of odd and hostile packets, collected by others, against a running server: no crash, no hang, no leak.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "of what the fuzz targets share, a part is used")]

mod common;
#[path = "common/pcap.rs"]
mod pcap;
#[path = "../../../fuzz/src/question.rs"]
mod question;
#[path = "../../../fuzz/src/world.rs"]
mod world;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;

use common::exchange::Client;
use common::{WAIT_MAX, World, message, name};
use reveille_dns::DnsConfig;

/// Names the directory of the corpora: packets, one to a file, and captures.
const CORPUS_VARIABLE: &str = "REVEILLE_DNS_CORPUS";
/// Largest datagram that can be sent.
const DATAGRAM_BYTES_MAX: usize = 65_507;
/// ID of the questions that tell that a packet is met with silence.
const SENTINEL_ID: [u8; 2] = common::exchange::SENTINEL_ID.to_be_bytes();
/// How often the corpora are sent; what grows from the second time on is a leak.
const ROUNDS: usize = 4;
/// What the memory may grow by between two rounds, in KiB: the allocator's moods.
const GROWTH_KIB_MAX: u64 = 2_048;

/// Every file as a packet, and every packet of those that are captures; each also with QR and opcode cleared, as most
/// are answers, which are met with silence.
fn packets() -> Vec<Vec<u8>> {
    let root =
        std::env::var_os(CORPUS_VARIABLE).unwrap_or_else(|| panic!("{CORPUS_VARIABLE} names no directory"));
    let mut open = vec![PathBuf::from(root)];
    let mut packets = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let file = fs::read(&path).unwrap();
        packets.extend(pcap::payloads(&file));
        packets.push(file);
    }
    packets.retain(|packet| packet.len() <= DATAGRAM_BYTES_MAX && !packet.starts_with(&SENTINEL_ID));
    let as_questions = packets.clone().into_iter().filter(|packet| packet.len() > 2).map(|mut packet| {
        packet[2] &= 0x07;
        packet
    });
    packets.extend(as_questions.collect::<Vec<_>>());
    packets.sort();
    packets.dedup();
    packets
}

/// Bytes as a connection's all, without framing.
fn pour(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT_MAX)).unwrap();
    let poured = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let read = poured.and_then(|()| stream.read_to_end(&mut Vec::new()));
    if let Err(error) = read {
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
    }
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs corpora of packets: REVEILLE_DNS_CORPUS=… cargo test -p reveille-dns --test corpus -- --ignored"]
fn corpora_do_no_harm() {
    let packets = packets();
    assert!(!packets.is_empty());
    for packet in &packets {
        question::run(packet);
    }
    let config = DnsConfig {
        listen: vec![SocketAddr::from(([127, 0, 0, 53], 0))],
        udp_threads: 1,
        ..DnsConfig::default()
    };
    let world = World::serving((**world::VIEW).clone(), &config);
    let mut memory = Vec::new();
    for _ in 0..ROUNDS {
        let before = open_files();
        let mut client = Client::new(world.address(), name("vm.test").as_wire());
        for packet in &packets {
            // Each returns when the server has answered the question behind it.
            client.udp(packet);
            client.tcp(packet);
            pour(world.address(), packet);
        }
        drop(client);
        world.until("every connection is closed", |_| open_files() <= before);
        memory.push(resident_kib());
    }
    println!("{} packets, {ROUNDS} times; {memory:?} KiB; {:?}", packets.len(), world.server.counts());
    let grown = memory[1..].windows(2).map(|two| two[1].saturating_sub(two[0])).max();
    assert!(grown <= Some(GROWTH_KIB_MAX), "{memory:?} KiB");
}

#[test]
fn captures_are_read() {
    let udp =
        [&[0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0][..], &[127; 8], &[0, 53, 0, 53, 0, 11, 0, 0], b"abc"]
            .concat();
    let mut file = [&0xa1b2_c3d4u32.to_le_bytes()[..], &[0; 16], &101u32.to_le_bytes()].concat();
    for _ in 0..2 {
        let length = u32::try_from(udp.len()).unwrap().to_le_bytes();
        file.extend([&[0; 8][..], &length, &length, &udp].concat());
    }
    assert_eq!(pcap::payloads(&file), [b"abc", b"abc"]);
    assert_eq!(pcap::payloads(&file[..file.len() - 1]).len(), 1);
    assert!(pcap::payloads(b"no capture, but a few bytes that are long enough").is_empty());
}
