//! What questions are answered from: every zone and service at one generation.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::key::{NameKey, QuestionName};
use super::network::Network;
use super::rdata;
use super::zone::Zone;
use crate::model::{AnswerPolicy, DomainName, Phase, Resources, Rung, Timestamp, VmState};

/// Why a service cannot be woken for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// From this time on a question wakes it again.
    pub until: Timestamp,
    /// One sentence for the asker: the cause, in a form fit for strangers.
    pub text: String,
}

/// What answering needs to know of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// Its name.
    pub name: DomainName,
    /// Stable IPv4 address.
    pub address: Ipv4Addr,
    /// Stable IPv6 address, if it has one.
    pub address6: Option<Ipv6Addr>,
    /// Phase of its primary.
    pub phase: Phase,
    /// Rung of its primary.
    pub rung: Rung,
    /// What phase and rung amount to.
    pub state: VmState,
    /// What a question is answered with while it sleeps.
    pub answer: AnswerPolicy,
    /// Longest time that a question is held, in milliseconds.
    pub hold_ms_max: u64,
    /// TTL of its addresses, in seconds.
    pub ttl_s: u32,
    /// Set while it cannot be woken.
    pub refused: Option<Refused>,
    /// Number of the version that can be restored.
    pub version: Option<u64>,
    /// When it last hibernated.
    pub hibernated_at: Option<Timestamp>,
    /// Measured time to wake, median, in milliseconds.
    pub wake_ms_p50: Option<u32>,
    /// Measured time to wake, 95th percentile, in milliseconds.
    pub wake_ms_p95: Option<u32>,
    /// What an instance is given.
    pub resources: Resources,
    /// Opaque reference to where its versions lie.
    pub storage: Option<String>,
}

/// The zones that are served. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Zones(Arc<BTreeMap<NameKey, Arc<Zone>>>);

impl Zones {
    /// These zones; of two with the same apex the later one.
    pub fn new(zones: impl IntoIterator<Item = Arc<Zone>>) -> Self {
        Self(Arc::new(zones.into_iter().map(|zone| (NameKey::from(zone.apex()), zone)).collect()))
    }

    /// Every zone.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Zone>> {
        self.0.values()
    }

    /// The zone with the longest apex at or above the name.
    pub fn of(&self, name: &QuestionName) -> Option<&Zone> {
        self.above(name, name.label_count())
    }

    /// The zone that a question is answered from. DS stands at the parent side of a cut (RFC 4035 §3.1.4.1), so
    /// at an apex the zone above is taken if it is served here too.
    pub fn for_question(&self, name: &QuestionName, qtype: u16) -> Option<&Zone> {
        let zone = self.of(name)?;
        let labels = name.label_count();
        if qtype == rdata::DS && labels > 0 && zone.apex_labels() == labels {
            return self.above(name, labels - 1).or(Some(zone));
        }
        Some(zone)
    }

    /// Whether a zone's apex has that key, or one below it.
    pub(crate) fn has_apex_at_or_below(&self, key: &[u8]) -> bool {
        at_or_below(&self.0, key)
    }

    fn above(&self, name: &QuestionName, labels_max: usize) -> Option<&Zone> {
        (0..=labels_max).rev().find_map(|labels| self.0.get(name.ancestor_key(labels))).map(|zone| &**zone)
    }
}

/// Everything that questions are answered from, at one generation. Never changed once it is published.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Rises with each published view.
    pub generation: u64,
    zones: Zones,
    services: BTreeMap<NameKey, Arc<ServiceView>>,
    monitors: Arc<[Network]>,
}

impl View {
    /// A view of these zones and services. `monitors` may ask for `_vmstate`.
    pub fn new(
        generation: u64,
        zones: Zones,
        services: impl IntoIterator<Item = Arc<ServiceView>>,
        monitors: impl Into<Arc<[Network]>>,
    ) -> Self {
        let services = services.into_iter().map(|service| (NameKey::from(&service.name), service)).collect();
        Self { generation, zones, services, monitors: monitors.into() }
    }

    /// Who may ask for `_vmstate` unless something else is configured: this host.
    pub fn default_monitors() -> Vec<Network> {
        vec![Network::LOOPBACK4, Network::LOOPBACK6]
    }

    /// This view with some services changed or, where there is `None`, gone. Shares everything else.
    #[must_use]
    pub fn with(
        &self,
        generation: u64,
        changes: impl IntoIterator<Item = (DomainName, Option<Arc<ServiceView>>)>,
    ) -> Self {
        let mut next = Self { generation, ..self.clone() };
        for (name, service) in changes {
            let key = NameKey::from(&name);
            match service {
                Some(service) => next.services.insert(key, service),
                None => next.services.remove(&key),
            };
        }
        next
    }

    /// The zones.
    pub fn zones(&self) -> &Zones {
        &self.zones
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceView>> {
        self.services.values()
    }

    /// The service of that name.
    pub fn service(&self, name: &DomainName) -> Option<&Arc<ServiceView>> {
        self.services.get(NameKey::from(name).as_ref())
    }

    /// The service with that key.
    pub(crate) fn service_at(&self, key: &[u8]) -> Option<&ServiceView> {
        self.services.get(key).map(|service| &**service)
    }

    /// Whether a service has the name with that key, or one below it.
    pub(crate) fn has_service_at_or_below(&self, key: &[u8]) -> bool {
        at_or_below(&self.services, key)
    }

    /// Whether that address may ask for `_vmstate`.
    pub fn is_monitor(&self, address: IpAddr) -> bool {
        self.monitors.iter().any(|network| network.contains(address))
    }
}

/// Whether the map has the key itself or one that begins with it.
pub(crate) fn at_or_below<T>(map: &BTreeMap<NameKey, T>, key: &[u8]) -> bool {
    use std::ops::Bound::{Included, Unbounded};
    let mut range = map.range::<[u8], _>((Included(key), Unbounded));
    range.next().is_some_and(|(next, _)| next.as_ref().starts_with(key))
}
