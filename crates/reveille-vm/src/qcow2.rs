//! The disk format qcow2, as far as Reveille looks into it: its header is checked before QEMU opens a file, and empty
//! overlays are made. (QEMU's `docs/interop/qcow2.txt`.)
//!
//! A header can name other files: what lies below it, or where its data is. QEMU would open them with the rights that it
//! has. So nothing that names any is accepted, and what lies below an overlay is told on QEMU's command line alone.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::driver::{Disk, DiskFormat};
use crate::qemu::private;

/// Largest disk that a guest may have.
pub const DISK_BYTES_MAX: u64 = 1 << 40;
/// What a disk's size is a multiple of.
pub const SECTOR_BYTES: u64 = 512;

const MAGIC: &[u8; 4] = b"QFI\xfb";
/// Bytes of a header that are read: version 3 with everything that is known here.
const HEADER_BYTES: usize = 112;
/// Length of a header of version 3 without a compression type.
const HEADER_3_BYTES: u32 = 104;
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Clusters of an overlay that holds nothing: header, reference count table and block, L1 table.
const EMPTY_CLUSTERS: u16 = 4;
/// Bytes of a disk that one entry of the L1 table stands for.
const L1_ENTRY_BYTES: u64 = CLUSTER_BYTES * (CLUSTER_BYTES / 8);
/// Incompatible features of a base that QEMU can read without another file: compression type, extended L2 entries.
const READABLE: u64 = 1 << 3 | 1 << 4;
/// Formats that a disk could be taken for if it were called raw.
const OTHERS: [(&[u8], &str); 6] = [
    (b"KDMV", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"QED\0", "QED"),
    (b"LUKS\xba\xbe", "LUKS"),
];

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskFault {
    /// Reading failed.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// Neither qcow2 nor a plain sequence of sectors.
    #[error("it is a disk of the format {0}; convert it with `qemu-img convert -O qcow2`")]
    OtherFormat(&'static str),
    /// The header is cut off or says what no header can.
    #[error("its qcow2 header is damaged: {0}")]
    Damaged(String),
    /// It is only what differs from another file.
    #[error("it is an overlay of another file; flatten it with `qemu-img convert -O qcow2`")]
    Backing,
    /// Its data lies elsewhere.
    #[error("its data lies in another file; flatten it with `qemu-img convert -O qcow2`")]
    DataFile,
    /// It is encrypted.
    #[error("it is encrypted; decrypt it with `qemu-img convert -O qcow2`")]
    Encrypted,
    /// It was in use when it was copied, or QEMU found a fault in it.
    #[error("it is marked as {0}; repair it with `qemu-img check -r all`")]
    Unclean(&'static str),
    /// It needs something that is not known here.
    #[error(
        "it has incompatible features ({0:#x}) that are not supported; convert it with `qemu-img convert -O qcow2`"
    )]
    Features(u64),
    /// Its size.
    #[error("it has {0} bytes; a disk has 512 to {DISK_BYTES_MAX}, in sectors of {SECTOR_BYTES}")]
    Size(u64),
}

/// Which disk a file is, for a base: its format and the guest's bytes.
///
/// # Errors
/// It is none that can be used.
pub fn examine(file: &File) -> Result<(DiskFormat, u64), DiskFault> {
    let head = head(file)?;
    if head.starts_with(MAGIC) {
        return Ok((DiskFormat::Qcow2, check(&head, READABLE)?));
    }
    if let Some((_, format)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(DiskFault::OtherFormat(format));
    }
    let bytes = file.metadata()?.len();
    sized(bytes)?;
    Ok((DiskFormat::Raw, bytes))
}

/// Checks that a base still is what it was when its image was built, as far as its header says.
///
/// # Errors
/// It is not.
pub fn check_base(disk: &Disk) -> Result<(), DiskFault> {
    let file = File::open(&disk.base)?;
    let bytes = match disk.format {
        DiskFormat::Qcow2 => check(&head(&file)?, READABLE)?,
        DiskFormat::Raw => file.metadata()?.len(),
    };
    if bytes == disk.bytes { Ok(()) } else { Err(DiskFault::Size(bytes)) }
}

/// Checks that a file is an overlay that names no other file, of a disk of `bytes`.
///
/// # Errors
/// It is not.
pub fn check_layer(file: &File, bytes: u64) -> Result<(), DiskFault> {
    let mut head = head(file)?;
    // Which file lies below is written there by QEMU and read by nobody: what is below is given to QEMU by name.
    if let Some(backing) = head.get_mut(8..20) {
        backing.fill(0);
    }
    let found = check(&head, 0)?;
    if found == bytes { Ok(()) } else { Err(DiskFault::Size(found)) }
}

/// Makes an overlay at `path` that holds nothing yet, of a disk of `bytes`; durable but for its name.
///
/// # Errors
/// There is a file already, or it cannot be written.
pub fn create_layer(path: &Path, bytes: u64) -> io::Result<()> {
    let l1_entries = u32::try_from(bytes.div_ceil(L1_ENTRY_BYTES)).map_err(io::Error::other)?;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend(3_u32.to_be_bytes());
    // No backing file.
    header.extend([0; 12]);
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(bytes.to_be_bytes());
    // Not encrypted.
    header.extend([0; 4]);
    header.extend(l1_entries.to_be_bytes());
    header.extend((3 * CLUSTER_BYTES).to_be_bytes());
    header.extend(CLUSTER_BYTES.to_be_bytes());
    header.extend(1_u32.to_be_bytes());
    // No snapshots, no features.
    header.extend([0; 4 + 8 + 3 * 8]);
    // Reference counts have 16 bits.
    header.extend(4_u32.to_be_bytes());
    header.extend(HEADER_3_BYTES.to_be_bytes());

    let mut file = private().write(true).create_new(true).open(path)?;
    file.write_all(&header)?;
    file.set_len(u64::from(EMPTY_CLUSTERS) * CLUSTER_BYTES)?;
    file.write_all_at(&(2 * CLUSTER_BYTES).to_be_bytes(), CLUSTER_BYTES)?;
    let counts: Vec<u8> = (0..EMPTY_CLUSTERS).flat_map(|_| 1_u16.to_be_bytes()).collect();
    file.write_all_at(&counts, 2 * CLUSTER_BYTES)?;
    file.sync_all()
}

fn head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEADER_BYTES];
    let mut read = 0;
    while let Some(rest) = head.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, read as u64) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(read);
    Ok(head)
}

/// The guest's bytes of a qcow2 file that has no other than these `features`.
fn check(head: &[u8], features: u64) -> Result<u64, DiskFault> {
    let damaged = |why: &str| DiskFault::Damaged(why.to_owned());
    let u32_at = |at: usize| {
        let bytes = head.get(at..).and_then(<[u8]>::first_chunk).ok_or_else(|| damaged("it is cut off"))?;
        Ok::<_, DiskFault>(u32::from_be_bytes(*bytes))
    };
    let u64_at = |at: usize| {
        let bytes = head.get(at..).and_then(<[u8]>::first_chunk).ok_or_else(|| damaged("it is cut off"))?;
        Ok::<_, DiskFault>(u64::from_be_bytes(*bytes))
    };
    if !head.starts_with(MAGIC) {
        return Err(damaged("it does not begin as one"));
    }
    let version = u32_at(4)?;
    if !(2..=3).contains(&version) {
        return Err(damaged(&format!("its version is {version}")));
    }
    if u64_at(8)? != 0 {
        return Err(DiskFault::Backing);
    }
    if !(9..=21).contains(&u32_at(20)?) {
        return Err(damaged("its clusters have an impossible size"));
    }
    if u32_at(32)? != 0 {
        return Err(DiskFault::Encrypted);
    }
    if version == 3 {
        let incompatible = u64_at(72)?;
        if incompatible & 1 << 2 != 0 {
            return Err(DiskFault::DataFile);
        } else if incompatible & 1 << 1 != 0 {
            return Err(DiskFault::Unclean("corrupt"));
        } else if incompatible & 1 != 0 {
            return Err(DiskFault::Unclean("not closed"));
        } else if incompatible & !features != 0 {
            return Err(DiskFault::Features(incompatible & !features));
        }
    }
    let bytes = u64_at(24)?;
    sized(bytes)?;
    Ok(bytes)
}

fn sized(bytes: u64) -> Result<(), DiskFault> {
    let fits = (SECTOR_BYTES..=DISK_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(SECTOR_BYTES);
    if fits { Ok(()) } else { Err(DiskFault::Size(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 3 << 30;

    fn layer() -> (tempfile::TempDir, File, Vec<u8>) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("disk-0");
        create_layer(&path, BYTES).unwrap();
        assert!(create_layer(&path, BYTES).is_err(), "what is there is not written over");
        let head = head(&File::open(&path).unwrap()).unwrap();
        (temp, File::open(&path).unwrap(), head)
    }

    #[test]
    fn an_overlay_that_was_made_is_one_of_that_size() {
        let (_temp, file, head) = layer();
        check_layer(&file, BYTES).unwrap();
        assert!(matches!(check_layer(&file, BYTES + 512), Err(DiskFault::Size(BYTES))));
        assert_eq!(check(&head, 0).unwrap(), BYTES);
    }

    #[test]
    fn what_names_other_files_or_cannot_be_read_is_refused() {
        let (_temp, _file, head) = layer();
        let bent = |at: usize, value: u8| {
            let mut head = head.clone();
            head[at] = value;
            check(&head, READABLE).unwrap_err().to_string()
        };
        assert!(bent(15, 1).contains("overlay of another file"));
        assert!(bent(79, 4).contains("data lies in another file"));
        assert!(bent(35, 1).contains("encrypted"));
        assert!(bent(79, 1).contains("not closed"));
        assert!(bent(79, 2).contains("corrupt"));
        assert!(bent(78, 1).contains("incompatible features (0x100)"));
        assert!(bent(7, 4).contains("its version is 4"));
        assert!(bent(23, 30).contains("clusters"));
        assert!(bent(24, 1).contains("a disk has 512 to"));
        for length in 0..80 {
            assert!(check(&head[..length], READABLE).is_err());
        }
    }

    #[test]
    fn other_formats_are_not_taken_for_sectors() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("disk");
        let examined = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            examine(&File::open(&path).unwrap()).map_err(|fault| fault.to_string())
        };
        assert_eq!(examined(&[7; 1024]).unwrap(), (DiskFormat::Raw, 1024));
        assert!(examined(&[7; 1000]).unwrap_err().contains("it has 1000 bytes"));
        assert!(examined(b"").unwrap_err().contains("it has 0 bytes"));
        assert!(examined(b"KDMV and more").unwrap_err().contains("the format VMDK"));
        assert!(examined(b"QFI\xfb").unwrap_err().contains("damaged"));
    }
}
