//! Who may update what.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use reveille_core::answer::Network;
use reveille_core::model::{DomainName, NameError};

/// What one key may change in one zone. Without any grant nobody may change anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Name of the TSIG key that must have signed.
    pub key: DomainName,
    /// Where the update must come from; empty: from anywhere.
    pub networks: Vec<Network>,
    /// Which names; empty: all of the zone.
    pub names: Vec<NamePattern>,
    /// Which types; empty: all that can be updated.
    pub types: Vec<u16>,
}

/// Some names of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamePattern {
    /// `www.vm.test`: this name.
    Name(DomainName),
    /// `*.dyn.vm.test`: every name below `dyn.vm.test`, at any depth.
    Below(DomainName),
}

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write a name such as www.vm.test, or *.dyn.vm.test for every name below dyn.vm.test")]
pub struct NamePatternError(#[from] NameError);

impl Grant {
    /// Whether it is for updates that were signed with this key and come from there.
    pub fn is_for(&self, key: &DomainName, client: IpAddr) -> bool {
        self.key == *key
            && (self.networks.is_empty() || self.networks.iter().any(|network| network.contains(client)))
    }

    /// Whether it covers that RRset.
    pub fn covers(&self, owner: &DomainName, rtype: u16) -> bool {
        self.covers_name(owner) && (self.types.is_empty() || self.types.contains(&rtype))
    }

    /// Whether it covers that name.
    pub fn covers_name(&self, owner: &DomainName) -> bool {
        self.names.is_empty() || self.names.iter().any(|names| names.contain(owner))
    }
}

impl NamePattern {
    /// Whether the name is meant.
    pub fn contain(&self, name: &DomainName) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Below(top) => name != top && name.is_at_or_below(top),
        }
    }

    /// The name that all names meant are at or below.
    pub fn top(&self) -> &DomainName {
        match self {
            Self::Name(top) | Self::Below(top) => top,
        }
    }
}

impl FromStr for NamePattern {
    type Err = NamePatternError;

    fn from_str(text: &str) -> Result<Self, NamePatternError> {
        Ok(match text.strip_prefix("*.") {
            Some(top) => Self::Below(top.parse()?),
            None => Self::Name(text.parse()?),
        })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Below(top) => write!(f, "*.{top}"),
        }
    }
}
