//! What the config says about dynamic updates: who may make them here, and where services are published.

use std::collections::BTreeSet;
use std::time::Duration;

use reveille_core::model::{DomainName, SpecFault};
use reveille_dns::publish::PublishConfig;
use reveille_dns::update::{Grant, NamePattern, grantable_type};

use super::secondaries::{parsed, unknown_key};
use super::{Config, Publish, UpdateBy, Zone};

/// Most entries of each zone's `update`.
const GRANTS_MAX: usize = 256;
/// Most external primaries.
const PUBLISH_MAX: usize = 64;
/// Most entries of each list in them.
const LIST_MAX: usize = 1_024;
/// Largest TTL (RFC 2181 §8).
const TTL_S_MAX: u32 = i32::MAX.unsigned_abs();

/// Every fault of `zone.update` and of `[[publish]]`.
pub fn faults(config: &Config) -> Vec<SpecFault> {
    let mut faults = Vec::new();
    for zone in &config.zone {
        let place = format!("zone \"{}\".update", zone.name);
        if zone.update.len() > GRANTS_MAX {
            let found = format!("{} entries", zone.update.len());
            faults.push(SpecFault::new(&place, found, format!("up to {GRANTS_MAX}")));
        }
        for entry in &zone.update {
            faults.extend(unknown_key(config, &format!("{place}.key"), &entry.key));
            faults.extend(update_faults(&place, zone, entry));
        }
    }
    if config.publish.len() > PUBLISH_MAX {
        let found = format!("{} entries", config.publish.len());
        faults.push(SpecFault::new("publish", found, format!("up to {PUBLISH_MAX}")));
    }
    let mut seen = BTreeSet::new();
    for (index, entry) in config.publish.iter().enumerate() {
        let place = format!("publish[{index}]");
        faults.extend(unknown_key(config, &format!("{place}.key"), &entry.key));
        faults.extend(publish_faults(&place, entry));
        if !seen.insert((entry.server, &entry.zone)) {
            let allowed = "each zone of a server once";
            faults.push(SpecFault::new(&format!("{place}.zone"), &entry.zone, allowed));
        }
    }
    faults
}

fn update_faults(place: &str, zone: &Zone, entry: &UpdateBy) -> Vec<SpecFault> {
    let mut faults = list_faults(
        place,
        [("networks", entry.networks.len()), ("names", entry.names.len()), ("types", entry.types.len())],
    );
    for network in &entry.networks {
        if let Err(error) = network.parse::<reveille_core::answer::Network>() {
            faults.push(SpecFault::new(&format!("{place}.networks"), network, error.to_string()));
        }
    }
    faults.extend(pattern_faults(&format!("{place}.names"), &entry.names, &zone.name));
    for word in entry.types.iter().filter(|word| grantable_type(word).is_none()) {
        let allowed =
            "types such as \"A\", \"TXT\" or \"TYPE65280\"; not SOA, and none that belongs to signing";
        faults.push(SpecFault::new(&format!("{place}.types"), word, allowed));
    }
    faults
}

fn publish_faults(place: &str, entry: &Publish) -> Vec<SpecFault> {
    let mut faults = list_faults(place, [("services", entry.services.len())]);
    if entry.server.port() == 0 || entry.server.ip().is_unspecified() {
        let allowed = "address and port of the primary, such as \"192.0.2.1:53\"";
        faults.push(SpecFault::new(&format!("{place}.server"), entry.server, allowed));
    }
    if let Some(ttl_s) = entry.ttl_s.filter(|&ttl_s| ttl_s > TTL_S_MAX) {
        faults.push(SpecFault::new(&format!("{place}.ttl_s"), ttl_s, format!("0 to {TTL_S_MAX}")));
    }
    if !(10_000..=604_800_000).contains(&entry.resend_ms) {
        faults.push(SpecFault::new(&format!("{place}.resend_ms"), entry.resend_ms, "10000 to 604800000"));
    }
    faults.extend(pattern_faults(&format!("{place}.services"), &entry.services, &entry.zone));
    faults
}

fn list_faults<const N: usize>(place: &str, lists: [(&str, usize); N]) -> Vec<SpecFault> {
    let too_long = lists.into_iter().filter(|(_, length)| *length > LIST_MAX);
    too_long
        .map(|(key, length)| {
            SpecFault::new(
                &format!("{place}.{key}"),
                format!("{length} entries"),
                format!("up to {LIST_MAX}"),
            )
        })
        .collect()
}

fn pattern_faults(place: &str, patterns: &[String], zone: &DomainName) -> Vec<SpecFault> {
    let fault = |text: &String| match text.parse::<NamePattern>() {
        Err(error) => Some(SpecFault::new(place, text, error.to_string())),
        Ok(pattern) if !pattern.top().is_at_or_below(zone) => {
            Some(SpecFault::new(place, text, format!("names in the zone {zone}")))
        }
        Ok(_) => None,
    };
    patterns.iter().filter_map(fault).collect()
}

/// Who may update the zone.
pub fn grants(zone: &Zone) -> Vec<Grant> {
    let grant = |entry: &UpdateBy| Grant {
        key: entry.key.clone(),
        networks: parsed(&entry.networks),
        names: patterns(&entry.names),
        types: entry.types.iter().filter_map(|word| grantable_type(word)).collect(),
    };
    zone.update.iter().map(grant).collect()
}

/// Where services are published.
pub fn publications(config: &Config) -> Vec<PublishConfig> {
    let publication = |entry: &Publish| PublishConfig {
        server: entry.server,
        zone: entry.zone.clone(),
        key: entry.key.clone(),
        ttl_s: entry.ttl_s,
        services: patterns(&entry.services),
        resend: Duration::from_millis(entry.resend_ms),
    };
    config.publish.iter().map(publication).collect()
}

/// The patterns of a list that was checked.
fn patterns(list: &[String]) -> Vec<NamePattern> {
    list.iter().filter_map(|text| text.parse().ok()).collect()
}
