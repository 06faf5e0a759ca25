//! Who may do what: tokens, scopes, and what is open to everybody.
//!
//! A token is 256 random bits. Nobody can guess one or search for it from its hash, so a fast hash (BLAKE3) is
//! enough at rest; slow hashes are for secrets that people choose. Presented tokens are hashed and the hashes
//! compared in constant time, against every known one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::{PoisonError, RwLock};

use reveille_core::model::Timestamp;
use serde::{Deserialize, Serialize};

/// Most tokens that a daemon knows. Each request is compared with all of them.
pub const TOKENS_MAX: usize = 1_024;
/// What every token begins with, so that tools which look for leaked secrets can tell it.
const PREFIX: &str = "rvl_";
const SECRET_BYTES: usize = 32;

/// What a token may do; each scope includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look.
    Read,
    /// Wake, hibernate, terminate, check versions.
    Operate,
    /// Add and remove, and exchange what services run.
    Admin,
}

impl Scope {
    /// The word for people and scripts.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Read, Self::Operate, Self::Admin];
        let found = all.into_iter().find(|scope| scope.word() == text);
        found.ok_or_else(|| format!("`{text}` is no scope; write read, operate or admin"))
    }
}

/// What may be done without a token from the daemon's own host. Verbs always need one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum Anonymous {
    /// Look.
    #[default]
    Read,
    /// Nothing.
    None,
}

/// A secret that opens the API. Shown by nothing but [`Token::secret`].
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Why a text is no token. It does not repeat the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is no token: one is {PREFIX} and 64 hexadecimal digits")]
pub struct TokenError;

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// If the system has no random numbers to give.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret)?;
        let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(format!("{PREFIX}{digits}")))
    }

    /// The text to hand to its owner, and to send.
    pub fn secret(&self) -> &str {
        &self.0
    }

    /// What it is kept and found by.
    pub fn hash(&self) -> TokenHash {
        TokenHash(*blake3::hash(self.0.as_bytes()).as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError)?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() == 2 * SECRET_BYTES && digits.bytes().all(hex) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TokenError)
        }
    }
}

/// BLAKE3 of a token.
#[derive(Clone, Copy)]
pub struct TokenHash(pub [u8; 32]);

impl PartialEq for TokenHash {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl Eq for TokenHash {}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenGrant {
    /// What its owner calls it.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// From when on it is worth nothing; `None`: never.
    pub expires: Option<Timestamp>,
}

/// Why a token was not taken into the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {TOKENS_MAX} tokens already; remove one first")]
pub struct BookFull;

/// Who may do what, shared by the server and by whoever makes and revokes tokens.
#[derive(Debug, Default)]
pub struct Access {
    anonymous: Anonymous,
    hosts: Vec<String>,
    book: RwLock<Vec<(TokenHash, TokenGrant)>>,
}

impl Access {
    /// Access without any token yet. `hosts` are the names, beside `localhost` and plain addresses, by which
    /// the API may be called.
    pub fn new(anonymous: Anonymous, hosts: Vec<String>) -> Self {
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { anonymous, hosts, book: RwLock::default() }
    }

    /// Lets the token of that hash do what `grant` says.
    ///
    /// # Errors
    /// If there are [`TOKENS_MAX`] already.
    pub fn grant(&self, hash: TokenHash, grant: TokenGrant) -> Result<(), BookFull> {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        book.retain(|(known, _)| *known != hash);
        if book.len() >= TOKENS_MAX {
            return Err(BookFull);
        }
        book.push((hash, grant));
        Ok(())
    }

    /// Makes the token of that hash worth nothing.
    pub fn revoke(&self, hash: TokenHash) {
        self.book.write().unwrap_or_else(PoisonError::into_inner).retain(|(known, _)| *known != hash);
    }

    /// What the token of that hash may do at `now`; `None` if it is unknown or has expired.
    pub fn scope_of(&self, hash: TokenHash, now: Timestamp) -> Option<Scope> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (known, grant) in book.iter() {
            if *known == hash {
                found = Some(grant);
            }
        }
        found.filter(|grant| grant.expires.is_none_or(|expires| now < expires)).map(|grant| grant.scope)
    }

    /// What somebody without a token may do who calls from `peer` without a proxy between.
    pub fn anonymous_scope(&self, peer: IpAddr) -> Option<Scope> {
        match self.anonymous {
            Anonymous::Read if peer.to_canonical().is_loopback() => Some(Scope::Read),
            Anonymous::Read | Anonymous::None => None,
        }
    }

    /// Whether the API may be called by this host name, port not included.
    ///
    /// A page of a foreign site can make its own name point here (DNS rebinding) and would then be same-origin
    /// with the API. It cannot do so with an address or with `localhost`.
    pub fn knows_host(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        address.parse::<IpAddr>().is_ok() || host == "localhost" || self.hosts.contains(&host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(scope: Scope, expires: Option<u64>) -> TokenGrant {
        TokenGrant { name: "t".to_owned(), scope, expires: expires.map(Timestamp::from_ms) }
    }

    #[test]
    fn a_token_opens_until_it_expires_or_is_revoked() {
        let access = Access::new(Anonymous::None, Vec::new());
        let (token, other) = (Token::generate().unwrap(), Token::generate().unwrap());
        let now = Timestamp::from_ms(50);
        assert_ne!(token, other);
        assert_eq!(access.scope_of(token.hash(), now), None);
        access.grant(token.hash(), grant(Scope::Operate, Some(100))).unwrap();
        assert_eq!(access.scope_of(token.hash(), now), Some(Scope::Operate));
        assert_eq!(access.scope_of(other.hash(), now), None);
        assert_eq!(access.scope_of(token.hash(), Timestamp::from_ms(100)), None);
        access.revoke(token.hash());
        assert_eq!(access.scope_of(token.hash(), now), None);
    }

    #[test]
    fn the_book_is_bounded() {
        let access = Access::new(Anonymous::None, Vec::new());
        let hash = |n: usize| TokenHash(*blake3::hash(&n.to_le_bytes()).as_bytes());
        for n in 0..TOKENS_MAX {
            access.grant(hash(n), grant(Scope::Read, None)).unwrap();
        }
        assert_eq!(access.grant(hash(TOKENS_MAX), grant(Scope::Read, None)), Err(BookFull));
        access.grant(hash(0), grant(Scope::Admin, None)).unwrap();
        assert_eq!(access.scope_of(hash(0), Timestamp::default()), Some(Scope::Admin));
    }

    #[test]
    fn a_token_is_read_back_and_never_shown() {
        let token = Token::generate().unwrap();
        assert_eq!(token.secret().parse(), Ok(token.clone()));
        assert!(!format!("{token:?} {:?}", token.hash()).contains(&token.secret()[4..12]));
        for wrong in ["", "rvl_", "rvl_zz", &token.secret()[4..], &token.secret().to_uppercase()] {
            assert_eq!(wrong.parse::<Token>(), Err(TokenError));
        }
    }

    #[test]
    fn only_addresses_localhost_and_configured_names_are_known_hosts() {
        let access = Access::new(Anonymous::Read, vec!["Reveille.example".to_owned()]);
        for host in ["127.0.0.1", "[::1]", "localhost", "LOCALHOST", "192.0.2.7", "reveille.EXAMPLE"] {
            assert!(access.knows_host(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "reveille"] {
            assert!(!access.knows_host(host), "{host}");
        }
    }

    #[test]
    fn without_a_token_only_the_host_itself_may_look() {
        let open = Access::new(Anonymous::Read, Vec::new());
        let closed = Access::new(Anonymous::None, Vec::new());
        for loopback in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(open.anonymous_scope(loopback.parse().unwrap()), Some(Scope::Read));
            assert_eq!(closed.anonymous_scope(loopback.parse().unwrap()), None);
        }
        assert_eq!(open.anonymous_scope("192.0.2.1".parse().unwrap()), None);
    }
}
