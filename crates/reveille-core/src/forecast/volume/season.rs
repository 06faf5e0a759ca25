//! Which seasons a series has: those of the calendar where its step divides a day, else what its autocorrelation shows.

use super::Series;

/// Autocorrelation at the peak below which there is no season.
const PEAK_MIN: f64 = 0.3;
/// Most points that autocorrelation is taken of, the last ones.
const POINTS_LOOKED_AT_MAX: usize = 4_096;
const DAY_S: i64 = 86_400;

/// Seasons, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seasons {
    /// The shorter one, such as a day; 1 where there is none.
    pub short: usize,
    /// The longer one, such as a week: a multiple of the shorter.
    pub long: Option<usize>,
}

impl Seasons {
    /// No season at all.
    pub const NONE: Self = Self { short: 1, long: None };

    /// The longest that there is.
    #[must_use]
    pub fn longest(self) -> usize {
        self.long.unwrap_or(self.short)
    }

    /// The same seasons in steps that are `by` times as long.
    #[must_use]
    pub(super) fn coarser(self, by: usize) -> Self {
        let by = by.max(1);
        Self { short: (self.short / by).max(1), long: self.long.map(|long| (long / by).max(1)) }
    }
}

/// Day and week (or week alone, of daily values) for a step of so many seconds: 24 and 168 for an hour, 1,440 and 10,080
/// for a minute.
#[must_use]
pub fn by_calendar(step_s: i64) -> Option<Seasons> {
    if step_s < 1 || DAY_S % step_s != 0 {
        return None;
    }
    let day = usize::try_from(DAY_S / step_s).ok()?;
    Some(if day == 1 {
        Seasons { short: 7, long: None }
    } else {
        Seasons { short: day, long: Some(7 * day) }
    })
}

/// The season of the highest peak of the autocorrelation of the differenced values, if it is clear enough and was seen
/// three times.
#[must_use]
pub fn detect(values: &[f64]) -> Option<usize> {
    let values = &values[values.len().saturating_sub(POINTS_LOOKED_AT_MAX)..];
    let steps: Vec<f64> = values.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let energy: f64 = steps.iter().map(|step| step * step).sum();
    if !(energy.is_finite() && energy > 0.0) {
        return None;
    }
    let correlations: Vec<f64> = (0..=steps.len() / 3)
        .map(|lag| steps.iter().zip(&steps[lag..]).map(|(early, late)| early * late).sum::<f64>() / energy)
        .collect();
    // A multiple of the season has a peak, too, but of fewer pairs: the lowest that is about as high.
    let peaks =
        correlations.windows(3).enumerate().filter(|(_, near)| near[1] >= near[0] && near[1] > near[2]);
    let peaks: Vec<(usize, f64)> =
        peaks.map(|(at, near)| (at + 1, near[1])).filter(|&(lag, _)| lag >= 2).collect();
    let highest = peaks.iter().map(|&(_, height)| height).fold(0.0, f64::max);
    peaks.into_iter().find(|&(_, height)| height >= PEAK_MIN && height >= 0.8 * highest).map(|(lag, _)| lag)
}

/// The seasons that models of this series work with: those of the calendar that it has seen twice, else the detected one.
#[must_use]
pub fn seasons_of(series: &Series) -> Seasons {
    let points = series.values().len();
    if let Some(calendar) = by_calendar(series.step_s())
        && points >= 2 * calendar.short
    {
        let long = calendar.long.filter(|long| points >= 2 * long);
        return Seasons { long, ..calendar };
    }
    detect(&series.filled(Seasons::NONE)).map_or(Seasons::NONE, |short| Seasons { short, long: None })
}
