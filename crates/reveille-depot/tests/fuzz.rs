//! The fuzz target of the depot (`fuzz/`, `scripts/fuzz.sh`) in short: over its seeds and mutations of them. The seeds
//! are made here; they are written when `REVEILLE_WRITE_SEEDS` is set.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "../../../fuzz/src/depot.rs"]
mod depot;

use std::fs;
use std::path::Path;

use common::{Dice, about};
use reveille_depot::format::chunk;
use reveille_depot::format::manifest::{Manifest, Part};
use reveille_depot::format::map::{ChunkRef, PageMap, encode_set};
use reveille_depot::format::record;
use reveille_depot::names::ChunkName;
use reveille_depot::pages::PageSet;
use reveille_depot::seal::Keyring;

const MUTATIONS: usize = 30_000;

fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let pages: Vec<u8> = [[1; 4096], [2; 4096]].concat();
    let chunk = chunk::encode(&pages, [3; 16], None, 1).unwrap().bytes;
    let mut map = PageMap::default();
    [1, 2, 9].into_iter().zip(0..).for_each(|(page, place)| map.push(page, 0, place));
    let part = |name: &str, map| Part { name: name.to_owned(), bytes: 50_000, content: "0".to_owned(), map };
    let manifest = Manifest {
        about: about("a", 1),
        own_bytes: 1,
        shared_bytes: 2,
        keys: vec![],
        chunks: vec![ChunkRef { name: ChunkName([7; 32]), pages: 3, stored_bytes: 99, key: 0 }],
        parts: vec![part("memory", map), part("device", PageMap::default())],
    };
    let object = manifest.encode([0; 16], &Keyring::default()).unwrap();
    let kind = reveille_depot::format::Kind::Manifest;
    let content =
        record::decode(&object, kind, "services/a/versions/1", 1 << 20, &Keyring::default()).unwrap();
    let set: PageSet = [3, 4, 5, 900, 70_000].into_iter().collect();
    let set = encode_set(&set).unwrap();
    let with = |what: u8, bytes: &[u8]| [&[what], bytes].concat();
    vec![
        ("chunk", with(0, &chunk)),
        ("manifest", with(1, &content)),
        ("pages", with(2, &set)),
        ("object", with(3, &object)),
    ]
}

#[test]
fn no_bytes_make_the_readers_panic() {
    let seeds = seeds();
    if std::env::var_os("REVEILLE_WRITE_SEEDS").is_some() {
        let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/depot");
        seeds.iter().for_each(|(name, bytes)| fs::write(to.join(name), bytes).unwrap());
    }
    let mut dice = Dice(6);
    for (_, seed) in &seeds {
        depot::run(seed);
        for _ in 0..MUTATIONS / seeds.len() {
            let mut bytes = seed.clone();
            for _ in 0..=dice.below(4) {
                let at = usize::try_from(1 + dice.below(bytes.len() as u64 - 1)).unwrap();
                match dice.below(4) {
                    0 => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
                    1 => bytes[at] ^= 1 << dice.below(8),
                    2 => bytes.insert(at, u8::try_from(dice.below(256)).unwrap()),
                    _ => bytes.truncate(at + 1),
                }
                if bytes.len() < 2 {
                    break;
                }
            }
            depot::run(&bytes);
        }
    }
}
