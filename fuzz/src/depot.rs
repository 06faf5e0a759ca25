//! Any bytes as what an object store may bring: a chunk, a record, what a manifest or a list of pages holds. What is
//! taken is consistent in itself and is written as it was read; nothing takes more memory than a limit says.

use reveille_depot::format::manifest::Manifest;
use reveille_depot::format::map::{decode_set, encode_set};
use reveille_depot::format::{Kind, chunk, record};
use reveille_depot::names::VersionId;
use reveille_depot::pages::{PAGE_BYTES, pages_of};
use reveille_depot::seal::Keyring;

/// Largest record that is asked for.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// The first byte says what the others are.
pub fn run(data: &[u8]) {
    let Some((what, bytes)) = data.split_first() else { return };
    let keys = Keyring::default();
    match what % 4 {
        0 => read_chunk(bytes, &keys),
        1 => read_manifest(bytes, &keys),
        2 => {
            if let Ok(set) = decode_set(bytes) {
                let again = decode_set(&encode_set(&set).expect("it was read")).expect("it was written");
                assert_eq!(again, set);
            }
        }
        _ => {
            if let Ok(content) = record::decode(bytes, Kind::Owner, "a", RECORD_BYTES_MAX, &keys) {
                assert!(content.len() as u64 <= RECORD_BYTES_MAX);
            }
            let id = VersionId { service: "a".parse().expect("a name"), number: 1 };
            let _ = Manifest::decode(bytes, &id, &keys);
        }
    }
}

fn read_chunk(bytes: &[u8], keys: &Keyring) {
    let Some(name) = chunk::fitting_name(bytes) else { return };
    let head = chunk::decode_head(bytes, name, keys);
    let Ok(decoded) = chunk::decode(bytes, name, keys) else { return };
    assert_eq!(head.as_ref(), Ok(&decoded.hashes));
    assert_eq!(decoded.pages.len(), decoded.hashes.len() * PAGE_BYTES);
}

fn read_manifest(bytes: &[u8], keys: &Keyring) {
    let Ok(manifest) = Manifest::of_content(bytes) else { return };
    for part in &manifest.parts {
        let mut end = 0;
        for run in part.map.runs() {
            assert!(run.page >= end && run.count > 0, "runs do not go back");
            end = run.end();
            let chunk = manifest.chunks.get(run.chunk as usize).expect("a run is in a chunk");
            assert!(run.place + run.count <= chunk.pages, "a run is inside its chunk");
        }
        assert!(end <= pages_of(part.bytes), "a run is inside its part");
    }
    // It may have been longer than it had to be.
    if let Ok(object) = manifest.encode([0; 16], keys) {
        assert_eq!(Manifest::decode(&object, &manifest.about.id, keys).as_ref(), Ok(&manifest));
    }
}
