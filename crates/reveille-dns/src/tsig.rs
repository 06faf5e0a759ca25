//! Transaction signatures (RFC 8945): who shares a key with us, and proof of it on every message between us.
//!
//! ```text
//!   in   packet ─► Signature (its last record) ─► Keyring::verify ─► Exchange ─► sign the answer, or each of many
//!                                                       └─► Rejection ─► an error that says why
//!   out  Key::sign_request ─► Exchange ─► check_answer
//! ```
//!
//! Written out here rather than taken from the `domain` crate: its version 0.12 answers a wrong MAC with the error
//! FORMERR instead of BADSIG, and signs eight octets of time where six are sent, so that no client can verify a
//! BADTIME. The MACs themselves are `ring`'s.
//!
//! Time here is wall time, read only for signed messages: it is compared with the clock of another host, and the
//! daemon's own clock does not follow when the host's is set.

mod exchange;
mod file;
mod key;
mod record;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use reveille_core::answer::Rcode;
use reveille_core::model::DomainName;

pub use exchange::{AnswerFault, Exchange};
pub use file::{KeyFileError, load};
pub use key::{Algorithm, Key, KeyError};
pub use record::{Malformed, Signature};

pub(crate) use record::TSIG;

use exchange::is_in_time;

/// How far the clocks of both sides may differ, in seconds (RFC 8945 §10).
pub(crate) const FUDGE_S: u16 = 300;

/// The keys that are known here. Cloning shares them, also those that take their place.
#[derive(Clone)]
pub struct Keyring {
    /// In the order of their names.
    keys: Arc<ArcSwap<Vec<Key>>>,
    unix_s: fn() -> u64,
}

impl Default for Keyring {
    fn default() -> Self {
        Self::new([])
    }
}

impl fmt::Debug for Keyring {
    /// The keys' names.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.load().iter()).finish()
    }
}

impl Keyring {
    /// These keys; of two with the same name the later one.
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Self {
        Self::with_clock(keys, wall_s)
    }

    /// These keys, with a clock that gives seconds since the Unix epoch.
    pub fn with_clock(keys: impl IntoIterator<Item = Key>, unix_s: fn() -> u64) -> Self {
        let mut sorted: Vec<Key> = Vec::new();
        for key in keys {
            match sorted.binary_search_by(|other| other.name().cmp(key.name())) {
                Ok(at) => sorted[at] = key,
                Err(at) => sorted.insert(at, key),
            }
        }
        Self { keys: Arc::new(ArcSwap::from_pointee(sorted)), unix_s }
    }

    /// The key of that name.
    pub fn key(&self, name: &DomainName) -> Option<Key> {
        let keys = self.keys.load();
        let at = keys.binary_search_by(|key| key.name().cmp(name)).ok()?;
        keys.get(at).cloned()
    }

    /// Puts the keys of another keyring in the place of these, for all that share them. What is under way goes on
    /// with the key that it began with.
    pub fn exchange(&self, others: &Self) {
        self.keys.store(others.keys.load_full());
    }

    /// Signs a request of ours with a key, and gives what its answers are checked with.
    pub fn sign_request(&self, key: &Key, message: &mut Vec<u8>) -> Exchange {
        let mut exchange = Exchange::request(key.clone(), self.unix_s);
        exchange.sign(message);
        exchange
    }

    /// Checks the signature of a request (RFC 8945 §5.2): key, MAC, time, and length of the MAC, in this order.
    ///
    /// `packet` is the message as it came in, whose last record `signature` was read from.
    ///
    /// # Errors
    /// Why it is not taken; the asker is told so by [`Rejection::sign`].
    pub fn verify(&self, packet: &[u8], signature: &Signature) -> Result<Exchange, Rejection> {
        let unsigned = |error| Rejection(Reason::Unsigned(error));
        let key = self.key(signature.key_name()).filter(|key| signature.is_by(key.algorithm()));
        let key = key.ok_or(unsigned(TsigError::BadKey))?;
        // Shorter than half of it would be guessable, longer is none (RFC 8945 §5.2.2.1).
        let (given, full) = (signature.mac().len(), key.algorithm().mac_bytes());
        if given > full || given < full.div_ceil(2).max(10) {
            return Err(Rejection(Reason::Malformed));
        }
        let signed = signature.signed_part(packet).ok_or(Rejection(Reason::Malformed))?;
        if !key.is_mac_of(&signed, signature.mac()) {
            return Err(unsigned(TsigError::BadSig));
        }
        let now_s = (self.unix_s)();
        let exchange = Exchange::answering(key.clone(), signature, self.unix_s);
        if !is_in_time(signature, now_s) {
            return Err(Rejection(Reason::Signed(TsigError::BadTime, exchange)));
        }
        // A shortened MAC proves less than the key could; nobody here needs the few bytes.
        if given < full {
            return Err(Rejection(Reason::Signed(TsigError::BadTrunc, exchange)));
        }
        Ok(exchange)
    }
}

/// What is wrong with a signature, in the TSIG record's own error field (RFC 8945 §4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TsigError {
    /// 16: the MAC is not that of the message.
    BadSig,
    /// 17: no such key here, or not with that algorithm.
    BadKey,
    /// 18: the clocks differ too much.
    BadTime,
    /// 22: the MAC is shorter than we take.
    BadTrunc,
}

impl TsigError {
    /// The number in the record.
    pub const fn number(self) -> u16 {
        match self {
            Self::BadSig => 16,
            Self::BadKey => 17,
            Self::BadTime => 18,
            Self::BadTrunc => 22,
        }
    }

    /// A sentence for the extended error.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::BadSig => "the signature does not fit the message: the secrets of both sides differ",
            Self::BadKey => "this key, with this algorithm, is not known here",
            Self::BadTime => "the clocks of both sides differ too much",
            Self::BadTrunc => "the signature is shortened, which is not taken here",
        }
    }
}

/// A signed request that is not taken.
#[derive(Debug)]
pub struct Rejection(Reason);

#[derive(Debug)]
enum Reason {
    /// The record cannot be what it says: FORMERR without a signature.
    Malformed,
    /// Whoever sent it has not proved to have the key, so the answer must not be signed with it (RFC 8945 §5.3.2).
    Unsigned(TsigError),
    /// The key was proved; the answer is signed.
    Signed(TsigError, Exchange),
}

impl Rejection {
    /// The response code of the answer: FORMERR or NOTAUTH.
    pub fn rcode(&self) -> Rcode {
        if self.error().is_some() { Rcode::NotAuth } else { Rcode::FormErr }
    }

    /// What is wrong; `None` for a record that is malformed.
    pub fn error(&self) -> Option<TsigError> {
        match &self.0 {
            Reason::Malformed => None,
            Reason::Unsigned(error) | Reason::Signed(error, _) => Some(*error),
        }
    }

    /// Bytes to leave free in the answer.
    pub fn room(&self, signature: &Signature) -> usize {
        match &self.0 {
            Reason::Malformed => 0,
            Reason::Unsigned(_) => signature.refusal_bytes(),
            Reason::Signed(_, exchange) => exchange.error_room(),
        }
    }

    /// Adds the TSIG record that says why to the answer in `message`.
    pub fn sign(self, signature: &Signature, message: &mut Vec<u8>) {
        match self.0 {
            Reason::Malformed => {}
            Reason::Unsigned(error) => signature.append_refusal(error, message),
            Reason::Signed(error, mut exchange) => exchange.sign_error(error, signature, message),
        }
    }
}

fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
