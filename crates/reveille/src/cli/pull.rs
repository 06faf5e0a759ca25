//! Container images from registries. `skopeo` gets them: it knows registries, their logins, mirrors and certificates, as
//! they are set up on this host.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Longest name of an image that is taken.
const REFERENCE_BYTES_MAX: usize = 512;

/// Gets an image, such as `docker.io/library/nginx:1.27`, as an OCI archive in `directory`. With `shown` its progress is
/// seen on standard error.
///
/// # Errors
/// There is no `skopeo`, no such image, or no way to it.
pub fn pull(reference: &str, directory: &Path, shown: bool) -> anyhow::Result<PathBuf> {
    let name = reference.strip_prefix("docker://").unwrap_or(reference);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@[]".contains(c);
    if name.is_empty() || name.len() > REFERENCE_BYTES_MAX || !name.chars().all(is_plain) {
        bail!("`{reference}` is no image of a registry; such as docker.io/library/nginx:1.27");
    }
    let archive = directory.join("pulled.oci.tar");
    let mut command = Command::new("skopeo");
    command.args(["--override-os", "linux", "--override-arch", "amd64", "copy"]);
    // As Docker does: a registry of this host is one for trying things out.
    if is_loopback(name) {
        command.arg("--src-tls-verify=false");
    }
    command.arg(format!("docker://{name}")).arg(format!("oci-archive:{}", archive.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    if shown {
        command.stdout(std::io::stderr()).stderr(Stdio::inherit());
    } else {
        command.stderr(Stdio::piped());
    }
    let output = match command.spawn() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("`skopeo` is missing, which gets images from registries: apt-get install skopeo")
        }
        started => {
            started.and_then(std::process::Child::wait_with_output).context("`skopeo` cannot be run")?
        }
    };
    if output.status.success() {
        return Ok(archive);
    }
    let told = String::from_utf8_lossy(&output.stderr);
    let why = told.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("see above").trim();
    bail!("`{name}` cannot be had from its registry: {why}")
}

/// Whether the registry is on this host.
fn is_loopback(name: &str) -> bool {
    let registry = name.split('/').next().unwrap_or_default();
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registries_of_this_host_need_no_certificate() {
        for own in ["localhost/x", "localhost:5000/a/b:1", "127.0.0.1:5000/x", "[::1]:5000/x@sha256:00"] {
            assert!(is_loopback(own), "{own}");
        }
        for other in ["docker.io/library/nginx", "nginx", "localhost.example:5000/x", "10.0.0.1:5000/x"] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_before_anything_is_run() {
        for odd in ["", "docker://", "a b", "x;y", "oci-archive:/etc/passwd\n", "ä", &"x".repeat(600)] {
            let error = pull(odd, Path::new("/nonexistent"), false).unwrap_err().to_string();
            assert!(error.contains("no image of a registry"), "{odd}: {error}");
        }
    }
}
