//! An instance's disk: layers of its own over the base of its image.
//!
//! ```text
//! base            the image's; nobody writes to it
//! state/disk-0    all that was folded down
//! state/disk-7    what the guest writes to
//! state/disks     the record: which layers there are, lowest first
//! ```
//!
//! Only the uppermost layer is written to. A checkpoint, and a guest that runs beside its version, get a new one on top;
//! what lies below does not change any more and is read at leisure, until it is folded into the lowest (see `fold`).
//!
//! **Invariants.** The record is the chain of the process that is there, or was last. It is durable before the process
//! has its uppermost layer, so that what a guest was told is durable is always in a layer that the record names: a layer
//! that was recorded and not used holds nothing, and hides nothing. While a manifest is there, its own list is the truth:
//! what lies above has been written by a guest that nobody has seen. The files' headers are not asked for what lies below
//! them. Who reads layers has them locked, shared; a layer that is locked or has other names is not written to again.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::layout::{USED, replace_durably, sync_dir};
use super::users::open_to_all;
use crate::driver::Disk;
use crate::qcow2;

/// Most layers of an instance's own. Folding keeps them at two; each guest that is lost before it comes to that, or runs
/// beside a version that is being read, adds one.
pub const LAYERS_MAX: usize = 24;
/// The layout of the record that this code reads and writes.
const FORMAT: u32 = 1;
/// Largest record that is read.
const RECORD_BYTES_MAX: u64 = 16 << 10;
/// The record, in a state's directory.
pub const RECORD: &str = "disks";
/// How layers are called.
pub const PREFIX: &str = "disk-";
/// Name of the base in QEMU.
const BASE: &str = "base";

/// The layers of an instance's disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chain {
    format: u32,
    /// Content address of what they lie over.
    pub base: String,
    /// The guest's bytes.
    pub bytes: u64,
    /// Their numbers, lowest first; never empty.
    pub layers: Vec<u32>,
}

/// The disk of a version, as its manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionDisk {
    /// Its layers.
    pub chain: Chain,
    /// How long the file of each is.
    pub lengths: Vec<u64>,
}

/// What a layer's file is called, on the disk, in QEMU, and as a part of a version.
pub fn layer_name(number: u32) -> String {
    format!("{PREFIX}{number}")
}

impl Chain {
    /// A first layer over a base.
    fn over(disk: &Disk, number: u32) -> Self {
        Self { format: FORMAT, base: disk.address.clone(), bytes: disk.bytes, layers: vec![number] }
    }

    /// The layer that the guest writes to.
    pub fn top(&self) -> String {
        layer_name(self.layers.last().copied().unwrap_or(0))
    }

    /// Without its uppermost layer; `None` if there is no other.
    pub fn lower(&self) -> Option<Self> {
        let (_, layers) = self.layers.split_last().filter(|(_, layers)| !layers.is_empty())?;
        Some(Self { layers: layers.to_vec(), ..self.clone() })
    }

    /// The names of the layers, lowest first.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        self.layers.iter().copied().map(layer_name)
    }

    /// The same with an empty layer on top, whose file is made in `dir`.
    ///
    /// # Errors
    /// There are [`LAYERS_MAX`], or the disk does not take it.
    pub fn grown(&self, dir: &Path) -> io::Result<Self> {
        if self.layers.len() >= LAYERS_MAX {
            return Err(io::Error::other(format!(
                "its disk has {LAYERS_MAX} layers, which is the most; they are folded while it runs and nothing reads them"
            )));
        }
        let number = next_number(dir, &self.layers)?;
        create_layer(&dir.join(layer_name(number)), self.bytes)?;
        sync_dir(dir)?;
        let mut grown = self.clone();
        grown.layers.push(number);
        Ok(grown)
    }

    /// A disk that holds what its base does.
    pub fn create(disk: &Disk, dir: &Path) -> io::Result<Self> {
        let number = next_number(dir, &[])?;
        create_layer(&dir.join(layer_name(number)), disk.bytes)?;
        sync_dir(dir)?;
        Ok(Self::over(disk, number))
    }

    /// Makes this the record in `dir`, durably.
    pub fn record(&self, dir: &Path) -> io::Result<()> {
        if Self::recorded(dir).is_ok_and(|there| there.as_ref() == Some(self)) {
            return Ok(());
        }
        replace_durably(&dir.join(RECORD), &serde_json::to_vec(self)?)
    }

    /// The record in `dir`; `None` if what was there had no disk.
    pub fn recorded(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join(RECORD);
        match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(file) if file.len() > RECORD_BYTES_MAX => {
                return Err(io::Error::other(format!("`{}` is no record of a disk", path.display())));
            }
            Ok(_) => {}
        }
        let damaged = |error: &dyn std::fmt::Display| {
            io::Error::other(format!("the record of its disk, `{}`, is damaged: {error}", path.display()))
        };
        let chain: Self = serde_json::from_slice(&fs::read(&path)?).map_err(|error| damaged(&error))?;
        chain.check().map_err(|why| damaged(&why))?;
        Ok(Some(chain))
    }

    /// Whether it is one that this release wrote.
    pub fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("its format is {}, this release reads {FORMAT}", self.format));
        }
        let mut numbers = self.layers.clone();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() != self.layers.len() || !(1..=LAYERS_MAX).contains(&numbers.len()) {
            return Err(format!("it has {} layers", self.layers.len()));
        }
        Ok(())
    }

    /// Checks the layers in `dir`: they are there, and their headers name no other files.
    ///
    /// # Errors
    /// One sentence.
    pub fn check_layers(&self, dir: &Path) -> Result<(), String> {
        for name in self.names() {
            let checked = File::open(dir.join(&name)).map_err(qcow2::DiskFault::from);
            checked
                .and_then(|file| qcow2::check_layer(&file, self.bytes))
                .map_err(|fault| format!("the layer {name} of its disk cannot be used: {fault}"))?;
        }
        Ok(())
    }

    /// Gives the layers in `from` names in `to` as well.
    pub fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        for name in self.names() {
            match fs::remove_file(to.join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => fs::hard_link(from.join(&name), to.join(&name))?,
            }
        }
        sync_dir(to)
    }

    /// Makes the layers in `dir`, which nobody writes to now, durable, and describes them.
    pub fn describe(&self, dir: &Path) -> io::Result<VersionDisk> {
        let mut lengths = Vec::with_capacity(self.layers.len());
        for name in self.names() {
            let file = File::open(dir.join(name))?;
            file.sync_all()?;
            lengths.push(file.metadata()?.len());
        }
        Ok(VersionDisk { chain: self.clone(), lengths })
    }

    /// Removes the layers in `dir` that are not in the chain.
    pub fn clean(chain: Option<&Self>, dir: &Path) -> io::Result<()> {
        for number in numbers(dir)? {
            if !chain.is_some_and(|chain| chain.layers.contains(&number)) {
                fs::remove_file(dir.join(layer_name(number)))?;
            }
        }
        Ok(())
    }

    /// The disk as QEMU is told about it: what each `-blockdev` says, lowest first. Layers are in `dir`, from QEMU's
    /// working directory.
    ///
    /// # Errors
    /// A path that cannot be written as JSON.
    pub fn nodes(&self, disk: &Disk, dir: &str) -> Result<Vec<Value>, String> {
        let path = disk.base.to_str().ok_or_else(|| {
            format!("the path of its disk, `{}`, is not UTF-8; move the state directory", disk.base.display())
        })?;
        let format = disk.format.word();
        let file = json!({ "driver": "file", "filename": path, "read-only": true });
        let mut base = json!({ "driver": format, "node-name": BASE, "read-only": true, "file": file });
        if disk.format == crate::driver::DiskFormat::Qcow2
            && let Some(options) = base.as_object_mut()
        {
            options.insert("backing".to_owned(), Value::Null);
        }
        let mut nodes = vec![base];
        let mut below = BASE.to_owned();
        for name in self.names() {
            let top = name == self.top();
            nodes.push(node(&name, dir, !top, &Value::String(below)));
            below = name;
        }
        Ok(nodes)
    }
}

/// Makes an empty layer, which a process that is there already may be told to open.
fn create_layer(path: &Path, bytes: u64) -> io::Result<()> {
    qcow2::create_layer(path, bytes)?;
    open_to_all(path, USED)
}

/// What QEMU is told about a layer. Written data stays in the host's page cache until the guest flushes; then it is
/// durable before the guest is told so (no option below turns that off).
pub fn node(name: &str, dir: &str, read_only: bool, below: &Value) -> Value {
    let file = json!({ "driver": "file", "filename": format!("{dir}/{name}"), "discard": "unmap" });
    json!({
        "driver": "qcow2", "node-name": name, "read-only": read_only, "discard": "unmap", "file": file,
        "backing": below,
    })
}

/// Opens a layer for somebody who reads it while its instance may run. As long as the file is open it does not change.
pub fn open_shared(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // Who looks whether it is free has it for a moment.
    rustix::fs::flock(&file, FlockOperation::LockShared)?;
    Ok(file)
}

/// Whether a layer below the uppermost may be written to: nobody reads it, and it has no other name.
pub fn is_free(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let file = File::open(path)?;
    if file.metadata()?.nlink() > 1 {
        return Ok(false);
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn next_number(dir: &Path, taken: &[u32]) -> io::Result<u32> {
    let there = numbers(dir)?;
    let last = there.iter().chain(taken).max();
    last.map_or(Some(0), |last| last.checked_add(1)).ok_or_else(|| io::Error::other("no number for a layer"))
}

fn numbers(dir: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).map(str::parse::<u32>);
        numbers.extend(number.and_then(Result::ok));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::DiskFormat;

    fn disk() -> Disk {
        let address = "ab".to_owned();
        Disk { base: "/images/x/disk".into(), format: DiskFormat::Raw, bytes: 1 << 20, address }
    }

    #[test]
    fn a_chain_grows_and_what_is_not_in_it_goes() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        assert_eq!(Chain::recorded(dir).unwrap(), None);
        let first = Chain::create(&disk(), dir).unwrap();
        first.record(dir).unwrap();
        let second = first.grown(dir).unwrap();
        assert_eq!(Chain::recorded(dir).unwrap().unwrap().layers, [0]);
        second.record(dir).unwrap();
        assert_eq!(Chain::recorded(dir).unwrap().unwrap().layers, [0, 1]);
        second.check_layers(dir).unwrap();
        // Numbers are not used twice while the one before is there.
        assert_eq!(first.grown(dir).unwrap().layers, [0, 2]);
        Chain::clean(Some(&second), dir).unwrap();
        let mut left = numbers(dir).unwrap();
        left.sort_unstable();
        assert_eq!(left, [0, 1]);
        fs::remove_file(dir.join("disk-0")).unwrap();
        assert!(
            second.check_layers(dir).unwrap_err().contains("the layer disk-0 of its disk cannot be used")
        );
    }

    #[test]
    fn a_chain_has_an_end() {
        let temp = tempfile::tempdir().unwrap();
        let mut chain = Chain::create(&disk(), temp.path()).unwrap();
        for _ in 1..LAYERS_MAX {
            chain = chain.grown(temp.path()).unwrap();
        }
        assert!(chain.grown(temp.path()).unwrap_err().to_string().contains("24 layers"));
        chain.check().unwrap();
    }

    #[test]
    fn who_reads_a_layer_keeps_it_from_being_written_to() {
        let temp = tempfile::tempdir().unwrap();
        let chain = Chain::create(&disk(), temp.path()).unwrap();
        let path = temp.path().join(chain.top());
        assert!(is_free(&path).unwrap());
        let reader = open_shared(&path).unwrap();
        open_shared(&path).unwrap();
        assert!(!is_free(&path).unwrap());
        drop(reader);
        assert!(is_free(&path).unwrap());
        fs::hard_link(&path, temp.path().join("other")).unwrap();
        assert!(!is_free(&path).unwrap());
    }

    #[test]
    fn damaged_records_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        for text in ["", "{}", r#"{"format":1,"base":"ab","bytes":512,"layers":[]}"#] {
            fs::write(temp.path().join(RECORD), text).unwrap();
            let fault = Chain::recorded(temp.path()).unwrap_err().to_string();
            assert!(fault.contains("the record of its disk") && fault.contains("damaged"), "{fault}");
        }
    }

    #[test]
    fn only_the_uppermost_layer_is_written_to_and_each_is_told_what_lies_below() {
        let chain = Chain { format: FORMAT, base: "ab".to_owned(), bytes: 512, layers: vec![0, 7] };
        let nodes = chain.nodes(&disk(), "state").unwrap();
        let seen: Vec<_> = nodes
            .iter()
            .map(|node| {
                (node["node-name"].as_str().unwrap(), node["read-only"].as_bool().unwrap(), &node["backing"])
            })
            .collect();
        assert_eq!(seen[0], ("base", true, &Value::Null));
        assert_eq!(seen[1], ("disk-0", true, &Value::from("base")));
        assert_eq!(seen[2], ("disk-7", false, &Value::from("disk-0")));
    }
}
