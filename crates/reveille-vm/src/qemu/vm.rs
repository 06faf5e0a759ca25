//! A live QEMU process with its control connection, and the steps that starts, captures and takeovers are made of.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use reveille_core::model::Cause;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{sleep, timeout};

use super::agent::{Agent, AgentError};
use super::argv::{AGENT_ID, MEMORY_BLOCK, REFRESH_ID};
use super::layout::{AGENT, InstanceDir, NETWORK, REFRESH, SOCKET, last_complaint, last_line};
use super::process::{Ended, Process};
use super::qmp::{Qmp, QmpError};
use super::refresher::{RefreshError, Refresher};
use super::version::{Listener, Listeners, Manifest, Needs};
use crate::driver::Mapping;

/// Longest wait for a started process to answer its control socket.
pub const CONNECT_MS_MAX: u64 = 15_000;
/// Pause between two tries to connect.
const CONNECT_RETRY: Duration = Duration::from_millis(1);
/// Longest wait for a process to end after it was asked to.
const QUIT_MS_MAX: u64 = 2_000;
/// Longest wait for a process to end after it closed its control socket.
const LAST_BREATH_MS_MAX: u64 = 200;
/// Longest wait for a process to end after it was killed.
pub const KILL_MS_MAX: u64 = 10_000;
/// Longest wait for the network link to be listened on.
const NETWORK_MS_MAX: u64 = 2_000;

/// A process and, once it has answered, its control connection.
#[derive(Debug)]
pub struct Vm {
    /// The process.
    pub process: Process,
    dir: InstanceDir,
    qmp: OnceLock<Qmp>,
    stand: Mutex<Stand>,
    /// Whether the guest's writes to memory stay its own; unknown of a process that was found, until asked.
    beside: OnceLock<bool>,
    /// A capture or a start is under way, so that standing still is no fault.
    busy: AtomicBool,
    /// The network link that is open before anybody asked for it.
    link: Mutex<Option<UnixStream>>,
    /// QEMU has taken that link, whoever has it now.
    met: AtomicBool,
    /// The connection to the agent's port: one question at a time.
    agent: tokio::sync::Mutex<Option<Agent>>,
    /// The connection to the refresher's port.
    refresher: tokio::sync::Mutex<Option<Refresher>>,
    /// What the version says that was loaded.
    origin: Mutex<Origin>,
}

/// How far a process is on its way to a guest that runs. Until it does, its version is intact.
#[derive(Debug, Clone, Default)]
pub enum Stand {
    /// Its guest runs, or nobody knows.
    #[default]
    Open,
    /// This version is loaded; the vCPUs have not run.
    Loaded(Arc<Manifest>),
    /// It was warmed beside its version and stopped; nobody has seen it run.
    Paused,
}

/// What a version says of the guest that was restored from it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Who listened.
    pub listeners: Listeners,
    /// The service that it is a copy of, unless the guest knows already that it is another.
    pub clone_of: Option<String>,
}

impl Origin {
    /// What the manifest says.
    pub fn of(manifest: &Manifest) -> Self {
        Self { listeners: manifest.listeners, clone_of: manifest.clone_of.clone() }
    }
}

/// Marks a [`Vm`] busy until dropped.
pub struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Vm {
    /// A process that has not answered yet.
    pub fn new(process: Process, dir: InstanceDir) -> Self {
        Self {
            process,
            dir,
            qmp: OnceLock::new(),
            stand: Mutex::default(),
            beside: OnceLock::new(),
            busy: AtomicBool::new(false),
            link: Mutex::default(),
            met: AtomicBool::new(false),
            agent: tokio::sync::Mutex::default(),
            refresher: tokio::sync::Mutex::default(),
            origin: Mutex::default(),
        }
    }

    /// What the version says from which the guest was restored.
    pub fn origin(&self) -> Origin {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that.
    pub fn set_origin(&self, origin: Origin) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = origin;
    }

    /// A process that was found together with its control connection.
    pub fn adopted(process: Process, dir: InstanceDir, qmp: Qmp) -> Self {
        Self { qmp: OnceLock::from(qmp), ..Self::new(process, dir) }
    }

    /// How far it is on its way to a guest that runs.
    pub fn stand(&self) -> Stand {
        self.stand.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that.
    pub fn set_stand(&self, stand: Stand) {
        *self.stand.lock().unwrap_or_else(PoisonError::into_inner) = stand;
    }

    /// Notes how the memory was mapped when the process was started.
    pub fn started_as(&self, mapping: Mapping) {
        let _ = self.beside.set(mapping == Mapping::Beside);
    }

    /// How the memory is mapped.
    pub async fn mapping(&self) -> Result<Mapping, QmpError> {
        let beside = match self.beside.get() {
            Some(beside) => *beside,
            None => {
                let backends = self.qmp()?.command("query-memdev", json!({})).await?;
                let ours = |backend: &&Value| backend.get("id").and_then(Value::as_str) == Some(MEMORY_BLOCK);
                let share = backends
                    .as_array()
                    .and_then(|all| all.iter().find(ours))
                    .and_then(|backend| backend.get("share").and_then(Value::as_bool));
                let share =
                    share.ok_or_else(|| QmpError::Protocol("query-memdev without the memory".to_owned()))?;
                *self.beside.get_or_init(|| !share)
            }
        };
        Ok(if beside { Mapping::Beside } else { Mapping::Consume })
    }

    /// From now until the guard is dropped, a guest that stands still is no fault.
    pub fn busy(&self) -> Busy<'_> {
        self.busy.store(true, Ordering::Release);
        Busy(&self.busy)
    }

    /// Whether a capture or a start is under way.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// The control connection, if the process has ever answered.
    pub fn qmp(&self) -> Result<&Qmp, QmpError> {
        self.qmp.get().ok_or(QmpError::Closed)
    }

    /// Waits until the started process answers its control socket.
    ///
    /// # Errors
    /// It ended, with what it complained of, or stayed silent for [`CONNECT_MS_MAX`].
    pub async fn connect(&self) -> Result<(), Cause> {
        let began = Instant::now();
        let connected = timeout(Duration::from_millis(CONNECT_MS_MAX), async {
            let (_dir, path) =
                self.dir.short_path(SOCKET).map_err(|error| start_failed(error.to_string()))?;
            loop {
                if self.process.ended().is_some() {
                    return Err(self.start_failure().await);
                }
                match Qmp::connect(&path).await {
                    Ok(qmp) => return Ok(qmp),
                    Err(QmpError::Protocol(detail)) => return Err(start_failed(detail)),
                    Err(_) => sleep(CONNECT_RETRY).await,
                }
            }
        });
        let waited_ms = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let qmp = connected.await.unwrap_or_else(|_| Err(Cause::VmmHung { waited_ms: waited_ms() }))?;
        // Nobody else sets it: one start at a time.
        let _ = self.qmp.set(qmp);
        Ok(())
    }

    /// `running`, `paused`, `inmigrate`, `postmigrate`, `guest-panicked`, …
    pub async fn status(&self, limit_ms: u64) -> Result<String, QmpError> {
        let status = self.qmp()?.command_within("query-status", json!({}), limit_ms).await?;
        let word = status.get("status").and_then(Value::as_str);
        word.map(str::to_owned).ok_or_else(|| QmpError::Protocol("query-status without a status".to_owned()))
    }

    /// Stops the vCPUs.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.qmp()?.command("stop", json!({})).await.map(|_| ())
    }

    /// Lets the vCPUs run; `running` is called when they do. QEMU says so before it answers the command, which a
    /// guest that is busy from its first instruction can delay.
    pub async fn cont(&self, running: impl FnOnce()) -> Result<(), QmpError> {
        let qmp = self.qmp()?;
        if let Err(error) = self.dir.forget_loaded() {
            tracing::warn!(pid = self.process.pid, %error, "its process stays noted as one that has not run");
        }
        let mut events = qmp.events();
        let mut running = Some(running);
        let answer = qmp.command("cont", json!({}));
        tokio::pin!(answer);
        let outcome = loop {
            tokio::select! {
                biased;
                event = events.recv(), if running.is_some() => {
                    // Events that were missed, or none any more: the answer is as good.
                    if event.is_ok_and(|event| event.name == "RESUME") && let Some(running) = running.take() {
                        running();
                    }
                }
                outcome = &mut answer => break outcome,
            }
        };
        if let (Ok(_), Some(running)) = (&outcome, running) {
            running();
        }
        outcome.map(|_| ())
    }

    /// Connects to the ports of the guest's listeners, if there are any, and stays connected: an agent that finds nobody
    /// at the other end wakes up ten times a second to look again.
    pub async fn meet_listeners(&self) {
        let mut agent = self.agent.lock().await;
        if let Err(error) = self.reach_agent(&mut agent).await {
            tracing::debug!(pid = self.process.pid, %error, "no port for an agent");
        }
        let mut refresher = self.refresher.lock().await;
        if let Err(error) = self.reach_refresher(&mut refresher).await {
            tracing::debug!(pid = self.process.pid, %error, "no port for a refresher");
        }
    }

    async fn reach_refresher<'a>(&self, place: &'a mut Option<Refresher>) -> io::Result<&'a mut Refresher> {
        match place {
            Some(refresher) => Ok(refresher),
            None => {
                let (_dir, path) = self.dir.short_path(REFRESH)?;
                Ok(place.insert(Refresher::connect(&path).await?))
            }
        }
    }

    /// Asks the guest's refresher; others wait.
    pub async fn ask_refresher<T>(
        &self,
        ask: impl AsyncFnOnce(&mut Refresher) -> Result<T, RefreshError>,
    ) -> Result<T, RefreshError> {
        let mut place = self.refresher.lock().await;
        let answer = ask(self.reach_refresher(&mut place).await?).await;
        if answer.is_err() {
            // So that half a record is forgotten.
            *place = None;
        }
        answer
    }

    async fn reach_agent<'a>(&self, agent: &'a mut Option<Agent>) -> Result<&'a mut Agent, AgentError> {
        match agent {
            Some(agent) => Ok(agent),
            None => {
                let (_dir, path) = self.dir.short_path(AGENT)?;
                Ok(agent.insert(Agent::connect(&path).await?))
            }
        }
    }

    /// Asks the guest's agent; others wait. A connection that is of no more use is given up.
    pub async fn ask_agent<T>(
        &self,
        ask: impl AsyncFnOnce(&mut Agent) -> Result<T, AgentError>,
    ) -> Result<T, AgentError> {
        let mut place = self.agent.lock().await;
        let answer = ask(self.reach_agent(&mut place).await?).await;
        if let Err(AgentError::Closed | AgentError::Socket(_) | AgentError::Garbage(_)) = &answer {
            *place = None;
        }
        answer
    }

    /// Who listens in the guest.
    pub async fn listeners(&self) -> Result<Listeners, QmpError> {
        let devices = self.qmp()?.command("query-chardev", json!({})).await?;
        let at = |id: &str| {
            let labelled = |device: &&Value| device.get("label").and_then(Value::as_str) == Some(id);
            let port = devices.as_array().and_then(|all| all.iter().find(labelled));
            match port.map(|port| port.get("frontend-open").and_then(Value::as_bool)) {
                None => Listener::NoPort,
                Some(Some(true)) => Listener::Present,
                Some(Some(false) | None) => Listener::Silent,
            }
        };
        Ok(Listeners { agent: at(AGENT_ID), refresher: at(REFRESH_ID) })
    }

    /// `needs`, with who listens in the guest.
    pub async fn note_listeners(&self, needs: Needs) -> Result<Needs, QmpError> {
        Ok(Needs { listeners: self.listeners().await?, ..needs })
    }

    /// Asks the process to end, kills it if it does not, and waits until it is gone.
    ///
    /// # Errors
    /// It is still there after [`KILL_MS_MAX`].
    pub async fn end(&self) -> Result<Ended, Cause> {
        if let Ok(qmp) = self.qmp() {
            // Mostly there is no answer: the process ends first.
            let quit = qmp.command_within("quit", json!({}), QUIT_MS_MAX);
            tokio::select! {
                _ = quit => {}
                _ = self.process.wait() => {}
            }
            if let Some(ended) = self.process.wait_for(QUIT_MS_MAX).await {
                return Ok(ended);
            }
        }
        self.kill().await
    }

    /// Kills the process and waits until it is gone.
    ///
    /// # Errors
    /// It is still there after [`KILL_MS_MAX`].
    pub async fn kill(&self) -> Result<Ended, Cause> {
        self.process.kill();
        self.process.wait_for(KILL_MS_MAX).await.ok_or(Cause::VmmHung { waited_ms: KILL_MS_MAX })
    }

    /// Waits until everything has been read that the process said before it ended.
    pub async fn hear_out(&self) {
        let Ok(qmp) = self.qmp() else { return };
        let read_out = async {
            while !qmp.is_read_out() {
                sleep(CONNECT_RETRY).await;
            }
        };
        // Without it the reason is told from the exit status alone.
        let _ = timeout(Duration::from_millis(QUIT_MS_MAX), read_out).await;
    }

    /// What is known of why the process ended, in half a sentence.
    pub fn death(&self, ended: &Ended) -> String {
        let console = || {
            last_line(&self.dir.serial())
                .map_or_else(String::new, |line| format!("; its console ended with: {line}"))
        };
        let farewell = self.qmp.get().and_then(Qmp::farewell);
        match farewell.as_deref() {
            Some("guest-reset") => format!("the guest restarted or panicked{}", console()),
            Some("guest-shutdown") => format!("the guest shut itself down{}", console()),
            Some("guest-panicked" | "guest-panic") => format!("the guest panicked{}", console()),
            Some(_) | None => match last_complaint(&self.dir.log()) {
                Some(line) => format!("{ended}; it said: {line}"),
                None => ended.to_string(),
            },
        }
    }

    /// The cause of a command that has no result.
    pub async fn cause_of(&self, error: QmpError) -> Cause {
        match error {
            QmpError::Timeout { waited_ms, .. } => Cause::VmmHung { waited_ms },
            QmpError::Connect(_)
            | QmpError::Closed
            | QmpError::Refused { .. }
            | QmpError::Protocol(_)
            | QmpError::TooMany => {
                // The socket closes a moment before the process can be waited for.
                match self.process.wait_for(LAST_BREATH_MS_MAX).await {
                    Some(ended) => Cause::VmmDied { detail: self.death(&ended) },
                    None => start_failed(error.to_string()),
                }
            }
        }
    }

    async fn start_failure(&self) -> Cause {
        let ended = self.process.wait().await;
        let Some(line) = last_complaint(&self.dir.log()) else {
            return start_failed(format!("QEMU ended at once: {ended}"));
        };
        start_failed(remedy(&line))
    }

    /// Connects to the guest's network link.
    ///
    /// # Errors
    /// Nobody listens within [`NETWORK_MS_MAX`].
    pub async fn network(&self) -> Result<UnixStream, Cause> {
        let met = self.link.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stream) = met {
            return Ok(stream);
        }
        let fault = |error: io::Error| start_failed(format!("its network link cannot be reached: {error}"));
        let (_dir, path) = self.dir.short_path(NETWORK).map_err(fault)?;
        let connected = timeout(Duration::from_millis(NETWORK_MS_MAX), async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => return Ok(stream),
                    // A process that just started does not listen yet; one whose link was just closed, not again.
                    Err(_) if self.process.ended().is_none() => sleep(CONNECT_RETRY).await,
                    Err(error) => return Err(fault(error)),
                }
            }
        });
        connected.await.unwrap_or(Err(Cause::VmmHung { waited_ms: NETWORK_MS_MAX }))
    }

    /// Opens the network link, and waits until QEMU has taken it.
    ///
    /// QEMU (10.0, `net/stream.c`) prepares that socket beside its main loop. A guest that is let run before this is
    /// done, with packets queued, crashes the process, and with it what the guest has in memory; a restored network
    /// card always has some queued, for it announces itself.
    pub async fn meet_network(&self) -> Result<(), Cause> {
        if self.met.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut events = match self.qmp() {
            Ok(qmp) => qmp.events(),
            Err(error) => return Err(self.cause_of(error).await),
        };
        let stream = self.network().await?;
        let taken = timeout(Duration::from_millis(CONNECT_MS_MAX), async {
            loop {
                match events.recv().await {
                    Ok(event) if event.name == "NETDEV_STREAM_CONNECTED" => return true,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return false,
                }
            }
        });
        match taken.await {
            Ok(true) => {
                *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
                self.met.store(true, Ordering::Release);
                Ok(())
            }
            Ok(false) => Err(self.cause_of(QmpError::Closed).await),
            Err(_) => Err(Cause::VmmHung { waited_ms: CONNECT_MS_MAX }),
        }
    }
}

fn start_failed(detail: String) -> Cause {
    Cause::StartFailed { detail }
}

/// QEMU's last words as a sentence that says what to do, for the faults that users meet.
fn remedy(line: &str) -> String {
    let advice = if line.contains("KVM") || line.contains("kvm") {
        "KVM cannot be used here; set the accelerator to `auto` or `tcg`"
    } else if line.contains("firmware") || line.contains("BIOS") || line.contains("ROM") {
        "QEMU does not find its firmware; install the packages qemu-system-data and seabios, or set the data directory"
    } else if line.contains("set up guest memory") || line.contains("Cannot allocate memory") {
        "the host has too little free memory for this guest"
    } else if line.contains("No space left") {
        "the disk is full; make room for the guest's memory"
    } else {
        return format!("QEMU said: {line}");
    };
    format!("{advice} (QEMU said: {line})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_get_their_remedy() {
        let line = "qemu: could not load PC BIOS 'bios-microvm.bin'";
        assert!(remedy(line).ends_with("(QEMU said: qemu: could not load PC BIOS 'bios-microvm.bin')"));
        assert!(remedy(line).starts_with("QEMU does not find its firmware; install"));
        assert_eq!(remedy("odd"), "QEMU said: odd");
    }
}
