//! The paths under `/v1`, and the health checks and metrics beside them.

mod demand;
mod room;
mod versions;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get, post};
use futures_util::stream::{Stream, unfold};
use reveille_core::model::{DomainName, ServiceSpec, SpecFault};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{broadcast, watch};

use crate::access::Access;
use crate::control::{CloneRequest, Connections, Control, ControlError, Wait};
use crate::events::Event;
use crate::guard::{guard, polish};
use crate::problem::Problem;
use crate::time::Time;
pub use demand::{LOG_MS_MAX, LOGS_PATH};

use crate::types::{
    HostSummary, PAGE_ITEMS_DEFAULT, PAGE_ITEMS_MAX, Page, ProfileReport, ServiceDetail, ServiceSummary,
};
use crate::types::{ReloadReport, VerbReply, Wake, WhyReport};

/// Largest body that is taken.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Longest time for a request that does not wait for a verb to be done, its body included.
pub const REQUEST_MS_MAX: u64 = 10_000;
/// Longest time for a verb that is waited for. A cold boot's own limit may be an hour; nobody holds a request
/// open that long.
pub const WAIT_MS_MAX: u64 = 600_000;
/// Most readers of the event stream at a time.
pub const EVENT_STREAMS_MAX: usize = 64;
/// Decisions and wakes that `why` shows when no `limit` is asked for.
pub const WHY_ITEMS_DEFAULT: usize = 10;
/// A comment is sent on a silent event stream this often, so that a dead reader is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What the routes share.
pub struct Api {
    pub control: Arc<dyn Control>,
    pub access: Arc<Access>,
    /// Becomes true when the server stops, which ends event streams.
    pub stopping: watch::Receiver<bool>,
    pub event_streams: AtomicUsize,
    /// Request logs that are on their way.
    pub logs: AtomicUsize,
}

/// All paths, with everything that a request passes before them.
pub fn router(api: Arc<Api>) -> Router {
    let quick = Router::new()
        .route("/v1/services", get(list_services).post(add_service))
        .route("/v1/services/{name}", get(show_service).delete(remove_service))
        .route("/v1/services/{name}/clone", post(clone_service))
        .route("/v1/services/{name}/why", get(why))
        .route("/v1/services/{name}/wakes", get(wakes))
        .route("/v1/services/{name}/demand", get(demand::of_service))
        .route("/v1/host", get(host))
        .route("/v1/profiles", get(list_profiles))
        .route("/v1/dns", get(room::dns))
        .route("/v1/demand", get(demand::show))
        .route("/v1/demand/users", get(demand::users))
        .route("/v1/demand/users/{name}", get(demand::user))
        .route("/v1/demand/groups", get(demand::groups))
        .route("/v1/demand/groups/{name}", get(demand::group))
        .route("/v1/zones", get(room::list_zones))
        .route("/v1/zones/{zone}/keys", get(room::keys))
        .route("/v1/zones/{zone}/rollover", post(room::rollover))
        .route("/metrics", get(room::metrics))
        .route("/v1/health", get(room::health))
        .route_layer(from_fn(|request, next| limit_time(REQUEST_MS_MAX, request, next)));
    let waiting = Router::new()
        .route("/v1/services/{name}/wake", post(wake))
        .route("/v1/services/{name}/hibernate", post(hibernate))
        .route("/v1/services/{name}/terminate", post(terminate))
        // Stores may be far away.
        .route("/v1/services/{name}/versions", get(versions::list))
        .route("/v1/services/{name}/versions/{number}", get(versions::show).delete(versions::delete))
        .route("/v1/services/{name}/versions/{number}/verify", post(versions::verify))
        .route("/v1/services/{name}/versions/{number}/restore", post(versions::restore))
        .route("/v1/services/{name}/versions/{number}/pin", post(versions::pin).delete(versions::unpin))
        .route("/v1/services/{name}/redeploy", post(versions::redeploy))
        .route("/v1/services/{name}/rollback", post(versions::rollback))
        .route("/v1/depot/prune", post(versions::prune))
        // Many and large zone files take their time.
        .route("/v1/reload", post(reload))
        .route_layer(from_fn(|request, next| limit_time(WAIT_MS_MAX, request, next)));
    // These have limits of their own.
    let streaming = Router::new().route("/v1/events", get(events)).route(LOGS_PATH, post(demand::take_log));
    let guarded =
        quick.merge(waiting).merge(streaming).route_layer(from_fn_with_state(Arc::clone(&api), guard));
    // Health tells nothing that needs a guard, and is asked by name from wherever a supervisor runs.
    let health = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz));
    guarded.merge(health).layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).layer(from_fn(polish)).with_state(api)
}

async fn limit_time(limit_ms: u64, request: Request, next: Next) -> Response {
    match tokio::time::timeout(Duration::from_millis(limit_ms), next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::timed_out(limit_ms).into_response(),
    }
}

// --- Arguments -------------------------------------------------------------------------------------------------

/// Which part of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageAsked {
    limit: Option<usize>,
    cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitAsked {
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitAsked {
    #[serde(default)]
    wait: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WakeAsked {
    #[serde(default)]
    wait: bool,
    /// Not now, but at this time; `never` takes the time back.
    at: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HibernateAsked {
    #[serde(default)]
    force: bool,
    #[serde(default)]
    wait: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsAsked {
    service: Option<DomainName>,
}

impl PageAsked {
    /// How many items, and where to go on.
    fn checked<C: std::str::FromStr>(&self) -> Result<(usize, Option<C>), Problem> {
        let limit = checked_limit(self.limit, PAGE_ITEMS_DEFAULT)?;
        let cursor = self.cursor.as_ref().map(|cursor| {
            let fault = || SpecFault::new("cursor", cursor, "a next_cursor of the page before");
            cursor.parse().map_err(|_| Problem::invalid(vec![fault()]))
        });
        Ok((limit, cursor.transpose()?))
    }
}

fn checked_limit(asked: Option<usize>, default: usize) -> Result<usize, Problem> {
    match asked {
        None => Ok(default),
        Some(limit) if (1..=PAGE_ITEMS_MAX).contains(&limit) => Ok(limit),
        Some(limit) => {
            Err(Problem::invalid(vec![SpecFault::new("limit", limit, format!("1 to {PAGE_ITEMS_MAX}"))]))
        }
    }
}

fn checked_name(text: &str) -> Result<DomainName, Problem> {
    text.parse().map_err(|error: reveille_core::model::NameError| {
        Problem::invalid(vec![SpecFault::new("name", text, error.to_string())])
    })
}

const fn wait_of(wait: bool) -> Wait {
    if wait { Wait::UntilDone } else { Wait::UntilAccepted }
}

/// Makes a page of one item more than was asked for, which tells whether there is more.
fn page_of<T>(mut items: Vec<T>, limit: usize, cursor: impl Fn(&T) -> String) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = if more { items.last().map(cursor) } else { None };
    Page { items, next_cursor }
}

// --- Services --------------------------------------------------------------------------------------------------

type Shared = State<Arc<Api>>;

async fn list_profiles(
    State(api): Shared,
    Query(asked): Query<PageAsked>,
) -> Result<Json<Page<ProfileReport>>, Problem> {
    let (limit, after) = asked.checked::<String>()?;
    let later = |profile: &ProfileReport| after.as_ref().is_none_or(|after| profile.name > *after);
    let items = api.control.profiles().into_iter().filter(later).take(limit + 1).collect();
    Ok(Json(page_of(items, limit, |profile| profile.name.clone())))
}

async fn list_services(
    State(api): Shared,
    Query(asked): Query<PageAsked>,
) -> Result<Json<Page<ServiceSummary>>, Problem> {
    let (limit, after) = asked.checked::<DomainName>()?;
    let items = api.control.services(after.as_ref(), limit + 1).await?;
    Ok(Json(page_of(items, limit, |service| service.name.to_string())))
}

async fn show_service(State(api): Shared, Path(name): Path<String>) -> Result<Json<ServiceDetail>, Problem> {
    Ok(Json(api.control.service(&checked_name(&name)?).await?))
}

async fn add_service(State(api): Shared, body: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
    let body = body.map_err(|rejection| Problem::of_status(rejection.status(), ""))?;
    let mut body: Value = read_json(&body)?;
    lay_over(&mut body, "policy", &api.control.default_policy());
    lay_over(&mut body, "health", &api.control.default_health());
    let spec: ServiceSpec =
        serde_path_to_error::deserialize(body).map_err(|fault| not_as_expected(&fault))?;
    let faults = spec.faults();
    if !faults.is_empty() {
        return Err(Problem::invalid(faults));
    }
    let detail = api.control.add_service(spec).await?;
    Ok((StatusCode::CREATED, Json(detail)).into_response())
}

async fn clone_service(
    State(api): Shared,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = body.map_err(|rejection| Problem::of_status(rejection.status(), ""))?;
    let asked: CloneRequest = read_json(&body)?;
    let detail = api.control.clone_service(&checked_name(&name)?, asked).await?;
    Ok((StatusCode::CREATED, Json(detail)).into_response())
}

async fn remove_service(State(api): Shared, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    api.control.remove_service(&checked_name(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Reads a body; what is wrong with it is told with its place.
fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize(&mut json);
    let fault = match read {
        Ok(value) => match json.end() {
            Ok(()) => return Ok(value),
            Err(error) => return Err(bad_json(&error)),
        },
        Err(fault) => fault,
    };
    match fault.inner().classify() {
        serde_json::error::Category::Data => Err(not_as_expected(&fault)),
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => Err(bad_json(fault.inner())),
    }
}

fn not_as_expected(fault: &serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let key = fault.path().to_string();
    let key = if key == "." { "body" } else { &key };
    Problem::invalid(vec![SpecFault::new(key, "as given", fault.inner().to_string())])
}

/// A new service states only what differs from what the daemon has under `key`, as in the config file.
fn lay_over(body: &mut Value, key: &str, default: &impl Serialize) {
    let (Some(body), Ok(Value::Object(mut whole))) = (body.as_object_mut(), serde_json::to_value(default))
    else {
        return;
    };
    match body.get_mut(key) {
        None => {}
        Some(Value::Object(own)) => whole.append(own),
        // What is no object is found fault with when it is read.
        Some(_) => return,
    }
    body.insert(key.to_owned(), Value::Object(whole));
}

fn bad_json(error: &serde_json::Error) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-json", "Not JSON", format!("the body is no JSON: {error}"))
}

// --- Verbs -----------------------------------------------------------------------------------------------------

async fn wake(
    State(api): Shared,
    Path(name): Path<String>,
    Query(asked): Query<WakeAsked>,
) -> Result<Response, Problem> {
    let name = checked_name(&name)?;
    match asked.at.as_deref() {
        None => reply(api.control.wake(&name, wait_of(asked.wait))).await,
        Some("never") => reply(api.control.wake_at(&name, None)).await,
        Some(text) => {
            let fault =
                |error: crate::time::TimeError| SpecFault::new("at", text, format!("{error}, or never"));
            let at: Time = text.parse().map_err(|error| Problem::invalid(vec![fault(error)]))?;
            reply(api.control.wake_at(&name, Some(at))).await
        }
    }
}

async fn hibernate(
    State(api): Shared,
    Path(name): Path<String>,
    Query(asked): Query<HibernateAsked>,
) -> Result<Response, Problem> {
    let connections = if asked.force { Connections::Cut } else { Connections::Keep };
    reply(api.control.hibernate(&checked_name(&name)?, connections, wait_of(asked.wait))).await
}

async fn terminate(
    State(api): Shared,
    Path(name): Path<String>,
    Query(asked): Query<WaitAsked>,
) -> Result<Response, Problem> {
    reply(api.control.terminate(&checked_name(&name)?, wait_of(asked.wait))).await
}

/// 200 if it is so by now, 202 if it is under way.
async fn reply(verb: impl Future<Output = Result<VerbReply, ControlError>>) -> Result<Response, Problem> {
    let reply = verb.await?;
    let status = if reply.done { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(reply)).into_response())
}

// --- History and host ------------------------------------------------------------------------------------------

async fn why(
    State(api): Shared,
    Path(name): Path<String>,
    Query(asked): Query<LimitAsked>,
) -> Result<Json<WhyReport>, Problem> {
    let limit = checked_limit(asked.limit, WHY_ITEMS_DEFAULT)?;
    Ok(Json(api.control.why(&checked_name(&name)?, limit).await?))
}

async fn wakes(
    State(api): Shared,
    Path(name): Path<String>,
    Query(asked): Query<PageAsked>,
) -> Result<Json<Page<Wake>>, Problem> {
    let (limit, before) = asked.checked::<u64>()?;
    let items = api.control.wakes(&checked_name(&name)?, before, limit + 1).await?;
    Ok(Json(page_of(items, limit, |wake| wake.seq.to_string())))
}

async fn reload(State(api): Shared) -> Result<Json<ReloadReport>, Problem> {
    Ok(Json(api.control.reload().await?))
}

async fn host(State(api): Shared) -> Result<Json<HostSummary>, Problem> {
    Ok(Json(api.control.host().await?))
}

async fn healthz() -> Json<Value> {
    Json(serde_json::json!({ "status": "alive" }))
}

async fn readyz(State(api): Shared) -> Result<Json<Value>, Problem> {
    match api.control.readiness() {
        Ok(()) => Ok(Json(serde_json::json!({ "status": "ready" }))),
        Err(detail) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "Not ready", detail)),
    }
}

// --- Events ----------------------------------------------------------------------------------------------------

/// One place among the [`EVENT_STREAMS_MAX`], given back when the reader is gone.
struct StreamPlace(Arc<Api>);

impl StreamPlace {
    fn take(api: &Arc<Api>) -> Option<Self> {
        let place = Self(Arc::clone(api));
        // Counted first and given back by the drop of `place`, so that two who come at once do not both fit.
        let taken = api.event_streams.fetch_add(1, Ordering::Relaxed);
        (taken < EVENT_STREAMS_MAX).then_some(place)
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.event_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn events(State(api): Shared, Query(asked): Query<EventsAsked>) -> Result<Response, Problem> {
    let Some(place) = StreamPlace::take(&api) else {
        let detail = format!("{EVENT_STREAMS_MAX} readers of the event stream are connected already");
        let problem =
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-streams", "Too many readers", detail);
        return Err(Problem { retry_ms: Some(1_000), ..problem });
    };
    let stream = stream_of(api.control.events(), api.stopping.clone(), asked.service, place);
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

fn stream_of(
    events: broadcast::Receiver<Event>,
    stopping: watch::Receiver<bool>,
    service: Option<DomainName>,
    place: StreamPlace,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    unfold((events, stopping, service, place), |(mut events, mut stopping, service, place)| async move {
        loop {
            let received = tokio::select! {
                // An error means that the server is gone, which ends the stream as well.
                _ = stopping.wait_for(|stopping| *stopping) => return None,
                received = events.recv() => received,
            };
            let event = match received {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(missed)) => Event::Lagged { missed },
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            let concerned =
                service.is_none() || event.service().is_none() || event.service() == service.as_ref();
            if !concerned {
                continue;
            }
            match sse::Event::default().event(event.word()).json_data(&event) {
                Ok(sent) => return Some((Ok(sent), (events, stopping, service, place))),
                Err(error) => tracing::warn!(%error, "an event has no JSON form"),
            }
        }
    })
}
