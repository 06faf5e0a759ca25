//! What the daemon says of itself: to whoever started it, and through the API.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reveille_api::Time;
use reveille_api::types::{HostSummary, ServiceCounts};
use reveille_core::model::{Protocol, ServiceSpec};
use reveille_vm::driver::Driver;

use crate::clock::Clock;
use crate::config::{self, Config};

/// What there is to say of the host.
pub fn about(config: &Config, driver: &dyn Driver, clock: Clock) -> HostSummary {
    let capabilities = driver.capabilities();
    HostSummary {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Time(clock.now()),
        zones: config.zone.iter().map(|zone| zone.name.clone()).collect(),
        dns: config.dns.listen.clone(),
        driver: format!("{} {}", capabilities.driver, capabilities.version),
        accelerator: capabilities.accelerator.clone(),
        services: ServiceCounts::default(),
        starts_running: 0,
        starts_max: 0,
        generation: 0,
    }
}

/// The line that scripts wait for, and what a person may type next.
pub fn ready_lines(config: &Config, services: &[(ServiceSpec, Ipv4Addr)]) -> String {
    let zones: Vec<String> = config.zone.iter().map(|zone| zone.name.to_string()).collect();
    let dns: Vec<String> = config.dns.listen.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "reveille is ready: DNS on {} for {}, API on http://{}, {} services\n",
        dns.join(" and "),
        if zones.is_empty() { "no zone".to_owned() } else { zones.join(", ") },
        config.api.listen,
        services.len()
    );
    let Some((spec, address)) = services.first() else { return text };
    let Some(listen) = config.dns.listen.first() else { return text };
    text += "\n  Type next, in another terminal:\n";
    let asked = match listen.ip() {
        IpAddr::V4(own) if own.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(own) if own.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        own @ (IpAddr::V4(_) | IpAddr::V6(_)) => own,
    };
    text += &format!("    dig +short @{asked} -p {} {}\n", listen.port(), spec.name);
    if let Some(port) = spec.ports.iter().find(|port| port.protocol == Protocol::Tcp) {
        text += &format!("    curl http://{address}:{}/\n", port.number);
    }
    let program = std::env::args().next().unwrap_or_else(|| "reveille".to_owned());
    let api = if config.api == config::Api::default() {
        String::new()
    } else {
        format!(" --api http://{}", config.api.listen)
    };
    text += &format!("    {program} why {}{api}\n\n", spec.name.first_label().unwrap_or_default());
    text
}
