//! Transfers of a guest's state, in QEMU's words migrations: of its devices to and from a file, and of the whole guest while it
//! runs.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};

use super::blocks::NewLayer;
use super::qmp::QmpError;
use super::version::Devices;
use super::vm::Vm;

/// Longest transfer of a device state, in either direction.
const MIGRATION_MS_MAX: u64 = 30_000;
/// Longest wait until a transfer that is being cancelled has ended.
const CANCEL_MS_MAX: u64 = 5_000;
/// Pause between two looks at a transfer whose events were missed.
const MIGRATION_LOOK: Duration = Duration::from_millis(1);
/// Limit of a transfer of the whole guest: none, as it never leaves the host.
const TRANSFER_BYTES_PER_S: u64 = 1 << 40;
/// Name under which a device state is passed.
const DEVICE_FD: &str = "device";

impl Vm {
    /// `None` before any, then `setup`, `active`, `completed`, `failed`, `cancelled`, …
    pub async fn migration(&self) -> Result<Option<String>, QmpError> {
        let migration = self.qmp()?.command("query-migrate", json!({})).await?;
        Ok(migration
            .get("status")
            .and_then(Value::as_str)
            .filter(|status| *status != "none")
            .map(str::to_owned))
    }

    /// Settles whether QEMU leaves the guest's memory out of what is transferred, for it is in its file already.
    pub async fn leave_memory_out(&self, devices: Devices) -> Result<(), QmpError> {
        self.prepare_transfer(devices, false).await
    }

    /// As [`Vm::leave_memory_out`]; with `pauses`, a transfer waits between the guest's stop and what is left to do.
    pub async fn prepare_transfer(&self, devices: Devices, pauses: bool) -> Result<(), QmpError> {
        let capability = |name: &str, state: bool| json!({ "capability": name, "state": state });
        let capabilities = [
            capability("x-ignore-shared", devices == Devices::Alone),
            capability("pause-before-switchover", pauses),
            capability("events", true),
        ];
        let capabilities = json!({ "capabilities": capabilities });
        self.qmp()?.command("migrate-set-capabilities", capabilities).await.map(|_| ())
    }

    /// Lets a transfer of the whole guest go as fast as it can, and stop the guest for `pause_ms` at most as far as QEMU
    /// can tell.
    pub async fn transfer_fast(&self, pause_ms: u64) -> Result<(), QmpError> {
        let parameters = json!({ "max-bandwidth": TRANSFER_BYTES_PER_S, "downtime-limit": pause_ms });
        self.qmp()?.command("migrate-set-parameters", parameters).await.map(|_| ())
    }

    /// Hands over the file that the device state will be written to or read from.
    pub async fn pass_device(&self, file: OwnedFd) -> Result<(), QmpError> {
        self.qmp()?.pass_file(DEVICE_FD, file).await
    }

    /// Has QEMU close the file that was passed, if no transfer has begun with it.
    pub async fn forget_device(&self) -> Result<(), QmpError> {
        match self.qmp()?.command("closefd", json!({ "fdname": DEVICE_FD })).await {
            Ok(_) | Err(QmpError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes the device state to the file that was passed; returns when it is written.
    pub async fn save_device(&self) -> Result<(), QmpError> {
        self.transfer("migrate", None).await
    }

    /// Loads the device state from the file that was passed; returns when it is loaded.
    pub async fn load_device(&self) -> Result<(), QmpError> {
        self.transfer("migrate-incoming", None).await
    }

    /// Writes the whole guest to the socket that was passed, while it runs, and stops it for the rest; gives the instant
    /// of the stop. While it stands still, the layer is put on top of its disk: what lies below is of that instant.
    pub async fn save_whole(&self, layer: Option<&NewLayer>) -> Result<Instant, QmpError> {
        let mut events = self.qmp()?.events();
        let stopped = async {
            loop {
                match events.recv().await {
                    Ok(event) if event.name == "STOP" => return Instant::now(),
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::pin!(stopped);
        let transfer = self.transfer("migrate", layer);
        tokio::pin!(transfer);
        let mut since = None;
        loop {
            tokio::select! {
                at = &mut stopped, if since.is_none() => since = Some(at),
                done = &mut transfer => return done.map(|()| since.unwrap_or_else(Instant::now)),
            }
        }
    }

    async fn transfer(&self, command: &'static str, layer: Option<&NewLayer>) -> Result<(), QmpError> {
        let qmp = self.qmp()?;
        let mut events = qmp.events();
        qmp.command(command, json!({ "uri": format!("fd:{DEVICE_FD}") })).await?;
        let finished = timeout(Duration::from_millis(MIGRATION_MS_MAX), async {
            loop {
                let status = tokio::select! {
                    _ = self.process.wait() => return Err(QmpError::Closed),
                    event = events.recv() => match event {
                        Ok(event) if event.name == "MIGRATION" => {
                            event.data.get("status").and_then(Value::as_str).map(str::to_owned)
                        }
                        Ok(_) => None,
                        Err(RecvError::Lagged(_)) => self.migration().await?,
                        Err(RecvError::Closed) => return Err(QmpError::Closed),
                    },
                };
                match status.as_deref() {
                    Some("completed") => return Ok(()),
                    // Said once; should the event have been missed, the status says it.
                    Some("pre-switchover") => {
                        if let Some(layer) = layer.filter(|layer| !layer.used.load(Ordering::Acquire)) {
                            self.put_on_top(layer).await?;
                            layer.used.store(true, Ordering::Release);
                        }
                        qmp.command("migrate-continue", json!({ "state": "pre-switchover" })).await?;
                    }
                    Some(end @ ("failed" | "cancelled")) => {
                        return Err(QmpError::Refused { command, desc: self.migration_fault(end).await });
                    }
                    Some(_) | None => {}
                }
            }
        });
        finished.await.unwrap_or(Err(QmpError::Timeout { command, waited_ms: MIGRATION_MS_MAX }))
    }

    async fn migration_fault(&self, end: &str) -> String {
        let asked = match self.qmp() {
            Ok(qmp) => qmp.command("query-migrate", json!({})).await.unwrap_or_default(),
            Err(_) => Value::Null,
        };
        asked.get("error-desc").and_then(Value::as_str).unwrap_or(end).to_owned()
    }

    /// Ends a transfer that is still going on, so that the guest can be let run. Of one that is over QEMU says so some time
    /// before it leaves `finish-migrate`, in which it refuses to go on.
    ///
    /// # Errors
    /// It does not end within [`CANCEL_MS_MAX`].
    pub async fn settle_migration(&self) -> Result<(), QmpError> {
        let settled = timeout(Duration::from_millis(CANCEL_MS_MAX), async {
            let mut cancelled = false;
            loop {
                match self.migration().await?.as_deref() {
                    None | Some("completed" | "failed" | "cancelled") => {
                        if self.status(CANCEL_MS_MAX).await? != "finish-migrate" {
                            return Ok(());
                        }
                        sleep(MIGRATION_LOOK).await;
                    }
                    Some(_) if !cancelled => {
                        self.qmp()?.command("migrate_cancel", json!({})).await?;
                        cancelled = true;
                    }
                    Some(_) => sleep(MIGRATION_LOOK).await,
                }
            }
        });
        let late = QmpError::Timeout { command: "migrate_cancel", waited_ms: CANCEL_MS_MAX };
        settled.await.unwrap_or(Err(late))
    }
}
