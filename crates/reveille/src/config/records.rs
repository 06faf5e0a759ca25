//! `[records]`: raw records of queries and requests, as Parquet files in the object store.

use std::time::Duration;

use reveille_core::model::SpecFault;
use reveille_records::{Clients, Settings};
use serde::{Deserialize, Serialize};

use super::Depot;

/// What brings the form of the files, where a program was built without it.
const REMEDY: &str = "false in this program, which was built without Parquet: build it with `cargo build --release --features parquet`";

/// `[records]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Records {
    /// Whether questions are recorded, the own ones and those that dnstap tells of.
    pub queries: bool,
    /// Whether requests of logs are.
    pub requests: bool,
    /// What of clients is in a row of a question.
    pub clients: Clients,
    /// Whether files may lie unsealed in a store whose versions are sealed.
    pub plain: bool,
    /// Most rows of a file.
    pub rows_max: u64,
    /// Longest that a row waits before its file is written, in milliseconds.
    pub flush_ms: u64,
    /// For how many days files are kept.
    pub keep_days: u64,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            queries: false,
            requests: false,
            clients: Clients::Network,
            plain: false,
            rows_max: 100_000,
            flush_ms: 300_000,
            keep_days: 30,
        }
    }
}

impl Records {
    /// What is recorded, and how; `None` if nothing is.
    pub fn settings(&self) -> Option<Settings> {
        (self.queries || self.requests).then(|| Settings {
            queries: self.queries,
            requests: self.requests,
            rows_max: usize::try_from(self.rows_max).unwrap_or(usize::MAX),
            flush: Duration::from_millis(self.flush_ms),
            keep_days: self.keep_days,
        })
    }

    /// Every value that is out of its range, and what cannot be done beside this depot and by this program.
    pub(super) fn faults(&self, depot: &Depot, can_write: bool) -> Vec<SpecFault> {
        let ranged = [
            ("records.rows_max", self.rows_max, 1_000, 1_000_000),
            ("records.flush_ms", self.flush_ms, 1_000, 3_600_000),
            ("records.keep_days", self.keep_days, 1, 3_650),
        ];
        let out = ranged.into_iter().filter(|(_, value, least, most)| !(least..=most).contains(&value));
        let mut faults: Vec<SpecFault> = out
            .map(|(key, value, least, most)| SpecFault::new(key, value, format!("{least} to {most}")))
            .collect();
        let asked = [("records.queries", self.queries), ("records.requests", self.requests)];
        for (key, _) in asked.into_iter().filter(|(_, is_on)| *is_on) {
            if !can_write {
                faults.push(SpecFault::new(key, true, REMEDY));
            }
            if depot.url.is_empty() {
                faults.push(SpecFault::new(
                    key,
                    true,
                    "false, or true with a `depot.url`: files are put there",
                ));
            } else if !depot.seal_keys.is_empty() && !self.plain {
                let allowed = "false, or true with `records.plain = true`: the files are not sealed, as versions are \
                               by `depot.seal_keys`";
                faults.push(SpecFault::new(key, true, allowed));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(records: &Records, depot: &Depot, can_write: bool) -> Vec<String> {
        records
            .faults(depot, can_write)
            .iter()
            .map(|fault| format!("{}: {}", fault.key, fault.allowed))
            .collect()
    }

    #[test]
    fn nothing_is_recorded_by_default_and_what_is_asked_for_must_be_possible() {
        let depot = Depot { url: "file:///depot".into(), ..Depot::default() };
        let off = Records::default();
        assert_eq!((off.settings(), said(&off, &Depot::default(), false)), (None, vec![]));
        let on = Records { queries: true, ..Records::default() };
        assert_eq!(said(&on, &depot, true), [] as [&str; 0]);
        assert!(on.settings().is_some_and(|settings| settings.queries && !settings.requests));

        let without = said(&on, &depot, false);
        assert!(without[0].starts_with("records.queries: false in this program") && without.len() == 1);
        assert!(without[0].contains("cargo build --release --features parquet"), "{without:?}");
        assert!(said(&on, &Depot::default(), true)[0].contains("with a `depot.url`"));
        let sealed = Depot { seal_keys: vec!["key".into()], ..depot };
        assert!(said(&on, &sealed, true)[0].contains("`records.plain = true`"));
        assert!(said(&Records { plain: true, ..on }, &sealed, true).is_empty());

        let odd = Records { rows_max: 999, flush_ms: 1, keep_days: 0, ..Records::default() };
        let faults = said(&odd, &Depot::default(), true);
        assert_eq!(faults.len(), 3);
        assert_eq!(faults[0], "records.rows_max: 1000 to 1000000");
    }
}
