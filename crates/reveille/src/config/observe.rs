//! `[observe]`: what is seen of demand beside the own queries, and what is told of these.

use reveille_core::forecast::anomaly::Settings;
use reveille_core::model::SpecFault;
use reveille_dns::dnstap::{DnstapIn, DnstapOut};
use serde::{Deserialize, Serialize};

use super::prefixed;

/// `[observe]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Observe {
    /// From how many standard deviations beside what is usual the questions of a minute are an anomaly.
    pub anomaly_threshold_sd: f64,
    /// dnstap of other servers.
    pub dnstap_in: DnstapIn,
    /// dnstap of the own queries.
    pub dnstap_out: DnstapOut,
}

impl Default for Observe {
    fn default() -> Self {
        let anomaly_threshold_sd = Settings::default().threshold_sd;
        Self { anomaly_threshold_sd, dnstap_in: DnstapIn::default(), dnstap_out: DnstapOut::default() }
    }
}

impl Observe {
    /// Every value that is out of range or does not fit another.
    pub(super) fn faults(&self) -> impl Iterator<Item = SpecFault> {
        let settings = Settings { threshold_sd: self.anomaly_threshold_sd, ..Settings::default() };
        let faults = settings.faults().into_iter();
        let threshold = faults.map(|fault| {
            SpecFault::new("observe.anomaly_threshold_sd", fault.value, fault.allowed.to_owned())
        });
        let from = threshold.chain(prefixed("observe.dnstap_in", self.dnstap_in.faults()));
        from.chain(prefixed("observe.dnstap_out", self.dnstap_out.faults()))
    }
}
