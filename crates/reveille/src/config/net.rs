//! `[net]`: who carries what clients and guests say to each other.

use std::net::Ipv4Addr;

use reveille_core::model::{Egress, SpecFault};
use serde::{Deserialize, Serialize};

use super::{Config, Network};

/// `[net]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Net {
    /// Who carries what clients and guests say to each other.
    pub mode: NetMode,
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
    /// What relay mode can do and tap mode cannot.
    pub(super) fn tap_faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        if self.net.mode == NetMode::Relay {
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
            if service.egress != Egress::None {
                let allowed = "\"none\" with net.mode = \"tap\"; route and filter on the host instead";
                faults.push(SpecFault::new(&format!("{place}.egress"), "nat", allowed));
            }
        }
        faults
    }
}
