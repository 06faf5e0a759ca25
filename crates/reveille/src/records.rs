//! Raw records: from what is observed to rows, and their way into the object store.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use reveille_core::answer::{View, rdata};
use reveille_core::model::{DomainName, Timestamp};
use reveille_depot::annex::Annex;
use reveille_dns::observe::{Hear, Observed};
use reveille_records::{Buffer, Marker, QueryRow, Records, Source, parquet};

use crate::clock::Clock;
use crate::config::Config;

/// How old may be what is known of which counter is whose, in ms: less than a counter rests before another service has it.
const NAMES_MS_MAX: u64 = 30_000;
/// The name of a question for a service that is gone.
const REMOVED: &str = "(a removed service)";

/// Begins to record, if the settings say so; the store is not asked yet.
///
/// # Errors
/// The depot cannot be used, or this program cannot write files.
pub fn start(config: &Config, clock: Clock) -> anyhow::Result<Option<Arc<Records>>> {
    let (Some(settings), Some(depot)) = (config.records.settings(), config.depot.opened()) else {
        return Ok(None);
    };
    // The config was not taken otherwise.
    let encode = parquet().context("this program was built without Parquet")?;
    let shelf = Arc::new(Annex::open(&depot)?);
    let run = getrandom::u64().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    tracing::info!(queries = settings.queries, requests = settings.requests, "raw records");
    Ok(Some(Arc::new(Records::start(settings, shelf, encode, move || clock.now(), run))))
}

/// Who hears of the own questions, and of those that dnstap tells of, if questions are recorded.
pub fn hearers(
    records: Option<&Arc<Records>>,
    config: &Config,
    view: &Arc<ArcSwap<View>>,
) -> (Option<Hear>, Option<Hear>) {
    let Some(buffer) = records.and_then(|records| records.queries()) else { return (None, None) };
    let marker = Marker::new(config.records.clients);
    let hear = |source| -> Hear {
        let mut ear = Ear::new(Arc::clone(buffer), Arc::clone(view), marker.clone(), source);
        Box::new(move |seen| ear.hear(seen))
    };
    (Some(hear(Source::Own)), Some(hear(Source::Dnstap)))
}

/// Makes rows of questions.
struct Ear {
    buffer: Arc<Buffer<QueryRow>>,
    view: Arc<ArcSwap<View>>,
    marker: Marker,
    source: Source,
    /// The services by their counters, as they were then, in the view of that generation.
    names: BTreeMap<u32, Arc<str>>,
    known: Option<(Timestamp, u64)>,
    /// Types that were seen.
    types: BTreeMap<u16, Arc<str>>,
}

impl Ear {
    fn new(buffer: Arc<Buffer<QueryRow>>, view: Arc<ArcSwap<View>>, marker: Marker, source: Source) -> Self {
        Self { buffer, view, marker, source, names: BTreeMap::new(), known: None, types: BTreeMap::new() }
    }

    fn hear(&mut self, seen: &Observed) {
        let name = match seen.counter {
            0 => text_of(&seen.name),
            counter => self.name(counter, seen.at),
        };
        let qtype = self.types.entry(seen.qtype).or_insert_with(|| rdata::type_word(seen.qtype).into());
        let row = QueryRow {
            at: seen.at,
            name,
            qtype: Arc::clone(qtype),
            client: self.marker.mark(seen.client, seen.at),
            source: self.source,
            // What other servers answer is not looked at.
            rcode: (self.source == Source::Own).then_some(seen.rcode),
        };
        self.buffer.push([row]);
    }

    /// The service that has this counter.
    fn name(&mut self, counter: u32, at: Timestamp) -> Arc<str> {
        let is_old = self.known.is_none_or(|(since, _)| at.ms_since(since) > NAMES_MS_MAX);
        if is_old || !self.names.contains_key(&counter) {
            self.learn(at);
        }
        self.names.get(&counter).cloned().unwrap_or_else(|| REMOVED.into())
    }

    fn learn(&mut self, at: Timestamp) {
        let view = self.view.load();
        if self.known.is_none_or(|(_, generation)| generation != view.generation) {
            let named = view.services().filter(|service| service.counter != 0);
            self.names = named.map(|service| (service.counter, service.name.to_string().into())).collect();
        }
        self.known = Some((at, view.generation));
    }
}

/// A name in wire format as text, in lower case: what a resolver wrote in which case says nothing.
fn text_of(wire: &[u8]) -> Arc<str> {
    match DomainName::from_wire(wire) {
        Ok(name) => name.to_string().to_ascii_lowercase().into(),
        Err(_) => wire.escape_ascii().to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;
    use std::time::Duration;

    use reveille_core::answer::{ServiceView, Zones};
    use reveille_depot::config::DepotConfig;
    use reveille_dns::Transport;
    use reveille_records::{Clients, Encode, EncodeError, RequestRow, Settings};

    use super::*;

    /// Keeps rows as they are.
    #[derive(Default)]
    struct Kept(Mutex<Vec<QueryRow>>);

    impl Encode for Kept {
        fn queries(&self, rows: &[QueryRow]) -> Result<Vec<u8>, EncodeError> {
            self.0.lock().unwrap().extend_from_slice(rows);
            Ok(vec![])
        }

        fn requests(&self, _: &[RequestRow]) -> Result<Vec<u8>, EncodeError> {
            Ok(vec![])
        }
    }

    fn view(generation: u64, name: &str, counter: u32) -> View {
        let service = ServiceView::asleep(name.parse().unwrap(), Ipv4Addr::LOCALHOST);
        let service = Arc::new(ServiceView { counter, ..service });
        View::new(generation, Zones::default(), [service], View::default_monitors())
    }

    fn seen(at_ms: u64, counter: u32, name: &[u8], qtype: u16) -> Observed {
        Observed {
            at: Timestamp::from_ms(at_ms),
            counter,
            name: name.to_vec(),
            qtype,
            rcode: 3,
            transport: Transport::Udp,
            client: "192.0.2.77".parse().unwrap(),
            subnet: None,
            ttl_s: None,
            proven: false,
        }
    }

    #[tokio::test]
    async fn a_row_has_the_name_of_the_service_that_the_counter_belonged_to_then() {
        let kept = Arc::new(Kept::default());
        let flush = Duration::from_secs(3_600);
        let settings = Settings { queries: true, requests: false, rows_max: 100, flush, keep_days: 30_000 };
        let now = || Timestamp::from_ms(1_795_416_647_000);
        let temp = tempfile::tempdir().unwrap();
        let annex = Annex::open(&DepotConfig::at(&format!("file://{}", temp.path().display()))).unwrap();
        let records = Records::start(settings, Arc::new(annex), Arc::clone(&kept) as _, now, 1);
        let shared = Arc::new(ArcSwap::from_pointee(view(1, "hello.vm.test", 7)));
        let marker = Marker::new(Clients::Network);
        let buffer = records.queries().unwrap();
        let ear = |source| Ear::new(Arc::clone(buffer), Arc::clone(&shared), marker.clone(), source);
        let (mut own, mut others) = (ear(Source::Own), ear(Source::Dnstap));
        let start = now().as_ms() - 100_000;
        own.hear(&seen(start, 7, &[], 28));
        own.hear(&seen(start, 0, b"\x03WWW\x07eXample\0", 65_280));
        others.hear(&seen(start, 7, &[], 1));
        // The service is gone, and a minute later another one has its counter.
        shared.store(Arc::new(view(2, "new.vm.test", 8)));
        own.hear(&seen(start + 1, 7, &[], 1));
        own.hear(&seen(start + 2, 8, &[], 1));
        own.hear(&seen(start + 3, 9, &[], 1));
        shared.store(Arc::new(view(3, "again.vm.test", 7)));
        own.hear(&seen(start + 60_000, 7, &[], 1));
        records.stop().await;

        let rows = std::mem::take(&mut *kept.0.lock().unwrap());
        let told: Vec<_> = rows.iter().map(|row| (&*row.name, &*row.qtype, row.source, row.rcode)).collect();
        let own = |name, qtype| (name, qtype, Source::Own, Some(3));
        assert_eq!(
            told,
            [
                own("hello.vm.test", "AAAA"),
                own("www.example", "TYPE65280"),
                ("hello.vm.test", "A", Source::Dnstap, None),
                own("hello.vm.test", "A"),
                own("new.vm.test", "A"),
                own(REMOVED, "A"),
                own("again.vm.test", "A"),
            ]
        );
        assert!(rows.iter().all(|row| row.client.unwrap().to_string() == "192.0.2.0/24"));
    }
}
