//! Going back to an older version, and giving a service another image: verbs that exchange what the next wake starts
//! from. Only what sleeps can be exchanged, and nothing is lost that was not said to be.

use reveille_api::types::{DeployReply, Redeploy, RestoreReply};
use reveille_api::{ControlError, Unstored, Wait};
use reveille_core::model::{DomainName, Event, Former, Resources, ServiceSpec, SpecFault};
use reveille_depot::format::manifest::Manifest;
use reveille_failpoint::failpoint;
use reveille_store::{Change, Origin, StoredService};
use tokio::time::{Instant, timeout_at};

use super::commands::{Command, Reply, Shown};
use super::remote::{Remote, WAIT_MAX};
use super::run::Control;
use super::write_back::Doubtful;

/// What a service is to run.
#[derive(Debug)]
pub struct Exchange {
    /// The service.
    pub name: DomainName,
    /// Its image.
    pub image: String,
    /// What it is given.
    pub resources: Resources,
    /// The version that the next wake starts from, and the highest number that the object store knows; none: a cold
    /// boot.
    pub from: Option<(u64, u64)>,
    /// What becomes of a last version that only this host has.
    pub unstored: Unstored,
}

// --- The loop's side ---------------------------------------------------------------------------------------------

impl Control {
    /// Begins a roll-back; what came of it is seen in the instance's row.
    pub(super) fn roll_back(
        &mut self,
        name: &DomainName,
        (from, highest): (u64, u64),
        unstored: Unstored,
    ) -> Result<RestoreReply, ControlError> {
        let service = self.resolve(name)?;
        let discard = unstored == Unstored::Discard;
        let event = Event::RollBackAsked { service: service.clone(), from, highest, discard };
        self.fleet.apply(event, self.clock.now())?;
        self.begun(&service, from)
    }

    fn begun(&self, service: &DomainName, from: u64) -> Result<RestoreReply, ControlError> {
        let unknown = || ControlError::UnknownService { name: service.clone() };
        let row = self.fleet.primary(service).ok_or_else(unknown)?;
        let number = row.rolling_back.map_or(row.version_number_last, |roll_back| roll_back.number);
        Ok(RestoreReply { service: service.clone(), from, number, phase: row.phase, done: false })
    }

    /// Gives a sleeping service another spec, and the version that goes with it. Both are durable in one write before
    /// anybody goes by them.
    pub(super) async fn exchange(&mut self, exchange: Exchange) -> Result<DeployReply, ControlError> {
        let Exchange { name, image, resources, from, unstored } = exchange;
        self.may_add_rows().map_err(|detail| ControlError::Unavailable { detail })?;
        let (name, now) = (self.resolve(&name)?, self.clock.now());
        let unknown = || ControlError::UnknownService { name: name.clone() };
        let service = self.fleet.service(&name).ok_or_else(unknown)?.clone();
        let spec = ServiceSpec { image, resources, ..service.spec.clone() };
        let cut = self.executor.tools().profiles.load().too_long(&spec);
        let warnings: Vec<String> = cut.iter().map(SpecFault::to_string).collect();
        let reply = |changed, restored| DeployReply {
            service: name.clone(),
            image: spec.image.clone(),
            cpus: resources.cpus,
            memory_mib: resources.memory_mib,
            changed,
            restored,
            warnings: warnings.clone(),
        };
        if spec == service.spec && from.is_none() {
            return Ok(reply(false, None));
        }
        let faults = self.image_faults(&spec).await;
        if !faults.is_empty() {
            return Err(ControlError::Invalid { faults });
        }
        self.fleet.may_exchange(&name, unstored == Unstored::Discard)?;
        let mut events = vec![Event::Respecified { spec: Box::new(spec.clone()) }];
        events.extend(from.map(|(from, highest)| Event::RollBackAsked {
            service: name.clone(),
            from,
            highest,
            discard: true,
        }));
        let mut planned = self.fleet.clone();
        for event in events.clone() {
            planned.apply(event, now)?;
        }
        let row = |spec: &ServiceSpec| StoredService {
            spec: spec.clone(),
            address: service.address,
            created_at: service.created_at,
            origin: Origin::Api,
        };
        let instance = planned.instance(service.primary).ok_or_else(unknown)?.clone();
        let rows = vec![Change::PutService(Box::new(row(&spec))), Change::PutInstance(Box::new(instance))];
        let doubtful = Doubtful::of(&rows, &[row(&service.spec)]);
        if let Err(error) = self.store.write(rows).await {
            self.write_back(doubtful);
            return Err(ControlError::Unavailable { detail: error.to_string() });
        }
        failpoint!("control.exchange.written");
        for event in events {
            self.fleet.apply(event, now)?;
        }
        let restored = from.map(|(from, _)| self.begun(&name, from)).transpose()?;
        tracing::info!(service = %name, image = spec.image, "is given something else to run");
        Ok(reply(true, restored))
    }
}

// --- The API's side ----------------------------------------------------------------------------------------------

impl Remote {
    /// Makes an older version the one that the next wake starts from.
    pub(super) async fn restore(
        &self,
        name: &DomainName,
        from: u64,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<RestoreReply, ControlError> {
        self.depot()?;
        let shown = self.show(name).await?;
        let service = shown.detail.summary.name.clone();
        let manifest = self.manifest(&service, from).await?;
        self.check_fits(&shown, &manifest).await?;
        let highest = self.highest(&service).await?;
        let ask = |reply| Command::RollBack(service.clone(), (from, highest), unstored, reply);
        let reply = self.patiently(wait, ask).await?;
        match wait {
            Wait::UntilAccepted => Ok(reply),
            Wait::UntilDone => self.rolled_back(reply).await,
        }
    }

    /// Gives a service another image or other resources.
    pub(super) async fn deploy(
        &self,
        name: &DomainName,
        wanted: Redeploy,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ControlError> {
        let summary = self.show(name).await?.detail.summary;
        self.check_is_ours_to_change(&summary.name).await?;
        let Redeploy { image, cpus, memory_mib } = wanted;
        let image = image.unwrap_or_else(|| summary.image.clone());
        let resources = Resources {
            cpus: cpus.unwrap_or(summary.resources.cpus),
            memory_mib: memory_mib.unwrap_or(summary.resources.memory_mib),
            ..summary.resources
        };
        self.exchanged(&summary.name, image, resources, None, unstored, wait).await
    }

    /// Gives a service what it ran before its last redeploy, and the version that goes with it.
    pub(super) async fn undeploy(
        &self,
        name: &DomainName,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ControlError> {
        let shown = self.show(name).await?;
        let service = shown.detail.summary.name.clone();
        self.check_is_ours_to_change(&service).await?;
        let Some(Former { image, resources, version }) = shown.former else {
            let detail = format!(
                "{service} was given no other image or resources so far, so there is nothing to go back to; \
                 an older version of the same image is restored by `reveille snapshot restore`"
            );
            return Err(ControlError::Refused { detail });
        };
        let (image, from) = match version {
            Some(version) if self.stock.is_some() => {
                let manifest = self.manifest(&service, version).await?;
                let taken_of = manifest.about.image;
                // Under its name there may be another image by now.
                let same = self.digest(&image).await.is_ok_and(|digest| digest == taken_of);
                (if same { image } else { taken_of }, Some((version, self.highest(&service).await?)))
            }
            Some(_) | None => (image, None),
        };
        let reply = self.exchanged(&service, image, resources, from, unstored, wait).await?;
        match (wait, reply.restored.clone()) {
            (Wait::UntilDone, Some(restored)) => {
                Ok(DeployReply { restored: Some(self.rolled_back(restored).await?), ..reply })
            }
            (Wait::UntilDone | Wait::UntilAccepted, _) => Ok(reply),
        }
    }

    async fn exchanged(
        &self,
        name: &DomainName,
        image: String,
        resources: Resources,
        from: Option<(u64, u64)>,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ControlError> {
        let ask = |reply| {
            let exchange = Exchange { name: name.clone(), image: image.clone(), resources, from, unstored };
            Command::Exchange(Box::new(exchange), reply)
        };
        self.patiently(wait, ask).await
    }

    /// Asks again while the answer is that something else comes first, if that is to be waited for.
    async fn patiently<T>(
        &self,
        wait: Wait,
        command: impl Fn(Reply<T>) -> Command,
    ) -> Result<T, ControlError> {
        let (mut generation, deadline) = (self.generation.clone(), Instant::now() + WAIT_MAX);
        loop {
            generation.mark_unchanged();
            match self.ask(&command).await? {
                Err(error @ ControlError::Busy { .. }) if wait == Wait::UntilDone => {
                    match timeout_at(deadline, generation.changed()).await {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) | Err(_) => return Err(error),
                    }
                }
                answer => return answer,
            }
        }
    }

    /// Waits until the roll-back is done, or came to nothing.
    async fn rolled_back(&self, reply: RestoreReply) -> Result<RestoreReply, ControlError> {
        let (mut generation, deadline) = (self.generation.clone(), Instant::now() + WAIT_MAX);
        loop {
            generation.mark_unchanged();
            let shown = self.show(&reply.service).await?;
            let (detail, phase) = (&shown.detail, shown.detail.summary.phase);
            // Of the version that is stored: it may be another host's, with a higher number than this would have had.
            let failed = detail.rolling_back.is_none() && shown.roll_back_failure.is_some();
            if !failed && detail.stored.as_ref().is_some_and(|stored| stored.number >= reply.number) {
                return Ok(RestoreReply { phase, done: true, ..reply });
            }
            if detail.rolling_back.is_none() {
                let overtaken = || "it was ended before it came about".to_owned();
                let why = shown.roll_back_failure.unwrap_or_else(overtaken);
                let (service, from) = (&reply.service, reply.from);
                let detail = format!("{service} is not rolled back to version {from}: {why}");
                return Err(ControlError::Failed { detail });
            }
            match timeout_at(deadline, generation.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    return Err(ControlError::Unavailable { detail: "the daemon is stopping".to_owned() });
                }
                Err(_) => return Ok(RestoreReply { phase, ..reply }),
            }
        }
    }

    /// What the config file says is not changed past it.
    async fn check_is_ours_to_change(&self, service: &DomainName) -> Result<(), ControlError> {
        let Some(file) = self.reloader.declares(service).await else { return Ok(()) };
        let detail = format!(
            "{service} is declared in {}: change `image` or `resources` there and type `reveille reload`; \
             to go back, change them back, reload, and type `reveille snapshot restore {service}` with a version",
            file.display()
        );
        Err(ControlError::Refused { detail })
    }

    /// A version is restored only into what it was taken of.
    async fn check_fits(&self, shown: &Shown, manifest: &Manifest) -> Result<(), ControlError> {
        let summary = &shown.detail.summary;
        let (service, has) = (&summary.name, summary.resources);
        let (about, needs) = (&manifest.about, &manifest.about.needs);
        let number = about.id.number;
        let digest = self.digest(&summary.image).await?;
        let given = (has.cpus, u64::from(has.memory_mib));
        if about.image == digest && (needs.cpus, needs.memory_mib) == given {
            return Ok(());
        }
        let image = about.image.get(..12).unwrap_or(&about.image);
        let (cpus, memory_mib) = (needs.cpus, needs.memory_mib);
        let detail = format!(
            "version {number} of {service} was taken of the image {image}… with {cpus} CPUs and {memory_mib} MiB, which \
             the service does not have now; give it these first with `reveille service redeploy {service} --image {} \
             --cpus {cpus} --memory-mib {memory_mib}`, or go back to what it ran before with `reveille service \
             rollback {service}`",
            about.image
        );
        Err(ControlError::Refused { detail })
    }

    async fn digest(&self, image: &str) -> Result<String, ControlError> {
        let resolved = self.images.resolve(image).await;
        Ok(resolved.map_err(|detail| ControlError::Failed { detail })?.digest)
    }
}
