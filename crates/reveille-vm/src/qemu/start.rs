//! Starting: cold from the image, armed, and from a version.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use reveille_core::model::{Cause, InstanceId, Resources, Stage};

use reveille_failpoint::failpoint;
use tokio::sync::oneshot;

use super::argv::{self, Start};
use super::disk::{Chain, VersionDisk};
use super::process::{Lock, Process};
use super::qmp::QmpError;
use super::version::{Listener, Manifest, Needs, VersionFault, memory_bytes};
use super::vm::{Origin, Stand, Vm};
use super::{NAME, Qemu, Slot, Turn, blocking, guest, prepare, sums, users};
use crate::driver::{DriverError, Launch, Link, Mapping, OnStage};

/// Room that is left on the disk beside a guest's memory: device state, manifest, logs.
pub const SPARE_BYTES: u64 = 16 << 20;

/// A cold boot, from the instance's disk if it has one. A version that is there is set aside first, so that none is there
/// when the vCPUs run.
pub async fn boot(qemu: &Qemu, launch: &Launch, on_stage: OnStage<'_>) -> Result<(), Cause> {
    let slot = qemu.slot(launch.instance);
    let (turn, kills) = slot.take_marked_turn().await;
    check_files(launch)?;
    let lock = claim(&slot).await?;
    // What an earlier guest left is removed, what a version consists of is kept.
    let freed = if slot.state.has_manifest() { 0 } else { slot.state.memory_blocks_bytes().unwrap_or(0) };
    check_room(&slot, launch.resources, freed)?;
    let (dir, state, wanted) = (slot.dir.clone(), slot.state.clone(), launch.clone());
    let prepared = turn.blocking(move || prepare::boot(&dir, &state, &wanted));
    let chain = prepared.await.map_err(no_files)?;
    let vm = spawn(qemu, &slot, lock, launch, chain.as_ref(), Start::Boot, kills).await?;
    failpoint!("vm.boot.spawned");
    on_stage(Stage::Spawned);
    match vm.status(super::qmp::COMMAND_MS_MAX).await {
        Ok(_) => {}
        Err(error) => return Err(vm.cause_of(error).await),
    }
    on_stage(Stage::Running);
    Ok(())
}

/// Brings a process up into which the version is loaded; one that is already there is left as it is.
pub async fn arm(qemu: &Qemu, launch: &Launch, mapping: Mapping) -> Result<(), Cause> {
    let slot = qemu.slot(launch.instance);
    let (_turn, kills) = slot.take_marked_turn().await;
    let vm = load(qemu, &slot, launch, mapping, kills, &|_| ()).await?;
    slot.dir.note_loaded(vm.process.pid).map_err(no_files)?;
    failpoint!("vm.arm.armed");
    Ok(())
}

/// Loads the version, if it is not loaded yet, and lets the vCPUs run. Up to the moment at which the manifest is taken
/// away every failure leaves the version as it was.
pub async fn restore(
    qemu: &Qemu,
    launch: &Launch,
    mapping: Mapping,
    on_stage: OnStage<'_>,
) -> Result<(), Cause> {
    let slot = qemu.slot(launch.instance);
    let (turn, kills) = slot.take_marked_turn().await;
    let vm = match slot.live().ok().filter(|vm| matches!(vm.stand(), Stand::Paused)) {
        Some(vm) => vm,
        None => load(qemu, &slot, launch, mapping, kills, on_stage).await?,
    };
    let _busy = vm.busy();
    introduce(&vm, launch).await?;
    failpoint!("vm.restore.loaded");

    // A task of its own: whoever waits for it may be gone before its end, and nobody would have the guest.
    let (told, running) = oneshot::channel();
    let committed = tokio::spawn(commit(Arc::clone(&slot), turn, Arc::clone(&vm), kills, told));
    if running.await.is_ok() {
        on_stage(Stage::Running);
    }
    committed.await.unwrap_or_else(|error| Err(Cause::StartFailed { detail: error.to_string() }))?;
    failpoint!("vm.restore.running");
    guest::thaw_again(&vm, launch).await;
    Ok(())
}

/// Takes the manifest away and lets the guest run. A kill waits for the first: between the two nobody would have the
/// state. One that came meanwhile has the version back.
async fn commit(
    slot: Arc<Slot>,
    turn: Turn,
    vm: Arc<Vm>,
    kills: u64,
    running: oneshot::Sender<()>,
) -> Result<(), Cause> {
    let _committed = slot.commit.lock().await;
    let is_killed = || slot.is_killed_since(kills);
    {
        let _consuming = slot.consuming.lock().await;
        if is_killed() {
            return Err(killed());
        }
        let state = slot.state.clone();
        turn.blocking(move || state.consume()).await.map_err(no_files)?;
        failpoint!("vm.restore.consumed");
        if is_killed() {
            // No vCPU has run.
            let state = slot.state.clone();
            turn.blocking(move || state.restore_manifest()).await.map_err(no_files)?;
            return Err(killed());
        }
    }
    vm.set_stand(Stand::Open);
    // Whoever wanted to hear it may be gone.
    let told = || {
        let _ = running.send(());
    };
    match vm.cont(told).await {
        Ok(()) => Ok(()),
        Err(error) => Err(vm.cause_of(error).await),
    }
}

/// Loads the version beside its files and lets the vCPUs run, with the manifest where it is: nobody has seen the guest,
/// and should it be lost, nothing is.
pub async fn warm(qemu: &Qemu, launch: &Launch, on_stage: OnStage<'_>) -> Result<(), Cause> {
    let slot = qemu.slot(launch.instance);
    let (_turn, kills) = slot.take_marked_turn().await;
    let vm = load(qemu, &slot, launch, Mapping::Beside, kills, on_stage).await?;
    let _busy = vm.busy();
    if slot.is_killed_since(kills) {
        return Err(killed());
    }
    vm.set_stand(Stand::Open);
    match vm.cont(|| on_stage(Stage::Running)).await {
        Ok(()) => {}
        Err(error) => return Err(vm.cause_of(error).await),
    }
    failpoint!("vm.warm.running");
    guest::thaw_again(&vm, launch).await;
    tell_clone(&vm, launch).await
}

/// Lets a clone run until it knows that it is one, and stops it. Until then its version stays what it is: if this does
/// not succeed, the next start begins again.
async fn introduce(vm: &Vm, launch: &Launch) -> Result<(), Cause> {
    if vm.origin().clone_of.is_none() {
        return Ok(());
    }
    match vm.cont(|| ()).await {
        Ok(()) => {}
        Err(error) => return Err(vm.cause_of(error).await),
    }
    guest::thaw_again(vm, launch).await;
    tell_clone(vm, launch).await?;
    match vm.stop().await {
        Ok(()) => Ok(()),
        Err(error) => Err(vm.cause_of(error).await),
    }
}

/// Tells a clone that runs who it is, once.
async fn tell_clone(vm: &Vm, launch: &Launch) -> Result<(), Cause> {
    let origin = vm.origin();
    if origin.clone_of.is_none() {
        return Ok(());
    }
    guest::introduce(vm, launch).await?;
    vm.set_origin(Origin { clone_of: None, ..origin });
    Ok(())
}

/// Stops the vCPUs of a guest that was warmed.
pub async fn pause(qemu: &Qemu, instance: InstanceId) -> Result<(), DriverError> {
    let slot = qemu.slot(instance);
    let _turn = slot.take_turn().await;
    let vm = slot.live()?;
    if !slot.state.has_manifest() {
        return Err(DriverError::Unsupported {
            driver: NAME,
            verb: "pause a guest that has been seen to run",
        });
    }
    let stopped = async {
        vm.stop().await?;
        vm.status(super::qmp::COMMAND_MS_MAX).await
    };
    match stopped.await.as_deref() {
        Ok("paused") => {
            failpoint!("vm.pause.stopped");
            vm.set_stand(Stand::Paused);
            Ok(())
        }
        Ok(other) => {
            let detail = format!("the guest cannot be paused (QEMU calls it `{other}`)");
            Err(DriverError::Lost(Cause::StartFailed { detail }))
        }
        Err(error) => {
            let detail = error.to_string();
            Err(DriverError::Lost(Cause::StartFailed { detail }))
        }
    }
}

fn killed() -> Cause {
    Cause::VmmDied { detail: "it was killed while it started".to_owned() }
}

/// A process into which the version was loaded; its vCPUs stand still. The one that is there, if it maps the memory as it
/// has to, or a new one. What was loaded is not read again: nothing else may touch it meanwhile.
async fn load(
    qemu: &Qemu,
    slot: &Arc<Slot>,
    launch: &Launch,
    mapping: Mapping,
    kills: u64,
    on_stage: OnStage<'_>,
) -> Result<Arc<Vm>, Cause> {
    let mapping = if slot.state.is_memory_shared() { Mapping::Beside } else { mapping };
    if let Ok(vm) = slot.live()
        && let Stand::Loaded(manifest) = vm.stand()
        && slot.state.has_manifest()
        && misfit(&manifest, qemu, launch).is_none()
        && (mapping == Mapping::Consume || vm.mapping().await.is_ok_and(|own| own == Mapping::Beside))
    {
        return Ok(vm);
    }
    let (vm, manifest) = waiting(qemu, slot, launch, mapping, kills).await?;
    let busy = vm.busy();
    on_stage(Stage::Spawned);
    vm.set_origin(Origin::of(&manifest));
    let loaded = vm.load_device().await;
    drop(busy);
    match loaded {
        Ok(()) => {
            vm.set_stand(Stand::Loaded(manifest));
            on_stage(Stage::Restored);
            Ok(vm)
        }
        Err(error) => Err(load_fault(&vm, error).await),
    }
}

/// A new process that waits for the version, with what the version says.
async fn waiting(
    qemu: &Qemu,
    slot: &Arc<Slot>,
    launch: &Launch,
    mapping: Mapping,
    kills: u64,
) -> Result<(Arc<Vm>, Arc<Manifest>), Cause> {
    let manifest = Arc::new(check_version(qemu, slot, launch).await?);
    check_files(launch)?;
    let lock = claim(slot).await?;
    check_room(slot, launch.resources, slot.state.memory_blocks_bytes().map_err(no_files)?)?;
    let (state, wanted, noted) = (slot.state.clone(), launch.disk.clone(), manifest.disk.clone());
    let prepared =
        blocking(move || prepare::version(&state, wanted.as_ref(), noted.map(|noted| noted.chain), mapping));
    let chain = prepared.await.map_err(no_files)?;
    let (state, described) = (slot.state.clone(), Arc::clone(&manifest));
    // Beside the start of the process.
    let damaged = tokio::spawn(blocking(move || Ok(sums::damaged(&state, &described))));
    let ports = manifest.listeners.agent != Listener::NoPort;
    let start = Start::Incoming { mapping, ports };
    let vm = spawn(qemu, slot, lock, launch, chain.as_ref(), start, kills).await?;
    let device = File::open(slot.state.device()).map_err(no_files)?;
    let prepared = async {
        vm.leave_memory_out(manifest.devices).await?;
        vm.pass_device(OwnedFd::from(device)).await
    };
    match prepared.await {
        Ok(()) => {}
        Err(error) => return Err(vm.cause_of(error).await),
    }
    meet(&vm, &launch.link).await?;
    if let Ok(Some(damage)) = damaged.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
        vm.kill().await?;
        slot.set_vm(None);
        // No vCPU has seen it, and none is to: whoever looks for a version here finds none from now on.
        let state = slot.state.clone();
        blocking(move || state.consume()).await.map_err(no_files)?;
        return Err(Cause::VersionUnusable { detail: VersionFault::Contents(damage).to_string() });
    }
    Ok((vm, manifest))
}

/// Waits until the process has its network: a tap device it has from the beginning.
pub async fn meet(vm: &Vm, link: &Link) -> Result<(), Cause> {
    match link {
        Link::Stream => vm.meet_network().await,
        Link::Tap(_) => Ok(()),
    }
}

/// Makes sure that no earlier process is left, and that none can come. One that holds nothing of its own is ended;
/// one that may is not, and nothing that it uses is touched.
async fn claim(slot: &Arc<Slot>) -> Result<Lock, Cause> {
    let still_there =
        || Cause::StartFailed { detail: "an earlier process of it is still there; end it first".to_owned() };
    if let Some(vm) = slot.vm() {
        if vm.process.ended().is_none() && slot.version().await.is_none() {
            return Err(still_there());
        }
        vm.kill().await?;
        slot.set_vm(None);
    }
    slot.dir.create().map_err(no_files)?;
    Lock::try_take(&slot.dir.lock()).map_err(no_files)?.ok_or_else(still_there)
}

/// Starts a process and waits until it answers.
async fn spawn(
    qemu: &Qemu,
    slot: &Arc<Slot>,
    lock: Lock,
    launch: &Launch,
    chain: Option<&Chain>,
    start: Start,
    kills: u64,
) -> Result<Arc<Vm>, Cause> {
    slot.dir.rotate_logs().map_err(no_files)?;
    let identity = qemu.users.of(slot.instance);
    slot.dir.admit(identity).map_err(no_files)?;
    let near = match identity {
        Some(_) => Some(at_hand(slot, launch).map_err(no_files)?),
        None => None,
    };
    let argv =
        argv::instance(&qemu.binary.program, qemu.accel, near.as_ref().unwrap_or(launch), chain, start)
            .map_err(|detail| Cause::StartFailed { detail })?;
    let argv = match identity {
        Some(identity) => users::run_as(&argv, identity, qemu.accel.device()),
        None => argv,
    };
    let tap = match &launch.link {
        Link::Stream => None,
        Link::Tap(tap) => Some(tap.queue.open().map_err(|error| Cause::StartFailed {
            detail: format!("its tap device cannot be had: {error}"),
        })?),
    };
    let spawned = Process::spawn(&argv, slot.dir.root(), lock, &slot.dir.log(), tap);
    let process = spawned.map_err(|error| Cause::StartFailed {
        detail: format!("`{}` cannot be started: {error}", argv.program.display()),
    })?;
    let vm = Arc::new(Vm::new(process, slot.dir.clone()));
    vm.started_as(match start {
        Start::Boot => Mapping::Consume,
        Start::Incoming { mapping, .. } => mapping,
    });
    slot.set_vm(Some(Arc::clone(&vm)));
    if slot.is_killed_since(kills) {
        vm.process.kill();
    }
    vm.connect().await?;
    vm.meet_listeners().await;
    Ok(vm)
}

/// The launch with the image's files where the process can open them.
fn at_hand(slot: &Slot, launch: &Launch) -> io::Result<Launch> {
    let mut near = launch.clone();
    match &mut near.disk {
        Some(disk) => {
            [near.kernel, near.initrd, disk.base] =
                slot.dir.at_hand([&launch.kernel, &launch.initrd, &disk.base])?;
        }
        None => [near.kernel, near.initrd] = slot.dir.at_hand([&launch.kernel, &launch.initrd])?,
    }
    Ok(near)
}

/// The version, if it is intact and fits what is to be started.
pub async fn check_version(qemu: &Qemu, slot: &Slot, launch: &Launch) -> Result<Manifest, Cause> {
    let state = slot.state.clone();
    let read = blocking(move || Ok(state.read())).await.map_err(no_files)?;
    let unusable = |detail: String| Cause::VersionUnusable { detail };
    let manifest = read.map_err(|fault| unusable(fault.to_string()))?;
    match misfit(&manifest, qemu, launch) {
        Some(detail) => Err(unusable(detail)),
        None => Ok(manifest),
    }
}

/// What about the version does not fit the launch.
fn misfit(manifest: &Manifest, qemu: &Qemu, launch: &Launch) -> Option<String> {
    let needs = qemu.needs(launch);
    let had = manifest.resources;
    let base = |disk: &VersionDisk| disk.chain.base.clone();
    if manifest.version.image != launch.image {
        Some("it was taken from another image".to_owned())
    } else if manifest.disk.as_ref().map(base) != launch.disk.as_ref().map(|disk| disk.address.clone()) {
        Some("it was taken with another disk than the image has".to_owned())
    } else if had != needs.resources {
        let Resources { cpus, memory_mib, .. } = needs.resources;
        Some(format!(
            "it was taken with {} CPUs and {} MiB, the service has {cpus} and {memory_mib} MiB now",
            had.cpus, had.memory_mib
        ))
    } else if manifest.accelerator != needs.accelerator {
        Some(format!("it was taken under {}, this host runs {}", manifest.accelerator, needs.accelerator))
    } else if manifest.network != needs.network && !is_told(manifest, &needs) {
        let (had, has) = (network(&manifest.network), network(&needs.network));
        Some(format!("it was taken with {had}, the service has {has} now"))
    } else if series(&manifest.vmm) != series(&needs.vmm) {
        Some(format!("it was taken by QEMU {}, this is QEMU {}", manifest.vmm, needs.vmm))
    } else {
        None
    }
}

/// Whether the guest is a clone that will be told its addresses.
fn is_told(manifest: &Manifest, needs: &Needs) -> bool {
    manifest.clone_of.is_some() && manifest.network.is_empty() == needs.network.is_empty()
}

/// How a guest is on the network, for people.
fn network(noted: &str) -> &str {
    if noted.is_empty() { "a network link to the daemon" } else { noted }
}

/// `7.2` of `7.2.22`: within a series QEMU reads its own device states; the machine `microvm` promises no more.
fn series(version: &str) -> &str {
    version.rsplit_once('.').map_or(version, |(series, _)| series)
}

/// Kernel and initial RAM file system can be read; QEMU's own words on them are hard to understand.
fn check_files(launch: &Launch) -> Result<(), Cause> {
    for file in [&launch.kernel, &launch.initrd] {
        File::open(file).map_err(|error| Cause::StartFailed {
            detail: format!(
                "`{}` of its image cannot be read ({error}); build the image again",
                file.display()
            ),
        })?;
    }
    let Some(disk) = &launch.disk else { return Ok(()) };
    crate::qcow2::check_base(disk).map_err(|fault| Cause::StartFailed {
        detail: format!(
            "the disk `{}` of its image cannot be used: {fault}; build the image again",
            disk.base.display()
        ),
    })
}

/// Whether the disk has room for what the guest's memory may still grow by beyond `there`. A guest that touches
/// memory for which there is none would be killed.
fn check_room(slot: &Slot, resources: Resources, there: u64) -> Result<(), Cause> {
    let wanted = memory_bytes(resources).saturating_sub(there) + SPARE_BYTES;
    no_room(slot.dir.root(), wanted).map_or(Ok(()), |detail| Err(Cause::StartFailed { detail }))
}

/// A sentence with the remedy if the file system at `path` has not `wanted` bytes free.
pub fn no_room(path: &Path, wanted: u64) -> Option<String> {
    let free = match rustix::fs::statvfs(path) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => return Some(format!("the free room at `{}` cannot be told: {error}", path.display())),
    };
    (free < wanted).then(|| {
        format!(
            "the disk of `{}` has {} MiB free and {} MiB are needed; make room there",
            path.display(),
            free >> 20,
            wanted.div_ceil(1 << 20)
        )
    })
}

/// Why a version was not loaded. QEMU mostly ends when it cannot load one, with the reason as its last words.
async fn load_fault(vm: &Vm, error: QmpError) -> Cause {
    let refused = matches!(error, QmpError::Refused { .. });
    let cause = vm.cause_of(error).await;
    if let Cause::VmmDied { detail } | Cause::StartFailed { detail } = &cause
        && (refused || detail.contains("load of migration failed"))
    {
        return Cause::VersionUnusable { detail: detail.clone() };
    }
    cause
}

pub fn no_files(error: io::Error) -> Cause {
    Cause::StartFailed { detail: format!("its files cannot be used: {error}") }
}
