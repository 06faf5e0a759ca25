//! Keys as files that other tools read too: `K<zone>.+013+<tag>.key` with the DNSKEY record, and `.private` in the
//! private-key format of BIND.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use domain::base::ToName;
use domain::base::iana::Class;
use domain::base::name::Name;
use domain::base::{Record, Ttl};
use domain::crypto::sign::SecretKeyBytes;
use domain::dnssec::common::{display_as_bind, parse_from_bind};
use reveille_core::model::{DomainName, Timestamp};

use super::key::{KeyFault, SigningKey};
use crate::named_file::{self, FileError};

/// Largest file that is read; keys are some hundred bytes.
const FILE_BYTES_MAX: u64 = 64 * 1_024;

/// Why a key file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(FileError),
    /// It cannot be written, or its directory not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error("{} may be read by others (mode {mode:o}); whoever has read it can sign. Make it 600", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds no key that can be used.
    #[error("{}: {source}", path.display())]
    Fault {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyFault,
    },
}

/// A name as a file name: dots stay, whatever else could mean something to a shell or a file system does not.
pub(super) fn file_name(zone: &DomainName) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &[u8]| -> String {
        let byte = |&byte: &u8| {
            if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") }
        };
        label.iter().map(byte).collect()
    };
    let labels: Vec<String> = zone.labels().map(label).collect();
    // No label is empty, so that this is no other zone's.
    if labels.is_empty() { "%".to_owned() } else { labels.join(".") }
}

/// The path of a key's files, without their endings.
fn base(dir: &Path, zone: &DomainName, tag: u16) -> PathBuf {
    dir.join(format!("K{}.+013+{tag:05}", file_name(zone)))
}

/// The path of a key's private file.
pub(super) fn private_path(dir: &Path, zone: &DomainName, tag: u16) -> PathBuf {
    with_ending(&base(dir, zone, tag), "private")
}

fn with_ending(base: &Path, ending: &str) -> PathBuf {
    // Not `with_extension`: the name has dots of its own.
    let mut path = base.as_os_str().to_owned();
    path.push(".");
    path.push(ending);
    path.into()
}

/// Makes a new key and writes its files, the private one last: if that is there, all is there.
pub(super) fn create(dir: &Path, zone: &DomainName, now: Timestamp) -> Result<SigningKey, KeyFileError> {
    let fault = |source| KeyFileError::Fault { path: dir.to_owned(), source };
    let (key, secret) = SigningKey::generate().map_err(fault)?;
    let owner = Name::from_octets(zone.as_wire()).map_err(|_| fault(KeyFault::BadPublic))?;
    let public = Record::new(owner, Class::IN, Ttl::ZERO, key.public().ok_or(fault(KeyFault::BadPublic))?);
    let public = display_as_bind(&public).to_string();
    // The version with times, by which tools decide whether a key is in use. What is done with the key here is
    // decided by the ledger alone.
    let time: String = now.utc().chars().filter(char::is_ascii_digit).collect();
    let private = secret.display_as_bind().to_string().replacen("v1.2", "v1.3", 1);
    let private = format!("{private}Created: {time}\nPublish: {time}\nActivate: {time}\n");
    let base = base(dir, zone, key.tag());
    for (ending, text) in [("key", &public), ("private", &private)] {
        let path = with_ending(&base, ending);
        write_new(&path, text.as_bytes()).map_err(|source| KeyFileError::Io { path, source })?;
    }
    Ok(key)
}

/// Reads the key with that tag.
pub(super) fn load(dir: &Path, zone: &DomainName, tag: u16) -> Result<SigningKey, KeyFileError> {
    load_at(&base(dir, zone, tag), zone)
}

/// Reads the one key of the directory; `None` if there is none.
///
/// # Errors
/// If there are several, their paths.
pub(super) fn load_only(
    dir: &Path,
    zone: &DomainName,
) -> Result<Option<SigningKey>, Result<KeyFileError, Vec<PathBuf>>> {
    let io = |source| Ok(KeyFileError::Io { path: dir.to_owned(), source });
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|ending| ending == "private") {
            found.push(path);
        }
    }
    match &found[..] {
        [] => Ok(None),
        // The ending is taken off, what stays has dots of its own.
        [path] => load_at(&path.with_extension(""), zone).map(Some).map_err(Ok),
        [_, _, ..] => Err(Err(found)),
    }
}

fn load_at(base: &Path, zone: &DomainName) -> Result<SigningKey, KeyFileError> {
    let (public_path, private_path) = (with_ending(base, "key"), with_ending(base, "private"));
    let fault = |path: &Path, source| KeyFileError::Fault { path: path.to_owned(), source };
    let read = |path: &Path| named_file::read(path, FILE_BYTES_MAX).map_err(KeyFileError::Unreadable);
    let text = |path: &Path, bytes| named_file::text(path, bytes).map_err(KeyFileError::Unreadable);
    let public_text = text(&public_path, read(&public_path)?.bytes)?;
    let private = read(&private_path)?;
    let mode = private.mode & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Open { path: private_path, mode });
    }
    let private_text = text(&private_path, private.bytes)?;
    let record = parse_from_bind::<Vec<u8>>(&public_text);
    let record = record.map_err(|_| fault(&public_path, KeyFault::BadPublic))?;
    let owner = DomainName::from_wire(&record.owner().to_vec().into_octets());
    if owner.as_ref() != Ok(zone) {
        return Err(fault(&public_path, KeyFault::BadPublic));
    }
    let secret = SecretKeyBytes::parse_from_bind(&private_text);
    let secret = secret.map_err(|_| fault(&private_path, KeyFault::BadPrivate))?;
    SigningKey::new(&secret, record.data()).map_err(|source| fault(&private_path, source))
}

// --- Files that survive ------------------------------------------------------------------------------------------

/// Makes a directory for its owner alone, and those above it.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)
}

/// Writes a file that must not be there yet. It appears whole and durable, or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = write_beside(path, bytes)?;
    let linked = fs::hard_link(&beside, path);
    let removed = fs::remove_file(&beside);
    linked?;
    removed?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Writes a file in place of what is there, if anything. Whoever reads has the old one or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::rename(write_beside(path, bytes)?, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// The file under a name that nobody reads, durable.
fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let beside = with_ending(path, "new");
    // What a killed process left.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(beside)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
