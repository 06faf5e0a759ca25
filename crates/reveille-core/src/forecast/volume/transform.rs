//! The scale on which a model works: counts are often multiplicative (logarithm) or Poisson-like (square root).

use super::Fault;

/// Of values, before a model sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// As they are.
    Identity,
    /// Logarithm; for positive values only.
    Log,
    /// Square root; for values that are not negative.
    Sqrt,
}

impl Transform {
    /// The values on the model's scale.
    ///
    /// # Errors
    /// [`Fault::Unfit`] where one has no place on it.
    pub(super) fn apply(self, values: &[f64]) -> Result<Vec<f64>, Fault> {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        match self {
            Self::Identity => Ok(values.to_vec()),
            Self::Log if least > 0.0 => Ok(values.iter().map(|value| value.ln()).collect()),
            Self::Log => Err(Fault::Unfit { why: "a logarithm needs positive values" }),
            Self::Sqrt if least >= 0.0 => Ok(values.iter().map(|value| value.sqrt()).collect()),
            Self::Sqrt => Err(Fault::Unfit { why: "a square root needs values that are not negative" }),
        }
    }

    /// One value back.
    pub(super) fn invert(self, value: f64) -> f64 {
        match self {
            Self::Identity => value,
            Self::Log => value.exp(),
            Self::Sqrt => value.max(0.0).powi(2),
        }
    }

    /// What it adds to a model's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Identity => "",
            Self::Log => "-log",
            Self::Sqrt => "-sqrt",
        }
    }
}
