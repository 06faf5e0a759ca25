//! The zones and keys that the config names: read from their files, every fault of them, and the first view.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use reveille_core::answer::{View, Zone, ZoneDefaults, Zones, clashes};
use reveille_core::model::DomainName;
use reveille_dns::limit::Gate;
use reveille_dns::tsig::{self, Keyring};
use reveille_dns::zonefile;
use reveille_store::Store;

use crate::clock::Clock;
use crate::config::{self, Config};
use crate::control::Serials;
use crate::encrypted;

/// Serial number of zones without a file.
const SERIAL: u32 = 1;
/// TTL of the apex records of zones without a file, in seconds.
const APEX_TTL_S: u32 = 3_600;
/// For how long a negative answer of a zone without a file may be kept, in seconds.
const NEGATIVE_TTL_S: u32 = 30;

/// Every zone as its file has it, or every fault of their files.
fn zones(config: &Config) -> Result<Vec<Zone>, Vec<String>> {
    let (mut zones, mut faults) = (Vec::new(), Vec::new());
    for zone in &config.zone {
        match read_zone(zone, config) {
            Ok(read) => zones.push(read.with_transfer(config::transfer_acl(&zone.transfer))),
            Err(more) => faults.extend(more),
        }
    }
    if faults.is_empty() { Ok(zones) } else { Err(faults) }
}

fn read_zone(zone: &config::Zone, config: &Config) -> Result<Zone, Vec<String>> {
    if let Some(file) = &zone.file {
        return zonefile::load(file, &zone.name)
            .map_err(|faults| faults.iter().map(ToString::to_string).collect());
    }
    let ns = zone.ns.clone().map_or_else(|| zone.name.prepend("ns1"), Ok).map_err(|e| vec![e.to_string()])?;
    let hostmaster = zone.name.prepend("hostmaster").map_err(|error| vec![error.to_string()])?;
    let address = config.name_server_address(zone);
    let defaults = ZoneDefaults {
        apex: zone.name.clone(),
        name_servers: vec![(ns, address.into_iter().collect())],
        hostmaster,
        serial: SERIAL,
        ttl: APEX_TTL_S,
        negative_ttl: NEGATIVE_TTL_S,
    };
    defaults.zone().map_err(|faults| faults.iter().map(|fault| fault.kind.to_string()).collect())
}

/// Every key of the config, or every fault of their files.
fn keyring(config: &Config) -> Result<Keyring, Vec<String>> {
    let (mut keys, mut faults) = (Vec::new(), Vec::new());
    for key in &config.key {
        let algorithm = key.algorithm.as_ref().and_then(|word| word.parse().ok());
        match tsig::load(&key.name, algorithm, &key.file) {
            Ok(key) => keys.push(key),
            Err(error) => faults.push(error.to_string()),
        }
    }
    if faults.is_empty() { Ok(Keyring::new(keys)) } else { Err(faults) }
}

/// What the files say that a config names.
pub struct Files {
    /// Every zone, in the config's order.
    pub zones: Vec<Zone>,
    /// Every key.
    pub keys: Keyring,
}

/// Reads the files that `config` names: at a start, at a reload and for `reveille check`. Changes nothing.
///
/// # Errors
/// Every fault of the zones, keys, certificates and secrets of cookies, of what the gate's rules refer to, and every
/// name that both a zone file and a service claim.
pub fn read_files(config: &Config) -> Result<Files, Vec<String>> {
    let (keys, zones) = (keyring(config), zones(config));
    let mut faults: Vec<String> = keys.as_ref().err().cloned().unwrap_or_default();
    match &zones {
        Err(more) => faults.extend(more.iter().cloned()),
        Ok(zones) => {
            let names: Vec<DomainName> = config.service.iter().map(|service| service.name.clone()).collect();
            let zones = Zones::new(zones.iter().cloned().map(Arc::new));
            faults.extend(clashes(&zones, &names).iter().map(ToString::to_string));
            let apexes = zones.iter().map(|zone| zone.apex());
            faults
                .extend(Gate::new(&config.gate, apexes, Clock::wall()).err().map(|error| error.to_string()));
        }
    }
    faults.extend(encrypted::faults(config));
    match (zones, keys) {
        (Ok(zones), Ok(keys)) if faults.is_empty() => Ok(Files { zones, keys }),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => Err(faults),
    }
}

/// The zones without a service yet, at serials that nobody has seen.
pub async fn first_view(
    config: &Config,
    zones: Vec<Zone>,
    store: Arc<Store>,
    ceilings: &BTreeMap<DomainName, u32>,
) -> anyhow::Result<(Arc<ArcSwap<View>>, Serials)> {
    let (serials, zones) =
        Serials::begin(store, ceilings, zones).await.context("no serials for the zones")?;
    let zones = Zones::new(zones.into_iter().map(Arc::new));
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let view = View::seeded(u64::from_ne_bytes(seed), 0, zones, [], config::status_acl(config));
    Ok((Arc::new(ArcSwap::from_pointee(view)), serials))
}
