//! A certificate and its key from PEM files.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::InconsistentKeys;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::validity::validity;
use crate::named_file::{self, Contents, FileError};

/// Largest file that is read: a chain of some hundred certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{0}")]
    Unreadable(FileError),
    /// The key is not secret.
    #[error("everybody on this host may read the key {path}; run `chmod o= {path}`", path = path.display())]
    Exposed {
        /// The file of the key.
        path: PathBuf,
    },
    /// The file has no certificate.
    #[error(
        "{} has no certificate in PEM (-----BEGIN CERTIFICATE-----); it should have the server's own first, \
         then those that lead to the authority",
        path.display()
    )]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file has something that calls itself a certificate and is none.
    #[error("{} has a certificate that cannot be read", path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file has no key.
    #[error(
        "{} has no private key in PEM (-----BEGIN PRIVATE KEY-----, EC or RSA, without a passphrase)",
        path.display()
    )]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The key is of a kind that is not supported.
    #[error("the key in {} cannot be used: {source}; use ECDSA P-256 or P-384, Ed25519, or RSA", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The key is another one's.
    #[error("the key in {} does not belong to the certificate in {}", key.display(), certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// What the server makes for itself cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate could be made.
    #[error("cannot make a certificate: {0}")]
    Unmakable(#[from] rcgen::Error),
}

/// A certificate that was read and fits its key.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub certified: Arc<CertifiedKey>,
    pub from: SystemTime,
    pub until: SystemTime,
}

/// Reads and checks both files.
pub(super) fn read(certificate: &Path, key: &Path) -> Result<Pair, CertificateError> {
    let chain = chain(certificate)?;
    let bad = || CertificateError::BadCertificate { path: certificate.to_owned() };
    let (from, until) = chain.first().and_then(|own| validity(own)).ok_or_else(bad)?;
    let signing = any_supported_type(&private_key(key)?)
        .map_err(|source| CertificateError::BadKey { path: key.to_owned(), source })?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        // Of all kinds of keys that are taken the public half is known, so this does not happen.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let (certificate, key) = (certificate.to_owned(), key.to_owned());
            return Err(CertificateError::Mismatch { certificate, key });
        }
        Err(_) => return Err(bad()),
    }
    Ok(Pair { certified: Arc::new(certified), from, until })
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem = contents(path)?.bytes;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| CertificateError::BadCertificate { path: path.to_owned() })?;
    if chain.is_empty() { Err(CertificateError::NoCertificate { path: path.to_owned() }) } else { Ok(chain) }
}

/// The key in a file that not everybody may read.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let Contents { bytes: pem, mode } = contents(path)?;
    if mode & 0o007 != 0 {
        return Err(CertificateError::Exposed { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| CertificateError::NoKey { path: path.to_owned() })
}

/// What the file has, and who may read it.
pub(super) fn contents(path: &Path) -> Result<Contents, CertificateError> {
    named_file::read(path, FILE_BYTES_MAX).map_err(CertificateError::Unreadable)
}

/// Tells one state of a file from another without reading it; `None` while it is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(Option<(u64, u64, i64, i64, u32)>);

impl Stamp {
    /// Of the file as it is.
    pub fn of(path: &Path) -> Self {
        // The time of the last change of anything, permissions too.
        Self(fs::metadata(path).ok().map(|m| (m.ino(), m.size(), m.ctime(), m.ctime_nsec(), m.mode())))
    }
}
