//! Calls about versions of services.

use axum::http::Method;
use reveille_core::model::DomainName;

use super::{Client, ClientError, path_of};
use crate::control::{Depth, Pin, Unstored, Wait};
use crate::routes::WAIT_MS_MAX;
use crate::types::{
    DeployReply, PruneReport, Redeploy, RestoreReply, VerifyReport, VersionDetail, VersionList,
};

impl Client {
    /// The versions of a service, newest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn versions(&self, name: &DomainName) -> Result<VersionList, ClientError> {
        self.call(Method::GET, &path_of(name, "/versions"), None, WAIT_MS_MAX).await
    }

    /// One version.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn version(&self, name: &DomainName, number: u64) -> Result<VersionDetail, ClientError> {
        self.call(Method::GET, &at(name, number, ""), None, WAIT_MS_MAX).await
    }

    /// Checks a version where it lies.
    ///
    /// # Errors
    /// See [`ClientError`]; what is wrong with the version is in the answer.
    pub async fn verify_version(
        &self,
        name: &DomainName,
        number: u64,
        depth: Depth,
    ) -> Result<VerifyReport, ClientError> {
        let quick = depth == Depth::Lengths;
        let path = at(name, number, &format!("/verify?quick={quick}"));
        self.call(Method::POST, &path, None, WAIT_MS_MAX).await
    }

    /// Makes a version the one that the next wake starts from.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn restore_version(
        &self,
        name: &DomainName,
        number: u64,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<RestoreReply, ClientError> {
        let path = at(name, number, &format!("/restore?{}", asked(unstored, wait)));
        self.call(Method::POST, &path, None, WAIT_MS_MAX).await
    }

    /// Pins a version, or takes the pin away.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn pin_version(&self, name: &DomainName, number: u64, pin: Pin) -> Result<(), ClientError> {
        let method = match pin {
            Pin::Set => Method::POST,
            Pin::Cleared => Method::DELETE,
        };
        self.bytes(method, &at(name, number, "/pin"), None, WAIT_MS_MAX).await.map(drop)
    }

    /// Deletes a version.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_version(&self, name: &DomainName, number: u64) -> Result<(), ClientError> {
        self.bytes(Method::DELETE, &at(name, number, ""), None, WAIT_MS_MAX).await.map(drop)
    }

    /// Deletes the versions that nothing keeps, and what nobody needs any more; or tells what would go.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn prune(&self, dry_run: bool) -> Result<PruneReport, ClientError> {
        self.call(Method::POST, &format!("/v1/depot/prune?dry_run={dry_run}"), None, WAIT_MS_MAX).await
    }

    /// Gives a service another image or other resources.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn redeploy(
        &self,
        name: &DomainName,
        wanted: &Redeploy,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ClientError> {
        let body = serde_json::to_vec(wanted).map_err(|error| self.not_understood(&error))?;
        let path = path_of(name, &format!("/redeploy?{}", asked(unstored, wait)));
        self.call(Method::POST, &path, Some(body), WAIT_MS_MAX).await
    }

    /// Gives a service the image, the resources and the version of before its last redeploy.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rollback(
        &self,
        name: &DomainName,
        unstored: Unstored,
        wait: Wait,
    ) -> Result<DeployReply, ClientError> {
        let path = path_of(name, &format!("/rollback?{}", asked(unstored, wait)));
        self.call(Method::POST, &path, None, WAIT_MS_MAX).await
    }
}

fn at(name: &DomainName, number: u64, more: &str) -> String {
    path_of(name, &format!("/versions/{number}{more}"))
}

fn asked(unstored: Unstored, wait: Wait) -> String {
    format!("wait={}&discard={}", wait == Wait::UntilDone, unstored == Unstored::Discard)
}
