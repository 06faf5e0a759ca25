//! One QEMU process: started so that it outlives the daemon, found again by the lock that it holds, watched and
//! ended through a pidfd, so that a process number that was used again is never hit.
//!
//! The lock file is the process's standard input. The daemon locks it, the child inherits the open file and with
//! it the lock, the daemon closes its own: from before the child exists until it is gone, the lock is held, and
//! nobody has to write down a process number.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::argv::Argv;
use super::layout::private;
use crate::driver::DiskIo;

/// An exclusive lock on an instance, taken by this process and not yet given to a child.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock at `path`; `None` if a process holds it.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = private().read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a process holds the lock at `path`. A file that is not there is held by nobody.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        if !path.try_exists()? {
            return Ok(false);
        }
        Ok(match Self::try_take(path)? {
            // Explicitly: a child that is just being started elsewhere may hold a copy for a moment.
            Some(lock) => rustix::fs::flock(&lock.0, FlockOperation::Unlock).map(|()| false)?,
            None => true,
        })
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It was started by an earlier daemon, so its status went elsewhere.
    Unseen,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => match Signal::from_named_raw(*signal) {
                Some(Signal::KILL) => f.write_str("killed (SIGKILL)"),
                Some(Signal::BUS) => {
                    f.write_str("killed (SIGBUS: the disk has no room for the guest's memory)")
                }
                Some(Signal::SYS) => f.write_str("killed (SIGSYS: the sandbox refused a system call)"),
                Some(Signal::TERM) => f.write_str("killed (SIGTERM)"),
                Some(Signal::SEGV) => f.write_str("crashed (SIGSEGV)"),
                Some(Signal::ABORT) => f.write_str("crashed (SIGABRT)"),
                Some(_) | None => write!(f, "killed by signal {signal}"),
            },
            Self::Unseen => f.write_str("exit status unknown, an earlier daemon had started it"),
        }
    }
}

/// A process under watch. Dropping this ends the watch, not the process.
#[derive(Debug)]
pub struct Process {
    /// Its number, for people.
    pub pid: i32,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    ended: watch::Receiver<Option<Ended>>,
    watch: JoinHandle<()>,
}

/// From util-linux, which every Debian system has.
pub const SETPRIV: &str = "/usr/bin/setpriv";

/// The command of a process that only answers a question: the kernel ends it with the thread that asks, also when
/// that is killed. Without `setpriv` it is ended only where this process ends in order.
pub fn question(argv: &Argv) -> tokio::process::Command {
    let mut command = if Path::new(SETPRIV).exists() {
        let mut command = tokio::process::Command::new(SETPRIV);
        command.args(["--pdeathsig", "KILL", "--"]).arg(&argv.program);
        command
    } else {
        tokio::process::Command::new(&argv.program)
    };
    command.args(&argv.arguments).process_group(0).kill_on_drop(true);
    command
}

impl Process {
    /// Starts QEMU in `dir`, which holds `lock` until its end and writes its complaints to `log`. A tap device takes
    /// the place of its standard output.
    pub fn spawn(argv: &Argv, dir: &Path, lock: Lock, log: &Path, tap: Option<OwnedFd>) -> io::Result<Self> {
        let stderr = OpenOptions::new().append(true).open(log)?;
        let stdout = match tap {
            Some(tap) => Stdio::from(tap),
            None => Stdio::from(stderr.try_clone()?),
        };
        let child = Command::new(&argv.program)
            .args(&argv.arguments)
            .current_dir(dir)
            .stdin(Stdio::from(lock.0))
            .stdout(stdout)
            .stderr(stderr)
            // A terminal's Ctrl-C is for the daemon alone.
            .process_group(0)
            .spawn()?;
        // The child is not waited for before the pidfd is, so its number is still its own.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        Self::watched(pid)
    }

    /// Takes the process `pid` over if it is the one that holds the lock at `lock`; `None` if it is not.
    pub fn adopt(pid: i32, lock: &Path) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
        let process = match Self::watched(pid) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Ok(None);
            }
            watched => watched?,
        };
        // Only now that the pidfd pins it down.
        Ok(holds(pid.as_raw_nonzero().get(), lock).then_some(process))
    }

    /// The process that holds the lock at `lock`, looked for among all processes of the host.
    pub fn holder(lock: &Path) -> io::Result<Option<Self>> {
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if holds(pid, lock)
                && let Some(process) = Self::adopt(pid, lock)?
            {
                return Ok(Some(process));
            }
        }
        Ok(None)
    }

    fn watched(pid: Pid) -> io::Result<Self> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe for types that may close themselves; OwnedFd does not"
        )]
        let pidfd = Arc::new(AsyncFd::with_interest(pidfd, Interest::READABLE)?);
        let (tell, ended) = watch::channel(None);
        let watched = Arc::clone(&pidfd);
        let watch = tokio::spawn(async move {
            // A pidfd becomes readable when its process has ended; an error here would mean that it is no pidfd.
            let _ = watched.readable().await;
            tell.send_replace(Some(reap(&watched)));
        });
        Ok(Self { pid: pid.as_raw_nonzero().get(), pidfd, ended, watch })
    }

    /// Ends the process at once; one that has ended is left alone.
    pub fn kill(&self) {
        // The only other outcomes are that it has ended already or belongs to another user.
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Returns when it has ended.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        loop {
            if let Some(how) = ended.borrow_and_update().clone() {
                return how;
            }
            if ended.changed().await.is_err() {
                return self.ended().unwrap_or(Ended::Unseen);
            }
        }
    }

    /// As [`Process::wait`], for at most `limit_ms`; `None` if it has not ended by then.
    pub async fn wait_for(&self, limit_ms: u64) -> Option<Ended> {
        timeout(Duration::from_millis(limit_ms), self.wait()).await.ok()
    }

    /// CPU time used so far, in milliseconds; `None` once it has ended.
    pub fn cpu_ms(&self) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // Read while the process was surely still this one: its number is used again only after its end.
        self.ended().is_none().then(|| cpu_ms(&stat)).flatten()
    }

    /// Its proportional share of memory (proc_pid_smaps(5), `Pss`), in KiB.
    pub fn held_kib(&self) -> Option<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).ok()?;
        self.ended().is_none().then(|| pss_kib(&rollup)).flatten()
    }

    /// What it has read from disks and written to them (proc_pid_io(5)).
    pub fn disk_io(&self) -> Option<DiskIo> {
        let io = fs::read_to_string(format!("/proc/{}/io", self.pid)).ok()?;
        self.ended().is_none().then(|| disk_io(&io)).flatten()
    }

    /// Whether one of its threads can run and does not, or waits in the kernel for what cannot be interrupted (proc(5),
    /// field 3): a disk, mostly.
    pub fn is_held_up(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return false };
        threads.flatten().any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
            matches!(state, Some("R" | "D"))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// User and system time in a line of the form of `/proc/PID/stat` (proc(5), fields 14 and 15).
fn cpu_ms(stat: &str) -> Option<u64> {
    /// The kernel's unit towards user space is 10 ms on every architecture that QEMU is packaged for.
    const TICK_MS: u64 = 10;
    // The second field is the program's name in parentheses and may have anything in it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * TICK_MS)
}

/// The lines `read_bytes:` and `write_bytes:` of a text of the form of `/proc/PID/io`.
fn disk_io(text: &str) -> Option<DiskIo> {
    let bytes = |key: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
    };
    Some(DiskIo { read_bytes: bytes("read_bytes:")?, written_bytes: bytes("write_bytes:")? })
}

/// The line `Pss:` of a text of the form of `/proc/PID/smaps_rollup`.
fn pss_kib(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Whether the standard input of process `pid` is the file at `lock`.
fn holds(pid: i32, lock: &Path) -> bool {
    let (Ok(input), Ok(lock)) = (fs::metadata(format!("/proc/{pid}/fd/0")), fs::metadata(lock)) else {
        return false;
    };
    (input.dev(), input.ino()) == (lock.dev(), lock.ino())
}

/// Collects the status of an ended child; of another's child there is none to collect.
fn reap(pidfd: &AsyncFd<OwnedFd>) -> Ended {
    match rustix::process::waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(status), _) => Ended::Exit(status),
            (None, Some(signal)) => Ended::Signal(signal),
            (None, None) => Ended::Unseen,
        },
        Ok(None) | Err(_) => Ended::Unseen,
    }
}
