//! The query room of a running daemon, as the API shows it: what was counted and seen, zones, and their keys.
//!
//! Everything here may wait: for the disk, for a lock that a look at the observations holds, for a walk over all
//! services. The API asks from threads where that is allowed.

pub mod arrivals;
mod report;

use std::sync::Arc;

use arc_swap::ArcSwap;
use reveille_api::types::{DnsReport, QueriesReport, ZoneKeys, ZoneSummary};
use reveille_api::{ControlError, RolloverStep, Time};
use reveille_core::answer::View;
use reveille_core::model::{DomainName, Timestamp};
use reveille_dns::dnstap::{Collector, CollectorError, DnstapIn, EmitterWatch};
use reveille_dns::limit::Gate;
use reveille_dns::observe::{Correction, Hear, Observer};
use reveille_dns::publish::{PublishConfig, PublishStatus, PublishTask};
use reveille_dns::sign::{KeyError, Signing, ZoneKeyReport};
use reveille_dns::{DnsServer, Secondaries, Tallies};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::keys::Looks;

/// What the query room is looked at by.
pub struct QueryRoom {
    view: Arc<ArcSwap<View>>,
    tallies: Tallies,
    secondaries: Secondaries,
    gate: Option<Arc<Gate>>,
    signing: Arc<Signing>,
    looks: Looks,
    publications: Vec<(PublishConfig, watch::Receiver<PublishStatus>)>,
    observer: Arc<Observer>,
    /// Out and in, if they are on.
    dnstap: (Option<EmitterWatch>, Option<Arc<Collector>>),
    clock: Clock,
}

impl QueryRoom {
    /// The room of this server, which answers from `view`. Begins to take in what it observes, heard by whoever wants to.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn open(
        dns: &mut DnsServer,
        view: Arc<ArcSwap<View>>,
        gate: Option<Arc<Gate>>,
        (signing, looks): (Arc<Signing>, Looks),
        published: &[PublishTask],
        hear: Option<Hear>,
        clock: Clock,
    ) -> std::io::Result<Self> {
        let publications = published.iter().map(|task| (task.config().clone(), task.watch())).collect();
        let now: reveille_dns::Clock = Arc::new(move || clock.now());
        let observer = Arc::new(Observer::start_heard(dns.take_rings(), now, hear)?);
        let (tallies, secondaries) = (dns.tallies(), dns.secondaries());
        let dnstap = (dns.watch_dnstap(), None);
        Ok(Self { view, tallies, secondaries, gate, signing, looks, publications, observer, dnstap, clock })
    }

    /// The same, with a collector of other servers' dnstap if the settings have one; it ends with the room.
    ///
    /// # Errors
    /// If something cannot be listened on.
    pub fn collecting(mut self, config: &DnstapIn, hear: Option<Hear>) -> Result<Self, CollectorError> {
        if config.is_on() {
            let (view, clock) = (Arc::clone(&self.view), self.clock);
            let collector = Collector::start_heard(config, view, Arc::new(move || clock.now()), hear)?;
            self.dnstap.1 = Some(Arc::new(collector));
        }
        Ok(self)
    }

    /// What takes other servers' dnstap in, if anything does.
    pub fn collector(&self) -> Option<&Arc<Collector>> {
        self.dnstap.1.as_ref()
    }

    /// What takes in who asks for what.
    pub fn observer(&self) -> &Arc<Observer> {
        &self.observer
    }

    /// What was counted since the start and seen of late.
    pub fn report(&self) -> DnsReport {
        report::of(self)
    }

    /// What questions for the service stand for, if it is known.
    pub fn correction_of(&self, service: &DomainName) -> Option<Correction> {
        let counter = self.view.load().service(service).map(|service| service.counter)?;
        self.observer.correction(counter)
    }

    /// Questions for the service in the last minute; `None` if it is not counted by itself.
    pub fn queries_of(&self, service: &DomainName) -> Option<QueriesReport> {
        let counter = self.view.load().service(service).map(|service| service.counter)?;
        let seen = if counter == 0 { return None } else { self.observer.service(counter) };
        let by_type = seen.by_type.into_iter().map(|(word, count)| (word.to_owned(), count)).collect();
        let estimate = |correction| arrivals::of(&correction, (seen.queries, seen.queries));
        let arrivals = self.observer.correction(counter).map(estimate);
        Some(QueriesReport { last_minute: seen.queries, by_type, complete: seen.is_complete, arrivals })
    }

    /// At most `limit` zones in the order of their names, beginning after the name `after`.
    pub fn zones(&self, after: Option<&DomainName>, limit: usize) -> Vec<ZoneSummary> {
        let view = self.view.load_full();
        let told = self.secondaries.status();
        let mut zones: Vec<_> =
            view.zones().iter().filter(|zone| after.is_none_or(|after| zone.apex() > after)).collect();
        zones.sort_by_key(|zone| zone.apex());
        zones.truncate(limit);
        let summary = |zone: &&Arc<reveille_core::answer::Zone>| {
            let told = || told.iter().filter(|secondary| secondary.apex == *zone.apex());
            let keys = self.signing.report(zone.apex(), self.key_time()).ok();
            ZoneSummary {
                name: zone.apex().clone(),
                serial: zone.serial(),
                signed: keys.is_some(),
                secondaries: told().count() as u64,
                secondaries_in_step: told().filter(|secondary| secondary.acknowledged).count() as u64,
                next_step: keys.map(|keys| keys.advice),
            }
        };
        zones.iter().map(summary).collect()
    }

    /// The keys of a signed zone.
    ///
    /// # Errors
    /// If it is not signed, or not served here.
    pub fn keys(&self, zone: &DomainName) -> Result<ZoneKeys, ControlError> {
        self.served(zone)?;
        self.signing.report(zone, self.key_time()).map(zone_keys).map_err(refusal)
    }

    /// Begins a rollover of the zone's key or goes on with it; durable when this returns.
    ///
    /// # Errors
    /// If it is not signed or not served here, if it is not the time for that step, or the disk does not take it.
    pub fn rollover(&self, zone: &DomainName, step: RolloverStep) -> Result<ZoneKeys, ControlError> {
        self.served(zone)?;
        let now = self.key_time();
        let report = match step {
            RolloverStep::Begin => self.signing.begin_rollover(zone, now),
            RolloverStep::DsSeen => self.signing.ds_seen(zone, now),
        };
        let report = report.map_err(refusal)?;
        tracing::info!(%zone, ?step, next = report.advice, "key rollover");
        self.looks.hurry();
        Ok(zone_keys(report))
    }

    fn served(&self, zone: &DomainName) -> Result<(), ControlError> {
        let unknown = || ControlError::UnknownZone { name: zone.clone() };
        self.view.load().zones().with_apex(zone).map(drop).ok_or_else(unknown)
    }

    /// The time that keys go by: of both clocks the one that is behind, as in [`Signing::step`].
    fn key_time(&self) -> Timestamp {
        self.clock.now().min(Clock::wall())
    }
}

/// What the command line and the API show of a zone's keys; without the files of their private halves.
pub fn zone_keys(report: ZoneKeyReport) -> ZoneKeys {
    let keys = report.keys.into_iter().map(|key| reveille_api::types::KeyReport {
        tag: key.tag,
        state: key.state.word().to_owned(),
        since: Time(key.since),
        ds_seen: key.ds_seen.map(Time),
        dnskey: key.dnskey,
        ds: key.ds,
        file: None,
    });
    ZoneKeys {
        zone: report.zone,
        keys: keys.collect(),
        // A CDS record has the data of the DS record that it asks for (RFC 7344 §3.1).
        cds: report.ds.iter().map(|ds| ds.replacen(" IN DS ", " IN CDS ", 1)).collect(),
        ds: report.ds,
        next_look: report.next_look.map(Time),
        next_step: report.advice,
    }
}

fn refusal(error: KeyError) -> ControlError {
    let detail = error.to_string();
    match error {
        KeyError::Unsigned(_) | KeyError::Rollover(_) => ControlError::Refused { detail },
        KeyError::Lost { .. }
        | KeyError::Several { .. }
        | KeyError::BadState { .. }
        | KeyError::Io { .. }
        | KeyError::File(_)
        | KeyError::Delegated { .. } => ControlError::Unavailable { detail },
    }
}
