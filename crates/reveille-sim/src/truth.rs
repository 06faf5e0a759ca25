//! What is true of every service, whatever the daemons believe, and the rules that are checked against it.
//!
//! A service has one line of states. It is *asleep* in what its last sleep captured, *running*, or *lost* since its
//! guest died with what it had in memory. What may be started next follows from that (note 0004, H5).

use std::collections::BTreeMap;

use reveille_core::model::{AfterCrash, DomainName, InstanceId};
use tokio::time::Instant;

use crate::world::{ContentId, Disk, Doing, Inside, RunId};

/// A host that can reach the store knows within this time that it has lost a service: it renews every 15 s, and a
/// request may take a while.
const LEARNS_WITHIN_MS: u128 = 40_000;
/// Starts of a version, none of which came to anything, after which the service is booted instead.
const STARTS_MAX: u32 = 2;

/// A captured state.
#[derive(Debug, Clone)]
pub struct Content {
    pub service: DomainName,
    /// Which life it was captured of.
    pub run: RunId,
    /// The guest went on running.
    pub checkpoint: bool,
    /// The guest that it was restored to wrote to its file.
    pub torn: bool,
    /// Starts from it; all but the last have failed.
    pub starts: u32,
    /// It was damaged, or ended on purpose: nobody expects it back.
    pub given_up: bool,
}

/// A life of a guest.
#[derive(Debug, Clone)]
pub struct Run {
    pub service: DomainName,
    pub host: usize,
    pub instance: InstanceId,
    pub alive: bool,
    /// Clients that were served.
    pub served: u64,
    /// The service has gone on elsewhere.
    pub orphan: bool,
}

/// The newest state of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Head {
    /// It never ran, or nothing of it was to be kept.
    #[default]
    Fresh,
    Asleep(ContentId),
    Running(RunId),
    /// Its guest died; what was in memory is gone.
    Lost,
}

/// What is true of a service.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    pub head: Head,
    /// The host on which its last life was.
    pub host: Option<usize>,
}

/// All services.
#[derive(Debug, Default)]
pub struct Truths {
    pub services: BTreeMap<DomainName, Truth>,
    pub contents: Vec<Content>,
    pub runs: Vec<Run>,
}

/// What a life begins from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Boot,
    Version(ContentId),
}

impl Truths {
    pub fn content(&mut self, id: ContentId) -> Option<&mut Content> {
        self.contents.get_mut(id.0)
    }

    pub fn run(&mut self, id: RunId) -> Option<&mut Run> {
        self.runs.get_mut(id.0)
    }

    /// An operator has asked to end it: a daemon that is killed half way through may boot it or go on with its version.
    pub fn give_up(&mut self, service: &DomainName) {
        if let Head::Asleep(newest) = self.truth(service).head
            && let Some(content) = self.content(newest)
        {
            content.given_up = true;
        }
    }

    fn truth(&mut self, service: &DomainName) -> &mut Truth {
        self.services.entry(service.clone()).or_default()
    }
}

impl Inside {
    /// A guest begins to run: may it?
    pub fn begin_run(
        &mut self,
        host: usize,
        instance: InstanceId,
        service: &DomainName,
        source: Source,
    ) -> RunId {
        let run = RunId(self.truths.runs.len());
        let orphan = self.is_cut_off(host, service);
        self.tell(|| {
            format!(
                "h{host} {service}: run {} from {source:?}{}",
                run.0,
                if orphan { ", cut off" } else { "" }
            )
        });
        if orphan
            && let Source::Version(content) = source
            && let Some(content) = self.truths.content(content)
        {
            // It goes its own way with that.
            content.given_up = true;
        }
        if !orphan && let Err(why) = self.may_run(host, service, source) {
            let head = self.truths.truth(service).head;
            self.violate(format!(
                "h{host} {service} is started from {source:?}, its newest state is {head:?}: {why}"
            ));
        }
        self.truths.runs.push(Run {
            service: service.clone(),
            host,
            instance,
            alive: true,
            served: 0,
            orphan,
        });
        if !orphan {
            // Whoever else runs it has lost it, and will hear of that.
            for other in &mut self.truths.runs {
                other.orphan |= other.service == *service && other.host != host;
            }
            *self.truths.truth(service) = Truth { head: Head::Running(run), host: Some(host) };
        }
        run
    }

    /// Whether another host owns the service, or has gone on with it before this one owned it again, and this one cannot
    /// have heard of it yet. What it does meanwhile is the price of going on while the store is away.
    fn is_cut_off(&self, host: usize, service: &DomainName) -> bool {
        let Some(state) = self.hosts.get(host) else { return false };
        let Some(kept) = self.store.get(service) else { return false };
        let Some(owner) = &kept.owner else { return false };
        let row = state.database.instances.values().find(|row| row.service == *service);
        let is_told = row.is_some_and(|row| row.epoch >= owner.epoch);
        let goes_its_way = owner.host != state.name || (kept.overtaken && !is_told);
        goes_its_way && !self.should_know(host, owner.since)
    }

    /// Whether a host has had the time to hear of something that was so in the store since then.
    pub fn should_know(&self, host: usize, since: Instant) -> bool {
        let Some(state) = self.hosts.get(host) else { return false };
        let known_since = state.connected_since.max(since);
        let had_ms = Instant::now().saturating_duration_since(known_since).as_millis();
        state.life.is_some() && !state.partitioned && had_ms > LEARNS_WITHIN_MS
    }

    fn may_run(&mut self, host: usize, service: &DomainName, source: Source) -> Result<(), String> {
        let same_host = |run: &Run| run.alive && run.service == *service && run.host == host;
        if self.truths.runs.iter().any(same_host) {
            return Err("another guest of it runs on this host".to_owned());
        }
        let owner = self.store.get(service).and_then(|kept| kept.owner.clone());
        let owner_host = owner.map(|owner| owner.host);
        let name = self.hosts.get(host).map(|state| state.name.clone());
        if owner_host.is_some() && owner_host != name {
            return Err(format!("the host {} owns it", owner_host.unwrap_or_default()));
        }
        let Truth { head, host: last } = self.truths.truth(service).clone();
        let moved = last.is_some_and(|last| last != host);
        match (head, source) {
            (Head::Fresh, Source::Boot) => Ok(()),
            // The store is not told that nothing of it is to be kept.
            (Head::Fresh, Source::Version(_)) if moved => self.may_run_after_loss(host, service, source),
            (Head::Fresh, Source::Version(_)) => Err("that is from before it was ended".to_owned()),
            (Head::Asleep(newest), Source::Version(content)) if newest == content => Ok(()),
            // What the host that had it kept for itself cannot be had elsewhere.
            (Head::Asleep(newest), _) if moved && !self.is_within_reach(host, service, newest) => {
                self.may_run_after_loss(host, service, source)
            }
            (Head::Asleep(newest), Source::Boot) => {
                let is_given_up = self
                    .truths
                    .content(newest)
                    .is_none_or(|content| content.given_up || content.starts >= STARTS_MAX);
                // Who had it meanwhile has warmed a guest and served nobody.
                let is_of_before = moved && self.was_lost_after(host, service, newest);
                if is_given_up || is_of_before {
                    Ok(())
                } else {
                    Err("it could have been restored".to_owned())
                }
            }
            (Head::Asleep(newest), Source::Version(_)) => {
                let is_given_up = self.truths.content(newest).is_none_or(|content| content.given_up);
                if is_given_up {
                    self.may_run_after_loss(host, service, source)
                } else {
                    Err("that is an older state".to_owned())
                }
            }
            (Head::Running(_), _) if moved => self.may_run_after_loss(host, service, source),
            (Head::Running(_), _) => Err("it runs".to_owned()),
            (Head::Lost, Source::Boot) => Ok(()),
            (Head::Lost, Source::Version(_)) => {
                let kept = self
                    .hosts
                    .get(host)
                    .and_then(|host| host.specs.iter().find(|spec| spec.name == *service));
                let prefers = kept.is_some_and(|spec| spec.policy.after_crash == AfterCrash::LastVersion);
                if moved || prefers {
                    self.may_run_after_loss(host, service, source)
                } else {
                    Err("its guest has run since, and is not to be rolled back".to_owned())
                }
            }
        }
    }

    /// The host that had it is lost, or its guest: what is newest in the store is what there is, or what is here if
    /// nobody has published anything since.
    fn may_run_after_loss(
        &mut self,
        host: usize,
        service: &DomainName,
        source: Source,
    ) -> Result<(), String> {
        let newest = self.newest_stored(service);
        match source {
            Source::Version(content) => {
                let is_newest = newest.is_some_and(|(_, newest)| newest == content)
                    || self.newest_at_loss(service) == Some(content);
                let is_own = self.truths.content(content).map(|content| content.run);
                let is_own = is_own.and_then(|run| self.truths.run(run)).is_some_and(|run| run.host == host);
                let overtaken = self.store.get(service).is_some_and(|kept| kept.overtaken);
                if is_newest || (is_own && !overtaken) {
                    Ok(())
                } else {
                    Err("that is not the newest that is left".to_owned())
                }
            }
            Source::Boot => match newest {
                None => Ok(()),
                Some((_, content)) => {
                    let usable = self.truths.content(content);
                    let usable =
                        usable.is_some_and(|content| !content.given_up && content.starts < STARTS_MAX);
                    if usable && !self.was_lost_after(host, service, content) {
                        Err("the store has a version of it".to_owned())
                    } else {
                        Ok(())
                    }
                }
            },
        }
    }

    /// Whether a guest of this host's was lost after that content was captured, here or where the service was before, and no
    /// guest ran elsewhere since: what it wrote to its disk is not put behind for a version of before, whoever had the
    /// service meanwhile and left nothing.
    fn was_lost_after(&self, host: usize, service: &DomainName, content: ContentId) -> bool {
        let Some(since) = self.truths.contents.get(content.0).map(|content| content.run) else {
            return false;
        };
        let slept =
            |run| self.truths.contents.iter().any(|content| content.run == run && !content.checkpoint);
        let is_own = self.truths.runs.get(since.0).is_some_and(|run| run.host == host);
        let lost = |(number, run): (usize, &Run)| {
            let is_here = run.service == *service && run.host == host && !run.alive;
            is_here && (is_own || !run.orphan) && !slept(RunId(number))
        };
        self.truths.runs.iter().enumerate().skip(since.0).any(lost)
    }

    /// A host owns a service again with which nobody has gone on meanwhile: what it runs of it is the service.
    pub fn goes_on(&mut self, service: &DomainName, host: &str) {
        let Some(number) = self.hosts.iter().position(|state| state.name == host) else { return };
        let runs = |run: &Run| run.alive && run.host == number && run.service == *service;
        let Some(run) = self.truths.runs.iter().position(runs) else {
            let kept = self.hosts.get(number).map(|state| state.disks.values());
            let contents: Vec<_> =
                kept.into_iter().flatten().filter_map(|disk| Some(disk.manifest.as_ref()?.content)).collect();
            let is_ours = |content: &&ContentId| {
                self.truths.contents.get(content.0).is_some_and(|content| content.service == *service)
            };
            if let Some(content) = contents.iter().find(is_ours) {
                *self.truths.truth(service) = Truth { head: Head::Asleep(*content), host: Some(number) };
            }
            return;
        };
        if let Some(run) = self.truths.runs.get_mut(run) {
            run.orphan = false;
        }
        *self.truths.truth(service) = Truth { head: Head::Running(RunId(run)), host: Some(number) };
    }

    /// Newest first by epoch, then by number.
    pub fn newest_stored(&self, service: &DomainName) -> Option<(u64, ContentId)> {
        self.newest_stored_until(service, u64::MAX)
    }

    /// What was newest when the guest was lost: a checkpoint that comes to the store after that is not waited for.
    fn newest_at_loss(&self, service: &DomainName) -> Option<ContentId> {
        let host = self.truths.services.get(service)?.host?;
        let lost_at = self.hosts.get(host)?.ended_at.get(service)?;
        self.newest_stored_until(service, self.ms_at(*lost_at)).map(|(_, content)| content)
    }

    fn newest_stored_until(&self, service: &DomainName, ms: u64) -> Option<(u64, ContentId)> {
        let versions = self.store.get(service)?.versions.iter();
        let versions = versions.filter(|(_, version)| version.published_ms <= ms);
        let newest = versions.max_by_key(|(number, version)| (version.about.epoch, **number))?;
        Some((*newest.0, newest.1.content))
    }

    /// Whether a host could restore that.
    fn is_within_reach(&self, host: usize, service: &DomainName, content: ContentId) -> bool {
        let on_disk = |disk: &Disk| disk.manifest.as_ref().is_some_and(|version| version.content == content);
        let here = self.hosts.get(host).is_some_and(|host| host.disks.values().any(on_disk));
        here || self.newest_stored(service).is_some_and(|(_, newest)| newest == content)
    }

    /// A guest has been stopped and captured, or goes on running.
    pub fn capture(&mut self, run: RunId, checkpoint: bool) -> Option<ContentId> {
        let service = self.truths.run(run)?.service.clone();
        let id = ContentId(self.truths.contents.len());
        self.tell(|| format!("{service}: run {} is captured as {}", run.0, id.0));
        self.truths.contents.push(Content {
            service,
            run,
            checkpoint,
            torn: false,
            starts: 0,
            given_up: false,
        });
        Some(id)
    }

    /// A process is gone.
    pub fn end_process(&mut self, host: usize, instance: InstanceId, why: &str) {
        let Some(state) = self.hosts.get_mut(host) else { return };
        let Some(process) = state.processes.remove(&instance) else { return };
        process.ended.send_replace(Some(why.to_owned()));
        state.ended_at.insert(process.service.clone(), Instant::now());
        let kept =
            state.disks.get(&instance).and_then(|disk| disk.manifest.as_ref()).map(|version| version.content);
        self.tell(|| format!("h{host} {}: process ends ({:?}): {why}", process.service, process.doing));
        let Some(run) = process.run else { return };
        let captured =
            kept.filter(|content| self.truths.content(*content).is_some_and(|content| content.run == run));
        let Some(ended) = self.truths.run(run) else { return };
        ended.alive = false;
        if ended.orphan {
            return;
        }
        let truth = self.truths.truth(&process.service);
        if truth.head == Head::Running(run) {
            truth.head = captured.map_or(Head::Lost, Head::Asleep);
        }
        self.check_kept(&process.service);
    }

    /// Nothing of a service is to be kept.
    pub fn forget(&mut self, host: usize, service: &DomainName) {
        let owner = self.store.get(service).and_then(|kept| kept.owner.as_ref());
        let is_owner =
            owner.is_none_or(|owner| self.hosts.get(host).is_some_and(|host| host.name == owner.host));
        if is_owner {
            *self.truths.truth(service) = Truth { head: Head::Fresh, host: Some(host) };
        }
    }

    /// What the last sleep captured can be restored.
    pub fn check_kept(&mut self, service: &DomainName) {
        let Some(Truth { head: Head::Asleep(content), .. }) = self.truths.services.get(service).cloned()
        else {
            return;
        };
        let on_disk = |disk: &Disk| {
            disk.manifest.as_ref().is_some_and(|version| version.content == content && !version.corrupt)
        };
        let kept = self.hosts.iter().any(|host| host.disks.values().any(on_disk))
            || self.store.get(service).is_some_and(|kept| {
                kept.versions.values().any(|version| version.content == content && !version.corrupt)
            });
        if !kept && self.truths.content(content).is_some_and(|content| !content.given_up) {
            self.violate(format!(
                "{service}: what its last sleep captured ({}) is nowhere any more",
                content.0
            ));
        }
    }

    /// What is held of a host fits its limits.
    pub fn check_room(&mut self, host: usize) {
        let Some(state) = self.hosts.get(host) else { return };
        let (mut memory_mib, mut cpus) = (0, 0);
        for process in state.processes.values() {
            let (mib, cpu) = (u64::from(process.resources.memory_mib), u64::from(process.resources.cpus));
            match process.doing {
                Doing::Waits if !process.booted => memory_mib += reveille_core::model::ARMED_MIB,
                Doing::Paused => memory_mib += mib,
                Doing::Waits | Doing::Loaded | Doing::Warms | Doing::Runs | Doing::Stopped => {
                    memory_mib += mib;
                    cpus += cpu;
                }
            }
        }
        let limits = state.limits;
        if limits.memory_mib().is_some_and(|most| memory_mib > most)
            || limits.cpus().is_some_and(|most| cpus > most)
        {
            let held: Vec<_> = state
                .processes
                .values()
                .map(|process| (process.service.to_string(), process.doing))
                .collect();
            self.violate(format!("h{host} holds {memory_mib} MiB and {cpus} CPUs of {limits:?}: {held:?}"));
        }
    }
}
