//! What the names of a group have in common: what a name that is new, or has little history, is taken to do.
//!
//! Each member's values are taken apart into its level (their mean), the group's shape (how much of the level falls into
//! each hour of the week), and ratios (what is left). A new name has the group's shape, and may have any member's level
//! with that member's ratios. Its own level moves these by its credibility, d / (d + k) after d days (Bühlmann,
//! "Experience rating and credibility", ASTIN Bulletin 4, 1967; empirical Bayes): k is the variance of a name's days about
//! its level over the variance of levels in the group. By the same measure its own models take the group's place.

use super::{Fault, Quantiles, Series, asked_well};
use crate::forecast::stored::{Damaged, Number, Reader, opened, sealed};

/// Most members that are remembered of a group.
pub const MEMBERS_MAX: usize = 32;
/// Fewer members say nothing of how names differ.
pub const MEMBERS_MIN: usize = 2;
/// A member has been seen for so many days at least.
const MEMBER_DAYS_MIN: f64 = 2.0;
/// Hours of a week.
const SLOTS: usize = 168;
/// Ratios are kept at so many quantiles, evenly spaced.
const RATIOS: usize = 41;
/// An hour of the day is drawn to no shape, and one of the week to that of the day, as if it had been seen so often.
const SHAPE_DRAWN_BY: f64 = 3.0;
/// After so many days a name's own models say half of its forecast.
const OWN_HALF_DAYS: f64 = 2.0;
/// From so many days on they say all of it.
const OWN_ALL_DAYS: f64 = 14.0;
/// The form of these bytes.
const FORM: u8 = 1;
const DAY_S: f64 = 86_400.0;

/// What a name of the group is taken to do before it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    step_s: u32,
    /// Share of the level in each hour of the week since the Unix epoch (a Thursday), about 1.
    shape: Vec<f32>,
    members: Vec<Member>,
    /// Days after which a name's own level counts as much as the group's.
    half_days: f32,
}

/// One of the names that it was made of.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Member {
    /// Mean of its values.
    level: f32,
    /// Quantiles of its values over level × shape, at `i / (RATIOS − 1)`.
    ratios: [f32; RATIOS],
}

/// A forecast of a name, and how much of it is the group's.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// What is forecast.
    pub quantiles: Quantiles,
    /// The group's share, 0 to 1; the rest is said by models of the name itself.
    pub of_group: f64,
}

impl Group {
    /// Of the histories of names of the group, all of the same step, those that say most first. Histories that are too short,
    /// without any value above zero, or with negative values say nothing.
    ///
    /// # Errors
    /// [`Fault::NoGroup`] with fewer than [`MEMBERS_MIN`] that say something, or of several steps.
    pub fn of(histories: &[Series]) -> Result<Self, Fault> {
        let told: Vec<(&Series, f64)> = histories
            .iter()
            .filter_map(|series| Some((series, level_of(series)?)))
            .take(MEMBERS_MAX)
            .collect();
        let step = told.first().map_or(0, |(series, _)| series.step_s);
        let step_s = u32::try_from(step).unwrap_or(0);
        if told.len() < MEMBERS_MIN || step_s == 0 || told.iter().any(|(series, _)| series.step_s != step) {
            return Err(Fault::NoGroup { members: told.len() });
        }
        let shape = shape_of(&told);
        let members = told.iter().map(|(series, level)| Member::of(series, *level, &shape)).collect();
        Ok(Self { step_s, half_days: rounded(half_days(&told, &shape)), shape, members })
    }

    /// How many names it was made of.
    #[must_use]
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Length of a step, in seconds.
    #[must_use]
    pub fn step_s(&self) -> i64 {
        self.step_s.into()
    }

    /// What comes after `history`, which may be empty: of a name that nothing is known of.
    ///
    /// # Errors
    /// Levels or a horizon out of range, a history of another step.
    pub fn forecast(&self, history: &Series, horizon: usize, levels: &[f64]) -> Result<Quantiles, Fault> {
        asked_well(horizon, levels)?;
        if history.step_s != self.step_s() {
            return Err(Fault::Unfit { why: "its group has another step" });
        }
        let spread = self.spread(history);
        let after = i64::try_from(history.values.len()).unwrap_or(i64::MAX);
        let first = history.first.saturating_add(after);
        let shape: Vec<f64> =
            (first..).take(horizon).map(|step| f64::from(self.shape[slot(step, history.step_s)])).collect();
        let at = |level: f64| {
            let value = quantile(&spread, level);
            shape.iter().map(move |share| share * value)
        };
        Quantiles::new(levels, at(0.5).collect(), levels.iter().flat_map(|level| at(*level)).collect())
    }

    /// What is forecast of a name with this history: by its group, and by `own`, what its own models say, the more the longer
    /// it was seen.
    ///
    /// # Errors
    /// As [`Group::forecast`].
    pub fn join(
        &self,
        history: &Series,
        horizon: usize,
        levels: &[f64],
        own: Option<Quantiles>,
    ) -> Result<Joined, Fault> {
        let of_group = if own.is_some() { share_of_group(days_of(history)) } else { 1.0 };
        let own = match own {
            Some(own) if of_group <= 0.0 => return Ok(Joined { quantiles: own, of_group }),
            Some(own) if own.levels == levels && own.horizon == horizon => own,
            Some(_) => return Err(Fault::Levels),
            None => {
                return Ok(Joined { quantiles: self.forecast(history, horizon, levels)?, of_group });
            }
        };
        let group = self.forecast(history, horizon, levels)?;
        let mean = |own: &[f64], group: &[f64]| {
            own.iter().zip(group).map(|(own, group)| (1.0 - of_group) * own + of_group * group).collect()
        };
        let (point, values) = (mean(&own.point, &group.point), mean(&own.values, &group.values));
        Ok(Joined { quantiles: Quantiles::new(levels, point, values)?, of_group })
    }

    /// Values over the shape that a name with this history may have, ascending, each with its weight; weights sum to 1.
    fn spread(&self, history: &Series) -> Vec<(f64, f64)> {
        let days = days_of(history);
        let own = self.own_level(history);
        let credibility = days / (days + f64::from(self.half_days));
        let odds = days / f64::from(self.half_days);
        let logs: Vec<f64> = self.members.iter().map(|member| f64::from(member.level).ln()).collect();
        let variance = variance(&logs).max(1e-2);
        let weights: Vec<f64> = logs
            .iter()
            .map(|log| {
                // Members of about its level are more like it. One that nobody asked for is like the least of them.
                let away = if own > 0.0 { log - own.ln() } else { 0.0 };
                (-0.5 * odds.min(1e3) * away * away / variance).exp().max(1e-6)
            })
            .collect();
        let sum: f64 = weights.iter().sum();
        let mut spread = Vec::with_capacity(self.members.len() * RATIOS);
        for (member, weight) in self.members.iter().zip(weights) {
            let level = credibility * own + (1.0 - credibility) * f64::from(member.level);
            let each = weight / sum / RATIOS as f64;
            spread.extend(member.ratios.iter().map(|ratio| (level * f64::from(*ratio), each)));
        }
        spread.sort_by(|one, other| one.0.total_cmp(&other.0));
        spread
    }

    /// The level that a history of its own speaks for; 0 of nothing.
    fn own_level(&self, history: &Series) -> f64 {
        let shares = (history.first..).map(|step| f64::from(self.shape[slot(step, history.step_s)]));
        let seen = history.values.iter().zip(shares).filter(|(value, _)| !value.is_nan());
        let (sum, share) = seen.fold((0.0, 0.0), |(sum, all), (value, share)| (sum + value, all + share));
        if share > 0.0 { (sum / share).max(0.0) } else { 0.0 }
    }

    /// As bytes, some 6 kB at most.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        sealed(FORM, |out| {
            self.step_s.put(out);
            self.half_days.put(out);
            self.shape.iter().for_each(|share| share.put(out));
            u16::try_from(self.members.len()).unwrap_or(u16::MAX).put(out);
            for Member { level, ratios } in &self.members {
                level.put(out);
                ratios.put(out);
            }
        })
    }

    /// From the bytes of [`Group::to_bytes`].
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Damaged> {
        opened(FORM, bytes, |from| {
            let (step_s, half_days) = (u32::get(from)?, f32::get(from)?);
            let shape = (0..SLOTS).map(|_| f32::get(from)).collect::<Option<Vec<f32>>>()?;
            let members = (0..u16::get(from)?).map(|_| Member::get(from)).collect::<Option<Vec<_>>>()?;
            let sound = step_s > 0 && half_days > 0.0 && (MEMBERS_MIN..=MEMBERS_MAX).contains(&members.len());
            sound.then_some(Self { step_s, shape, members, half_days })
        })
    }
}

impl Member {
    fn of(series: &Series, level: f64, shape: &[f32]) -> Self {
        let steps = (series.first..).zip(&series.values).filter(|(_, value)| !value.is_nan());
        let mut found: Vec<f64> =
            steps.map(|(step, value)| value / level / f64::from(shape[slot(step, series.step_s)])).collect();
        found.sort_unstable_by(f64::total_cmp);
        let last = found.len().saturating_sub(1);
        let ratios =
            std::array::from_fn(|at| rounded(found.get(at * last / (RATIOS - 1)).copied().unwrap_or(1.0)));
        Self { level: rounded(level), ratios }
    }

    fn get(from: &mut Reader<'_>) -> Option<Self> {
        let (level, ratios) = (f32::get(from)?, <[f32; RATIOS]>::get(from)?);
        let sound = level > 0.0 && level.is_finite() && ratios.iter().all(|ratio| ratio.is_finite());
        sound.then_some(Self { level, ratios })
    }
}

/// How much of the forecast of a name that was seen for so many days is its group's.
fn share_of_group(days: f64) -> f64 {
    if days >= OWN_ALL_DAYS { 0.0 } else { OWN_HALF_DAYS / (OWN_HALF_DAYS + days) }
}

/// The hour of the week since the epoch.
fn slot(step: i64, step_s: i64) -> usize {
    let hour = step.saturating_mul(step_s).div_euclid(3_600);
    usize::try_from(hour.rem_euclid(SLOTS as i64)).unwrap_or(0)
}

/// For how long it was seen.
fn days_of(series: &Series) -> f64 {
    let seen = series.values.iter().filter(|value| !value.is_nan()).count();
    seen as f64 * series.step_s as f64 / DAY_S
}

/// The mean, if the history says something.
fn level_of(series: &Series) -> Option<f64> {
    let seen = series.values.iter().filter(|value| !value.is_nan());
    let least = seen.clone().copied().fold(f64::INFINITY, f64::min);
    let (sum, count) = seen.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    let level = sum / count;
    // Less than that is nothing once it is stored.
    (least >= 0.0 && level > f64::from(f32::MIN_POSITIVE) && days_of(series) >= MEMBER_DAYS_MIN)
        .then_some(level)
}

/// Shares of the level by hour of the week, each member weighing by how long it was seen.
fn shape_of(told: &[(&Series, f64)]) -> Vec<f32> {
    let mut week = vec![(0.0, 0.0); SLOTS];
    for (series, level) in told {
        for (step, value) in (series.first..).zip(&series.values).filter(|(_, value)| !value.is_nan()) {
            let (sum, seen) = &mut week[slot(step, series.step_s)];
            *sum += value / level;
            *seen += 1.0;
        }
    }
    let in_hour = told.first().map_or(1.0, |(series, _)| (3_600.0 / series.step_s as f64).max(1.0));
    let drawn_by = SHAPE_DRAWN_BY * in_hour;
    let day: Vec<f64> = (0..24)
        .map(|hour| {
            let hours = week.iter().skip(hour).step_by(24);
            let (sum, seen) = hours.fold((0.0, 0.0), |all, hour| (all.0 + hour.0, all.1 + hour.1));
            (sum + drawn_by) / (seen + drawn_by)
        })
        .collect();
    let shares = week.iter().enumerate().map(|(slot, (sum, seen))| {
        // An hour in which nobody asked may yet be asked in.
        ((sum + drawn_by * day[slot % 24]) / (seen + drawn_by)).max(1e-3)
    });
    shares.map(rounded).collect()
}

/// Variance of the means of a name's days about its level, over that of levels between names.
fn half_days(told: &[(&Series, f64)], shape: &[f32]) -> f64 {
    let levels: Vec<f64> = told.iter().map(|(_, level)| *level).collect();
    let within = told.iter().map(|(series, level)| {
        let in_day = usize::try_from(86_400 / series.step_s).unwrap_or(1).max(1);
        let mut days = Vec::new();
        for (at, day) in series.values.chunks(in_day).enumerate() {
            let first = series.first.saturating_add(i64::try_from(at * in_day).unwrap_or(i64::MAX));
            let seen = (first..).zip(day).filter(|(_, value)| !value.is_nan());
            let (sum, share) = seen.fold((0.0, 0.0), |(sum, all), (step, value)| {
                (sum + value, all + f64::from(shape[slot(step, series.step_s)]))
            });
            if share > 0.0 {
                days.push(sum / share);
            }
        }
        days.iter().map(|day| (day - level).powi(2)).sum::<f64>() / days.len().max(2) as f64
    });
    let within = within.sum::<f64>() / told.len().max(1) as f64;
    (within / variance(&levels).max(f64::MIN_POSITIVE)).clamp(1e-2, 1e2)
}

fn variance(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0)
}

/// The value up to which this share of the weight lies, between neighbours by their weights.
fn quantile(spread: &[(f64, f64)], level: f64) -> f64 {
    let mut before = 0.0;
    let mut last = spread.first().map_or(0.0, |(value, _)| *value);
    let mut last_at = 0.0;
    for (value, weight) in spread {
        let at = before + weight / 2.0;
        if at >= level {
            let share = if at > last_at { (level - last_at) / (at - last_at) } else { 1.0 };
            return last + share.clamp(0.0, 1.0) * (value - last);
        }
        before += weight;
        (last, last_at) = (*value, at);
    }
    last
}

#[expect(clippy::cast_possible_truncation, reason = "an estimate needs no more digits")]
fn rounded(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: usize = 24;

    /// Hours of a name that is asked for by day, on some days thrice as often as on others, give or take a fifth.
    fn asked(level: f64, from: usize, hours: usize) -> Series {
        let value = |at: usize| {
            let shape = if (8..20).contains(&(at % DAY)) { 1.5 } else { 0.5 };
            let day = 0.5 + (at / DAY * 3 % 5) as f64 / 4.0;
            level * shape * day * (0.8 + (at * 7 % 11) as f64 / 25.0)
        };
        let values = (from..from + hours).map(value).collect();
        Series::new(i64::try_from(from).unwrap() * 3_600, 3_600, values).unwrap()
    }

    fn group() -> Group {
        Group::of(&[8.0, 10.0, 11.0, 13.0, 30.0].map(|level| asked(level, 0, 20 * DAY))).unwrap()
    }

    fn forecast(history: &Series) -> Quantiles {
        group().forecast(history, DAY, &[0.1, 0.5, 0.9]).unwrap()
    }

    #[test]
    fn a_name_without_history_is_asked_for_at_the_hours_of_its_group_and_as_much_as_any_of_it() {
        let new = forecast(&asked(1.0, 10 * DAY, 0));
        let (night, noon) = (3, 12);
        assert!((10.0..20.0).contains(&new.point()[noon]), "{:?}", new.point());
        assert!(new.point()[noon] > 2.0 * new.point()[night]);
        // One in five has three times as much.
        assert!(new.path(2)[noon] > 30.0 && new.path(0)[noon] < 13.0, "{new:?}");
    }

    #[test]
    fn its_own_level_counts_the_more_the_longer_it_was_seen() {
        let at_noon =
            |hours: usize| forecast(&asked(40.0, 10 * DAY, hours)).point()[(36 - hours % DAY) % DAY];
        let levels = [0, 2, 8, 24, 48].map(at_noon);
        assert!(levels[..4].is_sorted(), "{levels:?}");
        assert!(levels[0] < 20.0 && levels[4] > 2.0 * levels[0], "60 in truth: {levels:?}");
        // And the less is left open.
        let width = |hours| {
            let quantiles = forecast(&asked(10.0, 10 * DAY, hours));
            quantiles.path(2)[0] - quantiles.path(0)[0]
        };
        assert!(width(48) < width(0) / 2.0, "{} {}", width(48), width(0));
    }

    #[test]
    fn its_own_models_take_the_place_of_the_group() {
        let history = |days: usize| asked(10.0, 10 * DAY, days * DAY);
        let own = Quantiles::new(&[0.5], vec![70.0; 2], vec![70.0; 2]).unwrap();
        let share = |days| group().join(&history(days), 2, &[0.5], Some(own.clone())).unwrap();
        assert_eq!(share(0).of_group, 1.0);
        assert_eq!(share(2).of_group, 0.5);
        let (two, ten, many) = (share(2), share(10), share(14));
        let of = |joined: &Joined| joined.quantiles.path(0)[0];
        assert!(of(&two) < of(&ten) && of(&ten) < of(&many), "{two:?} {ten:?} {many:?}");
        assert_eq!((many.of_group, &many.quantiles), (0.0, &own));
        let alone = group().join(&history(2), 2, &[0.5], None).unwrap();
        assert_eq!(alone.of_group, 1.0, "no model has a forecast");
        assert!(group().join(&history(2), 3, &[0.5], Some(own)).is_err(), "another horizon");
    }

    #[test]
    fn who_says_nothing_makes_no_group() {
        let short = asked(5.0, 0, DAY);
        let silent = Series::new(0, 3_600, vec![0.0; 100]).unwrap();
        let negative = Series::new(0, 3_600, vec![-1.0; 100]).unwrap();
        let one = asked(5.0, 0, 5 * DAY);
        let few = Group::of(&[short, silent, negative, one.clone()]).unwrap_err();
        assert_eq!(few, Fault::NoGroup { members: 1 });
        let minutes = Series::new(0, 60, vec![1.0; 5_000]).unwrap();
        assert!(Group::of(&[one.clone(), minutes.clone()]).is_err(), "of several steps");
        assert_eq!(Group::of(&vec![one; 99]).unwrap().members(), MEMBERS_MAX);
        assert!(group().forecast(&minutes, 1, &[0.5]).is_err(), "of another step");
    }

    #[test]
    fn it_is_the_same_after_it_was_stored_and_damage_is_refused() {
        let bytes = group().to_bytes();
        assert!(bytes.len() < 6_500, "{}", bytes.len());
        assert_eq!(Group::from_bytes(&bytes).unwrap(), group());
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x20;
            assert!(Group::from_bytes(&flipped).is_err() && Group::from_bytes(&bytes[..at]).is_err(), "{at}");
        }
    }
}
