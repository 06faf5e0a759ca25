//! `[net]`: who carries what clients and guests say to each other.

use std::net::{IpAddr, Ipv4Addr};

use reveille_core::model::{ServiceSpec, SpecFault};
use serde::{Deserialize, Serialize};

use super::{Config, Network};

/// Where the host says whom it asks for names.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// `[net]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Net {
    /// Who carries what clients and guests say to each other.
    pub mode: NetMode,
    /// In tap mode: whom guests with egress `nat` ask for names; empty: the first server of the host's own that is not on
    /// loopback.
    pub nameserver: String,
    /// In tap mode: a bridge or network card of the host whose neighbours find the services' addresses there without a route,
    /// since the host answers ARP and neighbour discovery for them; empty: addresses are routed to the host.
    pub bridge: String,
}

/// Who carries what clients and guests say to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetMode {
    /// The daemon: no privilege is needed.
    #[default]
    Relay,
    /// The kernel, through tap devices: the daemon needs CAP_NET_ADMIN and CAP_NET_RAW.
    Tap,
}

impl Config {
    /// The link on which the host answers for services.
    pub fn bridge(&self) -> Option<&str> {
        Some(self.net.bridge.as_str()).filter(|bridge| !bridge.is_empty())
    }

    /// Whom guests with egress ask for names.
    pub fn nameserver(&self) -> Option<IpAddr> {
        if let Ok(server) = self.net.nameserver.parse() {
            return Some(server);
        }
        let servers = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let named =
            servers.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
        // IPv6 addresses of a link have their interface behind them, and are no addresses here.
        named.into_iter().find(|server: &IpAddr| !server.is_loopback())
    }

    fn nameserver_faults(&self) -> Option<SpecFault> {
        let text = &self.net.nameserver;
        let is_fine = text.is_empty() || text.parse().is_ok_and(|server: IpAddr| !server.is_loopback());
        let allowed =
            "the address of a name server that guests can reach, not on loopback; or \"\" for the host's own";
        (!is_fine).then(|| SpecFault::new("net.nameserver", text, allowed))
    }

    /// What one mode can do and the other cannot.
    pub(super) fn tap_faults(&self) -> Vec<SpecFault> {
        let mut faults: Vec<SpecFault> = self.nameserver_faults().into_iter().collect();
        if self.net.mode == NetMode::Relay {
            if let Some(bridge) = self.bridge() {
                let allowed = "nothing with net.mode = \"relay\", which has no packets of its own; or set net.mode = \"tap\"";
                faults.push(SpecFault::new("net.bridge", bridge, allowed));
            }
            let limited = |service: &&ServiceSpec| service.egress_allow.len() + service.egress_deny.len() > 0;
            for service in self.service.iter().filter(limited) {
                let key = format!("service \"{}\".egress_allow, egress_deny", service.name);
                let allowed = "nothing with net.mode = \"relay\", in which egress is not filtered; or set net.mode = \"tap\"";
                faults.push(SpecFault::new(&key, "some networks", allowed));
            }
            return faults;
        }
        let first = Network::parse_v4(&self.relay.pool).and_then(|pool| pool.at(1));
        if first.is_some_and(|address| address.is_loopback()) {
            let allowed =
                "with net.mode = \"tap\" a network that is routed to this host, such as 10.64.0.0/16";
            faults.push(SpecFault::new("relay.pool", &self.relay.pool, allowed));
        }
        for service in &self.service {
            let place = format!("service \"{}\"", service.name);
            if let Some(address) = service.address.filter(Ipv4Addr::is_loopback) {
                let allowed = "with net.mode = \"tap\" an address outside 127.0.0.0/8";
                faults.push(SpecFault::new(&format!("{place}.address"), address, allowed));
            }
            faults.extend(several_behind_a_tap(&format!("{place}.policy.instances_max"), service));
        }
        faults
    }
}

/// Several instances would be behind one device.
pub fn several_behind_a_tap(key: &str, service: &ServiceSpec) -> Option<SpecFault> {
    let most = service.policy.instances_max;
    let allowed = "1 with net.mode = \"tap\", where a service has one address and one device; or set net.mode = \"relay\"";
    (most > 1).then(|| SpecFault::new(key, most, allowed))
}
