//! What there is of an instance after a restart of the daemon.
//!
//! | manifest | process | its guest | found |
//! |---|---|---|---|
//! | intact | none | | nothing, with the version |
//! | none, or unfit | none | | nothing |
//! | intact | answers | loaded, and noted as such | untouched, armed |
//! | intact | answers | half loaded, warmed, or captured | untouched |
//! | intact | answers | runs, and by its row it sleeps: it was being warmed | untouched |
//! | any | answers | runs otherwise | running: the manifest, if any, is no version |
//! | none, or unfit | answers | stands still | stopped |
//! | any | does not answer | | hung |

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reveille_core::model::Found;
use tokio::time::{sleep, timeout};

use super::layout::{SOCKET, sync_dir};
use super::process::{Lock, Process};
use super::qmp::{Qmp, QmpError};
use super::version::Manifest;
use super::vm::{Origin, Stand, Vm};
use super::{Qemu, Slot, Turn, blocking, guest, start};
use crate::driver::Launch;

/// Longest wait for a process that was found to answer. It may just have been started, and who is wrongly called
/// hung is ended with all that it holds.
const FIND_MS_MAX: u64 = 10_000;
/// Pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(10);

/// Looks, and takes over the process that is there.
pub async fn find(qemu: &Qemu, launch: &Launch, asleep: bool) -> Found {
    let slot = &qemu.slot(launch.instance);
    let turn = slot.take_turn().await;
    // By what is found a process is ended, or let run: it must not be otherwise after a loss of power.
    let (state, root) = (slot.state.clone(), slot.dir.root().to_owned());
    let settled = turn.blocking(move || {
        state.settle()?;
        if root.exists() { sync_dir(&root) } else { Ok(()) }
    });
    if let Err(error) = settled.await {
        tracing::error!(instance = %slot.instance, %error, "its directory cannot be made durable");
    }
    let known = slot.vm().filter(|vm| vm.process.ended().is_none());
    let vm = match known {
        Some(vm) => Some(vm),
        None => match take_over(slot).await {
            Ok(found) => found,
            Err(Unseen) => return Found::Hung { waited_ms: FIND_MS_MAX },
        },
    };
    let Some(vm) = vm else {
        slot.set_vm(None);
        return Found::Nothing {
            version: fitting(qemu, slot, launch).await.map(|manifest| manifest.version),
        };
    };
    let began = Instant::now();
    let hung = || Found::Hung { waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX) };
    match state_of(qemu, slot, &turn, launch, (&vm, asleep)).await {
        Ok(Found::Running) => {
            guest::thaw_again(&vm, launch).await;
            Found::Running
        }
        Ok(found) => found,
        Err(_) if vm.process.ended().is_some() => {
            slot.set_vm(None);
            Found::Nothing { version: fitting(qemu, slot, launch).await.map(|manifest| manifest.version) }
        }
        Err(error) => {
            tracing::warn!(instance = %slot.instance, pid = vm.process.pid, %error, "its process does not answer");
            match error {
                QmpError::Timeout { waited_ms, .. } => Found::Hung { waited_ms },
                QmpError::Connect(_)
                | QmpError::Refused { .. }
                | QmpError::Closed
                | QmpError::Protocol(_)
                | QmpError::TooMany => hung(),
            }
        }
    }
}

async fn state_of(
    qemu: &Qemu,
    slot: &Slot,
    turn: &Turn,
    launch: &Launch,
    (vm, asleep): (&Vm, bool),
) -> Result<Found, QmpError> {
    if vm.qmp().is_err() {
        return Err(QmpError::Timeout { command: "greeting", waited_ms: FIND_MS_MAX });
    }
    let status = vm.status(FIND_MS_MAX).await?;
    let version = fitting(qemu, slot, launch).await;
    let loaded = matches!(vm.stand(), Stand::Loaded(_)) || slot.dir.is_noted_loaded(vm.process.pid);
    Ok(match (status.as_str(), version) {
        // Taken as the guest that it would be lost with, it would cost the version that it came from.
        ("running" | "guest-panicked", Some(version)) if asleep => {
            Found::Untouched { version: version.version, armed: false }
        }
        // Also a guest that crashed or shut down: it has run, and its next heartbeat says so.
        (
            "running" | "guest-panicked" | "internal-error" | "io-error" | "shutdown" | "watchdog"
            | "suspended",
            _,
        ) => {
            let state = slot.state.clone();
            if let Err(error) = turn.blocking(move || state.consume()).await {
                tracing::error!(instance = %slot.instance, %error, "its manifest cannot be taken away");
            }
            Found::Running
        }
        (_, Some(version)) => {
            let described = version.version.clone();
            let armed = loaded && start::meet(vm, &launch.link).await.is_ok();
            if armed {
                vm.set_origin(Origin::of(&version));
                vm.set_stand(Stand::Loaded(Arc::new(version)));
            }
            Found::Untouched { version: described, armed }
        }
        // It waits for a version that it cannot be given, or has one that does not fit: there is nothing else in it. An intact
        // one is told all the same; the restore will say what about it does not fit.
        ("inmigrate", None) => match slot.version().await {
            Some(version) => Found::Untouched { version, armed: false },
            None => Found::Hung { waited_ms: 0 },
        },
        (_, None) if loaded => match slot.version().await {
            Some(version) => Found::Untouched { version, armed: false },
            // Nothing has run, but the manifest was taken away.
            None => Found::Stopped,
        },
        (_, None) => Found::Stopped,
    })
}

/// The version that is intact and can be restored for this launch.
async fn fitting(qemu: &Qemu, slot: &Slot, launch: &Launch) -> Option<Manifest> {
    match start::check_version(qemu, slot, launch).await {
        Ok(manifest) => Some(manifest),
        Err(fault) => {
            if slot.state.has_manifest() {
                tracing::warn!(instance = %slot.instance, %fault, "the version on disk is not used");
            }
            None
        }
    }
}

/// A process holds the lock that this user may not look at.
struct Unseen;

/// Takes over the process that holds the instance's lock; `None` if nobody does.
async fn take_over(slot: &Arc<Slot>) -> Result<Option<Arc<Vm>>, Unseen> {
    let began = Instant::now();
    let lock = slot.dir.lock();
    let held = |lock: &Path| {
        Lock::is_held(lock).unwrap_or_else(|error| {
            tracing::warn!(instance = %slot.instance, %error, "its lock cannot be looked at");
            false
        })
    };
    while held(&lock) {
        let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let left_ms = FIND_MS_MAX.saturating_sub(waited_ms);
        if let Some((process, qmp)) = connect(slot, left_ms).await {
            let vm = Arc::new(Vm::adopted(process, slot.dir.clone(), qmp));
            slot.set_vm(Some(Arc::clone(&vm)));
            vm.meet_listeners().await;
            return Ok(Some(vm));
        }
        if left_ms == 0 {
            // Silent: known by its lock alone, so that it can be ended and its end be seen.
            let looked_for = lock.clone();
            let holder = blocking(move || Process::holder(&looked_for)).await.ok().flatten();
            let Some(holder) = holder else {
                return if held(&lock) { Err(Unseen) } else { Ok(None) };
            };
            let vm = Arc::new(Vm::new(holder, slot.dir.clone()));
            slot.set_vm(Some(Arc::clone(&vm)));
            return Ok(Some(vm));
        }
        sleep(RETRY).await;
    }
    Ok(None)
}

/// The process behind the control socket, if it answers and is the one that holds the lock.
async fn connect(slot: &Slot, limit_ms: u64) -> Option<(Process, Qmp)> {
    let (_dir, path) = slot.dir.short_path(SOCKET).ok()?;
    let qmp = timeout(Duration::from_millis(limit_ms), Qmp::connect(&path)).await.ok()?.ok()?;
    let peer = rustix::net::sockopt::socket_peercred(qmp.socket()).ok()?;
    let process = Process::adopt(peer.pid.as_raw_nonzero().get(), &slot.dir.lock()).ok()??;
    Some((process, qmp))
}
