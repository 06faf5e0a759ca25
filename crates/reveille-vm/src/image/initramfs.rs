//! From a tree to the archive that the kernel unpacks, and what that takes of disk and memory.
//!
//! The archive is not compressed. Under TCG a guest boots as quickly from it as from lz4 or zstd, its bytes depend on
//! no library's version, and the kernel needs no memory to unpack it but for the files themselves.

use std::io::{self, Read, Write};

use super::cpio::{self, Header, NewcWriter};
use super::tree::{Content, Node, Tree, lossy};

/// What the kernel rounds files up to when it unpacks them.
const PAGE_BYTES: u64 = 4096;
/// What an entry takes of the guest's memory besides its content: inode, name, its share of a directory.
const ENTRY_OVERHEAD_BYTES: u64 = 1024;

const TYPE_FIFO: u32 = 0o010_000;
const TYPE_CHARACTER: u32 = 0o020_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_BLOCK: u32 = 0o060_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const PERMISSIONS: u32 = 0o7777;

/// Writing failed at a path.
#[derive(Debug)]
pub(super) struct WriteError {
    pub path: String,
    pub source: io::Error,
}

/// Bytes of the archive of a tree.
pub(super) fn archived_bytes(tree: &Tree) -> u64 {
    let mut files = Files::of(tree);
    let entries = tree.entries().map(|(path, entry)| {
        let content = match &entry.node {
            Node::File(index) => files.next(*index).bytes,
            Node::Symlink(target) => u64::try_from(target.len()).unwrap_or(u64::MAX),
            Node::Directory | Node::Character(..) | Node::Block(..) | Node::Fifo => 0,
        };
        cpio::archived_bytes(path, content)
    });
    entries.fold(cpio::trailer_bytes(), u64::saturating_add)
}

/// Bytes of the guest's memory that the unpacked tree takes.
pub(super) fn unpacked_bytes(tree: &Tree) -> u64 {
    let mut files = Files::of(tree);
    tree.entries().fold(0, |sum, (_, entry)| {
        let content = if let Node::File(index) = entry.node { files.next(index).bytes } else { 0 };
        sum.saturating_add(ENTRY_OVERHEAD_BYTES).saturating_add(content.next_multiple_of(PAGE_BYTES))
    })
}

/// Writes the archive of a tree; `progress` is told the bytes of each entry.
pub(super) fn write<W: Write>(tree: &Tree, out: W, progress: &mut dyn FnMut(u64)) -> Result<W, WriteError> {
    let mut files = Files::of(tree);
    let mut archive = NewcWriter::new(out);
    for (path, entry) in tree.entries() {
        let mut header = Header {
            path,
            mode: (entry.permissions & PERMISSIONS) | type_bits(&entry.node),
            uid: entry.uid,
            gid: entry.gid,
            links: 1,
            inode: 0,
            bytes: 0,
            device: (0, 0),
        };
        let mut content: Box<dyn Read + '_> = Box::new(io::empty());
        match &entry.node {
            Node::File(index) => {
                let file = files.next(*index);
                header.links = file.links;
                header.inode = file.inode;
                header.bytes = u32::try_from(file.bytes).unwrap_or(u32::MAX);
                if let Some(source) = tree.content(*index).filter(|_| file.first) {
                    content = source.reader().map_err(|source| WriteError { path: lossy(path), source })?;
                }
            }
            Node::Symlink(target) => {
                header.bytes = u32::try_from(target.len()).unwrap_or(u32::MAX);
                content = Box::new(target.as_slice());
            }
            Node::Character(major, minor) | Node::Block(major, minor) => header.device = (*major, *minor),
            Node::Directory | Node::Fifo => {}
        }
        if header.inode == 0 {
            header.inode = files.inode();
        }
        archive.entry(&header, content).map_err(|source| WriteError { path: lossy(path), source })?;
        progress(u64::from(header.bytes));
    }
    archive.finish().map_err(|source| WriteError { path: "the end".to_owned(), source })
}

/// Numbers files in the order of their paths and says which of several hard links carries the content: the first.
struct Files<'a> {
    tree: &'a Tree,
    /// Links and inode number (0: not yet met) of each content.
    known: Vec<(u32, u32)>,
    inodes: u32,
}

struct File {
    links: u32,
    inode: u32,
    bytes: u64,
    first: bool,
}

impl<'a> Files<'a> {
    fn of(tree: &'a Tree) -> Self {
        let mut known = vec![(0_u32, 0_u32); tree.contents_len()];
        for (_, entry) in tree.entries() {
            if let Node::File(index) = entry.node
                && let Some((links, _)) = known.get_mut(index)
            {
                *links += 1;
            }
        }
        Self { tree, known, inodes: 0 }
    }

    fn inode(&mut self) -> u32 {
        self.inodes += 1;
        self.inodes
    }

    fn next(&mut self, index: usize) -> File {
        let (links, known) = self.known.get(index).copied().unwrap_or((1, 0));
        if known != 0 {
            return File { links, inode: known, bytes: 0, first: false };
        }
        let inode = self.inode();
        if let Some(slot) = self.known.get_mut(index) {
            slot.1 = inode;
        }
        File { links, inode, bytes: self.tree.content(index).map_or(0, Content::bytes), first: true }
    }
}

const fn type_bits(node: &Node) -> u32 {
    match node {
        Node::Directory => TYPE_DIRECTORY,
        Node::File(_) => TYPE_FILE,
        Node::Symlink(_) => TYPE_SYMLINK,
        Node::Character(..) => TYPE_CHARACTER,
        Node::Block(..) => TYPE_BLOCK,
        Node::Fifo => TYPE_FIFO,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::Entry;
    use super::*;

    fn sample(order: &[usize]) -> Tree {
        let mut tree = Tree::default();
        for step in order {
            match step {
                0 => tree.add_file("bin/one", 0o755, b"one").unwrap(),
                1 => tree.add_file("two", 0o644, &[7; 5000]).unwrap(),
                _ => tree.insert(b"dev/console", Entry::owned_by_root(0o600, Node::Character(5, 1))).unwrap(),
            }
        }
        let Some(Node::File(content)) = tree.get(b"two").map(|entry| entry.node.clone()) else { panic!() };
        tree.insert(b"two.again", Entry::owned_by_root(0o644, Node::File(content))).unwrap();
        tree
    }

    #[test]
    fn the_order_of_discovery_leaves_no_trace() {
        let archive = write(&sample(&[0, 1, 2]), Vec::new(), &mut |_| ()).unwrap();
        assert_eq!(archive, write(&sample(&[2, 1, 0]), Vec::new(), &mut |_| ()).unwrap());
    }

    #[test]
    fn sizes_are_told_beforehand() {
        let tree = sample(&[0, 1, 2]);
        let mut told = 0;
        let archive = write(&tree, Vec::new(), &mut |bytes| told += bytes).unwrap();
        assert_eq!(archive.len() as u64, archived_bytes(&tree));
        // A hard link's content is there once.
        assert_eq!(told, 5003);
        assert_eq!(unpacked_bytes(&tree), 6 * ENTRY_OVERHEAD_BYTES + 4096 + 8192);
    }
}
