//! Folding: what checkpoints and guests beside versions put on top of the disk is written down into the lowest layer,
//! while the guest runs, so that a disk has two layers of its own at rest.
//!
//! ```text
//! base ◄─ disk-0 ◄─ disk-4 ◄─ disk-7      disk-4 is copied into disk-0 (QEMU's block-commit)
//!            └───────────┘    the guest writes here, and is not disturbed
//! base ◄─ disk-0 ◄─ disk-7
//! ```
//!
//! Never the uppermost layer: so what is read through the chain is at every moment the same, with and without the layer
//! that is being folded, and a crash costs nothing. The record loses the layer once QEMU has it all in the lowest, and on
//! the disk; the file goes last. A job that is done stays in QEMU until then, so that also another daemon finds it.

use std::fs;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use reveille_failpoint::failpoint;

use super::disk::{Chain, LAYERS_MAX, is_free, layer_name};
use super::layout::sync_dir;
use super::qmp::QmpError;
use super::vm::Vm;
use super::{Slot, blocking};

/// Layers at rest: the lowest, and the one that the guest writes to.
const LAYERS_AT_REST: usize = 2;
/// With more layers than this, another one waits until they are folded.
const LAYERS_MANY: usize = LAYERS_MAX / 3;
/// Longest time that a heartbeat waits for what is folded.
const TEND_MS_MAX: u64 = 100;
/// Longest time that a checkpoint waits for it.
const CATCH_UP_MS_MAX: u64 = 2_000;
/// Beginning of the names of jobs that fold.
const JOB: &str = "fold-";
/// Longest wait for a job to end that was called off.
const CANCEL_MS_MAX: u64 = 30_000;
/// Pause between two looks at it.
const LOOK: Duration = Duration::from_millis(5);

/// Why nothing was folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The files.
    #[error(transparent)]
    Files(#[from] io::Error),
    /// The job failed.
    #[error("{0}")]
    Job(String),
}

/// A job of QEMU that folds a layer.
struct Job {
    id: String,
    layer: u32,
    concluded: bool,
    error: Option<String>,
}

/// Looks whether there is something to fold, or folded. Called at every heartbeat; faults are logged, for nothing depends
/// on it soon.
pub async fn tend(slot: &Slot, vm: &Vm) {
    // A start or a capture is not held up, and not disturbed.
    let Ok(_turn) = slot.turn.try_lock() else { return };
    if let Err(error) = tended(slot, vm).await {
        tracing::warn!(instance = %slot.instance, %error, "the layers of its disk cannot be folded");
    }
}

async fn tended(slot: &Slot, vm: &Vm) -> Result<(), FoldError> {
    advance(slot, vm, TEND_MS_MAX).await
}

/// Folds before another layer is put on top, when nobody reads the ones from before: so the layers do not become more than
/// can be folded, however often that is. What takes too long is given up, unless there are many already.
///
/// # Errors
/// QEMU is gone; everything else is logged, for the layers can stay.
pub async fn catch_up(slot: &Slot, vm: &Vm) -> Result<(), FoldError> {
    let Some(chain) = recorded(slot).await? else { return Ok(()) };
    let limit_ms = if chain.layers.len() > LAYERS_MANY { CANCEL_MS_MAX } else { CATCH_UP_MS_MAX };
    match advance(slot, vm, limit_ms).await {
        Err(FoldError::Qmp(error)) if !matches!(error, QmpError::Refused { .. }) => return Err(error.into()),
        Err(error) => {
            tracing::warn!(instance = %slot.instance, %error, "the layers of its disk cannot be folded");
        }
        Ok(()) => {}
    }
    settle(slot, vm).await
}

/// Folds before a capture, if there are many layers: a guest that is never awake for as long as between two heartbeats would
/// have them become too many.
///
/// # Errors
/// As [`catch_up`].
pub async fn make_few(slot: &Slot, vm: &Vm) -> Result<(), FoldError> {
    match recorded(slot).await? {
        Some(chain) if chain.layers.len() > LAYERS_MANY => catch_up(slot, vm).await,
        Some(_) | None => settle(slot, vm).await,
    }
}

/// Folds for as long as there is something to fold, and no longer than that.
async fn advance(slot: &Slot, vm: &Vm, limit_ms: u64) -> Result<(), FoldError> {
    let since = Instant::now();
    let limit = Duration::from_millis(limit_ms);
    loop {
        let Some(chain) = recorded(slot).await? else { return Ok(()) };
        if chain.layers.len() <= LAYERS_AT_REST || slot.state.has_manifest() {
            return Ok(());
        }
        match job(vm).await? {
            Some(job) if job.concluded => finish(slot, vm, chain, job).await?,
            _ if since.elapsed() >= limit => return Ok(()),
            Some(_) => sleep(LOOK).await,
            None => {
                if !begin(slot, vm, &chain).await? {
                    return Ok(());
                }
            }
        }
    }
}

/// Ends what is being folded, so that the guest can be captured.
///
/// # Errors
/// It does not end.
pub async fn settle(slot: &Slot, vm: &Vm) -> Result<(), FoldError> {
    let Some(chain) = recorded(slot).await? else { return Ok(()) };
    let ended = timeout(Duration::from_millis(CANCEL_MS_MAX), async {
        let mut cancelled = false;
        loop {
            match job(vm).await? {
                None => return Ok(()),
                Some(job) if job.concluded => return finish(slot, vm, chain, job).await,
                Some(_) if cancelled => sleep(LOOK).await,
                Some(job) => {
                    // It may just have ended by itself.
                    match vm.qmp()?.command("job-cancel", json!({ "id": job.id })).await {
                        Ok(_) | Err(QmpError::Refused { .. }) => cancelled = true,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    });
    let late = || FoldError::Job("what is being folded of its disk does not end".to_owned());
    match ended.await.unwrap_or_else(|_| Err(late())) {
        // Called off: there is nothing wrong with that.
        Err(FoldError::Job(why)) if job(vm).await?.is_none() => {
            tracing::debug!(instance = %slot.instance, why, "folding was called off");
            Ok(())
        }
        ended => ended,
    }
}

async fn recorded(slot: &Slot) -> io::Result<Option<Chain>> {
    let dir = slot.state.path().to_owned();
    blocking(move || Chain::recorded(&dir)).await
}

/// Begins to write the second layer into the lowest, if nobody reads that.
async fn begin(slot: &Slot, vm: &Vm, chain: &Chain) -> Result<bool, FoldError> {
    let [lowest, layer, ..] = chain.layers[..] else { return Ok(false) };
    let (lowest, name) = (layer_name(lowest), layer_name(layer));
    // A layer that was recorded and is not used yet is not one to count on.
    if vm.top_layer().await? != chain.top() {
        return Ok(false);
    }
    let path = slot.state.path().join(&lowest);
    if !blocking(move || is_free(&path)).await? {
        return Ok(false);
    }
    let job = json!({
        "job-id": format!("{JOB}{layer}"), "device": chain.top(), "top-node": name, "base-node": lowest,
        // Written to a header that nobody follows.
        "backing-file": lowest, "auto-dismiss": false,
    });
    vm.qmp()?.command("block-commit", job).await?;
    failpoint!("vm.fold.begun");
    Ok(true)
}

/// The job has ended: if well, its layer is no longer needed.
async fn finish(slot: &Slot, vm: &Vm, mut chain: Chain, job: Job) -> Result<(), FoldError> {
    let qmp = vm.qmp()?;
    let Job { id, layer, error, .. } = job;
    if let Some(error) = error {
        qmp.command("job-dismiss", json!({ "id": id })).await?;
        return Err(FoldError::Job(error));
    }
    chain.layers.retain(|number| *number != layer);
    // What QEMU reads through: the base and all layers but the uppermost.
    let below = vm.layers_below().await?;
    if below != chain.layers.len() as u64 {
        qmp.command("job-dismiss", json!({ "id": id })).await?;
        return Err(FoldError::Job(format!(
            "QEMU reads through {below} files below the uppermost, not through {}",
            chain.layers.len()
        )));
    }
    let (dir, name) = (slot.state.path().to_owned(), layer_name(layer));
    let (place, lowest) = (dir.clone(), chain.layers.first().copied().map(layer_name));
    blocking(move || {
        // QEMU has written and flushed it when it closed the layer for writing; this is for the file's own size.
        if let Some(lowest) = lowest {
            File::open(place.join(lowest))?.sync_all()?;
        }
        chain.record(&place)
    })
    .await?;
    failpoint!("vm.fold.recorded");
    // From here on the layer is nobody's; what is left undone is done when the next process starts.
    qmp.command("job-dismiss", json!({ "id": id })).await?;
    vm.drop_layer(&name).await?;
    let gone = blocking(move || {
        fs::remove_file(dir.join(name))?;
        sync_dir(&dir)
    });
    Ok(gone.await?)
}

/// The job that folds, if there is one.
async fn job(vm: &Vm) -> Result<Option<Job>, QmpError> {
    let jobs = vm.qmp()?.command("query-jobs", json!({})).await?;
    let ours = |job: &Value| {
        let id = job.get("id")?.as_str()?.to_owned();
        let layer = id.strip_prefix(JOB)?.parse().ok()?;
        let concluded = job.get("status").and_then(Value::as_str) == Some("concluded");
        let error = job.get("error").and_then(Value::as_str).map(str::to_owned);
        Some(Job { id, layer, concluded, error })
    };
    Ok(jobs.as_array().and_then(|jobs| jobs.iter().find_map(ours)))
}
