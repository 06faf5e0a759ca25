//! `reveille dns`: what the query room has counted and seen.

use clap::Args;
use reveille_api::types::{ArrivalsEstimate, Counts, DnsReport, PublicationReport, SecondaryReport, Top};

use super::output::table;
use super::remote::runtime;
use super::{Daemon, Output};

/// Options of `reveille dns`.
#[derive(Debug, Args)]
pub struct Dns {
    #[command(flatten)]
    daemon: Daemon,
}

impl Dns {
    /// Asks the daemon and prints what it says.
    ///
    /// # Errors
    /// If it does not answer or refuses.
    pub fn run(self, output: Output) -> anyhow::Result<()> {
        let report = runtime()?.block_on(async { anyhow::Ok(self.daemon.client().await?.dns().await?) })?;
        output.print(&report, text)
    }
}

fn text(report: &DnsReport) -> String {
    let (queries, seen) = (report.queries.values().sum::<u64>(), &report.observed);
    let mut rows = vec![
        ["queries".to_owned(), with_parts(queries, &report.queries)],
        ["ways".to_owned(), parts(&report.ways)],
        ["answers".to_owned(), with_parts(report.rcodes.values().sum(), &report.rcodes)],
        ["truncated".to_owned(), report.truncated.to_string()],
        ["not answered".to_owned(), report.silent.to_string()],
    ];
    let troubles = [("TSIG refused", report.tsig_refused), ("socket errors", report.socket_errors)];
    rows.extend(
        troubles
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(what, count)| [what.to_owned(), count.to_string()]),
    );
    rows.extend(
        report
            .connections
            .iter()
            .map(|(transport, counts)| [format!("connections, {transport}"), parts(counts)]),
    );
    let groups = [
        ("wakes", &report.wakes),
        ("holds", &report.holds),
        ("transfers", &report.transfers),
        ("notifies", &report.notifies),
        ("updates", &report.updates),
        ("signatures", &report.signing),
    ];
    rows.extend(groups.into_iter().map(|(what, counts)| [what.to_owned(), parts(counts)]));
    rows.extend(report.gate.iter().map(|(judged, verdicts)| [format!("gate, {judged}"), parts(verdicts)]));
    rows.extend(report.dnstap.iter().map(|(way, counts)| [format!("dnstap, {way}"), parts(counts)]));
    let clients = format!("about {} different clients", seen.unique_clients);
    rows.push([format!("since {}", seen.since), format!("{} queries seen, {clients}", seen.queries)]);
    if seen.dropped_total > 0 {
        rows.push(["not seen".to_owned(), format!("{} queries, too many at a time", seen.dropped_total)]);
    }
    let mut text = table(["COUNTED", "SINCE THE START"], &rows);
    text += &top("TOP NAMES", &seen.top_names);
    text += &top("TOP NETWORKS", &seen.top_networks);
    text += &secondaries(&report.secondaries);
    text += &publications(&report.publications);
    text
}

/// `1234 (udp 1200, tcp 34)`
fn with_parts(all: u64, counts: &Counts) -> String {
    if all == 0 { "0".to_owned() } else { format!("{all} ({})", parts(counts)) }
}

/// `udp 1200, tcp 34`: the largest first, without those that are zero.
fn parts(counts: &Counts) -> String {
    let mut counts: Vec<(&String, &u64)> = counts.iter().filter(|(_, count)| **count > 0).collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let parts: Vec<String> =
        counts.iter().map(|(word, count)| format!("{} {count}", word.replace('_', " "))).collect();
    if parts.is_empty() { "0".to_owned() } else { parts.join(", ") }
}

fn top(heading: &str, top: &[Top]) -> String {
    let count = |top: &Top| match top.at_least == top.at_most {
        true => top.at_most.to_string(),
        false => format!("{} to {}", top.at_least, top.at_most),
    };
    let rows: Vec<[String; 3]> = top
        .iter()
        .map(|top| [top.name.clone(), count(top), top.arrivals.map_or(String::new(), clients)])
        .collect();
    match rows.as_slice() {
        [] => String::new(),
        rows if top.iter().all(|top| top.arrivals.is_none()) => {
            let rows: Vec<[String; 2]> =
                rows.iter().map(|[name, count, _]| [name.clone(), count.clone()]).collect();
            format!("\n{}", table([heading, "QUERIES"], &rows))
        }
        rows => format!("\n{}", table([heading, "QUERIES", "STAND FOR CLIENTS (95 %)"], rows)),
    }
}

/// `120 (90 to 160)`
pub(super) fn clients(arrivals: ArrivalsEstimate) -> String {
    format!("{} ({} to {})", arrivals.estimate, arrivals.low_95, arrivals.high_95)
}

fn secondaries(all: &[SecondaryReport]) -> String {
    let row = |secondary: &SecondaryReport| {
        let serial = secondary.serial.map_or("-".to_owned(), |serial| serial.to_string());
        let told = match (secondary.acknowledged, secondary.tries) {
            (true, _) => "acknowledged".to_owned(),
            (false, 0) => "to be told".to_owned(),
            (false, tries) => format!("told {tries} times without an answer"),
        };
        [secondary.zone.to_string(), secondary.address.to_string(), serial, told]
    };
    let rows: Vec<[String; 4]> = all.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(["ZONE", "SECONDARY", "SERIAL", "NOTIFY"], &rows))
}

fn publications(all: &[PublicationReport]) -> String {
    let row = |publication: &PublicationReport| {
        let PublicationReport { names, pending, refused, .. } = publication;
        let trouble = publication.trouble.clone().unwrap_or_else(|| "none".to_owned());
        let names = format!("{names}, {pending} pending, {refused} refused");
        [publication.zone.to_string(), publication.server.to_string(), names, trouble]
    };
    let rows: Vec<[String; 4]> = all.iter().map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}", table(["ZONE", "EXTERNAL PRIMARY", "NAMES", "TROUBLE"], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_said_in_one_line_with_the_largest_first() {
        let counts =
            |of: &[(&str, u64)]| of.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect();
        let queries: Counts = counts(&[("tcp", 34), ("tls", 0), ("udp", 1_200)]);
        assert_eq!(with_parts(1_234, &queries), "1234 (udp 1200, tcp 34)");
        assert_eq!(parts(&counts(&[("timed_out", 3)])), "timed out 3");
        assert_eq!((parts(&Counts::new()), with_parts(0, &Counts::new())), ("0".to_owned(), "0".to_owned()));
        let names = [
            Top { name: "hello.vm.test".to_owned(), at_least: 7, at_most: 7, arrivals: None },
            Top { name: "x".to_owned(), at_least: 3, at_most: 5, arrivals: None },
        ];
        assert_eq!(
            top("TOP NAMES", &names),
            "\nTOP NAMES      QUERIES\nhello.vm.test  7\nx              3 to 5\n"
        );
        let arrivals = ArrivalsEstimate {
            estimate: 21,
            low_80: 18,
            high_80: 26,
            low_95: 15,
            high_95: 30,
            per_query_milli: 3_000,
            window_queries: 100,
            window_resolvers: 9,
            window_s: 300,
            uncorrected_percent: 0,
        };
        let names = [Top { arrivals: Some(arrivals), ..names[0].clone() }, names[1].clone()];
        assert_eq!(
            top("TOP NAMES", &names),
            "\nTOP NAMES      QUERIES  STAND FOR CLIENTS (95 %)\nhello.vm.test  7        21 (15 to 30)\n\
             x              3 to 5\n"
        );
    }
}
