//! The images of a host, under their content addresses.
//!
//! ```text
//! images/<digest>/{kernel,initrd,image.json}   never changed once there
//! images/<digest>/disk                         its disk, if it has one; the same file in all images that have the same
//! images/names/<name>                          the digest that the name stands for
//! images/cache/                                downloaded packages
//! images/lock                                  held while something appears or goes
//! images/.build-*, images/.gone-*              work that is not done, or a process died over
//! ```
//!
//! An image appears by one rename of a directory whose files are on the disk, and goes by one rename before its files
//! are deleted, so that whoever reads sees all of it or nothing. Whoever builds keeps its directory locked: what is
//! not locked has been left by a process that is dead, and is swept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use reveille_core::model::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use tempfile::TempDir;

use super::fault::{NameError, RemoveError, ResolveError, StoreError};
use super::manifest::{self, ImageFault, Manifest, is_digest, is_hex};
use crate::driver::Disk;

/// Longest name of an image.
pub const NAME_BYTES_MAX: usize = 64;
/// Fewest digits by which an image can be meant.
pub const PREFIX_MIN: usize = 6;
/// Most images, and most names, that a store may hold.
pub const IMAGES_MAX: usize = 10_000;

const BUILD_PREFIX: &str = ".build-";
const GONE_PREFIX: &str = ".gone-";

/// An image that is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Content address: 64 hexadecimal digits.
    pub digest: String,
    /// Names that stand for it, in order.
    pub names: Vec<String>,
    /// Path of the kernel.
    pub kernel: PathBuf,
    /// Path of the initial RAM file system.
    pub initrd: PathBuf,
    /// Its disk, which instances write over in layers of their own.
    pub disk: Option<Disk>,
    /// As `uname -r` shows it.
    pub kernel_version: String,
    /// The program that becomes PID 1 after the boot stage.
    pub init: String,
    /// Least memory in MiB with which it can be unpacked and booted.
    pub memory_mib_min: u32,
    /// Entries of the initial RAM file system.
    pub entries: u64,
    /// When it was first built here.
    pub built_at: Timestamp,
    /// Bytes on the disk.
    pub bytes: u64,
    /// What was left out when it was built, and the like.
    pub notes: Vec<String>,
}

/// Everything in a store.
#[derive(Debug, Default, Serialize)]
pub struct Listing {
    /// In the order of their digests.
    pub images: Vec<Image>,
    /// What cannot be used, with the reason.
    pub damaged: Vec<Damaged>,
}

/// Something in a store that cannot be used.
#[derive(Debug, Serialize)]
pub struct Damaged {
    /// Digest of the image, or the name that stands for none.
    pub what: String,
    /// What is wrong with it.
    pub fault: String,
}

/// Somebody who needs an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Name or digest by which it is meant.
    pub image: String,
    /// Who, for instance `service hello.vm.test`.
    pub user: String,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The image that was meant.
    pub digest: String,
    /// Names that stand for nothing now.
    pub names: Vec<String>,
    /// Whether the image itself is gone, as its last name is.
    pub image: bool,
}

/// The images of a host. Several processes may have the same store open.
#[derive(Debug, Clone)]
pub struct ImageStore {
    directory: PathBuf,
}

impl ImageStore {
    /// Opens the store in a directory, making it if need be, and sweeps what dead processes left.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let store = Self { directory: directory.into() };
        for path in [store.directory.clone(), store.names_directory(), store.cache_directory()] {
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// Everything that is there.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let names = self.names()?;
        let digests = self.digests()?;
        let mut listing = Listing::default();
        for digest in &digests {
            match self.load(digest, &names) {
                Ok(image) => listing.images.push(image),
                Err(fault) => {
                    listing.damaged.push(Damaged { what: digest.clone(), fault: fault.to_string() });
                }
            }
        }
        for (name, digest) in names {
            if !digests.contains(&digest) {
                let fault = format!("the name stands for image {digest}, which is not there");
                listing.damaged.push(Damaged { what: name, fault });
            }
        }
        Ok(listing)
    }

    /// The image that a name, a digest or the unique beginning of a digest means. Names come first.
    pub fn resolve(&self, reference: &str) -> Result<Image, ResolveError> {
        let names = self.names()?;
        let digest = self.digest_of(reference, &names)?;
        self.load(&digest, &names)
            .map_err(|fault| ResolveError::Damaged { reference: reference.to_owned(), fault })
    }

    /// Recomputes the hashes of an image's files.
    pub fn verify(&self, reference: &str) -> Result<Image, ResolveError> {
        let names = self.names()?;
        let digest = self.digest_of(reference, &names)?;
        let damaged = |fault| ResolveError::Damaged { reference: reference.to_owned(), fault };
        self.check(&digest).map_err(damaged)?;
        self.load(&digest, &names).map_err(damaged)
    }

    /// Gives an image a name; a name that stood for another is moved.
    pub fn set_name(&self, name: &str, digest: &str) -> Result<(), StoreError> {
        let _held = self.lock()?;
        self.write_name(name, digest)
    }

    /// Removes a name, and the image with its last name; or an image by its digest. Refused while one of `uses`
    /// means the name, or what would go with it.
    pub fn remove(&self, reference: &str, uses: &[Use]) -> Result<Removed, RemoveError> {
        let _held = self.lock()?;
        let names = self.names()?;
        let digest = self.digest_of(reference, &names)?;
        let of_image: Vec<String> =
            names.iter().filter(|(_, of)| **of == digest).map(|(name, _)| name.clone()).collect();
        let by_name = names.contains_key(reference);
        if !by_name && of_image.len() > 1 {
            return Err(RemoveError::HasNames { digest, names: of_image });
        }
        let image = of_image.len() <= 1;
        let needs = |used: &Use| {
            let means = || self.digest_of(&used.image, &names).ok();
            (by_name && used.image == reference) || (image && means().as_ref() == Some(&digest))
        };
        let users: Vec<String> =
            uses.iter().filter(|used| needs(used)).map(|used| used.user.clone()).collect();
        if !users.is_empty() {
            return Err(RemoveError::InUse { reference: reference.to_owned(), users });
        }
        let gone_names = if by_name { vec![reference.to_owned()] } else { of_image };
        for name in &gone_names {
            let path = self.names_directory().join(name);
            fs::remove_file(&path).map_err(at(&path))?;
        }
        sync_directory(&self.names_directory())?;
        if image {
            self.discard(&digest)?;
        }
        Ok(Removed { digest, names: gone_names, image })
    }

    /// Deletes what dead processes left; how much there was.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        let _held = self.lock()?;
        let mut swept = 0;
        for path in entries(&self.directory)? {
            let name = file_name(&path);
            if !name.starts_with(BUILD_PREFIX) && !name.starts_with(GONE_PREFIX) {
                continue;
            }
            let Ok(directory) = File::open(&path) else { continue };
            if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_dir_all(&path).map_err(at(&path))?;
                swept += 1;
            }
        }
        // Names are only written under the lock that is held now.
        for path in entries(&self.names_directory())? {
            if file_name(&path).starts_with('.') {
                fs::remove_file(&path).map_err(at(&path))?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Where downloaded packages are kept.
    pub(super) fn cache_directory(&self) -> PathBuf {
        self.directory.join("cache")
    }

    /// A new directory of this process, on the same disk as the images.
    pub(super) fn workplace(&self) -> Result<Workplace, StoreError> {
        let _held = self.lock()?;
        let directory = tempfile::Builder::new()
            .prefix(BUILD_PREFIX)
            .tempdir_in(&self.directory)
            .map_err(at(&self.directory))?;
        let locked = File::open(directory.path()).map_err(at(directory.path()))?;
        flock(&locked, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| StoreError { path: directory.path().to_owned(), source: error.into() })?;
        Ok(Workplace { directory, _locked: locked })
    }

    /// Makes a directory with the three files of an image appear as an image, with a name if one is given. An image
    /// that is already there and sound stays as it is.
    pub(super) fn publish(
        &self,
        finished: &Path,
        manifest: &Manifest,
        name: Option<&str>,
    ) -> Result<Image, StoreError> {
        let digest = manifest.content.digest().map_err(at(finished))?;
        let path = finished.join("image.json");
        let mut file = File::create(&path).map_err(at(&path))?;
        let text = serde_json::to_vec_pretty(manifest).map_err(|error| at(&path)(io::Error::other(error)))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(at(&path))?;
        sync_directory(finished)?;

        let _held = self.lock()?;
        let target = self.directory.join(&digest);
        if self.check(&digest).is_err() {
            if target.exists() {
                self.discard(&digest)?;
            }
            fs::rename(finished, &target).map_err(at(&target))?;
            sync_directory(&self.directory)?;
        }
        if let Some(name) = name {
            self.write_name(name, &digest)?;
        }
        self.load(&digest, &self.names()?).map_err(|fault| at(&target)(io::Error::other(fault)))
    }

    fn names_directory(&self) -> PathBuf {
        self.directory.join("names")
    }

    fn lock(&self) -> Result<File, StoreError> {
        let path = self.directory.join("lock");
        let file = File::options().create(true).append(true).open(&path).map_err(at(&path))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| at(&path)(error.into()))?;
        Ok(file)
    }

    fn digests(&self) -> Result<Vec<String>, StoreError> {
        let mut digests: Vec<String> = entries(&self.directory)?
            .iter()
            .map(|path| file_name(path))
            .filter(|name| is_digest(name))
            .collect();
        digests.sort();
        Ok(digests)
    }

    fn names(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let mut names = BTreeMap::new();
        for path in entries(&self.names_directory())? {
            let name = file_name(&path);
            if check_name(&name).is_err() {
                continue;
            }
            let mut digest = String::new();
            match File::open(&path) {
                Ok(file) => file.take(80).read_to_string(&mut digest).map_err(at(&path))?,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at(&path)(error)),
            };
            names.insert(name, digest.trim_end().to_owned());
        }
        Ok(names)
    }

    fn digest_of(&self, reference: &str, names: &BTreeMap<String, String>) -> Result<String, ResolveError> {
        if let Some(digest) = names.get(reference) {
            return Ok(digest.clone());
        }
        let digests = self.digests()?;
        let long_enough = reference.len() >= PREFIX_MIN && is_hex(reference);
        let mut meant: Vec<String> =
            digests.iter().filter(|digest| long_enough && digest.starts_with(reference)).cloned().collect();
        match (meant.pop(), meant.is_empty()) {
            (Some(digest), true) => Ok(digest),
            (Some(digest), false) => {
                meant.push(digest);
                Err(ResolveError::Ambiguous { reference: reference.to_owned(), digests: meant })
            }
            (None, _) => {
                let unnamed = digests.into_iter().filter(|digest| !names.values().any(|of| of == digest));
                let available = names.keys().cloned().chain(unnamed).collect();
                Err(ResolveError::Unknown { reference: reference.to_owned(), available })
            }
        }
    }

    fn load(&self, digest: &str, names: &BTreeMap<String, String>) -> Result<Image, ImageFault> {
        let directory = self.directory.join(digest);
        let manifest = manifest::read(&directory, digest)?;
        let (kernel, initrd) = (directory.join("kernel"), directory.join("initrd"));
        for (path, file, mark) in
            [(&kernel, "kernel", &manifest.content.kernel), (&initrd, "initrd", &manifest.content.initrd)]
        {
            let metadata = fs::metadata(path).map_err(|source| ImageFault::Unreadable { file, source })?;
            if metadata.len() != mark.bytes {
                return Err(ImageFault::Changed { file });
            }
        }
        let content = manifest.content;
        let disk = content.disk.as_ref().map(|mark| Disk {
            base: directory.join("disk"),
            format: mark.format,
            bytes: mark.guest_bytes,
            address: mark.file.blake3.clone(),
        });
        let disk_bytes = content.disk.as_ref().map_or(0, |mark| mark.file.bytes);
        if let Some(disk) = &disk {
            let unreadable = |source| ImageFault::Unreadable { file: "disk", source };
            if fs::metadata(&disk.base).map_err(unreadable)?.len() != disk_bytes {
                return Err(ImageFault::Changed { file: "disk" });
            }
        }
        Ok(Image {
            digest: digest.to_owned(),
            names: names.iter().filter(|(_, of)| *of == digest).map(|(name, _)| name.clone()).collect(),
            kernel,
            initrd,
            disk,
            kernel_version: content.kernel_version,
            init: content.init,
            memory_mib_min: content.memory_mib_min,
            entries: content.entries,
            built_at: manifest.built_at,
            bytes: content.kernel.bytes.saturating_add(content.initrd.bytes).saturating_add(disk_bytes),
            notes: manifest.notes,
        })
    }

    fn check(&self, digest: &str) -> Result<(), ImageFault> {
        let directory = self.directory.join(digest);
        let content = manifest::read(&directory, digest)?.content;
        manifest::check_file(&directory.join("kernel"), "kernel", &content.kernel)?;
        manifest::check_file(&directory.join("initrd"), "initrd", &content.initrd)?;
        content.disk.map_or(Ok(()), |disk| manifest::check_file(&directory.join("disk"), "disk", &disk.file))
    }

    /// The disk with that content address, if an image has it.
    pub(super) fn disk(&self, address: &str) -> Option<PathBuf> {
        let digests = self.digests().ok()?;
        digests.iter().find_map(|digest| {
            let directory = self.directory.join(digest);
            let disk = manifest::read(&directory, digest).ok()?.content.disk?;
            (disk.file.blake3 == address).then(|| directory.join("disk"))
        })
    }

    fn write_name(&self, name: &str, digest: &str) -> Result<(), StoreError> {
        let names = self.names_directory();
        let path = names.join(name);
        let mut file = tempfile::Builder::new().prefix(".").tempfile_in(&names).map_err(at(&path))?;
        writeln!(file, "{digest}").and_then(|()| file.as_file().sync_all()).map_err(at(&path))?;
        file.persist(&path).map_err(|error| at(&path)(error.error))?;
        sync_directory(&names)
    }

    /// Takes an image out of sight at once, then deletes it.
    fn discard(&self, digest: &str) -> Result<(), StoreError> {
        let path = self.directory.join(digest);
        let gone = self.directory.join(format!("{GONE_PREFIX}{digest}"));
        if gone.exists() {
            fs::remove_dir_all(&gone).map_err(at(&gone))?;
        }
        fs::rename(&path, &gone).map_err(at(&path))?;
        sync_directory(&self.directory)?;
        fs::remove_dir_all(&gone).map_err(at(&gone))
    }
}

/// A directory in which an image is being made. It goes when this does.
#[derive(Debug)]
pub(super) struct Workplace {
    directory: TempDir,
    /// Tells other processes that this one lives.
    _locked: File,
}

impl Workplace {
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Whether a text can be the name of an image.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let starts = name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit());
    let possible = starts && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain) && !is_digest(name);
    if possible { Ok(()) } else { Err(NameError(name.to_owned())) }
}

fn at(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError { path: path.to_owned(), source }
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(at(path))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut paths = Vec::new();
    for item in fs::read_dir(directory).map_err(at(directory))? {
        if paths.len() == IMAGES_MAX {
            return Err(at(directory)(io::Error::other(format!("it has more than {IMAGES_MAX} entries"))));
        }
        paths.push(item.map_err(at(directory))?.path());
    }
    Ok(paths)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
