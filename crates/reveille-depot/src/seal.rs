//! Keys, and how an object is sealed: ChaCha20-Poly1305 under a key of the object's own.
//!
//! A key file holds 32 bytes as 64 hexadecimal digits and is readable by its owner only. From it three things are
//! derived: its id, which is in the header of each object, the key of chunk names, and for each object, with the salt
//! in its header, the key that seals it. Since no two objects share a key, the nonces can be the numbers of an object's
//! sections.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::names::unhex;

/// Bytes that sealing adds to a section.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes of the salt in each object's header.
pub(crate) const SALT_BYTES: usize = 16;
/// Largest key file that is read.
const KEY_FILE_BYTES_MAX: u64 = 1024;
/// Permissions of others that a file with secrets must not grant.
const FOR_OTHERS: u32 = 0o077;

/// Which key seals an object; tells nothing of the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(crate) [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl KeyId {
    pub(crate) fn of_hex(text: &str) -> Option<Self> {
        unhex(text).map(Self)
    }
}

/// One key.
#[derive(Clone)]
pub struct SealKey {
    id: KeyId,
    names: [u8; 32],
    objects: [u8; 32],
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.id)
    }
}

/// Why a file with secrets is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// Not there, or not readable.
    #[error("`{}` cannot be read: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read it.
    #[error("`{}` has mode {mode:o}: others can use it; chmod 600", path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Not what it should hold; what it holds is not repeated.
    #[error("`{}` {expected}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is expected.
        expected: &'static str,
    },
}

/// Reads a file that only its owner may read, `limit` bytes at most.
pub(crate) fn read_secret(path: &Path, limit: u64) -> Result<String, SecretFileError> {
    let unreadable = |source| SecretFileError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & FOR_OTHERS != 0 {
        return Err(SecretFileError::Open { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(limit + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > limit {
        return Err(SecretFileError::Content { path: path.to_owned(), expected: "is too large" });
    }
    Ok(text)
}

impl SealKey {
    /// From a key file.
    ///
    /// # Errors
    /// [`SecretFileError`] if it cannot be read, others may read it, or it does not hold 64 hexadecimal digits.
    pub fn read(path: &Path) -> Result<Self, SecretFileError> {
        let text = read_secret(path, KEY_FILE_BYTES_MAX)?;
        let expected = "must hold 64 hexadecimal digits, as `openssl rand -hex 32` prints them";
        let content = || SecretFileError::Content { path: path.to_owned(), expected };
        unhex(&text.trim().to_ascii_lowercase()).map(|bytes| Self::new(&bytes)).ok_or_else(content)
    }

    /// From 32 random bytes.
    pub fn new(secret: &[u8; 32]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = blake3::derive_key("reveille depot 1: key id", secret);
        Self {
            id: KeyId([a, b, c, d, e, f, g, h]),
            names: blake3::derive_key("reveille depot 1: chunk names", secret),
            objects: blake3::derive_key("reveille depot 1: objects", secret),
        }
    }

    /// Its id.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What hashes become chunk names with.
    pub(crate) fn names(&self) -> &[u8; 32] {
        &self.names
    }

    fn of_object(&self, salt: &[u8; SALT_BYTES], path: &str) -> Option<LessSafeKey> {
        let mut derived = blake3::Hasher::new_keyed(&self.objects);
        derived.update(salt).update(path.as_bytes());
        let key = UnboundKey::new(&CHACHA20_POLY1305, derived.finalize().as_bytes()).ok()?;
        Some(LessSafeKey::new(key))
    }

    fn nonce(section: u8) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        if let Some(first) = nonce.first_mut() {
            *first = section;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// The associated data: what lies before the sections, and the path with its length.
    fn associated(before: &[u8], path: &str) -> Aad<Vec<u8>> {
        let mut all = Vec::with_capacity(before.len() + path.len() + 8);
        all.extend_from_slice(&(path.len() as u64).to_le_bytes());
        all.extend_from_slice(path.as_bytes());
        all.extend_from_slice(before);
        Aad::from(all)
    }

    /// Seals `content` in place and appends its tag. `None` only if the library refuses, which it does not for any
    /// length that is used here.
    pub(crate) fn seal(&self, place: Place<'_>, content: &mut Vec<u8>) -> Option<()> {
        let key = self.of_object(place.salt, place.path)?;
        let associated = Self::associated(place.before, place.path);
        key.seal_in_place_append_tag(Self::nonce(place.section), associated, content).ok()
    }

    /// Opens what was sealed; `None` if one bit of it, of its path or of what lies before it is not as it was.
    pub(crate) fn open(&self, place: Place<'_>, mut content: Vec<u8>) -> Option<Vec<u8>> {
        let key = self.of_object(place.salt, place.path)?;
        let associated = Self::associated(place.before, place.path);
        let length = key.open_in_place(Self::nonce(place.section), associated, &mut content).ok()?.len();
        content.truncate(length);
        Some(content)
    }
}

/// Where a sealed section belongs.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The object's path.
    pub path: &'a str,
    /// Its salt.
    pub salt: &'a [u8; SALT_BYTES],
    /// What lies before the sections.
    pub before: &'a [u8],
    /// Which section.
    pub section: u8,
}

/// The keys of a depot.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<SealKey>,
    refuse_unsealed: bool,
}

impl Keyring {
    /// The first key seals; all of them open. Without a key nothing is sealed. With one, what is not sealed is
    /// refused unless `accept_unsealed`: for the time in which a depot that was not sealed becomes one that is.
    pub fn new(keys: Vec<SealKey>, accept_unsealed: bool) -> Self {
        Self { refuse_unsealed: !accept_unsealed && !keys.is_empty(), keys }
    }

    /// The key that seals.
    pub fn newest(&self) -> Option<&SealKey> {
        self.keys.first()
    }

    /// The key with this id.
    pub fn key(&self, id: KeyId) -> Option<&SealKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// Whether objects that are not sealed are taken.
    pub fn accepts_unsealed(&self) -> bool {
        !self.refuse_unsealed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("key");
        std::fs::write(&path, format!("{}\n", "0f".repeat(32))).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(SealKey::read(&path), Err(SecretFileError::Open { mode: 0o640, .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let key = SealKey::read(&path).unwrap();
        assert_eq!(key.id(), SealKey::new(&[15; 32]).id());
        assert!(!format!("{key:?}").contains("0f0f"));
        std::fs::write(&path, "secret").unwrap();
        let error = SealKey::read(&path).unwrap_err().to_string();
        assert!(error.contains("64 hexadecimal digits") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn what_is_sealed_opens_at_its_place_only() {
        let key = SealKey::new(&[7; 32]);
        let place = Place { path: "a/b", salt: &[1; 16], before: b"head", section: 0 };
        let mut content = b"content".to_vec();
        key.seal(place, &mut content).unwrap();
        assert_eq!(key.open(place, content.clone()).unwrap(), b"content");
        let elsewhere = [
            Place { path: "a/c", ..place },
            Place { salt: &[2; 16], ..place },
            Place { before: b"hea", ..place },
            Place { section: 1, ..place },
        ];
        for wrong in elsewhere {
            assert!(key.open(wrong, content.clone()).is_none());
        }
        assert!(SealKey::new(&[8; 32]).open(place, content).is_none());
    }
}
