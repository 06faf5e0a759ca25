//! One signing key: ECDSA with curve P-256 and SHA-256, the algorithm that every validator must know (RFC 8624 §3.1)
//! and whose signatures are small.

use std::fmt;

use domain::base::iana::SecurityAlgorithm;
use domain::crypto::sign::{GenerateParams, KeyPair, SecretKeyBytes, SignRaw, Signature, generate};
use domain::rdata::Dnskey;
use reveille_core::model::DomainName;
use ring::digest::{Context, SHA256};

/// Zone key and secure entry point: it signs data, and its DS is at the parent (RFC 4034 §2.1.1).
const FLAGS: u16 = 257;
/// Digest type SHA-256 (RFC 4509).
const DIGEST_SHA256: u8 = 2;
/// Bytes of a signature (RFC 6605 §4).
pub(super) const SIGNATURE_BYTES: usize = 64;

/// Why a key cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// No random numbers.
    #[error("no key can be made: the system gives no random numbers")]
    NotMade,
    /// The private half is not readable.
    #[error("the private key is not in the format of BIND, version 1.2 or later, with algorithm 13")]
    BadPrivate,
    /// The public half is not readable.
    #[error("the public key is not a DNSKEY record of the zone with flags 257, protocol 3 and algorithm 13")]
    BadPublic,
    /// The halves are of different keys.
    #[error("the private key does not belong to the public key")]
    NotAPair,
}

/// A key that can sign. Its private half is shown nowhere.
pub(super) struct SigningKey {
    pair: KeyPair,
    /// Data of its DNSKEY record.
    dnskey: Box<[u8]>,
    tag: u16,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}", self.tag)
    }
}

impl SigningKey {
    /// A new key, and its private half for the file.
    pub fn generate() -> Result<(Self, SecretKeyBytes), KeyFault> {
        let made = generate(&GenerateParams::EcdsaP256Sha256, FLAGS);
        let (secret, public) = made.map_err(|_| KeyFault::NotMade)?;
        let key = Self::new(&secret, &public)?;
        Ok((key, secret))
    }

    /// The key with these halves.
    pub fn new(secret: &SecretKeyBytes, public: &Dnskey<Vec<u8>>) -> Result<Self, KeyFault> {
        let is_ours = (public.flags(), public.protocol(), public.algorithm())
            == (FLAGS, 3, SecurityAlgorithm::ECDSAP256SHA256);
        if !is_ours {
            return Err(KeyFault::BadPublic);
        }
        if secret.algorithm() != SecurityAlgorithm::ECDSAP256SHA256 {
            return Err(KeyFault::BadPrivate);
        }
        let pair = KeyPair::from_bytes(secret, public).map_err(|_| KeyFault::NotAPair)?;
        let numbers = [&FLAGS.to_be_bytes()[..], &[3, SecurityAlgorithm::ECDSAP256SHA256.to_int()]].concat();
        let dnskey = [&numbers, &public.public_key()[..]].concat().into_boxed_slice();
        Ok(Self { pair, dnskey, tag: public.key_tag() })
    }

    /// Key tag (RFC 4034 §B).
    pub fn tag(&self) -> u16 {
        self.tag
    }

    /// Data of its DNSKEY record, and of CDNSKEY.
    pub fn dnskey(&self) -> &[u8] {
        &self.dnskey
    }

    /// Its DNSKEY record.
    pub fn public(&self) -> Option<Dnskey<&[u8]>> {
        let (&[_, _, protocol, algorithm], public) = self.dnskey.split_first_chunk()?;
        Dnskey::new(FLAGS, protocol, algorithm.into(), public).ok()
    }

    /// Data of its DS record, and of CDS (RFC 4034 §5.1).
    pub fn ds(&self, apex: &DomainName) -> Vec<u8> {
        let mut digest = Context::new(&SHA256);
        digest.update(apex.as_wire());
        digest.update(&self.dnskey);
        let mut data = self.tag.to_be_bytes().to_vec();
        data.extend([SecurityAlgorithm::ECDSAP256SHA256.to_int(), DIGEST_SHA256]);
        data.extend_from_slice(digest.finish().as_ref());
        data
    }

    /// Signs; `None` if the system gives no random numbers.
    pub fn sign(&self, data: &[u8]) -> Option<[u8; SIGNATURE_BYTES]> {
        match self.pair.sign_raw(data).ok()? {
            Signature::EcdsaP256Sha256(signature) => Some(*signature),
            Signature::RsaSha1(_)
            | Signature::RsaSha1Nsec3Sha1(_)
            | Signature::RsaSha256(_)
            | Signature::RsaSha512(_)
            | Signature::EcdsaP384Sha384(_)
            | Signature::Ed25519(_)
            | Signature::Ed448(_) => None,
        }
    }
}
