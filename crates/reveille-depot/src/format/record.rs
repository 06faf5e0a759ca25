//! Records: small objects of one section, such as manifests.
//!
//! ```text
//! offset  bytes
//!  0      32     header
//! 32      32     BLAKE3 over header, path and content     (not if sealed: the seal does the same)
//!  …             content, zstd                            (16 more bytes if sealed)
//! ```

use std::io::Read;

use super::{Fault, HEADER_BYTES, Header, Kind};
use crate::seal::{Keyring, Place, SALT_BYTES, SealKey};

const SUM_BYTES: usize = 32;
/// zstd's level for records: they are small.
const LEVEL: i32 = 3;
/// The memory that a record may make the decompressor take: 4 MiB, twice what that level uses.
const WINDOW_LOG_MAX: u32 = 22;
/// What a record is larger by than its content, compressed in the worst case.
const OVERHEAD_BYTES: u64 = 4096;

/// Largest object of a record whose content has at most `content_max` bytes.
pub fn object_bytes_max(content_max: u64) -> u64 {
    content_max + (content_max >> 8) + OVERHEAD_BYTES
}

fn sum_of(header: &[u8], path: &str, content: &[u8]) -> [u8; SUM_BYTES] {
    let mut sum = blake3::Hasher::new_derive_key("reveille depot 1: record");
    sum.update(header).update(&(path.len() as u64).to_le_bytes()).update(path.as_bytes()).update(content);
    *sum.finalize().as_bytes()
}

/// The record of `content` at `path`.
///
/// # Errors
/// If the compressor or the cipher fails.
pub fn encode(
    kind: Kind,
    path: &str,
    content: &[u8],
    salt: [u8; SALT_BYTES],
    key: Option<&SealKey>,
) -> Result<Vec<u8>, Fault> {
    let header = Header { kind, key: key.map(SealKey::id), salt }.encode();
    let mut compressed =
        zstd::bulk::compress(content, LEVEL).map_err(|error| Fault::new(0, format!("zstd: {error}")))?;
    let mut bytes = header.to_vec();
    match key {
        None => bytes.extend_from_slice(&sum_of(&header, path, &compressed)),
        Some(key) => {
            let place = Place { path, salt: &salt, before: &header, section: 0 };
            key.seal(place, &mut compressed).ok_or_else(|| Fault::new(0, "ring does not seal it"))?;
        }
    }
    bytes.append(&mut compressed);
    Ok(bytes)
}

/// The content of the record that was written to `path`, at most `content_max` bytes.
///
/// # Errors
/// [`Fault`] if it is not as it was written, or larger.
pub fn decode(
    bytes: &[u8],
    kind: Kind,
    path: &str,
    content_max: u64,
    keys: &Keyring,
) -> Result<Vec<u8>, Fault> {
    let (header, key) = Header::decode(bytes, kind, keys)?;
    let (head, rest) = bytes.split_at_checked(HEADER_BYTES).unwrap_or_default();
    let opened;
    let compressed = match key {
        None => {
            let (sum, content) = rest
                .split_first_chunk::<SUM_BYTES>()
                .ok_or_else(|| Fault::new(bytes.len(), "it ends within its checksum"))?;
            if *sum != sum_of(head, path, content) {
                return Err(Fault::new(HEADER_BYTES, "its checksum does not match"));
            }
            content
        }
        Some(key) => {
            let place = Place { path, salt: &header.salt, before: head, section: 0 };
            opened = key
                .open(place, rest.to_vec())
                .ok_or_else(|| Fault::new(HEADER_BYTES, "its seal is broken"))?;
            &opened
        }
    };
    let broken = |error| Fault::new(HEADER_BYTES, format!("it cannot be decompressed: {error}"));
    let mut content = Vec::new();
    let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(broken)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(broken)?;
    decoder.take(content_max + 1).read_to_end(&mut content).map_err(broken)?;
    if content.len() as u64 > content_max {
        let why = format!("it holds more than the {content_max} bytes that are possible");
        return Err(Fault::new(HEADER_BYTES, why));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_at_its_place_only_and_whole() {
        for keys in [Keyring::default(), Keyring::new(vec![SealKey::new(&[3; 32])], false)] {
            let bytes = encode(Kind::Owner, "a/b", b"content", [4; 16], keys.newest()).unwrap();
            let read = |bytes: &[u8], kind, path| decode(bytes, kind, path, 7, &keys);
            assert_eq!(read(&bytes, Kind::Owner, "a/b").unwrap(), b"content");
            assert!(read(&bytes, Kind::Owner, "a/c").is_err());
            assert!(read(&bytes, Kind::Manifest, "a/b").is_err());
            assert!(
                decode(&bytes, Kind::Owner, "a/b", 6, &keys).unwrap_err().why.contains("more than the 6")
            );
            for bit in 0..bytes.len() * 8 {
                let mut bent = bytes.clone();
                bent[bit / 8] ^= 1 << (bit % 8);
                assert!(read(&bent, Kind::Owner, "a/b").is_err(), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert!(read(&bytes[..length], Kind::Owner, "a/b").is_err(), "{length}");
            }
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bytes = encode(Kind::Touched, "x", &vec![0; 8 << 20], [4; 16], None).unwrap();
        assert!(bytes.len() < 4096);
        assert!(decode(&bytes, Kind::Touched, "x", 1 << 20, &Keyring::default()).is_err());
    }
}
