//! From a root and a kernel to an image in the store.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use reveille_core::model::Timestamp;

use super::boot::{self, BusyboxError};
use super::disk;
use super::fault::{NameError, StoreError};
use super::initramfs;
use super::kernel::{self, Kernel, KernelError, KernelSource};
use super::manifest::{Content, FileMark, MANIFEST_VERSION, Manifest};
use super::modules::{self, Modules, ModulesError};
use super::program::{self, InitError};
use super::source::{self, RootSource, SourceError};
use super::space::{self, NoSpace};
use super::store::{Image, ImageStore, check_name};
use super::tree::TreeError;
use crate::qcow2::DiskFault;

/// What an image is to be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildRequest {
    /// The root file system.
    pub root: RootSource,
    /// The disk that its instances have: a file in the format qcow2, or the sectors one after another.
    pub disk: Option<PathBuf>,
    /// The kernel.
    pub kernel: KernelSource,
    /// The root's own init; by default the first of [`program::INIT_PATHS`] that is there.
    pub init: Option<String>,
    /// A static busybox for the boot stage; by default [`BUSYBOX`].
    pub busybox: Option<PathBuf>,
    /// The memory in MiB that its instances will have, to be told now if it is not enough.
    pub memory_mib: Option<u32>,
    /// Name for the image.
    pub name: Option<String>,
    /// Where downloaded packages are kept; by default in the store.
    pub package_cache: Option<PathBuf>,
}

impl BuildRequest {
    /// A request with every default.
    pub fn new(root: RootSource, kernel: KernelSource) -> Self {
        Self {
            root,
            kernel,
            disk: None,
            init: None,
            busybox: None,
            memory_mib: None,
            name: None,
            package_cache: None,
        }
    }
}

/// Debian's busybox-static.
pub const BUSYBOX: &str = "/bin/busybox";

/// What a build is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildStep {
    /// Reading the root.
    Root,
    /// Finding, fetching or unpacking the kernel.
    Kernel,
    /// Reading and copying the disk.
    Disk,
    /// Writing the image.
    Write,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is at.
    pub step: BuildStep,
    /// Entries done in this step.
    pub entries: u64,
    /// Bytes done in this step.
    pub bytes: u64,
    /// Bytes that this step will have done, once that is known.
    pub bytes_total: Option<u64>,
}

/// Told often; not every call needs to be shown.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress);

/// Why an image is not built. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The root cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The root clashes with the boot stage, or grew too large with it.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The root has nothing that can be run.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The boot stage's busybox.
    #[error(transparent)]
    Busybox(#[from] BusyboxError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Its modules.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// Its disk.
    #[error("the disk `{}` cannot be used: {fault}", path.display())]
    Disk {
        /// What was given.
        path: PathBuf,
        /// Why.
        fault: DiskFault,
    },
    /// The root is on a disk that is not there.
    #[error("the root is on the disk, and no disk was given")]
    NoDisk,
    /// The guest could not unpack the root.
    #[error(
        "the root is too large for {given_mib} MiB of memory: it is unpacked into memory and needs {needed_mib} MiB; \
         give the service more or the root less"
    )]
    Memory {
        /// What the guest would have.
        given_mib: u32,
        /// What it needs.
        needed_mib: u32,
    },
    /// The disk.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// A file of the root changed or vanished while the image was written.
    #[error("`{path}` in the root: {source}; build again when nothing changes it")]
    Changed {
        /// The file.
        path: String,
        /// What happened.
        source: io::Error,
    },
    /// Writing the image failed.
    #[error("the image cannot be written to `{}`: {source}", path.display())]
    Write {
        /// What was being written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Memory in MiB that Debian's kernel takes before a root is counted: found by trying with a small and a large root.
const KERNEL_MEMORY_MIB: u64 = 56;

impl ImageStore {
    /// Builds an image, or finds that the same one is there already. Blocks for as long as it takes.
    pub fn build(&self, request: &BuildRequest, on_progress: OnProgress<'_>) -> Result<Image, BuildError> {
        if let Some(name) = &request.name {
            check_name(name)?;
        }
        let busybox = request.busybox.clone().unwrap_or_else(|| PathBuf::from(BUSYBOX));
        boot::check_busybox(&busybox)?;
        let work = self.workplace()?;
        let scratch = subdirectory(work.path(), "scratch")?;

        let mut at = Progress { step: BuildStep::Root, entries: 0, bytes: 0, bytes_total: None };
        let loaded = source::load(&request.root, &scratch, &mut |entries, bytes| {
            (at.entries, at.bytes) = (entries, bytes);
            on_progress(at);
        })?;
        let (mut tree, mut notes) = (loaded.tree, loaded.notes);
        boot::add_base(&mut tree, &busybox)?;
        let root = match &request.root {
            RootSource::OnDisk { device } if request.disk.is_some() => Some(device.clone()),
            RootSource::OnDisk { .. } => return Err(BuildError::NoDisk),
            RootSource::Directory(_) | RootSource::Tar(_) | RootSource::Oci(_) => None,
        };
        let wanted = loaded.program.filter(|_| request.init.is_none());
        if let Some(script) = &wanted {
            tree.add_file(boot::PROGRAM.trim_start_matches('/'), 0o755, script.as_bytes())?;
        }
        let named = wanted.map(|_| boot::PROGRAM).or(request.init.as_deref());
        let init = match &root {
            Some(_) => program::named_init(named)?,
            None => program::find_init(&tree, named)?,
        };

        on_progress(Progress { step: BuildStep::Kernel, entries: 0, bytes: 0, bytes_total: None });
        let cache = request.package_cache.clone().unwrap_or_else(|| self.cache_directory());
        let kernel = kernel::obtain(&request.kernel, &scratch, &cache)?;
        notes.extend(kernel.notes.iter().cloned());
        let modules = match &kernel.modules {
            Some(directory) => modules::gather(directory, &kernel.version, &busybox, request.disk.is_some())?,
            None => Modules::default(),
        };
        notes.extend(modules.notes.iter().cloned());
        boot::add_stage(&mut tree, &init, root.as_deref(), &modules)?;

        let archived = initramfs::archived_bytes(&tree);
        let memory_mib_min = memory_needed_mib(archived, initramfs::unpacked_bytes(&tree));
        if let Some(given_mib) = request.memory_mib.filter(|given| *given < memory_mib_min) {
            return Err(BuildError::Memory { given_mib, needed_mib: memory_mib_min });
        }
        let bytes_total = archived.saturating_add(kernel.bytes);
        space::require(work.path(), bytes_total)?;

        let finished = subdirectory(work.path(), "image")?;
        let disk = match &request.disk {
            Some(disk) => Some(disk::add(self, disk, &finished.join("disk"), on_progress)?),
            None => None,
        };
        let mut at =
            Progress { step: BuildStep::Write, entries: 0, bytes: 0, bytes_total: Some(bytes_total) };
        let kernel_mark = copy_kernel(&kernel, &finished.join("kernel"))?;
        at.bytes += kernel_mark.bytes;
        let initrd_mark = write_initrd(&tree, &finished.join("initrd"), &mut |bytes| {
            at.entries += 1;
            at.bytes += bytes;
            on_progress(at);
        })?;
        let content = Content {
            kernel: kernel_mark,
            initrd: initrd_mark,
            kernel_version: kernel.version,
            init,
            entries: u64::try_from(tree.len()).unwrap_or(u64::MAX),
            memory_mib_min,
            disk,
        };
        let manifest = Manifest { version: MANIFEST_VERSION, content, built_at: now(), notes };
        Ok(self.publish(&finished, &manifest, request.name.as_deref())?)
    }
}

/// The archive lies in memory while it is unpacked, and the file system that it is unpacked to may take half of what
/// is left beside it.
fn memory_needed_mib(archived: u64, unpacked: u64) -> u32 {
    let root = archived.saturating_add(unpacked.saturating_mul(2)).div_ceil(1 << 20);
    u32::try_from(KERNEL_MEMORY_MIB.saturating_add(root)).unwrap_or(u32::MAX)
}

fn subdirectory(directory: &Path, name: &str) -> Result<PathBuf, BuildError> {
    let path = directory.join(name);
    fs::create_dir(&path).map_err(|source| BuildError::Write { path: path.clone(), source })?;
    Ok(path)
}

fn copy_kernel(kernel: &Kernel, to: &Path) -> Result<FileMark, BuildError> {
    let failed = |source| BuildError::Write { path: to.to_owned(), source };
    let from = File::open(&kernel.path)
        .map_err(|source| KernelError::Unreadable { path: kernel.path.clone(), source })?;
    let mut out = Marked::create(to).map_err(failed)?;
    io::copy(&mut from.take(kernel::KERNEL_BYTES_MAX), &mut out).map_err(failed)?;
    out.finish().map_err(failed)
}

fn write_initrd(
    tree: &super::tree::Tree,
    to: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<FileMark, BuildError> {
    let failed = |source| BuildError::Write { path: to.to_owned(), source };
    let out = Marked::create(to).map_err(failed)?;
    let out = initramfs::write(tree, out, progress).map_err(|error| {
        // What is full is the image's disk; everything else is the root's doing.
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        if full.contains(&error.source.kind()) {
            failed(error.source)
        } else {
            BuildError::Changed { path: error.path, source: error.source }
        }
    })?;
    out.finish().map_err(failed)
}

/// A file that is hashed and counted as it is written.
struct Marked {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Marked {
    fn create(path: &Path) -> io::Result<Self> {
        let out = BufWriter::with_capacity(1 << 16, File::create_new(path)?);
        Ok(Self { out, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// Brings everything to the disk.
    fn finish(mut self) -> io::Result<FileMark> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        Ok(FileMark { blake3: self.hasher.finalize().to_hex().to_string(), bytes: self.bytes })
    }
}

impl Write for Marked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.bytes += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
