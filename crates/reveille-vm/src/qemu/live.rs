//! Versions of guests whose memory is not simply there in the version's file: of one that runs on (a checkpoint), and of
//! one whose writes stayed its own because the file was needed as it was.
//!
//! Both are transfers of the whole guest into a socket of ours (see `stream`): pages come while the guest runs, those that
//! it changes come again, and it stands still only for the rest. Pages that are as they were are not written again.
//! Where QEMU does not know all that a running guest changes, it stands still for all of it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reveille_core::model::{Cause, SnapshotVersion, Timestamp};
use rustix::fs::FallocateFlags;

use reveille_failpoint::failpoint;

use super::argv::MEMORY_BLOCK;
use super::blocks::NewLayer;
use super::capture::{Halt, flush, let_run, unless};
use super::disk::Chain;
use super::fold::{self, FoldError};
use super::layout::{create_private_dir, private};
use super::start::{SPARE_BYTES, no_room};
use super::stream::{PAGE_BYTES, Page, Pages, StreamFault, separate};
use super::version::{Devices, StateDir, memory_bytes};
use super::vm::Vm;
use super::{Qemu, Slot, Turn, blocking};
use crate::driver::{Abandon, DriverError, Launch, VersionFiles};
use crate::files::next_extent;

/// For how long QEMU may stop the guest for the rest of its memory, as far as it can tell.
const PAUSE_MS: u64 = 10;
/// Bytes of the socket between QEMU and us.
const SOCKET_BYTES: usize = 1 << 20;

/// Publishes the version in `state/` of a guest whose memory is mapped beside it. The guest stands still afterwards.
pub async fn publish(
    qemu: &Qemu,
    slot: &Slot,
    turn: &Turn,
    vm: &Vm,
    launch: &Launch,
    version: &mut SnapshotVersion,
    abandon: &Abandon,
) -> Result<(), Halt> {
    let next = StateDir::at(slot.dir.next());
    let needs = vm.note_listeners(qemu.needs(launch)).await?;
    let stopped = transfer(qemu, slot, vm, launch, &next, Some(&slot.state), None, abandon).await?;
    let (state, described) = (next.clone(), version.clone());
    let before = slot.state.path().to_owned();
    let seal = blocking(move || {
        state.sync_memory()?;
        Chain::clean(None, state.path())?;
        let chain = Chain::recorded(&before)?;
        let disk = chain.as_ref().map(|chain| chain.describe(&before)).transpose()?;
        if let Some(chain) = chain {
            // The very files that QEMU has open: should it run on, it writes to those that are then in the state.
            chain.link(&before, state.path())?;
            chain.record(state.path())?;
        }
        let paused_us = || u64::try_from(stopped.elapsed().as_micros()).unwrap_or(u64::MAX);
        state.describe(described, needs, Devices::Separated, disk, paused_us)
    });
    let manifest = flush(abandon, seal).await?;
    *version = manifest.version.clone();
    let dir = slot.dir.clone();
    // Not given up half-way: a manifest that appeared after it was looked for would lie.
    let published = turn.blocking(move || {
        next.publish(&manifest)?;
        failpoint!("vm.capture.beside");
        dir.replace_state(&dir.next())
    });
    published.await?;
    if abandon.is_raised() { Err(Halt::Abandoned) } else { Ok(()) }
}

/// Takes version `number` of a running guest into `checkpoint/`, and lets it run on.
pub async fn checkpoint(
    qemu: &Qemu,
    launch: &Launch,
    number: u64,
    now: Timestamp,
) -> Result<VersionFiles, DriverError> {
    let slot = qemu.slot(launch.instance);
    let (turn, kills) = slot.take_marked_turn().await;
    let vm = slot.live()?;
    if slot.is_killed_since(kills) {
        return Err(DriverError::NoProcess(launch.instance));
    }
    let _busy = vm.busy();
    let version =
        SnapshotVersion { number, at: now, stored_bytes: 0, paused_us: 0, image: launch.image.clone() };
    let target = StateDir::at(slot.dir.checkpoint());
    let failed = |detail: String| DriverError::RunsOn(Cause::CaptureFailed { detail });
    let needs = match vm.note_listeners(qemu.needs(launch)).await {
        Ok(needs) => needs,
        Err(error) => return Err(DriverError::Lost(vm.cause_of(error).await)),
    };
    let (below, layer) = match new_layer(&slot, &turn, &vm).await {
        Ok(Some((below, layer))) => (Some(below), Some(layer)),
        Ok(None) => (None, None),
        Err(Halt::Qmp(error)) => return Err(DriverError::Lost(vm.cause_of(error).await)),
        Err(Halt::Failed(detail)) => return Err(failed(detail)),
        Err(Halt::Abandoned) => return Err(failed("it was given up".to_owned())),
    };
    let base = Some(&target);
    let never = Abandon::default();
    let taken = transfer(qemu, &slot, &vm, launch, &target, base, layer.as_ref(), &never).await;
    failpoint!("vm.checkpoint.stopped");
    // Whatever came of it, the guest is to run again first.
    let_run(&slot, &turn, &vm).await.map_err(DriverError::Lost)?;
    let unused = layer.filter(|layer| !layer.used.load(Ordering::Acquire));
    if let (Some(layer), Some(below)) = (unused, &below) {
        // Best effort: as long as it is empty it hides nothing.
        if let Err(error) = take_back(&slot, &turn, &vm, layer, below.clone()).await {
            tracing::warn!(instance = %slot.instance, %error, "an empty layer of its disk stays");
        }
    }
    let stopped = match taken {
        Ok(stopped) => stopped,
        Err(Halt::Abandoned) => return Err(failed("it was given up".to_owned())),
        Err(Halt::Failed(detail)) => return Err(failed(detail)),
        Err(Halt::Qmp(error)) => return Err(DriverError::Lost(vm.cause_of(error).await)),
    };
    let paused_us = u64::try_from(stopped.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (state, layers) = (target.clone(), slot.state.path().to_owned());
    let sealed = turn.blocking(move || {
        state.sync_memory()?;
        let disk = below.map(|chain| chain.describe(&layers)).transpose()?;
        let manifest = state.describe(version, needs, Devices::Separated, disk, || paused_us)?;
        failpoint!("vm.checkpoint.sealed");
        state.publish(&manifest)?;
        failpoint!("vm.checkpoint.published");
        state.open_files_with(&layers)
    });
    sealed.await.map_err(|error| failed(error.to_string()))
}

/// An empty layer for the guest's disk, which QEMU has opened and the record names; and the layers below it. `None` for a
/// guest without a disk.
async fn new_layer(slot: &Slot, turn: &Turn, vm: &Vm) -> Result<Option<(Chain, NewLayer)>, Halt> {
    fold::catch_up(slot, vm).await?;
    let dir = slot.state.path().to_owned();
    let Some(chain) = turn.blocking(move || Chain::recorded(&dir)).await? else { return Ok(None) };
    let top = vm.top_layer().await?;
    let unused = chain.lower().filter(|lower| lower.top() == top);
    let (below, name) = if top == chain.top() {
        let dir = slot.state.path().to_owned();
        let (below, made) = (chain.clone(), move || {
            let grown = chain.grown(&dir)?;
            // Before QEMU can write to it. As long as it does not, the layer hides nothing of those below.
            grown.record(&dir)?;
            Ok(grown.top())
        });
        (below, turn.blocking(made).await?)
    } else if let Some(lower) = unused {
        // An earlier daemon came to an end between recording it and having it put on top.
        (lower, chain.top())
    } else {
        let detail =
            format!("QEMU writes to the layer {top} of its disk, the record ends with {}", chain.top());
        return Err(Halt::Failed(detail));
    };
    failpoint!("vm.layer.recorded");
    if !vm.has_layer(&name).await? {
        vm.add_layer(&name).await?;
    }
    let layer = NewLayer { name, below: below.top(), used: AtomicBool::new(false) };
    Ok(Some((below, layer)))
}

/// Takes back a layer that was not put on top.
async fn take_back(
    slot: &Slot,
    turn: &Turn,
    vm: &Vm,
    layer: NewLayer,
    below: Chain,
) -> Result<(), FoldError> {
    // Refused if it is on top after all.
    vm.drop_layer(&layer.name).await?;
    let dir = slot.state.path().to_owned();
    let removed = turn.blocking(move || {
        below.record(&dir)?;
        fs::remove_file(dir.join(layer.name))
    });
    Ok(removed.await?)
}

/// Transfers the guest into `target`, beginning with the pages that `base` has; gives the instant at which the guest
/// was stopped. It stands still afterwards, unless this fails early.
#[expect(clippy::too_many_arguments, reason = "each is another thing")]
async fn transfer(
    qemu: &Qemu,
    slot: &Slot,
    vm: &Vm,
    launch: &Launch,
    target: &StateDir,
    base: Option<&StateDir>,
    layer: Option<&NewLayer>,
    abandon: &Abandon,
) -> Result<Instant, Halt> {
    let status = vm.status(super::qmp::COMMAND_MS_MAX).await?;
    if status != "running" {
        return Err(Halt::Failed(format!("the guest is in no state to be kept (QEMU calls it `{status}`)")));
    }
    let bytes = memory_bytes(launch.resources);
    if let Some(detail) = no_room(slot.dir.root(), bytes + SPARE_BYTES) {
        return Err(Halt::Failed(detail));
    }
    let (prepared, base) = (target.clone(), base.cloned());
    let prepare = blocking(move || Memory::prepare(&prepared, base.as_ref(), bytes));
    let mut memory = unless(abandon, prepare).await??;

    vm.prepare_transfer(Devices::Separated, layer.is_some()).await?;
    vm.transfer_fast(PAUSE_MS).await?;
    let (ours, theirs) = UnixStream::pair()?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&ours, SOCKET_BYTES).map_err(io::Error::from)?;
    vm.pass_device(OwnedFd::from(theirs)).await?;
    let reading = tokio::task::spawn_blocking(move || separate(ours, MEMORY_BLOCK, bytes, &mut memory));
    // File systems are not frozen for this: note 0004 says why.
    let before = if qemu.tracks_writes() {
        None
    } else {
        let before = Instant::now();
        vm.stop().await?;
        Some(before)
    };
    let stopped = match unless(abandon, vm.save_whole(layer)).await {
        Ok(Ok(stopped)) => before.unwrap_or(stopped),
        halt => {
            // Else it would go on by itself, into files that are no longer meant for it, and stop the guest when it is through.
            vm.settle_migration().await?;
            // It was called off before it began: what is read would never end.
            vm.forget_device().await?;
            let read = reading.await;
            let error = match halt {
                Err(halt) => return Err(halt),
                Ok(saved) => saved.err().unwrap_or(super::qmp::QmpError::Closed),
            };
            // Why it ended is told best by who read it, unless that only saw the end.
            if let Ok(Err(fault)) = read
                && !matches!(&fault, StreamFault::Io { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof)
            {
                return Err(Halt::Failed(fault.to_string()));
            }
            return Err(Halt::Qmp(error));
        }
    };
    let devices = match reading.await {
        Ok(Ok(devices)) => devices,
        Ok(Err(fault)) => return Err(Halt::Failed(format!("QEMU's stream was not understood: {fault}"))),
        Err(error) => return Err(Halt::Failed(error.to_string())),
    };
    let target = target.clone();
    blocking(move || io::Write::write_all(&mut target.create_device()?, &devices)).await?;
    Ok(stopped)
}

/// A memory file that becomes that of a version page by page.
struct Memory(File);

impl Memory {
    /// Sets up the directory of `target` with a memory file that has the pages of `base`'s, or zeros.
    fn prepare(target: &StateDir, base: Option<&StateDir>, bytes: u64) -> io::Result<Self> {
        let path = target.memory();
        let dir = path.parent().unwrap_or(Path::new("."));
        create_private_dir(dir)?;
        target.discard()?;
        let same = base.is_some_and(|base| base.memory() == path);
        let fits = |path: &Path| path.metadata().is_ok_and(|file| file.len() == bytes);
        if same && fits(&path) {
            return Ok(Self(fs::OpenOptions::new().read(true).write(true).open(path)?));
        }
        let file = private().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(bytes)?;
        if let Some(base) = base.map(StateDir::memory).filter(|base| !same && fits(base)) {
            copy_sparse(&File::open(base)?, &file)?;
        }
        Ok(Self(file))
    }
}

impl Pages for Memory {
    fn take(&mut self, number: u64, page: Page<'_>) -> io::Result<()> {
        let at = number * PAGE_BYTES as u64;
        let mut before = [0; PAGE_BYTES];
        self.0.read_exact_at(&mut before, at)?;
        match page {
            Page::Whole(now) if *now != before => self.0.write_all_at(now, at),
            Page::Filled(0) if before != [0; PAGE_BYTES] => {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match rustix::fs::fallocate(&self.0, hole, at, PAGE_BYTES as u64) {
                    Ok(()) => Ok(()),
                    Err(rustix::io::Errno::OPNOTSUPP) => self.0.write_all_at(&[0; PAGE_BYTES], at),
                    Err(error) => Err(error.into()),
                }
            }
            Page::Filled(byte) if before != [byte; PAGE_BYTES] => {
                self.0.write_all_at(&[byte; PAGE_BYTES], at)
            }
            Page::Whole(_) | Page::Filled(_) => Ok(()),
        }
    }
}

/// Copies what is in a file and leaves its holes holes; where the file system can, nothing is copied but references.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut at = 0;
    while let Some(extent) = next_extent(from, at)? {
        let (mut source, mut target) = (extent.start, extent.start);
        while source < extent.end {
            let wanted = usize::try_from(extent.end - source).unwrap_or(usize::MAX);
            if rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted)? == 0 {
                break;
            }
        }
        at = extent.end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_replace_what_was_there_and_holes_stay_holes() {
        let temp = tempfile::tempdir().unwrap();
        let (base, target) = (StateDir::at(temp.path().join("a")), StateDir::at(temp.path().join("b")));
        let bytes = 64 * PAGE_BYTES as u64;
        let mut memory = Memory::prepare(&base, None, bytes).unwrap();
        memory.take(1, Page::Filled(7)).unwrap();
        memory.take(40, Page::Whole(&[8; PAGE_BYTES])).unwrap();

        let mut memory = Memory::prepare(&target, Some(&base), bytes).unwrap();
        memory.take(1, Page::Filled(0)).unwrap();
        memory.take(2, Page::Filled(0)).unwrap();
        memory.take(3, Page::Whole(&[9; PAGE_BYTES])).unwrap();
        let read = fs::read(target.memory()).unwrap();
        let first: Vec<u8> = read.chunks(PAGE_BYTES).map(|page| page[0]).collect();
        assert_eq!((first[1], first[3], first[40], first.len()), (0, 9, 8, 64));
        assert!(target.memory_blocks_bytes().unwrap() <= 4 * PAGE_BYTES as u64);
        assert_eq!(fs::read(base.memory()).unwrap()[PAGE_BYTES], 7, "the other file is as it was");

        // Into the same place again: what is there is the beginning.
        let again = Memory::prepare(&target, Some(&target), bytes).unwrap();
        drop(again);
        assert_eq!(fs::read(target.memory()).unwrap(), read);
    }
}
