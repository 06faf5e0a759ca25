//! Request logs in, and what they tell of users and groups.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use reveille_core::forecast::profile::Request;
use reveille_core::model::SpecFault;
use serde::Deserialize;
use tokio::time::Instant;

use super::{Api, PageAsked, Shared, checked_name, page_of};
use crate::guard::wall_clock;
use crate::problem::Problem;
use crate::request_log::{CODINGS, Coding, CodingError, Fault, Reader, Unpacker};
use crate::types::{
    DemandProfile, DemandProfileSummary, DemandRange, DemandReport, LogReport, Page, ServiceDemand, Whose,
};

/// Where logs are sent to.
pub const LOGS_PATH: &str = "/v1/request-logs";
/// Largest log as it is sent, in bytes; longer ones are sent in parts.
pub const LOG_BYTES_MAX: u64 = 1 << 30;
/// Most logs at a time.
pub const LOGS_MAX: usize = 8;
/// Longest silence of a sender, in ms.
pub const LOG_SILENCE_MS_MAX: u64 = 30_000;
/// Longest time for a log, in ms: an hour.
pub const LOG_MS_MAX: u64 = 3_600_000;
/// Faults that an answer names, each with its line; of more only the number. Some 9 MB at worst.
pub const FAULTS_MAX: usize = 16_384;
/// Most hours that demand is told of at a time: a year.
pub const DEMAND_HOURS_MAX: u64 = 366 * 24;
/// Most steps of them.
pub const DEMAND_STEPS_MAX: u64 = 2_000;
/// Hours, and length of a step in seconds, unless others are asked for.
const DEMAND_DEFAULT: (u64, u64) = (24, 3_600);
/// Requests that are handed to the daemon at a time.
const BATCH_MAX: usize = 512;

/// Takes a log in as it arrives, packed or not, and answers when it is over. Of it no more is held than a line, a batch and
/// what is unpacked at a time.
pub async fn take_log(
    State(api): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<LogReport>, Problem> {
    let coding = coding(&headers)?;
    let _place = Place::take(&api)?;
    let unpacker = Unpacker::new(coding).map_err(|error| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-memory", "No memory", error.to_string())
    })?;
    let mut log = Log { unpacker, reader: Reader::new(wall_clock()), intake: Intake::default() };
    let (mut body, mut bytes) = (body, 0);
    let end = Instant::now() + Duration::from_millis(LOG_MS_MAX);
    loop {
        let silent = Instant::now() + Duration::from_millis(LOG_SILENCE_MS_MAX);
        let Ok(frame) = tokio::time::timeout_at(silent.min(end), body.frame()).await else {
            let detail =
                format!("nothing came for {LOG_SILENCE_MS_MAX} ms, or it took longer than {LOG_MS_MAX} ms");
            let said = ["log-silent", "The sender is silent", &detail];
            return Err(cut(&log.reader, &log.intake, StatusCode::REQUEST_TIMEOUT, said));
        };
        let piece: Bytes = match frame {
            None => break,
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(error)) => {
                let detail = format!("it broke off: {error}");
                let said = ["log-broken", "The log broke off", &detail];
                return Err(cut(&log.reader, &log.intake, StatusCode::BAD_REQUEST, said));
            }
        };
        bytes += piece.len() as u64;
        if bytes > LOG_BYTES_MAX {
            let detail = format!("it is longer than {LOG_BYTES_MAX} bytes; send it in parts");
            let said = ["too-large", "Body too large", &detail];
            return Err(cut(&log.reader, &log.intake, StatusCode::PAYLOAD_TOO_LARGE, said));
        }
        let mut rest = &*piece;
        loop {
            match log.step(&mut rest) {
                Ok(true) if log.intake.requests.len() < BATCH_MAX => {}
                Ok(true) => log.intake.hand_over(&api).await?,
                Ok(false) => break,
                Err(error) => {
                    log.intake.hand_over(&api).await?;
                    return Err(not_unpacked(&log.reader, &log.intake, &error));
                }
            }
        }
    }
    let Log { unpacker, mut reader, mut intake } = log;
    match unpacker.finish() {
        Ok(last) => reader.push(&last, &mut |line| intake.take(line)),
        Err(error) => {
            intake.hand_over(&api).await?;
            return Err(not_unpacked(&reader, &intake, &error));
        }
    }
    let lines = reader.finish(&mut |line| intake.take(line));
    intake.hand_over(&api).await?;
    Ok(Json(LogReport { lines, ..intake.report }))
}

/// How the log is packed.
fn coding(headers: &HeaderMap) -> Result<Coding, Problem> {
    let mut given = headers.get_all(header::CONTENT_ENCODING).iter();
    let (first, second) = (given.next(), given.next());
    match first.map(|value| Coding::of_header(value.as_bytes())) {
        None => Ok(Coding::Identity),
        Some(Some(coding)) if second.is_none() => Ok(coding),
        Some(_) => {
            let all = headers.get_all(header::CONTENT_ENCODING).iter();
            let all: Vec<_> = all.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
            let detail =
                format!("a log is sent as {CODINGS}, not with the content coding {}", all.join(", "));
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            Err(Problem::new(status, "content-coding", "Content coding not known", detail))
        }
    }
}

/// A log that is on its way.
struct Log {
    unpacker: Unpacker,
    reader: Reader,
    intake: Intake,
}

impl Log {
    /// Reads on in `rest`; false when all of it was read.
    fn step(&mut self, rest: &mut &[u8]) -> Result<bool, CodingError> {
        let Some(plain) = self.unpacker.step(rest)? else { return Ok(false) };
        let intake = &mut self.intake;
        self.reader.push(plain, &mut |line| intake.take(line));
        Ok(true)
    }
}

/// What is said of a log that ends before its end. What was handed over of it is taken in.
fn cut(reader: &Reader, intake: &Intake, status: StatusCode, [kind, title, why]: [&str; 3]) -> Problem {
    let tally = reader.tally();
    let accepted = tally.accepted - intake.requests.len() as u64;
    let detail = format!(
        "the log was not read to its end: {why}; of its lines {} were read, and {accepted} requests of them taken in",
        tally.accepted + tally.refused + tally.blank,
    );
    Problem::new(status, kind, title, detail)
}

/// The same of one that cannot be unpacked any further.
fn not_unpacked(reader: &Reader, intake: &Intake, error: &CodingError) -> Problem {
    let (status, kind, title) = match error {
        CodingError::Damaged { .. } => (StatusCode::BAD_REQUEST, "log-damaged", "The log is damaged"),
        CodingError::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Body too large"),
        CodingError::TooDense { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-dense", "Packed too densely"),
    };
    cut(reader, intake, status, [kind, title, &error.to_string()])
}

/// What has come of lines, on its way to the daemon.
#[derive(Default)]
struct Intake {
    requests: Vec<Request>,
    /// Refused lines since the last batch.
    refused: u64,
    report: LogReport,
}

impl Intake {
    fn take(&mut self, line: Result<Request, Fault>) {
        match line {
            Ok(request) => self.requests.push(request),
            Err(fault) => {
                self.refused += 1;
                if self.report.faults.len() < FAULTS_MAX {
                    self.report.faults.push(fault);
                } else {
                    self.report.faults_left_out += 1;
                }
            }
        }
    }

    async fn hand_over(&mut self, api: &Api) -> Result<(), Problem> {
        let (requests, refused) = (std::mem::take(&mut self.requests), std::mem::take(&mut self.refused));
        self.report.taken.add(api.control.take_requests(requests, refused).await?);
        Ok(())
    }
}

/// One place among the [`LOGS_MAX`], given back when the log is over.
struct Place(Arc<Api>);

impl Place {
    fn take(api: &Arc<Api>) -> Result<Self, Problem> {
        let place = Self(Arc::clone(api));
        // Counted first and given back by the drop of `place`, so that two who come at once do not both fit.
        if api.logs.fetch_add(1, Ordering::Relaxed) < LOGS_MAX {
            return Ok(place);
        }
        let detail = format!("{LOGS_MAX} request logs are on their way already");
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let problem = Problem::new(status, "too-many-logs", "Too many logs", detail);
        Err(Problem { retry_ms: Some(1_000), ..problem })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.logs.fetch_sub(1, Ordering::Relaxed);
    }
}

// --- What they tell --------------------------------------------------------------------------------------------------

pub async fn show(State(api): Shared) -> Result<Json<DemandReport>, Problem> {
    Ok(Json(api.control.demand().await?))
}

/// Which part of a service's history.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeAsked {
    hours: Option<u64>,
    step_s: Option<u64>,
}

impl RangeAsked {
    fn checked(&self) -> Result<DemandRange, Problem> {
        let (hours, step_s) =
            (self.hours.unwrap_or(DEMAND_DEFAULT.0), self.step_s.unwrap_or(DEMAND_DEFAULT.1));
        let invalid = |fault| Err(Problem::invalid(vec![fault]));
        if !(1..=DEMAND_HOURS_MAX).contains(&hours) {
            return invalid(SpecFault::new("hours", hours, format!("1 to {DEMAND_HOURS_MAX}")));
        }
        let least = (hours * 3_600).div_ceil(DEMAND_STEPS_MAX);
        if !(least..=hours * 3_600).contains(&step_s) {
            let allowed = format!("{least} to {}: at most {DEMAND_STEPS_MAX} steps", hours * 3_600);
            return invalid(SpecFault::new("step_s", step_s, allowed));
        }
        Ok(DemandRange { hours, step_s })
    }
}

pub async fn of_service(
    State(api): Shared,
    Path(name): Path<String>,
    Query(asked): Query<RangeAsked>,
) -> Result<Json<ServiceDemand>, Problem> {
    let name = checked_name(&name)?;
    Ok(Json(api.control.service_demand(&name, asked.checked()?).await?))
}

pub async fn users(
    api: Shared,
    asked: Query<PageAsked>,
) -> Result<Json<Page<DemandProfileSummary>>, Problem> {
    list(api, asked, Whose::Users).await
}

pub async fn groups(
    api: Shared,
    asked: Query<PageAsked>,
) -> Result<Json<Page<DemandProfileSummary>>, Problem> {
    list(api, asked, Whose::Groups).await
}

async fn list(
    State(api): Shared,
    Query(asked): Query<PageAsked>,
    whose: Whose,
) -> Result<Json<Page<DemandProfileSummary>>, Problem> {
    let (limit, after) = asked.checked::<String>()?;
    let items = api.control.demand_profiles(whose, after.as_deref(), limit + 1).await?;
    Ok(Json(page_of(items, limit, |profile| profile.name.clone())))
}

pub async fn user(State(api): Shared, Path(name): Path<String>) -> Result<Json<DemandProfile>, Problem> {
    Ok(Json(api.control.demand_profile(Whose::Users, &name).await?))
}

pub async fn group(State(api): Shared, Path(name): Path<String>) -> Result<Json<DemandProfile>, Problem> {
    Ok(Json(api.control.demand_profile(Whose::Groups, &name).await?))
}
