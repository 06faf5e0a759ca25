//! A control loop over a host on which nothing happens: no process is started, and of the network it is only noted who
//! clients are led to.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use reveille_core::answer::{Acl, View, Zones};
use reveille_core::model::{
    Cause, DomainName, Event, Fleet, Found, Gate, HostLimits, InstanceId, Phase, Remains, Role, ServiceSpec,
    SnapshotVersion, Timestamp,
};
use reveille_dns::update::{StaticBook, UpdateDesk};
use reveille_net::{ActivatorError, Binding, Busy, Replies, Traffic};
use reveille_store::Store;
use reveille_vm::driver::{
    self, Abandon, Capabilities, Capture, Driver, DriverError, Launch, Mapping, OnStage, VersionFiles,
};
use reveille_vm::image::Image;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};

use crate::clock::Clock;
use crate::config::{Network, OnStop, Pools};
use crate::control::cable::Cable;
use crate::control::executor::Executor;
use crate::control::images::Images;
use crate::control::wiring::Wiring;
use crate::control::{Control, INBOX_MAX, Message, Parts, Publisher, Serials, startup};
use crate::profiles::Profiles;

/// The one service, which may have four instances.
pub const NAME: &str = "web.vm.test";

/// Has no process and starts none.
struct Nothing(Capabilities);

const CANNOT: DriverError = DriverError::Unsupported { driver: "nothing", verb: "do anything" };

#[async_trait]
impl Driver for Nothing {
    fn capabilities(&self) -> &Capabilities {
        &self.0
    }
    async fn find(&self, _: &Launch, _: bool) -> Found {
        Found::Nothing { version: None }
    }
    async fn inventory(&self) -> Vec<InstanceId> {
        Vec::new()
    }
    async fn boot(&self, _: &Launch, _: OnStage<'_>) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn arm(&self, _: &Launch, _: Mapping) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn restore(&self, _: &Launch, _: Mapping, _: OnStage<'_>) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn warm(&self, _: &Launch, _: OnStage<'_>) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn pause(&self, _: InstanceId) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn checkpoint(&self, _: &Launch, _: u64, _: Timestamp) -> Result<VersionFiles, DriverError> {
        Err(CANNOT)
    }
    async fn version_files(&self, _: InstanceId) -> Result<VersionFiles, DriverError> {
        Err(CANNOT)
    }
    async fn fetch_dir(&self, _: InstanceId) -> Result<PathBuf, DriverError> {
        Err(CANNOT)
    }
    async fn install(&self, _: &Launch, _: u64) -> Result<SnapshotVersion, DriverError> {
        Err(CANNOT)
    }
    async fn evict(&self, _: InstanceId) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn capture(&self, _: &Launch, _: u64, _: Timestamp, _: &Abandon) -> Result<Capture, DriverError> {
        Err(CANNOT)
    }
    async fn resume(&self, _: &Launch) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn disarm(&self, _: InstanceId) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn kill(&self, _: InstanceId, _: Remains) -> Result<Option<SnapshotVersion>, DriverError> {
        Ok(None)
    }
    async fn beat(&self, _: InstanceId, _: u64) -> Result<(), DriverError> {
        Err(CANNOT)
    }
    async fn died(&self, _: InstanceId) -> String {
        std::future::pending().await
    }
    async fn network(&self, _: InstanceId) -> Result<UnixStream, DriverError> {
        Err(CANNOT)
    }
    fn cpu_ms(&self, _: InstanceId) -> Option<u64> {
        None
    }
    fn held_kib(&self, _: InstanceId) -> Option<u64> {
        None
    }
    fn is_held_up(&self, _: InstanceId) -> bool {
        false
    }
}

/// A network of which it is noted whom it was told to lead clients to.
pub struct Net {
    shares_out: bool,
    pub led: Mutex<Vec<(InstanceId, bool)>>,
}

#[async_trait]
impl Wiring for Net {
    async fn bind(&self, _: Binding) -> Result<(), ActivatorError> {
        Ok(())
    }
    async fn unbind(&self, _: &DomainName) {}
    fn shares_out(&self) -> bool {
        self.shares_out
    }
    fn set_gate(&self, _: &DomainName, _: Gate) {}
    fn close_if_idle(&self, _: &DomainName, _: u64, _: bool) -> Result<(), Busy> {
        Ok(())
    }
    fn cut(&self, _: InstanceId, _: &DomainName) {}
    fn lead_to(&self, instance: InstanceId, _: &DomainName, takes: bool) {
        self.led.lock().unwrap().push((instance, takes));
    }
    fn in_use(&self, _: InstanceId, _: &DomainName) -> u32 {
        0
    }
    fn traffic(&self, _: &DomainName) -> Option<Traffic> {
        None
    }
    fn replies(&self, _: InstanceId, _: &DomainName) -> Option<Replies> {
        None
    }
    fn plug(&self, _: InstanceId, _: &DomainName, _: Ipv4Addr, _: Option<Ipv6Addr>) -> driver::Link {
        driver::Link::Stream
    }
    fn plug_bound(&self, _: InstanceId, _: &ServiceSpec) -> Result<driver::Link, Cause> {
        Ok(driver::Link::Stream)
    }
    async fn attach(
        &self,
        instance: InstanceId,
        _: Role,
        _: &ServiceSpec,
        _: &dyn Driver,
    ) -> Result<Arc<dyn Cable>, DriverError> {
        Err(DriverError::NoProcess(instance))
    }
    fn detach(&self, _: InstanceId, _: &DomainName) {}
}

struct NoImages;

#[async_trait]
impl Images for NoImages {
    async fn resolve(&self, _: &str) -> Result<Image, String> {
        Err("there are no images".to_owned())
    }
}

/// The host, with the loop that is not running.
pub struct Host {
    pub control: Control,
    pub net: Arc<Net>,
    pub store: Arc<Store>,
    pub primary: InstanceId,
    _inbox: mpsc::Receiver<Message>,
    _dir: tempfile::TempDir,
}

pub fn spec() -> ServiceSpec {
    let policy = serde_json::json!({"instances_max": 4});
    let spec = serde_json::json!({
        "name": NAME, "kind": "replicable", "image": "demo", "ports": ["tcp/80"], "policy": policy
    });
    serde_json::from_value(spec).unwrap()
}

impl Host {
    /// A host with the service awake; `shares_out` as with a relay, or not as with taps.
    pub async fn awake(shares_out: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, loaded) = Store::open(dir.path()).unwrap();
        let (store, clock) = (Arc::new(store), Clock::start());
        let pool = Pools::of(Network::parse_v4("127.64.0.0/24").unwrap());
        let rows = startup::merge(&[spec()], loaded, &*store, pool, clock.now()).await.unwrap();
        let (mut fleet, mut primary) = (Fleet::new(HostLimits::default()), None);
        for (service, mut row) in rows.entries {
            primary = Some(row.id);
            row.phase = Phase::Active;
            let event = Event::Added { service: Box::new(service), instance: Box::new(row) };
            fleet.apply(event, clock.now()).unwrap();
        }
        let net = Arc::new(Net { shares_out, led: Mutex::default() });
        let wiring: Arc<dyn Wiring> = Arc::clone(&net) as _;
        let (serials, _) = Serials::begin(Arc::clone(&store), &BTreeMap::new(), Vec::new()).await.unwrap();
        let view = Arc::new(ArcSwap::from_pointee(View::seeded(1, 0, Zones::default(), [], Acl::new([]))));
        let publisher = Publisher::new(view, watch::channel(0).0, Arc::clone(&wiring), serials);
        let (inbox, inbox_end) = mpsc::channel(INBOX_MAX);
        let driver = Nothing(Capabilities {
            driver: "nothing",
            version: String::new(),
            accelerator: String::new(),
            hibernate: false,
            arm: false,
            sandbox: false,
        });
        let profiles = Arc::new(Profiles::default());
        let executor = Executor::new(
            Arc::new(driver),
            Arc::new(NoImages),
            Arc::clone(&wiring),
            inbox,
            clock,
            None,
            profiles,
        );
        let control = Control::new(Parts {
            fleet,
            clock,
            store: Arc::clone(&store) as _,
            wiring,
            executor,
            publisher,
            news: broadcast::channel(8).0,
            services: rows.services,
            zones: vec!["vm.test".parse().unwrap()],
            updates: UpdateDesk::new(StaticBook::default()),
            on_stop: (OnStop::Hibernate, Duration::from_secs(1)),
            forecasts: None,
        });
        Self { control, net, store, primary: primary.unwrap(), _inbox: inbox_end, _dir: dir }
    }

    /// The last that the network was told.
    pub fn led_last(&self) -> Option<(InstanceId, bool)> {
        self.net.led.lock().unwrap().last().copied()
    }
}
