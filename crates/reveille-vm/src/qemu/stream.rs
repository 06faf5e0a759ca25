//! QEMU's migration stream, read far enough to take the guest's memory out of it.
//!
//! A guest whose memory is mapped beside its version's file cannot leave it out of a transfer by itself
//! (`x-ignore-shared` is for shared memory), and a running guest's changed pages are known to QEMU alone. So memory and
//! devices come in one stream, as for any live migration, and are separated here: pages of the guest's memory go to the
//! caller, everything else is kept. What is kept is itself a stream that QEMU loads (without `x-ignore-shared`) into a
//! process in which the memory is mapped already: pages that do not come stay as they are.
//!
//! ```text
//! magic, version
//! CONFIGURATION   length, name of the machine
//! START "ram"     records … EOS, footer      sizes of all blocks
//! PART  "ram"     records … EOS, footer      any number of times, the guest running
//! COMMAND         number, length, data        said to the other side, such as that the switch-over begins (10.x)
//! END   "ram"     records … EOS, footer      the guest standing still
//! FULL  …         devices: kept as they are, to the end
//! ```
//!
//! (QEMU `migration/savevm.c`, `migration/ram.c`; the stream has been the same from 2.x to 10.x, because a newer QEMU has
//! to read what an older one wrote.)

use std::io::{self, Read};

/// Size of a page as the stream counts it, in bytes.
pub const PAGE_BYTES: usize = 4_096;
/// Longest kept stream: devices, and memory that is not the guest's (firmware, video).
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Most records of one section: as many as pages fit a terabyte.
const RECORDS_MAX: u64 = 1 << 28;

const MAGIC: [u8; 4] = *b"QEVM";
const STREAM_VERSION: u32 = 3;

const SECTION_START: u8 = 1;
const SECTION_PART: u8 = 2;
const SECTION_END: u8 = 3;
const SECTION_FULL: u8 = 4;
const CONFIGURATION: u8 = 7;
const COMMAND: u8 = 8;
const FOOTER: u8 = 0x7e;

const RAM_ZERO: u64 = 0x02;
const RAM_MEM_SIZE: u64 = 0x04;
const RAM_PAGE: u64 = 0x08;
const RAM_EOS: u64 = 0x10;
const RAM_CONTINUE: u64 = 0x20;
const RAM_FLAGS: u64 = PAGE_BYTES as u64 - 1;

/// Why a stream was not understood.
#[derive(Debug, thiserror::Error)]
pub enum StreamFault {
    /// It cannot be read, or what came out of it cannot be written.
    #[error("at byte {at}: {source}")]
    Io {
        /// Where in the stream.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// It is not what QEMU writes.
    #[error("at byte {at}: {found:#x} where {expected} belongs")]
    Unexpected {
        /// Where in the stream.
        at: u64,
        /// What is there.
        found: u64,
        /// What should be.
        expected: &'static str,
    },
    /// A page lies outside the guest's memory, or the memory is not as large as it should be.
    #[error("at byte {at}: the guest's memory has {bytes} bytes, not {found}")]
    Size {
        /// Where in the stream.
        at: u64,
        /// As it is known.
        bytes: u64,
        /// As the stream has it.
        found: u64,
    },
    /// More is to be kept than any machine's devices have.
    #[error("at byte {at}: the devices have more than {KEPT_BYTES_MAX} bytes")]
    TooLong {
        /// Where in the stream.
        at: u64,
    },
}

/// A page of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page<'a> {
    /// All of one byte, mostly zeros.
    Filled(u8),
    /// Its contents.
    Whole(&'a [u8; PAGE_BYTES]),
}

/// Where pages of the guest's memory go: the page's number, and what is in it from now on. Later ones count.
pub trait Pages {
    /// Takes a page.
    ///
    /// # Errors
    /// It cannot be kept; the stream is not read any further.
    fn take(&mut self, number: u64, page: Page<'_>) -> io::Result<()>;
}

/// Reads a stream to its end: pages of the block `block`, which has `block_bytes`, go to `pages`; the rest is given back.
///
/// # Errors
/// [`StreamFault`], with the place.
pub fn separate(
    stream: impl Read,
    block: &str,
    block_bytes: u64,
    pages: &mut impl Pages,
) -> Result<Vec<u8>, StreamFault> {
    let mut reader = Reader { stream, at: 0, kept: Vec::new() };
    let magic = reader.keep::<4>()?;
    if magic != MAGIC {
        return Err(reader.unexpected(u32::from_be_bytes(magic).into(), "QEMU's magic"));
    }
    let version = u32::from_be_bytes(reader.keep()?);
    if version != STREAM_VERSION {
        return Err(reader.unexpected(version.into(), "version 3 of the stream"));
    }
    let mut ram = Ram { block, block_bytes, pages, section: None, current: Current::None, name: Vec::new() };
    loop {
        let [kind] = reader.read()?;
        match kind {
            CONFIGURATION => {
                reader.keep_all(&[kind])?;
                let length = u32::from_be_bytes(reader.keep()?);
                reader.keep_counted(length.into())?;
            }
            SECTION_START => {
                reader.keep_all(&[kind])?;
                let id = u32::from_be_bytes(reader.keep()?);
                let name = reader.keep_name()?;
                // Instance and version.
                reader.keep::<8>()?;
                if name != b"ram" {
                    return Err(reader.unexpected(name.len() as u64, "the section of the memory"));
                }
                ram.section = Some(id);
                ram.records(&mut reader)?;
                reader.keep_footer(id)?;
            }
            SECTION_PART | SECTION_END => {
                reader.keep_all(&[kind])?;
                let id = u32::from_be_bytes(reader.keep()?);
                if ram.section != Some(id) {
                    return Err(reader.unexpected(id.into(), "the section of the memory"));
                }
                ram.records(&mut reader)?;
                reader.keep_footer(id)?;
            }
            COMMAND => {
                reader.keep_all(&[kind])?;
                reader.keep::<2>()?;
                let length = u16::from_be_bytes(reader.keep()?);
                reader.keep_counted(length.into())?;
            }
            SECTION_FULL => {
                reader.keep_all(&[kind])?;
                reader.keep_rest()?;
                return Ok(reader.kept);
            }
            other => return Err(reader.unexpected(other.into(), "a section")),
        }
    }
}

/// The block that a record belongs to which says "the same as before".
#[derive(Clone, Copy, PartialEq, Eq)]
enum Current {
    None,
    Guest,
    /// Another one, with its name; it has to be named again after pages were left out.
    Other,
}

/// The state of reading the guest's memory.
struct Ram<'a, P> {
    block: &'a str,
    block_bytes: u64,
    pages: &'a mut P,
    section: Option<u32>,
    current: Current,
    /// Name of the current block.
    name: Vec<u8>,
}

impl<P: Pages> Ram<'_, P> {
    fn records(&mut self, reader: &mut Reader<impl Read>) -> Result<(), StreamFault> {
        // What is kept names its block in each section anew.
        let mut named = false;
        for _ in 0..RECORDS_MAX {
            let word = u64::from_be_bytes(reader.read()?);
            let (place, flags) = (word & !RAM_FLAGS, word & RAM_FLAGS);
            match flags & !RAM_CONTINUE {
                RAM_EOS => {
                    reader.keep_all(&word.to_be_bytes())?;
                    return Ok(());
                }
                RAM_MEM_SIZE => {
                    reader.keep_all(&word.to_be_bytes())?;
                    self.sizes(reader, place)?;
                }
                kind @ (RAM_ZERO | RAM_PAGE) => {
                    if flags & RAM_CONTINUE == 0 {
                        self.name = reader.name()?;
                        named = false;
                        let guest = self.name == self.block.as_bytes();
                        self.current = if guest { Current::Guest } else { Current::Other };
                    }
                    match self.current {
                        Current::None => return Err(reader.unexpected(word, "the name of a block")),
                        Current::Guest => self.take(reader, place, kind)?,
                        Current::Other => {
                            let carry = if named { RAM_CONTINUE } else { 0 };
                            reader.keep_all(&(place | kind | carry).to_be_bytes())?;
                            if !named {
                                reader.keep_all(&[u8::try_from(self.name.len()).unwrap_or(u8::MAX)])?;
                                reader.keep_all(&self.name)?;
                                named = true;
                            }
                            if kind == RAM_ZERO {
                                reader.keep::<1>()?;
                            } else {
                                reader.keep_counted(PAGE_BYTES as u64)?;
                            }
                        }
                    }
                }
                _ => return Err(reader.unexpected(word, "a record of memory that is known here")),
            }
        }
        Err(reader.unexpected(RECORDS_MAX, "the end of a section"))
    }

    /// The sizes of all blocks, `total` bytes together.
    fn sizes(&self, reader: &mut Reader<impl Read>, total: u64) -> Result<(), StreamFault> {
        let mut left = total;
        while left > 0 {
            let name = reader.keep_name()?;
            let bytes = u64::from_be_bytes(reader.keep()?);
            if name == self.block.as_bytes() && bytes != self.block_bytes {
                return Err(StreamFault::Size { at: reader.at, bytes: self.block_bytes, found: bytes });
            }
            left = match left.checked_sub(bytes) {
                Some(rest) if bytes > 0 => rest,
                Some(_) | None => return Err(reader.unexpected(bytes, "the size of a block")),
            };
        }
        Ok(())
    }

    fn take(&mut self, reader: &mut Reader<impl Read>, place: u64, kind: u64) -> Result<(), StreamFault> {
        if place >= self.block_bytes {
            return Err(StreamFault::Size { at: reader.at, bytes: self.block_bytes, found: place });
        }
        let number = place / PAGE_BYTES as u64;
        let taken = if kind == RAM_ZERO {
            let [byte] = reader.read()?;
            self.pages.take(number, Page::Filled(byte))
        } else {
            let page = reader.read::<PAGE_BYTES>()?;
            self.pages.take(number, Page::Whole(&page))
        };
        taken.map_err(|source| StreamFault::Io { at: reader.at, source })
    }
}

/// What has been read, and what of it is kept.
struct Reader<R> {
    stream: R,
    at: u64,
    kept: Vec<u8>,
}

impl<R: Read> Reader<R> {
    fn read<const N: usize>(&mut self) -> Result<[u8; N], StreamFault> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).map_err(|source| StreamFault::Io { at: self.at, source })?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn keep<const N: usize>(&mut self) -> Result<[u8; N], StreamFault> {
        let bytes = self.read()?;
        self.keep_all(&bytes)?;
        Ok(bytes)
    }

    fn keep_all(&mut self, bytes: &[u8]) -> Result<(), StreamFault> {
        if self.kept.len() + bytes.len() > KEPT_BYTES_MAX {
            return Err(StreamFault::TooLong { at: self.at });
        }
        self.kept.extend_from_slice(bytes);
        Ok(())
    }

    fn keep_counted(&mut self, count: u64) -> Result<(), StreamFault> {
        let room = (KEPT_BYTES_MAX - self.kept.len()) as u64;
        if count > room {
            return Err(StreamFault::TooLong { at: self.at });
        }
        let read = self.stream.by_ref().take(count).read_to_end(&mut self.kept);
        let read = read.map_err(|source| StreamFault::Io { at: self.at, source })? as u64;
        self.at += read;
        if read < count {
            return Err(StreamFault::Io { at: self.at, source: io::ErrorKind::UnexpectedEof.into() });
        }
        Ok(())
    }

    fn keep_rest(&mut self) -> Result<(), StreamFault> {
        let room = (KEPT_BYTES_MAX - self.kept.len()) as u64;
        let read = self.stream.by_ref().take(room + 1).read_to_end(&mut self.kept);
        let read = read.map_err(|source| StreamFault::Io { at: self.at, source })? as u64;
        self.at += read;
        if read > room { Err(StreamFault::TooLong { at: self.at }) } else { Ok(()) }
    }

    /// A name after its length in one byte; not kept.
    fn name(&mut self) -> Result<Vec<u8>, StreamFault> {
        let [length] = self.read()?;
        let mut name = vec![0; length.into()];
        self.stream.read_exact(&mut name).map_err(|source| StreamFault::Io { at: self.at, source })?;
        self.at += u64::from(length);
        Ok(name)
    }

    fn keep_name(&mut self) -> Result<Vec<u8>, StreamFault> {
        let name = self.name()?;
        self.keep_all(&[u8::try_from(name.len()).unwrap_or(u8::MAX)])?;
        self.keep_all(&name)?;
        Ok(name)
    }

    fn keep_footer(&mut self, id: u32) -> Result<(), StreamFault> {
        let [mark] = self.keep()?;
        let found = u32::from_be_bytes(self.keep()?);
        if mark != FOOTER || found != id {
            return Err(self.unexpected(found.into(), "the end of the section"));
        }
        Ok(())
    }

    fn unexpected(&self, found: u64, expected: &'static str) -> StreamFault {
        StreamFault::Unexpected { at: self.at, found, expected }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Taken(BTreeMap<u64, u8>);

    impl Pages for Taken {
        fn take(&mut self, number: u64, page: Page<'_>) -> io::Result<()> {
            let first = match page {
                Page::Filled(byte) => byte,
                Page::Whole(bytes) => bytes[0],
            };
            self.0.insert(number, first);
            Ok(())
        }
    }

    fn named(name: &str) -> Vec<u8> {
        [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat()
    }

    fn page(place: u64, flags: u64, name: Option<&str>, byte: u8) -> Vec<u8> {
        let word = place | RAM_PAGE | flags;
        [word.to_be_bytes().to_vec(), name.map(named).unwrap_or_default(), vec![byte; PAGE_BYTES]].concat()
    }

    const EOS: [u8; 8] = RAM_EOS.to_be_bytes();
    const END: [u8; 5] = [FOOTER, 0, 0, 0, 2];

    fn head() -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &[0, 0, 0, 3, CONFIGURATION, 0, 0, 0, 7], b"microvm"].concat();
        bytes.extend([&[SECTION_START, 0, 0, 0, 2][..], &named("ram"), &[0, 0, 0, 0, 0, 0, 0, 4]].concat());
        bytes.extend((0x5000_u64 | RAM_MEM_SIZE).to_be_bytes());
        bytes.extend(
            [&named("m0")[..], &0x4000_u64.to_be_bytes(), &named("rom"), &0x1000_u64.to_be_bytes()].concat(),
        );
        bytes.extend([&EOS[..], &END].concat());
        bytes
    }

    fn whole() -> Vec<u8> {
        let mut bytes = head();
        bytes.extend([SECTION_PART, 0, 0, 0, 2]);
        bytes.extend(page(0x1000, 0, Some("m0"), 7));
        bytes.extend((0x2000 | RAM_ZERO | RAM_CONTINUE).to_be_bytes());
        bytes.push(0);
        bytes.extend(page(0, 0, Some("rom"), 9));
        bytes.extend([&EOS[..], &END, &[COMMAND, 0, 12, 0, 1, 5], &[SECTION_END, 0, 0, 0, 2]].concat());
        bytes.extend(page(0x1000, 0, Some("m0"), 8));
        bytes.extend(page(0x3000, RAM_CONTINUE, None, 6));
        bytes.extend([&EOS[..], &END, &[SECTION_FULL], b"devices and whatever follows"].concat());
        bytes
    }

    #[test]
    fn the_guests_pages_are_taken_and_all_else_is_kept() {
        let mut taken = Taken::default();
        let kept = separate(&whole()[..], "m0", 0x4000, &mut taken).unwrap();
        assert_eq!(taken.0, BTreeMap::from([(1, 8), (2, 0), (3, 6)]), "the last of each counts");
        let mut expected = head();
        expected.extend([SECTION_PART, 0, 0, 0, 2]);
        expected.extend(page(0, 0, Some("rom"), 9));
        let command = [COMMAND, 0, 12, 0, 1, 5];
        expected.extend([&EOS[..], &END, &command, &[SECTION_END, 0, 0, 0, 2], &EOS, &END].concat());
        expected.extend([&[SECTION_FULL][..], b"devices and whatever follows"].concat());
        assert_eq!(kept, expected);
        // What was kept is a stream in which no page of the guest's comes.
        let mut none = Taken::default();
        assert_eq!(separate(&kept[..], "m0", 0x4000, &mut none).unwrap(), kept);
        assert!(none.0.is_empty());
    }

    #[test]
    fn a_stream_that_is_cut_off_or_bent_is_refused_with_the_place() {
        let whole = whole();
        let devices = whole.len() - b"devices and whatever follows".len();
        for length in 0..devices {
            let fault = separate(&whole[..length], "m0", 0x4000, &mut Taken::default()).unwrap_err();
            assert!(matches!(fault, StreamFault::Io { .. }), "{length}: {fault}");
        }
        for at in 0..head().len() {
            let mut bent = whole.clone();
            bent[at] ^= 0x40;
            // Nothing but an error may come of it, or a name or number that this code does not look at.
            let _ = separate(&bent[..], "m0", 0x4000, &mut Taken::default());
        }
        let fault = separate(&whole[..], "m0", 0x8000, &mut Taken::default()).unwrap_err();
        assert!(matches!(fault, StreamFault::Size { bytes: 0x8000, found: 0x4000, .. }), "{fault}");
    }
}
