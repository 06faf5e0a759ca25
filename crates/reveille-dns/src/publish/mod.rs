//! Dynamic updates (RFC 2136) from inside out: the addresses of services in a zone that another server is the
//! authority for, so that an existing DNS can stay what it is.
//!
//! ```text
//!   views ─► Feed ─► Publication: wanted against known ─► note it ─► send an update ─► note that it was taken
//!            (names)    (pure)                           (store)    (UDP or TCP, TSIG)     (store)
//! ```
//!
//! One update replaces the addresses of some names as a whole, so repeating it is harmless, and whatever is in
//! doubt is repeated: what was sent and not answered, everything after the other server went back to an older
//! state (its serial tells), and everything once in a while.
//!
//! Only names that were published here are ever removed there. That they were is durable *before* the first update
//! that names them is sent, so a `kill -9` at any moment leaves no record behind that nobody remembers.

mod ask;
mod plan;
mod run;
mod wire;

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use reveille_core::answer::ServiceView;
use reveille_core::model::{DomainName, Timestamp};

use crate::update::NamePattern;

pub use plan::{Batch, Note, Outcome, Publication, Row, Step};
pub use run::{Feed, Ledger, LedgerWrite, PublishTask};

/// Where services are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishConfig {
    /// The primary server of the zone.
    pub server: SocketAddr,
    /// The zone; services whose names are not in it are left out.
    pub zone: DomainName,
    /// Name of the TSIG key that updates are signed with.
    pub key: DomainName,
    /// TTL of what is published, in seconds; without one that which secondaries get too.
    pub ttl_s: Option<u32>,
    /// Which services; empty: all of the zone.
    pub services: Vec<NamePattern>,
    /// Time after which everything is sent once more.
    pub resend: Duration,
}

/// What a published name has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Seconds.
    pub ttl_s: u32,
}

/// How far the other server is in step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublishStatus {
    /// Names that are to be there.
    pub names: usize,
    /// Names of which it is not certain that they are there as they should, or gone as they should.
    pub pending: usize,
    /// Those of them that the other server refuses.
    pub refused: usize,
    /// Some of those names.
    pub refused_names: Vec<DomainName>,
    /// When it last took an update or told its serial.
    pub last_success: Option<Timestamp>,
    /// What is wrong; `None` while nothing is.
    pub trouble: Option<Trouble>,
}

/// What keeps the other server out of step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Since when.
    pub since: Timestamp,
    /// One sentence with the remedy; the same for as long as the trouble is the same.
    pub text: String,
    /// When it is tried again.
    pub next_try: Timestamp,
}

impl PublishConfig {
    /// Whether a service of that name is published there.
    pub fn covers(&self, service: &DomainName) -> bool {
        let chosen = self.services.is_empty() || self.services.iter().any(|names| names.contain(service));
        chosen && service.is_at_or_below(&self.zone)
    }

    /// What is published of a service.
    pub fn addresses(&self, service: &ServiceView) -> Addresses {
        Addresses {
            v4: Some(service.address),
            v6: service.address6,
            ttl_s: self.ttl_s.unwrap_or(service.ttl_published_s),
        }
    }
}
