//! What a process is to find in its instance's directory: which layers of its disk, and whose.
//!
//! Each function leaves, at every moment, a state whose disk is found again: what takes a place does so in one step.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use reveille_failpoint::failpoint;

use super::disk::{Chain, LAYERS_MAX};
use super::layout::{InstanceDir, create_private_dir, sync_dir};
use super::version::{Manifest, StateDir};
use crate::driver::{Disk, Launch, Mapping};

/// With more layers than this a version is not set aside, for that keeps its layers from being folded.
const LAYERS_SHARED_MAX: usize = LAYERS_MAX / 2;

/// Most removed services of which a version without a disk is kept.
const REMOVED_VERSIONS_MAX: usize = 4;

/// Prepares the state for a boot and gives the layers of the disk: those that an earlier guest wrote to, whatever became
/// of it. A version that is there is set aside. A disk of another base belongs to another image: it is set aside, too.
pub fn boot(dir: &InstanceDir, state: &StateDir, launch: &Launch) -> io::Result<Option<Chain>> {
    let before = state.chain()?;
    let has_version = state.has_manifest();
    let chain = match (&launch.disk, before) {
        (Some(disk), Some(chain)) if chain.base == disk.address => {
            chain.check_layers(state.path()).map_err(io::Error::other)?;
            Some(if has_version { continued(dir, state, chain)? } else { chain })
        }
        (Some(disk), before) => Some(first_of(dir, state, disk, has_version || before.is_some())?),
        (None, before) => {
            if has_version || before.is_some() {
                dir.set_state_aside()?;
            }
            None
        }
    };
    if let Some(chain) = &chain {
        chain.record(state.path())?;
        Chain::clean(Some(chain), state.path())?;
    }
    state.create_memory(launch.resources)?;
    Ok(chain)
}

/// A disk over another base than that of the state, which is set aside whole. It is the last one over that base that was
/// set aside, for the service may have had this image before, or a new one.
fn first_of(dir: &InstanceDir, state: &StateDir, disk: &Disk, is_taken: bool) -> io::Result<Chain> {
    if dir.is_away(&disk.address)? {
        return Err(io::Error::other(
            "its disk is in the object store alone; it is fetched before the instance runs again, or go back to a \
             version with `reveille snapshot restore`",
        ));
    }
    for place in dir.set_aside()?.into_iter().rev() {
        let Ok(Some(chain)) = StateDir::at(place.clone()).chain() else { continue };
        if chain.base != disk.address {
            continue;
        }
        chain.check_layers(&place).map_err(io::Error::other)?;
        if is_taken {
            dir.put_in_place_of_state(&place)?;
        } else {
            dir.replace_state(&place)?;
        }
        return if state.has_manifest() { continued(dir, state, chain) } else { Ok(chain) };
    }
    if is_taken {
        dir.set_state_aside()?;
    }
    Chain::clean(None, state.path())?;
    Chain::create(disk, state.path())
}

/// Sets a version aside with its layers, which stay as they are, and goes on from them.
fn continued(dir: &InstanceDir, state: &StateDir, chain: Chain) -> io::Result<Chain> {
    if chain.layers.len() > LAYERS_SHARED_MAX {
        // The order matters: from here on the record counts.
        chain.record(state.path())?;
        state.consume()?;
        return Ok(chain);
    }
    let next = dir.fresh_next()?;
    chain.link(state.path(), &next)?;
    let grown = chain.grown(&next)?;
    grown.record(&next)?;
    dir.put_in_place_of_state(&next)?;
    Ok(grown)
}

/// Prepares a version for the process that is to run it, and gives the layers that this has: with one on top for what
/// goes beside the version. No process is there.
pub fn version(
    state: &StateDir,
    disk: Option<&Disk>,
    noted: Option<Chain>,
    mapping: Mapping,
) -> io::Result<Option<Chain>> {
    let (Some(_), Some(noted)) = (disk, noted) else { return Ok(None) };
    let chain = match mapping {
        Mapping::Consume => noted,
        Mapping::Beside => noted.grown(state.path())?,
    };
    chain.record(state.path())?;
    Chain::clean(Some(&chain), state.path())?;
    Ok(Some(chain))
}

/// Makes the version that was fetched the state. A disk that a guest was lost with is kept aside.
pub fn install(dir: &InstanceDir, state: &StateDir, fetched: &Manifest) -> io::Result<()> {
    if let Some(disk) = &fetched.disk {
        disk.chain.record(&dir.fetched())?;
    }
    failpoint!("vm.install.begin");
    let lost_disk = !state.has_manifest() && state.path().exists() && state.chain()?.is_some();
    if lost_disk {
        dir.put_in_place_of_state(&dir.fetched())?;
    } else {
        dir.replace_state(&dir.fetched())?;
    }
    dir.note_back()
}

/// Removes the version, which the object store has. That its disk is there alone is noted before.
pub fn evict(dir: &InstanceDir, state: &StateDir) -> io::Result<()> {
    if !state.has_manifest() && state.path().exists() && state.chain()?.is_some() {
        return Err(io::Error::other("its disk was written to since its last version"));
    }
    if state.path().exists()
        && let Some(chain) = state.chain()?
    {
        dir.note_away(&chain.base)?;
    }
    failpoint!("vm.evict.begin");
    dir.drop_state()?;
    failpoint!("vm.evict.dropped");
    match fs::remove_dir_all(dir.checkpoint()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Drops the version, and what it has of memory; the disk stays, as the version had it or as the last guest left it.
pub fn keep_disk(dir: &InstanceDir, state: &StateDir) -> io::Result<()> {
    if !state.path().exists() {
        return Ok(());
    }
    // A record that cannot be read is told of when the disk is needed.
    let Ok(chain) = state.chain() else { return Ok(()) };
    if let Some(chain) = &chain {
        // The order matters: without a manifest the record counts.
        chain.record(state.path())?;
    }
    failpoint!("vm.end.recorded");
    state.consume()?;
    failpoint!("vm.end.consumed");
    state.discard()?;
    if chain.is_some() {
        Chain::clean(chain.as_ref(), state.path())?;
    }
    for left in [state.memory(), dir.fetched(), dir.checkpoint(), dir.next()] {
        remove(&left)?;
    }
    Ok(())
}

/// Removes all that an instance has. If that is a disk or a version, it is put out of the way instead, and where that is
/// returned: a service may be gone by a slip in a config file.
pub fn clear_away(dir: &InstanceDir, state: &StateDir, removed: &Path) -> io::Result<Option<PathBuf>> {
    let aside = dir.set_aside()?.into_iter().map(StateDir::at);
    let is_wanted = |state: StateDir| state.has_manifest() || !matches!(state.chain(), Ok(None));
    if !dir.root().exists() || !std::iter::once(state.clone()).chain(aside).any(is_wanted) {
        remove(dir.root())?;
        return Ok(None);
    }
    create_private_dir(removed)?;
    let name = dir.root().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let names = std::iter::once(name.clone()).chain((2..).map(|again: u64| format!("{name}-{again}")));
    let free = names.map(|name| removed.join(name)).find(|place| !place.exists());
    let place = free.ok_or_else(|| io::Error::other("no name is left for it"))?;
    fs::rename(dir.root(), &place)?;
    failpoint!("vm.remove.moved");
    sync_dir(removed)?;
    dir.root().parent().map_or(Ok(()), sync_dir)?;
    for left in ["fetched", "checkpoint", "next"] {
        remove(&place.join(left))?;
    }
    forget_removed(removed)?;
    Ok(Some(place))
}

/// Removes the oldest of the versions without a disk that removed services had. Disks are removed by hand alone.
fn forget_removed(removed: &Path) -> io::Result<()> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(removed)? {
        let path = entry?.path();
        let has_disk = |state: PathBuf| !matches!(StateDir::at(state).chain(), Ok(None));
        let aside = fs::read_dir(path.join("aside")).into_iter().flatten().flatten();
        if !has_disk(path.join("state")) && !aside.map(|entry| entry.path()).any(has_disk) {
            versions.push((path.metadata()?.ctime(), path));
        }
    }
    versions.sort();
    versions.iter().rev().skip(REMOVED_VERSIONS_MAX).try_for_each(|(_, path)| remove(path))
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
