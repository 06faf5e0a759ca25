//! From a TOML table to a [`Config`], collecting every fault instead of stopping at the first.
//!
//! Each key is read by itself over a section of defaults: what does not fit is a fault that names the key, and
//! the rest of the section is read all the same. A service's `policy` is laid over `[policy]`, and its `health` over
//! `[health]`, so that it states only what differs.

use reveille_core::health::HealthPolicy;
use reveille_core::model::{Policy, SpecFault};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{Config, quote};

/// Most zones or services in one file.
const ENTRIES_MAX: usize = 200_000;

/// The config that `table` describes, and all its faults; what is faulty has its default.
pub fn read(mut table: Table) -> (Config, Vec<SpecFault>) {
    let mut faults = Vec::new();
    let mut config = Config::default();
    let services = table.remove("service");
    for (key, value) in table {
        let f = &mut faults;
        match key.as_str() {
            "daemon" => config.daemon = section(&key, value, f),
            "dns" => config.dns = section(&key, value, f),
            "gate" => config.gate = section(&key, value, f),
            "observe" => config.observe = section(&key, value, f),
            "api" => config.api = section(&key, value, f),
            "net" => config.net = section(&key, value, f),
            "relay" => config.relay = section(&key, value, f),
            "depot" => config.depot = section(&key, value, f),
            "host" => config.host = section(&key, value, f),
            "dnssec" => config.dnssec = section(&key, value, f),
            "history" => config.history = section(&key, value, f),
            "records" => config.records = section(&key, value, f),
            "warm_up" => config.warm_up = section(&key, value, f),
            "qemu" => config.qemu = section(&key, value, f),
            "policy" => config.policy = section(&key, value, f),
            "health" => config.health = section(&key, value, f),
            "key" => config.key = entries(&key, value, &key_base(), f),
            "publish" => config.publish = entries(&key, value, &publish_base(), f),
            "zone" => config.zone = entries(&key, value, &zone_base(), f),
            _ => {
                let known = "daemon, dns, dnssec, gate, observe, api, net, relay, host, depot, history, records, warm_up, qemu, policy, health, [[key]], [[zone]], [[publish]] or [[service]]";
                f.push(SpecFault::new(&key, quote::value(&key, &value), known));
            }
        }
    }
    // Last, because a service's policy is laid over the policy of the whole file, and its health likewise.
    if let Some(value) = services {
        config.service =
            entries("service", value, &service_base(&config.policy, &config.health), &mut faults);
    }
    (config, faults)
}

/// A section whose keys all have defaults.
fn section<T: DeserializeOwned + Default>(place: &str, value: Value, faults: &mut Vec<SpecFault>) -> T {
    let Value::Table(table) = value else {
        faults.push(SpecFault::new(place, quote::value(place, &value), format!("a table: [{place}]")));
        return T::default();
    };
    overlaid(place, &Table::new(), table, faults).unwrap_or_default()
}

/// A list of tables, each laid over `base`.
fn entries<T: DeserializeOwned>(
    place: &str,
    value: Value,
    base: &Base,
    faults: &mut Vec<SpecFault>,
) -> Vec<T> {
    let Value::Array(values) = value else {
        let allowed = format!("a list of tables: [[{place}]]");
        faults.push(SpecFault::new(place, quote::value(place, &value), allowed));
        return Vec::new();
    };
    if values.len() > ENTRIES_MAX {
        faults.push(SpecFault::new(
            place,
            format!("{} entries", values.len()),
            format!("up to {ENTRIES_MAX}"),
        ));
        return Vec::new();
    }
    let mut all = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let place = match value.get("name").and_then(Value::as_str) {
            Some(name) => format!("{place} \"{name}\""),
            None => format!("{place}[{index}]"),
        };
        let Value::Table(mut table) = value else {
            faults.push(SpecFault::new(&place, quote::value(&place, &value), "a table"));
            continue;
        };
        let before = faults.len();
        for (key, what) in base.required {
            if !table.contains_key(*key) {
                faults.push(SpecFault::new(&format!("{place}.{key}"), "(absent)", *what));
            }
        }
        if let Some(of_all) = &base.of_all {
            lay_over::<Policy>("policy", &of_all.policy, &mut table, &place, faults);
            lay_over::<HealthPolicy>("health", &of_all.health, &mut table, &place, faults);
        }
        let entry = overlaid(&place, &base.table, table, faults);
        all.extend(entry.filter(|_| faults.len() == before));
    }
    all
}

/// Lays what an entry says under `key` over what all entries have.
fn lay_over<T: DeserializeOwned + Serialize>(
    key: &str,
    of_all: &Table,
    entry: &mut Table,
    place: &str,
    faults: &mut Vec<SpecFault>,
) {
    match entry.remove(key) {
        Some(Value::Table(own)) => {
            let whole: Option<T> = overlaid(&format!("{place}.{key}"), of_all, own, faults);
            if let Some(whole) = whole.and_then(|whole| Table::try_from(whole).ok()) {
                entry.insert(key.into(), Value::Table(whole));
            }
        }
        // No table, which is a fault and told as one.
        Some(other) => drop(entry.insert(key.into(), other)),
        None => drop(entry.insert(key.into(), Value::Table(of_all.clone()))),
    }
}

/// What all services have unless they say otherwise.
struct OfAll {
    policy: Table,
    health: Table,
}

/// What entries of a list are laid over.
struct Base {
    table: Table,
    of_all: Option<OfAll>,
    required: &'static [(&'static str, &'static str)],
}

fn zone_base() -> Base {
    let table = Table::from_iter([("name".to_owned(), Value::from("zone.invalid"))]);
    Base { table, of_all: None, required: &[("name", "the zone's name, such as \"vm.test\"")] }
}

fn key_base() -> Base {
    let table = Table::from_iter([
        ("name".to_owned(), Value::from("key.invalid")),
        ("file".to_owned(), Value::from("key")),
    ]);
    let required = &[
        ("name", "the key's name, such as \"secondary.vm.test\""),
        ("file", "the file with the secret, made such as by `tsig-keygen NAME >FILE`"),
    ];
    Base { table, of_all: None, required }
}

fn publish_base() -> Base {
    let table = Table::from_iter([
        ("server".to_owned(), Value::from("192.0.2.1:53")),
        ("zone".to_owned(), Value::from("zone.invalid")),
        ("key".to_owned(), Value::from("key.invalid")),
    ]);
    let required = &[
        ("server", "address and port of the zone's primary, such as \"192.0.2.1:53\""),
        ("zone", "the zone's name, such as \"example.com\""),
        ("key", "the name of a [[key]] that it takes updates with"),
    ];
    Base { table, of_all: None, required }
}

fn service_base(policy: &Policy, health: &HealthPolicy) -> Base {
    let table = Table::from_iter([
        ("name".to_owned(), Value::from("service.zone.invalid")),
        ("image".to_owned(), Value::from("image")),
        ("ports".to_owned(), Value::Array(Vec::new())),
    ]);
    let required = &[
        ("name", "the full name, such as \"hello.vm.test\""),
        ("image", "the name of an image; `reveille image list` shows them"),
        ("ports", "a list such as [\"tcp/8080\"]"),
    ];
    let of_all = OfAll {
        policy: Table::try_from(policy).unwrap_or_default(),
        health: Table::try_from(health).unwrap_or_default(),
    };
    Base { table, of_all: Some(of_all), required }
}

/// What would be allowed, from what the type's reader said. Of addresses the standard library says only that they are none.
fn allowed(said: &str) -> String {
    match said.trim() {
        "invalid socket address syntax" => "an address and a port, such as \"127.0.0.1:5300\"".to_owned(),
        "invalid IP address syntax" => "an address, such as \"192.0.2.1\" or \"2001:db8::1\"".to_owned(),
        "invalid IPv4 address syntax" => "an IPv4 address, such as \"192.0.2.1\"".to_owned(),
        "invalid IPv6 address syntax" => "an IPv6 address, such as \"2001:db8::1\"".to_owned(),
        said => said.replace('\n', "; "),
    }
}

/// `own` over `base` as a `T`. Each key is tried by itself first, so that every faulty one is found.
fn overlaid<T: DeserializeOwned>(
    place: &str,
    base: &Table,
    own: Table,
    faults: &mut Vec<SpecFault>,
) -> Option<T> {
    let mut whole = base.clone();
    for (key, value) in own {
        let mut alone = base.clone();
        alone.insert(key.clone(), value.clone());
        match alone.try_into::<T>() {
            Ok(_) => {
                whole.insert(key, value);
            }
            Err(error) => {
                let said = allowed(error.message());
                let place = format!("{place}.{key}");
                faults.push(SpecFault::new(&place, quote::value(&place, &value), said));
            }
        }
    }
    match whole.try_into() {
        Ok(section) => Some(section),
        Err(error) => {
            faults.push(SpecFault::new(place, "(as a whole)", error.message().to_owned()));
            None
        }
    }
}
