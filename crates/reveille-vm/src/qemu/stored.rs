//! Versions between the instance's directory and the object store.

use std::io;
use std::path::PathBuf;

use reveille_core::model::{Cause, InstanceId, SnapshotVersion};

use super::version::StateDir;
use super::{Qemu, blocking, prepare, sums};
use crate::driver::{DriverError, Launch, VersionFiles};

/// Opens the files of the intact version.
pub async fn version_files(qemu: &Qemu, instance: InstanceId) -> Result<VersionFiles, DriverError> {
    let state = qemu.slot(instance).state.clone();
    blocking(move || state.open_files()).await.map_err(store_fault)
}

/// Where a version is to be fetched to.
pub async fn fetch_dir(qemu: &Qemu, instance: InstanceId) -> Result<PathBuf, DriverError> {
    let slot = qemu.slot(instance);
    let _turn = slot.take_turn().await;
    let dir = slot.dir.clone();
    let prepared = blocking(move || {
        dir.create()?;
        match std::fs::remove_dir_all(dir.fetched()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(dir.fetched()),
        }
    });
    prepared.await.map_err(store_fault)
}

/// Makes the version that was fetched the instance's, as version `number`.
pub async fn install(qemu: &Qemu, launch: &Launch, number: u64) -> Result<SnapshotVersion, DriverError> {
    let slot = qemu.slot(launch.instance);
    let turn = slot.take_turn().await;
    slot.fence().await.map_err(DriverError::Lost)?;
    let (dir, state) = (slot.dir.clone(), slot.state.clone());
    let fetched = StateDir::at(dir.fetched());
    let installed = turn.blocking(move || {
        fetched.name_files()?;
        let mut manifest =
            fetched.read().map_err(|fault| io::Error::other(format!("it was fetched, and {fault}")))?;
        if manifest.version.number != number {
            manifest.version.number = number;
            fetched.publish(&manifest)?;
        }
        prepare::install(&dir, &state, &manifest)?;
        Ok(manifest.version)
    });
    let version = installed.await.map_err(store_fault)?;
    sums::record_later(&slot);
    Ok(version)
}

/// Removes the version, which the object store has.
pub async fn evict(qemu: &Qemu, instance: InstanceId) -> Result<(), DriverError> {
    let slot = qemu.slot(instance);
    let turn = slot.take_turn().await;
    slot.fence().await.map_err(DriverError::Lost)?;
    let (dir, state) = (slot.dir.clone(), slot.state.clone());
    turn.blocking(move || prepare::evict(&dir, &state)).await.map_err(store_fault)
}

fn store_fault(error: io::Error) -> DriverError {
    DriverError::RunsOn(Cause::StoreFailed { detail: error.to_string() })
}
