//! A server of signed zones that keeps real time, as validators do.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use reveille_core::answer::{Record, ServiceView, View, Zone, Zones, rdata};
use reveille_core::model::{AnswerPolicy, Timestamp};
use reveille_dns::sign::{KeyPolicy, KeyState, Signing, SigningLimits};
use reveille_dns::{DnsConfig, DnsServer, WakeAsk};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::common::{WAIT_MAX, WAKES_MAX, active, name, refused, service};

/// The time now, as the daemon and the host have it.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap())
}

pub fn wire(text: &str) -> Vec<u8> {
    name(text).as_wire().to_vec()
}

/// Records of one zone.
pub struct Records(pub Vec<Record>, pub u32);

impl Records {
    /// The apex of a zone whose name server is this server.
    pub fn apex(apex: &str, ttl: u32, negative_ttl: u32) -> Self {
        let mut records = Self(Vec::new(), ttl);
        let soa = rdata::soa(
            &name("ns1.vm.test"),
            &name("Hostmaster.VM.test"),
            [1, 3_600, 600, 604_800, negative_ttl],
        );
        records.add(apex, rdata::SOA, &soa);
        records.add(apex, rdata::NS, &wire("ns1.vm.test"));
        records
    }

    pub fn add(&mut self, owner: &str, rtype: u16, data: &[u8]) {
        self.0.push(Record { owner: name(owner), rtype, ttl: self.1, data: data.to_vec() });
    }

    pub fn zone(&self, apex: &str) -> Zone {
        Zone::new(name(apex), &self.0).unwrap()
    }
}

/// `vm.test` with everything that a validator may stumble over.
pub fn parent_records(ttl: u32, negative_ttl: u32) -> Records {
    let mut records = Records::apex("vm.test", ttl, negative_ttl);
    records.add("ns1.vm.test", rdata::A, &[127, 0, 0, 1]);
    // Aliases, also in upper case, out of the zone, to nothing, and across a delegation.
    records.add("www.vm.test", rdata::CNAME, b"\x05HELLO\x02VM\x04test\x00");
    records.add("chain.vm.test", rdata::CNAME, &wire("www.vm.test"));
    records.add("long.vm.test", rdata::CNAME, &wire("chain.vm.test"));
    records.add("out.vm.test", rdata::CNAME, &wire("www.elsewhere.test"));
    records.add("gone.vm.test", rdata::CNAME, &wire("nothing.vm.test"));
    records.add("over.vm.test", rdata::CNAME, &wire("web.app.vm.test"));
    records.add("top.vm.test", rdata::CNAME, &wire("vm.test"));
    // Wildcards, and what lies below and beside.
    records.add("*.wild.vm.test", rdata::A, &[192, 0, 2, 7]);
    records.add("*.wild.vm.test", rdata::TXT, b"\x04star");
    records.add("exact.wild.vm.test", rdata::TXT, b"\x05exact");
    records.add("*.walias.vm.test", rdata::CNAME, &wire("hello.vm.test"));
    // An empty non-terminal.
    records.add("deep.empty.vm.test", rdata::TXT, b"\x04deep");
    records.add("mail.vm.test", rdata::MX, b"\x00\x0a\x03NS1\x02vm\x04test\x00");
    records.add("odd.vm.test", 65_281, b"private use");
    records.add("hello.vm.test", rdata::TXT, b"\x05hello");
    for number in 0..60u8 {
        records.add("big.vm.test", rdata::TXT, &[&[40u8][..], &[b'a' + number % 26; 39], &[number]].concat());
    }
    // Delegated: without a DS, and to be given one.
    records.add("plain.vm.test", rdata::NS, &wire("ns.plain.vm.test"));
    records.add("ns.plain.vm.test", rdata::A, &[127, 0, 0, 1]);
    records.add("app.vm.test", rdata::NS, &wire("ns1.vm.test"));
    records.add("lone.vm.test", rdata::NS, &wire("ns.lone.vm.test"));
    records.add("ns.lone.vm.test", rdata::A, &[127, 0, 0, 1]);
    // Delegated to somebody elsewhere who signs.
    records.add("far.vm.test", rdata::NS, &wire("ns.elsewhere.test"));
    records.add("far.vm.test", rdata::DS, &[&[0x30, 0x39, 13, 2][..], &[0xab; 32]].concat());
    records
}

/// A zone below `vm.test` with a host, a wildcard and an alias to its service, if it has one.
pub fn child_records(apex: &str, ttl: u32, negative_ttl: u32) -> Records {
    let mut records = Records::apex(apex, ttl, negative_ttl);
    records.add(&format!("www.{apex}"), rdata::A, &[192, 0, 2, 80]);
    records.add(&format!("*.any.{apex}"), rdata::A, &[192, 0, 2, 81]);
    records.add(&format!("alias.{apex}"), rdata::CNAME, &wire(&format!("web.{apex}")));
    records
}

pub fn services() -> Vec<Arc<ServiceView>> {
    let mut six = service("six.vm.test", 3);
    six.address6 = Some(std::net::Ipv6Addr::LOCALHOST);
    let mut slow = service("slow.vm.test", 5);
    slow.answer = AnswerPolicy::Hold;
    slow.hold_ms_max = 50;
    let services = [
        service("hello.vm.test", 1),
        active(service("awake.vm.test", 2)),
        six,
        refused(service("broken.vm.test", 4)),
        slow,
        active(service("web.app.vm.test", 6)),
    ];
    services.map(Arc::new).into()
}

/// The data of a DS record, from its line in a zone file.
pub fn ds_data(line: &str) -> Vec<u8> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[_, "IN", "DS", tag, algorithm, digest_type, digest] = &words[..] else { panic!("{line}") };
    let mut data = tag.parse::<u16>().unwrap().to_be_bytes().to_vec();
    data.extend([algorithm.parse::<u8>().unwrap(), digest_type.parse().unwrap()]);
    data.extend((0..digest.len()).step_by(2).map(|at| u8::from_str_radix(&digest[at..at + 2], 16).unwrap()));
    data
}

/// A server of `vm.test`, its child `app.vm.test`, and whatever a test makes of them.
pub struct SignedWorld {
    _runtime: Runtime,
    pub server: DnsServer,
    pub shared: Arc<ArcSwap<View>>,
    pub generation: watch::Sender<u64>,
    pub wakes: mpsc::Receiver<WakeAsk>,
    pub signing: Signing,
    pub dir: TempDir,
}

impl SignedWorld {
    /// With `signed` zones, and others.
    pub fn new(policy: KeyPolicy, limits: &SigningLimits, signed: Vec<Zone>, others: Vec<Zone>) -> Self {
        let dir = TempDir::new().unwrap();
        let signing =
            Signing::open(dir.path(), signed.iter().map(|zone| (zone, 0)), policy, limits, now()).unwrap();
        let zones = signed.into_iter().chain(others).map(|zone| Arc::new(signing.sign(zone)));
        let view = View::new(1, Zones::new(zones), services(), View::default_monitors());
        let runtime = Runtime::new().unwrap();
        let shared = Arc::new(ArcSwap::from_pointee(view));
        let (generation, seen) = watch::channel(1);
        let (sender, wakes) = mpsc::channel(WAKES_MAX);
        let server = {
            let _inside = runtime.enter();
            let listen = vec![SocketAddr::from(([127, 0, 0, 53], 0))];
            #[allow(clippy::needless_update, reason = "whatever else there may be to set")]
            let config = DnsConfig { listen, udp_threads: 2, ..DnsConfig::default() };
            DnsServer::bind(&config, Arc::clone(&shared), seen, sender, Arc::new(now)).unwrap()
        };
        Self { _runtime: runtime, server, shared, generation, wakes, signing, dir }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    /// Serves this zone, signed, in place of the one of that name.
    pub fn publish(&self, zone: Zone) {
        self.publish_as_it_is(self.signing.sign(zone));
    }

    /// Opens the keys anew, as after a restart.
    pub fn start_anew(&mut self, policy: KeyPolicy) {
        let zones: Vec<Arc<Zone>> = self.shared.load().zones().iter().cloned().collect();
        let signed =
            zones.iter().map(|zone| &**zone).filter(|zone| zone.signer().is_some()).map(|zone| (zone, 0));
        self.signing =
            Signing::open(self.dir.path(), signed, policy, &SigningLimits::default(), now()).unwrap();
        for zone in zones {
            self.publish(Zone::clone(&zone));
        }
    }

    /// Serves this zone in place of the one of that name.
    pub fn publish_as_it_is(&self, zone: Zone) {
        let old = self.shared.load();
        let generation = old.generation + 1;
        // The last one of a name is served.
        let zones = Zones::new(old.zones().iter().cloned().chain([Arc::new(zone)]));
        let next = View::new(generation, zones, old.services().cloned(), View::default_monitors());
        self.shared.store(Arc::new(next));
        self.generation.send_replace(generation);
    }

    /// Looks at the keys until the condition holds.
    pub fn step_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = std::time::Instant::now();
        while !condition(self) {
            let look = self.signing.step(now(), now());
            assert!(look.errors.is_empty(), "{look:?}");
            assert!(start.elapsed() < WAIT_MAX, "never came: {what}; {:?}", self.signing);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The key tags of a zone by state, oldest first.
    pub fn states(&self, zone: &str) -> Vec<(u16, KeyState)> {
        let report = self.signing.report(&name(zone), now()).unwrap();
        report.keys.iter().map(|key| (key.tag, key.state)).collect()
    }

    /// The DS records that the zone wishes for.
    pub fn ds(&self, zone: &str) -> Vec<String> {
        self.signing.report(&name(zone), now()).unwrap().ds
    }

    /// Puts the DS that the child wishes for into its parent's records.
    pub fn delegate(&self, parent: &mut Records, child: &str) {
        let ds = self.ds(child);
        parent.0.retain(|record| !(record.rtype == rdata::DS && record.owner == name(child)));
        assert!(!ds.is_empty(), "{child} has no DS yet");
        for line in ds {
            parent.add(child, rdata::DS, &ds_data(&line));
        }
    }

    /// The DNSKEY records of a zone, as the words that stand in a trust anchor.
    pub fn anchors(&self, zone: &str) -> Vec<String> {
        let report = self.signing.report(&name(zone), now()).unwrap();
        report.keys.into_iter().filter_map(|key| key.dnskey).collect()
    }

    /// What a program prints.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let port = self.address().port().to_string();
        let server = format!("@{}", self.address().ip());
        let output = Command::new(program).args([&server, "-p", &port]).args(arguments).output();
        let output = output
            .unwrap_or_else(|error| panic!("{program}: {error}; `make test` installs what the tests need"));
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    pub fn dig(&self, arguments: &[&str]) -> String {
        self.run("dig", &[&["+time=10", "+tries=1"], arguments].concat())
    }

    pub fn kdig(&self, arguments: &[&str]) -> String {
        self.run("kdig", &[&["+timeout=10", "+retry=0"], arguments].concat())
    }

    /// What delv says who trusts the key of `vm.test`.
    pub fn delv(&self, arguments: &[&str]) -> String {
        let path = self.dir.path().join("anchors");
        let anchors: Vec<String> = self.anchors("vm.test").iter().map(|line| static_key(line)).collect();
        std::fs::write(&path, format!("trust-anchors {{ {} }};\n", anchors.concat())).unwrap();
        let path = path.to_str().unwrap();
        self.run("delv", &[&["-a", path, "+root=vm.test", "+nocrypto"], arguments].concat())
    }
}

fn static_key(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let &[owner, "IN", "DNSKEY", flags, protocol, algorithm, key] = &words[..] else { panic!("{line}") };
    format!("{owner} static-key {flags} {protocol} {algorithm} \"{key}\"; ")
}
