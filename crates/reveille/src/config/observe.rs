//! `[observe]`: what is seen of demand beside the own queries, and what is told of these.

use reveille_core::model::SpecFault;
use reveille_dns::dnstap::{DnstapIn, DnstapOut};
use serde::{Deserialize, Serialize};

use super::prefixed;

/// `[observe]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Observe {
    /// dnstap of other servers.
    pub dnstap_in: DnstapIn,
    /// dnstap of the own queries.
    pub dnstap_out: DnstapOut,
}

impl Observe {
    /// Every value that is out of range or does not fit another.
    pub(super) fn faults(&self) -> impl Iterator<Item = SpecFault> {
        let from = prefixed("observe.dnstap_in", self.dnstap_in.faults());
        from.chain(prefixed("observe.dnstap_out", self.dnstap_out.faults()))
    }
}
