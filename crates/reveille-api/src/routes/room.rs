//! The query room: what it has counted and seen, its zones and their keys.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use reveille_core::model::{DomainName, SpecFault};
use serde::Deserialize;

use super::{PageAsked, Shared, page_of};
use crate::control::RolloverStep;
use crate::metrics;
use crate::problem::Problem;
use crate::types::{DnsReport, HealthReport, Page, ZoneKeys, ZoneSummary};

/// How a rollover goes on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloverAsked {
    #[serde(default)]
    ds_seen: bool,
}

pub async fn dns(State(api): Shared) -> Result<Json<DnsReport>, Problem> {
    Ok(Json(api.control.dns().await?))
}

pub async fn health(State(api): Shared) -> Result<Json<HealthReport>, Problem> {
    Ok(Json(api.control.health().await?))
}

pub async fn metrics(State(api): Shared) -> Result<Response, Problem> {
    let (dns, host) = (api.control.dns().await?, api.control.host().await?);
    let health = api.control.health().await?;
    // A daemon without a history has nothing to tell of it.
    let demand = api.control.demand().await.ok();
    let text = metrics::text(&dns, &host, &health, demand.as_ref());
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

pub async fn list_zones(
    State(api): Shared,
    Query(asked): Query<PageAsked>,
) -> Result<Json<Page<ZoneSummary>>, Problem> {
    let (limit, after) = asked.checked::<DomainName>()?;
    let items = api.control.zones(after.as_ref(), limit + 1).await?;
    Ok(Json(page_of(items, limit, |zone| zone.name.to_string())))
}

pub async fn keys(State(api): Shared, Path(zone): Path<String>) -> Result<Json<ZoneKeys>, Problem> {
    Ok(Json(api.control.zone_keys(&checked_zone(&zone)?).await?))
}

pub async fn rollover(
    State(api): Shared,
    Path(zone): Path<String>,
    Query(asked): Query<RolloverAsked>,
) -> Result<Json<ZoneKeys>, Problem> {
    let step = if asked.ds_seen { RolloverStep::DsSeen } else { RolloverStep::Begin };
    Ok(Json(api.control.rollover(&checked_zone(&zone)?, step).await?))
}

fn checked_zone(text: &str) -> Result<DomainName, Problem> {
    text.parse().map_err(|error: reveille_core::model::NameError| {
        Problem::invalid(vec![SpecFault::new("zone", text, error.to_string())])
    })
}
