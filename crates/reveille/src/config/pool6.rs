//! IPv6 addresses of services: named, or made of the IPv4 one, which no other service has.
//!
//! The last 32 bits of an address of `relay.pool6` are the service's IPv4 address, as in RFC 6052 with a prefix of 96
//! bits. So nothing has to be remembered, and a service keeps it as long as it keeps the other.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use reveille_core::model::{ServiceSpec, SpecFault};

use super::{Config, NetMode, Network};

/// Longest prefix: the rest has room for an IPv4 address.
const PREFIX_MAX: u8 = 96;
/// Shortest prefix that anybody is given.
const PREFIX_MIN: u8 = 16;

/// An IPv6 network from which addresses are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network6 {
    first: Ipv6Addr,
    prefix: u8,
}

impl Network6 {
    /// Reads `address/prefix` with a prefix from 16 to 96 and no bits beyond it.
    pub fn parse(text: &str) -> Option<Self> {
        let (first, prefix) = text.split_once('/')?;
        let (first, prefix): (Ipv6Addr, u8) = (first.parse().ok()?, prefix.parse().ok()?);
        let network = Self { first, prefix };
        let is_whole = (PREFIX_MIN..=PREFIX_MAX).contains(&prefix) && first.to_bits() & network.rest() == 0;
        (is_whole && is_routable(first)).then_some(network)
    }

    /// The address of who has `v4`.
    pub fn beside(self, v4: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.first.to_bits() | u128::from(v4.to_bits()))
    }

    fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & !self.rest() == self.first.to_bits()
    }

    /// The bits that differ within it.
    fn rest(self) -> u128 {
        u128::MAX >> self.prefix
    }
}

impl std::fmt::Display for Network6 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// Whence stable addresses are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// To services that name none.
    pub v4: Network,
    /// To services that name none, if there is a network of them.
    pub v6: Option<Network6>,
}

impl Pools {
    /// IPv4 addresses alone.
    pub const fn of(v4: Network) -> Self {
        Self { v4, v6: None }
    }

    /// The IPv6 address of a service that has the IPv4 address `v4`.
    pub fn address6(&self, spec: &ServiceSpec, v4: Ipv4Addr) -> Option<Ipv6Addr> {
        spec.address6.or_else(|| Some(self.v6?.beside(v4)))
    }
}

impl Config {
    /// Whence stable addresses are given out; `None` where `relay.pool` is a fault.
    pub fn pools(&self) -> Option<Pools> {
        Some(Pools { v4: Network::parse_v4(&self.relay.pool)?, v6: Network6::parse(&self.relay.pool6) })
    }

    /// What is wrong with IPv6 addresses.
    pub(super) fn pool6_faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        let pool6 = Network6::parse(&self.relay.pool6);
        if pool6.is_none() && !self.relay.pool6.is_empty() {
            let allowed = "an IPv6 network that is routed to this host, such as fd64:5245:56::/64, prefix 16 to 96, \
                           with only zeros behind it; or \"\" for none";
            faults.push(SpecFault::new("relay.pool6", &self.relay.pool6, allowed));
        }
        if pool6.is_some() && self.net.mode == NetMode::Relay {
            let allowed = "\"\" with net.mode = \"relay\", which listens on addresses that this host has: name one as the \
                           address6 of a service";
            faults.push(SpecFault::new("relay.pool6", &self.relay.pool6, allowed));
        }
        let mut addresses = BTreeSet::new();
        for service in &self.service {
            let Some(address) = service.address6 else { continue };
            let mut fault = |allowed: &str| {
                let key = format!("service \"{}\".address6", service.name);
                faults.push(SpecFault::new(&key, address, allowed));
            };
            if !addresses.insert(address) {
                fault("each address once");
            } else if pool6.is_some_and(|pool| pool.contains(address)) {
                fault("an address outside relay.pool6, whose addresses follow from the IPv4 ones; or none");
            }
        }
        faults
    }
}

/// Whether others than this link can send there.
fn is_routable(address: Ipv6Addr) -> bool {
    !(address.is_multicast() || address.is_unicast_link_local() || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_its_ipv4_address_within_its_ipv6_address() {
        let pool = Network6::parse("fd64:5245:56::/64").unwrap();
        assert_eq!(pool.beside(Ipv4Addr::new(10, 64, 0, 1)).to_string(), "fd64:5245:56::a40:1");
        for text in [
            "fd64::1/64",
            "fd64::/97",
            "fd64::/15",
            "fe80::/64",
            "ff00::/16",
            "::/64",
            "10.0.0.0/8",
            "fd64::",
        ] {
            assert_eq!(Network6::parse(text), None, "{text}");
        }
    }

    #[test]
    fn faults_of_addresses_say_what_is_allowed() {
        let text = r#"
            [net]
            mode = "tap"
            [relay]
            pool = "10.64.0.0/16"
            pool6 = "fd64::1/64"
            [[zone]]
            name = "vm.test"
            [[service]]
            name = "a.vm.test"
            image = "demo"
            ports = ["tcp/80"]
            address6 = "fd64::9"
            [[service]]
            name = "b.vm.test"
            image = "demo"
            ports = ["tcp/80"]
            address6 = "fd64::9"
        "#;
        let error = Config::parse(text).unwrap_err().to_string();
        assert!(error.contains("relay.pool6 = fd64::1/64\n      allowed: an IPv6 network"), "{error}");
        assert!(
            error.contains("service \"b.vm.test\".address6 = fd64::9\n      allowed: each address once"),
            "{error}"
        );
        let inside = text.replace("fd64::1/64", "fd64::/64");
        let error = Config::parse(&inside).unwrap_err().to_string();
        assert!(
            error.contains("service \"a.vm.test\".address6 = fd64::9\n      allowed: an address outside"),
            "{error}"
        );
        let error = Config::parse(&inside.replace("\"tap\"", "\"relay\"")).unwrap_err().to_string();
        assert!(error.contains("relay.pool6 = fd64::/64\n      allowed: \"\" with net.mode"), "{error}");
    }
}
