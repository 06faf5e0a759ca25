//! The QEMU driver: microvm guests whose memory lies in a mapped file, so that sleeping and waking move only the
//! 0.1 MB of registers and devices.
//!
//! | file | what it does |
//! |---|---|
//! | `binary`, `accel` | what QEMU and this host can do |
//! | `layout`, `version` | what lies where, and when it is a version |
//! | `disk`, `prepare` | the layers of its disk, and what a process finds of them |
//! | `argv` | the command line |
//! | `process`, `qmp`, `vm`, `blocks` | one process: started, found, asked, ended |
//! | `start`, `capture`, `live`, `find`, `stored` | the driver's verbs |
//! | `fold` | layers that are read by nobody are written into the lowest |
//! | `stream` | QEMU's migration stream |
//! | `agent`, `guest` | the program in the guest that does as it is asked, and what it is asked |
//! | `refresher` | the boot stage's program that sets the clock and the random generator |
//! | `clones` | a version for two instances |
//! | `users` | as whom a process runs, and what it may use |
//! | `tsc` | how fast the host's time-stamp counter runs |
//!
//! QEMU outlives the daemon. Nothing about it is remembered anywhere but in its own files and its lock, so there
//! is nothing that could disagree with the truth after a crash.

mod accel;
pub mod agent;
mod argv;
mod binary;
mod blocks;
mod capture;
mod clones;
mod disk;
mod find;
mod fold;
mod guest;
mod layout;
mod live;
mod prepare;
mod process;
mod qmp;
mod refresher;
mod start;
mod stored;
mod stream;
mod sums;
mod transfer;
mod tsc;
mod users;
mod version;
mod vm;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reveille_core::model::{Cause, DomainName, Found, InstanceId, Remains, SnapshotVersion, Timestamp};
use tokio::net::UnixStream;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

pub use self::accel::{Accel, AccelChoice, KvmVerdict, ProbeGuest};
pub use self::argv::{Argv, GUEST_MAC};
pub use self::binary::{OpenError, locate};
pub(crate) use self::layout::private;
pub use self::layout::{Need, needs_on_disk};
pub use self::users::Users;

use self::binary::Binary;
use self::layout::{InstanceDir, create_private_dir};
use self::process::Lock;
use self::version::{Listeners, Needs, StateDir, VersionFault};
use self::vm::Vm;
use crate::driver::{
    Abandon, AgentState, BeforeSleep, Capabilities, Capture, CloneError, DiskIo, Driver, DriverError,
    ExecError, GuestProgram, Launch, Link, Mapping, OnStage, ProgramEnded, Refreshed, VersionFiles,
};

/// The driver's name.
const NAME: &str = "qemu";

/// Where, in the state directory, is kept what removed services had.
const REMOVED: &str = "removed";

/// Longest time that a kill waits for a guest to be let run: QEMU's answer.
const COMMIT_MS_MAX: u64 = 2_000;

/// Where the driver finds and keeps what it needs.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The binary: a path, or a name that is looked for in `PATH`.
    pub binary: PathBuf,
    /// Where it finds its firmware (`-L`), if not where it was built for.
    pub data_dir: Option<PathBuf>,
    /// How guest code is run.
    pub accel: AccelChoice,
    /// The directory below which `instances/` and `accel.json` are kept.
    pub state_dir: PathBuf,
    /// As whom QEMU runs, where the daemon is root.
    pub users: Users,
    /// What KVM is tried with if it has not been on this host; without it an untried KVM is not used.
    pub probe: Option<ProbeGuest>,
}

/// The driver.
#[derive(Debug)]
pub struct Qemu {
    binary: Binary,
    accel: Accel,
    kvm: KvmVerdict,
    capabilities: Capabilities,
    users: Users,
    state_dir: PathBuf,
    instances: PathBuf,
    slots: Mutex<BTreeMap<InstanceId, Arc<Slot>>>,
}

/// What the driver knows of one instance.
#[derive(Debug)]
struct Slot {
    instance: InstanceId,
    dir: InstanceDir,
    state: StateDir,
    /// One verb at a time; `kill` waits here only after it has killed.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Held while a version is consumed and its guest let run.
    commit: tokio::sync::Mutex<()>,
    /// Held within that until the version has gone, or is there again.
    consuming: tokio::sync::Mutex<()>,
    /// Raised by each kill; a verb that began before it gives up.
    kills: AtomicU64,
    vm: Mutex<Option<Arc<Vm>>>,
}

impl Qemu {
    /// Examines the binary, settles on an accelerator and prepares the state directory. Takes some 50 ms, and up
    /// to 15 s when KVM has to be tried.
    ///
    /// # Errors
    /// What is missing and what to do about it.
    pub async fn open(config: QemuConfig) -> Result<Self, OpenError> {
        let state_dir = std::path::absolute(&config.state_dir)
            .map_err(|source| OpenError::StateDir { path: config.state_dir.clone(), source })?;
        let instances = state_dir.join("instances");
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::StateDir { path, source }
        };
        create_private_dir(&instances).map_err(unusable(&instances))?;
        let binary = binary::examine(&config.binary, config.data_dir.as_deref()).await?;

        let mut kvm = Self::known_verdict(&binary, &state_dir);
        if let (AccelChoice::Auto, KvmVerdict::Unprobed, Some(guest)) = (config.accel, &kvm, &config.probe) {
            kvm = Self::try_kvm(&binary, &state_dir, guest).await.map_err(unusable(&state_dir))?;
        }
        let accel = match (config.accel, &kvm) {
            (AccelChoice::Kvm, KvmVerdict::Absent { detail }) => {
                return Err(OpenError::NoKvm(detail.clone()));
            }
            (AccelChoice::Kvm, _) | (AccelChoice::Auto, KvmVerdict::Works { .. }) => Accel::Kvm,
            (AccelChoice::Tcg, _)
            | (
                AccelChoice::Auto,
                KvmVerdict::Fails { .. } | KvmVerdict::Absent { .. } | KvmVerdict::Unprobed,
            ) => Accel::Tcg,
        };
        // Measured here once, not in the middle of the first start.
        let _ = tokio::task::spawn_blocking(tsc::rate_khz).await;
        let capabilities = Capabilities {
            driver: NAME,
            version: binary.version.clone(),
            accelerator: accel.word().to_owned(),
            hibernate: true,
            arm: true,
            sandbox: binary.program.sandbox,
        };
        // Others cannot become anybody else.
        let users = if rustix::process::geteuid().is_root() { config.users } else { Users::Daemon };
        Ok(Self { binary, accel, kvm, capabilities, users, state_dir, instances, slots: Mutex::default() })
    }

    /// The verdict on KVM that the accelerator was chosen by.
    pub fn kvm(&self) -> &KvmVerdict {
        &self.kvm
    }

    /// The QEMU binary in use.
    pub fn binary(&self) -> &Path {
        &self.binary.program.binary
    }

    /// Tries KVM anew, whatever is remembered, and remembers the outcome for the next [`Qemu::open`].
    ///
    /// # Errors
    /// Files cannot be written or QEMU cannot be started: nothing is remembered.
    pub async fn probe_kvm(&self, guest: &ProbeGuest) -> io::Result<KvmVerdict> {
        Self::try_kvm(&self.binary, &self.state_dir, guest).await
    }

    /// The command line of the same machine started outside Reveille in `dir`, with its memory, console and disk there;
    /// for measuring against.
    ///
    /// # Errors
    /// No disk can be made there.
    pub fn cold_argv(&self, launch: &Launch, dir: &Path) -> io::Result<Argv> {
        let chain = launch.disk.as_ref().map(|disk| disk::Chain::create(disk, dir)).transpose()?;
        let files = (&*dir.join("memory"), &*dir.join("serial"));
        let argv = argv::cold(&self.binary.program, self.accel, launch, chain.as_ref(), files);
        argv.map_err(io::Error::other)
    }

    fn known_verdict(binary: &Binary, state_dir: &Path) -> KvmVerdict {
        accel::absent()
            .or_else(|| accel::remembered(&state_dir.join("accel.json"), &binary.program, &binary.version))
            .unwrap_or(KvmVerdict::Unprobed)
    }

    async fn try_kvm(binary: &Binary, state_dir: &Path, guest: &ProbeGuest) -> io::Result<KvmVerdict> {
        let verdict = accel::probe(&binary.program, guest, state_dir).await?;
        tracing::info!(%verdict, "KVM was tried");
        accel::remember(&state_dir.join("accel.json"), &binary.program, &binary.version, &verdict)?;
        Ok(verdict)
    }

    fn slot(&self, instance: InstanceId) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        let slot = slots.entry(instance).or_insert_with(|| {
            let dir = InstanceDir::of(&self.instances, instance);
            Arc::new(Slot {
                instance,
                state: StateDir::at(dir.state()),
                dir,
                turn: Arc::default(),
                commit: tokio::sync::Mutex::default(),
                consuming: tokio::sync::Mutex::default(),
                kills: AtomicU64::new(0),
                vm: Mutex::default(),
            })
        });
        Arc::clone(slot)
    }

    /// The instance's slot if anything was ever done with it.
    fn known_slot(&self, instance: InstanceId) -> Option<Arc<Slot>> {
        lock(&self.slots).get(&instance).cloned()
    }

    fn live(&self, instance: InstanceId) -> Result<(Arc<Slot>, Arc<Vm>), DriverError> {
        let slot = self.known_slot(instance).ok_or(DriverError::NoProcess(instance))?;
        let vm = slot.live()?;
        Ok((slot, vm))
    }

    /// Whether the memory of a guest that runs can be transferred, and nothing of it is missed.
    fn tracks_writes(&self) -> bool {
        match self.accel {
            Accel::Kvm => true,
            Accel::Tcg => self.binary.tracks_writes,
        }
    }

    fn needs(&self, launch: &Launch) -> Needs {
        Needs {
            resources: launch.resources,
            accelerator: self.accel.needs(),
            vmm: self.binary.version.clone(),
            network: match &launch.link {
                Link::Stream => String::new(),
                Link::Tap(tap) => {
                    let v6 = tap.v6.map_or_else(String::new, |(address, _)| format!(" and {address}"));
                    format!("a tap device at {}{v6}", tap.address)
                }
            },
            listeners: Listeners::default(),
        }
    }
}

/// The right to change what belongs to one instance.
#[derive(Debug, Clone)]
struct Turn(#[expect(dead_code, reason = "held, not read")] Arc<OwnedMutexGuard<()>>);

impl Turn {
    /// As [`blocking`]; the turn lasts until the work is done, also when nobody waits for it any more.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = self.clone();
        blocking(move || {
            let done = work();
            drop(turn);
            done
        })
        .await
    }
}

impl Slot {
    async fn take_turn(&self) -> Turn {
        Turn(Arc::new(Arc::clone(&self.turn).lock_owned().await))
    }

    /// A turn, and a mark by which a kill is seen that has come since this was called, also while it waited.
    async fn take_marked_turn(&self) -> (Turn, u64) {
        let kills = self.kills.load(Ordering::Acquire);
        (self.take_turn().await, kills)
    }

    fn is_killed_since(&self, mark: u64) -> bool {
        self.kills.load(Ordering::Acquire) != mark
    }

    /// The process, ended or not.
    fn vm(&self) -> Option<Arc<Vm>> {
        lock(&self.vm).clone()
    }

    /// The process, as long as it has not ended.
    fn live(&self) -> Result<Arc<Vm>, DriverError> {
        self.vm().filter(|vm| vm.process.ended().is_none()).ok_or(DriverError::NoProcess(self.instance))
    }

    fn set_vm(&self, vm: Option<Arc<Vm>>) {
        *lock(&self.vm) = vm;
    }

    /// Ends whatever process there is, known or only found by its lock.
    async fn fence(&self) -> Result<(), Cause> {
        if let Some(vm) = self.vm() {
            vm.kill().await?;
            self.set_vm(None);
        }
        let lock = self.dir.lock();
        let stray = blocking(move || {
            if !Lock::is_held(&lock)? {
                return Ok(None);
            }
            process::Process::holder(&lock)?.map(Some).ok_or_else(|| {
                io::Error::other(
                    "a process holds the instance's lock that this user cannot see; end the process by hand",
                )
            })
        });
        let unseen = |error: io::Error| Cause::StartFailed { detail: error.to_string() };
        if let Some(stray) = stray.await.map_err(unseen)? {
            tracing::warn!(instance = %self.instance, pid = stray.pid, "ending a process that nobody had taken over");
            // Registered first, so that it is not forgotten should it not end in time.
            let vm = Arc::new(Vm::new(stray, self.dir.clone()));
            self.set_vm(Some(Arc::clone(&vm)));
            vm.kill().await?;
            self.set_vm(None);
        }
        Ok(())
    }

    async fn version(&self) -> Option<SnapshotVersion> {
        let state = self.state.clone();
        let read = blocking(move || Ok(state.read())).await.ok()?;
        match read {
            Ok(manifest) => Some(manifest.version),
            Err(VersionFault::None) => None,
            Err(fault) => {
                tracing::warn!(instance = %self.instance, %fault, "the version on disk cannot be restored");
                None
            }
        }
    }
}

#[async_trait]
impl Driver for Qemu {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn find(&self, launch: &Launch, asleep: bool) -> Found {
        find::find(self, launch, asleep).await
    }

    async fn inventory(&self) -> Vec<InstanceId> {
        let instances = self.instances.clone();
        blocking(move || InstanceDir::all(&instances)).await.unwrap_or_else(|error| {
            tracing::error!(%error, "the instances on disk cannot be listed");
            Vec::new()
        })
    }

    async fn boot(&self, launch: &Launch, on_stage: OnStage<'_>) -> Result<(), DriverError> {
        start::boot(self, launch, on_stage).await.map_err(DriverError::Lost)
    }

    async fn arm(&self, launch: &Launch, mapping: Mapping) -> Result<(), DriverError> {
        start::arm(self, launch, mapping).await.map_err(DriverError::Lost)
    }

    async fn restore(
        &self,
        launch: &Launch,
        mapping: Mapping,
        on_stage: OnStage<'_>,
    ) -> Result<(), DriverError> {
        start::restore(self, launch, mapping, on_stage).await.map_err(DriverError::Lost)
    }

    async fn warm(&self, launch: &Launch, on_stage: OnStage<'_>) -> Result<(), DriverError> {
        start::warm(self, launch, on_stage).await.map_err(DriverError::Lost)
    }

    async fn pause(&self, instance: InstanceId) -> Result<(), DriverError> {
        start::pause(self, instance).await
    }

    async fn checkpoint(
        &self,
        launch: &Launch,
        number: u64,
        now: Timestamp,
    ) -> Result<VersionFiles, DriverError> {
        live::checkpoint(self, launch, number, now).await
    }

    async fn version_files(&self, instance: InstanceId) -> Result<VersionFiles, DriverError> {
        stored::version_files(self, instance).await
    }

    async fn fetch_dir(&self, instance: InstanceId) -> Result<PathBuf, DriverError> {
        stored::fetch_dir(self, instance).await
    }

    async fn install(&self, launch: &Launch, number: u64) -> Result<SnapshotVersion, DriverError> {
        stored::install(self, launch, number).await
    }

    async fn evict(&self, instance: InstanceId) -> Result<(), DriverError> {
        stored::evict(self, instance).await
    }

    async fn capture(
        &self,
        launch: &Launch,
        number: u64,
        now: Timestamp,
        abandon: &Abandon,
    ) -> Result<Capture, DriverError> {
        capture::capture(self, launch, number, now, abandon).await
    }

    async fn resume(&self, launch: &Launch) -> Result<(), DriverError> {
        let slot = self.slot(launch.instance);
        let turn = slot.take_turn().await;
        let vm = slot.live()?;
        capture::let_run(&slot, &turn, &vm).await.map_err(DriverError::Lost)?;
        guest::thaw_again(&vm, launch).await;
        Ok(())
    }

    async fn disarm(&self, instance: InstanceId) -> Result<(), DriverError> {
        let slot = self.slot(instance);
        let _turn = slot.take_turn().await;
        let vm = slot.live()?;
        if slot.version().await.is_none() {
            return Err(DriverError::Unsupported { driver: NAME, verb: "disarm a guest that has run" });
        }
        vm.kill().await.map_err(DriverError::Lost)?;
        slot.set_vm(None);
        Ok(())
    }

    async fn kill(
        &self,
        instance: InstanceId,
        remains: Remains,
    ) -> Result<Option<SnapshotVersion>, DriverError> {
        let slot = self.slot(instance);
        slot.kills.fetch_add(1, Ordering::AcqRel);
        // Before taking a turn, so that the verb that has it fails at once; but not between a version and its guest,
        // however slow the disk is. What is killed in there has its version back.
        drop(slot.consuming.lock().await);
        let committed = timeout(Duration::from_millis(COMMIT_MS_MAX), slot.commit.lock()).await;
        if let Some(vm) = slot.vm() {
            vm.process.kill();
        }
        drop(committed);
        let turn = slot.take_turn().await;
        slot.fence().await.map_err(DriverError::Lost)?;
        let (dir, state, removed) = (slot.dir.clone(), slot.state.clone(), self.state_dir.join(REMOVED));
        let kept = |error: io::Error| {
            DriverError::Lost(Cause::StartFailed { detail: format!("its files cannot be removed: {error}") })
        };
        match remains {
            Remains::All => return Ok(slot.version().await),
            Remains::Disk => turn.blocking(move || prepare::keep_disk(&dir, &state)).await.map_err(kept)?,
            Remains::Nothing => {
                let gone = turn.blocking(move || prepare::clear_away(&dir, &state, &removed));
                if let Some(place) = gone.await.map_err(kept)? {
                    tracing::warn!(%instance, path = %place.display(), "what a removed service had is kept there");
                }
                lock(&self.slots).remove(&instance);
            }
        }
        Ok(None)
    }

    async fn beat(&self, instance: InstanceId, timeout_ms: u64) -> Result<(), DriverError> {
        let (slot, vm) = self.live(instance)?;
        let status = match vm.status(timeout_ms).await {
            Ok(status) => status,
            Err(error) => return Err(DriverError::Lost(vm.cause_of(error).await)),
        };
        if status != "running" && !vm.is_busy() {
            let detail = format!("its guest stands still (QEMU calls it `{status}`)");
            return Err(DriverError::Lost(Cause::VmmDied { detail }));
        }
        let dir = slot.dir.clone();
        if let Err(error) = blocking(move || dir.limit_logs()).await {
            tracing::warn!(%instance, %error, "its logs cannot be limited");
        }
        fold::tend(&slot, &vm).await;
        Ok(())
    }

    async fn died(&self, instance: InstanceId) -> String {
        let Some(vm) = self.known_slot(instance).and_then(|slot| slot.vm()) else {
            return "it had no process".to_owned();
        };
        let ended = vm.process.wait().await;
        vm.hear_out().await;
        vm.death(&ended)
    }

    async fn agent(&self, instance: InstanceId) -> AgentState {
        match self.live(instance) {
            Ok((_slot, vm)) => guest::state(&vm).await,
            Err(_) => AgentState::None,
        }
    }

    async fn refresh(&self, instance: InstanceId, limit: Duration) -> Refreshed {
        match self.live(instance) {
            Ok((_slot, vm)) => guest::refresh(&vm, limit).await,
            Err(_) => Refreshed::NoAgent,
        }
    }

    async fn exec(
        &self,
        instance: InstanceId,
        program: GuestProgram<'_>,
        limit: Duration,
    ) -> Result<ProgramEnded, ExecError> {
        match self.live(instance) {
            Ok((_slot, vm)) => guest::exec(&vm, program, limit).await,
            Err(error) => Err(ExecError::Failed(error.to_string())),
        }
    }

    async fn before_sleep(&self, instance: InstanceId, limit: Duration) -> BeforeSleep {
        match self.live(instance) {
            Ok((_slot, vm)) => guest::before_sleep(&vm, limit).await,
            Err(_) => BeforeSleep::Ready { wake_at: None },
        }
    }

    async fn clone_version(
        &self,
        from: InstanceId,
        to: InstanceId,
        service: &DomainName,
        identical: bool,
    ) -> Result<SnapshotVersion, CloneError> {
        clones::clone_version(self, from, to, service, identical).await
    }

    async fn network(&self, instance: InstanceId) -> Result<UnixStream, DriverError> {
        let (_slot, vm) = self.live(instance)?;
        vm.network().await.map_err(DriverError::Lost)
    }

    fn cpu_ms(&self, instance: InstanceId) -> Option<u64> {
        self.live(instance).ok()?.1.process.cpu_ms()
    }

    fn held_kib(&self, instance: InstanceId) -> Option<u64> {
        self.live(instance).ok()?.1.process.held_kib()
    }

    fn disk_io(&self, instance: InstanceId) -> Option<DiskIo> {
        self.live(instance).ok()?.1.process.disk_io()
    }

    fn is_held_up(&self, instance: InstanceId) -> bool {
        self.live(instance).is_ok_and(|(_, vm)| vm.process.is_held_up())
    }
}

/// Runs what waits for the disk where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Everything behind these locks is whole after each statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
