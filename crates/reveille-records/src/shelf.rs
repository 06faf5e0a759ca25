//! The object store, as far as it is needed here. All paths are relative to `records/` in the depot.

use async_trait::async_trait;
use bytes::Bytes;
use reveille_depot::annex::Annex;
use reveille_depot::objects::ObjectError;

/// Why the object store did not do something.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct ShelfError(#[from] pub ObjectError);

/// Where files are put.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// Puts a file as a whole, or not at all. One that is there already is this one, of a try whose answer was lost.
    ///
    /// # Errors
    /// The object store refuses or does not answer.
    async fn put(&self, path: &str, file: Bytes) -> Result<(), ShelfError>;

    /// The names of the directories in `path`.
    ///
    /// # Errors
    /// As above.
    async fn directories(&self, path: &str) -> Result<Vec<String>, ShelfError>;

    /// The paths of all files below `path`.
    ///
    /// # Errors
    /// As above.
    async fn list(&self, path: &str) -> Result<Vec<String>, ShelfError>;

    /// Deletes a file; nothing to delete is no error.
    ///
    /// # Errors
    /// As above.
    async fn delete(&self, path: &str) -> Result<(), ShelfError>;

    /// Removes what kills have left of files that were being put, where a store has such.
    ///
    /// # Errors
    /// As above.
    async fn tidy(&self) -> Result<(), ShelfError> {
        Ok(())
    }
}

#[async_trait]
impl Shelf for Annex {
    async fn put(&self, path: &str, file: Bytes) -> Result<(), ShelfError> {
        match self.put_new(path, file).await {
            Ok(()) | Err(ObjectError::Exists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn directories(&self, path: &str) -> Result<Vec<String>, ShelfError> {
        Ok(Annex::directories(self, path).await?)
    }

    async fn list(&self, path: &str) -> Result<Vec<String>, ShelfError> {
        Ok(Annex::list(self, path).await?.into_iter().map(|listed| listed.path).collect())
    }

    async fn delete(&self, path: &str) -> Result<(), ShelfError> {
        Ok(Annex::delete(self, path).await?)
    }

    async fn tidy(&self) -> Result<(), ShelfError> {
        Annex::tidy(self).await?;
        Ok(())
    }
}
