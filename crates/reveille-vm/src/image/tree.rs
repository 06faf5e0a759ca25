//! A root as a value: every path with its owner, mode and content, sorted, wherever it came from.
//!
//! A tree holds no links that lead out of it and no path twice, so that the archive that is written from it depends
//! on nothing but what is in it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cpio::FILE_BYTES_MAX;
use super::elf::ReadRange;

/// Most entries (files, directories, links, devices) of a root.
pub const ENTRIES_MAX: usize = 200_000;
/// Most bytes that the files of a root have together.
pub const ROOT_BYTES_MAX: u64 = 2 << 30;
/// Longest path, and longest target of a symbolic link: what Linux takes, less the final NUL.
pub const PATH_BYTES_MAX: usize = 4095;
/// Most symbolic links that a path is followed through, as in Linux.
const LINKS_FOLLOWED_MAX: usize = 40;
/// Why an entry cannot be part of an image.
#[derive(Debug, thiserror::Error)]
pub enum EntryFault {
    /// Absolute path in an archive.
    #[error("it begins with `/`; paths in an archive are relative to the root")]
    Absolute,
    /// `..` in a path.
    #[error("it has `..` in it and could lead out of the root")]
    Traversal,
    /// Longer than [`PATH_BYTES_MAX`].
    #[error("its path or link target has {0} bytes; at most {PATH_BYTES_MAX} are possible")]
    PathTooLong(usize),
    /// A symbolic link without a target.
    #[error("it is a symbolic link to nothing")]
    NoTarget,
    /// A path below something that is not a directory.
    #[error("it lies below `{0}`, which is not a directory")]
    BelowNonDirectory(String),
    /// A file where a directory with content is.
    #[error("it takes the place of a directory")]
    ReplacesDirectory,
    /// Needed by the boot stage.
    #[error("this path is taken by the boot stage; rename it")]
    Reserved,
    /// Longer than the format of the archive can say.
    #[error("it has {0} bytes; at most {FILE_BYTES_MAX} are possible")]
    FileTooLarge(u64),
    /// A hard link to what has not come yet or is no file.
    #[error("it is a hard link to `{0}`, which is not an earlier file of the archive")]
    HardLinkTarget(String),
    /// A kind of entry that is not supported.
    #[error("it is {0}, which cannot be part of an image")]
    Kind(&'static str),
    /// Reading it failed.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Why a root as a whole is refused.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// An entry is at fault.
    #[error("`{path}` in the root: {fault}")]
    Entry {
        /// The entry, as it was named.
        path: String,
        /// What is wrong with it.
        #[source]
        fault: EntryFault,
    },
    /// More than [`ENTRIES_MAX`].
    #[error("the root has more than {ENTRIES_MAX} entries; leave out what the service does not need")]
    TooManyEntries,
    /// More than [`ROOT_BYTES_MAX`].
    #[error("the root has more than {} MiB; leave out what the service does not need", ROOT_BYTES_MAX >> 20)]
    TooLarge,
}

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// A file, all of it.
    File { path: Arc<Path>, bytes: u64 },
    /// A range of a file, for instance of an archive.
    Range { file: Arc<Path>, offset: u64, bytes: u64 },
}

impl Content {
    /// Length.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Self::File { bytes, .. } | Self::Range { bytes, .. } => *bytes,
        }
    }

    /// A reader of the content; that of a file goes on to the file's end, so that growth is noticed.
    pub(super) fn reader(&self) -> io::Result<Box<dyn Read + '_>> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(bytes.as_ref())),
            Self::File { path, .. } => Ok(Box::new(File::open(path)?)),
            Self::Range { file, offset, bytes } => {
                let mut reader = File::open(file)?;
                reader.seek(SeekFrom::Start(*offset))?;
                Ok(Box::new(reader.take(*bytes)))
            }
        }
    }
}

impl ReadRange for Content {
    fn read_range(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Bytes(content) => content.read_range(offset, bytes),
            Self::File { path, .. } => File::open(path)?.read_range(offset, bytes),
            Self::Range { file, offset: start, bytes: length } => {
                let left = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX);
                File::open(file)?.read_range(start.saturating_add(offset), bytes.min(left))
            }
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Directory,
    /// Index of the content in the tree. Entries with the same index are hard links of one file.
    File(usize),
    Symlink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// One path's metadata.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Permissions with set-id and sticky bits.
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    pub node: Node,
}

impl Entry {
    /// An entry of root's.
    pub(super) fn owned_by_root(permissions: u32, node: Node) -> Self {
        Self { permissions, uid: 0, gid: 0, node }
    }

    /// Without what means nothing: the permissions of a symbolic link, which sources report differently.
    fn normalised(mut self) -> Self {
        if matches!(self.node, Node::Symlink(_)) {
            self.permissions = 0o777;
        }
        self
    }
}

/// A root.
#[derive(Debug, Default)]
pub(super) struct Tree {
    entries: BTreeMap<Vec<u8>, Entry>,
    contents: Vec<Content>,
    /// Bytes of all contents ever added, also of those that were replaced.
    bytes_seen: u64,
}

impl Tree {
    /// Keeps a file's content for entries to refer to.
    pub(super) fn add_content(&mut self, path: &[u8], content: Content) -> Result<usize, TreeError> {
        if content.bytes() > FILE_BYTES_MAX {
            return Err(fault(path, EntryFault::FileTooLarge(content.bytes())));
        }
        self.bytes_seen = self.bytes_seen.saturating_add(content.bytes());
        if self.bytes_seen > ROOT_BYTES_MAX {
            return Err(TreeError::TooLarge);
        }
        self.contents.push(content);
        Ok(self.contents.len() - 1)
    }

    /// Adds a file of root's that is held in memory.
    pub(super) fn add_file(&mut self, path: &str, permissions: u32, bytes: &[u8]) -> Result<(), TreeError> {
        let content = self.add_content(path.as_bytes(), Content::Bytes(bytes.into()))?;
        self.insert(path.as_bytes(), Entry::owned_by_root(permissions, Node::File(content)))
    }

    /// Adds or replaces an entry; `path` is clean (see [`clean_path`]). Directories above it that are missing are
    /// made.
    pub(super) fn insert(&mut self, path: &[u8], entry: Entry) -> Result<(), TreeError> {
        check_lengths(path, &entry.node).map_err(|found| fault(path, found))?;
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let above = path.get(..at).unwrap_or_default();
            match self.entries.get(above).map(|entry| &entry.node) {
                Some(Node::Directory) => {}
                Some(
                    Node::File(_) | Node::Symlink(_) | Node::Character(..) | Node::Block(..) | Node::Fifo,
                ) => return Err(fault(path, EntryFault::BelowNonDirectory(lossy(above)))),
                None => {
                    self.entries.insert(above.to_vec(), Entry::owned_by_root(0o755, Node::Directory));
                }
            }
        }
        let replaces_directory = matches!(self.get(path), Some(Entry { node: Node::Directory, .. }));
        if replaces_directory && !matches!(entry.node, Node::Directory) {
            return Err(fault(path, EntryFault::ReplacesDirectory));
        }
        self.entries.insert(path.to_vec(), entry.normalised());
        if self.entries.len() > ENTRIES_MAX {
            return Err(TreeError::TooManyEntries);
        }
        Ok(())
    }

    /// Makes a directory where nothing is.
    pub(super) fn ensure_directory(&mut self, path: &str, permissions: u32) -> Result<(), TreeError> {
        if self.get(path.as_bytes()).is_some() {
            return Ok(());
        }
        self.insert(path.as_bytes(), Entry::owned_by_root(permissions, Node::Directory))
    }

    /// The entry at a path, itself and not what it links to.
    pub(super) fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Takes an entry that is no directory out of the tree.
    pub(super) fn take_out(&mut self, path: &[u8]) -> Result<Option<Entry>, TreeError> {
        match self.get(path).map(|entry| &entry.node) {
            Some(Node::Directory) => Err(fault(path, EntryFault::Reserved)),
            Some(Node::File(_) | Node::Symlink(_) | Node::Character(..) | Node::Block(..) | Node::Fifo)
            | None => Ok(self.entries.remove(path)),
        }
    }

    /// Removes whatever is at a path, with all that is below.
    pub(super) fn remove(&mut self, path: &[u8]) {
        self.entries.remove(path);
        self.remove_below(path);
    }

    /// Removes all that is below a path.
    pub(super) fn remove_below(&mut self, path: &[u8]) {
        let below: Vec<u8> = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        let gone = |entry: &Vec<u8>| entry.starts_with(&below) && entry.as_slice() != path;
        let paths: Vec<Vec<u8>> = self.entries.range(below.clone()..).map(|(path, _)| path.clone()).collect();
        for path in paths.into_iter().take_while(|path| path.starts_with(&below)).filter(gone) {
            self.entries.remove(&path);
        }
    }

    /// Whether a path ends, after its symbolic links, at a directory.
    pub(super) fn is_directory(&self, path: &[u8]) -> bool {
        let at = self.follow(path).and_then(|path| self.entries.get(&path));
        at.is_some_and(|entry| matches!(entry.node, Node::Directory))
    }

    /// A file's content.
    pub(super) fn content(&self, index: usize) -> Option<&Content> {
        self.contents.get(index)
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The clean path at which `path` ends after its symbolic links; `None` when it leads nowhere.
    pub(super) fn follow(&self, path: &[u8]) -> Option<Vec<u8>> {
        let mut left: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut reached: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(component) = left.pop() {
            if component == b".." {
                reached.truncate(reached.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            let mut next = reached.clone();
            if !next.is_empty() {
                next.push(b'/');
            }
            next.extend_from_slice(&component);
            if let Node::Symlink(target) = &self.get(&next)?.node {
                links += 1;
                if links > LINKS_FOLLOWED_MAX {
                    return None;
                }
                if target.first() == Some(&b'/') {
                    reached.clear();
                }
                left.extend(components(target).rev().map(<[u8]>::to_vec));
            } else {
                reached = next;
            }
        }
        Some(reached)
    }

    /// Every path with its entry, in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_slice(), entry))
    }

    /// Number of contents that entries may refer to.
    pub(super) fn contents_len(&self) -> usize {
        self.contents.len()
    }
}

/// A path as the tree knows it: no `.`, no doubled, leading or trailing `/`. Empty for the root itself.
pub(super) fn clean_path(raw: &[u8]) -> Result<Vec<u8>, EntryFault> {
    if raw.first() == Some(&b'/') {
        return Err(EntryFault::Absolute);
    }
    let mut clean = Vec::with_capacity(raw.len());
    for component in components(raw) {
        if component == b".." {
            return Err(EntryFault::Traversal);
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(component);
    }
    Ok(clean)
}

/// The error of an entry.
pub(super) fn fault(path: &[u8], fault: EntryFault) -> TreeError {
    TreeError::Entry { path: lossy(path), fault }
}

/// A path for people.
pub(super) fn lossy(path: &[u8]) -> String {
    PathBuf::from(OsStr::from_bytes(path)).display().to_string()
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty() && *component != b".")
}

fn check_lengths(path: &[u8], node: &Node) -> Result<(), EntryFault> {
    let target = match node {
        Node::Symlink(target) if target.is_empty() => return Err(EntryFault::NoTarget),
        Node::Symlink(target) => target.len(),
        Node::Directory | Node::File(_) | Node::Character(..) | Node::Block(..) | Node::Fifo => 0,
    };
    let longest = path.len().max(target);
    if longest > PATH_BYTES_MAX { Err(EntryFault::PathTooLong(longest)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> Entry {
        Entry::owned_by_root(0o700, Node::Directory)
    }

    fn link(target: &str) -> Entry {
        Entry::owned_by_root(0o777, Node::Symlink(target.into()))
    }

    #[test]
    fn paths_are_cleaned_and_none_leads_out() {
        assert_eq!(clean_path(b"./usr//bin/./perl/").unwrap(), b"usr/bin/perl");
        assert_eq!(clean_path(b"./").unwrap(), b"");
        assert!(matches!(clean_path(b"/etc/passwd"), Err(EntryFault::Absolute)));
        assert!(matches!(clean_path(b"a/../../b"), Err(EntryFault::Traversal)));
        assert_eq!(clean_path(b"a/..b").unwrap(), b"a/..b");
    }

    #[test]
    fn links_are_followed_inside_of_the_root_only() {
        let mut tree = Tree::default();
        tree.insert(b"usr/bin", directory()).unwrap();
        tree.add_file("usr/bin/init", 0o755, b"#!").unwrap();
        tree.insert(b"bin", link("usr/bin")).unwrap();
        tree.insert(b"sbin", link("/bin")).unwrap();
        tree.insert(b"up", link("../../../usr/bin/../bin/init")).unwrap();
        tree.insert(b"loop", link("loop")).unwrap();
        assert_eq!(tree.follow(b"/sbin/init").unwrap(), b"usr/bin/init");
        assert_eq!(tree.follow(b"up").unwrap(), b"usr/bin/init");
        assert_eq!(tree.follow(b"loop"), None);
        assert_eq!(tree.follow(b"sbin/nothing"), None);
    }

    #[test]
    fn directories_above_are_made_and_never_replaced() {
        let mut tree = Tree::default();
        tree.add_file("a/b/c", 0o644, b"x").unwrap();
        assert!(matches!(tree.get(b"a/b"), Some(Entry { node: Node::Directory, permissions: 0o755, .. })));
        tree.insert(b"a/b", directory()).unwrap();
        assert!(matches!(tree.get(b"a/b"), Some(Entry { permissions: 0o700, .. })));
        let replaced = tree.insert(b"a", link("elsewhere")).unwrap_err().to_string();
        assert_eq!(replaced, "`a` in the root: it takes the place of a directory");
        tree.insert(b"link", link("/etc")).unwrap();
        let below = tree.add_file("link/shadow", 0o644, b"x").unwrap_err().to_string();
        assert_eq!(below, "`link/shadow` in the root: it lies below `link`, which is not a directory");
    }

    #[test]
    fn limits_are_kept() {
        let mut tree = Tree::default();
        let long = "x".repeat(PATH_BYTES_MAX + 1);
        assert!(
            tree.add_file(&long, 0o644, b"").unwrap_err().to_string().contains("4096 bytes; at most 4095")
        );
        assert!(tree.insert(b"l", link(&long)).is_err());
        assert!(tree.insert(b"l", link("")).unwrap_err().to_string().contains("link to nothing"));
        let range = |bytes| Content::Range { file: Path::new("/").into(), offset: 1, bytes };
        let large = tree.add_content(b"large", range(FILE_BYTES_MAX + 1)).unwrap_err().to_string();
        assert!(large.contains("4294967296 bytes"), "{large}");
        tree.add_content(b"half", range(ROOT_BYTES_MAX)).unwrap();
        assert!(matches!(tree.add_content(b"more", range(1)), Err(TreeError::TooLarge)));
    }
}
