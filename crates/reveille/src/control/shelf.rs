//! The object store, as the control loop sees it.

use std::path::Path;

use async_trait::async_trait;
use reveille_depot::catalogue::VersionEntry;
use reveille_depot::fetch::{FetchError, FetchOrder};
use reveille_depot::format::manifest::{Description, Manifest};
use reveille_depot::names::{ServiceName, VersionId};
use reveille_depot::objects::ObjectError;
use reveille_depot::owner::{ClaimError, Owner};
use reveille_depot::put::{PutError, PutSummary};
use reveille_depot::source::NewPart;
use reveille_depot::{Depot, Watch};

/// What is needed of a [`Depot`], whose verbs these are.
#[async_trait]
pub trait Shelf: Send + Sync {
    /// See [`Depot::owner`].
    ///
    /// # Errors
    /// If the store cannot be asked or what it has is damaged.
    async fn owner(&self, service: &ServiceName) -> Result<Option<Owner>, ObjectError>;

    /// See [`Depot::claim`], for a service without an owner, and [`Depot::take_over`].
    ///
    /// # Errors
    /// [`ClaimError`].
    async fn claim(
        &self,
        service: &ServiceName,
        host: &str,
        silent: Option<&Owner>,
    ) -> Result<u64, ClaimError>;

    /// See [`Depot::renew`].
    ///
    /// # Errors
    /// [`ClaimError`].
    async fn renew(&self, service: &ServiceName, host: &str, epoch: u64) -> Result<(), ClaimError>;

    /// See [`Depot::store_now_ms`].
    ///
    /// # Errors
    /// If the store cannot be asked.
    async fn store_now_ms(&self) -> Result<u64, ObjectError>;

    /// See [`Depot::list`].
    ///
    /// # Errors
    /// If the store cannot be asked.
    async fn list(&self, service: &ServiceName) -> Result<Vec<VersionEntry>, ObjectError>;

    /// See [`Depot::put_version`].
    ///
    /// # Errors
    /// [`PutError`].
    async fn put_version(
        &self,
        about: &Description,
        parts: Vec<NewPart>,
        compare_with: Option<&VersionId>,
        watch: &Watch,
    ) -> Result<PutSummary, PutError>;

    /// See [`Depot::fetch`].
    ///
    /// # Errors
    /// [`FetchError`].
    async fn fetch(
        &self,
        id: &VersionId,
        to: &Path,
        order: FetchOrder,
        watch: &Watch,
    ) -> Result<Manifest, FetchError>;

    /// See [`Depot::show`].
    ///
    /// # Errors
    /// If the store cannot be asked or what it has is damaged.
    async fn show(&self, id: &VersionId) -> Result<Manifest, ObjectError>;

    /// See [`Depot::republish`].
    ///
    /// # Errors
    /// [`PutError`].
    async fn republish(
        &self,
        from: &VersionId,
        number: u64,
        epoch: u64,
        watch: &Watch,
    ) -> Result<PutSummary, PutError>;

    /// See [`Depot::take_back`].
    ///
    /// # Errors
    /// If the store cannot be asked.
    async fn take_back(&self, id: &VersionId) -> Result<(), ObjectError>;
}

#[async_trait]
impl Shelf for Depot {
    async fn owner(&self, service: &ServiceName) -> Result<Option<Owner>, ObjectError> {
        Self::owner(self, service).await
    }

    async fn claim(
        &self,
        service: &ServiceName,
        host: &str,
        silent: Option<&Owner>,
    ) -> Result<u64, ClaimError> {
        match silent {
            None => Self::claim(self, service, host, None).await,
            Some(owner) => self.take_over(service, host, owner).await,
        }
    }

    async fn renew(&self, service: &ServiceName, host: &str, epoch: u64) -> Result<(), ClaimError> {
        Self::renew(self, service, host, epoch).await
    }

    async fn store_now_ms(&self) -> Result<u64, ObjectError> {
        Self::store_now_ms(self).await
    }

    async fn list(&self, service: &ServiceName) -> Result<Vec<VersionEntry>, ObjectError> {
        Self::list(self, service).await
    }

    async fn put_version(
        &self,
        about: &Description,
        parts: Vec<NewPart>,
        compare_with: Option<&VersionId>,
        watch: &Watch,
    ) -> Result<PutSummary, PutError> {
        Self::put_version(self, about, parts, compare_with, watch).await
    }

    async fn fetch(
        &self,
        id: &VersionId,
        to: &Path,
        order: FetchOrder,
        watch: &Watch,
    ) -> Result<Manifest, FetchError> {
        Self::fetch(self, id, to, order, watch).await
    }

    async fn show(&self, id: &VersionId) -> Result<Manifest, ObjectError> {
        Self::show(self, id).await
    }

    async fn republish(
        &self,
        from: &VersionId,
        number: u64,
        epoch: u64,
        watch: &Watch,
    ) -> Result<PutSummary, PutError> {
        Self::republish(self, from, number, epoch, watch).await
    }

    async fn take_back(&self, id: &VersionId) -> Result<(), ObjectError> {
        Self::take_back(self, id).await
    }
}
