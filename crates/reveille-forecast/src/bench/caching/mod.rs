//! The correction for caching, on simulated resolvers whose demand is known.
//!
//! Each cell of the table is a name that is asked for through some resolvers with one TTL, many times over: how far the
//! estimate is from the truth, how often its intervals hold it, what was seen uncorrected, and how exact an estimate can be at all
//! without knowing how demand is spread. Seeded: the same each time.

pub mod resolvers;

use std::fmt;

use reveille_core::forecast::caching::{WINDOW_MS_MAX, WINDOW_TTLS_MIN, Watch};
use reveille_core::model::Timestamp;
use serde::Serialize;

use resolvers::{Dice, Habit, Name, Shares};

/// When the simulated time begins, so that what was before has a time, too.
const BEGIN: Timestamp = Timestamp::from_ms(1_800_000_000_000);

/// Each window's demand is that of its cell times or divided by as much at most.
const DEMAND_SPREAD: f64 = 1.25;

/// One cell: a name and for how long it is watched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cell {
    /// What is asked for, and by whom.
    pub name: Name,
    /// The window ends when so many queries are to be expected, but not before it tells anything, and not after a week.
    pub expected_queries: f64,
}

/// What came out of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    /// Which.
    pub cell: Cell,
    /// Windows that were simulated.
    pub windows: u32,
    /// Mean number of queries in a window.
    pub queries: f64,
    /// The window, in TTLs.
    pub window_ttls: f64,
    /// Queries seen ÷ true arrivals.
    pub raw: f64,
    /// Mean of (estimate ÷ truth) − 1.
    pub bias: f64,
    /// Root of the mean square of that.
    pub error: f64,
    /// What no unbiased estimate can be below, where shares are unknown.
    pub error_least: f64,
    /// Share of the windows in which the estimate is within 10 % of the truth.
    pub within_10: f64,
    /// Share of the windows in which the interval of 80 % holds the truth.
    pub coverage_80: f64,
    /// The same of 95 %.
    pub coverage_95: f64,
    /// Share of the queries that came from resolvers which were taken to have their own way.
    pub own_way: f64,
    /// Share of the queries that could not be corrected.
    pub uncorrected: f64,
}

/// Simulates a cell `windows` times.
#[must_use]
pub fn run(cell: Cell, windows: u32, seed: u64) -> Row {
    let mut dice = Dice::new(seed);
    let rates = cell.name.rates();
    let ttl_ms = f64::from(cell.name.ttl_ms.max(cell.name.ttl_after_ms));
    let per_ms: f64 = rates.iter().map(|&rate| cell.name.queries_per_ms(rate)).sum();
    let least_ms = WINDOW_TTLS_MIN as f64 * ttl_ms;
    let window_ms = (cell.expected_queries / per_ms).max(least_ms).min(WINDOW_MS_MAX as f64 - 1.0).ceil();
    let demand: f64 = rates.iter().sum();
    let truth = demand * window_ms;
    let mut row = Row { cell, windows, window_ttls: window_ms / ttl_ms, ..Row::empty(cell) };
    // Of each rate the inverse of its Fisher information: λ² ÷ the number of queries.
    let variance = |&rate: &f64| rate * rate / (cell.name.queries_per_ms(rate) * window_ms);
    row.error_least = rates.iter().map(variance).sum::<f64>().sqrt() / demand;
    let each = 1.0 / f64::from(windows);
    for _ in 0..windows {
        // Names differ: counts are whole, so that intervals of one demand alone hold it a little too often or too rarely.
        let factor = (DEMAND_SPREAD.ln() * (2.0 * dice.uniform() - 1.0)).exp();
        let rates: Vec<f64> = rates.iter().map(|rate| rate * factor).collect();
        let truth = truth * factor;
        let lead_ms = ttl_ms;
        let at = |ms: f64| BEGIN.plus_ms(resolvers::whole(ms));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a TTL")]
        let mut watch = Watch::new(BEGIN, ttl_ms as u32);
        for query in cell.name.queries(&rates, lead_ms, window_ms, &mut dice) {
            watch.asked(query.resolver, at(query.at_ms), query.ttl_ms);
        }
        let Ok(found) = watch.estimate(at(lead_ms + window_ms)) else { continue };
        let off = found.arrivals / truth - 1.0;
        row.queries += each * found.queries as f64;
        row.raw += each * found.queries as f64 / truth;
        row.bias += each * off;
        row.error += each * off * off;
        row.within_10 += each * f64::from(u8::from(off.abs() <= 0.1));
        row.coverage_80 += each * f64::from(u8::from(found.within_80.holds(truth)));
        row.coverage_95 += each * f64::from(u8::from(found.within_95.holds(truth)));
        let share = |queries: u64| queries as f64 / found.queries.max(1) as f64;
        row.own_way += each * share(found.own_way);
        row.uncorrected += each * share(found.uncorrected);
    }
    row.error = row.error.sqrt();
    row
}

impl Row {
    fn empty(cell: Cell) -> Self {
        Self {
            cell,
            windows: 0,
            queries: 0.0,
            window_ttls: 0.0,
            raw: 0.0,
            bias: 0.0,
            error: 0.0,
            error_least: 0.0,
            within_10: 0.0,
            coverage_80: 0.0,
            coverage_95: 0.0,
            own_way: 0.0,
            uncorrected: 0.0,
        }
    }

    /// The heads of the columns.
    pub const HEAD: &str = "TTL s  resolvers  shares  lambda*TTL (largest)  queries  window/TTL    raw   bias  error (least)  \
                            in 10 %  80 %  95 %  own way  uncorrected";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.cell.name;
        let percent = |share: f64| 100.0 * share;
        write!(
            f,
            "{:>5}  {:>9}  {:>6}  {:>10.1} {:>9}  {:>7.0}  {:>10.1}  {:>5.3}  {:>+5.1}  {:>5.1} {:>7}  {:>7.1}  {:>4.1}  {:>4.1}  {:>7.1}  {:>11.1}",
            f64::from(name.ttl_ms) / 1_000.0,
            name.resolvers,
            name.shares,
            name.demand_per_ttl,
            format!("({:.1})", name.demand_per_ttl * name.largest_share()),
            self.queries,
            self.window_ttls,
            self.raw,
            percent(self.bias),
            percent(self.error),
            format!("({:.1})", percent(self.error_least)),
            percent(self.within_10),
            percent(self.coverage_80),
            percent(self.coverage_95),
            percent(self.own_way),
            percent(self.uncorrected),
        )?;
        if name.ttl_after_ms != name.ttl_ms {
            write!(f, "  then {} s", f64::from(name.ttl_after_ms) / 1_000.0)?;
        }
        if name.habit != Habit::Exact { write!(f, "  {}", name.habit) } else { Ok(()) }
    }
}

/// The cells of the table: TTLs × resolvers × shares × demand, each with so many queries to be expected.
#[must_use]
pub fn cells(expected_queries: f64) -> Vec<Cell> {
    let mut cells = Vec::new();
    for ttl_s in [5, 30, 300] {
        for resolvers in [1, 10, 100, 1_000] {
            for shares in [Shares::Equal, Shares::Zipf] {
                for demand_per_ttl in [0.5, 5.0, 50.0] {
                    if resolvers > 1 || shares == Shares::Equal {
                        let name = Name::honest(1_000 * ttl_s, resolvers, shares, demand_per_ttl);
                        cells.push(Cell { name, expected_queries });
                    }
                }
            }
        }
    }
    cells
}

/// All cells of a table in a few figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Names that were simulated: TTLs × resolvers × shares × demand.
    pub cells: usize,
    /// Windows of each.
    pub windows: u32,
    /// Queries that were to be expected in each.
    pub expected_queries: f64,
    /// Queries seen ÷ true arrivals, the mean of all cells.
    pub raw: f64,
    /// The bias that is farthest from 0, of a cell.
    pub bias_worst: f64,
    /// Mean share of the windows in which the estimate is within 10 % of the truth.
    pub within_10: f64,
    /// The same, of the interval of 80 % that holds it.
    pub coverage_80: f64,
    /// The same of 95 %.
    pub coverage_95: f64,
}

/// Simulates the table of [`cells`].
pub fn summary(expected_queries: f64, windows: u32, step: &mut dyn FnMut(&str, usize, usize)) -> Summary {
    let cells = cells(expected_queries);
    let rows = cells.iter().zip(1..).enumerate().map(|(at, (cell, seed))| {
        step("caches", at, cells.len());
        run(*cell, windows, seed)
    });
    let rows: Vec<Row> = rows.collect();
    let mean = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len().max(1) as f64;
    Summary {
        cells: rows.len(),
        windows,
        expected_queries,
        raw: mean(|row| row.raw),
        bias_worst: rows.iter().map(|row| row.bias).max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0),
        within_10: mean(|row| row.within_10),
        coverage_80: mean(|row| row.coverage_80),
        coverage_95: mean(|row| row.coverage_95),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cells, windows, expected_queries, .. } = self;
        write!(
            f,
            "{cells} names with {expected_queries} queries to be expected, or 4 TTLs; {windows} windows each: "
        )?;
        write!(
            f,
            "worst bias {:+.1} %, within 10 % {:.1} %",
            self.bias_worst * 100.0,
            self.within_10 * 100.0
        )?;
        let (wide, wider) = (self.coverage_80 * 100.0, self.coverage_95 * 100.0);
        write!(f, ", in 80 % {wide:.1}, in 95 % {wider:.1}; uncorrected {:.2} of the truth", self.raw)
    }
}

#[cfg(test)]
mod tests;
