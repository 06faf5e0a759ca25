//! From resolvers to a name: the sum, and how sure it is.

use crate::model::Timestamp;

/// Standard normal quantiles of 90 % and 97.5 %: the upper ends of intervals of 80 and 95 %.
const NORMAL_90: f64 = 1.281_551_565_544_600_4;
const NORMAL_975: f64 = 1.959_963_984_540_054;
/// Half an arrival more makes the interval of a count cover it as often as it says (Jeffreys' prior; Brown, Cai and
/// DasGupta, "Interval estimation in exponential families", Statistica Sinica 13, 2003).
const PRIOR_ARRIVALS: f64 = 0.5;
/// Resolvers of which only sums are known are corrected well enough while they have an answer for this share of the time.
const CACHED_IN_SUM_MAX: f64 = 0.2;

/// What clients wanted in a window. Arrivals are expected ones, demand × window: those that came differ by chance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Length of the window, in ms.
    pub window_ms: u64,
    /// Queries that were seen: what is left without a correction.
    pub queries: u64,
    /// Resolvers that asked; about, if they are more than are followed.
    pub resolvers: u64,
    /// Arrivals in the window, hidden ones included.
    pub arrivals: f64,
    /// They are in here in 80 % of all cases.
    pub within_80: Interval,
    /// The same with 95 %.
    pub within_95: Interval,
    /// Queries of resolvers that keep answers for a time of their own.
    pub own_way: u64,
    /// Queries, some of these among them, behind which more may be hidden than can be told: what they stand for is at least
    /// what is said, and so the intervals are too low if they are many.
    pub uncorrected: u64,
}

/// Arrivals in a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// So many at least.
    pub low: f64,
    /// So many at most.
    pub high: f64,
}

/// Why there is no estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// Resolvers may have answers of before the watch.
    #[error("resolvers may still have answers that were given before; the window begins at {}", until.utc())]
    Settling {
        /// When the last of them expires.
        until: Timestamp,
    },
    /// The window is short against the TTL.
    #[error("a window of {window_ms} ms is too short to tell what is cached: it takes {least_ms} ms")]
    TooShort {
        /// Queries that were seen so far.
        queries: u64,
        /// Its length, in ms.
        window_ms: u64,
        /// What it takes, in ms.
        least_ms: u64,
    },
}

impl Interval {
    /// Whether it holds the value.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

impl Estimate {
    /// Demand, in arrivals per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        1_000.0 * self.arrivals / self.window_ms.max(1) as f64
    }

    /// How many arrivals a query stands for.
    #[must_use]
    pub fn per_query(&self) -> f64 {
        if self.queries == 0 { 1.0 } else { self.arrivals / self.queries as f64 }
    }
}

/// Arrivals of which so many queries of so many resolvers are left, if all resolvers are equally busy: where only sums are known. As they
/// never are, it is a lower bound: λ = q ÷ (1 − q·TTL) bends upwards in the rate of queries q of a resolver. What cannot be, more than one
/// query in a TTL, is not corrected.
#[must_use]
pub fn at_least(queries: u64, resolvers: u64, window_ms: u64, ttl_ms: f64) -> f64 {
    let queries = queries as f64;
    let cached = queries * ttl_ms / (resolvers.max(1) as f64 * window_ms.max(1) as f64);
    if (0.0..1.0).contains(&cached) { queries / (1.0 - cached) } else { queries }
}

/// One resolver's arrivals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Part {
    pub queries: u32,
    pub arrivals: f64,
    pub variance: f64,
    pub way: Way,
}

/// What a resolver makes of the TTL that it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It keeps to it.
    Told,
    /// It keeps answers for a time of its own, which is known.
    Own,
    /// Neither: it has no cache, or several.
    Unclear,
}

/// All of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    resolvers: u64,
    arrivals: f64,
    variance: f64,
    own_way: u64,
    uncorrected: u64,
}

impl Sum {
    pub fn add(&mut self, part: Part) {
        let queries = u64::from(part.queries);
        self.resolvers += 1;
        self.arrivals += part.arrivals;
        self.variance += part.variance;
        match part.way {
            Way::Told => {}
            Way::Own => self.own_way += queries,
            Way::Unclear => {
                (self.own_way, self.uncorrected) = (self.own_way + queries, self.uncorrected + queries)
            }
        }
    }

    /// Adds resolvers of which only sums are known.
    pub fn add_equals(&mut self, queries: u64, resolvers: u64, window_ms: u64, ttl_ms: f64) {
        let arrivals = at_least(queries, resolvers, window_ms, ttl_ms);
        self.arrivals += arrivals;
        self.variance += arrivals * arrivals / queries.max(1) as f64;
        let cached = queries as f64 * ttl_ms / (resolvers.max(1) as f64 * window_ms.max(1) as f64);
        if cached > CACHED_IN_SUM_MAX {
            self.uncorrected += queries;
        }
    }

    pub fn resolvers(&self) -> u64 {
        self.resolvers
    }

    pub fn estimate(&self, queries: u64, resolvers: u64, window_ms: u64) -> Estimate {
        Estimate {
            window_ms,
            queries,
            resolvers,
            arrivals: self.arrivals,
            within_80: self.within(NORMAL_90),
            within_95: self.within(NORMAL_975),
            own_way: self.own_way,
            uncorrected: self.uncorrected,
        }
    }

    /// The interval between two quantiles of the gamma distribution with this mean and variance.
    fn within(&self, normal: f64) -> Interval {
        // As many independent arrivals would be known as well as this sum, each of which stands for `scale` of them.
        let (shape, scale) = if self.variance > 0.0 {
            (self.arrivals * self.arrivals / self.variance, self.variance / self.arrivals)
        } else {
            (0.0, 1.0)
        };
        let shape = shape + PRIOR_ARRIVALS;
        Interval { low: scale * gamma_quantile(shape, -normal), high: scale * gamma_quantile(shape, normal) }
    }
}

/// The quantile of the gamma distribution of scale 1 at the level of a standard normal one: its cube root is nearly normal
/// (Wilson and Hilferty, "The distribution of chi-square", PNAS 17, 1931).
fn gamma_quantile(shape: f64, normal: f64) -> f64 {
    let spread = 1.0 / (9.0 * shape);
    shape * (1.0 - spread + normal * spread.sqrt()).max(0.0).powi(3)
}
