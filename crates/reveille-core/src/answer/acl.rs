//! Who may ask for what is not for everybody: by address, by TSIG key, or by both together.

use std::net::IpAddr;
use std::sync::Arc;

use super::network::Network;
use crate::model::DomainName;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker<'k> {
    /// The address that the question came from.
    pub address: IpAddr,
    /// The TSIG key that it was proved to be signed with.
    pub key: Option<&'k DomainName>,
}

/// One way to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclEntry {
    /// From one of these networks; from anywhere if there is none, but a key then has to be.
    pub networks: Vec<Network>,
    /// And, if given, signed with this key.
    pub key: Option<DomainName>,
}

impl AclEntry {
    fn allows(&self, asker: Asker<'_>) -> bool {
        let at_home = self.networks.iter().any(|network| network.contains(asker.address));
        match &self.key {
            Some(key) => asker.key == Some(key) && (at_home || self.networks.is_empty()),
            None => at_home,
        }
    }
}

/// A list of ways to be allowed; an empty one allows nobody. Cloning shares it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Acl(Arc<[AclEntry]>);

impl Acl {
    /// Whoever fits one of the entries.
    pub fn new(entries: impl Into<Arc<[AclEntry]>>) -> Self {
        Self(entries.into())
    }

    /// Whether nobody is allowed, whoever asks.
    pub fn is_nobody(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether that asker fits one of the entries.
    pub fn allows(&self, asker: Asker<'_>) -> bool {
        self.0.iter().any(|entry| entry.allows(asker))
    }
}

impl From<Vec<Network>> for Acl {
    /// Whoever is in one of the networks.
    fn from(networks: Vec<Network>) -> Self {
        Self::new([AclEntry { networks, key: None }])
    }
}

impl<const N: usize> From<[Network; N]> for Acl {
    /// Whoever is in one of the networks.
    fn from(networks: [Network; N]) -> Self {
        networks.to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_wants_everything_that_it_names() {
        let key: DomainName = "xfr.test".parse().unwrap();
        let other: DomainName = "other.test".parse().unwrap();
        let entry = |networks: &[&str], key: Option<&DomainName>| {
            let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
            Acl::new([AclEntry { networks, key: key.cloned() }])
        };
        let home = ["192.0.2.0/24"];
        for (acl, address, signed, allowed) in [
            (Acl::default(), "127.0.0.1", Some(&key), false),
            (entry(&[], None), "127.0.0.1", Some(&key), false),
            (entry(&home, None), "192.0.2.7", None, true),
            (entry(&home, None), "192.0.2.7", Some(&other), true),
            (entry(&home, None), "198.51.100.7", Some(&key), false),
            (entry(&[], Some(&key)), "198.51.100.7", Some(&key), true),
            (entry(&[], Some(&key)), "198.51.100.7", Some(&other), false),
            (entry(&[], Some(&key)), "198.51.100.7", None, false),
            (entry(&home, Some(&key)), "192.0.2.7", Some(&key), true),
            (entry(&home, Some(&key)), "192.0.2.7", None, false),
            (entry(&home, Some(&key)), "198.51.100.7", Some(&key), false),
        ] {
            let asker = Asker { address: address.parse().unwrap(), key: signed };
            assert_eq!(acl.allows(asker), allowed, "{acl:?} {asker:?}");
        }
    }
}
