//! `reveille demand …`: what is recorded of demand, and request logs on their way in.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use reveille_api::Client;
use reveille_api::request_log::Coding;
use reveille_api::types::{
    DemandProfile, DemandProfileSummary, DemandRange, DemandReport, LogReport, ServiceDemand, Whose,
};
use reveille_core::forecast::profile::{Behaviour, Summary};
use reveille_core::model::{DomainName, Timestamp};

use super::dns::clients;
use super::output::{bytes, table};
use super::remote::runtime;
use super::{Daemon, Output};

/// A log is sent in parts of so many bytes that end with a line, so that what has arrived is seen on the way.
const PART_BYTES: usize = 4 << 20;
/// Largest packed log, which is sent as a whole: it has no lines to be cut at.
const PACKED_BYTES_MAX: u64 = 256 << 20;
/// Faults that are kept of a log for `--json`; of more only the number.
const FAULTS_KEPT_MAX: usize = 100_000;

/// Verbs of `reveille demand`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show what is recorded, in short, and what was not
    Show(Daemon),
    /// Show what was asked of a service of late
    Service(Of),
    /// List users with a profile, as request logs name them
    Users(Daemon),
    /// List groups of users with a profile
    Groups(Daemon),
    /// Show how a user behaves
    User(Named),
    /// Show how a group of users behaves
    Group(Named),
    /// Send a request log: one JSON object a line
    ///
    /// Each line is like {"time":"2026-11-22T01:17:05Z","user":"ann","group":"staff","service":"hello.vm.test",
    /// "runtime":"node22","seconds":0.21,"cpu_seconds":0.05,"memory_bytes":73400320,"io_bytes":4096,"tags":["eu"]}, of which
    /// time, user, service and seconds have to be there. Requests of services here are kept in their history if they are
    /// not older than a day; all of them count for the profiles of their users and groups. A line with a fault stops nothing:
    /// each is named with its number, and the exit status is 1 then. What gzip or zstd has packed is sent so.
    Send(SendLog),
}

/// A service, and which part of its history.
#[derive(Debug, Args)]
pub struct Of {
    /// Full name, or a first label that only one service has
    service: DomainName,
    /// The last so many hours
    #[arg(long, default_value_t = 24)]
    hours: u64,
    /// Length of a step in seconds; default: an hour, or less for fewer than six hours
    #[arg(long, value_name = "SECONDS")]
    step: Option<u64>,
    #[command(flatten)]
    daemon: Daemon,
}

/// A user or group.
#[derive(Debug, Args)]
pub struct Named {
    /// As request logs name it
    name: String,
    #[command(flatten)]
    daemon: Daemon,
}

/// A log to send.
#[derive(Debug, Args)]
pub struct SendLog {
    /// The log, as it is or packed by gzip or zstd; `-` is standard input
    file: PathBuf,
    #[command(flatten)]
    daemon: Daemon,
}

impl Verb {
    /// Asks the daemon and prints what it says.
    ///
    /// # Errors
    /// If it does not answer or refuses; if some lines of a log were not taken.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let runtime = runtime()?;
        match self {
            Self::Show(daemon) => {
                let report =
                    runtime.block_on(async { anyhow::Ok(daemon.client().await?.demand().await?) })?;
                output.print(&report, in_short)
            }
            Self::Service(of) => {
                let asked = DemandRange { hours: of.hours, step_s: of.step_s() };
                let demand = runtime.block_on(async {
                    anyhow::Ok(of.daemon.client().await?.service_demand(&of.service, asked).await?)
                })?;
                output.print(&demand, steps)
            }
            Self::Users(daemon) => list(&daemon, Whose::Users, output),
            Self::Groups(daemon) => list(&daemon, Whose::Groups, output),
            Self::User(named) => named.show(Whose::Users, output),
            Self::Group(named) => named.show(Whose::Groups, output),
            Self::Send(send) => runtime.block_on(send.run(output)),
        }
    }
}

impl Of {
    fn step_s(&self) -> u64 {
        self.step.unwrap_or(match self.hours {
            0..=1 => 60,
            2..6 => 300,
            6.. => 3_600,
        })
    }
}

fn list(daemon: &Daemon, whose: Whose, output: Output) -> anyhow::Result<()> {
    let mut profiles =
        runtime()?.block_on(async { anyhow::Ok(daemon.client().await?.demand_profiles(whose).await?) })?;
    profiles.sort_by_key(|profile| std::cmp::Reverse(profile.requests));
    output.print(&profiles, |profiles| overview(profiles))
}

impl Named {
    fn show(&self, whose: Whose, output: Output) -> anyhow::Result<()> {
        let profile = runtime()?.block_on(async {
            anyhow::Ok(self.daemon.client().await?.demand_profile(whose, &self.name).await?)
        })?;
        output.print(&profile, |DemandProfile { name, behaviour }| format!("{name}\n\n{}", told(behaviour)))
    }
}

// --- Sending ---------------------------------------------------------------------------------------------------------

impl SendLog {
    async fn run(self, output: Output) -> anyhow::Result<()> {
        let client = self.daemon.client().await?;
        let (mut log, length) = open(&self.file)?;
        let bar = bar(output, length)?;
        let unreadable = || format!("cannot read {}", self.file.display());
        let sent = match Coding::of_content(log.fill_buf().with_context(unreadable)?) {
            Coding::Identity => self.send(&client, Parts::new(log), &bar, output).await,
            coding @ (Coding::Gzip | Coding::Zstd) => {
                self.send_packed(&client, log, coding, &bar, output).await
            }
        };
        bar.finish_and_clear();
        let report = sent?;
        output.print(&report, summary)?;
        let not_taken = report.lines.refused + report.taken.dropped;
        match not_taken {
            0 => Ok(()),
            _ => bail!(
                "of {} lines {} were refused and {} dropped",
                lines(&report),
                report.lines.refused,
                report.taken.dropped
            ),
        }
    }

    async fn send(
        &self,
        client: &Client,
        mut parts: Parts<Box<dyn BufRead>>,
        bar: &ProgressBar,
        output: Output,
    ) -> anyhow::Result<LogReport> {
        let mut all = LogReport::default();
        while let Some(part) = parts.next().with_context(|| format!("cannot read {}", self.file.display()))? {
            let part_bytes = part.len() as u64;
            let before = lines(&all);
            let sent = client.send_log(part).await;
            let mut report = sent.with_context(|| {
                format!("the log was taken up to its line {before}; send the lines after it once more")
            })?;
            report.faults.iter_mut().for_each(|fault| fault.line += before);
            self.tell(&report, bar, output);
            add(&mut all, report);
            bar.inc(part_bytes);
        }
        Ok(all)
    }

    /// Sends a packed log as it is.
    async fn send_packed(
        &self,
        client: &Client,
        log: Box<dyn BufRead>,
        coding: Coding,
        bar: &ProgressBar,
        output: Output,
    ) -> anyhow::Result<LogReport> {
        let mut packed = Vec::new();
        let read = log.take(PACKED_BYTES_MAX + 1).read_to_end(&mut packed);
        read.with_context(|| format!("cannot read {}", self.file.display()))?;
        if packed.len() as u64 > PACKED_BYTES_MAX {
            bail!(
                "{} is longer than {}, as which a packed log is sent at most; unpack it: {coding} -dc FILE | reveille demand send -",
                self.file.display(),
                bytes(PACKED_BYTES_MAX),
            );
        }
        let packed_bytes = packed.len() as u64;
        let report = client.send_whole_log(packed).await?;
        self.tell(&report, bar, output);
        bar.inc(packed_bytes);
        Ok(report)
    }

    /// Names each fault.
    fn tell(&self, report: &LogReport, bar: &ProgressBar, output: Output) {
        for fault in report.faults.iter().filter(|_| !output.is_json()) {
            bar.suspend(|| eprintln!("{}: {fault}", self.file.display()));
        }
    }
}

fn open(path: &Path) -> anyhow::Result<(Box<dyn BufRead>, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(BufReader::new(std::io::stdin())), None));
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|about| about.len());
    Ok((Box::new(BufReader::new(file)), length))
}

fn bar(output: Output, length: Option<u64>) -> anyhow::Result<ProgressBar> {
    if !output.draws_progress() {
        return Ok(ProgressBar::hidden());
    }
    let (bar, template) = match length {
        Some(length) => {
            (ProgressBar::new(length), "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {bytes}, {bytes_per_sec}"),
    };
    bar.set_style(ProgressStyle::with_template(template)?.progress_chars("=> "));
    bar.set_message("sending");
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}

/// Lines that were read.
fn lines(report: &LogReport) -> u64 {
    report.lines.accepted + report.lines.refused + report.lines.blank
}

/// Adds what became of the next part.
fn add(all: &mut LogReport, part: LogReport) {
    all.lines.accepted += part.lines.accepted;
    all.lines.refused += part.lines.refused;
    all.lines.blank += part.lines.blank;
    all.taken.add(part.taken);
    let room = FAULTS_KEPT_MAX.saturating_sub(all.faults.len());
    all.faults_left_out += part.faults_left_out + part.faults.len().saturating_sub(room) as u64;
    all.faults.extend(part.faults.into_iter().take(room));
}

/// A log in parts that end with a line.
struct Parts<R> {
    log: R,
    part_bytes: usize,
    /// Of the line with which the last part ended, there is more that is to be left out.
    is_skipping: bool,
}

impl<R: BufRead> Parts<R> {
    fn new(log: R) -> Self {
        Self { log, part_bytes: PART_BYTES, is_skipping: false }
    }

    /// The next part; `None` at the end. Of a line that is longer than a part only its begin is sent, by which it is
    /// refused.
    fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        if std::mem::take(&mut self.is_skipping) {
            self.log.skip_until(b'\n')?;
        }
        let mut part = Vec::new();
        let limit = self.part_bytes as u64;
        while part.len() < self.part_bytes {
            let read = self.log.by_ref().take(limit).read_until(b'\n', &mut part)?;
            if read == 0 {
                break;
            }
            if read == self.part_bytes && part.last() != Some(&b'\n') {
                self.is_skipping = true;
                break;
            }
        }
        Ok((!part.is_empty()).then_some(part))
    }
}

// --- What is printed -------------------------------------------------------------------------------------------------

fn summary(report: &LogReport) -> String {
    let LogReport { lines, taken, .. } = report;
    let rows = [
        ("requests", lines.accepted),
        ("  of services here", taken.counted),
        ("  of no service here", taken.elsewhere),
        ("  too old for the history", taken.too_old),
        ("  dropped, no room", taken.dropped),
        ("refused", lines.refused),
        ("blank", lines.blank),
    ];
    let rows = rows.map(|(what, count)| [what.to_owned(), count.to_string()]);
    table(["LINES", "COUNT"], &rows)
}

fn in_short(report: &DemandReport) -> String {
    let counts = |counts: &reveille_api::types::Counts| {
        let parts: Vec<String> =
            counts.iter().map(|(word, count)| format!("{} {count}", word.replace('_', " "))).collect();
        parts.join(", ")
    };
    let off = || "off".to_owned();
    let rows = [
        ["requests of logs".to_owned(), counts(&report.requests)],
        ["arrivals dropped".to_owned(), report.arrivals_dropped.to_string()],
        [
            "watched for anomalies".to_owned(),
            format!(
                "{} services; {} times one was asked for in a minute without a place",
                report.services_watched, report.services_unwatched
            ),
        ],
        ["points of history".to_owned(), counts(&report.history)],
        ["history on disk".to_owned(), bytes(report.history_bytes)],
        ["records of queries".to_owned(), report.records.get("query").map_or_else(off, counts)],
        ["records of requests".to_owned(), report.records.get("request").map_or_else(off, counts)],
        [
            "users with a profile".to_owned(),
            format!(
                "{}; requests of others: {}",
                report.profiles.users, report.profiles.other_users.requests
            ),
        ],
        [
            "groups with a profile".to_owned(),
            format!(
                "{}; requests of others: {}",
                report.profiles.groups, report.profiles.other_groups.requests
            ),
        ],
    ];
    table(["RECORDED", "SINCE THE START"], &rows)
}

fn steps(demand: &ServiceDemand) -> String {
    let from_ms = demand.from.0.as_ms();
    let row = |(place, step): (u64, &reveille_api::types::DemandStep)| {
        let at = Timestamp::from_ms(from_ms + place * demand.step_s * 1_000);
        let each = match (step.request_ms, step.requests) {
            (0, _) | (_, 0) => "-".to_owned(),
            (ms, requests) => format!("{:.3} s", ms as f64 / 1e3 / requests as f64),
        };
        [
            at.utc(),
            step.queries.to_string(),
            format!("{:.0}", step.demand),
            step.arrivals.to_string(),
            format!("{:.2}", step.execution_ms as f64 / 1e3 / demand.step_s as f64),
            step.requests.to_string(),
            each,
        ]
    };
    let asked = |step: &reveille_api::types::DemandStep| {
        step.queries + step.arrivals + step.execution_ms + step.requests > 0
    };
    let rows: Vec<[String; 7]> = (0..).zip(&demand.steps).filter(|(_, step)| asked(step)).map(row).collect();
    let mut text =
        format!("{} in steps of {} s; steps without demand are left out\n\n", demand.service, demand.step_s);
    text += &table(
        ["SINCE", "QUERIES", "STAND FOR CLIENTS", "ARRIVALS", "IN USE", "LOGGED REQUESTS", "EACH TOOK"],
        &rows,
    );
    let unseen = demand.steps.iter().filter(|step| step.watched_s == 0).count();
    if unseen > 0 {
        text += &format!("\n{unseen} steps were not watched: the daemon did not run\n");
    }
    if let Some(now) = demand.per_thousand_queries {
        text += &format!("\n1000 queries stand for {} clients now, in 95 % of all cases\n", clients(now));
    }
    for damage in &demand.damaged {
        text += &format!("damaged: {damage}\n");
    }
    text
}

fn overview(profiles: &[DemandProfileSummary]) -> String {
    let row = |profile: &DemandProfileSummary| {
        [
            profile.name.clone(),
            profile.requests.to_string(),
            format!("{:.1}", profile.per_hour),
            seconds(profile.seconds_p50),
            seconds(profile.seconds_p95),
            profile.memory_bytes_p95.map_or("-".to_owned(), size),
            profile.runtime.clone().unwrap_or_else(|| "-".to_owned()),
            profile.coverage_95.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share)),
        ]
    };
    let rows: Vec<[String; 8]> = profiles.iter().map(row).collect();
    let heading = ["NAME", "REQUESTS", "PER HOUR", "P50", "P95", "MEMORY P95", "RUNTIME", "95 % HELD"];
    table(heading, &rows)
}

/// What it is called, what is known of it, and how it is written.
type Quantity<'q> = (&'q str, &'q Summary, &'q dyn Fn(f64) -> String);

fn told(behaviour: &Behaviour) -> String {
    let plain = |value: f64| format!("{value:.1}");
    let time = |value: f64| seconds(Some(value));
    let quantities: [Quantity<'_>; 5] = [
        ("requests per hour", &behaviour.volume_per_hour, &plain),
        ("execution time", &behaviour.seconds, &time),
        ("processor time", &behaviour.cpu_seconds, &time),
        ("memory", &behaviour.memory_bytes, &size),
        ("read and written", &behaviour.io_bytes, &size),
    ];
    let row = |(what, summary, shown): &Quantity<'_>| {
        let quantile = |value: Option<f64>| value.map_or("-".to_owned(), shown);
        let interval = |place: usize| match summary.intervals.get(place) {
            None => "-".to_owned(),
            Some(interval) => {
                let held =
                    interval.coverage.map_or(String::new(), |share| format!(" ({:.1} %)", 100.0 * share));
                format!("{} to {}{held}", shown(interval.low), shown(interval.high))
            }
        };
        [
            (*what).to_owned(),
            summary.values.to_string(),
            quantile(summary.p50),
            quantile(summary.p95),
            quantile(summary.p99),
            interval(0),
            interval(1),
        ]
    };
    let rows: Vec<[String; 7]> = quantities.iter().map(row).collect();
    let heading = ["QUANTITY", "VALUES", "P50", "P95", "P99", "NEXT, 80 % (HELD)", "NEXT, 95 % (HELD)"];
    let mut text = table(heading, &rows);
    if !behaviour.runtimes.is_empty() {
        let share = |share: &reveille_core::forecast::profile::Share| {
            [share.runtime.clone(), format!("{:.1} %", 100.0 * share.share)]
        };
        let rows: Vec<[String; 2]> = behaviour.runtimes.iter().map(share).collect();
        text += &format!("\n{}", table(["RUNTIME", "SHARE"], &rows));
    }
    text + &format!("\n{} requests, {} of them too late for the volume\n", behaviour.requests, behaviour.late)
}

fn seconds(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| match value {
        _ if value >= 10.0 => format!("{value:.1} s"),
        _ if value >= 1.0 => format!("{value:.2} s"),
        _ => format!("{:.1} ms", 1e3 * value),
    })
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, which is what is wanted"
)]
fn size(value: f64) -> String {
    bytes(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use reveille_api::request_log::{Fault, Tally};

    use super::*;

    fn parts(log: &[u8], part_bytes: usize) -> Vec<Vec<u8>> {
        let mut parts = Parts { log, part_bytes, is_skipping: false };
        std::iter::from_fn(|| parts.next().unwrap()).collect()
    }

    #[test]
    fn parts_end_with_lines_and_have_all_of_the_log() {
        let log = b"one\ntwo\n\nthree four five\nsix";
        for part_bytes in [16, 17, 20, 28, 100] {
            let parts = parts(log, part_bytes);
            assert_eq!(parts.concat(), log, "{part_bytes}");
            let inner = parts.iter().rev().skip(1);
            assert!(inner.clone().all(|part| part.ends_with(b"\n")), "{part_bytes}: {parts:?}");
            assert!(parts.iter().all(|part| part.len() < 2 * part_bytes));
        }
        assert!(parts(b"", 16).is_empty());
        // Of a line that is too long its begin, and once.
        let long = [&[b'x'; 100][..], b"\nend\n"].concat();
        assert_eq!(parts(&long, 16), [vec![b'x'; 16], b"end\n".to_vec()]);
    }

    #[test]
    fn what_became_of_parts_adds_up() {
        let fault = |line| Fault { line, column: None, field: None, what: "odd".to_owned() };
        let part = |faults: usize| LogReport {
            lines: Tally { accepted: 10, refused: faults as u64, blank: 1 },
            faults: (1..=faults as u64).map(fault).collect(),
            ..LogReport::default()
        };
        let mut all = part(2);
        add(&mut all, part(FAULTS_KEPT_MAX));
        assert_eq!((all.faults.len(), all.faults_left_out), (FAULTS_KEPT_MAX, 2));
        assert_eq!(lines(&all), 22 + 2 + FAULTS_KEPT_MAX as u64);
    }
}
