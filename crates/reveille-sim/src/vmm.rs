//! The driver of the simulated hosts: processes that can die at any step, and versions on a disk that forgets what was
//! not synced.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use reveille_core::model::{Cause, Found, InstanceId, Remains, SnapshotVersion, Stage, Timestamp};
use reveille_core::mutation::is_on;
use reveille_vm::driver::{
    Abandon, Capabilities, Capture, Driver, DriverError, Launch, Mapping, OnStage, VersionFiles, VersionNeeds,
};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use crate::truth::Source;
use crate::world::{Disk, Doing, Inside, Life, Manifest, Process};

/// Bytes of a version on the disk.
pub const VERSION_BYTES: u64 = 64 << 20;
/// What each process holds of its host's memory, in KiB.
const PROCESS_KIB: u64 = 40 << 10;

/// The driver of one life of a daemon.
pub struct Vmm {
    life: Life,
    capabilities: Capabilities,
    /// One verb of an instance at a time.
    turns: Mutex<BTreeMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Vmm {
    pub fn new(life: Life) -> Self {
        let capabilities = Capabilities {
            driver: "sim",
            version: "1".to_owned(),
            accelerator: "none".to_owned(),
            hibernate: true,
            arm: true,
            sandbox: false,
        };
        Self { life, capabilities, turns: Mutex::default() }
    }

    async fn turn(&self, instance: InstanceId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(instance).or_default())
        };
        turn.lock_owned().await
    }

    /// A step that may fail.
    async fn risk(&self, what: &'static str, least_ms: u64, most_ms: u64) -> Result<(), DriverError> {
        self.life.step(what, least_ms, most_ms).await;
        let fails = self.life.now(|inside, _| inside.dice.chance(inside.rates.driver)).await;
        if fails {
            return Err(DriverError::Lost(Cause::StartFailed { detail: format!("{what} failed") }));
        }
        Ok(())
    }

    /// A process that waits for a version to be loaded, or boots.
    async fn spawn(&self, launch: &Launch, mapping: Mapping, booted: bool) -> Result<(), DriverError> {
        self.risk("spawning", 5, 30).await?;
        let instance = launch.instance;
        let spawned = self.life.now(|inside, host| inside.spawn(host, launch, mapping, booted)).await;
        spawned?;
        let connected = self.risk("connecting", 1, 5).await;
        if connected.is_err() {
            self.life.now(|inside, host| inside.end_process(host, instance, "it does not answer")).await;
        }
        connected
    }

    /// A process into which the version was loaded.
    async fn load(
        &self,
        launch: &Launch,
        mapping: Mapping,
        on_stage: OnStage<'_>,
    ) -> Result<(), DriverError> {
        let instance = launch.instance;
        self.check_version(instance).await?;
        let fits = self.life.now(|inside, host| {
            let process = inside.process(host, instance)?;
            let waits = process.doing == Doing::Waits && !process.hung;
            Some(waits && (mapping == Mapping::Consume || process.mapping == Mapping::Beside))
        });
        if fits.await != Some(true) {
            self.spawn(launch, mapping, false).await?;
        }
        on_stage(Stage::Spawned);
        self.risk("loading", 5, 40).await?;
        let loaded = self.life.now(|inside, host| {
            let process = inside.hosts.get_mut(host)?.processes.get_mut(&instance)?;
            process.doing = Doing::Loaded;
            inside.check_room(host);
            Some(())
        });
        loaded.await.ok_or_else(|| died("while it was loaded"))?;
        self.risk("after loading", 0, 2).await?;
        on_stage(Stage::Restored);
        Ok(())
    }

    async fn check_version(&self, instance: InstanceId) -> Result<(), DriverError> {
        let unfit = self.life.now(|inside, host| match inside.manifest(host, instance) {
            None => Some("there is none"),
            Some(version) if version.corrupt => Some("it is damaged"),
            Some(_) => None,
        });
        match unfit.await {
            None => Ok(()),
            Some(detail) => Err(DriverError::Lost(Cause::VersionUnusable { detail: detail.to_owned() })),
        }
    }

    async fn is(&self, instance: InstanceId, so: impl Fn(Doing) -> bool) -> bool {
        let doing = |inside: &mut Inside, host| {
            inside.process(host, instance).is_some_and(|process| so(process.doing) && !process.hung)
        };
        self.life.now(doing).await
    }

    async fn restored(
        &self,
        launch: &Launch,
        mapping: Mapping,
        on_stage: OnStage<'_>,
    ) -> Result<(), DriverError> {
        let instance = launch.instance;
        if !self.is(instance, |doing| matches!(doing, Doing::Paused | Doing::Loaded)).await {
            self.load(launch, mapping, on_stage).await?;
        }
        self.life.step("before the version is taken away", 0, 1).await;
        let consumed = self.life.now(|inside, host| inside.consume(host, launch)).await;
        consumed?;
        // Killed here, the next daemon finds a guest that stands still, and no version.
        let life = self.life.clone();
        life.step("after the version was taken away", 0, 0).await;
        on_stage(Stage::Running);
        self.life.now(|inside, host| inside.cont(host, instance)).await
    }
}

fn died(when: &str) -> DriverError {
    DriverError::Lost(Cause::VmmDied { detail: when.to_owned() })
}

#[async_trait]
impl Driver for Vmm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn find(&self, launch: &Launch, asleep: bool) -> Found {
        let _turn = self.turn(launch.instance).await;
        self.life.step("finding", 0, 3).await;
        let instance = launch.instance;
        self.life
            .now(|inside, host| {
                // Whoever goes by a manifest first makes sure that it stays.
                inside.sync(host, instance);
                let version = inside.manifest(host, instance).filter(|version| !version.corrupt);
                let version = version.map(|version| version.version.clone());
                let Some(process) = inside.process(host, instance) else { return Found::Nothing { version } };
                if process.hung {
                    return Found::Hung { waited_ms: 10_000 };
                }
                let doing = process.doing;
                if let Some(process) =
                    inside.hosts.get_mut(host).and_then(|host| host.processes.get_mut(&instance))
                {
                    process.capturing = false;
                }
                match (doing, version) {
                    (Doing::Warms, Some(version)) if asleep => Found::Untouched { version, armed: false },
                    (Doing::Runs | Doing::Warms, _) => {
                        inside.run_warmed(host, launch);
                        inside.take_away(host, instance);
                        Found::Running
                    }
                    (Doing::Waits, Some(version)) => Found::Untouched { version, armed: true },
                    (Doing::Loaded | Doing::Paused | Doing::Stopped, Some(version)) => {
                        Found::Untouched { version, armed: false }
                    }
                    (Doing::Stopped, None) => Found::Stopped,
                    (Doing::Waits | Doing::Loaded | Doing::Paused, None) => Found::Hung { waited_ms: 0 },
                }
            })
            .await
    }

    async fn inventory(&self) -> Vec<InstanceId> {
        let all = self.life.now(|inside, host| {
            let Some(host) = inside.hosts.get(host) else { return Vec::new() };
            host.disks.keys().chain(host.processes.keys()).copied().collect::<Vec<_>>()
        });
        let mut all = all.await;
        all.sort_unstable();
        all.dedup();
        all
    }

    async fn boot(&self, launch: &Launch, on_stage: OnStage<'_>) -> Result<(), DriverError> {
        let instance = launch.instance;
        let _turn = self.turn(instance).await;
        self.life.step("booting", 0, 2).await;
        self.life.now(|inside, host| inside.fence_untouched(host, instance)).await?;
        self.life.now(|inside, host| inside.set_aside(host, launch)).await;
        self.spawn(launch, Mapping::Consume, true).await?;
        on_stage(Stage::Spawned);
        self.risk("starting the guest", 1, 5).await?;
        let begun = self.life.now(|inside, host| {
            let there = inside.process(host, instance).is_some();
            there.then(|| inside.begin(host, launch, Source::Boot))
        });
        begun.await.ok_or_else(|| died("while it booted"))?;
        on_stage(Stage::Running);
        Ok(())
    }

    async fn arm(&self, launch: &Launch, mapping: Mapping) -> Result<(), DriverError> {
        let _turn = self.turn(launch.instance).await;
        self.check_version(launch.instance).await?;
        self.spawn(launch, mapping, false).await
    }

    async fn restore(
        &self,
        launch: &Launch,
        mapping: Mapping,
        on_stage: OnStage<'_>,
    ) -> Result<(), DriverError> {
        let _turn = self.turn(launch.instance).await;
        self.life.now(|inside, host| inside.count_start(host, launch.instance)).await;
        self.restored(launch, mapping, on_stage).await
    }

    async fn warm(&self, launch: &Launch, on_stage: OnStage<'_>) -> Result<(), DriverError> {
        let instance = launch.instance;
        let _turn = self.turn(instance).await;
        self.load(launch, Mapping::Beside, on_stage).await?;
        let warms = self.life.now(|inside, host| {
            let ready_at = Instant::now() + Duration::from_millis(inside.dice.between(0, 50));
            let process = inside.hosts.get_mut(host)?.processes.get_mut(&instance)?;
            process.doing = Doing::Warms;
            process.ready_at = ready_at;
            Some(())
        });
        warms.await.ok_or_else(|| died("while it was warmed"))
    }

    async fn pause(&self, instance: InstanceId) -> Result<(), DriverError> {
        let _turn = self.turn(instance).await;
        self.risk("pausing", 0, 3).await?;
        let paused = self.life.now(|inside, host| {
            let process = inside.hosts.get_mut(host)?.processes.get_mut(&instance)?;
            (process.doing == Doing::Warms).then(|| process.doing = Doing::Paused)
        });
        paused.await.ok_or_else(|| died("while it was paused"))
    }

    async fn checkpoint(
        &self,
        launch: &Launch,
        number: u64,
        now: Timestamp,
    ) -> Result<VersionFiles, DriverError> {
        let instance = launch.instance;
        let _turn = self.turn(instance).await;
        let failed = |error: DriverError| match error {
            DriverError::Lost(cause) => DriverError::RunsOn(cause),
            other
            @ (DriverError::RunsOn(_) | DriverError::NoProcess(_) | DriverError::Unsupported { .. }) => other,
        };
        self.risk("a checkpoint", 10, 200).await.map_err(failed)?;
        let taken = self.life.now(|inside, host| {
            let process = inside.process(host, instance).filter(|process| process.doing == Doing::Runs)?;
            let run = process.run?;
            let content = inside.capture(run, true)?;
            Some(files(version(launch, number, now), launch, content.0))
        });
        taken.await.ok_or(DriverError::NoProcess(instance))
    }

    async fn version_files(&self, instance: InstanceId) -> Result<VersionFiles, DriverError> {
        self.risk("opening a version's files", 0, 2).await?;
        let opened = self.life.now(|inside, host| {
            let version = inside.manifest(host, instance)?;
            let needs = needs(reveille_core::model::Resources::default(), version.content.0);
            Some(VersionFiles { version: version.version.clone(), needs, files: Vec::new() })
        });
        let detail = "there is no version".to_owned();
        opened.await.ok_or(DriverError::RunsOn(Cause::StoreFailed { detail }))
    }

    async fn fetch_dir(&self, instance: InstanceId) -> Result<PathBuf, DriverError> {
        let _turn = self.turn(instance).await;
        self.life.step("preparing a fetch", 0, 2).await;
        self.life.now(|inside, host| inside.disk(host, instance).map(|disk| disk.fetched = None)).await;
        Ok(PathBuf::from(format!("/{}/fetched", instance.0)))
    }

    async fn install(&self, launch: &Launch, _: u64) -> Result<SnapshotVersion, DriverError> {
        let instance = launch.instance;
        let _turn = self.turn(instance).await;
        self.risk("installing", 0, 5).await?;
        let installed = self.life.now(|inside, host| {
            inside.fence_untouched(host, instance)?;
            let service = launch.service.clone();
            let disk = inside.disk(host, instance);
            let fetched = disk.and_then(|disk| {
                let fetched = disk.fetched.take()?;
                disk.manifest = Some(fetched.clone());
                disk.durable = Some(fetched.clone());
                Some(fetched.version)
            });
            inside.check_kept(&service);
            let detail = "nothing was fetched".to_owned();
            fetched.ok_or(DriverError::RunsOn(Cause::StoreFailed { detail }))
        });
        installed.await
    }

    async fn evict(&self, instance: InstanceId) -> Result<(), DriverError> {
        let _turn = self.turn(instance).await;
        self.risk("evicting", 0, 5).await?;
        self.life
            .now(|inside, host| {
                inside.fence_untouched(host, instance)?;
                inside.take_away(host, instance);
                inside.tell(|| format!("h{host} {instance}: evicted"));
                inside.check_all_kept();
                Ok(())
            })
            .await
    }

    async fn capture(
        &self,
        launch: &Launch,
        number: u64,
        now: Timestamp,
        abandon: &Abandon,
    ) -> Result<Capture, DriverError> {
        let instance = launch.instance;
        let _turn = self.turn(instance).await;
        self.life.step("before a capture", 1, 20).await;
        if abandon.is_raised() {
            return Ok(Capture::Abandoned);
        }
        let fails = self.life.now(|inside, _| inside.dice.chance(inside.rates.driver)).await;
        if fails {
            let detail = "the disk is full".to_owned();
            return Err(DriverError::RunsOn(Cause::CaptureFailed { detail }));
        }
        let stopped = self.life.now(|inside, host| inside.stop(host, instance)).await;
        stopped.ok_or_else(|| died("before it was captured"))?;
        self.life.step("while the device state is written", 1, 20).await;
        if abandon.is_raised() {
            self.life.now(|inside, host| inside.cont(host, instance)).await?;
            return Ok(Capture::Abandoned);
        }
        let version = version(launch, number, now);
        let published = self.life.now(|inside, host| inside.publish(host, instance, version.clone()));
        published.await.ok_or_else(|| died("while it was captured"))?;
        self.life.step("while the manifest is synced", 1, 10).await;
        self.life.now(|inside, host| inside.sync(host, instance)).await;
        self.life.step("before the process is ended", 0, 2).await;
        if abandon.is_raised() {
            let run_on = |inside: &mut Inside, host| {
                // As QEMU is asked how it stands first: where it is gone, the version stays.
                inside.process(host, instance).ok_or_else(|| died("while it was captured"))?;
                inside.take_away(host, instance);
                inside.cont(host, instance)
            };
            self.life.now(run_on).await?;
            return Ok(Capture::Abandoned);
        }
        self.life.now(|inside, host| inside.end_process(host, instance, "captured")).await;
        self.life.step("after the process has ended", 0, 2).await;
        Ok(Capture::Published(version))
    }

    async fn resume(&self, launch: &Launch) -> Result<(), DriverError> {
        let _turn = self.turn(launch.instance).await;
        self.life.step("resuming", 0, 5).await;
        self.life
            .now(|inside, host| {
                inside.take_away(host, launch.instance);
                inside.cont(host, launch.instance)
            })
            .await
    }

    async fn disarm(&self, instance: InstanceId) -> Result<(), DriverError> {
        let _turn = self.turn(instance).await;
        self.risk("disarming", 0, 5).await?;
        self.life
            .now(|inside, host| {
                if inside.process(host, instance).is_none() {
                    return Err(DriverError::NoProcess(instance));
                }
                if inside.manifest(host, instance).is_none() {
                    return Err(DriverError::Unsupported {
                        driver: "sim",
                        verb: "disarm a guest that has run",
                    });
                }
                inside.end_process(host, instance, "disarmed");
                Ok(())
            })
            .await
    }

    async fn kill(
        &self,
        instance: InstanceId,
        remains: Remains,
    ) -> Result<Option<SnapshotVersion>, DriverError> {
        self.life.step("killing", 0, 3).await;
        self.life.now(|inside, host| inside.end_process(host, instance, "killed")).await;
        let _turn = self.turn(instance).await;
        self.life
            .now(|inside, host| {
                inside.end_process(host, instance, "killed");
                if remains != Remains::All {
                    inside.discard(host, instance);
                    return Ok(None);
                }
                let version = inside.manifest(host, instance).filter(|version| !version.corrupt);
                Ok(version.map(|version| version.version.clone()))
            })
            .await
    }

    async fn beat(&self, instance: InstanceId, timeout_ms: u64) -> Result<(), DriverError> {
        self.life.step("a heartbeat", 0, 1).await;
        let seen = self
            .life
            .now(|inside, host| inside.process(host, instance).map(|process| (process.hung, process.doing)));
        match seen.await {
            None => Err(DriverError::NoProcess(instance)),
            Some((true, _)) => {
                self.life.step("a heartbeat without an answer", timeout_ms, timeout_ms).await;
                Err(DriverError::Lost(Cause::VmmHung { waited_ms: timeout_ms }))
            }
            Some((false, Doing::Runs | Doing::Warms)) => Ok(()),
            // Standing still is not told of while a verb is under way.
            Some((false, _)) => Ok(()),
        }
    }

    async fn died(&self, instance: InstanceId) -> String {
        let ended = self
            .life
            .now(|inside, host| inside.process(host, instance).map(|process| process.ended.subscribe()))
            .await;
        let Some(mut ended) = ended else { return "it had no process".to_owned() };
        let why = ended.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        self.life.step("seeing that a process has ended", 0, 1).await;
        why.unwrap_or_else(|| "it is gone".to_owned())
    }

    async fn network(&self, instance: InstanceId) -> Result<UnixStream, DriverError> {
        Err(DriverError::NoProcess(instance))
    }

    fn cpu_ms(&self, instance: InstanceId) -> Option<u64> {
        self.life.at_once(|inside, host| {
            let process = inside.hosts.get_mut(host)?.processes.get_mut(&instance)?;
            if !process.hung {
                process.looks += 1;
            }
            Some(process.looks)
        })?
    }

    fn held_kib(&self, instance: InstanceId) -> Option<u64> {
        self.life
            .at_once(|inside, host| inside.hosts.get(host)?.processes.get(&instance).map(|_| PROCESS_KIB))?
    }

    fn is_held_up(&self, _: InstanceId) -> bool {
        false
    }
}

fn version(launch: &Launch, number: u64, now: Timestamp) -> SnapshotVersion {
    SnapshotVersion {
        number,
        at: now,
        stored_bytes: VERSION_BYTES,
        paused_us: 1,
        image: launch.image.clone(),
    }
}

/// What a version is told to need also says which content it has: that goes with it to the store and back.
fn needs(resources: reveille_core::model::Resources, content: usize) -> VersionNeeds {
    VersionNeeds {
        resources,
        vmm: "1".to_owned(),
        machine: content.to_string(),
        accelerator: "none".to_owned(),
    }
}

fn files(version: SnapshotVersion, launch: &Launch, content: usize) -> VersionFiles {
    VersionFiles { version, needs: needs(launch.resources, content), files: Vec::new() }
}

impl Inside {
    pub fn process(&self, host: usize, instance: InstanceId) -> Option<&Process> {
        self.hosts.get(host)?.processes.get(&instance)
    }

    pub fn manifest(&self, host: usize, instance: InstanceId) -> Option<&Manifest> {
        self.hosts.get(host)?.disks.get(&instance)?.manifest.as_ref()
    }

    pub fn disk(&mut self, host: usize, instance: InstanceId) -> Option<&mut Disk> {
        Some(self.hosts.get_mut(host)?.disks.entry(instance).or_default())
    }

    fn spawn(
        &mut self,
        host: usize,
        launch: &Launch,
        mapping: Mapping,
        booted: bool,
    ) -> Result<(), DriverError> {
        self.fence_untouched(host, launch.instance)?;
        let process = Process {
            service: launch.service.clone(),
            resources: launch.resources,
            doing: Doing::Waits,
            mapping,
            run: None,
            booted,
            ready_at: Instant::now(),
            hung: false,
            port_dead: false,
            capturing: false,
            looks: 0,
            ended: watch::Sender::new(None),
        };
        self.disk(host, launch.instance);
        if let Some(state) = self.hosts.get_mut(host) {
            state.processes.insert(launch.instance, process);
        }
        self.check_room(host);
        Ok(())
    }

    /// Ends a process that holds nothing of its own.
    fn fence_untouched(&mut self, host: usize, instance: InstanceId) -> Result<(), DriverError> {
        let Some(process) = self.process(host, instance) else { return Ok(()) };
        if process.run.is_some() && self.manifest(host, instance).is_none() {
            let service = process.service.clone();
            self.violate(format!("h{host} {service}: something is started beside its guest"));
            let detail = "an earlier process of it is still there".to_owned();
            return Err(DriverError::Lost(Cause::StartFailed { detail }));
        }
        self.end_process(host, instance, "makes way for another");
        Ok(())
    }

    /// The version is no longer one, durably.
    pub fn take_away(&mut self, host: usize, instance: InstanceId) {
        if let Some(disk) = self.disk(host, instance) {
            disk.manifest = None;
            disk.durable = None;
        }
    }

    /// A boot takes the place of what is there.
    fn set_aside(&mut self, host: usize, launch: &Launch) {
        self.take_away(host, launch.instance);
        // Whether that may be is found when the guest runs.
    }

    fn consume(&mut self, host: usize, launch: &Launch) -> Result<(), DriverError> {
        let instance = launch.instance;
        let Some(process) = self.process(host, instance) else { return Err(died("while it was restored")) };
        if !matches!(process.doing, Doing::Loaded | Doing::Paused) {
            return Err(died("before it was restored"));
        }
        let mapping = process.mapping;
        let Some(manifest) = self.manifest(host, instance).cloned() else {
            return Err(DriverError::Lost(Cause::VersionUnusable { detail: "it is gone".to_owned() }));
        };
        if !is_on("manifest-stays") {
            self.take_away(host, instance);
        }
        self.begin(host, launch, Source::Version(manifest.content));
        if mapping == Mapping::Consume
            && let Some(content) = self.truths.content(manifest.content)
        {
            content.torn = true;
        }
        let state = self.hosts.get_mut(host).and_then(|host| host.processes.get_mut(&instance));
        if let Some(process) = state {
            process.doing = Doing::Stopped;
        }
        Ok(())
    }

    fn begin(&mut self, host: usize, launch: &Launch, source: Source) {
        let run = self.begin_run(host, launch.instance, &launch.service, source);
        let ready_ms = match source {
            Source::Boot => self.dice.between(100, 2_000),
            Source::Version(_) => 0,
        };
        let state = self.hosts.get_mut(host).and_then(|host| host.processes.get_mut(&launch.instance));
        if let Some(process) = state {
            process.run = Some(run);
            process.booted = source == Source::Boot;
            process.doing = Doing::Runs;
            process.ready_at = Instant::now() + Duration::from_millis(ready_ms);
        }
        self.check_room(host);
    }

    /// A guest that was only warmed is found running, and its version is no longer one: it is the guest now.
    fn run_warmed(&mut self, host: usize, launch: &Launch) {
        let warms = self.process(host, launch.instance).is_some_and(|process| process.run.is_none());
        let content = self.manifest(host, launch.instance).map(|version| version.content);
        if warms && let Some(content) = content {
            self.begin(host, launch, Source::Version(content));
        }
    }

    fn stop(&mut self, host: usize, instance: InstanceId) -> Option<()> {
        let process = self.hosts.get_mut(host)?.processes.get_mut(&instance)?;
        if process.doing != Doing::Runs || process.hung {
            return None;
        }
        process.doing = Doing::Stopped;
        process.capturing = true;
        Some(())
    }

    fn cont(&mut self, host: usize, instance: InstanceId) -> Result<(), DriverError> {
        let process = self.hosts.get_mut(host).and_then(|host| host.processes.get_mut(&instance));
        let process = process.ok_or_else(|| died("before it ran"))?;
        process.doing = Doing::Runs;
        process.capturing = false;
        Ok(())
    }

    /// The manifest is there; a loss of power may still undo that.
    fn publish(&mut self, host: usize, instance: InstanceId, version: SnapshotVersion) -> Option<()> {
        let run = self.process(host, instance)?.run?;
        let content = self.capture(run, false)?;
        self.disk(host, instance)?.manifest = Some(Manifest { version, content, corrupt: false });
        Some(())
    }

    fn sync(&mut self, host: usize, instance: InstanceId) {
        if let Some(disk) = self.disk(host, instance) {
            disk.durable.clone_from(&disk.manifest);
        }
    }

    fn count_start(&mut self, host: usize, instance: InstanceId) {
        let content = self.manifest(host, instance).map(|version| version.content);
        if let Some(content) = content.and_then(|content| self.truths.content(content)) {
            content.starts += 1;
        }
    }

    fn discard(&mut self, host: usize, instance: InstanceId) {
        let service = self.hosts.get(host).and_then(|host| {
            let row = host.database.instances.get(&instance)?;
            Some(row.service.clone())
        });
        if let Some(state) = self.hosts.get_mut(host) {
            state.disks.remove(&instance);
        }
        if let Some(service) = service {
            self.forget(host, &service);
        }
    }

    pub fn check_all_kept(&mut self) {
        let all: Vec<_> = self.truths.services.keys().cloned().collect();
        for service in all {
            self.check_kept(&service);
        }
    }
}
