//! `reveille why`: the story of a service's last decisions and wakes.

use clap::Args;
use reveille_api::types::{
    AnomalyReport, DecisionReport, HealthChange, RiskPart, ServiceDetail, StagesMs, Wake, WhyReport,
};
use reveille_core::forecast::anomaly::Kind;
use reveille_core::forecast::anomaly::flood::Nature;
use reveille_core::model::DomainName;

use super::dns::clients;
use super::output::duration;
use super::remote::runtime;
use super::{Daemon, Output};

/// Options of `reveille why`.
#[derive(Debug, Args)]
pub struct Why {
    /// Full name, or a first label that only one service has
    service: DomainName,
    /// How many decisions and wakes, newest last
    #[arg(long, short = 'n', default_value_t = 10)]
    limit: usize,
    #[command(flatten)]
    daemon: Daemon,
}

impl Why {
    /// Asks the daemon and tells the story.
    ///
    /// # Errors
    /// If the daemon does not answer or does not know the service.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let report = runtime()?.block_on(async {
            anyhow::Ok(self.daemon.client().await?.why(&self.service, self.limit).await?)
        })?;
        output.print(&report, story)
    }
}

fn story(report: &WhyReport) -> String {
    let service = &report.service;
    let mut lines = vec![format!(
        "{} is {} (phase {}, rung {}) at {}",
        service.name,
        service.state.word(),
        service.phase,
        service.rung,
        service.address
    )];
    if let Some(failure) = &service.failure {
        let way_out = if failure.gave_up {
            format!("requests are refused until {}, then tried afresh", failure.retry_at)
        } else {
            "the next request starts it again".to_owned()
        };
        lines.push(format!("  it was lost at {} because {}; {way_out}", failure.at, failure.cause));
    }
    lines.push(format!("  health: {}, as {}", service.health, service.health_reason));
    lines.push(String::new());
    lines.push("Decisions:".to_owned());
    lines.extend(report.decisions.iter().rev().map(decision));
    if report.decisions.is_empty() {
        lines.push("  none yet".to_owned());
    }
    lines.push(String::new());
    lines.push("Wakes:".to_owned());
    lines.extend(report.wakes.iter().rev().map(wake));
    if report.wakes.is_empty() {
        lines.push("  none yet".to_owned());
    }
    if !report.health_changes.is_empty() {
        lines.push(String::new());
        lines.push("Health:".to_owned());
        lines.extend(report.health_changes.iter().rev().map(health));
    }
    if !report.anomalies.is_empty() {
        lines.push(String::new());
        lines.push("Out of the ordinary:".to_owned());
        lines.extend(report.anomalies.iter().rev().map(|found| format!("  {}", anomaly(found))));
    }
    if let Some(risk) = &report.risk {
        lines.push(String::new());
        lines.push(format!("Risk of failing a client within the hour: {}", percent(risk.score)));
        let part = |part: &RiskPart| format!("  {:>7}  {}", percent(part.probability), part.why);
        lines.extend(risk.parts.iter().map(part));
    }
    lines.join("\n")
}

fn health(change: &HealthChange) -> String {
    format!("  {}  {}, as {}", change.at, change.health, change.why)
}

/// Rows of how a service was asked for of late, and of what that may lead to.
pub(super) fn of_late(detail: &ServiceDetail) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(queries) = &detail.queries {
        let parts: Vec<String> =
            queries.by_type.iter().map(|(word, count)| format!("{word} {count}")).collect();
        let (most, types) = (if queries.complete { "" } else { "at least " }, parts.join(", "));
        let types = if types.is_empty() { types } else { format!(" ({types})") };
        rows.push(("questions", format!("{most}{} in the last minute{types}", queries.last_minute)));
        if let Some(arrivals) = queries.arrivals {
            let hidden = match arrivals.uncorrected_percent {
                0 => String::new(),
                share => format!("; at least, for {share} % of the questions"),
            };
            let told = format!(
                "{} with caches put back, in 95 % of all cases ({} questions of {} resolvers in {} s{hidden})",
                clients(arrivals),
                arrivals.window_queries,
                arrivals.window_resolvers,
                arrivals.window_s
            );
            rows.push(("clients", told));
        }
    }
    if let Some(found) = &detail.last_anomaly {
        rows.push(("anomaly", anomaly(found)));
    }
    if let Some(risk) = &detail.risk {
        rows.push((
            "risk",
            format!("{} to fail a client within the hour; `reveille why` has its parts", percent(risk.score)),
        ));
    }
    rows
}

/// `spike since … until …: 200 questions in a minute, expected 10, 63.3 standard deviations (3.0)`
fn anomaly(anomaly: &AnomalyReport) -> String {
    let kind = match anomaly.kind {
        Kind::Spike => "spike",
        Kind::Drop => "drop",
        Kind::LevelShift => "new level",
        Kind::Unusual => "unusual",
    };
    let alarm = if anomaly.alarm { ", like nothing before" } else { "" };
    let nature = match (anomaly.nature, &anomaly.nature_why) {
        (Some(nature), Some(why)) => {
            let nature = match nature {
                Nature::Usual => "as usual",
                Nature::FlashCrowd => "a flash crowd",
                Nature::RandomSubdomains => "a flood of names",
                Nature::SingleSource => "a flood of one client",
                Nature::Spoofed => "a flood from forged addresses",
                Nature::Unexplained => "not explained",
            };
            format!("; {nature}: {why}")
        }
        _ => String::new(),
    };
    format!(
        "{kind} since {} until {}: {} questions in a minute, {:.1} expected, {:.1} standard deviations of {:.1}{alarm}{nature}",
        anomaly.since,
        anomaly.until,
        anomaly.observed,
        anomaly.expected,
        anomaly.deviation_sd,
        anomaly.spread
    )
}

/// `3.2 %`
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn decision(decision: &DecisionReport) -> String {
    format!("  {}  {}, because {}", decision.at, decision.what, decision.why)
}

fn wake(wake: &Wake) -> String {
    let asks = if wake.asks == 1 { String::new() } else { format!(" and {} more", wake.asks - 1) };
    let end = match (&wake.outcome, &wake.cause) {
        (_, Some(cause)) => format!("failed: {cause}"),
        (None, None) => "goes on".to_owned(),
        (Some(_), None) => stages(&wake.stages_ms),
    };
    format!("  {}  from {} for {}{asks}: {end}", wake.at, wake.from, wake.asked_by)
}

fn stages(stages: &StagesMs) -> String {
    let reached = stages.reached().map(|(stage, ms)| format!("{} {}", stage.replace('_', " "), fine(ms)));
    reached.collect::<Vec<_>>().join(", ")
}

fn fine(ms: f64) -> String {
    match std::time::Duration::try_from_secs_f64(ms / 1e3) {
        Ok(long) if ms >= 10.0 => duration(u64::try_from(long.as_millis()).unwrap_or(u64::MAX)),
        Ok(_) | Err(_) => format!("{ms:.1} ms"),
    }
}
