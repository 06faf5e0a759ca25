//! Objects as bytes. Every object begins with the same header; then come a chunk's two sections ([`chunk`]) or a
//! record's one ([`record`]). Nothing here reads or writes a store.
//!
//! ```text
//! offset  bytes
//!  0      4      "RVLD"
//!  4      1      kind: b'C' chunk, b'M' manifest, b'O' owner, b'T' touched pages, b'D' the depot's own
//!  5      1      format
//!  6      1      0: not sealed; 1: ChaCha20-Poly1305
//!  7      1      0
//!  8      8      id of the key, zeros if not sealed
//! 16     16      salt, random
//! ```
//!
//! What is read is not trusted: each length is checked against a limit before memory is taken for it, and no number that
//! an object states decides how much is allocated.

pub mod chunk;
pub mod manifest;
pub mod map;
pub mod record;
pub(crate) mod varint;

use crate::seal::{KeyId, Keyring, SALT_BYTES, SealKey};

const MAGIC: [u8; 4] = *b"RVLD";
/// The format that this code writes and reads.
pub const FORMAT: u8 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;
const SEALED: u8 = 1;

/// What is wrong with an object's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {why}")]
pub struct Fault {
    /// Offset in the object, or, where `why` says so, in what it holds compressed.
    pub at: u64,
    /// What is there, and what is expected.
    pub why: String,
}

impl Fault {
    pub(crate) fn new(at: usize, why: impl Into<String>) -> Self {
        Self { at: at as u64, why: why.into() }
    }
}

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pages.
    Chunk,
    /// What a version consists of.
    Manifest,
    /// Who may run a service.
    Owner,
    /// The pages that a wake needed first.
    Touched,
    /// Format and grace of the depot.
    Charter,
}

impl Kind {
    fn letter(self) -> u8 {
        match self {
            Self::Chunk => b'C',
            Self::Manifest => b'M',
            Self::Owner => b'O',
            Self::Touched => b'T',
            Self::Charter => b'D',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Chunk => "chunk",
            Self::Manifest => "manifest",
            Self::Owner => "owner",
            Self::Touched => "list of touched pages",
            Self::Charter => "depot",
        }
    }
}

/// The first bytes of each object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub kind: Kind,
    pub key: Option<KeyId>,
    pub salt: [u8; SALT_BYTES],
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let sealed = if self.key.is_some() { SEALED } else { 0 };
        let fields: [&[u8]; 4] = [
            &MAGIC,
            &[self.kind.letter(), FORMAT, sealed, 0],
            &self.key.map_or([0; 8], |key| key.0),
            &self.salt,
        ];
        for (to, from) in bytes.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        bytes
    }

    /// Reads the header, and finds the key if the object is sealed.
    pub(crate) fn decode<'k>(
        bytes: &[u8],
        kind: Kind,
        keys: &'k Keyring,
    ) -> Result<(Self, Option<&'k SealKey>), Fault> {
        let Some((fixed, salt)) =
            bytes.get(..HEADER_BYTES).and_then(|header| header.split_first_chunk::<16>())
        else {
            return Err(Fault::new(
                bytes.len(),
                format!("the object ends within its header of {HEADER_BYTES} bytes"),
            ));
        };
        let [m0, m1, m2, m3, letter, format, sealed, zero, id @ ..] = fixed;
        if [*m0, *m1, *m2, *m3] != MAGIC {
            return Err(Fault::new(0, "this is no object of a depot: it does not begin with RVLD"));
        }
        if *letter != kind.letter() {
            return Err(Fault::new(4, format!("this is no {}: its kind is {letter:#04x}", kind.word())));
        }
        if *format != FORMAT {
            return Err(Fault::new(5, format!("its format is {format}, this release reads {FORMAT}")));
        }
        if *sealed > SEALED || *zero != 0 {
            return Err(Fault::new(6, "it is sealed in a way that this release does not know"));
        }
        let id = KeyId(*id);
        let salt = <[u8; SALT_BYTES]>::try_from(salt).unwrap_or_default();
        if *sealed == 0 {
            if id.0 != [0; 8] {
                return Err(Fault::new(8, "it names a key and is not sealed"));
            }
            if !keys.accepts_unsealed() {
                return Err(Fault::new(
                    6,
                    "it is not sealed, and this depot takes only what is; say accept_unsealed while it changes over",
                ));
            }
            return Ok((Self { kind, key: None, salt }, None));
        }
        let key = keys.key(id).ok_or_else(|| {
            Fault::new(8, format!("it is sealed with the key {id}, which is not among the key files"))
        })?;
        Ok((Self { kind, key: Some(id), salt }, Some(key)))
    }
}
