//! What clients wanted, from what resolvers asked: the correction for caching (O4).
//!
//! A resolver that was answered keeps the answer for its TTL and asks nothing in that time, whatever its clients want. For
//! Poisson demand of λᵣ through resolver *r* the queries of one name and type are a renewal process with gaps of TTL + Exp(λᵣ),
//! the more of whose arrivals are hidden the busier a resolver is.
//!
//! ```text
//!   answered          expired     asks          expired    asks
//!   ──┼──── cached ──────┼─ exposed ┼──── cached ────┼ exposed ┼──►   λᵣ ≈ queries ÷ exposed time
//! ```
//!
//! Seen from here each resolver is a counter with a dead time (Müller, "Dead-time problems", Nucl. Instr. Meth. 112,
//! 1973): only while it has nothing in its cache, while it is *exposed*, can demand be seen, and then with intensity λᵣ. The
//! likelihood is that of a Poisson process over the exposed time alone, whatever the TTLs were and however they changed under
//! way; so queries and exposed time of each resolver are all that has to be kept ([`Watch`]). Of *n* queries the first counts
//! for itself, and each other one for as many arrivals as the window is longer than the exposed time:
//!
//! ```text
//!   arrivals = 1 + (n − 1) × window ÷ exposed          variance = 1 + (n − 1) × (window ÷ exposed)²
//! ```
//!
//! All *n* taken so would be too many by TTL ÷ window, since a query makes its own exposed time shorter. Demand of a name is
//! the sum over its resolvers, and its intervals are those of a gamma distribution with the sum's mean and variance
//! ([`Estimate`]). No resolver has to be like another. What is only known in sum can be corrected as if all were
//! ([`at_least`]): a lower bound, since the busy ones hide more than the average one.
//!
//! **Which λ.** Errors are stated by λ·TTL with λ the demand of all resolvers together: how many arrivals the life of an answer
//! sees. Through a single resolver that is its own, through many each has its share. With *n* queries no unbiased estimate
//! has a relative standard error below 1 ÷ √n (Cramér–Rao; 5 % for 400), nor below √((1 + TTL·Σλᵣ² ÷ λ) ÷ (λ·window)) where it
//! is not known how demand is spread; this one reaches it.
//!
//! **What breaks it.** *Bursts*: who comes because another came is hidden with him, so that what is estimated is the rate of
//! bursts. *Caches below a resolver*, of clients and forwarders, hide what they answer. *Lifetimes of their own*: resolvers
//! that cap TTLs, have a minimal one or fetch anew before the end are found by their gaps and judged by these
//! ([`Estimate::own_way`]); those that count in whole seconds of a clock that is right, too. *Several caches behind one
//! address* count as seen ([`Estimate::uncorrected`]). *Lost queries* look like quiet: a window in which some were dropped says too
//! little, and has to begin anew ([`Watches::lost`]).
//!
//! **Where it goes.** The thread that takes in what the query room has observed knows of each query its service, type, time, client
//! and the TTL that was answered. It hashes the client's address with its secret and tells [`Watches`],
//! which hold a bounded number of names and end their windows. The history keeps raw counts, and beside them what these are
//! times `per_query` of the window; without a window they stay what they are.
//!
//! **Privacy, cost.** A resolver is 32 bits of a keyed hash, and forgotten when a window ends at which it has nothing
//! cached. At most [`WATCH_BYTES_MAX`] a name, whoever asks; a few hundred bytes with a few resolvers.

mod estimate;
mod resolver;
mod seen;
#[cfg(test)]
mod tests;
mod watches;

use crate::model::Timestamp;
use estimate::Sum;
use resolver::Resolver;
use seen::Seen;

pub use estimate::{Estimate, Interval, Unknown, at_least};
pub use watches::{NAMES_MAX, PLACES_MAX, QUERIES_MIN, Watches};

/// Most resolvers of a name that are followed one by one. Those that ask least make room, and are corrected in sum.
pub const RESOLVERS_MAX: usize = 1_024;
/// Longest time for which an answer is taken to be cached, in ms: a day (RFC 8767 §4 has resolvers cap TTLs by days).
pub const TTL_MS_MAX: u32 = 86_400_000;
/// Longest window, in ms: a week. One that nobody ended by then begins anew.
pub const WINDOW_MS_MAX: u64 = 7 * 86_400_000;
/// A window of less than so many TTLs tells too little of resolvers that are cached all the time.
pub const WINDOW_TTLS_MIN: u64 = 4;
/// At most this much is held for a name, counting what is allocated: a test holds it true.
pub const WATCH_BYTES_MAX: usize = 50 * 1024;

/// How many resolvers are looked at for the one that makes room.
const LEAVE_LOOKS: usize = 8;

/// Follows the resolvers that ask for one name and type. A and AAAA are cached by themselves: each has its watch, and clients that
/// ask for both are those of the busier one.
#[derive(Debug, Clone)]
pub struct Watch {
    /// When the window begins.
    from: Timestamp,
    /// The window has begun: whatever was answered before the watch has expired.
    is_settled: bool,
    queries: u64,
    /// TTLs of the window's answers: their sum and the longest, in ms.
    ttl_sum_ms: u64,
    ttl_max_ms: u32,
    /// The longest TTL since the watch began, and that before it was taken to be.
    longest_ms: u32,
    /// By id; at most [`RESOLVERS_MAX`].
    resolvers: Vec<Resolver>,
    /// Where the next one to leave is looked for.
    hand: usize,
    /// Queries of this window from resolvers that had to leave, and which these are.
    left: u64,
    leavers: Seen,
}

impl Watch {
    /// Begins to watch at `now`. What is cached where is not known before all answers that were given earlier have expired, in
    /// `ttl_ms` at most; the first window begins then.
    #[must_use]
    pub fn new(now: Timestamp, ttl_ms: u32) -> Self {
        Self {
            from: now.plus_ms(u64::from(ttl_ms.min(TTL_MS_MAX))),
            is_settled: ttl_ms == 0,
            queries: 0,
            ttl_sum_ms: 0,
            ttl_max_ms: 0,
            longest_ms: ttl_ms.min(TTL_MS_MAX),
            resolvers: Vec::new(),
            hand: 0,
            left: 0,
            leavers: Seen::default(),
        }
    }

    /// A resolver asked and was answered with that TTL. `resolver` is a hash of its address under a secret key.
    ///
    /// Queries of one resolver come in the order of time; one that is earlier than its last counts as simultaneous with it.
    pub fn asked(&mut self, resolver: u32, at: Timestamp, ttl_ms: u32) {
        self.ask(resolver, at, ttl_ms, true);
    }

    /// The same; `may_grow`: there is memory for one more resolver.
    fn ask(&mut self, resolver: u32, at: Timestamp, ttl_ms: u32, may_grow: bool) {
        let ttl_ms = ttl_ms.min(TTL_MS_MAX);
        self.longest_ms = self.longest_ms.max(ttl_ms);
        if !self.is_settled && at >= self.from {
            self.turn(self.from);
        }
        if at.ms_since(self.from) >= WINDOW_MS_MAX {
            self.turn(at);
        }
        let index = self.place(resolver, may_grow);
        if !self.is_settled {
            self.note(index, at, ttl_ms);
            return;
        }
        let (at_ms, phase_ms) = (self.offset(at), self.phase_ms());
        self.queries += 1;
        self.ttl_sum_ms += u64::from(ttl_ms);
        self.ttl_max_ms = self.ttl_max_ms.max(ttl_ms);
        self.resolvers[index].asked(at_ms, ttl_ms, phase_ms);
    }

    /// Ends the window at `now` and begins the next: what is cached until when is known in it. Before the first one nothing is done.
    pub fn turn(&mut self, now: Timestamp) {
        if now < self.from {
            return;
        }
        let passed_ms = self.offset(now);
        self.resolvers.retain_mut(|resolver| resolver.turn(passed_ms));
        *self = Self {
            from: now,
            is_settled: true,
            queries: 0,
            ttl_sum_ms: 0,
            ttl_max_ms: 0,
            longest_ms: self.longest_ms,
            resolvers: std::mem::take(&mut self.resolvers),
            hand: 0,
            left: 0,
            leavers: Seen::default(),
        };
    }

    /// What clients wanted from the begin of the window until `now`.
    ///
    /// # Errors
    /// If too little was seen to tell: what it would take.
    pub fn estimate(&self, now: Timestamp) -> Result<Estimate, Unknown> {
        if now < self.from && !self.is_settled {
            return Err(Unknown::Settling { until: self.from });
        }
        let window_ms = now.ms_since(self.from);
        let least_ms = (WINDOW_TTLS_MIN * u64::from(self.ttl_max_ms)).max(1);
        if window_ms < least_ms {
            return Err(Unknown::TooShort { queries: self.queries, window_ms, least_ms });
        }
        let (now_ms, phase_ms) = (self.offset(now), self.phase_ms());
        let mut sum = Sum::default();
        for resolver in self.resolvers.iter().filter(|resolver| resolver.queries > 0) {
            sum.add(resolver.part(now_ms, phase_ms));
        }
        let mut resolvers = sum.resolvers();
        if self.left > 0 {
            let ttl_ms = self.ttl_sum_ms as f64 / self.queries.max(1) as f64;
            sum.add_equals(self.left, self.leavers.count(), window_ms, ttl_ms);
            let mut all = self.leavers.clone();
            self.resolvers.iter().for_each(|resolver| all.add(resolver.id));
            resolvers = resolvers.max(all.count());
        }
        Ok(sum.estimate(self.queries, resolvers, window_ms))
    }

    /// What is held, in bytes, counting what is allocated.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.resolvers.capacity() * size_of::<Resolver>()
    }

    /// Only notes what is cached, before the window begins.
    fn note(&mut self, index: usize, at: Timestamp, ttl_ms: u32) {
        // What is left of the answer when the window begins.
        let before_ms = u32::try_from(self.from.ms_since(at)).unwrap_or(u32::MAX);
        self.resolvers[index].cached_until(ttl_ms.saturating_sub(before_ms));
    }

    /// The index of the resolver's place, which another one may have to leave.
    fn place(&mut self, id: u32, may_grow: bool) -> usize {
        if let Ok(index) = self.resolvers.binary_search_by_key(&id, |resolver| resolver.id) {
            return index;
        }
        let count = self.resolvers.len();
        if count >= RESOLVERS_MAX || (!may_grow && count > 0) {
            self.make_room();
        } else if count == self.resolvers.capacity() {
            // By little, since there may be many names; never beyond the last place.
            self.resolvers.reserve_exact((count / 2).max(4).min(RESOLVERS_MAX - count));
        }
        let index = self.resolvers.partition_point(|resolver| resolver.id < id);
        self.resolvers.insert(index, Resolver::new(id));
        index
    }

    /// Of a few resolvers, others each time, the one with the fewest queries leaves: those that hide much ask much, and stay.
    fn make_room(&mut self) {
        let count = self.resolvers.len();
        let looked = (self.hand..self.hand + LEAVE_LOOKS).map(|at| at % count);
        if let Some(index) = looked.min_by_key(|&index| self.resolvers[index].rank()) {
            let leaver = self.resolvers.remove(index);
            if leaver.queries > 0 {
                self.left += u64::from(leaver.queries);
                self.leavers.add(leaver.id);
            }
        }
        self.hand = (self.hand + LEAVE_LOOKS) % count;
    }

    /// Where in a second the window begins.
    fn phase_ms(&self) -> u32 {
        u32::try_from(self.from.as_ms() % 1_000).unwrap_or(0)
    }

    /// Milliseconds since the begin of the window.
    fn offset(&self, at: Timestamp) -> u32 {
        u32::try_from(at.ms_since(self.from)).unwrap_or(u32::MAX)
    }
}
