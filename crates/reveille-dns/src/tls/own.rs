//! A certificate that the server makes for itself where none is configured.
//!
//! Nobody vouches for it, so clients either do not check it (opportunistic privacy, RFC 7858 §4.1) or know its key
//! (pins, §4.2). The key is therefore kept for as long as its file is: certificates are renewed with the same one.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use super::files::{self, CertificateError, Pair};

const DAY: Duration = Duration::from_secs(86_400);
/// How long a certificate is valid: what clients commonly take at most.
const VALID_DAYS: u32 = 365;
/// It is renewed when no more than this is left.
const RENEW_DAYS: u32 = 90;
/// Clocks of clients may be behind by this much.
const EARLIER_DAYS: u32 = 1;
/// Most names in a certificate.
const NAMES_MAX: usize = 64;
/// Longest name that stands in a certificate as such: longer ones have another form there.
const NAME_BYTES_MAX: usize = 127;

/// Where certificate and key lie in `dir`.
pub(super) fn places(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("self-signed-certificate.pem"), dir.join("self-signed-key.pem"))
}

/// The pair in `dir`, made or renewed if needed; tells whether the certificate is a new one.
pub(super) fn keep(dir: &Path, names: &[String], now: SystemTime) -> Result<(Pair, bool), CertificateError> {
    let (certificate_file, key_file) = places(dir);
    let key = key(dir, &key_file)?;
    if let Ok(pair) = files::read(&certificate_file, &key_file)
        && !is_due(&pair, now)
        && pair.certified.cert.first().is_some_and(|own| has_names(own, names))
    {
        return Ok((pair, false));
    }
    let certificate = sign(names, &key, now)?;
    write(&certificate_file, certificate.pem().as_bytes(), 0o644)?;
    Ok((files::read(&certificate_file, &key_file)?, true))
}

/// Whether the certificate is to be made anew.
pub(super) fn is_due(pair: &Pair, now: SystemTime) -> bool {
    pair.from > now || pair.until < now + DAY * RENEW_DAYS
}

/// The key in that file, made if there is none. One that is there and cannot be read is left alone: clients know it.
fn key(dir: &Path, file: &Path) -> Result<KeyPair, CertificateError> {
    match files::contents(file) {
        Ok(read) => {
            let pem = String::from_utf8(read.bytes).ok();
            let key = pem.and_then(|pem| KeyPair::from_pem(&pem).ok());
            key.ok_or_else(|| CertificateError::NoKey { path: file.to_owned() })
        }
        Err(CertificateError::Unreadable(error)) if error.is_absent() => {
            let key = KeyPair::generate()?;
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|source| CertificateError::Unwritable { path: dir.to_owned(), source })?;
            write(file, key.serialize_pem().as_bytes(), 0o600)?;
            Ok(key)
        }
        Err(error) => Err(error),
    }
}

fn sign(names: &[String], key: &KeyPair, now: SystemTime) -> Result<rcgen::Certificate, CertificateError> {
    let mut wanted = CertificateParams::new(listed(names).cloned().collect::<Vec<_>>())?;
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_1970;
    wanted.not_before = now - DAY * EARLIER_DAYS;
    wanted.not_after = now + DAY * VALID_DAYS;
    wanted.distinguished_name = rcgen::DistinguishedName::new();
    wanted.distinguished_name.push(DnType::CommonName, "Reveille, self-signed");
    wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(wanted.self_signed(key)?)
}

/// The names that can stand in a certificate.
fn listed(names: &[String]) -> impl Iterator<Item = &String> {
    names.iter().filter(|name| name.len() <= NAME_BYTES_MAX).take(NAMES_MAX)
}

/// Whether each name stands in the certificate, as an IP address or a DNS name (RFC 5280 §4.2.1.6).
fn has_names(certificate: &[u8], names: &[String]) -> bool {
    listed(names).all(|name| {
        let (tag, value) = match name.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => (0x87, address.octets().to_vec()),
            Ok(IpAddr::V6(address)) => (0x87, address.octets().to_vec()),
            Err(_) => (0x82, name.clone().into_bytes()),
        };
        let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
        let element = [&[tag, length][..], &value].concat();
        certificate.windows(element.len()).any(|window| window == element)
    })
}

/// Writes a file whole or not at all, so that a crash leaves no half of a key.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), CertificateError> {
    let fresh = path.with_extension("new");
    let written = || -> io::Result<()> {
        // What an earlier try left may have other permissions.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        match path.parent() {
            Some(dir) => fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    written().map_err(|source| CertificateError::Unwritable { path: path.to_owned(), source })
}
