//! What instances boot, as the control loop sees it.

use std::sync::Arc;

use async_trait::async_trait;
use reveille_vm::image::{Image, ImageStore};

/// Where images are found by name or digest.
#[async_trait]
pub trait Images: Send + Sync {
    /// The image that is meant.
    ///
    /// # Errors
    /// One sentence with the remedy.
    async fn resolve(&self, reference: &str) -> Result<Image, String>;
}

#[async_trait]
impl Images for Arc<ImageStore> {
    async fn resolve(&self, reference: &str) -> Result<Image, String> {
        let (images, name) = (Self::clone(self), reference.to_owned());
        // It reads from the disk.
        match tokio::task::spawn_blocking(move || ImageStore::resolve(&images, &name)).await {
            Ok(resolved) => resolved.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}
