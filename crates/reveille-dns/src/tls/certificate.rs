//! The certificate that clients are shown, and how it is replaced while they are connected.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use ring::digest::{SHA256, digest};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::files::{self, CertificateError, Pair, Stamp};
use super::own;
use crate::base64;

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// From files in PEM: the server's own certificate first, then those that lead to the authority.
    Files {
        /// The certificates.
        certificate: PathBuf,
        /// The key of the first one.
        key: PathBuf,
    },
    /// Made by the server, and kept in a directory.
    SelfSigned {
        /// The directory, made if needed; the key lies there too.
        dir: PathBuf,
        /// Names and addresses for which it is.
        names: Vec<String>,
    },
}

/// What is known of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// SHA-256 of the public key (SubjectPublicKeyInfo) in base64: what clients may pin (RFC 7858 §4.2).
    pub pin: String,
    /// The first moment in which it is valid.
    pub from: SystemTime,
    /// The last one.
    pub until: SystemTime,
}

/// What came of looking at the source again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refreshed {
    /// Nothing has changed since the last look.
    Same,
    /// New handshakes see another certificate. Open connections stay.
    Replaced(About),
}

/// The certificate that new handshakes see.
#[derive(Debug)]
pub struct Certificate {
    shown: Arc<Shown>,
    /// Where it comes from, and the files as they were when they were last looked at.
    seen: Mutex<(CertificateSource, [Stamp; 2])>,
}

/// What rustls asks for the certificate.
#[derive(Debug)]
struct Shown(ArcSwap<Pair>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certified))
    }
}

impl Certificate {
    /// Reads the certificate, or makes one. Reads and writes files, so not for a thread that must not wait.
    ///
    /// # Errors
    /// One sentence with the file and the remedy.
    pub fn open(source: CertificateSource, now: SystemTime) -> Result<Self, CertificateError> {
        let stamps = source.stamps();
        let (pair, _) = source.read(now)?;
        let seen = Mutex::new((source, stamps));
        Ok(Self { shown: Arc::new(Shown(ArcSwap::from_pointee(pair))), seen })
    }

    /// Looks at the source again: takes what has changed in the files, renews what the server has made for itself.
    /// Cheap if there is nothing to do. Reads and writes files, so not for a thread that must not wait.
    ///
    /// # Errors
    /// What is there cannot be used; the certificate stays as it was. The same files are not tried again.
    pub fn refresh(&self, now: SystemTime) -> Result<Refreshed, CertificateError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (source, seen) = &mut *seen;
        let stamps = source.stamps();
        let is_due = match source {
            CertificateSource::Files { .. } => false,
            CertificateSource::SelfSigned { .. } => own::is_due(&self.shown.0.load(), now),
        };
        if *seen == stamps && !is_due {
            return Ok(Refreshed::Same);
        }
        *seen = stamps;
        let (pair, is_new) = source.read(now)?;
        if !is_new && pair.certified.cert == self.shown.0.load().certified.cert {
            return Ok(Refreshed::Same);
        }
        if is_new {
            *seen = source.stamps();
        }
        self.shown.0.store(Arc::new(pair));
        Ok(Refreshed::Replaced(self.about()))
    }

    /// What is known of the certificate that is shown now.
    pub fn about(&self) -> About {
        let pair = self.shown.0.load();
        let public_key = pair.certified.key.public_key();
        let pin = public_key.map(|der| base64::encode(digest(&SHA256, &der).as_ref()));
        About { pin: pin.unwrap_or_default(), from: pair.from, until: pair.until }
    }

    /// Where it comes from.
    pub fn source(&self) -> CertificateSource {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// From here on new handshakes see the other one, and its source is looked at.
    pub fn exchange(&self, other: Self) {
        let theirs = other.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = theirs;
        self.shown.0.store(other.shown.0.load_full());
    }

    pub(super) fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::<Shown>::clone(&self.shown)
    }
}

impl CertificateSource {
    /// The pair that is there, and whether it was made just now.
    fn read(&self, now: SystemTime) -> Result<(Pair, bool), CertificateError> {
        match self {
            Self::Files { certificate, key } => Ok((files::read(certificate, key)?, false)),
            Self::SelfSigned { dir, names } => own::keep(dir, names, now),
        }
    }

    fn stamps(&self) -> [Stamp; 2] {
        match self {
            Self::Files { certificate, key } => [Stamp::of(certificate), Stamp::of(key)],
            Self::SelfSigned { dir, .. } => {
                let (certificate, key) = own::places(dir);
                [Stamp::of(&certificate), Stamp::of(&key)]
            }
        }
    }
}
