//! Rows as the bytes of a file.

#[cfg(feature = "parquet")]
mod columns;

use std::sync::Arc;

use crate::row::{QueryRow, RequestRow};

/// Rows cannot be written, which is a fault of this program.
#[derive(Debug, thiserror::Error)]
#[error("cannot write a file of {rows} rows: {why}")]
pub struct EncodeError {
    /// How many there were.
    pub rows: usize,
    /// What is wrong.
    pub why: String,
}

/// A form of files.
pub trait Encode: Send + Sync {
    /// A file of questions.
    ///
    /// # Errors
    /// They cannot be written.
    fn queries(&self, rows: &[QueryRow]) -> Result<Vec<u8>, EncodeError>;

    /// A file of requests.
    ///
    /// # Errors
    /// They cannot be written.
    fn requests(&self, rows: &[RequestRow]) -> Result<Vec<u8>, EncodeError>;
}

/// Parquet; `None` in a build without the feature `parquet`.
#[must_use]
#[cfg(feature = "parquet")]
pub fn parquet() -> Option<Arc<dyn Encode>> {
    Some(Arc::new(columns::Parquet))
}

/// Parquet; `None` in a build without the feature `parquet`.
#[must_use]
#[cfg(not(feature = "parquet"))]
pub fn parquet() -> Option<Arc<dyn Encode>> {
    None
}
