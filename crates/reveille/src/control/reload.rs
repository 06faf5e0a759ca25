//! A reload in the control loop: first all that can fail, then one new view.
//!
//! ```text
//!   stand by until no update is under way ─► services planned ─► updates laid over the new files
//!     ─► addresses bound ─► keys opened ─► rows durable ─┬─► TSIG keys, fleet, view, gate, secondaries …
//!            any of these fails: undone, refused ────────┘
//! ```
//!
//! Serials and services that the view may show are durable before it does, so a kill at any moment is followed by a
//! start that knows them.

mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use reveille_api::ControlError;
use reveille_api::types::{ReloadChange, ReloadReport};
use reveille_core::answer::{Zone, Zones, clashes};
use reveille_core::model::DomainName;
use reveille_dns::limit::PreparedRules;
use reveille_dns::sign::Signing;
use reveille_dns::update::UpdateDesk;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use self::services::ServicePlan;
use super::run::Control;
use super::serials::PlannedSerials;
use super::updates::take_up;
use crate::clock::Clock;
use crate::config::{self, Config, Dnssec};
use crate::reload::{Announced, Live, Prepared};

/// A reload that waits, and who waits for it.
pub type ReloadAsk = (Box<Prepared>, oneshot::Sender<Result<ReloadReport, ControlError>>);

/// All that a reload brings, once nothing can fail any more.
struct Ready {
    plan: ServicePlan,
    serials: PlannedSerials,
    gate: PreparedRules,
    desk: UpdateDesk,
}

impl Control {
    /// Carries a reload out that was read and checked. Only while no update is under way.
    pub(super) async fn reload(&mut self, (prepared, reply): ReloadAsk) {
        let result = match self.make_ready(&prepared).await {
            Ok(ready) => Ok(self.take_over(*prepared, ready).await),
            Err(reasons) => {
                // Of keys that were opened in vain.
                for error in stop_signing(&prepared.wanted, &prepared.before, &prepared.live).await {
                    tracing::error!(error, "keys of a zone that stays unsigned");
                }
                Err(ControlError::NotReloaded { reasons })
            }
        };
        let _ = reply.send(result);
    }

    /// Everything that can fail. After a fault nothing is left of it but keys that were opened.
    async fn make_ready(&mut self, prepared: &Prepared) -> Result<Ready, Vec<String>> {
        let Prepared { before, wanted, files, live, .. } = prepared;
        let plan = self.plan_services(before, wanted)?;
        let store = Arc::clone(&self.store);
        let stored = spawn_blocking(move || store.static_sets()).await;
        let stored = stored.map_err(sentence)?.map_err(sentence)?;
        let (desk, zones) = take_up(files.zones.clone(), &wanted.zone, stored, &plan.names);
        let apexes = Zones::new(zones.iter().cloned().map(Arc::new));
        let apexes = apexes.iter().map(|zone| zone.apex());
        let gate = live.gate.prepare(&wanted.gate, apexes, self.clock.now()).map_err(sentence)?;
        let zones = self.open_keys(prepared, zones).await?;
        let serials = self.publisher.plan_zones(zones);
        let plan = self.bind_added(plan).await?;
        let rows = plan.rows().chain(serials.changes.iter().cloned()).collect::<Vec<_>>();
        let written = if rows.is_empty() { Ok(()) } else { self.store.write(rows).await };
        if let Err(error) = written {
            self.undo(plan).await;
            return Err(sentence(error));
        }
        Ok(Ready { plan, serials, gate, desk })
    }

    /// Opens the keys of zones that are signed from now on, and looks whether others may be served unsigned.
    async fn open_keys(&self, prepared: &Prepared, zones: Vec<Zone>) -> Result<Vec<Zone>, Vec<String>> {
        let wanted: BTreeSet<DomainName> = signed(&prepared.wanted).cloned().collect();
        let served = self.publisher.zones();
        let (live, state_dir) = (Arc::clone(&prepared.live), prepared.wanted.daemon.state_dir.clone());
        let now = self.clock.now().min(Clock::wall());
        let opening = spawn_blocking(move || {
            let mut faults = Vec::new();
            for zone in &zones {
                let apex = zone.apex();
                let is_signed = live.signing.is_signed(apex);
                let result = match wanted.contains(apex) {
                    true if !is_signed => live.signing.add(zone, now),
                    false if is_signed || served.find(apex).is_none() => {
                        Signing::may_leave_unsigned(&state_dir, apex)
                    }
                    true | false => Ok(()),
                };
                faults.extend(result.err().map(|error| error.to_string()));
            }
            if faults.is_empty() { Ok(zones) } else { Err(faults) }
        });
        let zones: Vec<Zone> = opening.await.map_err(sentence)??;
        let signing = &prepared.live.signing;
        let is_signed = |zone: &Zone| signed(&prepared.wanted).any(|name| name == zone.apex());
        Ok(zones.into_iter().map(|zone| if is_signed(&zone) { signing.sign(zone) } else { zone }).collect())
    }

    /// Nothing of this fails: one view with everything, and what does not stand in the view around it.
    async fn take_over(&mut self, prepared: Prepared, ready: Ready) -> ReloadReport {
        let Prepared { before, wanted, path, files, certificate, needs_restart, live } = prepared;
        let Ready { plan, serials, gate, desk } = ready;
        let mut report = ReloadReport { file: path.display().to_string(), ..ReloadReport::default() };
        report.needs_restart = needs_restart.into_iter().chain(plan.next_start.iter().cloned()).collect();
        report.warnings = self.warnings(&plan.names, &serials.zones);
        let served = self.publisher.zones();
        report.changes = changed_sections(&before, &wanted);
        report.changes.extend(changed_keys(&before, &wanted, &files.keys, &live));
        report.warnings.extend(stop_signing(&before, &wanted, &live).await);

        // Who signs with a new key is to be known before the view says what he may do.
        live.keys.exchange(&files.keys);
        self.updates = desk;
        self.zones = wanted.zone.iter().map(|zone| zone.name.clone()).collect();
        self.fleet.limits = wanted.host;
        self.on_stop = (wanted.daemon.on_stop, Duration::from_millis(wanted.daemon.stop_ms_max));
        report.changes.extend(plan.changes.iter().cloned());
        report.warnings.extend(plan.warnings.iter().cloned());
        self.take_services(plan);
        self.publisher.rezone(serials, config::status_acl(&wanted));
        self.turn();

        live.gate.take(gate);
        if wanted.dnssec != before.dnssec {
            live.signing.set_policy(wanted.dnssec);
        }
        live.notify.set(config::notify(&wanted));
        if let (Some(shown), Some(other)) = (&live.certificate, certificate) {
            shown.exchange(other);
            report.changes.push(change("dns.tls.cert_file", "changed"));
        }
        let mut about = live.announced.load().about.clone();
        about.zones.clone_from(&self.zones);
        live.announced.store(Arc::new(Announced { about, policy: wanted.policy }));
        report.changes.extend(changed_zones(&before, &wanted, &served, &self.publisher.zones()));
        report
    }

    /// What services of the API and new zones disagree about; at a start too the service is what is answered.
    fn warnings(&self, names: &BTreeSet<DomainName>, zones: &[Zone]) -> Vec<String> {
        let zones = Zones::new(zones.iter().cloned().map(Arc::new));
        let of_before: BTreeSet<String> =
            clashes(&self.publisher.zones(), names).iter().map(ToString::to_string).collect();
        let clashes = clashes(&zones, names).into_iter().map(|clash| clash.to_string());
        clashes.filter(|clash| !of_before.contains(clash)).collect()
    }
}

fn sentence(error: impl ToString) -> Vec<String> {
    vec![error.to_string()]
}

fn change(key: &str, what: impl Into<String>) -> ReloadChange {
    ReloadChange { key: key.to_owned(), change: what.into() }
}

fn signed(config: &Config) -> impl Iterator<Item = &DomainName> {
    config.zone.iter().filter(|zone| zone.dnssec == Dnssec::On).map(|zone| &zone.name)
}

/// Ends the signing of zones that go or are unsigned from now on; gives what went wrong.
async fn stop_signing(before: &Config, wanted: &Config, live: &Arc<Live>) -> Vec<String> {
    let still: BTreeSet<&DomainName> = signed(wanted).collect();
    let ended: Vec<DomainName> = signed(before).filter(|apex| !still.contains(apex)).cloned().collect();
    // What was unsigned before is looked at too: its ledger may be of an earlier time.
    let unsigned = wanted.zone.iter().filter(|zone| zone.dnssec == Dnssec::Off).map(|zone| zone.name.clone());
    let known = |apex: &DomainName| before.zone.iter().any(|zone| zone.name == *apex);
    let unsigned: Vec<DomainName> = unsigned.filter(|apex| ended.contains(apex) || !known(apex)).collect();
    if ended.is_empty() && unsigned.is_empty() {
        return Vec::new();
    }
    let (live, state_dir) = (Arc::clone(live), wanted.daemon.state_dir.clone());
    let leaving = spawn_blocking(move || {
        ended.iter().for_each(|apex| live.signing.remove(apex));
        let left = unsigned.iter().filter_map(|apex| Signing::leave_unsigned(&state_dir, apex).err());
        left.map(|error| error.to_string()).collect()
    });
    leaving.await.unwrap_or_else(sentence)
}

/// Sections and settings that have other values.
fn changed_sections(before: &Config, wanted: &Config) -> Vec<ReloadChange> {
    let (old, new) = (before, wanted);
    let sections = [
        ("daemon.on_stop", old.daemon.on_stop != new.daemon.on_stop),
        ("daemon.stop_ms_max", old.daemon.stop_ms_max != new.daemon.stop_ms_max),
        ("dns.status_allow", old.dns.status_allow != new.dns.status_allow),
        ("dns.status_keys", old.dns.status_keys != new.dns.status_keys),
        ("gate", old.gate != new.gate),
        ("host", old.host != new.host),
        ("dnssec", old.dnssec != new.dnssec),
        ("policy", old.policy != new.policy),
    ];
    sections.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| change(key, "changed")).collect()
}

/// Keys that came, went, or have another secret.
fn changed_keys(
    before: &Config,
    wanted: &Config,
    keys: &reveille_dns::tsig::Keyring,
    live: &Live,
) -> Vec<ReloadChange> {
    let mut changes = Vec::new();
    for key in &wanted.key {
        let what = match (live.keys.key(&key.name), keys.key(&key.name)) {
            (None, _) => "added",
            (Some(old), Some(new)) if !old.is_same(&new) => "changed",
            (Some(_), _) => continue,
        };
        changes.push(change(&format!("key \"{}\"", key.name), what));
    }
    let names: BTreeSet<&DomainName> = wanted.key.iter().map(|key| &key.name).collect();
    let gone = before.key.iter().filter(|key| !names.contains(&key.name));
    changes.extend(gone.map(|key| change(&format!("key \"{}\"", key.name), "removed")));
    changes
}

/// Zones that came, went, have another serial, or other settings.
fn changed_zones(before: &Config, wanted: &Config, was: &Zones, is: &Zones) -> Vec<ReloadChange> {
    let old: BTreeMap<&DomainName, &config::Zone> =
        before.zone.iter().map(|zone| (&zone.name, zone)).collect();
    let names: BTreeSet<&DomainName> = wanted.zone.iter().map(|zone| &zone.name).collect();
    let mut changes = Vec::new();
    for zone in &wanted.zone {
        let serial = |zones: &Zones| zones.with_apex(&zone.name).map(|zone| zone.serial());
        let settings = old.get(&zone.name).is_some_and(|old| *old != zone);
        let what = match (serial(was), serial(is)) {
            (None, Some(serial)) => format!("added at serial {serial}"),
            (Some(was), Some(is)) if was != is && settings => {
                format!("other settings, and serial {is}, was {was}")
            }
            (Some(was), Some(is)) if was != is => format!("serial {is}, was {was}"),
            (_, _) if settings => "other settings".to_owned(),
            (_, _) => continue,
        };
        changes.push(change(&format!("zone \"{}\"", zone.name), what));
    }
    let gone = before.zone.iter().filter(|zone| !names.contains(&zone.name));
    changes.extend(gone.map(|zone| change(&format!("zone \"{}\"", zone.name), "removed")));
    changes
}
