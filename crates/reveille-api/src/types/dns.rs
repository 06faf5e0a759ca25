//! What the query room has counted since the start, and what it has seen of late.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use reveille_core::model::DomainName;
use serde::{Deserialize, Serialize};

use crate::time::Time;

/// Numbers by what they count. The words are always the same ones, so that there are never many.
pub type Counts = BTreeMap<String, u64>;

/// The query room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsReport {
    /// When this was looked at.
    pub at: Time,
    /// Queries by transport: `udp`, `tcp`, `tls`, `https`.
    pub queries: Counts,
    /// Queries by the way in which they were answered: `fast`, `general`.
    pub ways: Counts,
    /// Answers by response code: `NOERROR`, `NXDOMAIN` …
    pub rcodes: Counts,
    /// Packets that were not answered.
    pub silent: u64,
    /// Answers with TC.
    pub truncated: u64,
    /// Packets whose TSIG signature was not taken.
    pub tsig_refused: u64,
    /// Errors of UDP sockets.
    pub socket_errors: u64,
    /// Connections by transport: `taken`, `refused`, `timed_out`, `handshakes_refused`, `handshakes_failed`,
    /// `requests_refused` (over HTTPS).
    pub connections: BTreeMap<String, Counts>,
    /// Questions that were `held`, and those that were answered at once instead (`refused`).
    pub holds: Counts,
    /// Wakes that were `asked` for; in a view that knew of one already (`coalesced`); that the control loop had no room
    /// for (`dropped`). Those that a budget refused are in `gate`.
    pub wakes: Counts,
    /// Verdicts of the gate: `rate`, `cookie`, `rule` and `wake`, each with its own.
    pub gate: BTreeMap<String, Counts>,
    /// Zone transfers: `whole`, `differences`, `broken`, `refused`.
    pub transfers: Counts,
    /// NOTIFY messages: `sent`, `acknowledged`, `refused`.
    pub notifies: Counts,
    /// Dynamic updates: `taken`, `dropped`.
    pub updates: Counts,
    /// Signatures: `made`, `reused`; answers for which none was made: `truncated`, `refused`, `failed`.
    pub signing: Counts,
    /// dnstap of own queries (`out`): `sent`, `dropped`, and `withheld` of what was sent; of other servers (`in`):
    /// questions `counted` and for names `outside` of the zones, messages of `other_types`, `unreadable` and `dropped`,
    /// connections `refused` and `broken`. What is not on is not there.
    #[serde(default)]
    pub dnstap: BTreeMap<String, Counts>,
    /// Where each secondary stands.
    pub secondaries: Vec<SecondaryReport>,
    /// How far each external primary is in step.
    pub publications: Vec<PublicationReport>,
    /// What was seen of late.
    pub observed: ObservedReport,
}

/// A secondary server of a zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondaryReport {
    /// The zone.
    pub zone: DomainName,
    /// Where it is told of new serials.
    pub address: SocketAddr,
    /// The newest serial that it is to be told of.
    pub serial: Option<u32>,
    /// It has acknowledged that serial.
    pub acknowledged: bool,
    /// Messages about it that were sent; 16 stands for 16 and more.
    pub tries: u32,
}

/// An external primary into whose zone services are published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationReport {
    /// The other server.
    pub server: SocketAddr,
    /// Its zone.
    pub zone: DomainName,
    /// Names that are to be there.
    pub names: u64,
    /// Names of which it is not certain that they are as they should.
    pub pending: u64,
    /// Those of them that the other server refuses.
    pub refused: u64,
    /// Some of those names.
    pub refused_names: Vec<DomainName>,
    /// When it last took an update or told its serial.
    pub last_success: Option<Time>,
    /// What is wrong, with the remedy; absent while nothing is.
    pub trouble: Option<String>,
    /// When it is tried again.
    pub next_try: Option<Time>,
}

/// What was seen of late: of as many queries as the slow loop could take in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedReport {
    /// Since then, half a minute to a minute ago.
    pub since: Time,
    /// Queries that were taken in.
    pub queries: u64,
    /// Queries since the start that were not, because there were too many at a time. They are counted all the same.
    pub dropped_total: u64,
    /// Different client addresses, about (HyperLogLog; within 5 % nearly always).
    pub unique_clients: u64,
    /// What was asked for most often.
    pub top_names: Vec<Top>,
    /// Client networks that asked most often: IPv4 /24, IPv6 /56.
    pub top_networks: Vec<Top>,
}

/// One of the most frequent ones (Space-Saving).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Top {
    /// A name or a network.
    pub name: String,
    /// It was seen so often at least.
    pub at_least: u64,
    /// And so often at most.
    pub at_most: u64,
    /// What these queries stand for, if it is a service of which that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrivals: Option<ArrivalsEstimate>,
}

/// How many clients wanted a service: its queries, with those put back that resolvers answered from their caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrivalsEstimate {
    /// Arrivals.
    pub estimate: u64,
    /// They are not fewer in 90 % of all cases,
    pub low_80: u64,
    /// and not more in 90 %: between both in 80 %.
    pub high_80: u64,
    /// The same with 95 %.
    pub low_95: u64,
    /// See [`low_95`](Self::low_95).
    pub high_95: u64,
    /// Thousandths of an arrival that a query stands for.
    pub per_query_milli: u64,
    /// Queries that this was seen in,
    pub window_queries: u64,
    /// of about so many resolvers,
    pub window_resolvers: u64,
    /// in so many seconds.
    pub window_s: u64,
    /// Percent of these queries behind which more may be hidden than can be told.
    pub uncorrected_percent: u64,
}

/// Questions for a service in the last minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueriesReport {
    /// All of them.
    pub last_minute: u64,
    /// By type: `A`, `AAAA` …, `other`.
    pub by_type: Counts,
    /// None was left out; otherwise there were more than could be taken in one by one.
    pub complete: bool,
    /// What they stand for, if enough was seen to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrivals: Option<ArrivalsEstimate>,
}
