//! Whose answers and wakes are counted together: client networks, and how they become keys of buckets.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

/// How many bits of an address name a network that one client, or one attacker, has to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkBits {
    mask4: u32,
    /// Of the upper half of an address: nobody is given less than a /64.
    mask6: u64,
}

impl NetworkBits {
    /// Networks of `ipv4` (up to 32) and `ipv6` (up to 64) bits; more count as that.
    pub fn new(ipv4: u8, ipv6: u8) -> Self {
        Self {
            mask4: u32::MAX.checked_shl(32u32.saturating_sub(ipv4.into())).unwrap_or(0),
            mask6: u64::MAX.checked_shl(64u32.saturating_sub(ipv6.into())).unwrap_or(0),
        }
    }

    /// The network of an address as a number. IPv4 networks stand in multicast IPv6 (`ff00:0:…`), from where no
    /// question comes. IPv4 in IPv6 (`::ffff:192.0.2.7`) is IPv4.
    #[inline]
    pub fn network(&self, address: IpAddr) -> u64 {
        match address.to_canonical() {
            IpAddr::V4(address) => 0xff00 << 48 | u64::from(address.to_bits() & self.mask4),
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                u64::from_be_bytes([a, b, c, d, e, f, g, h]) & self.mask6
            }
        }
    }
}

/// Turns networks into hashes that nobody outside can foresee, so that nobody can choose with whom to share a set
/// of buckets.
#[derive(Clone)]
pub struct NetworkHash(SipHasher13);

impl NetworkHash {
    /// With that secret.
    pub fn new(secret: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(secret))
    }

    /// The hash of a network.
    #[inline]
    pub fn of(&self, network: u64) -> u64 {
        self.0.hash(&network.to_le_bytes())
    }
}

impl std::fmt::Debug for NetworkHash {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NetworkHash")
    }
}

/// Whether an address is known to be its sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A datagram that anybody may have sent in this name.
    Unproven,
    /// A server cookie came back, or a connection stands.
    Proven,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_client() {
        let bits = NetworkBits::new(24, 56);
        let network = |text: &str| bits.network(text.parse().unwrap());
        assert_eq!(network("192.0.2.1"), network("192.0.2.254"));
        assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.9"));
        assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
        assert_eq!(network("2001:db8:0:1ff::1"), network("2001:db8:0:100:ffff::"));
        assert_ne!(network("2001:db8:0:1ff::1"), network("2001:db8:0:200::1"));
        // No IPv6 address is taken for an IPv4 network, not even one made of the same bits.
        assert_ne!(network("192.0.2.1"), network("::c000:200"));
        assert_ne!(network("192.0.2.1"), network("0:0:c000:200::"));
        let whole = NetworkBits::new(32, 64);
        assert_ne!(whole.network("192.0.2.1".parse().unwrap()), whole.network("192.0.2.2".parse().unwrap()));
        let none = NetworkBits::new(0, 0);
        assert_eq!(none.network("192.0.2.1".parse().unwrap()), none.network("10.0.0.1".parse().unwrap()));
    }
}
