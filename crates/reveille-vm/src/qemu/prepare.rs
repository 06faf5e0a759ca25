//! What a process is to find in its instance's directory: which layers of its disk, and whose.
//!
//! Each function leaves, at every moment, a state whose disk is found again: what takes a place does so in one step.

use std::fs;
use std::io;

use reveille_failpoint::failpoint;

use super::disk::{Chain, LAYERS_MAX};
use super::layout::InstanceDir;
use super::version::{Manifest, StateDir};
use crate::driver::{Disk, Launch, Mapping};

/// With more layers than this a version is not set aside, for that keeps its layers from being folded.
const LAYERS_SHARED_MAX: usize = LAYERS_MAX / 2;

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
        (Some(disk), before) => {
            if before.is_none() && dir.is_away() {
                return Err(io::Error::other(
                    "its disk is in the object store alone; it is fetched before the instance runs again",
                ));
            }
            if has_version || before.is_some() {
                dir.set_state_aside()?;
            }
            Chain::clean(None, state.path())?;
            Some(Chain::create(disk, state.path())?)
        }
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
    if state.path().exists() && state.chain()?.is_some() {
        dir.note_away()?;
    }
    failpoint!("vm.evict.begin");
    dir.drop_state()?;
    failpoint!("vm.evict.dropped");
    match fs::remove_dir_all(dir.checkpoint()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
