//! Where a root comes from: a directory of this host or a tar archive.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::oci;
use super::space::{self, NoSpace};
use super::tree::{
    Content, ENTRIES_MAX, Entry, EntryFault, Node, ROOT_BYTES_MAX, Tree, TreeError, clean_path, fault, lossy,
};

/// Where the root comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// A directory. What belongs to the user that builds becomes root's; other owners are kept. Other file systems
    /// that are mounted in it are left out.
    Directory(PathBuf),
    /// A tar archive: plain, or compressed with gzip or zstd.
    Tar(PathBuf),
    /// A container image: an OCI archive, or what `docker save` writes. What it wants run becomes PID 1.
    Oci(PathBuf),
    /// A file system on the image's disk, which the boot stage goes over to.
    OnDisk {
        /// How the guest calls it: `/dev/vda`, `/dev/vda1`, …
        device: String,
    },
}

/// Why a root cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing there, or not readable.
    #[error("the root `{}` cannot be read: {source}", path.display())]
    Unreadable {
        /// What was given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a directory.
    #[error("`{}` is not a directory; a tar archive is given as such", .0.display())]
    NotADirectory(PathBuf),
    /// A compression that is not supported.
    #[error("`{}` is compressed with {compression}; unpack it, or give a plain, gzip or zstd archive", path.display())]
    Compression {
        /// The archive.
        path: PathBuf,
        /// Its compression.
        compression: &'static str,
    },
    /// Not the name of a disk.
    #[error("`{0}` is no disk of the guest's; write /dev/vda, or /dev/vda1 for its first partition")]
    Device(String),
    /// Not an archive, or a damaged one.
    #[error("`{}` is no tar archive, or a damaged one: {source}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// An entry or the whole is refused.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The disk is too full to unpack a compressed archive.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
}

/// Longest header that an archive may put before an entry (long names, extended attributes).
const TAR_HEADER_BYTES_MAX: u64 = 1 << 20;
/// Largest archive: the root's limit and room for headers.
const TAR_BYTES_MAX: u64 = ROOT_BYTES_MAX + ((ENTRIES_MAX as u64) << 10);
/// How often the free disk is looked at while an archive is unpacked.
const SPACE_CHECK_BYTES: u64 = 16 << 20;

/// A root that was read, with notes on what was left out.
pub(super) struct Loaded {
    pub tree: Tree,
    pub notes: Vec<String>,
    /// A script that the source wants run.
    pub program: Option<String>,
}

/// Told entries and bytes so far.
pub(super) type OnRead<'a> = &'a mut dyn FnMut(u64, u64);

/// Reads a root. A compressed archive is unpacked to a file in `scratch`, which must outlive the tree.
pub(super) fn load(source: &RootSource, scratch: &Path, on_read: OnRead<'_>) -> Result<Loaded, SourceError> {
    match source {
        RootSource::Directory(path) => load_directory(path, on_read),
        RootSource::Tar(path) => load_tar(path, scratch, on_read),
        RootSource::Oci(path) => oci::load(path, scratch, on_read),
        RootSource::OnDisk { device } if is_device(device) => {
            Ok(Loaded { tree: Tree::default(), notes: Vec::new(), program: None })
        }
        RootSource::OnDisk { device } => Err(SourceError::Device(device.clone())),
    }
}

/// Whether it can be the name of a disk, or a partition of one.
fn is_device(name: &str) -> bool {
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    name.strip_prefix("/dev/").is_some_and(plain)
}

fn load_directory(given: &Path, on_read: OnRead<'_>) -> Result<Loaded, SourceError> {
    let unreadable = |source| SourceError::Unreadable { path: given.to_owned(), source };
    let top = fs::canonicalize(given).map_err(unreadable)?;
    let metadata = fs::metadata(&top).map_err(unreadable)?;
    if !metadata.is_dir() {
        return Err(SourceError::NotADirectory(given.to_owned()));
    }
    let mut walk = Walk {
        builder: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        device: metadata.dev(),
        tree: Tree::default(),
        linked: HashMap::new(),
        sockets: 0,
        mounts: 0,
        attributes: 0,
    };
    let mut directories = vec![(top, Vec::new())];
    let (mut entries, mut bytes) = (0, 0);
    while let Some((directory, inside)) = directories.pop() {
        let listing = fs::read_dir(&directory).map_err(|error| fault(&inside, error.into()))?;
        for item in listing {
            let item = item.map_err(|error| fault(&inside, error.into()))?;
            let mut path = inside.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(item.file_name().as_bytes());
            let metadata = fs::symlink_metadata(item.path()).map_err(|error| fault(&path, error.into()))?;
            if walk.add(&path, &item.path(), &metadata)? {
                directories.push((item.path(), path));
            }
            entries += 1;
            bytes += metadata.len();
            on_read(entries, bytes);
        }
    }
    Ok(walk.done())
}

/// A directory on its way into a tree.
struct Walk {
    /// Effective user and group, whose files become root's.
    builder: (u32, u32),
    device: u64,
    tree: Tree,
    /// Contents of files with several links, by device and inode.
    linked: HashMap<(u64, u64), usize>,
    sockets: u64,
    mounts: u64,
    attributes: u64,
}

impl Walk {
    /// Adds one entry; whether it is a directory to go into.
    fn add(&mut self, path: &[u8], host: &Path, metadata: &Metadata) -> Result<bool, TreeError> {
        let kind = metadata.file_type();
        let device = metadata.rdev();
        let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
        let mut enter = false;
        let node = if kind.is_dir() {
            enter = metadata.dev() == self.device;
            self.mounts += u64::from(!enter);
            Node::Directory
        } else if kind.is_file() {
            self.file(path, host, metadata)?
        } else if kind.is_symlink() {
            let target = fs::read_link(host).map_err(|error| fault(path, error.into()))?;
            Node::Symlink(target.into_os_string().into_vec())
        } else if kind.is_char_device() {
            Node::Character(numbers.0, numbers.1)
        } else if kind.is_block_device() {
            Node::Block(numbers.0, numbers.1)
        } else if kind.is_fifo() {
            Node::Fifo
        } else {
            // A socket is nothing without the process that made it.
            self.sockets += 1;
            return Ok(false);
        };
        self.attributes += u64::from(has_attributes(host));
        let owner = |id, builder| if id == builder { 0 } else { id };
        let entry = Entry {
            permissions: metadata.mode(),
            uid: owner(metadata.uid(), self.builder.0),
            gid: owner(metadata.gid(), self.builder.1),
            node,
        };
        self.tree.insert(path, entry)?;
        Ok(enter)
    }

    fn file(&mut self, path: &[u8], host: &Path, metadata: &Metadata) -> Result<Node, TreeError> {
        let shared = metadata.nlink() > 1;
        if let Some(content) = self.linked.get(&(metadata.dev(), metadata.ino())).filter(|_| shared) {
            return Ok(Node::File(*content));
        }
        // Readable now is better than a build that fails at the end.
        File::open(host).map_err(|error| fault(path, error.into()))?;
        let content = Content::File { path: host.into(), bytes: metadata.len() };
        let content = self.tree.add_content(path, content)?;
        if shared {
            self.linked.insert((metadata.dev(), metadata.ino()), content);
        }
        Ok(Node::File(content))
    }

    fn done(self) -> Loaded {
        let notes = [
            note(self.sockets, "sockets were left out"),
            note(self.mounts, "mounted file systems were left out; their directories are empty"),
            note(self.attributes, NO_ATTRIBUTES),
        ];
        Loaded { tree: self.tree, notes: notes.into_iter().flatten().collect(), program: None }
    }
}

const NO_ATTRIBUTES: &str = "entries lose their extended attributes (file capabilities among them)";

fn note(count: u64, what: &str) -> Option<String> {
    (count > 0).then(|| format!("{count} {what}"))
}

fn has_attributes(path: &Path) -> bool {
    rustix::fs::llistxattr(path, &mut [0_u8; 0]).is_ok_and(|bytes| bytes > 0)
}

fn load_tar(given: &Path, scratch: &Path, on_read: OnRead<'_>) -> Result<Loaded, SourceError> {
    let plain = plain_tar(given, &scratch.join("root.tar"), on_read)?;
    let damaged = |source| SourceError::Archive { path: given.to_owned(), source };
    let open = || File::open(&plain).map_err(damaged);
    check_headers(open()?).map_err(damaged)?;

    let mut archive = tar::Archive::new(open()?);
    let file: Arc<Path> = plain.as_path().into();
    let mut loaded = Loaded { tree: Tree::default(), notes: Vec::new(), program: None };
    let (mut attributes, mut entries, mut bytes) = (0, 0, 0);
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        attributes += u64::from(carries_attributes(&mut entry).map_err(damaged)?);
        entries += 1;
        bytes += entry.size();
        on_read(entries, bytes);
        let path = clean_path(&entry.path_bytes()).map_err(|found| fault(&entry.path_bytes(), found))?;
        add_from_tar(&mut loaded.tree, &file, &entry, path)?;
    }
    loaded.notes.extend(note(attributes, NO_ATTRIBUTES));
    Ok(loaded)
}

/// The path of the archive without compression: the given one, or `to`, which is written then.
pub(super) fn plain_tar(given: &Path, to: &Path, on_read: OnRead<'_>) -> Result<PathBuf, SourceError> {
    let unreadable = |source| SourceError::Unreadable { path: given.to_owned(), source };
    let mut file = File::open(given).map_err(unreadable)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(6).read_to_end(&mut magic).map_err(unreadable)?;
    let refused = |compression| Err(SourceError::Compression { path: given.to_owned(), compression });
    let damaged = |source| SourceError::Archive { path: given.to_owned(), source };
    let reopened = BufReader::new(File::open(given).map_err(unreadable)?);
    let mut unpacked: Box<dyn Read> = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(reopened)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(reopened).map_err(damaged)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => return refused("xz"),
        [b'B', b'Z', b'h', ..] => return refused("bzip2"),
        [0x04, 0x22, 0x4d, 0x18, ..] => return refused("lz4"),
        _ => return Ok(given.to_owned()),
    };
    let path = to.to_owned();
    let failed = |source| SourceError::Unreadable { path: path.clone(), source };
    let mut out = File::create(&path).map_err(failed)?;
    let mut total = 0;
    loop {
        space::require(to.parent().unwrap_or(to), SPACE_CHECK_BYTES)?;
        let mut part = Vec::new();
        let read = Read::by_ref(&mut unpacked).take(SPACE_CHECK_BYTES).read_to_end(&mut part);
        read.map_err(damaged)?;
        if part.is_empty() {
            return Ok(path);
        }
        out.write_all(&part).map_err(failed)?;
        total += u64::try_from(part.len()).unwrap_or(u64::MAX);
        if total > TAR_BYTES_MAX {
            return Err(TreeError::TooLarge.into());
        }
        on_read(0, total);
    }
}

/// Refuses headers of absurd length before anything reads them into memory, archives that end too early, and files
/// that are no archive at all.
pub(super) fn check_headers(file: File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()?.raw(true) {
        let entry = entry?;
        let kind = entry.header().entry_type();
        let describes = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if describes && entry.size() > TAR_HEADER_BYTES_MAX {
            return Err(io::Error::other(format!("a header has {} bytes", entry.size())));
        }
        if entry.raw_file_position().saturating_add(entry.size()) > length {
            return Err(io::Error::other("it ends too early"));
        }
    }
    Ok(())
}

fn carries_attributes(entry: &mut tar::Entry<'_, File>) -> io::Result<bool> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(false) };
    Ok(extensions.flatten().any(|extension| extension.key_bytes().starts_with(b"SCHILY.xattr.")))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum may grow; what is not known is refused")]
/// Adds an entry of a plain archive at `path`, which is clean.
pub(super) fn add_from_tar(
    tree: &mut Tree,
    file: &Arc<Path>,
    entry: &tar::Entry<'_, File>,
    path: Vec<u8>,
) -> Result<(), TreeError> {
    let named = entry.path_bytes();
    let at_fault = |found: EntryFault| fault(&named, found);
    let header = entry.header();
    let target = || entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
    let device = || -> io::Result<(u32, u32)> {
        Ok((header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0)))
    };
    let node = match header.entry_type() {
        tar::EntryType::Regular | tar::EntryType::Continuous => {
            let content = Content::Range {
                file: Arc::clone(file),
                offset: entry.raw_file_position(),
                bytes: entry.size(),
            };
            Node::File(tree.add_content(&path, content)?)
        }
        tar::EntryType::Link => {
            let target = target();
            let clean = clean_path(&target).ok();
            let earlier =
                clean.and_then(|path| tree.get(&path).or_else(|| tree.get(&tree.follow(&path)?)).cloned());
            match earlier {
                Some(Entry { node: Node::File(content), .. }) => Node::File(content),
                Some(_) | None => return Err(at_fault(EntryFault::HardLinkTarget(lossy(&target)))),
            }
        }
        tar::EntryType::Symlink => Node::Symlink(target()),
        tar::EntryType::Directory => Node::Directory,
        tar::EntryType::Char => {
            device().map(|(major, minor)| Node::Character(major, minor)).map_err(|e| at_fault(e.into()))?
        }
        tar::EntryType::Block => {
            device().map(|(major, minor)| Node::Block(major, minor)).map_err(|e| at_fault(e.into()))?
        }
        tar::EntryType::Fifo => Node::Fifo,
        tar::EntryType::GNUSparse => return Err(at_fault(EntryFault::Kind("a sparse file"))),
        tar::EntryType::XGlobalHeader => return Ok(()),
        _ => {
            return Err(at_fault(EntryFault::Kind("of a kind that tar archives seldom have")));
        }
    };
    if path.is_empty() {
        return Ok(());
    }
    let id = |id: io::Result<u64>| -> Result<u32, TreeError> {
        let id = id.map_err(|error| at_fault(error.into()))?;
        u32::try_from(id).map_err(|_| at_fault(EntryFault::Kind("of an owner with too large a number")))
    };
    let permissions = header.mode().map_err(|error| at_fault(error.into()))?;
    let entry = Entry { permissions, uid: id(header.uid())?, gid: id(header.gid())?, node };
    tree.insert(&path, entry)
}
