//! What a hazard depends on, as numbers of about the size of one: logarithms of rates and times, and hinges of them.

use std::f32::consts::TAU;

use super::host::Host;
use super::name::Name;

/// How many features there are.
pub const FEATURES: usize = 95;

/// The features at one moment. The first is one.
pub type Features = [f32; FEATURES];

/// Weights before anything was learned: a hazard that falls with idle time as 1/t does, as it would for gaps of any
/// order of magnitude, of one arrival per hour after one hour; and where gaps are regular their own hazard.
pub(super) const PRIOR: [(usize, f64); 2] = [(1, -2.0), (REGULAR_HAZARD, 0.4)];

/// The place of the hazard of a regular name's own gaps, weighed by how regular it is.
const REGULAR_HAZARD: usize = 83;

/// Idle times, in seconds, at which the hazard may bend.
const BENDS_S: [f32; 9] = [15.0, 40.0, 70.0, 120.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0];

/// Counts of the host's arrivals are looked at over so many intervals of five minutes.
const BUSY_OVER: [u64; 5] = [1, 3, 12, 36, 144];

/// The features of `name` when it has been idle for `idle_ms`; `None` before its first arrival.
pub(super) fn at(name: &Name, host: &Host, idle_ms: u64) -> Option<Features> {
    (name.arrivals() > 0).then(|| filled(name, host, idle_ms).features)
}

fn filled(name: &Name, host: &Host, idle_ms: u64) -> Row {
    let mut row = Row { features: [0.0; FEATURES], next: 0 };
    let idle_s = idle_ms as f32 / 1_000.0;
    let at_ms = name.last_ms().saturating_add(idle_ms);
    let log_idle = (idle_s + 5.0).ln();
    row.push(1.0);
    of_idle_time(&mut row, log_idle);
    of_counts(&mut row, name, idle_s);
    of_gaps(&mut row, name, log_idle, idle_s, at_ms);
    of_calendar(&mut row, name, log_idle, at_ms);
    for intervals in BUSY_OVER {
        row.push((host.rate(at_ms, intervals) + 1.0).ln() / 2.0 - 1.0);
    }
    // The same time of yesterday and of a week ago, and how it went on.
    for ago_ms in [86_400_000, 604_800_000 - 3_600_000] {
        row.push((host.rate(at_ms.saturating_sub(ago_ms) + 1_800_000, 12) + 1.0).ln() / 2.0 - 1.0);
    }
    of_client(&mut row, name, log_idle);
    of_work(&mut row, name, log_idle, idle_s);
    of_errors(&mut row, name, host, log_idle, idle_s);
    of_regularity(&mut row, name, idle_s);
    of_both(&mut row, name, host, (log_idle, idle_s, at_ms));
    row
}

fn of_idle_time(row: &mut Row, log_idle: f32) {
    row.push((log_idle - 3_600_f32.ln()) / 2.0);
    for bend_s in BENDS_S {
        row.push((log_idle - bend_s.ln()).max(0.0));
    }
}

fn of_counts(row: &mut Row, name: &Name, idle_s: f32) {
    let rates = name.rates(idle_s).map(|per_hour| (per_hour + 1e-3).ln());
    rates.iter().for_each(|log_rate| row.push(log_rate / 3.0));
    for slow in [2, 4, 6] {
        row.push(rates[slow].max(0.0));
    }
}

fn of_gaps(row: &mut Row, name: &Name, log_idle: f32, idle_s: f32, at_ms: u64) {
    let usual = [name.gaps[0], name.gaps[1], name.means[0], name.means[1], name.means[2]];
    usual.iter().for_each(|log_gap| row.push((log_gap - 7.0) / 2.0));
    for log_gap in [name.means[0], name.means[1], name.means[2], name.gaps[0]] {
        row.push((log_idle - log_gap).clamp(0.0, 3.0));
        row.push((log_idle - log_gap).clamp(-3.0, 0.0));
    }
    row.push(name.variance / 4.0 - 1.0);
    row.push((name.variance / 4.0 - 1.0) * (log_idle - 7.0) / 2.0);
    let (ended, hours) = name.own(idle_s);
    let own = ((ended + 1e-3) / (hours + 1.0) + 1e-3).ln().clamp(-4.0, 6.0) / 2.0;
    row.push(own);
    row.push(own * hours.ln_1p().min(3.0) / 2.0);
    row.push((name.arrivals() as f32).ln_1p().min(5.0) / 2.0 - 2.0);
    row.push((at_ms.saturating_sub(name.first_ms()) as f32 / 1_000.0).ln_1p() / 2.0 - 6.0);
}

fn of_calendar(row: &mut Row, name: &Name, log_idle: f32, at_ms: u64) {
    let day = (at_ms % 86_400_000) as f32 / 86_400_000.0;
    for harmonic in [1.0, 2.0, 3.0] {
        row.push((day * TAU * harmonic).sin());
        row.push((day * TAU * harmonic).cos());
    }
    row.push((day * TAU).sin() * (log_idle - 7.0) / 2.0);
    row.push((day * TAU).cos() * (log_idle - 7.0) / 2.0);
    // 1970 began on a Thursday.
    row.push(f32::from(u8::from((at_ms / 86_400_000 + 3) % 7 >= 5)));
    let (arrivals, times) = name.at_hour(at_ms);
    row.push(((arrivals + 0.2) / (times + 1.0)).ln() / 2.0);
}

fn of_client(row: &mut Row, name: &Name, log_idle: f32) {
    let Some((client, run)) = name.asker() else {
        return row.skip(13);
    };
    let (soon, late) = ((log_idle - 4.0).clamp(-3.0, 0.0), (log_idle - 4.0).clamp(0.0, 3.0));
    let run = f32::from(run.min(20)).ln_1p();
    for x in [client.log_count / 2.0, client.log_gap / 2.0 - 3.0, client.log_last / 3.0 - 3.0, run] {
        row.push(x);
        row.push(x * soon);
        row.push(x * late);
    }
    row.push(1.0);
}

fn of_work(row: &mut Row, name: &Name, log_idle: f32, idle_s: f32) {
    let Some(busy_ms) = name.busy_ms() else {
        return row.skip(4);
    };
    // Before the work is done nobody knows how long it will take.
    let since_s = idle_s - busy_ms as f32 / 1_000.0;
    if since_s < 0.0 {
        row.push(1.0);
        row.push((log_idle - 4.0) / 2.0);
        row.skip(2);
    } else {
        row.skip(2);
        row.push((3.0 - since_s.ln_1p()).max(0.0));
        row.push((4.5 - since_s.ln_1p()).max(0.0));
    }
}

fn of_errors(row: &mut Row, name: &Name, host: &Host, log_idle: f32, idle_s: f32) {
    row.push(name.misjudged(idle_s));
    row.push(name.misjudged(idle_s) * (log_idle - 6.0) / 2.0);
    for wrong in host.misjudged() {
        row.push(wrong);
        row.push(wrong * (log_idle - 6.0) / 2.0);
    }
}

/// The hazard of a log-logistic gap of the name's own centre and spread: near none before the centre, high after it, the
/// more the more regular it is; and how long it is overdue.
fn of_regularity(row: &mut Row, name: &Name, idle_s: f32) {
    let (centre, deviation) = name.regularity();
    // The logistic distribution's scale is √3/π of its standard deviation.
    let slope = 1.814 / deviation;
    let log_idle = (idle_s + 1.0).ln();
    let due = slope * (log_idle - centre);
    let log_share = if due > 0.0 { -(-due).exp().ln_1p() } else { due - due.exp().ln_1p() };
    let log_hazard = (slope.ln() - log_idle + log_share + 3_600_f32.ln()).clamp(-7.0, 7.0) / 3.0;
    let regular = -deviation.ln().clamp(-3.0, 0.0);
    row.push(log_hazard);
    debug_assert_eq!(row.next, REGULAR_HAZARD);
    row.push(log_hazard * regular);
    row.push(regular);
    row.push(((log_idle - centre) / deviation - 2.0).clamp(0.0, 6.0) / 2.0 * regular);
}

/// Products: who is busy in the short run goes on being asked for soon; in the long run what counts is the day.
fn of_both(row: &mut Row, name: &Name, host: &Host, (log_idle, idle_s, at_ms): (f32, f32, u64)) {
    for count in name.clients(idle_s) {
        row.push((count + 0.02).ln() / 2.0 + 1.0);
        row.push((count + 0.02).ln().max(0.0));
    }
    let rates = name.rates(idle_s).map(|per_hour| (per_hour + 1e-3).ln() / 3.0);
    let late = (log_idle - 6.0) / 2.0;
    row.push(rates[5] * late);
    row.push(rates[3] * late);
    row.push((name.variance / 4.0 - 1.0) * rates[5]);
    row.push((host.rate(at_ms, 12) + 1.0).ln() / 2.0 * late);
    row.push(rates[1] * rates[6]);
}

/// Features as they are filled in.
struct Row {
    features: Features,
    next: usize,
}

impl Row {
    fn push(&mut self, x: f32) {
        if let Some(place) = self.features.get_mut(self.next) {
            *place = x;
        }
        self.next += 1;
    }

    fn skip(&mut self, count: usize) {
        self.next += count;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Arrival, Name};
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn every_feature_has_its_place_and_is_finite() {
        for (client, busy_ms) in [(None, None), (Some(1), Some(30_000))] {
            let (mut name, mut host) = (Name::default(), Host::default());
            assert_eq!(at(&name, &host, 0), None);
            for ms in [0, 0, 5, 1_700_000_000_000, u64::MAX] {
                let arrival = Arrival { at: Timestamp::from_ms(ms), client, busy_ms, group: None };
                host.arrived(arrival);
                name.arrived(arrival, &mut host);
                for idle_ms in [0, 29_999, 30_000, 86_400_000, u64::MAX] {
                    let features = at(&name, &host, idle_ms).unwrap();
                    assert!(features.iter().all(|x| x.is_finite()), "{ms} {idle_ms} {features:?}");
                }
            }
        }
        let (mut name, mut host) = (Name::default(), Host::default());
        for (client, busy_ms) in [(None, None), (Some(1), Some(2_000))] {
            name.arrived(Arrival { at: Timestamp::from_ms(0), client, busy_ms, group: None }, &mut host);
            for idle_ms in [1_000, 3_000] {
                assert_eq!(filled(&name, &host, idle_ms).next, FEATURES);
            }
        }
    }
}
