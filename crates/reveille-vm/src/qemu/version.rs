//! A version on disk: what it consists of, when it is one, and how it becomes and ceases to be one.
//!
//! ```text
//! state/memory         guest memory, mapped by QEMU; a running guest writes to it
//! state/device         registers and devices
//! state/disk-N, disks  layers of its disk, if it has one, and which they are (see `disk`)
//! state/manifest.json  what these belong to: written last, taken away first
//! state/consumed.json  the manifest of the version that the guest was last restored from
//! state/spent          the hash of the manifest that was last taken away
//! state/sums.json      checksums of the version's large files, if it has any (see `sums`)
//! ```
//!
//! **Invariant.** A manifest that is there means that `memory`, `device` and the layers that it names are exactly that
//! version and that no vCPU has run since it was taken. It is published after both are durable, while the guest stands still, and it
//! is durably taken away before a vCPU runs. Whoever finds it may end the process; whoever does not must not.
//!
//! **How it is taken away.** Its hash is written over what is in `spent`, and that is flushed: a manifest with this hash is
//! none. To rename it comes after and is flushed by nobody. The flush of a directory waits for whatever else is being written
//! to the file system's journal, milliseconds beside an upload; that of a block that is already there does not.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use reveille_core::model::{Resources, SnapshotVersion};
use serde::{Deserialize, Serialize};

use super::argv::MACHINE;
use super::disk::{self, Chain, VersionDisk, layer_name};
use super::layout::{private, replace_durably, sync_dir};
use super::sums;
use crate::driver::{VersionFiles, VersionNeeds};
use crate::files::allocated_bytes;

/// The layout of manifest and files that this code reads and writes.
const FORMAT: u32 = 1;
/// Largest manifest that is read.
const MANIFEST_BYTES_MAX: u64 = 64 << 10;
/// Bytes of `spent`: a hash in hex.
const SPENT_BYTES: usize = 64;
/// Largest device state that is read; usual are 0.1 MB.
const DEVICE_BYTES_MAX: u64 = 64 << 20;

/// What a version needs to be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// What the core knows of it.
    pub version: SnapshotVersion,
    /// What the guest was given.
    pub resources: Resources,
    /// How its code was run, and on which kind of CPU.
    pub accelerator: String,
    /// Version of the monitor that took it.
    pub vmm: String,
    /// How the device state is loaded.
    #[serde(default)]
    pub devices: Devices,
    /// What the guest knows of its network: see [`Needs::network`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Its disk, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<VersionDisk>,
    /// Who listens in the guest.
    #[serde(default)]
    pub listeners: Listeners,
    /// The service whose version this is a copy of, until the guest knows that it is another's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<String>,
    device_bytes: u64,
    device_blake3: String,
}

impl Manifest {
    /// The same files as another instance's version; whose clone its guest is to be told that it is, if it can be.
    pub fn cloned(self, version: SnapshotVersion, clone_of: Option<String>) -> Self {
        Self { version, clone_of, ..self }
    }
}

/// How a device state was taken, and so how it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Devices {
    /// Memory that is mapped shared was left out by QEMU itself (`x-ignore-shared`).
    #[default]
    Alone,
    /// The memory was taken out of the whole stream.
    Separated,
}

/// Who listened in a guest when its version was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listeners {
    /// The guest's agent.
    pub agent: Listener,
    /// The boot stage's refresher.
    pub refresher: Listener,
}

/// Whether somebody listens at a port of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listener {
    /// There is not even a port: the guest was started by an earlier release.
    #[default]
    NoPort,
    /// A port at which nobody listens.
    Silent,
    /// Somebody listens.
    Present,
}

/// Why what is on disk is no version that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum VersionFault {
    /// There is no manifest: no version was published, or a guest was restored from it.
    #[error("there is none")]
    None,
    /// A file cannot be read.
    #[error("{file} cannot be read: {source}")]
    Unreadable {
        /// `manifest.json`, `device` or `memory`.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The manifest is not what was written.
    #[error("its manifest is damaged: {0}")]
    Damaged(String),
    /// The manifest was written by another release.
    #[error("its format is {0}, this release reads {FORMAT}")]
    Format(u32),
    /// A file is not as long as it was.
    #[error("{file} has {found} bytes instead of {expected}")]
    Length {
        /// `device` or `memory`.
        file: &'static str,
        /// Its length now.
        found: u64,
        /// As published.
        expected: u64,
    },
    /// A layer of its disk is not what it was.
    #[error("{0}")]
    Disk(String),
    /// Memory or a layer is not what was captured.
    #[error("its {0}")]
    Contents(String),
    /// The device state is not what was written.
    #[error("its device state is damaged: the checksum does not match")]
    Checksum,
}

/// The state directory of one instance.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// At `path`.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The guest's memory.
    pub fn memory(&self) -> PathBuf {
        self.0.join("memory")
    }

    /// Registers and devices.
    pub fn device(&self) -> PathBuf {
        self.0.join("device")
    }

    fn manifest(&self) -> PathBuf {
        self.0.join("manifest.json")
    }

    fn spent(&self) -> PathBuf {
        self.0.join("spent")
    }

    /// Whether there is a manifest, intact or not.
    pub fn has_manifest(&self) -> bool {
        match self.manifest_text() {
            Ok(text) => !self.is_spent(&text),
            Err(_) => self.manifest().symlink_metadata().is_ok(),
        }
    }

    fn manifest_text(&self) -> Result<Vec<u8>, VersionFault> {
        read_limited(&self.manifest(), "manifest.json", MANIFEST_BYTES_MAX)
    }

    /// Whether this manifest was taken away, and may not be gone yet.
    fn is_spent(&self, manifest: &[u8]) -> bool {
        fs::read(self.spent()).is_ok_and(|spent| spent == blake3::hash(manifest).to_hex().as_bytes())
    }

    /// The version that is intact: its manifest and the files that it speaks of, all checked but the memory's
    /// contents.
    ///
    /// # Errors
    /// [`VersionFault`]; nothing is changed.
    pub fn read(&self) -> Result<Manifest, VersionFault> {
        self.read_with(&self.0)
    }

    /// As [`StateDir::read`], with the disk's layers in another directory.
    fn read_with(&self, layers: &Path) -> Result<Manifest, VersionFault> {
        let manifest = self.read_manifest()?;
        check_disk(manifest.disk.as_ref(), layers)?;
        let expected = memory_bytes(manifest.resources);
        let memory =
            self.memory().metadata().map_err(|source| VersionFault::Unreadable { file: "memory", source })?;
        if memory.len() != expected {
            return Err(VersionFault::Length { file: "memory", found: memory.len(), expected });
        }
        let device = read_limited(&self.device(), "device", DEVICE_BYTES_MAX)?;
        let found = device.len() as u64;
        if found != manifest.device_bytes {
            return Err(VersionFault::Length { file: "device", found, expected: manifest.device_bytes });
        }
        if blake3::hash(&device).to_hex().as_str() != manifest.device_blake3 {
            return Err(VersionFault::Checksum);
        }
        Ok(manifest)
    }

    fn read_manifest(&self) -> Result<Manifest, VersionFault> {
        let text = match self.manifest_text() {
            Err(VersionFault::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(VersionFault::None);
            }
            Ok(text) if self.is_spent(&text) => return Err(VersionFault::None),
            read => String::from_utf8(read?).map_err(|error| VersionFault::Damaged(error.to_string()))?,
        };
        let mut lines = text.lines();
        let (Some(body), Some(sum), None) = (lines.next(), lines.next(), lines.next()) else {
            return Err(VersionFault::Damaged("it is cut off".to_owned()));
        };
        if sum != checksum_line(body) {
            return Err(VersionFault::Damaged("the checksum does not match".to_owned()));
        }
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let damaged = |error: serde_json::Error| VersionFault::Damaged(error.to_string());
        let head: Head = serde_json::from_str(body).map_err(damaged)?;
        if head.format != FORMAT {
            return Err(VersionFault::Format(head.format));
        }
        serde_json::from_str(body).map_err(damaged)
    }

    /// The image that the version here was taken of, if there is one whose manifest can be read.
    pub fn image(&self) -> Option<String> {
        self.read_manifest().ok().map(|manifest| manifest.version.image)
    }

    /// The layers of the disk that is here; `None` without one. What a guest wrote that nobody has seen is not in it.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn chain(&self) -> io::Result<Option<Chain>> {
        match self.read_manifest() {
            Ok(manifest) => Ok(manifest.disk.map(|disk| disk.chain)),
            // Without a manifest that can be read: what the last process had. It is not less than the version.
            Err(_) => Chain::recorded(&self.0),
        }
    }

    /// Empties the directory of a guest that is gone, but for its disk, and creates memory of zeros.
    pub fn create_memory(&self, resources: Resources) -> io::Result<()> {
        for file in [self.memory(), self.device(), self.0.join("consumed.json")] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        sums::discard(&self.0)?;
        private().write(true).create_new(true).open(self.memory())?.set_len(memory_bytes(resources))
    }

    /// Removes all but the memory.
    pub fn discard(&self) -> io::Result<()> {
        for file in [self.manifest(), self.device(), self.0.join("consumed.json")] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        sums::discard(&self.0)
    }

    /// Opens a new, empty device state for QEMU to write.
    pub fn create_device(&self) -> io::Result<File> {
        private().write(true).create(true).truncate(true).open(self.device())
    }

    /// Makes what the guest has written to its memory so far durable. While the guest runs, this only shortens
    /// the time that it has to stand still for the rest.
    pub fn sync_memory(&self) -> io::Result<()> {
        File::open(self.memory())?.sync_all()
    }

    /// Makes memory and device state of a guest that stands still since `stopped` durable and describes them.
    pub fn seal(&self, version: SnapshotVersion, needs: Needs, stopped: Instant) -> io::Result<Manifest> {
        self.sync_memory()?;
        let disk = Chain::recorded(&self.0)?.map(|chain| chain.describe(&self.0)).transpose()?;
        self.describe(version, needs, Devices::Alone, disk, || {
            u64::try_from(stopped.elapsed().as_micros()).unwrap_or(u64::MAX)
        })
    }

    /// Makes the device state durable and describes it together with memory and a disk that are.
    pub fn describe(
        &self,
        mut version: SnapshotVersion,
        needs: Needs,
        devices: Devices,
        disk: Option<VersionDisk>,
        paused_us: impl FnOnce() -> u64,
    ) -> io::Result<Manifest> {
        let mut device = Vec::new();
        let mut file = File::open(self.device())?;
        file.read_to_end(&mut device)?;
        file.sync_all()?;
        let device_bytes = device.len() as u64;
        let disk_bytes: u64 = disk.iter().flat_map(|disk| &disk.lengths).sum();
        version.stored_bytes = self.memory_blocks_bytes()? + device_bytes + disk_bytes;
        version.paused_us = paused_us();
        Ok(Manifest {
            format: FORMAT,
            version,
            resources: needs.resources,
            accelerator: needs.accelerator,
            vmm: needs.vmm,
            devices,
            network: needs.network,
            disk,
            listeners: needs.listeners,
            clone_of: None,
            device_bytes,
            device_blake3: blake3::hash(&device).to_hex().to_string(),
        })
    }

    /// Publishes a version whose files are durable (from [`StateDir::seal`]).
    pub fn publish(&self, manifest: &Manifest) -> io::Result<()> {
        let body = serde_json::to_string(manifest)?;
        let text = format!("{body}\n{}\n", checksum_line(&body));
        if self.is_spent(text.as_bytes()) || self.spent().metadata().is_err() {
            let mut spent = private().write(true).create(true).truncate(true).open(self.spent())?;
            spent.write_all(&[b'0'; SPENT_BYTES])?;
            spent.sync_all()?;
        }
        replace_durably(&self.manifest(), text.as_bytes())
    }

    /// Takes the manifest away, durably: after this vCPUs may run. Without one nothing is done.
    pub fn consume(&self) -> io::Result<()> {
        let noted = self
            .manifest_text()
            .is_ok_and(|text| self.spend(blake3::hash(&text).to_hex().as_bytes()).is_ok());
        match fs::rename(self.manifest(), self.0.join("consumed.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) if noted => Ok(()),
            // It came here without the file, or it cannot be read: the long way.
            Ok(()) => sync_dir(&self.0),
        }
    }

    /// Writes over what is in `spent`, durably.
    fn spend(&self, hash: &[u8]) -> io::Result<()> {
        let spent = private().write(true).open(self.spent())?;
        spent.write_all_at(hash, 0)?;
        spent.sync_data()
    }

    /// Puts back the manifest that was taken away: nothing has run since.
    pub fn restore_manifest(&self) -> io::Result<()> {
        match self.spend(&[b'0'; SPENT_BYTES]) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::rename(self.0.join("consumed.json"), self.manifest())?;
        sync_dir(&self.0)
    }

    /// Makes durable whether there is a manifest: whoever wrote it, or took it away, may have ended before that.
    pub fn settle(&self) -> io::Result<()> {
        match self.manifest_text() {
            Ok(text) if self.is_spent(&text) => {
                // Whoever wrote that may have ended before its flush.
                File::open(self.spent())?.sync_all()?;
                fs::rename(self.manifest(), self.0.join("consumed.json"))?;
            }
            Ok(_) | Err(_) => match File::open(self.manifest()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Err(_) => {}
                Ok(manifest) => manifest.sync_all()?,
            },
        }
        match sync_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    }

    /// Gives files that came under the names of [`StateDir::open_files`] the ones that they have here.
    pub fn name_files(&self) -> io::Result<()> {
        fs::rename(self.0.join("manifest"), self.manifest())?;
        sync_dir(&self.0)
    }

    /// Opens what the intact version consists of.
    pub fn open_files(&self) -> io::Result<VersionFiles> {
        self.open_files_with(&self.0)
    }

    /// As [`StateDir::open_files`], with the disk's layers in another directory.
    pub fn open_files_with(&self, layers: &Path) -> io::Result<VersionFiles> {
        // Whatever takes the directories' places meanwhile: it is these that are read.
        let (dir, layers) = (File::open(&self.0)?, File::open(layers)?);
        let held = Self(format!("/proc/self/fd/{}", dir.as_raw_fd()).into());
        let layers = PathBuf::from(format!("/proc/self/fd/{}", layers.as_raw_fd()));
        let manifest = held.read_with(&layers).map_err(|fault| io::Error::other(fault.to_string()))?;
        let open = |(name, file): (&str, &str)| Ok((name.to_owned(), File::open(held.0.join(file))?));
        let files = [("memory", "memory"), ("device", "device"), ("manifest", "manifest.json")];
        let mut files = files.map(open).into_iter().collect::<io::Result<Vec<_>>>()?;
        for name in manifest.disk.iter().flat_map(|disk| disk.chain.names()) {
            let layer = disk::open_shared(&layers.join(&name))?;
            files.push((name, layer));
        }
        let needs = VersionNeeds {
            resources: manifest.resources,
            vmm: manifest.vmm,
            machine: MACHINE.to_owned(),
            accelerator: manifest.accelerator,
        };
        Ok(VersionFiles { version: manifest.version, needs, files })
    }

    /// Whether another instance has the same memory file: then nobody may write to it.
    pub fn is_memory_shared(&self) -> bool {
        self.memory().metadata().is_ok_and(|memory| memory.nlink() > 1)
    }

    /// Bytes that the memory takes on disk; the rest of it are holes.
    pub fn memory_blocks_bytes(&self) -> io::Result<u64> {
        Ok(allocated_bytes(&self.memory().metadata()?))
    }
}

/// What a version is taken with and needs again.
#[derive(Debug, Clone)]
pub struct Needs {
    /// What the guest was given.
    pub resources: Resources,
    /// How its code was run, and on which kind of CPU.
    pub accelerator: String,
    /// Version of the monitor.
    pub vmm: String,
    /// The tap device's addresses, which the guest has in its memory; empty for a link to the daemon, where all
    /// guests have the same.
    pub network: String,
    /// Who listens in the guest; decides nothing about whether a version fits.
    pub listeners: Listeners,
}

/// Whether the layers of a version are in `layers`, as long as they were, and name no other files.
fn check_disk(disk: Option<&VersionDisk>, layers: &Path) -> Result<(), VersionFault> {
    let Some(VersionDisk { chain, lengths }) = disk else { return Ok(()) };
    chain.check().map_err(|why| VersionFault::Damaged(format!("of its disk, {why}")))?;
    if lengths.len() != chain.layers.len() {
        return Err(VersionFault::Damaged("its disk has layers without a length".to_owned()));
    }
    for (number, expected) in chain.layers.iter().zip(lengths) {
        let name = layer_name(*number);
        let found = layers.join(&name).metadata().map(|file| file.len());
        match found {
            Ok(found) if found == *expected => {}
            Ok(found) => {
                return Err(VersionFault::Disk(format!("{name} has {found} bytes instead of {expected}")));
            }
            Err(error) => return Err(VersionFault::Disk(format!("{name} cannot be read: {error}"))),
        }
    }
    chain.check_layers(layers).map_err(VersionFault::Disk)
}

/// Bytes of guest memory.
pub fn memory_bytes(resources: Resources) -> u64 {
    u64::from(resources.memory_mib) << 20
}

fn checksum_line(body: &str) -> String {
    format!("\"blake3:{}\"", blake3::hash(body.as_bytes()).to_hex())
}

fn read_limited(path: &Path, file: &'static str, limit: u64) -> Result<Vec<u8>, VersionFault> {
    let unreadable = |source| VersionFault::Unreadable { file, source };
    let mut contents = Vec::new();
    File::open(path).map_err(unreadable)?.take(limit + 1).read_to_end(&mut contents).map_err(unreadable)?;
    if contents.len() as u64 > limit {
        return Err(VersionFault::Damaged(format!("{file} is larger than {limit} bytes")));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reveille_core::model::Timestamp;

    fn published() -> (tempfile::TempDir, StateDir, Manifest) {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::at(temp.path().to_owned());
        let resources = Resources { cpus: 1, memory_mib: 1, ..Resources::default() };
        state.create_memory(resources).unwrap();
        fs::write(state.device(), b"registers").unwrap();
        let version = SnapshotVersion {
            number: 3,
            at: Timestamp::from_ms(1),
            stored_bytes: 0,
            paused_us: 0,
            image: "abc".to_owned(),
        };
        let needs = Needs {
            resources,
            accelerator: "tcg".to_owned(),
            vmm: "7.2.22".to_owned(),
            network: String::new(),
            listeners: Listeners::default(),
        };
        let manifest = state.seal(version, needs, Instant::now()).unwrap();
        assert!(matches!(state.read(), Err(VersionFault::None)));
        state.publish(&manifest).unwrap();
        (temp, state, manifest)
    }

    #[test]
    fn a_version_is_one_from_publishing_to_consuming() {
        let (_temp, state, manifest) = published();
        assert_eq!(state.read().unwrap(), manifest);
        state.consume().unwrap();
        assert!(matches!(state.read(), Err(VersionFault::None)));
        state.consume().unwrap();
    }

    #[test]
    fn a_manifest_that_comes_back_after_it_was_taken_away_is_none() {
        let (_temp, state, manifest) = published();
        let text = fs::read(state.manifest()).unwrap();
        state.consume().unwrap();
        // As after a loss of power: that it was renamed was not flushed.
        fs::write(state.manifest(), &text).unwrap();
        assert!(matches!(state.read(), Err(VersionFault::None)));
        assert!(!state.has_manifest());
        state.settle().unwrap();
        assert!(!state.manifest().exists());

        state.restore_manifest().unwrap();
        assert_eq!(state.read().unwrap(), manifest, "one that was put back is one");
        state.consume().unwrap();
        state.publish(&manifest).unwrap();
        assert!(state.has_manifest(), "and one that is published again");
        fs::remove_file(state.spent()).unwrap();
        state.consume().unwrap();
        assert!(!state.has_manifest(), "of an earlier release, too");
    }

    #[test]
    fn every_shorter_manifest_is_refused() {
        let (_temp, state, _) = published();
        let whole = fs::read(state.manifest()).unwrap();
        // Without its last line break it still has every byte that counts.
        for length in 0..whole.len() - 1 {
            fs::write(state.manifest(), &whole[..length]).unwrap();
            assert!(matches!(state.read(), Err(VersionFault::Damaged(_))), "{length} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_of_the_manifest_is_refused() {
        let (_temp, state, _) = published();
        let whole = fs::read(state.manifest()).unwrap();
        for at in 0..whole.len() - 1 {
            let mut bent = whole.clone();
            bent[at] ^= 1;
            fs::write(state.manifest(), &bent).unwrap();
            assert!(matches!(state.read(), Err(VersionFault::Damaged(_))), "byte {at}");
        }
    }

    #[test]
    fn files_that_changed_are_refused_and_named() {
        let (_temp, state, _) = published();
        fs::write(state.device(), b"registerz").unwrap();
        assert!(matches!(state.read(), Err(VersionFault::Checksum)));
        fs::write(state.device(), b"register").unwrap();
        assert!(matches!(state.read(), Err(VersionFault::Length { file: "device", found: 8, expected: 9 })));
        fs::write(state.device(), b"registers").unwrap();
        state.read().unwrap();
        fs::write(state.memory(), b"short").unwrap();
        assert!(matches!(state.read(), Err(VersionFault::Length { file: "memory", .. })));
        fs::remove_file(state.memory()).unwrap();
        assert!(matches!(state.read(), Err(VersionFault::Unreadable { file: "memory", .. })));
    }
}
