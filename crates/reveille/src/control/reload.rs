//! A reload in the control loop: first all that can fail, then one new view.
//!
//! ```text
//!   stand by until no update is under way ─► services planned ─► updates laid over the new files
//!     ─► keys opened ─► addresses bound ─► rows durable ─► signing ended ─┬─► TSIG keys, fleet, view, secondaries …
//!            any of these fails: undone, refused ────────────────────────┘
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
use reveille_core::model::{DomainName, ServiceSpec};
use reveille_dns::Certificate;
use reveille_dns::limit::PreparedRules;
use reveille_dns::sign::{KeyPolicy, Signing};
use reveille_dns::update::UpdateDesk;
use reveille_store::{ReadError, StoredService};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use self::services::ServicePlan;
use super::at_length;
use super::run::Control;
use super::serials::PlannedSerials;
use super::updates::{SetAside, TakenUp, take_up};
use super::write_back::Doubtful;
use crate::clock::Clock;
use crate::config::{self, Config, Dnssec};
use crate::keys::held_s;
use crate::reload::{Announced, Live, Prepared};

/// Longest wait of a reload for updates that are under way. They take milliseconds, unless the disk fails.
pub const RELOAD_WAIT_MS_MAX: u64 = 5_000;

/// A reload that waits, and who waits for it.
pub type ReloadAsk = (Box<Prepared>, oneshot::Sender<Result<ReloadReport, ControlError>>);

/// All that a reload brings, once nothing can fail any more.
struct Ready {
    plan: ServicePlan,
    serials: PlannedSerials,
    gate: PreparedRules,
    desk: UpdateDesk,
    /// What updates have changed and is not served.
    aside: SetAside,
}

impl Control {
    /// Carries the reload that waits out if no update is under way; refuses it if that takes too long, since what was
    /// read of the files grows old.
    pub(super) async fn reload_if_due(&mut self) {
        let (is_free, now) = (self.updates.is_free(), self.clock.now());
        let Some((ask, _)) = self.reloading.take_if(|(_, until)| is_free || *until <= now) else { return };
        if is_free {
            return self.reload(ask).await;
        }
        let reason = "updates of zones are being saved, which takes longer than it should; look at the disk, and \
                      reload again when the log has no more errors of it";
        let _ = ask.1.send(Err(ControlError::NotReloaded { reasons: sentence(reason) }));
    }

    /// Carries a reload out that was read and checked. Only while no update is under way.
    async fn reload(&mut self, (prepared, reply): ReloadAsk) {
        let result = match self.make_ready(&prepared).await {
            Ok(ready) => Ok(self.take_over(*prepared, ready).await),
            Err(reasons) => {
                undo_signing(&prepared).await;
                Err(ControlError::NotReloaded { reasons })
            }
        };
        let _ = reply.send(result);
    }

    /// Everything that can fail. After a fault nothing is left of it but keys that were opened, and rows that are being
    /// taken back.
    async fn make_ready(&mut self, prepared: &Prepared) -> Result<Ready, Vec<String>> {
        let Prepared { before, wanted, files, live, .. } = prepared;
        self.may_add_rows().map_err(sentence)?;
        let plan = self.plan_services(before, wanted)?;
        let (store, changed) = (Arc::clone(&self.store), plan.changed());
        let reading = spawn_blocking(move || {
            let former: Result<Vec<_>, _> = changed.iter().map(|name| store.service(name)).collect();
            Ok::<_, ReadError>((store.static_sets()?, former?))
        });
        let (stored, former) = reading.await.map_err(sentence)?.map_err(sentence)?;
        let former: Vec<StoredService> = former.into_iter().flatten().collect();
        let TakenUp { desk, zones, aside } =
            at_length(|| take_up(files.zones.clone(), &wanted.zone, stored, &plan.names));
        let apexes = Zones::new(zones.iter().cloned().map(Arc::new));
        let apexes = apexes.iter().map(|zone| zone.apex());
        let gate = live.gate.prepare(&wanted.gate, apexes, self.clock.now()).map_err(sentence)?;
        let zones = self.open_keys(prepared, zones).await?;
        let serials = at_length(|| self.publisher.plan_zones(zones));
        let plan = self.bind_added(plan).await?;
        let rows = plan.rows().chain(serials.changes.iter().cloned()).collect::<Vec<_>>();
        let doubtful = Doubtful::of(&rows, &former);
        let written = if rows.is_empty() { Ok(()) } else { self.store.write(rows).await.map_err(sentence) };
        // Last: no step of a key must be taken between this and the view, and nothing of it stands in a row.
        let done = match written {
            Ok(()) => end_signing(prepared).await,
            Err(reasons) => Err(reasons),
        };
        if let Err(reasons) = done {
            self.write_back(doubtful);
            self.undo(plan).await;
            return Err(reasons);
        }
        Ok(Ready { plan, serials, gate, desk, aside })
    }

    /// Opens the keys of zones that are signed from now on, and looks whether others may be served unsigned.
    async fn open_keys(&self, prepared: &Prepared, zones: Vec<Zone>) -> Result<Vec<Zone>, Vec<String>> {
        let wanted: BTreeSet<DomainName> = signed(&prepared.wanted).cloned().collect();
        let served = self.publisher.zones();
        let (live, state_dir) = (Arc::clone(&prepared.live), prepared.wanted.daemon.state_dir.clone());
        let now = self.clock.now().min(Clock::wall());
        let mut services: Vec<ServiceSpec> =
            self.fleet.services().map(|service| service.spec.clone()).collect();
        services.extend(prepared.wanted.service.iter().cloned());
        let opening = spawn_blocking(move || {
            let mut faults = Vec::new();
            for zone in &zones {
                let apex = zone.apex();
                let is_signed = live.signing.is_signed(apex);
                let result = match wanted.contains(apex) {
                    true if !is_signed => {
                        let served = served.iter().map(|zone| &**zone);
                        live.signing.add(zone, held_s(apex, services.iter(), served), now)
                    }
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
        let Ready { plan, serials, gate, desk, aside } = ready;
        let mut report = ReloadReport { file: path.display().to_string(), ..ReloadReport::default() };
        report.needs_restart = needs_restart.into_iter().chain(plan.next_start.iter().cloned()).collect();
        report.warnings = at_length(|| self.warnings(&plan.names, &serials.zones));
        aside.tell_of_unserved();
        report.warnings.extend(aside.unfit);
        report.warnings.extend(newly_cut(&before, &wanted));
        let served = self.publisher.zones();
        report.changes = changed_sections(&before, &wanted);
        report.changes.extend(changed_keys(&before, &wanted, &files.keys, &live));

        // Who signs with a new key is to be known before the view says what he may do.
        live.keys.exchange(&files.keys);
        self.updates = desk;
        self.zones = wanted.zone.iter().map(|zone| zone.name.clone()).collect();
        self.executor.tools().profiles.store(Arc::clone(&wanted.profiles));
        self.fleet.limits = wanted.host;
        self.on_stop = (wanted.daemon.on_stop, Duration::from_millis(wanted.daemon.stop_ms_max));
        report.changes.extend(plan.changes.iter().cloned());
        report.warnings.extend(plan.warnings.iter().cloned());
        self.take_services(plan);
        self.publisher.rezone(serials, config::status_acl(&wanted));
        // Rules name zones by their numbers in a view; who is answered from the one before finds those before.
        live.gate.take(gate);
        live.threshold.set(wanted.observe.anomaly_threshold_sd);
        self.turn();

        live.notify.set(config::notify(&wanted));
        let policy = (wanted.dnssec != before.dnssec).then_some(wanted.dnssec);
        if certificate.is_some() && live.certificate.is_some() {
            report.changes.push(change("dns.tls.cert_file", "changed"));
        }
        report.warnings.extend(exchange_kept(&live, policy, certificate).await);
        let mut about = live.announced.load().about.clone();
        about.zones.clone_from(&self.zones);
        let profiles = Arc::clone(&wanted.profiles);
        live.announced.store(Arc::new(Announced {
            about,
            policy: wanted.policy,
            health: wanted.health.clone(),
            profiles,
        }));
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

/// Sets of profiles that are longer than a service's policy leaves, and were not before.
fn newly_cut(before: &Config, wanted: &Config) -> Vec<String> {
    let of_before = config::sets_cut(before);
    let now = config::sets_cut(wanted).into_iter().filter(|cut| !of_before.contains(cut));
    now.map(|cut| cut.to_string()).collect()
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

/// Ends the signing of zones that go or are unsigned from now on; of all, or of none.
async fn end_signing(prepared: &Prepared) -> Result<(), Vec<String>> {
    let Prepared { before, wanted, live, .. } = prepared;
    let of_before: BTreeSet<DomainName> = signed(before).cloned().collect();
    let still: BTreeSet<DomainName> = signed(wanted).cloned().collect();
    let ended: BTreeSet<DomainName> = of_before.difference(&still).cloned().collect();
    // What is new here is looked at too: its ledger may be of an earlier time.
    let known: BTreeSet<&DomainName> = before.zone.iter().map(|zone| &zone.name).collect();
    let unsigned = wanted.zone.iter().filter(|zone| zone.dnssec == Dnssec::Off).map(|zone| &zone.name);
    let unsigned: BTreeSet<DomainName> =
        unsigned.filter(|apex| ended.contains(*apex) || !known.contains(apex)).cloned().collect();
    if ended.is_empty() && unsigned.is_empty() {
        return Ok(());
    }
    let (gone, live) = (ended.difference(&unsigned).cloned().collect(), Arc::clone(live));
    let leaving = spawn_blocking(move || live.signing.leave(&gone, &unsigned));
    let left = leaving.await.map_err(sentence)?;
    left.map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

/// Ends the signing of zones whose keys were opened in vain.
async fn undo_signing(prepared: &Prepared) {
    let Prepared { before, wanted, live, .. } = prepared;
    let of_before: BTreeSet<&DomainName> = signed(before).collect();
    let served: BTreeSet<DomainName> = before.zone.iter().map(|zone| zone.name.clone()).collect();
    let opened: Vec<DomainName> = signed(wanted)
        .filter(|apex| !of_before.contains(apex) && live.signing.is_signed(apex))
        .cloned()
        .collect();
    let live = Arc::clone(live);
    let undoing = spawn_blocking(move || {
        for apex in opened {
            let (this, none) = (BTreeSet::from([apex.clone()]), BTreeSet::new());
            let left = if served.contains(&apex) { live.signing.leave(&none, &this) } else { Ok(()) };
            let faults = left.err().unwrap_or_default();
            for error in faults {
                tracing::error!(%error, zone = %apex, "keys of a zone that stays unsigned");
            }
            // Its keys may be left, its signer must not be.
            let _ = live.signing.leave(&this, &none);
        }
    });
    if let Err(error) = undoing.await {
        tracing::error!(%error, "keys of zones that stay unsigned");
    }
}

/// Exchanges what is kept behind locks that others hold while they wait for the disk. Gives what went wrong.
async fn exchange_kept(
    live: &Arc<Live>,
    policy: Option<KeyPolicy>,
    certificate: Option<Certificate>,
) -> Vec<String> {
    let live = Arc::clone(live);
    let exchanging = spawn_blocking(move || {
        if let Some(policy) = policy {
            live.signing.set_policy(policy);
        }
        if let (Some(shown), Some(other)) = (&live.certificate, certificate) {
            shown.exchange(other);
        }
    });
    exchanging.await.err().map(sentence).unwrap_or_default()
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
        (
            "observe.anomaly_threshold_sd",
            old.observe.anomaly_threshold_sd.to_bits() != new.observe.anomaly_threshold_sd.to_bits(),
        ),
        ("host", old.host != new.host),
        ("dnssec", old.dnssec != new.dnssec),
        ("policy", old.policy != new.policy),
        ("health", old.health != new.health),
        ("warm_up", (&old.warm_up, &old.profiles) != (&new.warm_up, &new.profiles)),
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
