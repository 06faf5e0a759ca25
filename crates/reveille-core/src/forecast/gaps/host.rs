//! What the names of a group share: how busy their host was lately, who asks, and what gap is usual.

use std::collections::{BTreeMap, BTreeSet};

use super::Arrival;
use crate::forecast::stored::{Number, Reader};

/// So many clients are remembered, those that asked last.
pub const CLIENTS_MAX: usize = 4_096;

/// So many groups of names are remembered, those whose gaps ended last.
pub const GROUPS_MAX: usize = 1_024;

/// As many gaps as would draw a group to what all names of the host have in common.
const GROUP_DRAWN_BY: f32 = 10.0;

/// The form of stored bytes that has no groups: names of older versions of this program had none.
pub(super) const FORM_WITHOUT_GROUPS: u8 = 1;

/// Weight of a gap in its group, once there are many.
const GROUP_SLOWEST: f32 = 0.01;

/// Arrivals are counted per so many ms, for so many intervals: a week.
const INTERVAL_MS: u64 = 300_000;
const INTERVALS: usize = 2_016;

/// Half-lives of the memory for the regression's error.
const HALF_LIVES_S: [f32; 3] = [1_800.0, 10_800.0, 86_400.0];

/// What is known of one client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    /// Its last arrival at any name, in ms.
    last_ms: u64,
    /// How many there were.
    pub(super) count: u32,
    /// Mean of the logarithm of its last gaps, in seconds.
    pub(super) log_gap: f32,
    /// Logarithm of its last gap, in seconds.
    pub(super) log_last: f32,
}

/// Gaps of the names of one group: logarithms, in seconds.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// When the last one ended, in ms.
    last_ms: u64,
    gaps: f32,
    mean: f32,
    variance: f32,
}

/// What a name without any gap is taken to have: mean and variance of the logarithm of its gaps, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Prior {
    pub(super) mean: f32,
    pub(super) variance: f32,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Host {
    /// Arrivals per interval, a ring.
    counts: Vec<u32>,
    /// The newest interval in the ring, since 1970; zero before the first arrival.
    newest: u64,
    clients: BTreeMap<u64, Client>,
    /// Clients by their last arrival, the longest silent first.
    by_last: BTreeSet<(u64, u64)>,
    groups: BTreeMap<u64, Group>,
    /// Mean of the logarithm of all names' gaps, in seconds: what a new name is taken to have.
    pub(super) log_gap: f32,
    /// Arrivals of all names that the regression expected and those that came, halved every half-life.
    expected: [f32; 3],
    came: [f32; 3],
    judged_ms: u64,
    /// Variance of it.
    pub(super) log_gap_variance: f32,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            counts: vec![0; INTERVALS],
            newest: 0,
            clients: BTreeMap::new(),
            expected: [0.0; 3],
            came: [0.0; 3],
            judged_ms: 0,
            by_last: BTreeSet::new(),
            groups: BTreeMap::new(),
            // An hour, give or take a factor of seven, before anything was seen.
            log_gap: 8.2,
            log_gap_variance: 4.0,
        }
    }
}

impl Host {
    /// Arrivals per hour in the last `intervals` complete intervals before `at_ms`.
    pub(super) fn rate(&self, at_ms: u64, intervals: u64) -> f32 {
        let now = at_ms / INTERVAL_MS;
        let oldest = self.newest.saturating_sub(INTERVALS as u64 - 1);
        let seen =
            (now.saturating_sub(intervals)..now).filter(|interval| (oldest..=self.newest).contains(interval));
        let count: u64 = seen.map(|interval| u64::from(self.counts[place(interval)])).sum();
        count as f32 * 12.0 / intervals as f32
    }

    /// What is known of a client.
    pub(super) fn client(&self, client: u64) -> Option<&Client> {
        self.clients.get(&client)
    }

    pub(super) fn arrived(&mut self, arrival: Arrival) {
        let interval = arrival.at.as_ms() / INTERVAL_MS;
        if interval > self.newest {
            let first = (self.newest + 1).max(interval.saturating_sub(INTERVALS as u64 - 1));
            (first..=interval).for_each(|passed| self.counts[place(passed)] = 0);
            self.newest = interval;
        }
        let count = &mut self.counts[place(self.newest)];
        *count = count.saturating_add(1);
        if let Some(client) = arrival.client {
            self.client_arrived(client, arrival.at.as_ms());
        }
    }

    /// Takes in the logarithm of the gap of a name that an arrival has ended.
    pub(super) fn gap_ended(&mut self, log_gap: f32, by: Arrival) {
        let off = log_gap - self.log_gap;
        self.log_gap += 0.01 * off;
        self.log_gap_variance += 0.01 * (off * off - self.log_gap_variance);
        let Some(id) = by.group else { return };
        if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&id) {
            let silent = self.groups.iter().min_by_key(|(_, group)| group.last_ms).map(|(id, _)| *id);
            silent.and_then(|id| self.groups.remove(&id));
        }
        let group =
            self.groups.entry(id).or_insert(Group { last_ms: 0, gaps: 0.0, mean: 0.0, variance: 0.0 });
        group.last_ms = group.last_ms.max(by.at.as_ms());
        group.gaps = (group.gaps + 1.0).min(1.0 / GROUP_SLOWEST);
        let away = log_gap - group.mean;
        group.mean += away / group.gaps;
        group.variance += (away * (log_gap - group.mean) - group.variance) / group.gaps;
    }

    /// What a name of the group is taken to have before any gap of its own: what the group has, drawn to what all names of
    /// the host have by how little is known of it (empirical Bayes).
    pub(super) fn prior(&self, group: Option<u64>) -> Prior {
        let host = Prior { mean: self.log_gap, variance: self.log_gap_variance };
        let Some(group) = group.and_then(|id| self.groups.get(&id)) else { return host };
        let share = group.gaps / (group.gaps + GROUP_DRAWN_BY);
        let between = share * (1.0 - share) * (group.mean - host.mean).powi(2);
        Prior {
            mean: share * group.mean + (1.0 - share) * host.mean,
            variance: share * group.variance + (1.0 - share) * host.variance + between,
        }
    }

    /// Notes what the regression expected of one piece of any name's gap.
    pub(super) fn judged(&mut self, at_ms: u64, expected: f32, came: bool) {
        let passed_s = at_ms.saturating_sub(self.judged_ms) as f32 / 1_000.0;
        self.judged_ms = self.judged_ms.max(at_ms);
        for (scale, half_life_s) in HALF_LIVES_S.iter().enumerate() {
            let kept = (-passed_s / half_life_s).exp2();
            self.expected[scale] = self.expected[scale] * kept + expected.min(4.0);
            self.came[scale] = self.came[scale] * kept + f32::from(u8::from(came));
        }
    }

    /// Logarithm of how many times more often names were asked for than expected lately, drawn to zero.
    pub(super) fn misjudged(&self) -> [f32; 3] {
        std::array::from_fn(|scale| ((self.came[scale] + 3.0) / (self.expected[scale] + 3.0)).ln())
    }

    fn client_arrived(&mut self, client: u64, at_ms: u64) {
        let fresh = Client { last_ms: at_ms, count: 0, log_gap: 11.0, log_last: 13.0 };
        let known = self.clients.entry(client).or_insert(fresh);
        self.by_last.remove(&(known.last_ms, client));
        if known.count > 0 {
            let log = (at_ms.saturating_sub(known.last_ms) as f32 / 1_000.0).max(1.0).ln();
            known.log_last = log;
            known.log_gap += if known.count == 1 { 1.0 } else { 0.3 } * (log - known.log_gap);
        }
        known.count = known.count.saturating_add(1);
        known.last_ms = at_ms.max(known.last_ms);
        self.by_last.insert((known.last_ms, client));
        if self.by_last.len() > CLIENTS_MAX
            && let Some((_, silent)) = self.by_last.pop_first()
        {
            self.clients.remove(&silent);
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        // The trees' nodes are at least half full.
        let client = size_of::<(u64, Client)>() + size_of::<(u64, u64)>();
        let groups = 2 * self.groups.len() * size_of::<(u64, Group)>();
        size_of::<Self>() + self.counts.len() * size_of::<u32>() + 2 * self.clients.len() * client + groups
    }
}

impl Host {
    /// Without the clients: they are known again soon.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        self.counts.iter().for_each(|count| count.put(out));
        self.newest.put(out);
        self.log_gap.put(out);
        self.log_gap_variance.put(out);
        self.expected.put(out);
        self.came.put(out);
        self.judged_ms.put(out);
        u16::try_from(self.groups.len()).unwrap_or(u16::MAX).put(out);
        for (id, group) in &self.groups {
            id.put(out);
            group.last_ms.put(out);
            [group.gaps, group.mean, group.variance].put(out);
        }
    }

    /// Of these forms the first has no groups.
    pub(super) fn get(from: &mut Reader<'_>, form: u8) -> Option<Self> {
        let counts = (0..INTERVALS).map(|_| Number::get(from)).collect::<Option<_>>()?;
        let newest = Number::get(from)?;
        let (log_gap, log_gap_variance) = (Number::get(from)?, Number::get(from)?);
        let (expected, came) = (Number::get(from)?, Number::get(from)?);
        let judged_ms = Number::get(from)?;
        let groups = if form == FORM_WITHOUT_GROUPS { BTreeMap::new() } else { groups(from)? };
        let known = Self {
            counts,
            newest,
            log_gap,
            log_gap_variance,
            expected,
            came,
            judged_ms,
            groups,
            ..Self::default()
        };
        Some(known)
    }
}

fn groups(from: &mut Reader<'_>) -> Option<BTreeMap<u64, Group>> {
    let count = u16::get(from)?;
    let one = |from: &mut Reader<'_>| {
        let (id, last_ms) = (u64::get(from)?, u64::get(from)?);
        let [gaps, mean, variance] = <[f32; 3]>::get(from)?;
        Some((id, Group { last_ms, gaps, mean, variance }))
    };
    (0..count).map(|_| one(from)).collect()
}

fn place(interval: u64) -> usize {
    usize::try_from(interval % INTERVALS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn arrival(at_ms: u64, client: u64) -> Arrival {
        Arrival { at: Timestamp::from_ms(at_ms), client: Some(client), busy_ms: None, group: None }
    }

    #[test]
    fn clients_are_remembered_up_to_a_limit_and_the_longest_silent_goes_first() {
        let mut host = Host::default();
        let most = CLIENTS_MAX as u64;
        for client in 0..most {
            host.arrived(arrival(client, client));
        }
        host.arrived(arrival(most, 0));
        host.arrived(arrival(most + 1, most));
        assert_eq!((host.clients.len(), host.by_last.len()), (CLIENTS_MAX, CLIENTS_MAX));
        assert!(host.client(1).is_none());
        assert_eq!(host.client(0).unwrap().count, 2);
    }

    fn ended(host: &mut Host, group: u64, log_gap: f32, at_ms: u64) {
        let by = Arrival { at: Timestamp::from_ms(at_ms), client: None, busy_ms: None, group: Some(group) };
        host.gap_ended(log_gap, by);
    }

    #[test]
    fn a_group_is_drawn_to_its_host_by_how_few_gaps_it_has_had() {
        let mut host = Host::default();
        (0..500).for_each(|at| ended(&mut host, 1, if at % 2 == 0 { 8.0 } else { 8.4 }, at));
        let all = host.prior(None);
        assert_eq!(host.prior(Some(2)), all, "nothing is known of it");
        ended(&mut host, 2, 3.0, 1_000);
        let few = host.prior(Some(2));
        (0..90).for_each(|at| ended(&mut host, 2, 3.0, 1_001 + at));
        let many = host.prior(Some(2));
        assert!((7.0..7.9).contains(&few.mean) && few.variance > all.variance, "{few:?}");
        assert!((3.0..3.6).contains(&many.mean), "{many:?}");
        assert!(host.prior(Some(1)).mean > 7.6, "what others do is not its own");
    }

    #[test]
    fn groups_are_remembered_up_to_a_limit_and_the_longest_silent_goes_first() {
        let mut host = Host::default();
        (0..=GROUPS_MAX as u64).for_each(|group| ended(&mut host, group, 5.0, 1_000 + group));
        assert_eq!(host.groups.len(), GROUPS_MAX);
        assert!(!host.groups.contains_key(&0) && host.groups.contains_key(&1));
    }

    #[test]
    fn arrivals_are_counted_in_complete_intervals_and_forgotten_after_a_week() {
        let mut host = Host::default();
        let start = 1_000 * INTERVAL_MS;
        (0..6).for_each(|ms| host.arrived(arrival(start + ms, 1)));
        // The interval that goes on does not count.
        assert_eq!((host.rate(start + 10, 1), host.rate(start + INTERVAL_MS, 1)), (0.0, 72.0));
        assert_eq!(host.rate(start + 12 * INTERVAL_MS, 12), 6.0);
        host.arrived(arrival(start + INTERVALS as u64 * INTERVAL_MS, 1));
        assert_eq!(host.rate(start + INTERVAL_MS, 1), 0.0);
        // A clock that was set back adds to what is newest.
        host.arrived(arrival(start, 1));
        assert_eq!(host.rate(start + (INTERVALS as u64 + 1) * INTERVAL_MS, 1), 24.0);
    }
}
