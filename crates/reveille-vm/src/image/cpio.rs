//! The archive that a kernel unpacks into its first root: cpio in the "new ASCII" format.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux source. A header is the magic
//! and 13 numbers of 8 hexadecimal digits; header plus name, and content, are each padded to 4 bytes.

use std::io::{self, Read, Write};

/// Most bytes of one file: sizes have 8 hexadecimal digits.
pub(super) const FILE_BYTES_MAX: u64 = u32::MAX as u64;

const MAGIC: &[u8] = b"070701";
const HEADER_BYTES: u64 = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
const ALIGNMENT: u64 = 4;

/// What the archive says of one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header<'a> {
    /// Without a leading slash.
    pub path: &'a [u8],
    /// Type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Paths with this inode number; all but the first carry no content.
    pub links: u32,
    /// Distinguishes files, unless `links` is above 1 and tells them to be one.
    pub inode: u32,
    /// Content that follows.
    pub bytes: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// Writes an archive; the same calls give the same bytes.
#[derive(Debug)]
pub(super) struct NewcWriter<W> {
    out: W,
    position: u64,
}

impl<W: Write> NewcWriter<W> {
    /// An archive that begins at the present place of `out`.
    pub(super) fn new(out: W) -> Self {
        Self { out, position: 0 }
    }

    /// Adds a path with `header.bytes` bytes of `content`. Fails with `UnexpectedEof` when there are fewer, and
    /// with `InvalidData` when there are more: then the file changed while it was read.
    pub(super) fn entry(&mut self, header: &Header<'_>, mut content: impl Read) -> io::Result<()> {
        self.header(header)?;
        let expected = u64::from(header.bytes);
        let copied = io::copy(&mut (&mut content).take(expected), &mut self.out)?;
        self.position += copied;
        if copied < expected {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read"));
        }
        if content.read(&mut [0])? != 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it became longer while it was read"));
        }
        self.pad()
    }

    /// Ends the archive and hands back what it was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let trailer =
            Header { path: TRAILER, mode: 0, uid: 0, gid: 0, links: 1, inode: 0, bytes: 0, device: (0, 0) };
        self.header(&trailer)?;
        Ok(self.out)
    }

    fn header(&mut self, header: &Header<'_>) -> io::Result<()> {
        let name_bytes = u32::try_from(header.path.len() + 1)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the path is too long"))?;
        let (major, minor) = header.device;
        // Inode, mode, uid, gid, links, mtime, size, device of the file system, device, name, checksum.
        let numbers = [
            header.inode,
            header.mode,
            header.uid,
            header.gid,
            header.links,
            0,
            header.bytes,
            0,
            0,
            major,
            minor,
            name_bytes,
            0,
        ];
        self.out.write_all(MAGIC)?;
        for number in numbers {
            write!(self.out, "{number:08x}")?;
        }
        self.out.write_all(header.path)?;
        self.out.write_all(&[0])?;
        self.position += HEADER_BYTES + u64::from(name_bytes);
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        let missing = self.position.next_multiple_of(ALIGNMENT) - self.position;
        self.position += missing;
        self.out.write_all([0; 3].get(..usize::try_from(missing).unwrap_or(0)).unwrap_or_default())
    }
}

/// Bytes that a path with `content` bytes takes in an archive.
pub(super) fn archived_bytes(path: &[u8], content: u64) -> u64 {
    let name = u64::try_from(path.len()).unwrap_or(u64::MAX / 2) + 1;
    (HEADER_BYTES + name).next_multiple_of(ALIGNMENT) + content.next_multiple_of(ALIGNMENT)
}

/// Bytes that the end of an archive takes.
pub(super) fn trailer_bytes() -> u64 {
    archived_bytes(TRAILER, 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Read {
        path: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
        links: u32,
        inode: u32,
        device: (u32, u32),
        content: Vec<u8>,
    }

    /// Reads an archive the way the kernel does, and fails on anything that the format does not allow.
    fn read_back(archive: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let header = &archive[at..at + 110];
            assert_eq!(&header[..6], MAGIC);
            let number = |field: usize| {
                let digits = &header[6 + field * 8..14 + field * 8];
                u32::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            };
            let name_end = at + 110 + number(11) as usize;
            assert_eq!(archive[name_end - 1], 0);
            let path = archive[at + 110..name_end - 1].to_vec();
            let content = name_end.next_multiple_of(4);
            let content_end = content + number(6) as usize;
            at = content_end.next_multiple_of(4);
            assert!(
                archive[name_end..content].iter().chain(&archive[content_end..at]).all(|byte| *byte == 0)
            );
            if path == TRAILER {
                assert_eq!(at, archive.len());
                return entries;
            }
            entries.push(Read {
                path,
                mode: number(1),
                uid: number(2),
                gid: number(3),
                links: number(4),
                inode: number(0),
                device: (number(9), number(10)),
                content: archive[content..content_end].to_vec(),
            });
        }
    }

    fn write(entries: &[Read]) -> Vec<u8> {
        let mut writer = NewcWriter::new(Vec::new());
        for entry in entries {
            let header = Header {
                path: &entry.path,
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                links: entry.links,
                inode: entry.inode,
                bytes: u32::try_from(entry.content.len()).unwrap(),
                device: entry.device,
            };
            writer.entry(&header, entry.content.as_slice()).unwrap();
        }
        writer.finish().unwrap()
    }

    fn entry() -> impl Strategy<Value = Read> {
        let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), 1..5u32, any::<u32>(), any::<(u32, u32)>());
        (prop::collection::vec(1..=255u8, 1..80), numbers, prop::collection::vec(any::<u8>(), 0..70))
            .prop_filter("the end mark is no path", |(path, _, _)| path != TRAILER)
            .prop_map(|(path, (mode, uid, gid, links, inode, device), content)| Read {
                path,
                mode,
                uid,
                gid,
                links,
                inode,
                device,
                content,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(entries in prop::collection::vec(entry(), 0..20)) {
            let archive = write(&entries);
            prop_assert_eq!(read_back(&archive), entries.clone());
            let expected: u64 = entries
                .iter()
                .map(|entry| archived_bytes(&entry.path, entry.content.len() as u64))
                .sum();
            prop_assert_eq!(archive.len() as u64, expected + trailer_bytes());
        }
    }

    #[test]
    fn another_reader_lists_the_same_paths() {
        let file = |path: &str, content: &[u8]| Read {
            path: path.into(),
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            links: 1,
            inode: 1,
            device: (0, 0),
            content: content.into(),
        };
        let archive = write(&[file("a", b""), file("some/where", b"12345"), file("with space", b"1234")]);
        let mut reader = Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        reader.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = reader.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(output.stdout, b"a\nsome/where\nwith space\n");
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_refused() {
        let header = Header {
            path: b"a",
            mode: 0o100_644,
            uid: 0,
            gid: 0,
            links: 1,
            inode: 1,
            bytes: 4,
            device: (0, 0),
        };
        let shorter = NewcWriter::new(Vec::new()).entry(&header, b"123".as_slice()).unwrap_err();
        assert_eq!(shorter.kind(), io::ErrorKind::UnexpectedEof);
        let longer = NewcWriter::new(Vec::new()).entry(&header, b"12345".as_slice()).unwrap_err();
        assert_eq!(longer.kind(), io::ErrorKind::InvalidData);
    }
}
