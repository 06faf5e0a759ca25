//! The keys of signed zones in a running daemon: opened before anybody is answered, looked at from then on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use reveille_core::answer::Zone;
use reveille_core::model::{DomainName, ServiceSpec, Timestamp};
use reveille_dns::sign::{Signing, SigningLimits, longest_ttl_s};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::clock::Clock;
use crate::config::{Config, Dnssec};

/// Longest time between two looks, for the sake of a host's clock that is set.
const LOOK_MS_MAX: u64 = 10_000;
/// Shortest time between two looks, should a step fail.
const LOOK_MS_MIN: u64 = 200;

/// Opens the keys of the zones that are to be signed; gives the zones with their signers.
///
/// # Errors
/// Everything that keeps a zone from being served as the config says.
pub fn open<'s>(
    config: &Config,
    zones: Vec<Zone>,
    services: impl Iterator<Item = &'s ServiceSpec> + Clone,
    now: Timestamp,
) -> anyhow::Result<(Arc<Signing>, Vec<Zone>)> {
    let state_dir = &config.daemon.state_dir;
    let wants = |apex: &_| config.zone.iter().any(|zone| zone.name == *apex && zone.dnssec == Dnssec::On);
    let (signed, others): (Vec<&Zone>, Vec<&Zone>) = zones.iter().partition(|zone| wants(zone.apex()));
    let unsigned = others.iter().filter_map(|zone| Signing::leave_unsigned(state_dir, zone.apex()).err());
    let mut faults: Vec<String> = unsigned.map(|error| error.to_string()).collect();
    let limits = SigningLimits::default();
    // What was served before the start is not known beyond that.
    let signed = signed.into_iter().map(|zone| (zone, held_s(zone.apex(), services.clone(), [])));
    let signing = match Signing::open(state_dir, signed, config.dnssec, &limits, now.min(Clock::wall())) {
        Ok(signing) => signing,
        Err(errors) => {
            faults.extend(errors.iter().map(ToString::to_string));
            bail!("the keys of the zones have faults:\n  {}", faults.join("\n  "));
        }
    };
    if !faults.is_empty() {
        bail!("the keys of the zones have faults:\n  {}", faults.join("\n  "));
    }
    let zones = zones.into_iter().map(|zone| signing.sign(zone)).collect();
    Ok((Arc::new(signing), zones))
}

/// For how many seconds a cache may hold an answer in the zone: of these services, or of what is served.
pub fn held_s<'a>(
    apex: &DomainName,
    services: impl Iterator<Item = &'a ServiceSpec>,
    served: impl IntoIterator<Item = &'a Zone>,
) -> u32 {
    let inside = services.filter(|spec| spec.name.is_at_or_below(apex));
    let of_services = inside.map(|spec| spec.policy.ttl_awake_s.max(spec.policy.ttl_asleep_s));
    // A new zone's names may have been in the zone above until now.
    let related = served
        .into_iter()
        .filter(|zone| apex.is_at_or_below(zone.apex()) || zone.apex().is_at_or_below(apex));
    of_services.chain(related.map(longest_ttl_s)).max().unwrap_or(0)
}

/// Makes the next look at the keys come at once. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Looks(Arc<Notify>);

impl Looks {
    /// An operator has changed something.
    pub fn hurry(&self) {
        self.0.notify_one();
    }
}

/// Looks at the keys from now on, whenever something is due.
pub fn keep(signing: Arc<Signing>, looks: Looks, clock: Clock) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let now = clock.now();
            let looking = Arc::clone(&signing);
            // It waits for the disk.
            let Ok(look) = spawn_blocking(move || looking.step(now, Clock::wall())).await else { return };
            for (zone, change) in look.changes {
                tracing::info!(%zone, key = change.tag, state = change.to.word(), reason = change.reason, "key");
            }
            for (zone, error) in look.errors {
                tracing::error!(%zone, %error, "keys stay as they are");
            }
            let pause = look.next.map_or(LOOK_MS_MAX, |next| next.ms_since(clock.now()));
            tokio::select! {
                () = sleep(Duration::from_millis(pause.clamp(LOOK_MS_MIN, LOOK_MS_MAX))) => {}
                () = looks.0.notified() => {}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use reveille_core::answer::{Record, rdata};

    use super::*;

    fn zone(apex: &str, ttl: u32) -> Zone {
        let apex: DomainName = apex.parse().unwrap();
        let record = |rtype, data| Record { owner: apex.clone(), rtype, ttl, data };
        let soa = rdata::soa(&apex, &apex, [1, 3_600, 600, 604_800, 30]);
        let records = [record(rdata::SOA, soa), record(rdata::NS, apex.as_wire().to_vec())];
        Zone::new(apex.clone(), &records).unwrap()
    }

    /// Before the DS of a zone's first key is put to the parent, all that was answered unsigned must be forgotten.
    #[test]
    fn caches_hold_what_services_and_older_zones_said() {
        let text = r#"
            [[service]]
            name = "a.vm.test"
            image = "demo"
            ports = ["tcp/80"]
            [service.policy]
            ttl_awake_s = 7200
            [[service]]
            name = "b.other.test"
            image = "demo"
            ports = ["tcp/80"]
            [service.policy]
            ttl_awake_s = 80000
        "#;
        let mut parsed: BTreeMap<String, Vec<ServiceSpec>> = toml::from_str(text).unwrap();
        let services = parsed.remove("service").unwrap();
        let held = |apex: &str, served: &[Zone]| held_s(&apex.parse().unwrap(), services.iter(), served);
        assert_eq!(
            [held("vm.test", &[]), held("other.test", &[]), held("none.test", &[])],
            [7_200, 80_000, 0]
        );
        let served = [zone("vm.test", 86_400), zone("none.test", 300)];
        assert_eq!(held("vm.test", &served), 86_400, "as it was until now");
        assert_eq!(held("sub.vm.test", &served), 86_400, "its names were in the zone above");
        assert_eq!(held("none.test", &served), 300);
    }
}
