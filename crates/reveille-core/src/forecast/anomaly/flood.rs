//! Whether many queries are a crowd or a flood. A crowd is demand, a flood is not.
//!
//! | what | how it is told from the others |
//! |---|---|
//! | random subdomains (water torture) | names that do not exist, each asked for about once |
//! | one source | a single client asks for most, and hardly anybody connects: a resolver that asks for many is none |
//! | spoofed sources | sources are used about once, and hardly any proves its address or connects |
//! | flash crowd | many clients, most of them for one name that exists, and they connect or come back |
//!
//! The rules are tried in that order. What fits none of them is counted as demand only as far as was expected, since a
//! machine that stays asleep is noticed, and one that is woken for nothing only costs: the live demand of first packets
//! still wakes it.

use serde::{Deserialize, Serialize};

use super::SettingsFault;

/// Counts of one interval, of one name or one zone. Distinct counts may be estimates of sketches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// All queries.
    pub queries: u64,
    /// What the baseline expected of them.
    pub expected: f64,
    /// The baseline's standard deviation.
    pub spread: f64,
    /// Queries for names that do not exist. Names that exist by a wildcard alone and were never asked for before belong
    /// here, too, unless a flood of them shall wake what is behind it.
    pub missing: u64,
    /// Distinct names among those.
    pub missing_names: u64,
    /// Queries for the existing name that was asked for most.
    pub top_name: u64,
    /// Distinct client addresses.
    pub clients: u64,
    /// Queries of the client that asked most.
    pub top_client: u64,
    /// Of those, the ones for names that exist.
    pub top_client_existing: u64,
    /// Queries whose source address is proven: over TCP, TLS or HTTPS, or with a valid cookie.
    pub proven: u64,
    /// Distinct clients that connected, or sent first packets, to the addresses that were answered. Behind one resolver
    /// there are many.
    pub connected: u64,
}

/// From where on something is a flood or a crowd.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Standard deviations above the expected from which on an interval is judged at all.
    pub threshold_sd: f64,
    /// Queries below which an interval is never a flood: a quiet name's few first queries stand far above what is
    /// expected of it, and are just what it is there for.
    pub flood_queries: u64,
    /// The share that makes a part of the queries their nature, in (0, 1].
    pub majority: f64,
    /// Clients that make a crowd.
    pub crowd_clients: u64,
    /// Queries per client below which sources are used about once.
    pub queries_per_source: f64,
    /// Share of proven or connected clients below which sources are not believed.
    pub believed: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            threshold_sd: 3.0,
            flood_queries: 100,
            majority: 0.5,
            crowd_clients: 20,
            queries_per_source: 1.5,
            believed: 0.02,
        }
    }
}

impl Limits {
    /// Every limit that is out of its range.
    pub fn faults(&self) -> Vec<SettingsFault> {
        let share = |value: f64| value > 0.0 && value <= 1.0;
        let checks = [
            ("threshold_sd", self.threshold_sd, (0.5..=100.0).contains(&self.threshold_sd), "0.5 to 100"),
            ("flood_queries", self.flood_queries as f64, self.flood_queries > 0, "1 or more"),
            ("majority", self.majority, share(self.majority), "above 0, to 1"),
            ("crowd_clients", self.crowd_clients as f64, self.crowd_clients > 0, "1 or more"),
            (
                "queries_per_source",
                self.queries_per_source,
                (1.0..=100.0).contains(&self.queries_per_source),
                "1 to 100",
            ),
            ("believed", self.believed, share(self.believed), "above 0, to 1"),
        ];
        SettingsFault::of(checks)
    }
}

/// What an interval was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nature {
    /// About as many queries as ever, or too few to matter.
    Usual,
    /// Many real clients want one existing name.
    FlashCrowd,
    /// Names that nobody has are asked for, to get past caches.
    RandomSubdomains,
    /// One client asks for most.
    SingleSource,
    /// Sources that are made up.
    Spoofed,
    /// More than expected, and none of the others.
    Unexplained,
}

impl Nature {
    /// Whether it is kept out of demand.
    pub fn is_flood(self) -> bool {
        matches!(self, Self::RandomSubdomains | Self::SingleSource | Self::Spoofed)
    }
}

/// What was judged, and by which numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// What it was.
    pub nature: Nature,
    /// Queries that count as demand.
    pub demand: u64,
    /// By which numbers.
    pub reason: Reason,
}

/// The numbers that decided.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reason {
    /// The queries are within the threshold.
    WithinThreshold {
        /// (Queries − expected) ÷ spread.
        deviation_sd: f64,
    },
    /// Too few for a flood.
    Few {
        /// All of them.
        queries: u64,
    },
    /// Most queries are for names that do not exist, hardly any twice.
    MissingNames {
        /// Share of the queries for such names.
        share: f64,
        /// Distinct ones.
        names: u64,
    },
    /// One client has sent most of them.
    TopClient {
        /// Its share.
        share: f64,
    },
    /// Sources are not believed.
    Unproven {
        /// Queries per source.
        queries_per_source: f64,
        /// Share of the clients that proved their address or connected.
        believed: f64,
    },
    /// Many clients ask for one name.
    Crowd {
        /// Distinct ones.
        clients: u64,
        /// The name's share of the queries.
        share: f64,
    },
    /// Too few clients for a crowd, or no one name that they want.
    NoPattern {
        /// Distinct ones.
        clients: u64,
        /// The top name's share of the queries.
        share: f64,
    },
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = |share: &f64| (100.0 * share).round();
        match self {
            Self::WithinThreshold { deviation_sd } => {
                write!(f, "{deviation_sd:.1} standard deviations from what was expected")
            }
            Self::Few { queries } => write!(f, "{queries} queries are too few for a flood"),
            Self::MissingNames { share, names } => {
                write!(f, "{} % of the queries are for {names} names that do not exist", percent(share))
            }
            Self::TopClient { share } => write!(f, "one client has sent {} % of the queries", percent(share)),
            Self::Unproven { queries_per_source, believed } => write!(
                f,
                "{queries_per_source:.2} queries per source, and {} % of the sources are proven or have connected",
                percent(believed)
            ),
            Self::Crowd { clients, share } => {
                write!(f, "{clients} clients, {} % of their queries for one name", percent(share))
            }
            Self::NoPattern { clients, share } => {
                write!(
                    f,
                    "{clients} clients, and the name asked for most has {} % of the queries",
                    percent(share)
                )
            }
        }
    }
}

/// Judges one interval. Counts that contradict each other (estimates may) are taken as far as they make sense.
pub fn judge(interval: &Interval, limits: &Limits) -> Judgement {
    let existing = interval.queries.saturating_sub(interval.missing);
    let above = interval.queries as f64 - interval.expected;
    let deviation_sd = above / interval.spread.max(1.0);
    if deviation_sd.is_nan() || deviation_sd < limits.threshold_sd {
        let reason = Reason::WithinThreshold { deviation_sd };
        return Judgement { nature: Nature::Usual, demand: existing, reason };
    }
    if interval.queries < limits.flood_queries {
        let reason = Reason::Few { queries: interval.queries };
        return Judgement { nature: Nature::Usual, demand: existing, reason };
    }
    if let Some(reason) = missing_names(interval, limits) {
        return Judgement { nature: Nature::RandomSubdomains, demand: existing, reason };
    }
    let share = of(interval.top_client, interval.queries);
    if share >= limits.majority && interval.connected < limits.crowd_clients {
        let demand = existing.saturating_sub(interval.top_client_existing);
        return Judgement { nature: Nature::SingleSource, demand, reason: Reason::TopClient { share } };
    }
    // Nobody can tell the real ones among them: as many as ever.
    let as_expected = existing.min(rounded(interval.expected));
    if let Some(reason) = unproven(interval, limits) {
        return Judgement { nature: Nature::Spoofed, demand: as_expected, reason };
    }
    let (clients, share) =
        (interval.clients.max(interval.connected), of(interval.top_name, interval.queries));
    if clients >= limits.crowd_clients && share >= limits.majority {
        let reason = Reason::Crowd { clients, share };
        return Judgement { nature: Nature::FlashCrowd, demand: existing, reason };
    }
    let reason = Reason::NoPattern { clients, share };
    Judgement { nature: Nature::Unexplained, demand: as_expected, reason }
}

fn missing_names(interval: &Interval, limits: &Limits) -> Option<Reason> {
    let share = of(interval.missing, interval.queries);
    let fresh = of(interval.missing_names, interval.missing);
    let names = interval.missing_names;
    (share >= limits.majority && fresh >= limits.majority).then_some(Reason::MissingNames { share, names })
}

fn unproven(interval: &Interval, limits: &Limits) -> Option<Reason> {
    let queries_per_source = interval.queries as f64 / (interval.clients as f64).max(1.0);
    let believed = of(interval.proven.saturating_add(interval.connected), interval.clients);
    (queries_per_source < limits.queries_per_source && believed < limits.believed)
        .then_some(Reason::Unproven { queries_per_source, believed })
}

/// A share in [0, 1].
fn of(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) }
}

/// The nearest count; none for what is negative or no number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, which is what is wanted"
)]
fn rounded(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
#[path = "flood_tests.rs"]
mod tests;
