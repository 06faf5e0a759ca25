//! The kernel of an image: what may be given, how it is told from other files, which version it is.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::elf::{Elf, ElfFault, ReadRange};
use super::package::{self, PackageError};

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// A kernel file: a bzImage (`vmlinuz`), or an uncompressed `vmlinux` that can be started directly (PVH).
    File {
        /// The kernel.
        kernel: PathBuf,
        /// Its modules: `lib/modules/VERSION` or a directory that has it. Without them the kernel must have virtio
        /// built in.
        modules: Option<PathBuf>,
    },
    /// A Debian kernel package.
    Package(PathBuf),
    /// The newest cloud kernel that this host's apt offers; fetched once and kept.
    Debian,
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing there, or not readable.
    #[error("no kernel: `{}` cannot be read: {source}", path.display())]
    Unreadable {
        /// What was given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another kind of file.
    #[error("`{}` is not a kernel: {why}; give a bzImage (vmlinuz) or a vmlinux for x86-64", path.display())]
    NotAKernel {
        /// What was given.
        path: PathBuf,
        /// What speaks against it.
        why: String,
    },
    /// Larger than any kernel.
    #[error("`{}` has {bytes} bytes; a kernel has at most {KERNEL_BYTES_MAX}", path.display())]
    TooLarge {
        /// What was given.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A package without a kernel.
    #[error("no kernel: the package `{}` has no boot/vmlinuz-*", .0.display())]
    NoneInPackage(PathBuf),
    /// The package cannot be found, fetched or unpacked.
    #[error(transparent)]
    Package(#[from] PackageError),
}

/// Largest kernel.
pub const KERNEL_BYTES_MAX: u64 = 256 << 20;

// The real-mode header of a bzImage: Documentation/arch/x86/boot.rst of the Linux source.
const BOOT_FLAG_AT: usize = 0x1fe;
const MAGIC_AT: usize = 0x202;
const PROTOCOL_AT: usize = 0x206;
const VERSION_POINTER_AT: usize = 0x20e;
const LOADED_HIGH_AT: usize = 0x211;
const XLOADFLAGS_AT: usize = 0x236;
/// What the pointer to the version, which counts from the second sector, can reach.
const SETUP_BYTES: usize = 0x200 + 0xffff + VERSION_BYTES_MAX;
/// Protocol 2.12 brought the flags that tell a 64-bit kernel.
const PROTOCOL_MIN: u16 = 0x020c;
const XLOAD_64_BIT: u8 = 1;
const LOADED_HIGH: u8 = 1;
/// Type of the note that holds the entry point of a PVH kernel.
const NOTE_PHYS32_ENTRY: u32 = 18;
const VERSION_BYTES_MAX: usize = 128;

/// A kernel that was looked at.
#[derive(Debug)]
pub(super) struct Kernel {
    pub path: PathBuf,
    /// As `uname -r` shows it.
    pub version: String,
    pub bytes: u64,
    /// Where its modules may be.
    pub modules: Option<PathBuf>,
    pub notes: Vec<String>,
}

/// Finds the kernel; packages are unpacked in `scratch` and kept in `cache`.
pub(super) fn obtain(source: &KernelSource, scratch: &Path, cache: &Path) -> Result<Kernel, KernelError> {
    match source {
        KernelSource::File { kernel, modules } => {
            let (version, bytes) = inspect(kernel)?;
            let notes = if modules.is_none() {
                vec![format!("no modules were given: kernel {version} must have virtio built in")]
            } else {
                Vec::new()
            };
            Ok(Kernel { path: kernel.clone(), version, bytes, modules: modules.clone(), notes })
        }
        KernelSource::Package(package) => from_package(package, scratch, Vec::new()),
        KernelSource::Debian => {
            let (package, notes) = package::newest_cloud_kernel(cache)?;
            from_package(&package, scratch, notes)
        }
    }
}

fn from_package(package: &Path, scratch: &Path, notes: Vec<String>) -> Result<Kernel, KernelError> {
    let unpacked = scratch.join("package");
    package::unpack(package, &unpacked)?;
    let none = || KernelError::NoneInPackage(package.to_owned());
    let mut kernels: Vec<PathBuf> = fs::read_dir(unpacked.join("boot"))
        .map_err(|_| none())?
        .flatten()
        .filter(|file| file.file_name().to_string_lossy().starts_with("vmlinuz-"))
        .map(|file| file.path())
        .collect();
    kernels.sort();
    let path = kernels.pop().ok_or_else(none)?;
    let (version, bytes) = inspect(&path)?;
    // Newer packages have everything below usr.
    let modules = ["usr/lib/modules", "lib/modules"].map(|inside| unpacked.join(inside));
    let modules = modules.into_iter().find(|directory| directory.is_dir());
    Ok(Kernel { path, version, bytes, modules, notes })
}

/// Version and length of a kernel file, or what it is instead.
fn inspect(path: &Path) -> Result<(String, u64), KernelError> {
    let unreadable = |source| KernelError::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let not = |why: &str| KernelError::NotAKernel { path: path.to_owned(), why: why.to_owned() };
    if !metadata.is_file() {
        return Err(not("it is not a file"));
    }
    let bytes = metadata.len();
    if bytes > KERNEL_BYTES_MAX {
        return Err(KernelError::TooLarge { path: path.to_owned(), bytes });
    }
    let start = file.read_range(0, SETUP_BYTES).map_err(unreadable)?;
    let version = if start.starts_with(b"\x7fELF") {
        let content = fs::read(path).map_err(unreadable)?;
        vmlinux_version(&content).map_err(|why| not(&why))?
    } else {
        bzimage_version(&start).map_err(not)?
    };
    Ok((version, bytes))
}

fn bzimage_version(start: &[u8]) -> Result<String, &'static str> {
    let byte = |at: usize| start.get(at).copied();
    let pair = |at: usize| Some(u16::from_le_bytes([byte(at)?, byte(at + 1)?]));
    if start.get(MAGIC_AT..MAGIC_AT + 4) != Some(b"HdrS") || pair(BOOT_FLAG_AT) != Some(0xaa55) {
        return Err("it has neither the header of a bzImage nor that of an ELF file");
    }
    if pair(PROTOCOL_AT).is_none_or(|protocol| protocol < PROTOCOL_MIN) {
        return Err("its boot protocol is older than 2.12 (Linux 3.8)");
    }
    if byte(LOADED_HIGH_AT).is_none_or(|flags| flags & LOADED_HIGH == 0) {
        return Err("it is a zImage");
    }
    if byte(XLOADFLAGS_AT).is_none_or(|flags| flags & XLOAD_64_BIT == 0) {
        return Err("it is a 32-bit kernel");
    }
    let pointer = pair(VERSION_POINTER_AT).filter(|pointer| *pointer != 0).ok_or("it has no version")?;
    version_word(start.get(usize::from(pointer) + 0x200..).unwrap_or_default()).ok_or("it has no version")
}

fn vmlinux_version(content: &[u8]) -> Result<String, String> {
    let elf = Elf::parse(content).map_err(|fault: ElfFault| fault.to_string())?;
    if !elf.has_note(b"Xen", NOTE_PHYS32_ENTRY).map_err(|fault| fault.to_string())? {
        return Err("it is an ELF file without a PVH entry point".to_owned());
    }
    let marker = b"Linux version ";
    content
        .windows(marker.len())
        .enumerate()
        .filter(|(_, window)| window == marker)
        .find_map(|(at, _)| version_word(content.get(at + marker.len()..)?))
        .ok_or_else(|| "it has no version".to_owned())
}

/// The first word, when it looks like a version.
fn version_word(text: &[u8]) -> Option<String> {
    let end = text.iter().take(VERSION_BYTES_MAX).position(|byte| *byte == b' ' || *byte == 0)?;
    let word = std::str::from_utf8(text.get(..end)?).ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(&byte);
    (word.starts_with(|first: char| first.is_ascii_digit()) && word.bytes().all(plain))
        .then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(version: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x600];
        image[BOOT_FLAG_AT..BOOT_FLAG_AT + 2].copy_from_slice(&[0x55, 0xaa]);
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL_AT..PROTOCOL_AT + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[LOADED_HIGH_AT] = LOADED_HIGH;
        image[XLOADFLAGS_AT] = XLOAD_64_BIT;
        image[VERSION_POINTER_AT..VERSION_POINTER_AT + 2].copy_from_slice(&0x200_u16.to_le_bytes());
        image[0x400..0x400 + version.len()].copy_from_slice(version);
        image
    }

    #[test]
    fn the_version_of_a_bzimage_is_its_first_word() {
        assert_eq!(
            bzimage_version(&bzimage(b"6.1.0-56-cloud-amd64 (debian)\0")).unwrap(),
            "6.1.0-56-cloud-amd64"
        );
    }

    #[test]
    fn what_is_no_kernel_for_this_machine_is_told_why() {
        let refused = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut image = bzimage(b"6.1 x\0");
            change(&mut image);
            bzimage_version(&image).unwrap_err()
        };
        assert_eq!(refused(&|image| image[XLOADFLAGS_AT] = 0), "it is a 32-bit kernel");
        assert_eq!(refused(&|image| image[LOADED_HIGH_AT] = 0), "it is a zImage");
        assert_eq!(
            refused(&|image| image[PROTOCOL_AT + 1] = 1),
            "its boot protocol is older than 2.12 (Linux 3.8)"
        );
        assert_eq!(refused(&|image| image[0x400] = b'x'), "it has no version");
        assert_eq!(refused(&|image| image.truncate(0x300)), "it has no version");
        assert!(refused(&|image| image.truncate(0x204)).starts_with("it has neither"));
        assert!(vmlinux_version(b"\x7fELF").unwrap_err().contains("machine"));
    }
}
