//! Least squares with a ridge, by the normal equations and a Cholesky factor: small systems, many of them.

use super::Fault;

/// The sums of a regression, row by row: `XᵀX` and `Xᵀy`.
pub(super) struct Normal {
    columns: usize,
    /// Upper triangle, row-major in a square.
    gram: Vec<f64>,
    moment: Vec<f64>,
}

impl Normal {
    pub(super) fn new(columns: usize) -> Self {
        Self { columns, gram: vec![0.0; columns * columns], moment: vec![0.0; columns] }
    }

    /// Adds one observation.
    pub(super) fn add(&mut self, row: &[f64], target: f64) {
        let columns = self.columns;
        for (at, &left) in row.iter().enumerate() {
            let sums = &mut self.gram[at * columns + at..(at + 1) * columns];
            for (sum, &right) in sums.iter_mut().zip(&row[at..]) {
                *sum += left * right;
            }
            self.moment[at] += left * target;
        }
    }

    /// Coefficients with the least `|Xb − y|² + ridge · Σ diag(XᵀX) b²`: the penalty is relative to each column's size.
    ///
    /// # Errors
    /// [`Fault::NotFinite`] where the sums are not positive definite even so.
    pub(super) fn solve(mut self, ridge: f64) -> Result<Vec<f64>, Fault> {
        let columns = self.columns;
        let diagonal: f64 = (0..columns).map(|at| self.gram[at * columns + at]).sum();
        // So that columns that are the same, or nothing, have an answer.
        let least = 1e-8 * diagonal / columns.max(1) as f64 + 1e-12;
        for at in 0..columns {
            let cell = &mut self.gram[at * columns + at];
            *cell += ridge * *cell + least;
        }
        self.factor()?;
        // Forward with Uᵀ, back with U.
        for at in 0..columns {
            let value = self.moment[at] / self.gram[at * columns + at];
            self.moment[at] = value;
            for after in at + 1..columns {
                self.moment[after] -= self.gram[at * columns + after] * value;
            }
        }
        for at in (0..columns).rev() {
            let row = &self.gram[at * columns..(at + 1) * columns];
            let known: f64 =
                row[at + 1..].iter().zip(&self.moment[at + 1..]).map(|(cell, value)| cell * value).sum();
            self.moment[at] = (self.moment[at] - known) / row[at];
        }
        Ok(self.moment)
    }

    /// `XᵀX = UᵀU` in place, by outer products, which run along rows.
    fn factor(&mut self) -> Result<(), Fault> {
        let columns = self.columns;
        for at in 0..columns {
            let (head, tail) = self.gram.split_at_mut((at + 1) * columns);
            let row = &mut head[at * columns..];
            let pivot = row[at];
            if !(pivot.is_finite() && pivot > 0.0) {
                return Err(Fault::NotFinite);
            }
            let root = pivot.sqrt();
            row[at..].iter_mut().for_each(|cell| *cell /= root);
            for after in at + 1..columns {
                let factor = row[after];
                let below = &mut tail[(after - at - 1) * columns + after..(after - at) * columns];
                for (cell, &right) in below.iter_mut().zip(&row[after..]) {
                    *cell -= factor * right;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_of_an_exact_relation_come_back() {
        let mut normal = Normal::new(3);
        for at in 0..20 {
            let at = f64::from(at);
            let row = [1.0, at, (at * 0.7).sin()];
            normal.add(&row, 2.0 - 0.5 * row[1] + 3.0 * row[2]);
        }
        let found = normal.solve(0.0).unwrap();
        for (found, wanted) in found.iter().zip([2.0, -0.5, 3.0]) {
            assert!((found - wanted).abs() < 1e-4, "{found} for {wanted}");
        }
    }

    #[test]
    fn two_columns_that_are_the_same_share_the_weight() {
        let mut normal = Normal::new(2);
        for at in 1..10 {
            let at = f64::from(at);
            normal.add(&[at, at], 4.0 * at);
        }
        let found = normal.solve(1e-6).unwrap();
        assert!((found[0] - 2.0).abs() < 1e-3 && (found[1] - 2.0).abs() < 1e-3, "{found:?}");
    }
}
