//! Manifests: what a version is, what it needs to be restored, and where its pages are. A manifest that is there is
//! complete: everything that it names was written before.
//!
//! A record whose content is the length of a JSON text (4 bytes), the text, and the tables of [`super::map`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::map::{self, ChunkRef, PART_PAGES_MAX, PageMap};
use super::{Fault, Kind, record};
use crate::names::{Shelf, VersionId};
use crate::pages::pages_of;
use crate::seal::{KeyId, Keyring, SALT_BYTES};

/// Largest content of a manifest: 3 GB of memory in single, scattered pages; 64 GB in runs of some pages.
pub const MANIFEST_BYTES_MAX: u64 = 48 << 20;
/// Largest JSON text in it.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// Most parts: memory, device state, disks.
pub const PARTS_MAX: usize = 32;
/// Longest name of a part.
const PART_NAME_BYTES_MAX: usize = 64;
/// Most keys of a version's chunks.
const KEYS_MAX: usize = 64;
/// Bytes of the length before the text.
const LENGTH_BYTES: usize = 4;

/// What the one who took the version says of it. The depot looks at the number, the epoch and the image; the rest it
/// keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Of which service, and its number.
    pub id: VersionId,
    /// The ownership epoch of the host that took it.
    pub epoch: u64,
    /// The version that the guest was restored from, if any.
    pub parent: Option<u64>,
    /// Digest of the image.
    pub image: String,
    /// When the guest was stopped for it, in ms since 1970.
    pub taken_at_ms: u64,
    /// For how long the guest stood still, in µs.
    pub paused_us: u64,
    /// What it needs.
    pub needs: Needs,
    /// How long a wake from it is expected to take, in ms, by rung.
    pub wake_ms: BTreeMap<String, u64>,
    /// What else the driver must know, such as how the guest's devices are arranged.
    pub notes: BTreeMap<String, String>,
}

/// What a version needs to be restored; it is refused where this is not so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    /// Virtual machine monitor, such as `qemu`.
    pub vmm: String,
    /// Its version.
    pub vmm_version: String,
    /// Machine type.
    pub machine: String,
    /// Fingerprint of the CPU that the guest has seen.
    pub cpu: String,
    /// Fingerprint of the guest's kernel.
    pub kernel: String,
    /// How its code was run.
    pub accelerator: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// A named stream of bytes: `memory`, `device`, `disk-0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Also the name of its file.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Sum over its pages ([`crate::pages::ContentSum`]), as hexadecimal digits.
    pub content: String,
    /// Where its pages are.
    pub map: PageMap,
}

/// What a version consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What it is.
    pub about: Description,
    /// Bytes of the chunks that were stored for it, and of its manifest without the tables.
    pub own_bytes: u64,
    /// Bytes of the chunks that it shares with the version that it was compared with.
    pub shared_bytes: u64,
    /// The keys of its chunks.
    pub keys: Vec<KeyId>,
    /// The chunks that it needs.
    pub chunks: Vec<ChunkRef>,
    /// Its parts.
    pub parts: Vec<Part>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    about: Description,
    own_bytes: u64,
    shared_bytes: u64,
    keys: Vec<String>,
    parts: Vec<PartText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartText {
    name: String,
    bytes: u64,
    content: String,
}

/// Whether a part may have this name: it becomes a file's.
pub fn is_part_name(name: &str) -> bool {
    (1..=PART_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
}

impl Manifest {
    /// The part `name`.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// Whether it holds, part by part, the same bytes as `other`.
    pub fn has_content_of(&self, other: &[(String, u64, String)]) -> bool {
        let own = self.parts.iter().map(|part| (&part.name, part.bytes, &part.content));
        own.eq(other.iter().map(|(name, bytes, content)| (name, *bytes, content)))
    }

    fn content(&self) -> Result<Vec<u8>, Fault> {
        let parts = self.parts.iter();
        let text = Text {
            about: self.about.clone(),
            own_bytes: self.own_bytes,
            shared_bytes: self.shared_bytes,
            keys: self.keys.iter().map(KeyId::to_string).collect(),
            parts: parts
                .map(|p| PartText { name: p.name.clone(), bytes: p.bytes, content: p.content.clone() })
                .collect(),
        };
        let text = serde_json::to_vec(&text).map_err(|error| Fault::new(0, error.to_string()))?;
        let length = u32::try_from(text.len()).ok().filter(|_| text.len() <= TEXT_BYTES_MAX);
        let length = length.ok_or_else(|| {
            Fault::new(0, format!("its description has {} bytes, at most {TEXT_BYTES_MAX}", text.len()))
        })?;
        let mut content = length.to_le_bytes().to_vec();
        content.extend_from_slice(&text);
        content.append(&mut map::encode(&self.chunks, self.parts.iter().map(|part| &part.map)));
        if content.len() as u64 > MANIFEST_BYTES_MAX {
            let why = format!("the manifest has {} bytes, at most {MANIFEST_BYTES_MAX}", content.len());
            return Err(Fault::new(0, why));
        }
        Ok(content)
    }

    /// As an object.
    ///
    /// # Errors
    /// If it is larger than what can be read, or what it says could not be read back.
    pub fn encode(&self, salt: [u8; SALT_BYTES], keys: &Keyring) -> Result<Vec<u8>, Fault> {
        let content = self.content()?;
        let again = Self::of_content(&content)?;
        if again != *self {
            return Err(Fault::new(0, "the manifest would not be read as it is written"));
        }
        let path = Shelf::Versions.path(&self.about.id);
        record::encode(Kind::Manifest, &path, &content, salt, keys.newest())
    }

    /// Reads the manifest of the version `id`.
    ///
    /// # Errors
    /// [`Fault`] if it is not as it was written, or is another version's.
    pub fn decode(bytes: &[u8], id: &VersionId, keys: &Keyring) -> Result<Self, Fault> {
        let path = Shelf::Versions.path(id);
        let manifest =
            Self::of_content(&record::decode(bytes, Kind::Manifest, &path, MANIFEST_BYTES_MAX, keys)?)?;
        if manifest.about.id != *id {
            return Err(Fault::new(0, format!("it is the manifest of {}, not of {id}", manifest.about.id)));
        }
        Ok(manifest)
    }

    /// Reads what a manifest holds when it is opened.
    ///
    /// # Errors
    /// [`Fault`], with offsets in the content.
    pub fn of_content(content: &[u8]) -> Result<Self, Fault> {
        let (length, rest) = content
            .split_first_chunk::<LENGTH_BYTES>()
            .ok_or_else(|| Fault::new(content.len(), "the content ends before the description"))?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > TEXT_BYTES_MAX {
            let why =
                format!("it says its description has {length} bytes, at most {TEXT_BYTES_MAX} are possible");
            return Err(Fault::new(0, why));
        }
        let (text, tables) = rest
            .split_at_checked(length)
            .ok_or_else(|| Fault::new(content.len(), "the content ends within the description"))?;
        let text: Text = serde_json::from_slice(text).map_err(|error| {
            Fault::new(LENGTH_BYTES + error.column(), format!("its description: {error}"))
        })?;
        let keys = read_keys(&text.keys)?;
        let pages = check_parts(&text.parts)?;
        let (chunks, maps) = map::decode(tables, LENGTH_BYTES + length, keys.len(), &pages)?;
        let parts = text.parts.into_iter().zip(maps);
        Ok(Self {
            about: text.about,
            own_bytes: text.own_bytes,
            shared_bytes: text.shared_bytes,
            keys,
            chunks,
            parts: parts
                .map(|(part, map)| Part { name: part.name, bytes: part.bytes, content: part.content, map })
                .collect(),
        })
    }
}

fn read_keys(texts: &[String]) -> Result<Vec<KeyId>, Fault> {
    if texts.len() > KEYS_MAX {
        return Err(Fault::new(LENGTH_BYTES, format!("it names {} keys, at most {KEYS_MAX}", texts.len())));
    }
    let wrong = || Fault::new(LENGTH_BYTES, "a key's id is not 16 hexadecimal digits");
    texts.iter().map(|text| KeyId::of_hex(text).ok_or_else(wrong)).collect()
}

/// The parts' numbers of pages.
fn check_parts(parts: &[PartText]) -> Result<Vec<u64>, Fault> {
    let fault = |why| Err(Fault::new(LENGTH_BYTES, why));
    if parts.len() > PARTS_MAX {
        return fault(format!("it has {} parts, at most {PARTS_MAX} are possible", parts.len()));
    }
    let mut pages = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        if !is_part_name(&part.name) {
            return fault(format!(
                "part {index} is called {:?}: at most {PART_NAME_BYTES_MAX} of a-z, 0-9 and `-`",
                part.name
            ));
        }
        if parts.iter().take(index).any(|other| other.name == part.name) {
            return fault(format!("two parts are called {}", part.name));
        }
        let count = pages_of(part.bytes);
        if count > PART_PAGES_MAX {
            return fault(format!(
                "the part {} has {} bytes, at most {PART_PAGES_MAX} pages",
                part.name, part.bytes
            ));
        }
        pages.push(count);
    }
    Ok(pages)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::names::ChunkName;
    use crate::seal::SealKey;

    /// Says what a test does not care about.
    pub(crate) fn about(service: &str, number: u64) -> Description {
        Description {
            id: VersionId { service: service.parse().unwrap(), number },
            epoch: 1,
            parent: None,
            image: "0f1e".to_owned(),
            taken_at_ms: 1_798_761_599_000,
            paused_us: 4_200,
            needs: Needs {
                vmm: "qemu".to_owned(),
                vmm_version: "10.0.2".to_owned(),
                machine: "microvm".to_owned(),
                cpu: "aa".to_owned(),
                kernel: "6.1".to_owned(),
                accelerator: "kvm".to_owned(),
                cpus: 1,
                memory_mib: 1,
            },
            wake_ms: [("local".to_owned(), 60)].into(),
            notes: BTreeMap::new(),
        }
    }

    fn manifest() -> Manifest {
        let mut map = PageMap::default();
        (4..9).for_each(|page| map.push(page, 0, u16::try_from(page).unwrap()));
        Manifest {
            about: about("a.test", 7),
            own_bytes: 10,
            shared_bytes: 0,
            keys: vec![],
            chunks: vec![ChunkRef { name: ChunkName([5; 32]), pages: 9, stored_bytes: 100, key: 0 }],
            parts: vec![
                Part { name: "memory".to_owned(), bytes: 1 << 20, content: "00".to_owned(), map },
                Part {
                    name: "device".to_owned(),
                    bytes: 0,
                    content: "0".to_owned(),
                    map: PageMap::default(),
                },
            ],
        }
    }

    #[test]
    fn a_manifest_comes_back_under_its_own_name_only() {
        for keys in [Keyring::default(), Keyring::new(vec![SealKey::new(&[3; 32])], false)] {
            let manifest = manifest();
            let bytes = manifest.encode([2; 16], &keys).unwrap();
            let id = manifest.about.id.clone();
            assert_eq!(Manifest::decode(&bytes, &id, &keys).unwrap(), manifest);
            assert!(Manifest::decode(&bytes, &VersionId { number: 8, ..id.clone() }, &keys).is_err());
            for bit in 0..bytes.len() * 8 {
                let mut bent = bytes.clone();
                bent[bit / 8] ^= 1 << (bit % 8);
                assert!(Manifest::decode(&bent, &id, &keys).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn what_could_not_be_read_back_is_not_written() {
        type Bend = fn(&mut Manifest);
        let bends: [(Bend, &str); 6] = [
            (|m| m.parts[0].name = "../memory".to_owned(), "is called"),
            (|m| m.parts[1].name = "memory".to_owned(), "two parts"),
            (|m| m.parts[0].bytes = 8 * 4096, "run of pages"),
            (|m| m.parts[0].bytes = u64::MAX, "at most"),
            (|m| m.chunks[0].pages = 8, "place of a run"),
            (|m| m.about.notes = [("x".to_owned(), "y".repeat(300_000))].into(), "description"),
        ];
        for (bend, why) in bends {
            let mut bad = manifest();
            bend(&mut bad);
            let fault = bad.encode([2; 16], &Keyring::default()).unwrap_err().to_string();
            assert!(fault.contains(why), "{fault}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let content = manifest().content().unwrap();
        let text = String::from_utf8_lossy(&content[4..]).into_owned();
        let end = text.find("}]}").unwrap() + 3;
        let wider = format!("{},\"colour\":1}}", &text[..end - 1]);
        let mut bytes = u32::try_from(wider.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(wider.as_bytes());
        bytes.extend_from_slice(&content[4 + end..]);
        assert!(Manifest::of_content(&bytes).unwrap_err().why.contains("colour"));
    }
}
