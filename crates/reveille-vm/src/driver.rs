//! What runs instances, as the control loop sees it.
//!
//! A driver is asked for its [`Capabilities`] and never assumed to be QEMU. It keeps the processes and control
//! sockets of its instances to itself; the control loop names instances by identity. Calls for one instance are
//! carried out one after another, except [`Driver::kill`], which ends whatever goes on.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use reveille_core::model::{
    Cause, DomainName, Egress, Found, InstanceId, Remains, Resources, SnapshotVersion, Stage, Timestamp,
};
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// What a driver can do on this host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Capabilities {
    /// `qemu`.
    pub driver: &'static str,
    /// Version of the virtual machine monitor, for people; nothing is decided by it.
    pub version: String,
    /// How guest code is run: `kvm` or `tcg`.
    pub accelerator: String,
    /// Memory, registers and devices can be captured and restored.
    pub hibernate: bool,
    /// A process can wait with a version mapped (rung Armed).
    pub arm: bool,
    /// Process sandboxing is in force.
    pub sandbox: bool,
}

/// What an instance's network card is plugged into.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Link {
    /// A stream of Ethernet frames that the daemon reads and writes: see [`Driver::network`].
    #[default]
    Stream,
    /// A tap device of the host.
    Tap(Tap),
}

/// A guest's end of a tap device, and what the guest calls itself there.
#[derive(Clone)]
pub struct Tap {
    /// Hardware address of the guest.
    pub mac: [u8; 6],
    /// Its address.
    pub address: Ipv4Addr,
    /// Whom it sends everything to.
    pub gateway: Ipv4Addr,
    /// Its IPv6 address and gateway.
    pub v6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// Whom it asks for names, from its boot on.
    pub nameserver: Option<IpAddr>,
    /// The device itself.
    pub queue: Arc<dyn TapQueue>,
}

impl Tap {
    /// The hardware address as it is written.
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// Whence a driver has the open tap device of an instance. Only one process may have it at a time.
pub trait TapQueue: Send + Sync {
    /// The open device, for a process that is about to be started; the one before it is gone.
    ///
    /// # Errors
    /// The device cannot be had.
    fn open(&self) -> io::Result<OwnedFd>;
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap")
            .field("mac", &self.mac_text())
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Tap {
    fn eq(&self, other: &Self) -> bool {
        (self.mac, self.address, self.gateway, self.v6) == (other.mac, other.address, other.gateway, other.v6)
    }
}

impl Eq for Tap {}

/// Everything that is needed to start an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The instance.
    pub instance: InstanceId,
    /// Its service; becomes the guest's host name.
    pub service: DomainName,
    /// Content address of its image.
    pub image: String,
    /// Kernel of the image.
    pub kernel: PathBuf,
    /// Initial RAM file system of the image.
    pub initrd: PathBuf,
    /// The image's disk, if it has one: the instance writes to layers of its own over it.
    pub disk: Option<Disk>,
    /// What the instance is given.
    pub resources: Resources,
    /// What the guest may reach by itself.
    pub egress: Egress,
    /// What its network card is plugged into.
    pub link: Link,
}

/// The disk of an image, which nobody writes to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Disk {
    /// The file.
    pub base: PathBuf,
    /// How to read it.
    pub format: DiskFormat,
    /// The guest's bytes.
    pub bytes: u64,
    /// Content address of the file: layers are good for this base alone.
    pub address: String,
}

/// How the bytes of a disk lie in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// One after another.
    Raw,
    /// As QEMU's copy-on-write format has them.
    Qcow2,
}

impl DiskFormat {
    /// As QEMU calls it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl Launch {
    /// What the guest calls itself: the first label of the service's name.
    pub fn hostname(&self) -> &str {
        self.service.labels().next().and_then(|label| str::from_utf8(label).ok()).unwrap_or("guest")
    }

    /// A hardware address that no other service has: of a clone, which would otherwise have its source's.
    pub fn own_mac(&self) -> String {
        match &self.link {
            Link::Tap(tap) => tap.mac_text(),
            Link::Stream => {
                let hash = blake3::hash(self.service.to_string().to_ascii_lowercase().as_bytes());
                let own = hash.as_bytes().iter().take(4);
                own.fold("52:57".to_owned(), |mac, byte| format!("{mac}:{byte:02x}"))
            }
        }
    }
}

/// What is known of the program in a guest that does as it is asked (the QEMU guest agent).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentState {
    /// The image has none, or it does not run.
    None,
    /// It is there and does not answer.
    Silent,
    /// It answers.
    Answers {
        /// Its version, for people.
        version: String,
    },
}

/// What came of telling a restored guest what it cannot know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refreshed {
    /// There is nobody to tell: clock and random generator are as they were.
    NoAgent,
    /// The clock is right, the random generator has fresh bytes, and the guest's own after-wake program has ended well.
    Done,
    /// Not all of it, or not in time: one sentence.
    Missed(String),
}

/// What a guest says when it is to sleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeforeSleep {
    /// It may be put to sleep.
    Ready {
        /// When it wants to be woken, as it said it: `+SECONDS` or a time of RFC 3339.
        wake_at: Option<String>,
    },
    /// Not now.
    Veto {
        /// Why, in its words.
        reason: String,
    },
}

/// A program that is run in a guest.
#[derive(Debug, Clone, Copy)]
pub struct GuestProgram<'a> {
    /// Absolute path.
    pub path: &'a str,
    /// Its arguments: everybody in the guest can read them.
    pub arguments: &'a [&'a str],
    /// What it reads on its standard input.
    pub input: &'a [u8],
}

/// How a program in a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramEnded {
    /// Its exit status; `None` when a signal ended it.
    pub code: Option<i64>,
    /// What it printed, as far as that is kept.
    pub output: Vec<u8>,
}

/// Why nothing is known of a program in a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// There is nobody in the guest who would run it, or not yet.
    #[error("the guest has no agent; add qemu-guest-agent to its image")]
    NoAgent,
    /// It was refused, or not heard of any more: one sentence. It may still run.
    #[error("{0}")]
    Failed(String),
}

/// Why a version was not cloned.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// There is none that could be.
    #[error("there is no version on this host to clone; put the service to sleep first")]
    NoVersion,
    /// The guest cannot be told that it is another.
    #[error(
        "its guest has no agent, so a clone would have the same host name, hardware address and random numbers;          add qemu-guest-agent to its image, or allow identical clones"
    )]
    NoAgent,
    /// Its disk would be written to by both.
    #[error(
        "the service has a disk, and services with disks cannot be cloned yet; make another service of its image"
    )]
    HasDisk,
    /// The clone has files already.
    #[error("the instance {0} is in use")]
    InUse(InstanceId),
    /// The disk.
    #[error("the version cannot be cloned: {0}")]
    Io(#[from] io::Error),
    /// The driver cannot clone.
    #[error("the driver {0} cannot clone")]
    Unsupported(&'static str),
}

/// How a version's memory is mapped by the process that is to run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// The guest writes to the version's own file: the cheapest to sleep from again.
    Consume,
    /// The guest's writes stay its own, and the files are as they were for whoever reads them.
    Beside,
}

/// The files of a version, opened: they stay what they are whatever becomes of their names.
#[derive(Debug)]
pub struct VersionFiles {
    /// What it is.
    pub version: SnapshotVersion,
    /// What it needs.
    pub needs: VersionNeeds,
    /// Each file, by the name under which it has to come back.
    pub files: Vec<(String, File)>,
}

/// What a version needs to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionNeeds {
    /// What the guest was given.
    pub resources: Resources,
    /// Version of the monitor.
    pub vmm: String,
    /// Machine type.
    pub machine: String,
    /// How its code was run, and on which kind of CPU.
    pub accelerator: String,
}

/// What a process has moved between itself and disks, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskIo {
    /// Read from disks; what came from the page cache is not counted.
    pub read_bytes: u64,
    /// Written to disks, or about to be.
    pub written_bytes: u64,
}

/// Told when a stage of a start is over, in order.
pub type OnStage<'a> = &'a (dyn Fn(Stage) + Send + Sync);

/// Raised by the control loop when a client arrived during a capture.
#[derive(Debug, Default)]
pub struct Abandon {
    raised: AtomicBool,
    told: Notify,
}

impl Abandon {
    /// Asks for the capture to be given up.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    /// Whether that was asked.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Returns once that was asked.
    pub async fn raised(&self) {
        loop {
            // Listening before looking, so that no call in between is missed.
            let told = self.told.notified();
            if self.is_raised() {
                return;
            }
            told.await;
        }
    }
}

/// How a capture ended without an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Capture {
    /// The version is published and the process has ended.
    Published(SnapshotVersion),
    /// It was given up for a client: no version exists, the guest runs.
    Abandoned,
}

/// Why a driver did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The start or the running instance is lost; what is left of it is to be killed.
    #[error("{0}")]
    Lost(Cause),
    /// The capture failed and the guest runs on.
    #[error("{0}")]
    RunsOn(Cause),
    /// The driver has no process for the instance.
    #[error("{0} has no process")]
    NoProcess(InstanceId),
    /// The driver cannot do this at all.
    #[error("the driver {driver} cannot {verb}")]
    Unsupported {
        /// The driver.
        driver: &'static str,
        /// What was asked.
        verb: &'static str,
    },
}

/// What runs instances.
#[async_trait]
pub trait Driver: Send + Sync {
    /// What it can do here.
    fn capabilities(&self) -> &Capabilities;

    /// What there is of the instance after a restart of the daemon. A process that is found is taken over: later
    /// calls use it. Nothing is ended.
    ///
    /// `asleep`: whether by its row it sleeps. Then a guest that runs beside an intact version was only being warmed: no
    /// client has had anything of it, and it is [`Found::Untouched`]. Otherwise that version is none any more.
    async fn find(&self, launch: &Launch, asleep: bool) -> Found;

    /// Instances of which something is on this host (a process or a directory), for finding orphans.
    async fn inventory(&self) -> Vec<InstanceId>;

    /// Starts a guest from its image; returns when the vCPUs run. A version that is there is set aside.
    async fn boot(&self, launch: &Launch, on_stage: OnStage<'_>) -> Result<(), DriverError>;

    /// Brings the process up with the version mapped and its device state loaded; the vCPUs do not run and the version stays
    /// intact.
    async fn arm(&self, launch: &Launch, mapping: Mapping) -> Result<(), DriverError>;

    /// Restores the version and lets the vCPUs run, in the armed or paused process if there is one. The version ceases
    /// to be one, durably, before the vCPUs run.
    async fn restore(
        &self,
        launch: &Launch,
        mapping: Mapping,
        on_stage: OnStage<'_>,
    ) -> Result<(), DriverError>;

    /// Restores beside the version and lets the vCPUs run without any client, to be paused when the guest is warm. The
    /// version stays one: what the guest does meanwhile may be lost.
    async fn warm(&self, launch: &Launch, on_stage: OnStage<'_>) -> Result<(), DriverError>;

    /// Stops the vCPUs of an instance that was warmed (rung Paused).
    async fn pause(&self, instance: InstanceId) -> Result<(), DriverError>;

    /// Takes version `number` of a running guest, which stands still for some milliseconds only.
    async fn checkpoint(
        &self,
        launch: &Launch,
        number: u64,
        now: Timestamp,
    ) -> Result<VersionFiles, DriverError>;

    /// The intact version of an instance, to be sent to the object store.
    async fn version_files(&self, instance: InstanceId) -> Result<VersionFiles, DriverError>;

    /// Where a version is to be fetched to: a directory that is not there.
    async fn fetch_dir(&self, instance: InstanceId) -> Result<PathBuf, DriverError>;

    /// Makes the version that was fetched the instance's, as version `number`: in the object store a version may have
    /// got another number than it was taken under.
    async fn install(&self, launch: &Launch, number: u64) -> Result<SnapshotVersion, DriverError>;

    /// Removes the version of an instance without a process; the object store has it.
    async fn evict(&self, instance: InstanceId) -> Result<(), DriverError>;

    /// Stops the guest, publishes version `number`, ends the process. While `abandon` is raised before the
    /// process is ended, the guest is let run again instead.
    async fn capture(
        &self,
        launch: &Launch,
        number: u64,
        now: Timestamp,
        abandon: &Abandon,
    ) -> Result<Capture, DriverError>;

    /// Lets a guest run that stands still in the middle of a capture (after [`Found::Stopped`]).
    async fn resume(&self, launch: &Launch) -> Result<(), DriverError>;

    /// Ends the process of an armed, or otherwise untouched, instance; the version stays intact.
    async fn disarm(&self, instance: InstanceId) -> Result<(), DriverError>;

    /// Ends whatever process there is, at once, and returns the version that is still intact, if it is to remain.
    async fn kill(
        &self,
        instance: InstanceId,
        remains: Remains,
    ) -> Result<Option<SnapshotVersion>, DriverError>;

    /// A heartbeat: whether the monitor answers its control socket and its guest is not stopped or crashed.
    async fn beat(&self, instance: InstanceId, timeout_ms: u64) -> Result<(), DriverError>;

    /// Returns when the instance's process has ended, with what is known of the reason.
    async fn died(&self, instance: InstanceId) -> String;

    /// What is known of the guest's agent.
    async fn agent(&self, instance: InstanceId) -> AgentState {
        let _ = instance;
        AgentState::None
    }

    /// Tells a guest that was restored what it cannot know: the time, and random bytes of its own. For `limit` at most.
    async fn refresh(&self, instance: InstanceId, limit: Duration) -> Refreshed {
        let _ = (instance, limit);
        Refreshed::NoAgent
    }

    /// Runs a program in the guest to its end. For `limit` at most; the program may go on then.
    async fn exec(
        &self,
        instance: InstanceId,
        program: GuestProgram<'_>,
        limit: Duration,
    ) -> Result<ProgramEnded, ExecError> {
        let _ = (instance, program, limit);
        Err(ExecError::NoAgent)
    }

    /// Asks the guest whether it may be put to sleep. For `limit` at most.
    async fn before_sleep(&self, instance: InstanceId, limit: Duration) -> BeforeSleep {
        let _ = (instance, limit);
        BeforeSleep::Ready { wake_at: None }
    }

    /// Makes the intact version of `from`, which is an instance of `service`, the first version of the new instance
    /// `to`. Both share what memory they have in common. Before its first client the clone is told who it is; with
    /// `identical` that is left out where the guest has no agent.
    async fn clone_version(
        &self,
        from: InstanceId,
        to: InstanceId,
        service: &DomainName,
        identical: bool,
    ) -> Result<SnapshotVersion, CloneError> {
        let _ = (from, to, service, identical);
        Err(CloneError::Unsupported(self.capabilities().driver))
    }

    /// The guest's network link: a stream of Ethernet frames, each after its length as 4 bytes big-endian. One
    /// link at a time; after it is closed a new one can be had. It exists as soon as there is a process, so that
    /// a client's first packet can wait in it while the guest is restored.
    async fn network(&self, instance: InstanceId) -> Result<UnixStream, DriverError>;

    /// CPU time that the instance's process has used so far, in milliseconds; `None` without a process. Tells one
    /// that is busy or starved from one that hangs.
    fn cpu_ms(&self, instance: InstanceId) -> Option<u64>;

    /// Memory of the host that the instance's process holds, in KiB; what it shares with others counts in part. `None`
    /// without a process. Takes a few milliseconds with much memory.
    fn held_kib(&self, instance: InstanceId) -> Option<u64>;

    /// What the instance's process has read from disks and written to them so far; `None` without a process, or where that
    /// is not known.
    fn disk_io(&self, instance: InstanceId) -> Option<DiskIo> {
        let _ = instance;
        None
    }

    /// Whether the host holds the instance's process up: it waits for a disk, or for a CPU. Then its silence is not its own.
    fn is_held_up(&self, instance: InstanceId) -> bool;
}
