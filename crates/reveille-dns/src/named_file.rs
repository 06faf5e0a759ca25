//! Reading a file that the config names.
//!
//! What stands under such a path is the operator's, and may be anything. A named pipe without a writer would hold
//! its reader for good, and a device has no end. So only regular files are read, opening waits for nobody, and
//! each reader says how much it takes.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{error, fmt};

/// What was read.
pub struct Contents {
    /// All of it.
    pub bytes: Vec<u8>,
    /// The file's permission bits; of the open file, so that what is checked is what was read.
    pub mode: u32,
}

impl fmt::Debug for Contents {
    /// Without what the file says: it may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// Why a file was not read. Names the file once and quotes nothing of it.
#[derive(Debug)]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: FileFault,
}

/// What is wrong with a file, shown as the end of a sentence that begins with its name.
#[derive(Debug)]
pub enum FileFault {
    /// The system does not let it be read.
    Unreadable(io::Error),
    /// It is something else than a regular file.
    Kind(&'static str),
    /// It is larger than what is read of such a file.
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// It should be text.
    NotText {
        /// The first line that is not, from 1.
        line: usize,
    },
}

impl FileError {
    /// `path` could not be read, or not be looked at.
    pub fn unreadable(path: &Path, error: io::Error) -> Self {
        Self { path: path.to_owned(), fault: FileFault::Unreadable(error) }
    }

    /// Whether there is no such file.
    pub fn is_absent(&self) -> bool {
        match &self.fault {
            FileFault::Unreadable(error) => error.kind() == io::ErrorKind::NotFound,
            FileFault::Kind(_) | FileFault::TooLarge { .. } | FileFault::NotText { .. } => false,
        }
    }
}

// The cause stands in the message, so it is no `source`: who prints both would say it twice.
impl error::Error for FileError {}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.fault {
            FileFault::Unreadable(error) => write!(f, "cannot read {path}: {error}{}", advice(error)),
            fault @ (FileFault::Kind(_) | FileFault::TooLarge { .. } | FileFault::NotText { .. }) => {
                write!(f, "{path} {fault}")
            }
        }
    }
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(f, "cannot be read: {error}{}", advice(error)),
            Self::Kind(kind) => write!(f, "is {kind}; name a regular file"),
            Self::TooLarge { bytes_max } if bytes_max % (1 << 20) == 0 => {
                write!(f, "is larger than {} MiB; is it the right file?", bytes_max >> 20)
            }
            Self::TooLarge { bytes_max } => {
                write!(f, "is larger than {bytes_max} bytes; is it the right file?")
            }
            Self::NotText { line } => write!(f, "is no UTF-8 in line {line}; save it as UTF-8"),
        }
    }
}

/// What to do about an error of the system, where that can be told.
fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound {
        "; make it, or correct the path"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "; let the user that reads it have it"
    } else {
        ""
    }
}

/// Reads a regular file of at most `bytes_max` bytes. Waits for nothing but the disk.
///
/// # Errors
/// Why it was not read.
pub fn read(path: &Path, bytes_max: u64) -> Result<Contents, FileError> {
    read_inner(path, bytes_max).map_err(|fault| FileError { path: path.to_owned(), fault })
}

/// Reads a regular file of at most `bytes_max` bytes as UTF-8.
///
/// # Errors
/// Why it was not read.
pub fn read_text(path: &Path, bytes_max: u64) -> Result<String, FileError> {
    text(path, read(path, bytes_max)?.bytes)
}

/// What was read from `path`, as UTF-8.
///
/// # Errors
/// The first line that is none.
pub fn text(path: &Path, bytes: Vec<u8>) -> Result<String, FileError> {
    String::from_utf8(bytes).map_err(|error| {
        let good = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = good.filter(|&&byte| byte == b'\n').count() + 1;
        FileError { path: path.to_owned(), fault: FileFault::NotText { line } }
    })
}

fn read_inner(path: &Path, bytes_max: u64) -> Result<Contents, FileFault> {
    // Without O_NONBLOCK, opening a named pipe waits for a writer. Regular files know no such flag; std sets
    // O_CLOEXEC by itself.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match fs::metadata(path) {
        // A socket cannot be opened at all.
        Ok(found) if !found.is_file() => FileFault::Kind(kind(found.file_type())),
        Ok(_) | Err(_) => FileFault::Unreadable(error),
    })?;
    let found = file.metadata().map_err(FileFault::Unreadable)?;
    if !found.is_file() {
        return Err(FileFault::Kind(kind(found.file_type())));
    }
    if found.len() > bytes_max {
        return Err(FileFault::TooLarge { bytes_max });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or_default());
    read_whole(file, bytes_max, &mut bytes)?;
    Ok(Contents { bytes, mode: found.permissions().mode() & 0o7777 })
}

/// It may have grown since it was looked at, and files of /proc have no length.
fn read_whole(file: File, bytes_max: u64, bytes: &mut Vec<u8>) -> Result<(), FileFault> {
    // One byte more than is allowed tells too large from just fitting.
    file.take(bytes_max.saturating_add(1)).read_to_end(bytes).map_err(FileFault::Unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= bytes_max) {
        Ok(())
    } else {
        Err(FileFault::TooLarge { bytes_max })
    }
}

fn kind(found: FileType) -> &'static str {
    if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a named pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn told(path: &Path) -> String {
        read_text(path, 8).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let _socket = UnixListener::bind(at("socket")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        std::os::unix::fs::symlink(at("pipe"), at("link")).unwrap();
        fs::create_dir(at("dir")).unwrap();
        for (path, what) in [
            (at("pipe"), "a named pipe"),
            (at("link"), "a named pipe"),
            (at("socket"), "a socket"),
            (at("dir"), "a directory"),
            ("/dev/zero".into(), "a device"),
        ] {
            assert_eq!(told(&path), format!("{} is {what}; name a regular file", path.display()));
        }
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_and_its_text_has_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let write = |bytes: &[u8]| fs::write(&path, bytes).unwrap();
        write(b"12345678");
        assert_eq!(read_text(&path, 8).unwrap(), "12345678");
        let shown = path.display();
        assert_eq!(
            read(&path, 7).unwrap_err().to_string(),
            format!("{shown} is larger than 7 bytes; is it the right file?")
        );
        // It has no length before it is read.
        assert!(matches!(
            read(Path::new("/proc/self/status"), 7).unwrap_err().fault,
            FileFault::TooLarge { bytes_max: 7 }
        ));
        write(b"a\nb\n\xff\n");
        assert_eq!(told(&path), format!("{shown} is no UTF-8 in line 3; save it as UTF-8"));
        fs::remove_file(&path).unwrap();
        let absent = read(&path, 8).unwrap_err();
        assert!(absent.is_absent());
        assert_eq!(absent.to_string().matches("No such file").count(), 1, "{absent}");
        assert!(error::Error::source(&absent).is_none(), "who prints the chain says it twice");
    }
}
