//! Hibernating, and letting a guest run that stands still.
//!
//! ```text
//! flush memory ─► stop ─► device state ─► flush ─► publish manifest ─► quit
//!      guest runs   │   ◄──── a client comes: take the manifest away, cont ────┤
//! ```
//!
//! The same instant holds for its disk: QEMU drains and flushes it at the stop, lets go of it with the device state, and
//! the layers' files are flushed before the manifest, which says how long they are.
//!
//! A client that comes at any time up to the last moment gets its guest back. So does a failure of any step.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use reveille_core::model::{Cause, SnapshotVersion, Timestamp};

use tokio::time::timeout;

use reveille_failpoint::failpoint;

use super::fold::{self, FoldError};
use super::qmp::QmpError;
use super::start::{SPARE_BYTES, no_room};
use super::version::Devices;
use super::vm::Vm;
use super::{Qemu, Slot, Turn, blocking, guest, live, sums};
use crate::driver::{Abandon, Capture, DriverError, Launch, Mapping};

/// Longest flush of a guest's memory.
const FLUSH_MS_MAX: u64 = 60_000;

/// Why a capture did not come to its end.
pub(super) enum Halt {
    /// A client came.
    Abandoned,
    /// A step failed: one sentence.
    Failed(String),
    /// QEMU is gone, or does not answer.
    Qmp(QmpError),
}

impl From<QmpError> for Halt {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Refused { .. } => Self::Failed(error.to_string()),
            QmpError::Connect(_)
            | QmpError::Timeout { .. }
            | QmpError::Closed
            | QmpError::Protocol(_)
            | QmpError::TooMany => Self::Qmp(error),
        }
    }
}

impl From<FoldError> for Halt {
    fn from(error: FoldError) -> Self {
        match error {
            FoldError::Qmp(error) => error.into(),
            FoldError::Files(error) => error.into(),
            FoldError::Job(detail) => Self::Failed(detail),
        }
    }
}

impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        let full = error.kind() == io::ErrorKind::StorageFull;
        Self::Failed(if full { "the disk is full; make room".to_owned() } else { error.to_string() })
    }
}

/// Stops the guest, publishes version `number` and ends the process.
pub async fn capture(
    qemu: &Qemu,
    launch: &Launch,
    number: u64,
    now: Timestamp,
    abandon: &Abandon,
) -> Result<Capture, DriverError> {
    let slot = qemu.slot(launch.instance);
    let (turn, kills) = slot.take_marked_turn().await;
    let vm = slot.live()?;
    if slot.is_killed_since(kills) {
        return Err(DriverError::NoProcess(launch.instance));
    }
    let _busy = vm.busy();
    let mut version =
        SnapshotVersion { number, at: now, stored_bytes: 0, paused_us: 0, image: launch.image.clone() };
    let halt = match before_stop(&slot, &vm, abandon).await {
        Err(Halt::Abandoned) => return Ok(Capture::Abandoned),
        Err(Halt::Failed(detail)) => return Err(DriverError::RunsOn(Cause::CaptureFailed { detail })),
        Err(halt @ Halt::Qmp(_)) => halt,
        Ok(()) => match frozen(qemu, &slot, &turn, &vm, launch, &mut version, abandon).await {
            Ok(()) => {
                vm.end().await.map_err(DriverError::Lost)?;
                slot.set_vm(None);
                failpoint!("vm.capture.ended");
                sums::record_later(&slot);
                return Ok(Capture::Published(version));
            }
            Err(halt) => halt,
        },
    };
    if let Halt::Qmp(error) = halt {
        return Err(DriverError::Lost(vm.cause_of(error).await));
    }
    let_run(&slot, &turn, &vm).await.map_err(DriverError::Lost)?;
    guest::thaw_again(&vm, launch).await;
    match halt {
        Halt::Failed(detail) => Err(DriverError::RunsOn(Cause::CaptureFailed { detail })),
        Halt::Abandoned | Halt::Qmp(_) => Ok(Capture::Abandoned),
    }
}

/// Takes the manifest away if there is one, and lets the vCPUs run. A guest that runs is left alone. QEMU takes its disk
/// up again by itself, if it had let go of it.
pub async fn let_run(slot: &Slot, turn: &Turn, vm: &Vm) -> Result<(), Cause> {
    match run_again(slot, turn, vm).await {
        Ok(()) => Ok(()),
        Err(Halt::Qmp(error)) => Err(vm.cause_of(error).await),
        Err(Halt::Failed(detail)) => Err(Cause::StartFailed { detail }),
        Err(Halt::Abandoned) => Err(Cause::StartFailed { detail: "it was called off".to_owned() }),
    }
}

async fn run_again(slot: &Slot, turn: &Turn, vm: &Vm) -> Result<(), Halt> {
    // First: what still goes on would stop a guest that runs yet.
    vm.settle_migration().await?;
    if vm.status(super::qmp::COMMAND_MS_MAX).await? == "running" {
        return Ok(());
    }
    let state = slot.state.clone();
    turn.blocking(move || state.consume()).await?;
    Ok(vm.cont(|| ()).await?)
}

/// Everything that can be done while the guest still runs.
async fn before_stop(slot: &Slot, vm: &Vm, abandon: &Abandon) -> Result<(), Halt> {
    if let Some(detail) = no_room(slot.dir.root(), SPARE_BYTES) {
        return Err(Halt::Failed(detail));
    }
    let state = slot.state.clone();
    flush(abandon, blocking(move || state.sync_memory())).await?;
    // What is given up is taken up again later; but QEMU cannot let go of a disk that it folds.
    unless(abandon, fold::make_few(slot, vm)).await??;
    Ok(())
}

/// As [`publish`], with the guest's file systems frozen.
async fn frozen(
    qemu: &Qemu,
    slot: &Slot,
    turn: &Turn,
    vm: &Vm,
    launch: &Launch,
    version: &mut SnapshotVersion,
    abandon: &Abandon,
) -> Result<(), Halt> {
    unless(abandon, guest::freeze(vm, launch)).await?;
    publish(qemu, slot, turn, vm, launch, version, abandon).await
}

async fn publish(
    qemu: &Qemu,
    slot: &Slot,
    turn: &Turn,
    vm: &Vm,
    launch: &Launch,
    version: &mut SnapshotVersion,
    abandon: &Abandon,
) -> Result<(), Halt> {
    match vm.mapping().await? {
        Mapping::Consume => {}
        Mapping::Beside => return live::publish(qemu, slot, turn, vm, launch, version, abandon).await,
    }
    // Everything that needs no stopped guest first; and what it wrote since the first flush.
    let needs = vm.note_listeners(qemu.needs(launch)).await?;
    vm.leave_memory_out(Devices::Alone).await?;
    vm.pass_device(OwnedFd::from(slot.state.create_device()?)).await?;
    let (before, meanwhile) = (slot.state.clone(), slot.state.clone());
    flush(abandon, blocking(move || before.sync_memory())).await?;
    let stopped = Instant::now();
    // QEMU waits for what the guest has under way to its disk, and flushes.
    vm.stop().await?;
    failpoint!("vm.capture.stopped");
    // Stands still, but not because of us: a guest that crashed must not become a version.
    let status = vm.status(super::qmp::COMMAND_MS_MAX).await?;
    if status != "paused" {
        return Err(Halt::Failed(format!("the guest is in no state to be kept (QEMU calls it `{status}`)")));
    }
    // Beside each other: once more afterwards there is next to nothing left to flush.
    let (saved, flushed) = tokio::join!(
        unless(abandon, vm.save_device()),
        flush(abandon, blocking(move || meanwhile.sync_memory()))
    );
    saved??;
    flushed?;
    failpoint!("vm.capture.saved");

    let (state, described) = (slot.state.clone(), version.clone());
    let seal = blocking(move || state.seal(described, needs, stopped));
    let manifest = flush(abandon, seal).await?;
    *version = manifest.version.clone();
    failpoint!("vm.capture.sealed");
    let state = slot.state.clone();
    // Not given up half-way: a manifest that appeared after it was looked for would lie.
    turn.blocking(move || state.publish(&manifest)).await?;
    failpoint!("vm.capture.published");
    if abandon.is_raised() { Err(Halt::Abandoned) } else { Ok(()) }
}

/// The outcome of a flush, which ends by itself only as soon as the disk wants.
pub(super) async fn flush<T>(
    abandon: &Abandon,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, Halt> {
    match timeout(Duration::from_millis(FLUSH_MS_MAX), unless(abandon, work)).await {
        Ok(done) => Ok(done??),
        Err(_) => Err(Halt::Failed(format!(
            "the disk did not take the guest's memory within {} s; see what else writes to it",
            FLUSH_MS_MAX / 1_000
        ))),
    }
}

/// The outcome of `work`, or [`Halt::Abandoned`] as soon as `abandon` is raised.
pub(super) async fn unless<T>(abandon: &Abandon, work: impl Future<Output = T>) -> Result<T, Halt> {
    tokio::select! {
        biased;
        () = abandon.raised() => Err(Halt::Abandoned),
        done = work => Ok(done),
    }
}
