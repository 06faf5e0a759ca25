//! One resolver: what it asked for, and for how long it could have.

use super::estimate::{Part, Way};

/// Share of a resolver's gaps that end before their TTL from which on it has its own way, and how many at least.
/// Fewer are questions that were sent twice.
const EARLY_SHARE: f64 = 0.1;
const EARLY_MIN: u16 = 3;
/// A resolver that keeps the told TTL never asks earlier with a probability of e^−6.5 (see [`Resolver::is_late`]).
const LATE_LOG_ODDS: f64 = 6.5;
/// Gaps from which a lifetime can be told.
const GAPS_MIN: u32 = 5;
/// Most arrivals in a lifetime that nobody told.
const OWN_LIFE_ARRIVALS_MAX: f64 = 20.0;
/// A rounding is believed if it leaves one early gap of so many that are there, or would be, with another.
const EARLY_LESS: f64 = 5.0;
/// Early gaps from which it is asked for.
const ROUNDED_EARLY_MIN: f64 = 5.0;
const SECOND_MS: u32 = 1_000;

/// When answers expire: after exactly the TTL, or with whole seconds of the clock, which resolvers count in. What expires in
/// the second of `now + TTL` does so at its begin or at its end.
const ROUNDINGS: [Rounding; 3] = [Rounding::Exact, Rounding::Down, Rounding::Up];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rounding {
    Exact = 0,
    Down = 1,
    Up = 2,
}

impl Rounding {
    /// The expiry, in ms since a begin that is `phase_ms` after a whole second. One at 0 is none.
    fn of(self, until_ms: u32, phase_ms: u32) -> u32 {
        let fraction = until_ms.saturating_add(phase_ms) % SECOND_MS;
        match self {
            Self::Down if until_ms > 0 => until_ms.saturating_sub(fraction),
            Self::Up if until_ms > 0 => until_ms.saturating_add(SECOND_MS - fraction),
            Self::Exact | Self::Down | Self::Up => until_ms,
        }
    }
}

/// All times are in ms since the begin of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resolver {
    /// A keyed hash of its address.
    pub id: u32,
    /// Queries in this window.
    pub queries: u32,
    /// When its cached answer expires by its TTL; in the past if it has none.
    until_ms: u32,
    /// Its first and last query in this window.
    first_ms: u32,
    last_ms: u32,
    /// Shortest gap between two queries, and between an expiry and a query.
    gap_min_ms: u32,
    excess_min_ms: u32,
    /// For each rounding: how long it has had no answer before its last query, and gaps that ended while it had one.
    exposed_ms: [u32; ROUNDINGS.len()],
    early: [u16; ROUNDINGS.len()],
}

impl Resolver {
    /// One that has nothing cached and has not asked.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            queries: 0,
            until_ms: 0,
            first_ms: 0,
            last_ms: 0,
            gap_min_ms: u32::MAX,
            excess_min_ms: u32::MAX,
            exposed_ms: [0; ROUNDINGS.len()],
            early: [0; ROUNDINGS.len()],
        }
    }

    /// It asked and was answered. The window began `phase_ms` after a whole second.
    pub fn asked(&mut self, at_ms: u32, ttl_ms: u32, phase_ms: u32) {
        let at_ms = at_ms.max(self.last_ms);
        let is_first = self.queries == 0;
        for (rounding, (exposed_ms, early)) in
            ROUNDINGS.into_iter().zip(self.exposed_ms.iter_mut().zip(&mut self.early))
        {
            let until_ms = rounding.of(self.until_ms, phase_ms);
            *exposed_ms += at_ms.saturating_sub(until_ms);
            *early = early.saturating_add(u16::from(at_ms < until_ms && !is_first));
        }
        if is_first {
            self.first_ms = at_ms;
        } else {
            self.gap_min_ms = self.gap_min_ms.min(at_ms - self.last_ms);
            self.excess_min_ms = self.excess_min_ms.min(at_ms.saturating_sub(self.until_ms));
        }
        self.queries += 1;
        self.last_ms = at_ms;
        self.until_ms = at_ms.saturating_add(ttl_ms);
    }

    /// It has an answer that expires then.
    pub fn cached_until(&mut self, until_ms: u32) {
        self.until_ms = self.until_ms.max(until_ms);
    }

    /// Begins the next window, `passed_ms` later; false if there is nothing to remember.
    pub fn turn(&mut self, passed_ms: u32) -> bool {
        let until_ms = self.until_ms.saturating_sub(passed_ms);
        *self = Self { until_ms, ..Self::new(self.id) };
        until_ms > 0
    }

    /// Orders those that may leave: those that ask little first, and of these those whose answer is older.
    pub fn rank(&self) -> (u32, u32) {
        (self.queries, self.until_ms)
    }

    /// Its demand over a window that ends now. It has asked.
    pub fn part(&self, window_ms: u32, phase_ms: u32) -> Part {
        let rounding = self.rounding();
        let last_ms = window_ms.saturating_sub(rounding.of(self.until_ms, phase_ms));
        let exposed_ms = self.exposed_ms[rounding as usize].saturating_add(last_ms);
        // The first query counts for itself, each further one for all that came in as much of the window as it was exposed for.
        let times = f64::from(window_ms) / f64::from(exposed_ms.max(1));
        let further = f64::from(self.gaps());
        let told = Part {
            queries: self.queries,
            arrivals: 1.0 + further * times,
            variance: 1.0 + further * times * times,
            way: Way::Told,
        };
        if self.is_early(rounding) {
            let queries = f64::from(self.queries);
            return self.own_part(window_ms, Part { arrivals: queries, variance: queries, ..told });
        }
        if rounding == Rounding::Exact && self.is_late(exposed_ms) {
            return self.own_part(window_ms, told);
        }
        told
    }

    fn gaps(&self) -> u32 {
        self.queries.saturating_sub(1)
    }

    /// How its answers expire: exactly, unless another way explains its gaps far better.
    fn rounding(&self) -> Rounding {
        let early = |rounding: Rounding| f64::from(self.early[rounding as usize]);
        let gaps = f64::from(self.gaps());
        if early(Rounding::Exact) >= ROUNDED_EARLY_MIN
            && EARLY_LESS * early(Rounding::Down) <= early(Rounding::Exact)
        {
            return Rounding::Down;
        }
        // One that expires exactly would ask in the rest of that second now and then, half a second each on average.
        let exposed_ms = f64::from(self.exposed_ms[Rounding::Exact as usize]).max(1.0);
        let expected = gaps * (1.0 - (-gaps * f64::from(SECOND_MS / 2) / exposed_ms).exp());
        if expected >= ROUNDED_EARLY_MIN && EARLY_LESS * early(Rounding::Up) <= expected {
            return Rounding::Up;
        }
        Rounding::Exact
    }

    /// It asks before it has to.
    fn is_early(&self, rounding: Rounding) -> bool {
        let early = self.early[rounding as usize];
        early >= EARLY_MIN && f64::from(early) > EARLY_SHARE * f64::from(self.gaps())
    }

    /// It never asks soon after an expiry: the shortest of *k* exponential times of rate λ is one of rate k·λ.
    fn is_late(&self, exposed_ms: u32) -> bool {
        let gaps = f64::from(self.gaps());
        let rate = gaps / f64::from(exposed_ms.max(1));
        self.gaps() >= GAPS_MIN && gaps * rate * f64::from(self.excess_min_ms) > LATE_LOG_ODDS
    }

    /// By its gaps alone, which are a lifetime that is not known and an exponential time: the minimum-variance unbiased rate
    /// of the two-parameter exponential distribution (Epstein and Sobel, "Some theorems relevant to life testing from an
    /// exponential distribution", Ann. Math. Stat. 25, 1954). `otherwise` is its part if they are not.
    fn own_part(&self, window_ms: u32, otherwise: Part) -> Part {
        let unclear = Part { way: Way::Unclear, ..otherwise };
        if self.gaps() < GAPS_MIN {
            return unclear;
        }
        let (gaps, lifetime) = (f64::from(self.gaps()), f64::from(self.gap_min_ms));
        let rate = (gaps - 2.0) / (f64::from(self.last_ms - self.first_ms) - gaps * lifetime).max(1.0);
        let arrivals = f64::from(window_ms) * rate;
        // No lifetime at all: several caches behind an address ask whenever they like, and so does none. Gaps that are all the
        // same: a client with a clock is more likely than that many clients.
        if arrivals < f64::from(self.queries) || rate * lifetime > OWN_LIFE_ARRIVALS_MAX {
            return unclear;
        }
        Part { arrivals, variance: arrivals * arrivals / (gaps - 2.0), way: Way::Own, ..otherwise }
    }
}
