//! How much a replicable service is used, and how many instances that takes.
//!
//! What is counted is what is *in use* at a time: open connections, clients that wait, sessions of datagrams. By Little's
//! law (Little 1961) its mean is arrival rate × execution time, so that neither has to be known by itself. The mean over a
//! stable window decides; a shorter panic window does as long as it says that the instances which are there carry much
//! less than they are asked for. Both windows, the limit on growth and the delayed way down are those of Knative's
//! autoscaler (`pkg/autoscaler/scaling/autoscaler.go`); a margin on the way down is added to them.

use std::collections::VecDeque;

use super::service::{ForecastMode, Policy};
use super::time::Timestamp;

/// Longest window, and longest delay on the way down, in milliseconds: one value is kept for each second.
pub const WINDOW_MS_MAX: u64 = 600_000;

/// Fewer instances are enough only if they would be used by no more than this share of what they are to be used by.
const DOWN_SHARE: f64 = 0.9;

/// How many instances are wanted, and the numbers that say so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    /// Instances, 1 at least.
    pub instances: u32,
    /// Mean of what was in use over the stable window.
    pub stable: f64,
    /// The same over the panic window.
    pub panic: f64,
    /// What one instance is to be used by.
    pub target: f64,
    /// Whether the panic window decides.
    pub panics: bool,
    /// Instances that are wanted by forecast alone; 0 if nothing is foreseen. In the mode `only` they are not heeded.
    pub foreseen: u32,
    /// How much of that forecast is what its group does, in per cent; the rest is said by its own history.
    pub of_group_percent: u8,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            instances: 1,
            stable: 0.0,
            panic: 0.0,
            target: 0.0,
            panics: false,
            foreseen: 0,
            of_group_percent: 0,
        }
    }
}

/// What is foreseen to be in use within a span of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Foreseen {
    /// From then on.
    pub from: Timestamp,
    /// Before then.
    pub until: Timestamp,
    /// In use at a time, as a high quantile.
    pub in_use: f64,
    /// How much of it is what the service's group does, in per cent.
    pub of_group_percent: u8,
}

/// What a service that may have several instances was used by of late.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// In use in each second, the newest last.
    seconds: VecDeque<u32>,
    noted: Timestamp,
    /// While it panics: until when, and the most instances that were wanted meanwhile.
    panic: Option<(Timestamp, u32)>,
    /// What was wanted of late, as far as it is more than what was wanted later.
    recent: VecDeque<(Timestamp, u32)>,
    foreseen: Vec<Foreseen>,
    wanted: Wanted,
}

impl Load {
    /// How many instances are wanted.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Takes in what is foreseen, in place of what was before.
    pub fn foresee(&mut self, foreseen: Vec<Foreseen>) {
        self.foreseen = foreseen;
    }

    /// Takes in that `in_use` are in use at `now`, with `serving` instances.
    pub fn note(&mut self, in_use: u32, serving: u32, policy: &Policy, now: Timestamp) {
        self.keep(in_use, policy, now);
        let target = f64::from(policy.capacity) * f64::from(policy.target_percent) / 100.0;
        let (stable, panic) = (self.mean(policy.stable_ms), self.mean(policy.panic_ms));
        let serving = serving.max(1);
        let within = self.wanted.instances.max(serving);
        let alarm = needed(panic, target);
        let over =
            u64::from(alarm) * 100 >= u64::from(serving) * u64::from(policy.panic_percent) && alarm > serving;
        let until = now.plus_ms(policy.stable_ms);
        self.panic = match self.panic {
            Some((_, most)) if over => Some((until, most.max(alarm))),
            Some((ends, most)) => (now < ends).then_some((ends.min(until), most)),
            None => over.then_some((until, alarm)),
        };
        let live = match self.panic {
            Some((_, most)) => most.max(alarm),
            None => {
                let up = needed(stable, target);
                // So that what is used by just about as much as it is to be does not go up and down.
                if up < within { needed(stable, target * DOWN_SHARE).min(within) } else { up }
            }
        };
        let at_once = (u64::from(serving) * u64::from(policy.scale_up_percent_max)).div_ceil(100);
        let at_once = u32::try_from(at_once).unwrap_or(u32::MAX).max(serving + 1);
        let foreseen = self.foreseen.iter().filter(|span| (span.from..span.until).contains(&now));
        let foreseen = foreseen.map(|span| (needed(span.in_use, target), span.of_group_percent));
        let (foreseen, of_group_percent) = foreseen.max().unwrap_or_default();
        let floor = if policy.forecast == ForecastMode::On { foreseen } else { 1 };
        let desired = live.min(at_once).max(floor).clamp(1, policy.instances_max.max(1));
        let instances = self.delayed(desired, policy, now);
        self.wanted = Wanted {
            instances,
            stable,
            panic,
            target,
            panics: self.panic.is_some(),
            foreseen,
            of_group_percent,
        };
    }

    /// Notes a value for each second since the last one.
    fn keep(&mut self, in_use: u32, policy: &Policy, now: Timestamp) {
        let most = usize::try_from(policy.stable_ms.min(WINDOW_MS_MAX) / 1_000).unwrap_or(usize::MAX).max(1);
        // A clock that jumped back goes on from where it is.
        let seconds = if now < self.noted { 1 } else { now.as_ms() / 1_000 - self.noted.as_ms() / 1_000 };
        if self.seconds.is_empty() || seconds > 0 {
            // What nobody looked at was as it is now.
            let missed = usize::try_from(seconds).unwrap_or(usize::MAX).clamp(1, most);
            let missed = if self.seconds.is_empty() { 1 } else { missed };
            self.seconds.extend(std::iter::repeat_n(in_use, missed));
            self.noted = now;
        } else if let Some(last) = self.seconds.back_mut() {
            *last = (*last).max(in_use);
        }
        let surplus = self.seconds.len().saturating_sub(most);
        self.seconds.drain(..surplus);
    }

    /// Mean over the last `window_ms`, or over as much of it as was seen.
    fn mean(&self, window_ms: u64) -> f64 {
        let window = usize::try_from(window_ms / 1_000).unwrap_or(usize::MAX).max(1);
        let seen = self.seconds.len().min(window).max(1);
        let sum: u64 = self.seconds.iter().rev().take(seen).map(|in_use| u64::from(*in_use)).sum();
        sum as f64 / seen as f64
    }

    /// The most that was desired of late: on the way down everything waits, on the way up nothing.
    fn delayed(&mut self, desired: u32, policy: &Policy, now: Timestamp) -> u32 {
        while self.recent.back().is_some_and(|(_, earlier)| *earlier <= desired) {
            self.recent.pop_back();
        }
        self.recent.push_back((now, desired));
        while let Some((at, _)) = self.recent.front().copied()
            && (at > now || now.ms_since(at) > policy.scale_down_delay_ms)
            && self.recent.len() > 1
        {
            self.recent.pop_front();
        }
        self.recent.front().map_or(desired, |(_, most)| (*most).min(policy.instances_max.max(1)))
    }
}

/// Instances of which each is used by `target`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within the range")]
fn needed(in_use: f64, target: f64) -> u32 {
    // What was rounded is not one more instance.
    let needed = (in_use / target.max(f64::MIN_POSITIVE) - 1e-9).ceil();
    if needed.is_finite() && needed >= 1.0 { needed.min(f64::from(u32::MAX)) as u32 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            instances_max: 10,
            capacity: 100,
            target_percent: 70,
            stable_ms: 60_000,
            panic_ms: 6_000,
            panic_percent: 200,
            scale_down_delay_ms: 30_000,
            scale_up_percent_max: 1_000,
            ..Policy::default()
        }
    }

    /// Each second `in_use(second)`; whatever is wanted serves a second later. What was wanted in each second.
    fn run(policy: &Policy, seconds: u64, in_use: impl Fn(u64) -> u32) -> Vec<u32> {
        let (mut load, mut serving) = (Load::default(), 1);
        (0..seconds)
            .map(|second| {
                load.note(in_use(second), serving, policy, Timestamp::from_ms(1_000_000 + second * 1_000));
                serving = load.wanted().instances;
                serving
            })
            .collect()
    }

    #[test]
    fn as_many_as_carry_what_is_in_use_at_their_target() {
        for (in_use, instances) in [(0, 1), (1, 1), (70, 1), (71, 2), (140, 2), (350, 5), (5_000, 10)] {
            assert_eq!(run(&policy(), 200, |_| in_use).last(), Some(&instances), "{in_use} in use");
        }
    }

    #[test]
    fn a_flash_crowd_is_met_within_the_panic_window_and_not_after_the_stable_one() {
        let crowd = |second| if second < 100 { 50 } else { 600 };
        let wanted = run(&policy(), 200, crowd);
        assert_eq!(wanted[99], 1);
        let met = wanted.iter().position(|instances| *instances >= 9).unwrap();
        assert!(met <= 106, "only in second {met}");
        let patient = Policy { panic_percent: 1_000_000, ..policy() };
        let late = run(&patient, 200, crowd).iter().position(|instances| *instances >= 9).unwrap();
        assert!(late > 140, "without panic in second {late}");
    }

    #[test]
    fn on_the_way_down_the_stable_window_and_the_delay_pass() {
        let wanted = run(&policy(), 300, |second| if second < 100 { 350 } else { 10 });
        assert_eq!(wanted[100..130], [5; 30], "{:?}", &wanted[100..]);
        assert_eq!(wanted[299], 1);
        let falls = wanted[100..].windows(2).filter(|pair| pair[1] > pair[0]).count();
        assert_eq!(falls, 0, "it never goes up on its way down");
    }

    #[test]
    fn what_swings_around_a_threshold_changes_nothing_after_the_first_time() {
        // Either side of one and of two instances, by 10 %, with periods from 2 s to 2 min.
        for period in [2, 10, 40, 120] {
            let swing = |second: u64| if second % period < period / 2 { 64 } else { 77 };
            let wanted = run(&policy(), 1_200, swing);
            let changes = wanted.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(changes <= 1, "{changes} changes with a period of {period} s");
        }
    }

    #[test]
    fn growth_has_a_limit_at_a_time() {
        let careful = Policy { scale_up_percent_max: 200, ..policy() };
        let wanted = run(&careful, 20, |_| 5_000);
        assert_eq!(wanted[..5], [2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_forecast_is_a_floor_for_as_long_as_it_says() {
        let start = Timestamp::from_ms(1_000_000);
        let (mut load, mut only) = (Load::default(), Load::default());
        let on = Policy { forecast: ForecastMode::On, ..policy() };
        let span = |from, until, in_use| Foreseen {
            from: start.plus_ms(from),
            until: start.plus_ms(until),
            in_use,
            of_group_percent: 0,
        };
        for load in [&mut load, &mut only] {
            load.foresee(vec![span(10_000, 20_000, 200.0), span(15_000, 20_000, 300.0)]);
        }
        let mut wanted = Vec::new();
        for second in [0, 9, 10, 14, 15, 19, 20, 49, 51] {
            load.note(5, 1, &on, start.plus_ms(second * 1_000));
            wanted.push((second, load.wanted().instances));
            only.note(5, 1, &policy(), start.plus_ms(second * 1_000));
            assert_eq!((only.wanted().instances, only.wanted().foreseen), (1, load.wanted().foreseen));
        }
        let expected = [(0, 1), (9, 1), (10, 3), (14, 3), (15, 5), (19, 5), (20, 5), (49, 5), (51, 1)];
        assert_eq!(wanted, expected);
    }

    #[test]
    fn what_is_foreseen_by_its_group_is_said_to_be() {
        let start = Timestamp::from_ms(1_000_000);
        let on = Policy { forecast: ForecastMode::On, ..policy() };
        let why = |of_group_percent| {
            let mut load = Load::default();
            let until = start.plus_ms(9_000);
            load.foresee(vec![Foreseen { from: start, until, in_use: 200.0, of_group_percent }]);
            load.note(5, 1, &on, start);
            crate::decide::Reason::from(load.wanted()).to_string()
        };
        assert!(why(0).contains("a forecast says 3, with"), "{}", why(0));
        assert!(why(40).contains("says 3 (40 % of it as services of its group do), with"), "{}", why(40));
        assert!(why(100).contains("its own history is too short"), "{}", why(100));
    }

    #[test]
    fn a_clock_that_jumps_back_or_far_ahead_does_no_harm() {
        let mut load = Load::default();
        for ms in [5_000_000, 4_000_000, 4_001_000, 900_000_000, 0, u64::MAX / 2] {
            load.note(100, 2, &policy(), Timestamp::from_ms(ms));
            assert!((1..=10).contains(&load.wanted().instances));
            assert!(load.seconds.len() <= 60);
        }
    }
}
