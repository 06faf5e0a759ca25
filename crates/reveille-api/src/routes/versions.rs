//! Versions of services: listing, checking, going back, keeping and deleting; other images.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use reveille_core::model::{DomainName, SpecFault};
use serde::Deserialize;

use super::{Shared, checked_name, read_json, wait_of};
use crate::control::{Depth, Pin, Unstored};
use crate::problem::Problem;
use crate::types::{DeployReply, PruneReport, Redeploy, VerifyReport, VersionDetail, VersionList};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyAsked {
    /// Only whether everything is there with its length.
    #[serde(default)]
    quick: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExchangeAsked {
    #[serde(default)]
    wait: bool,
    #[serde(default)]
    discard: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneAsked {
    #[serde(default)]
    dry_run: bool,
}

impl ExchangeAsked {
    const fn unstored(&self) -> Unstored {
        if self.discard { Unstored::Discard } else { Unstored::Keep }
    }
}

fn checked_version(name: &str, number: &str) -> Result<(DomainName, u64), Problem> {
    let name = checked_name(name)?;
    let fault = || SpecFault::new("number", number, "a version's number, such as 3");
    match number.parse() {
        Ok(parsed) if parsed > 0 => Ok((name, parsed)),
        Ok(_) | Err(_) => Err(Problem::invalid(vec![fault()])),
    }
}

pub async fn list(State(api): Shared, Path(name): Path<String>) -> Result<Json<VersionList>, Problem> {
    Ok(Json(api.control.versions(&checked_name(&name)?).await?))
}

pub async fn show(
    State(api): Shared,
    Path((name, number)): Path<(String, String)>,
) -> Result<Json<VersionDetail>, Problem> {
    let (name, number) = checked_version(&name, &number)?;
    Ok(Json(api.control.version(&name, number).await?))
}

pub async fn verify(
    State(api): Shared,
    Path((name, number)): Path<(String, String)>,
    Query(asked): Query<VerifyAsked>,
) -> Result<Json<VerifyReport>, Problem> {
    let (name, number) = checked_version(&name, &number)?;
    let depth = if asked.quick { Depth::Lengths } else { Depth::Pages };
    Ok(Json(api.control.verify_version(&name, number, depth).await?))
}

pub async fn restore(
    State(api): Shared,
    Path((name, number)): Path<(String, String)>,
    Query(asked): Query<ExchangeAsked>,
) -> Result<Response, Problem> {
    let (name, number) = checked_version(&name, &number)?;
    let reply = api.control.restore_version(&name, number, asked.unstored(), wait_of(asked.wait)).await?;
    let status = if reply.done { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(reply)).into_response())
}

pub async fn pin(
    State(api): Shared,
    Path((name, number)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    set_pin(api, &name, &number, Pin::Set).await
}

pub async fn unpin(
    State(api): Shared,
    Path((name, number)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    set_pin(api, &name, &number, Pin::Cleared).await
}

async fn set_pin(
    api: std::sync::Arc<super::Api>,
    name: &str,
    number: &str,
    pin: Pin,
) -> Result<StatusCode, Problem> {
    let (name, number) = checked_version(name, number)?;
    api.control.pin_version(&name, number, pin).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn delete(
    State(api): Shared,
    Path((name, number)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (name, number) = checked_version(&name, &number)?;
    api.control.delete_version(&name, number).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn prune(
    State(api): Shared,
    Query(asked): Query<PruneAsked>,
) -> Result<Json<PruneReport>, Problem> {
    Ok(Json(api.control.prune(asked.dry_run).await?))
}

pub async fn redeploy(
    State(api): Shared,
    Path(name): Path<String>,
    Query(asked): Query<ExchangeAsked>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<DeployReply>, Problem> {
    let body = body.map_err(|rejection| Problem::of_status(rejection.status(), ""))?;
    let wanted: Redeploy = read_json(&body)?;
    let (name, wait) = (checked_name(&name)?, wait_of(asked.wait));
    Ok(Json(api.control.redeploy(&name, wanted, asked.unstored(), wait).await?))
}

pub async fn rollback(
    State(api): Shared,
    Path(name): Path<String>,
    Query(asked): Query<ExchangeAsked>,
) -> Result<Json<DeployReply>, Problem> {
    let (name, wait) = (checked_name(&name)?, wait_of(asked.wait));
    Ok(Json(api.control.rollback(&name, asked.unstored(), wait).await?))
}
