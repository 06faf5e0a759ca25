//! The plain ones: what was there a season ago, and the mean of what was there at the same phase of several seasons.
//! Every other model must beat them in its back-test to be heard.

use super::{Fault, Fitted, Model, Window, enough};

/// Most seasons that a mean looks back.
const SEASONS_MAX: usize = 8;

/// The last season again (seasonal random walk); with a season of 1, the last value.
#[derive(Clone, Copy, Debug)]
pub struct SeasonalNaive {
    /// Steps.
    pub season: usize,
}

impl Model for SeasonalNaive {
    fn name(&self) -> String {
        format!("snaive-{}", self.season)
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        enough(window, self.season.max(1))?;
        Ok(Box::new(*self))
    }
}

impl Fitted for SeasonalNaive {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        let season = self.season.max(1);
        enough(window, season)?;
        let last = &window.values[window.values.len() - season..];
        Ok((0..horizon).map(|ahead| last[ahead % season]).collect())
    }
}

/// The mean of the same phase over the last seasons, younger ones weighing more: a seasonal naive with less of the noise
/// of one season. Its discount is estimated.
#[derive(Clone, Copy, Debug)]
pub struct SeasonalMeans {
    /// Steps.
    pub season: usize,
}

/// With its discount per season.
struct FittedMeans {
    season: usize,
    discount: f64,
}

impl Model for SeasonalMeans {
    fn name(&self) -> String {
        format!("smean-{}", self.season)
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        let season = self.season.max(1);
        enough(window, 2 * season)?;
        let values = window.values;
        let loss = |discount: f64| -> f64 {
            let from = values.len().saturating_sub(3 * season).max(season);
            (from..values.len())
                .map(|at| (values[at] - mean_before(values, at, season, discount)).abs())
                .sum()
        };
        let mut best = (f64::INFINITY, 0.0);
        for discount in [0.0, 0.3, 0.6, 0.8, 1.0] {
            let loss = loss(discount);
            if loss < best.0 {
                best = (loss, discount);
            }
        }
        Ok(Box::new(FittedMeans { season, discount: best.1 }))
    }
}

impl Fitted for FittedMeans {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        enough(window, self.season)?;
        let end = window.values.len();
        let one = |ahead| mean_before(window.values, end + ahead % self.season, self.season, self.discount);
        Ok((0..horizon).map(one).collect())
    }
}

/// The discounted mean of `values[at − season]`, `values[at − 2 season]` and so on; `at` may be up to one season beyond
/// the end.
fn mean_before(values: &[f64], at: usize, season: usize, discount: f64) -> f64 {
    let (mut sum, mut weights, mut weight) = (0.0, 0.0, 1.0);
    for back in 1..=SEASONS_MAX {
        let Some(&value) = at.checked_sub(back * season).and_then(|place| values.get(place)) else { break };
        sum += weight * value;
        weights += weight;
        weight *= discount;
    }
    if weights > 0.0 { sum / weights } else { 0.0 }
}
