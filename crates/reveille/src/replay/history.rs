//! A daemon's own history as a trace: its arrivals by the minute, and by the second in the hours that are still open. It
//! is read beside the daemon, without its lock and without a change.

use std::path::{Path, PathBuf};

use anyhow::bail;
use reveille_core::model::Timestamp;
use reveille_replay::{AT_MS_MAX, TraceBuilder, TraceError};
use reveille_store::history::{Kind, Offline, Resolution};

/// Most damaged places that are told one by one.
const DAMAGE_TOLD_MAX: usize = 10;

/// Reads the history in a directory or below it; tells what was left out.
///
/// # Errors
/// There is none, it cannot be read, it has no arrivals, or more than a trace may have.
pub fn read(path: &Path, builder: &mut TraceBuilder) -> anyhow::Result<Vec<String>> {
    let (before, place) = (builder.arrivals(), place(path)?);
    let mut told = read_kind(&place, Kind::Arrivals, builder)?;
    if builder.arrivals() == before {
        let requests = read_kind(&place, Kind::Requests, builder)?;
        if builder.arrivals() > before {
            told.push("no arrivals; the requests that logs told of are replayed instead".to_owned());
        }
        told.extend(requests);
    }
    if builder.arrivals() == before {
        let why = if told.is_empty() { "nothing was asked for yet".to_owned() } else { told.join("; ") };
        bail!("the history has no arrivals to replay: {why}");
    }
    Ok(told)
}

fn read_kind(place: &Path, kind: Kind, builder: &mut TraceBuilder) -> anyhow::Result<Vec<String>> {
    let history = Offline::open(place)?;
    let (mut hours, mut hours_until_s) = (0_u64, 0);
    let mut failed: Option<TraceError> = None;
    let damaged = history.points(kind, |point| {
        let at_ms = point.at_s.saturating_mul(1_000).min(AT_MS_MAX);
        let name = String::from_utf8_lossy(point.name);
        let taken = match point.resolution {
            Resolution::Second => builder.moment(&name, at_ms, point.amount),
            Resolution::Minute => builder.minute(&name, at_ms, point.amount),
            // Gaps cannot be told from what came within an hour.
            Resolution::Hour => {
                hours = hours.saturating_add(point.amount);
                hours_until_s = hours_until_s.max(point.at_s.saturating_add(Resolution::Hour.seconds()));
                Ok(())
            }
        };
        failed = taken.err();
        failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let mut told = Vec::new();
    if hours > 0 {
        let until = Timestamp::from_ms(hours_until_s.saturating_mul(1_000)).utc();
        told.push(format!("{hours} of them before {until}, of which only the hour is kept"));
    }
    told.extend(damaged.iter().take(DAMAGE_TOLD_MAX).map(ToString::to_string));
    if damaged.len() > DAMAGE_TOLD_MAX {
        told.push(format!("{} more damaged places", damaged.len() - DAMAGE_TOLD_MAX));
    }
    Ok(told)
}

/// The history's own directory.
fn place(path: &Path) -> anyhow::Result<PathBuf> {
    let below = path.join("history");
    for place in [path, &below] {
        if Offline::is_history(place) {
            return Ok(place.to_owned());
        }
    }
    // Why not, if it is for want of a right.
    std::fs::read_dir(path)?;
    bail!(
        "it is no state directory of a daemon with a history: neither it nor `history` in it has journal-*.log or *.blocks"
    )
}
