//! Traces from files, standard input and directories: which format, and where it fails.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};
use clap::ValueEnum;
use reveille_replay::{FILE_BYTES_MAX, Format, TraceBuilder, text_of};
use serde::Serialize;

use super::dnstap::{self, Wanted};
use super::history;

/// How a dnstap file begins: a frame of length 0 says that a control frame follows (Frame Streams).
const ESCAPE: [u8; 4] = [0; 4];

/// How a trace is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceFormat {
    /// By its first bytes and its header
    Auto,
    /// CSV, a line for each arrival
    Arrivals,
    /// CSV, a line for each minute
    Minutes,
    /// dnstap in Frame Streams
    Dnstap,
    /// A daemon's own history
    History,
}

/// What was read of one trace.
#[derive(Debug, Serialize)]
pub struct Source {
    /// Its path; `-` is standard input.
    pub trace: String,
    /// Its format.
    pub format: TraceFormat,
    /// Arrivals in it; in the same minute or second several may count as one.
    pub arrivals: usize,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} arrivals", self.trace, self.arrivals)?;
        self.left_out.iter().try_for_each(|left_out| write!(f, "\n  left out: {left_out}"))
    }
}

/// Reads a trace into `builder`.
///
/// # Errors
/// With the path, and the line, frame or file that cannot be used.
pub fn read(
    path: &Path,
    format: TraceFormat,
    wanted: &Wanted,
    builder: &mut TraceBuilder,
) -> anyhow::Result<Source> {
    let before = builder.arrivals();
    let is_stdin = path.as_os_str() == "-";
    let name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let read = if is_stdin {
        stream(io::stdin().lock(), format, wanted, builder)
    } else if path.is_dir() || format == TraceFormat::History {
        directory(path, format, builder)
    } else {
        File::open(path).map_err(Into::into).and_then(|file| stream(file, format, wanted, builder))
    };
    let (format, left_out) = read.with_context(|| name.clone())?;
    Ok(Source { trace: name, format, arrivals: builder.arrivals() - before, left_out })
}

fn directory(
    path: &Path,
    format: TraceFormat,
    builder: &mut TraceBuilder,
) -> anyhow::Result<(TraceFormat, Vec<String>)> {
    match format {
        TraceFormat::Auto | TraceFormat::History => Ok((TraceFormat::History, history::read(path, builder)?)),
        TraceFormat::Arrivals | TraceFormat::Minutes | TraceFormat::Dnstap => {
            bail!("it is a directory, which only a history can be")
        }
    }
}

fn stream(
    from: impl Read,
    format: TraceFormat,
    wanted: &Wanted,
    builder: &mut TraceBuilder,
) -> anyhow::Result<(TraceFormat, Vec<String>)> {
    let mut from = BufReader::new(from);
    let is_dnstap = match format {
        TraceFormat::Dnstap => true,
        TraceFormat::Auto => from.fill_buf()?.starts_with(&ESCAPE),
        TraceFormat::Arrivals | TraceFormat::Minutes => false,
        TraceFormat::History => bail!("a history is a directory, not a stream"),
    };
    if is_dnstap {
        return Ok((TraceFormat::Dnstap, dnstap::read(from, wanted, builder)?));
    }
    let mut bytes = Vec::new();
    from.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("it is longer than {} MiB", FILE_BYTES_MAX >> 20);
    }
    let text = text_of(&bytes)?;
    let csv = match format {
        TraceFormat::Arrivals => Format::Arrivals,
        TraceFormat::Minutes => Format::MinuteCounts,
        TraceFormat::Auto | TraceFormat::Dnstap | TraceFormat::History => Format::of(text)?,
    };
    builder.csv(text, csv)?;
    let format = match csv {
        Format::Arrivals => TraceFormat::Arrivals,
        Format::MinuteCounts => TraceFormat::Minutes,
    };
    Ok((format, Vec::new()))
}
