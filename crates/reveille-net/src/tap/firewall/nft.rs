//! Running `nft`.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use rustix::thread::{CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities};

use super::FirewallError;

/// Where programs for administrators are, which are not in everybody's `PATH`.
const PLACES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// The name that marks a namespace as taken: abstract, so it is the namespace's own and leaves with the process.
const MARK: &[u8] = b"reveille-tap";
/// Longest complaint that is passed on, in characters.
const COMPLAINT_CHARS_MAX: usize = 400;

/// The program.
pub(super) fn locate() -> Result<PathBuf, FirewallError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = PLACES.iter().map(PathBuf::from).chain(std::env::split_paths(&path));
    places.map(|place| place.join("nft")).find(|file| file.is_file()).ok_or(FirewallError::NoProgram)
}

/// Marks this namespace as that of one daemon's guests.
pub(super) fn mark() -> Result<OwnedFd, FirewallError> {
    let taken = || -> io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new_abstract_name(MARK)?)?;
        Ok(socket)
    };
    taken().map_err(|error| match error.kind() == io::ErrorKind::AddrInUse {
        true => FirewallError::InUse,
        false => FirewallError::Program(error),
    })
}

/// Carries a batch out: all of it or nothing.
pub(super) fn run(batch: &str) -> Result<(), FirewallError> {
    feed(batch, &["-f", "-"])
}

/// Looks whether the batch would be carried out.
pub(super) fn check(batch: &str) -> Result<(), FirewallError> {
    feed(batch, &["-c", "-f", "-"])
}

fn feed(batch: &str, arguments: &[&str]) -> Result<(), FirewallError> {
    let program = locate()?;
    // On a thread of its own: the right that the program gets is nobody else's.
    let output = std::thread::scope(|scope| {
        let fed = scope.spawn(|| {
            pass_right_on();
            talk(&program, arguments, batch)
        });
        fed.join().unwrap_or_else(|_| Err(io::Error::other("it was not waited for")))
    });
    let output = output.map_err(FirewallError::Program)?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    // A line of the batch and a line of marks below it follow each complaint.
    let lines = complaint.lines().filter(|line| line.contains("rror") || line.contains("not permitted"));
    let lines: Vec<&str> = lines.collect();
    let told = if lines.is_empty() { complaint.trim().to_owned() } else { lines.join("; ") };
    Err(FirewallError::Refused(told.chars().take(COMPLAINT_CHARS_MAX).collect()))
}

fn talk(program: &Path, arguments: &[impl AsRef<OsStr>], batch: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads to the end before it says anything, so neither waits for the other.
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    child.wait_with_output()
}

/// A daemon that is not root has CAP_NET_ADMIN for itself alone; this thread's children get it as well.
fn pass_right_on() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let right = CapabilitySet::NET_ADMIN;
    if let Ok(mut sets) = capabilities(None) {
        sets.inheritable |= right;
        // Without it the program says what it may not do.
        let _ = set_capabilities(None, sets);
        let _ = configure_capability_in_ambient_set(right, true);
    }
}
