//! How many files the process may have open: each client that the relay holds or leads on is one.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is asked for at most. Children inherit the limit, and some walk through all of it when they start.
pub const OPEN_FILES_MAX: u64 = 1 << 20;

/// Raises the soft limit of open files (`RLIMIT_NOFILE`) to the hard one, or to [`OPEN_FILES_MAX`] if that is less;
/// a higher one stays. Returns how many files may be open now.
///
/// # Errors
/// The system refused, which it has no reason to.
pub fn raise_open_files() -> io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let allowed = maximum.unwrap_or(u64::MAX).min(OPEN_FILES_MAX);
    match current {
        Some(soft) if soft < allowed => {
            setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum })?;
            Ok(allowed)
        }
        Some(soft) => Ok(soft),
        None => Ok(u64::MAX),
    }
}
