//! Keys and MACs.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use reveille_core::model::DomainName;
use ring::hmac;

/// Shortest secret that is taken, in bytes: 128 bits, half of what the weakest algorithm here wants.
const SECRET_BYTES_MIN: usize = 16;
/// Longest secret that is taken, in bytes.
const SECRET_BYTES_MAX: usize = 512;
/// Longest name of a key, in wire format: with it, question, OPT and signature fit into the smallest UDP answer.
const KEY_NAME_BYTES_MAX: usize = 64;

/// How MACs are made (RFC 8945 §6). MD5 and SHA-1 are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256; every implementation has it.
    HmacSha256,
    /// HMAC with SHA-384.
    HmacSha384,
    /// HMAC with SHA-512.
    HmacSha512,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 3] = [Self::HmacSha256, Self::HmacSha384, Self::HmacSha512];

    /// Its name, as configurations write it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::HmacSha384 => "hmac-sha384",
            Self::HmacSha512 => "hmac-sha512",
        }
    }

    /// Its name in wire format.
    pub(super) const fn wire(self) -> &'static [u8] {
        match self {
            Self::HmacSha256 => b"\x0bhmac-sha256\0",
            Self::HmacSha384 => b"\x0bhmac-sha384\0",
            Self::HmacSha512 => b"\x0bhmac-sha512\0",
        }
    }

    /// Length of a whole MAC, in bytes.
    pub(super) const fn mac_bytes(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::HmacSha384 => 48,
            Self::HmacSha512 => 64,
        }
    }

    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::HmacSha256 => hmac::HMAC_SHA256,
            Self::HmacSha384 => hmac::HMAC_SHA384,
            Self::HmacSha512 => hmac::HMAC_SHA512,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Algorithm {
    type Err = KeyError;

    /// Reads `hmac-sha256`, with or without the final dot.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let word = text.strip_suffix('.').unwrap_or(text);
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.word().eq_ignore_ascii_case(word));
        found.ok_or_else(|| KeyError::Algorithm(text.to_owned()))
    }
}

/// Why something is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An algorithm that is not taken.
    #[error("the algorithm `{0}` is not taken; use hmac-sha256, hmac-sha384 or hmac-sha512")]
    Algorithm(String),
    /// A name that is too long.
    #[error("the key name {0} takes more than {KEY_NAME_BYTES_MAX} bytes; use a shorter one")]
    Name(DomainName),
    /// Too short or too long a secret.
    #[error(
        "the secret of the key {name} has {bytes} bytes, and {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} are taken; \
         `tsig-keygen {name}` makes a good one"
    )]
    Secret {
        /// The key's name.
        name: DomainName,
        /// How long its secret is.
        bytes: usize,
    },
}

/// A secret that is shared with somebody, and its name. Cloning shares it.
#[derive(Clone)]
pub struct Key(Arc<Inner>);

struct Inner {
    name: DomainName,
    algorithm: Algorithm,
    secret: hmac::Key,
}

impl fmt::Debug for Key {
    /// Name and algorithm; the secret never leaves this type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} {})", self.0.algorithm, self.0.name)
    }
}

impl Key {
    /// A key with this secret.
    ///
    /// # Errors
    /// If name or secret are too short or too long.
    pub fn new(name: DomainName, algorithm: Algorithm, secret: &[u8]) -> Result<Self, KeyError> {
        if name.as_wire().len() > KEY_NAME_BYTES_MAX {
            return Err(KeyError::Name(name));
        }
        if !(SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len()) {
            return Err(KeyError::Secret { name, bytes: secret.len() });
        }
        let secret = hmac::Key::new(algorithm.hmac(), secret);
        Ok(Self(Arc::new(Inner { name, algorithm, secret })))
    }

    /// Its name.
    pub fn name(&self) -> &DomainName {
        &self.0.name
    }

    /// How its MACs are made.
    pub fn algorithm(&self) -> Algorithm {
        self.0.algorithm
    }

    /// Whether it has the same name, algorithm and secret. Not for secrets of others: the time that it takes tells.
    pub fn is_same(&self, other: &Self) -> bool {
        let alike = self.name() == other.name() && self.algorithm() == other.algorithm();
        alike && self.mac(b"").as_ref() == other.mac(b"").as_ref()
    }

    /// The MAC of some bytes.
    pub(super) fn mac(&self, signed: &[u8]) -> hmac::Tag {
        hmac::sign(&self.0.secret, signed)
    }

    /// Whether that is the MAC of some bytes, or its beginning. Takes the same time wherever they differ.
    pub(super) fn is_mac_of(&self, signed: &[u8], mac: &[u8]) -> bool {
        let whole = self.mac(signed);
        let Some(begun) = whole.as_ref().get(..mac.len()) else { return false };
        // The library compares MACs only: so what is compared is the MAC of what was given with that of what it
        // should be.
        hmac::verify(&self.0.secret, mac, self.mac(begun).as_ref()).is_ok()
    }
}
