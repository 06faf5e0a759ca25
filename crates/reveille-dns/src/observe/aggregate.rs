//! What comes of single queries: counts, and sketches of a fixed size. Pure; addresses are not kept.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use reveille_core::model::Timestamp;

use super::Observed;
use super::crowd::{Crowd, Crowds};
use super::distinct::Distinct;
use super::heavy::{Heavy, HeavyHitters};
use super::volume::{Correction, Volume};

/// For so many seconds it is known how often a service was asked for in each. No longer than a counter rests before
/// another service is given it, so that nobody is counted as another.
pub const SECONDS_KEPT: u32 = 60;
/// Most services and types of question whose seconds are kept; those that were asked for least recently go first.
/// Some 600 bytes each if they were asked for in every second, which makes 10 MiB at worst.
pub const SERIES_MAX: usize = 16_384;
/// Top names and networks, and unique clients, are those of the current epoch and the one before. Seconds.
pub const EPOCH_S: u32 = 30;
/// Names, and networks, of which each epoch keeps counts.
pub const HEAVY_PLACES: usize = 512;
/// Names, and networks, that are told.
pub const TOP_MAX: usize = 10;
/// Bits of an IPv4 and of an IPv6 address that name a client network here.
const NETWORK_BITS: (u8, u8) = (24, 56);

/// Types that are counted by themselves: those that clients ask for, and ANY. Others are too many and are counted
/// together, as type 0: whoever asks chooses the type.
const TYPES: [(u16, &str); 16] = [
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (12, "PTR"),
    (15, "MX"),
    (16, "TXT"),
    (28, "AAAA"),
    (33, "SRV"),
    (35, "NAPTR"),
    (43, "DS"),
    (48, "DNSKEY"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (255, "ANY"),
    (257, "CAA"),
];

/// A name as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeenName {
    /// Of the service that has this counter.
    Counter(u32),
    /// In wire format, lower case.
    Wire(Arc<[u8]>),
}

/// What is known of all queries of late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observations {
    /// Queries since then; up to two epochs.
    pub since: Timestamp,
    /// Queries that were taken in.
    pub queries: u64,
    /// Different addresses that they came from, about.
    pub unique_clients: u64,
    /// Names that were asked for most often.
    pub top_names: Vec<Heavy<SeenName>>,
    /// Networks that asked most often: the first address, and bits.
    pub top_networks: Vec<Heavy<(IpAddr, u8)>>,
    /// Queries that were not taken in since the start, because there were too many.
    pub dropped: u64,
}

/// What is known of the questions for one service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceQueries {
    /// In the last [`SECONDS_KEPT`] seconds.
    pub queries: u64,
    /// The same by type.
    pub by_type: BTreeMap<&'static str, u64>,
    /// No query was left out in that time.
    pub is_complete: bool,
}

/// Counts and sketches. Bounded, whatever is asked for by whomever.
#[derive(Debug)]
pub struct Aggregate {
    /// Secret, so that nobody can choose addresses that are counted as one.
    hash: RandomState,
    /// Queries per second by counter and type.
    series: BTreeMap<(u32, u16), Series>,
    /// The same by their newest second.
    by_age: BTreeSet<(u32, (u32, u16))>,
    /// A second from which something had to be left out.
    incomplete_s: Option<u32>,
    current: Epoch,
    before: Epoch,
    dropped: u64,
    volume: Volume,
    crowds: Crowds,
}

#[derive(Debug, Default)]
struct Series {
    newest_s: u32,
    /// Seconds in which there were queries, and how many.
    seconds: VecDeque<(u32, u32)>,
}

#[derive(Debug)]
struct Epoch {
    began: Timestamp,
    queries: u64,
    names: HeavyHitters<SeenName>,
    networks: HeavyHitters<(IpAddr, u8)>,
    clients: Distinct,
}

impl Epoch {
    fn new(began: Timestamp) -> Self {
        Self {
            began,
            queries: 0,
            names: HeavyHitters::new(HEAVY_PLACES),
            networks: HeavyHitters::new(HEAVY_PLACES),
            clients: Distinct::default(),
        }
    }
}

impl Aggregate {
    /// Nothing was seen yet. `hash` is a secret of this process.
    pub fn new(hash: RandomState, now: Timestamp) -> Self {
        Self {
            hash,
            series: BTreeMap::new(),
            by_age: BTreeSet::new(),
            incomplete_s: None,
            current: Epoch::new(now),
            before: Epoch::new(now),
            dropped: 0,
            volume: Volume::default(),
            crowds: Crowds::default(),
        }
    }

    /// Takes a query in.
    pub fn take(&mut self, seen: Observed) {
        let Observed { at, counter, mut name, qtype, client, ttl_s, proven, .. } = seen;
        let epoch = &mut self.current;
        let hashed = self.hash.hash_one(client);
        epoch.queries += 1;
        epoch.clients.add(hashed);
        epoch.networks.add(network_of(client));
        if counter == 0 {
            name.make_ascii_lowercase();
            epoch.names.add(SeenName::Wire(name.into()));
        } else {
            epoch.names.add(SeenName::Counter(counter));
            self.count(counter, known_type(qtype), second(at));
            self.crowds.asked(counter, hashed, proven);
            if let Some(ttl_s) = ttl_s {
                self.volume.asked(counter, qtype, hashed, at, ttl_s);
            }
        }
    }

    /// Notes how many queries have been dropped on the way since the start, and begins a new epoch if it is time.
    pub fn look(&mut self, dropped: u64, now: Timestamp) {
        if dropped > self.dropped {
            (self.dropped, self.incomplete_s) = (dropped, Some(second(now)));
            self.volume.lost(now);
        }
        self.volume.look(now);
        let age_s = second(now).saturating_sub(second(self.current.began));
        if age_s >= EPOCH_S {
            // After a pause of more than an epoch nothing of before is of late.
            let began = if age_s < 2 * EPOCH_S {
                self.current.began.plus_ms(u64::from(EPOCH_S) * 1_000)
            } else {
                now
            };
            self.before = std::mem::replace(&mut self.current, Epoch::new(began));
            if age_s >= 2 * EPOCH_S {
                self.before = Epoch::new(now);
            }
        }
        while let Some(&(newest_s, key)) = self.by_age.first()
            && newest_s.saturating_add(SECONDS_KEPT) <= second(now)
        {
            self.by_age.pop_first();
            self.series.remove(&key);
        }
    }

    /// What there is to tell at `now`.
    pub fn observations(&self) -> Observations {
        let (before, current) = (&self.before, &self.current);
        Observations {
            since: before.began,
            queries: before.queries + current.queries,
            unique_clients: before.clients.of_both(&current.clients),
            top_names: before.names.top_of_both(&current.names, TOP_MAX),
            top_networks: before.networks.top_of_both(&current.networks, TOP_MAX),
            dropped: self.dropped,
        }
    }

    /// What is known of the service with that counter at `now`.
    pub fn service(&self, counter: u32, now: Timestamp) -> ServiceQueries {
        let recent = |&second_at: &u32| second_at.saturating_add(SECONDS_KEPT) > second(now);
        let mut found = ServiceQueries {
            is_complete: !self.incomplete_s.as_ref().is_some_and(recent),
            ..ServiceQueries::default()
        };
        for (&(_, qtype), series) in self.series.range((counter, 0)..=(counter, u16::MAX)) {
            let seconds = series.seconds.iter().filter(|(second, _)| recent(second));
            let queries: u64 = seconds.map(|&(_, count)| u64::from(count)).sum();
            if queries > 0 {
                *found.by_type.entry(type_word(qtype)).or_default() += queries;
                found.queries += queries;
            }
        }
        found
    }

    /// What queries for the service with that counter stand for, as far as it is known at `now`.
    pub fn correction(&self, counter: u32, now: Timestamp) -> Option<Correction> {
        self.volume.correction(counter, now)
    }

    /// The same of all services, by their counters.
    pub fn corrections(&self, now: Timestamp) -> BTreeMap<u32, Correction> {
        self.volume.corrections(now)
    }

    /// Who asks in this minute for the services with these counters, as far as they are asked for much.
    pub fn crowds(&self, counters: impl Iterator<Item = u32>) -> BTreeMap<u32, Crowd> {
        counters.filter_map(|counter| Some((counter, self.crowds.of(counter)?))).collect()
    }

    /// A minute begins.
    pub fn begin_minute(&mut self) {
        self.crowds.begin_minute();
    }

    /// The counter is another service's from now on.
    pub fn forget(&mut self, counter: u32) {
        self.volume.forget(counter);
    }

    fn count(&mut self, counter: u32, qtype: u16, at_s: u32) {
        let key = (counter, qtype);
        if let Some(series) = self.series.get_mut(&key) {
            if at_s > series.newest_s {
                self.by_age.remove(&(series.newest_s, key));
                self.by_age.insert((at_s, key));
            }
            series.count(at_s);
            return;
        }
        if self.series.len() >= SERIES_MAX
            && let Some((newest_s, oldest)) = self.by_age.pop_first()
        {
            self.series.remove(&oldest);
            // What was forgotten may be looked for as long as its newest second is.
            self.incomplete_s = self.incomplete_s.max(Some(newest_s));
        }
        let mut series = Series { newest_s: at_s, seconds: VecDeque::new() };
        series.count(at_s);
        self.series.insert(key, series);
        self.by_age.insert((at_s, key));
    }
}

impl Series {
    fn count(&mut self, at_s: u32) {
        self.newest_s = self.newest_s.max(at_s);
        // The rings of several threads are read one after another, so that seconds do not only rise.
        match self.seconds.iter_mut().rev().find(|(second, _)| *second <= at_s) {
            Some((second, count)) if *second == at_s => *count = count.saturating_add(1),
            Some(_) | None => {
                let place = self.seconds.partition_point(|(second, _)| *second < at_s);
                self.seconds.insert(place, (at_s, 1));
            }
        }
        while self
            .seconds
            .front()
            .is_some_and(|(oldest, _)| oldest.saturating_add(SECONDS_KEPT) <= self.newest_s)
        {
            self.seconds.pop_front();
        }
    }
}

fn second(at: Timestamp) -> u32 {
    u32::try_from(at.as_ms() / 1_000).unwrap_or(u32::MAX)
}

fn network_of(client: IpAddr) -> (IpAddr, u8) {
    match client.to_canonical() {
        IpAddr::V4(address) => {
            let bits = NETWORK_BITS.0;
            let mask = u32::MAX << (32 - u32::from(bits));
            (IpAddr::V4((address.to_bits() & mask).into()), bits)
        }
        IpAddr::V6(address) => {
            let bits = NETWORK_BITS.1;
            let mask = u128::MAX << (128 - u32::from(bits));
            (IpAddr::V6((address.to_bits() & mask).into()), bits)
        }
    }
}

/// The type if it is counted by itself, otherwise 0.
fn known_type(qtype: u16) -> u16 {
    if TYPES.iter().any(|(number, _)| *number == qtype) { qtype } else { 0 }
}

fn type_word(qtype: u16) -> &'static str {
    TYPES.iter().find(|(number, _)| *number == qtype).map_or("other", |(_, word)| word)
}

#[cfg(test)]
mod tests;
