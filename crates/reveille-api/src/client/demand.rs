//! Request logs, and what they tell of users and groups.

use axum::http::Method;

use reveille_core::model::DomainName;

use super::{Client, ClientError, escaped, path_of};
use crate::routes::{LOG_MS_MAX, LOGS_PATH, REQUEST_MS_MAX, WAIT_MS_MAX};
use crate::types::{
    DemandProfile, DemandProfileSummary, DemandRange, DemandReport, LogReport, ServiceDemand, Whose,
};

impl Client {
    /// Sends a request log, or a part of one that ends with a line.
    ///
    /// # Errors
    /// See [`ClientError`]; lines with faults are none.
    pub async fn send_log(&self, log: Vec<u8>) -> Result<LogReport, ClientError> {
        self.call(Method::POST, LOGS_PATH, Some(log), WAIT_MS_MAX).await
    }

    /// Sends a whole request log, packed as it is if it begins as gzip or zstd does.
    ///
    /// # Errors
    /// See [`ClientError`]; lines with faults are none.
    pub async fn send_whole_log(&self, log: Vec<u8>) -> Result<LogReport, ClientError> {
        self.call(Method::POST, LOGS_PATH, Some(log), LOG_MS_MAX).await
    }

    /// What was asked of a service of late.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn service_demand(
        &self,
        name: &DomainName,
        asked: DemandRange,
    ) -> Result<ServiceDemand, ClientError> {
        let path = path_of(name, &format!("/demand?hours={}&step_s={}", asked.hours, asked.step_s));
        self.call(Method::GET, &path, None, REQUEST_MS_MAX).await
    }

    /// What is recorded of demand, in short.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn demand(&self) -> Result<DemandReport, ClientError> {
        self.call(Method::GET, "/v1/demand", None, REQUEST_MS_MAX).await
    }

    /// All users or groups with a profile, page by page.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn demand_profiles(&self, whose: Whose) -> Result<Vec<DemandProfileSummary>, ClientError> {
        self.all(&format!("/v1/demand/{whose}")).await
    }

    /// One user's or group's profile.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn demand_profile(&self, whose: Whose, name: &str) -> Result<DemandProfile, ClientError> {
        self.call(Method::GET, &format!("/v1/demand/{whose}/{}", escaped(name)), None, REQUEST_MS_MAX).await
    }
}
