//! What the QEMU binary at hand can do, asked of the binary itself.
//!
//! It is started without a machine and asked over its control protocol. Nothing follows from its version number:
//! distributions build QEMU with and without parts.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::net::UnixStream;

use super::argv::Program;
use super::process::question;
use super::qmp::{Qmp, QmpError};

/// Devices that every guest is given.
const DEVICES: [&str; 4] =
    ["virtio-net-device", "virtio-rng-device", "virtio-balloon-device", "virtio-blk-device"];
/// What is needed to hibernate without writing memory out, and to be told of it.
const MIGRATION_CAPABILITIES: [&str; 3] = ["x-ignore-shared", "pause-before-switchover", "events"];
/// Tells a QEMU that knows under TCG which pages a running guest writes to. The older ones forget some: they take the
/// marks of what was written and do not tell the vCPU to make new ones. Both came with the same release, 9.0.
const SINCE_TRACKING: &str = "mapped-ram";
/// How a package with a QEMU that does is called, for people.
const PACKAGE: &str = "install the package qemu-system-x86 (7.2 or later)";

/// Why the driver cannot be opened; each with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such program.
    #[error("QEMU was not found as `{binary}`: {PACKAGE}, or set the path of the binary")]
    NotFound {
        /// The name or path that was looked for.
        binary: String,
    },
    /// It cannot be run, or does not speak the protocol.
    #[error("`{}` is not a working QEMU: {detail}", binary.display())]
    NotWorking {
        /// The binary.
        binary: PathBuf,
        /// What happened.
        detail: String,
    },
    /// It lacks something.
    #[error("`{}` (version {version}) has no {}: {PACKAGE}", binary.display(), missing.join(", no "))]
    Lacks {
        /// The binary.
        binary: PathBuf,
        /// Its version.
        version: String,
        /// What is missing.
        missing: Vec<String>,
    },
    /// KVM was asked for and is not there.
    #[error("the accelerator is set to `kvm`, but {0}; set it to `auto` or `tcg`")]
    NoKvm(String),
    /// The state directory cannot be used.
    #[error("the directory `{}` cannot be used: {source}", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A QEMU that can do all that is needed.
#[derive(Debug, Clone)]
pub struct Binary {
    /// How it is called.
    pub program: Program,
    /// Its version, for people.
    pub version: String,
    /// Under TCG, it knows of every page that a guest writes to while its memory is transferred.
    pub tracks_writes: bool,
}

/// Looks `binary` up (in `PATH` if it is a bare name) and asks it what it can do.
///
/// # Errors
/// As [`OpenError`] says.
pub async fn examine(binary: &Path, data_dir: Option<&Path>) -> Result<Binary, OpenError> {
    let path = locate(binary).ok_or_else(|| OpenError::NotFound { binary: binary.display().to_string() })?;
    let mut program =
        Program { binary: path.clone(), data_dir: data_dir.map(Path::to_owned), sandbox: false };
    let not_working = |detail: String| OpenError::NotWorking { binary: path.clone(), detail };

    let (ours, theirs) =
        std::os::unix::net::UnixStream::pair().map_err(|error| not_working(error.to_string()))?;
    let input = OwnedFd::from(theirs);
    let output = input.try_clone().map_err(|error| not_working(error.to_string()))?;
    let mut argv = program.argv();
    argv.option("-M", "none").option("-qmp", "stdio");
    let mut child = question(&argv)
        .stdin(Stdio::from(input))
        .stdout(Stdio::from(output))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| not_working(error.to_string()))?;
    let asked = ask(ours).await;
    let answer = match asked {
        Ok(answer) => answer,
        Err(error) => {
            let said = complaint(child).await;
            return Err(not_working(if said.is_empty() { error.to_string() } else { said }));
        }
    };
    // It was told to quit; waiting for it leaves no zombie.
    let _ = child.kill().await;
    program.sandbox = answer.sandbox;
    if answer.missing.is_empty() {
        let Answer { version, tracks_writes, .. } = answer;
        Ok(Binary { program, version, tracks_writes })
    } else {
        Err(OpenError::Lacks { binary: path, version: answer.version, missing: answer.missing })
    }
}

struct Answer {
    version: String,
    sandbox: bool,
    tracks_writes: bool,
    missing: Vec<String>,
}

async fn ask(socket: std::os::unix::net::UnixStream) -> Result<Answer, QmpError> {
    socket.set_nonblocking(true).map_err(QmpError::Connect)?;
    let qmp = Qmp::negotiate(UnixStream::from_std(socket).map_err(QmpError::Connect)?).await?;
    let mut missing = Vec::new();

    let machines = qmp.command("query-machines", json!({})).await?;
    if !has(&machines, "name", "microvm") {
        missing.push("machine `microvm`".to_owned());
    }
    let capabilities = qmp.command("query-migrate-capabilities", json!({})).await?;
    for name in MIGRATION_CAPABILITIES {
        if !has(&capabilities, "capability", name) {
            missing.push(format!("migration capability `{name}`"));
        }
    }
    let tracks_writes = has(&capabilities, "capability", SINCE_TRACKING);
    for name in DEVICES {
        if refused(qmp.command("device-list-properties", json!({ "typename": name })).await)? {
            missing.push(format!("device `{name}`"));
        }
    }
    let schema = qmp.command("query-qmp-schema", json!({})).await?;
    if !knows_netdev(&schema, "stream") {
        missing.push("network over a socket (`-netdev stream`)".to_owned());
    }
    // The schema has it also where it was not built in.
    if refused(qmp.command("netdev_add", json!({ "type": "user", "id": "n0" })).await)? {
        missing.push("address translation (`-netdev user`)".to_owned());
    }
    let sandbox = !refused(qmp.command("query-command-line-options", json!({ "option": "sandbox" })).await)?;
    // The connection's end is not waited for: the process is ended either way.
    let _ = qmp.command("quit", json!({})).await;
    Ok(Answer { version: qmp.version.clone(), sandbox, tracks_writes, missing })
}

fn has(list: &Value, key: &str, name: &str) -> bool {
    list.as_array()
        .is_some_and(|all| all.iter().any(|one| one.get(key).and_then(Value::as_str) == Some(name)))
}

/// Whether the schema's enumeration of network backends, told by one that was always there, has `name`.
fn knows_netdev(schema: &Value, name: &str) -> bool {
    let values = |one: &Value| one.get("values").and_then(Value::as_array).cloned().unwrap_or_default();
    let enumerations = schema.as_array().into_iter().flatten().map(values);
    enumerations
        .filter(|values| values.contains(&json!("hubport")))
        .any(|values| values.contains(&json!(name)))
}

fn refused(answer: Result<Value, QmpError>) -> Result<bool, QmpError> {
    match answer {
        Ok(_) => Ok(false),
        Err(QmpError::Refused { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The last line that a QEMU which ended wrote on its standard error.
async fn complaint(mut child: tokio::process::Child) -> String {
    // One that still runs is not worth waiting for; what it wrote so far is read.
    let _ = child.start_kill();
    let Ok(output) = child.wait_with_output().await else { return String::new() };
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// The absolute path of a program.
/// The file that `binary` stands for: looked up in `PATH` if it is a bare name.
pub fn locate(binary: &Path) -> Option<PathBuf> {
    if binary.components().count() > 1 {
        return std::path::absolute(binary).ok().filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    let found =
        std::env::split_paths(&path).map(|dir| dir.join(binary)).find(|candidate| candidate.is_file())?;
    std::path::absolute(found).ok()
}
