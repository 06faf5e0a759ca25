//! Quantiles of a long stream in a fixed number of bins, to a stated relative accuracy.
//!
//! DDSketch (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees",
//! VLDB 2019): bin *i* counts the values in (γ^(i−1), γ^i]. Two sketches are merged by adding their bins. What spans more
//! than there are bins for loses its smallest values to the lowest bin, as there: who plans asks for the large ones.

/// A quantile is within this share of the true one.
pub const ACCURACY: f64 = 0.02;
/// Most bins; together they span a factor of 7 × 10⁸.
pub const BINS_MAX: usize = 512;
/// Values below it are zero, and those above the other are it.
pub const VALUE_MIN: f64 = 1e-6;
/// See [`VALUE_MIN`].
pub const VALUE_MAX: f64 = 1e15;

/// A bin: zero is below all others.
pub(super) type Bin = Option<i16>;

/// Counts of values by their logarithm.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sketch {
    pub(super) zeros: u64,
    /// The index of the first bin.
    pub(super) first: i16,
    pub(super) bins: Vec<u64>,
    pub(super) count: u64,
    pub(super) sum: f64,
}

/// A place between two values: this share of the bin's lies above it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cut {
    pub bin: Bin,
    pub above: f64,
}

impl Sketch {
    /// Values that were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their mean; 0 of none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }

    /// Counts a value so many times. What is negative or no number counts as zero.
    pub fn add(&mut self, value: f64, times: u64) {
        if times == 0 {
            return;
        }
        self.count += times;
        match bin_of(value) {
            None => self.zeros += times,
            Some(index) => {
                self.sum += value.min(VALUE_MAX) * times as f64;
                self.add_to(index, times);
            }
        }
    }

    /// Counts all that the other one has counted.
    pub fn merge(&mut self, other: &Self) {
        self.zeros += other.zeros;
        self.count += other.count;
        self.sum += other.sum;
        // The highest first, so that room is made once.
        for (place, &times) in other.bins.iter().enumerate().rev().filter(|(_, times)| **times > 0) {
            self.add_to(other.first.saturating_add(i16::try_from(place).unwrap_or(i16::MAX)), times);
        }
    }

    /// The value that this share of all is not above, within [`ACCURACY`] of the true one. `None` of nothing.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share.clamp(0.0, 1.0) * self.count as f64;
        (self.count > 0).then(|| self.cut(rank).middle())
    }

    /// The place below which `rank` of all values are.
    pub(super) fn cut(&self, rank: f64) -> Cut {
        let mut below = self.zeros as f64;
        if rank < below {
            return Cut { bin: None, above: 1.0 - (rank / below).max(0.0) };
        }
        let mut last = Cut { bin: None, above: 0.0 };
        for (index, &times) in (self.first..).zip(&self.bins).filter(|(_, times)| **times > 0) {
            let times = times as f64;
            if rank < below + times {
                return Cut { bin: Some(index), above: 1.0 - ((rank - below) / times).max(0.0) };
            }
            below += times;
            last = Cut { bin: Some(index), above: 0.0 };
        }
        last
    }

    /// What is allocated, in bytes.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.bins.capacity() * size_of::<u64>()
    }

    fn add_to(&mut self, index: i16, times: u64) {
        if self.bins.is_empty() {
            self.first = index;
        }
        // The bins go from the lowest to the highest that is used, but no further down than there are places for.
        let end = index.max(self.first + length(&self.bins) - 1);
        let lowest = index.min(self.first).max(end.saturating_sub(length_max() - 1));
        if lowest < self.first {
            let more = usize::try_from(self.first - lowest).unwrap_or(0);
            self.bins.reserve_exact(more);
            self.bins.splice(0..0, std::iter::repeat_n(0, more));
            self.first = lowest;
        } else if lowest > self.first {
            let gone = usize::try_from(lowest - self.first).unwrap_or(0).min(self.bins.len());
            let collapsed: u64 = self.bins.drain(..gone).sum();
            self.first = lowest;
            if self.bins.is_empty() {
                self.bins.push(0);
            }
            self.bins[0] += collapsed;
        }
        let place = usize::try_from(index.max(lowest) - lowest).unwrap_or(0);
        if place >= self.bins.len() {
            self.bins.reserve_exact(place + 1 - self.bins.len());
            self.bins.resize(place + 1, 0);
        }
        self.bins[place] += times;
    }
}

impl Cut {
    /// A value that all of the bin are within [`ACCURACY`] of.
    fn middle(self) -> f64 {
        self.bin.map_or(0.0, |index| (f64::from(index) * width()).exp() * (1.0 - ACCURACY))
    }

    /// The value there, taking those of a bin as spread evenly: the end of an interval.
    pub fn value(self) -> f64 {
        let Some(index) = self.bin else { return 0.0 };
        let top = (f64::from(index) * width()).exp();
        let bottom = (f64::from(index - 1) * width()).exp();
        top - self.above * (top - bottom)
    }
}

/// The bin of a value.
pub(super) fn bin_of(value: f64) -> Bin {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "±863: both limits' logarithms by the width of a bin"
    )]
    (value >= VALUE_MIN).then(|| (value.min(VALUE_MAX).ln() / width()).ceil() as i16)
}

/// The logarithm of γ.
fn width() -> f64 {
    ((1.0 + ACCURACY) / (1.0 - ACCURACY)).ln()
}

fn length(bins: &[u64]) -> i16 {
    i16::try_from(bins.len()).unwrap_or(i16::MAX)
}

fn length_max() -> i16 {
    i16::try_from(BINS_MAX).unwrap_or(i16::MAX)
}
