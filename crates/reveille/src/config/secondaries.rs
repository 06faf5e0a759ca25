//! What the config says about keys, and who may have a zone: every fault of it.

use std::collections::BTreeSet;

use reveille_core::answer::{Acl, AclEntry, Network};
use reveille_core::model::{DomainName, SpecFault};
use reveille_dns::tsig::Algorithm;
use reveille_dns::{NotifyTarget, ZoneNotify};

use super::{Config, Notify, TransferTo, Zone};

/// Most keys.
const KEYS_MAX: usize = 1_024;
/// Most entries of each zone's `transfer` and `notify`.
const SECONDARIES_MAX: usize = 64;

/// Every fault of the keys and of what refers to them.
pub fn faults(config: &Config) -> Vec<SpecFault> {
    let mut faults = Vec::new();
    let mut known = BTreeSet::new();
    if config.key.len() > KEYS_MAX {
        faults.push(SpecFault::new("key", format!("{} keys", config.key.len()), format!("up to {KEYS_MAX}")));
    }
    for key in &config.key {
        let place = format!("key \"{}\"", key.name);
        if !known.insert(&key.name) {
            faults.push(SpecFault::new(&format!("{place}.name"), &key.name, "each key once"));
        }
        if let Some(algorithm) = &key.algorithm
            && algorithm.parse::<Algorithm>().is_err()
        {
            let allowed = Algorithm::ALL.map(Algorithm::word).join(", ");
            faults.push(SpecFault::new(&format!("{place}.algorithm"), algorithm, allowed));
        }
    }
    let mut look_up = |place: &str, name: &DomainName| faults.extend(unknown_key(config, place, name));
    config.dns.status_keys.iter().for_each(|name| look_up("dns.status_keys", name));
    for zone in &config.zone {
        let place = format!("zone \"{}\"", zone.name);
        let keys = zone.transfer.iter().filter_map(|entry| entry.key.as_ref());
        keys.for_each(|name| look_up(&format!("{place}.transfer.key"), name));
        let keys = zone.notify.iter().filter_map(|entry| entry.key.as_ref());
        keys.for_each(|name| look_up(&format!("{place}.notify.key"), name));
    }
    faults.extend(config.zone.iter().flat_map(zone_faults));
    faults
}

/// What is wrong with a reference to a key, if there is none of that name.
pub(super) fn unknown_key(config: &Config, place: &str, name: &DomainName) -> Option<SpecFault> {
    let known: BTreeSet<&DomainName> = config.key.iter().map(|key| &key.name).collect();
    if known.contains(name) {
        return None;
    }
    let names: Vec<String> = known.iter().map(ToString::to_string).collect();
    let names = if names.is_empty() { "there is none".to_owned() } else { names.join(", ") };
    Some(SpecFault::new(place, name, format!("the name of a [[key]]: {names}")))
}

fn zone_faults(zone: &Zone) -> Vec<SpecFault> {
    let mut faults = Vec::new();
    let place = format!("zone \"{}\"", zone.name);
    for (key, entries) in [("transfer", zone.transfer.len()), ("notify", zone.notify.len())] {
        if entries > SECONDARIES_MAX {
            let allowed = format!("up to {SECONDARIES_MAX}");
            faults.push(SpecFault::new(&format!("{place}.{key}"), format!("{entries} entries"), allowed));
        }
    }
    for entry in &zone.transfer {
        if entry.networks.is_empty() && entry.key.is_none() {
            let allowed = "networks, a key or both: an entry without either would be for everybody";
            faults.push(SpecFault::new(&format!("{place}.transfer"), "{}", allowed));
        }
        for network in &entry.networks {
            if let Err(error) = network.parse::<Network>() {
                let place = format!("{place}.transfer.networks");
                faults.push(SpecFault::new(&place, network, error.to_string()));
            }
        }
    }
    for notify in &zone.notify {
        if notify.address.port() == 0 || notify.address.ip().is_unspecified() {
            let allowed = "address and port of a secondary, such as \"192.0.2.7:53\"";
            faults.push(SpecFault::new(&format!("{place}.notify.address"), notify.address, allowed));
        }
    }
    faults
}

/// Who may transfer the zone.
pub fn transfer_acl(entries: &[TransferTo]) -> Acl {
    let entries: Vec<AclEntry> = entries
        .iter()
        .map(|entry| AclEntry { networks: parsed(&entry.networks), key: entry.key.clone() })
        .collect();
    Acl::new(entries)
}

/// Who is told of the zones' new serials.
pub fn notify(config: &Config) -> Vec<ZoneNotify> {
    let target = |notify: &Notify| NotifyTarget { address: notify.address, key: notify.key.clone() };
    let of_zone = |zone: &Zone| ZoneNotify {
        apex: zone.name.clone(),
        targets: zone.notify.iter().map(target).collect(),
    };
    config.zone.iter().filter(|zone| !zone.notify.is_empty()).map(of_zone).collect()
}

/// Who may ask for `_vmstate`.
pub fn status_acl(config: &Config) -> Acl {
    let keys = config.dns.status_keys.iter();
    let mut entries: Vec<AclEntry> =
        keys.map(|key| AclEntry { networks: Vec::new(), key: Some(key.clone()) }).collect();
    entries.push(AclEntry { networks: parsed(&config.dns.status_allow), key: None });
    Acl::new(entries)
}

/// The networks of a list that was checked.
pub(super) fn parsed(networks: &[String]) -> Vec<Network> {
    networks.iter().filter_map(|network| network.parse().ok()).collect()
}
