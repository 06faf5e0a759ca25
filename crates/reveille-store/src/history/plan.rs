//! What is to be done with the files: pure, from their levels, spans and sizes.

use std::sync::Arc;

use super::Limits;
use super::compact::Job;
use super::segment::Segment;
use super::series::{DAY_S, HOUR_S, Level, Resolution};

/// A day is packed this long after its end.
const DAY_GRACE_S: u64 = HOUR_S;
/// Files of one hour from which on they are made one. There are several where hours were packed before their end.
const PIECES_MAX: usize = 8;

/// What is done next.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Make one file of several.
    Merge(Job),
    /// Remove a file whose time is over.
    Drop(Arc<Segment>),
    /// As [`Step::Merge`], before its time, since the disk's share is used up: up to here there are hours only.
    MergeEarly(Job, u64),
    /// As [`Step::Drop`], before its time: up to here there is nothing.
    DropEarly(Arc<Segment>, u64),
}

/// The next step, if any. Retention waits while the clock is not `settled`.
pub(super) fn next_step(
    segments: &[Arc<Segment>],
    journal_bytes: u64,
    now_s: u64,
    settled: bool,
    limits: &Limits,
) -> Option<Step> {
    pieces(segments)
        .or_else(|| days(segments, now_s))
        .map(Step::Merge)
        .or_else(|| if settled { retire(segments, now_s, limits) } else { None })
        .or_else(|| shrink(segments, journal_bytes, now_s, limits))
}

/// Everything of the levels in a span, as a job that makes one file of it.
fn merge(segments: &[Arc<Segment>], level: Level, from: &[Level], start_s: u64) -> Job {
    let start_s = start_s - start_s % level.span_s();
    let within = |segment: &&Arc<Segment>| {
        (from.contains(&segment.level) || segment.level == level)
            && segment.start_s >= start_s
            && segment.end_s() <= start_s + level.span_s()
    };
    let inputs = segments.iter().filter(within).take(super::segment::INPUTS_MAX).cloned().collect();
    Job { level, start_s, inputs }
}

fn pieces(segments: &[Arc<Segment>]) -> Option<Job> {
    let hours = segments.iter().filter(|segment| segment.level == Level::MinutesOfHour);
    let jobs = hours.map(|segment| merge(segments, Level::MinutesOfHour, &[], segment.start_s));
    jobs.into_iter().find(|job| job.inputs.len() >= PIECES_MAX)
}

fn days(segments: &[Arc<Segment>], now_s: u64) -> Option<Job> {
    let over = |segment: &&Arc<Segment>| {
        let day_end = segment.start_s - segment.start_s % DAY_S + DAY_S;
        segment.level == Level::MinutesOfHour && now_s >= day_end + DAY_GRACE_S
    };
    let hour = segments.iter().find(over)?;
    Some(merge(segments, Level::MinutesOfDay, &[Level::MinutesOfHour], hour.start_s))
}

fn retire(segments: &[Arc<Segment>], now_s: u64, limits: &Limits) -> Option<Step> {
    let older = |segment: &&Arc<Segment>, age_s: u64| segment.end_s() + age_s <= now_s;
    let of = |level: Level| segments.iter().filter(move |segment| segment.level == level);
    if let Some(day) = of(Level::MinutesOfDay).find(|day| older(day, limits.minutes_kept_s)) {
        return Some(Step::Merge(merge(segments, Level::HoursOfDay, &[Level::MinutesOfDay], day.start_s)));
    }
    let month_over = |day: &&Arc<Segment>| {
        let span = Level::HoursOfMonth.span_s();
        day.start_s - day.start_s % span + span + limits.minutes_kept_s + DAY_S <= now_s
    };
    if let Some(day) = of(Level::HoursOfDay).find(month_over) {
        return Some(Step::Merge(merge(segments, Level::HoursOfMonth, &[Level::HoursOfDay], day.start_s)));
    }
    let hours = segments.iter().filter(|segment| segment.level.resolution() == Resolution::Hour);
    hours.into_iter().find(|segment| older(segment, limits.hours_kept_s)).cloned().map(Step::Drop)
}

/// Over the limit the oldest minutes become hours; where there are none to spare, the oldest hours go.
fn shrink(segments: &[Arc<Segment>], journal_bytes: u64, now_s: u64, limits: &Limits) -> Option<Step> {
    let packed: u64 = segments.iter().map(|segment| segment.bytes).sum();
    if packed + journal_bytes <= limits.disk_bytes_max {
        return None;
    }
    let minutes = segments.iter().filter(|segment| segment.level.resolution() == Resolution::Minute);
    let oldest = minutes.min_by_key(|segment| segment.start_s);
    if let Some(oldest) = oldest
        && oldest.start_s - oldest.start_s % DAY_S + DAY_S <= now_s
    {
        let levels = [Level::MinutesOfHour, Level::MinutesOfDay];
        let job = merge(segments, Level::HoursOfDay, &levels, oldest.start_s);
        let until_s = job.start_s + DAY_S;
        return Some(Step::MergeEarly(job, until_s));
    }
    let hours = segments.iter().filter(|segment| segment.level.resolution() == Resolution::Hour);
    let victim = hours.min_by_key(|segment| segment.start_s).or(oldest)?;
    Some(Step::DropEarly(Arc::clone(victim), victim.end_s()))
}
