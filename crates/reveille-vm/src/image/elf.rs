//! The little that is to be known of an ELF file: for which machine it is, what loads it, a section's content.
//!
//! Layout: System V ABI, chapters 4 and 5, 64-bit little-endian; nothing else runs here.

use std::io;

/// `e_machine` of x86-64.
const MACHINE_X86_64: u16 = 62;
const IDENT_CLASS_64_LITTLE: [u8; 2] = [2, 1];
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTION_HEADER_BYTES: usize = 64;
const SEGMENT_INTERPRETER: u32 = 3;
const SEGMENT_NOTE: u32 = 4;
/// Most program or section headers that are looked at; the format allows 65,535.
const HEADERS_MAX: u16 = 4096;
/// Longest path of a dynamic linker.
const INTERPRETER_BYTES_MAX: u64 = 4096;
/// Largest section or note segment that is read.
const SECTION_BYTES_MAX: u64 = 1 << 20;

/// Something of which ranges can be read.
pub(super) trait ReadRange {
    /// Up to `bytes` bytes from `offset`; fewer at the end.
    fn read_range(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>>;
}

impl ReadRange for [u8] {
    fn read_range(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let end = start.saturating_add(bytes).min(self.len());
        Ok(self.get(start..end).unwrap_or_default().to_vec())
    }
}

impl ReadRange for std::fs::File {
    fn read_range(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let mut buffer = vec![0; bytes];
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read_at(rest, offset.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX))) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }
}

/// Why a file is no program for this machine.
#[derive(Debug, thiserror::Error)]
pub(super) enum ElfFault {
    /// It does not begin with the magic number.
    #[error("it is no ELF file")]
    NotElf,
    /// Another architecture.
    #[error("it is built for another machine than x86-64 ({0})")]
    Machine(String),
    /// Offsets or lengths lead outside of the file, or are absurd.
    #[error("its headers are damaged")]
    Damaged,
    /// Reading failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// An ELF file for x86-64.
pub(super) struct Elf<'a, R: ?Sized> {
    file: &'a R,
    header: Vec<u8>,
}

impl<'a, R: ReadRange + ?Sized> Elf<'a, R> {
    /// Reads the header and checks class and machine.
    pub(super) fn parse(file: &'a R) -> Result<Self, ElfFault> {
        let header = file.read_range(0, HEADER_BYTES)?;
        if !header.starts_with(b"\x7fELF") {
            return Err(ElfFault::NotElf);
        }
        let elf = Self { file, header };
        if elf.header.get(4..6) != Some(&IDENT_CLASS_64_LITTLE) {
            return Err(ElfFault::Machine("not 64-bit little-endian".to_owned()));
        }
        match number_u16(&elf.header, 18)? {
            MACHINE_X86_64 => Ok(elf),
            183 => Err(ElfFault::Machine("it is for arm64".to_owned())),
            243 => Err(ElfFault::Machine("it is for riscv64".to_owned())),
            other => Err(ElfFault::Machine(format!("ELF machine {other}"))),
        }
    }

    /// The dynamic linker that the program asks for; `None` when it is static.
    pub(super) fn interpreter(&self) -> Result<Option<Vec<u8>>, ElfFault> {
        let Some((offset, bytes)) = self.segment(SEGMENT_INTERPRETER)? else { return Ok(None) };
        let mut path = self.range(offset, bytes, INTERPRETER_BYTES_MAX)?;
        while path.last() == Some(&0) {
            path.pop();
        }
        Ok(Some(path))
    }

    /// Whether a note of this owner and type is there, for instance the entry point of a PVH kernel.
    pub(super) fn has_note(&self, owner: &[u8], kind: u32) -> Result<bool, ElfFault> {
        let Some((offset, bytes)) = self.segment(SEGMENT_NOTE)? else { return Ok(false) };
        let notes = self.range(offset, bytes, SECTION_BYTES_MAX)?;
        let mut at = 0;
        while let (Ok(name), Ok(content), Ok(this)) =
            (number_u32(&notes, at), number_u32(&notes, at + 4), number_u32(&notes, at + 8))
        {
            let (Ok(name), Ok(content)) = (usize::try_from(name), usize::try_from(content)) else { break };
            let owner_of = notes.get(at + 12..(at + 12).saturating_add(name)).unwrap_or_default();
            if this == kind && owner_of.strip_suffix(&[0]).unwrap_or(owner_of) == owner {
                return Ok(true);
            }
            let Some(step) = name.checked_next_multiple_of(4).and_then(|name| {
                content.checked_next_multiple_of(4).and_then(|content| name.checked_add(content))
            }) else {
                break;
            };
            at = at.saturating_add(12).saturating_add(step);
        }
        Ok(false)
    }

    /// The content of the section of this name.
    pub(super) fn section(&self, name: &[u8]) -> Result<Option<Vec<u8>>, ElfFault> {
        let table = number_u64(&self.header, 40)?;
        let count = number_u16(&self.header, 60)?;
        if count > HEADERS_MAX {
            return Err(ElfFault::Damaged);
        }
        let headers = self.exactly(table, usize::from(count) * SECTION_HEADER_BYTES)?;
        let header = |index: usize| {
            headers
                .get(index * SECTION_HEADER_BYTES..(index + 1) * SECTION_HEADER_BYTES)
                .ok_or(ElfFault::Damaged)
        };
        if count == 0 {
            return Ok(None);
        }
        let names = header(usize::from(number_u16(&self.header, 62)?))?;
        let names = self.range(number_u64(names, 24)?, number_u64(names, 32)?, SECTION_BYTES_MAX)?;
        for index in 0..usize::from(count) {
            let section = header(index)?;
            let start = usize::try_from(number_u32(section, 0)?).map_err(|_| ElfFault::Damaged)?;
            let this = names.get(start..).unwrap_or_default().split(|byte| *byte == 0).next();
            if this == Some(name) {
                return self
                    .range(number_u64(section, 24)?, number_u64(section, 32)?, SECTION_BYTES_MAX)
                    .map(Some);
            }
        }
        Ok(None)
    }

    /// Offset and length of the first segment of a type.
    fn segment(&self, kind: u32) -> Result<Option<(u64, u64)>, ElfFault> {
        let table = number_u64(&self.header, 32)?;
        let count = number_u16(&self.header, 56)?;
        if count > HEADERS_MAX {
            return Err(ElfFault::Damaged);
        }
        let headers = self.exactly(table, usize::from(count) * PROGRAM_HEADER_BYTES)?;
        for header in headers.chunks_exact(PROGRAM_HEADER_BYTES) {
            if number_u32(header, 0)? == kind {
                return Ok(Some((number_u64(header, 8)?, number_u64(header, 32)?)));
            }
        }
        Ok(None)
    }

    fn range(&self, offset: u64, bytes: u64, bytes_max: u64) -> Result<Vec<u8>, ElfFault> {
        if bytes > bytes_max {
            return Err(ElfFault::Damaged);
        }
        self.exactly(offset, usize::try_from(bytes).map_err(|_| ElfFault::Damaged)?)
    }

    fn exactly(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, ElfFault> {
        let content = self.file.read_range(offset, bytes)?;
        if content.len() == bytes { Ok(content) } else { Err(ElfFault::Damaged) }
    }
}

fn number_u16(bytes: &[u8], at: usize) -> Result<u16, ElfFault> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn number_u32(bytes: &[u8], at: usize) -> Result<u32, ElfFault> {
    field(bytes, at).map(u32::from_le_bytes)
}

fn number_u64(bytes: &[u8], at: usize) -> Result<u64, ElfFault> {
    field(bytes, at).map(u64::from_le_bytes)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ElfFault> {
    let end = at.checked_add(N).ok_or(ElfFault::Damaged)?;
    bytes.get(at..end).and_then(|slice| slice.try_into().ok()).ok_or(ElfFault::Damaged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_static_and_a_dynamic_program_are_told_apart() {
        let busybox = std::fs::File::open("/bin/busybox").unwrap();
        assert_eq!(Elf::parse(&busybox).unwrap().interpreter().unwrap(), None);
        let dynamic = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let linker = Elf::parse(&dynamic).unwrap().interpreter().unwrap().unwrap();
        assert!(linker.starts_with(b"/lib64/ld-"), "{}", String::from_utf8_lossy(&linker));
    }

    #[test]
    fn a_section_is_found_by_name() {
        let program = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&program).unwrap();
        assert!(elf.section(b".interp").unwrap().unwrap().starts_with(b"/lib64/ld-"));
        assert_eq!(elf.section(b".nowhere").unwrap(), None);
    }

    #[test]
    fn other_machines_and_other_files_are_named() {
        let mut header = vec![0; 64];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        header[18] = 183;
        let fault = Elf::parse(header.as_slice()).map(|_| ()).unwrap_err();
        assert_eq!(fault.to_string(), "it is built for another machine than x86-64 (it is for arm64)");
        assert!(matches!(Elf::parse(b"#!/bin/sh".as_slice()).map(|_| ()), Err(ElfFault::NotElf)));
    }

    proptest! {
        #[test]
        fn damaged_files_are_refused_without_a_panic(
            rest in prop::collection::vec(any::<u8>(), 0..400),
            tables in any::<(u8, u8, u8)>(),
        ) {
            let mut file = b"\x7fELF\x02\x01".to_vec();
            file.extend(&rest);
            if file.len() > 64 {
                file[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
                // Tables inside of the file, so that the walks get somewhere.
                for (at, value) in [(32, tables.0), (40, tables.1)] {
                    file[at..at + 8].copy_from_slice(&u64::from(value).to_le_bytes());
                }
                for at in [56, 60] {
                    file[at..at + 2].copy_from_slice(&u16::from(tables.2 % 4).to_le_bytes());
                }
            }
            if let Ok(elf) = Elf::parse(file.as_slice()) {
                let _ = elf.interpreter();
                let _ = elf.section(b".modinfo");
                let _ = elf.has_note(b"Xen", 18);
            }
        }
    }
}
