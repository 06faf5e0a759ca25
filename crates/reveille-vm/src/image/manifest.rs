//! What is written beside an image's files, and how its digest comes from it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use reveille_core::model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::driver::DiskFormat;

/// Version of the format that is written. A reader refuses others.
pub(super) const MANIFEST_VERSION: u32 = 1;
/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 64 << 10;
/// Separates these digests from those of anything else.
const DIGEST_CONTEXT: &[u8] = b"reveille image manifest 1\n";
const DIGEST_HEX: usize = 64;

/// A file's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileMark {
    /// BLAKE3, as hexadecimal digits.
    pub blake3: String,
    pub bytes: u64,
}

/// What an image is. The digest covers this and nothing else, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    pub kernel: FileMark,
    pub initrd: FileMark,
    pub kernel_version: String,
    pub init: String,
    pub entries: u64,
    pub memory_mib_min: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskMark>,
}

/// A disk's address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskMark {
    /// The file.
    pub file: FileMark,
    pub format: DiskFormat,
    /// The guest's bytes.
    pub guest_bytes: u64,
}

impl Content {
    /// The content address of the image.
    pub(super) fn digest(&self) -> io::Result<String> {
        let canonical = serde_json::to_vec(self).map_err(io::Error::other)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(DIGEST_CONTEXT).update(&canonical);
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub version: u32,
    pub content: Content,
    pub built_at: Timestamp,
    pub notes: Vec<String>,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// A file is missing or cannot be read.
    #[error("`{file}` cannot be read: {source}")]
    Unreadable {
        /// Which of its files.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Not a manifest.
    #[error("image.json is damaged: {0}")]
    Manifest(String),
    /// Written by another version of Reveille.
    #[error(
        "image.json has version {found}; this Reveille reads version {MANIFEST_VERSION}; build the image again"
    )]
    Version {
        /// The version found.
        found: u64,
    },
    /// The manifest is that of another image.
    #[error("image.json belongs to image {0}")]
    Digest(String),
    /// A file is not what was written.
    #[error("`{file}` has changed since the image was built")]
    Changed {
        /// Which of its files.
        file: &'static str,
    },
}

/// Reads the manifest of the image in a directory that is named by its digest.
pub(super) fn read(directory: &Path, digest: &str) -> Result<Manifest, ImageFault> {
    let unreadable = |source| ImageFault::Unreadable { file: "image.json", source };
    let file = File::open(directory.join("image.json")).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let manifest = parse(&bytes)?;
    let own = manifest.content.digest().map_err(unreadable)?;
    if own == digest { Ok(manifest) } else { Err(ImageFault::Digest(own)) }
}

fn parse(bytes: &[u8]) -> Result<Manifest, ImageFault> {
    /// Read first, so that a newer format is named as such.
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let damaged = |error: serde_json::Error| ImageFault::Manifest(error.to_string());
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(ImageFault::Manifest(format!("it has more than {MANIFEST_BYTES_MAX} bytes")));
    }
    let Versioned { version } = serde_json::from_slice(bytes).map_err(damaged)?;
    if version != u64::from(MANIFEST_VERSION) {
        return Err(ImageFault::Version { found: version });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Recomputes the hash of a file.
pub(super) fn check_file(path: &Path, file: &'static str, mark: &FileMark) -> Result<(), ImageFault> {
    let unreadable = |source| ImageFault::Unreadable { file, source };
    let opened = File::open(path).map_err(unreadable)?;
    if opened.metadata().map_err(unreadable)?.len() != mark.bytes {
        return Err(ImageFault::Changed { file });
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(opened).map_err(unreadable)?;
    if hasher.finalize().to_hex().as_str() == mark.blake3 {
        Ok(())
    } else {
        Err(ImageFault::Changed { file })
    }
}

/// Whether a text has the form of a digest.
pub(super) fn is_digest(text: &str) -> bool {
    text.len() == DIGEST_HEX && is_hex(text)
}

/// Whether a text can be the beginning of a digest.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content() -> Content {
        let mark = |first: &str| FileMark { blake3: first.repeat(64), bytes: 7 };
        Content {
            kernel: mark("a"),
            initrd: mark("b"),
            kernel_version: "6.1".to_owned(),
            init: "/sbin/init".to_owned(),
            entries: 3,
            memory_mib_min: 64,
            disk: None,
        }
    }

    #[test]
    fn the_digest_of_a_content_stays_the_same_for_ever() {
        // Changing this would orphan every stored image and every snapshot that names one.
        let digest = content().digest().unwrap();
        assert_eq!(digest, "80344f8f9b08e52de136a903def81e8591940cb00cb28663b42f012e93e1a252");
        let mut other = content();
        other.memory_mib_min += 1;
        assert_ne!(other.digest().unwrap(), digest);
        let mut with_disk = content();
        let file = FileMark { blake3: "c".repeat(64), bytes: 512 };
        with_disk.disk = Some(DiskMark { file, format: DiskFormat::Raw, guest_bytes: 512 });
        let digest = with_disk.digest().unwrap();
        assert_eq!(digest, "b99e4b02826e5f70a416475b9be504ae771753c6ca6ff07b9a149b718908ae29");
    }

    #[test]
    fn other_versions_and_unknown_fields_are_refused_by_name() {
        let manifest =
            Manifest { version: 1, content: content(), built_at: Timestamp::from_ms(1), notes: Vec::new() };
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), manifest);
        let newer =
            parse(text.replacen("\"version\":1", "\"version\":2", 1).as_bytes()).unwrap_err().to_string();
        assert!(newer.starts_with("image.json has version 2; this Reveille reads version 1"), "{newer}");
        let unknown = parse(text.replacen("\"notes\"", "\"colour\":1,\"notes\"", 1).as_bytes());
        assert!(unknown.unwrap_err().to_string().contains("unknown field `colour`"));
        let long = format!("{text}{}", " ".repeat(64 << 10));
        assert!(parse(long.as_bytes()).unwrap_err().to_string().contains("more than 65536 bytes"));
    }

    proptest! {
        #[test]
        fn damaged_manifests_are_refused_without_a_panic(text in "\\PC{0,200}") {
            prop_assert!(parse(text.as_bytes()).is_err());
        }
    }
}
