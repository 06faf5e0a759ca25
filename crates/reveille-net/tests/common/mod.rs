//! Services on loopback addresses of their own, and clients and backends for them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use reveille_core::model::{DomainName, Gate, PortSpec, Timestamp};
use reveille_net::{Backend, Binding, Relay, RelayEvent, RelayEvents, RelayLimits, Traffic};
use tokio::net::{TcpListener, TcpStream};

/// Longest time that a test waits for anything.
pub const LONG: Duration = Duration::from_secs(30);

static NEXT: AtomicU8 = AtomicU8::new(1);

/// A relay with one service on addresses that no other test uses.
pub struct Bench {
    pub relay: Relay,
    pub events: RelayEvents,
    pub binding: Binding,
    backend: Ipv4Addr,
}

/// A loopback address that no other test of this or another running process uses.
pub fn address() -> Ipv4Addr {
    let [low, high, ..] = std::process::id().to_le_bytes();
    Ipv4Addr::new(127, 128 | (high & 0x7f), low, NEXT.fetch_add(1, Ordering::SeqCst))
}

pub fn service() -> DomainName {
    "hello.vm.test".parse().unwrap()
}

pub fn clock() -> reveille_net::Now {
    let start = Instant::now();
    Arc::new(move || Timestamp::from_ms(1_000_000 + u64::try_from(start.elapsed().as_millis()).unwrap()))
}

pub fn binding(ports: &[&str]) -> Binding {
    let ports: Vec<PortSpec> = ports.iter().map(|port| port.parse().unwrap()).collect();
    Binding::new(service(), vec![IpAddr::V4(address())], ports)
}

impl Bench {
    pub async fn new(ports: &[&str]) -> Self {
        Self::with(binding(ports), RelayLimits::default()).await
    }

    pub async fn with(binding: Binding, limits: RelayLimits) -> Self {
        Self::at(binding, limits, clock()).await
    }

    /// As [`Bench::with`], with a clock of the test's own.
    pub async fn at(binding: Binding, limits: RelayLimits, now: reveille_net::Now) -> Self {
        let (relay, events) = Relay::new(limits, now);
        let bench = Self { relay, events, binding, backend: address() };
        bench.bind().await;
        bench
    }

    /// Binds the service, with its backend.
    pub async fn bind(&self) {
        self.relay.bind(self.binding.clone()).await.unwrap();
        self.relay.set_backend(&self.binding.service, Backend::Address(self.backend.into()));
    }

    pub fn stable(&self) -> SocketAddr {
        SocketAddr::new(self.binding.stable[0], self.binding.ports[0].number)
    }

    pub fn backend(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.backend), self.binding.ports[0].number)
    }

    pub async fn listen(&self) -> TcpListener {
        TcpListener::bind(self.backend()).await.unwrap()
    }

    pub async fn client(&self) -> TcpStream {
        within(TcpStream::connect(self.stable())).await.unwrap()
    }

    pub fn open(&self) {
        self.relay.set_gate(&service(), Gate::Open);
    }

    pub fn traffic(&self) -> Traffic {
        self.relay.traffic(&service()).unwrap()
    }

    /// Waits until the traffic is as `wanted` says.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Traffic) -> bool) -> Traffic {
        let start = Instant::now();
        loop {
            let traffic = self.traffic();
            if wanted(&traffic) {
                return traffic;
            }
            assert!(start.elapsed() < LONG, "waited in vain for {what}: {traffic:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub async fn event(&mut self) -> RelayEvent {
        within(self.events.recv()).await.unwrap()
    }
}

/// Waits for `future`, but not for ever.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LONG, future).await.expect("waited in vain")
}

/// Makes the socket's end an RST.
pub fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Waits for the end of the stream, whatever comes before it: `true` if it is a reset.
pub async fn ends_by_reset(stream: &mut TcpStream) -> bool {
    use tokio::io::AsyncReadExt;
    let mut buffer = vec![0; 65_536];
    loop {
        match within(stream.read(&mut buffer)).await {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                return true;
            }
        }
    }
}
