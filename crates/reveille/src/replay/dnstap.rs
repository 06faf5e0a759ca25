//! A dnstap file as demand. What counts is what the daemon takes in (`reveille_dns::dnstap`), but for names: a file knows
//! of no services, so each name that was asked for is one, within the zones that are named.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::bail;
use reveille_core::answer::rdata::CLASS_IN;
use reveille_core::model::DomainName;
use reveille_dns::dnstap::file::DnstapFile;
use reveille_dns::dnstap::message::{Message, MessageType};
use reveille_dns::dnstap::question_in;
use reveille_replay::{TraceBuilder, client_of};

/// Which messages count.
#[derive(Debug)]
pub struct Wanted {
    /// Of these types.
    pub types: Vec<MessageType>,
    /// For names in these zones; in any, if there is none.
    pub zones: Vec<DomainName>,
}

/// What was not counted.
#[derive(Debug, Default)]
struct LeftOut {
    other_types: BTreeMap<Option<MessageType>, u64>,
    outside: u64,
    other_classes: u64,
    no_question: u64,
    no_time: u64,
    /// How many, and where the first one is.
    unreadable: (u64, String),
}

/// Reads a file; tells what was left out.
///
/// # Errors
/// The stream is damaged or cut off within a frame, or no message of it counts.
pub fn read(from: impl Read, wanted: &Wanted, builder: &mut TraceBuilder) -> anyhow::Result<Vec<String>> {
    let mut file = DnstapFile::new(from);
    let (mut counted, mut left_out) = (0_u64, LeftOut::default());
    while let Some(entry) = file.entry()? {
        match entry.message {
            Ok(said) => {
                if let Some((name, at_ms, client)) = arrival(&said.message, wanted, &mut left_out) {
                    builder.arrival(&name.to_string(), at_ms, client, None)?;
                    counted += 1;
                }
            }
            Err(error) => {
                if left_out.unreadable.0 == 0 {
                    left_out.unreadable.1 =
                        format!("frame {} at byte {}: {error}", entry.frame, entry.offset);
                }
                left_out.unreadable.0 += 1;
            }
        }
    }
    let told = left_out.told();
    if counted == 0 {
        let words: Vec<&str> = wanted.types.iter().map(|kind| kind.word()).collect();
        let why = if told.is_empty() { "it has no message at all".to_owned() } else { told.join("; ") };
        bail!("no message counts as demand (of type {}): {why}", words.join(" or "));
    }
    Ok(told)
}

/// Name, time in ms since 1970, and who asked.
fn arrival(
    message: &Message<'_>,
    wanted: &Wanted,
    left_out: &mut LeftOut,
) -> Option<(DomainName, u64, Option<u64>)> {
    if !message.kind.is_some_and(|kind| wanted.types.contains(&kind)) {
        *left_out.other_types.entry(message.kind).or_default() += 1;
        return None;
    }
    let question = question_in(message).map(|(question, _)| question);
    let name = question.as_ref().and_then(|question| DomainName::from_wire(question.name.as_wire()).ok());
    let (Some(question), Some(name)) = (question, name) else {
        left_out.no_question += 1;
        return None;
    };
    if question.qclass != CLASS_IN {
        left_out.other_classes += 1;
        return None;
    }
    if !wanted.zones.is_empty() && !wanted.zones.iter().any(|zone| name.is_at_or_below(zone)) {
        left_out.outside += 1;
        return None;
    }
    let Some(at) = message.query_time.or(message.response_time) else {
        left_out.no_time += 1;
        return None;
    };
    Some((name, at.as_ms(), message.query_address.map(client_of)))
}

impl LeftOut {
    fn told(&self) -> Vec<String> {
        let mut told = Vec::new();
        for (kind, count) in &self.other_types {
            told.push(match kind {
                Some(kind) => {
                    let word = kind.word();
                    format!("{count} messages of type {word}, which count with --message {word}")
                }
                None => format!("{count} messages of a type that is not known here"),
            });
        }
        for (count, what) in [
            (self.outside, "questions for names in other zones"),
            (self.other_classes, "questions of another class than IN"),
            (self.no_question, "messages without a question that can be read"),
            (self.no_time, "messages that do not say when"),
        ] {
            if count > 0 {
                told.push(format!("{count} {what}"));
            }
        }
        let (count, first) = &self.unreadable;
        if *count > 0 {
            told.push(format!("{count} frames that hold no dnstap message, the first: {first}"));
        }
        told
    }
}
