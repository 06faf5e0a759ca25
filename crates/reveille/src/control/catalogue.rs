//! The API's side of versions in the object store: what there is, whether it is intact, what is kept.

use std::collections::BTreeMap;

use reveille_api::types::{
    PruneReport, VerifyReport, VersionDetail, VersionList, VersionPart, VersionPlace, VersionSummary,
};
use reveille_api::{ControlError, Depth, Pin, Time};
use reveille_core::model::{Cause, DomainName, SnapshotVersion, Timestamp};
use reveille_depot::Watch;
use reveille_depot::format::manifest::Manifest;
use reveille_depot::objects::ObjectError;
use reveille_depot::pages::PAGE;
use reveille_depot::republish::restored_from;
use reveille_depot::verify;

use super::commands::Command;
use super::keeping::{self, Relied};
use super::remote::Remote;
use super::stock::{Judged, Stock};
use crate::clock::Clock;

impl Remote {
    /// The versions of a service, newest first.
    pub(super) async fn list_versions(&self, name: &DomainName) -> Result<VersionList, ControlError> {
        let (service, relied) = self.relied(name).await?;
        let mut versions = Vec::new();
        if let Some(stock) = &self.stock {
            let judged = stock.judged(&service, &relied, Clock::wall()).await.map_err(unanswered)?;
            versions.extend(judged.iter().map(|one| summary(one, &relied)));
        }
        let is_listed = |own: &SnapshotVersion| versions.iter().any(|version| version.number == own.number);
        if let Some(own) = relied.local.as_ref().filter(|own| !is_listed(own)) {
            versions.insert(0, local_summary(own, self.stock.is_some()));
        }
        Ok(VersionList { service, has_depot: self.stock.is_some(), versions })
    }

    /// One version in the object store.
    pub(super) async fn show_version(
        &self,
        name: &DomainName,
        number: u64,
    ) -> Result<VersionDetail, ControlError> {
        let stock = self.depot()?;
        let (service, relied) = self.relied(name).await?;
        let judged = stock.judged(&service, &relied, Clock::wall()).await.map_err(unanswered)?;
        let unknown = || ControlError::UnknownVersion { service: service.clone(), number };
        let one = judged.iter().find(|one| one.entry.id.number == number).ok_or_else(unknown)?;
        match &one.entry.manifest {
            Ok(manifest) => Ok(detail(&service, summary(one, &relied), manifest)),
            Err(error) => Err(ControlError::Failed { detail: error.to_string() }),
        }
    }

    /// Checks a version where it lies.
    pub(super) async fn verify(
        &self,
        name: &DomainName,
        number: u64,
        depth: Depth,
    ) -> Result<VerifyReport, ControlError> {
        let stock = self.depot()?;
        let (service, _) = self.relied(name).await?;
        let id = stock.id(&service, number).map_err(unanswered)?;
        let depth = match depth {
            Depth::Lengths => verify::Depth::Lengths,
            Depth::Pages => verify::Depth::Pages,
        };
        match stock.depot().verify(&id, depth, &Watch::default()).await {
            Ok(verified) => Ok(VerifyReport {
                service,
                number,
                intact: verified.faults_total == 0,
                chunks: verified.chunks,
                faults: verified.faults.iter().map(ToString::to_string).collect(),
                faults_total: verified.faults_total,
            }),
            Err(error) if error.is_missing() => Err(ControlError::UnknownVersion { service, number }),
            Err(error @ (ObjectError::Damaged { .. } | ObjectError::TooLarge { .. })) => Ok(VerifyReport {
                service,
                number,
                intact: false,
                chunks: 0,
                faults: vec![error.to_string()],
                faults_total: 1,
            }),
            Err(error) => Err(ControlError::Unavailable { detail: error.to_string() }),
        }
    }

    /// Keeps a version whatever its age, or no longer.
    pub(super) async fn pin(&self, name: &DomainName, number: u64, pin: Pin) -> Result<(), ControlError> {
        let stock = self.depot()?;
        let (service, _) = self.relied(name).await?;
        self.manifest(&service, number).await?;
        let id = stock.id(&service, number).map_err(unanswered)?;
        let pinned = stock.depot().pin(&id, pin == Pin::Set).await;
        pinned.map_err(|error| ControlError::Unavailable { detail: error.to_string() })
    }

    /// Deletes a version that the service does not rely on.
    pub(super) async fn delete(&self, name: &DomainName, number: u64) -> Result<(), ControlError> {
        let stock = self.depot()?;
        let shown = self.show(name).await?;
        let (service, relied) = self.relied(&shown.detail.summary.name).await?;
        let refused = |detail: String| Err(ControlError::Refused { detail });
        if let Some(host) = shown.detail.foreign {
            return refused(format!("{service} is served by the host {host}; delete its versions there"));
        }
        let judged = stock.judged(&service, &relied, Clock::wall()).await.map_err(unanswered)?;
        let newest = judged.first().map(|one| one.entry.id.number);
        let Some(one) = judged.iter().find(|one| one.entry.id.number == number) else {
            return Err(ControlError::UnknownVersion { service, number });
        };
        if one.entry.pinned {
            return refused(format!(
                "version {number} of {service} is pinned; `reveille snapshot unpin {service} {number}` first"
            ));
        }
        // One that cannot be read is of no use to anybody.
        if one.entry.manifest.is_ok()
            && (newest == Some(number) || relied.needs(number) || stock.versions().is_held(&service, number))
        {
            return refused(format!(
                "version {number} is the one that {service} goes on from, or goes back to; it is deleted with the \
                 service, or when a later one has taken its place"
            ));
        }
        let deleted = stock.depot().delete(&one.entry.id).await;
        deleted.map_err(|error| ControlError::Unavailable { detail: error.to_string() })
    }

    /// Deletes what nothing keeps, or tells what would go.
    pub(super) async fn prune_all(&self, dry_run: bool) -> Result<PruneReport, ControlError> {
        let stock = self.depot()?;
        keeping::prune(stock, &self.inbox, Clock::wall(), dry_run).await.map_err(unanswered)
    }

    /// The depot.
    pub(super) fn depot(&self) -> Result<&Stock, ControlError> {
        self.stock.as_deref().ok_or(ControlError::NoDepot)
    }

    /// The manifest of a version in the object store.
    pub(super) async fn manifest(&self, service: &DomainName, number: u64) -> Result<Manifest, ControlError> {
        let found = self.depot()?.manifest(service, number).await.map_err(unanswered)?;
        found.ok_or_else(|| ControlError::UnknownVersion { service: service.clone(), number })
    }

    /// The highest number that the object store knows of the service.
    pub(super) async fn highest(&self, service: &DomainName) -> Result<u64, ControlError> {
        let stock = self.depot()?;
        let id = stock.id(service, 0).map_err(unanswered)?;
        let highest = stock.depot().highest(&id.service).await;
        highest.map_err(|error| ControlError::Unavailable { detail: error.to_string() })
    }

    async fn relied(&self, name: &DomainName) -> Result<(DomainName, Relied), ControlError> {
        self.ask(|reply| Command::Relied(name.clone(), reply)).await?
    }
}

fn unanswered(cause: Cause) -> ControlError {
    ControlError::Unavailable { detail: cause.to_string() }
}

fn summary(one: &Judged, relied: &Relied) -> VersionSummary {
    let number = one.entry.id.number;
    let manifest = one.entry.manifest.as_ref().ok();
    let is_local = relied.local.as_ref().is_some_and(|own| own.number == number);
    let is_next = match &relied.local {
        Some(_) => is_local,
        None => relied.stored_is_current && relied.stored == Some(number),
    };
    VersionSummary {
        number,
        place: if is_local { VersionPlace::Both } else { VersionPlace::Store },
        is_next,
        taken_at: manifest.map(|manifest| Time(Timestamp::from_ms(manifest.about.taken_at_ms))),
        published_at: Some(Time(Timestamp::from_ms(one.entry.published_ms))),
        parent: manifest.and_then(|manifest| manifest.about.parent),
        restored_from: manifest.and_then(restored_from),
        image: manifest.map(|manifest| manifest.about.image.clone()),
        cpus: manifest.map(|manifest| manifest.about.needs.cpus),
        memory_mib: manifest.map(|manifest| manifest.about.needs.memory_mib),
        own_bytes: manifest.map_or(0, |manifest| manifest.own_bytes),
        shared_bytes: manifest.map_or(0, |manifest| manifest.shared_bytes),
        pinned: one.entry.pinned,
        goes: one.verdict.is_ok_and(|verdict| !verdict.stays()),
        verdict: one.sentence(),
    }
}

/// A version that the object store does not have.
fn local_summary(own: &SnapshotVersion, has_depot: bool) -> VersionSummary {
    let verdict = if has_depot { "kept: on its way to the object store" } else { "kept: the only one" };
    VersionSummary {
        number: own.number,
        place: VersionPlace::Local,
        is_next: true,
        taken_at: Some(Time(own.at)),
        published_at: None,
        parent: None,
        restored_from: None,
        image: Some(own.image.clone()),
        cpus: None,
        memory_mib: None,
        own_bytes: own.stored_bytes,
        shared_bytes: 0,
        pinned: false,
        goes: false,
        verdict: verdict.to_owned(),
    }
}

fn detail(service: &DomainName, summary: VersionSummary, manifest: &Manifest) -> VersionDetail {
    let (about, needs) = (&manifest.about, &manifest.about.needs);
    let needs = [
        ("vmm", needs.vmm.clone()),
        ("vmm_version", needs.vmm_version.clone()),
        ("machine", needs.machine.clone()),
        ("cpu", needs.cpu.clone()),
        ("accelerator", needs.accelerator.clone()),
    ];
    let part = |part: &reveille_depot::format::manifest::Part| VersionPart {
        name: part.name.clone(),
        bytes: part.bytes,
        stored_bytes: part.map.count() * PAGE,
    };
    VersionDetail {
        service: service.clone(),
        summary,
        epoch: about.epoch,
        paused_us: about.paused_us,
        needs: needs.map(|(key, value)| (key.to_owned(), value)).into_iter().collect::<BTreeMap<_, _>>(),
        parts: manifest.parts.iter().map(part).collect(),
        chunks: manifest.chunks.len() as u64,
        sealed: !manifest.keys.is_empty(),
    }
}
