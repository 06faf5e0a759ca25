//! A version for two instances: the clone's is made of the same files, and a note in its manifest says that its guest
//! has to be told who it is before a client sees it.
//!
//! The memory is a hard link. Whoever restores from memory that has more than one link does so beside it
//! ([`Mapping::Beside`]), source and clone alike, so that its file stays what it is and its page cache is shared.

use reveille_core::model::{DomainName, InstanceId, SnapshotVersion};

use reveille_failpoint::failpoint;

use super::layout::sync_dir;
use super::version::{Listener, StateDir};
use super::{Qemu, blocking};
use crate::driver::CloneError;

/// The first version of every service.
const FIRST: u64 = 1;

/// Makes the version of `from` that of `to` as well.
pub async fn clone_version(
    qemu: &Qemu,
    from: InstanceId,
    to: InstanceId,
    service: &DomainName,
    identical: bool,
) -> Result<SnapshotVersion, CloneError> {
    let (source, target) = (qemu.slot(from), qemu.slot(to));
    // While its turn is taken the source is not restored.
    let _turn = source.take_turn().await;
    let turn = target.take_turn().await;
    if target.live().is_ok() || target.state.has_manifest() {
        return Err(CloneError::InUse(to));
    }
    let state = source.state.clone();
    let manifest = blocking(move || Ok(state.read())).await?.map_err(|_| CloneError::NoVersion)?;
    if manifest.disk.is_some() {
        return Err(CloneError::HasDisk);
    }
    let clone_of = match manifest.listeners.agent {
        Listener::Present => Some(service.to_string()),
        Listener::NoPort | Listener::Silent if identical => None,
        Listener::NoPort | Listener::Silent => return Err(CloneError::NoAgent),
    };
    let version = SnapshotVersion { number: FIRST, ..manifest.version.clone() };
    let manifest = manifest.cloned(version.clone(), clone_of);
    let (from, dir, to) = (source.state.clone(), target.dir.clone(), target.state.clone());
    turn.blocking(move || {
        dir.create()?;
        link(&from, &to)?;
        failpoint!("vm.clone.linked");
        to.publish(&manifest)?;
        failpoint!("vm.clone.published");
        sync_dir(dir.root())
    })
    .await?;
    Ok(version)
}

/// Memory as a link, and a copy of the device state, which is small and may be written anew in its place.
fn link(from: &StateDir, to: &StateDir) -> std::io::Result<()> {
    for left in [to.memory(), to.device()] {
        match std::fs::remove_file(left) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    std::fs::hard_link(from.memory(), to.memory())?;
    let mut device = to.create_device()?;
    std::io::copy(&mut std::fs::File::open(from.device())?, &mut device)?;
    device.sync_all()
}
