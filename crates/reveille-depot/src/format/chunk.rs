//! Chunks: up to 256 pages, their hashes first.
//!
//! ```text
//! offset  bytes
//!  0      32     header
//! 32       2     how many pages
//! 34       2     0
//! 36       4     bytes of the body
//! 40       16·n  head: the hash of each page     (16 more bytes if sealed)
//!  …             body: the pages, zstd           (16 more bytes if sealed)
//! ```
//!
//! The name of a chunk is a hash over its salt and its pages' hashes. So the head, which is a small range of the object,
//! can be checked without the body: that is what an upload reads of its parent. The salt makes each name the only one of
//! its kind, ever: the collector can delete a chunk without asking who might be writing the same one just now.

use std::ops::Range;

use super::{Fault, HEADER_BYTES, Header, Kind};
use crate::names::ChunkName;
use crate::pages::{PAGE_BYTES, PageHash};
use crate::seal::{KeyId, Keyring, Place, SALT_BYTES, SealKey, TAG_BYTES};

/// Most pages of a chunk.
pub const CHUNK_PAGES_MAX: usize = 256;
const PRELUDE_BYTES: usize = HEADER_BYTES + 8;
/// Largest body: what zstd makes of pages that cannot be compressed, and the tag.
const BODY_BYTES_MAX: usize = CHUNK_PAGES_MAX * PAGE_BYTES + ((CHUNK_PAGES_MAX * PAGE_BYTES) >> 8) + 1024;
/// Largest chunk that is read.
pub const CHUNK_BYTES_MAX: usize =
    PRELUDE_BYTES + CHUNK_PAGES_MAX * PageHash::BYTES + TAG_BYTES + BODY_BYTES_MAX;
const HEAD: u8 = 0;
const BODY: u8 = 1;

/// A chunk as it is stored.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Its name.
    pub name: ChunkName,
    /// The object.
    pub bytes: Vec<u8>,
    /// Of each page.
    pub hashes: Vec<PageHash>,
    /// What seals it.
    pub key: Option<KeyId>,
}

/// A chunk that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Of each page.
    pub hashes: Vec<PageHash>,
    /// One after another.
    pub pages: Vec<u8>,
}

impl Decoded {
    /// The page at `place`.
    pub fn page(&self, place: usize) -> Option<&[u8]> {
        self.pages.get(place.checked_mul(PAGE_BYTES)?..place.checked_add(1)?.checked_mul(PAGE_BYTES)?)
    }
}

/// How much of a chunk its head takes, with all that lies before it.
pub fn head_bytes(pages: usize, sealed: bool) -> usize {
    PRELUDE_BYTES + pages * PageHash::BYTES + if sealed { TAG_BYTES } else { 0 }
}

fn name_of(salt: &[u8; SALT_BYTES], hashes: &[u8], key: Option<&SealKey>) -> ChunkName {
    let mut name = match key {
        Some(key) => blake3::Hasher::new_keyed(key.names()),
        None => blake3::Hasher::new_derive_key("reveille depot 1: chunk"),
    };
    name.update(salt).update(hashes);
    ChunkName(*name.finalize().as_bytes())
}

/// The name that would fit a chunk that is not sealed: what whoever can write both a manifest and a chunk would write,
/// and what the fuzz target asks with.
pub fn fitting_name(bytes: &[u8]) -> Option<ChunkName> {
    let salt: &[u8; SALT_BYTES] = bytes.get(HEADER_BYTES - SALT_BYTES..HEADER_BYTES)?.try_into().ok()?;
    let count = usize::from(u16::from_le_bytes(*bytes.get(HEADER_BYTES..)?.first_chunk()?));
    Some(name_of(salt, bytes.get(PRELUDE_BYTES..head_bytes(count, false))?, None))
}

/// Makes a chunk of whole pages, 1 to 256 of them.
///
/// # Errors
/// If `pages` is not that, or the compressor fails.
pub fn encode(
    pages: &[u8],
    salt: [u8; SALT_BYTES],
    key: Option<&SealKey>,
    level: i32,
) -> Result<Encoded, Fault> {
    let (whole, rest) = pages.as_chunks::<PAGE_BYTES>();
    if whole.is_empty() || whole.len() > CHUNK_PAGES_MAX || !rest.is_empty() {
        return Err(Fault::new(0, format!("{} bytes are not 1 to {CHUNK_PAGES_MAX} pages", pages.len())));
    }
    let hashes: Vec<PageHash> = whole.iter().map(|page| PageHash::of(page)).collect();
    let mut head: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
    let name = name_of(&salt, &head, key);
    let mut body =
        zstd::bulk::compress(pages, level).map_err(|error| Fault::new(0, format!("zstd: {error}")))?;
    let tag = if key.is_some() { TAG_BYTES } else { 0 };
    let mut bytes = Vec::with_capacity(head_bytes(whole.len(), key.is_some()) + body.len() + tag);
    bytes.extend_from_slice(&Header { kind: Kind::Chunk, key: key.map(SealKey::id), salt }.encode());
    let limit = |_| Fault::new(0, "zstd made it too large");
    bytes.extend_from_slice(&u16::try_from(whole.len()).map_err(limit)?.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&u32::try_from(body.len() + tag).map_err(limit)?.to_le_bytes());
    if let Some(key) = key {
        let path = name.path();
        let refused = || Fault::new(0, "ring does not seal it");
        let place = Place { path: &path, salt: &salt, before: &bytes, section: HEAD };
        key.seal(place, &mut head).ok_or_else(refused)?;
        key.seal(Place { section: BODY, ..place }, &mut body).ok_or_else(refused)?;
    }
    bytes.append(&mut head);
    bytes.append(&mut body);
    Ok(Encoded { name, bytes, hashes, key: key.map(SealKey::id) })
}

/// A chunk whose head was checked.
struct Opened<'a, 'k> {
    salt: [u8; SALT_BYTES],
    key: Option<&'k SealKey>,
    prelude: &'a [u8],
    hashes: Vec<PageHash>,
    body: Range<usize>,
}

fn open_head<'a, 'k>(bytes: &'a [u8], name: ChunkName, keys: &'k Keyring) -> Result<Opened<'a, 'k>, Fault> {
    let (header, key) = Header::decode(bytes, Kind::Chunk, keys)?;
    let ends = |what: &str| Fault::new(bytes.len(), format!("the chunk ends within its {what}"));
    let prelude = bytes.get(..PRELUDE_BYTES).ok_or_else(|| ends("header"))?;
    let Some(&[count0, count1, 0, 0, body0, body1, body2, body3]) = prelude.get(HEADER_BYTES..) else {
        return Err(Fault::new(HEADER_BYTES + 2, "bytes that must be zero are not"));
    };
    let count = usize::from(u16::from_le_bytes([count0, count1]));
    if !(1..=CHUNK_PAGES_MAX).contains(&count) {
        let why = format!("it says it has {count} pages, 1 to {CHUNK_PAGES_MAX} are possible");
        return Err(Fault::new(HEADER_BYTES, why));
    }
    let body_bytes = usize::try_from(u32::from_le_bytes([body0, body1, body2, body3])).unwrap_or(usize::MAX);
    if body_bytes > BODY_BYTES_MAX {
        let why = format!("it says its body has {body_bytes} bytes, at most {BODY_BYTES_MAX} are possible");
        return Err(Fault::new(HEADER_BYTES + 4, why));
    }
    let head_end = head_bytes(count, key.is_some());
    let stored = bytes.get(PRELUDE_BYTES..head_end).ok_or_else(|| ends("page hashes"))?;
    let head = match key {
        None => stored.to_vec(),
        Some(key) => {
            let path = name.path();
            let place = Place { path: &path, salt: &header.salt, before: prelude, section: HEAD };
            key.open(place, stored.to_vec())
                .ok_or_else(|| Fault::new(PRELUDE_BYTES, "the seal of its page hashes is broken"))?
        }
    };
    if name_of(&header.salt, &head, key) != name {
        return Err(Fault::new(PRELUDE_BYTES, "its page hashes are not those of its name"));
    }
    let (hashes, _) = head.as_chunks::<{ PageHash::BYTES }>();
    let hashes = hashes.iter().map(|hash| PageHash(*hash)).collect();
    Ok(Opened { salt: header.salt, key, prelude, hashes, body: head_end..head_end + body_bytes })
}

/// The pages' hashes of the chunk `name`, of which `bytes` are the first ones at least to the end of its head.
///
/// # Errors
/// [`Fault`] if these are not its first bytes as they were written.
pub fn decode_head(bytes: &[u8], name: ChunkName, keys: &Keyring) -> Result<Vec<PageHash>, Fault> {
    Ok(open_head(bytes, name, keys)?.hashes)
}

/// The chunk `name`, each page checked.
///
/// # Errors
/// [`Fault`] if it is not as it was written.
pub fn decode(bytes: &[u8], name: ChunkName, keys: &Keyring) -> Result<Decoded, Fault> {
    let head = open_head(bytes, name, keys)?;
    let Opened { body, hashes, .. } = head;
    if bytes.len() != body.end {
        let why = format!("the chunk has {} bytes, its header says {}", bytes.len(), body.end);
        return Err(Fault::new(bytes.len().min(body.end), why));
    }
    let stored = bytes.get(body.clone()).unwrap_or_default();
    let opened;
    let compressed = match head.key {
        None => stored,
        Some(key) => {
            let path = name.path();
            let place = Place { path: &path, salt: &head.salt, before: head.prelude, section: BODY };
            opened = key
                .open(place, stored.to_vec())
                .ok_or_else(|| Fault::new(body.start, "the seal of its pages is broken"))?;
            &opened
        }
    };
    let expected = hashes.len() * PAGE_BYTES;
    // The limit on what comes out is what stops a bomb.
    let pages = zstd::bulk::decompress(compressed, expected)
        .map_err(|error| Fault::new(body.start, format!("its pages cannot be decompressed: {error}")))?;
    let (whole, rest) = pages.as_chunks::<PAGE_BYTES>();
    if whole.len() != hashes.len() || !rest.is_empty() {
        let why = format!("its pages have {} bytes, its header says {expected}", pages.len());
        return Err(Fault::new(body.start, why));
    }
    if let Some(wrong) = whole.iter().zip(&hashes).position(|(page, hash)| PageHash::of(page) != *hash) {
        let why = format!("page {wrong} of {} is not what its hash says", hashes.len());
        return Err(Fault::new(body.start, why));
    }
    Ok(Decoded { hashes, pages })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(count: usize) -> Vec<u8> {
        (0..count * PAGE_BYTES).map(|at| u8::try_from((at / 7 + at / PAGE_BYTES) % 251).unwrap()).collect()
    }

    fn rings() -> [Keyring; 2] {
        [Keyring::default(), Keyring::new(vec![SealKey::new(&[3; 32])], false)]
    }

    #[test]
    fn pages_come_back_and_the_head_is_enough_for_the_hashes() {
        for keys in rings() {
            for count in [1, 2, 255, 256] {
                let chunk = encode(&pages(count), [9; 16], keys.newest(), 1).unwrap();
                let back = decode(&chunk.bytes, chunk.name, &keys).unwrap();
                assert_eq!(back.pages, pages(count));
                assert_eq!(back.hashes, chunk.hashes);
                let head = &chunk.bytes[..head_bytes(count, keys.newest().is_some())];
                assert_eq!(decode_head(head, chunk.name, &keys).unwrap(), chunk.hashes);
                assert!(decode(head, chunk.name, &keys).is_err());
            }
        }
        assert!(encode(&pages(257), [0; 16], None, 1).is_err());
        assert!(encode(&[1; 4095], [0; 16], None, 1).is_err());
    }

    #[test]
    fn the_worst_content_fits_the_limits() {
        let mut noise = vec![0; CHUNK_PAGES_MAX * PAGE_BYTES];
        getrandom::fill(&mut noise).unwrap();
        for keys in rings() {
            for level in [1, 3, 19] {
                let chunk = encode(&noise, [1; 16], keys.newest(), level).unwrap();
                assert!(chunk.bytes.len() <= CHUNK_BYTES_MAX);
                assert_eq!(decode(&chunk.bytes, chunk.name, &keys).unwrap().pages, noise);
            }
        }
    }

    #[test]
    fn no_flipped_bit_and_no_cut_changes_a_page_unnoticed() {
        for keys in rings() {
            let chunk = encode(&pages(3), [9; 16], keys.newest(), 1).unwrap();
            let whole = decode(&chunk.bytes, chunk.name, &keys).unwrap();
            let sealed = keys.newest().is_some();
            for bit in 0..chunk.bytes.len() * 8 {
                let mut bent = chunk.bytes.clone();
                bent[bit / 8] ^= 1 << (bit % 8);
                match decode(&bent, chunk.name, &keys) {
                    // A bit of zstd's own header may mean nothing.
                    Ok(same) => assert!(!sealed && same == whole, "bit {bit}"),
                    Err(fault) => assert!(fault.at <= chunk.bytes.len() as u64, "{fault}"),
                }
            }
            for length in 0..chunk.bytes.len() {
                assert!(decode(&chunk.bytes[..length], chunk.name, &keys).is_err());
            }
            let other = ChunkName([0; 32]);
            assert!(decode(&chunk.bytes, other, &keys).is_err());
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_length_that_the_header_says() {
        let hashes: Vec<u8> = PageHash::of(&[0; PAGE_BYTES]).0.to_vec();
        let salt = [0; 16];
        let name = name_of(&salt, &hashes, None);
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        let mut bytes = Header { kind: Kind::Chunk, key: None, salt }.encode().to_vec();
        bytes.extend_from_slice(&[1, 0, 0, 0]);
        bytes.extend_from_slice(&u32::try_from(bomb.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(&hashes);
        bytes.extend_from_slice(&bomb);
        let fault = decode(&bytes, name, &Keyring::default()).unwrap_err();
        assert!(fault.why.contains("cannot be decompressed"), "{fault}");
    }

    #[test]
    fn what_is_not_sealed_is_refused_where_all_must_be() {
        let [open, sealed] = rings();
        let chunk = encode(&pages(1), [9; 16], None, 1).unwrap();
        assert!(decode(&chunk.bytes, chunk.name, &sealed).unwrap_err().why.contains("not sealed"));
        let both = Keyring::new(vec![SealKey::new(&[3; 32])], true);
        decode(&chunk.bytes, chunk.name, &both).unwrap();
        let chunk = encode(&pages(1), [9; 16], sealed.newest(), 1).unwrap();
        assert!(decode(&chunk.bytes, chunk.name, &open).unwrap_err().why.contains("not among the key files"));
    }
}
