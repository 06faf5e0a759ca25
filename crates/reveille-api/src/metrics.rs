//! What was counted, in the text format that Prometheus reads (version 0.0.4 of its exposition formats).
//!
//! The number of lines is bounded by the configuration: no label is a name that was asked for, or a client; and of
//! instances, those are told of one by one that run, up to a limit.

use std::fmt::{Display, Write};

use reveille_core::health::Health;

use crate::types::{
    Counts, DemandReport, DnsReport, HealthReport, HostSummary, InstanceHealth, MetricsReport,
};

/// The content type of the format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text.
pub fn text(
    dns: &DnsReport,
    host: &HostSummary,
    health: &HealthReport,
    demand: Option<&DemandReport>,
) -> String {
    let mut page = Page::default();
    about_host(&mut page, host);
    about_health(&mut page, health);
    about_queries(&mut page, dns);
    about_peers(&mut page, dns);
    if let Some(demand) = demand {
        about_demand(&mut page, demand);
    }
    page.0
}

fn about_demand(page: &mut Page, demand: &DemandReport) {
    let help = "Requests that logs told of, and lines that were refused.";
    page.counters("reveille_log_requests_total", help, "event", &demand.requests);
    let help = "Arrivals that nothing was learned from, since they came too fast.";
    page.counter("reveille_arrivals_dropped_total", help, demand.arrivals_dropped);
    let help = "Services that are watched for anomalies and floods.";
    page.gauge("reveille_services_watched", help, demand.services_watched);
    let help = "Services that were asked for in a minute but not watched in it, since too many others were.";
    page.counter("reveille_services_unwatched_total", help, demand.services_unwatched);
    page.counters(
        "reveille_history_points_total",
        "What became of points of history.",
        "event",
        &demand.history,
    );
    page.gauge("reveille_history_bytes", "Bytes of the history on the disk.", demand.history_bytes);
    if !demand.records.is_empty() {
        let help = "Raw records: rows, and the files that they went to.";
        page.family("reveille_records_total", "counter", help);
    }
    for (kind, counts) in &demand.records {
        for (event, count) in counts {
            page.sample("reveille_records_total", &[("kind", kind), ("event", event)], count);
        }
    }
    page.gauge("reveille_user_profiles", "Users with a profile.", demand.profiles.users);
    page.gauge("reveille_group_profiles", "Groups with a profile.", demand.profiles.groups);
}

fn about_host(page: &mut Page, host: &HostSummary) {
    page.family("reveille_build_info", "gauge", "The version that runs.");
    page.sample("reveille_build_info", &[("version", &host.version)], 1);
    page.family("reveille_start_time_seconds", "gauge", "When the daemon started, in seconds since 1970.");
    page.sample("reveille_start_time_seconds", &[], host.started_at.0.as_ms() / 1_000);
    let services = &host.services;
    page.family("reveille_services", "gauge", "Services by state.");
    for (state, count) in
        [("inactive", services.inactive), ("warming", services.warming), ("active", services.active)]
    {
        page.sample("reveille_services", &[("state", &state)], count);
    }
    page.gauge("reveille_services_failed", "Services whose last start failed.", services.failed);
}

fn about_health(page: &mut Page, health: &HealthReport) {
    page.family("reveille_instances_health", "gauge", "Instances that run, or were lost, by their health.");
    for (word, count) in &health.verdicts {
        page.sample("reveille_instances_health", &[("health", word)], count);
    }
    page.family("reveille_health_probes_total", "counter", "Probes by what came of them.");
    for (probe, counts) in &health.probes {
        for (found, count) in counts {
            page.sample("reveille_health_probes_total", &[("probe", probe), ("found", found)], count);
        }
    }
    let judged = |of: &InstanceHealth| match of.health {
        Health::Up => Some("1".to_owned()),
        Health::Down => Some("0".to_owned()),
        Health::Unknown => None,
    };
    page.of_instances("reveille_instance_up", "gauge", "1 if it is up, 0 if it is down.", health, judged);
    type Of = fn(&MetricsReport) -> Option<String>;
    let told: [(&str, &str, &str, Of); 6] = [
        ("reveille_instance_cpu_seconds_total", "counter", "CPU time of its process.", |of| {
            Some(seconds(of.cpu_ms?.saturating_mul(1_000)))
        }),
        ("reveille_instance_memory_bytes", "gauge", "Memory that its process holds.", |of| {
            Some(of.held_kib?.saturating_mul(1_024).to_string())
        }),
        ("reveille_instance_read_bytes_total", "counter", "What its process read from disks.", |of| {
            Some(of.read_bytes?.to_string())
        }),
        ("reveille_instance_written_bytes_total", "counter", "What its process wrote to disks.", |of| {
            Some(of.written_bytes?.to_string())
        }),
        ("reveille_instance_replies_total", "counter", "Answers to TCP clients through the relay.", |of| {
            Some(of.replies?.to_string())
        }),
        (
            "reveille_instance_reply_seconds_total",
            "counter",
            "From what a client said to the first byte of the answer, all together.",
            |of| Some(seconds(of.reply_us_total?)),
        ),
    ];
    for (name, kind, help, value) in told {
        page.of_instances(name, kind, help, health, |of| of.metrics.as_ref().and_then(value));
    }
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn about_queries(page: &mut Page, dns: &DnsReport) {
    page.counters("reveille_dns_queries_total", "Packets that came in.", "transport", &dns.queries);
    page.counters("reveille_dns_ways_total", "Queries by the way they were answered.", "way", &dns.ways);
    page.counters("reveille_dns_responses_total", "Answers.", "rcode", &dns.rcodes);
    page.counter("reveille_dns_unanswered_total", "Packets that were not answered.", dns.silent);
    page.counter("reveille_dns_truncated_total", "Answers with TC.", dns.truncated);
    page.counter("reveille_dns_tsig_refused_total", "Packets whose TSIG was not taken.", dns.tsig_refused);
    page.counter("reveille_dns_socket_errors_total", "Errors of UDP sockets.", dns.socket_errors);
    page.family("reveille_dns_connections_total", "counter", "What became of connections.");
    for (transport, counts) in &dns.connections {
        for (event, count) in counts {
            let labels: [Label; 2] = [("transport", transport), ("event", event)];
            page.sample("reveille_dns_connections_total", &labels, count);
        }
    }
    page.family("reveille_dns_gate_total", "counter", "Verdicts of the gate.");
    for (judged, verdicts) in &dns.gate {
        for (verdict, count) in verdicts {
            page.sample("reveille_dns_gate_total", &[("judged", judged), ("verdict", verdict)], count);
        }
    }
    page.family("reveille_dns_dnstap_total", "counter", "What became of dnstap messages.");
    for (direction, counts) in &dns.dnstap {
        for (event, count) in counts {
            let labels: [Label; 2] = [("direction", direction), ("event", event)];
            page.sample("reveille_dns_dnstap_total", &labels, count);
        }
    }
    page.counters("reveille_dns_wakes_total", "Wakes that questions asked for.", "event", &dns.wakes);
    page.counters("reveille_dns_holds_total", "Questions that were to wait.", "event", &dns.holds);
    page.counters("reveille_dns_transfers_total", "Zone transfers.", "event", &dns.transfers);
    page.counters("reveille_dns_updates_total", "Dynamic updates.", "event", &dns.updates);
    page.counters(
        "reveille_dns_signatures_total",
        "Signatures, and what was not signed.",
        "event",
        &dns.signing,
    );
    let observed = &dns.observed;
    let dropped = "Queries that are counted, but of which no details were taken in.";
    page.counter("reveille_dns_observations_dropped_total", dropped, observed.dropped_total);
    let unique = "Different client addresses of the last half minute to minute, about.";
    page.gauge("reveille_dns_unique_clients", unique, observed.unique_clients);
}

fn about_peers(page: &mut Page, dns: &DnsReport) {
    page.counters("reveille_dns_notifies_total", "NOTIFY messages.", "event", &dns.notifies);
    if !dns.secondaries.is_empty() {
        let help = "1 if the secondary has acknowledged the zone's newest serial.";
        page.family("reveille_dns_secondary_in_step", "gauge", help);
    }
    for secondary in &dns.secondaries {
        let labels: [Label; 2] = [("zone", &secondary.zone), ("address", &secondary.address)];
        page.sample("reveille_dns_secondary_in_step", &labels, u64::from(secondary.acknowledged));
    }
    type Of = fn(&crate::types::PublicationReport) -> u64;
    let gauges: [(&str, &str, Of); 4] = [
        ("reveille_publish_names", "Names that are to be at the external primary.", |of| of.names),
        ("reveille_publish_pending_names", "Those that are not certainly in step.", |of| of.pending),
        ("reveille_publish_refused_names", "Those that the primary refuses.", |of| of.refused),
        ("reveille_publish_in_trouble", "1 if something keeps it out of step.", |of| {
            u64::from(of.trouble.is_some())
        }),
    ];
    for (name, help, value) in gauges.into_iter().filter(|_| !dns.publications.is_empty()) {
        page.family(name, "gauge", help);
        for publication in &dns.publications {
            let labels: [Label; 2] = [("server", &publication.server), ("zone", &publication.zone)];
            page.sample(name, &labels, value(publication));
        }
    }
}

type Label<'a> = (&'a str, &'a dyn Display);

/// The text so far. Writing to a string does not fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[Label<'_>], value: impl Display) {
        self.0.push_str(name);
        for (place, (key, label)) in labels.iter().enumerate() {
            let label = label.to_string().replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.0, "{}{key}=\"{label}\"", if place == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// A family with a sample for each instance of which there is a value.
    fn of_instances(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        health: &HealthReport,
        value: impl Fn(&InstanceHealth) -> Option<String>,
    ) {
        self.family(name, kind, help);
        for of in &health.instances {
            if let Some(value) = value(of) {
                let labels: [Label; 2] = [("service", &of.service), ("instance", &of.instance)];
                self.sample(name, &labels, value);
            }
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counters(&mut self, name: &str, help: &str, key: &str, counts: &Counts) {
        self.family(name, "counter", help);
        for (label, count) in counts {
            self.sample(name, &[(key, label)], count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_line_whatever_its_labels_hold() {
        let mut page = Page::default();
        page.counter("plain_total", "Plain.", 7);
        page.sample("odd", &[("a", &"x\"y\\z\nw"), ("b", &1)], 2);
        let text = "# HELP plain_total Plain.\n# TYPE plain_total counter\nplain_total 7\n\
                    odd{a=\"x\\\"y\\\\z\\nw\",b=\"1\"} 2\n";
        assert_eq!(page.0, text);
    }
}
