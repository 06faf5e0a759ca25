//! Why an image is not found, not removed, not named.

use std::io;
use std::path::PathBuf;

use super::manifest::ImageFault;
use super::store::NAME_BYTES_MAX;

/// The store's files cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("`{}` in the image store: {source}", path.display())]
pub struct StoreError {
    /// Which file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Why a reference means no image.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// Nothing of that name or digest.
    #[error("there is no image `{reference}`; there are: {}", some_of(available))]
    Unknown {
        /// What was asked for.
        reference: String,
        /// What there is.
        available: Vec<String>,
    },
    /// Several digests begin so.
    #[error("`{reference}` is the beginning of {} images: {}; write more digits", digests.len(), digests.join(", "))]
    Ambiguous {
        /// What was asked for.
        reference: String,
        /// What it may mean.
        digests: Vec<String>,
    },
    /// It is there but cannot be used.
    #[error("image {reference} cannot be used: {fault}")]
    Damaged {
        /// What was asked for.
        reference: String,
        /// What is wrong.
        #[source]
        fault: ImageFault,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an image is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is none such.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Somebody needs it.
    #[error("image `{reference}` is used by {}; remove that first, or give it another image", users.join(", "))]
    InUse {
        /// What was to be removed.
        reference: String,
        /// Who needs it.
        users: Vec<String>,
    },
    /// It was meant by its digest and has several names.
    #[error("image {digest} has the names {}; remove these", names.join(", "))]
    HasNames {
        /// The image.
        digest: String,
        /// Its names.
        names: Vec<String>,
    },
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a name is not possible.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` cannot be the name of an image: write 1 to {NAME_BYTES_MAX} of a-z, 0-9, `.`, `_` and `-`, \
     beginning with a letter or digit; and not the form of a digest"
)]
pub struct NameError(pub String);

/// Names for a message, not all of them when there are many.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 8;
    if names.is_empty() {
        return "none; build one with `reveille image build`".to_owned();
    }
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}
