//! The kernel modules that a guest needs before its root runs: the virtio drivers and what they depend on.
//!
//! Dependencies are read from the modules themselves (`.modinfo`): the list that depmod writes is not part of a
//! kernel package.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::elf::{Elf, ElfFault};

/// The drivers that the boot stage may load; those of devices that a guest has not stay unloaded.
pub(super) const DRIVERS: [&str; 7] = [
    "virtio_mmio",
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
];

/// What a guest with a disk needs to read it: a file system, and what that asks the kernel for by another name.
const DISK_DRIVERS: [&str; 2] = ["crc32c_generic", "ext4"];

/// Without one of these no device can be reached at all.
const BUSES: [&str; 2] = ["virtio_mmio", "virtio_pci"];
/// Largest module, unpacked.
const MODULE_BYTES_MAX: u64 = 64 << 20;
/// Longest chain of modules that need each other.
const DEPTH_MAX: usize = 32;
/// Most files that are looked at below the modules' directory.
const FILES_MAX: usize = 50_000;

/// Why the modules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// No such directory, or none of this version in it.
    #[error("`{}` has no modules of kernel {version} (no `kernel` directory in it, in {version} or in lib/modules/{version})", path.display())]
    None {
        /// What was given.
        path: PathBuf,
        /// Version of the kernel.
        version: String,
    },
    /// A module is of another kernel.
    #[error("`{}` is a module of kernel {found}, but the kernel is {version}; give the modules of the same build", path.display())]
    OtherKernel {
        /// The module.
        path: PathBuf,
        /// Its version.
        found: String,
        /// Version of the kernel.
        version: String,
    },
    /// A module needs another that is missing.
    #[error("the module {module} needs {missing}, which `{}` has not", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// The module.
        module: String,
        /// What it needs.
        missing: String,
    },
    /// Not a module, or damaged.
    #[error("`{}` is not a kernel module: {why}", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Reading or unpacking failed.
    #[error("`{}` cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The modules of an image.
#[derive(Debug, Default)]
pub(super) struct Modules {
    /// Unpacked modules by name (with `_`).
    pub files: BTreeMap<String, Vec<u8>>,
    /// For each driver what is to be loaded, in order; empty when it is built in.
    pub orders: BTreeMap<&'static str, Vec<String>>,
    /// What is missing.
    pub notes: Vec<String>,
}

/// Gathers the drivers for a kernel, and for what is on a disk if there is one, from the directory of its modules. `busybox` unpacks xz.
pub(super) fn gather(
    given: &Path,
    version: &str,
    busybox: &Path,
    has_disk: bool,
) -> Result<Modules, ModulesError> {
    let inside = [given.to_owned(), given.join(version), given.join("lib/modules").join(version)];
    let directory = inside
        .into_iter()
        .find(|directory| directory.join("kernel").is_dir())
        .ok_or_else(|| ModulesError::None { path: given.to_owned(), version: version.to_owned() })?;
    let mut index = Index {
        files: BTreeMap::new(),
        built_in: built_in(&directory)?,
        directory,
        version,
        busybox,
        modules: Modules::default(),
    };
    index.scan()?;
    let for_disk = DISK_DRIVERS.into_iter().filter(|_| has_disk);
    for driver in DRIVERS.into_iter().chain(for_disk) {
        if !index.built_in.contains(driver) && !index.files.contains_key(driver) {
            index.modules.notes.push(format!("kernel {version} has no {driver}"));
            continue;
        }
        let mut order = Vec::new();
        index.add(driver, &mut order, 0)?;
        index.modules.orders.insert(driver, order);
    }
    if !BUSES.iter().any(|bus| index.modules.orders.contains_key(bus)) {
        return Err(ModulesError::Missing {
            path: index.directory,
            module: "every device of a guest".to_owned(),
            missing: "virtio_mmio or virtio_pci".to_owned(),
        });
    }
    Ok(index.modules)
}

struct Index<'a> {
    directory: PathBuf,
    version: &'a str,
    busybox: &'a Path,
    /// Every module's file, by name.
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    modules: Modules,
}

impl Index<'_> {
    fn scan(&mut self) -> Result<(), ModulesError> {
        let mut directories = vec![self.directory.join("kernel")];
        let mut files = 0;
        while let Some(directory) = directories.pop() {
            let at = |source| ModulesError::Io { path: directory.clone(), source };
            for item in fs::read_dir(&directory).map_err(at)? {
                let item = item.map_err(at)?;
                files += 1;
                if files > FILES_MAX {
                    return Err(at(io::Error::other(format!("more than {FILES_MAX} files"))));
                }
                if item.file_type().map_err(at)?.is_dir() {
                    directories.push(item.path());
                } else if let Some(name) = module_name(&item.file_name().to_string_lossy()) {
                    self.files.insert(name, item.path());
                }
            }
        }
        Ok(())
    }

    /// Appends a module after what it needs.
    fn add(&mut self, name: &str, order: &mut Vec<String>, depth: usize) -> Result<(), ModulesError> {
        if self.built_in.contains(name) || order.iter().any(|earlier| earlier == name) {
            return Ok(());
        }
        let path = self.files.get(name).cloned().unwrap_or_default();
        if depth > DEPTH_MAX {
            return Err(ModulesError::NotAModule { path, why: "its dependencies go in a circle".to_owned() });
        }
        let content = match self.modules.files.get(name) {
            Some(content) => content.clone(),
            None => read_module(&path, self.busybox)?,
        };
        let information = information(&content)
            .map_err(|fault| ModulesError::NotAModule { path: path.clone(), why: fault.to_string() })?;
        let built_for =
            information.get("vermagic").and_then(|magic| magic.split(' ').next()).unwrap_or_default();
        if built_for != self.version {
            let (found, version) = (built_for.to_owned(), self.version.to_owned());
            return Err(ModulesError::OtherKernel { path, found, version });
        }
        self.modules.files.insert(name.to_owned(), content);
        let needs = information.get("depends").map(String::as_str).unwrap_or_default();
        for needed in needs.split(',').filter(|needed| !needed.is_empty()) {
            let needed = needed.replace('-', "_");
            if !self.built_in.contains(&needed) && !self.files.contains_key(&needed) {
                let (path, module) = (self.directory.clone(), name.to_owned());
                return Err(ModulesError::Missing { path, module, missing: needed });
            }
            self.add(&needed, order, depth + 1)?;
        }
        order.push(name.to_owned());
        Ok(())
    }
}

/// The names in `modules.builtin`.
fn built_in(directory: &Path) -> Result<BTreeSet<String>, ModulesError> {
    let path = directory.join("modules.builtin");
    match fs::read_to_string(&path) {
        Ok(list) => Ok(list.lines().filter_map(|line| module_name(line.rsplit('/').next()?)).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(source) => Err(ModulesError::Io { path, source }),
    }
}

/// `virtio-rng.ko.xz` is `virtio_rng`.
fn module_name(file: &str) -> Option<String> {
    let plain = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|end| file.strip_suffix(end))?;
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    plain.bytes().all(known).then(|| plain.replace('-', "_"))
}

/// A module's bytes, unpacked.
fn read_module(path: &Path, busybox: &Path) -> Result<Vec<u8>, ModulesError> {
    let at = |source| ModulesError::Io { path: path.to_owned(), source };
    let compressed = fs::read(path).map_err(at)?;
    let end = path.extension().unwrap_or_default();
    let reader: Box<dyn Read + '_> = if end == "xz" {
        return unpack_xz(path, busybox).map_err(at);
    } else if end == "zst" {
        Box::new(zstd::stream::read::Decoder::with_buffer(compressed.as_slice()).map_err(at)?)
    } else if end == "gz" {
        Box::new(flate2::read::GzDecoder::new(compressed.as_slice()))
    } else {
        Box::new(compressed.as_slice())
    };
    limited(reader).map_err(at)
}

/// Debian's newer kernels compress their modules with xz, which the boot stage's busybox can undo on the host too.
fn unpack_xz(path: &Path, busybox: &Path) -> io::Result<Vec<u8>> {
    let file = fs::File::open(path)?;
    let mut child = Command::new(busybox)
        .args(["xz", "-dc"])
        .stdin(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let unpacked = match child.stdout.take() {
        Some(pipe) => limited(pipe),
        None => Err(io::Error::other("no pipe")),
    };
    // The pipe is closed by now, so that the program ends whatever happened.
    let status = child.wait()?;
    let unpacked = unpacked?;
    if status.success() { Ok(unpacked) } else { Err(io::Error::other("xz cannot unpack it")) }
}

fn limited(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MODULE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MODULE_BYTES_MAX {
        return Err(io::Error::other(format!("a module of more than {MODULE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// The `key=value` pairs of a module.
fn information(module: &[u8]) -> Result<BTreeMap<String, String>, ElfFault> {
    let section = Elf::parse(module)?.section(b".modinfo")?.unwrap_or_default();
    let pairs = section.split(|byte| *byte == 0).filter_map(|pair| {
        let (key, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    });
    Ok(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_known_by_its_file_name() {
        assert_eq!(module_name("virtio-rng.ko.xz").unwrap(), "virtio_rng");
        assert_eq!(module_name("virtio_net.ko").unwrap(), "virtio_net");
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(module_name("$(x).ko"), None);
    }

    #[test]
    fn a_directory_without_modules_of_the_kernel_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let none = gather(directory.path(), "6.1", Path::new("/bin/busybox"), false).unwrap_err().to_string();
        assert!(none.contains("has no modules of kernel 6.1"), "{none}");
        fs::create_dir_all(directory.path().join("6.1/kernel")).unwrap();
        let no_bus =
            gather(directory.path(), "6.1", Path::new("/bin/busybox"), false).unwrap_err().to_string();
        assert!(no_bus.contains("every device of a guest needs virtio_mmio or virtio_pci"), "{no_bus}");
        fs::write(directory.path().join("6.1/kernel/virtio_mmio.ko"), "text").unwrap();
        let text = gather(directory.path(), "6.1", Path::new("/bin/busybox"), false).unwrap_err().to_string();
        assert!(text.contains("virtio_mmio.ko` is not a kernel module: it is no ELF file"), "{text}");
        fs::write(directory.path().join("6.1/modules.builtin"), "kernel/drivers/virtio/virtio_mmio.ko\n")
            .unwrap();
        let built_in = gather(directory.path(), "6.1", Path::new("/bin/busybox"), false).unwrap();
        assert_eq!(built_in.orders["virtio_mmio"], Vec::<String>::new());
        assert!(built_in.files.is_empty());
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        // `printf 'a module' | xz --check=crc32`, as kernels are built with.
        const XZ: [u8; 60] = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01,
            0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x07, 0x61, 0x20, 0x6d, 0x6f, 0x64,
            0x75, 0x6c, 0x65, 0x00, 0x5b, 0xc1, 0x38, 0x0b, 0x00, 0x01, 0x1c, 0x08, 0x44, 0x60, 0x2a, 0xc8,
            0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
        ];
        let directory = tempfile::tempdir().unwrap();
        let unpacked = |name: &str, content: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            read_module(&path, Path::new("/bin/busybox"))
        };
        assert_eq!(unpacked("a.ko", b"a module").unwrap(), b"a module");
        assert_eq!(unpacked("a.ko.xz", &XZ).unwrap(), b"a module");
        assert_eq!(
            unpacked("a.ko.zst", &zstd::encode_all(b"a module".as_slice(), 1).unwrap()).unwrap(),
            b"a module"
        );
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gz, b"a module").unwrap();
        assert_eq!(unpacked("a.ko.gz", &gz.finish().unwrap()).unwrap(), b"a module");
        let damaged = unpacked("b.ko.xz", &XZ[..40]).unwrap_err().to_string();
        assert!(damaged.ends_with("b.ko.xz` cannot be read: xz cannot unpack it"), "{damaged}");
    }
}
