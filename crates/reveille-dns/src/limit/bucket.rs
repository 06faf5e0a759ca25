//! Token buckets of one word each, and a table of them whose memory never grows.
//!
//! A bucket is the virtual scheduling form of GCRA (ITU-T I.371, annex A): it knows only the *theoretical arrival
//! time* (TAT), the time at which it will be full of tokens again. A question passes if that time, moved on by one
//! interval, lies no further ahead of now than the burst allows. So a bucket whose TAT is over is full, and not to
//! be told from one that never was: its place can be given away without losing anything.
//!
//! ```text
//!   word:  TAT in microseconds (48 bits) | tag of the key (16 bits)
//!   set :  7 buckets with owners + 1 shared by who finds no place = one cache line
//! ```
//!
//! **What holds.** For one key, in any time *t* on the clock that is passed in: at most `burst + t / interval`
//! pass. Beyond that, and no further:
//! - two threads that see a key for the first time at the same moment may give it two places, or a place and a
//!   token of the shared bucket; the second is not found again and runs out. That is one token for each such meeting.
//! - a clock that is seen to go back by more than [`CLOCK_SLACK_US`] and what a bucket can be ahead: what it went
//!   back by counts as time gone by, once for each time that it does. Smaller steps back, such as between threads
//!   that read the clock one after the other, cost nothing: TATs are never moved back for them.
//!
//! **A full set.** The owners of a set's seven buckets keep them as long as they are busy (TAT ahead of now); who
//! comes eighth is counted in the set's shared bucket, at the rate of one. Nobody can push somebody else out of a
//! bucket, so nobody can have their own or another's forgotten; the price is that those who came late share. Who
//! finds a place later begins there with what is charged to the shared bucket, so that changing over gives nothing
//! away.
//!
//! A bucket is busy for one interval after each charge, so a flood of questions from random sources keeps `rate ×
//! interval` of them busy: a million a second on a limit of 200 a second, 5,000. With 16,384 sets (the default of rate
//! limits) 50,000 busy buckets crowd about one set in a hundred. Which keys meet in a set is decided by a keyed hash
//! with a random secret, so it cannot be arranged for.
//!
//! **Tags.** Two keys in one set with the same tag share a bucket: 2⁻¹⁶ for each pair that meets in a set. They
//! share one rate then; none gets more.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How far a clock may be seen to go back beyond what a bucket can be ahead, before the bucket is set right.
pub const CLOCK_SLACK_US: u64 = 1_000_000;
/// Most sets of a table: 256 MiB.
pub const SETS_MAX: usize = 1 << 22;
/// Bytes of a set: a cache line.
pub const SET_BYTES: usize = 64;

/// Buckets of a set that have an owner.
const WAYS: usize = 7;
/// Place of the bucket that the rest of a set's keys share.
const SHARED: usize = WAYS;
/// Bits of a word that tell whose bucket it is.
const TAG_BITS: u32 = 16;
/// Largest time of a bucket, in microseconds: nine years. Then it begins at zero again, and buckets that were busy
/// at that moment count as those of a clock that went back.
const TIME_MASK: u64 = (1 << (64 - TAG_BITS)) - 1;
/// Tries to change a word that other threads change at the same time; then the answer is no. Each failed try is
/// another thread's success, so with some dozen threads on one bucket this is never reached.
const TRIES_MAX: usize = 64;

/// A rate and a burst, as a bucket needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Time between two that pass at the rate, rounded up: the rate is never exceeded, and missed by less than
    /// 0.1 % up to 1,000 per second, 1 % up to 10,000.
    interval_us: u64,
    /// How far ahead of now a TAT may be: interval times burst.
    tolerance_us: u64,
    /// How far ahead a TAT can be at most, slack included: beyond it the clock went back.
    ahead_us: u64,
}

impl Limit {
    /// `count` in `period_us` microseconds, and up to `burst` at once after a rest. None for a count of 0: no limit.
    pub fn new(count: u32, period_us: u64, burst: u32) -> Option<Self> {
        let interval_us = period_us.div_ceil(u64::from(count).max(1)).max(1);
        Self::from_interval(interval_us, interval_us.saturating_mul(burst.max(1).into()))
            .filter(|_| count > 0)
    }

    fn from_interval(interval_us: u64, tolerance_us: u64) -> Option<Self> {
        let tolerance_us = tolerance_us.max(interval_us).min(TIME_MASK / 4);
        Some(Self { interval_us, tolerance_us, ahead_us: tolerance_us + CLOCK_SLACK_US })
    }

    /// The same rate with `part` of 100 parts of the burst, one at least.
    #[must_use]
    pub fn with_burst_percent(self, part: u64) -> Self {
        let tolerance_us = (self.tolerance_us / 100).saturating_mul(part).max(self.interval_us);
        Self { tolerance_us, ..self }
    }

    /// Makes limits that are used on the same buckets know of each other: none of them is to take for a fault of
    /// the clock what another has allowed.
    pub fn on_same_buckets(limits: &mut [Option<Self>]) {
        let ahead_us = limits.iter().flatten().map(|limit| limit.ahead_us).max();
        for limit in limits.iter_mut().flatten() {
            limit.ahead_us = ahead_us.unwrap_or(limit.ahead_us);
        }
    }

    /// One more into a bucket with that TAT. No branch of this forgets a charge unless the clock went back.
    fn step(&self, tat_us: u64, now_us: u64) -> Step {
        if tat_us > now_us.saturating_add(self.ahead_us) {
            return Step::Impossible;
        }
        let next = tat_us.max(now_us) + self.interval_us;
        if next - now_us > self.tolerance_us { Step::Full } else { Step::Pass(next & TIME_MASK) }
    }

    /// TAT of a bucket without a token.
    fn emptied(&self, now_us: u64) -> u64 {
        (now_us + self.tolerance_us) & TIME_MASK
    }
}

/// What one more would do to a bucket.
enum Step {
    /// It passes; the new TAT.
    Pass(u64),
    /// It does not.
    Full,
    /// No limit leads to this TAT: the clock went back.
    Impossible,
}

/// Microseconds of a bucket's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micros(u64);

impl Micros {
    /// So many milliseconds after the clock's start.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms.wrapping_mul(1_000) & TIME_MASK)
    }

    /// So many microseconds after the clock's start.
    #[cfg(test)]
    pub const fn from_us(us: u64) -> Self {
        Self(us & TIME_MASK)
    }
}

/// A bucket that stands by itself. Its word is a TAT alone.
#[derive(Debug, Default)]
pub struct Bucket(AtomicU64);

impl Bucket {
    /// Whether one more would pass. Charges nothing; another thread may be quicker.
    pub fn would_pass(&self, limit: &Limit, now: Micros) -> bool {
        match limit.step(self.0.load(Relaxed), now.0) {
            Step::Pass(_) => true,
            Step::Full => false,
            // Set right when it is taken from.
            Step::Impossible => true,
        }
    }

    /// Takes a token if there is one.
    pub fn take(&self, limit: &Limit, now: Micros) -> bool {
        for _ in 0..TRIES_MAX {
            let tat = self.0.load(Relaxed);
            let (next, passes) = match limit.step(tat, now.0) {
                Step::Pass(next) => (next, true),
                Step::Full => return false,
                Step::Impossible => (limit.emptied(now.0), false),
            };
            if self.0.compare_exchange(tat, next, Relaxed, Relaxed).is_ok() {
                return passes;
            }
        }
        false
    }

    /// Gives a token back that was taken a moment ago.
    pub fn give_back(&self, limit: &Limit) {
        // The word is at least an interval: the token was taken. The update is tried until it is done.
        let _ = self.0.try_update(Relaxed, Relaxed, |tat| tat.checked_sub(limit.interval_us));
    }
}

/// Whose bucket: a keyed hash, and which of up to four buckets of the same owner. They lie in the same set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    hash: u64,
    tag: u16,
}

impl Key {
    /// The bucket number `lane` (0 to 3) of the owner with that keyed hash.
    pub const fn new(hash: u64, lane: u8) -> Self {
        let [.., low, high] = hash.to_le_bytes();
        // The highest bits, which do not choose the set; lanes of one owner never share a tag.
        Self { hash, tag: u16::from_le_bytes([low, high ^ (lane << 6)]) }
    }
}

/// Where a token was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    set: usize,
    way: usize,
    tag: u16,
}

/// What came of a try to take a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// A token was taken.
    Passed(Place),
    /// There was none.
    Refused(Place),
}

impl Take {
    /// Whether a token was taken.
    pub const fn passed(self) -> bool {
        matches!(self, Self::Passed(_))
    }

    /// Whether it was decided by a bucket that is shared, because the set was full.
    pub const fn shared(self) -> bool {
        let (Self::Passed(place) | Self::Refused(place)) = self;
        place.way == SHARED
    }
}

/// One cache line of buckets; the last one is shared.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([AtomicU64; WAYS + 1]);

/// A table of buckets for any number of keys, in memory of fixed size.
#[derive(Debug)]
pub struct BucketTable {
    sets: Box<[Set]>,
}

/// What a look at a set found for a key.
struct Found {
    way: usize,
    word: u64,
    /// TAT of the key's bucket: of nobody's, that of one that is full.
    tat_us: u64,
    tag: u16,
}

impl BucketTable {
    /// A table of that many sets, rounded up to a power of two, [`SETS_MAX`] at most.
    pub fn new(sets: usize) -> Self {
        let sets = sets.clamp(1, SETS_MAX).next_power_of_two();
        Self { sets: (0..sets).map(|_| Set::default()).collect() }
    }

    /// How many sets it has.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// Memory that it takes, always.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.sets)
    }

    /// Reads the key's cache line, so that it is near when it is needed: to be called for every question of a
    /// batch before the first of them is judged. The loads of a batch then overlap.
    pub fn touch(&self, key: Key) {
        let shared = self.set(key).and_then(|set| set.0.get(SHARED));
        std::hint::black_box(shared.map(|word| word.load(Relaxed)));
    }

    /// Whether one more of that key would pass. Charges nothing; another thread may be quicker.
    pub fn would_pass(&self, key: Key, limit: &Limit, now: Micros) -> bool {
        let Some(set) = self.set(key) else { return false };
        match limit.step(set.find(key, limit, now).tat_us, now.0) {
            Step::Pass(_) => true,
            Step::Full => false,
            // Set right when it is taken from.
            Step::Impossible => true,
        }
    }

    /// Takes a token of that key if there is one. Never allocates or waits; at most a few loads and one exchange
    /// unless other threads change the same bucket at the same moment. A refusal only reads.
    #[inline]
    pub fn take(&self, key: Key, limit: &Limit, now: Micros) -> Take {
        let set_index = self.index(key);
        let mut place = Place { set: set_index, way: SHARED, tag: 0 };
        let Some(set) = self.sets.get(set_index) else { return Take::Refused(place) };
        for _ in 0..TRIES_MAX {
            let found = set.find(key, limit, now);
            place = Place { set: set_index, way: found.way, tag: found.tag };
            let (next, passes) = match limit.step(found.tat_us, now.0) {
                Step::Pass(next) => (next, true),
                Step::Full => return Take::Refused(place),
                Step::Impossible => (limit.emptied(now.0), false),
            };
            let Some(word) = set.0.get(found.way) else { break };
            let next = word_of(next, found.tag);
            if word.compare_exchange(found.word, next, Relaxed, Relaxed).is_ok() {
                return if passes { Take::Passed(place) } else { Take::Refused(place) };
            }
        }
        Take::Refused(place)
    }

    /// Gives a token back that was taken a moment ago. If the bucket has another owner by now, it had been full
    /// anyway.
    pub fn give_back(&self, place: Place, limit: &Limit) {
        let Some(word) = self.sets.get(place.set).and_then(|set| set.0.get(place.way)) else { return };
        let _ = word.try_update(Relaxed, Relaxed, |word| {
            let tat = tat_of(word).checked_sub(limit.interval_us)?;
            (tag_of(word) == place.tag).then_some(word_of(tat, place.tag))
        });
    }

    #[inline]
    fn index(&self, key: Key) -> usize {
        // Its lowest bits are all that count, whatever the width of a pointer.
        #[allow(clippy::cast_possible_truncation, reason = "masked to the number of sets")]
        let index = key.hash as usize & (self.sets.len() - 1);
        index
    }

    #[inline]
    fn set(&self, key: Key) -> Option<&Set> {
        self.sets.get(self.index(key))
    }
}

impl Set {
    /// The key's own bucket; or one that is full, so nobody's; or the shared one.
    #[inline]
    fn find(&self, key: Key, limit: &Limit, now: Micros) -> Found {
        let latest = now.0.saturating_add(limit.ahead_us);
        let mut free = None;
        let [own @ .., shared] = &self.0;
        for (way, word) in own.iter().enumerate() {
            let word = word.load(Relaxed);
            let tat_us = tat_of(word);
            if tag_of(word) == key.tag {
                return Found { way, word, tat_us, tag: key.tag };
            }
            // A time that cannot be is of before the clock went back; such a bucket would be busy forever.
            if free.is_none() && (tat_us <= now.0 || tat_us > latest) {
                free = Some((way, word));
            }
        }
        let shared = shared.load(Relaxed);
        let shared_tat_us = tat_of(shared);
        let Some((way, word)) = free else {
            return Found { way: SHARED, word: shared, tat_us: shared_tat_us, tag: tag_of(shared) };
        };
        // What the key may have taken from the shared bucket a moment ago goes with it.
        let tat_us = if shared_tat_us > latest { now.0 } else { shared_tat_us.max(now.0) };
        Found { way, word, tat_us, tag: key.tag }
    }
}

const fn tat_of(word: u64) -> u64 {
    word >> TAG_BITS
}

const fn tag_of(word: u64) -> u16 {
    let [low, high, ..] = word.to_le_bytes();
    u16::from_le_bytes([low, high])
}

const fn word_of(tat_us: u64, tag: u16) -> u64 {
    tat_us << TAG_BITS | tag as u64
}
