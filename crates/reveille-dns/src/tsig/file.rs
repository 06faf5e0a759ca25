//! Key files: the secret alone in base64, or as `tsig-keygen` writes it.

use std::path::{Path, PathBuf};

use domain::utils::base64;
use reveille_core::model::DomainName;

use super::key::{Algorithm, Key, KeyError};
use crate::named_file::{self, FileError};

/// Largest key file, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Permission bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// Why a key file is not taken. Nothing of its content is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("a key file: {0}")]
    Unreadable(FileError),
    /// Others than its owner may use it.
    #[error(
        "the key file {path} has mode {mode:04o}: others than its owner may use it; run `chmod 600 {path}`, and \
         take a new key if somebody may have read it", path = path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Neither base64 nor `key` statements.
    #[error(
        "the key file {} is neither a secret in base64 nor `key \"name\" {{ algorithm hmac-sha256; secret \"…\"; }};`",
        .0.display()
    )]
    Form(PathBuf),
    /// It has keys, but not this one.
    #[error("the key file {} has no key {name}; it has {found}", path.display())]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// The key that is looked for.
        name: DomainName,
        /// The keys that it has.
        found: String,
    },
    /// It says another algorithm than the configuration.
    #[error("the key file {} says {found} for the key {name}, the configuration {wanted}", path.display())]
    OtherAlgorithm {
        /// The file.
        path: PathBuf,
        /// The key.
        name: DomainName,
        /// What the file says.
        found: Algorithm,
        /// What the configuration says.
        wanted: Algorithm,
    },
    /// What it has is no key.
    #[error("the key file {}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
}

/// Reads the key `name` from a file. `algorithm` must be what the file says, if both say one; without any it is
/// HMAC-SHA256.
///
/// # Errors
/// Why the file is not taken.
pub fn load(name: &DomainName, algorithm: Option<Algorithm>, path: &Path) -> Result<Key, KeyFileError> {
    let text = read(path)?;
    let fault = |source| KeyFileError::Key { path: path.to_owned(), source };
    let form = || KeyFileError::Form(path.to_owned());
    let (found, secret) = if text.contains('{') {
        let statements = statements(&text).ok_or_else(form)?;
        let named = |text: &str| text.parse::<DomainName>().is_ok_and(|found| found == *name);
        let Some(statement) = statements.iter().find(|statement| named(&statement.name)) else {
            let names: Vec<&str> = statements.iter().map(|statement| statement.name.as_str()).collect();
            let (path, name, found) = (path.to_owned(), name.clone(), names.join(", "));
            return Err(KeyFileError::OtherKey { path, name, found });
        };
        let found: Algorithm = statement.algorithm.parse().map_err(fault)?;
        (Some(found), statement.secret.clone())
    } else {
        (None, text.split_whitespace().collect())
    };
    if let (Some(found), Some(wanted)) = (found, algorithm)
        && found != wanted
    {
        return Err(KeyFileError::OtherAlgorithm {
            path: path.to_owned(),
            name: name.clone(),
            found,
            wanted,
        });
    }
    let secret: Vec<u8> = base64::decode(&secret).map_err(|_| form())?;
    Key::new(name.clone(), found.or(algorithm).unwrap_or(Algorithm::HmacSha256), &secret).map_err(fault)
}

fn read(path: &Path) -> Result<String, KeyFileError> {
    let read = named_file::read(path, FILE_BYTES_MAX).map_err(KeyFileError::Unreadable)?;
    if read.mode & OTHERS != 0 {
        return Err(KeyFileError::Open { path: path.to_owned(), mode: read.mode });
    }
    named_file::text(path, read.bytes).map_err(KeyFileError::Unreadable)
}

/// One `key` statement.
struct Statement {
    name: String,
    algorithm: String,
    secret: String,
}

/// The `key` statements of a text; `None` if it has anything else.
fn statements(text: &str) -> Option<Vec<Statement>> {
    let tokens = tokens(text)?;
    let mut tokens = tokens.iter().map(String::as_str);
    let mut statements = Vec::new();
    while let Some(word) = tokens.next() {
        if word != "key" {
            return None;
        }
        let name = tokens.next()?.to_owned();
        let (mut algorithm, mut secret) = (None, None);
        if tokens.next()? != "{" {
            return None;
        }
        loop {
            match tokens.next()? {
                "}" => break,
                "algorithm" => algorithm = Some(tokens.next()?.to_owned()),
                "secret" => secret = Some(tokens.next()?.to_owned()),
                _ => return None,
            }
            if tokens.next()? != ";" {
                return None;
            }
        }
        if tokens.next().is_some_and(|end| end != ";") {
            return None;
        }
        statements.push(Statement { name, algorithm: algorithm?, secret: secret? });
    }
    Some(statements)
}

/// Words, quoted or not, and the marks `{`, `}` and `;`, without comments; `None` if a quote or comment is open.
fn tokens(text: &str) -> Option<Vec<String>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let after = if rest.starts_with('#') || rest.starts_with("//") {
            rest.split_once('\n').map_or("", |(_, after)| after)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/")?.1
        } else if let Some(quoted) = rest.strip_prefix('"') {
            let (word, after) = quoted.split_once('"')?;
            tokens.push(word.to_owned());
            after
        } else if matches!(first, '{' | '}' | ';') {
            tokens.push(first.to_string());
            rest.get(1..)?
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '{' | '}' | ';' | '"'));
            let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
            tokens.push(word.to_owned());
            after
        };
        rest = after.trim_start();
    }
    Some(tokens)
}
