//! A request and its answers, each signed in the light of the one before (RFC 8945 §5.3).

use std::fmt;

use reveille_core::model::DomainName;

use super::key::Key;
use super::record::{Malformed, Signature, Times, Variables, append, record_bytes, time48};
use super::{FUDGE_S, TsigError};

/// Length of the time in the other data of a BADTIME answer.
const OTHER_BYTES: usize = 6;

/// Why an answer to a request of ours is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerFault {
    /// It cannot be read.
    #[error("the answer is malformed")]
    Malformed,
    /// It carries no signature.
    #[error("the answer is not signed")]
    Unsigned,
    /// The other side does not take our signature; the number is of RFC 8945 §4.2.
    #[error(
        "the other side refuses the key or its signature (TSIG error {0}): 16 is a wrong secret, 17 an unknown key"
    )]
    Refused(u16),
    /// The other side's clock and ours differ too much.
    #[error("the clocks of both sides differ by more than {FUDGE_S} s")]
    Time,
    /// Another key, or a signature that is not of this answer.
    #[error("the answer's signature does not fit it")]
    Signature,
}

impl From<Malformed> for AnswerFault {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// What the next message between two parties is signed in the light of.
#[derive(Clone)]
pub struct Exchange {
    key: Key,
    /// The MAC of the message before; empty before the first.
    prior_mac: Vec<u8>,
    /// Answers to one request after the first are signed without what stays the same.
    answered: bool,
    unix_s: fn() -> u64,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({:?})", self.key)
    }
}

impl Exchange {
    /// Before a request of ours.
    pub(super) fn request(key: Key, unix_s: fn() -> u64) -> Self {
        Self { key, prior_mac: Vec::new(), answered: false, unix_s }
    }

    /// After the request of somebody else.
    pub(super) fn answering(key: Key, request: &Signature, unix_s: fn() -> u64) -> Self {
        Self { key, prior_mac: request.mac().to_vec(), answered: false, unix_s }
    }

    /// The key's name: who the other side has proved to be.
    pub fn key_name(&self) -> &DomainName {
        self.key.name()
    }

    /// Bytes that signing adds to a message, exactly.
    pub fn room(&self) -> usize {
        let algorithm = self.key.algorithm();
        record_bytes(self.key.name(), algorithm.wire(), algorithm.mac_bytes())
    }

    /// Bytes that signing adds at most to an answer that says what is wrong with the request.
    pub(super) fn error_room(&self) -> usize {
        self.room() + OTHER_BYTES
    }

    /// Signs a whole message and adds the TSIG record to it: a request, the answer to it, or the next one of
    /// several.
    pub fn sign(&mut self, message: &mut Vec<u8>) {
        let times = Times { signed_s: (self.unix_s)(), fudge_s: FUDGE_S };
        self.sign_with(message, times, 0, &[]);
    }

    /// Signs an answer that says what is wrong with the request: at the request's time, so that one whose clock
    /// is off can verify it, and with our own beside it (RFC 8945 §5.2.3).
    pub(super) fn sign_error(&mut self, error: TsigError, request: &Signature, message: &mut Vec<u8>) {
        let now_s = (self.unix_s)();
        match error {
            TsigError::BadTime => {
                self.sign_with(message, request.times(), error.number(), &time48(now_s));
            }
            TsigError::BadSig | TsigError::BadKey | TsigError::BadTrunc => {
                self.sign_with(message, Times { signed_s: now_s, fudge_s: FUDGE_S }, error.number(), &[]);
            }
        }
    }

    fn sign_with(&mut self, message: &mut Vec<u8>, times: Times, error: u16, other: &[u8]) {
        let mut signed = self.digest_head(message.len());
        signed.extend_from_slice(message);
        self.append_variables(times, error, other, &mut signed);
        let mac = self.key.mac(&signed);
        let algorithm = self.key.algorithm().wire();
        append(message, self.key.name(), algorithm, times, mac.as_ref(), error, other);
        self.answered |= !self.prior_mac.is_empty();
        self.prior_mac = mac.as_ref().to_vec();
    }

    /// Checks an answer to a request of ours.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn check_answer(&mut self, packet: &[u8]) -> Result<(), AnswerFault> {
        let signature = Signature::find(packet)?.ok_or(AnswerFault::Unsigned)?;
        if signature.mac().is_empty() && signature.error() != 0 {
            return Err(AnswerFault::Refused(signature.error()));
        }
        if signature.key_name() != self.key.name() || !signature.is_by(self.key.algorithm()) {
            return Err(AnswerFault::Signature);
        }
        let mut signed = self.digest_head(packet.len());
        if self.answered {
            signature.append_unsigned(packet, &mut signed).ok_or(AnswerFault::Malformed)?;
            signature.times().append(&mut signed);
        } else {
            signed.extend(signature.signed_part(packet).ok_or(AnswerFault::Malformed)?);
        }
        let whole = signature.mac().len() == self.key.algorithm().mac_bytes();
        if !whole || !self.key.is_mac_of(&signed, signature.mac()) {
            return Err(AnswerFault::Signature);
        }
        if signature.error() == TsigError::BadTime.number() || !is_in_time(&signature, (self.unix_s)()) {
            return Err(AnswerFault::Time);
        }
        if signature.error() != 0 {
            return Err(AnswerFault::Refused(signature.error()));
        }
        self.prior_mac = signature.mac().to_vec();
        self.answered = true;
        Ok(())
    }

    /// The MAC of the message before, with its length.
    fn digest_head(&self, message_bytes: usize) -> Vec<u8> {
        let mut signed = Vec::with_capacity(message_bytes + 256);
        if !self.prior_mac.is_empty() {
            signed.extend_from_slice(&u16::try_from(self.prior_mac.len()).unwrap_or(u16::MAX).to_be_bytes());
            signed.extend_from_slice(&self.prior_mac);
        }
        signed
    }

    fn append_variables(&self, times: Times, error: u16, other: &[u8], signed: &mut Vec<u8>) {
        if self.answered {
            times.append(signed);
            return;
        }
        let (key, algorithm) = (self.key.name(), self.key.algorithm().wire());
        Variables { key, algorithm, times, error, other }.append(signed);
    }
}

/// Whether a message was signed about now.
pub(super) fn is_in_time(signature: &Signature, now_s: u64) -> bool {
    let Times { signed_s, fudge_s } = signature.times();
    now_s.abs_diff(signed_s) <= fudge_s.into()
}
