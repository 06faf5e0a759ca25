//! Debian packages: fetched by apt, unpacked by dpkg-deb. Neither needs root, and nothing is installed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::space::{self, NoSpace};

/// The package that depends on the newest cloud kernel.
const CLOUD_KERNEL: &str = "linux-image-cloud-amd64";
/// Longest download.
pub const DOWNLOAD_SECONDS_MAX: u64 = 900;
/// Longest unpacking, and longest question to apt.
const LOCAL_SECONDS_MAX: u64 = 120;
/// What an unpacked kernel package takes, as a multiple of the package.
const UNPACKED_FACTOR: u64 = 8;
/// Most that is kept of what a program prints.
const OUTPUT_BYTES_MAX: u64 = 256 << 10;

/// Why a package cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A program is missing.
    #[error("`{program}` cannot be started ({source}); Debian packages need it: apt-get install {package}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it is in.
        package: &'static str,
        /// Why.
        source: io::Error,
    },
    /// apt knows no such package and none was fetched before.
    #[error("apt offers no {CLOUD_KERNEL} ({said}); run apt-get update, or give a kernel package or file")]
    NotOffered {
        /// Its last words.
        said: String,
    },
    /// The download failed.
    #[error("{file} cannot be downloaded: {said}")]
    Download {
        /// The package.
        file: String,
        /// The last words of apt.
        said: String,
    },
    /// Not a package, or damaged.
    #[error("`{}` is no Debian package, or a damaged one: {said}", path.display())]
    Damaged {
        /// The package.
        path: PathBuf,
        /// The last words of dpkg-deb.
        said: String,
    },
    /// A program went on for too long.
    #[error("`{program}` was stopped after {seconds} s")]
    TooLong {
        /// The program.
        program: &'static str,
        /// Its limit.
        seconds: u64,
    },
    /// The disk is too full.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The cache or the scratch directory.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// What was to be written or read.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
}

/// Unpacks a package into a directory that does not exist yet.
pub(super) fn unpack(package: &Path, directory: &Path) -> Result<(), PackageError> {
    let at = |path: &Path, source| PackageError::Io { path: path.to_owned(), source };
    let bytes = fs::metadata(package).map_err(|source| at(package, source))?.len();
    fs::create_dir(directory).map_err(|source| at(directory, source))?;
    space::require(directory, bytes.saturating_mul(UNPACKED_FACTOR))?;
    let mut command = Command::new("dpkg-deb");
    command.arg("-x").arg(package).arg(directory);
    let done = run("dpkg-deb", "dpkg", &mut command, LOCAL_SECONDS_MAX)?;
    if !done.status.success() {
        return Err(PackageError::Damaged { path: package.to_owned(), said: done.last_words() });
    }
    Ok(())
}

/// The newest cloud kernel package that apt offers, from the cache or the network; with notes.
pub(super) fn newest_cloud_kernel(cache: &Path) -> Result<(PathBuf, Vec<String>), PackageError> {
    let at = |path: &Path, source| PackageError::Io { path: path.to_owned(), source };
    fs::create_dir_all(cache).map_err(|source| at(cache, source))?;
    let offered = match offered_kernel()? {
        Ok(offered) => offered,
        Err(said) => {
            let kept = newest_kept(cache).ok_or(PackageError::NotOffered { said })?;
            let note = format!("apt offers no cloud kernel; {} was fetched earlier", kept.display());
            return Ok((kept, vec![note]));
        }
    };
    let kept = cache.join(&offered.file);
    if !kept.exists() {
        space::require(cache, offered.bytes)?;
        // Downloaded beside the cache and moved in: what is in the cache is complete.
        let download = tempfile::Builder::new()
            .prefix(".download-")
            .tempdir_in(cache)
            .map_err(|source| at(cache, source))?;
        let mut command = Command::new("apt-get");
        command.args(["-q", "-q", "-o", "Acquire::Retries=3", "-o", "Acquire::http::Timeout=30"]);
        // apt's own user may not write where the caller may.
        command.args(["-o", "APT::Sandbox::User=root", "download", &offered.package]);
        command.current_dir(download.path());
        let done = run("apt-get", "apt", &mut command, DOWNLOAD_SECONDS_MAX)?;
        let fetched = download.path().join(&offered.file);
        if !done.status.success() || !fetched.exists() {
            return Err(PackageError::Download { file: offered.file, said: done.last_words() });
        }
        File::open(&fetched).and_then(|file| file.sync_all()).map_err(|source| at(&fetched, source))?;
        fs::rename(&fetched, &kept).map_err(|source| at(&kept, source))?;
    }
    Ok((kept, Vec::new()))
}

struct Offered {
    package: String,
    file: String,
    bytes: u64,
}

/// What apt would download, or its last words.
fn offered_kernel() -> Result<Result<Offered, String>, PackageError> {
    let mut depends = Command::new("apt-cache");
    depends.args(["depends", "--important", CLOUD_KERNEL]);
    let depends = run("apt-cache", "apt", &mut depends, LOCAL_SECONDS_MAX)?;
    let Some(package) = kernel_dependency(&depends.output) else { return Ok(Err(depends.last_words())) };
    let mut uris = Command::new("apt-get");
    uris.args(["--print-uris", "download", &package]);
    let uris = run("apt-get", "apt", &mut uris, LOCAL_SECONDS_MAX)?;
    let Some((file, bytes)) = printed_uri(&uris.output) else { return Ok(Err(uris.last_words())) };
    Ok(Ok(Offered { package, file, bytes }))
}

/// The kernel package among the dependencies that apt-cache prints.
fn kernel_dependency(output: &str) -> Option<String> {
    let dependencies = output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    dependencies.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

/// File name and length from a line `'URI' FILE BYTES HASH`.
fn printed_uri(output: &str) -> Option<(String, u64)> {
    let line = output.lines().find(|line| line.starts_with('\''))?;
    let mut words = line.rsplit_once('\'')?.1.split_whitespace();
    let file = words.next().filter(|file| !file.contains('/') && file.ends_with(".deb"))?;
    Some((file.to_owned(), words.next()?.parse().ok()?))
}

/// The kernel package that was fetched last.
fn newest_kept(cache: &Path) -> Option<PathBuf> {
    let kept = fs::read_dir(cache).ok()?.flatten().filter(|file| {
        let name = file.file_name();
        let name = name.to_string_lossy();
        name.starts_with("linux-image-") && name.ends_with(".deb")
    });
    kept.max_by_key(|file| file.metadata().and_then(|metadata| metadata.modified()).ok())
        .map(|file| file.path())
}

/// What became of a program.
struct Finished {
    status: ExitStatus,
    output: String,
    errors: String,
}

impl Finished {
    fn last_words(&self) -> String {
        let said = self.errors.lines().rev().chain(self.output.lines().rev());
        let mut lines = said.map(str::trim).filter(|line| !line.is_empty());
        lines.next().map_or_else(|| self.status.to_string(), str::to_owned)
    }
}

fn run(
    program: &'static str,
    package: &'static str,
    command: &mut Command,
    seconds: u64,
) -> Result<Finished, PackageError> {
    let failed = |source| PackageError::Program { program, package, source };
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    // Read beside the wait: a program that fills a pipe that nobody reads never ends.
    let output = child.stdout.take().map(read_beside);
    let errors = child.stderr.take().map(read_beside);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() >= deadline {
            // It may have ended in this very moment; either way it is reaped.
            let _ = child.kill();
            child.wait().map_err(failed)?;
            return Err(PackageError::TooLong { program, seconds });
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let collect = |reader: Option<std::thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    Ok(Finished { status, output: collect(output), errors: collect(errors) })
}

fn read_beside(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What goes beyond the limit is read and dropped.
        let _ = Read::by_ref(&mut pipe).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_prints_is_understood() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(kernel_dependency(depends).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        assert_eq!(kernel_dependency("N: Unable to locate package\n"), None);
        let uri = "'http://deb.debian.org/x/linux-image_6.1.192-2_amd64.deb' linux-image_6.1.192-2_amd64.deb 29 SHA256:00\n";
        assert_eq!(printed_uri(uri).unwrap(), ("linux-image_6.1.192-2_amd64.deb".to_owned(), 29));
        assert_eq!(printed_uri("'http://x' ../../etc/x.deb 29 SHA256:00"), None);
    }

    #[test]
    fn what_is_no_package_is_refused_with_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.deb");
        fs::write(&file, "no package").unwrap();
        let refused = unpack(&file, &directory.path().join("out")).unwrap_err().to_string();
        assert!(refused.contains("x.deb` is no Debian package"), "{refused}");
    }

    #[test]
    fn a_program_that_does_not_end_is_stopped() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let stopped = run("sleep", "coreutils", &mut command, 0).map(|_| ()).unwrap_err();
        assert_eq!(stopped.to_string(), "`sleep` was stopped after 0 s");
    }
}
