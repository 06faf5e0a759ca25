//! What things in a depot are called, and where they lie. All paths are relative to the depot's prefix, so that a depot
//! can be copied elsewhere as a whole.
//!
//! ```text
//! depot                              format and grace of the depot; written once, by whoever opens it first
//! chunks/<2 hex>/<64 hex>            pages
//! services/<name>/versions/<n>       a version's manifest
//! services/<name>/deleted/<n>        the manifest of a deleted version, until one grace has passed
//! services/<name>/pinned/<n>         that there is one means that the version is kept
//! services/<name>/owner              who may run the service
//! services/<name>/touched            the pages that the last wake needed first
//! clock/<32 hex>                     written and taken away to read the store's clock
//! records/kind=<kind>/date=<date>/…  raw records, which the depot neither reads nor collects (`annex.rs`)
//! ```

use std::fmt;
use std::str::FromStr;

use object_store::path::Path;
use serde::{Deserialize, Serialize};

/// Longest name of a service; a domain name has at most as many.
pub const SERVICE_NAME_BYTES_MAX: usize = 253;

/// The name of a service: lower-case letters, digits, `-`, `_` and `.`, as in a domain name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

/// Why a text is no name of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no service's name: 1 to {SERVICE_NAME_BYTES_MAX} of a-z, 0-9, `-`, `_` and `.`, no dot first or last or beside another"
)]
pub struct ServiceNameError(String);

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, ServiceNameError> {
        let character = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.');
        let good = (1..=SERVICE_NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(character)
            && text.split('.').all(|label| !label.is_empty());
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(ServiceNameError(text.chars().take(SERVICE_NAME_BYTES_MAX + 3).collect()))
        }
    }
}

impl TryFrom<String> for ServiceName {
    type Error = ServiceNameError;

    fn try_from(text: String) -> Result<Self, ServiceNameError> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A version of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionId {
    /// Of which service.
    pub service: ServiceName,
    /// Its number; a service never uses one again.
    pub number: u64,
}

impl fmt::Display for VersionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.service, self.number)
    }
}

/// The name of a chunk: 256 bits over the hashes of its pages and its salt, keyed if it is sealed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName(pub [u8; 32]);

impl fmt::Display for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl ChunkName {
    /// Where the chunk lies.
    pub fn path(&self) -> String {
        let name = self.to_string();
        format!("{CHUNKS}/{}/{name}", name.get(..2).unwrap_or_default())
    }

    /// The chunk that lies at `path`; `None` if that is no place of a chunk.
    pub fn of_path(path: &str) -> Option<Self> {
        let (shelf, name) = path.strip_prefix(CHUNKS)?.strip_prefix('/')?.split_once('/')?;
        let bytes = unhex(name)?;
        name.starts_with(shelf).then_some(Self(bytes)).filter(|_| shelf.len() == 2)
    }
}

/// The 2·N lower-case hexadecimal digits of N bytes.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let pairs: &[[u8; 2]; N] = pairs.try_into().ok()?;
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Format and grace of the depot.
pub(crate) const CHARTER: &str = "depot";
/// Below it lie the chunks.
pub(crate) const CHUNKS: &str = "chunks";
/// Below it lie the services.
pub(crate) const SERVICES: &str = "services";
/// Below it the store's clock is read.
pub(crate) const CLOCK: &str = "clock";
/// Below it lie raw records.
pub(crate) const RECORDS: &str = "records";

/// The shelves of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shelf {
    /// Manifests.
    Versions,
    /// Manifests of deleted versions.
    Deleted,
    /// Pins.
    Pinned,
}

impl Shelf {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Versions => "versions",
            Self::Deleted => "deleted",
            Self::Pinned => "pinned",
        }
    }

    /// Where the shelf of `service` is.
    pub(crate) fn of(self, service: &ServiceName) -> String {
        format!("{SERVICES}/{service}/{}", self.word())
    }

    /// Where what belongs to a version lies.
    pub(crate) fn path(self, id: &VersionId) -> String {
        format!("{}/{}", self.of(&id.service), id.number)
    }

    /// What lies at `path`, which is below `services/`.
    pub(crate) fn of_path(path: &str) -> Option<(Self, VersionId)> {
        let (service, rest) = path.strip_prefix(SERVICES)?.strip_prefix('/')?.split_once('/')?;
        let (word, number) = rest.split_once('/')?;
        let shelf =
            [Self::Versions, Self::Deleted, Self::Pinned].into_iter().find(|shelf| shelf.word() == word)?;
        let parsed: u64 = number.parse().ok()?;
        (parsed.to_string() == number)
            .then_some((shelf, VersionId { service: service.parse().ok()?, number: parsed }))
    }
}

/// Where the owner of `service` is written.
pub(crate) fn owner_path(service: &ServiceName) -> String {
    format!("{SERVICES}/{service}/owner")
}

/// Where the working set of `service` is written.
pub(crate) fn touched_path(service: &ServiceName) -> String {
    format!("{SERVICES}/{service}/touched")
}

/// As the store's own type, below `prefix`.
pub(crate) fn below(prefix: &Path, path: &str) -> Path {
    prefix.parts().chain(Path::from(path).parts()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        for good in ["a", "hello.vm.test", "db-1_x"] {
            assert_eq!(good.parse::<ServiceName>().unwrap().to_string(), good);
        }
        for bad in ["", ".", "..", "a..b", "/a", "a/b", "A", "a%", ".a", "a.", "ä", &"x".repeat(254)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_read_as_they_are_written() {
        let name = ChunkName([0xa7; 32]);
        assert_eq!(ChunkName::of_path(&name.path()), Some(name));
        assert_eq!(ChunkName::of_path(&name.path().replace("/a7/", "/a8/")), None);
        assert_eq!(ChunkName::of_path("chunks/a7/a7"), None);
        let id = VersionId { service: "a.b".parse().unwrap(), number: 12 };
        for shelf in [Shelf::Versions, Shelf::Deleted, Shelf::Pinned] {
            assert_eq!(Shelf::of_path(&shelf.path(&id)), Some((shelf, id.clone())));
        }
        assert_eq!(Shelf::of_path("services/a.b/versions/012"), None);
        assert_eq!(Shelf::of_path("services/a.b/owner"), None);
    }
}
