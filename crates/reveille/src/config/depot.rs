//! `[depot]`: the object store that versions of sleeping guests are sent to.

use std::path::PathBuf;
use std::time::Duration;

use reveille_core::model::SpecFault;
use reveille_depot::config::DepotConfig;
use reveille_depot::retention::Retention;
use serde::{Deserialize, Serialize};

/// Most of a service's last versions that are kept: each one is read when they are listed.
const KEEP_LAST_MAX: u64 = 1_000;
/// Longest time for which versions are kept: ten years.
const KEEP_FOR_S_MAX: u64 = 3_650 * 86_400;
/// Shortest time between two looks at everything in the object store.
const COLLECT_EVERY_S_MIN: u64 = 60;
/// The longest.
const COLLECT_EVERY_S_MAX: u64 = 7 * 86_400;

/// What is kept, and how often it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// What is kept beside what is in use.
    pub retention: Retention,
    /// Time between two looks at everything.
    pub collect_every: Duration,
}
/// What is possible: several words in that time, and no longer than a week.
const TAKEOVER_S: std::ops::RangeInclusive<u64> = 4..=604_800;

/// `[depot]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Depot {
    /// `file:///directory`, `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`; empty: none.
    pub url: String,
    /// Another server than the cloud's.
    pub endpoint: String,
    /// Region of the bucket, for S3.
    pub region: String,
    /// Whether the endpoint may be `http:`.
    pub allow_http: bool,
    /// Lines `NAME=VALUE`; empty: the environment.
    pub credentials_file: PathBuf,
    /// Key files: the first seals versions, all of them open.
    pub seal_keys: Vec<PathBuf>,
    /// How this host is known in the object store; empty: its host name.
    pub host: String,
    /// So many of a service's last versions are kept.
    pub keep_last: u32,
    /// And all that are younger, in seconds.
    pub keep_for_s: u64,
    /// Time between two looks at everything in the object store, in seconds.
    pub collect_every_s: u64,
    /// After so many seconds without a word from its host a service is taken over by one that has it in its config.
    pub takeover_s: u64,
}

impl Default for Depot {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: String::new(),
            region: String::new(),
            allow_http: false,
            credentials_file: PathBuf::new(),
            seal_keys: Vec::new(),
            host: String::new(),
            keep_last: 5,
            keep_for_s: 7 * 86_400,
            collect_every_s: 6 * 3_600,
            takeover_s: 60,
        }
    }
}

impl Depot {
    /// How the depot is opened; `None` without one.
    pub fn opened(&self) -> Option<DepotConfig> {
        if self.url.is_empty() {
            return None;
        }
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let mut config = DepotConfig::at(&self.url);
        config.endpoint = given(&self.endpoint);
        config.region = given(&self.region);
        config.allow_http = self.allow_http;
        config.credentials_file =
            Some(self.credentials_file.clone()).filter(|path| !path.as_os_str().is_empty());
        config.seal_keys.clone_from(&self.seal_keys);
        Some(config)
    }

    /// Which versions are kept, and how often that is looked at.
    pub fn keeping(&self) -> Keeping {
        let keep_for_ms = self.keep_for_s.saturating_mul(1_000);
        Keeping {
            retention: Retention { keep_last: self.keep_last, keep_for_ms },
            collect_every: Duration::from_secs(self.collect_every_s),
        }
    }

    /// How this host is known.
    pub fn host_name(&self) -> String {
        if !self.host.is_empty() {
            return self.host.clone();
        }
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    /// Every fault that can be told without opening it.
    pub fn faults(&self) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        let known = ["file://", "s3://", "az://", "gs://"];
        if !self.url.is_empty() && !known.iter().any(|scheme| self.url.starts_with(scheme)) {
            let allowed =
                "file:///directory, s3://bucket/prefix, az://container/prefix, gs://bucket/prefix, or \"\"";
            faults.push(SpecFault::new("depot.url", &self.url, allowed));
        }
        let ranged = [
            ("depot.keep_last", self.keep_last.into(), 1, KEEP_LAST_MAX),
            ("depot.keep_for_s", self.keep_for_s, 0, KEEP_FOR_S_MAX),
            ("depot.collect_every_s", self.collect_every_s, COLLECT_EVERY_S_MIN, COLLECT_EVERY_S_MAX),
        ];
        let out = ranged.into_iter().filter(|(_, value, least, most)| !(least..=most).contains(&value));
        faults.extend(
            out.map(|(key, value, least, most)| SpecFault::new(key, value, format!("{least} to {most}"))),
        );
        if !TAKEOVER_S.contains(&self.takeover_s) {
            let allowed = format!("{} to {}", TAKEOVER_S.start(), TAKEOVER_S.end());
            faults.push(SpecFault::new("depot.takeover_s", self.takeover_s, allowed));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_that_keeps_nothing_and_looks_without_a_pause_are_refused() {
        let depot = Depot { keep_last: 0, collect_every_s: 1, ..Depot::default() };
        let keys: Vec<String> = depot.faults().into_iter().map(|fault| fault.key).collect();
        assert_eq!(keys, ["depot.keep_last", "depot.collect_every_s"]);
        assert_eq!(Depot::default().faults(), []);
        assert_eq!(
            Depot::default().keeping().retention,
            Retention { keep_last: 5, keep_for_ms: 604_800_000 }
        );
    }
}
