//! `[depot]`: the object store that versions of sleeping guests are sent to.

use std::path::PathBuf;

use reveille_core::model::SpecFault;
use reveille_depot::config::DepotConfig;
use serde::{Deserialize, Serialize};

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
        if !TAKEOVER_S.contains(&self.takeover_s) {
            let allowed = format!("{} to {}", TAKEOVER_S.start(), TAKEOVER_S.end());
            faults.push(SpecFault::new("depot.takeover_s", self.takeover_s, allowed));
        }
        faults
    }
}
