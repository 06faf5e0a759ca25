//! Serves many services that nobody starts: `serve_many PORT SERVICES`.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use reveille_core::answer::{ServiceView, View, ZoneDefaults, Zones};
use reveille_core::model::{DomainName, Phase, Timestamp};
use reveille_dns::{DnsConfig, DnsServer};
use tokio::sync::{mpsc, watch};

fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn main() {
    let mut args = std::env::args().skip(1);
    let port: u16 = args.next().unwrap().parse().unwrap();
    let count: u32 = args.next().unwrap().parse().unwrap();
    let apex: DomainName = "vm.test".parse().unwrap();
    let zone = ZoneDefaults {
        apex: apex.clone(),
        name_servers: vec![(apex.prepend("ns1").unwrap(), vec![])],
        hostmaster: apex.prepend("hostmaster").unwrap(),
        serial: 1,
        ttl: 3600,
        negative_ttl: 30,
    };
    let before = rss();
    let services = (0..count).map(|n| {
        let phase = match n % 100 {
            0..10 => Phase::Active,
            10..15 => Phase::Restoring,
            _ => Phase::Hibernated,
        };
        let name = format!("svc{n}.vm.test").parse().unwrap();
        let address = Ipv4Addr::from_bits(0x7f40_0000 + n);
        Arc::new(ServiceView { phase, counter: n + 1, ..ServiceView::asleep(name, address) })
    });
    let view = View::new(1, Zones::new([Arc::new(zone.zone().unwrap())]), services, View::default_monitors());
    println!(
        "{} B a service; table {} B",
        (rss() - before) / u64::from(count),
        view.names().heap_bytes() as u64 / u64::from(count)
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (_generation, seen) = watch::channel(1);
    let (wakes, _asks) = mpsc::channel(1);
    let config = DnsConfig { listen: vec![SocketAddr::from(([127, 0, 0, 1], port))], udp_threads: 1 };
    let clock = std::time::Instant::now();
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
    let now = Arc::new(move || Timestamp::from_ms(wall + clock.elapsed().as_millis() as u64));
    let server = DnsServer::bind(&config, Arc::new(ArcSwap::from_pointee(view)), seen, wakes, now).unwrap();
    drop(server.counters());
    println!("ready");
    runtime.block_on(std::future::pending::<()>());
}
