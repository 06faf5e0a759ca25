//! A server on a free loopback port, with a view that a test can change, and real clients to ask it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

pub mod exchange;
pub mod message;
pub mod ports;
pub mod random;

use arc_swap::ArcSwap;
use reveille_core::answer::{
    Network, Record, Refused, ServiceView, View, WakeTime, Zone, ZoneDefaults, Zones, rdata,
};
use reveille_core::model::{AnswerPolicy, DomainName, Phase, Rung, Timestamp, VmState};
use reveille_dns::{DnsConfig, DnsServer, WakeAsk};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// The time that every test server believes it is.
pub const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);
/// Room in the channel of wakes.
pub const WAKES_MAX: usize = 1_024;
/// Longest wait for something that must happen.
pub const WAIT_MAX: Duration = Duration::from_secs(20);

pub fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

pub fn service(text: &str, last_octet: u8) -> ServiceView {
    ServiceView {
        hold_ms_max: 800,
        version: NonZero::new(7),
        hibernated_at: Some(Timestamp::from_ms(1_799_999_000_000)),
        wake: Some(WakeTime { ms_p50: 186, ms_p95: 240 }),
        ..ServiceView::asleep(name(text), Ipv4Addr::new(127, 64, 0, last_octet))
    }
}

pub fn active(mut service: ServiceView) -> ServiceView {
    service.phase = Phase::Active;
    service.rung = Rung::Active;
    service.state = VmState::Active;
    service.ttl_s = 60;
    service
}

/// `vm.test` as it is without a zone file, and some static records.
pub fn zone() -> Zone {
    let defaults = ZoneDefaults {
        apex: name("vm.test"),
        name_servers: vec![(name("ns1.vm.test"), vec![IpAddr::from([127, 0, 0, 1])])],
        hostmaster: name("hostmaster.vm.test"),
        serial: 1,
        ttl: 3_600,
        negative_ttl: 30,
    };
    let mut records = defaults.records();
    let mut add = |owner: &str, rtype, data: Vec<u8>| {
        records.push(Record { owner: name(owner), rtype, ttl: 300, data });
    };
    add("www.vm.test", rdata::CNAME, name("hello.vm.test").as_wire().to_vec());
    for number in 0..60u8 {
        add("big.vm.test", rdata::TXT, [&[40u8][..], &[b'a' + number % 26; 39], &[number]].concat());
    }
    Zone::new(name("vm.test"), &records).unwrap()
}

pub fn refused(mut service: ServiceView) -> ServiceView {
    service.phase = Phase::Failed;
    service.refused = Some(Box::new(Refused {
        until: Some(NOW.plus_ms(60_000)),
        text: "broken.vm.test cannot be woken for another 60 s".to_owned(),
    }));
    service
}

/// A server with `hello` (asleep), `awake`, `six` (IPv6 too), `broken` (cannot be woken) and `slow` (held).
pub struct World {
    pub runtime: Runtime,
    pub server: DnsServer,
    pub shared: Arc<ArcSwap<View>>,
    pub generation: watch::Sender<u64>,
    pub wakes: mpsc::Receiver<WakeAsk>,
}

impl World {
    pub fn new() -> Self {
        Self::with_monitors(View::default_monitors())
    }

    pub fn with_monitors(monitors: Vec<Network>) -> Self {
        let mut six = service("six.vm.test", 3);
        six.address6 = Some(Ipv6Addr::LOCALHOST);
        let mut slow = service("slow.vm.test", 5);
        slow.answer = AnswerPolicy::Hold;
        slow.hold_ms_max = 4_000;
        let services = [
            service("hello.vm.test", 1),
            active(service("awake.vm.test", 2)),
            six,
            refused(service("broken.vm.test", 4)),
            slow,
        ];
        let view = View::new(1, Zones::new([Arc::new(zone())]), services.map(Arc::new), monitors);
        Self::serving(
            view,
            &DnsConfig {
                listen: vec![SocketAddr::from(([127, 0, 0, 53], 0))],
                udp_threads: 2,
                ..DnsConfig::default()
            },
        )
    }

    pub fn serving(view: View, config: &DnsConfig) -> Self {
        let runtime = Runtime::new().unwrap();
        let shared = Arc::new(ArcSwap::from_pointee(view));
        let (generation, seen) = watch::channel(1);
        let (sender, wakes) = mpsc::channel(WAKES_MAX);
        let server = {
            let _inside = runtime.enter();
            DnsServer::bind(config, Arc::clone(&shared), seen, sender, Arc::new(|| NOW)).unwrap()
        };
        Self { runtime, server, shared, generation, wakes }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    /// Publishes a view in which the service is as given.
    pub fn publish(&self, service: ServiceView) {
        let old = self.shared.load();
        let next = old.with(old.generation + 1, [(service.name.clone(), Some(Arc::new(service)))]);
        let generation = next.generation;
        self.shared.store(Arc::new(next));
        self.generation.send_replace(generation);
    }

    /// What is printed by dig.
    pub fn dig(&self, arguments: &[&str]) -> String {
        self.client("dig", &["+time=10", "+tries=1"], arguments)
    }

    /// What is printed by kdig.
    pub fn kdig(&self, arguments: &[&str]) -> String {
        self.client("kdig", &["+timeout=10", "+retry=0"], arguments)
    }

    fn client(&self, program: &str, limits: &[&str], arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args([&format!("@{}", self.address().ip()), "-p", &self.address().port().to_string()])
            .args(limits)
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs what the tests need"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {text}{output:?}");
        text
    }

    /// Waits until the condition holds.
    pub fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let start = std::time::Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < WAIT_MAX, "never came: {what}; {:?}", self.server.counts());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
