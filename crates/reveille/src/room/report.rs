//! Counters and observations, put into the words of the API.

use std::collections::BTreeMap;

use reveille_api::Time;
use reveille_api::types::{Counts, DnsReport, ObservedReport, PublicationReport, SecondaryReport, Top};
use reveille_core::answer::{Rcode, View};
use reveille_core::model::DomainName;
use reveille_dns::dnstap::SourceStatus;
use reveille_dns::observe::{Heavy, SeenName};
use reveille_dns::publish::{PublishConfig, PublishStatus};
use reveille_dns::{Counts as Counted, SecondaryStatus, Transport};

use super::{QueryRoom, arrivals};

/// What there is to tell now.
pub(super) fn of(room: &QueryRoom) -> DnsReport {
    let by_transport = Transport::ALL.map(|transport| (transport, room.tallies.of(transport)));
    let all = room.tallies.sum();
    // What came by no transport of its own is an update that was answered later; it came the general way.
    let fast: u64 =
        by_transport.iter().map(|(_, counted)| counted.queries.saturating_sub(counted.general)).sum();
    let signing = room.signing.counts();
    let mut gate: BTreeMap<String, Counts> = BTreeMap::new();
    for (counter, count) in room.gate.iter().flat_map(|gate| gate.counts().iter().collect::<Vec<_>>()) {
        let (judged, verdict) = counter.labels();
        gate.entry(judged.to_owned()).or_default().insert(verdict.to_owned(), count);
    }
    DnsReport {
        at: Time(room.clock.now()),
        queries: by_transport
            .iter()
            .map(|(transport, counted)| word(transport.word(), counted.queries))
            .collect(),
        ways: counts([
            ("fast", fast),
            ("general", by_transport.iter().map(|(_, counted)| counted.general).sum()),
        ]),
        rcodes: Rcode::ALL.into_iter().map(|rcode| word(rcode.word(), all.of(rcode))).collect(),
        silent: all.silent,
        truncated: all.truncated,
        tsig_refused: all.signatures_refused,
        socket_errors: all.socket_errors,
        connections: by_transport.iter().filter_map(connections).collect(),
        holds: counts([("held", all.held), ("refused", all.holds_refused)]),
        wakes: counts([
            ("asked", all.wakes_asked),
            ("coalesced", all.wakes_coalesced),
            ("dropped", all.wakes_dropped),
        ]),
        gate,
        transfers: counts([
            ("whole", all.transfers_whole),
            ("differences", all.transfers_of_differences),
            ("broken", all.transfers_broken),
            ("refused", all.transfers_refused),
        ]),
        notifies: counts([
            ("sent", all.notifies_sent),
            ("acknowledged", all.notifies_acknowledged),
            ("refused", all.notifies_refused),
        ]),
        updates: counts([("taken", all.updates), ("dropped", all.updates_dropped)]),
        signing: counts([
            ("made", signing.made),
            ("reused", signing.reused),
            ("truncated", signing.truncated),
            ("refused", signing.refused),
            ("failed", signing.failed),
        ]),
        dnstap: dnstap(room),
        secondaries: room.secondaries.status().into_iter().map(secondary).collect(),
        publications: room
            .publications
            .iter()
            .map(|(config, status)| publication(config, &status.borrow()))
            .collect(),
        observed: observed(room),
    }
}

fn word(word: &str, count: u64) -> (String, u64) {
    (word.to_owned(), count)
}

fn counts<const N: usize>(of: [(&str, u64); N]) -> Counts {
    of.into_iter().map(|(name, count)| word(name, count)).collect()
}

fn connections((transport, counted): &(Transport, Counted)) -> Option<(String, Counts)> {
    let mut of = counts([
        ("taken", counted.connections),
        ("refused", counted.connections_refused),
        ("timed_out", counted.connections_timed_out),
    ]);
    let handshakes = [
        ("handshakes_refused", counted.handshakes_refused),
        ("handshakes_failed", counted.handshakes_failed),
    ];
    match transport {
        Transport::Udp => return None,
        Transport::Tcp => {}
        Transport::Tls => of.extend(counts(handshakes)),
        Transport::Https => {
            of.extend(counts(handshakes));
            of.extend(counts([("requests_refused", counted.requests_refused)]));
        }
    }
    Some((transport.word().to_owned(), of))
}

fn dnstap(room: &QueryRoom) -> BTreeMap<String, Counts> {
    let out = room.dnstap.0.as_ref().map(|told| {
        let told = told.status();
        let counts = counts([("sent", told.sent), ("dropped", told.dropped), ("withheld", told.withheld)]);
        ("out".to_owned(), counts)
    });
    let taken_in = room.dnstap.1.as_ref().map(|collector| {
        let taken = collector.status();
        let sum = |of: fn(&SourceStatus) -> u64| taken.sources.iter().map(of).sum();
        let counts = counts([
            ("counted", sum(|source| source.counted)),
            ("outside", sum(|source| source.outside)),
            ("other_types", sum(|source| source.other_types)),
            ("unreadable", sum(|source| source.unreadable)),
            ("dropped", taken.dropped),
            ("refused", taken.refused),
            ("broken", taken.broken),
        ]);
        ("in".to_owned(), counts)
    });
    out.into_iter().chain(taken_in).collect()
}

fn secondary(status: SecondaryStatus) -> SecondaryReport {
    let SecondaryStatus { apex, address, serial, acknowledged, tries } = status;
    SecondaryReport { zone: apex, address, serial, acknowledged, tries }
}

fn publication(config: &PublishConfig, status: &PublishStatus) -> PublicationReport {
    PublicationReport {
        server: config.server,
        zone: config.zone.clone(),
        names: status.names as u64,
        pending: status.pending as u64,
        refused: status.refused as u64,
        refused_names: status.refused_names.clone(),
        last_success: status.last_success.map(Time),
        trouble: status.trouble.as_ref().map(|trouble| trouble.text.clone()),
        next_try: status.trouble.as_ref().map(|trouble| Time(trouble.next_try)),
    }
}

fn observed(room: &QueryRoom) -> ObservedReport {
    let seen = room.observer.observations();
    let names = names(&room.view.load(), &seen.top_names);
    let top = |name: String, at_least, at_most| Top { name, at_least, at_most, arrivals: None };
    let corrections = room.observer.corrections();
    let top_names = seen.top_names.iter().map(|Heavy { key, at_least, at_most }| {
        let name = match key {
            SeenName::Counter(counter) => {
                names.get(counter).map_or("(a removed service)".to_owned(), ToString::to_string)
            }
            SeenName::Wire(wire) => match DomainName::from_wire(wire) {
                Ok(name) => name.to_string(),
                Err(_) => wire.escape_ascii().to_string(),
            },
        };
        let correction = match key {
            SeenName::Counter(counter) => corrections.get(counter),
            SeenName::Wire(_) => None,
        };
        let arrivals = correction.map(|known| arrivals::of(known, (*at_least, *at_most)));
        Top { arrivals, ..top(name, *at_least, *at_most) }
    });
    let networks = seen.top_networks.iter().map(|Heavy { key: (address, bits), at_least, at_most }| {
        top(format!("{address}/{bits}"), *at_least, *at_most)
    });
    ObservedReport {
        since: Time(seen.since),
        queries: seen.queries,
        dropped_total: seen.dropped,
        unique_clients: seen.unique_clients,
        top_names: top_names.collect(),
        top_networks: networks.collect(),
    }
}

/// The names of the services with these counters.
fn names(view: &View, seen: &[Heavy<SeenName>]) -> BTreeMap<u32, DomainName> {
    let wanted = |counter: u32| seen.iter().any(|heavy| heavy.key == SeenName::Counter(counter));
    let services = view.services().filter(|service| service.counter != 0 && wanted(service.counter));
    services.map(|service| (service.counter, service.name.clone())).collect()
}
