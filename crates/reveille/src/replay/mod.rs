//! `reveille replay`: what other policies, prices and rungs would have cost, on recorded demand.
//!
//! ```text
//! CSV, dnstap, history ─► read ─► trace ─► reveille_replay ─► report ─► table, JSON, picture
//! ```

mod dnstap;
mod history;
mod options;
mod read;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use reveille_core::model::DomainName;
use reveille_dns::dnstap::DnstapIn;
use reveille_dns::dnstap::message::MessageType;
use reveille_replay::{Report, TraceBuilder};
use serde::Serialize;

use crate::cli::{Output, Progress};
use options::Options;
use read::{Source, TraceFormat};

/// Most names of a table.
const NAMES_SHOWN_MAX: usize = 100_000;

const ABOUT: &str = "\
Examples:
  reveille replay requests.csv                                   a line for each arrival
  reveille replay monday.csv tuesday.csv --names 30              both together are one trace
  reveille replay counts.csv --svg curve.svg                     a line for each minute; the curves as a picture
  zcat dns.fstrm.gz | reveille replay - --zone vm.example        dnstap, only the names below one zone
  reveille replay /var/lib/reveille                              what a daemon here has seen; it may go on running
  reveille replay requests.csv --rung local=0,450 --rung paused=210,35 --without armed --json

Formats:
  arrivals  CSV with columns `time` and `name`, and, if there are any, `client` and `seconds` (of work)
  minutes   CSV with a column `minute`, and one for each name, or `name` and `count`
  dnstap    a file in Frame Streams, as servers, kdig -E and fstrm_capture write it
  history   the state directory of a daemon (or its `history/`, or a copy), read without a lock and without a change
Times are 2030-01-31 04:00:00 in UTC, or seconds since 1970. `auto` looks at the first bytes and at the header.

What is counted:
  A name's first request is cold under any policy, and a name with one request is not judged. Policies are compared at
  the budgets that fixed keep-alive and the hybrid histogram of \"Serverless in the Wild\" spend with the settings of
  --budget and --budget-reach: by cold starts at equal idle-warm hours, and by delay at equal GiB-hours. \"ratio\" is
  Reveille's over the better of the others (of delays: over fixed keep-alive); below 1 is less. Reveille's forecasts
  see nothing that comes later.

The rungs' costs are those of the demo's guest unless --rung says otherwise; `reveille service show NAME` has what was
measured of a service of yours. Questions of resolvers (dnstap) are fewer than clients', since resolvers cache.";

/// Options of `reveille replay`.
#[derive(Debug, Args)]
#[command(after_long_help = ABOUT, after_help = "Examples, formats and what is counted: reveille replay --help")]
pub struct Replay {
    /// Files, `-` for standard input, or a daemon's state directory; together they are one trace
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,
    /// How the traces are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = TraceFormat::Auto)]
    format: TraceFormat,
    /// Write the curves of all policies as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Names in the tables of single policies, those that were asked for most
    #[arg(long, value_name = "N", default_value_t = 10)]
    names: usize,
    /// Of dnstap, only questions for names in this zone; may be repeated
    #[arg(long, value_name = "ZONE")]
    zone: Vec<DomainName>,
    /// Of dnstap, messages of this type count; may be repeated [default: auth_query client_query, as the daemon has it]
    #[arg(long, value_name = "TYPE", value_parser = message_type)]
    message: Vec<MessageType>,
    #[command(flatten)]
    options: Options,
}

/// What is printed: where the demand was read, and what came of it.
#[derive(Debug, Serialize)]
struct Replayed {
    traces: Vec<Source>,
    #[serde(flatten)]
    report: Report,
}

impl Replay {
    /// Reads, replays and prints.
    ///
    /// # Errors
    /// A trace that cannot be read, with its place; settings that are out of range; nothing to replay.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let settings = self.options.settings()?;
        let wanted = self.wanted()?;
        let mut builder = TraceBuilder::default();
        let mut traces = Vec::new();
        for path in &self.traces {
            traces.push(read::read(path, self.format, &wanted, &mut builder)?);
        }
        let trace = builder.finish();
        let progress = Progress::new(output);
        let replayed = reveille_replay::replay(&trace, &settings, |step, done, all| {
            progress.at(&step.to_string(), done, all);
        });
        progress.end();
        let report = replayed?;
        if let Some(path) = &self.svg {
            std::fs::write(path, report.svg()).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let names = self.names.min(NAMES_SHOWN_MAX);
        output.print(&Replayed { traces, report }, |replayed| {
            let sources: String = replayed.traces.iter().map(|source| format!("{source}\n")).collect();
            format!("{sources}{}", replayed.report.shown(names))
        })
    }

    /// What of dnstap counts.
    fn wanted(&self) -> anyhow::Result<dnstap::Wanted> {
        let mut of_daemon = DnstapIn::default();
        if !self.message.is_empty() {
            of_daemon.count.clone_from(&self.message);
        }
        if let Some(fault) = of_daemon.faults().first() {
            anyhow::bail!("--message: {fault}");
        }
        Ok(dnstap::Wanted { types: of_daemon.count, zones: self.zone.clone() })
    }
}

fn message_type(word: &str) -> Result<MessageType, String> {
    let known = MessageType::ALL.into_iter().find(|kind| kind.word() == word);
    known.ok_or_else(|| {
        let words: Vec<&str> = MessageType::ALL.iter().map(|kind| kind.word()).collect();
        format!("one of {} is wanted", words.join(", "))
    })
}
