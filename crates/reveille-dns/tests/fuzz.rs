//! The fuzz targets (`fuzz/`, `scripts/fuzz.sh`) in short: over their seeds and mutations of them, without the
//! coverage that leads the long runs. The seeds of the targets that read messages are drawn here, when
//! `REVEILLE_WRITE_SEEDS` is set.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the seeds need a part of what draws questions")]

mod common;
#[path = "../../../fuzz/src/dnstap.rs"]
mod dnstap;
#[path = "../../../fuzz/src/fast.rs"]
mod fast;
#[path = "../../../fuzz/src/framing.rs"]
mod framing;
#[path = "conform/odd.rs"]
mod odd;
#[path = "../../../fuzz/src/question.rs"]
mod question;
#[path = "conform/questions.rs"]
mod questions;
#[path = "../../../fuzz/src/transfer.rs"]
mod transfer;
#[path = "../../../fuzz/src/update.rs"]
mod update;
#[path = "../../../fuzz/src/world.rs"]
mod world;
#[path = "../../../fuzz/src/zonefile.rs"]
mod zonefile;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use common::exchange::framed;
use common::message;
use common::random::Random;
use questions::Source;

/// Set, it makes the seeds be written anew.
const WRITE_VARIABLE: &str = "REVEILLE_WRITE_SEEDS";
/// Seeds of each of the targets that read messages.
const SEEDS: usize = 64;
/// Largest seed that is kept, in bytes: the small ones lead further.
const SEED_BYTES_MAX: usize = 200;
/// Most changes to a seed.
const CHANGES_MAX: usize = 6;

fn directory(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "..", "fuzz", "seeds", target].iter().collect()
}

/// The seeds of a target, by name.
fn seeds(target: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory(target)).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .collect()
}

/// Runs a target over its seeds and so many mutations of them.
fn mutate(target: &str, run: fn(&[u8]), more: &[Vec<u8>], count: usize) {
    let mut inputs: Vec<Vec<u8>> = seeds(target).into_values().collect();
    inputs.extend_from_slice(more);
    let mut random = Random::new(1);
    for index in 0..inputs.len() + count {
        let input = match inputs.get(index) {
            Some(seed) => seed.clone(),
            None => {
                let mut input = random.pick::<Vec<u8>>(&inputs).clone();
                for _ in 0..=random.below(CHANGES_MAX) {
                    change(&mut input, &inputs, &mut random);
                }
                input
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&input))) {
            println!("{target}, input {index}: {}", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
    }
}

/// One change of those that break parsers.
fn change(input: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    match random.below(7) {
        0 => input.truncate(at),
        1 => input.insert(at, random.byte()),
        2 if at < input.len() => drop(input.remove(at)),
        3 if at < input.len() => input[at] ^= 1 << random.below(8),
        4 if at < input.len() => input[at] = *random.pick(&[0, 1, 0x3f, 0x40, 0x80, 0xc0, 0xff]),
        5 => {
            let other = random.pick::<Vec<u8>>(others);
            let from = random.below(other.len() + 1);
            let to = (from + random.below(40)).min(other.len());
            input.splice(at..at, other[from..to].iter().copied());
        }
        _ => {
            let end = (at + random.below(20)).min(input.len());
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
    }
}

#[test]
fn packets() {
    let both = |packet: &[u8]| {
        question::run(packet);
        fast::run(packet);
    };
    mutate("question", both, &[], 30_000);
}

#[test]
fn connections() {
    mutate("framing", framing::run, &[], 6_000);
}

#[test]
fn transfers() {
    mutate("transfer", transfer::run, &[], 10_000);
}

#[test]
fn dnstap_streams() {
    mutate("dnstap", dnstap::run, &[], 20_000);
}

#[test]
fn updates() {
    mutate("update", update::run, &[], 4_000);
}

#[test]
fn zone_files() {
    let whole: Vec<Vec<u8>> = world::ZONES.iter().skip(1).map(|(_, text)| text.as_bytes().to_vec()).collect();
    mutate("zonefile", zonefile::run, &whole, 3_000);
}

#[test]
fn questions_as_others_might_ask_them() {
    let mut source = source();
    for _ in 0..5_000 {
        let packet = source.question().packet;
        question::run(&packet);
        fast::run(&packet);
    }
}

fn source() -> Source {
    let zones: Vec<_> = world::VIEW.zones().iter().map(|zone| (**zone).clone()).collect();
    Source::new(1, &zones, world::VIEW.services().map(|service| service.name.clone()))
}

#[test]
fn seeds_are_there() {
    if std::env::var_os(WRITE_VARIABLE).is_some() {
        write_seeds();
    }
    assert!(
        ["question", "framing", "transfer", "update", "zonefile", "dnstap"]
            .iter()
            .all(|target| !seeds(target).is_empty())
    );
}

fn write_seeds() {
    let mut source = source();
    let mut random = Random::new(2);
    let packets: Vec<Vec<u8>> = std::iter::repeat_with(|| source.question().packet)
        .filter(|packet| packet.len() <= SEED_BYTES_MAX)
        .take(SEEDS)
        .collect();
    for packet in &packets {
        write_seed("question", packet);
    }
    for serial in [None, Some(0), Some(1), Some(3), Some(u32::MAX - 2), Some(u32::MAX), Some(77)] {
        write_seed("transfer", &transfer_question(serial));
    }
    for updates in UPDATES.windows(3).chain(UPDATES.chunks(1)) {
        let messages = updates.iter().map(|update| framed(&update_message(*update)));
        write_seed("update", &messages.collect::<Vec<_>>().concat());
    }
    for messages in packets.chunks(4) {
        let sent = messages.iter().flat_map(|message| framed(message));
        let pieces = random.below(6);
        let mut input = vec![u8::try_from(pieces).unwrap()];
        input.extend((0..pieces).map(|_| random.byte() % 64));
        input.push(*random.pick(&[0, 15, 255]));
        input.extend(sent);
        write_seed("framing", &input);
    }
}

/// Class, owner, type, TTL, data of records, and how many of them are prerequisites.
type Update = (usize, &'static [(u16, &'static [u8], u16, u32, &'static [u8])]);

/// Updates of `vm.test` of every kind (RFC 2136 §2.4, §2.5); `\xc0\x0c` is the zone's name.
const UPDATES: [Update; 10] = [
    (0, &[(1, b"\x03new\xc0\x0c", 1, 60, b"\xc0\x00\x02\x09")]),
    (0, &[(255, b"\x03www\xc0\x0c", 1, 0, b""), (1, b"\x03www\xc0\x0c", 28, 60, &[1; 16])]),
    (0, &[(255, b"\x03www\xc0\x0c", 255, 0, b"")]),
    (0, &[(254, b"\x03www\xc0\x0c", 16, 0, b"\x04text"), (1, b"\x03www\xc0\x0c", 16, 5, b"\x01a\x01b")]),
    (1, &[(255, b"\x03www\xc0\x0c", 255, 0, b""), (1, b"\x01x\xc0\x0c", 5, 60, b"\x03www\xc0\x0c")]),
    (
        1,
        &[
            (254, b"\x03new\xc0\x0c", 255, 0, b""),
            (1, b"\x03new\xc0\x0c", 15, 60, b"\x00\x05\x03www\xc0\x0c"),
        ],
    ),
    (1, &[(1, b"\x03www\xc0\x0c", 1, 0, b"\xc0\x00\x02\x50"), (1, b"\x01*\xc0\x0c", 65_400, 60, b"\x00")]),
    (
        0,
        &[
            (1, b"\x03cut\xc0\x0c", 2, 60, b"\x02ns\x03cut\xc0\x0c"),
            (1, b"\x02ns\x03cut\xc0\x0c", 1, 60, b"\xc0\x00\x02\x07"),
        ],
    ),
    (0, &[(1, b"\x05hello\xc0\x0c", 1, 60, b"\xc0\x00\x02\x09")]),
    (
        0,
        &[(
            1,
            b"\xc0\x0c",
            6,
            60,
            b"\x00\x00\x00\x00\x00\x09\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01",
        )],
    ),
];

/// AXFR of `vm.test`; with a serial, IXFR from there on.
fn transfer_question(serial: Option<u32>) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 0, 0, 0, 1, 0, 0, 0, serial.is_some().into(), 0, 0];
    packet.extend(b"\x02vm\x04test\x00\x00");
    packet.extend([252 - u8::from(serial.is_some()), 0, 1]);
    if let Some(serial) = serial {
        packet.extend(b"\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x00\x00\x16\x00\x00");
        packet.extend(serial.to_be_bytes());
        packet.extend([0; 16]);
    }
    packet
}

fn update_message((prerequisites, records): Update) -> Vec<u8> {
    let count = |count: usize| u16::try_from(count).unwrap().to_be_bytes();
    let mut packet = vec![0x12, 0x34, 0x28, 0, 0, 1];
    packet.extend([count(prerequisites), count(records.len() - prerequisites), [0, 0]].concat());
    packet.extend(b"\x02vm\x04test\x00\x00\x06\x00\x01");
    for (class, owner, rtype, ttl, data) in records {
        packet.extend([*owner, &rtype.to_be_bytes(), &class.to_be_bytes(), &ttl.to_be_bytes()].concat());
        packet.extend([&count(data.len())[..], data].concat());
    }
    packet
}

/// Named after what is in it, so that one that is drawn twice is one.
fn write_seed(target: &str, seed: &[u8]) {
    let hash = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let name = seed.iter().fold(0xcbf2_9ce4_8422_2325, hash);
    fs::write(directory(target).join(format!("{name:016x}")), seed).unwrap();
}
