//! Whether a disk has room.

use std::path::{Path, PathBuf};

/// The disk has less room than is needed.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{}` has {} MiB free and {} MiB are needed; make room or choose another directory",
    path.display(), free_bytes >> 20, needed_bytes.div_ceil(1 << 20)
)]
pub struct NoSpace {
    /// A path on the disk.
    pub path: PathBuf,
    /// Free to this user.
    pub free_bytes: u64,
    /// Needed, with what is to stay free.
    pub needed_bytes: u64,
}

/// What stays free for everything else on the disk.
const RESERVE_BYTES: u64 = 64 << 20;

/// Whether `bytes` can be written to the disk that `path` is on. A disk that does not tell is taken at its word when
/// it fails.
pub(super) fn require(path: &Path, bytes: u64) -> Result<(), NoSpace> {
    let Ok(disk) = rustix::fs::statvfs(path) else { return Ok(()) };
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed_bytes = bytes.saturating_add(RESERVE_BYTES);
    if free_bytes < needed_bytes {
        return Err(NoSpace { path: path.to_owned(), free_bytes, needed_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_any_disk_has_is_refused_with_both_sizes() {
        let refused = require(Path::new("/"), u64::MAX / 2).unwrap_err();
        assert!(refused.to_string().starts_with("`/` has "), "{refused}");
        assert!(
            refused
                .to_string()
                .contains(&format!("{} MiB are needed", refused.needed_bytes.div_ceil(1 << 20)))
        );
        require(Path::new("/"), 0).unwrap();
    }
}
