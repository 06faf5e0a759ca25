//! Simulated resolvers: each has its share of a name's demand, and asks when a client comes and nothing is cached.

use std::fmt;

use serde::Serialize;

/// How a name's demand is spread over its resolvers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Shares {
    /// Each has the same.
    Equal,
    /// The *r*-th has 1 ÷ *r* of the first one's.
    Zipf,
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Equal => "equal",
            Self::Zipf => "Zipf",
        })
    }
}

/// What resolvers make of a TTL, and clients of a name.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Habit {
    /// Answers are kept for exactly the TTL; clients are independent.
    Exact,
    /// Answers expire with the begin of a second of the clock, up to a second early.
    BeginOfSecond,
    /// Answers expire with the end of a second of the clock, up to a second late.
    EndOfSecond,
    /// Answers are kept for so long at most, in ms.
    Capped(f64),
    /// Answers are kept for so long at least, in ms.
    Minimal(f64),
    /// A client in the last tenth of a TTL has the answer fetched anew.
    Prefetch,
    /// So many caches behind each address.
    Caches(u32),
    /// Clients come so many at once.
    Bursts(f64),
}

impl fmt::Display for Habit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => write!(f, "as told"),
            Self::BeginOfSecond => write!(f, "expiry at the begin of a second"),
            Self::EndOfSecond => write!(f, "expiry at the end of a second"),
            Self::Capped(0.0) => write!(f, "no cache"),
            Self::Capped(most) => write!(f, "kept for {} s at most", most / 1_000.0),
            Self::Minimal(least) => write!(f, "kept for {} s at least", least / 1_000.0),
            Self::Prefetch => write!(f, "fetched anew in the last tenth"),
            Self::Caches(caches) => write!(f, "{caches} caches behind each address"),
            Self::Bursts(clients) => write!(f, "clients come by {clients}"),
        }
    }
}

/// A name, and who asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Name {
    /// TTL of its answers, in ms.
    pub ttl_ms: u32,
    /// The same from the middle of the window on.
    pub ttl_after_ms: u32,
    /// How many resolvers it is asked for through.
    pub resolvers: u32,
    /// How demand is spread over them.
    pub shares: Shares,
    /// Arrivals in a TTL (the longer one), through all resolvers together.
    pub demand_per_ttl: f64,
    /// What they make of it.
    pub habit: Habit,
}

/// A query as the server sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Query {
    /// Who.
    pub resolver: u32,
    /// When, in ms.
    pub at_ms: f64,
    /// What it was told.
    pub ttl_ms: u32,
}

impl Name {
    /// One with resolvers that do as they are told.
    #[must_use]
    pub fn honest(ttl_ms: u32, resolvers: u32, shares: Shares, demand_per_ttl: f64) -> Self {
        Self { ttl_ms, ttl_after_ms: ttl_ms, resolvers, shares, demand_per_ttl, habit: Habit::Exact }
    }

    /// The largest resolver's share of the demand.
    #[must_use]
    pub fn largest_share(&self) -> f64 {
        let rates = self.rates();
        rates.first().copied().unwrap_or(0.0) / rates.iter().sum::<f64>()
    }

    /// Demand of each cache, in arrivals per ms.
    #[must_use]
    pub fn rates(&self) -> Vec<f64> {
        let caches = self.caches();
        let share = |rank: u32| match self.shares {
            Shares::Equal => 1.0,
            Shares::Zipf => 1.0 / f64::from(rank + 1),
        };
        let shares: Vec<f64> = (0..self.resolvers * caches).map(|cache| share(cache / caches)).collect();
        let demand = self.demand_per_ttl / f64::from(self.ttl_ms.max(self.ttl_after_ms));
        let sum: f64 = shares.iter().sum();
        shares.into_iter().map(|share| demand * share / sum).collect()
    }

    /// Queries to be expected of a cache with that rate, per ms, if TTLs are kept to.
    #[must_use]
    pub fn queries_per_ms(&self, rate: f64) -> f64 {
        let with = |ttl_ms: u32| rate / (1.0 + rate * f64::from(ttl_ms));
        0.5 * (with(self.ttl_ms) + with(self.ttl_after_ms))
    }

    /// All queries of a lead and a window, in the order of time, from a state of equilibrium.
    #[must_use]
    pub fn queries(&self, rates: &[f64], lead_ms: f64, window_ms: f64, dice: &mut Dice) -> Vec<Query> {
        let caches = self.caches();
        let together = if let Habit::Bursts(clients) = self.habit { clients } else { 1.0 };
        let (end_ms, change_ms) = (lead_ms + window_ms, lead_ms + 0.5 * window_ms);
        let mut queries = Vec::new();
        for (cache, rate) in (0_u32..).zip(rates) {
            let rate = rate / together;
            let resolver = (scramble(u64::from(cache / caches)) >> 32) as u32;
            // The share of time in which it is cached, and how much of that is over.
            let lifetime = self.kept_ms(0.0, self.ttl_ms);
            let is_cached = dice.uniform() < rate * lifetime / (1.0 + rate * lifetime);
            let mut at_ms = if is_cached { lifetime * dice.uniform() } else { 0.0 };
            loop {
                at_ms += dice.exponential() / rate;
                if at_ms >= end_ms {
                    break;
                }
                let ttl_ms = if at_ms < change_ms { self.ttl_ms } else { self.ttl_after_ms };
                queries.push(Query { resolver, at_ms, ttl_ms });
                at_ms += self.kept_ms(at_ms, ttl_ms);
            }
        }
        queries.sort_by(|one, other| one.at_ms.total_cmp(&other.at_ms));
        queries
    }

    /// Caches behind an address.
    fn caches(&self) -> u32 {
        if let Habit::Caches(caches) = self.habit { caches } else { 1 }
    }

    /// For how long an answer is kept.
    fn kept_ms(&self, at_ms: f64, ttl_ms: u32) -> f64 {
        let ttl_ms = f64::from(ttl_ms);
        match self.habit {
            Habit::Exact | Habit::Caches(_) | Habit::Bursts(_) => ttl_ms,
            Habit::BeginOfSecond => ttl_ms - at_ms.rem_euclid(1_000.0),
            Habit::EndOfSecond => ttl_ms + 1_000.0 - at_ms.rem_euclid(1_000.0),
            Habit::Capped(most) => ttl_ms.min(most),
            Habit::Minimal(least) => ttl_ms.max(least),
            Habit::Prefetch => 0.9 * ttl_ms,
        }
    }
}

/// Whole milliseconds.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "times of a simulation")]
pub fn whole(ms: f64) -> u64 {
    ms as u64
}

/// Numbers that look random and are the same each time (splitmix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// A sequence of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(scramble(seed))
    }

    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((scramble(self.0) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }
}

fn scramble(bits: u64) -> u64 {
    let bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
