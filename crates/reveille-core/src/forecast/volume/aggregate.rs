//! Temporal aggregation: a model works on means of blocks of steps, and its path is spread over the steps again. Minutes
//! say little about each other that the block does not, and a day of 1,440 steps is too much to recur through.

use super::{Fault, Fitted, Model, Window, enough};

/// A model of blocks of `by` steps, which begin at multiples of `by` since the epoch.
pub(super) struct Aggregated<M> {
    pub by: usize,
    pub inner: M,
}

struct FittedBlocks {
    by: usize,
    inner: Box<dyn Fitted>,
}

/// Means of whole blocks.
struct Blocks {
    first: i64,
    means: Vec<f64>,
    /// Points after the last whole block.
    rest: usize,
}

impl Blocks {
    fn of(window: Window<'_>, by: usize) -> Self {
        let signed = i64::try_from(by).unwrap_or(i64::MAX);
        let skipped =
            usize::try_from((-window.first).rem_euclid(signed)).unwrap_or(0).min(window.values.len());
        let blocks = window.values[skipped..].chunks_exact(by);
        let rest = blocks.remainder().len();
        let means = blocks.map(|block| block.iter().sum::<f64>() / by as f64).collect();
        let first = window.first.saturating_add(i64::try_from(skipped).unwrap_or(0)).div_euclid(signed);
        Self { first, means, rest }
    }

    fn window(&self) -> Window<'_> {
        Window { first: self.first, values: &self.means }
    }
}

impl<M: Model> Model for Aggregated<M> {
    fn name(&self) -> String {
        format!("{}@{}", self.inner.name(), self.by)
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        enough(window, self.by)?;
        let inner = self.inner.fit(Blocks::of(window, self.by).window())?;
        Ok(Box::new(FittedBlocks { by: self.by, inner }))
    }
}

impl Fitted for FittedBlocks {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        let blocks = Blocks::of(window, self.by);
        let ahead = (blocks.rest + horizon).div_ceil(self.by) + 1;
        let path = self.inner.path(blocks.window(), ahead)?;
        Ok((0..horizon).map(|step| between(&path, self.by, blocks.rest + step)).collect())
    }

    fn held_bytes(&self) -> usize {
        size_of_val(&*self.inner) + self.inner.held_bytes()
    }
}

/// The value at a step, counted from the begin of the path, on the lines between the middles of blocks.
fn between(path: &[f64], by: usize, step: usize) -> f64 {
    // Twice the distance from the middle of the first block, in steps, so that it is whole.
    let Some(twice) = (2 * step + 1).checked_sub(by) else { return path.first().copied().unwrap_or(0.0) };
    let at = twice / (2 * by);
    let share = (twice % (2 * by)) as f64 / (2 * by) as f64;
    let left = path.get(at).copied().unwrap_or(0.0);
    let right = path.get(at + 1).copied().unwrap_or(left);
    left + share * (right - left)
}
