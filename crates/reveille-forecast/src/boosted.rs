//! A boosted model of volume: trees on what a linear autoregression leaves over, told from lags around the seasons and the
//! time of day and week.
//!
//! Trees cannot go beyond what they have seen, and need many rows for what a straight line says in two numbers. So the line
//! is fitted first, and trees learn where it errs: other hours, other days, beyond some level. Values are taken relative to
//! their mean over the last day, in units of their deviation.

use reveille_core::forecast::volume::{Autoregression, Fault, Fitted, Model, Seasons, Transform, Window};

use crate::trees::{Table, Trees};

/// Trees of a model.
const ROUNDS: usize = 50;
/// Rows that it wants to learn from at least: two weeks of hours.
pub const ROWS_MIN: usize = 336;
/// Values whose mean is the level, at least.
const LEVEL_MIN: usize = 12;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Boosted {
    /// Its lags.
    pub seasons: Seasons,
    /// The scale of its line.
    pub transform: Transform,
}

/// With its line and its trees.
struct FittedTrees {
    form: Form,
    transform: Transform,
    deviation: f64,
    line: Box<dyn Fitted>,
    trees: Trees,
}

/// What a row is made of.
#[derive(Clone, Debug)]
struct Form {
    seasons: Seasons,
    lags: Vec<usize>,
    /// Values whose mean is the level.
    level_over: usize,
}

impl Form {
    fn of(seasons: Seasons) -> Self {
        let Seasons { short, long } = seasons;
        let mut lags = vec![1, 2, 3];
        if short > 1 {
            lags.extend([short - 1, short, short + 1, 2 * short]);
        }
        lags.extend(long);
        lags.sort_unstable();
        lags.dedup();
        lags.retain(|lag| *lag > 0);
        Self { seasons, lags, level_over: short.max(LEVEL_MIN) }
    }

    /// Values that a row looks back at.
    fn reach(&self) -> usize {
        self.lags.last().copied().unwrap_or(1).max(self.level_over)
    }

    fn features(&self) -> usize {
        self.lags.len() + 5
    }

    /// The row that the value `at` of the window, which may be the first beyond it, is told from, and what the line says.
    #[expect(clippy::cast_possible_truncation, reason = "a feature needs no more digits")]
    fn fill(&self, row: &mut Vec<f32>, window: Window<'_>, values: &[f64], line: f64, deviation: f64) {
        let at = values.len();
        let mean = |over: usize| values[at - over..].iter().sum::<f64>() / over as f64;
        let level = mean(self.level_over);
        let cell = |value: f64| ((value - level) / deviation) as f32;
        row.clear();
        row.extend(self.lags.iter().map(|lag| cell(values[at - lag])));
        row.push(cell(line));
        row.push((level / deviation) as f32);
        row.push(cell(mean(self.level_over / 2)));
        let Seasons { short, long } = self.seasons;
        row.push(window.phase(at, short) as f32);
        row.push(long.map_or(0, |long| window.phase(at, long) / short.max(1)) as f32);
    }
}

impl Model for Boosted {
    fn name(&self) -> String {
        match self.transform {
            Transform::Identity => "boosted",
            Transform::Sqrt => "boosted-sqrt",
            Transform::Log => "boosted-log",
        }
        .to_owned()
    }

    fn fit(&self, window: Window<'_>) -> Result<Box<dyn Fitted>, Fault> {
        let form = Form::of(self.seasons);
        let values = window.values;
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        let deviation = (squares / values.len().max(1) as f64).sqrt();
        if !(deviation.is_finite() && deviation > 1e-12 * mean.abs()) {
            return Err(Fault::Unfit { why: "all of its values are the same" });
        }
        let line = Autoregression::on_lags(self.seasons, self.transform).fit(window)?;
        // The line looks back as far as it can: from where on that is, it says itself.
        let first = (form.reach()..values.len()).find(|at| line.path(window.prefix(*at), 1).is_ok());
        let rows = first.map_or(0, |first| values.len() - first);
        let Some(first) = first.filter(|_| rows >= ROWS_MIN) else {
            return Err(Fault::TooShort { needed: values.len() + ROWS_MIN - rows, present: values.len() });
        };
        let mut table = Table::new(form.features(), rows);
        let mut row = Vec::with_capacity(form.features());
        for at in first..values.len() {
            let said = line.path(window.prefix(at), 1)?.first().copied().ok_or(Fault::NoModel)?;
            form.fill(&mut row, window, &values[..at], said, deviation);
            table.push(&row, (values[at] - said) / deviation);
        }
        let trees = Trees::grow(&table, ROUNDS);
        Ok(Box::new(FittedTrees { form, transform: self.transform, deviation, line, trees }))
    }
}

impl Fitted for FittedTrees {
    fn path(&self, window: Window<'_>, horizon: usize) -> Result<Vec<f64>, Fault> {
        let (reach, present) = (self.form.reach(), window.values.len());
        if present < reach {
            return Err(Fault::TooShort { needed: reach, present });
        }
        let mut values = window.values.to_vec();
        let mut row = Vec::with_capacity(self.form.features());
        for _ in 0..horizon {
            let so_far = Window { first: window.first, values: &values };
            let said = self.line.path(so_far, 1)?.first().copied().ok_or(Fault::NoModel)?;
            self.form.fill(&mut row, window, &values, said, self.deviation);
            values.push(said + self.deviation * self.trees.answer(&row));
            if !values.last().is_some_and(|value| value.is_finite()) {
                return Err(Fault::NotFinite);
            }
            // The line's scale may have no place for what is below nothing.
            if self.transform != Transform::Identity
                && let Some(value) = values.last_mut()
            {
                *value = value.max(1e-9);
            }
        }
        Ok(values.split_off(present))
    }

    fn held_bytes(&self) -> usize {
        self.trees.held_bytes()
            + size_of_val(&*self.form.lags)
            + size_of_val(&*self.line)
            + self.line.held_bytes()
    }
}
