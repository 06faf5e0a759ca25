//! The depot as operators and retention see it: what there is of a service, why it stays or goes, and what nobody needs
//! any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use reveille_core::model::{Cause, DomainName, Timestamp};
use reveille_depot::catalogue::VersionEntry;
use reveille_depot::collect::CollectPlan;
use reveille_depot::format::manifest::Manifest;
use reveille_depot::names::VersionId;
use reveille_depot::retention::{Candidate, Verdict, judge};
use reveille_depot::{Depot, Watch};

use super::keeping::Relied;
use super::versions::{Versions, failed, service_name};
use crate::config::Keeping;

/// What this host sees of the depot, and may do to it beside sending and fetching.
pub struct Stock {
    depot: Arc<Depot>,
    versions: Arc<Versions>,
    keeping: Keeping,
}

/// A version of the store, and why it stays or goes.
#[derive(Debug)]
pub struct Judged {
    /// The version.
    pub entry: VersionEntry,
    /// The verdict; none on one whose manifest cannot be read.
    pub verdict: Result<Verdict, ()>,
}

impl Stock {
    /// Of the depot that `versions` go to.
    pub fn new(depot: Arc<Depot>, versions: Arc<Versions>, keeping: Keeping) -> Self {
        Self { depot, versions, keeping }
    }

    /// The depot.
    pub fn depot(&self) -> &Depot {
        &self.depot
    }

    /// How this host sends versions to it, and fetches them.
    pub fn versions(&self) -> &Arc<Versions> {
        &self.versions
    }

    /// What is kept.
    pub fn keeping(&self) -> Keeping {
        self.keeping
    }

    /// The versions in the store, newest first, each with its verdict.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn judged(
        &self,
        service: &DomainName,
        relied: &Relied,
        now: Timestamp,
    ) -> Result<Vec<Judged>, Cause> {
        let entries = self.depot.list(&service_name(service)?).await.map_err(failed)?;
        let candidate = |entry: &VersionEntry| {
            let about = &entry.manifest.as_ref().ok()?.about;
            let number = entry.id.number;
            Some(Candidate {
                number,
                epoch: about.epoch,
                // What was gone back to is as old as its manifest.
                taken_at_ms: about.taken_at_ms.max(entry.published_ms),
                pinned: entry.pinned,
                held: relied.needs(number) || self.versions.is_held(service, number),
            })
        };
        let candidates: Vec<Candidate> = entries.iter().filter_map(candidate).collect();
        let verdicts: BTreeMap<u64, Verdict> =
            judge(&candidates, self.keeping.retention, now.as_ms()).into_iter().collect();
        let mut judged: Vec<Judged> = entries
            .into_iter()
            .map(|entry| Judged { verdict: verdicts.get(&entry.id.number).copied().ok_or(()), entry })
            .collect();
        judged.sort_by_key(|one| {
            let epoch = one.entry.manifest.as_ref().map_or(0, |manifest| manifest.about.epoch);
            std::cmp::Reverse((epoch, one.entry.id.number))
        });
        Ok(judged)
    }

    /// One version in the store, if it is there.
    ///
    /// # Errors
    /// The store does not answer, or the manifest is damaged.
    pub async fn manifest(&self, service: &DomainName, number: u64) -> Result<Option<Manifest>, Cause> {
        let id = VersionId { service: service_name(service)?, number };
        match self.depot.show(&id).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Where a version is in the store.
    ///
    /// # Errors
    /// The service cannot be in it.
    pub fn id(&self, service: &DomainName, number: u64) -> Result<VersionId, Cause> {
        Ok(VersionId { service: service_name(service)?, number })
    }

    /// How much nobody needs any more, in objects and bytes.
    ///
    /// # Errors
    /// The store does not answer, or a manifest cannot be read.
    pub async fn plan_collection(&self) -> Result<(u64, u64), Cause> {
        Ok(extent(&self.depot.plan_collection().await.map_err(failed)?))
    }

    /// Deletes what nobody needs any more; gives how much that was, in objects and bytes.
    ///
    /// # Errors
    /// The store does not answer, or a manifest cannot be read.
    pub async fn collect(&self) -> Result<(u64, u64), Cause> {
        Ok(extent(&self.depot.collect(&Watch::default()).await.map_err(failed)?))
    }
}

fn extent(plan: &CollectPlan) -> (u64, u64) {
    let all = || plan.chunks.iter().chain(&plan.others);
    (all().count() as u64, all().map(|object| object.bytes).sum())
}
