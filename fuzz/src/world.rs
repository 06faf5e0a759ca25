//! What is served to the targets: the static zones of the comparison with Knot, and services in every state.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::sync::{Arc, LazyLock};

use reveille_core::answer::{Refused, ServiceView, View, Zone, ZoneDefaults, Zones};
use reveille_core::model::{DomainName, Phase, Rung, Timestamp, VmState};
use reveille_dns::{Setting, zonefile};

/// The time that it is.
pub const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

/// Apex and text of each static zone.
pub const ZONES: [(&str, &str); 9] = [
    ("conform.test", include_str!("../../crates/reveille-dns/tests/conform/zones/conform.test.zone")),
    (
        "child.conform.test",
        include_str!("../../crates/reveille-dns/tests/conform/zones/child.conform.test.zone"),
    ),
    (
        "deep.cut2.conform.test",
        include_str!("../../crates/reveille-dns/tests/conform/zones/deep.cut2.conform.test.zone"),
    ),
    (
        "undel.conform.test",
        include_str!("../../crates/reveille-dns/tests/conform/zones/undel.conform.test.zone"),
    ),
    (
        "x.undel2.conform.test",
        include_str!("../../crates/reveille-dns/tests/conform/zones/x.undel2.conform.test.zone"),
    ),
    ("other.test", include_str!("../../crates/reveille-dns/tests/conform/zones/other.test.zone")),
    ("star.test", include_str!("../../crates/reveille-dns/tests/conform/zones/star.test.zone")),
    (
        "2.0.192.in-addr.arpa",
        include_str!("../../crates/reveille-dns/tests/conform/zones/2.0.192.in-addr.arpa.zone"),
    ),
    ("x.y", include_str!("../../crates/reveille-dns/tests/conform/zones/x.y.zone")),
];

/// The view that every target asks. No question is held in it: what is answered depends on nothing but the question.
pub static VIEW: LazyLock<Arc<View>> = LazyLock::new(|| {
    let mut zones: Vec<Zone> =
        ZONES.iter().map(|(apex, text)| zonefile::parse(apex, text, &name(apex)).unwrap()).collect();
    let defaults = ZoneDefaults {
        apex: name("vm.test"),
        name_servers: vec![(name("ns1.vm.test"), vec![Ipv4Addr::LOCALHOST.into()])],
        hostmaster: name("hostmaster.vm.test"),
        serial: 1,
        ttl: 3_600,
        negative_ttl: 30,
    };
    zones.push(defaults.zone().unwrap());
    let mut awake = service("awake.vm.test", 2);
    (awake.phase, awake.rung, awake.state) = (Phase::Active, Rung::Active, VmState::Active);
    awake.address6 = Some(Ipv6Addr::LOCALHOST);
    let mut broken = service("broken.vm.test", 3);
    broken.refused = Some(Box::new(Refused {
        until: Some(NOW.plus_ms(1_000)),
        text: "broken.vm.test cannot be woken".to_owned(),
    }));
    let services = [service("hello.vm.test", 1), awake, broken, service("service.conform.test", 4)];
    let zones = Zones::new(zones.into_iter().map(Arc::new));
    Arc::new(View::new(1, zones, services.map(Arc::new), View::default_monitors()))
});

/// What is asked, without a gate and without keys.
pub fn setting(view: &View) -> Setting<'_, '_> {
    Setting { view, now: NOW, judge: None, keys: None }
}

/// Who asks; `_vmstate` is told to it.
pub fn peer() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 4_242))
}

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn service(text: &str, last_octet: u8) -> ServiceView {
    ServiceView {
        version: NonZero::new(7),
        ..ServiceView::asleep(name(text), Ipv4Addr::new(127, 64, 0, last_octet))
    }
}
