//! What is known of one name: what its next gap is forecast from. Small, since every sleeping name has one.

use crate::model::Timestamp;

use super::clock::ODDS_AT_FIRST;
use super::{Arrival, Host};
use crate::forecast::stored::{Number, Reader};

/// Half-lives of the decaying counts of arrivals, in seconds: two minutes to a week.
pub(super) const HALF_LIVES_S: [f32; 7] = [120.0, 600.0, 1_800.0, 7_200.0, 28_800.0, 86_400.0, 604_800.0];

/// Weights of a new gap in the three means of the logarithm of gaps.
const MEANS: [f32; 3] = [0.5, 0.15, 0.03];

/// Bins of the histogram of gaps; each is twice as long as the one before.
pub(super) const BINS: usize = 16;

/// The first bin of the histogram ends here, in seconds.
const FIRST_BIN_S: f32 = 8.0;

/// Weight of a gap in its regularity, once there are many.
const SLOWEST: f32 = 0.05;

/// As many gaps as would draw the regularity to none.
const VAGUE: f32 = 0.2;

/// Sum of squares that a clock is taken to be off by before anything is known of it.
const UNSURE: f32 = 0.05;

/// As many arrivals as would draw a name's error to zero.
const DRAWN_BY: f32 = 2.0;

/// With each gap the histogram and the errors forget so much.
const FORGET: f32 = 0.005;

/// Bands of idle time, in seconds, in which the regression's error about this name is kept apart.
const BAND_ENDS_S: [f32; BANDS - 1] = [120.0, 1_800.0, 14_400.0];
const BANDS: usize = 4;

/// Half-lives of the decaying counts of distinct clients, in seconds.
pub(super) const CLIENT_HALF_LIVES_S: [f32; 2] = [600.0, 3_600.0];

/// See the module. At most 400 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    first_ms: u64,
    last_ms: u64,
    count: u32,
    /// Arrivals, halved every half-life, as of the last one.
    decayed: [f32; HALF_LIVES_S.len()],
    /// Logarithms of the last two gaps, in seconds, newest first.
    pub(super) gaps: [f32; 2],
    /// Means of the logarithm, the fastest first.
    pub(super) means: [f32; 3],
    /// Variance around the middle one.
    pub(super) variance: f32,
    /// Mean and variance of the logarithm of all gaps while they are few, then of the last ones: how regular it is.
    centre: f32,
    spread: f32,
    /// Gaps that ended in each bin, and hours spent in it.
    ended: [f32; BINS],
    hours: [f32; BINS],
    /// Arrivals that the regression expected and those that came, per band of idle time.
    expected: [f32; BANDS],
    came: [f32; BANDS],
    /// Distinct clients, halved every half-life, as of the last arrival.
    clients: [f32; CLIENT_HALF_LIVES_S.len()],
    /// Arrivals per hour of the day.
    by_hour: [u16; 24],
    /// Who asked last.
    client: Option<Asker>,
    /// For how long the last arrival keeps it busy, in ms, if that is told.
    busy_ms: Option<u32>,
    /// Arrivals in a row of the last client.
    run: u16,
    /// So many pieces of the gap were learned from.
    learned: u16,
    /// Arrivals that the regression expected in them.
    foreseen: f32,
    /// Log odds that it is asked for by a clock.
    pub(super) odds: f32,
}

/// What was known of the client that asked last, when it asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) id: u64,
    pub(super) log_count: f32,
    pub(super) log_gap: f32,
    pub(super) log_last: f32,
}

impl Default for Name {
    fn default() -> Self {
        Self {
            first_ms: 0,
            last_ms: 0,
            count: 0,
            decayed: [0.0; HALF_LIVES_S.len()],
            gaps: [0.0; 2],
            means: [0.0; 3],
            variance: 0.0,
            centre: 0.0,
            spread: 0.0,
            ended: [0.0; BINS],
            hours: [0.0; BINS],
            expected: [0.0; BANDS],
            came: [0.0; BANDS],
            clients: [0.0; CLIENT_HALF_LIVES_S.len()],
            by_hour: [0; 24],
            client: None,
            busy_ms: None,
            run: 0,
            learned: 0,
            foreseen: 0.0,
            odds: ODDS_AT_FIRST,
        }
    }
}

impl Name {
    /// For how long it has been idle; `None` before its first arrival.
    pub fn idle_ms(&self, now: Timestamp) -> Option<u64> {
        (self.count > 0).then(|| now.as_ms().saturating_sub(self.last_ms))
    }

    /// When its gap began; `None` before its first arrival.
    pub fn last(&self) -> Option<Timestamp> {
        (self.count > 0).then(|| Timestamp::from_ms(self.last_ms))
    }

    /// How many arrivals it has had.
    pub fn arrivals(&self) -> u32 {
        self.count
    }

    /// The first piece of the gap that was not learned from.
    pub(super) fn learned(&self) -> usize {
        usize::from(self.learned)
    }

    pub(super) fn arrived(&mut self, arrival: Arrival, host: &mut Host) {
        let at_ms = arrival.at.as_ms();
        match self.idle_ms(arrival.at) {
            Some(gap_ms) => {
                self.gap_ended(gap_ms, arrival, host);
                self.clients = self.clients(gap_ms as f32 / 1_000.0);
            }
            None => {
                self.first_ms = at_ms;
                let prior = host.prior(arrival.group);
                self.gaps = [prior.mean; 2];
                self.means = [prior.mean; 3];
                self.variance = prior.variance;
                self.centre = prior.mean;
            }
        }
        self.count = self.count.saturating_add(1);
        self.last_ms = self.last_ms.max(at_ms);
        self.learned = 0;
        self.foreseen = 0.0;
        let hour = &mut self.by_hour[hour_of_day(at_ms)];
        *hour = hour.saturating_add(1);
        self.busy_ms = arrival.busy_ms.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX));
        self.asked_by(arrival.client, host);
    }

    /// Its gap begins at `at`, as long as that is later than it was thought to.
    pub(super) fn in_use(&mut self, at: Timestamp) {
        let Some(later_ms) = self.idle_ms(at).filter(|ms| *ms > 0) else { return };
        let later_s = later_ms as f32 / 1_000.0;
        for (count, half_life) in self.decayed.iter_mut().zip(HALF_LIVES_S) {
            *count *= (-later_s / half_life).exp2();
        }
        self.clients = self.clients(later_s);
        self.last_ms = at.as_ms();
        self.learned = 0;
        self.foreseen = 0.0;
    }

    fn gap_ended(&mut self, gap_ms: u64, by: Arrival, host: &mut Host) {
        let gap_s = gap_ms as f32 / 1_000.0;
        for (count, half_life) in self.decayed.iter_mut().zip(HALF_LIVES_S) {
            *count = *count * (-gap_s / half_life).exp2() + 1.0;
        }
        let log_gap = gap_s.max(1.0).ln();
        host.gap_ended(log_gap, by);
        self.gaps = [log_gap, self.gaps[0]];
        // Before this arrival there were as many gaps as arrivals but one.
        let weight = (1.0 / self.count.max(1) as f32).max(SLOWEST);
        let away = log_gap - self.centre;
        self.centre += weight * away;
        self.spread += weight * (away * (log_gap - self.centre) - self.spread);
        let off = log_gap - self.means[1];
        self.variance += 0.1 * (off * off - self.variance);
        for (mean, weight) in self.means.iter_mut().zip(MEANS) {
            *mean += weight * (log_gap - *mean);
        }
        let mut from_s = 0.0;
        for bin in 0..BINS {
            let until_s = if bin + 1 < BINS { FIRST_BIN_S * (bin as f32).exp2() } else { f32::INFINITY };
            let spent_s = (gap_s.min(until_s) - from_s).max(0.0);
            let ended = gap_s >= from_s && gap_s < until_s;
            self.hours[bin] = self.hours[bin] * (1.0 - FORGET) + spent_s / 3_600.0;
            self.ended[bin] = self.ended[bin] * (1.0 - FORGET) + f32::from(u8::from(ended));
            from_s = until_s;
        }
    }

    fn asked_by(&mut self, client: Option<u64>, host: &Host) {
        if let Some(known) = client.and_then(|id| host.client(id)) {
            for (count, half_life) in self.clients.iter_mut().zip(CLIENT_HALF_LIVES_S) {
                // It was counted when it came before.
                let counted = if known.count > 1 { (-known.log_last.exp() / half_life).exp2() } else { 0.0 };
                *count = (*count - counted).max(0.0) + 1.0;
            }
        }
        let before = self.client.map(|asker| asker.id);
        self.run = if client.is_some() && client == before { self.run.saturating_add(1) } else { 0 };
        self.client = client.map(|id| {
            let known = host.client(id);
            Asker {
                id,
                log_count: known.map_or(0.0, |known| (known.count as f32).ln_1p()),
                log_gap: known.map_or(11.0, |known| known.log_gap),
                log_last: known.map_or(13.0, |known| known.log_last),
            }
        });
    }

    /// Notes what the regression expected of one piece of a gap.
    pub(super) fn judged(&mut self, index: usize, idle_s: f32, expected: f32, came: bool) {
        self.learned = u16::try_from(index + 1).unwrap_or(u16::MAX);
        self.foreseen += expected;
        let band = band(idle_s);
        self.expected[band] += expected.min(EXPECTED_MAX);
        self.came[band] += f32::from(u8::from(came));
        if came {
            self.expected.iter_mut().chain(&mut self.came).for_each(|count| *count *= 1.0 - FORGET);
        }
    }

    /// Logarithm of how many times more often it came than expected in the band of this idle time, drawn to zero.
    pub(super) fn misjudged(&self, idle_s: f32) -> f32 {
        let band = band(idle_s);
        ((self.came[band] + DRAWN_BY) / (self.expected[band] + DRAWN_BY)).ln()
    }

    /// The decaying counts of distinct clients after this idle time.
    pub(super) fn clients(&self, idle_s: f32) -> [f32; CLIENT_HALF_LIVES_S.len()] {
        let mut clients = self.clients;
        for (count, half_life) in clients.iter_mut().zip(CLIENT_HALF_LIVES_S) {
            *count *= (-idle_s / half_life).exp2();
        }
        clients
    }

    /// When it began to be idle, in ms since 1970.
    pub(super) fn last_ms(&self) -> u64 {
        self.last_ms
    }

    /// Since when it is known, in ms since 1970.
    pub(super) fn first_ms(&self) -> u64 {
        self.first_ms
    }

    /// Arrivals per hour by the counts with each half-life, after this idle time.
    pub(super) fn rates(&self, idle_s: f32) -> [f32; HALF_LIVES_S.len()] {
        let mut rates = self.decayed;
        for (rate, half_life) in rates.iter_mut().zip(HALF_LIVES_S) {
            *rate *= (-idle_s / half_life).exp2() * 3_600.0 / half_life;
        }
        rates
    }

    /// Gaps that ended in the bin of this idle time, and hours that were spent in it.
    pub(super) fn own(&self, idle_s: f32) -> (f32, f32) {
        let bin = (0..BINS - 1).find(|bin| idle_s < FIRST_BIN_S * (*bin as f32).exp2()).unwrap_or(BINS - 1);
        (self.ended[bin], self.hours[bin])
    }

    /// Arrivals in the hour of the day of `at_ms` so far, and how often that hour has begun since the first one.
    pub(super) fn at_hour(&self, at_ms: u64) -> (f32, f32) {
        let (first, now) = (self.first_ms / HOUR_MS, at_ms / HOUR_MS);
        let hour = now % 24;
        let upto = |last: u64| (last + 24 - hour) / 24;
        let times = upto(now).saturating_sub(if first == 0 { 0 } else { upto(first - 1) });
        (f32::from(self.by_hour[hour_of_day(at_ms)]), times as f32)
    }

    /// How regular it is: centre of the logarithm of its gaps, in seconds, and standard deviation, drawn to one.
    pub(super) fn regularity(&self) -> (f32, f32) {
        let gaps = self.count.saturating_sub(1).min(20) as f32;
        let variance = (self.spread * gaps + VAGUE) / (gaps + VAGUE);
        (self.centre, if gaps > 0.0 { variance.max(1e-4).sqrt() } else { 1.0 })
    }

    /// The probability of no arrival in the pieces of the gap that were learned from, by the regression.
    pub(super) fn unasked(&self) -> f32 {
        (-self.foreseen).exp()
    }

    /// Centre and standard deviation of the logarithm of its gaps, in seconds, as far as they are alike; `None` with fewer
    /// than two.
    pub(super) fn beat(&self) -> Option<(f32, f32)> {
        let gaps = self.count.saturating_sub(1).min(20) as f32;
        (gaps >= 2.0).then(|| (self.centre, ((self.spread * gaps + UNSURE) / (gaps + 1.0)).max(1e-5).sqrt()))
    }

    /// Who asked last, and how often in a row before that.
    pub(super) fn asker(&self) -> Option<(Asker, u16)> {
        self.client.map(|client| (client, self.run))
    }

    /// For how long the last arrival keeps it busy, in ms, if that was told.
    pub(super) fn busy_ms(&self) -> Option<u64> {
        self.busy_ms.map(u64::from)
    }
}

impl Number for Name {
    fn put(self, out: &mut Vec<u8>) {
        self.first_ms.put(out);
        self.last_ms.put(out);
        self.count.put(out);
        self.decayed.put(out);
        self.gaps.put(out);
        self.means.put(out);
        self.variance.put(out);
        self.centre.put(out);
        self.spread.put(out);
        self.ended.put(out);
        self.hours.put(out);
        self.expected.put(out);
        self.came.put(out);
        self.clients.put(out);
        self.by_hour.put(out);
        self.client.put(out);
        self.busy_ms.put(out);
        self.run.put(out);
        self.learned.put(out);
        self.foreseen.put(out);
        self.odds.put(out);
    }

    fn get(from: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            first_ms: Number::get(from)?,
            last_ms: Number::get(from)?,
            count: Number::get(from)?,
            decayed: Number::get(from)?,
            gaps: Number::get(from)?,
            means: Number::get(from)?,
            variance: Number::get(from)?,
            centre: Number::get(from)?,
            spread: Number::get(from)?,
            ended: Number::get(from)?,
            hours: Number::get(from)?,
            expected: Number::get(from)?,
            came: Number::get(from)?,
            clients: Number::get(from)?,
            by_hour: Number::get(from)?,
            client: Number::get(from)?,
            busy_ms: Number::get(from)?,
            run: Number::get(from)?,
            learned: Number::get(from)?,
            foreseen: Number::get(from)?,
            odds: Number::get(from)?,
        })
    }
}

const HOUR_MS: u64 = 3_600_000;

/// One piece counts for no more than this.
const EXPECTED_MAX: f32 = 4.0;

fn band(idle_s: f32) -> usize {
    BAND_ENDS_S.iter().position(|end_s| idle_s < *end_s).unwrap_or(BANDS - 1)
}

fn hour_of_day(at_ms: u64) -> usize {
    usize::try_from(at_ms / HOUR_MS % 24).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_name_is_small() {
        assert!(size_of::<Name>() <= 400, "{}", size_of::<Name>());
    }

    #[test]
    fn an_hour_of_the_day_counts_how_often_it_was_there() {
        let mut name = Name::default();
        let mut host = Host::default();
        let at = |hours: u64| Arrival {
            at: Timestamp::from_ms(hours * HOUR_MS + 1),
            client: None,
            busy_ms: None,
            group: None,
        };
        for day in 10..14 {
            name.arrived(at(day * 24 + 9), &mut host);
        }
        assert_eq!(name.at_hour((14 * 24 + 9) * HOUR_MS), (4.0, 5.0));
        assert_eq!(name.at_hour((14 * 24 + 8) * HOUR_MS), (0.0, 4.0));
        assert_eq!(name.at_hour((13 * 24 + 10) * HOUR_MS), (0.0, 4.0));
    }
}
