//! DNS cookies (RFC 7873, RFC 9018): what proves that a datagram's sender receives what is sent to its address.
//!
//! A server cookie is made from the client's cookie and address, the time, and a secret, and is checked by making
//! it again; nothing is kept of any client. The secret is replaced from time to time; the one before it still
//! counts, so no client loses its cookie by that.
//!
//! Several servers on one address (anycast) must know each other's cookies. They are given the same secrets in a
//! file, one of 32 hexadecimal digits to a line: the first makes cookies, the others are still, or already, known.
//! To change a secret: add the new one at the end on every server; then move it to the front on every server; after
//! an hour remove the old one (RFC 9018 §5).

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use reveille_core::model::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use siphasher::sip::SipHasher24;

use crate::named_file::{self, FileError};
use crate::wire::{COOKIE_BYTES, ClientCookie, Cookie, ServerPart};

/// Most secrets in a file.
pub const SECRETS_MAX: usize = 3;

/// Version of the server cookies that are made and known (RFC 9018 §4.1).
const VERSION: u8 = 1;
/// Age from which a cookie is not known any more, in seconds (RFC 9018 §4.3).
const AGE_S_MAX: i64 = 3_600;
/// Age from which a client is given a new one, in seconds (RFC 9018 §4.3).
const RENEW_S: i64 = 1_800;
/// How far ahead a cookie's time may be: clocks of an anycast set differ, in seconds (RFC 9018 §4.3).
const AHEAD_S_MAX: i64 = 300;
/// Largest secret file that is read.
const FILE_BYTES_MAX: u64 = 4_096;

/// What a question's cookies are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CookieStatus {
    /// There are none.
    None,
    /// A client's alone: it asks for a server's.
    ClientOnly,
    /// The server's is this server's, for this client and address.
    Valid,
    /// It is, but will not be for much longer: the client is given a new one.
    Renew,
    /// It is of another server or address, of a secret that is gone, too old, or made up. Treated like none; the
    /// client is given a new one.
    Bad,
}

impl CookieStatus {
    /// Whether it proves the sender's address.
    pub const fn proves(self) -> bool {
        match self {
            Self::Valid | Self::Renew => true,
            Self::None | Self::ClientOnly | Self::Bad => false,
        }
    }
}

/// Why there are no secrets for cookies.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The system gave no random numbers.
    #[error("the system gives no random numbers; is getrandom(2) forbidden to this process?")]
    NoRandom,
    /// A secret file cannot be read.
    #[error("cookie secrets: {0}")]
    Unreadable(FileError),
    /// Others than its owner may read a secret file.
    #[error(
        "the cookie secrets in {} can be read by others (mode {mode:03o}); run `chmod 600 {}`",
        path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A secret file does not hold what it should. The line is not quoted: it may be nearly a secret.
    #[error(
        "line {line} of the cookie secrets in {} is no secret; write 1 to 3 lines of 32 hexadecimal digits, \
         such as `openssl rand -hex 16` prints", path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1; behind the last if there are too few or too many.
        line: usize,
    },
}

/// A secret of 128 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// These bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A random one.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn random() -> Result<Self, SecretError> {
        let mut bytes = [0; 16];
        SystemRandom::new().fill(&mut bytes).map_err(|_| SecretError::NoRandom)?;
        Ok(Self(bytes))
    }

    /// Its bytes.
    pub(crate) const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// 32 hexadecimal digits.
    fn from_hex(text: &str) -> Option<Self> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        let digits: &[[u8; 2]; 16] = pairs.try_into().ok()?;
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits) {
            let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
            *byte = u8::try_from(high? << 4 | low?).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for Secret {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The secrets in force. Replaced as a whole.
#[derive(Debug, Clone)]
pub struct CookieSecrets {
    /// Makes cookies, and knows them.
    current: SipHash,
    /// Know cookies.
    others: [Option<SipHash>; SECRETS_MAX - 1],
    /// When `current` came.
    since: Timestamp,
}

/// SipHash-2-4 with one secret.
#[derive(Clone, Copy)]
struct SipHash(SipHasher24);

impl fmt::Debug for SipHash {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SipHash(…)")
    }
}

impl SipHash {
    fn new(secret: &Secret) -> Self {
        Self(SipHasher24::new_with_key(secret.bytes()))
    }

    /// The hash of RFC 9018 §4.4: client cookie, version, reserved, time, address.
    #[inline]
    fn of(&self, client: &ClientCookie, head: &[u8; 8], address: IpAddr) -> [u8; 8] {
        let mut input = [0; 32];
        let (cookies, place) = input.split_at_mut(16);
        cookies[..8].copy_from_slice(client);
        cookies[8..].copy_from_slice(head);
        let hash = match address.to_canonical() {
            IpAddr::V4(address) => {
                place[..4].copy_from_slice(&address.octets());
                self.0.hash(&input[..20])
            }
            IpAddr::V6(address) => {
                place.copy_from_slice(&address.octets());
                self.0.hash(&input)
            }
        };
        hash.to_le_bytes()
    }
}

impl CookieSecrets {
    /// One secret, in force since `now`.
    pub fn new(secret: &Secret, now: Timestamp) -> Self {
        Self { current: SipHash::new(secret), others: [None; SECRETS_MAX - 1], since: now }
    }

    /// The secrets of a file; read again after it has changed.
    ///
    /// # Errors
    /// One sentence with the remedy.
    pub fn from_file(path: &Path, now: Timestamp) -> Result<Self, SecretError> {
        let read = named_file::read(path, FILE_BYTES_MAX).map_err(SecretError::Unreadable)?;
        let mode = read.mode & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { path: path.to_owned(), mode });
        }
        let text = named_file::text(path, read.bytes).map_err(SecretError::Unreadable)?;
        let malformed = |line| SecretError::Malformed { path: path.to_owned(), line };
        let mut secrets = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            if secrets.len() >= SECRETS_MAX {
                return Err(malformed(number));
            }
            secrets.push(Secret::from_hex(line.trim()).ok_or_else(|| malformed(number))?);
        }
        let (first, rest) = secrets.split_first().ok_or_else(|| malformed(1))?;
        let mut others = [None; SECRETS_MAX - 1];
        for (other, secret) in others.iter_mut().zip(rest) {
            *other = Some(SipHash::new(secret));
        }
        Ok(Self { current: SipHash::new(first), others, since: now })
    }

    /// A new secret in place of the current one, which stays known.
    #[must_use]
    pub fn rotated(&self, fresh: &Secret, now: Timestamp) -> Self {
        let mut others = [None; SECRETS_MAX - 1];
        if let Some(first) = others.first_mut() {
            *first = Some(self.current);
        }
        Self { current: SipHash::new(fresh), others, since: now }
    }

    /// When the current secret came into force.
    pub const fn since(&self) -> Timestamp {
        self.since
    }

    /// The server cookie for a client at that address.
    pub fn server_cookie(&self, client: &ClientCookie, address: IpAddr, now: Timestamp) -> [u8; 16] {
        let [a, b, c, d] = seconds(now).to_be_bytes();
        let head = [VERSION, 0, 0, 0, a, b, c, d];
        let mut cookie = [0; 16];
        let (front, back) = cookie.split_at_mut(8);
        front.copy_from_slice(&head);
        back.copy_from_slice(&self.current.of(client, &head, address));
        cookie
    }

    /// What the cookies of a question from that address are worth.
    #[inline]
    pub fn check(&self, cookie: Option<&Cookie>, address: IpAddr, now: Timestamp) -> CookieStatus {
        let Some(cookie) = cookie else { return CookieStatus::None };
        let server = match cookie.server() {
            ServerPart::None => return CookieStatus::ClientOnly,
            ServerPart::Foreign => return CookieStatus::Bad,
            ServerPart::Sixteen(server) => server,
        };
        let (Some(head), Some(hash)) = (server.first_chunk::<8>(), server.last_chunk::<8>()) else {
            return CookieStatus::Bad;
        };
        // The reserved bytes are hashed as they came (RFC 9018 §4.2).
        let &[version, _, _, _, a, b, c, d] = head;
        // Serial number arithmetic (RFC 9018 §4.3): the difference is right also when the seconds begin anew in 2106.
        let age = seconds(now).wrapping_sub(u32::from_be_bytes([a, b, c, d])).cast_signed();
        let age_s = i64::from(age);
        if version != VERSION || !(-AHEAD_S_MAX..=AGE_S_MAX).contains(&age_s) {
            return CookieStatus::Bad;
        }
        // Each compared as one number: the time that it takes tells nothing of how much of a guess was right.
        let given = u64::from_ne_bytes(*hash);
        let fits = |secret: &SipHash| u64::from_ne_bytes(secret.of(cookie.client(), head, address)) == given;
        let known = fits(&self.current) || self.others.iter().flatten().any(fits);
        match known {
            false => CookieStatus::Bad,
            true if age_s > RENEW_S => CookieStatus::Renew,
            true => CookieStatus::Valid,
        }
    }

    /// The data of the COOKIE option in the answer: the client's cookie, and the server's that it has if that is
    /// good for a while yet, otherwise a new one. None for a client that sent none.
    #[inline]
    pub fn answer(
        &self,
        status: CookieStatus,
        cookie: Option<&Cookie>,
        address: IpAddr,
        now: Timestamp,
    ) -> Option<[u8; COOKIE_BYTES]> {
        let cookie = cookie?;
        let server = match (status, cookie.server()) {
            (CookieStatus::None, _) => return None,
            (CookieStatus::Valid, ServerPart::Sixteen(server)) => *server,
            (
                CookieStatus::Valid | CookieStatus::ClientOnly | CookieStatus::Renew | CookieStatus::Bad,
                ServerPart::None | ServerPart::Sixteen(_) | ServerPart::Foreign,
            ) => self.server_cookie(cookie.client(), address, now),
        };
        let mut option = [0; COOKIE_BYTES];
        let (front, back) = option.split_at_mut(cookie.client().len());
        front.copy_from_slice(cookie.client());
        back.copy_from_slice(&server);
        Some(option)
    }
}

/// Seconds since the Unix epoch, modulo 2³².
fn seconds(now: Timestamp) -> u32 {
    u32::try_from((now.as_ms() / 1_000) & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}
