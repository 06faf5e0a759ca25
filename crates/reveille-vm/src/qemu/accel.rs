//! How guest code is run here: by the CPU (KVM) or by translation (TCG).
//!
//! A `/dev/kvm` that opens proves nothing: on some hosts an ordinary guest hangs without an error. So a small
//! guest is run under KVM to a known point in user space, once per host, kernel and QEMU, and the verdict kept.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use reveille_core::model::Resources;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::argv::{Guest, Program};
use super::layout::{last_complaint, replace_durably};
use super::process::question;
use crate::image::USER_SPACE_REACHED;

/// Longest run of the probe's guest: ten times what a slow host needs under KVM.
const PROBE_MS_MAX: u64 = 15_000;
/// How often its console is looked at.
const PROBE_LOOK: Duration = Duration::from_millis(20);
/// Memory of the probe's guest.
const PROBE_MEMORY_MIB: u32 = 128;
/// Largest console output of the probe's guest that is looked through.
const PROBE_CONSOLE_BYTES_MAX: usize = 256 << 10;
/// The device of KVM.
const DEVICE: &str = "/dev/kvm";

/// What runs guest code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// The CPU.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// `kvm` or `tcg`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// What a process must be able to open for it.
    pub fn device(self) -> Option<&'static Path> {
        match self {
            Self::Kvm => Some(Path::new(DEVICE)),
            Self::Tcg => None,
        }
    }

    /// The CPU model with the most features.
    pub const fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }

    /// What a version must find again to be restored: under KVM the guest has seen the host's CPU.
    pub fn needs(self) -> String {
        match self {
            Self::Kvm => format!("kvm on {}", cpu_model()),
            Self::Tcg => "tcg".to_owned(),
        }
    }
}

/// Which accelerator to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum AccelChoice {
    /// KVM where a guest was seen to run under it, TCG elsewhere.
    #[default]
    Auto,
    /// KVM, untested.
    Kvm,
    /// TCG.
    Tcg,
}

/// Kernel and initial RAM file system of any image, for the probe.
#[derive(Debug, Clone)]
pub struct ProbeGuest {
    /// The kernel.
    pub kernel: PathBuf,
    /// An initial RAM file system whose init prints [`USER_SPACE_REACHED`].
    pub initrd: PathBuf,
}

/// Whether KVM works on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kvm")]
pub enum KvmVerdict {
    /// A guest reached user space.
    Works {
        /// How long it took.
        ms: u64,
    },
    /// KVM is there, but a guest did not reach user space.
    Fails {
        /// What was seen.
        detail: String,
    },
    /// KVM is not there or may not be used.
    Absent {
        /// Why, with the remedy.
        detail: String,
    },
    /// Nobody has tried.
    Unprobed,
}

impl std::fmt::Display for KvmVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Works { ms } => write!(f, "KVM works: a guest reached user space in {ms} ms"),
            Self::Fails { detail } => write!(f, "KVM is there but does not work: {detail}"),
            Self::Absent { detail } => write!(f, "no KVM: {detail}"),
            Self::Unprobed => f.write_str("KVM is there but no guest was tried yet: build an image first"),
        }
    }
}

/// What a verdict holds for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Host {
    kernel: String,
    cpu: String,
    qemu: String,
    binary_bytes: u64,
    binary_mtime_s: i64,
}

impl Host {
    fn of(program: &Program, qemu_version: &str) -> io::Result<Self> {
        let binary = fs::metadata(&program.binary)?;
        Ok(Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: cpu_model(),
            qemu: qemu_version.to_owned(),
            binary_bytes: binary.len(),
            binary_mtime_s: binary.mtime(),
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    host: Host,
    verdict: KvmVerdict,
}

/// Whether KVM can be opened at all; otherwise why not.
pub fn absent() -> Option<KvmVerdict> {
    let detail = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => return None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!(
            "{DEVICE} is not there; switch virtualization on in the firmware, or nested virtualization on in the outer host"
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("{DEVICE} may not be opened; add this user to the group `kvm`")
        }
        Err(error) => format!("{DEVICE} cannot be opened: {error}"),
    };
    Some(KvmVerdict::Absent { detail })
}

/// The verdict kept in `file` for this host, kernel and QEMU.
pub fn remembered(file: &Path, program: &Program, qemu_version: &str) -> Option<KvmVerdict> {
    let kept: Remembered = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (kept.host == Host::of(program, qemu_version).ok()?).then_some(kept.verdict)
}

/// Keeps a verdict in `file`.
pub fn remember(file: &Path, program: &Program, qemu_version: &str, verdict: &KvmVerdict) -> io::Result<()> {
    let kept = Remembered { host: Host::of(program, qemu_version)?, verdict: verdict.clone() };
    replace_durably(file, &serde_json::to_vec_pretty(&kept)?)
}

/// Runs a guest under KVM until it reaches user space, fails, or [`PROBE_MS_MAX`] is over. `scratch` is a
/// directory for its console.
///
/// # Errors
/// Files cannot be written or QEMU cannot be started: no verdict.
pub async fn probe(program: &Program, guest: &ProbeGuest, scratch: &Path) -> io::Result<KvmVerdict> {
    if let Some(absent) = absent() {
        return Ok(absent);
    }
    let dir = tempfile::tempdir_in(scratch)?;
    let (serial, log) = (dir.path().join("serial.log"), dir.path().join("qemu.log"));
    let mut argv = program.argv();
    Guest {
        accel: Accel::Kvm,
        resources: Resources { cpus: 1, memory_mib: PROBE_MEMORY_MIB, ..Resources::default() },
        kernel: &guest.kernel,
        initrd: &guest.initrd,
        memory: None,
        serial: &serial,
        hostname: "probe",
        tap: None,
    }
    .add_to(&mut argv);
    let began = Instant::now();
    let mut child =
        question(&argv).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
    let verdict = loop {
        if reached_user_space(&serial) {
            break KvmVerdict::Works { ms: elapsed_ms(began) };
        }
        if let Some(status) = child.try_wait()? {
            let said = last_complaint(&log).unwrap_or_else(|| "it said nothing".to_owned());
            break KvmVerdict::Fails { detail: format!("QEMU ended with {status}: {said}") };
        }
        if elapsed_ms(began) >= PROBE_MS_MAX {
            let detail = format!(
                "a guest did not reach user space within {} s; guest code is translated instead (TCG)",
                PROBE_MS_MAX / 1_000
            );
            break KvmVerdict::Fails { detail };
        }
        sleep(PROBE_LOOK).await;
    };
    // It may have ended by itself; waiting for it leaves no zombie.
    let _ = child.kill().await;
    Ok(verdict)
}

fn reached_user_space(serial: &Path) -> bool {
    fs::read(serial).is_ok_and(|console| {
        let console = console.get(..PROBE_CONSOLE_BYTES_MAX).unwrap_or(&console);
        String::from_utf8_lossy(console).contains(USER_SPACE_REACHED)
    })
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn cpu_model() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpus.lines()
        .find_map(|line| {
            line.strip_prefix("model name")?.split_once(':').map(|(_, model)| model.trim().to_owned())
        })
        .unwrap_or_else(|| "an unknown CPU".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_for_one_qemu_alone() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("accel.json");
        let binary = temp.path().join("qemu");
        fs::write(&binary, "one").unwrap();
        let program = Program { binary: binary.clone(), data_dir: None, sandbox: true };
        assert_eq!(remembered(&file, &program, "7.2.22"), None);
        let verdict = KvmVerdict::Fails { detail: "hangs".to_owned() };
        remember(&file, &program, "7.2.22", &verdict).unwrap();
        assert_eq!(remembered(&file, &program, "7.2.22"), Some(verdict));
        assert_eq!(remembered(&file, &program, "10.0.2"), None);
        fs::write(&binary, "another").unwrap();
        assert_eq!(remembered(&file, &program, "7.2.22"), None);
        fs::write(&file, "{").unwrap();
        assert_eq!(remembered(&file, &program, "7.2.22"), None);
    }
}
